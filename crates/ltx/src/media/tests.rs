//! Files written by the writers and read back by others' readers: boxes by `mp4-atom`, pictures by OpenH264's decoder,
//! sound by Symphonia's AAC decoder, PNG by `png`, WAV by `hound`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mp4_atom::{Any, Atom, Codec, Colr, Decode, Ftyp, Header, Moov, StszSamples, Trak};
use openh264::formats::YUVSource;
use symphonia_core::codecs::audio::{AudioCodecParameters, AudioDecoder, well_known::CODEC_ID_AAC};
use symphonia_core::packet::Packet;
use symphonia_core::units::{Duration, Timestamp};

use super::frames::Planes;
use super::*;

const SETTINGS: &str = r#"{"prompt":"a žluťoučký kůň, \"neighing\"\n","seed":42}"#;

fn options(width: u32, height: u32, fps: f64) -> Options {
    let rate = FrameRate::from_fps(fps).unwrap();
    Options { width, height, rate, encoder: Encoder::BuiltIn, settings: SETTINGS.into() }
}

/// Numbers from 0 to 255 that look like noise.
pub(super) fn noise(seed: u32) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 24
    })
}

/// A gradient that moves, under grain.
fn frame(width: u32, height: u32, index: u32) -> Frame {
    let mut grain = noise(index);
    let mut rgb = Vec::new();
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let grain = grain.next().unwrap_or(0) / 16;
        let base = [40 + (x + 3 * index) % 160, 30 + (2 * y + index) % 150, 60 + (x + y) % 120];
        rgb.extend(base.map(|c| (c + grain) as u8));
    }
    Frame { width, height, rgb }
}

pub(super) fn sine(hertz: f64, loudness: f64, sample_rate: u32, samples: usize) -> Vec<f32> {
    let turn = std::f64::consts::TAU * hertz / f64::from(sample_rate);
    (0..samples).map(|i| (loudness * (turn * i as f64).sin()) as f32).collect()
}

fn write(path: &Path, options: &Options, frames: u32, audio: Option<&Audio>) {
    let mut writer = Writer::create(path, options).unwrap();
    for index in 0..frames {
        writer.push(&frame(options.width, options.height, index)).unwrap();
    }
    audio.into_iter().for_each(|audio| writer.push_sound(audio).unwrap());
    writer.finish().unwrap();
}

fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// The names of the boxes in a file in their order, and the index.
fn index(bytes: &[u8]) -> (Vec<String>, Moov) {
    let (mut rest, mut names, mut moov) = (bytes, Vec::new(), None);
    while !rest.is_empty() {
        let mut head = rest;
        let header = Header::decode(&mut head).unwrap();
        names.push(header.kind.to_string());
        match Any::decode(&mut rest).unwrap() {
            Any::Moov(found) => moov = Some(found),
            Any::Ftyp(_) | Any::Mdat(_) => {}
            other => panic!("an unexpected box: {other:?}"),
        }
    }
    (names, moov.expect("no index"))
}

/// The samples of a track, found as a player finds them: by chunks.
fn samples<'a>(track: &Trak, file: &'a [u8]) -> Vec<&'a [u8]> {
    let table = &track.mdia.minf.stbl;
    let StszSamples::Different { sizes } = &table.stsz.samples else { panic!("{:?}", table.stsz) };
    let mut sizes = sizes.iter().map(|&size| size as usize);
    let mut samples = Vec::new();
    for (chunk, &offset) in (1..).zip(&table.stco.as_ref().unwrap().entries) {
        let run = table.stsc.entries.iter().rfind(|run| run.first_chunk <= chunk).unwrap();
        let mut at = offset as usize;
        for size in sizes.by_ref().take(run.samples_per_chunk as usize) {
            samples.push(&file[at..at + size]);
            at += size;
        }
    }
    assert_eq!(sizes.next(), None, "samples outside of all chunks");
    samples
}

