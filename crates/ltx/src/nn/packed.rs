//! The weights of linear layers: whole, or packed into few bits. What is packed where is decided in `checkpoint`.

use kernels::{Ggml, Packing};
use mlx::{Array, Dtype};

use super::{cpu, unpack};

/// A weight packed as MLX packs it.
#[derive(Clone, Debug)]
pub struct Packed {
    /// u32, the first value in the lowest bits.
    pub values: Array, // (out, in · bits / 32)
    /// f32, f16 or bf16; u8 with mxfp8 and nvfp4.
    pub scales: Array, // (out, in / group)
    /// As the scales; affine packings alone have them.
    pub biases: Option<Array>, // (out, in / group)
    /// How.
    pub packing: Packing,
}

impl Packed {
    /// `weight` (out, in), whose rows are whole groups, packed when it is first used.
    pub fn quantize(weight: &Array, packing: Packing) -> mlx::Result<Self> {
        if let Some(packed) = unpack::quantize(weight, packing) {
            return packed;
        }
        let mlx::Quantized { values, scales, biases, .. } = mlx::quantize(weight, mlx_packing(packing))?;
        Ok(Self { values, scales, biases, packing })
    }

    /// Width of what comes out.
    pub fn outputs(&self) -> i32 {
        self.values.dim(0)
    }

    /// Width of what goes in.
    pub fn inputs(&self) -> i32 {
        self.scales.dim(1) * self.packing.group() as i32
    }

    /// The weight as it was, but for what packing lost: (out, in).
    pub fn dequantize(&self, dtype: Dtype) -> mlx::Result<Array> {
        if let Some(weight) = unpack::dequantize(self, dtype) {
            return weight;
        }
        self.quantized().dequantize(dtype)
    }

    /// x · weightᵀ: (.., in) → (.., out), by MLX's own kernel, of x's type.
    pub(super) fn matmul(&self, x: &Array) -> mlx::Result<Array> {
        self.quantized().matmul(x)?.astype(x.dtype())
    }

    fn quantized(&self) -> mlx::Quantized {
        let Self { values, scales, biases, packing } = self.clone();
        mlx::Quantized { values, scales, biases, packing: mlx_packing(packing) }
    }
}

fn mlx_packing(packing: Packing) -> mlx::Packing {
    match packing {
        Packing::Affine { bits, group } => mlx::Packing::Affine { bits: bits as i32, group: group as i32 },
        Packing::Mxfp8 => mlx::Packing::Mxfp8,
        Packing::Nvfp4 => mlx::Packing::Nvfp4,
    }
}

/// A weight of floats of 8 bits, each of which stands for a value of a table.
#[derive(Clone, Debug)]
pub struct Fp8 {
    codes: Array, // (out, in), u8
    table: Array, // (256), bf16
}

impl Fp8 {
    /// `codes` (out, in), u8, each of which stands for its value in `table`.
    pub fn new(codes: Array, table: &[half::bf16; 256]) -> mlx::Result<Self> {
        Ok(Self { codes, table: Array::from_slice(table, &[256])? })
    }

    /// The weight in bf16: (out, in).
    pub fn dense(&self) -> mlx::Result<Array> {
        match unpack::look_up(&self.codes, &self.table) {
            Some(weight) => weight,
            None => self.table.take(&self.codes, 0),
        }
    }
}

/// A weight in ggml's blocks, which lie along its rows.
#[derive(Clone, Debug)]
pub struct Blocked {
    codes: Array, // (out, bytes of a row), u8
    kind: Ggml,
}

impl Blocked {
    /// `codes` (out, bytes of a row), u8, whose rows are whole blocks.
    pub fn new(codes: Array, kind: Ggml) -> Self {
        Self { codes, kind }
    }

    /// Width of what goes in.
    fn inputs(&self) -> i32 {
        let (block, size) = self.kind.block();
        self.codes.dim(1) / size as i32 * block as i32
    }

