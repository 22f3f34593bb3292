//! What MLX's allocator holds, in bytes. Memory-mapped weights do not count.

use crate::bridge::ffi;
use crate::{Error, Result};

/// In arrays that are alive.
pub fn active() -> usize {
    ffi::active_memory()
}

/// The most that was ever active since the start or [`reset_peak`].
pub fn peak() -> usize {
    ffi::peak_memory()
}

/// Starts measuring [`peak`] anew.
pub fn reset_peak() {
    ffi::reset_peak_memory();
}

/// Freed but kept for reuse.
pub fn cache() -> usize {
    ffi::cache_memory()
}

/// Gives what [`cache`] counts back to the system. Waits for queued work, whose error it may meet.
pub fn clear_cache() -> Result<()> {
    ffi::clear_cache().map_err(|error| Error::new("clear_cache", error.what()))
}

/// Limits what is kept for reuse; returns the limit before. Waits for queued work, whose error it may meet.
pub fn set_cache_limit(bytes: usize) -> Result<usize> {
    ffi::set_cache_limit(bytes).map_err(|error| Error::new("set_cache_limit", error.what()))
}

/// Sets the amount above which allocation waits for running work; returns the limit before.
pub fn set_memory_limit(bytes: usize) -> usize {
    ffi::set_memory_limit(bytes)
}
