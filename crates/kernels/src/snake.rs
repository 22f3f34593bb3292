//! The vocoder's activation, x + sin²(αx) / β at twice the rate: a filter up, the activation and a filter down in one pass,
//! a vector of channels at a time.

use crate::Error;
use crate::isa::{Active, Simd, Work};
use crate::math::sine_squared;
use crate::pool::{self, Shared, with_buffer};
use crate::values::{Element, Values, ValuesMut, fits, load, store};

/// Length of both filters.
const TAPS: usize = 12;

/// Taps that meet an input at either of the two outputs for it.
const PHASE: usize = TAPS / 2;

/// Outputs in time of a task: each computes a dozen activations more than its own.
const TASK: usize = 128;

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
        with_buffer((2 * TASK + TAPS) * MOST_LANES, |active_at_twice| {
            active.run(Part { x, channels, snake, first, last, scratch: active_at_twice, out });
        });
    });
}

const MOST_LANES: usize = 16;

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
    fn run<S: Simd>(self, simd: S) {
        let Self { x, channels, snake, first, last, scratch, out } = self;
        let Snake { up, down, alpha, reciprocal_beta } = snake;
        let time = x.len() / channels;
        // Output t takes activations 2 t − 5 to 2 t + 6; beyond the ends stands the outermost.
        let earliest = (2 * first).saturating_sub(TAPS / 2 - 1);
        let end = (2 * last + TAPS / 2 - 1).min(2 * time);
        for channel in (0..channels).step_by(S::LANES) {
            let part = channel..channels.min(channel + S::LANES);
            let (alpha, reciprocal_beta) =
                (load(simd, &alpha[part.clone()]), load(simd, &reciprocal_beta[part.clone()]));
            for at in earliest..end {
                // Half of the taps stand over inputs, at the even outputs the odd ones.
                let (t, odd) = (at / 2, at % 2);
                let mut sum = simd.splat(0.0);
                for tap in 0..PHASE {
                    // Tap 2 · tap + 1 − odd meets input t + 2 + odd − tap.
                    let place = (t + 2 + odd).saturating_sub(tap).min(time - 1) * channels;
                    let x = load(simd, &x[place + part.start..place + part.end]);
                    sum = simd.fma(x, simd.splat(2.0 * up[2 * tap + 1 - odd]), sum);
                }
                let ripple = sine_squared(simd, simd.mul(sum, alpha));
                let y = simd.fma(ripple, reciprocal_beta, sum);
                simd.store(y, &mut scratch[(at - earliest) * S::LANES..]);
            }
            for t in first..last {
                let mut sum = simd.splat(0.0);
                for (tap, &weight) in down.iter().enumerate() {
                    let at = (2 * t + tap).saturating_sub(TAPS / 2 - 1).min(2 * time - 1);
                    let y = simd.load(&scratch[(at - earliest) * S::LANES..]);
                    sum = simd.fma(y, simd.splat(weight), sum);
                }
                let start = (t - first) * channels;
                store(simd, sum, &mut out[start + part.start..start + part.end]);
            }
        }
    }
}
