//! `ltx lora`, and what `--lora` names.

use std::path::PathBuf;

use hub::catalog::{ENTRIES, Kind};
use ltx::checkpoint::Checkpoint;
use ltx::checkpoint::lora::{Lora, Matches, merge};
use ltx::{Error, Result};
use serde_json::json;

use crate::args::{LoraCommand, LoraInspect, LoraMerge};
use crate::terminal::Terminal;

pub fn run(command: &LoraCommand) -> Result<()> {
    match command {
        LoraCommand::Inspect(arguments) => inspect(arguments),
        LoraCommand::Merge(arguments) => merge_into(arguments),
        LoraCommand::List => {
            let cache = crate::models::cache();
            for entry in ENTRIES.iter().filter(|entry| entry.kind == Kind::Lora) {
                let here = if entry.path(&cache).is_some() { "here" } else { "" };
                let caution = entry.caution.map(|caution| format!("; {caution}")).unwrap_or_default();
                println!("{:18}  {here:4}  {}{caution}", entry.name, entry.about);
                println!("{:26}{}:{}", "", entry.repo, entry.file.unwrap_or_default());
            }
            println!("\n--lora NAME adds one to a model; `ltx download NAME` fetches it first");
            Ok(())
        }
    }
}

/// LoRAs and their strengths, as they follow `--lora`: each file or name may have a number behind it.
pub fn given(values: &[String]) -> Result<Vec<(PathBuf, f32)>> {
    let mut loras: Vec<(PathBuf, f32)> = Vec::new();
    let mut fresh = false;
    for value in values {
        match (value.parse::<f32>(), loras.last_mut()) {
            (Ok(strength), Some((_, last))) if fresh => {
                if !strength.is_finite() {
                    return Err(Error::request(
                        format!("a LoRA's strength of {value}"),
                        "give a number such as 0.8",
                    ));
                }
                *last = strength;
                fresh = false;
            }
            _ => {
                loras.push((crate::models::lora(value)?, 1.0));
                fresh = true;
            }
        }
    }
    Ok(loras)
}

fn inspect(arguments: &LoraInspect) -> Result<()> {
    let lora = Lora::open(&crate::models::lora(&arguments.file)?)?;
    let matches = match arguments.against.as_slice() {
        [] => None,
        models => Some(lora.matches(&Checkpoint::open(&crate::models::models(models)?)?)?),
    };
    if arguments.json {
        let modules: Vec<_> = lora
            .modules()
            .iter()
            .map(|module| json!({ "name": module.name, "rank": module.rank, "shape": module.shape, "scale": module.scale }))
            .collect();
        let metadata: serde_json::Map<_, _> =
            lora.metadata().map(|(key, value)| (key.to_string(), json!(value))).collect();
        println!(
            "{:#}",
            json!({
                "file": lora.path(), "dtypes": lora.dtypes(), "modules": modules, "unknown": lora.unknown(), "metadata": metadata,
                "against": matches.as_ref().map(|matches| json!({
                    "matched": matches.matched, "unmatched": matches.unmatched,
                    "misfits": matches.misfits.iter().map(|misfit| json!({ "name": misfit.name, "shape": misfit.shape, "model": misfit.model })).collect::<Vec<_>>(),
                })),
            })
        );
        return Ok(());
    }
    println!("{}", lora.path().display());
    println!("  changes {} weights, {}", lora.modules().len(), lora.dtypes().join(" and "));
    println!("  rank {}", span(lora.modules().iter().map(|module| module.rank as f64)));
    println!("  alpha / rank {}", span(lora.modules().iter().map(|module| module.scale)));
    for (key, value) in lora.metadata() {
        println!(
            "  {}",
            crate::printable(&format!("{key}: {}", value.chars().take(200).collect::<String>()))
        );
    }
    list("not understood", lora.unknown().iter().cloned());
    if let Some(matches) = &matches {
        print(matches);
    }
    Ok(())
}

/// Smallest and largest.
fn span(values: impl Iterator<Item = f64> + Clone) -> String {
    let (least, most) =
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
    if least == most { format!("{least}") } else { format!("{least} to {most}") }
}

fn list(title: &str, names: impl ExactSizeIterator<Item = String>) {
    let count = names.len();
    if count > 0 {
        let shown: Vec<String> = names.take(5).collect();
        println!(
            "  {title}: {count}: {}{}",
            crate::printable(&shown.join(", ")),
            if count > 5 { ", …" } else { "" }
        );
    }
}

fn print(matches: &Matches) {
    let matched: Vec<String> =
        matches.matched.iter().map(|(component, count)| format!("{count} of the {component}")).collect();
    println!("  fits: {}", if matched.is_empty() { "nothing".into() } else { matched.join(", ") });
    list("not in the model", matches.unmatched.iter().cloned());
    list(
        "of another shape",
        matches
            .misfits
            .iter()
            .map(|misfit| format!("{} {:?} for {:?}", misfit.name, misfit.shape, misfit.model)),
    );
}

fn merge_into(arguments: &LoraMerge) -> Result<()> {
    let loras = given(&arguments.lora)?
        .into_iter()
        .map(|(path, strength)| Ok((Lora::open(&path)?, strength)))
        .collect::<Result<Vec<_>>>()?;
    let mut terminal = Terminal::new(arguments.quiet);
    let matches =
        merge(&crate::models::resolve(&arguments.model)?, &loras, &arguments.output, &mut terminal)?;
    terminal.finish();
    if !arguments.quiet {
        for ((lora, strength), matches) in loras.iter().zip(&matches) {
            println!("{} at {strength}", lora.path().display());
            print(matches);
        }
        println!("{}", arguments.output.display());
    }
    Ok(())
}
