//! A model's files with their large matrices packed: the same keys with `scales` and `biases` beside `weight`, the same
//! header, which says how they are packed, and all other tensors as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlx::{Array, Dtype};
use safetensors::Dtype as Stored;
use serde_json::{Map, Value, json};

use super::fp8::{BESIDE, SCALES};
use super::{fits, rules};
use crate::checkpoint::{Checkpoint, File, TensorInfo, Weights};
use crate::error::{Error, Result};
use crate::media::{Output, OutputFolder};
use crate::nn::{Packed, Packing, Weight};
use crate::progress::{Event, Progress};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Matrices that were packed.
    pub packed: usize,
    /// Tensors that are as they were.
    pub kept: usize,
    /// Bytes of all tensors before.
    pub before: u64,
    /// And after.
    pub after: u64,
}

/// Writes the model `input`, a file or the folder of a text encoder, to `output` with what [`super::TABLE`] lists packed,
/// whole or not at all. One tensor at a time is in memory.
pub fn quantize(
    input: &Path,
    output: &Path,
    packing: Packing,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let checkpoint = Checkpoint::open(&[input])?;
    let files = checkpoint.files();
    let same = |path: &Path| match (path.canonicalize(), output.canonicalize()) {
        (Ok(path), Ok(output)) => path == output,
        _ => false,
    };
    if same(input) || files.iter().any(|file| same(file.path())) {
        return Err(Error::file(output, "", "is the model itself", "give another place to write to"));
    }
    let work = Work::new(files, packing)?;
    progress.phase("quantize", 100)?;
    let mut report = Report::default();
    if !input.is_dir() {
        for file in files {
            let mut place = Output::create(output)?;
            work.write(file, place.file(), output, &mut report, progress)?;
            place.finish()?;
        }
        return Ok(report);
    }
    let folder = OutputFolder::create(output)?;
    for file in files {
        let path = folder.file(&name(file.path())?);
        let mut made = fs::File::create(&path).map_err(failed(output))?;
        work.write(file, &mut made, output, &mut report, progress)?;
        made.sync_all().map_err(failed(output))?;
    }
    for path in others(input)? {
        let to = folder.file(&name(&path)?);
        match path.file_name().and_then(|name| name.to_str()) {
            Some("config.json") => fs::write(&to, configured(&path, packing)?),
            // It lists the tensors, which are others now. Without it every file is read.
            Some("model.safetensors.index.json") => Ok(()),
            _ => fs::copy(&path, &to).map(drop),
        }
        .map_err(failed(output))?;
    }
    folder.finish()?;
    Ok(report)
}

fn failed(output: &Path) -> impl Fn(io::Error) -> crate::media::Error {
    let path = output.to_path_buf();
    move |source| crate::media::Error::Write { path: path.clone(), source }
}

fn name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(String::from).ok_or_else(|| Error::file(path, "", "has a name that is no text", "rename it"))
}

/// What else a folder holds: the tokenizer and the configuration.
fn others(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error: io::Error| {
        Error::file(folder, "", format!("cannot be read: {error}"), "check the folder's permissions")
    };
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let known = ["json", "model", "txt", "jinja", "md"];
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_file() && ending.is_some_and(|ending| known.contains(&ending)) {
            others.push(path);
        }
    }
    Ok(others)
}

/// MLX's own words for a packing.
fn said(packing: Packing) -> Value {
    let mode = match packing {
        Packing::Affine { .. } => "affine",
        Packing::Mxfp8 => "mxfp8",
        Packing::Nvfp4 => "nvfp4",
    };
    json!({ "group_size": packing.group(), "bits": packing.bits(), "mode": mode })
}

/// A `config.json` that says how the weights beside it are packed.
fn configured(path: &Path, packing: Packing) -> Result<String> {
    let wrong = |problem: String| Error::file(path, "", problem, "download the text encoder's folder whole");
    let text = fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| wrong(format!("is not valid JSON: {error}")))?;
    config.insert("quantization".into(), said(packing));
    serde_json::to_string_pretty(&config).map_err(|error| wrong(format!("cannot be written: {error}")))
}

/// Which tensors of a model are packed, and how.
struct Work {
    packing: Packing,
    blocks: usize,
    weights: Weights,
    /// Bytes of all files' tensors.
    total: u64,
}

