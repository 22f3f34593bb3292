//! Sound that the AAC encoder made, as Symphonia's decoder hears it.

use super::aac;
use super::tests::{decode_sound, noise, sine, snr};

/// The configuration and the access units of a sound that comes `part` samples at a time.
fn encode(left: &[f32], right: &[f32], sample_rate: u32, part: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut encoder = aac::Encoder::new(sample_rate).unwrap();
    let mut units = Vec::new();
    for (left, right) in left.chunks(part).zip(right.chunks(part)) {
        units.extend(encoder.push(left, right));
    }
    let config = encoder.config();
    units.extend(encoder.finish());
    (config, units)
}

/// Speech-like, noisy, loud and sudden sound at every rate: nothing may come back broken.
#[test]
fn aac_survives_all_kinds_of_sound() {
    for sample_rate in [16_000, 22_050, 24_000, 32_000, 44_100, 48_000] {
        let rate = f64::from(sample_rate);
        let hiss = |seed| noise(seed).map(|n| n as f32 / 127.5 - 1.0);
        let beat = |i: usize| (-(i as f64 % (rate / 3.0)) / (rate / 100.0)).exp() as f32;
        let count = 12_011;
        let full = sine(997.0, 1.0, sample_rate, count);
        let kinds: [(&str, f64, Vec<f32>, Vec<f32>); 5] = [
            ("noise, unlike in each ear", 11.0, hiss(1).take(count).collect(), hiss(2).take(count).collect()),
            ("noise, alike in both", 17.0, hiss(3).take(count).collect(), hiss(3).take(count).collect()),
            (
                "beats",
                25.0,
                hiss(4).take(count).enumerate().map(|(i, n)| n * beat(i)).collect(),
                vec![0.0; count],
            ),
            ("as loud as can be, out of phase", 35.0, full.clone(), full.iter().map(|s| -s).collect()),
            (
                "a whisper",
                20.0,
                sine(300.0, 0.001, sample_rate, count),
                sine(1700.0, 0.001, sample_rate, count),
            ),
        ];
        for (what, expected, left, right) in kinds {
            let (config, units) = encode(&left, &right, sample_rate, count);
            assert!(units.iter().all(|unit| unit.len() <= 2 * 6144 / 8), "{what}: a unit is too large");
            let decoded = decode_sound(&config, &units);
            let both = |[left, right]: [&[f32]; 2]| [&left[..count], &right[..count]].concat();
            let snr = snr(&both([&left, &right]), &both([&decoded[0], &decoded[1]]));
            assert!(snr > expected, "{what} at {sample_rate} Hz: {snr:.1} dB");
        }
    }
    assert!(aac::Encoder::new(11_025).is_none());
}

/// Every length around whole frames, in parts of every kind: the units are those of the whole, and of earlier versions.
#[test]
fn aac_of_parts_is_that_of_the_whole() {
    // Bursts a frame and more apart, so that windows of all kinds follow each other.
    let sound = |seed: u32| -> Vec<f32> {
        let loud = |i: usize| if i / 700 % 9 == 5 || i / 4500 == 2 { 1.0 } else { 1.0 / 256.0 };
        noise(seed).take(16_384).enumerate().map(|(i, n)| (n as f32 / 128.0 - 1.0) * loud(i)).collect()
    };
    let (left, right) = (sound(6), sound(7));
    for length in [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 3648, 5000, 16_384] {
        let (left, right) = (&left[..length], &right[..length]);
        let (_, whole) = encode(left, right, 48_000, length.max(1));
        assert_eq!(whole.len(), length.div_ceil(1024) + 1);
        for part in [1, 7, 1000, 1024, 1025, 4096] {
            assert!(encode(left, right, 48_000, part).1 == whole, "{length} samples, {part} at a time");
        }
    }
    let bytes = encode(&left, &right, 48_000, 4096).1.concat();
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    assert_eq!((bytes.len(), sum), (13_695, 0xd488_8d2e_9e13_a6ae), "the bytes are others than they were");
}

#[test]
fn aac_keeps_an_attack_out_of_the_silence_before_it() {
    for attack in [9_000, 9_300, 9_600, 9_999] {
        let sound: Vec<f32> = noise(5)
            .take(20_000)
            .enumerate()
            .map(|(i, n)| if i < attack { 0.0 } else { n as f32 / 128.0 - 1.0 })
            .collect();
        let (config, units) = encode(&sound, &sound, 48_000, 999);
        let [left, _] = decode_sound(&config, &units);
        let early = left[..attack - 256].iter().fold(0f32, |loudest, s| loudest.max(s.abs()));
        assert!(early < 1e-4, "attack at {attack}: {early} is heard more than 5 ms ahead");
    }
}

#[test]
fn aac_of_silence_is_silent_and_small() {
    let (config, units) = encode(&[0.0; 5000], &[0.0; 5000], 48_000, 5000);
    assert!(units.iter().all(|unit| unit.len() < 16));
    assert!(decode_sound(&config, &units).iter().flatten().all(|&s| s == 0.0));
}
