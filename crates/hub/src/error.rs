//! What can go wrong between here and the hub, and what to do about it.

use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: what, where, and (from [`Error::remedy`]) what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name or the settings make no sense.
    #[error("{problem}")]
    Request {
        /// What is wrong.
        problem: String,
        /// What to ask for instead.
        remedy: String,
    },
    /// The hub knows the file and does not give it to us.
    #[error("{problem}")]
    Denied {
        /// What is refused, and why.
        problem: String,
        /// The page to visit, the token to make.
        remedy: String,
    },
    /// The hub cannot be reached, fails, or contradicts itself.
    #[error("{problem}")]
    Server {
        /// What happened, at which address.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// What arrived is not what the hub describes; it was thrown away.
    #[error("{file}: {problem}")]
    Corrupt {
        /// The file in its repository.
        file: String,
        /// Both checksums.
        problem: String,
    },
    /// A file or folder here cannot be read or written, or there is no room.
    #[error("{}: {problem}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    pub(crate) fn request(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Request { problem: problem.into(), remedy: remedy.into() }
    }

    pub(crate) fn denied(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Denied { problem: problem.into(), remedy: remedy.into() }
    }

    pub(crate) fn server(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Server { problem: problem.into(), remedy: remedy.into() }
    }

    /// An input or output error at `path`.
    pub(crate) fn disk(path: &Path, error: &std::io::Error) -> Self {
        let remedy = match error.kind() {
            std::io::ErrorKind::StorageFull => {
                "free some space and run the same command again: it goes on where it stopped"
            }
            std::io::ErrorKind::PermissionDenied => {
                "make it writable, or keep the cache elsewhere with HF_HOME"
            }
            _ => "",
        };
        Self::Disk { path: path.into(), problem: error.to_string(), remedy: remedy.into() }
    }

    /// What the user can do about it, as a sentence.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Request { remedy, .. }
            | Self::Denied { remedy, .. }
            | Self::Server { remedy, .. }
            | Self::Disk { remedy, .. } => Some(remedy.clone()).filter(|remedy| !remedy.is_empty()),
            Self::Corrupt { .. } => Some(
                "nothing was kept; run the same command again, and if it happens again the server or something between damages the file".into(),
            ),
            Self::Cancelled => None,
        }
    }
}
