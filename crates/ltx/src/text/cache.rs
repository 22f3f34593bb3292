//! Encoded prompts on disk, so that the text encoder is not loaded again for a prompt it has seen.
//!
//! An entry is a safetensors file named by a hash of its [`Identity`], which stands in full in its header, with a hash of
//! its values. What does not read back as it was written counts as absent. The folder stays below a size: the entries
//! that were not used for longest go first.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mlx::Dtype;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Contexts;
use super::embedding::{save_contexts, stored};
use crate::checkpoint::File;
use crate::error::{Error, Result};
use crate::nn::Packing;

/// Changes when the same identity would give other values.
const FORMAT: u32 = 1;
/// Temporary files older than this were left by a program that was killed.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder of encoded prompts.
#[derive(Clone, Debug)]
pub struct EmbeddingCache {
    folder: PathBuf,
    limit: u64,
}

/// An entry of a cache.
#[derive(Clone, Debug)]
pub struct CachedEmbedding {
    /// The file.
    pub path: PathBuf,
    /// The text that was encoded; none if the file is damaged.
    pub prompt: Option<String>,
    /// Size of the file.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// Everything that an encoded prompt depends on: the text, the files it is computed with (by place, size and time of
/// change; their tensors are not read), and how it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    prompt: String,
    text: String,
}

impl Identity {
    /// None when a file cannot be looked at. `loras` change the model's files, each by its strength.
    pub fn new(
        prompt: &str,
        gemma: &Path,
        models: &[&Path],
        loras: &[(PathBuf, f32)],
        (dtype, packing): (Dtype, Option<Packing>),
        tokens: usize,
    ) -> Option<Self> {
        let file = |path: &Path| {
            let path = fs::canonicalize(path).ok()?;
            let facts = fs::metadata(&path).ok()?;
            let changed = facts.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos().to_string();
            Some(json!([path.to_string_lossy(), facts.len(), changed]))
        };
        let names = if gemma.is_file() {
            vec![gemma.into(), gemma.with_file_name("tokenizer.json")]
        } else {
            let known = |path: &PathBuf| {
                path.extension().is_some_and(|ending| ending == "safetensors" || ending == "json")
            };
            let entries = fs::read_dir(gemma).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            let mut names: Vec<PathBuf> = entries.filter(known).collect();
            names.sort();
            names
        };
        let encoder: Vec<_> = names.iter().map(|path| file(path)).collect::<Option<_>>()?;
        let models: Vec<_> = models.iter().map(|path| file(path)).collect::<Option<_>>()?;
        let loras: Vec<_> = loras
            .iter()
            .map(|(path, strength)| Some(json!([file(path)?, strength])))
            .collect::<Option<_>>()?;
        let text = json!({
            "program": env!("CARGO_PKG_VERSION"), "format": FORMAT, "prompt": prompt, "tokens": tokens,
            "dtype": dtype.to_string(), "quantize": packing.map(|packing| packing.to_string()), "device": format!("{:?}", mlx::device::current()),
            "text_encoder": encoder, "model": models, "loras": loras,
        });
        Some(Self { prompt: prompt.into(), text: text.to_string() })
    }
}

impl EmbeddingCache {
    /// How large a folder grows unless told otherwise: 1 GiB, some eighty prompts of a real model.
    pub const LIMIT: u64 = 1 << 30;

