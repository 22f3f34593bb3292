//! The video autoencoder beyond its goldens: tiling, sizes, and configurations that must be refused.

use std::path::{Path, PathBuf};

use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::{ConvDecoder, Encoder, Scale, Tiling, rgb8};
use crate::checkpoint::{Checkpoint, Component, Config, File, Weights};
use crate::error::{Error, Result};
use crate::trace::Trace;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn checkpoint(generation: &str) -> Checkpoint {
    Checkpoint::open(&[fixtures().join(generation).join("model.safetensors")]).unwrap()
}

fn decoder(generation: &str) -> ConvDecoder {
    let (weights, config) = checkpoint(generation).component(Component::VideoDecoder, Dtype::F32).unwrap();
    ConvDecoder::load(&weights, &config).unwrap()
}

/// Numbers from a small generator: about normal, the same every time.
fn noise(shape: &[i32]) -> Array {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let size = shape.iter().product::<i32>();
    let values: Vec<f32> = (0..size).map(|_| 2.0 * (uniform() + uniform() + uniform())).collect();
    Array::from_slice(&values, shape).unwrap()
}

fn silent(_: &[i32]) -> Result<Array> {
    panic!("this decoder draws no noise")
}

fn whole(decoder: &ConvDecoder, latent: &Array) -> Array {
    decoder.forward(latent, &mut silent, &mut Trace::off()).unwrap().squeeze(&[0]).unwrap()
}

fn chunks(decoder: &ConvDecoder, latent: &Array, tiling: Tiling) -> Vec<Array> {
    let chunks = decoder.clone().decode(latent, &tiling, silent).unwrap();
    chunks.map(Result::unwrap).collect()
}

fn largest_difference(a: &Array, b: &Array) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.subtract(b).unwrap().abs().unwrap().max(&[0, 1, 2, 3], false).unwrap().item().unwrap()
}

#[test]
fn sizes_follow_the_scale() {
    for generation in ["2.0", "2.3"] {
        let decoder = decoder(generation);
        assert_eq!(decoder.scale(), Scale { frames: 8, pixels: 32 });
        let channels = decoder.statistics().channels();
        let pixels = whole(&decoder, &noise(&[1, channels, 3, 2, 5]));
        assert_eq!(pixels.shape(), [17, 64, 160, 3]);
        let (weights, config) =
            checkpoint(generation).component(Component::VideoEncoder, Dtype::F32).unwrap();
        let encoder = Encoder::load(&weights, &config).unwrap();
        // 20 frames are 17 and a rest that no latent frame can hold.
        let latent = encoder.forward(&noise(&[2, 20, 32, 96, 3])).unwrap();
        assert_eq!(latent.shape(), [2, channels, 3, 1, 3]);
        let cropped = encoder.forward(&noise(&[2, 20, 32, 96, 3]).slice(1, 0..17).unwrap()).unwrap();
        assert_eq!(latent.to_f32().unwrap(), cropped.to_f32().unwrap());
        let refused = encoder.forward(&noise(&[1, 9, 48, 96, 3])).unwrap_err();
        assert!(matches!(refused, Error::Request { .. }), "{refused}");
    }
}

#[test]
fn untiled_chunks_are_the_whole() {
    let decoder = decoder("2.3");
    let latent = noise(&[1, decoder.statistics().channels(), 3, 2, 3]);
    for tiling in [Tiling::OFF, Tiling::OFFICIAL] {
        let joined =
            mlx::concatenate(&chunks(&decoder, &latent, tiling).iter().collect::<Vec<_>>(), 0).unwrap();
        assert_eq!(largest_difference(&joined, &whole(&decoder, &latent)), 0.0);
    }
}

/// As it was drawn for a whole: the same noise for the same draw.
fn drawn() -> impl FnMut(&[i32]) -> Result<Array> {
    let mut count = 0;
    move |shape| {
        count += 1;
        Ok(noise(shape).multiply(count as f32)?)
    }
}

/// Number by number: what is kept between pieces is all that there is to know.
#[test]
fn a_stream_of_any_pieces_is_the_whole() {
    for (generation, change) in [("2.0", ""), ("2.3", ""), ("2.3", "causal_decoder"), ("2.3", "inject_noise")]
    {
        let mut decoder = changed(generation, change);
        let latent = noise(&[1, decoder.statistics().channels(), 11, 3, 2]);
        // A trace has everything at once.
        let whole = decoder.forward(&latent, &mut drawn(), &mut Trace::on()).unwrap().squeeze(&[0]).unwrap();
        assert_eq!(whole.shape(), [81, 96, 64, 3]);
        for piece in [1, 700, 20_000] {
            decoder.piece = piece;
            let chunks = decoder.clone().decode(&latent, &Tiling::OFF, drawn()).unwrap();
            let chunks: Vec<Array> = chunks.map(Result::unwrap).collect();
            assert!(chunks.len() > 1);
            let joined = mlx::concatenate(&chunks.iter().collect::<Vec<_>>(), 0).unwrap();
            let worst = largest_difference(&joined, &whole);
            assert!(worst == 0.0, "{generation} {change}, {} pieces: {worst}", chunks.len());
        }
    }
}

