//! Requests to the hub: addresses, redirects, the token, and what each refusal means. Knows no disk.

use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, Uri, header};
use ureq::{Agent, BodyReader, tls};

use crate::reference::{encode, is_commit, is_path, is_tag};
use crate::{Error, Reference, Result, Settings};

/// Why a request gave nothing.
pub(crate) enum Failure {
    /// Worth trying again, after a while that the server may have named.
    Again { problem: String, after: Option<Duration> },
    /// The server gives whole files only.
    NoRanges,
    /// Asking again would not help.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// What the hub says about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub commit: String,
    /// Checksum, and name of the blob.
    pub tag: String,
    pub size: u64,
    /// Where its bytes are now; good for minutes or hours.
    pub url: String,
}

/// Bytes on their way.
pub(crate) struct Body {
    pub reader: BodyReader<'static>,
    /// Whether these are the bytes that were asked for, or the whole file.
    pub whole: bool,
    pub url: String,
}

pub(crate) struct Client {
    agent: Agent,
    settings: Settings,
    endpoint: Uri,
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Self> {
        let problem = |text: &str| {
            Error::request(
                format!("`{}` {text}", settings.endpoint),
                "set HF_ENDPOINT to an address like https://host",
            )
        };
        let endpoint: Uri = settings.endpoint.parse().map_err(|_| problem("is not an address"))?;
        if !matches!(endpoint.scheme_str(), Some("http" | "https")) || endpoint.host().is_none() {
            return Err(problem("is not the address of a hub"));
        }
        if settings.endpoint.contains(['?', '#', '@']) {
            // Not shown: before an @ stands a password.
            return Err(Error::request(
                "the hub's address has a query, a fragment or a password in it",
                "set HF_ENDPOINT to an address like https://host; tokens go to HF_TOKEN",
            ));
        }
        if settings.token.as_ref().is_some_and(|token| {
            token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic() && !"\"'".contains(c))
        }) {
            return Err(Error::request(
                "the token holds characters that no token has",
                "copy it again from the hub's page of tokens, without spaces or quotes",
            ));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("ltx/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections_per_host(settings.connections.max(1))
            .timeout_resolve(Some(settings.patience))
            .timeout_connect(Some(settings.patience))
            .timeout_recv_response(Some(settings.patience))
            .timeout_per_read(Some(settings.patience));
        if let Some(path) = &settings.certificates {
            let pem = std::fs::read(path).map_err(|error| Error::disk(path, &error))?;
            let certificates: Vec<_> = tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(tls::PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            let roots = tls::RootCerts::new_with_certs(&certificates);
            config = config.tls_config(tls::TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { agent: config.build().new_agent(), settings: settings.clone(), endpoint })
    }

    /// What the hub says about `file` at a revision.
    pub fn metadata(&self, reference: &Reference, file: &str) -> Result<Metadata, Failure> {
        let mut url = self.address(reference, file);
        let (mut tag, mut size, mut commit) = (None, None, None);
        for _ in 0..10 {
            let (status, headers, _) = self.send("HEAD", &url, None)?;
            let text =
                |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(status, &headers, reference, Some(file), &url));
            }
            commit = commit.or_else(|| text("x-repo-commit"));
            tag = tag.or_else(|| text("x-linked-etag"));
            size = size.or_else(|| text("x-linked-size"));
            if status.is_success() {
                tag = tag.or_else(|| text("etag"));
                size = size.or_else(|| text("content-length"));
            } else {
                url = self.redirect(&url, &headers)?;
            }
            // A redirect that says everything about what it leads to need not be followed yet.
            if status.is_success() || (tag.is_some() && size.is_some() && commit.is_some()) {
                let missing = |what| strange(&url, &format!("does not say the {what} of {file}"));
                let tag = tag.ok_or_else(|| missing("checksum"))?;
                let tag = tag.strip_prefix("W/").unwrap_or(&tag).trim_matches('"').to_string();
                let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| missing("size"))?;
                let commit = commit.filter(|commit| is_commit(commit)).ok_or_else(|| missing("commit"))?;
                if !is_tag(&tag) {
                    return Err(missing("checksum").into());
                }
                return Ok(Metadata { commit, tag, size, url });
            }
        }
        Err(strange(&url, "redirects without end").into())
    }

