//! The product of very few rows with a packed weight, which takes as long as reading the weight: values are unpacked in
//! registers.

use half::bf16;

use super::End;
use crate::isa::{Active, Simd, Work};
use crate::packing::{Code, Decoded, Packed};
use crate::pool::{self, Shared};
use crate::values::{Element, convert, load, store};

/// Rows, at most, where half bytes are multiplied as pairs of bf16: more are worth unpacking a weight for.
const PAIRED_ROWS: usize = 4;

/// The same elsewhere.
const ROWS: usize = 2;

/// Columns of a task.
const TASK: usize = 32;

/// Values of a row whose scales are widened at a time.
const CHUNK: usize = 2048;

/// Whether [`run`] is the way for `m` rows of type `T`.
pub(super) fn takes<T: Element>(m: usize, weight: Packed<'_>) -> bool {
    m <= if weight.bits() == 4 && paired::<T>(weight) { PAIRED_ROWS } else { ROWS }
}

/// Codes and x are multiplied as pairs of bf16, and the sum of a group is scaled.
fn paired<T: Element>(weight: Packed<'_>) -> bool {
    T::NARROW && weight.group() >= 32 && Active::get().run(Joins)
}

struct Joins;

impl Work for Joins {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        S::JOINS
    }
}

/// out (m, n) = x (m, k) · weightᵀ (n, k) and what `end` does with it, for m that [`takes`] names.
pub(super) fn run<T: Element, O: Element>(x: &[T], weight: Packed<'_>, end: End<'_>, out: &mut [O]) {
    let (m, k) = (out.len() / weight.rows, weight.columns);
    let (rows, paired) = (m.next_power_of_two(), paired::<T>(weight));
    let mut padded = vec![0.0f32; rows * k / if paired { 2 } else { 1 }];
    let mut sums = Vec::new();
    if paired {
        convert(x, &mut bytemuck::cast_slice_mut::<f32, bf16>(&mut padded)[..x.len()]);
        if weight.affine() {
            let sum = |group: &[T]| group.iter().fold(0.0, |sum, value| sum + value.widen());
            sums.extend(x.chunks_exact(weight.group()).map(sum));
            sums.resize(rows * k / weight.group(), 0.0);
        }
    } else {
        convert(x, &mut padded[..x.len()]);
    }
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(weight.rows.div_ceil(TASK), |task| {
        let first = task * TASK;
        let last = weight.rows.min(first + TASK);
        let (x, sums, out) = (&padded[..], &sums[..], &out);
        active.run(Dots { x, sums, m, rows, paired, weight, first, last, end, out });
    });
}

/// Columns `first .. last` of the output.
struct Dots<'a, O> {
    /// Values, or pairs of them.
    x: &'a [f32], // (rows, k) or (rows, k / 2)
    /// Of the groups of x, where pairs are multiplied and groups have biases.
    sums: &'a [f32], // (rows, k / group)
    m: usize,
    /// 1, 2 or 4: those beyond `m` are zeros.
    rows: usize,
    paired: bool,
    weight: Packed<'a>,
    first: usize,
    last: usize,
    end: End<'a>,
    out: &'a Shared<'a, O>,
}

impl<O: Element> Work for Dots<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let weight = self.weight;
        weight.decode(Decode { simd, dots: self });
    }
}

struct Decode<'a, S, O> {
    simd: S,
    dots: Dots<'a, O>,
}

impl<S: Simd, O: Element> Decoded for Decode<'_, S, O> {
    #[inline(always)]
    fn run<C: Code>(self) {
        let Self { simd, dots } = self;
        if S::JOINS && dots.paired {
            match dots.rows {
                1 => dots.columns::<S, C, true, 1, 4>(simd),
                2 => dots.columns::<S, C, true, 2, 4>(simd),
                _ => dots.columns::<S, C, true, PAIRED_ROWS, 2>(simd),
            }
        } else {
            match dots.rows {
                1 => dots.columns::<S, C, false, 1, 4>(simd),
                _ => dots.columns::<S, C, false, ROWS, 4>(simd),
            }
        }
    }
}

