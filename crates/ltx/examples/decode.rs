//! One decode at full width with random weights: what it takes, and what was told before.
//!
//!     cargo run --release -p ltx --example decode -- 704 480 97 [SPATIAL OVERLAP | -] [TEMPORAL OVERLAP | -] [f32]

#![allow(clippy::unwrap_used, reason = "an example may panic")]

use ltx::shape::VideoShape;
use ltx::video_vae::Tiling;
use mlx::Dtype;

fn main() {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let dtype = if words.pop_if(|word| word == "f32").is_some() { Dtype::F32 } else { Dtype::Bf16 };
    let mut words = words.into_iter();
    let mut number = || words.next().and_then(|word| word.parse::<i32>().ok());
    let (width, height, frames) = (number().unwrap(), number().unwrap(), number().unwrap());
    let mut tile = || number().and_then(|size| Some((size, number()?)));
    let tiling = Tiling { spatial: tile(), temporal: tile() };
    let video = VideoShape { frames: frames as usize, height: height as usize, width: width as usize };
    let (seconds, peak, told) = ltx::bench::decode(video, &tiling, dtype).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    let mib = |bytes: usize| bytes / (1 << 20);
    println!(
        "{width}x{height}x{frames} {tiling:?} {dtype}: {seconds:.1} s, arrays {} MiB, told {} MiB ({:.2}), {resident}",
        mib(peak),
        mib(told),
        told as f64 / peak as f64
    );
}
