//! A window into a network: named intermediate values, kept only when somebody looks.

use mlx::Array;

/// Collects intermediates while a network runs; [`Trace::off`] collects nothing and costs nothing.
#[derive(Debug, Default)]
pub struct Trace {
    values: Option<Vec<(String, Array)>>,
}

impl Trace {
    /// Records nothing.
    pub fn off() -> Self {
        Self { values: None }
    }

    /// Records everything that networks offer.
    pub fn on() -> Self {
        Self { values: Some(Vec::new()) }
    }

    /// Whether anything is recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.values.is_some()
    }

    /// Keeps `value` under `name` when recording; `name` is made only then.
    pub fn record<N: Into<String>>(
        &mut self,
        name: impl FnOnce() -> N,
        value: impl FnOnce() -> mlx::Result<Array>,
    ) -> mlx::Result<()> {
        if let Some(values) = &mut self.values {
            values.push((name().into(), value()?));
        }
        Ok(())
    }

    /// What was recorded, in order.
    pub fn into_values(self) -> Vec<(String, Array)> {
        self.values.unwrap_or_default()
    }
}
