//! Long sequences in pieces that overlap as far as a network sees, so that each piece's own part is what the whole gives.

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
}

/// What `compute` makes of `x` along `axis`, in pieces of about the same length, `at_once` places at most: it is given the
/// part of `x` that a piece must see, and that piece, and gives what is the piece's own, which is joined along `joined`.
pub fn in_pieces(
    x: &Array,
    axis: i32,
    at_once: i32,
    reach: Reach,
    joined: i32,
    mut compute: impl FnMut(&Array, &Piece) -> Result<Array>,
) -> Result<Array> {
    let mut parts = Vec::new();
    for piece in pieces(x.dim(axis), at_once, reach) {
        let part = compute(&x.slice(axis, piece.seen.clone())?, &piece)?.contiguous()?;
        part.eval()?;
        parts.push(part);
    }
    match &parts[..] {
        [whole] => Ok(whole.clone()),
        parts => Ok(mlx::concatenate(&parts.iter().collect::<Vec<_>>(), joined)?),
    }
}

/// Cuts a sequence of `length` into pieces of about the same length, `at_once` at most.
fn pieces(length: i32, at_once: i32, reach: Reach) -> impl Iterator<Item = Piece> {
    let ceil = |a: i32, b: i32| a / b + i32::from(a % b > 0);
    let count = ceil(length.max(1), at_once.max(1));
    let each = ceil(length, count);
    (0..count).map(move |index| {
        let own = index * each..length.min((index + 1) * each);
        let seen = (own.start - reach.before).max(0)..length.min(own.end.saturating_add(reach.after));
        Piece { own, seen }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once_and_see_what_they_need() {
        for (length, at_once) in [(1, 1), (7, 3), (9, 3), (10, 100), (23, 5)] {
            let pieces: Vec<Piece> = pieces(length, at_once, Reach { before: 4, after: 2 }).collect();
            assert_eq!(pieces.len() as i32, (length + at_once - 1) / at_once);
            let places: Vec<i32> = pieces.iter().flat_map(|piece| piece.own.clone()).collect();
            assert_eq!(places, (0..length).collect::<Vec<_>>());
            for Piece { own, seen } in pieces {
                assert!(own.len() as i32 <= at_once);
                assert_eq!(seen, (own.start - 4).max(0)..(own.end + 2).min(length));
            }
        }
    }
}
