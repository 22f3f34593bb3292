//! `ltx quantize`

use std::time::Instant;

use ltx::checkpoint::packs;
use ltx::nn::Packing;
use ltx::{Error, Result};

use crate::args::Quantize;
use crate::terminal::{Terminal, seconds};

pub fn run(arguments: &Quantize) -> Result<()> {
    let started = Instant::now();
    let packing = match (arguments.bits.packing(), arguments.group) {
        (None, _) => return Err(Error::request("--bits none packs nothing", "give 8, 4, mxfp8 or nvfp4")),
        (Some(Packing::Affine { bits, .. }), group @ (32 | 64 | 128)) => Packing::Affine { bits, group },
        (Some(Packing::Affine { .. }), group) => {
            return Err(Error::request(format!("--group is {group}"), "give 32, 64 or 128"));
        }
        (Some(packing), group) if group == 64 || group == packing.group() => packing,
        (Some(packing), group) => {
            return Err(Error::request(
                format!("--group is {group}, but {packing} has groups of {}", packing.group()),
                "leave it out",
            ));
        }
    };
    // Everywhere the same bits: what GPUs make of the floating packings differs.
    mlx::device::set(mlx::device::Device::Cpu)?;
    let mut terminal = Terminal::new(arguments.quiet);
    let input = crate::models::resolve(&arguments.input)?;
    let report = packs::quantize(&input, &arguments.output, packing, &mut terminal)?;
    terminal.finish();
    if !arguments.quiet {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        println!(
            "{}: {} matrices packed in {packing}, {} tensors as they were; {:.3} GB instead of {:.3} GB, in {}",
            arguments.output.display(),
            report.packed,
            report.kept,
            gigabytes(report.after),
            gigabytes(report.before),
            seconds(started.elapsed())
        );
    }
    Ok(())
}
