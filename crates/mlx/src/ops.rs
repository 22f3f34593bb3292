//! Operations on arrays. Shapes broadcast as in NumPy; axes count from the end when negative.

use crate::array::{Array, Dtype, list};
use crate::bridge::ffi::{self, Binary, Reduce, Unary};
use crate::{Error, Result};

/// The right side of an element-wise operation: an array, or a number that takes the array's dtype.
pub trait Operand {
    /// The operand as an array, for use beside one of dtype `beside`.
    fn array(&self, beside: Dtype) -> Result<Array>;
}

impl Operand for &Array {
    fn array(&self, _: Dtype) -> Result<Array> {
        Ok((*self).clone())
    }
}

impl Operand for Array {
    fn array(&self, _: Dtype) -> Result<Array> {
        Ok(self.clone())
    }
}

impl Operand for f32 {
    fn array(&self, beside: Dtype) -> Result<Array> {
        Array::scalar(f64::from(*self), beside)
    }
}

impl Operand for f64 {
    fn array(&self, beside: Dtype) -> Result<Array> {
        Array::scalar(*self, beside)
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $op:ident;)*) => { impl Array { $(
        $(#[$doc])*
        pub fn $name(&self) -> Result<Array> {
            Array::wrap(stringify!($name), ffi::unary(Unary::$op, self.raw()))
        }
    )* } };
}

unary! {
    /// |x|
    abs => Abs;
    /// cos x
    cos => Cos;
    /// The error function.
    erf => Erf;
    /// eˣ
    exp => Exp;
    /// The largest integer not above x.
    floor => Floor;
    /// Whether x is neither infinite nor NaN (bool).
    is_finite => IsFinite;
    /// The natural logarithm.
    log => Log;
    /// Logical not (bool).
    logical_not => LogicalNot;
    /// −x
    negative => Negative;
    /// 1 / x
    reciprocal => Reciprocal;
    /// The nearest integer, halves to even.
    round => Round;
    /// 1 / √x
    rsqrt => Rsqrt;
    /// 1 / (1 + e⁻ˣ)
    sigmoid => Sigmoid;
    /// sin x
    sin => Sin;
    /// √x
    sqrt => Sqrt;
    /// x²
    square => Square;
    /// tanh x
    tanh => Tanh;
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $op:ident;)*) => { impl Array { $(
        $(#[$doc])*
        pub fn $name(&self, other: impl Operand) -> Result<Array> {
            let other = other.array(self.dtype())?;
            Array::wrap(stringify!($name), ffi::binary(Binary::$op, self.raw(), other.raw()))
        }
    )* } };
}

binary! {
    /// a + b
    add => Add;
    /// a − b
    subtract => Subtract;
    /// a · b, element by element.
    multiply => Multiply;
    /// a / b
    divide => Divide;
    /// The larger of a and b.
    maximum => Maximum;
    /// The smaller of a and b.
    minimum => Minimum;
    /// aᵇ
    power => Power;
    /// a = b (bool).
    equal => Equal;
    /// a > b (bool).
    greater => Greater;
    /// a ≥ b (bool).
    greater_equal => GreaterEqual;
    /// a < b (bool).
    less => Less;
    /// a and b (bool).
    logical_and => LogicalAnd;
    /// Matrix product over the last two axes: (.., m, k) · (.., k, n) → (.., m, n).
    matmul => Matmul;
}

