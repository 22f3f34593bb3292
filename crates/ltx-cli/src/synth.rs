//! `ltx synth`: model files of full size with random weights.

use std::path::Path;

use ltx::synth::{Like, Synth};
use ltx::{Error, Result};

use crate::args::{LikeChoice, Synth as Arguments};
use crate::terminal::Terminal;

/// The tokenizer of the tests: what prompts become does not matter to random weights.
const TOKENIZER: &str = include_str!("../../../fixtures/gemma3/tokenizer.json");

pub fn run(arguments: &Arguments) -> Result<()> {
    let like = match arguments.like {
        LikeChoice::V2_0 => Like::V2_0,
        LikeChoice::V2_3 => Like::V2_3,
        LikeChoice::Upsampler => Like::Upsampler,
        LikeChoice::Gemma => Like::Gemma,
    };
    let synth = Synth { like, blocks: arguments.blocks, filled: arguments.filled, seed: arguments.seed };
    let layout = synth.layout()?;
    let (bytes, needed) = (layout.bytes(), layout.filled_bytes(synth.filled));
    if let Some(room) = hub::room(&absolute(&arguments.output)?).filter(|&room| room < needed) {
        return Err(Error::machine(
            format!(
                "{:.1} GB are needed on the disk, and {:.1} GB are free",
                gigabytes(needed),
                gigabytes(room)
            ),
            "choose another disk, fewer --blocks, or fewer of them --filled",
        ));
    }
    let mut terminal = Terminal::new(arguments.quiet);
    if like == Like::Gemma {
        let folder = &arguments.output;
        let failed = |error: std::io::Error| {
            Error::file(
                folder,
                "",
                format!("cannot be written: {error}"),
                "give a folder that you may write to",
            )
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        for (name, text) in
            [("config.json", format!("{:#}\n", synth.config()?)), ("tokenizer.json", TOKENIZER.into())]
        {
            std::fs::write(folder.join(name), text).map_err(failed)?;
        }
        synth.write(&folder.join("model.safetensors"), &mut terminal)?;
    } else {
        synth.write(&arguments.output, &mut terminal)?;
    }
    terminal.finish();
    if !arguments.quiet {
        let holes =
            if needed < bytes { format!(", {:.1} GB on the disk", gigabytes(needed)) } else { String::new() };
        println!(
            "{}: {} tensors of random numbers, {:.1} GB{holes}",
            arguments.output.display(),
            layout.tensors.len(),
            gigabytes(bytes)
        );
    }
    Ok(())
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn absolute(path: &Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::file(path, "", error.to_string(), "give the path of a file"))
}
