//! Mel spectrogram → waveform at one rate: stages of upsampling, each followed by residual blocks of several widths
//! whose results are averaged. HiFi-GAN (blocks "1") and BigVGAN (blocks "AMP1") differ in their activation alone.

use mlx::Array;

use super::filter::AntiAliased;
use crate::checkpoint::{Config, Weights};
use crate::error::Result;
use crate::nn::{self, Bias, Conv, TransposedConv};
use crate::overlap::{Piece, Pieces, Reach};

/// Kernel of the first and last convolution.
const EDGE_KERNEL: i32 = 7;
/// Slope of the activations inside, and of the one before the last convolution.
const SLOPE: f32 = 0.1;
const LAST_SLOPE: f32 = 0.01;
/// Above any kernel, rate or dilation that makes sense; keeps what is computed from them in range.
const LARGEST: usize = 1024;

/// What the activations of a configuration are.
#[derive(Clone, Copy)]
enum Kind {
    Leaky,
    Snake { beta: bool },
}

impl Kind {
    fn of(config: &Config) -> Result<Self> {
        match (config.str("resblock")?, config.optional_str("activation")?) {
            ("1", _) => Ok(Self::Leaky),
            ("AMP1", Some("snake")) => Ok(Self::Snake { beta: false }),
            ("AMP1", Some("snakebeta")) => Ok(Self::Snake { beta: true }),
            ("AMP1", other) => {
                let other = other.unwrap_or("not stated");
                Err(config.error("activation", format!("is {other}; `snake` and `snakebeta` are supported")))
            }
            (other, _) => {
                Err(config.error("resblock", format!("is `{other}`; `1` and `AMP1` are supported")))
            }
        }
    }

    fn load(self, weights: &Weights, channels: i32) -> Result<Activation> {
        Ok(match self {
            Self::Leaky => Activation::Leaky(SLOPE),
            Self::Snake { beta } => Activation::Snake(AntiAliased::load(weights, channels, beta)?),
        })
    }

    fn load_last(self, weights: &Weights, channels: i32) -> Result<Activation> {
        Ok(match self {
            Self::Leaky => Activation::Leaky(LAST_SLOPE),
            // With β also where the blocks have none.
            Self::Snake { .. } => Activation::Snake(AntiAliased::load(weights, channels, true)?),
        })
    }
}

enum Activation {
    Leaky(f32),
    Snake(AntiAliased),
}

impl Activation {
    /// (batch, time, channels), both sides.
    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        match self {
            Self::Leaky(slope) => nn::leaky_relu(x, *slope),
            Self::Snake(snake) => snake.forward(x),
        }
    }
}

/// How a waveform is kept in [-1, 1].
#[derive(Clone, Copy)]
pub(super) enum Final {
    Tanh,
    Clamp,
    /// Not here: it is added to another one first.
    Nothing,
}

impl Final {
    /// As the configuration says; where it does not (2.0), tanh.
    pub(super) fn of(config: &Config) -> Result<Self> {
        let tanh = config.optional_bool("use_tanh_at_final")?.unwrap_or(true);
        Ok(if tanh { Self::Tanh } else { Self::Clamp })
    }
}

/// Twice an activation and a convolution, the first one dilated, added to what came in.
struct Pair {
    activations: [Activation; 2],
    convs: [Conv; 2],
    settings: [mlx::Conv; 2],
}

impl Pair {
    fn forward(&self, x: &Array) -> mlx::Result<Array> {
        let y = self.convs[0].forward(&self.activations[0].forward(x)?, &self.settings[0])?;
        self.convs[1].forward_onto(&self.activations[1].forward(&y)?, &self.settings[1], Some(x))
    }
}

struct Stage {
    up: TransposedConv,
    blocks: Vec<Vec<Pair>>,
}

/// A generator.
pub(super) struct Generator {
    kind: Kind,
    first: Conv,
    stages: Vec<Stage>,
    activation: Activation,
    last: Conv,
    finish: Final,
    inputs: i32,
    samples_per_frame: i32,
}

