//! Says what a clip shows and sounds like, by plain image and signal analysis: nearest palette colour, outlines
//! compared with templates and with their convex hull, the path of the middle, the strongest partial. The rules
//! are those of `reference/toy/score.py`.

pub mod clip;

use std::f32::consts::TAU;

use ltx::media::Frame;

use crate::scene::{BACKGROUNDS, COLORS, Rgb, SHAPES, distance};
use clip::Clip;

/// Of the frame's area: less is noise.
const SMALLEST: f32 = 0.003;
/// Of the convex hull's area: circles and squares fill at least 0.94, as clips have them.
const DENTED: f32 = 0.9;

/// One object as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub color: &'static str,
    pub shape: &'static str,
    pub motion: String,
}

/// What a clip shows, objects sorted by colour, and what is heard at its beginning: a pitch class or "silent".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub background: &'static str,
    pub things: Vec<Seen>,
    pub pitch: &'static str,
}

pub fn judge(clip: &Clip) -> Verdict {
    let (background, color) = background(&clip.frames);
    let first = &clip.frames[0];
    let unit = first.width.min(first.height) as f32;
    let mut things: Vec<Seen> = Vec::new();
    for (index, (name, _)) in COLORS.iter().enumerate() {
        let spots = clip.frames.iter().enumerate();
        let track: Vec<(f32, Spot)> = spots
            .filter_map(|(time, frame)| Some((time as f32, Spot::largest(frame, color, index)?)))
            .collect();
        if track.len() as f32 >= 0.6 * clip.frames.len() as f32 {
            things.push(Seen { color: name, shape: shape(&track), motion: motion(&track, unit) });
        }
    }
    things.sort_by_key(|thing| thing.color);
    Verdict { background, things, pitch: pitch(&clip.samples, clip.sample_rate) }
}

fn far(a: Rgb, b: Rgb) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

