//! What encoder and decoder are made of. Arrays are (batch, time, frequency, channels).

use mlx::Array;

use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Bias, Conv};

/// What the convolutions of a network, in their order, saw last of a spectrogram that comes part by part.
#[derive(Default)]
pub(super) struct Pasts {
    kept: Vec<Array>, // each (batch, kernel − 1, frequency, in)
    /// The convolution whose turn it is, in a part that goes through the network.
    turn: usize,
}

impl Pasts {
    /// The next part begins its way.
    pub(super) fn rewind(&mut self) {
        self.turn = 0;
    }

    /// Whether a part came before this one.
    pub(super) fn any(&self) -> bool {
        !self.kept.is_empty()
    }

    /// What came before `x` (batch, time, frequency, in), if anything did, and then `x`, of whose end `frames` are kept.
    fn and(&mut self, x: &Array, frames: i32) -> mlx::Result<(Array, bool)> {
        let before = self.kept.get(self.turn);
        let joined = match before {
            Some(past) => mlx::concatenate(&[past, x], 1)?,
            None => x.clone(),
        };
        let known = before.is_some();
        // Where less is there than is seen, zeros came first.
        let whole = joined.pad(1, (frames - joined.dim(1)).max(0), 0, 0.0)?;
        let past = whole.slice(1, whole.dim(1) - frames..whole.dim(1))?.contiguous()?;
        match self.kept.get_mut(self.turn) {
            Some(kept) => *kept = past,
            None => self.kept.push(past),
        }
        self.turn += 1;
        Ok((joined, known))
    }

    /// Computes what is kept, so that nothing holds what it was made from.
    pub(super) fn eval(&self) -> mlx::Result<()> {
        mlx::eval(&self.kept)
    }
}

/// A convolution that sees only the past: zeros before in time, on both sides in frequency.
pub(super) struct CausalConv {
    conv: Conv,
    kernel: i32,
}

impl CausalConv {
    /// Reads a square convolution of `kernel`, which is odd.
    pub(super) fn load(weights: &Weights, inputs: i32, outputs: i32, kernel: i32) -> Result<Self> {
        let conv = Conv::load(&weights.at("conv"), inputs, outputs, &[kernel, kernel], Bias::Yes)?;
        Ok(Self { conv, kernel })
    }

    /// (batch, time, frequency, in) → (batch, time, frequency, out), after what came before.
    pub(super) fn forward(&self, x: &Array, pasts: Option<&mut Pasts>) -> mlx::Result<Array> {
        self.forward_onto(x, None, pasts)
    }

    /// The same, added to `onto` (batch, time, frequency, out).
    fn forward_onto(&self, x: &Array, onto: Option<&Array>, pasts: Option<&mut Pasts>) -> mlx::Result<Array> {
        let (reach, side) = (self.kernel - 1, self.kernel / 2);
        let (x, known) = match pasts {
            Some(pasts) if reach > 0 => pasts.and(x, reach)?,
            _ => (x.clone(), false),
        };
        let zeros = if known { 0 } else { reach };
        let settings =
            mlx::Conv { padding_low: vec![zeros, side], padding_high: vec![0, side], ..Default::default() };
        self.conv.forward_onto(&x, &settings, onto)
    }
}

/// x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 × 1 convolution on the left x where the width changes.
pub(super) struct Block {
    convs: [CausalConv; 2],
    shortcut: Option<CausalConv>,
}

impl Block {
    pub(super) fn load(weights: &Weights, inputs: i32, outputs: i32) -> Result<Self> {
        let shortcut = (inputs != outputs)
            .then(|| CausalConv::load(&weights.at("nin_shortcut"), inputs, outputs, 1))
            .transpose()?;
        let convs = [
            CausalConv::load(&weights.at("conv1"), inputs, outputs, 3)?,
            CausalConv::load(&weights.at("conv2"), outputs, outputs, 3)?,
        ];
        Ok(Self { convs, shortcut })
    }

    /// (batch, time, frequency, in) → (batch, time, frequency, out), after what came before.
    pub(super) fn forward(&self, x: &Array, mut pasts: Option<&mut Pasts>) -> mlx::Result<Array> {
        let shortcut = match &self.shortcut {
            Some(shortcut) => &shortcut.forward(x, None)?,
            None => x,
        };
        let y = self.convs[0].forward(&activate(x)?, pasts.as_deref_mut())?;
        self.convs[1].forward_onto(&activate(&y)?, Some(shortcut), pasts)
    }
}

/// The two blocks at the coarsest resolution, which do not change the shape.
pub(super) fn middle(weights: &Weights, channels: i32) -> Result<[Block; 2]> {
    let block = |name| Block::load(&weights.at("mid").at(name), channels, channels);
    Ok([block("block_1")?, block("block_2")?])
}

/// Norm over the channels of each place, then SiLU.
pub(super) fn activate(x: &Array) -> mlx::Result<Array> {
    nn::silu_of_rms_norm(x, 1e-6)
}

/// Halves time and frequency: (batch, t, f, channels) → (batch, ⌈t / 2⌉, f / 2, channels).
pub(super) struct Downsample(Conv);

impl Downsample {
    pub(super) fn load(weights: &Weights, channels: i32) -> Result<Self> {
        Ok(Self(Conv::load(&weights.at("downsample.conv"), channels, channels, &[3, 3], Bias::Yes)?))
    }

    pub(super) fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let settings = mlx::Conv {
            stride: vec![2, 2],
            padding_low: vec![2, 0],
            padding_high: vec![0, 1],
            ..Default::default()
        };
        self.0.forward(x, &settings)
    }
}

/// Doubles time and frequency: (batch, t, f, channels) → (batch, 2 t − 1, 2 f, channels), and 2 t after what came before.
pub(super) struct Upsample(CausalConv);

impl Upsample {
    pub(super) fn load(weights: &Weights, channels: i32) -> Result<Self> {
        Ok(Self(CausalConv::load(&weights.at("upsample.conv"), channels, channels, 3)?))
    }

    pub(super) fn forward(&self, x: &Array, first: bool, pasts: &mut Pasts) -> mlx::Result<Array> {
        let y = self.0.forward(&x.repeat(2, 1)?.repeat(2, 2)?, Some(pasts))?;
        // The encoder saw the first frame alone, so it comes back as one frame, not two.
        y.slice(1, i32::from(first)..y.dim(1))
    }
}
