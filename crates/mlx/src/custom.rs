//! A Rust closure as an operation of the lazy graph, for kernels that MLX's CPU backend lacks or is slow at.

use std::slice;

use crate::array::{Array, Dtype, Element, list};
use crate::bridge::{Kernel, ffi};
use crate::{Error, Result};

/// What a kernel reads: a row-major array.
pub struct Input<'a>(&'a ffi::RawView);

/// What a kernel writes: a row-major array whose content is undefined until written.
pub struct Output<'a>(&'a ffi::RawView, std::marker::PhantomData<&'a mut ()>);

impl Input<'_> {
    /// Sizes of all axes.
    pub fn shape(&self) -> &[i32] {
        &self.0.shape
    }

    /// The element type.
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::from_raw(self.0.dtype)
    }

    /// The values, or an error when the array does not hold `T`.
    pub fn values<T: Element>(&self) -> std::result::Result<&[T], String> {
        check::<T>(self.0)?;
        // SAFETY: MLX keeps `bytes` initialised bytes of type `T` (checked) at `data` alive and unwritten while the
        // kernel runs; the bridge copies what is not aligned for its type.
        Ok(unsafe {
            slice::from_raw_parts(self.0.data.cast_const().cast::<T>(), self.0.bytes / size_of::<T>())
        })
    }
}

impl Output<'_> {
    /// Sizes of all axes.
    pub fn shape(&self) -> &[i32] {
        &self.0.shape
    }

    /// The values to write, or an error when the array does not hold `T`.
    pub fn values<T: Element>(&mut self) -> std::result::Result<&mut [T], String> {
        check::<T>(self.0)?;
        // SAFETY: the buffer was just allocated for this output alone, holds `bytes` bytes, and every bit pattern is
        // a valid `T` (`Pod`); `&mut self` makes the borrow unique.
        Ok(unsafe { slice::from_raw_parts_mut(self.0.data.cast::<T>(), self.0.bytes / size_of::<T>()) })
    }
}

fn check<T: Element>(view: &ffi::RawView) -> std::result::Result<(), String> {
    match Dtype::from_raw(view.dtype) {
        Some(dtype) if dtype == T::DTYPE && view.bytes > 0 => Ok(()),
        Some(dtype) if dtype == T::DTYPE => Err("the array is empty".into()),
        dtype => Err(format!("the array holds {dtype:?}, not {}", T::DTYPE)),
    }
}

/// An array of `shape` and `dtype` that `kernel` computes from `inputs` when it is needed. Runs on MLX's CPU thread; an
/// error or a panic in the kernel becomes the error of the [`eval`](crate::eval) that needed it, and the array holds NaN.
pub fn custom<F>(inputs: &[&Array], shape: &[i32], dtype: Dtype, kernel: F) -> Result<Array>
where
    F: Fn(&[Input<'_>], &mut Output<'_>) -> std::result::Result<(), String> + Send + Sync + 'static,
{
    if shape.iter().any(|&size| size < 1) {
        return Err(Error::new("custom", format!("shape {shape:?} is empty")));
    }
    let body = move |inputs: &[ffi::RawView], output: &ffi::RawView| {
        let inputs: Vec<Input<'_>> = inputs.iter().map(Input).collect();
        kernel(&inputs, &mut Output(output, std::marker::PhantomData))
    };
    let kernel = Box::new(Kernel(Box::new(body)));
    Array::wrap("custom", ffi::custom(&list(inputs.iter().copied()), shape, dtype.raw(), kernel))
}
