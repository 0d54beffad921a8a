//! Replicas that are only read: how they are recognised, and how they are held meanwhile.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use driftline_chunking::ChunkKey;
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

use crate::{
    FileDisk, Problem, TargetError, Verified,
    inspect::open_book,
    journal::Journal,
    open_path::{LOCK, state_dir_of},
    own::{Guard, parent_of, resolved},
    state::{Slots, Status},
    through::Through,
};

/// A replica for reading, or what has to be done before.
#[derive(Debug)]
pub enum Reading {
    /// It is held, and can be read.
    Ready(Box<Verified<FileDisk>>),
    /// An increment was being applied when its session was stopped. Whoever opens the replica for
    /// writing completes it.
    Unfinished,
}

/// Where the books of the replica are that `path` leads to; `None` if no books say that it is one.
///
/// The path may be a symbolic link to the replica, or a hard link in its folder. Books of a device
/// are not found by this, as they are not beside it.
pub fn books_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let resolved = resolved(path);
    for path in [resolved.as_path(), path] {
        let books = state_dir_of(path);
        if has_books(&books)? {
            return Ok(Some(books));
        }
    }
    let found = match fs::metadata(&resolved) {
        Ok(found) if found.is_file() && found.nlink() > 1 => found,
        _ => return Ok(None),
    };
    // Who may not look into the folder of a file that has several names finds no other one.
    let Ok(entries) = fs::read_dir(parent_of(&resolved)) else { return Ok(None) };
    for entry in entries {
        let other = entry?.path();
        let is_same = |other: &Path| {
            fs::symlink_metadata(other)
                .is_ok_and(|o| (o.dev(), o.ino()) == (found.dev(), found.ino()))
        };
        let books = state_dir_of(&other);
        if is_same(&other) && has_books(&books)? {
            return Ok(Some(books));
        }
    }
    Ok(None)
}

/// Whether anything was ever begun by these books. A state that is missing beside a list of chunk
/// ids was lost, which is not the same as no replica.
pub(crate) fn has_books(dir: &Path) -> io::Result<bool> {
    for name in ["state", "ids", "journal"] {
        match fs::metadata(dir.join(name)) {
            Ok(book) if book.len() > 0 => return Ok(true),
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A name that is too long for its books has none.
fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

/// Opens the replica at `path` for reading, and keeps writers out for as long as it is open; other
/// readers are let in. Nothing is changed, so this works on a read-only file system as well.
///
/// # Errors
///
/// Books that are damaged, a replica that holds no complete generation or has another size, and a
/// process that writes it.
pub fn open_read(path: &Path, state_dir: &Path) -> Result<Reading, TargetError> {
    let name = path.display().to_string();
    open_held(&name, &resolved(path), state_dir, false).map_err(|problem| problem.of(&name))
}

/// As [`open_read`], for storage that cannot be written: an increment that was being applied is read
/// through its journal.
///
/// # Errors
///
/// As [`open_read`].
pub fn open_read_through(path: &Path, dir: &Path) -> Result<Verified<FileDisk>, TargetError> {
    let name = path.display().to_string();
    let held = open_held(&name, &resolved(path), dir, true);
    match held.map_err(|problem| problem.of(&name))? {
        Reading::Ready(verified) => Ok(*verified),
        Reading::Unfinished => Err(Problem::ReadOnly.of(&name)),
    }
}

fn open_held(name: &str, path: &Path, dir: &Path, through: bool) -> Result<Reading, Problem> {
    let volume = FileDisk::open_read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Problem::Gone { state_dir: dir.to_owned() },
        io::ErrorKind::Unsupported => Problem::NotAVolume,
        _ => Problem::Open { path: path.to_owned(), source },
    })?;
    let mut guard = Guard::holding(hold(&dir.join(LOCK))?.into_iter().collect());
    if path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        let file = File::open(path);
        let file = file.map_err(|source| Problem::Open { path: path.to_owned(), source })?;
        guard.hold(held(path, file)?);
    }
    let state = open_book(dir, "state")?.map(Slots::peek).transpose()?.flatten();
    let mut state = state.ok_or(Problem::StateDamaged)?;
    let mut over = None;
    if let Some(journal) = open_book(dir, "journal")? {
        let journal = Arc::new(Journal::new(journal));
        if let Some(seal) = journal.seal()?.filter(|seal| seal.header.starts_from(&state)) {
            if !through {
                return Ok(Reading::Unfinished);
            }
            tracing::warn!(
                volume = name,
                "an increment was being applied, and the storage cannot be written: reading \
                 through the journal"
            );
            let after = seal.state_after(&state);
            let key = ChunkKey::new(&state.chunk_key);
            over = Some(Arc::new(Through::open(journal, key, seal)?));
            state = after;
        }
    }
    if !matches!(state.status, Status::Complete { .. }) {
        return Err(Problem::Incomplete);
    }
    let ids = open_book(dir, "ids")?.ok_or(Problem::ListDamaged)?;
    Ok(Reading::Ready(Box::new(Verified::new(name, state, (volume, ids), over, guard)?)))
}

/// Shares the lock that a writer has alone. `None`: there is no such file and none can be made, so
/// nobody can write either.
fn hold(path: &Path) -> Result<Option<File>, Problem> {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    let at = |source| Problem::Open { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
            return match File::open(path) {
                Ok(file) => held(path, file).map(Some),
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(at(error)),
            };
        }
        Err(error) => return Err(at(error)),
    };
    file = held(path, file)?;
    // Any of several readers stands for all of them.
    let told = file.set_len(0).and_then(|()| file.rewind());
    if let Err(error) = told.and_then(|()| writeln!(file, "{}", std::process::id())) {
        tracing::debug!(path = %path.display(), %error, "the lock does not tell who has it");
    }
    Ok(Some(file))
}

fn held(path: &Path, mut file: File) -> Result<File, Problem> {
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            if path.ends_with(LOCK) {
                let _ = Read::by_ref(&mut file).take(16).read_to_string(&mut pid);
            }
            Err(Problem::Busy { pid: pid.trim().parse().ok() })
        }
        Err(error) => Err(Problem::Open { path: path.to_owned(), source: error.into() }),
    }
}
