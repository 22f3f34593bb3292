//! The works: what each one is, and how it is set up.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mlx::device::Device;
use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::transformer::{Generation, dit, dit_block};
use super::{Measured, Rate, Timer};
use crate::audio_vae::AudioDecoder;
use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::nn::{self, Bias, Linear, Packed, Packing, Weight};
use crate::noise::Noise;
use crate::shape::VideoShape;
use crate::text::Gemma;
use crate::trace::Trace;
use crate::upsampler::Upsampler;
use crate::video_vae::{CausalConv, ConvDecoder, Padding, Tiling};
use crate::vocoder::Vocoder;

/// Something to measure.
pub struct Work {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a few words.
    pub what: &'static str,
    /// Whether it needs a GPU's speed or tens of gigabytes: such works are measured only when they are named.
    pub large: bool,
    pub(super) measure: fn(&Timer) -> Result<Measured>,
}

const fn work(name: &'static str, what: &'static str, measure: fn(&Timer) -> Result<Measured>) -> Work {
    Work { name, what, large: false, measure }
}

const fn large(name: &'static str, what: &'static str, measure: fn(&Timer) -> Result<Measured>) -> Work {
    Work { name, what, large: true, measure }
}

/// All works.
pub const WORKS: &[Work] = &[
    work("peak", "products on registers alone: the limit of arithmetic", peak),
    work("memory", "reading 256 MiB: the limit of small products", memory),
    work("linear-m1-n4096", "linear layer, 1 row, 4096 → 4096", |timer| linear(timer, 1, 4096)),
    work("linear-m1-n16384", "linear layer, 1 row, 4096 → 16384", |timer| linear(timer, 1, 16384)),
    work("linear-m256-n4096", "linear layer, 256 rows, 4096 → 4096", |timer| linear(timer, 256, 4096)),
    work("linear-m256-n16384", "linear layer, 256 rows, 4096 → 16384", |timer| linear(timer, 256, 16384)),
    work("linear-m1024-n4096", "linear layer, 1024 rows, 4096 → 4096", |timer| linear(timer, 1024, 4096)),
    work("linear-m1024-n16384", "linear layer, 1024 rows, 4096 → 16384", |timer| {
        linear(timer, 1024, 16384)
    }),
    work("linear-m1-n4096-q8", "linear layer of 8 bits, 1 row, 4096 → 4096", |timer| packed(timer, 1, 8)),
    work("linear-m1-n4096-q4", "linear layer of 4 bits, 1 row, 4096 → 4096", |timer| packed(timer, 1, 4)),
    work("linear-m256-n4096-q8", "linear layer of 8 bits, 256 rows, 4096 → 4096", |timer| {
        packed(timer, 256, 8)
    }),
    work("linear-m256-n4096-q4", "linear layer of 4 bits, 256 rows, 4096 → 4096", |timer| {
        packed(timer, 256, 4)
    }),
    work("attention-1024", "attention, 32 heads of 128, 1024 tokens", |timer| attention(timer, 1024, 128)),
    work("attention-1024-d64", "attention, 32 heads of 64, 1024 tokens", |timer| attention(timer, 1024, 64)),
    work("attention-4096", "attention, 32 heads of 128, 4096 tokens", |timer| attention(timer, 4096, 128)),
    work("conv3d-512", "video VAE's 3x3x3 convolution, 512 → 512 on 5x32x32", conv3d),
    work("dit-block-1024", "transformer block, video and audio, 1024 video tokens", dit_block),
    work("gemma-layer", "layer of the text encoder (Gemma 3 12B), 128 tokens", gemma_layer),
    work("upsample", "spatial upsampler x2, latent of a 256x256x9 clip", upsample),
    work("video-decode-128x128x17", "video decoder, 17 frames of 128x128", video_decode),
    work("audio-decode", "audio decoder, 1 s", audio_decode),
    work("vocoder-1s", "vocoder with bandwidth extension, 1 s", vocoder),
    large("matmul-8192", "product of two matrices of 8192x8192", |timer| matmul(timer, 8192)),
    large("matmul-1024", "product of two matrices of 1024x1024", |timer| matmul(timer, 1024)),
    large("dit-2.0-480x704x97", "whole transformer of 2.0 (19B), 97 frames of 480x704 with sound", |timer| {
        dit(timer, V2_0, None, SMALL, None)
    }),
    large("dit-2.3-480x704x97", "whole transformer of 2.3 (22B), 97 frames of 480x704 with sound", |timer| {
        dit(timer, V2_3, None, SMALL, None)
    }),
    large("dit-2.0-768x512x121", "whole transformer of 2.0, 121 frames of 768x512 with sound", |timer| {
        dit(timer, V2_0, None, MIDDLE, None)
    }),
    large("dit-2.3-768x512x121", "whole transformer of 2.3, 121 frames of 768x512 with sound", |timer| {
        dit(timer, V2_3, None, MIDDLE, None)
    }),
    large("dit-2.0-480x704x97-q8", "the same of 2.0 with weights of 8 bits", |timer| {
        dit(timer, V2_0, None, SMALL, Some(Q8))
    }),
    large("dit-2.3-480x704x97-q8", "the same of 2.3 with weights of 8 bits", |timer| {
        dit(timer, V2_3, None, SMALL, Some(Q8))
    }),
    large("dit-2.3-480x704x97-mxfp8", "the same of 2.3 with weights in mxfp8", |timer| {
        dit(timer, V2_3, None, SMALL, Some(Packing::Mxfp8))
    }),
    large(
        "dit-2.0-tiny",
        "one block of the transformer of 2.0 with its way in and out, 9 frames of 64x64",
        |timer| dit(timer, V2_0, Some(1), TINY, None),
    ),
    large(
        "dit-2.3-tiny",
        "one block of the transformer of 2.3 with its way in and out, 9 frames of 64x64",
        |timer| dit(timer, V2_3, Some(1), TINY, None),
    ),
    large("dit-2.3-tiny-q8", "the same with weights of 8 bits", |timer| {
        dit(timer, V2_3, Some(1), TINY, Some(Q8))
    }),
    large("video-decode-480x704x97", "video decoder, 97 frames of 480x704", |timer| {
        video_decode_tiled(timer, SMALL)
    }),
    large("video-decode-64x64x9", "video decoder, 9 frames of 64x64", |timer| {
        video_decode_tiled(timer, TINY)
    }),
];

