//! What must hold for the transformer whatever its weights: properties, beside the goldens of `parity.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ltx::checkpoint::{Checkpoint, Component};
use ltx::dit::{
    Conditions, Config, Dit, Frequencies, Input, Pass, Perturbation, Prepared, Rope, TextModulation,
};
use ltx::shape::Modality;
use ltx::trace::Trace;
use ltx::verify::Golden;
use ltx::{Error, Result, checkpoint};
use mlx::{Array, Dtype};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn load(path: &Path) -> Dit {
    mlx::device::set(mlx::device::Device::Cpu).unwrap();
    let checkpoint = Checkpoint::open(&[path]).unwrap();
    let (weights, config) = checkpoint.component(Component::Dit, Dtype::F32).unwrap();
    let dit = Dit::load(&weights, &config).unwrap();
    weights.finish(Component::Dit.unread()).unwrap();
    dit
}

fn model(generation: &str) -> Dit {
    load(&fixtures().join(generation).join("model.safetensors"))
}

/// One modality's part of a golden's inputs, free to be changed.
struct Given {
    latent: Array,
    timesteps: Array,
    sigma: Array,
    positions: Array,
    context: Array,
    attention_mask: Option<Array>,
    keyframes_mask: Option<Array>,
    modality: Modality,
}

impl Given {
    fn new(generation: &str, case: &str, modality: Modality) -> Self {
        let golden =
            Golden::open(&fixtures().join(format!("goldens/{generation}-dit-{case}.safetensors"))).unwrap();
        let array = |name: &str| golden.array(&format!("in.{modality}_{name}")).unwrap();
        Self {
            latent: array("latent"),
            timesteps: array("timesteps"),
            sigma: array("sigma"),
            positions: array("positions"),
            context: array("context"),
            attention_mask: None,
            keyframes_mask: None,
            modality,
        }
    }

    fn both(generation: &str, case: &str) -> [Self; 2] {
        [Modality::Video, Modality::Audio].map(|modality| Self::new(generation, case, modality))
    }

    /// Sample `i` of a batch made of three different ones.
    fn sample(&self, i: i32) -> Self {
        let factor = [1.0f32, 0.5, -0.25][i as usize];
        let sigma = [1.0f32, 0.75, 0.5][i as usize];
        Self {
            latent: self.latent.multiply(factor).unwrap(),
            timesteps: self.timesteps.multiply(sigma).unwrap(),
            sigma: self.sigma.multiply(sigma).unwrap(),
            context: self.context.multiply(factor).unwrap(),
            positions: self.positions.clone(),
            attention_mask: None,
            keyframes_mask: None,
            modality: self.modality,
        }
    }

    fn batch(samples: &[Self]) -> Self {
        let join = |part: fn(&Self) -> &Array| {
            mlx::concatenate(&samples.iter().map(part).collect::<Vec<_>>(), 0).unwrap()
        };
        Self {
            latent: join(|sample| &sample.latent),
            timesteps: join(|sample| &sample.timesteps),
            sigma: join(|sample| &sample.sigma),
            context: join(|sample| &sample.context),
            positions: samples[0].positions.clone(), // a batch of 1 serves all
            attention_mask: None,
            keyframes_mask: None,
            modality: samples[0].modality,
        }
    }

    fn prepare(&self, dit: &Dit) -> Result<Prepared> {
        let conditions = Conditions {
            positions: &self.positions,
            context: &self.context,
            attention_mask: self.attention_mask.as_ref(),
            keyframes_mask: self.keyframes_mask.as_ref(),
        };
        dit.prepare(self.modality, &conditions)
    }

    fn input<'a>(&'a self, prepared: &'a Prepared) -> Input<'a> {
        Input { latent: &self.latent, timesteps: &self.timesteps, sigma: &self.sigma, prepared }
    }
}

/// Velocities of what is given, in the order given.
fn run(dit: &Dit, given: &[Given], perturbations: &[Perturbation]) -> Vec<Array> {
    let prepared: Vec<Prepared> = given.iter().map(|given| given.prepare(dit).unwrap()).collect();
    let input = |modality| {
        given
            .iter()
            .zip(&prepared)
            .find(|(given, _)| given.modality == modality)
            .map(|(given, prepared)| given.input(prepared))
    };
    let (video, audio) = (input(Modality::Video), input(Modality::Audio));
    let pass = Pass { video, audio, perturbations: perturbations.to_vec() };
    let (video, audio) = dit.forward(&pass, &mut Trace::off()).unwrap();
    video.into_iter().chain(audio).collect()
}

