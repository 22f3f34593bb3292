//! Waveform → log-mel spectrogram, as the audio encoder was trained on: short-time Fourier magnitudes (not powers) in
//! Slaney's mel bands. Computed here in f64: a spectrogram is small beside what follows.

use std::f64::consts::PI;

use mlx::Array;

use super::mel_bins;
use super::resample::Resampler;
use crate::checkpoint::Config;
use crate::error::{Error, Result};

/// The quietest magnitude that the logarithm sees.
const FLOOR: f64 = 1e-5;

/// The front end of the audio encoder.
pub struct Mel {
    sample_rate: u32,
    hop: usize,
    bins: usize,
    /// Hann window over one frame; its length is a power of two.
    window: Vec<f64>,
    /// exp(−2πi · k / length) for k below length / 2.
    twiddles: Vec<(f64, f64)>,
    /// (bins, length / 2 + 1), row by row.
    bank: Vec<f64>,
}

impl Mel {
    /// Reads rates and sizes from the whole configuration.
    pub fn load(config: &Config) -> Result<Self> {
        let audio = config.at("audio_vae")?;
        let parameters = audio.at("model")?.at("params")?;
        let stft = audio.at("preprocessing")?.at("stft")?;
        let sample_rate = parameters.usize("sampling_rate")?;
        if !(1000..=1_000_000).contains(&sample_rate) {
            return Err(parameters.error("sampling_rate", format!("is {sample_rate}, not a rate of sound")));
        }
        let length = stft.usize("filter_length")?;
        if !length.is_power_of_two() || !(4..=1 << 16).contains(&length) {
            return Err(
                stft.error("filter_length", format!("is {length}, not a power of two from 4 to 65536"))
            );
        }
        if stft.optional_usize("win_length")?.is_some_and(|window| window != length) {
            return Err(stft.error("win_length", "is not filter_length"));
        }
        let hop = stft.usize("hop_length")?;
        let bins = mel_bins(&audio, &parameters.at("ddconfig")?)? as usize;
        if hop == 0 || bins == 0 || bins > length {
            return Err(
                stft.error("hop_length", format!("is {hop}, for {bins} mel bins: neither can be right"))
            );
        }
        Ok(Self::new(sample_rate as u32, length, hop, bins))
    }

    fn new(sample_rate: u32, length: usize, hop: usize, bins: usize) -> Self {
        let angle = |k: usize| 2.0 * PI * k as f64 / length as f64;
        Self {
            sample_rate,
            hop,
            bins,
            window: (0..length).map(|k| 0.5 - 0.5 * angle(k).cos()).collect(),
            twiddles: (0..length / 2).map(|k| (angle(k).cos(), -angle(k).sin())).collect(),
            bank: bank(sample_rate, length, bins),
        }
    }

    /// The rate that waveforms are brought to, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// Waveform (batch, channels, samples) at `sample_rate` → log-mel (batch, channels, frames, bins), f32. A frame stands
    /// around every `hop`-th sample from the first on; at the ends the sound is mirrored.
    pub fn forward(&self, waveform: &Array, sample_rate: u32) -> Result<Array> {
        let &[batch, channels, samples] = waveform.shape() else {
            return Err(Error::request(
                format!("a waveform of shape {:?}, not (batch, channels, samples)", waveform.shape()),
                "give one sound of two channels",
            ));
        };
        if !(1000..=1_000_000).contains(&sample_rate) {
            return Err(Error::request(
                format!("a sound of {sample_rate} samples per second"),
                "give one with a rate from 1000 to 1000000, such as 48000",
            ));
        }
        let resampler =
            (sample_rate != self.sample_rate).then(|| Resampler::new(sample_rate, self.sample_rate));
        let values = waveform.to_f32()?;
        let (mut mel, mut frames) = (Vec::new(), 0);
        for signal in values.chunks(samples.max(1) as usize) {
            let signal =
                resampler.as_ref().map_or_else(|| signal.to_vec(), |resampler| resampler.run(signal));
            let reach = self.window.len() / 2;
            if signal.len() <= reach {
                let seconds = (reach + 1) as f64 / f64::from(self.sample_rate);
                return Err(Error::request(
                    format!(
                        "the sound has {samples} samples at {sample_rate} per second, which is too short"
                    ),
                    format!("give at least {seconds:.3} seconds"),
                ));
            }
            frames = signal.len() / self.hop + 1;
            for frame in 0..frames {
                self.frame(&signal, (frame * self.hop) as isize - reach as isize, &mut mel);
            }
        }
        Ok(Array::from_slice(&mel, &[batch, channels, frames as i32, self.bins as i32])?)
    }

