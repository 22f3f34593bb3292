//! Prompts that were encoded before: contexts in a file, and contexts that stand in for a text encoder.
//!
//! Two formats. safetensors with `video_context`, `audio_context` (1, tokens, width), and the same with `negative_` in
//! front for guided runs. And the `.npz` of LTX-2-MLX: `embedding` (1, tokens, width), the video connector's output,
//! `attention_mask` (1, tokens), and `prompt`; here `negative_embedding` and `negative_attention_mask` beside them.

use std::collections::HashMap;
use std::path::Path;

use mlx::{Array, Dtype};
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use super::Contexts;
use crate::checkpoint::File;
use crate::error::{Error, Result};
use crate::media::Output;
use crate::noise::Noise;
use crate::npz::{self, Npz, Values};

/// Tokens of the original's files, and of its dummy embeddings.
pub const ORIGINAL_TOKENS: usize = 256;

/// More tokens than any text path gives.
const MOST_TOKENS: usize = 4096;

const REMEDY: &str = "make the embedding with this model's text path: ltx encode-text";

/// An encoded prompt.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The text that was encoded, if the file tells.
    pub prompt: Option<String>,
    /// Contexts of the prompt; without audio where the file has none.
    pub positive: Contexts,
    /// Contexts of what the clip should not be.
    pub negative: Option<Contexts>,
}

/// Widths of the contexts that a model takes.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Of the video's.
    pub video: i32,
    /// Of the audio's.
    pub audio: i32,
}

impl Embedding {
    /// Reads either format, by the file's ending. Every shape must be the model's, every value a finite number.
    pub fn open(path: &Path, widths: Widths) -> Result<Self> {
        if is_npz(path) {
            return Self::open_npz(path, widths);
        }
        if path.is_file() && npz::is_zip(path) {
            let remedy = "rename it to end in .npz, if it is an embedding of LTX-2-MLX";
            return Err(Error::file(path, "", "is a zip archive, not safetensors", remedy));
        }
        Self::open_safetensors(path, widths)
    }

    fn open_safetensors(path: &Path, widths: Widths) -> Result<Self> {
        let file = File::open(path)?;
        let read = |name: &str, width: i32| -> Result<Option<Array>> {
            let Some(info) = file.info(name) else { return Ok(None) };
            check_shape(path, name, &info.shape, width)?;
            let context = file.array(name)?;
            if !matches!(context.dtype(), Dtype::Bf16 | Dtype::F16 | Dtype::F32 | Dtype::F64) {
                let problem = format!("holds {}, not the values of a context", context.dtype());
                return Err(Error::file(path, name, problem, REMEDY));
            }
            let finite = context.is_finite()?.all(&[0, 1, 2], false)?.astype(Dtype::F32)?.item()?;
            if finite == 1.0 { Ok(Some(context)) } else { Err(not_finite(path, name)) }
        };
        let contexts = |prefix: &str| -> Result<Option<Contexts>> {
            let Some(video) = read(&format!("{prefix}video_context"), widths.video)? else { return Ok(None) };
            Ok(Some(Contexts { video, audio: read(&format!("{prefix}audio_context"), widths.audio)? }))
        };
        let positive =
            contexts("")?.ok_or_else(|| Error::file(path, "video_context", "is missing", REMEDY))?;
        Ok(Self {
            prompt: file.metadata("prompt").map(String::from),
            positive,
            negative: contexts("negative_")?,
        })
    }

    fn open_npz(path: &Path, widths: Widths) -> Result<Self> {
        let mut file = Npz::open(path)?;
        let video = read_masked(&mut file, "embedding", "attention_mask", widths.video)?;
        let negative = if file.has("negative_embedding") {
            let video =
                read_masked(&mut file, "negative_embedding", "negative_attention_mask", widths.video)?;
            Some(Contexts { video, audio: None })
        } else {
            None
        };
        let prompt = if file.has("prompt") { Some(file.text("prompt")?) } else { None };
        Ok(Self { prompt, positive: Contexts { video, audio: None }, negative })
    }

    /// Writes either format, by the file's ending, whole or not at all. The `.npz` holds the video's contexts only.
    pub fn save(&self, path: &Path) -> Result<()> {
        if !is_npz(path) {
            let prompt = self.prompt.iter().map(|prompt| ("prompt".to_string(), prompt.clone()));
            return save_contexts(path, &self.positive, self.negative.as_ref(), prompt.collect());
        }
        let contexts = [("", Some(&self.positive)), ("negative_", self.negative.as_ref())];
        let mut arrays = Vec::new();
        for (prefix, contexts) in contexts {
            let Some(Contexts { video, .. }) = contexts else { continue };
            let shape: Vec<usize> = video.shape().iter().map(|&size| size as usize).collect();
            let mask = vec![1; shape[..2].iter().product()];
            arrays.push((prefix, shape, video.to_f32()?, mask));
        }
        let names: Vec<_> = arrays
            .iter()
            .map(|(prefix, ..)| (format!("{prefix}embedding"), format!("{prefix}attention_mask")))
            .collect();
        let mut entries = Vec::new();
        for ((_, shape, values, mask), (embedding, attention_mask)) in arrays.iter().zip(&names) {
            entries.push((embedding.as_str(), Values::F32(shape, values)));
            entries.push((attention_mask.as_str(), Values::I32(&shape[..2], mask)));
        }
        entries.push(("prompt", Values::Text(self.prompt.as_deref().unwrap_or_default())));
        npz::write(path, &entries)
    }
}

