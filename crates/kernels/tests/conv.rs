//! Convolutions against sums in f64, for every instruction set that this machine has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use kernels::{Activation, Axis, ConvShape, Epilogue, Isa, Padding};
use support::{Data, close, every_isa, silu};

fn axis(size: usize, kernel: usize, stride: usize, dilation: usize, before: isize, after: isize) -> Axis {
    Axis { size, kernel, stride, dilation, before, after, padding: Padding::Zeros }
}

/// The same with its ends repeated.
fn continued(axis: Axis) -> Axis {
    Axis { padding: Padding::Edge, ..axis }
}

/// Every place of `counts`, the last moving fastest.
fn places(counts: &[usize]) -> Vec<Vec<usize>> {
    counts.iter().fold(vec![Vec::new()], |all, &count| {
        all.iter().flat_map(|place| (0..count).map(|next| [&place[..], &[next]].concat())).collect()
    })
}

fn check(isa: Isa, shape: &ConvShape, [x, weight, out]: [bool; 3]) {
    let ConvShape { batch, axes, inputs, outputs, groups } = shape;
    let sizes: Vec<usize> = axes.iter().map(|axis| axis.size).collect();
    let kernels: Vec<usize> = axes.iter().map(|axis| axis.kernel).collect();
    let counts: Vec<usize> = axes.iter().map(Axis::outputs).collect();
    let (taps, own): (usize, usize) = (kernels.iter().product(), inputs / groups);
    let x = Data::new(batch * sizes.iter().product::<usize>() * inputs, 1, x);
    let weight = Data::new(outputs * taps * own, 2, weight);
    let bias = Data::new(*outputs, 3, false);
    let total = batch * counts.iter().product::<usize>() * outputs;
    assert!(total > 0, "{shape:?} computes nothing");
    let mut ours = Data::new(total, 4, out);
    kernels::conv(
        x.values(),
        None,
        weight.values(),
        shape,
        &Epilogue { bias: Some(bias.values()), activation: Activation::Silu, residual: None },
        ours.values_mut(),
    )
    .unwrap();
    let mut index = 0;
    for sample in 0..*batch {
        for place in places(&counts) {
            for output in 0..*outputs {
                let mut sum = bias.get(output);
                for (tap, offsets) in places(&kernels).iter().enumerate() {
                    let mut at = Some(sample);
                    for (axis, (&output, &offset)) in axes.iter().zip(place.iter().zip(offsets)) {
                        let mut here = (output * axis.stride + offset * axis.dilation) as isize - axis.before;
                        if axis.padding == Padding::Edge {
                            here = here.clamp(0, axis.size as isize - 1);
                        }
                        let inside = (0..axis.size as isize).contains(&here);
                        at = at.filter(|_| inside).map(|at| at * axis.size + here as usize);
                    }
                    let Some(at) = at else { continue };
                    for channel in 0..own {
                        let input = output / (outputs / groups) * own + channel;
                        sum += x.get(at * inputs + input) * weight.get((output * taps + tap) * own + channel);
                    }
                }
                let name = || format!("{sample}, {place:?}, {output} of {shape:?} on {isa}");
                // The sum's rounding grows with the root of its terms, which are below 1.
                close(ours.get(index), silu(sum), ((taps * own) as f64).sqrt() * 1e-6, out, name);
                index += 1;
            }
        }
    }
}

#[test]
fn agrees_with_sums_in_f64() {
    let shape = |batch, axes: &[Axis], inputs, outputs| ConvShape {
        batch,
        axes: axes.to_vec(),
        inputs,
        outputs,
        groups: 1,
    };
    let shapes = [
        shape(1, &[Axis::new(1, 1)], 1, 1),
        shape(2, &[axis(37, 7, 1, 3, 9, 9)], 5, 9),
        shape(1, &[axis(23, 4, 3, 1, 2, 1)], 33, 40),
        // Taps further out than the whole input, and cropping.
        shape(2, &[axis(3, 5, 1, 4, 8, 8)], 3, 2),
        shape(1, &[axis(20, 3, 1, 1, -2, -5)], 4, 3),
        shape(2, &[axis(9, 3, 2, 1, 0, 1), axis(11, 3, 2, 1, 0, 1)], 7, 6),
        shape(1, &[axis(6, 3, 1, 1, 2, 0), axis(5, 3, 1, 1, 1, 1), axis(7, 3, 1, 1, 1, 1)], 19, 35),
        shape(1, &[axis(5, 3, 1, 2, 2, 2), axis(4, 2, 1, 1, 1, 0), axis(6, 3, 1, 2, 3, 1)], 10, 5),
        shape(1, &[continued(axis(5, 3, 1, 1, 2, 0)), axis(4, 3, 1, 1, 1, 1), axis(6, 3, 1, 1, 1, 1)], 10, 5),
        shape(
            2,
            &[axis(2, 3, 2, 1, 1, 1), continued(axis(1, 3, 1, 1, 1, 1)), continued(axis(5, 3, 1, 2, 7, 1))],
            6,
            4,
        ),
        // Enough outputs that the weight is transposed first; rows longer than a block.
        shape(1, &[axis(3, 3, 1, 1, 1, 1), axis(12, 3, 1, 1, 1, 1), axis(11, 3, 1, 1, 1, 1)], 24, 17),
        shape(3, &[axis(150, 3, 1, 1, 1, 1)], 201, 3),
    ];
    every_isa(|isa| {
        for shape in &shapes {
            for types in [[false; 3], [true; 3], [false, true, false], [true, false, true]] {
                check(isa, shape, types);
            }
        }
    });
}

