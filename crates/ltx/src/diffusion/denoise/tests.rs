//! The loop against a network that knows the answer.

use super::*;
use crate::diffusion::schedule::{DISTILLED, Schedule};
use crate::diffusion::step::SeededStepNoise;
use crate::noise::Noise;
use crate::shape::{AudioShape, LatentShape};

const SHAPE: LatentShape = LatentShape { frames: 2, height: 2, width: 3 };

fn draw(shape: &[i32], seed: u64) -> Array {
    Noise::new(seed).normal(shape).unwrap()
}

fn states() -> Both<LatentState> {
    let video = LatentState::video(SHAPE, 4, 24.0).unwrap();
    let audio = LatentState::audio(AudioShape { frames: 5 }, 3).unwrap();
    Both { video: Some(video), audio: Some(audio) }
}

fn noised(states: Both<LatentState>) -> Both<LatentState> {
    states.try_map(|_, state| state.clone().noised(&draw(state.noise_shape(), 9), 1.0)).unwrap()
}

fn target(modality: Modality, input: &Input) -> Array {
    draw(input.latent.shape(), 20 + modality as u64)
}

/// A network that knows the answer: the velocity from the target, whatever the noise.
fn oracle(passes: &[Pass], inputs: &Both<Input>) -> Result<Vec<Both<Array>>> {
    let answer = inputs.try_map(|modality, input| {
        // Tokens without noise have no velocity; the floor keeps theirs finite.
        let sigma = input.timesteps.maximum(1e-6f32)?.expand_dims(&[-1])?;
        Ok::<_, Error>(input.latent.subtract(target(modality, input))?.divide(&sigma)?)
    })?;
    Ok(passes.iter().map(|_| answer.clone()).collect())
}

fn run(
    denoise: &Denoise,
    states: Both<LatentState>,
    denoiser: &mut dyn Denoiser,
) -> Result<Both<LatentState>> {
    let mut noise = SeededStepNoise::new(denoise.sampler, 1);
    denoise.run(states, denoiser, &mut noise, &mut |_, _| ControlFlow::Continue(()))
}

fn worst(a: &Array, b: &Array) -> f32 {
    a.subtract(b).unwrap().abs().unwrap().max(&[0, 1, 2], false).unwrap().item().unwrap()
}

#[test]
fn every_sampler_reaches_what_the_network_knows() {
    let sigmas = Schedule::Ltx2.sigmas(12, 18).unwrap();
    for sigmas in [DISTILLED.to_vec(), sigmas] {
        for sampler in Sampler::OFFICIAL {
            let guided = Guidance { cfg: 3.0, stg: 1.0, stg_blocks: vec![1], modality: 3.0, ..Guidance::OFF };
            let guidance = Both { video: Some(guided), audio: None };
            let denoise = Denoise { sampler, sigmas: &sigmas, guidance };
            let end = run(&denoise, noised(states()), &mut oracle).unwrap();
            for (modality, state) in end.iter() {
                let expected = draw(state.latent.shape(), 20 + modality as u64);
                assert!(worst(&state.latent, &expected) < 1e-4, "{} {}", sampler.name(), modality.name());
            }
        }
    }
}

#[test]
fn known_and_frozen_tokens_never_change() {
    let (picture, sound) = (draw(&[1, 6, 4], 3), draw(&[1, 5, 3], 4));
    for sampler in Sampler::OFFICIAL {
        let Both { video, audio } = states();
        let video = video.unwrap().with_frames(&picture, SHAPE, 0, 1.0).unwrap();
        let audio = audio.unwrap().frozen_at(&sound).unwrap();
        let states = noised(Both { video: Some(video), audio: Some(audio) });
        let mut sigmas_seen = Vec::new();
        let mut network = |passes: &[Pass], inputs: &Both<Input>| {
            let audio = inputs.audio.as_ref().unwrap();
            sigmas_seen.push(audio.sigma.item()? + audio.timesteps.sum(&[0, 1], false)?.item()?);
            let video = inputs.video.as_ref().unwrap();
            assert_eq!(video.timesteps.to_f32()?[..6], [0.0; 6]);
            oracle(passes, inputs)
        };
        let denoise = Denoise { sampler, sigmas: &DISTILLED, guidance: Both::default() };
        let end = run(&denoise, states, &mut network).unwrap();
        let (video, audio) = (end.video.unwrap().latent, end.audio.unwrap().latent);
        assert_eq!(video.to_f32().unwrap()[..24], picture.to_f32().unwrap(), "{}", sampler.name());
        assert_eq!(audio.to_f32().unwrap(), sound.to_f32().unwrap(), "{}", sampler.name());
        assert!(sigmas_seen.iter().all(|&sigma| sigma == 0.0));
    }
}

#[test]
fn skipped_steps_reuse_the_answer_and_do_not_ask() {
    let guidance = Guidance { skip: 2, ..Guidance::OFF };
    let asks = |guidance: Both<Guidance>, states: Both<LatentState>| {
        let mut calls = 0;
        let mut network = |passes: &[Pass], inputs: &Both<Input>| {
            calls += 1;
            oracle(passes, inputs)
        };
        run(&Denoise { sampler: Sampler::Euler, sigmas: &DISTILLED, guidance }, states, &mut network)
            .unwrap();
        calls
    };
    let both = Both { video: Some(guidance.clone()), audio: Some(guidance.clone()) };
    assert_eq!(asks(both, noised(states())), 3);
    let video = Both { video: Some(guidance), audio: None };
    assert_eq!(asks(video.clone(), noised(states())), 8);
    assert_eq!(asks(video, Both { audio: None, ..noised(states()) }), 3);
}

