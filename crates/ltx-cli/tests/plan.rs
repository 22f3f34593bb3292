//! What the real program tells of memory and time before it runs, and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::process::Command;

use program::{fail, fixtures, ltx, succeed};
use serde_json::Value;

/// A command with the options of a small clip.
fn small(command: &str, options: &[&str]) -> Command {
    let mut command = ltx(&[command, "a boat", "--device", "cpu", "--recipe", "distilled"]);
    command.args(["--width", "128", "--height", "64", "--frames", "17"]);
    command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
    command.arg("--gemma").arg(fixtures().join("gemma3"));
    command.arg("--spatial-upsampler").arg(fixtures().join("upsamplers/2.3-spatial-x2.safetensors"));
    command.args(options);
    command
}

const PHASES: [&str; 6] =
    ["encode text", "denoise at half size", "upsample", "refine", "decode video", "decode audio"];

#[test]
fn a_plan_tells_every_phase_and_runs_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = small("plan", &["--no-cache", "--memory", "4"]);
    command.current_dir(&folder);
    let table = succeed(command);
    for phase in PHASES {
        assert!(
            table.lines().any(|line| line.starts_with(phase) && line.contains("GiB")),
            "{phase}\n{table}"
        );
    }
    assert!(table.contains("it takes about 0."), "{table}");
    assert!(std::fs::read_dir(&folder).unwrap().next().is_none(), "nothing is written");

    let json = succeed(small("plan", &["--no-cache", "--memory", "4", "--json", "--quantize", "auto"]));
    let plan: Value = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> =
        plan["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, PHASES);
    let bytes = |phase: &Value| phase["memory_bytes"].as_u64().unwrap();
    let largest = plan["phases"].as_array().unwrap().iter().map(bytes).max();
    assert_eq!(plan["peak_memory_bytes"].as_u64(), largest);
    assert_eq!(plan["available_bytes"], 4_000_000_000u64);
    assert!(plan["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(plan["settings"]["quantize"], Value::Null, "all fits as it is");
}

#[test]
fn what_cannot_fit_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("clip.mp4");
    // The helper says --no-cache to generate itself.
    for (command, cache) in [("plan", &["--no-cache"][..]), ("generate", &[])] {
        let mut command = small(command, cache);
        command.args(["--memory", "0.02", "--output"]).arg(&output);
        let (code, said) = fail(command);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("GB of memory, and there are 0.02 GB"), "{said}");
        assert!(said.contains("hint: "), "{said}");
    }
    assert!(std::fs::read_dir(&folder).unwrap().next().is_none());
    for wrong in ["0", "-3", "lots"] {
        assert_eq!(fail(small("plan", &[&format!("--memory={wrong}")])).0, 2);
    }
}

#[test]
fn a_text_encoder_that_cannot_fit_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("prompt.safetensors");
    let gemma = fixtures().join("gemma3");
    let model = fixtures().join("2.3/model.safetensors");
    for command in ["enhance", "encode-text"] {
        let run = |memory: &str| {
            let mut run = ltx(&[command, "a boat", "--device", "cpu", "--memory", memory]);
            run.arg("--gemma").arg(&gemma);
            if command == "encode-text" {
                run.arg("--model").arg(&model).arg("--output").arg(&output);
            }
            run
        };
        let (code, said) = fail(run("0.001"));
        assert!(code == 1 && said.contains("there are 0.00 GB") && said.contains("--quantize"), "{said}");
        assert!(!output.exists());
        succeed(run("4"));
    }
    assert!(output.exists());
}

#[test]
fn a_run_says_what_it_will_take_and_what_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("clip.mp4");
    let run = |options: &[&str]| {
        let mut command = small("generate", options);
        command.arg("--output").arg(&output);
        command.output().unwrap()
    };
    let plain = run(&["--timings", "--memory", "4"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    assert!(text(&plain.stderr).contains("note: it takes about"), "{}", text(&plain.stderr));
    assert!(text(&plain.stdout).contains("GiB, forecast "), "{}", text(&plain.stdout));
    let whole = std::fs::read(&output).unwrap();

    let json = run(&["--json", "--stream"]);
    let told: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(told["forecast_memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(whole == std::fs::read(&output).unwrap(), "streamed blocks make another clip");
}

#[test]
fn latents_are_decoded_in_tiles_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = small("generate", &["--skip-vae", "--dummy-text", "--output"]);
    command.arg(folder.path().join("clip.mp4"));
    succeed(command);
    let latents = folder.path().join("clip_latent.npz");
    let decode = |memory: &str| {
        let mut command = ltx(&["decode", "--device", "cpu", "--memory", memory]);
        command.arg(&latents);
        command
    };
    let (code, said) = fail(decode("0.02"));
    assert!(code == 1 && said.contains("--tile-size"), "{said}");
    assert!(!folder.path().join("clip.mp4").exists());
    succeed(decode("4"));
    assert!(folder.path().join("clip.mp4").exists());
}
