//! Every component against the official code: all goldens in `fixtures/goldens`, one test per component and generation.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::checkpoint::Checkpoint;
use ltx::verify::{Context, Golden, verify};
use mlx::Dtype;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The device that `LTX_TEST_DEVICE` names: `cpu` (the default) or `gpu`.
fn choose_device() {
    let device = match std::env::var("LTX_TEST_DEVICE").as_deref() {
        Ok("gpu") => mlx::device::Device::Gpu,
        Ok("cpu") | Err(_) => mlx::device::Device::Cpu,
        Ok(other) => panic!("LTX_TEST_DEVICE is `{other}`, not cpu or gpu"),
    };
    mlx::device::set(device).unwrap();
}

/// Runs every golden whose name begins with `generation-component-`, and names the first tensor that differs.
fn check(generation: &str, component: &str) {
    choose_device();
    let prefix = format!("{generation}-{component}-");
    let mut goldens: Vec<PathBuf> = std::fs::read_dir(fixtures().join("goldens"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
        .collect();
    goldens.sort();
    assert!(!goldens.is_empty(), "no golden {prefix}*");
    let mut failures = Vec::new();
    for path in goldens {
        let models: Vec<PathBuf> =
            Golden::open(&path).unwrap().checkpoints().iter().map(|name| fixtures().join(name)).collect();
        let checkpoint = Checkpoint::open(&models).unwrap();
        let report = verify(&path, &checkpoint, &Context { dtype: Dtype::F32 })
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(report.comparisons.iter().any(|comparison| comparison.name.starts_with("out.")));
        if let Some(first) = report.comparisons.iter().find(|comparison| !comparison.passed) {
            let (index, ours, reference) = &first.at;
            failures.push(format!(
                "{}: {} relative {:.3e} > {:.0e}; at {index:?} {ours}, reference {reference}",
                path.display(),
                first.name,
                first.relative,
                report.tolerance
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! parity {
    ($($name:ident: $generation:literal $component:literal;)*) => { $(
        #[test]
        fn $name() {
            check($generation, $component);
        }
    )* };
}

parity! {
    gemma: "gemma3" "gemma";
    mel: "any" "mel";
    schedule: "any" "schedule";
    cover: "any" "cover";
    conditioning: "any" "conditioning";
    connector_2_0: "2.0" "connector";
    connector_2_3: "2.3" "connector";
    dit_2_0: "2.0" "dit";
    dit_2_3: "2.3" "dit";
    video_encoder_2_0: "2.0" "video_encoder";
    video_encoder_2_3: "2.3" "video_encoder";
    video_decoder_2_0: "2.0" "video_decoder";
    video_decoder_2_3: "2.3" "video_decoder";
    video_encoder_rare: "rare" "video_encoder";
    video_decoder_rare: "rare" "video_decoder";
    audio_encoder_2_0: "2.0" "audio_encoder";
    audio_encoder_2_3: "2.3" "audio_encoder";
    audio_decoder_2_0: "2.0" "audio_decoder";
    audio_decoder_2_3: "2.3" "audio_decoder";
    vocoder_2_0: "2.0" "vocoder";
    vocoder_2_3: "2.3" "vocoder";
    upsampler_2_0: "2.0" "upsampler";
    upsampler_2_3: "2.3" "upsampler";
    denoise_2_0: "2.0" "denoise";
    denoise_2_3: "2.3" "denoise";
}
