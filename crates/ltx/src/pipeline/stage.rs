//! One denoising stage: the transformer, its text and its noise in the loop of `diffusion`.

use mlx::Dtype;

use super::conditioning::{AUDIO_BINS, NoiseSource, Shapes, Text};
use super::images::Condition;
use super::prompted::Prompted;
use super::saved::{Place, SavedRun};
use super::window_tail::Given;
use crate::diffusion::Both;
use crate::diffusion::conditioning::LatentState;
use crate::diffusion::denoise::{Denoise, Moment};
use crate::diffusion::guidance::Guidance;
use crate::diffusion::patchify::{audio_latent, audio_tokens, video_latent, video_tokens};
use crate::diffusion::step::{Sampler, SeededStepNoise};
use crate::dit::Dit;
use crate::error::{Error, Result};
use crate::pipeline::Latents;
use crate::progress::{Event, Progress};

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
    /// Pictures that the video shows.
    pub images: &'a [Condition],
    /// What is there of it already, when it goes on with a clip.
    pub given: Option<&'a Given>,
}

/// Where a stage's steps are kept.
#[derive(Clone, Copy)]
pub struct Keeper<'a> {
    pub saved: Option<&'a SavedRun>,
    /// The stage in its run.
    pub place: &'a Place,
}

impl Keeper<'_> {
    fn keep(self, moment: Moment, of: usize, noise: u64, progress: &mut dyn Progress) {
        let Some(saved) = self.saved else { return };
        let words = format!("{}: {} of {of} steps", self.place.words, moment.steps);
        saved.keep_step(Place { words, noise, moment: Some(moment), ..self.place.clone() }, progress);
    }
}

impl Stage<'_> {
    /// Runs the stage, from a moment on if it is given one, and gives its normalized latents in f32.
    pub fn run(
        &self,
        dit: &Dit,
        text: &Text,
        noise: &mut NoiseSource,
        from: Option<Moment>,
        keeper: Keeper,
        progress: &mut dyn Progress,
    ) -> Result<Latents> {
        let mut states = self.states()?;
        let first = self.sigmas.first().copied().unwrap_or(1.0);
        // Only a stage that begins from latents keeps a share of them; from nothing, noise is all there is.
        let share = if self.from.is_some() { first } else { 1.0 };
        if from.is_none() {
            states = states.try_map(|modality, state| {
                let drawn = noise.draw(&self.shapes, modality, state.noise_shape())?;
                state.clone().noised(&drawn, share)
            })?;
        }
        let drawn = noise.drawn();
        let mut denoiser = Prompted::new(dit, text);
        let seeded = SeededStepNoise::new(self.sampler, self.seed.wrapping_add(STEP_NOISE_SEED));
        let mut step_noise = noise.of_steps(&self.shapes, seeded);
        let denoise = Denoise { sampler: self.sampler, sigmas: self.sigmas, guidance: self.guidance.clone() };
        let states = denoise.go_on(states, from, &mut denoiser, &mut step_noise, &mut |moment, of| {
            let done = moment.steps;
            keeper.keep(moment, of, drawn, progress);
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
        for image in self.images {
            video = image.apply(video, &self.shapes, self.frame_rate)?;
        }
        if let Some(given) = self.given {
            video = video.with_frames(&given.video, self.shapes.video, 0, 1.0)?;
            let known = |state: LatentState| match &given.audio {
                Some(tokens) => state.with_tokens(tokens, 0, 1.0),
                None => Ok(state),
            };
            audio = audio.map(known).transpose()?;
        }
        Ok(Both { video: Some(video), audio })
    }
}