/// What a decoder puts out for the sound of an mp4, from the first sample that the edit list shows.
pub(super) fn decode_sound(config: &[u8], units: &[impl AsRef<[u8]>]) -> [Vec<f32>; 2] {
    let mut parameters = AudioCodecParameters::new();
    parameters.for_codec(CODEC_ID_AAC).with_extra_data(config.into());
    let mut decoder = symphonia_codec_aac::AacDecoder::try_new(&parameters, &Default::default()).unwrap();
    let mut channels = [Vec::new(), Vec::new()];
    for unit in units {
        let packet = Packet::new(0, Timestamp::ZERO, Duration::from(1024u32), unit.as_ref());
        let decoded = decoder.decode(&packet).unwrap();
        let mut planes: Vec<Vec<f32>> = Vec::new();
        decoded.copy_to_vecs_planar(&mut planes);
        assert_eq!((planes.len(), planes[0].len()), (2, 1024));
        channels.iter_mut().zip(planes).for_each(|(all, plane)| all.extend(plane));
    }
    channels.map(|channel| channel[aac::PRIMING..].to_vec())
}

/// A sound in parts of so many samples.
fn parts(audio: &Audio, samples: usize) -> Vec<Audio> {
    let part = |from: usize| {
        let end = audio.samples().min(from + samples);
        let channels = audio.channels.iter().map(|channel| channel[from..end].to_vec()).collect();
        Audio { sample_rate: audio.sample_rate, channels }
    };
    (0..audio.samples()).step_by(samples).map(part).collect()
}

/// Signal over error, in decibels.
pub(super) fn snr(signal: &[f32], decoded: &[f32]) -> f64 {
    let energy = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = energy(&mut signal.iter().zip(decoded).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    10.0 * (energy(&mut signal.iter().map(|&v| f64::from(v))) / error).log10()
}

#[test]
fn an_mp4_says_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.MP4");
    let audio = Audio { sample_rate: 24_000, channels: vec![sine(300.0, 0.4, 24_000, 20_000); 2] };
    write(&path, &options(50, 34, 29.97), 67, Some(&audio));
    assert_eq!(entries(folder.path()), ["clip.MP4".to_owned()].into());
    let bytes = fs::read(&path).unwrap();
    let (names, moov) = index(&bytes);
    assert_eq!(names, ["ftyp", "moov", "mdat"], "the index must come first");
    assert_eq!(Ftyp::KIND.to_string(), names[0]);
    assert_eq!((moov.mvhd.timescale, moov.mvhd.duration, moov.mvhd.creation_time), (30_000, 67 * 1001, 0));
    let [video, sound] = moov.trak.as_slice() else { panic!("{} tracks", moov.trak.len()) };

    assert_eq!((video.mdia.mdhd.timescale, video.mdia.mdhd.duration), (30_000, 67 * 1001));
    assert_eq!(video.tkhd.duration, moov.mvhd.duration);
    let table = &video.mdia.minf.stbl;
    assert_eq!(
        table.stts.entries.iter().map(|e| (e.sample_count, e.sample_delta)).collect::<Vec<_>>(),
        [(67, 1001)]
    );
    assert_eq!(table.stss.as_ref().unwrap().entries, [1, 61], "a key frame every two seconds");
    let Some(Codec::Avc1(entry)) = table.stsd.codecs.first() else { panic!("{:?}", table.stsd) };
    assert_eq!((entry.visual.width, entry.visual.height), (50, 34));
    let bt709 = Colr::Nclx {
        colour_primaries: 1,
        transfer_characteristics: 1,
        matrix_coefficients: 1,
        full_range_flag: false,
    };
    assert_eq!(entry.colr.as_ref(), Some(&bt709));
    assert_eq!(samples(video, &bytes).len(), 67);

    // 67 frames are 2.2356 s: 53654 samples, in 53 units and the one that comes ahead.
    assert_eq!((sound.mdia.mdhd.timescale, sound.mdia.mdhd.duration), (24_000, 54 * 1024));
    let edit = &sound.edts.as_ref().unwrap().elst.as_ref().unwrap().entries;
    assert_eq!(edit.len(), 1);
    assert_eq!((edit[0].segment_duration, edit[0].media_time), (67 * 1001, Some(1024)));
    assert_eq!(samples(sound, &bytes).len(), 54);
    assert_eq!(read_settings(&path).as_deref(), Some(SETTINGS));
}

