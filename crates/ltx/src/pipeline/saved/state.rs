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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::noise::Noise;
    use crate::progress::Event;

    fn draw(shape: &[i32], seed: u64) -> Array {
        Noise::new(seed).normal(shape).unwrap()
    }

    fn place() -> Place {
        let both =
            |seed| Both { video: Some(draw(&[1, 6, 4], seed)), audio: Some(draw(&[1, 5, 3], seed + 1)) };
        Place {
            window: 2,
            stage: 1,
            from: Some(Latents { video: draw(&[1, 4, 1, 2, 3], 1), audio: Some(draw(&[1, 1, 5, 3], 2)) }),
            sound: Some(draw(&[1, 1, 5, 3], 3)),
            noise: u64::MAX - 1,
            moment: Some(Moment {
                steps: 3,
                latents: both(4),
                answers: Both { video: Some(draw(&[1, 6, 4], 6)), audio: None },
                velocities: both(7),
                noise: [1, u64::MAX, 3, 4],
            }),
            words: "refine: 3 of 8 steps".into(),
        }
    }

    fn run(folder: &std::path::Path, seed: u64) -> SavedRun {
        let run = SavedRun::create(&folder.join("clip.mp4")).unwrap();
        run.begin(json!({ "seed": seed, "rate": 23.976 }), json!({ "prompt": "naïve" }));
        run
    }

    fn silent() -> impl FnMut(Event) -> ControlFlow<()> {
        |event| panic!("{event:?}")
    }

    /// All that a place is, in a form that can be compared.
    fn all(place: &Place) -> (String, Vec<Vec<f32>>) {
        let moment = place.moment.as_ref().unwrap();
        let from = place.from.as_ref().unwrap();
        let arrays = [Some(&from.video), from.audio.as_ref(), place.sound.as_ref()];
        let memory = [&moment.latents, &moment.answers, &moment.velocities];
        let arrays =
            arrays.into_iter().chain(memory.into_iter().flat_map(|m| [m.video.as_ref(), m.audio.as_ref()]));
        let arrays = arrays.map(|array| array.map_or(Vec::new(), |array| array.to_f32().unwrap())).collect();
        let Place { window, stage, noise, words, .. } = place;
        (format!("{window} {stage} {noise} {words} {} {:?}", moment.steps, moment.noise), arrays)
    }

    #[test]
    fn a_place_comes_back_to_the_last_bit_and_only_to_its_run() {
        let folder = tempfile::tempdir().unwrap();
        let ours = run(folder.path(), 1);
        ours.keep_place(&place(), &mut silent());
        assert_eq!(ours.progress().unwrap(), "refine: 3 of 8 steps");
        let text = Text {
            positive: Contexts { video: draw(&[1, 7, 4], 1).astype(mlx::Dtype::Bf16).unwrap(), audio: None },
            negative: Some(Contexts { video: draw(&[1, 9, 4], 2), audio: Some(draw(&[1, 9, 3], 3)) }),
        };
        ours.keep_texts(std::slice::from_ref(&text), &mut silent());
        drop(ours);

        let later = SavedRun::create(&folder.path().join("clip.mp4")).unwrap();
        assert_eq!(later.note().unwrap()["prompt"], "naïve");
        later.resume(json!({ "seed": 1, "rate": 23.976 }), false).unwrap();
        let other = later.resume(json!({ "seed": 2, "rate": 23.976 }), false).unwrap_err().to_string();
        assert!(other.contains("seed was 1, is 2"), "{other}");
        assert_eq!(all(&later.place().unwrap().unwrap()), all(&place()));
        let texts = later.texts().unwrap().unwrap();
        assert_eq!(texts[0].positive.video.dtype(), mlx::Dtype::Bf16);
        let values = |text: &Text| text.negative.as_ref().unwrap().audio.as_ref().unwrap().to_f32().unwrap();
        assert_eq!(values(&texts[0]), values(&text));
        assert!(later.film().unwrap().is_none() && later.latents().unwrap().is_none());

        // Another run does not believe it, and replaces it when it has something to save.
        let state = std::fs::read(later.path().join(PLACE)).unwrap();
        drop(later);
        let other = run(folder.path(), 2);
        assert!(other.place().unwrap().is_none() && other.texts().unwrap().is_none());
        other.keep_texts(&[text], &mut silent());
        assert_eq!(std::fs::read(other.path().join(PLACE)).unwrap(), state);
        other.keep_film(&Film { windows: 1, ..Film::default() }, &mut silent());
        assert!(!other.path().join(PLACE).exists());
        assert!(other.texts().unwrap().is_some() && other.film().unwrap().is_some());
        std::fs::write(other.path().join(PLACE), state).unwrap();
        assert!(other.place().unwrap_err().to_string().contains("another run"));
        other.remove();
        assert!(!other.path().exists());
    }

    #[test]
    fn what_is_damaged_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), 1);
        run.keep_place(&place(), &mut silent());
        let path = run.path().join(PLACE);
        let whole = std::fs::read(&path).unwrap();
        // Every bit counts; a few hundred are tried.
        for at in (0..whole.len()).step_by(whole.len() / 300) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, flipped).unwrap();
            assert!(run.place().is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(run.place().is_err(), "{at} bytes");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(run.place().unwrap().is_some());
    }

    #[test]
    fn steps_are_saved_when_it_costs_little_and_when_the_run_ends() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), 1);
        let step = |steps: usize| Place { words: steps.to_string(), ..place() };
        run.keep_step(step(1), &mut silent());
        assert_eq!(run.progress().unwrap(), "1");
        run.rhythm.borrow_mut().last = Some((Instant::now(), Duration::from_secs(3600)));
        run.keep_step(step(2), &mut silent());
        assert_eq!(run.progress().unwrap(), "1");
        run.interrupted(&mut silent());
        assert_eq!(run.progress().unwrap(), "2");
        run.rhythm.borrow_mut().last = Some((Instant::now(), Duration::ZERO));
        run.keep_step(step(3), &mut silent());
        assert_eq!(run.progress().unwrap(), "3");
    }

    #[test]
    fn that_nothing_can_be_saved_is_said_once_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), 1);
        std::fs::remove_dir(run.path()).unwrap();
        let mut notes = Vec::new();
        for _ in 0..3 {
            run.keep_place(&place(), &mut |event| {
                notes.push(format!("{event:?}"));
                ControlFlow::Continue(())
            });
        }
        assert!(notes.len() == 1 && notes[0].contains("cannot be saved"), "{notes:?}");
    }

    #[test]
    fn a_folder_has_one_run_at_a_time_and_an_empty_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("clip.mp4");
        let first = SavedRun::create(&output).unwrap();
        assert!(SavedRun::create(&output).unwrap_err().to_string().contains("at work"));
        let path = first.path().to_path_buf();
        assert_eq!(path, folder.path().join(".ltx-run-clip.mp4"));
        drop(first);
        assert!(!path.exists());
        assert!(SavedRun::open(&path).is_err() && SavedRun::open(folder.path()).is_err());
    }
}
