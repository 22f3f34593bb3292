//! What happens to every value by itself, or to every head.

use crate::Error;
use crate::isa::{Active, Simd, Work};
use crate::math::Activation;
use crate::pool::{self, Shared};
use crate::values::{Element, Values, ValuesMut, fits, load, store};

/// Values of a task.
const TASK: usize = 32 << 10;

/// out = activation(x)
pub fn activate<'a>(
    x: Values<'_>,
    activation: Activation,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    let out = out.into();
    fits("output", out.len(), &[x.len()])?;
    match (x, out) {
        (Values::F32(x), ValuesMut::F32(out)) => each(x, activation, out),
        (Values::F32(x), ValuesMut::Bf16(out)) => each(x, activation, out),
        (Values::Bf16(x), ValuesMut::F32(out)) => each(x, activation, out),
        (Values::Bf16(x), ValuesMut::Bf16(out)) => each(x, activation, out),
    }
    Ok(())
}

fn each<T: Element, O: Element>(x: &[T], activation: Activation, out: &mut [O]) {
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(x.len().div_ceil(TASK), |task| {
        let part = task * TASK..x.len().min((task + 1) * TASK);
        // SAFETY: each task has values of its own.
        let out = unsafe { out.part(part.clone()) };
        active.run(Part { x: &x[part], activation, out });
    });
}

struct Part<'a, T, O> {
    x: &'a [T],
    activation: Activation,
    out: &'a mut [O],
}

impl<T: Element, O: Element> Work for Part<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (x, out) in self.x.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            store(simd, self.activation.apply(simd, load(simd, x)), out);
        }
    }
}

/// out (tokens, heads, head_dim) = x times 2 · sigmoid(logit) of each head: `logits` (tokens, heads).
pub fn gate_heads<'a>(x: Values<'_>, logits: Values<'_>, out: impl Into<ValuesMut<'a>>) -> Result<(), Error> {
    let out = out.into();
    fits("output", out.len(), &[x.len()])?;
    if logits.is_empty() || !x.len().is_multiple_of(logits.len()) {
        let (expected, found) = (format!("a divisor of {}", x.len()), logits.len().to_string());
        return Err(Error::Shape { what: "logits", expected, found });
    }
    let gates: Vec<f32> = logits.to_f32().into_iter().map(|logit| 2.0 / (1.0 + (-logit).exp())).collect();
    match (x, out) {
        (Values::F32(x), ValuesMut::F32(out)) => gated(x, &gates, out),
        (Values::F32(x), ValuesMut::Bf16(out)) => gated(x, &gates, out),
        (Values::Bf16(x), ValuesMut::F32(out)) => gated(x, &gates, out),
        (Values::Bf16(x), ValuesMut::Bf16(out)) => gated(x, &gates, out),
    }
    Ok(())
}

fn gated<T: Element, O: Element>(x: &[T], gates: &[f32], out: &mut [O]) {
    let head_dim = x.len() / gates.len();
    let at_once = TASK.div_ceil(head_dim.max(1));
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(gates.len().div_ceil(at_once), |task| {
        let heads = task * at_once..gates.len().min((task + 1) * at_once);
        let part = heads.start * head_dim..heads.end * head_dim;
        // SAFETY: each task has heads of its own.
        let out = unsafe { out.part(part.clone()) };
        active.run(Heads { x: &x[part], gates: &gates[heads], head_dim, out });
    });
}

struct Heads<'a, T, O> {
    x: &'a [T],
    gates: &'a [f32],
    head_dim: usize,
    out: &'a mut [O],
}

impl<T: Element, O: Element> Work for Heads<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let heads = self.x.chunks_exact(self.head_dim).zip(self.out.chunks_exact_mut(self.head_dim));
        for ((x, out), &gate) in heads.zip(self.gates) {
            for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                store(simd, simd.mul(load(simd, x), simd.splat(gate)), out);
            }
        }
    }
}
