//! Putting a sealed increment in place. Every step can be done again: after a crash the
//! whole of it is, from the start.

use std::sync::Arc;

use driftline_chunking::ChunkKey;
use driftline_extent::{CHUNK_LEN, ChunkId, Extent, PlanKind, VOLUME_LEN_MAX, chunk_count};

use crate::{
    Disk, Problem, Replica,
    chunks::{bytes_of, chunk_buf, read_back, walk},
    journal::{Record, Seal},
    journaled::expect,
    sparse::Sparse,
    state::{State, Status},
    through::Through,
};

/// Chunks that are read back at once, on all cores.
const READ_BACK_CHUNKS: usize = 4096;

impl<D: Disk> Replica<D> {
    /// Completes the increment of a journal that was sealed when a session ended. Returns
    /// whether there was one.
    pub(crate) fn complete_sealed(&mut self) -> Result<bool, Problem> {
        // A process that was killed may have left all this in the cache only.
        self.journal.settle()?;
        // An epoch may come a second time, after the newer of two states was damaged.
        let seal = self.journal.seal()?.filter(|seal| seal.header.starts_from(&self.state));
        let Some(seal) = seal else { return Ok(false) };
        self.check_size_between(seal.header.base_size, seal.size)?;
        // Everything is proven before anything is written.
        self.overlay.clear()?;
        let mut records = self.journal.read(&seal.header);
        let mut payload = Vec::new();
        while let Some(record) = records.next_proven(&self.key, &mut payload)? {
            expect(&self.overlay, &record)?;
        }
        if records.position() != seal.end {
            return Err(Problem::JournalDamaged { at: records.position().at });
        }
        tracing::info!(
            volume = self.name, tip = %seal.tip,
            "completing an increment that was being applied"
        );
        match self.put_and_prove(&seal) {
            // The damage is still there, and can be found again: it is no half of anything.
            Err(problem @ Problem::ReadBack { .. }) if self.is_repair(&seal) => {
                tracing::error!(volume = self.name, %problem, "damage was not repaired");
                self.journal.clear()?;
                return Ok(false);
            }
            done => done?,
        }
        self.conclude(&seal)?;
        Ok(true)
    }

    fn put_and_prove(&mut self, seal: &Seal) -> Result<(), Problem> {
        self.put_in_place(seal)?;
        if self.list_leads_to(seal)? {
            return self.read_back_installed(seal);
        }
        tracing::warn!(
            volume = self.name,
            "the list of chunk ids is damaged: reading the whole volume to make it again"
        );
        self.list_anew(seal.size, seal.root)
    }

    /// Reads through a sealed journal from now on, if there is one: what is told and read is the
    /// tip, wherever the volume and the list are between base and tip.
    pub(crate) fn read_through_sealed(&mut self) -> Result<(), Problem> {
        let seal = self.journal.seal()?.filter(|seal| seal.header.starts_from(&self.state));
        let Some(seal) = seal else { return Ok(()) };
        self.check_size_between(seal.header.base_size, seal.size)?;
        let key = ChunkKey::new(&self.state.chunk_key);
        let through = Arc::new(Through::open(self.journal.clone(), key, seal)?);
        self.state = through.seal().state_after(&self.state);
        self.volume.read_through(through.clone());
        self.ids.read_through(through);
        tracing::warn!(
            volume = self.name,
            "an increment was being applied, and the storage cannot be written: reading through \
             the journal"
        );
        Ok(())
    }

    /// Before a stuck increment is given up, the state says that nothing is known of what stands
    /// here: without its journal it would pass for the base.
    pub(crate) fn give_up_stuck(&mut self) -> Result<(), Problem> {
        if self.stuck.is_none() {
            return Ok(());
        }
        let (epoch, size) = (self.state.epoch + 1, self.volume.len()?.min(VOLUME_LEN_MAX));
        let size = if self.volume.is_fixed() { size.min(self.state.size) } else { size };
        let (status, kept) = (Status::Adopted, false);
        let state = State { epoch, size, status, kept, ..self.state.clone() };
        self.slots.commit(&state)?;
        (self.state, self.stuck) = (state, None);
        Ok(())
    }

    /// Whether a journal leads to what is there already, in the books.
    fn is_repair(&self, seal: &Seal) -> bool {
        let State { size, status, .. } = self.state;
        (status, size) == (Status::Complete { generation: seal.tip, root: seal.root }, seal.size)
    }

    /// That the volume's size is the base's, the tip's, or what a crash in between can leave.
    fn check_size_between(&self, base: u64, tip: u64) -> Result<(), Problem> {
        let found = self.volume.len()?;
        let fits = if self.volume.has_manager() {
            // It is grown after the journal is sealed, and cut after the commit.
            found >= base
        } else if self.volume.is_fixed() {
            found >= base.max(tip)
        } else {
            (base.min(tip)..=base.max(tip)).contains(&found)
        };
        if fits { Ok(()) } else { Err(Problem::SizeModified { found, expected: base }) }
    }

