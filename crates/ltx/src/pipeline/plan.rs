//! A request that was checked against the files it names, and the run of it.

use std::ops::ControlFlow;
use std::path::PathBuf;

use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::clip::check_finite;
use super::conditioning::{AUDIO_BINS, EmbeddingFile, NoiseSource, Shapes, Text, Widths};
use super::images::{Condition, Images};
use super::recipe::{Circumstances, Steps, with_loras};
use super::stage::Stage;
use super::{Clip, Frames, Generation, Kind, Latents, Recipe, Request, UnreadPolicy};
use crate::audio_vae::AudioDecoder;
use crate::checkpoint::{Checkpoint, Component, Config, Unread, Weights};
use crate::diffusion::guidance::Guidance;
use crate::dit::{self, Dit};
use crate::error::{Error, Result};
use crate::media::Audio;
use crate::progress::Progress;
use crate::shape::{AudioShape, VideoShape};
use crate::text::{Connectors, Gemma, GemmaFolder, MAX_TOKENS, Projection};
use crate::trace::Trace;
use crate::upsampler::Upsampler;
use crate::video_vae::{ConvDecoder, Encoder, Statistics, Tiling};
use crate::vocoder::Vocoder;

/// Lightricks' default negative prompt, word for word: the models' guidance was tuned with it.
const NEGATIVE_PROMPT: &str = include_str!("negative_prompt.txt");

/// A checked request, ready to run.
#[derive(Debug)]
pub struct Plan<'a> {
    request: &'a Request,
    checkpoint: Checkpoint,
    upsampler: Option<Checkpoint>,
    recipe: Recipe,
    video: VideoShape,
    audio: Option<AudioShape>,
    transformer: dit::Config,
    steps: Vec<Steps>,
    prompts: Prompts,
    images: Images,
    notes: Vec<String>,
}

/// Where the contexts come from.
#[derive(Debug)]
enum Prompts {
    Embedding(EmbeddingFile),
    /// Token ids of the prompt, and of the negative prompt if guidance needs it.
    Tokens {
        gemma: GemmaFolder,
        ids: Vec<Vec<u32>>,
    },
}

impl<'a> Plan<'a> {
    /// Checks everything that can be checked without weights: sizes, files, headers, shapes, the prompt's length.
    pub fn new(request: &'a Request) -> Result<Self> {
        request.check()?;
        let mut notes = Vec::new();
        let checkpoint = Checkpoint::open(&request.models)?;
        let (_, config) = checkpoint.component(Component::Dit, request.dtype)?;
        let transformer = dit::Config::new(&config)?;
        let generation = Generation::of(checkpoint.version());
        let checkpoint = with_loras(request, checkpoint, &mut notes)?;

        let upsampler = upsampler(request, &checkpoint)?;
        let named = Kind::of(&checkpoint);
        let recipe = Recipe::choose(request, named, upsampler.is_some(), &mut notes);

        let height = request.height.unwrap_or(recipe.default_height());
        let video = VideoShape { frames: request.frames, height, width: request.width };
        video.check(recipe.size_multiple())?;
        let audio =
            request.audio.then(|| AudioShape::of_video(request.frames, request.frame_rate)).transpose()?;
        if recipe.two_stages() && upsampler.is_none() {
            return Err(Error::request(
                format!("the {} recipe needs the latent upsampler x2", recipe.name()),
                "give its file with --spatial-upsampler, or use --recipe one-stage",
            ));
        }
        let divisor = if recipe.two_stages() { 2 } else { 1 };
        let first = VideoShape { height: height / divisor, width: request.width / divisor, ..video };
        let circumstances = Circumstances {
            request,
            recipe,
            kind: recipe.kind(named)?,
            generation,
            model: &checkpoint,
            layers: transformer.layers,
            audio: audio.is_some(),
            tokens: first.latent().tokens(),
        };
        let steps = circumstances.stages(&mut notes)?;
        let negative =
            steps.iter().any(|steps| steps.guidance.iter().any(|(_, guidance)| guidance.cfg != 1.0));
        let prompts = prompts(request, &transformer, negative)?;
        let mut plan = Self {
            request,
            checkpoint,
            upsampler,
            recipe,
            video,
            audio,
            transformer,
            steps,
            prompts,
            images: Images::default(),
            notes,
        };
        plan.check_channels(&config)?;
        let stages = plan.stages();
        plan.images = Images::prepare(
            &request.images,
            &stages,
            generation.image_crf,
            recipe.guides_only(),
            &mut plan.notes,
        )?;
        let noise = NoiseSource::new(request.noise.as_deref(), request.seed)?;
        for stage in plan.stages() {
            noise.check(&stage)?;
        }
        plan.check_networks()?;
        Ok(plan)
    }

