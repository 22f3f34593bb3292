//! The toy: the small model that is part of the program. Its files are unpacked once into the user's cache, and from
//! there on it is a model like any other; what it is asked for by default, and what it knows of words, is here.
//!
//! `build.rs` puts the files into the program, or none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ltx::pipeline::{Recipe, Request};
use ltx::{Error, Result};

// FINGERPRINT: &str, FILES: &[(name, bytes)]
include!(concat!(env!("OUT_DIR"), "/toy.rs"));

/// What `--model` calls it.
pub const NAME: &str = "toy";
/// Width and frames of its clips, unless others are asked for: it was trained for small ones.
pub const SIZE: (usize, usize) = (256, 25);
const HEIGHT: usize = 192;
/// What guidance leads away from: words of its training.
const NEGATIVE_PROMPT: &str = "wrong colours, flicker, artifacts, bad sound, silence";
/// Words that a note lists.
const MOST_WORDS: usize = 5;

/// Its files on the disk.
#[derive(Clone, Debug)]
pub struct Toy {
    pub model: PathBuf,
    pub gemma: PathBuf,
    pub spatial_upsampler: PathBuf,
    /// The words of its training.
    words: PathBuf,
}

/// Whether this program has it.
pub fn is_built_in() -> bool {
    !FILES.is_empty()
}

/// Its folder, after writing there what is missing or differs: in the cache, or where that cannot be written to, among
/// the system's temporary files.
pub fn unpack() -> Result<PathBuf> {
    let name = format!("toy-{FINGERPRINT}");
    let write = |folder: &Path| FILES.iter().try_for_each(|(name, bytes)| keep(&folder.join(name), bytes));
    let cached = crate::cache::folder().map(|parent| parent.join(&name));
    if let Some(folder) = cached.filter(|folder| write(folder).is_ok()) {
        return Ok(folder);
    }
    let folder = std::env::temp_dir().join(&name);
    write(&folder).map_err(|error| {
        Error::file(
            &folder,
            "",
            format!("the built-in model cannot be unpacked: {error}"),
            "set LTX_CACHE_DIR to a folder that you may write to, with 24 MiB of room",
        )
    })?;
    Ok(folder)
}

/// Makes sure that a file has these bytes.
fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    crate::cache::write(path, bytes)
}

impl Toy {
    /// The unpacked one.
    pub fn open() -> Result<Self> {
        let folder = unpack()?;
        Ok(Self {
            model: folder.join("toy-2.3.safetensors"),
            gemma: folder.join("gemma"),
            spatial_upsampler: folder.join("toy-2.3-spatial-x2.safetensors"),
            words: folder.join("words.json"),
        })
    }

    /// What is said of a clip that it is to make, a line each.
    pub fn notes(&self, request: &Request) -> Vec<String> {
        let mut notes = vec![
            "this is the built-in toy model; `ltx download 2.3-distilled` gets the real one, for --model 2.3-distilled"
                .to_string(),
        ];
        let encoded = request.embedding.is_none() && !request.dummy_text && !request.placeholder;
        let prompt = encoded.then(|| request.prompts().join(" "));
        let known = fs::read(&self.words).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let known: Vec<String> = known.unwrap_or_default();
        if let Some(words) = listed(&unknown(&prompt.unwrap_or_default(), &known)) {
            notes.push(format!("the toy knows shapes, colours and motions, and has never seen {words}"));
        }
        notes
    }
}

/// The words of a prompt that are not among the known ones, which are in small letters.
fn unknown(prompt: &str, known: &[String]) -> Vec<String> {
    let mut unknown = Vec::new();
    for word in prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        if !known.contains(&word) && !unknown.contains(&word) {
            unknown.push(word);
        }
    }
    unknown
}

/// `a`, `a or b`, `a, b or c`, and how many more.
fn listed(words: &[String]) -> Option<String> {
    let (shown, rest) = words.split_at(words.len().min(MOST_WORDS));
    let quoted: Vec<String> = shown.iter().map(|word| format!("`{word}`")).collect();
    let (last, others) = quoted.split_last()?;
    Some(match (others, rest.len()) {
        ([], 0) => last.clone(),
        (others, 0) => format!("{} or {last}", others.join(", ")),
        (_, more) => format!("{} and {more} more words", quoted.join(", ")),
    })
}

/// Decides for the toy what a request leaves open. It was made for the `distilled` recipe; guided in one stage, it wants
/// the one kind of guidance that it was trained for.
pub fn suit(request: &mut Request) {
    request.height.get_or_insert(HEIGHT);
    if *request.recipe.get_or_insert(Recipe::Distilled) != Recipe::OneStage {
        return;
    }
    request.negative_prompt.get_or_insert_with(|| NEGATIVE_PROMPT.into());
    for guidance in [&mut request.video_guidance, &mut request.audio_guidance] {
        guidance.cfg.get_or_insert(3.0);
        guidance.stg.get_or_insert(0.0);
        guidance.rescale.get_or_insert(0.0);
        guidance.modality.get_or_insert(1.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_when_it_differs_and_left_alone_when_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in/here.json");
        for bytes in [&b"first"[..], b"second"] {
            keep(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        keep(&path, b"second").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        assert_eq!(fs::read_dir(folder.path().join("in")).unwrap().count(), 1);
        assert!(keep(&path.join("below"), b"a file is no folder").is_err());
    }

    #[test]
    fn words_of_the_training_are_known_in_any_case() {
        let known = ["a", "red", "five", "pointed", "star"].map(String::from);
        assert_eq!(unknown("A Red five-pointed STAR.", &known), [""; 0]);
        assert_eq!(unknown("a Žába, a žába & a red star", &known), ["žába"]);
    }

    #[test]
    fn words_are_listed_as_people_do() {
        let said = |words: &[&str]| listed(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(said(&[]), None);
        assert_eq!(said(&["cat"]).unwrap(), "`cat`");
        assert_eq!(said(&["cat", "dog", "eel"]).unwrap(), "`cat`, `dog` or `eel`");
        assert!(said(&["a", "b", "c", "d", "e", "f", "g"]).unwrap().ends_with("`e` and 2 more words"));
    }
}
