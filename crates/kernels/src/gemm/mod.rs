//! The matrix product x (m, k) · weightᵀ (n, k), from which linear layers, convolutions and attention are made.
//!
//! Both operands are cut along k into blocks of [`WORDS`] 32-bit words; a word is an f32 or, where the processor has
//! products of bf16 pairs and both operands are bf16, two bf16. Rows are copied block by block; columns are transposed
//! into panels as wide as a tile of registers. [`tile`] multiplies one by the other into f32, [`finish`] adds the bias,
//! applies the activation and writes. Every element is summed along k in the same order however the work is cut.

mod dot;
mod few;
mod finish;
mod pack;
#[cfg(target_arch = "x86_64")]
mod swapped;
mod tile;
mod weight;

use half::bf16;

use crate::isa::{Active, Simd, Work};
use crate::packing::Packed;
use crate::pool::{self, Shared, with_buffer};
use crate::values::{Element, Matrix, Values, ValuesMut, convert};
use crate::{Error, values};

pub(crate) use finish::End;
use finish::Finish;
pub use finish::{Epilogue, PerRow, Residual};
pub(crate) use pack::{PackColumns, Rows};
pub(crate) use tile::Tiles;
use weight::Unpack;
pub(crate) use weight::Weight;

/// 32-bit words of a row that are multiplied at a time: a panel of them stays in the first-level cache.
pub(crate) const WORDS: usize = 256;

/// Rows that [`Product::by_columns`] multiplies at a time: a block of them stays in the second-level cache.
pub(crate) const ROWS_AT_ONCE: usize = 320;

/// Fewer rows are bound by reading the weight; transposing it would only cost.
const DOT_ROWS: usize = 4;

/// out (m, n) = residual (m, n) + gate · activation(x (m, k) · weightᵀ (n, k) + bias (n)), with what `epilogue` has of it.
pub fn linear<'a>(
    x: Matrix<'_>,
    weight: Matrix<'_>,
    epilogue: &Epilogue<'_>,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    layer(x, Weight::Dense(weight), epilogue, out.into())
}

/// [`linear`] with a packed weight: its values are scale · code + bias of their group. Where `x` is bf16 and the processor
/// has products of bf16, many rows are multiplied by values rounded to bf16.
pub fn linear_packed<'a>(
    x: Matrix<'_>,
    weight: Packed<'_>,
    epilogue: &Epilogue<'_>,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    layer(x, Weight::Packed(weight), epilogue, out.into())
}

fn layer(
    x: Matrix<'_>,
    weight: Weight<'_>,
    epilogue: &Epilogue<'_>,
    out: ValuesMut<'_>,
) -> Result<(), Error> {
    if x.columns != weight.columns() {
        return Err(Error::Shape {
            what: "x's columns",
            expected: weight.columns().to_string(),
            found: x.columns.to_string(),
        });
    }
    values::fits("output", out.len(), &[x.rows, weight.rows()])?;
    let bias = epilogue.bias.map(Values::to_f32);
    let end = End::new(epilogue, bias.as_deref(), [x.rows, weight.rows()])?;
    if out.is_empty() {
        return Ok(());
    }
    match (x.values, out) {
        (Values::F32(values), ValuesMut::F32(out)) => run(values, x, weight, end, out),
        (Values::F32(values), ValuesMut::Bf16(out)) => run(values, x, weight, end, out),
        (Values::Bf16(values), ValuesMut::F32(out)) => run(values, x, weight, end, out),
        (Values::Bf16(values), ValuesMut::Bf16(out)) => run(values, x, weight, end, out),
    }
    Ok(())
}

fn run<T: Element, O: Element>(values: &[T], x: Matrix<'_>, weight: Weight<'_>, end: End<'_>, out: &mut [O]) {
    let narrow = match weight {
        Weight::Packed(packed) if few::takes::<T>(x.rows, packed) => {
            return few::run(values, packed, end, out);
        }
        Weight::Dense(matrix) if x.rows <= DOT_ROWS => return dot::run(values, matrix, end, out),
        Weight::Packed(_) => true,
        Weight::Dense(matrix) => matches!(matrix.values, Values::Bf16(_)),
    };
    let product = Product::new(weight, T::NARROW && narrow, end);
    let rows = Plain { values, stride: x.stride };
    // Few columns are too few pieces of work: there the rows are dealt out.
    if weight.rows() <= 512 && x.rows > 2 * weight.rows() {
        product.by_rows(&rows, x.rows, out);
    } else {
        product.by_columns(&rows, x.rows, out);
    }
}