#[test]
fn a_latent_that_is_no_number_is_named_with_its_step() {
    let mut calls = 0;
    let mut network = |passes: &[Pass], inputs: &Both<Input>| {
        calls += 1;
        let mut answers = oracle(passes, inputs)?;
        if calls == 3 {
            let audio = answers[0].audio.take();
            answers[0].audio = audio.map(|audio| audio.multiply(f32::NAN)).transpose()?;
        }
        Ok(answers)
    };
    let denoise = Denoise { sampler: Sampler::Euler, sigmas: &DISTILLED, guidance: Both::default() };
    let error = run(&denoise, noised(states()), &mut network).unwrap_err();
    assert_eq!(error.to_string(), "the audio latent of the dit is not finite after step 3");
}

#[test]
fn a_run_can_be_stopped_between_and_within_steps() {
    let denoise = Denoise { sampler: Sampler::Euler, sigmas: &DISTILLED, guidance: Both::default() };
    let mut done = Vec::new();
    let mut noise = SeededStepNoise::new(denoise.sampler, 1);
    let stopped = denoise.run(noised(states()), &mut oracle, &mut noise, &mut |step, of| {
        done.push((step, of));
        if step == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(done, [(1, 8), (2, 8)]);
    let mut network = |_: &[Pass], _: &Both<Input>| Err(Error::Cancelled);
    assert!(matches!(run(&denoise, noised(states()), &mut network), Err(Error::Cancelled)));
}

#[test]
fn a_run_goes_on_from_any_moment_to_the_same_bits() {
    let skips = Guidance { skip: 2, ..Guidance::OFF };
    // Answers that depend on the latents and the noise level, so that a latent that is a little off stays so.
    let mut network = |passes: &[Pass], inputs: &Both<Input>| {
        let answer = inputs.try_map(|_, input| {
            let sigma = input.timesteps.expand_dims(&[-1])?;
            Ok::<_, Error>(input.latent.multiply(0.7f32)?.subtract(sigma)?)
        })?;
        Ok(passes.iter().map(|_| answer.clone()).collect())
    };
    for (sampler, guidance) in Sampler::OFFICIAL.into_iter().zip([Some(skips), None, None, None]) {
        let guidance = Both { video: guidance.clone(), audio: guidance };
        let denoise = Denoise { sampler, sigmas: &DISTILLED, guidance };
        let mut moments = Vec::new();
        let mut noise = SeededStepNoise::new(sampler, 5);
        let whole = denoise.go_on(noised(states()), None, &mut network, &mut noise, &mut |moment, _| {
            moments.push(moment);
            ControlFlow::Continue(())
        });
        let values = |states: &Both<LatentState>| {
            states.iter().map(|(_, state)| state.latent.to_f32().unwrap()).collect::<Vec<_>>()
        };
        let whole = values(&whole.unwrap());
        assert_eq!(moments.len(), 8);
        for moment in moments {
            let steps = moment.steps;
            let mut noise = SeededStepNoise::new(sampler, 5);
            let mut again = |_: Moment, _| ControlFlow::Continue(());
            // The states as they were before noise was added: a moment has the latents.
            let end = denoise.go_on(states(), Some(moment), &mut network, &mut noise, &mut again);
            assert_eq!(values(&end.unwrap()), whole, "{} from step {steps}", sampler.name());
        }
    }
}

#[test]
fn a_moment_of_another_run_is_refused() {
    let denoise = Denoise { sampler: Sampler::Euler, sigmas: &DISTILLED, guidance: Both::default() };
    let latents = noised(states()).try_map(|_, state| Ok::<_, Error>(state.latent.clone())).unwrap();
    let attempt = |moment: Moment| {
        let mut noise = SeededStepNoise::new(denoise.sampler, 1);
        let mut after = |_: Moment, _| ControlFlow::Continue(());
        denoise.go_on(states(), Some(moment), &mut oracle, &mut noise, &mut after)
    };
    let moment = Moment { steps: 8, latents, ..Moment::default() };
    attempt(moment.clone()).unwrap();
    assert!(attempt(Moment { steps: 9, ..moment.clone() }).is_err());
    let silent = Both { audio: None, ..moment.latents.clone() };
    assert!(attempt(Moment { latents: silent, ..moment.clone() }).is_err());
    let other = Both { video: Some(draw(&[1, 11, 4], 1)), ..moment.latents.clone() };
    assert!(attempt(Moment { latents: other.clone(), ..moment.clone() }).is_err());
    assert!(attempt(Moment { velocities: other, ..moment }).is_err());
}

#[test]
fn sigmas_that_do_not_fall_are_refused() {
    for sigmas in
        [&[][..], &[1.0], &[0.5, 0.5, 0.0], &[0.4, 0.9], &[1.5, 0.0], &[1.0, f32::NAN], &[1.0, -0.1]]
    {
        let denoise = Denoise { sampler: Sampler::Euler, sigmas, guidance: Both::default() };
        assert!(
            matches!(run(&denoise, noised(states()), &mut oracle), Err(Error::Request { .. })),
            "{sigmas:?}"
        );
    }
    let sampler = Sampler::Res2s { eta: 0.5, bong: true };
    let denoise = Denoise { sampler, sigmas: &[0.5, 0.001, 0.0], guidance: Both::default() };
    assert!(run(&denoise, noised(states()), &mut oracle).is_err());
}
