//! Weights of linear layers, however a file stores them: whole, in floats of 8 bits with a scale, in ggml's blocks, or
//! packed as MLX packs them; and packed on the way where that was asked for.
//!
//! `layout` knows what a file says of its packing, `rules` what may be packed, `fp8` the 8-bit floats. What is computed
//! with them is in `nn`.

mod fp8;
mod layout;
mod rules;
mod write;

pub use layout::Layout;
pub use rules::{Rule, TABLE, blocks, packs};
pub use write::{Report, quantize};

use mlx::{Array, Dtype};
use safetensors::Dtype as Stored;

use super::{File, TensorInfo, Weights};
use crate::error::Result;
use crate::nn::{Blocked, Packed, Packing, Weight};

/// What packing saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saving {
    /// How many matrices are packed.
    pub matrices: usize,
    /// Their bytes as they are stored.
    pub before: u64,
    /// Their bytes in memory.
    pub after: u64,
    /// Whether the file itself holds packed weights, which stay as they are.
    pub packed: bool,
}

/// Whether the tensor `key` of a network of `blocks` blocks is packed.
pub fn fits(key: &str, info: &TensorInfo, packing: Packing, blocks: usize) -> bool {
    let known =
        matches!(info.dtype, Stored::BF16 | Stored::F16 | Stored::F32 | Stored::F8_E4M3 | Stored::F8_E5M2);
    let whole = matches!(info.shape.as_slice(), &[rows, columns]
        if rows > 0 && columns > 0 && columns % packing.group() == 0);
    known && whole && packs(key, blocks)
}

/// Bytes that the tensor `key` takes in memory when it is read as `dtype`, and packed, in a network of so many blocks, if
/// that is asked for.
pub fn bytes(key: &str, info: &TensorInfo, packing: Option<(Packing, usize)>, dtype: Dtype) -> u64 {
    let values = info.shape.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
    match packing {
        Some((packing, blocks)) if fits(key, info, packing, blocks) => {
            let scale = match (packing, info.dtype) {
                (Packing::Mxfp8 | Packing::Nvfp4, _) => 1,
                (_, Stored::F32) => 2 * 4,
                _ => 2 * 2,
            };
            values / 8 * packing.bits() as u64 + values / packing.group() as u64 * scale
        }
        _ if matches!(info.dtype, Stored::U32 | Stored::U8 | Stored::F8_E4M3 | Stored::F8_E5M2) => {
            (info.data_offsets.1 - info.data_offsets.0) as u64
        }
        _ => values.saturating_mul(dtype.size() as u64),
    }
}

const FOREIGN: &str =
    "use the bf16 file with --quantize, or one that `ltx quantize` or MLX's own `quantize` wrote";

impl Weights {
    /// The tensor `weight` (outputs, inputs) of a linear layer, however it is stored, with LoRAs in it, and packed if that
    /// was asked for and a rule allows it. Nothing is computed before it is used.
    pub fn linear(&self, outputs: i32, inputs: i32) -> Result<Weight> {
        let shape = [outputs, inputs];
        let Some((file, key)) = self.locate("weight") else {
            let weight = self.tensor("weight", &shape)?;
            // Random weights are packed like those of a transformer's file.
            return self.pack(&format!("model.diffusion_model.{}", self.join("weight")), weight);
        };
        let stored = match file.info(&key).map(|info| info.dtype) {
            _ if self.is_blocked(file, &key, inputs) => Weight::Blocked(self.blocked(file, &key, shape)?),
            Some(Stored::U32) => Weight::Packed(self.packed(file, &key, shape)?),
            Some(Stored::F8_E4M3 | Stored::F8_E5M2) => Weight::Fp8(self.fp8(file, &key, shape)?),
            Some(Stored::U8) if self.has("weight_scale_2") => {
                return Err(self.error("weight", "is packed in NVIDIA's own layout of fp4", FOREIGN));
            }
            _ => return self.pack(&key, self.tensor_as_stored("weight", &shape)?),
        };
        let packs = !matches!(stored, Weight::Packed(_)) && self.packs(&key, inputs).is_some();
        if !self.changes(&key) && !packs {
            return Ok(match &stored {
                Weight::Blocked(blocked) => match blocked.repacked() {
                    Some(packed) => Weight::Packed(packed?),
                    None => stored,
                },
                _ => stored,
            });
        }
        let dense = match &stored {
            // In the type that it had before it was packed, of which a scale of u8 says nothing.
            Weight::Packed(packed) if packed.scales.dtype() == Dtype::U8 => packed.dequantize(Dtype::Bf16)?,
            Weight::Packed(packed) => packed.dequantize(packed.scales.dtype())?,
            Weight::Blocked(blocked) => blocked.dense(Dtype::F32)?,
            other => other.dense(self.dtype())?,
        };
        let changed = self.fuse(&key, dense)?;
        match &stored {
            Weight::Packed(packed) => Ok(Weight::Packed(Packed::quantize(&changed, packed.packing)?)),
            Weight::Blocked(blocked) if !packs => match blocked.repack_of(&changed) {
                Some(packed) => Ok(Weight::Packed(packed?)),
                None => self.pack(&key, changed),
            },
            _ => self.pack(&key, changed),
        }
    }

