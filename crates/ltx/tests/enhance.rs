//! What Gemma writes: the tokens that transformers writes, and prompts made longer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ltx::Error;
use ltx::checkpoint::{File, Residency, Unread};
use ltx::text::{Gemma, GemmaFolder, Sampling, Scene, enhance};
use mlx::Dtype;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn folder() -> GemmaFolder {
    GemmaFolder::open(&fixtures().join("gemma3")).unwrap()
}

fn gemma() -> Gemma {
    let weights = folder().weights(Dtype::F32);
    let gemma = Gemma::load(&weights, &folder()).unwrap();
    weights.finish(Unread::Refuse).unwrap();
    gemma
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let golden = File::open(&fixtures().join("gemma3-greedy.safetensors")).unwrap();
    let gemma = gemma();
    for case in 0..3 {
        let ids = |name: &str| -> Vec<u32> {
            let array = golden.array(&format!("{case}.{name}")).unwrap();
            array.to_vec::<i32>().unwrap().into_iter().map(|id| id as u32).collect()
        };
        let (prompt, expected) = (ids("ids"), ids("tokens"));
        let sampling = Sampling::greedy(expected.len());
        let go_on = &mut |_| ControlFlow::Continue(());
        assert_eq!(gemma.write(&prompt, &[], &sampling, go_on).unwrap(), expected, "{case}");
        // Written at once or a few tokens at a time, with another past each time.
        let longer = [&prompt[..], &expected[..9]].concat();
        assert_eq!(
            gemma.write(&longer, &[], &sampling, go_on).unwrap()[..expected.len() - 9],
            expected[9..],
            "{case}"
        );
        let stopped = gemma.write(&prompt, &[expected[3]], &sampling, go_on).unwrap();
        let first = expected.iter().position(|token| *token == expected[3]).unwrap();
        assert_eq!(stopped, expected[..first], "{case}");
    }
}

#[test]
fn the_same_seed_writes_the_same_text() {
    let gemma = gemma();
    let write = |seed| {
        let sampling = Sampling { temperature: 1.5, max_tokens: 20, ..Sampling::enhancement(seed) };
        gemma.write(&[2, 300, 310], &[], &sampling, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    assert_eq!(write(1), write(1));
    assert_ne!(write(1), write(2));
    let stopped = gemma.write(&[2, 300], &[], &Sampling::enhancement(1), &mut |done| {
        if done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

/// Each layer keeps what it remembers while its weights come and go.
#[test]
fn streamed_layers_write_the_same_text() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let write = |residency| {
            let silent = &mut |_| ControlFlow::Continue(());
            let sampling = Sampling { max_tokens: 15, ..Sampling::enhancement(11) };
            enhance(&folder().kept(residency), dtype, "slow zoom", Scene::Text, &sampling, silent).unwrap()
        };
        let resident = write(Residency::Resident);
        assert!(resident.len() > 5, "{resident}");
        for ahead in [0, 1, 9] {
            assert_eq!(resident, write(Residency::Streaming { ahead, kept: 0 }), "{dtype}, {ahead} ahead");
        }
    }
}

#[test]
fn prompts_are_enhanced_and_checked_first() {
    let silent = &mut |_| ControlFlow::Continue(());
    let sampling = Sampling { max_tokens: 12, ..Sampling::enhancement(7) };
    let text = enhance(&folder(), Dtype::F32, "slow zoom", Scene::Text, &sampling, silent).unwrap();
    assert!(!text.is_empty());
    assert_eq!(text, enhance(&folder(), Dtype::F32, " slow zoom ", Scene::Text, &sampling, silent).unwrap());
    assert_ne!(text, enhance(&folder(), Dtype::F32, "slow zoom", Scene::Image, &sampling, silent).unwrap());
    let long = "zebra ".repeat(2000);
    let refused = enhance(&folder(), Dtype::F32, &long, Scene::Text, &sampling, silent).unwrap_err();
    assert!(matches!(refused, Error::Request { .. }), "{refused}");
}
