//! One file from the hub to its blob: parallel ranges into a file beside it, an account of what has arrived, a checksum
//! over what is on disk, and only then the final name.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::digest;

use crate::cache::Cache;
use crate::client::{Client, Failure, Metadata, broken, fill};
use crate::journal::Journal;
use crate::plan::{Event, Progress};
use crate::{Error, Reference, Result, Settings};

/// How often the caller hears of progress and may stop.
const TICK: Duration = Duration::from_millis(100);
/// How long connections that are being waited for may take to notice that they should stop.
const GRACE: Duration = Duration::from_secs(2);

/// What several connections share.
struct Shared {
    client: Arc<Client>,
    settings: Settings,
    reference: Reference,
    name: String,
    metadata: Metadata,
    /// Where the bytes are now, when it is not the hub's own address.
    direct: Mutex<Option<String>>,
    file: File,
    journal: Mutex<Journal>,
    queue: Mutex<VecDeque<Range<u64>>>,
    arrived: AtomicU64,
    stop: AtomicBool,
    /// The server has no ranges: one connection, from the first byte each time.
    whole: bool,
    /// Held as long as any connection may still write.
    _lock: Arc<File>,
}

/// Brings one file's blob here, unless it is here.
pub(crate) fn fetch(
    client: &Arc<Client>,
    settings: &Settings,
    reference: &Reference,
    name: &str,
    metadata: &Metadata,
    progress: &mut dyn Progress,
) -> Result<()> {
    let cache = Cache::new(&settings.cache);
    let blob = cache.blob(&reference.repo, &metadata.tag);
    let here = || std::fs::metadata(&blob).is_ok_and(|found| found.len() == metadata.size);
    let lock = loop {
        if here() {
            return Ok(());
        }
        if let Some(lock) = cache.lock(&reference.repo, &metadata.tag)? {
            break Arc::new(lock);
        }
        check(progress.event(Event::Waiting))?;
        std::thread::sleep(TICK);
    };
    if here() {
        return Ok(());
    }
    let (part, account) = cache.unfinished(&reference.repo, &metadata.tag);
    let folder = part.parent().unwrap_or(&settings.cache);
    std::fs::create_dir_all(folder).map_err(|error| Error::disk(folder, &error))?;
    let failed = |error: io::Error| Error::disk(&part, &error);

    let mut whole = false;
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&part)
            .map_err(failed)?;
        let mut journal =
            Journal::open(&account, name, metadata.size).map_err(|error| Error::disk(&account, &error))?;
        if whole || file.metadata().map_err(failed)?.len() != metadata.size {
            journal.clear(name).map_err(|error| Error::disk(&account, &error))?;
            file.set_len(0).and_then(|()| file.set_len(metadata.size)).map_err(failed)?;
        }
        let resumed = journal.bytes();
        let longest = if whole { metadata.size } else { settings.segment };
        let shared = Arc::new(Shared {
            client: client.clone(),
            settings: settings.clone(),
            reference: Reference { revision: metadata.commit.clone(), ..reference.clone() },
            name: name.into(),
            metadata: metadata.clone(),
            direct: Mutex::new(Some(metadata.url.clone()).filter(|url| !client.is_ours(url))),
            file,
            queue: Mutex::new(journal.gaps(longest).into()),
            arrived: AtomicU64::new(resumed),
            journal: Mutex::new(journal),
            stop: AtomicBool::new(false),
            whole,
            _lock: lock.clone(),
        });
        match receive(&shared, progress) {
            Ok(()) => {}
            Err(Failure::NoRanges) if !whole => {
                whole = true;
                continue;
            }
            Err(Failure::NoRanges) => {
                return Err(Error::server(
                    format!("{name}: the server changes its mind about ranges"),
                    "run the command again",
                ));
            }
            Err(Failure::Again { problem, .. }) => return Err(gave_up(&problem)),
            Err(Failure::Fatal(error)) => return Err(error),
        }
        shared.file.sync_all().map_err(failed)?;
        if let Some(problem) = mismatch(&shared.file, &part, metadata, progress)? {
            for path in [&account, &part] {
                std::fs::remove_file(path).map_err(|error| Error::disk(path, &error))?;
            }
            if resumed > 0 {
                let note = format!("{name}: what an earlier run left was damaged; fetching it anew");
                check(progress.event(Event::Note(note)))?;
                continue;
            }
            return Err(Error::Corrupt { file: name.into(), problem });
        }
        std::fs::rename(&part, &blob).map_err(|error| Error::disk(&blob, &error))?;
        // Without the bytes it accounts for, the account means nothing: an error here is no error of the download.
        let _ = std::fs::remove_file(&account);
        return Ok(());
    }
}

