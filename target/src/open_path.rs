//! Replicas on real files and devices: where their books are, and who may write them.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use driftline_extent::TargetState;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    Disk, Disks, FileDisk, InPlace, Index, Keeper, Problem, Replica, TargetError,
    journal::Journal,
    journaled::{Unsealed, find_unsealed},
    loss::is_agreed,
    repair::Repairs,
    state::{Slots, State, Status},
};

/// How a replica is opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Whether to make the file if nothing stands at the path.
    pub create: bool,
    /// Where the books are. `None` means beside a regular file, see [`state_dir_of`]; a block
    /// device needs a directory named.
    pub state_dir: Option<PathBuf>,
    /// Whether an offer's consent to a copy over what stands here is not enough.
    pub forbid_overwrite: bool,
    /// How much of its data may go with one increment, in percent; `None` if all may. See
    /// [`Replica::limit_loss`].
    pub loss_max: Option<u8>,
    /// Where chunks are looked for that other replicas have. A replica that is made names its
    /// chunks under the index's key; one that has another key is not in it.
    pub index: Option<Arc<Index>>,
}

/// Where the books of a replica in a regular file are: `<path>.driftline`.
pub fn state_dir_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".driftline");
    name.into()
}

/// Where the books of the replica at `path` are.
pub(crate) fn dir_of(path: &Path, options: &Options) -> PathBuf {
    options.state_dir.clone().unwrap_or_else(|| state_dir_of(&resolved(path)))
}

/// Opens the replica at `path` for this process alone, and recovers it.
///
/// A file that is no replica can be opened as well: it is left as it is until an offer with
/// consent to overwrite it is accepted.
pub fn open(path: &Path, options: &Options) -> Result<Replica<FileDisk>, TargetError> {
    open_any(path, options, None)
}

/// As [`open`], for a device that `keeper` keeps, with its books in the directory that
/// [`Options::state_dir`] names. With [`Options::create`] the device need not exist: the keeper
/// makes it for the first offer that is accepted. It is open for writing only while it is
/// unlocked.
pub fn open_kept(
    path: &Path,
    options: &Options,
    keeper: Box<dyn Keeper>,
) -> Result<Replica<FileDisk>, TargetError> {
    open_any(path, options, Some(keeper))
}

fn open_any(
    path: &Path,
    options: &Options,
    keeper: Option<Box<dyn Keeper>>,
) -> Result<Replica<FileDisk>, TargetError> {
    let name = path.display().to_string();
    let problem = |problem: Problem| problem.of(&name);
    let mut seed = [0; 32];
    let kept = keeper.is_some();
    getrandom::fill(&mut seed).map_err(|error| problem(Problem::Entropy(error.to_string())))?;
    let (replica, guard) = match keeper {
        None => {
            let (disks, guard) = open_disks(&resolved(path), options, false).map_err(problem)?;
            (Replica::open(&name, disks, seed)?, guard)
        }
        // The name leads to the device whatever number it gets; a link in its place is the
        // storage's own.
        Some(keeper) => {
            let (disks, guard) = open_disks(path, options, true).map_err(problem)?;
            (Replica::open_kept(&name, disks, keeper, seed)?, guard)
        }
    };
    let mut replica = replica.guarded_by(guard);
    if let Some(percent) = options.loss_max
        && !is_agreed(&dir_of(path, options), &replica.state).map_err(problem)?
    {
        replica.limit_loss(percent);
    }
    if let Some(index) = &options.index {
        replica.name_under(index.chunk_key());
        // Whatever the folder is that another session runs in.
        let path = if kept { Ok(path.to_owned()) } else { std::path::absolute(resolved(path)) };
        match path {
            Ok(path) => replica.list_in(index, path),
            Err(error) => tracing::warn!(volume = name, %error, "it is not in the index"),
        }
    }
    Ok(if options.forbid_overwrite { replica.forbid_overwrite() } else { replica })
}

/// Opens what stands at `path` for this process alone, to restore a volume there, or makes a file
/// where nothing does.
///
/// # Errors
///
/// Besides what cannot be opened: a replica, a device that is in use, and, unless `overwrite` is
/// agreed to, anything but zeros.
pub fn open_in_place(path: &Path, overwrite: bool) -> Result<InPlace<FileDisk>, TargetError> {
    let name = path.display().to_string();
    let problem = |problem: Problem| problem.of(&name);
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| problem(Problem::Entropy(error.to_string())))?;
    let (disk, guard) = open_alone(path).map_err(problem)?;
    let place = InPlace::new(&name, disk, seed).guarded_by(guard);
    if !overwrite {
        place.check_empty()?;
    }
    Ok(place)
}

