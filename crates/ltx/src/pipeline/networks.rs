//! How a run gets its networks: one component of one set of files at a time, with every tensor accounted for.

use std::ops::ControlFlow;

use mlx::Dtype;

use super::text::Prompts;
use super::{Plan, Request, UnreadPolicy};
use crate::audio_vae::{AudioDecoder, AudioEncoder};
use crate::checkpoint::{Checkpoint, Component, Config, Residency, Unread, Weights};
use crate::dit::Dit;
use crate::error::Result;
use crate::progress::Progress;
use crate::upsampler::Upsampler;
use crate::video_vae::{ConvDecoder, Encoder};
use crate::vocoder::Vocoder;

/// What holds for every network of a run.
#[derive(Clone, Copy, Debug)]
pub struct Loader {
    pub dtype: Dtype,
    pub unread: UnreadPolicy,
    pub residency: Residency,
}

impl Loader {
    /// Makes a network of one component, and ends its loading as the request wants it.
    pub fn load<T>(
        self,
        files: &Checkpoint,
        component: Component,
        progress: &mut dyn Progress,
        make: impl FnOnce(&Weights, &Config) -> Result<T>,
    ) -> Result<T> {
        let (weights, config) = files.component(component, self.dtype)?;
        let weights = weights.kept(self.residency);
        let network = make(&weights, &config)?;
        self.finish(&weights, &component.to_string(), component.unread(), progress)?;
        Ok(network)
    }

    /// Refuses or reports what was left unread.
    pub fn finish(
        self,
        weights: &Weights,
        name: &str,
        unread: Unread,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let left = weights.finish(match self.unread {
            UnreadPolicy::Allow => Unread::Report,
            UnreadPolicy::Strict => Unread::Refuse,
            UnreadPolicy::Component => unread,
        })?;
        match left.first() {
            None => Ok(()),
            Some(first) => {
                progress.note(format!("{name}: {} tensors are not used, {first} first", left.len()))
            }
        }
    }
}

impl Plan<'_> {
    pub(super) fn loader(&self) -> Loader {
        let Request { dtype, unread, .. } = *self.request;
        Loader { dtype, unread, residency: self.choices.transformer }
    }

    /// Builds every network once, so that a missing, misshapen or unread tensor is found now and not after an hour. Building
    /// reads headers only: weights are mapped, and nothing is computed.
    pub(super) fn check_networks(&self) -> Result<()> {
        let loader = self.loader();
        let silent: &mut dyn Progress = &mut |_| ControlFlow::Continue(());
        if let Prompts::Encode(encoding) = &self.prompts {
            encoding.check(loader, &self.checkpoint, silent)?;
        }
        if !self.request.placeholder {
            self.check_denoising(silent)?;
        }
        if !self.request.skip_vae {
            check_decoders(
                loader,
                &self.checkpoint,
                (self.video.height, self.video.width),
                self.audio.is_some(),
            )?;
        }
        Ok(())
    }

    fn check_denoising(&self, silent: &mut dyn Progress) -> Result<()> {
        let loader = self.loader();
        let joins = self.windows.len() > 1;
        if joins || !self.images.is_empty() {
            loader.load(&self.checkpoint, Component::VideoEncoder, silent, Encoder::load)?;
        }
        if joins {
            loader.load(&self.checkpoint, Component::VideoDecoder, silent, ConvDecoder::load)?;
        }
        if joins && self.audio.is_some() {
            loader.load(&self.checkpoint, Component::AudioDecoder, silent, AudioDecoder::load)?;
            loader.load(&self.checkpoint, Component::AudioEncoder, silent, AudioEncoder::load)?;
        }
        for model in self.steps.iter().filter_map(|steps| steps.model.as_ref()) {
            loader.load(model, Component::Dit, silent, Dit::load)?;
        }
        if let Some(files) = self.upsampler.as_ref().filter(|_| self.recipe.two_stages()) {
            loader.load(files, Component::Upsampler, silent, Upsampler::load)?;
        }
        Ok(())
    }
}

/// Builds the networks that decode a clip of a height and width, with sound or without.
pub(super) fn check_decoders(
    loader: Loader,
    files: &Checkpoint,
    (height, width): (usize, usize),
    audio: bool,
) -> Result<()> {
    let silent: &mut dyn Progress = &mut |_| ControlFlow::Continue(());
    loader.load(files, Component::VideoDecoder, silent, ConvDecoder::load)?.check_size(height, width)?;
    if audio {
        loader.load(files, Component::AudioDecoder, silent, AudioDecoder::load)?;
        loader.load(files, Component::Vocoder, silent, Vocoder::load)?;
    }
    Ok(())
}
