//! Mel spectrogram → audio latents.

use mlx::{Array, Dtype};

use super::layers::{Block, CausalConv, Downsample, activate, middle};
use super::{Shape, Statistics, channels_first, channels_last, check};
use crate::checkpoint::{Config, Weights};
use crate::error::Result;

/// The encoder: resolution after resolution of residual blocks, each half the one before.
pub struct AudioEncoder {
    first: CausalConv,
    levels: Vec<(Vec<Block>, Option<Downsample>)>,
    middle: [Block; 2],
    last: CausalConv,
    statistics: Statistics,
    shape: Shape,
    inputs: i32,
    dtype: Dtype,
}

impl AudioEncoder {
    /// Reads `encoder` and `per_channel_statistics` at `weights`; `config` is the whole configuration.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (shape, network) = Shape::load(config)?;
        let inputs = network.i32("in_channels")?;
        let statistics = Statistics::load(&weights.at("per_channel_statistics"), &shape)?;
        let Some(outputs) = shape.latent_channels.checked_mul(2) else {
            return Err(network.error("z_channels", "is too large"));
        };
        let dtype = weights.dtype();
        let weights = weights.at("encoder");
        let mut width = shape.base;
        let first = CausalConv::load(&weights.at("conv_in"), inputs, width, 3)?;
        let mut levels = Vec::new();
        for (level, &channels) in shape.channels.iter().enumerate() {
            let weights = weights.at(format!("down.{level}"));
            let mut blocks = Vec::new();
            for block in 0..shape.blocks {
                blocks.push(Block::load(&weights.at(format!("block.{block}")), width, channels)?);
                width = channels;
            }
            let coarser =
                (level + 1 < shape.channels.len()).then(|| Downsample::load(&weights, width)).transpose()?;
            levels.push((blocks, coarser));
        }
        let middle = middle(&weights, width)?;
        // The second half of the outputs, a variance, is for training.
        let last = CausalConv::load(&weights.at("conv_out"), width, outputs, 3)?;
        Ok(Self { first, levels, middle, last, statistics, shape, inputs, dtype })
    }

    /// Mel (batch, 2, frames, bins) → normalized latent (batch, channels, ⌈⌈frames / 2⌉ / 2⌉, bins / 4), f32.
    pub fn forward(&self, mel: &Array) -> Result<Array> {
        check("the mel spectrogram", mel, self.inputs, self.shape.latent_bins * 4)?;
        let mut x = self.first.forward(&channels_last(mel)?.astype(self.dtype)?, None)?;
        for (blocks, coarser) in &self.levels {
            for block in blocks {
                x = block.forward(&x, None)?;
            }
            if let Some(coarser) = coarser {
                x = coarser.forward(&x)?;
            }
            x.eval()?;
        }
        for block in &self.middle {
            x = block.forward(&x, None)?;
        }
        let moments = self.last.forward(&activate(&x)?, None)?; // (batch, frames, bins, 2 · channels)
        let mean = moments.slice(3, 0..self.shape.latent_channels)?;
        Ok(channels_first(&self.statistics.normalize(&mean)?)?)
    }
}
