//! Our own kernels in the place of MLX's operations, where the CPU computes: the switch, and their way into the graph.
//!
//! Every function here computes what the MLX operations beside its caller do. MLX keeps what kernels do not take: f16,
//! empty arrays, and shapes that do not fit, of which it says what is wrong.

use std::sync::atomic::{AtomicBool, Ordering};

use kernels::{
    Added, AttentionShape, Axis, ConvShape, Epilogue, Isa, Mask, Padding, Residual, Values, ValuesMut,
};
use mlx::device::Device;
use mlx::{Array, Dtype, Input, Output};

use super::Sees;
pub use super::layer::packed_linear;
pub(super) use super::layer::{gate_rows, linear};
use crate::error::{Error, Result};

static OFF: AtomicBool = AtomicBool::new(false);

/// Whether the CPU runs our kernels (from the start) or MLX's own operations.
pub fn set_enabled(enabled: bool) {
    OFF.store(!enabled, Ordering::Relaxed);
}

/// What [`set_enabled`] says.
pub fn enabled() -> bool {
    !OFF.load(Ordering::Relaxed)
}

/// Whether kernels compute what is built from now on: they are on, and the CPU is MLX's device.
pub fn active() -> bool {
    enabled() && mlx::device::current() == Device::Cpu
}

/// The instruction set that kernels use: the best of this processor, unless [`set_isa`] chose another.
pub fn isa() -> &'static str {
    kernels::isa().name()
}

/// The instruction sets that this processor has, the fastest last.
pub fn isas() -> Vec<&'static str> {
    Isa::ALL.into_iter().filter(|isa| isa.available()).map(Isa::name).collect()
}

/// Makes kernels use the instruction set called `name`. A name that there is not, or a set that this processor lacks, is
/// an error.
pub fn set_isa(name: &str) -> Result<()> {
    let chosen = name.parse().and_then(kernels::set_isa);
    chosen.map_err(|error| Error::request(error.to_string(), format!("this one has {}", isas().join(", "))))
}

/// How many threads kernels use.
pub fn threads() -> usize {
    kernels::threads()
}

/// Makes kernels use `threads` threads (at least 1): by default as many as there are processors.
pub fn set_threads(threads: usize) -> Result<()> {
    kernels::set_threads(threads).map_err(|error| Error::machine(error.to_string(), "ask for fewer threads"))
}

/// Whether kernels are on and compute on all of these.
pub(super) fn takes<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> bool {
    active()
        && arrays
            .into_iter()
            .all(|array| array.size() > 0 && matches!(array.dtype(), Dtype::F32 | Dtype::Bf16))
}

/// The type of what is computed from these: bf16 where all of them are.
pub(super) fn promoted<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Dtype {
    let narrow = arrays.into_iter().all(|array| array.dtype() == Dtype::Bf16);
    if narrow { Dtype::Bf16 } else { Dtype::F32 }
}

/// What a kernel reads.
pub(super) fn values<'a>(input: &'a Input<'_>) -> std::result::Result<Values<'a>, String> {
    match input.dtype() {
        Some(Dtype::Bf16) => Ok(Values::Bf16(input.values()?)),
        _ => Ok(Values::F32(input.values()?)),
    }
}

/// What a kernel writes.
pub(super) fn values_mut<'a>(
    output: &'a mut Output<'_>,
    dtype: Dtype,
) -> std::result::Result<ValuesMut<'a>, String> {
    match dtype {
        Dtype::Bf16 => Ok(ValuesMut::Bf16(output.values()?)),
        _ => Ok(ValuesMut::F32(output.values()?)),
    }
}

pub(super) fn sizes<const N: usize>(array: &Array) -> Option<[usize; N]> {
    let sizes: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
    sizes.try_into().ok()
}

pub(super) fn text(error: kernels::Error) -> String {
    error.to_string()
}

