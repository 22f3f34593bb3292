//! A model hub for tests, on this machine: an endpoint and, on another port, the storage that it redirects to. It behaves
//! as the real one does until a test's script says otherwise for a request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest;

/// The commit of everything here.
pub const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// First byte and the one after the last.
    pub range: Option<Range<usize>>,
    pub token: Option<String>,
    /// Whether the storage was asked, not the endpoint.
    pub storage: bool,
    /// How many requests with this method went to this path before.
    pub before: usize,
}

/// An answer and how honestly it is given.
#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The length that is told, where it is not the body's.
    pub length: Option<usize>,
    /// Hang up after so many bytes of the body.
    pub cut: Option<usize>,
    /// Wait after each 64 KiB of the body.
    pub slow: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }
}

type Script = dyn Fn(&Asked, Reply) -> Reply + Send + Sync;

/// A running hub.
pub struct Server {
    /// Its address.
    pub endpoint: String,
    log: Arc<Mutex<Vec<Asked>>>,
}

struct Hub {
    endpoint: String,
    storage: String,
    /// `owner/name/path` to bytes.
    files: BTreeMap<String, Vec<u8>>,
    log: Arc<Mutex<Vec<Asked>>>,
    script: Box<Script>,
}

impl Server {
    /// Serves `files` (`owner/name/path` and bytes); `script` may change any answer.
    pub fn start(
        files: &[(&str, Vec<u8>)],
        script: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listeners =
            [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let hub = Arc::new(Hub {
            endpoint: address(&listeners[0]),
            storage: address(&listeners[1]),
            files: files.iter().map(|(path, bytes)| (path.to_string(), bytes.clone())).collect(),
            log: log.clone(),
            script: Box::new(script),
        });
        let endpoint = hub.endpoint.clone();
        for (storage, listener) in listeners.into_iter().enumerate() {
            let hub = hub.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (hub, stream) = (hub.clone(), stream.unwrap());
                    // A client that hangs up is part of the game.
                    std::thread::spawn(move || drop(hub.serve(stream, storage == 1)));
                }
            });
        }
        Self { endpoint, log }
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// Bytes that the storage was asked for, requests without a range left out.
    pub fn fetched(&self) -> usize {
        self.asked()
            .iter()
            .filter(|asked| asked.storage)
            .filter_map(|asked| asked.range.clone())
            .map(|range| range.len())
            .sum()
    }
}

impl Hub {
    fn serve(&self, mut stream: TcpStream, storage: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_string());
        }
        let Some((method, path)) = lines.first().and_then(|line| line.rsplit_once(' ')?.0.split_once(' '))
        else {
            return Ok(());
        };
        let header = |name: &str| {
            lines.iter().skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
            })
        };
        let range = header("range").and_then(|range| {
            let (start, end) =
                range.strip_prefix("bytes=")?.split_once('-').map(|(a, b)| (a.to_string(), b.to_string()))?;
            Some(start.parse().ok()?..end.parse::<usize>().map_or(usize::MAX, |end| end + 1))
        });
        let token = header("authorization").map(|value| value.trim_start_matches("Bearer ").to_string());
        let mut asked = Asked { method: method.into(), path: path.into(), range, token, storage, before: 0 };
        {
            let mut log = self.log.lock().unwrap();
            asked.before =
                log.iter().filter(|other| other.path == asked.path && other.method == asked.method).count();
            log.push(asked.clone());
        }
        let honest = if storage { self.storage(&asked) } else { self.endpoint(&asked) };
        let reply = (self.script)(&asked, honest);
        let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", reply.status);
        reply.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            head += &format!("Content-Length: {}\r\n", reply.length.unwrap_or(reply.body.len()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if asked.method != "HEAD" {
            let until = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
            for part in reply.body[..until].chunks(64 << 10) {
                stream.write_all(part)?;
                if let Some(wait) = reply.slow {
                    std::thread::sleep(wait);
                }
            }
        }
        stream.flush()
    }

    fn endpoint(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap().replace("%20", " ");
        if let Some(repo) = path.strip_prefix("/api/models/").and_then(|path| path.split_once("/revision/")) {
            let prefix = format!("{}/", repo.0);
            let names: Vec<String> = self
                .files
                .keys()
                .filter_map(|file| {
                    file.strip_prefix(&prefix).map(|name| format!("{{\"rfilename\": {name:?}}}"))
                })
                .collect();
            if names.is_empty() {
                return Reply::new(404).with("X-Error-Code", "RepoNotFound");
            }
            let mut reply = Reply::new(200);
            reply.body =
                format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", ")).into_bytes();
            return reply;
        }
        let Some((repo, file)) =
            path[1..].split_once("/resolve/").and_then(|(repo, rest)| Some((repo, rest.split_once('/')?.1)))
        else {
            return Reply::new(404);
        };
        let Some(bytes) = self.files.get(&format!("{repo}/{file}")) else {
            let known = self.files.keys().any(|name| name.starts_with(&format!("{repo}/")));
            return if known {
                Reply::new(404).with("X-Error-Code", "EntryNotFound")
            } else {
                Reply::new(401).with("X-Error-Code", "RepoNotFound")
            };
        };
        if !is_large(file) {
            let mut reply = Reply::new(200)
                .with("X-Repo-Commit", COMMIT)
                .with("ETag", format!("\"{}\"", git_hash(bytes)));
            reply.body = bytes.clone();
            return reply;
        }
        let tag = sha256(bytes);
        Reply::new(302)
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-ETag", format!("\"{tag}\""))
            .with("X-Linked-Size", bytes.len())
            .with("ETag", "\"etag-of-the-redirect\"")
            .with("Location", format!("{}/{tag}?signature={}", self.storage, asked.before))
    }

    fn storage(&self, asked: &Asked) -> Reply {
        let tag = asked.path.trim_start_matches('/').split('?').next().unwrap();
        let Some(bytes) = self.files.values().find(|bytes| sha256(bytes) == tag) else {
            return Reply::new(404);
        };
        let mut reply = Reply::new(200);
        match &asked.range {
            Some(range) if range.start >= bytes.len() => return Reply::new(416),
            Some(range) => {
                let range = range.start..range.end.min(bytes.len());
                reply = Reply::new(206).with(
                    "Content-Range",
                    format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len()),
                );
                reply.body = bytes[range].to_vec();
            }
            None => reply.body = bytes.clone(),
        }
        reply
    }
}

/// Files that the hub keeps in its storage.
pub fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub fn git_hash(bytes: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    hex(context.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// So many bytes in which every place can be told from every other.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}
