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
#[error(
    "the device {path} cannot be read: {what}; a volume shows the devices of its snapshots after \
     `zfs set snapdev=visible`"
)]
pub struct DeviceError {
    path: String,
    what: io::Error,
}

/// An open snapshot of a volume.
#[derive(Debug)]
pub struct SnapshotDevice {
    file: File,
    size: u64,
}

impl SnapshotDevice {
    /// Opens the device of a snapshot of `size` bytes, and waits for one that was just taken.
    pub fn open(snapshot: &PointName, size: u64) -> Result<Self, DeviceError> {
        let path = device_of(snapshot);
        match wait_for_device(&path, LINK_WAIT_MAX).and_then(|()| File::open(&path)) {
            Ok(file) => Ok(Self { file, size }),
            Err(what) => Err(DeviceError { path: path.display().to_string(), what }),
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
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Ok(Extent::from_bounds(from, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_where_udev_puts_them() {
        let point: PointName = "tank/vm 1@a:b c".parse().unwrap();
        assert_eq!(device_of(&point), PathBuf::from("/dev/zvol/tank/vm+1@a:b+c"));
    }
}
