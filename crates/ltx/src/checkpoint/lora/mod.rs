//! LoRA files: low-rank updates of a model's weights, read as every program writes them and added while a weight is read.
//!
//! `keys` knows the spellings, `fusion` the formula, `merge` writes fused files.

mod fusion;
mod keys;
mod merge;

pub use fusion::{Fusion, Matches, Misfit};
pub use merge::merge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlx::Dtype;
use serde_json::Value;

use super::File;
use super::header::dtype;
use crate::error::{Error, Result};
use keys::Key;

/// An open LoRA file. Opening reads the header and the alphas; it checks that every module's parts fit together.
#[derive(Clone, Debug)]
pub struct Lora {
    file: Arc<File>,
    modules: Vec<Module>,
    unknown: Vec<String>,
}

/// The update of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name in the file.
    pub name: String,
    down: String, // (rank, in)
    up: String,   // (out, rank)
    /// Width between the factors.
    pub rank: usize,
    /// Shape of the weight that it is for: (out, in).
    pub shape: [usize; 2],
    /// What the factors' product is multiplied with before the strength: alpha / rank, 1 where the file has no alpha.
    pub scale: f64,
}

const DAMAGED: &str = "the file is damaged or was cut in parts: download it again";

impl Lora {
    /// Opens a LoRA file, or the one in a folder as diffusers and PEFT write it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(File::open(&in_folder(path)?)?);
        let mut parts: BTreeMap<String, [Option<String>; 3]> = BTreeMap::new();
        let mut unknown = Vec::new();
        for (key, _) in file.tensors() {
            match keys::parse(&key) {
                Key::Part(module, part) => {
                    let place = &mut parts.entry(module.into()).or_default()[part as usize];
                    if let Some(other) = place.replace(key.clone()) {
                        let problem = format!("says again what {other} says");
                        return Err(Error::file(file.path(), key, problem, DAMAGED));
                    }
                }
                Key::Other(method) => {
                    let problem = format!("is of another method than LoRA: {method}");
                    let remedy =
                        "merge it into the model with the program that made it, or convert it to LoRA";
                    return Err(Error::file(file.path(), key, problem, remedy));
                }
                Key::Unknown => unknown.push(key),
            }
        }
        // An alpha by itself is no update: vocoders have parameters of that name.
        parts.retain(|_, [down, up, alpha]| {
            let factors = down.is_some() || up.is_some();
            unknown.extend(alpha.take_if(|_| !factors));
            factors
        });
        if parts.is_empty() {
            return Err(Error::file(
                file.path(),
                "",
                "is not a LoRA: no tensor is called …lora_A.weight or …lora_down.weight",
                "give a LoRA's file; models go to --model",
            ));
        }
        let alphas = Alphas::of(&file, parts.keys().any(|name| name.starts_with("base_model.model.")))?;
        let modules = parts
            .into_iter()
            .map(|(name, parts)| module(&file, name, parts, &alphas))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { file, modules, unknown })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The updates, by name.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Keys that are no part of a LoRA.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// Entries of the header's `__metadata__`.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.file.all_metadata()
    }

    /// The dtypes of its factors, as the file spells them.
    pub fn dtypes(&self) -> Vec<String> {
        let mut dtypes: Vec<String> = self
            .modules
            .iter()
            .flat_map(|module| [&module.down, &module.up])
            .filter_map(|key| Some(format!("{:?}", self.file.info(key)?.dtype)))
            .collect();
        dtypes.sort();
        dtypes.dedup();
        dtypes
    }
}

/// The file itself; of a folder, what diffusers or PEFT would read in it, or the only weights there.
fn in_folder(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let names = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"];
    if let Some(file) = names.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(file);
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let weights: Vec<_> =
        entries.filter(|file| file.extension().is_some_and(|ending| ending == "safetensors")).collect();
    let problem = match weights.as_slice() {
        [only] => return Ok(only.clone()),
        [] => "is a folder without a LoRA".into(),
        many => format!("is a folder with {} files, none of which is {}", many.len(), names.join(" or ")),
    };
    Err(Error::file(path, "", problem, "give the LoRA's file"))
}