/// A decoder whose configuration differs from the file's.
fn changed(generation: &str, change: &str) -> ConvDecoder {
    let path = fixtures().join(generation).join("model.safetensors");
    let mut value = File::open(&path).unwrap().config().unwrap();
    let (weights, _) = checkpoint(generation).component(Component::VideoDecoder, Dtype::F32).unwrap();
    if change == "causal_decoder" {
        value["vae"][change] = json!(true);
    }
    if change == "inject_noise" {
        let blocks = value["vae"]["decoder_blocks"].as_array_mut().unwrap();
        for block in blocks.iter_mut().filter(|block| block[0] == "res_x") {
            block[1][change] = json!(true);
        }
        // Strengths that the file lacks.
        return ConvDecoder::load(&Weights::random(Dtype::F32), &Config::new(&path, value)).unwrap();
    }
    ConvDecoder::load(&weights, &Config::new(&path, value)).unwrap()
}

#[test]
fn an_encoder_takes_a_video_in_parts() {
    for generation in ["2.0", "2.3"] {
        let (weights, config) =
            checkpoint(generation).component(Component::VideoEncoder, Dtype::F32).unwrap();
        let mut encoder = Encoder::load(&weights, &config).unwrap();
        let pixels = noise(&[2, 28, 32, 96, 3]); // 25 and a rest
        let whole = encoder.forward(&pixels).unwrap();
        assert_eq!(whole.dim(2), 4);
        for (piece, length) in [(1, 28), (usize::MAX, 1), (20_000, 5), (usize::MAX, 9)] {
            encoder.piece = piece;
            let parts = (0..28)
                .step_by(length)
                .map(|start| Ok(pixels.slice(1, start..28.min(start + length as i32))?));
            let latent = encoder.encode(parts).unwrap();
            assert_eq!(latent.to_f32().unwrap(), whole.to_f32().unwrap(), "{generation}, {length} at a time");
        }
        assert!(encoder.encode([]).is_err());
        let stops = [Ok(pixels.clone()), Err(Error::request("no more", ""))];
        assert!(encoder.encode(stops).unwrap_err().to_string().contains("no more"));
    }
}

/// Convolutions reach about eight latent elements, so beyond those a tile cannot know that it is one.
#[test]
fn spatial_tiles_are_the_whole_away_from_seams() {
    for (generation, height, width) in [("2.0", 2, 13), ("2.3", 11, 2)] {
        let decoder = decoder(generation);
        let latent = noise(&[1, decoder.statistics().channels(), 2, height, width]);
        let whole = whole(&decoder, &latent);
        // Tiles 0..10 and 8.., blended over 8..10.
        let tiling = Tiling { spatial: Some((320, 64)), temporal: None };
        let tiled = chunks(&decoder, &latent, tiling).remove(0);
        let axis = if height > width { 1 } else { 2 };
        let near = |x: &Array, range| x.slice(axis, range).unwrap();
        let away = largest_difference(&near(&whole, 0..32), &near(&tiled, 0..32));
        let seam = largest_difference(&near(&whole, 256..320), &near(&tiled, 256..320));
        assert!(away < 2e-5, "{generation}: {away}");
        assert!(seam > away, "{generation}: the clip was not tiled");
    }
}

#[test]
fn temporal_tiles_are_the_whole_away_from_seams() {
    let decoder = decoder("2.3");
    let latent = noise(&[1, decoder.statistics().channels(), 14, 2, 1]);
    let tiling = Tiling { spatial: None, temporal: Some((96, 16)) };
    // Latent frames 0..12 and 9..14: the second tile's first frame is the 72nd.
    let joined = |chunks: Vec<Array>| mlx::concatenate(&chunks.iter().collect::<Vec<_>>(), 0).unwrap();
    let tiled = joined(chunks(&decoder, &latent, tiling));
    let mut slowly = decoder.clone();
    slowly.piece = 1000;
    let pieces = chunks(&slowly, &latent, tiling);
    assert!(pieces.len() > 9);
    assert_eq!(largest_difference(&joined(pieces), &tiled), 0.0);
    let whole = whole(&decoder, &latent);
    let compare = |from: i32| {
        let near = |x: &Array| x.slice(0, from..from + 9).unwrap();
        largest_difference(&near(&tiled), &near(&whole))
    };
    let (away, seam) = (compare(0), compare(80));
    assert!(away < 2e-5, "{away}");
    assert!(seam > away, "the clip was not tiled");
}