    /// Whether a weight of so many columns is in ggml's blocks, whole in each row.
    fn is_blocked(&self, file: &File, key: &str, inputs: i32) -> bool {
        file.quantized(key).is_some_and(|kind| inputs > 0 && inputs % kind.block().0 as i32 == 0)
    }

    /// A weight in ggml's blocks, which must have exactly `shape`.
    fn blocked(&self, file: &File, key: &str, shape: [i32; 2]) -> Result<Blocked> {
        // For what it checks: nothing is computed.
        self.tensor_as_stored_unchanged("weight", &shape)?;
        let (Some(kind), Some(info)) = (file.quantized(key), file.info(key)) else {
            return Err(self.error("weight", "is not quantized", FOREIGN));
        };
        let (block, size) = kind.block();
        Ok(Blocked::new(file.codes(key, info, shape[1] as usize / block * size)?, kind))
    }

    /// The tensor `weight` (rows, columns) of which rows are looked up, as it is stored.
    pub fn table(&self, rows: i32, columns: i32) -> Result<Weight> {
        match self.locate("weight") {
            Some((file, key)) if file.info(&key).is_some_and(|info| info.dtype == Stored::U32) => {
                Ok(Weight::Packed(self.packed(file, &key, [rows, columns])?))
            }
            Some((file, key)) if self.is_blocked(file, &key, columns) => {
                Ok(Weight::Blocked(self.blocked(file, &key, [rows, columns])?))
            }
            _ => Ok(Weight::Dense(self.tensor_as_stored("weight", &[rows, columns])?)),
        }
    }

    /// Whether MLX packed any of the weights.
    pub(super) fn is_packed(&self) -> bool {
        self.tensors().any(|(file, key)| file.info(&key).is_some_and(|info| info.dtype == Stored::U32))
    }

    /// What packing on the way saves, as [`Self::packed_as`] asks for it.
    pub fn saving(&self) -> Saving {
        let mut saving = Saving { packed: self.is_packed(), ..Saving::default() };
        let Some(packing) = self.packing() else { return saving };
        for (file, key) in self.tensors() {
            let Some(info) = file.info(&key) else { continue };
            if fits(&key, info, packing, self.block_count()) {
                saving.matrices += 1;
                saving.before += (info.data_offsets.1 - info.data_offsets.0) as u64;
                saving.after += bytes(&key, info, Some((packing, self.block_count())), self.dtype());
            }
        }
        saving
    }

    /// `weight`, packed if that was asked for and a rule allows it.
    fn pack(&self, key: &str, weight: Array) -> Result<Weight> {
        Ok(match self.packs(key, weight.dim(1)) {
            Some(packing) => Weight::Packed(Packed::quantize(&weight, packing)?),
            None => Weight::Dense(weight.astype(self.dtype())?),
        })
    }

    /// How the weight of a full key is packed on the way, if it is.
    fn packs(&self, key: &str, inputs: i32) -> Option<Packing> {
        let whole = |packing: &Packing| inputs % packing.group() as i32 == 0;
        self.packing().filter(whole).filter(|_| packs(key, self.block_count()))
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
