//! Latents → frames and sound.

use mlx::{Array, Dtype};

use super::Frames;
use super::clip::check_finite;
use super::networks::Loader;
use crate::audio_vae::AudioDecoder;
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;
use crate::media::Audio;
use crate::noise::Noise;
use crate::progress::Progress;
use crate::trace::Trace;
use crate::video_vae::{ConvDecoder, Tiling};
use crate::vocoder::Vocoder;

/// (1, channels, frames, bins) → the sound.
pub fn audio(
    loader: Loader,
    checkpoint: &Checkpoint,
    latent: &Array,
    progress: &mut dyn Progress,
) -> Result<Audio> {
    progress.phase("decode audio", 0)?;
    let decoder = loader.load(checkpoint, Component::AudioDecoder, progress, AudioDecoder::load)?;
    let mel = decoder.forward(latent)?; // (1, 2, frames, bins)
    drop(decoder);
    check_finite(&mel, "audio_decoder", "the spectrogram")?;
    let vocoder = loader.load(checkpoint, Component::Vocoder, progress, Vocoder::load)?;
    let waveform = vocoder.forward(&mel, &mut Trace::off())?.astype(Dtype::F32)?; // (1, 2, samples)
    check_finite(&waveform, "vocoder", "the sound")?;
    let samples = waveform.dim(-1) as usize;
    let channels = waveform.to_f32()?.chunks(samples.max(1)).map(<[f32]>::to_vec).collect();
    Ok(Audio { sample_rate: vocoder.sample_rate(), channels })
}

/// (1, channels, frames, height, width) → frames, decoded as they are asked for.
pub fn video(
    loader: Loader,
    checkpoint: &Checkpoint,
    latent: &Array,
    mut noise: Noise,
    progress: &mut dyn Progress,
) -> Result<Frames> {
    let decoder = loader.load(checkpoint, Component::VideoDecoder, progress, ConvDecoder::load)?;
    let draw = move |shape: &[i32]| Ok(noise.normal(shape)?);
    Ok(Frames::new(decoder.decode(latent, &Tiling::auto(), draw)?))
}
