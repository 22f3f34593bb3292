//! Pixels → normalized video latents.

use mlx::{Array, Dtype};

use super::config::{self, Blocks};
use super::conv::{CausalConv, Padding};
use super::layer::{Layer, Place};
use super::memory::Amount;
use super::resample::patchify;
use super::stream::{Network, PIECE, Stream};
use super::{Scale, Statistics, channels_first};
use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::trace::Trace;

/// The convolutional encoder of every generation.
#[derive(Clone, Debug)]
pub struct Encoder {
    statistics: Statistics,
    conv_in: CausalConv,
    layers: Vec<Layer>,
    conv_out: CausalConv,
    patch: i32,
    rgb: i32,
    latent: i32,
    scale: Scale,
    dtype: Dtype,
    /// Values that a layer makes at a time, about.
    pub(super) piece: usize,
}

impl Encoder {
    /// Reads the weights of [`crate::checkpoint::Component::VideoEncoder`], with the whole configuration of its file.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let vae = config.at("vae")?;
        // A diffusion autoencoder keeps the encoder in an object of its own, where `out_channels` are the latent's;
        // in the flat layout that name means the decoder's colours.
        let nested = vae.optional_at("encoder")?;
        let (own, latent, key) = match &nested {
            Some(own) => {
                (own, "out_channels", if own.get("blocks").is_some() { "blocks" } else { "encoder_blocks" })
            }
            None => (&vae, "latent_channels", "encoder_blocks"),
        };
        config::check(own)?;
        let blocks = Blocks::read(own, key)?;
        let latent = config::size(own, latent, 128)?;
        let (patch, rgb) = (config::size(own, "patch_size", 4)?, config::size(own, "in_channels", 3)?);
        let padding = match &nested {
            Some(own) if own.get("spatial_padding_mode").is_some() => {
                config::padding(own, &["spatial_padding_mode"], Padding::Zeros)?
            }
            Some(_) => config::padding(&vae, &["encoder_spatial_padding_mode"], Padding::Zeros)?,
            None => config::padding(
                &vae,
                &["spatial_padding_mode", "encoder_spatial_padding_mode"],
                Padding::Zeros,
            )?,
        };
        // The logarithm of the variance comes after the means and is not used.
        let outputs = match own.optional_str("latent_log_var")? {
            None | Some("uniform" | "constant") => latent.checked_add(1),
            Some("per_channel") => latent.checked_mul(2),
            Some(other) => return Err(own.error("latent_log_var", format!("is `{other}`"))),
        };
        let outputs = outputs.ok_or_else(|| own.error("latent_log_var", "asks for too many channels"))?;
        let patched = patch.checked_mul(patch).and_then(|area| area.checked_mul(rgb));
        let patched = patched.ok_or_else(|| own.error("patch_size", "is too large"))?;