    /// Appends the log-mel bins of the frame of `signal` that begins at `start`.
    fn frame(&self, signal: &[f32], start: isize, mel: &mut Vec<f32>) {
        let last = signal.len() as isize - 1;
        let sample = |index: isize| {
            let mirrored = last - (last - index.abs()).abs();
            f64::from(signal[mirrored as usize])
        };
        let frame =
            self.window.iter().zip(start..).map(|(window, index)| (window * sample(index), 0.0)).collect();
        let frequencies = self.window.len() / 2 + 1;
        let magnitudes: Vec<f64> =
            self.fourier(frame).into_iter().take(frequencies).map(|(re, im)| re.hypot(im)).collect();
        for band in self.bank.chunks(frequencies) {
            let energy: f64 =
                band.iter().zip(&magnitudes).map(|(weight, magnitude)| weight * magnitude).sum();
            mel.push(energy.max(FLOOR).ln() as f32);
        }
    }

    /// The discrete Fourier transform of a list of complex numbers whose length is a power of two up to the window's.
    fn fourier(&self, x: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
        if x.len() < 2 {
            return x;
        }
        let half = x.len() / 2;
        let even = self.fourier(x.iter().copied().step_by(2).collect());
        let odd = self.fourier(x.iter().copied().skip(1).step_by(2).collect());
        let stride = self.window.len() / x.len();
        let mut y = vec![(0.0, 0.0); x.len()];
        for k in 0..half {
            let ((a, b), (c, d), (re, im)) = (even[k], odd[k], self.twiddles[k * stride]);
            let (re, im) = (c * re - d * im, c * im + d * re);
            (y[k], y[k + half]) = ((a + re, b + im), (a - re, b - im));
        }
        y
    }
}

/// Slaney's mel scale: linear below 1000 Hz (where it is 15), logarithmic above.
fn hertz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

fn mel(hertz: f64) -> f64 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

/// Triangular bands of equal width in mel from 0 to half the rate, each of area 1 over frequency: (bins, length / 2 + 1).
fn bank(sample_rate: u32, length: usize, bins: usize) -> Vec<f64> {
    let top = f64::from(sample_rate / 2);
    let edge = |index: usize| hertz(mel(top) * index as f64 / (bins + 1) as f64);
    let mut bank = Vec::new();
    for bin in 0..bins {
        let (low, middle, high) = (edge(bin), edge(bin + 1), edge(bin + 2));
        bank.extend((0..=length / 2).map(|k| {
            let frequency = top * 2.0 * k as f64 / length as f64;
            let rise = (frequency - low) / (middle - low);
            let fall = (high - frequency) / (high - middle);
            rise.min(fall).max(0.0) * 2.0 / (high - low)
        }));
    }
    bank
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_transform_is_the_transform() {
        let mel = Mel::new(16000, 32, 8, 4);
        let x: Vec<(f64, f64)> = (0..32).map(|n| (f64::from(n * n % 13), f64::from(n * 5 % 7))).collect();
        for (k, (re, im)) in mel.fourier(x.clone()).into_iter().enumerate() {
            let (mut a, mut b) = (0.0, 0.0);
            for (n, (u, v)) in x.iter().enumerate() {
                let angle = -2.0 * PI * (k * n) as f64 / 32.0;
                a += u * angle.cos() - v * angle.sin();
                b += u * angle.sin() + v * angle.cos();
            }
            assert!((a - re).abs() < 1e-9 && (b - im).abs() < 1e-9, "bin {k}: {re} {im} is not {a} {b}");
        }
    }

    /// A loud tone is loudest in the band around it, and the sides are treated apart.
    #[test]
    fn a_tone_lands_in_its_band() -> Result<()> {
        let front = Mel::new(16000, 1024, 160, 64);
        let tone =
            |hertz: f64| (0..4001).map(move |n| (2.0 * PI * hertz * f64::from(n) / 16000.0).sin() as f32);
        let samples: Vec<f32> = tone(440.0).chain(tone(2500.0)).collect();
        let out = front.forward(&Array::from_slice(&samples, &[1, 2, 4001])?, 16000)?;
        assert_eq!(out.shape(), [1, 2, 26, 64]);
        let values = out.to_f32()?;
        for (side, hertz) in [440.0, 2500.0].into_iter().enumerate() {
            let frame = &values[(side * 26 + 13) * 64..][..64];
            let loudest = (0..64).max_by(|&a, &b| frame[a].total_cmp(&frame[b]));
            let expected = (mel(hertz) / mel(8000.0) * 65.0).round() as usize - 1;
            assert_eq!(loudest, Some(expected), "{hertz} Hz");
        }
        Ok(())
    }

    #[test]
    fn silence_is_the_floor_and_too_little_is_refused() -> Result<()> {
        let front = Mel::new(16000, 1024, 160, 64);
        let quiet = front.forward(&Array::from_slice(&[0.0f32; 1539], &[1, 1, 1539])?, 48000)?;
        assert_eq!(quiet.shape(), [1, 1, 4, 64]);
        assert!(quiet.to_f32()?.iter().all(|&value| value == (1e-5f64.ln() as f32)));
        assert!(front.forward(&Array::from_slice(&[0.0f32; 512], &[1, 1, 512])?, 16000).is_err());
        assert!(front.forward(&Array::from_slice(&[0.0f32; 900], &[1, 1, 900])?, 0).is_err());
        assert!(front.forward(&Array::from_slice(&[0.0f32; 900], &[900])?, 16000).is_err());
        Ok(())
    }
}
