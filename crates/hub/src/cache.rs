//! The cache on disk, as the hub's official tools lay it out: `blobs/` named by checksum, `snapshots/<commit>/` of links
//! to them, `refs/` from branch to commit, and `.locks/`. What is unfinished lies beside the blobs under names that the
//! official tools never take for their own. Nothing here asks the network.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Reference, Result, journal};

/// The folder that holds every repository's files.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in this folder (`…/huggingface/hub`), which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn official(&self, reference: &Reference) -> hf_hub::CacheRepo {
        let kind = hf_hub::RepoType::Model;
        let repo = hf_hub::Repo::with_revision(reference.repo.clone(), kind, reference.revision.clone());
        hf_hub::Cache::new(self.root.clone()).repo(repo)
    }

    fn repo(&self, repo: &str) -> PathBuf {
        self.root.join(hf_hub::Repo::model(repo.into()).folder_name())
    }

    /// The file, or for a whole repository its folder, if it is here: as of the revision's last download, or else in any
    /// older snapshot.
    pub fn find(&self, reference: &Reference) -> Option<PathBuf> {
        let wanted = |snapshot: &Path| match &reference.file {
            Some(file) => Some(snapshot.join(file)).filter(|path| path.is_file()),
            None => Some(snapshot.to_path_buf()).filter(|path| is_whole(path)),
        };
        let commit =
            std::fs::read_to_string(self.repo(&reference.repo).join("refs").join(&reference.revision))
                .map_or_else(|_| reference.revision.clone(), |commit| commit.trim().to_string());
        if let Some(found) = wanted(&self.snapshot(reference, &commit)) {
            return Some(found);
        }
        if reference.revision != "main" {
            return None;
        }
        let snapshots = std::fs::read_dir(self.repo(&reference.repo).join("snapshots")).ok()?;
        let mut snapshots: Vec<_> = snapshots
            .flatten()
            .map(|entry| (entry.metadata().and_then(|metadata| metadata.modified()).ok(), entry.path()))
            .collect();
        snapshots.sort();
        snapshots.iter().rev().find_map(|(_, path)| wanted(path))
    }

    /// Bytes of `file` that an unfinished download left here, and its size.
    pub fn begun(&self, repo: &str, file: &str) -> Option<(u64, u64)> {
        let blobs = std::fs::read_dir(self.repo(repo).join("blobs")).ok()?;
        blobs
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "journal"))
            .filter_map(|entry| journal::peek(&entry.path()))
            .find_map(|(name, size, done)| (name == file).then_some((done, size)))
    }

    pub(crate) fn snapshot(&self, reference: &Reference, commit: &str) -> PathBuf {
        self.official(reference).pointer_path(commit)
    }

    pub(crate) fn blob(&self, repo: &str, tag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(tag)
    }

    /// Where the bytes of an unfinished blob and their account are.
    pub(crate) fn unfinished(&self, repo: &str, tag: &str) -> (PathBuf, PathBuf) {
        let blobs = self.repo(repo).join("blobs");
        (blobs.join(format!("{tag}.ltx.incomplete")), blobs.join(format!("{tag}.ltx.journal")))
    }

    /// Takes the lock that the official tools take for this blob; `None` when someone else holds it.
    pub(crate) fn lock(&self, repo: &str, tag: &str) -> Result<Option<File>> {
        let folder = self.root.join(".locks").join(hf_hub::Repo::model(repo.into()).folder_name());
        std::fs::create_dir_all(&folder).map_err(|error| Error::disk(&folder, &error))?;
        let path = folder.join(format!("{tag}.lock"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| Error::disk(&path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            // Some network file systems have no locks; the checksum still guards the result.
            Err(std::fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(file))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(Error::disk(&path, &error)),
        }
    }

    /// Makes a finished blob visible as `file` of `commit`, and the commit as the revision's newest. Where links are not
    /// possible the blob itself moves there.
    pub(crate) fn publish(
        &self,
        reference: &Reference,
        commit: &str,
        file: &str,
        tag: &str,
    ) -> Result<PathBuf> {
        let blob = self.blob(&reference.repo, tag);
        let path = self.snapshot(reference, commit).join(file);
        let failed = |error: io::Error| Error::disk(&path, &error);
        let folder = path.parent().unwrap_or(&self.root);
        let up = "../".repeat(2 + file.matches('/').count());
        let link = folder.join(format!(".{tag}.{}.link", std::process::id()));
        // Without a blob the file itself is in its place already. What is right already is not written again: the cache
        // of a whole site may be for reading only.
        let same = path.canonicalize().is_ok_and(|path| blob.canonicalize().is_ok_and(|blob| blob == path));
        if blob.is_file() && !same {
            std::fs::create_dir_all(folder).map_err(failed)?;
            match std::os::unix::fs::symlink(format!("{up}blobs/{tag}"), &link) {
                Ok(()) => std::fs::rename(&link, &path).map_err(failed)?,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    std::fs::rename(&blob, &path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let newest = self.repo(&reference.repo).join("refs").join(&reference.revision);
        let known = || std::fs::read_to_string(&newest).is_ok_and(|known| known.trim() == commit);
        if reference.revision != commit && !known() {
            let path = newest;
            let failed = |error: io::Error| Error::disk(&path, &error);
            std::fs::create_dir_all(path.parent().unwrap_or(&self.root)).map_err(failed)?;
            let beside = path.with_extension(format!("{}.new", std::process::id()));
            std::fs::write(&beside, commit).and_then(|()| std::fs::rename(&beside, &path)).map_err(failed)?;
        }
        Ok(path)
    }

    /// Free bytes where the cache is, or will be.
    pub(crate) fn room(&self) -> Option<u64> {
        room(&self.root)
    }
}

/// Free bytes on the disk where a file or folder is, or will be.
pub fn room(path: &Path) -> Option<u64> {
    let here = path.ancestors().find(|folder| folder.exists())?;
    let here = if here.as_os_str().is_empty() { Path::new(".") } else { here };
    let space = rustix::fs::statvfs(here).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Whether a snapshot holds all that its own index of weights names; without an index, any weights at all.
fn is_whole(snapshot: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(snapshot) else { return false };
    let names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let indices: Vec<&String> =
        names.iter().filter(|name| name.ends_with(".safetensors.index.json")).collect();
    if indices.is_empty() {
        return names.iter().any(|name| name.ends_with(".safetensors") && snapshot.join(name).is_file());
    }
    indices.iter().all(|index| {
        let index = std::fs::read(snapshot.join(index)).ok();
        let index: Option<serde_json::Value> = index.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let files =
            index.as_ref().and_then(|index| index.get("weight_map")).and_then(serde_json::Value::as_object);
        files.is_some_and(|files| {
            files.values().all(|file| file.as_str().is_some_and(|file| snapshot.join(file).is_file()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn published_files_lie_where_the_official_tools_look() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let reference = Reference::parse("Owner/Name:sub/deep/x.json").unwrap();
        let blob = cache.blob("Owner/Name", "abc");
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(&blob, "{}").unwrap();
        assert_eq!(cache.find(&reference), None);
        let path = cache.publish(&reference, COMMIT, "sub/deep/x.json", "abc").unwrap();
        let repo = folder.path().join("models--Owner--Name");
        assert_eq!(path, repo.join("snapshots").join(COMMIT).join("sub/deep/x.json"));
        assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("../../../../blobs/abc"));
        assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
        assert_eq!(cache.find(&reference), Some(path.clone()));
        assert_eq!(
            hf_hub::Cache::new(folder.path().into()).model("Owner/Name".into()).get("sub/deep/x.json"),
            Some(path.clone())
        );

        // Again: nothing is written, so a cache for reading only does as well.
        let facts = |path: &Path| std::fs::symlink_metadata(path).unwrap().modified().unwrap();
        let before = (facts(&path), facts(&repo.join("refs/main")), facts(path.parent().unwrap()));
        assert_eq!(cache.publish(&reference, COMMIT, "sub/deep/x.json", "abc").unwrap(), path);
        assert_eq!((facts(&path), facts(&repo.join("refs/main")), facts(path.parent().unwrap())), before);

        // The branch moved on; what was fetched before is still here.
        std::fs::write(repo.join("refs/main"), "f".repeat(40)).unwrap();
        assert_eq!(cache.find(&reference), Some(path));
    }

    #[test]
    fn a_folder_counts_when_every_shard_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let reference = Reference::parse("o/n").unwrap();
        let snapshot = cache.snapshot(&reference, COMMIT);
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(cache.find(&reference), None);
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        std::fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
        std::fs::write(snapshot.join("model-1.safetensors"), "").unwrap();
        assert_eq!(cache.find(&reference), None);
        std::fs::write(snapshot.join("model-2.safetensors"), "").unwrap();
        assert_eq!(cache.find(&reference), Some(snapshot));
    }

    #[test]
    fn a_lock_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let held = cache.lock("o/n", "abc").unwrap();
        assert!(held.is_some() && cache.lock("o/n", "abc").unwrap().is_none());
        assert!(folder.path().join(".locks/models--o--n/abc.lock").is_file());
        drop(held);
        assert!(cache.lock("o/n", "abc").unwrap().is_some());
    }
}
