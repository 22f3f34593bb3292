//! Functions of vectors: the exponential, and the activations made of it.

use crate::isa::Simd;

/// What a layer applies to its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// GELU in its tanh form: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
    /// x · sigmoid(x).
    Silu,
}

impl Activation {
    /// f(v)
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, simd: S, v: S::V) -> S::V {
        match self {
            Self::None => v,
            Self::Silu => gated(simd, v, v),
            Self::GeluTanh => {
                // (1 + tanh u) / 2 = sigmoid(2 u)
                let root = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
                let cubic = simd.mul(simd.mul(v, v), simd.splat(root * 0.044715));
                gated(simd, v, simd.mul(v, simd.add(cubic, simd.splat(root))))
            }
        }
    }
}

/// v · sigmoid(x)
#[inline(always)]
fn gated<S: Simd>(simd: S, v: S::V, x: S::V) -> S::V {
    let negative = simd.sub(simd.splat(0.0), x);
    simd.div(v, simd.add(simd.splat(1.0), exp(simd, negative)))
}

/// eˣ to a few units in the last place; 0 below −87, e⁸⁸ above 88, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    const LOWEST: f32 = -87.0;
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts, so that n times the first is exact.
    let clamped = simd.max(simd.splat(LOWEST), simd.min(simd.splat(88.0), x));
    let n = simd.round(simd.mul(clamped, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, simd.splat(-0.693_359_4), clamped);
    let r = simd.fma(n, simd.splat(2.121_944_4e-4), r);
    // The Taylor series; the first term left out, r⁷/5040, is below 2⁻²³ of the sum.
    let mut sum = simd.splat(1.0 / 720.0);
    for divisor in [120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = simd.fma(sum, r, simd.splat(1.0 / divisor));
    }
    simd.zero_below(x, simd.splat(LOWEST), simd.mul(sum, simd.exp2(n)))
}

/// sin² x to about 10⁻⁷ for |x| up to some 10⁴, and in [0, 1] beyond; NaN for what is not finite.
#[inline(always)]
pub(crate) fn sine_squared<S: Simd>(simd: S, x: S::V) -> S::V {
    // x = n π + r with |r| ≤ π / 2. Of the parts of π the first ones have so few digits that n times them is exact.
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::FRAC_1_PI)));
    let mut r = x;
    for part in [3.140_625, 9.670_257_6e-4, 6.277_114e-7, 1.215_420_1e-10] {
        r = simd.fma(n, simd.splat(-part), r);
    }
    let half = simd.splat(std::f32::consts::FRAC_PI_2);
    let r = simd.min(half, simd.max(simd.sub(simd.splat(0.0), half), r));
    // The Taylor series of the sine; the first term left out, r¹³ / 13!, is below 6 · 10⁻⁸.
    let square = simd.mul(r, r);
    let mut sum = simd.splat(-1.0 / 39_916_800.0);
    for term in [1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0] {
        sum = simd.fma(sum, square, simd.splat(term));
    }
    let sine = simd.mul(sum, r);
    simd.mul(sine, sine)
}
