//! Linear layers.

use mlx::Array;

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
        let y = x.matmul(self.weight.transpose_last()?)?;
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}
