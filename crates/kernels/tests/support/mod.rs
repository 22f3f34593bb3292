//! What the tests of kernels share: numbers, every instruction set in turn, comparison.

#![allow(dead_code)] // each test program uses a part

use std::sync::{Mutex, PoisonError};

use half::bf16;
use kernels::{Isa, Values, ValuesMut};

/// Runs `body` with every instruction set that this machine has. One test at a time: the choice is the program's.
pub fn every_isa(body: impl Fn(Isa)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        kernels::set_isa(isa).unwrap();
        body(isa);
    }
}

/// Numbers of either type.
pub enum Data {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Data {
    /// `len` numbers in −1 .. 1.
    pub fn new(len: usize, seed: u32, narrow: bool) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let wide: Vec<f32> = (0..len).map(|_| next()).collect();
        if narrow { Self::Bf16(wide.into_iter().map(bf16::from_f32).collect()) } else { Self::F32(wide) }
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(values) => Values::F32(values),
            Self::Bf16(values) => Values::Bf16(values),
        }
    }

    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Self::F32(values) => ValuesMut::F32(values),
            Self::Bf16(values) => ValuesMut::Bf16(values),
        }
    }

    pub fn get(&self, index: usize) -> f64 {
        match self {
            Self::F32(values) => values[index].into(),
            Self::Bf16(values) => values[index].into(),
        }
    }
}

/// Panics unless `ours` is within `tolerance` (absolute up to 1, relative above), and a rounding if it is `narrow`.
pub fn close(ours: f64, expected: f64, tolerance: f64, narrow: bool, name: impl Fn() -> String) {
    let rounding = if narrow { expected.abs() / 256.0 } else { 0.0 };
    let allowed = tolerance * expected.abs().max(1.0) + rounding;
    assert!((ours - expected).abs() <= allowed, "{}: {ours} is not {expected} (± {allowed:e})", name());
}

pub fn gelu_tanh(x: f64) -> f64 {
    x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}
