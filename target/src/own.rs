//! Opening the program's own files, and keeping other processes away from them.
//!
//! A folder may belong to somebody else than the process. So a link is never followed where a file
//! of the program's own is expected, and a file that was put there by a third is refused.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, fchmod, flock},
    io::Errno,
    process::geteuid,
};

use crate::Problem;

/// Which file or folder it is, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Keeps other processes out, and takes away what was made for nothing.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Locked: the file named `lock`, and a regular file that is the volume. The second one
    /// keeps apart those who come by another name of the same file.
    locks: Vec<File>,
    /// What this process made, in that order.
    made: Vec<(PathBuf, Identity)>,
}

impl Guard {
    /// What was made is put to use, and stays.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }

    /// Keeps these locks.
    pub(crate) const fn holding(locks: Vec<File>) -> Self {
        Self { locks, made: Vec::new() }
    }

    /// Keeps one lock more, if there is one.
    pub(crate) fn hold(&mut self, lock: impl Into<Option<File>>) {
        self.locks.extend(lock.into());
    }

    /// Lets others in that read as well. Who waits to write may come first: then it is busy.
    pub(crate) fn share(&self) -> Result<(), Problem> {
        for lock in &self.locks {
            match flock(lock, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(Problem::Busy { pid: None }),
                // A file system without locks had none before either.
                Err(error) => tracing::debug!(%error, "a lock cannot be shared"),
            }
        }
        Ok(())
    }

    /// Takes `path` away at the end, which this process has just made.
    pub(crate) fn made(&mut self, path: &Path) {
        if let Ok(metadata) = fs::symlink_metadata(path) {
            self.made.push((path.to_owned(), Identity::of(&metadata)));
        }
    }

    /// Opens one of the program's own files for reading and writing, or makes it, for its owner
    /// only.
    pub(crate) fn open_own(&mut self, path: &Path) -> Result<File, Problem> {
        let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        match options.open(path) {
            Ok(file) => {
                check_own(path, &file)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if is_link(path) => {
                tracing::debug!(path = %path.display(), %error, "a link stands there");
                return Err(Problem::Linked { path: path.to_owned() });
            }
            Err(error) => return Err(at(error)),
        }
        let file = options.create_new(true).mode(0o600).open(path).map_err(at)?;
        self.made(path);
        Ok(file)
    }

    /// Makes a folder, for its owner only, unless there is one.
    pub(crate) fn make_dir(&mut self, dir: &Path) -> Result<(), Problem> {
        let at = |source| Problem::Open { path: dir.to_owned(), source };
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => {
                self.made(dir);
                sync_dir(parent_of(dir))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {
                check_own_dir(dir)
            }
            Err(error) => {
                check_not_dangling(dir)?;
                Err(at(error))
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for (path, made) in self.made.iter().rev() {
            // What stands there may be somebody else's by now.
            let Ok(found) = fs::symlink_metadata(path) else { continue };
            if Identity::of(&found) != *made {
                continue;
            }
            // If it cannot be removed, an empty file is left behind and does no harm.
            let _ = if found.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// That a file of the program's own belongs to this user, or to the owner of its folder, and was
/// not put there under a second name. Others must not read it.
pub(crate) fn check_own(path: &Path, file: &File) -> Result<(), Problem> {
    let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
    let found = file.metadata().map_err(at)?;
    let folder = fs::metadata(parent_of(path)).map_err(at)?;
    let ours = found.uid() == geteuid().as_raw() && found.nlink() == 1;
    if !found.is_file() || !(ours || found.uid() == folder.uid()) {
        return Err(Problem::NotOurs { path: path.to_owned(), owner: found.uid() });
    }
    if found.mode() & 0o077 != 0
        && let Err(error) = fchmod(file, Mode::RUSR | Mode::WUSR)
    {
        tracing::warn!(path = %path.display(), %error, "others may read this file");
    }
    Ok(())
}

/// That a link in the place of a folder of the program's own was put there by this user or by root:
/// anybody else could have files made wherever the link leads.
fn check_own_dir(dir: &Path) -> Result<(), Problem> {
    let found = fs::symlink_metadata(dir);
    let found = found.map_err(|source| Problem::Open { path: dir.to_owned(), source })?;
    if found.is_symlink() && ![0, geteuid().as_raw()].contains(&found.uid()) {
        return Err(Problem::NotOurs { path: dir.to_owned(), owner: found.uid() });
    }
    Ok(())
}

pub(crate) fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// That `path` is no link to what is not there: nothing is made through one.
pub(crate) fn check_not_dangling(path: &Path) -> Result<(), Problem> {
    if !is_link(path) || path.exists() {
        return Ok(());
    }
    let to = fs::read_link(path).unwrap_or_default();
    Err(Problem::Dangling { link: path.to_owned(), to })
}

/// The file that a path leads to, so that its books are found by every name of it.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Problem> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Problem::Open { path: dir.to_owned(), source })
}

/// Takes the lock that one process at a time has, and writes this process's id into it.
pub(crate) fn take_lock(path: &Path, file: File) -> Result<File, Problem> {
    let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
    if !try_lock(&file).map_err(at)? {
        return Err(busy(file));
    }
    // It is only told to whoever waits: a full disk must not keep the replica closed.
    let written = file.set_len(0).and_then(|()| {
        let mut pid = Vec::new();
        writeln!(pid, "{}", std::process::id())?;
        file.write_all_at(&pid, 0)
    });
    if let Err(error) = written {
        tracing::debug!(path = %path.display(), %error, "the lock does not tell who has it");
    }
    Ok(file)
}

/// Shares the lock with others that read, as far as that is possible without writing: where a file
/// system is read-only, nobody writes it. `None` if there is none.
pub(crate) fn lock_to_read(path: &Path) -> Result<Option<File>, Problem> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let Ok(file) = options.open(path) else { return Ok(None) };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Err(busy(file)),
        Ok(()) | Err(_) => Ok(Some(file)),
    }
}

fn busy(file: File) -> Problem {
    let mut pid = String::new();
    let _ = file.take(16).read_to_string(&mut pid);
    Problem::Busy { pid: pid.trim().parse().ok() }
}

pub(crate) fn lock_volume(path: &Path) -> Result<File, Problem> {
    let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(at)?;
    if try_lock(&file).map_err(at)? { Ok(file) } else { Err(Problem::Busy { pid: None }) }
}

/// The same, shared with others that read.
pub(crate) fn lock_volume_to_read(path: &Path) -> Result<File, Problem> {
    let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(at)?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Problem::Busy { pid: None }),
        Err(error) => Err(at(error.into())),
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
