//! One modality's half of a block: self-attention, text attention and feed-forward. Audio's keys are video's with
//! `audio_` in front, so one type serves both.

use mlx::Array;

use super::attention::{Attention, Keep, Shape};
use super::config::{Config, StreamConfig, TextModulation};
use super::modulation::Modulation;
use super::port::Prepared;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Activation, Bias, Linear, Onto};

/// A modality on its way through the blocks.
#[derive(Debug)]
pub struct Flow<'a> {
    /// The tokens.
    pub x: Array, // (batch, tokens, width)
    /// What stays the same at every step.
    pub prepared: &'a Prepared,
    /// Shift, scale, gate of self-attention; of feed-forward; of text attention, when that is modulated.
    pub modulation: Modulation, // 6 or 9 rows
    /// The timestep embedding, for the way out.
    pub embedding: Modulation, // 1 row
    /// Shift and scale of the text, when they depend on sigma.
    pub text: Option<Modulation>, // 2 rows
    /// For the exchange with the other modality.
    pub exchange: Exchange,
}

/// How sigma steers a modality's part in the exchange.
#[derive(Debug)]
pub struct Exchange {
    /// Scale and shift while video listens to audio; scale and shift while audio listens to video.
    pub modulation: Modulation, // 4 rows
    /// The gate of what it hears, from the other modality's sigma.
    pub gate: Modulation, // 1 row
}

/// Two layers with a GELU between, the inner one four times as wide.
#[derive(Debug)]
pub struct FeedForward {
    wide: Linear,
    narrow: Linear,
}

impl FeedForward {
    /// Reads a `…ff` module.
    pub fn load(weights: &Weights, width: i32, bias: Bias) -> Result<Self> {
        let net = weights.at("net");
        Ok(Self {
            wide: Linear::load(&net.at("0.proj"), width, 4 * width, bias)?,
            narrow: Linear::load(&net.at("2"), 4 * width, width, bias)?,
        })
    }

    /// (batch, tokens, width), added to `onto`
    pub fn forward(&self, onto: Onto, x: &Array) -> mlx::Result<Array> {
        self.narrow.onto(onto, &self.wide.activated(x, Activation::GeluTanh)?)
    }
}

/// One modality's half of one block.
#[derive(Debug)]
pub struct Stream {
    self_attention: Attention,
    text_attention: Attention,
    feed_forward: FeedForward,
    table: Array,              // (6 or 9, width)
    text_table: Option<Array>, // (2, width)
    eps: f32,
}

impl Stream {
    /// Reads the stream of `stream`'s modality from a block.
    pub fn load(block: &Weights, config: &Config, stream: &StreamConfig) -> Result<Self> {
        let prefix = stream.modality.prefix();
        let at = |name: &str| block.at(format!("{prefix}{name}"));
        let width = stream.width();
        let shape = Shape {
            query: width,
            context: width,
            heads: stream.heads,
            head_dim: stream.head_dim,
            gated: config.gated,
            eps: config.norm_eps,
        };
        let table = |name: &str, rows| block.tensor(&format!("{prefix}{name}"), &[rows, width]);
        let modulated_text = config.text_modulation != TextModulation::None;
        Ok(Self {
            self_attention: Attention::load(&at("attn1"), shape)?,
            text_attention: Attention::load(&at("attn2"), shape)?,
            feed_forward: FeedForward::load(&at("ff"), width, stream.feed_forward_bias)?,
            table: table("scale_shift_table", config.modulation_rows())?,
            text_table: modulated_text.then(|| table("prompt_scale_shift_table", 2)).transpose()?,
            eps: config.norm_eps,
        })
    }

    /// Tokens attend to each other; in samples that are not kept each only to itself.
    pub fn attend_to_itself(&self, flow: &mut Flow, keep: &Keep) -> mlx::Result<()> {
        let modulation = flow.modulation.plus(&self.table)?;
        let (shift, scale, gate) = (modulation.row(0)?, modulation.row(1)?, modulation.row(2)?);
        let normed = nn::modulated_rms_norm(&flow.x, &scale, &shift, self.eps)?;
        let Prepared { rope, mask, .. } = flow.prepared;
        let onto = Onto { x: &flow.x, gate: Some(&gate) };
        flow.x = self.self_attention.forward_self(onto, &normed, rope, mask.as_ref(), keep)?;
        Ok(())
    }

    /// Tokens attend to the text.
    pub fn attend_to_text(&self, flow: &mut Flow) -> mlx::Result<()> {
        let normed = nn::rms_norm(&flow.x, None, self.eps)?;
        let context = &flow.prepared.context;
        flow.x = match &self.text_table {
            None => {
                let onto = Onto { x: &flow.x, gate: None };
                self.text_attention.forward(onto, &normed, context, None)?
            }
            Some(table) => {
                let modulation = flow.modulation.plus(&self.table)?;
                let (shift, scale, gate) = (modulation.row(6)?, modulation.row(7)?, modulation.row(8)?);
                let text = match &flow.text {
                    Some(timed) => timed.plus(table)?,
                    None => Modulation::fixed(table)?,
                };
                let context = nn::modulated(context, &text.row(1)?, &text.row(0)?)?;
                let normed = nn::modulated(&normed, &scale, &shift)?;
                let onto = Onto { x: &flow.x, gate: Some(&gate) };
                self.text_attention.forward(onto, &normed, &context, None)?
            }
        };
        Ok(())
    }

    /// Each token by itself.
    pub fn feed_forward(&self, flow: &mut Flow) -> mlx::Result<()> {
        let modulation = flow.modulation.plus(&self.table)?;
        let (shift, scale, gate) = (modulation.row(3)?, modulation.row(4)?, modulation.row(5)?);
        let normed = nn::modulated_rms_norm(&flow.x, &scale, &shift, self.eps)?;
        flow.x = self.feed_forward.forward(Onto { x: &flow.x, gate: Some(&gate) }, &normed)?;
        Ok(())
    }
}
