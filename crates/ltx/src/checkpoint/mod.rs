//! Files on disk → named tensors and configuration.
//!
//! Official safetensors files, and GGUF files made of them, are read as they are: memory-mapped, with their own keys and the
//! configuration in their own header. Nothing here knows what a tensor means; `component` knows which keys belong to which network.

mod component;
mod config;
mod footprint;
mod gguf;
mod header;
pub mod lora;
pub mod packs;
mod residency;
mod weights;

pub use component::Component;
pub use config::Config;
pub use footprint::{BlockFootprint, Footprint};
pub(crate) use gguf::{configuration as gguf_gemma, is_gemma as is_gguf_gemma};
pub use header::{File, TensorInfo};
pub use residency::{Blocks, Residency, Streamed};
pub use weights::{Unread, Weights};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlx::Dtype;

use crate::error::{Error, Result};
use crate::nn::Packing;
use lora::{Fusion, Lora, Matches};

/// One or several official files that together hold a model.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Vec<Arc<File>>,
    fusion: Option<Arc<Fusion>>,
    packing: Option<Packing>,
}

impl Checkpoint {
    /// Opens files, and the safetensors files of folders. Headers are read and checked; weights are not.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            for path in expand(path.as_ref())? {
                files.push(Arc::new(File::open(&path)?));
            }
        }
        Ok(Self { files, fusion: None, packing: None })
    }

    /// The same files, whose linear layers are packed while they are read where a rule allows it.
    pub fn packed_as(self, packing: Option<Packing>) -> Self {
        Self { packing, ..self }
    }

    /// The same files with `loras` on top of those that are fused already, each at its strength, and how each met them.
    /// Weights are changed when they are read.
    pub fn fused(&self, loras: &[(&Lora, f32)]) -> Result<(Self, Vec<Matches>)> {
        let mut fusion = self.fusion.as_deref().cloned().unwrap_or_default();
        let mut all = Vec::new();
        for (lora, strength) in loras {
            let matches = lora.must_match(self)?;
            fusion.add(lora, &matches, *strength);
            all.push(matches);
        }
        Ok((Self { fusion: Some(Arc::new(fusion)), ..self.clone() }, all))
    }

    /// The files, in the order given.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// The components that the files hold, in the order of [`Component::ALL`].
    pub fn components(&self) -> Vec<Component> {
        Component::ALL.into_iter().filter(|&component| self.file(component).is_some()).collect()
    }

    /// The file that holds `component`, if any does.
    pub fn file(&self, component: Component) -> Option<&Arc<File>> {
        self.files.iter().find(|file| component.root(file).is_some())
    }

    /// All files that hold `component`.
    pub fn holders(&self, component: Component) -> impl Iterator<Item = &Arc<File>> {
        self.files.iter().filter(move |file| component.root(file).is_some())
    }

    /// The weights of `component`, to be read as `dtype`, and the configuration in the header of its file.
    pub fn component(&self, component: Component, dtype: Dtype) -> Result<(Weights, Config)> {
        let mut holders = self.files.iter().filter_map(|file| Some((file, component.root(file)?)));
        let Some((file, root)) = holders.next() else {
            let names: Vec<String> =
                self.files.iter().map(|file| file.path().display().to_string()).collect();
            return Err(Error::request(
                format!(
                    "no {component} in {}",
                    if names.is_empty() { "no files at all".into() } else { names.join(", ") }
                ),
                format!("give the file that holds the {component} with another --model"),
            ));
        };
        // Taking the first of a folder with a dev and a distilled model would be a guess that nobody sees.
        if let Some((other, _)) = holders.next() {
            return Err(Error::request(
                format!("both {} and {} hold the {component}", file.path().display(), other.path().display()),
                "give the one file that is meant, instead of the folder",
            ));
        }
        let keys = file.tensors().filter_map(|(key, _)| {
            let key = key.strip_prefix(root)?;
            component.owns(key).then(|| key.to_string())
        });
        let weights = Weights::new(vec![file.clone()], root, dtype, keys).fused(self.fusion.clone());
        Ok((weights.packed_as(self.packing), self.describe(component, file)?))
    }

    /// The configuration in the header of `file`; of a split checkpoint, whose parts need not describe themselves, that of
    /// the first file which describes the component.
    fn describe(&self, component: Component, file: &File) -> Result<Config> {
        let described =
            |file: &&File| file.config().is_ok_and(|config| config.get(component.section()).is_some());
        let others = self.files.iter().map(AsRef::as_ref);
        let describing = [file].into_iter().chain(others).find(described).unwrap_or(file);
        Ok(Config::new(describing.path(), describing.config()?))
    }

    /// Gives back the memory that the mapped files take. What is used again is read again.
    pub fn release(&self) {
        self.files.iter().for_each(|file| file.release_all());
        if let Some(fusion) = &self.fusion {
            fusion.files().for_each(|file| file.release_all());
        }
    }

    /// The official `model_version` of the file with the transformer (or of the first file); files older than 2.3 have none.
    pub fn version(&self) -> Option<&str> {
        self.file(Component::Dit).or(self.files.first())?.metadata("model_version")
    }
}

/// A file as it is; a folder as its safetensors files, sorted.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let unreadable = |error: std::io::Error| {
        Error::file(path, "", format!("cannot be read: {error}"), "check the folder's permissions")
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::file(
            path,
            "",
            "holds no .safetensors file",
            "give the folder that holds the model, or the file itself",
        ));
    }
    files.sort();
    Ok(files)
}
