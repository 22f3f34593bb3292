//! Pictures from files (PNG, JPEG, WebP) as upright 8-bit sRGB, and their fitting to the size of a clip.
//!
//! What a file says is never trusted: its kind is told by its content, its size is limited before anything is allocated.
//! Encoding pictures is the business of `image.rs`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::metadata::Orientation;
use image::{
    DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, Limits, Pixel, RgbImage, Rgba,
};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

use super::{Error, Frame};

/// Most pixels of a picture: what the official decoder (Pillow) takes before it refuses.
const MOST_PIXELS: u64 = 178_956_970;
/// Most pixels each way.
const LONGEST: u32 = 1 << 15;
/// Most bytes that decoding may take: those pixels with an alpha of 8 bits, or half as many with 16.
const MOST_MEMORY: u64 = 4 * MOST_PIXELS;
/// Most bytes of a file.
const LARGEST_FILE: u64 = 1 << 30;

/// A picture that was read from a file.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its pixels, upright.
    pub frame: Frame,
    /// Whether a part of it was transparent. Transparency is dropped, as the official decoder does: what shows is the
    /// colour that the file keeps under it.
    pub transparent: bool,
}

impl Picture {
    /// Reads a PNG, JPEG or WebP file, of an animation the first picture.
    ///
    /// All eight EXIF orientations are followed (the official decoder follows the rotations and leaves out the mirrored
    /// ones), an embedded colour profile is converted to sRGB, of 16-bit samples the upper eight bits are taken.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let refuse = |what: String| Error::Picture { path: path.to_owned(), what };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(refuse("is not a file".into()));
        }
        if metadata.len() > LARGEST_FILE {
            return Err(refuse(format!("has {} bytes, more than any picture needs", metadata.len())));
        }
        let file = BufReader::new(File::open(path).map_err(unreadable)?);
        let mut reader = ImageReader::new(file).with_guessed_format().map_err(unreadable)?;
        let Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) = reader.format() else {
            return Err(refuse("is not a PNG, JPEG or WebP picture".into()));
        };
        let mut limits = Limits::no_limits();
        limits.max_image_width = Some(LONGEST);
        limits.max_image_height = Some(LONGEST);
        limits.max_alloc = Some(MOST_MEMORY);
        reader.limits(limits);
        let damaged = |error: image::ImageError| refuse(format!("cannot be decoded: {error}"));
        let format = reader.format();
        let mut decoder = reader.into_decoder().map_err(damaged)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MOST_PIXELS || decoder.total_bytes() > MOST_MEMORY {
            return Err(refuse(format!("has {width}x{height} pixels, too many to condition a clip")));
        }
        // Broken metadata spoil no picture: viewers show it, and so does the official decoder.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let profile = decoder.icc_profile().ok().flatten();
        // The decoder paints what is missing in grey.
        if format == Some(ImageFormat::Jpeg) && !ends(&std::fs::read(path).map_err(unreadable)?) {
            return Err(refuse("is cut off".into()));
        }
        let decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        let mut picture = Self::from_image(decoded, profile.as_deref());
        if orientation != Orientation::NoTransforms {
            picture.turn(orientation);
        }
        Ok(picture)
    }

    fn from_image(image: DynamicImage, profile: Option<&[u8]>) -> Self {
        let image = eight_bits(image);
        let (width, height) = (image.width(), image.height());
        let mut transparent = false;
        let mut opaque = |alpha: u8| transparent |= alpha < u8::MAX;
        // (samples, samples per pixel): 1 for grey, 3 for colour
        let (samples, channels) = match image {
            DynamicImage::ImageLuma8(grey) => (grey.into_raw(), 1),
            DynamicImage::ImageLumaA8(grey) => {
                let grey = grey.pixels().map(|pixel| {
                    opaque(pixel.0[1]);
                    pixel.0[0]
                });
                (grey.collect(), 1)
            }
            DynamicImage::ImageRgba8(colour) => {
                let mut rgb = Vec::with_capacity(colour.len() / 4 * 3);
                for &Rgba([r, g, b, alpha]) in colour.pixels() {
                    opaque(alpha);
                    rgb.extend([r, g, b]);
                }
                (rgb, 3)
            }
            other => (other.into_rgb8().into_raw(), 3),
        };
        let converted = profile.and_then(|profile| to_srgb(&samples, channels, profile));
        let rgb = converted.unwrap_or_else(|| match channels {
            1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
            _ => samples,
        });
        Self { frame: Frame { width, height, rgb }, transparent }
    }

    fn turn(&mut self, orientation: Orientation) {
        let Frame { width, height, rgb } = &mut self.frame;
        let Some(buffer) = RgbImage::from_raw(*width, *height, std::mem::take(rgb)) else { return };
        let mut image = DynamicImage::ImageRgb8(buffer);
        image.apply_orientation(orientation);
        let (width, height) = (image.width(), image.height());
        self.frame = Frame { width, height, rgb: image.into_rgb8().into_raw() };
    }
}

