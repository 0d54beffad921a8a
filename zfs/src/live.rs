//! A data set of the ZFS on this machine as a source.
//!
//! To a target of volumes, a volume is sent as its changes; to one that is ZFS itself, any data
//! set is sent as the stream that it is. It takes or picks a snapshot, sends what changed since
//! the generation that the target holds, and goes on in the middle of what was cut off. What
//! the target has committed is bookmarked, and only snapshots and bookmarks whose names say that
//! they were made for this are destroyed.

mod error;
mod keep;
mod snapshot_group;
mod tree;

use std::{fmt, num::NonZeroU64, sync::Arc};

use driftline_extent::{
    Accepts, Ask, Change, Finish, Generation, Plan, PlanKind, Source, TargetState, Volume,
};

use crate::{
    Dataset, DatasetKind, DatasetName, KeyStatus, Point, PointName, ResumeToken, SendStream,
    SnapshotDevice, StreamError, Warning,
    host::{Abilities, Hold, Package, SendRequest, Sending, Zfs, warn_of},
    select::{
        Base, Divergence, OwnNames, OwnPoint, Request, choose_base, choose_tip, newest_common,
    },
    source::plan_of,
    warnings,
};
pub use error::LiveError;
pub use snapshot_group::SnapshotGroup;
use tree::Round;

/// Which snapshot is replicated.
#[derive(Clone, Debug)]
pub enum Pick {
    /// One that is taken for it.
    New(SnapshotGroup),
    /// The newest there is.
    Latest,
    /// This one, by its name after the `@`.
    Named(String),
}

impl Pick {
    /// Whether this is the snapshot that is taken.
    fn is_new(&self, snapshot: &PointName) -> bool {
        let Self::New(group) = self else { return false };
        group.snapshot_of(snapshot.dataset()).as_ref() == Ok(snapshot)
    }
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

/// How a data set is replicated.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Which snapshot.
    pub pick: Pick,
    /// The names of the snapshots and bookmarks that are made and removed.
    pub names: OwnNames,
    /// Whether these names are of one target: then that target is gone where it holds nothing,
    /// though something of it is bookmarked.
    pub to_one: bool,
    /// How many of these snapshots are kept after they arrived, besides the newest.
    pub keep: usize,
    /// Whether the user has agreed to a full copy: over another generation of a volume, where one
    /// copy uses the consent up, or anew of what is gone at a target that is ZFS itself.
    pub allow_full: bool,
    /// What is compared with the snapshot's device, of a volume.
    pub read_back: ReadBack,
    /// To another ZFS: as it is on disk, encrypted if it is encrypted there.
    pub raw: bool,
    /// To another ZFS: what goes with it.
    pub package: Package,
}

/// A data set, and what is being replicated of it.
pub struct LiveSource {
    zfs: Zfs,
    /// The data set that is replicated, with all below it if the options say so.
    root: DatasetName,
    /// The one that is planned for: the root, or one below it.
    name: DatasetName,
    options: LiveOptions,
    /// Whether anything was sent of the snapshot that was taken in this run: it can be gone on
    /// with from then on.
    needed: bool,
    /// What the target can take in.
    accepts: Accepts,
    /// The guid of what the target holds, if that is one of ZFS.
    held: Option<u64>,
    /// The look at the data sets below the root, of a tree that goes by one stream.
    round: Option<Round>,
    /// Whether the target was just asked to throw away what it keeps of a stream.
    discarded: bool,
    /// The snapshot that an increment of a volume which was cut off led to.
    cut: Option<Generation>,
    /// Whether the target holds nothing, and nothing is on its way to it.
    empty: bool,
    increment: Option<Increment>,
    /// Of all increments.
    bytes_read: u64,
    /// Of those before the stream that is being read.
    bytes_before: u64,
    /// Whether what is known to be wrong with this ZFS was said.
    warned: bool,
    /// Whether it was said that the device cannot be read.
    blind: bool,
    /// What keeps others from changing the volume meanwhile, if anything does.
    guard: Option<Box<dyn Send>>,
    /// Whether it was said that nothing is encrypted that is to be sent so.
    plain: bool,
}

