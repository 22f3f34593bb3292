//! What happens to a row at a time, in one pass: norms with their weight, modulation and activation, and the rotation of
//! queries and keys behind a norm.

use crate::Error;
use crate::gemm::PerRow;
use crate::isa::{Active, Simd, Work};
use crate::math::Activation;
use crate::pool::{self, Shared};
use crate::values::{Element, Matrix, Values, ValuesMut, fits, load, store};

/// Values of a task, about.
const TASK: usize = 32 << 10;

/// How a row is brought to scale.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scaling {
    /// As it is.
    #[default]
    None,
    /// x / √(mean x² + eps).
    Rms {
        #[allow(missing_docs)]
        eps: f32,
    },
    /// (x − mean) / √(variance + eps).
    Layer {
        #[allow(missing_docs)]
        eps: f32,
    },
}

/// activation(scaled · weight · (1 + scale) + shift), with what there is of it.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Norm<'a> {
    pub scaling: Scaling,
    pub weight: Option<Values<'a>>,          // (columns)
    pub modulation: Option<[PerRow<'a>; 2]>, // scale, shift
    pub activation: Activation,
}

/// out (rows, columns) = `norm` of every row of `x`.
pub fn norm<'a>(x: Matrix<'_>, norm: &Norm<'_>, out: impl Into<ValuesMut<'a>>) -> Result<(), Error> {
    let out = out.into();
    fits("output", out.len(), &[x.rows, x.columns])?;
    if let Some(weight) = norm.weight {
        fits("weight", weight.len(), &[x.columns])?;
    }
    for (what, rows) in ["scale", "shift"].into_iter().zip(norm.modulation.iter().flatten()) {
        rows.check(what, x.columns)?;
    }
    if out.is_empty() {
        return Ok(());
    }
    match (x.values, out) {
        (Values::F32(values), ValuesMut::F32(out)) => all_rows(values, x.columns, norm, out),
        (Values::F32(values), ValuesMut::Bf16(out)) => all_rows(values, x.columns, norm, out),
        (Values::Bf16(values), ValuesMut::F32(out)) => all_rows(values, x.columns, norm, out),
        (Values::Bf16(values), ValuesMut::Bf16(out)) => all_rows(values, x.columns, norm, out),
    }
    Ok(())
}

fn all_rows<T: Element, O: Element>(x: &[T], columns: usize, norm: &Norm<'_>, out: &mut [O]) {
    let rows = x.len() / columns;
    let at_once = (TASK / columns).max(1);
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(rows.div_ceil(at_once), |task| {
        let (first, last) = (task * at_once, rows.min((task + 1) * at_once));
        let part = first * columns..last * columns;
        // SAFETY: each task has rows of its own.
        let out = unsafe { out.part(part.clone()) };
        active.run(Rows { x: &x[part], columns, norm, first, out });
    });
}

/// Some rows, from row `first` on.
struct Rows<'a, T, O> {
    x: &'a [T],
    columns: usize,
    norm: &'a Norm<'a>,
    first: usize,
    out: &'a mut [O],
}

impl<T: Element, O: Element> Work for Rows<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, norm: Norm { scaling, weight, modulation, activation }, first, .. } = self;
        let rows = self.x.chunks_exact(columns).zip(self.out.chunks_exact_mut(columns));
        for (row, (x, out)) in rows.enumerate() {
            let (centre, factor) = match *scaling {
                Scaling::None => (0.0, 1.0),
                Scaling::Rms { eps } => (0.0, inverse_root(simd, x, 0.0, eps)),
                Scaling::Layer { eps } => {
                    let mean = mean::<S, T, false>(simd, x, 0.0);
                    (mean, inverse_root(simd, x, mean, eps))
                }
            };
            let (centre, factor) = (simd.splat(centre), simd.splat(factor));
            for (index, out) in out.chunks_mut(S::LANES).enumerate() {
                let part = index * S::LANES..index * S::LANES + out.len();
                let mut y = simd.mul(simd.sub(load(simd, &x[part.clone()]), centre), factor);
                if let Some(weight) = weight {
                    y = simd.mul(y, weight.load(simd, part.clone()));
                }
                if let Some([scale, shift]) = modulation {
                    let shift = shift.load(simd, first + row, part.clone(), columns);
                    y = simd.add(simd.fma(y, scale.load(simd, first + row, part, columns), y), shift);
                }
                store(simd, activation.apply(simd, y), out);
            }
        }
    }
}

/// The mean of x − centre or of its square, in a fixed order.
#[inline(always)]
fn mean<S: Simd, T: Element, const SQUARE: bool>(simd: S, x: &[T], centre: f32) -> f32 {
    let whole = x.len() / (4 * S::LANES) * (4 * S::LANES);
    let mut sums = [simd.splat(0.0); 4];
    for four in x[..whole].chunks_exact(4 * S::LANES) {
        for (sum, x) in sums.iter_mut().zip(four.chunks_exact(S::LANES)) {
            let v = simd.sub(load(simd, x), simd.splat(centre));
            *sum = if SQUARE { simd.fma(v, v, *sum) } else { simd.add(*sum, v) };
        }
    }
    let mut total = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
    for x in &x[whole..] {
        let v = x.widen() - centre;
        total += if SQUARE { v * v } else { v };
    }
    total / x.len() as f32
}

