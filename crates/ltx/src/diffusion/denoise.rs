//! The loop: noise in, clean latents out.
//!
//! The network is the caller's: the loop says which passes it wants and what the tokens are, and turns the answers into
//! the next state. Formulas: the denoising loops in `samplers.py` and `denoisers.py` of Lightricks' ltx-pipelines.

use std::ops::ControlFlow;

use mlx::{Array, Dtype};

use super::Both;
use super::conditioning::LatentState;
use super::guidance::{Answers, Guidance, Pass, passes};
use super::step::{self, Draw, Res2s, Sampler, StepNoise};
use crate::error::{Error, Result};
use crate::shape::Modality;

/// What the network is told of one modality; the text is the caller's.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// f32 (batch, tokens, channels)
    pub latent: &'a Array,
    /// The sigma of each token, f32 (batch, tokens).
    pub timesteps: Array,
    /// The sigma of the modality, f32 (batch).
    pub sigma: Array,
    /// Bounds of each token, f32 (batch, axes, tokens, 2).
    pub positions: &'a Array,
    /// How far tokens may attend to each other, from 0 to 1 (batch, tokens, tokens).
    pub attention_mask: Option<&'a Array>,
    /// Above 0 for tokens that hold a single picture (batch, tokens).
    pub keyframes: Option<&'a Array>,
}

/// The network and its text.
pub trait Denoiser {
    /// The velocity of each modality (batch, tokens, channels) in each pass: as many answers as passes, in their order.
    /// It may run them one by one or as one batch, and returns [`Error::Cancelled`] to stop within a step.
    fn velocities(&mut self, passes: &[Pass], inputs: &Both<Input>) -> Result<Vec<Both<Array>>>;
}

impl<F: FnMut(&[Pass], &Both<Input>) -> Result<Vec<Both<Array>>>> Denoiser for F {
    fn velocities(&mut self, passes: &[Pass], inputs: &Both<Input>) -> Result<Vec<Both<Array>>> {
        self(passes, inputs)
    }
}

/// How to denoise.
#[derive(Clone, Debug)]
pub struct Denoise<'a> {
    /// From one noise level to the next.
    pub sampler: Sampler,
    /// The noise levels, falling; the first is that of the states to begin with.
    pub sigmas: &'a [f32],
    /// Guidance; absent is off. A frozen modality has nothing to guide.
    pub guidance: Both<Guidance>,
}

/// Where a run stands after a step: everything that the rest of it depends on, beside the states that it began with.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Steps done.
    pub steps: usize,
    /// f32 (batch, tokens, channels)
    pub latents: Both<Array>,
    /// The last guided answers, where a later step may do without asking the network. f32 (batch, tokens, channels)
    pub answers: Both<Array>,
    /// The last velocities, of a sampler that looks back. f32 (batch, tokens, channels)
    pub velocities: Both<Array>,
    /// How much noise was drawn: [`StepNoise::drawn`].
    pub noise: [u64; 4],
}

impl Moment {
    /// Whether it can be one of a run of so many steps that began with `states`.
    fn fits(&self, states: &Both<LatentState>, steps: usize) -> bool {
        let same = |modality| {
            let shape = states.get(modality).map(|state| state.latent.shape());
            let memory = [&self.answers, &self.velocities].map(|memory| memory.get(modality));
            self.latents.get(modality).map(Array::shape) == shape
                && memory.into_iter().flatten().all(|memory| Some(memory.shape()) == shape)
        };
        self.steps <= steps && same(Modality::Video) && same(Modality::Audio)
    }
}

