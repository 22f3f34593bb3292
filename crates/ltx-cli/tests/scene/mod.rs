//! The toy's world, as far as its clips are judged by it: colours, outlines, notes, and scenes drawn and sounded by these
//! rules, for the scorer's own test. The rules are those of `reference/toy/world.py` and `sound.py`.

use std::f32::consts::{PI, TAU};
use std::path::Path;

use ltx::media::{Audio, Encoder, Frame, FrameRate, Options, Writer};

pub type Rgb = [f32; 3];

/// What an object can be.
pub const SHAPES: [&str; 4] = ["circle", "square", "triangle", "star"];

pub const COLORS: [(&str, Rgb); 6] = [
    ("red", [215.0, 35.0, 40.0]),
    ("orange", [245.0, 140.0, 20.0]),
    ("yellow", [250.0, 225.0, 50.0]),
    ("green", [40.0, 165.0, 70.0]),
    ("blue", [50.0, 95.0, 225.0]),
    ("purple", [145.0, 50.0, 185.0]),
];

pub const BACKGROUNDS: [(&str, Rgb); 4] = [
    ("black", [12.0, 12.0, 14.0]),
    ("white", [242.0, 242.0, 240.0]),
    ("grey", [128.0, 130.0, 132.0]),
    ("blue", [35.0, 60.0, 150.0]),
];

const FPS: f32 = 24.0;
const SAMPLE_RATE: u32 = 48_000;
/// Seconds from floor to floor.
const BOUNCE_PERIOD: f32 = 0.4;
const LOUDNESS: f32 = 0.3;

/// Pitch of a shape in hertz, and the pitch class that it is nearest to.
pub fn note(shape: &str) -> (f32, &'static str) {
    match shape {
        "square" => (400.0, "G"),
        "triangle" => (500.0, "B"),
        "circle" => (600.0, "D"),
        _ => (700.0, "F"),
    }
}

fn paint(palette: &[(&str, Rgb)], name: &str) -> Rgb {
    palette.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}")).1
}

/// How far outside the outline a point is, negative inside.
pub fn distance(shape: &str, x: f32, y: f32, radius: f32) -> f32 {
    match shape {
        "circle" => x.hypot(y) - radius,
        "square" => x.abs().max(y.abs()) - 0.88 * radius,
        "triangle" => {
            let y = y - 0.18 * radius;
            (x.abs() * (PI / 6.0).cos() - y * (PI / 6.0).sin()).max(y) - 0.62 * radius
        }
        _ => {
            let sector = TAU / 5.0;
            let angle = ((x.atan2(-y) + sector / 2.0).rem_euclid(sector) - sector / 2.0).abs();
            let (length, outer, inner) = (x.hypot(y), 1.25 * radius, 0.55 * radius);
            let edge = (inner * (sector / 2.0).cos() - outer, inner * (sector / 2.0).sin());
            ((length * angle.cos() - outer) * edge.1 - length * angle.sin() * edge.0) / edge.0.hypot(edge.1)
        }
    }
}

/// One object. Lengths are in units of the frame's shorter side.
#[derive(Clone, Copy, Debug)]
pub struct Thing {
    pub shape: &'static str,
    pub color: &'static str,
    pub motion: &'static str,
    pub radius: f32,
    pub start: (f32, f32),
    /// Where it ends; of one that bounces, its highest point.
    pub end: (f32, f32),
}

impl Thing {
    /// x, y and radius when `part` of the clip has passed.
    fn place(&self, part: f32, seconds: f32) -> (f32, f32, f32) {
        let way = if self.motion == "bounce" {
            let phase = (seconds / BOUNCE_PERIOD + 0.5).rem_euclid(1.0);
            4.0 * phase * (1.0 - phase)
        } else {
            part
        };
        let radius = if self.motion == "grow" { self.radius * (0.45 + 0.55 * part) } else { self.radius };
        let between = |a: f32, b: f32| a + (b - a) * way;
        (between(self.start.0, self.end.0), between(self.start.1, self.end.1), radius)
    }
}

/// A clip to be drawn.
#[derive(Clone, Debug)]
pub struct Scene {
    pub background: &'static str,
    pub things: Vec<Thing>,
    pub width: u32,
    pub height: u32,
    pub frames: u32,
    pub silent: bool,
}

impl Scene {
    /// The picture at `index`.
    pub fn frame(&self, index: u32) -> Frame {
        let unit = self.width.min(self.height) as f32;
        let (seconds, part) = (index as f32 / FPS, index as f32 / (self.frames - 1) as f32);
        let mut rgb = Vec::new();
        for (row, column) in (0..self.height).flat_map(|row| (0..self.width).map(move |column| (row, column)))
        {
            let mut color = paint(&BACKGROUNDS, self.background);
            for thing in &self.things {
                let (x, y, radius) = thing.place(part, seconds);
                let (dx, dy) = ((column as f32 + 0.5) / unit - x, (row as f32 + 0.5) / unit - y);
                let coverage = (0.5 - distance(thing.shape, dx, dy, radius) * unit).clamp(0.0, 1.0);
                let front = paint(&COLORS, thing.color);
                color = std::array::from_fn(|c| color[c] + coverage * (front[c] - color[c]));
            }
            rgb.extend(color.map(|value| value.round() as u8));
        }
        Frame { width: self.width, height: self.height, rgb }
    }

    /// Each object's note, rising and falling with its height.
    fn sound(&self) -> Audio {
        let duration = (self.frames - 1) as f32 / FPS;
        let samples = (self.frames as f32 / FPS * SAMPLE_RATE as f32) as usize;
        let sample = |index: usize| {
            let seconds = index as f32 / SAMPLE_RATE as f32;
            let part = (seconds / duration).min(1.0);
            let tones = self.things.iter().map(|thing| {
                let risen = thing.place(0.0, 0.0).1 - thing.place(part, seconds).1;
                let hertz = (note(thing.shape).0 + 100.0 * (7.0 * risen).round()).max(200.0);
                LOUDNESS * (TAU * hertz * seconds).sin()
            });
            if self.silent { 0.0 } else { tones.sum() }
        };
        Audio { sample_rate: SAMPLE_RATE, channels: vec![(0..samples).map(sample).collect(); 2] }
    }

    /// Writes it as the program writes its clips.
    pub fn write(&self, path: &Path) {
        let options = Options {
            width: self.width,
            height: self.height,
            rate: FrameRate::from_fps(f64::from(FPS)).unwrap(),
            encoder: Encoder::BuiltIn,
            settings: "{}".into(),
        };
        let mut writer = Writer::create(path, &options).unwrap();
        (0..self.frames).for_each(|index| writer.push(&self.frame(index)).unwrap());
        writer.push_sound(&self.sound()).unwrap();
        writer.finish().unwrap();
    }
}