    /// The commit of a revision and the paths of all its files.
    pub fn list(&self, reference: &Reference) -> Result<(String, Vec<String>), Failure> {
        let mut url = format!(
            "{}/api/models/{}/revision/{}",
            self.settings.endpoint,
            reference.repo,
            encode(&reference.revision, true)
        );
        for _ in 0..10 {
            let (status, headers, body) = self.send("GET", &url, None)?;
            if status.is_redirection() {
                url = self.redirect(&url, &headers)?;
                continue;
            }
            if !status.is_success() {
                return Err(self.refusal(status, &headers, reference, None, &url));
            }
            let mut text = String::new();
            body.take(64 << 20).read_to_string(&mut text).map_err(|error| broken(&url, &error))?;
            let listing: serde_json::Value = serde_json::from_str(&text)
                .map_err(|_| strange(&url, "answers with something that is no list of files"))?;
            let commit =
                listing.get("sha").and_then(serde_json::Value::as_str).filter(|commit| is_commit(commit));
            let files = listing.get("siblings").and_then(serde_json::Value::as_array);
            let (Some(commit), Some(files)) = (commit, files) else {
                return Err(strange(&url, "answers with something that is no list of files").into());
            };
            let files: Option<Vec<String>> = files
                .iter()
                .map(|file| file.get("rfilename")?.as_str().filter(|file| is_path(file)).map(str::to_string))
                .collect();
            let files =
                files.ok_or_else(|| strange(&url, "lists a file whose name would leave its folder"))?;
            return Ok((commit.into(), files));
        }
        Err(strange(&url, "redirects without end").into())
    }

