//! Schedules and positions against the official code, more closely than a whole run would show.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::checkpoint::Checkpoint;
use ltx::diffusion::patchify::{audio_positions, video_positions};
use ltx::shape::LatentShape;
use ltx::verify::{Context, Golden, verify};
use mlx::Dtype;

/// The goldens whose name has `part` in it.
fn goldens(part: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/goldens");
    let entries = std::fs::read_dir(folder).expect("the fixtures are in the repository");
    let paths = entries.map(|entry| entry.expect("a folder that can be listed").path());
    let found: Vec<_> = paths.filter(|path| path.to_string_lossy().contains(part)).collect();
    assert!(!found.is_empty(), "no golden with {part}");
    found
}

#[test]
fn sigmas_agree_to_the_last_digits_of_f32() {
    let checkpoint = Checkpoint::open::<&Path>(&[]).unwrap();
    for path in goldens("any-schedule-") {
        let report = verify(&path, &checkpoint, &Context { dtype: Dtype::F32 }).unwrap();
        let worst = report.comparisons[0].worst;
        assert!(worst <= 1e-6, "{}: {worst:e}", path.display());
    }
}

#[test]
fn positions_are_those_that_the_official_code_gives_the_transformer() {
    for path in goldens("-denoise-euler_i2v") {
        let golden = Golden::open(&path).unwrap();
        let shape = LatentShape { frames: 2, height: 3, width: 4 };
        let expected = golden.array("in.video_positions").unwrap();
        let found = video_positions(shape, 25.0).unwrap();
        assert_eq!(found.shape(), expected.shape());
        assert_eq!(found.to_f32().unwrap(), expected.to_f32().unwrap());
        let expected = golden.array("in.audio_positions").unwrap();
        let found = audio_positions(9).unwrap();
        assert_eq!(found.shape(), expected.shape());
        assert_eq!(found.to_f32().unwrap(), expected.to_f32().unwrap());
    }
}