    /// The cache in a folder, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Self {
        Self { folder: folder.into(), limit }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, identity: &Identity) -> PathBuf {
        self.folder.join(format!("{}.safetensors", hex(&Sha256::digest(identity.text.as_bytes()))))
    }

    /// The contexts of an earlier run. The error, a sentence, says why an entry that is there cannot be used.
    pub(crate) fn get(&self, identity: &Identity) -> std::result::Result<Option<Contexts>, String> {
        let path = self.path(identity);
        if !path.exists() {
            return Ok(None);
        }
        let read = || -> Result<Option<Contexts>> {
            let file = File::open(&path)?;
            let contexts = Contexts {
                video: file.array("video_context")?,
                audio: file.info("audio_context").map(|_| file.array("audio_context")).transpose()?,
            };
            let whole = file.metadata("identity") == Some(&identity.text)
                && file.metadata("sha256") == Some(&checksum(&contexts)?);
            Ok(whole.then_some(contexts))
        };
        match read() {
            Ok(Some(contexts)) => {
                // For the order of eviction; a cache that cannot be written is still read.
                let _ = fs::File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                Ok(Some(contexts))
            }
            Ok(None) => Err(format!("{} is damaged", path.display())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Keeps contexts, whole or not at all, and makes room for them.
    pub(crate) fn put(&self, identity: &Identity, contexts: &Contexts) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(|error| self.error(&error))?;
        let metadata = [
            ("identity".to_string(), identity.text.clone()),
            ("prompt".to_string(), identity.prompt.clone()),
            ("sha256".to_string(), checksum(contexts)?),
        ];
        save_contexts(&self.path(identity), contexts, None, metadata.into())?;
        self.trim()
    }

    fn trim(&self) -> Result<()> {
        let mut left = self.limit;
        for entry in self.files()? {
            let kept = left.checked_sub(entry.bytes);
            left = kept.unwrap_or(0);
            if kept.is_none() {
                self.remove(&entry.path)?;
            }
        }
        for path in self.temporary()? {
            let age = fs::metadata(&path)
                .and_then(|facts| facts.modified())
                .ok()
                .and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > STALE) {
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    /// The entries, last used first.
    pub fn entries(&self) -> Result<Vec<CachedEmbedding>> {
        let mut entries = self.files()?;
        for entry in &mut entries {
            let file = File::open(&entry.path).ok();
            entry.prompt = file.and_then(|file| file.metadata("prompt").map(String::from));
        }
        Ok(entries)
    }

    /// Removes every entry, and nothing else. Gives how many there were, and their size in bytes.
    pub fn clear(&self) -> Result<(usize, u64)> {
        let entries = self.files()?;
        for path in entries.iter().map(|entry| &entry.path).chain(&self.temporary()?) {
            self.remove(path)?;
        }
        Ok((entries.len(), entries.iter().map(|entry| entry.bytes).sum()))
    }

    /// Another program may have removed it in the meantime.
    fn remove(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.error(&error)),
            _ => Ok(()),
        }
    }

    fn error(&self, error: &std::io::Error) -> Error {
        Error::file(
            &self.folder,
            "",
            format!("cannot be used as a cache: {error}"),
            "check its permissions, or use --no-cache",
        )
    }

    fn names(&self) -> Result<Vec<PathBuf>> {
        match fs::read_dir(&self.folder) {
            Ok(entries) => Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.error(&error)),
        }
    }

    fn temporary(&self) -> Result<Vec<PathBuf>> {
        let ours = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with(".ltx-") && name.ends_with(".safetensors")
        };
        Ok(self.names()?.into_iter().filter(ours).collect())
    }

    /// Files that are entries by name, last used first.
    fn files(&self) -> Result<Vec<CachedEmbedding>> {
        let ours = |path: &PathBuf| {
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            path.extension().is_some_and(|ending| ending == "safetensors")
                && name.len() == 64
                && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let entry = |path: PathBuf| {
            let facts = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            let used = facts.modified().unwrap_or(UNIX_EPOCH);
            Some(CachedEmbedding { path, prompt: None, bytes: facts.len(), used })
        };
        let mut entries: Vec<_> = self.names()?.into_iter().filter(ours).filter_map(entry).collect();
        entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
        Ok(entries)
    }
}

