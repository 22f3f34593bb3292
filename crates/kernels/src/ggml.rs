//! Weights in ggml's blocks of quantized values: what they stand for, by ggml's formulas, and the same in the packings that
//! products are computed with. Files and names are not here.

use half::f16;

use crate::quantize::each;
use crate::values::{Element, ValuesMut, fits};
use crate::{Error, Packing};

/// A type of ggml's blocks.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ggml {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// A part of a weight in an affine packing, to be written.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum RepackedMut<'a> {
    Values(&'a mut [u32]),
    Scales(&'a mut [f16]),
    Biases(&'a mut [f16]),
}

/// Values of a block of the K types.
const SUPER: usize = 256;
/// Values of a block of the others, and of a group of Q4_K and Q5_K.
const GROUP: usize = 32;

impl Ggml {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// The type of ggml's number.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            _ => return None,
        })
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Values and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (GROUP, 18),
            Self::Q4_1 => (GROUP, 20),
            Self::Q5_0 => (GROUP, 22),
            Self::Q5_1 => (GROUP, 24),
            Self::Q8_0 => (GROUP, 34),
            Self::Q4K => (SUPER, 144),
            Self::Q5K => (SUPER, 176),
            Self::Q6K => (SUPER, 210),
        }
    }

    /// The packing that has the same codes, if there is one.
    pub fn packing(self) -> Option<Packing> {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => Some(Packing::Affine { bits: 4, group: GROUP }),
            Self::Q8_0 => Some(Packing::Affine { bits: 8, group: GROUP }),
            Self::Q5_0 | Self::Q5_1 | Self::Q5K | Self::Q6K => None,
        }
    }

    /// The values of a block.
    fn values(self, block: &[u8], values: &mut [f32]) {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => few_bits(self, block, values),
            Self::Q8_0 => {
                let scale = half(block, 0);
                for (value, &code) in values.iter_mut().zip(&block[2..]) {
                    *value = f32::from(code.cast_signed()) * scale;
                }
            }
            Self::Q4K => super_block(block, values, |group, column| {
                block[16 + group / 2 * GROUP + column] >> (group % 2 * 4) & 15
            }),
            Self::Q5K => super_block(block, values, |group, column| {
                let low = block[48 + group / 2 * GROUP + column] >> (group % 2 * 4) & 15;
                low | (block[16 + column] >> group & 1) << 4
            }),
            Self::Q6K => q6_k(block, values),
        }
    }

    /// Scale and bias of a group of a block whose type has a packing.
    fn factors(self, block: &[u8], group: usize) -> [f16; 2] {
        let scale = half(block, 0);
        let [scale, bias] = match self {
            Self::Q4_0 => [scale, -8.0 * scale],
            Self::Q8_0 => [scale, -128.0 * scale],
            Self::Q4K => {
                let (own, least) = scale_and_minimum(&block[4..16], group);
                [scale * f32::from(own), -half(block, 2) * f32::from(least)]
            }
            _ => [scale, half(block, 2)],
        };
        [f16::from_f32(scale), f16::from_f32(bias)]
    }

    /// Codes of a group of a block whose type has a packing, the first in the lowest bits.
    fn codes(self, block: &[u8], group: usize, words: &mut [u32]) {
        match self {
            Self::Q8_0 => {
                for (word, codes) in words.iter_mut().zip(block[2..].chunks_exact(4)) {
                    // The signed code plus 128.
                    *word = codes.iter().rev().fold(0, |word, &code| word << 8 | u32::from(code ^ 0x80));
                }
            }
            Self::Q4K => nibbles(&block[16 + group / 2 * GROUP..], group % 2 * 4, words),
            _ => {
                let (low, high) = words.split_at_mut(2);
                let codes = &block[if self == Self::Q4_0 { 2 } else { 4 }..];
                nibbles(codes, 0, low);
                nibbles(codes, 4, high);
            }
        }
    }
}

