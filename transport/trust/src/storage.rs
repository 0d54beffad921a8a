//! Where the files of a manifest are: a seam, so that tests can cut the power. And small files
//! that are only ever read and written whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
};

use driftline_extent::Extent;
use rustix::{
    fs::{FlockOperation, SeekFrom, flock, seek},
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

    /// Opens a file, or makes it, for its owner only.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
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

/// Puts a whole file in the place of another, durably.
pub(crate) fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}
