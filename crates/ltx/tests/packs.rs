//! Weights of few bits: files that PyTorch and MLX made, packing on the way, and files that are packed here.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ltx::checkpoint::lora::Lora;
use ltx::checkpoint::{Checkpoint, Component, File, Residency, Unread, Weights, packs};
use ltx::dit::Dit;
use ltx::nn::{Packed, Packing, Weight};
use ltx::text::{Gemma, GemmaFolder};
use mlx::Dtype;
use tiny::{bits, fixtures, floats, lora_for_packs, open, relative, velocities};

const PACKINGS: [(&str, Packing); 6] = [
    ("affine_4_32", Packing::Affine { bits: 4, group: 32 }),
    ("affine_4_64", Packing::Affine { bits: 4, group: 64 }),
    ("affine_8_64", Packing::Affine { bits: 8, group: 64 }),
    ("affine_8_128", Packing::Affine { bits: 8, group: 128 }),
    ("mxfp8", Packing::Mxfp8),
    ("nvfp4", Packing::Nvfp4),
];

/// Held by every test: some turn the kernels off, which counts for all.
static KERNELS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    KERNELS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model(name: &str) -> PathBuf {
    fixtures().join("packs").join(name)
}

/// All tensors of a file, at its root.
fn weights(path: &Path) -> Weights {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let file = Arc::new(File::open(path).unwrap());
    let keys: Vec<String> = file.tensors().map(|(key, _)| key).collect();
    Weights::new(vec![file], "", Dtype::Bf16, keys)
}

