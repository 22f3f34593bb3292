//! The 3×3×3 convolution of the autoencoder: replicated frames in time, zeros or a reflection in space.

use mlx::Array;

use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::nn::{Bias, Conv};

/// What stands beyond the picture's border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    Zeros,
    Reflect,
}

#[derive(Clone, Debug)]
pub(crate) struct CausalConv {
    conv: Conv,
    padding: Padding,
    stride: [i32; 3],
}

impl CausalConv {
    /// Whether it mirrors pixels at the border, which takes two of them.
    pub fn mirrors(&self) -> bool {
        self.padding == Padding::Reflect
    }

    /// Reads `conv.weight` and `conv.bias` at `weights`. `stride` is (frames, height, width).
    pub fn load(
        weights: &Weights,
        inputs: i32,
        outputs: i32,
        stride: [i32; 3],
        padding: Padding,
    ) -> Result<Self> {
        let conv = Conv::load(&weights.at("conv"), inputs, outputs, &[3, 3, 3], Bias::Yes)?;
        Ok(Self { conv, padding, stride })
    }

    /// (batch, frames, height, width, in) → (batch, frames', height', width', out). Causal repeats the first frame
    /// twice before; otherwise the first and the last stand once more at their ends.
    pub fn forward(&self, x: &Array, causal: bool) -> Result<Array> {
        self.forward_onto(x, causal, None)
    }

    /// The same, added to `onto` (batch, frames', height', width', out).
    pub fn forward_onto(&self, x: &Array, causal: bool, onto: Option<&Array>) -> Result<Array> {
        let continued = Some(if causal { [2, 0] } else { [1, 1] });
        let mut settings = mlx::Conv { stride: self.stride.into(), ..Default::default() };
        match self.padding {
            Padding::Zeros => {
                settings.padding_low = vec![0, 1, 1];
                settings.padding_high = vec![0, 1, 1];
                Ok(self.conv.forward_onto(x, &settings, continued, onto)?)
            }
            Padding::Reflect => {
                let mirrored = reflect(&reflect(x, 2)?, 3)?;
                Ok(self.conv.forward_onto(&mirrored, &settings, continued, onto)?)
            }
        }
    }
}

/// One element added at both ends of `axis`, mirrored about the outermost.
fn reflect(x: &Array, axis: i32) -> Result<Array> {
    let size = x.dim(axis);
    if size < 2 {
        return Err(Error::request(
            "the picture is too small for this video autoencoder, which mirrors pixels at the border",
            "make the picture, or the tiles it is decoded in, at least 64 pixels high and wide",
        ));
    }
    Ok(mlx::concatenate(&[&x.slice(axis, 1..2)?, x, &x.slice(axis, size - 2..size - 1)?], axis)?)
}
