//! The pictures that a clip is to show: checked, fitted to the size of each stage, encoded, and placed in its latents.
//!
//! Formulas and choices: `combined_image_conditionings` and `image_conditionings_by_adding_guiding_latent` of Lightricks'
//! ltx-pipelines v1.2.0. The picture of frame 0 takes the place of the first latent frame, which holds that picture
//! alone; a latent frame further on holds eight pictures, so the others join as tokens of their own, beside the video's.

use std::path::PathBuf;

use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::clip::check_finite;
use super::conditioning::Shapes;
use super::window::Window;
use crate::diffusion::conditioning::LatentState;
use crate::diffusion::patchify::video_tokens;
use crate::error::{Error, Result};
use crate::media::{Frame, Picture};
use crate::progress::Progress;
use crate::video_vae::Encoder;

/// Where the pixels of a picture come from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A PNG, JPEG or WebP file.
    File(PathBuf),
    /// Pixels at hand.
    Pixels(Frame),
}

/// A picture that the clip shows at one of its frames.
#[derive(Clone, Debug)]
pub struct ImageCondition {
    /// The picture, of any size: it is scaled to cover the clip's, and what stands over is cut off evenly.
    pub source: ImageSource,
    /// The frame of the clip, from 0; negative counts from the end: -1 is the last.
    pub frame: i64,
    /// How closely the clip follows it, from 0 (not at all) to 1 (exactly).
    pub strength: f32,
    /// Constant rate factor of the H.264 that the picture goes through, 0 (off) to 51; `None` is what the model was
    /// trained with. The fit of codecs: [`Frame::recompressed`].
    pub crf: Option<u8>,
}

impl ImageCondition {
    /// The frame, counted from the beginning of a clip of `frames`.
    fn frame(&self, frames: usize) -> Result<usize> {
        let from_end = if self.frame < 0 { frames as i64 } else { 0 };
        let frame = self.frame.checked_add(from_end).and_then(|frame| usize::try_from(frame).ok());
        frame.filter(|&frame| frame < frames).ok_or_else(|| {
            Error::request(
                format!("{} is for frame {}, which the clip does not have", self.name(), self.frame),
                format!("give a frame from 0 to {}, or from -1 (the last) back", frames.saturating_sub(1)),
            )
        })
    }

    fn name(&self) -> String {
        match &self.source {
            ImageSource::File(path) => path.display().to_string(),
            ImageSource::Pixels(_) => "a picture".into(),
        }
    }
}

/// Checks what needs no file: frames, strengths and rate factors.
pub(super) fn check(images: &[ImageCondition], frames: usize) -> Result<()> {
    let mut taken = Vec::new();
    for image in images {
        let name = image.name();
        if !(0.0..=1.0).contains(&image.strength) {
            return Err(Error::request(
                format!("the strength of {name} is {}", image.strength),
                "give one from 0 (no effect) to 1 (exactly this picture)",
            ));
        }
        if image.crf.is_some_and(|crf| crf > 51) {
            return Err(Error::request(
                format!("the rate factor of {name} is above 51"),
                "give one from 1 (finest) to 51 (coarsest), 0 to leave the picture as it is, or none for the model's own",
            ));
        }
        let frame = image.frame(frames)?;
        if taken.contains(&frame) {
            return Err(Error::request(
                format!("two pictures are for frame {frame}"),
                "give each picture a frame of its own: --image PATH FRAME",
            ));
        }
        taken.push(frame);
    }
    Ok(())
}

/// Pictures that were read and fitted.
#[derive(Debug, Default)]
pub struct Images(Vec<Prepared>);

#[derive(Debug)]
struct Prepared {
    place: Place,
    strength: f32,
    /// For each stage, from 0 to 255. (height, width, rgb)
    pixels: Vec<Vec<f32>>,
    /// What was decided about it, to be kept with the clip. The file is named, not located.
    settings: Value,
}

/// How a picture takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// As the first latent frame.
    First,
    /// As tokens of its own, which guide the video towards this frame.
    Guide(usize),
}