impl Denoise<'_> {
    /// Denoises `states`, which are at the first sigma, to the last. `progress` hears (steps done, steps in all) after every
    /// step and can stop the run.
    ///
    /// Fails with [`Error::NotFinite`] when a latent stops being a number, and with [`Error::Cancelled`].
    pub fn run(
        &self,
        states: Both<LatentState>,
        denoiser: &mut dyn Denoiser,
        noise: &mut dyn StepNoise,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Both<LatentState>> {
        self.go_on(states, None, denoiser, noise, &mut |moment, steps| progress(moment.steps, steps))
    }

    /// The same from a moment of an earlier run on, to the same end: `states` are those that it began with, whose latents
    /// no longer matter. `after` gets the moment after every step, and how many there are in all.
    pub fn go_on(
        &self,
        states: Both<LatentState>,
        from: Option<Moment>,
        denoiser: &mut dyn Denoiser,
        noise: &mut dyn StepNoise,
        after: &mut dyn FnMut(Moment, usize) -> ControlFlow<()>,
    ) -> Result<Both<LatentState>> {
        self.check()?;
        let steps = self.sigmas.len() - 1;
        let mut run = Run { guidance: &self.guidance, denoiser, noise, answered: Both::default() };
        let mut states = states;
        let mut velocities = Both::default();
        let mut done = 0;
        if let Some(moment) = from {
            if !moment.fits(&states, steps) {
                return Err(Error::request("the moment to go on from is another run's", "begin anew"));
            }
            states = states.try_map(|modality, state| {
                Ok::<_, Error>(LatentState { latent: moment.latents.of(modality)?.clone(), ..state.clone() })
            })?;
            run.noise.go_to(moment.noise);
            (done, run.answered, velocities) = (moment.steps, moment.answers, moment.velocities);
        }
        let may_skip = self.guidance.iter().any(|(_, guidance)| guidance.skip > 0);
        for step in done..steps {
            let level = (self.sigmas[step], self.sigmas[step + 1]);
            states = match self.sampler {
                Sampler::Euler => run.euler(&states, step, level)?,
                Sampler::EulerAncestral { eta, s_noise } => {
                    run.ancestral(&states, step, level, (eta, s_noise))?
                }
                Sampler::GradientEstimation { gamma } => {
                    run.gradient(&states, step, level, gamma, &mut velocities)?
                }
                Sampler::Res2s { eta, bong } => run.res_2s(&states, step, level, eta, bong)?,
            };
            finite(&states, step)?;
            let moment = Moment {
                steps: step + 1,
                latents: states.try_map(|_, state| Ok::<_, Error>(state.latent.clone()))?,
                answers: if may_skip { run.answered.clone() } else { Both::default() },
                velocities: velocities.clone(),
                noise: run.noise.drawn(),
            };
            if after(moment, steps).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(states)
    }

    fn check(&self) -> Result<()> {
        let sigmas = self.sigmas;
        let falls = sigmas.is_sorted_by(|a, b| a > b);
        let inside = sigmas.iter().all(|sigma| (0.0..=1.0).contains(sigma));
        if sigmas.len() < 2 || !falls || !inside {
            return Err(Error::request(
                format!("the sigmas {sigmas:?} do not fall from at most 1 to at least 0"),
                "use a schedule, or give falling values such as 1, 0.75, 0.4, 0",
            ));
        }
        let last = sigmas[sigmas.len() - 2];
        if matches!(self.sampler, Sampler::Res2s { .. }) && last <= Res2s::LAST_SIGMA {
            return Err(Error::request(
                format!("res_2s cannot begin a step at a sigma of {last}"),
                "use fewer steps, or another sampler",
            ));
        }
        Ok(())
    }
}

/// A run under way.
struct Run<'a> {
    guidance: &'a Both<Guidance>,
    denoiser: &'a mut dyn Denoiser,
    noise: &'a mut dyn StepNoise,
    /// The last guided answers, for steps that skip the network.
    answered: Both<Array>,
}

