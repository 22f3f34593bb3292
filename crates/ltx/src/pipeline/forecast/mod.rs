//! What a run will take, told before it begins: the memory of each phase and the arithmetic in it, from headers and sizes
//! alone. `facts` gathers what the files say, `work` knows what stands beside the weights while a network computes, `fit`
//! chooses how to keep weights and cut pictures so that a run fits. Nothing here reads weights.

mod facts;
mod fit;
mod speed;
#[cfg(test)]
mod tests;
mod text;
mod work;

use mlx::Dtype;

pub use fit::{Limits, choose_packing};
pub use speed::Speed;
pub use text::fit_writer;

use super::window::Window;
use super::window_tail::VIDEO_PAST;
use super::{Plan, Request};
use crate::checkpoint::Residency;
use crate::diffusion::Both;
use crate::diffusion::guidance::{self, Guidance};
use crate::diffusion::step::Sampler;
use crate::error::Result;
use crate::shape::{AudioShape, FRAMES_PER_LATENT, LatentShape, PIXELS_PER_LATENT, VideoShape};
use crate::video_vae::Tiling;
use facts::Facts;
use work::{Pass, denoising, spectrogram, upsampling, vocoding};

/// What is there in every phase beside what is counted: threads, code that is used for the first time.
const OVERHEAD: u64 = 8 << 20;
/// And at most, where there is as much work: freed arrays that are kept for reuse (32 MiB), scratch memory of kernels.
const REUSED: u64 = 40 << 20;
/// Share of the work by which it is more in truth: memory that was given back lies between what is in use.
const LOSS: u64 = 8;

/// How a run keeps its weights and cuts its pictures. Only the tiling changes its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// The text encoder's layers.
    pub text: Residency,
    /// The transformer's blocks.
    pub transformer: Residency,
    /// The pieces that the clip is decoded in.
    pub tiling: Tiling,
}

impl Choices {
    /// As a request says.
    pub(super) fn of(request: &Request) -> Self {
        Self { text: request.residency, transformer: request.residency, tiling: request.tiling }
    }
}

/// Arithmetic, and what is read meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Multiplications and additions in linear layers.
    pub linear: f64,
    /// In attention.
    pub attention: f64,
    /// In convolutions.
    pub convolution: f64,
    /// Bytes that are read from files.
    pub read: f64,
    /// Pixels that are written into the clip.
    pub pixels: f64,
}

/// A part of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Its name, as in the progress of the run where that has one.
    pub name: &'static str,
    /// How its weights are kept or its pictures cut, in a few words; nothing where there is no choice.
    pub kept: String,
    /// Bytes of weights in memory at once.
    pub weights: u64,
    /// Bytes of what is computed with them, at most.
    pub work: u64,
    /// What it does, in all windows of the clip together.
    pub cost: Cost,
}

impl Phase {
    /// Bytes in memory at once, beside what the program takes in any phase.
    pub fn bytes(&self) -> u64 {
        self.weights + self.work + self.work / LOSS + self.work.min(REUSED) + OVERHEAD
    }
}

/// What a run will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes that the program takes in any phase.
    pub base: u64,
    /// Its phases, in order.
    pub phases: Vec<Phase>,
}

impl Forecast {
    /// Bytes in memory in a phase.
    pub fn of(&self, phase: &Phase) -> u64 {
        self.base + phase.bytes()
    }

    /// The phase that needs the most memory, and how many bytes that is.
    pub fn peak(&self) -> (&'static str, u64) {
        let largest = self.phases.iter().max_by_key(|phase| phase.bytes());
        largest.map_or(("", self.base), |phase| (phase.name, self.of(phase)))
    }

    /// About how many seconds it takes.
    pub fn seconds(&self, speed: &Speed) -> f64 {
        self.phases.iter().map(|phase| speed.seconds(&phase.cost)).sum()
    }
}

/// Sizes of a clip, and of the part of it that is made at once.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    video: VideoShape,
    /// Latent frames of the longest window.
    window: usize,
    /// How many windows there are.
    windows: usize,
    /// Latent frames that are decoded anew between windows, at most.
    joined: usize,
    frame_rate: f64,
}

impl Sizes {
    /// Latent frames of the sound of so many latent frames of video.
    fn sound(&self, latents: usize) -> usize {
        let frames = latents.saturating_sub(1) * FRAMES_PER_LATENT + 1;
        AudioShape::of_video(frames, self.frame_rate).map_or(1, |audio| audio.frames)
    }

    /// The latent of a window at a part of the size.
    fn latent(&self, divisor: usize) -> LatentShape {
        let cells = |pixels: usize| (pixels / divisor / PIXELS_PER_LATENT).max(1);
        LatentShape { frames: self.window, height: cells(self.video.height), width: cells(self.video.width) }
    }
}

