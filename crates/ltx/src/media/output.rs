//! Whole or not at all: an output is written under a temporary name beside its place and renamed when it is complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

use super::Error;

/// A file on its way to `path`. Dropped before [`finish`](Self::finish), it leaves nothing behind.
pub struct Output {
    path: PathBuf,
    file: NamedTempFile,
}

impl Output {
    /// Fails if a file cannot be made in the folder of `path`, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Err(Error::create(path, io::ErrorKind::IsADirectory.into()));
        }
        let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        let file = builder(&extension).tempfile_in(folder(path)?).map_err(|e| Error::create(path, e))?;
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
        let mut builder = Builder::new();
        builder.prefix(".ltx-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder.tempdir_in(folder(path)?).map_err(|e| Error::create(path, e))?;
        Ok(Self { path: path.to_owned(), folder })
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

/// Temporary files, as readable as any other file that the user makes.
fn builder(suffix: &str) -> Builder<'_, '_> {
    let mut builder = Builder::new();
    builder.prefix(".ltx-").suffix(suffix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}
