//! Pictures in every disguise that users give them: orientations, alpha, grey, sixteen bits, colour profiles, damage; and
//! their way through H.264.

use std::fs;
use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use tempfile::TempDir;

use super::{Error, Frame, Picture};

/// `bytes` in a file that lives as long as the folder.
fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(bytes: &[u8]) -> Picture {
    let (_folder, path) = file(bytes);
    Picture::read(&path).unwrap()
}

/// What a file that cannot be read is said to be.
fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = file(bytes);
    let error = Picture::read(&path).unwrap_err();
    assert!(matches!(error, Error::Picture { .. }), "{error:?}");
    assert!(error.remedy().is_some());
    error.to_string()
}

/// An EXIF block that holds an orientation alone, big or little endian.
fn exif(orientation: u8, big: bool) -> Vec<u8> {
    match big {
        true => {
            [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0]]
                .concat()
        }
        false => {
            [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]]
                .concat()
        }
    }
}

fn png(samples: &[u8], width: u32, height: u32, color: ExtendedColorType, exif: Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).unwrap();
    }
    encoder.write_image(samples, width, height, color).unwrap();
    bytes
}

/// Three columns, two rows: 1 2 3 over 4 5 6 in red, with other numbers in green and blue.
const SIX: [u8; 18] = [1, 10, 90, 2, 20, 80, 3, 30, 70, 4, 40, 60, 5, 50, 50, 6, 60, 40];

#[test]
fn every_orientation_comes_out_upright() {
    // What a viewer shows for each: rows of the red channel.
    let shown: [(u8, u32, [u8; 6]); 8] = [
        (1, 3, [1, 2, 3, 4, 5, 6]),
        (2, 3, [3, 2, 1, 6, 5, 4]),
        (3, 3, [6, 5, 4, 3, 2, 1]),
        (4, 3, [4, 5, 6, 1, 2, 3]),
        (5, 2, [1, 4, 2, 5, 3, 6]),
        (6, 2, [4, 1, 5, 2, 6, 3]),
        (7, 2, [6, 3, 5, 2, 4, 1]),
        (8, 2, [3, 6, 2, 5, 1, 4]),
    ];
    for (orientation, width, red) in shown {
        for big in [false, true] {
            let frame = read(&png(&SIX, 3, 2, ExtendedColorType::Rgb8, Some(exif(orientation, big)))).frame;
            assert_eq!((frame.width, frame.height), (width, 6 / width), "orientation {orientation}");
            let found: Vec<u8> = frame.rgb.chunks(3).map(|pixel| pixel[0]).collect();
            assert_eq!(found, red, "orientation {orientation}");
            assert!(frame.rgb.chunks(3).all(|pixel| pixel[1] == 10 * pixel[0] && pixel[2] == 100 - pixel[1]));
        }
    }
    for orientation in [0, 9, 255] {
        let frame = read(&png(&SIX, 3, 2, ExtendedColorType::Rgb8, Some(exif(orientation, true)))).frame;
        assert_eq!(frame.rgb, SIX, "nonsense is no orientation");
    }
    let broken = b"II*\0\xff\xff\xff\xff".to_vec();
    assert_eq!(read(&png(&SIX, 3, 2, ExtendedColorType::Rgb8, Some(broken))).frame.rgb, SIX);
}

#[test]
fn jpeg_and_webp_are_turned_too() {
    let left = |frame: &Frame| frame.rgb[0];
    // Black on the left, white on the right; turned by a quarter, black is at the top.
    let samples: Vec<u8> = (0..32 * 16).flat_map(|at| [if at % 32 < 16 { 0 } else { 255 }; 3]).collect();
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
    encoder.set_exif_metadata(exif(6, true)).unwrap();
    encoder.write_image(&samples, 32, 16, ExtendedColorType::Rgb8).unwrap();
    let mut webp = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut webp);
    encoder.set_exif_metadata(exif(6, false)).unwrap();
    encoder.write_image(&samples, 32, 16, ExtendedColorType::Rgb8).unwrap();
    for bytes in [jpeg, webp] {
        let frame = read(&bytes).frame;
        assert_eq!((frame.width, frame.height), (16, 32));
        assert!(left(&frame) < 8 && frame.rgb[frame.rgb.len() - 1] > 247);
        let (top, bottom) = frame.rgb.split_at(frame.rgb.len() / 2);
        assert!(top.iter().all(|&value| value < 16) && bottom.iter().all(|&value| value > 239));
    }
}

