//! The product as AMX likes it: the weight's rows are the rows of tiles, read where they lie, and the rows of x, which are
//! fewer, are transposed into panels. What comes out is (n, m) and is transposed when it is finished.
//!
//! Transposing the weight instead, as vectors want it, would take half as long as multiplying it by 256 rows: tiles multiply
//! 512 pairs of numbers in a cycle, and a transposition moves about 5. The figures below are of a processor with 2 MiB of
//! second-level cache for each core.

use half::bf16;

use super::finish::FinishColumns;
use super::{Product, Rows, WORDS, Weight};
use crate::isa::amx::{Amx, TILE, TileProduct, WIDTH};
use crate::isa::{Simd, Work};
use crate::pool::{self, Shared, with_buffer};
use crate::values::{Element, Matrix, Values};

/// Rows of x at a time, at most: a block of their panels (512 KiB) and the sums of a task (256 KiB) stay in the
/// second-level cache.
const COLUMNS: usize = 512;

/// Rows of the weight in a task, at most. Each task reads the whole of x, mostly from the third-level cache: 8 bytes a cycle
/// with 128 rows, more with fewer.
const ROWS: usize = 128;

impl Product<'_> {
    /// Each task has some rows of the weight and up to [`COLUMNS`] rows of x.
    pub(super) fn swapped<O: Element>(&self, amx: Amx, rows: &impl Rows, m: usize, out: &mut [O]) {
        let out = Shared::new(out);
        let n = self.weight.rows();
        let at_once = m.div_ceil(m.div_ceil(COLUMNS)).next_multiple_of(WIDTH);
        // Enough tasks to keep many threads busy to the end.
        let strip = [ROWS, ROWS / 2].into_iter().find(|strip| n / strip >= 4 * pool::threads());
        let strip = strip.unwrap_or(WIDTH);
        for first_row in (0..m).step_by(at_once) {
            let m = at_once.min(m - first_row);
            let panels = m.div_ceil(WIDTH);
            with_buffer(self.blocks() * panels * WIDTH * WORDS, |b| {
                let shared = Shared::new(b);
                pool::for_each(self.blocks() * panels, |task| {
                    let (block, first) = (task / panels, task % panels * WIDTH);
                    // SAFETY: each task has a panel of a block of its own.
                    let to = unsafe { shared.part(task * WIDTH * WORDS..(task + 1) * WIDTH * WORDS) };
                    with_buffer(WIDTH * WORDS, |copy| {
                        let count = WIDTH.min(m - first);
                        self.copy_rows(rows, first_row + first, block, &mut copy[..count * WORDS]);
                        let words = self.words.block(self.weight.columns(), block);
                        self.words.active.run(PackRows { rows: copy, words, to });
                    });
                });
                let b = &*b;
                pool::for_each(n.div_ceil(strip), |task| {
                    let first = task * strip;
                    let count = strip.min(n - first);
                    // What finishes takes whole squares.
                    with_buffer((panels * count + TILE) * WIDTH, |sums| {
                        let own = &mut sums[..panels * count * WIDTH];
                        for (block, b) in b.chunks_exact(panels * WIDTH * WORDS).enumerate() {
                            self.multiply_strip(amx, first, count, block, b, own);
                        }
                        self.words.active.run(FinishColumns {
                            sums,
                            end: self.end,
                            rows: first_row..first_row + m,
                            columns: first..first + count,
                            n,
                            out: &out,
                        });
                    });
                });
            });
        }
    }

    /// Adds the product of a block of the weight's rows `first ..` with panels `b` (panels, WORDS, WIDTH) to `c` (panels,
    /// count, WIDTH); the first block overwrites.
    fn multiply_strip(&self, amx: Amx, first: usize, count: usize, block: usize, b: &[f32], c: &mut [f32]) {
        let k = self.weight.columns();
        let steps = self.words.block(k, block).div_ceil(TILE);
        let (from, end) = (block * 2 * WORDS, block * 2 * WORDS + steps * 2 * TILE);
        let mut product = |a: &[u8], stride, next| {
            let (panel, accumulate) = (WIDTH * WORDS, block > 0);
            amx.multiply(TileProduct { a, stride, rows: count, b, panel, c, steps, accumulate, next });
        };
        let dense = match self.weight {
            Weight::Dense(Matrix { values: Values::Bf16(values), stride, .. }) => Some((values, stride)),
            _ => None,
        };
        let Some((values, row)) = dense else {
            return with_buffer(count * WORDS, |a| {
                self.unpack(first, block, a);
                product(bytemuck::cast_slice(a), WORDS * size_of::<f32>(), a.as_ptr().cast());
            });
        };
        if end > k {
            // The last tile of each row is not whole.
            return with_buffer(count * WORDS, |a| {
                self.copy_rows(&super::Plain { values, stride: row }, first, block, a);
                product(bytemuck::cast_slice(a), WORDS * size_of::<f32>(), a.as_ptr().cast());
            });
        }
        let a = &values[first * row + from..(first + count - 1) * row + end];
        // The next block of the same rows or, after the last, the first block of the next rows.
        let next = if end < k { 2 * WORDS } else { (count * row).wrapping_sub(from) };
        product(bytemuck::cast_slice(a), row * size_of::<bf16>(), a.as_ptr().wrapping_add(next).cast());
    }
}

/// `rows` (WIDTH, WORDS), of which `words` are of interest, as a panel: (WORDS, WIDTH).
struct PackRows<'a> {
    rows: &'a [f32],
    words: usize,
    to: &'a mut [f32],
}

impl Work for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let from: &[u8] = bytemuck::cast_slice(self.rows);
        for word in (0..self.words).step_by(S::LANES) {
            for row in (0..WIDTH).step_by(S::LANES) {
                let to = &mut self.to[word * WIDTH + row..];
                simd.transpose(&from[(row * WORDS + word) * 4..], WORDS * 4, to, WIDTH);
            }
        }
    }
}
