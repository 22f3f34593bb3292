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

/// The convolution. A video goes through it at once, or some frames at a time with the same result.
#[derive(Clone, Debug)]
pub(crate) struct CausalConv {
    conv: Conv,
    padding: Padding,
    pub stride: [i32; 3],
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

    /// How many channels it takes.
    pub fn inputs(&self) -> i32 {
        self.conv.inputs()
    }

    /// How many channels it makes.
    pub fn outputs(&self) -> i32 {
        self.conv.outputs()
    }

    /// All of a video at once: (batch, frames, height, width, in) → (batch, frames', height', width', out). Causal repeats
    /// the first frame twice before; otherwise the first and the last stand once more at their ends.
    pub fn forward(&self, x: &Array, causal: bool) -> Result<Array> {
        let y = self.step(x, &mut None, Sight { causal, last: true })?;
        y.ok_or_else(|| Error::request("a video of no frames was given", "give at least one frame"))
    }

    /// The next frames of a video (batch, frames, height, width, in) → those that can be computed now, if any: (batch,
    /// frames', height', width', out).
    pub fn step(&self, x: &Array, past: &mut Past, sight: Sight) -> Result<Option<Array>> {
        self.step_onto(x, past, sight, |_| Ok(None))
    }

    /// The same, added to what `onto` gives for so many frames: (batch, frames', height', width', out).
    pub fn step_onto(
        &self,
        x: &Array,
        past: &mut Past,
        sight: Sight,
        onto: impl FnOnce(i32) -> Result<Option<Array>>,
    ) -> Result<Option<Array>> {
        let before = match past.take() {
            Some(past) => past,
            None if sight.causal => x.slice(1, 0..1)?.repeat(2, 1)?,
            None => x.slice(1, 0..1)?,
        };
        let after = i32::from(sight.last && !sight.causal);
        let length = before.dim(1) + x.dim(1) + after;
        let count = if length < TAPS { 0 } else { (length - TAPS) / self.stride[0] + 1 };
        if !sight.last {
            *past = Some(last_frames(&before, x, length - count * self.stride[0])?);
        }
        if count == 0 {
            return Ok(None);
        }
        let onto = onto(count)?;
        let mut settings = mlx::Conv { stride: self.stride.into(), ..Default::default() };
        let y = match self.padding {
            Padding::Zeros => {
                settings.padding_low = vec![0, 1, 1];
                settings.padding_high = vec![0, 1, 1];
                self.conv.forward_after(&before, x, &settings, after, onto.as_ref())?
            }
            Padding::Reflect => {
                let mirrored = |x| reflect(&reflect(x, 2)?, 3);
                self.conv.forward_after(
                    &mirrored(&before)?,
                    &mirrored(x)?,
                    &settings,
                    after,
                    onto.as_ref(),
                )?
            }
        };
        Ok(Some(y))
    }
}

/// Frames that a kernel sees.
const TAPS: i32 = 3;

/// What a layer keeps of the frames it was given, (batch, frames, height, width, channels); nothing before the first.
pub(crate) type Past = Option<Array>;

/// How a layer looks at the frames it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    /// Convolutions look back only.
    pub causal: bool,
    /// No more frames come.
    pub last: bool,
}

/// The last `count` frames of `before` and `x` together, in memory of their own.
fn last_frames(before: &Array, x: &Array, count: i32) -> mlx::Result<Array> {
    let (old, new) = (before.dim(1), x.dim(1));
    match count - new {
        missing if missing <= 0 => x.slice(1, new - count..new)?.contiguous(),
        missing => mlx::concatenate(&[&before.slice(1, old - missing..old)?, x], 1),
    }
}

/// Lets the frames `x` wait after those that already do.
pub(super) fn wait(waiting: &mut Past, x: &Array) -> mlx::Result<()> {
    *waiting = Some(match waiting.take() {
        Some(waiting) => mlx::concatenate(&[&waiting, x], 1)?,
        None => x.clone(),
    });
    Ok(())
}

/// The first `count` of the frames that wait; there are as many.
pub(super) fn take(waiting: &mut Past, count: i32) -> mlx::Result<Option<Array>> {
    let Some(all) = waiting.take() else { return Ok(None) };
    let length = all.dim(1);
    if count == length {
        return Ok(Some(all));
    }
    *waiting = Some(all.slice(1, count..length)?.contiguous()?);
    all.slice(1, 0..count).map(Some)
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
