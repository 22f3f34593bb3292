//! Downloads from a hub that misbehaves in every way that hubs do.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hub::{Error, Event, Plan, Reference, Settings};
use server::{Asked, COMMIT, Reply, Server, git_hash, noise, sha256};
use tempfile::TempDir;

const MODEL: &str = "Owner/Model/sub dir/model.safetensors";
/// An odd number of bytes: several segments, the last one short.
const SIZE: usize = 1_234_567;

fn settings(server: &Server, cache: &TempDir) -> Settings {
    Settings {
        endpoint: server.endpoint.clone(),
        segment: 100_000,
        piece: 10_000,
        connections: 4,
        pause: Duration::from_millis(1),
        ..Settings::new(cache.path())
    }
}

fn reference() -> Reference {
    Reference::parse("Owner/Model:sub dir/model.safetensors").unwrap()
}

fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn download(settings: &Settings) -> hub::Result<PathBuf> {
    let mut paths = Plan::new(settings, &[reference()], |_, _| true, &mut go_on)?.run(&mut go_on)?;
    assert_eq!(paths.len(), 1);
    Ok(paths.remove(0))
}

fn honest(_: &Asked, reply: Reply) -> Reply {
    reply
}

/// Everything under a folder, links not followed.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path())
            } else {
                found.push(entry.path())
            }
        }
    }
    found.sort();
    found
}

/// No blob and no snapshot: nothing that another program could take for the file.
fn nothing_final(cache: &TempDir) {
    let found = tree(cache.path());
    let unfinished = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with(".ltx.incomplete") || name.ends_with(".ltx.journal") || name.ends_with(".lock")
    };
    assert!(found.iter().all(unfinished), "{found:#?}");
}

/// Starts a hub with one model and a script, and downloads it.
fn run(
    script: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static,
) -> (Server, TempDir, hub::Result<PathBuf>) {
    let server = Server::start(&[(MODEL, noise(SIZE))], script);
    let cache = tempfile::tempdir().unwrap();
    let result = download(&settings(&server, &cache));
    (server, cache, result)
}

fn succeeds(script: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static) -> (Server, TempDir) {
    let (server, cache, result) = run(script);
    assert!(std::fs::read(result.unwrap()).unwrap() == noise(SIZE), "the bytes differ");
    (server, cache)
}

fn fails(script: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static) -> (Server, TempDir, Error) {
    let (server, cache, result) = run(script);
    let error = result.unwrap_err();
    nothing_final(&cache);
    (server, cache, error)
}

fn says(error: &Error, words: &[&str]) {
    let said = format!("{error} / {}", error.remedy().unwrap_or_default());
    for word in words {
        assert!(said.contains(word), "should say `{word}`: {said}");
    }
}

#[test]
fn files_lie_as_the_official_tools_lay_them() {
    let (server, cache) = succeeds(honest);
    let repo = cache.path().join("models--Owner--Model");
    let blob = repo.join("blobs").join(sha256(&noise(SIZE)));
    let snapshot = repo.join("snapshots").join(COMMIT).join("sub dir/model.safetensors");
    let lock =
        cache.path().join(".locks/models--Owner--Model").join(format!("{}.lock", sha256(&noise(SIZE))));
    let mut expected = vec![blob.clone(), snapshot.clone(), lock, repo.join("refs/main")];
    expected.sort();
    assert_eq!(tree(cache.path()), expected);
    assert_eq!(std::fs::canonicalize(&snapshot).unwrap(), std::fs::canonicalize(&blob).unwrap());
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(server.fetched(), SIZE, "every byte is asked for once");

    // A second run asks what the file is and fetches nothing.
    let before = server.asked().len();
    assert_eq!(download(&settings(&server, &cache)).unwrap(), snapshot);
    assert_eq!(server.asked().len(), before + 1);
}

#[test]
fn small_files_have_git_checksums_and_whole_repositories_are_filtered() {
    let files = [
        ("o/n/config.json", b"{}".to_vec()),
        ("o/n/README.md", b"# n".to_vec()),
        ("o/n/empty.txt", vec![]),
        ("o/n/w.safetensors", noise(77)),
    ];
    let server = Server::start(&files, honest);
    let cache = tempfile::tempdir().unwrap();
    let wanted = [Reference::parse("o/n").unwrap(), Reference::parse("o/n:config.json").unwrap()];
    let plan = Plan::new(
        &settings(&server, &cache),
        &wanted,
        |_, name| hub::catalog::is_model_file(name),
        &mut go_on,
    )
    .unwrap();
    assert_eq!(
        plan.items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(),
        ["config.json", "empty.txt", "w.safetensors"]
    );
    assert_eq!(plan.missing(), 79);
    for (path, (_, bytes)) in plan.run(&mut go_on).unwrap().iter().zip([&files[0], &files[2], &files[3]]) {
        assert_eq!(&std::fs::read(path).unwrap(), bytes);
    }
    assert!(cache.path().join("models--o--n/blobs").join(git_hash(b"{}")).is_file());
    assert_eq!(
        hub::Cache::new(cache.path()).find(&wanted[0]),
        Some(cache.path().join("models--o--n/snapshots").join(COMMIT))
    );
}

