//! How fast this machine computes and reads, in about a second of trying; and what that makes of a phase's cost.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::Cost;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Linear};
use crate::noise::Noise;
use crate::video_vae::{CausalConv, Padding};

/// What a machine does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Multiplications and additions in linear layers.
    pub linear: f64,
    /// In attention.
    pub attention: f64,
    /// In convolutions.
    pub convolution: f64,
    /// Bytes read from the model's file.
    pub read: f64,
}

/// Pixels that are encoded into a clip in a second, on one core of the slower sort.
const PIXELS: f64 = 8e6;

impl Speed {
    /// Tries: a linear layer, an attention, a convolution, all of the transformer's or decoder's size in `dtype` on the device
    /// that is set, and reading some of a file.
    pub fn measure(dtype: Dtype, file: Option<&Path>) -> Result<Self> {
        let draw = |shape: &[i32]| -> Result<Array> {
            let array = Noise::new(0).normal(shape)?.astype(dtype)?;
            array.eval()?;
            Ok(array)
        };
        let layer = Linear::new(draw(&[2048, 4096])?);
        let x = draw(&[1, 256, 4096])?;
        let linear = rate(|| Ok(layer.forward(&x)?.eval()?))?;
        let [q, k, v] = [draw(&[1, 512, 16, 128])?, draw(&[1, 512, 16, 128])?, draw(&[1, 512, 16, 128])?];
        let attention = rate(|| Ok(nn::attention(&q, &k, &v, 0.1, None)?.eval()?))?;
        let conv = CausalConv::load(&Weights::random(dtype), 256, 256, [1, 1, 1], Padding::Zeros)?;
        let x = draw(&[1, 3, 16, 16, 256])?;
        let convolution = rate(|| Ok(conv.forward(&x, false)?.eval()?))?;
        mlx::memory::clear_cache()?;
        let read = file.and_then(reading).unwrap_or(1e9);
        Ok(Self { linear, attention, convolution, read })
    }

    /// About how many seconds something takes. Reading happens while something computes.
    pub fn seconds(&self, cost: &Cost) -> f64 {
        let computing =
            cost.linear / self.linear + cost.attention / self.attention + cost.convolution / self.convolution;
        computing.max(cost.read / self.read) + cost.pixels / PIXELS
    }

    /// To be kept, and read again by [`Self::from_json`].
    pub fn to_json(&self) -> Value {
        let Self { linear, attention, convolution, read } = self;
        json!({ "linear": linear, "attention": attention, "convolution": convolution, "read": read })
    }

    /// What [`Self::to_json`] made; nothing of anything else.
    pub fn from_json(value: &Value) -> Option<Self> {
        let number =
            |key: &str| value.get(key)?.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        Some(Self {
            linear: number("linear")?,
            attention: number("attention")?,
            convolution: number("convolution")?,
            read: number("read")?,
        })
    }
}

/// Operations in a second: the middle of a few tries after one that counts for nothing.
fn rate(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let before = nn::operations();
    run()?;
    let operations = (nn::operations() - before) as f64;
    let (begun, mut tries) = (Instant::now(), Vec::new());
    while tries.is_empty() || (tries.len() < 20 && begun.elapsed().as_secs_f64() < 0.15) {
        let start = Instant::now();
        run()?;
        tries.push(start.elapsed().as_secs_f64());
    }
    tries.sort_by(f64::total_cmp);
    Ok(operations / tries.get(tries.len() / 2).copied().unwrap_or(1.0).max(1e-9))
}

/// Bytes of a file read in a second. What the system still has of it comes faster than from the disk, now as later.
fn reading(path: &Path) -> Option<f64> {
    const MOST: usize = 64 << 20;
    let (mut file, mut part, mut bytes) = (File::open(path).ok()?, vec![0; 4 << 20], 0);
    let start = Instant::now();
    while bytes < MOST && start.elapsed().as_secs_f64() < 0.3 {
        match file.read(&mut part).ok()? {
            0 => break,
            count => bytes += count,
        }
    }
    // A file too small to tell anything is there at once.
    Some(if bytes < MOST / 16 { 1e9 } else { bytes as f64 / start.elapsed().as_secs_f64().max(1e-9) })
}
