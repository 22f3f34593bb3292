//! Choosing how a run keeps its weights and cuts its pictures, so that it fits into the memory there is.

use super::facts::{Facts, Pictures, pictures, sound};
use super::{Choices, Forecast, Phase, Sizes, picture_phase, sound_phase};
use crate::checkpoint::{Component, Residency};
use crate::error::{Error, Result};
use crate::nn::Packing;
use crate::pipeline::{Decoding, Plan, Request};
use crate::shape::{FRAMES_PER_LATENT, VideoShape};
use crate::video_vae::Tiling;

/// Within what a run has to stay.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that the program takes already.
    pub base: u64,
    /// Bytes that it may take in all; `None` is no limit.
    pub most: Option<u64>,
    /// How blocks are kept is as the request says, and no choice.
    pub fixed_residency: bool,
    /// So is the tiling.
    pub fixed_tiling: bool,
}

impl Limits {
    pub(super) fn hold(&self, bytes: u64) -> bool {
        self.most.is_none_or(|most| self.base + bytes <= most)
    }
}

impl Plan<'_> {
    /// Chooses what fits: whole networks in memory if that does, else as many of their blocks as do; whole pictures if those
    /// do, else tiles. Says what was chosen because of the limit. A run that cannot fit is refused, with what would.
    pub fn fit(&mut self, limits: &Limits) -> Result<Vec<String>> {
        let facts = Facts::new(self)?;
        let sizes = self.sizes();
        let (choices, said) = self.choose(&facts, &sizes, limits)?;
        let phases = self.phases(&facts, &sizes, &choices)?;
        let Some(most) = limits.most else { return Ok(Vec::new()) };
        let forecast = Forecast { base: limits.base, phases };
        let (phase, needs) = forecast.peak();
        if needs > most {
            let remedy = self.what_fits(&facts, &sizes, limits);
            return Err(Error::Memory { phase, needs, available: most, remedy });
        }
        self.choices = choices;
        Ok(said)
    }

    /// How blocks are kept and pictures cut.
    pub fn choices(&self) -> Choices {
        self.choices
    }

    /// As it fits, or as small as it gets.
    pub(super) fn choose(
        &self,
        facts: &Facts,
        sizes: &Sizes,
        limits: &Limits,
    ) -> Result<(Choices, Vec<String>)> {
        let mut choices = self.choices;
        let mut said = Vec::new();
        let Some(most) = limits.most else { return Ok((choices, said)) };
        let fits = |phases: &[Phase]| phases.iter().all(|phase| limits.hold(phase.bytes()));
        if !limits.fixed_residency {
            let text = |residency| facts.text.as_ref().map(|text| text.phase(residency, facts.dtype));
            let needs = text(Residency::Resident).map_or(0, |phase| limits.base + phase.bytes());
            // Each of its layers is used once: none is worth keeping.
            choices.text = best(0, |residency| fits(text(residency).as_slice()));
            said.extend(told("the text encoder", choices.text, 0, [needs, most]));

            let denoising =
                |transformer| self.denoising_phases(facts, sizes, &Choices { transformer, ..choices });
            let count = facts.transformers.iter().flatten().map(|model| model.count).max().unwrap_or(0);
            let needs =
                denoising(Residency::Resident).iter().map(Phase::bytes).max().unwrap_or(0) + limits.base;
            choices.transformer = best(count, |residency| fits(&denoising(residency)));
            said.extend(told("the transformer", choices.transformer, count, [needs, most]));
        }
        if let (false, Some(decoder)) = (limits.fixed_tiling || self.request.skip_vae, &facts.decoder) {
            let (tiling, told) = tiling(decoder, sizes.video, choices.tiling, limits)?;
            choices.tiling = tiling;
            said.extend(told);
        }
        Ok((choices, said))
    }

    /// What of this kind would fit, in words.
    fn what_fits(&self, facts: &Facts, sizes: &Sizes, limits: &Limits) -> String {
        let fits = |video: VideoShape| {
            let latents = video.latent().frames;
            let sizes = Sizes { video, window: sizes.window.min(latents), ..*sizes };
            let sizes = if latents <= sizes.window { Sizes { windows: 1, ..sizes } } else { sizes };
            let choices = self.choose(facts, &sizes, limits).map(|(choices, _)| choices);
            let phases = choices.and_then(|choices| self.phases(facts, &sizes, &choices));
            phases.is_ok_and(|phases| phases.iter().all(|phase| limits.hold(phase.bytes())))
        };
        let VideoShape { frames, height, width } = sizes.video;
        let mut would = Vec::new();
        let (mut low, mut high) = (0, frames.saturating_sub(1) / FRAMES_PER_LATENT);
        let clip = |latents: usize| VideoShape { frames: latents * FRAMES_PER_LATENT + 1, height, width };
        if fits(clip(0)) {
            while high - low > 1 {
                let middle = (low + high) / 2;
                if fits(clip(middle)) { low = middle } else { high = middle }
            }
            would.push(format!("{} frames of {width}x{height}", clip(low).frames));
        }
        let multiple = self.recipe.size_multiple();
        let part = |size: usize, eighths: usize| (size * eighths / 8 / multiple * multiple).max(multiple);
        let smaller = (1..8).rev().map(|eighths| VideoShape {
            frames,
            height: part(height, eighths),
            width: part(width, eighths),
        });
        if let Some(VideoShape { frames, height, width }) = smaller.into_iter().find(|&video| fits(video)) {
            would.push(format!("{frames} frames of {width}x{height}"));
        }
        let packed = match self.request.quantize {
            None => ", allow --quantize auto",
            Some(_) => "",
        };
        if would.is_empty() {
            return format!("no size fits: use a smaller model{packed}, or give it more memory");
        }
        format!("what fits: {}; or give it more with --memory", would.join(", or "))
    }
}

