//! What a user asks for. Everything that can be checked without weights is checked before any are read.

use std::path::PathBuf;

use mlx::Dtype;
use serde_json::{Value, json};

use super::images::{self, ImageCondition};
use super::window::{Shot, Windows};
use crate::checkpoint::Residency;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::step::Sampler;
use crate::error::{Error, Result};
use crate::nn::Packing;
use crate::text::EmbeddingCache;
use crate::video_vae::Tiling;

/// What made a clip, in its settings.
pub(super) const PROGRAM: &str = concat!("ltx ", env!("CARGO_PKG_VERSION"));

/// How to denoise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Half size, upsample, refine; no guidance. For distilled models.
    Distilled,
    /// One pass at full size: guided on a dev model, the distilled table on a distilled one.
    OneStage,
    /// Guided at half size, upsample, refine with the distilled LoRA. For dev models.
    TwoStage,
    /// `TwoStage` (on a distilled model, `Distilled`) with every picture as a guide, also that of the first frame: for
    /// what happens between given pictures.
    Keyframes,
    /// `TwoStage` with a sampler of second order, fewer steps, and some of the distilled LoRA from the start.
    TwoStageHq,
}

impl Recipe {
    /// The name on the command line and in a clip's settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Distilled => "distilled",
            Self::OneStage => "one-stage",
            Self::TwoStage => "two-stage",
            Self::Keyframes => "keyframes",
            Self::TwoStageHq => "two-stage-hq",
        }
    }

    /// What width and height must be multiples of.
    pub fn size_multiple(self) -> usize {
        if self.two_stages() { 64 } else { 32 }
    }

    /// The height used when none is asked for: the original's 480, or the next size that two stages allow.
    pub fn default_height(self) -> usize {
        if self.two_stages() { 512 } else { 480 }
    }
}

/// Guidance of one modality where it differs from the model's own.
#[allow(missing_docs)]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuidanceOverride {
    pub cfg: Option<f32>,
    pub stg: Option<f32>,
    pub stg_blocks: Option<Vec<usize>>,
    pub rescale: Option<f32>,
    pub modality: Option<f32>,
    pub skip: Option<usize>,
}

impl GuidanceOverride {
    /// `base` with what this asks for.
    pub fn over(&self, base: Guidance) -> Guidance {
        Guidance {
            cfg: self.cfg.unwrap_or(base.cfg),
            stg: self.stg.unwrap_or(base.stg),
            stg_blocks: self.stg_blocks.clone().unwrap_or(base.stg_blocks),
            rescale: self.rescale.unwrap_or(base.rescale),
            modality: self.modality.unwrap_or(base.modality),
            skip: self.skip.unwrap_or(base.skip),
        }
    }
}

/// Which unread tensors stop a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnreadPolicy {
    /// Those of the text path and the transformer.
    Component,
    /// None.
    Allow,
    /// All.
    Strict,
}

