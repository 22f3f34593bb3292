//! `ltx generate`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ltx::checkpoint::Residency;
use ltx::diffusion::step::Sampler;
use ltx::media::{Encoder, FrameRate, Options, Writer};
use ltx::pipeline::{
    Clip, GuidanceOverride, LatentFile, Plan, Recipe, Request, SavedRun, UnreadPolicy, frames_of,
};
use ltx::progress::{Event, Progress};
use ltx::video_vae::Tiling;
use ltx::{Error, Result};
use serde_json::json;

use crate::args::{EncoderChoice, Generate, RecipeChoice, SamplerChoice};
use crate::terminal::{Terminal, gib, seconds};
use crate::toy::{self, Toy};

/// Frames made at once, unless others are asked for: the official pipelines' own number.
const WINDOW: usize = 121;

pub fn run(arguments: &Generate) -> Result<()> {
    let started = Instant::now();
    crate::choose_device(arguments.device)?;
    let (mut request, toy) = request(arguments)?;
    let length = arguments.seconds.or_else(|| arguments.shots.seconds()).map(|seconds| {
        format!("{seconds} seconds at {} frames per second: {} frames", request.frame_rate, request.frames)
    });
    let mut terminal = Terminal::new(arguments.quiet);
    let note = crate::resume::note(request.prompt.as_deref());
    let saved =
        if arguments.resume { Some(crate::resume::open(&arguments.output, &mut terminal)?) } else { None };
    let enhanced = saved.as_ref().and_then(|saved| crate::resume::enhanced(saved, &note));
    let begun = saved.as_ref().and_then(SavedRun::note);
    let mut chosen = crate::plan::packing(arguments, &mut request, begun.and_then(|note| note.get("bits")))?;
    if let Some(tiling) = begun.and_then(crate::plan::kept_tiling) {
        request.tiling = arguments.tiles.tiling().unwrap_or(tiling);
    }
    let limits = || crate::plan::limits(arguments.memory, arguments.stream, arguments.tiles.tiling());
    if let Some(prompt) = enhanced.filter(|_| arguments.enhance_prompt) {
        request.prompt = Some(prompt);
    } else if arguments.enhance_prompt {
        // Nothing is written for a clip that cannot be made.
        let plan = Plan::new(&request)?;
        check_output(&arguments.output, request.frames, plan.has_sound())?;
        crate::enhance::replace_prompt(&mut request, &limits(), &mut terminal)?;
    }
    // Everything that can be wrong is found here, before any weight is read: the request, the files' headers, and the
    // place to write to.
    let mut plan = match saved {
        Some(saved) => Plan::resume(&request, saved, note.clone())?,
        None => Plan::new(&request)?,
    };
    let limits = limits();
    chosen.extend(plan.fit(&limits)?);
    let forecast = plan.forecast(limits.base)?;
    let speed = if arguments.no_cache || arguments.quiet { None } else { crate::plan::speed(&request, true) };
    let options = Options {
        width: plan.width() as u32,
        height: plan.height() as u32,
        rate: FrameRate::from_fps(request.frame_rate)?,
        encoder: encoder(arguments.encoder),
        settings: plan.settings().to_string(),
    };
    check_output(&arguments.output, request.frames, plan.has_sound())?;
    let writer = Writer::create(&arguments.output, &options)?;
    if let Some(path) = &arguments.save_latents {
        ltx::pipeline::check_latents_path(path)?;
    }
    for note in toy.iter().flat_map(|toy| toy.notes(&request)).chain(length) {
        // Whether to stop is asked at every step.
        let _ = terminal.event(Event::Note(note));
    }
    crate::plan::say(chosen, &forecast, speed.as_ref(), &mut terminal);
    if plan.saved().is_none() {
        let mut note = note;
        crate::plan::keep(&mut note, &plan);
        plan.save_in(crate::resume::create(&arguments.output, &mut terminal)?, note);
    }
    let done = if arguments.skip_vae {
        drop(writer);
        skip_vae(arguments, &plan, terminal, (started, forecast.peak().1))
    } else {
        clip(arguments, &plan, writer, terminal, (started, forecast.peak().1))
    };
    match (&done, plan.saved()) {
        (Ok(()), Some(saved)) => saved.remove(),
        (Err(_), Some(saved)) => crate::resume::say_how(saved),
        _ => {}
    }
    done
}

