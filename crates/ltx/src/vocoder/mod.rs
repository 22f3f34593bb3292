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

    /// Mel (batch, 2, frames, bins) → waveform (batch, 2, samples) in [-1, 1], f32.
    pub fn forward(&self, mel: &Array, trace: &mut Trace) -> Result<Array> {
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
        let waveform = self.generator.forward(&mel)?;
        let waveform = match &self.bandwidth {
            Some(bandwidth) => bandwidth.forward(&waveform, trace)?,
            None => waveform,
        };
        Ok(channels_first(&waveform)?)
    }
}

/// (batch, time, channels) → (batch, channels, time)
fn channels_first(x: &Array) -> mlx::Result<Array> {
    x.transpose_last()?.contiguous()
}