/// One clip.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the clip shows and how it sounds; with `shots` what all of them have in common. Not needed with `embedding`.
    pub prompt: Option<String>,
    /// Parts of the clip with prompts of their own, one after the other; none is a clip of one prompt.
    pub shots: Vec<Shot>,
    /// What it should not be; `None` is Lightricks' list. Used when classifier-free guidance is on.
    pub negative_prompt: Option<String>,
    /// Model files or folders.
    pub models: Vec<PathBuf>,
    /// Folder of the Gemma text encoder.
    pub gemma: Option<PathBuf>,
    /// Latent upsampler x2.
    pub spatial_upsampler: Option<PathBuf>,
    /// LoRA files and their strengths, added in this order.
    pub loras: Vec<(PathBuf, f32)>,
    /// The LoRA with which the two-stage recipes for dev models refine.
    pub distilled_lora: Option<PathBuf>,
    /// Its strengths in the two stages; `None` is the recipe's own.
    pub distilled_strengths: [Option<f32>; 2],
    /// Pictures that it shows, each at a frame of its own.
    pub images: Vec<ImageCondition>,
    /// `None` decides by the model.
    pub recipe: Option<Recipe>,
    /// Sampler of the first stage; `None` is the recipe's own.
    pub sampler: Option<Sampler>,
    /// Pixels; `None` is the recipe's default.
    pub height: Option<usize>,
    /// Pixels.
    pub width: usize,
    /// Frames.
    pub frames: usize,
    /// The most frames that are made at once: a longer clip is made window by window, each going on with the last one.
    pub window: usize,
    /// Frames of the last window that the next one is given; `None` decides by `window`.
    pub overlap: Option<usize>,
    /// Frames per second.
    pub frame_rate: f64,
    /// Denoising steps (of the first stage); `None` is the model's own.
    pub steps: Option<usize>,
    /// Seed of the noise.
    pub seed: u64,
    /// Guidance of the video.
    pub video_guidance: GuidanceOverride,
    /// Guidance of the sound.
    pub audio_guidance: GuidanceOverride,
    /// Whether to make sound.
    pub audio: bool,
    /// An encoded prompt instead of a prompt.
    pub embedding: Option<PathBuf>,
    /// Where prompts that were encoded before are kept.
    pub cache: Option<EmbeddingCache>,
    /// Contexts that mean nothing, from the prompt's letters, instead of the text encoder's.
    pub dummy_text: bool,
    /// Noise instead of what the transformer would make of it.
    pub placeholder: bool,
    /// Stop before decoding: [`Plan::latents`](super::Plan::latents) instead of [`Plan::run`](super::Plan::run).
    pub skip_vae: bool,
    /// Guide a distilled model, which was not made for it.
    pub force_guidance: bool,
    /// Initial noise instead of the seed's.
    pub noise: Option<PathBuf>,
    /// Type of weights and activations.
    pub dtype: Dtype,
    /// How the linear layers of the transformer and the text encoder are packed while they are read, where a rule
    /// allows it.
    pub quantize: Option<Packing>,
    /// Which unread tensors stop the run.
    pub unread: UnreadPolicy,
    /// How the blocks of the transformer and of the text encoder are kept.
    pub residency: Residency,
    /// The pieces that the clip is decoded in.
    pub tiling: Tiling,
}

/// 704 by 480 pixels and 97 frames with sound, in windows of 121, as the model does it by itself; without a prompt and
/// without files.
impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: None,
            shots: Vec::new(),
            negative_prompt: None,
            models: Vec::new(),
            gemma: None,
            spatial_upsampler: None,
            loras: Vec::new(),
            distilled_lora: None,
            distilled_strengths: [None; 2],
            images: Vec::new(),
            recipe: None,
            sampler: None,
            height: None,
            width: 704,
            frames: 97,
            window: 121,
            overlap: None,
            frame_rate: 24.0,
            steps: None,
            seed: 42,
            video_guidance: GuidanceOverride::default(),
            audio_guidance: GuidanceOverride::default(),
            audio: true,
            embedding: None,
            cache: None,
            dummy_text: false,
            placeholder: false,
            skip_vae: false,
            force_guidance: false,
            noise: None,
            dtype: Dtype::Bf16,
            quantize: None,
            unread: UnreadPolicy::Component,
            residency: Residency::Resident,
            tiling: Tiling::auto(),
        }
    }
}

