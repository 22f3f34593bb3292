//! The other mp4 writer: frames are piped to an `ffmpeg` that the user has, for smaller files (x264 is the better
//! encoder) and for sizes that the built-in one cannot do. The planes it gets are converted here, so colours are the
//! same either way.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::audio::Temporary;
use super::frames::{Audio, Frame, FrameRate, Planes};
use super::output::{Output, scratch};
use super::{Error, Options};

/// The writer of one clip.
pub struct Ffmpeg {
    /// Video alone, until the sound is there.
    video: Output,
    process: Process,
    planes: Planes,
    size: (u32, u32),
    rate: FrameRate,
    settings: String,
    frames: usize,
    sound: Option<Temporary>,
}

impl Ffmpeg {
    /// Fails at once if there is no ffmpeg, or it cannot encode a frame of this size with libx264.
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        options.check_even()?;
        let planes = Planes::new(options.width as usize, options.height as usize);
        let mut trial = Process::start(path, encode(options, Path::new("-"), "null"))?;
        trial.write(&planes)?;
        trial.wait()?;
        let video = Output::create(path)?;
        let process = Process::start(path, encode(options, video.temporary(), "mp4"))?;
        let (size, rate, settings) =
            ((options.width, options.height), options.rate, options.settings.clone());
        Ok(Self { video, process, planes, size, rate, settings, frames: 0, sound: None })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        frame.check(self.size)?;
        self.planes.convert(&frame.rgb);
        self.frames += 1;
        self.process.write(&self.planes)
    }

    /// Sound, after the last frame: it is as long as the video before ffmpeg sees it.
    pub fn push_sound(&mut self, audio: &Audio) -> Result<(), Error> {
        let path = self.video.path();
        match &mut self.sound {
            Some(sound) => sound.push(path, audio),
            None => {
                let samples = self.rate.samples(self.frames, audio.sample_rate);
                self.sound.insert(Temporary::create(path, audio, samples)?).push(path, audio)
            }
        }
    }

    pub fn finish(self) -> Result<(), Error> {
        let path = self.video.path();
        if self.frames == 0 {
            return Err(Error::NoFrames { path: path.to_owned() });
        }
        self.process.wait()?;
        let output = Output::create(path)?;
        let mut command = ffmpeg();
        command.arg("-i").arg(self.video.temporary());
        let sound = self.sound.map(|sound| sound.finish(path)).transpose()?;
        if let Some(sound) = &sound {
            command.arg("-i").arg(sound).args(["-c:a", "aac", "-b:a", "256k"]);
        }
        command.args([
            "-c:v",
            "copy",
            "-map_metadata",
            "-1",
            "-fflags",
            "+bitexact",
            "-flags:a",
            "+bitexact",
        ]);
        command.args(["-movflags", "+faststart", "-metadata"]).arg(format!("comment={}", self.settings));
        command.args(["-f", "mp4"]).arg(output.temporary());
        Process::start(path, command)?.wait()?;
        output.finish()
    }
}

fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-y"]);
    command
}

/// Raw planes from standard input to H.264 in a file.
fn encode(options: &Options, to: &Path, format: &str) -> Command {
    let mut command = ffmpeg();
    let size = format!("{}x{}", options.width, options.height);
    let rate = options.rate.to_string();
    command.args(["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", &size, "-framerate", &rate, "-i", "pipe:0"]);
    command.args(["-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p"]);
    command.args(["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709"]);
    command
        .args(["-color_range", "tv", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", format])
        .arg(to);
    command
}

/// A running ffmpeg; stopped when dropped.
struct Process {
    child: Child,
    path: PathBuf,
    /// What it complained of.
    complaints: File,
}

impl Process {
    fn start(path: &Path, mut command: Command) -> Result<Self, Error> {
        let complaints = scratch(path)?;
        let stderr = complaints.try_clone().map_err(|e| Error::create(path, e))?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::FfmpegMissing,
            _ => Error::FfmpegStart { source },
        })?;
        Ok(Self { child, path: path.to_owned(), complaints })
    }

    fn write(&mut self, planes: &Planes) -> Result<(), Error> {
        let Some(pipe) = &mut self.child.stdin else {
            return Err(self.failed());
        };
        let written = [&planes.y, &planes.u, &planes.v].iter().try_for_each(|plane| pipe.write_all(plane));
        written.map_err(|_| self.failed())
    }

    fn wait(mut self) -> Result<(), Error> {
        drop(self.child.stdin.take());
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(self.failed()),
        }
    }

    /// What it said last.
    fn failed(&mut self) -> Error {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        let mut said = Vec::new();
        let _ = self.complaints.rewind().and_then(|()| self.complaints.read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().rev().take(5).collect();
        let said = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        Error::Ffmpeg { path: self.path.clone(), said }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended, where nothing went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Process::start(&folder.path().join("clip.mp4"), Command::new("ltx-no-such-program"));
        assert!(matches!(missing.err(), Some(Error::FfmpegMissing)));
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let said = |error| match error {
            Error::Ffmpeg { said, .. } => said,
            other => panic!("{other}"),
        };
        let process =
            Process::start(&path, shell("for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 1"))
                .unwrap();
        assert_eq!(said(process.wait().unwrap_err()), "line 3\nline 4\nline 5\nline 6\nline 7");
        // It ends while frames are still being written to it.
        let mut process = Process::start(&path, shell("echo no such encoder >&2; exit 8")).unwrap();
        let planes = Planes::new(1024, 1024);
        let error = (0..50).find_map(|_| process.write(&planes).err()).expect("the pipe took everything");
        assert_eq!(said(error), "no such encoder");
        Process::start(&path, shell("cat > /dev/null")).unwrap().wait().unwrap();
    }
}
