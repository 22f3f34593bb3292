//! Weights into few bits, with the same bits as MLX's `quantize` on the CPU, and back. Products with packed weights are not
//! here.
//!
//! All is computed in f32; scales and biases are rounded to the weight's type only when they are stored.

use crate::pool::{self, Shared};
use crate::values::{Element, Values, ValuesMut, fits};
use crate::{Error, Packing, Scales};

/// A part of a packed weight, to be written.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum PartMut<'a> {
    Values(&'a mut [u32]),
    /// Of affine packings.
    Scales(ValuesMut<'a>),
    /// Of affine packings.
    Biases(ValuesMut<'a>),
    /// Scales of the other packings.
    ScaleBytes(&'a mut [u8]),
}

/// About how many values a task has.
const TASK: usize = 32 << 10;
/// The smallest scale of affine packings.
const LEAST: f32 = 1e-7;
/// The values of E2M1, by the lower three bits of their codes.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Writes one part of `weight`, of whole groups, packed.
pub fn quantize(weight: Values<'_>, packing: Packing, part: PartMut<'_>) -> Result<(), Error> {
    match weight {
        Values::F32(weight) => quantize_typed(weight, packing, part),
        Values::Bf16(weight) => quantize_typed(weight, packing, part),
    }
}

fn quantize_typed<T: Element>(weight: &[T], packing: Packing, part: PartMut<'_>) -> Result<(), Error> {
    let group = packing.group();
    fits("weight", weight.len(), &[weight.len() / group, group])?;
    let (groups, words) = (weight.len() / group, packing.bits() * group / 32);
    let affine = match packing {
        Packing::Affine { bits, .. } => Some(bits),
        _ => None,
    };
    let part = match (part, affine) {
        (PartMut::Values(out), _) => {
            fits("values", out.len(), &[groups, words])?;
            each(weight, group, out, words, |group, out| pack(group, packing, out));
            return Ok(());
        }
        (PartMut::ScaleBytes(out), None) => {
            fits("scales", out.len(), &[groups])?;
            each(weight, group, out, 1, |group, out| out.fill(narrow_scale(group, packing).0));
            return Ok(());
        }
        (PartMut::Scales(out), Some(bits)) => (out, bits, 0),
        (PartMut::Biases(out), Some(bits)) => (out, bits, 1),
        _ => {
            let found = format!("{packing:?}");
            return Err(Error::Shape { what: "packing", expected: "one with this part".into(), found });
        }
    };
    let (out, bits, index) = part;
    fits("scales or biases", out.len(), &[groups])?;
    match out {
        ValuesMut::F32(out) => {
            each(weight, group, out, 1, |group, out| out.fill(affine_scale(group, bits)[index]))
        }
        ValuesMut::Bf16(out) => each(weight, group, out, 1, |group, out| {
            out.fill(Element::from_f32(affine_scale(group, bits)[index]));
        }),
    }
    Ok(())
}

/// Calls `work` with every group of `from` and its part of `to`.
pub(crate) fn each<T: Sync, U: Send>(
    from: &[T],
    group: usize,
    to: &mut [U],
    width: usize,
    work: impl Fn(&[T], &mut [U]) + Sync + Send,
) {
    let groups = from.len() / group;
    let task = TASK / group;
    let to = Shared::new(to);
    pool::for_each(groups.div_ceil(task), |index| {
        let range = index * task..groups.min((index + 1) * task);
        // SAFETY: tasks have groups of their own.
        let to = unsafe { to.part(range.start * width..range.end * width) };
        let from = &from[range.start * group..range.end * group];
        for (from, to) in from.chunks_exact(group).zip(to.chunks_exact_mut(width)) {
            work(from, to);
        }
    });
}

/// Scale and bias: NaN if a value is not finite. The end of the range that is further from 0 is met exactly, and so is 0.
fn affine_scale<T: Element>(group: &[T], bits: usize) -> [f32; 2] {
    let (low, high) = range(group);
    let steps = ((1u32 << bits) - 1) as f32;
    let downwards = low.abs() > high.abs();
    let range = (high - low) / steps;
    let scale = if range < LEAST { LEAST } else { range };
    let (scale, edge) = if downwards { (scale, low) } else { (-scale, high) };
    let whole = (edge / scale).round_ties_even();
    if whole == 0.0 { [scale, 0.0] } else { [edge / whole, edge] }
}

/// The least and the largest value; NaN if one is not finite.
fn range<T: Element>(group: &[T]) -> (f32, f32) {
    // As many values side by side as groups have multiples of, for the vectors' sake.
    let (mut low, mut high, mut endless) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16], [false; 16]);
    for values in group.chunks_exact(16) {
        for (lane, value) in values.iter().enumerate() {
            let value = value.widen();
            high[lane] = if high[lane] < value { value } else { high[lane] };
            low[lane] = if value < low[lane] { value } else { low[lane] };
            endless[lane] |= value.to_bits() & 0x7f80_0000 == 0x7f80_0000;
        }
    }
    if endless.contains(&true) {
        return (f32::NAN, f32::NAN);
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The stored scale of a packing whose scales are bytes, all ones if a value is not finite, and the number that values are
/// divided by.
fn narrow_scale<T: Element>(group: &[T], packing: Packing) -> (u8, f32) {
    let (low, high) = range(group);
    let largest = high.abs().max(low.abs());
    if !largest.is_finite() {
        return (if packing == Packing::Nvfp4 { 0x7f } else { 0xff }, f32::NAN);
    }
    if packing == Packing::Nvfp4 {
        let code = to_e4m3(largest / 6.0);
        return (code, e4m3(code));
    }
    let exponent = if largest == 0.0 { 0.0 } else { (largest / 448.0).log2().ceil() };
    let exponent = exponent.clamp(-127.0, 127.0);
    ((exponent + 127.0) as u8, exponent.exp2())
}

fn pack<T: Element>(group: &[T], packing: Packing, out: &mut [u32]) {
    match packing {
        Packing::Affine { bits, .. } => {
            let [scale, bias] = affine_scale(group, bits);
            let most = ((1u32 << bits) - 1) as f32;
            // The lowest bits of a small number to which this was added are the nearest integer, ties to even.
            const ROUND: f32 = 12_582_912.0;
            let code = |value: &T| {
                let steps = (value.widen() - bias) / scale;
                (steps.clamp(0.0, most) + ROUND).to_bits() & 0xff
            };
            words(group, bits, out, code);
        }
        Packing::Mxfp8 => {
            let (_, scale) = narrow_scale(group, packing);
            words(group, 8, out, |value| u32::from(to_e4m3(value.widen() / scale)));
        }
        Packing::Nvfp4 => match narrow_scale(group, packing) {
            (_, 0.0) => out.fill(0),
            (_, scale) => words(group, 4, out, |value| to_e2m1(value.widen() / scale)),
        },
    }
}

#[inline(always)]
fn words<T>(group: &[T], bits: usize, out: &mut [u32], code: impl Fn(&T) -> u32) {
    for (values, word) in group.chunks_exact(32 / bits).zip(out) {
        *word = values.iter().enumerate().fold(0, |word, (at, value)| word | code(value) << (at * bits));
    }
}

/// The nearest value of E2M1; halfway between two, the smaller. Nothing is −0.
fn to_e2m1(value: f32) -> u32 {
    const BETWEEN: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let code = BETWEEN.iter().filter(|&&limit| value.abs() > limit).count() as u32;
    if code > 0 && value < 0.0 { code | 8 } else { code }
}

/// The nearest value of E4M3, ties to even; what is too large becomes the largest.
fn to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let (sign, bits) = ((bits >> 24) as u8 & 0x80, bits & 0x7fff_ffff);
    let magnitude = if bits >= 543 << 21 {
        0x7e
    } else if bits < 121 << 23 {
        // Adding 2¹⁴ leaves as many bits as a subnormal has.
        let low = (f32::from_bits(bits) + f32::from_bits(141 << 23)).to_bits();
        (low - (141 << 23)) as u8
    } else {
        let odd = (bits >> 20) & 1;
        (bits.wrapping_add((7u32.wrapping_sub(127) << 23).wrapping_add(0x7_ffff)).wrapping_add(odd) >> 20)
            as u8
    };
    magnitude | sign
}

/// The value of a code of E4M3. All ones, which is no number, is 480 here as it is in MLX.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, f32::from(code & 7));
    let value = if exponent == 0 {
        mantissa / 512.0
    } else {
        (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 120) << 23)
    };
    if code >> 7 == 1 { -value } else { value }
}

