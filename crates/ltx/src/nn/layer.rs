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
