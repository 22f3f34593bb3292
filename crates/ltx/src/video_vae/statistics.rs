//! The mean and deviation of every latent channel over the training data.

use mlx::{Array, Dtype};

use crate::checkpoint::Weights;
use crate::error::Result;

/// Scales between the latents of the autoencoder and normalized latents, channel by channel, in f32.
#[derive(Clone, Debug)]
pub struct Statistics {
    mean: Array,      // (1, channels, 1, 1, 1)
    deviation: Array, // (1, channels, 1, 1, 1)
}

/// Statistics that official files carry and nobody needs.
const UNUSED: [&str; 3] = ["channel", "mean-of-stds", "mean-of-stds_over_std-of-means"];

impl Statistics {
    /// Reads the statistics at `weights`.
    pub fn load(weights: &Weights, channels: i32) -> Result<Self> {
        for name in UNUSED {
            if let Some(shape) = weights.shape(name) {
                weights.tensor(name, &shape)?;
            }
        }
        let read = |name| {
            let values = weights.tensor_as(name, &[channels], Dtype::F32)?;
            Ok::<_, crate::Error>(values.reshape(&[1, channels, 1, 1, 1])?)
        };
        Ok(Self { mean: read("mean-of-means")?, deviation: read("std-of-means")? })
    }

    /// The number of latent channels.
    pub fn channels(&self) -> i32 {
        self.mean.dim(1)
    }

    /// Latents of the autoencoder (batch, channels, frames, height, width) → normalized, f32.
    pub fn normalize(&self, latent: &Array) -> mlx::Result<Array> {
        latent.subtract(&self.mean)?.divide(&self.deviation)
    }

    /// Normalized latents (batch, channels, frames, height, width) → the autoencoder's own, f32.
    pub fn un_normalize(&self, latent: &Array) -> mlx::Result<Array> {
        latent.multiply(&self.deviation)?.add(&self.mean)
    }
}
