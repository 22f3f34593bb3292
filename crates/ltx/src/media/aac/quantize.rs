//! One AAC frame: how coarse each band may be, the search for the coarseness that fits the bits, and the bit stream.

use super::Bits;
use super::mdct::Windows;
use super::tables::{BOOKS, Book, codes};

/// Largest quantized magnitude that the format can carry.
const MAX_QUANTIZED: f64 = 8191.0;
/// Added before rounding down: the format's usual value, which loses least under x^(4/3) reconstruction.
const ROUNDING: f64 = 0.4054;
/// The scale factor at which a quantized 1 stands for a line of 1.
const UNIT_SCALE: i32 = 100;
const MAX_SCALE: i32 = 255;
/// Escape magnitudes start here in book 11.
const ESCAPE: i32 = 16;
/// Bits that open a section: its book, then its length (a long section of 31 bands and more takes another 5).
const SECTION_BITS: usize = 4 + 5;

/// The codebooks, expanded: `(code, bits)` by entry.
pub struct Books(Vec<Vec<(u32, u8)>>);

impl Books {
    pub fn new() -> Self {
        Self(BOOKS.iter().map(codes).collect())
    }

    /// Calls `put(code, bits)` for each piece of the band's code in a book (1 to 11).
    fn spell(&self, book: usize, band: &[i32], mut put: impl FnMut(u32, usize)) {
        let Book { values, max, signed, .. } = BOOKS[book - 1];
        for group in band.chunks_exact(values) {
            let entry = group.iter().fold(0, |entry, &q| {
                let digit = if signed { q + max } else { q.abs().min(max) };
                entry * if signed { 2 * max + 1 } else { max + 1 } + digit
            });
            let (code, bits) = self.0[book - 1][entry as usize];
            put(code, bits.into());
            if !signed {
                group.iter().filter(|&&q| q != 0).for_each(|&q| put(u32::from(q < 0), 1));
            }
            if book == 11 {
                for q in group.iter().map(|q| q.unsigned_abs()).filter(|&q| q >= ESCAPE as u32) {
                    let width = q.ilog2() as usize; // 4 and more: width - 4 ones, a zero, then the rest of the number
                    put((1 << (width - 3)) - 2, width - 3);
                    put(q - (1 << width), width);
                }
            }
        }
    }

    fn bits(&self, book: usize, band: &[i32]) -> usize {
        let mut total = 0;
        self.spell(book, band, |_, bits| total += bits);
        total
    }
}

/// The spectra of both channels with their bands and what each band may lose.
pub struct Spectrum {
    windows: Windows,
    /// First line and one past the last, of every band; eight times as many for short windows.
    bands: Vec<(usize, usize)>,
    /// Bands in one window.
    per_window: usize,
    /// Lines; where `mid_side`, (left + right) / 2 and (left - right) / 2.
    lines: [Vec<f64>; 2],
    /// |line|^(3/4).
    compressed: [Vec<f64>; 2],
    /// Scale factor at which a band's noise is what it may be.
    scales: [Vec<i32>; 2],
    mid_side: Vec<bool>,
}

/// One channel at one coarseness.
struct Quantized {
    values: Vec<i32>,
    scales: Vec<i32>,
    /// Codebook of each band; 0 where all is zero.
    books: Vec<usize>,
    bits: usize,
}

impl Spectrum {
    pub fn new(spectra: [Vec<f64>; 2], windows: Windows, long: &[usize], short: &[usize], rate: u32) -> Self {
        let edges = if windows == Windows::Short { short } else { long };
        let window = if windows == Windows::Short { 128 } else { 1024 };
        let bands: Vec<(usize, usize)> = (0..1024 / window)
            .flat_map(|w| edges.windows(2).map(move |e| (w * window + e[0], w * window + e[1])))
            .collect();
        let mut lines = spectra;
        let mut scales = [vec![0; bands.len()], vec![0; bands.len()]];
        let mut mid_side = vec![false; bands.len()];
        for (band, &(from, to)) in bands.iter().enumerate() {
            let middle = ((from + to) / 2 % window) as f64 / window as f64 * f64::from(rate) / 2.0;
            let energy = lines.each_ref().map(|x| energy(&x[from..to]));
            let mut noise = energy.map(|e| allowed_noise(e, to - from, middle, window));
            let (sums, differences): (Vec<f64>, Vec<f64>) = (from..to)
                .map(|i| ((lines[0][i] + lines[1][i]) / 2.0, (lines[0][i] - lines[1][i]) / 2.0))
                .unzip();
            // The noise of both lands in each ear. A line costs bits with the logarithm of energy over noise.
            let shared = noise[0].min(noise[1]) / 2.0;
            let cost = |energy: f64, noise: f64| (energy / noise).max(1.0);
            let mixed = cost(self::energy(&sums), shared) * cost(self::energy(&differences), shared);
            if mixed < cost(energy[0], noise[0]) * cost(energy[1], noise[1]) {
                mid_side[band] = true;
                lines[0][from..to].copy_from_slice(&sums);
                lines[1][from..to].copy_from_slice(&differences);
                noise = [shared; 2];
            }
            for channel in 0..2 {
                scales[channel][band] = scale_for(&lines[channel][from..to], noise[channel]);
            }
        }
        let compressed =
            lines.each_ref().map(|x| x.iter().map(|l| (l.abs() * l.abs().sqrt()).sqrt()).collect());
        Self { windows, per_window: edges.len() - 1, bands, lines, compressed, scales, mid_side }
    }