fn silent(_: ltx::progress::Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn codes_of_8_bits_are_what_pytorch_makes_of_them() {
    let _alone = alone();
    let codes = weights(&model("codes.safetensors"));
    for kind in ["e4m3", "e5m2"] {
        for style in ["official", "comfy", "plain"] {
            let place = codes.at(kind).at(style);
            let expected = floats(&place.tensor_as_stored("expected", &[2, 128]).unwrap());
            let weight = place.linear(2, 128).unwrap();
            assert!(matches!(weight, Weight::Fp8(_)));
            for kernels in [true, false] {
                ltx::nn::cpu::set_enabled(kernels);
                let ours = floats(&weight.dense(Dtype::Bf16).unwrap());
                ltx::nn::cpu::set_enabled(true);
                for (code, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                    let same = ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan();
                    assert!(same, "{kind} {style} {code:#x}: {ours}, not {expected}");
                }
            }
        }
    }
    // The scales count as read, and so does what else is known of such files.
    let left = codes.finish(Unread::Report).unwrap();
    assert_eq!(left, ["scaled_fp8"]);
}

#[test]
fn packing_gives_the_bits_that_mlx_gives() {
    let _alone = alone();
    let matrices = weights(&model("quantize.safetensors"));
    for (dtype, name) in [(Dtype::F32, "float32"), (Dtype::Bf16, "bfloat16")] {
        let matrix = matrices.tensor_as_stored(&format!("{name}.weight"), &[9, 384]).unwrap();
        assert_eq!(matrix.dtype(), dtype);
        for (packed_name, packing) in PACKINGS {
            let Weight::Packed(expected) = matrices.at(name).at(packed_name).linear(9, 384).unwrap() else {
                panic!("{packed_name} is not packed")
            };
            assert_eq!(expected.packing, packing);
            let ours = Packed::quantize(&matrix, packing).unwrap();
            let words = |packed: &Packed| packed.values.to_vec::<u32>().unwrap();
            let what = format!("{name} {packed_name}");
            assert_eq!(ours.scales.dtype(), expected.scales.dtype(), "{what}");
            assert_eq!(bits(&ours.scales), bits(&expected.scales), "{what}: scales");
            assert_eq!(ours.biases.as_ref().map(bits), expected.biases.as_ref().map(bits), "{what}: biases");
            assert_eq!(words(&ours), words(&expected), "{what}: values");
            // Back again, by the kernels and by MLX.
            let back = floats(&ours.dequantize(Dtype::F32).unwrap());
            ltx::nn::cpu::set_enabled(false);
            let mlx = floats(&ours.dequantize(Dtype::F32).unwrap());
            ltx::nn::cpu::set_enabled(true);
            // MLX rounds to the scales' type on the way.
            let limit = if expected.scales.dtype() == Dtype::Bf16 { 0.01 } else { 1e-6 };
            assert!(relative(&back, &mlx) < limit, "{what}: {}", relative(&back, &mlx));
        }
    }
}

#[test]
fn files_of_other_programs_compute_what_the_whole_model_does() {
    let _alone = alone();
    let whole = velocities(&open(&model("bf16.safetensors")), Dtype::F32, Residency::Resident);
    for (name, limit) in [("fp8.safetensors", 0.05), ("mlx.safetensors", 0.3)] {
        let packed = open(&model(name));
        let ours = velocities(&packed, Dtype::F32, Residency::Resident);
        for (ours, whole) in ours.iter().zip(&whole) {
            let loss = relative(ours, whole);
            assert!(loss > 1e-4 && loss < limit, "{name}: {loss}");
        }
        assert!(ours == velocities(&packed, Dtype::F32, Residency::STREAMING), "{name}");
        // MLX's own operations in the place of the kernels.
        ltx::nn::cpu::set_enabled(false);
        let plain = velocities(&packed, Dtype::F32, Residency::Resident);
        ltx::nn::cpu::set_enabled(true);
        for (ours, plain) in ours.iter().zip(&plain) {
            assert!(relative(ours, plain) < 1e-4, "{name}: {}", relative(ours, plain));
        }
    }
}

#[test]
fn packed_on_the_way_or_before_is_the_same() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let input = model("bf16.safetensors");
    let whole = velocities(&open(&input), Dtype::Bf16, Residency::Resident);
    for (name, packing) in PACKINGS {
        let output = folder.path().join(format!("{name}.safetensors"));
        let report = packs::quantize(&input, &output, packing, &mut silent).unwrap();
        assert!(report.packed > 0 && report.after < report.before, "{name}: {report:?}");
        let loaded = open(&input).packed_as(Some(packing));
        let (weights, _) = loaded.component(Component::Dit, Dtype::Bf16).unwrap();
        assert_eq!(weights.saving().matrices, report.packed, "{name}");
        let on_the_way = velocities(&loaded, Dtype::Bf16, Residency::Resident);
        let before = velocities(&open(&output), Dtype::Bf16, Residency::Resident);
        assert!(on_the_way == before, "{name}");
        assert!(
            before == velocities(&loaded, Dtype::Bf16, Residency::Streaming { ahead: 0, kept: 0 }),
            "{name}"
        );
        assert!(relative(&before[0], &whole[0]) > 1e-3, "{name}: nothing was lost");
        // Packed files stay as they are, and cannot be packed again.
        assert!(
            before
                == velocities(
                    &open(&output).packed_as(Some(Packing::Mxfp8)),
                    Dtype::Bf16,
                    Residency::Resident
                )
        );
        let again = packs::quantize(&output, &folder.path().join("again.safetensors"), packing, &mut silent);
        assert!(again.unwrap_err().to_string().contains("packed already"));
    }
}

