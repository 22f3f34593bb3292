//! A Gemma 3 text encoder as Hugging Face lays it out: `config.json`, safetensors, `tokenizer.json` in one folder; or as
//! llama.cpp does: a GGUF file, beside which `tokenizer.json` must be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlx::Dtype;
use serde_json::Value;

use super::Tokenizer;
use crate::checkpoint::{Checkpoint, Config, File, Residency, Weights, gguf_gemma, is_gguf_gemma};
use crate::error::{Error, Result};
use crate::nn::Packing;

/// Prefixes under which the language model may stand: with a vision tower beside it (old and new layout), or alone.
const ROOTS: [&str; 3] = ["language_model.model.", "model.language_model.", "model."];

const INDEX: &str = "model.safetensors.index.json";

const TOKENIZER: &str = "tokenizer.json";

/// An open text encoder: a folder, or a GGUF file. Headers are read and checked; weights are not.
#[derive(Debug)]
pub struct GemmaFolder {
    path: PathBuf,
    files: Vec<Arc<File>>,
    root: &'static str,
    config: Config,
    tokenizer: PathBuf,
    packing: Option<Packing>,
    residency: Residency,
}

impl GemmaFolder {
    /// Opens the folder of a Gemma 3 model, or its GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::gguf(path);
        }
        if !path.is_dir() {
            return Err(Error::file(
                path,
                "",
                "is neither a folder nor a file",
                "give the folder with Gemma's config.json, weights and tokenizer.json, or a GGUF file",
            ));
        }
        let config = read_json(&path.join("config.json"))?;
        let config = Config::new(&path.join("config.json"), config);
        let model = config.str("model_type")?;
        if !matches!(model, "gemma3" | "gemma3_text") {
            return Err(config.error("model_type", format!("is `{model}`; LTX-2 2.0 and 2.3 need Gemma 3")));
        }
        let checkpoint = Checkpoint::open(&files(path)?)?;
        let files = checkpoint.files().to_vec();
        let root = ROOTS
            .into_iter()
            .find(|root| files.iter().any(|file| file.info(&format!("{root}embed_tokens.weight")).is_some()));
        let root = root.ok_or_else(|| {
            Error::file(
                path,
                "embed_tokens.weight",
                "is in none of its files",
                "give a Gemma 3 model that is downloaded whole",
            )
        })?;
        Ok(Self::new(path, files, root, config, path.join(TOKENIZER)))
    }

    fn gguf(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        if !file.is_gguf() {
            let remedy = "give the folder that it is in, with Gemma's config.json and tokenizer.json";
            return Err(Error::file(path, "", "is one file of a text encoder, but no GGUF", remedy));
        }
        let config = Config::new(path, gguf_gemma(&file)?);
        let tokenizer = path.with_file_name(TOKENIZER);
        Ok(Self::new(path, vec![file.into()], "model.", config, tokenizer))
    }

    fn new(
        path: &Path,
        files: Vec<Arc<File>>,
        root: &'static str,
        config: Config,
        tokenizer: PathBuf,
    ) -> Self {
        let (packing, residency) = Default::default();
        Self { path: path.into(), files, root, config, tokenizer, packing, residency }
    }

    /// Whether `path` is a text encoder, as far as its name and its head say.
    pub fn is_at(path: &Path) -> bool {
        path.join("config.json").is_file()
            || path.extension().is_some_and(|ending| ending == "gguf")
                && File::open(path).is_ok_and(|file| is_gguf_gemma(&file))
    }

    /// The same model, whose linear layers are packed while they are read where a rule allows it.
    pub fn packed_as(self, packing: Option<Packing>) -> Self {
        Self { packing, ..self }
    }

    /// The same model, whose layers are kept as `residency` says.
    pub fn kept(self, residency: Residency) -> Self {
        Self { residency, ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The language model's configuration.
    pub fn config(&self) -> Result<Config> {
        Ok(self.config.optional_at("text_config")?.unwrap_or_else(|| self.config.clone()))
    }

    /// What stands before the language model's keys.
    pub(crate) fn root(&self) -> &'static str {
        self.root
    }

    /// The files with the weights.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// The language model's weights, to be read as `dtype`. What else the files hold (a vision tower) is left out.
    pub fn weights(&self, dtype: Dtype) -> Weights {
        let keys = self.files.iter().flat_map(|file| file.tensors());
        let paths: Vec<String> =
            keys.filter_map(|(key, _)| key.strip_prefix(self.root).map(String::from)).collect();
        Weights::new(self.files.clone(), self.root, dtype, paths).packed_as(self.packing).kept(self.residency)
    }

    /// Gives back the memory that the mapped files take. What is used again is read again.
    pub fn release(&self) {
        self.files.iter().for_each(|file| file.release_all());
    }

    /// Where its tokenizer must be: beside the weights.
    pub fn tokenizer_path(&self) -> &Path {
        &self.tokenizer
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if !self.tokenizer.exists() {
            let remedy = "put the tokenizer.json of Gemma 3 there, of any size: it is in google/gemma-3-12b-it and its copies; GGUF holds none that is read";
            return Err(Error::file(&self.tokenizer, "", "is missing", remedy));
        }
        Tokenizer::open(&self.tokenizer)
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let remedy = "download the text encoder's folder whole";
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::file(path, "", format!("cannot be read: {error}"), remedy))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::file(path, "", format!("is not valid JSON: {error}"), remedy))
}

/// The files that the index names, or all safetensors files where there is none.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join(INDEX);
    if !index.exists() {
        return Ok(vec![folder.into()]);
    }
    let value = read_json(&index)?;
    let damaged = || {
        Error::file(&index, "weight_map", "does not name files", "download the text encoder's folder whole")
    };
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(damaged)?;
    let names: Option<BTreeSet<&str>> = map.values().map(Value::as_str).collect();
    let names = names.filter(|names| !names.is_empty()).ok_or_else(damaged)?;
    // A name is a file in this folder, never a path out of it.
    if names.iter().any(|name| Path::new(name).file_name().is_none_or(|file| file != *name)) {
        return Err(damaged());
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
