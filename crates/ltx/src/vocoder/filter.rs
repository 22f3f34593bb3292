//! Short fixed filters over time, the same for every channel: resampling by a whole factor, and an activation computed
//! at twice the rate so that the frequencies it creates do not fold back. Arrays are (batch, time, channels).

use std::f64::consts::PI;

use mlx::Array;

use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn;

/// The factor that activations are oversampled by, and the length of both filters around them: constants of the
/// architecture. The filters themselves are in the file.
const RATIO: usize = 2;
const TAPS: usize = 12;

/// `ratio` times the samples: zeros stuffed in, then a filter. Computed as one filter per output between two inputs.
pub(super) struct Upsample {
    phases: Vec<Array>, // each (channels, before + 1 + after, 1)
    before: i32,
    after: i32,
}

impl Upsample {
    /// With `taps` at the higher rate, of which `taps[center]` stands over an input's own time.
    pub(super) fn new(taps: &[f32], center: usize, ratio: usize, channels: i32) -> mlx::Result<Self> {
        // Output t · ratio + p is the sum over d of x[t − d] · taps[d · ratio + p + center].
        let before = (taps.len() - 1 - center) / ratio;
        let after = center.div_ceil(ratio);
        let phase = |p: usize| {
            let tap = |place: usize| {
                let index = (before * ratio + p + center).checked_sub(place * ratio);
                index.and_then(|index| taps.get(index)).map_or(0.0, |tap| tap * ratio as f32)
            };
            spread(&(0..=before + after).map(tap).collect::<Vec<_>>(), channels)
        };
        let phases = (0..ratio).map(phase).collect::<mlx::Result<_>>()?;
        Ok(Self { phases, before: before as i32, after: after as i32 })
    }

    /// How many inputs before and after its own an output sees.
    pub(super) fn reach(&self) -> i32 {
        self.before.max(self.after)
    }

    /// A sinc in a Hann window, for resampling a waveform.
    pub(super) fn hann(ratio: usize, channels: i32) -> mlx::Result<Self> {
        const CROSSINGS: f64 = 6.0;
        const ROLLOFF: f64 = 0.99;
        let reach = (CROSSINGS / ROLLOFF).ceil() as usize * ratio;
        let tap = |index: usize| {
            let t = (index as f64 - reach as f64) / ratio as f64 * ROLLOFF;
            let window = (t.clamp(-CROSSINGS, CROSSINGS) * PI / CROSSINGS / 2.0).cos().powi(2);
            let sinc = if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) };
            (sinc * window * ROLLOFF / ratio as f64) as f32
        };
        Self::new(&(0..=2 * reach).map(tap).collect::<Vec<_>>(), reach, ratio, channels)
    }

    /// (batch, time, channels) → (batch, ratio · time, channels); the ends continue as they are.
    pub(super) fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let (channels, ratio) = (x.dim(2), self.phases.len() as i32);
        let padded = x.pad_edge(1, self.before, self.after)?;
        let phases: Vec<Array> =
            self.phases.iter().map(|weight| nn::depthwise(&padded, weight, 1)).collect::<mlx::Result<_>>()?;
        mlx::stack(&phases.iter().collect::<Vec<_>>(), 2)? // (batch, time, ratio, channels)
            .reshape(&[x.dim(0), x.dim(1) * ratio, channels])
    }
}

/// Every `RATIO`-th sample after a filter.
struct Downsample {
    weight: Array, // (channels, TAPS, 1)
}

impl Downsample {
    /// (batch, RATIO · time, channels) → (batch, time, channels); the ends continue as they are.
    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let half = TAPS as i32 / 2;
        nn::depthwise(&x.pad_edge(1, half - 1, half)?, &self.weight, RATIO as i32)
    }
}

/// One filter for each of `channels`: (channels, taps, 1).
fn spread(taps: &[f32], channels: i32) -> mlx::Result<Array> {
    let count = taps.len() as i32;
    Array::from_slice(taps, &[1, count, 1])?.broadcast_to(&[channels, count, 1])?.contiguous()
}

/// The snake activation x + sin²(αx) / β at twice the rate.
pub(super) struct AntiAliased {
    filters: [[f32; TAPS]; 2], // up, down
    up: Upsample,
    down: Downsample,
    alpha: Array,           // (channels)
    reciprocal_beta: Array, // (channels)
}

impl AntiAliased {
    /// How many samples before and after its own one sees, at most: half a filter's at twice the rate, twice.
    pub(super) const REACH: i32 = (2 * TAPS / RATIO / 2) as i32 + 1;

