//! The innermost loop: a few rows times a panel of columns, with all sums in registers.

use super::{WORDS, Words};
use crate::isa::{Simd, Work};

/// c (panels, rows, width) = or += a (rows, WORDS) · b (panels, WORDS, width), with `words` words in each row of `a` and
/// column of `b`; where words are pairs, both have zeros up to the next multiple of 16.
pub(crate) struct Tiles<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) c: &'a mut [f32],
    pub(crate) words: usize,
    /// Add to what `c` holds.
    pub(crate) accumulate: bool,
}

impl Tiles<'_> {
    pub(crate) fn multiply(self, words: Words) {
        let Words { active, pairs, width } = words;
        #[cfg(target_arch = "x86_64")]
        if pairs && let Some(amx) = active.amx() {
            use crate::isa::amx;
            return amx.multiply(amx::TileProduct {
                a: bytemuck::cast_slice(self.a),
                stride: WORDS * size_of::<f32>(),
                rows: self.a.len() / WORDS,
                b: self.b,
                panel: WORDS * width,
                c: self.c,
                steps: self.words.div_ceil(amx::TILE),
                accumulate: self.accumulate,
                next: self.a.as_ptr().cast(),
            });
        }
        let Tiles { a, b, c, words, accumulate } = self;
        let panels = b.chunks_exact(WORDS * width).zip(c.chunks_exact_mut(a.len() / WORDS * width));
        for (b, c) in panels {
            active.run(Panel { a, b, c, words, accumulate, pairs });
        }
    }
}

/// [`Tiles`] for one panel.
struct Panel<'a> {
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
    words: usize,
    accumulate: bool,
    /// Words are pairs of bf16.
    pairs: bool,
}

impl Work for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.pairs, S::VECTORS) {
            (false, 2) => self.tiles::<S, false, 2>(simd),
            (false, _) => self.tiles::<S, false, 4>(simd),
            (true, 2) => self.tiles::<S, true, 2>(simd),
            (true, _) => self.tiles::<S, true, 4>(simd),
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const PAIRS: bool, const VECTORS: usize>(self, simd: S) {
        let width = VECTORS * S::LANES;
        let mut left = self.a.len() / WORDS;
        let (mut a, mut c) = (self.a, self.c);
        // As few tiles as possible, of heights that differ by one at most: a tile of one row would waste most of a
        // tile's time.
        let mut tiles = left.div_ceil(S::ROWS);
        while tiles > 0 {
            let height = left.div_ceil(tiles);
            let (rows, sums) = (&a[..height * WORDS], &mut c[..height * width]);
            macro_rules! by_height {
                ($($height:literal)*) => {
                    match height {
                        $($height if $height <= S::ROWS => {
                            tile::<S, PAIRS, $height, VECTORS>(simd, rows, self.b, self.words, sums, self.accumulate)
                        })*
                        _ => unreachable!("a tile of {height} rows"),
                    }
                };
            }
            by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
            (left, tiles) = (left - height, tiles - 1);
            (a, c) = (&a[height * WORDS..], &mut c[height * width..]);
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const PAIRS: bool, const HEIGHT: usize, const VECTORS: usize>(
    simd: S,
    a: &[f32],
    b: &[f32],
    words: usize,
    c: &mut [f32],
    accumulate: bool,
) {
    let width = VECTORS * S::LANES;
    assert!(words <= WORDS && a.len() == HEIGHT * WORDS);
    let mut sums = [[simd.splat(0.0); VECTORS]; HEIGHT];
    for (word, columns) in b[..words * width].chunks_exact(width).enumerate() {
        let mut vectors = [simd.splat(0.0); VECTORS];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(&columns[v * S::LANES..]);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row < HEIGHT and word < WORDS, so the place is below HEIGHT · WORDS, the length of `a`.
            let value = simd.splat(unsafe { *a.get_unchecked(row * WORDS + word) });
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = match PAIRS {
                    true => simd.dot_pairs(*sum, value, vector),
                    false => simd.fma(value, vector, *sum),
                };
            }
        }
    }
    for (sums, c) in sums.iter().zip(c.chunks_exact_mut(width)) {
        for (v, &sum) in sums.iter().enumerate() {
            let c = &mut c[v * S::LANES..];
            let total = if accumulate { simd.add(simd.load(c), sum) } else { sum };
            simd.store(total, c);
        }
    }
}
