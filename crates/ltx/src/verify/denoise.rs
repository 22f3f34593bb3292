//! `denoise`: noise through the whole loop, with the transformer, a sampler and guidance.

use std::ops::ControlFlow;

use mlx::{Array, Dtype};

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::diffusion::Both;
use crate::diffusion::conditioning::LatentState;
use crate::diffusion::denoise::Denoise;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::step::{Draw, Sampler, StepNoise};
use crate::dit::Dit;
use crate::error::Result;
use crate::pipeline::{Prompted, Text};
use crate::shape::Modality;
use crate::text::Contexts;

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::Dit, context.dtype)?;
    let dit = Dit::load(&weights, &config)?;
    weights.finish(Component::Dit.unread())?;
    let read = |name: &str| Ok::<_, crate::Error>(golden.array(name)?.astype(context.dtype)?);
    let contexts = |prefix: &str| -> Result<Contexts> {
        let video = read(&format!("in.{prefix}video_context"))?;
        Ok(Contexts { video, audio: Some(read(&format!("in.{prefix}audio_context"))?) })
    };
    let guided_by_text = golden.names().iter().any(|name| name == "in.negative_video_context");
    let text = Text {
        positive: contexts("")?,
        negative: guided_by_text.then(|| contexts("negative_")).transpose()?,
    };
    let sigmas = golden.array("in.sigmas")?.to_f32()?;
    let modalities = Both { video: Some(Modality::Video), audio: Some(Modality::Audio) };
    let states = modalities.try_map(|_, &modality| state(golden, modality))?;
    let denoise = Denoise {
        sampler: sampler(golden)?,
        sigmas: &sigmas,
        guidance: modalities.try_map(|_, &modality| guidance(golden, modality))?,
    };
    let mut noise = GivenNoise { golden, drawn: [0; 2] };
    let states = denoise
        .run(states, &mut Prompted::new(&dit, &text), &mut noise, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(states
        .iter()
        .map(|(modality, state)| (format!("out.{}", modality.name()), state.latent.clone()))
        .collect())
}

fn state(golden: &Golden, modality: Modality) -> Result<LatentState> {
    let name = |input: &str| format!("in.{}_{input}", modality.name());
    let noise = golden.array(&name("noise"))?; // (batch, tokens, channels)
    let &[batch, tokens, _] = noise.shape() else {
        return Err(golden.error(&name("noise"), format!("has shape {:?}, not three axes", noise.shape())));
    };
    let (mask, clean, keyframes) = match modality {
        Modality::Video => (
            golden.optional("in.video_denoise_mask")?,
            golden.optional("in.video_clean")?,
            golden.optional("in.keyframes_mask")?,
        ),
        Modality::Audio => (None, None, None),
    };
    let clean = clean.map_or_else(|| mlx::zeros(noise.shape(), Dtype::F32), Ok)?;
    let state = LatentState {
        latent: clean.clone(),
        clean,
        mask: mask.map_or_else(|| mlx::full(&[batch, tokens], 1.0, Dtype::F32), Ok)?,
        positions: golden.array(&name("positions"))?,
        attention_mask: None,
        keyframes,
        frozen: false,
    };
    state.noised(&noise, 1.0)
}

fn sampler(golden: &Golden) -> Result<Sampler> {
    let name = golden.setting("sampler").ok_or_else(|| golden.error("sampler", "is missing"))?;
    let or = |key: &str, value: f64| Ok::<_, crate::Error>(golden.number(key)?.unwrap_or(value));
    Ok(match name.parse()? {
        Sampler::Euler => Sampler::Euler,
        Sampler::EulerAncestral { eta, s_noise } => {
            Sampler::EulerAncestral { eta: or("sampler.eta", eta)?, s_noise: or("sampler.s_noise", s_noise)? }
        }
        Sampler::GradientEstimation { gamma } => {
            Sampler::GradientEstimation { gamma: or("sampler.ge_gamma", gamma)? }
        }
        Sampler::Res2s { eta, bong } => {
            let bong = match golden.setting("sampler.bongmath") {
                None => bong,
                Some("true") => true,
                Some("false") => false,
                Some(other) => {
                    return Err(golden.error("sampler.bongmath", format!("is `{other}`, not true or false")));
                }
            };
            Sampler::Res2s { eta: or("sampler.eta", eta)?, bong }
        }
    })
}

fn guidance(golden: &Golden, modality: Modality) -> Result<Guidance> {
    let key = |name: &str| format!("{}_{name}", modality.name());
    let or = |name: &str, value: f32| Ok::<_, crate::Error>(golden.number(&key(name))?.unwrap_or(value));
    let off = Guidance::OFF;
    Ok(Guidance {
        cfg: or("cfg", off.cfg)?,
        stg: or("stg", off.stg)?,
        stg_blocks: golden.numbers(&key("stg_blocks"))?,
        rescale: or("rescale", off.rescale)?,
        modality: or("modality", off.modality)?,
        skip: off.skip,
    })
}

/// The noise that the golden holds for stochastic samplers.
struct GivenNoise<'a> {
    golden: &'a Golden,
    drawn: [u64; 2],
}

impl StepNoise for GivenNoise<'_> {
    fn draw(&mut self, modality: Modality, _: Draw, shape: &[i32]) -> Result<Array> {
        let index = &mut self.drawn[modality as usize];
        let name = format!("in.step_noise.{index}.{}", modality.name());
        *index += 1;
        let noise = self.golden.array(&name)?;
        if noise.shape() != shape {
            return Err(self.golden.error(&name, format!("has shape {:?}, not {shape:?}", noise.shape())));
        }
        Ok(noise)
    }

    fn drawn(&self) -> [u64; 4] {
        let [video, audio] = self.drawn;
        [video, audio, 0, 0]
    }

    fn go_to(&mut self, [video, audio, ..]: [u64; 4]) {
        self.drawn = [video, audio];
    }
}
