//! The `vae` section of a header: block lists, paddings, and what absent keys mean.

use serde_json::Value;

use super::Scale;
use super::conv::Padding;
use crate::checkpoint::Config;
use crate::error::Result;

/// One entry of a block list: `["res_x", {"num_layers": 4}]`, or `["res_x", 4]`.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub name: String,
    pub layers: Option<i32>,
    pub multiplier: Option<i32>,
    pub residual: bool,
    pub inject_noise: bool,
}

/// A block list under its key in the header.
#[derive(Clone, Debug)]
pub(super) struct Blocks<'a> {
    config: &'a Config,
    key: &'static str,
    pub list: Vec<Block>,
}

impl<'a> Blocks<'a> {
    pub fn read(config: &'a Config, key: &'static str) -> Result<Self> {
        let list = config.list(key)?.iter().enumerate();
        let list = list
            .map(|(index, entry)| {
                block(entry).map_err(|problem| config.error(key, format!("[{index}] {problem}")))
            })
            .collect::<Result<Vec<_>>>()?;
        if list.is_empty() {
            return Err(config.error(key, "is empty"));
        }
        Ok(Self { config, key, list })
    }

    pub fn error(&self, block: &Block, problem: impl std::fmt::Display) -> crate::Error {
        self.config.error(self.key, format!("has a block `{}` that {problem}", block.name))
    }

    /// Every `compress_` block halves or doubles its axes, whatever it does to the channels.
    pub fn scale(&self, patch: i32) -> Result<Scale> {
        let count = |what: [&str; 2]| {
            self.list.iter().filter(|block| what.iter().any(|name| block.name.starts_with(name))).count()
        };
        let power = |count: usize| 2i32.checked_pow(u32::try_from(count).ok()?);
        let pixels = power(count(["compress_space", "compress_all"])).and_then(|n| n.checked_mul(patch));
        match (power(count(["compress_time", "compress_all"])), pixels) {
            (Some(frames), Some(pixels)) => Ok(Scale { frames, pixels }),
            _ => Err(self.config.error(self.key, "compresses too often")),
        }
    }
}

fn block(entry: &Value) -> std::result::Result<Block, String> {
    let (name, parameters) = match entry.as_array().map(Vec::as_slice) {
        Some([Value::String(name), parameters]) => (name.clone(), parameters),
        _ => return Err(format!("is {entry}, not a name and its parameters")),
    };
    let positive = |key: &str, value: &Value| match value.as_i64().and_then(|n| i32::try_from(n).ok()) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(format!("(`{name}`) has {key} {value}, not a positive number")),
    };
    let size = |key: &str| match parameters {
        Value::Object(map) => map.get(key).map(|value| positive(key, value)).transpose(),
        number if key == "num_layers" => positive(key, number).map(Some),
        _ => Ok(None),
    };
    let flag = |key: &str| match parameters.get(key) {
        None => Ok(false),
        Some(value) => {
            value.as_bool().ok_or_else(|| format!("(`{name}`) has {key} {value}, not true or false"))
        }
    };
    Ok(Block {
        layers: size("num_layers")?,
        multiplier: size("multiplier")?,
        residual: flag("residual")?,
        inject_noise: flag("inject_noise")?,
        name,
    })
}

/// A size that official code reads with a default. The weights' shapes catch a default that is wrong for a file.
pub(super) fn size(config: &Config, key: &str, default: i32) -> Result<i32> {
    match config.optional_usize(key)?.map(i32::try_from) {
        None => Ok(default),
        Some(Ok(size)) if size > 0 => Ok(size),
        Some(_) => Err(config.error(key, "is not a positive size")),
    }
}

/// The padding under the first of `keys` that is there.
pub(super) fn padding(config: &Config, keys: &[&str], default: Padding) -> Result<Padding> {
    for key in keys {
        return Ok(match config.optional_str(key)? {
            None => continue,
            Some("zeros") => Padding::Zeros,
            Some("reflect") => Padding::Reflect,
            Some(other) => return Err(config.error(key, format!("is `{other}`, not zeros or reflect"))),
        });
    }
    Ok(default)
}

/// Refuses what no LTX-2 autoencoder is: other than 3-D convolutions and pixel norm.
pub(super) fn check(config: &Config) -> Result<()> {
    if config.get("dims").is_some_and(|dims| dims.as_u64() != Some(3)) {
        return Err(config.error("dims", "is not 3"));
    }
    match config.optional_str("norm_layer")? {
        None | Some("pixel_norm") => Ok(()),
        Some(other) => Err(config.error("norm_layer", format!("is `{other}`, not pixel_norm"))),
    }
}
