//! A golden file: inputs, settings, and the reference's outputs. The format is in docs/parity.md.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mlx::{Array, Dtype};

use super::{Comparison, Context, Outputs, Report};
use crate::checkpoint::File;
use crate::error::{Error, Result};

/// An open golden file. It remembers which inputs were read.
#[derive(Debug)]
pub struct Golden {
    file: File,
    component: String,
    read: RefCell<BTreeSet<String>>,
}

impl Golden {
    /// Opens a golden and checks that it is one.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let component = file.metadata("component").map(String::from).ok_or_else(|| {
            Error::file(
                path,
                "__metadata__.component",
                "is missing: this is not a golden file",
                "give one (docs/parity.md); `-noise` and `-embedding` files beside whole runs belong to `ltx generate`",
            )
        })?;
        Ok(Self { file, component, read: RefCell::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The component it is about.
    pub fn component(&self) -> &str {
        &self.component
    }

    /// The checkpoint files it was made with, relative to the root of its set; none for mathematics without weights.
    pub fn checkpoints(&self) -> Vec<PathBuf> {
        let names = self.setting("checkpoint").unwrap_or("").split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).map(PathBuf::from).collect()
    }

    /// A setting in the header.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.file.metadata(key)
    }

    /// A setting that is a number.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        self.setting(key)
            .map(|text| {
                text.trim().parse().map_err(|_| self.error(key, format!("is `{text}`, not a number")))
            })
            .transpose()
    }

    /// A setting that is a list of numbers like `1,3`; absent or empty is an empty list.
    pub fn numbers(&self, key: &str) -> Result<Vec<usize>> {
        let parse = |part: &str| {
            part.trim().parse().map_err(|_| self.error(key, format!("has `{part}`, not a number")))
        };
        self.setting(key).unwrap_or("").split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
    }

    /// An error about this golden.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::file(self.path(), key, problem, "check the golden file: the format is in docs/parity.md")
    }

    /// The tensor `name` in its own dtype, if it is there.
    pub fn optional_raw(&self, name: &str) -> Result<Option<Array>> {
        if self.file.info(name).is_none() {
            return Ok(None);
        }
        self.read.borrow_mut().insert(name.into());
        self.file.array(name).map(Some)
    }

    /// The tensor `name` as f32, if it is there.
    pub fn optional(&self, name: &str) -> Result<Option<Array>> {
        Ok(self.optional_raw(name)?.map(|array| array.astype(Dtype::F32)).transpose()?)
    }

    /// The tensor `name` as f32.
    pub fn array(&self, name: &str) -> Result<Array> {
        self.optional(name)?.ok_or_else(|| self.error(name, "is missing"))
    }

    /// The tensor `name`, which holds integers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let array = self.optional_raw(name)?.ok_or_else(|| self.error(name, "is missing"))?;
        if array.dtype().is_float() {
            return Err(self.error(name, "does not hold integers"));
        }
        Ok(array.astype(Dtype::I64)?.to_vec()?)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        self.file.tensors().map(|(name, _)| name).collect()
    }

    pub(super) fn refuse_unknown_inputs(&self) -> Result<()> {
        let read = self.read.borrow();
        match self.names().into_iter().find(|name| name.starts_with("in.") && !read.contains(name)) {
            Some(name) => Err(self.error(&name, format!("is not an input of `{}`", self.component))),
            None => Ok(()),
        }
    }

    pub(super) fn compare(&self, outputs: &Outputs, context: &Context) -> Result<Report> {
        let own: Option<f32> = self.number("rtol")?;
        let tolerance =
            if context.dtype == Dtype::F32 { own.unwrap_or(1e-4) } else { own.unwrap_or(0.0).max(2e-2) };
        let mut report = Report {
            component: self.component.clone(),
            tolerance,
            comparisons: Vec::new(),
            notes: Vec::new(),
        };
        let expected: Vec<String> = self
            .names()
            .into_iter()
            .filter(|name| name.starts_with("out.") || name.starts_with("mid."))
            .collect();
        // In the order computed, so that the first failure is the earliest intermediate that went wrong.
        for (name, ours) in outputs {
            if !expected.contains(name) {
                continue;
            }
            let reference = self.file.array(name)?.astype(Dtype::F32)?;
            if ours.shape() != reference.shape() {
                return Err(self.error(
                    name,
                    format!("has shape {:?}; this build computed {:?}", reference.shape(), ours.shape()),
                ));
            }
            report.comparisons.push(comparison(
                name,
                &ours.to_f32()?,
                &reference.to_f32()?,
                ours.shape(),
                tolerance,
            ));
        }
        for name in expected.iter().filter(|name| !outputs.iter().any(|(ours, _)| ours == *name)) {
            if name.starts_with("out.") {
                return Err(self.error(name, format!("is not an output of `{}`", self.component)));
            }
            report.notes.push(format!("{name} is not exposed and was not compared"));
        }
        if report.comparisons.is_empty() {
            return Err(self.error("out", "holds nothing to compare"));
        }
        Ok(report)
    }
}

fn comparison(name: &str, ours: &[f32], reference: &[f32], shape: &[i32], tolerance: f32) -> Comparison {
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    let (mut worst, mut place) = (0.0f32, 0);
    for (index, (&a, &b)) in ours.iter().zip(reference).enumerate() {
        let delta = (a - b).abs();
        difference += f64::from(delta).powi(2);
        norm += f64::from(b).powi(2);
        // A NaN is the worst of all, and the first one is the one to name.
        if !worst.is_nan() && (delta.is_nan() || delta > worst) {
            (worst, place) = (delta, index);
        }
    }
    let relative = if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() } as f32;
    let mut index = Vec::new();
    let mut rest = place;
    for &size in shape.iter().rev() {
        index.push(rest % size as usize);
        rest /= size as usize;
    }
    index.reverse();
    let at = (index, ours.get(place).copied().unwrap_or(0.0), reference.get(place).copied().unwrap_or(0.0));
    Comparison { name: name.into(), worst, relative, at, passed: relative <= tolerance }
}

#[cfg(test)]
mod tests {
    use super::comparison;

    #[test]
    fn the_worst_element_is_named() {
        let found =
            comparison("x", &[1.0, 2.0, 3.5, 4.0, 5.0, 6.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], 1e-3);
        assert_eq!((found.at, found.worst, found.passed), ((vec![0, 2], 3.5, 3.0), 0.5, false));
    }

    #[test]
    fn a_nan_fails() {
        let found = comparison("x", &[1.0, f32::NAN, 9.0], &[1.0, 2.0, 3.0], &[3], 1e-3);
        assert!(!found.passed && found.worst.is_nan() && found.at.0 == [1]);
    }
}
