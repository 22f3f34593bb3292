//! The front end of the audio encoder against its goldens. It has no weights: only the configuration is read.

use mlx::Dtype;

use super::{Golden, Outputs};
use crate::audio_vae::Mel;
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint) -> Result<Outputs> {
    let (_, config) = checkpoint.component(Component::AudioEncoder, Dtype::F32)?;
    let sample_rate =
        golden.number("sample_rate")?.ok_or_else(|| golden.error("sample_rate", "is missing"))?;
    let mel = Mel::load(&config)?.forward(&golden.array("in.waveform")?, sample_rate)?;
    Ok(vec![("out.mel".into(), mel)])
}
