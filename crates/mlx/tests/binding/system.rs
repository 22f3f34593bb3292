//! The device and the allocator's books.

use mlx::device::{self, Device};
use mlx::{Dtype, memory};

#[test]
fn the_processor_is_always_there() {
    device::set(if device::gpu_available() { Device::Gpu } else { Device::Cpu }).unwrap();
    let facts = device::facts(Device::Cpu).unwrap();
    assert!(facts.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{facts:?}");
    assert!(facts.iter().all(|(name, _)| !name.is_empty()));
    device::synchronize().unwrap();
}

#[test]
fn a_missing_gpu_is_an_error() {
    if device::gpu_available() {
        assert!(!device::facts(Device::Gpu).unwrap().is_empty());
    } else {
        assert!(device::set(Device::Gpu).unwrap_err().message.contains("no GPU"));
    }
}

#[test]
fn memory_is_counted() {
    let _alone = crate::oracle::MEMORY.lock();
    const BYTES: usize = 200 << 20;
    let before = memory::active();
    let x = mlx::zeros(&[BYTES as i32], Dtype::U8)
        .unwrap()
        .add(mlx::Array::scalar(1.0, Dtype::U8).unwrap())
        .unwrap();
    x.eval().unwrap();
    assert!(memory::active() + (100 << 20) >= before + BYTES);
    assert!(memory::peak() >= BYTES);
    drop(x);
    memory::clear_cache().unwrap();
    memory::reset_peak();
    assert!(memory::peak() < BYTES);
    assert!(memory::cache() < BYTES);
}

#[test]
fn limits_return_the_one_before() {
    let before = memory::set_cache_limit(12_345_678).unwrap();
    assert_eq!(memory::set_cache_limit(before).unwrap(), 12_345_678);
    let before = memory::set_memory_limit(1 << 40);
    assert_eq!(memory::set_memory_limit(before), 1 << 40);
}
