//! The real binary makes clips longer than one window.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::{Path, PathBuf};
use std::process::Command;

use ltx::checkpoint::File;
use program::{fail, fixtures, frames, ltx, succeed};
use serde_json::Value;

/// A run with the tiny 2.3 model in one stage, 96 × 64, windows of 33 frames that overlap by 17 unless others are given.
fn one_stage(output: &Path, extra: &[&str]) -> Command {
    let mut command =
        ltx(&["generate", "--device", "cpu", "--quiet", "--recipe", "one-stage", "--steps", "2"]);
    command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
    command.arg("--gemma").arg(fixtures().join("gemma3"));
    command.args(["--stg-blocks", "1", "--height", "64", "--width", "96"]);
    for (option, frames) in [("--window", "33"), ("--overlap", "17")] {
        if !extra.contains(&option) {
            command.args([option, frames]);
        }
    }
    command.arg("--output").arg(output).args(extra);
    command
}

/// What a run made.
struct Made {
    /// Latents of each frame of pictures, and of sound.
    video: Vec<Vec<f32>>,
    audio: Vec<Vec<f32>>,
    frames: Vec<Vec<u8>>,
    seconds_of_sound: f64,
    settings: Value,
}

/// Values (1, channels, frames, rest) by frame.
fn by_frame(values: &[f32], shape: &[i32]) -> Vec<Vec<f32>> {
    let (channels, count) = (shape[1] as usize, shape[2] as usize);
    let rest = values.len() / channels / count;
    let cell = |frame: usize| {
        move |channel: usize| values[(channel * count + frame) * rest..][..rest].iter().copied()
    };
    (0..count).map(|frame| (0..channels).flat_map(cell(frame)).collect()).collect()
}

fn run(make: impl Fn(&Path) -> Command) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, latents) = (folder.path().join("frames/"), folder.path().join("latents.safetensors"));
    let mut command = make(&pictures);
    command.arg("--save-latents").arg(&latents);
    succeed(command);
    let latents = File::open(&latents).unwrap();
    let read = |name: &str| {
        let array = latents.array(name).unwrap();
        by_frame(&array.to_f32().unwrap(), array.shape())
    };
    let sound = ltx::media::read_wav(&pictures.join("audio.wav")).unwrap();
    let settings = ltx::media::read_settings(&pictures.join("frame_00001.png")).unwrap();
    Made {
        video: read("video"),
        audio: read("audio"),
        frames: frames(&pictures),
        seconds_of_sound: sound.channels[0].len() as f64 / f64::from(sound.sample_rate),
        settings: serde_json::from_str(&settings).unwrap(),
    }
}

/// So many frames of pictures, and as much sound.
fn check_length(made: &Made, frames: usize, rate: f64) {
    let seconds = frames as f64 / rate;
    assert_eq!((made.frames.len(), made.video.len()), (frames, frames / 8 + 1));
    assert_eq!(made.audio.len(), (seconds * 25.0).round() as usize);
    assert!((made.seconds_of_sound - seconds).abs() < 0.05, "{} s for {seconds}", made.seconds_of_sound);
    assert!(made.frames.iter().flatten().any(|&level| level != made.frames[0][0]));
}

/// How many frames from the first on are the same in both.
fn common<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn windows_go_on_where_the_last_one_ended() {
    // The longest windows add 16 frames: 33, 16 and 16; then the same with one more.
    let (three, four) = (
        run(|output| one_stage(output, &["a brook", "--frames", "65"])),
        run(|output| one_stage(output, &["a brook", "--frames", "81"])),
    );
    let alone = run(|output| one_stage(output, &["a brook", "--frames", "33"]));
    check_length(&alone, 33, 24.0);
    check_length(&three, 65, 24.0);
    check_length(&four, 81, 24.0);
    // What is left over makes all of them shorter.
    check_length(&run(|output| one_stage(output, &["a brook", "--frames", "73"])), 73, 24.0);
    // The first window knows nothing of the others, nor any window of those after it.
    assert_eq!((common(&alone.video, &three.video), common(&alone.audio, &three.audio)), (5, 34));
    assert_eq!((common(&three.video, &four.video), common(&three.audio, &four.audio)), (9, 68));
    // Where it is made at once it is another clip after the first window's end.
    let whole = run(|output| one_stage(output, &["a brook", "--frames", "65", "--window", "65"]));
    assert_eq!(common(&whole.video, &three.video), 0);
    assert_eq!(
        (&three.settings["window"], &three.settings["overlap"], &alone.settings["window"]),
        (&33.into(), &17.into(), &Value::Null)
    );
    // Noise of their own: no window repeats what another made.
    assert!((0..four.video.len()).all(|i| !four.video[..i].contains(&four.video[i])));
}

#[test]
fn a_clip_of_one_window_is_what_it_is_without_windows() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str, extra: &[&str]| {
        let path = folder.path().join(name);
        let mut command = ltx(&["generate", "rain", "--device", "cpu", "--quiet", "--dummy-text"]);
        command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
        command.args(["--recipe", "one-stage", "--steps", "1", "--stg-blocks", "1"]);
        command.args(["--height", "64", "--width", "64", "--output"]).arg(&path).args(extra);
        succeed(command);
        std::fs::read(&path).unwrap()
    };
    let plain = bytes("1.mp4", &["--frames", "25"]);
    assert!(plain == bytes("2.mp4", &["--frames", "25", "--window", "25", "--overlap", "9"]));
    assert!(plain == bytes("3.mp4", &["--seconds", "1.1"]), "the nearest to 26.4 frames is 25");
    let long = bytes("4.mp4", &["--frames", "57", "--window", "25"]);
    assert!(long == bytes("5.mp4", &["--frames", "57", "--window", "25"]), "the same seed, the same bytes");
    assert!(long != bytes("6.mp4", &["--frames", "57", "--window", "25", "--seed", "43"]));
}

