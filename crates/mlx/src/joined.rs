//! Functions whose elementwise operations a GPU does in one kernel.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::ManuallyDrop;

use cxx::UniquePtr;

use crate::array::{Array, list};
use crate::bridge::{Function, ffi};
use crate::device::{Device, current};
use crate::{Error, Result};

/// A function of N arrays. It may only ask for operations, never for values: it is called once per combination of shapes
/// and dtypes, and what it asked for is repeated.
type Of<const N: usize> = fn([&Array; N]) -> Result<Vec<Array>>;

thread_local! {
    /// By the function's address. Never dropped: MLX's own cache may be gone when a thread ends.
    static COMPILED: RefCell<HashMap<usize, ManuallyDrop<UniquePtr<ffi::Compiled>>>> = RefCell::default();
}

/// `function` of `inputs`; on a GPU elementwise operations that follow each other run as one kernel, which is compiled when
/// it is first met. On the CPU, where MLX would need a C++ compiler, the same as calling it.
pub fn joined<const N: usize>(function: Of<N>, inputs: [&Array; N]) -> Result<Vec<Array>> {
    if current() == Device::Cpu {
        return function(inputs);
    }
    replay(function, inputs)
}

fn replay<const N: usize>(function: Of<N>, inputs: [&Array; N]) -> Result<Vec<Array>> {
    let failed = |error: cxx::Exception| Error::new("joined", error.what());
    COMPILED.with_borrow_mut(|all| {
        let compiled = match all.entry(function as usize) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let graph = move |inputs: &[Array]| {
                    let inputs: Vec<&Array> = inputs.iter().collect();
                    let inputs =
                        inputs.try_into().map_err(|_| Error::new("joined", "other inputs than before"))?;
                    function(inputs)
                };
                let made = ffi::compile(Box::new(Function(Box::new(graph)))).map_err(failed)?;
                entry.insert(ManuallyDrop::new(made))
            }
        };
        let outputs = ffi::call(compiled, &list(inputs)).map_err(failed)?;
        outputs.iter().map(|output| Array::wrap("joined", Ok(ffi::duplicate(output)))).collect()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn sum_and_scaled([x, y]: [&Array; 2]) -> Result<Vec<Array>> {
        let sum = x.add(y)?;
        Ok(vec![sum.multiply(2.0f32)?, sum.exp()?])
    }

    /// Through MLX, which joins nothing on a CPU but is called the same way.
    #[test]
    fn a_function_gives_what_it_gives_for_every_shape() {
        for shape in [[3, 5], [3, 5], [5, 1]] {
            let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32 / 7.0 - 1.0).collect();
            let x = Array::from_slice(&values, &shape).unwrap();
            let y = Array::from_slice(&[0.5f32], &[1, 1]).unwrap();
            let ours = replay(sum_and_scaled, [&x, &y]).unwrap();
            for (i, value) in values.iter().enumerate() {
                assert_eq!(ours[0].to_f32().unwrap()[i], (value + 0.5) * 2.0);
                assert!((ours[1].to_f32().unwrap()[i] - (value + 0.5).exp()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_the_function_refuses_is_the_error() {
        let (x, y) = (
            crate::zeros(&[3, 5], crate::Dtype::F32).unwrap(),
            crate::zeros(&[4], crate::Dtype::F32).unwrap(),
        );
        let error = replay(|[x, y]| Ok(vec![x.add(y)?]), [&x, &y]).unwrap_err();
        assert!(error.message.contains("broadcast"), "{error}");
        assert!(joined(|[x]| Ok(vec![x.reshape(&[7])?]), [&x]).is_err());
    }
}
