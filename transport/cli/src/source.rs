//! Every kind of source behind one type.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use driftline_drbd::{DrbdError, DrbdVolume, Layout, Map};
use driftline_extent::{
    Change, ChangeMap, Explained, Extent, ExtentSet, Finish, Generation, Plan, Reason, Source,
    Standing, TargetState, Volume,
};
use driftline_target::FileDisk;
use driftline_transport::SourceJob;
use driftline_zfs::{StreamError, ZvolStream};

use crate::{
    place::Place,
    plain::{PlainError, PlainVolume},
};

/// Read-ahead of a stream.
const STREAM_BUFFER_LEN: usize = 1 << 20;

/// A source of any kind.
pub(crate) enum AnySource {
    /// A `zfs send` stream.
    Stream {
        /// Its name, for messages.
        name: String,
        /// Its length, zero if that is not known.
        len: u64,
        stream: Box<ZvolStream<Box<dyn Read + Send>>>,
    },
    /// A plain file or device.
    Plain(PlainVolume),
    /// A DRBD volume by its metadata.
    Drbd {
        /// Its name, for messages.
        name: String,
        volume: Box<DrbdVolume>,
    },
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

/// Why a source failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
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
}

impl Explained for SourceError {
    fn reason(&self) -> Reason {
        match self {
            Self::Stream { error, .. } => error.reason(),
            Self::Plain(error) => error.reason(),
            Self::Drbd { error, .. } => error.reason(),
        }
    }
}

/// Opens a local source.
pub(crate) fn open(place: &Place, overwrite: bool) -> anyhow::Result<AnySource> {
    let stream = |input: Box<dyn Read + Send>, len| {
        let stream = Box::new(ZvolStream::new(input).allow_full(overwrite));
        AnySource::Stream { name: place.to_string(), len, stream }
    };
    match place {
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
        Place::Remote { .. } => bail!("{place} is remote: pull from it to a local target"),
    }
}

/// Opens a local source for a session.
pub(crate) fn job(
    place: &Place,
    overwrite: bool,
    compression: Option<i32>,
) -> anyhow::Result<SourceJob<AnySource>> {
    let source = open(place, overwrite)?;
    let volume = match &source {
        AnySource::Stream { .. } => None,
        AnySource::Plain(plain) => Some(plain.volume() as Arc<dyn Volume + Send + Sync>),
        AnySource::Drbd { volume, .. } => Some(volume.volume()),
    };
    Ok(SourceJob { source, volume, overwrite, compression })
}

impl AnySource {
    /// The maps of all increments that the source holds, one after the other.
    pub(crate) fn maps(
        &mut self,
        each: &mut dyn FnMut(Told) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
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
        }
    }
}

/// All that a plain file can say: where its holes are.
fn plain_map(volume: &impl Volume) -> io::Result<ChangeMap> {
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
            Self::Stream { stream, .. } => stream.learn(target),
            Self::Plain(plain) => plain.learn(target),
            Self::Drbd { volume, .. } => volume.learn(target),
        }
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, SourceError> {
        match self {
            Self::Stream { name, len, stream } => {
                let plan = stream.plan(base).map_err(|error| in_stream(name, error))?;
                // A stream knows neither its own length nor the volume's before its end.
                Ok(Plan { bytes_expected: *len, ..plan })
            }
            Self::Plain(plain) => Ok(plain.plan(base)?),
            Self::Drbd { name, volume } => {
                let plan = volume.plan(base).map_err(|error| in_drbd(name, error))?;
                if let Some(reason) = plan.standing.reason() {
                    let (source, reason) = (name.as_str(), reason.as_str());
                    tracing::warn!(source, reason, "what changed is not proven: all is compared");
                }
                Ok(plan)
            }
        }
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, SourceError> {
        match self {
            Self::Stream { name, stream, .. } => {
                stream.next_change(from).map_err(|error| in_stream(name, error))
            }
            Self::Plain(plain) => Ok(plain.next_change(from)?),
            Self::Drbd { name, volume } => {
                volume.next_change(from).map_err(|error| in_drbd(name, error))
            }
        }
    }

    fn finish(&mut self) -> Result<Finish, SourceError> {
        match self {
            Self::Stream { name, stream, .. } => {
                stream.finish().map_err(|error| in_stream(name, error))
            }
            Self::Plain(plain) => Ok(plain.finish()?),
            Self::Drbd { name, volume } => volume.finish().map_err(|error| in_drbd(name, error)),
        }
    }

    fn bytes_read(&self) -> u64 {
        match self {
            Self::Stream { stream, .. } => stream.bytes_read(),
            Self::Plain(plain) => plain.bytes_read(),
            Self::Drbd { volume, .. } => volume.bytes_read(),
        }
    }
}

fn in_stream(name: &str, error: StreamError) -> SourceError {
    SourceError::Stream { name: name.to_owned(), error }
}

fn in_drbd(name: &str, error: DrbdError) -> SourceError {
    SourceError::Drbd { name: name.to_owned(), error }
}
