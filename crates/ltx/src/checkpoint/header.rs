//! One memory-mapped file, safetensors or GGUF: its header, checked, and its tensors' bytes.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use mlx::{Array, Dtype};
use safetensors::SafeTensors;

pub use safetensors::tensor::TensorInfo;

use super::gguf;
use super::packs::Layout;
use crate::error::{Error, Result};
use crate::nn::{self, Ggml};

/// An open safetensors or GGUF file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    /// Of a GGUF file: how tensors are quantized, which stand for f32.
    quantized: BTreeMap<String, Ggml>,
    is_gguf: bool,
    /// Offset of the first tensor's first byte.
    data: usize,
    /// How weights are packed, once somebody has asked.
    layout: OnceLock<Layout>,
}

impl File {
    /// Maps a file and checks its header: sizes, offsets and dtypes all fit, or it is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |error: std::io::Error| {
            let remedy = if error.kind() == std::io::ErrorKind::NotFound {
                "check the path"
            } else {
                "check that it is a file you may read"
            };
            Error::file(path, "", format!("cannot be opened: {error}"), remedy)
        };
        // Asked before it is opened: a pipe would not open until somebody writes to it.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::file(path, "", "is not a file", "give a .safetensors or a .gguf file"));
        }
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. Another process that truncates the file while we
        // read it would raise SIGBUS, which no mapping can rule out; model files are not written to while in use.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        if map.starts_with(gguf::MAGIC) {
            return Self::gguf(path, map);
        }
        let (size, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let problem = match error {
                safetensors::SafeTensorError::MetadataIncompleteBuffer => {
                    "is cut off, or goes on after its end: its header promises another number of bytes than the file has".into()
                }
                other => format!("is not a valid safetensors file ({other})"),
            };
            Error::file(path, "", problem, "download it again, and check that it is a .safetensors file and not a web page or a Git LFS pointer")
        })?;
        let tensors = metadata.tensors().into_iter().map(|(key, info)| (key, info.clone())).collect();
        Ok(Self {
            path: path.into(),
            map: Arc::new(map),
            tensors,
            metadata: metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            quantized: BTreeMap::new(),
            is_gguf: false,
            data: size + 8,
            layout: OnceLock::new(),
        })
    }

    fn gguf(path: &Path, map: Mmap) -> Result<Self> {
        let gguf::Head { tensors, quantized, metadata, data } =
            gguf::read(&map).map_err(|(key, problem)| {
                Error::file(
                    path,
                    key,
                    problem,
                    "download it again, or use the Q8_0, Q6_K or Q4_K_M file of the same model",
                )
            })?;
        let (path, map, layout) = (path.into(), Arc::new(map), OnceLock::new());
        Ok(Self { path, map, tensors, metadata, quantized, is_gguf: true, data, layout })
    }

    /// Whether it is a GGUF file, of which nothing else is made.
    pub(crate) fn is_gguf(&self) -> bool {
        self.is_gguf
    }

    /// How a GGUF file's tensor is quantized, if it is.
    pub(crate) fn quantized(&self, key: &str) -> Option<Ggml> {
        self.quantized.get(key).copied()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, with dtype, shape and place, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.tensors.iter().map(|(key, info)| (key.clone(), info))
    }

    /// One tensor's dtype, shape and place.
    pub fn info(&self, key: &str) -> Option<&TensorInfo> {
        self.tensors.get(key)
    }

    /// An entry of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// All entries of the header's `__metadata__`.
    pub fn all_metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The model's configuration: `__metadata__["config"]`, parsed.
    pub fn config(&self) -> Result<serde_json::Value> {
        let text = self.metadata("config").ok_or_else(|| {
            Error::file(
                &self.path,
                "__metadata__.config",
                "is missing",
                if self.is_gguf {
                    "GGUF holds no configuration: give a safetensors file of the same model whose header has it, such as the text connectors' or the VAE's, with another --model"
                } else {
                    "use the official file: a converted one without its configuration cannot be read"
                },
            )
        })?;
        serde_json::from_str(text).map_err(|error| {
            Error::file(
                &self.path,
                "__metadata__.config",
                format!("is not valid JSON: {error}"),
                "download the file again",
            )
        })
    }

    /// What is said of how its weights are packed.
    pub fn layout(&self) -> Result<&Layout> {
        if let Some(layout) = self.layout.get() {
            return Ok(layout);
        }
        let layout = Layout::read(self)?;
        Ok(self.layout.get_or_init(|| layout))
    }

    /// The bytes before the first tensor's: the header, as it is.
    pub(crate) fn head(&self) -> &[u8] {
        &self.map[..self.data]
    }

    /// A tensor's bytes.
    pub(crate) fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.map[self.data + start..self.data + end]
    }

    /// Where a tensor's bytes are, counted from the file's first.
    pub(crate) fn span(&self, key: &str) -> Option<Range<usize>> {
        let (start, end) = self.info(key)?.data_offsets;
        Some(self.data + start..self.data + end)
    }

    /// Brings `bytes` into memory, and returns when they are there, or `stop` is set. Many reads are under way at a time:
    /// one after the other, as pages are used, a fast disk idles most of the time.
    pub(crate) fn read(&self, bytes: Range<usize>, stop: &AtomicBool) {
        const PIECE: usize = 4 << 20;
        const AHEAD: usize = 8 * PIECE;
        // Linux takes no more of a request than the disk's read-ahead, which is 128 KiB if nobody changed it.
        const REQUEST: usize = 128 << 10;
        const PAGE: usize = 4 << 10;
        let end = bytes.end.min(self.map.len());
        let mut asked = bytes.start;
        for start in (bytes.start..end).step_by(PIECE) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let until = end.min(start + PIECE + AHEAD);
            while asked < until {
                // Only advice: without it pages come in when they are touched.
                drop(self.map.advise_range(Advice::WillNeed, asked, REQUEST.min(until - asked)));
                asked = until.min(asked + REQUEST);
            }
            let piece = &self.map[start..end.min(start + PIECE)];
            black_box(piece.iter().step_by(PAGE).fold(0, |sum: u8, &byte| sum.wrapping_add(byte)));
        }
    }

    /// Gives back the memory that `bytes` take. They stay in the system's cache while there is room, and are read again
    /// when they are used again.
    pub(crate) fn release(&self, bytes: Range<usize>) {
        let end = bytes.end.min(self.map.len());
        let Some(length) = end.checked_sub(bytes.start).filter(|&length| length > 0) else { return };
        // SAFETY: the map is shared with the file and read-only, so a page that is dropped comes back from the file as it
        // was, also for whoever still refers to it.
        let advised =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, length) };
        // Only advice: the system would have taken the memory back itself when it needed it.
        drop(advised);
    }

    /// [`Self::release`] of the whole file.
    pub(crate) fn release_all(&self) {
        self.release(0..self.map.len());
    }

    /// One tensor in its own dtype, over the mapped memory. A tensor without elements is refused: no model has one.
    pub fn array(&self, key: &str) -> Result<Array> {
        self.array_of(key, dtype)
    }

    /// [`Self::array`], of packed words and codes of 8-bit floats (as u8) too.
    pub(super) fn coded_array(&self, key: &str) -> Result<Array> {
        self.array_of(key, stored)
    }

    fn array_of(&self, key: &str, dtype: fn(&TensorInfo) -> Option<Dtype>) -> Result<Array> {
        let remedy = "use an official bf16, f16 or f32 file";
        let info = self.info(key).ok_or_else(|| {
            Error::file(&self.path, key, "is missing", "check that this is the right file for this model")
        })?;
        let dtype = dtype(info).ok_or_else(|| {
            Error::file(
                &self.path,
                key,
                format!("has dtype {:?}, which is not supported yet", info.dtype),
                remedy,
            )
        })?;
        let shape: Option<Vec<i32>> =
            info.shape.iter().map(|&size| i32::try_from(size).ok().filter(|&size| size > 0)).collect();
        let shape = shape
            .ok_or_else(|| Error::file(&self.path, key, format!("has shape {:?}", info.shape), remedy))?;
        if let Some(kind) = self.quantized(key) {
            let codes = self.codes(key, info, kind.block().1)?; // (blocks, bytes)
            return Ok(nn::blocks(&codes, kind, &shape, Dtype::F32)?);
        }
        let (start, end) = info.data_offsets;
        Ok(Array::borrowed(self.map.clone(), |map| &map[self.data + start..self.data + end], &shape, dtype)?)
    }
}

