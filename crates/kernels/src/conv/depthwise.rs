//! A filter for each channel.

use super::Geometry;
use crate::gemm::End;
use crate::isa::{Active, Simd, Work};
use crate::pool::{self, Shared};
use crate::values::{Element, load, store};

/// Outputs of a task.
const TASK: usize = 256;

/// `weight` (channels, kernels..), `out` (batch, outputs.., channels)
pub(super) fn run<T: Element, O: Element>(
    x: &[T],
    weight: &[f32],
    geometry: &Geometry,
    end: End<'_>,
    out: &mut [O],
) {
    let (taps, channels) = (geometry.taps(), geometry.outputs);
    let weight: Vec<f32> = // (kernels.., channels)
        (0..taps * channels).map(|index| weight[index % channels * taps + index / channels]).collect();
    let rows = out.len() / channels;
    let (out, active) = (Shared::new(out), Active::get());
    pool::for_each(rows.div_ceil(TASK), |task| {
        let first = task * TASK;
        let last = rows.min(first + TASK);
        // SAFETY: each task has outputs of its own.
        let out = unsafe { out.part(first * channels..last * channels) };
        active.run(Filter { x, weight: &weight, geometry, end, first, out });
    });
}

/// Outputs `first ..`
struct Filter<'a, T, O> {
    x: &'a [T],        // (batch, axes.., channels)
    weight: &'a [f32], // (kernels.., channels)
    geometry: &'a Geometry,
    end: End<'a>,
    first: usize,
    out: &'a mut [O], // (outputs, channels)
}

impl<T: Element, O: Element> Work for Filter<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Geometry { axes: [a, b, c], outputs: channels, .. } = *self.geometry;
        for (row, out) in self.out.chunks_exact_mut(channels).enumerate() {
            let (sample, place) = self.geometry.output(self.first + row);
            for (vector, out) in out.chunks_mut(S::LANES).enumerate() {
                let part = vector * S::LANES..vector * S::LANES + out.len();
                let mut sum = simd.splat(0.0);
                for tap in 0..a.kernel * b.kernel * c.kernel {
                    let (Some(i), Some(j), Some(k)) = (
                        a.place(place[0], tap / (b.kernel * c.kernel)),
                        b.place(place[1], tap / c.kernel % b.kernel),
                        c.place(place[2], tap % c.kernel),
                    ) else {
                        continue;
                    };
                    let at = (((sample * a.size + i) * b.size + j) * c.size + k) * channels;
                    let x = load(simd, &self.x[at + part.start..at + part.end]);
                    let weight = load(simd, &self.weight[tap * channels..][part.clone()]);
                    sum = simd.fma(x, weight, sum);
                }
                store(simd, self.end.apply(simd, sum, self.first + row, part, channels), out);
            }
        }
    }
}
