//! Text that Gemma writes, token by token: each is chosen from what the tokens before say of it.

use std::ops::ControlFlow;

use super::Gemma;
use super::gemma::Past;
use crate::error::{Error, Result};
use crate::noise::Noise;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits: lower is more predictable, 0 takes the likeliest token always.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are considered.
    pub top_k: usize,
    /// Of those, the likeliest that together have this share of the probability.
    pub top_p: f64,
    /// The same seed gives the same text.
    pub seed: u64,
    /// The text is cut after so many tokens.
    pub max_tokens: usize,
}

impl Sampling {
    /// The likeliest token always.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { temperature: 0.0, max_tokens, ..Self::enhancement(0) }
    }

    /// As the official pipelines enhance prompts, with the selection that Gemma 3 recommends.
    pub fn enhancement(seed: u64) -> Self {
        Self { temperature: 0.7, top_k: 64, top_p: 0.95, seed, max_tokens: 512 }
    }

    /// The next token.
    fn choose(&self, logits: &[f32], noise: &mut Noise) -> Option<u32> {
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        let value = |index: &usize| logits.get(*index).copied().unwrap_or(f32::NEG_INFINITY);
        ranked.sort_by(|a, b| value(b).total_cmp(&value(a)));
        let first = *ranked.first()?;
        if self.temperature <= 0.0 {
            return u32::try_from(first).ok();
        }
        ranked.truncate(self.top_k.max(1));
        let highest = f64::from(value(&first));
        let weights: Vec<f64> = ranked
            .iter()
            .map(|index| libm::exp((f64::from(value(index)) - highest) / self.temperature))
            .collect();
        let all: f64 = weights.iter().sum();
        // The last token that counts is the one that reaches the share.
        let mut sum = 0.0;
        let reached = weights.iter().position(|weight| {
            sum += weight / all;
            sum >= self.top_p
        });
        let count = reached.map_or(weights.len(), |last| last + 1);
        let mut left = noise.uniform() * weights.iter().take(count).sum::<f64>();
        let chosen = ranked.iter().zip(&weights).take(count).find(|(_, weight)| {
            left -= **weight;
            left < 0.0
        });
        u32::try_from(*chosen.map_or(&first, |(index, _)| index)).ok()
    }
}

impl Gemma {
    /// The tokens that follow `ids`, up to one of `stop` (left out) or as many as `sampling` allows. `written` hears how
    /// many there are after each, and can stop it.
    pub fn write(
        &self,
        ids: &[u32],
        stop: &[u32],
        sampling: &Sampling,
        written: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let mut noise = Noise::stream(sampling.seed, 3);
        let (mut past, mut tokens) = (Past::default(), Vec::new());
        let mut next = ids.to_vec();
        while tokens.len() < sampling.max_tokens && !next.is_empty() {
            let logits = self.next(&next, &mut past)?;
            if logits.iter().any(|logit| !logit.is_finite()) {
                let tensor = format!("what it says of token {}", tokens.len());
                return Err(Error::NotFinite { component: "gemma", tensor, step: None });
            }
            match sampling.choose(&logits, &mut noise) {
                Some(token) if !stop.contains(&token) => {
                    tokens.push(token);
                    next = vec![token];
                }
                _ => break,
            }
            if written(tokens.len()).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut noise = Noise::new(sampling.seed);
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            counts[sampling.choose(logits, &mut noise).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn tokens_are_drawn_by_their_probability() {
        let logits = [0.0, 2.0, 1.0, -1.0];
        let all = Sampling { temperature: 1.0, top_k: 9, top_p: 1.0, seed: 4, max_tokens: 1 };
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts(all, &logits).into_iter().zip(&weights) {
            let expected = 4000.0 * weight / sum;
            assert!((count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{count}, not about {expected}");
        }
        let cold = counts(Sampling { temperature: 0.25, ..all }, &logits);
        assert!(cold[1] > 3850 && cold[2] > 0, "{cold:?}");
    }

    /// The prompt at once, then a token at a time: what is remembered must not change what is said.
    #[test]
    fn logits_are_those_of_transformers() {
        use std::path::Path;

        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let folder = crate::text::GemmaFolder::open(&fixtures.join("gemma3")).unwrap();
        let gemma = Gemma::load(&folder.weights(mlx::Dtype::F32), &folder).unwrap();
        let golden = crate::checkpoint::File::open(&fixtures.join("gemma3-greedy.safetensors")).unwrap();
        for case in 0..3 {
            let array = |name: &str| golden.array(&format!("{case}.{name}")).unwrap();
            let ids = |name: &str| -> Vec<u32> {
                array(name).to_vec::<i32>().unwrap().into_iter().map(|id| id as u32).collect()
            };
            let (mut next, tokens, logits) = (ids("ids"), ids("tokens"), array("logits").to_f32().unwrap());
            let mut past = Past::default();
            for (token, expected) in tokens.into_iter().zip(logits.chunks(gemma.vocabulary() as usize)) {
                let ours = gemma.next(&next, &mut past).unwrap();
                let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(ours.len() == expected.len() && worst < 1e-4, "{case}: a logit differs by {worst}");
                next = vec![token];
            }
        }
    }

    #[test]
    fn unlikely_tokens_are_left_out() {
        let logits = [0.0, 2.0, 1.0, -1.0];
        let all = Sampling { temperature: 1.0, top_k: 9, top_p: 1.0, seed: 4, max_tokens: 1 };
        let never = |counts: Vec<usize>| counts.iter().filter(|&&count| count == 0).count();
        assert_eq!(never(counts(all, &logits)), 0);
        assert_eq!(never(counts(Sampling { top_k: 3, ..all }, &logits)), 1);
        // Their shares are 0.09, 0.64, 0.24, 0.03.
        assert_eq!(never(counts(Sampling { top_p: 0.7, ..all }, &logits)), 2);
        assert_eq!(never(counts(Sampling { top_p: 0.0, ..all }, &logits)), 3);
        assert_eq!(counts(Sampling { temperature: 0.0, ..all }, &logits), [0, 4000, 0, 0]);
        assert_eq!(all.choose(&[], &mut Noise::new(1)), None);
    }
}
