//! Works of the transformer: a block, and whole ones of both generations.

use std::path::Path;

use mlx::{Array, Dtype};
use serde_json::json;

use super::works::random;
use super::{Measured, Timer};
use crate::checkpoint::{Config, Weights};
use crate::diffusion::patchify::{audio_positions, video_positions};
use crate::dit::{self, Conditions, Dit, Input, Pass, Prepared};
use crate::error::{Error, Result};
use crate::nn::Packing;
use crate::shape::{AudioShape, Modality, VideoShape};
use crate::text::MAX_TOKENS;
use crate::trace::Trace;

/// Which transformer.
#[derive(Clone, Copy)]
pub enum Generation {
    V2_0,
    V2_3,
}

impl Generation {
    /// Its configuration, of so many blocks.
    fn config(self, blocks: Option<usize>) -> Result<Config> {
        let (name, text) = match self {
            Self::V2_0 => ("ltx-2-19b.json", include_str!("../../../../fixtures/configs/ltx-2-19b.json")),
            Self::V2_3 => ("ltx-2.3-22b.json", include_str!("../../../../fixtures/configs/ltx-2.3-22b.json")),
        };
        let mut value: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| Error::file(name, "", error.to_string(), "this is a fault of the program"))?;
        if let Some(blocks) = blocks {
            value["transformer"]["num_layers"] = json!(blocks);
        }
        Ok(Config::new(Path::new(name), value))
    }
}

/// What a transformer is given for a clip with sound.
struct Clip {
    sigma: Array,
    given: Vec<(Array, Array, Prepared)>, // latent (1, tokens, 128), timesteps (1, tokens)
    detail: String,
}

impl Clip {
    fn new(dit: &Dit, config: &Config, shape: VideoShape, dtype: Dtype) -> Result<Self> {
        const RATE: f64 = 24.0;
        let config = dit::Config::new(config)?;
        let (video, audio) = (shape.latent(), AudioShape::of_video(shape.frames, RATE)?);
        let (tokens, text) = ([video.tokens() as i32, audio.frames as i32], MAX_TOKENS as i32);
        let positions = [video_positions(video, RATE)?, audio_positions(audio.frames)?];
        let streams = [(Modality::Video, &config.video), (Modality::Audio, &config.audio)];
        let mut given = Vec::new();
        for (((modality, stream), tokens), positions) in streams.into_iter().zip(tokens).zip(&positions) {
            let context = random(&[1, text, stream.context_width()], dtype)?;
            let conditions =
                Conditions { positions, context: &context, attention_mask: None, keyframes_mask: None };
            let timesteps = mlx::full(&[1, tokens], 0.7, Dtype::F32)?;
            given.push((
                random(&[1, tokens, 128], Dtype::F32)?,
                timesteps,
                dit.prepare(modality, &conditions)?,
            ));
        }
        let detail = format!("{} video, {} audio, {text} text tokens", tokens[0], tokens[1]);
        Ok(Self { sigma: mlx::full(&[1], 0.7, Dtype::F32)?, given, detail })
    }

    /// Video's, then audio's.
    fn inputs(&self) -> Vec<Input<'_>> {
        let input = |(latent, timesteps, prepared)| Input { latent, timesteps, sigma: &self.sigma, prepared };
        self.given.iter().map(|(latent, timesteps, prepared)| input((latent, timesteps, prepared))).collect()
    }
}

pub fn dit_block(timer: &Timer) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let config = Generation::V2_3.config(Some(1))?;
    let dit = Dit::load(&Weights::random(dtype), &config)?;
    let clip = Clip::new(&dit, &config, VideoShape { frames: 25, height: 512, width: 512 }, dtype)?;
    let inputs = clip.inputs();
    let [mut video, mut audio] = dit.enter(inputs.first(), inputs.get(1))?;
    let start: Vec<Array> = [&video, &audio].into_iter().flatten().map(|flow| flow.x.clone()).collect();
    mlx::eval(&start)?;
    timer.time(dtype, clip.detail.clone(), || {
        for (flow, x) in [&mut video, &mut audio].into_iter().flatten().zip(&start) {
            flow.x = x.clone();
        }
        dit.block(0, [&mut video, &mut audio], &[])
    })
}

/// One pass through all blocks, or through `blocks` of them, with the way in and out.
pub fn dit(
    timer: &Timer,
    generation: Generation,
    blocks: Option<usize>,
    shape: [usize; 3],
    packing: Option<Packing>,
) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let config = generation.config(blocks)?;
    let dit = Dit::load(&Weights::random(dtype).packed_as(packing), &config)?;
    let [height, width, frames] = shape;
    let clip = Clip::new(&dit, &config, VideoShape { frames, height, width }, dtype)?;
    let inputs = clip.inputs();
    let pass =
        Pass { video: inputs.first().copied(), audio: inputs.get(1).copied(), perturbations: Vec::new() };
    timer.time(dtype, clip.detail.clone(), || dit.forward(&pass, &mut Trace::off()).map(drop))
}
