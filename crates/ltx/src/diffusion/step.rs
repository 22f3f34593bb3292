//! Samplers: from one noise level to the next, given what the network takes the clean sample to be.
//!
//! Formulas: `diffusion_steps.py` of Lightricks' ltx-core, `samplers.py` and `res2s.py` of ltx-pipelines. `x` is the
//! sample at `sigma`, `clean` the estimate of the sample at 0. Everything is f32 (batch, tokens, channels), except
//! res_2s, which works on f64 values in ordinary memory: it subtracts nearly equal numbers, and GPUs have no f64.

use std::str::FromStr;

use mlx::{Array, Dtype, Result};

use crate::error::Error;
use crate::noise::Noise;
use crate::shape::Modality;

/// How a run goes from one noise level to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    /// Straight along the velocity. Deterministic.
    Euler,
    /// Euler to below the next level, then fresh noise up to it.
    EulerAncestral {
        /// How far below: 0 is plain Euler, 1 the official value.
        eta: f64,
        /// Scale of the fresh noise, officially 1.
        s_noise: f64,
    },
    /// Euler with the velocity extrapolated from its change since the last step (openreview o2ND9v0CeK). Deterministic.
    GradientEstimation {
        /// Weight of the change, officially 2.
        gamma: f64,
    },
    /// Second order: two network calls per step, with fresh noise after each.
    Res2s {
        /// Share of the next level that is fresh noise after a step, officially 0.5. After the midpoint it is 0.5 always.
        eta: f64,
        /// Whether short steps move their starting point to where midpoint and estimate say it was.
        bong: bool,
    },
}

impl Sampler {
    /// Its name on the command line and in golden files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::EulerAncestral { .. } => "euler_ancestral",
            Self::GradientEstimation { .. } => "gradient_estimation",
            Self::Res2s { .. } => "res_2s",
        }
    }

    /// All of them, with the official parameters.
    pub const OFFICIAL: [Self; 4] = [
        Self::Euler,
        Self::EulerAncestral { eta: 1.0, s_noise: 1.0 },
        Self::GradientEstimation { gamma: 2.0 },
        Self::Res2s { eta: 0.5, bong: true },
    ];
}

impl FromStr for Sampler {
    type Err = Error;

    /// The sampler of that name with the official parameters.
    fn from_str(name: &str) -> crate::Result<Self> {
        Self::OFFICIAL.into_iter().find(|sampler| sampler.name() == name).ok_or_else(|| {
            Error::request(
                format!("there is no sampler `{name}`"),
                format!("give one of {}", Self::OFFICIAL.map(Self::name).join(", ")),
            )
        })
    }
}

/// Which of a step's draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// After the midpoint of a `res_2s` step.
    Substep,
    /// After the step.
    Step,
}

/// Gives samplers the noise that they add.
pub trait StepNoise {
    /// The noise to add to `modality` now, f32 of `shape` (batch, tokens, channels). Called in the order of the steps,
    /// the video's draw before the audio's.
    fn draw(&mut self, modality: Modality, draw: Draw, shape: &[i32]) -> crate::Result<Array>;

    /// How much was drawn, as the source counts it.
    fn drawn(&self) -> [u64; 4];

    /// Goes to where it is after so much, to go on from there.
    fn go_to(&mut self, drawn: [u64; 4]);
}

/// Step noise from a seed. It has nothing to do with the noise that the run of the same seed begins with.
#[derive(Debug)]
pub struct SeededStepNoise {
    step: Noise,
    substep: Noise,
    normalized: bool,
}

impl SeededStepNoise {
    /// The noise for one run of `sampler`: normalized for [`Sampler::Res2s`], plain for the others.
    pub fn new(sampler: Sampler, seed: u64) -> Self {
        Self {
            step: Noise::stream(seed, 1),
            substep: Noise::stream(seed, 2),
            normalized: matches!(sampler, Sampler::Res2s { .. }),
        }
    }
}