/// The work called `name`.
pub fn find(name: &str) -> Option<&'static Work> {
    WORKS.iter().find(|work| work.name == name)
}

use Generation::{V2_0, V2_3};

const SMALL: [usize; 3] = [480, 704, 97];
const MIDDLE: [usize; 3] = [512, 768, 121];
const TINY: [usize; 3] = [64, 64, 9];
const Q8: Packing = Packing::Affine { bits: 8, group: 64 };

const HIDDEN: i32 = 4096;
const HEADS: i32 = 32;

/// The configuration of the full-size 2.3.
fn config(change: impl FnOnce(&mut Value)) -> Result<Config> {
    let name = "ltx-2.3-22b.json";
    let mut value = serde_json::from_str(include_str!("../../../../fixtures/configs/ltx-2.3-22b.json"))
        .map_err(|error| Error::file(name, "", error.to_string(), "this is a fault of the program"))?;
    change(&mut value);
    Ok(Config::new(Path::new(name), value))
}

pub(super) fn random(shape: &[i32], dtype: Dtype) -> Result<Array> {
    let array = Noise::new(0).normal(shape)?.astype(dtype)?;
    array.eval()?;
    Ok(array)
}

fn linear(timer: &Timer, rows: i32, outputs: i32) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let layer = Linear::load(&Weights::random(dtype), HIDDEN, outputs, Bias::Yes)?;
    let x = random(&[1, rows, HIDDEN], dtype)?;
    timer.time(dtype, String::new(), || Ok(layer.forward(&x)?.eval()?))
}

