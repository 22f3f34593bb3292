//! What one window hands to the next: the end of what it made, in the form in which a clip begins.
//!
//! The first latent frame of a clip holds one picture, every other eight, so one from the middle of a clip is not a first
//! one. Of each window's overlap the picture at its beginning is therefore decoded and encoded again, as a first latent
//! frame; those after it are given as they are, and what the window adds joins the very latents that it was given. The
//! first stage of two, which works at half size, is given the pictures of the overlap at that size. The sound's first latent
//! frame holds one mel frame instead of four, and is made anew the same way, from the spectrogram.

use mlx::{Array, Dtype};

use super::Latents;
use super::clip::check_finite;
use super::conditioning::Shapes;
use super::networks::Loader;
use super::window::{Stretch, Window, seed};
use crate::audio_vae::{AudioDecoder, AudioEncoder};
use crate::checkpoint::{Checkpoint, Component};
use crate::diffusion::patchify::{audio_tokens, video_tokens};
use crate::error::Result;
use crate::noise::Noise;
use crate::progress::Progress;
use crate::video_vae::{ConvDecoder, Encoder, Tiling};

/// Latent frames before the overlap that are decoded with it: what they lack of a past does not reach into it.
const VIDEO_PAST: usize = 3;
const AUDIO_PAST: usize = 32;

/// The beginning of a window, as tokens that stay as they are.
#[derive(Clone, Debug)]
pub struct Given {
    pub video: Array,         // (1, given · tokens per frame, channels)
    pub audio: Option<Array>, // (1, given, channels · bins)
}

/// How the beginning of a window is made of what the clip is so far.
pub struct Tail<'a> {
    pub loader: Loader,
    pub files: &'a Checkpoint,
    /// The clip so far.
    pub latents: &'a Latents,
    pub window: &'a Window,
    /// The window's number and the clip's seed.
    pub index: usize,
    pub seed: u64,
}

