//! Rust closures inside MLX's graph.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use mlx::{Array, Dtype, Input, Output, custom};

use crate::oracle::{Tensor, assert_same};

type Outcome = Result<(), String>;

/// a · 10 + b, element by element: shows the order of the inputs.
fn ten_a_plus_b(inputs: &[Input<'_>], output: &mut Output<'_>) -> Outcome {
    let [a, b] = inputs else { return Err(format!("{} inputs", inputs.len())) };
    let (a, b) = (a.values::<f32>()?, b.values::<f32>()?);
    for (out, (a, b)) in output.values::<f32>()?.iter_mut().zip(a.iter().zip(b)) {
        *out = 10.0 * a + b;
    }
    Ok(())
}

fn increment(inputs: &[Input<'_>], output: &mut Output<'_>) -> Outcome {
    for (out, x) in output.values::<f32>()?.iter_mut().zip(inputs[0].values::<f32>()?) {
        *out = x + 1.0;
    }
    Ok(())
}

fn incremented(x: &Array) -> Array {
    custom(&[x], x.shape(), Dtype::F32, increment).unwrap()
}

#[test]
fn inputs_come_in_order_and_row_major() {
    let (a, b) = (Tensor::counting(&[3, 5, 7]), Tensor::random(&[3, 5, 7], -3.0, 3.0, 50));
    let want = Tensor::from_fn(&a.shape, |i| 10.0 * a.at(i) + b.at(i));
    for (a_layout, a) in a.layouts(Dtype::F32) {
        for (b_layout, b) in b.layouts(Dtype::F32) {
            let got = custom(&[&a, &b], &[3, 5, 7], Dtype::F32, ten_a_plus_b).unwrap();
            let what = format!("{a_layout} {b_layout}");
            crate::oracle::assert_close(&what, &got, &want, 1e-6);
        }
    }
}

#[test]
fn shapes_and_dtypes_arrive() {
    let a = Tensor::counting(&[2, 3]).array(Dtype::Bf16);
    let b = Tensor::counting(&[4]).array(Dtype::I32);
    let empty = mlx::zeros(&[0, 5], Dtype::F32).unwrap();
    let got = custom(&[&a, &b, &empty], &[7], Dtype::U8, |inputs, output| {
        let shapes: Vec<&[i32]> = inputs.iter().map(Input::shape).collect();
        let dtypes: Vec<_> = inputs.iter().map(Input::dtype).collect();
        let right = shapes == [&[2, 3][..], &[4], &[0, 5]]
            && dtypes == [Some(Dtype::Bf16), Some(Dtype::I32), Some(Dtype::F32)]
            && output.shape() == [7]
            && inputs[0].values::<bf16>()?[5] == bf16::from_f32(5.0)
            && inputs[1].values::<i32>()? == [0, 1, 2, 3]
            && inputs[2].values::<f32>().is_err();
        output.values::<u8>()?.fill(u8::from(right));
        Ok(())
    });
    assert_eq!(got.unwrap().to_vec::<u8>().unwrap(), [1; 7]);
}

#[test]
fn every_dtype_can_be_written() {
    fn fill<T: mlx::Element>(value: T) -> Array {
        custom(&[], &[3, 2], T::DTYPE, move |_, output| {
            output.values::<T>()?.fill(value);
            Ok(())
        })
        .unwrap()
    }
    let sevens = Tensor::from_fn(&[3, 2], |_| 7.0);
    for array in [
        fill(7u8),
        fill(7i32),
        fill(7u32),
        fill(7i64),
        fill(7.0f32),
        fill(7.0f64),
        fill(bf16::from_f32(7.0)),
        fill(half::f16::from_f32(7.0)),
    ] {
        assert_same(&format!("{array:?}"), &array, &sevens);
    }
}

#[test]
fn the_graph_goes_on_around_it() {
    let x = Tensor::counting(&[5, 3]);
    let before = x.array(Dtype::F32).multiply(2.0f32).unwrap().transpose_last().unwrap(); // (3, 5)
    let middle = incremented(&before);
    let after = middle.transpose_last().unwrap().add(middle.transpose_last().unwrap()).unwrap();
    assert_same("chain", &after, &x.map(|v| 2.0 * (2.0 * v + 1.0)));
    // Its inputs are not written, though nobody else may hold them.
    let y = incremented(&incremented(&incremented(&middle)));
    assert_same("stack", &y, &x.map(|v| 2.0 * v + 4.0).permuted(&[1, 0]));
    assert_same("middle", &middle, &x.map(|v| 2.0 * v + 1.0).permuted(&[1, 0]));
}

#[test]
fn it_runs_once_and_only_when_needed() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let x = Tensor::counting(&[3]).array(Dtype::F32);
    let y = custom(&[&x], &[3], Dtype::F32, move |inputs, output| {
        counted.fetch_add(1, Ordering::SeqCst);
        increment(inputs, output)
    })
    .unwrap();
    let sum = y.add(&y).unwrap().multiply(&y).unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    assert_eq!(sum.to_f32().unwrap(), [2.0, 8.0, 18.0]);
    assert_eq!(y.to_f32().unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    drop((y, sum));
    mlx::device::synchronize().unwrap();
    // The closure is gone with the node.
    assert_eq!(Arc::strong_count(&runs), 1);
}

#[test]
fn an_error_is_the_error_of_the_evaluation() {
    let x = Tensor::counting(&[3]).array(Dtype::F32);
    for _ in 0..3 {
        let bad = custom(&[&x], &[3], Dtype::F32, |_, _| Err("the kernel says no".into())).unwrap();
        let sum = bad.add(1.0f32).unwrap();
        assert!(sum.to_f32().unwrap_err().message.contains("the kernel says no"));
        // The rest of the world goes on at once.
        assert_eq!(incremented(&x).to_f32().unwrap(), [1.0, 2.0, 3.0]);
        // What failed holds NaN, never chance.
        assert!(bad.to_f32().is_err() || bad.to_f32().unwrap().iter().all(|v| v.is_nan()));
    }
}

#[test]
fn a_panic_is_an_error_too() {
    let x = Tensor::counting(&[3]).array(Dtype::F32);
    for _ in 0..3 {
        let bad = custom(&[&x], &[3], Dtype::F32, |inputs, _| {
            assert_eq!(inputs.len(), 2, "on purpose, to see what a panic does");
            Ok(())
        });
        assert!(bad.unwrap().eval().unwrap_err().message.contains("panicked"));
        assert_eq!(incremented(&x).add(1.0f32).unwrap().to_f32().unwrap(), [2.0, 3.0, 4.0]);
    }
}

#[test]
fn values_want_the_right_type() {
    let x = Tensor::counting(&[3]).array(Dtype::Bf16);
    let wrong_input = custom(&[&x], &[3], Dtype::F32, increment).unwrap();
    assert!(wrong_input.eval().unwrap_err().message.contains("Bf16"));
    let wrong_output = custom(&[&x], &[3], Dtype::I32, |_, output| {
        output.values::<f32>()?.fill(0.0);
        Ok(())
    });
    assert!(wrong_output.unwrap().eval().unwrap_err().message.contains("I32"));
}

#[test]
fn empty_outputs_are_refused() {
    for shape in [&[0][..], &[3, 0], &[-1], &[i32::MIN], &[i32::MAX, i32::MAX]] {
        assert!(custom(&[], shape, Dtype::F32, |_, _| Ok(())).is_err(), "{shape:?}");
    }
}

#[test]
fn scalars_work() {
    let x = Array::scalar(41.0, Dtype::F32).unwrap();
    assert_eq!(custom(&[&x], &[], Dtype::F32, increment).unwrap().item().unwrap(), 42.0);
}

#[test]
fn large_arrays() {
    let x = mlx::arange(0.0, 4_000_001.0, 1.0, Dtype::F32).unwrap();
    let y = incremented(&x);
    assert_eq!(y.subtract(&x).unwrap().sum(&[0], false).unwrap().item().unwrap(), 4_000_001.0);
}

#[test]
fn misaligned_views_are_readable() {
    let bytes: Vec<u8> =
        [9u8].into_iter().chain([1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_ne_bytes())).collect();
    let x = Array::from_slice(&bytes, &[13]).unwrap().slice(0, 1..13).unwrap().view(Dtype::F32).unwrap();
    assert_eq!(incremented(&x).to_f32().unwrap(), [2.0, 3.0, 4.0]);
}

#[test]
fn borrowed_inputs_are_not_copied() {
    let owner: Arc<Vec<u8>> = Arc::new((0..64u32).flat_map(|i| (i as f32).to_ne_bytes()).collect());
    let x = Array::borrowed(owner.clone(), |b| b, &[8, 8], Dtype::F32).unwrap();
    let address = owner.as_ptr() as usize;
    let same = custom(&[&x], &[1], Dtype::U8, move |inputs, output| {
        output.values::<u8>()?[0] = u8::from(inputs[0].values::<f32>()?.as_ptr() as usize == address);
        Ok(())
    });
    assert_eq!(same.unwrap().to_vec::<u8>().unwrap(), [1]);
    assert_eq!(incremented(&x).sum(&[0, 1], false).unwrap().item().unwrap(), 63.0 * 32.0 + 64.0);
}

/// Arrays stay on their thread, but every thread may have its own; one thread's error is not another's.
#[test]
fn threads_do_not_meet() {
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            std::thread::spawn(move || {
                for round in 0..20 {
                    let x = mlx::full(&[33, 17], f64::from(thread * 100 + round), Dtype::F32).unwrap();
                    if thread == 0 {
                        let bad = custom(&[&x], &[3], Dtype::F32, |_, _| Err("only here".into())).unwrap();
                        assert!(bad.eval().unwrap_err().message.contains("only here"));
                    }
                    let want = (thread * 100 + round + 1) as f32;
                    assert_eq!(incremented(&x).to_f32().unwrap(), [want; 33 * 17]);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
