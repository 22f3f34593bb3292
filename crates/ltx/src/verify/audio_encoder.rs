//! The audio encoder against its goldens.

use super::{Context, Golden, Outputs};
use crate::audio_vae::AudioEncoder;
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::AudioEncoder, context.dtype)?;
    let encoder = AudioEncoder::load(&weights, &config)?;
    weights.finish(Component::AudioEncoder.unread())?;
    Ok(vec![("out.latent".into(), encoder.forward(&golden.array("in.mel")?)?)])
}
