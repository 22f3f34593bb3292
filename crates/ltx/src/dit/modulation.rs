//! How the noise level steers the network: sigmas → timestep embedding → shifts, scales and gates (AdaLN).
//!
//! Tokens have timesteps of their own, but few different ones (a conditioning frame is clean, the rest is not). The
//! embedding is therefore computed once per distinct value, and tokens look theirs up.

use std::collections::HashMap;

use mlx::{Array, Dtype};

use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{self, Activation, Bias, Linear};

/// Width of the sinusoidal embedding.
const SINUSOID: i32 = 256;

/// Timesteps of tokens as distinct values and who has which.
#[derive(Clone, Debug)]
pub struct Distinct {
    values: Vec<f32>,
    index: Option<Array>, // (batch, tokens), or (batch, 1) where a sample's tokens agree; none where all agree
}

impl Distinct {
    /// The distinct values in order of appearance, and for each of `values` the place of its like among them.
    pub fn gather(values: &[f32]) -> (Vec<f32>, Vec<i32>) {
        let (mut distinct, mut places) = (Vec::new(), HashMap::new());
        let index = values
            .iter()
            .map(|value| {
                *places.entry(value.to_bits()).or_insert_with(|| {
                    distinct.push(*value);
                    distinct.len() as i32 - 1
                })
            })
            .collect();
        (distinct, index)
    }

    /// From `sigmas` (batch, tokens) or (batch).
    pub fn new(sigmas: &Array) -> mlx::Result<Self> {
        let (values, index) = Self::gather(&sigmas.to_f32()?);
        let batch = sigmas.shape().first().copied().unwrap_or(1);
        let tokens = index.len() / batch.max(1) as usize;
        let index = if values.len() < 2 {
            None
        } else if index.chunks(tokens).all(|sample| sample.iter().all(|place| *place == sample[0])) {
            let places: Vec<i32> = index.iter().step_by(tokens).copied().collect();
            Some(Array::from_slice(&places, &[batch, 1])?)
        } else {
            Some(Array::from_slice(&index, &[batch, tokens as i32])?)
        };
        Ok(Self { values, index })
    }

    /// The same tokens with each value times `factor`.
    pub fn scaled(&self, factor: f32) -> Self {
        let values = self.values.iter().map(|value| value * factor).collect();
        Self { values, index: self.index.clone() }
    }
}

/// Shifts, scales and gates that depend on the timestep; blocks add tables of their own to them.
#[derive(Clone, Debug)]
pub struct Modulation {
    values: Array,        // (distinct timesteps, rows, width)
    index: Option<Array>, // (batch, tokens or 1)
}

impl Modulation {
    /// One that does not depend on the timestep: `table` (rows, width) alone.
    pub fn fixed(table: &Array) -> mlx::Result<Self> {
        Ok(Self { values: table.expand_dims(&[0])?, index: None })
    }

    /// With `table` (rows, width) added.
    pub fn plus(&self, table: &Array) -> mlx::Result<Self> {
        Ok(Self { values: self.values.add(table)?, index: self.index.clone() })
    }

    /// Row `row` for every token: (batch or 1, tokens or 1, width).
    pub fn row(&self, row: i32) -> mlx::Result<Array> {
        let values = self.values.slice(1, row..row + 1)?.squeeze(&[1])?; // (distinct, width)
        match &self.index {
            Some(index) => values.take(index, 0),
            None => values.expand_dims(&[0]),
        }
    }
}

/// Timestep → modulation: a sinusoid through two layers, and a third that makes the rows.
#[derive(Debug)]
pub struct Adaln {
    linear_1: Linear,
    linear_2: Linear,
    linear: Linear,
    rows: i32,
    width: i32,
    dtype: Dtype,
}

impl Adaln {
    /// Reads one of the `…adaln_single` modules.
    pub fn load(weights: &Weights, rows: i32, width: i32) -> Result<Self> {
        let embedder = weights.at("emb.timestep_embedder");
        Ok(Self {
            linear_1: Linear::load(&embedder.at("linear_1"), SINUSOID, width, Bias::Yes)?,
            linear_2: Linear::load(&embedder.at("linear_2"), width, width, Bias::Yes)?,
            linear: Linear::load(&weights.at("linear"), width, rows * width, Bias::Yes)?,
            rows,
            width,
            dtype: weights.dtype(),
        })
    }

    /// The modulation at `timesteps` (sigmas times the model's scale), and the embedding that it is made of, as one row.
    pub fn forward(&self, timesteps: &Distinct) -> mlx::Result<(Modulation, Modulation)> {
        let count = timesteps.values.len() as i32;
        let sinusoid = sinusoid(&timesteps.values)?.astype(self.dtype)?; // (distinct, 256)
        let embedding = self.linear_2.forward(&self.linear_1.activated(&sinusoid, Activation::Silu)?)?; // (distinct, width)
        let rows = self.linear.forward(&nn::silu(&embedding)?)?.reshape(&[count, self.rows, self.width])?;
        let each = |values| Modulation { values, index: timesteps.index.clone() };
        Ok((each(rows), each(embedding.expand_dims(&[1])?)))
    }
}

/// (timesteps) → (timesteps, 256): cosines, then sines, at 128 frequencies falling from 1 to just above 1/10000.
/// Computed in f32 from f32 timesteps whatever the weights' dtype: bf16 would turn timestep 725 into 728.
fn sinusoid(timesteps: &[f32]) -> mlx::Result<Array> {
    let half = SINUSOID / 2;
    let falling = |i: i32| f64::from(-(1e4f64.ln() as f32) * i as f32 / half as f32).exp() as f32;
    let frequencies: Vec<f32> = (0..half).map(falling).collect();
    let mut values = Vec::with_capacity(timesteps.len() * SINUSOID as usize);
    for timestep in timesteps {
        let angles = || frequencies.iter().map(|frequency| f64::from(timestep * frequency));
        values.extend(angles().map(|angle| angle.cos() as f32));
        values.extend(angles().map(|angle| angle.sin() as f32));
    }
    Array::from_slice(&values, &[timesteps.len() as i32, SINUSOID])
}
