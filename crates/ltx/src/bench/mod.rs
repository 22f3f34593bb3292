//! How fast this machine does the model's work: layers and networks at full width with random weights, one by one.
//!
//! They are the very layers and networks that a clip is made with, in the sizes of generation 2.3; the table of them is in
//! `works`. Nothing is read from files. Arithmetic is counted where it is asked for: in linear layers, convolutions and
//! attention; everything else a network does costs time here and counts for nothing.

mod transformer;
mod works;

pub use works::{WORKS, Work, decode, find};

use std::time::{Duration, Instant};

use mlx::Dtype;
use mlx::device::Device;

use crate::error::Result;
use crate::nn::{self, cpu};

/// How works are measured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of weights and activations, in works that leave the choice.
    pub dtype: Dtype,
    /// How long each work is repeated. It runs three times at least, unless that takes more than a minute.
    pub time: Duration,
}

/// What a work did in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// So many multiplications and additions.
    Operations(f64),
    /// Bytes of memory read.
    Bytes(f64),
}

/// One work, measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Its name.
    pub work: &'static str,
    /// Sizes that the name does not tell.
    pub detail: String,
    /// Seconds of each run, in order of size; at least one.
    pub seconds: Vec<f64>,
    /// What was done per second in the median run, of works that have an amount.
    pub rate: Option<Rate>,
    /// Share of what the processor could compute at most; known where our kernels run.
    pub peak_share: Option<f64>,
    /// The most memory that MLX's arrays took at a time, in bytes, while it was set up and measured.
    pub memory: usize,
    /// Of weights and activations.
    pub dtype: Option<Dtype>,
    /// What computed: an instruction set, `mlx` on the CPU, `metal` or `cuda`.
    pub backend: &'static str,
    /// Threads that computed, on a CPU.
    pub threads: Option<usize>,
}

impl Measured {
    /// Seconds of the run in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        match self.seconds.get(..=middle) {
            Some([.., before, after]) if self.seconds.len().is_multiple_of(2) => (before + after) / 2.0,
            Some([.., median]) => *median,
            _ => f64::NAN,
        }
    }
}

/// Measures a work on the device that is set.
pub fn measure(work: &'static Work, settings: &Settings) -> Result<Measured> {
    mlx::memory::reset_peak();
    let measured = (work.measure)(&Timer { work: work.name, settings: *settings })?;
    mlx::memory::clear_cache()?;
    Ok(Measured { memory: mlx::memory::peak(), ..measured })
}

/// What computes, and on how many threads.
pub fn backend() -> (&'static str, Option<usize>) {
    match mlx::device::current() {
        Device::Gpu if cfg!(target_os = "macos") => ("metal", None),
        Device::Gpu => ("cuda", None),
        Device::Cpu if cpu::active() => (cpu::isa(), Some(cpu::threads())),
        Device::Cpu => ("mlx", Some(1)),
    }
}

/// Times one work.
struct Timer {
    work: &'static str,
    settings: Settings,
}

/// Longer than this no work is repeated, however few its runs.
const PATIENCE: Duration = Duration::from_secs(60);
const MOST_RUNS: usize = 1000;

impl Timer {
    /// Runs a work that computes in `dtype`, once to warm up and then until the time is over.
    fn time(&self, dtype: Dtype, detail: String, mut run: impl FnMut() -> Result<()>) -> Result<Measured> {
        let before = nn::operations();
        run()?;
        let operations = nn::operations() - before;
        let peak = cpu::active().then(|| kernels::measure::peak(dtype == Dtype::Bf16));
        let measured = self.repeat(run)?;
        let rate = operations as f64 / measured.median();
        Ok(Measured {
            detail,
            rate: Some(Rate::Operations(rate)),
            peak_share: peak.map(|peak| rate / peak),
            dtype: Some(dtype),
            ..measured
        })
    }

    /// Runs until the time is over.
    fn repeat(&self, mut run: impl FnMut() -> Result<()>) -> Result<Measured> {
        let (start, mut seconds) = (Instant::now(), Vec::new());
        while seconds.is_empty()
            || (seconds.len() < 3 && start.elapsed() < PATIENCE)
            || (seconds.len() < MOST_RUNS && start.elapsed() < self.settings.time)
        {
            let start = Instant::now();
            run()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let (backend, threads) = backend();
        Ok(Measured {
            work: self.work,
            detail: String::new(),
            seconds,
            rate: None,
            peak_share: None,
            memory: 0,
            dtype: None,
            backend,
            threads,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middles() {
        let median = |seconds: &[f64]| {
            let timer = Timer { work: "", settings: Settings { dtype: Dtype::F32, time: Duration::ZERO } };
            let measured = timer.repeat(|| Ok(())).unwrap();
            assert_eq!(measured.seconds.len(), 3);
            Measured { seconds: seconds.into(), ..measured }.median()
        };
        assert_eq!(median(&[4.0]), 4.0);
        assert_eq!(median(&[1.0, 4.0]), 2.5);
        assert_eq!(median(&[1.0, 2.0, 7.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn names_are_unique_and_found() {
        for work in WORKS {
            assert_eq!(find(work.name).unwrap().what, work.what);
        }
        assert!(find("linear").is_none());
    }

    /// The amount of work is counted, not stated: here it can be told from the sizes.
    #[test]
    fn operations_are_counted() {
        let settings = Settings { dtype: Dtype::Bf16, time: Duration::ZERO };
        let counted = |name| {
            let measured = measure(find(name).unwrap(), &settings).unwrap();
            let Some(Rate::Operations(rate)) = measured.rate else { panic!("{measured:?}") };
            (rate * measured.median()).round()
        };
        assert_eq!(counted("linear-m1-n4096"), 2.0 * 4096.0 * 4096.0);
        assert_eq!(counted("attention-1024-d64"), 4.0 * 32.0 * 1024.0 * 1024.0 * 64.0);
    }
}
