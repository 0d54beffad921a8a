//! A DRBD volume of this machine as a source.
//!
//! It takes a snapshot of the backing device, reads data and metadata from it, and removes it
//! once it has arrived.
//!
//! * *Rotate*: the bitmap starts anew at the instant of each snapshot, so that the next one says
//!   what changed since. For a volume that no peer needs the bitmap of. A snapshot that did not
//!   arrive is kept and goes first the next time: without it that chain is broken. It is marked,
//!   with LVM's tag or ZFS's property `driftline:rotated`, and one without a mark is never
//!   believed to be of that instant. To be *cross-checked*, the one that arrived last is kept
//!   besides, and the pool tells what differs from it.
//! * *Cumulative*: nothing is cleared, and everything is compared. Its generations are named by
//!   their content and not by DRBD's UUID, which stays the same while the volume changes: were
//!   they named by it, an increment from the next rotation would seem to start from them.

mod error;
mod freezer;
mod guard;
mod kept;
mod rotate;
mod snapshot;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::{File, TryLockError},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use driftline_extent::{
    Change, Finish, Generation, Plan, PlanKind, Reason, Scheme, Source, Standing, TargetState,
    Volume, VolumeId,
};

pub use error::{LiveError, NoRotation};
pub use freezer::GuardCommand;
pub use guard::guard_process;
pub use kept::{CrossChecked, CrossChecks, ZvolDelta};
pub use snapshot::SharedVolume;

use crate::{
    Doubt, DrbdError, DrbdVolume, Map,
    host::{self, CowSize, Found, Minor, Stores, Taken},
    live::{freezer::Freezer, kept::RealPool, rotate::Steps, snapshot::open_snapshot},
    superblock::named,
};

/// Where the lock of each device is.
const LOCKS: &str = "/run";

/// What is done about the bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It starts anew at each snapshot.
    Rotate,
    /// It is left alone.
    Cumulative,
}

/// How a volume is replicated.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// What is done about the bitmap; `None` for rotation where that harms nobody.
    pub mode: Option<Mode>,
    /// Space for what is overwritten while a snapshot of a thick logical volume exists.
    pub cow: CowSize,
    /// For how long the device is frozen at most.
    pub freeze_max: Duration,
    /// What tells the snapshots of this volume for this target from others.
    pub id: [u8; 4],
    /// The identity of the volume.
    pub volume: VolumeId,
    /// Whether the user has agreed to a full copy over another generation. One copy uses the
    /// consent up.
    pub allow_full: bool,
    /// How the guard is started.
    pub guard: GuardCommand,
    /// Whether DRBD's map is held against what the pool says, and how ZFS is asked for that.
    pub cross_check: Option<ZvolDelta>,
}

/// Whether the bitmap of a volume may be cleared. Without a configuration that is up to whoever
/// `asked` for it.
fn may_rotate(found: &Found, asked: bool) -> Result<(), NoRotation> {
    if !found.is_84 {
        return Err(NoRotation::Nine);
    }
    // DRBD 8.4 tells of a connection that it has forgotten, and of one that it never had.
    if let Some(link) = found.links.iter().find(|link| link.state != "StandAlone") {
        let (peer, state) = (link.name.clone(), link.state.clone());
        return Err(NoRotation::Connected { peer, state });
    }
    match &found.peers {
        Some(peers) if !peers.is_empty() => {
            return Err(NoRotation::Configured { peer: peers.join(", ") });
        }
        None if !asked => return Err(NoRotation::Unknown),
        Some(_) | None => {}
    }
    if found.disk != "UpToDate" {
        return Err(NoRotation::Disk { disk: found.disk.clone() });
    }
    Ok(())
}

/// A volume, and what is being replicated of it.
pub struct LiveVolume {
    found: Found,
    stores: Stores,
    mode: Mode,
    options: LiveOptions,
    stage: Stage,
    current: Option<Current>,
    shared: Arc<SharedVolume>,
    base_state: Option<TargetState>,
    /// What was kept of what the target holds.
    recalled: Option<Vec<u8>>,
    /// The snapshot that arrived last, if it was kept to be compared with.
    kept: Option<String>,
    checks: CrossChecks,
    /// Of the snapshots before the one that is being read.
    bytes_before: u64,
    /// When this run began.
    started: Instant,
    /// Nobody else takes snapshots of it meanwhile.
    _lock: File,
}