impl Generator {
    /// Reads all that is at `weights`; `config` is the generator's own section.
    pub(super) fn load(weights: &Weights, config: &Config, finish: Final) -> Result<Self> {
        if !config.bool("stereo")? {
            return Err(config.error("stereo", "must be true: all published vocoders have two channels"));
        }
        let kind = Kind::of(config)?;
        let rates = sizes(config, "upsample_rates")?;
        let up_kernels = sizes(config, "upsample_kernel_sizes")?;
        let kernels = sizes(config, "resblock_kernel_sizes")?;
        let dilations = dilations(config)?;
        if up_kernels.len() != rates.len()
            || rates.iter().zip(&up_kernels).any(|(rate, kernel)| kernel < rate)
        {
            return Err(
                config.error("upsample_kernel_sizes", "must hold a size for each rate, no smaller than it")
            );
        }
        if kernels.len() != dilations.len() || kernels.iter().any(|kernel| kernel % 2 == 0) {
            return Err(
                config.error("resblock_kernel_sizes", "must hold an odd size for each list of dilations")
            );
        }
        let samples_per_frame = rates.iter().try_fold(1i32, |product, &rate| product.checked_mul(rate));
        let Some(samples_per_frame) = samples_per_frame else {
            return Err(config.error("upsample_rates", "are too large together"));
        };

        let mut channels = config.i32("upsample_initial_channel")?;
        // Official generators take 128 inputs, two sides of 64 mel bins, whatever the configuration says.
        let inputs = 128;
        let first = Conv::load(&weights.at("conv_pre"), inputs, channels, &[EDGE_KERNEL], Bias::Yes)?;
        let mut stages = Vec::new();
        for (index, (&rate, &kernel)) in rates.iter().zip(&up_kernels).enumerate() {
            if channels < 2 {
                return Err(config.error("upsample_initial_channel", "is too small for so many rates"));
            }
            let weights_up = weights.at(format!("ups.{index}"));
            let up = TransposedConv::load(
                &weights_up,
                [channels, channels / 2],
                kernel,
                rate,
                (kernel - rate) / 2,
            )?;
            channels /= 2;
            let mut blocks = Vec::new();
            for (place, (&kernel, dilations)) in kernels.iter().zip(&dilations).enumerate() {
                let weights = weights.at(format!("resblocks.{}", index * kernels.len() + place));
                blocks.push(block(&weights, kind, channels, kernel, dilations)?);
            }
            stages.push(Stage { up, blocks });
        }
        let bias = match config.optional_bool("use_bias_at_final")? {
            Some(false) => Bias::No,
            Some(true) | None => Bias::Yes, // 2.0 does not say, and has one
        };
        Ok(Self {
            kind,
            first,
            stages,
            activation: kind.load_last(&weights.at("act_post"), channels)?,
            last: Conv::load(&weights.at("conv_post"), channels, 2, &[EDGE_KERNEL], bias)?,
            finish,
            inputs,
            samples_per_frame,
        })
    }

    /// Samples made of one mel frame.
    pub(super) fn samples_per_frame(&self) -> i32 {
        self.samples_per_frame
    }

    /// How many mel frames a sample sees, to both sides.
    pub(super) fn reach(&self) -> Reach {
        let activation = if matches!(self.kind, Kind::Snake { .. }) { AntiAliased::REACH } else { 0 };
        let edge = (EDGE_KERNEL - 1) / 2;
        let (mut frames, mut rate) = (f64::from(edge), 1.0);
        for stage in &self.stages {
            let pair = |pair: &Pair| {
                let convs = pair.settings.iter().flat_map(|settings| &settings.padding_low).sum::<i32>();
                convs + 2 * activation
            };
            let block = |block: &Vec<Pair>| block.iter().map(pair).sum::<i32>();
            frames += f64::from(stage.up.reach()) / rate;
            rate *= f64::from(stage.up.stride());
            frames += f64::from(stage.blocks.iter().map(block).max().unwrap_or(0)) / rate;
        }
        frames += f64::from(activation + edge) / rate;
        Reach { before: frames.ceil() as i32, after: frames.ceil() as i32 }
    }

