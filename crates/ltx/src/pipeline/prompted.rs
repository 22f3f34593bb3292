//! The transformer with its text, as the loop of `diffusion` asks it: which passes run together, and what they share.

use std::collections::BTreeMap;

use mlx::Array;

use super::conditioning::Text;
use crate::diffusion::Both;
use crate::diffusion::denoise::{Denoiser, Input};
use crate::diffusion::guidance::Pass;
use crate::dit::{self, Conditions, Dit, Perturbation, Prepared};
use crate::error::{Error, Result};
use crate::shape::Modality;
use crate::text::Contexts;

/// Passes run as one batch up to so many tokens: enough to keep any GPU busy while weights are read once for all of them,
/// and activations stay small beside the weights. More tokens than this fill it by themselves.
pub(super) const BATCH_TOKENS: usize = 4096;

/// The transformer with its text. What does not change from step to step is prepared when it is first needed.
pub struct Prompted<'a> {
    dit: &'a Dit,
    text: &'a Text,
    /// By the passes of a batch: whether each has the negative prompt.
    prepared: BTreeMap<Vec<bool>, Both<Prepared>>,
}

impl<'a> Prompted<'a> {
    pub fn new(dit: &'a Dit, text: &'a Text) -> Self {
        Self { dit, text, prepared: BTreeMap::new() }
    }

    fn contexts(&self, negative: bool) -> Result<&'a Contexts> {
        if !negative {
            return Ok(&self.text.positive);
        }
        let contexts = self.text.negative.as_ref();
        contexts.ok_or_else(|| Error::request("guidance needs a negative prompt", "give one, or --cfg 1"))
    }

    /// How many passes fit in one batch.
    fn batch(&self, passes: &[Pass], inputs: &Both<Input>) -> Result<usize> {
        let tokens = inputs.iter().map(|(_, input)| input.latent.dim(1).max(1) as usize).max().unwrap_or(1);
        if passes.contains(&Pass::Negative) {
            let (positive, negative) = (self.contexts(false)?, self.contexts(true)?);
            let shapes = |contexts: &Contexts| {
                let audio = contexts.audio.as_ref().map(|audio| audio.shape().to_vec());
                (contexts.video.shape().to_vec(), audio)
            };
            if shapes(positive) != shapes(negative) {
                return Ok(1);
            }
        }
        Ok((BATCH_TOKENS / tokens).max(1))
    }

    fn prepare(&self, negative: &[bool], inputs: &Both<Input>) -> Result<Both<Prepared>> {
        let all = negative.iter().map(|&negative| self.contexts(negative)).collect::<Result<Vec<_>>>()?;
        inputs.try_map(|modality, input| {
            let contexts = all.iter().map(|contexts| match modality {
                Modality::Video => Some(&contexts.video),
                Modality::Audio => contexts.audio.as_ref(),
            });
            let contexts = contexts.collect::<Option<Vec<_>>>().ok_or_else(|| {
                Error::request(
                    format!("no {} context", modality.name()),
                    "use an embedding with both contexts, or --no-audio",
                )
            })?;
            let conditions = Conditions {
                positions: input.positions,
                context: &mlx::concatenate(&contexts, 0)?, // (passes, text tokens, width)
                attention_mask: input.attention_mask,
                keyframes_mask: input.keyframes,
            };
            self.dit.prepare(modality, &conditions)
        })
    }
}

/// Latent, timesteps and sigma, repeated for `count` passes: (passes, ..)
fn repeated(inputs: &Both<Input>, count: usize) -> Result<Both<[Array; 3]>> {
    inputs.try_map(|_, input| {
        let all = |x: &Array| x.tile(&[vec![count as i32], vec![1; x.rank().saturating_sub(1)]].concat());
        Ok([all(input.latent)?, all(&input.timesteps)?, all(&input.sigma)?])
    })
}

impl Denoiser for Prompted<'_> {
    fn velocities(&mut self, passes: &[Pass], inputs: &Both<Input>) -> Result<Vec<Both<Array>>> {
        let batch = self.batch(passes, inputs)?;
        let mut batches = Vec::new();
        for passes in passes.chunks(batch) {
            let negative: Vec<bool> = passes.iter().map(|pass| *pass == Pass::Negative).collect();
            if !self.prepared.contains_key(&negative) {
                let prepared = self.prepare(&negative, inputs)?;
                self.prepared.insert(negative.clone(), prepared);
            }
            batches.push((passes, negative, repeated(inputs, passes.len())?));
        }
        let asked: Vec<dit::Pass> = batches
            .iter()
            .map(|(passes, negative, repeated)| {
                let given = |modality: Modality| {
                    let [latent, timesteps, sigma] = repeated.get(modality)?;
                    let prepared = self.prepared.get(negative)?.get(modality)?;
                    Some(dit::Input { latent, timesteps, sigma, prepared })
                };
                let perturbations = passes.iter().map(perturbation).collect();
                dit::Pass { video: given(Modality::Video), audio: given(Modality::Audio), perturbations }
            })
            .collect();
        let mut answers = Vec::new();
        for ((video, audio), (passes, ..)) in self.dit.forward_all(&asked)?.into_iter().zip(&batches) {
            for pass in 0..passes.len() as i32 {
                let own = |answers: &Option<Array>| {
                    answers.as_ref().map(|answers| answers.slice(0, pass..pass + 1)).transpose()
                };
                answers.push(Both { video: own(&video)?, audio: own(&audio)? });
            }
        }
        Ok(answers)
    }
}

fn perturbation(pass: &Pass) -> Perturbation {
    match pass {
        Pass::Positive | Pass::Negative => Perturbation::default(),
        Pass::Perturbed { video, audio } => Perturbation {
            skip_video_self_attention: video.clone(),
            skip_audio_self_attention: audio.clone(),
            skip_cross_modal: false,
        },
        Pass::Isolated => Perturbation { skip_cross_modal: true, ..Perturbation::default() },
    }
}
