//! NEON, which every 64-bit Arm processor has, with or without products of bf16 pairs.

use std::arch::aarch64::*;
use std::arch::asm;

use half::bf16;

use super::{Simd, Work};

/// With `BF16`, exists only inside [`run_bf16`].
#[derive(Clone, Copy)]
pub(super) struct Neon<const BF16: bool>(());

const LANES: usize = 4;

pub(super) fn run<W: Work>(work: W) -> W::Output {
    work.run(Neon::<false>(()))
}

#[target_feature(enable = "bf16")]
pub(super) fn run_bf16<W: Work>(work: W) -> W::Output {
    work.run(Neon::<true>(()))
}

/// Half bytes as 32-bit numbers.
#[inline(always)]
fn halves(from: &[u8]) -> uint32x4_t {
    let word = u32::from(u16::from_le_bytes([from[0], from[1]]));
    // SAFETY: the instructions are part of the architecture, and the array has four values.
    unsafe {
        let shifts = vld1q_s32([0, -4, -8, -12].as_ptr());
        vandq_u32(vshlq_u32(vdupq_n_u32(word), shifts), vdupq_n_u32(15))
    }
}

// SAFETY (every block of this implementation): the instructions are part of the architecture or, where `BF16` is asked,
// of the processor, and every pointer comes from a slice that was just found, or cut, to be long enough.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Simd for Neon<BF16> {
    type V = float32x4_t;
    const LANES: usize = LANES;
    const ROWS: usize = 6;
    const VECTORS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        unsafe { vld1q_f32(from[..LANES].as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: float32x4_t, to: &mut [f32]) {
        unsafe { vst1q_f32(to[..LANES].as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from[..LANES].as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store_bf16(self, v: float32x4_t, to: &mut [bf16]) {
        unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            let bits = vbslq_u32(vceqq_f32(v, v), rounded, quiet);
            vst1_u16(to[..LANES].as_mut_ptr().cast(), vshrn_n_u32::<16>(bits));
        }
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8]) -> float32x4_t {
        unsafe {
            let word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
            let wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)));
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)))
        }
    }

    #[inline(always)]
    fn load_u4(self, from: &[u8]) -> float32x4_t {
        unsafe { vcvtq_f32_u32(halves(from)) }
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8]) -> float32x4_t {
        unsafe {
            let word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
            let wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(word)));
            let wide = vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(wide)));
            let bits = vandq_u32(vshlq_n_u32::<20>(wide), vdupq_n_u32(0x87f0_0000));
            vmulq_n_f32(vreinterpretq_f32_u32(bits), super::E4M3)
        }
    }

    #[inline(always)]
    fn load_e2m1(self, from: &[u8]) -> float32x4_t {
        unsafe {
            let halves = halves(from);
            let size = vshlq_n_u32::<22>(vandq_u32(halves, vdupq_n_u32(7)));
            let sign = vshlq_n_u32::<28>(vandq_u32(halves, vdupq_n_u32(8)));
            vmulq_n_f32(vreinterpretq_f32_u32(vorrq_u32(size, sign)), super::E2M1)
        }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vminq_f32(a, b) }
    }

    #[inline(always)]
    fn round(self, v: float32x4_t) -> float32x4_t {
        unsafe { vrndnq_f32(v) }
    }

    #[inline(always)]
    fn exp2(self, whole: float32x4_t) -> float32x4_t {
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn zero_below(self, x: float32x4_t, limit: float32x4_t, v: float32x4_t) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, limit))) }
    }

    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(v) }
    }

    #[inline(always)]
    fn largest(self, v: float32x4_t) -> f32 {
        unsafe { vmaxvq_f32(v) }
    }

    #[inline(always)]
    fn dot_pairs(self, acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe {
            if BF16 {
                let mut acc = acc;
                // The intrinsic is not stable.
                asm!(
                    "bfdot {acc:v}.4s, {a:v}.8h, {b:v}.8h",
                    acc = inout(vreg) acc,
                    a = in(vreg) a,
                    b = in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags),
                );
                return acc;
            }
            let low = |v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(v)));
            let mask = vdupq_n_u32(0xffff_0000);
            let high = |v| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), mask));
            vfmaq_f32(vfmaq_f32(acc, low(a), low(b)), high(a), high(b))
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[u8], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let from = &from[..3 * from_stride + 4 * LANES];
        let to = &mut to[..3 * to_stride + LANES];
        unsafe {
            let row = |i: usize| vreinterpretq_f32_u8(vld1q_u8(from.as_ptr().add(i * from_stride)));
            let wide = |v| vreinterpretq_f64_f32(v);
            let [a, b, c, d] = [row(0), row(1), row(2), row(3)];
            let (ab_even, ab_odd) = (wide(vtrn1q_f32(a, b)), wide(vtrn2q_f32(a, b)));
            let (cd_even, cd_odd) = (wide(vtrn1q_f32(c, d)), wide(vtrn2q_f32(c, d)));
            let columns = [
                vtrn1q_f64(ab_even, cd_even),
                vtrn1q_f64(ab_odd, cd_odd),
                vtrn2q_f64(ab_even, cd_even),
                vtrn2q_f64(ab_odd, cd_odd),
            ];
            for (at, column) in columns.into_iter().enumerate() {
                vst1q_f32(to.as_mut_ptr().add(at * to_stride), vreinterpretq_f32_f64(column));
            }
        }
    }
}
