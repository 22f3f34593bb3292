//! Pixels through the video encoder.

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;
use crate::video_vae::Encoder;

/// `in.pixels` (batch, rgb, frames, height, width) → `out.latent`.
pub fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::VideoEncoder, context.dtype)?;
    let encoder = Encoder::load(&weights, &config)?;
    weights.finish(Component::VideoEncoder.unread())?;
    let pixels = golden.array("in.pixels")?;
    if pixels.rank() != 5 {
        return Err(golden.error("in.pixels", "is not (batch, rgb, frames, height, width)"));
    }
    let latent = encoder.forward(&pixels.transpose(&[0, 2, 3, 4, 1])?)?;
    Ok(vec![("out.latent".into(), latent)])
}
