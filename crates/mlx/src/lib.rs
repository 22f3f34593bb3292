//! A thin binding to [MLX](https://github.com/ml-explore/mlx), Apple's array framework, through its C++ API.
//!
//! An [`Array`] is a node of MLX's lazy graph: operations describe work, [`eval`] (or reading values) does it, on the
//! device chosen with [`device::set`]. Every C++ exception arrives as an [`Error`]; wrong shapes and dtypes are
//! errors too, never a crash. This crate knows nothing of any model.

mod array;
mod bridge;
#[cfg(feature = "cuda")]
pub mod cuda;
mod custom;
pub mod device;
pub mod fast;
mod joined;
pub mod memory;
mod ops;
mod quantized;
#[cfg(test)]
#[path = "../build/wheel.rs"]
mod wheel;

pub use array::{Array, Dtype, Element, eval, start};
pub use custom::{Input, Output, custom};
pub use joined::joined;
pub use ops::{Conv, Operand, arange, concatenate, full, matmul_with_bias, select, stack, uniform, zeros};
pub use quantized::{Packing, Quantized, quantize};

/// The MLX release that this binding is written against.
pub const VERSION: &str = "0.32.4";

/// What MLX refused, in its words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct Error {
    /// The operation that failed.
    pub operation: &'static str,
    /// MLX's message.
    pub message: String,
}

/// The result of an operation that MLX may refuse.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(operation: &'static str, message: impl ToString) -> Self {
        Self { operation, message: message.to_string() }
    }
}
