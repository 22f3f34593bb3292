//! Gemma 3, for its hidden states: a decoder of which every layer's output is used. What it writes is in `generation`.
//!
//! Layers alternate between attention to a sliding window and to everything before, with rotary positions of their own.
//! Formulas: Gemma 3 technical report (arXiv 2503.19786) and the `Gemma3TextModel` of Hugging Face's transformers.

use std::ops::Range;

use mlx::{Array, Dtype};

use super::GemmaFolder;
use crate::checkpoint::{Blocks, Config, Weights};
use crate::dit::Rope;
use crate::error::{Error, Result};
use crate::nn::{self, Activation, Bias, Linear, Weight};

/// Rows of an embedding in GGUF that are made whole at a time: of Gemma 3 12B 126 MB, not 2 GB.
const PIECE: i32 = 16384;

/// How the layers of one kind attend.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    /// Tokens that a token sees, itself included; `None` is all before it.
    window: Option<usize>,
    theta: f64,
    /// Positions are divided by this.
    factor: f64,
}

#[derive(Clone, Debug)]
struct Settings {
    hidden: i32,
    intermediate: i32,
    heads: i32,
    key_heads: i32,
    head_dim: i32,
    scale: f32,
    eps: f32,
    /// What is added to the stored weights of norms: they are stored as what is added to 1, but in GGUF.
    norm_offset: f32,
    bias: Bias,
    /// One per layer.
    spans: Vec<Span>,
}

impl Settings {
    /// Hugging Face leaves out of `config.json` what equals the class' defaults: those of `Gemma3TextConfig` stand here.
    fn new(config: &Config) -> Result<Self> {
        let size =
            |key: &str, default: i32| if config.get(key).is_some() { config.i32(key) } else { Ok(default) };
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if config.get(key).is_some() {
                return Err(config.error(key, "is set: Gemma 3 has none"));
            }
        }
        let activation = config.optional_str("hidden_activation")?.unwrap_or("gelu_pytorch_tanh");
        if activation != "gelu_pytorch_tanh" {
            return Err(
                config.error("hidden_activation", format!("is `{activation}`, not gelu_pytorch_tanh"))
            );
        }
        if config.optional_bool("use_bidirectional_attention")?.unwrap_or(false) {
            return Err(config.error("use_bidirectional_attention", "is true: the text encoder is causal"));
        }
        let settings = Self {
            hidden: config.i32("hidden_size")?,
            intermediate: config.i32("intermediate_size")?,
            heads: size("num_attention_heads", 8)?,
            key_heads: size("num_key_value_heads", 4)?,
            head_dim: size("head_dim", 256)?,
            scale: config.optional_f64("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32,
            eps: config.optional_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            norm_offset: config.optional_f64("norm_offset")?.unwrap_or(1.0) as f32,
            bias: if config.optional_bool("attention_bias")?.unwrap_or(false) { Bias::Yes } else { Bias::No },
            spans: spans(config)?,
        };
        let positive =
            [settings.hidden, settings.intermediate, settings.heads, settings.key_heads, settings.head_dim];
        let wide = settings.heads.checked_mul(settings.head_dim).is_none_or(|width| width > 1 << 20);
        if positive.iter().any(|&size| !(1..1 << 20).contains(&size)) || wide || settings.head_dim % 2 == 1 {
            return Err(config.error("hidden_size", "and the other sizes are not those of a Gemma 3"));
        }
        if settings.heads % settings.key_heads != 0 {
            return Err(config.error("num_key_value_heads", "does not divide num_attention_heads"));
        }
        if !(settings.scale.is_finite() && settings.scale > 0.0) {
            return Err(config.error("query_pre_attn_scalar", "is not above 0"));
        }
        Ok(settings)
    }
}

