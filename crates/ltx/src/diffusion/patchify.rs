//! Latents ↔ token sequences, and where each token lies in time and space.
//!
//! The transformer's patches are single latent cells, so a token is a cell's channels. Positions are bounds [start, end)
//! in seconds and pixels; formulas: `patchifiers.py` and `tools.py` of Lightricks' ltx-core.

use mlx::{Array, Result};

use crate::shape::{AUDIO_LATENTS_PER_SECOND, FRAMES_PER_LATENT, LatentShape, PIXELS_PER_LATENT};

/// Tokens of a video latent, frame by frame, row by row.
pub fn video_tokens(latent: &Array, // (batch, channels, frames, height, width)
) -> Result<Array> {
    let (batch, channels) = (latent.dim(0), latent.dim(1));
    latent.reshape(&[batch, channels, -1])?.transpose_last()?.contiguous() // (batch, tokens, channels)
}

/// The video latent of `shape` that the tokens make up.
pub fn video_latent(
    tokens: &Array, // (batch, frames · height · width, channels)
    shape: LatentShape,
) -> Result<Array> {
    let (batch, channels) = (tokens.dim(0), tokens.dim(2));
    let [frames, height, width] = [shape.frames, shape.height, shape.width].map(|size| size as i32);
    let latent = tokens.transpose_last()?.reshape(&[batch, channels, frames, height, width])?;
    latent.contiguous() // (batch, channels, frames, height, width)
}

/// Tokens of an audio latent: a frame's channels and frequency bins together.
pub fn audio_tokens(latent: &Array, // (batch, channels, frames, bins)
) -> Result<Array> {
    let (batch, frames) = (latent.dim(0), latent.dim(2));
    latent.transpose(&[0, 2, 1, 3])?.reshape(&[batch, frames, -1]) // (batch, frames, channels · bins)
}

/// The audio latent with `channels` channels that the tokens make up.
pub fn audio_latent(
    tokens: &Array, // (batch, frames, channels · bins)
    channels: i32,
) -> Result<Array> {
    let (batch, frames) = (tokens.dim(0), tokens.dim(1));
    let latent = tokens.reshape(&[batch, frames, channels, -1])?.transpose(&[0, 2, 1, 3])?;
    latent.contiguous() // (batch, channels, frames, bins)
}

/// Bounds of every video token: seconds, then pixels down and across; f32 (1, 3, tokens, 2).
///
/// The first latent frame holds one picture and the later ones eight each, so time begins [0, 1), [1, 9), … pictures.
pub fn video_positions(shape: LatentShape, frame_rate: f64) -> Result<Array> {
    let picture = |frame: usize| (frame * FRAMES_PER_LATENT + 1).saturating_sub(FRAMES_PER_LATENT);
    positions(shape, frame_rate, |frame| [picture(frame), picture(frame + 1)])
}

/// Bounds of tokens that stand for the single picture `picture` of a video: one latent frame of `shape`'s height and
/// width; f32 (1, 3, tokens, 2).
pub fn picture_positions(shape: LatentShape, picture: usize, frame_rate: f64) -> Result<Array> {
    positions(LatentShape { frames: 1, ..shape }, frame_rate, |_| [picture, picture + 1])
}

fn positions(shape: LatentShape, frame_rate: f64, pictures: impl Fn(usize) -> [usize; 2]) -> Result<Array> {
    let LatentShape { frames, height, width } = shape;
    let cells =
        || (0..frames).flat_map(|f| (0..height).flat_map(move |h| (0..width).map(move |w| (f, h, w))));
    let pixels = |cell: usize| [cell, cell + 1].map(|edge| (edge * PIXELS_PER_LATENT) as f32);
    let seconds = |f: usize| pictures(f).map(|picture| picture as f32 / frame_rate as f32);
    let bounds: Vec<f32> = (cells().flat_map(|(f, _, _)| seconds(f)))
        .chain(cells().flat_map(|(_, h, _)| pixels(h)))
        .chain(cells().flat_map(|(_, _, w)| pixels(w)))
        .collect();
    Array::from_slice(&bounds, &[1, 3, shape.tokens() as i32, 2])
}

