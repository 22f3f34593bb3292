//! The binding against independent oracles: plain loops over `f64` in row-major order (`oracle.rs`), on odd sizes,
//! every memory layout that views can produce, and every float type. `hostile.rs` holds what must be refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod array;
mod conv;
mod custom;
mod elementwise;
mod fast;
mod hostile;
mod oracle;
mod quantized;
mod reductions;
mod shapes;
mod system;