/// Which layers slide, from `layer_types` or the older `sliding_window_pattern`, and the rotary settings of each kind,
/// from `rope_parameters` or the older `rope_theta`, `rope_local_base_freq` and `rope_scaling`.
fn spans(config: &Config) -> Result<Vec<Span>> {
    let layers = config.usize("num_hidden_layers")?;
    if !(1..=1000).contains(&layers) {
        return Err(config.error("num_hidden_layers", format!("is {layers}")));
    }
    let parameters = config.optional_at("rope_parameters")?;
    let kind = |name: &str| parameters.as_ref().map_or(Ok(None), |parameters| parameters.optional_at(name));
    let rotary =
        |own: Option<&Config>, theta: &str, default: f64, scaling: Option<&Config>| -> Result<(f64, f64)> {
            let base = match own.map(|own| own.optional_f64("rope_theta")).transpose()?.flatten() {
                Some(base) => base,
                None => config.optional_f64(theta)?.unwrap_or(default),
            };
            let scaling = scaling.or(own);
            let Some(scaling) = scaling else { return Ok((base, 1.0)) };
            let kind =
                scaling.optional_str("rope_type")?.or(scaling.optional_str("type")?).unwrap_or("default");
            match kind {
                "default" => Ok((base, 1.0)),
                "linear" => Ok((base, scaling.f64("factor")?)),
                other => Err(scaling.error("rope_type", format!("is `{other}`, not linear"))),
            }
        };
    let scaling = config.optional_at("rope_scaling")?;
    let (global, local) = (kind("full_attention")?, kind("sliding_attention")?);
    let (theta, factor) = rotary(global.as_ref(), "rope_theta", 1e6, scaling.as_ref())?;
    let (local_theta, local_factor) = rotary(local.as_ref(), "rope_local_base_freq", 1e4, None)?;
    for (key, value) in
        [("rope_theta", theta), ("rope_local_base_freq", local_theta), ("rope_scaling", factor)]
    {
        if !(value.is_finite() && value > 0.0) {
            return Err(config.error(key, format!("is {value}")));
        }
    }
    let window = config.optional_usize("sliding_window")?.unwrap_or(4096);
    let global = Span { window: None, theta, factor };
    let sliding = Span { window: Some(window.max(1)), theta: local_theta, factor: local_factor };
    if config.get("layer_types").is_none() {
        let pattern = config.optional_usize("sliding_window_pattern")?.unwrap_or(6).max(1);
        return Ok((1..=layers).map(|layer| if layer % pattern == 0 { global } else { sliding }).collect());
    }
    let types = config.list("layer_types")?;
    if types.len() != layers {
        return Err(config.error("layer_types", format!("has {} entries for {layers} layers", types.len())));
    }
    let span = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(global),
        Some("sliding_attention") => Ok(sliding),
        _ => Err(config.error("layer_types", format!("has {kind}"))),
    };
    types.iter().map(span).collect()
}

/// The language model.
#[derive(Debug)]
pub struct Gemma {
    embedding: Weight, // (vocabulary, hidden), as the file has it
    layers: Blocks<Layer>,
    norm: Norm,
    settings: Settings,
    dtype: Dtype,
}

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    post_attention_norm: Norm,
    pre_feedforward_norm: Norm,
    post_feedforward_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Norm,
    k_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Root-mean-square norm, in f32.
#[derive(Debug)]
struct Norm {
    weight: Array, // (width)
    eps: f32,
}

impl Norm {
    fn load(weights: &Weights, name: &str, width: i32, settings: &Settings) -> Result<Self> {
        let stored = weights.at(name).tensor_as("weight", &[width], Dtype::F32)?;
        Ok(Self { weight: stored.add(settings.norm_offset)?, eps: settings.eps })
    }

    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        nn::rms_norm(x, Some(&self.weight), self.eps)
    }
}

impl Gemma {
    /// Reads the weights of `folder` (of [`GemmaFolder::weights`]).
    pub fn load(weights: &Weights, folder: &GemmaFolder) -> Result<Self> {
        Self::configured(weights, &folder.config()?)
    }

