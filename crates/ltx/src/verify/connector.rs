//! `connector`: hidden states → features → contexts of both modalities.

use mlx::{Array, Dtype};

use super::gemma::{rows, scatter};
use super::{Context, Golden, Outputs};
use crate::checkpoint::{Checkpoint, Component};
use crate::error::Result;
use crate::text::{Connectors, Projection};

pub(super) fn verify(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    let (weights, config) = checkpoint.component(Component::Projection, context.dtype)?;
    let projection = Projection::load(&weights, &config)?;
    weights.finish(Component::Projection.unread())?;
    // Of a split checkpoint the projection's file need not describe the transformer that the connectors belong to.
    let (weights, config) = checkpoint.component(Component::Connector, context.dtype)?;
    let connectors = Connectors::load(&weights, &config)?;
    weights.finish(Component::Connector.unread())?;

    let mut hidden = Vec::new();
    while let Some(state) = golden.optional(&format!("in.hidden.{}", hidden.len()))? {
        hidden.push(state.astype(context.dtype)?); // (batch, tokens, width)
    }
    let padding = projection.padding()?;
    let masks = rows(golden, "in.attention_mask")?;
    let mut prompts = Vec::new();
    for (row, mask) in masks.iter().enumerate() {
        let index: Vec<i32> = (0..mask.len() as i32).filter(|&token| mask[token as usize] != 0).collect();
        let index = Array::from_slice(&index, &[index.len() as i32])?;
        let own = |state: &Array| -> Result<Array> {
            if state.rank() != 3 || state.dim(1) as usize != mask.len() || row as i32 >= state.dim(0) {
                return Err(golden.error("in.attention_mask", "does not fit the hidden states"));
            }
            Ok(state.slice(0, row as i32..row as i32 + 1)?.take(&index, 1)?) // (1, valid, width)
        };
        prompts.push(hidden.iter().map(own).collect::<Result<Vec<Array>>>()?);
    }
    let features = projection.forward(&prompts)?;
    let length = masks.first().map_or(0, |mask| mask.len() as i32);
    let contexts = connectors.forward(&features, length)?;
    let mut parts: [Vec<Array>; 4] = Default::default();
    for ((mask, features), contexts) in masks.iter().zip(&features).zip(contexts) {
        parts[0].push(scatter(&features.video, mask, Some(&padding.video))?);
        parts[1].push(scatter(&features.audio, mask, Some(&padding.audio))?);
        parts[2].push(contexts.video);
        parts[3].extend(contexts.audio);
    }
    let names = ["out.features.video", "out.features.audio", "out.video_context", "out.audio_context"];
    let mut outputs = Outputs::new();
    for (name, parts) in names.into_iter().zip(&parts) {
        outputs.push((name.into(), mlx::concatenate(&parts.iter().collect::<Vec<_>>(), 0)?));
    }
    // After the registers have filled up the sequence, every token of a context is real.
    let shape = outputs[2].1.shape()[..2].to_vec();
    outputs.push(("out.mask".into(), mlx::full(&shape, 1.0, Dtype::F32)?));
    Ok(outputs)
}
