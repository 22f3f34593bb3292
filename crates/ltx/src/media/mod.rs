//! Pixels and samples ↔ files.

/// Placeholder until the media branch lands.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
impl Error {
    /// What to do.
    pub fn remedy(&self) -> Option<String> {
        None
    }
}
