//! What stands beside the weights while a network computes, and how much arithmetic that is. Sizes are those of the arrays
//! that are alive at the fullest moment, counted in the code of each network; tests compare them with what MLX counts.

use mlx::Dtype;

use super::{Cost, size};
use crate::pipeline::prompted::BATCH_TOKENS;
use crate::shape::LatentShape;
use crate::{audio_vae, dit, vocoder};

/// One evaluation of the transformer.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Tokens of the video, and of the sound if there is any.
    pub video: usize,
    pub audio: usize,
    /// Tokens of a context.
    pub text: usize,
    /// How often the network is asked, with guidance.
    pub passes: usize,
    /// One of them is with the negative prompt.
    pub negative: bool,
    /// All go through a block before the next one, because blocks are streamed.
    pub together: bool,
    /// Tokens have noise levels of their own.
    pub marked: bool,
}

/// Bytes at most, and the arithmetic of one evaluation.
pub fn denoising(config: &dit::Config, pass: &Pass, dtype: Dtype) -> (u64, Cost) {
    let value = size(dtype);
    let (wide, narrow) = (config.video.width() as u64, config.audio.width() as u64);
    let text = pass.text as u64;
    let batch = (BATCH_TOKENS / pass.video.max(pass.audio).max(1)).clamp(1, pass.passes.max(1));
    let batches = pass.passes.max(1).div_ceil(batch);
    let waiting = if pass.together { batches - 1 } else { 0 } as u64;
    let patterns = if pass.negative { batches.min(2) } else { 1 } as u64;
    let batch = batch as u64;
    let stream = |tokens: usize, width: u64, channels: u64| {
        let tokens = tokens as u64;
        if tokens == 0 {
            return 0;
        }
        // At the fullest, in the feed-forward layer: the tokens, what is four times as wide, and what comes of that; and
        // where tokens have noise levels of their own a shift, a scale and a gate for each.
        let active = batch * tokens * width * (7 + if pass.marked { 3 } else { 0 });
        let waiting = waiting * batch * tokens * width;
        // Rotary tables of the stream and of the exchange, for each set of prompts.
        let rotary = patterns * tokens * (width + narrow);
        // The contexts as they came; and joined, moved and scaled, keys and values, for those that wait too.
        let contexts = 1 + u64::from(pass.negative);
        let context = text * width * (contexts + (4 + patterns) * batch);
        let latents = tokens * channels * 4 * (16 + 6 * pass.passes as u64);
        (active + waiting + rotary + context) * value + latents
    };
    let channels = |stream: &dit::StreamConfig| stream.in_channels.max(stream.out_channels) as u64;
    let work = stream(pass.video, wide, channels(&config.video))
        + stream(pass.audio, narrow, channels(&config.audio));

    let (layers, passes) = (config.layers as f64, pass.passes as f64);
    let [w, a, v, s, t] =
        [wide, narrow, pass.video as u64, pass.audio as u64, text].map(|number| number as f64);
    let heard = if pass.audio > 0 { 1.0 } else { 0.0 };
    let linear =
        v * (14.0 * w * w + heard * 4.0 * w * a) + s * 18.0 * a * a + t * 2.0 * (w * w + heard * a * a);
    let attention = 2.0 * (v * (v + t) * w + s * (s + t) * a + heard * 2.0 * v * s * a);
    let all = 2.0 * layers * passes;
    (work, Cost { linear: all * linear, attention: all * attention, ..Cost::default() })
}

/// The same of the upsampler x2 with so many channels in its middle, from a latent.
pub fn upsampling(latent: LatentShape, channels: usize, dtype: Dtype) -> (u64, f64) {
    let places = (4 * latent.tokens()) as u64;
    let wide = channels as u64;
    // Group norm works in f32: what came in, what stays of it, its squares, and what is added to in the end.
    let work = places * wide * (2 * size(dtype) + 4 * 4);
    let kernel = 27.0 * (channels * channels) as f64;
    let low = latent.tokens() as f64;
    (work, 2.0 * kernel * (8.0 * low + 8.0 * 4.0 * low + low))
}

/// Bytes of decoding a spectrogram of so many latent frames, of which the widest layer makes `frame` bytes a mel frame.
pub fn spectrogram(frame: usize, latents: usize) -> u64 {
    const ARRAYS: usize = 6;
    (4 * latents.min(audio_vae::AT_ONCE as usize) * frame * ARRAYS) as u64
}

/// A generator of the vocoder.
#[derive(Clone, Debug)]
pub struct Generator {
    /// For each stage: samples of a frame, and channels.
    pub stages: Vec<(usize, usize)>,
    /// Taps of all convolutions of a stage's blocks together, for each channel.
    pub taps: usize,
    /// Frames of it for each mel frame of the sound.
    pub frames: f64,
}

/// The same of decoding so many latent frames of sound.
pub fn vocoding(generators: &[Generator], latents: usize) -> (u64, f64) {
    const REACH: usize = 100; // frames around a piece that it sees
    let mel = (4 * latents) as f64;
    let (mut work, mut operations) = (0, 0.0);
    for Generator { stages, taps, frames } in generators {
        let all = mel * frames;
        let piece = (all as usize).min(vocoder::AT_ONCE as usize) + REACH.min(all as usize);
        for &(samples, channels) in stages {
            work = work.max((piece * samples * channels * 4 * STAGE) as u64);
            operations += SLOWER * 2.0 * all * samples as f64 * (channels * channels * taps) as f64;
        }
    }
    (work, operations)
}

/// How much longer the vocoder takes for what it computes than other convolutions: in f32, with much between them.
const SLOWER: f64 = 2.5;
/// Arrays of a stage of the vocoder that are alive at once.
const STAGE: usize = 10;
