//! The built-in mp4 writer: H.264 and AAC-LC in a file that can start playing before all of it has arrived.
//!
//! Coded frames, and then coded sound, wait in nameless scratch files beside the output; `finish` lays the index first and
//! then both tracks, interleaved by half seconds. The sound is cut or filled with silence to the nearest sample of the video's length, and
//! an edit list hides what the AAC decoder puts out ahead of it, so that both tracks start and end together. Nothing in
//! the file depends on the time or the machine. The boxes are those of ISO/IEC 14496-12, -14 and -15.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use super::frames::{Audio, Frame, FrameRate};
use super::h264::H264;
use super::output::{Output, scratch};
use super::{Error, Options, aac};

/// The writer of one clip.
pub struct Mp4 {
    output: Output,
    encoder: H264,
    size: (u32, u32),
    rate: FrameRate,
    settings: String,
    scratch: BufWriter<File>,
    /// Bytes of each coded frame.
    frames: Vec<u32>,
    /// Key frames, counted from 1.
    keys: Vec<u32>,
    sound: Option<Sound>,
}

impl Mp4 {
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        let (width, height) = (options.width, options.height);
        options.check_even()?;
        if let Some(why) = H264::refuses(width, height) {
            return Err(Error::Size { width, height, why });
        }
        let encoder = H264::new(width, height, options.rate).map_err(|what| Error::encoder(path, what))?;
        Ok(Self {
            output: Output::create(path)?,
            encoder,
            size: (width, height),
            rate: options.rate,
            settings: options.settings.clone(),
            scratch: BufWriter::new(scratch(path)?),
            frames: Vec::new(),
            keys: Vec::new(),
            sound: None,
        })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        frame.check(self.size)?;
        let coded = self.encoder.encode(frame).map_err(|what| Error::encoder(self.output.path(), what))?;
        self.scratch.write_all(&coded.bytes).map_err(|e| self.output.error(e))?;
        self.frames.push(coded.bytes.len() as u32);
        if coded.key {
            self.keys.push(self.frames.len() as u32);
        }
        Ok(())
    }

    /// Sound, after the last frame, of whose end it now is known.
    pub fn push_sound(&mut self, audio: &Audio) -> Result<(), Error> {
        if self.sound.is_none() {
            let samples = self.rate.samples(self.frames.len(), audio.sample_rate);
            self.sound = Some(Sound::new(audio.sample_rate, samples, scratch(self.output.path())?)?);
        }
        let Some(sound) = &mut self.sound else { return Ok(()) };
        sound.push(audio).map_err(|e| self.output.error(e))
    }

    pub fn finish(mut self) -> Result<(), Error> {
        let path = self.output.path().to_owned();
        let Some((sps, pps)) = self.encoder.parameters.take() else {
            return Err(Error::NoFrames { path });
        };
        let (timescale, ticks) = self.rate.ticks();
        // With twelve hours every duration, of pictures and of samples, stays within 32 bits.
        if self.frames.len() as f64 > 12.0 * 3600.0 * self.rate.fps() {
            return Err(Error::encoder(&path, "the clip is longer than twelve hours".into()));
        }
        let duration = ticks * self.frames.len() as u32;
        let sound = self.sound.take().map(Sound::finish).transpose();
        let mut sound = sound.map_err(|e| self.output.error(e))?;
        let movie = Movie { size: self.size, timescale, duration, settings: &self.settings };

        // Half a second of one track, then of the other.
        let per_chunk = (self.rate.fps() / 2.0).ceil() as usize;
        let units_until = |frames: usize| match &sound {
            Some(sound) if frames < self.frames.len() => {
                self.rate.samples(frames, sound.sample_rate).div_ceil(aac::FRAME).min(sound.units.len())
            }
            Some(sound) => sound.units.len(),
            None => 0,
        };
        let chunks: Vec<Chunk> = (0..self.frames.len())
            .step_by(per_chunk)
            .map(|first| {
                let end = (first + per_chunk).min(self.frames.len());
                Chunk { frames: (first, end), units: (units_until(first), units_until(end)) }
            })
            .collect();
        let unit_sizes = sound.as_ref().map_or(&[][..], |sound| &sound.units[..]);
        let sum = |sizes: &[u32]| sizes.iter().map(|&size| u64::from(size)).sum::<u64>();
        let data = sum(&self.frames) + sum(unit_sizes);
        let large = data + (64 << 20) > u64::from(u32::MAX);

        let index = |start: u64| {
            let (mut at, mut video, mut audio) = (start, Vec::new(), Vec::new());
            for chunk in &chunks {
                video.push(at);
                at += sum(&self.frames[chunk.frames.0..chunk.frames.1]);
                audio.push(at);
                at += sum(&unit_sizes[chunk.units.0..chunk.units.1]);
            }
            // A chunk must hold something.
            let (audio, units): (Vec<u64>, Vec<u32>) = audio
                .into_iter()
                .zip(chunks.iter().map(|c| (c.units.1 - c.units.0) as u32))
                .filter(|&(_, units)| units > 0)
                .unzip();
            let frames: Vec<u32> = chunks.iter().map(|c| (c.frames.1 - c.frames.0) as u32).collect();
            let video = Samples { sizes: &self.frames, ticks, chunks: &frames, offsets: &video, large };
            let mut tracks = vec![movie.video_track(&sps, &pps, &video, &self.keys)];
            if let Some(sound) = &sound {
                let samples = Samples {
                    sizes: unit_sizes,
                    ticks: aac::FRAME as u32,
                    chunks: &units,
                    offsets: &audio,
                    large,
                };
                tracks.push(movie.sound_track(&sound.config, sound.sample_rate, &samples));
            }
            movie.index(&tracks)
        };
        let head = ftyp();
        let data_head = if large {
            [&1u32.to_be_bytes()[..], b"mdat", &(data + 16).to_be_bytes()].concat()
        } else {
            [&(data as u32 + 8).to_be_bytes()[..], b"mdat"].concat()
        };
        // The index is as long whatever the offsets in it are.
        let start = (head.len() + index(0).len() + data_head.len()) as u64;
        let index = index(start);

        let sizes: Vec<[u64; 2]> = chunks
            .iter()
            .map(|Chunk { frames, units }| {
                [sum(&self.frames[frames.0..frames.1]), sum(&unit_sizes[units.0..units.1])]
            })
            .collect();
        let write = || -> io::Result<()> {
            let mut frames = from_the_start(&mut self.scratch)?;
            let mut units = sound.as_mut().map(|sound| from_the_start(&mut sound.scratch)).transpose()?;
            let mut out = BufWriter::new(self.output.file());
            for part in [head, index, data_head] {
                out.write_all(&part)?;
            }
            for [of_frames, of_units] in sizes {
                copy(&mut frames, of_frames, &mut out)?;
                if let Some(units) = &mut units {
                    copy(units, of_units, &mut out)?;
                }
            }
            out.flush()
        };
        let written = write();
        written.map_err(|e| self.output.error(e))?;
        self.output.finish()
    }
}