/// Which snapshot is being read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// None yet.
    New,
    /// One of an earlier run, that did not arrive.
    Kept,
    /// The one of this run.
    Fresh,
    Done,
}

/// The snapshot that is being read.
struct Current {
    name: String,
    volume: DrbdVolume,
    /// Whether the bitmap was cleared at its instant: it stays until it has arrived.
    rotated: bool,
}

impl LiveVolume {
    /// The volume with this number of a resource. Looks at everything that could go wrong, and
    /// changes nothing yet.
    ///
    /// # Errors
    ///
    /// What is not there, or cannot be done with it.
    pub fn open(resource: &str, volume: u32, options: LiveOptions) -> Result<Self, LiveError> {
        let started = Instant::now();
        let found = Found::look(resource, volume)?;
        let stores = Stores::find(&found)?;
        if options.cross_check.is_some()
            && let Some(store) = stores.thick()
        {
            return Err(LiveError::Thick { name: found.name(), store: store.to_string() });
        }
        let mode = choose_mode(&found, options.mode)?;
        let lock = lock(&found)?;
        let this = Self {
            mode,
            options,
            stage: Stage::New,
            current: None,
            shared: Arc::default(),
            base_state: None,
            recalled: None,
            kept: None,
            checks: CrossChecks::default(),
            bytes_before: 0,
            started,
            _lock: lock,
            stores,
            found,
        };
        if this.freezes() {
            if this.found.suspended {
                let (name, minor) = (this.found.name(), this.found.minor);
                return Err(LiveError::Suspended { name, minor });
            }
            if this.stores.has_lvm() {
                host::check_filter(&this.found)?;
            }
        }
        Ok(this)
    }

    /// Whether it is frozen for a snapshot. One command takes all of it at one instant mostly.
    fn freezes(&self) -> bool {
        self.mode == Mode::Rotate || !self.stores.is_atomic()
    }

    /// The data alone, for reading at random: of the snapshot that is being read.
    pub fn volume(&self) -> Arc<dyn Volume + Send + Sync> {
        self.shared.clone()
    }

    /// How `drbd:` names it, with that.
    pub fn name(&self) -> String {
        format!("drbd:{}", self.found.name())
    }

    /// What was found where DRBD's map was held against the pool's, to be asked when it is done.
    pub fn cross_checks(&self) -> CrossChecks {
        self.checks.clone()
    }

    /// What its bitmaps and activity log say has changed, by a snapshot that is taken for that.
    /// Nothing is cleared.
    pub fn maps(&mut self) -> Result<Vec<Map>, LiveError> {
        self.take(false)?;
        let current = self.current.as_ref().ok_or(LiveError::Unplanned)?;
        let maps = current.volume.maps();
        self.let_go(true);
        Ok(maps?)
    }

    /// What the names of its snapshots begin with.
    fn prefix(&self) -> String {
        let [a, b, c, d] = self.options.id;
        format!("driftline-{a:02x}{b:02x}{c:02x}{d:02x}-")
    }

    /// Removes what earlier runs have left, but for the last snapshot that did not arrive, and
    /// the last that did where that is to be compared with.
    fn tidy(&mut self, base: Option<&Generation>) -> Result<Option<Taken>, LiveError> {
        let ours = self.stores.ours(&self.prefix())?;
        let compares = self.options.cross_check.is_some();
        let Left { due, kept, rest } = sort_out(ours, base, self.mode, compares);
        self.kept = kept.map(|taken| taken.name);
        for Taken { name, mark, spoilt } in rest {
            if mark.is_some() && spoilt {
                let volume = self.found.name();
                tracing::warn!(
                    volume,
                    snapshot = name,
                    "the snapshot ran out of space before it arrived: what changed until then is \
                     unknown"
                );
            }
            self.stores.remove(&name)?;
        }
        Ok(due)
    }

