//! Every command of docs/from-ltx-2-mlx.md, typed as it stands there, where LTX-2-MLX would have its files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::Path;

use program::{fail, fixtures, ltx, succeed};

/// The commands in backticks that have arguments, in order, each once; their words as a shell would part them.
fn commands() -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/from-ltx-2-mlx.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut commands: Vec<Vec<String>> = Vec::new();
    for command in page.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("ltx ")) {
        let quoted = command.split('"').enumerate().flat_map(|(index, text)| match index % 2 {
            0 => text.split_whitespace().map(String::from).collect(),
            _ => vec![text.to_string()],
        });
        let words: Vec<String> = quoted.collect();
        if words.len() > 1 && !commands.contains(&words) {
            commands.push(words);
        }
    }
    commands
}

/// A folder with the files that the commands name. The tiny model of 2.3 has the name of 2.0's, because the LoRAs fit it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(fixtures().join(from), to).unwrap();
    };
    copy("2.3/model.safetensors", "weights/ltx-2/ltx-2-19b-distilled.safetensors");
    for file in std::fs::read_dir(fixtures().join("gemma3")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        copy(&format!("gemma3/{name}"), &format!("weights/gemma-3-12b/{name}"));
    }
    copy("images/first.png", "first.png");
    copy("images/last.png", "last.png");
    copy("lora/official.safetensors", "lora.safetensors");
    folder
}

#[test]
fn every_command_of_the_page_runs_as_it_is_written() {
    let folder = folder();
    let commands = commands();
    assert!(commands.len() > 15, "the page has lost its commands: {commands:?}");
    for words in commands {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = ltx(&words);
        command.current_dir(folder.path());
        if words[0] == "download" {
            // Understood, and stopped before anything is asked for.
            let (code, said) = fail({
                command.env("HF_HUB_OFFLINE", "1");
                command
            });
            assert!(code == 2 && said.contains("HF_HUB_OFFLINE"), "{words:?}: {said}");
        } else {
            succeed(command);
        }
    }
    for made in ["output.mp4", "prompt_embedding.npz", "output_latent.npz", "output_latent.png"] {
        assert!(folder.path().join(made).exists(), "{made}");
    }
}

#[test]
fn without_the_originals_files_their_names_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let mut command = ltx(arguments);
        command.current_dir(folder.path());
        fail(command)
    };
    let gemma = fixtures().join("gemma3").display().to_string();
    let (code, told) = said(&["encode-text", "a boat", "--gemma", &gemma]);
    assert!(code == 2 && told.contains("weights/ltx-2/ltx-2-19b-distilled.safetensors"), "{told}");
    let model = fixtures().join("2.3/model.safetensors").display().to_string();
    for arguments in [&["encode-text", "a boat", "--ltx-weights", &model][..], &["enhance", "a boat"]] {
        let (code, told) = said(arguments);
        assert!(code == 2 && told.contains("--gemma") && told.contains("ltx download gemma"), "{told}");
    }
}
