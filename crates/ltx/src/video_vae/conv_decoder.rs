//! Normalized video latents → pixels, with convolutions.

use mlx::{Array, Dtype};

use super::config::{self, Blocks};
use super::conv::{CausalConv, Padding};
use super::layer::{Layer, Place};
use super::memory::Amount;
use super::resample::unpatchify;
use super::resnet;
use super::stream::{Network, PIECE, Stream};
use super::tiling::{Decode, Plan};
use super::{Noise, Scale, Statistics, Tiling, channels_last};
use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::trace::Trace;

/// Latent frames that go in together, at most. More would only take more memory, and with small pictures memory would go on
/// growing for seconds of a clip.
const AT_ONCE: i32 = 2;
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
    /// Values that a layer makes at a time, about.
    pub(super) piece: usize,
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
        let mut passage = self.enter(latent, noise)?;
        let mut pieces = Vec::new();
        while let Some(piece) = self.frames(&mut passage, i32::MAX, noise, trace)? {
            pieces.push(piece);
        }
        Ok(mlx::concatenate(&pieces.iter().collect::<Vec<_>>(), 1)?)
    }

    /// The frames of one normalized latent (1, channels, frames, height, width), in order and piece by piece: chunks
    /// (frames, height, width, rgb) as [`Self::forward`] gives them, each computed when it is asked for. How much memory that
    /// takes does not depend on the number of frames, as long as a tile is as high and wide as the video.
    pub fn decode<'a>(
        self,
        latent: &Array,
        tiling: &Tiling,
        noise: impl FnMut(&[i32]) -> Result<Array> + 'a,
    ) -> Result<impl Iterator<Item = Result<Array>> + 'a> {
        self.check(latent)?;
        let plan = Plan::new(latent, tiling, self.scale)?;
        Ok(plan.decode(Noisy { decoder: self, noise }))
    }

    /// About how many bytes [`Self::decode`] of a latent (frames, height, width) takes at most, beside the weights and the latent;
    /// rather more than less.
    pub fn bytes(&self, tiling: &Tiling, latent: [usize; 3]) -> Result<usize> {
        let sizes = tiling.largest(latent, self.scale)?;
        let [frames, height, width] = sizes.tile;
        let Scale { frames: t, pixels: p } = self.scale;
        let (t, p, value) = (t as usize, p as usize, self.dtype.size());
        // The latent in f32, as it comes and on its way to the decoder's own, and that.
        let latent = frames * height * width * self.latent as usize * (8 + value);
        let at_once = (self.at_once(height as i32, width as i32) as usize).min(frames);
        let Amount { kept, working, out, .. } = self.network().amount(at_once, height, width);
        // A piece of pixels in the network's type, its order changed, in f32, and what is blended of it.
        let stream = latent + kept * value + (working * value).max(out * (2 * value + 12));
        let [_, height, width] = sizes.video;
        let frame = height * p * width * p * 3 * 4;
        let blended = 2 * sizes.shared * t * frame;
        let together = if sizes.spatial { 3 * frames * t * frame } else { 0 };
        Ok(stream + blended + together)
    }

    /// How many frames of a latent (height, width) go in at a time.
    fn at_once(&self, height: i32, width: i32) -> i32 {
        let network = self.network();
        let most = if network.streams() { AT_ONCE } else { i32::MAX };
        network.at_once(height, width).min(most)
    }

    /// About how many multiplications and additions [`Self::decode`] of a latent (frames, height, width) takes.
    pub fn operations(&self, tiling: &Tiling, latent: [usize; 3]) -> Result<f64> {
        let [frames, height, width] = latent;
        let whole = self.network().amount(frames, height, width).operations;
        Ok(whole * tiling.share(latent, self.scale)?)
    }

    /// A latent as the first layer takes it.
    fn enter(&self, latent: &Array, noise: &mut Noise) -> Result<Passage> {
        self.check(latent)?;
        let mut latent = latent.astype(Dtype::F32)?;
        if self.last.is_some() {
            let drawn = noise(latent.shape())?.astype(Dtype::F32)?;
            latent = latent.multiply(1.0 - NOISE)?.add(drawn.multiply(NOISE)?)?;
        }
        let latent = self.statistics.un_normalize(&latent)?.astype(self.dtype)?;
        let latent = channels_last(&latent)?.contiguous()?;
        latent.eval()?;
        Ok(Passage { latent, next: 0, stream: Stream::default() })
    }

    /// The next frames (batch, frames, height, width, rgb), for which `count` latent frames go in at a time; in the end none.
    fn frames(
        &self,
        passage: &mut Passage,
        count: i32,
        noise: &mut Noise,
        trace: &mut Trace,
    ) -> Result<Option<Array>> {
        let (network, all) = (self.network(), passage.latent.dim(1));
        loop {
            if let Some(piece) = network.next(&mut passage.stream, noise, trace)? {
                let pixels = unpatchify(&piece, self.patch)?.astype(Dtype::F32)?;
                pixels.eval()?;
                return Ok(Some(pixels));
            }
            let start = passage.next;
            if start == all {
                return Ok(None);
            }
            passage.next = all.min(start.saturating_add(count));
            let x = passage.latent.slice(1, start..passage.next)?;
            network.give(&mut passage.stream, &x, passage.next == all)?;
        }
    }

    fn network(&self) -> Network<'_> {
        Network {
            first: &self.conv_in,
            layers: &self.layers,
            modulation: self.last.as_ref(),
            last: &self.conv_out,
            causal: self.causal,
            piece: self.piece,
        }
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

/// A latent on its way through the decoder.
struct Passage {
    latent: Array, // (batch, frames, height, width, channels)
    /// The first latent frame that has not gone in.
    next: i32,
    stream: Stream,
}

/// The decoder with what it draws its noise from.
struct Noisy<N> {
    decoder: ConvDecoder,
    noise: N,
}

impl<N: FnMut(&[i32]) -> Result<Array>> Decode for Noisy<N> {
    type Tile = Passage;

    fn enter(&mut self, latent: &Array) -> Result<Passage> {
        self.decoder.enter(latent, &mut self.noise)
    }

    fn next(&mut self, tile: &mut Passage) -> Result<Option<Array>> {
        let count = self.decoder.at_once(tile.latent.dim(2), tile.latent.dim(3));
        let pixels = self.decoder.frames(tile, count, &mut self.noise, &mut Trace::off())?;
        Ok(pixels.map(|pixels| pixels.squeeze(&[0])).transpose()?)
    }
}
