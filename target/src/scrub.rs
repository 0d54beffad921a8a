//! Finding damage at rest, and putting it right by hash.
//!
//! A scrub reads all of a replica, as a verification does; where others may write it meanwhile, without
//! a lock, and looks again at what was not as it is listed (module `survey`). With consent to repair it then does what
//! it can, and each step leaves the replica at its generation whatever is cut off:
//!
//! 1. A volume of another size gets the size that was committed.
//! 2. If only the list of ids is damaged (what stands there leads to the committed root), the list
//!    is written anew from what stands there.
//! 3. Damaged chunks that are found under their listed id in this or another replica, or are zero,
//!    go through the journal: an increment that leads to the same generation and root.
//! 4. What is left is noted (module `repair`), for the next session of its source to replace.
//!
//! If neither the list nor the volume leads to the committed root, nothing says which of the two is
//! damaged where they differ, and nothing is repaired. Nor is it where more is damaged than is worth
//! a list: that is copied anew.

use std::collections::{BTreeSet, HashMap, HashSet};

use driftline_chunking::TreeHasher;
use driftline_extent::{BlockMask, ChunkId, Generation, PlanKind, Root, chunk_count};

use crate::{
    Disk, Problem, Replica, TargetError, VerifyReport,
    chunks::{Patch, chunk_buf, read_chunk, walk},
    journal::Record,
    journaled::Journaled,
    repair::{Damage, Damages, REPAIRS_MAX},
    state::State,
};

/// Other places of the same content in this replica that are looked at.
const PLACES_MAX: usize = 4;

/// What [`Replica::scrub`] found and did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrubReport {
    /// What was found.
    pub found: VerifyReport,
    /// Whether only the list of ids was damaged, and what stands there is what was committed.
    pub only_list: bool,
    /// Chunks that were put right from what this or another replica has.
    pub repaired: u64,
    /// Chunks that the next session of the replica's source may replace.
    pub awaited: u64,
    /// Whether the volume was given the size that was committed.
    pub size_repaired: bool,
    /// Whether the list of ids was written anew.
    pub list_repaired: bool,
}

impl ScrubReport {
    /// Whether the replica was exactly what was committed.
    pub const fn is_clean(&self) -> bool {
        self.found.is_clean()
    }

    /// Whether it is exactly that now.
    pub const fn is_whole(&self) -> bool {
        self.left() == 0
            && (self.found.size_matches || self.size_repaired)
            && (self.found.root_matches || self.list_repaired)
    }

    /// How many chunks still are not what was committed.
    pub const fn left(&self) -> u64 {
        if self.list_repaired { 0 } else { self.found.damaged_chunks.saturating_sub(self.repaired) }
    }
}

/// What was found, chunk by chunk.
struct Survey {
    report: VerifyReport,
    /// The first damaged chunks, at most one more than may be noted.
    damages: Damages,
    /// The root over what stands there; `None` if some of it cannot be read.
    root: Option<Root>,
}

