//! softmax(q · kᵀ · scale + mask) · v by blocks of queries and keys, with a running maximum and sum for each query:
//! memory grows with neither. Both products run on the tiles of [`gemm`](crate::gemm).

mod softmax;

use std::ops::Range;

use softmax::{Divide, PackValues, Softmax};

use crate::Error;
use crate::gemm::{PackColumns, Plain, Tiles, WORDS, Words};
use crate::pool::{self, Shared, with_buffer};
use crate::values::{Element, Matrix, Values, ValuesMut, fits};

/// Keys that are looked at together: a row of weights of either type fits in a row of a product.
const KEYS: usize = WORDS;

/// Queries of a task, at most: enough that packing keys and values is little beside using them.
const QUERIES: usize = 240;

/// Queries whose scores are kept together, at most.
const STRIP: usize = 48;

/// The same two for tiles, which are used 32 rows at a time.
const TILED: (usize, usize) = (256, 64);

/// How many of `count` are taken at a time: `most` or fewer, the same each time.
fn cut(count: usize, most: usize, words: Words) -> usize {
    let even = count.div_ceil(count.div_ceil(most));
    if words.tiles() { even.next_multiple_of(32) } else { even }
}

/// The sizes of an attention. Queries are (batch, queries, heads, head_dim), keys (batch, keys, key_heads, head_dim),
/// values (batch, keys, key_heads, value_dim) and the output (batch, queries, heads, value_dim): as linear layers write
/// and read them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct AttentionShape {
    pub batch: usize,
    pub heads: usize,
    /// Divides `heads`; groups of query heads share a key head.
    pub key_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub head_dim: usize,
    pub value_dim: usize,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// All, with something added to the scores.
    Added(Added<'a>),
    /// Queries are the last of the keys: each sees itself and those before it, `window` in all at most.
    #[allow(missing_docs)]
    Past { window: usize },
}

/// What is added to the scores: (batch, heads, queries, keys), where each of the first three may be 1 for all.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Added<'a> {
    pub values: Values<'a>,
    pub batch: usize,
    pub heads: usize,
    pub queries: usize,
}

impl Added<'_> {
    /// What a head of a sample sees: (queries or 1, keys).
    fn head(self, sample: usize, head: usize, keys: usize) -> Self {
        let at = (sample % self.batch * self.heads + head % self.heads) * self.queries * keys;
        let part = at..at + self.queries * keys;
        let values = match self.values {
            Values::F32(values) => Values::F32(&values[part]),
            Values::Bf16(values) => Values::Bf16(&values[part]),
        };
        Self { values, batch: 1, heads: 1, ..self }
    }
}

impl Mask<'_> {
    /// The keys, of `shape.keys`, that queries see, from the first one's first to the last one's last.
    fn seen(mask: Option<Self>, shape: &AttentionShape, queries: &Range<usize>) -> Range<usize> {
        match mask {
            Some(Self::Past { window }) => {
                let before = shape.keys - shape.queries;
                (before + queries.start + 1).saturating_sub(window)..before + queries.end
            }
            _ => 0..shape.keys,
        }
    }
}

/// out = softmax(q · kᵀ · scale + mask) · v. A query whose every key is masked by −∞ gets zeros.
pub fn attention<'a>(
    [q, k, v]: [Values<'_>; 3],
    shape: &AttentionShape,
    scale: f32,
    mask: Option<Mask<'_>>,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    let (out, s) = (out.into(), shape);
    fits("queries", q.len(), &[s.batch, s.queries, s.heads, s.head_dim])?;
    fits("keys", k.len(), &[s.batch, s.keys, s.key_heads, s.head_dim])?;
    fits("values", v.len(), &[s.batch, s.keys, s.key_heads, s.value_dim])?;
    fits("output", out.len(), &[s.batch, s.queries, s.heads, s.value_dim])?;
    if let Some(Mask::Past { window }) = mask
        && (window == 0 || s.keys < s.queries)
    {
        let expected = format!("a window, and {} keys or more", s.queries);
        return Err(mismatch("mask", expected, (window, s.keys)));
    }
    if let Some(Mask::Added(mask)) = mask {
        fits("mask", mask.values.len(), &[mask.batch, mask.heads, mask.queries, s.keys])?;
        let sizes = [(mask.batch, s.batch), (mask.heads, s.heads), (mask.queries, s.queries)];
        if sizes.iter().any(|&(own, all)| own != 1 && own != all) {
            return Err(mismatch(
                "mask",
                format!("1 or {:?}", sizes.map(|size| size.1)),
                sizes.map(|size| size.0),
            ));
        }
    }
    if out.is_empty() {
        return Ok(());
    }
    if s.key_heads == 0 || s.heads % s.key_heads != 0 {
        return Err(mismatch("key heads", format!("a divisor of {}", s.heads), s.key_heads));
    }
    match (q, k, v, out) {
        (Values::F32(q), Values::F32(k), Values::F32(v), ValuesMut::F32(out)) => {
            run(q, k, v, s, scale, mask, out)
        }
        (Values::Bf16(q), Values::Bf16(k), Values::Bf16(v), ValuesMut::Bf16(out)) => {
            run(q, k, v, s, scale, mask, out);
        }
        _ => return Err(mismatch("types", "f32 throughout or bf16 throughout".into(), "a mixture")),
    }
    Ok(())
}

