//! Linear layers.

use kernels::Activation;
use mlx::Array;

use super::{cpu, gelu_tanh, silu};
use crate::checkpoint::Weights;
use crate::error::Result;

/// Whether a layer has a bias. Stated by the caller, never guessed from the file.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Yes,
    No,
}

/// y = x · weightᵀ + bias.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Array,       // (out, in)
    bias: Option<Array>, // (out)
}

impl Linear {
    /// Reads `weight` (out, in) and `bias` (out) at `weights`.
    pub fn load(weights: &Weights, inputs: i32, outputs: i32, bias: Bias) -> Result<Self> {
        Ok(Self {
            weight: weights.tensor("weight", &[outputs, inputs])?,
            bias: (bias == Bias::Yes).then(|| weights.tensor("bias", &[outputs])).transpose()?,
        })
    }

    /// Width of what comes out.
    pub fn outputs(&self) -> i32 {
        self.weight.dim(0)
    }

    /// (.., in) → (.., out)
    pub fn forward(&self, x: &Array) -> mlx::Result<Array> {
        self.activated(x, Activation::None)
    }

    /// activation(x · weightᵀ + bias): (.., in) → (.., out)
    pub fn activated(&self, x: &Array, activation: Activation) -> mlx::Result<Array> {
        if let Some(y) = cpu::linear(x, &self.weight, self.bias.as_ref(), activation, None) {
            return y;
        }
        let mut y = x.matmul(self.weight.transpose_last()?)?;
        if let Some(bias) = &self.bias {
            y = y.add(bias)?;
        }
        match activation {
            Activation::None => Ok(y),
            Activation::GeluTanh => gelu_tanh(&y),
            Activation::Silu => silu(&y),
        }
    }

    /// residual + gate · (x · weightᵀ + bias): `x` (batch, tokens, in), `residual` (batch, tokens, out) and `gate` (batch
    /// or 1, tokens or 1, out) → (batch, tokens, out)
    pub fn gated_onto(&self, residual: &Array, gate: &Array, x: &Array) -> mlx::Result<Array> {
        let fused =
            cpu::linear(x, &self.weight, self.bias.as_ref(), Activation::None, Some((residual, gate)));
        fused.unwrap_or_else(|| residual.add(self.forward(x)?.multiply(gate)?))
    }
}
