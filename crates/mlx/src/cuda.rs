//! What MLX's CUDA build needs of this machine: NVIDIA's driver, a card, and NVIDIA's libraries; where they are, or which
//! is missing. Reads no environment: the caller names the folders.
//!
//! Programs are linked to the `libmlx` for the CPU, which starts everywhere. The one for CUDA does not: the system's loader
//! refuses a program before its first line when one of ten libraries is missing, and without a card even the CPU's
//! operations of that `libmlx` fail. So a program looks with [`driver`] and [`find`] first; if all is there it starts itself
//! anew, once, with [`Setup::library_path`] in front of `LD_LIBRARY_PATH`, where the loader finds the other `libmlx` (the
//! two have one name and one interface) and everything it needs; otherwise it can say what is missing and go on.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};

use crate::VERSION;

/// Why there is no GPU, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Absence {
    pub problem: String,
    pub remedy: String,
}

impl Absence {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Folders for the loader, in its order: `libmlx`'s first, then NVIDIA's that it would not find by itself.
    pub library_path: Vec<PathBuf>,
    /// The folder whose `include` has CUDA's headers, which kernels are compiled with at run time: MLX reads it from
    /// `CUDA_HOME`.
    pub cuda_home: PathBuf,
}

/// What is needed, and the Python package that brings it.
const LIBRARIES: [(&str, &str); 9] = [
    ("libcublasLt.so.13", "nvidia-cublas==13.*"),
    ("libcublas.so.13", "nvidia-cublas==13.*"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13==9.*"),
    ("libnvrtc.so.13", "nvidia-cuda-nvrtc==13.*"),
    ("libcufft.so.12", "nvidia-cufft==12.*"),
    ("libcusolver.so.12", "nvidia-cusolver==12.*"),
    ("libcusparse.so.12", "nvidia-cusparse==12.*"),
    ("libnvJitLink.so.13", "nvidia-nvjitlink==13.*"),
    ("libnccl.so.2", "nvidia-nccl-cu13"),
];
const HEADER: (&str, &str) = ("cuda_fp16.h", "nvidia-cuda-runtime==13.*");

/// The unpacked wheel that this was built with.
pub fn wheel() -> &'static Path {
    Path::new(env!("LTX_CUDA_WHEEL"))
}

/// Asks NVIDIA's driver for a card, and whether it is new enough for CUDA 13.
pub fn driver() -> Result<(), Absence> {
    const MENDED: &str = "see whether `nvidia-smi` lists a card; a container must be given it (`--gpus all`), and CUDA_VISIBLE_DEVICES can hide it";
    let Some(library) = open("libcuda.so.1") else {
        return Err(Absence::new(
            "there is no NVIDIA driver (no libcuda.so.1)",
            "install NVIDIA's driver, 580 or newer, and see whether `nvidia-smi` lists a card",
        ));
    };
    let broken = || Absence::new("libcuda.so.1 is not NVIDIA's driver", MENDED);
    let status = library.call("cuInit", |init: extern "C" fn(u32) -> c_int| init(0)).ok_or_else(broken)?;
    match status {
        0 => {}
        100 => return Err(Absence::new("the NVIDIA driver finds no card", MENDED)),
        error => {
            return Err(Absence::new(format!("the NVIDIA driver does not start: error {error}"), MENDED));
        }
    }
    let version = library.number("cuDriverGetVersion").ok_or_else(broken)?;
    if version < 13_000 {
        return Err(Absence::new(
            format!("the NVIDIA driver knows CUDA {} at most, and 13.0 is needed", dotted(version)),
            "update the driver to 580 or newer",
        ));
    }
    match library.number("cuDeviceGetCount").ok_or_else(broken)? {
        0 => Err(Absence::new("the NVIDIA driver finds no card", MENDED)),
        _ => Ok(()),
    }
}

/// Finds MLX's wheel in one of `wheels`, and NVIDIA's libraries in `folders` (each may hold them, or be a toolkit, or
/// Python's folder `nvidia`), or else where the system's loader looks.
pub fn find(wheels: &[PathBuf], folders: &[PathBuf]) -> Result<Setup, Absence> {
    look(wheels, folders, &|library| open(library).is_some())
}

