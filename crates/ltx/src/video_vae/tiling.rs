//! Decoding a latent in overlapping tiles that are blended with linear ramps, for pictures so large that what a decoder
//! remembers of a few frames does not fit into memory. Length alone needs no tiles: a [`stream`](super::stream) is exact.
//!
//! Tiles, overlaps and ramps are those of the official code. Its weights are separable, so the division by their sum is
//! done here once, on each axis' ramps.

use std::ops::Range;

use mlx::{Array, Dtype};

use super::{ConvDecoder, Scale};
use crate::checkpoint::{Config, Weights};
use crate::error::{Error, Result};

/// Sizes and overlaps of tiles in pixels and frames; an axis without is decoded whole. Where there are several tiles across a
/// picture, all frames of a temporal tile are in memory at once: then it should have a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Height and width of a tile, and how much neighbours share, in pixels.
    pub spatial: Option<(i32, i32)>,
    /// Length of a tile, and how much neighbours share, in frames.
    pub temporal: Option<(i32, i32)>,
}

impl Tiling {
    /// The whole picture and the whole clip: the exact result, some frames at a time, in memory that does not grow with the
    /// clip's length, and without computing anything twice.
    pub const OFF: Self = Self { spatial: None, temporal: None };

    /// What the official code does by default. Pictures and clips smaller than a tile do not notice; in others frames near the
    /// seams are blended from two tiles, neither of which sees beyond.
    pub const OFFICIAL: Self = Self { spatial: Some((768, 64)), temporal: Some((80, 24)) };

    /// What to use where nobody says otherwise.
    pub const fn auto() -> Self {
        Self::OFF
    }

    /// Tiles of so many pixels and frames, multiples of 32 and 8. Neighbours share what they do officially, or half of a
    /// smaller tile.
    pub fn cut(pixels: i32, frames: i32) -> Self {
        let shared = |size: i32, official: i32, unit: i32| official.min(size / 2 / unit * unit);
        Self {
            spatial: Some((pixels, shared(pixels, 64, 32))),
            temporal: Some((frames, shared(frames, 24, 8))),
        }
    }

    /// Tiles of (height and width, what neighbours share) pixels.
    pub const fn with_spatial(self, size: i32, overlap: i32) -> Self {
        Self { spatial: Some((size, overlap)), ..self }
    }

    /// Tiles of (length, what neighbours share) frames.
    pub const fn with_temporal(self, size: i32, overlap: i32) -> Self {
        Self { temporal: Some((size, overlap)), ..self }
    }

    /// About how many bytes decoding a latent (frames, height, width) in such tiles takes at most, beside the weights of the
    /// decoder, which are computed with as `dtype`, and the latent itself; rather more than less. `config` is the whole
    /// configuration of the decoder's file. An error is where the configuration or the tiles cannot be used.
    pub fn bytes(&self, config: &Config, dtype: Dtype, latent: [usize; 3]) -> Result<usize> {
        ConvDecoder::load(&Weights::shapes(dtype), config)?.bytes(self, latent)
    }

    /// How often the latent elements of (frames, height, width) are decoded, those that tiles share several times.
    pub(super) fn share(&self, latent: [usize; 3], scale: Scale) -> Result<f64> {
        let [frames, height, width] = latent.map(|size| i32::try_from(size).unwrap_or(i32::MAX));
        let spans = [
            (frames, temporal(frames, self.temporal, scale.frames)?),
            (height, spatial(height, self.spatial, scale.pixels)?),
            (width, spatial(width, self.spatial, scale.pixels)?),
        ];
        let decoded = |spans: &[Span]| spans.iter().map(|span| span.latent.len()).sum::<usize>() as f64;
        Ok(spans.iter().map(|(length, spans)| decoded(spans) / f64::from((*length).max(1))).product())
    }

    /// The sizes of the largest tile of a latent (frames, height, width).
    pub(super) fn largest(&self, latent: [usize; 3], scale: Scale) -> Result<Largest> {
        let [frames, height, width] = latent.map(|size| i32::try_from(size).unwrap_or(i32::MAX));
        let frames = temporal(frames, self.temporal, scale.frames)?;
        let (rows, columns) =
            (spatial(height, self.spatial, scale.pixels)?, spatial(width, self.spatial, scale.pixels)?);
        let longest = |spans: &[Span]| spans.iter().map(|span| span.latent.len()).max().unwrap_or(0);
        let shared =
            frames.windows(2).map(|pair| pair[0].latent.end - pair[1].latent.start).max().unwrap_or(0);
        Ok(Largest {
            tile: [longest(&frames), longest(&rows), longest(&columns)],
            video: latent,
            shared: shared as usize,
            spatial: rows.len() > 1 || columns.len() > 1,
        })
    }
}

