//! Pixels and samples ↔ files.
//!
//! [`Writer`] turns a clip into an mp4 (H.264 and AAC-LC), a folder of PNG files with a WAV, a single PNG or a WAV. What
//! is written is chosen by the path; frames are pushed one at a time, then sound in parts of any length, and none of it is
//! kept in memory. An output appears under its name only when it is complete: until then it is a temporary file beside it, removed when
//! the writer is dropped. The same frames, sound and settings give the same bytes. Every output carries the settings
//! that made it, and [`read_settings`] reads them back.
//!
//! [`Picture`] reads the pictures that a clip is to show; [`Frame::cover`] and [`Frame::recompressed`] make of them what
//! the models were trained with.
//!
//! Nothing here knows of tensors, models or prompts; the mp4 writer needs no program or library of the machine
//! (`aac/`, `h264.rs`, `mp4.rs`), and `ffmpeg.rs` uses the user's ffmpeg only when asked to.

mod aac;
#[cfg(test)]
mod aac_tests;
mod audio;
mod ffmpeg;
mod frames;
mod h264;
mod image;
mod mp4;
mod output;
mod picture;
#[cfg(test)]
mod picture_tests;
mod recompress;
mod settings;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use audio::read_wav;
pub use frames::{Audio, Frame, FrameRate};
pub(crate) use output::{Output, OutputFolder, is_unfinished};
pub use picture::Picture;
pub use settings::read_settings;

/// Who encodes an mp4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoder {
    /// OpenH264 and this crate's own AAC encoder; nothing needs to be installed.
    #[default]
    BuiltIn,
    /// The `ffmpeg` on the PATH, with libx264 at CRF 18.
    Ffmpeg,
}

/// What a writer must know ahead of the first frame.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pixels in a row of every frame; even for an mp4.
    pub width: u32,
    /// Rows of every frame; even for an mp4.
    pub height: u32,
    /// Frames a second.
    pub rate: FrameRate,
    /// Who encodes an mp4.
    pub encoder: Encoder,
    /// The settings that make the clip, as JSON, to be kept in the file.
    pub settings: String,
}

impl Options {
    /// 4:2:0 video has one chroma sample for two pixels each way.
    fn check_even(&self) -> Result<(), Error> {
        let (width, height) = (self.width, self.height);
        if width == 0 || height == 0 || width % 2 == 1 || height % 2 == 1 {
            return Err(Error::Size { width, height, why: "an mp4 needs an even width and height" });
        }
        if width.max(height) > 16_384 {
            return Err(Error::Size { width, height, why: "H.264 ends at 16384 pixels" });
        }
        Ok(())
    }
}

/// Writes one clip to one place.
pub struct Writer {
    kind: Kind,
    /// Sample rate and channels of the sound, once there is some.
    sound: Option<(u32, usize)>,
}

enum Kind {
    Mp4(Box<mp4::Mp4>),
    Ffmpeg(ffmpeg::Ffmpeg),
    Image(image::Image),
    Images(image::Images),
    Sound(audio::Sound),
}

impl Writer {
    /// Prepares to write to `path`: `.mp4`, `.png` (one frame), `.wav` (sound alone), or a folder, given with a `/` at its
    /// end or existing and empty (`frame_00001.png`, …, `audio.wav`).
    ///
    /// Whatever can be known to fail fails here: another ending, a folder that cannot be written, a size that the encoder
    /// does not take, an ffmpeg that is not there or has no libx264.
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        if path.is_dir()
            || path.as_os_str().as_encoded_bytes().last().is_some_and(|&b| b == b'/' || b == b'\\')
        {
            let kind = Kind::Images(image::Images::create(path, options)?);
            return Ok(Self { kind, sound: None });
        }
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let kind = match (ending.as_deref(), options.encoder) {
            (Some("mp4"), Encoder::BuiltIn) => Kind::Mp4(Box::new(mp4::Mp4::create(path, options)?)),
            (Some("mp4"), Encoder::Ffmpeg) => Kind::Ffmpeg(ffmpeg::Ffmpeg::create(path, options)?),
            (Some("png"), _) => Kind::Image(image::Image::create(path, options)?),
            (Some("wav"), _) => Kind::Sound(audio::Sound::create(path, options)?),
            _ => return Err(Error::Ending { path: path.to_owned() }),
        };
        Ok(Self { kind, sound: None })
    }

    /// Whether the output has pictures: without, a caller may spare itself making them.
    pub fn wants_frames(&self) -> bool {
        !matches!(self.kind, Kind::Sound(_))
    }

    /// Whether the output has sound: without, a caller may spare itself making it.
    pub fn wants_sound(&self) -> bool {
        !matches!(self.kind, Kind::Image(_))
    }

    /// Whether sound of that rate (samples a second) can be written here.
    pub fn takes_sample_rate(&self, sample_rate: u32) -> bool {
        !matches!(self.kind, Kind::Mp4(_)) || aac::supports(sample_rate)
    }

    /// Writes the next frame. A WAV takes no notice of it.
    pub fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        if self.sound.is_some() {
            return Err(Error::Sound { what: "it came before the last frame" });
        }
        match &mut self.kind {
            Kind::Mp4(writer) => writer.push(frame),
            Kind::Ffmpeg(writer) => writer.push(frame),
            Kind::Image(writer) => writer.push(frame),
            Kind::Images(writer) => writer.push(frame),
            Kind::Sound(_) => Ok(()),
        }
    }

    /// Goes on with the sound, after the last frame. In an mp4 all of it is cut, or filled with silence, to the length of the
    /// video; in a WAV it stays as it is; a PNG takes no notice of it.
    pub fn push_sound(&mut self, audio: &Audio) -> Result<(), Error> {
        audio.check()?;
        let kind = (audio.sample_rate, audio.channels.len());
        if self.sound.is_some_and(|earlier| earlier != kind) {
            return Err(Error::Sound { what: "parts of different rates or numbers of channels" });
        }
        match &mut self.kind {
            Kind::Mp4(writer) => writer.push_sound(audio)?,
            Kind::Ffmpeg(writer) => writer.push_sound(audio)?,
            Kind::Image(_) => {}
            Kind::Images(writer) => writer.push_sound(audio)?,
            Kind::Sound(writer) => writer.push(audio)?,
        }
        self.sound = Some(kind);
        Ok(())
    }

    /// Puts the complete output in its place.
    pub fn finish(self) -> Result<(), Error> {
        match self.kind {
            Kind::Mp4(writer) => writer.finish(),
            Kind::Ffmpeg(writer) => writer.finish(),
            Kind::Image(writer) => writer.finish(),
            Kind::Images(writer) => writer.finish(),
            Kind::Sound(writer) => writer.finish(),
        }
    }
}

