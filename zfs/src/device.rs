//! The devices of volumes and of their snapshots, which show what a volume held at that time.

use std::{
    fmt::Display,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use driftline_extent::{Extent, Volume};

use crate::PointName;

/// How long udev may take to make a device's link.
const LINK_WAIT_MAX: Duration = Duration::from_secs(10);

/// A snapshot's device cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is not there.
    #[error(
        "the device {} cannot be opened: {what}; a volume shows the devices of its snapshots after \
         `zfs set snapdev=visible`",
        path.display()
    )]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// What the operating system says.
        what: io::Error,
    },
    /// It was there. ZFS takes the devices away when it is asked to destroy what they are of, or to
    /// export the pool, and does not bring them back if it refuses.
    #[error(
        "the device {} cannot be read any more: {what}; see zpool status. If somebody has tried to \
         destroy the snapshot or to export the pool, ZFS has taken it away: `zfs set \
         snapdev=hidden` and then `snapdev=visible` bring it back, and the next run goes on",
        path.display()
    )]
    Read {
        /// Where it was.
        path: PathBuf,
        /// What the operating system says.
        what: io::Error,
    },
}

/// An open snapshot of a volume.
#[derive(Debug)]
pub struct SnapshotDevice {
    path: PathBuf,
    file: File,
    size: u64,
}

impl SnapshotDevice {
    /// Opens the device of a snapshot of `size` bytes, and waits for one that was just taken.
    pub fn open(snapshot: &PointName, size: u64) -> Result<Self, DeviceError> {
        let path = device_of(snapshot);
        match wait_for_device(&path, LINK_WAIT_MAX).and_then(|()| File::open(&path)) {
            Ok(file) => Ok(Self { path, file, size }),
            Err(what) => Err(DeviceError::Open { path, what }),
        }
    }
}

/// Where udev puts the link to the device of a volume or of its snapshot; it writes `+` for a
/// space.
pub fn device_of(name: &impl Display) -> PathBuf {
    format!("/dev/zvol/{name}").replace(' ', "+").into()
}

/// Waits until udev has made this device, for so long at most.
///
/// # Errors
///
/// That there is none, or something else.
pub fn wait_for_device(path: &Path, at_most: Duration) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => return Ok(()),
            _ if started.elapsed() < at_most => thread::sleep(Duration::from_millis(20)),
            Ok(_) => return Err(io::Error::other("it is no block device")),
            Err(error) => return Err(error),
        }
    }
}

impl Volume for SnapshotDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|what| {
            io::Error::new(what.kind(), DeviceError::Read { path: self.path.clone(), what })
        })
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Ok(Extent::from_bounds(from, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_any_more_is_named_with_a_way_out() {
        let (path, file) = (PathBuf::from("/dev/zvol/tank/vm@a"), tempfile::tempfile().unwrap());
        let device = SnapshotDevice { path, file, size: 512 };
        let error = device.read_at(0, &mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        for part in ["/dev/zvol/tank/vm@a", "see zpool status", "zfs set snapdev=hidden"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn links_are_where_udev_puts_them() {
        let point: PointName = "tank/vm 1@a:b c".parse().unwrap();
        assert_eq!(device_of(&point), PathBuf::from("/dev/zvol/tank/vm+1@a:b+c"));
    }
}
