//! What a path leads to, for reading it: a replica is read by its books, however it was named.
//!
//! Everything that reads bytes which may be a replica's opens them here: sources, restores, maps and
//! comparisons.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use driftline_extent::{Explained, Reason, TargetState, Volume};
use driftline_target::{FileDisk, Verified, books_of};
use driftline_zfs::{DatasetName, device_of};

use crate::{
    files::replace,
    target::{AnyTargetError, TargetPlace, TargetTerms},
    zvol,
};

/// Below the folder of what is remembered: the replicas that have their books elsewhere.
const REPLICAS: &str = "replicas";

/// Folders below that of the books of zvols that are gone into.
const DEPTH_MAX: usize = 32;

/// A volume that is open for reading.
pub(crate) struct Content {
    pub(crate) disk: Arc<dyn Volume + Send + Sync>,
    /// What the replica holds, if it is one: each chunk that is read is compared with that.
    pub(crate) replica: Option<TargetState>,
}

/// Why something cannot be opened for reading.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error("cannot open {name}")]
    Io {
        name: String,
        #[source]
        error: io::Error,
    },
    #[error(transparent)]
    Replica(#[from] AnyTargetError),
    /// A loop device shows a replica without its books.
    #[error("{device} is a loop device over {file}, which is a replica: name file:{file} instead")]
    Loop { device: String, file: String },
}

impl Explained for ContentError {
    fn reason(&self) -> Reason {
        match self {
            Self::Io { .. } => Reason::Failed,
            Self::Replica(error) => error.reason(),
            Self::Loop { .. } => Reason::Unsupported,
        }
    }
}

/// Opens what `path` leads to. `remembered` is the folder of what is remembered.
pub(crate) fn open(path: &Path, remembered: &Path) -> Result<Content, ContentError> {
    let name = path.display().to_string();
    let io = |error| ContentError::Io { name: name.clone(), error };
    if let Some((place, state_dir)) = replica_at(path, remembered)? {
        let terms = TargetTerms { state_dir: Some(state_dir), ..TargetTerms::default() };
        return Ok(of_replica(place.open_verified(&terms)?));
    }
    let disk = Arc::new(FileDisk::open_read(path).map_err(io)?);
    Ok(Content { disk, replica: None })
}

/// A replica that is open.
pub(crate) fn of_replica(verified: Verified<FileDisk>) -> Content {
    let state = verified.state();
    Content { disk: Arc::new(verified), replica: Some(state) }
}

/// Holds the replica on a volume of ZFS, if there is one: a snapshot of it is taken only while
/// nothing is applied to it, and only of a whole one.
pub(crate) fn hold_zvol(
    name: &DatasetName,
    remembered: &Path,
) -> Result<Option<Verified<FileDisk>>, ContentError> {
    let books = Remembered::all(remembered).into_iter().find(|one| one.volume == device_of(name));
    let books = books.map_or_else(|| zvol::state_dir_of(name), |one| one.books);
    if fs::metadata(books.join("state")).is_ok_and(|state| state.len() > 0) {
        let terms = TargetTerms { state_dir: Some(books), ..TargetTerms::default() };
        let place = TargetPlace::Zvol(name.clone());
        let verified = place.open_verified(&terms)?;
        // ZFS proves what it stores, and not that nobody else has written it.
        if place.is_written()? {
            verified.check_all().map_err(AnyTargetError::from)?;
        }
        return Ok(Some(verified));
    }
    Ok(None)
}

/// The replica that `path` leads to, and where its books are.
pub(crate) fn replica_at(
    path: &Path,
    remembered: &Path,
) -> Result<Option<(TargetPlace, PathBuf)>, ContentError> {
    let name = path.display().to_string();
    let io = |error| ContentError::Io { name: name.clone(), error };
    if let Some(books) = books_of(path).map_err(io)? {
        return Ok(Some((TargetPlace::File(path.to_owned()), books)));
    }
    let Some(itself) = Itself::of(path) else { return Ok(None) };
    let is_it = |other: &Path| Itself::of(other) == Some(itself);
    if let Some(one) = Remembered::all(remembered).into_iter().find(|one| is_it(&one.volume)) {
        return Ok(Some((TargetPlace::File(path.to_owned()), one.books)));
    }
    if matches!(itself, Itself::File(..)) {
        return Ok(None);
    }
    if let Some(file) = file_behind(path)
        && replica_at(&file, remembered)?.is_some()
    {
        return Err(ContentError::Loop { device: name, file: file.display().to_string() });
    }
    let zvols = zvol::all_books(DEPTH_MAX).into_iter();
    let zvol = zvols.filter_map(|(name, books)| Some((name.parse::<DatasetName>().ok()?, books)));
    let zvol = zvol.into_iter().find(|(name, _)| is_it(&device_of(name)));
    Ok(zvol.map(|(name, books)| (TargetPlace::Zvol(name), books)))
}

/// What a path leads to, by whatever name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Itself {
    /// A block device, by its number.
    Device(u64),
    /// A file, by its file system and number there.
    File(u64, u64),
}

impl Itself {
    /// What `path` leads to, if there is anything.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(match found.file_type().is_block_device() {
            true => Self::Device(found.rdev()),
            false => Self::File(found.dev(), found.ino()),
        })
    }
}

/// The file that a loop device shows.
fn file_behind(device: &Path) -> Option<PathBuf> {
    let device = fs::canonicalize(device).ok()?;
    let shown = Path::new("/sys/class/block").join(device.file_name()?).join("loop/backing_file");
    let mut file = fs::read(shown).ok()?;
    file.truncate(file.strip_suffix(b"\n").unwrap_or(&file).len());
    Some(OsString::from_vec(file).into())
}

/// A device, or a file, that is a replica with its books elsewhere: nothing on it says where.
struct Remembered {
    volume: PathBuf,
    books: PathBuf,
}

impl Remembered {
    /// Those of this machine, as far as they can be read.
    fn all(remembered: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(remembered.join(REPLICAS)) else { return Vec::new() };
        let read = |entry: io::Result<fs::DirEntry>| {
            let text = fs::read(entry.ok()?.path()).ok()?;
            let mut lines = text.split(|byte| *byte == b'\n');
            let mut path = || Some(PathBuf::from(OsString::from_vec(lines.next()?.to_vec())));
            let (volume, books) = (path()?, path()?);
            // Whoever removed the books has given the replica up.
            books.join("state").exists().then_some(Self { volume, books })
        };
        entries.filter_map(read).collect()
    }
}

/// Remembers that `volume` is, or becomes, a replica with its books in `books`.
pub(crate) fn remember(remembered: &Path, volume: &Path, books: &Path) -> io::Result<()> {
    let [volume, books] = [std::path::absolute(volume)?, std::path::absolute(books)?];
    let text = [volume.as_os_str().as_bytes(), books.as_os_str().as_bytes(), b""].join(&b'\n');
    let dir = remembered.join(REPLICAS);
    let name = blake3::hash(volume.as_os_str().as_bytes()).to_hex();
    let file = dir.join(&name[..16]);
    if fs::read(&file).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::create_dir_all(&dir)?;
    replace(&file, &text, 0o644)
}
