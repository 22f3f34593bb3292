//! Sums, means, extremes, softmax: everything that takes axes away or runs along one.

use mlx::{Array, Dtype};

use crate::oracle::{FLOATS, Tensor, assert_close, assert_same, indices};

/// `fold` over the elements of `x` along `axes`, kept with size 1.
fn reduce(x: &Tensor, axes: &[usize], fold: impl Fn(&[f64]) -> f64) -> Tensor {
    let shape: Vec<i32> =
        x.shape.iter().enumerate().map(|(axis, &size)| if axes.contains(&axis) { 1 } else { size }).collect();
    Tensor::from_fn(&shape, |kept| {
        let members: Vec<f64> = indices(&x.shape)
            .iter()
            .filter(|index| (0..index.len()).all(|axis| axes.contains(&axis) || index[axis] == kept[axis]))
            .map(|index| x.at(index))
            .collect();
        fold(&members)
    })
}

fn without(mut x: Tensor, axes: &[usize]) -> Tensor {
    let mut axis = 0;
    x.shape.retain(|_| {
        axis += 1;
        !axes.contains(&(axis - 1))
    });
    x
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn variance(values: &[f64], ddof: f64) -> f64 {
    let center = mean(values);
    values.iter().map(|v| (v - center).powi(2)).sum::<f64>() / (values.len() as f64 - ddof)
}

type Reduction = (&'static str, fn(&Array, &[i32], bool) -> mlx::Result<Array>, fn(&[f64]) -> f64);

const FLOAT: [Reduction; 6] = [
    ("sum", Array::sum, |v| v.iter().sum()),
    ("mean", Array::mean, mean),
    ("max", Array::max, |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
    ("min", Array::min, |v| v.iter().copied().fold(f64::INFINITY, f64::min)),
    ("variance", |a, axes, keep| a.variance(axes, keep, 0), |v| variance(v, 0.0)),
    ("variance ddof 1", |a, axes, keep| a.variance(axes, keep, 1), |v| variance(v, 1.0)),
];

const AXES: [&[usize]; 6] = [&[0], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]];

#[test]
fn float_reductions() {
    let x = Tensor::random(&[3, 5, 7], -3.0, 3.0, 20);
    for (name, operation, fold) in FLOAT {
        for axes in AXES {
            let want = reduce(&x, axes, fold);
            let forward: Vec<i32> = axes.iter().map(|&axis| axis as i32).collect();
            let backward: Vec<i32> = forward.iter().map(|axis| axis - 3).collect();
            for (dtype, tolerance) in FLOATS {
                for (layout, array) in x.layouts(dtype) {
                    let what = format!("{name} over {axes:?} {dtype} {layout}");
                    // Half types accumulate their rounding.
                    let kept = operation(&array, &forward, true).unwrap();
                    assert_eq!(kept.dtype(), dtype, "{what}");
                    assert_close(&what, &kept, &want, 8.0 * tolerance);
                    let dropped = operation(&array, &backward, false).unwrap();
                    assert_close(&what, &dropped, &without(want.clone(), axes), 8.0 * tolerance);
                }
            }
        }
    }
}

#[test]
fn truth_over_axes() {
    let x = Tensor::random(&[3, 5, 7], 0.0, 1.3, 21).map(|v| f64::from(v > 0.2));
    for axes in AXES {
        let signed: Vec<i32> = axes.iter().map(|&axis| axis as i32).collect();
        for (layout, array) in x.layouts(Dtype::Bool) {
            let what = format!("over {axes:?} {layout}");
            let all = array.all(&signed, true).unwrap();
            assert_same(&what, &all, &reduce(&x, axes, |v| f64::from(v.iter().all(|&v| v != 0.0))));
            let any = array.logical_not().unwrap().any(&signed, true).unwrap();
            assert_same(&what, &any, &reduce(&x, axes, |v| f64::from(v.contains(&0.0))));
        }
    }
}

#[test]
fn integer_sums_are_exact() {
    let x = Tensor::counting(&[3, 5, 7]);
    for dtype in [Dtype::I32, Dtype::I64, Dtype::U32, Dtype::U8] {
        for (layout, array) in x.layouts(dtype) {
            let got = array.sum(&[0, 2], true).unwrap();
            assert_same(&format!("{dtype} {layout}"), &got, &reduce(&x, &[0, 2], |v| v.iter().sum()));
            assert_same(
                "max",
                &array.max(&[1], true).unwrap(),
                &reduce(&x, &[1], |v| v.iter().copied().fold(0.0, f64::max)),
            );
        }
    }
    let mask = Array::from_slice(&[1u8, 0, 1, 1], &[4]).unwrap().astype(Dtype::Bool).unwrap();
    assert_eq!(mask.sum(&[0], false).unwrap().item().unwrap(), 3.0);
}

#[test]
fn no_axes_change_nothing() {
    let x = Tensor::random(&[3, 5], -3.0, 3.0, 22);
    for (name, operation, _) in &FLOAT[..4] {
        assert_close(name, &operation(&x.array(Dtype::F32), &[], false).unwrap(), &x, 0.0);
    }
}

#[test]
fn softmax_along_any_axis() {
    // Large values overflow exp unless the maximum is taken off first.
    for (low, high) in [(-3.0, 3.0), (80.0, 100.0)] {
        let x = Tensor::random(&[3, 5, 7], low, high, 23);
        for axis in 0..3 {
            let biggest = reduce(&x, &[axis], |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            let shifted = Tensor::from_fn(&x.shape, |i| (x.at(i) - biggest.broadcast_at(i)).exp());
            let total = reduce(&shifted, &[axis], |v| v.iter().sum());
            let want = Tensor::from_fn(&x.shape, |i| shifted.at(i) / total.broadcast_at(i));
            for (dtype, tolerance) in FLOATS {
                for (layout, array) in x.layouts(dtype) {
                    for axis in [axis as i32, axis as i32 - 3] {
                        let got = array.softmax(axis).unwrap();
                        assert_eq!(got.dtype(), dtype);
                        assert_close(&format!("softmax {axis} {dtype} {layout}"), &got, &want, tolerance);
                    }
                }
            }
        }
    }
}
