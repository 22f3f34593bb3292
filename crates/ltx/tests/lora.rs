//! LoRAs of every program's spelling against the official fusion and PEFT's; files that do not fit or are damaged.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ltx::checkpoint::lora::{Lora, merge};
use ltx::checkpoint::{Checkpoint, Component, File, Unread};
use mlx::Dtype;
use safetensors::tensor::{Dtype as Stored, TensorView};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn model() -> Checkpoint {
    Checkpoint::open(&[fixtures().join("2.3/model.safetensors")]).unwrap()
}

fn open(name: &str) -> Lora {
    Lora::open(&fixtures().join("lora").join(name)).unwrap()
}

/// The model's weight of an official name without `model.diffusion_model.`, in bf16.
fn weight(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (component, path) = match name.strip_prefix("text_embedding_projection.") {
        Some(path) => (Component::Projection, path),
        None if name.contains("_connector.") => (Component::Connector, name),
        None => (Component::Dit, name),
    };
    let (weights, _) = checkpoint.component(component, Dtype::F32).unwrap();
    let shape = weights.shape(path).unwrap();
    weights.tensor(path, &shape).unwrap().to_f32().unwrap()
}

/// Compares every weight of a golden: how many differ, and none by more than two of the last place of bf16.
fn compare(style: &str, loras: &[(&Lora, f32)]) -> usize {
    let plain = model();
    let (fused, _) = plain.fused(loras).unwrap();
    let golden = File::open(&fixtures().join(format!("lora/fused/{style}.safetensors"))).unwrap();
    let mut differ = 0;
    for (name, _) in golden.tensors() {
        let expected = golden.array(&name).unwrap().astype(Dtype::F32).unwrap().to_f32().unwrap();
        let name = name.strip_prefix("out.").unwrap();
        let (ours, before) = (weight(&fused, name), weight(&plain, name));
        assert_eq!(ours.len(), expected.len(), "{style} {name}");
        for (at, ((ours, expected), before)) in ours.iter().zip(&expected).zip(&before).enumerate() {
            // Where weight and update nearly cancel, the last place of what was added up counts.
            let place = expected.abs().max(before.abs()).max(0.12) / 64.0;
            assert!((ours - expected).abs() <= place, "{style} {name}[{at}]: {ours}, not {expected}");
            differ += usize::from(ours != expected);
        }
        assert_ne!(ours, before, "{style} changes {name}");
    }
    differ
}

#[test]
fn official_files_fuse_to_the_last_bit() {
    assert_eq!(compare("official", &[(&open("official.safetensors"), 0.75)]), 0);
}

#[test]
fn every_programs_files_fuse() {
    for (style, file) in
        [("comfy", "comfy.safetensors"), ("flat", "flat.safetensors"), ("diffusers", "diffusers.safetensors")]
    {
        assert_eq!(compare(style, &[(&open(file), 0.75)]), 0, "{style}");
    }
    // PEFT adds in f32.
    compare("peft", &[(&open("peft"), 1.0)]);
}

#[test]
fn several_files_add_up() {
    // The official code that made this golden, 1.0.0, rounds each product before it adds them; v1.2.0 rounds the sum.
    compare("two", &[(&open("official.safetensors"), 0.75), (&open("other.safetensors"), -0.5)]);
    // One after another is the same as both at once.
    let (once, _) = model().fused(&[(&open("official.safetensors"), 0.75)]).unwrap();
    let (twice, _) = once.fused(&[(&open("other.safetensors"), -0.5)]).unwrap();
    let (both, _) =
        model().fused(&[(&open("official.safetensors"), 0.75), (&open("other.safetensors"), -0.5)]).unwrap();
    assert_eq!(weight(&twice, "patchify_proj.weight"), weight(&both, "patchify_proj.weight"));
}

