//! Where contexts come from: a file, the text encoder, the cache of what it said before, or nowhere.

use std::path::{Path, PathBuf};

use mlx::Dtype;

use super::conditioning::Text;
use super::networks::Loader;
use super::{Kind, Request, UnreadPolicy};
use crate::checkpoint::{Checkpoint, Component, Residency, Unread};
use crate::dit;
use crate::error::{Error, Result};
use crate::nn::Packing;
use crate::progress::Progress;
use crate::text::{
    Connectors, Contexts, Embedding, EmbeddingCache, Gemma, GemmaFolder, Identity, MAX_TOKENS,
    ORIGINAL_TOKENS, Projection, Tokenizer, Widths, dummy, is_npz,
};

/// Lightricks' default negative prompt, word for word: the models' guidance was tuned with it.
const NEGATIVE_PROMPT: &str = include_str!("negative_prompt.txt");

/// The connectors fill up with whole sets of this many registers.
const REGISTERS: usize = 128;

/// Where a run's contexts come from: a text for every shot.
#[derive(Debug)]
pub enum Prompts {
    /// Nothing will attend to any.
    None,
    /// A file, or the prompts' own letters.
    Known(Vec<Text>),
    /// The text encoder, unless the cache has them.
    Encode(Box<Encoding>),
}

/// The contexts that a request asks for, and whether there is one for the sound.
pub fn prompts(
    request: &Request,
    checkpoint: &Checkpoint,
    transformer: &dit::Config,
    embedding: Option<Embedding>,
    negative: bool,
    notes: &mut Vec<String>,
) -> Result<Prompts> {
    if request.placeholder {
        return Ok(Prompts::None);
    }
    if let (Some(path), Some(embedding)) = (&request.embedding, embedding) {
        if negative && embedding.negative.is_none() {
            return Err(Error::file(
                path,
                "",
                "has no negative prompt, which guidance needs",
                "add one with ltx encode-text --negative-prompt, or turn guidance off with --cfg 1 --audio-cfg 1",
            ));
        }
        if request.prompt.is_some() {
            notes.push("the text comes from --embedding: the prompt is not encoded".into());
        }
        let cast = |contexts: Contexts| -> Result<Contexts> {
            let audio = contexts.audio.map(|audio| audio.astype(request.dtype)).transpose()?;
            Ok(Contexts { video: contexts.video.astype(request.dtype)?, audio })
        };
        let negative = embedding.negative.filter(|_| negative).map(cast).transpose()?;
        return Ok(Prompts::Known(vec![Text { positive: cast(embedding.positive)?, negative }]));
    }
    let texts = request.prompts();
    let positive: Vec<_> = texts.iter().map(|text| Prompt { text, ours: false }).collect();
    let negative = negative.then_some(match &request.negative_prompt {
        Some(text) => Prompt { text, ours: false },
        None => Prompt { text: NEGATIVE_PROMPT, ours: true },
    });
    if request.dummy_text {
        let widths = widths(transformer);
        let dummy = |prompt: Prompt| dummy(prompt.text, widths, request.dtype);
        let negative = negative.map(dummy).transpose()?;
        let text = |prompt| Ok(Text { positive: dummy(prompt)?, negative: negative.clone() });
        return positive.into_iter().map(text).collect::<Result<_>>().map(Prompts::Known);
    }
    let folder = request.gemma.as_ref().ok_or_else(|| {
        Error::request(
            "there is no text encoder",
            "give the folder of Gemma 3 with --gemma, fetch it with `ltx download gemma`, or give an encoded prompt with --embedding",
        )
    })?;
    let wanted: Vec<_> = positive.into_iter().chain(negative).collect();
    let settings = Settings {
        dtype: request.dtype,
        packing: request.quantize,
        tokens: MAX_TOKENS,
        loras: &request.loras,
        cache: request.cache.as_ref(),
    };
    Ok(Prompts::Encode(Box::new(Encoding::new(&wanted, folder, checkpoint, settings, notes)?)))
}

