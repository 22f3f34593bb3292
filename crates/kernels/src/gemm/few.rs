//! The product of very few rows with a packed weight, which takes as long as reading the weight: values are unpacked in
//! registers.

use super::End;
use crate::isa::{Active, Simd, Work};
use crate::packing::{Code, Decoded, Packed};
use crate::pool::{self, Shared};
use crate::values::{Element, convert, store};

/// More rows are worth unpacking a weight for.
pub(super) const ROWS: usize = 8;

/// Columns of a task.
const TASK: usize = 32;

/// Values of a row whose scales are widened at a time.
const CHUNK: usize = 2048;

/// out (m, n) = x (m, k) · weightᵀ (n, k) and what `end` does with it, for m ≤ [`ROWS`].
pub(super) fn run<T: Element, O: Element>(x: &[T], weight: Packed<'_>, end: End<'_>, out: &mut [O]) {
    let m = out.len() / weight.rows;
    let rows = m.next_power_of_two();
    let mut wide = vec![0.0f32; rows * weight.columns];
    convert(x, &mut wide[..x.len()]);
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(weight.rows.div_ceil(TASK), |task| {
        let first = task * TASK;
        let last = weight.rows.min(first + TASK);
        active.run(Dots { x: &wide, m, rows, weight, first, last, end, out: &out });
    });
}

/// Columns `first .. last` of the output.
struct Dots<'a, O> {
    x: &'a [f32], // (rows, k)
    m: usize,
    /// 1, 2, 4 or 8: those beyond `m` are zeros.
    rows: usize,
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
        match self.dots.rows {
            1 => self.dots.columns::<S, C, 1, 4>(self.simd),
            2 => self.dots.columns::<S, C, 2, 4>(self.simd),
            4 => self.dots.columns::<S, C, 4, 2>(self.simd),
            _ => self.dots.columns::<S, C, ROWS, 2>(self.simd),
        }
    }
}

impl<O: Element> Dots<'_, O> {
    /// `N` columns together, so that sums do not wait for each other and `x` is read less often.
    #[inline(always)]
    fn columns<S: Simd, C: Code, const M: usize, const N: usize>(self, simd: S) {
        let (k, n, group) = (self.weight.columns, self.weight.rows, self.weight.group());
        // Groups have 16 values at least.
        let (mut scales, mut biases) = ([[0.0; CHUNK / 16]; N], [[0.0; CHUNK / 16]; N]);
        for first in (self.first..self.last).step_by(N) {
            let count = N.min(self.last - first);
            let mut sums = [[simd.splat(0.0); N]; M];
            for from in (0..k).step_by(CHUNK) {
                let len = CHUNK.min(k - from);
                let groups = len / group;
                let mut codes = [&[0u8; 0][..]; N];
                for (column, codes) in codes.iter_mut().enumerate() {
                    // Where fewer are left, the last is computed again.
                    let row = first + column.min(count - 1);
                    let (scales, biases) = (&mut scales[column][..groups], &mut biases[column][..groups]);
                    self.weight.factors(row, from / group, scales, biases);
                    *codes = self.weight.codes::<C>(row, from, len);
                }
                for index in 0..groups {
                    let (mut scale, mut bias) = ([simd.splat(0.0); N], [simd.splat(0.0); N]);
                    for column in 0..N {
                        scale[column] = simd.splat(scales[column][index]);
                        bias[column] = simd.splat(biases[column][index]);
                    }
                    for at in (index * group..(index + 1) * group).step_by(S::LANES) {
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
}
