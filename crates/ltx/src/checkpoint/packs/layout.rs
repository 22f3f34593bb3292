//! How a file's packed weights are packed: what it says itself, what a `config.json` beside it says, and the shapes.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::checkpoint::File;
use crate::checkpoint::header::TensorInfo;
use crate::error::{Error, Result};
use crate::nn::Packing;

const REMEDY: &str =
    "download the pack whole, with its config.json, or pack the bf16 file with `ltx quantize`";

/// What a file says of how it is packed: MLX's `quantization`, in the header or in a `config.json` beside it.
#[derive(Clone, Debug, Default)]
pub struct Layout(Option<Arc<Map<String, Value>>>);

impl Layout {
    /// What is said: the header's own word first, then `config.json`'s. Nothing is no error.
    pub fn read(file: &File) -> Result<Self> {
        if !file.tensors().any(|(_, info)| info.dtype == safetensors::Dtype::U32) {
            return Ok(Self::default());
        }
        let wrong = |problem: &str| Error::file(file.path(), "quantization", problem, REMEDY);
        let said = match file.metadata("quantization") {
            Some(text) => Some(
                serde_json::from_str::<Value>(text)
                    .map_err(|error| wrong(&format!("is no JSON: {error}")))?,
            ),
            None => file.config().ok().and_then(|mut config| config.get_mut("quantization").map(Value::take)),
        };
        let said = match said {
            Some(said) => Some(said),
            None => beside(file)?,
        };
        match said {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(said)) => Ok(Self(Some(Arc::new(said)))),
            Some(_) => Err(wrong("is not an object")),
        }
    }

    /// How the weight `key`, which stands for one of `shape`, is packed; what is said and the shapes must agree.
    pub fn packing(&self, file: &File, key: &str, [outputs, inputs]: [i32; 2]) -> Result<Packing> {
        let wrong = |problem: String| Error::file(file.path(), key, problem, REMEDY);
        let (words, groups, narrow) = parts(file, key)?;
        let inputs = i64::from(inputs);
        let rows = file.info(key).and_then(|info| info.shape.first().copied());
        if rows != usize::try_from(outputs).ok() || inputs < 1 {
            return Err(wrong(format!(
                "has {} rows, but the configuration asks for {outputs}",
                rows.unwrap_or(0)
            )));
        }
        let (bits, group) = (words * 32 / inputs, inputs / groups);
        if bits * inputs != words * 32 || group * groups != inputs {
            return Err(wrong(format!(
                "is packed in {words} words with {groups} scales a row, which is no packing of {inputs} values"
            )));
        }
        let found = match (narrow, bits, group) {
            (false, 4 | 8, 32 | 64 | 128) => Packing::Affine { bits: bits as usize, group: group as usize },
            (true, 8, 32) => Packing::Mxfp8,
            (true, 4, 16) => Packing::Nvfp4,
            _ => {
                let scales = if narrow { "scales of 8 bits" } else { "float scales" };
                return Err(wrong(format!(
                    "is packed in {bits} bits with groups of {group} and {scales}; known are 4 and 8 bits in groups of 32, 64 and 128, mxfp8 and nvfp4"
                )));
            }
        };
        match self.said(file, key)? {
            Some(said) if said != found => Err(wrong(format!(
                "is packed as {found:?} by its shapes, but as {said:?} by what is said of it"
            ))),
            _ => Ok(found),
        }
    }

    /// The shape that a packed weight stands for, where enough is said.
    pub fn shape(&self, file: &File, key: &str) -> Result<Option<[usize; 2]>> {
        let Some(packing) = self.said(file, key)? else { return Ok(None) };
        let (words, groups, _) = parts(file, key)?;
        let inputs = groups * packing.group() as i64;
        if inputs * packing.bits() as i64 != words * 32 {
            let problem =
                format!("is packed in {words} words with {groups} scales a row, which is not {packing:?}");
            return Err(Error::file(file.path(), key, problem, REMEDY));
        }
        let rows = file.info(key).and_then(|info| info.shape.first().copied()).unwrap_or(0);
        Ok(Some([rows, usize::try_from(inputs).unwrap_or(0)]))
    }

    /// The packing that is said of a weight: of its layer by name, or of all.
    pub fn said(&self, file: &File, key: &str) -> Result<Option<Packing>> {
        let Some(all) = &self.0 else { return Ok(None) };
        let module = key.strip_suffix(".weight").unwrap_or(key);
        let own = all.iter().find(|(name, value)| {
            value.is_object() && (*name == module || module.ends_with(&format!(".{name}")))
        });
        let settings = own.and_then(|(_, own)| own.as_object()).unwrap_or(all);
        let wrong = |name: &str| {
            let problem = format!("has {name} = {}", settings.get(name).unwrap_or(&Value::Null));
            Error::file(file.path(), format!("quantization of {module}"), problem, REMEDY)
        };
        let number = |name: &str| match settings.get(name) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|value| usize::try_from(value).ok())
                .map(Some)
                .ok_or_else(|| wrong(name)),
        };
        let (bits, group) = (number("bits")?, number("group_size")?);
        let packing = match settings.get("mode").map(|mode| mode.as_str()) {
            Some(Some("mxfp8")) => Packing::Mxfp8,
            Some(Some("nvfp4")) => Packing::Nvfp4,
            None | Some(Some("affine")) => match (bits, group) {
                (Some(bits @ (4 | 8)), Some(group @ (32 | 64 | 128))) => Packing::Affine { bits, group },
                (Some(4 | 8), None) | (None, _) => return Ok(None),
                (Some(4 | 8), _) => return Err(wrong("group_size")),
                _ => return Err(wrong("bits")),
            },
            _ => return Err(wrong("mode")),
        };
        if bits.is_some_and(|bits| bits != packing.bits()) {
            return Err(wrong("bits"));
        }
        if group.is_some_and(|group| group != packing.group()) {
            return Err(wrong("group_size"));
        }
        Ok(Some(packing))
    }
}