/// Bounds of every audio token in seconds; f32 (1, 1, frames, 2). The first latent frame hears one mel frame of four.
pub fn audio_positions(frames: usize) -> Result<Array> {
    const MELS_PER_SECOND: f32 = 4.0 * AUDIO_LATENTS_PER_SECOND as f32;
    let seconds = |frame: usize| (4 * frame).saturating_sub(3) as f32 / MELS_PER_SECOND;
    let bounds: Vec<f32> = (0..frames).flat_map(|frame| [seconds(frame), seconds(frame + 1)]).collect();
    Array::from_slice(&bounds, &[1, 1, frames as i32, 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn latents_survive_the_way_to_tokens_and_back() {
        let mut noise = Noise::new(3);
        for (batch, channels, frames, height, width) in [(1, 4, 1, 1, 1), (2, 5, 3, 2, 7), (1, 8, 2, 5, 3)] {
            let latent = noise.normal(&[batch, channels, frames, height, width]).unwrap();
            let tokens = video_tokens(&latent).unwrap();
            assert_eq!(tokens.shape(), [batch, frames * height * width, channels]);
            let shape =
                LatentShape { frames: frames as usize, height: height as usize, width: width as usize };
            let back = video_latent(&tokens, shape).unwrap();
            assert_eq!(back.shape(), latent.shape());
            assert_eq!(back.to_f32().unwrap(), latent.to_f32().unwrap());
        }
        for (batch, channels, frames, bins) in [(1, 1, 1, 16), (2, 3, 5, 4)] {
            let latent = noise.normal(&[batch, channels, frames, bins]).unwrap();
            let tokens = audio_tokens(&latent).unwrap();
            assert_eq!(tokens.shape(), [batch, frames, channels * bins]);
            let back = audio_latent(&tokens, channels).unwrap();
            assert_eq!(back.shape(), latent.shape());
            assert_eq!(back.to_f32().unwrap(), latent.to_f32().unwrap());
        }
    }

    #[test]
    fn a_token_is_one_cell() {
        let values: Vec<f32> = (0..2 * 2 * 3 * 2).map(|value| value as f32).collect();
        let latent = Array::from_slice(&values, &[1, 2, 2, 3, 2]).unwrap();
        let tokens = video_tokens(&latent).unwrap().to_f32().unwrap();
        // Frame 1, row 2, column 0 is token 10; channel 1 begins 12 values later.
        assert_eq!(tokens[2 * 10..2 * 11], [10.0, 22.0]);
        let latent = Array::from_slice(&values, &[1, 3, 4, 2]).unwrap();
        let tokens = audio_tokens(&latent).unwrap().to_f32().unwrap();
        assert_eq!(tokens[6 * 2..6 * 3], [4.0, 5.0, 12.0, 13.0, 20.0, 21.0]);
    }

    #[test]
    fn positions_are_the_official_ones() {
        let shape = LatentShape { frames: 2, height: 1, width: 3 };
        let found = video_positions(shape, 25.0).unwrap().to_f32().unwrap();
        let seconds = [[0.0, 0.04]; 3].into_iter().chain([[0.04, 0.36]; 3]).flatten();
        let down = [0.0, 32.0].into_iter().cycle().take(12);
        let across = [0.0, 32.0, 32.0, 64.0, 64.0, 96.0].into_iter().cycle().take(12);
        assert_eq!(found, seconds.chain(down).chain(across).collect::<Vec<f32>>());
        let found = audio_positions(3).unwrap().to_f32().unwrap();
        assert_eq!(found, [0.0, 0.01, 0.01, 0.05, 0.05, 0.09]);
        let found = picture_positions(shape, 8, 10.0).unwrap();
        assert_eq!(found.shape(), [1, 3, 3, 2]);
        assert_eq!(found.to_f32().unwrap()[..8], [0.8, 0.9, 0.8, 0.9, 0.8, 0.9, 0.0, 32.0]);
    }
}