#[test]
fn an_mp4_keeps_the_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    let (width, height, count) = (98, 66, 14);
    write(&path, &options(width, height, 24.0), count, None);
    let bytes = fs::read(&path).unwrap();
    let (_, moov) = index(&bytes);
    let [video] = moov.trak.as_slice() else { panic!("{} tracks without sound", moov.trak.len()) };
    let Some(Codec::Avc1(entry)) = video.mdia.minf.stbl.stsd.codecs.first() else { panic!() };
    let mut decoder = openh264::decoder::Decoder::new().unwrap();
    let annex_b = |unit: &[u8]| [&[0, 0, 0, 1], unit].concat();
    let sets = [&entry.avcc.sequence_parameter_sets[0], &entry.avcc.picture_parameter_sets[0]];
    for set in sets {
        decoder.decode(&annex_b(set)).unwrap();
    }
    // BT.709 in limited range, as the sequence parameters say it: of any format (5), not full, three times 1.
    let bits: String = sets[0].iter().map(|byte| format!("{byte:08b}")).collect();
    assert!(bits.contains("110101000000010000000100000001"), "{bits}");
    let mut planes = Planes::new(width as usize, height as usize);
    for (number, sample) in (0..).zip(samples(video, &bytes)) {
        let length = u32::from_be_bytes(sample[..4].try_into().unwrap()) as usize;
        assert_eq!(length + 4, sample.len(), "one slice a frame");
        let decoded = decoder.decode(&annex_b(&sample[4..])).unwrap().expect("no picture");
        assert_eq!(decoded.dimensions(), (width as usize, height as usize));
        planes.convert(&frame(width, height, number).rgb);
        let (stride, stride_u, stride_v) = decoded.strides();
        let psnr = |original: &[u8], decoded: &[u8], width: usize, stride: usize| {
            let rows = original.chunks(width).zip(decoded.chunks(stride));
            let error: f64 = rows
                .flat_map(|(a, b)| a.iter().zip(b))
                .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
                .sum();
            10.0 * (255.0f64.powi(2) * original.len() as f64 / error).log10()
        };
        let luma = psnr(&planes.y, decoded.y(), planes.width, stride);
        let u = psnr(&planes.u, decoded.u(), planes.width / 2, stride_u);
        let v = psnr(&planes.v, decoded.v(), planes.width / 2, stride_v);
        assert!(luma.min(u).min(v) > 39.0, "frame {number}: {luma:.1} {u:.1} {v:.1} dB");
    }
}

#[test]
fn an_mp4_keeps_the_sound_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    // Longer than the video, with a click on the right at frame 11.
    let mut audio =
        Audio { sample_rate: 48_000, channels: vec![sine(440.0, 0.3, 48_000, 60_000), vec![0.0; 60_000]] };
    audio.channels[1][22_000..22_024].fill(0.8);
    write(&path, &options(34, 50, 24.0), 25, Some(&audio));
    let bytes = fs::read(&path).unwrap();
    let (_, moov) = index(&bytes);
    let Some(Codec::Mp4a(entry)) = moov.trak[1].mdia.minf.stbl.stsd.codecs.first() else { panic!() };
    let specific = entry.esds.es_desc.dec_config.dec_specific.as_ref().unwrap();
    assert_eq!((specific.profile, specific.freq_index, specific.chan_conf), (2, 3, 2));
    let units = samples(&moov.trak[1], &bytes);
    assert_eq!(units.len(), 50_000usize.div_ceil(1024) + 1, "25 frames are 50000 samples");
    let [left, right] = decode_sound(&[0x11, 0x90], &units);
    assert!(snr(&audio.channels[0][..50_000], &left) > 40.0, "{}", snr(&audio.channels[0][..50_000], &left));
    let click = right.iter().position(|&s| s > 0.4).unwrap();
    assert!(click.abs_diff(22_000) <= 1, "the click is heard at sample {click}");
    let before = right[..21_800].iter().fold(0f32, |loudest, s| loudest.max(s.abs()));
    assert!(before < 0.01, "the click is smeared over what came before it: {before}");
}

#[test]
fn the_same_clip_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let audio = Audio { sample_rate: 48_000, channels: vec![sine(440.0, 0.3, 48_000, 20_000)] };
    // Sound that is longer than the video, and sound that is shorter, at once and in parts.
    let bytes = |name: &str, samples: usize, part: usize| {
        let path = folder.path().join(name);
        let mut writer = Writer::create(&path, &options(66, 98, 23.976)).unwrap();
        (0..9).for_each(|index| writer.push(&frame(66, 98, index)).unwrap());
        let audio = Audio { sample_rate: 48_000, channels: vec![audio.channels[0][..samples].to_vec()] };
        parts(&audio, part).iter().for_each(|part| writer.push_sound(part).unwrap());
        writer.finish().unwrap();
        fs::read(path).unwrap()
    };
    assert!(bytes("c.mp4", 9_999, 9_999) == bytes("d.mp4", 9_999, 777));
    let [first, second] = [("a.mp4", 20_000), ("b.mp4", 1_001)].map(|(name, part)| bytes(name, 20_000, part));
    assert!(first == second);
}