#[test]
fn grey_alpha_and_sixteen_bits_become_eight_bit_colours() {
    let grey = read(&png(&[0, 7, 255, 128], 2, 2, ExtendedColorType::L8, None));
    assert_eq!(grey.frame.rgb, [0, 0, 0, 7, 7, 7, 255, 255, 255, 128, 128, 128]);
    assert!(!grey.transparent);
    let veiled = read(&png(&[9, 0, 8, 255], 2, 1, ExtendedColorType::La8, None));
    assert_eq!((veiled.frame.rgb.as_slice(), veiled.transparent), (&[9, 9, 9, 8, 8, 8][..], true));
    let veiled = read(&png(&[1, 2, 3, 255, 4, 5, 6, 254], 2, 1, ExtendedColorType::Rgba8, None));
    assert_eq!((veiled.frame.rgb.as_slice(), veiled.transparent), (&[1, 2, 3, 4, 5, 6][..], true));
    let opaque = read(&png(&[1, 2, 3, 255], 1, 1, ExtendedColorType::Rgba8, None));
    assert!(!opaque.transparent);
    // Sixteen bits in the order of this machine.
    let wide = |values: &[u16]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>();
    let values = [0x12ff, 0x1300, 0xffff, 0x0080];
    assert_eq!(read(&png(&wide(&values[..1]), 1, 1, ExtendedColorType::L16, None)).frame.rgb, [0x12; 3]);
    let pixel = read(&png(&wide(&values[..3]), 1, 1, ExtendedColorType::Rgb16, None));
    assert_eq!(pixel.frame.rgb, [0x12, 0x13, 0xff]);
    let pixel = read(&png(&wide(&values), 1, 1, ExtendedColorType::Rgba16, None));
    assert_eq!((pixel.frame.rgb.as_slice(), pixel.transparent), (&[0x12, 0x13, 0xff][..], true));
}

#[test]
fn a_palette_with_few_bits_becomes_colours() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 3, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Two);
    encoder.set_palette(vec![255, 0, 0, 0, 255, 0, 0, 0, 255]);
    encoder.write_header().unwrap().write_image_data(&[0b10_00_01_00]).unwrap();
    assert_eq!(read(&bytes).frame.rgb, [0, 0, 255, 255, 0, 0, 0, 255, 0]);
}

#[test]
fn colours_of_other_profiles_become_srgb() {
    let profile = moxcms::ColorProfile::new_display_p3().encode().unwrap();
    let with = |profile: Vec<u8>, samples: &[u8], color| {
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_icc_profile(profile).unwrap();
        encoder.write_image(samples, 1, 1, color).unwrap();
        read(&bytes).frame.rgb
    };
    // Display P3's red is out of reach of sRGB, a muted one is in it: a well-known pair of values.
    assert_eq!(with(profile.clone(), &[255, 0, 0], ExtendedColorType::Rgb8), [255, 0, 0]);
    let muted = with(profile.clone(), &[200, 100, 100], ExtendedColorType::Rgb8);
    let expected = [215, 93, 97]; // by the matrices of both, in f64
    assert!(muted.iter().zip(expected).all(|(&a, b): (&u8, i32)| (i32::from(a) - b).abs() <= 1), "{muted:?}");
    // A profile of colours says nothing about grey, and a broken one nothing at all.
    assert_eq!(with(profile, &[100], ExtendedColorType::L8), [100; 3]);
    assert_eq!(with(vec![7; 200], &[200, 100, 100], ExtendedColorType::Rgb8), [200, 100, 100]);
}

