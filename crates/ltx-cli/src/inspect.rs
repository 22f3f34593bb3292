//! `ltx inspect`

use ltx::checkpoint::Component;
use ltx::inspect::{Part, inspect};
use serde_json::json;

use crate::args::Inspect;

pub fn run(arguments: &Inspect) -> ltx::Result<()> {
    let inspection = inspect(&crate::models::models(&arguments.paths)?)?;
    if arguments.json {
        let parts: Vec<_> = inspection
            .parts
            .iter()
            .map(|part| {
                json!({
                    "component": part.name, "file": part.file, "parameters": part.parameters, "tensors": part.tensors,
                    "bytes": part.bytes, "dtypes": part.dtypes, "facts": part.facts, "unread": part.unread, "problem": part.problem,
                })
            })
            .collect();
        println!("{:#}", json!({ "version": inspection.version, "components": parts }));
        return Ok(());
    }
    if inspection.parts.iter().any(|part| part.name == Component::Dit.to_string()) {
        println!(
            "version: {}",
            inspection.version.as_deref().unwrap_or("not stated: before 2.3, read as 2.0")
        );
    }
    for part in &inspection.parts {
        print(part);
    }
    Ok(())
}

fn print(part: &Part) {
    let dtypes: Vec<String> =
        part.dtypes.iter().map(|(dtype, count)| format!("{} {dtype}", parameters(*count))).collect();
    println!("\n{}  ({})", part.name, part.file.display());
    println!(
        "  {} parameters in {} tensors, {}: {}",
        parameters(part.parameters),
        part.tensors,
        bytes(part.bytes),
        dtypes.join(", ")
    );
    for (name, value) in &part.facts {
        println!("  {name}: {value}");
    }
    if let Some(problem) = &part.problem {
        println!("  problem: {problem}");
    }
    if !part.unread.is_empty() {
        println!(
            "  not used: {} tensors: {}{}",
            part.unread.len(),
            part.unread[..part.unread.len().min(5)].join(", "),
            if part.unread.len() > 5 { ", …" } else { "" }
        );
    }
}

fn parameters(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.3} B", count as f64 / 1e9),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", count as f64 / 1_073_741_824.0),
    }
}