    /// Applies a sealed journal, whose overlay is complete, to the volume and the ids. Neither is
    /// read back here.
    pub(crate) fn put_in_place(&mut self, seal: &Seal) -> Result<(), Problem> {
        self.volume.unlock()?;
        self.grow(seal.header.base_size, seal.size)?;
        self.write_records(seal)?;
        if !self.volume.is_fixed() {
            self.volume.set_len(seal.size)?;
        }
        self.volume.settle()?;
        self.ids.truncate(chunk_count(seal.size))?;
        self.ids.set_all(self.overlay.entries(0..chunk_count(seal.size)))?;
        self.ids.settle()
    }

    /// Whether the list of ids, once an increment is in place, is what was sealed.
    pub(crate) fn list_leads_to(&self, seal: &Seal) -> Result<bool, Problem> {
        Ok(self.ids.root(&self.key, seal.size)? == seal.root)
    }

    /// Commits what a sealed journal led to, now that it is in place.
    pub(crate) fn conclude(&mut self, seal: &Seal) -> Result<(), Problem> {
        let state = seal.state_after(&self.state);
        self.slots.commit(&state)?;
        let base = self.state.root();
        self.state = state;
        // Of what compared all, nothing is left.
        let noted = match seal.header.kind {
            PlanKind::Incremental => self.repairs.follow(&self.state, &self.overlay),
            _ => self.repairs.forget(),
        };
        if let Err(problem) = &noted {
            tracing::warn!(volume = self.name, %problem, "cannot note which damage is left");
        }
        self.tell_others(base, |this, chunks| Box::new(this.overlay.entries(chunks)));
        // It is committed. What is left behind is known by its epoch to be a leftover.
        if let Err(problem) = self.journal.clear().and_then(|()| self.overlay.clear()) {
            tracing::warn!(volume = self.name, %problem, "cannot clear the journal");
        }
        match noted {
            // Storage that changes what is written to it must not end in success.
            Err(problem @ Problem::RepairReadBack) => Err(problem),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What is new at the end of the volume is zeros, whatever stands there on a device.
    fn grow(&mut self, base: u64, size: u64) -> Result<(), Problem> {
        let Some(grown) = Extent::from_bounds(base, size) else { return Ok(()) };
        if !self.volume.is_fixed() {
            return self.volume.set_len(size);
        }
        // What a manager adds is zeros already.
        if let Some(there) = grown.clamp(self.volume.len()?) {
            self.volume.zero(there)?;
        }
        self.volume.reach(size)
    }

    fn write_records(&self, seal: &Seal) -> Result<(), Problem> {
        let mut records = self.journal.read(&seal.header);
        let mut payload = Vec::new();
        let mut volume = Sparse::new(&self.volume);
        while records.position() != seal.end {
            let at = records.position().at;
            match records.next_proven(&self.key, &mut payload)? {
                None => return Err(Problem::JournalDamaged { at }),
                Some(Record::Chunk { patch, .. }) => {
                    patch.write(&mut volume, seal.size, &payload)?;
                }
                Some(Record::Zero { index, count }) => {
                    if let Some(extent) = bytes_of(&(index..index + count), seal.size) {
                        volume.zero(extent)?;
                    }
                }
                Some(Record::Mark { .. }) => {}
            }
        }
        volume.finish()
    }

    /// Reads everything that was written, and compares it with what it should be.
    pub(crate) fn read_back_installed(&self, seal: &Seal) -> Result<(), Problem> {
        let (key, volume, size) = (&self.key, &self.volume, seal.size);
        let mut written = self.overlay.entries(0..chunk_count(size));
        loop {
            let some: Result<Vec<_>, Problem> = written.by_ref().take(READ_BACK_CHUNKS).collect();
            let (indices, expected): (Vec<u64>, Vec<ChunkId>) = some?.into_iter().unzip();
            if indices.is_empty() {
                break;
            }
            let found = volume.name_listed(key, size, &indices)?;
            let mut pairs = indices.into_iter().zip(found.iter().zip(&expected));
            if let Some((index, _)) = pairs.find(|(_, (found, expected))| found != expected) {
                return Err(Problem::ReadBack { offset: index * CHUNK_LEN });
            }
        }
        let mut buf = chunk_buf();
        let base = seal.header.base_size;
        if size <= base {
            return Ok(());
        }
        if !base.is_multiple_of(CHUNK_LEN) {
            let index = base / CHUNK_LEN;
            let expected = match self.overlay.get(index)? {
                Some(id) => id,
                None => self.ids.get(index)?,
            };
            read_back(key, volume, size, index, expected, &mut buf)?;
        }
        let grown = chunk_count(base)..chunk_count(size);
        walk(key, volume, size, &self.overlay.0, grown, |index, found, _| {
            let expected = self.overlay.get(index)?.unwrap_or(ChunkId::ZERO);
            if found == expected {
                return Ok(());
            }
            Err(Problem::ReadBack { offset: index * CHUNK_LEN })
        })
    }
}
