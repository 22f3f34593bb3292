//! Latents → larger latents: the networks between the stages of a recipe, in space (×2, ×1.5) or time (×2).
//!
//! They work on the autoencoder's own latents, not the normalized ones: see [`crate::video_vae::Statistics`].

use mlx::Array;

use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};
use crate::nn::{self, Bias, Conv};
use crate::video_vae::{channels_first, channels_last, depth_to_space};

/// A latent upsampler.
#[derive(Clone, Debug)]
pub struct Upsampler {
    initial: Conv,
    norm: Norm,
    before: Vec<ResBlock>,
    resize: Resize,
    after: Vec<ResBlock>,
    last: Conv,
    channels: i32,
    dtype: mlx::Dtype,
}

/// How the middle grows.
#[derive(Clone, Debug)]
enum Resize {
    /// A 3-D convolution unfolded into frames (rows, columns); the first frame, which stands for one pixel frame, goes.
    Time { conv: Conv, factor: [i32; 3] },
    /// A 2-D convolution of every frame, unfolded into rows and columns.
    Space { conv: Conv, factor: i32, shrink: Option<Shrink> },
}

/// A fixed blur of each channel, then every n-th row and column.
#[derive(Clone, Debug)]
struct Shrink {
    blur: Conv,
    stride: i32,
    channels: i32,
}

impl Upsampler {
    /// Reads the weights of [`crate::checkpoint::Component::Upsampler`], with the whole configuration of its file.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let size = |key, default| match config.optional_usize(key)?.map(i32::try_from) {
            None => Ok(default), // the official default; the weights' shapes catch a file that is otherwise
            Some(Ok(size)) if size > 0 => Ok(size),
            Some(_) => Err(config.error(key, "is not a positive size")),
        };
        let (channels, middle) = (size("in_channels", 128)?, size("mid_channels", 512)?);
        let blocks = size("num_blocks_per_stage", 4)?;
        if size("dims", 3)? != 3 {
            return Err(config.error("dims", "is not 3"));
        }
        if middle % GROUPS != 0 || middle.checked_mul(16).is_none() {
            return Err(config.error("mid_channels", format!("is not a reasonable multiple of {GROUPS}")));
        }
        let conv =
            |name, inputs, outputs| Conv::load(&weights.at(name), inputs, outputs, &[3, 3, 3], Bias::Yes);
        let stage = |name: &str| {
            (0..blocks)
                .map(|index| ResBlock::load(&weights.at(format!("{name}.{index}")), middle))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            initial: conv("initial_conv", channels, middle)?,
            norm: Norm::load(&weights.at("initial_norm"), middle)?,
            before: stage("res_blocks")?,
            resize: Resize::load(&weights.at("upsampler"), config, middle)?,
            after: stage("post_upsample_res_blocks")?,
            last: conv("final_conv", middle, channels)?,
            channels,
            dtype: weights.dtype(),
        })
    }

    /// Un-normalized latents (batch, channels, frames, height, width) → the same with more frames, or rows and columns, in
    /// f32. Time ×2 makes 2 · frames − 1 of them.
    pub fn forward(&self, latent: &Array) -> Result<Array> {
        match latent.shape() {
            &[batch, channels, frames, height, width]
                if channels == self.channels
                    && [batch, frames, height, width].iter().all(|&size| size > 0) => {}
            shape => {
                return Err(Error::request(
                    format!("a latent of shape {shape:?} cannot be upsampled"),
                    format!("give (batch, {}, frames, height, width)", self.channels),
                ));
            }
        }
        let x = channels_last(&latent.astype(self.dtype)?)?; // (batch, frames, height, width, channels)
        let mut x = nn::silu(&self.norm.forward(&self.initial.forward(&x, &same())?)?)?;
        for block in &self.before {
            x = block.forward(&x)?;
            x.eval()?;
        }
        x = self.resize.forward(&x)?;
        for block in &self.after {
            x = block.forward(&x)?;
            x.eval()?;
        }
        let latent = channels_first(&self.last.forward(&x, &same())?)?.astype(mlx::Dtype::F32)?;
        latent.eval()?;
        Ok(latent)
    }
}

