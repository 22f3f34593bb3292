//! What can go wrong, grouped by who can mend it: the request, the files, the machine, or us.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure: what, where, and (from [`Error::remedy`]) what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for something that cannot be done; another request can.
    #[error("{problem}")]
    Request {
        /// What is wrong with it.
        problem: String,
        /// What to ask for instead.
        remedy: String,
    },
    /// A file is missing, damaged, or not the right one.
    #[error("{}{}: {problem}", path.display(), Key(key))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The tensor or setting in it, in full.
        key: Option<String>,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// This machine cannot do it: no such device, no memory, no space.
    #[error("{problem}")]
    Machine {
        /// What is missing.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// A run needs more memory than there is, and would even if everything were streamed and cut that can be.
    #[error("{phase} needs {} of memory, and there are {}", Gigabytes(needs), Gigabytes(available))]
    Memory {
        /// What needs the most.
        phase: &'static str,
        /// Bytes.
        needs: u64,
        /// Bytes.
        available: u64,
        /// What would fit.
        remedy: String,
    },
    /// A value stopped being a finite number, so the result would be a black or silent clip.
    #[error("{tensor} of the {component} is not finite{}", Step(step))]
    NotFinite {
        /// The component that computed it.
        component: &'static str,
        /// Which of its results.
        tensor: String,
        /// The denoising step, from 0.
        step: Option<usize>,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
    /// Writing or reading a picture, sound or clip failed.
    #[error(transparent)]
    Media(#[from] crate::media::Error),
    /// MLX refused an operation: a fault of this program, or of a file whose shapes do not fit together.
    #[error("the computation failed: {0}")]
    Compute(#[from] mlx::Error),
}

struct Key<'a>(&'a Option<String>);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |key| write!(f, ": {key}"))
    }
}

struct Gigabytes<'a>(&'a u64);

impl fmt::Display for Gigabytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} GB", *self.0 as f64 / 1e9)
    }
}

struct Step<'a>(&'a Option<usize>);

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |step| write!(f, " after step {}", step + 1))
    }
}

impl Error {
    /// A request that cannot be met.
    pub fn request(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Request { problem: problem.into(), remedy: remedy.into() }
    }

    /// A file that cannot be used; `key` is the tensor or setting in it, or empty.
    pub fn file(
        path: impl AsRef<Path>,
        key: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let key = Some(key.into()).filter(|key| !key.is_empty());
        Self::File { path: path.as_ref().into(), key, problem: problem.into(), remedy: remedy.into() }
    }

    /// A machine that cannot do it.
    pub fn machine(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Machine { problem: problem.into(), remedy: remedy.into() }
    }

    /// What the user can do about it, as a sentence.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Request { remedy, .. }
            | Self::File { remedy, .. }
            | Self::Machine { remedy, .. }
            | Self::Memory { remedy, .. } => {
                Some(remedy.clone()).filter(|remedy| !remedy.is_empty())
            }
            Self::NotFinite { .. } => Some("try --dtype f32, another --seed, or lower guidance; `ltx verify` tells whether this build computes correctly".into()),
            Self::Compute(_) => Some("run `ltx inspect` on the model; if that finds nothing wrong, please report this with the command".into()),
            Self::Media(error) => error.remedy(),
            Self::Cancelled => None,
        }
    }
}
