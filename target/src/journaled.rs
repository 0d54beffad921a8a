//! Receiving an increment through the journal: the volume stays as it is until all of it
//! has come and been proven.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    ops::Range,
};

use driftline_chunking::{DataRuns, TreeHasher};
use driftline_extent::{
    CHUNK_LEN, ChunkId, Generation, Missing, Plan, PlanKind, Resume, VOLUME_LEN_MAX, VolumeId,
    chunk_count,
};

use crate::{
    Disk, Problem, Replica,
    chunks::{Patch, chunk_buf, prove_span, read_chunk, walk},
    ids::Overlay,
    journal::{Header, Journal, Position, Record},
    replica::{Session, remember},
    state::{State, Status},
};

/// An increment that is being received through the journal.
#[derive(Debug)]
pub(crate) struct Journaled {
    pub(crate) header: Header,
    pub(crate) end: Position,
    /// Up to where the journal was last synced, in bytes.
    synced: u64,
    /// Where the last chunk with data starts, in bytes: the volume must reach beyond it.
    pub(crate) last_data: Option<u64>,
    /// Size at the tip, if the plan said it.
    pub(crate) size: Option<u64>,
    /// The last spans that were compared, each chunk of which was proven to be what was
    /// committed, with the ids of those that the base has.
    proven: VecDeque<(Range<u64>, Vec<ChunkId>)>,
    /// Where the base may hold data.
    data: DataRuns,
}

/// What stands where a chunk is to be changed.
pub(crate) struct Base {
    /// Its name in the books.
    pub(crate) listed: ChunkId,
    /// Whether it is something else, that may be replaced.
    pub(crate) damaged: bool,
}

/// How many compared spans are remembered. A source announces few before it hears of the first.
const PROVEN_MAX: usize = 16;

impl Journaled {
    /// An increment of which nothing has come.
    pub(crate) fn new(header: Header, size: Option<u64>) -> Self {
        Self::from(header, Position::START, size, None)
    }

    /// An increment of which what ends here has come.
    fn from(header: Header, end: Position, size: Option<u64>, last_data: Option<u64>) -> Self {
        let (synced, proven) = (Position::START.at, VecDeque::new());
        Self { header, end, synced, last_data, size, proven, data: DataRuns::default() }
    }

    /// The ids of these chunks that the base has, if they were proven a moment ago.
    fn proven_ids(&self, chunks: &Range<u64>) -> Option<&[ChunkId]> {
        let covers = |span: &Range<u64>| span.start <= chunks.start && chunks.end <= span.end;
        let (span, ids) = self.proven.iter().find(|(span, _)| covers(span))?;
        let place = |index: u64| ((index - span.start) as usize).min(ids.len());
        Some(&ids[place(chunks.start)..place(chunks.end)])
    }

    /// Appends a record and notes in the overlay what it leads to. Returns where the payload
    /// stands.
    pub(crate) fn append<D: Disk>(
        &mut self,
        journal: &Journal<D>,
        overlay: &Overlay<D>,
        record: &Record,
        payload: &[u8],
    ) -> Result<u64, Problem> {
        let at = journal.append(&self.header, &mut self.end, record, payload)?;
        self.last_data = self.last_data.max(record.data_at());
        expect(overlay, record)?;
        Ok(at)
    }
}

/// An increment that was cut off in an earlier session.
#[derive(Debug)]
pub(crate) struct Unsealed {
    header: Header,
    watermark: u64,
}

impl Unsealed {
    pub(crate) const fn resume(&self) -> Resume {
        Resume { base: self.header.base, tip: self.header.tip, from: self.watermark }
    }

    /// Whether `plan` is the one that was cut off.
    pub(crate) fn is_of(&self, plan: &Plan) -> bool {
        let Header { kind, base, tip, volume, .. } = &self.header;
        // An increment may end without a root that would tell one tip from another.
        let named = plan.tip.is_some() && plan.base == *base;
        *kind == plan.kind
            && *tip == plan.tip
            && *volume == plan.volume
            && (named || plan.kind != PlanKind::Incremental)
    }
}

