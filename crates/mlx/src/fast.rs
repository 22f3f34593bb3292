//! MLX's fused operations.

use std::ptr;

use crate::array::Array;
use crate::bridge::ffi;
use crate::{Error, Result};

pub(crate) fn pointer(array: Option<&Array>) -> *const ffi::array {
    array.map_or(ptr::null(), |array| ptr::from_ref(array.raw()))
}

/// Root-mean-square norm over the last axis: x / √(mean x² + eps), times `weight` (last axis) if given.
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    // SAFETY: the pointer is null or comes from a reference that outlives the call.
    Array::wrap("rms_norm", unsafe { ffi::rms_norm(x.raw(), pointer(weight), eps) })
}

/// Layer norm over the last axis, with `weight` and `bias` (last axis) if given.
pub fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    // SAFETY: the pointers are null or come from references that outlive the call.
    Array::wrap("layer_norm", unsafe { ffi::layer_norm(x.raw(), pointer(weight), pointer(bias), eps) })
}

/// softmax(q · kᵀ · scale + mask) · v. All are (batch, heads, tokens, head_dim); key and value heads may be fewer, in
/// which case groups of query heads share one. `mask` is added if floating, or chosen by if bool, and broadcasts to
/// (batch, heads, q tokens, k tokens).
pub fn attention(q: &Array, k: &Array, v: &Array, scale: f32, mask: Option<&Array>) -> Result<Array> {
    if [q, k, v].iter().any(|a| a.rank() != 4)
        || k.dim(1) == 0
        || q.dim(1) % k.dim(1) != 0
        || q.dim(3) != k.dim(3)
    {
        return Err(Error::new("attention", format!("q {q:?}, k {k:?} and v {v:?} do not fit together")));
    }
    // SAFETY: the pointer is null or comes from a reference that outlives the call.
    Array::wrap("attention", unsafe { ffi::attention(q.raw(), k.raw(), v.raw(), scale, pointer(mask)) })
}