/// Words of a row, scales of a row, and whether those are bytes.
fn parts(file: &File, key: &str) -> Result<(i64, i64, bool)> {
    let wrong = |key: &str, problem: &str| Error::file(file.path(), key, problem, REMEDY);
    let row = |key: &str, info: &TensorInfo| match info.shape.as_slice() {
        &[rows, columns] if rows > 0 && columns > 0 => {
            i32::try_from(columns).map(i64::from).map_err(|_| wrong(key, "is too large"))
        }
        _ => Err(wrong(key, "is not a matrix, but packed weights are")),
    };
    let info = file.info(key).ok_or_else(|| wrong(key, "is missing"))?;
    let scales_key = format!("{}.scales", key.strip_suffix(".weight").unwrap_or(key));
    let scales = file
        .info(&scales_key)
        .ok_or_else(|| wrong(&scales_key, "is missing, so the weight cannot be unpacked"))?;
    Ok((row(key, info)?, row(&scales_key, scales)?, scales.dtype == safetensors::Dtype::U8))
}

/// The `quantization` of a `config.json` beside the file.
fn beside(file: &File) -> Result<Option<Value>> {
    let path = file.path().with_file_name("config.json");
    // A file of megabytes is no such configuration.
    if !std::fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() < 16 << 20) {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::file(&path, "", format!("cannot be read: {error}"), "check that you may read it")
    })?;
    let mut config: Value = serde_json::from_str(&text)
        .map_err(|error| Error::file(&path, "", format!("is not valid JSON: {error}"), REMEDY))?;
    Ok(["quantization", "quantization_config"].into_iter().find_map(|key| {
        // Other programs' methods have a name here; MLX's has none.
        let said = config.get_mut(key).filter(|said| said.get("quant_method").is_none())?;
        Some(said.take())
    }))
}