#[test]
fn a_packed_file_keeps_everything_else() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (model("bf16.safetensors"), folder.path().join("out.safetensors"));
    let packing = Packing::Affine { bits: 8, group: 32 };
    packs::quantize(&input, &output, packing, &mut silent).unwrap();
    let (before, after) = (File::open(&input).unwrap(), File::open(&output).unwrap());
    let mut config = after.config().unwrap();
    let said = config.as_object_mut().unwrap().remove("quantization").unwrap();
    assert_eq!(said, serde_json::json!({ "bits": 8, "group_size": 32, "mode": "affine" }));
    assert_eq!(config, before.config().unwrap());
    assert_eq!(after.metadata("model_version"), before.metadata("model_version"));
    for (key, info) in before.tensors() {
        let other = after.info(&key).unwrap();
        if packs::fits(&key, info, packing, 1) {
            assert_eq!(format!("{:?}", other.dtype), "U32", "{key}");
            assert!(after.info(&key.replace(".weight", ".scales")).is_some(), "{key}");
        } else {
            assert_eq!((other.dtype, &other.shape), (info.dtype, &info.shape), "{key}");
            assert_eq!(bits(&after.array(&key).unwrap()), bits(&before.array(&key).unwrap()), "{key}");
        }
    }
    // The file itself, by whatever name, is no place to write to; nor is anything left where something went wrong.
    for same in [&input, &model("../packs/bf16.safetensors")] {
        assert!(
            packs::quantize(&input, same, packing, &mut silent)
                .unwrap_err()
                .to_string()
                .contains("is the model")
        );
    }
    let none = packs::quantize(
        &fixtures().join("upsamplers/2.3-spatial-x2.safetensors"),
        &output,
        packing,
        &mut silent,
    );
    assert!(none.unwrap_err().to_string().contains("no matrix"));
    let stopped = folder.path().join("stopped.safetensors");
    assert!(packs::quantize(&input, &stopped, packing, &mut |_| ControlFlow::Break(())).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn fp8_files_are_packed_from_what_they_stand_for() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (model("fp8.safetensors"), folder.path().join("out.safetensors"));
    let packing = Packing::Affine { bits: 8, group: 32 };
    packs::quantize(&input, &output, packing, &mut silent).unwrap();
    let ours = velocities(&open(&output), Dtype::F32, Residency::Resident);
    let fp8 = velocities(&open(&input), Dtype::F32, Residency::Resident);
    assert!(relative(&ours[0], &fp8[0]) < 0.02, "{}", relative(&ours[0], &fp8[0]));
    let on_the_way = open(&input).packed_as(Some(packing));
    assert!(ours == velocities(&on_the_way, Dtype::F32, Residency::Resident));
}

/// Hidden states of a few tokens.
fn states(path: &Path, packing: Option<Packing>) -> Vec<Vec<f32>> {
    let folder = GemmaFolder::open(path).unwrap().packed_as(packing);
    let weights = folder.weights(Dtype::F32);
    let gemma = Gemma::load(&weights, &folder).unwrap();
    weights.finish(Unread::Refuse).unwrap();
    gemma.hidden_states(&[vec![2, 7, 11, 95, 0]]).unwrap()[0].iter().map(floats).collect()
}

#[test]
fn text_encoders_of_other_programs() {
    let _alone = alone();
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let whole = states(&model("gemma3/bf16"), None);
    let packed = states(&model("gemma3/mlx"), None);
    assert_eq!((packed.len(), packed[0].len()), (3, 5 * 64));
    for (layer, (packed, whole)) in packed.iter().zip(&whole).enumerate() {
        let loss = relative(packed, whole);
        assert!(loss > 1e-3 && loss < 0.25, "layer {layer}: {loss}");
    }
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("gemma");
    let packing = Packing::Affine { bits: 8, group: 64 };
    packs::quantize(&model("gemma3/bf16"), &folder, packing, &mut silent).unwrap();
    let ours = states(&folder, None);
    assert!(ours == states(&model("gemma3/bf16"), Some(packing)));
    assert!(relative(&ours[2], &whole[2]) < 0.02);
    let again = packs::quantize(&model("gemma3/bf16"), &folder, packing, &mut silent);
    assert!(again.is_err(), "a folder that holds something was written to");
}

#[test]
#[ignore = "measures: prints what packing loses on the fixtures"]
fn losses() {
    let _alone = alone();
    let packings = PACKINGS.map(|(_, packing)| packing);
    let rows = |name: &str, whole: &[f32], packed: &dyn Fn(Packing) -> Vec<f32>| {
        let losses = packings.map(|packing| format!("{packing} {:.4}", relative(&packed(packing), whole)));
        println!("{name}: {}", losses.join(", "));
    };
    let model = open(&model("bf16.safetensors"));
    let run = |packing: Option<Packing>| {
        velocities(&model.clone().packed_as(packing), Dtype::F32, Residency::Resident)
    };
    let whole = run(None);
    for (index, name) in ["dit, video", "dit, audio"].into_iter().enumerate() {
        rows(name, &whole[index], &|packing| run(Some(packing))[index].clone());
    }
    let whole = states(&self::model("gemma3/bf16"), None);
    let last = whole.len() - 1;
    let gemma = |packing| states(&self::model("gemma3/bf16"), Some(packing))[last].clone();
    rows("gemma, last hidden state", &whole[last], &gemma);
}

