//! Where the files of a manifest are: a seam, so that tests can cut the power. And small files
//! that are only ever read and written whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
};

use driftline_extent::Extent;
use rustix::{
    fs::{Advice, FlockOperation, OFlags, SeekFrom, fadvise, flock, seek},
    io::Errno,
};

/// A file that grows where it is written.
pub trait Storage {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether nothing was ever written.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`; both lie within it.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes, and grows it if need be.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts it, or lets it grow by zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The first range at or after `from` that may hold anything but zeros.
    fn next_data(&self, from: u64) -> io::Result<Option<Extent>>;
    /// Makes all that was written durable.
    fn sync(&self) -> io::Result<()>;

    /// Lets later reads come from the storage itself, as far as that is possible.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    /// Makes all that was written durable, and lets the next reads come from the storage.
    fn settle(&self) -> io::Result<()> {
        self.sync()?;
        self.drop_cache()
    }

    /// Fills `buf` from `offset`; what lies beyond the end counts as zeros.
    fn read_below(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let within = self.len()?.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (within, beyond) = buf.split_at_mut(within);
        beyond.fill(0);
        if within.is_empty() { Ok(()) } else { self.read_at(offset, within) }
    }
}

/// A regular file.
#[derive(Debug)]
pub struct FileStorage(File);

impl FileStorage {
    pub(crate) const fn of(file: File) -> Self {
        Self(file)
    }

    /// Opens a file, or makes it, for its owner only. A link in its place is an error.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        Ok(Self(options.open(path)?))
    }

    /// Keeps other processes out for as long as it is open.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process has it.
    pub fn lock(&self) -> io::Result<()> {
        Ok(flock(&self.0, FlockOperation::NonBlockingLockExclusive)?)
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let len = self.len()?;
        let start = match seek(&self.0, SeekFrom::Data(from)) {
            Ok(start) => start.max(from),
            Err(Errno::NXIO) => return Ok(None),
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => from,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(&self.0, SeekFrom::Hole(start)) {
            Ok(end) => end,
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => len,
            Err(error) => return Err(error.into()),
        };
        Ok(Extent::from_bounds(start, end))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn drop_cache(&self) -> io::Result<()> {
        match fadvise(&self.0, 0, None::<NonZeroU64>, Advice::DontNeed) {
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Longest small file that is read: a whole one is much shorter.
const SMALL_LEN_MAX: u64 = 64 << 10;

/// A small file, or the beginning of a longer one; `None` if there is none.
pub(crate) fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Holds off whoever else changes what is in this folder, until the file is closed.
pub(crate) fn lock_dir(dir: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = file.open(dir.join("lock"))?;
    file.lock()?;
    Ok(file)
}

/// Puts a whole file in the place of another, durably: it is read back first. What killed processes
/// have left unfinished in this folder is removed.
pub(crate) fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let folder = tidy(dir)?;
    // Nobody can foresee the name and put a link there.
    let new = path.with_extension(format!("new-{:016x}", RandomState::new().hash_one(path)));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    let replaced = write_proven(FileStorage(file), bytes).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    replaced?;
    folder.sync_all()
}

/// Removes from a folder what killed processes have not finished, and keeps others from writing
/// there until the folder is closed.
pub(crate) fn tidy(dir: &Path) -> io::Result<File> {
    let folder = File::open(dir)?;
    // A file system without locks does not tell what somebody is still at work on.
    if flock(&folder, FlockOperation::LockExclusive).is_err() {
        return Ok(folder);
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let end = path.extension().and_then(|end| end.to_str());
        if end.is_some_and(|end| end.starts_with("new-")) {
            fs::remove_file(&path)?;
        }
    }
    Ok(folder)
}

fn write_proven(mut file: FileStorage, bytes: &[u8]) -> io::Result<()> {
    file.0.write_all(bytes)?;
    file.settle()?;
    let mut found = vec![0; bytes.len()];
    file.read_at(0, &mut found)?;
    if found == bytes {
        return Ok(());
    }
    Err(io::Error::other("it does not read back as it was written: the storage is not reliable"))
}
