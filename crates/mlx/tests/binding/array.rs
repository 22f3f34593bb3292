//! Construction, reading, borrowing, cloning, evaluation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use mlx::{Array, Dtype, Element, eval, fast};

use crate::oracle::{Tensor, assert_close, assert_same, read};

fn round_trip<T: Element + PartialEq + std::fmt::Debug>(values: &[T]) {
    let array = Array::from_slice(values, &[3, 1, 2]).unwrap();
    assert_eq!((array.shape(), array.rank(), array.size()), (&[3, 1, 2][..], 3, 6));
    assert_eq!(array.dtype(), T::DTYPE);
    assert_eq!(array.to_vec::<T>().unwrap(), values);
    assert_eq!(T::DTYPE.size(), size_of::<T>());
}

#[test]
fn values_come_back() {
    round_trip(&[0u8, 1, 2, 3, 254, 255]);
    round_trip(&[i32::MIN, -1, 0, 1, 2, i32::MAX]);
    round_trip(&[0u32, 1, 2, 3, 4, u32::MAX]);
    round_trip(&[i64::MIN, -1, 0, 1, 2, i64::MAX]);
    round_trip(&[1.0f32, -0.0, f32::INFINITY, f32::MIN_POSITIVE, 1e-45, -7.5]);
    round_trip(&[1.0f64, -0.0, f64::MAX, f64::MIN_POSITIVE, 0.1, -7.5]);
    round_trip(&[1.0, -0.0, 65504.0, 6e-8, 0.1, -7.5].map(f16::from_f64));
    round_trip(&[1.0, -0.0, 3e38, 1e-40, 0.1, -7.5].map(bf16::from_f64));
}

#[test]
fn facts_about_dtypes() {
    let floats = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];
    let others = [Dtype::Bool, Dtype::U8, Dtype::I32, Dtype::U32, Dtype::I64];
    assert!(floats.iter().all(|dtype| dtype.is_float()) && !others.iter().any(|dtype| dtype.is_float()));
    assert_eq!(Dtype::Bool.size(), 1);
    assert_eq!(format!("{} {}", Dtype::Bf16, Dtype::U32), "bf16 u32");
    assert_eq!(format!("{:?}", Array::from_slice(&[1u8, 2], &[1, 2]).unwrap()), "Array([1, 2], u8)");
}

#[test]
fn scalars_and_items() {
    for dtype in
        [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F64, Dtype::I32, Dtype::I64, Dtype::U8, Dtype::U32]
    {
        let scalar = Array::scalar(3.0, dtype).unwrap();
        assert_eq!(
            (scalar.rank(), scalar.size(), scalar.dtype(), scalar.item().unwrap()),
            (0, 1, dtype, 3.0)
        );
    }
    assert_eq!(Array::scalar(1.0, Dtype::Bool).unwrap().item().unwrap(), 1.0);
    let two = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    assert!(two.item().unwrap_err().to_string().contains("2 elements"));
    assert_eq!(two.slice(0, 1..2).unwrap().item().unwrap(), 2.0);
}

#[test]
fn dimensions_count_from_both_ends() {
    let x = Tensor::counting(&[2, 3, 5]).array(Dtype::F32);
    assert_eq!([x.dim(0), x.dim(2), x.dim(-1), x.dim(-3)], [2, 5, 5, 2]);
}

#[test]
fn reading_wants_the_right_type() {
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    assert!(x.to_vec::<i32>().unwrap_err().to_string().contains("f32"));
    assert!(x.to_vec::<u32>().is_err());
}

#[test]
fn reading_any_layout_is_row_major() {
    let x = Tensor::counting(&[3, 5, 7]);
    for (layout, array) in x.layouts(Dtype::F32) {
        let want: Vec<f32> = x.data.iter().map(|&v| v as f32).collect();
        assert_eq!(array.to_vec::<f32>().unwrap(), want, "{layout}");
    }
}

#[test]
fn bytes_must_fill_the_shape() {
    for (bytes, shape) in [
        (&[0u8; 8][..], &[3][..]),
        (&[0; 12], &[]),
        (&[0; 12], &[-3]),
        (&[0; 12], &[-1, -3]),
        (&[], &[3]),
        (&[], &[i32::MAX, i32::MAX, i32::MAX]),
        // 2⁶² elements of 4 bytes are 0 bytes when counted in 64 bits.
        (&[], &[1 << 30, 1 << 30, 4]),
        (&[0; 12], &[0]),
    ] {
        assert!(Array::from_bytes(bytes, shape, Dtype::F32).is_err(), "{shape:?}");
        assert!(Array::borrowed(Arc::new(bytes.to_vec()), |b| b, shape, Dtype::F32).is_err(), "{shape:?}");
    }
}