/// Widths of the contexts that a transformer takes.
pub fn widths(transformer: &dit::Config) -> Widths {
    Widths { video: transformer.video.context_width(), audio: transformer.audio.context_width() }
}

/// A text to be encoded. One that the user did not write is cut where it is too long.
#[derive(Clone, Copy, Debug)]
struct Prompt<'a> {
    text: &'a str,
    ours: bool,
}

/// How to encode.
#[derive(Clone, Copy, Debug)]
struct Settings<'a> {
    dtype: Dtype,
    packing: Option<Packing>,
    /// Length of the contexts.
    tokens: usize,
    /// What the checkpoint was changed with.
    loras: &'a [(PathBuf, f32)],
    cache: Option<&'a EmbeddingCache>,
}

/// Texts on their way to contexts. Those that the cache knows need no text encoder, which is then not even opened.
#[derive(Debug)]
pub struct Encoding {
    /// Open when there is something to encode.
    gemma: Option<GemmaFolder>,
    wanted: Vec<Wanted>,
    tokens: usize,
    cache: Option<EmbeddingCache>,
}

#[derive(Debug)]
struct Wanted {
    state: State,
    identity: Option<Identity>,
}

#[derive(Debug)]
enum State {
    Known(Contexts),
    Tokens(Vec<u32>),
}

impl Encoding {
    fn new(
        prompts: &[Prompt],
        folder: &Path,
        checkpoint: &Checkpoint,
        settings: Settings,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let models: Vec<_> = [Component::Projection, Component::Connector]
            .into_iter()
            .filter_map(|component| Some(checkpoint.file(component)?.path()))
            .collect();
        let mut opened: Option<(GemmaFolder, Tokenizer)> = None;
        let mut wanted = Vec::new();
        for prompt in prompts {
            let identity = settings.cache.and_then(|_| {
                let Settings { dtype, packing, tokens, loras, .. } = settings;
                Identity::new(prompt.text.trim(), folder, &models, loras, (dtype, packing), tokens)
            });
            let found = settings
                .cache
                .zip(identity.as_ref())
                .map_or(Ok(None), |(cache, identity)| cache.get(identity));
            let found = found.unwrap_or_else(|problem| {
                notes.push(format!("the cached embedding is ignored and made anew: {problem}"));
                None
            });
            let state = match found {
                Some(contexts) => State::Known(contexts),
                None => {
                    let (gemma, tokenizer) = match &mut opened {
                        Some(opened) => opened,
                        none => {
                            let gemma = GemmaFolder::open(folder)?.packed_as(settings.packing);
                            let tokenizer = gemma.tokenizer()?;
                            none.insert((gemma, tokenizer))
                        }
                    };
                    State::Tokens(tokens(gemma, tokenizer, prompt, settings)?)
                }
            };
            wanted.push(Wanted { state, identity });
        }
        if opened.is_none() {
            notes.push("the prompt's embedding comes from the cache".into());
        }
        Ok(Self {
            gemma: opened.map(|(gemma, _)| gemma),
            wanted,
            tokens: settings.tokens,
            cache: settings.cache.cloned(),
        })
    }

    /// The text encoder and how many tokens each prompt has that it is to encode, if there are any.
    pub(super) fn unknown(&self) -> Option<(&GemmaFolder, Vec<usize>)> {
        let tokens = self.wanted.iter().filter_map(|wanted| match &wanted.state {
            State::Tokens(ids) => Some(ids.len()),
            State::Known(_) => None,
        });
        Some((self.gemma.as_ref()?, tokens.collect()))
    }

