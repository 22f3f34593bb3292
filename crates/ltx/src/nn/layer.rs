//! Linear layers by our own kernels, with whole weights and with packed ones. The switch is in `cpu`.

use kernels::{Activation, Epilogue, Matrix, Packed, Packing, PerRow, Residual, Scales, Values};
use mlx::{Array, Dtype, Input};

use super::Onto;
use super::cpu::{promoted, sizes, takes, text, values, values_mut};

/// onto.x (.., n) + onto.gate · activation(x (.., k) · weightᵀ (n, k) + bias (n)) → (.., n), or None where kernels do not
/// take it.
pub(super) fn linear(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    activation: Activation,
    onto: Option<Onto>,
) -> Option<mlx::Result<Array>> {
    let [n, k] = sizes(weight)?;
    takes([weight]).then_some(())?;
    let layer = Layer::new(x, [n, k], bias, activation, onto)?;
    let dtype = promoted(layer.inputs.iter().copied().chain([weight]));
    Some(layer.build(&[weight], dtype, move |x, weight, epilogue, output| {
        let weight = Matrix::new(values(&weight[0])?, n, k).map_err(text)?;
        kernels::linear(x, weight, epilogue, output).map_err(text)
    }))
}

/// The same with a packed weight: `values` (n, k · bits / 32), `scales` and, where the packing is affine, `biases` (n, k /
/// group), as MLX's `quantize` makes them. The output is bf16 where x, the bias and what it is added to are.
#[allow(clippy::too_many_arguments)] // as many as a layer has parts
pub fn packed_linear(
    x: &Array,
    values: &Array,
    scales: &Array,
    biases: Option<&Array>,
    packing: Packing,
    bias: Option<&Array>,
    activation: Activation,
    onto: Option<Onto>,
) -> Option<mlx::Result<Array>> {
    let ([n, words], [rows, groups]) = (sizes(values)?, sizes(scales)?);
    let k = groups.checked_mul(packing.group())?;
    let affine = matches!(packing, Packing::Affine { .. });
    let float = matches!(scales.dtype(), Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    let fits = rows == n
        && words.checked_mul(32) == k.checked_mul(packing.bits())
        && values.dtype() == Dtype::U32
        && if affine { float } else { scales.dtype() == Dtype::U8 }
        && biases.is_some() == affine
        && biases.is_none_or(|biases| {
            biases.shape() == scales.shape()
                && (biases.dtype() == Dtype::F16) == (scales.dtype() == Dtype::F16)
        });
    if !fits || values.size() == 0 {
        return None;
    }
    let layer = Layer::new(x, [n, k], bias, activation, onto)?;
    let dtype = promoted(layer.inputs.iter().copied());
    let weight: Vec<&Array> = [values, scales].into_iter().chain(biases).collect();
    Some(layer.build(&weight, dtype, move |x, weight, epilogue, output| {
        let scales = match (weight.get(2), weight[1].dtype()) {
            (None, _) => Scales::Bytes(weight[1].values()?),
            (Some(biases), Some(Dtype::F16)) => {
                Scales::Half { scales: weight[1].values()?, biases: biases.values()? }
            }
            (Some(biases), _) => {
                Scales::Affine { scales: self::values(&weight[1])?, biases: self::values(biases)? }
            }
        };
        let weight = Packed::new(weight[0].values()?, scales, packing, n, k).map_err(text)?;
        kernels::linear_packed(x, weight, epilogue, output).map_err(text)
    }))
}

/// A layer whose weight is left open.
struct Layer<'a> {
    /// x, then the bias, what the output is added to and its gate, as far as there are any.
    inputs: Vec<&'a Array>,
    /// Of the output.
    shape: Vec<i32>,
    k: usize,
    activation: Activation,
    biased: bool,
    added: bool,
    gate: Option<(usize, usize)>,
}

impl<'a> Layer<'a> {
    /// None where kernels do not take it.
    fn new(
        x: &'a Array,
        [n, k]: [usize; 2],
        bias: Option<&'a Array>,
        activation: Activation,
        onto: Option<Onto<'a>>,
    ) -> Option<Self> {
        let n = i32::try_from(n).ok()?;
        let shape = [&x.shape()[..x.rank().checked_sub(1)?], &[n]].concat();
        let (residual, gate) = (onto.map(|onto| onto.x), onto.and_then(|onto| onto.gate));
        let inputs: Vec<&Array> = [x].into_iter().chain(bias).chain(residual).chain(gate).collect();
        let fits = usize::try_from(x.dim(-1)) == Ok(k)
            && bias.is_none_or(|bias| bias.shape() == [n])
            && residual.is_none_or(|residual| residual.shape() == shape);
        if !fits || !takes(inputs.iter().copied()) {
            return None;
        }
        let gate_rows = match gate {
            Some(gate) => Some(gate_rows(gate, &shape)?),
            None => None,
        };
        let (biased, added) = (bias.is_some(), residual.is_some());
        Some(Self { inputs, shape, k, activation, biased, added, gate: gate_rows })
    }

