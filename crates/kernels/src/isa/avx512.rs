//! AVX-512, with or without products of bf16 pairs.

use std::arch::x86_64::*;

use half::bf16;

use super::{Simd, Work};

/// Exists only inside [`run`] and [`run_bf16`].
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(());

const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn run<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<false>(()))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn run_bf16<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<true>(()))
}

/// Half bytes in the lowest bits of 32; what lies above them is arbitrary.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
unsafe fn halves(from: &[u8]) -> __m512i {
    // SAFETY: the caller's promise; the slice was just found to be long enough.
    unsafe {
        let words = _mm512_castsi128_si512(_mm_loadl_epi64(from[..LANES / 2].as_ptr().cast()));
        let places = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
        _mm512_srlv_epi32(_mm512_permutexvar_epi32(places, words), shifts)
    }
}

// SAFETY (every block of this implementation): a value of `Self` exists only where the processor has the instructions,
// and every pointer comes from a slice that was just found, or cut, to be long enough.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const LANES: usize = LANES;
    const ROWS: usize = 12;
    const VECTORS: usize = 2;
    const JOINS: bool = BF16;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        unsafe { _mm512_loadu_ps(from[..LANES].as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32]) {
        unsafe { _mm512_storeu_ps(to[..LANES].as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        unsafe {
            let narrow = _mm256_loadu_si256(from[..LANES].as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, to: &mut [bf16]) {
        unsafe {
            // Not the conversion instruction of AVX512-BF16: it flushes subnormal numbers.
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_storeu_si256(to[..LANES].as_mut_ptr().cast(), narrow);
        }
    }

    #[inline(always)]
    fn store_bf16_twice(self, [first, second]: [__m512; 2], to: &mut [bf16]) {
        if BF16 {
            let pairs = self.join([first, second]);
            unsafe { _mm512_storeu_ps(to[..2 * LANES].as_mut_ptr().cast(), pairs) };
            return;
        }
        self.store_bf16(first, to);
        self.store_bf16(second, &mut to[LANES..]);
    }

    #[inline(always)]
    fn join(self, [first, second]: [__m512; 2]) -> __m512 {
        unsafe {
            if BF16 {
                return std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first));
            }
            let mut words = [0.0; LANES];
            self.store_bf16_twice([first, second], bytemuck::cast_slice_mut(&mut words));
            _mm512_loadu_ps(words.as_ptr())
        }
    }

    #[inline(always)]
    fn load_u4_pairs(self, from: &[u8]) -> __m512 {
        /// 0 to 15 as bf16; twice, so that the bit above a half byte does not matter.
        const NUMBERS: [u16; 32] = {
            let mut numbers = [0; 32];
            let mut at = 0;
            while at < 32 {
                numbers[at] = ((at % 16) as f32).to_bits().wrapping_shr(16) as u16;
                at += 1;
            }
            numbers
        };
        const PLACES: [u16; 32] = {
            let mut places = [0; 32];
            let mut at = 0;
            while at < 32 {
                places[at] = at as u16 / 4;
                at += 1;
            }
            places
        };
        unsafe {
            let load = |from: &[u16; 32]| _mm512_loadu_si512(from.as_ptr().cast());
            let words = _mm512_castsi128_si512(_mm_loadu_si128(from[..LANES].as_ptr().cast()));
            let spread = _mm512_permutexvar_epi16(load(&PLACES), words);
            let shifts = _mm512_set1_epi64(0x000c_0008_0004_0000);
            let codes = _mm512_srlv_epi16(spread, shifts);
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(codes, load(&NUMBERS)))
        }
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from[..LANES].as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_u4(self, from: &[u8]) -> __m512 {
        unsafe {
            let numbers = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
            );
            _mm512_permutexvar_ps(halves(from), numbers)
        }
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(from[..LANES].as_ptr().cast()));
            let kept = _mm512_set1_epi32(0x87f0_0000_u32 as i32);
            let bits = _mm512_and_si512(_mm512_slli_epi32::<20>(wide), kept);
            _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(super::E4M3))
        }
    }

    #[inline(always)]
    fn load_e2m1(self, from: &[u8]) -> __m512 {
        unsafe {
            let numbers = _mm512_setr_ps(
                0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
            );
            _mm512_permutexvar_ps(halves(from), numbers)
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn exp2(self, whole: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn zero_below(self, x: __m512, limit: __m512, v: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit), v) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn dot_pairs(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        unsafe {
            if BF16 {
                let pairs = |v| std::mem::transmute::<__m512, __m512bh>(v);
                return _mm512_dpbf16_ps(acc, pairs(a), pairs(b));
            }
            let low = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v)));
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let high = |v| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask));
            _mm512_fmadd_ps(high(a), high(b), _mm512_fmadd_ps(low(a), low(b), acc))
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[u8], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let from = &from[..15 * from_stride + 4 * LANES];
        let to = &mut to[..15 * to_stride + LANES];
        unsafe {
            let row = |i: usize| _mm512_loadu_ps(from.as_ptr().add(i * from_stride).cast());
            // Four 4×4 transpositions side by side for each group of four rows …
            let mut quads = [_mm512_setzero_ps(); 16];
            for group in 0..4 {
                let [a, b, c, d] =
                    [row(4 * group), row(4 * group + 1), row(4 * group + 2), row(4 * group + 3)];
                let wide = |v| _mm512_castps_pd(v);
                let (ab_low, ab_high) = (wide(_mm512_unpacklo_ps(a, b)), wide(_mm512_unpackhi_ps(a, b)));
                let (cd_low, cd_high) = (wide(_mm512_unpacklo_ps(c, d)), wide(_mm512_unpackhi_ps(c, d)));
                quads[group] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                quads[4 + group] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                quads[8 + group] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                quads[12 + group] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
            }
            // … then a 4×4 transposition of their 128-bit parts: part `p` of `quads[4 c + g]` is column 4 p + c.
            for column in 0..4 {
                let [a, b, c, d]: [__m512; 4] = std::array::from_fn(|group| quads[4 * column + group]);
                let (ab_even, ab_odd) =
                    (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (cd_even, cd_odd) =
                    (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                let rows = [
                    _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even),
                    _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd),
                    _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even),
                    _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd),
                ];
                for (part, row) in rows.into_iter().enumerate() {
                    _mm512_storeu_ps(to.as_mut_ptr().add((4 * part + column) * to_stride), row);
                }
            }
        }
    }
}