impl Tail<'_> {
    /// What each stage of the window is given.
    pub fn given(&self, stages: &[Shapes], progress: &mut dyn Progress) -> Result<Vec<Given>> {
        progress.phase("join windows", 0)?;
        let audio = self.audio(progress)?.map(|latent| audio_tokens(&latent)).transpose()?;
        let videos = self.videos(stages, progress)?;
        let given = |video: &Array| Ok(Given { video: video_tokens(video)?, audio: audio.clone() });
        videos.iter().map(given).collect()
    }

    /// Latents (1, channels, given, height, width) for each stage.
    fn videos(&self, stages: &[Shapes], progress: &mut dyn Progress) -> Result<Vec<Array>> {
        let Stretch { start, given, .. } = self.window.video;
        let clip = &self.latents.video;
        let own = clip.slice(2, start as i32..(start + given) as i32)?;
        let full = own.dim(3);
        let smaller = stages.iter().any(|stage| (stage.video.height as i32) < full);
        if start == 0 && !smaller {
            return Ok(vec![own; stages.len()]);
        }
        let pixels = self.pixels(progress)?; // (given pictures, height, width, rgb)
        let encoder = self.loader.load(self.files, Component::VideoEncoder, progress, Encoder::load)?;
        let encode = |pixels: &Array| -> Result<Array> {
            let latent = encoder.forward(&pixels.expand_dims(&[0])?)?.astype(Dtype::F32)?;
            check_finite(&latent, "video_encoder", "the latent of the overlap")?;
            Ok(latent)
        };
        let stage = |stage: &Shapes| -> Result<Array> {
            let divisor = full / stage.video.height.max(1) as i32;
            if divisor > 1 {
                return encode(&shrink(&pixels, divisor)?);
            }
            if start == 0 {
                return Ok(own.clone());
            }
            let first = encode(&pixels.slice(0, 0..1)?)?;
            let joined = mlx::concatenate(&[&first, &own.slice(2, 1..given as i32)?], 2)?;
            joined.eval()?;
            Ok(joined)
        };
        let videos = stages.iter().map(stage).collect();
        self.files.release();
        videos
    }

    /// The pictures of the overlap, from the last one of its first latent frame on: (pictures, height, width, rgb) in
    /// [-1, 1].
    fn pixels(&self, progress: &mut dyn Progress) -> Result<Array> {
        let Stretch { start, given, .. } = self.window.video;
        let from = start.saturating_sub(VIDEO_PAST);
        let latent = self.latents.video.slice(2, from as i32..(start + given) as i32)?;
        let decoder = self.loader.load(self.files, Component::VideoDecoder, progress, ConvDecoder::load)?;
        let scale = decoder.scale().frames;
        // Not what the decoder of the whole clip will draw: that comes from the stream of the first window.
        let mut noise = Noise::stream(seed(self.seed, self.index), 1);
        let draw = move |shape: &[i32]| Ok(noise.normal(shape)?);
        let skipped = (start - from) as i32 * scale;
        let chunks = decoder.decode(&latent, &Tiling::auto(), draw)?.collect::<Result<Vec<_>>>()?;
        let pixels = mlx::concatenate(&chunks.iter().collect::<Vec<_>>(), 0)?;
        let pixels = pixels.slice(0, skipped..pixels.dim(0))?.minimum(1.0f32)?.maximum(-1.0f32)?;
        pixels.eval()?;
        check_finite(&pixels, "video_decoder", "a frame of the overlap")?;
        self.files.release();
        Ok(pixels)
    }

    /// The latent (1, channels, given, bins) of the sound.
    fn audio(&self, progress: &mut dyn Progress) -> Result<Option<Array>> {
        let (Some(Stretch { start, given, .. }), Some(clip)) = (self.window.audio, &self.latents.audio)
        else {
            return Ok(None);
        };
        let own = clip.slice(2, start as i32..(start + given) as i32)?;
        if start == 0 {
            return Ok(Some(own));
        }
        let from = start.saturating_sub(AUDIO_PAST);
        let past = clip.slice(2, from as i32..start as i32 + 1)?;
        let decoder = self.loader.load(self.files, Component::AudioDecoder, progress, AudioDecoder::load)?;
        let mel = decoder.forward(&past)?; // (1, 2, frames, bins)
        let last = mel.slice(2, mel.dim(2) - 1..mel.dim(2))?;
        last.eval()?;
        drop((decoder, mel));
        let encoder = self.loader.load(self.files, Component::AudioEncoder, progress, AudioEncoder::load)?;
        let first = encoder.forward(&last)?; // (1, channels, 1, bins)
        check_finite(&first, "audio_encoder", "the latent of the overlap")?;
        let joined = mlx::concatenate(&[&first, &own.slice(2, 1..given as i32)?], 2)?;
        joined.eval()?;
        self.files.release();
        Ok(Some(joined))
    }
}

/// Frames (frames, height, width, rgb), `divisor` times lower and narrower: the mean of each square.
fn shrink(pixels: &Array, divisor: i32) -> Result<Array> {
    let &[frames, height, width, rgb] = pixels.shape() else { return Ok(pixels.clone()) };
    let squares = [frames, height / divisor, divisor, width / divisor, divisor, rgb];
    Ok(pixels.reshape(&squares)?.mean(&[2, 4], false)?)
}

/// The clip so far and what a window made: its latents without those that it was given.
pub fn append(clip: Option<Latents>, made: &Latents, window: &Window) -> Result<Latents> {
    let new = |latent: &Array, stretch: Stretch| latent.slice(2, stretch.given as i32..stretch.length as i32);
    let Some(clip) = clip else { return Ok(made.clone()) };
    let video = mlx::concatenate(&[&clip.video, &new(&made.video, window.video)?], 2)?;
    let audio = match (&clip.audio, &made.audio, window.audio) {
        (Some(clip), Some(made), Some(stretch)) => Some(mlx::concatenate(&[clip, &new(made, stretch)?], 2)?),
        _ => None,
    };
    mlx::eval([Some(&video), audio.as_ref()].into_iter().flatten())?;
    Ok(Latents { video, audio })
}