/// Sizes in latent elements: (frames, height, width).
pub(super) struct Largest {
    pub tile: [usize; 3],
    pub video: [usize; 3],
    /// Frames that neighbours share.
    pub shared: usize,
    /// A frame is made of several tiles.
    pub spatial: bool,
}

/// One tile along one axis.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    latent: Range<i32>,
    pixels: Range<i32>,
    /// The share of this tile in each pixel; at every pixel the shares of all tiles add up to 1.
    share: Vec<f32>,
}

/// Half-open ranges of `size` that share `overlap`, from 0 to `length`; the last may be shorter.
fn ranges(length: i32, size: i32, overlap: i32) -> Vec<Range<i32>> {
    let next = |last: &Range<i32>| {
        let start = last.end - overlap;
        (last.end < length).then(|| start..(start + size).min(length))
    };
    std::iter::successors(Some(0..size.min(length)), next).collect()
}

/// Rising from 0 to 1 over `ramp`, without its ends (or with the 0), falling at the other side.
fn trapezoid(length: usize, left: usize, right: usize, from_zero: bool) -> Vec<f32> {
    let rise = |index: usize| match (left, from_zero) {
        (0, _) => 1.0,
        (_, true) => index as f32 / left as f32,
        (_, false) => (index + 1) as f32 / (left + 1) as f32,
    };
    let fall = |index: usize| (length - index) as f32 / (right + 1) as f32;
    (0..length).map(|index| rise(index).min(1.0) * fall(index).min(1.0)).collect()
}

fn spatial(length: i32, tile: Option<(i32, i32)>, scale: i32) -> Result<Vec<Span>> {
    let (size, overlap) = latent_tile("spatial", length, tile, scale)?;
    let ranges = ranges(length, size, overlap);
    let last = ranges.len() - 1;
    let spans = ranges.into_iter().enumerate().map(|(index, latent)| {
        let ramp = |there: bool| if there { (overlap * scale) as usize } else { 0 };
        let pixels = latent.start * scale..latent.end * scale;
        let share = trapezoid(pixels.len(), ramp(index > 0), ramp(index < last), false);
        Span { latent, pixels, share }
    });
    Ok(normalize(spans.collect()))
}

/// The first latent frame of a tile decodes to one frame, so every tile but the first starts one latent frame earlier.
fn temporal(length: i32, tile: Option<(i32, i32)>, scale: i32) -> Result<Vec<Span>> {
    let (size, overlap) = latent_tile("temporal", length, tile, scale)?;
    let ranges = ranges(length, size, overlap);
    let last = ranges.len() - 1;
    let spans = ranges.into_iter().enumerate().map(|(index, latent)| {
        let latent = (latent.start - i32::from(index > 0)).max(0)..latent.end;
        let pixels = latent.start * scale..(latent.end - 1) * scale + 1;
        let right = (overlap * scale) as usize;
        let left = if index > 0 { right + 1 } else { 0 };
        let share = trapezoid(pixels.len(), left, if index < last { right } else { 0 }, true);
        Span { latent, pixels, share }
    });
    Ok(normalize(spans.collect()))
}

/// Size and overlap in latent elements.
fn latent_tile(axis: &str, length: i32, tile: Option<(i32, i32)>, scale: i32) -> Result<(i32, i32)> {
    let Some((size, overlap)) = tile else { return Ok((length, 0)) };
    if size < 2 * scale || size % scale != 0 || overlap < 0 || overlap % scale != 0 || overlap >= size {
        return Err(Error::request(
            format!("{axis} tiles of {size} that overlap by {overlap} cannot be decoded"),
            format!(
                "use multiples of {scale}, at least {} for the tile, and an overlap below the tile",
                2 * scale
            ),
        ));
    }
    Ok((size / scale, overlap / scale))
}

