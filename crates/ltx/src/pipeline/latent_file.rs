//! Latents on their way to being decoded another time: `<output>_latent.npz`, and a picture of them.
//!
//! `latent` (1, channels, frames, height, width) as LTX-2-MLX writes it, `audio_latent` (1, channels, frames, bins),
//! `settings`, the JSON that the clip will carry, and `decode`, the JSON of what decoding needs to know.

use std::path::{Path, PathBuf};

use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::Latents;
use crate::error::{Error, Result};
use crate::media::Frame;
use crate::npz::{self, Npz, Values};
use crate::shape::{LatentShape, VideoShape};

/// Pixels of a latent cell in the picture, along both axes.
const CELL: usize = 8;
/// Black pixels between latent frames.
const GAP: usize = 2;
/// Longest side of a latent, in cells or frames: that of the largest clip.
const LONGEST: usize = 1 << 14;

const REMEDY: &str = "use a file that ltx generate --skip-vae wrote";

/// Latents, and everything that makes the same clip of them as if they had been decoded at once.
#[derive(Clone, Debug)]
pub struct LatentFile {
    /// Normalized.
    pub latents: Latents,
    /// The settings of the clip.
    pub settings: Value,
    /// Model files or folders that decode it; none in files of LTX-2-MLX.
    pub models: Vec<PathBuf>,
    /// Type of the decoders' weights and activations, if the file tells.
    pub dtype: Option<Dtype>,
    /// Frames per second.
    pub frame_rate: f64,
    /// The run's seed.
    pub seed: u64,
    /// Deviates of the seed that the run had drawn.
    pub noise: u64,
    /// The clip that the run was to write.
    pub output: Option<PathBuf>,
}

impl LatentFile {
    /// Where the latents of a clip and their picture go: `clip.mp4` → `clip_latent.npz`, `clip_latent.png`.
    pub fn paths(output: &Path) -> [PathBuf; 2] {
        let stem = output.file_stem().unwrap_or_default().to_string_lossy();
        ["npz", "png"].map(|ending| output.with_file_name(format!("{stem}_latent.{ending}")))
    }

