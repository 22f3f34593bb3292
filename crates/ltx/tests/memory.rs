//! What memory depends on: the peak of one program, so that everything is measured in one test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ltx::audio_vae::AudioDecoder;
use ltx::checkpoint::{Checkpoint, Component};
use ltx::dit::{Conditions, Dit, Input, Pass};
use ltx::shape::Modality;
use ltx::text::{Gemma, GemmaFolder};
use ltx::trace::Trace;
use ltx::verify::Golden;
use ltx::video_vae::{ConvDecoder, Tiling};
use ltx::vocoder::Vocoder;
use mlx::{Array, Dtype};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn checkpoint(generation: &str) -> Checkpoint {
    Checkpoint::open(&[fixtures().join(generation).join("model.safetensors")]).unwrap()
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
    for generation in ["2.0", "2.3"] {
        sound_stays(generation);
        pictures_stay(generation);
    }
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

/// A clip of a few seconds, so many latent frames, and one of three times as many: the same memory.
fn flat(what: &str, frames: i32, mut work: impl FnMut(i32)) {
    work(1); // so that the weights are there
    let [short, long] = [frames, 3 * frames].map(|frames| peak(|| work(frames)));
    assert!(10 * long < 11 * short, "{what}: {short} bytes, and {long} for three times the length");
}

fn sound_stays(generation: &str) {
    let component = |component| checkpoint(generation).component(component, Dtype::F32).unwrap();
    let (weights, config) = component(Component::AudioDecoder);
    let decoder = AudioDecoder::load(&weights, &config).unwrap();
    let (weights, config) = component(Component::Vocoder);
    let vocoder = Vocoder::load(&weights, &config).unwrap();
    let channels = if generation == "2.0" { 1 } else { 2 };
    flat(&format!("the sound of {generation}"), 110, |frames| {
        let latent = mlx::zeros(&[1, channels, frames, 16], Dtype::F32).unwrap();
        let (mut mel, mut waveform) = (decoder.enter(&latent).unwrap(), vocoder.enter());
        let mut samples = 0;
        while let Some((mel, last)) = decoder.next(&mut mel).unwrap() {
            vocoder.push(&mut waveform, &mel, last).unwrap();
            while let Some(waveform) = vocoder.next(&mut waveform).unwrap() {
                samples += waveform.dim(2);
            }
        }
        // Of a mel frame 10 ms, of a latent frame four of them.
        assert_eq!(samples, (4 * frames - 3) * vocoder.sample_rate() as i32 / 100);
    });
}

fn pictures_stay(generation: &str) {
    let (weights, config) = checkpoint(generation).component(Component::VideoDecoder, Dtype::F32).unwrap();
    let channels = config.at("vae").unwrap().usize("latent_channels").unwrap() as i32;
    flat(&format!("the pictures of {generation}"), 13, |latents| {
        let decoder = ConvDecoder::load(&weights, &config).unwrap();
        let latent = mlx::zeros(&[1, channels, latents, 3, 2], Dtype::F32).unwrap();
        let chunks =
            decoder.decode(&latent, &Tiling::OFF, |shape| Ok(mlx::zeros(shape, Dtype::F32)?)).unwrap();
        let frames: i32 = chunks.map(|chunk| chunk.unwrap().dim(0)).sum();
        assert_eq!(frames, 8 * latents - 7);
    });
}
