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

/// An encoder or a decoder, without what is before its first convolution and after its last.
pub(super) struct Network<'a> {
    pub first: &'a CausalConv,
    pub layers: &'a [Layer],
    /// Shift and scale before the last convolution. (1, 1, 1, 1, channels)
    pub modulation: Option<&'a [Array; 2]>,
    pub last: &'a CausalConv,
    pub causal: bool,
}

/// What a network remembers of a video's frames before.
#[derive(Default)]
pub(super) struct Stream {
    ends: [Past; 2],
    layers: Vec<Vec<Memory>>,
}

impl Network<'_> {
    /// Whether a video may come in pieces.
    pub fn streams(&self) -> bool {
        !self.layers.iter().any(Layer::sees_everything)
    }

    /// The next frames `x` (batch, frames, height, width, in) → pieces of what can be computed now, in order: each (batch,
    /// frames', height', width', out).
    pub fn step(
        &self,
        stream: &mut Stream,
        x: &Array,
        last: bool,
        noise: &mut Noise,
        trace: &mut Trace,
    ) -> Result<Vec<Array>> {
        if stream.layers.is_empty() {
            stream.layers = self.layers.iter().map(Layer::memories).collect();
        }
        let Stream { ends: [first, end], layers } = stream;
        let sight = Sight { causal: self.causal, last };
        let mut pieces = Vec::new();
        let x = self.first.step(x, first, sight)?;
        mlx::eval(x.iter().chain(first.iter()))?;
        if let Some(x) = x {
            // What a trace records is whole.
            let most = if self.streams() && !trace.is_on() { PIECE } else { usize::MAX };
            let mut pass = Pass { sight, noise };
            let mut run = Run { network: self, end, most, trace, pieces: &mut pieces };
            run.through(0, x, layers, &mut pass)?;
        }
        Ok(pieces)
    }
}

struct Run<'a, 'n> {
    network: &'a Network<'n>,
    end: &'a mut Past,
    most: usize,
    trace: &'a mut Trace,
    pieces: &'a mut Vec<Array>,
}

impl Run<'_, '_> {
    /// Lets `x` through layer `index` and those after it, in pieces whose way ends before the next one's begins.
    fn through(
        &mut self,
        index: usize,
        x: Array,
        memories: &mut [Vec<Memory>],
        pass: &mut Pass,
    ) -> Result<()> {
        let layer = self.network.layers.get(index);
        let (frames, channels) = (x.dim(1), x.dim(4));
        let frame = x.size() / frames.max(1) as usize;
        let values = layer.map_or(frame, |layer| layer.values(frame, channels));
        let at_once = i32::try_from(self.most / values.max(1)).unwrap_or(i32::MAX).clamp(1, frames);
        let (mut rest, last) = (Some(x), pass.sight.last);
        for start in (0..frames).step_by(at_once as usize) {
            let end = frames.min(start.saturating_add(at_once));
            pass.sight.last = last && end == frames;
            // Nobody holds what was given while its last piece is on its way.
            let whole = if end == frames { rest.take() } else { rest.clone() };
            let Some(whole) = whole else { break };
            let piece = if at_once == frames { whole } else { whole.slice(1, start..end)? };
            match (layer, memories.split_first_mut()) {
                (Some(layer), Some((memory, others))) => {
                    let Some(y) = layer.step(piece, memory, pass)? else { continue };
                    self.trace.record(|| format!("up_block.{index}"), || super::channels_first(&y))?;
                    self.through(index + 1, y, others, pass)?;
                }
                _ => {
                    let mut y = pixel_norm(&piece)?;
                    if let Some([shift, scale]) = self.network.modulation {
                        y = modulate(&y, shift, scale)?;
                    }
                    let y = self.network.last.step(&nn::silu(&y)?, self.end, pass.sight)?;
                    mlx::eval(y.iter().chain(self.end.iter()))?;
                    self.pieces.extend(y);
                }
            }
        }
        pass.sight.last = last;
        Ok(())
    }
}
