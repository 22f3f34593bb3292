//! `ltx bench`, `ltx devices`, and what chooses the CPU's threads and instructions.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::Path;
use std::process::Command;

use program::{fail, fixtures, frames, ltx, succeed};
use serde_json::Value;

/// An instruction set that this machine cannot have.
const FOREIGN: &str = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };

fn with(mut command: Command, variable: &str, value: &str) -> Command {
    command.env(variable, value);
    command
}

/// A run of one work on the CPU, as short as it can be.
fn bench(work: &str) -> Command {
    ltx(&["bench", work, "--json", "--seconds", "0", "--device", "cpu"])
}

fn json(command: Command) -> Value {
    serde_json::from_str(&succeed(command)).unwrap()
}

#[test]
fn the_list_names_every_work() {
    let list = succeed(ltx(&["bench", "--list"]));
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for name in [
        "linear-m256-n4096",
        "linear-m1024-n16384",
        "attention-1024",
        "attention-4096",
        "conv3d-512",
        "video-decode-128x128x17",
        "dit-block-1024",
        "vocoder-1s",
        "start",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let json = succeed(ltx(&["bench", "--list", "--json"]));
    let works = json.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(works.map(|work| work["work"].as_str().unwrap().to_string()).collect::<Vec<_>>(), names);
}

#[test]
fn an_unknown_work_is_refused_before_any_is_run() {
    let (code, said) = fail(ltx(&["bench", "linear-m1-n4096", "liner"]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("`liner`") && said.contains("attention-1024") && said.contains("start"), "{said}");
    let (code, said) = fail(ltx(&["bench", "linear-m1-n4096", "--device", "cpu", "--dtype", "f16"]));
    assert!(code == 2 && said.contains("f16"), "{said}");
    for seconds in ["-1", "NaN", "1e9"] {
        let (code, said) = fail(ltx(&["bench", "peak", &format!("--seconds={seconds}")]));
        assert!(code == 2 && said.contains("--seconds"), "{said}");
    }
}

#[test]
fn works_are_measured_as_json() {
    let mut command = bench("linear-m1-n4096");
    command.args(["--threads", "1", "--dtype", "f32"]);
    let measured = json(command);
    assert_eq!(measured["work"], "linear-m1-n4096");
    assert_eq!(measured["threads"], 1);
    assert_eq!(measured["dtype"], "f32");
    let (seconds, gflops) =
        (measured["seconds_median"].as_f64().unwrap(), measured["gflops"].as_f64().unwrap());
    assert!(measured["runs"].as_u64().unwrap() >= 3);
    let operations = 2.0 * 4096.0 * 4096.0;
    assert!((seconds * gflops * 1e9 / operations - 1.0).abs() < 1e-6, "{measured}");
    assert!(measured["peak_share"].as_f64().unwrap() > 0.0);

    let memory = json(bench("memory"));
    assert!(memory["gb_per_second"].as_f64().unwrap() > 0.0 && memory["gflops"].is_null(), "{memory}");
    let start = json(bench("start"));
    assert!(start["seconds_median"].as_f64().unwrap() > 0.0, "{start}");
}

#[test]
fn a_line_for_people_says_what_was_measured() {
    let said =
        succeed(ltx(&["bench", "linear-m1-n4096", "--seconds", "0", "--device", "cpu", "--threads", "2"]));
    for part in ["linear-m1-n4096", "ms", "GFLOP/s", "% of peak", "bf16", "2 threads"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn the_environment_chooses_threads_and_instructions() {
    let portable = json(with(bench("linear-m1-n4096"), "LTX_ISA", "portable"));
    assert_eq!(portable["backend"], "portable");
    assert_eq!(json(with(bench("linear-m1-n4096"), "LTX_KERNELS", "off"))["backend"], "mlx");
    assert_eq!(json(with(bench("memory"), "LTX_THREADS", "3"))["threads"], 3);
    let mut option = with(bench("memory"), "LTX_THREADS", "3");
    option.args(["--threads", "2"]);
    assert_eq!(json(option)["threads"], 2);

    let devices = succeed(with(ltx(&["devices", "--threads", "2"]), "LTX_ISA", "portable"));
    assert!(devices.contains("instruction set: portable (available: portable"), "{devices}");
    assert!(devices.contains("threads: 2"), "{devices}");
    assert!(succeed(with(ltx(&["devices"]), "LTX_KERNELS", "off")).contains("instruction set: off"));
}

#[test]
fn what_the_environment_cannot_mean_is_refused() {
    let cases = [
        ("LTX_ISA", "avx1024", "avx1024"),
        ("LTX_ISA", FOREIGN, FOREIGN),
        ("LTX_KERNELS", "maybe", "LTX_KERNELS=maybe"),
        ("LTX_THREADS", "many", "LTX_THREADS=many"),
        ("LTX_THREADS", "0", "0 threads"),
        ("LTX_THREADS", "100000", "100000 threads"),
    ];
    for (variable, value, named) in cases {
        for command in [ltx(&["devices"]), bench("memory")] {
            let (code, said) = fail(with(command, variable, value));
            assert!(code == 2 && said.contains(named) && said.contains("hint:"), "{code} {said}");
        }
    }
    let (_, said) = fail(with(ltx(&["devices"]), "LTX_ISA", "avx1024"));
    assert!(said.contains("portable"), "the names that there are: {said}");
}

/// One tiny clip in f32, with one variable set.
fn clip(variable: &str, value: &str, folder: &Path) -> Vec<Vec<u8>> {
    let pictures = folder.join(format!("{value}/"));
    let mut command =
        ltx(&["generate", "an owl in the rafters", "--device", "cpu", "--dtype", "f32", "--quiet"]);
    command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
    command.arg("--gemma").arg(fixtures().join("gemma3"));
    command.arg("--spatial-upsampler").arg(fixtures().join("upsamplers/2.3-spatial-x2.safetensors"));
    command.args(["--recipe", "distilled", "--height", "64", "--width", "128", "--frames", "9"]);
    command.arg("--output").arg(format!("{}/", pictures.display()));
    succeed(with(command, variable, value));
    frames(&pictures)
}

#[test]
fn whatever_computes_a_clip_it_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let expected = clip("LTX_KERNELS", "off", folder.path());
    assert_eq!(expected.len(), 9);
    for (variable, value) in [("LTX_KERNELS", "on"), ("LTX_ISA", "portable"), ("LTX_THREADS", "3")] {
        let ours = clip(variable, value, folder.path());
        assert_eq!(ours.len(), expected.len());
        let pairs = ours.iter().zip(&expected).flat_map(|(ours, expected)| ours.iter().zip(expected));
        let worst = pairs.map(|(ours, expected)| ours.abs_diff(*expected)).max().unwrap();
        assert!(worst <= 2, "{variable}={value}: a pixel differs by {worst}");
    }
}
