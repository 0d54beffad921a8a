//! The device of a snapshot: what ZFS itself says a volume held at that time.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
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
        let path = path_of(snapshot);
        let started = Instant::now();
        let file = loop {
            match File::open(&path) {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && started.elapsed() < LINK_WAIT_MAX =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                opened => break opened,
            }
        };
        match file {
            Ok(file) => Ok(Self { file, size }),
            Err(what) => Err(DeviceError { path: path.display().to_string(), what }),
        }
    }
}

/// Where udev puts the link to a snapshot's device; it writes `+` for a space.
fn path_of(snapshot: &PointName) -> PathBuf {
    format!("/dev/zvol/{snapshot}").replace(' ', "+").into()
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
        let point = "tank/vm 1@a:b c".parse().unwrap();
        assert_eq!(path_of(&point), PathBuf::from("/dev/zvol/tank/vm+1@a:b+c"));
    }
}
