//! Replicas on real files and devices: where their books are, and who may write them.

use std::{
    fs::FileType,
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    DeviceManager, Disks, FileDisk, InPlace, Index, Problem, Replica, TargetError,
    inspect::open_book,
    loss::is_agreed,
    own::{
        Guard, check_not_dangling, is_link, lock_to_read, lock_volume, lock_volume_to_read,
        parent_of, resolved, sync_dir, take_lock,
    },
    restored::check_free,
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

/// As [`open`], for a device that `manager` keeps, with its books in the directory that
/// [`Options::state_dir`] names. With [`Options::create`] the device need not exist: the manager
/// makes it for the first offer that is accepted. It is open for writing only while it is
/// unlocked.
pub fn open_kept(
    path: &Path,
    options: &Options,
    manager: Box<dyn DeviceManager>,
) -> Result<Replica<FileDisk>, TargetError> {
    open_any(path, options, Some(manager))
}

/// Opens the replica at `path` to read it: as [`open`] does where that can be written, and
/// otherwise (a read-only file system, a full disk) for reading only. Nothing is written then, and
/// a sealed increment that is not in place is read through its journal.
pub fn open_to_read(path: &Path, options: &Options) -> Result<Replica<FileDisk>, TargetError> {
    let options = &Options { create: false, ..options.clone() };
    open(path, options).or_else(|error| look(path, options, false, error))
}

/// As [`open_to_read`], for a device that `manager` keeps.
pub fn open_kept_to_read(
    path: &Path,
    options: &Options,
    manager: Box<dyn DeviceManager>,
) -> Result<Replica<FileDisk>, TargetError> {
    let options = &Options { create: false, ..options.clone() };
    open_kept(path, options, manager).or_else(|error| look(path, options, true, error))
}

/// As [`open_to_read`], for whoever writes nothing at all: others may read it at the same time.
pub fn open_to_verify(
    path: &Path,
    options: &Options,
    manager: Option<Box<dyn DeviceManager>>,
) -> Result<Replica<FileDisk>, TargetError> {
    let options = &Options { create: false, ..options.clone() };
    let kept = manager.is_some();
    match open_any(path, options, manager) {
        Ok(replica) => replica.shared(),
        // Others have it: if they only read, they have it shared.
        Err(TargetError { problem: Problem::Busy { .. }, .. }) => open_looking(path, options, kept),
        Err(error) => look(path, options, kept, error),
    }
}

/// Opens for reading only what could not be opened otherwise, if it was for want of writing.
fn look(
    path: &Path,
    options: &Options,
    kept: bool,
    error: TargetError,
) -> Result<Replica<FileDisk>, TargetError> {
    if !error.problem.is_of_writing() {
        return Err(error);
    }
    let name = path.display();
    let replica = open_looking(path, options, kept)?;
    tracing::warn!(volume = %name, "the replica cannot be written ({error}): opening it read-only");
    Ok(replica)
}

fn open_looking(
    path: &Path,
    options: &Options,
    kept: bool,
) -> Result<Replica<FileDisk>, TargetError> {
    let name = path.display().to_string();
    let (disks, guard) =
        open_disks_to_read(path, options, kept).map_err(|problem| problem.of(&name))?;
    Ok(Replica::open_to_read(&name, disks, random(&name)?)?.guarded_by(guard))
}

fn random(name: &str) -> Result<[u8; 32], TargetError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Problem::Entropy(error.to_string()).of(name))?;
    Ok(seed)
}

fn open_any(
    path: &Path,
    options: &Options,
    manager: Option<Box<dyn DeviceManager>>,
) -> Result<Replica<FileDisk>, TargetError> {
    let name = path.display().to_string();
    let kept = manager.is_some();
    let seed = random(&name)?;
    let (disks, guard) = open_disks(path, options, kept).map_err(|problem| problem.of(&name))?;
    let replica = match manager {
        None => Replica::open(&name, disks, seed)?,
        Some(manager) => Replica::open_kept(&name, disks, manager, seed)?,
    };
    let mut replica = replica.guarded_by(guard);
    if let Some(percent) = options.loss_max
        && !is_agreed(&dir_of(path, options), &replica.state).map_err(|p| p.of(&name))?
    {
        replica.limit_loss(percent);
    }
    if let Some(index) = &options.index {
        replica.name_under(index.chunk_key());
        // Whatever the folder is that another session runs in.
        let path = if kept { Ok(path.to_owned()) } else { std::path::absolute(resolved(path)) };
        match path {
            Ok(path) => replica.list_in(index, path),
            Err(error) => {
                tracing::warn!(volume = name, %error, "cannot add the replica to the index")
            }
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
    let seed = random(&name)?;
    let (disk, guard) = open_alone(path).map_err(|problem| problem.of(&name))?;
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
    let mut guard = Guard::default();
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_not_dangling(path)?;
            let disk = FileDisk::create(path).map_err(at)?;
            guard.made(path);
            guard.hold(Some(lock_volume(path)?));
            sync_dir(parent_of(path))?;
            return Ok((disk, guard));
        }
        Err(error) => return Err(at(error)),
    };
    let kind = found.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Problem::NotAVolume);
    }
    check_free(path, &found)?;
    let disk = FileDisk::open_write(path).map_err(at)?;
    // The kernel itself keeps a block device to one writer.
    if kind.is_file() {
        guard.hold(Some(lock_volume(path)?));
    }
    Ok((disk, guard))
}