    /// The access unit: as fine as wanted, or as coarse as `budget` bits make it.
    pub fn write(&self, books: &Books, budget: usize) -> Vec<u8> {
        let at = |coarser: i32| [0, 1].map(|channel| self.quantize(channel, coarser, books));
        // Headers, mid/side flags, and the lengths of long sections.
        let overhead = 160 + self.bands.len();
        let fits = |channels: &[Quantized; 2]| channels[0].bits + channels[1].bits + overhead <= budget;
        let mut best = at(0);
        if !fits(&best) {
            let (mut fine, mut coarse) = (0, 160);
            while coarse - fine > 1 {
                let middle = (fine + coarse) / 2;
                let tried = at(middle);
                if fits(&tried) {
                    (coarse, best) = (middle, tried);
                } else {
                    fine = middle;
                }
            }
        }
        self.bit_stream(&best, books)
    }

    fn quantize(&self, channel: usize, coarser: i32, books: &Books) -> Quantized {
        let mut values = vec![0; 1024];
        let mut scales = self.scales[channel].clone();
        for (scale, &(from, to)) in scales.iter_mut().zip(&self.bands) {
            let largest = self.compressed[channel][from..to].iter().copied().fold(0.0, f64::max);
            let fits = |&s: &i32| largest * factor(s) < MAX_QUANTIZED;
            *scale = (*scale + coarser..=MAX_SCALE).find(fits).unwrap_or(MAX_SCALE);
            if largest * factor(*scale) + ROUNDING < 1.0 {
                *scale = 0; // nothing is left of the band
            }
        }
        // Two scale factors in a row may differ by 60 at most.
        let floor = scales.iter().copied().max().unwrap_or(0) - 60;
        let mut costs = Vec::with_capacity(self.bands.len());
        for (scale, &(from, to)) in scales.iter_mut().zip(&self.bands) {
            let factor = if *scale == 0 { 0.0 } else { factor((*scale).max(floor)) };
            *scale = (*scale).max(floor);
            let lines = self.lines[channel][from..to].iter().zip(&self.compressed[channel][from..to]);
            for (q, (line, c)) in values[from..to].iter_mut().zip(lines) {
                let magnitude = (c * factor + ROUNDING) as i32;
                *q = if *line < 0.0 { -magnitude } else { magnitude };
            }
            costs.push(book_costs(books, &values[from..to]));
        }
        let mut chosen = Vec::with_capacity(costs.len());
        let mut bits = 0;
        for window in costs.chunks(self.per_window) {
            bits += sections(window, &mut chosen);
        }
        let coded = || scales.iter().zip(&chosen).filter(|&(_, &book)| book > 0).map(|(&scale, _)| scale);
        let difference = |(a, b): (i32, i32)| usize::from(books.0[11][(b - a + 60) as usize].1);
        bits += coded().zip(coded().skip(1)).map(difference).sum::<usize>() + 8 + 3 + 1;
        Quantized { values, scales, books: chosen, bits }
    }

