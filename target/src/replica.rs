//! The replica: what it is made of, how it is opened, and which offers it accepts.

use std::{collections::HashMap, fmt, ops::Range, path::PathBuf, sync::Arc};

use driftline_chunking::{ChunkKey, is_zero};
use driftline_extent::{
    Begin, CHUNK_LEN, ChunkId, Committed, Finish, GrainMask, Item, Missing, Offer, Plan, PlanKind,
    Reason, Root, Scheme, Target, TargetState, VOLUME_LEN_MAX, Volume, chunk_count,
};

use crate::{
    Disk, Index, OtherReplicas, Problem, TargetError, Update, VerifyReport,
    chunks::{Patch, Valid, chunk_buf, validate},
    direct::Direct,
    ids::{IdList, Overlay},
    index::IndexView,
    journal::Journal,
    journaled::{Journaled, Unsealed},
    other_replicas::Entry,
    own::Guard,
    pins::{Pin, Pins},
    repair::Repairs,
    state::{Slots, State, Status},
    volume::VolumeStore,
};

/// How many ids of received data are remembered, so that equal data moves once.
const RECEIVED_MAX: usize = 64 * 1024;

/// How much of a first copy or an increment may have to come again after a power failure.
pub(crate) const CHECKPOINT_LEN: u64 = 256 << 20;

/// The six disks of a replica: the volume and the books beside it.
#[derive(Debug)]
pub struct Disks<D> {
    /// The replica itself.
    pub volume: D,
    /// Its state slots.
    pub state: D,
    /// Its journal.
    pub journal: D,
    /// The ids of its chunks.
    pub ids: D,
    /// The ids that the current increment leads to.
    pub overlay: D,
    /// The damage that a source may replace.
    pub repair: D,
}

/// A live target that is always at a generation. See the crate's documentation.
pub struct Replica<D: Disk> {
    pub(crate) name: String,
    pub(crate) seed: [u8; 32],
    pub(crate) drawn: u64,
    pub(crate) key: ChunkKey,
    pub(crate) volume: VolumeStore<D>,
    pub(crate) slots: Slots<D>,
    pub(crate) journal: Arc<Journal<D>>,
    pub(crate) ids: IdList<D>,
    pub(crate) overlay: Overlay<D>,
    /// The damage that a source may replace.
    pub(crate) repairs: Repairs<D>,
    pub(crate) state: State,
    /// An increment that was cut off.
    pub(crate) unsealed: Option<Unsealed>,
    /// Where data of this increment was put, by its id: a position in the journal, or the
    /// index of a chunk of the volume.
    pub(crate) received: HashMap<ChunkId, u64>,
    /// Where else a chunk may be found.
    pub(crate) other_replicas: Option<Box<dyn OtherReplicas>>,
    /// What the volume is like, if anything that can be read.
    pub(crate) like: Option<Box<dyn Volume + Send>>,
    /// What items are made of that were announced and have not come.
    pub(crate) pins: Pins,
    pub(crate) session: Session,
    /// The session goes on with what came earlier of a volume that nothing but its content
    /// names: that may be of another time.
    pub(crate) goes_on_unnamed: bool,
    /// After how many bytes of a first copy its watermark moves up.
    pub(crate) checkpoint_len: u64,
    pub(crate) poisoned: bool,
    /// Keeps others out for as long as the replica is open.
    pub(crate) guard: Option<Guard>,
    pub(crate) overwrite_forbidden: bool,
    /// How much of the data may go with one increment, in percent; `None` if all may.
    pub(crate) loss_max: Option<u8>,
    /// Why a sealed increment cannot be completed: only a copy over all of it leads on.
    pub(crate) stuck: Option<crate::opening::Stuck>,
    /// The storage cannot be written: nothing is.
    pub(crate) reads_only: bool,
}

/// How the current increment is received.
#[derive(Debug)]
pub(crate) enum Session {
    Idle,
    Direct(Direct),
    Journaled(Box<Journaled>),
}

/// How an offer will be received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Straight to the volume, which holds nothing.
    Direct,
    /// Through the journal.
    Journaled,
    /// Through the journal, after taking stock of what stands there.
    Adopting,
}

