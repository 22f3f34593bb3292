//! Prints one line for each work: `cargo bench -p ltx-kernels -- [--isa NAME] [--threads N] [WORK…]`, where a work runs when
//! its name contains one of those given.

use std::time::{Duration, Instant};

use half::bf16;
use kernels::{
    Activation, AttentionShape, Axis, ConvShape, Epilogue, Matrix, Norm, Packed, Packing, PerRow, Rotation,
    Scales, Scaling, Snake, Values, ValuesMut,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut filters = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--isa" => kernels::set_isa(arguments.next().ok_or("--isa NAME")?.parse()?)?,
            "--threads" => kernels::set_threads(arguments.next().ok_or("--threads N")?.parse()?)?,
            "--bench" => {} // from cargo
            _ => filters.push(argument),
        }
    }
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    for (m, n, k) in [
        (1, 4096, 4096),
        (4, 4096, 4096),
        (8, 4096, 4096),
        (16, 4096, 4096),
        (256, 4096, 4096),
        (1024, 4096, 4096),
        (256, 16384, 4096),
    ] {
        let name = format!("linear-m{m}-n{n}-k{k}");
        let flops = 2.0 * (m * n * k) as f64;
        if wanted(&(name.clone() + "-bf16")) {
            let (x, weight, mut out) = (narrow(m * k), narrow(n * k), narrow(m * n));
            let (x, weight) = (Matrix::new(&x[..], m, k)?, Matrix::new(&weight[..], n, k)?);
            time(&(name.clone() + "-bf16"), Amount::Operations(flops), || {
                kernels::linear(x, weight, &Epilogue::default(), &mut out[..])
            })?;
        }
        if wanted(&(name.clone() + "-f32")) {
            let (x, weight, mut out) = (wide(m * k), wide(n * k), wide(m * n));
            let (x, weight) = (Matrix::new(&x[..], m, k)?, Matrix::new(&weight[..], n, k)?);
            time(&(name + "-f32"), Amount::Operations(flops), || {
                kernels::linear(x, weight, &Epilogue::default(), &mut out[..])
            })?;
        }
        for (kind, packing) in [
            ("q8", Packing::Affine { bits: 8, group: 64 }),
            ("q4", Packing::Affine { bits: 4, group: 64 }),
            ("mxfp8", Packing::Mxfp8),
            ("nvfp4", Packing::Nvfp4),
        ] {
            let name = format!("linear-m{m}-n{n}-k{k}-{kind}");
            if !wanted(&name) {
                continue;
            }
            let (x, mut out) = (narrow(m * k), narrow(m * n));
            let codes: Vec<u32> = wide(n * k * packing.bits() / 32).into_iter().map(f32::to_bits).collect();
            let (floats, bytes) = (narrow(n * k / packing.group()), vec![120; n * k / packing.group()]);
            let scales = match packing {
                Packing::Affine { .. } => {
                    Scales::Affine { scales: floats[..].into(), biases: floats[..].into() }
                }
                _ => Scales::Bytes(&bytes),
            };
            let (x, weight) = (Matrix::new(&x[..], m, k)?, Packed::new(&codes, scales, packing, n, k)?);
            time(&name, Amount::Operations(flops), || {
                kernels::linear_packed(x, weight, &Epilogue::default(), &mut out[..])
            })?;
        }
    }
    for (heads, tokens, head_dim) in [(32, 1024, 128), (32, 1024, 64), (8, 4096, 128)] {
        let shape = AttentionShape {
            batch: 1,
            heads,
            key_heads: heads,
            queries: tokens,
            keys: tokens,
            head_dim,
            value_dim: head_dim,
        };
        let (len, scale) = (heads * tokens * head_dim, (head_dim as f32).sqrt().recip());
        let (name, flops) = (format!("attention-{heads}x{tokens}x{head_dim}"), 4.0 * (len * tokens) as f64);
        if wanted(&(name.clone() + "-bf16")) {
            let (q, mut out) = (narrow(len), narrow(len));
            let q = q[..].into();
            time(&(name.clone() + "-bf16"), Amount::Operations(flops), || {
                kernels::attention([q, q, q], &shape, scale, None, &mut out[..])
            })?;
        }
        if wanted(&(name.clone() + "-f32")) {
            let (q, mut out) = (wide(len), wide(len));
            let q = q[..].into();
            time(&(name + "-f32"), Amount::Operations(flops), || {
                kernels::attention([q, q, q], &shape, scale, None, &mut out[..])
            })?;
        }
    }
    for (inputs, outputs, sizes, kernel) in [
        (512, 512, [5, 32, 32], 3),
        (128, 128, [9, 64, 64], 3),
        (128, 48, [3, 64, 64], 3),
        (768, 768, [1, 1, 1000], 11),
    ] {
        let axes: Vec<Axis> = sizes
            .map(|size| {
                let kernel = if size > 1 { kernel } else { 1 };
                Axis { before: kernel as isize / 2, after: kernel as isize / 2, ..Axis::new(size, kernel) }
            })
            .into();
        let places: usize = sizes.iter().product();
        let (weights, shape) = (
            axes.iter().map(|axis| axis.kernel).product::<usize>() * inputs * outputs,
            ConvShape { batch: 1, axes, inputs, outputs, groups: 1 },
        );
        let [a, b, c] = sizes;
        let (name, flops) = (format!("conv-{inputs}-{outputs}-{a}x{b}x{c}"), 2.0 * (weights * places) as f64);
        if wanted(&(name.clone() + "-bf16")) {
            let (x, weight, mut out) = (narrow(places * inputs), narrow(weights), narrow(places * outputs));
            let (x, weight) = (x[..].into(), weight[..].into());
            time(&(name.clone() + "-bf16"), Amount::Operations(flops), || {
                kernels::conv(x, None, weight, &shape, &Epilogue::default(), &mut out[..])
            })?;
        }
        if wanted(&(name.clone() + "-f32")) {
            let (x, weight, mut out) = (wide(places * inputs), wide(weights), wide(places * outputs));
            let (x, weight) = (x[..].into(), weight[..].into());
            time(&(name + "-f32"), Amount::Operations(flops), || {
                kernels::conv(x, None, weight, &shape, &Epilogue::default(), &mut out[..])
            })?;
        }
    }
    Ok(rows(wanted)?)
}