/// What was written to a scratch file.
fn from_the_start(scratch: &mut BufWriter<File>) -> io::Result<io::BufReader<&mut File>> {
    scratch.flush()?;
    let scratch = scratch.get_mut();
    scratch.rewind()?;
    Ok(io::BufReader::new(scratch))
}

/// Exactly so many bytes.
fn copy(from: &mut impl Read, bytes: u64, to: &mut impl Write) -> io::Result<()> {
    match io::copy(&mut from.take(bytes), to)? {
        copied if copied == bytes => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Half a second: frames and AAC access units, from and up to.
struct Chunk {
    frames: (usize, usize),
    units: (usize, usize),
}

/// The sound on its way, as long as the video.
struct Sound {
    encoder: Option<aac::Encoder>,
    config: Vec<u8>,
    sample_rate: u32,
    /// Samples that are still to come.
    left: usize,
    scratch: BufWriter<File>,
    /// Bytes of each access unit.
    units: Vec<u32>,
}

impl Sound {
    fn new(sample_rate: u32, samples: usize, scratch: File) -> Result<Self, Error> {
        let encoder = aac::Encoder::new(sample_rate).ok_or(Error::SampleRate { sample_rate })?;
        let (config, scratch) = (encoder.config(), BufWriter::new(scratch));
        Ok(Self { encoder: Some(encoder), config, sample_rate, left: samples, scratch, units: Vec::new() })
    }

    fn push(&mut self, audio: &Audio) -> io::Result<()> {
        let count = audio.samples().min(self.left);
        self.left -= count;
        let [left, right] = audio.stereo(count);
        let units = self.encoder.as_mut().map_or_else(Vec::new, |encoder| encoder.push(&left, &right));
        self.write(units)
    }

    /// Fills up with silence what did not come.
    fn finish(mut self) -> io::Result<Self> {
        while self.left > 0 {
            self.push(&Audio::silence(self.sample_rate, self.left))?;
        }
        let units = self.encoder.take().map_or_else(Vec::new, aac::Encoder::finish);
        self.write(units)?;
        Ok(self)
    }

    fn write(&mut self, units: Vec<Vec<u8>>) -> io::Result<()> {
        for unit in units {
            self.scratch.write_all(&unit)?;
            self.units.push(unit.len() as u32);
        }
        Ok(())
    }
}

struct Movie<'a> {
    size: (u32, u32),
    timescale: u32,
    /// Of all frames, in `timescale`.
    duration: u32,
    settings: &'a str,
}

/// What the sample table of a track is made of.
struct Samples<'a> {
    sizes: &'a [u32],
    /// Duration of each in the timescale of the track.
    ticks: u32,
    /// Samples in each chunk, and where it starts in the file.
    chunks: &'a [u32],
    offsets: &'a [u64],
    /// Offsets need 64 bits.
    large: bool,
}

