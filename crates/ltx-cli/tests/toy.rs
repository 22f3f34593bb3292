//! The built-in toy model: the first command that anybody types, judged by what the clip shows and sounds like; and the
//! judge itself, on scenes drawn by rule.
//!
//! Whether the program has the model is known when it is built: `cfg(toy)`, set by `build.rs`. Without it, what is tested
//! is what `ltx generate` says then.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(toy)]
#[path = "toy/with.rs"]
mod with_the_toy_built_in;
#[cfg(not(toy))]
#[path = "toy/without.rs"]
mod without_a_built_in_toy;

mod program;
mod scene;
mod score;

use scene::{Scene, Thing};
use score::{Seen, Verdict, judge};

/// A big object in the middle of a wide frame, which covers half of the shorter side in the direction of its motion.
fn thing(shape: &'static str, color: &'static str, motion: &'static str) -> Thing {
    let way = |low: &str, high: &str| match (motion.contains(low), motion.contains(high)) {
        (true, _) => -0.25,
        (_, true) => 0.25,
        _ => 0.0,
    };
    let (x, y) = (way("left", "right"), way("up", "down"));
    let (start, end) = match motion {
        "bounce" => ((0.75, 0.75), (0.75, 0.3)), // the floor, the top
        _ => ((0.75 - x, 0.5 - y), (0.75 + x, 0.5 + y)),
    };
    Thing { shape, color, motion, radius: 0.17, start, end }
}

fn scene(background: &'static str, things: &[Thing]) -> Scene {
    Scene { background, things: things.to_vec(), width: 144, height: 96, frames: 25, silent: false }
}

fn seen(scene: &Scene) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    scene.write(&path);
    judge(&score::clip::read(&path))
}

#[test]
fn the_judge_tells_every_shape_colour_background_motion_and_note() {
    let motions = [
        "left",
        "right",
        "up",
        "down",
        "up-left",
        "up-right",
        "down-left",
        "down-right",
        "bounce",
        "grow",
        "still",
    ];
    for (index, motion) in motions.into_iter().enumerate() {
        let (background, color) = (scene::BACKGROUNDS[index % 4].0, scene::COLORS[(index + 2) % 6].0);
        let shape = scene::SHAPES[(index + index / 4) % 4];
        let pitch = scene::note(shape).1;
        let wanted =
            Verdict { background, things: vec![Seen { color, shape, motion: motion.into() }], pitch };
        assert_eq!(seen(&scene(background, &[thing(shape, color, motion)])), wanted);
    }
}

#[test]
fn the_judge_sees_two_objects_in_a_tall_frame() {
    let place = |y: f32, by: f32, thing: Thing| Thing {
        radius: 0.13,
        start: (0.5 - by, y),
        end: (0.5 + by, y),
        ..thing
    };
    let upper = place(0.3, 0.3, thing("star", "yellow", "right"));
    let lower = place(1.1, 0.0, thing("circle", "purple", "still"));
    let tall = Scene { width: 96, height: 144, ..scene("grey", &[upper, lower]) };
    let found = seen(&tall);
    let things: Vec<_> = found.things.iter().map(|t| (t.color, t.shape, t.motion.as_str())).collect();
    assert_eq!(things, [("purple", "circle", "still"), ("yellow", "star", "right")]);
}

#[test]
fn the_judge_is_not_easily_pleased() {
    let moves = thing("circle", "red", "right");
    let of = |scene: Scene| seen(&scene);
    assert_eq!(of(scene("black", &[])).things, []);
    let speck = Thing { radius: 0.02, ..moves };
    assert_eq!(of(scene("black", &[speck])).things, [], "a speck is no object");
    let short = Thing { end: (moves.start.0 + 0.05, moves.start.1), ..moves };
    assert_eq!(of(scene("white", &[short])).things[0].motion, "still", "a twitch is no motion");
    assert_eq!(of(Scene { silent: true, ..scene("white", &[moves]) }).pitch, "silent");
    let leaves = Thing { start: (0.9, 0.5), end: (4.5, 0.5), ..moves };
    assert_eq!(of(scene("white", &[leaves])).things, [], "what is gone after a moment is not shown");
}

#[test]
fn the_judge_finds_nothing_in_noise() {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let frame = || ltx::media::Frame {
        width: 96,
        height: 64,
        rgb: std::iter::repeat_with(&mut random).take(96 * 64 * 3).collect(),
    };
    let frames = std::iter::repeat_with(frame).take(9).collect();
    let clip = score::clip::Clip { frames, samples: Vec::new(), sample_rate: 48_000 };
    let verdict = judge(&clip);
    assert_eq!((verdict.things, verdict.pitch), (vec![], "silent"));
}
