//! What one window hands to the next: the end of what it made, in the form in which a clip begins.
//!
//! The first latent frame of a clip holds one picture, every other eight, so one from the middle of a clip is not a first
//! one. Of each window's overlap the picture at its beginning is therefore decoded and encoded again, as a first latent
//! frame; those after it are given as they are, and what the window adds joins the very latents that it was given. The
//! first stage of two, which works at half size, is given the pictures of the overlap at that size. The sound's first latent
//! frame holds one mel frame instead of four, and is made anew the same way, from the spectrogram; so are those next to it,
//! which without the past that they had are others. How much that matters: docs/long-video.md.

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
use crate::shape::MEL_FRAMES_PER_LATENT;
use crate::video_vae::{ConvDecoder, Encoder, Tiling};

/// Latent frames before the overlap that are decoded with it: what they lack of a past does not reach into it.
pub(super) const VIDEO_PAST: usize = 3;
const AUDIO_PAST: usize = 32;
/// Latent frames of sound that are made anew, if the overlap is twice as long: as far as a missing past is heard.
const AUDIO_ANEW: usize = 5;

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
        let anew = AUDIO_ANEW.min(given / 2).max(1) as i32;
        let past = clip.slice(2, from as i32..start as i32 + anew)?;
        let decoder = self.loader.load(self.files, Component::AudioDecoder, progress, AudioDecoder::load)?;
        let mel = decoder.forward(&past)?; // (1, 2, frames, bins)
        // From the last frame of the first latent on.
        let first = mel.dim(2) - (anew - 1) * MEL_FRAMES_PER_LATENT as i32 - 1;
        let mel = mel.slice(2, first..mel.dim(2))?;
        mel.eval()?;
        drop(decoder);
        let encoder = self.loader.load(self.files, Component::AudioEncoder, progress, AudioEncoder::load)?;
        let made = encoder.forward(&mel)?; // (1, channels, anew, bins)
        check_finite(&made, "audio_encoder", "the latent of the overlap")?;
        let joined = mlx::concatenate(&[&made, &own.slice(2, anew..given as i32)?], 2)?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::ops::ControlFlow;
    use std::path::Path;

    use super::*;
    use crate::pipeline::saved::Place;
    use crate::pipeline::{Plan, Recipe, Request};

    fn request(recipe: Recipe) -> Request {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        Request {
            prompt: Some("a brook".into()),
            models: vec![fixtures.join("2.3/model.safetensors")],
            spatial_upsampler: Some(fixtures.join("upsamplers/2.3-spatial-x2.safetensors")),
            recipe: Some(recipe),
            height: Some(64),
            width: 128,
            frames: 57,
            window: 33,
            overlap: Some(17),
            dummy_text: true,
            dtype: Dtype::F32,
            ..Request::default()
        }
    }

    fn values(x: &Array) -> Vec<f32> {
        x.to_f32().unwrap()
    }

    fn furthest(a: &Array, b: &Array) -> f32 {
        assert_eq!(a.shape(), b.shape());
        values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_window_is_given_the_clips_own_latents_and_a_first_one_of_one_picture() {
        let silent: &mut dyn Progress = &mut |_| ControlFlow::Continue(());
        let request = request(Recipe::Distilled);
        let plan = Plan::new(&request).unwrap();
        let [_, window, ..] = plan.windows.as_slice() else { panic!("{:?}", plan.windows) };
        let audio = window.audio.unwrap();
        assert!(window.video.start > 0 && audio.start > 0 && window.video.given == 3);
        // Any clip so far will do.
        let drawn = |shape: &[i32]| Noise::new(3).normal(shape).unwrap();
        let (channels, sound) = (plan.transformer.video.in_channels, plan.transformer.audio.in_channels / 16);
        let latents = Latents {
            video: drawn(&[1, channels, window.video.makes().start as i32, 2, 4]),
            audio: Some(drawn(&[1, sound, audio.makes().start as i32, 16])),
        };
        let (files, loader, stages) = (&plan.checkpoint, plan.loader(), plan.window_stages(window));
        let tail = Tail { loader, files, latents: &latents, window, index: 1, seed: 7 };
        let given = tail.given(&stages, silent).unwrap();
        let pixels = tail.pixels(silent).unwrap();
        assert_eq!(pixels.shape(), [17, 64, 128, 3]);
        let encoder = loader.load(files, Component::VideoEncoder, silent, Encoder::load).unwrap();
        let encode =
            |pixels: &Array| video_tokens(&encoder.forward(&pixels.expand_dims(&[0]).unwrap()).unwrap());

        // Full size: tokens of 8 cells, one frame after the other.
        let own = video_tokens(&latents.video).unwrap();
        let own = own.slice(1, own.dim(1) - 24..own.dim(1)).unwrap();
        assert_eq!(given[1].video.shape(), own.shape());
        let after = |tokens: &Array| values(&tokens.slice(1, 8..24).unwrap());
        assert_eq!(after(&given[1].video), after(&own), "the clip's own, bit for bit");
        let first = given[1].video.slice(1, 0..8).unwrap();
        assert!(furthest(&first, &own.slice(1, 0..8).unwrap()) > 1e-2, "not one that holds eight pictures");
        assert!(furthest(&first, &encode(&pixels.slice(0, 0..1).unwrap()).unwrap()) < 1e-5);
        // Half size: the same pictures. A causal encoder makes the first latent of the first picture alone.
        let small = shrink(&pixels, 2).unwrap();
        assert_eq!(small.shape(), [17, 32, 64, 3]);
        assert!(furthest(&given[0].video, &encode(&small).unwrap()) < 1e-5);

        let own = audio_tokens(latents.audio.as_ref().unwrap()).unwrap(); // (1, frames, channels · bins)
        let sound = given[0].audio.as_ref().unwrap();
        let (start, end) = (audio.start as i32, own.dim(1));
        assert_eq!(sound.dim(1), end - start);
        let after = |tokens: &Array, from| values(&tokens.slice(1, from..tokens.dim(1)).unwrap());
        let anew = (audio.given as i32 / 2).min(AUDIO_ANEW as i32);
        assert_eq!(after(sound, anew), after(&own, start + anew), "the clip's own, bit for bit");
        assert_ne!(
            values(&sound.slice(1, anew - 1..anew).unwrap()),
            values(&own.slice(1, start + anew - 1..start + anew).unwrap())
        );
        let first = sound.slice(1, 0..1).unwrap();
        assert!(furthest(&first, &own.slice(1, start..start + 1).unwrap()) > 1e-2);
        assert_eq!(values(given[1].audio.as_ref().unwrap()), values(sound));

        // What the window makes of them begins with them, in both stages' result.
        let texts = match &plan.prompts {
            crate::pipeline::text::Prompts::Known(texts) => texts.clone(),
            other => panic!("{other:?}"),
        };
        let place = Place { window: 1, ..Place::default() };
        let (made, _) = plan.made(window, place, &given, &[vec![], vec![]], &texts[0], silent).unwrap();
        let tokens = video_tokens(&made.video).unwrap();
        assert_eq!(values(&tokens.slice(1, 0..24).unwrap()), values(&given[1].video));
        let tokens = audio_tokens(made.audio.as_ref().unwrap()).unwrap();
        assert_eq!(values(&tokens.slice(1, 0..sound.dim(1)).unwrap()), values(sound));
        let clip = append(Some(latents.clone()), &made, window).unwrap();
        assert_eq!(clip.video.dim(2) as usize, window.video.makes().end);
        assert_eq!(clip.audio.unwrap().dim(2) as usize, audio.makes().end);
        assert_eq!(values(&clip.video.slice(2, 0..latents.video.dim(2)).unwrap()), values(&latents.video));
    }

    #[test]
    fn the_clips_beginning_is_given_as_it_is() {
        let silent: &mut dyn Progress = &mut |_| ControlFlow::Continue(());
        let request = Request { frames: 25, window: 17, ..request(Recipe::Distilled) };
        let request = Request { overlap: Some(9), ..request };
        let plan = Plan::new(&request).unwrap();
        let mut window = plan.windows[1].clone();
        // A first shot of one latent frame leaves no more.
        window.video = Stretch { start: 0, length: 2, given: 1 };
        window.audio = Some(Stretch { start: 0, length: 9, given: 1 });
        let channels = plan.transformer.video.in_channels;
        let drawn = |shape: &[i32]| Noise::new(3).normal(shape).unwrap();
        let latents = Latents {
            video: drawn(&[1, channels, 1, 2, 4]),
            audio: Some(drawn(&[1, plan.transformer.audio.in_channels / 16, 1, 16])),
        };
        let tail = Tail {
            loader: plan.loader(),
            files: &plan.checkpoint,
            latents: &latents,
            window: &window,
            index: 1,
            seed: 7,
        };
        let given = tail.given(&plan.window_stages(&window), silent).unwrap();
        assert_eq!(values(&given[1].video), values(&video_tokens(&latents.video).unwrap()));
        assert_eq!(given[0].video.shape(), [1, 2, channels]);
        let sound = given[0].audio.as_ref().unwrap();
        assert_eq!(values(sound), values(&audio_tokens(latents.audio.as_ref().unwrap()).unwrap()));
    }

    #[test]
    fn pictures_shrink_to_the_mean_of_squares() {
        let pixels = mlx::arange(0.0, 24.0, 1.0, Dtype::F32).unwrap().reshape(&[1, 2, 4, 3]).unwrap();
        assert_eq!(values(&shrink(&pixels, 2).unwrap()), [7.5, 8.5, 9.5, 13.5, 14.5, 15.5]);
    }
}
