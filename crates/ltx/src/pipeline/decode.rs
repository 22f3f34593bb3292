//! Latents → frames and sound.

use std::path::PathBuf;

use mlx::{Array, Dtype};

use super::clip::check_finite;
use super::networks::{Loader, check_decoders};
use super::{Clip, LatentFile, UnreadPolicy};
use crate::audio_vae::{self, AudioDecoder};
use crate::checkpoint::{Checkpoint, Component, Residency};
use crate::error::{Error, Result};
use crate::media::Audio;
use crate::noise::Noise;
use crate::progress::Progress;
use crate::shape::VideoShape;
use crate::video_vae::Tiling;
use crate::vocoder::{self, Vocoder};

/// The sound of a clip, some seconds at a time: each step of the iterator makes samples of both channels that follow on
/// those before. After an error there are no more.
pub struct Sound {
    decoder: AudioDecoder,
    vocoder: Vocoder,
    mel: audio_vae::Passage,
    waveform: vocoder::Passage,
    files: Checkpoint,
    failed: bool,
}

impl Sound {
    /// The sound of a latent (1, channels, frames, bins).
    pub(super) fn new(
        loader: Loader,
        files: &Checkpoint,
        latent: &Array,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let decoder = loader.load(files, Component::AudioDecoder, progress, AudioDecoder::load)?;
        let vocoder = loader.load(files, Component::Vocoder, progress, Vocoder::load)?;
        let (mel, waveform) = (decoder.enter(latent)?, vocoder.enter());
        Ok(Self { decoder, vocoder, mel, waveform, files: files.clone(), failed: false })
    }

    /// Latent frames whose sound is made, and all of them: 25 are a second.
    pub fn progress(&self) -> (usize, usize) {
        self.mel.progress()
    }

    fn make(&mut self) -> Result<Option<Audio>> {
        loop {
            if let Some(waveform) = self.vocoder.next(&mut self.waveform)? {
                check_finite(&waveform, "vocoder", "the sound")?;
                let samples = waveform.dim(-1) as usize;
                let channels = waveform.to_f32()?.chunks(samples.max(1)).map(<[f32]>::to_vec).collect();
                return Ok(Some(Audio { sample_rate: self.vocoder.sample_rate(), channels }));
            }
            let Some((mel, last)) = self.decoder.next(&mut self.mel)? else { return Ok(None) };
            check_finite(&mel, "audio_decoder", "the spectrogram")?;
            self.vocoder.push(&mut self.waveform, &mel, last)?;
        }
    }
}

impl Iterator for Sound {
    type Item = Result<Audio>;

    fn next(&mut self) -> Option<Result<Audio>> {
        if self.failed {
            return None;
        }
        let made = self.make();
        self.failed = made.is_err();
        made.transpose()
    }
}

impl Drop for Sound {
    fn drop(&mut self) {
        self.files.release();
    }
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

    /// The clip, which is decoded as it is asked for, its frames in tiles of so many pixels and frames.
    pub fn run(&self, tiling: Tiling) -> Clip {
        let (loader, files) = (self.loader, self.files.clone());
        let noise = Noise::after(self.file.seed, self.file.noise);
        Clip { latents: self.file.latents.clone(), loader, files, tiling, noise }
    }
}
