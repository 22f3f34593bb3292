//! Files like the official ones, of full size, with random weights: for measuring memory and streaming without a download.
//!
//! What is theirs is every key, shape and dtype, from lists in `fixtures/layouts`, and the configuration in the header; the
//! values are noise, so that what such a file generates means nothing. Small files for tests are made in `reference/`.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use half::bf16;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::media::{Output, OutputFolder, folder};
use crate::progress::{Event, Progress};

/// The model that a file is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    /// LTX-2 2.0.
    Ltx19b,
    /// LTX-2 2.3.
    Ltx22b,
    /// The text encoder's folder, Gemma 3 12B without its vision tower.
    Gemma12b,
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Synth {
    /// Whose keys, shapes and configuration.
    pub like: Like,
    /// Blocks of the transformer (layers of Gemma), if not all 48; the configuration says so.
    pub blocks: Option<usize>,
    /// Leaves holes in the file, which read as zeros and take no room on the disk, for every block from this one on and
    /// for all that is neither a block nor beside blocks in their own network.
    pub sparse: Option<usize>,
    /// Of the values. The same seed gives the same file.
    pub seed: u64,
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tensor {
    key: String,
    shape: Vec<usize>,
    /// Stored in f32, as the official files store it, and not in bf16.
    f32: bool,
}

impl Tensor {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        self.values() as u64 * if self.f32 { 4 } else { 2 }
    }

    /// The block that it belongs to.
    fn block(&self) -> Option<usize> {
        let mut parts =
            self.key.split('.').skip_while(|part| !["transformer_blocks", "layers"].contains(part));
        parts.nth(1)?.parse().ok()
    }

    /// Centre and half width of its values: weights as in a fresh network, norms about 1 (Gemma's, which are added to 1,
    /// about 0), so that activations stay finite.
    fn spread(&self) -> (f32, f32) {
        let inputs: f32 = self.shape.iter().skip(1).map(|&size| size as f32).product();
        match self.shape.len() {
            1 if self.key.starts_with(GEMMA) => (0.0, 0.05),
            1 if self.key.ends_with(".weight") || self.key.ends_with("std-of-means") => (1.0, 0.05),
            1 => (0.0, 0.02),
            _ => (0.0, (3.0 / inputs.max(3.0)).sqrt()),
        }
    }
}

const GEMMA: &str = "language_model.model.";
const BLOCKS: usize = 48;

impl Like {
    /// Lines `key shape` or `key F32 shape`, where `a-b` in a key is every number from a to b.
    fn layout(self) -> &'static str {
        match self {
            Self::Ltx19b => include_str!("../../../fixtures/layouts/ltx-2-19b.txt"),
            Self::Ltx22b => include_str!("../../../fixtures/layouts/ltx-2.3-22b.txt"),
            Self::Gemma12b => include_str!("../../../fixtures/layouts/gemma-3-12b.txt"),
        }
    }

    /// The header's metadata, for `blocks` blocks.
    fn metadata(self, blocks: usize) -> Result<Value> {
        let (config, version) = match self {
            Self::Ltx19b => (include_str!("../../../fixtures/configs/ltx-2-19b.json"), None),
            Self::Ltx22b => (include_str!("../../../fixtures/configs/ltx-2.3-22b.json"), Some("2.3.0")),
            Self::Gemma12b => return Ok(json!({ "format": "pt" })),
        };
        let mut config: Value = serde_json::from_str(config).map_err(|error| fault(error.to_string()))?;
        config["transformer"]["num_layers"] = json!(blocks);
        let mut metadata = json!({ "config": config.to_string() });
        if let Some(version) = version {
            metadata["model_version"] = json!(version);
        }
        Ok(metadata)
    }
}

/// `config.json` of the text encoder's folder.
fn gemma_config(layers: usize) -> Value {
    json!({
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "vocab_size": 262_208, "hidden_size": 3840, "intermediate_size": 15360,
            "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "query_pre_attn_scalar": 256, "sliding_window": 1024, "sliding_window_pattern": 6, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
        },
    })
}

fn fault(problem: String) -> Error {
    Error::machine(format!("a list of tensors in the program is wrong: {problem}"), "please report this")
}

/// The tensors of `layout`, those of a block together, blocks in order.
fn tensors(layout: &str) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for line in layout.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let (&[key, shape] | &[key, _, shape]) = parts.as_slice() else { return Err(fault(line.into())) };
        let shape: Option<Vec<usize>> = shape.split('x').map(|size| size.parse().ok()).collect();
        let shape = shape.ok_or_else(|| fault(line.into()))?;
        let mut keys = vec![String::new()];
        for part in key.split('.') {
            let range =
                part.split_once('-').and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?));
            let all = match range {
                Some(range) => range.map(|number: usize| number.to_string()).collect(),
                None => vec![part.to_string()],
            };
            let dot = if keys.first().is_some_and(String::is_empty) { "" } else { "." };
            keys =
                keys.iter().flat_map(|key| all.iter().map(move |part| format!("{key}{dot}{part}"))).collect();
        }
        tensors.extend(keys.into_iter().map(|key| Tensor {
            key,
            shape: shape.clone(),
            f32: parts.len() == 3,
        }));
    }
    // Numbers as numbers, and before names.
    let order = |part: &str| part.parse::<usize>().map_err(|_| part.to_string());
    tensors.sort_by_cached_key(|tensor| tensor.key.split('.').map(order).collect::<Vec<_>>());
    Ok(tensors)
}

