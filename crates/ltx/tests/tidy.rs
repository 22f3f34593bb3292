//! The repository's rules that a machine can check.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

/// Every Rust, Python and C++ file of ours, with its path from the root and its text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders: Vec<PathBuf> = ["crates", "reference"].iter().map(|name| root.join(name)).collect();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with("__pycache__") {
                    folders.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|ending| ["rs", "py", "cc", "h"].iter().any(|known| ending == *known))
            {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                sources.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(sources.len() > 100, "the sources were not found");
    sources
}

fn check(rule: &str, broken: impl Fn(&str, &str) -> bool) {
    let offenders: Vec<String> =
        sources().into_iter().filter(|(path, text)| broken(path, text)).map(|(path, _)| path).collect();
    assert!(offenders.is_empty(), "{rule}: {offenders:#?}");
}

#[test]
fn files_are_short() {
    check("no file of much over 500 lines", |_, text| text.lines().count() > 520);
}

#[test]
fn modules_say_what_they_hold() {
    check("a Rust file opens with //!", |path, text| path.ends_with(".rs") && !text.starts_with("//!"));
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["db", "g!("].concat(),
    ];
    check("no marks of unfinished work", |_, text| marks.iter().any(|mark| text.contains(mark.as_str())));
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let allowed = ["crates/mlx/", "crates/kernels/", "crates/ltx/src/checkpoint/header.rs"];
    let keyword = ["unsafe", " {"].concat();
    check("unsafe code outside the binding, the kernels and the memory map", |path, text| {
        !allowed.iter().any(|place| path.starts_with(place)) && text.contains(&keyword)
    });
}
