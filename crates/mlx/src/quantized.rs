//! Matrices of few bits, packed as MLX packs them, and products with them.

use crate::array::{Array, Dtype};
use crate::bridge::ffi;
use crate::fast::pointer;
use crate::{Error, Result};

/// How values are packed into `u32`s, the first in the lowest bits. Groups of values in a row share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// value · scale + bias
    Affine {
        /// 2, 3, 4, 5, 6 or 8.
        bits: i32,
        /// 32, 64 or 128.
        group: i32,
    },
    /// E4M3 in groups of 32 with E8M0 scales.
    Mxfp8,
    /// E2M1 in groups of 16 with E4M3 scales.
    Nvfp4,
}

impl Packing {
    /// (values in a group, bits, which)
    fn raw(self) -> (i32, i32, ffi::Packing) {
        match self {
            Self::Affine { bits, group } => (group, bits, ffi::Packing::Affine),
            Self::Mxfp8 => (32, 8, ffi::Packing::Mxfp8),
            Self::Nvfp4 => (16, 4, ffi::Packing::Nvfp4),
        }
    }
}

/// A packed matrix.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// (out, in · bits / 32), u32
    pub values: Array,
    /// (out, in / group); of the matrix' type, or u8 with mxfp8 and nvfp4
    pub scales: Array,
    /// (out, in / group), of the matrix' type; affine alone has them
    pub biases: Option<Array>,
    /// How.
    pub packing: Packing,
}

/// `w` (out, in), packed. Rows must be whole groups.
pub fn quantize(w: &Array, packing: Packing) -> Result<Quantized> {
    let (group, bits, raw) = packing.raw();
    if w.rank() != 2 || w.size() == 0 || !matches!(w.dtype(), Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
        return Err(Error::new("quantize", format!("{w:?} is no matrix of f32, f16 or bf16")));
    }
    let made =
        ffi::quantize(w.raw(), group, bits, raw).map_err(|error| Error::new("quantize", error.what()))?;
    let part =
        |index| made.get(index).map(|part| Array::wrap("quantize", Ok(ffi::duplicate(part)))).transpose();
    match (part(0)?, part(1)?, part(2)?) {
        (Some(values), Some(scales), biases) => Ok(Quantized { values, scales, biases, packing }),
        _ => Err(Error::new("quantize", "gave less than values and scales")),
    }
}

impl Quantized {
    /// The matrix as it was, but for what packing lost: (out, in).
    pub fn dequantize(&self, dtype: Dtype) -> Result<Array> {
        self.check()?;
        let (group, bits, raw) = self.packing.raw();
        let (values, scales, biases) = (self.values.raw(), self.scales.raw(), pointer(self.biases.as_ref()));
        // SAFETY: the pointer is null or comes from a reference that outlives the call.
        let made = unsafe { ffi::dequantize(values, scales, biases, group, bits, raw, dtype.raw()) };
        Array::wrap("dequantize", made)
    }

    /// x · matrixᵀ: (.., in) → (.., out)
    pub fn matmul(&self, x: &Array) -> Result<Array> {
        self.check()?;
        if x.rank() == 0 || x.size() == 0 {
            return Err(Error::new("quantized_matmul", format!("{x:?} is empty")));
        }
        let (group, bits, raw) = self.packing.raw();
        let (values, scales, biases) = (self.values.raw(), self.scales.raw(), pointer(self.biases.as_ref()));
        // SAFETY: the pointer is null or comes from a reference that outlives the call.
        let made = unsafe { ffi::quantized_matmul(x.raw(), values, scales, biases, group, bits, raw) };
        Array::wrap("quantized_matmul", made)
    }

    /// What MLX would not look at: its kernels read as many scales as there are groups.
    fn check(&self) -> Result<()> {
        let (group, bits, _) = self.packing.raw();
        let (values, scales) = (self.values.shape(), self.scales.shape());
        let fits = match (values, scales) {
            (&[rows, words], &[scale_rows, groups]) => {
                let (words, groups) = (i64::from(words), i64::from(groups));
                rows > 0
                    && groups > 0
                    && rows == scale_rows
                    && words * 32 == groups * i64::from(group) * i64::from(bits)
            }
            _ => false,
        };
        let biases = match self.packing {
            Packing::Affine { .. } => self.biases.as_ref().is_some_and(|biases| biases.shape() == scales),
            _ => self.biases.is_none(),
        };
        if fits && biases && self.values.dtype() == Dtype::U32 {
            return Ok(());
        }
        Err(Error::new(
            "quantized",
            format!(
                "values {:?}, scales {:?} and biases do not fit {:?}",
                self.values, self.scales, self.packing
            ),
        ))
    }
}