impl Images {
    /// Reads the pictures and fits them to each stage. `guides_only`: the picture of frame 0 guides like the others.
    /// `crf` is that of the model.
    pub fn prepare(
        images: &[ImageCondition],
        stages: &[Shapes],
        crf: u8,
        guides_only: bool,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        if guides_only && images.is_empty() {
            return Err(Error::request(
                "the keyframes recipe needs pictures",
                "give them with --image PATH FRAME, each its frame; or choose another --recipe",
            ));
        }
        let frames = stages.first().map_or(0, |stage| stage.video.video().frames);
        let prepare = |image: &ImageCondition| {
            let index = image.frame(frames)?;
            let place = if index == 0 && !guides_only { Place::First } else { Place::Guide(index) };
            let crf = image.crf.unwrap_or(crf);
            let file = match &image.source {
                ImageSource::File(path) => path.file_name().map(|name| name.to_string_lossy()),
                ImageSource::Pixels(_) => None,
            };
            let settings = json!({ "file": file, "frame": index, "strength": image.strength, "crf": crf });
            let frame = match &image.source {
                ImageSource::Pixels(frame) => frame.clone(),
                ImageSource::File(path) => {
                    let picture = Picture::read(path)?;
                    if picture.transparent {
                        notes.push(format!(
                            "{} is transparent in parts; the colours under them are used",
                            image.name()
                        ));
                    }
                    picture.frame
                }
            };
            let frame = frame.recompressed(crf)?;
            if frame.rgb.is_empty() {
                return Err(Error::request(format!("{} has no pixels", image.name()), "give another"));
            }
            let fit = |stage: &Shapes| frame.cover(stage.video.video().width, stage.video.video().height);
            let pixels = stages.iter().map(fit).collect();
            Ok(Prepared { place, strength: image.strength, pixels, settings })
        };
        images.iter().map(prepare).collect::<Result<_>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was decided about each, to be kept with the clip.
    pub fn settings(&self) -> Value {
        self.0.iter().map(|image| image.settings.clone()).collect()
    }

    /// How many join as tokens of their own.
    pub fn guides(&self) -> usize {
        self.0.iter().filter(|image| image.place != Place::First).count()
    }

    /// Encodes every picture for every stage. The encoder lives in here, and only if there are pictures.
    pub fn encode(
        &self,
        stages: &[Shapes],
        progress: &mut dyn Progress,
        load: impl FnOnce(&mut dyn Progress) -> Result<Encoder>,
    ) -> Result<Vec<Vec<Condition>>> {
        if self.is_empty() {
            return Ok(vec![Vec::new(); stages.len()]);
        }
        progress.phase("encode images", 0)?;
        let encoder = load(progress)?;
        let encode = |index: usize, stage: &Shapes, image: &Prepared| {
            let size = stage.video.video();
            let pixels = image.pixels.get(index).map_or(&[][..], Vec::as_slice);
            let pixels = Array::from_slice(pixels, &[1, 1, size.height as i32, size.width as i32, 3])?;
            let pixels = pixels.divide(127.5f32)?.subtract(1.0f32)?; // (1, 1, height, width, rgb) in [-1, 1]
            let latent = encoder.forward(&pixels)?; // (1, channels, 1, latent height, latent width)
            check_finite(&latent, "video_encoder", "the latent of a picture")?;
            let tokens = video_tokens(&latent.astype(Dtype::F32)?)?;
            tokens.eval()?;
            Ok(Condition { tokens, place: image.place, strength: image.strength })
        };
        let stage = |(index, stage)| self.0.iter().map(|image| encode(index, stage, image)).collect();
        stages.iter().enumerate().map(stage).collect()
    }
}

/// An encoded picture and its place in a stage. First it is that in the clip; [`Condition::within`] makes it a window's.
#[derive(Clone, Debug)]
pub struct Condition {
    tokens: Array, // (1, tokens per frame, channels)
    place: Place,
    strength: f32,
}

impl Condition {
    /// The picture as the window that makes its frame has it.
    pub fn within(&self, window: &Window) -> Option<Self> {
        let frame = match self.place {
            Place::First => 0,
            Place::Guide(frame) => frame,
        };
        let place = match self.place {
            Place::First => Place::First,
            Place::Guide(frame) => Place::Guide(frame.checked_sub(window.first_picture())?),
        };
        window.pictures().contains(&frame).then(|| Self { place, ..self.clone() })
    }

    /// Whether it joins as tokens of its own.
    pub fn guides(&self) -> bool {
        self.place != Place::First
    }

    /// `state` with the picture in its place.
    pub fn apply(&self, state: LatentState, stage: &Shapes, frame_rate: f64) -> Result<LatentState> {
        match self.place {
            Place::First => state.with_frames(&self.tokens, stage.video, 0, self.strength),
            Place::Guide(frame) => {
                state.with_keyframe(&self.tokens, stage.video, frame, frame_rate, self.strength)
            }
        }
    }
}