impl Resize {
    fn load(weights: &Weights, config: &Config, channels: i32) -> Result<Self> {
        let flag = |key, default| Ok::<_, Error>(config.optional_bool(key)?.unwrap_or(default));
        let (space, time) = (flag("spatial_upsample", true)?, flag("temporal_upsample", false)?);
        let at = |name: &str, factor: &[i32], kernel: &[i32]| {
            let outputs = channels * factor.iter().product::<i32>();
            Conv::load(&weights.at(name), channels, outputs, kernel, Bias::Yes)
        };
        if time {
            let factor = if space { [2, 2, 2] } else { [2, 1, 1] };
            return Ok(Self::Time { conv: at("0", &factor, &[3, 3, 3])?, factor });
        }
        if !space {
            return Err(config.error("spatial_upsample", "is false, and so is temporal_upsample"));
        }
        if !flag("rational_resampler", false)? {
            return Ok(Self::Space { conv: at("0", &[2, 2], &[3, 3])?, factor: 2, shrink: None });
        }
        let scale = config.optional_f64("spatial_scale")?.unwrap_or(2.0);
        let ratios = [(0.75, 3, 4), (1.5, 3, 2), (2.0, 2, 1), (4.0, 4, 1)];
        let Some(&(_, factor, stride)) = ratios.iter().find(|ratio| ratio.0 == scale) else {
            return Err(config.error("spatial_scale", format!("is {scale}, not 0.75, 1.5, 2 or 4")));
        };
        // The kernel is in the file even where nothing shrinks.
        let kernel = weights.at("blur_down").tensor("kernel", &[1, 1, 5, 5])?;
        let blur = Conv::new(&kernel.broadcast_to(&[channels, 1, 5, 5])?, None)?;
        let shrink = (stride > 1).then_some(Shrink { blur, stride, channels });
        Ok(Self::Space { conv: at("conv", &[factor, factor], &[3, 3])?, factor, shrink })
    }

    /// (batch, frames, height, width, channels) → (batch, frames', height', width', channels)
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Time { conv, factor } => {
                let x = depth_to_space(&conv.forward(x, &same())?, *factor)?;
                Ok(x.slice(1, 1..x.dim(1))?)
            }
            Self::Space { conv, factor, shrink } => {
                let (batch, frames) = (x.dim(0), x.dim(1));
                let x = x.reshape(&[batch * frames, x.dim(2), x.dim(3), x.dim(4)])?;
                let x = conv.forward(&x, &padded(2, 1))?.expand_dims(&[1])?; // (batch · frames, 1, height, width, out)
                let mut x = depth_to_space(&x, [1, *factor, *factor])?.squeeze(&[1])?;
                if let Some(Shrink { blur, stride, channels }) = shrink {
                    let settings = mlx::Conv { stride: vec![*stride; 2], groups: *channels, ..padded(2, 2) };
                    x = blur.forward(&x, &settings)?;
                }
                Ok(x.reshape(&[batch, frames, x.dim(1), x.dim(2), x.dim(3)])?)
            }
        }
    }
}

/// Zeros around, so that a kernel of 2 · `padding` + 1 keeps the size.
fn padded(axes: usize, padding: i32) -> mlx::Conv {
    let padding = vec![padding; axes];
    mlx::Conv { padding_low: padding.clone(), padding_high: padding, ..Default::default() }
}

fn same() -> mlx::Conv {
    padded(3, 1)
}

const GROUPS: i32 = 32;

#[derive(Clone, Debug)]
struct Norm {
    weight: Array, // (channels)
    bias: Array,   // (channels)
}

impl Norm {
    fn load(weights: &Weights, channels: i32) -> Result<Self> {
        Ok(Self {
            weight: weights.tensor("weight", &[channels])?,
            bias: weights.tensor("bias", &[channels])?,
        })
    }