    /// The layer with `weight`, which `kernel` is given.
    fn build<F>(self, weight: &[&Array], dtype: Dtype, kernel: F) -> mlx::Result<Array>
    where
        F: Fn(Matrix<'_>, &[Input<'_>], &Epilogue<'_>, kernels::ValuesMut<'_>) -> Result<(), String>
            + Send
            + Sync
            + 'static,
    {
        let Self { inputs, shape, k, activation, biased, added, gate } = self;
        let rows = inputs[0].size() / k;
        let parts = weight.len();
        let all: Vec<&Array> = weight.iter().copied().chain(inputs).collect();
        mlx::custom(&all, &shape, dtype, move |inputs, output| {
            let (weight, inputs) = inputs.split_at(parts);
            let inputs = inputs.iter().map(values).collect::<Result<Vec<Values<'_>>, String>>()?;
            let mut rest = inputs.into_iter();
            let mut next = || rest.next().ok_or("an input is missing");
            let x = Matrix::new(next()?, rows, k).map_err(text)?;
            let bias = if biased { Some(next()?) } else { None };
            let residual = if added {
                let values = next()?;
                let gate = match gate {
                    Some((rows, repeat)) => Some(PerRow { values: next()?, rows, repeat }),
                    None => None,
                };
                Some(Residual { values, gate })
            } else {
                None
            };
            kernel(x, weight, &Epilogue { bias, activation, residual }, values_mut(output, dtype)?)
        })
    }
}

/// How the rows of a gate (batch or 1, tokens or 1, n) are dealt out to those of an output (batch, tokens, n): how many there
/// are, and for how many outputs in a row each.
pub(super) fn gate_rows(gate: &Array, shape: &[i32]) -> Option<(usize, usize)> {
    let (&[batch, tokens, n], &[gate_batch, gate_tokens, gate_n]) = (shape, gate.shape()) else {
        return None;
    };
    let fits = gate_n == n && [1, batch].contains(&gate_batch) && [1, tokens].contains(&gate_tokens);
    let repeat = if gate_tokens == 1 { tokens } else { 1 };
    fits.then_some(((gate_batch * gate_tokens) as usize, repeat as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers, so that every sum is exact; groups differ in scale and bias.
    #[test]
    fn packed_layers_are_those_of_their_values() {
        let (n, k, group) = (5usize, 192usize, 64usize);
        for (bits, m) in [(4, 2), (8, 2), (4, 11), (8, 11)] {
            let code = |at: usize| (at * 7 + at / 13) as u32 % (1 << bits);
            let in_word = 32 / bits;
            let word = |word: usize| {
                (0..in_word).fold(0, |all, at| all | (code(word * in_word + at) << (at * bits)))
            };
            let words: Vec<u32> = (0..n * k / in_word).map(word).collect();
            let scale = |at: usize| [1.0f32, 2.0, -1.0][at / group % 3];
            let bias = |at: usize| [-8.0f32, 3.0][at / group % 2];
            let of_groups = |value: &dyn Fn(usize) -> f32| {
                let values: Vec<f32> = (0..n * k / group).map(|index| value(index * group)).collect();
                Array::from_slice(&values, &[n as i32, (k / group) as i32])
            };
            let x: Vec<f32> = (0..m * k).map(|at| (at % 5) as f32 - 2.0).collect();
            let onto: Vec<f32> = (0..m * n).map(|at| at as f32).collect();
            let expected: Vec<f32> = (0..m * n)
                .map(|at| {
                    let (row, column) = (at / n * k, at % n * k);
                    let weight = |i: usize| code(column + i) as f32 * scale(column + i) + bias(column + i);
                    (0..k).map(|i| x[row + i] * weight(i)).sum::<f32>() + onto[at]
                })
                .collect();
            let values = Array::from_slice(&words, &[n as i32, (k / in_word) as i32]).unwrap();
            let x = Array::from_slice(&x, &[1, m as i32, k as i32]).unwrap();
            let onto = Array::from_slice(&onto, &[1, m as i32, n as i32]).unwrap();
            let packing = Packing::Affine { bits, group };
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let scales = of_groups(&scale).unwrap().astype(dtype).unwrap();
                let biases = of_groups(&bias).unwrap().astype(dtype).unwrap();
                let layer = |x, scales, biases| {
                    let onto = Onto { x: &onto, gate: None };
                    packed_linear(x, &values, scales, biases, packing, None, Activation::None, Some(onto))
                };
                let y = layer(&x, &scales, Some(&biases)).unwrap().unwrap();
                assert_eq!(y.shape(), [1, m as i32, n as i32]);
                assert_eq!(y.to_vec::<f32>().unwrap(), expected, "{bits} bits, {m} rows, {dtype:?}");
                assert!(layer(&x, &scales, None).is_none());
                assert!(layer(&x, &values, Some(&biases)).is_none());
                assert!(layer(&onto, &scales, Some(&biases)).is_none());
            }
        }
    }
}