impl Run<'_> {
    fn euler(
        &mut self,
        states: &Both<LatentState>,
        step: usize,
        (sigma, next): (f32, f32),
    ) -> Result<Both<LatentState>> {
        let clean = self.estimate(states, step, sigma)?;
        advance(states, |modality, state| Ok(step::euler(&state.latent, clean.of(modality)?, sigma, next)?))
    }

    fn ancestral(
        &mut self,
        states: &Both<LatentState>,
        step: usize,
        (sigma, next): (f32, f32),
        (eta, s_noise): (f64, f64),
    ) -> Result<Both<LatentState>> {
        let clean = self.estimate(states, step, sigma)?;
        advance(states, |modality, state| {
            let clean = clean.of(modality)?;
            if next == 0.0 {
                return Ok(clean.clone());
            }
            if eta == 0.0 {
                return Ok(step::euler(&state.latent, clean, sigma, next)?);
            }
            let noise = self.noise.draw(modality, Draw::Step, state.latent.shape())?;
            let x = step::euler_ancestral(&state.latent, clean, &noise, (sigma, next), (eta, s_noise))?;
            Ok(state.blend(&x)?)
        })
    }

    fn gradient(
        &mut self,
        states: &Both<LatentState>,
        step: usize,
        (sigma, next): (f32, f32),
        gamma: f64,
        velocities: &mut Both<Array>,
    ) -> Result<Both<LatentState>> {
        let clean = self.estimate(states, step, sigma)?;
        let before = std::mem::take(velocities);
        advance(states, |modality, state| {
            let (x, clean) = (&state.latent, clean.of(modality)?);
            if next == 0.0 {
                return Ok(clean.clone());
            }
            let velocity = step::velocity(x, clean, sigma)?;
            let moved = match before.get(modality) {
                None => step::euler(x, clean, sigma, next)?,
                Some(before) => {
                    step::euler(x, &step::corrected(x, &velocity, before, sigma, gamma)?, sigma, next)?
                }
            };
            velocities.set(modality, velocity);
            Ok(moved)
        })
    }

    fn res_2s(
        &mut self,
        states: &Both<LatentState>,
        step: usize,
        (sigma, next): (f32, f32),
        eta: f64,
        bong: bool,
    ) -> Result<Both<LatentState>> {
        let last = next == 0.0;
        let method = Res2s::new(sigma, if last { Res2s::LAST_SIGMA } else { next });
        let clean = self.estimate(states, step, sigma)?.try_map(|_, clean| step::wide(clean))?;
        let mut anchors = states.try_map(|_, state| step::wide(&state.latent))?;
        let middle = advance(states, |modality, state| {
            let noise = step::wide(&self.noise.draw(modality, Draw::Substep, state.latent.shape())?)?;
            let anchor = anchors.of(modality)?;
            let midpoint = blend_wide(state, method.midpoint(anchor, clean.of(modality)?, &noise))?;
            if let Some(refined) = method.refined_anchor(&midpoint, clean.of(modality)?).filter(|_| bong) {
                anchors.set(modality, refined);
            }
            Ok(step::narrow(&midpoint, state.latent.shape())?)
        })?;
        // The official sampler counts the midpoint as a first step: guidance never skips it.
        let second = self
            .estimate(&middle, 0, method.midpoint_sigma() as f32)?
            .try_map(|_, clean| step::wide(clean))?;
        let states = advance(states, |modality, state| {
            let noise = step::wide(&self.noise.draw(modality, Draw::Step, state.latent.shape())?)?;
            let (anchor, first, second) = (anchors.of(modality)?, clean.of(modality)?, second.of(modality)?);
            let end = blend_wide(state, method.finish(anchor, first, second, &noise, eta))?;
            Ok(step::narrow(&end, state.latent.shape())?)
        })?;
        if !last {
            return Ok(states);
        }
        let clean = self.estimate(&states, step + 1, Res2s::LAST_SIGMA)?;
        advance(&states, |modality, _| Ok(clean.of(modality)?.clone()))
    }

    /// What the network, guided, takes the clean samples to be, with what is known put back.
    fn estimate(&mut self, states: &Both<LatentState>, step: usize, sigma: f32) -> Result<Both<Array>> {
        let off = Guidance::OFF;
        let guidance = states.try_map(|modality, state| {
            let guidance = self.guidance.get(modality).filter(|_| !state.frozen);
            Ok::<_, Error>(guidance.unwrap_or(&off))
        })?;
        let skips = |modality| {
            let live = states.get(modality).is_some_and(|state| !state.frozen);
            !live
                || guidance
                    .get(modality)
                    .is_some_and(|guidance| guidance.skips(step) && self.answered.get(modality).is_some())
        };
        let (video, audio) = (skips(Modality::Video), skips(Modality::Audio));
        if !(video && audio) {
            let answers = self.ask(states, sigma, &guidance)?;
            self.answered = Both {
                video: if video { self.answered.video.take() } else { answers.video },
                audio: if audio { self.answered.audio.take() } else { answers.audio },
            };
        }
        states.try_map(|modality, state| match self.answered.get(modality) {
            Some(answer) => Ok(state.blend(answer)?),
            None => Ok(state.latent.clone()),
        })
    }

    fn ask(
        &mut self,
        states: &Both<LatentState>,
        sigma: f32,
        guidance: &Both<&Guidance>,
    ) -> Result<Both<Array>> {
        let inputs = states.try_map(|_, state| {
            Ok::<_, Error>(Input {
                latent: &state.latent,
                timesteps: state.timesteps(sigma)?,
                sigma: state.sigma(sigma)?,
                positions: &state.positions,
                attention_mask: state.attention_mask.as_ref(),
                keyframes: state.keyframes.as_ref(),
            })
        })?;
        let passes = passes(guidance);
        let velocities = self.denoiser.velocities(&passes, &inputs)?;
        if velocities.len() != passes.len() {
            return Err(broken(format!("{} answers to {} passes", velocities.len(), passes.len())));
        }
        inputs.try_map(|modality, input| {
            let clean = |wanted: fn(&Pass) -> bool| {
                let found = passes.iter().zip(&velocities).find(|(pass, _)| wanted(pass));
                found.map(|(_, velocity)| {
                    let velocity = velocity.of(modality)?.astype(Dtype::F32)?;
                    Ok::<_, Error>(
                        input.latent.subtract(velocity.multiply(input.timesteps.expand_dims(&[-1])?)?)?,
                    )
                })
            };
            let positive =
                clean(|pass| *pass == Pass::Positive).unwrap_or_else(|| Err(broken("no positive pass")))?;
            let answers = Answers {
                positive,
                negative: clean(|pass| *pass == Pass::Negative).transpose()?,
                perturbed: clean(|pass| matches!(pass, Pass::Perturbed { .. })).transpose()?,
                isolated: clean(|pass| *pass == Pass::Isolated).transpose()?,
            };
            Ok(guidance.of(modality)?.apply(&answers)?)
        })
    }
}