/// Divides the shares by their sum over all tiles, which differs from 1 where more than two tiles meet.
fn normalize(mut spans: Vec<Span>) -> Vec<Span> {
    let length = spans.last().map_or(0, |span| span.pixels.end) as usize;
    let mut sum = vec![0.0f32; length];
    for span in &spans {
        span.share.iter().zip(&mut sum[span.pixels.start as usize..]).for_each(|(share, sum)| *sum += share);
    }
    for span in &mut spans {
        let sum = &sum[span.pixels.start as usize..];
        span.share.iter_mut().zip(sum).for_each(|(share, sum)| *share /= sum);
    }
    spans
}

/// Adds tiles along one axis in their order and hands out what no later tile touches.
struct Blend<'a> {
    spans: &'a [Span],
    axis: i32,
}

impl Blend<'_> {
    /// Adds tile `index` to `carry`, the part of earlier tiles that it shares. Returns what is finished, and what the
    /// next tile shares, if there is one.
    fn add(&self, index: usize, tile: &Array, carry: Option<&Array>) -> Result<(Array, Option<Array>)> {
        if self.spans.len() == 1 {
            return Ok((tile.clone(), None));
        }
        let (span, axis) = (&self.spans[index], self.axis);
        let length = span.pixels.len() as i32;
        let mut shape = vec![1; tile.rank()];
        shape[axis as usize] = length;
        let mut tile = tile.multiply(Array::from_slice(&span.share, &shape)?)?;
        if let Some(carry) = carry {
            let shared = carry.dim(axis);
            let sum = tile.slice(axis, 0..shared)?.add(carry)?;
            tile = mlx::concatenate(&[&sum, &tile.slice(axis, shared..length)?], axis)?;
        }
        match self.spans.get(index + 1) {
            None => Ok((tile, None)),
            Some(next) => {
                let finished = next.pixels.start - span.pixels.start;
                Ok((tile.slice(axis, 0..finished)?, Some(tile.slice(axis, finished..length)?)))
            }
        }
    }
}

/// Which tiles a latent is decoded in.
pub(super) struct Plan {
    latent: Array, // (1, channels, frames, height, width)
    frames: Vec<Span>,
    rows: Vec<Span>,
    columns: Vec<Span>,
}

impl Plan {
    /// Tiles for a latent (1, channels, frames, height, width).
    pub fn new(latent: &Array, tiling: &Tiling, scale: Scale) -> Result<Self> {
        if latent.dim(0) != 1 {
            return Err(Error::request(
                format!("{} clips at once cannot be decoded piece by piece", latent.dim(0)),
                "decode them one after the other",
            ));
        }
        Ok(Self {
            frames: temporal(latent.dim(2), tiling.temporal, scale.frames)?,
            rows: spatial(latent.dim(3), tiling.spatial, scale.pixels)?,
            columns: spatial(latent.dim(4), tiling.spatial, scale.pixels)?,
            latent: latent.clone(),
        })
    }

    /// The finished frames that `decoder` makes of the latent, piece by piece: each (frames, height, width, rgb).
    pub fn decode<D: Decode>(self, decoder: D) -> Chunks<D> {
        Chunks { plan: self, decoder, index: 0, tile: None, begun: 0, carry: None, shared: Vec::new() }
    }

    /// All frames of one temporal tile: (frames, height, width, rgb)
    fn group(&self, latent: &Array, decoder: &mut impl Decode) -> Result<Array> {
        let down = Blend { spans: &self.rows, axis: 1 };
        let across = Blend { spans: &self.columns, axis: 2 };
        let (mut strips, mut above) = (Vec::new(), None);
        for (row, rows) in self.rows.iter().enumerate() {
            let latent = latent.slice(3, rows.latent.clone())?;
            let (mut parts, mut left) = (Vec::new(), None);
            for (column, columns) in self.columns.iter().enumerate() {
                let mut tile = decoder.enter(&latent.slice(4, columns.latent.clone())?)?;
                let mut pieces = Vec::new();
                while let Some(piece) = decoder.next(&mut tile)? {
                    pieces.push(piece);
                }
                let (part, right) = across.add(column, &joined(&pieces, 0)?, left.as_ref())?;
                drop(pieces);
                mlx::eval([&part].into_iter().chain(&right))?;
                parts.push(part);
                left = right;
            }
            let (strip, below) = down.add(row, &joined(&parts, 2)?, above.as_ref())?;
            mlx::eval([&strip].into_iter().chain(&below))?;
            strips.push(strip);
            above = below;
        }
        joined(&strips, 1)
    }
}

