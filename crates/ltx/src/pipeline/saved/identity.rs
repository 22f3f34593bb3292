//! What a run's result depends on, in a form that can be kept and compared: settings, files, the processor.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::nn::cpu;
use crate::pipeline::{ImageSource, Plan};

/// Files up to this size are read whole for their digest; of larger ones, and of all with weights, the header is.
const SMALL: u64 = 64 << 20;

impl Plan<'_> {
    /// Everything that the result depends on, but for the kind of the output.
    pub(in crate::pipeline) fn identity(&self) -> Value {
        let request = self.request;
        let optional = |path: &Option<PathBuf>| path.as_deref().map(files_of);
        let loras = request.loras.iter().map(|(path, _)| path).chain(&request.distilled_lora);
        let images = request.images.iter().map(|image| match &image.source {
            ImageSource::File(path) => file(path),
            ImageSource::Pixels(frame) => json!(hex(&Sha256::digest(&frame.rgb))),
        });
        let stages = self.steps.iter().map(|steps| {
            format!("{}: {:?}, sigmas {:?}, {:?}", steps.name, steps.sampler, steps.sigmas, steps.guidance)
        });
        json!({
            "settings": self.settings(),
            "stages": stages.collect::<Vec<_>>(),
            "device": format!("{:?}", mlx::device::current()),
            "mlx": mlx::VERSION,
            "kernels": cpu::active().then(cpu::isa),
            "models": self.checkpoint.files().iter().map(|opened| file(opened.path())).collect::<Vec<_>>(),
            "text_encoder": optional(&request.gemma),
            "upsampler": self.upsampler.as_ref().map(|files| {
                files.files().iter().map(|opened| file(opened.path())).collect::<Vec<_>>()
            }),
            "lora_files": loras.map(|path| files_of(path)).collect::<Vec<_>>(),
            "image_files": images.collect::<Vec<_>>(),
            "embedding_file": optional(&request.embedding),
            "noise_file": optional(&request.noise),
        })
    }
}

/// A file's place, size, time of change, and what it begins with.
fn file(path: &Path) -> Value {
    let facts = || -> std::io::Result<Value> {
        let place = fs::canonicalize(path)?;
        let facts = fs::metadata(&place)?;
        let changed = facts.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let digest = if facts.is_file() { digest(&place, facts.len())? } else { String::new() };
        Ok(json!(format!(
            "{}, {} bytes, changed {}.{:09}, {digest}",
            place.display(),
            facts.len(),
            changed.as_secs(),
            changed.subsec_nanos()
        )))
    };
    facts().unwrap_or_else(|error| json!(format!("{}: {}", path.display(), error.kind())))
}

/// A file, or the weights and settings in a folder.
fn files_of(path: &Path) -> Value {
    if !path.is_dir() {
        return json!([file(path)]);
    }
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "safetensors" || ending == "json" || ending == "gguf")
    };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(wanted).collect();
    paths.sort();
    paths.iter().map(|path| file(path)).collect()
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(path: &Path, size: u64) -> std::io::Result<String> {
    let mut open = fs::File::open(path)?;
    let mut length = size;
    if path.extension().is_some_and(|ending| ending == "safetensors") || size > SMALL {
        // The header of safetensors begins with its length.
        let mut head = [0; 8];
        let read = open.read(&mut head)? as u64;
        length = read.saturating_add(u64::from_le_bytes(head)).min(SMALL);
        open = fs::File::open(path)?;
    }
    let mut digest = Sha256::new();
    std::io::copy(&mut open.take(length), &mut digest)?;
    Ok(hex(&digest.finalize()))
}

/// Where two identities differ, each in a few words.
pub(super) fn differences(then: &Value, now: &Value) -> Vec<String> {
    // Both as they come out of a file, where a number may have lost its last bit.
    let now = serde_json::from_str(&now.to_string()).unwrap_or_default();
    let mut found = Vec::new();
    compare("", then, &now, &mut found);
    found
}

fn compare(name: &str, then: &Value, now: &Value, found: &mut Vec<String>) {
    if then == now {
        return;
    }
    let inside = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
    if let (Value::Object(then), Value::Object(now)) = (then, now) {
        let missing = &Value::Null;
        let keys = then.keys().chain(now.keys().filter(|key| !then.contains_key(*key)));
        for key in keys {
            compare(&inside(key), then.get(key).unwrap_or(missing), now.get(key).unwrap_or(missing), found);
        }
        return;
    }
    if let (Value::Array(then), Value::Array(now)) = (then, now)
        && then.len() == now.len()
    {
        for (index, (then, now)) in then.iter().zip(now).enumerate() {
            compare(&inside(&(index + 1).to_string()), then, now, found);
        }
        return;
    }
    let name = name.strip_prefix("settings.").unwrap_or(name);
    found.push(format!("{name} was {}, is {}", short(then), short(now)));
}

fn short(value: &Value) -> String {
    const LONGEST: usize = 300;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        text
    } else {
        text.chars().take(LONGEST).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_differs() {
        let then = json!({ "settings": { "seed": 1, "frame_rate": 23.976 }, "files": ["a", "b"] });
        assert!(differences(&then, &then).is_empty());
        let now =
            json!({ "settings": { "seed": 2, "frame_rate": 23.976 }, "files": ["a", "c"], "device": "Cpu" });
        assert_eq!(
            differences(&then, &now),
            ["seed was 1, is 2", "files.2 was \"b\", is \"c\"", "device was null, is \"Cpu\""]
        );
    }

    #[test]
    fn a_file_that_changed_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let time = fs::metadata(folder.path()).unwrap().modified().unwrap();
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
            file(&path)
        };
        let first = write("one");
        assert_eq!(write("one"), first);
        assert_ne!(write("two"), first);
        fs::remove_file(&path).unwrap();
        assert!(file(&path).to_string().contains("not found"));
    }
}