/// The books of a replica, by name.
pub(crate) const BOOKS: [&str; 5] = ["state", "journal", "ids", "overlay", "repair"];
pub(crate) const LOCK: &str = "lock";

fn open_disks(
    path: &Path,
    options: &Options,
    kept: bool,
) -> Result<(Disks<FileDisk>, Guard), Problem> {
    let named = path;
    // The name leads to a device with a manager whatever number it gets; a link in its place is the
    // storage's own.
    let path = &if kept { path.to_owned() } else { resolved(path) };
    let (kind, dir) = look_at(path, options, kept)?;
    match kind {
        Some(kind) if !kind.is_file() && !kind.is_block_device() => {
            return Err(Problem::NotAVolume);
        }
        None if !kept && is_link(path) => check_not_dangling(path)?,
        None if is_gone(&dir, kept)? => return Err(Problem::Gone { state_dir: dir }),
        None if !options.create => return Err(Problem::NotFound),
        // Nothing was ever begun by these books: it may be somebody else's all the same.
        Some(_) if !kept && options.create && !has_state(&dir) => {
            let found = path.metadata().map_err(|source| unopened(path, source))?;
            check_free(path, &found)?;
        }
        _ => {}
    }
    let mut guard = Guard::default();
    guard.make_dir(&dir)?;
    let lock = dir.join(LOCK);
    let lock = take_lock(&lock, guard.open_own(&lock)?)?;
    guard.hold(Some(lock));
    let [state, journal, ids, overlay, repair] = BOOKS.map(|name| {
        let path = dir.join(name);
        let file = guard.open_own(&path)?;
        FileDisk::new(file, &path).map_err(|source| Problem::Open { path, source })
    });
    let (state, journal, ids, overlay) = (state?, journal?, ids?, overlay?);
    let repair = repair?;
    sync_dir(&dir)?;
    let volume = match kind {
        _ if kept => FileDisk::open_kept(path),
        Some(_) => FileDisk::open_write(path),
        None => FileDisk::create(path).inspect(|_| guard.made(path)),
    };
    let volume = volume.map_err(|source| unopened(path, source))?.named(named);
    // The kernel itself keeps a block device to one writer.
    if kind.map_or(!kept, |kind| kind.is_file()) {
        guard.hold(Some(lock_volume(path)?));
    }
    if kind.is_none() && !kept {
        sync_dir(parent_of(path))?;
    }
    Ok((Disks { volume, state, journal, ids, overlay, repair }, guard))
}

/// As [`open_disks`], for reading only: nothing is made, and nothing can be written.
fn open_disks_to_read(
    path: &Path,
    options: &Options,
    kept: bool,
) -> Result<(Disks<FileDisk>, Guard), Problem> {
    let named = path;
    let path = &if kept { path.to_owned() } else { resolved(path) };
    let (kind, dir) = look_at(path, options, kept)?;
    match kind {
        Some(kind) if kind.is_file() || kind.is_block_device() => {}
        Some(_) => return Err(Problem::NotAVolume),
        None => {
            check_not_dangling(path)?;
            return Err(Problem::NotFound);
        }
    }
    let mut guard = Guard::default();
    guard.hold(lock_to_read(&dir.join(LOCK))?);
    if kind.is_some_and(|kind| kind.is_file()) {
        guard.hold(Some(lock_volume_to_read(path)?));
    }
    let book = |name: &str| {
        let path = dir.join(name);
        match FileDisk::open_read(&path) {
            // An older version has not made it, and nobody can now.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name != "state" => {
                Ok(FileDisk::absent(&path))
            }
            opened => opened.map_err(|source| Problem::Open { path, source }),
        }
    };
    let [state, journal, ids, overlay, repair] = BOOKS.map(book);
    let (state, journal, ids, overlay) = (state?, journal?, ids?, overlay?);
    let repair = repair?;
    let volume = if kept { FileDisk::open_kept(path) } else { FileDisk::open_read(path) };
    let volume = volume.map_err(|source| unopened(path, source))?.named(named);
    Ok((Disks { volume, state, journal, ids, overlay, repair }, guard))
}

fn unopened(path: &Path, source: io::Error) -> Problem {
    match source.kind() {
        io::ErrorKind::ResourceBusy => Problem::InUse,
        _ => Problem::Open { path: path.to_owned(), source },
    }
}

/// What stands at a path, and where the books of a replica there are.
fn look_at(
    path: &Path,
    options: &Options,
    kept: bool,
) -> Result<(Option<FileType>, PathBuf), Problem> {
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
    Ok((kind, dir))
}

/// Whether the books in `dir` say that something was begun.
pub(crate) fn has_state(dir: &Path) -> bool {
    dir.join("state").metadata().is_ok_and(|state| state.len() > 0)
}

/// Whether the books in `dir` are of a volume that must have been there.
pub(crate) fn is_gone(dir: &Path, kept: bool) -> Result<bool, Problem> {
    let begun = has_state(dir);
    if !(begun && kept) {
        return Ok(begun);
    }
    // A manager makes its device only after the state says that something was begun.
    let Some(state) = open_book(dir, "state")? else { return Ok(false) };
    Ok(!matches!(
        Slots::peek(state)?,
        None | Some(
            State { status: Status::Direct { watermark: 0, .. }, .. }
                | State { status: Status::Adopted, size: 0, .. }
        )
    ))
}