/// What makes pixels of a latent, some frames at a time.
pub(super) trait Decode {
    /// A latent on its way.
    type Tile;

    /// Begins with a latent (1, channels, frames, height, width).
    fn enter(&mut self, latent: &Array) -> Result<Self::Tile>;

    /// Its next frames (frames, height, width, rgb), unless there are no more.
    fn next(&mut self, tile: &mut Self::Tile) -> Result<Option<Array>>;
}

fn joined(parts: &[Array], axis: i32) -> Result<Array> {
    match parts {
        [whole] => Ok(whole.clone()),
        parts => Ok(mlx::concatenate(&parts.iter().collect::<Vec<_>>(), axis)?),
    }
}

/// Finished frames, in order, in pieces. After an error there are no more.
pub(super) struct Chunks<D: Decode> {
    plan: Plan,
    decoder: D,
    /// The temporal tile, what is still to come of it, and how many frames came.
    index: usize,
    tile: Option<Tile<D::Tile>>,
    begun: i32,
    /// Earlier tiles' share in the frames from there on.
    carry: Option<Array>,
    /// Its share in frames that the next tile has too.
    shared: Vec<Array>,
}

/// A temporal tile on its way.
enum Tile<T> {
    /// As high and wide as the video.
    Stream(T),
    /// Made of smaller ones.
    Whole(Option<Array>),
}

impl<D: Decode> Chunks<D> {
    /// The next frames that are finished; nothing where none of a piece are, or its tile is over.
    fn chunk(&mut self) -> Result<Option<Array>> {
        let mut tile = match self.tile.take() {
            Some(tile) => tile,
            None => {
                let latent = self.plan.latent.slice(2, self.plan.frames[self.index].latent.clone())?;
                match (&self.plan.rows[..], &self.plan.columns[..]) {
                    ([_], [_]) => Tile::Stream(self.decoder.enter(&latent)?),
                    _ => Tile::Whole(Some(self.plan.group(&latent, &mut self.decoder)?)),
                }
            }
        };
        let frames = match &mut tile {
            Tile::Stream(tile) => self.decoder.next(tile)?,
            Tile::Whole(frames) => frames.take(),
        };
        if let Some(frames) = frames {
            self.tile = Some(tile);
            return self.blend(frames);
        }
        let shared = std::mem::take(&mut self.shared);
        self.carry = if shared.is_empty() { None } else { Some(joined(&shared, 0)?) };
        mlx::eval(&self.carry)?;
        (self.index, self.begun) = (self.index + 1, 0);
        Ok(None)
    }

    /// Adds what earlier tiles say of the next frames of this one, and keeps what a later one will say more of.
    fn blend(&mut self, mut frames: Array) -> Result<Option<Array>> {
        let [span, later @ ..] = &self.plan.frames[self.index..] else { return Ok(None) };
        if self.plan.frames.len() == 1 {
            return Ok(Some(frames));
        }
        let (begun, count) = (self.begun, frames.dim(0));
        self.begun += count;
        let share = &span.share[begun as usize..self.begun as usize];
        frames = frames.multiply(Array::from_slice(share, &[count, 1, 1, 1])?)?;
        if let Some(carry) = self.carry.take() {
            let (length, met) = (carry.dim(0), carry.dim(0).min(count));
            let sum = frames.slice(0, 0..met)?.add(carry.slice(0, 0..met)?)?;
            frames = mlx::concatenate(&[&sum, &frames.slice(0, met..count)?], 0)?;
            self.carry = (met < length).then(|| carry.slice(0, met..length)).transpose()?;
        }
        let finished = match later {
            [] => count,
            [next, ..] => (next.pixels.start - span.pixels.start - begun).clamp(0, count),
        };
        if finished < count {
            self.shared.push(frames.slice(0, finished..count)?.contiguous()?);
        }
        frames = frames.slice(0, 0..finished)?;
        mlx::eval([&frames].into_iter().chain(self.shared.last()))?;
        Ok(Some(frames).filter(|_| finished > 0))
    }
}

impl<D: Decode> Iterator for Chunks<D> {
    type Item = Result<Array>;