impl StepNoise for SeededStepNoise {
    fn draw(&mut self, _: Modality, draw: Draw, shape: &[i32]) -> crate::Result<Array> {
        let noise = match draw {
            Draw::Step => &mut self.step,
            Draw::Substep => &mut self.substep,
        };
        if !self.normalized {
            return Ok(noise.normal(shape)?);
        }
        let size: usize = shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product();
        let mut values: Vec<f64> = (0..size).map(|_| noise.draw()).collect();
        normalize(&mut values);
        let batch = shape.first().map_or(1, |&batch| batch.max(1) as usize);
        values.chunks_mut((size / batch).max(1)).for_each(normalize);
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        Ok(Array::from_slice(&values, shape)?)
    }

    fn drawn(&self) -> [u64; 4] {
        [self.step.drawn(), self.substep.drawn(), 0, 0]
    }

    fn go_to(&mut self, [step, substep, ..]: [u64; 4]) {
        self.step.go_to(step);
        self.substep.go_to(substep);
    }
}

/// Mean 0 and unbiased standard deviation 1.
fn normalize(values: &mut [f64]) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let deviation = variance.sqrt();
    values.iter_mut().for_each(|value| *value = (*value - mean) / deviation);
}

/// The velocity that leads from `clean` to `x`.
pub fn velocity(x: &Array, clean: &Array, sigma: f32) -> Result<Array> {
    x.subtract(clean)?.divide(sigma)
}

/// Euler's step from `sigma` to `next`.
pub fn euler(x: &Array, clean: &Array, sigma: f32, next: f32) -> Result<Array> {
    x.add(velocity(x, clean, sigma)?.multiply(next - sigma)?)
}

/// The ancestral step of a rectified flow (α = 1 − σ, not the DDIM formula) from `sigma` to `next` > 0.
pub fn euler_ancestral(
    x: &Array,
    clean: &Array,
    noise: &Array,
    (sigma, next): (f32, f32),
    (eta, s_noise): (f64, f64),
) -> Result<Array> {
    let (sigma, next) = (f64::from(sigma), f64::from(next));
    let down = next * (1.0 + (next / sigma - 1.0) * eta);
    let kept = (1.0 - next) / (1.0 - down);
    let renoise = (next * next - (down * kept).powi(2)).max(0.0).sqrt();
    let lower = x.multiply(down / sigma)?.add(clean.multiply(1.0 - down / sigma)?)?;
    lower.multiply(kept)?.add(noise.multiply(s_noise * renoise)?)
}

/// The estimate of the clean sample after gradient estimation has corrected the velocity that led to it.
pub fn corrected(x: &Array, velocity: &Array, before: &Array, sigma: f32, gamma: f64) -> Result<Array> {
    let velocity = velocity.subtract(before)?.multiply(gamma)?.add(before)?;
    x.subtract(velocity.multiply(sigma)?)
}

/// The coefficients of one `res_2s` step: an exponential Runge–Kutta method in −ln σ with its midpoint at √(σ · next).
#[derive(Clone, Copy, Debug)]
pub struct Res2s {
    sigma: f64,
    next: f64,
    size: f64,
    to_midpoint: f64,
    first: f64,
    second: f64,
}

impl Res2s {
    /// Below this the run ends with a plain estimate, where −ln σ would go to infinity.
    pub const LAST_SIGMA: f32 = 0.0011;

    /// The step from `sigma` to `next` > 0.
    pub fn new(sigma: f32, next: f32) -> Self {
        let (sigma, next) = (f64::from(sigma), f64::from(next));
        let size = (sigma / next).ln();
        let phi_1 = |z: f64| z.exp_m1() / z;
        let phi_2 = |z: f64| (z.exp_m1() - z) / (z * z);
        let second = 2.0 * phi_2(-size);
        let (to_midpoint, first) = (0.5 * phi_1(-0.5 * size), phi_1(-size) - second);
        Self { sigma, next, size, to_midpoint, first, second }
    }

    /// The noise level of the midpoint.
    pub fn midpoint_sigma(&self) -> f64 {
        (self.sigma * self.next).sqrt()
    }

    /// The midpoint reached from `anchor` on the estimate `clean`, with noise.
    pub fn midpoint(&self, anchor: &[f64], clean: &[f64], noise: &[f64]) -> Vec<f64> {
        let share = self.size * self.to_midpoint;
        let target = zip(anchor, clean, |x, clean| x + share * (clean - x));
        inject(anchor, target, noise, self.sigma, self.midpoint_sigma(), 0.5)
    }

