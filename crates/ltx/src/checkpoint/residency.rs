//! How a network's blocks are kept: all of them in memory, or each read from its file when its turn comes.
//!
//! Files are memory-mapped, so "read" means that the system brings pages in when a block computes, and "in memory" that
//! they stay. Streaming has a thread bring in the next block while this one computes (after the last comes the first, for
//! the next step), and gives this one's pages back after. Some blocks may stay, so that fewer have to be read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{File, Weights};
use crate::error::{Error, Result};

/// How blocks are kept. Results are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// All of them, for as long as the network lives.
    #[default]
    Resident,
    /// One at a time, but for those that stay.
    Streaming {
        /// How many blocks are read ahead while one computes. They are in memory beside it.
        ahead: usize,
        /// How many blocks, from the first on, stay in memory once they were read.
        kept: usize,
    },
}

impl Residency {
    /// Streaming that keeps no block and reads one ahead, which is enough: a block takes longer to compute than the next one
    /// to be asked for.
    pub const STREAMING: Self = Self::Streaming { ahead: 1, kept: 0 };
}

/// What streaming took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streamed {
    /// For how long nothing was computed because a block was not there yet.
    pub waited: Duration,
    /// Bytes of the blocks that were brought in, every time. What the system still had did not come from the disk.
    pub bytes: u64,
}

/// A network's blocks, which compute one after the other.
pub struct Blocks<T>(Kept<T>);

enum Kept<T> {
    /// With the places of blocks that hold what they need of their files once they have computed.
    All { blocks: Vec<T>, places: Vec<Weights> },
    Streamed {
        reader: Reader,
        load: Load<T>,
        ahead: usize,
        /// Those that stay, the first of all.
        kept: Vec<T>,
        places: Vec<Weights>,
    },
}

type Load<T> = Box<dyn Fn(&Weights) -> Result<T>>;

impl<T> Blocks<T> {
    /// The `count` blocks at `weights`.0, .1, …, each made by `load`, to be kept as `weights` says. All are made once now
    /// in any case, without computing, so that what is missing or unread is known from the start.
    pub fn load(
        weights: &Weights,
        count: usize,
        load: impl Fn(&Weights) -> Result<T> + 'static,
    ) -> Result<Self> {
        let places: Vec<Weights> = (0..count).map(|index| weights.at(index)).collect();
        Ok(Self(match weights.residency() {
            Residency::Resident => Kept::All {
                blocks: places.iter().map(load).collect::<Result<_>>()?,
                places: if places.iter().any(Weights::settles) { places } else { Vec::new() },
            },
            Residency::Streaming { ahead, kept } => {
                let mut blocks = Vec::new();
                for place in &places {
                    let block = load(place)?;
                    if blocks.len() < kept {
                        blocks.push(block);
                    }
                }
                Kept::Streamed { reader: Reader::new()?, load: Box::new(load), ahead, kept: blocks, places }
            }
        }))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match &self.0 {
            Kept::All { blocks, .. } => blocks.len(),
            Kept::Streamed { places, .. } => places.len(),
        }
    }

    /// Whether each block is read anew whenever it is used, so that using it once for many inputs pays.
    pub fn streamed(&self) -> bool {
        matches!(self.0, Kept::Streamed { .. })
    }

    /// What streaming took since this was asked last.
    pub fn streaming(&self) -> Option<Streamed> {
        match &self.0 {
            Kept::All { .. } => None,
            Kept::Streamed { reader, .. } => Some(reader.streamed.take()),
        }
    }

    /// What `work` makes of block `index`. It must have been computed when `work` returns: what is lazy would keep the
    /// block's weights.
    pub fn with<R>(&self, index: usize, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        let missing =
            || Error::request(format!("there is no block {index}"), "count from 0 to the last block");
        match &self.0 {
            Kept::All { blocks, places } => {
                let done = work(blocks.get(index).ok_or_else(missing)?);
                places.get(index).into_iter().flat_map(Weights::copied).for_each(Span::release);
                done
            }
            Kept::Streamed { places, load, ahead, kept, reader } => {
                let place = places.get(index).ok_or_else(missing)?;
                let own = kept.get(index);
                let streamed = kept.len()..places.len();
                let ring = (index..places.len()).chain(0..index).filter(|index| streamed.contains(index));
                let ring = ring.take(ahead.saturating_add(usize::from(own.is_none())));
                reader.ask(ring.map(|index| (index, &places[index])));
                let Some(block) = own else {
                    reader.wait();
                    let done = work(&load(place)?);
                    place.release();
                    return done;
                };
                let done = work(block);
                place.copied().into_iter().for_each(Span::release);
                done
            }
        }
    }

