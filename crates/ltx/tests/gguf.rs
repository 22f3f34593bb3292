//! GGUF files that the `gguf` package wrote: text encoders and a transformer, against the same in safetensors.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::checkpoint::lora::Lora;
use ltx::checkpoint::{Checkpoint, File, Residency, Unread, Weights};
use ltx::nn::{Blocked, Ggml, Linear, Weight};
use ltx::text::{Gemma, GemmaFolder, Sampling, Scene, enhance};
use mlx::Dtype;
use tiny::{bits, fixtures, floats, lora_for_packs, noise, open, relative, velocities};

/// A file in a folder of its own, with the tokenizer beside it.
fn beside_tokenizer(folder: &Path, file: &[u8]) -> PathBuf {
    let path = folder.join("gemma-3.gguf");
    std::fs::write(&path, file).unwrap();
    std::fs::copy(fixtures().join("gemma3/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    path
}

/// Hidden states of a few tokens, layer by layer.
fn states(path: &Path, dtype: Dtype, residency: Residency) -> Vec<mlx::Array> {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let folder = GemmaFolder::open(path).unwrap();
    let weights = folder.weights(dtype).kept(residency);
    let gemma = Gemma::load(&weights, &folder).unwrap();
    weights.finish(Unread::Refuse).unwrap();
    gemma.hidden_states(&[vec![2, 7, 11, 95, 0, 3, 3, 64, 8, 9, 1, 5]]).unwrap().remove(0)
}

fn greedy(path: &Path, count: usize) -> Vec<u32> {
    let folder = GemmaFolder::open(path).unwrap();
    let gemma = Gemma::load(&folder.weights(Dtype::F32), &folder).unwrap();
    gemma.write(&[2, 7, 11], &[], &Sampling::greedy(count), &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Matrices in BF16, F16 and F32, norms with the 1 that llama.cpp's converter adds: the same bits, layer by layer.
#[test]
fn a_text_encoder_is_that_of_its_folder() {
    let (whole, gguf) = (fixtures().join("gemma3"), fixtures().join("gemma3/gemma3.gguf"));
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let [expected, ours] = [&whole, &gguf].map(|path| states(path, dtype, Residency::Resident));
        assert_eq!((expected.len(), ours.len()), (5, 5));
        for (layer, (expected, ours)) in expected.iter().zip(&ours).enumerate() {
            assert!(bits(expected) == bits(ours), "{dtype}, layer {layer}");
        }
    }
    assert_eq!(greedy(&gguf, 9), greedy(&whole, 9));
    let sampling = Sampling { max_tokens: 9, ..Sampling::enhancement(3) };
    let written = [&whole, &gguf].map(|path| {
        let folder = GemmaFolder::open(path).unwrap();
        let silent = &mut |_| ControlFlow::Continue(());
        enhance(&folder, Dtype::Bf16, "a boat", Scene::Text, &sampling, silent).unwrap()
    });
    assert_eq!(written[0], written[1]);
    let inspection = ltx::inspect::inspect(&[&gguf]).unwrap();
    let part = &inspection.parts[0];
    assert!(part.name.contains("Gemma 3") && part.problem.is_none(), "{part:?}");
    assert!(part.unread.is_empty() && part.dtypes.contains_key("F16"), "{part:?}");
}

#[test]
fn quantized_text_encoders_are_near() {
    let whole = states(&fixtures().join("packs/gemma3/bf16"), Dtype::F32, Residency::Resident);
    for (name, most) in [("gemma3-q8_0.gguf", 0.015), ("gemma3-mixed.gguf", 0.25)] {
        let path = fixtures().join("gguf").join(name);
        let ours = states(&path, Dtype::F32, Residency::Resident);
        assert_eq!(ours.len(), 3);
        for (layer, (ours, whole)) in ours.iter().zip(&whole).enumerate() {
            let loss = relative(&floats(ours), &floats(whole));
            assert!(loss > 1e-4 && loss < most, "{name}, layer {layer}: {loss}");
        }
        let streamed = states(&path, Dtype::F32, Residency::Streaming { ahead: 1, kept: 0 });
        assert!(streamed.iter().zip(&ours).all(|(streamed, ours)| bits(streamed) == bits(ours)), "{name}");
        assert_eq!(greedy(&path, 4).len(), 4, "{name}");
    }
}

#[test]
fn the_tokenizer_is_asked_for() {
    let folder = GemmaFolder::open(&fixtures().join("gguf/gemma3-q8_0.gguf")).unwrap();
    let error = folder.tokenizer().unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(error.remedy().unwrap().contains("google/gemma-3-12b-it"), "{error:?}");
    let error = GemmaFolder::open(&fixtures().join("gguf/dit.gguf")).unwrap_err();
    assert!(error.to_string().contains("ltxv"), "{error}");
    let error = GemmaFolder::open(&fixtures().join("gemma3/model.safetensors")).unwrap_err();
    assert!(error.to_string().contains("no GGUF"), "{error}");
}

/// Changes a part of a file, which keeps its length.
fn replaced(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = file.windows(from.len()).position(|part| part == from).unwrap();
    [&file[..at], to, &file[at + from.len()..]].concat()
}

/// A number's entry, as it stands in a file: type and value.
fn entry(name: &str, value: u32) -> Vec<u8> {
    [name.as_bytes(), &4u32.to_le_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn text_encoders_that_lie_are_refused() {
    let whole = std::fs::read(fixtures().join("gemma3/gemma3.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let load = |file: &[u8]| {
        let folder = GemmaFolder::open(&beside_tokenizer(folder.path(), file))?;
        let weights = folder.weights(Dtype::F32);
        Gemma::load(&weights, &folder)?;
        weights.finish(Unread::Refuse)
    };
    load(&whole).unwrap();
    let number = |name: &str, from, to| replaced(&whole, &entry(name, from), &entry(name, to));
    let typed = |name: &str, value: u32| {
        let lie = [name.as_bytes(), &6u32.to_le_bytes(), &value.to_le_bytes()].concat();
        replaced(&whole, &entry(name, value), &lie)
    };
    for (file, says) in [
        (number("block_count", 4, 5), "layers.4"),
        (number("block_count", 4, 3), "layers.3"),
        (number("block_count", 4, u32::MAX), "num_hidden_layers"),
        (number("head_count", 6, 4_000_000_000), "num_attention_heads"),
        (number("head_count", 6, 1 << 19), "hidden_size"),
        (number("embedding_length", 24, 32), "has shape"),
        (number("value_length", 8, 16), "value_length"),
        (number("sliding_window_pattern", 3, 2), ""),
        (typed("feed_forward_length", 56), "feed_forward_length"),
        (replaced(&whole, b"gemma3.embedding_length", b"gemma3.embedding_lengtH"), "embedding_length"),
        (replaced(&whole, b"rope.scaling.factor", b"rope.scaling.factoR"), "rope.scaling.factor"),
        (replaced(&whole, b"\0linear", b"\0linxar"), "linxar"),
        (replaced(&whole, b"blk.2.attn_q_norm", b"blk.2.attn_q_nonn"), "self_attn.q_norm"),
        (replaced(&whole, b"general.architecture", b"general.architectur3"), "architecture"),
        (whole[..whole.len() - 64].to_vec(), "does not lie in the file"),
        (whole[..700].to_vec(), "cut off"),
    ] {
        match load(&file) {
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{says}: {error}"),
            // Other layers slide, which no file can contradict.
            Ok(_) => assert!(says.is_empty(), "{says}"),
        }
    }
    for place in (4..whole.len().min(14_000)).step_by(5) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[place] ^= flip;
            drop(load(&damaged));
        }
    }
}

/// Matrices of every type, as they are read for a linear layer: bit for bit. Scales of this Q4_K are exact in f16.
#[test]
fn every_type_is_what_ggml_says() {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let [ours, twin] = ["types.gguf", "types.safetensors"].map(|name| {
        let file = Arc::new(File::open(&fixtures().join("gguf").join(name)).unwrap());
        let keys: Vec<String> = file.tensors().map(|(key, _)| key).collect();
        (Weights::new(vec![file.clone()], "", Dtype::F32, keys.clone()), file, keys)
    });
    assert_eq!((&ours.2, ours.2.len()), (&twin.2, 8));
    for key in &ours.2 {
        let [whole, expected] = [&ours.1, &twin.1].map(|file| floats(&file.array(key).unwrap()));
        assert!(whole == expected, "{key}");
        let module = key.strip_suffix(".weight").unwrap();
        let weight = ours.0.at(module).linear(3, 512).unwrap();
        let packed = matches!(weight, Weight::Packed(_));
        assert_eq!(packed, matches!(module, "Q4_0" | "Q4_1" | "Q4_K" | "Q8_0"), "{key}");
        let linear = floats(&weight.dense(Dtype::F32).unwrap());
        let loss = relative(&linear, &expected);
        assert!(loss == 0.0, "{key}: {loss}");
        let table = ours.0.at(module).table(3, 512).unwrap();
        let index = mlx::Array::from_slice(&[2i32, 0], &[2]).unwrap();
        let rows = floats(&table.rows(&index, Dtype::F32).unwrap());
        assert!(rows == [&expected[1024..], &expected[..512]].concat(), "{key}");
        let pieces: Vec<f32> = table
            .pieces(2)
            .unwrap()
            .iter()
            .flat_map(|piece| floats(&piece.dense(Dtype::F32).unwrap()))
            .collect();
        assert!(pieces == expected && table.pieces(2).unwrap().len() == 2, "{key}");
        assert!(ours.0.at(module).linear(3, 256).is_err());
    }
}

/// A transformer of Q8_0, Q4_K, Q6_K, F16, BF16 and F32, against the values that `gguf` makes of it.
#[test]
fn a_transformer_stays_packed() {
    let gguf =
        Checkpoint::open(&["dit.gguf", "config.safetensors"].map(|name| fixtures().join("gguf").join(name)));
    let (gguf, twin) = (gguf.unwrap(), open(&fixtures().join("gguf/dit.safetensors")));
    for (dtype, most) in [(Dtype::F32, 2e-4), (Dtype::Bf16, 0.01)] {
        let [ours, expected] =
            [&gguf, &twin].map(|checkpoint| velocities(checkpoint, dtype, Residency::Resident));
        for (ours, expected) in ours.iter().zip(&expected) {
            let loss = relative(ours, expected);
            println!("{dtype}: {loss}");
            assert!(loss < most, "{dtype}: {loss}");
        }
        assert!(ours == velocities(&gguf, dtype, Residency::Streaming { ahead: 1, kept: 0 }), "{dtype}");
    }
    let lora = Lora::open(&lora_for_packs()).unwrap();
    let changed = |checkpoint: &Checkpoint| {
        let (fused, _) = checkpoint.fused(&[(&lora, 1.0)]).unwrap();
        velocities(&fused, Dtype::F32, Residency::Resident)
    };
    let (ours, expected) = (changed(&gguf), changed(&twin));
    let plain = velocities(&twin, Dtype::F32, Residency::Resident);
    let (loss, strength) = (relative(&ours[0], &expected[0]), relative(&expected[0], &plain[0]));
    assert!(loss < 0.3 * strength, "{loss} for a change of {strength}");
}

#[test]
#[ignore = "measures: prints what repacking costs beside a product, and what it loses"]
fn costs() {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let seconds = |work: &dyn Fn() -> mlx::Array| {
        let once = || {
            let start = std::time::Instant::now();
            work().eval().unwrap();
            start.elapsed().as_secs_f64()
        };
        (0..7).map(|_| once()).fold(f64::INFINITY, f64::min)
    };
    let (outputs, inputs) = (2048, 4096);
    for kind in Ggml::ALL {
        let (block, size) = kind.block();
        let random = |at: usize| if matches!(at % size, 1 | 3 | 209) { 0x14 } else { (at * 167 % 251) as u8 };
        let codes: Vec<u8> = (0..outputs * inputs / block * size).map(random).collect();
        let codes =
            mlx::Array::from_slice(&codes, &[outputs as i32, (inputs / block * size) as i32]).unwrap();
        let blocked = Blocked::new(codes, kind);
        let whole = blocked.dense(Dtype::Bf16).unwrap();
        let unpacked = seconds(&|| blocked.dense(Dtype::Bf16).unwrap());
        let repacked = blocked.repacked().map(|_| {
            seconds(&|| {
                let packed = blocked.repacked().unwrap().unwrap();
                mlx::eval([&packed.values, packed.biases.as_ref().unwrap()]).unwrap();
                packed.scales
            })
        });
        let used = match blocked.repacked() {
            Some(packed) => Weight::Packed(packed.unwrap()),
            None => Weight::Blocked(blocked),
        };
        let (packed, whole) = (Linear::of(used), Linear::new(whole));
        print!(
            "{:5} unpack {:.1} ms, repack {:.1?} ms",
            kind.name(),
            1e3 * unpacked,
            repacked.map(|s| 1e3 * s)
        );
        for tokens in [1, 64, 512] {
            let x = noise(&[1, tokens, inputs as i32]).astype(Dtype::Bf16).unwrap();
            let [few, many] = [&packed, &whole].map(|layer| 1e3 * seconds(&|| layer.forward(&x).unwrap()));
            print!("; {tokens} tokens {few:.1} ms, from bf16 {many:.1} ms");
        }
        println!();
    }
}
