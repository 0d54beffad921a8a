//! Real files and block devices.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    num::NonZeroU64,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use driftline_chunking::is_zero;
use driftline_extent::{Extent, Reason, Unreadable, Volume};
use rustix::{
    fs::{
        Advice, FallocateFlags, OFlags, SeekFrom, fadvise, fallocate, fstatfs, fstatvfs, ftruncate,
        seek,
    },
    io::Errno,
    process::geteuid,
};

use crate::Disk;

/// Devices are punched on multiples of this, which every logical block size divides.
const DEVICE_ALIGN: u64 = 4096;

/// How much is looked at before zeros are written.
const ZERO_WINDOW: u64 = 1 << 20;

/// File systems that never write in place, by what `statfs` calls them: btrfs, ZFS, bcachefs.
const COPIES_ON_WRITE: [i128; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];

/// A regular file or a block device.
#[derive(Debug)]
pub struct FileDisk {
    /// `None` for a device that its manager has not made yet.
    file: Option<File>,
    path: PathBuf,
    /// The name that must lead to it as long as it is open.
    named: PathBuf,
    /// The size of a block device, or of whatever has a manager; `None` for a file.
    fixed: Option<u64>,
    /// The size when it was opened: what a source is, though something may write to it.
    opened_len: u64,
}

impl FileDisk {
    /// Opens a file or device for reading only, as a source of bytes.
    pub fn open_read(path: &Path) -> io::Result<Self> {
        Self::new(OpenOptions::new().read(true).open(path)?, path)
    }

    /// Opens an existing file or device for reading and writing. A device that is mounted or
    /// otherwise in use is refused by the kernel.
    pub fn open_write(path: &Path) -> io::Result<Self> {
        let device = path.metadata()?.file_type().is_block_device();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Self::new(if device { alone(&mut options) } else { &options }.open(path)?, path)
    }

    /// Opens for reading what a manager keeps; it may not exist yet. A device that is mounted or
    /// otherwise in use is refused by the kernel: it could not be written later.
    pub(crate) fn open_kept(path: &Path) -> io::Result<Self> {
        let mut disk = Self::absent(path);
        match path.metadata() {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                drop(alone(OpenOptions::new().read(true)).open(path)?);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(disk),
            Err(error) => return Err(error),
        }
        disk.reopen(false)?;
        Ok(disk)
    }

    /// What is not there: it has no bytes.
    pub(crate) fn absent(path: &Path) -> Self {
        let (path, named) = (path.to_owned(), path.to_owned());
        Self { file: None, path, named, fixed: Some(0), opened_len: 0 }
    }

