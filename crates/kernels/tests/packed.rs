//! Linear layers with packed weights against sums in f64, for every instruction set that this machine has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use half::{bf16, f16};
use kernels::{Activation, Epilogue, Matrix, Packed, Packing, PerRow, Residual, Scales, Values};
use support::{Data, close, every_isa, gelu_tanh};

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    F32,
    F16,
    Bf16,
    Bytes,
}

/// A packed weight (n, k) of arbitrary codes, and the same in f64.
struct Weight {
    values: Vec<u32>,
    wide: [Vec<f32>; 2],
    half: [Vec<f16>; 2],
    narrow: [Vec<bf16>; 2],
    bytes: Vec<u8>,
    packing: Packing,
    stored: Stored,
    n: usize,
    k: usize,
    exact: Vec<f64>,
}

const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size =
        if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7) };
    if code >= 128 { -size } else { size }
}

impl Weight {
    fn new(packing: Packing, stored: Stored, n: usize, k: usize) -> Self {
        let mut state = 77u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let (bits, group) = (packing.bits(), packing.group());
        let (most, groups) = (((1u32 << bits) - 1) as f32, n * k / group);
        let values: Vec<u32> = (0..n * k * bits / 32).map(|_| next() << 16 ^ next()).collect();
        // Weights of at most about 1.
        let mut random = |size: f32| (next() as f32 / (1 << 24) as f32 - 0.4) * size;
        let scales: Vec<f32> = (0..groups).map(|_| random(1.0 / most)).collect();
        let biases: Vec<f32> = (0..groups).map(|_| random(0.5)).collect();
        let bytes: Vec<u8> = (0..groups)
            .map(|index| match packing {
                Packing::Mxfp8 => 115 + (index * 7 % 5) as u8,
                _ => (index * 37 % 48) as u8 | if index % 3 == 0 { 128 } else { 0 },
            })
            .collect();
        let half = [&scales, &biases].map(|all| all.iter().map(|&value| f16::from_f32(value)).collect());
        let narrow = [&scales, &biases].map(|all| all.iter().map(|&value| bf16::from_f32(value)).collect());
        let wide = [scales, biases];
        let mut weight = Self { values, wide, half, narrow, bytes, packing, stored, n, k, exact: Vec::new() };
        weight.exact = (0..n * k).map(|index| weight.value(index)).collect();
        weight
    }

    fn code(&self, index: usize) -> u8 {
        let bits = self.packing.bits();
        let word = self.values[index * bits / 32];
        (word >> (index * bits % 32) & ((1 << bits) - 1)) as u8
    }

    fn value(&self, index: usize) -> f64 {
        let (code, group) = (self.code(index), index / self.packing.group());
        let affine = |part: usize| match self.stored {
            Stored::F16 => f64::from(self.half[part][group]),
            Stored::Bf16 => f64::from(self.narrow[part][group]),
            _ => f64::from(self.wide[part][group]),
        };
        match self.packing {
            Packing::Affine { .. } => f64::from(code) * affine(0) + affine(1),
            Packing::Mxfp8 => e4m3(code) * 2f64.powi(i32::from(self.bytes[group]) - 127),
            Packing::Nvfp4 => {
                let size = E2M1[usize::from(code & 7)] * e4m3(self.bytes[group]);
                if code & 8 == 8 { -size } else { size }
            }
        }
    }

    fn scales(&self) -> Scales<'_> {
        match self.stored {
            Stored::F32 => {
                Scales::Affine { scales: self.wide[0][..].into(), biases: self.wide[1][..].into() }
            }
            Stored::Bf16 => {
                Scales::Affine { scales: self.narrow[0][..].into(), biases: self.narrow[1][..].into() }
            }
            Stored::F16 => Scales::Half { scales: &self.half[0], biases: &self.half[1] },
            Stored::Bytes => Scales::Bytes(&self.bytes),
        }
    }

    fn packed(&self) -> Packed<'_> {
        Packed::new(&self.values, self.scales(), self.packing, self.n, self.k).unwrap()
    }
}

const KINDS: [(Packing, Stored); 10] = [
    (Packing::Affine { bits: 4, group: 32 }, Stored::Bf16),
    (Packing::Affine { bits: 4, group: 64 }, Stored::F32),
    (Packing::Affine { bits: 4, group: 64 }, Stored::F16),
    (Packing::Affine { bits: 4, group: 128 }, Stored::Bf16),
    (Packing::Affine { bits: 8, group: 32 }, Stored::F16),
    (Packing::Affine { bits: 8, group: 64 }, Stored::Bf16),
    (Packing::Affine { bits: 8, group: 128 }, Stored::F32),
    (Packing::Affine { bits: 8, group: 128 }, Stored::Bf16),
    (Packing::Mxfp8, Stored::Bytes),
    (Packing::Nvfp4, Stored::Bytes),
];

