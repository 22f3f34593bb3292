//! Pixels → normalized video latents.

use mlx::{Array, Dtype};

use super::config::{self, Blocks};
use super::conv::{CausalConv, Padding};
use super::layer::{Layer, Place};
use super::resample::patchify;
use super::resnet::{Pass, pixel_norm};
use super::{Scale, Statistics, channels_first};
use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::nn;

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
        let shape = pixels.shape();
        let &[_, frames, height, width, rgb] = shape else { return Err(self.refuse(shape)) };
        let divides = |size: i32| size > 0 && size % self.scale.pixels == 0;
        if frames < 1 || !divides(height) || !divides(width) || rgb != self.rgb {
            return Err(self.refuse(shape));
        }
        let pixels = pixels.slice(1, 0..frames - (frames - 1) % self.scale.frames)?.astype(self.dtype)?;
        let mut x = self.conv_in.forward(&patchify(&pixels, self.patch)?, true)?;
        let mut noiseless = |_: &[i32]| Err(Error::request("an encoder injects noise", ""));
        let mut pass = Pass { causal: true, noise: &mut noiseless };
        for layer in &self.layers {
            x = layer.forward(&x, &mut pass)?;
        }
        let x = self.conv_out.forward(&nn::silu(&pixel_norm(&x)?)?, true)?;
        let means = channels_first(&x.slice(4, 0..self.latent)?)?;
        let latent = self.statistics.normalize(&means.astype(Dtype::F32)?)?;
        latent.eval()?;
        Ok(latent)
    }

    fn refuse(&self, shape: &[i32]) -> Error {
        Error::request(
            format!("pixels of shape {shape:?} cannot be encoded"),
            format!("give frames whose height and width are multiples of {}", self.scale.pixels),
        )
    }
}
