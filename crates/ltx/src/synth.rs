//! Model files of full size with random weights: for measuring memory and speed where there are no real ones.
//!
//! Which tensors a file has is what the networks ask for when they are loaded; nothing is listed here.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use half::bf16;
use mlx::Dtype;
use serde_json::{Map, Value, json};

use crate::audio_vae::{AudioDecoder, AudioEncoder};
use crate::checkpoint::{Component, Config, Weights};
use crate::dit::Dit;
use crate::error::{Error, Result};
use crate::media::Output;
use crate::progress::{Event, Progress};
use crate::text::{Connectors, Gemma, Projection};
use crate::upsampler::Upsampler;
use crate::video_vae::{ConvDecoder, Encoder};
use crate::vocoder::Vocoder;

const STATES: i32 = 49; // Gemma 3 12B: its embedding, and what comes out of 48 layers
const VOCABULARY: i32 = 262_208;
/// Places in a file where values are written at once.
const CHUNK: usize = 1 << 20;

/// What a file is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    /// The single file of LTX-2 2.0, 19B.
    V2_0,
    /// That of 2.3, 22B.
    V2_3,
    /// The spatial upsampler x2 of 2.3.
    Upsampler,
    /// The text encoder, Gemma 3 12B, without its vision tower.
    Gemma,
}

/// A file to be written.
#[derive(Clone, Debug)]
pub struct Synth {
    /// What it is like.
    pub like: Like,
    /// Transformer blocks, or layers of the text encoder; `None` is as many as the real file has.
    pub blocks: Option<usize>,
    /// Blocks from this one on are holes in the file: they take no room on the disk, and read as zeros.
    pub filled: Option<usize>,
    /// Where the values come from.
    pub seed: u64,
}

/// The bytes of a file, before they are written.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Full key → shape.
    pub tensors: BTreeMap<String, Vec<i32>>,
    /// The header's `__metadata__`.
    pub metadata: Map<String, Value>,
    /// Whether a norm's weight is what is added to 1.
    norms_from_zero: bool,
}

impl Synth {
    /// The keys and shapes that the file will have, and what its header says.
    pub fn layout(&self) -> Result<Layout> {
        self.layout_of(self.config()?, STATES)
    }

    /// The same with another configuration, whose text projection stacks so many hidden states.
    fn layout_of(&self, mut config: Value, states: i32) -> Result<Layout> {
        if let Some(blocks) = self.blocks {
            let (section, key) = match self.like {
                Like::Gemma => (&mut config, "num_hidden_layers"),
                Like::Upsampler => {
                    return Err(Error::request("an upsampler has no blocks to choose", "leave out --blocks"));
                }
                _ => (&mut config["transformer"], "num_layers"),
            };
            if !(1..=1000).contains(&blocks) {
                return Err(Error::request(format!("{blocks} blocks"), "ask for at least one"));
            }
            section[key] = json!(blocks);
        }
        let header = Config::new(Path::new("the built-in configuration"), config.clone());
        let mut tensors = BTreeMap::new();
        let mut ask = |root: &str, known: &[(String, Vec<i32>)], load: &dyn Fn(&Weights) -> Result<()>| {
            let weights = Weights::outline(Dtype::Bf16, known.iter().cloned().collect());
            load(&weights)?;
            tensors.extend(weights.asked().into_iter().map(|(path, shape)| (format!("{root}{path}"), shape)));
            Ok::<_, Error>(())
        };
        match self.like {
            Like::Gemma => {
                let hidden = header.i32("hidden_size")?;
                let known = [("embed_tokens.weight".to_string(), vec![VOCABULARY, hidden])];
                ask("language_model.model.", &known, &|weights| {
                    Gemma::configured(weights, &header).map(drop)
                })?;
            }
            Like::Upsampler => ask("", &[], &|weights| Upsampler::load(weights, &header).map(drop))?,
            Like::V2_0 | Like::V2_3 => {
                let transformer = header.at("transformer")?;
                let hidden = transformer.i32("caption_channels")?;
                let name = if self.like == Like::V2_0 { "" } else { "video_" };
                let projection = (format!("{name}aggregate_embed.weight"), vec![hidden, hidden * states]);
                for component in Component::ALL {
                    let load = |weights: &Weights| match component {
                        Component::Projection => Projection::load(weights, &header).map(drop),
                        Component::Connector => Connectors::load(weights, &header).map(drop),
                        Component::Dit => Dit::load(weights, &header).map(drop),
                        Component::VideoEncoder => Encoder::load(weights, &header).map(drop),
                        Component::VideoDecoder => ConvDecoder::load(weights, &header).map(drop),
                        Component::AudioEncoder => AudioEncoder::load(weights, &header).map(drop),
                        Component::AudioDecoder => AudioDecoder::load(weights, &header).map(drop),
                        Component::Vocoder => Vocoder::load(weights, &header).map(drop),
                        Component::Upsampler => Ok(()),
                    };
                    let known = if component == Component::Projection {
                        std::slice::from_ref(&projection)
                    } else {
                        &[]
                    };
                    ask(component.official_root(), known, &load)?;
                }
            }
        }
        let mut metadata = Map::new();
        metadata.insert("config".into(), config.to_string().into());
        metadata.insert("note".into(), "random weights, for measuring".into());
        if self.like == Like::V2_3 {
            metadata.insert("model_version".into(), "2.3.0".into());
        }
        Ok(Layout { tensors, metadata, norms_from_zero: self.like == Like::Gemma })
    }