    /// (batch, frames, height, width, channels), shape kept
    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        nn::group_norm(x, GROUPS, &self.weight, &self.bias, 1e-5)
    }
}

#[derive(Clone, Debug)]
struct ResBlock {
    conv1: Conv,
    norm1: Norm,
    conv2: Conv,
    norm2: Norm,
}

impl ResBlock {
    fn load(weights: &Weights, channels: i32) -> Result<Self> {
        let conv = |name| Conv::load(&weights.at(name), channels, channels, &[3, 3, 3], Bias::Yes);
        let norm = |name| Norm::load(&weights.at(name), channels);
        Ok(Self {
            conv1: conv("conv1")?,
            norm1: norm("norm1")?,
            conv2: conv("conv2")?,
            norm2: norm("norm2")?,
        })
    }

    /// (batch, frames, height, width, channels), shape kept
    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let y = nn::silu(&self.norm1.forward(&self.conv1.forward(x, &same())?)?)?;
        nn::silu(&self.norm2.forward(&self.conv2.forward(&y, &same())?)?.add(x)?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use mlx::Dtype;
    use serde_json::{Value, json};

    use super::Upsampler;
    use crate::checkpoint::{Checkpoint, Component, Config, File};
    use crate::error::{Error, Result};

    fn load_with(name: &str, change: impl Fn(&mut Value)) -> Result<Upsampler> {
        let path: PathBuf =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/upsamplers").join(name);
        let mut value = File::open(&path).unwrap().config().unwrap();
        change(&mut value);
        let checkpoint = Checkpoint::open(&[&path]).unwrap();
        let (weights, _) = checkpoint.component(Component::Upsampler, Dtype::F32).unwrap();
        let upsampler = Upsampler::load(&weights, &Config::new(&path, value))?;
        assert!(weights.finish(Component::Upsampler.unread()).unwrap().is_empty());
        Ok(upsampler)
    }

    #[test]
    fn sizes_grow_as_named() {
        for (name, size) in [
            ("2.0-spatial-x2.safetensors", [3, 6, 10]),
            ("2.3-spatial-x1.5.safetensors", [3, 5, 8]),
            ("2.3-spatial-x2.safetensors", [3, 6, 10]),
            ("2.3-temporal-x2.safetensors", [5, 3, 5]),
        ] {
            let upsampler = load_with(name, |_| ()).unwrap();
            let latent = mlx::full(&[2, upsampler.channels, 3, 3, 5], 0.5, Dtype::F32).unwrap();
            let larger = upsampler.forward(&latent).unwrap();
            assert_eq!(larger.shape(), [&[2, upsampler.channels], &size[..]].concat(), "{name}");
            for bad in
                [latent.slice(1, 1..upsampler.channels), latent.slice(0, 0..0), latent.expand_dims(&[0])]
            {
                let refused = upsampler.forward(&bad.unwrap()).unwrap_err();
                assert!(matches!(refused, Error::Request { .. }), "{refused}");
            }
        }
    }

    #[test]
    fn hostile_configurations_are_errors_that_name_the_file() {
        let changes = [
            ("mid_channels", json!(33)),
            ("mid_channels", json!(0)),
            ("mid_channels", json!(2147483616)),
            ("in_channels", json!(-1)),
            ("num_blocks_per_stage", json!(2)),
            ("num_blocks_per_stage", json!("4")),
            ("dims", json!(2)),
            ("spatial_scale", json!(1.7)),
            ("spatial_upsample", json!(false)),
        ];
        for (key, value) in changes {
            let error =
                load_with("2.3-spatial-x1.5.safetensors", |config| config[key] = value.clone()).unwrap_err();
            assert!(matches!(error, Error::File { .. }), "{key}: {error}");
            assert!(error.to_string().contains("2.3-spatial-x1.5"), "{key}: {error}");
        }
    }
}