/// x (batch, spatial.., in) ⋆ weight (out, kernel.., in / groups) + bias (out), added to `onto`, or None where kernels do not
/// take it. Before `x` on the first spatial axis stands `past`, if given; then there are no zeros there, and the axis' last
/// place is repeated `after` times.
pub(super) fn conv(
    (past, x): (Option<&Array>, &Array),
    (weight, bias): (&Array, Option<&Array>),
    settings: &mlx::Conv,
    after: i32,
    onto: Option<&Array>,
) -> Option<mlx::Result<Array>> {
    let inputs: Vec<&Array> = [x, weight].into_iter().chain(past).chain(bias).chain(onto).collect();
    let (rank, dtype) = (x.rank(), promoted(inputs.iter().copied()));
    if !takes(inputs.iter().copied()) || !(3..=5).contains(&rank) || weight.rank() != rank {
        return None;
    }
    let follows = |past: &Array| {
        let alike = |axis: i32| past.dim(axis) == x.dim(axis);
        rank == 5 && past.rank() == 5 && [0, 2, 3, 4].into_iter().all(alike) && past.dtype() == x.dtype()
    };
    if past.is_some_and(|past| !follows(past) || x.dtype() != dtype) {
        return None;
    }
    let channels = x.dim(-1);
    let depthwise = settings.groups == channels && weight.dim(0) == channels;
    let fits = (settings.groups == 1 || depthwise)
        && weight.dim(-1).checked_mul(settings.groups) == Some(channels)
        && bias.is_none_or(|bias| bias.shape() == [weight.dim(0)])
        && settings.input_dilation.iter().all(|&step| step == 1)
        && !settings.flip;
    let axes = (1..rank - 1).map(|axis| {
        let setting = |list: &[i32], default: i32| match list {
            [] => Some(default),
            list => list.get(axis - 1).copied().filter(|_| list.len() == rank - 2),
        };
        Some(Axis {
            size: x.shape()[axis] as usize,
            kernel: weight.shape()[axis] as usize,
            stride: usize::try_from(setting(&settings.stride, 1)?).ok()?,
            dilation: usize::try_from(setting(&settings.dilation, 1)?).ok()?,
            before: setting(&settings.padding_low, 0)? as isize,
            after: setting(&settings.padding_high, 0)? as isize,
            padding: Padding::Zeros,
        })
    });
    let mut axes = axes.collect::<Option<Vec<Axis>>>()?;
    if let (Some(past), Some(axis)) = (past, axes.first_mut()) {
        let size = axis.size + past.dim(1) as usize;
        *axis = Axis { size, before: 0, after: after as isize, padding: Padding::Edge, ..*axis };
    }
    if !fits || axes.iter().any(|axis| axis.outputs() == 0) {
        return None;
    }
    let mut shape = vec![x.dim(0)];
    shape.extend(axes.iter().map(|axis| axis.outputs() as i32));
    shape.push(weight.dim(0));
    let sizes = ConvShape {
        batch: x.dim(0) as usize,
        axes,
        inputs: channels as usize,
        outputs: weight.dim(0) as usize,
        groups: settings.groups as usize,
    };
    if onto.is_some_and(|onto| onto.shape() != shape) {
        return None;
    }
    let (continued, biased) = (past.is_some(), bias.is_some());
    Some(mlx::custom(&inputs, &shape, dtype, move |inputs, output| {
        let (past, rest) = inputs[2..].split_at(usize::from(continued));
        let (bias, onto) = rest.split_at(usize::from(biased));
        let [past, bias, onto] = [past, bias, onto].map(|one| one.first().map(values).transpose());
        let (x, weight) = (values(&inputs[0])?, values(&inputs[1])?);
        let residual = onto?.map(|values| Residual { values, gate: None });
        let epilogue = Epilogue { bias: bias?, residual, ..Epilogue::default() };
        kernels::conv(x, past?, weight, &sizes, &epilogue, values_mut(output, dtype)?).map_err(text)
    }))
}

/// softmax(q · kᵀ · scale + mask) · v on (batch, tokens, heads, head_dim), or None where kernels do not take it.
pub(super) fn attention([q, k, v]: [&Array; 3], scale: f32, sees: Sees) -> Option<mlx::Result<Array>> {
    let ([batch, queries, heads, head_dim], [_, keys, key_heads, _], [.., value_dim]) =
        (sizes::<4>(q)?, sizes::<4>(k)?, sizes::<4>(v)?);
    let dtype = q.dtype();
    let fits = k.dim(0) == q.dim(0)
        && k.dim(3) == q.dim(3)
        && k.shape()[..3] == v.shape()[..3]
        && key_heads > 0
        && heads % key_heads == 0
        && [k, v].iter().all(|array| array.dtype() == dtype);
    if !fits || !takes([q, k, v]) {
        return None;
    }
    let mask = match sees {
        Sees::Masked(mask) => match scores(mask, [batch, heads, queries, keys])? {
            Ok(mask) => Some(mask),
            Err(error) => return Some(Err(error)),
        },
        _ => None,
    };
    let window = if let Sees::Past(window) = sees { Some(window) } else { None };
    let mask_sizes = mask.as_ref().and_then(sizes::<4>);
    let inputs: Vec<&Array> = [q, k, v].into_iter().chain(&mask).collect();
    let sizes = AttentionShape { batch, heads, key_heads, queries, keys, head_dim, value_dim };
    let shape = [q.dim(0), q.dim(1), q.dim(2), v.dim(3)];
    Some(mlx::custom(&inputs, &shape, dtype, move |inputs, output| {
        let mask = match (inputs.get(3), mask_sizes) {
            (Some(mask), Some([batch, heads, queries, _])) => {
                Some(Mask::Added(Added { values: values(mask)?, batch, heads, queries }))
            }
            _ => window.map(|window| Mask::Past { window }),
        };
        let inputs = [values(&inputs[0])?, values(&inputs[1])?, values(&inputs[2])?];
        kernels::attention(inputs, &sizes, scale, mask, values_mut(output, dtype)?).map_err(text)
    }))
}

/// A mask as numbers to add, (batch or 1, heads or 1, queries or 1, keys), or None where it does not broadcast to `full`.
fn scores(mask: &Array, full: [usize; 4]) -> Option<mlx::Result<Array>> {
    let missing = 4usize.checked_sub(mask.rank())?;
    let mut shape = vec![1; missing];
    shape.extend_from_slice(mask.shape());
    if shape.iter().zip(full).any(|(&own, all)| own != 1 && own as usize != all) {
        return None;
    }
    let keys = [&shape[..3], &[full[3] as i32]].concat();
    let numbers = || -> mlx::Result<Array> {
        let mask = mask.reshape(&shape)?;
        let mask = match mask.dtype() {
            Dtype::Bool => {
                let [seen, unseen] = [0.0, f64::NEG_INFINITY].map(|value| Array::scalar(value, Dtype::F32));
                mlx::select(&mask, &seen?, &unseen?)?
            }
            Dtype::F32 | Dtype::Bf16 => mask,
            _ => mask.astype(Dtype::F32)?,
        };
        mask.broadcast_to(&keys)
    };
    Some(numbers())
}