    /// The configuration that the real file has.
    pub fn config(&self) -> Result<Value> {
        let text = match self.like {
            Like::V2_0 => include_str!("../../../fixtures/configs/ltx-2-19b.json"),
            Like::V2_3 => include_str!("../../../fixtures/configs/ltx-2.3-22b.json"),
            Like::Upsampler => include_str!("../../../fixtures/configs/latent-upsamplers.json"),
            Like::Gemma => {
                return Ok(json!({
                    "model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360,
                    "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 8,
                    "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 1024,
                    "rope_scaling": { "rope_type": "linear", "factor": 8.0 }, "vocab_size": VOCABULARY,
                }));
            }
        };
        let value: Value = serde_json::from_str(text).map_err(|error| {
            Error::file(Path::new("configuration"), "", error.to_string(), "this is a fault of the program")
        })?;
        Ok(if self.like == Like::Upsampler { value["2.3-spatial-x2"].clone() } else { value })
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path, progress: &mut dyn Progress) -> Result<()> {
        self.write_layout(&self.layout()?, path, progress)
    }

    fn write_layout(&self, layout: &Layout, path: &Path, progress: &mut dyn Progress) -> Result<()> {
        let mut place = Output::create(path)?;
        let failed = |source: io::Error| crate::media::Error::Write { path: path.into(), source };
        let mut out = BufWriter::with_capacity(CHUNK, place.file());
        progress.phase("write", 100)?;
        let head = layout.head();
        out.write_all(&head).map_err(failed)?;
        let (total, mut written, mut percent) = (layout.bytes(), 0, 0);
        let mut random = Random(self.seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15));
        for (key, shape) in &layout.tensors {
            let size = values(shape);
            if self.filled.is_some_and(|filled| block(key).is_some_and(|block| block >= filled)) {
                out.seek(SeekFrom::Current(2 * size as i64)).map_err(failed)?;
            } else {
                let mut left = size;
                while left > 0 {
                    let count = left.min(CHUNK / 2);
                    let chunk = layout.values(key, shape, count, &mut random);
                    out.write_all(bytemuck::cast_slice(&chunk)).map_err(failed)?;
                    left -= count;
                }
            }
            written += 2 * size as u64;
            let done = (written * 100 / total.max(1)) as usize;
            if done > percent {
                percent = done;
                progress.report(Event::Step { done, of: 100 })?;
            }
        }
        out.flush().map_err(failed)?;
        drop(out);
        // What ends in a hole is as long as what does not.
        place.file().set_len(head.len() as u64 + total).map_err(failed)?;
        Ok(place.finish()?)
    }
}

