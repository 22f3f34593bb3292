//! Nothing is lost: runs of the real binary that are killed, stopped, or cannot write, and what going on with them makes.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use program::{fail, fixtures, ltx, succeed};

/// A run in two stages on the tiny model, in `folder`.
fn generate(folder: &Path, output: &str, more: &[&str]) -> Command {
    run(
        folder,
        output,
        &[&["--recipe", "distilled", "--height", "128", "--width", "192", "--frames", "17"], more].concat(),
    )
}

fn run(folder: &Path, output: &str, more: &[&str]) -> Command {
    let mut command = ltx(&["generate", "a cat", "--device", "cpu", "--output", output]);
    command.current_dir(folder).args(more);
    command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
    command.arg("--spatial-upsampler").arg(fixtures().join("upsamplers/2.3-spatial-x2.safetensors"));
    if !more.contains(&"--gemma") && !more.contains(&"--dummy-text") {
        command.arg("--gemma").arg(fixtures().join("gemma3"));
    }
    command
}

fn resume(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = ltx(&["resume"]);
    command.current_dir(folder).args(arguments);
    command
}

/// Runs until the program says `word` (or, for an empty one, has made its folder), then sends it `signal`. What it had
/// said, and all of it at the end.
fn until(mut command: Command, word: &str, signal: &str) -> String {
    let folder = command.get_current_dir().unwrap().to_path_buf();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    if word.is_empty() {
        while runs(&folder).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
    } else {
        for line in lines.by_ref() {
            said.push_str(&line);
            said.push('\n');
            if line.contains(word) {
                break;
            }
        }
        assert!(said.contains(word), "{word}: {said}");
    }
    let sent = Command::new("kill").arg(signal).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
    lines.for_each(|line| said.extend([line.as_str(), "\n"]));
    let status = child.wait().unwrap();
    // A run may be done before the signal comes.
    assert!(signal == "-KILL" || status.success() || status.code() == Some(130), "{status}: {said}");
    said
}

/// The folders of interrupted runs.
fn runs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".ltx-run-")).collect()
}

/// What a run that must succeed says on the way.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}\n{said}");
    said
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_run_killed_in_any_phase_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let whole = said(generate(folder, "whole.mp4", &[]));
    assert!(runs(folder).is_empty());
    // In the text encoder; after it; at every step; while latents are upsampled; sound; frames; the end of the file.
    let steps =
        |name: &str, of: usize| (1..=of).map(|step| format!("{name}: {step}/{of}")).collect::<Vec<_>>();
    let mut words = vec![String::new(), "encode text".into(), "upsample".into(), "decode audio".into()];
    words.extend([steps("denoise at half size", 8), steps("refine", 3)].concat());
    words.extend(
        ["decode video: 2/17", "decode video: 17/17", "refine: 0", "decode video: 0"].map(String::from),
    );
    for word in words.iter().filter(|word| word.is_empty() || whole.contains(word.as_str())) {
        until(generate(folder, "clip.mp4", &[]), word, "-KILL");
        let complete = folder.join("clip.mp4").exists();
        assert!(complete || !runs(folder).is_empty(), "{word}: nothing is left");
        let said = said(generate(folder, "clip.mp4", &["--resume"]));
        assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"), "{word}");
        assert!(runs(folder).is_empty(), "{word}");
        if !complete && word.contains('/') {
            assert!(!said.contains("encode text:"), "{word}: the prompt is encoded again\n{said}");
            assert!(!said.contains("denoise at half size: 1/8"), "{word}: a step is repeated\n{said}");
        }
        if !complete && word.starts_with("decode") {
            assert!(!said.contains("transformer"), "{word}: more than decoding is repeated\n{said}");
        }
        fs::remove_file(folder.join("clip.mp4")).unwrap();
    }
}

#[test]
fn ctrl_c_keeps_the_last_step_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let guided = ["--cfg", "2", "--force-guidance", "--guidance-skip", "1", "--audio-guidance-skip", "2"];
    for (sampler, more) in
        [("euler", &guided[..]), ("euler-ancestral", &[]), ("gradient-estimation", &[]), ("res-2s", &[])]
    {
        let more = [&["--sampler", sampler], more].concat();
        succeed(generate(folder, "whole.mp4", &more));
        let said = until(generate(folder, "clip.mp4", &more), "half size: 4/8", "-INT");
        assert!(
            said.contains("go on with: ltx resume clip.mp4") && !folder.join("clip.mp4").exists(),
            "{said}"
        );
        let done = said.split("what is done is kept (").nth(1).unwrap().split(')').next().unwrap();
        // At the step at which it was stopped, or one of those that it was at when the signal came.
        assert!(!["1 of 8", "2 of 8", "3 of 8"].iter().any(|early| done.contains(early)), "{done}");
        let said = self::said(resume(folder, &["clip.mp4"]));
        assert!(
            said.contains(&format!("goes on after {done}")) || done.contains("latents"),
            "{done}: {said}"
        );
        assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"), "{sampler}");
        assert!(runs(folder).is_empty());
        fs::remove_file(folder.join("clip.mp4")).unwrap();
    }
}

