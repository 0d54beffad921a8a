//! Every kind of source behind one type.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use driftline_drbd::{
    CrossChecks, DrbdError, DrbdVolume, GuardCommand, Layout, LiveError as DrbdLiveError,
    LiveOptions as DrbdOptions, LiveVolume, Map, Mode, host::CowSize,
};
use driftline_extent::{
    Change, ChangeMap, Explained, Extent, ExtentSet, Finish, Generation, Plan, PlanKind, Reason,
    Source, Standing, TargetState, Volume,
};
use driftline_target::FileDisk;
use driftline_transport::{SourceJob, witness::Witness};
use driftline_zfs::{
    DatasetName, LiveError, LiveOptions, LiveSource, Moment, Pick, ReadBack, SendStream,
    StreamError,
    host::{Package, Zfs},
    select::OwnNames,
};

use crate::{
    args,
    linstor::{LinstorSource, LinstorSourceError},
    place::Place,
    plain::{PlainError, PlainVolume, volume_id},
    trust::Trust,
    zvol_delta::zvol_delta,
};

/// Read-ahead of a stream.
const STREAM_BUFFER_LEN: usize = 1 << 20;

/// What snapshots and bookmarks of ours begin with if nothing else is said.
const PREFIX: &str = "driftline";

/// For how many seconds the I/O of a DRBD volume is suspended at most, if nothing is said, and
/// what may be said.
const FREEZE_MAX: u64 = 10;
const FREEZE_RANGE: std::ops::RangeInclusive<u64> = 1..=60;

/// A source of any kind.
pub(crate) enum AnySource {
    /// A data set of the ZFS on this machine.
    Live(Box<LiveSource>),
    /// A `zfs send` stream.
    Stream {
        /// Its name, for messages.
        name: String,
        /// Its length, zero if that is not known.
        len: u64,
        stream: Box<SendStream<Box<dyn Read + Send>>>,
    },
    /// A plain file or device.
    Plain(PlainVolume),
    /// A DRBD volume by its metadata.
    Drbd {
        /// Its name, for messages.
        name: String,
        volume: Box<DrbdVolume>,
    },
    /// A volume of the DRBD on this machine.
    DrbdLive(Box<LiveVolume>),
    /// A volume of LINSTOR.
    Linstor(Box<LinstorSource>),
}

/// A change map, as `driftline map` tells it.
pub(crate) struct Told {
    pub(crate) map: ChangeMap,
    /// Bytes that DRBD's bitmap names, and bytes that only its activity log names.
    pub(crate) drbd: Option<(u64, u64)>,
}

impl From<ChangeMap> for Told {
    fn from(map: ChangeMap) -> Self {
        Self { map, drbd: None }
    }
}

impl From<Map> for Told {
    fn from(Map { map, bitmap_bytes, activity_log_bytes }: Map) -> Self {
        Self { map, drbd: Some((bitmap_bytes, activity_log_bytes)) }
    }
}

/// What is agreed about a source, besides where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// Whether the user has agreed to a full copy over whatever the target holds.
    pub(crate) overwrite: bool,
    /// How a volume of ZFS is replicated.
    pub(crate) zfs: &'a args::Zfs,
    /// How a volume of DRBD is replicated.
    pub(crate) drbd: &'a args::Drbd,
    /// How LINSTOR is spoken to.
    pub(crate) linstor: &'a args::Linstor,
    /// Where it goes, in words that are the same for each run: what is kept in ZFS for this
    /// target is told from what is kept for another by them.
    pub(crate) to: &'a str,
    /// The instant of the snapshot that is taken, if it is not this volume's alone.
    pub(crate) moment: Option<&'a Moment>,
    /// How its maps are checked.
    pub(crate) trust: Trust<'a>,
}