impl Plan<'_> {
    /// What the run will take, as it stands, in a program that takes `base` bytes already.
    pub fn forecast(&self, base: u64) -> Result<Forecast> {
        let facts = Facts::new(self)?;
        Ok(Forecast { base, phases: self.phases(&facts, &self.sizes(), &self.choices)? })
    }

    fn sizes(&self) -> Sizes {
        let longest = self.windows.iter().max_by_key(|window| window.video.length);
        Sizes {
            video: self.video,
            window: longest.map_or(1, |window| window.video.length),
            windows: self.windows.len(),
            joined: self.windows.iter().map(joined).max().unwrap_or(0),
            frame_rate: self.request.frame_rate,
        }
    }

    fn phases(&self, facts: &Facts, sizes: &Sizes, choices: &Choices) -> Result<Vec<Phase>> {
        let mut phases = Vec::new();
        // Of an interrupted run that has its latents nothing else is left to do.
        let begins = self.saved.as_ref().is_none_or(|saved| saved.latents_path().is_none());
        if begins {
            phases.extend(self.latent_phases(facts, sizes, choices)?);
        }
        if !self.request.skip_vae {
            let latents = sizes.sound(sizes.video.latent().frames);
            phases.extend(self.picture_phase(facts, sizes, choices.tiling)?);
            phases.extend(facts.sound.as_ref().map(|sound| sound_phase(sound, latents)));
        }
        Ok(phases)
    }

    /// Up to the latents of the clip.
    fn latent_phases(&self, facts: &Facts, sizes: &Sizes, choices: &Choices) -> Result<Vec<Phase>> {
        let mut phases = Vec::new();
        phases.extend(facts.text.as_ref().map(|text| text.phase(choices.text, facts.dtype)));
        phases.extend(self.image_phase(facts, sizes));
        if let Some(join) = self.join_phase(facts, sizes)? {
            phases.push(join);
        }
        phases.extend(self.denoising_phases(facts, sizes, choices));
        Ok(phases)
    }

    fn image_phase(&self, facts: &Facts, sizes: &Sizes) -> Option<Phase> {
        let (encoder, weights) = facts.encoder.as_ref().filter(|_| !self.images.is_empty())?;
        let (bytes, operations) = encoder.cost([1, sizes.video.height, sizes.video.width]);
        let count = self.request.images.len() as f64;
        let pixels = (sizes.video.height * sizes.video.width * 3 * 4) as u64;
        let stages = self.steps.len() as f64;
        Some(Phase {
            name: "encode images",
            kept: String::new(),
            weights: weights.held() + weights.passing,
            // As f32 between -1 and 1, on their way there, and as they were.
            work: bytes as u64 + 3 * pixels,
            cost: Cost {
                convolution: operations * count * stages,
                read: weights.mapped as f64,
                ..Cost::default()
            },
        })
    }

    /// Between windows the end of the last one is decoded and encoded again.
    fn join_phase(&self, facts: &Facts, sizes: &Sizes) -> Result<Option<Phase>> {
        if sizes.windows < 2 {
            return Ok(None);
        }
        let (Some((encoder, own)), Some((decoder, theirs))) = (&facts.encoder, &facts.decoder) else {
            return Ok(None);
        };
        let VideoShape { height, width, .. } = sizes.video;
        let latent = [sizes.joined.max(1), height / PIXELS_PER_LATENT, width / PIXELS_PER_LATENT];
        let frames = (latent[0] - 1) * FRAMES_PER_LATENT + 1;
        let pixels = (frames * height * width * 3 * 4) as u64;
        let decoding = decoder.bytes(&Tiling::auto(), latent)? as u64 + theirs.held();
        let (bytes, operations) = encoder.cost([frames, height, width]);
        let encoding = bytes as u64 + own.held();
        let times = (sizes.windows - 1) as f64;
        let weights = if decoding > encoding { theirs } else { own };
        Ok(Some(Phase {
            name: "join windows",
            kept: String::new(),
            weights: weights.held(),
            // With the pieces as they come, which are joined and kept between 0 and 1 when nothing else is there.
            work: (decoding.max(encoding) - weights.held() + pixels).max(3 * pixels),
            cost: Cost {
                convolution: times * (operations + decoder.operations(&Tiling::auto(), latent)?),
                read: times * (own.mapped + theirs.mapped) as f64,
                ..Cost::default()
            },
        }))
    }

    fn denoising_phases(&self, facts: &Facts, sizes: &Sizes, choices: &Choices) -> Vec<Phase> {
        let mut phases: Vec<Phase> = Vec::new();
        let count = self.steps.len();
        let mut own = None;
        for (stage, (steps, model)) in self.steps.iter().zip(&facts.transformers).enumerate() {
            let divisor = if stage + 1 < count { 2 } else { 1 };
            let before = if model.is_some() { None } else { own };
            own = model.as_ref().or(own);
            let Some(model) = own else { continue };
            let latent = sizes.latent(divisor);
            if stage > 0 {
                // The transformer stays in memory where the next stage goes on with it.
                let held = before.map_or(0, |model| model.held(choices.transformer));
                phases.extend(facts.upsampler.as_ref().map(|(weights, channels)| {
                    let (work, convolution) = upsampling(sizes.latent(2), *channels, facts.dtype);
                    let times = sizes.windows as f64;
                    Phase {
                        name: "upsample",
                        kept: String::new(),
                        weights: held + weights.held() + weights.passing,
                        work,
                        cost: Cost {
                            convolution: convolution * times,
                            read: weights.mapped as f64 * times,
                            ..Cost::default()
                        },
                    }
                }));
            }
            let Both { video, audio } = &steps.guidance;
            let passes = guidance::passes(&Both { video: video.as_ref(), audio: audio.as_ref() });
            let evaluations = steps.sigmas.len().saturating_sub(1)
                * if matches!(steps.sampler, Sampler::Res2s { .. }) { 2 } else { 1 };
            let pass = Pass {
                video: latent.tokens() + self.images.guides() * latent.tokens_per_frame(),
                audio: if self.audio.is_some() { sizes.sound(sizes.window) } else { 0 },
                text: facts.context,
                passes: passes.len(),
                negative: passes.contains(&guidance::Pass::Negative),
                together: choices.transformer != Residency::Resident,
                marked: !self.images.is_empty() || sizes.windows > 1,
            };
            let (work, mut cost) = denoising(&self.transformer, &pass, facts.dtype);
            let times = (evaluations * sizes.windows) as f64;
            let skip =
                steps.guidance.iter().map(|(_, guidance): (_, &Guidance)| guidance.skip).min().unwrap_or(0);
            let times = (times / (skip + 1) as f64).max(1.0);
            cost.linear *= times;
            cost.attention *= times;
            let streamed = model.read(choices.transformer) as f64 * times;
            let once = (model.rest.mapped + model.blocks.mapped) as f64;
            cost.read = if before.is_some() { streamed } else { streamed.max(once) };
            phases.push(Phase {
                name: steps.name,
                kept: kept(choices.transformer, model.count, "blocks"),
                weights: model.held(choices.transformer),
                work,
                cost,
            });
        }
        phases
    }

    fn picture_phase(&self, facts: &Facts, sizes: &Sizes, tiling: Tiling) -> Result<Option<Phase>> {
        let decoder = facts.decoder.as_ref().filter(|_| !self.request.skip_vae);
        decoder.map(|decoder| picture_phase(decoder, sizes.video, tiling)).transpose()
    }
}

