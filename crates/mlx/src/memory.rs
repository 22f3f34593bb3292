//! What MLX's allocator holds, in bytes. Memory-mapped weights do not count.

use crate::bridge::ffi;

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

/// Gives what [`cache`] counts back to the system.
pub fn clear_cache() {
    ffi::clear_cache();
}

/// Limits what is kept for reuse; returns the limit before.
pub fn set_cache_limit(bytes: usize) -> usize {
    ffi::set_cache_limit(bytes)
}

/// Sets the amount above which allocation waits for running work; returns the limit before.
pub fn set_memory_limit(bytes: usize) -> usize {
    ffi::set_memory_limit(bytes)
}
