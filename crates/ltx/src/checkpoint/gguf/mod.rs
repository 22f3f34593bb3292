//! GGUF files, versions 2 and 3: their metadata and where their tensors are, every length checked. What the blocks of a
//! quantized tensor stand for is in the kernels; what llama.cpp's names of a text encoder mean, in `gemma`.

mod gemma;

pub(crate) use gemma::{configuration, is_gemma};

use std::collections::BTreeMap;

use safetensors::Dtype as Stored;

use super::TensorInfo;
use crate::nn::Ggml;

/// The first bytes of a GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Where ComfyUI-GGUF keeps the shape of a tensor that it had to store in another.
const SHAPE: &str = "comfy.gguf.orig_shape.";
/// What stands before the transformer's keys in official files, and converters leave out.
const ROOT: &str = "model.diffusion_model.";
/// Lists of more values are not kept: a vocabulary, not a setting.
const LONGEST: u64 = 1000;
const WHOLE: [&str; 5] = [ROOT, "vae.", "audio_vae.", "vocoder.", "text_embedding_projection."];

/// What a file's head says.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Under official names. Of a quantized tensor the type is f32, which its values are made.
    pub tensors: BTreeMap<String, TensorInfo>,
    pub quantized: BTreeMap<String, Ggml>,
    /// Texts and numbers; lists of some numbers with commas.
    pub metadata: BTreeMap<String, String>,
    /// Offset of the tensors' part.
    pub data: usize,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Numbers as they are.
    Plain(Stored),
    Blocks(Ggml),
}

impl Kind {
    /// The type of ggml's number.
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Plain(Stored::F32),
            1 => Self::Plain(Stored::F16),
            30 => Self::Plain(Stored::BF16),
            _ => Self::Blocks(Ggml::of(number)?),
        })
    }

    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.bitsize() / 8),
            Self::Blocks(kind) => kind.block(),
        }
    }
}

/// ggml's name of a type that is not read, as far as it is likely to be met.
fn name(number: u32) -> String {
    let name = match number {
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        20 => "IQ4_NL",
        23 => "IQ4_XS",
        39 => "MXFP4",
        _ => return format!("number {number}"),
    };
    name.into()
}

/// What is wrong, and with which tensor or entry.
pub(super) type Wrong = (String, String);