fn module(file: &File, name: String, parts: [Option<String>; 3], alphas: &Alphas) -> Result<Module> {
    let [down, up, alpha] = parts;
    let error = |key: &str, problem: String| Error::file(file.path(), key, problem, DAMAGED);
    let (Some(down), Some(up)) = (down, up) else {
        return Err(error(&name, "lacks one of its two factors".into()));
    };
    let factor = |key: &str| {
        let info = file.info(key).ok_or_else(|| error(key, "is missing".into()))?;
        if !dtype(info).is_some_and(|dtype| matches!(dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32)) {
            let problem = format!("has dtype {:?}, which is not supported", info.dtype);
            return Err(Error::file(file.path(), key, problem, "use a bf16, f16 or f32 file"));
        }
        match info.shape.as_slice() {
            &[a, b] if a > 0 && b > 0 => Ok([a, b]),
            shape => {
                Err(error(key, format!("has shape {shape:?}, but factors of linear layers have two axes")))
            }
        }
    };
    let ([rank, inputs], [outputs, other_rank]) = (factor(&down)?, factor(&up)?);
    if rank != other_rank {
        return Err(error(
            &name,
            format!("has a down factor of rank {rank} and an up factor of rank {other_rank}"),
        ));
    }
    let scale = match alpha {
        Some(key) => {
            let alpha = number(file, &key)?;
            if !alpha.is_finite() {
                return Err(error(&key, format!("is {alpha}")));
            }
            alpha / rank as f64
        }
        None => alphas.scale(&name, rank).unwrap_or(1.0),
    };
    Ok(Module { name, down, up, rank, shape: [outputs, inputs], scale })
}

/// A tensor of one number.
fn number(file: &File, key: &str) -> Result<f64> {
    let array = file.array(key)?;
    if array.size() != 1 {
        let problem = format!("has shape {:?}, but an alpha is one number", array.shape());
        return Err(Error::file(file.path(), key, problem, DAMAGED));
    }
    Ok(array.astype(Dtype::F32)?.reshape(&[1])?.to_f32()?.first().copied().unwrap_or(f32::NAN).into())
}

/// Alphas that stand beside the tensors: in the header as diffusers writes it, or in PEFT's `adapter_config.json`.
#[derive(Default)]
struct Alphas {
    settings: serde_json::Map<String, Value>,
}

impl Alphas {
    fn of(file: &File, peft: bool) -> Result<Self> {
        let config = file.path().with_file_name("adapter_config.json");
        let (text, place) = match file.metadata("lora_adapter_metadata") {
            Some(text) => (text.to_string(), file.path()),
            None if peft && config.is_file() => {
                let text = std::fs::read_to_string(&config).map_err(|error| {
                    Error::file(&config, "", format!("cannot be read: {error}"), "check its permissions")
                })?;
                (text, config.as_path())
            }
            None => return Ok(Self::default()),
        };
        let settings: serde_json::Map<_, _> = serde_json::from_str(&text).map_err(|error| {
            Error::file(place, "", format!("describes the LoRA in JSON that is not valid: {error}"), DAMAGED)
        })?;
        for (key, value) in &settings {
            if key.ends_with("use_dora") && value == &Value::Bool(true) {
                let remedy = "merge it into the model with the program that made it";
                return Err(Error::file(place, key, "says that this is DoRA, not LoRA", remedy));
            }
        }
        Ok(Self { settings })
    }

    /// alpha / rank of a module, or alpha / √rank where rank-stabilized, if the settings say.
    fn scale(&self, module: &str, rank: usize) -> Option<f64> {
        let (prefix, name) = match module.split_once('.') {
            Some((prefix, name))
                if self.settings.keys().any(|key| key.starts_with(&format!("{prefix}."))) =>
            {
                (format!("{prefix}."), name)
            }
            _ => (String::new(), module.strip_prefix("base_model.model.").unwrap_or(module)),
        };
        let setting = |key: &str| self.settings.get(&format!("{prefix}{key}"));
        let own = setting("alpha_pattern").and_then(Value::as_object).and_then(|pattern| {
            let fits = |key: &str| name == key || name.ends_with(&format!(".{key}"));
            pattern.iter().find(|(key, _)| fits(key))?.1.as_f64()
        });
        let alpha = own.or_else(|| setting("lora_alpha")?.as_f64())?;
        let stabilized = setting("use_rslora").and_then(Value::as_bool) == Some(true);
        Some(alpha / if stabilized { (rank as f64).sqrt() } else { rank as f64 })
    }
}