impl Layout {
    /// Of all values.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|shape| 2 * values(shape) as u64).sum()
    }

    /// Of the values that are no holes.
    pub fn filled_bytes(&self, filled: Option<usize>) -> u64 {
        let there = |key: &str| !filled.is_some_and(|filled| block(key).is_some_and(|block| block >= filled));
        self.tensors.iter().filter(|(key, _)| there(key)).map(|(_, shape)| 2 * values(shape) as u64).sum()
    }

    /// Length and JSON of a safetensors header.
    fn head(&self) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), self.metadata.clone().into());
        let mut at = 0;
        for (key, shape) in &self.tensors {
            let end = at + 2 * values(shape) as u64;
            header.insert(key.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
            at = end;
        }
        let mut text = Value::from(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// `count` values of a tensor. Networks keep their numbers in range: matrices make outputs as large as their inputs,
    /// norms and statistics change nothing.
    fn values(&self, key: &str, shape: &[i32], count: usize, random: &mut Random) -> Vec<bf16> {
        if shape.len() > 1 {
            let inputs: f32 = shape.iter().skip(1).map(|&size| size as f32).product();
            let scale = (3.0 / inputs.max(3.0)).sqrt();
            return (0..count).map(|_| bf16::from_f32(random.next() * scale)).collect();
        }
        let value = match key {
            _ if key.ends_with("timestep_scale_multiplier") => 1000.0,
            _ if key.ends_with("std-of-means") => 1.0,
            _ if key.ends_with("weight") && !self.norms_from_zero => 1.0,
            _ => 0.0,
        };
        vec![bf16::from_f32(value); count]
    }
}

fn values(shape: &[i32]) -> usize {
    shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product()
}

/// The number of the block that a tensor belongs to.
fn block(key: &str) -> Option<usize> {
    let (_, after) =
        key.split_once("model.layers.").or_else(|| key.split_once("model.transformer_blocks."))?;
    after.split('.').next()?.parse().ok()
}

/// Even between -1 and 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::checkpoint::{Checkpoint, Unread};

    /// What official files hold, but no network reads.
    fn read_by_none(key: &str) -> bool {
        ["mean-of-stds", "mean-of-stds_over_std-of-means", "per_channel_statistics.channel"]
            .iter()
            .any(|end| key.ends_with(end))
    }

    #[test]
    fn files_hold_what_official_ones_hold() {
        for (like, fixture, states) in [(Like::V2_0, "2.0", 5), (Like::V2_3, "2.3", 5)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
            let official = Checkpoint::open(&[path.join(fixture).join("model.safetensors")]).unwrap();
            let file = &official.files()[0];
            let synth = Synth { like, blocks: None, filled: Some(1), seed: 1 };
            let layout = synth.layout_of(file.config().unwrap(), states).unwrap();
            for (key, info) in file.tensors().filter(|(key, _)| !read_by_none(key)) {
                let shape = layout.tensors.get(&key).unwrap_or_else(|| panic!("{fixture} lacks {key}"));
                assert_eq!(shape.iter().map(|&size| size as usize).collect::<Vec<_>>(), info.shape, "{key}");
            }
            for key in layout.tensors.keys() {
                assert!(file.info(key).is_some(), "{fixture} does not have {key}");
            }

            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            synth.write_layout(&layout, &path, &mut |_| ControlFlow::Continue(())).unwrap();
            let written = Checkpoint::open(&[&path]).unwrap();
            assert_eq!(written.version(), (like == Like::V2_3).then_some("2.3.0"));
            let (weights, config) = written.component(Component::Dit, Dtype::Bf16).unwrap();
            Dit::load(&weights, &config).unwrap();
            assert!(weights.finish(Unread::Refuse).unwrap().is_empty());
            let value = |key: &str| {
                let array = written.files()[0].array(key).unwrap();
                array.astype(Dtype::F32).unwrap().to_f32().unwrap()
            };
            let block = "model.diffusion_model.transformer_blocks";
            let [first, hole] = [0, 1].map(|index| value(&format!("{block}.{index}.attn1.to_q.weight")));
            assert!(first.iter().any(|&value| value != 0.0) && hole.iter().all(|&value| value == 0.0));
            assert!(value(&format!("{block}.0.attn1.q_norm.weight")).iter().all(|&value| value == 1.0));
            let last = layout.tensors.keys().next_back().unwrap();
            assert_eq!(value(last).len(), values(&layout.tensors[last]));
        }
    }

    #[test]
    fn real_sizes_are_those_of_the_real_files() {
        let layout = |like| Synth { like, blocks: None, filled: None, seed: 0 }.layout().unwrap();
        // GB of the official bf16 files; theirs hold a few tables in f32, too.
        for (like, gigabytes) in
            [(Like::V2_0, 43.3), (Like::V2_3, 46.1), (Like::Upsampler, 1.0), (Like::Gemma, 23.5)]
        {
            let bytes = layout(like).bytes() as f64 / 1e9;
            assert!((bytes / gigabytes - 1.0).abs() < 0.03, "{like:?}: {bytes} GB");
        }
        let small = Synth { like: Like::V2_3, blocks: Some(2), filled: Some(1), seed: 0 };
        let two = small.layout().unwrap();
        assert!(two.filled_bytes(small.filled) < two.bytes() && two.bytes() < layout(Like::V2_3).bytes() / 4);
        assert!(Synth { blocks: Some(0), ..small }.layout().is_err());
    }
}
