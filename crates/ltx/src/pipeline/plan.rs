//! A request that was checked against the files it names.

use serde_json::{Value, json};

use super::Choices;
use super::choose::{recipe, upsampler};
use super::conditioning::{AUDIO_BINS, NoiseSource, Shapes, Text};
use super::images::Images;
use super::recipe::{Circumstances, Steps, with_loras};
use super::saved::SavedRun;
use super::text::{Prompts, prompts, widths};
use super::window::{Stretch, Window, pictures};
use super::{Generation, Kind, Recipe, Request, Shot};
use crate::checkpoint::packs::Saving;
use crate::checkpoint::{Checkpoint, Component, Config, Residency};
use crate::diffusion::guidance::Guidance;
use crate::dit;
use crate::error::{Error, Result};
use crate::shape::{AudioShape, LatentShape, VideoShape};
use crate::text::Embedding;

/// What is said of packing on the way.
fn packing_notes(request: &Request, saving: &Saving) -> Vec<String> {
    let Some(packing) = request.quantize else { return Vec::new() };
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let mut notes = match saving {
        Saving { matrices: 0, packed: true, .. } => {
            vec!["the transformer's file is packed already, and used as it is".to_string()]
        }
        Saving { matrices: 0, .. } => vec![format!("the transformer has no matrix for {packing}")],
        &Saving { matrices, before, after, .. } => vec![format!(
            "{matrices} matrices of the transformer are packed in {packing}: {} instead of {}",
            gigabytes(after),
            gigabytes(before)
        )],
    };
    if request.residency != Residency::Resident && saving.matrices > 0 {
        notes.push("while streaming, each block is packed anew whenever it is read: `ltx quantize` writes a file that is packed already, and quicker to read".into());
    }
    notes
}

/// A checked request, ready to run.
#[derive(Debug)]
pub struct Plan<'a> {
    pub(super) request: &'a Request,
    pub(super) checkpoint: Checkpoint,
    pub(super) upsampler: Option<Checkpoint>,
    pub(super) recipe: Recipe,
    pub(super) video: VideoShape,
    pub(super) audio: Option<AudioShape>,
    /// One for a clip that is made at once.
    pub(super) windows: Vec<Window>,
    pub(super) transformer: dit::Config,
    pub(super) steps: Vec<Steps>,
    /// The text, as far as it is known.
    pub(super) prompt: Option<String>,
    pub(super) prompts: Prompts,
    pub(super) images: Images,
    pub(super) notes: Vec<String>,
    /// Where what is done is saved.
    pub(super) saved: Option<SavedRun>,
    /// How weights are kept and pictures cut.
    pub(super) choices: Choices,
}

impl<'a> Plan<'a> {
    /// Checks everything that can be checked without weights: sizes, files, headers, shapes, the prompt's length.
    pub fn new(request: &'a Request) -> Result<Self> {
        Self::with_texts(request, None)
    }

    /// The same, to go on with what an interrupted run of this request has saved. Refused if that was another request, or
    /// if a file, the device or this program has changed since. Where nothing was saved, it is [`save_in`](Self::save_in).
    pub fn resume(request: &'a Request, saved: SavedRun, note: Value) -> Result<Self> {
        let mut ignored = None;
        let texts = saved.texts().unwrap_or_else(|error| {
            ignored = Some(format!("what was saved is ignored: {error}"));
            None
        });
        let encoded = texts.is_some();
        let mut plan = Self::with_texts(request, texts)?;
        plan.notes.extend(ignored);
        if saved.is_empty() {
            plan.save_in(saved, note);
            return Ok(plan);
        }
        saved.resume(plan.identity(), encoded)?;
        plan.saved = Some(saved);
        Ok(plan)
    }

    /// Has everything that is done saved, over what an interrupted run left there. `note` is for who goes on with it:
    /// [`SavedRun::note`].
    pub fn save_in(&mut self, saved: SavedRun, note: Value) {
        saved.begin(self.identity(), note);
        self.saved = Some(saved);
    }

    /// Where what is done is saved.
    pub fn saved(&self) -> Option<&SavedRun> {
        self.saved.as_ref()
    }