#[test]
fn dropped_connections_are_taken_up_where_they_broke() {
    // Every first answer breaks off in the middle.
    let count = AtomicUsize::new(0);
    let (server, _cache) = succeeds(move |asked, mut reply| {
        if asked.storage && count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            reply.cut = Some(reply.body.len() / 3);
        }
        reply
    });
    assert!(server.fetched() < SIZE * 2, "nothing that arrived is asked for again: {}", server.fetched());
}

#[test]
fn a_server_that_always_drops_is_given_up_and_what_arrived_is_kept() {
    let (_server, cache, error) = fails(|asked, mut reply| {
        if asked.storage && asked.range.as_ref().is_none_or(|range| range.start >= 300_000) {
            reply.cut = Some(0);
        }
        reply
    });
    says(&error, &["does not go on", "same command"]);
    let (done, of) = hub::Cache::new(cache.path()).begun("Owner/Model", "sub dir/model.safetensors").unwrap();
    assert!(of == SIZE as u64 && (300_000..of).contains(&done), "{done} of {of}");

    // The next run fetches the rest alone.
    let server = Server::start(&[(MODEL, noise(SIZE))], honest);
    let path = download(&settings(&server, &cache)).unwrap();
    assert!(std::fs::read(path).unwrap() == noise(SIZE));
    assert_eq!(server.fetched() as u64, of - done);
}

#[test]
fn servers_without_ranges_still_serve() {
    let (server, _cache) = succeeds(|asked, reply| {
        let mut whole = reply;
        if asked.storage {
            whole.status = 200;
            whole.headers.clear();
            whole.body = noise(SIZE);
            whole.cut = (asked.before == 0).then_some(SIZE / 2);
        }
        whole
    });
    assert!(server.asked().iter().any(|asked| asked.storage && asked.range.is_none()));
    let (_server, cache, error) = fails(|asked, mut reply| {
        if asked.storage {
            reply = Reply::new(200);
            reply.body = noise(SIZE);
            reply.cut = Some(SIZE - 1);
        }
        reply
    });
    says(&error, &["does not go on"]);
    drop(cache);
}

#[test]
fn lying_lengths_are_found() {
    // The hub says more than there is: the storage has no such bytes, or says another total.
    let (_, _, error) =
        fails(
            |asked, reply| {
                if asked.method == "HEAD" { with_header(reply, "X-Linked-Size", SIZE * 2) } else { reply }
            },
        );
    says(&error, &["2469134"]);
    // Less than there is.
    let (_, _, error) =
        fails(
            |asked, reply| {
                if asked.method == "HEAD" { with_header(reply, "X-Linked-Size", SIZE / 2) } else { reply }
            },
        );
    says(&error, &["617283"]);
    // More bytes in the body than its length says are cut off by it; fewer are taken up again.
    succeeds(|asked, mut reply| {
        if asked.storage && asked.before % 2 == 0 {
            reply.length = Some(reply.body.len().div_ceil(2));
        }
        reply
    });
    // A whole file that is longer than it should be.
    let (_, _, error) = fails(|asked, reply| {
        if !asked.storage {
            return reply;
        }
        let mut whole = Reply::new(200).with("Transfer-Encoding", "identity");
        whole.body = noise(SIZE + 5);
        whole
    });
    says(&error, &["1234572", "1234567"]);
    // The wrong place of the file.
    let (_, _, error) = fails(|asked, reply| {
        if asked.storage {
            with_header(reply, "Content-Range", format!("bytes 0-99999/{SIZE}"))
        } else {
            reply
        }
    });
    says(&error, &["was asked for bytes", "answers"]);
}

fn with_header(mut reply: Reply, name: &str, value: impl ToString) -> Reply {
    reply.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    reply.with(name, value)
}

#[test]
fn what_cannot_be_had_from_the_storage_says_so() {
    let (_, _, error) = fails(|asked, reply| if asked.storage { Reply::new(416) } else { reply });
    says(&error, &["has no bytes"]);
    let (server, _, error) = fails(|asked, reply| if asked.storage { Reply::new(403) } else { reply });
    says(&error, &["403", "same command"]);
    assert!(
        server.asked().iter().filter(|asked| !asked.storage).count() > 2,
        "the hub was asked for new addresses"
    );
}

