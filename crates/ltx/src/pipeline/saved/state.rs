//! The files of a saved run: tensors with what they mean, which run they are of, and a checksum over all of it.

use std::collections::HashMap;
use std::path::PathBuf;

use mlx::Array;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::identity::hex;
use super::{FILM, PLACE, SavedRun, TEXT, write_whole};
use crate::checkpoint::File;
use crate::diffusion::Both;
use crate::diffusion::denoise::Moment;
use crate::error::{Error, Result};
use crate::pipeline::Latents;
use crate::pipeline::conditioning::Text;
use crate::text::{Contexts, stored};

/// A run between two windows: everything that the next one needs to go on.
#[derive(Clone, Debug, Default)]
pub struct Film {
    /// The clip so far, at full size.
    pub latents: Option<Latents>,
    /// How many windows it has.
    pub windows: usize,
    /// How much of the seed's stream the first window had drawn: the decoder draws the rest.
    pub noise: Option<u64>,
}

/// Where a window stands: at the beginning of a stage, or between two of its steps.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Windows that are done.
    pub window: usize,
    /// Stages that are done.
    pub stage: usize,
    /// The latents that the last stage made; those that this stage began from, where it is under way.
    pub from: Option<Latents>,
    /// The sound of the first stage, where the clip is to have that: (1, channels, frames, bins)
    pub sound: Option<Array>,
    /// How much of the seed's stream was drawn.
    pub noise: u64,
    /// Where the stage stands; `None` before its first step, and before its latents are upsampled.
    pub moment: Option<Moment>,
    /// The same for a person.
    pub words: String,
}

/// Tensors by name, with what they mean.
struct Saved {
    file: File,
    facts: Value,
}

impl Saved {
    fn array(&self, name: &str) -> Result<Option<Array>> {
        self.file.info(name).map(|_| self.file.array(name)).transpose()
    }

    fn latents(&self, name: &str) -> Result<Option<Latents>> {
        let Some(video) = self.array(&format!("{name}.video"))? else { return Ok(None) };
        Ok(Some(Latents { video, audio: self.array(&format!("{name}.audio"))? }))
    }

    fn both(&self, name: &str) -> Result<Both<Array>> {
        Ok(Both {
            video: self.array(&format!("{name}.video"))?,
            audio: self.array(&format!("{name}.audio"))?,
        })
    }

    fn contexts(&self, name: &str) -> Result<Option<Contexts>> {
        Ok(self.latents(name)?.map(|Latents { video, audio }| Contexts { video, audio }))
    }

    fn number(&self, key: &str) -> Result<u64> {
        self.facts.get(key).and_then(Value::as_u64).ok_or_else(|| damaged(&self.file, key))
    }
}

fn damaged(file: &File, key: &str) -> Error {
    Error::file(file.path(), key, "is damaged", "it is made anew")
}

