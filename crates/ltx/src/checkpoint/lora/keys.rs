//! What programs call the parts of a LoRA, brought to the official names of the modules that they change.

use std::collections::BTreeMap;

/// A part of one module's update: weight + strength · alpha / rank · up · down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A: (rank, in)
    Down,
    /// B: (out, rank)
    Up,
    /// A number that stands for the rank in the formula.
    Alpha,
}

const PARTS: [(&str, Part); 10] = [
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
    (".lora_alpha", Part::Alpha),
];

/// Marks of methods that are not LoRA, and their names.
const OTHERS: [(&str, &str); 7] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lokr_", "LoKr"),
    ("hada_", "LoHa"),
    ("oft_", "OFT"),
    ("lora_mid.", "a Tucker decomposition"),
    ("lora_B.bias", "biases"),
];
const OTHER_ENDS: [(&str, &str); 2] =
    [(".diff_b", "differences of biases"), (".diff", "differences of whole weights")];

/// What a key of a LoRA file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// A part of the module of this name.
    Part(&'a str, Part),
    /// Of a method that is not understood, by name: leaving it out would change the result.
    Other(&'static str),
    Unknown,
}

pub(super) fn parse(key: &str) -> Key<'_> {
    for (suffix, part) in PARTS {
        if let Some(module) = key.strip_suffix(suffix) {
            return Key::Part(module, part);
        }
    }
    let ends = OTHER_ENDS.iter().filter(|(end, _)| key.ends_with(end));
    let begins = |mark: &str| {
        key.match_indices(mark).any(|(at, _)| at == 0 || key.as_bytes().get(at - 1) == Some(&b'.'))
    };
    let other = OTHERS.iter().filter(|(mark, _)| begins(mark)).chain(ends).next();
    other.map_or(Key::Unknown, |(_, method)| Key::Other(method))
}

/// Prefixes of whole names, the longest first; what follows them is a dotted path.
const PREFIXES: [&str; 5] =
    ["base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "connectors."];
/// Prefixes of names in which underscores stand for dots.
const FLAT_PREFIXES: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];

