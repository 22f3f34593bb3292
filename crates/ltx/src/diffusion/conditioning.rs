//! The state of one modality while it is denoised: its latent as tokens, and what of it is already known.
//!
//! A mask says how much of each token is to be denoised: 1 all, 0 nothing (the token stays exactly what it is known to
//! be), and values between the share of noise it begins with. Formulas: `LatentState` and the conditioning items of
//! Lightricks' ltx-core.

use mlx::{Array, Dtype, Operand};

use super::patchify;
use crate::error::{Error, Result};
use crate::shape::{AudioShape, LatentShape};

/// One modality's tokens. All arrays are f32.
#[derive(Clone, Debug)]
pub struct LatentState {
    /// What is being denoised. (batch, tokens, channels)
    pub latent: Array,
    /// What is known of it, 0 where nothing is. (batch, tokens, channels)
    pub clean: Array,
    /// How much of each token is to be denoised. (batch, tokens)
    pub mask: Array,
    /// Bounds of each token: seconds, and for video pixels down and across. (batch, 3 or 1, tokens, 2)
    pub positions: Array,
    /// How far each token may attend to each other one, from 0 to 1; `None` is fully. (batch, tokens, tokens)
    pub attention_mask: Option<Array>,
    /// Above 0 for tokens that hold a single picture instead of eight. Video only. (batch, tokens)
    pub keyframes: Option<Array>,
    /// Held as it is and known in full: the network is told that it has no noise.
    pub frozen: bool,
}

impl LatentState {
    /// A video of which nothing is known.
    pub fn video(shape: LatentShape, channels: usize, frame_rate: f64) -> Result<Self> {
        let single = shape.tokens_per_frame();
        let keyframes: Vec<f32> =
            (0..shape.tokens()).map(|token| if token < single { 1.0 } else { 0.0 }).collect();
        let keyframes = Array::from_slice(&keyframes, &[1, shape.tokens() as i32])?;
        let state = Self::unknown(shape.tokens(), channels, patchify::video_positions(shape, frame_rate)?)?;
        Ok(Self { keyframes: Some(keyframes), ..state })
    }

    /// A sound of which nothing is known; `channels` counts the frequency bins in.
    pub fn audio(shape: AudioShape, channels: usize) -> Result<Self> {
        Self::unknown(shape.frames, channels, patchify::audio_positions(shape.frames)?)
    }

    fn unknown(tokens: usize, channels: usize, positions: Array) -> Result<Self> {
        let (tokens, channels) = (tokens as i32, channels as i32);
        let nothing = mlx::zeros(&[1, tokens, channels], Dtype::F32)?;
        Ok(Self {
            latent: nothing.clone(),
            clean: nothing,
            mask: mlx::full(&[1, tokens], 1.0, Dtype::F32)?,
            positions,
            attention_mask: None,
            keyframes: None,
            frozen: false,
        })
    }

    /// Begins from a latent instead of from nothing: what another stage made, or what is to be changed.
    pub fn starting_from(
        self,
        latent: &Array, // (1, tokens, channels)
    ) -> Result<Self> {
        self.fits("latent", latent, self.latent.dim(1))?;
        Ok(Self { latent: latent.clone(), clean: latent.clone(), ..self })
    }

    /// Holds `latent` as it is, so that the other modality follows it.
    pub fn frozen_at(
        self,
        latent: &Array, // (1, tokens, channels)
    ) -> Result<Self> {
        let state = self.starting_from(latent)?;
        Ok(Self { mask: state.mask.multiply(0.0f32)?, frozen: true, ..state })
    }

    /// Makes latent frames of a video known, from `frame` on. `strength` 1 keeps them exactly, 0 denoises them from pure noise.
    pub fn with_frames(
        self,
        tokens: &Array, // (1, frames · tokens per frame, channels)
        shape: LatentShape,
        frame: usize,
        strength: f32,
    ) -> Result<Self> {
        let start = frame.saturating_mul(shape.tokens_per_frame());
        if start.saturating_add(tokens.dim(1) as usize) > shape.tokens() {
            return Err(Error::request(
                format!("the condition from latent frame {frame} on ends after the video's last"),
                format!("place it earlier: the video has {} latent frames", shape.frames),
            ));
        }
        self.with_tokens(tokens, start as i32, strength)
    }

    /// Makes tokens known, from `start` on. `strength` 1 keeps them exactly, 0 denoises them from pure noise.
    pub fn with_tokens(
        self,
        tokens: &Array, // (1, some tokens, channels)
        start: i32,
        strength: f32,
    ) -> Result<Self> {
        let stop = start.saturating_add(tokens.dim(1)).min(self.latent.dim(1));
        self.fits("condition", tokens, stop - start)?;
        let share = mlx::full(&[1, stop - start], f64::from(1.0 - strength), Dtype::F32)?;
        Ok(Self {
            clean: self.clean.slice_update(tokens, &[0, start, 0], &[1, stop, tokens.dim(2)])?,
            mask: self.mask.slice_update(&share, &[0, start], &[1, stop])?,
            ..self
        })
    }