/// The increment that an earlier session left in the journal, if it can go on from `state`.
pub(crate) fn find_unsealed<D: Disk>(
    journal: &Journal<D>,
    state: &State,
) -> Result<Option<Unsealed>, Problem> {
    let header = journal.header()?.filter(|header| header.starts_from(state));
    let Some(header) = header else { return Ok(None) };
    let mut watermark = None;
    let mut records = journal.read(&header);
    while let Some(record) = records.next()? {
        if let Record::Mark { watermark: at } = record {
            watermark = Some(at);
        }
    }
    Ok(watermark.map(|watermark| Unsealed { header, watermark }))
}

impl<D: Disk> Replica<D> {
    /// Takes stock of a volume whose content is to be overwritten by agreement: lists the
    /// ids of what stands there. A generation is given up with the first difference from it.
    pub(crate) fn adopt(&mut self) -> Result<(), Problem> {
        self.give_up_stuck()?;
        self.journal.clear()?;
        // The epoch that follows may have been given up before, with a journal of its own.
        self.journal.sync()?;
        self.overlay.clear()?;
        let found = self.volume.len()?.min(VOLUME_LEN_MAX);
        let size = match self.state.status {
            Status::Direct { .. } => found,
            // Of a device that is larger, only what was committed is looked at.
            _ if self.volume.is_fixed() => self.state.size.min(found),
            Status::Complete { .. } | Status::Adopted => found,
        };
        let epoch = self.state.epoch + 1;
        let (status, kept) = (Status::Adopted, false);
        let adopted = State { epoch, size, status, kept, ..self.state.clone() };
        let mut give_up = |state: &mut State| {
            if *state == adopted {
                return Ok(());
            }
            *state = adopted.clone();
            self.slots.commit(state)
        };
        let listed = match self.state.root() {
            Some(root) if size == self.state.size => self.ids.root(&self.key, size)? == root,
            _ => false,
        };
        if !listed {
            give_up(&mut self.state)?;
        }
        self.ids.truncate(chunk_count(size))?;
        let chunks = 0..chunk_count(size);
        let (state, ids) = (&mut self.state, &self.ids);
        let mut stands = TreeHasher::new(&self.key);
        walk(&self.key, &self.volume, size, ids, chunks, |index, found, listed| {
            stands.push_zeros(index - stands.chunks());
            stands.push(found);
            if found == listed {
                return Ok(());
            }
            give_up(state)?;
            ids.set(index, found)
        })?;
        stands.push_zeros(chunk_count(size) - stands.chunks());
        self.ids.settle()?;
        // What the list leaves out would stay on the volume as it is.
        if self.ids.root(&self.key, size)? != stands.into_root(size) {
            return Err(Problem::ListReadBack);
        }
        // What stands here is what is listed now. Not before: until the generation is given up, its
        // damage may still be replaced without consent.
        self.repairs.forget()?;
        tracing::info!(volume = self.name, size, "hashed what the target holds now");
        Ok(())
    }

    /// Begins an increment, or goes on with one, and returns the chunk to start at.
    pub(crate) fn begin_journaled(
        &mut self,
        plan: &Plan,
        unsealed: Option<Unsealed>,
    ) -> Result<u64, Problem> {
        self.overlay.clear()?;
        // A volume without snapshots may have become shorter than what came of it.
        let fits = |cut: &Unsealed| plan.size.is_none_or(|size| cut.watermark <= chunk_count(size));
        if let Some(Unsealed { header, .. }) = unsealed.filter(fits)
            && let Some((watermark, session)) = self.take_up(header, plan.size)?
        {
            self.session = Session::Journaled(Box::new(session));
            self.goes_on_unnamed = plan.tip.is_none();
            return Ok(watermark);
        }
        let header = self.create_journal(plan.kind, plan.tip, plan.volume)?;
        self.session = Session::Journaled(Box::new(Journaled::new(header, plan.size)));
        Ok(0)
    }

