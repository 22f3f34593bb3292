//! What the library tells its caller while it works, and how the caller stops it.

use std::ops::ControlFlow;

use crate::checkpoint::Streamed;
use crate::error::{Error, Result};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A phase begins: `encode text`, `denoise`, …, in words for a person.
    Phase {
        /// Its name.
        name: String,
        /// How many steps it will report, if it reports any.
        steps: usize,
    },
    /// So many steps of the current phase are done.
    Step {
        /// Steps done, from 1.
        done: usize,
        /// Steps in all.
        of: usize,
    },
    /// What streaming weights took in the current phase, which is about to end.
    Streamed(Streamed),
    /// Something the user should know but did not ask: a choice made for them, a tensor left unread.
    Note(String),
}

/// Receives events. `Break` stops the run cleanly, with [`Error::Cancelled`].
pub trait Progress {
    /// Called between pieces of work, at least after every denoising step.
    fn event(&mut self, event: Event) -> ControlFlow<()>;
}

impl<F: FnMut(Event) -> ControlFlow<()>> Progress for F {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        self(event)
    }
}

impl dyn Progress + '_ {
    /// Reports `event`; an error when the caller wants to stop.
    pub(crate) fn report(&mut self, event: Event) -> Result<()> {
        match self.event(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    /// Reports the beginning of a phase.
    pub(crate) fn phase(&mut self, name: impl Into<String>, steps: usize) -> Result<()> {
        self.report(Event::Phase { name: name.into(), steps })
    }

    /// Reports a note.
    pub(crate) fn note(&mut self, note: impl Into<String>) -> Result<()> {
        self.report(Event::Note(note.into()))
    }
}
