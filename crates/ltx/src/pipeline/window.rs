//! How a clip that is longer than the model makes at once is divided: windows that overlap, each with one prompt. No
//! tensors here; what goes from one window to the next is in `window_tail.rs`.
//!
//! A window begins at the last picture of a latent frame `start` of the clip, so its latent frame j is the clip's
//! `start` + j for every j but 0, which holds that one picture instead of eight. The sound goes the same way, with four
//! mel frames in the place of eight pictures. Positions in time count from the window's own beginning, as in training.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::shape::{AUDIO_LATENTS_PER_SECOND, AudioShape, FRAMES_PER_LATENT, LatentShape, VideoShape};

/// A part of a long clip with a prompt of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Shot {
    /// What it shows and how it sounds; the request's prompt, if there is one, is put before it.
    pub prompt: String,
    /// How long it is, to the nearest eight frames.
    pub seconds: f64,
}

/// The number of frames that the model can make which is nearest to so many seconds.
pub fn frames_of(seconds: f64, frame_rate: f64) -> usize {
    let step = FRAMES_PER_LATENT as f64;
    let steps = ((seconds * frame_rate - 1.0) / step).round();
    // Saturates, and NaN is 0; what is too long is refused with other sizes.
    (steps as usize).saturating_mul(FRAMES_PER_LATENT).saturating_add(1)
}

/// One run of the recipe within a clip. Counts are latent frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Whose prompt it has, from 0.
    pub shot: usize,
    /// Its pictures.
    pub video: Stretch,
    /// Its sound, if there is any.
    pub audio: Option<Stretch>,
}

/// Where a window lies along one modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The clip's latent frame at its beginning.
    pub start: usize,
    /// Its length.
    pub length: usize,
    /// How much of its beginning is there already.
    pub given: usize,
}

impl Stretch {
    /// From a beginning to an end, when the clip reaches to `done` already.
    fn new(start: usize, done: usize, end: usize) -> Self {
        Self { start, length: end - start, given: done - start }
    }

    /// The clip's latent frames that it makes.
    pub fn makes(&self) -> Range<usize> {
        self.start + self.given..self.start + self.length
    }
}

impl Window {
    /// The pictures of the clip that it makes.
    pub fn pictures(&self) -> Range<usize> {
        let Range { start, end } = self.video.makes();
        pictures(start)..pictures(end)
    }

    /// The picture of the clip that is its first.
    pub fn first_picture(&self) -> usize {
        self.video.start * FRAMES_PER_LATENT
    }
}

/// Pictures that so many latent frames hold.
pub fn pictures(latents: usize) -> usize {
    if latents == 0 { 0 } else { (latents - 1) * FRAMES_PER_LATENT + 1 }
}

/// Latent frames whose pictures are the nearest to so many.
fn latents(pictures: f64) -> usize {
    ((pictures - 1.0) / FRAMES_PER_LATENT as f64).round() as usize + 1
}

/// What decides about windows.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// The longest window, in pictures.
    pub longest: usize,
    /// How much of the last window the next one is given, in pictures; `None` decides by `longest`.
    pub overlap: Option<usize>,
    /// None for a clip of one prompt.
    pub shots: &'a [Shot],
    pub frame_rate: f64,
    pub sound: bool,
}

