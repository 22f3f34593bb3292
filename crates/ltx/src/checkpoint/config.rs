//! A cursor over a JSON configuration whose errors name the file and the full key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Result};

/// One object of a configuration. A key that is read must be there; keys that older files lack are read with the
/// `optional_` functions, and the caller names what absence means.
#[derive(Clone, Debug)]
pub struct Config {
    file: Arc<PathBuf>,
    path: String,
    value: Arc<Value>,
}

impl Config {
    /// The configuration `value` found in `file`.
    pub fn new(file: &Path, value: Value) -> Self {
        Self { file: Arc::new(file.into()), path: String::new(), value: Arc::new(value) }
    }

    /// The file it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The object under `key`.
    pub fn at(&self, key: &str) -> Result<Self> {
        self.child(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// The object under `key`, if there is one.
    pub fn optional_at(&self, key: &str) -> Result<Option<Self>> {
        self.child(key)
    }

    fn child(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => Ok(Some(Self {
                file: self.file.clone(),
                path: self.full(key),
                value: Arc::new(value.clone()),
            })),
            Some(_) => Err(self.error(key, "is not an object")),
        }
    }

    /// The value under `key`; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// An error about `key`: "… in the configuration of FILE".
    pub fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::file(
            self.file.as_path(),
            format!("config.{}", self.full(key)),
            problem,
            "use a file whose configuration this version of ltx supports",
        )
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        parse: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        parse(value).map(Some).ok_or_else(|| self.error(key, format!("is {value}, not {what}")))
    }

    /// A size: an integer from 0 to 2³¹ − 1.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a size", size)
    }

    /// A number.
    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// True or false.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn optional_str(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a text", Value::as_str)
    }

    /// A list of sizes.
    pub fn optional_list_usize(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.read(key, "a list of sizes", |value| value.as_array()?.iter().map(size).collect())
    }

    /// A size that must be there.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.required(key, self.optional_usize(key))
    }

    /// A size as MLX takes it.
    pub fn i32(&self, key: &str) -> Result<i32> {
        let size = self.usize(key)?;
        i32::try_from(size).map_err(|_| self.error(key, "is too large"))
    }

    /// A number that must be there.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.required(key, self.optional_f64(key))
    }

    /// A flag that must be there.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.required(key, self.optional_bool(key))
    }

    /// A text that must be there.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.required(key, self.optional_str(key))
    }

    /// A list of sizes that must be there.
    pub fn list_usize(&self, key: &str) -> Result<Vec<usize>> {
        self.required(key, self.optional_list_usize(key))
    }

    /// A list of objects that must be there.
    pub fn list(&self, key: &str) -> Result<&[Value]> {
        self.required(key, self.read(key, "a list", |value| value.as_array().map(Vec::as_slice)))
    }

    fn required<T>(&self, key: &str, value: Result<Option<T>>) -> Result<T> {
        value?.ok_or_else(|| self.error(key, "is missing"))
    }
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|size| i32::try_from(size).ok()).and_then(|size| usize::try_from(size).ok())
}