    /// Begins a journal of what starts from the state as it is.
    pub(crate) fn create_journal(
        &mut self,
        kind: PlanKind,
        tip: Option<Generation>,
        volume: Option<VolumeId>,
    ) -> Result<Header, Problem> {
        let header = Header {
            kind,
            replica: self.state.replica,
            epoch: self.state.epoch,
            nonce: self.draw(),
            base: self.state.generation(),
            tip,
            volume,
            base_size: self.state.size,
        };
        self.journal.create(&header)?;
        Ok(header)
    }

    /// Takes up the journal at the last mark before which everything is proven:
    /// rebuilds the overlay and forgets what came after, which will come again.
    fn take_up(
        &mut self,
        header: Header,
        size: Option<u64>,
    ) -> Result<Option<(u64, Journaled)>, Problem> {
        let mut last = None;
        let mut payload = Vec::new();
        let mut records = self.journal.read(&header);
        while let Some(record) = records.next_proven(&self.key, &mut payload)? {
            if let Record::Mark { watermark } = record {
                last = Some((watermark, records.position()));
            }
        }
        let Some((watermark, end)) = last else { return Ok(None) };
        self.journal.truncate(&end)?;
        let mut last_data = None;
        let mut received = HashMap::new();
        let mut records = self.journal.read(&header);
        let mut buf = chunk_buf();
        while let Some(record) = records.next()? {
            expect(&self.overlay, &record)?;
            last_data = last_data.max(record.data_at());
            // What stood there was proven when the record was made, and may have changed since.
            match record {
                Record::Chunk { patch, .. } => {
                    self.read_base(patch.index, &mut buf)?;
                    remember(&mut received, patch.id, records.payload_at());
                }
                Record::Zero { index, count } => {
                    for index in index..index + count {
                        self.read_base(index, &mut buf)?;
                    }
                }
                Record::Mark { .. } => {}
            }
        }
        self.received = received;
        Ok(Some((watermark, Journaled::from(header, end, size, last_data))))
    }

    /// Reads a chunk and proves that it is what was committed. Returns its id.
    fn read_committed(&self, index: u64, buf: &mut [u8]) -> Result<ChunkId, Problem> {
        match self.read_base(index, buf)? {
            Base { listed, damaged: false } => Ok(listed),
            Base { damaged: true, .. } => Err(Problem::Modified { offset: index * CHUNK_LEN }),
        }
    }

    /// Reads a chunk that is to be changed. It is what was committed, or damage that may be
    /// replaced and is still what it was, of which nothing is handed out.
    pub(crate) fn read_base(&self, index: u64, buf: &mut [u8]) -> Result<Base, Problem> {
        let listed = self.ids.get(index)?;
        let read = read_chunk(&self.volume, self.state.size, index, buf);
        let found = match read {
            Ok(()) => Some(self.key.id(buf)),
            Err(_) if self.repairs.contains(index) => None,
            Err(problem) => return Err(problem),
        };
        if found == Some(listed) {
            return Ok(Base { listed, damaged: false });
        }
        if self.repairs.allow(index, listed, found) {
            buf.fill(0);
            return Ok(Base { listed, damaged: true });
        }
        Err(Problem::Modified { offset: index * CHUNK_LEN })
    }

    /// As [`read_base`](Self::read_base): damage is no base for a part of a chunk.
    fn read_base_of(&self, patch: &Patch, buf: &mut [u8]) -> Result<Base, Problem> {
        let base = self.read_base(patch.index, buf)?;
        if base.damaged && !patch.is_whole() {
            return Err(Problem::Modified { offset: patch.offset() });
        }
        Ok(base)
    }

    /// The id of a chunk that was proven to be what was committed a moment ago, with its span.
    fn proven(&self, index: u64) -> Option<ChunkId> {
        let Session::Journaled(session) = &self.session else { return None };
        let ids = session.proven_ids(&(index..index + 1))?;
        // What lies beyond the end is zeros.
        Some(ids.first().copied().unwrap_or(ChunkId::ZERO))
    }

