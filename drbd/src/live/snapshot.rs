//! A snapshot that is read.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use driftline_extent::{Extent, Volume};

use super::LiveError;
use crate::{
    DrbdVolume, Layout,
    host::{self, Stores},
};

/// The data and metadata of a snapshot.
pub(super) fn open_snapshot(stores: &Stores, name: &str) -> Result<DrbdVolume, LiveError> {
    let open =
        |store: &host::Store, end: &str| -> Result<Arc<dyn Volume + Send + Sync>, LiveError> {
            let name = format!("{name}{end}");
            let device = store.device(&name)?;
            let disk = Disk::open(&device, stores.clone(), &name);
            Ok(Arc::new(disk.map_err(|error| LiveError::Open { name, error })?))
        };
    let meta = match &stores.meta {
        Some((store, layout)) => Some((open(store, host::META_END)?, *layout)),
        None => None,
    };
    let meta: Option<(_, Layout)> = meta;
    Ok(DrbdVolume::open(open(&stores.data, "")?, meta)?)
}

/// The device of a snapshot.
struct Disk {
    file: File,
    size: u64,
    stores: Stores,
    name: String,
}

impl Disk {
    fn open(device: &Path, stores: Stores, name: &str) -> io::Result<Self> {
        let mut file = fs::File::open(device)?;
        let size = file.seek(SeekFrom::End(0))?;
        let name = name.strip_suffix(host::META_END).unwrap_or(name).to_owned();
        Ok(Self { file, size, stores, name })
    }
}

impl Volume for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| {
            // Of a snapshot without space nothing can be read, and nothing else says why.
            match self.stores.is_spoilt(&self.name) {
                Ok(true) => io::Error::other(LiveError::Spoilt { name: self.name.clone() }),
                Ok(false) | Err(_) => error,
            }
        })
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Ok(Extent::from_bounds(from, self.size))
    }
}

/// The volume of whichever snapshot is being read, for reading at random.
#[derive(Default)]
pub struct SharedVolume(Mutex<Option<Arc<dyn Volume + Send + Sync>>>);

impl SharedVolume {
    /// Reads this one from now on, or none: what was read is let go.
    pub fn set(&self, volume: Option<Arc<dyn Volume + Send + Sync>>) {
        *self.lock() = volume;
    }

    fn get(&self) -> io::Result<Arc<dyn Volume + Send + Sync>> {
        self.lock().clone().ok_or_else(|| io::Error::other("no snapshot is being read"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn Volume + Send + Sync>>> {
        // Nothing in here panics half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedVolume").finish_non_exhaustive()
    }
}

impl Volume for SharedVolume {
    fn size(&self) -> u64 {
        self.get().map_or(0, |volume| volume.size())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.get()?.read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.get()?.next_data(from)
    }
}
