//! What files say of a run's networks: the bytes of their weights and the sizes of their layers.

use mlx::Dtype;
use serde_json::Value;

use super::text::Text;
use super::work::Generator;
use crate::checkpoint::{BlockFootprint, Checkpoint, Component, Config, Footprint, Weights};
use crate::error::Result;
use crate::pipeline::Plan;
use crate::pipeline::text::Prompts;
use crate::text::MAX_TOKENS;
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
                Prompts::Encode(encoding) => Text::new(encoding, files, dtype)?,
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
