//! `ltx bench`

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ltx::bench::{Measured, Rate, Settings, WORKS, Work, backend, find, measure};
use ltx::{Error, Result};
use mlx::device::Device;
use serde_json::{Value, json};

use crate::args::{Bench, DtypeChoice};

/// The work that is the program's and not the library's.
const START: &str = "start";
const START_IS: &str = "start of the program to the end of the first denoising step, tiny model";

pub fn run(arguments: &Bench) -> Result<()> {
    if arguments.list {
        for (name, what) in WORKS.iter().map(|work| (work.name, work.what)).chain([(START, START_IS)]) {
            if arguments.json {
                println!("{}", json!({ "work": name, "what": what }));
            } else {
                println!("{name:NAME$}  {what}");
            }
        }
        return Ok(());
    }
    let chosen: Vec<Option<&Work>> =
        arguments.works.iter().map(|name| choose(name)).collect::<Result<_>>()?;
    let time = Duration::try_from_secs_f64(arguments.seconds)
        .ok()
        .filter(|time| *time <= Duration::from_secs(600))
        .ok_or_else(|| {
            Error::request(format!("--seconds {} is not possible", arguments.seconds), "give 0 to 600")
        })?;
    let device = crate::choose_device(arguments.device)?;
    if device == Device::Cpu && arguments.dtype == DtypeChoice::F16 {
        return Err(Error::request("the CPU has no fast way to compute in f16", "give --dtype bf16 or f32"));
    }
    let settings = Settings { dtype: crate::dtype(arguments.dtype), time };
    let chosen = if chosen.is_empty() {
        let on_gpu = device == Device::Gpu;
        let usual = |work: &&Work| !(work.large || on_gpu && work.name == "peak");
        WORKS.iter().filter(usual).map(Some).chain([None]).collect()
    } else {
        chosen
    };
    for work in chosen {
        let measured = match work {
            Some(work) => measure(work, &settings)?,
            None => start(device, arguments.dtype)?,
        };
        if arguments.json { println!("{}", object(&measured)) } else { print(&measured) }
    }
    Ok(())
}

/// The library's work of that name, or `None` for [`START`].
fn choose(name: &str) -> Result<Option<&'static Work>> {
    if name == START {
        return Ok(None);
    }
    find(name).map(Some).ok_or_else(|| {
        let names: Vec<&str> = WORKS.iter().map(|work| work.name).chain([START]).collect();
        Error::request(format!("there is no work `{name}`"), format!("there are {}", names.join(", ")))
    })
}

/// Width of the longest name.
const NAME: usize = 23;

fn print(measured: &Measured) {
    let median = measured.median();
    let time = if median < 1.0 { format!("{:.2} ms", median * 1e3) } else { format!("{median:.3} s") };
    let rate = match measured.rate {
        Some(Rate::Operations(rate)) => format!("{:.1} GFLOP/s", rate / 1e9),
        Some(Rate::Bytes(rate)) => format!("{:.1} GB/s", rate / 1e9),
        None => String::new(),
    };
    let share =
        measured.peak_share.map_or_else(String::new, |share| format!("{:.0} % of peak", share * 100.0));
    let threads = match measured.threads {
        Some(1) => "1 thread".into(),
        Some(threads) => format!("{threads} threads"),
        None => String::new(),
    };
    let dtype = measured.dtype.map_or_else(String::new, |dtype| dtype.to_string());
    let (work, backend, runs) = (measured.work, measured.backend, measured.seconds.len());
    let line = format!(
        "{work:NAME$}  {time:>10}  {rate:>15}  {share:>13}  {dtype:4}  {backend:11}  {threads:10}  median of {runs}"
    );
    let note = if measured.detail.is_empty() { String::new() } else { format!(": {}", measured.detail) };
    println!("{line}{note}");
}

