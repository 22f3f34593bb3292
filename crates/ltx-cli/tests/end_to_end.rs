//! The real binary on the tiny checkpoints: whole runs against the official pipelines' answers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::Path;

use ltx::checkpoint::File;
use ltx::verify::Golden;
use program::{fixtures, frames, ltx, succeed};

/// Runs `generation`'s e2e golden `case` in f32 and compares latents (1e-3 relative), and where the golden has them
/// frames (2/255) and sound (1e-2 relative).
fn check(generation: &str, case: &str) {
    let golden =
        Golden::open(&fixtures().join(format!("goldens/{generation}-e2e-{case}.safetensors"))).unwrap();
    let setting = |key: &str| golden.setting(key).unwrap_or_else(|| panic!("{key}")).to_string();
    let beside = |what: &str| fixtures().join(format!("goldens/{generation}-e2e-{case}-{what}.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let (pictures, latents) = (folder.path().join("frames/"), folder.path().join("latents.safetensors"));

    let mut command = ltx(&["generate", "--dtype", "f32", "--device", "cpu", "--quiet"]);
    command.arg("--model").arg(fixtures().join(setting("checkpoint")));
    command.args([
        "--recipe",
        &setting("recipe"),
        "--width",
        &setting("width"),
        "--height",
        &setting("height"),
    ]);
    command.args(["--frames", &setting("frames"), "--frame-rate", &setting("fps")]);
    let embedding =
        golden.setting("embedding").map_or_else(|| beside("embedding"), |name| fixtures().join(name));
    command.arg("--noise").arg(beside("noise")).arg("--embedding").arg(embedding);
    command.arg("--save-latents").arg(&latents).arg("--output").arg(format!("{}/", pictures.display()));
    if let Some(upsampler) = golden.setting("upsampler") {
        command.arg("--spatial-upsampler").arg(fixtures().join(upsampler));
    }
    if let Some(lora) = golden.setting("distilled_lora") {
        command.arg("--distilled-lora").arg(fixtures().join(lora));
    }
    if let Some((lora, strength)) = golden.setting("lora").and_then(|lora| lora.split_once(' ')) {
        command.arg("--lora").arg(fixtures().join(lora)).arg(strength);
    }
    let images: Vec<(String, usize, f32)> =
        golden.setting("images").map_or_else(Vec::new, |images| serde_json::from_str(images).unwrap());
    for (image, frame, strength) in images {
        let [frame, strength] = [frame.to_string(), strength.to_string()];
        command.arg("--image").arg(fixtures().join(image)).args([&frame, &strength, "0"]);
    }
    let options = [
        ("steps", "--steps"),
        ("video_cfg", "--cfg"),
        ("video_stg", "--stg-scale"),
        ("video_stg_blocks", "--stg-blocks"),
        ("video_rescale", "--rescale"),
        ("video_modality", "--modality-scale"),
        ("audio_cfg", "--audio-cfg"),
        ("audio_stg", "--audio-stg-scale"),
        ("audio_stg_blocks", "--audio-stg-blocks"),
        ("audio_rescale", "--audio-rescale"),
        ("audio_modality", "--audio-modality-scale"),
    ];
    for (key, option) in options {
        if let Some(value) = golden.setting(key) {
            command.args([option, value]);
        }
    }
    succeed(command);

    let ours = File::open(&latents).unwrap();
    for name in ["video", "audio"] {
        let (a, b) = (ours.array(name).unwrap(), golden.array(&format!("out.{name}")).unwrap());
        assert_eq!(a.shape(), b.shape(), "{name}");
        let error = relative(&a.to_f32().unwrap(), &b.to_f32().unwrap());
        assert!(error < 1e-3, "{generation} {case} {name}: relative error {error}");
    }
    let Some(pixels) = golden.optional("out.pixels").unwrap() else { return };
    let pixels = pixels.transpose(&[0, 2, 3, 4, 1]).unwrap(); // (1, frames, height, width, rgb)
    let expected = pixels.to_f32().unwrap();
    let ours: Vec<u8> = frames(&pictures).concat();
    assert_eq!(ours.len(), expected.len());
    let worst = ours.iter().zip(&expected).map(|(&a, b)| (f32::from(a) - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 2.0, "{generation} {case}: a pixel differs by {worst}");

    let sound = ltx::media::read_wav(&pictures.join("audio.wav")).unwrap();
    let waveform = golden.array("out.waveform").unwrap(); // (1, 2, samples)
    assert_eq!(sound.sample_rate.to_string(), setting("sampling_rate"));
    let expected = waveform.to_f32().unwrap();
    let error = relative(
        &sound.channels.concat(),
        &expected.iter().map(|sample| sample.clamp(-1.0, 1.0)).collect::<Vec<_>>(),
    );
    assert!(error < 1e-2, "{generation} {case}: the sound's relative error is {error}");
}

fn relative(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let square =
        |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    let difference = square(&mut ours.iter().zip(reference).map(|(a, b)| a - b));
    (difference / square(&mut reference.iter().copied())).sqrt()
}

#[test]
fn distilled_2_0() {
    check("2.0", "distilled");
}

#[test]
fn distilled_2_3() {
    check("2.3", "distilled");
}

#[test]
fn image_to_video_2_3() {
    check("2.3", "image_to_video");
}

#[test]
fn keyframes_2_3() {
    check("2.3", "keyframes");
}

#[test]
fn one_stage_2_3() {
    check("2.3", "one_stage");
}

#[test]
fn two_stage_2_3() {
    check("2.3", "two_stage");
}

#[test]
fn two_stage_hq_2_3() {
    check("2.3", "two_stage_hq");
}

fn prompted(output: &Path, extra: &[&str]) -> std::process::Command {
    let mut command =
        ltx(&["generate", "two otters juggle pebbles in a brook", "--device", "cpu", "--quiet"]);
    command
        .arg("--model")
        .arg(fixtures().join("2.3/model.safetensors"))
        .arg("--gemma")
        .arg(fixtures().join("gemma3"));
    command.arg("--spatial-upsampler").arg(fixtures().join("upsamplers/2.3-spatial-x2.safetensors"));
    command
        .args(["--recipe", "distilled", "--height", "64", "--width", "128", "--frames", "9"])
        .arg("--output")
        .arg(output);
    command.args(extra);
    command
}

#[test]
fn a_prompt_becomes_a_clip_with_sound() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second, third) =
        (folder.path().join("1.mp4"), folder.path().join("2.mp4"), folder.path().join("3.mp4"));
    succeed(prompted(&first, &[]));
    succeed(prompted(&second, &[]));
    succeed(prompted(&third, &["--seed", "43"]));
    let bytes = std::fs::read(&first).unwrap();
    assert_eq!(bytes, std::fs::read(&second).unwrap(), "the same seed gives the same bytes");
    assert_ne!(bytes, std::fs::read(&third).unwrap(), "another seed gives another clip");
    for track in ["avc1", "mp4a"] {
        assert!(bytes.windows(4).any(|window| window == track.as_bytes()), "{track}");
    }
    let settings: serde_json::Value =
        serde_json::from_str(&ltx::media::read_settings(&first).unwrap()).unwrap();
    assert_eq!(settings["prompt"], "two otters juggle pebbles in a brook");
    assert_eq!((&settings["seed"], &settings["height"]), (&42.into(), &64.into()));
    assert_eq!((&settings["recipe"], &settings["steps"]), (&"distilled".into(), &8.into()));
}

#[test]
fn streamed_blocks_make_the_same_clip() {
    let folder = tempfile::tempdir().unwrap();
    let lora = fixtures().join("lora/official.safetensors");
    let guided = ["--recipe", "one-stage", "--steps", "2", "--stg-blocks", "1", "--lora"];
    let clip = |name: &str, extra: &[&str]| {
        let path = folder.path().join(name);
        let mut command = ltx(&["generate", "rain on a tin roof", "--device", "cpu", "--quiet"]);
        command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
        command.arg("--gemma").arg(fixtures().join("gemma3"));
        command.args(["--height", "64", "--width", "96", "--frames", "9"]);
        command.args(guided).arg(&lora).args(extra).arg("--output").arg(&path);
        succeed(command);
        std::fs::read(&path).unwrap()
    };
    assert!(clip("resident.mp4", &[]) == clip("streamed.mp4", &["--stream"]), "streaming changes the clip");
}

#[test]
fn guided_by_a_prompt_without_sound() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("frames");
    let mut command =
        ltx(&["generate", "a slow zoom", "--device", "cpu", "--quiet", "--no-audio", "--steps", "2"]);
    command
        .arg("--model")
        .arg(fixtures().join("2.0/model.safetensors"))
        .arg("--gemma")
        .arg(fixtures().join("gemma3"));
    command.args([
        "--recipe",
        "one-stage",
        "--height",
        "64",
        "--width",
        "96",
        "--frames",
        "9",
        "--stg-blocks",
        "1",
    ]);
    command.arg("--output").arg(format!("{}/", pictures.display()));
    succeed(command);
    let frames = frames(&pictures);
    assert_eq!((frames.len(), frames[0].len()), (9, 64 * 96 * 3));
    assert!(!pictures.join("audio.wav").exists());
    assert!(frames.iter().any(|frame| frame != &frames[0]), "something moves");
}

