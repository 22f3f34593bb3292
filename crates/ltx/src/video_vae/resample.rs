//! Trading resolution for channels: patches at the pixel end, space-to-depth and depth-to-space between blocks.

use mlx::Array;

use super::conv::{CausalConv, Padding, Sight, take, wait};
use super::resnet::Memory;
use crate::checkpoint::Weights;
use crate::error::Result;

/// (batch, frames, height, width, channels) → (batch, frames, height / p, width / p, channels · p²). Within a patch the
/// column counts before the row: channel order is (channel, column, row).
pub(super) fn patchify(x: &Array, patch: i32) -> mlx::Result<Array> {
    let [b, f, h, w, c] = sizes(x);
    let x = x.reshape(&[b, f, h / patch, patch, w / patch, patch, c])?;
    let x = x.transpose(&[0, 1, 2, 4, 6, 5, 3])?; // (batch, frames, rows, columns, channels, column, row)
    x.reshape(&[b, f, h / patch, w / patch, c * patch * patch])
}

/// The inverse of [`patchify`].
pub(super) fn unpatchify(x: &Array, patch: i32) -> mlx::Result<Array> {
    let [b, f, h, w, c] = sizes(x);
    let c = c / (patch * patch);
    let x = x.reshape(&[b, f, h, w, c, patch, patch])?;
    let x = x.transpose(&[0, 1, 2, 6, 3, 5, 4])?; // (batch, frames, rows, row, columns, column, channels)
    x.reshape(&[b, f, h * patch, w * patch, c])
}

/// (batch, F, H, W, c) → (batch, F / t, H / h, W / w, c · t · h · w) with channel order (c, t, h, w).
fn space_to_depth(x: &Array, [t, h, w]: [i32; 3]) -> mlx::Result<Array> {
    let [batch, frames, height, width, channels] = sizes(x);
    let [frames, height, width] = [frames / t, height / h, width / w];
    let x = x.reshape(&[batch, frames, t, height, h, width, w, channels])?;
    let x = x.transpose(&[0, 1, 3, 5, 7, 2, 4, 6])?; // (batch, F / t, H / h, W / w, c, t, h, w)
    x.reshape(&[batch, frames, height, width, channels * t * h * w])
}

/// The inverse of [`space_to_depth`].
pub(crate) fn depth_to_space(x: &Array, [t, h, w]: [i32; 3]) -> mlx::Result<Array> {
    let [batch, frames, height, width, channels] = sizes(x);
    let channels = channels / (t * h * w);
    let x = x.reshape(&[batch, frames, height, width, channels, t, h, w])?;
    let x = x.transpose(&[0, 1, 5, 2, 6, 3, 7, 4])?; // (batch, F, t, H, h, W, w, c)
    x.reshape(&[batch, frames * t, height * h, width * w, channels])
}

fn sizes(x: &Array) -> [i32; 5] {
    [0, 1, 2, 3, 4].map(|axis| x.dim(axis))
}

/// Encoder: a convolution whose result is folded into channels, plus the folded input averaged to as many.
#[derive(Clone, Debug)]
pub(super) struct Downsample {
    pub conv: CausalConv,
    pub stride: [i32; 3],
    outputs: i32,
}

impl Downsample {
    /// `outputs` must be a multiple of the stride's product and divide `inputs` times it.
    pub fn load(
        weights: &Weights,
        inputs: i32,
        outputs: i32,
        stride: [i32; 3],
        padding: Padding,
    ) -> Result<Self> {
        let folded = outputs / stride.iter().product::<i32>();
        let conv = CausalConv::load(&weights.at("conv"), inputs, folded, [1, 1, 1], padding)?;
        Ok(Self { conv, stride, outputs })
    }

    /// (batch, frames, height, width, in) → what can be computed now of (batch, frames / t, height / h, width / w, out); with
    /// t = 2 the first frame is doubled, so that an odd number of frames halves upwards.
    pub fn step(&self, x: &Array, memory: &mut Memory, last: bool) -> Result<Option<Array>> {
        let doubled = self.stride[0] == 2 && !memory.begun;
        memory.begun = true;
        let x = if doubled { x.pad_edge(1, 1, 0)? } else { x.clone() };
        wait(&mut memory.waiting, &x)?;
        let there = memory.waiting.as_ref().map_or(0, |x| x.dim(1));
        let count = there - there % self.stride[0];
        let (Some(x), true) = (take(&mut memory.waiting, count)?, count > 0) else { return Ok(None) };
        let skip = space_to_depth(&x, self.stride)?;
        let [b, f, h, w, c] = sizes(&skip);
        let skip = skip.reshape(&[b, f, h, w, self.outputs, c / self.outputs])?.mean(&[5], false)?;
        let Some(y) = self.conv.step(&x, &mut memory.convs[0], Sight { causal: true, last })? else {
            return Ok(None); // never: a causal convolution gives as many frames as it gets
        };
        Ok(Some(space_to_depth(&y, self.stride)?.add(&skip)?))
    }
}

/// Decoder: a convolution to many channels, unfolded into frames, rows and columns.
#[derive(Clone, Debug)]
pub(super) struct Upsample {
    pub conv: CausalConv,
    pub stride: [i32; 3],
    /// How often the unfolded input's channels stand side by side to match the result, when it is added.
    pub residual: Option<i32>,
}

impl Upsample {
    /// `reduction` divides the channels; with `residual`, `inputs` must be a multiple of the stride's product.
    pub fn load(
        weights: &Weights,
        inputs: i32,
        stride: [i32; 3],
        reduction: i32,
        residual: bool,
        padding: Padding,
    ) -> Result<Self> {
        let factor = stride.iter().product::<i32>();
        let outputs = inputs / reduction * factor;
        let conv = CausalConv::load(&weights.at("conv"), inputs, outputs, [1, 1, 1], padding)?;
        Ok(Self { conv, stride, residual: residual.then_some(factor / reduction) })
    }

    /// (batch, frames, height, width, in) → what can be computed now of (batch, frames · t, height · h, width · w, in /
    /// reduction); with t = 2 the first frame of the result goes.
    pub fn step(&self, x: &Array, memory: &mut Memory, sight: Sight) -> Result<Option<Array>> {
        if self.residual.is_some() {
            wait(&mut memory.waiting, x)?;
        }
        let Some(y) = self.conv.step(x, &mut memory.convs[0], sight)? else { return Ok(None) };
        let first = self.stride[0] == 2 && !memory.begun;
        memory.begun = true;
        let unfold = |x: &Array| {
            let y = depth_to_space(x, self.stride)?;
            if first { y.slice(1, 1..y.dim(1)) } else { Ok(y) }
        };
        match (self.residual, take(&mut memory.waiting, y.dim(1))?) {
            (Some(repeats), Some(x)) => {
                Ok(Some(unfold(&y)?.add(&unfold(&x)?.tile(&[1, 1, 1, 1, repeats])?)?))
            }
            _ => Ok(Some(unfold(&y)?)),
        }
    }
}
