//! What a clip is made of: frames, sound, and the exact rate that ties them together; the conversion of frames to the
//! 4:2:0 planes that video codecs take. No file and no codec lives here.

use super::Error;

/// One picture, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width * height * 3` bytes: rows from the top, pixels from the left, red, green, blue; sRGB / BT.709 as shown.
    pub rgb: Vec<u8>,
}

impl Frame {
    /// That the bytes are as many as the size says and the size is the expected one.
    pub(super) fn check(&self, expected: (u32, u32)) -> Result<(), Error> {
        let bytes = self.width as usize * self.height as usize * 3;
        if (self.width, self.height) != expected || self.rgb.len() != bytes {
            let (width, height) = (self.width, self.height);
            return Err(Error::Frame { width, height, bytes: self.rgb.len(), expected });
        }
        Ok(())
    }
}

/// The sound of a clip, or a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    /// Samples a second of each channel.
    pub sample_rate: u32,
    /// One or two channels (left, right) of equal length, samples in [-1, 1]; beyond that they are clipped.
    pub channels: Vec<Vec<f32>>,
}

impl Audio {
    /// Samples in each channel.
    pub fn samples(&self) -> usize {
        self.channels.first().map_or(0, Vec::len)
    }

    /// That there are one or two channels of equal length, all of them numbers.
    pub(super) fn check(&self) -> Result<(), Error> {
        if !(1..=2).contains(&self.channels.len()) {
            return Err(Error::Channels { channels: self.channels.len() });
        }
        if self.channels.iter().any(|channel| channel.len() != self.samples()) {
            return Err(Error::Sound { what: "channels of different lengths" });
        }
        if self.sample_rate == 0 {
            return Err(Error::Sound { what: "a sample rate of 0" });
        }
        if self.channels.iter().flatten().any(|sample| !sample.is_finite()) {
            return Err(Error::Sound { what: "samples that are not numbers" });
        }
        Ok(())
    }

    /// Silence in stereo, of so many samples or, where they are many, fewer.
    pub(super) fn silence(sample_rate: u32, samples: usize) -> Self {
        const MOST: usize = 1 << 16;
        Self { sample_rate, channels: vec![vec![0.0; samples.min(MOST)]; 2] }
    }

    /// Both channels, clipped to [-1, 1], cut or filled with silence to `samples`. One channel serves both ears.
    pub(super) fn stereo(&self, samples: usize) -> [Vec<f32>; 2] {
        [0, self.channels.len().saturating_sub(1)].map(|channel| {
            let source = self.channels.get(channel).into_iter().flatten();
            source.map(|s| s.clamp(-1.0, 1.0)).chain(std::iter::repeat(0.0)).take(samples).collect()
        })
    }
}

/// Frames a second as an exact fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRate {
    frames: u32,
    seconds: u32,
}

impl FrameRate {
    /// The fraction that a decimal number means: 23.976, 29.97 and 59.94 (also 47.952, 119.88) are the broadcast rates
    /// n · 1000/1001; other rates are taken to a thousandth. From 1 to 240 frames a second.
    pub fn from_fps(fps: f64) -> Result<Self, Error> {
        if !(1.0..=240.0).contains(&fps) {
            return Err(Error::FrameRate { fps });
        }
        let broadcast = (fps * 1.001).round();
        let whole = (fps - fps.round()).abs() < 1e-6;
        if !whole && (fps - broadcast / 1.001).abs() < 1e-3 {
            return Ok(Self { frames: broadcast as u32 * 1000, seconds: 1001 });
        }
        let thousandths = (fps * 1000.0).round() as u32;
        let (mut a, mut b) = (thousandths, 1000);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        Ok(Self { frames: thousandths / a, seconds: 1000 / a })
    }

    /// `(ticks a second, ticks a frame)`, with at least ten thousand ticks a second.
    pub(super) fn ticks(self) -> (u32, u32) {
        let fineness = 10_000u32.div_ceil(self.frames);
        (self.frames * fineness, self.seconds * fineness)
    }

    /// The rate as a number.
    pub fn fps(self) -> f64 {
        f64::from(self.frames) / f64::from(self.seconds)
    }

    /// Samples that last as long as `frames` frames, to the nearest.
    pub(super) fn samples(self, frames: usize, sample_rate: u32) -> usize {
        let (n, d) =
            (frames as u128 * u128::from(self.seconds) * u128::from(sample_rate), u128::from(self.frames));
        ((2 * n + d) / (2 * d)) as usize
    }
}

impl std::fmt::Display for FrameRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.frames, self.seconds)
    }
}

/// A frame as BT.709 limited-range 4:2:0 planes; reused from frame to frame.
pub(super) struct Planes {
    pub width: usize,
    pub height: usize,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

impl Planes {
    /// Black planes of an even size.
    pub fn new(width: usize, height: usize) -> Self {
        let quarter = width / 2 * (height / 2);
        Self { width, height, y: vec![16; width * height], u: vec![128; quarter], v: vec![128; quarter] }
    }