/// Whether the file is to be NumPy's, by its ending; anything else is safetensors.
pub fn is_npz(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npz"))
}

fn check_shape(path: &Path, name: &str, shape: &[usize], width: i32) -> Result<()> {
    match shape {
        &[1, 1..=MOST_TOKENS, own] if own == width as usize => Ok(()),
        shape => {
            Err(Error::file(path, name, format!("has shape {shape:?}, not (1, tokens, {width})"), REMEDY))
        }
    }
}

fn not_finite(path: &Path, name: &str) -> Error {
    Error::file(path, name, "holds values that are not finite", "encode the prompt again")
}

/// A context without the tokens that its mask leaves out: nothing would attend to them. (1, tokens, width)
fn read_masked(file: &mut Npz, name: &str, mask: &str, width: i32) -> Result<Array> {
    let path = file.path().to_path_buf();
    let shape = file.shape(name)?;
    check_shape(&path, name, &shape, width)?;
    if file.shape(mask)? != shape[..2] {
        let problem = format!("has shape {:?}, not that of {} tokens", file.shape(mask)?, shape[1]);
        return Err(Error::file(&path, mask, problem, REMEDY));
    }
    let (_, mask_values) = file.numbers(mask)?;
    if mask_values.iter().any(|&value| value != 0.0 && value != 1.0) {
        return Err(Error::file(&path, mask, "holds something other than 0 and 1", REMEDY));
    }
    let (_, values) = file.numbers(name)?;
    let tokens = values.chunks(width as usize).zip(&mask_values).filter(|(_, kept)| **kept == 1.0);
    let kept: Vec<f32> = tokens.flat_map(|(token, _)| token.iter().copied()).collect();
    if kept.is_empty() {
        return Err(Error::file(&path, mask, "leaves no token", REMEDY));
    }
    if kept.iter().any(|value| !value.is_finite()) {
        return Err(not_finite(&path, name));
    }
    Ok(Array::from_slice(&kept, &[1, (kept.len() / width as usize) as i32, width])?)
}

/// Writes contexts as safetensors in their own dtype, whole or not at all.
pub(super) fn save_contexts(
    path: &Path,
    positive: &Contexts,
    negative: Option<&Contexts>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let named = [
        ("video_context", Some(&positive.video)),
        ("audio_context", positive.audio.as_ref()),
        ("negative_video_context", negative.map(|contexts| &contexts.video)),
        ("negative_audio_context", negative.and_then(|contexts| contexts.audio.as_ref())),
    ];
    let mut tensors = Vec::new();
    for (name, array) in named {
        if let Some(array) = array {
            let shape: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
            tensors.push((name, shape, stored(array)?));
        }
    }
    let failed = |error: safetensors::SafeTensorError| {
        Error::file(path, "", format!("cannot be written: {error}"), "please report this")
    };
    let views = tensors.iter().map(|(name, shape, (dtype, bytes))| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (*name, view))
    });
    let views: Vec<_> = views.collect::<std::result::Result<_, _>>().map_err(failed)?;
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(failed)?;
    let mut output = Output::create(path)?;
    std::io::Write::write_all(output.file(), &bytes).map_err(|error| output.error(error))?;
    Ok(output.finish()?)
}

/// An array's values as they stand in a file.
pub(crate) fn stored(array: &Array) -> mlx::Result<(safetensors::Dtype, Vec<u8>)> {
    Ok(match array.dtype() {
        Dtype::Bf16 => {
            (safetensors::Dtype::BF16, bytemuck::cast_slice(&array.to_vec::<half::bf16>()?).to_vec())
        }
        Dtype::F16 => (safetensors::Dtype::F16, bytemuck::cast_slice(&array.to_vec::<half::f16>()?).to_vec()),
        _ => (safetensors::Dtype::F32, bytemuck::cast_slice(&array.to_f32()?).to_vec()),
    })
}

