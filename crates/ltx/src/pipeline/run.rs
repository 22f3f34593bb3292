//! The run of a plan: text, denoising stage by stage, decoding.

use std::path::PathBuf;

use mlx::{Array, Dtype};

use super::choose::Prompts;
use super::clip::check_finite;
use super::conditioning::{NoiseSource, Text};
use super::images::Condition;
use super::stage::Stage;
use super::{Clip, Latents, Plan, decode};
use crate::checkpoint::{Component, Unread};
use crate::dit::Dit;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::text::{Connectors, Gemma, MAX_TOKENS, Projection};
use crate::upsampler::Upsampler;
use crate::video_vae::{Encoder, Statistics};

impl Plan<'_> {
    /// Makes the clip. Its frames are decoded when they are asked for.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Clip> {
        for note in &self.notes {
            progress.note(note)?;
        }
        let text = self.text(progress)?;
        let mut noise = NoiseSource::new(self.request.noise.as_deref(), self.request.seed)?;
        let images = self.images.encode(&self.stages(), progress, |progress| {
            self.loader().load(&self.checkpoint, Component::VideoEncoder, progress, Encoder::load)
        })?;
        let latents = self.denoise(&text, &images, &mut noise, progress)?;
        drop(text);
        let (loader, files) = (self.loader(), &self.checkpoint);
        let audio = latents.audio.as_ref();
        let audio = audio.map(|latent| decode::audio(loader, files, latent, progress)).transpose()?;
        let noise = noise.decoder_noise(self.request.seed);
        let frames = decode::video(loader, files, &latents.video, noise, progress)?;
        Ok(Clip { latents, frames, audio })
    }

    fn text(&self, progress: &mut dyn Progress) -> Result<Text> {
        let (gemma, ids) = match &self.prompts {
            Prompts::Embedding(file) => return file.read(self.request.dtype),
            Prompts::Tokens { gemma, ids } => (gemma, ids),
        };
        progress.phase("encode text", 0)?;
        let weights = gemma.weights(self.request.dtype);
        let network = Gemma::load(&weights, gemma)?;
        self.loader().finish(&weights, "text encoder", Unread::Refuse, progress)?;
        let states = network.hidden_states(ids)?;
        let projection =
            self.loader().load(&self.checkpoint, Component::Projection, progress, Projection::load)?;
        let features = states.iter().map(|states| projection.forward(states)).collect::<Result<Vec<_>>>()?;
        drop((states, projection));
        let connectors =
            self.loader().load(&self.checkpoint, Component::Connector, progress, Connectors::load)?;
        let mut contexts = features
            .iter()
            .map(|features| connectors.forward(features, MAX_TOKENS as i32))
            .collect::<Result<Vec<_>>>()?
            .into_iter();
        let positive = contexts.next().ok_or_else(|| Error::request("there is no prompt", "give one"))?;
        Ok(Text { positive, negative: contexts.next() })
    }

    /// `images`: those of each stage.
    fn denoise(
        &self,
        text: &Text,
        images: &[Vec<Condition>],
        noise: &mut NoiseSource,
        progress: &mut dyn Progress,
    ) -> Result<Latents> {
        let mut done: Option<Latents> = None;
        let mut sound = None;
        let mut dit = None;
        for ((steps, shapes), images) in self.steps.iter().zip(self.stages()).zip(images) {
            if steps.model.is_some() {
                drop(dit.take()); // One transformer at a time, and none beside the upsampler.
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
            sound = sound.or_else(|| latents.audio.clone().filter(|_| self.recipe.keeps_first_sound()));
            done = Some(latents);
        }
        let mut latents =
            done.ok_or_else(|| Error::request("a recipe without stages", "choose another --recipe"))?;
        latents.audio = sound.or(latents.audio);
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
