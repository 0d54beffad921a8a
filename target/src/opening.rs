//! Opening a replica: recovering it, or only looking, and what is done where neither leads on.

use std::{collections::HashMap, sync::Arc};

use driftline_chunking::ChunkKey;
use driftline_extent::{Committed, ReplicaId};

use crate::{
    DeviceManager, Disk, Disks, Part, Problem, Replica, TargetError,
    ids::{IdList, Overlay},
    journal::Journal,
    journaled::find_unsealed,
    pins::Pins,
    repair::Repairs,
    replica::{CHECKPOINT_LEN, Session, draw},
    state::{Slots, State, Status},
    volume::VolumeStore,
};

/// The books of a replica, as they are opened.
struct Books<D> {
    slots: Slots<D>,
    journal: D,
    ids: D,
    overlay: D,
    repairs: Repairs<D>,
}

/// Why a sealed increment cannot be completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stuck {
    /// Its journal is damaged at this byte.
    Journal { at: u64 },
    /// It leads to another root than was sealed, whatever the list says.
    List,
}

impl Stuck {
    pub(crate) const fn problem(self) -> Problem {
        match self {
            Self::Journal { at } => Problem::JournalDamaged { at },
            Self::List => Problem::ListDamaged,
        }
    }
}

impl<D: Disk> Replica<D> {
    /// Opens the replica on `disks` and recovers it: an increment that was received whole
    /// is completed, one that was not is kept for resuming. `name` is for messages. `seed`
    /// must be fresh random bytes at each call; everything random is drawn from it.
    ///
    /// Disks without a state are no replica yet. Nothing is written to them before
    /// [`begin`](driftline_extent::Target::begin) accepted an offer.
    pub fn open(name: &str, disks: Disks<D>, seed: [u8; 32]) -> Result<Self, TargetError> {
        Self::recover(name, disks, None, seed).map_err(|problem| problem.of(name))
    }

    /// As [`open`](Self::open), for a volume on a device that `manager` keeps. The volume's disk
    /// is open for reading only, or has no bytes where the device does not exist yet.
    ///
    /// If the last generation was committed but not kept, it is kept here: whoever has the
    /// replica open finds that every generation was.
    pub fn open_kept(
        name: &str,
        disks: Disks<D>,
        manager: Box<dyn DeviceManager>,
        seed: [u8; 32],
    ) -> Result<Self, TargetError> {
        Self::recover(name, disks, Some(manager), seed).map_err(|problem| problem.of(name))
    }

    fn recover(
        name: &str,
        disks: Disks<D>,
        manager: Option<Box<dyn DeviceManager>>,
        seed: [u8; 32],
    ) -> Result<Self, Problem> {
        let Disks { volume, state, journal, ids, overlay, repair } = disks;
        let (slots, state) = Slots::open(state)?;
        let volume = VolumeStore::new(volume, manager);
        let recorded = state.is_some();
        let repairs = Repairs::open(repair, state.as_ref())?;
        let mut drawn = 0;
        let state = match state {
            Some(state) => state,
            None => {
                let [replica, secret] = [draw(&seed, &mut drawn), draw(&seed, &mut drawn)];
                let replica = ReplicaId(*replica.first_chunk().unwrap_or(&[0; 16]));
                State::of_nothing(replica, secret, volume.len()?)
            }
        };
        let books = Books { slots, journal, ids, overlay, repairs };
        let mut this = Self::of(name, volume, books, state, (seed, drawn));
        // What a failed flush left in the cache is not what a crash would leave.
        this.ids.settle()?;
        if recorded {
            this.catch_up()?;
        }
        Ok(this)
    }

    /// Opens the replica on `disks` for reading only: nothing is written to any of them. Where a
    /// sealed increment is not in place yet, what is read is the end of it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and where there is no replica.
    pub fn open_to_read(name: &str, disks: Disks<D>, seed: [u8; 32]) -> Result<Self, TargetError> {
        Self::open_looking(name, disks, seed).map_err(|problem| problem.of(name))
    }

    fn open_looking(name: &str, disks: Disks<D>, seed: [u8; 32]) -> Result<Self, Problem> {
        let Disks { volume, state, journal, ids, overlay, repair } = disks;
        let (slots, state) = Slots::look(state)?;
        let state = state.ok_or(Problem::NoReplica)?;
        let repairs = Repairs::look(repair, &state)?;
        let volume = VolumeStore::new(volume, None);
        let books = Books { slots, journal, ids, overlay, repairs };
        let mut this = Self::of(name, volume, books, state, (seed, 0));
        this.reads_only = true;
        this.read_through_sealed()?;
        Ok(this)
    }

