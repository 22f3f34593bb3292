//! Features → contexts: a small transformer in which learned registers fill up the sequence after the prompt.
//!
//! Formulas: `Embeddings1DConnector` of Lightricks' ltx-core.

use mlx::Array;

use super::{Contexts, Features};
use crate::checkpoint::{Blocks, Config, Residency, Weights};
use crate::dit::{Attention, AttentionShape, FeedForward, Frequencies, Keep, Rope};
use crate::error::{Error, Result};
use crate::nn::{self, Bias, Onto};

/// Registers are tiled to the length of the sequence. The official code has always 128, whatever the configuration says.
const REGISTERS: i32 = 128;
const THETA: f64 = 10_000.0;
const EPS: f32 = 1e-6;

/// Both modalities' connectors.
#[derive(Debug)]
pub struct Connectors {
    video: Connector,
    audio: Connector,
}

impl Connectors {
    /// Reads both; `config` is the header's whole configuration.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let config = config.at("transformer")?;
        Ok(Self {
            video: Connector::load(&weights.at("video_embeddings_connector"), &config, "")?,
            audio: Connector::load(&weights.at("audio_embeddings_connector"), &config, "audio_")?,
        })
    }

    /// Features of prompts' real tokens → contexts of `length` tokens. A block is used for all of them, and let go of.
    pub fn forward(self, features: &[Features], length: i32) -> Result<Vec<Contexts>> {
        let video = self.video.forward(features.iter().map(|features| &features.video), length)?;
        let audio = self.audio.forward(features.iter().map(|features| &features.audio), length)?;
        Ok(video
            .into_iter()
            .zip(audio)
            .map(|(video, audio)| Contexts { video, audio: Some(audio) })
            .collect())
    }
}

/// One modality's connector.
#[derive(Debug)]
pub struct Connector {
    registers: Array, // (REGISTERS, width)
    blocks: Blocks<Block>,
    weights: Weights,
    shape: AttentionShape,
    max_position: f32,
}

#[derive(Debug)]
struct Block {
    attention: Attention,
    feed_forward: FeedForward,
}

/// Heads and head width of the connector of a modality. Files older than separate audio settings use the video's.
fn heads(transformer: &Config, prefix: &str) -> Result<(i32, i32)> {
    let size = |name: &str| {
        let own = format!("{prefix}connector_{name}");
        let key = if transformer.get(&own).is_some() { own } else { format!("connector_{name}") };
        match transformer.i32(&key)? {
            size @ 1..=65_536 => Ok(size),
            size => Err(transformer.error(&key, format!("is {size}"))),
        }
    };
    Ok((size("num_attention_heads")?, size("attention_head_dim")?))
}

/// Width of the connector of a modality.
pub(super) fn width(transformer: &Config, prefix: &str) -> Result<i32> {
    let (heads, head_dim) = heads(transformer, prefix)?;
    heads
        .checked_mul(head_dim)
        .ok_or_else(|| transformer.error("connector_num_attention_heads", "is too large"))
}

impl Connector {
    fn load(weights: &Weights, transformer: &Config, prefix: &str) -> Result<Self> {
        let expected = [("rope_type", "split"), ("frequencies_precision", "float64")];
        for (key, value) in expected {
            if transformer.str(key)? != value {
                return Err(
                    transformer.error(key, format!("is not `{value}`, the only kind of connector known"))
                );
            }
        }
        let (heads, head_dim) = heads(transformer, prefix)?;
        let width = width(transformer, prefix)?;
        if head_dim % 2 == 1 {
            return Err(transformer.error("connector_attention_head_dim", "is odd"));
        }
        // Before 2.3 no head has a gate, and the key is absent.
        let gated = transformer.optional_bool("connector_apply_gated_attention")?.unwrap_or(false);
        let layers = match transformer.optional_usize(&format!("{prefix}connector_num_layers"))? {
            Some(layers) => layers,
            None => transformer.usize("connector_num_layers")?,
        };
        let positions = transformer.list_usize("connector_positional_embedding_max_pos")?;
        let &[max_position @ 1..=0x7fff_ffff] = positions.as_slice() else {
            return Err(
                transformer.error("connector_positional_embedding_max_pos", "is not one position above 0")
            );
        };
        let shape = AttentionShape { query: width, context: width, heads, head_dim, gated, eps: EPS };
        let block = move |weights: &Weights| {
            Ok(Block {
                attention: Attention::load(&weights.at("attn1"), shape)?,
                feed_forward: FeedForward::load(&weights.at("ff"), width, Bias::Yes)?,
            })
        };
        // Each is used once: there is nothing to keep any for.
        let residency = match weights.residency() {
            Residency::Streaming { ahead, .. } => Residency::Streaming { ahead, kept: 0 },
            Residency::Resident => Residency::Resident,
        };
        let blocks = weights.at("transformer_1d_blocks").kept(residency);
        Ok(Self {
            registers: weights.tensor("learnable_registers", &[REGISTERS, width])?,
            blocks: Blocks::load(&blocks, layers, block)?,
            weights: weights.clone(),
            shape,
            max_position: max_position as f32,
        })
    }

    /// (1, tokens, width) each → (1, length, width) each
    fn forward<'a>(self, features: impl Iterator<Item = &'a Array>, length: i32) -> Result<Vec<Array>> {
        let mut all = features.map(|features| self.filled(features, length)).collect::<Result<Vec<_>>>()?;
        let positions: Vec<f32> = (0..length).flat_map(|position| [position as f32; 2]).collect();
        let positions = Array::from_slice(&positions, &[1, 1, length, 2])?; // from the token's place to the same place
        let frequencies = Frequencies {
            heads: self.shape.heads,
            head_dim: self.shape.head_dim,
            theta: THETA,
            max_positions: &[self.max_position],
        };
        let rope = Rope::new(&positions, &frequencies, self.registers.dtype())?;
        self.blocks.for_each(|_, block| {
            for x in &mut all {
                let normed = nn::rms_norm(x, None, EPS)?;
                let attended =
                    block.attention.forward_self(Onto { x, gate: None }, &normed, &rope, None, &Keep::All)?;
                let normed = nn::rms_norm(&attended, None, EPS)?;
                *x = block.feed_forward.forward(Onto { x: &attended, gate: None }, &normed)?;
                x.eval()?;
            }
            Ok(())
        })?;
        self.weights.release();
        all.iter().map(|x| Ok(nn::rms_norm(x, None, EPS)?)).collect()
    }

    /// (1, tokens, width) → (1, length, width), with registers after the tokens.
    fn filled(&self, features: &Array, length: i32) -> Result<Array> {
        let tokens = features.dim(1);
        if length < tokens || length % REGISTERS != 0 {
            return Err(Error::request(
                format!(
                    "a context of {length} tokens cannot hold {tokens}, or is not a multiple of {REGISTERS}"
                ),
                format!("use a multiple of {REGISTERS} that is long enough"),
            ));
        }
        if tokens == length {
            return Ok(features.clone());
        }
        let registers = self.registers.tile(&[length / REGISTERS, 1])?; // (length, width)
        let registers = registers.slice(0, tokens..length)?.expand_dims(&[0])?; // (1, length − tokens, width)
        Ok(mlx::concatenate(&[features, &registers], 1)?)
    }
}
