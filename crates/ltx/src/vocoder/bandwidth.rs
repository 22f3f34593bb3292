//! What lies above the first generator's band: a second generator listens to its waveform through a short-time Fourier
//! transform and says what to add to it at the higher rate.

use mlx::{Array, Dtype};

use super::channels_first;
use super::filter::Upsample;
use super::generator::{Final, Generator, clamp};
use crate::checkpoint::{Config, Weights};
use crate::error::Result;
use crate::nn::Conv;
use crate::overlap::{Piece, Pieces, Reach};
use crate::trace::Trace;

/// The quietest magnitude that the logarithm sees.
const FLOOR: f32 = 1e-5;
/// Above any transform length that makes sense.
const LONGEST: i32 = 1 << 16;

/// The bandwidth extension.
pub(super) struct Bandwidth {
    generator: Generator,
    resample: Upsample,
    /// The file's own bases, real parts above imaginary ones: (2 · frequencies, length, 1).
    transform: Conv,
    mel_basis: Array, // (frequencies, bins)
    length: i32,
    hop: i32,
    sample_rate: u32,
}

impl Bandwidth {
    /// Reads `bwe_generator` and `mel_stft` at `weights`; `config` is the extension's own section.
    pub(super) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (low, high) = (config.i32("input_sampling_rate")?, config.i32("output_sampling_rate")?);
        let ratio = if low > 0 { high / low } else { 0 };
        if ratio < 1 || high % low != 0 || ratio > LONGEST {
            return Err(config.error("output_sampling_rate", format!("is {high}, no multiple of {low}")));
        }
        let (length, hop, bins) = (config.i32("n_fft")?, config.i32("hop_length")?, config.i32("num_mels")?);
        if !(2..=LONGEST).contains(&length) || !(1..=length).contains(&hop) {
            return Err(
                config.error("n_fft", format!("is {length}, with hop_length {hop}: neither can be right"))
            );
        }
        if config.optional_usize("win_size")?.is_some_and(|window| window != length as usize) {
            return Err(config.error("win_size", "is not n_fft"));
        }
        if config.optional_bool("apply_final_activation")? == Some(true) {
            return Err(config.error("apply_final_activation", "must be false"));
        }
        let generator = Generator::load(&weights.at("bwe_generator"), config, Final::Nothing)?;
        if generator.samples_per_frame() / ratio != hop || generator.samples_per_frame() % ratio != 0 {
            return Err(config
                .error("upsample_rates", "do not make as many samples of a frame as hop_length asks for"));
        }
        let weights = weights.at("mel_stft");
        let frequencies = length / 2 + 1;
        let transform = weights.at("stft_fn");
        let basis = [2 * frequencies, 1, length];
        // The way back is in the file too, for training; nothing uses it.
        transform.tensor("inverse_basis", &basis)?;
        Ok(Self {
            generator,
            resample: Upsample::hann(ratio as usize, 2)?,
            transform: Conv::new(&transform.tensor("forward_basis", &basis)?, None)?,
            mel_basis: weights.tensor("mel_basis", &[bins, frequencies])?.transpose_last()?,
            length,
            hop,
            sample_rate: high as u32,
        })
    }

    /// Samples per second of what comes out.
    pub(super) fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// A waveform (batch, samples, 2), to be looked at `at_once` frames of the second generator at a time.
    pub(super) fn pieces(&self, at_once: i32) -> Pieces {
        let Reach { before, after } = self.generator.reach();
        let resampled = self.resample.reach() / self.hop + 1;
        let reach = Reach {
            before: (before + self.length / self.hop).max(resampled) * self.hop,
            after: after.max(resampled) * self.hop,
        };
        Pieces::new(1, at_once.saturating_mul(self.hop), reach)
    }

    /// The next (batch, ratio · samples, 2) in [-1, 1] for which enough of a waveform is known.
    pub(super) fn next(&self, waveform: &mut Pieces, trace: &mut Trace) -> Result<Option<Array>> {
        let Some((x, Piece { own, seen, .. })) = waveform.next()? else { return Ok(None) };
        trace.record(|| "low_rate", || channels_first(&x))?;
        let (batch, samples) = (x.dim(0), x.dim(1));
        let missing = (self.hop - samples % self.hop) % self.hop;
        let x = x.pad(1, 0, missing, 0.0)?; // (batch, frames · hop, 2)
        let mel = self.mel(&x)?; // (batch, 2, frames, bins)
        trace.record(|| "bwe_mel", || Ok(mel.clone()))?;
        let (frames, bins) = (mel.dim(2), mel.dim(3));
        let mel = mel.transpose(&[0, 2, 1, 3])?.reshape(&[batch, frames, 2 * bins])?;
        let skip = self.resample.forward(&x)?;
        trace.record(|| "skip", || channels_first(&skip))?;
        let sum = clamp(&self.generator.piece(&mel)?.add(&skip)?)?;
        let ratio = self.generator.samples_per_frame() / self.hop;
        let own = (own.start - seen.start) * ratio..(own.end - seen.start) * ratio;
        let sum = sum.slice(1, own)?.contiguous()?;
        sum.eval()?;
        Ok(Some(sum))
    }

    /// Waveform (batch, frames · hop, 2) → log-mel (batch, 2, frames, bins). A frame ends with its hop, and sees no
    /// further.
    fn mel(&self, waveform: &Array) -> mlx::Result<Array> {
        let (batch, samples) = (waveform.dim(0), waveform.dim(1));
        let sides = channels_first(waveform)?.reshape(&[batch * 2, samples, 1])?;
        let settings = mlx::Conv {
            stride: vec![self.hop],
            padding_low: vec![self.length - self.hop],
            ..Default::default()
        };
        let spectrum = self.transform.forward(&sides, &settings)?; // (batch · 2, frames, 2 · frequencies)
        let parts = spectrum.square()?.split(2, 2)?;
        let magnitude = parts[0].add(&parts[1])?.sqrt()?;
        let mel = magnitude.matmul(&self.mel_basis)?.maximum(FLOOR)?.log()?;
        mel.reshape(&[batch, 2, mel.dim(1), mel.dim(2)])?.astype(Dtype::F32)
    }
}
