//! What a stage begins with: contexts, noise from the seed or from a file, and the sizes of both modalities' latents.

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

    /// How many deviates of the seed's stream were drawn: what a file holds is none of them.
    pub fn drawn(&self) -> u64 {
        match self {
            Self::Seed(noise) => noise.drawn(),
            Self::File(_) => 0,
        }
    }

    /// Goes to where the stream is after `drawn` deviates.
    pub fn go_to(&mut self, drawn: u64) {
        if let Self::Seed(noise) = self {
            noise.go_to(drawn);
        }
    }
}

/// The noise that a sampler adds in one stage.
pub struct StageNoise<'a> {
    file: Option<&'a File>,
    stage: &'a Shapes,
    seeded: SeededStepNoise,
    /// How often each modality had each draw.
    drawn: [[u64; 2]; 2],
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

    fn drawn(&self) -> [u64; 4] {
        let [[a, b], [c, d]] = self.drawn;
        if self.file.is_some() { [a, b, c, d] } else { self.seeded.drawn() }
    }

    fn go_to(&mut self, drawn: [u64; 4]) {
        let [a, b, c, d] = drawn;
        self.drawn = [[a, b], [c, d]];
        self.seeded.go_to(drawn);
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
    fn step_name(&self, modality: Modality, draw: Draw, index: u64) -> String {
        let draw = if draw == Draw::Step { "step" } else { "substep" };
        format!("{}_{draw}_{index}", self.named(modality.name()))
    }

    fn named(&self, name: &str) -> String {
        format!("{name}{}", if self.second { "_stage_2" } else { "" })
    }

    /// A latent's shape, as it stands in a file.
    pub fn latent(&self, modality: Modality) -> Option<Vec<i32>> {
        let channels = self.audio_channels / AUDIO_BINS;
        match modality {
            Modality::Video => Some(self.frames(self.video.frames)),
            Modality::Audio => self.audio.map(|audio| vec![1, channels, audio.frames as i32, AUDIO_BINS]),
        }
    }

    /// The shape of so many latent frames.
    fn frames(&self, frames: usize) -> Vec<i32> {
        let LatentShape { height, width, .. } = self.video;
        vec![1, self.video_channels, frames as i32, height as i32, width as i32]
    }

    /// Names and shapes of the noise that a file must hold.
    fn noise(&self) -> Vec<(String, Vec<i32>)> {
        let mut noise = vec![(self.named("video"), self.frames(self.video.frames))];
        if self.keyframes > 0 {
            noise.push((self.named("video_keyframes"), self.frames(self.keyframes)));
        }
        noise.extend(self.latent(Modality::Audio).map(|shape| (self.named("audio"), shape)));
        noise
    }
}
