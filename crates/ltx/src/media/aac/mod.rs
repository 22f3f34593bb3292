//! AAC-LC encoder: stereo samples → access units for an mp4.
//!
//! Written here because an mp4 with sound that plays everywhere needs AAC, and the encoders to be had are either under
//! a licence that an MIT/Apache program cannot pass on or, when measured, damaged attacks or ran slower than the clip.
//! It spends bits freely (up to [`BITS_PER_SECOND`]) instead of modelling the ear finely: block switching, mid/side
//! stereo, noise shaped by band energy, optimal sectioning; no temporal noise shaping, prediction or noise substitution.
//! The format is ISO/IEC 14496-3, subpart 4; the transform is in `mdct.rs`, the format's tables in `tables.rs`.

mod mdct;
mod quantize;
mod tables;

use mdct::{Transform, Windows};
use quantize::{Books, Spectrum};

/// Samples by which one access unit advances.
pub const FRAME: usize = 1024;
/// Samples that a decoder puts out ahead of the first sample of the clip: the edit list of the track skips them.
pub const PRIMING: usize = FRAME;
/// Most that the sound is given; quiet or simple sound takes less.
const BITS_PER_SECOND: usize = 320_000;
/// The format's limit on one access unit of two channels.
const MAX_BITS: usize = 2 * 6144;

/// A whole encoded clip.
pub struct Encoded {
    /// `AudioSpecificConfig` for the track's sample description.
    pub config: Vec<u8>,
    /// Access units, [`FRAME`] samples each; the first one decodes to [`PRIMING`].
    pub units: Vec<Vec<u8>>,
}

/// Whether [`encode`] knows this sample rate (Hz).
pub fn supports(sample_rate: u32) -> bool {
    tables::bands(sample_rate).is_some()
}

/// Encodes two channels of equal length, samples in [-1, 1]. `None` for a sample rate that is not [supported](supports).
pub fn encode(left: &[f32], right: &[f32], sample_rate: u32) -> Option<Encoded> {
    let (rate_index, long, short) = tables::bands(sample_rate)?;
    let frames = left.len().max(right.len()).div_ceil(FRAME) + 1;
    let transform = Transform::new();
    let windows = windows(&[left, right], frames);
    let books = Books::new();
    let budget = (BITS_PER_SECOND * FRAME / sample_rate as usize).min(MAX_BITS);
    let units = (0..frames)
        .map(|frame| {
            let spectra = [left, right].map(|x| transform.forward(&window_samples(x, frame), windows[frame]));
            Spectrum::new(spectra, windows[frame], long, short, sample_rate).write(&books, budget)
        })
        .collect();
    Some(Encoded { config: config(rate_index), units })
}

/// Two channels of AAC-LC, and in so many words that no band replication follows: at 24 kHz some players assume it.
fn config(rate_index: u8) -> Vec<u8> {
    let mut bits = Bits::default();
    for (value, width) in [(2, 5), (rate_index.into(), 4), (2, 4), (0, 3), (0x2b7, 11), (5, 5), (0, 1)] {
        bits.put(value, width);
    }
    bits.finish()
}

/// The 2048 samples under the window of a frame (its first half is the previous frame's second), on the 16-bit scale.
fn window_samples(channel: &[f32], frame: usize) -> [f64; 2048] {
    let at = |n: usize| {
        let sample = (frame * FRAME + n).checked_sub(PRIMING).and_then(|i| channel.get(i));
        f64::from(sample.copied().unwrap_or(0.0)) * 32768.0
    };
    std::array::from_fn(at)
}

/// Chooses the windows of all frames: short around attacks, with the long-to-short and short-to-long neighbours.
fn windows(channels: &[&[f32]; 2], frames: usize) -> Vec<Windows> {
    let mut short: Vec<bool> =
        (0..frames).map(|frame| channels.iter().any(|channel| has_attack(channel, frame))).collect();
    for frame in 1..frames.saturating_sub(1) {
        short[frame] |= short[frame - 1] && short[frame + 1];
    }
    let is_short = |frame: Option<usize>| frame.and_then(|f| short.get(f)).is_some_and(|&s| s);
    (0..frames)
        .map(|frame| {
            if short[frame] {
                Windows::Short
            } else if is_short(Some(frame + 1)) {
                Windows::Start
            } else if is_short(frame.checked_sub(1)) {
                Windows::Stop
            } else {
                Windows::Long
            }
        })
        .collect()
}

/// A sudden rise of the high-passed energy among the stretches of 128 samples that only this frame's short windows
/// can keep apart: samples 576 to 1600 of its window.
fn has_attack(channel: &[f32], frame: usize) -> bool {
    const STRETCH: usize = 128;
    /// Below this mean square (-70 dBFS) there is nothing to smear.
    const AUDIBLE: f32 = 1e-7 * STRETCH as f32;
    let sample = |i: usize| i.checked_sub(PRIMING).and_then(|i| channel.get(i)).copied().unwrap_or(0.0);
    let energy = |first: usize| -> f32 {
        (first..first + STRETCH).map(|i| sample(i) - sample(i.saturating_sub(1))).map(|d| d * d).sum()
    };
    let start = frame * FRAME + 576;
    // The sound before: the loudest of the last four stretches, so that a beat inside a tone is no attack.
    let mut before: Vec<f32> = (1..=4).rev().map(|i| energy(start.saturating_sub(i * STRETCH))).collect();
    for stretch in 0..FRAME / STRETCH {
        let now = energy(start + stretch * STRETCH);
        if now > AUDIBLE && now > 10.0 * before[stretch..].iter().copied().fold(0.0, f32::max) {
            return true;
        }
        before.push(now);
    }
    false
}

/// A bit string, most significant bit first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    free: usize,
}

impl Bits {
    fn put(&mut self, value: u32, width: usize) {
        for bit in (0..width).rev() {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            self.free -= 1;
            if let Some(last) = self.bytes.last_mut() {
                *last |= (((value >> bit) & 1) as u8) << self.free;
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
