//! A volume of which nothing is known but its bytes as a source: `file:PATH`, and whatever else
//! has no map that is proven.

use std::{fmt, fs, io, path::Path, sync::Arc};

use driftline_extent::{
    BLOCK_LEN, Change, Explained, Extent, Finish, Generation, OVERWRITE, Plan, PlanKind, Reason,
    Scheme, Source, Standing, Unreadable, Volume, VolumeId,
};

use crate::content::{self, ContentError};

/// Bytes that are read at once: a chunk, as that is what they are cut into.
const READ_LEN: u64 = driftline_extent::CHUNK_LEN;

/// Why a plain volume cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlainError {
    /// It cannot be opened.
    #[error("cannot open {name}")]
    Open {
        name: String,
        #[source]
        error: io::Error,
    },
    /// It cannot be read any further.
    #[error("cannot read {name}")]
    Read {
        name: String,
        #[source]
        error: io::Error,
    },
    /// It is a replica that cannot be read, or nothing that can.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The target's generation is not named by its content.
    #[error(
        "{name} is identified by its content alone, and the target holds {base}, which came from \
         another kind of source: push from that source, or {OVERWRITE}"
    )]
    BaseMismatch { name: String, base: Generation },
}

impl Explained for PlainError {
    fn reason(&self) -> Reason {
        match self {
            Self::Open { .. } => Reason::Failed,
            // A replica that is read from says itself what is wrong with it.
            Self::Read { error, .. } => Unreadable::explain(error),
            Self::Content(error) => error.reason(),
            Self::BaseMismatch { .. } => Reason::BaseMismatch,
        }
    }
}

/// A volume without a map of its changes, such as a plain file or block device: after the first
/// full copy it is scanned, and only chunks that differ move.
pub(crate) struct PlainVolume {
    name: String,
    id: VolumeId,
    disk: Arc<dyn Volume + Send + Sync>,
    overwrite: bool,
    /// Whether this run's increment was delivered: there is no second one.
    delivered: bool,
    next: u64,
    /// The run of data that `next` lies in, or the one that follows.
    data: Option<Extent>,
    bytes_read: u64,
}

impl PlainVolume {
    /// Opens `path` for reading. `remembered` is the folder of what is remembered.
    pub(crate) fn open(
        path: &Path,
        overwrite: bool,
        remembered: &Path,
    ) -> Result<Self, PlainError> {
        let name = path.display().to_string();
        let io = |error| PlainError::Open { name: name.clone(), error };
        let absolute = fs::canonicalize(path).map_err(io)?;
        let disk = content::open(path, remembered)?.disk;
        Ok(Self::of(name, identity(&absolute), disk, overwrite))
    }

    /// A volume that is open already, and its identity. `name` is for messages.
    pub(crate) fn of(
        name: String,
        id: VolumeId,
        disk: Arc<dyn Volume + Send + Sync>,
        overwrite: bool,
    ) -> Self {
        Self { name, id, disk, overwrite, delivered: false, next: 0, data: None, bytes_read: 0 }
    }

    /// What is wrong with reading it.
    pub(crate) fn io(&self, error: io::Error) -> PlainError {
        PlainError::Read { name: self.name.clone(), error }
    }

    /// What to read next: data, on whole blocks, up to the next multiple of [`READ_LEN`].
    fn next_piece(&mut self, from: u64) -> io::Result<Option<Extent>> {
        let (start, size) = (self.next.max(from), self.disk.size());
        // Where data ends is asked once for each run of it: some file systems look at every
        // page to find out.
        if self.data.is_none_or(|data| data.end() <= start) {
            self.data = self.disk.next_data(start)?;
        }
        let data = self.data.and_then(|data| data.split_at(start).1);
        let piece = data.and_then(|data| data.clamp(size)).and_then(|d| d.pieces(READ_LEN).next());
        Ok(piece.and_then(|piece| piece.align_out(BLOCK_LEN).clamp(size)))
    }

    /// The same volume, for reading at random.
    pub(crate) fn volume(&self) -> Arc<dyn Volume + Send + Sync> {
        self.disk.clone()
    }
}

/// Which machine, and which path on it. A plain file has no other identity; that it is the
/// same content is proven by hashing, not by this.
fn identity(path: &Path) -> VolumeId {
    volume_id("driftline volume id v1 file", path.as_os_str().as_encoded_bytes())
}

/// The identity of what has this name on this machine, among all of its kind.
pub(crate) fn volume_id(kind: &str, name: &[u8]) -> VolumeId {
    let machine = fs::read("/etc/machine-id").ok().filter(|id| !id.is_empty());
    let machine =
        machine.or_else(|| fs::read("/proc/sys/kernel/hostname").ok()).unwrap_or_default();
    let mut hasher = blake3::Hasher::new_derive_key(kind);
    hasher.update(&(machine.len() as u64).to_le_bytes()).update(&machine);
    hasher.update(name);
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    VolumeId(id)
}

impl fmt::Debug for PlainVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainVolume").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Source for PlainVolume {
    type Error = PlainError;

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, PlainError> {
        let kind = match base {
            _ if self.delivered => PlanKind::UpToDate,
            None => PlanKind::Full,
            Some(base) if base.scheme() == Scheme::CONTENT => PlanKind::Scan,
            Some(_) if self.overwrite => PlanKind::Scan,
            Some(base) => {
                return Err(PlainError::BaseMismatch { name: self.name.clone(), base: *base });
            }
        };
        self.delivered = true;
        Ok(Plan {
            kind,
            volume: Some(self.id),
            base: None,
            tip: None,
            size: Some(self.disk.size()),
            standing: Standing::Suspect(Reason::MapMissing),
            bytes_expected: self.disk.size(),
        })
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, PlainError> {
        let piece = self.next_piece(from).map_err(|error| self.io(error))?;
        let Some(piece) = piece else {
            self.bytes_read = self.disk.size();
            return Ok(None);
        };
        let mut bytes = vec![0; piece.len() as usize];
        self.disk.read_at(piece.offset(), &mut bytes).map_err(|error| self.io(error))?;
        self.next = piece.end();
        self.bytes_read = piece.end();
        Ok(Some(Change::Data { offset: piece.offset(), bytes }))
    }

    fn finish(&mut self) -> Result<Finish, PlainError> {
        unreachable!("a plan without a tip is finished by its root")
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}