    /// Fills the planes from `width * height * 3` bytes. Chroma sits where H.264 says unless told otherwise: level with
    /// the even columns (hence 1-2-1 across) and between two rows.
    pub fn convert(&mut self, rgb: &[u8]) {
        let width = self.width;
        for (y, pixel) in self.y.iter_mut().zip(rgb.chunks_exact(3)) {
            *y = luma(pixel[0].into(), pixel[1].into(), pixel[2].into());
        }
        let rows = rgb.chunks_exact(2 * width * 3);
        let planes = self.u.chunks_exact_mut(width / 2).zip(self.v.chunks_exact_mut(width / 2));
        for (pair, (u, v)) in rows.zip(planes) {
            let (upper, lower) = pair.split_at(width * 3);
            let sum = |x: usize, c: usize| i32::from(upper[3 * x + c]) + i32::from(lower[3 * x + c]);
            for (column, (u, v)) in u.iter_mut().zip(v).enumerate() {
                let x = 2 * column;
                let [r, g, b] =
                    [0, 1, 2].map(|c| sum(x.saturating_sub(1), c) + 2 * sum(x, c) + sum(x + 1, c));
                (*u, *v) = chroma(r, g, b);
            }
        }
    }
}

/// 16 + 219 (0.2126 R + 0.7152 G + 0.0722 B) / 255, in 1/65536.
fn luma(r: i32, g: i32, b: i32) -> u8 {
    ((11966 * r + 40254 * g + 4064 * b + (16 << 16) + (1 << 15)) >> 16) as u8
}

/// 128 + 224 (B - Y) / (1.8556 · 255) and 128 + 224 (R - Y) / (1.5748 · 255), in 1/65536 of eight times the channels.
fn chroma(r: i32, g: i32, b: i32) -> (u8, u8) {
    const HALF: i32 = (128 << 19) + (1 << 18);
    let u = -6596 * r - 22188 * g + 28784 * b + HALF;
    let v = 28784 * r - 26145 * g - 2639 * b + HALF;
    ((u >> 19) as u8, (v >> 19) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_rates_become_the_fractions_they_mean() {
        let rate = |fps| FrameRate::from_fps(fps).unwrap().to_string();
        assert_eq!(rate(24.0), "24/1");
        assert_eq!(rate(25.0), "25/1");
        assert_eq!(rate(23.976), "24000/1001");
        assert_eq!(rate(24000.0 / 1001.0), "24000/1001");
        assert_eq!(rate(29.97), "30000/1001");
        assert_eq!(rate(59.94), "60000/1001");
        assert_eq!(rate(12.5), "25/2");
        assert_eq!(rate(24.5), "49/2");
        assert_eq!(FrameRate::from_fps(29.97).unwrap().ticks(), (30000, 1001));
        assert_eq!(FrameRate::from_fps(24.0).unwrap().ticks(), (24 * 417, 417));
        for fps in [0.0, -24.0, 241.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(FrameRate::from_fps(fps), Err(Error::FrameRate { .. })), "{fps}");
        }
    }

    #[test]
    fn samples_last_as_long_as_frames() {
        assert_eq!(FrameRate::from_fps(24.0).unwrap().samples(121, 48_000), 242_000);
        assert_eq!(FrameRate::from_fps(29.97).unwrap().samples(30_000, 24_000), 24_024_000);
        assert_eq!(FrameRate::from_fps(23.976).unwrap().samples(1, 24_000), 1001);
    }

    #[test]
    fn colours_follow_bt709_in_limited_range() {
        // Reference values from the formulas of BT.709, rounded.
        let expected = [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
            ([128, 128, 128], [126, 128, 128]),
            ([200, 30, 90], [77, 137, 200]),
        ];
        for (pixel, yuv) in expected {
            let mut planes = Planes::new(6, 4);
            planes.convert(&pixel.repeat(24));
            assert!(planes.y.iter().all(|&y| y == yuv[0]), "{pixel:?} has luma {:?}", planes.y);
            assert!(planes.u.iter().all(|&u| u == yuv[1]), "{pixel:?} has U {:?}", planes.u);
            assert!(planes.v.iter().all(|&v| v == yuv[2]), "{pixel:?} has V {:?}", planes.v);
        }
    }

    #[test]
    fn mono_serves_both_ears_and_lengths_are_met() {
        let audio = Audio { sample_rate: 24_000, channels: vec![vec![0.5, -2.0, 0.25]] };
        assert_eq!(audio.stereo(5), [vec![0.5, -1.0, 0.25, 0.0, 0.0], vec![0.5, -1.0, 0.25, 0.0, 0.0]]);
        let audio = Audio { sample_rate: 24_000, channels: vec![vec![0.5, 1.0], vec![0.0, 3.0]] };
        assert_eq!(audio.stereo(1), [vec![0.5], vec![0.0]]);
        assert!(Audio { sample_rate: 24_000, channels: vec![vec![f32::NAN]] }.check().is_err());
    }
}
