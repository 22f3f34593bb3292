//! What a run has done so far, on disk, so that nothing of it is lost: the folder `.ltx-run-<output>` beside the output.
//!
//! `run.json` says whose it is (`identity.rs`); the encoded prompts, the finished windows, the state between two steps
//! and the final latents stand in files of their own (`state.rs`), each whole or not there. When to save what is decided
//! here; what a run is made of is not known here.

mod identity;
mod state;

use std::cell::{Cell, RefCell};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::conditioning::Text;
use super::latent_file::LatentFile;
use crate::error::{Error, Result};
use crate::media::Output;
use crate::progress::{Event, Progress};

use identity::{differences, hex};
pub(super) use state::{Film, Place};

const PREFIX: &str = ".ltx-run-";
const RUN: &str = "run.json";
const TEXT: &str = "text.safetensors";
const FILM: &str = "windows.safetensors";
const PLACE: &str = "state.safetensors";
const LATENTS: &str = "latents.npz";
/// What a run has done, the last first.
const WORK: [&str; 4] = [LATENTS, PLACE, FILM, TEXT];

/// A state is saved after a step when all since the last one took this many times as long as saving it: at most one
/// percent of the run goes into it.
const RHYTHM: u32 = 100;

/// The folder of one run, locked while this lives. What is saved stays when it is dropped; [`SavedRun::remove`] is for
/// when the output is in place.
#[derive(Debug)]
pub struct SavedRun {
    folder: PathBuf,
    _lock: Option<File>,
    output: PathBuf,
    /// What an interrupted run left here.
    found: Option<Found>,
    /// Whether it left something that cannot be read.
    damaged: bool,
    /// What makes files this run's.
    id: RefCell<String>,
    /// What `run.json` is to say, until there is something to save.
    pending: RefCell<Option<Value>>,
    /// Text that is not saved yet, so as not to take the place of what an interrupted run left.
    text: RefCell<Option<Vec<Text>>>,
    rhythm: RefCell<Rhythm>,
    complained: Cell<bool>,
}

/// An interrupted run.
#[derive(Clone, Debug)]
struct Found {
    id: String,
    identity: Value,
    note: Value,
}

#[derive(Debug)]
struct Rhythm {
    /// The last save, and how long it took.
    last: Option<(Instant, Duration)>,
    /// The last step, if that is not saved.
    unsaved: Option<Place>,
}

impl SavedRun {
    /// Where what the run of an output has done is kept.
    pub fn folder_of(output: &Path) -> PathBuf {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        output.with_file_name(format!("{PREFIX}{name}"))
    }