/// Writes what `codes`, whole blocks, stand for, each value rounded once.
pub fn dequantize_ggml(kind: Ggml, codes: &[u8], out: ValuesMut<'_>) -> Result<(), Error> {
    match out {
        ValuesMut::F32(out) => dequantize_typed(kind, codes, out),
        ValuesMut::Bf16(out) => dequantize_typed(kind, codes, out),
    }
}

fn dequantize_typed<T: Element>(kind: Ggml, codes: &[u8], out: &mut [T]) -> Result<(), Error> {
    let (block, size) = kind.block();
    let blocks = codes.len() / size;
    fits("codes", codes.len(), &[blocks, size])?;
    fits("weight", out.len(), &[blocks, block])?;
    each(codes, size, out, block, |codes, out| {
        let mut values = [0.0; SUPER];
        kind.values(codes, &mut values[..block]);
        for (out, value) in out.iter_mut().zip(values) {
            *out = T::from_f32(value);
        }
    });
    Ok(())
}

/// Writes one part of what `codes`, whole blocks, stand for in the packing of [`Ggml::packing`]: the same values, but that
/// scales and biases of Q4_K, which are products, are rounded to f16.
pub fn repack(kind: Ggml, codes: &[u8], part: RepackedMut<'_>) -> Result<(), Error> {
    let (block, size) = kind.block();
    let Some(packing) = kind.packing() else {
        return Err(Error::Shape {
            what: "type",
            expected: "one with a packing".into(),
            found: kind.name().into(),
        });
    };
    let (blocks, groups, words) = (codes.len() / size, block / GROUP, packing.bits() * GROUP / 32);
    fits("codes", codes.len(), &[blocks, size])?;
    let (factors, index) = match part {
        RepackedMut::Values(out) => {
            fits("values", out.len(), &[blocks, groups * words])?;
            each(codes, size, out, groups * words, |block, out| {
                for (group, words) in out.chunks_exact_mut(words).enumerate() {
                    kind.codes(block, group, words);
                }
            });
            return Ok(());
        }
        RepackedMut::Scales(out) => (out, 0),
        RepackedMut::Biases(out) => (out, 1),
    };
    fits("scales or biases", factors.len(), &[blocks, groups])?;
    each(codes, size, factors, groups, |block, out| {
        for (group, out) in out.iter_mut().enumerate() {
            *out = kind.factors(block, group)[index];
        }
    });
    Ok(())
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The halves, low or high, of 8 bytes for each word.
#[inline(always)]
fn nibbles(codes: &[u8], shift: usize, words: &mut [u32]) {
    for (word, codes) in words.iter_mut().zip(codes.chunks_exact(8)) {
        *word = codes.iter().rev().fold(0, |word, &code| word << 4 | u32::from(code >> shift & 15));
    }
}

/// A scale, in some types a minimum, in some the fifth bits of 32 values, and their low 4: the low halves of 16 bytes are
/// the first 16 values, the high halves the others.
fn few_bits(kind: Ggml, block: &[u8], values: &mut [f32]) {
    let scale = half(block, 0);
    let (middle, minimum) = match kind {
        Ggml::Q4_0 => (8.0, 0.0),
        Ggml::Q5_0 => (16.0, 0.0),
        _ => (0.0, half(block, 2)),
    };
    let (rest, codes) = block.split_at(block.len() - 16);
    let fifth = match rest {
        [.., a, b, c, d] if matches!(kind, Ggml::Q5_0 | Ggml::Q5_1) => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    };
    for (index, value) in values.iter_mut().enumerate() {
        let code = codes[index % 16] >> (index / 16 * 4) & 15 | ((fifth >> index & 1) as u8) << 4;
        *value = scale * (f32::from(code) - middle) + minimum;
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

/// Two scales, then scales and minimums of eight groups, whose values have codes by group and column.
#[inline(always)]
fn super_block(block: &[u8], values: &mut [f32], code: impl Fn(usize, usize) -> u8) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (group, values) in values.chunks_exact_mut(GROUP).enumerate() {
        let (own, least) = scale_and_minimum(&block[4..16], group);
        let (scale, minimum) = (scale * f32::from(own), minimum * f32::from(least));
        for (column, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(code(group, column)) - minimum;
        }
    }
}

/// The low 4 bits of 256 values, their high 2, signed scales of sixteen groups of 16, and the scale of all.
fn q6_k(block: &[u8], values: &mut [f32]) {
    let scale = half(block, 208);
    // Halves of 128 values, in which four rows of 32 share bytes.
    for (index, values) in values.chunks_exact_mut(GROUP).enumerate() {
        let (part, row) = (index / 4, index % 4);
        let low = &block[part * 64 + row % 2 * 32..][..32];
        let high = &block[128 + part * 32..][..32];
        for (column, value) in values.iter_mut().enumerate() {
            let code = low[column] >> (row / 2 * 4) & 15 | (high[column] >> (row * 2) & 3) << 4;
            let own = block[192 + index * 2 + column / 16].cast_signed();
            *value = scale * f32::from(own) * (f32::from(code) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scales, dequantize};

    /// Random blocks, whose scales are small.
    fn blocks(kind: Ggml, count: usize) -> Vec<u8> {
        let (_, size) = kind.block();
        let mut state = 7u64;
        let mut bytes: Vec<u8> = (0..count * size)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        for block in bytes.chunks_exact_mut(size) {
            let at = if kind == Ggml::Q6K { size - 2 } else { 0 };
            block[at + 1] = block[at + 1] & 0x83 | 0x14; // ±2⁻¹⁰
            block[3] = block[3] & 0x83 | 0x14;
        }
        bytes
    }

    /// Odd numbers of blocks, so that the last task is short. That values are ggml's own is tested where files are read.
    #[test]
    fn repacked_weights_have_the_same_values() {
        let count = 3 * 1031;
        for kind in Ggml::ALL {
            let (block, _) = kind.block();
            let codes = blocks(kind, count);
            let mut values = vec![0f32; count * block];
            dequantize_ggml(kind, &codes, ValuesMut::F32(&mut values)).unwrap();
            assert!(dequantize_ggml(kind, &codes[1..], ValuesMut::F32(&mut values)).is_err());
            let groups = count * block / GROUP;
            let (mut scales, mut biases) = (vec![f16::ZERO; groups], vec![f16::ZERO; groups]);
            let Some(packing) = kind.packing() else {
                assert!(repack(kind, &codes, RepackedMut::Scales(&mut scales)).is_err());
                continue;
            };
            let mut words = vec![0; groups * packing.bits()];
            repack(kind, &codes, RepackedMut::Values(&mut words)).unwrap();
            repack(kind, &codes, RepackedMut::Scales(&mut scales)).unwrap();
            repack(kind, &codes, RepackedMut::Biases(&mut biases)).unwrap();
            assert!(repack(kind, &codes, RepackedMut::Values(&mut words[1..])).is_err());
            let mut back = vec![0f32; values.len()];
            let parts = Scales::Half { scales: &scales, biases: &biases };
            dequantize(&words, parts, packing, ValuesMut::F32(&mut back)).unwrap();
            if kind == Ggml::Q4K {
                for (group, (own, ours)) in values.chunks(GROUP).zip(back.chunks(GROUP)).enumerate() {
                    // As large as the largest sum's parts.
                    let most = scales[group].to_f32().abs() * 15.0 + biases[group].to_f32().abs();
                    assert!(own.iter().zip(ours).all(|(a, b)| (a - b).abs() <= most / 2048.0), "{group}");
                }
                assert!(values.iter().any(|value| *value != 0.0));
            } else {
                assert!(values == back, "{kind:?}");
            }
        }
    }
}