/// A tensor that is written.
struct Entry {
    key: String,
    dtype: Stored,
    shape: Vec<usize>,
    /// The module of the weight that it is a part of, and which; else it stays as it was.
    part: Option<(String, usize)>,
}

impl Work {
    fn new(files: &[Arc<File>], packing: Packing) -> Result<Self> {
        let keys = || files.iter().flat_map(|file| file.tensors());
        for file in files {
            if file.is_gguf() {
                return Err(Error::file(file.path(), "", "is GGUF", "give the bf16 or fp8 model"));
            }
            if let Some((key, _)) = file.tensors().find(|(_, info)| info.dtype == Stored::U32) {
                return Err(Error::file(file.path(), key, "is packed already", "give the bf16 or fp8 model"));
            }
        }
        let blocks = rules::blocks(keys().map(|(key, _)| key));
        if !keys().any(|(key, info)| fits(&key, info, packing, blocks)) {
            let path = files.first().map_or(Path::new(""), |file| file.path());
            let problem = format!("holds no matrix that is packed in {packing}");
            let remedy = "give a file with the transformer, or the folder of Gemma 3; docs/quantization.md says what is packed";
            return Err(Error::file(path, "", problem, remedy));
        }
        let weights = Weights::new(files.to_vec(), "", Dtype::Bf16, keys().map(|(key, _)| key));
        let total = keys().map(|(_, info)| size(info)).sum();
        Ok(Self { packing, blocks, weights: weights.packed_as(Some(packing)), total })
    }

    /// What is written of a file: the widest types first, so that all are aligned, else in the file's own order.
    fn entries(&self, file: &File) -> Vec<Entry> {
        let packed: BTreeSet<String> = file
            .tensors()
            .filter(|(key, info)| fits(key, info, self.packing, self.blocks))
            .filter_map(|(key, _)| key.strip_suffix(".weight").map(String::from))
            .collect();
        let mut tensors: Vec<_> = file.tensors().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets.0);
        let mut entries = Vec::new();
        for (key, info) in tensors {
            let module = key.rsplit_once('.').filter(|(module, _)| packed.contains(*module));
            match (module, info.shape.as_slice()) {
                (Some((module, "weight")), &[rows, columns]) => {
                    let (words, groups) =
                        (columns * self.packing.bits() / 32, columns / self.packing.group());
                    let float = if info.dtype.bitsize() == 8 { Stored::BF16 } else { info.dtype };
                    let parts: &[(&str, Stored, usize)] = match self.packing {
                        Packing::Affine { .. } => &[
                            ("weight", Stored::U32, words),
                            ("scales", float, groups),
                            ("biases", float, groups),
                        ],
                        _ => &[("weight", Stored::U32, words), ("scales", Stored::U8, groups)],
                    };
                    entries.extend(parts.iter().enumerate().map(|(part, (name, dtype, width))| Entry {
                        key: format!("{module}.{name}"),
                        dtype: *dtype,
                        shape: vec![rows, *width],
                        part: Some((module.to_string(), part)),
                    }));
                }
                // The scale of an fp8 weight that is none any more.
                (Some((_, name)), _) if BESIDE.contains(&name) || SCALES.contains(&name) => {}
                _ => entries.push(Entry { dtype: info.dtype, shape: info.shape.clone(), key, part: None }),
            }
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
        entries
    }

    fn write(
        &self,
        file: &File,
        out: &mut fs::File,
        output: &Path,
        report: &mut Report,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let failed = failed(output);
        let entries = self.entries(file);
        let header = self.header(file, &entries)?;
        out.write_all(&header).map_err(&failed)?;
        let mut place = header.len() as u64;
        let mut places = BTreeMap::new();
        for entry in &entries {
            places.insert(entry.key.as_str(), place);
            place += entry.bytes();
        }
        let mut percent = 0;
        let mut done = report.before;
        for entry in &entries {
            match &entry.part {
                None => {
                    let Some(info) = file.info(&entry.key) else { continue };
                    write_at(out, places.get(entry.key.as_str()), file.bytes(info)).map_err(&failed)?;
                    report.kept += 1;
                    file.span(&entry.key).into_iter().for_each(|span| file.release(span));
                }
                // A weight is packed once, and its parts are written where they belong.
                Some((module, 0)) => {
                    for (name, array) in self.packed(file, module)? {
                        let place = places.get(format!("{module}.{name}").as_str());
                        write_at(out, place, &bytes(&array)?).map_err(&failed)?;
                    }
                    report.packed += 1;
                }
                Some(_) => {}
            }
            report.after += entry.bytes();
            done += file.info(&entry.key).map_or(0, size);
            let now = (done * 100 / self.total.max(1)).min(100) as usize;
            if now > percent {
                percent = now;
                progress.report(Event::Step { done: now, of: 100 })?;
            }
        }
        report.before += file.tensors().map(|(_, info)| size(info)).sum::<u64>();
        Ok(())
    }

