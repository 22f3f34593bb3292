//! Convolutions over one to three axes, channels last, as matrix products whose rows are neighbourhoods gathered a block
//! at a time: nowhere is a neighbourhood of every output kept. A filter for each channel has a kernel of its own.
//!
//! Transposed convolutions are plain ones with as many groups of outputs as the stride; the caller arranges weights so.

mod depthwise;

use crate::Error;
use crate::gemm::{End, Epilogue, Product, Rows, Weight};
use crate::values::{Element, Matrix, Values, ValuesMut, convert, fits};

/// One axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Axis {
    pub size: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Padding before the first value; negative crops.
    pub before: isize,
    /// Padding after the last value; negative crops.
    pub after: isize,
    /// What padding holds.
    pub padding: Padding,
}

/// What stands beyond the ends of an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// Zeros.
    #[default]
    Zeros,
    /// The outermost value, again and again.
    Edge,
}

impl Axis {
    /// `size` values, looked at `kernel` at a time.
    pub fn new(size: usize, kernel: usize) -> Self {
        Self { size, kernel, stride: 1, dilation: 1, before: 0, after: 0, padding: Padding::Zeros }
    }

    /// How many outputs there are: none where the kernel does not fit.
    pub fn outputs(&self) -> usize {
        let reach = (self.kernel.max(1) - 1).saturating_mul(self.dilation);
        let padded =
            self.size.checked_add_signed(self.before).and_then(|size| size.checked_add_signed(self.after));
        padded
            .and_then(|padded| padded.checked_sub(reach + 1))
            .map_or(0, |last| last / self.stride.max(1) + 1)
    }

    /// Where tap `tap` of output `output` looks, unless at zeros.
    #[inline(always)]
    fn place(&self, output: usize, tap: usize) -> Option<usize> {
        let at = (output * self.stride + tap * self.dilation) as isize - self.before;
        match self.padding {
            Padding::Zeros => usize::try_from(at).ok().filter(|&at| at < self.size),
            Padding::Edge => Some(at.clamp(0, self.size as isize - 1) as usize),
        }
    }
}

/// The sizes of a convolution of x (batch, axes.., inputs) with weight (outputs, kernels.., inputs / groups).
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ConvShape {
    pub batch: usize,
    /// One to three.
    pub axes: Vec<Axis>,
    pub inputs: usize,
    pub outputs: usize,
    /// 1, or as many as there are inputs and outputs: a filter for each channel.
    pub groups: usize,
}

/// out (batch, outputs of axes.., outputs) = epilogue(x ⋆ weight), whose rows are all places of the output; the kernel is not
/// flipped. `past`, of the type of `x`, holds what stands before `x` on the first of three axes, whose size counts both.
pub fn conv<'a>(
    x: Values<'_>,
    past: Option<Values<'_>>,
    weight: Values<'_>,
    shape: &ConvShape,
    epilogue: &Epilogue<'_>,
    out: impl Into<ValuesMut<'a>>,
) -> Result<(), Error> {
    let out = out.into();
    let geometry = Geometry::new(shape)?;
    let sizes = |of: fn(&Axis) -> usize| geometry.axes.map(|axis| of(&axis));
    let [a, b, c] = sizes(|axis| axis.size);
    let before = past.map_or(0, |past| past.len());
    fits("input", x.len() + before, &[shape.batch, a, b, c, shape.inputs])?;
    // Whole slices, and whatever finds them is made for them.
    let slice = shape.batch * b * c * shape.inputs;
    if before > 0 && (before % slice != 0 || shape.axes.len() != 3 || geometry.depthwise) {
        let expected = format!("a multiple of {slice} values, before three axes");
        return Err(Error::Shape { what: "past", expected, found: before.to_string() });
    }
    let [a, b, c] = sizes(|axis| axis.kernel);
    fits("weight", weight.len(), &[shape.outputs, a, b, c, shape.inputs / shape.groups.max(1)])?;
    let [a, b, c] = sizes(Axis::outputs);
    fits("output", out.len(), &[shape.batch, a, b, c, shape.outputs])?;
    if out.is_empty() {
        return Ok(());
    }
    let bias = epilogue.bias.map(Values::to_f32);
    let end = End::new(epilogue, bias.as_deref(), [out.len() / shape.outputs, shape.outputs])?;
    match (x, past, out) {
        (Values::F32(x), None, ValuesMut::F32(out)) => run([&[], x], weight, geometry, end, out),
        (Values::F32(x), None, ValuesMut::Bf16(out)) => run([&[], x], weight, geometry, end, out),
        (Values::Bf16(x), None, ValuesMut::F32(out)) => run([&[], x], weight, geometry, end, out),
        (Values::Bf16(x), None, ValuesMut::Bf16(out)) => run([&[], x], weight, geometry, end, out),
        (Values::F32(x), Some(Values::F32(past)), ValuesMut::F32(out)) => {
            run([past, x], weight, geometry, end, out);
        }
        (Values::Bf16(x), Some(Values::Bf16(past)), ValuesMut::Bf16(out)) => {
            run([past, x], weight, geometry, end, out);
        }
        _ => {
            let (expected, found) = ("the type of x and the output".into(), "another".into());
            return Err(Error::Shape { what: "past", expected, found });
        }
    }
    Ok(())
}