macro_rules! reductions {
    ($($(#[$doc:meta])* $name:ident => $op:ident;)*) => { impl Array { $(
        $(#[$doc])*
        pub fn $name(&self, axes: &[i32], keep: bool) -> Result<Array> {
            Array::wrap(stringify!($name), ffi::reduce(Reduce::$op, self.raw(), axes, keep))
        }
    )* } };
}

reductions! {
    /// The sum over `axes`; `keep` leaves them with size 1.
    sum => Sum;
    /// The mean over `axes`.
    mean => Mean;
    /// The largest value over `axes`.
    max => Max;
    /// The smallest value over `axes`.
    min => Min;
    /// Whether all are true over `axes` (bool).
    all => All;
    /// Whether any is true over `axes` (bool).
    any => Any;
}

impl Array {
    /// The variance over `axes`, with `size − ddof` in the denominator.
    pub fn variance(&self, axes: &[i32], keep: bool, ddof: i32) -> Result<Array> {
        Array::wrap("variance", ffi::variance(self.raw(), axes, keep, ddof))
    }

    /// The values converted to `dtype`.
    pub fn astype(&self, dtype: Dtype) -> Result<Array> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        Array::wrap("astype", ffi::astype(self.raw(), dtype.raw()))
    }

    /// The same bytes read as `dtype`.
    pub fn view(&self, dtype: Dtype) -> Result<Array> {
        Array::wrap("view", ffi::view(self.raw(), dtype.raw()))
    }

    /// The same values laid out row-major in memory.
    pub fn contiguous(&self) -> Result<Array> {
        Array::wrap("contiguous", ffi::contiguous(self.raw()))
    }

    /// The same values in another shape; one size may be −1.
    pub fn reshape(&self, shape: &[i32]) -> Result<Array> {
        Array::wrap("reshape", ffi::reshape(self.raw(), shape))
    }

    /// Axes in another order: axis `i` of the result is axis `axes[i]` of this array.
    pub fn transpose(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("transpose", ffi::transpose(self.raw(), axes))
    }

    /// The last two axes exchanged.
    pub fn transpose_last(&self) -> Result<Array> {
        let rank = self.rank() as i32;
        if rank < 2 {
            return Err(Error::new("transpose_last", "needs two axes"));
        }
        let mut axes: Vec<i32> = (0..rank).collect();
        axes.swap(rank as usize - 1, rank as usize - 2);
        self.transpose(&axes)
    }

    /// New axes of size 1 at the given places of the result.
    pub fn expand_dims(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("expand_dims", ffi::expand_dims(self.raw(), axes))
    }

    /// Without the given axes, which have size 1.
    pub fn squeeze(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("squeeze", ffi::squeeze(self.raw(), axes))
    }

    /// Repeated along axes of size 1 without copying.
    pub fn broadcast_to(&self, shape: &[i32]) -> Result<Array> {
        Array::wrap("broadcast_to", ffi::broadcast_to(self.raw(), shape))
    }

    /// `start..stop` by `step` on every axis, as in NumPy: negative numbers count from the end, a negative step goes
    /// backwards, what lies outside the axis is left out.
    pub fn slice_steps(&self, start: &[i32], stop: &[i32], step: &[i32]) -> Result<Array> {
        Array::wrap("slice", ffi::slice(self.raw(), start, stop, step))
    }

    /// `range` of one axis; the others whole. The range must lie inside the axis.
    pub fn slice(&self, axis: i32, range: std::ops::Range<i32>) -> Result<Array> {
        let (mut start, mut stop) = (vec![0; self.rank()], self.shape().to_vec());
        let axis = self.axis("slice", axis)?;
        if range.start < 0 || range.start > range.end || range.end > stop[axis] {
            return Err(Error::new(
                "slice",
                format!("{range:?} is outside axis {axis} of {:?}", self.shape()),
            ));
        }
        (start[axis], stop[axis]) = (range.start, range.end);
        self.slice_steps(&start, &stop, &vec![1; self.rank()])
    }

    /// `parts` equal pieces along `axis`.
    pub fn split(&self, parts: i32, axis: i32) -> Result<Vec<Array>> {
        let size = self.shape()[self.axis("split", axis)?];
        if parts < 1 || size % parts != 0 {
            return Err(Error::new("split", format!("{size} does not divide into {parts} parts")));
        }
        let piece = size / parts;
        (0..parts).map(|part| self.slice(axis, part * piece..(part + 1) * piece)).collect()
    }

    /// A copy with `update` written over `start..stop`.
    pub fn slice_update(&self, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
        Array::wrap("slice_update", ffi::slice_update(self.raw(), update.raw(), start, stop))
    }

    /// Every element `repeats` times in a row along `axis`.
    pub fn repeat(&self, repeats: i32, axis: i32) -> Result<Array> {
        if repeats < 0 {
            return Err(Error::new("repeat", "a negative count"));
        }
        Array::wrap("repeat", ffi::repeat(self.raw(), repeats, axis))
    }

    /// The whole array `repeats[i]` times along axis `i`.
    pub fn tile(&self, repeats: &[i32]) -> Result<Array> {
        Array::wrap("tile", ffi::tile(self.raw(), repeats))
    }

    /// `low` and `high` elements of `value` added before and after one axis.
    pub fn pad(&self, axis: i32, low: i32, high: i32, value: f64) -> Result<Array> {
        Array::wrap("pad", ffi::pad(self.raw(), axis, low, high, value, false))
    }

    /// The first element repeated `low` times before, the last `high` times after, along one axis.
    pub fn pad_edge(&self, axis: i32, low: i32, high: i32) -> Result<Array> {
        Array::wrap("pad_edge", ffi::pad(self.raw(), axis, low, high, 0.0, true))
    }

    /// The elements at `indices` (integers, negative ones count from the end) along `axis`. Computes the indices now, to
    /// check them against the axis.
    pub fn take(&self, indices: &Array, axis: i32) -> Result<Array> {
        Array::wrap("take", ffi::take(self.raw(), indices.raw(), axis))
    }

    /// Softmax along `axis`, accumulated in f32.
    pub fn softmax(&self, axis: i32) -> Result<Array> {
        Array::wrap("softmax", ffi::softmax(self.raw(), axis))
    }

    /// Convolution with 1 to 3 spatial axes, channels last: (batch, spatial.., in) with a weight
    /// (out, kernel.., in / groups) → (batch, spatial.., out). It is a cross-correlation, as in PyTorch.
    pub fn conv(&self, weight: &Array, settings: &Conv) -> Result<Array> {
        let rank = self.rank().saturating_sub(2);
        let each = |values: &[i32], default: i32| {
            if values.is_empty() { vec![default; rank] } else { values.to_vec() }
        };
        let (stride, dilation) = (each(&settings.stride, 1), each(&settings.dilation, 1));
        let (low, high) = (each(&settings.padding_low, 0), each(&settings.padding_high, 0));
        let input_dilation = each(&settings.input_dilation, 1);
        let lists = [&stride, &dilation, &low, &high, &input_dilation];
        if !(1..=3).contains(&rank)
            || weight.rank() != self.rank()
            || lists.iter().any(|list| list.len() != rank)
        {
            return Err(Error::new(
                "conv",
                format!("{self:?}, weight {weight:?} and {settings:?} do not fit together"),
            ));
        }
        let positive = [&stride, &dilation, &input_dilation].iter().all(|list| list.iter().all(|&n| n > 0));
        if !positive || settings.groups < 1 {
            return Err(Error::new("conv", format!("{settings:?} has a value below 1")));
        }
        if self.size() == 0 || weight.size() == 0 {
            return Err(Error::new("conv", format!("{self:?} or weight {weight:?} is empty")));
        }
        let extent = |size: i32, dilation: i32| (i64::from(size) - 1) * i64::from(dilation) + 1;
        for axis in 0..rank {
            let padding = i64::from(low[axis]) + i64::from(high[axis]);
            let size = extent(self.shape()[axis + 1], input_dilation[axis]) + padding;
            let kernel = extent(weight.shape()[axis + 1], dilation[axis]);
            if size < kernel {
                return Err(Error::new(
                    "conv",
                    format!("a kernel of {kernel} is larger than the padded input of {size}"),
                ));
            }
        }
        let raw = ffi::ConvSettings {
            stride: &stride,
            padding_low: &low,
            padding_high: &high,
            dilation: &dilation,
            input_dilation: &input_dilation,
            groups: settings.groups,
            flip: settings.flip,
        };
        Array::wrap("conv", ffi::conv(self.raw(), weight.raw(), &raw))
    }

    fn axis(&self, operation: &'static str, axis: i32) -> Result<usize> {
        let rank = self.rank() as i32;
        match if axis < 0 { axis + rank } else { axis } {
            index if (0..rank).contains(&index) => Ok(index as usize),
            _ => Err(Error::new(operation, format!("axis {axis} of {:?}", self.shape()))),
        }
    }
}

