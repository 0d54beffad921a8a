//! From an increment that has come whole to a sealed journal, and from there to the commit.

use driftline_extent::{
    BlockMask, CHUNK_LEN, ChunkId, Committed, Finish, Generation, PlanKind, Root, chunk_count,
};

use crate::{
    Disk, Problem, Replica,
    chunks::{Patch, chunk_buf, walk},
    journal::{Header, Record, Seal},
    journaled::{Base, Journaled},
    sparse::Reserve,
};

/// Bytes that a commit may need besides what the increment changes.
const BOOKS_ROOM: u64 = 64 << 10;

impl<D: Disk> Replica<D> {
    pub(crate) fn commit_journaled(
        &mut self,
        mut session: Journaled,
        finish: &Finish,
    ) -> Result<Committed, Problem> {
        let size = finish.size.or(session.size).unwrap_or(self.state.size);
        self.volume.check_room(size)?;
        let root = self.prove_root(&mut session, size, finish.root).inspect_err(|problem| {
            // It would not lead anywhere else the next time.
            if !matches!(problem, Problem::Io { .. }) {
                let _ = self.journal.clear();
            }
        })?;
        let zeroed = self.check_loss(size)?;
        self.seal_and_apply(session, finish.tip, size, root)?;
        Ok(Committed { generation: finish.tip, root, size, zeroed: Some(zeroed) })
    }

    /// Seals a journal that is proven to lead to `root`, and does what it says.
    pub(crate) fn seal_and_apply(
        &mut self,
        session: Journaled,
        tip: Generation,
        size: u64,
        root: Root,
    ) -> Result<(), Problem> {
        let Journaled { header, end, .. } = session;
        let seal = Seal { header, tip, size, root, end };
        self.prove_journal(&seal)?;
        self.check_in_place()?;
        self.journal.commit(&seal)?;
        self.put_in_place(&seal)?;
        self.read_back_installed(&seal)?;
        if !self.list_leads_to(&seal)? {
            return Err(Problem::ListReadBack);
        }
        self.check_in_place()?;
        self.conclude(&seal)
    }

    /// Reads the journal back, and that the overlay says of each chunk what the journal does.
    /// Reserves storage for all that it will write: once it is sealed it has to be put in place.
    fn prove_journal(&self, seal: &Seal) -> Result<(), Problem> {
        let mut reserve = Reserve::new(&self.volume);
        self.journal.settle()?;
        self.overlay.0.settle()?;
        // Only the chunk that the end cuts may have a second record, which counts.
        let (cut, mut cut_after) = (seal.size / CHUNK_LEN, None);
        let mut records = self.journal.read(&seal.header);
        let mut payload = Vec::new();
        while let Some(record) = records.next_proven(&self.key, &mut payload)? {
            if let Record::Chunk { patch, .. } = record {
                patch.reserve(&mut reserve, seal.size, &payload)?;
            }
            let listed = match record {
                Record::Chunk { patch, after } if patch.index == cut => {
                    cut_after = Some(after);
                    true
                }
                Record::Chunk { patch, after } => self.overlay.get(patch.index)? == Some(after),
                Record::Zero { index, count } => self.overlay.are_zeroed(index..index + count)?,
                Record::Mark { .. } => true,
            };
            if !listed {
                return Err(Problem::ListReadBack);
            }
        }
        if records.position() != seal.end {
            return Err(Problem::JournalReadBack { at: records.position().at });
        }
        if cut_after.is_some() && self.overlay.get(cut)? != cut_after {
            return Err(Problem::ListReadBack);
        }
        let chunks = self.overlay.0.entries(0..chunk_count(seal.size));
        let listed = self.ids.reserve(chunks.map(|entry| entry.map(|(index, _)| index)))?;
        let written = reserve.finish()?;
        self.volume.check_available(written)?;
        self.volume.check_space_for(written + listed + BOOKS_ROOM)
    }

