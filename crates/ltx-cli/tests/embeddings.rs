//! Encoded prompts through the real binary: files in both formats, the cache, and what stands in for the real thing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::{Path, PathBuf};
use std::process::Command;

use program::{fail, fixtures, ltx, succeed};
use serde_json::Value;

const SIZE: [&str; 6] = ["--height", "64", "--width", "96", "--frames", "9"];

fn model() -> PathBuf {
    fixtures().join("2.3/model.safetensors")
}

/// A distilled model: its name is the only cue.
fn distilled(folder: &Path) -> PathBuf {
    let path = folder.join("distilled.safetensors");
    if !path.exists() {
        std::fs::copy(model(), &path).unwrap();
    }
    path
}

/// One stage of two steps with a distilled model, whatever else a test wants.
fn generate(folder: &Path, output: &str, extra: &[&str]) -> Command {
    let mut command = ltx(&["generate", "--device", "cpu", "--steps", "2", "--recipe", "one-stage"]);
    command.args(SIZE).arg("--model").arg(distilled(folder));
    command.arg("--output").arg(folder.join(output)).args(extra);
    command
}

fn encode(output: &Path, extra: &[&str]) -> Command {
    let mut command = ltx(&["encode-text", "two otters — naïve", "--device", "cpu", "--quiet"]);
    command.arg("--gemma-path").arg(fixtures().join("gemma3")).arg("--ltx-weights").arg(model());
    command.arg("--output").arg(output).args(extra);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn settings(path: &Path) -> Value {
    serde_json::from_str(&ltx::media::read_settings(path).unwrap()).unwrap()
}

/// What a command that succeeds says on stderr.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}\n{said}");
    said
}

#[test]
fn an_encoded_prompt_makes_the_clip_of_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let embedding = folder.path().join("prompt.safetensors");
    succeed(encode(&embedding, &[]));
    let gemma = fixtures().join("gemma3");
    succeed(generate(
        folder.path(),
        "prompted.mp4",
        &["two otters — naïve", "--gemma", text(&gemma), "--quiet"],
    ));
    succeed(generate(folder.path(), "embedded.mp4", &["--embedding", text(&embedding), "--quiet"]));
    let stripped = |name: &str| {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        let at = bytes.windows(4).position(|window| window == b"mdat").unwrap();
        let length = u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize;
        bytes[at..at - 4 + length].to_vec()
    };
    assert_eq!(stripped("prompted.mp4"), stripped("embedded.mp4"), "frames and sound are the same");
    assert_eq!(settings(&folder.path().join("embedded.mp4"))["prompt"], "two otters — naïve");
}

#[test]
fn the_originals_file_makes_a_silent_clip() {
    let folder = tempfile::tempdir().unwrap();
    let embedding = folder.path().join("prompt_embedding.npz");
    succeed(encode(&embedding, &[]));
    let mut file = ltx::npz::Npz::open(&embedding).unwrap();
    assert_eq!(file.shape("embedding").unwrap()[1], 256);
    assert_eq!(file.numbers("attention_mask").unwrap(), (vec![1, 256], vec![1.0; 256]));
    assert_eq!(file.text("prompt").unwrap(), "two otters — naïve");
    let said = said(generate(folder.path(), "clip.mp4", &["--embedding", text(&embedding)]));
    assert!(said.contains("silent"), "{said}");
    let clip = std::fs::read(folder.path().join("clip.mp4")).unwrap();
    assert!(!clip.windows(4).any(|window| window == b"mp4a"));
    assert_eq!(settings(&folder.path().join("clip.mp4"))["audio"], false);
    let (code, said) = fail(generate(folder.path(), "sound.wav", &["--embedding", text(&embedding)]));
    assert!(code == 2 && said.contains("silent"), "{said}");
}

#[test]
fn a_file_that_numpy_wrote_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let embedding = fixtures().join("numpy/prompt_embedding.npz");
    succeed(generate(folder.path(), "clip.mp4", &["--embedding", text(&embedding), "--quiet"]));
    assert_eq!(settings(&folder.path().join("clip.mp4"))["prompt"], "une loutre naïve ☂ 🦦");
    for (name, word) in [("objects", "Python objects"), ("bomb", "shape"), ("wide", "shape")] {
        let path = fixtures().join(format!("numpy/{name}.npz"));
        let (code, said) = fail(generate(folder.path(), "never.mp4", &["--embedding", text(&path)]));
        assert!(code == 1 && said.contains(word) && said.contains("hint:"), "{name}: {said}");
        assert!(!folder.path().join("never.mp4").exists());
    }
}

