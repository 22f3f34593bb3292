//! Unary and binary operations, comparison, conversion.

use mlx::{Array, Dtype, select};

use crate::oracle::{FLOATS, Tensor, assert_close, assert_same, indices, read};

/// By its Taylor series, which converges fast enough for |x| ≤ 3.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

type Unary = (&'static str, fn(&Array) -> mlx::Result<Array>, fn(f64) -> f64, f64);

/// Operation, oracle, and the least value that the operation is asked for.
const UNARY: [Unary; 15] = [
    ("abs", Array::abs, f64::abs, -3.0),
    ("cos", Array::cos, f64::cos, -3.0),
    ("erf", Array::erf, erf, -3.0),
    ("exp", Array::exp, f64::exp, -3.0),
    ("floor", Array::floor, f64::floor, -3.0),
    ("log", Array::log, f64::ln, 0.25),
    ("negative", Array::negative, |x| -x, -3.0),
    ("reciprocal", Array::reciprocal, |x| 1.0 / x, 0.25),
    ("round", Array::round, f64::round_ties_even, -3.0),
    ("rsqrt", Array::rsqrt, |x| 1.0 / x.sqrt(), 0.25),
    ("sigmoid", Array::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -3.0),
    ("sin", Array::sin, f64::sin, -3.0),
    ("sqrt", Array::sqrt, f64::sqrt, 0.25),
    ("square", Array::square, |x| x * x, -3.0),
    ("tanh", Array::tanh, f64::tanh, -3.0),
];

#[test]
fn unary_operations() {
    for (name, operation, oracle, low) in UNARY {
        let x = Tensor::random(&[3, 5, 7], low, 3.0, 1);
        for (dtype, tolerance) in FLOATS {
            for (layout, array) in x.layouts(dtype) {
                let got = operation(&array).unwrap();
                assert_eq!(got.dtype(), dtype, "{name}");
                assert_close(&format!("{name} {dtype} {layout}"), &got, &x.map(oracle), tolerance);
            }
        }
    }
}

#[test]
fn rounding_goes_to_even() {
    let x = Array::from_slice(&[0.5f32, 1.5, 2.5, -0.5, -1.5], &[5]).unwrap();
    assert_eq!(x.round().unwrap().to_f32().unwrap(), [0.0, 2.0, 2.0, 0.0, -2.0]);
}

#[test]
fn finite_and_not() {
    let values = [1.0f32, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
    let x = Array::from_slice(&values, &[5]).unwrap();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let finite = x.astype(dtype).unwrap().is_finite().unwrap();
        assert_eq!(finite.dtype(), Dtype::Bool);
        assert_eq!(finite.to_f32().unwrap(), [1.0, 0.0, 0.0, 0.0, 1.0], "{dtype}");
        assert_eq!(finite.logical_not().unwrap().to_f32().unwrap(), [0.0, 1.0, 1.0, 1.0, 0.0]);
    }
}

type Binary = (&'static str, fn(&Array, &Array) -> mlx::Result<Array>, fn(f64, f64) -> f64);

const ARITHMETIC: [Binary; 6] = [
    ("add", |a, b| a.add(b), |a, b| a + b),
    ("subtract", |a, b| a.subtract(b), |a, b| a - b),
    ("multiply", |a, b| a.multiply(b), |a, b| a * b),
    ("divide", |a, b| a.divide(b), |a, b| a / b),
    ("maximum", |a, b| a.maximum(b), f64::max),
    ("minimum", |a, b| a.minimum(b), f64::min),
];

const COMPARISON: [Binary; 5] = [
    ("equal", |a, b| a.equal(b), |a, b| f64::from(a == b)),
    ("greater", |a, b| a.greater(b), |a, b| f64::from(a > b)),
    ("greater_equal", |a, b| a.greater_equal(b), |a, b| f64::from(a >= b)),
    ("less", |a, b| a.less(b), |a, b| f64::from(a < b)),
    ("logical_and", |a, b| a.logical_and(b), |a, b| f64::from(a != 0.0 && b != 0.0)),
];

fn combine(shape: &[i32], a: &Tensor, b: &Tensor, oracle: fn(f64, f64) -> f64) -> Tensor {
    Tensor::from_fn(shape, |index| oracle(a.broadcast_at(index), b.broadcast_at(index)))
}

#[test]
fn arithmetic_broadcasts() {
    let pairs: [(&[i32], &[i32], &[i32]); 5] = [
        (&[3, 5, 7], &[3, 5, 7], &[3, 5, 7]),
        (&[3, 1, 7], &[5, 1], &[3, 5, 7]),
        (&[5, 7], &[2, 3, 1, 7], &[2, 3, 5, 7]),
        (&[3, 5], &[], &[3, 5]),
        (&[1], &[4, 3], &[4, 3]),
    ];
    for (a_shape, b_shape, shape) in pairs {
        let (a, b) = (Tensor::random(a_shape, -3.0, 3.0, 2), Tensor::random(b_shape, 0.25, 3.0, 3));
        for (name, operation, oracle) in ARITHMETIC {
            let want = combine(shape, &a, &b, oracle);
            for (dtype, tolerance) in FLOATS {
                for (a_layout, a) in a.layouts(dtype) {
                    for (b_layout, b) in b.layouts(dtype) {
                        let got = operation(&a, &b).unwrap();
                        assert_eq!(got.dtype(), dtype, "{name}");
                        assert_close(
                            &format!("{name} {dtype} {a_layout} {b_layout}"),
                            &got,
                            &want,
                            tolerance,
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn comparison_gives_bool() {
    // Small whole numbers, so that equality happens.
    let (a, b) = (
        Tensor::random(&[3, 5], 0.0, 3.0, 4).map(f64::floor),
        Tensor::random(&[5], 0.0, 3.0, 5).map(f64::floor),
    );
    for (name, operation, oracle) in COMPARISON {
        let want = combine(&[3, 5], &a, &b, oracle);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I32, Dtype::I64, Dtype::U32, Dtype::U8] {
            for (layout, a) in a.layouts(dtype) {
                let got = operation(&a, &b.array(dtype)).unwrap();
                assert_eq!(got.dtype(), Dtype::Bool, "{name}");
                assert_same(&format!("{name} {dtype} {layout}"), &got, &want);
            }
        }
    }
}

#[test]
fn integers_stay_integers() {
    let (a, b) = (Tensor::counting(&[3, 5]), Tensor::random(&[3, 5], 1.0, 6.0, 6).map(f64::floor));
    for dtype in [Dtype::I32, Dtype::I64, Dtype::U32, Dtype::U8] {
        for (name, operation, oracle) in [ARITHMETIC[0], ARITHMETIC[2], ARITHMETIC[4], ARITHMETIC[5]] {
            let got = operation(&a.array(dtype), &b.array(dtype)).unwrap();
            assert_eq!(got.dtype(), dtype, "{name}");
            assert_same(&format!("{name} {dtype}"), &got, &combine(&[3, 5], &a, &b, oracle));
        }
        // Division of integers is true division.
        let got = a.array(dtype).divide(b.array(dtype)).unwrap();
        assert_eq!(got.dtype(), Dtype::F32);
        assert_close("divide", &got, &combine(&[3, 5], &a, &b, |a, b| a / b), 1e-6);
    }
}

#[test]
fn power() {
    let (a, b) = (Tensor::random(&[3, 5], 0.25, 3.0, 7), Tensor::random(&[5], -2.0, 2.0, 8));
    for (dtype, tolerance) in FLOATS {
        let got = a.array(dtype).power(b.array(dtype)).unwrap();
        assert_close(&format!("power {dtype}"), &got, &combine(&[3, 5], &a, &b, f64::powf), tolerance);
    }
    let base = Array::from_slice(&[2i32, -3, 0, 7], &[4]).unwrap();
    let exponent = Array::from_slice(&[10i32, 3, 0, 1], &[4]).unwrap();
    assert_eq!(base.power(&exponent).unwrap().to_vec::<i32>().unwrap(), [1024, -27, 1, 7]);
}

#[test]
fn numbers_take_the_dtype_of_the_array() {
    let x = Tensor::random(&[3, 5], -3.0, 3.0, 9);
    for (dtype, tolerance) in FLOATS {
        let got = x.array(dtype).multiply(2.0f32).unwrap().add(0.5f64).unwrap();
        assert_eq!(got.dtype(), dtype);
        assert_close(&format!("{dtype}"), &got, &x.map(|v| 2.0 * v + 0.5), tolerance);
        let owned = x.array(dtype).subtract(x.array(dtype)).unwrap();
        assert_same("x − x", &owned, &x.map(|_| 0.0));
    }
}

#[test]
fn matrix_products() {
    let cases: [(&[i32], &[i32], &[i32]); 7] = [
        (&[3, 5], &[5, 7], &[3, 7]),
        (&[2, 3, 5], &[5, 7], &[2, 3, 7]),
        (&[2, 3, 5], &[2, 5, 7], &[2, 3, 7]),
        (&[2, 1, 3, 5], &[4, 5, 7], &[2, 4, 3, 7]),
        (&[5], &[5, 7], &[7]),
        (&[3, 5], &[5], &[3]),
        (&[1, 33], &[33, 65], &[1, 65]),
    ];
    for (a_shape, b_shape, shape) in cases {
        let (a, b) = (Tensor::random(a_shape, -1.0, 1.0, 10), Tensor::random(b_shape, -1.0, 1.0, 11));
        let inner = a_shape[a_shape.len() - 1];
        let (a_vector, b_vector) = (a_shape.len() == 1, b_shape.len() == 1);
        let want = Tensor::from_fn(shape, |index| {
            let mut batch = index.to_vec();
            let column = if b_vector { None } else { batch.pop() };
            let row = if a_vector { None } else { batch.pop() };
            (0..inner)
                .map(|k| {
                    let a_index = [batch.as_slice(), row.as_slice(), &[k]].concat();
                    let b_index = [batch.as_slice(), &[k], column.as_slice()].concat();
                    let (a_skip, b_skip) =
                        (a_index.len() - a_shape.len(), b_index.len().saturating_sub(b_shape.len()));
                    a.broadcast_at(&a_index[a_skip..]) * b.broadcast_at(&b_index[b_skip..])
                })
                .sum()
        });
        for (dtype, tolerance) in FLOATS {
            for (a_layout, a) in a.layouts(dtype) {
                for (b_layout, b) in b.layouts(dtype) {
                    let got = a.matmul(&b).unwrap();
                    assert_eq!(got.dtype(), dtype);
                    let what = format!("matmul {a_shape:?} {b_shape:?} {dtype} {a_layout} {b_layout}");
                    assert_close(&what, &got, &want, 4.0 * tolerance);
                }
            }
        }
    }
}

#[test]
fn select_broadcasts() {
    let condition = Tensor::from_fn(&[3, 1], |index| f64::from(index[0] != 1));
    let (a, b) = (Tensor::counting(&[3, 5]), Tensor::counting(&[5]).map(|v| -v));
    let want = Tensor::from_fn(&[3, 5], |index| {
        if condition.broadcast_at(index) != 0.0 { a.at(index) } else { b.broadcast_at(index) }
    });
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::I32] {
        let got = select(&condition.array(Dtype::Bool), &a.array(dtype), &b.array(dtype)).unwrap();
        assert_eq!(got.dtype(), dtype);
        assert_same("select", &got, &want);
    }
}

#[test]
fn conversions_keep_representable_values() {
    let all =
        [Dtype::U8, Dtype::I32, Dtype::U32, Dtype::I64, Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];
    let x = Tensor::counting(&[3, 5, 7]);
    for from in all {
        for to in all {
            for (layout, array) in x.layouts(from) {
                let got = array.astype(to).unwrap();
                assert_eq!(got.dtype(), to);
                assert_same(&format!("{from} to {to} {layout}"), &got, &x);
            }
        }
        let truth = x.array(from).astype(Dtype::Bool).unwrap();
        assert_same("to bool", &truth, &x.map(|v| f64::from(v != 0.0)));
    }
}

#[test]
fn conversion_to_bf16_rounds_to_nearest_even() {
    let values: Vec<f32> = (0..4096).map(|i| f32::from_bits(0x3f80_0000 + i * 97)).collect();
    let got = Array::from_slice(&values, &[64, 64]).unwrap().astype(Dtype::Bf16).unwrap();
    let want: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
    assert_eq!(got.to_vec::<half::bf16>().unwrap(), want);
}

#[test]
fn views_read_the_same_bytes() {
    let floats = [1.0f32, -2.5, 3.25, 0.0, 7.0, -0.5];
    let x = Array::from_slice(&floats, &[3, 2]).unwrap();
    let bits = x.view(Dtype::U32).unwrap();
    assert_eq!(bits.to_vec::<u32>().unwrap(), floats.map(f32::to_bits));
    let bytes = x.view(Dtype::U8).unwrap();
    assert_eq!((bytes.shape(), bytes.to_vec::<u8>().unwrap()), (&[3, 8][..], bytemuck_bytes(&floats)));
    assert_same("back", &bytes.view(Dtype::F32).unwrap(), &read(&x));
    // A view of something transposed sees the values in the transposed order.
    let turned = x.transpose_last().unwrap().view(Dtype::U32).unwrap();
    let want: Vec<u32> = [0, 2, 4, 1, 3, 5].iter().map(|&i: &usize| floats[i].to_bits()).collect();
    assert_eq!(turned.to_vec::<u32>().unwrap(), want);
}

fn bytemuck_bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[test]
fn the_oracle_counts_like_a_nest_of_loops() {
    assert_eq!(indices(&[2, 2]), [[0, 0], [0, 1], [1, 0], [1, 1]]);
    assert_eq!(indices(&[]), [Vec::<i32>::new()]);
}