#[test]
fn an_enhanced_prompt_is_shown_and_makes_the_clip() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, output) = (folder.path().join("plain.mp4"), folder.path().join("clip.mp4"));
    let idea = "two otters juggle pebbles in a brook";
    let gemma = fixtures().join("gemma3").display().to_string();
    let made = prompted(&output, &["--enhance-prompt"]).output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    // The same seed and type make the same words by themselves.
    let written = succeed(ltx(&["enhance", idea, "--gemma", &gemma, "--device", "cpu", "--quiet"]));
    let written = written.trim();
    assert!(written != idea && said.contains(&format!("prompt: {written}")), "{said}");
    let settings: serde_json::Value =
        serde_json::from_str(&ltx::media::read_settings(&output).unwrap()).unwrap();
    assert_eq!(settings["prompt"], written);
    succeed(prompted(&plain, &[]));
    assert_ne!(std::fs::read(plain).unwrap(), std::fs::read(output).unwrap());
    assert!(
        succeed(ltx(&["enhance", idea, "--gemma", &gemma, "--show-instructions", "--with-image"]))
            .contains("picture")
    );
}

#[test]
fn a_picture_changes_the_clip_and_its_settings_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let picture = fixtures().join("images/last.png").display().to_string();
    let run = |name: &str, extra: &[&str]| {
        let output = folder.path().join(name);
        succeed(prompted(&output, extra));
        let settings = ltx::media::read_settings(&output).unwrap();
        (std::fs::read(&output).unwrap(), serde_json::from_str::<serde_json::Value>(&settings).unwrap())
    };
    let (without, settings) = run("1.mp4", &[]);
    assert_eq!(settings["images"], serde_json::json!([]));
    let (first, settings) = run("2.mp4", &["--image", &picture]);
    let used = serde_json::json!({ "file": "last.png", "frame": 0, "strength": 1.0, "crf": 33 });
    assert_eq!(settings["images"][0], used);
    let (last, settings) = run("3.mp4", &["--image", &picture, "-1", "0.5", "20"]);
    assert_eq!(
        settings["images"][0],
        serde_json::json!({ "file": "last.png", "frame": 8, "strength": 0.5, "crf": 20 })
    );
    let (uncompressed, _) = run("4.mp4", &["--image", &picture, "0", "1", "0"]);
    let (named, _) = run("5.mp4", &["--last-frame", &picture]);
    assert_eq!(named, run("6.mp4", &["--end-img", &picture]).0);
    assert_eq!(named, run("7.mp4", &["--image", &picture, "-1"]).0);
    let clips = [without, first, last, uncompressed, named];
    for (index, clip) in clips.iter().enumerate() {
        assert!(!clips[..index].contains(clip), "clip {index} is like one before");
    }
}

#[test]
fn json_says_what_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("clip.mp4");
    let printed = succeed(prompted(&output, &["--json"]));
    let result: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(result["output"], output.to_str().unwrap());
    assert_eq!(result["settings"]["frames"], 9);
    assert!(result["timings"]["denoise at half size"].as_f64().unwrap() > 0.0);
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_within_a_step_and_leaves_no_clip() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    let folder = tempfile::tempdir().unwrap();
    let mut command = ltx(&["generate", "a slow zoom", "--device", "cpu", "--steps", "900"]);
    command
        .arg("--model")
        .arg(fixtures().join("2.3/model.safetensors"))
        .arg("--gemma")
        .arg(fixtures().join("gemma3"));
    command.args([
        "--recipe",
        "one-stage",
        "--height",
        "64",
        "--width",
        "64",
        "--frames",
        "9",
        "--stg-blocks",
        "1",
    ]);
    let mut running =
        command.arg("--output").arg(folder.path().join("clip.mp4")).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("denoise: 2/900") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "ended before the second step");
    }
    let killed =
        std::process::Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("interrupted") && !rest.contains("900/900"), "{rest}");
    // What is done is kept, and nothing else.
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".ltx-run-clip.mp4"]);
}
