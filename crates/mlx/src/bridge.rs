//! The C++ functions that the binding calls. Everything that can throw returns `Result`.

use cxx::{CxxVector, UniquePtr};

use crate::array::{Array, list};

#[cxx::bridge(namespace = "ltx")]
#[allow(missing_docs)]
pub(crate) mod ffi {
    #[derive(Debug)]
    #[repr(u8)]
    enum Type {
        Bool,
        U8,
        I32,
        U32,
        I64,
        F16,
        Bf16,
        F32,
        F64,
        Other,
    }

    #[repr(u8)]
    enum Unary {
        Abs,
        Cos,
        Erf,
        Exp,
        Floor,
        IsFinite,
        Log,
        LogicalNot,
        Negative,
        Reciprocal,
        Round,
        Rsqrt,
        Sigmoid,
        Sin,
        Sqrt,
        Square,
        Tanh,
    }

    #[repr(u8)]
    enum Binary {
        Add,
        Subtract,
        Multiply,
        Divide,
        Maximum,
        Minimum,
        Power,
        Equal,
        Greater,
        GreaterEqual,
        Less,
        LogicalAnd,
        Matmul,
    }

    #[repr(u8)]
    enum Reduce {
        Sum,
        Mean,
        Max,
        Min,
        All,
        Any,
    }

    #[repr(u8)]
    enum Packing {
        Affine,
        Mxfp8,
        Nvfp4,
    }

    struct ConvSettings<'a> {
        stride: &'a [i32],
        padding_low: &'a [i32],
        padding_high: &'a [i32],
        dilation: &'a [i32],
        input_dilation: &'a [i32],
        groups: i32,
        flip: bool,
    }

    /// One input or output of a custom kernel: a row-contiguous buffer and how to read it.
    struct RawView {
        data: *mut u8,
        bytes: usize,
        shape: Vec<i32>,
        dtype: Type,
    }

    struct Fact {
        name: String,
        value: String,
    }

    extern "Rust" {
        type Owner;
        type Kernel;
        fn run(self: &Kernel, inputs: &[RawView], output: &RawView) -> Result<()>;
        type Function;
        fn call(self: &Function, inputs: &CxxVector<array>) -> Result<UniquePtr<CxxVector<array>>>;
    }

    unsafe extern "C++" {
        include!("ltx-mlx/src/bridge.h");

        #[namespace = "mlx::core"]
        type array;

        fn new_list() -> UniquePtr<CxxVector<array>>;
        fn push(list: Pin<&mut CxxVector<array>>, a: &array);
        fn duplicate(a: &array) -> UniquePtr<array>;

        fn scalar(value: f64, dtype: Type) -> Result<UniquePtr<array>>;
        fn from_bytes(bytes: &[u8], shape: &[i32], dtype: Type) -> Result<UniquePtr<array>>;
        unsafe fn from_owner(
            data: *const u8,
            shape: &[i32],
            dtype: Type,
            owner: Box<Owner>,
        ) -> Result<UniquePtr<array>>;
        fn copy_to(a: &array, out: &mut [u8]) -> Result<()>;
        fn shape(a: &array) -> &[i32];
        fn dtype(a: &array) -> Type;
        fn eval(list: &CxxVector<array>) -> Result<()>;

        fn full(shape: &[i32], value: f64, dtype: Type) -> Result<UniquePtr<array>>;
        fn arange(start: f64, stop: f64, step: f64, dtype: Type) -> Result<UniquePtr<array>>;
        fn astype(a: &array, dtype: Type) -> Result<UniquePtr<array>>;
        fn view(a: &array, dtype: Type) -> Result<UniquePtr<array>>;
        fn contiguous(a: &array) -> Result<UniquePtr<array>>;

        fn unary(op: Unary, a: &array) -> Result<UniquePtr<array>>;
        fn binary(op: Binary, a: &array, b: &array) -> Result<UniquePtr<array>>;
        fn reduce(op: Reduce, a: &array, axes: &[i32], keep: bool) -> Result<UniquePtr<array>>;
        fn variance(a: &array, axes: &[i32], keep: bool, ddof: i32) -> Result<UniquePtr<array>>;
        fn select(condition: &array, a: &array, b: &array) -> Result<UniquePtr<array>>;
        fn softmax(a: &array, axis: i32) -> Result<UniquePtr<array>>;

        fn reshape(a: &array, shape: &[i32]) -> Result<UniquePtr<array>>;
        fn transpose(a: &array, axes: &[i32]) -> Result<UniquePtr<array>>;
        fn expand_dims(a: &array, axes: &[i32]) -> Result<UniquePtr<array>>;
        fn squeeze(a: &array, axes: &[i32]) -> Result<UniquePtr<array>>;
        fn broadcast_to(a: &array, shape: &[i32]) -> Result<UniquePtr<array>>;
        fn slice(a: &array, start: &[i32], stop: &[i32], step: &[i32]) -> Result<UniquePtr<array>>;
        fn slice_update(a: &array, update: &array, start: &[i32], stop: &[i32]) -> Result<UniquePtr<array>>;
        fn concatenate(list: &CxxVector<array>, axis: i32) -> Result<UniquePtr<array>>;
        fn stack(list: &CxxVector<array>, axis: i32) -> Result<UniquePtr<array>>;
        fn repeat(a: &array, repeats: i32, axis: i32) -> Result<UniquePtr<array>>;
        fn tile(a: &array, repeats: &[i32]) -> Result<UniquePtr<array>>;
        fn pad(a: &array, axis: i32, low: i32, high: i32, value: f64, edge: bool)
        -> Result<UniquePtr<array>>;
        fn take(a: &array, indices: &array, axis: i32) -> Result<UniquePtr<array>>;

        fn conv(x: &array, weight: &array, settings: &ConvSettings) -> Result<UniquePtr<array>>;
        unsafe fn rms_norm(x: &array, weight: *const array, eps: f32) -> Result<UniquePtr<array>>;
        unsafe fn layer_norm(
            x: &array,
            weight: *const array,
            bias: *const array,
            eps: f32,
        ) -> Result<UniquePtr<array>>;
        unsafe fn attention(
            q: &array,
            k: &array,
            v: &array,
            scale: f32,
            mask: *const array,
        ) -> Result<UniquePtr<array>>;
        fn quantize(
            w: &array,
            group: i32,
            bits: i32,
            packing: Packing,
        ) -> Result<UniquePtr<CxxVector<array>>>;
        unsafe fn dequantize(
            values: &array,
            scales: &array,
            biases: *const array,
            group: i32,
            bits: i32,
            packing: Packing,
            dtype: Type,
        ) -> Result<UniquePtr<array>>;
        unsafe fn quantized_matmul(
            x: &array,
            values: &array,
            scales: &array,
            biases: *const array,
            group: i32,
            bits: i32,
            packing: Packing,
        ) -> Result<UniquePtr<array>>;
        fn custom(
            inputs: &CxxVector<array>,
            shape: &[i32],
            dtype: Type,
            kernel: Box<Kernel>,
        ) -> Result<UniquePtr<array>>;

        fn async_eval(list: &CxxVector<array>) -> Result<()>;
        fn addmm(bias: &array, a: &array, b: &array) -> Result<UniquePtr<array>>;
        fn uniform(low: f64, high: f64, shape: &[i32], dtype: Type, seed: u64) -> Result<UniquePtr<array>>;
        type Compiled;
        fn compile(function: Box<Function>) -> Result<UniquePtr<Compiled>>;
        fn call(compiled: &Compiled, inputs: &CxxVector<array>) -> Result<UniquePtr<CxxVector<array>>>;

        fn gpu_available() -> bool;
        fn default_is_gpu() -> bool;
        fn set_gpu(gpu: bool) -> Result<()>;
        fn device_facts(gpu: bool) -> Result<Vec<Fact>>;
        fn synchronize() -> Result<()>;
        fn active_memory() -> usize;
        fn peak_memory() -> usize;
        fn reset_peak_memory();
        fn cache_memory() -> usize;
        fn clear_cache() -> Result<()>;
        fn set_cache_limit(bytes: usize) -> Result<usize>;
        fn set_memory_limit(bytes: usize) -> usize;
    }
}