#[test]
fn a_png_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("still.png");
    let options = options(37, 21, 24.0);
    write(&path, &options, 1, None);
    assert_eq!(read_png(&path), frame(37, 21, 0));
    assert_eq!(read_settings(&path).as_deref(), Some(SETTINGS));
    let mut writer = Writer::create(&path, &options).unwrap();
    writer.push(&frame(37, 21, 0)).unwrap();
    assert!(matches!(writer.push(&frame(37, 21, 1)), Err(Error::SecondFrame { .. })));
}

fn read_png(path: &Path) -> Frame {
    let file = std::io::BufReader::new(fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgb).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    Frame { width: info.width, height: info.height, rgb }
}

#[test]
fn a_folder_holds_every_frame_and_the_sound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip/");
    let audio = Audio { sample_rate: 24_000, channels: vec![vec![0.25, -1.0, 0.125], vec![0.5, 1.0, -3.0]] };
    let mut writer = Writer::create(&path, &options(7, 5, 25.0)).unwrap();
    (0..3).for_each(|i| writer.push(&frame(7, 5, i)).unwrap());
    assert!(!path.exists(), "the folder must not be there before it is complete");
    parts(&audio, 2).iter().for_each(|part| writer.push_sound(part).unwrap());
    writer.finish().unwrap();
    assert_eq!(entries(folder.path()), ["clip".to_owned()].into());
    let names = ["audio.wav", "frame_00001.png", "frame_00002.png", "frame_00003.png"];
    assert_eq!(entries(&path), names.map(str::to_owned).into());
    assert_eq!(read_png(&path.join("frame_00003.png")), frame(7, 5, 2));
    assert_eq!(read_wav(&path.join("audio.wav")).unwrap(), audio, "a WAV keeps the samples to the bit");
    assert_eq!(read_settings(&path).as_deref(), Some(SETTINGS));
    assert!(matches!(Writer::create(&path, &options(7, 5, 25.0)), Err(Error::NotEmpty { .. })));
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    write(&empty, &options(7, 5, 25.0), 1, None);
    assert_eq!(entries(&empty), ["frame_00001.png".to_owned()].into());
}

#[test]
fn a_wav_keeps_the_sound_and_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sound.wav");
    let audio = Audio { sample_rate: 48_000, channels: vec![sine(440.0, 0.7, 48_000, 1001)] };
    let mut writer = Writer::create(&path, &options(50, 34, 24.0)).unwrap();
    assert!(!writer.wants_frames() && writer.wants_sound());
    writer.push(&frame(50, 34, 0)).unwrap();
    parts(&audio, 7).iter().for_each(|part| writer.push_sound(part).unwrap());
    writer.finish().unwrap();
    assert_eq!(read_wav(&path).unwrap(), audio);
    assert_eq!(read_settings(&path).as_deref(), Some(SETTINGS));
    let silent = Writer::create(&path, &options(50, 34, 24.0)).unwrap();
    assert!(matches!(silent.finish(), Err(Error::NoSound { .. })));
    assert_eq!(read_wav(&path).unwrap(), audio, "a failed writer must leave the older file alone");
}

#[test]
fn settings_of_broken_files_are_no_settings() {
    let folder = tempfile::tempdir().unwrap();
    let audio = Audio { sample_rate: 24_000, channels: vec![vec![0.1; 500]] };
    for name in ["a.mp4", "a.png", "a.wav"] {
        let path = folder.path().join(name);
        write(&path, &options(34, 18, 24.0), 1, Some(&audio));
        let whole = fs::read(&path).unwrap();
        let find = |bytes: &[u8]| settings::find(std::io::Cursor::new(bytes));
        assert_eq!(find(&whole).as_deref(), Some(SETTINGS));
        for (i, change) in (0..whole.len()).zip(noise(9)) {
            let mut broken = whole.clone();
            broken[i] ^= change as u8 | 1;
            // Whatever is found, it is found without a panic and without believing a length.
            find(&broken);
            assert!(find(&whole[..i]).is_none_or(|found| found == SETTINGS), "{name} cut at {i}");
        }
    }
    assert_eq!(read_settings(&folder.path().join("missing.mp4")), None);
}

