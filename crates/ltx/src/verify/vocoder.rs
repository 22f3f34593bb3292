//! The vocoder against its goldens.

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;
use crate::trace::Trace;
use crate::vocoder::Vocoder;

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::Vocoder, context.dtype)?;
    let vocoder = Vocoder::load(&weights, &config)?;
    weights.finish(Component::Vocoder.unread())?;
    let mut trace = Trace::on();
    let waveform = vocoder.forward(&golden.array("in.mel")?, &mut trace)?;
    let middle = trace.into_values().into_iter().map(|(name, value)| (format!("mid.{name}"), value));
    Ok(middle.chain([("out.waveform".into(), waveform)]).collect())
}
