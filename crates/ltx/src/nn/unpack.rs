//! Packed weights on the CPU: packing, unpacking, 8-bit floats, and ggml's blocks, which nothing else reads. The switch is in
//! `cpu`.

use std::result::Result;

use kernels::{Ggml, PartMut, RepackedMut, Scales};
use mlx::{Array, Dtype, Input, Output};

use super::cpu::{active, takes, text, values, values_mut};
use super::{Packed, Packing};

/// [`Packed::quantize`], each part computed when it is needed, or None where kernels do not take the weight.
pub(super) fn quantize(weight: &Array, packing: Packing) -> Option<mlx::Result<Packed>> {
    let &[outputs, inputs] = weight.shape() else { return None };
    let (group, bits) = (packing.group() as i32, packing.bits() as i64);
    if !takes([weight]) || inputs % group != 0 {
        return None;
    }
    let words = (i64::from(inputs) * bits / 32) as i32;
    let (dtype, groups) = (weight.dtype(), [outputs, inputs / group]);
    let part =
        |shape: &[i32], dtype, part: for<'a> fn(&'a mut Output<'_>, Dtype) -> Result<PartMut<'a>, String>| {
            mlx::custom(&[weight], shape, dtype, move |inputs: &[Input<'_>], output| {
                kernels::quantize(values(&inputs[0])?, packing, part(output, dtype)?).map_err(text)
            })
        };
    let made = || -> mlx::Result<Packed> {
        let packed = part(&[outputs, words], Dtype::U32, |out, _| Ok(PartMut::Values(out.values()?)))?;
        let (scales, biases) = match packing {
            Packing::Affine { .. } => (
                part(&groups, dtype, |out, dtype| Ok(PartMut::Scales(values_mut(out, dtype)?)))?,
                Some(part(&groups, dtype, |out, dtype| Ok(PartMut::Biases(values_mut(out, dtype)?)))?),
            ),
            _ => (part(&groups, Dtype::U8, |out, _| Ok(PartMut::ScaleBytes(out.values()?)))?, None),
        };
        Ok(Packed { values: packed, scales, biases, packing })
    };
    Some(made())
}

/// [`Packed::dequantize`], or None where kernels do not take it.
pub(super) fn dequantize(packed: &Packed, dtype: Dtype) -> Option<mlx::Result<Array>> {
    let Packed { values: words, scales, biases, packing } = packed;
    let floats = [scales].into_iter().chain(biases);
    let fits = match packing {
        Packing::Affine { .. } => {
            let half = floats.clone().all(|floats| floats.dtype() == Dtype::F16);
            (takes(floats) || half) && biases.is_some()
        }
        _ => scales.dtype() == Dtype::U8,
    };
    if !fits || !active() || !matches!(dtype, Dtype::F32 | Dtype::Bf16) {
        return None;
    }
    let packing = *packing;
    let inputs: Vec<&Array> = [words, scales].into_iter().chain(biases).collect();
    Some(mlx::custom(&inputs, &[packed.outputs(), packed.inputs()], dtype, move |inputs, output| {
        let scales = match inputs.get(2) {
            Some(biases) if biases.dtype() == Some(Dtype::F16) => {
                Scales::Half { scales: inputs[1].values()?, biases: biases.values()? }
            }
            Some(biases) => Scales::Affine { scales: values(&inputs[1])?, biases: values(biases)? },
            None => Scales::Bytes(inputs[1].values()?),
        };
        kernels::dequantize(inputs[0].values()?, scales, packing, values_mut(output, dtype)?).map_err(text)
    }))
}

/// The values of `table` (256), bf16, that `codes`, u8, stand for, or None where kernels do not take them.
pub(super) fn look_up(codes: &Array, table: &Array) -> Option<mlx::Result<Array>> {
    if !takes([table]) || codes.dtype() != Dtype::U8 || table.shape() != [256] || codes.size() == 0 {
        return None;
    }
    Some(mlx::custom(&[codes, table], codes.shape(), Dtype::Bf16, |inputs, output| {
        let table = inputs[1].values()?.try_into().map_err(|_| "a table of 256 values is needed")?;
        kernels::look_up(inputs[0].values()?, table, output.values()?).map_err(text)
    }))
}

/// The values of ggml's blocks in `codes`, u8, as f32 or bf16 of `shape`, whatever computes with them.
pub(crate) fn blocks(codes: &Array, kind: Ggml, shape: &[i32], dtype: Dtype) -> mlx::Result<Array> {
    let made = if dtype == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
    let values = mlx::custom(&[codes], shape, made, move |inputs, output| {
        kernels::dequantize_ggml(kind, inputs[0].values()?, values_mut(output, made)?).map_err(text)
    })?;
    values.astype(dtype)
}

/// The weight (outputs, inputs) of ggml's blocks in `codes`, u8, in the packing with the same codes.
pub(super) fn repack(
    codes: &Array,
    kind: Ggml,
    packing: Packing,
    [outputs, inputs]: [i32; 2],
) -> mlx::Result<Packed> {
    let words = (i64::from(inputs) * packing.bits() as i64 / 32) as i32;
    let groups = [outputs, inputs / packing.group() as i32];
    let part =
        |shape: &[i32], dtype, part: for<'a> fn(&'a mut Output<'_>) -> Result<RepackedMut<'a>, String>| {
            mlx::custom(&[codes], shape, dtype, move |inputs: &[Input<'_>], output| {
                kernels::repack(kind, inputs[0].values()?, part(output)?).map_err(text)
            })
        };
    Ok(Packed {
        values: part(&[outputs, words], Dtype::U32, |out| Ok(RepackedMut::Values(out.values()?)))?,
        scales: part(&groups, Dtype::F16, |out| Ok(RepackedMut::Scales(out.values()?)))?,
        biases: Some(part(&groups, Dtype::F16, |out| Ok(RepackedMut::Biases(out.values()?)))?),
        packing,
    })
}
