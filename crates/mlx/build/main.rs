//! Gets `libmlx` and its headers, and compiles the bridge against them.
//!
//! In order: `MLX_DIR`, the user's cache, a pinned wheel through pip (checked against its sha256, then cached, so
//! that the next build works offline).

mod wheel;

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use sha2::{Digest, Sha256};

fn main() {
    if let Err(error) = build() {
        eprintln!("error: cannot get MLX {}: {error}", wheel::VERSION);
        eprintln!(
            "hint: install python3 with pip (`apt-get install python3-pip`) and a C++20 compiler, or set MLX_DIR to a folder with MLX's include/ and lib/"
        );
        exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    for variable in ["MLX_DIR", "LTX_CACHE_DIR", "MACOSX_DEPLOYMENT_TARGET"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for file in ["build", "src/bridge.rs", "src/bridge.h", "src/bridge.cc"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let os = env::var("CARGO_CFG_TARGET_OS")?;
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();
    let root = match env::var_os("MLX_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let macos = if os == "macos" { macos_version()? } else { 0 };
            cached(wheel::choose(wheel::Target { os: &os, arch: &arch, cuda, macos })?)?
        }
    };
    let (include, library) = (root.join("include"), root.join("lib"));
    let header = include.join("mlx/version.h");
    if !header.is_file() {
        return Err(format!("{} does not exist", header.display()).into());
    }
    cxx_build::bridge("src/bridge.rs")
        .file("src/bridge.cc")
        .include(&include)
        .std("c++20")
        .warnings(false)
        .compile("ltx_mlx_bridge");

    println!("cargo::rustc-link-search=native={}", library.display());
    println!("cargo::rustc-link-lib=dylib=mlx");
    // Link arguments reach only this package's own tests: the crates above pass `DEP_MLX_RPATHS` on to theirs.
    let rpaths = wheel::rpaths(&os, &library.display().to_string());
    for rpath in &rpaths {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    }
    println!("cargo::metadata=rpaths={}", rpaths.join(";"));
    Ok(())
}

/// The major macOS version that the program must run on: what the user set, or this machine's.
fn macos_version() -> Result<u32, Box<dyn Error>> {
    let version = match env::var("MACOSX_DEPLOYMENT_TARGET") {
        Ok(version) => version,
        Err(_) => String::from_utf8(Command::new("sw_vers").arg("-productVersion").output()?.stdout)?,
    };
    wheel::macos_major(&version).ok_or_else(|| format!("`{version}` is not a macOS version").into())
}

/// The unpacked wheel's `mlx` folder, fetched into the user's cache when it is not there yet.
fn cached(wheel: &wheel::Wheel) -> Result<PathBuf, Box<dyn Error>> {
    let cache = match env::var_os("LTX_CACHE_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").ok_or("HOME is not set")?).join(".cache/ltx"),
    }
    .join("mlx");
    let folder = cache.join(wheel.folder());
    if folder.is_dir() {
        return Ok(folder.join("mlx"));
    }
    // Unpack beside the final place and rename, so that a build that is stopped leaves no half library behind.
    let staging = cache.join(format!("{}.{}", wheel.folder(), std::process::id()));
    let result = fetch(wheel, &staging).and_then(|unpacked| match fs::rename(&unpacked, &folder) {
        Err(error) if !folder.is_dir() => Err(error.into()),
        _ => Ok(()),
    });
    fs::remove_dir_all(&staging).ok();
    result.map(|()| folder.join("mlx"))
}

fn fetch(wheel: &wheel::Wheel, staging: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let (download, unpacked) = (staging.join("wheel"), staging.join("unpacked"));
    fs::create_dir_all(&download)?;
    let text = |path: &Path| path.display().to_string();
    python(&[vec!["pip".into()], wheel.pip_arguments(&text(&download))].concat())?;
    let file = fs::read_dir(&download)?.next().ok_or("pip fetched nothing")??.path();
    let digest: String = Sha256::digest(fs::read(&file)?).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest != wheel.sha256 {
        return Err(format!("{} has sha256 {digest}, expected {}", file.display(), wheel.sha256).into());
    }
    python(&["zipfile".into(), "-e".into(), text(&file), text(&unpacked)])?;
    Ok(unpacked)
}

fn python(module_and_arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let output = Command::new("python3")
        .arg("-m")
        .args(module_and_arguments)
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = message.lines().rev().take(2).collect();
        return Err(format!(
            "python3 -m {}: {}",
            module_and_arguments.join(" "),
            last.into_iter().rev().collect::<Vec<_>>().join(" ")
        )
        .into());
    }
    Ok(())
}
