//! Convolution of 1 to 3 dimensions against the sum that defines it.

use mlx::{Array, Conv, Dtype};

use crate::oracle::{Tensor, assert_close};

/// The definition: dilate and pad (or crop) the input, then correlate each group with its kernels.
fn oracle(x: &Tensor, weight: &Tensor, s: &Conv) -> Tensor {
    let rank = x.shape.len() - 2;
    let get = |list: &[i32], axis: usize, default| if list.is_empty() { default } else { list[axis] };
    let (groups, channels, out_channels) = (s.groups, weight.shape[rank + 1], weight.shape[0]);
    let mut shape = vec![x.shape[0]];
    for axis in 0..rank {
        let size = (x.shape[axis + 1] - 1) * get(&s.input_dilation, axis, 1)
            + 1
            + get(&s.padding_low, axis, 0)
            + get(&s.padding_high, axis, 0);
        let kernel = (weight.shape[axis + 1] - 1) * get(&s.dilation, axis, 1) + 1;
        shape.push((size - kernel) / get(&s.stride, axis, 1) + 1);
    }
    shape.push(out_channels);
    let taps = crate::oracle::indices(&weight.shape[1..=rank]);
    Tensor::from_fn(&shape, |index| {
        let out = index[rank + 1];
        let group = out / (out_channels / groups);
        let mut sum = 0.0;
        'taps: for tap in &taps {
            let mut source = vec![index[0]];
            for axis in 0..rank {
                let place = index[axis + 1] * get(&s.stride, axis, 1) + tap[axis] * get(&s.dilation, axis, 1)
                    - get(&s.padding_low, axis, 0);
                let step = get(&s.input_dilation, axis, 1);
                if place < 0 || place % step != 0 || place / step >= x.shape[axis + 1] {
                    continue 'taps;
                }
                source.push(place / step);
            }
            let mut kernel = vec![out];
            kernel.extend(
                tap.iter().zip(&weight.shape[1..]).map(|(&i, size)| if s.flip { size - 1 - i } else { i }),
            );
            for channel in 0..channels {
                let x_index = [source.as_slice(), &[group * channels + channel]].concat();
                sum += x.at(&x_index) * weight.at(&[kernel.as_slice(), &[channel]].concat());
            }
        }
        sum
    })
}

fn check(x: &[i32], weight: &[i32], settings: &Conv) {
    let (x, weight) = (Tensor::random(x, -1.0, 1.0, 30), Tensor::random(weight, -1.0, 1.0, 31));
    let want = oracle(&x, &weight, settings);
    for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 1e-2), (Dtype::Bf16, 5e-2)] {
        for (layout, x) in x.layouts(dtype) {
            for (weight_layout, weight) in weight.layouts(dtype) {
                let got = x.conv(&weight, settings).unwrap();
                assert_eq!(got.dtype(), dtype);
                let what = format!("{settings:?} {dtype} {layout} {weight_layout}");
                assert_close(&what, &got, &want, tolerance);
            }
        }
    }
}

#[test]
fn plain_in_each_dimension() {
    check(&[2, 9, 3], &[5, 4, 3], &Conv::default());
    check(&[2, 6, 9, 3], &[5, 2, 3, 3], &Conv::default());
    check(&[1, 4, 5, 7, 3], &[2, 3, 2, 4, 3], &Conv::default());
}

#[test]
fn stride_and_uneven_padding() {
    let ones = |n: usize| Conv {
        stride: vec![2; n],
        padding_low: vec![2; n],
        padding_high: vec![1; n],
        ..Conv::default()
    };
    check(&[2, 9, 3], &[5, 4, 3], &ones(1));
    check(
        &[2, 6, 9, 3],
        &[5, 2, 3, 3],
        &Conv { stride: vec![2, 1], padding_low: vec![0, 1], padding_high: vec![3, 2], ..Conv::default() },
    );
    check(
        &[1, 4, 5, 7, 3],
        &[2, 3, 2, 4, 3],
        &Conv {
            stride: vec![1, 2, 3],
            padding_low: vec![2, 0, 1],
            padding_high: vec![0, 1, 2],
            ..Conv::default()
        },
    );
}

#[test]
fn dilated_kernels() {
    check(&[2, 19, 3], &[5, 4, 3], &Conv { dilation: vec![5], padding_low: vec![3], ..Conv::default() });
    check(&[1, 7, 9, 3], &[2, 2, 3, 3], &Conv { dilation: vec![3, 2], ..Conv::default() });
    check(&[1, 4, 5, 7, 2], &[2, 2, 2, 2, 2], &Conv { dilation: vec![1, 2, 3], ..Conv::default() });
}

#[test]
fn groups_and_depthwise() {
    check(&[2, 9, 6], &[4, 3, 3], &Conv { groups: 2, ..Conv::default() });
    check(
        &[2, 9, 6],
        &[6, 5, 1],
        &Conv { groups: 6, padding_low: vec![4], stride: vec![2], ..Conv::default() },
    );
    check(&[2, 5, 7, 6], &[9, 2, 3, 2], &Conv { groups: 3, padding_high: vec![1, 0], ..Conv::default() });
}