/// Writes a clip.
fn clip(
    arguments: &Generate,
    plan: &Plan,
    writer: Writer,
    mut terminal: Terminal,
    (started, forecast): (Instant, u64),
) -> Result<()> {
    let clip = plan.run(&mut terminal)?;
    if let Some(path) = &arguments.save_latents {
        clip.latents.save(path)?;
    }
    let request = plan.request();
    write(&clip, writer, request.frames, &mut terminal)?;
    let summary = Summary {
        output: &arguments.output,
        what: format!("{} frames of {}x{}", request.frames, plan.width(), plan.height()),
        disclaimer: request.disclaimer(),
        settings: plan.settings(),
        timings: terminal.finish(),
        started,
        forecast,
    };
    summary.print(Printing { json: arguments.json, timings: arguments.timings, quiet: arguments.quiet });
    Ok(())
}

/// Writes latents and a picture of them in the place of a clip.
fn skip_vae(
    arguments: &Generate,
    plan: &Plan,
    mut terminal: Terminal,
    (started, forecast): (Instant, u64),
) -> Result<()> {
    let [latents, picture] = LatentFile::paths(&arguments.output);
    for path in [&latents, &picture] {
        ltx::pipeline::check_latents_path(path)?;
    }
    let file = plan.latents(&arguments.output, &mut terminal)?;
    if let Some(path) = &arguments.save_latents {
        file.latents.save(path)?;
    }
    let mut settings = plan.settings();
    settings["disclaimer"] = json!(match settings["disclaimer"].as_str() {
        Some(other) => format!("a picture of latents, not a frame (--skip-vae); {other}"),
        None => "a picture of latents, not a frame (--skip-vae)".into(),
    });
    let frame = file.picture()?;
    let options = Options {
        width: frame.width,
        height: frame.height,
        rate: FrameRate::from_fps(file.frame_rate)?,
        encoder: Encoder::BuiltIn,
        settings: settings.to_string(),
    };
    let mut writer = Writer::create(&picture, &options)?;
    writer.push(&frame)?;
    file.save(&latents)?;
    writer.finish()?;
    let summary = Summary {
        output: &latents,
        what: format!(
            "latents, not a clip; make it with: ltx decode {}; their picture is {}",
            latents.display(),
            picture.display()
        ),
        disclaimer: settings["disclaimer"].as_str(),
        settings: settings.clone(),
        timings: terminal.finish(),
        started,
        forecast,
    };
    summary.print(Printing { json: arguments.json, timings: arguments.timings, quiet: arguments.quiet });
    Ok(())
}

/// Decodes a clip into a writer, its frames and then its sound, and finishes it.
pub fn write(clip: &Clip, mut writer: Writer, frames: usize, terminal: &mut Terminal) -> Result<()> {
    fn step(terminal: &mut Terminal, event: Event) -> Result<()> {
        if terminal.event(event).is_break() { Err(Error::Cancelled) } else { Ok(()) }
    }
    if writer.wants_frames() {
        step(terminal, Event::Phase { name: "decode video".into(), steps: frames })?;
        for (index, frame) in clip.frames(terminal)?.enumerate() {
            writer.push(&frame?)?;
            step(terminal, Event::Step { done: index + 1, of: frames })?;
        }
    }
    if writer.wants_sound() && clip.latents.audio.is_some() {
        step(terminal, Event::Phase { name: "decode audio".into(), steps: 0 })?;
        if let Some(mut sound) = clip.sound(terminal)? {
            while let Some(part) = sound.next() {
                writer.push_sound(&part?)?;
                let (done, of) = sound.progress();
                step(terminal, Event::Step { done, of })?;
            }
        }
    }
    Ok(writer.finish()?)
}