        let encoder = weights.at("encoder");
        let conv =
            |name, inputs, outputs| CausalConv::load(&encoder.at(name), inputs, outputs, [1, 1, 1], padding);
        let (mut layers, mut channels) = (Vec::new(), latent);
        for (index, block) in blocks.list.iter().enumerate() {
            let weights = encoder.at(format!("down_blocks.{index}"));
            let place = Place { weights, inputs: channels, padding, timestep: None, blocks: &blocks };
            let (layer, outputs) = Layer::encoder(block, &place)?;
            layers.push(layer);
            channels = outputs;
        }
        Ok(Self {
            statistics: Statistics::load(&weights.at("per_channel_statistics"), latent)?,
            conv_in: conv("conv_in", patched, latent)?,
            layers,
            conv_out: conv("conv_out", channels, outputs)?,
            patch,
            rgb,
            latent,
            scale: blocks.scale(patch)?,
            dtype: weights.dtype(),
            piece: PIECE,
        })
    }

    /// How pixels relate to latents.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// The statistics that make latents normalized.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Pixels (batch, frames, height, width, rgb) in [-1, 1] → the means of their latents, normalized, in f32:
    /// (batch, channels, (frames − 1) / scale + 1, height / scale, width / scale). Frames past 1 + n · scale are left out.
    pub fn forward(&self, pixels: &Array) -> Result<Array> {
        self.check(pixels)?;
        let frames = pixels.dim(1);
        self.encode([pixels.slice(1, 0..frames - (frames - 1) % self.scale.frames)].map(|part| Ok(part?)))
    }

    /// The same of a video that comes in parts, one after the other: each (batch, frames, height, width, rgb). How much memory
    /// that takes does not depend on how many there are.
    pub fn encode(&self, parts: impl IntoIterator<Item = Result<Array>>) -> Result<Array> {
        let network = self.network();
        let mut parts = parts.into_iter();
        let mut whole = None;
        if !network.streams() {
            let all = parts.by_ref().collect::<Result<Vec<_>>>()?;
            whole = Some(mlx::concatenate(&all.iter().collect::<Vec<_>>(), 1)?);
        }
        let mut noiseless = |_: &[i32]| Err(Error::request("an encoder injects noise", ""));
        let (mut stream, mut means) = (Stream::default(), Vec::new());
        for part in whole.into_iter().map(Ok).chain(parts) {
            let part = part?;
            self.check(&part)?;
            let at_once =
                network.at_once(part.dim(2) / self.patch, part.dim(3) / self.patch).min(part.dim(1));
            for start in (0..part.dim(1)).step_by(at_once as usize) {
                let pixels = part.slice(1, start..part.dim(1).min(start.saturating_add(at_once)))?;
                // There is always a frame that may come: what looks back only need not know the last.
                network.give(&mut stream, &patchify(&pixels.astype(self.dtype)?, self.patch)?, false)?;
                while let Some(piece) = network.next(&mut stream, &mut noiseless, &mut Trace::off())? {
                    let piece = piece.slice(4, 0..self.latent)?.contiguous()?;
                    piece.eval()?;
                    means.push(piece);
                }
            }
        }
        if means.is_empty() {
            return Err(Error::request("a video of no frames cannot be encoded", "give at least one frame"));
        }
        let means = mlx::concatenate(&means.iter().collect::<Vec<_>>(), 1)?; // (batch, frames, height, width, channels)
        let latent = self.statistics.normalize(&channels_first(&means)?.astype(Dtype::F32)?)?;
        latent.eval()?;
        Ok(latent)
    }

    /// About how many bytes encoding a video of (frames, height, width) pixels takes at most, beside the weights and the video
    /// itself; and how many multiplications and additions.
    pub(crate) fn cost(&self, [frames, height, width]: [usize; 3]) -> (usize, f64) {
        let patch = self.patch.max(1) as usize;
        let (height, width, value) = (height / patch, width / patch, self.dtype.size());
        let at_once = (self.network().at_once(height as i32, width as i32) as usize).min(frames);
        let Amount { kept, working, out, operations } = self.network().amount(at_once, height, width);
        let parts = frames as f64 / at_once.max(1) as f64;
        // The patched pixels before they are of the network's type, and means as they come, joined and in f32.
        let patched = at_once * height * width * patch * patch * self.rgb as usize * (4 + value);
        let means = (parts * out as f64) as usize * (2 * value + 8);
        ((kept + working) * value + patched + means, parts * operations)
    }

    fn network(&self) -> Network<'_> {
        Network {
            first: &self.conv_in,
            layers: &self.layers,
            modulation: None,
            last: &self.conv_out,
            causal: true,
            piece: self.piece,
        }
    }

    fn check(&self, pixels: &Array) -> Result<()> {
        let divides = |size: i32| size > 0 && size % self.scale.pixels == 0;
        match *pixels.shape() {
            [batch, frames, height, width, rgb]
                if batch > 0 && frames > 0 && divides(height) && divides(width) && rgb == self.rgb =>
            {
                Ok(())
            }
            _ => Err(self.refuse(pixels.shape())),
        }
    }

    fn refuse(&self, shape: &[i32]) -> Error {
        Error::request(
            format!("pixels of shape {shape:?} cannot be encoded"),
            format!("give frames whose height and width are multiples of {}", self.scale.pixels),
        )
    }
}
