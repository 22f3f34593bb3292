//! Files that stand in for the text encoder and for the seed, so that a run can be compared with another program's.

use std::path::Path;

use mlx::{Array, Dtype};

use crate::checkpoint::File;
use crate::diffusion::patchify::{audio_tokens, video_tokens};
use crate::diffusion::step::{Draw, SeededStepNoise, StepNoise};
use crate::error::{Error, Result};
use crate::noise::Noise;
use crate::shape::{AudioShape, LatentShape, Modality};
use crate::text::Contexts;

/// Bins of an audio latent: 64 mel bins, of which the autoencoder joins four.
pub const AUDIO_BINS: i32 = 16;

/// What the transformer attends to: with the prompt, and with the negative prompt where guidance needs it.
#[derive(Clone, Debug)]
pub struct Text {
    pub positive: Contexts,
    pub negative: Option<Contexts>,
}

/// Widths of the contexts that the transformer takes.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    pub video: i32,
    pub audio: Option<i32>,
    pub negative: bool,
}

/// Connector outputs from a safetensors file: `video_context`, `audio_context` (1, tokens, width), and the same with
/// `negative_` in front for guided runs. Opening checks names and shapes; [`EmbeddingFile::read`] reads.
#[derive(Debug)]
pub struct EmbeddingFile {
    file: File,
    widths: Widths,
}

impl EmbeddingFile {
    pub fn open(path: &Path, widths: Widths) -> Result<Self> {
        let embedding = Self { file: File::open(path)?, widths };
        let required = if widths.negative { &["", "negative_"][..] } else { &[""] };
        for prefix in required {
            embedding.check(&format!("{prefix}video_context"), widths.video)?;
            if let Some(width) = widths.audio {
                embedding.check(&format!("{prefix}audio_context"), width)?;
            }
        }
        Ok(embedding)
    }

    fn check(&self, name: &str, width: i32) -> Result<()> {
        let (path, remedy) = (self.file.path(), "make the embedding with this model's text path");
        let info = self.file.info(name).ok_or_else(|| Error::file(path, name, "is missing", remedy))?;
        match info.shape.as_slice() {
            &[1, tokens, own] if tokens > 0 && own == width as usize => Ok(()),
            shape => {
                Err(Error::file(path, name, format!("has shape {shape:?}, not (1, tokens, {width})"), remedy))
            }
        }
    }

    pub fn read(&self, dtype: Dtype) -> Result<Text> {
        let contexts = |prefix: &str| -> Result<Contexts> {
            let read = |name: &str| -> Result<Array> {
                Ok(self.file.array(&format!("{prefix}{name}"))?.astype(dtype)?)
            };
            let audio = self.widths.audio.map(|_| read("audio_context")).transpose()?;
            Ok(Contexts { video: read("video_context")?, audio })
        };
        Ok(Text {
            positive: contexts("")?,
            negative: self.widths.negative.then(|| contexts("negative_")).transpose()?,
        })
    }
}

/// Where a run's initial noise comes from.
#[derive(Debug)]
pub enum NoiseSource {
    /// One stream of the seed, drawn as tokens: the video's, then the audio's, stage by stage.
    Seed(Box<Noise>),
    /// A safetensors file with `video` (1, channels, frames, height, width) and `audio` (1, channels, frames, bins);
    /// with pictures that join as tokens `video_keyframes` (1, channels, pictures, height, width); and for two stages
    /// `video_stage_2`, `audio_stage_2` and `video_keyframes_stage_2`. It may hold the noise of stochastic samplers too: see
    /// [`NoiseSource::of_steps`].
    File(Box<File>),
}

impl NoiseSource {
    pub fn new(path: Option<&Path>, seed: u64) -> Result<Self> {
        Ok(match path {
            None => Self::Seed(Box::new(Noise::new(seed))),
            Some(path) => Self::File(Box::new(File::open(path)?)),
        })
    }

    /// An error unless a file has noise of the right shapes for a stage.
    pub fn check(&self, stage: &Shapes) -> Result<()> {
        let Self::File(file) = self else { return Ok(()) };
        for (name, shape) in stage.noise() {
            let remedy = "make the noise for this model, size and number of frames";
            let info =
                file.info(&name).ok_or_else(|| Error::file(file.path(), &name, "is missing", remedy))?;
            if !info.shape.iter().map(|&size| size as i64).eq(shape.iter().map(|&size| i64::from(size))) {
                let problem = format!("has shape {:?}, but this run needs {shape:?}", info.shape);
                return Err(Error::file(file.path(), &name, problem, remedy));
            }
        }
        Ok(())
    }