#[test]
fn a_long_clip_goes_on_window_by_window() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let size = ["--recipe", "distilled", "--height", "64", "--width", "128", "--frames", "41"];
    let size = [&size[..], &["--window", "17"]].concat();
    let long =
        |output: &str, more: &[&str]| run(folder, output, &[&size[..], &["--dummy-text"], more].concat());
    succeed(long("whole.mp4", &[]));
    for (word, before) in [("window 2 of 4", "window 1 of 4"), ("window 4 of 4", "window 3 of 4")] {
        until(long("clip.mp4", &[]), word, "-KILL");
        let said = said(long("clip.mp4", &["--resume"]));
        assert!(said.contains(word) && !said.contains(&format!("{before}: frames")), "{said}");
        assert!(said.contains(&format!("goes on after {before}")), "{said}");
        assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"), "{word}");
        fs::remove_file(folder.join("clip.mp4")).unwrap();
    }
}

#[test]
fn the_text_encoder_is_not_needed_again() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, gemma) = (folder.path(), folder.path().join("gemma"));
    fs::create_dir(&gemma).unwrap();
    for entry in fs::read_dir(fixtures().join("gemma3")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, gemma.join(path.file_name().unwrap())).unwrap();
    }
    let more = ["--gemma", "gemma"];
    succeed(generate(folder, "whole.mp4", &more));
    until(generate(folder, "clip.mp4", &more), "half size: 2/8", "-KILL");
    fs::remove_dir_all(&gemma).unwrap();
    // From elsewhere, too: the run's own folder is known.
    succeed(resume(Path::new("/"), &[text(&folder.join("clip.mp4"))]));
    assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"));
}

#[test]
fn another_run_is_refused_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lora = folder.join("lora.safetensors");
    let known = fs::read_dir(fixtures().join("lora")).unwrap().map(|entry| entry.unwrap().path());
    let known = known.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    // The first that fits the model.
    let fits = known.into_iter().find(|path| {
        fs::copy(path, &lora).unwrap();
        generate(folder, "fits.mp4", &["--lora", "lora.safetensors", "--quiet"]).status().unwrap().success()
    });
    assert!(fits.is_some());
    let more = ["--lora", "lora.safetensors", "--steps", "4"];
    succeed(generate(folder, "whole.mp4", &more));
    until(generate(folder, "clip.mp4", &more), "half size: 3/4", "-KILL");
    let state = || {
        let mut names: Vec<_> =
            fs::read_dir(&runs(folder)[0]).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = state();
    for (change, word) in [
        (&["--seed", "7"][..], "seed was 42, is 7"),
        (&["--negative-prompt", "rain"], "negative_prompt was null, is \"rain\""),
        (&["--dtype", "f32"], "dtype was \"bf16\", is \"f32\""),
        (&["--frame-rate", "25"], "frame_rate was 24"),
        (&["--sampler", "res-2s"], "sampler was"),
        (&["--no-audio"], "audio was true, is false"),
    ] {
        let (code, said) = fail(generate(folder, "clip.mp4", &[&more[..], change, &["--resume"]].concat()));
        assert!(code == 2 && said.contains(word) && said.contains("leave out --resume"), "{word}: {said}");
        assert!(!folder.join("clip.mp4").exists());
    }
    let facts = fs::metadata(&lora).unwrap();
    let file = fs::File::options().append(true).open(&lora).unwrap();
    file.set_modified(facts.modified().unwrap() + std::time::Duration::from_secs(1)).unwrap();
    let (_, said) = fail(generate(folder, "clip.mp4", &[&more[..], &["--resume"]].concat()));
    assert!(said.contains("lora_files") && said.contains("changed"), "{said}");
    file.set_modified(facts.modified().unwrap()).unwrap();
    assert_eq!(state(), before, "a refused run leaves what is there");
    // What does not change the result is free to differ.
    let free = ["--resume", "--stream", "--timings", "--threads", "1"];
    succeed(generate(folder, "clip.mp4", &[&more[..], &free].concat()));
    assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"));
}