    /// `work` with each block, in order; none is kept after its turn.
    pub fn for_each(self, mut work: impl FnMut(usize, &T) -> Result<()>) -> Result<()> {
        if self.streamed() {
            return (0..self.count()).try_for_each(|index| self.with(index, |block| work(index, block)));
        }
        match self.0 {
            Kept::All { blocks, places } => blocks.into_iter().enumerate().try_for_each(|(index, block)| {
                let done = work(index, &block);
                places.get(index).into_iter().flat_map(Weights::copied).for_each(Span::release);
                done
            }),
            Kept::Streamed { .. } => Ok(()),
        }
    }
}

impl<T> fmt::Debug for Blocks<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = if self.streamed() { "streamed" } else { "resident" };
        write!(f, "{} {kept} blocks", self.count())
    }
}

/// A part of a file.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub file: Arc<File>,
    /// Counted from the file's first byte.
    pub bytes: Range<usize>,
}

impl Span {
    pub fn release(self) {
        self.file.release(self.bytes);
    }
}

/// Joins spans that touch.
pub(super) fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| (Arc::as_ptr(&span.file), span.bytes.start));
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if Arc::ptr_eq(&last.file, &span.file) && last.bytes.end >= span.bytes.start => {
                last.bytes.end = last.bytes.end.max(span.bytes.end);
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// A thread that brings blocks into memory, one after the other. It ends when this is dropped.
struct Reader {
    asked: Option<Sender<(Vec<Span>, Sender<()>)>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// Blocks that were asked for and not used yet, in order, and where the thread says that they are there.
    coming: RefCell<VecDeque<(usize, Receiver<()>)>>,
    streamed: Cell<Streamed>,
}

impl Reader {
    fn new() -> Result<Self> {
        let (asked, receiver) = channel::<(Vec<Span>, Sender<()>)>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            for (spans, done) in receiver {
                spans.into_iter().for_each(|span| span.file.read(span.bytes, &stopped));
                // Nobody waits for a block that was passed over.
                let _ = done.send(());
            }
        };
        let thread = std::thread::Builder::new().name("read ahead".into()).spawn(work).map_err(|error| {
            Error::machine(format!("no thread to read ahead: {error}"), "close other programs")
        })?;
        let (coming, streamed) = Default::default();
        Ok(Self { asked: Some(asked), thread: Some(thread), stop, coming, streamed })
    }

    /// Has the blocks of `ring` brought in.
    fn ask<'a>(&self, ring: impl Iterator<Item = (usize, &'a Weights)>) {
        let (mut coming, mut ring) = (self.coming.borrow_mut(), ring.peekable());
        let first = ring.peek().map(|(index, _)| *index);
        while first.is_some() && coming.front().is_some_and(|(index, _)| Some(*index) != first) {
            coming.pop_front();
        }
        let mut streamed = self.streamed.get();
        for (index, weights) in ring {
            if !coming.iter().any(|(known, _)| *known == index) {
                let ((done, there), spans) = (channel(), weights.spans());
                streamed.bytes += spans.iter().map(|span| span.bytes.len() as u64).sum::<u64>();
                // Were the thread gone, pages would come in when they are used.
                drop(self.asked.as_ref().map(|asked| asked.send((spans, done))));
                coming.push_back((index, there));
            }
        }
        self.streamed.set(streamed);
    }

    /// Waits for the first of the blocks that were asked for.
    fn wait(&self) {
        let start = Instant::now();
        let first = self.coming.borrow_mut().pop_front();
        let _ = first.map(|(_, there)| there.recv());
        let mut streamed = self.streamed.get();
        streamed.waited += start.elapsed();
        self.streamed.set(streamed);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.asked.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mlx::Dtype;

    use super::*;
    use crate::checkpoint::{Checkpoint, Component};

    fn checkpoint() -> Checkpoint {
        Checkpoint::open(
            &[Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/2.3/model.safetensors")],
        )
        .unwrap()
    }

    #[test]
    fn a_blocks_spans_are_its_tensors_and_no_others() {
        let (weights, _) = checkpoint().component(Component::Dit, Dtype::F32).unwrap();
        let place = weights.at("transformer_blocks").at(1);
        let spans = place.spans();
        let file = &spans[0].file;
        let inside = |bytes: &Range<usize>| {
            spans.iter().any(|span| span.bytes.start <= bytes.start && bytes.end <= span.bytes.end)
        };
        let mut size = 0;
        for (key, _) in file.tensors() {
            let bytes = file.span(&key).unwrap();
            let ours = key.starts_with("model.diffusion_model.transformer_blocks.1.");
            assert_eq!(inside(&bytes), ours, "{key}");
            size += if ours { bytes.len() } else { 0 };
        }
        assert!(size > 0);
        assert_eq!(spans.iter().map(|span| span.bytes.len()).sum::<usize>(), size);
    }

    #[test]
    fn spans_that_touch_are_one() {
        let file = checkpoint().files()[0].clone();
        let span = |bytes| Span { file: file.clone(), bytes };
        let all = joined(vec![span(8..9), span(0..4), span(4..6), span(5..7)]);
        let bytes: Vec<_> = all.into_iter().map(|span| span.bytes).collect();
        assert_eq!(bytes, [0..7, 8..9]);
    }

    #[test]
    fn pages_that_were_given_back_come_again() {
        let file = checkpoint().files()[0].clone();
        let (key, info) = file.tensors().next().unwrap();
        let before = file.bytes(info).to_vec();
        file.release(file.span(&key).unwrap());
        file.read(file.span(&key).unwrap(), &AtomicBool::new(false));
        file.release_all();
        assert_eq!(file.bytes(info), before);
    }

    #[test]
    fn blocks_are_brought_in_once_for_a_step_and_the_first_again_after_the_last() {
        let (weights, _) = checkpoint().component(Component::Dit, Dtype::F32).unwrap();
        let place = weights.at("transformer_blocks");
        let size = |index| place.at(index).spans().iter().map(|span| span.bytes.len() as u64).sum::<u64>();
        let (zero, one) = (size(0), size(1));
        let load = |ahead| {
            let kept = place.clone().kept(Residency::Streaming { ahead, kept: 0 });
            Blocks::load(&kept, 2, |block| Ok(block.has("attn1.to_q.weight"))).unwrap()
        };
        // Blocks 0 and 1 twice; with reading ahead, 0 for a third time that does not come.
        for (ahead, expected) in [(0, 2 * (zero + one)), (1, 3 * zero + 2 * one), (9, 3 * zero + 2 * one)] {
            let blocks = load(ahead);
            for index in [0, 1, 0, 1] {
                blocks.with(index, |_| Ok(())).unwrap();
            }
            assert_eq!(blocks.streaming().unwrap().bytes, expected, "{ahead} ahead");
            assert_eq!(blocks.streaming(), Some(Streamed::default()));
        }
        // Block 0 stays: what is read is block 1, and while it computes there is no other to read ahead.
        for (ahead, expected) in [(0, 2 * one), (1, 2 * one)] {
            let kept = place.clone().kept(Residency::Streaming { ahead, kept: 1 });
            let blocks = Blocks::load(&kept, 2, |block| Ok(block.has("attn1.to_q.weight"))).unwrap();
            for index in [0, 1, 0, 1] {
                assert!(blocks.with(index, |&found| Ok(found)).unwrap());
            }
            assert_eq!(blocks.streaming().unwrap().bytes, expected, "{ahead} ahead");
        }
    }

    #[test]
    fn streamed_blocks_are_made_anew_each_time() {
        let (weights, _) = checkpoint().component(Component::Dit, Dtype::F32).unwrap();
        let made = std::rc::Rc::new(std::cell::Cell::new(0));
        let counted = |residency| {
            let count = made.clone();
            made.set(0);
            Blocks::load(&weights.at("transformer_blocks").kept(residency), 2, move |block| {
                count.set(count.get() + 1);
                Ok(block.has("attn1.to_q.weight"))
            })
            .unwrap()
        };
        for (residency, expected) in [(Residency::Resident, 2), (Residency::STREAMING, 5)] {
            let blocks = counted(residency);
            for index in [0, 1, 0] {
                assert!(blocks.with(index, |&found| Ok(found)).unwrap());
            }
            assert_eq!((made.get(), blocks.count()), (expected, 2));
            assert!(blocks.with(2, |_| Ok(())).is_err());
            let mut seen = Vec::new();
            blocks
                .for_each(|index, _| {
                    seen.push(index);
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen, [0, 1]);
        }
    }
}
