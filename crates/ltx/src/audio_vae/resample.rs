//! A waveform at another sample rate, by a windowed sinc: what `torchaudio.functional.resample` computes with its
//! defaults, which is what the audio encoder was trained behind.

use std::f64::consts::PI;

/// Zero crossings of the sinc on each side.
const CROSSINGS: f64 = 6.0;
/// The cutoff as a part of the lower rate's half.
const ROLLOFF: f64 = 0.99;

/// Turns samples at rate `from` into samples at rate `to`; both above 0.
pub(super) struct Resampler {
    from: usize,
    to: usize,
    /// For every output between two common ticks: the first input it needs, relative to the tick, and the weights.
    phases: Vec<(isize, Vec<f64>)>,
}

impl Resampler {
    pub(super) fn new(from: u32, to: u32) -> Self {
        let (mut divisor, mut rest) = (from, to);
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        let (from, to) = (from / divisor, to / divisor);
        let cutoff = f64::from(from.min(to)) * ROLLOFF;
        let phase = |phase: u32| {
            let center = f64::from(phase) / f64::from(to); // in ticks, as all below
            let reach = CROSSINGS / cutoff;
            let first = ((center - reach) * f64::from(from)).ceil() as isize;
            let last = ((center + reach) * f64::from(from)).floor() as isize;
            let weight = |input: isize| {
                let t = (input as f64 / f64::from(from) - center) * cutoff;
                sinc(t) * (t * PI / CROSSINGS / 2.0).cos().powi(2) * cutoff / f64::from(from)
            };
            (first, (first..=last).map(weight).collect())
        };
        Self { from: from as usize, to: to as usize, phases: (0..to).map(phase).collect() }
    }

    /// The samples at the new rate. There is silence before and after `samples`.
    pub(super) fn run(&self, samples: &[f32]) -> Vec<f32> {
        // The reference rounds this quotient to f32 before rounding up, which can lose a last, nearly empty sample.
        let length = (samples.len() as f64 * self.to as f64 / self.from as f64) as f32;
        let output = |index: usize| {
            let (first, weights) = &self.phases[index % self.to];
            let start = (index / self.to * self.from) as isize + first;
            let inputs = samples.iter().skip(start.max(0) as usize);
            let weights = weights.iter().skip((-start).max(0) as usize);
            weights.zip(inputs).map(|(weight, &x)| weight * f64::from(x)).sum::<f64>() as f32
        };
        (0..length.ceil() as usize).map(output).collect()
    }
}

/// sin πt / πt
pub(super) fn sinc(t: f64) -> f64 {
    if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone below both cutoffs comes out as the same tone, sampled elsewhere.
    #[test]
    fn a_tone_keeps_its_pitch_and_loudness() {
        for (from, to, length) in
            [(44100, 16000, 4410), (48000, 16000, 4801), (22050, 16000, 2205), (8000, 16000, 799)]
        {
            let tone = |rate: u32, index: usize| (2.0 * PI * 440.0 * index as f64 / f64::from(rate)).sin();
            let samples: Vec<f32> = (0..length).map(|index| tone(from, index) as f32).collect();
            let resampled = Resampler::new(from, to).run(&samples);
            assert_eq!(resampled.len(), (length * to as usize).div_ceil(from as usize));
            for (index, &ours) in resampled.iter().enumerate().skip(60).take(resampled.len() - 120) {
                let expected = tone(to, index);
                assert!(
                    (f64::from(ours) - expected).abs() < 5e-3,
                    "{from} → {to}: {ours} is not {expected} at {index}"
                );
            }
        }
    }

    #[test]
    fn a_tone_above_the_new_half_rate_is_gone() {
        let tone = |index: usize| (2.0 * PI * 11000.0 * index as f64 / 48000.0).sin() as f32;
        let resampled = Resampler::new(48000, 16000).run(&(0..4800).map(tone).collect::<Vec<_>>());
        assert!(resampled[60..1540].iter().all(|sample| sample.abs() < 0.02));
    }

    #[test]
    fn a_few_samples_are_enough() {
        assert_eq!(Resampler::new(44100, 16000).run(&[1.0]).len(), 1);
        assert!(Resampler::new(44100, 16000).run(&[]).is_empty());
    }
}