    /// Shows the video a picture for its frame `picture` (counted in pictures), as tokens of their own after the
    /// video's: a guide, not a fixed frame. The frame 0 is better served by [`with_frames`](Self::with_frames).
    pub fn with_keyframe(
        self,
        tokens: &Array, // (1, tokens per frame, channels)
        shape: LatentShape,
        picture: usize,
        frame_rate: f64,
        strength: f32,
    ) -> Result<Self> {
        self.fits("keyframe", tokens, shape.tokens_per_frame() as i32)?;
        let last = shape.video().frames.saturating_sub(1);
        if picture > last {
            return Err(Error::request(
                format!("a keyframe at frame {picture} is after the video's last"),
                format!("place it at frame {last} or earlier"),
            ));
        }
        if self.attention_mask.is_some() {
            return Err(Error::request(
                "a keyframe cannot join a state with an attention mask",
                "add keyframes first",
            ));
        }
        let count = tokens.dim(1);
        let constant = |value: f32| mlx::full(&[1, count], f64::from(value), Dtype::F32);
        let join = |ours: &Array, theirs: &Array, axis| mlx::concatenate(&[ours, theirs], axis);
        Ok(Self {
            latent: join(&self.latent, &tokens.multiply(0.0f32)?, 1)?,
            clean: join(&self.clean, tokens, 1)?,
            mask: join(&self.mask, &constant(1.0 - strength)?, 1)?,
            positions: join(&self.positions, &patchify::picture_positions(shape, picture, frame_rate)?, 2)?,
            keyframes: self.keyframes.as_ref().map(|ours| join(ours, &constant(0.0)?, 1)).transpose()?,
            ..self
        })
    }

    /// The shape of the noise it begins with: (batch, tokens, channels).
    pub fn noise_shape(&self) -> &[i32] {
        self.latent.shape()
    }

    /// The state to begin with: `share` of the latent becomes noise (1: all of it), then what is known is put back.
    pub fn noised(
        self,
        noise: &Array, // (batch, tokens, channels)
        share: f32,
    ) -> Result<Self> {
        self.fits("noise", noise, self.latent.dim(1))?;
        let noised = mix(&self.latent, noise, share)?;
        Ok(Self { latent: self.blend(&noised)?, ..self })
    }

    /// `x` where it is to be denoised, the clean latent where that is known. Exact for masks of 0 and 1.
    pub fn blend(
        &self,
        x: &Array, // (batch, tokens, channels)
    ) -> mlx::Result<Array> {
        mix(&self.clean, x, self.mask.expand_dims(&[-1])?)
    }

    /// The sigma of each token when that of the step is `sigma`. (batch, tokens)
    pub fn timesteps(&self, sigma: f32) -> mlx::Result<Array> {
        self.mask.multiply(if self.frozen { 0.0 } else { sigma })
    }

    /// The modality's sigma, by sample. (batch)
    pub fn sigma(&self, sigma: f32) -> mlx::Result<Array> {
        let sigma = if self.frozen { 0.0 } else { sigma };
        mlx::full(&[self.latent.dim(0)], f64::from(sigma), Dtype::F32)
    }

    /// The tokens of the clip itself, without those of keyframes after it: the first `tokens`.
    pub fn result(&self, tokens: usize) -> mlx::Result<Array> {
        self.latent.slice(1, 0..tokens as i32) // (batch, tokens, channels)
    }

    fn fits(&self, name: &str, given: &Array, tokens: i32) -> Result<()> {
        let expected = [self.latent.dim(0), tokens, self.latent.dim(2)];
        if given.shape() == expected {
            return Ok(());
        }
        Err(Error::request(
            format!("the {name} has shape {:?}, not {expected:?}", given.shape()),
            "make it for this model and this size of clip",
        ))
    }
}

