//! CPU kernels for the hot operations of LTX-2: linear layers, convolutions, attention and norms, on slices.
//!
//! Everything here is plain mathematics on row-major f32 and bf16 data; it knows neither MLX nor the model. Kernels are
//! written once over a vector interface ([`Isa`] lists the instruction sets) and run on one pool of threads
//! ([`set_threads`]). Sums are f32. Results depend on the instruction set in the last bits, never on the number of
//! threads.

mod attention;
mod conv;
mod elementwise;
mod gemm;
mod ggml;
mod isa;
mod math;
pub mod measure;
mod norm;
mod packing;
mod pool;
mod quantize;
mod snake;
mod values;

pub use attention::{Added, AttentionShape, Mask, attention};
pub use conv::{Axis, ConvShape, Padding, conv};
pub use elementwise::{activate, gate_heads};
pub use gemm::{Epilogue, PerRow, Residual, linear, linear_packed};
pub use ggml::{Ggml, RepackedMut, dequantize_ggml, repack};
pub use isa::{Isa, isa, set_isa};
pub use math::Activation;
pub use norm::{Norm, Rotation, Scaling, norm, norm_and_rotate};
pub use packing::{Packed, Packing, Scales};
pub use pool::{set_threads, threads};
pub use quantize::{PartMut, dequantize, look_up, quantize};
pub use snake::{Snake, snake};
pub use values::{Matrix, Values, ValuesMut};

/// Why a kernel was not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sizes that do not fit each other.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What the others ask for.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An unknown name of an instruction set.
    #[error("there is no instruction set {name:?}; there are {known}")]
    Isa {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// An instruction set that this processor lacks.
    #[error("this processor lacks {0}")]
    Missing(Isa),
    /// The system refused threads.
    #[error("cannot start threads: {0}")]
    Threads(String),
}
