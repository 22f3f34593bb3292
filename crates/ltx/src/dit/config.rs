//! The transformer's facts, read from the `transformer` section of the file's header.
//!
//! Generations differ here and nowhere else in this folder: a key that older files lack has a named meaning when it is
//! absent, every other key must be there, and what the code takes for granted is compared with the file.

use serde_json::json;

use crate::checkpoint;
use crate::error::Result;
use crate::nn::Bias;
use crate::shape::Modality;

/// Widths above this are damage, and products of sizes below it fit an `i32`.
const LARGEST_WIDTH: i32 = 1 << 20;

/// How the sigma of a step reaches the text attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextModulation {
    /// Not at all: the normed tokens attend to the text as it is.
    None,
    /// Shift, scale and gate for the tokens; the text has a learned shift and scale of its own.
    Learned,
    /// As `Learned`, and the text's shift and scale move with sigma.
    Timed,
}

/// The audio-video transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks.
    pub layers: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Sigma times this is the timestep that is embedded.
    pub timestep_scale: f32,
    /// The same for the gates of the exchange between the modalities.
    pub gate_timestep_scale: f32,
    /// Furthest second that the exchange's rotary positions are scaled by.
    pub exchange_max_position: f32,
    /// Whether every attention has a gate per head.
    pub gated: bool,
    /// How sigma reaches the text attention.
    pub text_modulation: TextModulation,
    /// The video stream.
    pub video: StreamConfig,
    /// The audio stream.
    pub audio: StreamConfig,
}

/// One modality's half of the transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    /// Which modality.
    pub modality: Modality,
    /// Attention heads; both modalities have as many.
    pub heads: i32,
    /// Width of a head; even.
    pub head_dim: i32,
    /// Channels of a latent token.
    pub in_channels: i32,
    /// Channels of a token's velocity.
    pub out_channels: i32,
    /// Furthest position per axis (seconds; then pixels down and across for video), which scales rotary angles.
    pub max_positions: Vec<f32>,
    /// Width of the text context, when it is projected to the stream's width here; none when it arrives that wide.
    pub caption_channels: Option<i32>,
    /// Whether the feed-forward layers have biases.
    pub feed_forward_bias: Bias,
    /// Whether tokens that encode a single pixel frame are marked by a learned embedding.
    pub keyframes: bool,
}

impl StreamConfig {
    /// Width of a token inside the network.
    pub fn width(&self) -> i32 {
        self.heads * self.head_dim
    }

    /// Width of the text context that the stream takes.
    pub fn context_width(&self) -> i32 {
        self.caption_channels.unwrap_or(self.width())
    }
}

impl Config {
    /// Reads the `transformer` section of a header's whole configuration.
    pub fn new(config: &checkpoint::Config) -> Result<Self> {
        let c = config.at("transformer")?;
        let assumed = [
            ("activation_fn", json!("gelu-approximate")),
            ("attention_bias", json!(true)),
            ("av_cross_ada_norm", json!(true)),
            ("cross_attention_norm", json!(true)),
            ("frequencies_precision", json!("float64")),
            ("norm_elementwise_affine", json!(false)),
            ("positional_embedding_type", json!("rope")),
            ("qk_norm", json!("rms_norm")),
            ("rope_type", json!("split")),
            ("share_ff", json!(false)),
            ("standardization_norm", json!("rms_norm")),
            ("use_audio_video_cross_attention", json!(true)),
            ("use_middle_indices_grid", json!(true)),
        ];
        for (key, expected) in assumed {
            match c.get(key) {
                None => return Err(c.error(key, "is missing")),
                Some(found) if *found != expected => {
                    return Err(c.error(key, format!("is {found}, but only {expected} is supported")));
                }
                Some(_) => {}
            }
        }

        // 19B (2.0) files lack these four keys.
        let absent_means_ungated = false;
        let absent_means_unmodulated_text = false;
        let absent_means_caption_projection_here = false;
        let gated = c.optional_bool("apply_gated_attention")?.unwrap_or(absent_means_ungated);
        let modulated = c.optional_bool("cross_attention_adaln")?.unwrap_or(absent_means_unmodulated_text);
        let projected_before =
            c.optional_bool("caption_proj_before_connector")?.unwrap_or(absent_means_caption_projection_here);
        // All files up to 2.5 lack this one; a file whose text keys can be computed once per prompt says false.
        let absent_means_timed_text = true;
        let timed = c.optional_bool("use_prompt_adaln_single")?.unwrap_or(absent_means_timed_text);
        let text_modulation = match (modulated, timed) {
            (false, _) => TextModulation::None,
            (true, false) => TextModulation::Learned,
            (true, true) => TextModulation::Timed,
        };

        let caption_channels = if projected_before { None } else { Some(width(&c, "caption_channels")?) };
        let video = stream(&c, Modality::Video, caption_channels)?;
        let audio = stream(&c, Modality::Audio, caption_channels)?;
        if video.heads != audio.heads {
            let problem = format!("is {}, but num_attention_heads is {}", audio.heads, video.heads);
            return Err(c.error("audio_num_attention_heads", problem));
        }
        let norm_eps = c.f64("norm_eps")?;
        let theta = c.f64("positional_embedding_theta")?;
        if theta <= 0.0 {
            return Err(c.error("positional_embedding_theta", format!("is {theta}, not above 0")));
        }
        Ok(Self {
            layers: c.usize("num_layers")?,
            norm_eps: norm_eps as f32,
            theta,
            timestep_scale: c.f64("timestep_scale_multiplier")? as f32,
            gate_timestep_scale: c.f64("av_ca_timestep_scale_multiplier")? as f32,
            exchange_max_position: video.max_positions[0].max(audio.max_positions[0]),
            gated,
            text_modulation,
            video,
            audio,
        })
    }

