//! The layers that networks are made of, and the one place where a kernel is chosen for them.
//!
//! Layers know their weights' official layout and nothing of the model around them.

mod attention;
mod conv;
pub mod cpu;
mod layer;
mod linear;
mod packed;
mod rows;
mod unpack;

pub use attention::{attention, past_attention};
pub use conv::{Conv, TransposedConv, depthwise};
pub use kernels::{Activation, Ggml, Packing};
pub use linear::{Bias, Linear, Onto};
pub use packed::{Blocked, Fp8, Packed, Weight};
pub use rows::{
    gated_heads, gelu_tanh, layer_norm, leaky_relu, modulated, modulated_rms_norm, rms_norm,
    rotated_rms_norm, silu, silu_of_rms_norm, snake,
};

pub(crate) use attention::Sees;
pub(crate) use unpack::blocks;

use std::cell::Cell;

use mlx::{Array, Dtype, Result};

thread_local! {
    static OPERATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Multiplications and additions in the linear layers, convolutions and attentions that this thread has asked for so far.
pub(crate) fn operations() -> u64 {
    OPERATIONS.get()
}

/// Counts `results`, each a sum of `terms` products.
fn count(results: usize, terms: usize) {
    OPERATIONS.set(OPERATIONS.get().wrapping_add(2 * (results as u64).wrapping_mul(terms as u64)));
}

/// Group norm over the last axis' channels in `groups` and every axis but the first, in f32: each group of a batch element
/// is brought to mean 0 and variance 1, then times `weight` plus `bias` (channels).
pub fn group_norm(x: &Array, groups: i32, weight: &Array, bias: &Array, eps: f32) -> Result<Array> {
    let (batch, channels) = (x.dim(0), x.dim(-1));
    let wide = x.astype(Dtype::F32)?.reshape(&[batch, -1, groups, channels / groups])?; // (batch, places, groups, channels)
    let centred = wide.subtract(wide.mean(&[1, 3], true)?)?;
    let deviation = centred.square()?.mean(&[1, 3], true)?.add(eps)?.sqrt()?;
    let normal = centred.divide(deviation)?.reshape(x.shape())?;
    normal.multiply(weight)?.add(bias)?.astype(x.dtype())
}