    pub(crate) fn lacks_patch(&mut self, patch: &Patch, narrow: bool) -> Result<Missing, Problem> {
        let proven = self.proven(patch.index);
        if patch.data.is_all() && proven == Some(patch.id) {
            return Ok(Missing::Nothing);
        }
        let mut chunk = chunk_buf();
        let listed = if let Some(listed) = proven {
            read_chunk(&self.volume, self.state.size, patch.index, &mut chunk)?;
            listed
        } else {
            let base = self.read_base_of(patch, &mut chunk)?;
            if base.damaged {
                return self.lacks_damaged(patch);
            }
            base.listed
        };
        let here = patch.data.is_empty() || patch.is_in(&self.key, &chunk, listed);
        if here || self.received_payload(patch)?.is_some() {
            return Ok(Missing::Nothing);
        }
        if !listed.is_zero()
            && let Some(bytes) = self.found_in_others(patch)
        {
            return Ok(self.promise(patch, bytes));
        }
        // Nothing is saved by telling hashes of zeros.
        if listed.is_zero() {
            return Ok(self.missing_in_others(patch, narrow));
        }
        let bytes = patch.blocks_of(chunk);
        Ok(if narrow { self.tell(patch, bytes, true) } else { Missing::All })
    }

    /// What is lacking of a chunk of which nothing can be used.
    fn lacks_damaged(&mut self, patch: &Patch) -> Result<Missing, Problem> {
        if patch.data.is_empty() || self.received_payload(patch)?.is_some() {
            return Ok(Missing::Nothing);
        }
        Ok(self.missing_in_others(patch, false))
    }

    /// The data of `patch`, if it came with another chunk of this increment.
    fn received_payload(&self, patch: &Patch) -> Result<Option<Vec<u8>>, Problem> {
        let Some(at) = self.received.get(&patch.id).copied() else { return Ok(None) };
        self.journal.payload(&self.key, patch, at)
    }

    /// Whether what stands in a span is something else.
    pub(crate) fn lacks_span(
        &mut self,
        chunks: Range<u64>,
        digest: ChunkId,
    ) -> Result<bool, Problem> {
        if self.repairs.within(&chunks).next().is_some() {
            // Whatever the damage is like, each chunk is told, and looked at then.
            return Ok(true);
        }
        let Session::Journaled(session) = &mut self.session else { return Err(Problem::NoSession) };
        let mut tree = TreeHasher::new(&self.key);
        // A part of a span follows it; what is told again is looked at again.
        let is_part = session.proven.iter().all(|(span, _)| *span != chunks);
        if let Some(ids) = session.proven_ids(&chunks).filter(|_| is_part) {
            ids.iter().for_each(|id| tree.push(*id));
        } else {
            let (size, ids, data) = (self.state.size, &self.ids, &mut session.data);
            let found = prove_span(&self.key, &self.volume, size, ids, &chunks, data)?;
            found.iter().for_each(|id| tree.push(*id));
            session.proven.truncate(PROVEN_MAX - 1);
            session.proven.push_front((chunks, found));
        }
        Ok(tree.into_node() != digest)
    }

    /// Journals what `patch` makes of its chunk.
    pub(crate) fn record_patch(
        &mut self,
        patch: &Patch,
        data: Option<&[u8]>,
    ) -> Result<(), Problem> {
        let pins = self.pins.take_new(patch);
        // Whether it stands there was proven when that was asked for; a part of a chunk is
        // changed on top of what is there.
        let mut chunk = Vec::new();
        let Base { listed, damaged } = if patch.data.is_all() && !self.repairs.contains(patch.index)
        {
            Base { listed: self.ids.get(patch.index)?, damaged: false }
        } else {
            chunk = chunk_buf();
            self.read_base_of(patch, &mut chunk)?
        };
        let mut after = listed;
        let mut record = None;
        if damaged || !patch.is_in(&self.key, &chunk, listed) {
            let (bytes, changed) = match (data, pins) {
                (None, Some((bytes, changed))) => (Cow::from(bytes), changed),
                _ => (patch.take_data(data, || self.received_payload(patch))?, None),
            };
            after = patch.id;
            if !patch.data.is_all() {
                patch.change(&mut chunk, &bytes);
                after = self.key.id(&chunk);
            }
            record = Some(match changed {
                Some(grains) => {
                    let (patch, bytes) = patch.narrowed(&self.key, grains, &bytes);
                    (patch, Cow::from(bytes))
                }
                None => (*patch, bytes),
            });
        }
        match self.overlay.get(patch.index)? {
            // The same item again.
            Some(expected) if expected == after => return Ok(()),
            Some(_) => return Err(Problem::Conflict { offset: patch.offset() }),
            None => {}
        }
        let Some((patch, payload)) = record.filter(|_| damaged || after != listed) else {
            return Ok(());
        };
        let at = self.append(&Record::Chunk { patch, after }, &payload)?;
        remember(&mut self.received, patch.id, at);
        Ok(())
    }