    /// That the volume and its books are still where they were opened. What is told as committed
    /// must be what the next open finds there.
    pub(crate) fn check_in_place(&self) -> Result<(), Problem> {
        self.volume.check_in_place()?;
        self.slots.check_in_place()?;
        self.ids.check_in_place()?;
        self.journal.check_in_place()
    }

    /// The root that the increment leads to, which must be `announced` if anything is.
    fn prove_root(
        &self,
        session: &mut Journaled,
        size: u64,
        announced: Option<Root>,
    ) -> Result<Root, Problem> {
        if announced.is_none() && session.header.kind != PlanKind::Incremental {
            return Err(Problem::MissingRoot);
        }
        if session.last_data.is_some_and(|last| last >= size) {
            return Err(Problem::BeyondEnd { size });
        }
        self.cut_last_chunk(session, size)?;
        self.check_cut_off(size)?;
        // A list that was damaged would lead to a wrong root without anyone noticing.
        if let Some(root) = self.state.root()
            && self.ids.root(&self.key, self.state.size)? != root
        {
            return Err(Problem::ListDamaged);
        }
        let found = self.overlay.root(&self.key, size, &self.ids)?;
        match announced {
            Some(expected) if expected != found => Err(Problem::WrongRoot { expected, found }),
            _ => Ok(found),
        }
    }

    /// That what lies beyond a new end is what was committed: it is lost as if it were
    /// overwritten, and no item spoke of it.
    fn check_cut_off(&self, size: u64) -> Result<(), Problem> {
        let chunks = chunk_count(size)..chunk_count(self.state.size);
        let (key, size, ids) = (&self.key, self.state.size, &self.ids);
        walk(key, &self.volume, size, ids, chunks, |index, found, listed| {
            if found == listed || self.repairs.allow(index, listed, Some(found)) {
                return Ok(());
            }
            Err(Problem::Modified { offset: index * CHUNK_LEN })
        })
    }

    /// Where the new end cuts a chunk, what lies beyond counts as zeros from now on.
    fn cut_last_chunk(&self, session: &mut Journaled, size: u64) -> Result<(), Problem> {
        let (index, kept) = (size / CHUNK_LEN, (size % CHUNK_LEN) as usize);
        let changed = self.overlay.get(index)?;
        if kept == 0 || (changed.is_none() && size >= self.state.size) {
            return Ok(());
        }
        let mut chunk = chunk_buf();
        let Base { listed, damaged } = self.read_base(index, &mut chunk)?;
        if damaged && changed.is_none() {
            return Err(Problem::Modified { offset: index * CHUNK_LEN });
        }
        match changed {
            Some(id) if id.is_zero() => chunk.fill(0),
            Some(_) => self.change_as_journaled(&session.header, index, &mut chunk)?,
            None => {}
        }
        chunk[kept..].fill(0);
        let after = self.key.id(&chunk);
        if after == changed.unwrap_or(listed) {
            return Ok(());
        }
        let (data, zero, id) = (BlockMask::NONE, BlockMask::NONE, ChunkId::ZERO);
        let patch = Patch { index, data, zero, id };
        let record = Record::Chunk { patch, after };
        session.append(&self.journal, &self.overlay, &record, &[]).map(drop)
    }

    /// Changes `chunk` in memory as the journal says of it.
    fn change_as_journaled(
        &self,
        header: &Header,
        index: u64,
        chunk: &mut [u8],
    ) -> Result<(), Problem> {
        let mut records = self.journal.read(header);
        while let Some(record) = records.next()? {
            let Record::Chunk { patch, .. } = record else { continue };
            if patch.index != index {
                continue;
            }
            let at = records.payload_at();
            let bytes = self.journal.payload(&self.key, &patch, at)?;
            patch.change(chunk, &bytes.ok_or(Problem::JournalReadBack { at })?);
        }
        Ok(())
    }
}