    /// The same with the language model's configuration.
    pub(crate) fn configured(weights: &Weights, config: &Config) -> Result<Self> {
        let settings = Settings::new(config)?;
        let layer_settings = settings.clone();
        let rows = weights.shape("embed_tokens.weight").and_then(|shape| shape.first().copied()).unwrap_or(0);
        Ok(Self {
            embedding: weights.at("embed_tokens").table(rows, settings.hidden)?,
            layers: Blocks::load(&weights.at("layers"), settings.spans.len(), move |layer| {
                Layer::load(layer, &layer_settings)
            })?,
            norm: Norm::load(weights, "norm", settings.hidden, &settings)?,
            settings,
            dtype: weights.dtype(),
        })
    }

    /// Number of tokens that it knows.
    pub fn vocabulary(&self) -> i32 {
        self.embedding.outputs()
    }

    /// Embeddings of tokens, (1, tokens, hidden).
    fn embed(&self, ids: &[u32]) -> Result<Array> {
        let index: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let index = Array::from_slice(&index, &[index.len() as i32])?;
        let rows = self.embedding.rows(&index, self.dtype)?.astype(self.dtype)?.expand_dims(&[0])?; // (1, tokens, hidden)
        // The reference rounds the factor to the weights' dtype too.
        Ok(rows.multiply(f64::from(self.settings.hidden).sqrt())?)
    }

    /// What `ids`, which follow those that `past` remembers, say of the next token: f32 (vocabulary), not normalized.
    pub(super) fn next(&self, ids: &[u32], past: &mut Past) -> Result<Vec<f32>> {
        past.layers.resize_with(self.layers.count(), Kept::default);
        let mut x = self.embed(ids)?;
        for (index, (span, kept)) in self.settings.spans.iter().zip(&mut past.layers).enumerate() {
            x = self.layers.with(index, |layer| {
                let x = layer.forward(&x, span, &self.settings, kept)?;
                if self.layers.streamed() {
                    mlx::eval([Some(&x), kept.keys.as_ref(), kept.values.as_ref()].into_iter().flatten())?;
                }
                Ok(x)
            })?;
        }
        let last = self.norm.forward(&x.slice(1, x.dim(1) - 1..x.dim(1))?)?; // (1, 1, hidden)
        // The embedding is what the tokens are compared with, too.
        let mut logits = Vec::new();
        for piece in self.embedding.pieces(PIECE)? {
            let piece = match piece {
                Weight::Dense(table) => Weight::Dense(table.astype(self.dtype)?),
                other => other,
            };
            let said = Linear::of(piece).forward(&last)?.astype(Dtype::F32)?;
            said.eval()?;
            logits.push(said);
        }
        let logits = mlx::concatenate(&logits.iter().collect::<Vec<_>>(), -1)?;
        let kept = past.layers.iter().flat_map(|kept| [kept.keys.as_ref(), kept.values.as_ref()]).flatten();
        mlx::eval(kept.chain([&logits]))?;
        Ok(logits.to_f32()?)
    }

