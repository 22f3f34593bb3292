//! WAV files: sound exactly as it was made, in 32-bit floating point, and sound read back from any common WAV.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::frames::Audio;
use super::output::{Output, folder};
use super::{Error, Options};

/// Bytes of a sample.
const BYTES: u32 = 4;

/// A WAV on its way, whose sound comes part by part.
pub(super) struct Wav {
    out: BufWriter<File>,
    sample_rate: u32,
    channels: u32,
    settings: String,
    samples: u32,
}

impl Wav {
    /// Begins an empty file for sound like `audio`, with the settings as its comment (`LIST`/`INFO`/`ICMT`).
    pub fn new(file: File, audio: &Audio, settings: &str) -> io::Result<Self> {
        let (sample_rate, channels) = (audio.sample_rate, audio.channels.len() as u32);
        let mut wav =
            Self { out: BufWriter::new(file), sample_rate, channels, settings: settings.into(), samples: 0 };
        let head = wav.head()?;
        wav.out.write_all(&head)?;
        Ok(wav)
    }

    /// Goes on with sound of as many channels.
    pub fn push(&mut self, audio: &Audio) -> io::Result<()> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let count = u32::try_from(audio.samples()).map_err(|_| too_large())?;
        self.samples = self.samples.checked_add(count).ok_or_else(too_large)?;
        self.head()?; // says so where the file becomes too large
        for i in 0..audio.samples() {
            for channel in &audio.channels {
                self.out.write_all(&channel[i].to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Writes how long the sound is where it belongs, at the beginning.
    pub fn finish(mut self) -> io::Result<()> {
        let head = self.head()?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&head)?;
        self.out.flush()
    }

    /// All that is ahead of the samples; as long whatever their number is.
    fn head(&self) -> io::Result<Vec<u8>> {
        const FLOAT: u16 = 3;
        let frame = self.channels * BYTES;
        let format = [
            &FLOAT.to_le_bytes()[..],
            &(self.channels as u16).to_le_bytes(),
            &self.sample_rate.to_le_bytes(),
            &self.sample_rate.wrapping_mul(frame).to_le_bytes(),
            &(frame as u16).to_le_bytes(),
            &(8 * BYTES as u16).to_le_bytes(),
            &[0, 0], // no extension
        ]
        .concat();
        // Text ends in a zero.
        let comment = chunk(b"ICMT", &[self.settings.as_bytes(), &[0]].concat());
        let chunks = [
            b"WAVE".to_vec(),
            chunk(b"fmt ", &format),
            chunk(b"fact", &self.samples.to_le_bytes()),
            chunk(b"LIST", &[b"INFO", &comment[..]].concat()),
        ]
        .concat();
        let data = u64::from(self.samples) * u64::from(frame);
        let total = u32::try_from(chunks.len() as u64 + 8 + data);
        let total = total.map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok([&b"RIFF"[..], &total.to_le_bytes(), &chunks, b"data", &(data as u32).to_le_bytes()].concat())
    }
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
    wav: Option<Wav>,
}

impl Sound {
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        Ok(Self { output: Output::create(path)?, settings: options.settings.clone(), wav: None })
    }

    pub fn push(&mut self, audio: &Audio) -> Result<(), Error> {
        let Self { output, settings, wav } = self;
        let begin = || Wav::new(output.file().try_clone()?, audio, settings);
        write(wav, audio, begin).map_err(|e| output.error(e))
    }

    pub fn finish(self) -> Result<(), Error> {
        let Some(wav) = self.wav else {
            return Err(Error::NoSound { path: self.output.path().to_owned() });
        };
        wav.finish().map_err(|e| self.output.error(e))?;
        self.output.finish()
    }
}

/// Goes on with a WAV, which is begun first if need be.
pub(super) fn write(
    wav: &mut Option<Wav>,
    audio: &Audio,
    begin: impl FnOnce() -> io::Result<Wav>,
) -> io::Result<()> {
    match wav {
        Some(wav) => wav.push(audio),
        None => wav.insert(begin()?).push(audio),
    }
}

/// Sound on its way to a WAV in a temporary file beside an output, as long as its video.
pub(super) struct Temporary {
    file: tempfile::NamedTempFile,
    wav: Wav,
    /// Samples that are still to come.
    left: usize,
}

impl Temporary {
    /// For `samples` of sound like `audio`, in stereo.
    pub fn create(path: &Path, audio: &Audio, samples: usize) -> Result<Self, Error> {
        let folder = folder(path)?;
        let begin = || -> io::Result<Self> {
            let file = tempfile::Builder::new().prefix(".ltx-").suffix(".wav").tempfile_in(folder)?;
            let wav = Wav::new(file.as_file().try_clone()?, &Audio::silence(audio.sample_rate, 0), "")?;
            Ok(Self { file, wav, left: samples })
        };
        begin().map_err(|error| named(path, &error))
    }

    pub fn push(&mut self, path: &Path, audio: &Audio) -> Result<(), Error> {
        let count = audio.samples().min(self.left);
        self.left -= count;
        let channels = audio.stereo(count).to_vec();
        let part = Audio { sample_rate: audio.sample_rate, channels };
        self.wav.push(&part).map_err(|error| named(path, &error))
    }

    /// Fills up with silence what did not come.
    pub fn finish(mut self, path: &Path) -> Result<tempfile::TempPath, Error> {
        while self.left > 0 {
            let silence = Audio::silence(self.wav.sample_rate, self.left);
            self.push(path, &silence)?;
        }
        self.wav.finish().map_err(|error| named(path, &error))?;
        Ok(self.file.into_temp_path())
    }
}

/// Without the temporary name that the user never chose.
fn named(path: &Path, error: &io::Error) -> Error {
    Error::Write { path: path.to_owned(), source: error.kind().into() }
}
