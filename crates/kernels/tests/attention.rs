//! Attention against sums in f64, for every instruction set that this machine has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use kernels::{Added, AttentionShape, Isa, Mask};
use support::{Data, close, every_isa};

/// What is masked, if anything.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Masked {
    Nothing,
    /// A number for each score.
    Scores,
    /// −∞ for keys after the query, the same in every head.
    Later,
    /// The keys before a query alone, and so many of them.
    Past(usize),
    /// −∞ for two of three keys, the same for every query.
    Keys,
}

fn shape(
    [batch, heads, key_heads]: [usize; 3],
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
) -> AttentionShape {
    AttentionShape { batch, heads, key_heads, queries, keys, head_dim, value_dim }
}

fn check(isa: Isa, s: &AttentionShape, masked: Masked, narrow: bool) {
    let q = Data::new(s.batch * s.heads * s.queries * s.head_dim, 1, narrow);
    let k = Data::new(s.batch * s.key_heads * s.keys * s.head_dim, 2, narrow);
    let v = Data::new(s.batch * s.key_heads * s.keys * s.value_dim, 3, narrow);
    let (mask, mask_shape) = match masked {
        Masked::Nothing => (Vec::new(), [1, 1, 1]),
        Masked::Scores => {
            let len = s.batch * s.heads * s.queries * s.keys;
            let scores = Data::new(len, 4, false);
            ((0..len).map(|index| 3.0 * scores.get(index) as f32).collect(), [s.batch, s.heads, s.queries])
        }
        Masked::Later => {
            let row = |query| {
                (0..s.keys).map(
                    move |key| if key * s.queries > (query + 1) * s.keys { f32::NEG_INFINITY } else { 0.0 },
                )
            };
            ((0..s.queries).flat_map(row).collect(), [1, 1, s.queries])
        }
        Masked::Past(window) => {
            let row = |query| {
                let place = s.keys - s.queries + query;
                let sees = move |key| key <= place && place - key < window;
                (0..s.keys).map(move |key| if sees(key) { 0.0 } else { f32::NEG_INFINITY })
            };
            ((0..s.queries).flat_map(row).collect(), [1, 1, s.queries])
        }
        Masked::Keys => {
            let row = |sample| {
                (0..s.keys).map(move |key| if (key + sample) % 3 > 0 { f32::NEG_INFINITY } else { 0.0 })
            };
            ((0..s.batch).flat_map(row).collect(), [s.batch, 1, 1])
        }
    };
    let given = (masked != Masked::Nothing).then(|| {
        let [batch, heads, queries] = mask_shape;
        match masked {
            Masked::Past(window) => Mask::Past { window },
            _ => Mask::Added(Added { values: mask[..].into(), batch, heads, queries }),
        }
    });
    let scale = 1.7 / (s.head_dim as f32).sqrt();
    let mut out = Data::new(s.batch * s.heads * s.queries * s.value_dim, 5, narrow);
    kernels::attention([q.values(), k.values(), v.values()], s, scale, given, out.values_mut()).unwrap();
    for sample in 0..s.batch {
        for head in 0..s.heads {
            let key_head = head / (s.heads / s.key_heads);
            let key_row = |key| (sample * s.keys + key) * s.key_heads + key_head;
            for query in 0..s.queries {
                let row = (sample * s.queries + query) * s.heads + head;
                let scores: Vec<f64> = (0..s.keys)
                    .map(|key| {
                        let product = (0..s.head_dim)
                            .map(|i| q.get(row * s.head_dim + i) * k.get(key_row(key) * s.head_dim + i));
                        let [batch, heads, queries] = mask_shape;
                        let mask_row = (sample % batch * heads + head % heads) * queries + query % queries;
                        let add = given.map_or(0.0, |_| mask[mask_row * s.keys + key]);
                        product.sum::<f64>() * f64::from(scale) + f64::from(add)
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..s.value_dim {
                    let values = (0..s.keys).map(|key| v.get(key_row(key) * s.value_dim + i));
                    let sum: f64 = weights.iter().zip(values).map(|(weight, value)| weight * value).sum();
                    let name = || format!("({sample}, {head}, {query}, {i}) of {s:?} {masked:?} on {isa}");
                    // Weights are rounded to bf16 where products of pairs are used.
                    let tolerance = if narrow { 4e-3 } else { 2e-6 };
                    close(out.get(row * s.value_dim + i), sum / total, tolerance, narrow, name);
                }
            }
        }
    }
}

#[test]
fn agrees_with_sums_in_f64() {
    every_isa(|isa| {
        for narrow in [false, true] {
            for shape in [
                shape([1, 1, 1], 1, 1, 1, 1),
                shape([2, 3, 3], 5, 7, 3, 5),
                shape([1, 4, 2], 50, 33, 64, 64),
                shape([1, 2, 1], 13, 300, 128, 128),
                shape([1, 1, 1], 251, 270, 17, 40),
                shape([1, 1, 1], 30, 515, 530, 35),
            ] {
                for masked in [Masked::Nothing, Masked::Scores, Masked::Later, Masked::Keys] {
                    check(isa, &shape, masked, narrow);
                }
                for window in [1, 3, 40, 260, usize::MAX] {
                    // Queries are some of the keys.
                    let shape = AttentionShape { keys: shape.keys.max(shape.queries), ..shape };
                    check(isa, &shape, Masked::Past(window), narrow);
                }
            }
        }
    });
}

#[test]
fn queries_that_see_nothing_get_zeros() {
    every_isa(|_| {
        let s = shape([1, 1, 1], 2, 3, 2, 2);
        let ones = [1.0f32; 6];
        let mask = [[f32::NEG_INFINITY; 3], [0.0, f32::NEG_INFINITY, 0.0]].concat();
        let mask = Mask::Added(Added { values: mask[..].into(), batch: 1, heads: 1, queries: 2 });
        let mut out = [7.0f32; 4];
        let (q, kv) = (ones[..4].into(), ones[..].into());
        kernels::attention([q, kv, kv], &s, 1.0, Some(mask), &mut out[..]).unwrap();
        assert_eq!(out, [0.0, 0.0, 1.0, 1.0]);
        let mut out = [7.0f32; 4];
        let nobody = AttentionShape { keys: 0, ..s };
        let none = ones[..0].into();
        kernels::attention([q, none, none], &nobody, 1.0, None, &mut out[..]).unwrap();
        assert_eq!(out, [0.0; 4]);
    });
}

/// A clip that went wrong must be seen to have.
#[test]
fn not_a_number_stays_so() {
    every_isa(|_| {
        let s = shape([1, 1, 1], 3, 40, 4, 4);
        let (mut q, k) = ([1.0f32; 12], [1.0f32; 160]);
        q[5] = f32::NAN;
        let mut out = [0.0f32; 12];
        kernels::attention([q[..].into(), k[..].into(), k[..].into()], &s, 1.0, None, &mut out[..]).unwrap();
        assert!(out.iter().enumerate().all(|(i, value)| value.is_nan() == (4..8).contains(&i)), "{out:?}");
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let values = [0.0f32; 24];
    let fits = |s: &AttentionShape, q: usize, kv: usize, mask: Option<Mask<'_>>, out: usize| {
        let mut written = [0.0f32; 24];
        let (q, kv) = (values[..q].into(), values[..kv].into());
        kernels::attention([q, kv, kv], s, 1.0, mask, &mut written[..out]).is_ok()
    };
    let s = shape([1, 2, 1], 3, 2, 4, 4);
    let mask = |heads: usize, queries: usize| {
        Some(Mask::Added(Added { values: values[..heads * queries * 2].into(), batch: 1, heads, queries }))
    };
    assert!(fits(&s, 24, 8, None, 24));
    assert!(fits(&s, 24, 8, mask(1, 3), 24));
    assert!(!fits(&s, 23, 8, None, 24));
    assert!(!fits(&s, 24, 7, None, 24));
    assert!(!fits(&s, 24, 8, None, 23));
    assert!(!fits(&s, 24, 8, mask(1, 2), 24));
    assert!(!fits(&s, 24, 8, mask(0, 3), 24));
    assert!(!fits(&AttentionShape { key_heads: 3, keys: 2, ..s }, 24, 24, None, 24));
    assert!(!fits(&AttentionShape { key_heads: 0, ..s }, 24, 0, None, 24));
}
