//! The audio networks beyond their goldens: lengths, causality, and configurations and inputs that must be refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::audio_vae::{AudioDecoder, AudioEncoder, Mel};
use ltx::checkpoint::{Checkpoint, Component, Config, Weights};
use ltx::trace::Trace;
use ltx::vocoder::Vocoder;
use mlx::{Array, Dtype};

fn model(generation: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(generation).join("model.safetensors")
}

fn component(generation: &str, component: Component) -> (Weights, Config) {
    Checkpoint::open(&[model(generation)]).unwrap().component(component, Dtype::F32).unwrap()
}

/// Numbers that look like a normalized latent or spectrogram.
fn waves(shape: &[i32]) -> Array {
    let size: i32 = shape.iter().product();
    let values: Vec<f32> = (0..size).map(|index| (index as f32 * 0.37).sin() * 1.5).collect();
    Array::from_slice(&values, shape).unwrap()
}

fn assert_close(ours: &Array, expected: &Array) {
    assert_eq!(ours.shape(), expected.shape());
    for (a, b) in ours.to_f32().unwrap().iter().zip(expected.to_f32().unwrap()) {
        assert!((a - b).abs() < 1e-4, "{a} is not {b}");
    }
}

#[test]
fn a_shorter_latent_decodes_to_the_beginning_of_a_longer_one() {
    let (weights, config) = component("2.3", Component::AudioDecoder);
    let decoder = AudioDecoder::load(&weights, &config).unwrap();
    let parameters = config.at("audio_vae").unwrap().at("model").unwrap().at("params").unwrap();
    let channels = parameters.at("ddconfig").unwrap().i32("z_channels").unwrap();
    let latent = waves(&[1, channels, 5, 16]);
    let whole = decoder.forward(&latent).unwrap();
    for frames in 1..=5 {
        let mel = decoder.forward(&latent.slice(2, 0..frames).unwrap()).unwrap();
        assert_close(&mel, &whole.slice(2, 0..4 * frames - 3).unwrap());
    }
}

#[test]
fn the_encoder_makes_a_latent_frame_of_four_mel_frames_and_never_looks_ahead() {
    let (weights, config) = component("2.0", Component::AudioEncoder);
    let encoder = AudioEncoder::load(&weights, &config).unwrap();
    let mel = waves(&[1, 2, 17, 64]);
    let whole = encoder.forward(&mel).unwrap();
    for (frames, latent_frames) in [(1, 1), (2, 1), (5, 2), (6, 2), (9, 3), (16, 4), (17, 5)] {
        let latent = encoder.forward(&mel.slice(2, 0..frames).unwrap()).unwrap();
        assert_eq!(latent.shape(), [1, whole.dim(1), latent_frames, 16], "{frames} frames");
        let complete = (frames + 3) / 4; // a later latent frame would see zeros instead of what was cut off
        assert_close(&latent.slice(2, 0..complete).unwrap(), &whole.slice(2, 0..complete).unwrap());
    }
}

#[test]
fn a_mel_frame_is_a_hundredth_of_a_second() {
    for (generation, sample_rate) in [("2.0", 24_000), ("2.3", 48_000)] {
        let (weights, config) = component(generation, Component::Vocoder);
        let vocoder = Vocoder::load(&weights, &config).unwrap();
        assert_eq!(vocoder.sample_rate(), sample_rate);
        for (batch, frames) in [(1, 1), (2, 3)] {
            let mel = waves(&[batch, 2, frames, 64]);
            let waveform = vocoder.forward(&mel, &mut Trace::off()).unwrap();
            assert_eq!(waveform.shape(), [batch, 2, frames * sample_rate as i32 / 100]);
            assert!(waveform.to_f32().unwrap().iter().all(|sample| sample.abs() <= 1.0));
        }
    }
}

#[test]
fn inputs_of_another_shape_are_refused() {
    let (weights, config) = component("2.3", Component::AudioDecoder);
    let decoder = AudioDecoder::load(&weights, &config).unwrap();
    let (weights, config) = component("2.3", Component::AudioEncoder);
    let encoder = AudioEncoder::load(&weights, &config).unwrap();
    let (weights, config) = component("2.3", Component::Vocoder);
    let vocoder = Vocoder::load(&weights, &config).unwrap();
    for shape in [&[64][..], &[1, 2, 5, 63], &[1, 3, 5, 64], &[1, 1, 2, 5, 64]] {
        assert!(decoder.forward(&waves(shape)).is_err(), "{shape:?}");
        assert!(encoder.forward(&waves(shape)).is_err(), "{shape:?}");
        assert!(vocoder.forward(&waves(shape), &mut Trace::off()).is_err(), "{shape:?}");
    }
}

