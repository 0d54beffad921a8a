//! Every kind of source behind one type.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::fs::FileTypeExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use driftline_drbd::{
    CrossChecks, DrbdError, DrbdVolume, Layout, LiveError as DrbdLiveError, LiveVolume,
};
use driftline_extent::{
    Ask, Change, Explained, Finish, Generation, Plan, PlanKind, Reason, Source, TargetState, Volume,
};
use driftline_transport::{SOURCE_PATIENCE, SourceJob, auditor::Auditor, deliver::LastSeen};
use driftline_zfs::{DatasetName, LiveError, LiveSource, Pick, SendStream, StreamError, host::Zfs};

use crate::{
    args, content,
    exit::misused,
    linstor::{LinstorSource, LinstorSourceError},
    place::Place,
    plain::{PlainError, PlainVolume},
    stop::hold,
    terms::{Terms, drbd_options, group, group_of_tree, live_options},
    told::{Told, plain_map},
};

/// Read-ahead of a stream.
const STREAM_BUFFER_LEN: usize = 1 << 20;

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

/// Whether a source of this kind has something in its storage while it is open, which has to be
/// given back before the process ends: snapshots, holds, I/O that is suspended.
pub(crate) const fn leaves_something(place: &Place) -> bool {
    matches!(place, Place::Zfs(_) | Place::DrbdVolume { .. } | Place::Linstor { .. })
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
            misused!("{place} is a replica: to replicate it further, write zfs:{name}")
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
        // To open a pipe waits until somebody writes to it, for ever if nobody does.
        Place::File(path) if fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) => {
            misused!("{place} is a pipe: name a file or a block device")
        }
        Place::File(path) => {
            Ok(AnySource::Plain(PlainVolume::open(path, overwrite, terms.trust.dir)?))
        }
        Place::Drbd { path, meta, index } => {
            let name = place.to_string();
            let open = |path: &Path| {
                let content = content::open(path, terms.trust.dir);
                Ok::<_, anyhow::Error>(content.with_context(|| place.to_string())?.disk)
            };
            let layout = index.map_or(Layout::External, Layout::Indexed);
            let meta = meta.as_deref().map(open).transpose()?.map(|disk| (disk, layout));
            let volume = DrbdVolume::open(open(path)?, meta).map_err(|e| in_drbd(&name, e))?;
            let volume = volume.allow_full(overwrite).rotated(terms.drbd.rotated);
            Ok(AnySource::Drbd { name, volume: Box::new(volume) })
        }
        Place::DrbdVolume { resource, volume } => {
            let options = drbd_options(place, terms)?;
            let live = LiveVolume::open(resource, *volume, options).map_err(SourceError::from)?;
            Ok(AnySource::DrbdLive(Box::new(live)))
        }
        Place::Linstor { .. } => {
            Ok(AnySource::Linstor(Box::new(LinstorSource::open(place, terms)?)))
        }
        Place::Remote { .. } => misused!("{place} is remote: pull from it to a local target"),
    }
}

fn live(name: &DatasetName, terms: Terms<'_>) -> anyhow::Result<LiveSource> {
    let Terms { zfs: wanted, to, .. } = terms;
    let zfs = Zfs::find()?;
    let pick = match (&wanted.snapshot, terms.group) {
        (Some(name), _) => Pick::Named(name.clone()),
        (None, _) if wanted.latest => Pick::Latest,
        (None, Some(group)) => Pick::New(group.clone()),
        (None, None) if wanted.with == Some(args::With::Tree) => {
            Pick::New(group_of_tree(zfs.clone(), wanted, to, name)?)
        }
        (None, None) => Pick::New(group(zfs.clone(), wanted, to, [name])?),
    };
    let live = LiveSource::new(zfs, name.clone(), live_options(pick, terms)?);
    Ok(match content::hold_zvol(name, terms.trust.dir)? {
        Some(held) => live.holding(Box::new(held)),
        None => live,
    })
}

