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

/// The lower half of a byte comes first.
#[inline(always)]
fn half(from: &[u8], index: usize) -> u8 {
    from[index / 2] >> (index % 2 * 4) & 15
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
    fn load_u8(self, from: &[u8]) -> V {
        each(|i| f32::from(from[i]))
    }

    #[inline(always)]
    fn load_u4(self, from: &[u8]) -> V {
        each(|i| f32::from(half(from, i)))
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8]) -> V {
        each(|i| {
            let code = u32::from(from[i]);
            f32::from_bits((code & 0x80) << 24 | (code & 0x7f) << 20) * super::E4M3
        })
    }

    #[inline(always)]
    fn load_e2m1(self, from: &[u8]) -> V {
        each(|i| {
            let code = u32::from(half(from, i));
            f32::from_bits((code & 8) << 28 | (code & 7) << 22) * super::E2M1
        })
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
