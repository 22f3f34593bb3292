//! `gemma`: token ids → hidden states of every layer.

use mlx::{Array, Dtype};

use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Unread};
use crate::error::Result;
use crate::text::{Gemma, GemmaFolder};

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let folder = checkpoint.files().first().and_then(|file| file.path().parent());
    let folder =
        GemmaFolder::open(folder.ok_or_else(|| golden.error("checkpoint", "names no text encoder"))?)?;
    let mask = rows(golden, "in.attention_mask")?;
    let ids = rows(golden, "in.input_ids")?;
    let mut prompts = Vec::new();
    for (ids, mask) in ids.iter().zip(&mask) {
        if ids.len() != mask.len() {
            return Err(golden.error("in.attention_mask", "has another shape than in.input_ids"));
        }
        let valid = ids.iter().zip(mask).filter(|(_, mask)| **mask != 0);
        let valid: Option<Vec<u32>> = valid.map(|(&id, _)| u32::try_from(id).ok()).collect();
        prompts.push(
            valid
                .filter(|ids| !ids.is_empty())
                .ok_or_else(|| golden.error("in.input_ids", "holds a row without valid tokens"))?,
        );
    }
    let weights = folder.weights(context.dtype);
    let gemma = Gemma::load(&weights, &folder)?;
    weights.finish(Unread::Refuse)?;
    if prompts.iter().flatten().any(|&id| id >= gemma.vocabulary() as u32) {
        return Err(golden.error("in.input_ids", "has an id beyond the text encoder's vocabulary"));
    }
    let states = gemma.hidden_states(&prompts)?;
    let layers = states.first().map_or(0, Vec::len);
    let mut outputs = Outputs::new();
    for layer in 0..layers {
        let padded: Vec<Array> = states
            .iter()
            .zip(&mask)
            .map(|(states, mask)| scatter(&states[layer], mask, None))
            .collect::<Result<_>>()?;
        outputs
            .push((format!("out.hidden.{layer}"), mlx::concatenate(&padded.iter().collect::<Vec<_>>(), 0)?));
    }
    Ok(outputs)
}

/// A golden's integers (batch, tokens), row by row.
pub(super) fn rows(golden: &Golden, name: &str) -> Result<Vec<Vec<i64>>> {
    let array = golden.optional_raw(name)?.ok_or_else(|| golden.error(name, "is missing"))?;
    let &[batch, tokens] = array.shape() else {
        return Err(golden.error(name, format!("has shape {:?}, not (batch, tokens)", array.shape())));
    };
    let values = golden.integers(name)?;
    Ok((0..batch as usize)
        .map(|row| values[row * tokens as usize..(row + 1) * tokens as usize].to_vec())
        .collect())
}

/// Puts the rows of real tokens (1, valid, width) back where the mask is not 0; elsewhere comes `padding` (1, 1, width), or zeros.
pub(super) fn scatter(valid: &Array, mask: &[i64], padding: Option<&Array>) -> Result<Array> {
    let valid = valid.astype(Dtype::F32)?;
    let zeros = mlx::zeros(&[1, 1, valid.dim(2)], Dtype::F32)?;
    let padding = padding.map_or(Ok(zeros), |padding| padding.astype(Dtype::F32))?;
    let all = mlx::concatenate(&[&valid, &padding], 1)?; // (1, valid + 1, width)
    let mut next = 0;
    let index: Vec<i32> = mask
        .iter()
        .map(|&mask| {
            if mask == 0 {
                valid.dim(1)
            } else {
                next += 1;
                next - 1
            }
        })
        .collect();
    Ok(all.take(&Array::from_slice(&index, &[index.len() as i32])?, 1)?) // (1, tokens, width)
}