fn mismatch(what: &'static str, expected: String, found: impl std::fmt::Debug) -> Error {
    Error::Shape { what, expected, found: format!("{found:?}") }
}

fn run<T: Element>(
    q: &[T],
    k: &[T],
    v: &[T],
    shape: &AttentionShape,
    scale: f32,
    mask: Option<Mask<'_>>,
    out: &mut [T],
) {
    let words = Words::new(T::NARROW);
    let at_once = cut(shape.queries, if words.tiles() { TILED.0 } else { QUERIES }, words);
    let tasks = shape.queries.div_ceil(at_once);
    let out = Shared::new(out);
    pool::for_each(shape.batch * shape.heads * tasks, |task| {
        let first = task % tasks * at_once;
        let queries = first..shape.queries.min(first + at_once);
        let (sample, head) = (task / tasks / shape.heads, task / tasks % shape.heads);
        let key_head = head / (shape.heads / shape.key_heads);
        let key_start = sample * shape.keys * shape.key_heads + key_head;
        let head = Head {
            words,
            shape,
            scale,
            start: sample * shape.queries * shape.heads + head,
            q,
            k: &k[(key_start * shape.head_dim).min(k.len())..],
            v: &v[(key_start * shape.value_dim).min(v.len())..],
            mask: mask.map(|mask| match mask {
                Mask::Added(added) => Mask::Added(added.head(sample, head, shape.keys)),
                past => past,
            }),
        };
        head.attend(queries, &out);
    });
}

/// One query head with its key head.
struct Head<'a, T> {
    words: Words,
    shape: &'a AttentionShape,
    scale: f32,
    /// The place of its first query among (batch, queries, heads).
    start: usize,
    q: &'a [T],             // (batch, queries, heads, head_dim)
    k: &'a [T],             // (keys, key_heads, head_dim) from its own key head on
    v: &'a [T],             // (keys, key_heads, value_dim) from its own key head on
    mask: Option<Mask<'a>>, // what is added: (queries or 1, keys)
}

/// What is known of some queries so far.
struct State<'a> {
    /// Weighted sums of values: (panels of value_dim, queries, width).
    sums: &'a mut [f32],
    /// The largest score of each query.
    maxima: &'a mut [f32],
    /// The sum of its weights, relative to that.
    totals: &'a mut [f32],
}

