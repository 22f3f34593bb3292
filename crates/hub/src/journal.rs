//! Which bytes of an unfinished download are on disk: lines `start end`, appended as pieces arrive, so that a process
//! that is killed at any moment leaves a true account. A torn last line is not believed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

const MARK: &str = "ltx-download 1";

/// The account of one unfinished file of `size` bytes.
pub(crate) struct Journal {
    file: File,
    size: u64,
    /// Sorted, disjoint, not touching.
    done: Vec<Range<u64>>,
}

impl Journal {
    /// Opens the account at `path`, or begins one. Whatever does not belong to a file of this size and name counts as
    /// no account.
    pub fn open(path: &Path, name: &str, size: u64) -> io::Result<Self> {
        let done = match std::fs::read_to_string(path) {
            Ok(text) => {
                parse(&text).filter(|account| account.1 == size).map(|account| account.2).unwrap_or_default()
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let mut text = format!("{MARK} {size} {name}\n");
        done.iter().for_each(|range| text += &format!("{} {}\n", range.start, range.end));
        let beside = path.with_extension("new");
        std::fs::write(&beside, text)?;
        std::fs::rename(&beside, path)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { file, size, done })
    }

    /// Forgets everything.
    pub fn clear(&mut self, name: &str) -> io::Result<()> {
        self.done.clear();
        self.file.set_len(0)?;
        self.file.write_all(format!("{MARK} {} {name}\n", self.size).as_bytes())
    }

    /// These bytes are on disk now.
    pub fn record(&mut self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.file.write_all(format!("{} {}\n", range.start, range.end).as_bytes())?;
        self.done.push(range);
        merge(&mut self.done);
        Ok(())
    }

    /// How many bytes are here.
    pub fn bytes(&self) -> u64 {
        total(&self.done)
    }

    /// What is missing, in pieces of at most `longest`.
    pub fn gaps(&self, longest: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for next in self.done.iter().cloned().chain(std::iter::once(self.size..self.size)) {
            while at < next.start {
                let end = next.start.min(at.saturating_add(longest.max(1)));
                gaps.push(at..end);
                at = end;
            }
            at = next.end;
        }
        gaps
    }
}

/// Name, size and bytes already here of an unfinished download.
pub(crate) fn peek(path: &Path) -> Option<(String, u64, u64)> {
    let (name, size, done) = parse(&std::fs::read_to_string(path).ok()?)?;
    Some((name, size, total(&done)))
}

fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn parse(text: &str) -> Option<(String, u64, Vec<Range<u64>>)> {
    let mut lines = text.split_inclusive('\n');
    let mut first = lines.next()?.strip_suffix('\n')?.strip_prefix(MARK)?.strip_prefix(' ')?.splitn(2, ' ');
    let size: u64 = first.next()?.parse().ok()?;
    let name = first.next()?.to_string();
    let mut done = Vec::new();
    for line in lines {
        let Some((start, end)) = line.strip_suffix('\n').and_then(|line| line.split_once(' ')) else { break };
        let (start, end) = (start.parse().ok()?, end.parse().ok()?);
        if start >= end || end > size {
            return None;
        }
        done.push(start..end);
    }
    merge(&mut done);
    Some((name, size, done))
}

fn merge(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => merged.push(range),
        }
    }
    *ranges = merged;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_survives_and_a_torn_line_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.journal");
        let mut journal = Journal::open(&path, "a b.bin", 100).unwrap();
        assert_eq!(journal.gaps(40), [0..40, 40..80, 80..100]);
        journal.record(30..50).unwrap();
        journal.record(0..10).unwrap();
        journal.record(10..12).unwrap();
        drop(journal);
        let mut torn = std::fs::read_to_string(&path).unwrap();
        torn += "60 9";
        std::fs::write(&path, torn).unwrap();
        assert_eq!(peek(&path), Some(("a b.bin".into(), 100, 32)));
        let journal = Journal::open(&path, "a b.bin", 100).unwrap();
        assert_eq!((journal.bytes(), journal.gaps(1000)), (32, vec![12..30, 50..100]));
    }

    #[test]
    fn an_account_of_another_file_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.journal");
        Journal::open(&path, "a", 100).unwrap().record(0..100).unwrap();
        assert_eq!(Journal::open(&path, "a", 99).unwrap().bytes(), 0);
        for damaged in [
            "",
            "ltx-download 1 10 a\n0 11\n",
            "ltx-download 1 10 a\n5 5\n",
            "ltx-download 2 10 a\n0 5\n",
            "ltx-download 1 10 a\nx 5\n",
        ] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(Journal::open(&path, "a", 10).unwrap().bytes(), 0, "{damaged:?}");
        }
    }
}