#[test]
fn damage_is_ignored_or_refused_with_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(generate(folder, "whole.mp4", &[]));
    for name in ["state.safetensors", "text.safetensors", "latents.npz", "run.json"] {
        let word = if name == "latents.npz" { "decode video: 1/" } else { "half size: 5/8" };
        for damage in ["cut", "flipped", "foreign"] {
            until(generate(folder, "clip.mp4", &[]), word, "-KILL");
            let path = runs(folder)[0].join(name);
            let mut content = fs::read(&path).unwrap();
            match damage {
                "cut" => content.truncate(content.len() / 2),
                "flipped" => {
                    let middle = content.len() / 2;
                    content[middle] ^= 0x10;
                }
                _ => content = b"<html>404</html>".to_vec(),
            }
            fs::write(&path, content).unwrap();
            if name == "run.json" {
                let (_, said) = fail(generate(folder, "clip.mp4", &["--resume"]));
                assert!(said.contains("leave out --resume"), "{damage}: {said}");
                succeed(generate(folder, "clip.mp4", &[]));
            } else {
                let said = said(generate(folder, "clip.mp4", &["--resume"]));
                assert!(
                    said.contains("what was saved is ignored") && said.contains(name),
                    "{damage}: {said}"
                );
            }
            assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"), "{name} {damage}");
            assert!(runs(folder).is_empty());
            fs::remove_file(folder.join("clip.mp4")).unwrap();
        }
    }
}

/// The program with files of at most so many blocks of 512 bytes, where a larger one cannot be written.
fn limited(command: &Command, blocks: usize) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(command.get_current_dir().unwrap());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

#[test]
fn a_disk_that_takes_no_more_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(generate(folder, "whole.mp4", &[]));
    let largest = bytes(folder, "whole.mp4").len() / 512;
    let mut kept = 0;
    // From nothing at all to all but the last block of the clip.
    for blocks in [0, 1, 8, 64, largest / 2, largest - 1] {
        let (code, said) = fail(limited(&generate(folder, "clip.mp4", &[]), blocks));
        assert!(code == 1 && said.contains("error:") && said.contains("clip.mp4"), "{blocks}: {said}");
        assert!(!folder.join("clip.mp4").exists());
        kept += usize::from(said.contains("go on with: ltx resume clip.mp4"));
        succeed(generate(folder, "clip.mp4", &["--resume"]));
        assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"), "{blocks} blocks");
        assert!(runs(folder).is_empty());
        fs::remove_file(folder.join("clip.mp4")).unwrap();
    }
    assert!(kept >= 2, "what was done is kept where there was room for it");
}

#[test]
fn a_run_can_be_decoded_in_smaller_tiles() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    until(generate(folder, "early.mp4", &[]), "half size: 1/8", "-KILL");
    let decode = |path: &str, more: &[&str]| {
        let mut command = ltx(&["decode", path, "--device", "cpu"]);
        command.current_dir(folder).args(more);
        command
    };
    let (code, said) = fail(decode(".ltx-run-early.mp4", &[]));
    assert!(code == 2 && said.contains("no latents yet") && said.contains("ltx resume"), "{said}");
    succeed(resume(folder, &[".ltx-run-early.mp4", "--tile-size", "64", "--tile-frames", "16"]));
    until(generate(folder, "clip.mp4", &[]), "decode video: 1/", "-KILL");
    let (code, said) = fail(decode(".ltx-run-clip.mp4", &["--tile-size", "100"]));
    assert!(code == 2 && said.contains("multiple of 32"), "{said}");
    // Elsewhere, the run stays.
    succeed(decode(".ltx-run-clip.mp4", &["--output", "whole.mp4"]));
    succeed(decode(".ltx-run-clip.mp4", &["--tile-size", "64", "--tile-frames", "16"]));
    assert_eq!(bytes(folder, "clip.mp4"), bytes(folder, "early.mp4"), "the same tiles");
    assert_ne!(bytes(folder, "clip.mp4"), bytes(folder, "whole.mp4"), "other tiles");
    assert!(runs(folder).is_empty());
}

#[test]
fn a_new_run_says_what_it_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (code, said) = fail(resume(folder, &[]));
    assert!(code == 2 && said.contains("no interrupted run"), "{said}");
    until(generate(folder, "clip.mp4", &[]), "half size: 2/8", "-KILL");
    let said = self::said(generate(folder, "clip.mp4", &["--seed", "3"]));
    assert!(
        said.contains("an interrupted run of clip.mp4") && said.contains("ltx resume clip.mp4"),
        "{said}"
    );
    assert!(runs(folder).is_empty());
    // Another run of the same output is at work.
    until(generate(folder, "clip.mp4", &[]), "half size: 2/8", "-KILL");
    let held = fs::File::open(&runs(folder)[0]).unwrap();
    held.try_lock().unwrap();
    let (_, said) = fail(generate(folder, "clip.mp4", &["--resume"]));
    assert!(said.contains("another run is at work"), "{said}");
    drop(held);
    // The only one in the folder needs no name; --resume with nothing to go on with begins.
    succeed(resume(folder, &[]));
    let said = self::said(generate(folder, "clip.mp4", &["--resume"]));
    assert!(said.contains("nothing is left of a run of clip.mp4"), "{said}");
}

#[test]
fn latents_do_not_replace_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("latents.safetensors");
    let _held = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let more = ["--dummy-text", "--save-latents", "latents.safetensors"];
    let (_, said) = fail(generate(folder.path(), "clip.mp4", &more));
    assert!(said.contains("device"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