    /// One modality's half.
    pub fn stream(&self, modality: Modality) -> &StreamConfig {
        match modality {
            Modality::Video => &self.video,
            Modality::Audio => &self.audio,
        }
    }

    /// Rows of a block's main modulation table: shift, scale and gate of self-attention, of feed-forward, and, when it
    /// is modulated, of text attention.
    pub fn modulation_rows(&self) -> i32 {
        if self.text_modulation == TextModulation::None { 6 } else { 9 }
    }
}

fn stream(c: &checkpoint::Config, modality: Modality, caption_channels: Option<i32>) -> Result<StreamConfig> {
    let prefix = modality.prefix();
    let key = |name: &str| format!("{prefix}{name}");
    let heads = width(c, &key("num_attention_heads"))?;
    let head_dim = width(c, &key("attention_head_dim"))?;
    if head_dim % 2 != 0 || heads > LARGEST_WIDTH / head_dim || heads * head_dim < 6 {
        let problem =
            format!("is {head_dim} for {heads} heads: it must be even, and the product from 6 to 2²⁰");
        return Err(c.error(&key("attention_head_dim"), problem));
    }
    let context = width(c, &key("cross_attention_dim"))?;
    if context != heads * head_dim {
        let problem = format!("is {context}, not {}, the width of the stream", heads * head_dim);
        return Err(c.error(&key("cross_attention_dim"), problem));
    }
    let out_channels = width(c, &key("out_channels"))?;
    // No file states `audio_in_channels`: a velocity has the shape of its latent, so what comes out goes in.
    let absent_means_as_many_as_come_out = out_channels;
    let in_channels = match c.get(&key("in_channels")) {
        None if modality == Modality::Audio => absent_means_as_many_as_come_out,
        _ => width(c, &key("in_channels"))?,
    };
    let max_positions = c.list_usize(&key("positional_embedding_max_pos"))?;
    if max_positions.len() != modality.axes() || max_positions.contains(&0) {
        let problem = format!("is {max_positions:?}, not {} sizes above 0", modality.axes());
        return Err(c.error(&key("positional_embedding_max_pos"), problem));
    }
    // Files older than 2.5 lack the keys about biases and keyframes.
    let absent_means_with_bias = true;
    let absent_means_unmarked = false;
    let bias = c.optional_bool(&key("ff_bias"))?.unwrap_or(absent_means_with_bias);
    let keyframes = c.optional_bool("use_keyframes_abs_pos_embedding")?.unwrap_or(absent_means_unmarked);
    Ok(StreamConfig {
        modality,
        heads,
        head_dim,
        in_channels,
        out_channels,
        max_positions: max_positions.iter().map(|&position| position as f32).collect(),
        caption_channels,
        feed_forward_bias: if bias { Bias::Yes } else { Bias::No },
        keyframes: keyframes && modality == Modality::Video,
    })
}

fn width(c: &checkpoint::Config, key: &str) -> Result<i32> {
    let width = c.i32(key)?;
    if !(1..=LARGEST_WIDTH).contains(&width) {
        return Err(c.error(key, format!("is {width}, not between 1 and 2²⁰")));
    }
    Ok(width)
}