/// The rows of a matrix.
pub(crate) struct Plain<'a, T> {
    pub(crate) values: &'a [T],
    /// Values from one row to the next.
    pub(crate) stride: usize,
}

impl<T: Element> Rows for Plain<'_, T> {
    fn copy<E: Element>(&self, row: usize, from: usize, to: &mut [E]) {
        let from = row * self.stride + from;
        convert(&self.values[from..from + to.len()], to);
    }
}

/// How rows are cut for the instruction set in use.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    pub(crate) active: Active,
    /// A word is two bf16.
    pub(crate) pairs: bool,
    /// Columns of a panel.
    pub(crate) width: usize,
}

/// How many columns a panel has.
struct Width;

impl Work for Width {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES * S::VECTORS
    }
}

impl Words {
    /// `narrow` says that both operands are bf16.
    pub(crate) fn new(narrow: bool) -> Self {
        let active = Active::get();
        Self { active, pairs: narrow && active.pairs(), width: active.run(Width) }
    }

    /// Products are those of AMX, whose tiles have 16 rows.
    pub(crate) fn tiles(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.pairs && self.active.amx().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Words in a row of `k` values.
    pub(crate) fn of(&self, k: usize) -> usize {
        if self.pairs { k.div_ceil(2) } else { k }
    }

    /// Blocks of such a row: at least one, so that sums of nothing are zero.
    pub(crate) fn blocks(&self, k: usize) -> usize {
        self.of(k).div_ceil(WORDS).max(1)
    }

    /// Words of a block.
    pub(crate) fn block(&self, k: usize, block: usize) -> usize {
        WORDS.min(self.of(k) - block * WORDS)
    }

    /// Rows `first ..` of a block, as [`Tiles`] reads them: (rows, WORDS).
    pub(crate) fn copy_rows(&self, rows: &impl Rows, k: usize, first: usize, block: usize, to: &mut [f32]) {
        for (index, to) in to.chunks_exact_mut(WORDS).enumerate() {
            if self.pairs {
                let from = block * WORDS * 2;
                let count = (2 * WORDS).min(k - from);
                let to: &mut [bf16] = bytemuck::cast_slice_mut(to);
                rows.copy(first + index, from, &mut to[..count]);
                to[count..count.next_multiple_of(2 * 16)].fill(bf16::ZERO);
            } else {
                let from = block * WORDS;
                rows.copy(first + index, from, &mut to[..WORDS.min(k - from)]);
            }
        }
    }
}

/// A product with a weight.
pub(crate) struct Product<'a> {
    weight: Weight<'a>,
    end: End<'a>,
    words: Words,
}

impl<'a> Product<'a> {
    /// `narrow` says that rows and weight are bf16, or may become that.
    pub(crate) fn new(weight: Weight<'a>, narrow: bool, end: End<'a>) -> Self {
        Self { weight, end, words: Words::new(narrow) }
    }

    fn panels(&self) -> usize {
        self.weight.rows().div_ceil(self.words.width)
    }

    fn blocks(&self) -> usize {
        self.words.blocks(self.weight.columns())
    }

    fn copy_rows(&self, rows: &impl Rows, first: usize, block: usize, to: &mut [f32]) {
        self.words.copy_rows(rows, self.weight.columns(), first, block, to);
    }

    /// A panel: (WORDS, width).
    fn pack_columns(&self, panel: usize, block: usize, to: &mut [f32]) {
        let Words { active, pairs, width } = self.words;
        let (first, words) = (panel * width, self.words.block(self.weight.columns(), block));
        if let Some(weight) = self.weight.plain(pairs) {
            return active.run(PackColumns { weight, pairs, first, word: block * WORDS, words, to });
        }
        let rows = width.min(self.weight.rows() - first);
        with_buffer(rows * WORDS, |buffer| {
            self.unpack(first, block, buffer);
            let values = if pairs { Values::Bf16(bytemuck::cast_slice(buffer)) } else { Values::F32(buffer) };
            let (columns, stride) = if pairs { (2 * words, 2 * WORDS) } else { (words, WORDS) };
            let weight = Matrix { values, rows, columns, stride };
            active.run(PackColumns { weight, pairs, first: 0, word: 0, words, to });
        });
    }