/// What checks the maps of this source. A plain file has none, nor has a thin volume of
/// LINSTOR, and each run reads all of it.
fn auditor(
    terms: &Terms<'_>,
    place: &Place,
    source: &AnySource,
) -> anyhow::Result<Option<Auditor>> {
    match source {
        AnySource::Live(_) | AnySource::Drbd { .. } | AnySource::DrbdLive(_) => {
            terms.trust.auditor(place).map(Some)
        }
        AnySource::Linstor(linstor) if linstor.has_maps() => terms.trust.auditor(place).map(Some),
        AnySource::Plain(_) | AnySource::Linstor(_) => Ok(None),
        AnySource::Stream { name, .. } => {
            tracing::info!(
                source = name,
                "a recorded stream shows only what it calls changed: Driftline cannot audit the rest"
            );
            Ok(None)
        }
    }
}

/// Opens a local source for a session.
pub(crate) fn job(
    place: &Place,
    terms: Terms<'_>,
    compression: Option<i32>,
) -> anyhow::Result<SourceJob<AnySource>> {
    let held = leaves_something(place).then(hold);
    let source = open(place, terms)?;
    let auditor = auditor(&terms, place, &source)?;
    let compare = terms.trust.audit.compare;
    Ok(SourceJob { auditor, compare, held, ..job_of(source, terms.overwrite, compression) })
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
    SourceJob {
        source,
        volume,
        overwrite,
        compare: false,
        arrived: LastSeen::Nothing,
        compression,
        auditor: None,
        patience: SOURCE_PATIENCE,
        held: None,
    }
}

impl AnySource {
    /// What is found where its map is held against another, once it was.
    pub(crate) fn cross_checks(&self) -> CrossChecks {
        match self {
            Self::DrbdLive(live) => live.cross_checks(),
            _ => CrossChecks::default(),
        }
    }

    /// What its storage calls it, if that is read already: others may have that name as well.
    pub(crate) fn generation(&self) -> Option<Generation> {
        match self {
            Self::Drbd { volume, .. } => {
                Some(Generation::drbd(volume.metadata().superblock.current_uuid))
            }
            _ => None,
        }
    }

    /// The maps of all increments that the source holds, one after the other.
    pub(crate) fn maps(
        &mut self,
        each: &mut dyn FnMut(Told) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Live(_) => misused!(
                "the map of a volume of ZFS is in its stream: `zfs send -Lc … | driftline map \
                 zstream:-`"
            ),
            Self::Stream { name, stream, .. } => {
                while let Some(map) = stream.next_map().with_context(|| name.clone())? {
                    each(map.into())?;
                }
                Ok(())
            }
            Self::Plain(plain) => {
                let map = plain_map(plain.volume().as_ref());
                each(map.map_err(|error| plain.io(error))?.into())
            }
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

    fn ask(&mut self) -> Result<Option<Ask>, SourceError> {
        match self {
            Self::Live(live) => Ok(live.ask()?),
            Self::Stream { .. }
            | Self::Plain(_)
            | Self::Drbd { .. }
            | Self::DrbdLive(_)
            | Self::Linstor(_) => Ok(None),
        }
    }

    fn recall(&mut self, record: Option<&[u8]>) {
        match self {
            Self::Drbd { volume, .. } => volume.recall(record),
            Self::DrbdLive(live) => live.recall(record),
            // No map of theirs needs to know the base from within.
            Self::Live(_) | Self::Stream { .. } | Self::Plain(_) | Self::Linstor(_) => {}
        }
    }

    fn record(&self) -> Option<Vec<u8>> {
        match self {
            Self::Drbd { volume, .. } => volume.record(),
            Self::DrbdLive(live) => live.record(),
            Self::Live(_) | Self::Stream { .. } | Self::Plain(_) | Self::Linstor(_) => None,
        }
    }

    fn is_unnamed(&mut self) -> Result<bool, SourceError> {
        match self {
            Self::Drbd { name, volume } => {
                volume.is_unnamed().map_err(|error| in_drbd(name, error))
            }
            Self::DrbdLive(live) => Ok(live.is_unnamed()?),
            Self::Live(_) | Self::Stream { .. } | Self::Plain(_) | Self::Linstor(_) => Ok(false),
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
        tracing::warn!(source, reason, "the map is not proven: comparing everything");
    }
}

fn in_stream(name: &str, error: StreamError) -> SourceError {
    SourceError::Stream { name: name.to_owned(), error }
}

fn in_drbd(name: &str, error: DrbdError) -> SourceError {
    SourceError::Drbd { name: name.to_owned(), error }
}
