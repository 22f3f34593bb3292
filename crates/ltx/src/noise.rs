//! Seeded Gaussian noise: the same numbers for the same seed on every machine and device.
//!
//! ChaCha8 gives the bits, Box–Muller in f64 the normal deviates, and `libm` (not the platform's) the functions. A
//! recipe draws from one stream in a fixed order, always as token sequences (batch, tokens, channels): the video, then
//! the audio, then the next stage in the same way, then what the decoder needs. Not Lightricks' numbers: theirs depend on the device.

use mlx::Array;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// A stream of independent standard normal deviates.
#[derive(Clone, Debug)]
pub struct Noise {
    bits: ChaCha8Rng,
    spare: Option<f64>,
}

impl Noise {
    /// The stream that begins a run.
    pub fn new(seed: u64) -> Self {
        Self::stream(seed, 0)
    }

    /// One of many streams of the same seed that have nothing to do with each other.
    pub fn stream(seed: u64, number: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut bits = ChaCha8Rng::from_seed(key);
        bits.set_stream(number);
        Self { bits, spare: None }
    }

    /// A number evenly distributed in [0, 1): 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The stream of [`new`](Self::new) after `drawn` deviates.
    pub fn after(seed: u64, drawn: u64) -> Self {
        let mut noise = Self::new(seed);
        noise.go_to(drawn);
        noise
    }

    /// Goes to where the stream is after `drawn` deviates.
    pub fn go_to(&mut self, drawn: u64) {
        // Two deviates come from two numbers of 64 bits, and the generator counts in words of 32.
        self.bits.set_word_pos(u128::from(drawn / 2) * 4);
        self.spare = None;
        if drawn % 2 == 1 {
            self.draw();
        }
    }

    /// How many deviates were drawn.
    pub fn drawn(&self) -> u64 {
        (self.bits.get_word_pos() / 2) as u64 - u64::from(self.spare.is_some())
    }

    /// The next deviate.
    pub fn draw(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // The radius in (0, 1], whose logarithm is finite, the angle in [0, 1).
        let (radius, angle) = (1.0 - self.uniform(), self.uniform());
        let radius = libm::sqrt(-2.0 * libm::log(radius));
        let angle = std::f64::consts::TAU * angle;
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }

    /// The next deviates as an f32 array, in row-major order.
    pub fn normal(&mut self, shape: &[i32]) -> mlx::Result<Array> {
        let size: usize = shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product();
        let values: Vec<f32> = (0..size).map(|_| self.draw() as f32).collect();
        Array::from_slice(&values, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::Noise;

    /// Another sequence would make every seed another clip.
    const PINNED: [f32; 6] = [-0.2058122, 0.90213275, -0.78708655, 0.8607252, 1.7046564, 0.76671445];

    #[test]
    fn values_are_pinned() {
        let values = Noise::new(42).normal(&[1, 3, 2]).unwrap().to_f32().unwrap();
        assert_eq!(values, PINNED);
        assert_ne!(Noise::new(43).normal(&[6]).unwrap().to_f32().unwrap(), PINNED);
        assert_ne!(Noise::stream(42, 1).normal(&[6]).unwrap().to_f32().unwrap(), PINNED);
    }

    #[test]
    fn one_stream_however_it_is_cut() {
        let whole = Noise::new(7).normal(&[8]).unwrap().to_f32().unwrap();
        let mut stream = Noise::new(7);
        let mut parts = stream.normal(&[3]).unwrap().to_f32().unwrap();
        parts.extend(stream.normal(&[1, 5]).unwrap().to_f32().unwrap());
        assert_eq!(parts, whole);
    }

    #[test]
    fn a_stream_goes_on_where_another_was_left() {
        for drawn in [0u64, 1, 2, 7, 64, 1001] {
            let mut noise = Noise::new(9);
            noise.normal(&[drawn as i32]).unwrap();
            assert_eq!(noise.drawn(), drawn);
            let mut later = Noise::after(9, drawn);
            assert_eq!(later.drawn(), drawn);
            assert_eq!(
                (later.draw(), later.draw(), later.draw()),
                (noise.draw(), noise.draw(), noise.draw())
            );
        }
    }

    #[test]
    fn moments_are_those_of_a_normal_distribution() {
        let mut noise = Noise::new(1);
        let count = 200_000;
        let mut moments = [0.0f64; 4];
        let mut neighbours = 0.0;
        let mut last = 0.0;
        for _ in 0..count {
            let value = noise.draw();
            for (power, moment) in moments.iter_mut().enumerate() {
                *moment += value.powi(power as i32 + 1) / f64::from(count);
            }
            neighbours += value * last / f64::from(count);
            last = value;
        }
        // Standard errors at this count: 0.0022, 0.0032, 0.0087, 0.022, 0.0022. Five of each.
        for (found, (expected, error)) in moments.into_iter().chain([neighbours]).zip([
            (0.0, 0.0022),
            (1.0, 0.0032),
            (0.0, 0.0087),
            (3.0, 0.022),
            (0.0, 0.0022),
        ]) {
            assert!((found - expected).abs() < 5.0 * error, "{found} instead of {expected}");
        }
    }
}