    fn next(&mut self) -> Option<Result<Array>> {
        while self.index < self.plan.frames.len() {
            match self.chunk() {
                Ok(None) => {}
                Ok(Some(frames)) => return Some(Ok(frames)),
                Err(error) => {
                    self.index = self.plan.frames.len();
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use mlx::{Array, Dtype};

    use super::{Decode, Plan, Scale, Tiling, temporal, trapezoid};
    use crate::error::{Error, Result};

    const SCALE: Scale = Scale { frames: 4, pixels: 8 };

    /// What a function makes of a latent, three frames at a time.
    struct Slowly<F>(F);

    impl<F: FnMut(&Array) -> Result<Array>> Decode for Slowly<F> {
        type Tile = (Array, i32);

        fn enter(&mut self, latent: &Array) -> Result<Self::Tile> {
            Ok(((self.0)(latent)?, 0))
        }

        fn next(&mut self, (frames, at): &mut Self::Tile) -> Result<Option<Array>> {
            let start = *at;
            *at = frames.dim(0).min(start + 3);
            Ok((start < *at).then(|| frames.slice(0, start..*at)).transpose()?)
        }
    }

    /// Every pixel is the latent element it belongs to, so that tiles know nothing of each other.
    fn nearest(latent: &Array) -> mlx::Result<Array> {
        let x = latent.squeeze(&[0])?.transpose(&[1, 2, 3, 0])?; // (frames, height, width, channels)
        let x = x.repeat(SCALE.pixels, 1)?.repeat(SCALE.pixels, 2)?.repeat(SCALE.frames, 0)?;
        x.slice(0, SCALE.frames - 1..x.dim(0))
    }

    #[test]
    fn blending_is_exact_when_tiles_are_independent() {
        for length in 1..=8 {
            let (frames, height, width) = (length, 9 - length, 1 + length / 2);
            let shape = [1, 3, frames, height, width];
            let count = f64::from(shape.iter().product::<i32>());
            let latent = mlx::arange(0.0, count, 1.0, Dtype::F32).unwrap().reshape(&shape).unwrap();
            let whole = nearest(&latent).unwrap();
            let mut temporal = vec![None];
            let mut spatial = vec![None];
            for size in 2..=4 {
                for overlap in 0..size {
                    temporal.push(Some((size * SCALE.frames, overlap * SCALE.frames)));
                    spatial.push(Some((size * SCALE.pixels, overlap * SCALE.pixels)));
                }
            }
            for (index, temporal) in temporal.into_iter().enumerate() {
                let tiling = Tiling { spatial: spatial[(index * 7 + 3) % spatial.len()], temporal };
                let plan = Plan::new(&latent, &tiling, SCALE).unwrap();
                let chunks: Vec<Array> =
                    plan.decode(Slowly(|tile: &Array| Ok(nearest(tile)?))).map(Result::unwrap).collect();
                let joined = mlx::concatenate(&chunks.iter().collect::<Vec<_>>(), 0).unwrap();
                assert_eq!(joined.shape(), whole.shape(), "{shape:?} {tiling:?}");
                let worst = joined.subtract(&whole).unwrap().abs().unwrap();
                let worst = worst.max(&[0, 1, 2, 3], false).unwrap().item().unwrap();
                assert!(worst <= 1e-6 * count as f32, "{shape:?} {tiling:?}: {worst}");
            }
        }
    }

    #[test]
    fn nothing_comes_after_an_error() {
        let latent = mlx::zeros(&[1, 1, 9, 1, 1], Dtype::F32).unwrap();
        let tiling = Tiling { spatial: None, temporal: Some((8, 0)) };
        let mut chunks = Plan::new(&latent, &tiling, SCALE)
            .unwrap()
            .decode(Slowly(|_: &Array| Err(Error::request("no", "never"))));
        assert!(chunks.next().unwrap().is_err());
        assert!(chunks.next().is_none());
    }

    /// Values of the official code.
    #[test]
    fn ramps_are_the_official_ones() {
        assert_eq!(trapezoid(6, 3, 1, false), [0.25, 0.5, 0.75, 1.0, 1.0, 0.5]);
        assert_eq!(trapezoid(5, 4, 0, true), [0.0, 0.25, 0.5, 0.75, 1.0]);
        let spans = temporal(5, Some((12, 4)), 4).unwrap();
        let places: Vec<_> = spans.iter().map(|span| (span.latent.clone(), span.pixels.clone())).collect();
        assert_eq!(places, [(0..3, 0..9), (1..5, 4..17)]);
        assert_eq!(spans[0].share[4..], [1.0, 0.8, 0.6, 0.4, 0.2]);
        assert_eq!(spans[1].share[..6], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    }
}
