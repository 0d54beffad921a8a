//! A volume of the ZFS on this machine as a source.
//!
//! It takes or picks a snapshot, sends what changed since the generation that the target holds,
//! and goes on in the middle of what was cut off. What the target has committed is bookmarked,
//! and only snapshots and bookmarks whose names say that this job made them are destroyed.

use std::{fmt, num::NonZeroU64};

use driftline_extent::{
    Change, Explained, Finish, Generation, Plan, PlanKind, Reason, Source, Standing, TargetState,
    Volume,
};
use thiserror::Error;

use crate::{
    Dataset, DatasetKind, DatasetName, DeviceError, KeyStatus, NameError, Point, PointName,
    ResumeToken, SnapshotDevice, StreamError, ZvolStream,
    host::{Hold, SendRequest, Sending, Zfs, ZfsError},
    select::{Base, BaseError, OwnNames, Request, TipError, choose_base, choose_tip, prune},
};

/// Which snapshot is replicated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pick {
    /// One that is taken for it.
    New,
    /// The newest there is.
    Latest,
    /// This one, by its name after the `@`.
    Named(String),
}

/// What is compared with the snapshot's device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadBack {
    /// Nothing: the stream is believed.
    Nothing,
    /// The data of every changed extent. Holes are compared only with all.
    Changed,
    /// Every byte of the volume, by the root over it.
    All,
}

/// How a volume is replicated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveOptions {
    /// Which snapshot.
    pub pick: Pick,
    /// The names of the snapshots and bookmarks that are made and removed.
    pub names: OwnNames,
    /// How many of these snapshots are kept after they arrived, besides the newest.
    pub keep: usize,
    /// Whether the user has agreed to a full copy over another generation.
    pub allow_full: bool,
    /// What is compared with the snapshot's device.
    pub read_back: ReadBack,
    /// The time that a snapshot is named after, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Why a volume cannot be replicated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// ZFS failed, or refused.
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// What `zfs send` wrote cannot be used.
    #[error("{snapshot}")]
    Stream {
        /// What was sent.
        snapshot: PointName,
        /// What is wrong with it.
        #[source]
        error: Box<StreamError>,
    },
    /// There is no such volume.
    #[error("there is no {0}: see `zfs list`")]
    NotFound(DatasetName),
    /// It is a file system.
    #[error(
        "{0} is a file system, of which only ZFS can make a copy: replicate it to zfs:POOL/DATASET"
    )]
    FileSystem(DatasetName),
    /// Its content cannot be read.
    #[error("the key of {0} is not loaded, so it cannot be read: `zfs load-key {0}`")]
    KeyNotLoaded(DatasetName),
    /// There is no such snapshot.
    #[error(transparent)]
    Tip(#[from] TipError),
    /// A name that is made of what the user said cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is nothing to start an increment from.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The target holds what is no snapshot of ZFS.
    #[error("the target holds {0}, which is no generation of a ZFS volume")]
    Foreign(Generation),
    /// The device of the snapshot cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device could be opened and not read.
    #[error("the device of {snapshot} cannot be read")]
    Read {
        /// Which.
        snapshot: PointName,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// What was sent is not what the snapshot holds.
    #[error(
        "at offset {offset} the stream of {snapshot} has other bytes than its device: nothing was \
         committed; look at `zpool status`, and replicate the device as file:PATH"
    )]
    Differs {
        /// Which.
        snapshot: PointName,
        /// Where the extent starts.
        offset: u64,
    },
    /// A call that does not fit what came before.
    #[error("nothing was planned")]
    Unplanned,
}

impl Explained for LiveError {
    fn reason(&self) -> Reason {
        match self {
            Self::Stream { error, .. } => error.reason(),
            Self::Base(error) => error.reason(),
            Self::Tip(error) => error.reason(),
            Self::Foreign(_) => Reason::BaseMismatch,
            Self::FileSystem(_) => Reason::Unsupported,
            Self::Differs { .. } => Reason::VerifyFailed,
            _ => Reason::Failed,
        }
    }
}

/// A volume, and what is being replicated of it.
pub struct LiveVolume {
    zfs: Zfs,
    name: DatasetName,
    options: LiveOptions,
    /// The snapshot that was taken in this run.
    taken: Option<PointName>,
    /// The snapshot that an increment which was cut off led to.
    resume_tip: Option<Generation>,
    increment: Option<Increment>,
    /// Of all increments.
    bytes_read: u64,
    /// Of those before the stream that is being read.
    bytes_before: u64,
}

/// What is being sent.
struct Increment {
    tip: Point,
    base: Option<Point>,
    size: u64,
    block_len: NonZeroU64,
    stream: Option<ZvolStream<Sending>>,
    device: Option<SnapshotDevice>,
    done: bool,
    /// Nobody destroys the snapshot before it has arrived.
    _hold: Hold,
}

