//! WAV files: sound exactly as it was made, in 32-bit floating point, and sound read back from any common WAV.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::frames::Audio;
use super::output::{Output, folder};
use super::{Error, Options};

/// Writes the sound with the settings as its comment (`LIST`/`INFO`/`ICMT`).
pub(super) fn write(out: &mut impl Write, audio: &Audio, settings: &str) -> io::Result<()> {
    const FLOAT: u16 = 3;
    const BYTES: usize = 4;
    let channels = audio.channels.len();
    let rate = audio.sample_rate;
    let frame = channels * BYTES;
    let format = [
        &FLOAT.to_le_bytes()[..],
        &(channels as u16).to_le_bytes(),
        &rate.to_le_bytes(),
        &(rate * frame as u32).to_le_bytes(),
        &(frame as u16).to_le_bytes(),
        &(8 * BYTES as u16).to_le_bytes(),
        &[0, 0], // no extension
    ]
    .concat();
    // Text ends in a zero.
    let comment = chunk(b"ICMT", &[settings.as_bytes(), &[0]].concat());
    let head = [
        b"WAVE".to_vec(),
        chunk(b"fmt ", &format),
        chunk(b"fact", &(audio.samples() as u32).to_le_bytes()),
        chunk(b"LIST", &[b"INFO", &comment[..]].concat()),
    ]
    .concat();
    let data = audio.samples() * frame;
    let total = u32::try_from(head.len() + 8 + data).map_err(|_| io::ErrorKind::FileTooLarge)?;
    out.write_all(b"RIFF")?;
    out.write_all(&total.to_le_bytes())?;
    out.write_all(&head)?;
    out.write_all(b"data")?;
    out.write_all(&(data as u32).to_le_bytes())?;
    for i in 0..audio.samples() {
        for channel in &audio.channels {
            out.write_all(&channel[i].to_le_bytes())?;
        }
    }
    Ok(())
}

/// A RIFF chunk: its name, its length, its content, made even.
fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let padding = &[0][..content.len() % 2];
    [name, &(content.len() as u32).to_le_bytes()[..], content, padding].concat()
}

/// Reads a WAV file of one or two channels: 8 to 32-bit integers or 32-bit floating point.
pub fn read_wav(path: &Path) -> Result<Audio, Error> {
    let error = |source: hound::Error| match source {
        hound::Error::IoError(source) => Error::Read { path: path.to_owned(), source },
        other => Error::Read { path: path.to_owned(), source: io::Error::other(other) },
    };
    let mut reader = hound::WavReader::open(path).map_err(error)?;
    let spec = reader.spec();
    let samples: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>(),
        hound::SampleFormat::Int => {
            let full = 2f64.powi(i32::from(spec.bits_per_sample) - 1);
            reader.samples::<i32>().map(|s| s.map(|s| (f64::from(s) / full) as f32)).collect()
        }
    }
    .map_err(error)?;
    let count = usize::from(spec.channels).max(1);
    let channels = (0..count).map(|c| samples.iter().skip(c).step_by(count).copied().collect()).collect();
    let audio = Audio { sample_rate: spec.sample_rate, channels };
    audio.check()?;
    Ok(audio)
}

/// The writer of sound alone: frames pass it by.
pub struct Sound {
    output: Output,
    settings: String,
}

impl Sound {
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        Ok(Self { output: Output::create(path)?, settings: options.settings.clone() })
    }

    pub fn finish(mut self, audio: Option<&Audio>) -> Result<(), Error> {
        let Some(audio) = audio else {
            return Err(Error::NoSound { path: self.output.path().to_owned() });
        };
        let mut out = BufWriter::new(self.output.file());
        let written = write(&mut out, audio, &self.settings).and_then(|()| out.flush());
        drop(out);
        written.map_err(|e| self.output.error(e))?;
        self.output.finish()
    }
}

/// Sound as a WAV in a temporary file beside `path`.
pub(super) fn temporary(path: &Path, audio: &Audio) -> Result<tempfile::NamedTempFile, Error> {
    let folder = folder(path)?;
    let save = || -> io::Result<tempfile::NamedTempFile> {
        let file = tempfile::Builder::new().prefix(".ltx-").suffix(".wav").tempfile_in(folder)?;
        let mut out = BufWriter::new(file);
        write(&mut out, audio, "")?;
        out.into_inner().map_err(io::IntoInnerError::into_error)
    };
    // Without the temporary name that the user never chose.
    save().map_err(|error| Error::Write { path: path.to_owned(), source: error.kind().into() })
}