    /// The folder for a run of `output`, made if it is not there. Refused while another run of that output is at work.
    pub fn create(output: &Path) -> Result<Self> {
        let folder = Self::folder_of(output);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                let problem = format!("cannot be made: {error}");
                Err(Error::file(&folder, "", problem, "choose another place for the output"))
            }
            _ => Self::locked(&folder, output),
        }
    }

    /// The folder of a run, which must be there.
    pub fn open(folder: &Path) -> Result<Self> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_prefix(PREFIX).filter(|_| folder.is_dir()) {
            Some(output) => Self::locked(folder, &folder.with_file_name(output)),
            None => Err(Error::request(
                format!("{} is not the folder of an interrupted run", folder.display()),
                format!("give the output that the run was to write, or its folder: {PREFIX}…"),
            )),
        }
    }

    fn locked(folder: &Path, output: &Path) -> Result<Self> {
        let unreadable = |error: std::io::Error| {
            Error::file(folder, "", format!("cannot be opened: {error}"), "remove it, or make it readable")
        };
        if !fs::metadata(folder).map_err(unreadable)?.is_dir() {
            return Err(Error::file(folder, "", "is not a folder", "move it away"));
        }
        let lock = match File::open(folder) {
            Err(_) => None, // Where folders cannot be opened there are no locks.
            Ok(lock) => match lock.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::file(
                        folder,
                        "",
                        "another run is at work on this output",
                        "wait for it, or choose another --output",
                    ));
                }
                Err(TryLockError::Error(_)) => None,
                Ok(()) => Some(lock),
            },
        };
        let path = folder.join(RUN);
        let found = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable(error)),
            Ok(bytes) => Some(Found::parse(&bytes)),
        };
        let (found, damaged) = (found.clone().flatten(), found.is_some_and(|found| found.is_none()));
        Ok(Self {
            folder: folder.into(),
            output: output.into(),
            _lock: lock,
            id: RefCell::new(found.as_ref().map(|found| found.id.clone()).unwrap_or_default()),
            found,
            damaged,
            pending: RefCell::default(),
            text: RefCell::default(),
            rhythm: RefCell::new(Rhythm { last: None, unsaved: None }),
            complained: Cell::new(false),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// What it is the run of.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The final latents, if the run has come so far: a [`LatentFile`].
    pub fn latents_path(&self) -> Option<PathBuf> {
        Some(self.folder.join(LATENTS)).filter(|path| path.is_file())
    }

    /// What the caller of the interrupted run had it note: [`Plan::save_in`](super::Plan::save_in). `None` if there was no run.
    pub fn note(&self) -> Option<&Value> {
        self.found.as_ref().map(|found| &found.note)
    }

    /// The settings of the interrupted run.
    pub fn settings(&self) -> Option<&Value> {
        self.found.as_ref().and_then(|found| found.identity.get("settings"))
    }

    /// How far a run has come, in words; `None` if there is nothing to go on with.
    pub fn progress(&self) -> Option<String> {
        let found = WORK.into_iter().find(|name| self.folder.join(name).is_file())?;
        Some(match found {
            LATENTS => "its latents are ready to be decoded".into(),
            PLACE => self.place_words().unwrap_or_else(|| "damaged".into()),
            FILM => "some of its windows are done".into(),
            _ => "its prompt is encoded".into(),
        })
    }

    /// Removes what was saved: the output is in place.
    pub fn remove(&self) {
        // What cannot be removed does no harm: it is this output's, and goes with the next run of it.
        self.remove_all();
    }

    /// Whether an interrupted run left something here.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_none() && !self.damaged
    }

    /// The saved run is to be gone on with by a run of this identity. Whether its prompts are `encoded` already, by a text
    /// encoder that is of no more use.
    pub(super) fn resume(&self, identity: Value, encoded: bool) -> Result<()> {
        if self.damaged {
            let remedy = "leave out --resume to start over";
            let problem = "is damaged: it does not say which run was saved";
            return Err(Error::file(self.folder.join(RUN), "", problem, remedy));
        }
        let Some(found) = &self.found else { return Ok(()) };
        let mut identity = identity;
        if encoded {
            identity["text_encoder"] = found.identity["text_encoder"].clone();
        }
        let different = differences(&found.identity, &identity);
        let Some(first) = different.first() else { return Ok(()) };
        let more = match different.len() - 1 {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Err(Error::request(
            format!("the interrupted run in {} is another one: {first}{more}", self.folder.display()),
            "repeat its command with --resume, or leave out --resume to start over",
        ))
    }

    /// A run of this identity begins anew here. What an interrupted one left is replaced when there is something to
    /// replace it with.
    pub(super) fn begin(&self, identity: Value, note: Value) {
        *self.pending.borrow_mut() =
            Some(json!({ "run": digest(&identity), "note": note, "identity": identity }));
    }

    /// Whether nothing of this run is saved yet.
    fn is_pending(&self) -> bool {
        self.pending.borrow().is_some()
    }

    pub(super) fn texts(&self) -> Result<Option<Vec<Text>>> {
        if self.is_pending() { Ok(None) } else { self.read_texts() }
    }

    pub(super) fn film(&self) -> Result<Option<Film>> {
        if self.is_pending() { Ok(None) } else { self.read_film() }
    }

    pub(super) fn place(&self) -> Result<Option<Place>> {
        if self.is_pending() { Ok(None) } else { self.read_place() }
    }

    /// The final latents.
    pub(super) fn latents(&self) -> Result<Option<LatentFile>> {
        let path = self.latents_path().filter(|_| !self.is_pending());
        path.map(|path| LatentFile::open(&path)).transpose()
    }

    /// Keeps encoded prompts.
    pub(super) fn keep_texts(&self, texts: &[Text], progress: &mut dyn Progress) {
        if self.is_pending() && self.progress().is_some() {
            *self.text.borrow_mut() = Some(texts.to_vec());
            return;
        }
        self.attempt(progress, || self.write_texts(texts));
    }

    /// Keeps finished windows; the state within them is of no more use.
    pub(super) fn keep_film(&self, film: &Film, progress: &mut dyn Progress) {
        self.rhythm.borrow_mut().unsaved = None;
        self.attempt(progress, || self.write_film(film));
    }

    /// Keeps the state between two stages.
    pub(super) fn keep_place(&self, place: &Place, progress: &mut dyn Progress) {
        self.rhythm.borrow_mut().unsaved = None;
        self.attempt(progress, || self.write_place(place));
    }

    /// Keeps the state after a step, unless saving would slow the run down; then [`interrupted`](Self::interrupted) does.
    pub(super) fn keep_step(&self, place: Place, progress: &mut dyn Progress) {
        let last = self.rhythm.borrow().last;
        if last.is_some_and(|(at, took)| at.elapsed() < took * RHYTHM) {
            self.rhythm.borrow_mut().unsaved = Some(place);
            return;
        }
        let began = Instant::now();
        self.keep_place(&place, progress);
        self.rhythm.borrow_mut().last = Some((Instant::now(), began.elapsed()));
    }

    /// Keeps the last step: the run ends here.
    pub(super) fn interrupted(&self, progress: &mut dyn Progress) {
        let unsaved = self.rhythm.borrow_mut().unsaved.take();
        if let Some(place) = unsaved {
            self.keep_place(&place, progress);
        }
    }

    /// Keeps the final latents.
    pub(super) fn keep_latents(&self, latents: &LatentFile, progress: &mut dyn Progress) {
        self.attempt(progress, || latents.save(&self.folder.join(LATENTS)));
    }

    /// Saves something. That the disk is full is no reason to lose the run itself: it goes on, and says so once.
    fn attempt(&self, progress: &mut dyn Progress, save: impl FnOnce() -> Result<()>) {
        let Err(error) = self.start().and_then(|()| save()) else { return };
        if !self.complained.replace(true) {
            let note =
                format!("what is done cannot be saved, and is lost if the run is interrupted: {error}");
            // Whether to stop is asked at every step.
            let _ = progress.event(Event::Note(note));
        }
    }

    /// Makes the folder this run's, if it is not yet.
    fn start(&self) -> Result<()> {
        if let Some(run) = &*self.pending.borrow() {
            let mut output = Output::create(&self.folder.join(RUN))?;
            let file = output.file();
            let written = file.write_all(run.to_string().as_bytes()).and_then(|()| file.sync_all());
            written.map_err(|error| output.error(error))?;
            // Nothing of the run before may stand beside the name of this one.
            self.clear();
            output.finish()?;
            *self.id.borrow_mut() = run["run"].as_str().unwrap_or_default().into();
        }
        *self.pending.borrow_mut() = None;
        let texts = self.text.take();
        texts.map_or(Ok(()), |texts| self.write_texts(&texts))
    }

    fn clear(&self) {
        for name in WORK {
            let _ = fs::remove_file(self.folder.join(name));
        }
    }

    fn remove_all(&self) {
        self.clear();
        let _ = fs::remove_file(self.folder.join(RUN));
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| crate::media::is_unfinished(&entry.file_name())) {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

impl Drop for SavedRun {
    fn drop(&mut self) {
        if self.progress().is_none() {
            self.remove_all();
        }
    }
}

impl Found {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut run: Value = serde_json::from_slice(bytes).ok()?;
        let identity = run.get_mut("identity")?.take();
        let id = run.get("run")?.as_str()?.to_string();
        Some(Self { id, identity, note: run.get("note")?.clone() })
    }
}

fn digest(identity: &Value) -> String {
    hex(&Sha256::digest(identity.to_string().as_bytes()))
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut output = Output::create(path)?;
    output.file().write_all(bytes).map_err(|error| output.error(error))?;
    Ok(output.finish()?)
}
