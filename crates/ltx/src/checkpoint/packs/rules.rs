//! What may be packed: the large matrices inside of blocks, and nothing that steers them.

/// One kind of tensors and whether it is packed.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What they are.
    pub what: &'static str,
    /// Inside of which blocks: what may stand before a block's number in its keys.
    pub blocks: &'static [&'static str],
    /// How the layers' keys end.
    pub layers: &'static [&'static str],
}

const DIT: &[&str] = &["model.diffusion_model.transformer_blocks."];
const GEMMA: &[&str] = &["model.layers.", "language_model.layers."];

/// What is packed. All else stays as it is: gates, modulation tables and embeddings, patches in and out, connectors,
/// projections, norms, biases, and the codecs.
pub const TABLE: [Rule; 4] = [
    Rule {
        what: "attention of the transformer",
        blocks: DIT,
        layers: &[".to_q", ".to_k", ".to_v", ".to_out.0"],
    },
    Rule { what: "feed-forward of the transformer", blocks: DIT, layers: &["ff.net.0.proj", "ff.net.2"] },
    Rule {
        what: "attention of the text encoder",
        blocks: GEMMA,
        layers: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    },
    Rule {
        what: "feed-forward of the text encoder",
        blocks: GEMMA,
        layers: &["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    },
];

/// Networks with fewer blocks have none to spare: of the others the first and the last stay as they are.
const MANY: usize = 12;

/// Whether the tensor `key` of a network of `blocks` blocks is packed.
pub fn packs(key: &str, blocks: usize) -> bool {
    let Some(layer) = key.strip_suffix(".weight") else { return false };
    TABLE.iter().any(|rule| {
        let end = |index| blocks >= MANY && (index == 0 || index + 1 == blocks);
        rule.place(layer)
            .is_some_and(|(index, layer)| !end(index) && rule.layers.iter().any(|name| layer.ends_with(name)))
    })
}

/// How many blocks the network with these keys has.
pub fn blocks<K: AsRef<str>>(keys: impl Iterator<Item = K>) -> usize {
    let index = |key: &str| TABLE.iter().find_map(|rule| rule.place(key)).map(|(index, _)| index);
    keys.filter_map(|key| index(key.as_ref())).max().map_or(0, |last| last + 1)
}

impl Rule {
    /// The number of the block that holds `key`, and what comes after it. The text encoder's vision tower has layers of
    /// its own, which are none of these.
    fn place<'a>(&self, key: &'a str) -> Option<(usize, &'a str)> {
        let after = self.blocks.iter().find_map(|blocks| {
            let at = key.find(blocks)?;
            let whole = at == 0 || key.as_bytes().get(at - 1) == Some(&b'.');
            (whole && !key.contains("vision")).then(|| key.get(at + blocks.len()..))?
        })?;
        let (index, layer) = after.split_once('.')?;
        Some((index.parse().ok()?, layer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_matrices_inside_of_blocks_are_packed() {
        let dit =
            |layer: &str| packs(&format!("model.diffusion_model.transformer_blocks.7.{layer}.weight"), 48);
        for layer in [
            "attn1.to_q",
            "audio_attn2.to_out.0",
            "video_to_audio_attn.to_v",
            "ff.net.0.proj",
            "audio_ff.net.2",
        ] {
            assert!(dit(layer), "{layer}");
        }
        for layer in ["attn1.to_gate_logits", "attn1.q_norm", "scale_shift_table"] {
            assert!(!dit(layer), "{layer}");
        }
        for root in ["model.", "language_model.model.", "model.language_model."] {
            assert!(packs(&format!("{root}layers.11.mlp.down_proj.weight"), 48), "{root}");
            assert!(!packs(&format!("{root}layers.11.mlp.down_proj.bias"), 48), "{root}");
            assert!(!packs(&format!("{root}embed_tokens.weight"), 48), "{root}");
        }
        for key in [
            "model.vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight",
            "vision_tower.model.layers.3.self_attn.q_proj.weight",
            "model.diffusion_model.video_embeddings_connector.transformer_1d_blocks.3.attn1.to_q.weight",
            "model.diffusion_model.adaln_single.linear.weight",
            "model.diffusion_model.patchify_proj.weight",
            "text_embedding_projection.video_aggregate_embed.weight",
            "vae.decoder.up_blocks.0.attn1.to_q.weight",
        ] {
            assert!(!packs(key, 48), "{key}");
        }
    }

    #[test]
    fn both_ends_of_a_deep_network_stay_as_they_are() {
        let key =
            |index: usize| format!("model.diffusion_model.transformer_blocks.{index}.attn1.to_q.weight");
        assert_eq!(blocks((0..48).map(key)), 48);
        let packed: Vec<usize> = (0..48).filter(|&index| packs(&key(index), 48)).collect();
        assert_eq!(packed, (1..47).collect::<Vec<_>>());
        assert!((0..2).all(|index| packs(&key(index), 2)));
    }
}
