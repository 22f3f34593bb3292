//! A video on its way through an encoder or a decoder, some frames at a time: every layer keeps the few frames that its
//! convolutions look back at, so that the pieces are, number by number, what the whole gives, and memory does not grow
//! with the video's length.

use mlx::Array;

use super::Noise;
use super::conv::{CausalConv, Past, Sight};
use super::layer::Layer;
use super::resnet::{Memory, Pass, modulate, pixel_norm};
use crate::error::Result;
use crate::nn;
use crate::trace::Trace;

/// Values that a layer makes at a time, about: enough to keep every processor busy, little beside the weights.
pub(super) const PIECE: usize = 1 << 24;
/// Frames that a layer makes pieces of, at most: small ones would else wait, and all come out at the end.
const LONGEST: i32 = 16;

/// An encoder or a decoder, without what is before its first convolution and after its last.
pub(super) struct Network<'a> {
    pub first: &'a CausalConv,
    pub layers: &'a [Layer],
    /// Shift and scale before the last convolution. (1, 1, 1, 1, channels)
    pub modulation: Option<&'a [Array; 2]>,
    pub last: &'a CausalConv,
    pub causal: bool,
    /// Values that a layer makes at a time, about.
    pub piece: usize,
}

/// A video on its way through a network: what is remembered of the frames before, and what has not come through yet.
#[derive(Default)]
pub(super) struct Stream {
    ends: [Past; 2],
    layers: Vec<Vec<Memory>>,
    /// What waits, each nearer to the end than the one before it: the last is to go on first.
    waiting: Vec<Wave>,
}

/// Frames before a layer.
struct Wave {
    /// The layer; beyond the last layer, the last convolution.
    index: usize,
    frames: Array, // (batch, frames, height, width, channels)
    /// The first of them that has not gone on.
    next: i32,
    /// No others come after them.
    last: bool,
}

impl Network<'_> {
    /// Whether a video may come in pieces.
    pub fn streams(&self) -> bool {
        !self.layers.iter().any(Layer::sees_everything)
    }

    /// How many frames (height, width) are best given at a time.
    pub fn at_once(&self, height: i32, width: i32) -> i32 {
        let frame = [height, width, self.first.outputs()].map(|size| size as usize).iter().product::<usize>();
        let most = if self.streams() { self.piece / frame.max(1) } else { usize::MAX };
        i32::try_from(most).unwrap_or(i32::MAX).max(1)
    }

    /// Takes the video's next frames (batch, frames, height, width, in). What was given before has come through.
    pub fn give(&self, stream: &mut Stream, x: &Array, last: bool) -> Result<()> {
        if stream.layers.is_empty() {
            stream.layers = self.layers.iter().map(Layer::memories).collect();
        }
        let first = &mut stream.ends[0];
        let frames = self.first.step(x, first, Sight { causal: self.causal, last })?;
        mlx::eval(frames.iter().chain(first.iter()))?;
        stream.waiting.extend(frames.map(|frames| Wave { index: 0, frames, next: 0, last }));
        Ok(())
    }

    /// The next frames that come through (batch, frames, height, width, out); none when more have to be given.
    pub fn next(&self, stream: &mut Stream, noise: &mut Noise, trace: &mut Trace) -> Result<Option<Array>> {
        // What a trace records is whole.
        let most = if self.streams() && !trace.is_on() { self.piece } else { usize::MAX };
        while let Some(wave) = stream.waiting.last_mut() {
            let layer = self.layers.get(wave.index);
            let (frames, channels) = (wave.frames.dim(1), wave.frames.dim(4));
            let frame = wave.frames.size() / frames.max(1) as usize;
            let pixels = frame / channels.max(1) as usize * channels.max(self.last.outputs()) as usize;
            let values = layer.map_or(pixels, |layer| layer.values(frame, channels));
            let longest = if most == usize::MAX { frames } else { frames.min(LONGEST) };
            let at_once = i32::try_from(most / values.max(1)).unwrap_or(i32::MAX).clamp(1, longest);
            let end = frames.min(wave.next.saturating_add(at_once));
            let piece =
                if at_once == frames { wave.frames.clone() } else { wave.frames.slice(1, wave.next..end)? };
            let (index, last) = (wave.index, wave.last && end == frames);
            wave.next = end;
            if end == frames {
                // Nobody holds what was given while its last piece is on its way.
                stream.waiting.pop();
            }
            let sight = Sight { causal: self.causal, last };
            match (layer, stream.layers.get_mut(index)) {
                (Some(layer), Some(memory)) => {
                    let y = layer.step(piece, memory, &mut Pass { sight, noise })?;
                    let Some(frames) = y else { continue };
                    trace.record(|| format!("up_block.{index}"), || super::channels_first(&frames))?;
                    stream.waiting.push(Wave { index: index + 1, frames, next: 0, last });
                }
                _ => {
                    let mut y = pixel_norm(&piece)?;
                    if let Some([shift, scale]) = self.modulation {
                        y = modulate(&y, shift, scale)?;
                    }
                    let end = &mut stream.ends[1];
                    let y = self.last.step(&nn::silu(&y)?, end, sight)?;
                    mlx::eval(y.iter().chain(end.iter()))?;
                    if y.is_some() {
                        return Ok(y);
                    }
                }
            }
        }
        Ok(None)
    }
}
