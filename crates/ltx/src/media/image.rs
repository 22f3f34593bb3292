//! PNG files: one frame, or a numbered file for each frame of a clip with its sound beside them.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::audio::{self, Wav};
use super::frames::{Audio, Frame};
use super::output::{Output, OutputFolder};
use super::{Error, Options};

/// Keyword of the text chunk that holds the settings.
pub(super) const KEYWORD: &str = "ltx";

/// The sound of a folder of frames.
const SOUND: &str = "audio.wav";

/// Writes one frame, with the settings in an `iTXt` chunk.
fn write(out: impl Write, frame: &Frame, settings: &str) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(out, frame.width, frame.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    encoder.add_itxt_chunk(KEYWORD.into(), settings.into())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&frame.rgb)?;
    writer.finish()
}

fn io_error(error: png::EncodingError) -> io::Error {
    match error {
        png::EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// The writer of a single picture.
pub struct Image {
    output: Output,
    size: (u32, u32),
    settings: String,
    written: bool,
}

impl Image {
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        let size = (options.width, options.height);
        Ok(Self { output: Output::create(path)?, size, settings: options.settings.clone(), written: false })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        frame.check(self.size)?;
        if self.written {
            return Err(Error::SecondFrame { path: self.output.path().to_owned() });
        }
        self.written = true;
        let mut out = BufWriter::new(self.output.file());
        let written = write(&mut out, frame, &self.settings).map_err(io_error).and_then(|()| out.flush());
        drop(out);
        written.map_err(|e| self.output.error(e))
    }

    pub fn finish(self) -> Result<(), Error> {
        if !self.written {
            return Err(Error::NoFrames { path: self.output.path().to_owned() });
        }
        self.output.finish()
    }
}

/// The writer of a folder: `frame_00001.png` and on, and `audio.wav`.
pub struct Images {
    output: OutputFolder,
    size: (u32, u32),
    settings: String,
    written: usize,
    sound: Option<Wav>,
}

impl Images {
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        let size = (options.width, options.height);
        let (output, settings) = (OutputFolder::create(path)?, options.settings.clone());
        Ok(Self { output, size, settings, written: 0, sound: None })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        frame.check(self.size)?;
        let name = format!("frame_{:05}.png", self.written + 1);
        let save = || -> io::Result<()> {
            let mut out = BufWriter::new(File::create_new(self.output.file(&name))?);
            write(&mut out, frame, &self.settings).map_err(io_error)?;
            out.flush()
        };
        save().map_err(|source| Error::Write { path: self.output.path().join(&name), source })?;
        self.written += 1;
        Ok(())
    }

    pub fn push_sound(&mut self, audio: &Audio) -> Result<(), Error> {
        let Self { output, settings, sound, .. } = self;
        let begin = || Wav::new(File::create_new(output.file(SOUND))?, audio, settings);
        audio::write(sound, audio, begin)
            .map_err(|source| Error::Write { path: output.path().join(SOUND), source })
    }

    pub fn finish(self) -> Result<(), Error> {
        if self.written == 0 {
            return Err(Error::NoFrames { path: self.output.path().to_owned() });
        }
        if let Some(sound) = self.sound {
            let path = self.output.path().join(SOUND);
            sound.finish().map_err(|source| Error::Write { path, source })?;
        }
        self.output.finish()
    }
}