    /// Where the step must have begun for `clean` to lead exactly to the midpoint, if the step is one to refine.
    ///
    /// The official sampler iterates a ← midpoint − c · (clean − a) a hundred times with c < 1/4; this is the limit.
    pub fn refined_anchor(&self, midpoint: &[f64], clean: &[f64]) -> Option<Vec<f64>> {
        let share = self.size * self.to_midpoint;
        let refine = self.size < 0.5 && self.sigma > 0.03;
        refine.then(|| zip(midpoint, clean, |midpoint, clean| (midpoint - share * clean) / (1.0 - share)))
    }

    /// The end of the step from the estimates at its beginning and at its midpoint, with noise.
    pub fn finish(&self, anchor: &[f64], first: &[f64], second: &[f64], noise: &[f64], eta: f64) -> Vec<f64> {
        let mut target = zip(anchor, first, |x, clean| x + self.size * self.first * (clean - x));
        for ((target, clean), x) in target.iter_mut().zip(second).zip(anchor) {
            *target += self.size * self.second * (clean - x);
        }
        inject(anchor, target, noise, self.sigma, self.next, eta)
    }
}

/// `x` from `sigma` to `next` along the way to `target`, with `eta` of the level reached being fresh noise.
fn inject(x: &[f64], target: Vec<f64>, noise: &[f64], sigma: f64, next: f64, eta: f64) -> Vec<f64> {
    let up = (next * eta).min(next * 0.9999);
    if up == 0.0 {
        return target;
    }
    let residual = (next * next - up * up).max(0.0).sqrt();
    let alpha = 1.0 - next + residual;
    let mut moved = target;
    for ((target, x), noise) in moved.iter_mut().zip(x).zip(noise) {
        let slope = (x - *target) / (sigma - next);
        *target = alpha * (x - sigma * slope) + residual * slope + up * noise;
    }
    moved
}

fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()
}

/// The values of `x` in f64.
pub(super) fn wide(x: &Array) -> Result<Vec<f64>> {
    Ok(x.to_f32()?.into_iter().map(f64::from).collect())
}