    /// Length of the contexts.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Builds the networks once, if they will be needed, as [`Plan`](super::Plan) does with all.
    pub fn check(&self, loader: Loader, checkpoint: &Checkpoint, progress: &mut dyn Progress) -> Result<()> {
        let Some(gemma) = &self.gemma else { return Ok(()) };
        let weights = gemma.weights(loader.dtype);
        Gemma::load(&weights, gemma)?;
        loader.finish(&weights, "text encoder", Unread::Refuse, progress)?;
        loader.load(checkpoint, Component::Projection, progress, Projection::load)?;
        loader.load(checkpoint, Component::Connector, progress, Connectors::load)?;
        Ok(())
    }

    /// The contexts, in order. What is new is kept in the cache.
    pub fn run(
        &self,
        loader: Loader,
        checkpoint: &Checkpoint,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Contexts>> {
        let unknown: Vec<Vec<u32>> = self
            .wanted
            .iter()
            .filter_map(|wanted| match &wanted.state {
                State::Tokens(ids) => Some(ids.clone()),
                State::Known(_) => None,
            })
            .collect();
        let mut encoded = match &self.gemma {
            Some(gemma) => self.encode(gemma, &unknown, loader, checkpoint, progress)?,
            None => Vec::new(),
        }
        .into_iter();
        let mut contexts = Vec::new();
        for wanted in &self.wanted {
            let State::Tokens(_) = &wanted.state else { continue };
            let Some(new) = encoded.next() else { break };
            if let Some((cache, identity)) = self.cache.as_ref().zip(wanted.identity.as_ref())
                && let Err(error) = cache.put(identity, &new)
            {
                progress.note(format!("the embedding is not kept: {error}"))?;
            }
            contexts.push(new);
        }
        let mut contexts = contexts.into_iter();
        let answer = |wanted: &Wanted| match &wanted.state {
            State::Known(known) => Some(known.clone()),
            State::Tokens(_) => contexts.next(),
        };
        Ok(self.wanted.iter().filter_map(answer).collect())
    }

    fn encode(
        &self,
        gemma: &GemmaFolder,
        ids: &[Vec<u32>],
        loader: Loader,
        checkpoint: &Checkpoint,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Contexts>> {
        progress.phase("encode text", 0)?;
        let weights = gemma.weights(loader.dtype).kept(loader.residency);
        let network = Gemma::load(&weights, gemma)?;
        loader.finish(&weights, "text encoder", Unread::Refuse, progress)?;
        let states = network.hidden_states(ids)?;
        gemma.release();
        let projection = loader.load(checkpoint, Component::Projection, progress, Projection::load)?;
        let features = projection.forward(&states)?;
        drop((states, projection));
        checkpoint.release();
        let connectors = loader.load(checkpoint, Component::Connector, progress, Connectors::load)?;
        let contexts = connectors.forward(&features, self.tokens as i32);
        checkpoint.release();
        contexts
    }
}

/// Token ids of a prompt, which must fit.
fn tokens(
    gemma: &GemmaFolder,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    settings: Settings,
) -> Result<Vec<u32>> {
    let mut ids =
        if prompt.ours { tokenizer.encode_cut(prompt.text)? } else { tokenizer.encode(prompt.text)? };
    if prompt.ours {
        ids.truncate(settings.tokens);
    }
    if ids.len() > settings.tokens {
        return Err(Error::request(
            format!("the prompt has {} tokens; --max-tokens is {}", ids.len(), settings.tokens),
            "shorten it, or raise --max-tokens: the first tokens alone would be another prompt",
        ));
    }
    let rows = gemma.weights(settings.dtype).shape("embed_tokens.weight");
    tokenizer.check_rows(&ids, rows.and_then(|shape| shape.first().copied()).unwrap_or(0))?;
    Ok(ids)
}

/// A prompt to be encoded into a file.
#[derive(Clone, Debug)]
pub struct TextRequest {
    /// The text.
    pub prompt: String,
    /// What a clip should not be. Without, a safetensors file for a dev model gets Lightricks' list.
    pub negative_prompt: Option<String>,
    /// Model files or folders: those with the text projection and the connectors.
    pub models: Vec<PathBuf>,
    /// Folder of the Gemma text encoder.
    pub gemma: PathBuf,
    /// The file to be written; its ending decides the format.
    pub output: PathBuf,
    /// Length of the contexts; `None` is the model's 1024, or the original's 256 in an `.npz`.
    pub max_tokens: Option<usize>,
    /// Type of weights and activations.
    pub dtype: Dtype,
    /// How the text encoder's linear layers are packed while they are read.
    pub quantize: Option<Packing>,
    /// Which unread tensors stop the run.
    pub unread: UnreadPolicy,
    /// How the text encoder's layers are kept.
    pub residency: Residency,
    /// Where encoded prompts are kept.
    pub cache: Option<EmbeddingCache>,
}

/// A checked [`TextRequest`].
#[derive(Debug)]
pub struct TextPlan<'a> {
    pub(super) request: &'a TextRequest,
    pub(super) checkpoint: Checkpoint,
    pub(super) encoding: Encoding,
    /// How the text encoder's layers are kept.
    pub(super) residency: Residency,
    notes: Vec<String>,
}

impl<'a> TextPlan<'a> {
    /// Checks everything that can be checked without weights.
    pub fn new(request: &'a TextRequest) -> Result<Self> {
        if request.prompt.trim().is_empty() {
            return Err(Error::request("the prompt is empty", "say what the clip shows and how it sounds"));
        }
        let npz = is_npz(&request.output);
        let tokens = request.max_tokens.unwrap_or(if npz { ORIGINAL_TOKENS } else { MAX_TOKENS });
        if tokens == 0 || tokens > MAX_TOKENS || !tokens.is_multiple_of(REGISTERS) {
            return Err(Error::request(
                format!("--max-tokens is {tokens}"),
                format!("give a multiple of {REGISTERS} up to {MAX_TOKENS}, such as {ORIGINAL_TOKENS}"),
            ));
        }
        let checkpoint = Checkpoint::open(&request.models)?;
        let guided = !npz && Kind::of(&checkpoint) == Some(Kind::Dev);
        let negative = match &request.negative_prompt {
            Some(text) => Some(Prompt { text, ours: false }),
            None => guided.then_some(Prompt { text: NEGATIVE_PROMPT, ours: true }),
        };
        let wanted: Vec<_> =
            [Prompt { text: &request.prompt, ours: false }].into_iter().chain(negative).collect();
        let mut notes = Vec::new();
        let settings = Settings {
            dtype: request.dtype,
            packing: request.quantize,
            tokens,
            loras: &[],
            cache: request.cache.as_ref(),
        };
        let encoding = Encoding::new(&wanted, &request.gemma, &checkpoint, settings, &mut notes)?;
        let plan = Self { request, checkpoint, encoding, residency: request.residency, notes };
        plan.encoding.check(plan.loader(), &plan.checkpoint, &mut |_| std::ops::ControlFlow::Continue(()))?;
        Ok(plan)
    }

    fn loader(&self) -> Loader {
        let TextRequest { dtype, unread, .. } = *self.request;
        Loader { dtype, unread, residency: self.residency }
    }

    /// Encodes; [`Embedding::save`] writes.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Embedding> {
        for note in &self.notes {
            progress.note(note)?;
        }
        let mut texts = texts(self.encoding.run(self.loader(), &self.checkpoint, progress)?, 1);
        let text = texts.pop().ok_or_else(|| Error::request("there is no prompt", "give one"))?;
        Ok(Embedding {
            prompt: Some(self.request.prompt.clone()),
            positive: text.positive,
            negative: text.negative,
        })
    }
}

/// The text of each shot: the first `shots` contexts, each with those of the negative prompt, which come last if there
/// are any.
pub fn texts(mut contexts: Vec<Contexts>, shots: usize) -> Vec<Text> {
    let negative = contexts.split_off(shots.min(contexts.len())).pop();
    contexts.into_iter().map(|positive| Text { positive, negative: negative.clone() }).collect()
}
