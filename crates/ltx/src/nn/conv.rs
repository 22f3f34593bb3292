//! Convolutions over 1 to 3 axes, channels last.

use mlx::Array;

use super::{Bias, count, cpu};
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

    /// How many channels it takes, of each of its groups.
    pub fn inputs(&self) -> i32 {
        self.weight.dim(-1)
    }

    /// How many channels it makes.
    pub fn outputs(&self) -> i32 {
        self.weight.dim(0)
    }

    /// (batch, spatial.., in) → (batch, spatial.., out)
    pub fn forward(&self, x: &Array, settings: &mlx::Conv) -> mlx::Result<Array> {
        self.forward_onto(x, settings, None)
    }

    /// The same, added to `onto` (batch, spatial.., out).
    pub fn forward_onto(&self, x: &Array, settings: &mlx::Conv, onto: Option<&Array>) -> mlx::Result<Array> {
        let y = cpu::conv((None, x), self.weight_and_bias(), settings, 0, onto);
        let y = y.unwrap_or_else(|| self.finish(x.conv(&self.weight, settings)?, onto));
        y.inspect(|y| self.count(y))
    }

    /// The same over video: `past` (batch, frames, height, width, in) stands before `x` (batch, frames, height, width, in),
    /// whose last frame stands `after` more times at the end. `settings` pads height and width alone.
    pub fn forward_after(
        &self,
        past: &Array,
        x: &Array,
        settings: &mlx::Conv,
        after: i32,
        onto: Option<&Array>,
    ) -> mlx::Result<Array> {
        let y = cpu::conv((Some(past), x), self.weight_and_bias(), settings, after, onto);
        let y = y.unwrap_or_else(|| {
            let x = mlx::concatenate(&[past, x], 1)?;
            let x = if after > 0 { x.pad_edge(1, 0, after)? } else { x };
            self.finish(x.conv(&self.weight, settings)?, onto)
        });
        y.inspect(|y| self.count(y))
    }

    fn weight_and_bias(&self) -> (&Array, Option<&Array>) {
        (&self.weight, self.bias.as_ref())
    }

    fn finish(&self, mut y: Array, onto: Option<&Array>) -> mlx::Result<Array> {
        if let Some(bias) = &self.bias {
            y = y.add(bias)?;
        }
        match onto {
            Some(onto) => onto.add(&y),
            None => Ok(y),
        }
    }

    fn count(&self, y: &Array) {
        count(y.size(), self.weight.size() / self.weight.dim(0).max(1) as usize);
    }
}

/// PyTorch's `ConvTranspose1d`, on (batch, time, channels). One plain convolution computes the `stride` outputs that
/// belong to an input step as so many groups of channels: no stuffed zeros are multiplied, on any backend.
#[derive(Clone, Debug)]
pub struct TransposedConv {
    phases: Conv, // in → stride · out
    taps: i32,
    kernel: i32,
    stride: i32,
    padding: i32,
}

impl TransposedConv {
    /// Reads the official `weight` (in, out, kernel) and `bias` (out) at `weights`.
    pub fn load(
        weights: &Weights,
        [inputs, outputs]: [i32; 2],
        kernel: i32,
        stride: i32,
        padding: i32,
    ) -> Result<Self> {
        let weight = weights.tensor("weight", &[inputs, outputs, kernel])?;
        Ok(Self::new(&weight, &weights.tensor("bias", &[outputs])?, stride, padding)?)
    }

    /// From a weight (in, out, kernel) and a bias (out) in the official layout.
    pub fn new(weight: &Array, bias: &Array, stride: i32, padding: i32) -> mlx::Result<Self> {
        let (inputs, outputs, kernel) = (weight.dim(0), weight.dim(1), weight.dim(2));
        let taps = (kernel + stride - 1) / stride;
        let reversed: Vec<i32> = (0..taps).rev().collect();
        let weight = weight
            .pad(2, 0, taps * stride - kernel, 0.0)?
            .reshape(&[inputs, outputs, taps, stride])?
            .take(&Array::from_slice(&reversed, &[taps])?, 2)?
            .transpose(&[3, 1, 0, 2])? // (stride, out, in, taps)
            .reshape(&[stride * outputs, inputs, taps])?;
        let phases = Conv::new(&weight, Some(bias.tile(&[stride])?))?;
        Ok(Self { phases, taps, kernel, stride, padding })
    }

