//! `ltx download` against a hub on this machine, and models by name.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;
#[path = "../../hub/tests/server/mod.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use program::{fail, fixtures, ltx, succeed};
use server::{Asked, COMMIT, Reply, Server, noise, sha256};
use tempfile::TempDir;

const MODEL: &str = "Owner/Model/model.safetensors";
/// As the hub calls it.
const LORA: &str =
    "Lightricks/LTX-2-19b-LoRA-Camera-Control-Static:ltx-2-19b-lora-camera-control-static.safetensors";
/// Two segments, the second one short and odd.
const SIZE: usize = (40 << 20) + 5;

fn honest(_: &Asked, reply: Reply) -> Reply {
    reply
}

/// What comes from the storage comes slowly.
fn slow(asked: &Asked, mut reply: Reply) -> Reply {
    if asked.storage {
        reply.slow = Some(Duration::from_millis(2));
    }
    reply
}

fn at(server: &Server, home: &TempDir, arguments: &[&str]) -> Command {
    let mut command = ltx(arguments);
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", home.path());
    command
}

fn repo(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--Owner--Model")
}

/// Starts a download and waits until some of it is on disk for good.
fn begin(server: &Server, home: &TempDir) -> Child {
    let mut command = at(server, home, &["download", "Owner/Model:model.safetensors"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let journal = journal(home);
    while !std::fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() > 2) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn journal(home: &TempDir) -> PathBuf {
    repo(home).join("blobs").join(format!("{}.ltx.journal", sha256(&noise(SIZE))))
}

/// A stopped download left nothing under a final name; the next one fetches what is missing and no more.
fn goes_on(home: &TempDir) {
    assert!(!repo(home).join("snapshots").exists() && !repo(home).join("refs").exists());
    let account = std::fs::read_to_string(journal(home)).unwrap();
    let done: usize = account
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '))
        .map(|(start, end)| end.parse::<usize>().unwrap() - start.parse::<usize>().unwrap())
        .sum();
    assert!(done > 0 && done < SIZE);
    let server = Server::start(&[(MODEL, noise(SIZE))], honest);
    let listed = succeed(at(&server, home, &["download", "Owner/Model:model.safetensors", "--dry-run"]));
    assert!(listed.contains("are here"), "{listed}");
    succeed(at(&server, home, &["download", "Owner/Model:model.safetensors"]));
    assert!(
        std::fs::read(repo(home).join("snapshots").join(COMMIT).join("model.safetensors")).unwrap()
            == noise(SIZE)
    );
    assert_eq!(server.fetched(), SIZE - done);
    assert!(!journal(home).exists());
}

#[test]
fn a_killed_download_goes_on() {
    let (server, home) = (Server::start(&[(MODEL, noise(SIZE))], slow), tempfile::tempdir().unwrap());
    let mut child = begin(&server, &home);
    child.kill().unwrap();
    child.wait().unwrap();
    goes_on(&home);
}

#[test]
fn an_interrupted_download_goes_on() {
    let (server, home) = (Server::start(&[(MODEL, noise(SIZE))], slow), tempfile::tempdir().unwrap());
    let child = begin(&server, &home);
    succeed({
        let mut kill = Command::new("kill");
        kill.args(["-INT", &child.id().to_string()]);
        kill
    });
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(130) && said.contains("same command goes on"), "{said}");
    goes_on(&home);
}

#[test]
fn two_processes_fetch_one_file_once() {
    let server = Server::start(&[(MODEL, noise(9 << 20))], slow);
    let home = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = at(&server, &home, &["download", "Owner/Model:model.safetensors"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [start(), start()] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = String::from_utf8(output.stdout).unwrap().trim().split_once(": ").unwrap().1.to_string();
        assert!(std::fs::read(path).unwrap() == noise(9 << 20));
    }
    assert_eq!(server.asked().iter().filter(|asked| asked.storage).count(), 1);
}

#[test]
fn refusals_and_wrong_names_have_a_remedy() {
    let check = |command: Command, code: i32, words: &[&str]| {
        let (actual, said) = fail(command);
        assert_eq!(actual, code, "{said}");
        words
            .iter()
            .chain(&["error: ", "hint: "])
            .for_each(|word| assert!(said.contains(word), "should say `{word}`: {said}"));
    };
    let home = tempfile::tempdir().unwrap();
    let gated = Server::start(
        &[("google/gemma-3-12b-it-qat-q4_0-unquantized/config.json", b"{}".to_vec())],
        |asked, reply| {
            if asked.path.starts_with("/api/") {
                reply
            } else {
                Reply::new(401).with("X-Error-Code", "GatedRepo")
            }
        },
    );
    let page = format!("{}/google/gemma-3-12b-it-qat-q4_0-unquantized", gated.endpoint);
    check(at(&gated, &home, &["download", "gemma"]), 1, &["gated", &page, "HF_TOKEN", "--token"]);

    let server = Server::start(&[(MODEL, noise(99))], honest);
    check(at(&server, &home, &["download", "2.3-distiled"]), 2, &["no model `2.3-distiled`", "--list"]);
    check(at(&server, &home, &["download", "2.3_distilled"]), 2, &["is 2.3-distilled or"]);
    check(at(&server, &home, &["download", "a/../b"]), 2, &["owner/repo:file"]);
    check(at(&server, &home, &["download", "Owner/Model:nothing.bin"]), 2, &["no file `nothing.bin`"]);
    check(at(&server, &home, &["download", "Other/Model"]), 2, &["no Other/Model on the hub"]);
    let mut offline = at(&server, &home, &["download", "Owner/Model"]);
    offline.env("HF_HUB_OFFLINE", "1");
    check(offline, 2, &["HF_HUB_OFFLINE"]);
    let mut nowhere = at(&server, &home, &["download", "Owner/Model"]);
    nowhere.env("HF_ENDPOINT", "http://127.0.0.1:1");
    check(nowhere, 1, &["does not answer", "127.0.0.1:1", "HF_ENDPOINT"]);

    let corrupt = Server::start(&[(MODEL, noise(99))], |asked, mut reply| {
        if asked.storage {
            reply.body[7] ^= 4;
        }
        reply
    });
    check(at(&corrupt, &home, &["download", "Owner/Model"]), 1, &["checksum", "nothing was kept"]);
    assert!(!repo(&home).join("snapshots").exists());
    assert_eq!(std::fs::read_dir(repo(&home).join("blobs")).unwrap().count(), 0);

    let huge = Server::start(&[(MODEL, noise(99))], |_, mut reply| {
        reply.headers.retain(|(name, _)| name != "X-Linked-Size");
        reply.with("X-Linked-Size", 1u64 << 60)
    });
    check(
        at(&huge, &home, &["download", "Owner/Model:model.safetensors"]),
        1,
        &["1152921504.6 GB are to come", "free", "HF_HOME"],
    );
}

#[test]
fn the_token_comes_from_where_people_keep_it() {
    let home = tempfile::tempdir().unwrap();
    let shown = |variables: &[(&str, &str)], typed: &[&str]| {
        let server = Server::start(&[(MODEL, noise(99))], honest);
        let mut command = at(&server, &home, &["download", "Owner/Model", "--dry-run"]);
        command.envs(variables.iter().copied()).args(typed);
        succeed(command);
        let asked = server.asked();
        assert!(asked.windows(2).all(|two| two[0].token == two[1].token));
        asked[0].token.clone().unwrap_or_default()
    };
    assert_eq!(shown(&[], &[]), "");
    std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
    assert_eq!(shown(&[], &[]), "hf_file");
    assert_eq!(shown(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], &[]), "");
    let elsewhere = home.path().join("elsewhere");
    std::fs::write(&elsewhere, "hf_elsewhere").unwrap();
    assert_eq!(shown(&[("HF_TOKEN_PATH", elsewhere.to_str().unwrap())], &[]), "hf_elsewhere");
    assert_eq!(shown(&[("HF_TOKEN", "hf_variable")], &[]), "hf_variable");
    assert_eq!(shown(&[("HF_TOKEN", "hf_variable")], &["--token", "hf_typed"]), "hf_typed");
}

#[test]
fn plans_results_and_folders_are_told() {
    let files = [
        ("Owner/Model/config.json", b"{\"a\": 1}".to_vec()),
        (MODEL, noise(1_234_567)),
        ("Owner/Model/README.md", vec![1]),
    ];
    let server = Server::start(&files, honest);
    let home = tempfile::tempdir().unwrap();
    let plan = succeed(at(&server, &home, &["download", "Owner/Model", "--dry-run"]));
    assert!(
        plan.contains("model.safetensors    1.2 MB  to fetch") && plan.contains("1.2 MB to come"),
        "{plan}"
    );
    assert!(!plan.contains("README") && !home.path().join("hub").exists());
    let folder = home.path().join("weights/mine");
    let arguments = ["download", "Owner/Model", "--quiet", "--output", folder.to_str().unwrap()];
    assert_eq!(succeed(at(&server, &home, &arguments)).trim(), format!("Owner/Model: {}", folder.display()));
    for _ in 0..2 {
        assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == noise(1_234_567));
        assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), files[0].1);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
        succeed(at(&server, &home, &arguments));
    }
    let json = succeed(at(&server, &home, &["download", "Owner/Model", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json[1]["file"].as_str(), json[1]["was_here"].as_u64()),
        (Some("model.safetensors"), Some(1_234_567))
    );
    assert!(Path::new(json[1]["path"].as_str().unwrap()).is_file());
}