    /// Builds every network once, so that a missing, misshapen or unread tensor is found now and not after an hour. Building
    /// reads headers only: weights are mapped, and nothing is computed.
    fn check_networks(&self) -> Result<()> {
        let silent: &mut dyn Progress = &mut |_| ControlFlow::Continue(());
        if let Prompts::Tokens { gemma, .. } = &self.prompts {
            let weights = gemma.weights(self.request.dtype);
            Gemma::load(&weights, gemma)?;
            self.finish(&weights, "text encoder", Unread::Refuse, silent)?;
            self.load(Component::Projection, silent, Projection::load)?;
            self.load(Component::Connector, silent, Connectors::load)?;
        }
        if !self.images.is_empty() {
            self.load(Component::VideoEncoder, silent, Encoder::load)?;
        }
        for model in self.steps.iter().filter_map(|steps| steps.model.as_ref()) {
            self.load_from(model, Component::Dit, silent, Dit::load)?;
        }
        if let Some(files) = self.upsampler.as_ref().filter(|_| self.recipe.two_stages()) {
            self.load_from(files, Component::Upsampler, silent, Upsampler::load)?;
        }
        self.load(Component::VideoDecoder, silent, ConvDecoder::load)?
            .check_size(self.video.height, self.video.width)?;
        if self.audio.is_some() {
            self.load(Component::AudioDecoder, silent, AudioDecoder::load)?;
            self.load(Component::Vocoder, silent, Vocoder::load)?;
        }
        Ok(())
    }

    /// Width of the clip in pixels.
    pub fn width(&self) -> usize {
        self.video.width
    }

    /// Height of the clip in pixels.
    pub fn height(&self) -> usize {
        self.video.height
    }

    /// Everything that makes the clip, decided: what was asked for and what was filled in.
    pub fn settings(&self) -> Value {
        let mut settings = self.request.settings();
        settings["recipe"] = json!(self.recipe.name());
        settings["model_version"] = json!(self.checkpoint.version());
        settings["height"] = json!(self.video.height);
        settings["images"] = self.images.settings();
        let Some(first) = self.steps.first() else { return settings };
        settings["steps"] = json!(first.sigmas.len().saturating_sub(1));
        settings["sampler"] = json!(first.sampler.name());
        if self.recipe.keeps_first_sound() {
            let strengths = self.steps.iter().map(|steps| steps.distilled_strength);
            settings["distilled_lora_strengths"] = json!(strengths.collect::<Vec<_>>());
        }
        for (modality, guidance) in first.guidance.iter().filter(|(_, guidance)| **guidance != Guidance::OFF)
        {
            settings["guidance"][modality.name()] = json!({
                "cfg": guidance.cfg, "stg_scale": guidance.stg, "stg_blocks": guidance.stg_blocks,
                "rescale": guidance.rescale, "modality_scale": guidance.modality, "skip": guidance.skip,
            });
        }
        settings
    }

    /// Makes the clip. Its frames are decoded when they are asked for.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Clip> {
        for note in &self.notes {
            progress.note(note)?;
        }
        let text = self.text(progress)?;
        let mut noise = NoiseSource::new(self.request.noise.as_deref(), self.request.seed)?;
        let images = self.images.encode(&self.stages(), progress, |progress| {
            self.load(Component::VideoEncoder, progress, Encoder::load)
        })?;
        let latents = self.denoise(&text, &images, &mut noise, progress)?;
        drop(text);
        let audio = self.decode_audio(&latents, progress)?;
        let frames = self.decode_video(&latents.video, noise, progress)?;
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
        self.finish(&weights, "text encoder", Unread::Refuse, progress)?;
        let states = network.hidden_states(ids)?;
        let projection = self.load(Component::Projection, progress, Projection::load)?;
        let features = states.iter().map(|states| projection.forward(states)).collect::<Result<Vec<_>>>()?;
        drop((states, projection));
        let connectors = self.load(Component::Connector, progress, Connectors::load)?;
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
                dit = Some(self.load_from(model, Component::Dit, progress, Dit::load)?);
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
        let upsampler = self.load_from(files, Component::Upsampler, progress, Upsampler::load)?;
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

    fn decode_audio(&self, latents: &Latents, progress: &mut dyn Progress) -> Result<Option<Audio>> {
        let Some(latent) = &latents.audio else { return Ok(None) };
        progress.phase("decode audio", 0)?;
        let decoder = self.load(Component::AudioDecoder, progress, AudioDecoder::load)?;
        let mel = decoder.forward(latent)?; // (1, 2, frames, bins)
        drop(decoder);
        check_finite(&mel, "audio_decoder", "the spectrogram")?;
        let vocoder = self.load(Component::Vocoder, progress, Vocoder::load)?;
        let waveform = vocoder.forward(&mel, &mut Trace::off())?.astype(Dtype::F32)?; // (1, 2, samples)
        check_finite(&waveform, "vocoder", "the sound")?;
        let samples = waveform.dim(-1) as usize;
        let channels = waveform.to_f32()?.chunks(samples.max(1)).map(<[f32]>::to_vec).collect();
        Ok(Some(Audio { sample_rate: vocoder.sample_rate(), channels }))
    }

