//! Norms, rotations, activations and the snake against f64, for every instruction set that this machine has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use kernels::{Activation, Matrix, Norm, PerRow, Rotation, Scaling, Snake, Values};
use support::{Data, close, every_isa, gelu_tanh, silu};

const TYPES: [[bool; 2]; 4] = [[false, false], [true, true], [true, false], [false, true]];

fn per_row(values: Values<'_>, rows: usize, repeat: usize) -> PerRow<'_> {
    PerRow { values, rows, repeat }
}

#[test]
fn norms_agree_with_f64() {
    every_isa(|isa| {
        for (rows, columns) in [(1, 1), (3, 5), (7, 64), (9, 131), (70, 1000)] {
            for scaling in [Scaling::None, Scaling::Rms { eps: 1e-6 }, Scaling::Layer { eps: 1e-3 }] {
                for [narrow, narrow_out] in TYPES {
                    let x = Data::new(rows * columns, 1, narrow);
                    let weight = Data::new(columns, 2, narrow);
                    let (scale, shift) = (Data::new(2 * columns, 3, narrow), Data::new(columns, 4, false));
                    for extra in [false, true] {
                        let norm = Norm {
                            scaling,
                            weight: extra.then(|| weight.values()),
                            modulation: extra
                                .then(|| [per_row(scale.values(), 2, 3), per_row(shift.values(), 1, 1)]),
                            activation: if extra { Activation::Silu } else { Activation::None },
                        };
                        let mut ours = Data::new(rows * columns, 5, narrow_out);
                        let matrix = Matrix::new(x.values(), rows, columns).unwrap();
                        kernels::norm(matrix, &norm, ours.values_mut()).unwrap();
                        for row in 0..rows {
                            let values: Vec<f64> = (0..columns).map(|i| x.get(row * columns + i)).collect();
                            let mean = |f: &dyn Fn(f64) -> f64| {
                                values.iter().map(|&v| f(v)).sum::<f64>() / columns as f64
                            };
                            let (centre, factor) = match scaling {
                                Scaling::None => (0.0, 1.0),
                                Scaling::Rms { eps } => {
                                    (0.0, (mean(&|v| v * v) + f64::from(eps)).sqrt().recip())
                                }
                                Scaling::Layer { eps } => {
                                    let centre = mean(&|v| v);
                                    let variance = mean(&|v| (v - centre).powi(2));
                                    (centre, (variance + f64::from(eps)).sqrt().recip())
                                }
                            };
                            for (i, value) in values.iter().enumerate() {
                                let mut y = (value - centre) * factor;
                                if extra {
                                    y *= weight.get(i);
                                    y = silu(y * (1.0 + scale.get(row / 3 % 2 * columns + i)) + shift.get(i));
                                }
                                let name =
                                    || format!("({row}, {i}) of {rows}x{columns} {scaling:?} on {isa}");
                                close(ours.get(row * columns + i), y, 2e-5, narrow_out, name);
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn rotations_agree_with_f64() {
    every_isa(|isa| {
        for (tokens, heads, head_dim, rows) in [(1, 1, 2, 1), (6, 3, 10, 3), (5, 2, 64, 5), (40, 4, 128, 20)]
        {
            for (together, shared) in [(true, false), (false, true), (true, true)] {
                for [narrow, narrow_out] in TYPES {
                    let (width, half) = (heads * head_dim, head_dim / 2);
                    let x = Data::new(tokens * width, 1, narrow);
                    let weight = Data::new(if together { width } else { head_dim }, 2, narrow);
                    let row = if shared { half } else { heads * half };
                    let (cos, sin) = (Data::new(rows * row, 3, narrow), Data::new(rows * row, 4, narrow));
                    let rotation = Rotation {
                        heads,
                        head_dim,
                        eps: 1e-5,
                        weight: weight.values(),
                        cos: cos.values(),
                        sin: sin.values(),
                        rows,
                    };
                    let mut ours = Data::new(tokens * width, 5, narrow_out);
                    kernels::norm_and_rotate(x.values(), &rotation, ours.values_mut()).unwrap();
                    for token in 0..tokens {
                        for head in 0..heads {
                            let start = token * width + head * head_dim;
                            let (from, count) =
                                if together { (token * width, width) } else { (start, head_dim) };
                            let squares = (from..from + count).map(|i| x.get(i).powi(2)).sum::<f64>();
                            let factor = (squares / count as f64 + f64::from(1e-5f32)).sqrt().recip();
                            let own = if together { head * head_dim } else { 0 };
                            let scaled = |i: usize| x.get(start + i) * factor * weight.get(own + i);
                            for i in 0..half {
                                let angle = token % rows * row + if shared { i } else { head * half + i };
                                let (cos, sin) = (cos.get(angle), sin.get(angle));
                                let (low, high) = (scaled(i), scaled(half + i));
                                let name = || format!("{token}, {head}, {i} of {heads}x{head_dim} on {isa}");
                                close(ours.get(start + i), low * cos - high * sin, 1e-5, narrow_out, name);
                                close(
                                    ours.get(start + half + i),
                                    high * cos + low * sin,
                                    1e-5,
                                    narrow_out,
                                    name,
                                );
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn activations_and_gates_agree_with_f64() {
    every_isa(|isa| {
        for len in [1, 17, 70_003] {
            for [narrow, narrow_out] in TYPES {
                let x = Data::new(len, 1, narrow);
                for (activation, f) in
                    [(Activation::Silu, silu as fn(f64) -> f64), (Activation::GeluTanh, gelu_tanh)]
                {
                    let mut ours = Data::new(len, 2, narrow_out);
                    kernels::activate(x.values(), activation, ours.values_mut()).unwrap();
                    for i in 0..len {
                        close(ours.get(i), f(x.get(i)), 1e-6, narrow_out, || {
                            format!("{i} {activation:?} on {isa}")
                        });
                    }
                }
            }
        }
        for (heads, head_dim) in [(1, 1), (6, 20), (9000, 7)] {
            for [narrow, narrow_out] in TYPES {
                let (x, logits) = (Data::new(heads * head_dim, 1, narrow), Data::new(heads, 2, narrow));
                let mut ours = Data::new(heads * head_dim, 3, narrow_out);
                kernels::gate_heads(x.values(), logits.values(), ours.values_mut()).unwrap();
                for i in 0..heads * head_dim {
                    let expected = x.get(i) * 2.0 / (1.0 + (-logits.get(i / head_dim)).exp());
                    close(ours.get(i), expected, 1e-6, narrow_out, || format!("{i} on {isa}"));
                }
            }
        }
    });
}

/// Stuffs zeros, filters, activates and filters again, as written in the definition.
fn snake_in_f64(x: &[f64], [up, down]: [&[f32; 12]; 2], alpha: f64, reciprocal_beta: f64) -> Vec<f64> {
    let time = x.len() as isize;
    let active: Vec<f64> = (0..2 * time)
        .map(|at| {
            let taps = up.iter().enumerate().map(|(tap, &weight)| {
                // Tap 5 of the stuffed signal stands over its own time.
                let place = at + 5 - tap as isize;
                let here = if place.rem_euclid(2) == 0 {
                    x[place.div_euclid(2).clamp(0, time - 1) as usize]
                } else {
                    0.0
                };
                2.0 * f64::from(weight) * here
            });
            let u: f64 = taps.sum();
            u + (alpha * u).sin().powi(2) * reciprocal_beta
        })
        .collect();
    (0..time)
        .map(|t| {
            let at = |tap: usize| active[(2 * t + tap as isize - 5).clamp(0, 2 * time - 1) as usize];
            down.iter().enumerate().map(|(tap, &weight)| f64::from(weight) * at(tap)).sum()
        })
        .collect()
}

#[test]
fn the_snake_agrees_with_f64() {
    let filter =
        |seed: u32| -> [f32; 12] { std::array::from_fn(|i| Data::new(12, seed, false).get(i) as f32) };
    let (up, down) = (filter(7), filter(8));
    every_isa(|isa| {
        for (batch, time, channels) in [(1, 1, 1), (2, 5, 3), (1, 130, 19), (2, 300, 33)] {
            for [narrow, narrow_out] in TYPES {
                let x = Data::new(batch * time * channels, 1, narrow);
                // Angles up to some hundred turns.
                let alpha: Vec<f32> = (0..channels).map(|c| (c * c) as f32 * 0.7 + 0.3).collect();
                let beta: Vec<f32> = (0..channels).map(|c| 1.0 / (c + 1) as f32).collect();
                let mut ours = Data::new(batch * time * channels, 2, narrow_out);
                let snake = Snake { up, down, alpha: &alpha, reciprocal_beta: &beta };
                kernels::snake(x.values(), [batch, time], &snake, ours.values_mut()).unwrap();
                for (sample, channel) in (0..batch * channels).map(|i| (i / channels, i % channels)) {
                    let at = |t: usize| (sample * time + t) * channels + channel;
                    let x: Vec<f64> = (0..time).map(|t| x.get(at(t))).collect();
                    let (alpha, beta) = (f64::from(alpha[channel]), f64::from(beta[channel]));
                    for (t, expected) in snake_in_f64(&x, [&up, &down], alpha, beta).into_iter().enumerate() {
                        // A rounding of the filtered value is an angle alpha times as large.
                        let tolerance = 1e-5 + alpha * beta * 5e-6;
                        let name = || format!("{sample}, {t}, {channel} of {time}x{channels} on {isa}");
                        close(ours.get(at(t)), expected, tolerance, narrow_out, name);
                    }
                }
            }
        }
    });
}

#[test]
fn threads_do_not_change_the_result() {
    every_isa(|isa| {
        let (rows, columns) = (300, 517);
        let x = Data::new(rows * columns, 1, true);
        let results = [1, 2, 5].map(|threads| {
            kernels::set_threads(threads).unwrap();
            let mut out = vec![0.0f32; rows * columns];
            let norm = Norm { scaling: Scaling::Rms { eps: 1e-6 }, ..Norm::default() };
            kernels::norm(Matrix::new(x.values(), rows, columns).unwrap(), &norm, &mut out[..]).unwrap();
            out
        });
        assert!(results[0] == results[1] && results[0] == results[2], "{isa}");
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let values = [0.5f32; 24];
    let mut out = [0.0f32; 24];
    let matrix = Matrix::new(&values[..], 4, 6).unwrap();
    assert!(kernels::norm(matrix, &Norm::default(), &mut out[..23]).is_err());
    let weight = Norm { weight: Some(values[..5].into()), ..Norm::default() };
    assert!(kernels::norm(matrix, &weight, &mut out[..]).is_err());
    for (len, rows, repeat) in [(5, 1, 1), (6, 0, 1), (6, 1, 0)] {
        let row = PerRow { values: values[..len].into(), rows, repeat };
        let norm = Norm { modulation: Some([row, row]), ..Norm::default() };
        assert!(kernels::norm(matrix, &norm, &mut out[..]).is_err());
    }
    let rotate = |heads, head_dim, weight: usize, angles: usize, rows, out: &mut [f32]| {
        let (weight, cos) = (values[..weight].into(), values[..angles].into());
        let rotation = Rotation { heads, head_dim, eps: 1e-6, weight, cos, sin: cos, rows };
        kernels::norm_and_rotate(values[..].into(), &rotation, out).is_ok()
    };
    assert!(rotate(2, 4, 8, 6, 3, &mut out));
    assert!(rotate(2, 4, 4, 12, 3, &mut out));
    assert!(!rotate(2, 4, 4, 12, 3, &mut out[..23]));
    assert!(!rotate(2, 4, 5, 12, 3, &mut out));
    assert!(!rotate(2, 4, 8, 9, 3, &mut out));
    assert!(!rotate(2, 4, 8, 6, 0, &mut out));
    assert!(!rotate(0, 4, 8, 6, 3, &mut out));
    assert!(!rotate(8, 3, 3, 1, 1, &mut out));
    assert!(!rotate(5, 2, 2, 1, 1, &mut out));
    assert!(kernels::activate(values[..].into(), Activation::Silu, &mut out[..3]).is_err());
    assert!(kernels::gate_heads(values[..].into(), values[..5].into(), &mut out[..]).is_err());
    assert!(kernels::gate_heads(values[..].into(), values[..0].into(), &mut out[..]).is_err());
    let snake = |alpha: usize, beta: usize, time, out: &mut [f32]| {
        let snake = Snake {
            up: [0.1; 12],
            down: [0.1; 12],
            alpha: &values[..alpha],
            reciprocal_beta: &values[..beta],
        };
        kernels::snake(values[..].into(), [1, time], &snake, out).is_ok()
    };
    assert!(snake(3, 3, 8, &mut out));
    assert!(!snake(3, 2, 8, &mut out));
    assert!(!snake(3, 3, 7, &mut out));
    assert!(!snake(3, 3, 8, &mut out[..23]));
}