    /// A block of the weight's rows `first ..`: (rows, WORDS).
    fn unpack(&self, first: usize, block: usize, to: &mut [f32]) {
        let (weight, pairs) = (self.weight, self.words.pairs);
        let words = self.words.block(weight.columns(), block);
        self.words.active.run(Unpack { weight, pairs, first, word: block * WORDS, words, to });
    }

    fn multiply(&self, block: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
        let words = self.words.block(self.weight.columns(), block);
        Tiles { a, b, c, words, accumulate: block > 0 }.multiply(self.words);
    }

    fn finish<O: Element>(&self, panel: usize, row: usize, sums: &[f32], out: &Shared<'_, O>) {
        let (column, columns) = (panel * self.words.width, self.weight.rows());
        self.words.active.run(Finish { sums, end: self.end, row, column, columns, out });
    }

    /// Each task has a panel of the weight, which it transposes as it goes, and all rows.
    pub(crate) fn by_columns<O: Element>(&self, rows: &impl Rows, m: usize, out: &mut [O]) {
        const ROWS: usize = 16; // copied by a task
        #[cfg(target_arch = "x86_64")]
        if self.words.pairs
            && let Some(amx) = self.words.active.amx()
        {
            return self.swapped(amx, rows, m, out);
        }
        let width = self.words.width;
        let out = Shared::new(out);
        let at_once = m.div_ceil(m.div_ceil(ROWS_AT_ONCE));
        for first_row in (0..m).step_by(at_once) {
            let m = at_once.min(m - first_row);
            with_buffer(self.blocks() * m * WORDS, |a| {
                let parts = m.div_ceil(ROWS);
                let shared = Shared::new(a);
                pool::for_each(self.blocks() * parts, |task| {
                    let (block, first) = (task / parts, task % parts * ROWS);
                    let range = block * m + first..block * m + m.min(first + ROWS);
                    // SAFETY: each task has rows of a block of its own.
                    let part = unsafe { shared.part(range.start * WORDS..range.end * WORDS) };
                    self.copy_rows(rows, first_row + first, block, part);
                });
                let a = &*a;
                pool::for_each(self.panels(), |panel| {
                    with_buffer(width * (m + WORDS), |buffer| {
                        let (sums, b) = buffer.split_at_mut(width * m);
                        for (block, a) in a.chunks_exact(m * WORDS).enumerate() {
                            self.pack_columns(panel, block, b);
                            self.multiply(block, a, b, sums);
                        }
                        self.finish(panel, first_row, sums, &out);
                    });
                });
            });
        }
    }

    /// The weight is transposed whole; each task has some rows, which it copies as it goes, and all columns.
    pub(crate) fn by_rows<O: Element>(&self, rows: &impl Rows, m: usize, out: &mut [O]) {
        // Of a task. With tiles more pays, since they use the weight faster than it comes from the third-level cache.
        let at_once = if self.words.tiles() { 128 } else { 96 };
        let out = Shared::new(out);
        let (width, panels) = (self.words.width, self.panels());
        let panel_words = width * WORDS;
        with_buffer(self.blocks() * panels * panel_words, |b| {
            let shared = Shared::new(b);
            pool::for_each(self.blocks() * panels, |task| {
                // SAFETY: each task has a panel of a block of its own.
                let part = unsafe { shared.part(task * panel_words..(task + 1) * panel_words) };
                self.pack_columns(task % panels, task / panels, part);
            });
            let b = &*b;
            pool::for_each(m.div_ceil(at_once), |task| {
                let first = task * at_once;
                let m = at_once.min(m - first);
                with_buffer(m * (panels * width + WORDS), |buffer| {
                    let (sums, a) = buffer.split_at_mut(m * panels * width);
                    for (block, b) in b.chunks_exact(panels * panel_words).enumerate() {
                        self.copy_rows(rows, first, block, a);
                        self.multiply(block, a, b, sums);
                    }
                    for (panel, sums) in sums.chunks_exact(width * m).enumerate() {
                        self.finish(panel, first, sums, &out);
                    }
                });
            });
        });
    }
}
