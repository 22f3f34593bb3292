//! Blocks that are streamed compute what blocks in memory do, bit for bit.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::checkpoint::lora::Lora;
use ltx::checkpoint::{Checkpoint, Component, Residency, Unread};
use ltx::dit::{Conditions, Dit, Input, Pass, Perturbation};
use ltx::shape::Modality;
use ltx::text::{Gemma, GemmaFolder};
use ltx::trace::Trace;
use ltx::verify::Golden;
use mlx::{Array, Dtype};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn checkpoint(generation: &str) -> Checkpoint {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    Checkpoint::open(&[fixtures().join(generation).join("model.safetensors")]).unwrap()
}

fn bits(array: &Array) -> Vec<u32> {
    let values = array.astype(Dtype::F32).unwrap().to_f32().unwrap();
    assert!(values.iter().all(|value| value.is_finite()));
    values.into_iter().map(f32::to_bits).collect()
}

/// The four passes of full guidance on a golden's inputs: velocities, one by one or together.
fn guided(checkpoint: &Checkpoint, generation: &str, dtype: Dtype, residency: Residency) -> Vec<Vec<u32>> {
    let (weights, config) = checkpoint.component(Component::Dit, dtype).unwrap();
    let dit = Dit::load(&weights.clone().kept(residency), &config).unwrap();
    weights.finish(Unread::Refuse).unwrap();
    let golden = Golden::open(&fixtures().join(format!("goldens/{generation}-dit-t2v.safetensors"))).unwrap();
    let given = [Modality::Video, Modality::Audio].map(|modality| {
        let array = |name: &str| golden.array(&format!("in.{modality}_{name}")).unwrap();
        let inputs = ["latent", "timesteps", "sigma", "positions"].map(array);
        let texts = [array("context"), array("context").multiply(-0.5f32).unwrap()];
        let prepared = texts.map(|context| {
            let positions = &inputs[3];
            let conditions =
                Conditions { positions, context: &context, attention_mask: None, keyframes_mask: None };
            dit.prepare(modality, &conditions).unwrap()
        });
        (inputs, prepared)
    });
    let skipped = Perturbation { skip_video_self_attention: vec![1], ..Perturbation::default() };
    let isolated = Perturbation { skip_cross_modal: true, ..Perturbation::default() };
    let passes: Vec<Pass> = [(0, None), (1, None), (0, Some(skipped)), (0, Some(isolated))]
        .into_iter()
        .map(|(text, perturbation)| {
            let [video, audio] = given.each_ref().map(|([latent, timesteps, sigma, _], prepared)| {
                Some(Input { latent, timesteps, sigma, prepared: &prepared[text] })
            });
            Pass { video, audio, perturbations: perturbation.into_iter().collect() }
        })
        .collect();
    let velocities = match residency {
        Residency::Resident => {
            passes.iter().map(|pass| dit.forward(pass, &mut Trace::off()).unwrap()).collect()
        }
        Residency::Streaming { .. } => {
            dit.forward_all(&passes).unwrap(); // what was given back is read again
            dit.forward_all(&passes).unwrap()
        }
    };
    let bits: Vec<_> = velocities
        .iter()
        .flat_map(|(video, audio)| [bits(video.as_ref().unwrap()), bits(audio.as_ref().unwrap())])
        .collect();
    for pass in 1..passes.len() {
        assert_ne!(bits[0], bits[2 * pass], "pass {pass} is like the first");
    }
    bits
}

#[test]
fn guided_passes_are_the_same() {
    for generation in ["2.0", "2.3"] {
        let model = checkpoint(generation);
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let resident = guided(&model, generation, dtype, Residency::Resident);
            for (ahead, kept) in [(0, 0), (1, 0), (7, 0), (0, 1), (1, 1), (1, 9)] {
                let streamed = guided(&model, generation, dtype, Residency::Streaming { ahead, kept });
                assert!(resident == streamed, "{generation} {dtype}, {ahead} ahead, {kept} kept");
            }
        }
    }
}

#[test]
fn loras_are_fused_on_the_way() {
    let plain = checkpoint("2.3");
    let lora = Lora::open(&fixtures().join("lora/official.safetensors")).unwrap();
    let (fused, _) = plain.fused(&[(&lora, 0.75)]).unwrap();
    let run = |model, residency| guided(model, "2.3", Dtype::Bf16, residency);
    let resident = run(&fused, Residency::Resident);
    assert!(resident == run(&fused, Residency::STREAMING));
    assert!(resident != run(&plain, Residency::STREAMING));
}

#[test]
fn the_text_encoder_is_the_same() {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let folder = GemmaFolder::open(&fixtures().join("gemma3")).unwrap();
    let prompts = [vec![2, 7, 11, 5, 3, 9, 4], vec![2, 3]];
    let states = |residency| -> Vec<Vec<u32>> {
        let gemma = Gemma::load(&folder.weights(Dtype::Bf16).kept(residency), &folder).unwrap();
        let states = gemma.hidden_states(&prompts).unwrap();
        folder.release();
        states.iter().flatten().map(bits).collect()
    };
    let resident = states(Residency::Resident);
    assert!(resident.len() > 4 && resident == states(Residency::STREAMING));
}

#[test]
fn a_missing_block_is_found_before_anything_computes() {
    let (weights, config) = checkpoint("2.3").component(Component::Dit, Dtype::F32).unwrap();
    let short = weights.at("transformer_blocks.0").kept(Residency::STREAMING);
    let error = Dit::load(&short, &config).unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
}
