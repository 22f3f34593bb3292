//! `ltx download`

use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stderr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hub::catalog::{ENTRIES, Entry, is_model_file};
use hub::{Event, Item, Plan, Progress, Reference, size};
use ltx::{Error, Result};
use serde_json::json;

use crate::args::Download;
use crate::models;
use crate::terminal::{say, sayln, seconds};

pub fn run(arguments: &Download) -> ExitCode {
    match if arguments.list { list(arguments) } else { download(arguments) } {
        Err(Error::Cancelled) => {
            sayln!("interrupted: what has arrived is kept, and the same command goes on from there");
            ExitCode::from(130)
        }
        result => crate::finish(result),
    }
}

/// The names, and what is here.
fn list(arguments: &Download) -> Result<()> {
    let cache = models::cache();
    let mut rows = Vec::new();
    for entry in ENTRIES {
        let path = entry.path(&cache);
        let begun = entry.file.filter(|_| path.is_none()).and_then(|file| cache.begun(entry.repo, file));
        let state = match (&path, begun) {
            (Some(_), _) => "here".to_string(),
            (None, Some((done, of))) => format!("{} of {}", size(done), size(of)),
            (None, None) => String::new(),
        };
        rows.push((entry, path, state));
    }
    if arguments.json {
        let rows = rows.iter().map(|(entry, path, state)| {
            json!({
                "name": entry.name, "about": entry.about, "repo": entry.repo, "file": entry.file, "bytes": entry.bytes,
                "needs": entry.with, "caution": entry.caution, "state": state, "path": path,
            })
        });
        println!("{:#}", serde_json::Value::Array(rows.collect()));
        return Ok(());
    }
    for (entry, _, state) in rows {
        let caution = entry.caution.map(|caution| format!("; {caution}")).unwrap_or_default();
        println!("{:24} {:>8}  {:8}  {}{caution}", entry.name, size(entry.bytes), state, entry.about);
    }
    println!("\nkept in {}", cache.root().display());
    Ok(())
}

/// What is to be fetched, each thing once: names with what they need, and things on the hub.
fn wanted(arguments: &Download) -> Result<Vec<(String, Reference)>> {
    let mut wanted: Vec<(String, Reference)> = Vec::new();
    let mut add = |name: &str, reference: Reference| {
        if !wanted.iter().any(|(_, known)| *known == reference) {
            wanted.push((name.into(), reference));
        }
    };
    for name in &arguments.names {
        // A name on the hub is that file and nothing beside it.
        match Entry::find(name).filter(|_| !name.contains('/')) {
            Some(entry) => {
                add(entry.name, entry.reference().map_err(models::error)?);
                let others =
                    entry.with.iter().filter(|_| !arguments.only).filter_map(|name| Entry::find(name));
                for other in others {
                    add(other.name, other.reference().map_err(models::error)?);
                }
                if let Some(caution) = entry.caution.filter(|_| !arguments.quiet) {
                    sayln!("note: {name}: {caution}");
                }
            }
            None if name.contains('/') => add(name, Reference::parse(name).map_err(models::error)?),
            None => return Err(models::unknown(name)),
        }
    }
    Ok(wanted)
}

fn download(arguments: &Download) -> Result<()> {
    let wanted = wanted(arguments)?;
    let settings = models::settings(arguments.token.as_deref())?;
    let mut bar = Bar::new(arguments.quiet);
    let references: Vec<Reference> = wanted.iter().map(|(_, reference)| reference.clone()).collect();
    let settings = hub::Settings { connections: arguments.connections, ..settings };
    let plan =
        Plan::new(&settings, &references, |_, name| is_model_file(name), &mut bar).map_err(models::error)?;
    bar.clear();
    if arguments.dry_run || !arguments.quiet {
        let report = report(&plan);
        if arguments.dry_run && !arguments.json {
            print!("{report}")
        } else if !arguments.quiet {
            say!("{report}")
        }
    }
    let mut paths = Vec::new();
    if !arguments.dry_run {
        bar.items = plan.items.clone();
        paths = plan.run(&mut bar).map_err(models::error)?;
        bar.clear();
        if let Some(folder) = &arguments.output {
            paths = plan
                .items
                .iter()
                .zip(&paths)
                .map(|(item, path)| place(path, folder, &item.name))
                .collect::<Result<_>>()?;
        }
    }
    if arguments.json {
        let files = plan.items.iter().enumerate().map(|(index, item)| {
            json!({
                "repo": item.reference.repo, "file": item.name, "bytes": item.bytes, "was_here": item.here,
                "path": paths.get(index),
            })
        });
        println!("{:#}", serde_json::Value::Array(files.collect()));
    } else if !arguments.dry_run {
        for (name, reference) in &wanted {
            let mut theirs = plan.items.iter().zip(&paths).filter(|(item, _)| item.reference == *reference);
            let path = match (&reference.file, &arguments.output) {
                (None, Some(folder)) => Some(folder.clone()),
                (None, None) => {
                    models::cache().find(reference).or_else(|| Some(theirs.next()?.1.parent()?.into()))
                }
                (Some(_), _) => theirs.next().map(|(_, path)| path.clone()),
            };
            println!("{name}: {}", path.unwrap_or_default().display());
        }
    }
    Ok(())
}