/// Whether a JPEG's end is there: the marker that follows its scans, not one inside a thumbnail in its metadata.
fn ends(jpeg: &[u8]) -> bool {
    let mut rest = jpeg.get(2..).unwrap_or_default();
    loop {
        // Between the marker's segments lie compressed samples, in which 0xff is followed by 0 or a restart marker.
        let Some(at) = rest
            .windows(2)
            .position(|two| two[0] == 0xff && !matches!(two[1], 0 | 0xff | 0x01 | 0xd0..=0xd7))
        else {
            return false;
        };
        let segment = &rest[at + 2..];
        if rest[at + 1] == 0xd9 {
            return true;
        }
        let length =
            segment.first_chunk::<2>().map_or(usize::MAX, |&length| u16::from_be_bytes(length).into());
        let Some(next) = segment.get(length..) else { return false };
        rest = next;
    }
}

/// The upper eight bits of samples with sixteen.
fn eight_bits(image: DynamicImage) -> DynamicImage {
    fn upper<P, Q>(buffer: ImageBuffer<P, Vec<u16>>) -> ImageBuffer<Q, Vec<u8>>
    where
        P: Pixel<Subpixel = u16>,
        Q: Pixel<Subpixel = u8>,
    {
        let (width, height) = buffer.dimensions();
        let samples = buffer.into_raw().into_iter().map(|sample| (sample >> 8) as u8).collect();
        ImageBuffer::from_raw(width, height, samples).unwrap_or_default()
    }
    match image {
        DynamicImage::ImageLuma16(buffer) => DynamicImage::ImageLuma8(upper(buffer)),
        DynamicImage::ImageLumaA16(buffer) => DynamicImage::ImageLumaA8(upper(buffer)),
        DynamicImage::ImageRgb16(buffer) => DynamicImage::ImageRgb8(upper(buffer)),
        DynamicImage::ImageRgba16(buffer) => DynamicImage::ImageRgba8(upper(buffer)),
        other => other,
    }
}

/// Samples in the colours of an ICC profile → sRGB; `None` where the profile does not fit them or cannot be read.
fn to_srgb(samples: &[u8], channels: usize, profile: &[u8]) -> Option<Vec<u8>> {
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    let layout = match (profile.color_space, channels) {
        (DataColorSpace::Rgb, 3) => Layout::Rgb,
        (DataColorSpace::Gray, 1) => Layout::Gray,
        _ => return None,
    };
    let srgb = ColorProfile::new_srgb();
    let transform =
        profile.create_transform_8bit(layout, &srgb, Layout::Rgb, TransformOptions::default()).ok()?;
    let mut rgb = vec![0; samples.len() / channels * 3];
    transform.transform(samples, &mut rgb).ok()?;
    Some(rgb)
}

impl Frame {
    /// The picture enlarged or shrunk to cover `width` x `height`, and cut to that size around its centre: values from 0
    /// to 255, rows from the top. (height, width, rgb)
    ///
    /// Bilinear between the centres of pixels, without a filter when it shrinks: `resize_and_center_crop` of Lightricks'
    /// ltx-pipelines, which the models were trained with. A frame without pixels stays empty.
    pub fn cover(&self, width: usize, height: usize) -> Vec<f32> {
        let [from_width, from_height] = [self.width, self.height].map(|size| size as usize);
        if self.rgb.len() != from_width * from_height * 3 || self.rgb.is_empty() {
            return Vec::new();
        }
        let scale = (height as f64 / from_height as f64).max(width as f64 / from_width as f64);
        let rows = Samples::new(from_height, (from_height as f64 * scale).ceil() as usize, height);
        let columns = Samples::new(from_width, (from_width as f64 * scale).ceil() as usize, width);
        let mut pixels = Vec::with_capacity(width * height * 3);
        for (upper, lower, down) in &rows.0 {
            let row = |row: &usize| &self.rgb[row * from_width * 3..(row + 1) * from_width * 3];
            let (upper, lower) = (row(upper), row(lower));
            for (left, right, across) in &columns.0 {
                for channel in 0..3 {
                    let along = |row: &[u8]| {
                        let [left, right] = [left, right].map(|column| f32::from(row[3 * column + channel]));
                        (1.0 - across) * left + across * right
                    };
                    pixels.push((1.0 - down) * along(upper) + down * along(lower));
                }
            }
        }
        pixels
    }
}

/// For each pixel that is kept along one side: its two neighbours in the source, and the share of the second.
struct Samples(Vec<(usize, usize, f32)>);

impl Samples {
    /// `source` pixels scaled to `scaled`, of which the middle `kept` are kept.
    fn new(source: usize, scaled: usize, kept: usize) -> Self {
        let (step, first, last) =
            (source as f32 / scaled as f32, scaled.saturating_sub(kept) / 2, source - 1);
        let sample = |index: usize| {
            let at = (step * ((first + index) as f32 + 0.5) - 0.5).max(0.0);
            let low = (at as usize).min(last);
            (low, (low + 1).min(last), (at - low as f32).clamp(0.0, 1.0))
        };
        Self((0..kept).map(sample).collect())
    }
}
