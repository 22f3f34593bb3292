//! What can be typed. Names follow the Python original and the official pipelines; what peers call the same thing is
//! an alias.

mod files;
mod memory;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::images::Images;
use crate::shots::Shots;

pub use files::{
    CacheCommand, Decode, EncodeText, LikeChoice, LoraCommand, LoraInspect, LoraMerge, Quantize, Resume,
    Synth,
};
pub use memory::{Memory, QuantizeChoice, Tiles, Wish, wish};

/// LTX-2 on your own machine: a prompt in, a video clip with synchronized sound out.
#[derive(Debug, Parser)]
#[command(name = "ltx", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Threads on the CPU [default: LTX_THREADS, or as many as there are processors]
    #[arg(long, value_name = "N", global = true)]
    pub threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate a clip with sound from a prompt
    Generate(Box<Generate>),
    /// Say what generate with the same options would take of memory and time, and run nothing
    Plan(Box<Generate>),
    /// Show what is in a model file or folder
    #[command(alias = "info")]
    Inspect(Inspect),
    /// Encode a prompt into a file for generate --embedding
    EncodeText(EncodeText),
    /// Go on with an interrupted run
    Resume(Resume),
    /// Make a clip of latents that generate --skip-vae or an interrupted run wrote
    Decode(Decode),
    /// Show or clear the cache of encoded prompts
    Cache {
        #[command(subcommand)]
        command: Option<CacheCommand>,
    },
    /// Have Gemma make a prompt of an idea
    Enhance(Enhance),
    /// Look into LoRA files, or merge them into a model
    #[command(subcommand)]
    Lora(LoraCommand),
    /// Write a model with its large matrices packed into 8 or 4 bits
    Quantize(Quantize),
    /// Fetch models from the model hub, or list their names
    Download(Download),
    /// Prove that this build computes what the reference computes, on golden files
    Verify(Verify),
    /// List the processors that can be used
    Devices(Devices),
    /// Measure how fast this machine does the model's work, with random weights
    #[command(alias = "benchmark")]
    Bench(Bench),
    /// Write model files of full size with random weights, to measure memory and speed with
    Synth(Synth),
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The GPU when there is one
    Auto,
    /// The processor
    Cpu,
    /// The GPU, or an error
    Gpu,
}

/// Type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    /// bfloat16, as the models were trained
    Bf16,
    /// float16
    F16,
    /// float32: twice the memory, for comparisons
    F32,
}

/// How frames and sound are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EncoderChoice {
    /// H.264 and AAC by this program
    Builtin,
    /// The `ffmpeg` on your PATH
    Ffmpeg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecipeChoice {
    /// Half size, upsample, refine; for distilled models
    Distilled,
    /// One guided pass at full size; for dev models
    #[value(aliases = ["one_stage", "dev", "ti2vid-one-stage", "ti2vid_one_stage"])]
    OneStage,
    /// Guided at half size, upsample, refine with the distilled LoRA; for dev models
    #[value(aliases = ["two_stage", "two-stages", "dev-two-stage", "ti2vid-two-stages", "ti2vid_two_stages"])]
    TwoStage,
    /// Between given pictures: two-stage (or distilled, on a distilled model) where every --image guides
    #[value(aliases = ["keyframe", "keyframe-interpolation", "keyframe_interpolation"])]
    Keyframes,
    /// Two-stage with a sampler of second order in fewer steps
    #[value(aliases = ["two_stage_hq", "two-stages-hq", "dev-two-stage-hq", "ti2vid-two-stages-hq", "ti2vid_two_stages_hq"])]
    TwoStageHq,
}

/// From one noise level to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SamplerChoice {
    /// Straight along the velocity
    Euler,
    /// Euler with fresh noise at every step
    #[value(alias = "euler_ancestral")]
    EulerAncestral,
    /// Euler with the velocity extrapolated from its change
    #[value(aliases = ["gradient_estimation", "gradient-estimating-euler", "ge"])]
    GradientEstimation,
    /// Second order: two passes a step, with fresh noise
    #[value(name = "res-2s", aliases = ["res_2s", "res2s"])]
    Res2s,
}

#[derive(Debug, Args)]
pub struct Generate {
    /// What the clip shows and how it sounds
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<String>,
    /// The same, as an option
    #[arg(short, long = "prompt", value_name = "PROMPT", conflicts_with = "prompt", hide = true)]
    pub prompt_option: Option<String>,

