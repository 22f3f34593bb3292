//! What kernels read and write: row-major slices of f32 or bf16, and matrices of them.

use std::ops::Range;

use half::bf16;

use crate::Error;
use crate::isa::Simd;

/// Values to read.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// Values to write.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a [bf16]> for Values<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Self::Bf16(values)
    }
}

impl<'a> From<&'a mut [f32]> for ValuesMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a mut [bf16]> for ValuesMut<'a> {
    fn from(values: &'a mut [bf16]) -> Self {
        Self::Bf16(values)
    }
}

impl Values<'_> {
    /// How many values.
    pub fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Up to a vector's worth of `part`; zeros in the lanes beyond.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(self, simd: S, part: Range<usize>) -> S::V {
        match self {
            Self::F32(values) => load(simd, &values[part]),
            Self::Bf16(values) => load(simd, &values[part]),
        }
    }

    /// All values as f32.
    pub(crate) fn to_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.to_vec(),
            Self::Bf16(values) => values.iter().copied().map(widen).collect(),
        }
    }
}

impl ValuesMut<'_> {
    /// How many values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A row-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) values: Values<'a>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Values from one row to the next.
    pub(crate) stride: usize,
}

impl<'a> Matrix<'a> {
    /// `values` as `rows` rows of `columns`.
    pub fn new(values: impl Into<Values<'a>>, rows: usize, columns: usize) -> Result<Self, Error> {
        let values = values.into();
        fits("matrix", values.len(), &[rows, columns])?;
        Ok(Self { values, rows, columns, stride: columns })
    }
}

/// Says so when `len` values are not an array of `shape`.
pub(crate) fn fits(what: &'static str, len: usize, shape: &[usize]) -> Result<(), Error> {
    match shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) {
        Some(expected) if expected == len => Ok(()),
        _ => Err(Error::Shape { what, expected: format!("{shape:?}"), found: format!("{len} values") }),
    }
}

/// The f32 of the same value.
#[inline(always)]
pub(crate) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let bits = if value.is_nan() { bits | 0x40_0000 } else { rounded };
    bf16::from_bits((bits >> 16) as u16)
}

/// An element type that kernels read: f32 or bf16.
pub(crate) trait Element: Copy + Send + Sync + bytemuck::Pod {
    /// Whether it is bf16.
    const NARROW: bool;
    fn values(slice: &[Self]) -> Values<'_>;
    fn widen(self) -> f32;
    fn from_f32(value: f32) -> Self;
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::V;
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self]);
    /// Two vectors, one behind the other; subnormal numbers may become 0.
    fn store_twice<S: Simd>(simd: S, v: [S::V; 2], to: &mut [Self]);
}

impl Element for f32 {
    const NARROW: bool = false;

    fn values(slice: &[Self]) -> Values<'_> {
        Values::F32(slice)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::V {
        simd.load(from)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self]) {
        simd.store(v, to);
    }

    #[inline(always)]
    fn store_twice<S: Simd>(simd: S, [first, second]: [S::V; 2], to: &mut [Self]) {
        simd.store(first, to);
        simd.store(second, &mut to[S::LANES..]);
    }
}

impl Element for bf16 {
    const NARROW: bool = true;

    fn values(slice: &[Self]) -> Values<'_> {
        Values::Bf16(slice)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        widen(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        narrow(value)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::V {
        simd.load_bf16(from)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self]) {
        simd.store_bf16(v, to);
    }

    #[inline(always)]
    fn store_twice<S: Simd>(simd: S, v: [S::V; 2], to: &mut [Self]) {
        simd.store_bf16_twice(v, to);
    }
}

/// Up to a vector's worth of values; zeros in the lanes beyond.
#[inline(always)]
pub(crate) fn load<S: Simd, T: Element>(simd: S, from: &[T]) -> S::V {
    if from.len() >= S::LANES {
        return T::load(simd, from);
    }
    let mut padded = [T::zeroed(); MOST_LANES];
    padded[..from.len()].copy_from_slice(from);
    T::load(simd, &padded)
}

/// As many lanes as `to` holds, a vector at most.
#[inline(always)]
pub(crate) fn store<S: Simd, T: Element>(simd: S, v: S::V, to: &mut [T]) {
    if to.len() >= S::LANES {
        return T::store(simd, v, to);
    }
    let mut padded = [T::zeroed(); MOST_LANES];
    T::store(simd, v, &mut padded);
    to.copy_from_slice(&padded[..to.len()]);
}

const MOST_LANES: usize = 16;

/// `from` as another type, value by value.
#[inline(always)]
pub(crate) fn convert<T: Element, E: Element>(from: &[T], to: &mut [E]) {
    if T::NARROW == E::NARROW {
        return to.copy_from_slice(bytemuck::cast_slice(from));
    }
    for (to, &from) in to.iter_mut().zip(from) {
        *to = E::from_f32(from.widen());
    }
}
