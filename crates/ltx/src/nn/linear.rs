//! Linear layers.

use kernels::Activation;
use mlx::Array;
use mlx::device::{Device, current};

use super::rows::gated_sum;
use super::{Packed, Weight, count, cpu, gelu_tanh, leaky_relu, silu};
use crate::checkpoint::Weights;
use crate::error::Result;

/// Whether a layer has a bias. Stated by the caller, never guessed from the file.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Yes,
    No,
}

/// What a layer's output is added to, and the gate that it is multiplied by first.
#[derive(Clone, Copy, Debug)]
pub struct Onto<'a> {
    #[allow(missing_docs)]
    pub x: &'a Array, // (batch, tokens, out)
    #[allow(missing_docs)]
    pub gate: Option<&'a Array>, // (batch or 1, tokens or 1, out)
}

/// y = x · weightᵀ + bias.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,      // (out, in)
    bias: Option<Array>, // (out)
}

impl Linear {
    /// Reads `weight` (out, in), however it is stored or to be packed, and `bias` (out) at `weights`.
    pub fn load(weights: &Weights, inputs: i32, outputs: i32, bias: Bias) -> Result<Self> {
        Ok(Self {
            weight: weights.linear(outputs, inputs)?,
            bias: (bias == Bias::Yes).then(|| weights.tensor("bias", &[outputs])).transpose()?,
        })
    }

    /// A layer of `weight` (out, in) without a bias.
    pub fn new(weight: Array) -> Self {
        Self { weight: Weight::Dense(weight), bias: None }
    }

    /// A layer of `weight` (out, in), however it is stored, without a bias.
    pub fn of(weight: Weight) -> Self {
        Self { weight, bias: None }
    }

    /// Width of what comes out.
    pub fn outputs(&self) -> i32 {
        self.weight.outputs()
    }

    /// (.., in) → (.., out)
    pub fn forward(&self, x: &Array) -> mlx::Result<Array> {
        self.activated(x, Activation::None)
    }

    /// activation(x · weightᵀ + bias): (.., in) → (.., out)
    pub fn activated(&self, x: &Array, activation: Activation) -> mlx::Result<Array> {
        count(x.size(), self.outputs() as usize);
        if let Some(y) = self.kernel(x, activation, None) {
            return y;
        }
        let y = match (self.weight.packed(), &self.bias) {
            (Some(packed), None) => packed.matmul(x)?,
            (Some(packed), Some(bias)) => packed.matmul(x)?.add(bias)?,
            (None, bias) => {
                let weight = self.weight.dense(x.dtype())?.transpose_last()?; // (in, out)
                match bias {
                    Some(bias) if current() == Device::Gpu && bias.dtype() == x.dtype() => {
                        mlx::matmul_with_bias(x, &weight, bias)?
                    }
                    Some(bias) => x.matmul(weight)?.add(bias)?,
                    None => x.matmul(weight)?,
                }
            }
        };
        match activation {
            Activation::None => Ok(y),
            Activation::GeluTanh => gelu_tanh(&y),
            Activation::Silu => silu(&y),
            Activation::Leaky { slope } => leaky_relu(&y, slope),
        }
    }

    /// onto.x + onto.gate · (x · weightᵀ + bias): (batch, tokens, in) → (batch, tokens, out)
    pub fn onto(&self, onto: Onto, x: &Array) -> mlx::Result<Array> {
        if let Some(y) = self.kernel(x, Activation::None, Some(onto)) {
            count(x.size(), self.outputs() as usize);
            return y;
        }
        let y = self.forward(x)?;
        match onto.gate {
            Some(gate) => gated_sum(onto.x, gate, &y),
            None => onto.x.add(y),
        }
    }

    /// The same by a kernel of ours, or None where there is none for it.
    fn kernel(&self, x: &Array, activation: Activation, onto: Option<Onto>) -> Option<mlx::Result<Array>> {
        if !cpu::active() {
            return None;
        }
        if let Weight::Packed(Packed { values, scales, biases, packing }) = &self.weight {
            let (biases, bias) = (biases.as_ref(), self.bias.as_ref());
            let y = cpu::packed_linear(x, values, scales, biases, *packing, bias, activation, onto);
            if y.is_some() {
                return y;
            }
        }
        let weight = match self.weight.dense(x.dtype()) {
            Ok(weight) => weight,
            Err(error) => return Some(Err(error)),
        };
        cpu::linear(x, &weight, self.bias.as_ref(), activation, onto)
    }
}
