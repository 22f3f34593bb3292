//! Guidance: what further passes through the network a step needs, and how their answers steer the first one's.
//!
//! Formulas: `MultiModalGuider` of Lightricks' ltx-core and `_guided_denoise` of ltx-pipelines.

use mlx::{Array, Result};

use super::Both;

/// How strongly one modality is guided. [`Guidance::OFF`] costs nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// Classifier-free: away from the negative prompt. 1 is off.
    pub cfg: f32,
    /// Spatio-temporal: away from what the network says with some self-attention skipped. 0 is off.
    pub stg: f32,
    /// The blocks whose self-attention is skipped for it.
    pub stg_blocks: Vec<usize>,
    /// How much of the spread that guidance added is taken back, from 0 to 1.
    pub rescale: f32,
    /// Away from what the network says when it cannot hear or see the other modality. 1 is off.
    pub modality: f32,
    /// After each computed step, so many reuse its answer. The network runs all the same when the other modality does not
    /// skip: that one hears this one as it is.
    pub skip: usize,
}

impl Guidance {
    /// None at all.
    pub const OFF: Self =
        Self { cfg: 1.0, stg: 0.0, stg_blocks: Vec::new(), rescale: 0.0, modality: 1.0, skip: 0 };

    /// Whether the step (from 0) reuses an earlier answer.
    pub fn skips(&self, step: usize) -> bool {
        !step.is_multiple_of(self.skip.saturating_add(1))
    }

    /// The guided answer, of the shape and dtype of `answers.positive`. An answer whose scale is off is not used.
    pub fn apply(&self, answers: &Answers) -> Result<Array> {
        let positive = &answers.positive;
        let steps = [
            (self.cfg - 1.0, &answers.negative),
            (self.stg, &answers.perturbed),
            (self.modality - 1.0, &answers.isolated),
        ];
        let mut guided = positive.clone();
        for (scale, answer) in steps {
            if let (true, Some(answer)) = (scale != 0.0, answer) {
                guided = guided.add(positive.subtract(answer)?.multiply(scale)?)?;
            }
        }
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let factor = deviation(positive)?.divide(deviation(&guided)?)?;
        guided.multiply(factor.multiply(self.rescale)?.add(1.0 - self.rescale)?)
    }
}

impl Default for Guidance {
    fn default() -> Self {
        Self::OFF
    }
}

/// The unbiased standard deviation of all values, the batch included.
fn deviation(x: &Array) -> Result<Array> {
    x.reshape(&[-1])?.variance(&[0], false, 1)?.sqrt()
}

/// What the passes of one step answered for one modality, as clean samples (batch, tokens, channels), f32.
#[derive(Clone, Debug)]
pub struct Answers {
    /// With the prompt.
    pub positive: Array,
    /// With the negative prompt.
    pub negative: Option<Array>,
    /// With some self-attention skipped.
    pub perturbed: Option<Array>,
    /// Without the exchange between the modalities.
    pub isolated: Option<Array>,
}

/// One pass through the network. Both modalities take part in every pass, whichever asked for it: each hears the other
/// as it is in that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// With the prompt.
    Positive,
    /// With the negative prompt.
    Negative,
    /// With the prompt, skipping self-attention in these blocks.
    Perturbed {
        /// Blocks whose video self-attention is skipped.
        video: Vec<usize>,
        /// Blocks whose audio self-attention is skipped.
        audio: Vec<usize>,
    },
    /// With the prompt, and no attention from one modality to the other.
    Isolated,
}