/// Why a source failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("{name}")]
    Stream {
        name: String,
        #[source]
        error: StreamError,
    },
    #[error(transparent)]
    Plain(#[from] PlainError),
    #[error("{name}")]
    Drbd {
        name: String,
        #[source]
        error: DrbdError,
    },
    #[error(transparent)]
    DrbdLive(#[from] DrbdLiveError),
    #[error(transparent)]
    Linstor(#[from] LinstorSourceError),
}

impl SourceError {
    /// Whether all that failed is the connection to what manages the source.
    pub(crate) const fn is_connection(&self) -> bool {
        matches!(self, Self::Linstor(error) if error.is_connection())
    }
}

impl Explained for SourceError {
    fn reason(&self) -> Reason {
        match self {
            Self::Live(error) => error.reason(),
            Self::Stream { error, .. } => error.reason(),
            Self::Plain(error) => error.reason(),
            Self::Drbd { error, .. } => error.reason(),
            Self::DrbdLive(error) => error.reason(),
            Self::Linstor(error) => error.reason(),
        }
    }
}

/// Opens a local source.
pub(crate) fn open(place: &Place, terms: Terms<'_>) -> anyhow::Result<AnySource> {
    let overwrite = terms.overwrite;
    let stream = |input: Box<dyn Read + Send>, len| {
        let stream = Box::new(SendStream::new(input).allow_full(overwrite));
        AnySource::Stream { name: place.to_string(), len, stream }
    };
    match place {
        Place::Zfs(name) => Ok(AnySource::Live(Box::new(live(name, terms)?))),
        Place::Zvol(name) => {
            bail!("{place} is a replica: to replicate it further, write zfs:{name}")
        }
        Place::Stream(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {place}"))?;
            let metadata = file.metadata()?;
            let len = if metadata.is_file() { metadata.len() } else { 0 };
            Ok(stream(Box::new(BufReader::with_capacity(STREAM_BUFFER_LEN, file)), len))
        }
        Place::StandardInput => {
            let input = BufReader::with_capacity(STREAM_BUFFER_LEN, io::stdin());
            Ok(stream(Box::new(input), 0))
        }
        Place::File(path) => Ok(AnySource::Plain(PlainVolume::open(path, overwrite)?)),
        Place::Drbd { path, meta, index } => {
            let name = place.to_string();
            let open = |path: &Path| {
                let disk =
                    FileDisk::open_read(path).with_context(|| format!("cannot open {place}"))?;
                Ok::<_, anyhow::Error>(Arc::new(disk) as Arc<dyn Volume + Send + Sync>)
            };
            let layout = index.map_or(Layout::External, Layout::Indexed);
            let meta = meta.as_deref().map(open).transpose()?.map(|disk| (disk, layout));
            let volume = DrbdVolume::open(open(path)?, meta).map_err(|e| in_drbd(&name, e))?;
            Ok(AnySource::Drbd { name, volume: Box::new(volume.allow_full(overwrite)) })
        }
        Place::DrbdVolume { resource, volume } => {
            let options = drbd_options(place, terms)?;
            let live = LiveVolume::open(resource, *volume, options).map_err(SourceError::from)?;
            Ok(AnySource::DrbdLive(Box::new(live)))
        }
        Place::Linstor { .. } => {
            Ok(AnySource::Linstor(Box::new(LinstorSource::open(place, terms)?)))
        }
        Place::Remote { .. } => bail!("{place} is remote: pull from it to a local target"),
    }
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The names of what is made in ZFS for replication to this target.
fn own_names(wanted: &args::Zfs, to: &str) -> anyhow::Result<OwnNames> {
    let prefix = wanted.prefix.as_deref().unwrap_or(PREFIX);
    Ok(OwnNames::new(prefix, id_of(&[to]))?)
}

/// What tells things that are made for one replication from those for another, which these words
/// name.
pub(crate) fn id_of(words: &[&str]) -> [u8; 4] {
    let [a, b, c, d, ..] = *blake3::hash(words.join("\0").as_bytes()).as_bytes();
    [a, b, c, d]
}

/// The instant of a run that replicates these data sets, which has not come yet.
pub(crate) fn moment<'a>(
    zfs: Zfs,
    wanted: &args::Zfs,
    to: &str,
    datasets: impl IntoIterator<Item = &'a DatasetName>,
) -> anyhow::Result<Moment> {
    let name = own_names(wanted, to)?.snapshot(now_ms());
    Ok(Moment::new(zfs, name, datasets)?)
}

fn live(name: &DatasetName, terms: Terms<'_>) -> anyhow::Result<LiveSource> {
    let Terms { zfs: wanted, to, .. } = terms;
    let zfs = Zfs::find()?;
    let pick = match (&wanted.snapshot, terms.moment) {
        (Some(name), _) => Pick::Named(name.clone()),
        (None, _) if wanted.latest => Pick::Latest,
        (None, Some(moment)) => Pick::New(moment.clone()),
        (None, None) => Pick::New(moment(zfs.clone(), wanted, to, [name])?),
    };
    Ok(LiveSource::new(zfs, name.clone(), live_options(pick, terms)?))
}

/// How this snapshot of a volume of ZFS is replicated.
pub(crate) fn live_options(pick: Pick, terms: Terms<'_>) -> anyhow::Result<LiveOptions> {
    let Terms { overwrite, zfs: wanted, to, .. } = terms;
    Ok(LiveOptions {
        pick,
        names: own_names(wanted, to)?,
        keep: wanted.keep.unwrap_or(0),
        allow_full: overwrite,
        read_back: match wanted.read_back {
            None => ReadBack::Nothing,
            Some(args::ReadBack::Changed) => ReadBack::Changed,
            Some(args::ReadBack::All) => ReadBack::All,
        },
        raw: wanted.raw,
        package: match wanted.with {
            None => Package::One,
            Some(args::With::Properties) => Package::Properties,
            Some(args::With::Tree) => Package::Replicate,
        },
    })
}

fn drbd_options(place: &Place, terms: Terms<'_>) -> anyhow::Result<DrbdOptions> {
    let Terms { overwrite, drbd: wanted, to, .. } = terms;
    let cow = wanted.cow_size.as_deref().map_or(Ok(CowSize::DEFAULT), str::parse);
    let seconds = wanted.freeze_max.unwrap_or(FREEZE_MAX);
    if !FREEZE_RANGE.contains(&seconds) {
        let (start, end) = (FREEZE_RANGE.start(), FREEZE_RANGE.end());
        bail!("--freeze-max takes {start} to {end} seconds");
    }
    if wanted.cross_check && wanted.mode == Some(args::DrbdMode::Cumulative) {
        bail!("--cross-check is of what --mode rotate records, and the mode is cumulative");
    }
    let name = place.to_string();
    Ok(DrbdOptions {
        mode: wanted.mode.map(|mode| match mode {
            args::DrbdMode::Rotate => Mode::Rotate,
            args::DrbdMode::Cumulative => Mode::Cumulative,
        }),
        cow: cow.map_err(|why| anyhow::anyhow!("--cow-size: {why}"))?,
        freeze_max: Duration::from_secs(seconds),
        // Volumes of one group share its names, and each may have several targets.
        id: id_of(&[&name, to]),
        volume: volume_id("driftline volume id v1 drbd", name.as_bytes()),
        allow_full: overwrite,
        // This very program, also if another version was installed meanwhile.
        guard: GuardCommand {
            program: "/proc/self/exe".into(),
            args: ["drbd", "guard"].map(str::to_owned).into(),
        },
        cross_check: wanted.cross_check.then_some(zvol_delta),
    })
}

impl Terms<'_> {
    /// What checks the maps of this source. A plain file has none, nor has a thin volume of
    /// LINSTOR, and each run reads all of it.
    fn witness(&self, place: &Place, source: &AnySource) -> anyhow::Result<Option<Witness>> {
        match source {
            AnySource::Live(_) | AnySource::Drbd { .. } | AnySource::DrbdLive(_) => {
                self.trust.witness(place).map(Some)
            }
            AnySource::Linstor(linstor) if linstor.has_maps() => {
                self.trust.witness(place).map(Some)
            }
            AnySource::Plain(_) | AnySource::Linstor(_) => Ok(None),
            AnySource::Stream { name, .. } => {
                tracing::info!(
                    source = name,
                    "a stream shows nothing but what it calls changed: the rest is not checked"
                );
                Ok(None)
            }
        }
    }
}

/// Opens a local source for a session.
pub(crate) fn job(
    place: &Place,
    terms: Terms<'_>,
    compression: Option<i32>,
) -> anyhow::Result<SourceJob<AnySource>> {
    let source = open(place, terms)?;
    let witness = terms.witness(place, &source)?;
    let compare = terms.trust.audit.compare;
    Ok(SourceJob { witness, compare, ..job_of(source, terms.overwrite, compression) })
}

/// An open source, for a session in which nothing checks its maps.
pub(crate) fn job_of(
    source: AnySource,
    overwrite: bool,
    compression: Option<i32>,
) -> SourceJob<AnySource> {
    let volume = match &source {
        AnySource::Live(_) | AnySource::Stream { .. } => None,
        AnySource::Plain(plain) => Some(plain.volume()),
        AnySource::Drbd { volume, .. } => Some(volume.volume()),
        AnySource::DrbdLive(live) => Some(live.volume()),
        AnySource::Linstor(linstor) => linstor.volume(),
    };
    SourceJob { source, volume, overwrite, compare: false, compression, witness: None }
}

impl AnySource {
    /// What is found where its map is held against another, once it was.
    pub(crate) fn cross_checks(&self) -> CrossChecks {
        match self {
            Self::DrbdLive(live) => live.cross_checks(),
            _ => CrossChecks::default(),
        }
    }

    /// The maps of all increments that the source holds, one after the other.
    pub(crate) fn maps(
        &mut self,
        each: &mut dyn FnMut(Told) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Live(_) => bail!(
                "the map of a volume of ZFS is in its stream: `zfs send -Lce … | driftline map \
                 zstream:-`"
            ),
            Self::Stream { name, stream, .. } => {
                while let Some(map) = stream.next_map().with_context(|| name.clone())? {
                    each(map.into())?;
                }
                Ok(())
            }
            Self::Plain(plain) => each(plain_map(plain.volume().as_ref())?.into()),
            Self::Drbd { name, volume } => {
                let maps = volume.maps().map_err(|error| in_drbd(name, error))?;
                maps.into_iter().try_for_each(|map| each(map.into()))
            }
            Self::DrbdLive(live) => {
                let maps = live.maps().map_err(SourceError::from)?;
                maps.into_iter().try_for_each(|map| each(map.into()))
            }
            Self::Linstor(linstor) => {
                let maps = linstor.maps().map_err(SourceError::from)?;
                maps.into_iter().try_for_each(each)
            }
        }
    }
}

