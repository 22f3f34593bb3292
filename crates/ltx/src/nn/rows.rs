//! What happens to each row, head or value by itself: norms, modulation, rotation, activations. On the CPU one kernel does
//! what MLX does in several passes.

use kernels::{Activation, Matrix, Norm, PerRow, Rotation, Scaling, Snake};
use mlx::{Array, Dtype, Result};

use super::cpu::{self, gate_rows, takes, text, values, values_mut};

/// Root-mean-square norm over the last axis, accumulated in f32: x / √(mean x² + eps) · weight, in the type of `x`.
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    let fused = norm(x, Scaling::Rms { eps }, weight, None, Activation::None);
    fused.unwrap_or_else(|| mlx::fast::rms_norm(x, weight, eps)?.astype(x.dtype()))
}

/// Layer norm over the last axis without weight or bias, accumulated in f32: (x − mean) / √(variance + eps).
pub fn layer_norm(x: &Array, eps: f32) -> Result<Array> {
    let fused = norm(x, Scaling::Layer { eps }, None, None, Activation::None);
    fused.unwrap_or_else(|| mlx::fast::layer_norm(x, None, None, eps))
}

/// SiLU of a root-mean-square norm without weight.
pub fn silu_of_rms_norm(x: &Array, eps: f32) -> Result<Array> {
    let fused = norm(x, Scaling::Rms { eps }, None, None, Activation::Silu);
    fused.unwrap_or_else(|| silu(&rms_norm(x, None, eps)?))
}

/// x · (1 + scale) + shift. `x` is (batch, tokens, width); the others are (batch or 1, tokens or 1, width).
pub fn modulated(x: &Array, scale: &Array, shift: &Array) -> Result<Array> {
    let fused = norm(x, Scaling::None, None, Some([scale, shift]), Activation::None);
    fused.unwrap_or_else(|| {
        one(mlx::joined(
            |[x, scale, shift]| Ok(vec![x.multiply(scale.add(1.0f32)?)?.add(shift)?]),
            [x, scale, shift],
        ))
    })
}

/// x + gate · y: (batch, tokens, width), the gate (batch or 1, tokens or 1, width).
pub(super) fn gated_sum(x: &Array, gate: &Array, y: &Array) -> Result<Array> {
    one(mlx::joined(|[x, gate, y]| Ok(vec![x.add(y.multiply(gate)?)?]), [x, gate, y]))
}

/// The one output of a joined function.
fn one(outputs: Result<Vec<Array>>) -> Result<Array> {
    let missing = || mlx::Error { operation: "joined", message: "no output".into() };
    outputs?.pop().ok_or_else(missing)
}

/// [`modulated`] of a root-mean-square norm without weight.
pub fn modulated_rms_norm(x: &Array, scale: &Array, shift: &Array, eps: f32) -> Result<Array> {
    let fused = norm(x, Scaling::Rms { eps }, None, Some([scale, shift]), Activation::None);
    fused.unwrap_or_else(|| modulated(&rms_norm(x, None, eps)?, scale, shift))
}

fn norm(
    x: &Array,
    scaling: Scaling,
    weight: Option<&Array>,
    modulation: Option<[&Array; 2]>,
    activation: Activation,
) -> Option<Result<Array>> {
    let inputs: Vec<&Array> = [x].into_iter().chain(weight).chain(modulation.into_iter().flatten()).collect();
    let columns = *x.shape().last()?;
    if !takes(inputs.iter().copied()) || weight.is_some_and(|weight| weight.shape() != [columns]) {
        return None;
    }
    let rows = match modulation {
        Some([scale, shift]) => Some([gate_rows(scale, x.shape())?, gate_rows(shift, x.shape())?]),
        None => None,
    };
    let (columns, dtype, weighted) = (columns as usize, x.dtype(), weight.is_some());
    Some(mlx::custom(&inputs, x.shape(), dtype, move |inputs, output| {
        let all = inputs.iter().map(values).collect::<std::result::Result<Vec<_>, String>>()?;
        let (x, rest) = all.split_first().ok_or("an input is missing")?;
        let (weight, rest) = rest.split_at(usize::from(weighted));
        let modulation = match (rest, rows) {
            (&[scale, shift], Some([scales, shifts])) => Some([
                PerRow { values: scale, rows: scales.0, repeat: scales.1 },
                PerRow { values: shift, rows: shifts.0, repeat: shifts.1 },
            ]),
            _ => None,
        };
        let x = Matrix::new(*x, x.len() / columns, columns).map_err(text)?;
        let norm = Norm { scaling, weight: weight.first().copied(), modulation, activation };
        kernels::norm(x, &norm, values_mut(output, dtype)?).map_err(text)
    }))
}

/// Root-mean-square norm of queries or keys `x` (batch, tokens, heads, head_dim), over all heads where `weight` is (heads ·
/// head_dim) and over each where it is (head_dim); then each pair (i, i + head_dim / 2) is turned by its angle: `cos` and
/// `sin` are (batch or 1, tokens, heads or 1, head_dim / 2).
pub fn rotated_rms_norm(x: &Array, weight: &Array, eps: f32, [cos, sin]: [&Array; 2]) -> Result<Array> {
    if let Some(fused) = norm_and_rotate(x, weight, eps, [cos, sin]) {
        return fused;
    }
    let normed = if weight.dim(0) == x.dim(3) {
        rms_norm(x, Some(weight), eps)?
    } else {
        rms_norm(&x.reshape(&[x.dim(0), x.dim(1), -1])?, Some(weight), eps)?.reshape(x.shape())?
    };
    let halves = normed.split(2, -1)?; // (batch, tokens, heads, head_dim / 2), twice
    let turned = mlx::joined(
        |[first, second, cos, sin]| {
            let turned_first = first.multiply(cos)?.subtract(second.multiply(sin)?)?;
            Ok(vec![turned_first, second.multiply(cos)?.add(first.multiply(sin)?)?])
        },
        [&halves[0], &halves[1], cos, sin],
    )?;
    mlx::concatenate(&turned.iter().collect::<Vec<_>>(), -1)
}

