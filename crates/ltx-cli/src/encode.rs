//! `ltx encode-text`

use std::time::Instant;

use ltx::Result;
use ltx::pipeline::{TextPlan, TextRequest, check_latents_path};
use ltx::progress::{Event, Progress};

use crate::args::EncodeText;
use crate::terminal::{Terminal, seconds};

pub fn run(arguments: &EncodeText) -> Result<()> {
    let started = Instant::now();
    crate::choose_device(arguments.device)?;
    let request = TextRequest {
        prompt: arguments.prompt.clone(),
        negative_prompt: arguments.negative_prompt.clone(),
        models: crate::models::models(&arguments.model)?,
        gemma: crate::models::needed_gemma(arguments.gemma.as_deref())?,
        output: arguments.output.clone(),
        max_tokens: arguments.max_tokens,
        dtype: crate::dtype(arguments.dtype),
        quantize: arguments.quantize.packing(),
        residency: crate::generate::residency(arguments.stream),
        unread: crate::generate::unread(arguments.allow_unread, false),
        cache: (!arguments.no_cache).then(crate::cache::open).flatten(),
    };
    let mut plan = TextPlan::new(&request)?;
    check_latents_path(&request.output)?;
    let mut terminal = Terminal::new(arguments.quiet);
    let limits = crate::plan::limits(arguments.memory, arguments.stream, None);
    if let Some(note) = plan.fit(&limits)? {
        // Whether to stop is asked at every step.
        let _ = terminal.event(Event::Note(note));
    }
    let embedding = plan.run(&mut terminal)?;
    embedding.save(&request.output)?;
    terminal.finish();
    if !arguments.quiet {
        let sound = if ltx::text::is_npz(&request.output) {
            "the video's context"
        } else {
            "video and audio contexts"
        };
        let negative = if embedding.negative.is_some() { ", with a negative prompt" } else { "" };
        println!(
            "{}: {sound} of {} tokens{negative} in {}",
            request.output.display(),
            embedding.positive.video.dim(1),
            seconds(started.elapsed())
        );
    }
    Ok(())
}