/// A box: its length, its name, its content.
fn atom(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let length = 8 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend(name);
    parts.iter().for_each(|part| bytes.extend(*part));
    bytes
}

/// Numbers, big-endian, 32 bits each.
fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// Numbers, big-endian, 16 bits each.
fn halves(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// The matrix that turns nothing.
const UPRIGHT: [u32; 9] = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x4000_0000];
/// "Undetermined", as mp4 packs a language.
const NO_LANGUAGE: u16 = 0x55c4;

fn ftyp() -> Vec<u8> {
    atom(b"ftyp", &[b"isom", &words(&[0x200]), b"isomiso2avc1mp41"])
}

impl Movie<'_> {
    fn index(&self, tracks: &[Vec<u8>]) -> Vec<u8> {
        let header = [
            &words(&[0, 0, 0, self.timescale, self.duration, 0x10000])[..],
            &halves(&[0x100, 0]),
            &words(&[0, 0]),
            &words(&UPRIGHT),
            &words(&[0, 0, 0, 0, 0, 0, tracks.len() as u32 + 1]),
        ]
        .concat();
        atom(b"moov", &[&atom(b"mvhd", &[&header]), &tracks.concat(), &self.notes()])
    }

    /// What made the file, and the settings as its comment.
    fn notes(&self) -> Vec<u8> {
        const TEXT: u32 = 1;
        let note = |name, text: &str| atom(name, &[&atom(b"data", &[&words(&[TEXT, 0]), text.as_bytes()])]);
        let list = atom(
            b"ilst",
            &[
                &note(b"\xa9too", concat!("ltx ", env!("CARGO_PKG_VERSION"))),
                &note(b"\xa9cmt", self.settings),
            ],
        );
        let handler = atom(b"hdlr", &[&words(&[0, 0]), b"mdirappl", &[0; 9]]);
        atom(b"udta", &[&atom(b"meta", &[&words(&[0]), &handler, &list])])
    }

    fn video_track(&self, sps: &[u8], pps: &[u8], samples: &Samples, keys: &[u32]) -> Vec<u8> {
        let (width, height) = self.size;
        let set = |unit: &[u8]| [&[1], &halves(&[unit.len() as u16])[..], unit].concat();
        // Profile, compatibility and level are bytes 1 to 3 of the sequence parameters; lengths take 4 bytes.
        let configuration = [&[1], sps.get(1..4).unwrap_or(&[77, 0, 52]), &[0xff]].concat();
        let mut sets = [set(sps), set(pps)].concat();
        sets[0] |= 0xe0;
        let entry = atom(
            b"avc1",
            &[
                &[0, 0, 0, 0, 0, 0, 0, 1],
                &[0; 16],
                &halves(&[width as u16, height as u16]),
                &words(&[72 << 16, 72 << 16, 0]),
                &halves(&[1]),
                &[0; 32],
                &halves(&[24, u16::MAX]),
                &atom(b"avcC", &[&configuration, &sets]),
                &atom(b"colr", &[b"nclx", &halves(&[1, 1, 1]), &[0]]),
                &atom(b"pasp", &[&words(&[1, 1])]),
            ],
        );
        let media = self.media(
            (self.timescale, self.duration),
            b"vide",
            &atom(b"vmhd", &[&words(&[1, 0, 0])]),
            &samples.table(&entry, Some(keys)),
        );
        atom(b"trak", &[&self.track_header(1, 0, (width << 16, height << 16)), &media])
    }

    fn sound_track(&self, config: &[u8], sample_rate: u32, samples: &Samples) -> Vec<u8> {
        let length = samples.ticks * samples.sizes.len() as u32;
        let bytes = samples.sizes.iter().map(|&size| u64::from(size)).sum::<u64>();
        let average = (bytes * 8 * u64::from(sample_rate) / u64::from(length).max(1)) as u32;
        let peak = samples.sizes.iter().max().map_or(0, |&size| {
            (u64::from(size) * 8 * u64::from(sample_rate) / u64::from(samples.ticks)) as u32
        });
        // MPEG-4 descriptors: a tag, a length, the content.
        let descriptor = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
        let decoder = [
            &[0x40, 0x15, 0, 0x18, 0][..], // MPEG-4 audio, an audio stream, a buffer of 6144 bytes
            &words(&[peak, average]),
            &descriptor(5, config),
        ]
        .concat();
        let stream = [&[0, 2, 0][..], &descriptor(4, &decoder), &descriptor(6, &[2])].concat();
        let entry = atom(
            b"mp4a",
            &[
                &[0, 0, 0, 0, 0, 0, 0, 1],
                &[0; 8],
                &halves(&[2, 16, 0, 0]),
                &words(&[sample_rate << 16]),
                &atom(b"esds", &[&words(&[0]), &descriptor(3, &stream)]),
            ],
        );
        // Skip what the decoder puts out first; play as long as the video.
        let edit = atom(b"elst", &[&words(&[0, 1, self.duration, aac::PRIMING as u32, 0x10000])]);
        let media = self.media(
            (sample_rate, length),
            b"soun",
            &atom(b"smhd", &[&words(&[0, 0])]),
            &samples.table(&entry, None),
        );
        let header = self.track_header(2, 0x100, (0, 0));
        atom(b"trak", &[&header, &atom(b"edts", &[&edit]), &media])
    }

    fn track_header(&self, number: u32, volume: u16, (width, height): (u32, u32)) -> Vec<u8> {
        const SHOWN: u32 = 3; // enabled, in the movie
        atom(
            b"tkhd",
            &[
                &words(&[SHOWN, 0, 0, number, 0, self.duration, 0, 0]),
                &halves(&[0, 0, volume, 0]),
                &words(&UPRIGHT),
                &words(&[width, height]),
            ],
        )
    }

    fn media(
        &self,
        (timescale, duration): (u32, u32),
        kind: &[u8; 4],
        header: &[u8],
        table: &[u8],
    ) -> Vec<u8> {
        const IN_THIS_FILE: u32 = 1;
        let here = atom(b"url ", &[&words(&[IN_THIS_FILE])]);
        let source = atom(b"dinf", &[&atom(b"dref", &[&words(&[0, 1]), &here])]);
        atom(
            b"mdia",
            &[
                &atom(b"mdhd", &[&words(&[0, 0, 0, timescale, duration]), &halves(&[NO_LANGUAGE, 0])]),
                &atom(b"hdlr", &[&words(&[0, 0]), kind, &[0; 13]]),
                &atom(b"minf", &[header, &source, table]),
            ],
        )
    }
}