/// 1 / √(mean (x − centre)² + eps)
#[inline(always)]
fn inverse_root<S: Simd, T: Element>(simd: S, x: &[T], centre: f32, eps: f32) -> f32 {
    1.0 / (mean::<S, T, true>(simd, x, centre) + eps).sqrt()
}

/// What is done to queries or keys (batch, tokens, heads, head_dim) before they meet.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Rotation<'a> {
    pub heads: usize,
    pub head_dim: usize,
    /// Added to the mean of squares under the root.
    pub eps: f32,
    /// (heads · head_dim): the norm is over all heads; (head_dim): over each.
    pub weight: Values<'a>,
    /// (rows, 1 or heads, head_dim / 2): cosines, and sines below. Token `t`, counted through the batch, takes row
    /// `t % rows`.
    pub cos: Values<'a>,
    pub sin: Values<'a>,
    pub rows: usize,
}

/// out (tokens, heads, head_dim) = RMS norm of x, times weight, with each pair (i, i + head_dim / 2) turned by its angle.
pub fn norm_and_rotate<'a>(
    x: Values<'_>,
    rotation: &Rotation<'_>,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    let (out, r) = (out.into(), rotation);
    let width = r.heads.saturating_mul(r.head_dim);
    let wrong = |what, expected: &str, found: String| Error::Shape { what, expected: expected.into(), found };
    if width == 0 || r.head_dim % 2 == 1 {
        return Err(wrong("heads", "heads of an even width", format!("{} of {}", r.heads, r.head_dim)));
    }
    let tokens = x.len() / width;
    fits("input", x.len(), &[tokens, width])?;
    fits("output", out.len(), &[tokens, width])?;
    if ![width, r.head_dim].contains(&r.weight.len()) {
        return Err(wrong("weight", &format!("{width} or {}", r.head_dim), r.weight.len().to_string()));
    }
    let row = r.cos.len().checked_div(r.rows).unwrap_or(0);
    if ![r.head_dim / 2, width / 2].contains(&row) || r.rows * row != r.cos.len() {
        return Err(wrong(
            "cosines",
            &format!("rows of {} or {}", r.head_dim / 2, width / 2),
            row.to_string(),
        ));
    }
    fits("sines", r.sin.len(), &[r.rows, row])?;
    match (x, out) {
        (Values::F32(x), ValuesMut::F32(out)) => rotate_all(x, r, out),
        (Values::F32(x), ValuesMut::Bf16(out)) => rotate_all(x, r, out),
        (Values::Bf16(x), ValuesMut::F32(out)) => rotate_all(x, r, out),
        (Values::Bf16(x), ValuesMut::Bf16(out)) => rotate_all(x, r, out),
    }
    Ok(())
}

fn rotate_all<T: Element, O: Element>(x: &[T], rotation: &Rotation<'_>, out: &mut [O]) {
    let width = rotation.heads * rotation.head_dim;
    let tokens = x.len() / width;
    let at_once = (TASK / width).max(1);
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(tokens.div_ceil(at_once), |task| {
        let (first, last) = (task * at_once, tokens.min((task + 1) * at_once));
        let part = first * width..last * width;
        // SAFETY: each task has tokens of its own.
        let out = unsafe { out.part(part.clone()) };
        active.run(Tokens { x: &x[part], rotation, first, out });
    });
}

/// Some tokens, from token `first` on.
struct Tokens<'a, T, O> {
    x: &'a [T],
    rotation: &'a Rotation<'a>,
    first: usize,
    out: &'a mut [O],
}

impl<T: Element, O: Element> Work for Tokens<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let &Rotation { heads, head_dim, eps, weight, cos, sin, rows } = self.rotation;
        let (half, width) = (head_dim / 2, heads * head_dim);
        let (row_len, together) = (cos.len() / rows, weight.len() == width);
        let tokens = self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width));
        for (token, (x, out)) in tokens.enumerate() {
            let angles = (self.first + token) % rows * row_len;
            let mut factor = if together { inverse_root(simd, x, 0.0, eps) } else { 1.0 };
            let each = x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
            for (head, (x, out)) in each.enumerate() {
                if !together {
                    factor = inverse_root(simd, x, 0.0, eps);
                }
                let weights = if together { head * head_dim } else { 0 };
                let angles = angles + if row_len == half { 0 } else { head * half };
                let (low, high) = out.split_at_mut(half);
                let vectors = low.chunks_mut(S::LANES).zip(high.chunks_mut(S::LANES));
                for (index, (low, high)) in vectors.enumerate() {
                    let mut pair = [simd.splat(0.0); 2];
                    for (v, at) in pair.iter_mut().zip([index * S::LANES, half + index * S::LANES]) {
                        let weight = weight.load(simd, weights + at..weights + at + low.len());
                        let x = load(simd, &x[at..at + low.len()]);
                        *v = simd.mul(simd.mul(x, simd.splat(factor)), weight);
                    }
                    let [first, second] = pair;
                    let part = angles + index * S::LANES..angles + index * S::LANES + low.len();
                    let (cos, sin) = (cos.load(simd, part.clone()), sin.load(simd, part));
                    store(simd, simd.sub(simd.mul(first, cos), simd.mul(second, sin)), low);
                    store(simd, simd.fma(second, cos, simd.mul(first, sin)), high);
                }
            }
        }
    }
}
