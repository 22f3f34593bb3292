//! What blocks of quantized values stand for, by ggml's formulas, in f32.

use half::f16;
use safetensors::Dtype as Stored;

/// A type of tensor that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::checkpoint) enum Kind {
    /// Numbers as they are.
    Plain(Stored),
    Q8_0,
    Q4K,
    Q6K,
}

/// Values of a block of the K types.
const SUPER: usize = 256;

impl Kind {
    /// The type of ggml's number.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Plain(Stored::F32),
            1 => Self::Plain(Stored::F16),
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            30 => Self::Plain(Stored::BF16),
            _ => return None,
        })
    }

    /// Values and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.bitsize() / 8),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (SUPER, 144),
            Self::Q6K => (SUPER, 210),
        }
    }

    /// The values of whole blocks.
    pub fn dequantize(self, bytes: &[u8], values: &mut [f32]) -> Result<(), String> {
        let (block, size) = self.block();
        if bytes.len() / size != values.len() / block || !values.len().is_multiple_of(block) {
            return Err(format!("{} bytes are not {} values of {self:?}", bytes.len(), values.len()));
        }
        let blocks = bytes.chunks_exact(size).zip(values.chunks_exact_mut(block));
        match self {
            Self::Plain(dtype) => return Err(format!("{dtype:?} is not quantized")),
            Self::Q8_0 => blocks.for_each(|(bytes, values)| q8_0(bytes, values)),
            Self::Q4K => blocks.for_each(|(bytes, values)| q4_k(bytes, values)),
            Self::Q6K => blocks.for_each(|(bytes, values)| q6_k(bytes, values)),
        }
        Ok(())
    }
}

/// ggml's name of a type that is not read, as far as it is likely to be met.
pub(super) fn name(number: u32) -> String {
    let name = match number {
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        20 => "IQ4_NL",
        23 => "IQ4_XS",
        39 => "MXFP4",
        _ => return format!("number {number}"),
    };
    name.into()
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// A scale, then 32 signed values.
fn q8_0(bytes: &[u8], values: &mut [f32]) {
    let scale = half(bytes, 0);
    for (value, &code) in values.iter_mut().zip(&bytes[2..]) {
        *value = f32::from(code.cast_signed()) * scale;
    }
}

/// The scale and the minimum (6 bits each) of one of the eight groups of 32, from the 12 bytes that hold all.
fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let both = packed[group + 4];
    (both & 15 | packed[group - 4] >> 6 << 4, both >> 4 | packed[group] >> 6 << 4)
}

/// Two scales, scales and minimums of eight groups, then 256 values of 4 bits: of each 32 bytes the low halves are one group
/// and the high halves the next.
fn q4_k(bytes: &[u8], values: &mut [f32]) {
    let (scale, minimum) = (half(bytes, 0), half(bytes, 2));
    for (group, values) in values.chunks_exact_mut(32).enumerate() {
        let (own, least) = scale_and_minimum(&bytes[4..16], group);
        let (scale, minimum) = (scale * f32::from(own), minimum * f32::from(least));
        let codes = &bytes[16 + group / 2 * 32..][..32];
        for (value, code) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(code >> (group % 2 * 4) & 15) - minimum;
        }
    }
}

/// The low 4 bits of 256 values, their high 2, signed scales of sixteen groups of 16, and the scale of all.
fn q6_k(bytes: &[u8], values: &mut [f32]) {
    let scale = half(bytes, 208);
    for (index, value) in values.iter_mut().enumerate() {
        // Halves of 128 values, in which four rows of 32 share bytes.
        let (part, row, column) = (index / 128, index / 32 % 4, index % 32);
        let low = bytes[part * 64 + row % 2 * 32 + column] >> (row / 2 * 4) & 15;
        let high = bytes[128 + part * 32 + column] >> (row * 2) & 3;
        let own = bytes[192 + index / 16].cast_signed();
        *value = scale * f32::from(own) * (f32::from(low | high << 4) - 32.0);
    }
}
