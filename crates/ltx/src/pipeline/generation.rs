//! What changed from one generation of LTX-2 to the next, as numbers. The only place that knows versions.
//!
//! Values: Lightricks' `ltx_pipelines/utils/constants.py`, v1.2.0.

use crate::checkpoint::Checkpoint;
use crate::diffusion::guidance::Guidance;

/// Numbers that a recipe takes from the checkpoint's generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The first version that it describes.
    pub since: (u32, u32),
    /// Steps of a guided run.
    pub steps: usize,
    /// The block that spatio-temporal guidance perturbs.
    pub stg_block: usize,
    /// Constant rate factor of the H.264 that pictures are to have gone through.
    pub image_crf: u8,
    /// Short name of the LoRA that makes its dev model a distilled one.
    pub distilled_lora: &'static str,
    /// Whether the distilled first stage adds noise at every step (ancestral Euler).
    pub ancestral: bool,
}

/// Newest first. A checkpoint gets the newest row at or below its version.
const GENERATIONS: [Generation; 4] = [
    Generation {
        since: (2, 5),
        steps: 30,
        stg_block: 28,
        image_crf: 18,
        distilled_lora: "distilled-2.5",
        ancestral: true,
    },
    Generation {
        since: (2, 4),
        steps: 30,
        stg_block: 28,
        image_crf: 18,
        distilled_lora: "distilled-2.3",
        ancestral: false,
    },
    Generation {
        since: (2, 3),
        steps: 30,
        stg_block: 28,
        image_crf: 33,
        distilled_lora: "distilled-2.3",
        ancestral: false,
    },
    Generation {
        since: (0, 0),
        steps: 40,
        stg_block: 29,
        image_crf: 33,
        distilled_lora: "distilled-2.0",
        ancestral: false,
    },
];

impl Generation {
    /// The row for a `model_version` such as `2.3.0` or `2.5-rc1`; files before 2.3 have none.
    pub fn of(version: Option<&str>) -> &'static Self {
        let mut numbers = version.unwrap_or("").split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let [.., oldest] = &GENERATIONS;
        GENERATIONS.iter().find(|generation| version >= generation.since).unwrap_or(oldest)
    }

    /// Steps of the first stage of `two-stage-hq`, in every generation.
    pub const HQ_STEPS: usize = 15;

    /// The official guidance of the video in `two-stage-hq`: the official preset has no spatio-temporal guidance.
    pub fn hq_video_guidance(&self) -> Guidance {
        Guidance { stg: 0.0, rescale: 0.45, ..self.video_guidance() }
    }

    /// The official guidance of the sound in `two-stage-hq`.
    pub fn hq_audio_guidance(&self) -> Guidance {
        Guidance { stg: 0.0, rescale: 1.0, ..self.audio_guidance() }
    }

    /// The official guidance of the video on a dev model.
    pub fn video_guidance(&self) -> Guidance {
        Guidance {
            cfg: 3.0,
            stg: 1.0,
            stg_blocks: vec![self.stg_block],
            rescale: 0.7,
            modality: 3.0,
            skip: 0,
        }
    }

    /// The official guidance of the sound on a dev model.
    pub fn audio_guidance(&self) -> Guidance {
        Guidance { cfg: 7.0, ..self.video_guidance() }
    }
}

/// Whether the weights were distilled to run in few steps without guidance. Dev and distilled files are alike in every
/// tensor: their name is the only cue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Needs guidance and tens of steps.
    Dev,
    /// Runs in eight steps.
    Distilled,
}

impl Kind {
    /// What the transformer's file name says, if it says anything.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let file = checkpoint.file(crate::checkpoint::Component::Dit)?;
        let name = file.path().file_name()?.to_string_lossy().to_lowercase();
        match (name.contains("distilled"), name.contains("dev")) {
            (true, _) => Some(Self::Distilled),
            (false, true) => Some(Self::Dev),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GENERATIONS, Generation};

    #[test]
    fn a_version_gets_the_newest_row_at_or_below_it() {
        let since = |version| Generation::of(version).since;
        assert_eq!(since(None), (0, 0));
        assert_eq!(since(Some("")), (0, 0));
        assert_eq!(since(Some("2.0")), (0, 0));
        assert_eq!(since(Some("2.3.0")), (2, 3));
        assert_eq!(since(Some("2.3.rc1")), (2, 3));
        assert_eq!(since(Some("2.4-rc2")), (2, 4));
        assert_eq!(since(Some("2.5.0")), (2, 5));
        assert_eq!(since(Some("3")), (2, 5));
        assert_eq!(since(Some("2.10")), (2, 5));
        assert_eq!(since(Some("nonsense")), (0, 0));
    }

    #[test]
    fn official_numbers() {
        let dev = |version| {
            let generation = Generation::of(version);
            (generation.steps, generation.video_guidance(), generation.audio_guidance())
        };
        let (steps, video, audio) = dev(None);
        assert_eq!((steps, video.stg_blocks.as_slice(), video.cfg, audio.cfg), (40, &[29][..], 3.0, 7.0));
        let (steps, video, audio) = dev(Some("2.3.0"));
        assert_eq!((steps, video.stg_blocks.as_slice()), (30, &[28][..]));
        assert_eq!((video.rescale, video.modality, video.stg, video.skip), (0.7, 3.0, 1.0, 0));
        assert_eq!((audio.rescale, audio.modality, audio.stg), (0.7, 3.0, 1.0));
        let crf = |version| Generation::of(version).image_crf;
        assert_eq!((crf(None), crf(Some("2.3")), crf(Some("2.4")), crf(Some("2.5"))), (33, 33, 18, 18));
        for generation in &GENERATIONS {
            let (video, audio) = (generation.hq_video_guidance(), generation.hq_audio_guidance());
            assert_eq!((video.cfg, video.stg, video.rescale, video.modality), (3.0, 0.0, 0.45, 3.0));
            assert_eq!((audio.cfg, audio.stg, audio.rescale, audio.modality), (7.0, 0.0, 1.0, 3.0));
        }
    }
}