fn sound_phase(sound: &facts::Sound, latents: usize) -> Phase {
    let facts::Sound { decoder, frame, vocoder, generators } = sound;
    let (work, convolution) = vocoding(generators, latents);
    Phase {
        name: "decode audio",
        kept: "some seconds at a time".into(),
        weights: [decoder, vocoder].map(|part| part.held() + part.passing).iter().sum(),
        work: work.max(spectrogram(*frame, latents)),
        cost: Cost { convolution, read: (decoder.mapped + vocoder.mapped) as f64, ..Cost::default() },
    }
}

fn picture_phase((decoder, weights): &facts::Pictures, video: VideoShape, tiling: Tiling) -> Result<Phase> {
    let VideoShape { frames, height, width } = video;
    let LatentShape { frames: latents, height: rows, width: columns } = video.latent();
    let latent = [latents, rows, columns];
    let kept = match tiling {
        Tiling { spatial: Some((size, _)), .. } if height.max(width) > size as usize => {
            format!("in tiles of {size} pixels")
        }
        Tiling { temporal: Some((length, _)), .. } if frames > length as usize => {
            format!("in tiles of {length} frames")
        }
        _ => "some frames at a time".into(),
    };
    Ok(Phase {
        name: "decode video",
        kept,
        weights: weights.held() + weights.passing,
        // With the pictures on their way into the clip: in bytes, and as the encoder keeps them.
        work: (decoder.bytes(&tiling, latent)? + height * width * PICTURES) as u64,
        cost: Cost {
            convolution: decoder.operations(&tiling, latent)?,
            read: weights.mapped as f64,
            pixels: (height * width * frames) as f64,
            ..Cost::default()
        },
    })
}

/// Latent frames that are decoded anew before a window.
fn joined(window: &Window) -> usize {
    window.video.given + window.video.start.min(VIDEO_PAST)
}

/// Bytes for each pixel of a frame that the clip's encoder takes.
const PICTURES: usize = 60;

/// In a few words.
fn kept(residency: Residency, count: usize, what: &str) -> String {
    match residency {
        Residency::Resident => "in memory".into(),
        Residency::Streaming { kept: 0, ahead: 0 } => "streamed, none read ahead".into(),
        Residency::Streaming { kept: 0, .. } => "streamed".into(),
        Residency::Streaming { kept, .. } => format!("{kept} of {count} {what} in memory"),
    }
}

/// Bytes of a value.
fn size(dtype: Dtype) -> u64 {
    dtype.size() as u64
}
