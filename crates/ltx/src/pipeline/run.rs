//! The run of a plan: text, denoising stage by stage, decoding.

use std::path::{Path, PathBuf};

use mlx::{Array, Dtype};

use super::clip::check_finite;
use super::conditioning::{AUDIO_BINS, NoiseSource, Text};
use super::latent_file::{LatentFile, absolute};
use super::stage::Stage;
use super::text::{Prompts, text};
use super::{Clip, Latents, Plan, decode};
use crate::checkpoint::Component;
use crate::diffusion::patchify::{audio_latent, video_latent};
use crate::dit::Dit;
use crate::error::{Error, Result};
use crate::noise::Noise;
use crate::progress::{Event, Progress};
use crate::shape::Modality;
use crate::upsampler::Upsampler;
use crate::video_vae::{Encoder, Statistics};

impl Plan<'_> {
    /// Makes the clip. Its frames are decoded when they are asked for.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Clip> {
        let (latents, noise) = self.make(progress)?;
        decode::clip(self.loader(), &self.checkpoint, latents, noise, progress)
    }

    /// Makes the latents of the clip that `output` would be, to be decoded later.
    pub fn latents(&self, output: &Path, progress: &mut dyn Progress) -> Result<LatentFile> {
        let (latents, noise) = self.make(progress)?;
        Ok(LatentFile {
            latents,
            settings: self.settings(),
            models: self.request.models.iter().map(|path| absolute(path)).collect(),
            dtype: Some(self.request.dtype),
            frame_rate: self.request.frame_rate,
            seed: self.request.seed,
            noise: noise.drawn(),
            output: output.file_name().map(|_| output.into()),
        })
    }

    /// The latents, and the noise that is left for the decoder.
    fn make(&self, progress: &mut dyn Progress) -> Result<(Latents, Noise)> {
        for note in &self.notes {
            progress.note(note)?;
        }
        let mut noise = NoiseSource::new(self.request.noise.as_deref(), self.request.seed)?;
        let latents = match &self.prompts {
            Prompts::None => self.placeholder(&mut noise)?,
            Prompts::Known(text) => self.denoise(text, &mut noise, progress)?,
            Prompts::Encode(encoding) => {
                let text = text(encoding.run(self.loader(), &self.checkpoint, progress)?)?;
                self.denoise(&text, &mut noise, progress)?
            }
        };
        Ok((latents, noise.decoder_noise(self.request.seed)))
    }

    /// The noise of the last stage, as it is.
    fn placeholder(&self, noise: &mut NoiseSource) -> Result<Latents> {
        let shapes = self.stages().pop();
        let shapes =
            shapes.ok_or_else(|| Error::request("a recipe without stages", "choose another --recipe"))?;
        let mut draw = |modality: Modality| -> Result<Option<Array>> {
            let Some(shape) = shapes.latent(modality) else { return Ok(None) };
            let tokens = match (modality, shape.as_slice()) {
                (Modality::Video, &[one, channels, frames, height, width]) => {
                    [one, frames * height * width, channels]
                }
                (_, &[one, channels, frames, bins]) => [one, frames, channels * bins],
                _ => return Ok(None),
            };
            let drawn = noise.draw(&shapes, modality, &tokens)?;
            let latent = match modality {
                Modality::Video => video_latent(&drawn, shapes.video)?,
                Modality::Audio => audio_latent(&drawn, shapes.audio_channels / AUDIO_BINS)?,
            };
            Ok(Some(latent))
        };
        let video = draw(Modality::Video)?;
        let video = video.ok_or_else(|| Error::request("a clip without video", "ask for a video"))?;
        Ok(Latents { video, audio: draw(Modality::Audio)? })
    }

    fn denoise(&self, text: &Text, noise: &mut NoiseSource, progress: &mut dyn Progress) -> Result<Latents> {
        let images = self.images.encode(&self.stages(), progress, |progress| {
            self.loader().load(&self.checkpoint, Component::VideoEncoder, progress, Encoder::load)
        })?;
        let mut done: Option<Latents> = None;
        let mut sound = None;
        let mut dit = None;
        for ((steps, shapes), images) in self.steps.iter().zip(self.stages()).zip(&images) {
            if steps.model.is_some() {
                drop(dit.take()); // One transformer at a time, and none beside the upsampler.
                self.checkpoint.release();
            }
            if let Some(latents) = &mut done {
                progress.phase("upsample", 0)?;
                latents.video = self.upsample(&latents.video, progress)?;
            }
            if let Some(model) = &steps.model {
                progress.phase("load transformer", 0)?;
                dit = Some(self.loader().load(model, Component::Dit, progress, Dit::load)?);
            }
            let Some(dit) = &dit else { continue };
            progress.phase(steps.name, steps.sigmas.len().saturating_sub(1))?;
            let stage = Stage {
                shapes,
                frame_rate: self.request.frame_rate,
                sampler: steps.sampler,
                sigmas: &steps.sigmas,
                guidance: steps.guidance.clone(),
                seed: self.request.seed,
                from: done.as_ref(),
                images,
            };
            let latents = stage.run(dit, text, noise, progress)?;
            if let Some(streamed) = dit.streaming() {
                progress.report(Event::Streamed(streamed))?;
            }
            sound = sound.or_else(|| latents.audio.clone().filter(|_| self.recipe.keeps_first_sound()));
            done = Some(latents);
        }
        let mut latents =
            done.ok_or_else(|| Error::request("a recipe without stages", "choose another --recipe"))?;
        latents.audio = sound.or(latents.audio);
        drop(dit);
        for files in self.steps.iter().filter_map(|steps| steps.model.as_ref()).chain(&self.upsampler) {
            files.release();
        }
        Ok(latents)
    }

    /// Normalized latents (1, channels, frames, height, width) → twice as high and wide.
    fn upsample(&self, video: &Array, progress: &mut dyn Progress) -> Result<Array> {
        let dtype = self.request.dtype;
        // The upsampler works on the autoencoder's own scale.
        let (weights, _) = self.checkpoint.component(Component::VideoDecoder, dtype)?;
        let statistics =
            Statistics::load(&weights.at("per_channel_statistics"), self.transformer.video.in_channels)?;
        let files = self
            .upsampler
            .as_ref()
            .ok_or_else(|| Error::request("no latent upsampler", "give one with --spatial-upsampler"))?;
        let upsampler = self.loader().load(files, Component::Upsampler, progress, Upsampler::load)?;
        let larger = upsampler.forward(&statistics.un_normalize(&video.astype(dtype)?)?)?;
        let larger = statistics.normalize(&larger)?.astype(Dtype::F32)?;
        larger.eval()?;
        check_finite(&larger, "upsampler", "the latent")?;
        let expected: Vec<i32> = video
            .shape()
            .iter()
            .enumerate()
            .map(|(axis, &size)| if axis > 2 { 2 * size } else { size })
            .collect();
        if larger.shape() != expected {
            let path = files.file(Component::Upsampler).map_or(PathBuf::new(), |file| file.path().into());
            return Err(Error::file(
                path,
                "",
                format!("makes latents of {:?} from {:?}", larger.shape(), video.shape()),
                "give the spatial upsampler x2",
            ));
        }
        Ok(larger)
    }
}