    /// Takes a snapshot, and with `clear` starts the bitmap anew.
    fn take(&mut self, clear: bool) -> Result<(), LiveError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("{}{:013}", self.prefix(), now.as_millis());
        let volume = self.found.name();
        if self.freezes() {
            let LiveOptions { guard, freeze_max, cow, cross_check, .. } = &self.options;
            let freezer = Freezer::start(guard, self.found.minor, *freeze_max)?;
            let resumed = Instant::now();
            let mut real = Real {
                stores: &self.stores,
                name: &name,
                cow: *cow,
                remembers: cross_check.is_some(),
                freezer,
                resumed,
            };
            let frozen_ms = rotate::rotate(&mut real, clear)?.as_millis() as u64;
            let resumed_after_ms = (real.resumed - self.started).as_millis() as u64;
            tracing::info!(
                volume,
                snapshot = name,
                frozen_ms,
                resumed_after_ms,
                cleared = clear,
                "snapshot taken"
            );
        } else {
            if let Err(error) = self.stores.take(&name, self.options.cow) {
                remove(&self.stores, &name);
                return Err(error.into());
            }
            tracing::info!(volume, snapshot = name, "snapshot taken");
        }
        let opened = self.read(name.clone(), clear);
        if opened.is_err() && !clear {
            remove(&self.stores, &name);
        }
        opened
    }

    /// Reads this snapshot from now on.
    fn read(&mut self, name: String, rotated: bool) -> Result<(), LiveError> {
        let volume = open_snapshot(&self.stores, &name)?;
        let volume = volume.allow_full(self.options.allow_full).rotated(rotated);
        self.shared.set(Some(volume.volume()));
        self.current = Some(Current { name, volume, rotated });
        Ok(())
    }

    /// Reads no snapshot any more, and removes the one that was read unless it is needed still.
    fn let_go(&mut self, arrived: bool) {
        self.shared.set(None);
        let Some(Current { name, volume, rotated }) = self.current.take() else { return };
        self.bytes_before += volume.bytes_read();
        drop(volume);
        if arrived && rotated && self.options.cross_check.is_some() {
            // The next is compared with it.
            if let Some(before) = self.kept.replace(name) {
                remove(&self.stores, &before);
            }
        } else if arrived || !rotated {
            remove(&self.stores, &name);
        } else {
            let volume = self.found.name();
            tracing::info!(volume, snapshot = name, "keeping this snapshot for the next run");
        }
    }

    /// Makes sure that what the target holds has a name of its own before the bitmap is cleared.
    /// Somebody may have replicated a snapshot of the volume as it is called now. Were the bitmap
    /// cleared under that name, it would seem to start from what the target holds. Under a new
    /// name it starts earlier, as nothing was cleared yet.
    fn part_from(&self, base: Option<&Generation>) -> Result<(), LiveError> {
        let minor = Minor(self.found.minor);
        if base.is_some() && base == Some(&Generation::drbd(minor.current_uuid()?)) {
            minor.rename()?;
        }
        Ok(())
    }

    fn plan_current(&mut self, base: Option<&Generation>) -> Result<Plan, LiveError> {
        let current = self.current.as_mut().ok_or(LiveError::Unplanned)?;
        if let Some(state) = &self.base_state {
            current.volume.learn(state);
        }
        current.volume.recall(self.recalled.as_deref());
        let missing = Standing::Suspect(Reason::MapMissing);
        let plan = match base {
            // What was compared before, of the same volume.
            Some(base) if base.scheme() == Scheme::CONTENT => {
                current.volume.plan_scan(None, missing)?
            }
            _ if current.rotated => current.volume.plan(base)?,
            Some(base) => {
                let superblock = &current.volume.metadata().superblock;
                let doubt = Doubt::BaseMismatch { tip: superblock.current_uuid };
                let uuid = base.drbd_uuid();
                let known = uuid.is_some_and(|uuid| superblock.descends_from(uuid));
                if uuid.is_some() && !known && !self.options.allow_full {
                    return Err(DrbdError::Unusable { doubt, holds: Some(*base) }.into());
                }
                current.volume.plan_scan(known.then_some(*base), missing)?
            }
            None => current.volume.plan(None)?,
        };
        Ok(self.cross_checked(Plan { volume: Some(self.options.volume), ..plan }))
    }

    /// The plan of an increment, with the pool's delta for its map where that can be had.
    fn cross_checked(&mut self, plan: Plan) -> Plan {
        let holds = plan.base.filter(|_| plan.kind == PlanKind::Incremental);
        let Some(holds) = holds.as_ref().and_then(Generation::drbd_uuid) else { return plan };
        let (Some(zvol_delta), Some(current)) = (self.options.cross_check, &mut self.current)
        else {
            return plan;
        };
        let pool = RealPool { stores: &self.stores, zvol_delta };
        let superblock = &current.volume.metadata().superblock;
        let generation = Generation::drbd(superblock.current_uuid);
        let (kept, tip) = (self.kept.as_deref(), current.name.as_str());
        let delta = kept::delta_from(&pool, kept, holds, (tip, superblock));
        let check = match delta {
            Ok(delta) => current.volume.cross_check(&delta),
            Err(why) => {
                why.tell(&self.found.name());
                None
            }
        };
        let Some(check) = check else { return plan };
        let names = [kept.unwrap_or_default(), tip];
        kept::tell(&self.found, names, &check);
        self.checks.add(CrossChecked::of(Generation::drbd(holds), generation, &check));
        Plan { bytes_expected: check.map.subtract(&check.holes).byte_count(), ..plan }
    }
}