/// `values` rounded to f32.
pub(super) fn narrow(values: &[f64], shape: &[i32]) -> Result<Array> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    Array::from_slice(&values, shape)?.astype(Dtype::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64) -> Array {
        Noise::new(seed).normal(&[1, 7, 3]).unwrap()
    }

    fn worst(a: &Array, b: &Array) -> f32 {
        a.subtract(b).unwrap().abs().unwrap().max(&[0, 1, 2], false).unwrap().item().unwrap()
    }

    #[test]
    fn euler_with_the_exact_velocity_reaches_the_clean_sample() {
        let (clean, noise) = (draw(1), draw(2));
        let mut x = noise;
        for pair in [1.0f32, 0.99, 0.7, 0.2, 0.0].windows(2) {
            x = euler(&x, &clean, pair[0], pair[1]).unwrap();
        }
        assert!(worst(&x, &clean) < 1e-6);
    }

    #[test]
    fn ancestral_without_noise_is_euler() {
        let (x, clean, noise) = (draw(1), draw(2), draw(3));
        let plain = euler(&x, &clean, 0.8, 0.3).unwrap();
        let ancestral = euler_ancestral(&x, &clean, &noise, (0.8, 0.3), (0.0, 1.0)).unwrap();
        assert!(worst(&plain, &ancestral) < 1e-6);
    }

    #[test]
    fn ancestral_keeps_the_noise_level() {
        // Where x is exactly clean · (1 − σ) + noise · σ, both shares of the result are those of the next level.
        let (sigma, next, eta) = (0.8f64, 0.5f64, 0.7);
        let down = next * (1.0 + (next / sigma - 1.0) * eta);
        let zero = mlx::zeros(&[1, 1, 1], Dtype::F32).unwrap();
        let one = mlx::full(&[1, 1, 1], 1.0, Dtype::F32).unwrap();
        let signal_start = one.multiply(1.0 - sigma).unwrap();
        let step = |x: &Array, clean: &Array, noise: &Array| {
            let (sigma, next) = (sigma as f32, next as f32);
            euler_ancestral(x, clean, noise, (sigma, next), (eta, 1.0)).unwrap().item().unwrap()
        };
        let signal = step(&signal_start, &one, &zero);
        let old = step(&one.multiply(sigma).unwrap(), &zero, &zero);
        let fresh = step(&zero, &zero, &one);
        assert!((f64::from(signal) - (1.0 - next)).abs() < 1e-6);
        assert!((f64::from(old.hypot(fresh)) - next).abs() < 1e-6 && fresh > 0.0 && down < next);
    }

    #[test]
    fn the_refined_anchor_is_the_limit_of_the_official_iteration() {
        let step = Res2s::new(0.6, 0.5);
        let (midpoint, clean) = ([0.3, -1.0, 2.0], [0.1, 0.7, -0.4]);
        let anchor = step.refined_anchor(&midpoint, &clean).unwrap();
        for at in 0..3 {
            let share = step.size * step.to_midpoint;
            let mut iterated = 9.0;
            for _ in 0..100 {
                iterated = midpoint[at] - share * (clean[at] - iterated);
            }
            assert!((anchor[at] - iterated).abs() < 1e-12);
        }
        assert!(Res2s::new(0.6, 0.3).refined_anchor(&midpoint, &clean).is_none());
        assert!(Res2s::new(0.03, 0.029).refined_anchor(&midpoint, &clean).is_none());
    }

    #[test]
    fn res_2s_without_noise_is_exact_for_a_constant_estimate() {
        // dx/dh = clean − x has the solution clean + (x − clean) · next / sigma.
        let step = Res2s::new(0.9, 0.35);
        let (anchor, clean) = ([1.5, -0.5], [0.25, 0.75]);
        let end = step.finish(&anchor, &clean, &clean, &[0.0; 2], 0.0);
        for at in 0..2 {
            let exact = clean[at] + (anchor[at] - clean[at]) * f64::from(0.35f32) / f64::from(0.9f32);
            assert!((end[at] - exact).abs() < 1e-12);
        }
    }

    #[test]
    fn res_2s_keeps_the_noise_level() {
        // Shares of signal and noise after injecting: (1 − next) and next.
        let (sigma, next) = (0.8f64, 0.5f64);
        let at = |signal: f64, noise: f64, sigma: f64| signal * (1.0 - sigma) + noise * sigma;
        let share = |signal: f64, old: f64, fresh: f64| {
            inject(&[at(signal, old, sigma)], vec![at(signal, old, next)], &[fresh], sigma, next, 0.5)[0]
        };
        assert!((share(1.0, 0.0, 0.0) - (1.0 - next)).abs() < 1e-12);
        assert!(((share(0.0, 1.0, 0.0)).hypot(share(0.0, 0.0, 1.0)) - next).abs() < 1e-12);
    }

    #[test]
    fn seeded_noise_is_normalized_for_res_2s_only_and_its_draws_differ() {
        let mut noise = SeededStepNoise::new(Sampler::Res2s { eta: 0.5, bong: true }, 4);
        let mut draw = |which| noise.draw(Modality::Video, which, &[2, 9, 5]).unwrap();
        let (substep, step, again) = (draw(Draw::Substep), draw(Draw::Step), draw(Draw::Step));
        assert!(worst(&substep, &step) > 0.1 && worst(&step, &again) > 0.1);
        for sample in again.split(2, 0).unwrap() {
            let mean = sample.mean(&[0, 1, 2], false).unwrap().item().unwrap();
            let variance = sample.variance(&[0, 1, 2], false, 1).unwrap().item().unwrap();
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-5);
        }
        let mut plain = SeededStepNoise::new(Sampler::Euler, 4);
        let plain = plain.draw(Modality::Video, Draw::Step, &[2, 9, 5]).unwrap();
        assert_eq!(plain.to_f32().unwrap(), Noise::stream(4, 1).normal(&[90]).unwrap().to_f32().unwrap());
    }
}