/// Writes the weight that packed `values` stand for, each value rounded once.
pub fn dequantize(
    values: &[u32],
    scales: Scales<'_>,
    packing: Packing,
    out: ValuesMut<'_>,
) -> Result<(), Error> {
    match out {
        ValuesMut::F32(out) => dequantize_typed(values, scales, packing, out),
        ValuesMut::Bf16(out) => dequantize_typed(values, scales, packing, out),
    }
}

fn dequantize_typed<T: Element>(
    values: &[u32],
    scales: Scales<'_>,
    packing: Packing,
    out: &mut [T],
) -> Result<(), Error> {
    let (group, bits) = (packing.group(), packing.bits());
    let (groups, words) = (out.len() / group, group * bits / 32);
    fits("weight", out.len(), &[groups, group])?;
    fits("values", values.len(), &[groups, words])?;
    let e4m3: [f32; 256] = std::array::from_fn(|code| e4m3(code as u8));
    let group_of = |index: usize, out: &mut [T]| {
        let words = &values[index * words..][..words];
        match (scales, packing) {
            (Scales::Affine { scales, biases }, _) => {
                let (scale, bias) = (number(scales, index), number(biases, index));
                unpack(words, bits, out, |code| code as f32 * scale + bias);
            }
            (Scales::Half { scales, biases }, _) => {
                let (scale, bias) = (scales[index].to_f32(), biases[index].to_f32());
                unpack(words, bits, out, |code| code as f32 * scale + bias);
            }
            (Scales::Bytes(scales), Packing::Nvfp4) => {
                let scale = e4m3[usize::from(scales[index])];
                let table: [f32; 16] = std::array::from_fn(|code| {
                    let value = E2M1[code & 7] * scale;
                    if code & 8 == 8 { -value } else { value }
                });
                unpack(words, bits, out, |code| table[(code & 15) as usize]);
            }
            (Scales::Bytes(scales), _) => {
                let scale = (f32::from(scales[index]) - 127.0).exp2();
                unpack(words, bits, out, |code| e4m3[(code & 255) as usize] * scale);
            }
        }
    };
    match (scales, packing) {
        (Scales::Affine { scales, biases }, Packing::Affine { .. }) => {
            fits("scales", scales.len(), &[groups])?;
            fits("biases", biases.len(), &[groups])?;
        }
        (Scales::Half { scales, biases }, Packing::Affine { .. }) => {
            fits("scales", scales.len(), &[groups])?;
            fits("biases", biases.len(), &[groups])?;
        }
        (Scales::Bytes(scales), Packing::Mxfp8 | Packing::Nvfp4) => fits("scales", scales.len(), &[groups])?,
        _ => {
            let found = format!("{packing:?}");
            return Err(Error::Shape { what: "packing", expected: "one with such scales".into(), found });
        }
    }
    let task = TASK / group;
    let out = Shared::new(out);
    pool::for_each(groups.div_ceil(task), |index| {
        for index in index * task..groups.min((index + 1) * task) {
            // SAFETY: tasks have groups of their own.
            group_of(index, unsafe { out.part(index * group..(index + 1) * group) });
        }
    });
    Ok(())
}

