//! The program `ltx`: arguments in, library calls, words on the screen and an exit code out.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage (or, for `verify`, a file that cannot be used), 130 interrupted.

mod args;
mod devices;
mod generate;
mod images;
mod inspect;
mod lora;
mod terminal;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use ltx::Error;

use args::{Cli, Command, DeviceChoice, DtypeChoice};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Generate(arguments) => finish(generate::run(&arguments)),
        Command::Inspect(arguments) => finish(inspect::run(&arguments)),
        Command::Lora(command) => finish(lora::run(&command)),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Devices(arguments) => finish(devices::run(&arguments)),
    }
}

fn finish(result: ltx::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if matches!(error, Error::Cancelled) {
        eprintln!("interrupted: nothing was written");
        return ExitCode::from(130);
    }
    print_error(&error);
    ExitCode::from(if matches!(error, Error::Request { .. }) { 2 } else { 1 })
}

fn print_error(error: &Error) {
    eprintln!("error: {error}");
    if let Some(remedy) = error.remedy() {
        eprintln!("hint: {remedy}");
    }
}

/// Makes the device that was asked for the one that computes. A device named and not there is an error.
fn choose_device(choice: DeviceChoice) -> ltx::Result<mlx::device::Device> {
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

fn dtype(choice: DtypeChoice) -> mlx::Dtype {
    match choice {
        DtypeChoice::Bf16 => mlx::Dtype::Bf16,
        DtypeChoice::F16 => mlx::Dtype::F16,
        DtypeChoice::F32 => mlx::Dtype::F32,
    }
}
