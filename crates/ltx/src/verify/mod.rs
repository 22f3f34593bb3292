//! Proof that this build computes what the reference computes: a golden file's inputs through one component, and its
//! outputs compared.

mod audio_decoder;
mod audio_encoder;
mod connector;
mod denoise;
mod dit;
mod gemma;
mod golden;
mod images;
mod mel;
mod schedule;
mod upsampler;
mod video_decoder;
mod video_encoder;
mod vocoder;

pub use golden::Golden;

use std::path::Path;

use mlx::{Array, Dtype};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Named results, as the golden names them: `out.…` and `mid.…`.
pub type Outputs = Vec<(String, Array)>;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The dtype of weights and activations.
    pub dtype: Dtype,
}

/// One compared tensor.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The golden's name for it.
    pub name: String,
    /// Largest absolute difference.
    pub worst: f32,
    /// ‖out − ref‖ / ‖ref‖
    pub relative: f32,
    /// The index of the largest difference, our value and the reference's.
    pub at: (Vec<usize>, f32, f32),
    /// Whether `relative` is within the tolerance.
    pub passed: bool,
}

/// What came of one golden.
#[derive(Clone, Debug)]
pub struct Report {
    /// The component.
    pub component: String,
    /// Relative error allowed.
    pub tolerance: f32,
    /// Every compared tensor, intermediates first: the first failure is where it began.
    pub comparisons: Vec<Comparison>,
    /// Intermediates in the golden that the component does not expose.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether every tensor agrees.
    pub fn passed(&self) -> bool {
        self.comparisons.iter().all(|comparison| comparison.passed)
    }
}

/// Runs the golden at `path` and compares.
pub fn verify(path: &Path, checkpoint: &Checkpoint, context: &Context) -> Result<Report> {
    let golden = Golden::open(path)?;
    let outputs = run(&golden, checkpoint, context)?;
    golden.refuse_unknown_inputs()?;
    golden.compare(&outputs, context)
}

fn run(golden: &Golden, checkpoint: &Checkpoint, context: &Context) -> Result<Outputs> {
    match golden.component() {
        "gemma" => gemma::verify(golden, checkpoint, context),
        "connector" => connector::verify(golden, checkpoint, context),
        "denoise" => denoise::verify(golden, checkpoint, context),
        "dit" => dit::verify(golden, checkpoint, context),
        "video_encoder" => video_encoder::verify(golden, checkpoint, context),
        "video_decoder" => video_decoder::verify(golden, checkpoint, context),
        "upsampler" => upsampler::verify(golden, checkpoint, context),
        "mel" => mel::verify(golden, checkpoint),
        "audio_encoder" => audio_encoder::verify(golden, checkpoint, context),
        "audio_decoder" => audio_decoder::verify(golden, checkpoint, context),
        "vocoder" => vocoder::verify(golden, checkpoint, context),
        "schedule" => schedule::verify(golden),
        "cover" => images::cover(golden),
        "conditioning" => images::conditioning(golden),
        "generate" => Err(Error::file(
            golden.path(),
            "__metadata__.component",
            "is `generate`: this is a whole run, not one component",
            "use its -noise and -embedding files with `ltx generate` and compare --save-latents",
        )),
        other => Err(Error::file(
            golden.path(),
            "__metadata__.component",
            format!("is `{other}`, which this version does not know"),
            "use a golden made for this version",
        )),
    }
}
