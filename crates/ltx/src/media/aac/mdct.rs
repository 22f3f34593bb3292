//! The lapped transform of AAC: windows and the modified discrete cosine transform.
//!
//! Everything is f64 and its sines come from `libm`, so that the same sound gives the same bytes on every machine.

use std::f64::consts::PI;

/// How the 1024 lines of a frame are windowed (the numbers are the format's own).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Windows {
    /// One long transform.
    Long = 0,
    /// One long transform whose right slope is short: short ones follow.
    Start = 1,
    /// Eight short transforms, against noise spreading ahead of an attack.
    Short = 2,
    /// One long transform whose left slope is short.
    Stop = 3,
}

/// Transforms of 2048 and of 256 samples with sine windows.
pub struct Transform {
    long: Mdct,
    short: Mdct,
}

impl Transform {
    pub fn new() -> Self {
        Self { long: Mdct::new(1024), short: Mdct::new(128) }
    }

    /// 2048 samples → 1024 lines, in the scale that the format's inverse transform expects. Eight short spectra follow
    /// each other, 128 lines each.
    pub fn forward(&self, samples: &[f64; 2048], windows: Windows) -> Vec<f64> {
        if windows == Windows::Short {
            return (0..8)
                .flat_map(|w| {
                    let part = &samples[448 + 128 * w..][..256];
                    let windowed: Vec<f64> = part.iter().zip(slope(256)).map(|(x, s)| x * s).collect();
                    self.short.forward(&windowed)
                })
                .collect();
        }
        let left = edge(matches!(windows, Windows::Stop));
        let right = edge(matches!(windows, Windows::Start));
        let windowed: Vec<f64> =
            samples.iter().zip(left.iter().chain(right.iter().rev())).map(|(x, w)| x * w).collect();
        self.long.forward(&windowed)
    }
}

/// A sine window over `length` samples, its rising half first.
fn slope(length: usize) -> impl Iterator<Item = f64> {
    (0..length).map(move |n| libm::sin(PI / length as f64 * (n as f64 + 0.5)))
}

/// The left half of a long window: a long slope, or silence, a short slope and ones.
fn edge(short: bool) -> Vec<f64> {
    if !short {
        return slope(2048).take(1024).collect();
    }
    std::iter::repeat_n(0.0, 448).chain(slope(256).take(128)).chain(std::iter::repeat_n(1.0, 448)).collect()
}

/// The transform of `2 * lines` samples into `lines` lines, by a complex FFT of `lines / 2` points.
struct Mdct {
    lines: usize,
    /// e^(-iπ(n + 1/8)/lines), applied before and after the FFT.
    twiddle: Vec<(f64, f64)>,
    /// e^(-2πik/(lines/2)).
    roots: Vec<(f64, f64)>,
}

impl Mdct {
    fn new(lines: usize) -> Self {
        let turn = |angle: f64| (libm::cos(angle), -libm::sin(angle));
        let half = lines / 2;
        Self {
            lines,
            twiddle: (0..half).map(|n| turn(PI * (n as f64 + 0.125) / lines as f64)).collect(),
            roots: (0..half / 2).map(|k| turn(2.0 * PI * k as f64 / half as f64)).collect(),
        }
    }

    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let (m, q) = (self.lines, self.lines / 2);
        // Fold the four quarters (a, b, c, d) to (-c_r - d, a - b_r), whose DCT-IV is the transform.
        let folded = |n: usize| {
            if n < q { -x[3 * q - 1 - n] - x[3 * q + n] } else { x[n - q] - x[3 * q - 1 - n] }
        };
        let mut points: Vec<(f64, f64)> =
            (0..q).map(|n| times((folded(2 * n), folded(m - 1 - 2 * n)), self.twiddle[n])).collect();
        self.fft(&mut points);
        let mut lines = vec![0.0; m];
        for (k, (&point, &twiddle)) in points.iter().zip(&self.twiddle).enumerate() {
            let (re, im) = times(point, twiddle);
            lines[2 * k] = 2.0 * re;
            lines[m - 1 - 2 * k] = -2.0 * im;
        }
        lines
    }

    /// Radix-2, decimation in time, in place.
    fn fft(&self, points: &mut [(f64, f64)]) {
        let n = points.len();
        let shift = usize::BITS - n.trailing_zeros();
        for i in 0..n {
            let j = i.reverse_bits() >> shift;
            if i < j {
                points.swap(i, j);
            }
        }
        let mut half = 1;
        while half < n {
            for block in points.chunks_exact_mut(2 * half) {
                let (low, high) = block.split_at_mut(half);
                for (k, (a, b)) in low.iter_mut().zip(high).enumerate() {
                    let t = times(*b, self.roots[k * (n / 2 / half)]);
                    (*a, *b) = ((a.0 + t.0, a.1 + t.1), (a.0 - t.0, a.1 - t.1));
                }
            }
            half *= 2;
        }
    }
}

fn times(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_defining_sum() {
        let mdct = Mdct::new(64);
        let x: Vec<f64> = (0..128).map(|n| ((n * 37 + 11) % 101) as f64 - 50.0).collect();
        let lines = mdct.forward(&x);
        for (k, line) in lines.iter().enumerate() {
            let phase = |n: usize| PI / 64.0 * (n as f64 + 0.5 + 32.0) * (k as f64 + 0.5);
            let sum: f64 = x.iter().enumerate().map(|(n, v)| 2.0 * v * phase(n).cos()).sum();
            assert!((sum - line).abs() < 1e-9, "line {k}: {line} instead of {sum}");
        }
    }

    /// Windows of neighbours must satisfy w² + w_r² = 1 in every overlap, or nothing decodes to what it was.
    #[test]
    fn window_slopes_overlap_to_one() {
        for short in [false, true] {
            let edge = edge(short);
            assert_eq!(edge.len(), 1024);
            for n in 0..1024 {
                assert!(
                    (edge[n].powi(2) + edge[1023 - n].powi(2) - 1.0).abs() < 1e-12,
                    "short: {short}, sample {n}"
                );
            }
        }
    }
}