/// Contexts that depend on the prompt and mean nothing: normal deviates times 0.1, as many tokens as the original's. The
/// same on every platform.
pub fn dummy(prompt: &str, widths: Widths, dtype: Dtype) -> Result<Contexts> {
    let digest = Sha256::digest(prompt.trim().as_bytes());
    let seed = digest.iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte));
    let context = |stream: u64, width: i32| -> Result<Array> {
        let normal = Noise::stream(seed, stream).normal(&[1, ORIGINAL_TOKENS as i32, width])?;
        Ok(normal.multiply(0.1f32)?.astype(dtype)?)
    };
    Ok(Contexts { video: context(0, widths.video)?, audio: Some(context(1, widths.audio)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: Widths = Widths { video: 6, audio: 5 };

    fn embedding() -> Embedding {
        let contexts = |prompt| dummy(prompt, WIDTHS, Dtype::Bf16).unwrap();
        Embedding {
            prompt: Some("naïve otters".into()),
            positive: contexts("a"),
            negative: Some(contexts("b")),
        }
    }

    #[test]
    fn both_formats_come_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let (safetensors, npz) = (folder.path().join("e.safetensors"), folder.path().join("e.npz"));
        let ours = embedding();
        for path in [&safetensors, &npz] {
            ours.save(path).unwrap();
            let theirs = Embedding::open(path, WIDTHS).unwrap();
            assert_eq!(theirs.prompt, ours.prompt);
            for (ours, theirs) in [
                (&ours.positive, theirs.positive),
                (ours.negative.as_ref().unwrap(), theirs.negative.unwrap()),
            ] {
                assert_eq!(theirs.video.to_f32().unwrap(), ours.video.to_f32().unwrap());
                let audio = theirs.audio.map(|audio| audio.to_f32().unwrap());
                let expected = ours.audio.as_ref().map(|audio| audio.to_f32().unwrap());
                assert_eq!(audio, expected.filter(|_| path == &safetensors));
            }
        }
        assert!(Embedding::open(&npz, Widths { video: 7, audio: 5 }).is_err());
        let error = Embedding::open(&safetensors, Widths { video: 6, audio: 6 }).unwrap_err();
        assert!(error.to_string().contains("audio_context: has shape [1, 256, 5]"), "{error}");
    }

    #[test]
    fn what_holds_no_context_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        let header = r#"{"video_context":{"dtype":"I32","shape":[1,2,6],"data_offsets":[0,48]}}"#.as_bytes();
        let whole = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 48]].concat();
        let says = |bytes: &[u8], word: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Embedding::open(&path, WIDTHS).unwrap_err();
            assert!(error.to_string().contains(word) && error.remedy().is_some(), "{error}");
        };
        says(&whole, "not the values of a context");
        says(&[&whole[..], b"more"].concat(), "goes on after its end");
        let npz = folder.path().join("e.npz");
        embedding().save(&npz).unwrap();
        says(&std::fs::read(npz).unwrap(), "zip archive");
    }

    #[test]
    fn masked_tokens_are_left_out_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.npz");
        let values: Vec<f32> = (0..18u8).map(f32::from).collect();
        let attempt = |shape: &[usize], values: &[f32], mask_shape: &[usize], mask: &[i32]| {
            let arrays = [
                ("embedding", Values::F32(shape, values)),
                ("attention_mask", Values::I32(mask_shape, mask)),
            ];
            npz::write(&path, &arrays).unwrap();
            Embedding::open(&path, WIDTHS)
        };
        let kept = attempt(&[1, 3, 6], &values, &[1, 3], &[1, 0, 1]).unwrap();
        assert_eq!((kept.positive.video.shape(), kept.prompt), (&[1, 2, 6][..], None));
        assert_eq!(kept.positive.video.to_f32().unwrap()[6], 12.0);
        for (shape, mask_shape, mask, word) in [
            (&[1, 3, 6][..], &[1, 2][..], &[1, 1][..], "attention_mask: has shape"),
            (&[1, 3, 6], &[1, 3], &[0, 0, 0], "no token"),
            (&[1, 3, 6], &[1, 3], &[1, 2, 1], "0 and 1"),
            (&[3, 6], &[1, 3], &[1, 1, 1], "embedding: has shape [3, 6]"),
            (&[2, 9], &[1, 3], &[1, 1, 1], "embedding: has shape"),
        ] {
            let error = attempt(shape, &values, mask_shape, mask).unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        let mut broken = values.clone();
        broken[4] = f32::NAN;
        let error = attempt(&[1, 3, 6], &broken, &[1, 3], &[1, 1, 1]).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
        npz::write(&path, &[("prompt", Values::Text("only words"))]).unwrap();
        assert!(Embedding::open(&path, WIDTHS).unwrap_err().to_string().contains("embedding: is missing"));
    }

    #[test]
    fn dummies_are_the_same_everywhere_and_differ_by_prompt() {
        let first = |prompt| dummy(prompt, WIDTHS, Dtype::F32).unwrap().video.to_f32().unwrap();
        let values = first("a cat walking");
        // Another sequence would make every dummy clip another one.
        assert_eq!(values[..3], PINNED);
        assert_eq!(first(" a cat walking\n"), values);
        assert_ne!(first("a cat walks"), values);
        let spread = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        assert!((spread.sqrt() - 0.1).abs() < 0.01, "{spread}");
    }

    const PINNED: [f32; 3] = [0.0824786, -0.00087356736, 0.09446897];
}
