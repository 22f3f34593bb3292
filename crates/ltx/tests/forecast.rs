//! What is foretold of a run's memory against what MLX counts while it runs: the peak of one program, so that everything is
//! measured in one test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ltx::checkpoint::Residency;
use ltx::pipeline::{GuidanceOverride, ImageCondition, ImageSource, Plan, Recipe, Request};
use ltx::progress::{Event, Progress};
use ltx::video_vae::Tiling;
use mlx::Dtype;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn request(generation: &str, recipe: Recipe, [width, height, frames]: [usize; 3]) -> Request {
    let upsampler = fixtures().join(format!("upsamplers/{generation}-spatial-x2.safetensors"));
    let guidance = GuidanceOverride { stg_blocks: Some(vec![1]), ..GuidanceOverride::default() };
    Request {
        // About 700 tokens.
        prompt: Some("a boat on a lake, and the sound of its oars. ".repeat(40)),
        models: vec![fixtures().join(generation).join("model.safetensors")],
        gemma: Some(fixtures().join("gemma3")),
        spatial_upsampler: Some(upsampler),
        recipe: Some(recipe),
        height: Some(height),
        width,
        frames,
        steps: Some(1),
        video_guidance: if recipe == Recipe::OneStage { guidance } else { GuidanceOverride::default() },
        ..Request::default()
    }
}

/// The most that MLX holds in each phase, by the phase's name.
#[derive(Default)]
struct Peaks {
    phase: String,
    peaks: BTreeMap<String, u64>,
}

impl Peaks {
    fn end(&mut self) {
        let peak = self.peaks.entry(std::mem::take(&mut self.phase)).or_default();
        *peak = (*peak).max(mlx::memory::peak() as u64);
        mlx::memory::reset_peak();
    }
}

impl Progress for Peaks {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        if let Event::Phase { name, .. } = event {
            self.end();
            self.phase = name;
        }
        ControlFlow::Continue(())
    }
}

/// What is wrong, if anything is.
fn compare(what: &str, request: &Request, phases: &[&str]) -> Vec<String> {
    let plan = Plan::new(request).unwrap();
    let forecast = plan.forecast(0).unwrap();
    let mut peaks = Peaks::default();
    mlx::memory::clear_cache().unwrap();
    mlx::memory::reset_peak();
    let clip = plan.run(&mut peaks).unwrap();
    let _ = peaks.event(Event::Phase { name: "decode video".into(), steps: 0 });
    clip.frames(&mut peaks).unwrap().for_each(|frame| drop(frame.unwrap()));
    let _ = peaks.event(Event::Phase { name: "decode audio".into(), steps: 0 });
    clip.sound(&mut peaks).unwrap().into_iter().flatten().for_each(|part| drop(part.unwrap()));
    peaks.end();
    let mut wrong = Vec::new();
    for &name in phases {
        let phase = forecast.phases.iter().find(|phase| phase.name == name).unwrap();
        let (told, peak) = (phase.work + phase.weights, peaks.peaks[name]);
        let words =
            format!("{what}, {name}: told {told} bytes, was {peak}: {:.2}", told as f64 / peak as f64);
        println!("{words}");
        // Weights of a few hundred kilobytes are mapped, and MLX does not count those. A decoder as narrow as these holds less
        // than is counted, one of full width as much.
        let decodes = ["decode video", "join windows"].contains(&name);
        let most = if decodes { peak * 5 / 2 } else { peak * 8 / 5 };
        if peak > told + told / 20 || told > most + (1 << 20) {
            wrong.push(words);
        }
    }
    wrong
}

#[test]
fn what_is_foretold_happens() {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let mut wrong = Vec::new();
    let two = ["encode text", "denoise at half size", "upsample", "refine", "decode audio", "decode video"];
    let one = ["encode text", "denoise", "decode audio", "decode video"];
    wrong.extend(compare("2.0 in two stages", &request("2.0", Recipe::Distilled, [320, 192, 49]), &two));
    wrong.extend(compare("2.3 in two stages", &request("2.3", Recipe::Distilled, [448, 320, 25]), &two));
    let guided = request("2.3", Recipe::OneStage, [224, 160, 33]);
    wrong.extend(compare("guided", &guided, &one));
    let streamed = Request { residency: Residency::STREAMING, ..guided.clone() };
    wrong.extend(compare("guided and streamed", &streamed, &one));
    wrong.extend(compare("in f32", &Request { dtype: Dtype::F32, ..guided.clone() }, &one));
    let source = ImageSource::File(fixtures().join("images/first.png"));
    let image = ImageCondition { source, frame: 0, strength: 1.0, crf: Some(0) };
    let shown = Request { images: vec![image], width: 640, height: Some(448), frames: 17, ..guided.clone() };
    wrong.extend(compare("with a picture", &shown, &["encode images", "denoise", "decode video"]));
    let tiled = Request { tiling: Tiling::cut(192, 24), ..shown };
    wrong.extend(compare("in tiles", &tiled, &["decode video"]));
    let long = Request { window: 33, overlap: Some(17), frames: 73, ..guided };
    wrong.extend(compare("in windows", &long, &["join windows", "denoise", "decode audio", "decode video"]));
    assert!(wrong.is_empty(), "{wrong:#?}");
}
