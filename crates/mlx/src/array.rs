//! The array type: construction from Rust or borrowed memory, and reading values back.

use std::fmt;
use std::sync::Arc;

use cxx::UniquePtr;
use half::{bf16, f16};

use crate::bridge::{Owner, ffi};
use crate::{Error, Result};

/// Element types. `F64` works on the CPU only.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    Bool,
    U8,
    I32,
    U32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Dtype {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether values are floating point.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    pub(crate) fn raw(self) -> ffi::Type {
        match self {
            Self::Bool => ffi::Type::Bool,
            Self::U8 => ffi::Type::U8,
            Self::I32 => ffi::Type::I32,
            Self::U32 => ffi::Type::U32,
            Self::I64 => ffi::Type::I64,
            Self::F16 => ffi::Type::F16,
            Self::Bf16 => ffi::Type::Bf16,
            Self::F32 => ffi::Type::F32,
            Self::F64 => ffi::Type::F64,
        }
    }

    pub(crate) fn from_raw(raw: ffi::Type) -> Option<Self> {
        [Self::Bool, Self::U8, Self::I32, Self::U32, Self::I64, Self::F16, Self::Bf16, Self::F32, Self::F64]
            .into_iter()
            .find(|dtype| dtype.raw() == raw)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that arrays can hold. Sealed: a custom kernel reads memory as this type on the word of `DTYPE`.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The dtype of arrays of this type.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),*) => { $(
        impl sealed::Sealed for $ty {}
        impl Element for $ty { const DTYPE: Dtype = Dtype::$dtype; }
    )* };
}
elements!(u8 => U8, i32 => I32, u32 => U32, i64 => I64, f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

/// An n-dimensional array: a node of MLX's lazy graph. Cloning is cheap and shares the value.
pub struct Array(UniquePtr<ffi::array>);

impl Array {
    pub(crate) fn wrap(
        operation: &'static str,
        made: std::result::Result<UniquePtr<ffi::array>, cxx::Exception>,
    ) -> Result<Self> {
        made.map(Self).map_err(|error| Error::new(operation, error.what()))
    }

    pub(crate) fn raw(&self) -> &ffi::array {
        &self.0
    }

    /// An array with the values of `data` in row-major order.
    pub fn from_slice<T: Element>(data: &[T], shape: &[i32]) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice(data), shape, T::DTYPE)
    }

    /// A scalar of the given dtype.
    pub fn scalar(value: f64, dtype: Dtype) -> Result<Self> {
        Self::wrap("scalar", ffi::scalar(value, dtype.raw()))
    }

    /// An array that copies `bytes`, in row-major order and this machine's byte order.
    pub fn from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Self> {
        Self::wrap("from_bytes", ffi::from_bytes(bytes, shape, dtype.raw()))
    }

    /// An array over memory that `owner` keeps alive, such as a tensor in a mapped file: no copy where the backend
    /// allows it and the memory is aligned for `dtype`. `bytes` picks the memory out of the owner. Nothing ever writes
    /// into it; the owner is dropped when the last array that reads it is.
    pub fn borrowed<O: Send + Sync + 'static>(
        owner: Arc<O>,
        bytes: impl FnOnce(&O) -> &[u8],
        shape: &[i32],
        dtype: Dtype,
    ) -> Result<Self> {
        let data = bytes(&owner);
        let expected = shape
            .iter()
            .try_fold(dtype.size(), |bytes, &size| bytes.checked_mul(usize::try_from(size).ok()?));
        if expected != Some(data.len()) {
            return Err(Error::new(
                "borrowed",
                format!("{} bytes do not fill {shape:?} of {dtype}", data.len()),
            ));
        }
        let pointer = data.as_ptr();
        if data.is_empty() || pointer.align_offset(dtype.size()) != 0 {
            return Self::from_bytes(data, shape, dtype);
        }
        let keep = Box::new(Owner(Box::new(owner.clone())));
        // SAFETY: `pointer` covers exactly the shape (checked above), is aligned, and the shared owner behind it is
        // immutable and lives until MLX drops `keep`, which it does only when no array uses the memory.
        let made = unsafe { ffi::from_owner(pointer, shape, dtype.raw(), keep) };
        Self::wrap("borrowed", made)
    }

    /// Sizes of all axes.
    pub fn shape(&self) -> &[i32] {
        ffi::shape(&self.0)
    }

    /// Size of one axis; negative counts from the end.
    ///
    /// # Panics
    /// When the array has no such axis.
    pub fn dim(&self, axis: i32) -> i32 {
        let shape = self.shape();
        let index = if axis < 0 { axis + shape.len() as i32 } else { axis };
        shape[index as usize]
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        self.shape().iter().map(|&size| size as usize).product()
    }

    /// The element type.
    ///
    /// # Panics
    /// Never for arrays made through this crate: it makes no other types.
    pub fn dtype(&self) -> Dtype {
        Dtype::from_raw(ffi::dtype(&self.0)).expect("this crate makes only known dtypes")
    }

    /// Computes the array now.
    pub fn eval(&self) -> Result<()> {
        eval([self])
    }

    /// The values in row-major order, computed now. `T` must be the array's own type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype() != T::DTYPE {
            return Err(Error::new("to_vec", format!("the array is {}, not {}", self.dtype(), T::DTYPE)));
        }
        let mut values = vec![T::zeroed(); self.size()];
        ffi::copy_to(&self.0, bytemuck::cast_slice_mut(&mut values))
            .map_err(|error| Error::new("to_vec", error.what()))?;
        Ok(values)
    }

    /// The values converted to `f32`, computed now.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.astype(Dtype::F32)?.to_vec()
    }

    /// The value of an array of one element, converted to `f32`.
    pub fn item(&self) -> Result<f32> {
        match self.to_f32()?.as_slice() {
            [value] => Ok(*value),
            values => Err(Error::new("item", format!("the array has {} elements", values.len()))),
        }
    }
}

impl Clone for Array {
    fn clone(&self) -> Self {
        Self(ffi::duplicate(&self.0))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({:?}, {})", self.shape(), self.dtype())
    }
}

pub(crate) fn list<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> UniquePtr<cxx::CxxVector<ffi::array>> {
    let mut list = ffi::new_list();
    for array in arrays {
        ffi::push(list.pin_mut(), &array.0);
    }
    list
}

/// Computes several arrays in one pass over the graph.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    ffi::eval(&list(arrays)).map_err(|error| Error::new("eval", error.what()))
}

/// Has a GPU compute several arrays and returns at once; reading them, or [`eval`], waits. On the CPU the same as [`eval`].
pub fn start<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    if crate::device::current() == crate::device::Device::Cpu {
        return eval(arrays);
    }
    ffi::async_eval(&list(arrays)).map_err(|error| Error::new("start", error.what()))
}