#[test]
fn storage_addresses_that_expire_are_renewed() {
    let (server, _cache) = succeeds(|asked, reply| {
        // Each signature is good for three answers.
        if asked.storage && asked.before >= 3 { Reply::new(403) } else { reply }
    });
    let hub = server.asked().iter().filter(|asked| !asked.storage).count();
    assert!((3..20).contains(&hub), "{hub}");
}

#[test]
fn passing_troubles_pass() {
    for status in [429, 500, 502, 503] {
        // The first request of each method to each file, whatever its signature: several connections share the trouble.
        let troubled = Mutex::new(BTreeSet::new());
        succeeds(move |asked, reply| {
            let file = asked.path.split('?').next().unwrap().to_string();
            let first = troubled.lock().unwrap().insert((asked.method.clone(), file));
            if first { Reply::new(status).with("Retry-After", 0) } else { reply }
        });
    }
    let (_, _, error) = fails(|asked, reply| if asked.storage { reply } else { Reply::new(500) });
    says(&error, &["500", "HF_ENDPOINT"]);
}

#[test]
fn the_token_is_shown_to_the_hub_and_to_nobody_else() {
    let server = Server::start(&[(MODEL, noise(SIZE))], honest);
    let cache = tempfile::tempdir().unwrap();
    download(&Settings { token: Some("hf_secret".into()), ..settings(&server, &cache) }).unwrap();
    for asked in server.asked() {
        let expected = (!asked.storage).then(|| "hf_secret".to_string());
        assert_eq!(asked.token, expected, "{asked:?}");
    }
}

