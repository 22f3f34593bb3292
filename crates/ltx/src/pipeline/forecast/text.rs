//! What the text encoder takes: where it encodes prompts, and where it writes one.

use mlx::Dtype;

use super::fit::{Limits, best, told};
use super::{Cost, Phase, kept};
use crate::checkpoint::{BlockFootprint, Checkpoint, Component, Footprint, Residency, Weights};
use crate::error::{Error, Result};
use crate::pipeline::TextPlan;
use crate::pipeline::text::Encoding;
use crate::text::{AT_ONCE, GemmaFolder};

/// Pages around one that is looked at come in with it.
const AROUND: u64 = 64 << 10;

/// The text encoder and what makes contexts of its hidden states.
pub struct Text {
    gemma: BlockFootprint,
    /// Bytes of a row of the embedding.
    hidden: usize,
    intermediate: usize,
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    /// The matrices of the projection, one after the other.
    projection: Vec<Footprint>,
    /// The connectors of both modalities, one after the other.
    connectors: [BlockFootprint; 2],
    /// Widths of both connectors together.
    width: usize,
    length: usize,
}

impl Text {
    /// Nothing where the cache knows every prompt.
    pub fn new(encoding: &Encoding, files: &Checkpoint, dtype: Dtype) -> Result<Option<Self>> {
        let Some((folder, prompts)) = encoding.unknown() else { return Ok(None) };
        let weights = folder.weights(dtype);
        let mut gemma = weights.block_footprint("layers");
        let config = folder.config()?;
        let (hidden, intermediate) = (config.usize("hidden_size")?, config.usize("intermediate_size")?);
        // A few rows of the table are looked up, and it is of no further use.
        let table = weights.at("embed_tokens").footprint();
        let rows = prompts.iter().sum::<usize>() as u64 * (AROUND + 2 * hidden as u64 * dtype.size() as u64);
        gemma.rest.mapped = gemma.rest.mapped - table.mapped + table.mapped.min(rows);
        gemma.rest.heap -= table.heap;
        gemma.rest.passing -= table.passing;
        let weights = |component| -> Result<Weights> { Ok(files.component(component, dtype)?.0) };
        let (projection, connectors) = (weights(Component::Projection)?, weights(Component::Connector)?);
        let matrices =
            ["", "video_", "audio_"].map(|of| projection.at(format!("{of}aggregate_embed")).footprint());
        let blocks = |name: &str| connectors.at(name).block_footprint("transformer_1d_blocks");
        let connected = ["video_embeddings_connector", "audio_embeddings_connector"];
        let width = |name: &str| {
            let registers = connectors.at(name).shape("learnable_registers");
            registers.and_then(|shape| shape.last().copied()).unwrap_or(0) as usize
        };
        Ok(Some(Self {
            gemma,
            hidden,
            intermediate,
            prompts,
            projection: matrices.to_vec(),
            connectors: connected.map(blocks),
            width: connected.map(width).iter().sum(),
            length: encoding.tokens(),
        }))
    }

