//! `ltx devices`

use ltx::nn::cpu;
use mlx::device::{Device, facts, gpu_available};
use serde_json::{Map, Value, json};

use crate::args::Devices;

pub fn run(arguments: &Devices) -> ltx::Result<()> {
    // Starts the program anew where that gives it a GPU.
    let absence = crate::machine::gpu().err().flatten();
    let devices: &[Device] = if gpu_available() { &[Device::Gpu, Device::Cpu] } else { &[Device::Cpu] };
    let mut list = Vec::new();
    for (index, &device) in devices.iter().enumerate() {
        let name = if device == Device::Gpu { "gpu" } else { "cpu" };
        let mut facts = facts(device)?;
        if device == Device::Cpu {
            facts.extend(kernels());
        }
        #[cfg(feature = "cuda")]
        if device == Device::Gpu {
            facts.extend(mlx::cuda::versions());
        }
        if arguments.json {
            let facts: Map<String, Value> =
                facts.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
            list.push(json!({ "device": name, "default": index == 0, "facts": facts }));
            continue;
        }
        println!("{name}{}", if index == 0 { " (used unless --device says otherwise)" } else { "" });
        for (name, value) in facts {
            println!("  {name}: {value}");
        }
    }
    if arguments.json {
        let mut all = json!({ "mlx": mlx::VERSION, "devices": list });
        if let Some(absence) = absence {
            all["missing"] = json!({ "device": "gpu", "problem": absence.problem, "remedy": absence.remedy });
        }
        println!("{all}");
    } else {
        if let Some(absence) = absence {
            println!("gpu (cannot be used)\n  problem: {}\n  remedy: {}", absence.problem, absence.remedy);
        }
        println!("MLX {}", mlx::VERSION);
    }
    Ok(())
}

/// What our kernels compute with.
fn kernels() -> Vec<(String, String)> {
    let isas = || format!("{} (available: {})", cpu::isa(), cpu::isas().join(", "));
    let set = if cpu::enabled() { isas() } else { "off: MLX computes".into() };
    vec![("instruction set".into(), set), ("threads".into(), cpu::threads().to_string())]
}
