//! The transformer of one block in `fixtures/packs`, and how its answers are compared.

#![allow(dead_code, reason = "each of several tests uses some of it")]

use std::path::{Path, PathBuf};

use ltx::checkpoint::{Checkpoint, Component, Residency, Unread};
use ltx::dit::{Conditions, Dit, Input, Pass};
use ltx::shape::Modality;
use ltx::trace::Trace;
use ltx::verify::Golden;
use mlx::{Array, Dtype};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub fn open(path: &Path) -> Checkpoint {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    Checkpoint::open(&[path]).unwrap()
}

pub fn floats(array: &Array) -> Vec<f32> {
    array.astype(Dtype::F32).unwrap().to_f32().unwrap()
}

pub fn bits(array: &Array) -> Vec<u32> {
    floats(array).into_iter().map(f32::to_bits).collect()
}

/// Numbers of no pattern between −1 and 1.
pub fn noise(shape: &[i32]) -> Array {
    let mut state = 9u32;
    let values: Vec<f32> = (0..shape.iter().product::<i32>())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Array::from_slice(&values, shape).unwrap()
}

/// Video and audio velocities of the packed fixtures' model.
pub fn velocities(checkpoint: &Checkpoint, dtype: Dtype, residency: Residency) -> [Vec<f32>; 2] {
    run(checkpoint, dtype, residency).1
}

/// The same, and the network that has run twice.
pub fn run(checkpoint: &Checkpoint, dtype: Dtype, residency: Residency) -> (Dit, [Vec<f32>; 2]) {
    let (weights, config) = checkpoint.component(Component::Dit, dtype).unwrap();
    let dit = Dit::load(&weights.clone().kept(residency), &config).unwrap();
    weights.finish(Unread::Refuse).unwrap();
    let golden = Golden::open(&fixtures().join("goldens/2.3-dit-t2v.safetensors")).unwrap();
    let given = [(Modality::Video, 64), (Modality::Audio, 32)].map(|(modality, width)| {
        let array = |name: &str| golden.array(&format!("in.{modality}_{name}")).unwrap();
        let inputs = ["latent", "timesteps", "sigma", "positions"].map(array);
        let context = noise(&[1, 128, width]);
        let conditions = Conditions {
            positions: &inputs[3],
            context: &context,
            attention_mask: None,
            keyframes_mask: None,
        };
        let prepared = dit.prepare(modality, &conditions).unwrap();
        (inputs, prepared)
    });
    let [video, audio] = given
        .each_ref()
        .map(|([latent, timesteps, sigma, _], prepared)| Some(Input { latent, timesteps, sigma, prepared }));
    let pass = Pass { video, audio, perturbations: Vec::new() };
    dit.forward(&pass, &mut Trace::off()).unwrap();
    let (video, audio) = dit.forward(&pass, &mut Trace::off()).unwrap();
    (dit, [floats(&video.unwrap()), floats(&audio.unwrap())])
}

/// |a − b| / |b|
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// A LoRA for one layer of the fixtures' model, that changes it by much.
pub fn lora_for_packs() -> PathBuf {
    let path = std::env::temp_dir().join(format!("ltx-packs-lora-{}.safetensors", std::process::id()));
    let factors = [("lora_A", noise(&[4, 64])), ("lora_B", noise(&[256, 4]))].map(|(name, factor)| {
        let shape: Vec<usize> = factor.shape().iter().map(|&size| size as usize).collect();
        (format!("diffusion_model.transformer_blocks.0.ff.net.0.proj.{name}.weight"), shape, floats(&factor))
    });
    let views = factors.each_ref().map(|(name, shape, values)| {
        let bytes = bytemuck::cast_slice(values);
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}
