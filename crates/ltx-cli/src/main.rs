//! The program `ltx`: arguments in, library calls, words on the screen and an exit code out.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage (or, for `verify`, a file that cannot be used), 130 interrupted.

mod args;
mod bench;
mod cache;
#[cfg(feature = "cuda")]
mod cuda;
mod decode;
mod devices;
mod download;
mod encode;
mod enhance;
mod generate;
mod images;
mod inspect;
mod lora;
mod machine;
mod memory;
mod models;
mod plan;
mod quantize;
mod resume;
mod shots;
mod synth;
mod terminal;
mod toy;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use ltx::Error;

use args::{Cli, Command, DtypeChoice};
use machine::choose_device;
use terminal::{say, sayln};

fn main() -> ExitCode {
    end_when_nobody_reads();
    let Cli { command, threads } = Cli::parse();
    if let Err(error) = machine::set_up(threads) {
        return finish(Err(error));
    }
    match command {
        Command::Generate(arguments) => finish(generate::run(&arguments)),
        Command::Plan(arguments) => finish(plan::run(&arguments)),
        Command::Inspect(arguments) => finish(inspect::run(&arguments)),
        Command::EncodeText(arguments) => finish(encode::run(&arguments)),
        Command::Resume(arguments) => finish(resume::run(&arguments)),
        Command::Decode(arguments) => finish(decode::run(&arguments)),
        Command::Cache { command } => finish(cache::run(command.as_ref())),
        Command::Enhance(arguments) => finish(enhance::run(&arguments)),
        Command::Lora(command) => finish(lora::run(&command)),
        Command::Quantize(arguments) => finish(quantize::run(&arguments)),
        Command::Download(arguments) => download::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Devices(arguments) => finish(devices::run(&arguments)),
        Command::Bench(arguments) => finish(bench::run(&arguments)),
        Command::Synth(arguments) => finish(synth::run(&arguments)),
    }
}

/// A reader that has seen enough (`ltx cache list | head`) closes the pipe: that is the end, and no failure to report. A
/// result that cannot be printed, onto a full disk say, is one.
fn end_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        match said.and_then(|said| said.strip_prefix("failed printing to stdout: ")) {
            Some(problem) if problem.contains("Broken pipe") => std::process::exit(0),
            Some(problem) => {
                let remedy = "see whether the disk that it goes to is full";
                print_error(&Error::machine(format!("the result cannot be printed: {problem}"), remedy));
                std::process::exit(1);
            }
            None => usual(panic),
        }
    }));
}

fn finish(result: ltx::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if matches!(error, Error::Cancelled) {
        sayln!("interrupted: no output was written");
        return ExitCode::from(130);
    }
    print_error(&error);
    ExitCode::from(if matches!(error, Error::Request { .. }) { 2 } else { 1 })
}

fn print_error(error: &Error) {
    sayln!("error: {}", printable(&error.to_string()));
    if let Some(remedy) = error.remedy() {
        sayln!("hint: {}", printable(&remedy));
    }
}

/// Names in files can hold what would control a terminal.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}")
}

fn dtype(choice: DtypeChoice) -> mlx::Dtype {
    match choice {
        DtypeChoice::Bf16 => mlx::Dtype::Bf16,
        DtypeChoice::F16 => mlx::Dtype::F16,
        DtypeChoice::F32 => mlx::Dtype::F32,
    }
}