#[test]
fn guidance_needs_a_negative_prompt_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, guided) = (folder.path().join("plain.npz"), folder.path().join("guided.npz"));
    succeed(encode(&plain, &[]));
    succeed(encode(&guided, &["--negative-prompt", "muddy sound", "--max-tokens", "128"]));
    let dev = |embedding: &Path| {
        let mut command =
            ltx(&["generate", "--device", "cpu", "--quiet", "--steps", "1", "--stg-blocks", "1"]);
        command.args(SIZE).args(["--recipe", "one-stage", "--model"]).arg(model());
        command.arg("--embedding").arg(embedding).arg("--output").arg(folder.path().join("clip.mp4"));
        command
    };
    let (code, said) = fail(dev(&plain));
    assert!(code == 1 && said.contains("negative prompt") && said.contains("--cfg 1"), "{said}");
    succeed(dev(&guided));
    for (tokens, words) in [("100", ["128", "1024"]), ("2048", ["128", "1024"])] {
        let (code, said) = fail(encode(&folder.path().join("x.npz"), &["--max-tokens", tokens]));
        assert!(code == 2 && words.iter().all(|word| said.contains(word)), "{said}");
    }
}

/// A copy of the tiny text encoder that a test may spoil.
fn own_gemma(folder: &Path) -> PathBuf {
    let gemma = folder.join("gemma");
    std::fs::create_dir(&gemma).unwrap();
    for entry in std::fs::read_dir(fixtures().join("gemma3")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, gemma.join(path.file_name().unwrap())).unwrap();
    }
    gemma
}

#[test]
fn a_prompt_that_was_encoded_before_never_opens_the_text_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let gemma = own_gemma(folder.path());
    let cache = folder.path().join("cache");
    let run = |output: &str, prompt: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ltx"));
        command.args([
            "generate",
            prompt,
            "--device",
            "cpu",
            "--steps",
            "2",
            "--recipe",
            "one-stage",
            "--json",
        ]);
        command.args(SIZE).arg("--model").arg(distilled(folder.path())).arg("--gemma").arg(&gemma);
        command.arg("--output").arg(folder.path().join(output)).env("LTX_CACHE_DIR", &cache);
        command
    };
    let timings = |printed: String| serde_json::from_str::<Value>(&printed).unwrap()["timings"].clone();
    assert!(timings(succeed(run("1.mp4", "an otter")))["encode text"].is_number());
    // The encoder's weights are now garbage of the same size and time: whoever reads them fails.
    let weights = gemma.join("model.safetensors");
    let facts = std::fs::metadata(&weights).unwrap();
    std::fs::write(&weights, vec![0x5a; facts.len() as usize]).unwrap();
    let file = std::fs::File::options().append(true).open(&weights).unwrap();
    file.set_modified(facts.modified().unwrap()).unwrap();
    assert!(timings(succeed(run("2.mp4", "an otter")))["encode text"].is_null());
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("1.mp4"), bytes("2.mp4"));
    assert!(fail(run("3.mp4", "a stoat")).1.contains("model.safetensors"));
    let mut uncached = run("3.mp4", "an otter");
    uncached.arg("--no-cache");
    assert!(fail(uncached).1.contains("model.safetensors"));

    let manage = |arguments: &[&str]| {
        let mut command = ltx(arguments);
        command.env("LTX_CACHE_DIR", &cache);
        succeed(command)
    };
    assert!(manage(&["cache", "path"]).trim().ends_with("cache/embeddings"));
    assert!(manage(&["cache"]).contains("an otter"));
    assert!(manage(&["cache", "clear"]).contains("removed 1"));
    assert!(manage(&["cache", "list"]).contains("0 encoded prompts"));
    assert!(fail(run("4.mp4", "an otter")).1.contains("model.safetensors"));
}

#[test]
fn a_damaged_cache_is_mended_and_one_that_cannot_be_written_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let run = |cache: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ltx"));
        command
            .args(["encode-text", "an otter", "--device", "cpu", "--gemma"])
            .arg(fixtures().join("gemma3"));
        command.arg("--model").arg(model()).arg("--output").arg(folder.path().join("e.safetensors"));
        command.env("LTX_CACHE_DIR", cache);
        said(command)
    };
    assert!(run(&cache).contains("encode text"));
    let first = std::fs::read(folder.path().join("e.safetensors")).unwrap();
    let entry = std::fs::read_dir(cache.join("embeddings")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entry).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 4;
    std::fs::write(&entry, bytes).unwrap();
    let said = run(&cache);
    assert!(said.contains("damaged") && said.contains("encode text"), "{said}");
    let said = run(&cache);
    assert!(said.contains("from the cache") && !said.contains("encode text"), "{said}");
    assert_eq!(first, std::fs::read(folder.path().join("e.safetensors")).unwrap());
    std::fs::write(folder.path().join("file"), "").unwrap();
    let said = run(&folder.path().join("file"));
    assert!(said.contains("not kept"), "{said}");
    assert_eq!(first, std::fs::read(folder.path().join("e.safetensors")).unwrap());
}

