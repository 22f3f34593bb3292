//! Whole runs of the real program with the model that is part of it.

use std::path::Path;
use std::process::Command;

use ltx::media::Frame;

use crate::program::{fail, fixtures, ltx, succeed};
use crate::score::{Seen, Verdict, clip, judge};
use crate::{Scene, scene, thing};

/// `ltx generate PROMPT`, which writes `folder/clip.mp4`; the model is unpacked where all these tests find it.
fn generate(prompt: &str, folder: &Path) -> Command {
    let mut command = ltx(&["generate", prompt, "--device", "cpu"]);
    command.env("LTX_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("toy"));
    command.arg("--output").arg(folder.join("clip.mp4"));
    command
}

/// What was said, and the clip.
fn run(mut command: Command, folder: &Path) -> (String, clip::Clip) {
    let made = command.output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{said}");
    (said, clip::read(&folder.join("clip.mp4")))
}

fn want(
    background: &'static str,
    things: &[(&'static str, &'static str, &str)],
    pitch: &'static str,
) -> Verdict {
    let seen = |(color, shape, motion): &(&'static str, &'static str, &str)| Seen {
        color,
        shape,
        motion: (*motion).into(),
    };
    Verdict { background, things: things.iter().map(seen).collect(), pitch }
}

#[test]
fn clips_show_and_sound_like_their_prompts() {
    let cases = [
        ("a red circle moves right on a blue background", want("blue", &[("red", "circle", "right")], "D")),
        ("A yellow star drifts to the left over black.", want("black", &[("yellow", "star", "left")], "F")),
        ("white background, a green square falling", want("white", &[("green", "square", "down")], "G")),
        (
            "a purple ball bounces in front of a grey backdrop",
            want("grey", &[("purple", "circle", "bounce")], "D"),
        ),
        (
            "on a black background, an orange triangle rises",
            want("black", &[("orange", "triangle", "up")], "B"),
        ),
        (
            "A big blue box grows on a white background, silently",
            want("white", &[("blue", "square", "grow")], "silent"),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (mut right, mut wrong) = ([0; 5], Vec::new());
    for (prompt, wanted) in &cases {
        let (said, clip) = run(generate(prompt, folder.path()), folder.path());
        assert!(said.contains("toy") && said.contains("ltx download 2.3-distilled"), "{said}");
        assert!(!said.contains("never seen"), "every word of `{prompt}` is known:\n{said}");
        assert_eq!((clip.frames.len(), clip.frames[0].width, clip.frames[0].height), (25, 256, 192));
        let found = judge(&clip);
        let agree =
            |what: fn(&Seen) -> &str| found.things.iter().map(what).eq(wanted.things.iter().map(what));
        let parts = [
            found.background == wanted.background,
            found.pitch == wanted.pitch,
            agree(|thing| thing.color),
            agree(|thing| &thing.motion),
            agree(|thing| thing.shape),
        ];
        right.iter_mut().zip(parts).for_each(|(count, part)| *count += usize::from(part));
        if parts.contains(&false) {
            wrong.push(format!("{prompt}: {found:?}"));
        }
    }
    println!("background, pitch, colour, motion, shape: {right:?} of 6; {wrong:#?}");
    // What the model is held to is in docs/toy-model.md; shapes it has not learned as well as the rest.
    let enough = right.iter().zip([6, 5, 5, 5, 2]).all(|(count, least)| *count >= least);
    assert!(enough, "background, pitch, colour, motion, shape: {right:?} of 6 are right: {wrong:#?}");
}

#[test]
fn words_it_has_never_seen_make_a_clip_and_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = generate("a lighthouse in a storm, and a red circle", folder.path());
    command.args(["--model", "toy", "--frames", "9"]);
    let (said, clip) = run(command, folder.path());
    let note = said.lines().find(|line| line.contains("never seen")).unwrap_or_else(|| panic!("{said}"));
    assert!(note.contains("shapes, colours and motions"), "{note}");
    assert!(note.contains("`lighthouse`") && note.contains("`storm`") && !note.contains("circle"), "{note}");
    assert_eq!(clip.frames.len(), 9);
}

#[test]
fn a_picture_is_the_first_frame() {
    let folder = tempfile::tempdir().unwrap();
    let shown =
        Scene { width: 256, height: 192, ..scene("white", &[thing("circle", "red", "right")]) }.frame(0);
    let picture = folder.path().join("first.png");
    let file = std::io::BufWriter::new(std::fs::File::create(&picture).unwrap());
    let mut encoder = png::Encoder::new(file, shown.width, shown.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&shown.rgb).unwrap();
    let mut command = generate("a red circle moves right on a white background", folder.path());
    command.arg("--image").arg(&picture);
    let (_, clip) = run(command, folder.path());
    let psnr = psnr(&shown, &clip.frames[0]);
    assert!(psnr >= 28.0, "the first frame is the picture to {psnr:.1} dB");
}

fn psnr(a: &Frame, b: &Frame) -> f64 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let pairs = a.rgb.iter().zip(&b.rgb);
    let error: f64 = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (255.0f64.powi(2) * a.rgb.len() as f64 / error).log10()
}

#[test]
fn it_is_guided_in_one_stage_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = generate("a red circle moves right on a blue background", folder.path());
    command.args([
        "--recipe",
        "one-stage",
        "--steps",
        "2",
        "--frames",
        "9",
        "--width",
        "96",
        "--height",
        "64",
    ]);
    run(command, folder.path());
    let settings = ltx::media::read_settings(&folder.path().join("clip.mp4")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["guidance"]["video"]["cfg"], 3.0);
    assert_eq!(settings["guidance"]["audio"]["stg_scale"], 0.0);
}

#[test]
fn files_of_other_models_need_their_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = generate("a red circle", folder.path());
    command.arg("--gemma").arg(fixtures().join("gemma3"));
    let (code, said) = fail(command);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--model") && said.contains("toy"), "{said}");
}

#[test]
fn its_parts_can_be_inspected_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = ltx(&["inspect", "toy", "--json"]);
    command.env("LTX_CACHE_DIR", folder.path());
    let found: serde_json::Value = serde_json::from_str(&succeed(command)).unwrap();
    let names: Vec<_> =
        found["components"].as_array().unwrap().iter().map(|part| &part["component"]).collect();
    assert!(names.len() >= 8, "{names:?}");
}
