//! Audio latents → mel spectrogram.

use mlx::{Array, Dtype};

use super::layers::{Block, CausalConv, Upsample, activate, middle};
use super::{Shape, Statistics, channels_first, channels_last, check};
use crate::checkpoint::{Config, Weights};
use crate::error::Result;
use crate::overlap::{Piece, Reach, in_pieces};

/// Latent frames that are decoded together: ten seconds.
const AT_ONCE: i32 = 256;

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

    /// Normalized latent (batch, channels, frames, bins) → mel (batch, 2, 4 · frames − 3, 4 · bins), f32. A long one is decoded
    /// in pieces, with the same result.
    pub fn forward(&self, latent: &Array) -> Result<Array> {
        self.forward_in(latent, AT_ONCE, self.reach())
    }

    /// The same with `at_once` frames at a time, and those before as far as `reach`.
    fn forward_in(&self, latent: &Array, at_once: i32, reach: Reach) -> Result<Array> {
        check("the audio latent", latent, self.shape.latent_channels, self.shape.latent_bins)?;
        in_pieces(latent, 2, at_once, reach, 2, |latent, Piece { own, seen }| {
            let mel = self.piece(latent)?;
            // Latent frame 0 is one mel frame, frame t four from 4 t − 3 on: all are as far from the first.
            let first = if own.start == 0 { 0 } else { 4 * (own.start - seen.start) - 3 };
            Ok(mel.slice(2, first..4 * (own.end - seen.start) - 3)?)
        })
    }

    /// How many latent frames a mel frame sees.
    fn reach(&self) -> Reach {
        // Two frames for each convolution in a row, of which those of the coarsest level are the longest.
        let blocks = 2 * (self.shape.blocks as i32 + 1);
        let finest = 2 * (4 * (1 + 4 + blocks) + 2 * (1 + blocks) + (1 + blocks + 1));
        // Each doubling lets half a frame more in.
        Reach { before: finest / 4 + 3, after: 0 }
    }

    /// Normalized latent (batch, channels, frames, bins) → mel (batch, 2, 4 · frames − 3, 4 · bins), f32, at once.
    fn piece(&self, latent: &Array) -> Result<Array> {
        let latent = self.statistics.denormalize(&channels_last(latent)?)?;
        let mut x = self.first.forward(&latent.astype(self.dtype)?)?;
        for block in &self.middle {
            x = block.forward(&x)?;
        }
        for (blocks, finer) in &self.levels {
            for block in blocks {
                x = block.forward(&x)?;
                x.eval()?;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::{Checkpoint, Component};
    use crate::noise::Noise;

    #[test]
    fn pieces_are_the_whole() -> Result<()> {
        for generation in ["2.0", "2.3"] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(generation);
            let (weights, config) = Checkpoint::open(&[file.join("model.safetensors")])?
                .component(Component::AudioDecoder, Dtype::F32)?;
            let decoder = AudioDecoder::load(&weights, &config)?;
            let Shape { latent_channels, latent_bins, .. } = decoder.shape;
            let latent = Noise::new(3).normal(&[1, latent_channels, 97, latent_bins])?;
            let whole = decoder.piece(&latent)?;
            let difference = |at_once, reach| -> Result<f32> {
                let pieces = decoder.forward_in(&latent, at_once, reach)?;
                assert_eq!(pieces.shape(), whole.shape());
                Ok(pieces.subtract(&whole)?.abs()?.max(&[0, 1, 2, 3], false)?.item()?)
            };
            for at_once in [1, 29, 48, 96] {
                let worst = difference(at_once, decoder.reach())?;
                assert!(worst <= 1e-6, "{generation}, {at_once} at once: {worst}");
            }
            assert!(difference(48, Reach { before: 1, after: 0 })? > 1e-4);
        }
        Ok(())
    }
}
