//! Damaged and hostile files: a sentence with the file's name, never a panic.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::Error;
use ltx::checkpoint::{Checkpoint, Component, File};
use mlx::Dtype;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/2.3/model.safetensors")
}

fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let error = File::open(&path).expect_err("the file should be refused");
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    assert!(error.remedy().is_some());
    let sentence = error.to_string();
    assert!(sentence.contains("bad.safetensors"), "{sentence}");
    sentence
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn not_safetensors() {
    refused(b"");
    refused(b"short");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    refused(b"<!DOCTYPE html><html><body>Access denied</body></html>");
    refused(&[0xff; 64]);
}

#[test]
fn truncated_anywhere() {
    let whole = std::fs::read(model()).unwrap();
    for length in [1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..length]);
    }
}

#[test]
fn lying_headers() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    refused(&with_header(&tensor("F32", "[2]", "[0,4]"), &[0; 4]));
    refused(&with_header(&tensor("F32", "[1]", "[4,8]"), &[0; 8]));
    refused(&with_header(&tensor("F32", "[1]", "[8,4]"), &[0; 8]));
    refused(&with_header(&tensor("F32", "[18446744073709551615,2]", "[0,4]"), &[0; 4]));
    refused(&with_header(&tensor("NOPE", "[1]", "[0,4]"), &[0; 4]));
    refused(&with_header(&tensor("F32", "[-1]", "[0,4]"), &[0; 4]));
    refused(&with_header("{", &[]));
    refused(&with_header("[]", &[]));
    refused(&[&u64::MAX.to_le_bytes()[..], &[0; 32]].concat());
}

#[test]
fn every_header_byte_may_be_wrong() {
    let whole = std::fs::read(model()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.safetensors");
    for position in (0..4000).step_by(61) {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x5a;
        std::fs::write(&path, &bytes).unwrap();
        // Some flips still make a valid header: what matters is that nothing panics on the way.
        let Ok(checkpoint) = Checkpoint::open(&[&path]) else { continue };
        for component in checkpoint.components() {
            if let Ok((weights, _)) = checkpoint.component(component, Dtype::F32) {
                let _ = weights.finish(component.unread());
            }
        }
    }
}

#[test]
fn unsupported_dtypes_and_empty_tensors_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, shape, bytes, expected) in [("F8_E4M3", "[4]", 4, "F8_E4M3"), ("F32", "[0]", 0, "shape [0]")]
    {
        let path = folder.path().join("odd.safetensors");
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        std::fs::write(&path, with_header(&header, &vec![0; bytes])).unwrap();
        let sentence = File::open(&path).unwrap().array("a").unwrap_err().to_string();
        assert!(sentence.contains(expected) && sentence.contains("odd.safetensors: a"), "{sentence}");
    }
}

#[test]
fn missing_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Checkpoint::open(&[folder.path().join("nothing.safetensors")]).unwrap_err();
    assert!(missing.to_string().contains("nothing.safetensors"), "{missing}");
    let empty = Checkpoint::open(&[folder.path()]).unwrap_err();
    assert!(empty.to_string().contains(".safetensors"), "{empty}");
    std::fs::create_dir(folder.path().join("x.safetensors")).unwrap();
    assert!(File::open(&folder.path().join("x.safetensors")).unwrap_err().to_string().contains("not a file"));
}

#[test]
fn components_are_found_by_content() {
    let checkpoint = Checkpoint::open(&[model()]).unwrap();
    let expected: Vec<Component> =
        Component::ALL.into_iter().filter(|&component| component != Component::Upsampler).collect();
    assert_eq!(checkpoint.components(), expected);
    assert_eq!(checkpoint.version(), Some("2.3.0"));
    let error = checkpoint.component(Component::Upsampler, Dtype::F32).unwrap_err();
    assert!(error.to_string().contains("no latent upsampler"), "{error}");
}

#[test]
fn unread_tensors_are_an_error_where_they_would_hide_a_wrong_file() {
    let checkpoint = Checkpoint::open(&[model()]).unwrap();
    let (weights, _) = checkpoint.component(Component::Dit, Dtype::F32).unwrap();
    let error = weights.finish(Component::Dit.unread()).unwrap_err().to_string();
    assert!(error.contains("model.diffusion_model."), "{error}");
    let shape = weights.shape("patchify_proj.weight").unwrap();
    let wrong = weights.tensor("patchify_proj.weight", &[shape[0], shape[1] + 1]).unwrap_err().to_string();
    assert!(
        wrong.contains("model.diffusion_model.patchify_proj.weight") && wrong.contains("shape"),
        "{wrong}"
    );
    let missing = weights.tensor("patchify_proj.nothing", &[1]).unwrap_err().to_string();
    assert!(missing.contains("patchify_proj.nothing: is missing"), "{missing}");
}
