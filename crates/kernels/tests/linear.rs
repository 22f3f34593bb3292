//! Linear layers against sums in f64, for every instruction set that this machine has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use kernels::{Activation, Epilogue, Error, Matrix, PerRow, Residual};
use support::{Data, close, every_isa, gelu_tanh, silu};

#[test]
fn agrees_with_sums_in_f64() {
    // Every kind of tail of rows, columns and k; both ways of dealing out the work; the kernel for few rows.
    let sizes = [
        (1, 1, 1),
        (1, 37, 131),
        (2, 5, 3),
        (3, 33, 40),
        (4, 64, 515),
        (5, 1, 7),
        (7, 31, 255),
        (13, 70, 257),
        (24, 32, 512),
        (29, 97, 1031),
        (331, 45, 66),
        (150, 7, 513),
        (97, 33, 1100),
        (40, 70, 1056),
        (530, 266, 32),
    ];
    every_isa(|isa| {
        for (m, n, k) in sizes {
            for (x, weight, out) in [
                (false, false, false),
                (true, true, true),
                (false, true, false),
                (true, true, false),
                (true, false, false),
            ] {
                for (activation, with_bias) in [
                    (Activation::None, false),
                    (Activation::GeluTanh, true),
                    (Activation::Silu, true),
                    (Activation::Leaky { slope: 0.2 }, true),
                ] {
                    let (x, weight) = (Data::new(m * k, 1, x), Data::new(n * k, 2, weight));
                    let bias = Data::new(n, 3, false);
                    let mut ours = Data::new(m * n, 4, out);
                    kernels::linear(
                        Matrix::new(x.values(), m, k).unwrap(),
                        Matrix::new(weight.values(), n, k).unwrap(),
                        &Epilogue { bias: with_bias.then(|| bias.values()), activation, residual: None },
                        ours.values_mut(),
                    )
                    .unwrap();
                    for row in 0..m {
                        for column in 0..n {
                            let products = (0..k).map(|i| x.get(row * k + i) * weight.get(column * k + i));
                            let sum = products.sum::<f64>() + if with_bias { bias.get(column) } else { 0.0 };
                            let expected = match activation {
                                Activation::None => sum,
                                Activation::GeluTanh => gelu_tanh(sum),
                                Activation::Silu => silu(sum),
                                Activation::Leaky { slope } => sum.max(f64::from(slope) * sum),
                            };
                            let name =
                                || format!("({row}, {column}) of m{m} n{n} k{k} {activation:?} on {isa}");
                            // The sum's rounding grows with the root of k; values are below 1.
                            close(ours.get(row * n + column), expected, (k as f64).sqrt() * 1e-6, out, name);
                        }
                    }
                }
            }
        }
    });
}

