//! `ltx verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ltx::Error;
use ltx::checkpoint::Checkpoint;
use ltx::verify::{Comparison, Context, Golden, Report, verify};
use serde_json::json;

use crate::args::Verify;

pub fn run(arguments: &Verify) -> ExitCode {
    let context = match crate::choose_device(arguments.device) {
        Ok(_) => Context { dtype: crate::dtype(arguments.dtype) },
        Err(error) => {
            crate::print_error(&error);
            return ExitCode::from(2);
        }
    };
    let (mut failed, mut unusable) = (0, 0);
    for path in &arguments.goldens {
        match models(path, &arguments.model).and_then(|checkpoint| verify(path, &checkpoint, &context)) {
            Ok(report) => {
                failed += usize::from(!report.passed());
                if arguments.json { print_json(path, &report) } else { print(path, &report) }
            }
            Err(error) => {
                unusable += 1;
                crate::print_error(&error);
            }
        }
    }
    if arguments.goldens.len() > 1 && !arguments.json {
        let passed = arguments.goldens.len() - failed - unusable;
        println!("{passed} passed, {failed} failed, {unusable} unusable");
    }
    ExitCode::from(if unusable > 0 { 2 } else { u8::from(failed > 0) })
}

/// The files given, or those the golden names: they lie beside the folder of the golden.
fn models(golden: &Path, given: &[PathBuf]) -> ltx::Result<Checkpoint> {
    if !given.is_empty() {
        return Checkpoint::open(&crate::models::models(given)?);
    }
    let named = Golden::open(golden)?.checkpoints();
    let set = golden.parent().map_or(PathBuf::from(".."), |folder| folder.join(".."));
    let paths: Vec<PathBuf> = named.iter().map(|name| set.join(name)).collect();
    match paths.iter().find(|path| !path.exists()) {
        None => Checkpoint::open(&paths),
        Some(missing) => Err(Error::request(
            format!("{}: made with {}, which is not there", golden.display(), missing.display()),
            "name the model with --model",
        )),
    }
}

fn print(path: &Path, report: &Report) {
    println!("{} ({}, tolerance {:.0e})", path.display(), report.component, report.tolerance);
    let width = report.comparisons.iter().map(|comparison| comparison.name.len()).max().unwrap_or(0);
    for Comparison { name, worst, relative, passed, .. } in &report.comparisons {
        println!(
            "  {name:width$}  worst {worst:.3e}  relative {relative:.3e}  {}",
            if *passed { "pass" } else { "FAIL" }
        );
    }
    if let Some(first) = report.comparisons.iter().find(|comparison| !comparison.passed) {
        let (index, ours, reference) = &first.at;
        println!(
            "  first difference in {}: at {index:?} this build has {ours}, the reference {reference}",
            first.name
        );
    }
    for note in &report.notes {
        println!("  note: {note}");
    }
}

fn print_json(path: &Path, report: &Report) {
    let tensors: Vec<_> = report
        .comparisons
        .iter()
        .map(|comparison| {
            let Comparison { name, worst, relative, passed, .. } = comparison;
            json!({ "name": name, "worst": worst, "relative": relative, "pass": passed })
        })
        .collect();
    println!(
        "{}",
        json!({
            "golden": path, "component": report.component, "tolerance": report.tolerance,
            "pass": report.passed(), "tensors": tensors, "notes": report.notes,
        })
    );
}
