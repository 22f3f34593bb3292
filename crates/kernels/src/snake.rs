//! The vocoder's activation, x + sin²(αx) / β at twice the rate: a filter up, the activation and a filter down in one pass,
//! a vector of channels at a time.

use crate::Error;
use crate::isa::{Active, Simd, Work};
use crate::math::sine_squared;
use crate::pool::{self, Shared, with_buffer};
use crate::values::{Element, Values, ValuesMut, fits, load, store};

/// Length of both filters.
const TAPS: usize = 12;

/// Inputs to either side that an activation sees, and outputs that see it.
const REACH: usize = TAPS / 4;

/// Outputs in time of a task: each computes a dozen activations more than its own.
const TASK: usize = 128;

/// Of any instruction set.
const MOST_LANES: usize = 16;

/// Filters for twice the rate, and what the activation takes for each channel.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Snake<'a> {
    pub up: [f32; TAPS],
    pub down: [f32; TAPS],
    pub alpha: &'a [f32],           // (channels)
    pub reciprocal_beta: &'a [f32], // (channels)
}

/// out (batch, time, channels) from x (batch, time, channels), whose ends continue as they are.
pub fn snake<'a>(
    x: Values<'_>,
    [batch, time]: [usize; 2],
    snake: &Snake<'_>,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    let out = out.into();
    let shape = [batch, time, snake.alpha.len()];
    fits("input", x.len(), &shape)?;
    fits("output", out.len(), &shape)?;
    fits("betas", snake.reciprocal_beta.len(), &shape[2..])?;
    if out.is_empty() {
        return Ok(());
    }
    match (x, out) {
        (Values::F32(x), ValuesMut::F32(out)) => all(x, shape, snake, out),
        (Values::F32(x), ValuesMut::Bf16(out)) => all(x, shape, snake, out),
        (Values::Bf16(x), ValuesMut::F32(out)) => all(x, shape, snake, out),
        (Values::Bf16(x), ValuesMut::Bf16(out)) => all(x, shape, snake, out),
    }
    Ok(())
}

fn all<T: Element, O: Element>(
    x: &[T],
    [batch, time, channels]: [usize; 3],
    snake: &Snake<'_>,
    out: &mut [O],
) {
    let (out, active, tasks) = (Shared::new(out), Active::get(), time.div_ceil(TASK));
    pool::for_each(batch * tasks, |task| {
        let (sample, first) = (task / tasks, task % tasks * TASK);
        let last = time.min(first + TASK);
        let x = &x[sample * time * channels..][..time * channels];
        let start = sample * time + first;
        // SAFETY: each task has outputs of its own.
        let out = unsafe { out.part(start * channels..(start + last - first) * channels) };
        with_buffer(2 * (TASK + 2 * REACH) * MOST_LANES, |scratch| {
            active.run(Part { x, channels, snake, first, last, scratch, out });
        });
    });
}

/// The channels from `channel` on of input `t`, or of the last one: a vector of them if `WHOLE`, else as many as there are.
#[inline(always)]
fn input<S: Simd, T: Element, const WHOLE: bool>(
    simd: S,
    x: &[T],
    channels: usize,
    t: usize,
    channel: usize,
) -> S::V {
    let start = t.min(x.len() / channels - 1) * channels;
    let from = &x[start + channel..start + channels];
    if WHOLE { T::load(simd, from) } else { load(simd, from) }
}

/// Outputs `first .. last` of a sample.
struct Part<'a, T, O> {
    x: &'a [T], // (time, channels)
    channels: usize,
    snake: &'a Snake<'a>,
    first: usize,
    last: usize,
    scratch: &'a mut [f32],
    out: &'a mut [O], // (last − first, channels)
}

impl<T: Element, O: Element> Work for Part<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let whole = self.channels - self.channels % S::LANES;
        for channel in (0..whole).step_by(S::LANES) {
            self.vector::<S, true>(simd, channel);
        }
        if whole < self.channels {
            self.vector::<S, false>(simd, whole);
        }
    }
}

impl<T: Element, O: Element> Part<'_, T, O> {
    /// Writes the channels from `channel` on: a vector of them if `WHOLE`, else as many as there are.
    #[inline(always)]
    fn vector<S: Simd, const WHOLE: bool>(&mut self, simd: S, channel: usize) {
        let Self { x, channels, snake: Snake { up, down, alpha, reciprocal_beta }, first, last, .. } = *self;
        let twice = up.map(|tap| 2.0 * tap); // makes up for the zeros between the inputs
        let time = x.len() / channels;
        let (alpha, reciprocal_beta) =
            (load(simd, &alpha[channel..]), load(simd, &reciprocal_beta[channel..]));
        // Output t takes activations 2 t − 5 to 2 t + 6. Those of input t are at 2 (t + REACH − first).
        let (from, to) = (first.saturating_sub(REACH), time.min(last + REACH));
        let mut seen = [simd.splat(0.0); 2 * REACH + 1]; // inputs t − REACH ..= t + REACH
        for (i, seen) in seen.iter_mut().skip(1).enumerate() {
            *seen = input::<S, T, WHOLE>(simd, x, channels, (from + i).saturating_sub(REACH), channel);
        }
        let scratch = &mut *self.scratch;
        for t in from..to {
            for i in 0..2 * REACH {
                seen[i] = seen[i + 1];
            }
            seen[2 * REACH] = input::<S, T, WHOLE>(simd, x, channels, t + REACH, channel);
            let slot = 2 * (t + REACH - first) * S::LANES;
            for (odd, to) in scratch[slot..slot + 2 * S::LANES].chunks_exact_mut(S::LANES).enumerate() {
                // Half of the taps stand over inputs, at the even activations the odd ones; two sums, to wait less.
                let mut sums = [simd.splat(0.0); 2];
                for tap in 0..TAPS / 2 {
                    let weight = simd.splat(twice[2 * tap + 1 - odd]);
                    sums[tap % 2] = simd.fma(seen[2 * REACH - 1 + odd - tap], weight, sums[tap % 2]);
                }
                let sum = simd.add(sums[0], sums[1]);
                let ripple = sine_squared(simd, simd.mul(sum, alpha));
                simd.store(simd.fma(ripple, reciprocal_beta, sum), to);
            }
        }
        // Beyond the ends stands the outermost activation.
        let ends = |t: usize| 2 * (t + REACH - first) * S::LANES;
        let (known, unknown) = (ends(from), ends(to));
        let (before, after) = (simd.load(&scratch[known..]), simd.load(&scratch[unknown - S::LANES..]));
        for to in scratch[..known].chunks_exact_mut(S::LANES) {
            simd.store(before, to);
        }
        for to in scratch[unknown..ends(last + REACH)].chunks_exact_mut(S::LANES) {
            simd.store(after, to);
        }

        for t in 0..last - first {
            let active = &scratch[(2 * (t + REACH) - TAPS / 2 + 1) * S::LANES..][..TAPS * S::LANES];
            let mut sums = [simd.splat(0.0); 2];
            for (tap, active) in active.chunks_exact(S::LANES).enumerate() {
                sums[tap % 2] = simd.fma(simd.load(active), simd.splat(down[tap]), sums[tap % 2]);
            }
            let (sum, out) =
                (simd.add(sums[0], sums[1]), &mut self.out[t * channels + channel..(t + 1) * channels]);
            if WHOLE { O::store(simd, sum, out) } else { store(simd, sum, out) }
        }
    }
}