    /// Hidden states of each prompt: the embeddings, then each layer's output, the last after the final norm, each
    /// (1, tokens, hidden). Layers are let go of one by one, so that only one is in memory at a time.
    pub fn hidden_states(self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<Array>>> {
        let mut states = Vec::new();
        for ids in prompts {
            states.push(vec![self.embed(ids)?]);
        }
        drop(self.embedding);
        let last = self.layers.count().saturating_sub(1);
        self.layers.for_each(|index, layer| {
            let Some(span) = self.settings.spans.get(index) else { return Ok(()) };
            for states in &mut states {
                let Some(x) = states.last() else { continue };
                let mut x = layer.forward(x, span, &self.settings, &mut Kept::default())?;
                if index == last {
                    x = self.norm.forward(&x)?;
                }
                x.eval()?;
                states.push(x);
            }
            Ok(())
        })?;
        Ok(states)
    }
}

impl Gemma {
    /// What layer `index` makes of hidden states (1, tokens, hidden), by itself.
    pub(crate) fn layer(&self, index: usize, x: &Array) -> Result<Array> {
        let missing = || Error::request(format!("Gemma has no layer {index}"), "count from 0");
        let span = self.settings.spans.get(index).ok_or_else(missing)?;
        self.layers.with(index, |layer| layer.forward(x, span, &self.settings, &mut Kept::default()))
    }
}

impl Layer {
    fn load(weights: &Weights, settings: &Settings) -> Result<Self> {
        let &Settings { hidden, intermediate, heads, key_heads, head_dim, bias, .. } = settings;
        let norm = |name: &str, width| Norm::load(weights, name, width, settings);
        let linear =
            |name: &str, inputs, outputs, bias| Linear::load(&weights.at(name), inputs, outputs, bias);
        Ok(Self {
            input_norm: norm("input_layernorm", hidden)?,
            post_attention_norm: norm("post_attention_layernorm", hidden)?,
            pre_feedforward_norm: norm("pre_feedforward_layernorm", hidden)?,
            post_feedforward_norm: norm("post_feedforward_layernorm", hidden)?,
            q: linear("self_attn.q_proj", hidden, heads * head_dim, bias)?,
            k: linear("self_attn.k_proj", hidden, key_heads * head_dim, bias)?,
            v: linear("self_attn.v_proj", hidden, key_heads * head_dim, bias)?,
            o: linear("self_attn.o_proj", heads * head_dim, hidden, bias)?,
            q_norm: norm("self_attn.q_norm", head_dim)?,
            k_norm: norm("self_attn.k_norm", head_dim)?,
            gate: linear("mlp.gate_proj", hidden, intermediate, Bias::No)?,
            up: linear("mlp.up_proj", hidden, intermediate, Bias::No)?,
            down: linear("mlp.down_proj", intermediate, hidden, Bias::No)?,
        })
    }

    /// (1, tokens, hidden) → (1, tokens, hidden), after the tokens that are kept
    fn forward(&self, x: &Array, span: &Span, settings: &Settings, kept: &mut Kept) -> Result<Array> {
        let attended = self.attend(&self.input_norm.forward(x)?, span, settings, kept)?;
        let x = x.add(self.post_attention_norm.forward(&attended)?)?;
        let y = self.pre_feedforward_norm.forward(&x)?;
        let y = self.gate.activated(&y, Activation::GeluTanh)?.multiply(self.up.forward(&y)?)?; // (1, tokens, intermediate)
        let y = self.down.forward(&y)?;
        Ok(x.add(self.post_feedforward_norm.forward(&y)?)?)
    }

    fn attend(&self, x: &Array, span: &Span, settings: &Settings, kept: &mut Kept) -> Result<Array> {
        let (tokens, before) = (x.dim(1), kept.tokens());
        let heads = |x: Array, heads: i32| -> mlx::Result<Array> {
            x.reshape(&[1, tokens, heads, settings.head_dim])
        };
        let q = heads(self.q.forward(x)?, settings.heads)?;
        let k = heads(self.k.forward(x)?, settings.key_heads)?;
        let v = heads(self.v.forward(x)?, settings.key_heads)?;
        let places = before..before + tokens as usize;
        let angles = angles(places, settings.head_dim as usize, span);
        let rope = Rope::from_angles(&angles, tokens, x.dtype())?;
        let turned = |x: &Array, norm: &Norm| rope.rotate_normed(x, &norm.weight, norm.eps);
        let (k, v) = kept.push(turned(&k, &self.k_norm)?, v)?;
        let q = turned(&q, &self.q_norm)?;
        let attended = nn::past_attention(&q, &k, &v, settings.scale, span.window)?;
        Ok(self.o.forward(&attended.reshape(&[1, tokens, -1])?)?) // from (1, tokens, heads · head_dim)
    }
}

/// What a model remembers of the tokens that it has read.
#[derive(Debug, Default)]
pub(super) struct Past {
    layers: Vec<Kept>,
}

/// What a layer keeps of the tokens before.
#[derive(Debug, Default)]
struct Kept {
    keys: Option<Array>,   // (1, tokens, key heads, head_dim)
    values: Option<Array>, // (1, tokens, key heads, head_dim)
}

impl Kept {
    fn tokens(&self) -> usize {
        self.keys.as_ref().map_or(0, |keys| keys.dim(1) as usize)
    }

