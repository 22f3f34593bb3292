//! The audio VAE: waveform → mel spectrogram ([`Mel`]) → latents ([`AudioEncoder`]), and latents → mel spectrogram
//! ([`AudioDecoder`]). The way from a spectrogram back to samples is the vocoder's.
//!
//! A spectrogram is a picture of time by frequency whose two channels are left and right. All convolutions see only the
//! past: T latent frames stand for 4 T − 3 mel frames. Inside, arrays are (batch, time, frequency, channels).

mod decoder;
mod encoder;
mod layers;
mod mel;
mod resample;

pub(crate) use decoder::AT_ONCE;
pub use decoder::{AudioDecoder, Passage};
pub use encoder::AudioEncoder;
pub use mel::Mel;

use mlx::{Array, Dtype};

use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};

/// Resolutions of encoder and decoder. Three make a latent frame of four mel frames, which all of the model counts on.
const LEVELS: usize = 3;

/// The part of the configuration that encoder and decoder share.
struct Shape {
    /// Channels after the encoder's first convolution.
    base: i32,
    /// Channels at each resolution, finest first.
    channels: Vec<i32>,
    /// Residual blocks per resolution in the encoder; the decoder has one more.
    blocks: usize,
    latent_channels: i32,
    latent_bins: i32,
}

impl Shape {
    /// Reads `ddconfig` in the audio section of the whole configuration, and refuses variants that no published model has.
    fn load(config: &Config) -> Result<(Self, Config)> {
        let audio = config.at("audio_vae")?;
        let network = audio.at("model")?.at("params")?.at("ddconfig")?;
        for (key, supported) in [("norm_type", "pixel"), ("causality_axis", "height")] {
            match network.str(key)? {
                value if value == supported => {}
                other => {
                    return Err(network.error(key, format!("is `{other}`; only `{supported}` is supported")));
                }
            }
        }
        for (key, supported) in [("double_z", true), ("mid_block_add_attention", false)] {
            if network.bool(key)? != supported {
                return Err(network.error(key, format!("must be {supported}")));
            }
        }
        if !network.list_usize("attn_resolutions")?.is_empty() {
            return Err(network.error("attn_resolutions", "must be empty: attention is not supported"));
        }
        let base = network.i32("ch")?;
        let channels: Option<Vec<i32>> = network
            .list_usize("ch_mult")?
            .into_iter()
            .map(|factor| base.checked_mul(i32::try_from(factor).ok()?).filter(|&size| size > 0))
            .collect();
        let channels = channels
            .filter(|channels| channels.len() == LEVELS)
            .ok_or_else(|| network.error("ch_mult", format!("must hold {LEVELS} sizes above 0")))?;
        let bins = mel_bins(&audio, &network)?;
        if bins == 0 || bins % (1 << (LEVELS - 1)) != 0 {
            return Err(network.error("mel_bins", format!("is {bins}, which does not divide by 4")));
        }
        let shape = Self {
            base,
            channels,
            blocks: network.usize("num_res_blocks")?,
            latent_channels: network.i32("z_channels")?,
            latent_bins: bins >> (LEVELS - 1),
        };
        Ok((shape, network))
    }
}

/// The number of mel bins, which configurations state in either of two places.
fn mel_bins(audio: &Config, network: &Config) -> Result<i32> {
    match network.get("mel_bins") {
        Some(_) => network.i32("mel_bins"),
        None => audio.at("preprocessing")?.at("mel")?.i32("n_mel_channels"),
    }
}

/// Mean and standard deviation of every latent channel and bin, as the model's latents are normalized with.
struct Statistics {
    mean: Array,      // (bins, channels)
    deviation: Array, // (bins, channels)
}

impl Statistics {
    fn load(weights: &Weights, shape: &Shape) -> Result<Self> {
        let (channels, bins) = (shape.latent_channels, shape.latent_bins);
        let size = channels
            .checked_mul(bins)
            .ok_or_else(|| weights.error("mean-of-means", "would be too large", "use the official file"))?;
        let read = |name| -> Result<Array> {
            // In the file a latent frame is one list, bins within channels.
            let list = weights.tensor_as(name, &[size], Dtype::F32)?;
            Ok(list.reshape(&[channels, bins])?.transpose_last()?)
        };
        Ok(Self { mean: read("mean-of-means")?, deviation: read("std-of-means")? })
    }

    /// (batch, frames, bins, channels), both sides f32.
    fn normalize(&self, latent: &Array) -> mlx::Result<Array> {
        latent.astype(Dtype::F32)?.subtract(&self.mean)?.divide(&self.deviation)
    }

    /// (batch, frames, bins, channels), both sides f32.
    fn denormalize(&self, latent: &Array) -> mlx::Result<Array> {
        latent.astype(Dtype::F32)?.multiply(&self.deviation)?.add(&self.mean)
    }
}

/// Refuses an array whose shape is not (batch, `channels`, time, `bins`).
fn check(what: &str, x: &Array, channels: i32, bins: i32) -> Result<()> {
    match *x.shape() {
        [batch, c, time, b] if c == channels && b == bins && batch > 0 && time > 0 => Ok(()),
        _ => Err(Error::request(
            format!("{what} has shape {:?}, not (batch, {channels}, time, {bins})", x.shape()),
            "give one made for this model",
        )),
    }
}

/// (batch, channels, time, bins) → (batch, time, bins, channels)
fn channels_last(x: &Array) -> mlx::Result<Array> {
    x.transpose(&[0, 2, 3, 1])
}

/// (batch, time, bins, channels) → (batch, channels, time, bins)
fn channels_first(x: &Array) -> mlx::Result<Array> {
    x.transpose(&[0, 3, 1, 2])?.contiguous()
}