    /// Bytes of a file of `size` bytes: `range`, or all when that is all of them.
    pub fn open(
        &self,
        reference: &Reference,
        file: &str,
        url: &str,
        range: Range<u64>,
        size: u64,
    ) -> Result<Body, Failure> {
        let mut url = url.to_string();
        let asked = (range != (0..size)).then_some(&range);
        for _ in 0..10 {
            let (status, headers, reader) = self.send("GET", &url, asked)?;
            if status.is_redirection() {
                url = self.redirect(&url, &headers)?;
                continue;
            }
            let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
            return match status {
                StatusCode::PARTIAL_CONTENT => {
                    let said = text(header::CONTENT_RANGE).unwrap_or_default();
                    let right = content_range(said).is_some_and(|(start, total)| {
                        start == range.start && total.is_none_or(|total| total == size)
                    });
                    if !right {
                        let problem = format!(
                            "was asked for bytes {}-{} of {size} of {file} and answers `{}`",
                            range.start,
                            range.end - 1,
                            clean(said)
                        );
                        return Err(strange(&url, &problem).into());
                    }
                    Ok(Body { reader, whole: false, url })
                }
                StatusCode::OK => {
                    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
                    if let Some(length) = length.filter(|&length| length != size) {
                        let problem = format!("sends {length} bytes of {file}, which should have {size}");
                        return Err(strange(&url, &problem).into());
                    }
                    if range.start > 0 {
                        Err(Failure::NoRanges)
                    } else {
                        Ok(Body { reader, whole: true, url })
                    }
                }
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    let problem = format!(
                        "has no bytes {}-{} of {file}, which should have {size}",
                        range.start,
                        range.end - 1
                    );
                    Err(strange(&url, &problem).into())
                }
                _ => Err(self.refusal(status, &headers, reference, Some(file), &url)),
            };
        }
        Err(strange(&url, "redirects without end").into())
    }

    /// The hub's own address of a file.
    pub fn address(&self, reference: &Reference, file: &str) -> String {
        let revision = encode(&reference.revision, true);
        format!("{}/{}/resolve/{revision}/{}", self.settings.endpoint, reference.repo, encode(file, false))
    }

    /// Whether an address is the hub's own: the only place the token goes to.
    pub fn is_ours(&self, url: &str) -> bool {
        url.parse::<Uri>().is_ok_and(|url| origin(&url) == origin(&self.endpoint))
    }

    fn send(
        &self,
        method: &str,
        url: &str,
        range: Option<&Range<u64>>,
    ) -> Result<(StatusCode, HeaderMap, BodyReader<'static>), Failure> {
        let mut request = match method {
            "HEAD" => self.agent.head(url),
            _ => self.agent.get(url),
        }
        .header(header::ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_ours(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| match error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => Failure::Fatal(Error::server(
                format!("{}: no trusted connection: {error}", place(url)),
                "behind a proxy that opens connections, name its certificate with SSL_CERT_FILE; else check the clock and the address",
            )),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => strange(url, "is not a valid address").into(),
            error => broken(url, &error),
        })?;
        let (parts, body) = response.into_parts();
        Ok((parts.status, parts.headers, body.into_reader()))
    }

    /// Where a redirect leads.
    fn redirect(&self, from: &str, headers: &HeaderMap) -> Result<String, Failure> {
        let to = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let to = to.ok_or_else(|| strange(from, "redirects to nowhere"))?;
        let base: Uri = from.parse().map_err(|_| strange(from, "is not a valid address"))?;
        let (scheme, authority) =
            (base.scheme_str().unwrap_or("https"), base.authority().map_or("", |host| host.as_str()));
        let url = if let Some(rest) = to.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else if to.starts_with('/') {
            format!("{scheme}://{authority}{to}")
        } else {
            to.to_string()
        };
        let target: Uri =
            url.parse().map_err(|_| strange(from, "redirects to something that is no address"))?;
        match target.scheme_str() {
            Some("https") => Ok(url),
            Some("http") if scheme == "http" => Ok(url),
            _ => Err(strange(from, "redirects to something that is not a secure address").into()),
        }
    }

    /// What a status other than success means.
    fn refusal(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        reference: &Reference,
        file: Option<&str>,
        url: &str,
    ) -> Failure {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (code, said) = (text("x-error-code"), clean(text("x-error-message")));
        let said = if said.is_empty() { said } else { format!(" (the hub says: {said})") };
        let repo = &reference.repo;
        let page = format!("{}/{repo}", self.settings.endpoint);
        let tokens = format!("{}/settings/tokens", self.settings.endpoint);
        let give = "give it with --token, HF_TOKEN or `hf auth login`";
        let anonymous = self.settings.token.is_none();
        if status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT
            || status.is_server_error()
        {
            let after = text("retry-after").parse().ok().map(Duration::from_secs);
            let problem = format!("{} answers {}{said}", place(url), status.as_u16());
            return Failure::Again { problem, after };
        }
        if !self.is_ours(url) {
            // The storage behind the hub: its addresses expire, and the hub gives new ones.
            return Failure::Again {
                problem: format!("{} answers {}", place(url), status.as_u16()),
                after: None,
            };
        }
        Failure::Fatal(match (status.as_u16(), code) {
            (401 | 403, "GatedRepo") if anonymous => Error::denied(
                format!("{repo} is gated: its owner gives it to those who accept the terms{said}"),
                format!("visit {page} and accept the terms, make a token at {tokens}, and {give}"),
            ),
            (401 | 403, "GatedRepo") => Error::denied(
                format!("{repo} is gated and the token's owner has no access to it{said}"),
                format!("visit {page}, logged in as the token's owner, and accept the terms"),
            ),
            (401, "RepoNotFound" | "") if anonymous => Error::denied(
                format!("there is no {repo} that everybody may read{said}"),
                format!("check the name; if it is private, make a token at {tokens} and {give}"),
            ),
            (401, _) => Error::denied(
                format!("the hub does not accept the token for {repo}{said}"),
                format!("check the name {repo}, and the token at {tokens}"),
            ),
            (403, _) => Error::denied(
                format!(
                    "{repo} is not to be had with this {}{said}",
                    if anonymous { "connection" } else { "token" }
                ),
                format!(
                    "visit {page} and ask for access; at {tokens} the token must be allowed to read gated repositories"
                ),
            ),
            (404, "RevisionNotFound") => Error::request(
                format!("{repo} has no revision `{}`", reference.revision),
                format!("{page} shows the revisions"),
            ),
            (404, "RepoNotFound") => {
                Error::request(format!("there is no {repo} on the hub"), "check the name")
            }
            (404, _) => match file {
                Some(file) => Error::request(
                    format!("{repo} has no file `{file}`"),
                    format!("{page}/tree/main shows the files"),
                ),
                None => Error::request(format!("there is no {repo} on the hub"), "check the name"),
            },
            (status, _) => strange(url, &format!("answers {status}{said}")),
        })
    }
}

