//! Vectors in plain Rust.

use half::bf16;

use super::Simd;
use crate::values::{narrow, widen};

#[derive(Clone, Copy)]
pub(super) struct Portable;

const LANES: usize = 8;
type V = [f32; LANES];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> V {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = LANES;
    const ROWS: usize = 3;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> V {
        each(|i| from[i])
    }

    #[inline(always)]
    fn store(self, v: V, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&v);
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> V {
        each(|i| widen(from[i]))
    }

    #[inline(always)]
    fn store_bf16(self, v: V, to: &mut [bf16]) {
        to[..LANES].copy_from_slice(&v.map(narrow));
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // Not `mul_add`: without the instruction it is a call into the C library.
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, v: V) -> V {
        v.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn exp2(self, whole: V) -> V {
        whole.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn zero_below(self, x: V, limit: V, v: V) -> V {
        each(|i| if x[i] < limit[i] { 0.0 } else { v[i] })
    }

    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        v.iter().sum()
    }

    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn dot_pairs(self, acc: V, a: V, b: V) -> V {
        let low = |v: f32| f32::from_bits(v.to_bits() << 16);
        let high = |v: f32| f32::from_bits(v.to_bits() & 0xffff_0000);
        each(|i| acc[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }

    #[inline(always)]
    fn transpose(self, from: &[u8], from_stride: usize, to: &mut [f32], to_stride: usize) {
        for row in 0..LANES {
            let words = from[row * from_stride..][..4 * LANES].chunks_exact(4);
            for (column, word) in words.enumerate() {
                to[column * to_stride + row] = f32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            }
        }
    }
}
