//! What must come back as an error, or at least as a value: never as a crash or as memory of somebody else.

use mlx::{Array, Dtype, Result, arange, concatenate, eval, full, select, stack, zeros};

use crate::oracle::Tensor;

const EXTREMES: [i32; 8] = [i32::MIN, i32::MIN + 1, -7, -4, 3, 7, i32::MAX - 1, i32::MAX];

fn x(shape: &[i32]) -> Array {
    Tensor::counting(shape).array(Dtype::F32)
}

#[track_caller]
fn refused(what: &str, result: Result<Array>) {
    match result {
        Ok(array) => panic!("{what} gave {array:?}"),
        Err(error) => assert!(!error.message.is_empty() && !error.operation.is_empty(), "{what}"),
    }
}

/// Not necessarily an error, but neither a crash when it is computed.
fn survives(result: Result<Array>) {
    if let Ok(array) = result {
        array.to_f32().ok();
    }
}

#[test]
fn shapes_that_do_not_broadcast() {
    let (a, b) = (x(&[3, 5]), x(&[4]));
    for result in [
        a.add(&b),
        a.subtract(&b),
        a.multiply(&b),
        a.divide(&b),
        a.maximum(&b),
        a.minimum(&b),
        a.power(&b),
        a.equal(&b),
        a.greater(&b),
        a.greater_equal(&b),
        a.less(&b),
        a.logical_and(&b),
        select(&a, &a, &b),
        select(&b, &a, &a),
    ] {
        refused("broadcast", result);
    }
}

#[test]
fn axes_outside() {
    let a = x(&[2, 5, 1]);
    for axis in EXTREMES {
        let what = format!("axis {axis}");
        for result in [
            a.sum(&[axis], true),
            a.mean(&[axis], true),
            a.max(&[axis], true),
            a.min(&[0, axis], true),
            a.all(&[axis], false),
            a.any(&[axis], false),
            a.variance(&[axis], true, 0),
            a.softmax(axis),
            a.expand_dims(&[0, axis.saturating_mul(2)]),
            a.squeeze(&[axis]),
            a.transpose(&[0, 1, axis]),
            a.slice(axis, 0..1),
            a.repeat(2, axis),
            a.pad(axis, 1, 1, 0.0),
            a.pad_edge(axis, 1, 1),
            a.take(&Array::from_slice(&[0i32], &[1]).unwrap(), axis),
            concatenate(&[&a, &a], axis),
            concatenate(&[&a], axis),
            stack(&[&a, &a], axis.saturating_mul(2)),
        ] {
            refused(&what, result);
        }
        assert!(a.split(1, axis).is_err(), "{what}");
    }
}

#[test]
fn axes_twice_or_too_few() {
    let a = x(&[2, 5, 1]);
    refused("sum", a.sum(&[0, 0], true));
    refused("mean", a.mean(&[1, -2], true));
    refused("transpose", a.transpose(&[0, 1, 1]));
    refused("transpose", a.transpose(&[0, 1]));
    refused("transpose", a.transpose(&[]));
    refused("transpose", a.transpose(&[0, 1, 2, 3]));
    refused("squeeze", a.squeeze(&[2, -1]));
    refused("squeeze", a.squeeze(&[0]));
    refused("expand_dims", a.expand_dims(&[0, 0]));
    refused("slice_steps", a.slice_steps(&[0], &[1], &[1]));
    refused("slice_steps", a.slice_steps(&[0; 3], &[1; 3], &[1; 4]));
    refused("slice_steps", a.slice_steps(&[0; 3], &[1; 3], &[1, 0, 1]));
    refused("slice_update", a.slice_update(&x(&[]), &[0, 0], &[1, 1]));
    refused("slice_update", a.slice_update(&x(&[2]), &[0, 0, 0], &[2, 5, 1]).and_then(|a| a.reshape(&[3])));
}

#[test]
fn scalars_have_no_axes() {
    let scalar = x(&[]);
    for result in [
        scalar.sum(&[0], true),
        scalar.mean(&[0], true),
        scalar.max(&[-1], true),
        scalar.variance(&[0], true, 1),
        scalar.softmax(0),
        scalar.softmax(-1),
        scalar.squeeze(&[0]),
        scalar.transpose(&[0]),
        scalar.transpose_last(),
        scalar.slice(0, 0..0),
        scalar.repeat(2, 0),
        scalar.pad(0, 1, 1, 0.0),
        scalar.pad_edge(-1, 1, 1),
        scalar.matmul(&scalar),
        scalar.matmul(x(&[3, 3])),
        x(&[3, 3]).matmul(&scalar),
        scalar.view(Dtype::U8),
        scalar.view(Dtype::F64),
        concatenate(&[&scalar, &scalar], 0),
        scalar.take(&Array::from_slice(&[0i32], &[1]).unwrap(), 0),
    ] {
        refused("scalar", result);
    }
    assert!(scalar.split(1, 0).is_err());
    assert!(scalar.slice_steps(&[], &[], &[]).is_ok());
}