fn open_alone(path: &Path) -> Result<(FileDisk, Guard), Problem> {
    let at = |source: io::Error| match source.kind() {
        io::ErrorKind::ResourceBusy => Problem::InUse,
        _ => Problem::Open { path: path.to_owned(), source },
    };
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let disk = FileDisk::create(path, true).map_err(at)?;
            let guard = Guard { _locks: vec![lock_volume(path)?], made: vec![path.to_owned()] };
            sync_dir(parent_of(path))?;
            return Ok((disk, guard));
        }
        Err(error) => return Err(at(error)),
    };
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Problem::NotAVolume);
    }
    let state_dir = state_dir_of(&resolved(path));
    if state_dir.join("state").metadata().is_ok_and(|metadata| metadata.len() > 0) {
        return Err(Problem::IsReplica { state_dir });
    }
    let disk = FileDisk::open_write(path).map_err(at)?;
    // The kernel itself keeps a block device to one writer.
    let locks = if kind.is_file() { vec![lock_volume(path)?] } else { Vec::new() };
    Ok((disk, Guard { _locks: locks, made: Vec::new() }))
}

/// Keeps other processes out, and takes away what was made for nothing.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Locked: the file named `lock`, and a regular file that is the volume. The second one
    /// keeps apart those who come by another name of the same file.
    _locks: Vec<File>,
    /// What did not exist before, innermost first.
    made: Vec<PathBuf>,
}

impl Guard {
    /// Keeps these locks.
    pub(crate) const fn holding(locks: Vec<File>) -> Self {
        Self { _locks: locks, made: Vec::new() }
    }

    /// Keeps one lock more.
    pub(crate) fn hold(&mut self, lock: File) {
        self._locks.push(lock);
    }

    /// What was made is put to use, and stays.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for path in &self.made {
            // If it cannot be removed, an empty file is left behind and does no harm.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// The books of a replica, by name.
const BOOKS: [&str; 5] = ["state", "journal", "ids", "overlay", "repair"];
pub(crate) const LOCK: &str = "lock";

fn open_disks(
    path: &Path,
    options: &Options,
    kept: bool,
) -> Result<(Disks<FileDisk>, Guard), Problem> {
    let kind = match path.metadata() {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(Problem::Open { path: path.to_owned(), source }),
    };
    let dir = match (&options.state_dir, kind) {
        (Some(dir), _) => dir.clone(),
        (None, kind) if kept || kind.is_some_and(|kind| kind.is_block_device()) => {
            return Err(Problem::NoStateDir);
        }
        (None, _) => state_dir_of(path),
    };
    match kind {
        Some(kind) if !kind.is_file() && !kind.is_block_device() => {
            return Err(Problem::NotAVolume);
        }
        None if is_gone(&dir, kept)? => return Err(Problem::Gone { state_dir: dir }),
        None if !options.create => return Err(Problem::NotFound),
        _ => {}
    }
    let mut guard = Guard { _locks: Vec::new(), made: Vec::new() };
    if make_dir(&dir)? {
        guard.made.extend(BOOKS.iter().chain([&LOCK]).map(|name| dir.join(name)));
        guard.made.push(dir.clone());
    }
    guard._locks.push(lock(&dir.join(LOCK))?);
    let [state, journal, ids, overlay, repair] = BOOKS.map(|name| {
        let path = dir.join(name);
        FileDisk::create(&path, false).map_err(|source| Problem::Open { path, source })
    });
    let (state, journal, ids, overlay) = (state?, journal?, ids?, overlay?);
    let repair = repair?;
    sync_dir(&dir)?;
    let volume = match kind {
        _ if kept => FileDisk::open_kept(path),
        Some(_) => FileDisk::open_write(path),
        None => {
            guard.made.insert(0, path.to_owned());
            FileDisk::create(path, true)
        }
    };
    let volume = volume.map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => Problem::InUse,
        _ => Problem::Open { path: path.to_owned(), source },
    })?;
    // The kernel itself keeps a block device to one writer.
    if kind.map_or(!kept, |kind| kind.is_file()) {
        guard._locks.push(lock_volume(path)?);
    }
    if kind.is_none() && !kept {
        sync_dir(parent_of(path))?;
    }
    Ok((Disks { volume, state, journal, ids, overlay, repair }, guard))
}

/// The file that a path leads to, so that its books are found by every name of it.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether the books in `dir` are of a volume that must have been there.
fn is_gone(dir: &Path, kept: bool) -> Result<bool, Problem> {
    let begun = dir.join("state").metadata().is_ok_and(|metadata| metadata.len() > 0);
    if !(begun && kept) {
        return Ok(begun);
    }
    // A keeper makes its device only after the state says that something was begun.
    let Some(state) = open_book(dir, "state")? else { return Ok(false) };
    Ok(!matches!(
        Slots::peek(state)?,
        None | Some(
            State { status: Status::Direct { watermark: 0, .. }, .. }
                | State { status: Status::Adopted, size: 0, .. }
        )
    ))
}