impl Synth {
    /// Writes the file (for Gemma the folder) `output`, whole or not at all; what it takes on the disk in bytes. `tokenizer`
    /// is what Gemma's folder gets as its `tokenizer.json`.
    pub fn write(&self, output: &Path, tokenizer: &[u8], progress: &mut dyn Progress) -> Result<u64> {
        let blocks = self.blocks.unwrap_or(BLOCKS);
        if !(1..=BLOCKS).contains(&blocks) {
            return Err(Error::request(format!("a model of {blocks} blocks"), "give 1 to 48"));
        }
        let mut tensors = tensors(self.like.layout())?;
        tensors.retain(|tensor| tensor.block().is_none_or(|block| block < blocks));
        let writes = |tensor: &Tensor| self.writes(tensor);
        let needed: u64 = tensors.iter().filter(|tensor| writes(tensor)).map(Tensor::bytes).sum();
        let place = folder(output)?;
        // Where the system does not say, writing will.
        let room =
            rustix::fs::statvfs(place).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if needed + SPARE > room {
            let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
            return Err(Error::machine(
                format!("{} would take {}, and {} is free there", output.display(), gb(needed), gb(room)),
                "free some space, or write fewer --blocks, or a --sparse file",
            ));
        }
        let metadata = self.like.metadata(blocks)?;
        if self.like != Like::Gemma12b {
            self.write_file(output, metadata, &tensors, writes, progress)?;
            return Ok(needed);
        }
        let folder = OutputFolder::create(output)?;
        let failed = |source| crate::media::Error::Write { path: output.into(), source };
        std::fs::write(folder.file("config.json"), gemma_config(blocks).to_string()).map_err(failed)?;
        std::fs::write(folder.file("tokenizer.json"), tokenizer).map_err(failed)?;
        self.write_file(&folder.file("model.safetensors"), metadata, &tensors, writes, progress)?;
        folder.finish()?;
        Ok(needed)
    }

    /// Whether the values of `tensor` are written, and not left a hole.
    fn writes(&self, tensor: &Tensor) -> bool {
        let Some(filled) = self.sparse else { return true };
        let own = tensor.key.starts_with(GEMMA)
            || tensor.key.starts_with("model.diffusion_model.")
                && !tensor.key.contains("_embeddings_connector.");
        tensor.block().map_or(own, |block| block < filled)
    }

    fn write_file(
        &self,
        output: &Path,
        metadata: Value,
        tensors: &[Tensor],
        writes: impl Fn(&Tensor) -> bool,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (mut header, mut end) = (Map::from_iter([("__metadata__".into(), metadata)]), 0);
        for tensor in tensors {
            let (start, dtype) = (end, if tensor.f32 { "F32" } else { "BF16" });
            end += tensor.bytes();
            header.insert(
                tensor.key.clone(),
                json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end] }),
            );
        }
        let mut header = Value::Object(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));

        let mut place = Output::create(output)?;
        let failed = |source: io::Error| crate::media::Error::Write { path: output.into(), source };
        let file = place.file();
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(header.as_bytes()).map_err(failed)?;
        file.set_len(8 + header.len() as u64 + end).map_err(failed)?;
        progress.phase("write", 100)?;
        let (mut written, mut percent) = (0, 0);
        for tensor in tensors {
            if writes(tensor) {
                Values::new(self.seed, tensor).write(file).map_err(failed)?;
            } else {
                file.seek(SeekFrom::Current(tensor.bytes() as i64)).map_err(failed)?;
            }
            written += tensor.bytes();
            let done = (written * 100 / end) as usize;
            if done > percent {
                percent = done;
                progress.report(Event::Step { done, of: 100 })?;
            }
        }
        place.finish()?;
        Ok(())
    }
}

/// Left free on the disk for everybody else, in bytes.
const SPARE: u64 = 1 << 30;

/// A tensor's values, drawn as they are written. They depend on the seed and the key alone.
struct Values<'a> {
    state: u64,
    tensor: &'a Tensor,
}

impl<'a> Values<'a> {
    fn new(seed: u64, tensor: &'a Tensor) -> Self {
        // FNV-1a; never 0, where the generator would stay.
        let fold = |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let bytes = seed.to_le_bytes();
        let state = bytes.iter().chain(tensor.key.as_bytes()).fold(0xcbf2_9ce4_8422_2325, fold);
        Self { state: state | 1, tensor }
    }

