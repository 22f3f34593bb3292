//! Between the two products of attention: from scores to weights, and from weighted sums to outputs.

use std::ops::Range;

use half::bf16;

use super::{AttentionShape, Mask};
use crate::gemm::WORDS;
use crate::isa::{Simd, Work};
use crate::math::exp;
use crate::pool::Shared;
use crate::values::{Element, Values, load, store};

/// Values (keys, value_dim), `stride` apart, as the right side of a product over keys: (panels of value_dim, WORDS, width).
pub(super) struct PackValues<'a, T> {
    pub(super) values: &'a [T],
    pub(super) value_dim: usize,
    pub(super) stride: usize,
    pub(super) pairs: bool,
    pub(super) to: &'a mut [f32],
}

impl<T: Element> Work for PackValues<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = S::LANES * S::VECTORS;
        let keys_in_word = if self.pairs { 2 } else { 1 };
        for (panel, to) in self.to.chunks_exact_mut(WORDS * width).enumerate() {
            let columns = panel * width..self.value_dim.min((panel + 1) * width);
            let words = self.values.chunks(keys_in_word * self.stride).zip(to.chunks_exact_mut(width));
            for (rows, to) in words {
                to[columns.len()..].fill(0.0);
                if self.pairs {
                    let (even, odd) = rows.split_at(self.stride.min(rows.len()));
                    let even = &even[columns.clone()];
                    // Beyond the last key stands zero.
                    let odd = if odd.is_empty() { None } else { Some(&odd[columns.clone()]) };
                    for (index, to) in to[..columns.len()].iter_mut().enumerate() {
                        let high = odd.map_or(0, |odd| odd[index].widen().to_bits());
                        *to = f32::from_bits(high | even[index].widen().to_bits() >> 16);
                    }
                } else {
                    for (from, to) in rows[columns.clone()].chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
                        simd.store(load(simd, from), to);
                    }
                }
            }
            if self.pairs {
                // Tiles read 16 words at a time.
                let words = self.values.len().div_ceil(2 * self.stride);
                to[words * width..words.next_multiple_of(16) * width].fill(0.0);
            }
        }
    }
}

/// Turns the scores of a block of keys into weights relative to the largest score so far, and brings what was summed
/// before to the same scale.
pub(super) struct Softmax<'a> {
    /// Raw products: (panels of keys, queries, width).
    pub(super) scores: &'a mut [f32],
    /// (queries, WORDS)
    pub(super) weights: &'a mut [f32],
    /// (panels of value_dim, queries, width)
    pub(super) sums: &'a mut [f32],
    pub(super) maxima: &'a mut [f32],
    pub(super) totals: &'a mut [f32],
    /// Weights are bf16.
    pub(super) pairs: bool,
    pub(super) scale: f32,
    /// What is added: (queries or 1, keys).
    pub(super) mask: Option<Mask<'a>>,
    pub(super) shape: &'a AttentionShape,
    pub(super) first_query: usize,
    pub(super) keys: Range<usize>,
}

impl Work for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for row in 0..self.maxima.len() {
            let query = self.first_query + row;
            let seen = Mask::seen(self.mask, self.shape, &(query..query + 1));
            let end = seen.end.saturating_sub(self.keys.start).min(self.keys.len());
            let seen = seen.start.saturating_sub(self.keys.start).min(end)..end;
            let largest = match self.mask {
                Some(Mask::Added(mask)) => {
                    let first = if mask.queries == 1 { 0 } else { query * self.shape.keys };
                    let part = first + self.keys.start..first + self.keys.end;
                    match mask.values {
                        Values::F32(values) => self.scale_row(simd, row, &seen, Some(&values[part])),
                        Values::Bf16(values) => self.scale_row(simd, row, &seen, Some(&values[part])),
                    }
                }
                _ => self.scale_row::<S, f32>(simd, row, &seen, None),
            };
            let (before, largest) = (self.maxima[row], largest.max(self.maxima[row]));
            // Nothing but −∞ so far: any finite number will do, and leaves every weight 0.
            let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let total = match self.pairs {
                true => self.weigh_row::<S, bf16>(simd, row, base),
                false => self.weigh_row::<S, f32>(simd, row, base),
            };
            let factor = simd.largest(exp(simd, simd.splat(before - base)));
            self.totals[row] = self.totals[row] * factor + total;
            self.maxima[row] = largest;
            if factor != 1.0 {
                self.rescale_row(simd, row, factor);
            }
        }
    }
}