impl Windows<'_> {
    /// Latent frames of the longest window and of the overlap.
    pub fn sizes(&self) -> Result<(usize, usize)> {
        let size = |name: &str, frames: usize| {
            crate::shape::check(name, frames, FRAMES_PER_LATENT, 1)?;
            Ok::<_, Error>(VideoShape { frames, height: 0, width: 0 }.latent().frames)
        };
        let longest = size("window (in frames)", self.longest)?;
        if longest < 2 {
            return Err(Error::request("a window of one frame goes nowhere", "give at least --window 9"));
        }
        let overlap = match self.overlap {
            // About a second for windows of the official five, two latent frames for the shortest: one picture alone says
            // nothing of how things move.
            None => (longest / 4).clamp(2, 4).min(longest - 1),
            Some(frames) => size("overlap (in frames)", frames)?,
        };
        if overlap >= longest {
            return Err(Error::request(
                format!("windows of {} frames cannot overlap by {}", pictures(longest), pictures(overlap)),
                format!("give --overlap {} or less", pictures(longest - 1)),
            ));
        }
        Ok((longest, overlap))
    }

    /// The windows of a clip, in order. Those of a shot are of about the same length.
    pub fn of(&self, clip: LatentShape) -> Result<Vec<Window>> {
        let (longest, overlap) = self.sizes()?;
        let mut windows = Vec::new();
        let mut done = 0;
        for (shot, end) in self.ends(clip.frames)?.into_iter().enumerate() {
            // The first window is given nothing, and makes as much more.
            let from = if done == 0 { overlap.min(end) } else { done };
            let rest = end - from;
            let count = rest.div_ceil(longest - overlap).max(1);
            for part in 1..=count {
                let end = from + rest * part / count;
                windows.push(self.window(shot, done, end, overlap)?);
                done = end;
            }
        }
        Ok(windows)
    }

    fn window(&self, shot: usize, done: usize, end: usize, overlap: usize) -> Result<Window> {
        let start = done.saturating_sub(overlap);
        let sound =
            |latents| Ok::<_, Error>(AudioShape::of_video(pictures(latents), self.frame_rate)?.frames);
        let audio = match (self.sound, done) {
            (false, _) => None,
            (true, 0) => Some(Stretch::new(0, 0, sound(end)?)),
            (true, _) => {
                let done = sound(done)?;
                // The window begins at the time of its first picture, to the nearest latent frame of sound (20 ms).
                let seconds = (start * FRAMES_PER_LATENT) as f64 / self.frame_rate;
                let start = (seconds * AUDIO_LATENTS_PER_SECOND).round_ties_even() as usize;
                Some(Stretch::new(start.min(done - 1), done, sound(end)?))
            }
        };
        Ok(Window { shot, video: Stretch::new(start, done, end), audio })
    }

    /// Where the shots end, in latent frames of the clip.
    fn ends(&self, clip: usize) -> Result<Vec<usize>> {
        let (mut ends, mut seconds, mut done) = (Vec::new(), 0.0, 0);
        for (index, shot) in self.shots.iter().enumerate() {
            if !(shot.seconds.is_finite() && shot.seconds > 0.0) {
                return Err(Error::request(
                    format!("shot {} is {} seconds long", index + 1, shot.seconds),
                    "give a number above 0, such as 4",
                ));
            }
            seconds += shot.seconds;
            let end = latents(seconds * self.frame_rate).min(clip);
            if end <= done {
                return Err(Error::request(
                    format!("shot {} is shorter than {FRAMES_PER_LATENT} frames", index + 1),
                    "make it longer, or leave it out",
                ));
            }
            ends.push(end);
            done = end;
        }
        match ends.last_mut() {
            Some(last) if *last == clip => {}
            Some(_) => {
                return Err(Error::request(
                    format!("the shots are {seconds} seconds long, the clip {} frames", pictures(clip)),
                    "give as many frames as the shots last",
                ));
            }
            None => ends.push(clip),
        }
        Ok(ends)
    }
}