/// What is limited by memory, or should be: GB/s of inputs and outputs.
fn rows(wanted: impl Fn(&str) -> bool) -> Result<(), kernels::Error> {
    let (tokens, width, heads) = (1024, 4096, 32);
    let (weight, angles) = (narrow(width), narrow(tokens * width / 2));
    let (weight, angles) = (Values::from(&weight[..]), Values::from(&angles[..]));
    let row = PerRow { values: weight, rows: 1, repeat: 1 };
    let rms = Norm { scaling: Scaling::Rms { eps: 1e-6 }, ..Norm::default() };
    let norms = [
        ("norm-modulated", Norm { modulation: Some([row, row]), ..rms }),
        ("norm-silu", Norm { activation: Activation::Silu, ..rms }),
    ];
    let head_dim = width / heads;
    let rotation = Rotation { heads, head_dim, eps: 1e-6, weight, cos: angles, sin: angles, rows: tokens };
    let (x_bf16, x_f32) = (narrow(tokens * width), wide(tokens * width));
    for (suffix, x) in [("bf16", Values::from(&x_bf16[..])), ("f32", Values::from(&x_f32[..]))] {
        let (mut out_bf16, mut out_f32) = (x_bf16.clone(), x_f32.clone());
        let mut bench =
            |name: &str, bytes: usize, work: &mut dyn FnMut(ValuesMut) -> Result<(), kernels::Error>| {
                let name = format!("{name}-{suffix}");
                if !wanted(&name) {
                    return Ok(());
                }
                time(&name, Amount::Bytes(bytes as f64), || match suffix {
                    "bf16" => work((&mut out_bf16[..]).into()),
                    _ => work((&mut out_f32[..]).into()),
                })
            };
        let bytes = 2 * x.len() * if suffix == "bf16" { 2 } else { 4 };
        for (name, norm) in &norms {
            let x = Matrix::new(x, tokens, width)?;
            bench(name, bytes, &mut |out| kernels::norm(x, norm, out))?;
        }
        bench("rotation", 2 * bytes, &mut |out| kernels::norm_and_rotate(x, &rotation, out))?;
        bench("gelu", bytes, &mut |out| kernels::activate(x, Activation::GeluTanh, out))?;
        for channels in [32, 512] {
            let parameters = vec![1.5f32; channels];
            let filter = [1.0 / 12.0; 12];
            let snake = Snake { up: filter, down: filter, alpha: &parameters, reciprocal_beta: &parameters };
            let name = format!("snake-{channels}");
            bench(&name, bytes, &mut |out| kernels::snake(x, [1, x.len() / channels], &snake, out))?;
        }
    }
    Ok(())
}

fn wide(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn narrow(len: usize) -> Vec<bf16> {
    wide(len).into_iter().map(bf16::from_f32).collect()
}

/// What a work does.
enum Amount {
    Operations(f64),
    Bytes(f64),
}

/// Runs for a second, three times at least.
fn time(
    name: &str,
    amount: Amount,
    mut work: impl FnMut() -> Result<(), kernels::Error>,
) -> Result<(), kernels::Error> {
    work()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || (start.elapsed() < Duration::from_secs(1) && times.len() < 1000) {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let (amount, unit) = match amount {
        Amount::Operations(count) => (count, "GFLOP/s"),
        Amount::Bytes(count) => (count, "GB/s"),
    };
    println!(
        "{name:36} {:9.3} ms median {:9.3} ms best {:7.1} {unit} median {:7.1} best  {} {} threads",
        median * 1e3,
        best * 1e3,
        amount / median / 1e9,
        amount / best / 1e9,
        kernels::isa(),
        kernels::threads(),
    );
    Ok(())
}
