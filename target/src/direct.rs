//! Receiving a first copy straight onto the volume, under a state that says so.
//!
//! There is nothing yet that a crash could damage, so a journal would only write everything
//! twice. The chunks of a first copy come gapless and ascending; whenever enough of them have
//! come they are synced, read back, and the watermark in the state moves up.

use std::{borrow::Cow, ops::Range};

use driftline_extent::{
    CHUNK_LEN, ChunkId, Committed, Finish, Missing, Plan, VOLUME_LEN_MAX, chunk_count,
};

use crate::{
    Disk, Problem, Replica,
    chunks::{Patch, bytes_of, chunk_buf, read_chunk, room_in, walk},
    replica::{Session, remember},
    sparse::Sparse,
    state::{State, Status},
};

/// A first copy that is being received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direct {
    /// Size of the volume, if the plan said it.
    size: Option<u64>,
    /// Chunks below this were received in an earlier session.
    began: u64,
    /// Chunks below this were received.
    next: u64,
    /// Chunks below this are durable and were read back.
    proven: u64,
    /// Bytes received since then.
    unproven_bytes: u64,
}

impl<D: Disk> Replica<D> {
    /// Begins a first copy, or goes on with one, and returns the chunk to start at.
    pub(crate) fn begin_direct(&mut self, plan: &Plan) -> Result<u64, Problem> {
        let from = self.direct_from(plan)?;
        // Damage that was of a state which is damaged itself, where there was one.
        self.repairs.forget()?;
        if from == 0 {
            let state = State {
                volume: plan.volume,
                size: plan.size.unwrap_or(0),
                status: Status::Direct { tip: plan.tip, watermark: 0 },
                kept: false,
                ..self.state.clone()
            };
            // Before anything else is touched, and before the source hears of the chunk key
            // as something that lasts.
            self.slots.commit(&state)?;
            self.state = state;
        }
        self.volume.make(plan.size)?;
        self.volume.unlock()?;
        if let Some(size) = plan.size {
            self.volume.reach(size)?;
        }
        if !self.volume.is_fixed() {
            // What came of the rest before comes again; what is not written then is zeros.
            let kept = bytes_of(&(0..from), self.volume.len()?).map_or(0, |kept| kept.end());
            self.volume.set_len(kept)?;
            if let Some(size) = plan.size {
                self.volume.set_len(size)?;
            }
        }
        self.ids.truncate(from)?;
        self.goes_on_unnamed = from > 0 && plan.tip.is_none();
        self.session = Session::Direct(Direct {
            size: plan.size,
            began: from,
            next: from,
            proven: from,
            unproven_bytes: 0,
        });
        Ok(from)
    }

    /// Where a first copy goes on: at the watermark, if it is the same copy and the volume
    /// still reaches that far.
    fn direct_from(&self, plan: &Plan) -> Result<u64, Problem> {
        let Status::Direct { tip, watermark } = self.state.status else { return Ok(0) };
        let same = tip == plan.tip && self.state.volume == plan.volume;
        // A volume without snapshots may have become shorter than what came of it.
        let same = same && plan.size.is_none_or(|size| watermark <= chunk_count(size));
        let proven = bytes_of(&(0..watermark), plan.size.unwrap_or(u64::MAX));
        let there = proven.is_none_or(|proven| proven.end() <= self.volume.len().unwrap_or(0));
        Ok(if same && there { watermark } else { 0 })
    }

    fn direct(&self) -> Result<Direct, Problem> {
        match &self.session {
            Session::Direct(direct) => Ok(*direct),
            Session::Idle | Session::Journaled(_) => Err(Problem::NoSession),
        }
    }

    pub(crate) fn lacks_directly(
        &mut self,
        patch: &Patch,
        narrow: bool,
    ) -> Result<Missing, Problem> {
        let here = patch.data.is_empty() || self.received_chunk(patch)?.is_some();
        Ok(if here { Missing::Nothing } else { self.missing_in_others(patch, narrow) })
    }

    /// The data of `patch`, if it stands in another chunk already.
    fn received_chunk(&self, patch: &Patch) -> Result<Option<Vec<u8>>, Problem> {
        let Some(index) = self.received.get(&patch.id).copied() else { return Ok(None) };
        let mut chunk = chunk_buf();
        read_chunk(&self.volume, self.direct_len(&self.direct()?)?, index, &mut chunk)?;
        Ok(patch.is_named(&self.key, &chunk).then_some(chunk))
    }

    /// How far the volume reaches, as far as it is known.
    fn direct_len(&self, direct: &Direct) -> Result<u64, Problem> {
        direct.size.map_or_else(|| self.volume.len(), Ok)
    }

    /// Whether zeros stand at this chunk and behind it: a file was cut where this session begins.
    fn is_untouched(&self, direct: &Direct, index: u64) -> bool {
        index >= direct.next && !self.volume.is_fixed()
    }

    pub(crate) fn write_directly(
        &mut self,
        patch: &Patch,
        data: Option<&[u8]>,
    ) -> Result<(), Problem> {
        let direct = self.direct()?;
        covers(&direct, patch.index)?;
        let bytes = match (data, self.pins.take_new(patch)) {
            (None, Some((bytes, _))) => Cow::from(bytes),
            _ => patch.take_data(data, || self.received_chunk(patch))?,
        };
        // A whole copy names everything: what it does not name is zero.
        let (chunk, id) = if patch.data.is_all() {
            (bytes, patch.id)
        } else {
            let mut chunk = chunk_buf();
            patch.change(&mut chunk, &bytes);
            let id = self.key.id(&chunk);
            (Cow::from(chunk), id)
        };
        if direct.size.is_none() {
            self.volume.reach_beyond(patch.offset() + CHUNK_LEN)?;
        }
        let kept = room_in(&self.volume, direct.size, patch.offset(), &chunk)?;
        if self.is_untouched(&direct, patch.index) {
            self.volume.write_over_zeros(patch.offset(), &chunk[..kept])?;
        } else {
            let mut volume = Sparse::new(&self.volume);
            volume.write(patch.offset(), &chunk[..kept])?;
            volume.finish()?;
        }
        // The list is zero ahead, and stays a hole where it can.
        if !id.is_zero() || patch.index < direct.next {
            self.ids.set(patch.index, id)?;
        }
        if patch.data.is_all() {
            remember(&mut self.received, id, patch.index);
        }
        self.advance(direct, patch.index..patch.index + 1, CHUNK_LEN)
    }

