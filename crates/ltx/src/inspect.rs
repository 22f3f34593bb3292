//! What is in a model: components, sizes, configuration, and what would be left unread. Reads headers only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlx::Dtype;
use serde_json::Value;

use crate::audio_vae::{AudioDecoder, AudioEncoder};
use crate::checkpoint::{Checkpoint, Component, Config, File, TensorInfo, Unread, Weights};
use crate::dit::Dit;
use crate::error::Result;
use crate::text::{Connectors, Gemma, GemmaFolder, Projection};
use crate::upsampler::Upsampler;
use crate::video_vae::{ConvDecoder, Encoder};
use crate::vocoder::Vocoder;

/// Everything found.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The `model_version` of the file with the transformer, if one says.
    pub version: Option<String>,
    /// Components, in the order data flows.
    pub parts: Vec<Part>,
}

/// One component.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// The file, or the folder or file of a text encoder.
    pub file: PathBuf,
    /// Numbers in its tensors.
    pub parameters: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Numbers by dtype, as the file spells it.
    pub dtypes: BTreeMap<String, u64>,
    /// Configuration worth knowing: key and value.
    pub facts: Vec<(String, String)>,
    /// Full keys of tensors that this program would not read.
    pub unread: Vec<String>,
    /// Why it could not be loaded, if so.
    pub problem: Option<String>,
}

/// Inspects model files, folders of them, and text encoder folders.
pub fn inspect<P: AsRef<Path>>(paths: &[P]) -> Result<Inspection> {
    let (mut parts, mut models) = (Vec::new(), Vec::new());
    for path in paths.iter().map(AsRef::as_ref) {
        if GemmaFolder::is_at(path) { parts.push(text_encoder(path)?) } else { models.push(path) }
    }
    let checkpoint = Checkpoint::open(&models)?;
    for component in Component::ALL {
        // Every file that holds it, not only the one that a run would use: a folder may hold several upsamplers.
        for file in checkpoint.files() {
            if let Some(root) = component.root(file) {
                parts.push(part(component, root, file, &Checkpoint::open(&[file.path()])?));
            }
        }
    }
    for file in checkpoint
        .files()
        .iter()
        .filter(|file| Component::ALL.iter().all(|component| component.root(file).is_none()))
    {
        let mut part = count("nothing known", file.path(), &[(file, "")], |_| true);
        part.problem = Some("holds no component of LTX-2".into());
        parts.push(part);
    }
    Ok(Inspection { version: checkpoint.version().map(String::from), parts })
}

fn part(component: Component, root: &str, file: &File, checkpoint: &Checkpoint) -> Part {
    let mut part = count(&component.to_string(), file.path(), &[(file, root)], |key| component.owns(key));
    part.facts = file.config().map(|config| facts(component, &config)).unwrap_or_default();
    match checkpoint
        .component(component, Dtype::Bf16)
        .and_then(|(weights, config)| unread(component, &weights, &config))
    {
        Ok(unread) => part.unread = unread,
        Err(error) => part.problem = Some(error.to_string()),
    }
    part
}

/// Builds the network, which reads headers only until something is computed, and lists what it did not ask for.
fn unread(component: Component, weights: &Weights, config: &Config) -> Result<Vec<String>> {
    match component {
        Component::Projection => Projection::load(weights, config).map(drop),
        Component::Connector => Connectors::load(weights, config).map(drop),
        Component::Dit => Dit::load(weights, config).map(drop),
        Component::VideoEncoder => Encoder::load(weights, config).map(drop),
        Component::VideoDecoder => ConvDecoder::load(weights, config).map(drop),
        Component::AudioEncoder => AudioEncoder::load(weights, config).map(drop),
        Component::AudioDecoder => AudioDecoder::load(weights, config).map(drop),
        Component::Vocoder => Vocoder::load(weights, config).map(drop),
        Component::Upsampler => Upsampler::load(weights, config).map(drop),
    }?;
    weights.finish(Unread::Report)
}

