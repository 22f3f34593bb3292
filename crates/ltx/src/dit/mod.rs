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

use crate::checkpoint::{self, Blocks, Streamed, Weights};
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

/// One pass through the network. `perturbations` has one entry per sample of the batch, or none at all.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct Pass<'a> {
    pub video: Option<Input<'a>>,
    pub audio: Option<Input<'a>>,
    pub perturbations: Vec<Perturbation>,
}

/// The velocities of the modalities that were given, (batch, tokens, channels) in the weights' dtype.
pub type Velocities = (Option<Array>, Option<Array>);

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
    blocks: Blocks<Block>,
    dtype: Dtype,
}

impl Dit {
    /// Reads the transformer; `config` is the header's whole configuration. Activations get the weights' dtype. Blocks are
    /// kept as `weights` says ([`Weights::kept`]).
    pub fn load(weights: &Weights, config: &checkpoint::Config) -> Result<Self> {
        let config = Config::new(config)?;
        let (blocks, block_config) = (weights.at("transformer_blocks"), config.clone());
        Ok(Self {
            video: Port::load(weights, &config, &config.video)?,
            audio: Port::load(weights, &config, &config.audio)?,
            blocks: Blocks::load(&blocks, config.layers, move |block| Block::load(block, &block_config))?,
            dtype: weights.dtype(),
        })
    }

    /// What streaming its blocks took since this was asked last, if they are streamed.
    pub fn streaming(&self) -> Option<Streamed> {
        self.blocks.streaming()
    }

    /// Everything that a run's steps share: rotary tables, the text's projection, masks.
    pub fn prepare(&self, modality: Modality, conditions: &Conditions) -> Result<Prepared> {
        match modality {
            Modality::Video => self.video.prepare(conditions),
            Modality::Audio => self.audio.prepare(conditions),
        }
    }

    /// One pass → its velocities. Records `block.<i>.video` and `.audio`.
    pub fn forward(&self, pass: &Pass, trace: &mut Trace) -> Result<Velocities> {
        let mut velocities = self.together(std::slice::from_ref(pass), trace)?;
        velocities.pop().ok_or_else(|| Error::request("no pass through the transformer", "ask for one"))
    }

    /// Several passes → their velocities, the same as one by one. Blocks that are streamed are read once for all of them.
    pub fn forward_all(&self, passes: &[Pass]) -> Result<Vec<Velocities>> {
        let together = if self.blocks.streamed() { passes.len().max(1) } else { 1 };
        let mut all = Vec::new();
        for passes in passes.chunks(together) {
            all.extend(self.together(passes, &mut Trace::off())?);
        }
        Ok(all)
    }

    fn together(&self, passes: &[Pass], trace: &mut Trace) -> Result<Vec<Velocities>> {
        let mut flows = Vec::new();
        for Pass { video, audio, perturbations } in passes {
            let given = video.as_ref().or(audio.as_ref());
            let samples = given.and_then(|input| input.latent.shape().first().copied());
            self.check(perturbations, samples.unwrap_or(0))?;
            flows.push((self.enter(video.as_ref(), audio.as_ref())?, perturbations));
        }
        // What the block before computes on a GPU.
        let mut before: Vec<Array> = Vec::new();
        for index in 0..self.blocks.count() {
            self.blocks.with(index, |block| {
                for ([video, audio], perturbations) in &mut flows {
                    let kept = self.kept(perturbations, index)?;
                    block.forward(video.as_mut(), audio.as_mut(), &kept)?;
                    let made = [&*video, &*audio].into_iter().flatten().map(|flow| &flow.x);
                    // Block by block, or the graph of all of them would hold every intermediate at once.
                    if self.blocks.streamed() {
                        mlx::eval(made)?;
                        continue;
                    }
                    // A GPU gets its next block while it computes this one, and no more: two at a time bound memory.
                    let made: Vec<Array> = made.cloned().collect();
                    mlx::start(&made)?;
                    mlx::eval(&std::mem::replace(&mut before, made))?;
                }
                Ok(())
            })?;
            for (name, flow) in
                flows.iter().flat_map(|([video, audio], _)| [("video", video), ("audio", audio)])
            {
                if let Some(flow) = flow {
                    trace.record(|| format!("block.{index}.{name}"), || Ok(flow.x.clone()))?;
                }
            }
        }
        let mut all = Vec::new();
        for ([video, audio], _) in flows {
            let video = video.map(|flow| self.video.leave(&flow)).transpose()?;
            let audio = audio.map(|flow| self.audio.leave(&flow)).transpose()?;
            mlx::eval([&video, &audio].into_iter().flatten())?;
            all.push((video, audio));
        }
        Ok(all)
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
        self.blocks.with(index, |block| {
            block.forward(video.as_mut(), audio.as_mut(), &kept)?;
            Ok(mlx::eval([&*video, &*audio].into_iter().flatten().map(|flow| &flow.x))?)
        })
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
        let layers = self.blocks.count();
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