    pub(crate) fn zero_directly(&mut self, chunks: Range<u64>) -> Result<(), Problem> {
        let direct = self.direct()?;
        covers(&direct, chunks.start)?;
        let written = if self.volume.is_fixed() { chunks.end } else { direct.next };
        let below = chunks.start..chunks.end.min(written);
        if !below.is_empty()
            && let Some(extent) = bytes_of(&below, self.direct_len(&direct)?)
        {
            self.volume.zero(extent)?;
        }
        for entry in self.ids.entries(chunks.clone()) {
            self.ids.set(entry?.0, ChunkId::ZERO)?;
        }
        self.advance(direct, chunks, 0)
    }

    /// Notes that `chunks` have come, `bytes` of data with them.
    fn advance(&mut self, direct: Direct, chunks: Range<u64>, bytes: u64) -> Result<(), Problem> {
        let mut direct = Direct {
            next: direct.next.max(chunks.end),
            unproven_bytes: direct.unproven_bytes + bytes,
            // What came again is read back again.
            proven: direct.proven.min(chunks.start),
            ..direct
        };
        if direct.unproven_bytes >= self.checkpoint_len {
            let mut next = direct.next;
            if self.volume.is_fixed() {
                // Zeros may have come for what a device does not reach yet.
                next = next.min(chunk_count(self.volume.len()?));
            }
            self.prove_directly(direct.proven..next, self.direct_len(&direct)?)?;
            let Status::Direct { tip, .. } = self.state.status else {
                return Err(Problem::NoSession);
            };
            self.state.status = Status::Direct { tip, watermark: next };
            self.slots.commit(&self.state)?;
            direct = Direct { proven: next, unproven_bytes: 0, ..direct };
        }
        self.session = Session::Direct(direct);
        Ok(())
    }

    /// Makes what was received durable, and reads `chunks` back.
    fn prove_directly(&self, chunks: Range<u64>, size: u64) -> Result<(), Problem> {
        self.volume.settle()?;
        self.ids.settle()?;
        walk(&self.key, &self.volume, size, &self.ids, chunks, |index, found, listed| {
            if found == listed {
                return Ok(());
            }
            Err(Problem::ReadBack { offset: index * CHUNK_LEN })
        })
    }

    /// Has the next copy start over: what is below the watermark may be of another time, or of
    /// another disk.
    fn start_over(&mut self) -> Result<(), Problem> {
        self.state.status = Status::Direct { tip: None, watermark: 0 };
        self.slots.commit(&self.state)
    }

    pub(crate) fn commit_direct(
        &mut self,
        direct: Direct,
        finish: &Finish,
    ) -> Result<Committed, Problem> {
        // A source that has not seen what an earlier session delivered cannot know the root.
        if finish.root.is_none() && direct.began == 0 {
            return Err(Problem::MissingRoot);
        }
        let size = finish.size.or(direct.size);
        let size = size.ok_or(Problem::Malformed("a whole copy ended without its size"))?;
        self.volume.check_room(size)?;
        let count = chunk_count(size);
        if direct.next < count {
            return Err(Problem::Uncovered { offset: direct.next * CHUNK_LEN });
        }
        if self.ids.entries(count..chunk_count(VOLUME_LEN_MAX)).next().transpose()?.is_some() {
            self.start_over()?;
            return Err(Problem::BeyondEnd { size });
        }
        let found = self.ids.root(&self.key, size)?;
        if let Some(expected) = finish.root.filter(|expected| *expected != found) {
            self.start_over()?;
            return Err(Problem::WrongRoot { expected, found });
        }
        self.volume.reach(size)?;
        if !self.volume.is_fixed() {
            self.volume.set_len(size)?;
        }
        self.ids.truncate(count)?;
        // The end may cut the last chunk only now.
        let unproven = direct.proven.min(count.saturating_sub(1))..count;
        if let Err(problem) = self.prove_directly(unproven, size) {
            if matches!(problem, Problem::ReadBack { .. }) {
                self.start_over()?;
            }
            return Err(problem);
        }
        // The root was made before the list was settled, in part from the cache.
        if self.ids.root(&self.key, size)? != found {
            self.start_over()?;
            return Err(Problem::ListReadBack);
        }
        self.check_in_place()?;
        let state = State {
            epoch: self.state.epoch + 1,
            size,
            status: Status::Complete { generation: finish.tip, root: found },
            kept: false,
            ..self.state.clone()
        };
        self.slots.commit(&state)?;
        self.state = state;
        self.tell_others(None, |_, _| Box::new(std::iter::empty()));
        Ok(Committed { generation: finish.tip, root: found, size, zeroed: Some(0) })
    }
}

/// That nothing is left out between what came before and chunk `index`.
const fn covers(direct: &Direct, index: u64) -> Result<(), Problem> {
    if index <= direct.next {
        return Ok(());
    }
    Err(Problem::Uncovered { offset: direct.next * CHUNK_LEN })
}