/// Reads the head of a whole file.
pub(super) fn read(file: &[u8]) -> Result<Head, Wrong> {
    let mut reader = Reader { left: file.get(MAGIC.len()..).unwrap_or_default() };
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        return Err((String::new(), format!("is GGUF of version {version}; known are 2 and 3")));
    }
    let (tensors, entries) = (reader.u64()?, reader.u64()?);
    let mut head = Head::default();
    for _ in 0..entries {
        let key = reader.text()?;
        let kind = reader.u32()?;
        if let Some(value) = reader.value(kind, 0)? {
            head.metadata.insert(key, value);
        }
    }
    let alignment = match head.metadata.get("general.alignment").map(|text| text.parse::<usize>()) {
        None => 32,
        Some(Ok(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
        Some(_) => return Err(("general.alignment".into(), "is no power of two up to 1048576".into())),
    };
    let mut found = Vec::new();
    for _ in 0..tensors {
        found.push(reader.tensor()?);
    }
    head.data = (file.len() - reader.left.len()).next_multiple_of(alignment);
    let room = file.len().saturating_sub(head.data);
    let text_encoder = head.metadata.get(gemma::ARCHITECTURE).is_some_and(|name| name == gemma::NAME);
    let bare = found.iter().any(|tensor| tensor.name.starts_with("transformer_blocks."));
    for Tensor { name, mut shape, kind, offset } in found {
        let wrong = |problem: String| (name.clone(), problem);
        let (block, bytes) = kind.block();
        let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let row = shape.last().copied().unwrap_or(1);
        if row % block != 0 {
            return Err(wrong(format!("has rows of {row} values, which are no whole blocks of {block}")));
        }
        let end = count.and_then(|count| (count / block).checked_mul(bytes)?.checked_add(offset));
        let end = end.filter(|&end| end <= room && offset % alignment == 0).ok_or_else(|| {
            wrong(format!(
                "of shape {shape:?} at {offset} does not lie in the file: it is cut off or damaged"
            ))
        })?;
        if let Some(original) = head.metadata.get(&format!("{SHAPE}{name}")) {
            let original: Option<Vec<usize>> = original.split(',').map(|size| size.parse().ok()).collect();
            let product = |shape: &[usize]| shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
            shape = original.filter(|shape| product(shape) == count).ok_or_else(|| {
                wrong(format!("has {count:?} values, but another shape is said to be its own"))
            })?;
        }
        let official = WHOLE.iter().any(|root| name.starts_with(root));
        let key = match text_encoder {
            true => gemma::official(&name),
            false if bare && !official => format!("{ROOT}{name}"),
            false => name.clone(),
        };
        let (dtype, quantized) = match kind {
            Kind::Plain(dtype) => (dtype, None),
            Kind::Blocks(kind) => (Stored::F32, Some(kind)),
        };
        let info = TensorInfo { dtype, shape, data_offsets: (offset, end) };
        if head.tensors.insert(key.clone(), info).is_some() {
            return Err(wrong("is there twice".into()));
        }
        head.quantized.extend(quantized.map(|kind| (key, kind)));
    }
    Ok(head)
}

struct Tensor {
    name: String,
    /// Slowest first, as everywhere else.
    shape: Vec<usize>,
    kind: Kind,
    offset: usize,
}

struct Reader<'a> {
    left: &'a [u8],
}