fn both<'a>(
    name: &str,
    video: Option<&'a Array>,
    audio: Option<&'a Array>,
) -> impl Iterator<Item = (String, &'a Array)> + use<'a> {
    let named =
        |modality: &str, array: Option<&'a Array>| array.map(|array| (format!("{name}.{modality}"), array));
    [named("video", video), named("audio", audio)].into_iter().flatten()
}

fn latents<'a>(
    name: &str,
    latents: Option<&'a Latents>,
) -> impl Iterator<Item = (String, &'a Array)> + use<'a> {
    both(name, latents.map(|latents| &latents.video), latents.and_then(|latents| latents.audio.as_ref()))
}

impl SavedRun {
    pub(super) fn write_texts(&self, texts: &[Text]) -> Result<()> {
        let mut tensors = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            for (name, contexts) in [("positive", Some(&text.positive)), ("negative", text.negative.as_ref())]
            {
                let audio = contexts.and_then(|contexts| contexts.audio.as_ref());
                let name = format!("{index}.{name}");
                tensors.extend(both(&name, contexts.map(|contexts| &contexts.video), audio));
            }
        }
        self.write(TEXT, &tensors, &json!({ "texts": texts.len() }))
    }

    pub(super) fn read_texts(&self) -> Result<Option<Vec<Text>>> {
        let Some(saved) = self.read(TEXT)? else { return Ok(None) };
        let text = |index: u64| {
            let positive = saved.contexts(&format!("{index}.positive"))?;
            let negative = saved.contexts(&format!("{index}.negative"))?;
            Ok(Text { positive: positive.ok_or_else(|| damaged(&saved.file, "positive"))?, negative })
        };
        (0..saved.number("texts")?).map(text).collect::<Result<_>>().map(Some)
    }

    pub(super) fn write_film(&self, film: &Film) -> Result<()> {
        let tensors: Vec<_> = latents("film", film.latents.as_ref()).collect();
        self.write(FILM, &tensors, &json!({ "windows": film.windows, "noise": film.noise }))
    }

    pub(super) fn read_film(&self) -> Result<Option<Film>> {
        let Some(saved) = self.read(FILM)? else { return Ok(None) };
        Ok(Some(Film {
            latents: saved.latents("film")?,
            windows: saved.number("windows")? as usize,
            noise: saved.facts.get("noise").and_then(Value::as_u64),
        }))
    }

    pub(super) fn write_place(&self, place: &Place) -> Result<()> {
        let mut tensors: Vec<_> = latents("from", place.from.as_ref()).collect();
        tensors.extend(place.sound.iter().map(|sound| ("sound".into(), sound)));
        let mut facts = json!({
            "window": place.window, "stage": place.stage, "noise": place.noise, "words": place.words,
        });
        if let Some(moment) = &place.moment {
            facts["steps"] = json!(moment.steps);
            facts["drawn"] = json!(moment.noise);
            for (name, memory) in
                [("latent", &moment.latents), ("answer", &moment.answers), ("velocity", &moment.velocities)]
            {
                tensors.extend(both(name, memory.video.as_ref(), memory.audio.as_ref()));
            }
        }
        self.write(PLACE, &tensors, &facts)
    }

    pub(super) fn read_place(&self) -> Result<Option<Place>> {
        let Some(saved) = self.read(PLACE)? else { return Ok(None) };
        let moment = match saved.facts.get("steps") {
            None => None,
            Some(_) => Some(Moment {
                steps: saved.number("steps")? as usize,
                latents: saved.both("latent")?,
                answers: saved.both("answer")?,
                velocities: saved.both("velocity")?,
                noise: serde_json::from_value(saved.facts.get("drawn").cloned().unwrap_or_default())
                    .map_err(|_| damaged(&saved.file, "drawn"))?,
            }),
        };
        Ok(Some(Place {
            window: saved.number("window")? as usize,
            stage: saved.number("stage")? as usize,
            from: saved.latents("from")?,
            sound: saved.array("sound")?,
            noise: saved.number("noise")?,
            moment,
            words: saved.facts.get("words").and_then(Value::as_str).unwrap_or_default().into(),
        }))
    }

    /// How far the window is, for a person.
    pub(super) fn place_words(&self) -> Option<String> {
        self.read_place().ok().flatten().map(|place| place.words)
    }

    /// Writes a file, whole or not at all.
    fn write(&self, name: &str, tensors: &[(String, &Array)], facts: &Value) -> Result<()> {
        let path = self.path().join(name);
        let stored = tensors.iter().map(|(name, array)| {
            let shape: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
            stored(array).map(|(dtype, bytes)| (name, shape, dtype, bytes))
        });
        let stored: Vec<_> = stored.collect::<mlx::Result<_>>()?;
        let failed = |error: safetensors::SafeTensorError| {
            Error::file(&path, "", format!("cannot be written: {error}"), "please report this")
        };
        let views = stored.iter().map(|(name, shape, dtype, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
        });
        let views: Vec<_> = views.collect::<std::result::Result<_, _>>().map_err(failed)?;
        let mut sorted: Vec<_> =
            stored.iter().map(|(name, .., bytes)| (name.as_str(), bytes.as_slice())).collect();
        sorted.sort();
        let facts = facts.to_string();
        let metadata = HashMap::from([
            ("run".to_string(), self.id.borrow().clone()),
            ("sha256".to_string(), checksum(&facts, &sorted)),
            ("facts".to_string(), facts),
        ]);
        write_whole(&path, &safetensors::serialize(views, Some(metadata)).map_err(failed)?)
    }

    /// A file, if it is there; an error unless it is whole and this run's.
    fn read(&self, name: &str) -> Result<Option<Saved>> {
        let path: PathBuf = self.path().join(name);
        if !path.exists() {
            return Ok(None);
        }
        let file = File::open(&path)?;
        let tensors: Vec<_> = file.tensors().map(|(name, info)| (name, file.bytes(info))).collect();
        let sorted: Vec<_> = tensors.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        let facts = file.metadata("facts").unwrap_or_default();
        if file.metadata("sha256") != Some(&checksum(facts, &sorted)) {
            return Err(damaged(&file, ""));
        }
        if file.metadata("run") != Some(self.id.borrow().as_str()) {
            return Err(Error::file(&path, "", "is of another run", "it is made anew"));
        }
        let facts = serde_json::from_str(facts).map_err(|_| damaged(&file, "facts"))?;
        Ok(Some(Saved { facts, file }))
    }
}

/// Over everything that a file says; `tensors` sorted by name.
fn checksum(facts: &str, tensors: &[(&str, &[u8])]) -> String {
    let mut digest = Sha256::new();
    digest.update(facts);
    for (name, bytes) in tensors {
        digest.update([0]);
        digest.update(name);
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    hex(&digest.finalize())
}
