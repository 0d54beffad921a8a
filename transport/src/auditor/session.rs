//! The increment that an auditor watches: what it makes of the manifest, and what the storage shows.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt, path::Path};

use driftline_chunking::{ChunkKey, DataRuns, SPAN_CHUNKS, name_listed};
use driftline_extent::{
    BlockMask, CHUNK_LEN, ChunkId, Extent, Generation, Item, Plan, PlanKind, Reason, Root,
    TargetState, chunk_count,
};
use driftline_trust::{
    EXTENTS_MAX, Entry, FileStorage, Files, Held, Manifest, ManifestError, Pass, Touched,
};

use super::Reader;
use crate::Failure;

/// What it knows of the increment that is on its way.
pub(super) struct Session {
    pub(super) manifest: Manifest<FileStorage>,
    pub(super) reader: Reader,
    pub(super) key: ChunkKey,
    pub(super) plan: Plan,
    /// What the target holds, by its own word.
    pub(super) base: Option<Held>,
    pub(super) mode: Mode,
    pub(super) touched: Touched,
    /// The chunks that differ from the base, where all is compared and the map held against that.
    pub(super) found: Option<Touched>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Where the ids of the tip come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// From what goes by, over what the manifest lists.
    Following,
    /// From all of the tip, which is read once more at the end.
    Reading,
}

/// Why something could not be concluded.
pub(super) enum Finding {
    Failure(Failure),
    Manifest(ManifestError),
}

impl From<io::Error> for Finding {
    fn from(error: io::Error) -> Self {
        Self::Failure(error.into())
    }
}

impl From<ManifestError> for Finding {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

pub(super) fn in_manifest(error: &ManifestError) -> Failure {
    Failure::new(Reason::Failed, crate::chain(error))
}

/// What an audit came to.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) bytes_read: u64,
    pub(super) stale: u64,
    pub(super) extents: Vec<Extent>,
}

impl Checked {
    fn note_stale(&mut self, index: u64, size: u64) {
        self.stale += 1;
        if self.extents.len() < EXTENTS_MAX {
            let chunk = Extent::new(index * CHUNK_LEN, CHUNK_LEN);
            self.extents.extend(chunk.and_then(|chunk| chunk.clamp(size)));
        }
    }
}

