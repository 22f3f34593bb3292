//! How weights of few bits are packed: the layouts of MLX's `quantize`. What is computed with them is not here.

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