fn text_encoder(path: &Path) -> Result<Part> {
    let folder = GemmaFolder::open(path)?;
    let files: Vec<(&File, &str)> =
        folder.files().iter().map(|file| (file.as_ref(), folder.root())).collect();
    let mut part = count("text encoder (Gemma 3)", path, &files, |_| true);
    let config = folder.config()?;
    let keys = [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
    ];
    part.facts =
        keys.iter().filter_map(|key| Some((key.to_string(), config.get(key)?.to_string()))).collect();
    let weights = folder.weights(Dtype::Bf16);
    match Gemma::load(&weights, &folder).and_then(|_| weights.finish(Unread::Report)) {
        Ok(unread) => part.unread = unread,
        Err(error) => part.problem = Some(error.to_string()),
    }
    if let Err(error) = folder.tokenizer() {
        part.problem.get_or_insert(error.to_string());
    }
    Ok(part)
}

fn count(name: &str, path: &Path, files: &[(&File, &str)], owns: impl Fn(&str) -> bool) -> Part {
    let mut part = Part {
        name: name.into(),
        file: path.into(),
        parameters: 0,
        tensors: 0,
        bytes: 0,
        dtypes: BTreeMap::new(),
        facts: Vec::new(),
        unread: Vec::new(),
        problem: None,
    };
    for (file, root) in files {
        for (key, info) in file.tensors().filter(|(key, _)| key.strip_prefix(root).is_some_and(&owns)) {
            part.tensors += 1;
            part.bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
            if let Some((parameters, dtype)) = numbers(file, &key, info) {
                part.parameters += parameters;
                *part.dtypes.entry(dtype).or_default() += parameters;
            }
        }
    }
    part
}

/// How many numbers a tensor stands for and how it holds them; none for the scales and biases of a packed weight.
fn numbers(file: &File, key: &str, info: &TensorInfo) -> Option<(u64, String)> {
    let product = |shape: &[usize]| shape.iter().map(|&size| size as u64).product::<u64>();
    let dtype = file.quantized(key).map_or(format!("{:?}", info.dtype), |kind| kind.name().into());
    let own = (product(&info.shape), dtype);
    let is_packed = |info: &TensorInfo| info.dtype == safetensors::Dtype::U32;
    if is_packed(info) {
        let layout = file.layout().ok()?;
        let known = layout.shape(file, key).ok().flatten().zip(layout.said(file, key).ok().flatten());
        return Some(known.map_or(own, |(shape, packing)| (product(&shape), packing.to_string())));
    }
    let Some((module, name)) = key.rsplit_once('.') else { return Some(own) };
    let weight = file.info(&format!("{module}.weight"));
    let part = matches!(name, "scales" | "biases") && weight.is_some_and(is_packed);
    (!part).then_some(own)
}

/// The settings of a component that a person asks about, where its file has them.
fn facts(component: Component, config: &Value) -> Vec<(String, String)> {
    let (section, keys): (&str, &[&str]) = match component {
        Component::Projection => ("/transformer", &["text_encoder_norm_type", "caption_channels"]),
        Component::Connector => (
            "/transformer",
            &[
                "connector_num_layers",
                "connector_num_attention_heads",
                "connector_attention_head_dim",
                "connector_apply_gated_attention",
            ],
        ),
        Component::Dit => (
            "/transformer",
            &[
                "num_layers",
                "num_attention_heads",
                "attention_head_dim",
                "audio_num_attention_heads",
                "audio_attention_head_dim",
                "in_channels",
                "apply_gated_attention",
                "cross_attention_adaln",
                "av_ca_timestep_scale_multiplier",
            ],
        ),
        Component::VideoEncoder | Component::VideoDecoder => (
            "/vae",
            &[
                "_class_name",
                "latent_channels",
                "patch_size",
                "spatial_padding_mode",
                "timestep_conditioning",
            ],
        ),
        Component::AudioEncoder | Component::AudioDecoder => ("/audio_vae/model/params", &["sampling_rate"]),
        Component::Vocoder => ("/vocoder/bwe", &["input_sampling_rate", "output_sampling_rate"]),
        Component::Upsampler => (
            "",
            &["mid_channels", "spatial_upsample", "temporal_upsample", "spatial_scale", "rational_resampler"],
        ),
    };
    let section = config.pointer(section);
    let fact = |key: &&str| Some((key.to_string(), section?.get(key)?.to_string()));
    keys.iter().filter_map(fact).collect()
}