    /// Have Gemma make a longer prompt of it first, and show that
    #[arg(long, conflicts_with = "embedding")]
    pub enhance_prompt: bool,
    /// Model files, a folder of them (parts are recognised by content), or a name that `ltx download` knows [default:
    /// weights/ltx-2/ltx-2-19b-distilled.safetensors, if it is there; else toy, the small model that is part of the
    /// program, where it was built with one]
    #[arg(short, long, value_name = "PATH", visible_aliases = ["weights", "checkpoint-path"], alias = "distilled-checkpoint-path")]
    pub model: Vec<PathBuf>,
    /// Folder of the Gemma 3 text encoder, or its GGUF file [default: weights/gemma-3-12b, or the downloaded one]
    #[arg(long, value_name = "PATH", aliases = ["gemma-path", "gemma-root"])]
    pub gemma: Option<PathBuf>,
    /// Latent upsampler x2, for two-stage recipes [default: the downloaded one, for a model that is given by name]
    #[arg(long, value_name = "FILE", aliases = ["spatial-upsampler-path", "upsampler"])]
    pub spatial_upsampler: Option<PathBuf>,

    #[command(flatten)]
    pub images: Images,

    /// Height in pixels, a multiple of 32 (64 for two stages) [default: 480, or 512 for two stages; 192 for the toy]
    #[arg(short = 'H', long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Width in pixels, a multiple of 32 (64 for two stages) [default: 704; 256 for the toy]
    #[arg(short = 'W', long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Frames, 8k + 1 [default: 97; 25 for the toy]
    #[arg(short, long, value_name = "N", visible_alias = "num-frames", alias = "video-frames")]
    pub frames: Option<usize>,
    /// Length of the clip, to the nearest 8k + 1 frames, instead of --frames
    #[arg(long, value_name = "SECONDS", conflicts_with = "frames", alias = "duration")]
    pub seconds: Option<f64>,
    #[command(flatten)]
    pub shots: Shots,
    /// The most frames made at once, 8k + 1: a longer clip is made in windows, each going on with the last one's picture
    /// and sound [default: 121; 25 for the toy]
    #[arg(long, value_name = "N", alias = "clip-frames")]
    pub window: Option<usize>,
    /// Frames of the last window that the next one is given, 8k + 1 [default: a quarter of --window, 9 to 25]
    #[arg(long, value_name = "N")]
    pub overlap: Option<usize>,
    /// Frames per second
    #[arg(long, value_name = "FPS", default_value_t = 24.0, visible_alias = "fps")]
    pub frame_rate: f64,
    /// Denoising steps [default: what the model was made for]
    #[arg(long, value_name = "N", aliases = ["num-inference-steps", "stage1-steps", "steps-stage1"])]
    pub steps: Option<usize>,
    /// Seed of the noise: the same seed gives the same clip
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// The clip (.mp4), one picture (.png), the sound (.wav), or a folder (ending in /) of PNG frames
    #[arg(short, long, value_name = "PATH", default_value = "output.mp4", aliases = ["output-path", "out"])]
    pub output: PathBuf,

    /// How to denoise [default: by the model's file name]
    #[arg(long, value_name = "NAME", alias = "pipeline")]
    pub recipe: Option<RecipeChoice>,
    /// Sampler of the first stage [default: the recipe's]
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<SamplerChoice>,
    #[command(flatten, next_help_heading = "LoRAs")]
    pub loras: Loras,
    /// What the clip should not be; used when guidance is on
    #[arg(short, long, value_name = "PROMPT")]
    pub negative_prompt: Option<String>,
    #[command(flatten, next_help_heading = "Guidance (dev models)")]
    pub guidance: Guidance,

    /// An encoded prompt (.npz or .safetensors) from ltx encode-text, instead of a prompt and a text encoder
    #[arg(long, value_name = "FILE", help_heading = "Files for reproduction")]
    pub embedding: Option<PathBuf>,
    /// Neither read nor write the cache of encoded prompts
    #[arg(long)]
    pub no_cache: bool,
    /// Initial noise from a file instead of the seed
    #[arg(long, value_name = "FILE", help_heading = "Files for reproduction")]
    pub noise: Option<PathBuf>,
    /// Write the final latents
    #[arg(long, value_name = "FILE", help_heading = "Files for reproduction")]
    pub save_latents: Option<PathBuf>,

