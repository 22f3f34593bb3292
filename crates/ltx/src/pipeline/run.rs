//! The run of a plan: text, denoising stage by stage, decoding.

use std::path::PathBuf;

use mlx::{Array, Dtype};

use super::choose::Prompts;
use super::clip::check_finite;
use super::conditioning::{NoiseSource, Shapes, Text};
use super::stage::Stage;
use super::{Clip, Kind, Latents, Plan, Recipe, decode};
use crate::checkpoint::{Component, Unread};
use crate::diffusion::schedule::DISTILLED_STAGE_2;
use crate::diffusion::step::Sampler;
use crate::dit::Dit;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::text::{Connectors, Gemma, MAX_TOKENS, Projection};
use crate::upsampler::Upsampler;
use crate::video_vae::Statistics;

impl Plan<'_> {
    /// Makes the clip. Its frames are decoded when they are asked for.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Clip> {
        for note in &self.notes {
            progress.note(note)?;
        }
        let text = self.text(progress)?;
        let mut noise = NoiseSource::new(self.request.noise.as_deref(), self.request.seed)?;
        let latents = self.denoise(&text, &mut noise, progress)?;
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

    fn denoise(&self, text: &Text, noise: &mut NoiseSource, progress: &mut dyn Progress) -> Result<Latents> {
        progress.phase("load transformer", 0)?;
        let dit = self.loader().load(&self.checkpoint, Component::Dit, progress, Dit::load)?;
        let two_stages = self.recipe == Recipe::Distilled;
        progress.phase(if two_stages { "denoise at half size" } else { "denoise" }, self.sigmas.len() - 1)?;
        let sampler = match (self.kind, self.generation.ancestral) {
            (Kind::Distilled, true) => Sampler::EulerAncestral { eta: 1.0, s_noise: 1.0 },
            _ => Sampler::Euler,
        };
        let mut stages = self.stages().into_iter();
        let mut latents = match stages.next() {
            Some(shapes) => {
                self.stage(shapes, sampler, &self.sigmas, None).run(&dit, text, noise, progress)?
            }
            None => return Err(Error::request("a recipe without stages", "choose another --recipe")),
        };
        // The refinement is too short to remove noise that is added on the way: always plain Euler.
        for shapes in stages {
            progress.phase("upsample", 0)?;
            latents.video = self.upsample(&latents.video, progress)?;
            progress.phase("refine", DISTILLED_STAGE_2.len() - 1)?;
            let stage = self.stage(shapes, Sampler::Euler, &DISTILLED_STAGE_2, Some(&latents));
            latents = stage.run(&dit, text, noise, progress)?;
        }
        Ok(latents)
    }

    fn stage<'b>(
        &self,
        shapes: Shapes,
        sampler: Sampler,
        sigmas: &'b [f32],
        from: Option<&'b Latents>,
    ) -> Stage<'b> {
        Stage {
            shapes,
            frame_rate: self.request.frame_rate,
            sampler,
            sigmas,
            guidance: self.guidance.clone(),
            seed: self.request.seed,
            from,
        }
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