impl<O: Element> Dots<'_, O> {
    /// `N` columns together, so that sums do not wait for each other and `x` is read less often.
    #[inline(always)]
    fn columns<S: Simd, C: Code, const PAIRED: bool, const M: usize, const N: usize>(self, simd: S) {
        let n = self.weight.rows;
        // Groups have 16 values at least.
        let mut factors = [[[0.0; CHUNK / 16]; N]; 2];
        for first in (self.first..self.last).step_by(N) {
            let count = N.min(self.last - first);
            let sums = self.sums::<S, C, PAIRED, M, N>(simd, first, count, &mut factors);
            for (row, sums) in sums.iter().enumerate().take(self.m) {
                for (index, &sum) in sums.iter().enumerate().take(count) {
                    let column = first + index;
                    let sum = simd.splat(simd.sum(sum));
                    let value = self.end.apply(simd, sum, row, column..column + 1, n);
                    let at = row * n + column;
                    // SAFETY: the task has these columns alone.
                    store(simd, value, unsafe { self.out.part(at..at + 1) });
                }
            }
        }
    }

    /// Sums, each spread over a vector, of columns `first ..`, of which there are `count`: the last is computed again where
    /// fewer are left. `factors` is room for scales and biases.
    #[inline(always)]
    fn sums<S: Simd, C: Code, const PAIRED: bool, const M: usize, const N: usize>(
        &self,
        simd: S,
        first: usize,
        count: usize,
        [scales, biases]: &mut [[[f32; CHUNK / 16]; N]; 2],
    ) -> [[S::V; N]; M] {
        let (k, group) = (self.weight.columns, self.weight.group());
        let mut sums = [[simd.splat(0.0); N]; M];
        for from in (0..k).step_by(CHUNK) {
            let len = CHUNK.min(k - from);
            let groups = len / group;
            let mut codes = [&[0u8; 0][..]; N];
            for (column, codes) in codes.iter_mut().enumerate() {
                let row = first + column.min(count - 1);
                let (scales, biases) = (&mut scales[column][..groups], &mut biases[column][..groups]);
                self.weight.factors(row, from / group, scales, biases);
                *codes = self.weight.codes::<C>(row, from, len);
            }
            if PAIRED && self.weight.affine() {
                for at in (0..groups).step_by(S::LANES) {
                    let range = at..groups.min(at + S::LANES);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let start = (row * k + from) / group;
                        let x = load(simd, &self.sums[start + range.start..start + range.end]);
                        for (sum, biases) in sums.iter_mut().zip(&*biases) {
                            *sum = simd.fma(x, load(simd, &biases[range.clone()]), *sum);
                        }
                    }
                }
            }
            for index in 0..groups {
                let (mut scale, mut bias) = ([simd.splat(0.0); N], [simd.splat(0.0); N]);
                for column in 0..N {
                    scale[column] = simd.splat(scales[column][index]);
                    bias[column] = simd.splat(biases[column][index]);
                }
                let group = index * group..(index + 1) * group;
                if PAIRED {
                    let mut own = [[simd.splat(0.0); N]; M];
                    for at in group.step_by(2 * S::LANES) {
                        let mut pairs = [simd.splat(0.0); N];
                        for (pairs, codes) in pairs.iter_mut().zip(codes) {
                            *pairs = C::load_pairs(simd, &codes[at * C::BITS / 8..]);
                        }
                        for (row, own) in own.iter_mut().enumerate() {
                            let x = simd.load(&self.x[(row * k + from + at) / 2..]);
                            for (sum, &pairs) in own.iter_mut().zip(&pairs) {
                                *sum = simd.dot_pairs(*sum, x, pairs);
                            }
                        }
                    }
                    for (sums, own) in sums.iter_mut().zip(&own) {
                        for ((sum, &own), &scale) in sums.iter_mut().zip(own).zip(&scale) {
                            *sum = simd.fma(own, scale, *sum);
                        }
                    }
                } else {
                    for at in group.step_by(S::LANES) {
                        let mut weights = [simd.splat(0.0); N];
                        for column in 0..N {
                            let code = C::load(simd, &codes[column][at * C::BITS / 8..]);
                            weights[column] = simd.fma(code, scale[column], bias[column]);
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = simd.load(&self.x[row * k + from + at..]);
                            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                                *sum = simd.fma(x, weight, *sum);
                            }
                        }
                    }
                }
            }
        }
        sums
    }
}