    /// The weight in f32 or bf16: (out, in).
    pub fn dense(&self, dtype: Dtype) -> mlx::Result<Array> {
        unpack::blocks(&self.codes, self.kind, &[self.codes.dim(0), self.inputs()], dtype)
    }

    /// The same weight in the packing that products are computed with as it is, made when it is first used; None where
    /// there is none. Scales and biases are f16.
    pub fn repacked(&self) -> Option<mlx::Result<Packed>> {
        let packing = self.kind.packing()?;
        Some(unpack::repack(&self.codes, self.kind, packing, [self.codes.dim(0), self.inputs()]))
    }

    /// A changed weight (out, in) packed as this one; None where there is no packing like its blocks.
    pub fn repack_of(&self, changed: &Array) -> Option<mlx::Result<Packed>> {
        let packing = self.kind.packing()?;
        Some(Packed::quantize(changed, packing).and_then(|packed| {
            let half = |array: Array| array.astype(Dtype::F16);
            let biases = packed.biases.map(half).transpose()?;
            Ok(Packed { scales: half(packed.scales)?, biases, ..packed })
        }))
    }

    /// Some rows.
    fn slice(&self, rows: std::ops::Range<i32>) -> mlx::Result<Self> {
        Ok(Self { codes: self.codes.slice(0, rows)?, kind: self.kind })
    }
}

/// The weight of a linear layer, (out, in).
#[derive(Clone, Debug)]
pub enum Weight {
    /// As it is.
    Dense(Array),
    /// Packed, and computed with as it is.
    Packed(Packed),
    /// In 8 bits, made bf16 whenever it is used.
    Fp8(Fp8),
    /// In ggml's blocks, made whole whenever it is used.
    Blocked(Blocked),
}

impl Weight {
    /// Width of what comes out.
    pub fn outputs(&self) -> i32 {
        match self {
            Self::Dense(weight) => weight.dim(0),
            Self::Packed(packed) => packed.outputs(),
            Self::Fp8(fp8) => fp8.codes.dim(0),
            Self::Blocked(blocked) => blocked.codes.dim(0),
        }
    }

    /// The whole weight, (out, in): as it is stored, or of type `packed` where it is packed.
    pub fn dense(&self, packed: Dtype) -> mlx::Result<Array> {
        match self {
            Self::Dense(weight) => Ok(weight.clone()),
            Self::Packed(weight) => weight.dequantize(packed),
            Self::Fp8(fp8) => fp8.dense(),
            Self::Blocked(blocked) => blocked.dense(packed),
        }
    }

    /// The rows of a table that `index` counts, of its own type or of `packed`: (count, in).
    pub fn rows(&self, index: &Array, packed: Dtype) -> mlx::Result<Array> {
        let rows = |array: &Array| array.take(index, 0);
        match self {
            Self::Packed(Packed { values, scales, biases, packing }) => {
                let biases = biases.as_ref().map(rows).transpose()?;
                Packed { values: rows(values)?, scales: rows(scales)?, biases, packing: *packing }
                    .dequantize(packed)
            }
            Self::Dense(weight) => rows(weight),
            Self::Fp8(_) => rows(&self.dense(packed)?),
            Self::Blocked(Blocked { codes, kind }) => Blocked::new(rows(codes)?, *kind).dense(packed),
        }
    }

    /// The weight in pieces of so many rows, or fewer, where it is made whole whenever it is used: not all of it at a time.
    pub fn pieces(&self, rows: i32) -> mlx::Result<Vec<Self>> {
        let Self::Blocked(blocked) = self else { return Ok(vec![self.clone()]) };
        let piece = |start| blocked.slice(start..self.outputs().min(start + rows)).map(Self::Blocked);
        (0..self.outputs()).step_by(rows.max(1) as usize).map(piece).collect()
    }

    /// The packed weight, where something computes with it as it is.
    pub(super) fn packed(&self) -> Option<&Packed> {
        match self {
            Self::Packed(packed) if !cpu::active() => Some(packed),
            _ => None,
        }
    }
}