impl<D: Disk> Replica<D> {
    /// Keeps `guard` for as long as the replica is open.
    pub(crate) fn guarded_by(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Writes nothing from now on, and lets others in that read as well.
    pub(crate) fn shared(mut self) -> Result<Self, TargetError> {
        if let Some(guard) = &self.guard {
            guard.share().map_err(|problem| problem.of(&self.name))?;
        }
        self.reads_only = true;
        Ok(self)
    }

    /// Refuses copies over what stands here, whatever an offer agrees to.
    pub(crate) const fn forbid_overwrite(mut self) -> Self {
        self.overwrite_forbidden = true;
        self
    }

    /// Says what the volume is like: what of it is equal, or nearly, at the same place there need
    /// not be sent. It may change meanwhile, or fail to be read, and costs no more than time then.
    pub fn use_seed(&mut self, like: Box<dyn Volume + Send>) {
        self.like = Some(like);
    }

    /// Says where else a chunk may be found, by its name.
    pub fn look_in(&mut self, other_replicas: Box<dyn OtherReplicas>) {
        self.other_replicas = Some(other_replicas);
    }

    /// Names chunks under this key, unless some were named already.
    pub(crate) fn name_under(&mut self, secret: &[u8; 32]) {
        if self.slots.is_empty() {
            self.state.chunk_key = *secret;
            self.key = ChunkKey::new(secret);
        }
    }

    /// Looks for chunks in the index of all replicas, if this one names them under its key, and
    /// lists there what it holds, if that was not done.
    pub(crate) fn list_in(&mut self, index: &Arc<Index>, path: PathBuf) {
        if self.state.chunk_key != *index.chunk_key() {
            return;
        }
        let view = IndexView::new(index.clone(), path);
        let known = self.state.root().is_none_or(|tip| view.has(&self.state.replica, tip));
        self.look_in(Box::new(view));
        if !known {
            self.tell_others(None, |_, _| Box::new(std::iter::empty()));
        }
    }

    /// Tells where chunks are looked for what was committed. `changes` are those since `base`.
    pub(crate) fn tell_others(
        &mut self,
        base: Option<Root>,
        changes: impl FnOnce(&Self, Range<u64>) -> Box<dyn Iterator<Item = Entry> + '_>,
    ) {
        let (Some(tip), Some(mut other_replicas)) = (self.state.root(), self.other_replicas.take())
        else {
            return;
        };
        let chunks = chunk_count(self.state.size);
        other_replicas.committed(Update {
            replica: self.state.replica,
            base,
            tip,
            chunks,
            changes: &mut changes(self, 0..chunks),
            all: &mut self.ids.entries(0..chunks),
        });
        self.other_replicas = Some(other_replicas);
    }

    /// Looks for an item that the volume has nothing of where else it may be.
    pub(crate) fn missing_in_others(&mut self, patch: &Patch, narrow: bool) -> Missing {
        let like = self.like_chunk(patch.index).filter(|chunk| !is_zero(chunk));
        let like = like.map(|chunk| patch.blocks_of(chunk));
        if let Some(bytes) = like.clone().filter(|bytes| patch.is_named(&self.key, bytes)) {
            return self.promise(patch, bytes);
        }
        if let Some(bytes) = self.found_in_others(patch) {
            return self.promise(patch, bytes);
        }
        match like {
            Some(bytes) if narrow => self.tell(patch, bytes, false),
            _ => Missing::All,
        }
    }

    /// Keeps the data of an item that was found, so that nothing is lacking of it.
    pub(crate) fn promise(&mut self, patch: &Patch, bytes: Vec<u8>) -> Missing {
        let found = Pin::New { bytes, changed: None };
        if self.pins.keep(patch, found) { Missing::Nothing } else { Missing::All }
    }

    /// A whole chunk, from wherever it was found by its name, proven to be it.
    pub(crate) fn found_in_others(&mut self, patch: &Patch) -> Option<Vec<u8>> {
        let other_replicas = self.other_replicas.as_mut().filter(|_| patch.data.is_all())?;
        let bytes = other_replicas.find(&patch.id)?;
        if patch.is_named(&self.key, &bytes) {
            return Some(bytes);
        }
        other_replicas.forget(&patch.id);
        None
    }

    /// Tells the hashes of an old version of an item, and keeps that.
    pub(crate) fn tell(&mut self, patch: &Patch, bytes: Vec<u8>, own: bool) -> Missing {
        let hashes = self.key.grains(patch.data, &bytes);
        let kept = self.pins.keep(patch, Pin::Old { bytes, own });
        if kept { Missing::Unlike(hashes) } else { Missing::All }
    }

    /// The chunk at this index of what the volume is like.
    fn like_chunk(&mut self, index: u64) -> Option<Vec<u8>> {
        let like = self.like.as_ref()?;
        let offset = index * CHUNK_LEN;
        let len = like.size().saturating_sub(offset).min(CHUNK_LEN) as usize;
        let mut chunk = chunk_buf();
        match like.read_at(offset, &mut chunk[..len]) {
            Ok(()) => (len > 0).then_some(chunk),
            Err(error) => {
                tracing::warn!(volume = self.name, %error, "cannot read the seed");
                self.like = None;
                None
            }
        }
    }

    /// Sets how much of a first copy or an increment is received between two checkpoints, in
    /// bytes: so much has to come again after a crash. It is 256 MiB by itself.
    pub const fn checkpoint_every(&mut self, bytes: u64) {
        self.checkpoint_len = bytes;
    }

    /// Reads the whole replica again and compares it with what was committed. `progress`
    /// hears the offset that was reached, in bytes.
    ///
    /// A replica that holds no generation cannot be verified: that is an error.
    pub fn verify(&mut self, progress: &mut dyn FnMut(u64)) -> Result<VerifyReport, TargetError> {
        if self.poisoned {
            return Err(Problem::Poisoned.of(&self.name));
        }
        let report = self.check_usable().and_then(|()| self.verify_all(progress));
        report.map_err(|problem| problem.of(&self.name))
    }

    /// That the volume has the size that was committed to it.
    pub(crate) fn check_size(&self) -> Result<(), Problem> {
        let (found, expected) = (self.volume.len()?, self.state.size);
        let fits = match self.state.status {
            Status::Direct { .. } => true,
            _ if self.volume.is_fixed() => found >= expected,
            _ => found == expected,
        };
        if fits { Ok(()) } else { Err(Problem::SizeModified { found, expected }) }
    }

    /// That the volume has the size that was committed to it, and that nothing was written to
    /// it since it was kept: with `repairs`, nothing but damage that may be replaced.
    pub(crate) fn check_untouched(&self, repairs: bool) -> Result<(), Problem> {
        self.check_size()?;
        let Status::Complete { generation, .. } = self.state.status else { return Ok(()) };
        match self.volume.kept()? {
            Some(kept) if kept.generation != Some(generation) => {
                Err(Problem::NotKept { expected: generation, found: kept.generation })
            }
            // A storage that was not shut down may write to its own books when it comes back: only
            // what stands there decides.
            Some(kept) if kept.written && !self.is_as_known(repairs)? => {
                Err(Problem::Written { generation })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// 32 random bytes that were not drawn before.
    pub(crate) fn draw(&mut self) -> [u8; 32] {
        draw(&self.seed, &mut self.drawn)
    }

    /// Runs one call of a session; an error poisons the replica.
    pub(crate) fn run<T>(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<T, Problem>,
    ) -> Result<T, TargetError> {
        let result = if self.poisoned { Err(Problem::Poisoned) } else { call(self) };
        self.poisoned |= result.is_err();
        let result = result.map_err(|problem| match problem {
            Problem::Conflict { .. } | Problem::BeyondEnd { .. } | Problem::WrongRoot { .. }
                if self.goes_on_unnamed =>
            {
                Problem::Outdated { because: problem.into() }
            }
            _ => problem,
        });
        // What was received would go onto a base that is not there, or does not go with what follows
        // now: it cannot go on either.
        if matches!(
            result,
            Err(Problem::Modified { .. } | Problem::Conflict { .. } | Problem::Outdated { .. })
        ) {
            let _ = self.journal.clear();
        }
        result.map_err(|problem| problem.of(&self.name))
    }

    /// Decides on an offer by what this side allows, and changes nothing.
    fn admit_allowed(&self, offer: &Offer) -> Result<Mode, Problem> {
        if self.poisoned {
            return Err(Problem::Poisoned);
        }
        if self.reads_only {
            return Err(Problem::ReadOnly);
        }
        if !(offer.overwrite && self.overwrite_forbidden) {
            return self.admit(offer);
        }
        let modest = Offer { plan: offer.plan.clone(), overwrite: false };
        self.admit(&modest).map_err(|problem| match problem.reason() {
            Reason::BaseMismatch
            | Reason::SourceMismatch
            | Reason::TargetForeign
            | Reason::TargetModified => Problem::OverwriteForbidden { because: problem.into() },
            _ => problem,
        })
    }

    /// Decides on an offer, and changes nothing.
    fn admit(&self, offer: &Offer) -> Result<Mode, Problem> {
        let Offer { plan, overwrite } = offer;
        let holds = self.state.generation();
        self.admit_source(plan, *overwrite)?;
        if self.stuck.is_some() {
            // Whatever an increment leaves alone would be kept as it is.
            let over_all = *overwrite && matches!(plan.kind, PlanKind::Full | PlanKind::Scan);
            return if over_all {
                Ok(Mode::Adopting)
            } else {
                self.check_usable().map(|()| Mode::Adopting)
            };
        }
        // Consent to an overwrite is none to build on what stands there.
        if !overwrite || plan.kind == PlanKind::Incremental {
            // What an increment leaves alone would be kept as it is.
            self.check_untouched(plan.kind != PlanKind::Incremental)?;
        }
        let resumes = self.unsealed.as_ref().is_some_and(|unsealed| unsealed.is_of(plan));
        match (plan.kind, self.state.status) {
            (PlanKind::UpToDate, _) => Err(Problem::Malformed("nothing is to be done")),
            (PlanKind::Stream, _) => Err(Problem::Opaque),
            (PlanKind::Incremental, Status::Complete { generation, .. })
                if plan.base == Some(generation) =>
            {
                Ok(Mode::Journaled)
            }
            (PlanKind::Incremental, _) => Err(Problem::NotTheBase { offered: plan.base, holds }),
            (PlanKind::Full, Status::Direct { .. }) => Ok(Mode::Direct),
            // All of the volume goes by, and only what differs is replaced.
            (PlanKind::Full, Status::Complete { generation, .. })
                if !overwrite && plan.base == Some(generation) =>
            {
                Ok(Mode::Journaled)
            }
            (PlanKind::Scan, Status::Complete { generation, .. })
                if !overwrite
                    && (generation.scheme() == Scheme::CONTENT
                        || plan.base == Some(generation)) =>
            {
                Ok(Mode::Journaled)
            }
            // The consent was given when it began.
            (_, Status::Adopted | Status::Complete { .. }) if resumes => Ok(Mode::Journaled),
            // A file or device of zeros is as good as none.
            (PlanKind::Full, Status::Adopted)
                if self.slots.is_empty() && self.volume.is_all_zero()? =>
            {
                Ok(Mode::Direct)
            }
            (_, _) if *overwrite => Ok(Mode::Adopting),
            (_, Status::Adopted) => Err(Problem::Foreign),
            (PlanKind::Full, _) => Err(Problem::WouldOverwrite { holds }),
            (PlanKind::Scan, _) => Err(Problem::NotTheBase { offered: plan.base, holds }),
        }
    }

    /// Decides on the source of an offer and its size.
    fn admit_source(&self, plan: &Plan, overwrite: bool) -> Result<(), Problem> {
        if let (Some(recorded), Some(offered)) = (self.state.volume, plan.volume)
            && recorded != offered
            && !overwrite
        {
            return Err(Problem::OtherSource { recorded, offered });
        }
        if plan.size.is_some_and(|size| size > VOLUME_LEN_MAX) {
            return Err(Problem::Malformed("the volume is larger than any can be"));
        }
        plan.size.map_or(Ok(()), |size| self.volume.check_room(size))
    }

    fn begin_admitted(&mut self, mode: Mode, plan: &Plan) -> Result<Begin, Problem> {
        self.received = HashMap::new();
        self.pins.clear();
        self.session = Session::Idle;
        self.goes_on_unnamed = false;
        let unsealed = self.unsealed.take();
        let from = match mode {
            Mode::Direct => self.begin_direct(plan)?,
            Mode::Journaled => {
                let unsealed = unsealed.filter(|unsealed| unsealed.is_of(plan));
                self.begin_journaled(plan, unsealed)?
            }
            Mode::Adopting => {
                self.adopt()?;
                self.volume.make(plan.size)?;
                self.begin_journaled(plan, None)?
            }
        };
        Ok(Begin { from })
    }

    fn lacks_one(&mut self, item: &Item) -> Result<Missing, Problem> {
        let narrow = item.narrowable().is_some();
        let differs = |differs| if differs { Missing::All } else { Missing::Nothing };
        let item = validate(item)?;
        match (&self.session, item) {
            (Session::Idle, _) => Err(Problem::NoSession),
            (_, Valid::Zero(_)) => Ok(Missing::Nothing),
            (Session::Direct(_), Valid::Patch(patch)) => self.lacks_directly(&patch, narrow),
            (Session::Direct(_), Valid::Span(..)) => Ok(Missing::All),
            (Session::Journaled(_), Valid::Patch(patch)) => self.lacks_patch(&patch, narrow),
            (Session::Journaled(_), Valid::Span(chunks, digest)) => {
                self.lacks_span(chunks, digest).map(differs)
            }
        }
    }

    fn patch_one(&mut self, item: &Item, grains: GrainMask, data: &[u8]) -> Result<bool, Problem> {
        self.pins.patch_item(&self.key, item, grains, data)
    }

    fn apply_one(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), Problem> {
        let item = validate(item)?;
        if let (Valid::Patch(patch), Some(data)) = (&item, data) {
            patch.check_data(&self.key, data)?;
        }
        match (&self.session, item) {
            (Session::Idle, _) => Err(Problem::NoSession),
            // A span that the target holds changes nothing.
            (_, Valid::Span(..)) => Ok(()),
            (Session::Direct(_), Valid::Patch(patch)) => self.write_directly(&patch, data),
            (Session::Direct(_), Valid::Zero(chunks)) => self.zero_directly(chunks),
            (Session::Journaled(_), Valid::Patch(patch)) => self.record_patch(&patch, data),
            (Session::Journaled(_), Valid::Zero(chunks)) => self.record_zero(chunks),
        }
    }

    fn commit_session(&mut self, finish: &Finish) -> Result<Committed, Problem> {
        if finish.size.is_some_and(|size| size > VOLUME_LEN_MAX) {
            return Err(Problem::Malformed("the volume is larger than any can be"));
        }
        let committed = match std::mem::replace(&mut self.session, Session::Idle) {
            Session::Idle => Err(Problem::NoSession),
            Session::Direct(direct) => self.commit_direct(direct, finish),
            Session::Journaled(journaled) => self.commit_journaled(*journaled, finish),
        }?;
        self.keep_generation()?;
        self.check_in_place()?;
        Ok(committed)
    }
}

impl<D: Disk> Target for Replica<D> {
    type Error = TargetError;

    fn state(&self) -> TargetState {
        let state = self.state.describe(self.unsealed.as_ref().map(Unsealed::resume));
        TargetState { damaged: self.stuck.is_some() || !self.repairs.is_empty(), ..state }
    }

    fn begin(&mut self, offer: &Offer) -> Result<Begin, TargetError> {
        // A refusal is no failure: nothing was changed.
        let mode = self.admit_allowed(offer).map_err(|problem| problem.of(&self.name))?;
        if let Some(guard) = &mut self.guard {
            guard.keep();
        }
        self.run(|this| this.begin_admitted(mode, &offer.plan))
    }

    fn missing(&mut self, items: &[Item]) -> Result<Vec<Missing>, TargetError> {
        self.run(|this| items.iter().map(|item| this.lacks_one(item)).collect())
    }

    fn apply(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), TargetError> {
        self.run(|this| this.apply_one(item, data))
    }

    fn patch(&mut self, item: &Item, grains: GrainMask, data: &[u8]) -> Result<bool, TargetError> {
        self.run(|this| this.patch_one(item, grains, data))
    }

    fn mark(&mut self, watermark: u64) -> Result<(), TargetError> {
        self.run(|this| match this.session {
            Session::Idle => Err(Problem::NoSession),
            // The watermark of a first copy is what was made durable and read back.
            Session::Direct(_) => Ok(()),
            Session::Journaled(_) => this.record_mark(watermark),
        })
    }

    fn commit(&mut self, finish: &Finish) -> Result<Committed, TargetError> {
        self.run(|this| this.commit_session(finish))
    }
}

impl<D: Disk> fmt::Debug for Replica<D> {
    /// Without the secrets: whoever has the chunk key can guess at content by its ids.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Replica");
        debug.field("name", &self.name).field("status", &self.state.status);
        debug.finish_non_exhaustive()
    }
}

/// Remembers where data was put. Nothing is ever forgotten before the increment ends: what
/// `missing` relied on must still be there for `apply`.
pub(crate) fn remember(received: &mut HashMap<ChunkId, u64>, id: ChunkId, place: u64) {
    if received.len() < RECEIVED_MAX && !id.is_zero() {
        received.entry(id).or_insert(place);
    }
}

/// The bytes number `drawn` that follow from a seed.
pub(crate) fn draw(seed: &[u8; 32], drawn: &mut u64) -> [u8; 32] {
    *drawn += 1;
    *blake3::keyed_hash(seed, &drawn.to_le_bytes()).as_bytes()
}
