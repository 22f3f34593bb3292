//! What files say of a run's networks: the bytes of their weights and the sizes of their layers.

use mlx::Dtype;
use serde_json::Value;

use super::work::Generator;
use super::{Cost, Phase, kept};
use crate::checkpoint::{BlockFootprint, Checkpoint, Component, Config, Footprint, Residency, Weights};
use crate::error::Result;
use crate::pipeline::Plan;
use crate::pipeline::text::{Encoding, Prompts};
use crate::text::{AT_ONCE, MAX_TOKENS};
use crate::video_vae::{ConvDecoder, Encoder};

/// All that a forecast needs to know of files.
pub struct Facts {
    pub dtype: Dtype,
    /// Unless the contexts are known.
    pub text: Option<Text>,
    /// Tokens of a context.
    pub context: usize,
    /// For each stage that has a model of its own.
    pub transformers: Vec<Option<BlockFootprint>>,
    pub upsampler: Option<(Footprint, usize)>,
    pub encoder: Option<(Encoder, Footprint)>,
    pub decoder: Option<Pictures>,
    pub sound: Option<Sound>,
}

/// The video's decoder.
pub type Pictures = (ConvDecoder, Footprint);

/// What makes sound.
pub struct Sound {
    /// The decoder of spectrograms.
    pub decoder: Footprint,
    /// Bytes of the widest thing that it makes of a mel frame.
    pub frame: usize,
    pub vocoder: Footprint,
    pub generators: Vec<Generator>,
}

impl Facts {
    pub fn new(plan: &Plan) -> Result<Self> {
        let dtype = plan.request.dtype;
        let files = &plan.checkpoint;
        let codec = |component| -> Result<(Config, Footprint)> {
            let (weights, config) = files.component(component, dtype)?;
            Ok((config, weights.convolution_footprint()))
        };
        let encodes = !plan.images.is_empty() || plan.windows.len() > 1;
        let decodes = !plan.request.skip_vae || plan.windows.len() > 1;
        let shapes = Weights::shapes(dtype);
        let encoder = encodes.then(|| {
            let (config, footprint) = codec(Component::VideoEncoder)?;
            Ok::<_, crate::Error>((Encoder::load(&shapes, &config)?, footprint))
        });
        let decoder = decodes.then(|| pictures(files, dtype));
        let heard = plan.audio.is_some() && !plan.request.skip_vae;
        let sound = heard.then(|| sound(files, dtype));
        let transformers = plan.steps.iter().map(|steps| {
            let model = steps.model.as_ref().filter(|_| !plan.request.placeholder);
            let weights = model.map(|model| model.component(Component::Dit, dtype)).transpose()?;
            Ok::<_, crate::Error>(weights.map(|(weights, _)| weights.block_footprint("transformer_blocks")))
        });
        let upsampler = plan.upsampler.as_ref().filter(|_| plan.recipe.two_stages()).map(|files| {
            let (weights, config) = files.component(Component::Upsampler, dtype)?;
            let channels = config.optional_usize("mid_channels")?.unwrap_or(512);
            Ok::<_, crate::Error>((weights.convolution_footprint(), channels))
        });
        Ok(Self {
            dtype,
            text: match &plan.prompts {
                Prompts::Encode(encoding) => Text::new(plan, encoding)?,
                _ => None,
            },
            context: match &plan.prompts {
                Prompts::Known(texts) => {
                    texts.iter().map(|text| text.positive.video.dim(1) as usize).max().unwrap_or(0)
                }
                _ => MAX_TOKENS,
            },
            transformers: transformers.collect::<Result<_>>()?,
            upsampler: upsampler.transpose()?,
            encoder: encoder.transpose()?,
            decoder: decoder.transpose()?,
            sound: sound.transpose()?,
        })
    }
}

/// The decoder in some files.
pub fn pictures(files: &Checkpoint, dtype: Dtype) -> Result<Pictures> {
    let (weights, config) = files.component(Component::VideoDecoder, dtype)?;
    Ok((ConvDecoder::load(&Weights::shapes(dtype), &config)?, weights.convolution_footprint()))
}

/// What makes sound in some files.
pub fn sound(files: &Checkpoint, dtype: Dtype) -> Result<Sound> {
    let (decoder, network) = files.component(Component::AudioDecoder, dtype)?;
    let (vocoder, config) = files.component(Component::Vocoder, Dtype::F32)?;
    let network = network.at("audio_vae")?.at("model")?.at("params")?.at("ddconfig")?;
    let size = |key, usual| Ok::<_, crate::Error>(network.optional_usize(key)?.unwrap_or(usual));
    Ok(Sound {
        decoder: decoder.convolution_footprint(),
        frame: size("ch", 128)? * size("mel_bins", 64)? * dtype.size(),
        vocoder: vocoder.convolution_footprint(),
        generators: generators(&config)?,
    })
}

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

/// Pages around one that is looked at come in with it.
const AROUND: u64 = 64 << 10;

impl Text {
    fn new(plan: &Plan, encoding: &Encoding) -> Result<Option<Self>> {
        let dtype = plan.request.dtype;
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
        let weights = |component| -> Result<Weights> { Ok(plan.checkpoint.component(component, dtype)?.0) };
        let (projection, connectors) = (weights(Component::Projection)?, weights(Component::Connector)?);
        let matrices =
            ["", "video_", "audio_"].map(|of| projection.at(format!("{of}aggregate_embed")).footprint());
        let blocks = |name: &str| connectors.at(name).block_footprint("transformer_1d_blocks");
        let contexts = crate::pipeline::text::widths(&plan.transformer);
        Ok(Some(Self {
            gemma,
            hidden,
            intermediate,
            prompts,
            projection: matrices.to_vec(),
            connectors: ["video_embeddings_connector", "audio_embeddings_connector"].map(blocks),
            width: (contexts.video + contexts.audio) as usize,
            length: MAX_TOKENS,
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

/// The generators of a vocoder, in order.
fn generators(config: &Config) -> Result<Vec<Generator>> {
    let config = config.at("vocoder")?;
    let Some(extension) = config.optional_at("bwe")? else { return Ok(vec![generator(&config, 1.0)?]) };
    let low = generator(&config.at("vocoder")?, 1.0)?;
    let samples = low.stages.last().map_or(1, |&(samples, _)| samples) as f64;
    let frames = samples / extension.usize("hop_length")?.max(1) as f64;
    Ok(vec![low, generator(&extension, frames)?])
}

fn generator(config: &Config, frames: f64) -> Result<Generator> {
    let mut channels = config.usize("upsample_initial_channel")?;
    let mut samples = 1;
    let mut stages = Vec::new();
    for rate in config.list_usize("upsample_rates")? {
        (samples, channels) = (samples * rate, channels / 2);
        stages.push((samples, channels));
    }
    let dilations = config.list("resblock_dilation_sizes")?;
    let kernels = config.list_usize("resblock_kernel_sizes")?;
    let length = |list: &Value| list.as_array().map_or(0, Vec::len);
    let taps = kernels.iter().zip(dilations).map(|(kernel, list)| 2 * kernel * length(list)).sum();
    Ok(Generator { stages, taps, frames })
}