/// Index of the nearest colour and how far it is.
fn nearest(palette: &[(&str, Rgb)], color: Rgb) -> (usize, f32) {
    let distances = palette.iter().map(|(_, known)| far(*known, color)).enumerate();
    distances.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

fn pixels(frame: &Frame) -> impl Iterator<Item = Rgb> {
    frame.rgb.chunks_exact(3).map(|pixel| [0, 1, 2].map(|c| f32::from(pixel[c])))
}

/// The background whose colour the upper and lower rim has, and that colour.
fn background(frames: &[Frame]) -> (&'static str, Rgb) {
    let rim = |frame: &Frame| {
        let rows = 3 * frame.width as usize; // three rows of pixels
        let all: Vec<Rgb> = pixels(frame).collect();
        [&all[..rows], &all[all.len() - rows..]].concat()
    };
    let rim: Vec<Rgb> = frames.iter().flat_map(rim).collect();
    let median = |c: usize| {
        let mut values: Vec<f32> = rim.iter().map(|pixel| pixel[c]).collect();
        values.sort_by(f32::total_cmp);
        values[values.len() / 2]
    };
    let color = [median(0), median(1), median(2)];
    (BACKGROUNDS[nearest(&BACKGROUNDS, color).0].0, color)
}

/// A coherent area of one colour in one frame.
struct Spot {
    /// Its pixels (x, y).
    points: Vec<(usize, usize)>,
}

impl Spot {
    /// The largest one of a palette colour, if there is one large and compact enough to be an object.
    fn largest(frame: &Frame, background: Rgb, color: usize) -> Option<Self> {
        let (width, height) = (frame.width as usize, frame.height as usize);
        // Nearer to the object's colour than to the background.
        let mut free: Vec<bool> = pixels(frame)
            .map(|pixel| {
                let (index, distance) = nearest(&COLORS, pixel);
                index == color && distance < far(pixel, background)
            })
            .collect();
        let mut largest = Vec::new();
        for start in 0..free.len() {
            let (mut points, mut open) = (Vec::new(), vec![start]);
            while let Some(at) = open.pop() {
                if !std::mem::take(&mut free[at]) {
                    continue;
                }
                let (x, y) = (at % width, at / width);
                points.push((x, y));
                open.extend((x > 0).then(|| at - 1).into_iter().chain((x + 1 < width).then_some(at + 1)));
                open.extend(
                    (y > 0).then(|| at - width).into_iter().chain((y + 1 < height).then_some(at + width)),
                );
            }
            if points.len() > largest.len() {
                largest = points;
            }
        }
        let spot = Self { points: largest };
        let large = spot.area() >= SMALLEST * (width * height) as f32;
        // Yellow that fades into blue is green on the way: a rim without a core is no object.
        (large && spot.core(width, height) > 0.15 * spot.area()).then_some(spot)
    }

    fn area(&self) -> f32 {
        self.points.len() as f32
    }

    /// Its area without its rim.
    fn core(&self, width: usize, height: usize) -> f32 {
        let mut mask = vec![false; width * height];
        self.points.iter().for_each(|&(x, y)| mask[y * width + x] = true);
        for _ in 0..(width.min(height) / 64).max(1) {
            let inside = |x: usize, y: usize| {
                x > 0 && y > 0 && x + 1 < width && y + 1 < height && {
                    let at = y * width + x;
                    [at, at - 1, at + 1, at - width, at + width].iter().all(|&at| mask[at])
                }
            };
            mask = (0..mask.len()).map(|at| inside(at % width, at / width)).collect();
        }
        mask.iter().filter(|&&inside| inside).count() as f32
    }

    fn middle(&self) -> (f32, f32) {
        let sum = self.points.iter().fold((0, 0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 as f32 / self.area(), sum.1 as f32 / self.area())
    }

    /// How much of its convex hull the spot fills.
    fn solidity(&self) -> f32 {
        type Point = (i64, i64);
        let corners = |&(x, y): &(usize, usize)| {
            let (x, y) = (x as i64, y as i64);
            [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)]
        };
        let mut corners: Vec<Point> = self.points.iter().flat_map(corners).collect();
        corners.sort_unstable();
        let cross = |o: Point, a: Point, b: Point| (a.0 - o.0) * (b.1 - o.1) - (a.1 - o.1) * (b.0 - o.0);
        // Twice the area between the origin and a chain of corners that always turns the same way.
        let chain = |corners: &mut dyn Iterator<Item = Point>| -> i64 {
            let mut line: Vec<Point> = Vec::new();
            for next in corners {
                while let [.., before, last] = line[..]
                    && cross(before, last, next) <= 0
                {
                    line.pop();
                }
                line.push(next);
            }
            line.windows(2).map(|pair| cross((0, 0), pair[0], pair[1])).sum()
        };
        let twice = chain(&mut corners.iter().copied()) + chain(&mut corners.iter().rev().copied());
        2.0 * self.area() / twice as f32
    }

    /// The shape whose outline, stretched to the spot's box, agrees best with the spot; but what has dents is neither a
    /// circle nor a square: it is a star, however round its points.
    fn shape(&self) -> &'static str {
        let span = |axis: fn(&(usize, usize)) -> usize| {
            let places = self.points.iter().map(axis);
            (places.clone().min().unwrap(), places.max().unwrap())
        };
        let ((left, right), (top, bottom)) = (span(|point| point.0), span(|point| point.1));
        let (width, height) = (right - left + 1, bottom - top + 1);
        let mut mask = vec![false; width * height];
        self.points.iter().for_each(|&(x, y)| mask[(y - top) * width + x - left] = true);
        let overlap = |shape: &str| {
            let pairs = || template(shape, width, height).into_iter().zip(&mask);
            let both = pairs().filter(|(a, b)| *a && **b).count();
            both as f32 / pairs().filter(|(a, b)| *a || **b).count() as f32
        };
        let best = SHAPES.into_iter().max_by(|a, b| overlap(a).total_cmp(&overlap(b))).unwrap();
        if matches!(best, "circle" | "square") && self.solidity() < DENTED { "star" } else { best }
    }
}

/// An outline's mask, filling a box of that size.
fn template(shape: &str, width: usize, height: usize) -> Vec<bool> {
    const FINE: usize = 181;
    let at = |index: usize| -1.4 + 2.8 * index as f32 / (FINE - 1) as f32;
    let inside = |x: usize, y: usize| distance(shape, at(x), at(y), 1.0) < 0.0;
    let span = |hit: &dyn Fn(usize) -> bool| {
        let first = (0..FINE).find(|&index| hit(index)).unwrap();
        (first, (0..FINE).rfind(|&index| hit(index)).unwrap() - first + 1)
    };
    let (left, wide) = span(&|x| (0..FINE).any(|y| inside(x, y)));
    let (top, high) = span(&|y| (0..FINE).any(|x| inside(x, y)));
    let scaled =
        |index: usize, size: usize, fine: usize| ((index as f32 + 0.5) * fine as f32 / size as f32) as usize;
    let row = |y: usize| {
        (0..width).map(move |x| inside(left + scaled(x, width, wide), top + scaled(y, height, high)))
    };
    (0..height).flat_map(row).collect()
}