    /// Writes the `.npz`, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let shape = |array: &Array| array.shape().iter().map(|&size| size as usize).collect::<Vec<_>>();
        let video = (shape(&self.latents.video), self.latents.video.to_f32()?);
        let audio = self.latents.audio.as_ref().map(|audio| Ok::<_, Error>((shape(audio), audio.to_f32()?)));
        let audio = audio.transpose()?;
        let settings = self.settings.to_string();
        let decode = json!({
            "models": self.models, "dtype": self.dtype.map(|dtype| dtype.to_string()), "frame_rate": self.frame_rate,
            "seed": self.seed, "noise": self.noise, "output": self.output,
        })
        .to_string();
        let mut arrays = vec![("latent", Values::F32(&video.0, &video.1))];
        if let Some((shape, values)) = &audio {
            arrays.push(("audio_latent", Values::F32(shape, values)));
        }
        arrays.extend([("settings", Values::Text(&settings)), ("decode", Values::Text(&decode))]);
        npz::write(path, &arrays)
    }

    /// Reads a file of this program, or one with `latent` alone, as LTX-2-MLX writes it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Npz::open(path)?;
        let video = read(&mut file, "latent", 5)?;
        let audio = if file.has("audio_latent") { Some(read(&mut file, "audio_latent", 4)?) } else { None };
        let latents = Latents { video, audio };
        if !file.has("decode") {
            let settings = json!({ "program": super::request::PROGRAM, "latents": path.file_name().map(|name| name.to_string_lossy()) });
            let (models, dtype, output) = (Vec::new(), None, None);
            return Ok(Self {
                latents,
                settings,
                models,
                dtype,
                frame_rate: 24.0,
                seed: 0,
                noise: 0,
                output,
            });
        }
        let parsed = |file: &mut Npz, name: &str| -> Result<Value> {
            let text = file.text(name)?;
            serde_json::from_str(&text)
                .map_err(|error| Error::file(path, name, format!("is not valid JSON: {error}"), REMEDY))
        };
        let settings = parsed(&mut file, "settings")?;
        let decode = parsed(&mut file, "decode")?;
        let wrong =
            |key: &str| Error::file(path, format!("decode.{key}"), "is not what it should be", REMEDY);
        let dtype = match decode.get("dtype").and_then(Value::as_str) {
            Some("bf16") => Dtype::Bf16,
            Some("f16") => Dtype::F16,
            Some("f32") => Dtype::F32,
            _ => return Err(wrong("dtype")),
        };
        let models = decode.get("models").and_then(Value::as_array).ok_or_else(|| wrong("models"))?;
        let models: Option<Vec<PathBuf>> =
            models.iter().map(|model| model.as_str().map(PathBuf::from)).collect();
        let number = |key: &str| decode.get(key).and_then(Value::as_u64).ok_or_else(|| wrong(key));
        let rate = decode.get("frame_rate").and_then(Value::as_f64);
        let rate = rate.filter(|rate| (1.0..=240.0).contains(rate)).ok_or_else(|| wrong("frame_rate"))?;
        Ok(Self {
            latents,
            settings,
            models: models.ok_or_else(|| wrong("models"))?,
            dtype: Some(dtype),
            frame_rate: rate,
            seed: number("seed")?,
            noise: number("noise")?,
            output: decode.get("output").and_then(Value::as_str).map(PathBuf::from),
        })
    }

    /// Size of the clip that decodes from them.
    pub fn video(&self) -> VideoShape {
        latent_shape(&self.latents.video).video()
    }

    /// The latent frames side by side, a block of pixels for every cell: red is the mean over the channels, green their
    /// spread, blue the product of both, scaled as LTX-2-MLX does.
    pub fn picture(&self) -> Result<Frame> {
        let shape = latent_shape(&self.latents.video);
        let cells = shape.tokens();
        let values = self.latents.video.to_f32()?; // channels · (frames · height · width)
        let channels = (values.len() / cells.max(1)).max(1) as f32;
        let colour = |cell: usize| {
            let of_cell = || values.iter().skip(cell).step_by(cells);
            let mean = of_cell().sum::<f32>() / channels;
            let spread = (of_cell().map(|value| (value - mean).powi(2)).sum::<f32>() / channels).sqrt();
            let level = |share: f32, top: f32| (share * top).clamp(0.0, 255.0) as u8;
            [
                level((mean + 2.0) / 4.0, 255.0),
                level(spread / 2.0, 255.0),
                level((mean * spread + 1.0) / 2.0, 128.0),
            ]
        };
        let (width, height) = picture_size(shape);
        let columns = columns(shape);
        let mut rgb = vec![0; 3 * width * height];
        for cell in 0..cells {
            let (frame, place) = (cell / shape.tokens_per_frame(), cell % shape.tokens_per_frame());
            let left = frame % columns * (shape.width * CELL + GAP) + place % shape.width * CELL;
            let top = frame / columns * (shape.height * CELL + GAP) + place / shape.width * CELL;
            let colour = colour(cell);
            for row in top..top + CELL {
                let start = 3 * (row * width + left);
                rgb[start..start + 3 * CELL].copy_from_slice(&colour.repeat(CELL));
            }
        }
        Ok(Frame { width: width as u32, height: height as u32, rgb })
    }
}

/// Width and height in pixels of the picture of latents of that shape.
fn picture_size(shape: LatentShape) -> (usize, usize) {
    let columns = columns(shape);
    let side = |count: usize, cells: usize| count * (cells * CELL + GAP) - GAP;
    (side(columns, shape.width), side(shape.frames.div_ceil(columns), shape.height))
}

/// As many latent frames in a row as make the picture about square.
fn columns(shape: LatentShape) -> usize {
    let square = (shape.frames as f64 * shape.height as f64 / shape.width as f64).sqrt();
    (square.ceil() as usize).clamp(1, shape.frames)
}

fn latent_shape(video: &Array) -> LatentShape {
    let size = |axis| video.dim(axis) as usize;
    LatentShape { frames: size(2), height: size(3), width: size(4) }
}

fn read(file: &mut Npz, name: &str, axes: usize) -> Result<Array> {
    let shape = file.shape(name)?;
    let sound = shape.len() == axes && shape[0] == 1 && shape.iter().all(|size| (1..=LONGEST).contains(size));
    if !sound {
        let expected =
            if axes == 5 { "(1, channels, frames, height, width)" } else { "(1, channels, frames, bins)" };
        let problem = format!("has shape {shape:?}, not {expected}");
        return Err(Error::file(file.path(), name, problem, REMEDY));
    }
    let (_, values) = file.numbers(name)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::file(
            file.path(),
            name,
            "holds values that are not finite",
            "make the latents again",
        ));
    }
    let shape: Vec<i32> = shape.iter().map(|&size| size as i32).collect();
    Ok(Array::from_slice(&values, &shape)?)
}