    /// Keeps what is new; gives all.
    fn push(&mut self, keys: Array, values: Array) -> mlx::Result<(Array, Array)> {
        let after = |before: &Option<Array>, new: Array| match before {
            Some(before) => mlx::concatenate(&[before, &new], 1),
            None => Ok(new),
        };
        let all = (after(&self.keys, keys)?, after(&self.values, values)?);
        (self.keys, self.values) = (Some(all.0.clone()), Some(all.1.clone()));
        Ok(all)
    }
}

/// Angles by token and pair, row-major, in f32 as the reference computes them.
fn angles(tokens: Range<usize>, head_dim: usize, span: &Span) -> Vec<f32> {
    let frequency = |pair: usize| {
        let exponent = (2 * pair) as f32 / head_dim as f32;
        (1.0 / span.theta.powf(f64::from(exponent)) / span.factor) as f32
    };
    tokens.flat_map(|token| (0..head_dim / 2).map(move |pair| token as f32 * frequency(pair))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn config(extra: serde_json::Value) -> Config {
        let mut value = json!({ "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 7 });
        for (key, extra) in extra.as_object().unwrap() {
            value[key] = extra.clone();
        }
        Config::new(Path::new("config.json"), value)
    }

    #[test]
    fn both_ways_to_write_the_layers_agree() {
        let old = json!({ "sliding_window_pattern": 3, "sliding_window": 5, "rope_scaling": { "rope_type": "linear", "factor": 8.0 } });
        let types: Vec<&str> = (1..=7)
            .map(|layer| if layer % 3 == 0 { "full_attention" } else { "sliding_attention" })
            .collect();
        let new = json!({
            "layer_types": types, "sliding_window": 5,
            "rope_parameters": {
                "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
                "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
            },
        });
        let old = spans(&config(old)).unwrap();
        assert_eq!(old, spans(&config(new)).unwrap());
        assert_eq!(old[2], Span { window: None, theta: 1e6, factor: 8.0 });
        assert_eq!(old[3], Span { window: Some(5), theta: 1e4, factor: 1.0 });
    }

    #[test]
    fn what_is_left_out_has_gemmas_defaults() {
        let settings = Settings::new(&config(json!({}))).unwrap();
        assert_eq!(
            (settings.heads, settings.key_heads, settings.head_dim, settings.scale),
            (8, 4, 256, 0.0625)
        );
        assert_eq!(settings.spans[5].window, None);
        assert_eq!(settings.spans[6].window, Some(4096));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |extra, key: &str| {
            let error = Settings::new(&config(extra)).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        };
        refused(json!({ "num_attention_heads": 6 }), "num_key_value_heads");
        refused(json!({ "head_dim": 0 }), "sizes");
        refused(json!({ "num_hidden_layers": 0 }), "num_hidden_layers");
        refused(json!({ "layer_types": ["full_attention"] }), "layer_types");
        refused(json!({ "attn_logit_softcapping": 50.0 }), "attn_logit_softcapping");
        refused(json!({ "rope_scaling": { "rope_type": "yarn", "factor": 2 } }), "rope_type");
        refused(json!({ "query_pre_attn_scalar": -1 }), "query_pre_attn_scalar");
        refused(json!({ "hidden_size": "wide" }), "hidden_size");
    }
}
