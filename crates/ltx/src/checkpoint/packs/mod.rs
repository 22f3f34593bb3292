//! Weights of linear layers, however a file stores them: whole, in floats of 8 bits with a scale, or packed as MLX packs
//! them; and packed on the way where that was asked for.
//!
//! `layout` knows what a file says of its packing, `rules` what may be packed, `fp8` the 8-bit floats. What is computed
//! with them is in `nn`.

mod fp8;
mod layout;
mod rules;

pub use layout::Layout;
pub use rules::{Rule, TABLE, blocks, packs};

use mlx::{Array, Dtype};
use safetensors::Dtype as Stored;

use super::{File, Weights};
use crate::error::Result;
use crate::nn::{Packed, Packing, Weight};

const FOREIGN: &str =
    "use the bf16 file with --quantize, or one that `ltx quantize` or MLX's own `quantize` wrote";

impl Weights {
    /// The tensor `weight` (outputs, inputs) of a linear layer, however it is stored, with LoRAs in it, and packed if that
    /// was asked for and a rule allows it. Nothing is computed before it is used.
    pub fn linear(&self, outputs: i32, inputs: i32) -> Result<Weight> {
        let shape = [outputs, inputs];
        let Some((file, key)) = self.locate("weight") else {
            return Ok(Weight::Dense(self.tensor("weight", &shape)?));
        };
        let stored = match file.info(&key).map(|info| info.dtype) {
            Some(Stored::U32) => Weight::Packed(self.packed(file, &key, shape)?),
            Some(Stored::F8_E4M3 | Stored::F8_E5M2) => Weight::Fp8(self.fp8(file, &key, shape)?),
            Some(Stored::U8) if self.has("weight_scale_2") => {
                return Err(self.error("weight", "is packed in NVIDIA's own layout of fp4", FOREIGN));
            }
            _ => return self.pack(&key, self.tensor_as_stored("weight", &shape)?),
        };
        if !self.changes(&key) && (self.packing().is_none() || matches!(stored, Weight::Packed(_))) {
            return Ok(stored);
        }
        let dense = match &stored {
            // In the type that it had before it was packed, of which a scale of u8 says nothing.
            Weight::Packed(packed) if packed.scales.dtype() == Dtype::U8 => packed.dequantize(Dtype::Bf16)?,
            Weight::Packed(packed) => packed.dequantize(packed.scales.dtype())?,
            other => other.dense(self.dtype())?,
        };
        let changed = self.fuse(&key, dense)?;
        match &stored {
            Weight::Packed(packed) => Ok(Weight::Packed(Packed::quantize(&changed, packed.packing)?)),
            _ => self.pack(&key, changed),
        }
    }

    /// `weight`, packed if that was asked for and a rule allows it.
    fn pack(&self, key: &str, weight: Array) -> Result<Weight> {
        let fits = |packing: &Packing| weight.dim(1) % packing.group() as i32 == 0;
        Ok(match self.packing().filter(fits) {
            Some(packing) if packs(key, self.block_count()) => {
                Weight::Packed(Packed::quantize(&weight, packing)?)
            }
            _ => Weight::Dense(weight.astype(self.dtype())?),
        })
    }

    /// A packed weight that stands for one of `shape`.
    fn packed(&self, file: &File, key: &str, [outputs, inputs]: [i32; 2]) -> Result<Packed> {
        let packing = file.layout()?.packing(file, key, [outputs, inputs])?;
        let words = (i64::from(inputs) * packing.bits() as i64 / 32) as i32;
        let groups = inputs / packing.group() as i32;
        let values = self.tensor_as_stored_unchanged("weight", &[outputs, words])?;
        let part = |name: &str| -> Result<Array> {
            let part = self.tensor_as_stored_unchanged(name, &[outputs, groups])?;
            let affine = matches!(packing, Packing::Affine { .. });
            let fits = match part.dtype() {
                Dtype::F32 | Dtype::F16 | Dtype::Bf16 => affine,
                Dtype::U8 => !affine,
                _ => false,
            };
            if fits {
                return Ok(part);
            }
            Err(self.error(
                name,
                format!("is {}, which is not how {packing:?} is stored", part.dtype()),
                FOREIGN,
            ))
        };
        let scales = part("scales")?;
        let biases = matches!(packing, Packing::Affine { .. }).then(|| part("biases")).transpose()?;
        if biases.as_ref().is_some_and(|biases| biases.dtype() != scales.dtype()) {
            return Err(self.error("biases", "are of another type than the scales", FOREIGN));
        }
        Ok(Packed { values, scales, biases, packing })
    }
}
