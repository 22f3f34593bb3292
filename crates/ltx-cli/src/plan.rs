//! `ltx plan`: what a run would take; and what `ltx generate` and `ltx decode` say of it.

use std::path::{Path, PathBuf};

use ltx::pipeline::{Forecast, Limits, Plan, Request, Speed, choose_packing};
use ltx::progress::{Event, Progress};
use ltx::video_vae::Tiling;
use ltx::{Error, Result};
use serde_json::{Value, json};

use crate::args::{Generate, Memory, Wish};
use crate::terminal::{Terminal, about, gib};

/// Prints the table of phases.
pub fn run(arguments: &Generate) -> Result<()> {
    if arguments.resume || arguments.enhance_prompt {
        let problem = "a plan runs nothing: neither --resume nor --enhance-prompt has any use";
        return Err(Error::request(problem, "leave it out"));
    }
    crate::choose_device(arguments.device)?;
    let (mut request, _) = crate::generate::request(arguments)?;
    let mut notes = packing(arguments, &mut request, None)?;
    let mut plan = Plan::new(&request)?;
    let limits = limits(arguments.memory, arguments.stream, arguments.tiles.tiling());
    notes.extend(plan.fit(&limits)?);
    let forecast = plan.forecast(limits.base)?;
    let speed = speed(&request, !arguments.no_cache);
    if arguments.json {
        println!("{}", describe(&plan, &forecast, &limits, speed.as_ref(), &notes));
        return Ok(());
    }
    let width = forecast.phases.iter().map(|phase| phase.name.len()).max().unwrap_or(0);
    let kept = forecast.phases.iter().map(|phase| phase.kept.chars().count()).max().unwrap_or(0);
    for phase in &forecast.phases {
        let time = speed.map_or_else(String::new, |speed| about(speed.seconds(&phase.cost)));
        let memory = gib(forecast.of(phase));
        println!("{:width$}  {:kept$}  {memory:>9}  {time}", phase.name, phase.kept);
    }
    for note in &notes {
        println!("{note}");
    }
    println!("{}", line(&forecast, speed.as_ref()));
    if let Some(most) = limits.most {
        println!("there are {} ({:.1} GB) of memory for it", gib(most), most as f64 / 1e9);
    }
    Ok(())
}

/// The whole in one line.
pub fn line(forecast: &Forecast, speed: Option<&Speed>) -> String {
    let (phase, peak) = forecast.peak();
    let time =
        speed.map_or_else(String::new, |speed| format!(", and about {}", about(forecast.seconds(speed))));
    format!("it takes about {} of memory (to {phase}){time}", gib(peak))
}

fn describe(
    plan: &Plan,
    forecast: &Forecast,
    limits: &Limits,
    speed: Option<&Speed>,
    notes: &[String],
) -> Value {
    let phases = forecast.phases.iter().map(|phase| {
        json!({
            "name": phase.name, "kept": phase.kept, "memory_bytes": forecast.of(phase),
            "weight_bytes": phase.weights, "work_bytes": phase.work,
            "seconds": speed.map(|speed| speed.seconds(&phase.cost)),
        })
    });
    json!({
        "phases": phases.collect::<Vec<_>>(), "peak_memory_bytes": forecast.peak().1, "phase": forecast.peak().0,
        "available_bytes": limits.most, "seconds": speed.map(|speed| forecast.seconds(speed)), "choices": notes,
        "settings": plan.settings(),
    })
}

/// What a run may take.
pub fn limits(memory: Memory, fixed_residency: bool, tiling: Option<Tiling>) -> Limits {
    Limits {
        base: crate::memory::resident(),
        most: memory.memory.or_else(free),
        fixed_residency,
        fixed_tiling: tiling.is_some(),
    }
}

/// What there is, where the device's memory is the machine's own.
fn free() -> Option<u64> {
    let own = cfg!(target_os = "macos") || mlx::device::current() == mlx::device::Device::Cpu;
    own.then(crate::memory::most).flatten()
}

/// Decides on the packing where that was left open: as an interrupted run has, or by what fits.
pub fn packing(arguments: &Generate, request: &mut Request, begun: Option<&Value>) -> Result<Vec<String>> {
    match (arguments.quantize, begun) {
        (Wish::As(choice), _) => request.quantize = choice.packing(),
        (Wish::Auto, Some(bits)) => {
            let affine = |bits| ltx::nn::Packing::Affine { bits, group: 64 };
            request.quantize = bits.as_u64().map(|bits| affine(bits as usize));
        }
        (Wish::Auto, None) => {
            let limits = || limits(arguments.memory, false, None);
            return Ok(choose_packing(request, limits)?.into_iter().collect());
        }
    }
    Ok(Vec::new())
}

/// Says what was chosen, and what the run will take.
pub fn say(notes: Vec<String>, forecast: &Forecast, speed: Option<&Speed>, terminal: &mut Terminal) {
    for note in notes.into_iter().chain([line(forecast, speed)]) {
        // Whether to stop is asked at every step.
        let _ = terminal.event(Event::Note(note));
    }
}

/// How fast this machine is: from the cache, or tried. Nothing where trying fails, which is no reason not to run.
pub fn speed(request: &Request, cached: bool) -> Option<Speed> {
    let place = crate::cache::folder().filter(|_| cached).map(|folder| folder.join("speed.json"));
    let key = key(request);
    let mut known = place.as_deref().map_or_else(|| json!({}), read);
    if let Some(speed) = known.get(&key).and_then(Speed::from_json) {
        return Some(speed);
    }
    let file = request.models.first().and_then(|path| largest(path));
    let speed = Speed::measure(request.dtype, file.as_deref()).ok()?;
    if let Some((place, known)) = place.zip(known.as_object_mut()) {
        known.insert(key, speed.to_json());
        // Without it the next run tries again.
        drop(crate::cache::write(&place, Value::Object(known.clone()).to_string().as_bytes()));
    }
    Some(speed)
}

/// What a measured speed holds for.
fn key(request: &Request) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!(
        "{}, {} {:?}, {} threads of {}, {}",
        name.trim(),
        env!("CARGO_PKG_VERSION"),
        mlx::device::current(),
        ltx::nn::cpu::threads(),
        if ltx::nn::cpu::active() { ltx::nn::cpu::isa() } else { "mlx" },
        request.dtype
    )
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// A file, or the largest in a folder.
fn largest(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return Some(path.into());
    }
    let files = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    files.max_by_key(|path| path.metadata().map_or(0, |facts| facts.len()))
}

/// What is kept with a run, so that going on with it gives the same clip whatever memory there is then.
pub fn keep(note: &mut Value, plan: &Plan) {
    let Tiling { spatial, temporal } = plan.choices().tiling;
    note["tiling"] = json!([spatial, temporal]);
    note["bits"] = json!(plan.request().quantize.map(|packing| packing.bits()));
}

/// The tiling that an interrupted run was to have.
pub fn kept_tiling(note: &Value) -> Option<Tiling> {
    let pair = |value: &Value| {
        let number = |index| i32::try_from(value.get(index)?.as_i64()?).ok();
        number(0).zip(number(1))
    };
    let [spatial, temporal] = note.get("tiling")?.as_array()?.as_slice() else { return None };
    Some(Tiling { spatial: pair(spatial), temporal: pair(temporal) })
}