fn cut_off() -> Wrong {
    (String::new(), "is cut off: it ends within its header".into())
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Wrong> {
        let (taken, left) = self.left.split_at_checked(count).ok_or_else(cut_off)?;
        self.left = left;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        self.take(N)?.try_into().map_err(|_| cut_off())
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        self.number().map(u64::from_le_bytes)
    }

    fn usize(&mut self) -> Result<usize, Wrong> {
        usize::try_from(self.u64()?).map_err(|_| cut_off())
    }

    fn text(&mut self) -> Result<String, Wrong> {
        let length = self.usize()?;
        let text = std::str::from_utf8(self.take(length)?);
        text.map(String::from).map_err(|_| (String::new(), "has a name that is no text".into()))
    }

    /// A value of the metadata, if it is one that is kept: no long list.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<String>, Wrong> {
        Ok(Some(match kind {
            0 => u8::from_le_bytes(self.number()?).to_string(),
            1 => i8::from_le_bytes(self.number()?).to_string(),
            2 => u16::from_le_bytes(self.number()?).to_string(),
            3 => i16::from_le_bytes(self.number()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.number()?).to_string(),
            6 => f32::from_le_bytes(self.number()?).to_string(),
            7 => (u8::from_le_bytes(self.number()?) != 0).to_string(),
            8 => self.text()?,
            9 if depth < 4 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let mut kept = Vec::new();
                // Each element takes bytes of the file, so a count that lies ends at the file's end.
                for _ in 0..count {
                    let value = self.value(kind, depth + 1)?;
                    kept.extend(value.filter(|_| count <= LONGEST));
                }
                return Ok((count <= LONGEST).then(|| kept.join(",")));
            }
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.number()?).to_string(),
            12 => f64::from_le_bytes(self.number()?).to_string(),
            other => return Err((String::new(), format!("has metadata of the unknown type {other}"))),
        }))
    }

    fn tensor(&mut self) -> Result<Tensor, Wrong> {
        let name = self.text()?;
        let axes = self.u32()?;
        if axes > 8 {
            return Err((name, format!("has {axes} axes")));
        }
        let mut shape = (0..axes).map(|_| self.usize()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let kind = self.u32()?;
        let offset = self.usize()?;
        match Kind::of(kind) {
            Some(kind) => Ok(Tensor { name, shape, kind, offset }),
            None => Err((
                name,
                format!(
                    "has type {}; known are {}, F16, BF16 and F32",
                    self::name(kind),
                    Ggml::ALL.map(Ggml::name).join(", ")
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::path::Path;

    use super::super::{Checkpoint, Component, File};
    use super::*;
    use mlx::Dtype;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf").join(name)
    }

    /// Every tensor of every type is, bit for bit, what the `gguf` package makes of it.
    #[test]
    fn tensors_are_what_ggml_says() {
        let (gguf, twin) = (File::open(&fixture("dit.gguf")), File::open(&fixture("dit.safetensors")));
        let (gguf, twin) = (gguf.unwrap(), twin.unwrap());
        let keys = |file: &File| file.tensors().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(&gguf), keys(&twin));
        let mut kinds = std::collections::BTreeSet::new();
        for key in keys(&twin) {
            let (ours, theirs) = (gguf.array(&key).unwrap(), twin.array(&key).unwrap());
            kinds.insert(gguf.quantized(&key));
            assert_eq!(ours.shape(), theirs.shape(), "{key}");
            let bits = |array: mlx::Array| -> Vec<u32> {
                array.astype(Dtype::F32).unwrap().to_f32().unwrap().iter().map(|v| v.to_bits()).collect()
            };
            assert_eq!(bits(ours), bits(theirs), "{key}");
        }
        assert_eq!(kinds.len(), 4, "none, Q8_0, Q4_K and Q6_K");
    }

    /// The configuration of a DiT comes from another file; alone, the error says so.
    #[test]
    fn the_configuration_comes_from_another_file() {
        let alone = Checkpoint::open(&[fixture("dit.gguf")]).unwrap();
        let error = alone.component(Component::Dit, Dtype::F32).unwrap_err();
        // With what to do about it, which the message alone leaves out.
        let error = format!("{error:?}");
        assert!(error.contains("dit.gguf") && error.contains("--model"), "{error}");
        let both = Checkpoint::open(&[fixture("dit.gguf"), fixture("config.safetensors")]).unwrap();
        let (weights, config) = both.component(Component::Dit, Dtype::F32).unwrap();
        assert!(weights.has("patchify_proj.weight"));
        assert_eq!(config.at("transformer").unwrap().usize("num_layers").unwrap(), 1);
    }

    /// No damage panics: it is refused, or leaves tensors that lie in the file.
    #[test]
    fn damaged_files_are_refused() {
        let whole = std::fs::read(fixture("dit.gguf")).unwrap();
        let head = read(&whole).unwrap();
        for end in (4..head.data).step_by(61).chain([head.data, whole.len() - 32]) {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        let mut refused = 0;
        for place in (4..head.data).step_by(7) {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[place] ^= flip;
                match read(&damaged) {
                    Err(_) => refused += 1,
                    Ok(head) => {
                        let room = damaged.len().saturating_sub(head.data);
                        assert!(head.tensors.values().all(|info| info.data_offsets.1 <= room));
                    }
                }
            }
        }
        assert!(refused > 100, "{refused}");
    }

    /// A type that is not read is named with its tensor.
    #[test]
    fn other_types_are_refused_by_name() {
        let mut file = [MAGIC, &3u32.to_le_bytes(), &1u64.to_le_bytes(), &0u64.to_le_bytes()].concat();
        file.extend(1u64.to_le_bytes());
        file.extend(b"w");
        file.extend(1u32.to_le_bytes());
        file.extend(256u64.to_le_bytes());
        file.extend(10u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        let (name, problem) = read(&file).unwrap_err();
        assert!(name == "w" && problem.contains("Q2_K") && problem.contains("Q5_K"), "{name}: {problem}");
    }
}