/// What [`crate::joined`] is given, as C++ calls it.
pub(crate) struct Function(pub Box<Graph>);

/// Arrays to arrays.
pub(crate) type Graph = dyn Fn(&[Array]) -> crate::Result<Vec<Array>>;

impl Function {
    /// Called when MLX meets inputs of new shapes. A panic becomes an error: unwinding must not cross into C++.
    fn call(&self, inputs: &CxxVector<ffi::array>) -> Result<UniquePtr<CxxVector<ffi::array>>, String> {
        let run = || {
            let wrap = |input| Array::wrap("compile", Ok(ffi::duplicate(input)));
            let inputs = inputs.iter().map(wrap).collect::<crate::Result<Vec<_>>>()?;
            Ok(list(&(self.0)(&inputs)?))
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let failed = |error: crate::Error| error.to_string();
        result.unwrap_or_else(|_| Err(crate::Error::new("compile", "a function panicked"))).map_err(failed)
    }
}

/// Keeps memory that an array borrows alive until MLX lets go of it.
pub(crate) struct Owner(#[allow(dead_code, reason = "held for its destructor")] pub Box<dyn Send + Sync>);

/// A Rust closure that computes one output on the CPU.
pub(crate) type Body = dyn Fn(&[ffi::RawView], &ffi::RawView) -> Result<(), String> + Send + Sync;

pub(crate) struct Kernel(pub Box<Body>);

impl Kernel {
    /// Called from MLX's CPU thread. A panic becomes an error there: unwinding must not cross into C++.
    fn run(&self, inputs: &[ffi::RawView], output: &ffi::RawView) -> Result<(), String> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.0)(inputs, output)))
            .unwrap_or_else(|_| Err("a custom kernel panicked".into()))
    }
}
