//! Multi-head attention as every part of a block uses it: norms over the full inner width, rotary positions, a gate per
//! head, and samples of the batch that guidance excludes.

use mlx::{Array, Dtype};

use super::rope::Rope;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Bias, Linear, Onto};

/// Which samples of the batch take part in an attention.
#[derive(Clone, Debug)]
pub enum Keep {
    /// All of them.
    All,
    /// None: the attention need not be computed.
    Nobody,
    /// Those with 1 here; the others have 0.
    Some(Array), // (batch, 1, 1)
}

impl Keep {
    /// From whether each sample is skipped; an empty list keeps everybody.
    pub fn new(skipped: &[bool], dtype: Dtype) -> mlx::Result<Self> {
        if !skipped.contains(&true) {
            return Ok(Self::All);
        }
        if !skipped.contains(&false) {
            return Ok(Self::Nobody);
        }
        let kept: Vec<f32> = skipped.iter().map(|&skip| if skip { 0.0 } else { 1.0 }).collect();
        Ok(Self::Some(Array::from_slice(&kept, &[skipped.len() as i32, 1, 1])?.astype(dtype)?))
    }
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width of the tokens that ask, and of the answer.
    pub query: i32,
    /// Width of the tokens that are attended to.
    pub context: i32,
    /// Heads.
    pub heads: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Whether every head has a gate.
    pub gated: bool,
    /// Epsilon of the norms.
    pub eps: f32,
}

/// One attention.
#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    q_norm: Array, // (heads · head_dim)
    k_norm: Array, // (heads · head_dim)
    gate: Option<Linear>,
    to_out: Linear,
    shape: Shape,
}

impl Attention {
    /// Reads one of the `…attn…` modules.
    pub fn load(weights: &Weights, shape: Shape) -> Result<Self> {
        let Shape { query, context, heads, head_dim, gated, .. } = shape;
        let inner = heads * head_dim;
        let linear =
            |name: &str, inputs, outputs| Linear::load(&weights.at(name), inputs, outputs, Bias::Yes);
        Ok(Self {
            to_q: linear("to_q", query, inner)?,
            to_k: linear("to_k", context, inner)?,
            to_v: linear("to_v", context, inner)?,
            q_norm: weights.tensor("q_norm.weight", &[inner])?,
            k_norm: weights.tensor("k_norm.weight", &[inner])?,
            gate: gated.then(|| linear("to_gate_logits", query, heads)).transpose()?,
            to_out: linear("to_out.0", inner, query)?,
            shape,
        })
    }

    /// `x` (batch, tokens, query) attends to `context` (batch, others, context), with rotary positions for the two; the
    /// answer is added to `onto`: (batch, tokens, query).
    pub fn forward(
        &self,
        onto: Onto,
        x: &Array,
        context: &Array,
        ropes: Option<(&Rope, &Rope)>,
    ) -> mlx::Result<Array> {
        let values = self.heads(&self.to_v.forward(context)?)?;
        self.project(onto, x, &self.attend(x, context, &values, ropes, None)?)
    }

    /// `x` (batch, tokens, query) attends to itself, with a `mask` (batch, 1, tokens, tokens) to add to the scores. In
    /// samples that are not kept a token takes its own value instead. The answer is added to `onto`.
    pub fn forward_self(
        &self,
        onto: Onto,
        x: &Array,
        rope: &Rope,
        mask: Option<&Array>,
        keep: &Keep,
    ) -> mlx::Result<Array> {
        let values = self.heads(&self.to_v.forward(x)?)?;
        let attended = match keep {
            Keep::Nobody => values,
            Keep::All => self.attend(x, x, &values, Some((rope, rope)), mask)?,
            Keep::Some(kept) => {
                let attended = self.attend(x, x, &values, Some((rope, rope)), mask)?;
                let kept = kept.expand_dims(&[3])?; // (batch, 1, 1, 1)
                let own = values.multiply(kept.negative()?.add(1.0f32)?)?;
                attended.multiply(&kept)?.add(&own)?
            }
        };
        self.project(onto, x, &attended)
    }

    /// (batch, tokens, query), (batch, others, context), values (batch, others, heads, head_dim) → (batch, tokens, heads, head_dim)
    fn attend(
        &self,
        x: &Array,
        context: &Array,
        values: &Array,
        ropes: Option<(&Rope, &Rope)>,
        mask: Option<&Array>,
    ) -> mlx::Result<Array> {
        let eps = self.shape.eps;
        let (q, k) = (self.to_q.forward(x)?, self.to_k.forward(context)?);
        let (q, k) = match ropes {
            Some((q_rope, k_rope)) => (
                q_rope.rotate_normed(&self.heads(&q)?, &self.q_norm, eps)?,
                k_rope.rotate_normed(&self.heads(&k)?, &self.k_norm, eps)?,
            ),
            None => (
                self.heads(&nn::rms_norm(&q, Some(&self.q_norm), eps)?)?,
                self.heads(&nn::rms_norm(&k, Some(&self.k_norm), eps)?)?,
            ),
        };
        let scale = (self.shape.head_dim as f32).sqrt().recip();
        nn::attention(&q, &k, values, scale, mask)
    }

    /// (batch, tokens, heads · head_dim) → (batch, tokens, heads, head_dim)
    fn heads(&self, x: &Array) -> mlx::Result<Array> {
        let &Shape { heads, head_dim, .. } = &self.shape;
        x.reshape(&[x.dim(0), x.dim(1), heads, head_dim])
    }

    /// Gates per head, from the tokens that asked, and the way back: (batch, tokens, heads, head_dim) → (batch, tokens, query)
    fn project(&self, onto: Onto, x: &Array, attended: &Array) -> mlx::Result<Array> {
        let attended = match &self.gate {
            Some(gate) => nn::gated_heads(attended, &gate.forward(x)?)?,
            None => attended.clone(),
        };
        let inner = self.shape.heads * self.shape.head_dim;
        self.to_out.onto(onto, &attended.reshape(&[x.dim(0), x.dim(1), inner])?)
    }
}
