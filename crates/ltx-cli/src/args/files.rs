//! What can be typed to the commands about files: embeddings, latents, random models, packed weights, LoRAs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::memory::{Memory, Tiles};
use super::{DeviceChoice, DtypeChoice, EncoderChoice, QuantizeChoice};

#[derive(Debug, Args)]
pub struct EncodeText {
    /// What the clip shows and how it sounds
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// Folder of the Gemma 3 text encoder, or its GGUF file [default: weights/gemma-3-12b, or the downloaded one]
    #[arg(long, value_name = "PATH", visible_alias = "gemma-path", alias = "gemma-root")]
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
    /// Pack Gemma's large matrices while they are read, to use less memory
    #[arg(long, value_name = "BITS", value_enum, default_value_t = QuantizeChoice::None)]
    pub quantize: QuantizeChoice,
    /// Read the text encoder layer by layer as it computes, instead of keeping it in memory
    #[arg(long)]
    pub stream: bool,
    #[command(flatten)]
    pub memory: Memory,
    /// Go on when a file holds tensors that nobody reads
    #[arg(long)]
    pub allow_unread: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Resume {
    /// The clip that the run was to write, or the folder .ltx-run-… beside it [default: the one in this folder]
    #[arg(value_name = "OUTPUT")]
    pub output: Option<PathBuf>,
    /// Options to add to those of the run, such as --tile-size 256
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true, requires = "output")]
    pub more: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Decode {
    /// The <output>_latent.npz of generate --skip-vae, or of LTX-2-MLX; or the folder .ltx-run-… of an interrupted run
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
    #[command(flatten)]
    pub memory: Memory,
    #[command(flatten)]
    pub tiles: Tiles,
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

#[derive(Debug, Args)]
pub struct Quantize {
    /// Model file, or the folder of Gemma 3
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file or folder to write
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Into how many bits
    #[arg(long, value_name = "BITS", value_enum, default_value_t = QuantizeChoice::Eight)]
    pub bits: QuantizeChoice,
    /// Values that share a scale, with 8 and 4 bits: 32, 64 or 128
    #[arg(long, value_name = "N", default_value_t = 64, alias = "group-size")]
    pub group: usize,
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

/// Models that `ltx synth` can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LikeChoice {
    /// The single file of 2.0, 19B
    #[value(name = "2.0")]
    V2_0,
    /// The single file of 2.3, 22B
    #[value(name = "2.3")]
    V2_3,
    /// The spatial upsampler x2 of 2.3
    Upsampler,
    /// A folder with a Gemma 3 12B text encoder
    Gemma,
}

#[derive(Debug, Args)]
pub struct Synth {
    /// The file, or for gemma the folder, to write
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// What it is like
    #[arg(long, value_name = "MODEL", value_enum)]
    pub like: LikeChoice,
    /// Transformer blocks, or layers of the text encoder [default: 48, as the real ones have]
    #[arg(long, value_name = "N")]
    pub blocks: Option<usize>,
    /// Give only the transformer and the first N of its blocks values; the rest are holes, which read as zeros and take no
    /// room on the disk
    #[arg(long, value_name = "N")]
    pub sparse: Option<usize>,
    /// Seed of the values
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum LoraCommand {
    /// Show what a LoRA changes, and whether it fits a model
    Inspect(LoraInspect),
    /// Write a model file with LoRAs merged into it
    Merge(LoraMerge),
    /// List the LoRAs with short names
    List,
}

#[derive(Debug, Args)]
pub struct LoraInspect {
    /// LoRA file, adapter folder, or short name
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Model files or folders to compare with
    #[arg(long, value_name = "MODEL")]
    pub against: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LoraMerge {
    /// Model file
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// LoRA and its strength (1 if left out); may be repeated
    #[arg(long, value_names = ["PATH", "STRENGTH"], num_args = 1..=2, required = true, allow_negative_numbers = true)]
    pub lora: Vec<String>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}
