//! Which noise levels a run passes through: falling from about 1 to 0, one more than there are steps.
//!
//! Formulas: `LTX2Scheduler`, `LinearQuadraticScheduler` and `BetaScheduler` of Lightricks' ltx-core, in the same f32
//! arithmetic where theirs is f32.

use std::str::FromStr;

use crate::error::{Error, Result};

/// The table that distilled models were trained on.
pub const DISTILLED: [f32; 9] = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0];
/// Its end, for refining an upsampled clip. The first value is also the share of noise to begin with.
pub const DISTILLED_STAGE_2: [f32; 4] = [0.909375, 0.725, 0.421875, 0.0];

/// The token count that the `ltx2` schedule assumes when it is not told.
pub const DEFAULT_TOKENS: usize = 4096;

/// The last sigma above 0 of the `ltx2` schedule.
const TERMINAL: f32 = 0.1;

/// A rule that gives the noise levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// For dev models: linear, shifted towards noise the more tokens there are, stretched to end at 0.1 before 0.
    Ltx2,
    /// Half the steps crawl from 1 to 0.975, the rest fall along a parabola.
    LinearQuadratic,
    /// Quantiles of Beta(0.6, 0.6) of a shifted schedule (arXiv 2407.12173). May leave out steps that coincide.
    Beta,
    /// [`DISTILLED`].
    Distilled,
    /// [`DISTILLED_STAGE_2`].
    DistilledStage2,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 5] =
        [Self::Ltx2, Self::LinearQuadratic, Self::Beta, Self::Distilled, Self::DistilledStage2];

    /// Its name on the command line and in golden files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ltx2 => "ltx2",
            Self::LinearQuadratic => "linear_quadratic",
            Self::Beta => "beta",
            Self::Distilled => "distilled",
            Self::DistilledStage2 => "distilled_stage_2",
        }
    }

    /// The sigmas of a run of `steps` steps, ending at 0. `tokens` is the video's token count ([`DEFAULT_TOKENS`] unless
    /// a recipe says otherwise); only [`Schedule::Ltx2`] heeds it. The distilled tables are [resampled](resample) to
    /// other step counts than their own.
    pub fn sigmas(self, steps: usize, tokens: usize) -> Result<Vec<f32>> {
        if !(1..=1000).contains(&steps) {
            return Err(Error::request(
                format!("{steps} steps cannot be taken"),
                "give from 1 to 1000 steps",
            ));
        }
        Ok(match self {
            Self::Ltx2 => ltx2(steps, tokens),
            Self::LinearQuadratic => linear_quadratic(steps),
            Self::Beta => beta(steps),
            Self::Distilled => resample(&DISTILLED, steps),
            Self::DistilledStage2 => resample(&DISTILLED_STAGE_2, steps),
        })
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|schedule| schedule.name() == name).ok_or_else(|| {
            Error::request(
                format!("there is no schedule `{name}`"),
                format!("give one of {}", Self::ALL.map(Self::name).join(", ")),
            )
        })
    }
}

/// One step has nothing to stretch (0 / 0); it gets [0.1, 0], which is what rounding makes of Lightricks' formula.
fn ltx2(steps: usize, tokens: usize) -> Vec<f32> {
    if steps == 1 {
        return vec![TERMINAL, 0.0];
    }
    let (low, high) = (1024.0, DEFAULT_TOKENS as f64);
    let slope = (2.05 - 0.95) / (high - low);
    let shift = ((tokens as f64) * slope + (0.95 - slope * low)).exp() as f32;
    let mut sigmas: Vec<f32> = (0..steps).map(|step| shifted(shift, linear(step, steps))).collect();
    let last = 1.0 - sigmas[steps - 1];
    let scale = last / (1.0 - TERMINAL);
    for sigma in &mut sigmas {
        *sigma = 1.0 - (1.0 - *sigma) / scale;
    }
    sigmas.push(0.0);
    sigmas
}

/// shift / (shift + 1/t − 1), rounded as PyTorch rounds it: a number over a tensor is a product with its reciprocal.
fn shifted(shift: f32, t: f32) -> f32 {
    (shift + (t.recip() - 1.0)).recip() * shift
}

/// Value `step` of `steps` + 1 from 1 to 0, counted from the nearer end as `torch.linspace` does.
fn linear(step: usize, steps: usize) -> f32 {
    let size = 1.0 / steps as f32;
    if step < steps.div_ceil(2) { 1.0 - size * step as f32 } else { size * (steps - step) as f32 }
}

