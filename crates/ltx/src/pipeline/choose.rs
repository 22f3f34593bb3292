//! What a request leaves open, decided: recipe, guidance, noise levels, and where the upsampler comes from.

use super::{Generation, GuidanceOverride, Kind, Recipe, Request};
use crate::checkpoint::{Checkpoint, Component, Config};
use crate::diffusion::Both;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::schedule::{DEFAULT_TOKENS, DISTILLED, Schedule};
use crate::dit;
use crate::error::{Error, Result};

/// The checkpoint with the spatial upsampler x2: the file that is named, or the one among the model's files.
pub fn upsampler(request: &Request, checkpoint: &Checkpoint) -> Result<Option<Checkpoint>> {
    let doubles = |files: &Checkpoint| -> Result<(bool, Config)> {
        let (_, config) = files.component(Component::Upsampler, request.dtype)?;
        let scale = config.optional_f64("spatial_scale")?.unwrap_or(2.0);
        Ok((config.bool("spatial_upsample")? && !config.bool("temporal_upsample")? && scale == 2.0, config))
    };
    if let Some(path) = &request.spatial_upsampler {
        let files = Checkpoint::open(&[path])?;
        let (fits, config) = doubles(&files)?;
        let error = || config.error("spatial_upsample", "is not that of a spatial upsampler x2");
        return if fits { Ok(Some(files)) } else { Err(error()) };
    }
    for file in checkpoint.holders(Component::Upsampler) {
        let files = Checkpoint::open(&[file.path()])?;
        if doubles(&files)?.0 {
            return Ok(Some(files));
        }
    }
    Ok(None)
}

/// The recipe asked for, or the one that the model's name and the files at hand suggest.
pub fn recipe(request: &Request, kind: Option<Kind>, upsampler: bool, notes: &mut Vec<String>) -> Recipe {
    if let Some(recipe) = request.recipe {
        return recipe;
    }
    match (kind, upsampler) {
        (Some(Kind::Dev), true) if request.distilled_lora.is_some() => Recipe::TwoStage,
        (Some(Kind::Dev), _) => Recipe::OneStage,
        (Some(Kind::Distilled), true) => Recipe::Distilled,
        (Some(Kind::Distilled), false) => {
            notes.push("no --spatial-upsampler: one stage at full size instead of two".into());
            Recipe::OneStage
        }
        (None, upsampler) => {
            let recipe = match (upsampler, &request.distilled_lora) {
                (true, Some(_)) => Recipe::TwoStage,
                (true, None) => Recipe::Distilled,
                (false, _) => Recipe::OneStage,
            };
            notes.push(format!(
                "the model's file name says neither dev nor distilled: using --recipe {}",
                recipe.name()
            ));
            recipe
        }
    }
}

/// Guidance of the first stage; a refinement has none.
pub fn guidance(
    request: &Request,
    recipe: Recipe,
    kind: Kind,
    generation: &Generation,
    transformer: &dit::Config,
    audio: bool,
    notes: &mut Vec<String>,
) -> Result<Both<Guidance>> {
    if kind == Kind::Distilled {
        // Asking for none is not asking for guidance.
        let asked = |given: &GuidanceOverride| given.over(Guidance::OFF) != Guidance::OFF;
        if !asked(&request.video_guidance) && !asked(&request.audio_guidance) {
            return Ok(Both::default());
        }
        if !request.force_guidance {
            return Err(Error::request(
                "distilled models take no guidance: it was trained into them, and applying it again spoils the picture",
                "leave out the guidance options, use a dev model with --recipe one-stage, or insist with --force-guidance",
            ));
        }
        notes.push("guidance of a distilled model was forced: expect harsh contrast and colours".into());
    }
    let (video, mut sound) = match (kind, recipe) {
        // What is forced is what was asked for, and nothing beside it.
        (Kind::Distilled, _) => {
            let off = Guidance { stg_blocks: vec![generation.stg_block], ..Guidance::OFF };
            (off.clone(), request.video_guidance.over(off))
        }
        (_, Recipe::TwoStageHq) => (generation.hq_video_guidance(), generation.hq_audio_guidance()),
        _ => (generation.video_guidance(), generation.audio_guidance()),
    };
    let mut video = request.video_guidance.over(video);
    // Blocks belong to the model, not to a modality: chosen for the video, they hold for the sound too.
    sound.stg_blocks = video.stg_blocks.clone();
    let sound = request.audio_guidance.over(sound);
    if !audio {
        // Without sound there is no other modality to agree with.
        video.modality = 1.0;
    }
    let guidance = Both { video: Some(video), audio: audio.then_some(sound) };
    for (modality, guidance) in guidance.iter() {
        if let Some(block) =
            guidance.stg_blocks.iter().find(|&&block| guidance.stg != 0.0 && block >= transformer.layers)
        {
            return Err(Error::request(
                format!(
                    "{} guidance perturbs block {block}, but the transformer has {} blocks, counted from 0",
                    modality.name(),
                    transformer.layers
                ),
                "choose others with --stg-blocks, or turn it off with --stg-scale 0 --audio-stg-scale 0",
            ));
        }
    }
    Ok(guidance)
}

/// Noise levels of the first stage, which has `tokens` video tokens, from its first to 0.
pub fn sigmas(
    request: &Request,
    recipe: Recipe,
    kind: Kind,
    generation: &Generation,
    tokens: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<f32>> {
    Ok(match (kind, request.steps) {
        // The only official recipe that tells the schedule how many tokens there are.
        (_, steps) if recipe == Recipe::TwoStageHq => {
            Schedule::Ltx2.sigmas(steps.unwrap_or(Generation::HQ_STEPS), tokens)?
        }
        (Kind::Dev, steps) => Schedule::Ltx2.sigmas(steps.unwrap_or(generation.steps), DEFAULT_TOKENS)?,
        (Kind::Distilled, None) => DISTILLED.to_vec(),
        (Kind::Distilled, Some(steps)) => {
            if steps != DISTILLED.len() - 1 {
                notes.push(format!(
                    "distilled models were made for {} steps; their table is resampled to {steps}",
                    DISTILLED.len() - 1
                ));
            }
            Schedule::Distilled.sigmas(steps, DEFAULT_TOKENS)?
        }
    })
}