fn run<T: Element, O: Element>(
    [past, x]: [&[T]; 2],
    weight: Values<'_>,
    geometry: Geometry,
    end: End<'_>,
    out: &mut [O],
) {
    let rows = out.len() / geometry.outputs;
    if geometry.depthwise {
        return depthwise::run(x, &weight.to_f32(), &geometry, end, out);
    }
    let narrow = T::NARROW && matches!(weight, Values::Bf16(_));
    let columns = geometry.taps() * geometry.inputs;
    let weight = Matrix { values: weight, rows: geometry.outputs, columns, stride: columns };
    let product = Product::new(Weight::Dense(weight), narrow, end);
    let slice = (past.len() + x.len()) / geometry.axes[0].size.max(1);
    let neighbourhoods = Neighbourhoods { past, x, before: past.len() / slice.max(1), geometry };
    // Few outputs: each thread transposes its own part of the weight. Many: the weight is worth transposing first.
    if rows <= crate::gemm::ROWS_AT_ONCE {
        product.by_columns(&neighbourhoods, rows, out);
    } else {
        product.by_rows(&neighbourhoods, rows, out);
    }
}

/// A convolution over exactly three axes.
#[derive(Clone, Copy)]
struct Geometry {
    axes: [Axis; 3],
    counts: [usize; 3], // outputs along each
    inputs: usize,
    outputs: usize,
    depthwise: bool,
}

impl Geometry {
    fn new(shape: &ConvShape) -> Result<Self, Error> {
        let wrong =
            |what, expected: &str, found: String| Error::Shape { what, expected: expected.into(), found };
        let mut axes = [Axis::new(1, 1); 3];
        if shape.axes.is_empty() || shape.axes.len() > 3 {
            return Err(wrong("axes", "one to three", shape.axes.len().to_string()));
        }
        axes[3 - shape.axes.len()..].copy_from_slice(&shape.axes);
        if let Some(axis) =
            axes.iter().find(|axis| axis.stride == 0 || axis.dilation == 0 || axis.kernel == 0)
        {
            return Err(wrong("axis", "a stride, a dilation and a kernel", format!("{axis:?}")));
        }
        if let Some(axis) = axes.iter().find(|axis| axis.padding == Padding::Edge && axis.size == 0) {
            return Err(wrong("axis", "a value to repeat", format!("{axis:?}")));
        }
        let depthwise = shape.groups == shape.inputs && shape.groups == shape.outputs && shape.groups > 1;
        if shape.groups != 1 && !depthwise {
            return Err(wrong("groups", "1 or one for each channel", shape.groups.to_string()));
        }
        Ok(Self {
            axes,
            counts: axes.map(|axis| axis.outputs()),
            inputs: shape.inputs,
            outputs: shape.outputs,
            depthwise,
        })
    }

    fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.kernel).product()
    }

    /// The sample and the place along each axis of an output.
    #[inline(always)]
    fn output(&self, row: usize) -> (usize, [usize; 3]) {
        let [a, b, c] = self.counts;
        let (line, column) = (row / c, row % c);
        let (plane, line) = (line / b, line % b);
        (plane / a, [plane % a, line, column])
    }
}

/// What each output sees: a row of (kernels.., inputs) values, zeros where it looks at padding.
struct Neighbourhoods<'a, T> {
    past: &'a [T], // (batch, before, axes.., inputs)
    x: &'a [T],    // (batch, size − before, axes.., inputs)
    /// How much of the first axis is past.
    before: usize,
    geometry: Geometry,
}

impl<T: Element> Rows for Neighbourhoods<'_, T> {
    fn copy<E: Element>(&self, row: usize, from: usize, to: &mut [E]) {
        let Geometry { axes: [a, b, c], inputs, .. } = self.geometry;
        let (sample, output) = self.geometry.output(row);
        // Taps of the last axis that lie side by side in the input are copied together.
        let together = if c.dilation == 1 && c.padding == Padding::Zeros { c.kernel } else { 1 };
        let run = together * inputs;
        let (mut to, mut from) = (to, from);
        while !to.is_empty() {
            let (index, start) = (from / run, from % run);
            let count = (run - start).min(to.len());
            let (part, rest) = to.split_at_mut(count);
            (to, from) = (rest, from + count);
            let tap = index * together;
            let (Some(i), Some(j)) = (
                a.place(output[0], tap / (b.kernel * c.kernel)),
                b.place(output[1], tap / c.kernel % b.kernel),
            ) else {
                part.fill(E::zeroed());
                continue;
            };
            // Values of the run that lie before the input's line, and where the line ends in it.
            let mut first = (output[2] * c.stride + tap % c.kernel * c.dilation) as isize - c.before;
            if c.padding == Padding::Edge {
                first = first.clamp(0, c.size as isize - 1);
            }
            let line = c.size * inputs;
            let place = first * inputs as isize + start as isize;
            let before = place.min(0).unsigned_abs().min(count);
            let inside = (place + count as isize).clamp(0, line as isize) - place.clamp(0, line as isize);
            let inside = inside.unsigned_abs();
            part[..before].fill(E::zeroed());
            if inside > 0 {
                let (x, size, i) = match i.checked_sub(self.before) {
                    Some(i) => (self.x, a.size - self.before, i),
                    None => (self.past, self.before, i),
                };
                let start = ((sample * size + i) * b.size + j) * line + (place + before as isize) as usize;
                convert(&x[start..start + inside], &mut part[before..before + inside]);
            }
            part[before + inside..].fill(E::zeroed());
        }
    }
}