    /// How many outputs an input has.
    pub fn stride(&self) -> i32 {
        self.stride
    }

    /// How many inputs before and after its own an output sees, at most.
    pub fn reach(&self) -> i32 {
        self.taps
    }

    /// (batch, time, in) → (batch, (time − 1) · stride + kernel − 2 · padding, out)
    pub fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let edge = vec![self.taps - 1];
        let settings = mlx::Conv { padding_low: edge.clone(), padding_high: edge, ..Default::default() };
        let y = self.phases.forward(x, &settings)?; // (batch, time + taps − 1, stride · out)
        let length = (x.dim(1) - 1) * self.stride + self.kernel - 2 * self.padding;
        y.reshape(&[y.dim(0), y.dim(1) * self.stride, y.dim(2) / self.stride])?
            .slice(1, self.padding..self.padding + length)
    }
}

/// A filter for each channel: (batch, time, channels) with a weight (channels, taps, 1) → (batch, (time − taps) / stride
/// + 1, channels).
pub fn depthwise(x: &Array, weight: &Array, stride: i32) -> mlx::Result<Array> {
    let settings = mlx::Conv { stride: vec![stride], groups: x.dim(2), ..Default::default() };
    let y = cpu::conv((None, x), (weight, None), &settings, 0, None)
        .unwrap_or_else(|| x.conv(weight, &settings))?;
    count(y.size(), weight.dim(1) as usize);
    Ok(y)
}

#[cfg(test)]
mod tests {
    use mlx::Array;

    use super::TransposedConv;

    /// Every input step adds its kernel to the output at `stride` times its place.
    #[test]
    fn a_transposed_convolution_spreads_every_step() -> mlx::Result<()> {
        let (inputs, outputs, time) = (2usize, 3usize, 4usize);
        for (kernel, stride, padding) in
            [(11usize, 5usize, 3usize), (4, 2, 1), (15, 5, 5), (3, 4, 0), (1, 1, 0)]
        {
            let number = |index: usize| ((index * 37 + 11) % 23) as f32 / 8.0 - 1.0;
            let weight: Vec<f32> = (0..inputs * outputs * kernel).map(number).collect();
            let x: Vec<f32> = (0..time * inputs).map(|index| number(index + 5)).collect();
            let bias = [0.5f32, -1.0, 2.0];
            let full = (time - 1) * stride + kernel;
            let mut expected = vec![0.0f32; full * outputs];
            for (place, row) in expected.chunks_mut(outputs).enumerate() {
                row.copy_from_slice(&bias);
                for (o, value) in row.iter_mut().enumerate() {
                    for step in
                        (0..time).filter(|step| (step * stride..step * stride + kernel).contains(&place))
                    {
                        *value += (0..inputs)
                            .map(|i| {
                                let tap = place - step * stride;
                                x[step * inputs + i] * weight[(i * outputs + o) * kernel + tap]
                            })
                            .sum::<f32>();
                    }
                }
            }
            let expected = &expected[padding * outputs..(full - padding) * outputs];
            let sizes = |sizes: [usize; 3]| sizes.map(|size| size as i32);
            let conv = TransposedConv::new(
                &Array::from_slice(&weight, &sizes([inputs, outputs, kernel]))?,
                &Array::from_slice(&bias, &[3])?,
                stride as i32,
                padding as i32,
            )?;
            let y = conv.forward(&Array::from_slice(&x, &sizes([1, time, inputs]))?)?;
            assert_eq!(y.shape(), sizes([1, full - 2 * padding, outputs]));
            for (ours, expected) in y.to_f32()?.iter().zip(expected) {
                assert!((ours - expected).abs() < 1e-4, "{ours} is not {expected} for kernel {kernel}");
            }
        }
        Ok(())
    }
}
