//! Sizes of clips, in pixels, latents and seconds, and which sizes the model can make. No tensors here.

use std::fmt;

use crate::error::{Error, Result};

/// Pixel frames per latent frame, after the first, which stands alone.
pub const FRAMES_PER_LATENT: usize = 8;
/// Pixels per latent cell, along the height and along the width.
pub const PIXELS_PER_LATENT: usize = 32;
/// Audio latent frames per second: 16 kHz, 160 samples per mel frame, 4 mel frames per latent frame.
pub const AUDIO_LATENTS_PER_SECOND: f64 = 25.0;
/// Mel frames per audio latent frame.
pub const MEL_FRAMES_PER_LATENT: usize = 4;

/// No size of a clip may exceed this: beyond it no memory suffices, and below it every product of sizes is safe.
const LARGEST: usize = 1 << 14;

/// The two streams of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Modality {
    /// Pictures.
    Video,
    /// Sound.
    Audio,
}

impl Modality {
    /// Its name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A video in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoShape {
    /// Pictures: 8 k + 1.
    pub frames: usize,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
}

/// A video in latent cells, which are also the transformer's video tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Latent frames.
    pub frames: usize,
    /// Cells along the height.
    pub height: usize,
    /// Cells along the width.
    pub width: usize,
}

impl VideoShape {
    /// Whether the model can make this; the error names the nearest sizes that it can. `multiple` is what height and
    /// width must be multiples of: [`PIXELS_PER_LATENT`], or twice that when the first stage works at half size.
    pub fn check(&self, multiple: usize) -> Result<()> {
        for (name, size) in [("height", self.height), ("width", self.width)] {
            check(name, size, multiple, 0)?;
        }
        check("number of frames", self.frames, FRAMES_PER_LATENT, 1)
    }

    /// The latents that hold it. Sizes that [`check`](Self::check) refuses are rounded down.
    pub fn latent(&self) -> LatentShape {
        LatentShape {
            frames: self.frames.saturating_sub(1) / FRAMES_PER_LATENT + 1,
            height: self.height / PIXELS_PER_LATENT,
            width: self.width / PIXELS_PER_LATENT,
        }
    }
}

impl LatentShape {
    /// The video that decodes from it.
    pub fn video(&self) -> VideoShape {
        VideoShape {
            frames: self.frames.saturating_sub(1) * FRAMES_PER_LATENT + 1,
            height: self.height * PIXELS_PER_LATENT,
            width: self.width * PIXELS_PER_LATENT,
        }
    }

    /// Tokens of one latent frame.
    pub fn tokens_per_frame(&self) -> usize {
        self.height * self.width
    }

    /// Tokens of the whole.
    pub fn tokens(&self) -> usize {
        self.frames * self.tokens_per_frame()
    }
}

/// A sound in latent frames, which are also the transformer's audio tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioShape {
    /// Latent frames.
    pub frames: usize,
}

impl AudioShape {
    /// The sound of `frames` pictures at `frame_rate` per second: the nearest number of latent frames, halves to even.
    pub fn of_video(frames: usize, frame_rate: f64) -> Result<Self> {
        let latents = (frames as f64 / frame_rate * AUDIO_LATENTS_PER_SECOND).round_ties_even();
        if !(1.0..=(LARGEST * FRAMES_PER_LATENT) as f64).contains(&latents) {
            return Err(Error::request(
                format!("{frames} frames at {frame_rate} per second leave no sensible length for the sound"),
                "give a usual frame rate such as 24, or more frames",
            ));
        }
        Ok(Self { frames: latents as usize })
    }

    /// Mel frames that decode from it: causal like the video, the first latent frame makes one.
    pub fn mel_frames(&self) -> usize {
        (MEL_FRAMES_PER_LATENT * self.frames).saturating_sub(MEL_FRAMES_PER_LATENT - 1)
    }
}

/// Checks that `size` is `offset` more than a multiple of `step`.
pub(crate) fn check(name: &str, size: usize, step: usize, offset: usize) -> Result<()> {
    let smallest = if offset == 0 { step } else { offset };
    if size > LARGEST {
        return Err(Error::request(
            format!("a {name} of {size} is too large"),
            format!("give at most {}", (LARGEST - offset) / step * step + offset),
        ));
    }
    if size >= smallest && (size - offset).is_multiple_of(step) {
        return Ok(());
    }
    let rule = if offset == 0 {
        format!("a multiple of {step}")
    } else {
        format!("a multiple of {step} plus {offset}")
    };
    let below = size.saturating_sub(offset) / step * step + offset;
    let remedy = if size < smallest {
        format!("the smallest is {smallest}")
    } else {
        format!("the nearest are {below} and {}", below + step)
    };
    Err(Error::request(format!("a {name} of {size} is not {rule}"), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(frames: usize, height: usize, width: usize, multiple: usize) -> String {
        let error = VideoShape { frames, height, width }.check(multiple).unwrap_err();
        format!("{error}: {}", error.remedy().unwrap())
    }

    #[test]
    fn errors_name_both_neighbours() {
        assert_eq!(
            refused(9, 500, 64, 32),
            "a height of 500 is not a multiple of 32: the nearest are 480 and 512"
        );
        assert_eq!(
            refused(9, 512, 96, 64),
            "a width of 96 is not a multiple of 64: the nearest are 64 and 128"
        );
        assert_eq!(
            refused(120, 512, 64, 64),
            "a number of frames of 120 is not a multiple of 8 plus 1: the nearest are 113 and 121"
        );
        assert_eq!(
            refused(0, 64, 64, 32),
            "a number of frames of 0 is not a multiple of 8 plus 1: the smallest is 1"
        );
        assert_eq!(refused(1, 31, 64, 32), "a height of 31 is not a multiple of 32: the smallest is 32");
        assert_eq!(
            refused(1, 32, usize::MAX, 32),
            format!("a width of {} is too large: give at most 16384", usize::MAX)
        );
        assert_eq!(
            refused(16385, 32, 32, 32),
            "a number of frames of 16385 is too large: give at most 16377"
        );
    }

    #[test]
    fn every_valid_size_survives_the_way_to_latents_and_back() {
        for (k, h, w) in [(0, 1, 1), (1, 1, 2), (15, 16, 24), (2046, 511, 3)] {
            let video = VideoShape { frames: 8 * k + 1, height: 32 * h, width: 32 * w };
            video.check(PIXELS_PER_LATENT).unwrap();
            assert_eq!(video.latent(), LatentShape { frames: k + 1, height: h, width: w });
            assert_eq!(video.latent().video(), video);
            assert_eq!(video.latent().tokens(), (k + 1) * h * w);
        }
    }

    #[test]
    fn sound_is_as_long_as_the_pictures_halves_to_even() {
        let latents = |frames, rate| AudioShape::of_video(frames, rate).unwrap().frames;
        assert_eq!(latents(121, 24.0), 126); // 126.04
        assert_eq!(latents(9, 25.0), 9);
        assert_eq!(latents(9, 50.0), 4); // 4.5
        assert_eq!(latents(11, 50.0), 6); // 5.5
        assert_eq!(latents(97, 29.97), 81); // 80.91
        assert_eq!(AudioShape { frames: 9 }.mel_frames(), 33);
        assert!(AudioShape::of_video(1, 240.0).is_err());
        assert!(AudioShape::of_video(9, 0.0).is_err());
        assert!(AudioShape::of_video(9, f64::NAN).is_err());
    }
}
