//! The audio-video diffusion transformer: noisy latents, noise levels, text and positions → velocities.
//!
//! Two streams of tokens, video and audio, run side by side through the same blocks and hear each other in each of them.
//! What lives here is the network; noise schedules, guidance and the layout of latents as tokens are in `diffusion`.

mod attention;
mod block;
mod config;
mod modulation;
mod port;
mod rope;
mod stream;

use mlx::{Array, Dtype};

pub(crate) use attention::{Attention, Keep, Shape as AttentionShape};
pub use config::{Config, StreamConfig, TextModulation};
pub use port::Prepared;
pub use rope::{Frequencies, Rope};
pub(crate) use stream::{FeedForward, Flow};

use block::{Block, Kept};
use port::Port;

use crate::checkpoint::{self, Weights};
use crate::error::{Error, Result};
use crate::shape::Modality;
use crate::trace::Trace;

impl Modality {
    /// What stands before its keys and settings.
    fn prefix(self) -> &'static str {
        match self {
            Self::Video => "",
            Self::Audio => "audio_",
        }
    }

    /// Axes of its positions.
    fn axes(self) -> usize {
        match self {
            Self::Video => 3,
            Self::Audio => 1,
        }
    }

    /// Names of the modulations of its part in the exchange, and of the gate of what it hears.
    fn exchange_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Video => ("av_ca_video_scale_shift_adaln_single", "av_ca_a2v_gate_adaln_single"),
            Self::Audio => ("av_ca_audio_scale_shift_adaln_single", "av_ca_v2a_gate_adaln_single"),
        }
    }
}

/// What one modality is given for a whole run. A batch of 1 serves any batch of latents.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// Start and end of each token: seconds, then for video pixels down and pixels across.
    pub positions: &'a Array, // (batch, 3 or 1, tokens, 2)
    /// The text connectors' output.
    pub context: &'a Array, // (batch, text tokens, context width)
    /// How much a token attends to another, from 0 to 1.
    pub attention_mask: Option<&'a Array>, // (batch, tokens, tokens), (query, key)
    /// Above 0 for tokens that encode a single pixel frame. Models without an embedding for them take no notice.
    pub keyframes_mask: Option<&'a Array>, // (batch, tokens)
}

/// What one modality is given at a step.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Noisy latents.
    pub latent: &'a Array, // (batch, tokens, channels)
    /// Sigma of each token.
    pub timesteps: &'a Array, // (batch, tokens)
    /// Sigma of the step: 0 for a modality that is kept as it is.
    pub sigma: &'a Array, // (batch)
    /// From [`Dit::prepare`].
    pub prepared: &'a Prepared,
}

/// What guidance leaves out for one sample of the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Perturbation {
    /// Blocks in which a video token's self-attention gives its own value.
    pub skip_video_self_attention: Vec<usize>,
    /// The same for audio.
    pub skip_audio_self_attention: Vec<usize>,
    /// Whether video and audio hear nothing of each other.
    pub skip_cross_modal: bool,
}

/// The transformer.
#[derive(Debug)]
pub struct Dit {
    video: Port,
    audio: Port,
    blocks: Vec<Block>,
    dtype: Dtype,
}

impl Dit {
    /// Reads the transformer; `config` is the header's whole configuration. Activations get the weights' dtype.
    pub fn load(weights: &Weights, config: &checkpoint::Config) -> Result<Self> {
        let config = Config::new(config)?;
        let blocks = weights.at("transformer_blocks");
        Ok(Self {
            video: Port::load(weights, &config, &config.video)?,
            audio: Port::load(weights, &config, &config.audio)?,
            blocks: (0..config.layers)
                .map(|index| Block::load(&blocks.at(index), &config))
                .collect::<Result<_>>()?,
            dtype: weights.dtype(),
        })
    }