#[test]
fn what_is_no_real_result_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for (option, word) in [("--dummy-text", "dummy"), ("--placeholder", "noise")] {
        let clip = |name: &str, prompt: &str| {
            let printed = succeed(generate(folder.path(), name, &[prompt, option]));
            assert!(printed.contains("not a real result") && printed.contains(word), "{printed}");
            let path = folder.path().join(name);
            let disclaimer = settings(&path)["disclaimer"].as_str().unwrap().to_string();
            assert!(disclaimer.contains("not a real result") && disclaimer.contains(word), "{disclaimer}");
            std::fs::read(path).unwrap()
        };
        let first = clip("1.mp4", "a cat");
        assert_eq!(first, clip("2.mp4", "a cat"));
        assert_ne!(first, clip("3.mp4", "a dog"));
    }
    let (code, said) = fail(generate(folder.path(), "x.mp4", &["a", "--dummy-text", "--embedding", "e.npz"]));
    assert!(code == 2 && said.contains("cannot be used with"), "{said}");
    // A real clip has no such mark.
    let gemma = fixtures().join("gemma3");
    let printed = succeed(generate(folder.path(), "real.mp4", &["a cat", "--gemma", text(&gemma)]));
    assert!(
        !printed.contains("not a real") && settings(&folder.path().join("real.mp4"))["disclaimer"].is_null()
    );
}

#[test]
fn latents_decode_later_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    succeed(generate(folder.path(), "whole.mp4", &["a cat", "--dummy-text", "--quiet"]));
    let printed = succeed(generate(folder.path(), "clip.mp4", &["a cat", "--dummy-text", "--skip-vae"]));
    assert!(printed.contains("ltx decode"), "{printed}");
    let (latents, picture) = (folder.path().join("clip_latent.npz"), folder.path().join("clip_latent.png"));
    assert!(!folder.path().join("clip.mp4").exists());
    let disclaimer = settings(&picture)["disclaimer"].as_str().unwrap().to_string();
    assert!(disclaimer.contains("latents") && disclaimer.contains("dummy"), "{disclaimer}");
    succeed(ltx(&["decode", text(&latents), "--device", "cpu", "--quiet"]));
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("whole.mp4"), bytes("clip.mp4"));

    // LTX-2-MLX's own file: the latent alone.
    let mut file = ltx::npz::Npz::open(&latents).unwrap();
    let (shape, values) = file.numbers("latent").unwrap();
    let theirs = folder.path().join("their_latent.npz");
    ltx::npz::write(&theirs, &[("latent", ltx::npz::Values::F32(&shape, &values))]).unwrap();
    let (code, said) = fail(ltx(&["decode", text(&theirs)]));
    assert!(code == 2 && said.contains("--model"), "{said}");
    succeed(ltx(&["decode", text(&theirs), "--model", text(&model()), "--device", "cpu", "--quiet"]));
    assert!(!bytes("their.mp4").is_empty());
    // Latents of another model, and no latents at all.
    ltx::npz::write(&theirs, &[("latent", ltx::npz::Values::F32(&[1, 3, 1, 2, 2], &[0.0; 12]))]).unwrap();
    let (code, said) = fail(ltx(&["decode", text(&theirs), "--model", text(&model())]));
    assert!(code == 2 && said.contains("3 channels"), "{said}");
    let embedding = fixtures().join("numpy/prompt_embedding.npz");
    let (code, said) = fail(ltx(&["decode", text(&embedding)]));
    assert!(code == 1 && said.contains("latent: is missing"), "{said}");
}

#[test]
fn steps_are_resampled_with_a_note_and_guidance_must_be_forced() {
    let folder = tempfile::tempdir().unwrap();
    let said = said(generate(folder.path(), "1.mp4", &["a cat", "--dummy-text"]));
    assert!(said.contains("made for 8 steps") && said.contains("resampled to 2"), "{said}");
    assert_eq!(settings(&folder.path().join("1.mp4"))["steps"], 2);
    let (code, said) = fail(generate(folder.path(), "2.mp4", &["a cat", "--dummy-text", "--cfg", "3"]));
    assert!(code == 2 && said.contains("trained into") && said.contains("--force-guidance"), "{said}");
    // Guidance that is off is none.
    succeed(generate(folder.path(), "2.mp4", &["a cat", "--dummy-text", "--cfg", "1"]));
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("1.mp4"), bytes("2.mp4"));
    let printed = self::said(generate(
        folder.path(),
        "3.mp4",
        &["a cat", "--dummy-text", "--cfg", "3", "--force-guidance"],
    ));
    assert!(printed.contains("forced"), "{printed}");
    let forced = settings(&folder.path().join("3.mp4"));
    assert_eq!(
        (&forced["guidance"]["video"]["cfg"], &forced["guidance"]["audio"]["cfg"]),
        (&3.0.into(), &3.0.into())
    );
    assert_ne!(bytes("1.mp4"), bytes("3.mp4"));
}