/// Runs the connections until everything is here, one fails for good, or the caller stops.
fn receive(shared: &Arc<Shared>, progress: &mut dyn Progress) -> Result<(), Failure> {
    let of = shared.metadata.size;
    let count = if shared.whole {
        1
    } else {
        shared.settings.connections.clamp(1, 64).min(guard(&shared.queue).len())
    };
    let (sender, results) = channel();
    let mut running = 0;
    for _ in 0..count {
        let (shared, sender) = (shared.clone(), sender.clone());
        let spawned = std::thread::Builder::new().name("download".into()).spawn(move || {
            // The receiver is gone only when the caller has stopped waiting.
            let _ = sender.send(connection(&shared));
        });
        running += usize::from(spawned.is_ok());
    }
    if count > 0 && running == 0 {
        return Err(Error::server("no thread could be started", "close other programs").into());
    }
    let mut outcome = Ok(());
    let mut stopped: Option<Instant> = None;
    while running > 0 {
        match results.recv_timeout(TICK) {
            Ok(result) => {
                running -= 1;
                if let Err(failure) = result {
                    shared.stop.store(true, Ordering::SeqCst);
                    stopped = stopped.or(Some(Instant::now()));
                    outcome = outcome.and(Err(failure));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let done = shared.arrived.load(Ordering::Relaxed);
        if progress.event(Event::Bytes { done, of }).is_break() {
            shared.stop.store(true, Ordering::SeqCst);
            stopped = stopped.or(Some(Instant::now()));
            outcome = Err(Error::Cancelled.into());
        }
        // Connections that are stuck in a read notice later; they hold the lock until then, and write nothing more.
        if stopped.is_some_and(|since| since.elapsed() > GRACE) {
            break;
        }
    }
    outcome?;
    if guard(&shared.journal).bytes() == of {
        return Ok(());
    }
    Err(Failure::Again {
        problem: format!("{}: a connection ended without a word", shared.name),
        after: None,
    })
}

/// Takes pieces of work until there are none.
fn connection(shared: &Shared) -> Result<(), Failure> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let Some(range) = guard(&shared.queue).pop_front() else { return Ok(()) };
        let (mut at, mut failures) = (range.start, 0);
        while at < range.end {
            if shared.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let (to, outcome) = piece(shared, at..range.end, &mut buffer);
            // Without ranges every attempt begins anew, and having got somewhere means nothing.
            failures = if to > at && !shared.whole { 0 } else { failures };
            at = to;
            match outcome {
                Ok(()) => {}
                Err(Failure::Again { problem, after }) => {
                    // Storage addresses expire: the next attempt asks the hub for a new one.
                    *guard(&shared.direct) = None;
                    failures += 1;
                    if failures >= shared.settings.attempts {
                        return Err(Failure::Again { problem, after });
                    }
                    pause(&shared.settings, failures, after, &shared.stop);
                    if shared.whole {
                        guard(&shared.journal)
                            .clear(&shared.name)
                            .map_err(|error| Error::disk(&shared.settings.cache, &error))?;
                        shared.arrived.store(0, Ordering::Relaxed);
                        at = 0;
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// One request: how far it got, and why no further.
fn piece(shared: &Shared, range: Range<u64>, buffer: &mut [u8]) -> (u64, Result<(), Failure>) {
    let (mut at, mut recorded) = (range.start, range.start);
    let outcome = (|| {
        let direct = guard(&shared.direct).clone();
        let url = direct.unwrap_or_else(|| shared.client.address(&shared.reference, &shared.name));
        let mut body =
            shared.client.open(&shared.reference, &shared.name, &url, range.clone(), shared.metadata.size)?;
        if !shared.client.is_ours(&body.url) {
            *guard(&shared.direct) = Some(body.url.clone());
        }
        let disk = |error: io::Error| Failure::Fatal(Error::disk(&shared.settings.cache, &error));
        while at < range.end {
            let wanted = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            let count = match body.reader.read(&mut buffer[..wanted]) {
                Ok(0) => {
                    return Err(Failure::Again {
                        problem: format!("the connection ended {} bytes early", range.end - at),
                        after: None,
                    });
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(&body.url, &error)),
            };
            if shared.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            shared.file.write_all_at(&buffer[..count], at).map_err(disk)?;
            at += count as u64;
            shared.arrived.fetch_add(count as u64, Ordering::Relaxed);
            if at - recorded >= shared.settings.piece {
                record(shared, recorded..at).map_err(disk)?;
                recorded = at;
            }
        }
        if body.whole && at == shared.metadata.size && !matches!(body.reader.read(&mut buffer[..1]), Ok(0)) {
            let problem =
                format!("the server sends more of {} than the {at} bytes it should have", shared.name);
            return Err(Error::server(problem, "run the command again later").into());
        }
        Ok(())
    })();
    let kept = record(shared, recorded..at)
        .map_err(|error| Failure::Fatal(Error::disk(&shared.settings.cache, &error)));
    (at, outcome.and(kept))
}

/// Accounts for bytes once they are safely on disk.
fn record(shared: &Shared, range: Range<u64>) -> io::Result<()> {
    if !range.is_empty() {
        shared.file.sync_data()?;
        guard(&shared.journal).record(range)?;
    }
    Ok(())
}

/// Waits before another attempt, or until told to stop.
pub(crate) fn pause(settings: &Settings, failures: u32, after: Option<Duration>, stop: &AtomicBool) {
    let doubled = settings.pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let end = Instant::now() + after.unwrap_or(doubled).max(doubled).min(Duration::from_secs(60));
    while Instant::now() < end && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
    }
}

pub(crate) fn gave_up(problem: &str) -> Error {
    Error::server(
        format!("the download does not go on: {problem}"),
        "check the connection and run the same command again: it goes on where it stopped",
    )
}

/// Compares what is on disk with the checksum in its tag: sha-256 of the bytes, or git's hash of a blob. Tags of neither
/// kind say nothing that could be compared.
fn mismatch(
    file: &File,
    path: &Path,
    metadata: &Metadata,
    progress: &mut dyn Progress,
) -> Result<Option<String>> {
    let mut context = match (metadata.tag.len(), metadata.tag.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        (64, true) => digest::Context::new(&digest::SHA256),
        (40, true) => {
            let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {}\0", metadata.size).as_bytes());
            context
        }
        _ => {
            check(
                progress
                    .event(Event::Note("the hub gives no checksum for this file; its size is right".into())),
            )?;
            return Ok(None);
        }
    };
    let failed = |error: io::Error| Error::disk(path, &error);
    let mut reader = file.try_clone().map_err(failed)?;
    io::Seek::rewind(&mut reader).map_err(failed)?;
    let mut buffer = vec![0; 4 << 20];
    let mut done = 0;
    loop {
        let (count, outcome) = fill(&mut reader, &mut buffer);
        outcome.map_err(failed)?;
        if count == 0 {
            break;
        }
        context.update(&buffer[..count]);
        done += count as u64;
        check(progress.event(Event::Checking { done, of: metadata.size }))?;
    }
    let found: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let right = found.eq_ignore_ascii_case(&metadata.tag);
    Ok((!right).then(|| format!("its checksum is {found} and should be {}", metadata.tag)))
}

pub(crate) fn check(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// A lock whose holder panicked holds data that is still whole: every change to it is one call.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
