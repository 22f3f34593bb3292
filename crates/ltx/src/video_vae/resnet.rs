//! Residual blocks, with the conditioning on a timestep and the injected noise that some decoders have.

use mlx::Array;

use super::Noise;
use super::conv::{CausalConv, Padding, Past, Sight, take, wait};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Activation, Bias, Conv, Linear};

/// What blocks need to know of the pass they run in.
pub(super) struct Pass<'a, 'n> {
    pub sight: Sight,
    pub noise: &'a mut Noise<'n>,
}

/// What a block remembers of the frames before. Empty where none were.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Of each convolution.
    pub convs: [Past; 2],
    /// Frames that the convolutions' results are to be added to.
    pub waiting: Past,
    /// The maps that are added after each convolution, the same for all frames. (height, width, 1)
    noise: [Option<Array>; 2],
    /// Frames have come out.
    pub begun: bool,
}

impl Memory {
    /// All that is kept in lazy arrays.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.convs.iter().chain([&self.waiting]).chain(&self.noise).flatten()
    }
}

const EPS: f32 = 1e-8;

/// x / √(mean x² + 1e-8) over the channels.
pub(super) fn pixel_norm(x: &Array) -> mlx::Result<Array> {
    nn::rms_norm(x, None, EPS)
}

/// x · (1 + scale) + shift, with scale and shift (batch, 1, 1, 1, channels).
pub(super) fn modulate(x: &Array, shift: &Array, scale: &Array) -> mlx::Result<Array> {
    x.multiply(scale.add(1.0f32)?)?.add(shift)
}

/// Two convolutions beside a shortcut.
#[derive(Clone, Debug)]
pub(super) struct ResnetBlock {
    pub conv1: CausalConv,
    pub conv2: CausalConv,
    /// Strength of the noise added after each convolution, (channels).
    noise: Option<[Array; 2]>,
    /// Rows shift, scale, shift, scale; added to the timestep's embedding. (4, channels)
    table: Option<Array>,
    shortcut: Option<Shortcut>,
}

/// The way past a block that changes the number of channels.
#[derive(Clone, Debug)]
struct Shortcut {
    weight: Array, // (in)
    bias: Array,   // (in)
    conv: Conv,
}

impl Shortcut {
    fn load(weights: &Weights, inputs: i32, outputs: i32) -> Result<Self> {
        let norm = weights.at("norm3");
        Ok(Self {
            weight: norm.tensor("weight", &[inputs])?,
            bias: norm.tensor("bias", &[inputs])?,
            conv: Conv::load(&weights.at("conv_shortcut"), inputs, outputs, &[1, 1, 1], Bias::Yes)?,
        })
    }

    /// (batch, frames, height, width, in) → (batch, frames, height, width, out)
    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let x = nn::group_norm(x, 1, &self.weight, &self.bias, 1e-6)?;
        self.conv.forward(&x, &mlx::Conv::default())
    }
}

impl ResnetBlock {
    pub fn load(
        weights: &Weights,
        inputs: i32,
        outputs: i32,
        conditioned: bool,
        inject_noise: bool,
        padding: Padding,
    ) -> Result<Self> {
        let conv = |name, inputs| CausalConv::load(&weights.at(name), inputs, outputs, [1, 1, 1], padding);
        let strength = |name| {
            let strength = weights.tensor(name, &[outputs, 1, 1])?;
            Ok::<_, crate::Error>(strength.reshape(&[outputs])?)
        };
        Ok(Self {
            conv1: conv("conv1", inputs)?,
            conv2: conv("conv2", outputs)?,
            noise: inject_noise
                .then(|| {
                    Ok::<_, crate::Error>([strength("per_channel_scale1")?, strength("per_channel_scale2")?])
                })
                .transpose()?,
            table: conditioned.then(|| weights.tensor("scale_shift_table", &[4, inputs])).transpose()?,
            shortcut: (inputs != outputs).then(|| Shortcut::load(weights, inputs, outputs)).transpose()?,
        })
    }

    /// Whether a frame's result depends on others than a few before and after it.
    pub fn sees_everything(&self) -> bool {
        self.shortcut.is_some()
    }

    /// (batch, frames, height, width, in) → what can be computed now of (batch, frames', height, width, out). `timestep` is
    /// the embedding (1, 4 · in) of a conditioned block.
    pub fn step(
        &self,
        x: &Array,
        timestep: Option<&Array>,
        memory: &mut Memory,
        pass: &mut Pass,
    ) -> Result<Option<Array>> {
        let rows = match (&self.table, timestep) {
            (Some(table), Some(timestep)) => Some(rows(table, timestep)?),
            _ => None,
        };
        let Memory { convs, waiting, noise, .. } = memory;
        match &self.shortcut {
            Some(shortcut) => wait(waiting, &shortcut.forward(x)?)?,
            None => wait(waiting, x)?,
        }
        let mut y = x.clone();
        for (index, conv) in [&self.conv1, &self.conv2].into_iter().enumerate() {
            y = match &rows {
                None => nn::silu_of_rms_norm(&y, EPS)?,
                Some(rows) => nn::silu(&modulate(&pixel_norm(&y)?, &rows[2 * index], &rows[2 * index + 1])?)?,
            };
            let mut onto = |count| match index == 1 && self.noise.is_none() {
                true => Ok(take(waiting, count)?),
                false => Ok(None),
            };
            let Some(next) = conv.step_onto(&y, &mut convs[index], pass.sight, &mut onto)? else {
                return Ok(None);
            };
            y = next;
            if let Some(strength) = &self.noise {
                let map = match &noise[index] {
                    Some(map) => map.clone(),
                    None => {
                        let (height, width) = (y.dim(2), y.dim(3));
                        (pass.noise)(&[height, width])?.astype(y.dtype())?.reshape(&[height, width, 1])?
                    }
                };
                y = y.add(map.multiply(&strength[index])?)?; // one map for all frames
                noise[index] = Some(map);
            }
            if index == 0 {
                // What the second convolution needs comes after what only the first one did.
                mlx::eval([&y].into_iter().chain(&convs[0]))?;
            }
        }
        if self.noise.is_some()
            && let Some(shortcut) = take(waiting, y.dim(1))?
        {
            y = shortcut.add(&y)?;
        }
        Ok(Some(y))
    }
}

