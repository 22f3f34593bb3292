//! Audio latents → mel spectrogram.

use mlx::{Array, Dtype};

use super::layers::{Block, CausalConv, Pasts, Upsample, activate, middle};
use super::{Shape, Statistics, channels_first, channels_last, check};
use crate::checkpoint::{Config, Weights};
use crate::error::Result;

/// Latent frames that are decoded together: two thirds of a second.
pub(crate) const AT_ONCE: i32 = 16;

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
        self.forward_in(latent, AT_ONCE)
    }

    /// The same with `at_once` frames at a time.
    fn forward_in(&self, latent: &Array, at_once: i32) -> Result<Array> {
        let mut passage = Passage { at_once, ..self.enter(latent)? };
        let mut parts = Vec::new();
        while let Some((part, _)) = self.next(&mut passage)? {
            parts.push(part);
        }
        match &parts[..] {
            [whole] => Ok(whole.clone()),
            parts => Ok(mlx::concatenate(&parts.iter().collect::<Vec<_>>(), 2)?),
        }
    }

    /// Begins with a normalized latent (batch, channels, frames, bins).
    pub fn enter(&self, latent: &Array) -> Result<Passage> {
        check("the audio latent", latent, self.shape.latent_channels, self.shape.latent_bins)?;
        Ok(Passage { latent: latent.clone(), at_once: AT_ONCE, next: 0, pasts: Pasts::default() })
    }

    /// The next mel frames (batch, 2, frames, bins), f32, and whether they are the last; none after those.
    pub fn next(&self, passage: &mut Passage) -> Result<Option<(Array, bool)>> {
        let (from, frames) = (passage.next, passage.latent.dim(2));
        if from >= frames {
            return Ok(None);
        }
        passage.next = frames.min(from.saturating_add(passage.at_once));
        let mel = self.piece(&passage.latent.slice(2, from..passage.next)?, &mut passage.pasts)?;
        Ok(Some((mel, passage.next == frames)))
    }

    /// The next frames of a normalized latent (batch, channels, frames, bins) → mel (batch, 2, 4 · frames, 4 · bins), f32, of
    /// the first ones three frames less.
    fn piece(&self, latent: &Array, pasts: &mut Pasts) -> Result<Array> {
        let first = !pasts.any();
        pasts.rewind();
        let latent = self.statistics.denormalize(&channels_last(latent)?)?;
        let mut x = self.first.forward(&latent.astype(self.dtype)?, Some(pasts))?;
        for block in &self.middle {
            x = block.forward(&x, Some(pasts))?;
        }
        for (blocks, finer) in &self.levels {
            for block in blocks {
                x = block.forward(&x, Some(pasts))?;
                x.eval()?;
                pasts.eval()?;
            }
            if let Some(finer) = finer {
                x = finer.forward(&x, first, pasts)?;
            }
            x.eval()?;
        }
        let mel = self.last.forward(&activate(&x)?, Some(pasts))?; // (batch, frames, bins, 2)
        let mel = channels_first(&mel.astype(Dtype::F32)?)?;
        mel.eval()?;
        pasts.eval()?;
        Ok(mel)
    }
}

/// A latent on its way through the decoder: every convolution remembers the frames it looks back at, so that memory does
/// not grow with the sound's length and nothing is computed twice.
pub struct Passage {
    latent: Array, // (batch, channels, frames, bins)
    at_once: i32,
    /// The first latent frame that has not gone in.
    next: i32,
    pasts: Pasts,
}

impl Passage {
    /// Latent frames that went in, and all of them.
    pub fn progress(&self) -> (usize, usize) {
        (self.next as usize, self.latent.dim(2) as usize)
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
            for (frames, at_once) in
                [(97, 1), (97, 29), (97, 48), (97, 96), (29, 97), (1, 2), (2, 1), (24, 12)]
            {
                let latent = Noise::new(3).normal(&[1, latent_channels, frames, latent_bins])?;
                let whole = decoder.forward_in(&latent, i32::MAX)?;
                let pieces = decoder.forward_in(&latent, at_once)?;
                assert_eq!(pieces.shape(), whole.shape());
                assert_eq!(pieces.dim(2), 4 * frames - 3);
                let worst: f32 = pieces.subtract(&whole)?.abs()?.max(&[0, 1, 2, 3], false)?.item()?;
                assert!(worst <= 1e-6, "{generation}, {frames} frames, {at_once} at once: {worst}");
            }
        }
        Ok(())
    }
}
