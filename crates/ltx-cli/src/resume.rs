//! `ltx resume`, and what `ltx generate` says of interrupted runs.

use std::path::{Path, PathBuf};

use clap::Parser;
use ltx::pipeline::SavedRun;
use ltx::progress::{Event, Progress};
use ltx::{Error, Result};
use serde_json::{Value, json};

use crate::args::{Cli, Command, Resume};
use crate::terminal::{Terminal, say, sayln};

/// Repeats the command of an interrupted run, with `--resume`.
pub fn run(arguments: &Resume) -> Result<()> {
    let folder = match &arguments.output {
        Some(path) if path.is_dir() && is_run(path) => path.clone(),
        Some(path) => SavedRun::folder_of(path),
        None => only_one()?,
    };
    if !folder.is_dir() {
        return Err(Error::request(
            format!("there is no interrupted run in {}", folder.display()),
            "give the output that it was to write; runs are resumed beside it",
        ));
    }
    let saved = SavedRun::open(&folder)?;
    let unknown = || {
        let remedy = "repeat the command with --resume";
        Error::file(&folder, "", "does not say which command it was", remedy)
    };
    let note = saved.note().ok_or_else(unknown)?;
    let words = |value: &Value| value.as_str().map(String::from);
    let command: Option<Vec<String>> =
        note["arguments"].as_array().and_then(|all| all.iter().map(words).collect());
    let (command, place) = command.zip(words(&note["folder"])).ok_or_else(unknown)?;
    drop(saved);
    std::env::set_current_dir(&place).map_err(|error| {
        Error::file(&place, "", format!("cannot be entered: {error}"), "the run was begun there")
    })?;
    let Cli { command, threads } = Cli::try_parse_from(command.iter().chain(&arguments.more))
        .map_err(|error| Error::request(error.to_string().trim().to_string(), "see ltx generate --help"))?;
    crate::machine::set_up(threads)?;
    let Command::Generate(mut generate) = command else { return Err(unknown()) };
    generate.resume = true;
    crate::generate::run(&generate)
}

fn is_run(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".ltx-run-"))
}

/// The one interrupted run in this folder.
fn only_one() -> Result<PathBuf> {
    let entries = std::fs::read_dir(".").into_iter().flatten().flatten();
    let mut runs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_run(path)).collect();
    runs.sort();
    match runs.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            Err(Error::request("there is no interrupted run in this folder", "say which: ltx resume OUTPUT"))
        }
        more => {
            let names: Vec<String> = more.iter().map(|path| path.display().to_string()).collect();
            Err(Error::request(
                format!("several runs were interrupted: {}", names.join(", ")),
                "say which one",
            ))
        }
    }
}

/// What is kept with a run for whoever goes on with it: its command, and the prompt as it was typed.
pub fn note(prompt: Option<&str>) -> Value {
    let arguments: Option<Vec<String>> =
        std::env::args_os().map(|argument| argument.into_string().ok()).collect();
    let folder = std::env::current_dir().ok().and_then(|folder| folder.into_os_string().into_string().ok());
    json!({ "arguments": arguments, "folder": folder, "prompt": prompt })
}

/// What an interrupted run left, to go on with.
pub fn open(output: &Path, terminal: &mut Terminal) -> Result<SavedRun> {
    let saved = SavedRun::create(output)?;
    if saved.note().is_none() {
        let _ = terminal
            .event(Event::Note(format!("nothing is left of a run of {}: it begins", output.display())));
    }
    Ok(saved)
}

/// A place to save to; what an interrupted run left there is mentioned.
pub fn create(output: &Path, terminal: &mut Terminal) -> Result<SavedRun> {
    let saved = SavedRun::create(output)?;
    if let Some(done) = saved.progress().filter(|_| saved.note().is_some()) {
        let _ = terminal.event(Event::Note(format!(
            "an interrupted run of {} is here ({done}), which this one replaces after its first step; to go on with it \
             instead, stop and type: ltx resume {0}",
            output.display()
        )));
    }
    Ok(saved)
}

/// What an interrupted run made of the same prompt.
pub fn enhanced(saved: &SavedRun, note: &Value) -> Option<String> {
    let prompt = saved.settings()?.get("prompt")?.as_str()?;
    (saved.note()?["prompt"] == note["prompt"]).then(|| prompt.to_string())
}

/// How to go on with a run that ends early.
pub fn say_how(saved: &SavedRun) {
    let Some(done) = saved.progress() else { return };
    sayln!("what is done is kept ({done}); go on with: ltx resume {}", saved.output().display());
}
