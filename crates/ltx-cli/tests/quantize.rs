//! `ltx quantize`, `--quantize`, and what is said of packed files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::Path;

use program::{fail, fixtures, ltx, succeed};

fn quantize(input: &Path, output: &Path, extra: &[&str]) -> std::process::Command {
    let mut command = ltx(&["quantize"]);
    command.arg(input).arg(output).args(extra);
    command
}

#[test]
fn a_file_is_packed_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (fixtures().join("packs/bf16.safetensors"), folder.path().join("4.safetensors"));
    let said = succeed(quantize(&input, &output, &["--bits", "4", "--group", "32"]));
    assert!(said.contains("28 matrices packed in 4 bits in groups of 32"), "{said}");
    let inspect = |path: &Path| {
        let mut command = ltx(&["inspect", "--json"]);
        command.arg(path);
        serde_json::from_str::<serde_json::Value>(&succeed(command)).unwrap()["components"][0].clone()
    };
    let (before, after) = (inspect(&input), inspect(&output));
    assert_eq!(before["parameters"], after["parameters"]);
    assert!(after["bytes"].as_u64() < before["bytes"].as_u64());
    assert!(after["dtypes"]["4 bits in groups of 32"].as_u64().unwrap() > 10_000, "{after}");
    assert_eq!((&after["problem"], &after["unread"]), (&serde_json::json!(null), &serde_json::json!([])));
}

#[test]
fn what_cannot_be_packed_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let bf16 = fixtures().join("packs/bf16.safetensors");
    let out = folder.path().join("out.safetensors");
    let copy = folder.path().join("in.safetensors");
    std::fs::copy(&bf16, &copy).unwrap();
    let cases: [(&Path, &Path, &[&str], i32, &str); 6] = [
        (&bf16, &out, &["--group", "48"], 2, "32, 64 or 128"),
        (&bf16, &out, &["--bits", "none"], 2, "packs nothing"),
        (&bf16, &out, &["--bits", "nvfp4", "--group", "128"], 2, "groups of 16"),
        (&copy, &copy, &[], 1, "is the model itself"),
        (&fixtures().join("packs/mlx.safetensors"), &out, &[], 1, "packed already"),
        (&folder.path().join("none.safetensors"), &out, &[], 1, "cannot be opened"),
    ];
    for (input, output, extra, code, words) in cases {
        let (actual, said) = fail(quantize(input, output, extra));
        assert_eq!(actual, code, "{extra:?}: {said}");
        assert!(said.contains(words) && said.contains("hint: "), "{said}");
    }
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&bf16).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn clips_of_packed_models() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, extra: &[&str]| {
        let latents = folder.path().join(name);
        let mut command =
            ltx(&["generate", "a boat", "--dummy-text", "--skip-vae", "--device", "cpu", "--steps", "2"]);
        command.args([
            "--recipe",
            "one-stage",
            "--width",
            "64",
            "--height",
            "64",
            "--frames",
            "9",
            "--audio-stg-scale",
            "0",
            "--stg-scale",
            "0",
        ]);
        command.arg("--save-latents").arg(&latents);
        command.arg("--output").arg(folder.path().join(format!("{name}.mp4"))).args(extra);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (std::fs::read(latents).unwrap(), said)
    };
    let bf16 = fixtures().join("packs/bf16.safetensors").display().to_string();
    let (whole, _) = run("whole", &["--model", &bf16]);
    let (packed, said) = run("packed", &["--model", &bf16, "--quantize", "8"]);
    assert!(said.contains("matrices of the transformer are packed in 8 bits in groups of 64"), "{said}");
    assert_ne!(whole, packed);
    let (streamed, said) = run("streamed", &["--model", &bf16, "--quantize", "int8", "--stream"]);
    assert!(said.contains("ltx quantize"), "{said}");
    assert_eq!(packed, streamed);
    let (none, _) = run("none", &["--model", &bf16, "--quantize", "none"]);
    assert_eq!(whole, none);
    let file = folder.path().join("8.safetensors");
    succeed(quantize(Path::new(&bf16), &file, &["--quiet"]));
    let (offline, said) = run("offline", &["--model", file.to_str().unwrap(), "--quantize", "4"]);
    assert!(said.contains("packed already"), "{said}");
    assert_eq!(packed, offline);
}