/// What is being sent.
struct Increment {
    tip: Point,
    base: Option<Point>,
    /// What a stream goes on from, where one was cut off.
    token: Option<ResumeToken>,
    /// How much the stream holds.
    package: Package,
    /// Of a volume that is sent as its changes.
    shape: Option<Shape>,
    /// Whether it is sent as it is on disk.
    raw: bool,
    stream: Option<SendStream<Sending>>,
    device: Option<SnapshotDevice>,
    /// Whether the snapshot's device was handed out for reading.
    shown: bool,
    /// What it led to, once it was sent whole.
    finish: Option<Finish>,
    /// Nobody destroys the snapshot before it has arrived.
    _hold: Hold,
}

#[derive(Clone, Copy)]
struct Shape {
    size: u64,
    block_len: NonZeroU64,
}

/// Why a stream came to its end: what its sender says of that is nearer to the cause.
fn failed(stream: SendStream<Sending>, snapshot: &PointName, error: StreamError) -> LiveError {
    match stream.into_inner().finish() {
        Err(sender) if error.is_about_the_end() => LiveError::Zfs(sender),
        Err(_) => in_stream(snapshot, error),
        Ok(said) => {
            warn_of(snapshot.dataset(), &said);
            in_stream(snapshot, error)
        }
    }
}

fn in_stream(snapshot: &PointName, error: StreamError) -> LiveError {
    LiveError::Stream { snapshot: snapshot.clone(), error: error.into() }
}

impl LiveSource {
    /// The data set of this name. Nothing is looked at yet.
    pub fn new(zfs: Zfs, name: DatasetName, options: LiveOptions) -> Self {
        Self {
            zfs,
            root: name.clone(),
            name,
            options,
            needed: false,
            accepts: Accepts::Volume,
            held: None,
            round: None,
            discarded: false,
            cut: None,
            empty: false,
            increment: None,
            bytes_read: 0,
            bytes_before: 0,
            warned: false,
            blind: false,
            guard: None,
            plain: false,
        }
    }