#[test]
fn redirects_within_the_hub_are_followed() {
    let moved = MODEL.replace("Owner", "New");
    let server = Server::start(&[(&moved, noise(SIZE))], |asked, reply| {
        if asked.path.starts_with("/Owner/") {
            Reply::new(307).with("Location", asked.path.replace("/Owner/", "/New/"))
        } else {
            reply
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = Settings { token: Some("hf_secret".into()), ..settings(&server, &cache) };
    assert!(std::fs::read(download(&settings).unwrap()).unwrap() == noise(SIZE));
    assert!(server.asked().iter().all(|asked| asked.token.is_some() != asked.storage));
    let (_, _, error) = fails(|asked, _| Reply::new(307).with("Location", &asked.path));
    says(&error, &["redirects without end"]);
}

#[test]
fn refusals_name_the_page_to_visit() {
    let refuse = |status: u16, code: &'static str, token: Option<&str>| {
        let server = Server::start(&[(MODEL, noise(9))], move |_, _| {
            Reply::new(status)
                .with("X-Error-Code", code)
                .with("X-Error-Message", "Access to model Owner/Model is restricted")
        });
        let cache = tempfile::tempdir().unwrap();
        let settings = Settings { token: token.map(Into::into), ..settings(&server, &cache) };
        let error = download(&settings).unwrap_err();
        nothing_final(&cache);
        assert_eq!(server.asked().len(), 1, "no sense in asking again");
        (server.endpoint.clone(), error)
    };
    let (endpoint, error) = refuse(401, "GatedRepo", None);
    says(
        &error,
        &["gated", &format!("{endpoint}/Owner/Model"), "/settings/tokens", "HF_TOKEN", "restricted"],
    );
    let (endpoint, error) = refuse(403, "GatedRepo", Some("hf_x"));
    says(&error, &["no access", &format!("{endpoint}/Owner/Model"), "accept the terms"]);
    assert!(!error.to_string().contains("hf_x"));
    let (_, error) = refuse(401, "RepoNotFound", None);
    says(&error, &["there is no Owner/Model that everybody may read", "token"]);
    let (_, error) = refuse(401, "", Some("hf_x"));
    says(&error, &["does not accept the token"]);
    let (_, error) = refuse(403, "", Some("hf_x"));
    says(&error, &["not to be had with this token", "gated repositories"]);
    let (_, error) = refuse(404, "RepoNotFound", Some("hf_x"));
    says(&error, &["no Owner/Model on the hub"]);
    let (_, error) = refuse(404, "RevisionNotFound", None);
    says(&error, &["no revision `main`"]);
    let (_, error) = refuse(404, "EntryNotFound", None);
    says(&error, &["no file `sub dir/model.safetensors`", "/tree/main"]);
    let (_, error) = refuse(418, "", None);
    says(&error, &["418"]);
}

#[test]
fn corrupt_content_is_thrown_away() {
    let spoil = |asked: &Asked, mut reply: Reply| {
        if asked.storage && asked.range.as_ref().is_some_and(|range| range.contains(&700_000)) {
            let at = 700_000 - asked.range.as_ref().unwrap().start;
            reply.body[at] ^= 1;
        }
        reply
    };
    let (_, cache, error) = fails(spoil);
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    says(&error, &["model.safetensors", "checksum", &sha256(&noise(SIZE)), "nothing was kept"]);
    assert!(tree(cache.path()).iter().all(|path| path.extension().is_some_and(|ending| ending == "lock")));

    // A small file whose checksum is git's.
    let server = Server::start(&[("o/n/config.json", b"{\"a\": 1}".to_vec())], |asked, mut reply| {
        if asked.method == "GET" {
            reply.body[6] = b'2';
        }
        reply
    });
    let cache = tempfile::tempdir().unwrap();
    let plan = Plan::new(
        &settings(&server, &cache),
        &[Reference::parse("o/n:config.json").unwrap()],
        |_, _| true,
        &mut go_on,
    )
    .unwrap();
    assert!(matches!(plan.run(&mut go_on), Err(Error::Corrupt { .. })));
    nothing_final(&cache);
}

#[test]
fn damage_in_what_an_earlier_run_left_is_mended() {
    let server = Server::start(&[(MODEL, noise(SIZE))], honest);
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--Owner--Model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let tag = sha256(&noise(SIZE));
    std::fs::write(blobs.join(format!("{tag}.ltx.incomplete")), vec![0; SIZE]).unwrap();
    let account = format!("ltx-download 1 {SIZE} sub dir/model.safetensors\n0 500000\n");
    std::fs::write(blobs.join(format!("{tag}.ltx.journal")), account).unwrap();
    let mut notes = Vec::new();
    let plan = Plan::new(&settings(&server, &cache), &[reference()], |_, _| true, &mut go_on).unwrap();
    assert_eq!(plan.missing(), (SIZE - 500_000) as u64);
    let paths = plan
        .run(&mut |event| {
            if let Event::Note(note) = event {
                notes.push(note);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(std::fs::read(&paths[0]).unwrap() == noise(SIZE));
    assert!(notes.iter().any(|note| note.contains("fetching it anew")), "{notes:?}");
}

#[test]
fn stopping_leaves_a_state_that_goes_on() {
    let slow = |asked: &Asked, mut reply: Reply| {
        if asked.storage {
            reply.slow = Some(Duration::from_millis(20));
        }
        reply
    };
    let server = Server::start(&[(MODEL, noise(SIZE))], slow);
    let cache = tempfile::tempdir().unwrap();
    let plan = Plan::new(&settings(&server, &cache), &[reference()], |_, _| true, &mut go_on).unwrap();
    let stopped = plan.run(&mut |event| match event {
        Event::Bytes { done, .. } if done > 200_000 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    nothing_final(&cache);
    let (done, _) = hub::Cache::new(cache.path()).begun("Owner/Model", "sub dir/model.safetensors").unwrap();
    assert!(done > 200_000, "{done}");
    let again = Server::start(&[(MODEL, noise(SIZE))], honest);
    let path = download(&settings(&again, &cache)).unwrap();
    assert!(std::fs::read(path).unwrap() == noise(SIZE));
    assert_eq!(again.fetched(), SIZE - done as usize);
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let (server, cache, error) =
        fails(
            |_, reply| {
                if reply.status == 302 { with_header(reply, "X-Linked-Size", u64::MAX / 4) } else { reply }
            },
        );
    says(&error, &["GB are to come", "free"]);
    assert_eq!(server.asked().len(), 1);
    assert!(tree(cache.path()).is_empty());
}

#[test]
fn names_from_the_hub_cannot_leave_the_cache() {
    for (name, value) in
        [("X-Linked-ETag", "\"../../evil\""), ("X-Repo-Commit", "../../../evil"), ("X-Linked-ETag", "\"\"")]
    {
        let (_, cache, error) =
            fails(move |_, reply| if reply.status == 302 { with_header(reply, name, value) } else { reply });
        says(&error, &["does not say the"]);
        assert!(tree(cache.path()).is_empty());
    }
    for listing in ["{\"rfilename\": \"../evil.json\"}", "{\"rfilename\": \"/etc/evil.json\"}", "{}", "7"] {
        let server = Server::start(&[("o/n/a.json", vec![1])], move |_, mut reply| {
            reply.body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{listing}]}}").into_bytes();
            reply
        });
        let cache = tempfile::tempdir().unwrap();
        let error = Plan::new(
            &settings(&server, &cache),
            &[Reference::parse("o/n").unwrap()],
            |_, _| true,
            &mut go_on,
        )
        .err()
        .unwrap();
        says(&error, &["leave its folder"]);
    }
}