impl Session {
    /// What some items make of the manifest.
    pub(super) fn entries<'a>(
        &self,
        items: impl Iterator<Item = &'a Item>,
    ) -> Result<Vec<Entry>, Failure> {
        let mut entries = Vec::new();
        // Chunks of which only a part is told: what the storage shows of them.
        let mut partial = Vec::new();
        for item in items {
            match *item {
                Item::Zero { index, count } => {
                    entries.push(Entry::Zeros(index..index.saturating_add(count)));
                }
                Item::Chunk { index, data, zero, id } => {
                    let whole = data.is_all() || zero == BlockMask::ALL;
                    let id = if data.is_all() { id } else { ChunkId::ZERO };
                    if !whole {
                        partial.push(index);
                    }
                    entries.push(Entry::Ids(index, vec![id]));
                }
                Item::Span { .. } | Item::Part { .. } => {}
            }
        }
        let (named, _) = self.name(&partial, self.reader.size())?;
        let mut named = partial.into_iter().zip(named).peekable();
        for entry in &mut entries {
            if let Entry::Ids(index, ids) = entry
                && let Some((_, id)) = named.next_if(|(partial, _)| *partial == *index)
            {
                ids.fill(id);
            }
        }
        Ok(entries)
    }

    pub(super) fn note(&mut self, entries: &[Entry]) -> Result<(), ManifestError> {
        for entry in entries {
            match entry {
                Entry::Ids(first, ids) => self.manifest.note(*first, ids)?,
                Entry::Zeros(chunks) => self.manifest.note_zeros(chunks.clone())?,
            }
            self.touched.note(entry);
        }
        self.manifest.flush()
    }

    /// Notes of the ids of a span those that the manifest does not list.
    pub(super) fn note_scanned(
        &mut self,
        first: u64,
        ids: &[ChunkId],
    ) -> Result<(), ManifestError> {
        let listed = self.manifest.listed(first..first + ids.len() as u64)?;
        let new = (first..).zip(ids).zip(&listed).filter(|((_, id), listed)| id != listed);
        for ((index, id), _) in new {
            self.manifest.note(index, std::slice::from_ref(id))?;
            if let Some(found) = &mut self.found {
                found.note(&Entry::Ids(index, vec![*id]));
            }
        }
        Ok(())
    }

    /// What differs from the base although the map calls it unchanged.
    pub(super) fn missed(&self, size: u64) -> Checked {
        let mut checked = Checked::default();
        // A chunk that the new end cuts is another one, and no map need tell.
        let cut = self.is_cut(size).then_some(size / CHUNK_LEN);
        let found = self.found.iter().flat_map(Touched::iter);
        let known = |index| self.touched.has(index) || self.touched.is_zero(index);
        for index in found.filter(|index| Some(*index) != cut && !known(*index)) {
            checked.note_stale(index, size);
        }
        checked
    }

    /// Whether the tip ends within a chunk that the base had more of.
    fn is_cut(&self, size: u64) -> bool {
        self.base.is_some_and(|base| size < base.size) && !size.is_multiple_of(CHUNK_LEN)
    }

    /// A volume that was cut within a chunk leaves that chunk with another content, of which no
    /// map need tell.
    pub(super) fn check_cut(&mut self, size: u64) {
        let cut = self.plan.kind == PlanKind::Incremental && self.is_cut(size);
        if cut && !self.touched.has(size / CHUNK_LEN) {
            tracing::info!("the volume was cut within a chunk: reading all of the source once");
            self.mode = Mode::Reading;
        }
    }

    /// Makes the root over the tip, and writes down what leads to it.
    pub(super) fn conclude(
        &mut self,
        tip: Option<Generation>,
        size: u64,
        pass: &Pass,
    ) -> Result<Root, Finding> {
        if self.mode == Mode::Reading {
            self.read_tip(size)?;
        }
        let root = self.manifest.tip_root(size)?;
        let generation = tip.unwrap_or_else(|| Generation::content(root));
        self.manifest.seal(Held { generation, size, root }, pass.clone())?;
        Ok(root)
    }

    /// Names all of the tip.
    fn read_tip(&mut self, size: u64) -> Result<(), Finding> {
        self.manifest.begin_whole()?;
        let chunks = chunk_count(size);
        let mut next = 0;
        while next < chunks {
            // Holes are not even listed.
            let Some(data) = self.reader.next_data(next * CHUNK_LEN)? else { break };
            next = next.max(data.offset() / CHUNK_LEN);
            let indices: Vec<u64> = (next..chunks.min(next + SPAN_CHUNKS)).collect();
            let (ids, _) = self.name(&indices, size)?;
            for (index, id) in indices.iter().zip(&ids).filter(|(_, id)| !id.is_zero()) {
                self.manifest.note(*index, std::slice::from_ref(id))?;
            }
            next += indices.len() as u64;
        }
        Ok(())
    }

    /// The first chunk at or after this one that is not known to be a hole, as it should be.
    pub(super) fn next_to_check(&self, index: u64) -> Result<u64, Finding> {
        let data = self.reader.next_data(index * CHUNK_LEN)?;
        let data = data.map_or(u64::MAX, |data| data.offset() / CHUNK_LEN).max(index);
        Ok(self.manifest.next_listed(index)?.map_or(data, |listed| listed.min(data)))
    }

    /// Compares chunks, ascending, with what they should be.
    pub(super) fn check(
        &mut self,
        indices: &[u64],
        size: u64,
        checked: &mut Checked,
    ) -> Result<(), Finding> {
        let indices: Vec<u64> =
            indices.iter().copied().filter(|index| !self.touched.has(*index)).collect();
        let (found, bytes_read) = self.name(&indices, size)?;
        checked.bytes_read += bytes_read;
        let mut listed = (0..0, Vec::new());
        for (index, found) in indices.into_iter().zip(found) {
            let expected = if self.touched.is_zero(index) {
                ChunkId::ZERO
            } else {
                if !listed.0.contains(&index) {
                    // What is drawn lies far apart, and what is rolled over does not.
                    let chunks = index..index + LISTED_AHEAD;
                    listed = (chunks.clone(), self.manifest.listed(chunks)?);
                }
                listed.1[(index - listed.0.start) as usize]
            };
            if found == expected {
                continue;
            }
            // That the list is wrong is another finding.
            self.manifest.prove(index)?;
            checked.note_stale(index, size);
        }
        Ok(())
    }

    /// The ids of chunks, ascending, as the storage shows them; and how many bytes were read.
    fn name(&self, indices: &[u64], size: u64) -> io::Result<(Vec<ChunkId>, u64)> {
        let reader = self.reader.as_ref();
        let mut data = DataRuns::default();
        let (mut places, mut there) = (Vec::new(), Vec::new());
        for (place, index) in indices.iter().enumerate() {
            if data.next(reader, *index)?.contains(index) {
                places.push(place);
                there.push(*index);
            }
        }
        let mut ids = vec![ChunkId::ZERO; indices.len()];
        let named = name_listed(&self.key, reader, size, &there)?;
        places.into_iter().zip(named).for_each(|(place, id)| ids[place] = id);
        Ok((ids, there.len() as u64 * CHUNK_LEN))
    }
}

/// Ids that are read at once where what is looked at follows on one another.
const LISTED_AHEAD: u64 = 64;

/// An open manifest, and what was wrong with it.
pub(super) type Opened = (Manifest<FileStorage>, Option<&'static str>);

/// Opens the files of a manifest for this process alone.
pub(super) fn open(dir: &Path, state: &TargetState) -> Result<Opened, ManifestError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let file = |name: &str| FileStorage::open(&dir.join(name));
    let files = Files {
        state: file("state")?,
        ids: file("ids")?,
        spans: file("spans")?,
        log: file("log")?,
    };
    files.state.lock()?;
    Manifest::open(files, state)
}
