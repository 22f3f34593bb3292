//! Lets the program find `libmlx` where the binding found it, and puts the files of the toy model into the program.
//!
//! They are those of the folder `toy` of the repository, or of `LTX_TOY_DIR`. Where there are none, the program is built
//! without a model of its own; `cfg(toy)` says which it is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What a toy must have; `src/toy.rs` knows these names.
const NEEDED: [&str; 5] = [
    "toy-2.3.safetensors",
    "toy-2.3-spatial-x2.safetensors",
    "gemma/model.safetensors",
    "gemma/tokenizer.json",
    "words.json",
];

fn main() -> io::Result<()> {
    let rpaths = env::var("DEP_MLX_RPATHS").unwrap_or_default();
    for rpath in rpaths.split(';').filter(|rpath| !rpath.is_empty()) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        // Those folders must come after LD_LIBRARY_PATH, which names the libmlx for a GPU.
        println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags");
    }
    embed_toy()
}

/// Writes `toy.rs`: a fingerprint of all names and bytes, and each file's name and bytes.
fn embed_toy() -> io::Result<()> {
    println!("cargo::rustc-check-cfg=cfg(toy)");
    println!("cargo::rerun-if-env-changed=LTX_TOY_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let repository = variable("CARGO_MANIFEST_DIR").unwrap_or_default().join("../..");
    let folder = variable("LTX_TOY_DIR").unwrap_or_else(|| repository.join("toy"));
    let mut names = Vec::new();
    if folder.is_dir() {
        println!("cargo::rerun-if-changed={}", folder.display());
        names_in(&folder, "", &mut names)?;
        names.sort();
    }
    let missing: Vec<_> =
        NEEDED.into_iter().filter(|needed| !names.iter().any(|name| name == needed)).collect();
    match missing.as_slice() {
        [] => println!("cargo::rustc-cfg=toy"),
        _ if names.is_empty() => {}
        _ => return Err(io::Error::other(format!("{} lacks {}", folder.display(), missing.join(", ")))),
    }
    let (mut files, mut fingerprint) = (String::new(), 0xcbf2_9ce4_8422_2325_u64); // FNV-1a
    for name in &names {
        let path = folder.join(name).canonicalize()?;
        for byte in name.bytes().chain(fs::read(&path)?) {
            fingerprint = (fingerprint ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        let _ = write!(files, "({name:?}, include_bytes!({path:?})), ");
    }
    let source = format!(
        "const FINGERPRINT: &str = \"{fingerprint:016x}\";\nconst FILES: &[(&str, &[u8])] = &[{files}];\n"
    );
    fs::write(variable("OUT_DIR").unwrap_or_default().join("toy.rs"), source)
}

/// Paths of the weights and JSON files in a folder and those within, parted by slashes.
fn names_in(folder: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            names_in(&entry.path(), &format!("{name}/"), names)?;
        } else if [".safetensors", ".json"].iter().any(|ending| name.ends_with(ending)) {
            names.push(name);
        }
    }
    Ok(())
}
