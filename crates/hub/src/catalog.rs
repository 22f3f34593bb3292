//! The models that have a name of their own here: Lightricks' checkpoints, upsamplers and LoRAs, and the text encoder
//! that they name. Sizes are the published ones, rounded where no exact one is known; the hub's own are used to download.

use crate::{Cache, Reference, Result};

/// What kind of thing a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model in one file.
    Checkpoint,
    /// What enlarges latents.
    Upsampler,
    /// What reads prompts.
    TextEncoder,
    /// An update of a model's weights.
    Lora,
}

/// A name, what it stands for, and what is needed to run it.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is typed.
    pub name: &'static str,
    /// What kind of thing it is.
    pub kind: Kind,
    /// What it is, in words.
    pub about: &'static str,
    /// `owner/name`
    pub repo: &'static str,
    /// The file, or every model file of the repository.
    pub file: Option<&'static str>,
    /// About how large.
    pub bytes: u64,
    /// Names of what a clip needs besides.
    pub with: &'static [&'static str],
    /// What speaks against it for now.
    pub caution: Option<&'static str>,
}

const MB: u64 = 1_000_000;
const FP8: &str = "this version cannot read fp8 weights yet";
const V25: &str = "this version cannot run 2.5 yet";

const fn file(
    kind: Kind,
    name: &'static str,
    about: &'static str,
    repo: &'static str,
    file: &'static str,
    bytes: u64,
) -> Entry {
    Entry { name, kind, about, repo, file: Some(file), bytes, with: &[], caution: None }
}

const fn with(entry: Entry, with: &'static [&'static str]) -> Entry {
    Entry { with, ..entry }
}

const fn but(entry: Entry, caution: &'static str) -> Entry {
    Entry { caution: Some(caution), ..entry }
}

macro_rules! camera {
    ($name:literal, $repo:literal, $about:literal, $bytes:expr) => {
        file(
            Kind::Lora,
            concat!("camera-", $name),
            concat!("LoRA for 2.0: the camera ", $about),
            concat!("Lightricks/LTX-2-19b-LoRA-Camera-Control-", $repo),
            concat!("ltx-2-19b-lora-camera-control-", $name, ".safetensors"),
            $bytes,
        )
    };
}

const L2: &str = "Lightricks/LTX-2";
const L23: &str = "Lightricks/LTX-2.3";
const L23_FP8: &str = "Lightricks/LTX-2.3-fp8";
const L25: &str = "Lightricks/LTX-2.5";

#[rustfmt::skip]
/// Everything that has a name.
pub static ENTRIES: &[Entry] = &{
    use Kind::{Checkpoint, Lora, Upsampler};
    [
        with(file(Checkpoint, "2.3-distilled", "2.3 (22B), 8 + 3 steps", L23, "ltx-2.3-22b-distilled-1.1.safetensors", 46_149_345_334), &["2.3-upsampler", "gemma"]),
        with(file(Checkpoint, "2.3-dev", "2.3 (22B), guided", L23, "ltx-2.3-22b-dev.safetensors", 46_149_344_974), &["gemma"]),
        but(with(file(Checkpoint, "2.3-distilled-fp8", "2.3 distilled in fp8", L23_FP8, "ltx-2.3-22b-distilled-fp8.safetensors", 29_500 * MB), &["2.3-upsampler", "gemma"]), FP8),
        but(with(file(Checkpoint, "2.3-dev-fp8", "2.3 dev in fp8", L23_FP8, "ltx-2.3-22b-dev-fp8.safetensors", 29_145_431_166), &["gemma"]), FP8),
        file(Upsampler, "2.3-upsampler", "spatial upsampler x2 for 2.3", L23, "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", 995_743_560),
        file(Upsampler, "2.3-upsampler-x1.5", "spatial upsampler x1.5 for 2.3", L23, "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors", 1_090_125_794),
        file(Upsampler, "2.3-temporal-upsampler", "temporal upsampler x2 for 2.3", L23, "ltx-2.3-temporal-upscaler-x2-1.0.safetensors", 261_944_000),
        with(file(Checkpoint, "2.0-distilled", "2.0 (19B), 8 + 3 steps", L2, "ltx-2-19b-distilled.safetensors", 43_300 * MB), &["2.0-upsampler", "gemma"]),
        with(file(Checkpoint, "2.0-dev", "2.0 (19B), guided", L2, "ltx-2-19b-dev.safetensors", 43_300 * MB), &["gemma"]),
        but(with(file(Checkpoint, "2.0-distilled-fp8", "2.0 distilled in fp8", L2, "ltx-2-19b-distilled-fp8.safetensors", 27_100 * MB), &["2.0-upsampler", "gemma"]), FP8),
        but(with(file(Checkpoint, "2.0-dev-fp8", "2.0 dev in fp8", L2, "ltx-2-19b-dev-fp8.safetensors", 27_100 * MB), &["gemma"]), FP8),
        file(Upsampler, "2.0-upsampler", "spatial upsampler x2 for 2.0", L2, "ltx-2-spatial-upscaler-x2-1.0.safetensors", 996 * MB),
        file(Upsampler, "2.0-temporal-upsampler", "temporal upsampler x2 for 2.0", L2, "ltx-2-temporal-upscaler-x2-1.0.safetensors", 262 * MB),
        Entry { name: "gemma", kind: Kind::TextEncoder, about: "the text encoder, Gemma 3 12B; gated", repo: "google/gemma-3-12b-it-qat-q4_0-unquantized", file: None, bytes: 24_413 * MB, with: &[], caution: None },
        file(Lora, "distilled-2.3", "distilled LoRA for 2.3 dev", L23, "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", 7_605_507_256),
        file(Lora, "distilled-2.0", "distilled LoRA for 2.0 dev", L2, "ltx-2-19b-distilled-lora-384.safetensors", 7_670 * MB),
        but(file(Lora, "distilled-2.5", "distilled LoRA for 2.5 dev", L25, "loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors", 8_900 * MB), V25),
        camera!("dolly-in", "Dolly-In", "moves in", 327 * MB),
        camera!("dolly-out", "Dolly-Out", "moves out", 327 * MB),
        camera!("dolly-left", "Dolly-Left", "moves left", 327 * MB),
        camera!("dolly-right", "Dolly-Right", "moves right", 327 * MB),
        camera!("jib-up", "Jib-Up", "rises", 2_210 * MB),
        camera!("jib-down", "Jib-Down", "sinks", 2_210 * MB),
        camera!("static", "Static", "stands still", 2_210 * MB),
    ]
};

