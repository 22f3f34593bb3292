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
/// Tokens that are projected at once: of each all hidden states are stacked, which is 46 times its features at full size.
pub const AT_ONCE: usize = 256;

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

/// Mean, and from the smallest value to the largest, of a hidden state over a prompt: (1, 1, 1) each, f32.
struct Range {
    mean: Array,
    range: Array,
}

impl Range {
    fn of(state: &Array) -> mlx::Result<Self> {
        let state = state.astype(Dtype::F32)?; // (1, tokens, hidden)
        let mean = state.sum(&[1, 2], true)?.multiply(1.0 / ((state.dim(1) * state.dim(2)) as f32 + EPS))?;
        let range = state.max(&[1, 2], true)?.subtract(state.min(&[1, 2], true)?)?;
        mlx::eval([&mean, &range])?;
        Ok(Self { mean, range })
    }

    fn normalize(&self, x: &Array) -> mlx::Result<Array> {
        x.subtract(&self.mean)?.multiply(8.0f32)?.divide(self.range.add(EPS)?)
    }
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

    /// Hidden states of prompts' real tokens, each (1, tokens, hidden) → features of each prompt. A matrix, which may be
    /// larger than all else of the text encoder, is used for all prompts before the next one, and its file's pages are then
    /// given back.
    pub fn forward(&self, prompts: &[Vec<Array>]) -> Result<Vec<Features>> {
        prompts.iter().try_for_each(|states| self.check(states))?;
        let project = |linear: &Linear, name: &str, rescale: Option<f64>| -> Result<Vec<Array>> {
            let features = prompts.iter().map(|states| self.project(states, linear, rescale)).collect();
            self.weights.at(name).release();
            features
        };
        Ok(match &self.kind {
            Kind::Shared(linear) => {
                let both = project(linear, "aggregate_embed", None)?;
                both.into_iter().map(|video| Features { audio: video.clone(), video }).collect()
            }
            Kind::Each { video, audio } => {
                let rescale =
                    |linear: &Linear| Some((f64::from(linear.outputs()) / f64::from(self.hidden)).sqrt());
                let video = project(video, "video_aggregate_embed", rescale(video))?;
                let audio = project(audio, "audio_aggregate_embed", rescale(audio))?;
                video.into_iter().zip(audio).map(|(video, audio)| Features { video, audio }).collect()
            }
        })
    }

    fn check(&self, states: &[Array]) -> Result<()> {
        let fits = |state: &Array| state.rank() == 3 && state.dim(2) == self.hidden;
        if states.len() as i32 == self.states && states.iter().all(fits) {
            return Ok(());
        }
        let width = states.first().map_or(0, |state| state.dim(-1));
        Err(self.weights.error(
            "",
            format!(
                "takes {} hidden states of width {}; the text encoder gives {} of width {width}",
                self.states,
                self.hidden,
                states.len()
            ),
            "use the Gemma model that this checkpoint was made for",
        ))
    }

    /// One matrix times one prompt's hidden states, some tokens at a time → (1, tokens, width)
    fn project(&self, states: &[Array], linear: &Linear, rescale: Option<f64>) -> Result<Array> {
        let tokens = states.first().map_or(0, |state| state.dim(1));
        let over_prompt = match self.kind {
            Kind::Shared(_) => states.iter().map(Range::of).collect::<mlx::Result<Vec<_>>>()?,
            Kind::Each { .. } => Vec::new(),
        };
        let mut pieces = Vec::new();
        for start in (0..tokens).step_by(AT_ONCE) {
            let piece = start..tokens.min(start + AT_ONCE as i32);
            let normed = states.iter().enumerate().map(|(index, state)| {
                let x = state.slice(1, piece.clone())?.astype(Dtype::F32)?; // (1, piece, hidden)
                let normed = match over_prompt.get(index) {
                    Some(range) => range.normalize(&x)?,
                    None => x.multiply(x.square()?.mean(&[-1], true)?.add(EPS)?.rsqrt()?)?,
                };
                normed.astype(self.dtype)
            });
            let normed = normed.collect::<mlx::Result<Vec<_>>>()?;
            let stacked = mlx::stack(&normed.iter().collect::<Vec<_>>(), -1)?; // (1, piece, hidden, states)
            drop(normed); // each is let go of when it has been stacked
            let flat = stacked.reshape(&[1, stacked.dim(1), self.hidden * self.states])?;
            let flat = if let Some(rescale) = rescale { flat.multiply(rescale)? } else { flat };
            pieces.push(linear.forward(&flat)?);
            mlx::eval(&pieces)?;
        }
        Ok(mlx::concatenate(&pieces.iter().collect::<Vec<_>>(), 1)?)
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