    fn decode_video(
        &self,
        latent: &Array,
        noise: NoiseSource,
        progress: &mut dyn Progress,
    ) -> Result<Frames> {
        let decoder = self.load(Component::VideoDecoder, progress, ConvDecoder::load)?;
        let mut noise = noise.decoder_noise(self.request.seed);
        let draw = move |shape: &[i32]| Ok(noise.normal(shape)?);
        Ok(Frames::new(decoder.decode(latent, &Tiling::auto(), draw)?))
    }

    /// Sizes of the latents of each stage.
    fn stages(&self) -> Vec<Shapes> {
        let VideoShape { frames, height, width } = self.video;
        let shapes = |divisor: usize, second| Shapes {
            video: VideoShape { frames, height: height / divisor, width: width / divisor }.latent(),
            video_channels: self.transformer.video.in_channels,
            audio: self.audio,
            audio_channels: self.transformer.audio.in_channels,
            keyframes: self.images.guides(),
            second,
        };
        match self.recipe {
            Recipe::OneStage => vec![shapes(1, false)],
            _ => vec![shapes(2, false), shapes(1, true)],
        }
    }

    fn check_channels(&self, config: &Config) -> Result<()> {
        if self.audio.is_some() && self.transformer.audio.in_channels % AUDIO_BINS != 0 {
            let problem = format!(
                "is {}, not a multiple of the {AUDIO_BINS} bins of an audio latent",
                self.transformer.audio.in_channels
            );
            return Err(config.error("transformer.audio_in_channels", problem));
        }
        Ok(())
    }

    fn load<T>(
        &self,
        component: Component,
        progress: &mut dyn Progress,
        make: impl FnOnce(&Weights, &Config) -> Result<T>,
    ) -> Result<T> {
        self.load_from(&self.checkpoint, component, progress, make)
    }

    fn load_from<T>(
        &self,
        files: &Checkpoint,
        component: Component,
        progress: &mut dyn Progress,
        make: impl FnOnce(&Weights, &Config) -> Result<T>,
    ) -> Result<T> {
        let (weights, config) = files.component(component, self.request.dtype)?;
        let network = make(&weights, &config)?;
        self.finish(&weights, &component.to_string(), component.unread(), progress)?;
        Ok(network)
    }

    /// Ends the loading of a network as the request wants it.
    fn finish(
        &self,
        weights: &Weights,
        name: &str,
        unread: Unread,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let left = weights.finish(match self.request.unread {
            UnreadPolicy::Allow => Unread::Report,
            UnreadPolicy::Strict => Unread::Refuse,
            UnreadPolicy::Component => unread,
        })?;
        match left.first() {
            None => Ok(()),
            Some(first) => {
                progress.note(format!("{name}: {} tensors are not used, {first} first", left.len()))
            }
        }
    }
}

/// The checkpoint with the spatial upsampler x2: the file that is named, or the one among the model's files.
fn upsampler(request: &Request, checkpoint: &Checkpoint) -> Result<Option<Checkpoint>> {
    let doubles = |files: &Checkpoint| -> Result<(bool, Config)> {
        let (_, config) = files.component(Component::Upsampler, request.dtype)?;
        let scale = config.optional_f64("spatial_scale")?.unwrap_or(2.0);
        Ok((config.bool("spatial_upsample")? && !config.bool("temporal_upsample")? && scale == 2.0, config))
    };
    if let Some(path) = &request.spatial_upsampler {
        let files = Checkpoint::open(&[path])?;
        let (fits, config) = doubles(&files)?;
        let error = || config.error("spatial_upsample", "is not that of a spatial upsampler x2");
        return if fits { Ok(Some(files)) } else { Err(error()) };
    }
    for file in checkpoint.holders(Component::Upsampler) {
        let files = Checkpoint::open(&[file.path()])?;
        if doubles(&files)?.0 {
            return Ok(Some(files));
        }
    }
    Ok(None)
}

fn prompts(request: &Request, transformer: &dit::Config, negative: bool) -> Result<Prompts> {
    if let Some(path) = &request.embedding {
        let audio = request.audio.then_some(transformer.audio.context_width());
        let widths = Widths { video: transformer.video.context_width(), audio, negative };
        return Ok(Prompts::Embedding(EmbeddingFile::open(path, widths)?));
    }
    let folder = request.gemma.as_ref().ok_or_else(|| {
        Error::request(
            "there is no text encoder",
            "give the folder of Gemma 3 with --gemma, or connector outputs with --embedding",
        )
    })?;
    let gemma = GemmaFolder::open(folder)?;
    let tokenizer = gemma.tokenizer()?;
    let mut ids = vec![tokenizer.encode(request.prompt.as_deref().unwrap_or_default())?];
    if negative {
        ids.push(match &request.negative_prompt {
            Some(text) => tokenizer.encode(text)?,
            None => tokenizer.encode_cut(NEGATIVE_PROMPT)?,
        });
    }
    let rows = gemma
        .weights(request.dtype)
        .shape("embed_tokens.weight")
        .and_then(|shape| shape.first().copied())
        .unwrap_or(0);
    for ids in &ids {
        tokenizer.check_rows(ids, rows)?;
    }
    Ok(Prompts::Tokens { gemma, ids })
}
