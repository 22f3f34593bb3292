//! The mathematics of denoising: which sigmas, which steps, which guidance, and how latents become tokens. It knows no
//! network (the caller supplies one as a [`denoise::Denoiser`]), no file and no device.
//!
//! The model is a rectified flow: x_σ = (1 − σ) · x_0 + σ · noise, and the network's velocity is (x_σ − x_0) / σ.

pub mod conditioning;
pub mod denoise;
pub mod guidance;
pub mod patchify;
pub mod schedule;
pub mod step;

use crate::shape::Modality;

/// Something for each modality that takes part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Both<T> {
    /// The video's, unless there is no video.
    pub video: Option<T>,
    /// The audio's, unless there is no audio.
    pub audio: Option<T>,
}

impl<T> Default for Both<T> {
    fn default() -> Self {
        Self { video: None, audio: None }
    }
}

impl<T> Both<T> {
    /// The one of `modality`.
    pub fn get(&self, modality: Modality) -> Option<&T> {
        match modality {
            Modality::Video => self.video.as_ref(),
            Modality::Audio => self.audio.as_ref(),
        }
    }

    /// Those present, video first.
    pub fn iter(&self) -> impl Iterator<Item = (Modality, &T)> {
        let video = self.video.iter().map(|value| (Modality::Video, value));
        video.chain(self.audio.iter().map(|value| (Modality::Audio, value)))
    }

    /// What `make` makes of those present, video first; the first error stops it.
    pub fn try_map<'a, U, E>(
        &'a self,
        mut make: impl FnMut(Modality, &'a T) -> Result<U, E>,
    ) -> Result<Both<U>, E> {
        Ok(Both {
            video: self.video.as_ref().map(|value| make(Modality::Video, value)).transpose()?,
            audio: self.audio.as_ref().map(|value| make(Modality::Audio, value)).transpose()?,
        })
    }
}