fn checksum(contexts: &Contexts) -> mlx::Result<String> {
    let mut digest = Sha256::new();
    for context in [Some(&contexts.video), contexts.audio.as_ref()].into_iter().flatten() {
        digest.update(format!("{:?} {}", context.shape(), context.dtype()));
        digest.update(stored(context)?.1);
    }
    Ok(hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::embedding::{Widths, dummy};

    fn identity(prompt: &str) -> Identity {
        Identity { prompt: prompt.into(), text: format!("encoder and {prompt}") }
    }

    fn contexts(prompt: &str) -> Contexts {
        dummy(prompt, Widths { video: 4, audio: 3 }, Dtype::Bf16).unwrap()
    }

    #[test]
    fn an_entry_comes_back_to_the_last_bit_and_only_for_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let cache = EmbeddingCache::new(folder.path().join("not/there/yet"), EmbeddingCache::LIMIT);
        assert!(cache.entries().unwrap().is_empty());
        assert!(cache.get(&identity("a")).unwrap().is_none());
        cache.put(&identity("a"), &contexts("a")).unwrap();
        let found = cache.get(&identity("a")).unwrap().unwrap();
        assert_eq!(
            (found.video.dtype(), checksum(&found).unwrap()),
            (Dtype::Bf16, checksum(&contexts("a")).unwrap())
        );
        assert!(cache.get(&identity("b")).unwrap().is_none());
        // An entry under another's name is not believed.
        fs::rename(cache.path(&identity("a")), cache.path(&identity("b"))).unwrap();
        assert!(cache.get(&identity("b")).is_err());
    }

    #[test]
    fn damage_is_noticed_and_mended_by_the_next_put() {
        let folder = tempfile::tempdir().unwrap();
        let cache = EmbeddingCache::new(folder.path(), EmbeddingCache::LIMIT);
        cache.put(&identity("a"), &contexts("a")).unwrap();
        let path = cache.path(&identity("a"));
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() - 3] ^= 0x10;
        for damaged in [&flipped[..], &whole[..whole.len() / 2], b"", b"{}"] {
            fs::write(&path, damaged).unwrap();
            assert!(cache.get(&identity("a")).unwrap_err().contains("safetensors"));
            assert_eq!(cache.entries().unwrap().len(), 1);
            cache.put(&identity("a"), &contexts("a")).unwrap();
            assert!(cache.get(&identity("a")).unwrap().is_some());
        }
    }

    #[test]
    fn the_least_recently_used_go_first_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.safetensors"), "mine").unwrap();
        let size = {
            let cache = EmbeddingCache::new(folder.path(), EmbeddingCache::LIMIT);
            cache.put(&identity("a"), &contexts("a")).unwrap();
            cache.entries().unwrap()[0].bytes
        };
        let cache = EmbeddingCache::new(folder.path(), 2 * size);
        let age = |prompt: &str, hours: u64| {
            let file = fs::File::options().append(true).open(cache.path(&identity(prompt))).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
        };
        cache.put(&identity("b"), &contexts("b")).unwrap();
        age("a", 3);
        age("b", 2);
        cache.get(&identity("a")).unwrap().unwrap();
        cache.put(&identity("c"), &contexts("c")).unwrap();
        let prompts: Vec<_> = cache.entries().unwrap().into_iter().filter_map(|entry| entry.prompt).collect();
        assert!(
            prompts.contains(&"a".into()) && prompts.contains(&"c".into()) && prompts.len() == 2,
            "{prompts:?}"
        );
        assert_eq!(cache.clear().unwrap().0, 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_file_time_size_or_prompt_is_another_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (gemma, model) = (folder.path().join("gemma"), folder.path().join("model.safetensors"));
        fs::create_dir(&gemma).unwrap();
        fs::write(gemma.join("config.json"), "{}").unwrap();
        fs::write(gemma.join("model.safetensors"), "weights").unwrap();
        fs::write(&model, "model").unwrap();
        let identity =
            |prompt: &str, tokens| Identity::new(prompt, &gemma, &[&model], &[], (Dtype::Bf16, None), tokens);
        let first = identity("a", 1024).unwrap();
        assert_eq!(identity("a", 1024), Some(first.clone()));
        assert_ne!(identity("b", 1024), Some(first.clone()));
        assert_ne!(identity("a", 256), Some(first.clone()));
        let file = fs::File::options().append(true).open(gemma.join("model.safetensors")).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(7)).unwrap();
        let second = identity("a", 1024).unwrap();
        let lora = |strength| {
            Identity::new("a", &gemma, &[&model], &[(model.clone(), strength)], (Dtype::Bf16, None), 1024)
        };
        assert!(lora(0.5) != lora(1.0) && lora(0.5) != Some(second.clone()));
        assert_ne!(first, second);
        fs::write(gemma.join("tokenizer.json"), "{}").unwrap();
        assert_ne!(identity("a", 1024), Some(second));
        assert!(Identity::new("a", Path::new("/nowhere"), &[], &[], (Dtype::F32, None), 1024).is_none());
    }
}