#[test]
fn two_stages_and_latents_decoded_later() {
    let folder = tempfile::tempdir().unwrap();
    let make = |output: &Path, extra: &[&str]| {
        let mut command = ltx(&["generate", "two otters in a brook", "--device", "cpu", "--quiet"]);
        command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
        command.arg("--gemma").arg(fixtures().join("gemma3"));
        command.arg("--spatial-upsampler").arg(fixtures().join("upsamplers/2.3-spatial-x2.safetensors"));
        command.args(["--recipe", "distilled", "--height", "64", "--width", "128", "--fps", "30"]);
        command.args(["--seconds", "2.2", "--window", "33"]).arg("--output").arg(output).args(extra);
        command
    };
    let made = run(|output| make(output, &[]));
    check_length(&made, 65, 30.0);
    let whole = folder.path().join("whole.mp4");
    succeed(make(&whole, &[]));
    succeed(make(&folder.path().join("later.mp4"), &["--skip-vae"]));
    let mut decode = ltx(&["decode", "--device", "cpu", "--quiet"]);
    decode.arg(folder.path().join("later_latent.npz"));
    succeed(decode);
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(folder.path().join("later.mp4")).unwrap());
}

#[test]
fn shots_have_prompts_of_their_own_and_go_on_with_each_other() {
    let with = |shots: &[[&str; 2]]| {
        run(|output: &Path| {
            let mut command = one_stage(output, &["In a wood,"]);
            shots.iter().for_each(|shot| _ = command.arg("--shot").args(shot));
            command
        })
    };
    let fox = ["a fox runs.", "1.04"];
    let (owl, rain) = (with(&[fox, ["an owl flies.", "2"]]), with(&[fox, ["rain falls.", "2"]]));
    check_length(&owl, 73, 24.0);
    // 25 of 73 frames are the first shot's: four latent frames, 26 of sound.
    assert_eq!((common(&owl.video, &rain.video), common(&owl.audio, &rain.audio)), (4, 26));
    assert_eq!(
        owl.settings["shots"][1],
        serde_json::json!({ "prompt": "In a wood, an owl flies.", "seconds": 2.0 })
    );
    let alone = run(|output| one_stage(output, &["In a wood, a fox runs.", "--frames", "25"]));
    assert_eq!(common(&alone.video, &owl.video), 4);
}

#[test]
fn a_picture_belongs_to_the_window_that_makes_its_frame() {
    let picture = fixtures().join("images/last.png").display().to_string();
    let with =
        |image: &[&str]| run(|output| one_stage(output, &[&["a brook", "--frames", "65"], image].concat()));
    let without = with(&[]);
    // Frames 33 to 48 are the second window's, latent frames 5 and 6.
    let middle = with(&["--image", &picture, "40"]);
    assert_eq!(common(&without.video, &middle.video), 5);
    let last = with(&["--last-frame", &picture]);
    assert_eq!(common(&without.video, &last.video), 7);
    let first = with(&["--image", &picture]);
    assert_eq!(common(&without.video, &first.video), 0);
    assert_eq!(middle.settings["images"][0]["frame"], 40);
}

/// All of a clip but its latents is made, coded and written a little at a time.
#[test]
fn memory_does_not_grow_with_the_length() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |name: &str, seconds: &str| {
        let mut command = ltx(&["generate", "--placeholder", "--json", "--quiet", "--device", "cpu"]);
        command.arg("--model").arg(fixtures().join("2.3/model.safetensors"));
        command.args(["--recipe", "one-stage", "--stg-blocks", "1", "--height", "64", "--width", "64"]);
        command.args(["--seconds", seconds]);
        command.arg("--output").arg(folder.path().join(name));
        let said: Value = serde_json::from_str(&succeed(command)).unwrap();
        said["peak_memory_bytes"].as_f64().unwrap()
    };
    for output in ["clip.mp4", "sound.wav"] {
        let [short, long] = ["3", "15"].map(|seconds| peak(output, seconds));
        assert!(long < 1.1 * short, "{output}: {short} bytes, and {long} for five times the length");
    }
}

#[test]
fn what_cannot_be_made_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let noise = fixtures().join("goldens/2.3-e2e-one_stage-noise.safetensors").display().to_string();
    let embedding = fixtures().join("goldens/2.3-e2e-one_stage-embedding.safetensors").display().to_string();
    let output: PathBuf = folder.path().join("clip.mp4");
    let cases: [(&[&str], &str); 12] = [
        (&["a", "--frames", "65", "--window", "32"], "25 and 33"),
        (&["a", "--frames", "65", "--overlap", "33"], "--overlap 25"),
        (&["a", "--frames", "65", "--overlap", "18"], "17 and 25"),
        (&["a", "--frames", "65", "--noise", &noise], "--window to 65"),
        (&["a", "--frames", "9", "--seconds", "2"], "cannot be used with"),
        (&["a", "--seconds", "0"], "a number above 0"),
        (&["a", "--seconds", "1e9"], "too large"),
        (&["--shot", "a fox", "soon"], "`soon` after --shot `a fox`"),
        (&["--shot", "a fox", "-1"], "shot 1 is -1 seconds"),
        (&["--shot", " ", "2"], "prompt of shot 1 is empty"),
        (&["--shot", "a fox", "2", "--shot", "an owl", "0.1"], "shot 2 is shorter than 8 frames"),
        (&["--shot", "a fox", "2", "--embedding", &embedding], "cannot be used with"),
    ];
    for (extra, words) in cases {
        let (code, said) = fail(one_stage(&output, extra));
        assert_eq!((code, said.contains(words)), (2, true), "{extra:?} should say `{words}`:\n{said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