#[test]
fn a_name_brings_what_a_clip_needs_and_generate_uses_it() {
    let (l23, gemma) = ("Lightricks/LTX-2.3", "google/gemma-3-12b-it-qat-q4_0-unquantized");
    let read = |path: &str| std::fs::read(fixtures().join(path)).unwrap();
    let mut files = vec![
        (format!("{l23}/ltx-2.3-22b-distilled-1.1.safetensors"), read("2.3/model.safetensors")),
        (
            format!("{l23}/ltx-2.3-spatial-upscaler-x2-1.1.safetensors"),
            read("upsamplers/2.3-spatial-x2.safetensors"),
        ),
        (format!("{gemma}/README.md"), vec![1, 2, 3]),
        (LORA.replace(':', "/"), read("lora/official.safetensors")),
    ];
    for entry in std::fs::read_dir(fixtures().join("gemma3")).unwrap() {
        let path = entry.unwrap().path();
        files.push((
            format!("{gemma}/{}", path.file_name().unwrap().display()),
            std::fs::read(&path).unwrap(),
        ));
    }
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let server = Server::start(&files, honest);
    let home = tempfile::tempdir().unwrap();
    let clip = home.path().join("boat.mp4");
    let generate = || {
        let mut command = at(
            &server,
            &home,
            &["generate", "a red boat", "--model", "2.3-distilled", "--device", "cpu", "--quiet"],
        );
        command.args(["--height", "64", "--width", "128", "--frames", "9", "--output"]).arg(&clip);
        command
    };
    let (code, said) = fail(generate());
    assert!(code == 2 && said.contains("`ltx download 2.3-distilled`"), "{said}");
    succeed(at(&server, &home, &["download", "ltx-2.3-distilled", "--only", "--quiet"]));
    let (code, said) = fail(generate());
    assert!(code == 2 && said.contains("`ltx download gemma 2.3-upsampler`"), "{said}");
    assert!(
        !clip.exists() && !server.asked().iter().any(|asked| asked.path.contains("gemma")),
        "nothing is fetched unasked"
    );

    let told = succeed(at(&server, &home, &["download", "2.3-distilled", "--quiet"]));
    assert_eq!(
        told.lines().map(|line| line.split(": ").next().unwrap()).collect::<Vec<_>>(),
        ["2.3-distilled", "2.3-upsampler", "gemma"]
    );
    let before = server.asked().len();
    succeed(generate());
    assert!(std::fs::read(&clip).unwrap().windows(4).any(|word| word == b"moov"));
    let listed = succeed(at(&server, &home, &["download", "--list"]));
    let here: Vec<&str> = listed
        .lines()
        .filter(|line| line.contains("  here "))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(here, ["2.3-distilled", "2.3-upsampler", "gemma"]);
    assert_eq!(server.asked().len(), before, "using what is here asks nobody");
    succeed(at(&server, &home, &["download", "camera-static", "--quiet"]));
    let before = server.asked().len();
    every_command_takes_names(&server, &home);
    let inspected =
        succeed(at(&server, &home, &["inspect", "Lightricks/LTX-2.3:ltx-2.3-22b-distilled-1.1.safetensors"]));
    assert!(inspected.contains("version: 2.3"), "{inspected}");
    assert_eq!(server.asked().len(), before, "using what is here asks nobody");
}