#[test]
fn what_is_no_picture_is_refused_with_a_reason() {
    assert!(refusal(b"").contains("not a PNG, JPEG or WebP"));
    assert!(refusal(b"GIF89a\x01\0\x01\0\0\0\0;").contains("not a PNG, JPEG or WebP"));
    let good = png(&SIX, 3, 2, ExtendedColorType::Rgb8, None);
    assert!(refusal(&good[..good.len() / 2]).contains("cannot be decoded"));
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg).write_image(&[99; 64 * 64], 64, 64, ExtendedColorType::L8).unwrap();
    assert!(refusal(&jpeg[..jpeg.len() / 2]).contains("cannot be decoded"));
    let folder = tempfile::tempdir().unwrap();
    let error = Picture::read(folder.path()).unwrap_err();
    assert!(error.to_string().contains("is not a file"), "{error}");
    let error = Picture::read(&folder.path().join("nothing")).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error:?}");
}

#[test]
fn a_file_cannot_make_us_allocate_what_it_does_not_hold() {
    // A header that claims a picture of sizes up to 2^31 - 1, and 16-bit RGBA below the limit of pixels.
    let header = |width: u32, height: u32, depth: u8| {
        let fields = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[depth, 6, 0, 0, 0]].concat();
        let chunk = [b"IHDR".as_slice(), &fields].concat();
        let mut crc = !0u32;
        for byte in &chunk {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        let end = (!crc).to_be_bytes();
        [b"\x89PNG\r\n\x1a\n\0\0\0\x0d".as_slice(), &chunk, &end, b"\0\0\0\0IDAT\x35\xaf\x06\x1e"].concat()
    };
    for (width, height, depth) in
        [(0x7fff_ffff, 0x7fff_ffff, 8), (40_000, 1, 8), (32_768, 32_768, 8), (13_000, 13_000, 16)]
    {
        refusal(&header(width, height, depth));
    }
    assert!(refusal(&header(0, 5, 8)).contains("cannot be decoded"));
}

/// Half a JPEG decodes, its other half grey; so does one whose metadata hold a whole thumbnail.
#[test]
fn a_jpeg_that_is_cut_off_is_refused() {
    let samples: Vec<u8> = (0..64 * 48 * 3).map(|at| (at * 37 % 251) as u8).collect();
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg).write_image(&samples, 64, 48, ExtendedColorType::Rgb8).unwrap();
    let thumbnail = [&[0xff, 0xe1, 0, 8], b"ab\xff\xd9cd".as_slice()].concat();
    let with_thumbnail = [&jpeg[..2], &thumbnail, &jpeg[2..]].concat();
    for whole in [&jpeg, &with_thumbnail] {
        read(whole);
        for kept in [whole.len() / 2, whole.len() - 300, whole.len() - 2] {
            assert!(refusal(&whole[..kept]).contains("is cut off"), "{kept}");
        }
        // Some cameras pad their files.
        read(&[&whole[..], &[0; 99]].concat());
    }
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let samples: Vec<u8> = (0..24 * 17 * 3u32).map(|at| (at * 7 % 251) as u8).collect();
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg).write_image(&samples, 24, 17, ExtendedColorType::Rgb8).unwrap();
    let mut webp = Vec::new();
    WebPEncoder::new_lossless(&mut webp).write_image(&samples, 24, 17, ExtendedColorType::Rgb8).unwrap();
    let png = png(&samples, 24, 17, ExtendedColorType::Rgb8, Some(exif(6, true)));
    let mut state = 1u32;
    for good in [jpeg, webp, png] {
        for round in 0..150 {
            let mut bad = good.clone();
            for _ in 0..1 + round % 8 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = state as usize % bad.len();
                bad[at] ^= (state >> 24) as u8 | 1;
            }
            if round % 3 == 0 {
                bad.truncate(state as usize % bad.len());
            }
            let (_folder, path) = file(&bad);
            if let Ok(picture) = Picture::read(&path) {
                let frame = picture.frame;
                assert_eq!(frame.rgb.len(), (frame.width * frame.height * 3) as usize);
            }
        }
    }
}