impl<D: Disk> Replica<D> {
    /// Reads the whole replica again, compares it with what was committed, and with `repair` puts
    /// right what can be. `progress` is called with the offset of each chunk that was read.
    ///
    /// That nothing was damaged is noted, at `now_ms` (milliseconds since 1970), unless the replica
    /// is open for reading only. What cannot be read counts as damage.
    ///
    /// # Errors
    ///
    /// A replica that holds no generation, or storage that fails in another way.
    pub fn scrub(
        &mut self,
        repair: bool,
        now_ms: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ScrubReport, TargetError> {
        self.run(|this| this.scrub_all(None, repair, now_ms, progress))
    }

    /// As [`scrub`](Self::scrub), where all of it was read a moment ago and these chunks alone were
    /// not what was listed ([`survey`](crate::survey)): they are looked at again, and the list of
    /// ids as a whole. If that or the size is not what was committed, all is read again.
    ///
    /// # Errors
    ///
    /// As with [`scrub`](Self::scrub).
    pub fn scrub_doubtful(
        &mut self,
        doubtful: &BTreeSet<u64>,
        repair: bool,
        now_ms: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ScrubReport, TargetError> {
        self.run(|this| this.scrub_all(Some(doubtful), repair, now_ms, progress))
    }

    /// When a scrub last found no damage, in milliseconds since 1970.
    pub const fn scrubbed_ms(&self) -> Option<u64> {
        self.state.scrubbed_ms
    }

    fn scrub_all(
        &mut self,
        doubtful: Option<&BTreeSet<u64>>,
        repair: bool,
        now_ms: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ScrubReport, Problem> {
        self.check_usable()?;
        if repair && self.reads_only {
            return Err(Problem::ReadOnly);
        }
        let (Some(generation), Some(root)) = (self.state.generation(), self.state.root()) else {
            return Err(self.holds_nothing());
        };
        let size_found = self.volume.len()?;
        let size_matches = self.check_size().is_ok();
        let size_repaired = repair && !size_matches && self.mend_size()?;
        let is_whole = size_matches && self.ids.root(&self.key, self.state.size)? == root;
        let only = doubtful.filter(|_| is_whole);
        let Survey { mut report, mut damages, root: found_root } = self.look(only, progress)?;
        (report.size_found, report.size_matches) = (size_found, size_matches);
        let only_list = !report.root_matches && found_root == Some(root);
        let mut done = ScrubReport {
            found: report,
            only_list,
            repaired: 0,
            awaited: 0,
            size_repaired,
            list_repaired: false,
        };
        if done.is_clean() {
            if !self.reads_only {
                self.note_clean(now_ms)?;
            }
            return Ok(done);
        }
        if !repair || !(size_matches || size_repaired) {
            return Ok(done);
        }
        // What was cut off was received on top of what is found to be damaged now.
        self.unsealed = None;
        self.journal.clear()?;
        self.overlay.clear()?;
        if only_list {
            self.list_anew(self.state.size, root)?;
            done.list_repaired = true;
            self.repairs.forget()?;
        } else if done.found.root_matches && damages.len() <= REPAIRS_MAX {
            done.repaired = self.put_back(&mut damages, generation, root)?;
            done.awaited = damages.len() as u64;
            self.repairs.set(&self.state, damages)?;
        }
        Ok(done)
    }

    fn note_clean(&mut self, now_ms: u64) -> Result<(), Problem> {
        self.repairs.forget()?;
        let state = State { scrubbed_ms: Some(now_ms), ..self.state.clone() };
        self.slots.commit(&state)?;
        self.state = state;
        Ok(())
    }

    fn look(
        &self,
        only: Option<&BTreeSet<u64>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Survey, Problem> {
        let size = self.state.size;
        let mut damages = Damages::new();
        // A part of it has no root.
        let mut tree = only.is_none().then(|| TreeHasher::new(&self.key));
        let report = self.survey(only, progress, &mut |index, found, listed| {
            let found = found.ok();
            match (&mut tree, found) {
                (Some(tree), Some(found)) => {
                    tree.push_zeros(index - tree.chunks());
                    tree.push(found);
                }
                _ => tree = None,
            }
            let is_damaged = found != Some(listed);
            if is_damaged && damages.len() <= REPAIRS_MAX {
                damages.insert(index, Damage { listed, found });
            }
            Ok(is_damaged)
        })?;
        let root = tree.filter(|_| report.size_found >= size).map(|mut tree| {
            tree.push_zeros(chunk_count(size) - tree.chunks());
            tree.into_root(size)
        });
        Ok(Survey { report, damages, root })
    }

    /// Gives the volume the size that was committed, if that can be done. What was cut off is
    /// zeros then, and what was added is gone.
    fn mend_size(&mut self) -> Result<bool, Problem> {
        let size = self.state.size;
        if self.volume.has_manager() {
            self.volume.unlock()?;
            self.volume.resize(size)?;
            self.volume.lock()?;
        } else if !self.volume.is_fixed() {
            self.volume.set_len(size)?;
            self.volume.settle()?;
        }
        Ok(self.check_size().is_ok())
    }

    /// Lists what stands there, a volume of `size` bytes, which leads to `root`.
    pub(crate) fn list_anew(&self, size: u64, root: Root) -> Result<(), Problem> {
        let ids = &self.ids;
        let chunks = 0..chunk_count(size);
        ids.truncate(chunks.end)?;
        walk(&self.key, &self.volume, size, ids, chunks, |index, found, listed| {
            if found == listed { Ok(()) } else { ids.set(index, found) }
        })?;
        ids.settle()?;
        if ids.root(&self.key, size)? == root { Ok(()) } else { Err(Problem::ListDamaged) }
    }

    /// Puts those damaged chunks right of which the content is found, and takes them off the list.
    /// Returns how many they are.
    fn put_back(
        &mut self,
        damages: &mut Damages,
        generation: Generation,
        root: Root,
    ) -> Result<u64, Problem> {
        let size = self.state.size;
        let header = self.create_journal(PlanKind::Scan, Some(generation), self.state.volume)?;
        let mut session = Journaled::new(header, Some(size));
        let mut wanted: HashMap<ChunkId, Vec<u64>> = HashMap::new();
        for (index, Damage { listed, .. }) in &*damages {
            if listed.is_zero() {
                let record = Record::Zero { index: *index, count: 1 };
                session.append(&self.journal, &self.overlay, &record, &[])?;
            } else {
                wanted.entry(*listed).or_default().push(*index);
            }
        }
        self.bring_own(&mut wanted, damages, &mut session)?;
        self.bring_others(&mut wanted, &mut session)?;
        let before = damages.len();
        let left: HashSet<u64> = wanted.into_values().flatten().collect();
        damages.retain(|index, _| left.contains(index));
        let put = before - damages.len();
        if put == 0 {
            self.journal.clear()?;
            return Ok(0);
        }
        if self.overlay.root(&self.key, size, &self.ids)? != root {
            return Err(Problem::ListDamaged);
        }
        self.seal_and_apply(session, generation, size, root)?;
        self.keep_generation()?;
        Ok(put as u64)
    }

    /// Journals the wanted chunks that this replica has at another place as well.
    fn bring_own(
        &self,
        wanted: &mut HashMap<ChunkId, Vec<u64>>,
        damages: &Damages,
        session: &mut Journaled,
    ) -> Result<(), Problem> {
        let size = self.state.size;
        let mut places: HashMap<ChunkId, Vec<u64>> = HashMap::new();
        for entry in self.ids.entries(0..chunk_count(size)) {
            let (index, id) = entry?;
            if wanted.contains_key(&id) && !damages.contains_key(&index) {
                let places = places.entry(id).or_default();
                if places.len() < PLACES_MAX {
                    places.push(index);
                }
            }
        }
        let mut bytes = chunk_buf();
        for (id, places) in places {
            for index in places {
                read_chunk(&self.volume, size, index, &mut bytes)?;
                if self.bring(wanted, session, &id, &bytes)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Journals the wanted chunks that other replicas have.
    fn bring_others(
        &mut self,
        wanted: &mut HashMap<ChunkId, Vec<u64>>,
        session: &mut Journaled,
    ) -> Result<(), Problem> {
        let Some(mut other_replicas) = self.other_replicas.take() else { return Ok(()) };
        let ids: HashSet<ChunkId> = wanted.keys().copied().collect();
        let mut brought = Ok(());
        for id in &ids {
            let Some(bytes) = other_replicas.find(id) else { continue };
            match self.bring(wanted, session, id, &bytes) {
                Ok(true) => {}
                // The first place of this content may be the damaged one.
                Ok(false) => other_replicas.forget(id),
                Err(problem) => brought = Err(problem),
            }
        }
        let left: HashSet<ChunkId> = wanted.keys().copied().collect();
        if brought.is_ok() && !left.is_empty() {
            let take = &mut |id: &ChunkId, bytes: Vec<u8>| self.bring(wanted, session, id, &bytes);
            brought = other_replicas.search(&left, take);
        }
        self.other_replicas = Some(other_replicas);
        brought
    }

    /// Journals `bytes` for all damaged chunks that they belong to, if they are what is wanted.
    fn bring(
        &self,
        wanted: &mut HashMap<ChunkId, Vec<u64>>,
        session: &mut Journaled,
        id: &ChunkId,
        bytes: &[u8],
    ) -> Result<bool, Problem> {
        let (data, zero) = (BlockMask::ALL, BlockMask::NONE);
        let patch = |index| Patch { index, data, zero, id: *id };
        if !patch(0).is_named(&self.key, bytes) {
            return Ok(false);
        }
        for index in wanted.remove(id).unwrap_or_default() {
            let record = Record::Chunk { patch: patch(index), after: *id };
            session.append(&self.journal, &self.overlay, &record, bytes)?;
        }
        Ok(true)
    }
}