#[test]
fn what_is_not_named_stays_and_everything_is_read_once() {
    let lora = open("official.safetensors");
    let (fused, matches) = model().fused(&[(&lora, 0.75)]).unwrap();
    assert_eq!((matches[0].count(), matches[0].unmatched.len()), (6, 0));
    for name in ["transformer_blocks.0.attn1.to_k.weight", "transformer_blocks.0.attn1.to_q.bias"] {
        assert_eq!(weight(&fused, name), weight(&model(), name));
    }
    let (off, _) = model().fused(&[(&lora, 0.0)]).unwrap();
    assert_eq!(weight(&off, "patchify_proj.weight"), weight(&model(), "patchify_proj.weight"));
    let (weights, config) = fused.component(Component::Dit, Dtype::F32).unwrap();
    ltx::dit::Dit::load(&weights, &config).unwrap();
    weights.finish(Unread::Refuse).unwrap();
}

#[test]
fn what_matches_is_told_by_component() {
    let matches = open("comfy.safetensors").matches(&model()).unwrap();
    assert_eq!(matches.matched, BTreeMap::from([("connector", 1), ("dit", 6), ("projection", 1)]));
    assert!(matches.misfits.is_empty());
}

#[test]
fn a_lora_of_another_generation_is_refused_with_a_sentence() {
    let other = Checkpoint::open(&[fixtures().join("2.0/model.safetensors")]).unwrap();
    let sentence = other.fused(&[(&open("comfy.safetensors"), 1.0)]).unwrap_err().to_string();
    assert!(sentence.contains("made for another generation or size"), "{sentence}");
    let misfits = open("comfy.safetensors").matches(&other).unwrap();
    assert!(!misfits.misfits.is_empty() && !misfits.unmatched.is_empty());
}