#[test]
fn a_filter_for_each_channel_agrees_with_sums_in_f64() {
    every_isa(|isa| {
        for channels in [2, 19, 48] {
            for axes in [
                vec![axis(29, 12, 2, 1, 5, 6)],
                vec![axis(9, 5, 2, 1, 2, 2), axis(8, 5, 2, 1, 2, 2)],
                vec![axis(300, 3, 1, 2, 0, 0)],
                vec![continued(axis(13, 12, 1, 1, 5, 6))],
            ] {
                let shape =
                    ConvShape { batch: 2, axes, inputs: channels, outputs: channels, groups: channels };
                for types in [[false; 3], [true; 3]] {
                    check(isa, &shape, types);
                }
            }
        }
    });
}

/// The same numbers, bit for bit, wherever the input is cut in two.
#[test]
fn what_came_before_may_be_given_apart() {
    let axes = vec![continued(axis(7, 3, 2, 1, 0, 1)), axis(5, 3, 1, 1, 1, 1), axis(6, 3, 1, 1, 1, 1)];
    let shape = ConvShape { batch: 2, axes, inputs: 11, outputs: 18, groups: 1 };
    let slice = 5 * 6 * 11;
    let floats = |len: usize, seed: u32| -> Vec<f32> {
        let data = Data::new(len, seed, false);
        (0..len).map(|index| data.get(index) as f32).collect()
    };
    let (values, weight) = (floats(2 * 7 * slice, 1), floats(18 * 27 * 11, 2));
    let epilogue = Epilogue::default();
    let run = |x: &[f32], past: Option<&[f32]>, shape: &ConvShape, len: usize| {
        let mut out = vec![0.0f32; len];
        let past = past.map(Into::into);
        kernels::conv(x.into(), past, (&weight[..]).into(), shape, &epilogue, &mut out[..]).map(|()| out)
    };
    let len = 2 * 3 * 5 * 6 * 18;
    every_isa(|isa| {
        let whole = run(&values, None, &shape, len).unwrap();
        for cut in 1..7 {
            let part = |from: usize, to: usize| -> Vec<f32> {
                let samples = values.chunks(7 * slice);
                samples.flat_map(|sample| &sample[from * slice..to * slice]).copied().collect()
            };
            let apart = run(&part(cut, 7), Some(&part(0, cut)), &shape, len).unwrap();
            assert!(apart == whole, "{}: cut at {cut}", isa.name());
        }
    });
    assert!(run(&values[1..], Some(&values[..1]), &shape, len).is_err());
    let line = ConvShape { axes: shape.axes[..1].to_vec(), ..shape };
    assert!(run(&values[..6 * 22], Some(&values[..22]), &line, 2 * 3 * 18).is_err());
}

#[test]
fn refuses_what_does_not_fit() {
    let values = [0.0f32; 64];
    let fits = |shape: &ConvShape, x: usize, weight: usize, bias: usize, out: usize| {
        let mut written = [0.0f32; 64];
        let [x, weight, bias] = [x, weight, bias].map(|len| (&values[..len]).into());
        let epilogue = Epilogue { bias: Some(bias), ..Epilogue::default() };
        kernels::conv(x, None, weight, shape, &epilogue, &mut written[..out]).is_ok()
    };
    let shape = ConvShape { batch: 1, axes: vec![axis(5, 3, 1, 1, 1, 1)], inputs: 2, outputs: 3, groups: 1 };
    assert!(fits(&shape, 10, 18, 3, 15));
    assert!(!fits(&shape, 9, 18, 3, 15));
    assert!(!fits(&shape, 10, 17, 3, 15));
    assert!(!fits(&shape, 10, 18, 2, 15));
    assert!(!fits(&shape, 10, 18, 3, 12));
    assert!(!fits(&ConvShape { groups: 0, ..shape.clone() }, 10, 18, 3, 15));
    assert!(!fits(&ConvShape { groups: 2, ..shape.clone() }, 10, 9, 3, 15));
    assert!(!fits(&ConvShape { axes: Vec::new(), ..shape.clone() }, 2, 6, 3, 3));
    assert!(!fits(&ConvShape { axes: vec![axis(5, 3, 0, 1, 1, 1)], ..shape.clone() }, 10, 18, 3, 15));
    let nothing = continued(axis(0, 3, 1, 1, 4, 4));
    assert!(!fits(&ConvShape { axes: vec![nothing], ..shape.clone() }, 0, 18, 3, 18));
    // A kernel larger than what it looks at computes nothing.
    assert!(fits(&ConvShape { axes: vec![axis(2, 5, 1, 1, 1, 1)], ..shape.clone() }, 4, 30, 3, 0));
    assert_eq!(axis(2, 5, 1, 1, -3, 0).outputs(), 0);
    assert_eq!(axis(usize::MAX, 2, 1, usize::MAX, 9, 9).outputs(), 0);
}