impl Entry {
    /// The entry of this name. `ltx-` may stand before a name; a file's own name and `owner/repo:file` do too.
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = name.to_ascii_lowercase();
        let short = name.strip_prefix("ltx-").unwrap_or(&name);
        let stem = name.strip_suffix(".safetensors").unwrap_or(&name);
        // In its repository the file may be in a folder.
        let own = |file: &'static str| file.rsplit('/').next().unwrap_or(file);
        let stands_for = |entry: &&Self| {
            entry.name == short
                || entry.file.is_some_and(|file| {
                    let place = name.split_once(':');
                    place.is_some_and(|(repo, path)| entry.repo.eq_ignore_ascii_case(repo) && path == file)
                })
                || entry.file.is_some_and(|file| own(file).strip_suffix(".safetensors") == Some(stem))
        };
        ENTRIES.iter().find(stands_for)
    }

    /// The generation that a checkpoint is of.
    pub fn generation(&self) -> &'static str {
        self.name.split('-').next().unwrap_or_default()
    }

    /// What the hub calls it.
    ///
    /// # Errors
    ///
    /// Never for the entries of this catalog.
    pub fn reference(&self) -> Result<Reference> {
        match self.file {
            Some(file) => Reference::parse(&format!("{}:{file}", self.repo)),
            None => Reference::parse(self.repo),
        }
    }

    /// The file, or the folder, if it is here.
    pub fn path(&self, cache: &Cache) -> Option<std::path::PathBuf> {
        self.reference().ok().and_then(|reference| cache.find(&reference))
    }

    /// Names that begin like `name` or hold it: what may have been meant.
    pub fn like(name: &str) -> Vec<&'static str> {
        let name = name.to_ascii_lowercase();
        let words: Vec<&str> =
            name.split(['-', '_', ' ']).filter(|word| word.len() > 2 && *word != "ltx").collect();
        ENTRIES
            .iter()
            .filter(|entry| !words.is_empty() && words.iter().all(|word| entry.name.contains(word)))
            .map(|entry| entry.name)
            .collect()
    }
}

/// Whether a file of a whole repository belongs to a model: weights, configuration, tokenizer.
pub fn is_model_file(name: &str) -> bool {
    [".safetensors", ".json", ".model", ".jinja", ".txt"].iter().any(|ending| name.ends_with(ending))
        && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_something_on_the_hub_and_its_needs_have_names() {
        for entry in ENTRIES {
            let reference = entry.reference().unwrap();
            assert_eq!(reference.file.as_deref(), entry.file);
            assert!(entry.bytes > 100 * MB && entry.bytes < 50_000 * MB, "{}", entry.name);
            assert_eq!(Entry::find(entry.name), Some(entry));
            assert!(entry.with.iter().all(|name| Entry::find(name).is_some()), "{}", entry.name);
            assert_eq!(ENTRIES.iter().filter(|other| other.name == entry.name).count(), 1, "{}", entry.name);
        }
    }

    #[test]
    fn names_are_found_as_people_type_them() {
        let name = |text| Entry::find(text).map(|entry| entry.name);
        assert_eq!(name("ltx-2.3-distilled"), Some("2.3-distilled"));
        assert_eq!(name("LTX-2.3-22b-distilled-1.1.safetensors"), Some("2.3-distilled"));
        assert_eq!(name("ltx-2-19b-dev"), Some("2.0-dev"));
        assert_eq!(name("ltx-2.5-22b-distilled-lora-450-bf16"), Some("distilled-2.5"));
        assert_eq!(name("Lightricks/LTX-2.3:ltx-2.3-22b-dev.safetensors"), Some("2.3-dev"));
        assert_eq!(name("Lightricks/LTX-2:ltx-2.3-22b-dev.safetensors"), None);
        assert_eq!(name("distilled"), None);
        assert_eq!(Entry::like("2.3_distilled"), ["2.3-distilled", "2.3-distilled-fp8", "distilled-2.3"]);
        assert!(Entry::like("--").is_empty());
    }

    #[test]
    fn model_files_are_told_from_pages_and_pictures() {
        assert!(
            ["model-00001-of-00005.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"]
                .iter()
                .all(|name| is_model_file(name))
        );
        assert!(
            ![".gitattributes", "README.md", "picture.png", ".x.json"].iter().any(|name| is_model_file(name))
        );
    }
}
