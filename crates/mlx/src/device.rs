//! Which processor computes.

use crate::bridge::ffi;
use crate::{Error, Result};

/// A kind of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// Metal on a Mac, CUDA on Linux.
    Gpu,
}

/// Whether this build of MLX can use a GPU here.
pub fn gpu_available() -> bool {
    ffi::gpu_available()
}

/// The one that operations run on: a GPU where there is one, unless [`set`] chose.
pub fn current() -> Device {
    if ffi::default_is_gpu() { Device::Gpu } else { Device::Cpu }
}

/// Makes `device` the one that later operations run on, in every thread: call it before other threads use MLX.
pub fn set(device: Device) -> Result<()> {
    ffi::set_gpu(device == Device::Gpu).map_err(|error| Error::new("device", error.what()))
}

/// What MLX says of the device: names and values, sorted by name.
pub fn facts(device: Device) -> Result<Vec<(String, String)>> {
    let facts =
        ffi::device_facts(device == Device::Gpu).map_err(|error| Error::new("device", error.what()))?;
    Ok(facts.into_iter().map(|fact| (fact.name, fact.value)).collect())
}

/// Waits until everything queued is done.
pub fn synchronize() -> Result<()> {
    ffi::synchronize().map_err(|error| Error::new("synchronize", error.what()))
}
