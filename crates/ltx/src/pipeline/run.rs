//! The run of a plan: text, denoising stage by stage, decoding.

use std::ops::Range;
use std::path::{Path, PathBuf};

use mlx::{Array, Dtype};

use super::clip::check_finite;
use super::conditioning::{AUDIO_BINS, NoiseSource, Shapes, Text};
use super::images::Condition;
use super::latent_file::{LatentFile, absolute};
use super::networks::Loader;
use super::saved::{Film, Place};
use super::stage::{Keeper, Stage};
use super::text::{Prompts, texts};
use super::window::{Window, seed};
use super::window_tail::{Given, Tail, append};
use super::{Clip, Latents, Plan};
use crate::checkpoint::Component;
use crate::diffusion::patchify::{audio_latent, video_latent};
use crate::dit::Dit;
use crate::error::{Error, Result};
use crate::noise::Noise;
use crate::progress::{Event, Progress};
use crate::shape::Modality;
use crate::upsampler::Upsampler;
use crate::video_vae::{Encoder, Statistics};

/// What distinguishes a stage of a window from that of another window.
struct Setting<'a> {
    shapes: Shapes,
    images: &'a [Condition],
    given: Option<&'a Given>,
    seed: u64,
}

impl Plan<'_> {
    /// Makes the clip. It is decoded when it is asked for.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Clip> {
        let (latents, noise) = self.make(progress)?;
        let (loader, files, tiling) = (self.loader(), self.checkpoint.clone(), self.choices.tiling);
        Ok(Clip { latents, loader, files, tiling, noise: Noise::after(self.request.seed, noise) })
    }

    /// Makes the latents of the clip that `output` would be, to be decoded later.
    pub fn latents(&self, output: &Path, progress: &mut dyn Progress) -> Result<LatentFile> {
        let (latents, noise) = self.make(progress)?;
        Ok(self.latent_file(latents, noise, output))
    }

    fn latent_file(&self, latents: Latents, noise: u64, output: &Path) -> LatentFile {
        LatentFile {
            latents,
            settings: self.settings(),
            models: self.request.models.iter().map(|path| absolute(path)).collect(),
            dtype: Some(self.request.dtype),
            frame_rate: self.request.frame_rate,
            seed: self.request.seed,
            noise,
            output: output.file_name().map(|_| output.into()),
        }
    }

    /// The latents, and how much of the seed's stream was drawn: the rest is the decoder's.
    fn make(&self, progress: &mut dyn Progress) -> Result<(Latents, u64)> {
        for note in &self.notes {
            progress.note(note)?;
        }
        let Some(saved) = &self.saved else { return self.film(progress) };
        let clip = self.stages().pop().and_then(|shapes| shapes.latent(Modality::Video));
        if let Some(LatentFile { latents, noise, .. }) = whole(saved.latents(), progress)?
            && clip.is_some_and(|clip| latents.video.shape() == clip)
            && latents.audio.is_some() == self.has_sound()
        {
            return Ok((latents, noise));
        }
        match self.film(progress) {
            Ok((latents, noise)) => {
                saved.keep_latents(&self.latent_file(latents.clone(), noise, saved.output()), progress);
                Ok((latents, noise))
            }
            Err(error) => {
                saved.interrupted(progress);
                Err(error)
            }
        }
    }

    /// All windows.
    fn film(&self, progress: &mut dyn Progress) -> Result<(Latents, u64)> {
        let texts = match &self.prompts {
            Prompts::None => {
                let mut noise = NoiseSource::new(self.request.noise.as_deref(), self.request.seed)?;
                return Ok((self.placeholder(&mut noise)?, noise.drawn()));
            }
            Prompts::Known(texts) => texts.clone(),
            Prompts::Encode(encoding) => {
                let loader = Loader { residency: self.choices.text, ..self.loader() };
                let contexts = encoding.run(loader, &self.checkpoint, progress)?;
                let texts = texts(contexts, self.request.prompts().len());
                if let Some(saved) = &self.saved {
                    saved.keep_texts(&texts, progress);
                }
                texts
            }
        };
        let images = self.images.encode(&self.stages(), progress, |progress| {
            self.loader().load(&self.checkpoint, Component::VideoEncoder, progress, Encoder::load)
        })?;
        let (mut film, mut place) = self.resumed(progress)?;
        while let Some(window) = self.windows.get(film.windows) {
            film = self.window(film, window, place.take(), &texts, &images, progress)?;
            if let Some(saved) = self.saved.as_ref().filter(|_| film.windows < self.windows.len()) {
                saved.keep_film(&film, progress);
            }
        }
        let none = || Error::request("a clip without frames", "ask for at least one");
        Ok((film.latents.ok_or_else(none)?, film.noise.unwrap_or(0)))
    }

    /// What an earlier run has done of this one: windows, and where the one after them stands.
    fn resumed(&self, progress: &mut dyn Progress) -> Result<(Film, Option<Place>)> {
        let Some(saved) = &self.saved else { return Ok(Default::default()) };
        let film = whole(saved.film(), progress)?.filter(|film| film.windows < self.windows.len());
        let film = film.unwrap_or_default();
        let place = whole(saved.place(), progress)?
            .filter(|place| place.window == film.windows && place.stage < self.steps.len());
        let windows = format!("window {} of {}", film.windows, self.windows.len());
        let words = place.as_ref().map(|place| place.words.clone());
        if let Some(words) = words.or((film.windows > 0).then_some(windows)) {
            progress.note(format!("goes on after {words}"))?;
        }
        Ok((film, place))
    }

    /// The clip with its next window.
    fn window(
        &self,
        film: Film,
        window: &Window,
        place: Option<Place>,
        texts: &[Text],
        images: &[Vec<Condition>],
        progress: &mut dyn Progress,
    ) -> Result<Film> {
        let Film { latents, windows: index, noise: decoder_noise } = film;
        let mut given = Vec::new();
        if let Some(latents) = &latents {
            let (Range { start, end }, of) = (window.pictures(), self.windows.len());
            progress.phase("join windows", 0)?;
            progress.note(format!("window {} of {of}: frames {start} to {}", index + 1, end - 1))?;
            let (loader, files, seed) = (self.loader(), &self.checkpoint, self.request.seed);
            given = Tail { loader, files, latents, window, index, seed }
                .given(&self.window_stages(window), progress)?;
        }
        let missing = || Error::request("a shot without a prompt", "give one");
        let text = texts.get(window.shot).ok_or_else(missing)?;
        let place = place.unwrap_or_else(|| Place { window: index, ..Place::default() });
        let (made, noise) = self.made(window, place, &given, images, text, progress)?;
        Ok(Film {
            latents: Some(append(latents, &made, window)?),
            windows: index + 1,
            noise: decoder_noise.or(Some(noise)),
        })
    }

    /// The latents of a window, from a place in it on, those that it was given among them, and how much of its stream of noise
    /// was drawn.
    pub(super) fn made(
        &self,
        window: &Window,
        place: Place,
        given: &[Given],
        images: &[Vec<Condition>],
        text: &Text,
        progress: &mut dyn Progress,
    ) -> Result<(Latents, u64)> {
        let here = |images: &Vec<Condition>| images.iter().filter_map(|image| image.within(window)).collect();
        let images: Vec<Vec<Condition>> = images.iter().map(here).collect();
        let given = given.iter().map(Some).chain(std::iter::repeat(None));
        let seed = seed(self.request.seed, place.window);
        let stages = self.window_stages(window).into_iter().zip(&images).zip(given);
        let stages = stages.map(|((mut shapes, images), given)| {
            shapes.keyframes = images.iter().filter(|image| image.guides()).count();
            Setting { shapes, images, given, seed }
        });
        let mut noise = NoiseSource::new(self.request.noise.as_deref(), seed)?;
        let latents = self.denoise(text, stages.collect(), place, &mut noise, progress)?;
        Ok((latents, noise.drawn()))
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

    /// All stages of a window, from a place on.
    fn denoise(
        &self,
        text: &Text,
        stages: Vec<Setting>,
        place: Place,
        noise: &mut NoiseSource,
        progress: &mut dyn Progress,
    ) -> Result<Latents> {
        noise.go_to(place.noise);
        let Place { window, stage: first, from: mut done, mut sound, mut moment, .. } = place;
        let mut dit = None;
        let mut model = None;
        for (stage, (steps, Setting { shapes, images, given, seed })) in
            self.steps.iter().zip(stages).enumerate()
        {
            if let Some(own) = &steps.model {
                model = Some(own);
                drop(dit.take()); // One transformer at a time, and none beside the upsampler.
                self.checkpoint.release();
            }
            if stage < first {
                continue;
            }
            if let Some(latents) = done.as_mut().filter(|_| moment.is_none()) {
                progress.phase("upsample", 0)?;
                latents.video = self.upsample(&latents.video, progress)?;
            }
            if let Some(model) = model.filter(|_| dit.is_none()) {
                progress.phase("load transformer", 0)?;
                dit = Some(self.loader().load(model, Component::Dit, progress, Dit::load)?);
            }
            let Some(dit) = &dit else { continue };
            let count = steps.sigmas.len().saturating_sub(1);
            progress.phase(steps.name, count)?;
            let words = match self.windows.len() {
                1 => steps.name.to_string(),
                of => format!("window {} of {of}, {}", window + 1, steps.name),
            };
            let mut place =
                Place { window, stage, from: done.clone(), sound: sound.clone(), words, ..Place::default() };
            let made = Stage {
                shapes,
                frame_rate: self.request.frame_rate,
                sampler: steps.sampler,
                sigmas: &steps.sigmas,
                guidance: steps.guidance.clone(),
                seed,
                from: done.as_ref(),
                images,
                given,
            };
            let keeper = Keeper { saved: self.saved.as_ref(), place: &place };
            let latents = made.run(dit, text, noise, moment.take(), keeper, progress)?;
            if let Some(streamed) = dit.streaming() {
                // Whether to stop is asked at every step.
                let _ = progress.event(Event::Streamed(streamed));
            }
            sound = sound.or_else(|| latents.audio.clone().filter(|_| self.recipe.keeps_first_sound()));
            if let Some(saved) = self.saved.as_ref().filter(|_| stage + 1 < self.steps.len()) {
                place.words.push_str(": all steps");
                place = Place {
                    stage: stage + 1,
                    from: Some(latents.clone()),
                    sound: sound.clone(),
                    noise: noise.drawn(),
                    ..place
                };
                saved.keep_place(&place, progress);
            }
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

/// What was saved, if it is whole; what is not is ignored, which is said.
fn whole<T>(saved: Result<Option<T>>, progress: &mut dyn Progress) -> Result<Option<T>> {
    match saved {
        Ok(saved) => Ok(saved),
        Err(error) => {
            progress.note(format!("what was saved is ignored: {error}"))?;
            Ok(None)
        }
    }
}