impl Samples<'_> {
    fn table(&self, entry: &[u8], keys: Option<&[u32]>) -> Vec<u8> {
        let count = self.sizes.len() as u32;
        // Runs of chunks with as many samples: the first chunk of the run, samples in each, which description.
        let mut runs: Vec<[u32; 3]> = Vec::new();
        for (&samples, chunk) in self.chunks.iter().zip(1..) {
            if runs.last().is_none_or(|run| run[1] != samples) {
                runs.push([chunk, samples, 1]);
            }
        }
        let keys = keys.map(|keys| atom(b"stss", &[&words(&[0, keys.len() as u32]), &words(keys)]));
        let chunks = words(&[0, self.offsets.len() as u32]);
        let offsets = if self.large {
            let offsets: Vec<u8> = self.offsets.iter().flat_map(|offset| offset.to_be_bytes()).collect();
            atom(b"co64", &[&chunks, &offsets])
        } else {
            let offsets: Vec<u32> = self.offsets.iter().map(|&offset| offset as u32).collect();
            atom(b"stco", &[&chunks, &words(&offsets)])
        };
        atom(
            b"stbl",
            &[
                &atom(b"stsd", &[&words(&[0, 1]), entry]),
                &atom(b"stts", &[&words(&[0, 1, count, self.ticks])]),
                &keys.unwrap_or_default(),
                &atom(b"stsc", &[&words(&[0, runs.len() as u32]), &words(runs.as_flattened())]),
                &atom(b"stsz", &[&words(&[0, 0, count]), &words(self.sizes)]),
                &offsets,
            ],
        )
    }
}
