//! What a recipe makes of a request: its stages, each with a model, a sampler, noise levels and guidance.
//!
//! Values: `distilled.py`, `ti2vid_one_stage.py`, `ti2vid_two_stages.py`, `ti2vid_two_stages_hq.py` and
//! `keyframe_interpolation.py` of Lightricks' ltx-pipelines, v1.2.0.

use super::choose::{guidance, sigmas};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::lora::{Lora, Matches};
use crate::diffusion::Both;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::schedule::DISTILLED_STAGE_2;
use crate::diffusion::step::Sampler;
use crate::dit;
use crate::error::{Error, Result};
use crate::pipeline::{Generation, Kind, Recipe, Request};

const RES_2S: Sampler = Sampler::Res2s { eta: 0.5, bong: true };

/// One stage.
#[derive(Debug)]
pub(super) struct Steps {
    /// What it is called while it runs.
    pub name: &'static str,
    pub sampler: Sampler,
    pub sigmas: Vec<f32>,
    pub guidance: Both<Guidance>,
    /// The model with this stage's LoRAs; `None` goes on with that of the stage before.
    pub model: Option<Checkpoint>,
    /// Strength of the distilled LoRA in it.
    pub distilled_strength: f32,
}

impl Recipe {
    /// Whether it denoises at half size, upsamples and refines.
    pub fn two_stages(self) -> bool {
        self != Self::OneStage
    }

    /// Whether its second stage refines the picture alone: the sound stays that of the first.
    pub(super) fn keeps_first_sound(self) -> bool {
        matches!(self, Self::TwoStage | Self::TwoStageHq)
    }

    /// Whether the picture of the first frame guides like the others, instead of taking that frame's place.
    pub(super) fn guides_only(self) -> bool {
        self == Self::Keyframes
    }

    /// Strengths of the distilled LoRA in its two stages, if it has one.
    fn distilled_strengths(self) -> Option<[f32; 2]> {
        match self {
            Self::Distilled | Self::OneStage => None,
            Self::TwoStage | Self::Keyframes => Some([0.0, 1.0]),
            Self::TwoStageHq => Some([0.25, 0.5]),
        }
    }

    /// What the model must be for it, given what its name says.
    pub(super) fn kind(self, named: Option<Kind>) -> Result<Kind> {
        match (self, named) {
            (Self::TwoStage | Self::TwoStageHq, Some(Kind::Distilled)) => Err(Error::request(
                format!("{} is for dev models: it brings the distilled LoRA itself", self.name()),
                "use --recipe distilled, or a dev model",
            )),
            (Self::Distilled, None) => Ok(Kind::Distilled),
            (_, named) => Ok(named.unwrap_or(Kind::Dev)),
        }
    }
}

/// The model with the LoRAs that a request asks for.
pub(super) fn with_loras(
    request: &Request,
    model: Checkpoint,
    notes: &mut Vec<String>,
) -> Result<Checkpoint> {
    let mut model = model;
    for (path, strength) in &request.loras {
        let lora = Lora::open(path)?;
        let (fused, matches) = model.fused(&[(&lora, *strength)])?;
        model = fused;
        notes.extend(matches.iter().map(|matches| told(&lora, *strength, matches)));
    }
    Ok(model)
}

/// What is said of a LoRA that is used.
fn told(lora: &Lora, strength: f32, matches: &Matches) -> String {
    let name = lora.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let unmatched = match matches.unmatched.as_slice() {
        [] => String::new(),
        [first, ..] => format!("; {} are not in the model, {first} first", matches.unmatched.len()),
    };
    let packed = match matches.packed {
        0 => String::new(),
        packed => format!("; {packed} are packed: unpacked, changed, and packed again unless they are fp8"),
    };
    format!("LoRA {name} at {strength}: changes {} weights{unmatched}{packed}", matches.count())
}

/// What decides about stages.
pub(super) struct Circumstances<'a> {
    pub request: &'a Request,
    pub recipe: Recipe,
    pub kind: Kind,
    pub generation: &'a Generation,
    /// With the LoRAs that were asked for.
    pub model: &'a Checkpoint,
    pub transformer: &'a dit::Config,
    /// Video tokens of the first stage.
    pub tokens: usize,
    /// Whether there will be sound.
    pub audio: bool,
}

impl Circumstances<'_> {
    /// The stages of the recipe, in order.
    pub fn stages(&self, notes: &mut Vec<String>) -> Result<Vec<Steps>> {
        let &Self { request, recipe, .. } = self;
        let [(first_model, first_strength), (second_model, second_strength)] = self.models(notes)?;
        let own = match (recipe, self.kind, self.generation.ancestral) {
            (Recipe::TwoStageHq, ..) => RES_2S,
            (_, Kind::Distilled, true) => Sampler::EulerAncestral { eta: 1.0, s_noise: 1.0 },
            _ => Sampler::Euler,
        };
        let mut stages = vec![Steps {
            name: if recipe.two_stages() { "denoise at half size" } else { "denoise" },
            sampler: request.sampler.unwrap_or(own),
            sigmas: sigmas(request, recipe, self.kind, self.generation, self.tokens, notes)?,
            guidance: guidance(
                request,
                recipe,
                self.kind,
                self.generation,
                self.transformer,
                self.audio,
                notes,
            )?,
            model: Some(first_model.unwrap_or_else(|| self.model.clone())),
            distilled_strength: first_strength,
        }];
        if recipe.two_stages() {
            stages.push(Steps {
                name: "refine",
                // Three steps are too few to remove noise that is added on the way, but for a sampler of second order.
                sampler: if recipe == Recipe::TwoStageHq { RES_2S } else { Sampler::Euler },
                sigmas: DISTILLED_STAGE_2.to_vec(),
                guidance: Both::default(),
                model: second_model,
                distilled_strength: second_strength,
            });
        }
        Ok(stages)
    }

    /// The models with the distilled LoRA, where a stage has it.
    fn models(&self, notes: &mut Vec<String>) -> Result<[(Option<Checkpoint>, f32); 2]> {
        let own = self.recipe.distilled_strengths().filter(|_| self.kind == Kind::Dev);
        let Some(own) = own else {
            if self.request.distilled_lora.is_some() {
                return Err(Error::request(
                    format!("the recipe {} has no use for a distilled LoRA", self.recipe.name()),
                    "use --recipe two-stage or two-stage-hq, or give the file with --lora",
                ));
            }
            return Ok([(None, 0.0), (None, 0.0)]);
        };
        let path = self.request.distilled_lora.as_ref().ok_or_else(|| {
            Error::request(
                format!(
                    "the recipe {} needs the distilled LoRA, which lets the model refine in three steps",
                    self.recipe.name()
                ),
                format!(
                    "give its file, or its name {}, with --distilled-lora",
                    self.generation.distilled_lora
                ),
            )
        })?;
        let lora = Lora::open(path)?;
        let [first, second] = self.request.distilled_strengths;
        let strengths = [first.unwrap_or(own[0]), second.unwrap_or(own[1])];
        let mut model = |strength: f32| {
            let (fused, matches) = self.model.fused(&[(&lora, strength)])?;
            notes.extend(
                matches.iter().filter(|_| strength != 0.0).map(|matches| told(&lora, strength, matches)),
            );
            Ok::<_, Error>(fused)
        };
        Ok([(Some(model(strengths[0])?), strengths[0]), (Some(model(strengths[1])?), strengths[1])])
    }
}