/// What is said at the end.
pub struct Summary<'a> {
    pub output: &'a Path,
    pub what: String,
    /// Why it is no result of the model, if it is none.
    pub disclaimer: Option<&'a str>,
    pub settings: serde_json::Value,
    pub timings: Vec<(String, Duration)>,
    pub started: Instant,
    /// The peak of memory that was foretold, in bytes.
    pub forecast: u64,
}

/// How it is said.
#[derive(Clone, Copy)]
pub struct Printing {
    pub json: bool,
    pub timings: bool,
    pub quiet: bool,
}

impl Summary<'_> {
    /// Prints it to stdout.
    pub fn print(self, Printing { json: as_json, timings: with_timings, quiet }: Printing) {
        let Self { output, what, disclaimer, settings, timings, started, forecast } = self;
        let output = output.display().to_string();
        if as_json {
            let timings: serde_json::Map<_, _> =
                timings.iter().map(|(name, took)| (name.clone(), json!(took.as_secs_f64()))).collect();
            println!(
                "{}",
                json!({
                    "output": output, "seconds": started.elapsed().as_secs_f64(), "timings": timings,
                    "peak_memory_bytes": crate::memory::peak(), "forecast_memory_bytes": forecast, "settings": settings,
                })
            );
            return;
        }
        if with_timings {
            let width = timings.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
            for (name, took) in &timings {
                println!("{name:width$}  {}", seconds(*took));
            }
            let peak = crate::memory::peak().map_or_else(|| "unknown".into(), gib);
            println!("peak memory {peak}, forecast {}", gib(forecast));
        }
        if !quiet {
            println!("{output}: {what} in {}", seconds(started.elapsed()));
            if let Some(disclaimer) = disclaimer {
                println!("{output}: {disclaimer}");
            }
        }
    }
}

pub fn encoder(choice: EncoderChoice) -> Encoder {
    match choice {
        EncoderChoice::Builtin => Encoder::BuiltIn,
        EncoderChoice::Ffmpeg => Encoder::Ffmpeg,
    }
}

pub fn residency(stream: bool) -> Residency {
    if stream { Residency::STREAMING } else { Residency::Resident }
}

pub fn unread(allow: bool, strict: bool) -> UnreadPolicy {
    match (allow, strict) {
        (true, _) => UnreadPolicy::Allow,
        (false, true) => UnreadPolicy::Strict,
        (false, false) => UnreadPolicy::Component,
    }
}

/// What the kind of output cannot hold, known before any work.
pub fn check_output(output: &Path, frames: usize, sound: bool) -> Result<()> {
    let folder = output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let ending = output.extension().filter(|_| !folder).map(|ending| ending.to_ascii_lowercase());
    match ending.as_ref().and_then(|ending| ending.to_str()) {
        Some("png") if frames != 1 => Err(Error::request(
            format!("a PNG holds one frame, not {frames}"),
            "make a clip of 1 frame, or end --output in .mp4, or in / for a folder of frames",
        )),
        Some("wav") if !sound => Err(Error::request(
            "a WAV of a silent clip",
            "leave out --no-audio, use an embedding with sound, or write another kind of file",
        )),
        _ => Ok(()),
    }
}

