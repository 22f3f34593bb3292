//! A block: both streams, and the crossing where they hear each other.

use mlx::Array;

use super::attention::{Attention, Keep, Shape};
use super::config::{Config, StreamConfig};
use super::modulation::Modulation;
use super::rope::Rope;
use super::stream::{Flow, Stream};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Onto};

/// What guidance leaves out of a block.
#[derive(Debug)]
pub struct Kept {
    /// Video's self-attention.
    pub video: Keep,
    /// Audio's self-attention.
    pub audio: Keep,
    /// What either hears of the other.
    pub exchange: Keep,
}

/// One of the transformer's blocks.
#[derive(Debug)]
pub struct Block {
    video: Stream,
    audio: Stream,
    crossing: Crossing,
}

impl Block {
    /// Reads `transformer_blocks.<i>`.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        Ok(Self {
            video: Stream::load(weights, config, &config.video)?,
            audio: Stream::load(weights, config, &config.audio)?,
            crossing: Crossing::load(weights, config)?,
        })
    }

    /// Moves the modalities that are there one block on; the caller has them computed.
    pub fn forward<'a>(
        &self,
        mut video: Option<&mut Flow<'a>>,
        mut audio: Option<&mut Flow<'a>>,
        kept: &Kept,
    ) -> mlx::Result<()> {
        if let Some(video) = &mut video {
            self.video.attend_to_itself(video, &kept.video)?;
            self.video.attend_to_text(video)?;
        }
        if let Some(audio) = &mut audio {
            self.audio.attend_to_itself(audio, &kept.audio)?;
            self.audio.attend_to_text(audio)?;
        }
        if let (Some(video), Some(audio)) = (&mut video, &mut audio) {
            self.crossing.exchange(video, audio, &kept.exchange)?;
        }
        if let Some(video) = &mut video {
            self.video.feed_forward(video)?;
        }
        if let Some(audio) = &mut audio {
            self.audio.feed_forward(audio)?;
        }
        Ok(())
    }
}

/// Where video and audio attend to each other, in both directions from the state before.
#[derive(Debug)]
struct Crossing {
    audio_to_video: Attention,
    video_to_audio: Attention,
    video: Tables,
    audio: Tables,
    eps: f32,
}

/// What a block adds to the modulations in [`super::stream::Exchange`].
#[derive(Debug)]
struct Tables {
    modulation: Array, // (4, width)
    gate: Array,       // (1, width)
}

/// First row of scale and shift for each direction, in the tables of both modalities.
const AUDIO_TO_VIDEO: i32 = 0;
const VIDEO_TO_AUDIO: i32 = 2;

impl Crossing {
    fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let Config { video, audio, gated, norm_eps: eps, .. } = config;
        // Heads are audio's in both directions.
        let attention = |name: &str, listener: &StreamConfig, speaker: &StreamConfig| {
            let shape = Shape {
                query: listener.width(),
                context: speaker.width(),
                heads: audio.heads,
                head_dim: audio.head_dim,
                gated: *gated,
                eps: *eps,
            };
            Attention::load(&weights.at(name), shape)
        };
        let tables = |name: &str, stream: &StreamConfig| -> Result<Tables> {
            let table = weights.tensor(name, &[5, stream.width()])?;
            Ok(Tables { modulation: table.slice(0, 0..4)?, gate: table.slice(0, 4..5)? })
        };
        Ok(Self {
            audio_to_video: attention("audio_to_video_attn", video, audio)?,
            video_to_audio: attention("video_to_audio_attn", audio, video)?,
            video: tables("scale_shift_table_a2v_ca_video", video)?,
            audio: tables("scale_shift_table_a2v_ca_audio", audio)?,
            eps: *eps,
        })
    }

    fn exchange(&self, video: &mut Flow, audio: &mut Flow, keep: &Keep) -> mlx::Result<()> {
        if let Keep::Nobody = keep {
            return Ok(());
        }
        let video_before = Voice::new(video, &self.video, self.eps)?;
        let audio_before = Voice::new(audio, &self.audio, self.eps)?;
        video.x = video_before.hear(&video.x, &audio_before, &self.audio_to_video, AUDIO_TO_VIDEO, keep)?;
        audio.x = audio_before.hear(&audio.x, &video_before, &self.video_to_audio, VIDEO_TO_AUDIO, keep)?;
        Ok(())
    }
}

/// A modality as the other one hears it, and as it listens.
struct Voice<'a> {
    normed: Array,          // (batch, tokens, width)
    modulation: Modulation, // 4 rows: scale and shift for either direction
    gate: Array,            // (batch or 1, tokens or 1, width)
    rope: &'a Rope,
}

impl<'a> Voice<'a> {
    fn new(flow: &Flow<'a>, tables: &Tables, eps: f32) -> mlx::Result<Self> {
        Ok(Self {
            normed: nn::rms_norm(&flow.x, None, eps)?,
            modulation: flow.exchange.modulation.plus(&tables.modulation)?,
            gate: flow.exchange.gate.plus(&tables.gate)?.row(0)?,
            rope: &flow.prepared.exchange_rope,
        })
    }

    /// `x` with what this modality's tokens take from `speaker`'s: (batch, tokens, width).
    fn hear(
        &self,
        x: &Array,
        speaker: &Voice,
        attention: &Attention,
        direction: i32,
        keep: &Keep,
    ) -> mlx::Result<Array> {
        let turned = |voice: &Voice| {
            let row = |row| voice.modulation.row(row);
            nn::modulated(&voice.normed, &row(direction)?, &row(direction + 1)?)
        };
        let ropes = Some((self.rope, speaker.rope));
        let gate = if let Keep::Some(kept) = keep { &self.gate.multiply(kept)? } else { &self.gate };
        attention.forward(Onto { x, gate: Some(gate) }, &turned(self)?, &turned(speaker)?, ropes)
    }
}