/// A path that stays right when the file is used from another folder.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    fn file() -> LatentFile {
        let mut noise = Noise::new(3);
        LatentFile {
            latents: Latents {
                video: noise.normal(&[1, 4, 3, 2, 5]).unwrap(),
                audio: Some(noise.normal(&[1, 2, 7, 16]).unwrap()),
            },
            settings: json!({ "prompt": "naïve", "steps": 8 }),
            models: vec!["/models/a.safetensors".into()],
            dtype: Some(Dtype::Bf16),
            frame_rate: 23.976,
            seed: u64::MAX,
            noise: 344,
            output: Some("clips/boat.mp4".into()),
        }
    }

    #[test]
    fn latents_come_back_with_all_that_decoding_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boat_latent.npz");
        let ours = file();
        ours.save(&path).unwrap();
        let theirs = LatentFile::open(&path).unwrap();
        assert_eq!(theirs.settings.to_string(), ours.settings.to_string());
        assert_eq!((theirs.dtype, theirs.frame_rate), (ours.dtype, ours.frame_rate));
        assert_eq!(
            (theirs.seed, theirs.noise, theirs.models, theirs.output),
            (ours.seed, ours.noise, ours.models, ours.output)
        );
        assert_eq!(theirs.latents.video.to_f32().unwrap(), ours.latents.video.to_f32().unwrap());
        let audio = |latents: Latents| latents.audio.unwrap().to_f32().unwrap();
        assert_eq!(audio(theirs.latents), audio(ours.latents));
        assert_eq!(LatentFile::paths(Path::new("clips/boat.mp4"))[0], Path::new("clips/boat_latent.npz"));
        assert_eq!(LatentFile::paths(Path::new("frames/"))[1], Path::new("frames_latent.png"));
    }

    #[test]
    fn the_original_wrote_the_latent_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output_latent.npz");
        npz::write(&path, &[("latent", Values::F32(&[1, 2, 1, 1, 3], &[0.5; 6]))]).unwrap();
        let file = LatentFile::open(&path).unwrap();
        assert!(file.latents.audio.is_none() && file.models.is_empty() && file.output.is_none());
        assert_eq!(file.video(), VideoShape { frames: 1, height: 32, width: 96 });
    }

    #[test]
    fn nonsense_is_refused_with_the_name_of_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output_latent.npz");
        let shape = [1usize, 2, 1, 1, 3];
        let good = r#"{"models":[],"dtype":"bf16","frame_rate":24.0,"seed":1,"noise":0,"output":null}"#;
        let attempt = |shape: &[usize], values: &[f32], decode: &str| {
            let arrays = [
                ("latent", Values::F32(shape, values)),
                ("settings", Values::Text("{}")),
                ("decode", Values::Text(decode)),
            ];
            npz::write(&path, &arrays).unwrap();
            LatentFile::open(&path)
        };
        attempt(&shape, &[0.5; 6], good).unwrap();
        let nan = [f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0];
        for (shape, values, decode, word) in [
            (&shape[..], &[0.5; 6][..], "{", "decode: is not valid JSON"),
            (&shape, &[0.5; 6], &good.replace("bf16", "i4"), "decode.dtype"),
            (&shape, &[0.5; 6], &good.replace("24.0", "0"), "decode.frame_rate"),
            (&shape, &[0.5; 6], &good.replace("[]", "[7]"), "decode.models"),
            (&shape, &[0.5; 6], &good.replace("\"seed\":1", "\"seed\":-1"), "decode.seed"),
            (&shape[1..], &[0.5; 6], good, "latent: has shape [2, 1, 1, 3]"),
            (&[1, 0, 1, 1, 3], &[], good, "latent: has shape"),
            (&shape, &nan, good, "not finite"),
        ] {
            let error = attempt(shape, values, decode).unwrap_err();
            assert!(
                error.to_string().contains(word) && error.to_string().contains("output_latent.npz"),
                "{word}: {error}"
            );
        }
    }

    #[test]
    fn every_latent_frame_has_its_place_in_the_picture() {
        let shape = LatentShape { frames: 3, height: 2, width: 5 };
        assert_eq!((columns(shape), picture_size(shape)), (2, (82, 34)));
        let mut file = file();
        let picture = file.picture().unwrap();
        assert_eq!((picture.width, picture.height, picture.rgb.len()), (82, 34, 3 * 82 * 34));
        // Another value in the last cell of the last latent frame changes its block, and nothing else.
        let mut values = file.latents.video.to_f32().unwrap();
        values[29] += 3.0;
        file.latents.video = Array::from_slice(&values, &[1, 4, 3, 2, 5]).unwrap();
        let other = file.picture().unwrap();
        let changed: Vec<usize> = (0..82 * 34)
            .filter(|at| picture.rgb[3 * at..3 * at + 3] != other.rgb[3 * at..3 * at + 3])
            .collect();
        let expected: Vec<usize> =
            (26..34).flat_map(|row| (32..40).map(move |column| row * 82 + column)).collect();
        assert_eq!(changed, expected);
    }
}
