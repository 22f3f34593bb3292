//! Packed matrices against loops over their bits.

use mlx::{Array, Dtype, Packing, Quantized, quantize};

use crate::oracle::Tensor;

const PACKINGS: [Packing; 6] = [
    Packing::Affine { bits: 4, group: 32 },
    Packing::Affine { bits: 4, group: 64 },
    Packing::Affine { bits: 8, group: 64 },
    Packing::Affine { bits: 8, group: 128 },
    Packing::Mxfp8,
    Packing::Nvfp4,
];

/// 1 sign, 4 exponent and 3 mantissa bits.
fn e4m3(code: u32) -> f64 {
    let (sign, exponent, mantissa) = (code >> 7 & 1, code >> 3 & 15, f64::from(code & 7));
    let value = if exponent == 0 {
        mantissa / 512.0
    } else {
        (1.0 + mantissa / 8.0) * 2f64.powi(exponent as i32 - 7)
    };
    if sign == 1 { -value } else { value }
}

fn e2m1(code: u32) -> f64 {
    let value = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][(code & 7) as usize];
    if code & 8 == 8 { -value } else { value }
}

/// What the parts stand for, value by value.
fn unpacked(packed: &Quantized, rows: usize, columns: usize) -> Vec<f64> {
    let (bits, group) = match packed.packing {
        Packing::Affine { bits, group } => (bits as usize, group as usize),
        Packing::Mxfp8 => (8, 32),
        Packing::Nvfp4 => (4, 16),
    };
    let words = packed.values.to_vec::<u32>().unwrap();
    let floats = |array: &Array| -> Vec<f64> { array.to_f32().unwrap().into_iter().map(f64::from).collect() };
    let (scales, biases) = match packed.packing {
        Packing::Affine { .. } => (floats(&packed.scales), floats(packed.biases.as_ref().unwrap())),
        Packing::Mxfp8 => {
            let scales = packed.scales.to_vec::<u8>().unwrap();
            (scales.iter().map(|&code| 2f64.powi(i32::from(code) - 127)).collect(), vec![])
        }
        Packing::Nvfp4 => {
            (packed.scales.to_vec::<u8>().unwrap().iter().map(|&code| e4m3(code.into())).collect(), vec![])
        }
    };
    let each = 32 / bits;
    (0..rows * columns)
        .map(|at| {
            let code = words[at / each] >> (at % each * bits) & (u32::MAX >> (32 - bits));
            let scale = scales[at / group];
            match packed.packing {
                Packing::Affine { .. } => f64::from(code) * scale + biases[at / group],
                Packing::Mxfp8 => e4m3(code) * scale,
                Packing::Nvfp4 => e2m1(code) * scale,
            }
        })
        .collect()
}

/// How far a value may be from the one that was packed, as a part of its group's largest.
fn loss(packing: Packing) -> f64 {
    match packing {
        // A step of a range that is at most twice the largest value: steps are fitted to one end, and cut off at the other.
        Packing::Affine { bits, .. } => 2.0 / f64::from((1 << bits) - 1),
        Packing::Mxfp8 => 0.12,
        Packing::Nvfp4 => 0.2,
    }
}

#[test]
fn parts_stand_for_the_matrix() {
    let (rows, columns) = (5, 384);
    let matrix = Tensor::random(&[rows, columns], -0.7, 0.5, 3);
    for packing in PACKINGS {
        let packed = quantize(&matrix.array(Dtype::F32), packing).unwrap();
        let unpacked = unpacked(&packed, rows as usize, columns as usize);
        for (&ours, &own) in unpacked.iter().zip(&matrix.data) {
            assert!((ours - own).abs() <= 0.7 * loss(packing), "{packing:?}: {ours} for {own}");
        }
        let whole = packed.dequantize(Dtype::F32).unwrap();
        assert_eq!(whole.shape(), [rows, columns]);
        for (ours, &own) in whole.to_f32().unwrap().into_iter().zip(&unpacked) {
            assert!(
                (f64::from(ours) - own).abs() <= 1e-6 * own.abs().max(0.1),
                "{packing:?}: {ours} for {own}"
            );
        }
    }
}

#[test]
fn products_with_packed_matrices() {
    let (rows, columns) = (7, 256);
    let matrix = Tensor::random(&[rows, columns], -1.0, 1.0, 11);
    let x = Tensor::random(&[2, 3, columns], -1.0, 1.0, 12);
    for packing in PACKINGS {
        let packed = quantize(&matrix.array(Dtype::F32), packing).unwrap();
        let unpacked = unpacked(&packed, rows as usize, columns as usize);
        let y = packed.matmul(&x.array(Dtype::F32)).unwrap();
        assert_eq!(y.shape(), [2, 3, rows]);
        for (at, ours) in y.to_f32().unwrap().into_iter().enumerate() {
            let (x, row) = (&x.data[at / 7 * 256..][..256], &unpacked[at % 7 * 256..][..256]);
            let own: f64 = x.iter().zip(row).map(|(a, b)| a * b).sum();
            assert!((f64::from(ours) - own).abs() < 2e-4, "{packing:?}: {ours} for {own}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let matrix = |rows, columns| Tensor::random(&[rows, columns], -1.0, 1.0, 5).array(Dtype::F32);
    let four = Packing::Affine { bits: 4, group: 64 };
    assert!(quantize(&matrix(3, 96), four).is_err());
    assert!(quantize(&matrix(3, 128).astype(Dtype::I32).unwrap(), four).is_err());
    assert!(quantize(&matrix(3, 128).reshape(&[384]).unwrap(), four).is_err());
    assert!(quantize(&matrix(3, 128), Packing::Affine { bits: 4, group: 48 }).is_err());
    assert!(quantize(&matrix(3, 128), Packing::Affine { bits: 7, group: 64 }).is_err());
    let good = quantize(&matrix(3, 128), four).unwrap();
    let x = matrix(2, 128);
    assert!(good.matmul(&x).is_ok());
    assert!(good.matmul(&matrix(2, 64)).is_err());
    let bad = [
        Quantized { packing: Packing::Affine { bits: 8, group: 64 }, ..good.clone() },
        Quantized { packing: Packing::Affine { bits: 4, group: 32 }, ..good.clone() },
        Quantized { packing: Packing::Mxfp8, ..good.clone() },
        Quantized { biases: None, ..good.clone() },
        Quantized { biases: Some(matrix(3, 1)), ..good.clone() },
        Quantized { scales: matrix(2, 2), biases: Some(matrix(2, 2)), ..good.clone() },
        Quantized { scales: matrix(3, 1), biases: Some(matrix(3, 1)), ..good.clone() },
        Quantized { values: matrix(3, 16), ..good.clone() },
    ];
    for bad in bad {
        assert!(bad.matmul(&x).is_err(), "{bad:?}");
        assert!(bad.dequantize(Dtype::F32).is_err(), "{bad:?}");
    }
}
