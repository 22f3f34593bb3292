//! From sums to outputs.

use std::ops::Range;

use crate::Error;
use crate::isa::{Simd, Work};
use crate::math::Activation;
use crate::pool::Shared;
use crate::values::{Element, Values, fits, load, store};

/// What a layer does with its sums: residual + gate · activation(sums + bias).
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// (n)
    pub bias: Option<Values<'a>>,
    #[allow(missing_docs)]
    pub activation: Activation,
    /// What the output is added to.
    pub residual: Option<Residual<'a>>,
}

/// What an output (m, n) is added to.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// (m, n)
    pub values: Values<'a>,
    /// What the output is multiplied by first.
    pub gate: Option<PerRow<'a>>,
}

/// Values for each row of (m, n): row `r` takes row `r / repeat % rows`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct PerRow<'a> {
    pub values: Values<'a>, // (rows, n)
    pub rows: usize,
    pub repeat: usize,
}

impl PerRow<'_> {
    /// Says so when they do not fit rows of `n`.
    pub(crate) fn check(&self, what: &'static str, n: usize) -> Result<(), Error> {
        fits(what, self.values.len(), &[self.rows, n])?;
        if self.rows == 0 || self.repeat == 0 {
            let found = format!("{} rows, each for {}", self.rows, self.repeat);
            return Err(Error::Shape { what, expected: "a row at least".into(), found });
        }
        Ok(())
    }

    /// Up to a vector's worth of `columns` for row `row`.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, simd: S, row: usize, columns: Range<usize>, n: usize) -> S::V {
        let start = row / self.repeat % self.rows * n;
        self.values.load(simd, start + columns.start..start + columns.end)
    }
}

/// An [`Epilogue`] that is known to fit, with the bias widened once.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) bias: Option<&'a [f32]>,
    activation: Activation,
    residual: Option<Residual<'a>>,
}

impl<'a> End<'a> {
    /// For an output (m, n); `bias` is the epilogue's, widened.
    pub(crate) fn new(
        epilogue: &Epilogue<'a>,
        bias: Option<&'a [f32]>,
        [m, n]: [usize; 2],
    ) -> Result<Self, Error> {
        if let Some(bias) = bias {
            fits("bias", bias.len(), &[n])?;
        }
        if let Some(residual) = epilogue.residual {
            fits("residual", residual.values.len(), &[m, n])?;
            if let Some(gate) = residual.gate {
                gate.check("gate", n)?;
            }
        }
        Ok(Self { bias, activation: epilogue.activation, residual: epilogue.residual })
    }

    /// What becomes of a vector of sums that belong to `columns` of row `row`; `n` is how many columns there are in all.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(
        &self,
        simd: S,
        mut sum: S::V,
        row: usize,
        columns: Range<usize>,
        n: usize,
    ) -> S::V {
        if let Some(bias) = self.bias {
            sum = simd.add(sum, load(simd, &bias[columns.clone()]));
        }
        let value = self.activation.apply(simd, sum);
        let Some(Residual { values, gate }) = self.residual else { return value };
        let residual = values.load(simd, row * n + columns.start..row * n + columns.end);
        match gate {
            None => simd.add(residual, value),
            Some(gate) => simd.fma(gate.load(simd, row, columns, n), value, residual),
        }
    }
}

/// Writes the outputs of a panel: `sums` (rows, panel width) go to rows `row ..`, columns `column ..` of `out`
/// (rows, columns).
pub(super) struct Finish<'a, O> {
    pub(super) sums: &'a [f32],
    pub(super) end: End<'a>,
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) columns: usize,
    /// No other task has this part of it.
    pub(super) out: &'a Shared<'a, O>,
}

impl<O: Element> Work for Finish<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = S::LANES * S::VECTORS;
        let count = width.min(self.columns - self.column);
        for (row, sums) in self.sums.chunks_exact(width).enumerate() {
            let start = (self.row + row) * self.columns + self.column;
            // SAFETY: the task has this panel of these rows alone.
            let out = unsafe { self.out.part(start..start + count) };
            for (vector, out) in out.chunks_mut(S::LANES).enumerate() {
                let at = vector * S::LANES;
                let columns = self.column + at..self.column + at + out.len();
                let sum = simd.load(&sums[at..]);
                store(simd, self.end.apply(simd, sum, self.row + row, columns, self.columns), out);
            }
        }
    }
}

/// [`Finish`] for sums that came out transposed: `sums` (panels of `rows`, columns, width), and 16 · width more.
#[cfg(target_arch = "x86_64")]
pub(super) struct FinishColumns<'a, O> {
    pub(super) sums: &'a [f32],
    pub(super) end: End<'a>,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Columns of `out`.
    pub(super) n: usize,
    /// No other task has this part of it.
    pub(super) out: &'a Shared<'a, O>,
}

#[cfg(target_arch = "x86_64")]
impl<O: Element> Work for FinishColumns<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = S::LANES * S::VECTORS;
        let mut square = [0.0f32; 16 * 16]; // (rows, columns)
        for (group, first_row) in self.rows.clone().step_by(S::LANES).enumerate() {
            let (panel, vector) = (group / S::VECTORS, group % S::VECTORS);
            for (index, column) in self.columns.clone().step_by(S::LANES).enumerate() {
                let at = (panel * self.columns.len() + index * S::LANES) * width + vector * S::LANES;
                simd.transpose(bytemuck::cast_slice(&self.sums[at..]), width * 4, &mut square, S::LANES);
                let columns = column..self.columns.end.min(column + S::LANES);
                let rows = first_row..self.rows.end.min(first_row + S::LANES);
                for (row, sums) in rows.zip(square.chunks_exact(S::LANES)) {
                    // SAFETY: the task has these columns of these rows alone.
                    let out =
                        unsafe { self.out.part(row * self.n + columns.start..row * self.n + columns.end) };
                    let value = self.end.apply(simd, simd.load(sums), row, columns.clone(), self.n);
                    store(simd, value, out);
                }
            }
        }
    }
}