impl LiveVolume {
    /// The volume of this name. Nothing is looked at yet.
    pub const fn new(zfs: Zfs, name: DatasetName, options: LiveOptions) -> Self {
        Self {
            zfs,
            name,
            options,
            taken: None,
            resume_tip: None,
            increment: None,
            bytes_read: 0,
            bytes_before: 0,
        }
    }

    fn look(&self) -> Result<Dataset, LiveError> {
        let dataset = self.zfs.dataset(&self.name)?;
        let dataset = dataset.ok_or_else(|| LiveError::NotFound(self.name.clone()))?;
        match (dataset.kind, dataset.key) {
            (DatasetKind::FileSystem, _) => Err(LiveError::FileSystem(self.name.clone())),
            (_, KeyStatus::Unavailable) => Err(LiveError::KeyNotLoaded(self.name.clone())),
            _ => Ok(dataset),
        }
    }

    /// What increment is sent next: the one that was cut off, if its snapshot is still there.
    fn choose_tip(&mut self, points: &[Point]) -> Result<Point, LiveError> {
        let cut = self.resume_tip.take();
        let cut = points
            .iter()
            .find(|point| point.is_snapshot() && cut == Some(Generation::Zfs(point.guid)));
        if let Some(point) = cut {
            return Ok(point.clone());
        }
        match &self.options.pick {
            Pick::Named(name) => {
                let wanted = self.name.snapshot(name)?;
                Ok(choose_tip(points, Request::Named(&wanted))?.clone())
            }
            Pick::Latest => Ok(choose_tip(points, Request::Latest(&self.name))?.clone()),
            Pick::New => self.take_snapshot(),
        }
    }

    /// The snapshot of this run, taken when it is first asked for.
    fn take_snapshot(&mut self) -> Result<Point, LiveError> {
        if self.taken.is_none() {
            let name = self.name.snapshot(&self.options.names.snapshot(self.options.now_ms))?;
            self.zfs.snapshot(std::slice::from_ref(&name))?;
            self.taken = Some(name);
        }
        let points = self.zfs.points(&self.name)?;
        let taken = self.taken.as_ref().ok_or(LiveError::Unplanned)?;
        Ok(choose_tip(&points, Request::Named(taken))?.clone())
    }

    /// Sees to what the target holds by now: it is bookmarked, and what is older goes.
    fn arrived(&self, points: &[Point], guid: u64) {
        let Some(held) = points.iter().find(|point| point.guid == guid) else { return };
        if let Err(error) = self.mark(points, held) {
            // The snapshot stays what the next increment starts from.
            tracing::warn!(snapshot = %held.name, %error, "it cannot be bookmarked: kept");
            return;
        }
        let gone = prune(points, &self.options.names, guid, self.options.keep);
        if let Err(error) = self.zfs.destroy(&gone) {
            tracing::warn!(volume = %self.name, %error, "what is not needed any more stays");
        }
    }

    /// Bookmarks what the target holds. Another owner's bookmark of it is not enough: it goes
    /// when that one needs it no more.
    fn mark(&self, points: &[Point], held: &Point) -> Result<(), LiveError> {
        let bookmark = self.name.bookmark(&self.options.names.bookmark(held.guid))?;
        if points.iter().any(|point| point.name == bookmark && point.guid == held.guid) {
            return Ok(());
        }
        Ok(self.zfs.bookmark(&held.name, &bookmark)?)
    }

    fn start(&mut self, from: u64) -> Result<(), LiveError> {
        let Some(increment) = &mut self.increment else { return Err(LiveError::Unplanned) };
        let Increment { tip, base, block_len, .. } = increment;
        let snapshot = tip.name.clone();
        let sending = if from >= block_len.get() {
            let fromguid = base.as_ref().map(|base| base.guid);
            let token =
                ResumeToken::for_volume(tip.guid, tip.name.clone(), fromguid, from, *block_len);
            self.zfs.resume(&token.to_string())?
        } else {
            let base = base.as_ref().map(|base| base.name.clone());
            self.zfs.send(&SendRequest { base, ..SendRequest::full(tip.name.clone()) })?
        };
        let held = base.as_ref().map(|base| Generation::Zfs(base.guid));
        let mut stream = ZvolStream::new(sending);
        match stream.plan(held.as_ref()) {
            Ok(_) => {
                increment.stream = Some(stream);
                self.bytes_before = self.bytes_read;
                Ok(())
            }
            Err(error) => Err(failed(stream, snapshot, error)),
        }
    }
}

/// Why a stream came to its end: what the sender says of it is nearer to the cause.
fn failed(stream: ZvolStream<Sending>, snapshot: PointName, error: StreamError) -> LiveError {
    match stream.into_inner().finish() {
        Err(sender) if error.is_about_the_end() => LiveError::Zfs(sender),
        _ => LiveError::Stream { snapshot, error: error.into() },
    }
}

impl Source for LiveVolume {
    type Error = LiveError;

