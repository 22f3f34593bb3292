//! From sums to outputs.

use super::End;
use crate::isa::{Simd, Work};
use crate::pool::Shared;
use crate::values::{Element, load, store};

/// out = activation(sums + bias) for a panel: `sums` (rows, panel width) go to rows `row ..`, columns `column ..` of `out`
/// (rows, columns).
pub(super) struct Finish<'a, O> {
    pub(super) sums: &'a [f32],
    pub(super) end: End<'a>,
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) columns: usize,
    /// No other task has this part of it.
    pub(super) out: &'a Shared<'a, O>,
}

impl<O: Element> Work for Finish<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = S::LANES * S::VECTORS;
        let count = width.min(self.columns - self.column);
        for (row, sums) in self.sums.chunks_exact(width).enumerate() {
            let start = (self.row + row) * self.columns + self.column;
            // SAFETY: the task has this panel of these rows alone.
            let out = unsafe { self.out.part(start..start + count) };
            for (vector, out) in out.chunks_mut(S::LANES).enumerate() {
                let at = vector * S::LANES;
                let mut sum = simd.load(&sums[at..]);
                if let Some(bias) = self.end.bias {
                    let bias = &bias[self.column + at..self.column + at + out.len()];
                    sum = simd.add(sum, load(simd, bias));
                }
                store(simd, self.end.activation.apply(simd, sum), out);
            }
        }
    }
}
