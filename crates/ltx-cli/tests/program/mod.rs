//! Running the program in tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder with tiny checkpoints and goldens.
#[allow(dead_code, reason = "not every test binary needs them")]
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The program with arguments, on a machine with no models, without the user's cache: what an older build left there would
/// prove nothing.
pub fn ltx(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ltx"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        if ["HF_", "HUGGING", "SSL_CERT", "REQUESTS_CA"].iter().any(|start| text.starts_with(start))
            || text.ends_with("_PROXY")
        {
            command.env_remove(name);
        }
    }
    command.env("HF_HOME", "/nonexistent/huggingface").args(arguments);
    if matches!(arguments.first(), Some(&"generate" | &"encode-text")) {
        command.arg("--no-cache");
    }
    command
}

/// Runs a command that must succeed and gives what it printed.
#[allow(dead_code, reason = "not every test binary has a run whose output counts")]
pub fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command that must fail and gives its exit code and what it said.
#[allow(dead_code, reason = "not every test binary has a failing run")]
pub fn fail(mut command: Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success(), "{command:?} should fail");
    let said = text(&stderr);
    assert!(!said.contains("panicked"), "{command:?}\n{said}");
    (status.code().unwrap_or(-1), said)
}

/// The pixels of a folder of PNG frames, in order.
#[allow(dead_code, reason = "not every test binary looks at frames")]
pub fn frames(folder: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "png"));
    paths.sort();
    let read = |path: &PathBuf| {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    };
    paths.iter().map(read).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