#[test]
fn transposed_by_dilating_the_input() {
    let transposed = |stride: i32, pad: i32| Conv {
        input_dilation: vec![stride],
        padding_low: vec![pad],
        padding_high: vec![pad],
        flip: true,
        ..Conv::default()
    };
    check(&[2, 9, 3], &[5, 7, 3], &transposed(3, 4));
    check(&[2, 9, 3], &[5, 4, 3], &transposed(2, 3));
    check(&[2, 9, 6], &[6, 4, 1], &Conv { groups: 6, ..transposed(2, 3) });
    check(
        &[1, 5, 4, 3],
        &[2, 3, 2, 3],
        &Conv {
            input_dilation: vec![2, 3],
            padding_low: vec![2, 1],
            padding_high: vec![2, 1],
            flip: true,
            ..Conv::default()
        },
    );
}

#[test]
fn transposed_in_one_dimension_scatters_each_input() {
    // The other definition: every input adds its kernel into the output.
    let (x, weight, stride) =
        (Tensor::random(&[1, 5, 2], -1.0, 1.0, 32), Tensor::random(&[3, 4, 2], -1.0, 1.0, 33), 3);
    let mut want = Tensor::from_fn(&[1, 4 * stride + 4, 3], |_| 0.0);
    for place in 0..5 {
        for (tap, out, channel) in
            (0..4).flat_map(|t| (0..3).flat_map(move |o| (0..2).map(move |c| (t, o, c))))
        {
            let value = x.at(&[0, place, channel]) * weight.at(&[out, tap, channel]);
            want.data[((place * stride + tap) * 3 + out) as usize] += value;
        }
    }
    let settings = Conv {
        input_dilation: vec![stride],
        padding_low: vec![3],
        padding_high: vec![3],
        flip: true,
        ..Conv::default()
    };
    let got = x.array(Dtype::F32).conv(&weight.array(Dtype::F32), &settings).unwrap();
    assert_close("scatter", &got, &want, 1e-6);
}

#[test]
fn negative_padding_crops() {
    check(&[1, 9, 2], &[3, 2, 2], &Conv { padding_low: vec![-2], padding_high: vec![-1], ..Conv::default() });
    check(
        &[1, 6, 9, 2],
        &[3, 2, 2, 2],
        &Conv { padding_low: vec![-1, 2], padding_high: vec![1, -3], ..Conv::default() },
    );
}

#[test]
fn flipped_kernels() {
    check(&[1, 9, 2], &[3, 4, 2], &Conv { flip: true, ..Conv::default() });
    check(&[1, 6, 9, 2], &[3, 2, 4, 2], &Conv { flip: true, ..Conv::default() });
    check(&[1, 4, 5, 6, 2], &[3, 2, 3, 2, 2], &Conv { flip: true, ..Conv::default() });
}

#[test]
fn does_not_fit() {
    let x = |shape: &[i32]| Tensor::counting(shape).array(Dtype::F32);
    let refused = |x: &Array, weight: &Array, settings: Conv| {
        let error = x.conv(weight, &settings).unwrap_err();
        assert_eq!(error.operation, "conv", "{error}");
    };
    let (line, kernel) = (x(&[1, 9, 4]), x(&[2, 3, 4]));
    refused(&line, &x(&[2, 3, 3]), Conv::default());
    refused(&line, &x(&[2, 10, 4]), Conv::default());
    refused(&line, &x(&[2, 3, 3, 4]), Conv::default());
    refused(&line, &x(&[2, 0, 4]), Conv::default());
    refused(&line, &x(&[2, 3, 0]), Conv::default());
    refused(&x(&[1, 9, 0]), &x(&[2, 3, 0]), Conv::default());
    refused(&x(&[0, 9, 4]), &kernel, Conv::default());
    refused(&x(&[9, 4]), &x(&[2, 4]), Conv::default());
    refused(&x(&[]), &x(&[]), Conv::default());
    refused(&x(&[1, 2, 2, 2, 2, 1]), &x(&[1, 1, 1, 1, 1, 1]), Conv::default());
    refused(&line, &kernel, Conv { stride: vec![0], ..Conv::default() });
    refused(&line, &kernel, Conv { stride: vec![1, 1], ..Conv::default() });
    refused(&line, &kernel, Conv { dilation: vec![-1], ..Conv::default() });
    refused(&line, &kernel, Conv { input_dilation: vec![0], ..Conv::default() });
    refused(&line, &kernel, Conv { dilation: vec![i32::MAX], ..Conv::default() });
    refused(&line, &kernel, Conv { input_dilation: vec![i32::MAX], ..Conv::default() });
    refused(
        &line,
        &kernel,
        Conv { padding_low: vec![i32::MAX], padding_high: vec![i32::MAX], ..Conv::default() },
    );
    refused(
        &line,
        &kernel,
        Conv { padding_low: vec![i32::MIN], padding_high: vec![i32::MIN], ..Conv::default() },
    );
    refused(&line, &kernel, Conv { padding_low: vec![-5], padding_high: vec![-5], ..Conv::default() });
    for groups in [0, -1, i32::MIN, 3, 8] {
        refused(&line, &kernel, Conv { groups, ..Conv::default() });
    }
    refused(&line, &x(&[3, 3, 2]), Conv { groups: 2, ..Conv::default() });
    refused(&line.astype(Dtype::I32).unwrap(), &kernel.astype(Dtype::I32).unwrap(), Conv::default());
}
