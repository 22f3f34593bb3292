//! Choices under invented limits.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::fit::{best, tiling};
use super::*;
use crate::checkpoint::{BlockFootprint, Config, Footprint, Weights};
use crate::nn::Packing;
use crate::pipeline::{GuidanceOverride, Recipe};
use crate::synth::{Like, Synth};
use crate::text::GemmaFolder;
use crate::video_vae::ConvDecoder;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn request([width, height, frames]: [usize; 3]) -> Request {
    Request {
        prompt: Some("a boat".into()),
        models: vec![fixtures().join("2.3/model.safetensors")],
        gemma: Some(fixtures().join("gemma3")),
        spatial_upsampler: Some(fixtures().join("upsamplers/2.3-spatial-x2.safetensors")),
        recipe: Some(Recipe::Distilled),
        height: Some(height),
        width,
        frames,
        ..Request::default()
    }
}

fn limits(most: u64) -> Limits {
    Limits { base: 0, most: Some(most), fixed_residency: false, fixed_tiling: false }
}

/// 48 blocks of 100 bytes, and 50 bytes beside them.
fn network(settles: bool) -> BlockFootprint {
    let footprint = |mapped, heap| Footprint { mapped, heap, passing: 0 };
    let heap = if settles { 60 } else { 0 };
    BlockFootprint {
        rest: footprint(50, 0),
        count: 48,
        block: footprint(100, heap),
        blocks: footprint(4800, 48 * heap),
        settles,
    }
}

#[test]
fn as_many_blocks_stay_as_fit() {
    let network = network(false);
    for (most, expected) in [
        (4850, Residency::Resident),
        (4849, Residency::Streaming { ahead: 1, kept: 45 }),
        (1250, Residency::Streaming { ahead: 1, kept: 10 }),
        (1249, Residency::Streaming { ahead: 1, kept: 9 }),
        (250, Residency::STREAMING),
        (249, Residency::Streaming { ahead: 0, kept: 0 }),
        (0, Residency::Streaming { ahead: 0, kept: 0 }),
    ] {
        assert_eq!(best(48, |residency| network.held(residency) <= most), expected, "{most}");
    }
    assert_eq!(network.read(Residency::Resident), 0);
    assert_eq!(network.read(Residency::Streaming { ahead: 1, kept: 10 }), 3800);
}

#[test]
fn blocks_that_were_converted_let_go_of_their_files() {
    let network = network(true);
    assert_eq!(network.held(Residency::Resident), 50 + 48 * 60 + 100);
    assert_eq!(network.held(Residency::STREAMING), 50 + 160 + 100);
    assert_eq!(network.held(Residency::Streaming { ahead: 0, kept: 0 }), 50 + 160);
    // What the last block needs, and nothing is left to be read ahead.
    assert_eq!(network.held(Residency::Streaming { ahead: 1, kept: 47 }), 50 + 47 * 60 + 160);
}

#[test]
fn headers_tell_what_blocks_take() {
    let checkpoint = crate::checkpoint::Checkpoint::open(&request([64; 3]).models).unwrap();
    let of = |dtype| {
        let (weights, _) = checkpoint.component(crate::checkpoint::Component::Dit, dtype).unwrap();
        weights.block_footprint("transformer_blocks")
    };
    let [narrow, wide] = [Dtype::Bf16, Dtype::F32].map(of);
    let bytes = |part: &str| -> u64 {
        let ours = |key: &str| key.starts_with(&format!("model.diffusion_model.{part}"));
        let tensors = checkpoint.files()[0].tensors().filter(|(key, _)| ours(key));
        tensors.map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64).sum()
    };
    assert_eq!(narrow.count, 3);
    assert_eq!(narrow.blocks.mapped, bytes("transformer_blocks."));
    let connectors = bytes("video_embeddings_connector.") + bytes("audio_embeddings_connector.");
    assert_eq!(narrow.rest.mapped, bytes("") - connectors - bytes("transformer_blocks."));
    assert!(!narrow.settles && wide.settles);
    // All but a few tables, which are f32 in the file.
    let Footprint { mapped, heap, .. } = wide.blocks;
    assert!(heap > mapped * 9 / 5 && heap < 2 * mapped, "{heap} bytes of {mapped}");
}

