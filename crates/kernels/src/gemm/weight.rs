//! The weight of a product, and its rows in the type that is multiplied.

use half::bf16;

use super::WORDS;
use crate::isa::{Simd, Work};
use crate::packing::{Code, Decoded, Packed};
use crate::values::{Element, Matrix, Values, load};

/// What rows are multiplied by.
#[derive(Clone, Copy)]
pub(crate) enum Weight<'a> {
    Dense(Matrix<'a>),
    Packed(Packed<'a>),
}

impl Weight<'_> {
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.rows,
            Self::Packed(packed) => packed.rows,
        }
    }

    pub(crate) fn columns(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.columns,
            Self::Packed(packed) => packed.columns,
        }
    }

    /// Its values can be multiplied where they lie; words are pairs of bf16 or not.
    pub(super) fn plain(&self, pairs: bool) -> Option<Matrix<'_>> {
        match self {
            Self::Dense(matrix) if pairs || matches!(matrix.values, Values::F32(_)) => Some(*matrix),
            _ => None,
        }
    }
}

/// Writes a block of the weight's rows `first ..`, as many as `to` (rows, WORDS) holds and the weight has, with zeros up to
/// the next multiple of 16 words.
pub(super) struct Unpack<'a> {
    pub(super) weight: Weight<'a>,
    /// Words are pairs of bf16, not f32.
    pub(super) pairs: bool,
    pub(super) first: usize,
    /// The first word of each row.
    pub(super) word: usize,
    pub(super) words: usize,
    pub(super) to: &'a mut [f32],
}

impl Work for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weight {
            Weight::Packed(packed) => packed.decode(Decode { simd, packed, unpack: self }),
            Weight::Dense(Matrix { values, columns, stride, .. }) => {
                let (from, end) = (self.word, columns.min(self.word + self.words));
                for (row, to) in self.to.chunks_exact_mut(WORDS).enumerate() {
                    let at = (self.first + row) * stride;
                    match values {
                        Values::F32(values) => widen(simd, &values[at + from..at + end], to),
                        Values::Bf16(values) => widen(simd, &values[at + from..at + end], to),
                    }
                    to[end - from..self.words.next_multiple_of(16)].fill(0.0);
                }
            }
        }
    }
}

#[inline(always)]
fn widen<S: Simd, T: Element>(simd: S, from: &[T], to: &mut [f32]) {
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        simd.store(load(simd, from), to);
    }
}

/// [`Unpack`] for what is packed.
struct Decode<'a, S> {
    simd: S,
    packed: Packed<'a>,
    unpack: Unpack<'a>,
}

impl<S: Simd> Decoded for Decode<'_, S> {
    #[inline(always)]
    fn run<C: Code>(self) {
        if self.unpack.pairs { self.rows::<C, bf16>() } else { self.rows::<C, f32>() }
    }
}

impl<S: Simd> Decode<'_, S> {
    #[inline(always)]
    fn rows<C: Code, E: Element>(self) {
        let Self { simd, packed, unpack } = self;
        let in_word = size_of::<f32>() / size_of::<E>();
        let shift = packed.group().trailing_zeros();
        let from = unpack.word * in_word;
        let count = (unpack.words * in_word).min(packed.columns - from);
        let groups = count >> shift;
        // Groups have 16 values at least.
        let (mut scales, mut biases) = ([0.0; 2 * WORDS / 16], [0.0; 2 * WORDS / 16]);
        for (row, to) in unpack.to.chunks_exact_mut(WORDS).enumerate() {
            let row = unpack.first + row;
            packed.factors(row, from >> shift, &mut scales[..groups], &mut biases[..groups]);
            let codes = packed.codes::<C>(row, from, count);
            let to: &mut [E] = bytemuck::cast_slice_mut(to);
            to[count..count.next_multiple_of(16 * in_word)].fill(E::zeroed());
            let mut pairs = to[..count].chunks_exact_mut(2 * S::LANES);
            let mut at = 0;
            for to in &mut pairs {
                let mut values = [simd.splat(0.0); 2];
                for value in &mut values {
                    let group = at >> shift;
                    let code = C::load(simd, &codes[at * C::BITS / 8..]);
                    *value = simd.fma(code, simd.splat(scales[group]), simd.splat(biases[group]));
                    at += S::LANES;
                }
                E::store_twice(simd, values, to);
            }
            let rest = pairs.into_remainder();
            if !rest.is_empty() {
                let group = at >> shift;
                let code = C::load(simd, &codes[at * C::BITS / 8..]);
                E::store(simd, simd.fma(code, simd.splat(scales[group]), simd.splat(biases[group])), rest);
            }
        }
    }
}
