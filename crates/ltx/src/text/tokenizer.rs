//! The prompt as Gemma's token ids.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Tokens that a prompt may have, and the length of the sequence that the connectors fill up with registers.
pub const MAX_TOKENS: usize = 1024;

/// A Hugging Face `tokenizer.json` with Gemma's special tokens.
#[derive(Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    bos: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let remedy = "use the tokenizer.json that belongs to the Gemma text encoder";
        let mut tokenizer = tokenizers::Tokenizer::from_file(path).map_err(|error| {
            Error::file(path, "", format!("is not a readable tokenizer: {error}"), remedy)
        })?;
        // The file may ask for truncation: a prompt that is cut in silence is worse than an error.
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::file(path, "", error.to_string(), remedy))?
            .with_padding(None);
        let bos = tokenizer
            .token_to_id("<bos>")
            .ok_or_else(|| Error::file(path, "", "has no token <bos>", remedy))?;
        Ok(Self { tokenizer, path: path.into(), bos })
    }

    /// Ids of the prompt without surrounding white space, with `<bos>` in front; an error if they are more than
    /// [`MAX_TOKENS`].
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let ids = self.ids(prompt)?;
        if ids.len() > MAX_TOKENS {
            return Err(Error::request(
                format!("the prompt has {} tokens; the model takes {MAX_TOKENS}", ids.len()),
                "shorten it: the first tokens alone would be another prompt",
            ));
        }
        Ok(ids)
    }

    /// The same for a text that the user did not write, cut to [`MAX_TOKENS`] as the official code cuts it.
    pub fn encode_cut(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.ids(text)?;
        ids.truncate(MAX_TOKENS);
        Ok(ids)
    }

    fn ids(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoded = self.tokenizer.encode(prompt.trim(), true);
        let mut ids = encoded.map_err(|error| self.failed("encode", &error))?.get_ids().to_vec();
        if ids.first() != Some(&self.bos) {
            ids.insert(0, self.bos);
        }
        Ok(ids)
    }

    /// Ids of a text in which special tokens are spelt out, such as a conversation: nothing is trimmed or cut.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, false).map_err(|error| self.failed("encode", &error))?;
        Ok(ids.get_ids().to_vec())
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(|error| self.failed("decode", &error))
    }

    /// The id of a special token, if there is such.
    pub fn special(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    fn failed(&self, what: &str, error: &tokenizers::Error) -> Error {
        let problem = format!("cannot {what} the text: {error}");
        Error::file(&self.path, "", problem, "check that the file is whole")
    }

    /// An error unless every id has a row among `rows` embeddings.
    pub fn check_rows(&self, ids: &[u32], rows: i32) -> Result<()> {
        match ids.iter().find(|&&id| i64::from(id) >= i64::from(rows)) {
            None => Ok(()),
            Some(id) => Err(Error::file(
                &self.path,
                "",
                format!("gives token {id}, but the text encoder knows {rows} tokens"),
                "use the tokenizer.json that belongs to this text encoder",
            )),
        }
    }
}