    /// Makes a file, for its owner only. Nothing may stand there, not even a link.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Self::new(options.open(path)?, path)
    }

    /// The same disk, under the name that was asked for: it may be a link to it.
    pub(crate) fn named(self, path: &Path) -> Self {
        Self { named: path.to_owned(), ..self }
    }

    pub(crate) fn new(file: File, path: &Path) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        let fixed = match kind.is_block_device() {
            true => Some(seek(&file, SeekFrom::End(0))?),
            false if kind.is_file() => None,
            false => {
                let what = "neither a regular file nor a block device";
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        };
        let opened_len = fixed.map_or_else(|| Ok(file.metadata()?.len()), io::Result::Ok)?;
        let (path, named) = (path.to_owned(), path.to_owned());
        Ok(Self { file: Some(file), path, named, fixed, opened_len })
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn zero_file(&self, extent: Extent) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Whether it is a hole already is not asked: ZFS writes out what is dirty to find out.
        match fallocate(self.file()?, flags, extent.offset(), extent.len()) {
            Ok(()) => return Ok(()),
            Err(error) if is_unsupported(error) => {}
            Err(error) => return Err(error.into()),
        }
        let mut at = extent.offset();
        while let Some(data) = self.data_at_or_after(at)?.and_then(|data| data.clamp(extent.end()))
        {
            self.zero_by_writing(data)?;
            at = data.end();
        }
        Ok(())
    }

    /// That there is room for ranges of which nothing can be reserved.
    fn check_room(&self, ranges: &[Extent]) -> io::Result<()> {
        let stored = self.file()?.metadata()?.blocks().saturating_mul(512);
        let end = ranges.iter().map(Extent::end).max().unwrap_or(0).max(Disk::len(self)?);
        let needed: u64 = ranges.iter().map(Extent::len).sum();
        if needed.min(end.saturating_sub(stored)) <= self.available()? {
            return Ok(());
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Bytes that this process may still store.
    fn available(&self) -> io::Result<u64> {
        let found = fstatvfs(self.file()?)?;
        let blocks = if geteuid().is_root() { found.f_bfree } else { found.f_bavail };
        Ok(blocks.saturating_mul(found.f_frsize))
    }

    fn zero_device(&self, extent: Extent) -> io::Result<()> {
        let Some(inner) = extent.align_in(DEVICE_ALIGN) else {
            return self.zero_by_writing(extent);
        };
        let (before, rest) = extent.split_at(inner.offset());
        let after = rest.and_then(|rest| rest.split_at(inner.end()).1);
        before.into_iter().chain(after).try_for_each(|edge| self.zero_by_writing(edge))?;
        // This promises zeros, which a discard does not. Where the device cannot do it (a zvol),
        // `ZERO_RANGE` would let the kernel write zeros over terabytes of what is a hole already.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(self.file()?, flags, inner.offset(), inner.len()) {
            Ok(()) => Ok(()),
            Err(error) if is_unsupported(error) => self.zero_by_writing(inner),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes zeros where something else stands.
    fn zero_by_writing(&self, extent: Extent) -> io::Result<()> {
        let Some(extent) = extent.clamp(Disk::len(self)?) else { return Ok(()) };
        let mut buf = vec![0; extent.len().min(ZERO_WINDOW) as usize];
        for piece in extent.pieces(ZERO_WINDOW) {
            let buf = &mut buf[..piece.len() as usize];
            self.file()?.read_exact_at(buf, piece.offset())?;
            if !is_zero(buf) {
                buf.fill(0);
                self.file()?.write_all_at(buf, piece.offset())?;
            }
        }
        Ok(())
    }

    /// Where data starts, at or after `from`; `None` if there is none.
    fn data_start(&self, from: u64) -> io::Result<Option<u64>> {
        if self.fixed.is_some() {
            return Ok(Some(from));
        }
        match seek(self.file()?, SeekFrom::Data(from)) {
            Ok(start) => Ok(Some(start.max(from))),
            Err(Errno::NXIO) => Ok(None),
            Err(error) if is_unsupported(error) => Ok(Some(from)),
            Err(error) => Err(error.into()),
        }
    }

    fn data_at_or_after(&self, from: u64) -> io::Result<Option<Extent>> {
        let Some(start) = self.data_start(from)? else { return Ok(None) };
        let len = Disk::len(self)?;
        // A file with as many blocks as bytes has no holes, and need not be searched for one.
        if self.fixed.is_some() || self.file()?.metadata()?.blocks() >= len.div_ceil(512) {
            return Ok(Extent::from_bounds(start, len));
        }
        let end = match seek(self.file()?, SeekFrom::Hole(start)) {
            Ok(end) => end,
            Err(Errno::NXIO) => len,
            Err(error) if is_unsupported(error) => len,
            Err(error) => return Err(error.into()),
        };
        Ok(Extent::from_bounds(start, end))
    }
}

impl Disk for FileDisk {
    fn len(&self) -> io::Result<u64> {
        // Nothing is read or written from where the file stands, and this costs less than a stat.
        self.fixed.map_or_else(|| Ok(seek(self.file()?, SeekFrom::End(0))?), Ok)
    }

    fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file()?.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file()?.write_all_at(bytes, offset)
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        if self.fixed.is_some() { self.zero_device(extent) } else { self.zero_file(extent) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(ftruncate(self.file()?, len)?)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.data_at_or_after(from)
    }

    fn sync(&self) -> io::Result<()> {
        // Not only the data: the size is a part of what a replica holds.
        self.file()?.sync_all()
    }

    fn drop_cache(&self) -> io::Result<()> {
        match fadvise(self.file()?, 0, None::<NonZeroU64>, Advice::DontNeed) {
            Err(error) if !is_unsupported(error) => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn allocate(&self, ranges: &[Extent]) -> io::Result<()> {
        if self.fixed.is_some() {
            return Ok(());
        }
        for (place, range) in ranges.iter().enumerate() {
            match fallocate(self.file()?, FallocateFlags::KEEP_SIZE, range.offset(), range.len()) {
                Ok(()) => {}
                Err(error) if is_unsupported(error) => return self.check_room(&ranges[place..]),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn has_space_for(&self, bytes: u64) -> io::Result<bool> {
        if self.fixed.is_some() || !COPIES_ON_WRITE.contains(&fstatfs(self.file()?)?.f_type.into())
        {
            return Ok(true);
        }
        Ok(bytes <= self.available()?)
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        let opened = file.metadata()?;
        let leads_to_it = |found: io::Result<Metadata>| match found {
            Ok(found) => Ok(is_same(&found, &opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        // A link where the file was leads to the file, and to other books: those beside it now.
        let is_there =
            opened.file_type().is_block_device() || leads_to_it(self.path.symlink_metadata())?;
        Ok(is_there && leads_to_it(self.named.metadata())?)
    }

    fn reopen(&mut self, writable: bool) -> io::Result<()> {
        let opened = if writable { Self::open_write } else { Self::open_read }(&self.path)?;
        // Whatever it is, its length is not ours to set.
        let named = std::mem::take(&mut self.named);
        *self = Self { fixed: Some(opened.opened_len), named, ..opened };
        Ok(())
    }
}

impl Volume for FileDisk {
    fn size(&self) -> u64 {
        self.opened_len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Disk::read_at(self, offset, buf).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => became_shorter(),
            _ => error,
        })
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        // What was cut off would otherwise look like a hole.
        if Disk::len(self)? < self.opened_len {
            return Err(became_shorter());
        }
        self.data_at_or_after(from)
    }
}

/// A source is as long as it was when it was opened, or it is not one moment of it.
fn became_shorter() -> io::Error {
    let detail = "it became shorter while it was read: take a snapshot and read that".to_owned();
    Unreadable { reason: Reason::SourceChanged, detail }.into()
}

/// Opens a device only if nobody has it who also wants it alone: a mount, a device mapper.
fn alone(options: &mut OpenOptions) -> &OpenOptions {
    options.custom_flags(OFlags::EXCL.bits().cast_signed())
}

/// Whether both are one file or one device.
pub(crate) fn is_same(one: &Metadata, two: &Metadata) -> bool {
    if one.file_type().is_block_device() && two.file_type().is_block_device() {
        return one.rdev() == two.rdev();
    }
    (one.dev(), one.ino()) == (two.dev(), two.ino())
}

fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NOTTY)
}