    /// Everything that a run's steps share: rotary tables, the text's projection, masks.
    pub fn prepare(&self, modality: Modality, conditions: &Conditions) -> Result<Prepared> {
        match modality {
            Modality::Video => self.video.prepare(conditions),
            Modality::Audio => self.audio.prepare(conditions),
        }
    }

    /// One pass → the velocities of the modalities that are given, (batch, tokens, channels) in the weights' dtype.
    /// `perturbations` has one entry per sample of the batch, or none at all. Records `block.<i>.video` and `.audio`.
    pub fn forward<'a>(
        &self,
        video: Option<&Input<'a>>,
        audio: Option<&Input<'a>>,
        perturbations: &[Perturbation],
        trace: &mut Trace,
    ) -> Result<(Option<Array>, Option<Array>)> {
        let samples = video.or(audio).map_or(0, |input| input.latent.shape().first().copied().unwrap_or(0));
        self.check(perturbations, samples)?;
        let [mut video_flow, mut audio_flow] = self.enter(video, audio)?;
        for index in 0..self.blocks.len() {
            self.block(index, [&mut video_flow, &mut audio_flow], perturbations)?;
            for (name, flow) in [("video", &video_flow), ("audio", &audio_flow)] {
                if let Some(flow) = flow {
                    trace.record(|| format!("block.{index}.{name}"), || Ok(flow.x.clone()))?;
                }
            }
        }
        let video = video_flow.map(|flow| self.video.leave(&flow)).transpose()?;
        let audio = audio_flow.map(|flow| self.audio.leave(&flow)).transpose()?;
        mlx::eval([&video, &audio].into_iter().flatten())?;
        Ok((video, audio))
    }

    /// The video and the audio that are given, ready for the first block.
    pub(crate) fn enter<'a>(
        &self,
        video: Option<&Input<'a>>,
        audio: Option<&Input<'a>>,
    ) -> Result<[Option<Flow<'a>>; 2]> {
        let enter = |port: &Port, own: &Input<'a>, other: Option<&Input<'a>>| {
            port.enter(own, other.unwrap_or(own).sigma)
        };
        let video_flow = video.map(|video| enter(&self.video, video, audio)).transpose()?;
        Ok([video_flow, audio.map(|audio| enter(&self.audio, audio, video)).transpose()?])
    }

    /// Moves video and audio through block `index`, and computes them.
    pub(crate) fn block(
        &self,
        index: usize,
        [video, audio]: [&mut Option<Flow>; 2],
        perturbations: &[Perturbation],
    ) -> Result<()> {
        let kept = self.kept(perturbations, index)?;
        Ok(self.blocks[index].forward(video.as_mut(), audio.as_mut(), &kept)?)
    }

    fn kept(&self, perturbations: &[Perturbation], block: usize) -> mlx::Result<Kept> {
        let keep = |skips: &dyn Fn(&Perturbation) -> bool| {
            Keep::new(&perturbations.iter().map(skips).collect::<Vec<_>>(), self.dtype)
        };
        Ok(Kept {
            video: keep(&|sample| sample.skip_video_self_attention.contains(&block))?,
            audio: keep(&|sample| sample.skip_audio_self_attention.contains(&block))?,
            exchange: keep(&|sample| sample.skip_cross_modal)?,
        })
    }

    fn check(&self, perturbations: &[Perturbation], samples: i32) -> Result<()> {
        if !perturbations.is_empty() && perturbations.len() as i32 != samples {
            return Err(Error::request(
                format!("{} perturbations for a batch of {samples}", perturbations.len()),
                "give one per sample, or none",
            ));
        }
        let layers = self.blocks.len();
        let blocks = perturbations.iter().flat_map(|sample| {
            sample.skip_video_self_attention.iter().chain(&sample.skip_audio_self_attention)
        });
        match blocks.max() {
            Some(&block) if block >= layers => Err(Error::request(
                format!("block {block} cannot be perturbed: this model has {layers} blocks, counted from 0"),
                format!("name blocks from 0 to {}", layers.saturating_sub(1)),
            )),
            _ => Ok(()),
        }
    }
}