/// a · (1 − share) + b · share: exact for shares of 0 and 1, unlike a + share · (b − a).
fn mix(a: &Array, b: &Array, share: impl Operand) -> mlx::Result<Array> {
    let share = share.array(Dtype::F32)?;
    let rest = share.negative()?.add(1.0f32)?;
    a.multiply(&rest)?.add(b.multiply(&share)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    const SHAPE: LatentShape = LatentShape { frames: 3, height: 2, width: 3 };

    fn video() -> LatentState {
        LatentState::video(SHAPE, 4, 24.0).unwrap()
    }

    fn draw(shape: &[i32], seed: u64) -> Array {
        Noise::new(seed).normal(shape).unwrap()
    }

    #[test]
    fn known_tokens_survive_bit_for_bit_and_unknown_ones_are_pure_noise() {
        let (known, noise) = (draw(&[1, 6, 4], 1), draw(&[1, 18, 4], 2));
        let state = video().with_frames(&known, SHAPE, 1, 1.0).unwrap().noised(&noise, 1.0).unwrap();
        let (latent, noise) = (state.latent.to_f32().unwrap(), noise.to_f32().unwrap());
        assert_eq!(latent[24..48], known.to_f32().unwrap());
        assert_eq!((&latent[..24], &latent[48..]), (&noise[..24], &noise[48..]));
        let timesteps = state.timesteps(0.725).unwrap().to_f32().unwrap();
        assert_eq!((timesteps[5], timesteps[6], timesteps[11], timesteps[12]), (0.725, 0.0, 0.0, 0.725));
        let other = draw(&[1, 18, 4], 3);
        assert_eq!(state.blend(&other).unwrap().to_f32().unwrap()[24..48], known.to_f32().unwrap());
    }

    #[test]
    fn a_sound_can_be_known_in_part() {
        let (known, noise) = (draw(&[1, 2, 8], 1), draw(&[1, 5, 8], 2));
        let state = LatentState::audio(AudioShape { frames: 5 }, 8).unwrap();
        let state = state.with_tokens(&known, 0, 1.0).unwrap().noised(&noise, 1.0).unwrap();
        let latent = state.latent.to_f32().unwrap();
        assert_eq!(latent[..16], known.to_f32().unwrap());
        assert_eq!(latent[16..], noise.to_f32().unwrap()[16..]);
        assert_eq!(state.timesteps(0.5).unwrap().to_f32().unwrap(), [0.0, 0.0, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn strength_and_the_share_of_noise_mix_linearly() {
        let (known, noise) = (draw(&[1, 6, 4], 1), draw(&[1, 18, 4], 2));
        let state = video().with_frames(&known, SHAPE, 0, 0.75).unwrap().noised(&noise, 1.0).unwrap();
        let (known, latent) = (known.to_f32().unwrap(), state.latent.to_f32().unwrap());
        let noise_values = noise.to_f32().unwrap();
        assert!((latent[7] - (0.75 * known[7] + 0.25 * noise_values[7])).abs() < 1e-6);
        let start = draw(&[1, 18, 4], 4);
        let state = video().starting_from(&start).unwrap().noised(&noise, 0.9).unwrap();
        let (start, latent) = (start.to_f32().unwrap(), state.latent.to_f32().unwrap());
        assert!((latent[50] - (0.1 * start[50] + 0.9 * noise_values[50])).abs() < 1e-6);
    }

    #[test]
    fn a_frozen_modality_has_no_noise() {
        let sound = draw(&[1, 5, 8], 1);
        let state = LatentState::audio(AudioShape { frames: 5 }, 8).unwrap().frozen_at(&sound).unwrap();
        let state = state.noised(&draw(&[1, 5, 8], 2), 1.0).unwrap();
        assert_eq!(state.latent.to_f32().unwrap(), sound.to_f32().unwrap());
        assert_eq!(state.timesteps(0.9).unwrap().to_f32().unwrap(), [0.0; 5]);
        assert_eq!(state.sigma(0.9).unwrap().to_f32().unwrap(), [0.0]);
    }

    #[test]
    fn keyframes_come_after_the_video_and_leave_again() {
        let picture = draw(&[1, 6, 4], 1);
        let state = video().with_keyframe(&picture, SHAPE, 16, 10.0, 1.0).unwrap();
        assert_eq!(state.latent.shape(), [1, 24, 4]);
        assert_eq!(state.positions.shape(), [1, 3, 24, 2]);
        assert_eq!(state.positions.to_f32().unwrap()[36..38], [1.6, 1.7]);
        let marks = state.keyframes.as_ref().unwrap().to_f32().unwrap();
        assert_eq!((marks[5], marks[6], marks[23]), (1.0, 0.0, 0.0));
        let state = state.noised(&draw(&[1, 24, 4], 2), 1.0).unwrap();
        assert_eq!(state.latent.to_f32().unwrap()[72..], picture.to_f32().unwrap());
        assert_eq!(state.result(18).unwrap().shape(), [1, 18, 4]);
        assert!(video().with_keyframe(&picture, SHAPE, 17, 10.0, 1.0).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(video().with_frames(&draw(&[1, 6, 4], 1), SHAPE, 3, 1.0).is_err());
        assert!(video().with_frames(&draw(&[1, 6, 4], 1), SHAPE, usize::MAX, 1.0).is_err());
        assert!(video().with_frames(&draw(&[1, 6, 5], 1), SHAPE, 0, 1.0).is_err());
        assert!(video().with_tokens(&draw(&[1, 6, 4], 1), 13, 1.0).is_err());
        assert!(video().noised(&draw(&[1, 17, 4], 1), 1.0).is_err());
    }
}
