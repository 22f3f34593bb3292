//! `ltx cache`, and where the program's cache is: `$LTX_CACHE_DIR`, or `~/.cache/ltx`; encoded prompts are in its
//! `embeddings`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::{env, fs};

use ltx::text::EmbeddingCache;
use ltx::{Error, Result};
use tempfile::NamedTempFile;

use crate::args::CacheCommand;
use crate::terminal::seconds;

/// The program's cache; none for a user without a home.
pub fn folder() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("LTX_CACHE_DIR").or_else(|| named("HOME").map(|home| home.join(".cache/ltx")))
}

/// Writes a file, whole or not at all, and the folders that it is in. Whoever has the old one open keeps it.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// The cache of encoded prompts in it.
pub fn open() -> Option<EmbeddingCache> {
    Some(EmbeddingCache::new(folder()?.join("embeddings"), EmbeddingCache::LIMIT))
}

pub fn run(command: Option<&CacheCommand>) -> Result<()> {
    let cache = open().ok_or_else(|| Error::request("no place for a cache", "set HOME or LTX_CACHE_DIR"))?;
    match command.unwrap_or(&CacheCommand::List) {
        CacheCommand::Path => println!("{}", cache.folder().display()),
        CacheCommand::Clear => {
            let (entries, bytes) = cache.clear()?;
            println!("removed {entries} encoded prompts, {} MiB", mib(bytes));
        }
        CacheCommand::List => {
            let entries = cache.entries()?;
            for entry in &entries {
                let ago =
                    entry.used.elapsed().map_or_else(|_| "now".into(), |ago| format!("{} ago", seconds(ago)));
                let prompt = entry.prompt.as_deref().unwrap_or("(damaged: it will be made anew)");
                let first: String =
                    prompt.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect();
                println!("{:>6} MiB  used {ago}  {first}", mib(entry.bytes));
            }
            let bytes = entries.iter().map(|entry| entry.bytes).sum();
            println!(
                "{} encoded prompts, {} of at most {} MiB, in {}",
                entries.len(),
                mib(bytes),
                EmbeddingCache::LIMIT >> 20,
                cache.folder().display()
            );
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
