//! A prompt → conditioning for both streams of the transformer.
//!
//! `tokenizer` turns the prompt into ids, `gemma` those into hidden states of all layers, `projection` the stack of
//! hidden states into features, and `connector` the features into the contexts that the transformer attends to. Only
//! real tokens are computed: padding is masked everywhere and replaced by learned registers at the end. `embedding` reads
//! and writes contexts, `cache` keeps them. `generation` lets Gemma write, and `enhance` asks it to write a better prompt.

mod cache;
mod connector;
mod embedding;
mod enhance;
mod folder;
mod gemma;
mod generation;
mod projection;
mod tokenizer;

pub(crate) use cache::Identity;
pub use cache::{CachedEmbedding, EmbeddingCache};
pub use connector::{Connector, Connectors};
pub(crate) use embedding::stored;
pub use embedding::{Embedding, ORIGINAL_TOKENS, Widths, dummy, is_npz};
pub use enhance::{Scene, enhance};
pub use folder::GemmaFolder;
pub use gemma::Gemma;
pub use generation::Sampling;
pub(crate) use projection::AT_ONCE;
pub use projection::{Features, Projection};
pub use tokenizer::{MAX_TOKENS, Tokenizer};

use mlx::Array;

/// What the transformer attends to.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// For the video stream. (batch, tokens, width)
    pub video: Array,
    /// For the audio stream, unless only the video's is known. (batch, tokens, width)
    pub audio: Option<Array>,
}
