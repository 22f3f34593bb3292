//! Gets `libmlx` and its headers, and compiles the bridge against them.
//!
//! In order: `MLX_DIR`, the user's cache, a pinned wheel through pip (checked against its sha256, then cached, so
//! that the next build works offline).

mod wheel;

use std::env;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use sha2::{Digest, Sha256};

/// What went wrong, and what the user can do.
struct Failure {
    problem: String,
    hint: &'static str,
}

type Result<T> = std::result::Result<T, Failure>;

const PYTHON: &str = "install python3 with pip (`apt-get install python3-pip`) and go online once, or set MLX_DIR to an unpacked MLX";
const CACHE: &str = "set LTX_CACHE_DIR to a folder that can be written";
const MLX_DIR: &str =
    "set MLX_DIR to a folder with MLX's include/ and lib/, or unset it to fetch the published library";
const MLX_CUDA_DIR: &str =
    "set MLX_CUDA_DIR to the unpacked wheel mlx-cuda-13, or unset it to fetch that wheel";

/// For `map_err`: any error, said of `subject`, with `hint`.
fn because<E: Display>(subject: impl Display, hint: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure { problem: format!("{subject}: {error}"), hint }
}

fn main() {
    if let Err(Failure { problem, hint }) = build() {
        eprintln!("error: cannot build with MLX {}: {problem}", wheel::VERSION);
        eprintln!("hint: {hint}");
        exit(1);
    }
}

fn build() -> Result<()> {
    for variable in ["MLX_DIR", "MLX_CUDA_DIR", "LTX_CACHE_DIR", "MACOSX_DEPLOYMENT_TARGET"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for file in ["build", "src/bridge.rs", "src/bridge.h", "src/bridge.cc", "src/packed.cc", "src/gpu.cc"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let cargo = |name| env::var(name).map_err(because(name, "build with cargo"));
    let (os, arch) = (cargo("CARGO_CFG_TARGET_OS")?, cargo("CARGO_CFG_TARGET_ARCH")?);
    let root = match env::var_os("MLX_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let macos = if os == "macos" { macos_version()? } else { 0 };
            let target = wheel::Target { os: &os, arch: &arch, cuda: false, macos };
            cached(wheel::choose(target).map_err(because("no library", MLX_DIR))?)?.join("mlx")
        }
    };
    // The program is linked to the library for the CPU in any case, and started anew with the other: see `src/cuda.rs`.
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let wheel = match env::var_os("MLX_CUDA_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => {
                let target = wheel::Target { os: &os, arch: &arch, cuda: true, macos: 0 };
                cached(wheel::choose(target).map_err(because("no library", MLX_CUDA_DIR))?)?
            }
        };
        let library = wheel.join("mlx/lib/libmlx.so");
        println!("cargo::rerun-if-changed={}", library.display());
        fs::metadata(&library).map_err(because(library.display(), MLX_CUDA_DIR))?;
        println!("cargo::rustc-env=LTX_CUDA_WHEEL={}", wheel.display());
    }
    let (include, library) = (root.join("include"), root.join("lib"));
    let header = include.join("mlx/version.h");
    // A cache that was emptied since is filled again.
    println!("cargo::rerun-if-changed={}", header.display());
    fs::metadata(&header).map_err(because(header.display(), MLX_DIR))?;
    cxx_build::bridge("src/bridge.rs")
        .file("src/bridge.cc")
        .file("src/packed.cc")
        .file("src/gpu.cc")
        .include(&include)
        .std("c++20")
        .warnings(false)
        .try_compile("ltx_mlx_bridge")
        .map_err(because("the C++ bridge", "install a C++20 compiler (`apt-get install g++`)"))?;

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
fn macos_version() -> Result<u32> {
    let hint = "set MACOSX_DEPLOYMENT_TARGET to the macOS version that the program is for, such as 14.0";
    let version = match env::var("MACOSX_DEPLOYMENT_TARGET") {
        Ok(version) => version,
        Err(_) => {
            let output = Command::new("sw_vers").arg("-productVersion").output();
            String::from_utf8_lossy(&output.map_err(because("sw_vers", hint))?.stdout).into_owned()
        }
    };
    wheel::macos_major(&version)
        .ok_or_else(|| Failure { problem: format!("`{version}` is not a macOS version"), hint })
}

/// The folder of the unpacked wheel, fetched into the user's cache when it is not there yet.
fn cached(wheel: &wheel::Wheel) -> Result<PathBuf> {
    let cache = match env::var_os("LTX_CACHE_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let home = env::var_os("HOME").ok_or("not set").map_err(because("HOME", CACHE))?;
            PathBuf::from(home).join(".cache/ltx")
        }
    }
    .join("mlx");
    let folder = cache.join(wheel.folder());
    if folder.is_dir() {
        return Ok(folder);
    }
    // Unpack beside the final place and rename, so that a build that is stopped leaves no half library behind.
    let staging = cache.join(format!("{}.{}", wheel.folder(), std::process::id()));
    let result = fetch(wheel, &staging).and_then(|unpacked| match fs::rename(&unpacked, &folder) {
        Err(error) if !folder.is_dir() => Err(because(folder.display(), CACHE)(error)),
        _ => Ok(()),
    });
    fs::remove_dir_all(&staging).ok();
    result.map(|()| folder)
}

fn fetch(wheel: &wheel::Wheel, staging: &Path) -> Result<PathBuf> {
    let (download, unpacked) = (staging.join("wheel"), staging.join("unpacked"));
    fs::create_dir_all(&download).map_err(because(download.display(), CACHE))?;
    let text = |path: &Path| path.display().to_string();
    python(&[vec!["pip".into()], wheel.pip_arguments(&text(&download))].concat())?;
    let files = fs::read_dir(&download).map_err(because(download.display(), CACHE))?;
    let file = files.flatten().next().ok_or("empty").map_err(because("what pip fetched", PYTHON))?.path();
    let bytes = fs::read(&file).map_err(because(file.display(), CACHE))?;
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest != wheel.sha256 {
        let hint = "this is not the published file: try another network or package mirror, or set MLX_DIR to an unpacked MLX";
        let problem = format!("{} has sha256 {digest}, expected {}", file.display(), wheel.sha256);
        return Err(Failure { problem, hint });
    }
    python(&["zipfile".into(), "-e".into(), text(&file), text(&unpacked)])?;
    Ok(unpacked)
}

fn python(module_and_arguments: &[String]) -> Result<()> {
    let command = format!("python3 -m {}", module_and_arguments.join(" "));
    let output = Command::new("python3").arg("-m").args(module_and_arguments).output();
    let output = output.map_err(because("python3", PYTHON))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let last = message.lines().last().unwrap_or("no message");
    Err(because(command, PYTHON)(last))
}
