//! `schedule`: the sigmas of a run. Needs no checkpoint.

use mlx::Array;

use super::{Golden, Outputs};
use crate::diffusion::schedule::{DEFAULT_TOKENS, Schedule};
use crate::error::Result;

pub fn verify(golden: &Golden) -> Result<Outputs> {
    let name = golden.setting("scheduler").ok_or_else(|| golden.error("scheduler", "is missing"))?;
    let schedule: Schedule = name.parse()?;
    let steps = golden.number("steps")?.ok_or_else(|| golden.error("steps", "is missing"))?;
    let tokens = match golden.names().iter().any(|name| name == "in.latent_shape") {
        false => DEFAULT_TOKENS,
        true => golden
            .integers("in.latent_shape")?
            .into_iter()
            .try_fold(1usize, |tokens, size| tokens.checked_mul(usize::try_from(size).ok()?))
            .ok_or_else(|| golden.error("in.latent_shape", "does not hold sizes"))?,
    };
    let sigmas = schedule.sigmas(steps, tokens)?;
    Ok(vec![("out.sigmas".into(), Array::from_slice(&sigmas, &[sigmas.len() as i32])?)])
}