    /// Keeps this for as long as the source is open: what holds off whoever else would write the
    /// volume before its snapshot is taken.
    #[must_use]
    pub fn holding(mut self, guard: Box<dyn Send>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Says what is known to be wrong with this version of ZFS, once.
    fn warn(&mut self, dataset: &Dataset) {
        if std::mem::replace(&mut self.warned, true) {
            return;
        }
        // Those before 0.8 do not know their version.
        let Ok((userland, kernel)) = self.zfs.versions() else { return };
        let encrypted = dataset.encryption.is_some();
        for known in warnings(&userland, kernel.as_ref(), encrypted, self.options.raw) {
            let Warning { word, version, means, advice } = known;
            tracing::warn!(warning = word, %version, "{means}; {advice}");
        }
    }

    fn look(&self) -> Result<Dataset, LiveError> {
        let dataset = self.zfs.dataset(&self.name)?;
        let dataset = dataset.ok_or_else(|| LiveError::NotFound(self.name.clone()))?;
        let as_volume = self.accepts == Accepts::Volume;
        match (dataset.kind, dataset.key) {
            (DatasetKind::FileSystem, _) if as_volume => {
                Err(LiveError::FileSystem(self.name.clone()))
            }
            (_, KeyStatus::Unavailable) if as_volume || !self.options.raw => {
                Err(LiveError::KeyNotLoaded(self.name.clone()))
            }
            _ => Ok(dataset),
        }
    }

    /// The snapshot that a resume token leads to, and what it starts from.
    fn go_on(&self, token: &str, points: &[Point]) -> Result<(Point, ResumeToken), LiveError> {
        let stale = |why: String| LiveError::Token { why };
        if !self.zfs.abilities()?.resume {
            return Err(stale("the ZFS of the source cannot send the rest of a stream".to_owned()));
        }
        let mut token: ResumeToken = token.parse().map_err(|e| stale(format!("{e}")))?;
        let tip = points.iter().find(|point| point.is_snapshot() && point.guid == token.toguid);
        let Some(tip) = tip else {
            return Err(stale(format!(
                "{} is no snapshot of {} any more",
                token.toname, self.name
            )));
        };
        // By its present name, as ZFS looks for it under that.
        token.toname = tip.name.clone();
        Ok((tip.clone(), token))
    }

    /// What is sent next to a target that holds `held`.
    fn choose_tip(
        &mut self,
        points: &[Point],
        held: Option<&Generation>,
    ) -> Result<Point, LiveError> {
        let cut = self.cut.take();
        let cut = points
            .iter()
            .find(|point| point.is_snapshot() && cut == Some(Generation::zfs(point.guid)));
        if let Some(point) = cut {
            return Ok(point.clone());
        }
        let round = self.round.as_ref().filter(|_| self.name != self.root);
        if let Some(short) = round.and_then(|round| round.short.as_ref()) {
            let wanted = self.name.snapshot(short)?;
            return Ok(choose_tip(points, Request::Named(&wanted))?.clone());
        }
        match &self.options.pick {
            Pick::Named(name) => {
                let wanted = self.name.snapshot(name)?;
                Ok(choose_tip(points, Request::Named(&wanted))?.clone())
            }
            Pick::Latest => Ok(choose_tip(points, Request::Latest(&self.name))?.clone()),
            Pick::New(group) => self.take_snapshot(&group.clone(), points, held),
        }
    }

    /// The snapshot of this run, taken when it is first asked for. One that could not be sent is
    /// not taken.
    fn take_snapshot(
        &self,
        group: &SnapshotGroup,
        points: &[Point],
        held: Option<&Generation>,
    ) -> Result<Point, LiveError> {
        let name = group.snapshot_of(&self.name).map_err(LiveError::LongName)?;
        if !self.needed {
            let (createtxg, user_refs) = (u64::MAX, None);
            let planned = Point { name: name.clone(), guid: 0, createtxg, creation: 0, user_refs };
            self.choose_base(points, &planned, held)?;
        }
        group.take(&name)?;
        let points = self.zfs.points(&self.name)?;
        Ok(choose_tip(&points, Request::Named(&name))?.clone())
    }

    /// Which point the increment to `tip` starts from.
    fn choose_base<'a>(
        &self,
        points: &'a [Point],
        tip: &Point,
        held: Option<&Generation>,
    ) -> Result<Base<'a>, LiveError> {
        // An increment would leave as it is what it does not touch.
        if self.options.allow_full && self.accepts == Accepts::Volume {
            return Ok(Base::Nothing);
        }
        let held = match held {
            None => None,
            Some(held) => Some(held.zfs_guid().ok_or(LiveError::Foreign(*held))?),
        };
        match choose_base(points, tip, held) {
            Ok(base) => Ok(base),
            Err(error) => match self.common(points)? {
                // ZFS receives over later snapshots of the target's own that hold nothing new,
                // unless the stream is raw. Whether these do the target looks.
                Some(guid) if guid != tip.guid && !self.options.raw => {
                    Ok(choose_base(points, tip, Some(guid))?)
                }
                _ => Err(error.into()),
            },
        }
    }

    /// What a target that is a data set itself has in common with the source, by its guid. Where
    /// that is raw, or nothing, names what the target has beyond.
    fn common(&self, points: &[Point]) -> Result<Option<u64>, LiveError> {
        let Accepts::Stream { points: theirs, .. } = &self.accepts else { return Ok(None) };
        // They are told newest first.
        let numbered = theirs.iter().rev().zip(1..);
        let theirs: Vec<Point> = numbered
            .filter_map(|(point, createtxg)| {
                let name = point.name.parse().ok()?;
                Some(Point { name, guid: point.guid, createtxg, creation: 0, user_refs: None })
            })
            .collect();
        let Some(newest) = theirs.last() else { return Ok(None) };
        let dataset = newest.name.dataset();
        match newest_common(points, &theirs, dataset, false) {
            Ok(common) => Ok(common.map(|common| common.target.guid)),
            Err(Divergence { common: Some(common), .. }) if !self.options.raw => {
                Ok(theirs.iter().find(|point| point.name == common).map(|point| point.guid))
            }
            Err(divergence) => Err(divergence.into()),
        }
    }

    /// What must be known of a volume that is sent as its changes.
    fn shape_of(&self, dataset: &Dataset, tip: &Point) -> Result<Option<Shape>, LiveError> {
        if self.accepts != Accepts::Volume {
            return Ok(None);
        }
        let block_len = dataset.volblocksize.and_then(NonZeroU64::new);
        let block_len = block_len.unwrap_or(NonZeroU64::MIN);
        Ok(Some(Shape { size: self.zfs.volsize(&tip.name)?, block_len }))
    }

    /// Refuses a target that holds nothing though something had arrived there, unless the user
    /// has agreed to a copy anew.
    fn check_gone(&self, points: &[Point]) -> Result<(), LiveError> {
        let LiveOptions { to_one, allow_full, names, .. } = &self.options;
        if !self.empty || !to_one || *allow_full {
            return Ok(());
        }
        // A data set below the root of a tree that has no mark is new, or its first stream was cut
        // off.
        let is_mark =
            |point: &&Point| names.parse(&point.name) == Some(OwnPoint::Bookmark(point.guid));
        match points.iter().filter(is_mark).max_by_key(|point| point.createtxg) {
            Some(mark) => {
                let path = self.path();
                let at = if path.is_empty() { String::new() } else { format!(" at {path:?}") };
                Err(LiveError::Gone { at, mark: mark.name.clone() })
            }
            None => Ok(()),
        }
    }

    /// Whether the stream is made raw (`-w`). ZFS puts embedded blocks into a raw stream of what is
    /// not encrypted, and a data set that is encrypted where it arrives takes none. Such a stream
    /// has nothing else to itself, so it is not made.
    fn is_raw(&mut self, dataset: &Dataset, package: Package) -> Result<bool, LiveError> {
        if !self.options.raw || self.accepts == Accepts::Volume || dataset.encryption.is_some() {
            return Ok(self.options.raw);
        }
        let is_encrypted = match package {
            Package::One | Package::Properties | Package::Steps => false,
            Package::Replicate => {
                self.zfs.tree(&self.name)?.iter().any(|member| member.encryption.is_some())
            }
        };
        if !is_encrypted && !std::mem::replace(&mut self.plain, true) {
            tracing::warn!(
                dataset = %self.name,
                "the source is not encrypted, so --raw has no effect: its replica is encrypted only \
                 below an encrypted data set of the target"
            );
        }
        Ok(is_encrypted)
    }

    fn start(&mut self, from: u64) -> Result<(), LiveError> {
        let abilities = self.zfs.abilities()?;
        let Some(increment) = &mut self.increment else { return Err(LiveError::Unplanned) };
        let Increment { tip, base, token, shape, .. } = &*increment;
        let block_len = shape.map(|shape| shape.block_len);
        let token = match (token, block_len) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(block_len)) if abilities.resume && from >= block_len.get() => {
                let fromguid = base.as_ref().map(|base| base.guid);
                let name = tip.name.clone();
                Some(ResumeToken::for_volume(tip.guid, name, fromguid, from, block_len))
            }
            _ => None,
        };
        let sending = match token {
            Some(token) => self.zfs.resume(&token.to_string())?,
            None => self.zfs.send(&request(increment, abilities))?,
        };
        let held = base.as_ref().map(|base| Generation::zfs(base.guid));
        let mut stream = SendStream::for_target(sending, &self.accepts);
        match stream.plan(held.as_ref()) {
            Ok(_) => {
                self.needed |= self.options.pick.is_new(&increment.tip.name);
                increment.stream = Some(stream);
                self.bytes_before = self.bytes_read;
                Ok(())
            }
            Err(error) => Err(failed(stream, &tip.name, error)),
        }
    }
}