/// ‖a − b‖ / ‖b‖
fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn assert_same(a: &Array, b: &Array) {
    let difference = difference(a, b);
    assert!(difference < 1e-5, "relative difference {difference:e}");
}

fn assert_differs(a: &Array, b: &Array) {
    let difference = difference(a, b);
    assert!(difference > 1e-3, "relative difference {difference:e}");
}

#[test]
fn isolated_modalities_equal_modalities_alone() {
    for generation in ["2.0", "2.3"] {
        let dit = model(generation);
        let both = Given::both(generation, "t2v");
        let isolated =
            run(&dit, &both, &[Perturbation { skip_cross_modal: true, ..Perturbation::default() }]);
        let together = run(&dit, &both, &[]);
        for (index, given) in both.into_iter().enumerate() {
            let alone = run(&dit, &[given], &[]);
            assert_same(&isolated[index], &alone[0]);
            assert_differs(&together[index], &alone[0]);
        }
    }
}

#[test]
fn a_mask_of_ones_is_no_mask() {
    let dit = model("2.3");
    let [mut video, audio] = Given::both("2.3", "i2v");
    let tokens = video.latent.dim(1);
    let free = run(&dit, &Given::both("2.3", "i2v"), &[]);
    video.attention_mask = Some(mlx::full(&[1, tokens, tokens], 1.0, Dtype::F32).unwrap());
    let masked = run(&dit, &[video, audio], &[]);
    assert_same(&masked[0], &free[0]);
    assert_same(&masked[1], &free[1]);
    // With no attention anywhere, scores vanish beside the lowest number, and all tokens count alike.
    let [mut video, audio] = Given::both("2.3", "i2v");
    video.attention_mask = Some(mlx::zeros(&[1, tokens, tokens], Dtype::F32).unwrap());
    assert_differs(&run(&dit, &[video, audio], &[])[0], &free[0]);
}

#[test]
fn a_batch_with_perturbations_per_sample_equals_its_samples() {
    for generation in ["2.0", "2.3"] {
        let dit = model(generation);
        let [video, audio] = Given::both(generation, "i2v");
        let perturbations = [
            Perturbation::default(),
            Perturbation {
                skip_video_self_attention: vec![1],
                skip_audio_self_attention: vec![0, 1],
                ..Perturbation::default()
            },
            Perturbation { skip_cross_modal: true, ..Perturbation::default() },
        ];
        let samples = |given: &Given| [0, 1, 2].map(|i| given.sample(i));
        let (videos, audios) = (samples(&video), samples(&audio));
        let batch = run(&dit, &[Given::batch(&videos), Given::batch(&audios)], &perturbations);
        for (i, (video, audio)) in videos.into_iter().zip(audios).enumerate() {
            let i = i as i32;
            let plain = run(&dit, &[video.sample(0), audio.sample(0)], &[]);
            let alone = run(&dit, &[video, audio], &perturbations[i as usize..][..1]);
            for (modality, velocity) in alone.iter().enumerate() {
                assert_same(&batch[modality].slice(0, i..i + 1).unwrap(), velocity);
                if i > 0 {
                    assert_differs(&plain[modality], velocity);
                }
            }
        }
    }
}

