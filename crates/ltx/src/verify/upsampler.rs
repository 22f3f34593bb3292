//! Latents through a latent upsampler.

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;
use crate::upsampler::Upsampler;

/// `in.latent`, un-normalized → `out.latent`.
pub fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::Upsampler, context.dtype)?;
    let upsampler = Upsampler::load(&weights, &config)?;
    weights.finish(Component::Upsampler.unread())?;
    Ok(vec![("out.latent".into(), upsampler.forward(&golden.array("in.latent")?)?)])
}
