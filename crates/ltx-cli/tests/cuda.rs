//! The program built for NVIDIA, on a machine that lacks something of it.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::path::Path;
use std::process::Command;

use program::{fail, ltx, succeed};

/// A driver that says it has a card, or what `edit` makes of it; compiled here, for the loader to find first.
fn with_driver(folder: &Path, edit: impl Fn(&str) -> String) {
    let source = "int cuInit(unsigned f) { return 0; }\n\
        int cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n\
        int cuDeviceGetCount(int *n) { *n = 1; return 0; }\n";
    let file = folder.join("driver.c");
    std::fs::write(&file, edit(source)).unwrap();
    let library = folder.join("libcuda.so.1");
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &file]).status().unwrap();
    assert!(done.success());
}

/// A command that finds that driver, and NVIDIA's libraries in `libraries` alone.
fn on(mut command: Command, driver: &Path, libraries: &Path) -> Command {
    command.env("LD_LIBRARY_PATH", driver).env("LTX_CUDA_LIBS", libraries);
    command.env_remove("VIRTUAL_ENV").env_remove("CUDA_HOME");
    command
}

#[test]
fn what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = folder.path().join("empty");
    std::fs::create_dir(&libraries).unwrap();
    let gpu = |arguments: &[&str]| on(ltx(arguments), folder.path(), &libraries);
    let bench = ["bench", "linear-m1-n4096", "--seconds", "0", "--device"];
    let cases: [(&str, &str, &str); 4] = [
        ("{ return 0; }\n", "{ return 100; }\n", "finds no card"),
        ("13000", "12040", "CUDA 12.4 at most"),
        ("*n = 1", "*n = 0", "finds no card"),
        ("cuInit", "cuInitialize", "is not NVIDIA's driver"),
    ];
    for (from, to, expected) in cases {
        with_driver(folder.path(), |source| source.replacen(from, to, 1));
        let (code, said) = fail(gpu(&[&bench[..], &["gpu"]].concat()));
        assert!(code == 1 && said.contains(expected) && said.contains("--device cpu"), "{said}");
    }
    with_driver(folder.path(), str::to_string);
    let (code, said) = fail(gpu(&[&bench[..], &["gpu"]].concat()));
    assert!(code == 1 && said.contains("libcudnn.so.9") && said.contains("LTX_CUDA_LIBS"), "{said}");
    assert!(said.contains("pip install") && said.contains("'nvidia-cudnn-cu13==9.*'"), "{said}");
    let answer = gpu(&[&bench[..], &["auto"]].concat()).output().unwrap();
    let said = String::from_utf8(answer.stderr).unwrap();
    assert!(answer.status.success() && said.lines().count() == 1 && said.contains("on the CPU"), "{said}");
    let told = succeed(gpu(&["devices"]));
    assert!(told.contains("gpu (cannot be used)") && told.contains("libcudnn.so.9"), "{told}");
}
