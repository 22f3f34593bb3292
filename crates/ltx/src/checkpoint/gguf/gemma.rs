//! Gemma 3 in GGUF: llama.cpp's names of its tensors and settings → Hugging Face's, which all else here knows.
//!
//! Facts from `gguf`'s constants and llama.cpp's `convert_hf_to_gguf.py`: queries and keys are stored in the order of Hugging
//! Face, and the weights of norms with the 1 added that Hugging Face's lack.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::checkpoint::File;
use crate::error::{Error, Result};

/// The entry that says what a file holds.
pub(super) const ARCHITECTURE: &str = "general.architecture";
/// What it says of Gemma 3.
pub(super) const NAME: &str = "gemma3";

/// Parts of a block, as llama.cpp and as Hugging Face call them.
const PARTS: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The official key of a tensor. What is not known stays below the language model too, so that it is refused as unread;
/// a vision tower and an output layer, which is the embedding again, are left out.
pub(super) fn official(name: &str) -> String {
    let renamed = match name {
        "token_embd.weight" => "embed_tokens.weight".into(),
        "output_norm.weight" => "norm.weight".into(),
        other if other.starts_with("v.") || other.starts_with("mm.") || other == "output.weight" => {
            return other.into();
        }
        other => block(other).unwrap_or_else(|| other.into()),
    };
    format!("model.{renamed}")
}

/// The key of a tensor in a block.
fn block(name: &str) -> Option<String> {
    let (index, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, end) = part.split_once('.')?;
    let (_, module) = PARTS.iter().find(|(known, _)| *known == module)?;
    Some(format!("layers.{index}.{module}.{end}"))
}

/// Whether a file is a Gemma 3 in GGUF.
pub(crate) fn is_gemma(file: &File) -> bool {
    file.is_gguf() && file.metadata(ARCHITECTURE) == Some(NAME)
}

/// What the `config.json` of the Gemma 3 in `file` would say. `norm_offset` is no key of Hugging Face: what is added to
/// the weights of norms.
pub(crate) fn configuration(file: &File) -> Result<Value> {
    let architecture = file.metadata(ARCHITECTURE).unwrap_or("unknown");
    if architecture != NAME {
        let problem = format!("is `{architecture}`; LTX-2 2.0 and 2.3 need `{NAME}`");
        return Err(Error::file(file.path(), ARCHITECTURE, problem, "give a GGUF file of Gemma 3 12B"));
    }
    let settings = Settings { file };
    let heads: u32 = settings.required("attention.head_count")?;
    let hidden: u32 = settings.required("embedding_length")?;
    let head_dim: u32 = settings.required("attention.key_length")?;
    let values: Option<u32> = settings.optional("attention.value_length")?;
    if values.is_some_and(|values| values != head_dim) {
        return Err(settings.wrong("attention.value_length", "differs from attention.key_length"));
    }
    let layers: u32 = settings.required("block_count")?;
    let scalar = match settings.optional::<f64>("attention.scale")? {
        Some(scale) => 1.0 / (scale * scale),
        // The 27B, of 62 layers, divides by another width than its heads have.
        None if layers == 62 => f64::from(hidden) / f64::from(heads.max(1)),
        None => f64::from(head_dim),
    };
    let mut config = json!({
        "model_type": "gemma3_text",
        "hidden_size": hidden,
        "intermediate_size": settings.required::<u32>("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": settings.required::<u32>("attention.head_count_kv")?,
        "head_dim": head_dim,
        "query_pre_attn_scalar": scalar,
        "rms_norm_eps": settings.required::<f64>("attention.layer_norm_rms_epsilon")?,
        "sliding_window": settings.required::<u32>("attention.sliding_window")?,
        "rope_theta": settings.optional::<f64>("rope.freq_base")?.unwrap_or(1e6),
        "rope_local_base_freq": settings.optional::<f64>("rope.freq_base_swa")?.unwrap_or(1e4),
        "norm_offset": 0.0,
    });
    if let Some(pattern) = settings.text("attention.sliding_window_pattern") {
        let slides = |word: &str| match word {
            "true" => Some("sliding_attention"),
            "false" => Some("full_attention"),
            _ => None,
        };
        let types: Option<Vec<&str>> = pattern.split(',').map(slides).collect();
        match (types, pattern.parse::<u32>()) {
            (Some(types), _) => config["layer_types"] = json!(types),
            (None, Ok(every)) => config["sliding_window_pattern"] = json!(every),
            _ => return Err(settings.wrong("attention.sliding_window_pattern", &format!("is {pattern}"))),
        }
    }
    let factor = settings.optional::<f64>("rope.scaling.factor")?;
    // Early converters left scaling out, but all models with so long a context have it.
    let long = settings.optional::<u64>("context_length")?.unwrap_or(0) > 32768;
    match (settings.text("rope.scaling.type"), factor) {
        (Some("none"), _) => {}
        (None | Some("linear"), Some(factor)) => {
            config["rope_scaling"] = json!({ "rope_type": "linear", "factor": factor });
        }
        (None, None) if !long => {}
        (None | Some("linear"), None) => {
            return Err(settings.wrong("rope.scaling.factor", "is missing, so positions cannot be told"));
        }
        (Some(other), _) => {
            return Err(settings.wrong("rope.scaling.type", &format!("is `{other}`, not linear")));
        }
    }
    if let Some(cap) = settings.optional::<f64>("final_logit_softcapping")?.filter(|cap| *cap != 0.0) {
        config["final_logit_softcapping"] = json!(cap);
    }
    Ok(config)
}

/// The entries `gemma3.…` of a file.
struct Settings<'a> {
    file: &'a File,
}

impl Settings<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.file.metadata(&format!("{NAME}.{name}"))
    }

    fn optional<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse::<f64>().is_ok_and(f64::is_finite).then(|| text.parse().ok()).flatten();
        number.map(Some).ok_or_else(|| self.wrong(name, &format!("is {text}")))
    }

    fn required<T: FromStr>(&self, name: &str) -> Result<T> {
        self.optional(name)?.ok_or_else(|| self.wrong(name, &"is missing"))
    }

    fn wrong(&self, name: &str, problem: &(impl Display + ?Sized)) -> Error {
        let remedy = "use a GGUF file of Gemma 3 12B that a newer llama.cpp made, or the Hugging Face folder";
        Error::file(self.file.path(), format!("{NAME}.{name}"), problem.to_string(), remedy)
    }
}