/// What can go wrong between a clip and its file; [`remedy`](Self::remedy) says what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each one is.
pub enum Error {
    #[error("{}: no such kind of output", path.display())]
    Ending { path: PathBuf },
    #[error("{}: there is no such folder", path.display())]
    NoFolder { path: PathBuf },
    #[error("{}: cannot be written: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{}: the folder is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{}: is a device or a pipe, not a file", path.display())]
    Device { path: PathBuf },
    #[error("{}: writing failed: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    Picture { path: PathBuf, what: String },
    #[error("a picture could not be compressed as H.264: {what}")]
    Recompress { what: String },
    #[error("{width}x{height} cannot be encoded: {why}")]
    Size { width: u32, height: u32, why: &'static str },
    #[error("{fps} frames a second is no rate for a video")]
    FrameRate { fps: f64 },
    #[error("{sample_rate} Hz sound has no place in an mp4")]
    SampleRate { sample_rate: u32 },
    #[error("{channels} channels of sound; one or two can be written")]
    Channels { channels: usize },
    #[error("the sound is broken: {what}")]
    Sound { what: &'static str },
    #[error("a frame of {width}x{height} in {bytes} bytes where {}x{} in RGB was announced", expected.0, expected.1)]
    Frame { width: u32, height: u32, bytes: usize, expected: (u32, u32) },
    #[error("{}: a PNG holds one frame", path.display())]
    SecondFrame { path: PathBuf },
    #[error("{}: no frame was given to be written", path.display())]
    NoFrames { path: PathBuf },
    #[error("{}: no sound was given to be written", path.display())]
    NoSound { path: PathBuf },
    #[error("{}: encoding failed: {what}", path.display())]
    Encoder { path: PathBuf, what: String },
    #[error("no ffmpeg was found")]
    FfmpegMissing,
    #[error("ffmpeg could not be started: {source}")]
    FfmpegStart { source: io::Error },
    #[error("{}: ffmpeg failed; it said:\n{said}", path.display())]
    Ffmpeg { path: PathBuf, said: String },
}

impl Error {
    /// Without the temporary name that the user never chose.
    fn create(path: &Path, source: io::Error) -> Self {
        Self::Create { path: path.to_owned(), source: source.kind().into() }
    }

    fn encoder(path: &Path, what: String) -> Self {
        Self::Encoder { path: path.to_owned(), what }
    }

    /// What the user can do about it, if the message does not say it already.
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::Ending { .. } => {
                "end it in .mp4, .png (one frame), .wav (sound alone), or / for a folder of frames"
            }
            Self::NoFolder { .. } => "make it first, or choose another place",
            Self::Create { .. } => "choose another place, or make its folder writable",
            Self::Device { .. } => "choose the name of a file",
            Self::Read { .. } => "check the path, and that it is a file you may read",
            Self::NotEmpty { .. } => "choose a new name, or empty it",
            Self::Write { .. } => "see whether the disk is full or was taken away",
            Self::Picture { .. } => "give a PNG, JPEG or WebP file that other programs can show",
            Self::Recompress { .. } => "turn it off with 0 as the image's CRF",
            Self::FrameRate { .. } => "give 1 to 240",
            Self::SampleRate { .. } => "use 16, 22.05, 24, 32, 44.1 or 48 kHz, or write a .wav",
            Self::SecondFrame { .. } => "end the path in .mp4, or in / for a folder of frames",
            Self::NoSound { .. } => "make the clip with sound, or write another kind of file",
            Self::FfmpegMissing => "install it, or use the built-in encoder",
            Self::Ffmpeg { .. } | Self::FfmpegStart { .. } => {
                "an ffmpeg with libx264 and room on the disk are needed; or use the built-in encoder"
            }
            _ => return None,
        };
        Some(remedy.into())
    }
}
