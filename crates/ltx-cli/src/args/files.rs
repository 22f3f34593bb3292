//! What can be typed to the commands about embeddings and latents.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{DeviceChoice, DtypeChoice, EncoderChoice};

#[derive(Debug, Args)]
pub struct EncodeText {
    /// What the clip shows and how it sounds
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// Folder of the Gemma 3 text encoder [default: weights/gemma-3-12b, or the downloaded one]
    #[arg(long, value_name = "DIR", visible_alias = "gemma-path", alias = "gemma-root")]
    pub gemma: Option<PathBuf>,
    /// Model files, a folder of them, or a name: the text projection and the connectors are read [default:
    /// weights/ltx-2/ltx-2-19b-distilled.safetensors, if it is there]
    #[arg(short, long, value_name = "PATH", visible_aliases = ["ltx-weights", "weights"], alias = "checkpoint-path")]
    pub model: Vec<PathBuf>,
    /// The file: .npz as LTX-2-MLX has it (the video's context), or .safetensors (video and audio)
    #[arg(short, long, value_name = "FILE", default_value = "prompt_embedding.npz")]
    pub output: PathBuf,
    /// What the clip should not be [default: for a dev model and .safetensors Lightricks' list, else none]
    #[arg(short, long, value_name = "PROMPT")]
    pub negative_prompt: Option<String>,
    /// Length of the contexts, a multiple of 128 up to 1024 [default: 256 for .npz, 1024 for .safetensors]
    #[arg(long, value_name = "N", alias = "max-length")]
    pub max_tokens: Option<usize>,
    /// Neither read nor write the cache of encoded prompts
    #[arg(long)]
    pub no_cache: bool,
    /// Where to compute
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Type of weights and activations
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::Bf16)]
    pub dtype: DtypeChoice,
    /// Read the text encoder layer by layer as it computes, instead of keeping it in memory
    #[arg(long)]
    pub stream: bool,
    /// Go on when a file holds tensors that nobody reads
    #[arg(long)]
    pub allow_unread: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Decode {
    /// The <output>_latent.npz of generate --skip-vae, or of LTX-2-MLX
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The clip [default: what the run was to write, beside FILE]
    #[arg(short, long, value_name = "PATH", aliases = ["output-path", "out"])]
    pub output: Option<PathBuf>,
    /// Model files, a folder of them, or a name [default: those of the run]
    #[arg(short, long, value_name = "PATH", visible_aliases = ["weights", "checkpoint-path"])]
    pub model: Vec<PathBuf>,
    /// Frames per second [default: those of the run, or 24]
    #[arg(long, value_name = "FPS", visible_alias = "fps")]
    pub frame_rate: Option<f64>,
    /// Where to compute
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Type of weights and activations [default: that of the run, or bf16]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub dtype: Option<DtypeChoice>,
    /// What encodes the clip
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = EncoderChoice::Builtin)]
    pub encoder: EncoderChoice,
    /// Stop when any file holds tensors that nobody reads
    #[arg(long)]
    pub strict: bool,
    /// Print how long each component took
    #[arg(long)]
    pub timings: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show the encoded prompts, last used first (this is the default)
    List,
    /// Remove them all
    Clear,
    /// Print where they are
    Path,
}

/// Which file to imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LikeChoice {
    /// LTX-2 2.0, 43 GB
    #[value(name = "2.0", alias = "19b")]
    Ltx19b,
    /// LTX-2 2.3, 46 GB
    #[value(name = "2.3", alias = "22b")]
    Ltx22b,
    /// The text encoder's folder, Gemma 3 12B, 24 GB
    Gemma,
}

#[derive(Debug, Args)]
pub struct Synth {
    /// The file to write; for Gemma the folder
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Which model it is to be like
    #[arg(long, value_name = "MODEL", value_enum)]
    pub like: LikeChoice,
    /// Blocks of the transformer, or layers of Gemma [default: all 48]
    #[arg(long, value_name = "N")]
    pub blocks: Option<usize>,
    /// Write only the first N blocks; the others, and all networks without blocks, are holes in the file: zeros that take no
    /// room on the disk, and no time to read
    #[arg(long, value_name = "N")]
    pub sparse: Option<usize>,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}