    /// `texts`: the prompts, encoded before.
    fn with_texts(request: &'a Request, texts: Option<Vec<Text>>) -> Result<Self> {
        request.check()?;
        let mut notes: Vec<String> = request.disclaimer().into_iter().map(String::from).collect();
        let checkpoint = Checkpoint::open(&request.models)?.packed_as(request.quantize);
        let (weights, config) = checkpoint.component(Component::Dit, request.dtype)?;
        notes.extend(packing_notes(request, &weights.saving()));
        let transformer = dit::Config::new(&config)?;
        let generation = Generation::of(checkpoint.version());
        let checkpoint = with_loras(request, checkpoint, &mut notes)?;

        let upsampler = upsampler(request, &checkpoint)?;
        let named = Kind::of(&checkpoint);
        let recipe = recipe(request, named, upsampler.is_some(), &mut notes);

        let height = request.height.unwrap_or(recipe.default_height());
        let video = VideoShape { frames: request.frames, height, width: request.width };
        video.check(recipe.size_multiple())?;
        let path = request.embedding.as_ref().filter(|_| !request.placeholder);
        let embedding = path.map(|path| Embedding::open(path, widths(&transformer))).transpose()?;
        let silent = embedding.as_ref().is_some_and(|embedding| embedding.positive.audio.is_none());
        if silent && request.audio {
            notes.push("the embedding knows nothing of sound: the clip will be silent".into());
        }
        let audio = request.audio && !silent;
        let audio = audio.then(|| AudioShape::of_video(request.frames, request.frame_rate)).transpose()?;
        if recipe.two_stages() && upsampler.is_none() && !request.placeholder {
            return Err(Error::request(
                format!("the {} recipe needs the latent upsampler x2", recipe.name()),
                "give its file with --spatial-upsampler, or use --recipe one-stage",
            ));
        }
        let windows = windows(request, video, audio, &mut notes)?;
        let divisor = if recipe.two_stages() { 2 } else { 1 };
        let first = VideoShape { height: height / divisor, width: request.width / divisor, ..video };
        let longest = windows.iter().map(|window| window.video.length).max().unwrap_or(0);
        let circumstances = Circumstances {
            request,
            recipe,
            kind: recipe.kind(named)?,
            generation,
            model: &checkpoint,
            transformer: &transformer,
            tokens: LatentShape { frames: longest, ..first.latent() }.tokens(),
            audio: audio.is_some(),
        };
        let steps = circumstances.stages(&mut notes)?;
        let negative =
            steps.iter().any(|steps| steps.guidance.iter().any(|(_, guidance)| guidance.cfg != 1.0));
        let prompt = request.prompt.clone().or(embedding.as_ref().and_then(|known| known.prompt.clone()));
        let prompts = match texts {
            Some(texts) => Prompts::Known(texts),
            None => prompts(request, &checkpoint, &transformer, embedding, negative, &mut notes)?,
        };
        let mut plan = Self {
            request,
            checkpoint,
            upsampler,
            recipe,
            video,
            audio,
            windows,
            transformer,
            steps,
            prompt,
            prompts,
            images: Images::default(),
            notes,
            saved: None,
            choices: Choices::of(request),
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

    /// What was asked for.
    pub fn request(&self) -> &Request {
        self.request
    }

    /// Width of the clip in pixels.
    pub fn width(&self) -> usize {
        self.video.width
    }

    /// Height of the clip in pixels.
    pub fn height(&self) -> usize {
        self.video.height
    }

    /// Whether the clip will have sound.
    pub fn has_sound(&self) -> bool {
        self.audio.is_some()
    }

    /// Everything that makes the clip, decided: what was asked for and what was filled in.
    pub fn settings(&self) -> Value {
        let mut settings = self.request.settings();
        settings["recipe"] = json!(self.recipe.name());
        settings["model_version"] = json!(self.checkpoint.version());
        settings["height"] = json!(self.video.height);
        settings["images"] = self.images.settings();
        settings["prompt"] = json!(self.prompt);
        settings["audio"] = json!(self.has_sound());
        if self.windows.len() > 1 {
            let sizes = self.request.windows(false).sizes().ok();
            let [window, overlap] =
                [sizes.map(|sizes| sizes.0), sizes.map(|sizes| sizes.1)].map(|size| size.map(pictures));
            settings["window"] = json!(window);
            settings["overlap"] = json!(overlap);
        }
        if !self.request.shots.is_empty() {
            let shot = |(shot, prompt): (&Shot, String)| json!({ "prompt": prompt, "seconds": shot.seconds });
            settings["shots"] = self.request.shots.iter().zip(self.request.prompts()).map(shot).collect();
        }
        if let Some(disclaimer) = self.request.disclaimer() {
            settings["disclaimer"] = json!(disclaimer);
        }
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

    /// Sizes of the latents of each stage of a window.
    pub(super) fn window_stages(&self, window: &Window) -> Vec<Shapes> {
        let mut stages = self.stages();
        for stage in &mut stages {
            stage.video.frames = window.video.length;
            stage.audio = window.audio.map(|Stretch { length, .. }| AudioShape { frames: length });
        }
        stages
    }

    /// Sizes of the latents of each stage, if all of the clip were made at once.
    pub(super) fn stages(&self) -> Vec<Shapes> {
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
}

/// The windows that a clip is made in.
fn windows(
    request: &Request,
    video: VideoShape,
    audio: Option<AudioShape>,
    notes: &mut Vec<String>,
) -> Result<Vec<Window>> {
    if request.placeholder {
        let whole = |length| Stretch { start: 0, length, given: 0 };
        let audio = audio.map(|audio| whole(audio.frames));
        return Ok(vec![Window { shot: 0, video: whole(video.latent().frames), audio }]);
    }
    let plan = request.windows(audio.is_some());
    let windows = plan.of(video.latent())?;
    let (longest, overlap) = plan.sizes()?;
    if windows.len() > 1 {
        if request.noise.is_some() {
            return Err(Error::request(
                format!("noise from a file is for one window, and this clip needs {}", windows.len()),
                format!("leave out --noise, or raise --window to {}", request.frames),
            ));
        }
        notes.push(format!(
            "made in {} windows of up to {} frames, each given {} of the last one's",
            windows.len(),
            pictures(longest),
            pictures(overlap)
        ));
    }
    Ok(windows)
}
