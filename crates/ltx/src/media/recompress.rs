//! A picture through H.264 and back, so that it has the faults of the video frames that the models were trained with: a
//! clip that begins at a flawless picture tends to stand still.
//!
//! The official pipelines use libx264 (preset veryfast); here it is OpenH264 at the quantizer that does as much harm.

use openh264::decoder::Decoder;
use openh264::formats::{YUVSlices, YUVSource};

use super::{Error, Frame, FrameRate, h264};

/// Pixels each way that are coded as one picture: what OpenH264 takes in either orientation.
const TILE: usize = 2160;
/// The smallest side that OpenH264 takes.
const SMALLEST: usize = 16;

impl Frame {
    /// The picture as it comes back from H.264 at the constant rate factor `crf` of libx264, from 1 to 51; 0 leaves it as
    /// it is. An odd last row or column is cut off, and a picture of less than two pixels is left alone, as the official
    /// pipelines do. Pictures of more than 2160 pixels each way are coded in parts.
    pub fn recompressed(&self, crf: u8) -> Result<Self, Error> {
        let [width, height] = [self.width, self.height].map(|size| size as usize / 2 * 2);
        self.check((self.width, self.height))?;
        if crf == 0 || width == 0 || height == 0 {
            return Ok(self.clone());
        }
        let mut result =
            Self { width: width as u32, height: height as u32, rgb: vec![0; width * height * 3] };
        for top in (0..height).step_by(TILE) {
            for left in (0..width).step_by(TILE) {
                let tile = Tile { left, top, width: TILE.min(width - left), height: TILE.min(height - top) };
                tile.recompress(self, quantizer(crf), &mut result)
                    .map_err(|what| Error::Recompress { what })?;
            }
        }
        Ok(result)
    }
}

/// The quantizer with which OpenH264 leaves a picture as far from the original as libx264 does at `crf`.
fn quantizer(crf: u8) -> u8 {
    crf.saturating_sub(3).clamp(1, 48)
}

/// A part of a picture, of even size.
struct Tile {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Tile {
    fn recompress(&self, from: &Frame, quantizer: u8, into: &mut Frame) -> Result<(), String> {
        // Chroma: the mean of two columns, and of four rows around their middle, as swscale does (bicubic, BT.601).
        // Pixels that the encoder needs and the tile lacks repeat its last ones.
        let [width, height] = [self.width, self.height].map(|size| size.max(SMALLEST));
        let pixel = |x: usize, y: usize| {
            let (x, y) = (self.left + x.min(self.width - 1), self.top + y.min(self.height - 1));
            let start = (y * from.width as usize + x) * 3;
            [0, 1, 2].map(|channel| i32::from(from.rgb[start + channel]))
        };
        let mut planes = (vec![0; width * height], Vec::new(), Vec::new());
        for (y, row) in planes.0.chunks_exact_mut(width).enumerate() {
            for (x, value) in row.iter_mut().enumerate() {
                *value = luma(pixel(x, y));
            }
        }
        for y in (0..height as isize).step_by(2) {
            for x in (0..width).step_by(2) {
                let mut sum = [0; 3];
                for (row, weight) in (y - 1..).zip([1, 3, 3, 1]) {
                    let row = row.clamp(0, height as isize - 1) as usize;
                    for pixel in [pixel(x, row), pixel(x + 1, row)] {
                        sum = [0, 1, 2].map(|channel| sum[channel] + weight * pixel[channel]);
                    }
                }
                let (u, v) = chroma(sum);
                planes.1.push(u);
                planes.2.push(v);
            }
        }
        let rate = FrameRate::from_fps(1.0).map_err(|error| error.to_string())?;
        let mut encoder = h264::open(width as u32, height as u32, rate, quantizer)?;
        let (y, u, v) = (&planes.0, &planes.1, &planes.2);
        let source = YUVSlices::new((y, u, v), (width, height), (width, width / 2, width / 2));
        let stream = encoder.encode(&source).map_err(|error| error.to_string())?.to_vec();
        let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
        let decoded = decoder.decode(&stream).map_err(|error| error.to_string())?;
        let decoded = decoded.ok_or("the decoder gave no picture")?;
        if decoded.dimensions() != (width, height) {
            return Err(format!("{width}x{height} came back as {:?}", decoded.dimensions()));
        }
        let (luma_stride, chroma_stride, _) = decoded.strides();
        for y in 0..self.height {
            for x in 0..self.width {
                let at = y / 2 * chroma_stride + x / 2;
                let samples =
                    (decoded.y().get(y * luma_stride + x), decoded.u().get(at), decoded.v().get(at));
                let (Some(&luma), Some(&u), Some(&v)) = samples else {
                    return Err("the decoder gave less than a picture".into());
                };
                let start = ((self.top + y) * into.width as usize + self.left + x) * 3;
                into.rgb[start..start + 3].copy_from_slice(&rgb(luma, u, v));
            }
        }
        Ok(())
    }
}

/// 16 + 219 (0.299 R + 0.587 G + 0.114 B) / 255, in 1/65536: BT.601 in limited range, as swscale does unless told
/// otherwise.
fn luma([r, g, b]: [i32; 3]) -> u8 {
    ((16829 * r + 33039 * g + 6416 * b + (16 << 16) + (1 << 15)) >> 16) as u8
}

/// 128 + 224 (B - Y) / (1.772 · 255) and 128 + 224 (R - Y) / (1.402 · 255), in 1/65536 of sixteen times the channels.
fn chroma([r, g, b]: [i32; 3]) -> (u8, u8) {
    const HALF: i32 = (128 << 20) + (1 << 19);
    let u = -9714 * r - 19070 * g + 28784 * b + HALF;
    let v = 28784 * r - 24103 * g - 4681 * b + HALF;
    ((u >> 20) as u8, (v >> 20) as u8)
}

/// The inverse of both, in 1/65536.
fn rgb(y: u8, u: u8, v: u8) -> [u8; 3] {
    let y = 76309 * (i32::from(y) - 16) + (1 << 15);
    let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
    [y + 104598 * v, y - 25675 * u - 53279 * v, y + 132202 * u].map(|value| (value >> 16).clamp(0, 255) as u8)
}