/// What is asked of `zfs send` for an increment that starts at its beginning.
fn request(increment: &Increment, abilities: Abilities) -> SendRequest {
    let base = increment.base.as_ref().map(|base| base.name.clone());
    let plain = !abilities.stored_blocks;
    let request = SendRequest { base, plain, ..SendRequest::full(increment.tip.name.clone()) };
    match increment.shape {
        Some(_) => request,
        None => SendRequest { raw: increment.raw, package: increment.package, ..request },
    }
}

impl Source for LiveSource {
    type Error = LiveError;

    fn learn(&mut self, target: &TargetState) {
        self.accepts = target.accepts.clone();
        self.cut = target.resume.as_ref().and_then(|resume| resume.tip);
        self.held = target.generation.as_ref().and_then(Generation::zfs_guid);
        let is_cut = matches!(&target.accepts, Accepts::Stream { token: Some(_), .. });
        self.empty = target.generation.is_none() && target.resume.is_none() && !is_cut;
    }

    fn ask(&mut self) -> Result<Option<Ask>, LiveError> {
        self.question()
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, LiveError> {
        self.increment = None;
        let dataset = self.look()?;
        self.warn(&dataset);
        let abilities = self.zfs.abilities()?;
        let points = self.zfs.points(&self.name)?;
        self.check_gone(&points)?;
        if let Some(guid) = base.and_then(Generation::zfs_guid) {
            self.arrived(&points, guid, abilities);
        }
        let token = match &self.accepts {
            Accepts::Stream { token: Some(token), .. } => Some(self.go_on(token, &points)?),
            _ => None,
        };
        let cut = self.cut.as_ref().and_then(Generation::zfs_guid);
        let needed = token.as_ref().map(|(_, token)| token.toguid).into_iter().chain(cut);
        self.tidy(&points, abilities, &needed.collect::<Vec<_>>());
        let (tip, token) = match token {
            Some((tip, token)) => (tip, Some(token)),
            None => (self.choose_tip(&points, base)?, None),
        };
        let found = self.choose_base(&points, &tip, base)?;
        let package = self.package(&found);
        let from = match found {
            Base::UpToDate => return Ok(plan_of(PlanKind::UpToDate, None, Some(tip.guid))),
            Base::Nothing => None,
            Base::Since(point) => Some(point.clone()),
        };
        let hold = self.zfs.hold(std::slice::from_ref(&tip.name))?;
        let shape = self.shape_of(&dataset, &tip)?;
        let raw = self.is_raw(&dataset, package)?;
        let kind = match (shape, &from) {
            (None, _) => PlanKind::Stream,
            (Some(_), Some(_)) => PlanKind::Incremental,
            (Some(_), None) => PlanKind::Full,
        };
        // Of a package ZFS says where it leads only at its end.
        let told = shape.is_some() || !matches!(package, Package::Replicate | Package::Steps);
        let start = from.as_ref().map(|point| Generation::zfs(point.guid));
        let mut plan = plan_of(kind, start, told.then_some(tip.guid));
        plan.size = shape.map(|shape| shape.size);
        let device = match (shape, self.options.read_back) {
            (None, _) | (_, ReadBack::Nothing) => None,
            (Some(shape), _) => Some(SnapshotDevice::open(&tip.name, shape.size)?),
        };
        let increment = Increment {
            tip,
            base: from,
            token,
            package,
            shape,
            raw,
            stream: None,
            device,
            shown: false,
            finish: None,
            _hold: hold,
        };
        // What is left of a stream that was cut off ZFS does not estimate well.
        if increment.token.is_none() {
            let request = request(&increment, abilities);
            let expected = self.zfs.send_len(&request)?;
            plan.bytes_expected = expected.map_or(0, |len| len.saturating_add(self.bytes_read));
        }
        self.increment = Some(increment);
        Ok(plan)
    }

    fn seeks(&self) -> bool {
        true
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, LiveError> {
        let is_new =
            |increment: &Increment| increment.stream.is_none() && increment.finish.is_none();
        if self.increment.as_ref().is_some_and(is_new) {
            self.start(from)?;
        }
        let Some(increment) = &mut self.increment else { return Err(LiveError::Unplanned) };
        loop {
            let Some(stream) = &mut increment.stream else { return Ok(None) };
            let next = stream.next_change(from);
            self.bytes_read = self.bytes_before + stream.bytes_read();
            let snapshot = &increment.tip.name;
            match (next, increment.shape, increment.stream.take()) {
                // The stream of a volume that kept its size does not say where it ends.
                (Ok(Some(Change::Zero(hole))), Some(shape), stream) => {
                    increment.stream = stream;
                    if let Some(hole) = hole.clamp(shape.size) {
                        return Ok(Some(Change::Zero(hole)));
                    }
                }
                (Ok(Some(change)), _, stream) => {
                    increment.stream = stream;
                    if let (ReadBack::Changed, Some(device)) =
                        (self.options.read_back, &increment.device)
                    {
                        compare(device, &change, snapshot)?;
                    }
                    return Ok(Some(change));
                }
                (Ok(None), shape, Some(mut stream)) => {
                    let finish = match stream.finish() {
                        Ok(finish) => finish,
                        Err(error) => return Err(failed(stream, snapshot, error)),
                    };
                    warn_of(&self.name, &stream.into_inner().finish()?);
                    let size = shape.map(|shape| shape.size);
                    increment.finish = Some(Finish { size, ..finish });
                    // Of a tree several data sets may be copied anew, each by a stream of its own.
                    self.options.allow_full &= increment.shape.is_none();
                    return Ok(None);
                }
                (Err(error), _, Some(stream)) => return Err(failed(stream, snapshot, error)),
                (_, _, None) => return Err(LiveError::Unplanned),
            }
        }
    }

    fn finish(&mut self) -> Result<Finish, LiveError> {
        let increment = self.increment.as_ref().ok_or(LiveError::Unplanned)?;
        match (&increment.finish, increment.shape) {
            (Some(finish), _) => Ok(finish.clone()),
            // What was read is the snapshot, which does not change.
            (None, Some(shape)) if increment.shown && increment.stream.is_none() => {
                self.needed |= self.options.pick.is_new(&increment.tip.name);
                let tip = Generation::zfs(increment.tip.guid);
                Ok(Finish { tip, size: Some(shape.size), root: None })
            }
            _ => Err(LiveError::Unplanned),
        }
    }

    fn plan_whole(&mut self) -> Result<Option<Plan>, LiveError> {
        if self.accepts == Accepts::Volume { self.plan(None).map(Some) } else { Ok(None) }
    }

    fn reader(&mut self) -> Result<Option<Arc<dyn Volume + Send + Sync>>, LiveError> {
        let Some(increment) = &mut self.increment else { return Ok(None) };
        let Some(shape) = increment.shape else { return Ok(None) };
        let opened = match self.zfs.property(self.name.clone(), "snapdev") {
            Ok(shows) if shows == "visible" => {
                SnapshotDevice::open(&increment.tip.name, shape.size).map_err(|e| e.to_string())
            }
            Ok(_) => Err("its snapshots have no devices".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(device) => {
                increment.shown = true;
                Ok(Some(Arc::new(device)))
            }
            Err(why) => {
                if !std::mem::replace(&mut self.blind, true) {
                    let dataset = &self.name;
                    tracing::info!(
                        %dataset, why,
                        "Driftline cannot audit what ZFS calls unchanged: run `zfs set \
                         snapdev=visible {dataset}`, and give this user read access to the devices"
                    );
                }
                Ok(None)
            }
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

/// Compares what is sent with what the snapshot's device shows.
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

impl Drop for LiveSource {
    fn drop(&mut self) {
        // It is held for as long as it is to be sent.
        self.increment = None;
        match &self.options.pick {
            Pick::New(group) if !self.needed => group.withdraw(&self.root),
            _ => {}
        }
    }
}

impl fmt::Debug for LiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSource").field("name", &self.name).finish_non_exhaustive()
    }
}