/// A LoRA file of f32 tensors, all values 0.5.
fn file(folder: &Path, tensors: &[(&str, &[usize])]) -> PathBuf {
    let values: Vec<_> = tensors.iter().map(|(_, shape)| vec![0.5f32; shape.iter().product()]).collect();
    let views = tensors.iter().zip(&values).map(|((name, shape), values)| {
        (*name, TensorView::new(Stored::F32, shape.to_vec(), bytemuck::cast_slice(values)).unwrap())
    });
    let path = folder.join("bad.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

#[test]
fn damaged_and_foreign_files_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |tensors: &[(&str, &[usize])]| {
        let error = Lora::open(&file(folder.path(), tensors)).unwrap_err();
        assert!(error.remedy().is_some());
        let sentence = error.to_string();
        assert!(sentence.contains("bad.safetensors"), "{sentence}");
        sentence
    };
    let (a, b) =
        ("diffusion_model.patchify_proj.lora_A.weight", "diffusion_model.patchify_proj.lora_B.weight");
    for (tensors, expected) in [
        (&[(a, &[3, 16][..]), (b, &[40, 2][..])][..], "rank 3 and an up factor of rank 2"),
        (&[(a, &[3, 16])], "lacks one of its two factors"),
        (&[(a, &[3, 16, 1, 1]), (b, &[40, 3])], "two axes"),
        (
            &[(a, &[3, 16]), (b, &[40, 3]), ("diffusion_model.patchify_proj.alpha", &[2])],
            "alpha is one number",
        ),
        (&[(a, &[3, 16]), (b, &[40, 3]), ("diffusion_model.patchify_proj.dora_scale", &[40])], "DoRA"),
        (&[("diffusion_model.patchify_proj.lokr_w1", &[3, 16])], "LoKr"),
        (
            &[
                (a, &[3, 16]),
                (b, &[40, 3]),
                ("diffusion_model.patchify_proj.lora_A.default.weight", &[3, 16]),
            ],
            "says again",
        ),
        (&[("model.diffusion_model.patchify_proj.weight", &[40, 16])], "is not a LoRA"),
    ] {
        let sentence = refused(tensors);
        assert!(sentence.contains(expected), "{sentence}");
    }
    let nothing = file(
        folder.path(),
        &[("diffusion_model.head.lora_A.weight", &[3, 16]), ("diffusion_model.head.lora_B.weight", &[40, 3])],
    );
    let sentence = model().fused(&[(&Lora::open(&nothing).unwrap(), 1.0)]).unwrap_err().to_string();
    assert!(sentence.contains("changes nothing"), "{sentence}");
    let twice = [
        (a, &[3, 16][..]),
        (b, &[40, 3][..]),
        ("transformer.proj_in.lora_A.weight", &[3, 16]),
        ("transformer.proj_in.lora_B.weight", &[40, 3]),
    ];
    let sentence =
        Lora::open(&file(folder.path(), &twice)).unwrap().matches(&model()).unwrap_err().to_string();
    assert!(sentence.contains("both change"), "{sentence}");
    std::fs::write(folder.path().join("adapter_model.safetensors"), [0; 4]).unwrap();
    assert!(Lora::open(folder.path()).is_err());
    let whole = std::fs::read(fixtures().join("lora/official.safetensors")).unwrap();
    let cut = folder.path().join("cut.safetensors");
    std::fs::write(&cut, &whole[..whole.len() - 9]).unwrap();
    assert!(Lora::open(&cut).unwrap_err().to_string().contains("cut off"));
}

#[test]
fn a_folder_with_one_file_is_that_file() {
    let folder = tempfile::tempdir().unwrap();
    let said = |path: &Path| Lora::open(path).unwrap_err().to_string();
    assert!(said(folder.path()).contains("without a LoRA"));
    let copy = |name: &str| {
        std::fs::copy(fixtures().join("lora/official.safetensors"), folder.path().join(name)).unwrap()
    };
    copy("any.safetensors");
    assert_eq!(Lora::open(folder.path()).unwrap().modules().len(), 6);
    copy("other.safetensors");
    assert!(said(folder.path()).contains("2 files"));
}

#[test]
fn a_merged_file_holds_what_fusing_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (source, output) =
        (fixtures().join("2.3/model.safetensors"), folder.path().join("merged.safetensors"));
    let lora = open("comfy.safetensors");
    let silent = &mut |_| ControlFlow::Continue(());
    merge(&source, &[(lora.clone(), 0.75)], &output, silent).unwrap();
    let (fused, _) = model().fused(&[(&lora, 0.75)]).unwrap();
    let merged = Checkpoint::open(&[&output]).unwrap();
    for (name, _) in File::open(&fixtures().join("lora/fused/comfy.safetensors")).unwrap().tensors() {
        let name = name.strip_prefix("out.").unwrap();
        assert_eq!(weight(&merged, name), weight(&fused, name), "{name}");
    }
    let (before, after) = (std::fs::read(&source).unwrap(), std::fs::read(&output).unwrap());
    let header = 8 + u64::from_le_bytes(before[..8].try_into().unwrap()) as usize;
    assert_eq!((before.len(), &before[..header]), (after.len(), &after[..header]));
    let changed: usize = lora.modules().iter().map(|module| 2 * module.shape[0] * module.shape[1]).sum();
    let differ = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!((changed / 4..=changed).contains(&differ), "{differ} of {changed}");
}

#[test]
fn a_merge_that_fails_or_is_stopped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, output) =
        (fixtures().join("2.3/model.safetensors"), folder.path().join("merged.safetensors"));
    let loras = [(open("official.safetensors"), 1.0)];
    let mut steps = 0;
    let stopped = merge(&source, &loras, &output, &mut |_| {
        steps += 1;
        if steps == 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(ltx::Error::Cancelled)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let silent = &mut |_| ControlFlow::Continue(());
    assert!(merge(&source, &loras, &folder.path().join("no/where"), silent).is_err());
    std::fs::copy(&source, &output).unwrap();
    let itself = merge(&output, &loras, &output, silent).unwrap_err().to_string();
    assert!(itself.contains("is the model itself"), "{itself}");
}