    /// Do not decode: write <output>_latent.npz for ltx decode, and a picture of the latents
    #[arg(long, help_heading = "Trying things out")]
    pub skip_vae: bool,
    /// No text encoder: contexts from the prompt's letters, which mean nothing
    #[arg(long, conflicts_with_all = ["embedding", "enhance_prompt"], help_heading = "Trying things out")]
    pub dummy_text: bool,
    /// No transformer: decode noise
    #[arg(long, conflicts_with = "enhance_prompt", help_heading = "Trying things out")]
    pub placeholder: bool,

    /// Make a silent clip: the video alone is computed
    #[arg(long)]
    pub no_audio: bool,
    /// Where to compute
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Type of weights and activations
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::Bf16)]
    pub dtype: DtypeChoice,
    /// Pack the large matrices of the transformer and the text encoder while they are read, to use less memory: none, 8, 4,
    /// mxfp8, nvfp4, or auto for 8 or 4 where that lets the transformer stay in memory [default: none]
    #[arg(long, value_name = "BITS", value_parser = wish, default_value = "none", hide_default_value = true)]
    pub quantize: Wish,
    /// What encodes the clip
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = EncoderChoice::Builtin)]
    pub encoder: EncoderChoice,
    /// Read the transformer and the text encoder block by block as they compute, instead of keeping them in memory
    #[arg(long)]
    pub stream: bool,
    #[command(flatten)]
    pub memory: Memory,
    #[command(flatten)]
    pub tiles: Tiles,
    /// Go on with what an interrupted run of this very command has done
    #[arg(long)]
    pub resume: bool,
    /// Go on when a file holds tensors that nobody reads
    #[arg(long, conflicts_with = "strict")]
    pub allow_unread: bool,
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

impl Generate {
    /// Whether nothing was given that belongs to another model than the built-in one.
    pub fn uses_default_model(&self) -> bool {
        self.gemma.is_none()
            && self.spatial_upsampler.is_none()
            && self.loras.lora.is_empty()
            && self.loras.distilled_lora.is_empty()
    }
}

/// Updates of the model's weights.
#[derive(Debug, Args)]
pub struct Loras {
    /// LoRA file, adapter folder or short name, and its strength (1 if left out); may be repeated
    #[arg(long, value_names = ["PATH", "STRENGTH"], num_args = 1..=2, allow_negative_numbers = true, alias = "loras")]
    pub lora: Vec<String>,
    /// LoRA with which the two-stage recipes refine, and its strength there [default: 1; 0.5 for two-stage-hq]
    #[arg(long, value_names = ["PATH", "STRENGTH"], num_args = 1..=2, allow_negative_numbers = true)]
    pub distilled_lora: Vec<String>,
    /// Its strength before that, at half size [default: 0; 0.25 for two-stage-hq]
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    pub distilled_lora_strength_stage_1: Option<f32>,
    /// The same as the strength after --distilled-lora
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    pub distilled_lora_strength_stage_2: Option<f32>,
}