#[test]
fn indices_outside() {
    let a = x(&[3, 5]);
    for (dtype, bad) in [
        (Dtype::I32, 3.0),
        (Dtype::I32, -4.0),
        (Dtype::I32, 2_147_483_647.0),
        (Dtype::I32, -2_147_483_648.0),
        (Dtype::U32, 3.0),
        (Dtype::U32, 4_294_967_295.0),
        (Dtype::U8, 255.0),
        (Dtype::I64, 1e18),
        (Dtype::I64, -1e18),
    ] {
        let index = Tensor { shape: vec![2, 2], data: vec![0.0, 1.0, bad, 2.0] };
        for (layout, index) in index.layouts(dtype) {
            refused(&format!("{bad} {dtype} {layout}"), a.take(&index, 0));
        }
    }
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Bool, Dtype::F64] {
        refused("not an integer", a.take(&Tensor::counting(&[2]).array(dtype), 0));
    }
    let none = zeros(&[0], Dtype::I32).unwrap();
    assert_eq!(a.take(&none, 1).unwrap().to_f32().unwrap(), [0.0f32; 0]);
    refused("nothing to take", x(&[0, 5]).take(&Array::from_slice(&[0i32], &[1]).unwrap(), 0));
}

#[test]
fn ranges_outside() {
    let a = x(&[3, 5]);
    for (start, end) in [(-1, 1), (0, 6), (2, 1), (5, 6), (i32::MIN, i32::MAX), (0, i32::MAX), (i32::MIN, 0)]
    {
        refused("slice", a.slice(1, start..end));
    }
    for (start, stop, step) in [
        (i32::MIN, i32::MAX, 1),
        (i32::MAX, i32::MIN, -1),
        (0, 5, i32::MIN),
        (4, i32::MIN, i32::MIN),
        (i32::MAX, i32::MAX, i32::MAX),
        (-9, -8, -1),
        (9, 7, -1),
    ] {
        survives(a.slice_steps(&[0, start], &[3, stop], &[1, step]));
        survives(a.slice_update(&x(&[]), &[0, start], &[3, stop]));
    }
    for parts in [0, -1, 2, 6, i32::MIN, i32::MAX] {
        assert!(a.split(parts, 1).is_err(), "{parts}");
    }
}

#[test]
fn reshapes_that_do_not_fit() {
    let a = x(&[3, 4]);
    for shape in [
        &[5][..],
        &[-1, 5],
        &[-1, -1],
        &[-2, -6],
        &[12, 0],
        &[-1, 0],
        &[i32::MIN, 4],
        &[-3, -4],
        &[],
        // These wrap to 12 in 32 bits, and in 64.
        &[1 << 30, 4, 3, 1],
        &[65536, 65536, 65536, 65536, 12],
        &[i32::MAX, i32::MAX],
    ] {
        refused(&format!("{shape:?}"), a.reshape(shape));
    }
    refused("view", x(&[3, 3]).view(Dtype::F64));
    refused("view", Tensor::counting(&[7]).array(Dtype::U8).view(Dtype::U32));
    for shape in [&[3][..], &[4, 3], &[3, -1], &[2, 3, 5], &[], &[0, 4], &[i32::MAX, i32::MAX, 3, 4]] {
        refused("broadcast_to", a.broadcast_to(shape));
    }
}