fn object(measured: &Measured) -> Value {
    let (mut gflops, mut gb_per_second) = (None, None);
    match measured.rate {
        Some(Rate::Operations(rate)) => gflops = Some(rate / 1e9),
        Some(Rate::Bytes(rate)) => gb_per_second = Some(rate / 1e9),
        None => {}
    }
    json!({
        "work": measured.work, "seconds_median": measured.median(), "seconds": measured.seconds,
        "runs": measured.seconds.len(), "gflops": gflops, "gb_per_second": gb_per_second,
        "peak_share": measured.peak_share, "peak_bytes": measured.memory, "dtype": measured.dtype.map(|dtype| dtype.to_string()),
        "backend": measured.backend, "threads": measured.threads, "detail": measured.detail,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// A tiny model with random weights and the text encoder that goes with it: the repository's fixtures.
const TINY: [(&str, &[u8]); 4] = [
    ("distilled.safetensors", include_bytes!("../../../fixtures/2.3/model.safetensors")),
    ("gemma/config.json", include_bytes!("../../../fixtures/gemma3/config.json")),
    ("gemma/model.safetensors", include_bytes!("../../../fixtures/gemma3/model.safetensors")),
    ("gemma/tokenizer.json", include_bytes!("../../../fixtures/gemma3/tokenizer.json")),
];

/// Starts this program five times on the tiny model, and stops it when it reports its first step.
fn start(device: Device, dtype: DtypeChoice) -> Result<Measured> {
    let failed = |error: std::io::Error| {
        Error::machine(
            format!("a second `ltx` cannot be run: {error}"),
            "check that the folder for temporary files has space and can be written to",
        )
    };
    let folder = tempfile::tempdir().map_err(failed)?;
    let place = |name: &str| folder.path().join(name);
    fs::create_dir(place("gemma")).map_err(failed)?;
    for (name, bytes) in TINY {
        fs::write(place(name), bytes).map_err(failed)?;
    }
    let program = std::env::current_exe().map_err(failed)?;
    let mut seconds = Vec::new();
    for _ in 0..5 {
        seconds.push(first_step(&program, folder.path(), device, dtype)?);
    }
    seconds.sort_by(f64::total_cmp);
    let (backend, threads) = backend();
    Ok(Measured {
        work: START,
        detail: String::new(),
        seconds,
        rate: None,
        peak_share: None,
        memory: 0,
        dtype: Some(crate::dtype(dtype)),
        backend,
        threads,
    })
}

/// Seconds until a new process has made its first step.
fn first_step(program: &Path, folder: &Path, device: Device, dtype: DtypeChoice) -> Result<f64> {
    let start = Instant::now();
    let mut command = Command::new(program);
    command.args(["generate", "rain on a tin roof", "--recipe", "one-stage", "--no-cache"]);
    command.args(["--height", "64", "--width", "64", "--frames", "9"]);
    command.args(["--device", if device == Device::Gpu { "gpu" } else { "cpu" }]);
    command.args(["--dtype", &crate::dtype(dtype).to_string()]);
    command.args(["--threads", &ltx::nn::cpu::threads().to_string()]);
    command.arg("--model").arg(folder.join("distilled.safetensors"));
    command.arg("--gemma").arg(folder.join("gemma")).arg("--output").arg(folder.join("clip.mp4"));
    let failed = |error: std::io::Error| Error::machine(format!("a second `ltx` cannot be run: {error}"), "");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let said = child.stderr.take().map(BufReader::new);
    let mut took = Err(String::new());
    for line in said.into_iter().flat_map(BufRead::lines).map_while(std::io::Result::ok) {
        if line.contains(": 1/") {
            took = Ok(start.elapsed().as_secs_f64());
            break;
        }
        took = Err(line);
    }
    // What it would go on to write is of no use to anybody.
    let _ = child.kill();
    let _ = child.wait();
    took.map_err(|last| {
        Error::machine(
            format!("the tiny model's run ended before its first step: {last}"),
            "please report this with the output of `ltx devices`",
        )
    })
}
