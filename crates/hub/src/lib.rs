//! Model files from a model hub, in the hub's own cache.
//!
//! A [`Reference`] names a repository or a file in it; [`Plan`] asks the hub what it is, how large, and what is
//! already here; [`Plan::run`] fetches the rest: in parallel ranges, resumable at any point, checked against the hub's
//! checksums, and never under its final name before it is whole and right. [`Cache`] finds what is here without asking
//! anyone. The cache is laid out as the official tools lay it out, so that they and this crate find each other's files.
//!
//! This crate is silent: it prints nothing and reads no environment variable of its own ([`Settings`] says everything;
//! the HTTP client honours the usual proxy variables). What models exist is `catalog`; how they run is another crate.

mod cache;
pub mod catalog;
mod client;
mod error;
mod journal;
mod plan;
mod reference;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

pub use cache::{Cache, room};
pub use error::{Error, Result};
pub use plan::{Event, Item, Plan, Progress, size};
pub use reference::Reference;

/// The model hub that is asked when no other is named.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Whom to ask, as whom, and where to keep what comes.
#[derive(Clone)]
pub struct Settings {
    /// The hub, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache (`…/huggingface/hub`).
    pub cache: PathBuf,
    /// Sent to the endpoint, and to nobody else.
    pub token: Option<String>,
    /// Certificates (PEM) to trust in place of the built-in ones.
    pub certificates: Option<PathBuf>,
    /// How many connections fetch one file.
    pub connections: usize,
    /// Bytes that one request asks for.
    pub segment: u64,
    /// Bytes that a killed download may lose on each connection.
    pub piece: u64,
    /// Failures in a row, with no byte between them, before a download gives up.
    pub attempts: u32,
    /// The pause after the first failure; each further one is twice as long, up to a minute.
    pub pause: Duration,
    /// How long a silent connection is waited for.
    pub patience: Duration,
}

impl Settings {
    /// The usual numbers, for the default endpoint, with files kept in `cache`.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            cache: cache.into(),
            token: None,
            certificates: None,
            connections: 8,
            segment: 32 << 20,
            piece: 4 << 20,
            attempts: 6,
            pause: Duration::from_millis(250),
            patience: Duration::from_secs(30),
        }
    }
}