#[test]
fn what_fits_is_left_alone_and_what_does_not_is_streamed() {
    let request = request([448, 320, 25]);
    let plan = Plan::new(&request).unwrap();
    let (facts, sizes) = (Facts::new(&plan).unwrap(), plan.sizes());
    let resident = plan.denoising_phases(&facts, &sizes, &plan.choices);
    let needs = resident.iter().map(Phase::bytes).max().unwrap();
    let unlimited = Limits { most: None, ..limits(0) };
    for roomy in [unlimited, limits(1 << 40)] {
        let (choices, said) = plan.choose(&facts, &sizes, &roomy).unwrap();
        assert_eq!((choices, said), (Choices::of(&request), Vec::new()));
    }
    let (exact, _) = plan.choose(&facts, &sizes, &limits(needs)).unwrap();
    assert_eq!(exact.transformer, Residency::Resident);
    let (less, said) = plan.choose(&facts, &sizes, &limits(needs - 1)).unwrap();
    assert_ne!(less.transformer, Residency::Resident);
    assert!(
        said.iter().any(|said| said.contains("the transformer") && said.contains("do not fit in")),
        "{said:?}"
    );
    let fixed = Limits { fixed_residency: true, ..limits(needs - 1) };
    assert_eq!(plan.choose(&facts, &sizes, &fixed).unwrap().0.transformer, Residency::Resident);
}

#[test]
fn pictures_are_cut_into_the_largest_tiles_that_fit() {
    let file = fixtures().join("configs/ltx-2.3-22b.json");
    let config = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let weights = Weights::shapes(Dtype::Bf16);
    let decoder = ConvDecoder::load(&weights, &Config::new(&file, config)).unwrap();
    let decoder = (decoder, Footprint::default());
    let video = VideoShape { frames: 97, height: 1408, width: 2560 };
    let needs = |tiling| picture_phase(&decoder, video, tiling).unwrap().bytes();
    let whole = needs(Tiling::auto());
    assert_eq!(tiling(&decoder, video, Tiling::auto(), &limits(whole)).unwrap(), (Tiling::auto(), None));
    let least = needs(Tiling::cut(128, 16));
    assert!(least < whole);
    for most in [least, (least + whole) / 2, whole - 1] {
        let (chosen, said) = tiling(&decoder, video, Tiling::auto(), &limits(most)).unwrap();
        assert!(needs(chosen) <= most && said.unwrap().contains("tiles of"), "{chosen:?}");
    }
}

#[test]
fn what_cannot_fit_is_refused_with_what_can() {
    let size = |frames| Request { skip_vae: true, ..request([448, 320, frames]) };
    let needs = |request: &Request| {
        let plan = Plan::new(request).unwrap();
        let (facts, sizes) = (Facts::new(&plan).unwrap(), plan.sizes());
        let choices = plan.choose(&facts, &sizes, &limits(1)).unwrap().0;
        let phases = plan.phases(&facts, &sizes, &choices).unwrap();
        phases.iter().map(Phase::bytes).max().unwrap()
    };
    let (most, large) = (needs(&size(33)), size(97));
    let error = Plan::new(&large).unwrap().fit(&limits(most)).unwrap_err();
    let crate::Error::Memory { needs: told, available, remedy, .. } = &error else { panic!("{error}") };
    assert!(told > available && *available == most, "{error}");
    let (frames, _) = remedy.strip_prefix("what fits: ").unwrap().split_once(" frames of 448x320").unwrap();
    let frames: usize = frames.parse().unwrap();
    assert!((33..97).contains(&frames), "{remedy}");
    Plan::new(&size(frames)).unwrap().fit(&limits(most)).unwrap();
    assert!(Plan::new(&size(frames + 8)).unwrap().fit(&limits(most)).is_err());
    let nothing = Plan::new(&large).unwrap().fit(&limits(1000)).unwrap_err();
    assert!(nothing.remedy().unwrap().contains("no size fits"), "{nothing}");
}

