//! The transformer's goldens: one pass, with intermediates per block.

use mlx::Array;

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::dit::{Conditions, Dit, Input, Pass, Perturbation, Prepared};
use crate::error::Result;
use crate::shape::Modality;
use crate::trace::Trace;

/// One modality's inputs.
struct Given {
    latent: Array,    // (batch, tokens, channels)
    timesteps: Array, // (batch, tokens)
    sigma: Array,     // (batch)
    prepared: Prepared,
}

impl Given {
    fn read(golden: &Golden, dit: &Dit, modality: Modality) -> Result<Option<Self>> {
        let name = |input: &str| format!("in.{modality}_{input}");
        let Some(latent) = golden.optional(&name("latent"))? else { return Ok(None) };
        let (mask, keyframes) = match modality {
            Modality::Video => {
                (golden.optional(&name("attention_mask"))?, golden.optional("in.keyframes_mask")?)
            }
            Modality::Audio => (None, None),
        };
        let conditions = Conditions {
            positions: &golden.array(&name("positions"))?,
            context: &golden.array(&name("context"))?,
            attention_mask: mask.as_ref(),
            keyframes_mask: keyframes.as_ref(),
        };
        let prepared = dit.prepare(modality, &conditions)?;
        let (timesteps, sigma) = (golden.array(&name("timesteps"))?, golden.array(&name("sigma"))?);
        Ok(Some(Self { latent, timesteps, sigma, prepared }))
    }

    fn input(&self) -> Input<'_> {
        let Self { latent, timesteps, sigma, prepared } = self;
        Input { latent, timesteps, sigma, prepared }
    }
}

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::Dit, context.dtype)?;
    let dit = Dit::load(&weights, &config)?;
    weights.finish(Component::Dit.unread())?;
    let video = Given::read(golden, &dit, Modality::Video)?;
    let audio = Given::read(golden, &dit, Modality::Audio)?;
    let skip_cross_modal = match golden.setting("skip_cross_modal") {
        Some("true") => true,
        Some("false") | None => false,
        Some(other) => {
            return Err(golden.error("skip_cross_modal", format!("is `{other}`, not true or false")));
        }
    };
    let perturbation = Perturbation {
        skip_video_self_attention: golden.numbers("skip_video_self_attention")?,
        skip_audio_self_attention: golden.numbers("skip_audio_self_attention")?,
        skip_cross_modal,
    };
    let batch = video
        .as_ref()
        .or(audio.as_ref())
        .map_or(0, |given| given.latent.shape().first().copied().unwrap_or(0));
    let (video, audio) = (video.as_ref().map(Given::input), audio.as_ref().map(Given::input));
    let mut trace = Trace::on();
    let perturbations = vec![perturbation; batch as usize];
    let (video, audio) = dit.forward(&Pass { video, audio, perturbations }, &mut trace)?;
    let blocks = trace.into_values().into_iter().map(|(name, value)| (format!("mid.{name}"), value));
    let velocities = [("out.video", video), ("out.audio", audio)];
    Ok(blocks
        .chain(velocities.into_iter().filter_map(|(name, velocity)| Some((name.into(), velocity?))))
        .collect())
}
