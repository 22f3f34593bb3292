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

use std::collections::VecDeque;

use mdct::{Transform, Windows};
use quantize::{Books, Spectrum};

/// Samples by which one access unit advances.
pub const FRAME: usize = 1024;
/// Samples that a decoder puts out ahead of the first sample of the clip: the edit list of the track skips them.
pub const PRIMING: usize = FRAME;
/// Most that the sound is given; quiet or simple sound takes less.
const BITS_PER_SECOND: usize = 320_000;
/// Samples from the beginning of a frame's window on that decide what its access unit is: whether there is an attack two
/// frames later.
const LOOKAHEAD: usize = 2 * FRAME + 576 + FRAME;
/// The format's limit on one access unit of two channels.
const MAX_BITS: usize = 2 * 6144;

/// Whether there is an [`Encoder`] for this sample rate (Hz).
pub fn supports(sample_rate: u32) -> bool {
    tables::bands(sample_rate).is_some()
}

/// Encodes sound as it comes, remembering a tenth of a second of it.
pub struct Encoder {
    sample_rate: u32,
    rate_index: u8,
    bands: [&'static [usize]; 2], // edges for long and short windows
    transform: Transform,
    books: Books,
    /// Of the channels, what is still to be looked at, after [`PRIMING`] of silence: all from the window of the next frame on.
    samples: [Vec<f32>; 2],
    /// Samples that came.
    count: usize,
    /// The next frame.
    frame: usize,
    /// Which of the frames have an attack, as far as is known, and from the next frame on who their neighbours are.
    short: VecDeque<bool>,
    /// Whether the frame before the next one was of short windows.
    after_short: bool,
}

impl Encoder {
    /// For two channels. `None` for a sample rate that is not [supported](supports).
    pub fn new(sample_rate: u32) -> Option<Self> {
        let (rate_index, long, short) = tables::bands(sample_rate)?;
        Some(Self {
            sample_rate,
            rate_index,
            bands: [long, short],
            transform: Transform::new(),
            books: Books::new(),
            samples: [vec![0.0; PRIMING], vec![0.0; PRIMING]],
            count: 0,
            frame: 0,
            short: VecDeque::new(),
            after_short: false,
        })
    }

    /// `AudioSpecificConfig` for the track's sample description: two channels of AAC-LC, and in so many words that no band
    /// replication follows: at 24 kHz some players assume it.
    pub fn config(&self) -> Vec<u8> {
        let mut bits = Bits::default();
        for (value, width) in
            [(2, 5), (self.rate_index.into(), 4), (2, 4), (0, 3), (0x2b7, 11), (5, 5), (0, 1)]
        {
            bits.put(value, width);
        }
        bits.finish()
    }

    /// Goes on with samples of both channels, equally many, in [-1, 1]: the access units that are known with them, [`FRAME`]
    /// samples each; the first one decodes to [`PRIMING`].
    pub fn push(&mut self, left: &[f32], right: &[f32]) -> Vec<Vec<u8>> {
        self.samples[0].extend(left);
        self.samples[1].extend(right);
        self.count += left.len();
        let mut units = Vec::new();
        while self.samples[0].len() >= LOOKAHEAD {
            units.push(self.unit());
        }
        units
    }

    /// The access units of what is left.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        let frames = self.count.div_ceil(FRAME) + 1;
        (self.frame..frames).map(|_| self.unit()).collect()
    }

    /// The next access unit.
    fn unit(&mut self) -> Vec<u8> {
        // A frame between two of short windows has short windows too.
        while self.short.len() < 3 {
            let first = self.short.len() * FRAME;
            self.short.push_back(self.samples.iter().any(|channel| has_attack(channel, first)));
        }
        self.short[1] |= self.short[0] && self.short[2];
        let windows = match (self.short[0], self.short[1], self.after_short) {
            (true, ..) => Windows::Short,
            (_, true, _) => Windows::Start,
            (.., true) => Windows::Stop,
            _ => Windows::Long,
        };
        let spectra = self.samples.each_ref().map(|x| self.transform.forward(&window_samples(x), windows));
        let [long, short] = self.bands;
        let budget = (BITS_PER_SECOND * FRAME / self.sample_rate as usize).min(MAX_BITS);
        let unit = Spectrum::new(spectra, windows, long, short, self.sample_rate).write(&self.books, budget);
        self.after_short = self.short.pop_front() == Some(true);
        for channel in &mut self.samples {
            channel.drain(..FRAME.min(channel.len()));
        }
        self.frame += 1;
        unit
    }
}

/// The 2048 samples under a window (its first half is the previous frame's second), on the 16-bit scale; silence after the end.
fn window_samples(channel: &[f32]) -> [f64; 2048] {
    std::array::from_fn(|n| f64::from(channel.get(n).copied().unwrap_or(0.0)) * 32768.0)
}

/// A sudden rise of the high-passed energy among the stretches of 128 samples that only the short windows of the frame whose
/// window starts at `first` can keep apart: samples 576 to 1600 of its window.
fn has_attack(channel: &[f32], first: usize) -> bool {
    const STRETCH: usize = 128;
    /// Below this mean square (-70 dBFS) there is nothing to smear.
    const AUDIBLE: f32 = 1e-7 * STRETCH as f32;
    let sample = |i: usize| channel.get(i).copied().unwrap_or(0.0);
    let energy = |first: usize| -> f32 {
        (first..first + STRETCH).map(|i| sample(i) - sample(i - 1)).map(|d| d * d).sum()
    };
    let start = first + 576;
    // The sound before: the loudest of the last four stretches, so that a beat inside a tone is no attack.
    let mut before: Vec<f32> = (1..=4).rev().map(|i| energy(start - i * STRETCH)).collect();
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
