//! AVX2 with fused multiply-add.

use std::arch::x86_64::*;

use half::bf16;

use super::{Simd, Work};

/// Exists only inside [`run`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

const LANES: usize = 8;

#[target_feature(enable = "avx2,fma")]
pub(super) fn run<W: Work>(work: W) -> W::Output {
    work.run(Avx2(()))
}

/// Half bytes in the lowest bits of 32; what lies above them is arbitrary.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
unsafe fn halves(from: &[u8]) -> __m256i {
    let word = i32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    // SAFETY: the caller's promise.
    unsafe { _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)) }
}

// SAFETY (every block of this implementation): a value of `Self` exists only where the processor has the instructions,
// and every pointer comes from a slice that was just found, or cut, to be long enough.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = LANES;
    const ROWS: usize = 6;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        unsafe { _mm256_loadu_ps(from[..LANES].as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        unsafe { _mm256_storeu_ps(to[..LANES].as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m256 {
        unsafe {
            let narrow = _mm_loadu_si128(from[..LANES].as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m256, to: &mut [bf16]) {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let bits = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(bits, bits));
            _mm_storeu_si128(to[..LANES].as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8]) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from[..LANES].as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_u4(self, from: &[u8]) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_and_si256(halves(from), _mm256_set1_epi32(15))) }
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8]) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from[..LANES].as_ptr().cast()));
            let kept = _mm256_set1_epi32(0x87f0_0000_u32 as i32);
            let bits = _mm256_and_si256(_mm256_slli_epi32::<20>(wide), kept);
            _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(super::E4M3))
        }
    }

    #[inline(always)]
    fn load_e2m1(self, from: &[u8]) -> __m256 {
        unsafe {
            let halves = halves(from);
            let numbers = _mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0);
            let size = _mm256_permutevar8x32_ps(numbers, halves);
            let sign = _mm256_and_si256(_mm256_slli_epi32::<28>(halves), _mm256_set1_epi32(i32::MIN));
            _mm256_xor_ps(size, _mm256_castsi256_ps(sign))
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn exp2(self, whole: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn zero_below(self, x: __m256, limit: __m256, v: __m256) -> __m256 {
        unsafe { _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, limit)) }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn dot_pairs(self, acc: __m256, a: __m256, b: __m256) -> __m256 {
        unsafe {
            let low = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v)));
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            let high = |v| _mm256_and_ps(v, mask);
            _mm256_fmadd_ps(high(a), high(b), _mm256_fmadd_ps(low(a), low(b), acc))
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[u8], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let from = &from[..7 * from_stride + 4 * LANES];
        let to = &mut to[..7 * to_stride + LANES];
        unsafe {
            let row = |i: usize| _mm256_loadu_ps(from.as_ptr().add(i * from_stride).cast());
            let wide = |v| _mm256_castps_pd(v);
            // Two 4×4 transpositions side by side for each half of the rows: `halves[g][c]` is column c and column
            // 4 + c of rows 4 g … A loop, since what `array::from_fn` calls would be compiled without the instructions.
            let mut halves = [[_mm256_setzero_ps(); 4]; 2];
            for (group, half) in halves.iter_mut().enumerate() {
                let [a, b, c, d] =
                    [row(4 * group), row(4 * group + 1), row(4 * group + 2), row(4 * group + 3)];
                let (ab_low, ab_high) = (wide(_mm256_unpacklo_ps(a, b)), wide(_mm256_unpackhi_ps(a, b)));
                let (cd_low, cd_high) = (wide(_mm256_unpacklo_ps(c, d)), wide(_mm256_unpackhi_ps(c, d)));
                *half = [
                    _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low)),
                    _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low)),
                    _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high)),
                    _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high)),
                ];
            }
            // … then the halves are joined.
            for (column, (&top, &bottom)) in halves[0].iter().zip(&halves[1]).enumerate() {
                let mut put = |at: usize, row| _mm256_storeu_ps(to.as_mut_ptr().add(at * to_stride), row);
                put(column, _mm256_permute2f128_ps::<0x20>(top, bottom));
                put(4 + column, _mm256_permute2f128_ps::<0x31>(top, bottom));
            }
        }
    }
}
