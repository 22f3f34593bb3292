//! The stack of hidden states → features of each modality.
//!
//! 2.0 normalizes every layer by its mean and range over the prompt and projects once for both modalities; later
//! generations normalize every token by its root mean square and project for each. Formulas: `FeatureExtractorV1` and
//! `FeatureExtractorV2` of Lightricks' ltx-core.

use mlx::{Array, Dtype};

use super::connector::width;
use crate::checkpoint::{Config, Weights};
use crate::error::Result;
use crate::nn::{Bias, Linear};

const EPS: f32 = 1e-6;

/// The projection's output for real tokens.
#[derive(Clone, Debug)]
pub struct Features {
    /// (1, tokens, video connector width)
    pub video: Array,
    /// (1, tokens, audio connector width)
    pub audio: Array,
}

/// The text projection.
#[derive(Debug)]
pub struct Projection {
    kind: Kind,
    /// Width of a hidden state.
    hidden: i32,
    /// Hidden states that are stacked.
    states: i32,
    dtype: Dtype,
    weights: Weights,
}

#[derive(Debug)]
enum Kind {
    /// 2.0
    Shared(Linear),
    /// 2.3 and later
    Each { video: Linear, audio: Linear },
}

impl Projection {
    /// Reads the text projection; `config` is the header's whole configuration.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let transformer = config.at("transformer")?;
        let hidden = transformer.i32("caption_channels")?;
        let shared = weights.has("aggregate_embed.weight");
        let name = if shared { "aggregate_embed" } else { "video_aggregate_embed" };
        let inputs =
            weights.shape(&format!("{name}.weight")).and_then(|shape| shape.get(1).copied()).unwrap_or(0);
        if hidden < 1 || inputs < hidden || inputs % hidden != 0 {
            return Err(weights.error(
                &format!("{name}.weight"),
                format!("takes {inputs} inputs, not a stack of hidden states of width {hidden}"),
                "use the official file: weights and configuration do not belong together",
            ));
        }
        let (video, audio) = (width(&transformer, "")?, width(&transformer, "audio_")?);
        let linear = |name: &str, outputs, bias| Linear::load(&weights.at(name), inputs, outputs, bias);
        let kind = if shared {
            Kind::Shared(linear(name, video, Bias::No)?)
        } else {
            Kind::Each {
                video: linear(name, video, Bias::Yes)?,
                audio: linear("audio_aggregate_embed", audio, Bias::Yes)?,
            }
        };
        Ok(Self { kind, hidden, states: inputs / hidden, dtype: weights.dtype(), weights: weights.clone() })
    }

    /// Hidden states of one prompt's real tokens, each (1, tokens, hidden) → features.
    pub fn forward(&self, states: &[Array]) -> Result<Features> {
        let fits = |state: &Array| state.rank() == 3 && state.dim(2) == self.hidden;
        if states.len() as i32 != self.states || !states.iter().all(fits) {
            let width = states.first().map_or(0, |state| state.dim(-1));
            return Err(self.weights.error(
                "",
                format!(
                    "takes {} hidden states of width {}; the text encoder gives {} of width {width}",
                    self.states,
                    self.hidden,
                    states.len()
                ),
                "use the Gemma model that this checkpoint was made for",
            ));
        }
        let stacked = mlx::stack(&states.iter().collect::<Vec<_>>(), -1)?.astype(Dtype::F32)?; // (1, tokens, hidden, states)
        let flat = |x: Array| -> mlx::Result<Array> {
            x.reshape(&[x.dim(0), x.dim(1), self.hidden * self.states])?.astype(self.dtype) // (1, tokens, hidden · states)
        };
        let features = match &self.kind {
            Kind::Shared(linear) => {
                let count = (stacked.dim(1) * self.hidden) as f32;
                let mean = stacked.sum(&[1, 2], true)?.multiply(1.0 / (count + EPS))?; // (1, 1, 1, states)
                let range = stacked.max(&[1, 2], true)?.subtract(stacked.min(&[1, 2], true)?)?;
                let normed = stacked.subtract(&mean)?.multiply(8.0f32)?.divide(range.add(EPS)?)?;
                let video = linear.forward(&flat(normed)?)?;
                Features { audio: video.clone(), video }
            }
            Kind::Each { video, audio } => {
                let variance = stacked.square()?.mean(&[2], true)?; // (1, tokens, 1, states)
                let normed = flat(stacked.multiply(variance.add(EPS)?.rsqrt()?)?)?;
                let each = |linear: &Linear| -> mlx::Result<Array> {
                    let rescale = (f64::from(linear.outputs()) / f64::from(self.hidden)).sqrt();
                    linear.forward(&normed.multiply(rescale)?)
                };
                Features { video: each(video)?, audio: each(audio)? }
            }
        };
        mlx::eval([&features.video, &features.audio])?;
        Ok(features)
    }

    /// What the official code gives for a padding token: the bias, or zeros. (1, 1, width) each
    pub fn padding(&self) -> Result<Features> {
        let zeros = mlx::zeros(&[1, 1, self.hidden * self.states], self.dtype)?;
        Ok(match &self.kind {
            Kind::Shared(linear) => {
                let video = linear.forward(&zeros)?;
                Features { audio: video.clone(), video }
            }
            Kind::Each { video, audio } => {
                Features { video: video.forward(&zeros)?, audio: audio.forward(&zeros)? }
            }
        })
    }
}
