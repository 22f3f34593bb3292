//! Mel spectrogram → samples. A `generator` does it in one go at 24 kHz (2.0), or at 16 kHz (2.3 and later), after which
//! `bandwidth` adds what lies above 8 kHz. Always computed in f32: hundreds of convolutions in a row add bf16's
//! rounding up to audible noise. Inside, arrays are (batch, time, channels).

mod bandwidth;
mod filter;
mod generator;

use mlx::{Array, Dtype};

use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::overlap::Pieces;
use crate::trace::Trace;
use bandwidth::Bandwidth;
use generator::{Final, Generator};

/// Frames that a generator makes samples of together: two seconds, of the second generator's one. What it sees around them,
/// up to half a second to each side, is computed twice.
pub(crate) const AT_ONCE: i32 = 200;

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
        let mut passage = self.enter_in(if trace.is_on() { i32::MAX } else { AT_ONCE });
        self.push(&mut passage, mel, true)?;
        let mut parts = Vec::new();
        while let Some(part) = self.next_traced(&mut passage, trace)? {
            parts.push(part);
        }
        match &parts[..] {
            [whole] => Ok(whole.clone()),
            parts => Ok(mlx::concatenate(&parts.iter().collect::<Vec<_>>(), 2)?),
        }
    }

    /// Begins a waveform that is made as its mel spectrogram comes.
    pub fn enter(&self) -> Passage {
        self.enter_in(AT_ONCE)
    }

    /// The same with `at_once` frames of either generator at a time.
    fn enter_in(&self, at_once: i32) -> Passage {
        let mel = Pieces::new(1, at_once, self.generator.reach());
        Passage { mel, low: self.bandwidth.as_ref().map(|bandwidth| bandwidth.pieces(at_once)) }
    }

    /// Goes on with the next frames of the mel spectrogram (batch, 2, frames, bins), which ends with them if they are the `last`.
    pub fn push(&self, passage: &mut Passage, mel: &Array, last: bool) -> Result<()> {
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
        passage.mel.push(&mel, last)
    }

    /// The next samples (batch, 2, samples) in [-1, 1], f32; none where more has to be given first.
    pub fn next(&self, passage: &mut Passage) -> Result<Option<Array>> {
        self.next_traced(passage, &mut Trace::off())
    }

    fn next_traced(&self, Passage { mel, low }: &mut Passage, trace: &mut Trace) -> Result<Option<Array>> {
        let waveform = match self.bandwidth.as_ref().zip(low.as_mut()) {
            None => self.generator.next(mel)?.map(|(waveform, _)| waveform),
            Some((bandwidth, low)) => loop {
                if let Some(waveform) = bandwidth.next(low, trace)? {
                    break Some(waveform);
                }
                let Some((waveform, last)) = self.generator.next(mel)? else { break None };
                low.push(&waveform, last)?;
            },
        };
        let waveform = waveform.map(|waveform| channels_first(&waveform)).transpose()?;
        mlx::eval(&waveform)?;
        Ok(waveform)
    }
}

/// A waveform on its way: as much of what was given is remembered as a sample sees, so that memory does not grow with the
/// sound's length.
pub struct Passage {
    mel: Pieces,         // (batch, frames, 2 · bins)
    low: Option<Pieces>, // (batch, samples, 2)
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

    /// Whatever parts the spectrogram comes in, and however it is cut, the samples are those of the whole.
    #[test]
    fn pieces_are_the_whole() -> Result<()> {
        for generation in ["2.0", "2.3"] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(generation);
            let (weights, config) = Checkpoint::open(&[file.join("model.safetensors")])?
                .component(Component::Vocoder, Dtype::F32)?;
            let vocoder = Vocoder::load(&weights, &config)?;
            // Less than a piece, pieces, one frame more; given whole, by seven frames, by fifty.
            for (frames, at_once, given) in
                [(131, 50, 131), (131, 130, 7), (100, 50, 50), (101, 50, 50), (49, 50, 7), (1, 50, 1)]
            {
                let mel = Noise::new(3).normal(&[1, 2, frames, 64])?;
                let whole = vocoder.forward(&mel, &mut Trace::on())?;
                let (mut passage, mut parts) = (vocoder.enter_in(at_once), Vec::new());
                for from in (0..frames).step_by(given as usize) {
                    let end = frames.min(from + given);
                    vocoder.push(&mut passage, &mel.slice(2, from..end)?, end == frames)?;
                    while let Some(part) = vocoder.next(&mut passage)? {
                        parts.push(part);
                    }
                }
                let pieces = mlx::concatenate(&parts.iter().collect::<Vec<_>>(), 2)?;
                assert_eq!(pieces.shape(), whole.shape());
                let worst = pieces.subtract(&whole)?.abs()?.max(&[0, 1, 2], false)?.item()?;
                let what = format!("{generation}, {frames} frames, {at_once} at once, {given} given");
                assert!(worst <= 1e-6, "{what}: {worst}");
            }
        }
        Ok(())
    }
}