#[test]
fn sizes_that_no_machine_has() {
    let big = i32::MAX;
    let one = x(&[1]);
    for shape in [&[big, big][..], &[big, big, big], &[1 << 30, 1 << 30, 16], &[65536; 4], &[big, 1 << 20]] {
        for dtype in [Dtype::U8, Dtype::F32, Dtype::F64] {
            refused("full", full(shape, 1.0, dtype));
            refused("zeros", zeros(shape, dtype));
        }
        refused("broadcast_to", one.broadcast_to(shape));
    }
    refused("negative", zeros(&[-1], Dtype::F32));
    refused("negative", full(&[3, i32::MIN], 0.0, Dtype::F32));
    let (row, column) = (zeros(&[1 << 22], Dtype::F32).unwrap(), zeros(&[1 << 22, 1], Dtype::F32).unwrap());
    refused("outer sum", row.add(&column));
    refused("outer product", column.matmul(row.expand_dims(&[0]).unwrap()));
    refused("repeat", row.repeat(big, 0));
    refused("repeat", row.repeat(1024, 0));
    refused("repeat", row.repeat(-1, 0));
    refused("repeat", column.repeat(1 << 22, 1));
    refused("tile", row.tile(&[big]));
    refused("tile", row.tile(&[big, big]));
    refused("tile", row.tile(&[-1]));
    refused("pad", row.pad(0, big, big, 0.0));
    refused("pad", row.pad(0, big, 0, 0.0));
    refused("pad", row.pad_edge(0, big - (1 << 22), 1));
    refused("pad", column.pad_edge(1, 1 << 21, 1 << 22));
    refused("concatenate", concatenate(&vec![&row; 1 << 12], 0));
    for (start, stop, step) in [
        (0.0, 1e300, 1.0),
        (0.0, 1.0, 1e-12),
        (0.0, f64::INFINITY, 1.0),
        (f64::NAN, 1.0, 1.0),
        (0.0, 1.0, 0.0),
        (0.0, 1.0, f64::NAN),
        (-1e308, 1e308, 1e300),
        (0.0, 2147483648.0, 1.0),
    ] {
        refused("arange", arange(start, stop, step, Dtype::F32));
    }
    refused("arange", arange(0.0, 3.0, 1.0, Dtype::Bool));
    for (start, stop, step) in [
        (0.0, -1e300, 1.0),
        (0.0, 1.0, f64::INFINITY),
        (1.0, 0.0, f64::INFINITY),
        (1e308, -1e308, f64::INFINITY),
    ] {
        survives(arange(start, stop, step, Dtype::I32));
    }
    let long = zeros(&[1, 1, 1 << 18, 2], Dtype::F32).unwrap();
    refused("attention", mlx::fast::attention(&long, &long, &long, 1.0, None));
}

#[test]
fn negative_padding() {
    let a = x(&[3, 5]);
    for (low, high) in [(-1, 0), (0, -1), (i32::MIN, 0), (0, i32::MIN), (-1, 1), (i32::MIN, i32::MIN)] {
        refused("pad", a.pad(1, low, high, 0.0));
        refused("pad_edge", a.pad_edge(1, low, high));
    }
    refused("an edge of nothing", x(&[0]).pad_edge(0, 1, 0));
    assert_eq!(x(&[0]).pad(0, 1, 1, 2.0).unwrap().to_f32().unwrap(), [2.0, 2.0]);
}

#[test]
fn lists_of_nothing_or_of_misfits() {
    refused("concatenate", concatenate(&[], 0));
    refused("stack", stack(&[], 0));
    refused("concatenate", concatenate(&[&x(&[2, 3]), &x(&[2, 4])], 0));
    refused("concatenate", concatenate(&[&x(&[2, 3]), &x(&[3])], 0));
    refused("stack", stack(&[&x(&[2, 3]), &x(&[3, 2])], 0));
    assert!(eval([]).is_ok());
}

#[test]
fn matrices_that_do_not_fit() {
    refused("inner", x(&[3, 5]).matmul(x(&[4, 5])));
    refused("batch", x(&[2, 3, 5]).matmul(x(&[3, 5, 4])));
    refused("vector", x(&[3]).matmul(x(&[4])));
    for dtype in [Dtype::I32, Dtype::U8, Dtype::Bool, Dtype::I64] {
        let a = Tensor::counting(&[3, 3]).array(dtype);
        refused("integers", a.matmul(&a));
    }
}

