//! Where one modality enters the blocks and leaves them: projections in and out, timestep embeddings, the text's
//! projection, positions and masks.

use mlx::{Array, Dtype};

use super::config::{Config, StreamConfig, TextModulation};
use super::modulation::{Adaln, Distinct, Modulation};
use super::rope::{Frequencies, Rope};
use super::stream::{Exchange, Flow};
use super::{Conditions, Input};
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::nn::{self, Activation, Bias, Linear};

/// What a modality's network derives from its [`Conditions`], once per run.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) rope: Rope,
    pub(super) exchange_rope: Rope,
    pub(super) context: Array,           // (batch, text tokens, width)
    pub(super) mask: Option<Array>,      // (batch, 1, tokens, tokens), added to scores
    pub(super) keyframes: Option<Array>, // (batch, tokens, 1), 1 or 0
    tokens: i32,
}

/// The text's way to the stream's width.
#[derive(Debug)]
struct CaptionProjection {
    linear_1: Linear,
    linear_2: Linear,
}

/// One modality's way in and out.
#[derive(Debug)]
pub(super) struct Port {
    stream: StreamConfig,
    patchify: Linear,
    keyframe_embedding: Option<Array>, // (1, width)
    caption_projection: Option<CaptionProjection>,
    adaln: Adaln,
    text_adaln: Option<Adaln>,
    exchange_adaln: Adaln,
    gate_adaln: Adaln,
    table: Array, // (2, width): shift and scale before the way out
    project_out: Linear,
    timestep_scale: f32,
    gate_factor: f32,
    exchange_frequencies: (i32, f32), // head_dim, furthest second
    theta: f64,
    eps: f32,
    dtype: Dtype,
}

impl Port {
    /// Reads what stands outside the blocks for the modality of `stream`.
    pub fn load(weights: &Weights, config: &Config, stream: &StreamConfig) -> Result<Self> {
        let prefix = stream.modality.prefix();
        let at = |name: &str| weights.at(format!("{prefix}{name}"));
        let width = stream.width();
        let caption_projection = |channels: i32| -> Result<CaptionProjection> {
            let projection = at("caption_projection");
            Ok(CaptionProjection {
                linear_1: Linear::load(&projection.at("linear_1"), channels, width, Bias::Yes)?,
                linear_2: Linear::load(&projection.at("linear_2"), width, width, Bias::Yes)?,
            })
        };
        let timed_text = config.text_modulation == TextModulation::Timed;
        let (own, heard) = stream.modality.exchange_names();
        Ok(Self {
            stream: stream.clone(),
            patchify: Linear::load(&at("patchify_proj"), stream.in_channels, width, Bias::Yes)?,
            keyframe_embedding: stream
                .keyframes
                .then(|| weights.tensor("keyframes_abs_pos_embedding", &[1, width]))
                .transpose()?,
            caption_projection: stream.caption_channels.map(caption_projection).transpose()?,
            adaln: Adaln::load(&at("adaln_single"), config.modulation_rows(), width)?,
            text_adaln: timed_text.then(|| Adaln::load(&at("prompt_adaln_single"), 2, width)).transpose()?,
            exchange_adaln: Adaln::load(&weights.at(own), 4, width)?,
            gate_adaln: Adaln::load(&weights.at(heard), 1, width)?,
            table: weights.tensor(&format!("{prefix}scale_shift_table"), &[2, width])?,
            project_out: Linear::load(&at("proj_out"), width, stream.out_channels, Bias::Yes)?,
            timestep_scale: config.timestep_scale,
            gate_factor: config.gate_timestep_scale / config.timestep_scale,
            exchange_frequencies: (config.audio.head_dim, config.exchange_max_position),
            theta: config.theta,
            eps: config.norm_eps,
            dtype: weights.dtype(),
        })
    }

