//! Long sequences in pieces that overlap as far as a network sees, so that each piece's own part is what the whole gives.
//! The sequence may come part by part: what no piece has to see any more is let go.

use std::ops::Range;

use mlx::Array;

use crate::error::Result;

/// How far a network sees along a sequence, in places of what it is given.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Backwards.
    pub before: i32,
    /// Forwards.
    pub after: i32,
}

/// One piece of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What it is for.
    pub own: Range<i32>,
    /// What has to be looked at for that.
    pub seen: Range<i32>,
    /// No other comes after it.
    pub last: bool,
}

/// A sequence along an axis of arrays, cut into pieces of a length; the last one may be shorter.
pub struct Pieces {
    axis: i32,
    at_once: i32,
    reach: Reach,
    /// What is known of the sequence and still to be seen, and where that starts.
    held: Option<Array>,
    start: i32,
    /// Where the next piece starts.
    next: i32,
    ended: bool,
}

impl Pieces {
    /// Of `at_once` places along `axis`, each seen with what lies around it as far as `reach`.
    pub fn new(axis: i32, at_once: i32, reach: Reach) -> Self {
        Self { axis, at_once: at_once.max(1), reach, held: None, start: 0, next: 0, ended: false }
    }

    /// Goes on with what follows in the sequence, which ends with it if it is the `last`.
    pub fn push(&mut self, part: &Array, last: bool) -> Result<()> {
        self.held = Some(match self.held.take() {
            Some(held) => mlx::concatenate(&[&held, part], self.axis)?,
            None => part.clone(),
        });
        self.ended = last;
        Ok(())
    }

    /// The next piece for which enough is known, and the part of the sequence that it sees.
    pub fn next(&mut self) -> Result<Option<(Array, Piece)>> {
        let Some(held) = &self.held else { return Ok(None) };
        let known = self.start + held.dim(self.axis);
        let piece = Piece::of(self.next, self.at_once, self.reach, self.ended.then_some(known));
        let Some(piece) = piece.filter(|piece| piece.seen.end <= known) else { return Ok(None) };
        let seen = held.slice(self.axis, piece.seen.start - self.start..piece.seen.end - self.start)?;
        let from = (piece.own.end - self.reach.before).max(self.start);
        self.held = if piece.last {
            None
        } else {
            let rest = held.slice(self.axis, from - self.start..known - self.start)?.contiguous()?;
            mlx::eval([&rest, &seen])?;
            Some(rest)
        };
        (self.start, self.next) = (from, piece.own.end);
        Ok(Some((seen, piece)))
    }
}

impl Piece {
    /// The piece from a place on, in a sequence whose `end` may not be known yet; none beyond it.
    fn of(start: i32, at_once: i32, reach: Reach, end: Option<i32>) -> Option<Self> {
        let limit = end.unwrap_or(i32::MAX);
        let own = start..start.saturating_add(at_once).min(limit);
        let seen = (start - reach.before).max(0)..own.end.saturating_add(reach.after).min(limit);
        let last = end == Some(own.end);
        (!own.is_empty()).then_some(Self { own, seen, last })
    }
}

#[cfg(test)]
mod tests {
    use mlx::Dtype;

    use super::*;

    /// However the sequence comes, pieces are the same: all of it once, with what they need to see.
    #[test]
    fn pieces_cover_everything_once_and_see_what_they_need() -> Result<()> {
        let reach = Reach { before: 4, after: 2 };
        for (length, at_once, parts) in
            [(1, 1, 1), (7, 3, 7), (9, 3, 2), (9, 3, 100), (10, 100, 3), (23, 5, 1), (23, i32::MAX, 4)]
        {
            let whole = mlx::arange(0.0, f64::from(length), 1.0, Dtype::F32)?.reshape(&[1, length])?;
            let (mut pieces, mut found) = (Pieces::new(1, at_once, reach), Vec::new());
            for from in (0..length).step_by(parts as usize) {
                let end = length.min(from + parts);
                pieces.push(&whole.slice(1, from..end)?, end == length)?;
                while let Some((seen, piece)) = pieces.next()? {
                    let values: Vec<i32> = seen.to_f32()?.iter().map(|&value| value as i32).collect();
                    assert_eq!(values, piece.seen.clone().collect::<Vec<_>>());
                    found.push(piece);
                }
            }
            let places: Vec<i32> = found.iter().flat_map(|piece| piece.own.clone()).collect();
            assert_eq!(places, (0..length).collect::<Vec<_>>());
            let count = found.len();
            for (index, Piece { own, seen, last }) in found.into_iter().enumerate() {
                assert_eq!((own.start, last), (index as i32 * at_once.min(length), index + 1 == count));
                assert_eq!(seen, (own.start - 4).max(0)..(own.end + 2).min(length));
            }
        }
        Ok(())
    }
}