    /// Journals that chunks become zero, as far as they are not: a run may cover all of a
    /// sparse volume.
    pub(crate) fn record_zero(&mut self, chunks: Range<u64>) -> Result<(), Problem> {
        for entry in self.overlay.entries(chunks.clone()) {
            let (index, after) = entry?;
            if !after.is_zero() {
                return Err(Problem::Conflict { offset: index * CHUNK_LEN });
            }
        }
        let mut buf = chunk_buf();
        // What may be replaced need not be listed as anything but zero.
        let awaited: Vec<u64> = self.repairs.within(&chunks).collect();
        for index in awaited {
            if self.overlay.get(index)?.is_none() && self.read_base(index, &mut buf)?.damaged {
                self.append(&Record::Zero { index, count: 1 }, &[])?;
            }
        }
        let mut next = chunks.start;
        let end = chunks.end.min(chunk_count(self.state.size));
        while let Some(run) = self.next_run_to_zero(next..end, &mut buf)? {
            next = run.end;
            self.append(&Record::Zero { index: run.start, count: run.end - run.start }, &[])?;
        }
        Ok(())
    }

    /// The first run of chunks in `chunks` that are not zero and not yet journaled to be,
    /// each proven to be what was committed.
    fn next_run_to_zero(
        &self,
        chunks: Range<u64>,
        buf: &mut [u8],
    ) -> Result<Option<Range<u64>>, Problem> {
        let mut run: Option<Range<u64>> = None;
        for entry in self.ids.entries(chunks) {
            let (index, _) = entry?;
            if run.as_ref().is_some_and(|run| run.end != index) {
                break;
            }
            if self.overlay.get(index)?.is_some() {
                if run.is_some() {
                    break;
                }
                continue;
            }
            self.read_committed(index, buf)?;
            run = Some(run.map_or(index, |run| run.start)..index + 1);
        }
        Ok(run)
    }

    pub(crate) fn record_mark(&mut self, watermark: u64) -> Result<(), Problem> {
        if watermark > chunk_count(VOLUME_LEN_MAX) {
            return Err(Problem::Malformed("a mark lies beyond the largest volume there is"));
        }
        self.append(&Record::Mark { watermark }, &[])?;
        let Session::Journaled(session) = &mut self.session else { return Ok(()) };
        if session.end.at - session.synced < self.checkpoint_len {
            return Ok(());
        }
        session.synced = session.end.at;
        self.journal.sync()
    }

    /// Appends to the journal of the current session. Returns where the payload stands.
    fn append(&mut self, record: &Record, payload: &[u8]) -> Result<u64, Problem> {
        match &mut self.session {
            Session::Idle | Session::Direct(_) => Err(Problem::NoSession),
            Session::Journaled(session) => {
                session.append(&self.journal, &self.overlay, record, payload)
            }
        }
    }
}

/// Notes in the overlay what a record leads to.
pub(crate) fn expect<D: Disk>(overlay: &Overlay<D>, record: &Record) -> Result<(), Problem> {
    match *record {
        Record::Chunk { patch, after } => overlay.set(patch.index, after),
        Record::Zero { index, count } => {
            (index..index + count).try_for_each(|index| overlay.set(index, ChunkId::ZERO))
        }
        Record::Mark { .. } => Ok(()),
    }
}