#[test]
fn what_cannot_be_written_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let create =
        |path: &Path, options: &Options| Writer::create(path, options).err().expect("it was accepted");
    let good = options(34, 50, 24.0);
    for name in ["clip.avi", "clip", "mp4"] {
        assert!(matches!(create(&at(name), &good), Error::Ending { .. }), "{name}");
    }
    for name in ["no/clip.mp4", "no/clip.png", "no/clip.wav", "no/clip/"] {
        assert!(matches!(create(&at(name), &good), Error::NoFolder { .. }), "{name}");
    }
    fs::write(at("file"), "").unwrap();
    assert!(matches!(create(&at("file/clip.mp4"), &good), Error::NoFolder { .. }));
    for (width, height) in [(33, 50), (34, 51), (0, 50), (34, 0), (3842, 34), (2162, 2162), (14, 64)] {
        let error = create(&at("clip.mp4"), &options(width, height, 24.0));
        assert!(matches!(error, Error::Size { .. }), "{width}x{height}: {error}");
    }
    assert_eq!(entries(folder.path()), ["file".to_owned()].into(), "refusals must leave nothing behind");
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["clip.mp4", "clip.png", "clip.wav", "clip/"] {
        let mut writer = Writer::create(&folder.path().join(name), &options(34, 50, 24.0)).unwrap();
        assert!(!entries(folder.path()).is_empty(), "{name}: the place was not tried");
        writer.push(&frame(34, 50, 0)).unwrap();
        drop(writer);
        assert_eq!(entries(folder.path()), BTreeSet::new(), "{name}");
    }
}

#[test]
fn wrong_input_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    let writer = || Writer::create(&path, &options(34, 50, 24.0)).unwrap();
    assert!(matches!(writer().push(&frame(50, 34, 0)), Err(Error::Frame { expected: (34, 50), .. })));
    let short = Frame { rgb: vec![0; 5], ..frame(34, 50, 0) };
    assert!(matches!(writer().push(&short), Err(Error::Frame { bytes: 5, .. })));
    assert!(matches!(writer().finish(), Err(Error::NoFrames { .. })));
    let finish = |sample_rate, channels| {
        let mut writer = writer();
        writer.push(&frame(34, 50, 0)).unwrap();
        writer.push_sound(&Audio { sample_rate, channels }).unwrap_err()
    };
    assert!(!writer().takes_sample_rate(11_025) && writer().takes_sample_rate(24_000));
    assert!(matches!(finish(11_025, vec![vec![0.0; 9]]), Error::SampleRate { sample_rate: 11_025 }));
    assert!(matches!(finish(48_000, vec![vec![0.0; 9]; 3]), Error::Channels { channels: 3 }));
    assert!(matches!(finish(48_000, vec![vec![0.0; 9], vec![0.0; 8]]), Error::Sound { .. }));
    assert!(matches!(finish(48_000, vec![vec![f32::NAN; 9]]), Error::Sound { .. }));
    let mut writer = writer();
    writer.push(&frame(34, 50, 0)).unwrap();
    writer.push_sound(&Audio { sample_rate: 24_000, channels: vec![vec![0.0; 9]] }).unwrap();
    for other in [(48_000, 1), (24_000, 2)] {
        let other = Audio { sample_rate: other.0, channels: vec![vec![0.0; 9]; other.1] };
        assert!(matches!(writer.push_sound(&other), Err(Error::Sound { .. })));
    }
    assert!(matches!(writer.push(&frame(34, 50, 1)), Err(Error::Sound { .. })), "a frame after sound");
    drop(writer);
    assert_eq!(entries(folder.path()), BTreeSet::new());
}

/// Temporary files are private; a finished output must be as readable as any file of the user.
#[cfg(unix)]
#[test]
fn outputs_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let [file, made] = ["file", "made"].map(|name| folder.path().join(name));
    fs::write(&file, "").unwrap();
    fs::create_dir(&made).unwrap();
    write(&folder.path().join("clip.mp4"), &options(34, 50, 24.0), 1, None);
    write(&folder.path().join("clip/"), &options(34, 50, 24.0), 1, None);
    assert_eq!(mode(&folder.path().join("clip.mp4")), mode(&file));
    assert_eq!(mode(&folder.path().join("clip")), mode(&made));
}