/// The first of these that fits: all in memory, as many blocks as fit, none but those that are on their way, that one alone.
pub(super) fn best(count: usize, fits: impl Fn(Residency) -> bool) -> Residency {
    if fits(Residency::Resident) {
        return Residency::Resident;
    }
    let streaming = |kept| Residency::Streaming { ahead: 1, kept };
    if !fits(streaming(0)) {
        return Residency::Streaming { ahead: 0, kept: 0 };
    }
    let (mut low, mut high) = (0, count.max(1));
    while high - low > 1 {
        let middle = (low + high) / 2;
        if fits(streaming(middle)) { low = middle } else { high = middle }
    }
    streaming(low)
}

/// Why not all of a network stays in memory.
pub(super) fn told(
    what: &str,
    residency: Residency,
    count: usize,
    [needs, most]: [u64; 2],
) -> Option<String> {
    let why = format!("{} do not fit in {}", gigabytes(needs), gigabytes(most));
    match residency {
        Residency::Resident => None,
        Residency::Streaming { kept: 0, .. } => Some(format!("{what} is streamed: {why}")),
        Residency::Streaming { kept, .. } => {
            Some(format!("{kept} of {count} blocks of {what} stay in memory, the others are streamed: {why}"))
        }
    }
}

/// `tiling` if it fits, else the largest tiles that do, or the smallest there are; and why.
pub fn tiling(
    decoder: &Pictures,
    video: VideoShape,
    tiling: Tiling,
    limits: &Limits,
) -> Result<(Tiling, Option<String>)> {
    let needs = |tiling| Ok::<_, Error>(picture_phase(decoder, video, tiling)?.bytes());
    let whole = needs(tiling)?;
    let Some(most) = limits.most.filter(|_| !limits.hold(whole)) else { return Ok((tiling, None)) };
    let (mut smallest, mut least) = (tiling, whole);
    for tiling in tilings(video) {
        let bytes = needs(tiling)?;
        if limits.hold(bytes) {
            let [whole, most] = [limits.base + whole, most].map(gigabytes);
            let kept = picture_phase(decoder, video, tiling)?.kept;
            return Ok((tiling, Some(format!("the video is decoded {kept}: {whole} do not fit in {most}"))));
        }
        if bytes < least {
            (smallest, least) = (tiling, bytes);
        }
    }
    Ok((smallest, None))
}

impl Decoding {
    /// Chooses tiles that fit, and says so where they are not what was asked for; refuses what cannot fit. And what it takes.
    pub fn fit(&self, tiling: Tiling, limits: &Limits) -> Result<(Tiling, Vec<String>, Forecast)> {
        let (files, dtype) = self.files();
        let video = self.file().video();
        let decoder = pictures(files, dtype)?;
        let (tiling, said) = match limits.fixed_tiling {
            true => (tiling, None),
            false => self::tiling(&decoder, video, tiling, limits)?,
        };
        let latents = self.file().latents.audio.as_ref().map(|audio| audio.dim(2) as usize);
        let mut phases = Vec::new();
        if let Some(latents) = latents {
            phases.push(sound_phase(&sound(files, dtype)?, latents));
        }
        phases.push(picture_phase(&decoder, video, tiling)?);
        let forecast = Forecast { base: limits.base, phases };
        let (phase, needs) = forecast.peak();
        match limits.most {
            Some(available) if needs > available => {
                let remedy =
                    "give smaller tiles with --tile-size and --tile-frames, or more memory with --memory";
                Err(Error::Memory { phase, needs, available, remedy: remedy.into() })
            }
            _ => Ok((tiling, said.into_iter().collect(), forecast)),
        }
    }
}

/// In words.
fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Tiles for pictures that do not fit whole, the largest first.
fn tilings(VideoShape { height, width, .. }: VideoShape) -> impl Iterator<Item = Tiling> {
    const SIZES: [i32; 8] = [1024, 768, 640, 512, 384, 256, 192, 128];
    let longest = i32::try_from(height.max(width)).unwrap_or(i32::MAX);
    let tiles = SIZES.into_iter().filter(move |&size| size < longest);
    tiles.flat_map(|size| [80, 48, 24, 16].map(|frames| Tiling::cut(size, frames)))
}

/// Chooses for a request that leaves the packing open: none if the transformer fits into memory as it is, else 8 bits or 4
/// if it fits so, else none, since streamed blocks would be packed anew in every step.
pub fn choose_packing(request: &mut Request, limits: impl Fn() -> Limits) -> Result<Option<String>> {
    let affine = |bits| Some(Packing::Affine { bits, group: 64 });
    let mut first = None;
    for packing in [None, affine(8), affine(4)] {
        request.quantize = packing;
        let plan = Plan::new(request)?;
        let (facts, sizes, limits) = (Facts::new(&plan)?, plan.sizes(), limits());
        let choices = Choices { transformer: Residency::Resident, ..plan.choices };
        let phases = plan.denoising_phases(&facts, &sizes, &choices);
        let needs = limits.base + phases.iter().map(Phase::bytes).max().unwrap_or(0);
        let packed = plan.checkpoint.component(Component::Dit, request.dtype)?.0.saving().packed;
        if packed || limits.most.is_none_or(|most| needs <= most) {
            return Ok(packing.zip(first.zip(limits.most)).map(|(packing, (needs, most))| {
                let [needs, most] = [needs, most].map(gigabytes);
                format!("the transformer is packed in {packing}: {needs} do not fit in {most}")
            }));
        }
        first = first.or(Some(needs));
    }
    request.quantize = None;
    Ok(None)
}
