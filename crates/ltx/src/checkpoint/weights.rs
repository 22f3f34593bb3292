//! A cursor over one component's tensors that remembers what was read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use half::bf16;
use mlx::device::Device;
use mlx::{Array, Dtype};

use super::header::dtype;
use super::lora::Fusion;
use super::residency::{Span, joined};
use super::{File, Residency, packs};
use crate::error::{Error, Result};
use crate::nn::Packing;

/// What tensors that nobody read mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// An error.
    Refuse,
    /// Names for a warning.
    Report,
}

/// A place in a component's tree of tensors. Cursors of one component share the record of what was read.
#[derive(Clone, Debug)]
pub struct Weights {
    source: Rc<Source>,
    path: String,
    dtype: Dtype,
    /// What is added to tensors while they are read.
    fusion: Option<Arc<Fusion>>,
    residency: Residency,
    /// How linear layers are packed while they are read, and of how many blocks the network has.
    packing: Option<(Packing, usize)>,
}

#[derive(Debug, Default)]
struct Source {
    files: Vec<Arc<File>>,
    /// Key prefix in the files that paths here leave out.
    root: String,
    /// Path → index of its file.
    tensors: BTreeMap<String, usize>,
    /// Whether every tensor that is asked for is there, with random values.
    random: bool,
    /// Of weights that are nowhere: what is known of them, and what was asked for.
    outline: Option<Outline>,
    read: RefCell<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Outline {
    known: BTreeMap<String, Vec<i32>>,
    asked: RefCell<BTreeMap<String, Vec<i32>>>,
}

impl Weights {
    /// The tensors `root` + each of `paths`, found in any of `files`, to be read as `dtype`.
    pub fn new(
        files: Vec<Arc<File>>,
        root: &str,
        dtype: Dtype,
        paths: impl IntoIterator<Item = String>,
    ) -> Self {
        let place =
            |path: &String| files.iter().position(|file| file.info(&format!("{root}{path}")).is_some());
        let tensors = paths
            .into_iter()
            .filter_map(|path| Some((place(&path)?, path)))
            .map(|(file, path)| (path, file))
            .collect();
        let source = Source { files, root: root.into(), tensors, ..Source::default() };
        Self {
            source: Rc::new(source),
            path: String::new(),
            dtype,
            fusion: None,
            residency: Residency::default(),
            packing: None,
        }
    }

    /// The same place, its tensors changed by LoRAs.
    pub fn fused(self, fusion: Option<Arc<Fusion>>) -> Self {
        Self { fusion, ..self }
    }

    /// The same place, whose [`Blocks`](super::Blocks) are kept as `residency` says.
    pub fn kept(self, residency: Residency) -> Self {
        Self { residency, ..self }
    }

    /// The same place, whose linear layers are packed while they are read where a rule allows it. A model that holds packed
    /// weights stays as it is: somebody has chosen for it.
    pub fn packed_as(self, packing: Option<Packing>) -> Self {
        let packing = packing.filter(|_| !self.is_packed());
        let source = &self.source;
        let keys = source.tensors.keys().map(|path| format!("{}{path}", source.root));
        let packing = packing.map(|packing| (packing, packs::blocks(keys)));
        Self { packing, ..self }
    }

    /// How linear layers are packed while they are read.
    pub(super) fn packing(&self) -> Option<Packing> {
        self.packing.map(|(packing, _)| packing)
    }

    /// How many blocks the network has, if they are packed.
    pub(super) fn block_count(&self) -> usize {
        self.packing.map_or(0, |(_, blocks)| blocks)
    }

    /// How blocks are kept.
    pub(crate) fn residency(&self) -> Residency {
        self.residency
    }

    /// [`Self::spans`] of what networks hold copies of once they have computed, if that is most of what is here.
    pub(super) fn copied(&self) -> Vec<Span> {
        if !self.settles() {
            return Vec::new();
        }
        let packed = self.packing.is_some();
        self.spans_where(|file, key| {
            packed || file.quantized(key).is_none_or(|kind| kind.packing().is_some())
        })
    }

    /// Where in their files the tensors below this place are, with what changes them.
    pub(super) fn spans(&self) -> Vec<Span> {
        self.spans_where(|_, _| true)
    }

    /// Gives back the memory that the files take here, until they are used again.
    pub(crate) fn release(&self) {
        self.spans().into_iter().for_each(Span::release);
    }