impl Request {
    /// Checks what needs no file.
    pub fn check(&self) -> Result<()> {
        if self.dummy_text && self.embedding.is_some() {
            return Err(Error::request("both a dummy text and an embedding", "give one of them"));
        }
        match (&self.prompt, &self.embedding) {
            _ if !self.shots.is_empty() => self.check_shots()?,
            (None, None) if !self.placeholder => {
                return Err(Error::request(
                    "there is no prompt",
                    "say what the clip shows: ltx generate \"a red boat on a lake\" …",
                ));
            }
            (Some(prompt), None) if prompt.trim().is_empty() => {
                return Err(Error::request(
                    "the prompt is empty",
                    "say what the clip shows and how it sounds",
                ));
            }
            _ => {}
        }
        if !(self.frame_rate.is_finite() && (1.0..=240.0).contains(&self.frame_rate)) {
            return Err(Error::request(
                format!("the frame rate is {}", self.frame_rate),
                "give one from 1 to 240 frames per second",
            ));
        }
        if self.placeholder && !self.images.is_empty() {
            return Err(Error::request(
                "--placeholder with --image: noise shows no picture",
                "leave out one of them",
            ));
        }
        self.windows(false).sizes()?;
        images::check(&self.images, self.frames)?;
        if self.steps == Some(0) {
            return Err(Error::request("there are no denoising steps", "give at least --steps 1"));
        }
        let strengths = self.loras.iter().map(|(_, strength)| strength);
        if strengths.chain(self.distilled_strengths.iter().flatten()).any(|strength| !strength.is_finite()) {
            return Err(Error::request(
                "a LoRA's strength is not a finite number",
                "give a number such as 0.8",
            ));
        }
        for (name, guidance) in [("video", &self.video_guidance), ("audio", &self.audio_guidance)] {
            let scales = [guidance.cfg, guidance.stg, guidance.rescale, guidance.modality];
            if scales.iter().flatten().any(|scale| !scale.is_finite()) {
                return Err(Error::request(
                    format!("a {name} guidance scale is not a finite number"),
                    "give a number such as 3.0",
                ));
            }
            if guidance.rescale.is_some_and(|rescale| !(0.0..=1.0).contains(&rescale)) {
                return Err(Error::request(
                    format!("the {name} rescale is outside 0 to 1"),
                    "0 is off, 0.7 is the official value",
                ));
            }
        }
        Ok(())
    }

    fn check_shots(&self) -> Result<()> {
        if self.embedding.is_some() || self.placeholder {
            return Err(Error::request(
                "shots are prompts, and neither an embedding nor a placeholder has any use for them",
                "leave out --shot, or --embedding and --placeholder",
            ));
        }
        match self.shots.iter().position(|shot| shot.prompt.trim().is_empty()) {
            None => Ok(()),
            Some(index) => Err(Error::request(
                format!("the prompt of shot {} is empty", index + 1),
                "say what it shows and how it sounds",
            )),
        }
    }

    /// The prompt of each shot, with what all have in common before it.
    pub fn prompts(&self) -> Vec<String> {
        let common = self.prompt.as_deref().map(str::trim).filter(|prompt| !prompt.is_empty());
        if self.shots.is_empty() {
            return vec![self.prompt.clone().unwrap_or_default()];
        }
        let prompt = |shot: &Shot| match common {
            Some(common) => format!("{common} {}", shot.prompt.trim()),
            None => shot.prompt.trim().to_owned(),
        };
        self.shots.iter().map(prompt).collect()
    }

    /// What decides about windows.
    pub(super) fn windows(&self, sound: bool) -> Windows<'_> {
        let Self { window: longest, overlap, frame_rate, .. } = *self;
        Windows { longest, overlap, shots: &self.shots, frame_rate, sound }
    }

    /// What was asked for, to be kept with the clip so that it can be made again. Files are named, not located.
    pub fn settings(&self) -> Value {
        let name = |path: &PathBuf| {
            path.file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        };
        json!({
            "program": PROGRAM,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "model": self.models.iter().map(name).collect::<Vec<_>>(),
            "gemma": self.gemma.as_ref().map(name),
            "spatial_upsampler": self.spatial_upsampler.as_ref().map(name),
            "loras": self.loras.iter().map(|(path, strength)| json!([name(path), strength])).collect::<Vec<_>>(),
            "distilled_lora": self.distilled_lora.as_ref().map(name),
            "embedding": self.embedding.as_ref().map(name),
            "noise": self.noise.as_ref().map(name),
            "width": self.width,
            "frames": self.frames,
            "frame_rate": self.frame_rate,
            "seed": self.seed,
            "audio": self.audio,
            "dtype": self.dtype.to_string(),
            "quantize": self.quantize.map(|packing| packing.to_string()),
        })
    }

    /// Why the clip is no result of the model, if it is none.
    pub fn disclaimer(&self) -> Option<&'static str> {
        match (self.placeholder, self.dummy_text) {
            (true, _) => Some("not a real result: noise in place of the model (--placeholder)"),
            (false, true) => Some("not a real result: the text was a dummy (--dummy-text)"),
            (false, false) => None,
        }
    }
}