    fn bit_stream(&self, channels: &[Quantized; 2], books: &Books) -> Vec<u8> {
        let short = self.windows == Windows::Short;
        let used = |band: &usize| channels.iter().any(|c| c.books[*band] > 0);
        let bands = (0..self.bands.len()).filter(used).map(|b| b % self.per_window + 1).max().unwrap_or(0);
        let mut out = Bits::default();
        out.put(1, 3); // a channel pair,
        out.put(0, 4); // the first,
        out.put(1, 1); // both with the windows that follow
        out.put(0, 1);
        out.put(self.windows as u32, 2);
        out.put(0, 1); // sine slopes
        if short {
            out.put(bands as u32, 4);
            out.put(0, 7); // every window has its own scale factors
        } else {
            out.put(bands as u32, 6);
            out.put(0, 1); // no prediction
        }
        let sent = || (0..self.bands.len()).filter(|band| band % self.per_window < bands);
        let mixed = sent().any(|band| self.mid_side[band]);
        out.put(u32::from(mixed), 2);
        if mixed {
            sent().for_each(|band| out.put(u32::from(self.mid_side[band]), 1));
        }
        for channel in channels {
            let coded = || sent().filter(|&band| channel.books[band] > 0);
            let mut previous = coded().next().map_or(UNIT_SCALE, |band| channel.scales[band]);
            out.put(previous as u32, 8);
            let first = |window: usize| window * self.per_window;
            for window in 0..self.bands.len() / self.per_window {
                for section in channel.books[first(window)..][..bands].chunk_by(|a, b| a == b) {
                    out.put(section[0] as u32, 4);
                    let width = if short { 3 } else { 5 };
                    let full = (1 << width) - 1;
                    (0..section.len() / full).for_each(|_| out.put(full as u32, width));
                    out.put((section.len() % full) as u32, width);
                }
            }
            for band in coded() {
                let (code, bits) = books.0[11][(channel.scales[band] - previous + 60) as usize];
                out.put(code, bits.into());
                previous = channel.scales[band];
            }
            out.put(0, 3); // no pulses, no noise shaping in time, no gain control
            for band in coded() {
                let (from, to) = self.bands[band];
                books.spell(channel.books[band], &channel.values[from..to], |code, bits| out.put(code, bits));
            }
        }
        out.put(7, 3);
        out.finish()
    }
}

fn energy(lines: &[f64]) -> f64 {
    lines.iter().map(|x| x * x).sum()
}

/// Energy of the quantization noise that a band may carry: far below its own energy (more below at low frequencies,
/// where the ear resolves more), but never finer than what 16-bit sound would hold.
fn allowed_noise(energy: f64, lines: usize, hertz: f64, window: usize) -> f64 {
    let decibels = 44.0 - 18.0 * (hertz / 16_000.0).min(1.0);
    // Noise of a quarter of a 16-bit step, spread over the lines of the transform.
    let floor = lines as f64 * 2.0 * window as f64 / 16.0;
    (energy * libm::pow(10.0, -decibels / 10.0)).max(floor)
}

/// The coarsest scale factor whose expected noise stays within `noise`. A line x in steps of x^(3/4)/g^(3/4) comes back
/// with a mean square error of 4/27 √|x| g^(3/2).
fn scale_for(lines: &[f64], noise: f64) -> i32 {
    let spread: f64 = lines.iter().map(|x| x.abs().sqrt()).sum();
    if spread <= 0.0 {
        return 1;
    }
    let step = libm::pow(noise / (4.0 / 27.0 * spread), 2.0 / 3.0);
    (libm::floor(4.0 * libm::log2(step)) as i32 + UNIT_SCALE).clamp(1, MAX_SCALE)
}

/// What |line|^(3/4) is multiplied by at a scale factor.
fn factor(scale: i32) -> f64 {
    libm::exp2(-3.0 / 16.0 * f64::from(scale - UNIT_SCALE))
}

/// Bits of a band in each book, 0 to 11; `usize::MAX` where the book cannot hold it.
fn book_costs(books: &Books, band: &[i32]) -> [usize; 12] {
    let largest = band.iter().map(|q| q.abs()).max().unwrap_or(0);
    std::array::from_fn(|book| match book {
        0 if largest == 0 => 0,
        0 => usize::MAX,
        11 => books.bits(11, band),
        _ if largest <= BOOKS[book - 1].max => books.bits(book, band),
        _ => usize::MAX,
    })
}

/// Appends the cheapest book of each band of one window to `chosen`, counting what a change of book costs; the bits.
fn sections(costs: &[[usize; 12]], chosen: &mut Vec<usize>) -> usize {
    let mut total = [0usize; 12];
    let mut from = Vec::with_capacity(costs.len());
    for (band, cost) in costs.iter().enumerate() {
        let cheapest = (0..12).min_by_key(|&book| total[book]).unwrap_or(0);
        let switched = total[cheapest].saturating_add(SECTION_BITS);
        let stays: [bool; 12] = std::array::from_fn(|book| band > 0 && total[book] < switched);
        from.push(std::array::from_fn::<usize, 12, _>(|book| if stays[book] { book } else { cheapest }));
        total = std::array::from_fn(|book| {
            cost[book].saturating_add(if stays[book] { total[book] } else { switched })
        });
    }
    let mut book = (0..12).min_by_key(|&book| total[book]).unwrap_or(0);
    let (bits, start) = (total[book], chosen.len());
    for origin in from.iter().rev() {
        chosen.push(book);
        book = origin[book];
    }
    chosen[start..].reverse();
    bits
}