#[test]
fn tilings_that_do_not_fit_are_refused() {
    let decoder = decoder("2.0");
    let channels = decoder.statistics().channels();
    let latent = noise(&[1, channels, 2, 2, 2]);
    let bad = [
        Tiling { spatial: Some((32, 0)), temporal: None },
        Tiling { spatial: Some((100, 32)), temporal: None },
        Tiling { spatial: Some((64, 64)), temporal: None },
        Tiling { spatial: None, temporal: Some((80, 4)) },
        Tiling { spatial: None, temporal: Some((80, -8)) },
    ];
    for tiling in bad {
        let refused = decoder.clone().decode(&latent, &tiling, silent).err().unwrap();
        assert!(matches!(refused, Error::Request { .. }) && refused.remedy().is_some());
    }
    let two = noise(&[2, channels, 2, 2, 2]);
    assert!(decoder.clone().decode(&two, &Tiling::OFF, silent).is_err());
    assert!(decoder.clone().decode(&noise(&[1, channels + 1, 2, 2, 2]), &Tiling::OFF, silent).is_err());
}

/// Mirroring needs a second row.
#[test]
fn a_picture_too_small_to_mirror_is_refused() {
    let decoder = decoder("2.0");
    let latent = noise(&[1, decoder.statistics().channels(), 1, 1, 2]);
    let refused = decoder.forward(&latent, &mut silent, &mut Trace::off()).unwrap_err();
    assert!(matches!(refused, Error::Request { .. }), "{refused}");
}

#[test]
fn eight_bits_are_rounded_and_clamped() {
    let values = [-3.0f32, -1.0, -0.998, 0.0, 0.5, 1.0, 7.0, 0.25, -0.25, 0.1, 0.2, 0.3];
    let frames = rgb8(&Array::from_slice(&values, &[2, 1, 2, 3]).unwrap()).unwrap();
    assert_eq!(frames, [vec![0, 0, 0, 128, 191, 255], vec![255, 159, 96, 140, 153, 166]]);
}

/// Loads both networks of the 2.3 fixture with its configuration changed.
fn load_with(change: impl Fn(&mut Value)) -> [Result<()>; 2] {
    let path = fixtures().join("2.3/model.safetensors");
    let mut value = File::open(&path).unwrap().config().unwrap();
    change(&mut value["vae"]);
    let config = Config::new(&path, value);
    let checkpoint = checkpoint("2.3");
    let (encoder, _) = checkpoint.component(Component::VideoEncoder, Dtype::F32).unwrap();
    let (decoder, _) = checkpoint.component(Component::VideoDecoder, Dtype::F32).unwrap();
    [Encoder::load(&encoder, &config).map(drop), ConvDecoder::load(&decoder, &config).map(drop)]
}

#[test]
fn hostile_configurations_are_errors_that_name_the_file() {
    let lists = [
        json!(null),
        json!({}),
        json!([]),
        json!([["res_x"]]),
        json!([[7, 1]]),
        json!(["res_x"]),
        json!([["no_such_block", {"num_layers": 1}]]),
        json!([["attn_res_x", {"num_layers": 1}]]),
        json!([["res_x", {}]]),
        json!([["res_x", 0]]),
        json!([["res_x", {"num_layers": 0}]]),
        json!([["res_x", {"num_layers": -1}]]),
        json!([["res_x", {"num_layers": "4"}]]),
        json!([["res_x", {"num_layers": 1, "inject_noise": 1}]]),
        json!([["compress_all", {"multiplier": 0}]]),
        json!([["compress_all", {"multiplier": 2147483647}], ["res_x_y", {"multiplier": 2147483647}]]),
        json!([["res_x_y", {"multiplier": 3}]]),
        json!([["compress_all", {"multiplier": 16, "residual": true}]]),
        json!([["compress_space_res", {"multiplier": 3}]]),
        json!(vec![json!(["compress_all", 1]); 40]),
    ];
    for list in lists {
        let results = load_with(|vae| {
            vae["encoder_blocks"] = list.clone();
            vae["decoder_blocks"] = list.clone();
        });
        for result in results {
            let error = result.expect_err(&list.to_string());
            assert!(matches!(error, Error::File { .. }), "{list}: {error}");
            assert!(error.to_string().contains("2.3/model.safetensors"), "{list}: {error}");
        }
    }
    let settings = [
        ("patch_size", json!(0)),
        ("patch_size", json!(2147483647)),
        ("latent_channels", json!(-4)),
        ("latent_channels", json!(2147483647)),
        ("norm_layer", json!("group_norm")),
        ("dims", json!([2, 1])),
        ("spatial_padding_mode", json!("circular")),
    ];
    for (key, value) in settings {
        for result in load_with(|vae| vae[key] = value.clone()) {
            let error = result.expect_err(key);
            assert!(matches!(error, Error::File { .. }), "{key}: {error}");
        }
    }
    let [encoder, decoder] = load_with(|vae| vae["_class_name"] = json!("CausalDiffusionVAE"));
    assert!(encoder.is_ok());
    assert!(decoder.unwrap_err().to_string().contains("CausalDiffusionVAE"));
    let [encoder, _] = load_with(|vae| vae["latent_log_var"] = json!("none"));
    assert!(encoder.is_err());
}