/// The rows of a table (n, channels) plus a timestep's embedding (1, n · channels), each as (1, 1, 1, 1, channels).
pub(super) fn rows(table: &Array, timestep: &Array) -> mlx::Result<Vec<Array>> {
    let (count, channels) = (table.dim(0), table.dim(1));
    let sum = timestep.reshape(&[count, channels])?.add(table)?;
    sum.split(count, 0)?.iter().map(|row| row.reshape(&[1, 1, 1, 1, channels])).collect()
}

/// Several residual blocks of one width that share a timestep embedding.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    pub blocks: Vec<ResnetBlock>,
    /// (1, 4 · channels)
    timestep: Option<Array>,
}

impl MidBlock {
    /// `timestep` conditions the blocks.
    pub fn load(
        weights: &Weights,
        channels: i32,
        layers: i32,
        timestep: Option<f32>,
        inject_noise: bool,
        padding: Padding,
    ) -> Result<Self> {
        let timestep =
            timestep.map(|value| embed(&weights.at("time_embedder"), value, 4 * channels)).transpose()?;
        let block = |index| {
            let weights = weights.at(format!("res_blocks.{index}"));
            ResnetBlock::load(&weights, channels, channels, timestep.is_some(), inject_noise, padding)
        };
        Ok(Self { blocks: (0..layers).map(block).collect::<Result<_>>()?, timestep })
    }

    /// Whether a frame's result depends on others than a few before and after it.
    pub fn sees_everything(&self) -> bool {
        self.blocks.iter().any(ResnetBlock::sees_everything)
    }

    /// (batch, frames, height, width, channels) → what can be computed now of (batch, frames', height, width, channels).
    /// Computed block by block, so that memory stays bounded.
    pub fn step(&self, mut x: Array, memories: &mut [Memory], pass: &mut Pass) -> Result<Option<Array>> {
        for (block, memory) in self.blocks.iter().zip(memories) {
            let y = block.step(&x, self.timestep.as_ref(), memory, pass)?;
            mlx::eval(y.iter().chain(memory.arrays()))?;
            match y {
                Some(y) => x = y,
                None => return Ok(None),
            }
        }
        Ok(Some(x))
    }
}

/// The embedding (1, width) of a timestep that never changes: 256 sinusoids in f32, cosines first, through a linear
/// layer, SiLU and another.
pub(super) fn embed(weights: &Weights, timestep: f32, width: i32) -> Result<Array> {
    const HALF: i32 = 128;
    let angle = |i: i32| f64::from(timestep) * (-(10_000f64.ln()) * f64::from(i) / f64::from(HALF)).exp();
    let cosines = (0..HALF).map(|i| angle(i).cos() as f32);
    let waves: Vec<f32> = cosines.chain((0..HALF).map(|i| angle(i).sin() as f32)).collect();
    let waves = Array::from_slice(&waves, &[1, 2 * HALF])?.astype(weights.dtype())?;
    let weights = weights.at("timestep_embedder");
    let linear1 = Linear::load(&weights.at("linear_1"), 2 * HALF, width, Bias::Yes)?;
    let linear2 = Linear::load(&weights.at("linear_2"), width, width, Bias::Yes)?;
    Ok(linear2.forward(&linear1.activated(&waves, Activation::Silu)?)?)
}

/// Single-head self-attention among the places of each frame.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    gain: Array, // (channels)
    qkv: Conv,
    out: Conv,
}

impl Attention {
    pub fn load(weights: &Weights, channels: i32) -> Result<Self> {
        let pointwise = |name, outputs| Conv::load(&weights.at(name), channels, outputs, &[1, 1], Bias::Yes);
        Ok(Self {
            gain: weights.at("norm").tensor("gamma", &[channels, 1, 1])?.reshape(&[channels])?,
            qkv: pointwise("to_qkv", 3 * channels)?,
            out: pointwise("proj", channels)?,
        })
    }

    /// (batch, frames, height, width, channels), shape kept
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let (frames, height, width, channels) = (x.dim(0) * x.dim(1), x.dim(2), x.dim(3), x.dim(4));
        let settings = mlx::Conv::default();
        let y = x.reshape(&[frames, height, width, channels])?;
        // The norm is x / ‖x‖ · √channels with no epsilon worth the name; this one only keeps zeros zero.
        let y = self.qkv.forward(&nn::rms_norm(&y, Some(&self.gain), 1e-30)?, &settings)?;
        let y = y.reshape(&[frames, height * width, 1, 3 * channels])?.split(3, 3)?; // (frames, places, head, channels)
        let y = nn::attention(&y[0], &y[1], &y[2], (channels as f32).sqrt().recip(), None)?;
        let y = self.out.forward(&y.reshape(&[frames, height, width, channels])?, &settings)?;
        Ok(y.reshape(x.shape())?.add(x)?)
    }
}