    /// The parts of a packed weight by name, computed.
    fn packed(&self, file: &File, module: &str) -> Result<Vec<(&'static str, Array)>> {
        let place = self.weights.at(module);
        let shape = place.shape("weight").unwrap_or_default();
        let &[outputs, inputs] = shape.as_slice() else {
            return Err(place.error("weight", "is too large", "use the official file"));
        };
        let Weight::Packed(Packed { values, scales, biases, .. }) = place.linear(outputs, inputs)? else {
            return Err(place.error("weight", "is not packed, though a rule allows it", "report this"));
        };
        let parts = [("weight", Some(values)), ("scales", Some(scales.clone())), ("biases", biases)];
        let parts: Vec<_> = parts.into_iter().filter_map(|(name, part)| Some((name, part?))).collect();
        mlx::eval(parts.iter().map(|(_, part)| part))?;
        let nan = if self.packing == Packing::Nvfp4 { 0x7f } else { 0xff };
        let finite = match scales.dtype() {
            Dtype::U8 => !scales.to_vec::<u8>()?.contains(&nan),
            _ => scales.is_finite()?.all(&[0, 1], false)?.astype(Dtype::F32)?.item()? == 1.0,
        };
        if !finite {
            return Err(place.error("weight", "holds values that are not finite", "download the file again"));
        }
        file.span(&format!("{module}.weight")).into_iter().for_each(|span| file.release(span));
        Ok(parts)
    }

    /// The header's length and the header, padded so that tensors are aligned.
    fn header(&self, file: &File, entries: &[Entry]) -> Result<Vec<u8>> {
        let mut header = Map::new();
        let mut metadata: Map<String, Value> =
            file.all_metadata().map(|(key, value)| (key.to_string(), json!(value))).collect();
        match file.config() {
            Ok(Value::Object(mut config)) => {
                config.insert("quantization".into(), said(self.packing));
                metadata.insert("config".into(), json!(Value::Object(config).to_string()));
            }
            _ => drop(metadata.insert("quantization".into(), json!(said(self.packing).to_string()))),
        }
        metadata.insert("quantized_by".into(), json!(concat!("ltx ", env!("CARGO_PKG_VERSION"))));
        header.insert("__metadata__".into(), Value::Object(metadata));
        let mut start = 0;
        for entry in entries {
            let end = start + entry.bytes();
            let dtype = format!("{:?}", entry.dtype);
            header.insert(
                entry.key.clone(),
                json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [start, end] }),
            );
            start = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(64), b' ');
        Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
    }
}

impl Entry {
    fn bytes(&self) -> u64 {
        let values: u64 = self.shape.iter().map(|&size| size as u64).product();
        values * self.dtype.bitsize() as u64 / 8
    }
}

fn size(info: &TensorInfo) -> u64 {
    (info.data_offsets.1 - info.data_offsets.0) as u64
}

fn write_at(out: &mut fs::File, place: Option<&u64>, bytes: &[u8]) -> io::Result<()> {
    out.seek(SeekFrom::Start(*place.ok_or(io::ErrorKind::InvalidInput)?))?;
    out.write_all(bytes)
}

/// Values as files store them: little-endian.
fn bytes(array: &Array) -> mlx::Result<Vec<u8>> {
    Ok(match array.dtype() {
        Dtype::U32 => bytemuck::cast_slice(&array.to_vec::<u32>()?).to_vec(),
        Dtype::U8 => array.to_vec::<u8>()?,
        Dtype::Bf16 => bytemuck::cast_slice(&array.to_vec::<half::bf16>()?).to_vec(),
        Dtype::F16 => bytemuck::cast_slice(&array.to_vec::<half::f16>()?).to_vec(),
        _ => bytemuck::cast_slice(&array.to_f32()?).to_vec(),
    })
}
