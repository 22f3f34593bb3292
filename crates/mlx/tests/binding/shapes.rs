//! Operations that move values without changing them: views, joins, padding, gathering, construction.

use mlx::{Array, Dtype, arange, concatenate, full, stack, zeros};

use crate::oracle::{Tensor, assert_same, indices, read};

const DTYPES: [Dtype; 7] =
    [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I32, Dtype::U32, Dtype::U8, Dtype::I64];

/// Runs `check` on 0, 1, 2, … of `shape` in every dtype and layout.
fn each(shape: &[i32], check: impl Fn(&str, &Array, &Tensor)) {
    let x = Tensor::counting(shape);
    for dtype in DTYPES {
        for (layout, array) in x.layouts(dtype) {
            check(&format!("{dtype} {layout}"), &array, &x);
        }
    }
}

#[test]
fn reshape_keeps_row_major_order() {
    each(&[3, 4, 5], |what, array, x| {
        for (shape, full) in [
            (&[60][..], &[60][..]),
            (&[5, 12], &[5, 12]),
            (&[-1, 6], &[10, 6]),
            (&[3, 2, 2, 5], &[3, 2, 2, 5]),
            (&[1, 3, 1, 20, 1], &[1, 3, 1, 20, 1]),
        ] {
            let want = Tensor { shape: full.to_vec(), data: x.data.clone() };
            assert_same(what, &array.reshape(shape).unwrap(), &want);
        }
    });
}

#[test]
fn transpose_permutes() {
    each(&[2, 3, 5], |what, array, x| {
        for axes in [[0usize, 2, 1], [2, 0, 1], [1, 0, 2], [2, 1, 0]] {
            let signed = axes.map(|axis| axis as i32);
            assert_same(what, &array.transpose(&signed).unwrap(), &x.permuted(&axes));
            assert_same(what, &array.transpose(&signed.map(|axis| axis - 3)).unwrap(), &x.permuted(&axes));
        }
        assert_same(what, &array.transpose_last().unwrap(), &x.permuted(&[0, 2, 1]));
        let row_major = array.transpose(&[2, 0, 1]).unwrap().contiguous().unwrap();
        assert_same(what, &row_major, &x.permuted(&[2, 0, 1]));
    });
}

#[test]
fn axes_of_size_one_come_and_go() {
    each(&[3, 5], |what, array, x| {
        let wide = array.expand_dims(&[0, -1]).unwrap();
        assert_same(what, &wide, &Tensor { shape: vec![1, 3, 5, 1], data: x.data.clone() });
        assert_same(what, &wide.squeeze(&[-1]).unwrap().squeeze(&[0]).unwrap(), x);
        assert_same(what, &wide.squeeze(&[3, 0]).unwrap(), x);
    });
}

#[test]
fn broadcast_repeats_without_copying() {
    each(&[3, 1, 5], |what, array, x| {
        let got = array.broadcast_to(&[2, 3, 4, 5]).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[2, 3, 4, 5], |i| x.broadcast_at(i)));
        // What follows must read the repeated elements, not past them.
        let sum = got.astype(Dtype::F32).unwrap().add(1.0f32).unwrap().reshape(&[-1]).unwrap();
        assert_same(
            what,
            &sum,
            &Tensor::from_fn(&[120], |i| {
                let (row, column) = (i[0] / 20 % 3, i[0] % 5);
                x.at(&[row, 0, column]) + 1.0
            }),
        );
    });
}

#[test]
fn slices_pick_ranges() {
    each(&[4, 5, 7], |what, array, x| {
        for (axis, range) in [(0, 1..3), (1, 0..5), (2, 6..7), (-1, 2..2), (-3, 3..4)] {
            let real = if axis < 0 { axis + 3 } else { axis } as usize;
            let mut shape = x.shape.clone();
            shape[real] = range.end - range.start;
            let want = Tensor::from_fn(&shape, |index| {
                let mut index = index.to_vec();
                index[real] += range.start;
                x.at(&index)
            });
            assert_same(what, &array.slice(axis, range).unwrap(), &want);
        }
    });
}