/// A copy of the tiny 2.3 file with changed tensors and configuration, in the way that 2.5 files differ.
fn rewritten(
    folder: &Path,
    change_tensors: impl Fn(&mut HashMap<String, (Vec<usize>, Vec<f32>)>),
    change_config: impl Fn(&mut serde_json::Value),
) -> PathBuf {
    let bytes = std::fs::read(fixtures().join("2.3/model.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let mut config = serde_json::from_str(&metadata["config"]).unwrap();
    change_config(&mut config);
    metadata.insert("config".into(), config.to_string());
    let source = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: HashMap<String, (Vec<usize>, Vec<f32>)> = source
        .tensors()
        .into_iter()
        .filter(|(key, _)| key.starts_with("model.diffusion_model.") && !key.contains("_connector."))
        .map(|(key, view)| {
            let values = match view.dtype() {
                safetensors::Dtype::BF16 => view
                    .data()
                    .chunks_exact(2)
                    .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect(),
                safetensors::Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
                other => panic!("{key} is {other:?}"),
            };
            (key, (view.shape().to_vec(), values))
        })
        .collect();
    change_tensors(&mut tensors);
    let views = tensors.iter().map(|(key, (shape, values))| {
        (key, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
    });
    let path = folder.join(format!("{}.safetensors", tensors.len()));
    safetensors::serialize_to_file(views, Some(metadata), &path).unwrap();
    path
}

#[test]
fn keyframe_tokens_get_their_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let mark = |width: usize| (0..width).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let marked = rewritten(
        folder.path(),
        |tensors| {
            let width = tensors["model.diffusion_model.patchify_proj.bias"].0[0];
            let key = "model.diffusion_model.keyframes_abs_pos_embedding".into();
            tensors.insert(key, (vec![1, width], mark(width)));
        },
        |config| config["transformer"]["use_keyframes_abs_pos_embedding"] = true.into(),
    );
    let biased = rewritten(
        folder.path(),
        |tensors| {
            let (_, bias) = tensors.get_mut("model.diffusion_model.patchify_proj.bias").unwrap();
            let mark = mark(bias.len());
            bias.iter_mut().zip(mark).for_each(|(bias, mark)| *bias += mark);
        },
        |_| {},
    );
    let (marked, biased, plain) = (load(&marked), load(&biased), model("2.3"));
    let given = |value: Option<f64>| {
        let [mut video, audio] = Given::both("2.3", "i2v");
        let shape = [1, video.latent.dim(1)];
        video.keyframes_mask = value.map(|value| mlx::full(&shape, value, Dtype::F32).unwrap());
        [video, audio]
    };
    // All tokens marked: as if the projection in had that much more bias. None marked: as if there were no embedding.
    let expected = run(&biased, &given(None), &[]);
    assert_same(&run(&marked, &given(Some(0.5)), &[])[0], &expected[0]);
    let expected = run(&plain, &given(None), &[]);
    assert_same(&run(&marked, &given(Some(0.0)), &[])[0], &expected[0]);
    assert_same(&run(&marked, &given(None), &[])[0], &expected[0]);
    assert_same(&run(&plain, &given(Some(1.0)), &[])[0], &expected[0]);
    assert_differs(&run(&marked, &given(Some(1.0)), &[])[0], &expected[0]);
}

#[test]
fn video_feed_forward_may_lack_biases() {
    let folder = tempfile::tempdir().unwrap();
    let is_bias = |key: &str| key.contains(".ff.net.") && key.ends_with(".bias");
    let without = rewritten(
        folder.path(),
        |tensors| tensors.retain(|key, _| !is_bias(key)),
        |config| config["transformer"]["ff_bias"] = false.into(),
    );
    let zeroed = rewritten(
        folder.path(),
        |tensors| {
            tensors.iter_mut().filter(|(key, _)| is_bias(key)).for_each(|(_, (_, values))| values.fill(0.0))
        },
        |_| {},
    );
    let given = || Given::both("2.3", "t2v");
    let (without, zeroed) = (run(&load(&without), &given(), &[]), run(&load(&zeroed), &given(), &[]));
    assert_same(&without[0], &zeroed[0]);
    assert_same(&without[1], &zeroed[1]);
    assert_differs(&zeroed[0], &run(&model("2.3"), &given(), &[])[0]);
}

fn config(name: &str, change: impl Fn(&mut serde_json::Value)) -> Result<Config> {
    let path = fixtures().join("configs").join(name);
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    Config::new(&checkpoint::Config::new(&path, value))
}

#[test]
fn the_shipped_configurations_are_understood() {
    let old = config("ltx-2-19b.json", |_| {}).unwrap();
    let new = config("ltx-2.3-22b.json", |_| {}).unwrap();
    let newest = config("ltx-2.5-22b.json", |_| {}).unwrap();
    for config in [&old, &new, &newest] {
        assert_eq!((config.layers, config.gate_timestep_scale, config.timestep_scale), (48, 1000.0, 1000.0));
        assert_eq!((config.video.width(), config.audio.width(), config.audio.in_channels), (4096, 2048, 128));
    }
    assert_eq!((old.gated, old.text_modulation, old.modulation_rows()), (false, TextModulation::None, 6));
    assert_eq!((new.gated, new.text_modulation, new.modulation_rows()), (true, TextModulation::Timed, 9));
    assert_eq!(
        (old.video.context_width(), new.video.context_width(), new.audio.context_width()),
        (3840, 4096, 2048)
    );
    assert_eq!((old.video.keyframes, new.video.keyframes, newest.video.keyframes), (false, false, true));
    assert!(new.video.feed_forward_bias != newest.video.feed_forward_bias);
    assert!(new.audio.feed_forward_bias == newest.audio.feed_forward_bias);
}

#[test]
fn a_configuration_that_is_not_understood_is_refused_by_key() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 6] = [
        ("av_ca_timestep_scale_multiplier", |c| {
            drop(c.as_object_mut().unwrap().remove("av_ca_timestep_scale_multiplier"))
        }),
        ("num_layers", |c| drop(c.as_object_mut().unwrap().remove("num_layers"))),
        ("rope_type", |c| c["rope_type"] = "interleaved".into()),
        ("frequencies_precision", |c| drop(c.as_object_mut().unwrap().remove("frequencies_precision"))),
        ("audio_num_attention_heads", |c| {
            (c["audio_num_attention_heads"], c["audio_attention_head_dim"]) = (16.into(), 128.into());
        }),
        ("attention_head_dim", |c| c["attention_head_dim"] = 2_000_000_000.into()),
    ];
    for (key, change) in changes {
        let error = config("ltx-2.3-22b.json", |value| change(&mut value["transformer"])).unwrap_err();
        assert!(error.to_string().contains(&format!("config.transformer.{key}")), "{error}");
    }
}