/// Scheme, host and port.
fn origin(url: &Uri) -> Option<(String, String, u16)> {
    let scheme = url.scheme_str()?.to_ascii_lowercase();
    let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, url.host()?.to_ascii_lowercase(), port))
}

/// The first byte and the total of `bytes 5-9/20`.
fn content_range(said: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = said.trim().strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    let total = if total == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((start, total))
}

/// The host of an address: what may be shown of one that can hold a signature.
fn place(url: &str) -> String {
    url.parse::<Uri>()
        .ok()
        .and_then(|url| url.authority().map(ToString::to_string))
        .unwrap_or_else(|| "the server".into())
}

/// What a server says, fit for a terminal.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn strange(url: &str, problem: &str) -> Error {
    Error::server(
        format!("{} {problem}", place(url)),
        "run the command again later; if it stays so, the server or something between is at fault",
    )
}

/// The connection failed or broke.
pub(crate) fn broken(url: &str, error: &dyn std::error::Error) -> Failure {
    Failure::Again { problem: format!("{}: {error}", place(url)), after: None }
}

/// Reads until the buffer is full or nothing comes any more.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> (usize, io::Result<()>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Err(error)),
        }
    }
    (filled, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let settings =
            Settings { endpoint: endpoint.into(), token: Some("secret".into()), ..Settings::new("/nowhere") };
        Client::new(&settings).unwrap()
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let client = client("https://hub.example:443");
        for ours in ["https://hub.example/a", "https://HUB.example:443/b?c"] {
            assert!(client.is_ours(ours), "{ours}");
        }
        for other in [
            "http://hub.example/a",
            "https://hub.example:444/",
            "https://hub.example.evil/",
            "https://cdn.example/",
            "nonsense",
            "https://evil@cdn.example/",
        ] {
            assert!(!client.is_ours(other), "{other}");
        }
    }

    #[test]
    fn redirects_lead_where_they_say_and_never_to_plain_text() {
        let client = client("https://hub.example");
        let follow = |to: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, to.parse().unwrap());
            client.redirect("https://hub.example/x/y", &headers).ok()
        };
        assert_eq!(follow("/z?q=1").as_deref(), Some("https://hub.example/z?q=1"));
        assert_eq!(follow("//cdn.example/z").as_deref(), Some("https://cdn.example/z"));
        assert_eq!(follow("https://cdn.example/z").as_deref(), Some("https://cdn.example/z"));
        assert_eq!(follow("http://cdn.example/z"), None);
        assert_eq!(follow("file:///etc/passwd"), None);
        assert_eq!(follow("elsewhere"), None);
    }

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/20"), Some((5, Some(20))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for nonsense in ["", "bytes */20", "bytes 5-9", "items 5-9/20", "bytes x-9/20", "bytes 5-9/y"] {
            assert_eq!(content_range(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for endpoint in [
            "",
            "hub.example",
            "ftp://hub.example",
            "https://",
            "https://a:b@hub.example",
            "https://hub.example?x=1",
            "https://hub.example#x",
        ] {
            assert!(
                matches!(
                    Client::new(&Settings { endpoint: endpoint.into(), ..Settings::new("/x") }),
                    Err(Error::Request { .. })
                ),
                "{endpoint}"
            );
        }
        let settings = Settings { token: Some("\"hf_quoted\"".into()), ..Settings::new("/x") };
        assert!(Client::new(&settings).is_err());
        let settings = Settings { token: Some("a b\r\nX: y".into()), ..Settings::new("/x") };
        assert!(Client::new(&settings).is_err_and(|error| !error.to_string().contains("X: y")));
    }
}
