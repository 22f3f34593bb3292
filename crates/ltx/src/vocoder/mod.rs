//! Mel spectrogram → samples. A `generator` does it in one go at 24 kHz (2.0), or at 16 kHz (2.3 and later), after which
//! `bandwidth` adds what lies above 8 kHz. Always computed in f32: hundreds of convolutions in a row add bf16's
//! rounding up to audible noise. Inside, arrays are (batch, time, channels).

mod bandwidth;
mod filter;
mod generator;

use mlx::{Array, Dtype};

use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::trace::Trace;
use bandwidth::Bandwidth;
use generator::{Final, Generator};

/// Mel frames that are computed together: ten seconds.
const AT_ONCE: i32 = 1000;

/// Sample rate of vocoders whose configuration does not state one: those before bandwidth extension (2.0).
const UNSTATED_RATE: u32 = 24_000;

/// The vocoder.
pub struct Vocoder {
    generator: Generator,
    bandwidth: Option<Bandwidth>,
    sample_rate: u32,
}

impl Vocoder {
    /// Reads all that is at `weights`; `config` is the whole configuration.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let config = config.at("vocoder")?;
        let weights = weights.in_dtype(Dtype::F32);
        let Some(extension) = config.optional_at("bwe")? else {
            let generator = Generator::load(&weights, &config, Final::of(&config)?)?;
            let sample_rate = match config.get("output_sampling_rate") {
                Some(_) => config.i32("output_sampling_rate")? as u32,
                None => UNSTATED_RATE,
            };
            return Ok(Self { generator, bandwidth: None, sample_rate });
        };
        let low = config.at("vocoder")?;
        let generator = Generator::load(&weights.at("vocoder"), &low, Final::of(&low)?)?;
        let bandwidth = Bandwidth::load(&weights, &extension)?;
        Ok(Self { generator, sample_rate: bandwidth.sample_rate(), bandwidth: Some(bandwidth) })
    }

    /// Samples per second of the waveforms it makes.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// Mel (batch, 2, frames, bins) → waveform (batch, 2, samples) in [-1, 1], f32. A long one is computed in pieces, with the
    /// same result.
    pub fn forward(&self, mel: &Array, trace: &mut Trace) -> Result<Array> {
        // What a trace records is whole.
        self.forward_in(mel, if trace.is_on() { i32::MAX } else { AT_ONCE }, trace)
    }

    /// The same with `at_once` frames of either generator at a time.
    fn forward_in(&self, mel: &Array, at_once: i32, trace: &mut Trace) -> Result<Array> {
        let &[batch, 2, frames, bins] = mel.shape() else {
            return Err(Error::request(
                format!("a mel spectrogram of shape {:?}, not (batch, 2, frames, bins)", mel.shape()),
                "give one made for this model",
            ));
        };
        let mel = mel
            .astype(Dtype::F32)?
            .transpose(&[0, 2, 1, 3])? // (batch, frames, 2, bins)
            .reshape(&[batch, frames, 2 * bins])?;
        let waveform = self.generator.forward(&mel, at_once)?;
        let waveform = match &self.bandwidth {
            Some(bandwidth) => bandwidth.forward(&waveform, at_once, trace)?,
            None => waveform,
        };
        Ok(channels_first(&waveform)?)
    }
}

/// (batch, time, channels) → (batch, channels, time)
fn channels_first(x: &Array) -> mlx::Result<Array> {
    x.transpose_last()?.contiguous()
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
                .component(Component::Vocoder, Dtype::F32)?;
            let vocoder = Vocoder::load(&weights, &config)?;
            let mel = Noise::new(3).normal(&[1, 2, 131, 64])?;
            let whole = vocoder.forward(&mel, &mut Trace::on())?;
            for at_once in [50, 130] {
                let pieces = vocoder.forward_in(&mel, at_once, &mut Trace::off())?;
                assert_eq!(pieces.shape(), whole.shape());
                let worst = pieces.subtract(&whole)?.abs()?.max(&[0, 1, 2], false)?.item()?;
                assert!(worst <= 1e-6, "{generation}, {at_once} at once: {worst}");
            }
        }
        Ok(())
    }
}