impl<T> Both<T> {
    /// The one of a modality that takes part.
    fn of(&self, modality: Modality) -> Result<&T> {
        self.get(modality).ok_or_else(|| broken(format!("no {} among the answers", modality.name())))
    }

    fn set(&mut self, modality: Modality, value: T) {
        match modality {
            Modality::Video => self.video = Some(value),
            Modality::Audio => self.audio = Some(value),
        }
    }
}

fn broken(message: impl Into<String>) -> Error {
    Error::Compute(mlx::Error { operation: "denoise", message: message.into() })
}

/// The states with new latents; frozen ones as they are.
fn advance(
    states: &Both<LatentState>,
    mut latent: impl FnMut(Modality, &LatentState) -> Result<Array>,
) -> Result<Both<LatentState>> {
    states.try_map(|modality, state| {
        let latent = if state.frozen { state.latent.clone() } else { latent(modality, state)? };
        Ok(LatentState { latent, ..state.clone() })
    })
}

/// [`LatentState::blend`] of f64 values.
fn blend_wide(state: &LatentState, x: Vec<f64>) -> Result<Vec<f64>> {
    let (mask, clean) = (step::wide(&state.mask)?, step::wide(&state.clean)?);
    let channels = state.latent.dim(-1).max(1) as usize;
    let mut x = x;
    for ((x, clean), mask) in x.chunks_mut(channels).zip(clean.chunks(channels)).zip(mask) {
        for (x, clean) in x.iter_mut().zip(clean) {
            *x = *x * mask + clean * (1.0 - mask);
        }
    }
    Ok(x)
}

/// Computes the latents, and fails unless all of their values are numbers.
fn finite(states: &Both<LatentState>, step: usize) -> Result<()> {
    mlx::eval(states.iter().map(|(_, state)| &state.latent))?;
    for (modality, state) in states.iter() {
        if state.latent.is_finite()?.all(&[0, 1, 2], false)?.item()? == 0.0 {
            return Err(Error::NotFinite {
                component: "dit",
                tensor: format!("the {} latent", modality.name()),
                step: Some(step),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
