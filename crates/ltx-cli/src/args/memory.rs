//! What can be typed about memory: how much there is, whether to stream and to pack, and the pieces a clip is decoded in.

use clap::{Args, ValueEnum};
use ltx::nn::Packing;
use ltx::video_vae::Tiling;

/// How much memory a run may take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Memory {
    /// Memory that the run may take, in GB: it streams and cuts what does not fit [default: what the machine has free]
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    pub memory: Option<u64>,
}

/// Bytes of so many gigabytes.
fn gigabytes(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e9 => Ok((number * 1e9) as u64),
        _ => Err("give a number of gigabytes, such as 12 or 7.5".into()),
    }
}

/// Into how many bits weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QuantizeChoice {
    /// Not at all
    #[value(aliases = ["bf16", "no", "off"])]
    None,
    /// 8 bits, with a scale and a bias for each 64 values: half the size, no loss to speak of
    #[value(name = "8", aliases = ["int8", "q8"])]
    Eight,
    /// 4 bits, in the same way: 28 % of the size, with a loss
    #[value(name = "4", aliases = ["int4", "q4"])]
    Four,
    /// Floats of 8 bits, with a scale for each 32
    Mxfp8,
    /// Floats of 4 bits, with a scale for each 16
    Nvfp4,
}

impl QuantizeChoice {
    /// The packing, with groups of 64 where there is a choice.
    pub fn packing(self) -> Option<Packing> {
        match self {
            Self::None => None,
            Self::Eight => Some(Packing::Affine { bits: 8, group: 64 }),
            Self::Four => Some(Packing::Affine { bits: 4, group: 64 }),
            Self::Mxfp8 => Some(Packing::Mxfp8),
            Self::Nvfp4 => Some(Packing::Nvfp4),
        }
    }
}

/// Into how many bits a run packs weights: as chosen, or as the memory asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Auto,
    As(QuantizeChoice),
}

/// One of the choices, or `auto`.
pub fn wish(text: &str) -> Result<Wish, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Wish::Auto);
    }
    QuantizeChoice::from_str(text, true)
        .map(Wish::As)
        .map_err(|_| "possible are none, 8, 4, mxfp8, nvfp4 and auto".into())
}

/// The pieces that a clip is decoded in.
#[derive(Clone, Copy, Debug, Args)]
pub struct Tiles {
    /// Height and width of tiles that the video is decoded in, a multiple of 32 from 64: smaller ones need less memory
    /// [default: whole pictures if they fit into memory, else tiles that do]
    #[arg(long, value_name = "PIXELS", value_parser = multiple::<32>)]
    tile_size: Option<i32>,
    /// Their length in frames, a multiple of 8 from 16 [default: the whole clip, or 80 with --tile-size]
    #[arg(long, value_name = "N", value_parser = multiple::<8>)]
    tile_frames: Option<i32>,
}

/// A multiple of what one latent element stands for, at least two of them.
fn multiple<const UNIT: i32>(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|number: &i32| *number >= 2 * UNIT && number % UNIT == 0);
    number.ok_or_else(|| format!("give a multiple of {UNIT}, at least {}", 2 * UNIT))
}

impl Tiles {
    /// What was asked for, if anything was.
    pub fn tiling(self) -> Option<Tiling> {
        match (self.tile_size, self.tile_frames) {
            (None, None) => None,
            (size, frames) => Some(Tiling::cut(size.unwrap_or(768), frames.unwrap_or(80))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_positive_number() {
        assert_eq!(gigabytes("7.5"), Ok(7_500_000_000));
        for wrong in ["0", "-1", "NaN", "inf", "12GB", ""] {
            assert!(gigabytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn packing_may_be_left_open() {
        assert_eq!(wish("auto"), Ok(Wish::Auto));
        assert_eq!(wish("int8"), Ok(Wish::As(QuantizeChoice::Eight)));
        assert!(wish("5").is_err());
    }
}