    /// Reads filters and the logarithms of α and β at `weights`. Without `beta`, β is α.
    pub(super) fn load(weights: &Weights, channels: i32, beta: bool) -> Result<Self> {
        let filter = |path: &str| -> Result<[f32; TAPS]> {
            let taps = weights.at(path).tensor("filter", &[1, 1, TAPS as i32])?.to_f32()?;
            Ok(std::array::from_fn(|tap| taps[tap]))
        };
        let (up, down) = (filter("upsample")?, filter("downsample.lowpass")?);
        let parameter = |name| -> Result<Array> { Ok(weights.at("act").tensor(name, &[channels])?.exp()?) };
        let alpha = parameter("alpha")?;
        let beta = if beta { parameter("beta")? } else { alpha.clone() };
        Ok(Self {
            filters: [up, down],
            up: Upsample::new(&up, (TAPS - RATIO) / 2, RATIO, channels)?,
            down: Downsample { weight: spread(&down, channels)? },
            alpha,
            reciprocal_beta: beta.add(1e-9f32)?.reciprocal()?,
        })
    }

    /// (batch, time, channels), both sides.
    pub(super) fn forward(&self, x: &Array) -> mlx::Result<Array> {
        if let Some(y) = nn::snake(x, [&self.alpha, &self.reciprocal_beta], self.filters) {
            return y;
        }
        let x = self.up.forward(x)?;
        let ripple = x.multiply(&self.alpha)?.sin()?.square()?.multiply(&self.reciprocal_beta)?;
        self.down.forward(&x.add(ripple)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stuffs zeros, convolves, and crops, with the ends continued far enough.
    fn stuffed(x: &[f32], taps: &[f32], center: usize, ratio: usize) -> Vec<f32> {
        let edge = taps.len();
        let at = |index: isize| x[index.clamp(0, x.len() as isize - 1) as usize];
        let mut full = vec![0.0; (x.len() + 2 * edge) * ratio + taps.len()];
        for step in 0..x.len() + 2 * edge {
            for (tap, weight) in taps.iter().enumerate() {
                full[step * ratio + tap] += at(step as isize - edge as isize) * weight * ratio as f32;
            }
        }
        full[edge * ratio + center..][..x.len() * ratio].to_vec()
    }

    #[test]
    fn upsampling_is_filtering_between_zeros() -> mlx::Result<()> {
        for (count, center, ratio, time) in [(12, 5, 2, 7), (12, 5, 2, 1), (43, 21, 3, 5), (9, 1, 4, 3)] {
            let number = |index: usize| ((index * 29 + 3) % 17) as f32 / 8.0 - 1.0;
            let taps: Vec<f32> = (0..count).map(number).collect();
            let sides: Vec<Vec<f32>> =
                (0..2).map(|side| (0..time).map(|t| number(t + 40 * side)).collect()).collect();
            let x: Vec<f32> = (0..time).flat_map(|t| [sides[0][t], sides[1][t]]).collect();
            let up = Upsample::new(&taps, center, ratio, 2)?;
            let y = up.forward(&Array::from_slice(&x, &[1, time as i32, 2])?)?;
            assert_eq!(y.shape(), [1, (time * ratio) as i32, 2]);
            let y = y.to_f32()?;
            for (side, x) in sides.iter().enumerate() {
                for (index, expected) in stuffed(x, &taps, center, ratio).into_iter().enumerate() {
                    let ours = y[2 * index + side];
                    assert!(
                        (ours - expected).abs() < 1e-4,
                        "{ours} is not {expected} at {index}, ratio {ratio}"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn downsampling_is_a_windowed_sum() -> mlx::Result<()> {
        let taps: Vec<f32> = (0..12).map(|tap| tap as f32 - 4.0).collect();
        for time in [1usize, 5] {
            let x: Vec<f32> = (0..2 * time).map(|t| (t * t % 7) as f32).collect();
            let down = Downsample { weight: spread(&taps, 1)? };
            let y = down.forward(&Array::from_slice(&x, &[1, 2 * time as i32, 1])?)?.to_f32()?;
            assert_eq!(y.len(), time);
            for (index, ours) in y.into_iter().enumerate() {
                let at = |tap: usize| x[(2 * index + tap).saturating_sub(5).min(x.len() - 1)];
                let expected: f32 = taps.iter().enumerate().map(|(tap, weight)| weight * at(tap)).sum();
                assert!((ours - expected).abs() < 1e-3, "{ours} is not {expected} at {index}");
            }
        }
        Ok(())
    }

    /// A slow tone stays the same tone at three times the rate.
    #[test]
    fn the_hann_filter_keeps_a_tone() -> mlx::Result<()> {
        let tone = |rate: f64, index: usize| (2.0 * PI * 440.0 * index as f64 / rate).sin();
        let x: Vec<f32> = (0..101).map(|index| tone(16000.0, index) as f32).collect();
        let y = Upsample::hann(3, 1)?.forward(&Array::from_slice(&x, &[1, 101, 1])?)?.to_f32()?;
        assert_eq!(y.len(), 303);
        for (index, &ours) in y.iter().enumerate().skip(24).take(255) {
            let expected = tone(48000.0, index);
            assert!((f64::from(ours) - expected).abs() < 5e-3, "{ours} is not {expected} at {index}");
        }
        Ok(())
    }
}