    /// The noise of one modality of a stage as tokens: (1, tokens, channels), f32.
    pub fn draw(&mut self, stage: &Shapes, modality: Modality, shape: &[i32]) -> Result<Array> {
        match self {
            Self::Seed(noise) => Ok(noise.normal(shape)?),
            Self::File(file) => {
                let latent = |name: &str| Ok::<_, Error>(file.array(&stage.named(name))?.astype(Dtype::F32)?);
                Ok(match modality {
                    Modality::Audio => audio_tokens(&latent("audio")?)?,
                    Modality::Video if stage.keyframes == 0 => video_tokens(&latent("video")?)?,
                    Modality::Video => {
                        let parts = [latent("video")?, latent("video_keyframes")?];
                        mlx::concatenate(&[&video_tokens(&parts[0])?, &video_tokens(&parts[1])?], 1)?
                    }
                })
            }
        }
    }

    /// What the sampler of a stage adds: `<name>_step_<n>` and, for the midpoints of res_2s, `<name>_substep_<n>`, where
    /// `<name>` is that of the stage's initial noise and of the same shape; `seeded` if a file has none of it.
    pub fn of_steps<'a>(&'a self, stage: &'a Shapes, seeded: SeededStepNoise) -> StageNoise<'a> {
        let file = match self {
            Self::File(file) if file.info(&stage.step_name(Modality::Video, Draw::Step, 0)).is_some() => {
                Some(&**file)
            }
            _ => None,
        };
        StageNoise { file, stage, seeded, drawn: [[0; 2]; 2] }
    }

    /// Noise that the decoder asks for.
    pub fn decoder_noise(self, seed: u64) -> Noise {
        match self {
            Self::Seed(noise) => *noise,
            Self::File(_) => Noise::new(seed),
        }
    }
}

/// The noise that a sampler adds in one stage.
pub struct StageNoise<'a> {
    file: Option<&'a File>,
    stage: &'a Shapes,
    seeded: SeededStepNoise,
    /// How often each modality had each draw.
    drawn: [[usize; 2]; 2],
}

impl StepNoise for StageNoise<'_> {
    fn draw(&mut self, modality: Modality, draw: Draw, shape: &[i32]) -> Result<Array> {
        let Some(file) = self.file else { return self.seeded.draw(modality, draw, shape) };
        let index = &mut self.drawn[modality as usize][draw as usize];
        let name = self.stage.step_name(modality, draw, *index);
        *index += 1;
        let latent = file.array(&name)?.astype(Dtype::F32)?;
        let tokens = match modality {
            Modality::Video => video_tokens(&latent)?,
            Modality::Audio => audio_tokens(&latent)?,
        };
        if tokens.shape() == shape {
            return Ok(tokens);
        }
        let problem = format!("gives tokens of {:?}, but the sampler adds {shape:?}", tokens.shape());
        Err(Error::file(file.path(), name, problem, "make the noise for this model, size and sampler"))
    }
}

/// Sizes of a stage's latents.
#[derive(Clone, Copy, Debug)]
pub struct Shapes {
    pub video: LatentShape,
    pub video_channels: i32,
    pub audio: Option<AudioShape>,
    /// Channels of an audio token, bins counted in.
    pub audio_channels: i32,
    /// Pictures that join the video as tokens of their own.
    pub keyframes: usize,
    /// Whether this is the refinement of an earlier stage's result.
    pub second: bool,
}

impl Shapes {
    fn step_name(&self, modality: Modality, draw: Draw, index: usize) -> String {
        let draw = if draw == Draw::Step { "step" } else { "substep" };
        format!("{}_{draw}_{index}", self.named(modality.name()))
    }

    fn named(&self, name: &str) -> String {
        format!("{name}{}", if self.second { "_stage_2" } else { "" })
    }

    /// Names and shapes of the noise that a file must hold.
    fn noise(&self) -> Vec<(String, Vec<i32>)> {
        let LatentShape { frames, height, width } = self.video;
        let video = |frames| vec![1, self.video_channels, frames as i32, height as i32, width as i32];
        let mut noise = vec![(self.named("video"), video(frames))];
        if self.keyframes > 0 {
            noise.push((self.named("video_keyframes"), video(self.keyframes)));
        }
        if let Some(audio) = self.audio {
            let shape = vec![1, self.audio_channels / AUDIO_BINS, audio.frames as i32, AUDIO_BINS];
            noise.push((self.named("audio"), shape));
        }
        noise
    }
}
