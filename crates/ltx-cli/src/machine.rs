//! What computes: the device, the CPU's threads and its instruction set, from options and the environment.

use ltx::nn::cpu;
use ltx::{Error, Result};

use crate::args::DeviceChoice;

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

/// Makes the device that was asked for the one that computes. A device named and not there is an error.
pub fn choose_device(choice: DeviceChoice) -> Result<mlx::device::Device> {
    use mlx::device::{Device, gpu_available, set};
    let device = match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto if gpu_available() => Device::Gpu,
        DeviceChoice::Auto => Device::Cpu,
        DeviceChoice::Gpu if gpu_available() => Device::Gpu,
        DeviceChoice::Gpu => {
            return Err(Error::machine(
                "--device gpu: this build of MLX found no GPU",
                "on Linux build with `--features cuda` and install the NVIDIA driver, or use --device cpu",
            ));
        }
    };
    set(device)?;
    Ok(device)
}
