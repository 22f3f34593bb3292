//! `ltx enhance`, and `ltx generate --enhance-prompt`.

use ltx::checkpoint::Residency;
use ltx::pipeline::{Limits, Request, fit_writer};
use ltx::progress::{Event, Progress};
use ltx::text::{GemmaFolder, Sampling, Scene, enhance};
use ltx::{Error, Result};
use mlx::Dtype;

use crate::args::Enhance;
use crate::terminal::{Terminal, say, sayln};

pub fn run(arguments: &Enhance) -> Result<()> {
    let scene = if arguments.with_image { Scene::Image } else { Scene::Text };
    if arguments.show_instructions {
        println!("{}", scene.instructions());
        return Ok(());
    }
    if arguments.prompt.trim().is_empty() {
        return Err(Error::request("the prompt is empty", "say what the clip shows"));
    }
    if !(0.0..=10.0).contains(&arguments.temperature) {
        return Err(Error::request(
            format!("a temperature of {}", arguments.temperature),
            "give a number from 0 to 10, such as 0.7",
        ));
    }
    crate::choose_device(arguments.device)?;
    let sampling = Sampling {
        temperature: arguments.temperature,
        max_tokens: arguments.max_tokens,
        ..Sampling::enhancement(arguments.seed)
    };
    let folder = GemmaFolder::open(&crate::models::needed_gemma(arguments.gemma.as_deref())?)?
        .packed_as(arguments.quantize.packing());
    let mut terminal = Terminal::new(arguments.quiet);
    let dtype = crate::dtype(arguments.dtype);
    let residency = crate::generate::residency(arguments.stream);
    let limits = crate::plan::limits(arguments.memory, arguments.stream, None);
    let folder = fitting(folder, dtype, residency, &limits, &mut terminal)?;
    let text = enhance(&folder, dtype, &arguments.prompt, scene, &sampling, &mut terminal)?;
    terminal.finish();
    println!("{text}");
    Ok(())
}

/// The folder, its layers kept as the memory allows, which is said.
fn fitting(
    folder: GemmaFolder,
    dtype: Dtype,
    residency: Residency,
    limits: &Limits,
    terminal: &mut Terminal,
) -> Result<GemmaFolder> {
    let (residency, why) = fit_writer(&folder, dtype, residency, limits)?;
    if let Some(note) = why {
        // Whether to stop is asked at every step.
        let _ = terminal.event(Event::Note(note));
    }
    Ok(folder.kept(residency))
}

/// Replaces the prompt of a request that was checked by what Gemma makes of it, and shows it.
pub fn replace_prompt(request: &mut Request, limits: &Limits, terminal: &mut Terminal) -> Result<()> {
    let (Some(prompt), Some(gemma)) = (&request.prompt, &request.gemma) else {
        return Err(Error::request("--enhance-prompt needs a prompt and --gemma", "give both"));
    };
    let sampling = Sampling::enhancement(request.seed);
    let folder = GemmaFolder::open(gemma)?.packed_as(request.quantize);
    let folder = fitting(folder, request.dtype, request.residency, limits, terminal)?;
    let scene = if request.images.is_empty() { Scene::Text } else { Scene::Image };
    let text = enhance(&folder, request.dtype, prompt, scene, &sampling, terminal)?;
    sayln!("prompt: {text}");
    request.prompt = Some(text);
    Ok(())
}
