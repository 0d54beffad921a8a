//! The index as one replica uses it: what it finds is read where it stands.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use driftline_extent::{CHUNK_LEN, ChunkId, ReplicaId, Root, Volume};

use super::{Index, Prefix, prefix};
use crate::{FileDisk, OtherReplicas, Problem, Update, other_replicas::Take};

/// Volumes of other replicas that a session has open.
const OPEN_MAX: usize = 64;

/// Names that a session found to be wrong and has not yet removed.
const STALE_MAX: usize = 1 << 16;

/// The index as one replica uses it.
#[derive(Debug)]
pub(crate) struct IndexView {
    index: Arc<Index>,
    /// Where the replica's own volume is.
    path: PathBuf,
    open: HashMap<u32, FileDisk>,
    stale: Vec<Prefix>,
}

impl IndexView {
    pub(crate) fn new(index: Arc<Index>, path: PathBuf) -> Self {
        Self { index, path, open: HashMap::new(), stale: Vec::new() }
    }

    /// Whether what the replica holds is in the index.
    pub(crate) fn has(&self, replica: &ReplicaId, root: Root) -> bool {
        self.index.has(replica, root, &self.path)
    }

    fn read(&mut self, number: u32, path: &Path, chunk: u64) -> Option<Vec<u8>> {
        if !self.open.contains_key(&number) {
            if self.open.len() == OPEN_MAX {
                self.open.clear();
            }
            self.open.insert(number, FileDisk::open_read(path).ok()?);
        }
        let volume = self.open.get(&number)?;
        let offset = chunk.checked_mul(CHUNK_LEN)?;
        let len = volume.size().checked_sub(offset)?.min(CHUNK_LEN) as usize;
        let mut bytes = vec![0; CHUNK_LEN as usize];
        Volume::read_at(volume, offset, &mut bytes[..len]).ok()?;
        Some(bytes)
    }
}

impl OtherReplicas for IndexView {
    fn search(&mut self, ids: &HashSet<ChunkId>, take: Take<'_>) -> Result<(), Problem> {
        let places = self.index.places_of(ids);
        for id in ids {
            for (number, path, chunk) in places.get(&prefix(id)).into_iter().flatten() {
                if let Some(bytes) = self.read(*number, path, *chunk)
                    && take(id, bytes)?
                {
                    break;
                }
            }
        }
        Ok(())
    }

    fn find(&mut self, id: &ChunkId) -> Option<Vec<u8>> {
        let (number, path, chunk) = self.index.find(id)?;
        let bytes = self.read(number, &path, chunk);
        if bytes.is_none() {
            self.forget(id);
        }
        bytes
    }

    fn forget(&mut self, id: &ChunkId) {
        if self.stale.len() < STALE_MAX {
            self.stale.push(prefix(id));
        }
    }

    fn committed(&mut self, update: Update<'_>) {
        self.index.update(&self.path, update, &mut self.stale);
    }
}