impl<T: Element> Head<'_, T> {
    /// Writes what `queries` get into `out` (batch, queries, heads, value_dim).
    fn attend(&self, queries: Range<usize>, out: &Shared<'_, T>) {
        let Words { width, .. } = self.words;
        let (head_dim, value_dim) = (self.shape.head_dim, self.shape.value_dim);
        let (blocks, key_panels, value_panels) =
            (self.words.blocks(head_dim), KEYS / width, value_dim.div_ceil(width));
        let count = queries.len();
        let strip = cut(count, if self.words.tiles() { TILED.1 } else { STRIP }, self.words);
        let sizes = [
            blocks * count * WORDS,
            blocks * key_panels * WORDS * width,
            value_panels * WORDS * width,
            strip * (KEYS + WORDS),
            value_panels * count * width,
            count,
            count,
        ];
        with_buffer(sizes.iter().sum(), |buffer| {
            let mut rest = buffer;
            let [q, k, v, scratch, sums, maxima, totals] = sizes.map(|size| {
                let (part, others) = std::mem::take(&mut rest).split_at_mut(size);
                rest = others;
                part
            });
            for (block, q) in q.chunks_exact_mut(count * WORDS).enumerate() {
                let rows =
                    Plain { values: &self.q[self.start * head_dim..], stride: self.shape.heads * head_dim };
                self.words.copy_rows(&rows, head_dim, queries.start, block, q);
            }
            sums.fill(0.0);
            maxima.fill(f32::NEG_INFINITY);
            totals.fill(0.0);
            let seen = Mask::seen(self.mask, self.shape, &queries);
            for first in seen.clone().step_by(KEYS) {
                let keys = first..seen.end.min(first + KEYS);
                let k = &mut k[..blocks * keys.len().div_ceil(width) * WORDS * width];
                self.pack(keys.clone(), k, v);
                for first in (0..count).step_by(strip) {
                    let rows = first..count.min(first + strip);
                    let state = State {
                        sums: &mut sums[value_panels * width * rows.start..value_panels * width * rows.end],
                        maxima: &mut maxima[rows.clone()],
                        totals: &mut totals[rows.clone()],
                    };
                    self.look(&keys, [q, k, v], &rows, queries.start, scratch, state);
                }
            }
            for first in (0..count).step_by(strip) {
                let rows = first..count.min(first + strip);
                self.words.active.run(Divide {
                    sums: &sums[value_panels * width * rows.start..value_panels * width * rows.end],
                    totals: &totals[rows.clone()],
                    value_dim,
                    stride: self.shape.heads * value_dim,
                    start: (self.start + (queries.start + rows.start) * self.shape.heads) * value_dim,
                    out,
                });
            }
        });
    }

    /// A block of keys and values as the tiles read them.
    fn pack(&self, keys: Range<usize>, k: &mut [f32], v: &mut [f32]) {
        let (head_dim, value_dim) = (self.shape.head_dim, self.shape.value_dim);
        let block_len = k.len() / self.words.blocks(head_dim);
        let stride = self.shape.key_heads * head_dim;
        let part = &self.k[keys.start * stride..(keys.end - 1) * stride + head_dim];
        let weight = Matrix { values: T::values(part), rows: keys.len(), columns: head_dim, stride };
        for (block, to) in k.chunks_exact_mut(block_len).enumerate() {
            let (word, words) = (block * WORDS, self.words.block(head_dim, block));
            self.words.active.run(PackColumns { weight, pairs: self.words.pairs, first: 0, word, words, to });
        }
        let stride = self.shape.key_heads * value_dim;
        let values = &self.v[keys.start * stride..(keys.end - 1) * stride + value_dim];
        self.words.active.run(PackValues { values, value_dim, stride, pairs: self.words.pairs, to: v });
    }

    /// Lets the queries `rows` of the task, which begins at query `start`, see a block of keys.
    fn look(
        &self,
        keys: &Range<usize>,
        [q, k, v]: [&[f32]; 3],
        rows: &Range<usize>,
        start: usize,
        scratch: &mut [f32],
        state: State<'_>,
    ) {
        let Words { active, pairs, width, .. } = self.words;
        let blocks = self.words.blocks(self.shape.head_dim);
        let (scores, weights) = scratch.split_at_mut(keys.len().div_ceil(width) * width * rows.len());
        let weights = &mut weights[..rows.len() * WORDS];
        let (q_block, k_block) = (q.len() / blocks, k.len() / blocks);
        for block in 0..blocks {
            let a = &q[block * q_block..][rows.start * WORDS..rows.end * WORDS];
            let words = self.words.block(self.shape.head_dim, block);
            let b = &k[block * k_block..][..k_block];
            Tiles { a, b, c: scores, words, accumulate: block > 0 }.multiply(self.words);
        }
        let State { sums, maxima, totals } = state;
        active.run(Softmax {
            scores,
            weights,
            sums,
            maxima,
            totals,
            pairs,
            scale: self.scale,
            mask: self.mask,
            shape: self.shape,
            first_query: start + rows.start,
            keys: keys.clone(),
        });
        let words = self.words.of(keys.len());
        Tiles { a: weights, b: v, c: sums, words, accumulate: true }.multiply(self.words);
    }
}
