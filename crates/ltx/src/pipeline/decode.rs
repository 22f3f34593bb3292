//! Latents → frames and sound.

use std::path::PathBuf;

use mlx::{Array, Dtype};

use super::clip::check_finite;
use super::networks::{Loader, check_decoders};
use super::{Clip, Frames, LatentFile, Latents, UnreadPolicy};
use crate::audio_vae::AudioDecoder;
use crate::checkpoint::{Checkpoint, Component, Residency};
use crate::error::{Error, Result};
use crate::media::Audio;
use crate::noise::Noise;
use crate::progress::Progress;
use crate::shape::VideoShape;
use crate::trace::Trace;
use crate::video_vae::{ConvDecoder, Tiling};
use crate::vocoder::Vocoder;

/// Latents → the clip, whose frames are decoded as they are asked for.
pub fn clip(
    loader: Loader,
    files: &Checkpoint,
    latents: Latents,
    tiling: Tiling,
    noise: Noise,
    progress: &mut dyn Progress,
) -> Result<Clip> {
    let sound = latents.audio.as_ref();
    let audio = sound.map(|latent| audio(loader, files, latent, progress)).transpose()?;
    let frames = video(loader, files, &latents.video, tiling, noise, progress)?;
    Ok(Clip { latents, frames, audio })
}

/// (1, channels, frames, bins) → the sound.
fn audio(
    loader: Loader,
    checkpoint: &Checkpoint,
    latent: &Array,
    progress: &mut dyn Progress,
) -> Result<Audio> {
    progress.phase("decode audio", 0)?;
    let decoder = loader.load(checkpoint, Component::AudioDecoder, progress, AudioDecoder::load)?;
    let mel = decoder.forward(latent)?; // (1, 2, frames, bins)
    drop(decoder);
    checkpoint.release();
    check_finite(&mel, "audio_decoder", "the spectrogram")?;
    let vocoder = loader.load(checkpoint, Component::Vocoder, progress, Vocoder::load)?;
    let waveform = vocoder.forward(&mel, &mut Trace::off())?.astype(Dtype::F32)?; // (1, 2, samples)
    check_finite(&waveform, "vocoder", "the sound")?;
    let samples = waveform.dim(-1) as usize;
    let channels = waveform.to_f32()?.chunks(samples.max(1)).map(<[f32]>::to_vec).collect();
    checkpoint.release();
    Ok(Audio { sample_rate: vocoder.sample_rate(), channels })
}

/// (1, channels, frames, height, width) → frames, decoded as they are asked for.
fn video(
    loader: Loader,
    checkpoint: &Checkpoint,
    latent: &Array,
    tiling: Tiling,
    mut noise: Noise,
    progress: &mut dyn Progress,
) -> Result<Frames> {
    let decoder = loader.load(checkpoint, Component::VideoDecoder, progress, ConvDecoder::load)?;
    let draw = move |shape: &[i32]| Ok(noise.normal(shape)?);
    Ok(Frames::new(decoder.decode(latent, &tiling, draw)?))
}

/// A latent file and the model that will decode it, checked.
pub struct Decoding {
    file: LatentFile,
    files: Checkpoint,
    loader: Loader,
}

impl Decoding {
    /// Checks everything that can be checked without weights. `models` and `dtype` take the place of what the file says.
    pub fn new(
        file: LatentFile,
        models: &[PathBuf],
        dtype: Option<Dtype>,
        unread: UnreadPolicy,
    ) -> Result<Self> {
        let models = if models.is_empty() { &file.models } else { models };
        if models.is_empty() {
            return Err(Error::request(
                "the file does not say which model decodes it",
                "give the model with --model",
            ));
        }
        let files = Checkpoint::open(models)?;
        let dtype = dtype.or(file.dtype).unwrap_or(Dtype::Bf16);
        let (_, config) = files.component(Component::VideoDecoder, dtype)?;
        let latents = &file.latents;
        let decoder = config.at("vae")?;
        let absent_means_128 = 128;
        let channels = decoder.optional_usize("latent_channels")?.unwrap_or(absent_means_128);
        if latents.video.dim(1) as usize != channels {
            return Err(Error::request(
                format!(
                    "the latents have {} channels, but the model decodes {channels}",
                    latents.video.dim(1)
                ),
                "give the model that made them with --model",
            ));
        }
        let VideoShape { height, width, .. } = file.video();
        let loader = Loader { dtype, unread, residency: Residency::default() };
        check_decoders(loader, &files, (height, width), latents.audio.is_some())?;
        Ok(Self { file, files, loader })
    }

    /// The model, and the type that it computes in.
    pub(super) fn files(&self) -> (&Checkpoint, Dtype) {
        (&self.files, self.loader.dtype)
    }

    /// The latents and what is known of them.
    pub fn file(&self) -> &LatentFile {
        &self.file
    }

    /// The clip, whose frames are decoded as they are asked for, in tiles of so many pixels and frames.
    pub fn run(&self, tiling: Tiling, progress: &mut dyn Progress) -> Result<Clip> {
        let noise = Noise::after(self.file.seed, self.file.noise);
        clip(self.loader, &self.files, self.file.latents.clone(), tiling, noise, progress)
    }
}
