//! Operands as [`Tiles`](super::Tiles) reads them.

use half::bf16;

use super::WORDS;
use crate::isa::{Simd, Work};
use crate::values::{Element, Matrix, Values, convert};

/// Where the rows of a product come from: a matrix, or the neighbourhoods of a convolution.
pub(crate) trait Rows: Sync {
    /// Values `from ..` of row `row`, as many as `to` holds.
    fn copy<E: Element>(&self, row: usize, from: usize, to: &mut [E]);
}

/// Transposes a block of the weight's rows into panels: (panels, WORDS, width), zeros beyond the last row and value.
pub(crate) struct PackColumns<'a> {
    pub(crate) weight: Matrix<'a>,
    /// Words are pairs of bf16, as the weight's values are.
    pub(crate) pairs: bool,
    /// The first of the weight's rows.
    pub(crate) first: usize,
    /// The first word of each row.
    pub(crate) word: usize,
    pub(crate) words: usize,
    pub(crate) to: &'a mut [f32],
}

impl Work for PackColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weight.values {
            Values::F32(values) => self.pack::<S, f32, f32>(simd, values),
            Values::Bf16(values) if self.pairs => self.pack::<S, bf16, bf16>(simd, values),
            Values::Bf16(values) => self.pack::<S, bf16, f32>(simd, values),
        }
    }
}

impl PackColumns<'_> {
    /// From values of type `T`, as words of one f32 or two bf16.
    #[inline(always)]
    fn pack<S: Simd, T: Element, E: Element>(self, simd: S, values: &[T]) {
        let width = S::LANES * S::VECTORS;
        let Matrix { rows, columns: k, stride: row_stride, .. } = self.weight;
        let in_word = size_of::<f32>() / size_of::<E>();
        let (from, end) = (self.word * in_word, k.min((self.word + self.words) * in_word));
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let vectors = self.to.len() / (WORDS * S::LANES);
        for vector in 0..vectors {
            let first = self.first + vector * S::LANES;
            let count = S::LANES.min(rows.saturating_sub(first));
            let at = vector / S::VECTORS * WORDS * width + vector % S::VECTORS * S::LANES;
            let to = &mut self.to[at..];
            // What is whole is transposed where it lies.
            let whole = if count == S::LANES && T::NARROW == E::NARROW {
                (end - from) / in_word / S::LANES * S::LANES
            } else {
                0
            };
            for word in (0..whole).step_by(S::LANES) {
                let start = (first * row_stride + from + word * in_word) * size_of::<T>();
                simd.transpose(&bytes[start..], row_stride * size_of::<T>(), &mut to[word * width..], width);
            }
            for word in (whole..self.words).step_by(S::LANES) {
                let mut square = [E::zeroed(); 2 * 16 * 16];
                let (start, stride) = (from + word * in_word, S::LANES * in_word);
                for (row, square) in square.chunks_exact_mut(stride).take(count).enumerate() {
                    let row = &values[(first + row) * row_stride..][start..end.min(start + stride)];
                    convert(row, &mut square[..row.len()]);
                }
                let to = &mut to[word * width..];
                simd.transpose(bytemuck::cast_slice(&square), S::LANES * 4, to, width);
            }
        }
    }
}
