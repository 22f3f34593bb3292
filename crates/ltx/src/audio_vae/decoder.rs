//! Audio latents → mel spectrogram.

use mlx::{Array, Dtype};

use super::layers::{Block, CausalConv, Upsample, activate, middle};
use super::{Shape, Statistics, channels_first, channels_last, check};
use crate::checkpoint::{Config, Weights};
use crate::error::Result;

/// The decoder: resolution after resolution of residual blocks, each twice the one before.
pub struct AudioDecoder {
    first: CausalConv,
    middle: [Block; 2],
    /// Coarsest first.
    levels: Vec<(Vec<Block>, Option<Upsample>)>,
    last: CausalConv,
    statistics: Statistics,
    shape: Shape,
    dtype: Dtype,
}

impl AudioDecoder {
    /// Reads `decoder` and `per_channel_statistics` at `weights`; `config` is the whole configuration.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (shape, network) = Shape::load(config)?;
        let outputs = network.i32("out_ch")?;
        let statistics = Statistics::load(&weights.at("per_channel_statistics"), &shape)?;
        let dtype = weights.dtype();
        let weights = weights.at("decoder");
        let mut width = shape.channels[shape.channels.len() - 1];
        let first = CausalConv::load(&weights.at("conv_in"), shape.latent_channels, width, 3)?;
        let middle = middle(&weights, width)?;
        let mut levels = Vec::new();
        for (level, &channels) in shape.channels.iter().enumerate().rev() {
            let weights = weights.at(format!("up.{level}"));
            let mut blocks = Vec::new();
            for block in 0..=shape.blocks {
                blocks.push(Block::load(&weights.at(format!("block.{block}")), width, channels)?);
                width = channels;
            }
            let finer = (level > 0).then(|| Upsample::load(&weights, width)).transpose()?;
            levels.push((blocks, finer));
        }
        let last = CausalConv::load(&weights.at("conv_out"), width, outputs, 3)?;
        Ok(Self { first, middle, levels, last, statistics, shape, dtype })
    }

    /// Normalized latent (batch, channels, frames, bins) → mel (batch, 2, 4 · frames − 3, 4 · bins), f32.
    pub fn forward(&self, latent: &Array) -> Result<Array> {
        check("the audio latent", latent, self.shape.latent_channels, self.shape.latent_bins)?;
        let latent = self.statistics.denormalize(&channels_last(latent)?)?;
        let mut x = self.first.forward(&latent.astype(self.dtype)?)?;
        for block in &self.middle {
            x = block.forward(&x)?;
        }
        for (blocks, finer) in &self.levels {
            for block in blocks {
                x = block.forward(&x)?;
            }
            if let Some(finer) = finer {
                x = finer.forward(&x)?;
            }
            x.eval()?;
        }
        let mel = self.last.forward(&activate(&x)?)?; // (batch, frames, bins, 2)
        Ok(channels_first(&mel.astype(Dtype::F32)?)?)
    }
}
