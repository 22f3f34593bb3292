//! Progress on a terminal: one line that is rewritten; plain lines when the output is piped.

use std::io::{IsTerminal, Write, stderr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ltx::checkpoint::Streamed;
use ltx::progress::{Event, Progress};

/// Says something on stderr. That nobody reads it, or that the disk it goes to is full, is no reason to stop working.
macro_rules! say {
    ($($said:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!($($said)*));
    }};
}

/// The same, and a line ends.
macro_rules! sayln {
    ($($said:tt)*) => {
        say!("{}\n", format_args!($($said)*))
    };
}

pub(crate) use {say, sayln};

/// Prints events and watches for Ctrl-C.
pub struct Terminal {
    interactive: bool,
    quiet: bool,
    stop: Arc<AtomicBool>,
    phase: Option<(String, Instant)>,
    streamed: Option<Streamed>,
    finished: Vec<(String, Duration)>,
}

impl Terminal {
    /// Takes over Ctrl-C: the first asks the run to stop at the next step, the second ends the process.
    pub fn new(quiet: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        // Fails only when a handler is already there, in which case Ctrl-C ends the process as usual.
        let _ = ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            sayln!("\nstopping after this step (Ctrl-C again to stop at once)");
        });
        Self {
            interactive: stderr().is_terminal(),
            quiet,
            stop,
            phase: None,
            streamed: None,
            finished: Vec::new(),
        }
    }

    /// How long each phase took so far.
    pub fn finish(mut self) -> Vec<(String, Duration)> {
        self.end_phase();
        self.finished
    }

    fn end_phase(&mut self) {
        let Some((name, since)) = self.phase.take() else { return };
        let (took, streamed) = (since.elapsed(), self.streamed.take());
        if !self.quiet {
            let clear = if self.interactive { "\r\x1b[K" } else { "" };
            let of_which = streamed.map_or_else(String::new, |Streamed { waited, bytes }| {
                format!(" ({} waiting for {:.1} GB of weights)", seconds(waited), bytes as f64 / 1e9)
            });
            sayln!("{clear}{name}: {}{of_which}{}", seconds(took), memory());
        }
        // A phase that comes again, with another part of the clip, counts as one.
        let waited = streamed.map(|streamed| (format!("{name}, waiting for weights"), streamed.waited));
        for (name, took) in [(name, took)].into_iter().chain(waited) {
            match self.finished.iter_mut().find(|(earlier, _)| *earlier == name) {
                Some((_, whole)) => *whole += took,
                None => self.finished.push((name, took)),
            }
        }
    }

    fn step(&self, done: usize, of: usize) {
        let Some((name, since)) = &self.phase else { return };
        let left = since.elapsed().mul_f64(of.saturating_sub(done) as f64 / done.max(1) as f64);
        if self.interactive {
            say!("\r\x1b[K{name}: {done}/{of}, {} left{}", seconds(left), memory());
            let _ = stderr().flush();
        } else {
            sayln!("{name}: {done}/{of}, {} left", seconds(left));
        }
    }
}

impl Progress for Terminal {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Phase { name, .. } => {
                self.end_phase();
                if self.interactive && !self.quiet {
                    say!("{name} …");
                    let _ = stderr().flush();
                }
                self.phase = Some((name, Instant::now()));
            }
            Event::Streamed(streamed) => self.streamed = Some(streamed),
            Event::Step { done, of } if !self.quiet => self.step(done, of),
            Event::Note(note) if !self.quiet => {
                sayln!("{}note: {note}", if self.interactive { "\r\x1b[K" } else { "" });
            }
            _ => {}
        }
        if self.stop.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// `0.4 s`, `37 s`, `12 min 05 s`
pub fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < 119.5 {
        format!("{seconds:.0} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// What may be off by a third: `a second`, `40 s`, `12 min`, `3 h 20 min`
pub fn about(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match seconds {
        ..1.5 => "a second".into(),
        ..10.0 => format!("{seconds:.0} s"),
        ..95.0 => format!("{:.0} s", (seconds / 5.0).round() * 5.0),
        ..3570.0 => format!("{minutes} min"),
        _ => {
            let minutes = (minutes + 5) / 10 * 10;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

/// `1.61 GiB`
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn memory() -> String {
    crate::memory::peak().map_or_else(String::new, |bytes| {
        format!(", peak memory {:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(37)), "37 s");
        assert_eq!(seconds(Duration::from_secs(725)), "12 min 05 s");
    }

    #[test]
    fn what_is_about_is_round() {
        let told = [0.2, 7.4, 41.0, 200.0, 3_580.0, 12_100.0].map(about);
        assert_eq!(told, ["a second", "7 s", "40 s", "3 min", "1 h 00 min", "3 h 20 min"]);
    }
}