    fn spans_where(&self, wanted: impl Fn(&File, &str) -> bool) -> Vec<Span> {
        let mut spans = Vec::new();
        for (file, key) in self.tensors_below().filter(|(file, key)| wanted(file, key)) {
            let factors = self.fusion.iter().flat_map(|fusion| fusion.factors(&key));
            for (file, key) in [(file, key.as_str())].into_iter().chain(factors) {
                spans.extend(file.span(key).map(|bytes| Span { file: file.clone(), bytes }));
            }
        }
        joined(spans)
    }

    /// Whatever tensors are asked for, in whatever shape, with random values that are bf16 in "the file": for measuring how
    /// fast a network is without its weights. [`Self::has`] and [`Self::shape`] know of none.
    pub(crate) fn random(dtype: Dtype) -> Self {
        Self::without_files(Source { random: true, ..Source::default() }, dtype)
    }

    /// Zeros in whatever shape is asked for: to learn what a network reads. [`Self::has`] and [`Self::shape`] know of
    /// `known`.
    pub(crate) fn outline(dtype: Dtype, known: BTreeMap<String, Vec<i32>>) -> Self {
        let outline = Some(Outline { known, ..Outline::default() });
        Self::without_files(Source { outline, ..Source::default() }, dtype)
    }

    /// The paths and shapes that an outline was asked for.
    pub(crate) fn asked(&self) -> BTreeMap<String, Vec<i32>> {
        self.source.outline.as_ref().map(|outline| outline.asked.borrow().clone()).unwrap_or_default()
    }

    /// Whatever tensors are asked for, none of which takes memory before it is used: for the shapes of a network.
    pub(crate) fn shapes(dtype: Dtype) -> Self {
        Self::outline(dtype, BTreeMap::new())
    }

    fn without_files(source: Source, dtype: Dtype) -> Self {
        Self {
            source: Rc::new(source),
            path: String::new(),
            dtype,
            fusion: None,
            residency: Residency::default(),
            packing: None,
        }
    }

    /// The place `path` below this one.
    pub fn at(&self, path: impl Display) -> Self {
        Self { path: self.join(path), ..self.clone() }
    }

    /// The same place, read as `dtype`: for a component that computes in f32 whatever the others do.
    pub fn in_dtype(&self, dtype: Dtype) -> Self {
        Self { dtype, ..self.clone() }
    }

    pub(super) fn join(&self, path: impl Display) -> String {
        if self.path.is_empty() { path.to_string() } else { format!("{}.{path}", self.path) }
    }

    /// The dtype that tensors are read as.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether the tensor `name` is here. Asking does not count as reading.
    pub fn has(&self, name: &str) -> bool {
        self.shape_in_outline(name).is_some() || self.source.tensors.contains_key(&self.join(name))
    }

    fn shape_in_outline(&self, name: &str) -> Option<&Vec<i32>> {
        self.source.outline.as_ref()?.known.get(&self.join(name))
    }

    /// The shape of the tensor `name`, if it is here. Asking does not count as reading.
    pub fn shape(&self, name: &str) -> Option<Vec<i32>> {
        if let Some(shape) = self.shape_in_outline(name) {
            return Some(shape.clone());
        }
        let path = self.join(name);
        let file = &self.source.files[*self.source.tensors.get(&path)?];
        let info = file.info(&format!("{}{path}", self.source.root))?;
        info.shape.iter().map(|&size| i32::try_from(size).ok()).collect()
    }

    /// The tensor `name`, which must have exactly `shape`, in the component's dtype.
    pub fn tensor(&self, name: &str, shape: &[i32]) -> Result<Array> {
        self.tensor_as(name, shape, self.dtype)
    }

    /// The tensor `name`, which must have exactly `shape`, as `dtype`.
    pub fn tensor_as(&self, name: &str, shape: &[i32], dtype: Dtype) -> Result<Array> {
        Ok(self.tensor_as_stored(name, shape)?.astype(dtype)?)
    }

    /// The tensor `name`, which must have exactly `shape`, in the dtype that the file has: for tables of which a few rows
    /// are used.
    pub fn tensor_as_stored(&self, name: &str, shape: &[i32]) -> Result<Array> {
        if self.source.random {
            return Ok(random(shape)?);
        }
        if let Some(outline) = &self.source.outline {
            outline.asked.borrow_mut().insert(self.join(name), shape.to_vec());
            return Ok(mlx::zeros(shape, self.dtype)?);
        }
        if let Some((file, key)) = self.locate(name)
            && let Some(info) = file.info(&key).filter(|info| dtype(info).is_none())
        {
            let problem =
                format!("has dtype {:?}, but is no weight of a linear layer, which alone may", info.dtype);
            return Err(self.error(name, problem, "use an official bf16, f16, f32 or fp8 file"));
        }
        let array = self.tensor_as_stored_unchanged(name, shape)?;
        match self.locate(name) {
            Some((_, key)) => self.fuse(&key, array),
            None => Ok(array),
        }
    }

