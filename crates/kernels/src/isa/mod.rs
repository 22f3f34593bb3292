//! Which vector instructions are used, and the one interface through which kernels use them.
//!
//! A kernel is written once, over [`Simd`], as the `run` of a [`Work`]; [`Active::run`] compiles it for every
//! instruction set and calls the one in use. A new instruction set is one file here.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux", feature = "emulate-amx"))]
mod amx_emulation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use half::bf16;

use crate::Error;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, on any processor.
    Portable,
    /// 128-bit vectors of 64-bit Arm.
    Neon,
    /// The same with products of bf16 pairs.
    NeonBf16,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors with products of bf16 pairs.
    Avx512Bf16,
    /// The same with products of bf16 matrices.
    AmxBf16,
}

impl Isa {
    /// Every instruction set, the fastest last.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::Neon,
        Self::NeonBf16,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Bf16,
        Self::AmxBf16,
    ];

    /// The fastest that this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor (and the system on it) can run it.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => std::arch::is_aarch64_feature_detected!("bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::AmxBf16 => Self::Avx512Bf16.available() && amx::available(),
            #[allow(unreachable_patterns)] // which ones are left depends on the architecture
            _ => false,
        }
    }

    /// The name that [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonBf16 => "neon-bf16",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::AmxBf16 => "amx-bf16",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| Error::Isa { name: name.to_owned(), known: Self::ALL.map(Self::name).join(", ") })
    }
}

/// 0: not chosen yet; otherwise one more than the place in [`Isa::ALL`].
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The instruction set in use: the fastest there is, unless [`set_isa`] chose another.
pub fn isa() -> Isa {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => {
            let isa = Isa::detect();
            CHOSEN.store(isa as u8 + 1, Ordering::Relaxed);
            isa
        }
        chosen => Isa::ALL[usize::from(chosen) - 1],
    }
}

/// Makes every later call use `isa`, or says that this processor lacks it.
pub fn set_isa(isa: Isa) -> Result<(), Error> {
    if !isa.available() {
        return Err(Error::Missing(isa));
    }
    CHOSEN.store(isa as u8 + 1, Ordering::Relaxed);
    Ok(())
}

/// An instruction set that this processor is known to have.
#[derive(Clone, Copy)]
pub(crate) struct Active(Isa);

/// What [`Active::run`] compiles for every instruction set. Mark `run` `#[inline(always)]`: code that is not inlined
/// into the caller is compiled without the instructions, and so is the body of a closure given to another function.
pub(crate) trait Work {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Active {
    pub(crate) fn get() -> Self {
        Self(isa())
    }

    /// Whether products of bf16 pairs are an instruction.
    pub(crate) fn pairs(self) -> bool {
        matches!(self.0, Isa::NeonBf16 | Isa::Avx512Bf16 | Isa::AmxBf16)
    }

    /// Calls `work` with the instruction set.
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Active` holds what `detect` or `set_isa` found to be available.
            Isa::Avx512Bf16 | Isa::AmxBf16 => unsafe { avx512::run_bf16(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::run(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2::run(work) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonBf16 => unsafe { neon::run_bf16(work) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::run(work),
            _ => work.run(portable::Portable),
        }
    }
}

/// What the bits of an E4M3, moved to the end of an f32's, are to be multiplied by.
pub(crate) const E4M3: f32 = f32::from_bits((127 + 120) << 23);
/// The same of an E2M1.
const E2M1: f32 = f32::from_bits((127 + 126) << 23);

/// A vector of f32, as an instruction set has it. Values of the implementing types exist only where the instructions do.
/// Slices are read and written from their start; they must hold a whole vector (checked, free once inlined).
pub(crate) trait Simd: Copy {
    /// A vector.
    type V: Copy;
    /// f32 values in a vector.
    const LANES: usize;
    /// Rows of a tile of the matrix product that the registers hold.
    const ROWS: usize;
    /// Vectors across such a tile; 2 or 4.
    const VECTORS: usize;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &[f32]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32]);
    /// Widened, exactly.
    fn load_bf16(self, from: &[bf16]) -> Self::V;
    /// Rounded to nearest, ties to even.
    fn store_bf16(self, v: Self::V, to: &mut [bf16]);

    /// Two vectors, one behind the other, rounded to nearest; subnormal numbers may become 0.
    #[inline(always)]
    fn store_bf16_twice(self, [first, second]: [Self::V; 2], to: &mut [bf16]) {
        self.store_bf16(first, to);
        self.store_bf16(second, &mut to[Self::LANES..]);
    }
    /// Whether [`join`](Self::join) and products of pairs are instructions, and as fast as they look.
    const JOINS: bool = false;
    /// Two vectors, one behind the other, rounded as [`store_bf16_twice`](Self::store_bf16_twice) does: words of two bf16.
    #[inline(always)]
    fn join(self, vectors: [Self::V; 2]) -> Self::V {
        let mut words = [0.0; 16];
        self.store_bf16_twice(vectors, bytemuck::cast_slice_mut(&mut words));
        self.load(&words)
    }
    /// Bytes as whole numbers.
    fn load_u8(self, from: &[u8]) -> Self::V;
    /// Half bytes as whole numbers, the lower half first.
    fn load_u4(self, from: &[u8]) -> Self::V;
    /// The same in words of two bf16: twice as many.
    #[inline(always)]
    fn load_u4_pairs(self, from: &[u8]) -> Self::V {
        self.join([self.load_u4(from), self.load_u4(&from[Self::LANES / 2..])])
    }
    /// Floats of 8 bits; all ones are 480, as MLX has it.
    fn load_e4m3(self, from: &[u8]) -> Self::V;
    /// Floats of 4 bits, the lower half of a byte first.
    fn load_e2m1(self, from: &[u8]) -> Self::V;

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each; NaN where `b` is.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each; NaN where `b` is.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn round(self, v: Self::V) -> Self::V;
    /// 2 to the power of a whole number in −126 ..= 127.
    fn exp2(self, whole: Self::V) -> Self::V;
    /// 0 where `x < limit`, `v` elsewhere.
    fn zero_below(self, x: Self::V, limit: Self::V, v: Self::V) -> Self::V;
    /// The sum of all lanes, in a fixed order.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::V) -> f32;

    /// acc + a₀ · b₀ + a₁ · b₁ in every lane, whose 32 bits are two bf16 values.
    fn dot_pairs(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// Transposes words: `LANES` rows of `LANES` 32-bit words, `from_stride` bytes apart, into rows `to_stride` words apart.
    fn transpose(self, from: &[u8], from_stride: usize, to: &mut [f32], to_stride: usize);
}
