//! A row-major tensor of `f64` that knows no MLX, arrays of equal values in different memory layouts, and comparison.

use half::{bf16, f16};
use mlx::{Array, Dtype};

/// Float types and the relative error that one rounding of their results may show.
pub const FLOATS: [(Dtype, f64); 4] =
    [(Dtype::F32, 4e-6), (Dtype::F16, 2e-3), (Dtype::Bf16, 1.6e-2), (Dtype::F64, 1e-6)];

/// Held by tests that look at MLX's books while they move more memory than all the others together.
pub static MEMORY: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<i32>,
    pub data: Vec<f64>,
}

/// Every index of `shape`, last axis fastest.
pub fn indices(shape: &[i32]) -> Vec<Vec<i32>> {
    shape.iter().fold(vec![vec![]], |all, &size| {
        all.iter().flat_map(|index| (0..size).map(move |i| [index.as_slice(), &[i]].concat())).collect()
    })
}

impl Tensor {
    pub fn from_fn(shape: &[i32], value: impl FnMut(&[i32]) -> f64) -> Self {
        let mut value = value;
        let data = indices(shape).iter().map(|index| value(index)).collect();
        Self { shape: shape.to_vec(), data }
    }

    /// Numbers in `low..high`, the same for the same seed, exact in every float type (eight significant bits).
    pub fn random(shape: &[i32], low: f64, high: f64, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self::from_fn(shape, |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
            f64::from(bf16::from_f64(low + unit * (high - low)))
        })
    }

    /// 0, 1, 2, … in row-major order.
    pub fn counting(shape: &[i32]) -> Self {
        let mut next = -1.0;
        Self::from_fn(shape, |_| {
            next += 1.0;
            next
        })
    }

    pub fn at(&self, index: &[i32]) -> f64 {
        assert_eq!(index.len(), self.shape.len());
        let flat = index.iter().zip(&self.shape).fold(0, |flat, (&i, &size)| {
            assert!((0..size).contains(&i), "{index:?} in {:?}", self.shape);
            flat * size + i
        });
        self.data[flat as usize]
    }

    /// The element that `index` of a broadcast result reads.
    pub fn broadcast_at(&self, index: &[i32]) -> f64 {
        let tail = &index[index.len() - self.shape.len()..];
        let own: Vec<i32> =
            tail.iter().zip(&self.shape).map(|(&i, &size)| if size == 1 { 0 } else { i }).collect();
        self.at(&own)
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { shape: self.shape.clone(), data: self.data.iter().map(|&value| f(value)).collect() }
    }

    pub fn permuted(&self, axes: &[usize]) -> Self {
        let shape: Vec<i32> = axes.iter().map(|&axis| self.shape[axis]).collect();
        Self::from_fn(&shape, |index| {
            let mut own = vec![0; index.len()];
            for (&axis, &i) in axes.iter().zip(index) {
                own[axis] = i;
            }
            self.at(&own)
        })
    }

    /// The values as a row-major array.
    pub fn array(&self, dtype: Dtype) -> Array {
        macro_rules! cast {
            ($convert:expr) => {
                Array::from_slice(&self.data.iter().map(|&v| $convert(v)).collect::<Vec<_>>(), &self.shape)
            };
        }
        match dtype {
            Dtype::Bool => cast!(|v: f64| v as u8).and_then(|a| a.astype(Dtype::Bool)),
            Dtype::U8 => cast!(|v: f64| v as u8),
            Dtype::I32 => cast!(|v: f64| v as i32),
            Dtype::U32 => cast!(|v: f64| v as u32),
            Dtype::I64 => cast!(|v: f64| v as i64),
            Dtype::F16 => cast!(f16::from_f64),
            Dtype::Bf16 => cast!(bf16::from_f64),
            Dtype::F32 => cast!(|v: f64| v as f32),
            Dtype::F64 => cast!(|v: f64| v),
        }
        .unwrap()
    }

    /// The same values in every kind of memory layout that views produce: row-major, with the axes reversed in memory,
    /// with gaps, and starting inside a larger buffer.
    pub fn layouts(&self, dtype: Dtype) -> Vec<(&'static str, Array)> {
        let rank = self.shape.len();
        let mut layouts = vec![("row-major", self.array(dtype))];
        if rank > 0 {
            let reversed: Vec<usize> = (0..rank).rev().collect();
            let axes: Vec<i32> = reversed.iter().map(|&axis| axis as i32).collect();
            layouts.push(("transposed", self.permuted(&reversed).array(dtype).transpose(&axes).unwrap()));
            let doubled: Vec<i32> = self.shape.iter().map(|size| 2 * size).collect();
            let gaps = Self::from_fn(&doubled, |index| {
                if index.iter().all(|i| i % 2 == 1) {
                    self.at(&index.iter().map(|i| i / 2).collect::<Vec<_>>())
                } else {
                    77.0
                }
            });
            let strided = gaps.array(dtype).slice_steps(&vec![1; rank], &doubled, &vec![2; rank]);
            layouts.push(("strided", strided.unwrap()));
            let mut longer = self.shape.clone();
            longer[0] += 1;
            let offset = Self::from_fn(&longer, |index| {
                let mut own = index.to_vec();
                own[0] -= 1;
                if own[0] < 0 { 55.0 } else { self.at(&own) }
            });
            layouts.push(("offset", offset.array(dtype).slice(0, 1..longer[0]).unwrap()));
        }
        layouts
    }
}

/// What an array holds.
pub fn read(array: &Array) -> Tensor {
    let data = match array.dtype() {
        Dtype::I64 => array.to_vec::<i64>().unwrap().into_iter().map(|v| v as f64).collect(),
        Dtype::F64 | Dtype::I32 | Dtype::U32 => array.astype(Dtype::F64).unwrap().to_vec::<f64>().unwrap(),
        _ => array.to_f32().unwrap().into_iter().map(f64::from).collect(),
    };
    Tensor { shape: array.shape().to_vec(), data }
}

/// Panics unless `got` has the shape and, within `tolerance` relative to the larger of 1 and the value, the values of
/// `want`.
#[track_caller]
pub fn assert_close(what: &str, got: &Array, want: &Tensor, tolerance: f64) {
    assert_eq!(got.shape(), want.shape, "{what}: shape");
    for ((index, got), want) in indices(&want.shape).iter().zip(read(got).data).zip(&want.data) {
        let same = got == *want || (got.is_nan() && want.is_nan());
        assert!(
            same || (got - want).abs() <= tolerance * want.abs().max(1.0),
            "{what} at {index:?}: {got} for {want}"
        );
    }
}

#[track_caller]
pub fn assert_same(what: &str, got: &Array, want: &Tensor) {
    assert_close(what, got, want, 0.0);
}