/// What earlier runs have left.
#[derive(Debug)]
struct Left {
    /// What goes first now: it did not arrive.
    due: Option<Taken>,
    /// What the target holds, to be compared with.
    kept: Option<Taken>,
    /// What is not needed.
    rest: Vec<Taken>,
}

/// Sorts the snapshots that earlier runs have left, oldest first. No other is taken before a
/// marked one has arrived, so all before the last of these have.
fn sort_out(mut ours: Vec<Taken>, base: Option<&Generation>, mode: Mode, compares: bool) -> Left {
    let has_arrived =
        |taken: &Taken| taken.mark.is_some_and(|uuid| base == Some(&Generation::drbd(uuid)));
    let is_due = |taken: &Taken| mode == Mode::Rotate && !taken.spoilt && !has_arrived(taken);
    let is_kept =
        |taken: &Taken| compares && mode == Mode::Rotate && !taken.spoilt && has_arrived(taken);
    let last = ours.iter().rposition(|taken| taken.mark.is_some());
    let due = last.filter(|at| is_due(&ours[*at])).map(|at| ours.remove(at));
    let kept = ours.iter().rposition(is_kept).map(|at| ours.remove(at));
    Left { due, kept, rest: ours }
}

fn choose_mode(found: &Found, wanted: Option<Mode>) -> Result<Mode, LiveError> {
    let name = found.name();
    match (wanted, may_rotate(found, wanted.is_some())) {
        (Some(Mode::Cumulative), _) => Ok(Mode::Cumulative),
        (_, Ok(())) => Ok(Mode::Rotate),
        (Some(Mode::Rotate), Err(why)) => Err(LiveError::NoRotation { name, why }),
        (None, Err(why)) => {
            tracing::info!(volume = name, "not rotated, so comparing everything: {why}");
            Ok(Mode::Cumulative)
        }
    }
}

fn lock(found: &Found) -> Result<File, LiveError> {
    let path = format!("{LOCKS}/driftline-drbd{}.lock", found.minor);
    let failed = |error| LiveError::Lock { path: path.clone(), error };
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LiveError::Busy { name: found.name(), path }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Removes a snapshot; one that stays is removed by the next run.
fn remove(stores: &Stores, name: &str) {
    if let Err(error) = stores.remove(name) {
        tracing::warn!(
            snapshot = name, %error,
            "cannot remove this snapshot; the next run removes it"
        );
    }
}

/// The steps on a real device.
struct Real<'a> {
    stores: &'a Stores,
    name: &'a str,
    cow: CowSize,
    /// Whether it is to be known again when it has arrived.
    remembers: bool,
    freezer: Freezer,
    /// When it went on, once it did.
    resumed: Instant,
}

impl Steps for Real<'_> {
    fn suspend(&mut self) -> Result<(), LiveError> {
        self.freezer.suspend()
    }

    fn take(&mut self) -> Result<(), LiveError> {
        Ok(self.stores.take(self.name, self.cow)?)
    }

    fn clear(&mut self) -> Result<(), LiveError> {
        self.freezer.clear()
    }

    fn resume(&mut self) -> Result<Duration, LiveError> {
        let frozen = self.freezer.resume()?;
        self.resumed = Instant::now();
        Ok(frozen)
    }

    fn release(&mut self) -> Result<(), LiveError> {
        self.freezer.release()
    }

    fn examine(&mut self) -> Result<u64, LiveError> {
        let volume = open_snapshot(self.stores, self.name)?;
        volume.check()?;
        let superblock = &volume.metadata().superblock;
        debug_assert!(named(superblock.current_uuid), "what is checked has a name");
        Ok(superblock.current_uuid & !1)
    }

    fn mark(&mut self, uuid: u64) -> Result<(), LiveError> {
        let data = &self.stores.data;
        let identity = match self.remembers.then(|| data.identity(self.name)).transpose() {
            Ok(identity) => identity.map(|identity| identity.now),
            Err(error) => {
                let snapshot = self.name;
                tracing::warn!(
                    snapshot, %error,
                    "cannot keep this snapshot to cross-check the next one"
                );
                None
            }
        };
        Ok(data.mark(self.name, uuid, identity.as_deref())?)
    }

    fn remove(&mut self) {
        remove(self.stores, self.name);
    }
}