/// Guidance of the video, and of the sound where an `--audio-` option differs from it.
#[derive(Debug, Args)]
pub struct Guidance {
    /// Classifier-free guidance scale; 1 is off [default: 3]
    #[arg(long, value_name = "SCALE", aliases = ["cfg-scale", "video-cfg-guidance-scale", "guidance-scale"])]
    pub cfg: Option<f32>,
    /// Guide a distilled model all the same, which spoils the picture
    #[arg(long)]
    pub force_guidance: bool,
    /// Spatio-temporal guidance scale; 0 is off [default: 1]
    #[arg(long, value_name = "SCALE", alias = "video-stg-guidance-scale")]
    pub stg_scale: Option<f32>,
    /// Blocks that spatio-temporal guidance perturbs [default: 28; 29 for 2.0]
    #[arg(long, value_name = "N,N", value_delimiter = ',', num_args = 1.., alias = "video-stg-blocks")]
    pub stg_blocks: Option<Vec<usize>>,
    /// How far guidance is scaled back to the unguided spread, 0 to 1 [default: 0.7]
    #[arg(long, value_name = "SCALE", aliases = ["video-rescale-scale", "cfg-rescale"])]
    pub rescale: Option<f32>,
    /// Guidance towards agreement of picture and sound; 1 is off [default: 3]
    #[arg(long, value_name = "SCALE", alias = "a2v-guidance-scale")]
    pub modality_scale: Option<f32>,
    /// Guide only every (N + 1)th step [default: 0]
    #[arg(long, value_name = "N", aliases = ["skip-step", "video-skip-step"])]
    pub guidance_skip: Option<usize>,
    /// The same for the sound [default: 7]
    #[arg(long, value_name = "SCALE", aliases = ["audio-cfg-scale", "audio-cfg-guidance-scale"])]
    pub audio_cfg: Option<f32>,
    /// The same for the sound [default: 1]
    #[arg(long, value_name = "SCALE", alias = "audio-stg-guidance-scale")]
    pub audio_stg_scale: Option<f32>,
    /// The same for the sound [default: 28; 29 for 2.0]
    #[arg(long, value_name = "N,N", value_delimiter = ',', num_args = 1..)]
    pub audio_stg_blocks: Option<Vec<usize>>,
    /// The same for the sound [default: 0.7]
    #[arg(long, value_name = "SCALE", alias = "audio-rescale-scale")]
    pub audio_rescale: Option<f32>,
    /// The same for the sound [default: 3]
    #[arg(long, value_name = "SCALE", alias = "v2a-guidance-scale")]
    pub audio_modality_scale: Option<f32>,
    /// The same for the sound [default: 0]
    #[arg(long, value_name = "N", alias = "audio-skip-step")]
    pub audio_guidance_skip: Option<usize>,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// Model files or folders
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Golden files
    #[arg(value_name = "GOLDEN", required = true)]
    pub goldens: Vec<PathBuf>,
    /// Model files or folders [default: those the golden names, beside its folder]
    #[arg(short, long, value_name = "PATH")]
    pub model: Vec<PathBuf>,
    /// Where to compute
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Type of weights and activations
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::F32)]
    pub dtype: DtypeChoice,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Devices {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Enhance {
    /// The idea
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// Folder of the instruction-tuned Gemma 3, or its GGUF file [default: weights/gemma-3-12b, or the downloaded one]
    #[arg(long, value_name = "PATH", aliases = ["gemma-path", "gemma-root"])]
    pub gemma: Option<PathBuf>,
    /// The clip will begin with a picture, which Gemma does not see
    #[arg(long, alias = "i2v")]
    pub with_image: bool,
    /// Seed of the choice of words
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// How freely words are chosen; 0 takes the likeliest always
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: usize,
    /// Print the instructions that Gemma gets, and write nothing
    #[arg(long)]
    pub show_instructions: bool,
    /// Where to compute
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Type of weights and activations
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::Bf16)]
    pub dtype: DtypeChoice,
    /// Pack Gemma's large matrices while they are read, to use less memory
    #[arg(long, value_name = "BITS", value_enum, default_value_t = QuantizeChoice::None)]
    pub quantize: QuantizeChoice,
    /// Read Gemma layer by layer, for every word anew, instead of keeping it in memory
    #[arg(long)]
    pub stream: bool,
    #[command(flatten)]
    pub memory: Memory,
    /// Print the prompt and errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Download {
    /// Names that --list shows (with what they need to run), or owner/repo[@revision][:file]
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub names: Vec<String>,
    /// Show the names, their sizes, and what is on this machine
    #[arg(long, conflicts_with = "names")]
    pub list: bool,
    /// Say what would be fetched, and fetch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Leave out what else the names need to run
    #[arg(long)]
    pub only: bool,
    /// Access token for the hub [default: HF_TOKEN, or that of `hf auth login`]
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Put the files into a folder too, without a second copy where the disk allows
    #[arg(short, long, value_name = "DIR", alias = "local-dir")]
    pub output: Option<PathBuf>,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub connections: usize,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Print errors and paths only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// Works, by name [default: all of them, in a few minutes]
    #[arg(value_name = "WORK")]
    pub works: Vec<String>,
    /// Say what there is to measure
    #[arg(long)]
    pub list: bool,
    /// Where to compute
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Type of weights and activations; the vocoder is always f32
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::Bf16)]
    pub dtype: DtypeChoice,
    /// How long each work is repeated, three times at least
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub seconds: f64,
    /// Print JSON, one object in a line for each work
    #[arg(long)]
    pub json: bool,
}