#[test]
fn arrays_of_no_elements() {
    let none = x(&[0, 5]);
    refused("max", none.max(&[0], true));
    refused("min", none.min(&[0], true));
    assert_eq!(none.sum(&[0], false).unwrap().to_f32().unwrap(), [0.0; 5]);
    assert_eq!(none.all(&[0, 1], false).unwrap().item().unwrap(), 1.0);
    assert_eq!(x(&[3, 0]).matmul(x(&[0, 2])).unwrap().to_f32().unwrap(), [0.0; 6]);
    let weight = x(&[0]);
    for result in [
        none.matmul(x(&[5, 2])),
        x(&[2, 5]).matmul(x(&[5, 0])),
        none.mean(&[0], true),
        none.variance(&[0], true, 1),
        none.softmax(0),
        none.softmax(1),
        none.reshape(&[5, 0]),
        none.transpose_last(),
        none.repeat(3, 0),
        none.tile(&[2, 2]),
        none.pad(1, 1, 1, 0.0),
        none.pad_edge(1, 1, 1),
        none.contiguous(),
        none.view(Dtype::U8),
        none.astype(Dtype::Bf16),
        none.exp(),
        none.add(1.0f32),
        none.add(x(&[1, 5])),
        none.add(x(&[0, 1])),
        concatenate(&[&none, &x(&[2, 5])], 0),
        stack(&[&none, &none], 0),
        none.slice(0, 0..0),
        none.slice_update(&x(&[]), &[0, 0], &[0, 5]),
        none.broadcast_to(&[3, 0, 5]),
        select(&none, &none, &none),
        mlx::fast::rms_norm(&none, Some(&x(&[5])), 1e-6),
        mlx::fast::rms_norm(&x(&[5, 0]), Some(&weight), 1e-6),
        mlx::fast::layer_norm(&none, None, None, 1e-6),
        mlx::fast::layer_norm(&x(&[5, 0]), Some(&weight), Some(&weight), 1e-6),
        mlx::fast::attention(&x(&[1, 2, 0, 4]), &x(&[1, 2, 3, 4]), &x(&[1, 2, 3, 4]), 1.0, None),
        mlx::fast::attention(&x(&[1, 2, 3, 4]), &x(&[1, 2, 0, 4]), &x(&[1, 2, 0, 4]), 1.0, None),
        mlx::fast::attention(&x(&[1, 2, 3, 0]), &x(&[1, 2, 3, 0]), &x(&[1, 2, 3, 4]), 1.0, None),
        mlx::fast::attention(&x(&[0, 2, 3, 4]), &x(&[0, 2, 3, 4]), &x(&[0, 2, 3, 4]), 1.0, None),
        mlx::fast::attention(&x(&[1, 0, 3, 4]), &x(&[1, 2, 3, 4]), &x(&[1, 2, 3, 4]), 1.0, None),
        mlx::fast::attention(&x(&[1, 2, 3, 4]), &x(&[1, 2, 3, 4]), &x(&[1, 2, 3, 0]), 1.0, None),
    ] {
        survives(result);
    }
}

/// Every operation on every dtype either works or says no.
#[test]
fn every_operation_meets_every_dtype() {
    let all = [
        Dtype::Bool,
        Dtype::U8,
        Dtype::I32,
        Dtype::U32,
        Dtype::I64,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::F32,
        Dtype::F64,
    ];
    for dtype in all {
        let a = Tensor::counting(&[2, 3]).map(|v| v % 2.0).array(dtype);
        for result in [
            a.abs(),
            a.cos(),
            a.erf(),
            a.exp(),
            a.floor(),
            a.is_finite(),
            a.log(),
            a.logical_not(),
            a.negative(),
            a.reciprocal(),
            a.round(),
            a.rsqrt(),
            a.sigmoid(),
            a.sin(),
            a.sqrt(),
            a.square(),
            a.tanh(),
            a.sum(&[0], true),
            a.mean(&[0], true),
            a.max(&[0], true),
            a.min(&[0], true),
            a.all(&[0], true),
            a.any(&[0], true),
            a.variance(&[0], true, 1),
            a.softmax(0),
            a.softmax(1),
            a.pad(0, 1, 1, f64::NAN),
            a.pad_edge(0, 1, 1),
            a.repeat(2, 1),
            a.tile(&[2, 2]),
            a.slice_update(&a, &[0, 0], &[2, 3]),
            a.add(1e300),
            a.maximum(f64::NAN),
            a.multiply(-1.0f32),
            a.power(2.0f32),
            full(&[2], f64::INFINITY, dtype),
            arange(0.0, 300.0, 1.0, dtype),
            mlx::fast::rms_norm(&a, None, 0.0),
            mlx::fast::layer_norm(&a, None, None, 0.0),
            a.expand_dims(&[0]).unwrap().conv(&a.expand_dims(&[1]).unwrap(), &mlx::Conv::default()),
        ] {
            survives(result);
        }
        for other in all {
            let b = Tensor::counting(&[2, 3]).map(|v| v % 2.0).array(other);
            for result in [
                a.add(&b),
                a.subtract(&b),
                a.multiply(&b),
                a.divide(&b),
                a.maximum(&b),
                a.minimum(&b),
                a.power(&b),
                a.equal(&b),
                a.greater(&b),
                a.greater_equal(&b),
                a.less(&b),
                a.logical_and(&b),
                a.matmul(b.transpose_last().unwrap()),
                select(&a, &a, &b),
                concatenate(&[&a, &b], 0),
                a.astype(other),
                a.view(other),
                stack(&[&a, &b], 0),
                a.slice_update(&b, &[0, 0], &[2, 3]),
                mlx::fast::rms_norm(&a, Some(&b.slice(0, 0..1).unwrap().reshape(&[3]).unwrap()), 1e-6),
            ] {
                survives(result);
            }
        }
    }
}

/// Squaring until the exponent is used up would never end for a negative one.
#[test]
fn integers_to_negative_powers() {
    for dtype in [Dtype::I32, Dtype::I64] {
        let a = Tensor::counting(&[3]).array(dtype);
        let exponent = Array::scalar(-1.0, dtype).unwrap();
        survives(a.power(&exponent));
        survives(a.power(-1.0f32));
    }
}
