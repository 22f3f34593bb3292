//! Normalized video latents → pixels, with convolutions.

use mlx::{Array, Dtype};

use super::config::{self, Blocks};
use super::conv::{CausalConv, Padding};
use super::layer::{Layer, Place};
use super::resample::unpatchify;
use super::resnet::{self, Pass, pixel_norm};
use super::tiling::Plan;
use super::{Noise, Scale, Statistics, Tiling, channels_first, channels_last};
use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::nn;
use crate::trace::Trace;

/// Share of noise in the latents that a conditioned decoder is given, and the timestep it is told.
const NOISE: f32 = 0.025;
const TIMESTEP: f32 = 0.05;

/// The convolutional decoder of every generation.
#[derive(Clone, Debug)]
pub struct ConvDecoder {
    statistics: Statistics,
    conv_in: CausalConv,
    layers: Vec<Layer>,
    /// Shift and scale before the last convolution, of a decoder conditioned on a timestep.
    last: Option<[Array; 2]>, // (1, 1, 1, 1, channels)
    conv_out: CausalConv,
    causal: bool,
    patch: i32,
    latent: i32,
    scale: Scale,
    dtype: Dtype,
}

impl ConvDecoder {
    /// Reads the weights of [`crate::checkpoint::Component::VideoDecoder`], with the whole configuration of its file. A file
    /// with a diffusion decoder is an error.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let vae = config.at("vae")?;
        if let Some(class) = vae.optional_str("_class_name")?.filter(|&name| name != "CausalVideoAutoencoder")
        {
            return Err(Error::file(
                vae.file(),
                "config.vae._class_name",
                format!("is `{class}`, whose decoder is not a convolutional one"),
                "give the convolutional video VAE of the same generation",
            ));
        }
        config::check(&vae)?;
        let blocks = Blocks::read(&vae, "decoder_blocks")?;
        let latent = config::size(&vae, "latent_channels", 128)?;
        let (patch, rgb) = (config::size(&vae, "patch_size", 4)?, config::size(&vae, "out_channels", 3)?);
        let padding = config::padding(&vae, &["spatial_padding_mode"], Padding::Reflect)?;
        let decoder = weights.at("decoder");
        // Where the header does not say it, the weights do.
        let conditioned = match vae.optional_bool("timestep_conditioning")? {
            Some(conditioned) => conditioned,
            None => decoder.has("last_time_embedder.timestep_embedder.linear_1.weight"),
        };
        let timestep = conditioned
            .then(|| {
                let multiplier = decoder.tensor_as("timestep_scale_multiplier", &[], Dtype::F32)?.item()?;
                Ok::<_, Error>(TIMESTEP * multiplier)
            })
            .transpose()?;
        let conv =
            |name, inputs, outputs| CausalConv::load(&decoder.at(name), inputs, outputs, [1, 1, 1], padding);

