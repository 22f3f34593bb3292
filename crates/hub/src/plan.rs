//! What to fetch, how large it is, what of it is here; and fetching it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::client::{Client, Failure, Metadata};
use crate::transfer::{check, fetch, gave_up, pause};
use crate::{Cache, Error, Reference, Result, Settings};

/// What a download reports while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The hub is asked about this file.
    Asking(String),
    /// Work on the file with this index in [`Plan::items`] begins.
    File(usize),
    /// So many bytes of the current file are here.
    Bytes {
        /// Here.
        done: u64,
        /// In all.
        of: u64,
    },
    /// Another process downloads the current file; waiting for it.
    Waiting,
    /// The checksum of the current file is computed.
    Checking {
        /// Bytes read.
        done: u64,
        /// In all.
        of: u64,
    },
    /// Something worth saying.
    Note(String),
}

/// Hears events, and says whether to go on.
pub trait Progress {
    /// Called many times a second while bytes arrive.
    fn event(&mut self, event: Event) -> ControlFlow<()>;
}

impl<F: FnMut(Event) -> ControlFlow<()>> Progress for F {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        self(event)
    }
}

/// One file of a plan.
#[derive(Clone, Debug)]
pub struct Item {
    /// What was asked for that this file belongs to.
    pub reference: Reference,
    /// Its path in the repository.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// How much of it is here.
    pub here: u64,
    metadata: Metadata,
}

/// Files to fetch.
pub struct Plan {
    /// All of them, those that are here included.
    pub items: Vec<Item>,
    client: Arc<Client>,
    settings: Settings,
}

impl Plan {
    /// Asks the hub about `wanted`. Of whole repositories only the files that `keep` likes are taken. Nothing is fetched
    /// yet, but everything that the hub would refuse is refused now.
    ///
    /// # Errors
    ///
    /// When the hub cannot be reached, does not know a name, or does not give it to us.
    pub fn new(
        settings: &Settings,
        wanted: &[Reference],
        keep: impl Fn(&Reference, &str) -> bool,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let client = Arc::new(Client::new(settings)?);
        let cache = Cache::new(&settings.cache);
        let mut items: Vec<Item> = Vec::new();
        for reference in wanted {
            let (at, names) = match &reference.file {
                Some(file) => (reference.clone(), vec![file.clone()]),
                None => {
                    check(progress.event(Event::Asking(reference.to_string())))?;
                    let (commit, mut names) = persist(settings, || client.list(reference))?;
                    names.retain(|name| keep(reference, name));
                    if names.is_empty() {
                        return Err(Error::request(
                            format!("{} holds no model files", reference.repo),
                            format!("{}/{}/tree/main shows what it holds", settings.endpoint, reference.repo),
                        ));
                    }
                    (Reference { revision: commit, ..reference.clone() }, names)
                }
            };
            for name in names {
                if items.iter().any(|item| {
                    item.reference.repo == reference.repo
                        && item.reference.revision == reference.revision
                        && item.name == name
                }) {
                    continue;
                }
                check(progress.event(Event::Asking(format!("{}:{name}", reference.repo))))?;
                let metadata = persist(settings, || client.metadata(&at, &name))?;
                let found = std::fs::metadata(cache.blob(&reference.repo, &metadata.tag))
                    .or_else(|_| std::fs::metadata(cache.snapshot(reference, &metadata.commit).join(&name)));
                let here = match found {
                    Ok(found) if found.len() == metadata.size => metadata.size,
                    _ => crate::journal::peek(&cache.unfinished(&reference.repo, &metadata.tag).1)
                        .filter(|(_, size, _)| *size == metadata.size)
                        .map_or(0, |(_, _, done)| done),
                };
                items.push(Item { reference: reference.clone(), bytes: metadata.size, name, here, metadata });
            }
        }
        Ok(Self { items, client, settings: settings.clone() })
    }

    /// Bytes still to come.
    pub fn missing(&self) -> u64 {
        self.items.iter().fold(0u64, |sum, item| sum.saturating_add(item.bytes - item.here))
    }

    /// Free bytes on the cache's disk, where the system says.
    pub fn room(&self) -> Option<u64> {
        Cache::new(&self.settings.cache).room()
    }

    /// Fetches what is missing and gives each item's path, in order.
    ///
    /// # Errors
    ///
    /// When there is not enough room (before anything is fetched), the connection fails for good, a checksum is wrong, or
    /// the caller stops. What has arrived stays, under no final name, and the next run goes on from it.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Vec<PathBuf>> {
        if let Some(room) = self.room().filter(|room| *room < self.missing()) {
            return Err(Error::Disk {
                path: self.settings.cache.clone(),
                problem: format!("{} are to come and {} are free", size(self.missing()), size(room)),
                remedy: "free some space, or keep the cache on another disk with HF_HOME".into(),
            });
        }
        let cache = Cache::new(&self.settings.cache);
        let mut paths = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            check(progress.event(Event::File(index)))?;
            let path = cache.snapshot(&item.reference, &item.metadata.commit).join(&item.name);
            if !is_file(&path, item.bytes) {
                fetch(&self.client, &self.settings, &item.reference, &item.name, &item.metadata, progress)?;
            }
            paths.push(cache.publish(
                &item.reference,
                &item.metadata.commit,
                &item.name,
                &item.metadata.tag,
            )?);
        }
        Ok(paths)
    }
}

fn is_file(path: &Path, bytes: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes)
}

/// Asks until there is an answer or no sense in asking.
fn persist<T>(settings: &Settings, mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T> {
    let mut failures = 0;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::NoRanges) => return Err(gave_up("the server changes its mind about ranges")),
            Err(Failure::Again { problem, after }) => {
                failures += 1;
                // Nothing is lost by giving up sooner here, and a wrong address should not take long to be seen.
                if failures >= settings.attempts.min(4) {
                    return Err(Error::server(
                        format!("the hub does not answer: {problem}"),
                        format!(
                            "check the connection, and that {} is the right address (HF_ENDPOINT)",
                            settings.endpoint
                        ),
                    ));
                }
                pause(settings, failures, after, &AtomicBool::new(false));
            }
        }
    }
}

/// `46.1 GB`, as disks and the hub's pages count.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
