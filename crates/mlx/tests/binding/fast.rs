//! The fused operations: norms and attention.

use mlx::{Array, Dtype, fast};

use crate::oracle::{FLOATS, Tensor, assert_close};

fn rows(x: &Tensor, norm: impl Fn(&[f64]) -> Vec<f64>) -> Tensor {
    let width = *x.shape.last().unwrap() as usize;
    Tensor { shape: x.shape.clone(), data: x.data.chunks(width).flat_map(norm).collect() }
}

fn scaled(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    Tensor::from_fn(&x.shape, |i| {
        x.at(i) * weight.broadcast_at(i) + bias.map_or(0.0, |bias| bias.broadcast_at(i))
    })
}

#[test]
fn rms_norm() {
    let (x, weight) = (Tensor::random(&[3, 5, 7], -3.0, 3.0, 40), Tensor::random(&[7], 0.5, 2.0, 41));
    for eps in [1e-6, 0.25] {
        let plain = rows(&x, |row| {
            let square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            row.iter().map(|v| v / (square + eps).sqrt()).collect()
        });
        for (dtype, tolerance) in FLOATS {
            for (layout, array) in x.layouts(dtype) {
                let what = format!("rms_norm {dtype} {layout}");
                let got = fast::rms_norm(&array, None, eps as f32).unwrap();
                assert_eq!(got.dtype(), dtype);
                assert_close(&what, &got, &plain, 2.0 * tolerance);
                for (_, weight_array) in weight.layouts(dtype) {
                    let got = fast::rms_norm(&array, Some(&weight_array), eps as f32).unwrap();
                    assert_close(&what, &got, &scaled(&plain, &weight, None), 2.0 * tolerance);
                }
            }
        }
    }
}

#[test]
fn layer_norm() {
    let x = Tensor::random(&[3, 5, 7], -3.0, 3.0, 42);
    let (weight, bias) = (Tensor::random(&[7], 0.5, 2.0, 43), Tensor::random(&[7], -1.0, 1.0, 44));
    for eps in [1e-6, 0.25] {
        let plain = rows(&x, |row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            row.iter().map(|v| (v - mean) / (variance + eps).sqrt()).collect()
        });
        let ones = Tensor::from_fn(&[7], |_| 1.0);
        for (dtype, tolerance) in FLOATS {
            for (layout, array) in x.layouts(dtype) {
                let (w, b) = (weight.array(dtype), bias.array(dtype));
                let cases = [
                    (None, None, plain.clone()),
                    (Some(&w), None, scaled(&plain, &weight, None)),
                    (Some(&w), Some(&b), scaled(&plain, &weight, Some(&bias))),
                    (None, Some(&b), scaled(&plain, &ones, Some(&bias))),
                ];
                for (w, b, want) in cases {
                    let got = fast::layer_norm(&array, w, b, eps as f32).unwrap();
                    assert_eq!(got.dtype(), dtype);
                    let what = format!("layer_norm {dtype} {layout} {} {}", w.is_some(), b.is_some());
                    assert_close(&what, &got, &want, 2.0 * tolerance);
                }
            }
        }
    }
}

/// `allowed(b, h, i, j)` is added to the score; −∞ forbids.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: impl Fn(&[i32]) -> f64) -> Tensor {
    let (heads, group) = (q.shape[1], q.shape[1] / k.shape[1]);
    let shape = [q.shape[0], heads, q.shape[2], v.shape[3]];
    Tensor::from_fn(&shape, |index| {
        let (b, h, i, d) = (index[0], index[1], index[2], index[3]);
        let scores: Vec<f64> = (0..k.shape[2])
            .map(|j| {
                let dot: f64 =
                    (0..q.shape[3]).map(|c| q.at(&[b, h, i, c]) * k.at(&[b, h / group, j, c])).sum();
                dot * scale + bias(&[b, h, i, j])
            })
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        scores
            .iter()
            .enumerate()
            .map(|(j, s)| (s - most).exp() / total * v.at(&[b, h / group, j as i32, d]))
            .sum()
    })
}

struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// 6 query heads over `kv_heads`, 5 queries over 9 keys, 8 wide keys and 3 wide values.
fn heads(kv_heads: i32) -> Heads {
    Heads {
        q: Tensor::random(&[2, 6, 5, 8], -2.0, 2.0, 45),
        k: Tensor::random(&[2, kv_heads, 9, 8], -2.0, 2.0, 46),
        v: Tensor::random(&[2, kv_heads, 9, 3], -2.0, 2.0, 47),
    }
}

#[test]
fn attention_with_whole_and_shared_heads() {
    for kv_heads in [6, 3, 1] {
        let Heads { q, k, v } = heads(kv_heads);
        let want = attention(&q, &k, &v, 0.3, |_| 0.0);
        for (dtype, tolerance) in FLOATS {
            for ((layout, q), ((_, k), (_, v))) in
                q.layouts(dtype).into_iter().zip(k.layouts(dtype).into_iter().zip(v.layouts(dtype)))
            {
                let got = fast::attention(&q, &k, &v, 0.3, None).unwrap();
                assert_eq!(got.dtype(), dtype);
                assert_close(&format!("{kv_heads} {dtype} {layout}"), &got, &want, 2.0 * tolerance);
            }
        }
    }
}