    fn learn(&mut self, target: &TargetState) {
        self.resume_tip = target.resume.as_ref().and_then(|resume| resume.tip);
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, LiveError> {
        self.increment = None;
        let dataset = self.look()?;
        let mut points = self.zfs.points(&self.name)?;
        if let Some(Generation::Zfs(guid)) = base {
            self.arrived(&points, *guid);
        }
        let tip = self.choose_tip(&points)?;
        points = self.zfs.points(&self.name)?;
        let generation = Generation::Zfs(tip.guid);
        let mut plan = Plan {
            kind: PlanKind::UpToDate,
            volume: None,
            base: None,
            tip: Some(generation),
            size: None,
            standing: Standing::Proven,
            bytes_expected: 0,
        };
        let held = match base {
            None => None,
            Some(Generation::Zfs(guid)) => Some(*guid),
            Some(_) if self.options.allow_full => None,
            Some(other) => return Err(LiveError::Foreign(*other)),
        };
        let from = match choose_base(&points, &tip, held) {
            Ok(Base::UpToDate) => return Ok(plan),
            Ok(Base::Nothing) => None,
            Ok(Base::Since(point)) => Some(point.clone()),
            Err(BaseError::Unknown { .. }) if self.options.allow_full => None,
            Err(error) => return Err(error.into()),
        };
        let hold = self.zfs.hold(std::slice::from_ref(&tip.name))?;
        let size = self.zfs.volsize(&tip.name)?;
        let request = SendRequest {
            base: from.as_ref().map(|point| point.name.clone()),
            ..SendRequest::full(tip.name.clone())
        };
        plan.kind = if from.is_some() { PlanKind::Incremental } else { PlanKind::Full };
        plan.base = from.as_ref().map(|point| Generation::Zfs(point.guid));
        plan.size = Some(size);
        let expected = self.zfs.send_len(&request)?;
        plan.bytes_expected = expected.map_or(0, |len| len.saturating_add(self.bytes_read));
        let device = match self.options.read_back {
            ReadBack::Nothing => None,
            _ => Some(SnapshotDevice::open(&tip.name, size)?),
        };
        let block_len = dataset.volblocksize.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN);
        self.increment = Some(Increment {
            tip,
            base: from,
            size,
            block_len,
            stream: None,
            device,
            done: false,
            _hold: hold,
        });
        Ok(plan)
    }

    fn seeks(&self) -> bool {
        true
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, LiveError> {
        if self.increment.as_ref().is_some_and(|increment| increment.stream.is_none()) {
            self.start(from)?;
        }
        let Some(increment) = &mut self.increment else { return Err(LiveError::Unplanned) };
        let snapshot = || increment.tip.name.clone();
        let Some(stream) = &mut increment.stream else { return Ok(None) };
        let next = stream.next_change(from);
        self.bytes_read = self.bytes_before + stream.bytes_read();
        match next {
            // The stream of a volume that kept its size does not say where it ends.
            Ok(Some(Change::Zero(hole))) => match hole.clamp(increment.size) {
                Some(hole) => Ok(Some(Change::Zero(hole))),
                None => self.next_change(from),
            },
            Ok(Some(change)) => {
                if let (ReadBack::Changed, Some(device)) =
                    (self.options.read_back, &increment.device)
                {
                    compare(device, &change, &increment.tip.name)?;
                }
                Ok(Some(change))
            }
            Ok(None) => {
                stream.finish().map_err(|error| LiveError::Stream {
                    snapshot: snapshot(),
                    error: error.into(),
                })?;
                if let Some(stream) = increment.stream.take() {
                    stream.into_inner().finish()?;
                }
                increment.done = true;
                Ok(None)
            }
            Err(error) => Err(match increment.stream.take() {
                Some(stream) => failed(stream, increment.tip.name.clone(), error),
                None => LiveError::Unplanned,
            }),
        }
    }

    fn finish(&mut self) -> Result<Finish, LiveError> {
        match &self.increment {
            Some(Increment { tip, size, done: true, .. }) => {
                Ok(Finish { tip: Generation::Zfs(tip.guid), size: Some(*size), root: None })
            }
            _ => Err(LiveError::Unplanned),
        }
    }

    fn read_back(&mut self) -> Result<Option<Box<dyn Volume>>, LiveError> {
        match (&mut self.increment, self.options.read_back) {
            (Some(increment), ReadBack::All) => {
                Ok(increment.device.take().map(|device| Box::new(device) as Box<dyn Volume>))
            }
            _ => Ok(None),
        }
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}

fn compare(
    device: &SnapshotDevice,
    change: &Change,
    snapshot: &PointName,
) -> Result<(), LiveError> {
    let Change::Data { offset, bytes } = change else { return Ok(()) };
    let mut shown = vec![0; bytes.len()];
    let read = device.read_at(*offset, &mut shown);
    read.map_err(|error| LiveError::Read { snapshot: snapshot.clone(), error })?;
    if shown == *bytes {
        return Ok(());
    }
    Err(LiveError::Differs { snapshot: snapshot.clone(), offset: *offset })
}

impl fmt::Debug for LiveVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveVolume").field("name", &self.name).finish_non_exhaustive()
    }
}
