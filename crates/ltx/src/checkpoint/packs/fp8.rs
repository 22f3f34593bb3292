//! Floats of 8 bits with one scale for a tensor: Lightricks' fp8 files, and ComfyUI's `scaled_fp8`.
//!
//! A weight's value is bf16(f32(code) · scale), as `fp8_cast.py` of Lightricks' ltx-core makes it when it loads the file.

use half::bf16;
use mlx::{Array, Dtype};
use safetensors::Dtype as Stored;

use crate::checkpoint::{File, Weights};
use crate::error::Result;
use crate::nn::Fp8;

/// Names of a weight's scale: Lightricks' and ComfyUI's.
pub(super) const SCALES: [&str; 2] = ["weight_scale", "scale_weight"];
/// What else stands beside such a weight, and is not needed to compute in bf16: scales of inputs, and the layout's name.
pub(super) const BESIDE: [&str; 4] = ["input_scale", "scale_input", "comfy_quant", "scaled_fp8"];

impl Weights {
    /// A weight of 8-bit floats, which must have exactly `shape`.
    pub(super) fn fp8(&self, file: &File, key: &str, shape: [i32; 2]) -> Result<Fp8> {
        let wide = file.info(key).is_some_and(|info| info.dtype == Stored::F8_E5M2);
        let codes = self.tensor_as_stored_unchanged("weight", &shape)?;
        let mut scale = 1.0;
        for name in SCALES {
            if self.has(name) {
                scale = self.scale(name)?;
            }
        }
        BESIDE.iter().for_each(|name| self.mark(name));
        let value = if wide { e5m2 } else { e4m3 };
        let table = std::array::from_fn(|code| bf16::from_f32(value(code as u8) * scale));
        Ok(Fp8::new(codes, &table)?)
    }

    /// The one number of the tensor `name`.
    fn scale(&self, name: &str) -> Result<f32> {
        const REMEDY: &str = "use an official fp8 file, or the bf16 one";
        let shape = self.shape(name).unwrap_or_default();
        if shape.iter().any(|&size| size != 1) {
            let problem = format!("has shape {shape:?}, but one scale for the whole tensor is known");
            return Err(self.error(name, problem, REMEDY));
        }
        let array: Array = self.tensor_as_stored_unchanged(name, &shape)?;
        let scale = array.astype(Dtype::F32)?.reshape(&[1])?.to_f32()?.first().copied().unwrap_or(f32::NAN);
        if scale.is_finite() && scale >= 0.0 {
            return Ok(scale);
        }
        Err(self.error(name, format!("is {scale}, which is no scale"), REMEDY))
    }
}

/// E4M3 without infinities ("fn"): 1 sign, 4 exponent (bias 7) and 3 mantissa bits; all ones is NaN.
pub(super) fn e4m3(code: u8) -> f32 {
    let magnitude = match (code >> 3 & 15, code & 7) {
        (15, 7) => f32::NAN,
        (0, mantissa) => f32::from(mantissa) / 512.0,
        (exponent, mantissa) => (1.0 + f32::from(mantissa) / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if code >> 7 == 1 { -magnitude } else { magnitude }
}

/// E5M2: the upper half of an f16.
pub(super) fn e5m2(code: u8) -> f32 {
    half::f16::from_bits(u16::from(code) << 8).to_f32()
}