/// One pass of the transformer of `model`, and nothing else.
fn denoising_alone(model: PathBuf, size: [usize; 3]) -> Request {
    let off = GuidanceOverride { stg: Some(0.0), ..GuidanceOverride::default() };
    Request {
        models: vec![model],
        recipe: Some(Recipe::OneStage),
        dummy_text: true,
        skip_vae: true,
        video_guidance: off.clone(),
        audio_guidance: off,
        ..request(size)
    }
}

/// Bytes that it takes with all of the transformer in memory.
fn resident(request: &Request) -> u64 {
    let plan = Plan::new(request).unwrap();
    let (facts, sizes) = (Facts::new(&plan).unwrap(), plan.sizes());
    plan.denoising_phases(&facts, &sizes, &plan.choices).iter().map(Phase::bytes).max().unwrap()
}

#[test]
fn packing_is_not_taken_where_it_is_not_needed_or_does_not_help() {
    // Wide enough for groups of 64.
    let model = fixtures().join("packs/bf16.safetensors");
    let mut request = Request { dtype: Dtype::F32, ..denoising_alone(model, [64, 64, 9]) };
    let needs = resident(&request);
    assert_eq!(choose_packing(&mut request, || limits(needs)).unwrap(), None);
    assert_eq!(request.quantize, None);
    assert_eq!(choose_packing(&mut request, || limits(1000)).unwrap(), None, "nothing helps");
    assert_eq!(request.quantize, None);
}

#[test]
fn packing_is_taken_where_the_transformer_then_fits() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("ltx-2.3-of-four-blocks.safetensors");
    // Blocks as wide as the real ones, all of them holes.
    let synth = Synth { like: Like::V2_3, blocks: Some(4), sparse: Some(0), seed: 0 };
    synth.write(&model, &mut |_| ControlFlow::Continue(())).unwrap();
    let mut request = denoising_alone(model, [128, 128, 17]);
    let packings = [8, 4].map(|bits| Some(Packing::Affine { bits, group: 64 }));
    let [eight, four] = packings.map(|quantize| resident(&Request { quantize, ..request.clone() }));
    assert!(four < eight && eight < resident(&request), "{four} {eight}");
    for (most, packing) in [(eight, packings[0]), (eight - 1, packings[1]), (four - 1, None)] {
        let said = choose_packing(&mut request, || limits(most)).unwrap();
        assert_eq!((request.quantize, said.is_some()), (packing, packing.is_some()), "{said:?}");
    }
}

#[test]
fn a_text_encoder_that_writes_is_streamed_where_it_does_not_fit() {
    let folder = GemmaFolder::open(&fixtures().join("gemma3")).unwrap();
    let fit = |limits: &Limits| fit_writer(&folder, Dtype::Bf16, Residency::Resident, limits);
    assert_eq!(fit(&limits(1 << 40)).unwrap(), (Residency::Resident, None));
    let crate::Error::Memory { phase, needs, .. } = fit(&limits(1000)).unwrap_err() else {
        panic!("another error")
    };
    assert_eq!(phase, "enhance prompt");
    let (residency, why) = fit(&limits(needs)).unwrap();
    assert_eq!(residency, Residency::Streaming { ahead: 0, kept: 0 });
    assert!(why.unwrap().contains("for every word"));
    // As asked for, and nothing to say of it.
    let asked = Limits { fixed_residency: true, ..limits(1 << 40) };
    let answer = fit_writer(&folder, Dtype::Bf16, Residency::STREAMING, &asked).unwrap();
    assert_eq!(answer, (Residency::STREAMING, None));
}

#[test]
fn time_is_computing_or_reading_whichever_is_longer() {
    let speed = Speed { linear: 100.0, attention: 10.0, convolution: 20.0, read: 5.0 };
    let cost = Cost { linear: 200.0, attention: 10.0, convolution: 60.0, read: 10.0, pixels: 0.0 };
    assert_eq!(speed.seconds(&cost), 6.0);
    assert_eq!(speed.seconds(&Cost { read: 50.0, ..cost }), 10.0);
    assert_eq!(Speed::from_json(&speed.to_json()), Some(speed));
    assert_eq!(Speed::from_json(&serde_json::json!({ "linear": -1.0 })), None);
}
