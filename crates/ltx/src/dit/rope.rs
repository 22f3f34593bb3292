//! Rotary positions over one or several axes, in LTX's split form. The text connectors use the same ones.
//!
//! Frequencies are made in f64 and rounded to f32, as the official code does; angles are rounded to f32 too, because at
//! angles near 10⁴ a better rounding would be another position. Everything is computed on the host, once per run: GPU
//! sines of large arguments are not to be trusted.

use mlx::{Array, Dtype, Result};

use super::modulation::Distinct;
use crate::nn;

/// Which frequencies a rotation has.
#[derive(Clone, Copy, Debug)]
pub struct Frequencies<'a> {
    /// Heads that share the width.
    pub heads: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Frequencies rise from π/2 to theta · π/2.
    pub theta: f64,
    /// Furthest position per axis: positions 0 to this become angles from −frequency to +frequency.
    pub max_positions: &'a [f32],
}

/// Cosines and sines for every token and head.
#[derive(Clone, Debug)]
pub struct Rope {
    cos: Array, // (batch, tokens, heads, head_dim / 2)
    sin: Array, // (batch, tokens, heads, head_dim / 2)
}

impl Rope {
    /// Tables for tokens that span `positions` (batch, axes, tokens, 2) from start to end; a token is at its middle.
    /// The width's pairs are dealt out frequency by frequency, within it axis by axis; those left over stand in front
    /// and do not turn. Heads share the row of pairs, so each has frequencies of its own.
    pub fn new(positions: &Array, frequencies: &Frequencies, dtype: Dtype) -> Result<Self> {
        let &Frequencies { heads, head_dim, theta, max_positions } = frequencies;
        let axes = max_positions.len() as i32;
        let (batch, tokens) = (positions.dim(0), positions.dim(2));
        let pairs = heads * head_dim / 2;
        let count = pairs / axes;
        let rising: Vec<f32> = (0..count)
            .map(|i| {
                let exponent = if count > 1 { f64::from(i) / f64::from(count - 1) } else { 0.0 };
                (theta.powf(exponent) * std::f64::consts::PI / 2.0) as f32
            })
            .collect();

        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (axis, &furthest) in max_positions.iter().enumerate() {
            let span = positions.slice(1, axis as i32..axis as i32 + 1)?; // (batch, 1, tokens, 2)
            let middles: Vec<f32> =
                span.to_f32()?.chunks_exact(2).map(|span| (span[0] + span[1]) / 2.0).collect();
            // The tokens of a grid share their coordinates: a few hundred rows describe thousands of tokens.
            let (coordinates, index) = Distinct::gather(&middles);
            let index = Array::from_slice(&index, &[batch, tokens])?;
            let angles: Vec<f64> = coordinates
                .iter()
                .map(|middle| middle / furthest * 2.0 - 1.0)
                .flat_map(|fraction| rising.iter().map(move |frequency| f64::from(frequency * fraction)))
                .collect();
            for (tables, function) in [(&mut cos, f64::cos as fn(f64) -> f64), (&mut sin, f64::sin)] {
                let values: Vec<f32> = angles.iter().map(|&angle| function(angle) as f32).collect();
                let table = Array::from_slice(&values, &[coordinates.len() as i32, count])?;
                tables.push(table.take(&index, 0)?); // (batch, tokens, count)
            }
        }
        let per_head = |tables: &[Array], still: f64| -> Result<Array> {
            let table = mlx::stack(&tables.iter().collect::<Vec<_>>(), -1)? // (batch, tokens, count, axes)
                .reshape(&[batch, tokens, count * axes])?
                .pad(2, pairs - count * axes, 0, still)?
                .reshape(&[batch, tokens, heads, head_dim / 2])?
                .astype(dtype)?
                .contiguous()?;
            table.eval()?;
            Ok(table)
        };
        Ok(Self { cos: per_head(&cos, 1.0)?, sin: per_head(&sin, 0.0)? })
    }

    /// Tables from angles by token and pair, row-major, the same for all heads.
    pub fn from_angles(angles: &[f32], tokens: i32, dtype: Dtype) -> Result<Self> {
        let table = |function: fn(f64) -> f64| -> Result<Array> {
            let values: Vec<f32> = angles.iter().map(|&angle| function(f64::from(angle)) as f32).collect();
            let pairs = if tokens > 0 { values.len() as i32 / tokens } else { 0 };
            Array::from_slice(&values, &[1, tokens, 1, pairs])?.astype(dtype)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// The root-mean-square norm of `x` (batch, tokens, heads, head_dim), with each pair (i, i + head_dim / 2) turned by its
    /// angle. The norm is over all heads where `weight` is (heads · head_dim), over each where it is (head_dim).
    pub fn rotate_normed(&self, x: &Array, weight: &Array, eps: f32) -> Result<Array> {
        nn::rotated_rms_norm(x, weight, eps, [&self.cos, &self.sin])
    }
}