#[inline(always)]
fn unpack<T: Element>(words: &[u32], bits: usize, out: &mut [T], value: impl Fn(u32) -> f32) {
    let mask = u32::MAX >> (32 - bits);
    for (word, out) in words.iter().zip(out.chunks_exact_mut(32 / bits)) {
        for (at, out) in out.iter_mut().enumerate() {
            *out = T::from_f32(value(word >> (at * bits) & mask));
        }
    }
}

fn number(values: Values<'_>, index: usize) -> f32 {
    match values {
        Values::F32(values) => values[index],
        Values::Bf16(values) => values[index].widen(),
    }
}

/// `out = table[codes]`
pub fn look_up(codes: &[u8], table: &[half::bf16; 256], out: &mut [half::bf16]) -> Result<(), Error> {
    fits("out", out.len(), &[codes.len()])?;
    let len = codes.len();
    let out = Shared::new(out);
    pool::for_each(len.div_ceil(TASK), |index| {
        let range = index * TASK..len.min((index + 1) * TASK);
        // SAFETY: tasks have values of their own.
        let out = unsafe { out.part(range.clone()) };
        for (out, &code) in out.iter_mut().zip(&codes[range]) {
            *out = table[usize::from(code)];
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        for code in 0..=255u8 {
            if code & 0x7f != 0x7f {
                assert_eq!(to_e4m3(e4m3(code)), code, "{code:#x}");
            }
        }
        for (code, value) in E2M1.into_iter().enumerate() {
            assert_eq!(to_e2m1(value), code as u32);
            assert_eq!(to_e2m1(-value), if code == 0 { 0 } else { code as u32 | 8 });
        }
        assert_eq!((to_e4m3(449.0), to_e4m3(-1e9)), (0x7e, 0xfe));
    }

    /// Odd numbers of groups, so that the last task is short.
    #[test]
    fn packed_weights_are_near() {
        let packings = [
            (Packing::Affine { bits: 4, group: 32 }, 0.13),
            (Packing::Affine { bits: 8, group: 128 }, 0.008),
            (Packing::Mxfp8, 0.12),
            (Packing::Nvfp4, 0.2),
        ];
        for (packing, loss) in packings {
            let count = packing.group() * 1031;
            let weight: Vec<f32> =
                (0..count).map(|at| ((at * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.4).collect();
            let groups = count / packing.group();
            let mut values = vec![0; count * packing.bits() / 32];
            quantize(Values::F32(&weight), packing, PartMut::Values(&mut values)).unwrap();
            let (mut scales, mut biases, mut bytes) = (vec![0.0; groups], vec![0.0; groups], vec![0; groups]);
            let read = if let Packing::Affine { .. } = packing {
                quantize(Values::F32(&weight), packing, PartMut::Scales(ValuesMut::F32(&mut scales)))
                    .unwrap();
                quantize(Values::F32(&weight), packing, PartMut::Biases(ValuesMut::F32(&mut biases)))
                    .unwrap();
                assert!(quantize(Values::F32(&weight), packing, PartMut::ScaleBytes(&mut bytes)).is_err());
                Scales::Affine { scales: Values::F32(&scales), biases: Values::F32(&biases) }
            } else {
                quantize(Values::F32(&weight), packing, PartMut::ScaleBytes(&mut bytes)).unwrap();
                assert!(
                    quantize(Values::F32(&weight), packing, PartMut::Scales(ValuesMut::F32(&mut scales)))
                        .is_err()
                );
                Scales::Bytes(&bytes)
            };
            let mut back = vec![0f32; count];
            dequantize(&values, read, packing, ValuesMut::F32(&mut back)).unwrap();
            for (at, (ours, own)) in back.iter().zip(&weight).enumerate() {
                assert!((ours - own).abs() <= 0.6 * loss, "{packing:?} at {at}: {ours} for {own}");
            }
            assert!(dequantize(&values[1..], read, packing, ValuesMut::F32(&mut back)).is_err());
            assert!(quantize(Values::F32(&weight[1..]), packing, PartMut::Values(&mut values)).is_err());
        }
    }
}
