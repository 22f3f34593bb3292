//! What users get wrong: a sentence with a remedy, the right exit code, nothing written, no panic.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::Path;
use std::process::Command;

use program::{fail, fixtures, ltx, succeed};

/// `generate` with the tiny 2.3 model and whatever else a test wants.
fn generate(output: &Path, extra: &[&str]) -> Command {
    let mut command = ltx(&["generate", "--device", "cpu", "--quiet"]);
    command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
    command.arg("--output").arg(output).args(extra);
    command
}

/// Runs a `generate` that must fail with `code`, say all of `words`, and leave the folder empty.
fn refuse(extra: &[&str], code: i32, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (actual, said) = fail(generate(&folder.path().join("clip.mp4"), extra));
    assert_eq!(actual, code, "{extra:?}: {said}");
    for word in words.iter().chain(&["error: "]) {
        assert!(said.contains(word), "{extra:?} should say `{word}`:\n{said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{extra:?} left something behind");
}

fn path(relative: &str) -> String {
    fixtures().join(relative).display().to_string()
}

#[test]
fn sizes_name_their_neighbours() {
    let gemma = path("gemma3");
    let one_stage = ["a boat", "--gemma", &gemma, "--recipe", "one-stage", "--stg-blocks", "1"];
    let with = |more: &[&'static str]| [&one_stage[..], more].concat();
    refuse(&with(&["--height", "500"]), 2, &["height of 500", "480", "512", "hint:"]);
    refuse(&with(&["--width", "33"]), 2, &["width of 33", "32", "64"]);
    refuse(&with(&["--frames", "24"]), 2, &["24", "17", "25"]);
    refuse(&with(&["--frames", "0"]), 2, &["hint:"]);
    refuse(&with(&["--frame-rate", "0"]), 2, &["frame rate"]);
    refuse(&with(&["--frame-rate", "NaN"]), 2, &["frame rate"]);
    refuse(&with(&["--steps", "0"]), 2, &["steps"]);
    let upsampler = path("upsamplers/2.3-spatial-x2.safetensors");
    let two_stages =
        ["a boat", "--gemma", &gemma, "--recipe", "distilled", "--spatial-upsampler", &upsampler];
    refuse(&[&two_stages[..], &["--height", "480"]].concat(), 2, &["480", "448", "512", "64"]);
}

#[test]
fn prompts_must_say_something_and_fit() {
    let gemma = path("gemma3");
    refuse(&["--gemma", &gemma], 2, &["no prompt"]);
    refuse(&["  \n ", "--gemma", &gemma], 2, &["prompt is empty"]);
    let long = "zebra ".repeat(1200);
    refuse(&[&long, "--gemma", &gemma, "--stg-blocks", "1"], 2, &["1024", "tokens"]);
    refuse(&["a boat", "--stg-blocks", "1"], 2, &["--gemma", "--embedding"]);
}

#[test]
fn loras_and_their_recipes_are_checked_first() {
    let (gemma, upsampler) = (path("gemma3"), path("upsamplers/2.3-spatial-x2.safetensors"));
    let (lora, distilled) = (path("lora/official.safetensors"), path("lora/2.3-distilled.safetensors"));
    let base = [
        "a boat",
        "--gemma",
        &gemma,
        "--height",
        "64",
        "--width",
        "64",
        "--frames",
        "9",
        "--stg-blocks",
        "1",
    ];
    let check = |more: &[&str], code, words: &[&str]| refuse(&[&base[..], more].concat(), code, words);
    check(&["--lora", "/nowhere/x.safetensors"], 2, &["no LoRA `/nowhere/x.safetensors`", "ltx lora list"]);
    check(
        &["--lora", "camera-static"],
        2,
        &["camera-static is not on this machine", "ltx download camera-static"],
    );
    check(&["--lora", "some/lora"], 2, &["`some/lora`", "ltx download some/lora"]);
    check(&["--lora", &lora, "inf"], 2, &["strength of inf"]);
    check(&["--lora", &lora, "0.5", "0.7"], 2, &["0.7"]);
    check(&["--lora", &path("2.3/model.safetensors")], 1, &["is not a LoRA", "--model"]);
    check(&["--lora", &path("gemma3")], 1, &["is not a LoRA"]);
    let two_stage = ["--recipe", "two-stage", "--spatial-upsampler", &upsampler];
    let check = |more: &[&str], code, words: &[&str]| check(&[&two_stage[..], more].concat(), code, words);
    check(&[], 2, &["needs the distilled LoRA", "--distilled-lora", "distilled-2.3"]);
    check(&["--distilled-lora", &lora, "--distilled-lora", &distilled], 2, &["more than one"]);
    let other = path("2.0/model.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let mut command = ltx(&["generate", "--device", "cpu", "--quiet", "--model", &other]);
    command.args(base).args(["--lora", &distilled]).arg("--output").arg(folder.path().join("clip.mp4"));
    let (code, said) = fail(command);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another generation or size") && said.contains("2.3-distilled"), "{said}");
    let one_stage = ["--recipe", "one-stage", "--distilled-lora", &distilled];
    refuse(&[&base[..], &one_stage].concat(), 2, &["one-stage has no use for a distilled LoRA", "--lora"]);
    let alone = ["--recipe", "two-stage", "--distilled-lora", &distilled];
    refuse(&[&base[..], &alone].concat(), 2, &["two-stage recipe needs the latent upsampler"]);
}

#[test]
fn loras_are_listed_inspected_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged.safetensors").display().to_string();
    let (model, lora) = (path("2.3/model.safetensors"), path("lora/comfy.safetensors"));
    let listed = succeed(ltx(&["lora", "list"]));
    assert!(listed.contains("camera-jib-up") && listed.contains("distilled-2.5"), "{listed}");
    let shown = succeed(ltx(&["lora", "inspect", &lora, "--against", &model]));
    assert!(shown.contains("changes 8 weights, F16") && shown.contains("6 of the dit"), "{shown}");
    let json =
        succeed(ltx(&["lora", "inspect", &lora, "--against", &path("2.0/model.safetensors"), "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["modules"].as_array().unwrap().len(), 8);
    assert!(!json["against"]["misfits"].as_array().unwrap().is_empty());
    let said = succeed(ltx(&["lora", "merge", &model, "--lora", &lora, "-0.5", "--output", &merged]));
    assert!(said.contains("comfy.safetensors at -0.5"), "{said}");
    assert!(succeed(ltx(&["inspect", &merged])).contains("version: 2.3.0"));
    let (code, said) = fail(ltx(&["lora", "merge", &model, "--lora", &model, "--output", "/nowhere/x"]));
    assert!(code == 1 && said.contains("is not a LoRA"), "{said}");
}

#[test]
fn files_that_do_not_fit_are_named() {
    let gemma = path("gemma3");
    let base = ["a boat", "--height", "64", "--width", "64", "--frames", "9", "--stg-blocks", "1"];
    let with =
        |more: &[&str]| -> Vec<String> { base.iter().chain(more).map(|text| text.to_string()).collect() };
    let check = |more: &[&str], code, words: &[&str]| {
        let arguments = with(more);
        refuse(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code, words);
    };
    check(&["--gemma", "/nowhere"], 1, &["/nowhere"]);
    check(&["--gemma", &path("goldens")], 1, &["config.json"]);
    // The encoder of another model: too few hidden states for the projection would show late; here its keys are missing.
    check(
        &[
            "--gemma",
            &gemma,
            "--spatial-upsampler",
            &path("upsamplers/2.3-temporal-x2.safetensors"),
            "--recipe",
            "distilled",
        ],
        1,
        &["temporal-x2", "spatial"],
    );
    check(&["--gemma", &gemma, "--recipe", "distilled"], 2, &["--spatial-upsampler"]);
    check(
        &[
            "--embedding",
            &path("goldens/2.0-e2e-distilled-embedding.safetensors"),
            "--recipe",
            "one-stage",
            "--cfg",
            "1",
            "--audio-cfg",
            "1",
        ],
        1,
        &["video_context", "shape"],
    );
    check(
        &["--gemma", &gemma, "--noise", &path("goldens/2.3-e2e-one_stage-noise.safetensors")],
        1,
        &["noise", "shape"],
    );
    check(&["--gemma", &gemma, "--stg-blocks", "28"], 2, &["block 28", "3 blocks"]);
    check(&["--gemma", &gemma, "--save-latents", "/nowhere/latents"], 1, &["/nowhere", "folder"]);
    let upsampler = path("upsamplers/2.3-spatial-x2.safetensors");
    let mut alone = ltx(&["generate", "a boat", "--gemma", &gemma, "--quiet", "--model", &upsampler]);
    alone.args(["--output", "/tmp/never.mp4"]);
    let (code, said) = fail(alone);
    assert!(code == 2 && said.contains("no transformer"), "{said}");
}

#[test]
fn damaged_checkpoints_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixtures().join("2.3/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&whole[8..8 + length]).unwrap();
    let rewrite = |name: &str, header: &str| {
        let path = folder.path().join(name);
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &whole[8 + length..]].concat();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let gemma = path("gemma3");
    let check = |model: &Path, words: &[&str]| {
        let output = folder.path().join("clip.mp4");
        let mut command = ltx(&[
            "generate",
            "a boat",
            "--quiet",
            "--gemma",
            &gemma,
            "--recipe",
            "one-stage",
            "--stg-blocks",
            "1",
        ]);
        command
            .args(["--height", "64", "--width", "64", "--frames", "9"])
            .arg("--model")
            .arg(model)
            .arg("--output")
            .arg(&output);
        let (code, said) = fail(command);
        assert_eq!(code, 1, "{said}");
        for word in words {
            assert!(said.contains(word), "should say `{word}`:\n{said}");
        }
        assert!(!output.exists());
    };
    let truncated = folder.path().join("truncated.safetensors");
    std::fs::write(&truncated, &whole[..whole.len() - 100]).unwrap();
    check(&truncated, &["truncated.safetensors", "cut off", "download"]);
    let renamed = header.replacen(
        "transformer_blocks.1.attn1.to_q.weight",
        "transformer_blocks.1.attn1.to_x.weight",
        1,
    );
    check(&rewrite("renamed.safetensors", &renamed), &["transformer_blocks.1.attn1.to_q.weight", "missing"]);
    let extra = header.replacen("vocoder.conv", "model.diffusion_model.extra.conv", 1);
    check(&rewrite("moved.safetensors", &extra), &["moved.safetensors"]);
    let fp8 = header.replacen("\"BF16\"", "\"F8_E4M3\"", 1);
    assert_ne!(fp8, header);
    check(&rewrite("fp8.safetensors", &fp8), &["fp8.safetensors"]);
    let scale = header.replace("av_ca_timestep_scale_multiplier", "av_ca_timestep_scale_multiplied");
    check(&rewrite("config.safetensors", &scale), &["av_ca_timestep_scale_multiplier", "missing"]);
    let heads = header.replace("\\\"num_attention_heads\\\": 5", "\\\"num_attention_heads\\\": 4");
    assert_ne!(heads, header);
    check(&rewrite("heads.safetensors", &heads), &["heads.safetensors"]);
    std::fs::write(folder.path().join("page.safetensors"), "<html>404</html>").unwrap();
    check(&folder.path().join("page.safetensors"), &["page.safetensors", "not a valid safetensors"]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused_at_once() {
    let gemma = path("gemma3");
    let arguments = [
        "a boat",
        "--gemma",
        &gemma,
        "--height",
        "64",
        "--width",
        "64",
        "--frames",
        "9",
        "--stg-blocks",
        "1",
        "--recipe",
        "one-stage",
    ];
    for (output, word) in
        [("/nowhere/clip.mp4", "/nowhere"), ("/tmp/clip.gif", ".mp4"), ("/proc/clip.mp4", "/proc")]
    {
        let (code, said) = fail(generate(Path::new(output), &arguments));
        assert!(code == 1 && said.contains(word), "{output}: {code} {said}");
    }
}

#[test]
fn a_folder_with_two_models_is_ambiguous() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["dev.safetensors", "distilled.safetensors"] {
        std::fs::copy(fixtures().join("2.3/model.safetensors"), folder.path().join(name)).unwrap();
    }
    let mut command = ltx(&["generate", "a boat", "--gemma", &path("gemma3"), "--output", "/tmp/never.mp4"]);
    command.arg("--model").arg(folder.path());
    let (code, said) = fail(command);
    assert!(
        code == 2 && said.contains("dev.safetensors") && said.contains("distilled.safetensors"),
        "{said}"
    );
}

#[test]
fn an_output_that_cannot_hold_the_clip_is_refused() {
    let gemma = path("gemma3");
    let base = [
        "a boat",
        "--gemma",
        &gemma,
        "--recipe",
        "one-stage",
        "--height",
        "64",
        "--width",
        "64",
        "--stg-blocks",
        "1",
    ];
    let (code, said) = fail(generate(Path::new("/tmp/never.png"), &[&base[..], &["--frames", "9"]].concat()));
    assert!(code == 2 && said.contains("one frame"), "{said}");
    let (code, said) =
        fail(generate(Path::new("/tmp/never.wav"), &[&base[..], &["--frames", "9", "--no-audio"]].concat()));
    assert!(code == 2 && said.contains("silent"), "{said}");
    // A folder may be called what it likes.
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("clip.png");
    let named = format!("{}/", pictures.display());
    succeed(generate(Path::new(&named), &[&base[..], &["--frames", "9", "--steps", "1"]].concat()));
    assert_eq!(program::frames(&pictures).len(), 9);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &["generate"][..],
        &["generate", "x", "--model", "m", "--height", "tall"],
        &["nonsense"],
        &["verify"],
    ] {
        assert_eq!(fail(ltx(arguments)).0, 2, "{arguments:?}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    if mlx::device::gpu_available() {
        succeed(ltx(&["devices"]));
        return;
    }
    let (code, said) =
        fail(ltx(&["generate", "a boat", "--model", &path("2.3/model.safetensors"), "--device", "gpu"]));
    assert!(code == 1 && said.contains("no GPU"), "{said}");
}

#[test]
fn verify_tells_failed_from_unusable() {
    let golden = path("goldens/2.3-dit-t2v.safetensors");
    assert!(succeed(ltx(&["verify", &golden])).contains("pass"));
    let (code, _) = fail(ltx(&["verify", &golden, "--model", &path("2.0/model.safetensors")]));
    assert_eq!(code, 2);
    assert_eq!(fail(ltx(&["verify", &path("2.3/model.safetensors")])).0, 2);
    assert_eq!(fail(ltx(&["verify", &path("goldens/2.3-e2e-distilled.safetensors")])).0, 2);
    // The same golden with one weight changed: it can be used, and fails.
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(fixtures().join("2.3/model.safetensors")).unwrap();
    let file = ltx::checkpoint::File::open(&fixtures().join("2.3/model.safetensors")).unwrap();
    let (start, end) = file.info("model.diffusion_model.proj_out.weight").unwrap().data_offsets;
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data + start..data + end].fill(0x3f);
    let changed = folder.path().join("changed.safetensors");
    std::fs::write(&changed, bytes).unwrap();
    let mut command = ltx(&["verify", &golden, "--json", "--model"]);
    command.arg(&changed);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["pass"], false);
}

#[test]
fn inspect_knows_what_it_sees() {
    let printed = succeed(ltx(&["inspect", "--json", &path("2.3/model.safetensors")]));
    let found: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(found["version"], "2.3.0");
    let parts = found["components"].as_array().unwrap();
    assert_eq!(parts.len(), 8);
    for part in parts {
        assert!(part["problem"].is_null(), "{part}");
        assert!(part["parameters"].as_u64().unwrap() > 0 && part["bytes"].as_u64().unwrap() > 0, "{part}");
    }
    assert!(succeed(ltx(&["inspect", &path("2.0/model.safetensors")])).contains("before 2.3"));
    assert!(succeed(ltx(&["inspect", &path("gemma3")])).contains("text encoder (Gemma 3)"));
    assert!(succeed(ltx(&["inspect", &path("upsamplers")])).contains("latent upsampler"));
    assert_eq!(fail(ltx(&["inspect", "/nowhere"])).0, 1);
}

#[test]
fn pictures_must_be_pictures_of_frames_that_there_are() {
    let (gemma, picture) = (path("gemma3"), path("images/last.png"));
    let base = ["a boat", "--gemma", &gemma, "--recipe", "one-stage", "--height", "64", "--width", "64"];
    let check = |more: &[&str], code, words: &[&str]| {
        refuse(&[&base[..], &["--frames", "9", "--stg-blocks", "1"], more].concat(), code, words);
    };
    check(&["--image", "/nowhere.png"], 1, &["/nowhere.png"]);
    check(&["--image", &picture, "--placeholder"], 2, &["noise shows no picture"]);
    check(&["--image", &gemma], 1, &["is not a file", "hint:"]);
    let text = path("gemma3/config.json");
    check(&["--image", &text], 1, &["config.json", "PNG, JPEG or WebP"]);
    check(&["--image", &picture, "9"], 2, &["frame 9", "0 to 8", "hint:"]);
    check(&["--image", &picture, "-10"], 2, &["frame -10", "-1"]);
    check(&["--image", &picture, "-9223372036854775808"], 2, &["hint:"]);
    check(&["--image", &picture, "8", "--image", &picture, "-1"], 2, &["two pictures", "frame 8"]);
    for strength in ["1.5", "-0.1", "NaN", "inf"] {
        check(&["--image", &picture, "0", strength], 2, &["strength", "0", "1"]);
    }
    check(&["--image", &picture, "0", "1", "52"], 2, &["51"]);
    check(&["--image", &picture, "0", "1", "-1"], 2, &["CRF"]);
    check(&["--image", &picture, "half"], 2, &["half", "FRAME", "--prompt"]);
    check(&["--image", &picture, "0", "1", "33", "9"], 2, &["9"]);
    check(&["--image"], 2, &["--image"]);
    // Of a clip that needs noise for a picture's own tokens, the file must have it.
    let noise = path("goldens/2.3-e2e-image_to_video-noise.safetensors");
    let distilled = path("upsamplers/2.3-spatial-x2.safetensors");
    let two_stages =
        ["a boat", "--gemma", &gemma, "--recipe", "distilled", "--spatial-upsampler", &distilled];
    let sized =
        ["--height", "64", "--width", "128", "--frames", "9", "--frame-rate", "25", "--noise", &noise];
    let with = |more: &[&'static str]| [&two_stages[..], &sized, &["--image", &picture], more].concat();
    refuse(&with(&["3"]), 1, &["video_keyframes", "shape"]);
    let keyframes = ["a boat", "--gemma", &gemma, "--spatial-upsampler", &distilled, "--recipe", "keyframes"];
    let lora = path("lora/2.3-distilled.safetensors");
    let small =
        ["--distilled-lora", &lora, "--height", "64", "--width", "64", "--frames", "9", "--stg-blocks", "1"];
    refuse(&[&keyframes[..], &small].concat(), 2, &["keyframes", "--image"]);
}

/// `ltx bench --list | head -1`: the reader goes, and that is no failure.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut list = ltx(&["bench", "--list"]);
    let left = list.stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let output = left.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A result that cannot be printed is a failure in a sentence; progress that cannot be shown is none.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_told_and_behind_stderr_ignored() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut list = ltx(&["lora", "list"]);
    let output = list.stdout(full()).stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("No space left") && !said.contains("panicked"),
        "{said}"
    );
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged.safetensors");
    let (model, lora) = (path("2.3/model.safetensors"), path("lora/official.safetensors"));
    let mut merge = ltx(&["lora", "merge", &model, "--lora", &lora, "--output", merged.to_str().unwrap()]);
    assert!(merge.stderr(full()).status().unwrap().success() && merged.is_file());
}

#[test]
fn merging_spares_its_inputs_and_whatever_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (model, lora) = (path("2.3/model.safetensors"), folder.path().join("lora.safetensors"));
    std::fs::copy(path("lora/official.safetensors"), &lora).unwrap();
    let before = std::fs::read(&lora).unwrap();
    let (own, socket) = (lora.display().to_string(), folder.path().join("socket"));
    let _held = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let socket = socket.display().to_string();
    let place = folder.path().display().to_string();
    for (output, strength, words) in [
        (own.as_str(), "1", &["lora.safetensors", "is one of the LoRAs"][..]),
        (&socket, "1", &["socket", "a device or a pipe"]),
        (&place, "1", &["cannot be written"]),
    ] {
        let (code, said) =
            fail(ltx(&["lora", "merge", &model, "--quiet", "--lora", &own, strength, "--output", output]));
        assert!(code == 1 && words.iter().chain(&["hint: "]).all(|word| said.contains(word)), "{said}");
    }
    // A factor that is not finite would make every clip black.
    let data = 8 + u64::from_le_bytes(before[..8].try_into().unwrap()) as usize;
    let mut broken = before.clone();
    let nan = format!("{place}/nan.safetensors");
    for (byte, words) in
        [(0x7f, ["model.safetensors", "lower strengths"]), (0xff, ["nan.safetensors", "damaged"])]
    {
        broken[data..].fill(byte);
        std::fs::write(&nan, &broken).unwrap();
        let output = format!("{place}/m.safetensors");
        let (_, said) = fail(ltx(&["lora", "merge", &model, "--quiet", "--lora", &nan, "--output", &output]));
        assert!(words.iter().chain(&["not finite"]).all(|word| said.contains(word)), "{said}");
    }
    assert!(std::fs::read(&lora).unwrap() == before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    let merged = folder.path().join("merged.safetensors").display().to_string();
    succeed(ltx(&["lora", "merge", &model, "--quiet", "--lora", &own, "--output", &merged]));
    let mode =
        |path: &str| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
    std::fs::write(folder.path().join("plain"), "").unwrap();
    assert_eq!(mode(&merged), mode(&format!("{place}/plain")), "as readable as any file of the user's");
}

/// Opened, a pipe would wait for a writer for ever.
#[test]
fn pipes_are_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["pipe.npz", "pipe.safetensors"] {
        let pipe = folder.path().join(name).display().to_string();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        refuse(&["--stg-blocks", "1", "--embedding", &pipe], 1, &[name, "is not a file", "hint: "]);
    }
}

#[test]
fn terminals_are_not_controlled_by_names_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"\u001b[31mx.lora_A.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
    let path = folder.path().join("lora.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat())
        .unwrap();
    let (_, said) = fail(ltx(&["lora", "inspect", path.to_str().unwrap()]));
    assert!(said.contains("lacks one of its two factors") && !said.contains('\u{1b}'), "{said:?}");
}
