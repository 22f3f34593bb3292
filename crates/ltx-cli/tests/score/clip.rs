//! An mp4 read back: frames through OpenH264, sound through Symphonia.

use std::path::Path;

use ltx::media::Frame;
use mp4_atom::{Any, Codec, Decode, Moov, StszSamples, Trak};
use openh264::formats::YUVSource;
use symphonia_core::codecs::audio::{AudioCodecParameters, AudioDecoder, well_known::CODEC_ID_AAC};
use symphonia_core::packet::Packet;
use symphonia_core::units::{Duration, Timestamp};

/// What a file holds.
pub struct Clip {
    pub frames: Vec<Frame>,
    /// Both sides mixed; empty without sound.
    pub samples: Vec<f32>,
    pub sample_rate: u32,
}

pub fn read(path: &Path) -> Clip {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut moov) = (bytes.as_slice(), None);
    while !rest.is_empty() {
        if let Any::Moov(found) = Any::decode(&mut rest).unwrap() {
            moov = Some(found);
        }
    }
    let moov: Moov = moov.expect("no index");
    let mut clip = Clip { frames: Vec::new(), samples: Vec::new(), sample_rate: 0 };
    for track in &moov.trak {
        match track.mdia.minf.stbl.stsd.codecs.first() {
            Some(Codec::Avc1(entry)) => {
                let sets =
                    entry.avcc.sequence_parameter_sets.iter().chain(&entry.avcc.picture_parameter_sets);
                clip.frames = pictures(sets.map(Vec::as_slice), &units(track, &bytes));
            }
            Some(Codec::Mp4a(entry)) => {
                let specific = &entry.esds.es_desc.dec_config.dec_specific.as_ref().unwrap();
                assert_eq!((specific.profile, specific.chan_conf), (2, 2), "AAC-LC in stereo");
                clip.sample_rate = track.mdia.mdhd.timescale;
                let rates = [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000];
                assert_eq!(rates.get(usize::from(specific.freq_index)), Some(&clip.sample_rate));
                let config = [(2 << 3) | (specific.freq_index >> 1), (specific.freq_index << 7) | (2 << 3)];
                let edit = &track.edts.as_ref().unwrap().elst.as_ref().unwrap().entries[0];
                let first = edit.media_time.unwrap() as usize;
                clip.samples = sound(&config, &units(track, &bytes)).split_off(first);
            }
            other => panic!("an unexpected track: {other:?}"),
        }
    }
    clip
}

/// The coded units of a track, found as a player finds them: by chunks.
fn units<'a>(track: &Trak, file: &'a [u8]) -> Vec<&'a [u8]> {
    let table = &track.mdia.minf.stbl;
    let StszSamples::Different { sizes } = &table.stsz.samples else { panic!("{:?}", table.stsz) };
    let mut sizes = sizes.iter().map(|&size| size as usize);
    let mut units = Vec::new();
    for (chunk, &offset) in (1..).zip(&table.stco.as_ref().unwrap().entries) {
        let run = table.stsc.entries.iter().rfind(|run| run.first_chunk <= chunk).unwrap();
        let mut at = offset as usize;
        for size in sizes.by_ref().take(run.samples_per_chunk as usize) {
            units.push(&file[at..at + size]);
            at += size;
        }
    }
    units
}

fn pictures<'a>(sets: impl Iterator<Item = &'a [u8]>, units: &[&[u8]]) -> Vec<Frame> {
    let mut decoder = openh264::decoder::Decoder::new().unwrap();
    let annex_b = |unit: &[u8]| [&[0, 0, 0, 1], unit].concat();
    for set in sets {
        decoder.decode(&annex_b(set)).unwrap();
    }
    let frame = |unit: &&[u8]| {
        let picture = decoder.decode(&annex_b(&unit[4..])).unwrap().expect("no picture");
        let ((width, height), strides) = (picture.dimensions(), picture.strides());
        let mut rgb = Vec::with_capacity(3 * width * height);
        for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
            // BT.709 in limited range.
            let luma = 255.0 / 219.0 * (f32::from(picture.y()[row * strides.0 + column]) - 16.0);
            let chroma = |plane: &[u8], stride| {
                255.0 / 224.0 * (f32::from(plane[row / 2 * stride + column / 2]) - 128.0)
            };
            let (blue, red) = (chroma(picture.u(), strides.1), chroma(picture.v(), strides.2));
            let pixel = [luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue];
            rgb.extend(pixel.map(|value| value.round().clamp(0.0, 255.0) as u8));
        }
        Frame { width: width as u32, height: height as u32, rgb }
    };
    units.iter().map(frame).collect()
}

fn sound(config: &[u8], units: &[&[u8]]) -> Vec<f32> {
    let mut parameters = AudioCodecParameters::new();
    parameters.for_codec(CODEC_ID_AAC).with_extra_data(config.into());
    let mut decoder = symphonia_codec_aac::AacDecoder::try_new(&parameters, &Default::default()).unwrap();
    let mut samples = Vec::new();
    for &unit in units {
        let packet = Packet::new(0, Timestamp::ZERO, Duration::from(1024u32), unit);
        let mut sides: Vec<Vec<f32>> = Vec::new();
        decoder.decode(&packet).unwrap().copy_to_vecs_planar(&mut sides);
        samples.extend(sides[0].iter().zip(&sides[1]).map(|(left, right)| (left + right) / 2.0));
    }
    samples
}