/// The configuration in the header with the value at `pointer` replaced.
fn changed(config: &Path, pointer: &str, value: serde_json::Value) -> Config {
    let file = ltx::checkpoint::File::open(config).unwrap();
    let mut json = file.config().unwrap();
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    Config::new(config, json)
}

#[test]
fn configurations_that_nobody_published_are_refused_by_name() {
    use serde_json::json;
    let network = "/audio_vae/model/params/ddconfig";
    let huge = json!(2_000_000_000);
    let cases = [
        (Component::AudioDecoder, format!("{network}/norm_type"), json!("group")),
        (Component::AudioDecoder, format!("{network}/causality_axis"), json!("width")),
        (Component::AudioDecoder, format!("{network}/attn_resolutions"), json!([64])),
        (Component::AudioDecoder, format!("{network}/mid_block_add_attention"), json!(true)),
        (Component::AudioDecoder, format!("{network}/ch_mult"), json!([1, 2])),
        (Component::AudioDecoder, format!("{network}/ch_mult"), json!([1, 2, 2_000_000_000])),
        (Component::AudioDecoder, format!("{network}/mel_bins"), json!(63)),
        (Component::AudioEncoder, format!("{network}/double_z"), json!(false)),
        (Component::Vocoder, "/vocoder/vocoder/resblock".into(), json!("2")),
        (Component::Vocoder, "/vocoder/vocoder/activation".into(), json!("relu")),
        (Component::Vocoder, "/vocoder/vocoder/stereo".into(), json!(false)),
        (Component::Vocoder, "/vocoder/vocoder/upsample_rates".into(), json!([5, 2, 2, 2, 2, 0])),
        (Component::Vocoder, "/vocoder/vocoder/upsample_rates".into(), json!([1000, 1000, 1000, 1000])),
        (Component::Vocoder, "/vocoder/vocoder/upsample_kernel_sizes".into(), json!([11, 4])),
        (Component::Vocoder, "/vocoder/vocoder/resblock_kernel_sizes".into(), json!([4, 7])),
        (Component::Vocoder, "/vocoder/vocoder/resblock_dilation_sizes".into(), json!([[1, 3, 5], [1, "a"]])),
        (Component::Vocoder, "/vocoder/vocoder/upsample_initial_channel".into(), json!(8)),
        (Component::Vocoder, "/vocoder/bwe/input_sampling_rate".into(), json!(0)),
        (Component::Vocoder, "/vocoder/bwe/output_sampling_rate".into(), json!(44100)),
        (Component::Vocoder, "/vocoder/bwe/apply_final_activation".into(), json!(true)),
        (Component::Vocoder, "/vocoder/bwe/win_size".into(), json!(256)),
        (Component::Vocoder, "/vocoder/bwe/n_fft".into(), huge.clone()),
        (Component::Vocoder, "/vocoder/bwe/upsample_rates".into(), json!([6, 5, 2, 2, 3])),
        (Component::Vocoder, "/vocoder/bwe/num_mels".into(), huge),
    ];
    for (part, pointer, value) in cases {
        let (weights, _) = component("2.3", part);
        let config = changed(&model("2.3"), &pointer, value.clone());
        let error = match part {
            Component::AudioDecoder => AudioDecoder::load(&weights, &config).err(),
            Component::AudioEncoder => AudioEncoder::load(&weights, &config).err(),
            _ => Vocoder::load(&weights, &config).err(),
        };
        let error = error.unwrap_or_else(|| panic!("{pointer} = {value} was accepted"));
        assert!(matches!(error, ltx::Error::File { .. }), "{pointer} = {value}: {error:?}");
    }
}

#[test]
fn a_front_end_that_cannot_be_is_refused() {
    use serde_json::json;
    for (pointer, value) in [
        ("/audio_vae/preprocessing/stft/filter_length", json!(1000)),
        ("/audio_vae/preprocessing/stft/win_length", json!(512)),
        ("/audio_vae/preprocessing/stft/hop_length", json!(0)),
        ("/audio_vae/model/params/sampling_rate", json!(0)),
    ] {
        let error = Mel::load(&changed(&model("2.0"), pointer, value)).err().unwrap();
        assert!(matches!(error, ltx::Error::File { .. }), "{pointer}: {error:?}");
    }
}