    /// Everything that does not depend on the step.
    pub fn prepare(&self, conditions: &Conditions) -> Result<Prepared> {
        let &Conditions { positions, context, attention_mask, keyframes_mask } = conditions;
        let StreamConfig { heads, head_dim, max_positions, .. } = &self.stream;
        let (heads, axes) = (*heads, max_positions.len() as i32);
        let &[_, found_axes, tokens, 2] = positions.shape() else {
            return Err(self.misfit("positions", positions, &format!("(batch, {axes}, tokens, 2)")));
        };
        if found_axes != axes || tokens == 0 {
            return Err(self.misfit("positions", positions, &format!("(batch, {axes}, tokens, 2)")));
        }
        let context_width = self.stream.context_width();
        if !matches!(context.shape(), &[_, _, width] if width == context_width) {
            return Err(self.misfit(
                "text context",
                context,
                &format!("(batch, text tokens, {context_width})"),
            ));
        }
        let frequencies = Frequencies { heads, head_dim: *head_dim, theta: self.theta, max_positions };
        let (exchange_head_dim, furthest) = self.exchange_frequencies;
        let exchange_frequencies =
            Frequencies { heads, head_dim: exchange_head_dim, theta: self.theta, max_positions: &[furthest] };
        let context = context.astype(self.dtype)?;
        let context = match &self.caption_projection {
            Some(CaptionProjection { linear_1, linear_2 }) => {
                linear_2.forward(&linear_1.activated(&context, Activation::GeluTanh)?)?
            }
            None => context,
        };
        let mask = attention_mask.map(|mask| self.scores(mask)).transpose()?;
        let keyframes = keyframes_mask
            .map(|mask| mask.greater(0.0f32)?.astype(self.dtype)?.expand_dims(&[2]))
            .transpose()?;
        mlx::eval([Some(&context), mask.as_ref(), keyframes.as_ref()].into_iter().flatten())?;
        Ok(Prepared {
            rope: Rope::new(positions, &frequencies, self.dtype)?,
            exchange_rope: Rope::new(&positions.slice(1, 0..1)?, &exchange_frequencies, self.dtype)?,
            context,
            mask,
            keyframes,
            tokens,
        })
    }

    /// Attention in [0, 1] per (query, key) → what is added to scores: its logarithm, and the lowest finite number for 0.
    /// (batch, tokens or 1, tokens) → (batch, 1, tokens or 1, tokens)
    fn scores(&self, mask: &Array) -> mlx::Result<Array> {
        let (lowest, smallest) = match self.dtype {
            Dtype::Bf16 => (f64::from(half::bf16::MIN), f64::from(half::bf16::MIN_POSITIVE)),
            Dtype::F16 => (f64::from(half::f16::MIN), f64::from(half::f16::MIN_POSITIVE)),
            _ => (f64::from(f32::MIN), f64::from(f32::MIN_POSITIVE)),
        };
        let logarithm = mask.maximum(smallest)?.log()?.astype(self.dtype)?;
        let lowest = Array::scalar(lowest, self.dtype)?;
        mlx::select(&mask.greater(0.0f32)?, &logarithm, &lowest)?.expand_dims(&[1])
    }

    /// Latent tokens at this step's noise level → a flow through the blocks. `other_sigma` (batch) is the other modality's,
    /// or this one's own when it is alone.
    pub fn enter<'a>(&self, input: &Input<'a>, other_sigma: &Array) -> Result<Flow<'a>> {
        let &Input { latent, timesteps, sigma, prepared } = input;
        let (tokens, channels) = (prepared.tokens, self.stream.in_channels);
        if !matches!(latent.shape(), &[_, t, c] if (t, c) == (tokens, channels)) {
            return Err(self.misfit("latent", latent, &format!("(batch, {tokens}, {channels})")));
        }
        if timesteps.shape() != &latent.shape()[..2] {
            return Err(self.misfit("timesteps", timesteps, &format!("{:?}", &latent.shape()[..2])));
        }
        let mut x = self.patchify.forward(&latent.astype(self.dtype)?)?; // (batch, tokens, width)
        if let (Some(embedding), Some(mask)) = (&self.keyframe_embedding, &prepared.keyframes) {
            x = x.add(mask.multiply(embedding)?)?;
        }
        let timesteps = Distinct::new(timesteps)?.scaled(self.timestep_scale);
        let sigma = Distinct::new(sigma)?.scaled(self.timestep_scale);
        let gate = Distinct::new(other_sigma)?.scaled(self.timestep_scale).scaled(self.gate_factor);
        let (modulation, embedding) = self.adaln.forward(&timesteps)?;
        let text = self.text_adaln.as_ref().map(|adaln| adaln.forward(&sigma)).transpose()?;
        Ok(Flow {
            x,
            prepared,
            modulation,
            embedding,
            text: text.map(|(modulation, _)| modulation),
            exchange: Exchange {
                modulation: self.exchange_adaln.forward(&timesteps)?.0,
                gate: self.gate_adaln.forward(&gate)?.0,
            },
        })
    }

    /// A flow at the end of the blocks → velocities (batch, tokens, channels).
    pub fn leave(&self, flow: &Flow) -> mlx::Result<Array> {
        let modulation: Modulation = flow.embedding.plus(&self.table)?; // shift, scale
        let normed = nn::layer_norm(&flow.x, self.eps)?;
        self.project_out.forward(&nn::modulated(&normed, &modulation.row(1)?, &modulation.row(0)?)?)
    }

    fn misfit(&self, what: &str, found: &Array, expected: &str) -> Error {
        let modality = self.stream.modality;
        Error::request(
            format!("the {modality} {what} has shape {:?}, but this model takes {expected}", found.shape()),
            "use latents and embeddings that were made for this model",
        )
    }
}