#[test]
fn nothing_is_an_array_too() {
    for shape in [&[0][..], &[3, 0, 2], &[0, i32::MAX]] {
        let empty = Array::from_bytes(&[], shape, Dtype::F32).unwrap();
        assert_eq!((empty.shape(), empty.size()), (shape, 0));
        assert_eq!(empty.to_vec::<f32>().unwrap(), [0.0f32; 0]);
        let borrowed = Array::borrowed(Arc::new(Vec::<u8>::new()), |b| b, shape, Dtype::F32).unwrap();
        assert_eq!(borrowed.add(1.0f32).unwrap().to_f32().unwrap(), [0.0f32; 0]);
    }
}

#[test]
fn clones_share_and_outlive() {
    let x = Tensor::counting(&[3, 5]);
    let first = x.array(Dtype::F32).add(1.0f32).unwrap();
    let second = first.clone();
    drop(first);
    assert_same("clone", &second, &x.map(|v| v + 1.0));
}

#[test]
fn evaluating_several_at_once() {
    let x = Tensor::counting(&[3, 5]);
    let a = x.array(Dtype::F32).add(1.0f32).unwrap();
    let b = a.multiply(2.0f32).unwrap();
    eval([&a, &b, &a]).unwrap();
    eval([]).unwrap();
    a.eval().unwrap();
    assert_same("a", &a, &x.map(|v| v + 1.0));
    assert_same("b", &b, &x.map(|v| 2.0 * (v + 1.0)));
}

/// A long chain must not recurse when it is computed or dropped.
#[test]
fn deep_graphs() {
    let mut x = Array::scalar(0.0, Dtype::F32).unwrap();
    for _ in 0..50_000 {
        x = x.add(1.0f32).unwrap();
    }
    let unused = x.clone().add(1.0f32).unwrap();
    drop(unused);
    assert_eq!(x.item().unwrap(), 50_000.0);
}