    /// Even around the tensor's centre.
    fn next(&mut self, (centre, width): (f32, f32)) -> f32 {
        // Marsaglia's xorshift: good enough for noise, and as fast as a disk.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        centre + width * ((self.state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        const PIECE: usize = 1 << 20;
        let spread = self.tensor.spread();
        let mut left = self.tensor.values();
        let mut bytes = Vec::with_capacity(4 * PIECE.min(left));
        while left > 0 {
            let count = left.min(PIECE);
            bytes.clear();
            for _ in 0..count {
                let value = self.next(spread);
                if self.tensor.f32 {
                    bytes.extend_from_slice(&value.to_le_bytes());
                } else {
                    bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
            }
            out.write_all(&bytes)?;
            left -= count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::File;

    fn ignore() -> impl Progress {
        |_: Event| std::ops::ControlFlow::Continue(())
    }

    #[test]
    fn lists_hold_as_many_tensors_and_bytes_as_the_official_files() {
        let counted = |like: Like| {
            let tensors = tensors(like.layout()).unwrap();
            (tensors.len(), tensors.iter().map(Tensor::values).sum::<usize>())
        };
        assert_eq!(counted(Like::Ltx19b).0, 4049);
        assert_eq!(counted(Like::Ltx22b).0, 5947);
        // Gemma 3 12B's language model: 48 layers of 13 tensors, the embedding and the last norm.
        assert_eq!(counted(Like::Gemma12b), (48 * 13 + 2, 11_766_034_176));
    }

    #[test]
    fn keys_with_ranges_are_all_of_them_in_order() {
        let all = tensors("a.9-11.b-c.0-1 F32 2x3\nb 4").unwrap();
        let keys: Vec<&str> = all.iter().map(|tensor| tensor.key.as_str()).collect();
        let under_a = ["a.9.b-c.0", "a.9.b-c.1", "a.10.b-c.0", "a.10.b-c.1", "a.11.b-c.0", "a.11.b-c.1"];
        assert_eq!(keys, [&under_a[..], &["b"]].concat());
        assert!(all[0].f32 && all[0].shape == [2, 3] && all[0].bytes() == 24);
        assert!(!all[6].f32 && all[6].bytes() == 8);
        assert!(tensors("a").is_err() && tensors("a 2xb").is_err());
    }

    #[test]
    fn a_file_of_holes_is_read_in_every_component_and_nothing_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        for (like, blocks) in [(Like::Ltx19b, 1), (Like::Ltx22b, 2)] {
            let path = folder.path().join(format!("{blocks}.safetensors"));
            let synth = Synth { like, blocks: Some(blocks), sparse: Some(0), seed: 3 };
            let mut tensors = tensors(like.layout()).unwrap();
            tensors.retain(|tensor| tensor.block().is_none_or(|block| block < blocks));
            synth
                .write_file(&path, like.metadata(blocks).unwrap(), &tensors, |_| false, &mut ignore())
                .unwrap();
            for part in crate::inspect::inspect(&[&path]).unwrap().parts {
                assert_eq!((part.problem, part.unread), (None, vec![]), "{}", part.name);
            }
            let config = File::open(&path).unwrap().config().unwrap();
            assert_eq!(config["transformer"]["num_layers"], blocks);
        }
    }

    #[test]
    fn values_depend_on_seed_and_key_and_stay_in_their_spread() {
        let tensor = |key: &str, shape: &[usize]| Tensor { key: key.into(), shape: shape.into(), f32: true };
        let values = |seed, tensor: &Tensor| {
            let mut bytes = Vec::new();
            Values::new(seed, tensor).write(&mut bytes).unwrap();
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        let (a, b) = (tensor("a.weight", &[5, 300]), tensor("b.weight", &[5, 300]));
        assert_eq!(values(1, &a), values(1, &a));
        assert_ne!(values(1, &a), values(2, &a));
        assert_ne!(values(1, &a), values(1, &b));
        assert_eq!(values(1, &a).len(), 1500);
        let most = values(1, &a).into_iter().fold(0f32, |most, value| most.max(value.abs()));
        assert!((0.09..=0.1).contains(&most), "{most} of √(3 / 300)");
        assert!(values(1, &tensor("norm.weight", &[99])).iter().all(|value| (0.95..=1.05).contains(value)));
    }

    #[test]
    fn what_cannot_be_is_refused_before_writing() {
        let folder = tempfile::tempdir().unwrap();
        let all = Synth { like: Like::Gemma12b, blocks: None, sparse: Some(0), seed: 0 };
        for blocks in [0, 49] {
            let synth = Synth { blocks: Some(blocks), ..all };
            let error = synth.write(&folder.path().join("gemma"), b"{}", &mut ignore()).unwrap_err();
            assert!(matches!(error, Error::Request { .. }), "{error}");
        }
        assert!(all.write(&folder.path().join("none/gemma"), b"{}", &mut ignore()).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
