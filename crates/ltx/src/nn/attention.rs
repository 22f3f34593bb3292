//! Attention: the CPU's kernel or MLX's own, and never the scores of all queries at once.

use std::ops::Range;

use mlx::device::Device;
use mlx::{Array, Dtype, Result};

use super::{count, cpu};

/// What a query sees of the keys.
#[derive(Clone, Copy)]
pub(crate) enum Sees<'a> {
    /// All.
    All,
    /// What a mask says that broadcasts to (batch, heads, queries, keys).
    Masked(&'a Array),
    /// Queries are the last of the keys: itself and those before it, so many at most.
    Past(usize),
}

/// softmax(q · kᵀ · scale + mask) · v. All are (batch, tokens, heads, head_dim), as linear layers write and read them;
/// groups of query heads may share a key head. `mask` broadcasts to (batch, heads, q tokens, k tokens): numbers are added,
/// bools choose.
pub fn attention(q: &Array, k: &Array, v: &Array, scale: f32, mask: Option<&Array>) -> Result<Array> {
    attend([q, k, v], scale, mask.map_or(Sees::All, Sees::Masked))
}

/// The same where queries are the last of the keys, and each sees itself and those before it: `window` in all at most, or
/// all of them. Where none are masked no mask is needed: memory grows with the tokens, not with their square.
pub fn past_attention(q: &Array, k: &Array, v: &Array, scale: f32, window: Option<usize>) -> Result<Array> {
    attend([q, k, v], scale, Sees::Past(window.unwrap_or(usize::MAX)))
}

fn attend([q, k, v]: [&Array; 3], scale: f32, sees: Sees) -> Result<Array> {
    if let (&[_, _, heads, head_dim], &[_, keys, ..], &[.., value_dim]) = (q.shape(), k.shape(), v.shape()) {
        let scores = q.size() / (heads * head_dim).max(1) as usize * (heads * keys) as usize;
        count(scores, (head_dim + value_dim) as usize);
    }
    if let Some(attended) = cpu::attention([q, k, v], scale, sees) {
        return attended;
    }
    let (queries, keys) = (q.dim(1), k.dim(1));
    let at_once = at_once(q, v, keys, sees);
    if at_once >= queries {
        return part([q, k, v], scale, sees, 0..queries);
    }
    let mut parts = Vec::new();
    for first in (0..queries).step_by(at_once as usize) {
        let attended = part([q, k, v], scale, sees, first..queries.min(first + at_once))?;
        // One by one, or all scores would be there together.
        attended.eval()?;
        parts.push(attended);
    }
    mlx::concatenate(&parts.iter().collect::<Vec<_>>(), 1)
}

/// How many queries MLX is given at a time: all, where it has a kernel that keeps no scores.
fn at_once(q: &Array, v: &Array, keys: i32, sees: Sees) -> i32 {
    const SCORES: usize = 1 << 26;
    let kernel = [q, v].iter().all(|array| [64, 80, 128].contains(&array.dim(3)));
    let kernel = kernel && mlx::device::current() == Device::Gpu && q.dtype() != Dtype::F32;
    if kernel && !matches!(sees, Sees::Past(_)) {
        return q.dim(1);
    }
    let scores = q.dim(0) as usize * q.dim(2) as usize * keys as usize;
    i32::try_from(SCORES / scores.max(1)).unwrap_or(i32::MAX).max(16)
}

/// What some of the queries get.
fn part([q, k, v]: [&Array; 3], scale: f32, sees: Sees, queries: Range<i32>) -> Result<Array> {
    let before = k.dim(1) - q.dim(1);
    let (mut seen, mut mask) = (0..k.dim(1), None);
    match sees {
        Sees::All => {}
        Sees::Masked(given) => {
            // Rows for each query, or one for all.
            let rows = given.rank() >= 2 && given.dim(-2) == q.dim(1) && q.dim(1) > 1;
            mask = Some(if rows { given.slice(-2, queries.clone())? } else { given.clone() });
        }
        Sees::Past(window) => {
            let window = i32::try_from(window).unwrap_or(i32::MAX);
            seen = (before + queries.start + 1).saturating_sub(window).max(0)..before + queries.end;
            let sees = |query: i32, key: i32| key <= query && query - key < window;
            let row = |query| seen.clone().map(move |key| u8::from(sees(query, key)));
            let rows: Vec<u8> = (before + queries.start..before + queries.end).flat_map(row).collect();
            let shape = [1, 1, queries.len() as i32, seen.len() as i32];
            mask = Some(Array::from_slice(&rows, &shape)?.astype(Dtype::Bool)?);
        }
    }
    let heads_first = |x: &Array, range: Range<i32>| x.slice(1, range)?.transpose(&[0, 2, 1, 3]); // (batch, heads, tokens, head_dim)
    mlx::fast::attention(
        &heads_first(q, queries)?,
        &heads_first(k, seen.clone())?,
        &heads_first(v, seen)?,
        scale,
        mask.as_ref(),
    )?
    .transpose(&[0, 2, 1, 3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    /// A window counts the token itself; whatever computes, in however many parts.
    #[test]
    fn the_past_is_what_a_mask_of_it_says() {
        let (keys, queries, heads, head_dim) = (23, 17, 4, 8);
        let mut noise = Noise::new(2);
        let mut draw = |tokens, heads| noise.normal(&[2, tokens, heads, head_dim]).unwrap();
        let (q, k, v) = (draw(queries, heads), draw(keys, 2), draw(keys, 2));
        for window in [Some(1), Some(5), Some(64), None] {
            let sees = |place: i32, key: i32| {
                key <= place && place - key < window.map_or(keys, |window| window as i32)
            };
            let rows = (keys - queries..keys).flat_map(|place| (0..keys).map(move |key| (place, key)));
            let mask: Vec<f32> =
                rows.map(|(place, key)| if sees(place, key) { 0.0 } else { f32::NEG_INFINITY }).collect();
            let mask = Array::from_slice(&mask, &[1, 1, queries, keys]).unwrap();
            let expected = attention(&q, &k, &v, 0.4, Some(&mask)).unwrap();
            let parts = [0..5, 5..16, 16..17].map(|queries| {
                part([&q, &k, &v], 0.4, Sees::Past(window.unwrap_or(usize::MAX)), queries).unwrap()
            });
            let masked =
                [0..9, 9..17].map(|queries| part([&q, &k, &v], 0.4, Sees::Masked(&mask), queries).unwrap());
            for ours in [
                past_attention(&q, &k, &v, 0.4, window).unwrap(),
                mlx::concatenate(&parts.iter().collect::<Vec<_>>(), 1).unwrap(),
                mlx::concatenate(&masked.iter().collect::<Vec<_>>(), 1).unwrap(),
            ] {
                let worst =
                    ours.subtract(&expected).unwrap().abs().unwrap().max(&[0, 1, 2, 3], false).unwrap();
                assert!(worst.item().unwrap() < 1e-5, "{window:?}");
            }
        }
    }
}
