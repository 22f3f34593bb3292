//! Pixels ↔ video latents: the convolutional autoencoder of all generations.
//!
//! [`Encoder`] and [`ConvDecoder`] are built from the block lists in the file's header; [`Statistics`] moves latents
//! between their own scale and the normalized one that diffusion works in; [`Tiling`] splits what does not fit into
//! memory. Inside, arrays are channels last; latents outside are (batch, channels, frames, height, width), pixels
//! (batch, frames, height, width, rgb) in [-1, 1]. Reading and writing pictures is not done here.

mod config;
mod conv;
mod conv_decoder;
mod encoder;
mod layer;
mod memory;
mod resample;
mod resnet;
mod statistics;
mod stream;
#[cfg(test)]
mod tests;
mod tiling;

pub use conv_decoder::ConvDecoder;
pub use encoder::Encoder;
pub use statistics::Statistics;
pub use tiling::Tiling;

pub(crate) use conv::{CausalConv, Padding};
pub(crate) use resample::depth_to_space;

use mlx::{Array, Dtype};

use crate::error::Result;

/// Where a decoder gets its noise from: called with the shape of each draw, in the official order.
pub type Noise<'a> = dyn FnMut(&[i32]) -> Result<Array> + 'a;

/// How many pixels and frames one latent element stands for. The first latent frame is one pixel frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Pixel frames per latent frame.
    pub frames: i32,
    /// Pixels per latent row and column.
    pub pixels: i32,
}

/// Pixels (frames, height, width, rgb) in [-1, 1] → one buffer of 8-bit RGB per frame: round(255 · (x + 1) / 2).
pub fn rgb8(frames: &Array) -> Result<Vec<Vec<u8>>> {
    let unit = frames.astype(Dtype::F32)?.add(1.0f32)?.multiply(0.5f32)?;
    let bytes = unit.maximum(0.0f32)?.minimum(1.0f32)?.multiply(255.0f32)?.round()?.astype(Dtype::U8)?;
    let frame = bytes.shape().iter().skip(1).map(|&size| size as usize).product::<usize>().max(1);
    Ok(bytes.to_vec::<u8>()?.chunks(frame).map(<[u8]>::to_vec).collect())
}

/// (batch, channels, frames, height, width) → (batch, frames, height, width, channels)
pub(crate) fn channels_last(x: &Array) -> mlx::Result<Array> {
    x.transpose(&[0, 2, 3, 4, 1])
}

/// (batch, frames, height, width, channels) → (batch, channels, frames, height, width)
pub(crate) fn channels_first(x: &Array) -> mlx::Result<Array> {
    x.transpose(&[0, 4, 1, 2, 3])
}
