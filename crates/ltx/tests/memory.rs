//! What memory depends on: the peak of one program, so that everything is measured in one test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::checkpoint::{Checkpoint, Component};
use ltx::dit::{Conditions, Dit, Input, Pass};
use ltx::shape::Modality;
use ltx::text::{Gemma, GemmaFolder};
use ltx::trace::Trace;
use ltx::verify::Golden;
use ltx::video_vae::{ConvDecoder, Encoder, Tiling};
use mlx::{Array, Dtype};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn checkpoint(generation: &str) -> Checkpoint {
    Checkpoint::open(&[fixtures().join(generation).join("model.safetensors")]).unwrap()
}

fn noise(shape: &[i32]) -> Array {
    let noise = ltx::noise::Noise::new(1).normal(shape).unwrap();
    noise.eval().unwrap();
    noise
}

/// Bytes of arrays that `work` needs beside those there before.
fn peak(work: impl FnOnce()) -> usize {
    mlx::memory::clear_cache().unwrap();
    mlx::memory::reset_peak();
    let before = mlx::memory::active();
    work();
    mlx::memory::peak() - before
}

#[test]
fn peaks_are_bounded() {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    a_layer_of_gemma_grows_with_its_tokens();
    a_block_of_the_transformer_grows_with_its_tokens();
    decoding_does_not_grow_with_the_clip();
    encoding_does_not_grow_with_the_clip();
}

/// Four times the tokens: about four times the memory, not sixteen times.
fn linear(what: &str, mut work: impl FnMut(usize)) {
    let [short, long] = [4096, 16384].map(|tokens| peak(|| work(tokens)));
    assert!(long < 5 * short, "{what}: {short} bytes, and {long} for four times the tokens");
}

fn a_layer_of_gemma_grows_with_its_tokens() {
    let folder = GemmaFolder::open(&fixtures().join("gemma3")).unwrap();
    let weights = folder.weights(Dtype::F32);
    linear("Gemma", |tokens| {
        let gemma = Gemma::load(&weights, &folder).unwrap();
        let ids: Vec<u32> = (0..tokens as u32).map(|token| token % 97).collect();
        gemma.hidden_states(&[ids]).unwrap();
    });
}

fn a_block_of_the_transformer_grows_with_its_tokens() {
    let (weights, config) = checkpoint("2.3").component(Component::Dit, Dtype::F32).unwrap();
    let dit = Dit::load(&weights, &config).unwrap();
    let golden = Golden::open(&fixtures().join("goldens/2.3-dit-t2v.safetensors")).unwrap();
    linear("the transformer", |tokens| {
        let repeated = |modality: Modality, name: &str, axis: i32| {
            let array = golden.array(&format!("in.{modality}_{name}")).unwrap();
            let array = array.slice(0, 0..1).unwrap();
            let index: Vec<i32> = (0..tokens as i32).map(|token| token % array.dim(axis)).collect();
            array.take(&Array::from_slice(&index, &[tokens as i32]).unwrap(), axis).unwrap()
        };
        let given = [Modality::Video, Modality::Audio].map(|modality| {
            let context = golden.array(&format!("in.{modality}_context")).unwrap().slice(0, 0..1).unwrap();
            let positions = repeated(modality, "positions", 2);
            let conditions = Conditions {
                positions: &positions,
                context: &context,
                attention_mask: None,
                keyframes_mask: None,
            };
            let prepared = dit.prepare(modality, &conditions).unwrap();
            (repeated(modality, "latent", 1), repeated(modality, "timesteps", 1), prepared)
        });
        let sigma = mlx::full(&[1], 0.7, Dtype::F32).unwrap();
        let [video, audio] = given
            .each_ref()
            .map(|(latent, timesteps, prepared)| Some(Input { latent, timesteps, sigma: &sigma, prepared }));
        let pass = Pass { video, audio, perturbations: Vec::new() };
        let (video, audio) = dit.forward(&pass, &mut Trace::off()).unwrap();
        mlx::eval(video.iter().chain(&audio)).unwrap();
    });
}

/// Decodes a clip, giving every piece away at once: bytes at the peak, and as told before.
fn decode(generation: &str, latent: &Array, tiling: Tiling) -> (usize, usize) {
    let (weights, config) = checkpoint(generation).component(Component::VideoDecoder, Dtype::F32).unwrap();
    let decoder = ConvDecoder::load(&weights, &config).unwrap();
    // So that the weights are there.
    decoder
        .forward(&latent.slice(2, 0..1).unwrap(), &mut |shape| Ok(noise(shape)), &mut Trace::off())
        .unwrap();
    let sizes = [2, 3, 4].map(|axis| latent.dim(axis) as usize);
    let told = decoder.bytes(&tiling, sizes).unwrap();
    let told_from_header = tiling.bytes(&config, Dtype::F32, sizes).unwrap();
    assert_eq!(told, told_from_header);
    let frames = latent.dim(2) * 8 - 7;
    let measured = peak(|| {
        let chunks = decoder.decode(latent, &tiling, |shape| Ok(noise(shape))).unwrap();
        assert_eq!(chunks.map(|chunk| chunk.unwrap().dim(0)).sum::<i32>(), frames);
    });
    (measured, told)
}

/// What is told before is never much less than what is needed, nor so much more that a clip would be refused for it.
fn decoding_does_not_grow_with_the_clip() {
    for generation in ["2.0", "2.3"] {
        let mut peaks = Vec::new();
        let channels = if generation == "2.0" { 4 } else { 8 };
        for frames in [61, 121, 241] {
            let latent = noise(&[1, channels, frames, 8, 6]);
            let (measured, told) = decode(generation, &latent, Tiling::OFF);
            // The latent itself is converted whole.
            peaks.push(measured - 8 * latent.size());
            eprintln!("{generation} {frames} {measured} {told}");
        }
        assert!(peaks[2] < peaks[0] + peaks[0] / 10, "{generation}: {peaks:?}");
        let official = Tiling::OFF.with_spatial(128, 64).with_temporal(80, 24);
        for tiling in [Tiling::OFF, official, Tiling::OFF.with_temporal(160, 24)] {
            for shape in [[1, channels, 25, 6, 10], [1, channels, 9, 16, 12], [1, channels, 33, 3, 2]] {
                let (measured, told) = decode(generation, &noise(&shape), tiling);
                eprintln!(
                    "{generation} {tiling:?} {shape:?} {measured} {told} {}",
                    told as f64 / measured as f64
                );
            }
        }
    }
}

fn encoding_does_not_grow_with_the_clip() {
    let (weights, config) = checkpoint("2.3").component(Component::VideoEncoder, Dtype::F32).unwrap();
    let encoder = Encoder::load(&weights, &config).unwrap();
    let [short, long] = [121, 481].map(|frames| {
        peak(|| {
            let parts = (0..frames).map(|_| Ok(noise(&[1, 1, 256, 192, 3])));
            encoder.encode(parts).unwrap();
        })
    });
    assert!(long < short + short / 10, "{short} bytes, and {long} for four times the frames");
}