impl Source for LiveVolume {
    type Error = LiveError;

    fn learn(&mut self, target: &TargetState) {
        self.base_state = Some(target.clone());
    }

    fn recall(&mut self, record: Option<&[u8]>) {
        self.recalled = record.map(<[u8]>::to_vec);
    }

    fn record(&self) -> Option<Vec<u8>> {
        self.current.as_ref()?.volume.record()
    }

    /// What was not cleared is named by its content.
    fn is_unnamed(&mut self) -> Result<bool, LiveError> {
        let current = self.current.as_mut().ok_or(LiveError::Unplanned)?;
        let unnamed = current.volume.is_unnamed()?;
        if unnamed && self.stores.is_spoilt(&current.name)? {
            return Err(LiveError::Spoilt { name: current.name.clone() });
        }
        Ok(unnamed)
    }

    /// Nothing is taken before it is known what the target holds, and nothing new before an
    /// earlier snapshot has arrived.
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, LiveError> {
        // It is called again only once the last increment is committed.
        if let Some(Current { volume, rotated, .. }) = &self.current {
            let tip = Generation::drbd(volume.metadata().superblock.current_uuid);
            let arrived = !rotated || base == Some(&tip);
            self.let_go(arrived);
            self.options.allow_full = false;
        }
        match base {
            None => {}
            Some(base) if [Scheme::DRBD, Scheme::CONTENT].contains(&base.scheme()) => {}
            Some(_) if self.options.allow_full => {}
            Some(base) => return Err(LiveError::Foreign(*base)),
        }
        if self.stage == Stage::New
            && let Some(kept) = self.tidy(base)?
        {
            self.stage = Stage::Kept;
            match self.read(kept.name.clone(), true) {
                Ok(()) => return self.plan_current(base),
                Err(error) => {
                    let (volume, snapshot) = (self.found.name(), &kept.name);
                    tracing::warn!(
                        volume, snapshot, %error,
                        "this snapshot did not arrive and cannot be read: what changed until then \
                         is unknown"
                    );
                    self.stores.remove(&kept.name)?;
                }
            }
        }
        match self.stage {
            Stage::New | Stage::Kept => {
                self.stage = Stage::Fresh;
                if self.mode == Mode::Rotate {
                    self.part_from(base)?;
                }
                self.take(self.mode == Mode::Rotate)?;
                self.plan_current(base)
            }
            Stage::Fresh | Stage::Done => {
                self.stage = Stage::Done;
                Ok(Plan {
                    kind: PlanKind::UpToDate,
                    volume: Some(self.options.volume),
                    base: None,
                    tip: None,
                    size: None,
                    standing: Standing::Proven,
                    bytes_expected: 0,
                })
            }
        }
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, LiveError> {
        let current = self.current.as_mut().ok_or(LiveError::Unplanned)?;
        Ok(current.volume.next_change(from)?)
    }

    fn finish(&mut self) -> Result<Finish, LiveError> {
        let current = self.current.as_mut().ok_or(LiveError::Unplanned)?;
        let finish = current.volume.finish()?;
        if self.stores.is_spoilt(&current.name)? {
            return Err(LiveError::Spoilt { name: current.name.clone() });
        }
        Ok(finish)
    }

    fn bytes_read(&self) -> u64 {
        let current = self.current.as_ref().map_or(0, |current| current.volume.bytes_read());
        self.bytes_before + current
    }
}

impl Drop for LiveVolume {
    fn drop(&mut self) {
        self.let_go(false);
    }
}

impl fmt::Debug for LiveVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveVolume").field("found", &self.found).finish_non_exhaustive()
    }
}