    /// The file and the full key of the tensor `name`, if it is here.
    pub(super) fn locate(&self, name: &str) -> Option<(&File, String)> {
        let path = self.join(name);
        let file = &self.source.files[*self.source.tensors.get(&path)?];
        Some((file, format!("{}{path}", self.source.root)))
    }

    /// All tensors with their files and full keys.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&File, String)> {
        let source = &self.source;
        source.tensors.iter().filter_map(move |(path, &file)| {
            Some((source.files.get(file)?.as_ref(), format!("{}{path}", source.root)))
        })
    }

    /// Those at and below this place.
    pub(super) fn tensors_below(&self) -> impl Iterator<Item = (&Arc<File>, String)> {
        let (source, prefix) = (&self.source, self.join(""));
        let tensors = source.tensors.range(prefix.clone()..);
        let below = tensors.take_while(move |(path, _)| path.starts_with(&prefix));
        below.filter_map(move |(path, &file)| {
            Some((source.files.get(file)?, format!("{}{path}", source.root)))
        })
    }

    /// Whether LoRAs change the tensor of a full key.
    pub(super) fn changes(&self, key: &str) -> bool {
        self.fusion.as_ref().is_some_and(|fusion| fusion.changes(key))
    }

    /// `array`, which the tensor of a full key holds, with LoRAs in it.
    pub(super) fn fuse(&self, key: &str, array: Array) -> Result<Array> {
        match &self.fusion {
            Some(fusion) => fusion.fuse(key, array),
            None => Ok(array),
        }
    }

    /// Counts the tensor `name`, if it is here, as read.
    pub(super) fn mark(&self, name: &str) {
        if self.has(name) {
            self.source.read.borrow_mut().insert(self.join(name));
        }
    }

    /// [`Self::tensor_as_stored`] of whatever dtype, codes of floats too, without LoRAs.
    pub(super) fn tensor_as_stored_unchanged(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let path = self.join(name);
        let Some(&file) = self.source.tensors.get(&path) else {
            return Err(self.error(name, "is missing", "the file is of another generation than its configuration says, or damaged: download it again"));
        };
        let key = format!("{}{path}", self.source.root);
        let array = self.source.files[file].coded_array(&key)?;
        if array.shape() != shape {
            let problem = format!("has shape {:?}, but the configuration asks for {shape:?}", array.shape());
            return Err(self.error(name, problem, "the weights and the configuration in the header do not belong together: use the official file"));
        }
        self.source.read.borrow_mut().insert(path);
        Ok(array)
    }

    /// An error about the tensor `name`, with its file and full key.
    pub fn error(&self, name: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        let path = self.join(name);
        let file = self.source.tensors.get(&path).copied().unwrap_or(0);
        let file = self.source.files.get(file).map_or(Path::new("(no file)"), |file| file.path());
        Error::file(file, format!("{}{path}", self.source.root), problem, remedy)
    }

    /// Ends loading: the full keys of tensors that nobody read, or an error naming them.
    pub fn finish(&self, unread: Unread) -> Result<Vec<String>> {
        let read = self.source.read.borrow();
        let left: Vec<String> = self
            .source
            .tensors
            .keys()
            .filter(|path| !read.contains(*path))
            .map(|path| format!("{}{path}", self.source.root))
            .collect();
        if left.is_empty() || unread == Unread::Report {
            return Ok(left);
        }
        let path = self.source.files.first().map_or(Path::new(""), |file| file.path());
        Err(Error::file(
            path,
            left[0].clone(),
            format!(
                "and {} more would not be used: the file holds more than its configuration describes",
                left.len() - 1
            ),
            "use the official file for this version, or pass --allow-unread to go on without these tensors",
        ))
    }
}

/// Even between −a and a, with a so chosen that a layer's outputs are about as large as its inputs: √(3 / inputs).
fn random(shape: &[i32]) -> mlx::Result<Array> {
    let size: usize = shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product();
    let inputs: f32 = shape.iter().skip(1).map(|&size| size as f32).product();
    let scale = (3.0 / inputs.max(3.0)).sqrt();
    if mlx::device::current() == Device::Gpu {
        let made = mlx::uniform(f64::from(-scale), f64::from(scale), shape, Dtype::Bf16, size as u64)?;
        made.eval()?;
        return Ok(made);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ size as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bf16::from_f32(((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale)
    };
    let values: Arc<Vec<bf16>> = Arc::new((0..size).map(|_| next()).collect());
    Array::borrowed(values, |values| bytemuck::cast_slice(values), shape, Dtype::Bf16)
}