#[test]
fn inputs_of_another_model_are_refused() {
    let dit = model("2.3");
    let refused = |given: Given| {
        let error = given.prepare(&dit).unwrap_err();
        assert!(matches!(error, Error::Request { .. }), "{error}");
    };
    let video = || Given::new("2.3", "t2v", Modality::Video);
    let audio = || Given::new("2.3", "t2v", Modality::Audio);
    refused(Given { context: audio().context, ..video() });
    refused(Given { positions: audio().positions, ..video() });
    let prepared = video().prepare(&dit).unwrap();
    let forward = |given: &Given, perturbations: &[Perturbation]| {
        let input = given.input(&prepared);
        let pass = Pass { video: Some(input), audio: None, perturbations: perturbations.to_vec() };
        dit.forward(&pass, &mut Trace::off()).map(|_| ())
    };
    for given in
        [Given { latent: audio().latent, ..video() }, Given { timesteps: audio().timesteps, ..video() }]
    {
        assert!(matches!(forward(&given, &[]), Err(Error::Request { .. })));
    }
    let far = Perturbation { skip_video_self_attention: vec![99], ..Perturbation::default() };
    assert!(forward(&video(), &[far]).unwrap_err().to_string().contains("block 99"));
    assert!(forward(&video(), &vec![Perturbation::default(); 2]).is_err());
    assert!(forward(&video(), &[]).is_ok());
}

#[test]
fn rotary_angles_are_dealt_out_by_frequency_then_axis() {
    // Two tokens; their middles are 5 s, 256 down, 768 across and 15 s, 512 down, 0 across.
    let positions = [4.0f32, 6.0, 14.0, 16.0, 240.0, 272.0, 496.0, 528.0, 752.0, 784.0, -16.0, 16.0];
    let positions = Array::from_slice(&positions, &[1, 3, 2, 2]).unwrap();
    let fractions = [[-0.5, -0.75, -0.25], [0.5, -0.5, -1.0]];
    let frequencies =
        Frequencies { heads: 2, head_dim: 8, theta: 100.0, max_positions: &[20.0, 2048.0, 2048.0] };
    let rope = Rope::new(&positions, &frequencies, Dtype::F32).unwrap();
    let row = [1.0f32, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]; // turned, the halves are cosines and sines
    let x = Array::from_slice(&row.repeat(4), &[1, 2, 2, 8]).unwrap(); // (batch, tokens, heads, head_dim)
    let undo = Array::from_slice(&[0.5f32.sqrt(); 8], &[8]).unwrap(); // the mean of a row's squares is ½
    let turned = rope.rotate_normed(&x, &undo, 0.0).unwrap().to_f32().unwrap();
    let quarter = std::f64::consts::FRAC_PI_2;
    for (token, [t, y, x]) in fractions.into_iter().enumerate() {
        let (low, high) = (quarter, 100.0 * quarter);
        let angles = [0.0, 0.0, low * t, low * y, low * x, high * t, high * y, high * x];
        for (pair, angle) in angles.into_iter().enumerate() {
            let place = (token * 2 + pair / 4) * 8 + pair % 4;
            let (cos, sin) = (f64::from(turned[place]), f64::from(turned[place + 4]));
            assert!((cos - angle.cos()).abs() < 1e-5 && (sin - angle.sin()).abs() < 1e-5, "{token} {pair}");
        }
    }
}