    fn of(
        name: &str,
        volume: VolumeStore<D>,
        books: Books<D>,
        state: State,
        (seed, drawn): ([u8; 32], u64),
    ) -> Self {
        let Books { slots, journal, ids, overlay, repairs } = books;
        Self {
            name: name.to_owned(),
            seed,
            drawn,
            key: ChunkKey::new(&state.chunk_key),
            volume,
            slots,
            journal: Arc::new(Journal::new(journal)),
            ids: IdList::new(Part::Ids, ids),
            overlay: Overlay(IdList::new(Part::Overlay, overlay)),
            repairs,
            state,
            unsealed: None,
            received: HashMap::new(),
            other_replicas: None,
            like: None,
            pins: Pins::default(),
            session: Session::Idle,
            goes_on_unnamed: false,
            checkpoint_len: CHECKPOINT_LEN,
            poisoned: false,
            guard: None,
            overwrite_forbidden: false,
            loss_max: None,
            stuck: None,
            reads_only: false,
        }
    }

    /// Does what the last session could not do any more.
    fn catch_up(&mut self) -> Result<(), Problem> {
        let completed = match self.complete_sealed() {
            Err(Problem::JournalDamaged { at }) => return self.be_stuck(Stuck::Journal { at }),
            Err(Problem::ListDamaged) => return self.be_stuck(Stuck::List),
            completed => completed?,
        };
        if let Status::Direct { .. } = self.state.status {
            self.volume.lock()?;
        }
        if self.check_size().is_ok() {
            self.keep_generation()?;
        }
        if !completed && self.check_untouched(true).is_ok() {
            self.unsealed = find_unsealed(&self.journal, &self.state)?;
            self.sweep();
        }
        Ok(())
    }

    /// Forgets what a stop has left of an increment that is committed, or that got nowhere: a run
    /// that finds nothing to do would leave it there.
    fn sweep(&self) {
        if self.unsealed.is_some() || !matches!(self.state.status, Status::Complete { .. }) {
            return;
        }
        let clear = || {
            if !self.journal.is_empty()? {
                self.journal.clear()?;
            }
            if self.overlay.is_empty()? { Ok(()) } else { self.overlay.clear() }
        };
        if let Err::<(), Problem>(problem) = clear() {
            tracing::warn!(volume = self.name, %problem, "cannot clear the journal");
        }
    }

    /// Refuses everything from now on but a copy over all that stands here.
    fn be_stuck(&mut self, stuck: Stuck) -> Result<(), Problem> {
        tracing::error!(volume = self.name, problem = %stuck.problem(), "the replica is stuck");
        self.stuck = Some(stuck);
        self.volume.lock()
    }

    /// Whether what stands here can be told and read.
    ///
    /// # Errors
    ///
    /// A sealed increment that cannot be completed: all but a whole copy by agreement is refused.
    pub fn check_not_stuck(&self) -> Result<(), TargetError> {
        self.check_usable().map_err(|problem| problem.of(&self.name))
    }

    /// Why there is nothing to read here.
    pub(crate) const fn holds_nothing(&self) -> Problem {
        match self.state.status {
            // No state was ever written for what stands here.
            Status::Adopted if self.state.epoch == 0 => Problem::NoReplica,
            _ => Problem::Incomplete,
        }
    }

    pub(crate) fn check_usable(&self) -> Result<(), Problem> {
        self.stuck.map_or(Ok(()), |stuck| Err(stuck.problem()))
    }

    /// Lets the manager cut, lock and keep what was committed, unless that was done.
    pub(crate) fn keep_generation(&mut self) -> Result<(), Problem> {
        let size = self.state.size;
        let Status::Complete { generation, root } = self.state.status else { return Ok(()) };
        if self.state.kept || !self.volume.has_manager() {
            return Ok(());
        }
        self.volume.unlock()?;
        self.volume.resize(size)?;
        // Locked before it is kept, so that nothing else can come between.
        self.volume.lock()?;
        self.volume.keep(&Committed { generation, root, size, zeroed: None })?;
        let state = State { kept: true, ..self.state.clone() };
        self.slots.commit(&state)?;
        self.state = state;
        Ok(())
    }
}
