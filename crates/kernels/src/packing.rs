//! How weights of few bits are packed: the layouts of MLX's `quantize`. What is computed with them is not here.

use half::f16;

use crate::Error;
use crate::isa::{E4M3, Simd};
use crate::values::{Values, convert, fits};

/// A layout of packed weights. Every row of a weight is cut into groups, and each group has a scale. Values are packed
/// into `u32`s, the first in the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// value · scale + bias; scales and biases are floats, one of each for a group.
    Affine {
        /// 4 or 8.
        bits: usize,
        /// Values in a group: 32, 64 or 128.
        group: usize,
    },
    /// Floats of 8 bits (E4M3) in groups of 32, whose scale is a power of two (one byte, E8M0).
    Mxfp8,
    /// Floats of 4 bits (E2M1) in groups of 16, whose scale is a float of 8 bits (E4M3).
    Nvfp4,
}

impl std::fmt::Display for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Affine { bits, group } => write!(f, "{bits} bits in groups of {group}"),
            Self::Mxfp8 => f.write_str("mxfp8"),
            Self::Nvfp4 => f.write_str("nvfp4"),
        }
    }
}

impl Packing {
    /// Bits of a value.
    pub fn bits(self) -> usize {
        match self {
            Self::Affine { bits, .. } => bits,
            Self::Mxfp8 => 8,
            Self::Nvfp4 => 4,
        }
    }

    /// Values of a row that share a scale.
    pub fn group(self) -> usize {
        match self {
            Self::Affine { group, .. } => group,
            Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
        }
    }
}

/// The scales of a packed weight, row by row.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Scales<'a> {
    /// Of affine packings.
    Affine { scales: Values<'a>, biases: Values<'a> },
    /// The same in f16.
    Half { scales: &'a [f16], biases: &'a [f16] },
    /// Of the other packings.
    Bytes(&'a [u8]),
}