impl File {
    /// The bytes of a quantized tensor's blocks, so many in a row: (rows, bytes), u8.
    pub(super) fn codes(&self, key: &str, info: &TensorInfo, row: usize) -> Result<Array> {
        let (start, end) = info.data_offsets;
        let sizes = (end - start).checked_div(row).map(|rows| [i32::try_from(rows), i32::try_from(row)]);
        let Some([Ok(rows), Ok(row)]) = sizes else {
            return Err(Error::file(&self.path, key, "is too large", "use an official file"));
        };
        let range = self.data + start..self.data + end;
        Ok(Array::borrowed(self.map.clone(), |map| &map[range], &[rows, row], Dtype::U8)?)
    }
}

/// The dtype of the array that holds a tensor, if one can: a float of 8 bits is held as its code.
fn stored(info: &TensorInfo) -> Option<Dtype> {
    match info.dtype {
        safetensors::Dtype::U32 => Some(Dtype::U32),
        safetensors::Dtype::F8_E4M3 | safetensors::Dtype::F8_E5M2 => Some(Dtype::U8),
        _ => dtype(info),
    }
}

/// The dtype of a tensor whose values are numbers as they are, when arrays can have it.
pub(crate) fn dtype(info: &TensorInfo) -> Option<Dtype> {
    Some(match info.dtype {
        safetensors::Dtype::BF16 => Dtype::Bf16,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F64 => Dtype::F64,
        safetensors::Dtype::I64 => Dtype::I64,
        safetensors::Dtype::I32 => Dtype::I32,
        safetensors::Dtype::U8 => Dtype::U8,
        _ => return None,
    })
}
