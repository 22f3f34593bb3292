//! How much memory decoding takes, told from the shapes of a decoder's layers: what they remember of the frames before,
//! and the most that stands beside it while a piece of video is on its way; and how much arithmetic it is.

use super::conv::CausalConv;
use super::layer::Layer;
use super::resnet::ResnetBlock;
use super::stream::Network;

/// Values of the network's type.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Amount {
    /// Kept from piece to piece.
    pub kept: usize,
    /// The most that is there while a piece is computed.
    pub working: usize,
    /// The largest piece that comes out.
    pub out: usize,
    /// Multiplications and additions of the convolutions, for the frames that were asked about.
    pub operations: f64,
}

/// Frames on their way through a network.
struct Walk {
    frames: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// What waits until the piece is through.
    held: usize,
    /// Frames that a result lies behind.
    delay: usize,
    streams: bool,
    most: usize,
    /// How often what is counted happens, because pieces are split.
    parts: f64,
    amount: Amount,
}

impl Network<'_> {
    /// What it takes to let a video through, `frames` frames (height, width) at a time.
    pub fn amount(&self, frames: usize, height: usize, width: usize) -> Amount {
        let mut walk = Walk {
            frames,
            height,
            width,
            channels: self.first.inputs() as usize,
            held: 0,
            delay: usize::from(!self.causal),
            streams: self.streams(),
            most: self.piece,
            parts: 1.0,
            amount: Amount::default(),
        };
        walk.convolve(self.first, 1);
        for layer in self.layers {
            walk.split(layer.values(walk.frame(), walk.channels as i32));
            walk.pass(layer);
        }
        walk.split(walk.height * walk.width * walk.channels.max(self.last.outputs() as usize));
        walk.convolve(self.last, 2);
        Amount { out: walk.piece(), ..walk.amount }
    }
}

impl Walk {
    /// Values of a frame.
    fn frame(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// All of the piece.
    fn piece(&self) -> usize {
        self.frames * self.frame()
    }

    /// Goes on with a part of the piece where a layer makes `values` of a frame.
    fn split(&mut self, values: usize) {
        let at_once = (self.most / values.max(1)).clamp(1, self.frames);
        if self.streams && at_once < self.frames {
            self.held += self.piece();
            self.parts *= self.frames as f64 / at_once as f64;
            self.frames = at_once;
        }
    }

    /// So much is there beside what waits.
    fn needs(&mut self, values: usize) {
        self.amount.working = self.amount.working.max(self.held + values);
    }

    /// So many frames are remembered.
    fn keeps(&mut self, frames: usize) {
        if self.streams {
            self.amount.kept += frames * self.frame();
        }
    }

    /// A convolution that makes frames of a height and width.
    fn counts(&mut self, conv: &CausalConv, [frames, height, width]: [usize; 3]) {
        let places = (frames * height * width) as f64 * self.parts;
        self.amount.operations += 2.0 * transposed(conv) as f64 * places;
    }

    /// A convolution of what stands there `copies` times.
    fn convolve(&mut self, conv: &CausalConv, copies: usize) {
        self.keeps(2);
        let x = self.piece();
        self.frames = self.frames.div_ceil(conv.stride[0] as usize);
        self.height /= conv.stride[1] as usize;
        self.width /= conv.stride[2] as usize;
        self.channels = conv.outputs() as usize;
        self.counts(conv, [self.frames, self.height, self.width]);
        let mirrored = if conv.mirrors() { x } else { 0 };
        self.needs(copies * x + mirrored + self.piece() + transposed(conv));
    }

    fn resnet(&mut self, block: &ResnetBlock) {
        // What came in, what is added to, the convolutions and what is between them.
        let wide = self.channels.max(block.conv1.outputs() as usize) * self.frame() / self.channels.max(1);
        self.keeps(2 + 2 * self.delay);
        let copies = if block.conv1.mirrors() { 5 } else { 4 };
        self.channels = block.conv1.outputs() as usize;
        for conv in [&block.conv1, &block.conv2] {
            self.counts(conv, [self.frames, self.height, self.width]);
        }
        self.keeps(2);
        self.needs(copies * self.frames * wide + transposed(&block.conv1).max(transposed(&block.conv2)));
    }

    fn pass(&mut self, layer: &Layer) {
        match layer {
            Layer::Mid(mid) => mid.blocks.iter().for_each(|block| self.resnet(block)),
            Layer::Resnet(block) => self.resnet(block),
            Layer::Attention(_) => self.needs(6 * self.piece()),
            Layer::Conv(conv) => self.convolve(conv, 1),
            Layer::Downsample(block) => {
                self.keeps(3);
                self.needs(4 * self.piece() + transposed(&block.conv));
                self.counts(&block.conv, [self.frames, self.height, self.width]);
                let [t, h, w] = block.stride.map(|size| size as usize);
                (self.frames, self.height, self.width) =
                    (self.frames.div_ceil(t), self.height / h, self.width / w);
                self.channels = block.conv.outputs() as usize * t * h * w;
            }
            Layer::Upsample(block) => {
                let x = self.piece();
                self.counts(&block.conv, [self.frames, self.height, self.width]);
                self.keeps(2 + if block.residual.is_some() { self.delay } else { 0 });
                let [t, h, w] = block.stride.map(|size| size as usize);
                (self.frames, self.height, self.width) = (self.frames * t, self.height * h, self.width * w);
                self.channels = block.conv.outputs() as usize / (t * h * w);
                let copies = if block.residual.is_some() { 3 } else { 2 };
                self.needs(x + copies * self.piece() + transposed(&block.conv));
            }
        }
    }
}

/// A weight in the order in which the CPU reads it.
fn transposed(conv: &CausalConv) -> usize {
    27 * conv.inputs() as usize * conv.outputs() as usize
}
