//! `ltx decode`

use std::path::{Path, PathBuf};
use std::time::Instant;

use ltx::media::{FrameRate, Options, Writer};
use ltx::pipeline::{Decoding, LatentFile, SavedRun};
use ltx::video_vae::Tiling;
use ltx::{Error, Result};

use crate::args::Decode;
use crate::generate::{Printing, Summary, check_output, encoder, unread, write};
use crate::terminal::Terminal;

pub fn run(arguments: &Decode) -> Result<()> {
    let started = Instant::now();
    crate::choose_device(arguments.device)?;
    let run = if arguments.file.is_dir() { Some(SavedRun::open(&arguments.file)?) } else { None };
    let file = match &run {
        Some(run) => LatentFile::open(&run.latents_path().ok_or_else(|| {
            let problem = format!("the run in {} has no latents yet", run.path().display());
            Error::request(problem, format!("go on with it: ltx resume {}", run.output().display()))
        })?)?,
        None => LatentFile::open(&arguments.file)?,
    };
    let output = arguments.output.clone().unwrap_or_else(|| beside(&arguments.file, file.output.as_deref()));
    let dtype = arguments.dtype.map(crate::dtype);
    let known = arguments.model.is_empty() && !file.models.is_empty();
    let models = if known { Vec::new() } else { crate::models::models(&arguments.model)? };
    let decoding = Decoding::new(file, &models, dtype, unread(false, arguments.strict))?;
    let file = decoding.file();
    let video = file.video();
    let options = Options {
        width: video.width as u32,
        height: video.height as u32,
        rate: FrameRate::from_fps(arguments.frame_rate.unwrap_or(file.frame_rate))?,
        encoder: encoder(arguments.encoder),
        settings: file.settings.to_string(),
    };
    check_output(&output, video.frames, file.latents.audio.is_some())?;
    let writer = Writer::create(&output, &options)?;
    let mut terminal = Terminal::new(arguments.quiet);
    let asked = arguments.tiles.tiling();
    let begun = run.as_ref().and_then(SavedRun::note).and_then(crate::plan::kept_tiling);
    let limits = crate::plan::limits(arguments.memory, false, asked);
    let (tiling, chosen, forecast) = decoding.fit(asked.or(begun).unwrap_or(Tiling::auto()), &limits)?;
    crate::plan::say(chosen, &forecast, None, &mut terminal);
    write(&decoding.run(tiling), writer, video.frames, &mut terminal)?;
    if let Some(run) = run.filter(|_| arguments.output.is_none()) {
        run.remove();
    }
    let summary = Summary {
        output: &output,
        what: format!("{} frames of {}x{}", video.frames, video.width, video.height),
        disclaimer: file.settings.get("disclaimer").and_then(|disclaimer| disclaimer.as_str()),
        settings: file.settings.clone(),
        timings: terminal.finish(),
        started,
        forecast: forecast.peak().1,
    };
    summary.print(Printing { json: arguments.json, timings: arguments.timings, quiet: arguments.quiet });
    Ok(())
}

/// The name of the clip that was to be written, beside the latents wherever they are now: what a file says is a name, and
/// no way out of its folder.
fn beside(latents: &Path, output: Option<&Path>) -> PathBuf {
    let folder_of_frames = output.is_some_and(|path| path.as_os_str().as_encoded_bytes().ends_with(b"/"));
    let name = output.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| {
        let stem = latents.file_stem().unwrap_or_default().to_string_lossy();
        format!("{}.mp4", stem.strip_suffix("_latent").unwrap_or(&stem))
    });
    latents.with_file_name(if folder_of_frames { format!("{name}/") } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clip_goes_beside_its_latents() {
        let beside = |output: Option<&str>| beside(Path::new("a/x_latent.npz"), output.map(Path::new));
        assert_eq!(beside(None), Path::new("a/x.mp4"));
        assert_eq!(beside(Some("/elsewhere/y.mp4")), Path::new("a/y.mp4"));
        assert_eq!(beside(Some("../../.profile")), Path::new("a/.profile"));
        assert_eq!(beside(Some("frames/")).as_os_str(), "a/frames/");
        assert_eq!(beside(Some("..")), Path::new("a/x.mp4"));
    }
}
