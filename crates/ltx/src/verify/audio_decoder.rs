//! The audio decoder against its goldens.

use super::{Context, Golden, Outputs};
use crate::audio_vae::AudioDecoder;
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::AudioDecoder, context.dtype)?;
    let decoder = AudioDecoder::load(&weights, &config)?;
    weights.finish(Component::AudioDecoder.unread())?;
    Ok(vec![("out.mel".into(), decoder.forward(&golden.array("in.latent")?)?)])
}