/// Whatever is asked for by a name is taken from the cache.
fn every_command_takes_names(server: &Server, home: &TempDir) {
    let made = |name: &str| home.path().join(name).display().to_string();
    let run = |arguments: &[&str]| succeed(at(server, home, arguments));
    let hub = "Lightricks/LTX-2.3:ltx-2.3-22b-distilled-1.1.safetensors";
    for model in ["2.3-distilled", hub] {
        let embedding = made("prompt.npz");
        run(&["encode-text", "a boat", "--model", model, "--output", &embedding, "--device", "cpu"]);
        let size = ["--height", "64", "--width", "64", "--frames", "9", "--output"];
        let (clip, latents) = (made("clip.mp4"), made("clip_latent.npz"));
        let generate = ["generate", "--device", "cpu", "--recipe", "one-stage", "--model", model];
        run(&[&generate[..], &["--skip-vae", "--embedding", &embedding], &size, &[&clip]].concat());
        run(&["decode", &latents, "--model", model, "--device", "cpu"]);
    }
    let golden = fixtures().join("goldens/2.3-dit-t2v.safetensors").display().to_string();
    assert!(run(&["verify", &golden, "--model", "2.3-distilled", "--device", "cpu"]).contains("pass"));
    let (repository, _) = LORA.split_once(':').unwrap();
    for lora in ["camera-static", LORA, repository] {
        let said = run(&["lora", "inspect", lora, "--against", "2.3-distilled"]);
        assert!(said.contains("6 of the dit"), "{lora}: {said}");
    }
    let merged = made("merged.safetensors");
    run(&["lora", "merge", "2.3-distilled", "--lora", "camera-static", "0.5", "--output", &merged]);
    assert!(run(&["lora", "list"]).contains("camera-static       here"));
    run(&["enhance", "a boat", "--max-tokens", "3", "--device", "cpu"]);
}

#[test]
fn what_is_not_needed_need_not_be_here() {
    let model = "Lightricks/LTX-2.3/ltx-2.3-22b-distilled-1.1.safetensors";
    let server =
        Server::start(&[(model, std::fs::read(fixtures().join("2.3/model.safetensors")).unwrap())], honest);
    let home = tempfile::tempdir().unwrap();
    succeed(at(&server, &home, &["download", "Lightricks/LTX-2.3:ltx-2.3-22b-distilled-1.1.safetensors"]));
    let clip = home.path().join("clip.mp4").display().to_string();
    let base = ["generate", "a boat", "--model", "2.3-distilled", "--device", "cpu", "--output", &clip];
    let size = ["--height", "64", "--width", "64", "--frames", "9"];
    for extra in [&["--dummy-text", "--recipe", "one-stage"][..], &["--placeholder"]] {
        succeed(at(&server, &home, &[&base[..], &size, extra].concat()));
    }
}