fn look(wheels: &[PathBuf], folders: &[PathBuf], loads: &dyn Fn(&str) -> bool) -> Result<Setup, Absence> {
    let Some(wheel) = wheels.iter().find(|wheel| wheel.join("mlx/lib/libmlx.so").is_file()) else {
        let places: Vec<String> = wheels.iter().map(|wheel| wheel.display().to_string()).collect();
        return Err(Absence::new(
            format!("MLX for CUDA is not in {}", places.join(" or ")),
            format!("build again, or unpack the wheel mlx-cuda-13 {VERSION} there"),
        ));
    };
    let folders: Vec<PathBuf> = folders.iter().flat_map(|folder| libraries_in(folder)).collect();
    let mut library_path = vec![wheel.join("mlx/lib")];
    let mut missing: Vec<(&str, &str)> = Vec::new();
    for (library, package) in LIBRARIES {
        match folders.iter().find(|folder| folder.join(library).is_file()) {
            Some(folder) if library_path.contains(folder) => {}
            Some(folder) => library_path.push(folder.clone()),
            None if loads(library) => {}
            None => missing.push((library, package)),
        }
    }
    let homes = folders.iter().filter_map(|folder| folder.parent());
    let home = homes
        .chain([Path::new("/usr/local/cuda")])
        .find(|home| home.join("include").join(HEADER.0).is_file());
    match (home, missing.is_empty()) {
        (Some(home), true) => Ok(Setup { library_path, cuda_home: home.into() }),
        (home, _) => {
            missing.extend(home.is_none().then_some(HEADER));
            let files: Vec<&str> = missing.iter().map(|(file, _)| *file).collect();
            let mut packages: Vec<String> =
                missing.iter().map(|(_, package)| format!("'{package}'")).collect();
            packages.dedup();
            Err(Absence::new(
                format!("of NVIDIA's libraries these are not found: {}", files.join(", ")),
                format!(
                    "pip install {}, in the environment of the python3 on PATH, or name their folders in LTX_CUDA_LIBS",
                    packages.join(" ")
                ),
            ))
        }
    }
}

/// Where libraries may lie in a folder: itself, a toolkit's `lib64`, the `lib` of each part of Python's `nvidia`.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_path_buf(), folder.join("lib64"), folder.join("lib")];
    let parts = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> =
        parts.map(|part| part.path().join("lib")).filter(|lib| lib.is_dir()).collect();
    parts.sort();
    all.extend(parts);
    all
}

/// Names and versions of what computes, for a report; those that are there.
pub fn versions() -> Vec<(String, String)> {
    let number = |library: &str, function: &str| open(library)?.number(function);
    let driver = fs::read_to_string("/sys/module/nvidia/version").ok().map(|text| text.trim().to_string());
    let nvrtc = open("libnvrtc.so.13").and_then(|library| {
        let (mut major, mut minor) = (0, 0);
        let call =
            |version: extern "C" fn(*mut c_int, *mut c_int) -> c_int| version(&raw mut major, &raw mut minor);
        (library.call("nvrtcVersion", call)? == 0).then(|| format!("{major}.{minor}"))
    });
    let returned = |library: &str, function: &str| {
        open(library)?
            .call(function, |version: extern "C" fn() -> usize| version())
            .map(|version| version.to_string())
    };
    let known = [
        ("driver", driver),
        ("CUDA of the driver", number("libcuda.so.1", "cuDriverGetVersion").map(dotted)),
        ("NVRTC", nvrtc),
        ("cuBLASLt", returned("libcublasLt.so.13", "cublasLtGetVersion")),
        ("cuDNN", returned("libcudnn.so.9", "cudnnGetVersion")),
    ];
    known.into_iter().filter_map(|(name, version)| Some((name.to_string(), version?))).collect()
}

/// 13010 → 13.1
fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// A loaded library, which stays loaded: drivers do not like to be unloaded.
struct Library(*mut c_void);

fn open(name: &str) -> Option<Library> {
    const NOW: c_int = 2;
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends in a zero. Loading runs the library's own initialisers: these are NVIDIA's, and safe to run.
    let library = unsafe { dlopen(name.as_ptr(), NOW) };
    (!library.is_null()).then_some(Library(library))
}