/// All that a plain file can say: where its holes are.
pub(crate) fn plain_map(volume: &dyn Volume) -> io::Result<ChangeMap> {
    let size = volume.size();
    let mut changed = ExtentSet::new();
    let mut next = 0;
    while let Some(data) = volume.next_data(next)?.and_then(|data| data.clamp(size)) {
        changed.insert(data);
        next = data.end();
    }
    let whole: ExtentSet = Extent::new(0, size).into_iter().collect();
    Ok(ChangeMap {
        base: None,
        tip: None,
        size: Some(size),
        granularity: 1,
        zero: whole.subtract(&changed),
        changed,
        standing: Standing::Suspect(Reason::MapMissing),
    })
}

impl Source for AnySource {
    type Error = SourceError;

    fn learn(&mut self, target: &TargetState) {
        match self {
            Self::Live(live) => live.learn(target),
            Self::Stream { stream, .. } => stream.learn(target),
            Self::Plain(plain) => plain.learn(target),
            Self::Drbd { volume, .. } => volume.learn(target),
            Self::DrbdLive(live) => live.learn(target),
            Self::Linstor(linstor) => linstor.learn(target),
        }
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, SourceError> {
        match self {
            Self::Live(live) => Ok(live.plan(base)?),
            Self::Stream { name, len, stream } => {
                let plan = stream.plan(base).map_err(|error| in_stream(name, error))?;
                // A stream knows neither its own length nor the volume's before its end.
                Ok(Plan { bytes_expected: *len, ..plan })
            }
            Self::Plain(plain) => Ok(plain.plan(base)?),
            Self::Drbd { name, volume } => {
                let plan = volume.plan(base).map_err(|error| in_drbd(name, error))?;
                warn_of(name, &plan);
                Ok(plan)
            }
            Self::DrbdLive(live) => {
                let plan = live.plan(base)?;
                warn_of(&live.name(), &plan);
                Ok(plan)
            }
            Self::Linstor(linstor) => Ok(linstor.plan(base)?),
        }
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, SourceError> {
        match self {
            Self::Live(live) => Ok(live.next_change(from)?),
            Self::Stream { name, stream, .. } => {
                stream.next_change(from).map_err(|error| in_stream(name, error))
            }
            Self::Plain(plain) => Ok(plain.next_change(from)?),
            Self::Drbd { name, volume } => {
                volume.next_change(from).map_err(|error| in_drbd(name, error))
            }
            Self::DrbdLive(live) => Ok(live.next_change(from)?),
            Self::Linstor(linstor) => Ok(linstor.next_change(from)?),
        }
    }

    fn finish(&mut self) -> Result<Finish, SourceError> {
        match self {
            Self::Live(live) => Ok(live.finish()?),
            Self::Stream { name, stream, .. } => {
                stream.finish().map_err(|error| in_stream(name, error))
            }
            Self::Plain(plain) => Ok(plain.finish()?),
            Self::Drbd { name, volume } => volume.finish().map_err(|error| in_drbd(name, error)),
            Self::DrbdLive(live) => Ok(live.finish()?),
            Self::Linstor(linstor) => Ok(linstor.finish()?),
        }
    }

    fn seeks(&self) -> bool {
        match self {
            Self::Live(live) => live.seeks(),
            Self::Linstor(linstor) => linstor.seeks(),
            Self::Stream { .. } | Self::Plain(_) | Self::Drbd { .. } | Self::DrbdLive(_) => false,
        }
    }

    fn read_back(&mut self) -> Result<Option<Box<dyn Volume>>, SourceError> {
        match self {
            Self::Live(live) => Ok(live.read_back()?),
            Self::Linstor(linstor) => Ok(linstor.read_back()?),
            Self::Stream { .. } | Self::Plain(_) | Self::Drbd { .. } | Self::DrbdLive(_) => {
                Ok(None)
            }
        }
    }

    fn plan_whole(&mut self) -> Result<Option<Plan>, SourceError> {
        match self {
            Self::Live(live) => Ok(live.plan_whole()?),
            Self::Linstor(linstor) => Ok(linstor.plan_whole()?),
            // All of these can be read at any offset, or are recorded.
            Self::Stream { .. } | Self::Plain(_) | Self::Drbd { .. } | Self::DrbdLive(_) => {
                Ok(None)
            }
        }
    }

    fn reader(&mut self) -> Result<Option<Arc<dyn Volume + Send + Sync>>, SourceError> {
        match self {
            Self::Live(live) => Ok(live.reader()?),
            Self::Linstor(linstor) => Ok(linstor.reader()?),
            // These have one from the beginning, or none.
            Self::Stream { .. } | Self::Plain(_) | Self::Drbd { .. } | Self::DrbdLive(_) => {
                Ok(None)
            }
        }
    }

    fn bytes_read(&self) -> u64 {
        match self {
            Self::Live(live) => live.bytes_read(),
            Self::Stream { stream, .. } => stream.bytes_read(),
            Self::Plain(plain) => plain.bytes_read(),
            Self::Drbd { volume, .. } => volume.bytes_read(),
            Self::DrbdLive(live) => live.bytes_read(),
            Self::Linstor(linstor) => linstor.bytes_read(),
        }
    }
}

/// Says so where everything is compared though metadata is there.
fn warn_of(source: &str, plan: &Plan) {
    if plan.kind == PlanKind::Scan
        && let Some(reason) = plan.standing.reason()
    {
        let reason = reason.as_str();
        tracing::warn!(source, reason, "what changed is not proven: all is compared");
    }
}

fn in_stream(name: &str, error: StreamError) -> SourceError {
    SourceError::Stream { name: name.to_owned(), error }
}

fn in_drbd(name: &str, error: DrbdError) -> SourceError {
    SourceError::Drbd { name: name.to_owned(), error }
}