/// Settings of a convolution, one value per spatial axis; an empty list means 1 (stride, dilations) or 0 (padding).
/// A transposed convolution is `input_dilation` = its stride with `flip`.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Step between outputs.
    pub stride: Vec<i32>,
    /// Zeros before; negative crops.
    pub padding_low: Vec<i32>,
    /// Zeros after; negative crops.
    pub padding_high: Vec<i32>,
    /// Step between kernel elements.
    pub dilation: Vec<i32>,
    /// Step between input elements, zeros in between.
    pub input_dilation: Vec<i32>,
    /// Groups of channels.
    pub groups: i32,
    /// Reverse the kernel.
    pub flip: bool,
}

impl Default for Conv {
    fn default() -> Self {
        Self {
            stride: Vec::new(),
            padding_low: Vec::new(),
            padding_high: Vec::new(),
            dilation: Vec::new(),
            input_dilation: Vec::new(),
            groups: 1,
            flip: false,
        }
    }
}

/// An array filled with `value`.
pub fn full(shape: &[i32], value: f64, dtype: Dtype) -> Result<Array> {
    Array::wrap("full", ffi::full(shape, value, dtype.raw()))
}

/// a · b + bias: (.., m, k), (k, n), (n) → (.., m, n), in one product where the device can.
pub fn matmul_with_bias(a: &Array, b: &Array, bias: &Array) -> Result<Array> {
    Array::wrap("matmul_with_bias", ffi::addmm(bias.raw(), a.raw(), b.raw()))
}

/// Random numbers, even from `low` up to `high`, made where operations run.
pub fn uniform(low: f64, high: f64, shape: &[i32], dtype: Dtype, seed: u64) -> Result<Array> {
    Array::wrap("uniform", ffi::uniform(low, high, shape, dtype.raw(), seed))
}

/// An array of zeros.
pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Array> {
    full(shape, 0.0, dtype)
}

/// `start`, `start + step`, … up to but without `stop`.
pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Array> {
    Array::wrap("arange", ffi::arange(start, stop, step, dtype.raw()))
}

/// `a` where `condition` holds, else `b`.
pub fn select(condition: &Array, a: &Array, b: &Array) -> Result<Array> {
    Array::wrap("select", ffi::select(condition.raw(), a.raw(), b.raw()))
}

/// Arrays joined along an existing axis.
pub fn concatenate(arrays: &[&Array], axis: i32) -> Result<Array> {
    Array::wrap("concatenate", ffi::concatenate(&list(arrays.iter().copied()), axis))
}

/// Arrays joined along a new axis.
pub fn stack(arrays: &[&Array], axis: i32) -> Result<Array> {
    Array::wrap("stack", ffi::stack(&list(arrays.iter().copied()), axis))
}