#[test]
fn agrees_with_sums_in_f64() {
    // Rows for both kernels and both ways of dealing out the work; as many groups as leave a part of a block.
    let sizes = [
        (1, 1, 1),
        (1, 37, 5),
        (2, 5, 9),
        (3, 33, 1),
        (5, 7, 3),
        (8, 34, 17),
        (9, 31, 33),
        (13, 70, 2),
        (24, 97, 35),
        (150, 7, 3),
        (331, 45, 5),
    ];
    every_isa(|isa| {
        for (packing, stored) in KINDS {
            for (m, n, groups) in sizes {
                let k = groups * packing.group();
                let weight = Weight::new(packing, stored, n, k);
                for (x_narrow, out) in [(true, true), (false, false), (true, false)] {
                    let (x, bias) = (Data::new(m * k, 1, x_narrow), Data::new(n, 3, false));
                    let mut ours = Data::new(m * n, 4, out);
                    let epilogue = Epilogue {
                        bias: Some(bias.values()),
                        activation: Activation::GeluTanh,
                        ..Epilogue::default()
                    };
                    let matrix = Matrix::new(x.values(), m, k).unwrap();
                    kernels::linear_packed(matrix, weight.packed(), &epilogue, ours.values_mut()).unwrap();
                    let x: Vec<f64> = (0..m * k).map(|index| x.get(index)).collect();
                    for (row, column) in (0..m * n).map(|index| (index / n, index % n)) {
                        let (x, weights) = (&x[row * k..][..k], &weight.exact[column * k..][..k]);
                        let (mut sum, mut squares) = (bias.get(column), 0.0);
                        for (x, weight) in x.iter().zip(weights) {
                            sum += x * weight;
                            squares += (x * weight).powi(2);
                        }
                        // Weights may be rounded to bf16, each in its own direction.
                        let rounded = if x_narrow && m > 2 { squares.sqrt() * 5.0 / 512.0 } else { 0.0 };
                        let tolerance = (k as f64).sqrt() * 1e-6 + rounded * 1.13;
                        let name =
                            || format!("({row}, {column}) of m{m} n{n} k{k} {packing:?} {stored:?} on {isa}");
                        close(ours.get(row * n + column), gelu_tanh(sum), tolerance, out, name);
                    }
                }
            }
        }
    });
}

/// Every code of every packing comes out as what it stands for: x picks one value of the weight.
#[test]
fn every_code_has_its_value() {
    every_isa(|isa| {
        for (packing, stored) in KINDS {
            let (codes, k) = (1 << packing.bits(), 256);
            let mut weight = Weight::new(packing, stored, 1, k);
            for (index, word) in weight.values.iter_mut().enumerate() {
                let in_word = 32 / packing.bits();
                *word = (0..in_word).fold(0, |word, at| {
                    let code = ((index * in_word + at) % codes) as u32;
                    word | code << (at * packing.bits())
                });
            }
            let mut x = vec![0.0f32; k * k];
            (0..k).for_each(|at| x[at * k + at] = 1.0);
            for m in [1, k] {
                for first in (0..k).step_by(m) {
                    let mut out = vec![0.0f32; m];
                    let matrix = Matrix::new(&x[first * k..(first + m) * k], m, k).unwrap();
                    kernels::linear_packed(matrix, weight.packed(), &Epilogue::default(), &mut out[..])
                        .unwrap();
                    for (at, &value) in out.iter().enumerate() {
                        let name = || format!("value {} of {packing:?} {stored:?} on {isa}", first + at);
                        close(value.into(), weight.value(first + at), 1e-6, false, name);
                    }
                }
            }
        }
    });
}

#[test]
fn outputs_are_gated_and_added() {
    every_isa(|isa| {
        for (m, n, rows, repeat) in [(6, 37, 2, 3), (40, 33, 20, 1), (14, 70, 1, 1)] {
            let weight = Weight::new(Packing::Affine { bits: 4, group: 64 }, Stored::Bf16, n, 192);
            let (x, residual, gate) =
                (Data::new(m * 192, 1, false), Data::new(m * n, 2, false), Data::new(rows * n, 3, true));
            let residual_of = Residual {
                values: residual.values(),
                gate: Some(PerRow { values: gate.values(), rows, repeat }),
            };
            let epilogue = Epilogue { residual: Some(residual_of), ..Epilogue::default() };
            let mut ours = vec![0.0f32; m * n];
            let matrix = Matrix::new(x.values(), m, 192).unwrap();
            kernels::linear_packed(matrix, weight.packed(), &epilogue, &mut ours[..]).unwrap();
            for (row, column) in (0..m * n).map(|index| (index / n, index % n)) {
                let products = (0..192).map(|i| x.get(row * 192 + i) * weight.exact[column * 192 + i]);
                let factor = gate.get(row / repeat % rows * n + column);
                let expected = residual.get(row * n + column) + factor * products.sum::<f64>();
                let name = || format!("({row}, {column}) of m{m} on {isa}");
                close(ours[row * n + column].into(), expected, 2e-5, false, name);
            }
        }
    });
}