/// A type of C function: private, and implemented for the three that are called.
trait Function: Copy {}
impl<A, R> Function for extern "C" fn(A) -> R {}
impl<R> Function for extern "C" fn() -> R {}
impl<A, B, R> Function for extern "C" fn(A, B) -> R {}

impl Library {
    /// Calls a function by name, if it is there; its type is NVIDIA's documented one.
    fn call<F: Function, R>(&self, name: &str, call: impl FnOnce(F) -> R) -> Option<R> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is one that `dlopen` gave, and the name ends in a zero.
        let address = unsafe { dlsym(self.0, CStr::as_ptr(&name)) };
        if address.is_null() {
            return None;
        }
        // SAFETY: `F` is a function pointer, of the size of an address (checked), which is not null; callers in this module
        // give the type that the function of that name has.
        Some(call(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) }))
    }

    /// What a function writes that takes the address of an `int` and returns 0 for success.
    fn number(&self, name: &str) -> Option<c_int> {
        let mut number = 0;
        let status = self.call(name, |get: extern "C" fn(*mut c_int) -> c_int| get(&raw mut number))?;
        (status == 0).then_some(number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A folder with empty files, gone at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str, files: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("ltx-cuda-{}-{name}", std::process::id()));
            for file in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const FEW: [&str; 4] = [
        "cu13/lib/libcublasLt.so.13",
        "cu13/lib/libnvrtc.so.13",
        "cudnn/lib/libcudnn.so.9",
        "nccl/lib/libnccl.so.2",
    ];

    #[test]
    fn libraries_are_found_in_pythons_folders_and_the_system() {
        let files = [&FEW[..], &["cu13/include/cuda_fp16.h"]].concat();
        let (wheel, nvidia) =
            (Folder::new("found-wheel", &["mlx/lib/libmlx.so"]), Folder::new("found", &files));
        let elsewhere = wheel.0.join("not-there");
        let wheels = [elsewhere, wheel.0.clone()];
        let setup = look(&wheels, std::slice::from_ref(&nvidia.0), &|_| true).unwrap();
        let expected = ["cu13/lib", "cudnn/lib", "nccl/lib"].map(|lib| nvidia.0.join(lib));
        assert_eq!(setup.library_path, [vec![wheel.0.join("mlx/lib")], expected.to_vec()].concat());
        assert_eq!(setup.cuda_home, nvidia.0.join("cu13"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let (wheel, nvidia) =
            (Folder::new("missing-wheel", &["mlx/lib/libmlx.so"]), Folder::new("missing", &FEW));
        let absence =
            look(std::slice::from_ref(&wheel.0), std::slice::from_ref(&nvidia.0), &|_| false).unwrap_err();
        for file in [
            "libcufft.so.12",
            "libcusolver.so.12",
            "libcusparse.so.12",
            "libnvJitLink.so.13",
            "libcublas.so.13",
        ] {
            assert!(absence.problem.contains(file), "{absence:?}");
        }
        assert!(!absence.problem.contains("libcudnn"), "{absence:?}");
        assert!(absence.remedy.contains("'nvidia-cufft==12.*' 'nvidia-cusolver==12.*'"), "{absence:?}");
        assert!(absence.remedy.contains("LTX_CUDA_LIBS"), "{absence:?}");
    }

    #[test]
    fn without_mlxs_wheel_nothing_else_is_asked_for() {
        let empty = Folder::new("no-wheel", &[]);
        let absence = look(std::slice::from_ref(&empty.0), &[], &|_| true).unwrap_err();
        assert!(absence.problem.contains(&empty.0.display().to_string()), "{absence:?}");
    }

    #[test]
    fn versions_are_dotted() {
        assert_eq!([13_000, 12_040, 13_010].map(dotted), ["13.0", "12.4", "13.1"]);
    }

    #[test]
    fn functions_are_called_by_name() {
        let library = open("libc.so.6").unwrap();
        assert_eq!(library.call("abs", |abs: extern "C" fn(c_int) -> c_int| abs(-7)), Some(7));
        assert!(library.number("no_such_function").is_none());
        assert!(open("libno-such-library.so.1").is_none());
    }
}