/// A gradient with edges.
fn scene(width: u32, height: u32) -> Frame {
    let pixel = |at: u32| {
        let (x, y) = (at % width, at / width);
        let edge = if (x / 9 + y / 13) % 2 == 0 { 0 } else { 60 };
        [(x * 190 / width) as u8 + edge, (y * 190 / height) as u8 + edge, 100 + edge]
    };
    Frame { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
}

/// Mean squared difference of the part that both have.
fn difference(a: &Frame, b: &Frame) -> f64 {
    let (width, height) = (a.width.min(b.width) as usize, a.height.min(b.height) as usize);
    let row = |frame: &Frame, y: usize| {
        let start = y * frame.width as usize * 3;
        frame.rgb[start..start + width * 3].to_vec()
    };
    let rows = (0..height).flat_map(|y| row(a, y).into_iter().zip(row(b, y)));
    rows.map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>() / (width * height * 3) as f64
}

#[test]
fn h264_harms_a_picture_as_much_as_asked() {
    let original = scene(131, 77);
    assert_eq!(original.recompressed(0).unwrap(), original);
    let fine = original.recompressed(18).unwrap();
    assert_eq!((fine.width, fine.height), (130, 76));
    let harm: Vec<f64> =
        [18, 33, 45].iter().map(|&crf| difference(&original, &original.recompressed(crf).unwrap())).collect();
    assert!(harm[0] < 30.0 && harm[0] * 1.5 < harm[1] && harm[1] * 1.5 < harm[2], "{harm:?}");
    assert_eq!(fine, original.recompressed(18).unwrap(), "the same picture gives the same bytes");
    // Flat colours come back as they are, to the precision of 4:2:0 video.
    for colour in [[255, 255, 255], [0, 0, 0], [200, 30, 90], [12, 200, 7]] {
        let flat = Frame { width: 32, height: 32, rgb: colour.repeat(32 * 32) };
        let back = flat.recompressed(20).unwrap();
        for (ours, meant) in back.rgb.chunks(3).flatten().zip(colour.iter().cycle()) {
            assert!(ours.abs_diff(*meant) <= 3, "{colour:?} became {ours}");
        }
    }
}

#[test]
fn pictures_of_any_size_go_through_h264() {
    for (width, height) in [(1, 1), (1, 40), (2, 2), (3, 50), (15, 17), (2161, 6), (4, 2180)] {
        let mut original = scene(width, height);
        // Grey: colours that change from pixel to pixel do not survive 4:2:0, whatever the codec.
        original.rgb.chunks_mut(3).for_each(|pixel| pixel.fill(pixel[0]));
        let back = original.recompressed(24).unwrap();
        if width < 2 || height < 2 {
            assert_eq!(back, original, "{width}x{height}");
            continue;
        }
        assert_eq!((back.width, back.height), (width / 2 * 2, height / 2 * 2));
        let harm = difference(&original, &back);
        assert!(harm < 50.0, "{width}x{height}: {harm}");
    }
    let broken = Frame { width: 8, height: 8, rgb: vec![0; 5] };
    assert!(broken.recompressed(33).is_err());
    assert!(broken.cover(32, 32).is_empty());
}

#[test]
fn covering_keeps_the_middle() {
    // Four columns of which the middle two are kept.
    let frame = Frame { width: 4, height: 2, rgb: [[0; 3], [50; 3], [150; 3], [250; 3]].concat().repeat(2) };
    assert_eq!(frame.cover(2, 2), [50.0, 50.0, 50.0, 150.0, 150.0, 150.0].repeat(2));
    assert_eq!(frame.cover(1000, 1).len(), 3000);
}
