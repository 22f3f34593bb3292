//! One entry of a block list, made into a network.

use mlx::Array;

use super::config::{Block, Blocks};
use super::conv::{CausalConv, Padding};
use super::resample::{Downsample, Upsample};
use super::resnet::{Attention, Memory, MidBlock, Pass, ResnetBlock};
use crate::checkpoint::Weights;
use crate::error::Result;

/// A block of the encoder or the decoder.
#[derive(Clone, Debug)]
pub(super) enum Layer {
    Mid(MidBlock),
    Resnet(ResnetBlock),
    Downsample(Downsample),
    Upsample(Upsample),
    Conv(CausalConv),
    Attention(Attention),
}

/// Where a block goes: its weights, the channels that come in, and what it shares with the others.
pub(super) struct Place<'a> {
    pub weights: Weights,
    pub inputs: i32,
    pub padding: Padding,
    /// What the decoder is conditioned on, if it is.
    pub timestep: Option<f32>,
    pub blocks: &'a Blocks<'a>,
}

const TIME: [i32; 3] = [2, 1, 1];
const SPACE: [i32; 3] = [1, 2, 2];
const ALL: [i32; 3] = [2, 2, 2];

impl Layer {
    /// A block of an encoder, and the channels it gives.
    pub fn encoder(block: &Block, place: &Place) -> Result<(Self, i32)> {
        let (weights, inputs, padding) = (&place.weights, place.inputs, place.padding);
        let wider = || place.times(block, inputs, block.multiplier.unwrap_or(2));
        let fold = |stride: [i32; 3]| {
            let (factor, outputs) = (stride.iter().product::<i32>(), wider()?);
            if outputs % factor != 0 || place.times(block, inputs, factor)? % outputs != 0 {
                return Err(place
                    .blocks
                    .error(block, format!("cannot fold {inputs} channels into {outputs}")));
            }
            Ok((Self::Downsample(Downsample::load(weights, inputs, outputs, stride, padding)?), outputs))
        };
        let conv = |stride: [i32; 3], outputs: i32| {
            Ok((Self::Conv(CausalConv::load(weights, inputs, outputs, stride, padding)?), outputs))
        };
        match block.name.as_str() {
            "res_x" => place.mid(block),
            "res_x_y" => place.resnet(block, wider()?),
            "compress_time" => conv(TIME, inputs),
            "compress_space" => conv(SPACE, inputs),
            "compress_all" => conv(ALL, inputs),
            "compress_all_x_y" => conv(ALL, wider()?),
            "compress_time_res" => fold(TIME),
            "compress_space_res" => fold(SPACE),
            "compress_all_res" => fold(ALL),
            "attn" => Ok((Self::Attention(Attention::load(weights, inputs)?), inputs)),
            _ => Err(place.blocks.error(block, "no encoder of LTX-2 has")),
        }
    }

    /// A block of a decoder, and the channels it gives.
    pub fn decoder(block: &Block, place: &Place) -> Result<(Self, i32)> {
        let (weights, inputs, padding) = (&place.weights, place.inputs, place.padding);
        let narrower = |reduction: i32| match inputs % reduction {
            0 => Ok(inputs / reduction),
            _ => Err(place.blocks.error(block, format!("cannot divide {inputs} channels by {reduction}"))),
        };
        let unfold = |stride: [i32; 3], residual: bool| {
            let (factor, reduction) = (stride.iter().product::<i32>(), block.multiplier.unwrap_or(1));
            let outputs = narrower(reduction)?;
            place.times(block, outputs, factor)?;
            if residual && (inputs % factor != 0 || factor % reduction != 0) {
                return Err(place.blocks.error(block, format!("cannot add {inputs} channels to {outputs}")));
            }
            let upsample = Upsample::load(weights, inputs, stride, reduction, residual, padding)?;
            Ok((Self::Upsample(upsample), outputs))
        };
        match block.name.as_str() {
            "res_x" => place.mid(block),
            "res_x_y" => place.resnet(block, narrower(block.multiplier.unwrap_or(2))?),
            "compress_time" => unfold(TIME, false),
            "compress_space" => unfold(SPACE, false),
            // Only here does the official code look at the flag.
            "compress_all" => unfold(ALL, block.residual),
            "attn" => Ok((Self::Attention(Attention::load(weights, inputs)?), inputs)),
            _ => Err(place.blocks.error(block, "no decoder of LTX-2 has")),
        }
    }

    /// Whether a frame's result depends on others than a few before and after it: then a video must come at once.
    pub fn sees_everything(&self) -> bool {
        match self {
            Self::Mid(block) => block.sees_everything(),
            Self::Resnet(block) => block.sees_everything(),
            _ => false,
        }
    }

    /// What it remembers before the first frame.
    pub fn memories(&self) -> Vec<Memory> {
        let count = if let Self::Mid(mid) = self { mid.blocks.len() } else { 1 };
        std::iter::repeat_with(Memory::default).take(count).collect()
    }

    /// The most values that it makes of one frame (batch, 1, height, width, in), or is given.
    pub fn values(&self, frame: usize, channels: i32) -> usize {
        let made = match self {
            Self::Upsample(block) => block.conv.outputs(),
            Self::Conv(conv) => conv.outputs(),
            _ => channels,
        };
        frame / channels.max(1) as usize * made.max(channels) as usize
    }

    /// The next frames (batch, frames, height, width, in) → what can be computed now of (batch, frames', height', width', out),
    /// computed before it returns.
    pub fn step(&self, x: Array, memories: &mut [Memory], pass: &mut Pass) -> Result<Option<Array>> {
        if let Self::Mid(block) = self {
            return block.step(x, memories, pass);
        }
        let Some(memory) = memories.first_mut() else { return Ok(None) };
        let y = match self {
            Self::Mid(_) => None,
            Self::Resnet(block) => block.step(&x, None, memory, pass)?,
            Self::Downsample(block) => block.step(&x, memory, pass.sight.last)?,
            Self::Upsample(block) => block.step(&x, memory, pass.sight)?,
            Self::Conv(conv) => conv.step(&x, &mut memory.convs[0], pass.sight)?,
            Self::Attention(attention) => Some(attention.forward(&x)?),
        };
        mlx::eval(y.iter().chain(memory.arrays()))?;
        Ok(y)
    }
}

impl Place<'_> {
    fn times(&self, block: &Block, channels: i32, factor: i32) -> Result<i32> {
        channels.checked_mul(factor).ok_or_else(|| {
            self.blocks.error(block, format!("makes {channels} channels {factor} times as many"))
        })
    }

    fn mid(&self, block: &Block) -> Result<(Layer, i32)> {
        let layers = block.layers.ok_or_else(|| self.blocks.error(block, "has no num_layers"))?;
        self.times(block, self.inputs, 4)?;
        let (weights, channels) = (&self.weights, self.inputs);
        let mid = MidBlock::load(weights, channels, layers, self.timestep, block.inject_noise, self.padding)?;
        Ok((Layer::Mid(mid), channels))
    }

    fn resnet(&self, block: &Block, outputs: i32) -> Result<(Layer, i32)> {
        if block.inject_noise && outputs != self.inputs {
            return Err(self.blocks.error(block, "changes its channels and injects noise"));
        }
        let (weights, noise) = (&self.weights, block.inject_noise);
        let resnet = ResnetBlock::load(weights, self.inputs, outputs, false, noise, self.padding)?;
        Ok((Layer::Resnet(resnet), outputs))
    }
}
