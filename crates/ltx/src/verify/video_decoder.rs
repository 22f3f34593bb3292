//! Latents through the convolutional video decoder, whose noise, if it draws any, the golden holds.

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;
use crate::trace::Trace;
use crate::video_vae::ConvDecoder;

/// `in.latent`, and `in.noise.<i>` in draw order → `mid.up_block.<i>` and `out.pixels` (batch, rgb, frames, height, width).
pub fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::VideoDecoder, context.dtype)?;
    let decoder = ConvDecoder::load(&weights, &config)?;
    weights.finish(Component::VideoDecoder.unread())?;
    let mut draws = 0;
    let mut noise = |shape: &[i32]| {
        let name = format!("in.noise.{draws}");
        draws += 1;
        let noise = golden.array(&name)?;
        if noise.shape() != shape {
            return Err(golden.error(&name, format!("has shape {:?}, not {shape:?}", noise.shape())));
        }
        Ok(noise)
    };
    let mut trace = Trace::on();
    let pixels = decoder.forward(&golden.array("in.latent")?, &mut noise, &mut trace)?;
    let middle = trace.into_values().into_iter().map(|(name, value)| (format!("mid.{name}"), value));
    let mut outputs: Outputs = middle.collect();
    outputs.push(("out.pixels".into(), pixels.transpose(&[0, 4, 1, 2, 3])?));
    Ok(outputs)
}