/// A packed matrix whose rows are whole groups.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    codes: &'a [u8],
    scales: Scales<'a>,
    packing: Packing,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl<'a> Packed<'a> {
    /// `values` (rows, columns · bits / 32) and `scales` (rows, columns / group) as `rows` rows of `columns`.
    pub fn new(
        values: &'a [u32],
        scales: Scales<'a>,
        packing: Packing,
        rows: usize,
        columns: usize,
    ) -> Result<Self, Error> {
        let (bits, group) = (packing.bits(), packing.group());
        let found = || format!("{packing:?}");
        if let Packing::Affine { bits, group } = packing
            && !(matches!(bits, 4 | 8) && matches!(group, 32 | 64 | 128))
        {
            let expected = "4 or 8 bits in groups of 32, 64 or 128".into();
            return Err(Error::Shape { what: "packing", expected, found: found() });
        }
        if !columns.is_multiple_of(group) {
            let (expected, found) = (format!("a multiple of {group}"), columns.to_string());
            return Err(Error::Shape { what: "packed columns", expected, found });
        }
        let shape = [rows, columns / group];
        fits("packed values", values.len(), &[rows, columns / (32 / bits)])?;
        match (scales, packing) {
            (Scales::Affine { scales, biases }, Packing::Affine { .. }) => {
                fits("scales", scales.len(), &shape)?;
                fits("biases", biases.len(), &shape)?;
            }
            (Scales::Half { scales, biases }, Packing::Affine { .. }) => {
                fits("scales", scales.len(), &shape)?;
                fits("biases", biases.len(), &shape)?;
            }
            (Scales::Bytes(scales), Packing::Mxfp8 | Packing::Nvfp4) => {
                fits("scales", scales.len(), &shape)?;
            }
            _ => {
                let expected = "one with such scales".into();
                return Err(Error::Shape { what: "packing", expected, found: found() });
            }
        }
        Ok(Self { codes: bytemuck::cast_slice(values), scales, packing, rows, columns })
    }

    /// Calls `task` with how a vector of codes is read.
    #[inline(always)]
    pub(crate) fn decode<T: Decoded>(&self, task: T) {
        match self.packing {
            Packing::Affine { bits: 4, .. } => task.run::<U4>(),
            Packing::Affine { .. } => task.run::<U8>(),
            Packing::Mxfp8 => task.run::<E4m3>(),
            Packing::Nvfp4 => task.run::<E2m1>(),
        }
    }

    /// Groups have biases.
    pub(crate) fn affine(&self) -> bool {
        matches!(self.packing, Packing::Affine { .. })
    }

    pub(crate) fn bits(&self) -> usize {
        self.packing.bits()
    }

    pub(crate) fn group(&self) -> usize {
        self.packing.group()
    }

    /// The codes of values `from ..` of a row, a whole number of groups further on.
    #[inline(always)]
    pub(crate) fn codes<C: Code>(&self, row: usize, from: usize, count: usize) -> &'a [u8] {
        let start = row * self.columns + from;
        &self.codes[start * C::BITS / 8..(start + count) * C::BITS / 8]
    }

    /// Scales and biases of groups `first ..` of a row.
    #[inline(always)]
    pub(crate) fn factors(&self, row: usize, first: usize, scales: &mut [f32], biases: &mut [f32]) {
        let start = row * (self.columns / self.packing.group()) + first;
        let range = start..start + scales.len();
        match self.scales {
            Scales::Affine { scales: from, biases: from_biases } => {
                for (from, to) in [(from, scales), (from_biases, biases)] {
                    match from {
                        Values::F32(from) => convert(&from[range.clone()], to),
                        Values::Bf16(from) => convert(&from[range.clone()], to),
                    }
                }
            }
            Scales::Half { scales: from, biases: from_biases } => {
                for (from, to) in [(from, scales), (from_biases, biases)] {
                    for (&from, to) in from[range.clone()].iter().zip(to) {
                        *to = widen_half(from);
                    }
                }
            }
            Scales::Bytes(from) => {
                let nvfp4 = self.packing == Packing::Nvfp4;
                for (&code, to) in from[range].iter().zip(scales) {
                    let code = u32::from(code);
                    *to = if nvfp4 {
                        f32::from_bits((code & 0x80) << 24 | (code & 0x7f) << 20) * E4M3
                    } else {
                        f32::from_bits(if code == 0 { 1 << 22 } else { code << 23 })
                    };
                }
                biases.fill(0.0);
            }
        }
    }
}

/// The f32 of the same value.
#[inline(always)]
fn widen_half(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let finite = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let size = if rest < 0x7c00 { finite.to_bits() } else { rest << 13 | 0x7f80_0000 };
    f32::from_bits(sign | size)
}

/// How codes become numbers.
pub(crate) trait Code {
    const BITS: usize;
    /// A vector of them.
    fn load<S: Simd>(simd: S, from: &[u8]) -> S::V;
    /// Twice as many in words of two bf16, exactly.
    fn load_pairs<S: Simd>(simd: S, from: &[u8]) -> S::V;
}

/// What is compiled for every kind of code.
pub(crate) trait Decoded {
    fn run<C: Code>(self);
}

macro_rules! codes {
    ($($name:ident $bits:literal $load:ident $simd:ident $from:ident $pairs:expr),* $(,)?) => {$(
        struct $name;

        impl Code for $name {
            const BITS: usize = $bits;

            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[u8]) -> S::V {
                simd.$load(from)
            }

            #[inline(always)]
            fn load_pairs<S: Simd>($simd: S, $from: &[u8]) -> S::V {
                $pairs
            }
        }
    )*};
}
codes!(
    U4 4 load_u4 simd from simd.load_u4_pairs(from),
    U8 8 load_u8 simd from simd.join([simd.load_u8(from), simd.load_u8(&from[S::LANES..])]),
    E4m3 8 load_e4m3 simd from simd.join([simd.load_e4m3(from), simd.load_e4m3(&from[S::LANES..])]),
    E2m1 4 load_e2m1 simd from simd.join([simd.load_e2m1(from), simd.load_e2m1(&from[S::LANES / 2..])]),
);