#[test]
fn attention_masks_broadcast() {
    for kv_heads in [6, 2] {
        let Heads { q, k, v } = heads(kv_heads);
        for shape in [&[2, 6, 5, 9][..], &[2, 1, 5, 9], &[2, 1, 1, 9], &[5, 9], &[9]] {
            let mask = Tensor::random(shape, -2.0, 2.0, 48);
            let added = attention(&q, &k, &v, 0.3, |i| mask.broadcast_at(i));
            let keep = mask.map(|v| f64::from(v > -0.7));
            let chosen =
                attention(
                    &q,
                    &k,
                    &v,
                    0.3,
                    |i| if keep.broadcast_at(i) != 0.0 { 0.0 } else { f64::NEG_INFINITY },
                );
            for (dtype, tolerance) in &FLOATS[..3] {
                let [q, k, v] = [&q, &k, &v].map(|x| x.array(*dtype));
                for (layout, mask) in mask.layouts(*dtype) {
                    let got = fast::attention(&q, &k, &v, 0.3, Some(&mask)).unwrap();
                    assert_close(&format!("added {shape:?} {dtype} {layout}"), &got, &added, 4.0 * tolerance);
                }
                for (layout, keep) in keep.layouts(Dtype::Bool) {
                    let got = fast::attention(&q, &k, &v, 0.3, Some(&keep)).unwrap();
                    assert_close(
                        &format!("chosen {shape:?} {dtype} {layout}"),
                        &got,
                        &chosen,
                        4.0 * tolerance,
                    );
                }
            }
        }
    }
}

#[test]
fn norms_refuse_what_does_not_fit() {
    let x = Tensor::counting(&[3, 7]).array(Dtype::F32);
    let scalar = Tensor::counting(&[]).array(Dtype::F32);
    for bad in [&[6][..], &[8], &[1], &[], &[7, 1], &[1, 7], &[0]] {
        let bad = Tensor::counting(bad).array(Dtype::F32);
        assert!(fast::rms_norm(&x, Some(&bad), 1e-6).is_err(), "{bad:?}");
        assert!(fast::layer_norm(&x, Some(&bad), None, 1e-6).is_err(), "{bad:?}");
        assert!(fast::layer_norm(&x, None, Some(&bad), 1e-6).is_err(), "{bad:?}");
    }
    assert!(fast::rms_norm(&scalar, None, 1e-6).is_err());
    assert!(fast::layer_norm(&scalar, None, None, 1e-6).is_err());
    assert!(fast::rms_norm(&x.astype(Dtype::I32).unwrap(), None, 1e-6).is_err());
    assert!(fast::layer_norm(&x.astype(Dtype::U8).unwrap(), None, None, 1e-6).is_err());
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let x = |shape: &[i32]| Tensor::random(shape, -1.0, 1.0, 49).array(Dtype::F32);
    let (q, k, v) = (x(&[2, 6, 5, 8]), x(&[2, 3, 9, 8]), x(&[2, 3, 9, 3]));
    let refused = |q: &Array, k: &Array, v: &Array, mask: Option<&Array>| {
        let error = fast::attention(q, k, v, 1.0, mask).unwrap_err();
        assert_eq!(error.operation, "attention", "{error}");
    };
    refused(&x(&[6, 5, 8]), &k, &v, None);
    refused(&q, &x(&[]), &v, None);
    refused(&q, &k, &x(&[9, 3]), None);
    refused(&q, &x(&[2, 3, 9, 7]), &v, None);
    refused(&q, &x(&[1, 3, 9, 8]), &v, None);
    refused(&q, &x(&[2, 4, 9, 8]), &x(&[2, 4, 9, 3]), None);
    refused(&q, &x(&[2, 0, 9, 8]), &x(&[2, 0, 9, 3]), None);
    refused(&q, &k, &x(&[2, 1, 9, 3]), None);
    refused(&q, &k, &x(&[2, 3, 8, 3]), None);
    refused(&q, &k, &x(&[2, 3, 10, 3]), None);
    for mask in [&[8][..], &[6, 9], &[2, 3, 5, 9], &[3, 1, 5, 9], &[1, 2, 6, 5, 9], &[0], &[5, 1, 1]] {
        refused(&q, &k, &v, Some(&x(mask)));
    }
    refused(&q, &k, &v, Some(&x(&[5, 9]).astype(Dtype::F64).unwrap()));
    let [q, k, v] = [&q, &k, &v].map(|x| x.astype(Dtype::I32).unwrap());
    refused(&q, &k, &v, None);
}