/// A thread more changes who computes, not what.
#[test]
fn threads_do_not_change_the_result() {
    every_isa(|isa| {
        for (m, n, k) in [(67, 130, 600), (1100, 40, 300), (2, 300, 777), (9, 600, 96)] {
            let (x, weight) = (Data::new(m * k, 1, true), Data::new(n * k, 2, true));
            let results = [1, 2, 5].map(|threads| {
                kernels::set_threads(threads).unwrap();
                let mut out = vec![0.0f32; m * n];
                let (x, weight) =
                    (Matrix::new(x.values(), m, k).unwrap(), Matrix::new(weight.values(), n, k).unwrap());
                kernels::linear(x, weight, &Epilogue::default(), &mut out[..]).unwrap();
                out
            });
            assert!(results[0] == results[1] && results[0] == results[2], "m{m} n{n} k{k} on {isa}");
        }
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let values = [0.0f32; 12];
    let matrix = |rows, columns| Matrix::new(&values[..rows * columns], rows, columns).unwrap();
    assert!(matches!(Matrix::new(&values[..], 5, 2), Err(Error::Shape { .. })));
    assert!(Matrix::new(&values[..], usize::MAX, 13).is_err());
    let mut out = [0.0f32; 6];
    let refused = |x, weight, bias: Option<&[f32]>, out: &mut [f32]| {
        let epilogue = Epilogue { bias: bias.map(Into::into), ..Epilogue::default() };
        kernels::linear(x, weight, &epilogue, out).is_err()
    };
    assert!(refused(matrix(2, 4), matrix(3, 3), None, &mut out));
    assert!(refused(matrix(2, 4), matrix(3, 4), None, &mut out[..5]));
    assert!(refused(matrix(2, 4), matrix(3, 4), Some(&values[..2]), &mut out));
    assert!(!refused(matrix(2, 4), matrix(3, 4), Some(&values[..3]), &mut out));
    let refused = |residual: usize, gate: usize, rows: usize, repeat: usize| {
        let gate = Some(PerRow { values: values[..gate].into(), rows, repeat });
        let residual = Some(Residual { values: values[..residual].into(), gate });
        let epilogue = Epilogue { residual, ..Epilogue::default() };
        kernels::linear(matrix(2, 4), matrix(3, 4), &epilogue, &mut [0.0f32; 6][..]).is_err()
    };
    assert!(!refused(6, 6, 2, 1));
    assert!(refused(5, 6, 2, 1));
    assert!(refused(6, 5, 2, 1));
    assert!(refused(6, 0, 0, 1));
    assert!(refused(6, 3, 1, 0));
}

/// Two samples of rows with a gate for each sample, for each row, and for all; and none.
#[test]
fn outputs_are_gated_and_added() {
    every_isa(|isa| {
        for (m, n, k, gates) in
            [(6, 37, 20, (2, 3)), (2, 9, 5, (1, 2)), (40, 70, 33, (20, 1)), (14, 33, 8, (0, 1))]
        {
            for narrow in [false, true] {
                let (x, weight) = (Data::new(m * k, 1, narrow), Data::new(n * k, 2, narrow));
                let (residual, gate) = (Data::new(m * n, 3, narrow), Data::new(gates.0 * n, 4, narrow));
                let bias = Data::new(n, 5, false);
                let mut ours = Data::new(m * n, 6, narrow);
                let (rows, repeat) = gates;
                let epilogue = Epilogue {
                    bias: Some(bias.values()),
                    residual: Some(Residual {
                        values: residual.values(),
                        gate: (rows > 0).then(|| PerRow { values: gate.values(), rows, repeat }),
                    }),
                    ..Epilogue::default()
                };
                let (x_matrix, weight_matrix) =
                    (Matrix::new(x.values(), m, k).unwrap(), Matrix::new(weight.values(), n, k).unwrap());
                kernels::linear(x_matrix, weight_matrix, &epilogue, ours.values_mut()).unwrap();
                for (row, column) in (0..m * n).map(|index| (index / n, index % n)) {
                    let products = (0..k).map(|i| x.get(row * k + i) * weight.get(column * k + i));
                    let sum = products.sum::<f64>() + bias.get(column);
                    let factor = if rows > 0 { gate.get(row / repeat % rows * n + column) } else { 1.0 };
                    let expected = residual.get(row * n + column) + factor * sum;
                    let name = || format!("({row}, {column}) of m{m} n{n} k{k} on {isa}");
                    close(ours.get(row * n + column), expected, 1e-5, narrow, name);
                }
            }
        }
    });
}

/// Without products, what is left is the bias.
#[test]
fn sums_of_nothing_are_zero() {
    every_isa(|_| {
        for rows in [2, 9] {
            let mut out = vec![7.0f32; rows * 3];
            let (x, weight) = (Matrix::new(&[0.0f32; 0][..], rows, 0), Matrix::new(&[0.0f32; 0][..], 3, 0));
            let bias = [1.0f32, 2.0, 3.0];
            kernels::linear(
                x.unwrap(),
                weight.unwrap(),
                &Epilogue { bias: Some(bias[..].into()), ..Epilogue::default() },
                &mut out[..],
            )
            .unwrap();
            assert!(out.chunks(3).all(|row| row == bias));
        }
    });
}

#[test]
#[cfg(feature = "emulate-amx")]
fn the_tiles_of_amx_are_among_what_is_tested() {
    assert!(kernels::Isa::AmxBf16.available(), "needs Linux and a processor with AVX512-BF16");
}
