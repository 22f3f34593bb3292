//! How fast the machine can be: arithmetic on registers alone, and reading memory. What kernels reach is judged by these.

use std::hint::black_box;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use crate::isa::amx;
use crate::isa::{Active, Simd, Work};
use crate::pool;

/// Enough independent sums to hide an instruction's latency, few enough for 16 registers.
const SUMS: usize = 12;
const ROUNDS: usize = 1 << 17;

/// Multiplications and additions per second of all threads together, on registers: the limit of every matrix product with
/// the instruction set in use. `bf16` asks for products of bf16 values, which are those of f32 where there are no others.
pub fn peak(bf16: bool) -> f64 {
    let active = Active::get();
    #[cfg(target_arch = "x86_64")]
    if bf16 && let Some(amx) = active.amx() {
        return rate(ROUNDS * amx::Amx::ROUND, || amx.spin(ROUNDS));
    }
    let pairs = bf16 && active.pairs();
    let each = active.run(Lanes) * if pairs { 4 } else { 2 };
    rate(ROUNDS * SUMS * each, || active.run(Products { pairs }))
}

/// Operations per second when every thread does `task`, which has so many of them.
fn rate(operations: usize, task: impl Fn() + Sync + Send) -> f64 {
    let threads = pool::threads();
    let once = || {
        let start = Instant::now();
        pool::for_each(threads, |_| task());
        start.elapsed()
    };
    once();
    let best = (0..10).map(|_| once()).min().unwrap_or(Duration::MAX);
    (threads * operations) as f64 / best.as_secs_f64()
}

/// Reads `values` once, all threads together: time it for the memory's bandwidth.
pub fn read(values: &[f32]) {
    const PART: usize = 1 << 18;
    let active = Active::get();
    pool::for_each(values.len().div_ceil(PART), |part| {
        let start = part * PART;
        black_box(active.run(Sum(&values[start..values.len().min(start + PART)])));
    });
}

struct Lanes;

impl Work for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

struct Products {
    pairs: bool,
}

impl Work for Products {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Small enough that the sums stay finite; unknown to the compiler, so that it computes them.
        let a = simd.splat(black_box(1e-9));
        let b = simd.splat(black_box(1.0));
        let mut sums = [simd.splat(black_box(0.0)); SUMS];
        if self.pairs {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.dot_pairs(*sum, a, b);
                }
            }
        } else {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.fma(a, b, *sum);
                }
            }
        }
        for sum in sums {
            black_box(simd.sum(sum));
        }
    }
}

struct Sum<'a>(&'a [f32]);

impl Work for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat(0.0); 8];
        let mut groups = self.0.chunks_exact(8 * S::LANES);
        for group in &mut groups {
            for (sum, values) in sums.iter_mut().zip(group.chunks_exact(S::LANES)) {
                *sum = simd.add(*sum, simd.load(values));
            }
        }
        let rest: f32 = groups.remainder().iter().sum();
        sums.into_iter().map(|sum| simd.sum(sum)).sum::<f32>() + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_sums_everything() {
        for len in [0usize, 1, 7, 129, 1000] {
            let values: Vec<f32> = (0..len).map(|index| (index % 10) as f32).collect();
            let expected: f32 = values.iter().sum();
            assert_eq!(Active::get().run(Sum(&values)), expected);
        }
    }

    #[test]
    fn arithmetic_takes_time() {
        for bf16 in [false, true] {
            let peak = peak(bf16);
            assert!(peak.is_finite() && peak > 1e6, "{peak}");
        }
    }
}