#[test]
fn loras_change_packed_weights() {
    let _alone = alone();
    let lora = Lora::open(&lora_for_packs()).unwrap();
    let whole = open(&model("bf16.safetensors"));
    let changed = |checkpoint: &Checkpoint| {
        let (fused, matches) = checkpoint.fused(&[(&lora, 1.0)]).unwrap();
        assert_eq!(matches[0].count(), 1);
        velocities(&fused, Dtype::F32, Residency::Resident)
    };
    let expected = changed(&whole);
    let plain = velocities(&whole, Dtype::F32, Residency::Resident);
    let strength = relative(&expected[0], &plain[0]);
    for name in ["fp8.safetensors", "mlx.safetensors"] {
        let checkpoint = open(&model(name));
        let loss = relative(&changed(&checkpoint)[0], &expected[0]);
        let before = relative(&velocities(&checkpoint, Dtype::F32, Residency::Resident)[0], &plain[0]);
        assert!(loss < 4.0 * before && loss < 0.5 * strength, "{name}: {loss}, {before} without, {strength}");
    }
}

/// The pack with its header's text changed.
fn damaged(folder: &Path, change: impl Fn(String) -> String) -> PathBuf {
    let whole = std::fs::read(model("mlx.safetensors")).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
    let changed = change(header.clone());
    assert_ne!(header, changed);
    let path = folder.join("damaged.safetensors");
    let all = [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &whole[8 + length..]].concat();
    std::fs::write(&path, all).unwrap();
    path
}

#[test]
fn packs_that_lie_are_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let changes: [(&str, &str, &str); 8] = [
        (r#"\"bits\": 4, \"group_size\": 64"#, r#"\"bits\": 8, \"group_size\": 64"#, "by its shapes"),
        (r#"\"bits\": 4, \"group_size\": 64"#, r#"\"bits\": 3, \"group_size\": 64"#, "bits = 3"),
        (r#"\"bits\": 4, \"group_size\": 64"#, r#"\"bits\": 4, \"group_size\": -1"#, "group_size = -1"),
        (r#"\"mode\": \"affine\""#, r#"\"mode\": \"zip\""#, "mode = \"zip\""),
        (r#""quantization":"{"#, r#""quantization":"[{"#, "no JSON"),
        ("attn1.to_q.scales", "attn1.to_q.scalps", "scales"),
        ("attn1.to_q.biases", "attn1.to_q.biasez", "biases"),
        (r#"attn1.to_q.scales":{"dtype":"BF16""#, r#"attn1.to_q.scales":{"dtype":"I16""#, "scales"),
    ];
    for (from, to, says) in changes {
        let path = damaged(folder.path(), |header| header.replacen(from, to, 1));
        let checkpoint = open(&path);
        let (weights, config) = checkpoint.component(Component::Dit, Dtype::Bf16).unwrap();
        let error = match Dit::load(&weights, &config) {
            Err(error) => error,
            Ok(_) => panic!("{to} was accepted"),
        };
        assert!(error.to_string().contains(says) && error.remedy().is_some(), "{to}: {error}");
    }
    // A packed norm is no norm, and words are no numbers.
    let words = weights(&model("mlx.safetensors"));
    let key = "model.diffusion_model.transformer_blocks.0.attn1.to_q";
    let error = words.at(key).tensor("weight", &[64, 8]).unwrap_err();
    assert!(error.to_string().contains("no weight of a linear layer"), "{error}");
    assert!(words.at(key).linear(64, 128).is_err());
    assert!(words.at(key).linear(32, 64).is_err());
}