/// A thread more changes who computes, not what.
#[test]
fn threads_do_not_change_the_result() {
    every_isa(|isa| {
        for (packing, stored) in KINDS {
            for (m, n) in [(3, 130), (67, 130), (350, 40)] {
                let weight = Weight::new(packing, stored, n, 640);
                let x = Data::new(m * 640, 1, true);
                let results = [1, 3].map(|threads| {
                    kernels::set_threads(threads).unwrap();
                    let mut out = vec![0.0f32; m * n];
                    let matrix = Matrix::new(x.values(), m, 640).unwrap();
                    kernels::linear_packed(matrix, weight.packed(), &Epilogue::default(), &mut out[..])
                        .unwrap();
                    out
                });
                assert_eq!(results[0], results[1], "m{m} n{n} {packing:?} on {isa}");
            }
        }
    });
}

/// What is not finite in a group shows in its column, and nowhere else.
#[test]
fn scales_that_are_not_finite_show() {
    every_isa(|isa| {
        let (n, k) = (37, 256);
        for m in [2, 20] {
            for (packing, stored) in KINDS {
                let mut weight = Weight::new(packing, stored, n, k);
                // Codes above 0, so that infinity is no NaN.
                weight.values.fill(0x1111_1111);
                let group = 5 * (k / packing.group()) + 1;
                let x = vec![1.0f32; m * k];
                for wrong in [f32::INFINITY, f32::NAN] {
                    weight.wide[0][group] = wrong;
                    weight.half[0][group] = f16::from_f32(wrong);
                    weight.narrow[0][group] = bf16::from_f32(wrong);
                    weight.bytes[group] = 0xff;
                    let mut out = vec![0.0f32; m * n];
                    let matrix = Matrix::new(&x[..], m, k).unwrap();
                    kernels::linear_packed(matrix, weight.packed(), &Epilogue::default(), &mut out[..])
                        .unwrap();
                    for (index, &value) in out.iter().enumerate() {
                        let expected = match packing {
                            // All ones are 480 there, as MLX has it, below 0 here.
                            Packing::Nvfp4 => continue,
                            _ if index % n != 5 => f32::is_finite(value),
                            Packing::Mxfp8 => value == f32::INFINITY,
                            _ if wrong.is_nan() => value.is_nan(),
                            _ => value == f32::INFINITY,
                        };
                        assert!(expected, "{value} at {index}, m{m} {packing:?} {stored:?} on {isa}");
                    }
                }
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let (values, numbers, bytes) = ([0u32; 64], [0f32; 8], [0u8; 16]);
    let four = Packing::Affine { bits: 4, group: 64 };
    let affine = |scales: usize, biases: usize| Scales::Affine {
        scales: Values::F32(&numbers[..scales]),
        biases: Values::F32(&numbers[..biases]),
    };
    let new = |count: usize, scales, packing, rows, columns| {
        Packed::new(&values[..count], scales, packing, rows, columns)
    };
    assert!(new(64, affine(8, 8), four, 4, 128).is_ok());
    assert!(new(63, affine(8, 8), four, 4, 128).is_err());
    assert!(new(64, affine(7, 8), four, 4, 128).is_err());
    assert!(new(64, affine(8, 7), four, 4, 128).is_err());
    assert!(new(64, Scales::Bytes(&bytes[..8]), four, 4, 128).is_err());
    assert!(new(64, Scales::Bytes(&bytes), Packing::Mxfp8, 8, 32).is_err());
    assert!(new(64, Scales::Bytes(&bytes[..8]), Packing::Mxfp8, 8, 32).is_ok());
    assert!(new(64, affine(8, 8), Packing::Mxfp8, 8, 32).is_err());
    assert!(new(64, affine(8, 8), Packing::Affine { bits: 3, group: 64 }, 4, 128).is_err());
    assert!(new(64, affine(8, 8), Packing::Affine { bits: 4, group: 48 }, 4, 128).is_err());
    assert!(new(64, affine(8, 8), four, 4, 127).is_err());
    assert!(new(64, affine(8, 8), four, usize::MAX, 128).is_err());
    let (x, weight) =
        (Matrix::new(&numbers[..4], 1, 4).unwrap(), new(64, affine(8, 8), four, 4, 128).unwrap());
    assert!(kernels::linear_packed(x, weight, &Epilogue::default(), &mut [0.0f32; 4][..]).is_err());
}
