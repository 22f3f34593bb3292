//! Names of things on the hub: `owner/repo`, a revision of it, a file in it. Everything that ends up in a path or an
//! address is checked here.

use std::fmt;

use crate::{Error, Result};

/// A repository on the hub, and a file in it or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// The file's path in the repository; none means every file.
    pub file: Option<String>,
}

impl Reference {
    /// Reads `owner/repo`, `owner/repo:path/to/file` and, in both, `owner/repo@revision`.
    ///
    /// # Errors
    ///
    /// When it is none of these, or holds what no repository may be called.
    pub fn parse(text: &str) -> Result<Self> {
        let problem = || {
            Error::request(
                format!("`{text}` is not the name of something on the hub"),
                "write owner/repo or owner/repo:file",
            )
        };
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        let part = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with(['.', '-'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let named = repo.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name));
        if !named || !is_path(revision) || file.is_some_and(|file| !is_path(file)) {
            return Err(problem());
        }
        Ok(Self { repo: repo.into(), revision: revision.into(), file: file.map(Into::into) })
    }

    /// Whether `text` has the form of a repository's name (and might also be a path).
    pub fn looks_like(text: &str) -> bool {
        Self::parse(text).is_ok()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// A relative path that stays inside its folder: no `..`, nothing absolute, nothing hidden in control characters.
pub(crate) fn is_path(path: &str) -> bool {
    path.len() <= 1024
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.chars().any(|c| c.is_control() || c == '\\')
}

/// A checksum or tag that can be a file's name.
pub(crate) fn is_tag(tag: &str) -> bool {
    (1..=200).contains(&tag.len())
        && !tag.starts_with('.')
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A commit of a repository.
pub(crate) fn is_commit(commit: &str) -> bool {
    commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit())
}

/// A path as it stands in an address; slashes too when `slashes`.
pub(crate) fn encode(path: &str, slashes: bool) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (byte == b'/' && !slashes) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written_back() {
        for text in ["Lightricks/LTX-2", "a/b:c.safetensors", "a/b:sub/c.json", "a/b@v1.0:c", "a/b@refs/pr/3"]
        {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Reference::parse("a/b").unwrap().revision, "main");
    }

    #[test]
    fn what_would_leave_the_cache_is_refused() {
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/.hidden",
            "a/b:",
            "a/b:/etc/passwd",
            "a/b:../x",
            "a/b:x/../../y",
            "a/b:x//y",
            "a/b:x\\y",
            "a/b:x\ny",
            "a/b@",
            "a/b@../x",
            "a/b c",
            "a/b?x",
            "https://host/a",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        assert!(!is_tag("../x") && !is_tag("") && !is_tag("a/b") && is_tag("d41d8cd9-3"));
    }

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encode("a b/ü?.x", false), "a%20b/%C3%BC%3F.x");
        assert_eq!(encode("refs/pr/3", true), "refs%2Fpr%2F3");
    }
}