/// The passes that one step needs: the positive one first, and each other one if any modality asks for it.
pub fn passes(guidance: &Both<&Guidance>) -> Vec<Pass> {
    let any = |asks: fn(&Guidance) -> bool| guidance.iter().any(|(_, guidance)| asks(guidance));
    let blocks = |guidance: Option<&Guidance>| match guidance {
        Some(guidance) if guidance.stg != 0.0 => guidance.stg_blocks.clone(),
        _ => Vec::new(),
    };
    let mut passes = vec![Pass::Positive];
    if any(|guidance| guidance.cfg != 1.0) {
        passes.push(Pass::Negative);
    }
    if any(|guidance| guidance.stg != 0.0) {
        passes.push(Pass::Perturbed { video: blocks(guidance.video), audio: blocks(guidance.audio) });
    }
    if any(|guidance| guidance.modality != 1.0) {
        passes.push(Pass::Isolated);
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    fn answers() -> Answers {
        let mut noise = Noise::new(5);
        let mut draw = || noise.normal(&[2, 3, 5]).unwrap();
        Answers { positive: draw(), negative: Some(draw()), perturbed: Some(draw()), isolated: Some(draw()) }
    }

    #[test]
    fn all_scales_off_is_the_positive_answer() {
        let answers = answers();
        let guided = Guidance::OFF.apply(&answers).unwrap();
        assert_eq!(guided.to_f32().unwrap(), answers.positive.to_f32().unwrap());
        assert_eq!(
            passes(&Both { video: Some(&Guidance::OFF), audio: Some(&Guidance::OFF) }),
            [Pass::Positive]
        );
        // Nothing to take back: rescaling by itself changes nothing.
        let rescaled = Guidance { rescale: 0.7, ..Guidance::OFF }.apply(&answers).unwrap();
        let worst =
            rescaled.subtract(&answers.positive).unwrap().abs().unwrap().max(&[0, 1, 2], false).unwrap();
        assert!(worst.item().unwrap() < 1e-6);
    }

    #[test]
    fn scales_add_up_and_rescaling_restores_the_spread() {
        let answers = answers();
        let values = |array: &Array| array.to_f32().unwrap();
        let guidance = Guidance { cfg: 3.0, stg: 0.5, modality: 2.0, ..Guidance::OFF };
        let guided = values(&guidance.apply(&answers).unwrap());
        let [p, n, s, i] = [
            values(&answers.positive),
            values(answers.negative.as_ref().unwrap()),
            values(answers.perturbed.as_ref().unwrap()),
            values(answers.isolated.as_ref().unwrap()),
        ];
        for (at, guided) in guided.iter().enumerate() {
            let expected = p[at] + 2.0 * (p[at] - n[at]) + 0.5 * (p[at] - s[at]) + (p[at] - i[at]);
            assert!((guided - expected).abs() < 1e-5);
        }
        let spread = |values: &[f32]| {
            let count = values.len() as f32;
            let mean = values.iter().sum::<f32>() / count;
            (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / (count - 1.0)).sqrt()
        };
        let whole = values(&Guidance { rescale: 1.0, ..guidance.clone() }.apply(&answers).unwrap());
        assert!((spread(&whole) - spread(&p)).abs() < 1e-5);
        let half = values(&Guidance { rescale: 0.5, ..guidance }.apply(&answers).unwrap());
        assert!((spread(&half) - (spread(&p) + spread(&guided)) / 2.0).abs() < 1e-5);
    }

    #[test]
    fn one_modality_asking_is_enough() {
        let video = Guidance { stg: 1.0, stg_blocks: vec![3], ..Guidance::OFF };
        let audio = Guidance { modality: 2.0, stg_blocks: vec![9], ..Guidance::OFF };
        let perturbed = Pass::Perturbed { video: vec![3], audio: Vec::new() };
        assert_eq!(
            passes(&Both { video: Some(&video), audio: Some(&audio) }),
            [Pass::Positive, perturbed, Pass::Isolated]
        );
        let cfg = Guidance { cfg: 4.0, ..Guidance::OFF };
        assert_eq!(passes(&Both { video: None, audio: Some(&cfg) }), [Pass::Positive, Pass::Negative]);
    }

    #[test]
    fn skipping_computes_every_nth_step() {
        let guidance = Guidance { skip: 2, ..Guidance::OFF };
        let skipped: Vec<bool> = (0..7).map(|step| guidance.skips(step)).collect();
        assert_eq!(skipped, [false, true, true, false, true, true, false]);
        assert!(!Guidance::OFF.skips(1));
    }
}