#[test]
fn slices_step_forwards_and_backwards() {
    each(&[4, 5, 7], |what, array, x| {
        let got = array.slice_steps(&[0, 1, -6], &[4, 5, 7], &[2, 3, 4]).unwrap();
        assert_same(
            what,
            &got,
            &Tensor::from_fn(&[2, 2, 2], |i| x.at(&[2 * i[0], 1 + 3 * i[1], 1 + 4 * i[2]])),
        );
        let got = array.slice_steps(&[3, 0, 6], &[-5, 5, 0], &[-1, 1, -2]).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[4, 5, 3], |i| x.at(&[3 - i[0], i[1], 6 - 2 * i[2]])));
        // Steps past the end take one element; bounds past the end are the end.
        let got = array.slice_steps(&[1, 0, 0], &[i32::MAX, 99, 7], &[i32::MAX, 1, 1]).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[1, 5, 7], |i| x.at(&[1, i[1], i[2]])));
    });
}

#[test]
fn split_and_join_are_inverse() {
    each(&[3, 6, 5], |what, array, x| {
        let parts = array.split(3, 1).unwrap();
        assert_eq!(parts.len(), 3);
        for (part, got) in parts.iter().enumerate() {
            assert_same(
                what,
                got,
                &Tensor::from_fn(&[3, 2, 5], |i| x.at(&[i[0], i[1] + 2 * part as i32, i[2]])),
            );
        }
        assert_same(what, &concatenate(&parts.iter().collect::<Vec<_>>(), -2).unwrap(), x);
        let stacked = stack(&parts.iter().collect::<Vec<_>>(), 1).unwrap();
        assert_same(what, &stacked, &Tensor { shape: vec![3, 3, 2, 5], data: x.data.clone() });
        let last = stack(&[array, array], -1).unwrap();
        assert_same(what, &last, &Tensor::from_fn(&[3, 6, 5, 2], |i| x.at(&i[..3])));
    });
}

#[test]
fn joining_promotes() {
    let (a, b) = (Tensor::counting(&[2, 3]), Tensor::counting(&[1, 3]));
    let got = concatenate(&[&a.array(Dtype::Bf16), &b.array(Dtype::F32)], 0).unwrap();
    assert_eq!(got.dtype(), Dtype::F32);
    assert_eq!(got.to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
}

#[test]
fn slice_update_writes_a_copy() {
    each(&[4, 5], |what, array, x| {
        let update = Tensor::counting(&[2, 3]).map(|v| v + 100.0);
        let got = array.slice_update(&update.array(array.dtype()), &[1, 2], &[3, 5]).unwrap();
        let want = Tensor::from_fn(&[4, 5], |i| match (i[0] - 1, i[1] - 2) {
            (row @ 0..=1, column @ 0..=2) => update.at(&[row, column]),
            _ => x.at(i),
        });
        assert_same(what, &got, &want);
        assert_same("the source stays", array, x);
        let row = Tensor::counting(&[5]).map(|v| v + 50.0);
        let whole = array.slice_update(&row.array(Dtype::F32), &[0, 0], &[4, 5]).unwrap();
        assert_eq!(whole.dtype(), array.dtype());
        assert_same("broadcast over all", &whole, &Tensor::from_fn(&[4, 5], |i| row.at(&i[1..])));
    });
}

#[test]
fn repeat_and_tile() {
    each(&[3, 5], |what, array, x| {
        let got = array.repeat(3, 1).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[3, 15], |i| x.at(&[i[0], i[1] / 3])));
        let got = array.repeat(2, -2).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[6, 5], |i| x.at(&[i[0] / 2, i[1]])));
        assert_eq!(array.repeat(0, 0).unwrap().shape(), [0, 5]);
        let got = array.tile(&[2, 3]).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[6, 15], |i| x.at(&[i[0] % 3, i[1] % 5])));
        let got = array.tile(&[2]).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[3, 10], |i| x.at(&[i[0], i[1] % 5])));
        let got = array.tile(&[2, 1, 1]).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[2, 3, 5], |i| x.at(&i[1..])));
    });
}