/// What most of a few frames show.
fn shape(track: &[(f32, Spot)]) -> &'static str {
    let votes: Vec<_> =
        track.iter().step_by((track.len() / 6).max(1)).map(|(_, spot)| spot.shape()).collect();
    SHAPES.into_iter().max_by_key(|shape| votes.iter().filter(|vote| *vote == shape).count()).unwrap()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

/// The motion of one object's track; `unit` is the frame's shorter side.
fn motion(track: &[(f32, Spot)], unit: f32) -> String {
    let time: Vec<f32> = track.iter().map(|(time, _)| *time).collect();
    let areas: Vec<f32> = track.iter().map(|(_, spot)| spot.area()).collect();
    let (x, y): (Vec<f32>, Vec<f32>) = track.iter().map(|(_, spot)| spot.middle()).unzip();
    let [x, y] = [x, y].map(|values| values.iter().map(|value| value / unit).collect::<Vec<_>>());

    // How far the heights are from a straight line.
    let (when, where_) = (mean(&time), mean(&y));
    let spread: f32 = time.iter().map(|t| (t - when).powi(2)).sum();
    let slope = time.iter().zip(&y).map(|(t, y)| (t - when) * (y - where_)).sum::<f32>() / spread;
    let off: Vec<f32> = time.iter().zip(&y).map(|(t, y)| (y - where_ - slope * (t - when)).powi(2)).collect();
    let range = y.iter().copied().fold(f32::MIN, f32::max) - y.iter().copied().fold(f32::MAX, f32::min);
    if track.len() > 4 && mean(&off).sqrt() > 0.035 && range > 0.1 {
        return "bounce".into();
    }
    // From the first to the last quarter of the track, as if the whole way were covered at that pace.
    let change = |values: &[f32]| {
        let (all, count) = (values.len(), (values.len() / 4).max(2));
        (mean(&values[all - count..]) - mean(&values[..count])) * all as f32 / (all - count) as f32
    };
    let direction = |by: f32, low: &'static str, high: &'static str| {
        if by < -0.1 { Some(low) } else { (by > 0.1).then_some(high) }
    };
    let names = [direction(change(&y), "up", "down"), direction(change(&x), "left", "right")];
    let names: Vec<_> = names.into_iter().flatten().collect();
    if !names.is_empty() {
        return names.join("-");
    }
    let ends = (areas.len() / 5).max(2);
    let grown = mean(&areas[areas.len() - ends..]) > 1.5 * mean(&areas[..ends]);
    if grown { "grow" } else { "still" }.into()
}

/// The pitch class of the strongest partial at the beginning, or "silent".
fn pitch(samples: &[f32], rate: u32) -> &'static str {
    const CLASSES: [&str; 12] = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"];
    let power: f32 = samples.iter().map(|sample| sample.powi(2)).sum();
    if samples.is_empty() || (power / samples.len() as f32).sqrt() < 0.004 {
        return "silent";
    }
    let rate = rate as f32;
    let window = &samples[(0.01 * rate) as usize..(0.09 * rate) as usize];
    let turn = TAU / (window.len() - 1) as f32;
    let smooth: Vec<f32> =
        window.iter().enumerate().map(|(i, s)| s * (0.5 - 0.5 * (turn * i as f32).cos())).collect();
    let strength = |hertz: f32| {
        // Turns step by step: a sine for each sample would take longer than the clip.
        let ((sin, cos), mut phase, mut sum) = ((TAU * hertz / rate).sin_cos(), (1.0f32, 0.0f32), (0.0, 0.0));
        for sample in &smooth {
            sum = (sum.0 + sample * phase.0, sum.1 + sample * phase.1);
            phase = (phase.0 * cos - phase.1 * sin, phase.0 * sin + phase.1 * cos);
        }
        sum.0.hypot(sum.1)
    };
    let partials = (150..2500).map(|hertz| (hertz as f32, strength(hertz as f32)));
    let (strongest, _) = partials.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    CLASSES[(12.0 * (strongest / 261.6256).log2()).round().rem_euclid(12.0) as usize]
}
