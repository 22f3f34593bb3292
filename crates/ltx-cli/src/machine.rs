//! What computes: the device, the CPU's threads and its instruction set, from options and the environment.

use ltx::nn::cpu;
use ltx::{Error, Result};
#[cfg(feature = "cuda")]
pub use mlx::cuda::Absence;
use mlx::device::{Device, set};

use crate::args::DeviceChoice;
use crate::terminal::{say, sayln};

/// Obeys `--threads`, or else `LTX_THREADS`; `LTX_ISA`, which forces an instruction set; and `LTX_KERNELS=off`, which
/// leaves the CPU's work to MLX. A variable that is empty counts for nothing.
pub fn set_up(threads: Option<usize>) -> Result<()> {
    let threads = match (threads, variable("LTX_THREADS")?) {
        (None, Some(text)) => {
            let number = text.parse();
            Some(number.map_err(|_| Error::request(format!("LTX_THREADS={text} is not a number"), COUNT))?)
        }
        (threads, _) => threads,
    };
    match threads {
        None => {}
        Some(1..=MOST_THREADS) => threads.map_or(Ok(()), cpu::set_threads)?,
        Some(number) => return Err(Error::request(format!("{number} threads are not possible"), COUNT)),
    }
    if let Some(name) = variable("LTX_ISA")? {
        cpu::set_isa(&name)?;
    }
    match variable("LTX_KERNELS")?.as_deref() {
        None | Some("on") => {}
        Some("off") => cpu::set_enabled(false),
        Some(other) => {
            return Err(Error::request(
                format!("LTX_KERNELS={other} says nothing"),
                "set it to off to leave the CPU's work to MLX, or to on",
            ));
        }
    }
    Ok(())
}

const MOST_THREADS: usize = 1024;
const COUNT: &str = "give a number from 1 to 1024; as many as there are processors is usual";

fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Error::request(format!("{name} is not text"), format!("unset {name}")))
        }
    }
}

/// Makes the device that was asked for the one that computes. A device named and not there is an error. Where MLX for CUDA
/// can compute, this does not return but in a process of its own: call it first.
pub fn choose_device(choice: DeviceChoice) -> Result<Device> {
    let device = match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto => match gpu() {
            Ok(()) => Device::Gpu,
            Err(None) => Device::Cpu,
            Err(Some(Absence { problem, .. })) => {
                sayln!("computing on the CPU: {problem} (`ltx devices` says what to do)");
                Device::Cpu
            }
        },
        DeviceChoice::Gpu => match gpu() {
            Ok(()) => Device::Gpu,
            Err(absence) => {
                let Absence { problem, remedy } = absence.unwrap_or_else(|| Absence {
                    problem: "this build of MLX found no GPU".into(),
                    remedy: "on Linux build with `--features cuda`".into(),
                });
                let remedy = format!("{remedy}; or use --device cpu");
                return Err(Error::machine(format!("--device gpu: {problem}"), remedy));
            }
        },
    };
    set(device)?;
    Ok(device)
}

/// Whether there is a GPU to compute on; if not, why, in a build that was to have one.
#[cfg(feature = "cuda")]
pub fn gpu() -> std::result::Result<(), Option<Absence>> {
    crate::cuda::start().map_err(Some)
}

/// Whether there is a GPU to compute on; if not, why, in a build that was to have one.
#[cfg(not(feature = "cuda"))]
pub fn gpu() -> std::result::Result<(), Option<Absence>> {
    if mlx::device::gpu_available() { Ok(()) } else { Err(None) }
}

/// Why there is no GPU, and what to do about it.
#[cfg(not(feature = "cuda"))]
pub struct Absence {
    pub problem: String,
    pub remedy: String,
}
