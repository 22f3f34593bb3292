//! `cover`: a picture fitted to a clip. `conditioning`: encoded pictures put in their places in a stage's state.

use mlx::Array;

use super::{Golden, Outputs};
use crate::diffusion::conditioning::LatentState;
use crate::diffusion::patchify::video_tokens;
use crate::error::Result;
use crate::media::Frame;
use crate::shape::LatentShape;

pub(super) fn cover(golden: &Golden) -> Result<Outputs> {
    let shape = golden.array("in.image")?.shape().to_vec();
    let &[height, width, 3] = shape.as_slice() else {
        return Err(golden.error("in.image", format!("has shape {shape:?}, not (height, width, 3)")));
    };
    let rgb = golden.integers("in.image")?.into_iter().map(|value| value.clamp(0, 255) as u8).collect();
    let frame = Frame { width: width as u32, height: height as u32, rgb };
    let size = |key: &str| -> Result<i32> {
        let size = golden.number::<u16>(key)?.filter(|&size| size > 0);
        size.map(i32::from).ok_or_else(|| golden.error(key, "is missing"))
    };
    let (height, width) = (size("height")?, size("width")?);
    let pixels = frame.cover(width as usize, height as usize);
    Ok(vec![("out.pixels".into(), Array::from_slice(&pixels, &[height, width, 3])?)])
}

pub(super) fn conditioning(golden: &Golden) -> Result<Outputs> {
    let &[frames, height, width] = golden.numbers("size")?.as_slice() else {
        return Err(golden.error("size", "is not latent frames, height and width"));
    };
    let shape = LatentShape { frames, height, width };
    let number =
        |key: &str| -> Result<f64> { golden.number(key)?.ok_or_else(|| golden.error(key, "is missing")) };
    let (frame_rate, share) = (number("fps")?, number("noise_scale")? as f32);
    let guides_only = golden.setting("guides_only") == Some("true");
    let strengths = golden.setting("strengths").unwrap_or("").split(',').map(str::parse::<f32>);
    let noise = golden.array("in.noise")?; // (1, tokens, channels)
    let mut state = LatentState::video(shape, noise.dim(-1) as usize, frame_rate)?;
    if let Some(start) = golden.optional("in.latent")? {
        state = state.starting_from(&video_tokens(&start)?)?;
    }
    for (index, (frame, strength)) in golden.numbers("frames")?.into_iter().zip(strengths).enumerate() {
        let strength =
            strength.map_err(|_| golden.error("strengths", "holds something that is no number"))?;
        let tokens = video_tokens(&golden.array(&format!("in.image.{index}"))?)?;
        state = match frame {
            0 if !guides_only => state.with_frames(&tokens, shape, 0, strength)?,
            frame => state.with_keyframe(&tokens, shape, frame, frame_rate, strength)?,
        };
    }
    let state = state.noised(&noise, share)?;
    Ok(vec![
        ("out.positions".into(), state.positions),
        ("out.denoise_mask".into(), state.mask),
        ("out.clean".into(), state.clean),
        ("out.latent".into(), state.latent),
    ])
}