#[test]
fn padding_with_a_value_or_the_edge() {
    each(&[3, 5, 2], |what, array, x| {
        for (axis, low, high) in [(0i32, 2, 1), (1, 0, 3), (2, 4, 0), (-1, 1, 1), (-3, 0, 0)] {
            let real = if axis < 0 { axis + 3 } else { axis } as usize;
            let mut shape = x.shape.clone();
            shape[real] += low + high;
            let moved = |index: &[i32]| {
                let mut own = index.to_vec();
                own[real] -= low;
                own
            };
            let want = Tensor::from_fn(&shape, |index| {
                let own = moved(index);
                if (0..x.shape[real]).contains(&own[real]) { x.at(&own) } else { 9.0 }
            });
            assert_same(what, &array.pad(axis, low, high, 9.0).unwrap(), &want);
            let want = Tensor::from_fn(&shape, |index| {
                let mut own = moved(index);
                own[real] = own[real].clamp(0, x.shape[real] - 1);
                x.at(&own)
            });
            assert_same(what, &array.pad_edge(axis, low, high).unwrap(), &want);
        }
    });
}

#[test]
fn take_gathers_rows() {
    each(&[4, 5, 3], |what, array, x| {
        let picks = Tensor { shape: vec![2, 3], data: vec![3.0, 0.0, 2.0, 2.0, 1.0, 0.0] };
        for dtype in [Dtype::I32, Dtype::U32, Dtype::I64, Dtype::U8] {
            for (_, index) in picks.layouts(dtype) {
                let got = array.take(&index, 0).unwrap();
                let want = Tensor::from_fn(&[2, 3, 5, 3], |i| x.at(&[picks.at(&i[..2]) as i32, i[2], i[3]]));
                assert_same(what, &got, &want);
                let got = array.take(&index, -2).unwrap();
                let want = Tensor::from_fn(&[4, 2, 3, 3], |i| x.at(&[i[0], picks.at(&i[1..3]) as i32, i[3]]));
                assert_same(what, &got, &want);
            }
        }
        let from_the_end = Array::from_slice(&[-1i32, -4], &[2]).unwrap();
        let got = array.take(&from_the_end, 0).unwrap();
        assert_same(what, &got, &Tensor::from_fn(&[2, 5, 3], |i| x.at(&[3 * (1 - i[0]), i[1], i[2]])));
    });
}

#[test]
fn constants_and_ranges() {
    for dtype in DTYPES {
        assert_same("full", &full(&[3, 5], 7.0, dtype).unwrap(), &Tensor::from_fn(&[3, 5], |_| 7.0));
        assert_same("zeros", &zeros(&[2, 0, 3], dtype).unwrap(), &Tensor::from_fn(&[2, 0, 3], |_| 1.0));
        assert_same("zeros", &zeros(&[], dtype).unwrap(), &Tensor::from_fn(&[], |_| 0.0));
        let got = arange(3.0, 20.0, 4.0, dtype).unwrap();
        assert_eq!(got.dtype(), dtype);
        assert_eq!(read(&got).data, [3.0, 7.0, 11.0, 15.0, 19.0]);
    }
    assert_eq!(arange(1.0, 0.0, -0.25, Dtype::F64).unwrap().to_vec::<f64>().unwrap(), [1.0, 0.75, 0.5, 0.25]);
    assert_eq!(arange(0.0, -5.0, 1.0, Dtype::F32).unwrap().shape(), [0]);
    assert_eq!(indices(&[2, 0, 3]).len(), 0);
}
