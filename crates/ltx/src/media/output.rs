//! Whole or not at all: an output is written under a temporary name beside its place and renamed when it is complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile, TempDir};

use super::Error;

/// How the name of a file or folder begins that is not complete yet. Whoever writes it holds it locked.
const UNFINISHED: &str = ".ltx-part-";
/// No unfinished file is without its lock for so long.
const UNLOCKED: Duration = Duration::from_secs(60);

/// A file on its way to `path`. Dropped before [`finish`](Self::finish), it leaves nothing behind.
pub struct Output {
    path: PathBuf,
    file: NamedTempFile,
}

impl Output {
    /// Fails if a file cannot be made in the folder of `path`, or `path` is a folder or a device. What runs that were
    /// killed left in that folder is removed.
    pub fn create(path: &Path) -> Result<Self, Error> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(Error::create(path, io::ErrorKind::IsADirectory.into()));
            }
            // To put a file in its place would take the device or pipe away from everybody.
            Ok(found) if !found.is_file() => return Err(Error::Device { path: path.to_owned() }),
            _ => {}
        }
        let folder = folder(path)?;
        sweep(folder);
        let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        let file = builder(&extension).tempfile_in(folder).map_err(|e| Error::create(path, e))?;
        // Where there are no locks, nothing is swept either.
        let _ = file.as_file().try_lock();
        Ok(Self { path: path.to_owned(), file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn temporary(&self) -> &Path {
        self.file.path()
    }

    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// What went wrong while writing, in terms of the place the user named.
    pub fn error(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }

    /// Puts the complete file in its place, over an older one.
    pub fn finish(mut self) -> Result<(), Error> {
        self.file.flush().and_then(|()| self.file.as_file().sync_all()).map_err(|e| self.error(e))?;
        let path = self.path;
        self.file.persist(&path).map(drop).map_err(|e| Error::Write { path, source: e.error })
    }
}

/// A folder on its way to `path`.
pub struct OutputFolder {
    path: PathBuf,
    folder: TempDir,
    _lock: Option<File>,
}

impl OutputFolder {
    /// Fails if `path` holds anything already, or a folder cannot be made beside it.
    pub fn create(path: &Path) -> Result<Self, Error> {
        match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(Error::NotEmpty { path: path.to_owned() });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::create(path, e)),
        }
        let parent = folder(path)?;
        sweep(parent);
        let mut builder = Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder.tempdir_in(parent).map_err(|e| Error::create(path, e))?;
        let lock = File::open(folder.path()).ok().filter(|lock| lock.try_lock().is_ok());
        Ok(Self { path: path.to_owned(), folder, _lock: lock })
    }

    /// Where `name` is written now.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn finish(self) -> Result<(), Error> {
        let error = |source| Error::Write { path: self.path.clone(), source };
        if self.path.is_dir() {
            fs::remove_dir(&self.path).map_err(error)?;
        }
        fs::rename(self.folder.path(), &self.path).map_err(error)?;
        // Nothing is left under the temporary name to remove.
        let _ = self.folder.keep();
        Ok(())
    }
}

/// A nameless file in the folder of `path`, gone when it is closed.
pub fn scratch(path: &Path) -> Result<File, Error> {
    tempfile::tempfile_in(folder(path)?).map_err(|e| Error::create(path, e))
}

/// The folder that `path` is to be in, which must be there.
pub fn folder(path: &Path) -> Result<&Path, Error> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.is_dir().then_some(folder).ok_or_else(|| Error::NoFolder { path: folder.to_owned() })
}

/// Whether a file of that name is one on its way to its place, or was when its run was killed.
pub fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// Removes what runs left that were killed: nobody holds it locked any more.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|e| is_unfinished(&e.file_name())) {
        let (path, Ok(facts)) = (entry.path(), entry.metadata()) else { continue };
        let age = facts.modified().ok().and_then(|modified| modified.elapsed().ok());
        if !(facts.is_file() || facts.is_dir()) || age.is_none_or(|age| age < UNLOCKED) {
            continue;
        }
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            // What cannot be removed does no harm.
            let _ = if facts.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Temporary files, as readable as any other file that the user makes.
fn builder(suffix: &str) -> Builder<'_, '_> {
    let mut builder = Builder::new();
    builder.prefix(UNFINISHED).suffix(suffix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name);
        let old = SystemTime::now() - 2 * UNLOCKED;
        let (left, left_folder, other) = (name(".ltx-part-a.mp4"), name(".ltx-part-b"), name(".ltx-theirs"));
        fs::create_dir(&left_folder).unwrap();
        for file in [&left, &left_folder.join("frame_00001.png"), &other] {
            fs::write(file, "half").unwrap();
        }
        let running = Output::create(&name("running.mp4")).unwrap();
        let running_folder = OutputFolder::create(&name("running")).unwrap();
        for path in [&left, &left_folder, &other, running.temporary(), running_folder.folder.path()] {
            File::open(path).unwrap().set_modified(old).unwrap();
        }
        let fresh = name(".ltx-part-c.mp4");
        fs::write(&fresh, "not locked yet").unwrap();
        drop(Output::create(&name("next.mp4")).unwrap());
        assert!(!left.exists() && !left_folder.exists() && other.exists() && fresh.exists());
        running.finish().unwrap();
        running_folder.finish().unwrap();
        assert!(name("running.mp4").is_file() && name("running").is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_pipes_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("clip.mp4");
        let _held = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(Output::create(&socket), Err(Error::Device { .. })));
        assert!(Output::create(&socket).err().unwrap().remedy().is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
