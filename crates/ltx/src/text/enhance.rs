//! A short prompt → the long one that the models were trained on, written by Gemma itself.

use std::ops::ControlFlow;

use mlx::Dtype;

use super::{Gemma, GemmaFolder, MAX_TOKENS, Sampling};
use crate::checkpoint::Unread;
use crate::error::{Error, Result};
use crate::progress::{Event, Progress};

/// What the prompt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// A clip from words alone.
    Text,
    /// A clip that begins with a picture, which Gemma does not see.
    Image,
}

const TASK: &str = "You write prompts for a model that makes short video clips with sound. You are given an idea; answer with \
one paragraph that describes the clip as a camera and a microphone would record it, in the order in which things happen.

Keep everything that the idea says: who and what is there, how many, what is said, which style. Do not change it into \
another idea, and add nothing that contradicts it. Where it is silent, choose what is plain and likely.
Write in the present tense, in whole sentences, in the language of the idea. Say what can be seen: people and things with \
their looks, the place, the light, the colours. Say what moves, how, and what the camera does; a still camera is fine.
Say what can be heard, with the picture that it belongs to: voices with their words in quotation marks and how they \
sound, steps, machines, weather, music only if it fits. If nothing is said of sound, give the scene its natural sound.
Leave out feelings that cannot be seen, comments, titles, lists, camera settings and on-screen text that was not asked for.
Write at most 200 words. Answer with the paragraph alone.";

const WITH_PICTURE: &str = "The clip begins with a picture that you cannot see and that shows the idea's beginning. Do not \
invent what it looks like: name the people and things of the idea without describing their looks, and describe what \
changes from the first moment on: movement, gestures, the camera, light, and sound.";

impl Scene {
    /// What Gemma is told before the prompt.
    pub fn instructions(self) -> String {
        match self {
            Self::Text => TASK.into(),
            Self::Image => format!("{TASK}\n\n{WITH_PICTURE}"),
        }
    }
}

/// The prompt that the Gemma of `folder` makes of `prompt`, cut to what the text encoder takes. Files and the length of the
/// prompt are checked before weights are read.
pub fn enhance(
    folder: &GemmaFolder,
    dtype: Dtype,
    prompt: &str,
    scene: Scene,
    sampling: &Sampling,
    progress: &mut dyn Progress,
) -> Result<String> {
    let tokenizer = folder.tokenizer()?;
    tokenizer.encode(prompt)?;
    let mut stop = Vec::new();
    for token in ["<start_of_turn>", "<end_of_turn>", "<eos>"] {
        stop.push(tokenizer.special(token).ok_or_else(|| {
            let remedy = "enhancing needs the instruction-tuned Gemma 3 (its name ends in -it)";
            Error::file(folder.tokenizer_path(), token, "is not among its tokens", remedy)
        })?);
    }
    let idea = prompt.trim();
    let talk = format!(
        "<bos><start_of_turn>user\n{}\n\nThe idea: {idea}<end_of_turn>\n<start_of_turn>model\n",
        scene.instructions()
    );
    let ids = tokenizer.encode_whole(&talk)?;
    let weights = folder.weights(dtype);
    let gemma = Gemma::load(&weights, folder)?;
    weights.finish(Unread::Refuse)?;
    tokenizer.check_rows(&ids, gemma.vocabulary())?;
    let most = sampling.max_tokens.min(MAX_TOKENS - 1);
    progress.phase("enhance prompt", most)?;
    let written = gemma.write(&ids, &stop, &Sampling { max_tokens: most, ..*sampling }, &mut |done| {
        if done % 16 == 0 {
            progress.event(Event::Step { done, of: most })
        } else {
            ControlFlow::Continue(())
        }
    })?;
    let text = cleaned(&tokenizer.decode(&written)?);
    if text.is_empty() {
        return Err(Error::request(
            "the text encoder wrote nothing for this prompt",
            "try another --seed, or leave out the enhancement",
        ));
    }
    // Another tokenization of the same text may be longer.
    tokenizer.encode(&text)?;
    Ok(text)
}

/// One paragraph, without what stands before its first letter and without the quotation marks around it.
fn cleaned(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let text = inner.filter(|inner| !inner.contains('"')).unwrap_or(&text);
    let marks = |c: char| c.is_ascii_punctuation() && c != '"' && c != '\'' && c != '(' || c == ' ';
    text.trim_start_matches(marks).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_one_paragraph() {
        assert_eq!(cleaned("  **A boat\n\nrocks.** \n"), "A boat rocks.**");
        assert_eq!(cleaned("\"A boat rocks.\""), "A boat rocks.");
        assert_eq!(cleaned("\"Go!\" he says. \"Now!\""), "\"Go!\" he says. \"Now!\"");
        assert_eq!(cleaned("- Über dem See"), "Über dem See");
        assert_eq!(cleaned(" \n "), "");
    }

    #[test]
    fn instructions_differ_with_a_picture() {
        assert!(Scene::Image.instructions().starts_with(&Scene::Text.instructions()));
        assert!(Scene::Image.instructions().contains("picture that you cannot see"));
    }
}