/// diffusers' names for modules at the top, and the official ones.
const RENAMED: [(&str, &str); 15] = [
    ("proj_in", "patchify_proj"),
    ("audio_proj_in", "audio_patchify_proj"),
    ("time_embed", "adaln_single"),
    ("audio_time_embed", "audio_adaln_single"),
    ("prompt_adaln", "prompt_adaln_single"),
    ("audio_prompt_adaln", "audio_prompt_adaln_single"),
    ("av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
    ("av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
    ("av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
    ("av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
    ("video_connector", "video_embeddings_connector"),
    ("audio_connector", "audio_embeddings_connector"),
    ("text_proj_in", "text_embedding_projection.aggregate_embed"),
    ("video_text_proj_in", "text_embedding_projection.video_aggregate_embed"),
    ("audio_text_proj_in", "text_embedding_projection.audio_aggregate_embed"),
];

/// The modules of a model by every name that they may have in a LoRA.
pub(super) struct Names<'a> {
    dotted: BTreeMap<&'a str, usize>,
    flat: BTreeMap<String, usize>,
}

impl<'a> Names<'a> {
    /// Official module names, without the `model.diffusion_model.` before those of the transformer; each is known by its
    /// place from then on.
    pub fn new(modules: impl Iterator<Item = &'a str> + Clone) -> Self {
        let flat = modules.clone().enumerate().map(|(index, name)| (name.replace('.', "_"), index)).collect();
        Self { dotted: modules.enumerate().map(|(index, name)| (name, index)).collect(), flat }
    }

    /// The place of the module that a LoRA calls `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        if let Some(flat) = FLAT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            return self.flat.get(flat).or_else(|| self.flat.get(&renamed(flat, '_'))).copied();
        }
        let mut name = name;
        for prefix in PREFIXES {
            name = name.strip_prefix(prefix).unwrap_or(name);
        }
        self.dotted.get(name).or_else(|| self.dotted.get(renamed(name, '.').as_str())).copied()
    }
}

/// A name of diffusers' in the official spelling; `separator` stands between its segments.
fn renamed(name: &str, separator: char) -> String {
    let split =
        |from: &str| name.strip_prefix(from).filter(|rest| rest.starts_with(separator) || rest.is_empty());
    let Some((to, rest)) = RENAMED.iter().find_map(|(from, to)| Some((to, split(from)?))) else {
        return name.into();
    };
    let separated = |name: &str| if separator == '.' { name.to_string() } else { name.replace('.', "_") };
    let rest = if to.ends_with("_connector") {
        rest.replacen("transformer_blocks", "transformer_1d_blocks", 1)
    } else {
        rest.into()
    };
    separated(to) + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_programs_keys_are_read() {
        let part = |key| match parse(key) {
            Key::Part(module, part) => (module.to_string(), part),
            other => panic!("{key}: {other:?}"),
        };
        assert_eq!(part("diffusion_model.a.b.lora_A.weight"), ("diffusion_model.a.b".into(), Part::Down));
        assert_eq!(part("a.lora_B.default.weight"), ("a".into(), Part::Up));
        assert_eq!(part("lora_unet_a_b.lora_down.weight"), ("lora_unet_a_b".into(), Part::Down));
        assert_eq!(part("a.lora.up.weight"), ("a".into(), Part::Up));
        assert_eq!(part("a.b.alpha"), ("a.b".into(), Part::Alpha));
        assert_eq!(parse("a.dora_scale"), Key::Other("DoRA"));
        // `soft_` is no `oft_`.
        assert_eq!(parse("a.mm_soft_emb_norm.weight"), Key::Unknown);
        assert_eq!(parse("a.lokr_w1"), Key::Other("LoKr"));
        assert_eq!(parse("a.diff_b"), Key::Other("differences of biases"));
        assert_eq!(parse("a.weight"), Key::Unknown);
    }

    #[test]
    fn modules_are_found_by_every_name() {
        let modules = [
            "transformer_blocks.0.attn1.to_out.0",
            "patchify_proj",
            "adaln_single.linear",
            "audio_adaln_single.emb.timestep_embedder.linear_1",
            "av_ca_v2a_gate_adaln_single.linear",
            "video_embeddings_connector.transformer_1d_blocks.1.ff.net.2",
            "text_embedding_projection.video_aggregate_embed",
        ];
        let names = Names::new(modules.iter().copied());
        for (index, spellings) in [
            &[
                "transformer_blocks.0.attn1.to_out.0",
                "diffusion_model.transformer_blocks.0.attn1.to_out.0",
                "model.diffusion_model.transformer_blocks.0.attn1.to_out.0",
                "transformer.transformer_blocks.0.attn1.to_out.0",
                "base_model.model.transformer_blocks.0.attn1.to_out.0",
                "base_model.model.diffusion_model.transformer_blocks.0.attn1.to_out.0",
                "lora_unet_transformer_blocks_0_attn1_to_out_0",
            ][..],
            &["diffusion_model.patchify_proj", "transformer.proj_in", "lora_unet_proj_in"],
            &["transformer.time_embed.linear", "lora_transformer_time_embed_linear"],
            &["transformer.audio_time_embed.emb.timestep_embedder.linear_1"],
            &[
                "transformer.av_cross_attn_audio_v2a_gate.linear",
                "lora_unet_av_ca_v2a_gate_adaln_single_linear",
            ],
            &[
                "connectors.video_connector.transformer_blocks.1.ff.net.2",
                "diffusion_model.video_embeddings_connector.transformer_1d_blocks.1.ff.net.2",
            ],
            &[
                "connectors.video_text_proj_in",
                "text_embedding_projection.video_aggregate_embed",
                "lycoris_text_embedding_projection_video_aggregate_embed",
            ],
        ]
        .iter()
        .enumerate()
        {
            for name in *spellings {
                assert_eq!(names.find(name), Some(index), "{name}");
            }
        }
        for name in
            ["", "transformer_blocks.0.attn1.to_out", "transformer.time_embedding", "lora_unet_", "proj_in.x"]
        {
            assert_eq!(names.find(name), None, "{name}");
        }
    }
}
