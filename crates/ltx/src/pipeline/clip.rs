//! What a run makes: latents, and frames and sound that are decoded on demand.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;

use mlx::{Array, Dtype};
use safetensors::tensor::TensorView;

use super::Sound;
use super::networks::Loader;
use crate::checkpoint::{Checkpoint, Component};
use crate::error::{Error, Result};
use crate::media::{Frame, Output};
use crate::noise::Noise;
use crate::progress::Progress;
use crate::video_vae::{ConvDecoder, Tiling, rgb8};

/// A finished clip. Frames and sound are made when they are asked for, a little at a time, by networks that are in memory only
/// while they are: to make one after the other takes less memory than both together.
pub struct Clip {
    /// The latents that it decodes from.
    pub latents: Latents,
    pub(super) loader: Loader,
    pub(super) files: Checkpoint,
    pub(super) tiling: Tiling,
    pub(super) noise: Noise,
}

impl Clip {
    /// The frames, in order, from the first on.
    pub fn frames(&self, progress: &mut dyn Progress) -> Result<Frames> {
        self.files.release();
        let decoder = Component::VideoDecoder;
        let decoder = self.loader.load(&self.files, decoder, progress, ConvDecoder::load)?;
        let mut noise = self.noise.clone();
        let draw = move |shape: &[i32]| Ok(noise.normal(shape)?);
        Ok(Frames::new(decoder.decode(&self.latents.video, &self.tiling, draw)?))
    }

    /// The sound, from the beginning on, unless the clip is silent.
    pub fn sound(&self, progress: &mut dyn Progress) -> Result<Option<Sound>> {
        self.files.release();
        let sound = |latent| Sound::new(self.loader, &self.files, latent, progress);
        self.latents.audio.as_ref().map(sound).transpose()
    }
}

/// Final latents, normalized, in f32.
#[derive(Clone, Debug)]
pub struct Latents {
    /// (1, channels, frames, height, width)
    pub video: Array,
    /// (1, channels, frames, bins)
    pub audio: Option<Array>,
}

impl Latents {
    /// Writes them as safetensors with the keys `video` and `audio`, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (name, array) in [("video", Some(&self.video)), ("audio", self.audio.as_ref())] {
            if let Some(array) = array {
                let shape: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
                tensors.push((name, shape, array.to_f32()?));
            }
        }
        let views = tensors.iter().map(|(name, shape, values)| {
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytemuck::cast_slice(values));
            view.map(|view| (*name, view))
        });
        let failed = |error: safetensors::SafeTensorError| {
            Error::file(path, "", format!("cannot be written: {error}"), "please report this")
        };
        let views: Vec<_> = views.collect::<std::result::Result<_, _>>().map_err(failed)?;
        let bytes = safetensors::serialize(views, None).map_err(failed)?;
        let mut output = Output::create(path)?;
        output.file().write_all(&bytes).map_err(|error| output.error(error))?;
        Ok(output.finish()?)
    }
}

/// Whether latents can be written to `path`, to be known before any work.
pub fn check_latents_path(path: &Path) -> Result<()> {
    Ok(Output::create(path).map(drop)?)
}

/// The frames of a clip. Each step of the iterator decodes at most one piece of the video.
pub struct Frames {
    chunks: Box<dyn Iterator<Item = Result<Array>>>, // each (frames, height, width, rgb) in [-1, 1]
    ready: VecDeque<Frame>,
}

impl Frames {
    pub(super) fn new(chunks: impl Iterator<Item = Result<Array>> + 'static) -> Self {
        Self { chunks: Box::new(chunks), ready: VecDeque::new() }
    }

    fn decode(&mut self) -> Option<Result<()>> {
        let chunk = self.chunks.next()?;
        Some(chunk.and_then(|pixels| {
            check_finite(&pixels, "video_decoder", "a frame")?;
            let (width, height) = (pixels.dim(2) as u32, pixels.dim(1) as u32);
            self.ready.extend(rgb8(&pixels)?.into_iter().map(|rgb| Frame { width, height, rgb }));
            Ok(())
        }))
    }
}

impl Iterator for Frames {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        while self.ready.is_empty() {
            if let Err(error) = self.decode()? {
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// An error when `x` holds anything that is not a finite number: a black or silent clip is never a success.
pub(super) fn check_finite(x: &Array, component: &'static str, tensor: &str) -> Result<()> {
    let axes: Vec<i32> = (0..x.rank() as i32).collect();
    let finite = x.is_finite()?.all(&axes, false)?.astype(Dtype::F32)?.item()?;
    if finite == 1.0 {
        Ok(())
    } else {
        Err(Error::NotFinite { component, tensor: tensor.into(), step: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_named() {
        let good = Array::from_slice(&[1.0f32, -2.0], &[1, 2]).unwrap();
        check_finite(&good, "vocoder", "the sound").unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let bad = Array::from_slice(&[1.0f32, bad], &[2]).unwrap();
            let error = check_finite(&bad, "vocoder", "the sound").unwrap_err().to_string();
            assert!(error.contains("the sound of the vocoder"), "{error}");
        }
    }

    #[test]
    fn latents_come_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.safetensors");
        let video = Array::from_slice(&[0.5f32; 6], &[1, 1, 1, 2, 3]).unwrap();
        Latents { video, audio: None }.save(&path).unwrap();
        let file = crate::checkpoint::File::open(&path).unwrap();
        assert_eq!(file.array("video").unwrap().shape(), [1, 1, 1, 2, 3]);
        assert!(file.info("audio").is_none());
        assert!(check_latents_path(&folder.path().join("no/where")).is_err());
        assert!(check_latents_path(folder.path()).is_err());
    }

    #[test]
    fn frames_come_one_by_one_from_chunks() {
        let chunk = |value: f32| mlx::full(&[2, 1, 1, 3], f64::from(value), Dtype::F32).map_err(Error::from);
        let frames: Vec<Frame> =
            Frames::new([chunk(-1.0), chunk(1.0)].into_iter()).map(Result::unwrap).collect();
        let levels: Vec<u8> = frames.iter().map(|frame| frame.rgb[0]).collect();
        assert_eq!(levels, [0, 0, 255, 255]);
        let bad = Frames::new([chunk(f32::NAN)].into_iter()).next().unwrap();
        assert!(matches!(bad, Err(Error::NotFinite { component: "video_decoder", .. })));
    }
}