/// A layer 4096 → 4096 without a bias, packed in groups of 64.
fn packed(timer: &Timer, rows: i32, bits: usize) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let weight = Packed::quantize(&random(&[HIDDEN, HIDDEN], dtype)?, Packing::Affine { bits, group: 64 })?;
    mlx::eval([&weight.values, &weight.scales].into_iter().chain(&weight.biases))?;
    let layer = Linear::of(Weight::Packed(weight));
    let x = random(&[1, rows, HIDDEN], dtype)?;
    timer.time(dtype, String::new(), || Ok(layer.forward(&x)?.eval()?))
}

fn attention(timer: &Timer, tokens: i32, head_dim: i32) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let draw = || random(&[1, tokens, HEADS, head_dim], dtype);
    let (q, k, v, scale) = (draw()?, draw()?, draw()?, (head_dim as f32).sqrt().recip());
    timer.time(dtype, String::new(), || Ok(nn::attention(&q, &k, &v, scale, None)?.eval()?))
}

fn conv3d(timer: &Timer) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let conv = CausalConv::load(&Weights::random(dtype), 512, 512, [1, 1, 1], Padding::Zeros)?;
    let x = random(&[1, 5, 32, 32, 512], dtype)?;
    timer.time(dtype, String::new(), || Ok(conv.forward(&x, false)?.eval()?))
}

fn gemma_layer(timer: &Timer) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let config = json!({
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 1, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 1024,
    });
    let gemma = Gemma::configured(&Weights::random(dtype), &Config::new(Path::new("config.json"), config))?;
    let x = random(&[1, 128, 3840], dtype)?;
    timer.time(dtype, String::new(), || Ok(gemma.layer(0, &x)?.eval()?))
}

fn upsample(timer: &Timer) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let config = json!({
        "in_channels": 128, "mid_channels": 1024, "num_blocks_per_stage": 4, "dims": 3,
        "spatial_upsample": true, "temporal_upsample": false, "rational_resampler": false,
    });
    let upsampler = Upsampler::load(&Weights::random(dtype), &Config::new(Path::new("upsampler"), config))?;
    let latent = random(&[1, 128, 2, 8, 8], dtype)?;
    timer.time(dtype, String::new(), || upsampler.forward(&latent).map(drop))
}

fn video_decode(timer: &Timer) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let decoder = ConvDecoder::load(&Weights::random(dtype), &config(|_| ())?)?;
    let shape = VideoShape { frames: 17, height: 128, width: 128 }.latent();
    let latent = random(&[1, 128, shape.frames as i32, shape.height as i32, shape.width as i32], Dtype::F32)?;
    let mut noise = Noise::new(1);
    timer.time(dtype, String::new(), || {
        let pixels = decoder.forward(&latent, &mut |shape| Ok(noise.normal(shape)?), &mut Trace::off())?;
        Ok(pixels.eval()?)
    })
}

/// Decodes a clip at full width with random weights, and lets go of its pixels: seconds, and bytes of the arrays beside the
/// weights at the peak, as measured and as [`Tiling::bytes`] tells.
pub fn decode(video: VideoShape, tiling: &Tiling, dtype: Dtype) -> Result<(f64, usize, usize)> {
    let config = config(|_| ())?;
    let decoder = ConvDecoder::load(&Weights::random(dtype), &config)?;
    let shape = video.latent();
    let sizes = [shape.frames, shape.height, shape.width];
    let draw = |frames: usize| random(&[1, 128, frames as i32, sizes[1] as i32, sizes[2] as i32], Dtype::F32);
    let mut noise = Noise::new(1);
    let mut noise = |shape: &[i32]| Ok(noise.normal(shape)?);
    decoder.forward(&draw(1)?.slice(3, 0..1)?.slice(4, 0..1)?, &mut noise, &mut Trace::off())?; // so that the weights are there
    let latent = draw(shape.frames)?;
    let told = tiling.bytes(&config, dtype, sizes)?;
    mlx::memory::clear_cache()?;
    mlx::memory::reset_peak();
    let (before, start) = (mlx::memory::active(), Instant::now());
    for chunk in decoder.decode(&latent, tiling, noise)? {
        chunk?.eval()?;
    }
    Ok((start.elapsed().as_secs_f64(), mlx::memory::peak().saturating_sub(before), told))
}