/// Memory that remembers when it is dropped.
struct Watched {
    bytes: Vec<u8>,
    dropped: Arc<AtomicBool>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

/// Floats 0, 1, 2, … at `offset` bytes past an 8-byte boundary inside a larger buffer.
fn watched(count: usize, offset: usize) -> (Arc<Watched>, Arc<AtomicBool>, usize) {
    let dropped = Arc::new(AtomicBool::new(false));
    let mut bytes = vec![0xee; 64 + 4 * count];
    let start = (bytes.as_ptr().align_offset(8) + 8) + offset;
    for i in 0..count {
        bytes[start + 4 * i..][..4].copy_from_slice(&(i as f32).to_ne_bytes());
    }
    (Arc::new(Watched { bytes, dropped: dropped.clone() }), dropped, start)
}

fn borrow(owner: &Arc<Watched>, start: usize, shape: &[i32]) -> Array {
    let bytes = 4 * shape.iter().product::<i32>() as usize;
    Array::borrowed(owner.clone(), |owner| &owner.bytes[start..start + bytes], shape, Dtype::F32).unwrap()
}

#[test]
fn borrowed_memory_is_read_in_place() {
    for offset in [0, 4, 1, 2, 3] {
        let (owner, _, start) = watched(105, offset);
        let x = Tensor::counting(&[3, 5, 7]);
        let array = borrow(&owner, start, &x.shape);
        assert_same("borrowed", &array, &x);
        assert_same(
            "sum",
            &array.sum(&[0], true).unwrap(),
            &Tensor::from_fn(&[1, 5, 7], |i| (0..3).map(|b| x.at(&[b, i[1], i[2]])).sum()),
        );
        let turned = array.transpose(&[2, 0, 1]).unwrap();
        assert_same("transposed", &turned, &x.permuted(&[2, 0, 1]));
        assert_same(
            "sliced",
            &array.slice(1, 2..4).unwrap(),
            &Tensor::from_fn(&[3, 2, 7], |i| x.at(&[i[0], i[1] + 2, i[2]])),
        );
        assert_same("reshaped", &array.reshape(&[7, 15]).unwrap(), &Tensor::counting(&[7, 15]));
        assert_same("bytes", &array.view(Dtype::U8).unwrap().view(Dtype::F32).unwrap(), &x);
        let bits: Vec<u32> = x.data.iter().map(|&v| (v as f32).to_bits()).collect();
        assert_eq!(array.view(Dtype::U32).unwrap().to_vec::<u32>().unwrap(), bits);
        assert_same("contiguous", &array.contiguous().unwrap(), &x);
    }
}

#[test]
fn borrowed_memory_is_not_counted_as_copied() {
    // Half a gigabyte that is never touched: a copy would show in MLX's own count.
    let _alone = crate::oracle::MEMORY.lock();
    let count = 1usize << 27;
    let owner = Arc::new(vec![0u8; 4 * count]);
    let before = mlx::memory::active();
    let array = Array::borrowed(owner.clone(), |b| b, &[count as i32], Dtype::F32).unwrap();
    let same = array.contiguous().unwrap().reshape(&[2, -1]).unwrap();
    same.eval().unwrap();
    assert!(mlx::memory::active() < before + count, "{} {before}", mlx::memory::active());
    assert_eq!(array.slice(0, 5..6).unwrap().item().unwrap(), 0.0);
    // The test's owner, the array's, and nobody else.
    assert_eq!(Arc::strong_count(&owner), 2);
    drop((array, same));
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn borrowed_memory_is_never_written() {
    type Operation = (&'static str, fn(Array) -> mlx::Result<Array>);
    // Each takes the last reference: MLX reuses the memory of such inputs for outputs when it may.
    let operations: [Operation; 12] = [
        ("add", |x| x.add(1.0f32)),
        ("negative", |x| x.negative()),
        ("both sides", |x| x.multiply(&x)),
        ("view", |x| x.view(Dtype::I32)?.add(Array::scalar(1.0, Dtype::I32)?)),
        ("reshape", |x| x.reshape(&[-1])?.exp()),
        ("slice", |x| x.slice(0, 1..2)?.add(1.0f32)),
        ("update", |x| x.slice_update(&Array::scalar(9.0, Dtype::F32)?, &[0, 0], &[1, 1])),
        ("softmax", |x| x.softmax(-1)),
        ("rms_norm", |x| fast::rms_norm(&x, None, 1e-6)),
        ("layer_norm", |x| fast::layer_norm(&x, None, None, 1e-6)),
        ("cast", |x| x.contiguous()?.astype(Dtype::I32)),
        ("cumulative", |x| x.transpose_last()?.add(2.0f32)?.square()),
    ];
    for (name, operation) in operations {
        let (owner, _, start) = watched(35_000, 0);
        let before = owner.bytes.clone();
        operation(borrow(&owner, start, &[5, 7_000])).unwrap().eval().unwrap();
        assert!(owner.bytes == before, "{name} wrote into the borrowed memory");
    }
}

#[test]
fn the_owner_lives_as_long_as_the_array() {
    let (owner, dropped, start) = watched(35, 0);
    let array = borrow(&owner, start, &[5, 7]);
    drop(owner);
    let later = array.multiply(2.0f32).unwrap().transpose_last().unwrap();
    let view = array.slice(0, 2..3).unwrap();
    view.eval().unwrap();
    drop(array);
    // Still needed by `later`, which is not computed yet, and by `view`, which shares the memory.
    assert!(!dropped.load(Ordering::SeqCst));
    let want = Tensor::counting(&[5, 7]).map(|v| 2.0 * v).permuted(&[1, 0]);
    assert_same("later", &later, &want);
    drop(later);
    mlx::device::synchronize().unwrap();
    assert!(!dropped.load(Ordering::SeqCst));
    assert_eq!(read(&view).data, [14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0]);
    drop(view);
    mlx::device::synchronize().unwrap();
    assert!(dropped.load(Ordering::SeqCst));
}

#[test]
fn misaligned_memory_is_copied() {
    let (owner, dropped, start) = watched(35, 1);
    let array = borrow(&owner, start, &[5, 7]);
    drop(owner);
    assert!(dropped.load(Ordering::SeqCst));
    assert_close("copy", &array, &Tensor::counting(&[5, 7]), 0.0);
}