        let base = config::size(&vae, "decoder_base_channels", 128)?;
        let widest = blocks.list.iter().try_fold(base, |channels, block| {
            let reduction = match block.name.as_str() {
                "compress_time" | "compress_space" | "compress_all" => block.multiplier.unwrap_or(1),
                "res_x_y" => block.multiplier.unwrap_or(2),
                _ => 1,
            };
            channels
                .checked_mul(reduction)
                .ok_or_else(|| vae.error("decoder_blocks", "asks for too many channels"))
        })?;
        let (mut layers, mut channels) = (Vec::new(), widest);
        // The list is the encoder's order; the decoder runs it from the end.
        for (index, block) in blocks.list.iter().rev().enumerate() {
            let weights = decoder.at(format!("up_blocks.{index}"));
            let place = Place { weights, inputs: channels, padding, timestep, blocks: &blocks };
            let (layer, outputs) = Layer::decoder(block, &place)?;
            layers.push(layer);
            channels = outputs;
        }
        let outputs = patch.checked_mul(patch).and_then(|area| area.checked_mul(rgb));
        let outputs = outputs.ok_or_else(|| vae.error("patch_size", "is too large"))?;
        let last = timestep.map(|timestep| {
            let table = decoder.tensor("last_scale_shift_table", &[2, channels])?;
            let embedded = resnet::embed(&decoder.at("last_time_embedder"), timestep, 2 * channels)?;
            let rows = resnet::rows(&table, &embedded)?;
            Ok::<_, Error>([rows[0].clone(), rows[1].clone()])
        });
        Ok(Self {
            statistics: Statistics::load(&weights.at("per_channel_statistics"), latent)?,
            conv_in: conv("conv_in", latent, widest)?,
            layers,
            last: last.transpose()?,
            conv_out: conv("conv_out", channels, outputs)?,
            causal: vae.optional_bool("causal_decoder")?.unwrap_or(false),
            patch,
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

    /// An error when pictures of that size are too small for a decoder that mirrors pixels at the border.
    pub fn check_size(&self, height: usize, width: usize) -> Result<()> {
        let smallest = 2 * self.scale.pixels as usize;
        if self.conv_in.mirrors() && height.min(width) < smallest {
            return Err(Error::request(
                format!(
                    "{height}x{width} pixels are too few for this model's video decoder, which mirrors pixels at the border"
                ),
                format!("make the picture at least {smallest} pixels high and wide"),
            ));
        }
        Ok(())
    }

    /// A normalized latent (batch, channels, frames, height, width) → pixels (batch, (frames − 1) · scale + 1,
    /// height · scale, width · scale, rgb), about [-1, 1], in f32. A decoder conditioned on a timestep draws the latent's
    /// noise first; blocks that inject noise draw one (height, width) map per convolution.
    pub fn forward(&self, latent: &Array, noise: &mut Noise, trace: &mut Trace) -> Result<Array> {
        self.check(latent)?;
        let mut latent = latent.astype(Dtype::F32)?;
        if self.last.is_some() {
            let drawn = noise(latent.shape())?.astype(Dtype::F32)?;
            latent = latent.multiply(1.0 - NOISE)?.add(drawn.multiply(NOISE)?)?;
        }
        let latent = self.statistics.un_normalize(&latent)?.astype(self.dtype)?;
        let mut x = self.conv_in.forward(&channels_last(&latent)?, self.causal)?;
        let mut pass = Pass { causal: self.causal, noise };
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &mut pass)?;
            trace.record(|| format!("up_block.{index}"), || channels_first(&x))?;
        }
        x = pixel_norm(&x)?;
        if let Some([shift, scale]) = &self.last {
            x = resnet::modulate(&x, shift, scale)?;
        }
        let x = self.conv_out.forward(&nn::silu(&x)?, self.causal)?;
        let pixels = unpatchify(&x, self.patch)?.astype(Dtype::F32)?;
        pixels.eval()?;
        Ok(pixels)
    }

    /// The frames of one normalized latent (1, channels, frames, height, width), in order and piece by piece: chunks
    /// (frames, height, width, rgb) as [`Self::forward`] gives them, each computed when it is asked for.
    pub fn decode<'a>(
        self,
        latent: &Array,
        tiling: &Tiling,
        mut noise: impl FnMut(&[i32]) -> Result<Array> + 'a,
    ) -> Result<impl ExactSizeIterator<Item = Result<Array>> + 'a> {
        self.check(latent)?;
        let plan = Plan::new(latent, tiling, self.scale)?;
        Ok(plan.decode(move |tile| {
            let pixels = self.forward(tile, &mut noise, &mut Trace::off())?; // (1, frames, height, width, rgb)
            Ok(pixels.squeeze(&[0])?)
        }))
    }

    fn check(&self, latent: &Array) -> Result<()> {
        match latent.shape() {
            &[batch, channels, frames, height, width]
                if channels == self.latent && [batch, frames, height, width].iter().all(|&size| size > 0) =>
            {
                Ok(())
            }
            shape => Err(Error::request(
                format!("a latent of shape {shape:?} cannot be decoded"),
                format!("give (batch, {}, frames, height, width)", self.latent),
            )),
        }
    }
}
