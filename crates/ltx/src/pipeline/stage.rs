//! One denoising stage: the transformer, its text and its noise in the loop of `diffusion`.

use mlx::{Array, Dtype};

use super::conditioning::{AUDIO_BINS, NoiseSource, Shapes, Text};
use crate::diffusion::Both;
use crate::diffusion::conditioning::LatentState;
use crate::diffusion::denoise::{Denoise, Denoiser, Input};
use crate::diffusion::guidance::{Guidance, Pass};
use crate::diffusion::patchify::{audio_latent, audio_tokens, video_latent, video_tokens};
use crate::diffusion::step::{Sampler, SeededStepNoise};
use crate::dit::{self, Conditions, Dit, Perturbation, Prepared};
use crate::error::{Error, Result};
use crate::pipeline::Latents;
use crate::progress::{Event, Progress};
use crate::shape::Modality;
use crate::text::Contexts;
use crate::trace::Trace;

/// Added to the seed for the noise of stochastic samplers, as the official pipelines do.
const STEP_NOISE_SEED: u64 = 10_000;

/// What distinguishes one stage from another.
pub struct Stage<'a> {
    pub shapes: Shapes,
    pub frame_rate: f64,
    pub sampler: Sampler,
    pub sigmas: &'a [f32],
    pub guidance: Both<Guidance>,
    pub seed: u64,
    /// Normalized latents to begin from, noised to the first sigma; `None` begins from noise alone.
    pub from: Option<&'a Latents>,
}

impl Stage<'_> {
    /// Runs the stage and gives its normalized latents in f32.
    pub fn run(
        &self,
        dit: &Dit,
        text: &Text,
        noise: &mut NoiseSource,
        progress: &mut dyn Progress,
    ) -> Result<Latents> {
        let states = self.states()?;
        let first = self.sigmas.first().copied().unwrap_or(1.0);
        // Only a stage that begins from latents keeps a share of them; from nothing, noise is all there is.
        let share = if self.from.is_some() { first } else { 1.0 };
        let states = states.try_map(|modality, state| {
            let drawn = noise.draw(&self.shapes, modality, state.noise_shape())?;
            state.clone().noised(&drawn, share)
        })?;
        let mut denoiser = Prompted::new(dit, text);
        let mut step_noise = SeededStepNoise::new(self.sampler, self.seed.wrapping_add(STEP_NOISE_SEED));
        let denoise = Denoise { sampler: self.sampler, sigmas: self.sigmas, guidance: self.guidance.clone() };
        let states = denoise.run(states, &mut denoiser, &mut step_noise, &mut |done, of| {
            progress.event(Event::Step { done, of })
        })?;
        let video = states.video.ok_or_else(|| Error::request("a stage without video", "ask for a video"))?;
        let video = video_latent(&video.result(self.shapes.video.tokens())?, self.shapes.video)?; // (1, channels, frames, height, width)
        let audio = states
            .audio
            .map(|state| audio_latent(&state.latent, self.shapes.audio_channels / AUDIO_BINS))
            .transpose()?;
        mlx::eval([Some(&video), audio.as_ref()].into_iter().flatten())?;
        Ok(Latents { video, audio })
    }

    fn states(&self) -> Result<Both<LatentState>> {
        let Shapes { video, video_channels, audio, audio_channels, .. } = self.shapes;
        let mut video = LatentState::video(video, video_channels as usize, self.frame_rate)?;
        let mut audio = audio.map(|audio| LatentState::audio(audio, audio_channels as usize)).transpose()?;
        if let Some(latents) = self.from {
            video = video.starting_from(&video_tokens(&latents.video.astype(Dtype::F32)?)?)?;
            audio = match (audio, &latents.audio) {
                (Some(state), Some(latent)) => {
                    Some(state.starting_from(&audio_tokens(&latent.astype(Dtype::F32)?)?)?)
                }
                (None, _) => None,
                (Some(_), None) => {
                    return Err(Error::request("latents without sound", "begin from latents with sound"));
                }
            };
        }
        Ok(Both { video: Some(video), audio })
    }
}

/// The transformer with its text. What does not change from step to step is prepared at the first.
pub struct Prompted<'a> {
    dit: &'a Dit,
    text: &'a Text,
    positive: Option<Both<Prepared>>,
    negative: Option<Both<Prepared>>,
}

impl<'a> Prompted<'a> {
    pub fn new(dit: &'a Dit, text: &'a Text) -> Self {
        Self { dit, text, positive: None, negative: None }
    }

    fn prepare(&self, contexts: &Contexts, inputs: &Both<Input>) -> Result<Both<Prepared>> {
        inputs.try_map(|modality, input| {
            let context = match modality {
                Modality::Video => Some(&contexts.video),
                Modality::Audio => contexts.audio.as_ref(),
            };
            let context = context.ok_or_else(|| {
                Error::request(
                    format!("no {} context", modality.name()),
                    "use an embedding with both contexts, or --no-audio",
                )
            })?;
            let conditions = Conditions {
                positions: input.positions,
                context,
                attention_mask: input.attention_mask,
                keyframes_mask: input.keyframes,
            };
            self.dit.prepare(modality, &conditions)
        })
    }
}

impl Denoiser for Prompted<'_> {
    fn velocities(&mut self, passes: &[Pass], inputs: &Both<Input>) -> Result<Vec<Both<Array>>> {
        if self.positive.is_none() {
            self.positive = Some(self.prepare(&self.text.positive, inputs)?);
        }
        if passes.contains(&Pass::Negative) && self.negative.is_none() {
            let contexts = self.text.negative.as_ref();
            let contexts = contexts
                .ok_or_else(|| Error::request("guidance needs a negative prompt", "give one, or --cfg 1"))?;
            self.negative = Some(self.prepare(contexts, inputs)?);
        }
        let mut answers = Vec::new();
        // One by one: at full size a batch of passes would not fit beside the weights.
        for pass in passes {
            let prepared = if *pass == Pass::Negative { &self.negative } else { &self.positive };
            let perturbation = match pass {
                Pass::Positive | Pass::Negative => Perturbation::default(),
                Pass::Perturbed { video, audio } => Perturbation {
                    skip_video_self_attention: video.clone(),
                    skip_audio_self_attention: audio.clone(),
                    skip_cross_modal: false,
                },
                Pass::Isolated => Perturbation { skip_cross_modal: true, ..Perturbation::default() },
            };
            let given = |modality: Modality| {
                let (input, prepared) = (inputs.get(modality)?, prepared.as_ref()?.get(modality)?);
                Some(dit::Input {
                    latent: input.latent,
                    timesteps: &input.timesteps,
                    sigma: &input.sigma,
                    prepared,
                })
            };
            let (video, audio) = (given(Modality::Video), given(Modality::Audio));
            let (video, audio) =
                self.dit.forward(video.as_ref(), audio.as_ref(), &[perturbation], &mut Trace::off())?;
            answers.push(Both { video, audio });
        }
        Ok(answers)
    }
}