fn norm_and_rotate(x: &Array, weight: &Array, eps: f32, [cos, sin]: [&Array; 2]) -> Option<Result<Array>> {
    let &[batch, tokens, heads, head_dim] = x.shape() else { return None };
    let &[angle_batch, angle_tokens, angle_heads, half] = cos.shape() else { return None };
    let fits = cos.shape() == sin.shape()
        && [1, batch].contains(&angle_batch)
        && angle_tokens == tokens
        && [1, heads].contains(&angle_heads)
        && half * 2 == head_dim
        && (weight.shape() == [head_dim] || weight.shape() == [heads * head_dim]);
    if !fits || !takes([x, weight, cos, sin]) {
        return None;
    }
    let (heads, head_dim, dtype) = (heads as usize, head_dim as usize, x.dtype());
    let rows = (angle_batch * tokens) as usize;
    Some(mlx::custom(&[x, weight, cos, sin], x.shape(), dtype, move |inputs, output| {
        let [x, weight, cos, sin] = [0, 1, 2, 3].map(|index| values(&inputs[index]));
        let rotation = Rotation { heads, head_dim, eps, weight: weight?, cos: cos?, sin: sin?, rows };
        kernels::norm_and_rotate(x?, &rotation, values_mut(output, dtype)?).map_err(text)
    }))
}

/// x (batch, tokens, heads, head_dim) times 2 · sigmoid(logit) of each head; `logits` are (batch, tokens, heads).
pub fn gated_heads(x: &Array, logits: &Array) -> Result<Array> {
    if takes([x, logits]) && x.rank() == 4 && x.shape()[..3] == *logits.shape() {
        let dtype = x.dtype();
        return mlx::custom(&[x, logits], x.shape(), dtype, move |inputs, output| {
            kernels::gate_heads(values(&inputs[0])?, values(&inputs[1])?, values_mut(output, dtype)?)
                .map_err(text)
        });
    }
    let logits = logits.expand_dims(&[3])?; // (batch, tokens, heads, 1)
    one(mlx::joined(|[x, logits]| Ok(vec![x.multiply(logits.sigmoid()?.multiply(2.0f32)?)?]), [x, &logits]))
}

/// GELU in its tanh form: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
pub fn gelu_tanh(x: &Array) -> Result<Array> {
    if let Some(fused) = activate(x, Activation::GeluTanh) {
        return fused;
    }
    fn gelu([x]: [&Array; 1]) -> Result<Vec<Array>> {
        // The cube of a bf16 activation loses too much: the argument is computed in f32, as PyTorch does.
        let wide = x.astype(Dtype::F32)?;
        let inner = wide
            .square()?
            .multiply(0.044715f32)?
            .add(1.0f32)?
            .multiply(&wide)?
            .multiply((2.0 / std::f64::consts::PI).sqrt())?;
        Ok(vec![inner.tanh()?.add(1.0f32)?.multiply(&wide)?.multiply(0.5f32)?.astype(x.dtype())?])
    }
    one(mlx::joined(gelu, [x]))
}

/// SiLU: x · sigmoid(x).
pub fn silu(x: &Array) -> Result<Array> {
    let joined = || one(mlx::joined(|[x]| Ok(vec![x.multiply(x.sigmoid()?)?]), [x]));
    activate(x, Activation::Silu).unwrap_or_else(joined)
}

fn activate(x: &Array, activation: Activation) -> Option<Result<Array>> {
    let dtype = x.dtype();
    takes([x]).then(|| {
        mlx::custom(&[x], x.shape(), dtype, move |inputs, output| {
            kernels::activate(values(&inputs[0])?, activation, values_mut(output, dtype)?).map_err(text)
        })
    })
}

/// x + sin²(αx) / β at twice the rate, between the filters `up` and `down`: `x` is (batch, time, channels), `alpha` and
/// `reciprocal_beta` are (channels). None where the CPU's kernels do not compute.
pub fn snake(
    x: &Array,
    [alpha, reciprocal_beta]: [&Array; 2],
    [up, down]: [[f32; 12]; 2],
) -> Option<Result<Array>> {
    let &[batch, time, _] = x.shape() else { return None };
    if !takes([x]) || [alpha, reciprocal_beta].iter().any(|array| array.dtype() != Dtype::F32) {
        return None;
    }
    let (batch, time, dtype) = (batch as usize, time as usize, x.dtype());
    Some(mlx::custom(&[x, alpha, reciprocal_beta], x.shape(), dtype, move |inputs, output| {
        let (alpha, reciprocal_beta) = (inputs[1].values()?, inputs[2].values()?);
        let snake = Snake { up, down, alpha, reciprocal_beta };
        kernels::snake(values(&inputs[0])?, [batch, time], &snake, values_mut(output, dtype)?).map_err(text)
    }))
}

/// Leaky ReLU: x where positive, `slope` · x elsewhere; `slope` below 1.
pub fn leaky_relu(x: &Array, slope: f32) -> Result<Array> {
    if cpu::active() && takes([x]) {
        let dtype = x.dtype();
        return mlx::custom(&[x], x.shape(), dtype, move |inputs, output| {
            let activation = Activation::Leaky { slope };
            kernels::activate(values(&inputs[0])?, activation, values_mut(output, dtype)?).map_err(text)
        });
    }
    x.maximum(x.multiply(slope)?)
}