/// The seed of a window's noise: that of the clip for the first, others that no neighbouring seed begins with.
pub fn seed(clip: u64, window: usize) -> u64 {
    if window == 0 {
        return clip;
    }
    // SplitMix64: every bit of the window's number changes about half of the bits.
    let mut mixed = clip.wrapping_add((window as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(frames: usize) -> LatentShape {
        LatentShape { frames, height: 2, width: 3 }
    }

    fn windows(longest: usize, overlap: Option<usize>, shots: &[Shot]) -> Windows<'_> {
        Windows { longest, overlap, shots, frame_rate: 24.0, sound: true }
    }

    /// What must hold for the windows of any clip.
    fn check(windows: &[Window], longest: usize, overlap: usize, clip: usize, rate: f64) {
        let (mut video, mut audio, mut pictures) = (0, 0, 0);
        for (index, window) in windows.iter().enumerate() {
            let what = format!("window {index} of {windows:?}");
            assert_eq!(window.video.makes().start, video, "{what} goes on where the last one ended");
            assert!(window.video.makes().end > video && window.video.length <= longest, "{what}");
            assert_eq!(window.video.given, overlap.min(video), "{what}");
            assert_eq!(window.pictures().start, pictures, "{what}");
            let sound = window.audio.unwrap();
            assert_eq!(sound.makes().start, audio, "{what}");
            assert_eq!(sound.given > 0, index > 0, "{what}");
            let apart = sound.start as f64 / AUDIO_LATENTS_PER_SECOND - window.first_picture() as f64 / rate;
            // Some sound is given whatever the overlap is.
            let most = if sound.given == 1 { 0.0601 } else { 0.0201 };
            assert!(apart.abs() <= most, "{what}: sound and pictures are {apart} s apart");
            (video, audio, pictures) = (window.video.makes().end, sound.makes().end, window.pictures().end);
        }
        assert_eq!((video, pictures), (clip, 8 * (clip - 1) + 1));
        assert_eq!(audio, AudioShape::of_video(pictures, rate).unwrap().frames);
    }

    #[test]
    fn windows_cover_every_clip_without_gaps() {
        for (longest, overlap) in [(2, 1), (3, 2), (4, 2), (5, 1), (13, 3), (16, 4), (16, 15)] {
            for length in 2..=4 * longest + 3 {
                for rate in [23.976, 24.0, 25.0, 30.0, 50.0, 120.0] {
                    let frames = |latents: usize| 8 * (latents - 1) + 1;
                    let plan =
                        Windows { frame_rate: rate, ..windows(frames(longest), Some(frames(overlap)), &[]) };
                    let plan = plan.of(clip(length)).unwrap();
                    check(&plan, longest, overlap, length, rate);
                    let fewest =
                        if length <= longest { 1 } else { (length - overlap).div_ceil(longest - overlap) };
                    assert_eq!(plan.len(), fewest);
                    let lengths = plan.iter().map(|window| window.video.length);
                    assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1, "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn what_fits_in_one_window_is_one_window() {
        let plan = windows(121, None, &[]).of(clip(16)).unwrap();
        let whole = |length| Stretch { start: 0, length, given: 0 };
        assert_eq!(plan, [Window { shot: 0, video: whole(16), audio: Some(whole(126)) }]);
    }

    #[test]
    fn the_next_window_begins_in_the_last_one() {
        let plan = windows(121, None, &[]).of(clip(28)).unwrap();
        assert_eq!(plan.len(), 2);
        assert_eq!(plan[1].video, Stretch { start: 12, length: 16, given: 4 });
        // 96 frames later, at four seconds: 100 latent frames of sound.
        assert_eq!((plan[1].first_picture(), plan[1].pictures()), (96, 121..217));
        assert_eq!(plan[1].audio, Some(Stretch { start: 100, length: 126, given: 26 }));
        assert_eq!(Windows { sound: false, ..windows(121, None, &[]) }.of(clip(28)).unwrap()[1].audio, None);
    }

    #[test]
    fn every_shot_has_windows_of_its_own() {
        let shot = |seconds| Shot { prompt: "a boat".into(), seconds };
        for seconds in [vec![4.0], vec![0.4, 2.0, 9.5], vec![5.05, 5.05, 0.3, 7.0], vec![0.05, 1.0]] {
            let shots: Vec<Shot> = seconds.iter().copied().map(shot).collect();
            let length = frames_of(seconds.iter().sum(), 24.0) / 8 + 1;
            let plan = windows(49, Some(17), &shots).of(clip(length)).unwrap();
            check(&plan, 7, 3, length, 24.0);
            let mut end = 0.0;
            for (index, seconds) in seconds.iter().enumerate() {
                end += seconds * 24.0;
                let last = plan.iter().rfind(|window| window.shot == index).unwrap().pictures().end;
                assert!((last as f64 - end).abs() <= 4.0, "shot {index} ends at {last}, not {end}: {plan:?}");
            }
            assert!(plan.is_sorted_by_key(|window| window.shot));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let refused = |plan: Windows, latents| {
            let error = plan.of(clip(latents)).unwrap_err();
            format!("{error}: {}", error.remedy().unwrap())
        };
        assert!(refused(windows(120, None, &[]), 3).contains("113 and 121"));
        assert!(refused(windows(1, None, &[]), 3).contains("--window 9"));
        assert!(refused(windows(17, Some(12), &[]), 3).contains("9 and 17"));
        assert!(refused(windows(17, Some(17), &[]), 3).contains("--overlap 9"));
        let shots = |seconds: &[f64]| -> Vec<Shot> {
            seconds.iter().map(|&seconds| Shot { prompt: "a boat".into(), seconds }).collect()
        };
        assert!(refused(windows(17, None, &shots(&[1.0, 0.1])), 4).contains("shot 2 is shorter than 8"));
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(refused(windows(17, None, &shots(&[wrong])), 4).contains("seconds long"));
        }
        assert!(refused(windows(17, None, &shots(&[1.0])), 9).contains("as many frames"));
    }

    #[test]
    fn seconds_are_the_nearest_frames() {
        for (seconds, rate, frames) in [
            (2.0, 24.0, 49),
            (80.0, 24.0, 1921),
            (5.0, 25.0, 129),
            (0.0, 24.0, 1),
            (0.2, 24.0, 1),
            (0.21, 24.0, 9),
        ] {
            assert_eq!(frames_of(seconds, rate), frames, "{seconds} s at {rate}");
        }
        assert_eq!((frames_of(f64::NAN, 24.0), frames_of(-3.0, 24.0)), (1, 1));
        assert!(frames_of(f64::INFINITY, 24.0) > 1 << 40);
    }

    #[test]
    fn windows_have_seeds_of_their_own() {
        assert_eq!(seed(42, 0), 42);
        let mut seeds: Vec<u64> =
            (0..50).flat_map(|clip| (0..50).map(move |window| seed(clip, window))).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 2500);
    }
}
