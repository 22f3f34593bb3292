//! Convolutions over 1 to 3 axes, channels last.

use mlx::Array;

use super::Bias;
use crate::checkpoint::Weights;
use crate::error::Result;

/// A convolution: PyTorch's cross-correlation, on (batch, spatial.., channels).
#[derive(Clone, Debug)]
pub struct Conv {
    weight: Array,       // (out, kernel.., in / groups)
    bias: Option<Array>, // (out)
}

impl Conv {
    /// Reads the official `weight` (out, in, kernel..) and `bias` (out) at `weights`.
    pub fn load(weights: &Weights, inputs: i32, outputs: i32, kernel: &[i32], bias: Bias) -> Result<Self> {
        let shape = [&[outputs, inputs], kernel].concat();
        let bias = (bias == Bias::Yes).then(|| weights.tensor("bias", &[outputs])).transpose()?;
        Ok(Self::new(&weights.tensor("weight", &shape)?, bias)?)
    }

    /// From a weight in the official layout (out, in / groups, kernel..).
    pub fn new(weight: &Array, bias: Option<Array>) -> mlx::Result<Self> {
        let rank = weight.rank() as i32;
        let axes: Vec<i32> = [0].into_iter().chain(2..rank).chain([1]).collect();
        let weight = weight.transpose(&axes)?.contiguous()?; // (out, kernel.., in / groups)
        Ok(Self { weight, bias })
    }

    /// (batch, spatial.., in) → (batch, spatial.., out)
    pub fn forward(&self, x: &Array, settings: &mlx::Conv) -> mlx::Result<Array> {
        let y = x.conv(&self.weight, settings)?;
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}