/// As clips are decoded: in as few pieces as memory allows.
fn video_decode_tiled(timer: &Timer, [height, width, frames]: [usize; 3]) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let config = config(|_| ())?;
    let decoder = ConvDecoder::load(&Weights::random(dtype), &config)?;
    let shape = VideoShape { frames, height, width }.latent();
    let sizes = [shape.frames, shape.height, shape.width];
    let latent = random(&[1, 128, sizes[0] as i32, sizes[1] as i32, sizes[2] as i32], Dtype::F32)?;
    let tiling = Tiling::auto();
    timer.time(dtype, String::new(), || {
        let mut noise = Noise::new(1);
        for chunk in
            decoder.clone().decode(&latent, &tiling, move |shape: &[i32]| Ok(noise.normal(shape)?))?
        {
            chunk?.eval()?;
        }
        Ok(())
    })
}

/// The limit of products on this device.
fn matmul(timer: &Timer, size: i32) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let layer = Linear::load(&Weights::random(dtype), size, size, Bias::No)?;
    let x = random(&[1, size, size], dtype)?;
    timer.time(dtype, String::new(), || Ok(layer.forward(&x)?.eval()?))
}

fn audio_decode(timer: &Timer) -> Result<Measured> {
    let dtype = timer.settings.dtype;
    let decoder = AudioDecoder::load(&Weights::random(dtype), &config(|_| ())?)?;
    let latent = random(&[1, 8, 25, 16], Dtype::F32)?;
    timer.time(dtype, "25 latent frames".into(), || Ok(decoder.forward(&latent)?.eval()?))
}

/// In f32 whatever the dtype of the others: it always is.
fn vocoder(timer: &Timer) -> Result<Measured> {
    let vocoder = Vocoder::load(&Weights::random(Dtype::F32), &config(|_| ())?)?;
    let mel = random(&[1, 2, 100, 64], Dtype::F32)?;
    timer
        .time(Dtype::F32, "100 mel frames".into(), || Ok(vocoder.forward(&mel, &mut Trace::off())?.eval()?))
}

fn peak(timer: &Timer) -> Result<Measured> {
    if mlx::device::current() == Device::Gpu {
        return Err(Error::machine("`peak` is measured on the CPU only", "add --device cpu"));
    }
    let dtype = timer.settings.dtype;
    let mut rates = Vec::new();
    let measured = timer.repeat(|| {
        rates.push(kernels::measure::peak(dtype == Dtype::Bf16));
        Ok(())
    })?;
    let rate = rates.into_iter().fold(0.0, f64::max);
    Ok(Measured { rate: Some(Rate::Operations(rate)), peak_share: Some(1.0), dtype: Some(dtype), ..measured })
}

fn memory(timer: &Timer) -> Result<Measured> {
    const VALUES: usize = 64 << 20;
    let values = Arc::new(vec![1.0f32; VALUES]);
    let measured = if mlx::device::current() == Device::Gpu {
        let array =
            Array::borrowed(values, |values| bytemuck::cast_slice(values), &[VALUES as i32], Dtype::F32)?;
        timer.repeat(|| Ok(array.sum(&[0], false)?.eval()?))?
    } else {
        timer.repeat(|| {
            kernels::measure::read(&values);
            Ok(())
        })?
    };
    let rate = (4 * VALUES) as f64 / measured.median();
    Ok(Measured { rate: Some(Rate::Bytes(rate)), ..measured })
}