    /// The next of a waveform (batch, samples, 2) for which enough of its mel (batch, frames, 2 · bins), side by side, is known.
    pub(super) fn next(&self, mel: &mut Pieces) -> Result<Option<(Array, bool)>> {
        let Some((mel, Piece { own, seen, last })) = mel.next()? else { return Ok(None) };
        let waveform = self.piece(&mel)?;
        let samples = self.samples_per_frame;
        // Where a kernel and its rate are not both even or odd, there is a little more at the end.
        let end = if last { waveform.dim(1) } else { (own.end - seen.start) * samples };
        let waveform = waveform.slice(1, (own.start - seen.start) * samples..end)?.contiguous()?;
        waveform.eval()?;
        Ok(Some((waveform, last)))
    }

    /// Mel (batch, frames, 2 · bins), side by side → waveform (batch, samples, 2), at once.
    pub(super) fn piece(&self, mel: &Array) -> Result<Array> {
        if mel.dim(2) != self.inputs {
            let problem =
                format!("a mel spectrogram of {} bins per side, not {}", mel.dim(2) / 2, self.inputs / 2);
            return Err(crate::Error::request(problem, "give one made for this model"));
        }
        let edge = padded(EDGE_KERNEL, 1);
        let mut x = self.first.forward(mel, &edge)?;
        for stage in &self.stages {
            if matches!(self.kind, Kind::Leaky) {
                x = nn::leaky_relu(&x, SLOPE)?;
            }
            x = stage.up.forward(&x)?;
            let mut sum: Option<Array> = None;
            for block in &stage.blocks {
                let mut y = x.clone();
                for pair in block {
                    y = pair.forward(&y)?;
                    y.eval()?; // bounds memory: what a pair needs is many times its result
                }
                sum = Some(match sum {
                    Some(sum) => sum.add(&y)?,
                    None => y,
                });
            }
            if let Some(sum) = sum {
                x = sum.divide(stage.blocks.len() as f32)?;
            }
        }
        let x = self.last.forward(&self.activation.forward(&x)?, &edge)?;
        Ok(match self.finish {
            Final::Tanh => x.tanh()?,
            Final::Clamp => clamp(&x)?,
            Final::Nothing => x,
        })
    }
}

/// Limits to [-1, 1].
pub(super) fn clamp(x: &Array) -> mlx::Result<Array> {
    x.maximum(-1.0f32)?.minimum(1.0f32)
}

/// A convolution that keeps the length: `kernel` is odd.
fn padded(kernel: i32, dilation: i32) -> mlx::Conv {
    let side = vec![(kernel - 1) / 2 * dilation];
    mlx::Conv {
        dilation: vec![dilation],
        padding_low: side.clone(),
        padding_high: side,
        ..Default::default()
    }
}

fn block(weights: &Weights, kind: Kind, channels: i32, kernel: i32, dilations: &[i32]) -> Result<Vec<Pair>> {
    let pair = |(index, &dilation): (usize, &i32)| {
        let activation = |list| kind.load(&weights.at(format!("{list}.{index}")), channels);
        let conv = |list| {
            Conv::load(&weights.at(format!("{list}.{index}")), channels, channels, &[kernel], Bias::Yes)
        };
        Ok(Pair {
            activations: [activation("acts1")?, activation("acts2")?],
            convs: [conv("convs1")?, conv("convs2")?],
            settings: [padded(kernel, dilation), padded(kernel, 1)],
        })
    };
    dilations.iter().enumerate().map(pair).collect()
}

/// A list of sizes from 1 to [`LARGEST`].
fn sizes(config: &Config, key: &str) -> Result<Vec<i32>> {
    let list = config.list_usize(key)?;
    if list.is_empty() || list.iter().any(|size| !(1..=LARGEST).contains(size)) {
        return Err(config.error(key, format!("is {list:?}, not sizes from 1 to {LARGEST}")));
    }
    Ok(list.into_iter().map(|size| size as i32).collect())
}

/// For each kernel, the dilations of its pairs.
fn dilations(config: &Config) -> Result<Vec<Vec<i32>>> {
    let key = "resblock_dilation_sizes";
    let size = |value: &serde_json::Value| {
        value.as_u64().filter(|size| (1..=LARGEST as u64).contains(size)).map(|size| size as i32)
    };
    let list = |value: &serde_json::Value| value.as_array()?.iter().map(size).collect::<Option<Vec<i32>>>();
    let lists: Option<Vec<Vec<i32>>> = config.list(key)?.iter().map(list).collect();
    lists.ok_or_else(|| config.error(key, format!("must be lists of sizes from 1 to {LARGEST}")))
}
