//! Where a replica may find a chunk that it does not have at its own place.

use std::collections::HashSet;

use driftline_extent::{ChunkId, ReplicaId, Root};

use crate::Problem;

/// A chunk of a volume, and its name.
pub type Entry = Result<(u64, ChunkId), Problem>;

/// What was committed, for an index of it.
pub struct Update<'a> {
    /// Which replica.
    pub replica: ReplicaId,
    /// The root before, if it held a generation.
    pub base: Option<Root>,
    /// The root now.
    pub tip: Root,
    /// How many chunks it has now.
    pub chunks: u64,
    /// The chunks that changed, ascending; what became zero as well.
    pub changes: &'a mut dyn Iterator<Item = Entry>,
    /// All chunks that are not zero, ascending.
    pub all: &'a mut dyn Iterator<Item = Entry>,
}

impl std::fmt::Debug for Update<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Update");
        debug.field("replica", &self.replica).field("base", &self.base).field("tip", &self.tip);
        debug.finish_non_exhaustive()
    }
}

/// Is told what may be the chunk of a name, and says whether it is.
pub type Take<'a> = &'a mut dyn FnMut(&ChunkId, Vec<u8>) -> Result<bool, Problem>;

/// Finds chunks by name. Whatever goes wrong there is no failure of the replica: it then asks the
/// source, as if nothing had been found.
pub trait OtherReplicas: Send {
    /// What may be the chunk of this name, read just now. Who asks hashes it.
    fn find(&mut self, id: &ChunkId) -> Option<Vec<u8>>;

    /// Looks through all there is for chunks of these names, which takes long. `take` is told what
    /// may be one of them, until it says that it is.
    fn search(&mut self, _ids: &HashSet<ChunkId>, _take: Take<'_>) -> Result<(), Problem> {
        Ok(())
    }

    /// What was found under this name was something else.
    fn forget(&mut self, id: &ChunkId);

    /// Takes note of what was committed.
    fn committed(&mut self, update: Update<'_>);
}