/// Whether it had to be made.
fn make_dir(dir: &Path) -> Result<bool, Problem> {
    let at = |source| Problem::Open { path: dir.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => sync_dir(parent_of(dir)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(error) => Err(at(error)),
    }
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
fn lock(path: &Path) -> Result<File, Problem> {
    let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(at)?;
    if !try_lock(&file).map_err(at)? {
        let mut pid = String::new();
        let _ = file.take(16).read_to_string(&mut pid);
        return Err(Problem::Busy { pid: pid.trim().parse().ok() });
    }
    file.set_len(0).map_err(at)?;
    file.rewind().map_err(at)?;
    writeln!(file, "{}", std::process::id()).map_err(at)?;
    Ok(file)
}

fn lock_volume(path: &Path) -> Result<File, Problem> {
    let at = |source: io::Error| Problem::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(at)?;
    if try_lock(&file).map_err(at)? { Ok(file) } else { Err(Problem::Busy { pid: None }) }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What [`inspect`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// What the replica held when it was looked at.
    pub state: TargetState,
    /// When a scrub last found no damage, in milliseconds since 1970.
    pub scrubbed_ms: Option<u64>,
    /// The process that last opened it; it may have ended since.
    pub opened_by: Option<u32>,
    /// Whether a process has it open for writing now.
    pub is_written: bool,
    /// Whether its file or device is there, as it should be.
    pub volume: Found,
}

/// What [`inspect`] found of a replica's file or device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is there, or need not be there yet.
    Fitting,
    /// It is not there.
    Nothing,
    /// Something else is there than a file or a block device.
    Other,
    /// It has this many bytes, which are not those of its generation.
    Resized(u64),
}

/// Looks at the replica at `path` without locking, recovering or changing it; `None` if
/// nothing was ever begun there.
pub fn inspect(path: &Path, state_dir: Option<&Path>) -> Result<Option<Inspection>, TargetError> {
    let dir = state_dir.map_or_else(|| state_dir_of(&resolved(path)), Path::to_owned);
    inspect_dir(path, &dir).map_err(|problem| problem.of(&path.display().to_string()))
}

fn inspect_dir(path: &Path, dir: &Path) -> Result<Option<Inspection>, Problem> {
    let Some(state) = open_book(dir, "state")? else { return Ok(None) };
    let Some(state) = Slots::peek(state)? else { return Ok(None) };
    let unsealed = match open_book(dir, "journal")? {
        Some(journal) => find_unsealed(&Journal::new(journal), &state)?,
        None => None,
    };
    let damaged = match open_book(dir, "repair")? {
        Some(repair) => Repairs::peek(repair, &state)?,
        None => false,
    };
    let opened_by = fs::read_to_string(dir.join("lock")).ok();
    let opened_by = opened_by.and_then(|pid| pid.trim().parse().ok());
    Ok(Some(Inspection {
        state: TargetState { damaged, ..state.describe(unsealed.as_ref().map(Unsealed::resume)) },
        scrubbed_ms: state.scrubbed_ms,
        opened_by,
        is_written: is_written(dir),
        volume: find_volume(path, dir, &state)?,
    }))
}

/// Whether somebody has the lock that a writer has alone.
fn is_written(dir: &Path) -> bool {
    let lock = File::open(dir.join(LOCK));
    lock.is_ok_and(|lock| {
        flock(&lock, FlockOperation::NonBlockingLockShared).is_err_and(|e| e == Errno::WOULDBLOCK)
    })
}

fn find_volume(path: &Path, dir: &Path, state: &State) -> Result<Found, Problem> {
    let at = |source| Problem::Open { path: path.to_owned(), source };
    let disk = match FileDisk::open_read(path) {
        Ok(disk) => disk,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let gone = is_gone(dir, true)?;
            return Ok(if gone { Found::Nothing } else { Found::Fitting });
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Found::Other),
        Err(source) => return Err(at(source)),
    };
    let len = Disk::len(&disk).map_err(at)?;
    let fits = match state.status {
        Status::Complete { .. } if disk.is_fixed() => len >= state.size,
        Status::Complete { .. } => len == state.size,
        Status::Direct { .. } | Status::Adopted => true,
    };
    Ok(if fits { Found::Fitting } else { Found::Resized(len) })
}

/// Opens one of the books for reading; `None` if it is not there.
pub(crate) fn open_book(dir: &Path, name: &str) -> Result<Option<FileDisk>, Problem> {
    let path = dir.join(name);
    match FileDisk::open_read(&path) {
        Ok(book) => Ok(Some(book)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Problem::Open { path, source }),
    }
}