impl Softmax<'_> {
    /// Where vector `vector` of a row is in `scores` or `sums`.
    #[inline(always)]
    fn place<S: Simd>(&self, row: usize, vector: usize) -> usize {
        let panel = vector / S::VECTORS;
        (panel * self.maxima.len() + row) * S::VECTORS * S::LANES + vector % S::VECTORS * S::LANES
    }

    /// Multiplies by the scale, adds the mask, and tells the largest. Where keys of the block are not `seen`, and beyond the
    /// last, stands −∞.
    #[inline(always)]
    fn scale_row<S: Simd, M: Element>(
        &mut self,
        simd: S,
        row: usize,
        seen: &Range<usize>,
        mask: Option<&[M]>,
    ) -> f32 {
        let scale = simd.splat(self.scale);
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for vector in 0..self.scores.len() / self.maxima.len() / S::LANES {
            let (place, key) = (self.place::<S>(row, vector), vector * S::LANES);
            let keys = S::LANES.min(self.keys.len().saturating_sub(key));
            let mut score = simd.mul(simd.load(&self.scores[place..]), scale);
            if let Some(mask) = mask {
                score = simd.add(score, load(simd, &mask[key.min(mask.len())..][..keys]));
            }
            simd.store(score, &mut self.scores[place..]);
            let [from, to] = [seen.start, seen.end].map(|end| end.saturating_sub(key).min(S::LANES));
            if from > 0 || to < S::LANES {
                self.scores[place..place + from].fill(f32::NEG_INFINITY);
                self.scores[place + to..place + S::LANES].fill(f32::NEG_INFINITY);
                score = simd.load(&self.scores[place..]);
            }
            largest = simd.max(largest, score);
        }
        simd.largest(largest)
    }

    /// Writes exp(score − base) and tells the sum.
    #[inline(always)]
    fn weigh_row<S: Simd, E: Element>(&mut self, simd: S, row: usize, base: f32) -> f32 {
        let base = simd.splat(base);
        let mut total = simd.splat(0.0);
        for vector in 0..self.scores.len() / self.maxima.len() / S::LANES {
            let place = self.place::<S>(row, vector);
            let weight = exp(simd, simd.sub(simd.load(&self.scores[place..]), base));
            total = simd.add(total, weight);
            let weights: &mut [E] = bytemuck::cast_slice_mut(&mut self.weights[row * WORDS..][..WORDS]);
            E::store(simd, weight, &mut weights[vector * S::LANES..]);
        }
        simd.sum(total)
    }

    #[inline(always)]
    fn rescale_row<S: Simd>(&mut self, simd: S, row: usize, factor: f32) {
        let factor = simd.splat(factor);
        for vector in 0..self.sums.len() / self.maxima.len() / S::LANES {
            let place = self.place::<S>(row, vector);
            let sums = &mut self.sums[place..];
            simd.store(simd.mul(simd.load(sums), factor), sums);
        }
    }
}

/// out (queries, value_dim), `stride` apart, = sums (panels, queries, width) / totals (queries).
pub(super) struct Divide<'a, T> {
    pub(super) sums: &'a [f32],
    pub(super) totals: &'a [f32],
    pub(super) value_dim: usize,
    pub(super) stride: usize,
    /// Where the first query's outputs begin. No other task has these outputs.
    pub(super) start: usize,
    pub(super) out: &'a Shared<'a, T>,
}

impl<T: Element> Work for Divide<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = S::LANES * S::VECTORS;
        let rows = self.totals.len();
        for (row, &total) in self.totals.iter().enumerate() {
            let start = self.start + row * self.stride;
            // SAFETY: the task has these outputs alone.
            let out = unsafe { self.out.part(start..start + self.value_dim) };
            let share = simd.splat(if total == 0.0 { 0.0 } else { 1.0 / total });
            for (panel, out) in out.chunks_mut(width).enumerate() {
                let sums = &self.sums[(panel * rows + row) * width..][..width];
                for (sums, out) in sums.chunks_exact(S::LANES).zip(out.chunks_mut(S::LANES)) {
                    store(simd, simd.mul(simd.load(sums), share), out);
                }
            }
        }
    }
}