/// What was asked for, and the built-in model if that is to make it.
pub fn request(arguments: &Generate) -> Result<(Request, Option<Toy>)> {
    let guidance = &arguments.guidance;
    let video_guidance = GuidanceOverride {
        cfg: guidance.cfg,
        stg: guidance.stg_scale,
        stg_blocks: guidance.stg_blocks.clone(),
        rescale: guidance.rescale,
        modality: guidance.modality_scale,
        skip: guidance.guidance_skip,
    };
    let audio_guidance = GuidanceOverride {
        cfg: guidance.audio_cfg,
        stg: guidance.audio_stg_scale,
        stg_blocks: guidance.audio_stg_blocks.clone(),
        rescale: guidance.audio_rescale,
        modality: guidance.audio_modality_scale,
        skip: guidance.audio_guidance_skip,
    };
    let (distilled_lora, strength) = distilled(&arguments.loras.distilled_lora)?;
    let strengths = &arguments.loras;
    let files = crate::models::files(arguments, distilled_lora)?;
    let toy = files.toy.is_some();
    let (width, frames) = if toy { toy::SIZE } else { (704, 97) };
    if let Some(seconds) = arguments.seconds.filter(|seconds| seconds.is_nan() || *seconds <= 0.0) {
        return Err(Error::request(
            format!("a clip of {seconds} seconds"),
            "give a number above 0, such as 5",
        ));
    }
    let seconds = arguments.seconds.or_else(|| arguments.shots.seconds());
    let frames = seconds.map_or(frames, |seconds| frames_of(seconds, arguments.frame_rate));
    let mut request = Request {
        prompt: arguments.prompt.clone().or_else(|| arguments.prompt_option.clone()),
        shots: arguments.shots.0.clone(),
        negative_prompt: arguments.negative_prompt.clone(),
        models: files.models,
        gemma: files.gemma,
        spatial_upsampler: files.spatial_upsampler,
        loras: crate::lora::given(&arguments.loras.lora)?,
        distilled_lora: files.distilled_lora,
        distilled_strengths: [
            strengths.distilled_lora_strength_stage_1,
            strengths.distilled_lora_strength_stage_2.or(strength),
        ],
        images: arguments.images.0.clone(),
        recipe: arguments.recipe.map(|recipe| match recipe {
            RecipeChoice::Distilled => Recipe::Distilled,
            RecipeChoice::OneStage => Recipe::OneStage,
            RecipeChoice::TwoStage => Recipe::TwoStage,
            RecipeChoice::Keyframes => Recipe::Keyframes,
            RecipeChoice::TwoStageHq => Recipe::TwoStageHq,
        }),
        sampler: arguments.sampler.map(sampler).transpose()?,
        height: arguments.height,
        width: arguments.width.unwrap_or(width),
        frames: arguments.frames.unwrap_or(frames),
        window: arguments.window.unwrap_or(if toy { toy::SIZE.1 } else { WINDOW }),
        overlap: arguments.overlap,
        frame_rate: arguments.frame_rate,
        steps: arguments.steps,
        seed: arguments.seed,
        video_guidance,
        audio_guidance,
        audio: !arguments.no_audio,
        embedding: arguments.embedding.clone(),
        noise: arguments.noise.clone(),
        dtype: crate::dtype(arguments.dtype),
        cache: (!arguments.no_cache).then(crate::cache::open).flatten(),
        dummy_text: arguments.dummy_text,
        placeholder: arguments.placeholder,
        skip_vae: arguments.skip_vae,
        force_guidance: arguments.guidance.force_guidance,
        quantize: None, // decided when it is known what fits
        unread: unread(arguments.allow_unread, arguments.strict),
        residency: residency(arguments.stream),
        tiling: arguments.tiles.tiling().unwrap_or(Tiling::auto()),
    };
    if toy {
        toy::suit(&mut request);
    }
    Ok((request, files.toy))
}

/// The distilled LoRA and its strength, if either was given.
fn distilled(values: &[String]) -> Result<(Option<PathBuf>, Option<f32>)> {
    let mut loras = crate::lora::given(values)?;
    if loras.len() > 1 {
        return Err(Error::request("more than one --distilled-lora", "give one; others go to --lora"));
    }
    Ok(match loras.pop() {
        None => (None, None),
        Some((path, strength)) => (Some(path), (values.len() > 1).then_some(strength)),
    })
}

fn sampler(choice: SamplerChoice) -> Result<Sampler> {
    match choice {
        SamplerChoice::Euler => "euler",
        SamplerChoice::EulerAncestral => "euler_ancestral",
        SamplerChoice::GradientEstimation => "gradient_estimation",
        SamplerChoice::Res2s => "res_2s",
    }
    .parse()
}