fn report(plan: &Plan) -> String {
    let width = plan.items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
    let mut report = String::new();
    for item in &plan.items {
        let state = match item.here {
            here if here == item.bytes => "here".to_string(),
            0 => "to fetch".to_string(),
            here => format!("to fetch, {} are here", size(here)),
        };
        report += &format!("{:width$}  {:>8}  {state}\n", item.name, size(item.bytes));
    }
    let room = plan.room().map(|room| format!(", {} free", size(room))).unwrap_or_default();
    report + &format!("{} to come{room}\n", size(plan.missing()))
}

/// The file in a folder of the user's: another name of the cached one where the disk can do that, else a copy.
fn place(cached: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let failed = |error: std::io::Error| {
        Error::file(&path, "", error.to_string(), "name a folder that can be written, on a disk with room")
    };
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).map_err(failed)?;
    let blob = std::fs::canonicalize(cached).map_err(failed)?;
    let beside = parent.join(format!(".ltx-{}.part", std::process::id()));
    let _ = std::fs::remove_file(&beside);
    let placed = std::fs::hard_link(&blob, &beside).or_else(|_| std::fs::copy(&blob, &beside).map(|_| ()));
    if let Err(error) = placed.and_then(|()| std::fs::rename(&beside, &path)) {
        let _ = std::fs::remove_file(&beside);
        return Err(failed(error));
    }
    // Two names of one file already: renaming one to the other leaves both.
    let _ = std::fs::remove_file(&beside);
    Ok(path)
}

/// Bytes, rate and remaining time: one line on a terminal, now and then a line when piped. Ctrl-C stops.
struct Bar {
    interactive: bool,
    quiet: bool,
    stop: Arc<AtomicBool>,
    items: Vec<Item>,
    current: usize,
    /// Bytes of the current file at times of the last seconds.
    samples: VecDeque<(Instant, u64)>,
    said: Option<Instant>,
    waiting: bool,
}

impl Bar {
    fn new(quiet: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        // Fails only when a handler is already there, in which case Ctrl-C ends the process, which loses little.
        let _ = ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        let interactive = stderr().is_terminal();
        Self {
            interactive,
            quiet,
            stop,
            items: Vec::new(),
            current: 0,
            samples: VecDeque::new(),
            said: None,
            waiting: false,
        }
    }

    fn clear(&self) {
        if self.interactive && !self.quiet {
            say!("\r\x1b[K");
        }
    }

    /// A line that passes (on a terminal), or one in a few seconds (piped).
    fn say(&mut self, line: &str) {
        let pause = Duration::from_millis(if self.interactive { 100 } else { 5000 });
        if self.quiet || self.said.is_some_and(|last| last.elapsed() < pause) {
            return;
        }
        self.said = Some(Instant::now());
        if self.interactive {
            say!("\r\x1b[K{line}");
            let _ = stderr().flush();
        } else {
            sayln!("{line}");
        }
    }

    fn bytes(&mut self, done: u64, of: u64) {
        let now = Instant::now();
        if self.samples.back().is_some_and(|(_, last)| *last > done) {
            self.samples.clear();
        }
        self.samples.push_back((now, done));
        while self
            .samples
            .front()
            .is_some_and(|(then, _)| now.duration_since(*then) > Duration::from_secs(10))
        {
            self.samples.pop_front();
        }
        let Some((then, first)) = self.samples.front() else { return };
        let rate = done.saturating_sub(*first) as f64 / now.duration_since(*then).as_secs_f64().max(0.1);
        let later: u64 = self.items.iter().skip(self.current + 1).map(|item| item.bytes - item.here).sum();
        let left = (rate > 0.0)
            .then(|| Duration::try_from_secs_f64((of.saturating_sub(done) + later) as f64 / rate).ok())
            .flatten();
        let left = left.map(|left| format!(", {} left", seconds(left))).unwrap_or_default();
        let line = format!("{}: {} of {}, {}/s{left}", self.name(), size(done), size(of), size(rate as u64));
        self.say(&line);
    }

    fn name(&self) -> String {
        self.items.get(self.current).map(|item| item.name.clone()).unwrap_or_default()
    }
}

impl Progress for Bar {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Asking(name) if self.interactive => self.say(&format!("asking for {name} …")),
            Event::Asking(_) => {}
            Event::File(index) => {
                self.current = index;
                self.samples.clear();
                (self.said, self.waiting) = (None, false);
            }
            Event::Bytes { done, of } => self.bytes(done, of),
            Event::Waiting if !self.waiting => {
                self.waiting = true;
                let line = format!("{}: another process downloads it; waiting", self.name());
                self.said = None;
                self.say(&line);
            }
            Event::Waiting => {}
            Event::Checking { done, of } => {
                let line = format!("{}: checking {} of {}", self.name(), size(done), size(of));
                self.say(&line);
            }
            Event::Note(note) if !self.quiet => {
                self.clear();
                sayln!("note: {}: {note}", self.name());
            }
            Event::Note(_) => {}
        }
        if self.stop.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
