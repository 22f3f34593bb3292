//! Starting the program anew with MLX for CUDA, when this machine has all that it needs. Why so is said in `mlx::cuda`.
//!
//! `LTX_CUDA_LIBS` names folders with NVIDIA's libraries; without it Python's are looked through. `LTX_CUDA_STARTED` is
//! ours: it tells the new process that it is one.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlx::cuda::{Absence, Setup, driver, find, wheel};

const STARTED: &str = "LTX_CUDA_STARTED";

/// What [`STARTED`] says in a process that was started with MLX for CUDA, and in one that was started without it again.
const WITH: &str = "with";
const WITHOUT: &str = "without";

/// Goes on as a new process whose MLX computes on the GPU; returns only if there can be none, or if this is that process.
pub fn start() -> Result<(), Absence> {
    if mlx::device::gpu_available() {
        return Ok(());
    }
    let started = env::var_os(STARTED);
    if started.as_deref().is_some_and(|started| started == WITHOUT) {
        return Err(Absence {
            problem: "MLX for CUDA was started and found no card".into(),
            remedy:
                "see whether `nvidia-smi` lists one, and whether the driver is newer than NVIDIA's libraries"
                    .into(),
        });
    }
    driver()?;
    let setup = find(&wheels(), &folders())?;
    // Without a card MLX for CUDA cannot even compute on the CPU.
    let failed = anew(&setup, if started.is_some() { WITHOUT } else { WITH });
    Err(Absence {
        problem: format!("the program cannot be started anew: {failed}"),
        remedy: "see whether its file can still be read and run".into(),
    })
}

/// Replaces this process by one with MLX for CUDA or without it; returns if that fails.
fn anew(setup: &Setup, how: &str) -> std::io::Error {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let before = env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty());
    let before =
        before.iter().flat_map(env::split_paths).filter(|folder| !setup.library_path.contains(folder));
    let first = if how == WITH { setup.library_path.as_slice() } else { &[] };
    let path = match env::join_paths(first.iter().cloned().chain(before)) {
        Ok(path) => path,
        Err(error) => return std::io::Error::other(error),
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    command.arg0(arguments.next().unwrap_or_else(|| OsString::from("ltx"))).args(arguments);
    command.env("LD_LIBRARY_PATH", path).env("CUDA_HOME", &setup.cuda_home).env(STARTED, how);
    // What is said to be f32 is not to be rounded to 10 bits on the way.
    if env::var_os("MLX_ENABLE_TF32").is_none() {
        command.env("MLX_ENABLE_TF32", "0");
    }
    command.exec()
}

/// Where the wheel may lie: in a folder `cuda` beside the program, or where it was when the program was built.
fn wheels() -> Vec<PathBuf> {
    let beside = env::current_exe().ok().and_then(|program| Some(program.parent()?.join("cuda")));
    beside.into_iter().chain([wheel().to_path_buf()]).collect()
}

/// Where NVIDIA's libraries may lie, beside the loader's own places.
fn folders() -> Vec<PathBuf> {
    if let Some(given) = env::var_os("LTX_CUDA_LIBS").filter(|given| !given.is_empty()) {
        return env::split_paths(&given).collect();
    }
    let mut folders = Vec::new();
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os) {
        let pythons = fs::read_dir(Path::new(&root).join("lib")).into_iter().flatten().flatten();
        folders.extend(pythons.map(|python| python.path().join("site-packages/nvidia")));
    }
    let said = Command::new("python3").args(["-c", "import sys; print('\\n'.join(sys.path))"]).output();
    if let Ok(said) = said {
        let said = String::from_utf8_lossy(&said.stdout);
        folders
            .extend(said.lines().filter(|line| !line.is_empty()).map(|path| Path::new(path).join("nvidia")));
    }
    folders.retain(|folder| folder.is_dir());
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    folders.extend(toolkits.chain([PathBuf::from("/usr/local/cuda")]));
    folders
}