    /// The largest of the three one after the other: text encoder, projection, connectors.
    pub fn phase(&self, residency: Residency, dtype: Dtype) -> Phase {
        let value = dtype.size();
        let (all, longest) =
            (self.prompts.iter().sum::<usize>(), self.prompts.iter().max().copied().unwrap_or(0));
        let layers = self.gemma.count;
        let states = all * (layers + 1) * self.hidden * value;
        let layer = longest * (3 * self.intermediate + 8 * self.hidden) * value;
        // Normed, stacked, scaled.
        let stacked = longest.min(AT_ONCE) * (layers + 1) * self.hidden * 3 * value;
        let features = all * self.width * value;
        let connected =
            self.length * self.width * 10 * value + self.prompts.len() * self.length * self.width * value;
        let matrix = self.projection.iter().map(|matrix| matrix.held() + matrix.passing).max().unwrap_or(0);
        let once = match residency {
            Residency::Streaming { ahead, .. } => Residency::Streaming { ahead, kept: 0 },
            Residency::Resident => Residency::Resident,
        };
        let connector = self.connectors.iter().map(|connector| connector.held(once)).max().unwrap_or(0);
        let parts = [
            (self.gemma.held(residency), states + layer),
            (matrix, states + stacked + features),
            (connector, features + connected),
        ];
        let (weights, work) =
            parts.into_iter().max_by_key(|&(weights, work)| weights + work as u64).unwrap_or_default();
        let parameters = layers * self.hidden * (3 * self.intermediate + 3 * self.hidden);
        let sum = |parts: &mut dyn Iterator<Item = Footprint>| {
            parts.fold((0, 0), |(mapped, all), part| (mapped + part.mapped, all + part.held()))
        };
        let (matrices, projected) = sum(&mut self.projection.iter().copied());
        let (connectors, connecting) = sum(&mut self.connectors.iter().map(|connector| connector.blocks));
        let read = self.gemma.rest.mapped + self.gemma.blocks.mapped + matrices + connectors;
        let tokens = all as f64;
        let contexts = (self.prompts.len() * self.length) as f64;
        let [projected, connecting] = [projected, connecting].map(|bytes| bytes as f64 / value as f64);
        Phase {
            name: "encode text",
            kept: kept(residency, layers, "layers"),
            weights,
            work: work as u64,
            cost: Cost {
                linear: 2.0 * (tokens * (parameters as f64 + projected) + contexts * connecting),
                attention: 4.0 * tokens * longest as f64 * (self.hidden * layers) as f64,
                read: read as f64,
                ..Cost::default()
            },
        }
    }
}

impl TextPlan<'_> {
    /// Chooses to stream the text encoder where it does not fit, and says so. What cannot fit even so is refused.
    pub fn fit(&mut self, limits: &Limits) -> Result<Option<String>> {
        let dtype = self.request.dtype;
        let Some(text) = Text::new(&self.encoding, &self.checkpoint, dtype)? else { return Ok(None) };
        let needs = |residency| limits.base + text.phase(residency, dtype).bytes();
        let residency = |residency| limits.hold(text.phase(residency, dtype).bytes());
        self.residency = limits.choose(self.residency, 0, residency);
        limits.check("encode text", needs(self.residency))?;
        Ok(limits.told(self.residency, 0, needs(Residency::Resident)))
    }
}

/// Tokens of the instructions, the idea and what is written, at most about.
const WRITTEN: usize = 2048;

/// How the layers of a text encoder are kept while it writes, which reads them for every word; and why not all stay in memory,
/// if they do not. What cannot fit is refused.
pub fn fit_writer(
    folder: &GemmaFolder,
    dtype: Dtype,
    residency: Residency,
    limits: &Limits,
) -> Result<(Residency, Option<String>)> {
    let config = folder.config()?;
    let size = |key| config.usize(key);
    let weights = folder.weights(dtype);
    let layers = weights.block_footprint("layers");
    let keys = layers.count * 2 * size("num_key_value_heads")? * size("head_dim")?;
    let passing = 3 * size("intermediate_size")? + 8 * size("hidden_size")?;
    let work = (WRITTEN * (keys + passing) * dtype.size()) as u64;
    let needs = |residency| layers.held(residency) + work;
    let chosen = limits.choose(residency, layers.count, |residency| limits.hold(needs(residency)));
    limits.check("enhance prompt", limits.base + needs(chosen))?;
    let why = limits.told(chosen, layers.count, limits.base + needs(Residency::Resident));
    Ok((chosen, why.map(|why| format!("{why}; it reads them for every word that it writes"))))
}

impl Limits {
    /// As asked for where that is no choice, else the first that fits.
    fn choose(&self, asked: Residency, count: usize, fits: impl Fn(Residency) -> bool) -> Residency {
        if self.fixed_residency { asked } else { best(count, fits) }
    }

    /// Why the text encoder is streamed, unless that was asked for.
    fn told(&self, residency: Residency, count: usize, needs: u64) -> Option<String> {
        let most = self.most.filter(|_| !self.fixed_residency)?;
        told("the text encoder", residency, count, [needs, most])
    }

    /// Refuses what takes more than there is.
    fn check(&self, phase: &'static str, needs: u64) -> Result<()> {
        match self.most {
            Some(available) if needs > available => {
                let remedy =
                    "use a packed text encoder, --quantize 8 or 4, or give it more with --memory".into();
                Err(Error::Memory { phase, needs, available, remedy })
            }
            _ => Ok(()),
        }
    }
}
