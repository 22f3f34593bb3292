//! `ltx generate`

use std::path::PathBuf;
use std::time::Instant;

use ltx::diffusion::step::Sampler;
use ltx::media::{Encoder, FrameRate, Options, Writer};
use ltx::pipeline::{GuidanceOverride, Plan, Recipe, Request, UnreadPolicy};
use ltx::progress::{Event, Progress};
use ltx::{Error, Result};
use serde_json::json;

use crate::args::{EncoderChoice, Generate, RecipeChoice, SamplerChoice};
use crate::terminal::{Terminal, peak_memory, seconds};

pub fn run(arguments: &Generate) -> Result<()> {
    let started = Instant::now();
    crate::choose_device(arguments.device)?;
    let mut request = request(arguments)?;
    let mut terminal = Terminal::new(arguments.quiet);
    if arguments.enhance_prompt {
        // Nothing is written for a clip that cannot be made.
        Plan::new(&request)?;
        check_output(arguments)?;
        crate::enhance::replace_prompt(&mut request, &mut terminal)?;
    }
    // Everything that can be wrong is found here, before any weight is read: the request, the files' headers, and the
    // place to write to.
    let plan = Plan::new(&request)?;
    let settings = plan.settings().to_string();
    let options = Options {
        width: plan.width() as u32,
        height: plan.height() as u32,
        rate: FrameRate::from_fps(request.frame_rate)?,
        encoder: match arguments.encoder {
            EncoderChoice::Builtin => Encoder::BuiltIn,
            EncoderChoice::Ffmpeg => Encoder::Ffmpeg,
        },
        settings,
    };
    check_output(arguments)?;
    let mut writer = Writer::create(&arguments.output, &options)?;
    if let Some(path) = &arguments.save_latents {
        ltx::pipeline::check_latents_path(path)?;
    }

    let clip = plan.run(&mut terminal)?;
    if let Some(path) = &arguments.save_latents {
        clip.latents.save(path)?;
    }
    let phase = Event::Phase { name: "decode video".into(), steps: request.frames };
    let mut stop = terminal.event(phase).is_break();
    if writer.wants_frames() {
        for (index, frame) in clip.frames.enumerate() {
            writer.push(&frame?)?;
            stop |= terminal.event(Event::Step { done: index + 1, of: request.frames }).is_break();
            if stop {
                return Err(Error::Cancelled);
            }
        }
    }
    writer.finish(clip.audio.as_ref())?;
    let timings = terminal.finish();

    let output = arguments.output.display().to_string();
    if arguments.json {
        let timings: serde_json::Map<_, _> =
            timings.iter().map(|(name, took)| (name.clone(), json!(took.as_secs_f64()))).collect();
        println!(
            "{}",
            json!({
                "output": output, "seconds": started.elapsed().as_secs_f64(), "timings": timings,
                "peak_memory_bytes": peak_memory(), "settings": plan.settings(),
            })
        );
        return Ok(());
    }
    if arguments.timings {
        let width = timings.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, took) in &timings {
            println!("{name:width$}  {}", seconds(*took));
        }
    }
    if !arguments.quiet {
        println!(
            "{output}: {} frames of {}x{} in {}",
            request.frames,
            plan.width(),
            plan.height(),
            seconds(started.elapsed())
        );
    }
    Ok(())
}

/// What the kind of output cannot hold, known before any work.
fn check_output(arguments: &Generate) -> Result<()> {
    let ending = arguments.output.extension().map(|ending| ending.to_ascii_lowercase());
    match ending.as_ref().and_then(|ending| ending.to_str()) {
        Some("png") if arguments.frames != 1 => Err(Error::request(
            format!("a PNG holds one frame, not {}", arguments.frames),
            "add --frames 1, or end --output in / for a folder of frames",
        )),
        Some("wav") if arguments.no_audio => Err(Error::request(
            "a WAV of a silent clip",
            "leave out --no-audio, or write another kind of file",
        )),
        _ => Ok(()),
    }
}

fn request(arguments: &Generate) -> Result<Request> {
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
    Ok(Request {
        prompt: arguments.prompt.clone().or_else(|| arguments.prompt_option.clone()),
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
        width: arguments.width,
        frames: arguments.frames,
        frame_rate: arguments.frame_rate,
        steps: arguments.steps,
        seed: arguments.seed,
        video_guidance,
        audio_guidance,
        audio: !arguments.no_audio,
        embedding: arguments.embedding.clone(),
        noise: arguments.noise.clone(),
        dtype: crate::dtype(arguments.dtype),
        unread: match (arguments.allow_unread, arguments.strict) {
            (true, _) => UnreadPolicy::Allow,
            (false, true) => UnreadPolicy::Strict,
            (false, false) => UnreadPolicy::Component,
        },
    })
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