fn linear_quadratic(steps: usize) -> Vec<f32> {
    if steps == 1 {
        return vec![1.0, 0.0];
    }
    let threshold = 0.025;
    let slow = (steps / 2) as f64;
    let (all, fast) = (steps as f64, (steps - steps / 2) as f64);
    let difference = slow - threshold * all;
    let square = difference / (slow * fast * fast);
    let slope = threshold / slow - 2.0 * difference / (fast * fast);
    let falling = |step: f64| {
        if step < slow {
            step * threshold / slow
        } else {
            square * step * step + slope * step + square * slow * slow
        }
    };
    (0..steps).map(|step| (1.0 - falling(step as f64)) as f32).chain([0.0]).collect()
}

fn beta(steps: usize) -> Vec<f32> {
    const POINTS: usize = 10_000;
    let shift = 2.37f64.exp() as f32;
    let mut sigmas: Vec<f32> = Vec::with_capacity(steps + 1);
    let mut last = None;
    for step in 0..steps {
        let quantile = match 1.0 - step as f64 * (1.0 / steps as f64) {
            1.0 => 1.0,
            // The median of a symmetric distribution, whose last digit decides a tie below.
            0.5 => 0.5,
            share => statrs::function::beta::inv_beta_reg(0.6, 0.6, share),
        };
        let point = (quantile * (POINTS - 1) as f64).round_ties_even() as usize;
        if last.replace(point) != Some(point) {
            sigmas.push(shifted(shift, (point + 1) as f32 / POINTS as f32));
        }
    }
    sigmas.push(0.0);
    sigmas
}

/// A table of sigmas that ends at 0, read at `steps` + 1 evenly spaced places between its first and last value, linearly
/// between entries. The table's own step count gives the table itself.
pub fn resample(table: &[f32], steps: usize) -> Vec<f32> {
    let last = table.len().saturating_sub(1);
    let at = |step: usize| {
        let (index, rest) = (step * last / steps, step * last % steps);
        let share = rest as f32 / steps as f32;
        match (table.get(index), table.get(index + 1)) {
            (Some(here), Some(next)) => here + (next - here) * share,
            (here, _) => here.copied().unwrap_or(0.0),
        }
    };
    (0..=steps).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_falls_from_about_one_to_zero() {
        for schedule in Schedule::ALL {
            for steps in 1..=64 {
                for tokens in [1, 18, DEFAULT_TOKENS, 24_576] {
                    let sigmas = schedule.sigmas(steps, tokens).unwrap();
                    let name = schedule.name();
                    assert_eq!(sigmas.last(), Some(&0.0), "{name} {steps}");
                    assert_eq!(sigmas.len(), steps + 1, "{name} {steps}");
                    assert!(sigmas.is_sorted_by(|a, b| a > b), "{name} {steps} {tokens}: {sigmas:?}");
                    let start = match schedule {
                        Schedule::DistilledStage2 => 0.909375,
                        Schedule::Ltx2 if steps == 1 => 0.1,
                        _ => 1.0,
                    };
                    assert!((sigmas[0] - start).abs() < 1e-6, "{name} {steps}: {}", sigmas[0]);
                }
            }
        }
    }

    #[test]
    fn ltx2_ends_at_a_tenth_before_zero_and_more_tokens_mean_more_noise() {
        let few = Schedule::Ltx2.sigmas(9, 1000).unwrap();
        let many = Schedule::Ltx2.sigmas(9, 9000).unwrap();
        assert!((few[8] - 0.1).abs() < 1e-6 && (many[8] - 0.1).abs() < 1e-6);
        assert!(few.iter().zip(&many).skip(1).take(7).all(|(few, many)| many > few));
    }

    #[test]
    fn a_table_keeps_its_own_step_count_and_bends_to_others() {
        assert_eq!(resample(&DISTILLED, 8), DISTILLED);
        assert_eq!(resample(&DISTILLED_STAGE_2, 3), DISTILLED_STAGE_2);
        assert_eq!(resample(&DISTILLED, 4), [1.0, 0.9875, 0.975, 0.725, 0.0]);
        assert_eq!(resample(&DISTILLED, 1), [1.0, 0.0]);
        assert_eq!(resample(&[1.0, 0.5, 0.0], 4), [1.0, 0.75, 0.5, 0.25, 0.0]);
    }

    #[test]
    fn absurd_step_counts_are_refused() {
        assert!(Schedule::Beta.sigmas(0, 1).is_err());
        assert!(Schedule::Ltx2.sigmas(1_000_000, 1).is_err());
        assert!("euler".parse::<Schedule>().unwrap_err().remedy().unwrap().contains("linear_quadratic"));
    }
}
