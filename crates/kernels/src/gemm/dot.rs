//! The product for very few rows, which takes as long as reading the weight.

use super::{DOT_ROWS, End};
use crate::isa::{Active, Simd, Work};
use crate::pool::{self, Shared};
use crate::values::{Element, Matrix, Values, convert, load, store};

/// Columns computed together, so that sums do not wait for each other.
const COLUMNS: usize = 4;

/// Columns of a task.
const TASK: usize = 32;

/// out (m, n) = activation(x (m, k) · weightᵀ (n, k) + bias (n)) for m ≤ [`DOT_ROWS`].
pub(super) fn run<T: Element, O: Element>(x: &[T], weight: Matrix<'_>, end: End<'_>, out: &mut [O]) {
    let mut wide = vec![0.0f32; x.len()];
    convert(x, &mut wide);
    let m = out.len() / weight.rows;
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(weight.rows.div_ceil(TASK), |task| {
        let first = task * TASK;
        let (x, out, last) = (&wide[..], &out, weight.rows.min(first + TASK));
        match weight.values {
            Values::F32(values) => active.run(Dots { x, m, weight, values, first, last, end, out }),
            Values::Bf16(values) => active.run(Dots { x, m, weight, values, first, last, end, out }),
        }
    });
}

/// Columns `first .. last` of the output.
struct Dots<'a, T, O> {
    x: &'a [f32],
    m: usize,
    weight: Matrix<'a>,
    values: &'a [T],
    first: usize,
    last: usize,
    end: End<'a>,
    out: &'a Shared<'a, O>,
}

impl<T: Element, O: Element> Work for Dots<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.m {
            1 => self.columns::<S, 1>(simd),
            2 => self.columns::<S, 2>(simd),
            3 => self.columns::<S, 3>(simd),
            _ => self.columns::<S, DOT_ROWS>(simd),
        }
    }
}

impl<T: Element, O: Element> Dots<'_, T, O> {
    #[inline(always)]
    fn columns<S: Simd, const M: usize>(self, simd: S) {
        let k = self.weight.columns;
        for first in (self.first..self.last).step_by(COLUMNS) {
            let count = COLUMNS.min(self.last - first);
            // Where fewer are left, the last is computed again.
            let mut columns = [&self.values[..0]; COLUMNS];
            for (index, column) in columns.iter_mut().enumerate() {
                *column = &self.values[(first + index.min(count - 1)) * k..][..k];
            }
            let mut sums = [[simd.splat(0.0); COLUMNS]; M];
            for at in (0..k).step_by(S::LANES) {
                let range = at..k.min(at + S::LANES);
                let mut weights = [simd.splat(0.0); COLUMNS];
                for (weight, column) in weights.iter_mut().zip(columns) {
                    *weight = load(simd, &column[range.clone()]);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = load(simd, &self.x[row * k + range.start..row * k + range.end]);
                    for (sum, &weight) in sums.iter_mut().zip(&weights) {
                        *sum = simd.fma(x, weight, *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (index, &sum) in sums.iter().enumerate().take(count) {
                    let column = first + index;
                    let (sum, n) = (simd.splat(simd.sum(sum)), self.weight.rows);
                    let value = self.end.apply(simd, sum, row, column..column + 1, n);
                    let at = row * n + column;
                    // SAFETY: the task has these columns alone.
                    store(simd, value, unsafe { self.out.part(at..at + 1) });
                }
            }
        }
    }
}
