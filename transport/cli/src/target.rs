//! Every kind of target behind one type.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use driftline_extent::{
    Ask, Begin, Committed, Explained, Finish, GrainMask, Item, Missing, Offer, Reason, Target,
    TargetState,
};
use driftline_target::{
    DeviceManager, FileDisk, InPlace, Index, Inspection, Listed, Options, Reading, Replica,
    StreamTarget, StreamTargetError, TargetError, Verified,
};
use driftline_zfs::{
    DatasetName, device_of,
    host::{Zfs, ZfsError},
};

use crate::{
    args::{self, units::parse_share},
    content::{self, ContentError},
    exit::misused,
    place::Place,
    receive::{ReceiveError, ReceiveSink},
    zvol::{ZvolManager, state_dir_of},
};

/// How the name of a folder ends that has the books of a replica in a file.
pub(crate) const BOOKS_END: &str = ".driftline";

/// How much of its data may go with one increment if nothing is said, in percent.
const LOSS_MAX: u8 = 50;

/// How often a replica is opened for reading, where each time an increment had to be completed.
const OPEN_MAX: u32 = 3;

/// Where a target is, on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum TargetPlace {
    /// A file or block device.
    File(PathBuf),
    /// A volume of ZFS, as a replica.
    Zvol(DatasetName),
    /// A data set of ZFS, which receives streams.
    Zfs(DatasetName),
}

/// What is agreed about a target, besides where it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct TargetTerms {
    /// Where a replica's books are, if not at their usual place.
    pub(crate) state_dir: Option<PathBuf>,
    /// Whether an offer's consent to a copy over what stands here is not enough.
    pub(crate) forbid_overwrite: bool,
    /// How much of a replica's data may go with one increment, in percent; `None` if all may.
    pub(crate) loss_max: Option<u8>,
    /// What becomes of the properties in a stream.
    pub(crate) receive: args::Receive,
    /// The root of the tree that it is in, if it is in one: what is missing from there down to
    /// it may be made.
    pub(crate) root: Option<TargetPlace>,
    /// Where chunks are looked for that other replicas have.
    pub(crate) index: Option<Arc<Index>>,
    /// The folder in which replicas are remembered that have their books elsewhere, if they are.
    pub(crate) remembered: Option<PathBuf>,
}

/// A target of any kind.
#[derive(Debug)]
pub(crate) enum AnyTarget {
    Replica(Box<Replica<FileDisk>>),
    Stream(Box<StreamTarget<ReceiveSink>>),
    /// What a volume is restored to.
    InPlace(Box<InPlace<FileDisk>>),
}

/// Why a target failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnyTargetError {
    #[error(transparent)]
    Replica(#[from] TargetError),
    #[error(transparent)]
    Stream(#[from] StreamTargetError<ReceiveError>),
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// ZFS itself keeps what it received.
    #[error("zfs:{0} is kept by ZFS itself, which has checksums over all of it: `zpool scrub`")]
    NoReplica(DatasetName),
    /// The folder for the books of a replica cannot be made.
    #[error("the folder {path} for the replica's books cannot be made")]
    StateDir {
        path: String,
        #[source]
        error: std::io::Error,
    },
    /// What a volume is said to be like cannot be read.
    #[error("cannot read the seed {place}: {error}")]
    Unlike {
        /// Where that is.
        place: TargetPlace,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// Each time that it was to be read, an increment had to be completed first.
    #[error("{0} is being written by other processes; wait for them to end")]
    Restless(TargetPlace),
    /// Its storage cannot say whether it was written.
    #[error("{place} cannot be asked whether it was written since its generation was kept")]
    Kept {
        /// Where that is.
        place: TargetPlace,
        /// What its storage said.
        #[source]
        error: std::io::Error,
    },
    /// No randomness from the operating system.
    #[error("no randomness from the operating system: {0}")]
    Entropy(String),
    /// What is asked for below a tree is no name there.
    #[error("{path:?} cannot be a volume below {root}: {why}")]
    NoMember {
        /// The root of the tree.
        root: TargetPlace,
        /// The path below it.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Explained for AnyTargetError {
    fn reason(&self) -> Reason {
        match self {
            Self::Replica(error) => error.reason(),
            Self::Stream(error) => error.reason(),
            Self::Zfs(error) => error.reason(),
            Self::NoReplica(_) | Self::NoMember { .. } => Reason::Unsupported,
            Self::Restless(_) => Reason::TargetBusy,
            Self::StateDir { .. } | Self::Unlike { .. } | Self::Kept { .. } | Self::Entropy(_) => {
                Reason::Failed
            }
        }
    }
}

impl TargetTerms {
    /// Those of someone who only looks at a replica, by the books that are named or remembered.
    pub(crate) fn looking(
        place: &TargetPlace,
        state: &args::StateDir,
        trust_dir: &Path,
    ) -> Result<Self, ContentError> {
        let state_dir = match (&state.state_dir, place) {
            (None, TargetPlace::File(path)) => {
                content::replica_at(path, trust_dir)?.map(|(_, books)| books)
            }
            (named, _) => named.clone(),
        };
        Ok(Self { state_dir, ..Self::default() })
    }

    fn root_dataset(&self) -> Option<DatasetName> {
        match &self.root {
            Some(TargetPlace::Zfs(root) | TargetPlace::Zvol(root)) => Some(root.clone()),
            Some(TargetPlace::File(_)) | None => None,
        }
    }
}

impl From<TargetPlace> for Place {
    fn from(place: TargetPlace) -> Self {
        match place {
            TargetPlace::File(path) => Self::File(path),
            TargetPlace::Zvol(name) => Self::Zvol(name),
            TargetPlace::Zfs(name) => Self::Zfs(name),
        }
    }
}

impl fmt::Display for TargetPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Place::from(self.clone()).fmt(f)
    }
}

impl TargetPlace {
    /// The target that a place names, if it can be one.
    pub(crate) fn of(place: &Place) -> anyhow::Result<Self> {
        match place {
            Place::File(path) => Ok(Self::File(path.clone())),
            Place::Zvol(name) => Ok(Self::Zvol(name.clone())),
            Place::Zfs(name) => Ok(Self::Zfs(name.clone())),
            Place::Remote { .. } => misused!(
                "{place} is remote: run this where the replica is, and name it as file:PATH, \
                 zvol:POOL/NAME or zfs:POOL/NAME"
            ),
            _ => misused!(
                "{place} is no target: write file:PATH, zvol:POOL/NAME, zfs:POOL/NAME or \
                 NAME@HOST:PORT"
            ),
        }
    }

    /// What has this path below it, itself if the path is empty. The path may be a peer's: it
    /// leads to nowhere else.
    pub(crate) fn below(&self, path: &str) -> Result<Self, AnyTargetError> {
        let no_member = |why: String| {
            let (root, path) = (self.clone(), path.to_owned());
            AnyTargetError::NoMember { root, path, why }
        };
        let join = |root: &DatasetName| root.join(path).map_err(|e| no_member(e.to_string()));
        match self {
            Self::Zfs(root) => Ok(Self::Zfs(join(root)?)),
            Self::Zvol(root) => Ok(Self::Zvol(join(root)?)),
            Self::File(root) if path.is_empty() => Ok(Self::File(root.clone())),
            Self::File(root) => {
                // No part of it leads up, and none into the books of a replica.
                let checked: Result<DatasetName, _> = format!("tree/{path}").parse();
                checked.map_err(|error| no_member(error.to_string()))?;
                if path.split('/').any(|part| part.ends_with(BOOKS_END)) {
                    return Err(no_member(format!("{BOOKS_END} ends the names of books")));
                }
                Ok(Self::File(root.join(path)))
            }
        }
    }

    /// Whether it takes streams as they are, and no changes of a volume.
    pub(crate) const fn takes_streams(&self) -> bool {
        matches!(self, Self::Zfs(_))
    }

    /// Opens it for a session. That recovers, which can take a while.
    pub(crate) fn open(&self, terms: &TargetTerms) -> Result<AnyTarget, AnyTargetError> {
        if let Self::Zfs(name) = self {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret)
                .map_err(|error| AnyTargetError::Entropy(error.to_string()))?;
            let root = terms.root_dataset();
            let sink = ReceiveSink::new(Zfs::find()?, name.clone(), terms.receive.clone(), root);
            let target = StreamTarget::new(sink, format!("zfs:{name}"), secret)?;
            return Ok(AnyTarget::Stream(Box::new(target)));
        }
        Ok(AnyTarget::Replica(Box::new(self.open_replica(true, terms)?)))
    }

    /// The file or device whose bytes it is.
    fn volume(&self) -> Result<PathBuf, AnyTargetError> {
        match self {
            Self::File(path) => Ok(path.clone()),
            Self::Zvol(name) => Ok(device_of(name)),
            Self::Zfs(name) => Err(AnyTargetError::NoReplica(name.clone())),
        }
    }

    /// Opens what stands there as it is, only to read it.
    fn read(&self) -> Result<FileDisk, AnyTargetError> {
        let unlike = |error| AnyTargetError::Unlike { place: self.clone(), error };
        FileDisk::open_read(&self.volume()?).map_err(unlike)
    }

    /// Opens the replica that it is, or with `create` is to be.
    pub(crate) fn open_replica(
        &self,
        create: bool,
        terms: &TargetTerms,
    ) -> Result<Replica<FileDisk>, AnyTargetError> {
        let TargetTerms { state_dir, forbid_overwrite, loss_max, index, .. } = terms.clone();
        let options = Options { create, state_dir, forbid_overwrite, loss_max, index };
        if create {
            self.check_books(&options, terms.remembered.as_deref())?;
            self.remember(terms);
        }
        match self {
            Self::File(path) => {
                if create && terms.root.is_some() {
                    make_parents(path)?;
                }
                Ok(driftline_target::open(path, &options)?)
            }
            Self::Zfs(name) => Err(AnyTargetError::NoReplica(name.clone())),
            Self::Zvol(name) => {
                let zfs = Zfs::find()?;
                let state_dir = self.state_dir(&options);
                if create && let Some(dir) = &state_dir {
                    make_parents(dir)?;
                }
                let options = Options { state_dir, ..options };
                let manager = Box::new(ZvolManager::new(zfs, name.clone(), terms.root_dataset()));
                Ok(driftline_target::open_kept(&device_of(name), &options, manager)?)
            }
        }
    }

    /// Refuses what is a replica by other books than these, as far as that is remembered: it would
    /// have two, of which one is wrong.
    fn check_books(
        &self,
        options: &Options,
        remembered: Option<&Path>,
    ) -> Result<(), AnyTargetError> {
        let (Self::File(path), Some(remembered)) = (self, remembered) else { return Ok(()) };
        let Ok(Some((_, state_dir))) = content::replica_at(path, remembered) else { return Ok(()) };
        let usual = || driftline_target::state_dir_of(&fs::canonicalize(path).unwrap_or_default());
        let ours = options.state_dir.clone().unwrap_or_else(usual);
        let real = |dir: &Path| fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        if real(&ours) == real(&state_dir) {
            return Ok(());
        }
        let problem = driftline_target::Problem::IsReplica { state_dir };
        Err(problem.of(&path.display().to_string()).into())
    }

    /// Remembers where books are that are not beside their volume, so that it is read by them
    /// however it is named.
    pub(crate) fn remember(&self, terms: &TargetTerms) {
        let (Some(books), Some(dir)) = (&terms.state_dir, &terms.remembered) else { return };
        let Ok(volume) = self.volume() else { return };
        if let Err(error) = content::remember(dir, &volume, books) {
            let dir = dir.display();
            tracing::warn!(target = %self, %dir, %error, "cannot remember that this is a replica");
        }
    }

    /// Opens the replica that it is, to look at all of it: for reading only where nothing can be
    /// written.
    pub(crate) fn open_to_read(
        &self,
        terms: &TargetTerms,
    ) -> Result<Replica<FileDisk>, AnyTargetError> {
        let TargetTerms { state_dir, index, .. } = terms.clone();
        let options = Options { state_dir, index, ..Options::default() };
        match self {
            Self::File(path) => Ok(driftline_target::open_to_read(path, &options)?),
            Self::Zfs(name) => Err(AnyTargetError::NoReplica(name.clone())),
            Self::Zvol(name) => {
                let options = Options { state_dir: self.state_dir(&options), ..options };
                let manager = ZvolManager::new(Zfs::find()?, name.clone(), terms.root_dataset());
                let manager = Box::new(manager);
                Ok(driftline_target::open_kept_to_read(&device_of(name), &options, manager)?)
            }
        }
    }

    /// The same for whoever writes nothing: others may read it at the same time.
    pub(crate) fn open_to_verify(
        &self,
        terms: &TargetTerms,
    ) -> Result<Replica<FileDisk>, AnyTargetError> {
        let options = Options { state_dir: terms.state_dir.clone(), ..Options::default() };
        let options = Options { state_dir: self.state_dir(&options), ..options };
        let manager: Option<Box<dyn DeviceManager>> = match self {
            Self::Zvol(name) => {
                Some(Box::new(ZvolManager::new(Zfs::find()?, name.clone(), terms.root_dataset())))
            }
            Self::File(_) | Self::Zfs(_) => None,
        };
        Ok(driftline_target::open_to_verify(&self.volume()?, &options, manager)?)
    }

    /// Opens the replica that it is for reading: each chunk is compared with its books, and nobody
    /// writes it meanwhile.
    pub(crate) fn open_verified(
        &self,
        terms: &TargetTerms,
    ) -> Result<Verified<FileDisk>, AnyTargetError> {
        let options = Options { state_dir: terms.state_dir.clone(), ..Options::default() };
        let path = self.volume()?;
        let books = self.state_dir(&options);
        let books = books.unwrap_or_else(|| driftline_target::state_dir_of(&path));
        for _ in 0..OPEN_MAX {
            match driftline_target::open_read(&path, &books)? {
                Reading::Ready(verified) => return Ok(*verified),
                // Whoever opens it to write completes what a stop has left.
                Reading::Unfinished => {
                    let terms = TargetTerms { state_dir: Some(books.clone()), ..terms.clone() };
                    match self.open_replica(false, &terms) {
                        Ok(replica) => replica.check_not_stuck()?,
                        Err(AnyTargetError::Replica(error)) if error.is_of_writing() => {
                            return Ok(driftline_target::open_read_through(&path, &books)?);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Err(AnyTargetError::Restless(self.clone()))
    }

    /// Reads all of the replica while others may write it, and returns the chunks that have to be
    /// looked at again; `None` if all have to be.
    pub(crate) fn survey(
        &self,
        terms: &TargetTerms,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<BTreeSet<u64>>, AnyTargetError> {
        let options = Options { state_dir: terms.state_dir.clone(), ..Options::default() };
        let options = Options { state_dir: self.state_dir(&options), ..options };
        Ok(driftline_target::survey(&self.volume()?, &options, progress)?)
    }

    /// Agrees that the next increment may lose as much of its data as it likes.
    pub(crate) fn agree_to_loss(&self, terms: &TargetTerms) -> Result<(), AnyTargetError> {
        let options = Options { state_dir: terms.state_dir.clone(), ..Options::default() };
        let options = Options { state_dir: self.state_dir(&options), ..options };
        Ok(driftline_target::agree_to_loss(&self.volume()?, &options)?)
    }

    /// Whether its storage says that it was written since its generation was kept.
    pub(crate) fn is_written(&self) -> Result<bool, AnyTargetError> {
        let Self::Zvol(name) = self else { return Ok(false) };
        let kept = ZvolManager::new(Zfs::find()?, name.clone(), None).kept();
        Ok(kept.map_err(|error| AnyTargetError::Kept { place: self.clone(), error })?.written)
    }

    /// What it holds, without waiting for whoever writes it.
    pub(crate) fn state(&self, terms: &TargetTerms) -> Result<TargetState, AnyTargetError> {
        if let Self::Zfs(_) = self {
            return Ok(self.open(terms)?.state());
        }
        let inspection = self.inspect(terms)?;
        Ok(inspection.map_or_else(TargetState::nothing, |inspection| inspection.state))
    }

    /// The books of the replica that it is, if it is one.
    pub(crate) fn inspect(
        &self,
        terms: &TargetTerms,
    ) -> Result<Option<Inspection>, AnyTargetError> {
        let options = Options { state_dir: terms.state_dir.clone(), ..Options::default() };
        let Ok(path) = self.volume() else { return Ok(None) };
        Ok(driftline_target::inspect(&path, self.state_dir(&options).as_deref())?)
    }

    /// Whether the books of the replica here list what was committed.
    pub(crate) fn is_listed(
        &self,
        terms: &TargetTerms,
        found: &Inspection,
    ) -> Result<bool, AnyTargetError> {
        let options = Options { state_dir: terms.state_dir.clone(), ..Options::default() };
        let Ok(path) = self.volume() else { return Ok(true) };
        Ok(driftline_target::is_listed(&path, self.state_dir(&options).as_deref(), found)?)
    }

    /// The replica here, as an index lists it.
    pub(crate) fn listed(&self, terms: &TargetTerms) -> Option<Listed> {
        let (volume, usual) = match self {
            Self::File(path) => {
                let path = fs::canonicalize(path).ok()?;
                let books = driftline_target::state_dir_of(&path);
                (path, books)
            }
            Self::Zvol(name) => (device_of(name), state_dir_of(name)),
            Self::Zfs(_) => return None,
        };
        Some(Listed { volume, state_dir: terms.state_dir.clone().unwrap_or(usual) })
    }

    fn state_dir(&self, options: &Options) -> Option<PathBuf> {
        let usual = match self {
            Self::File(_) | Self::Zfs(_) => None,
            Self::Zvol(name) => Some(state_dir_of(name)),
        };
        options.state_dir.clone().or(usual)
    }
}

/// How much of a replica's data may go with one increment, as it is `said` by an option or key.
pub(crate) fn loss_max(said: Option<&str>, option: &str) -> anyhow::Result<Option<u8>> {
    said.map_or(Ok(LOSS_MAX), |share| parse_share(option, share)).map(Some)
}

fn make_parents(dir: &Path) -> Result<(), AnyTargetError> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    fs::create_dir_all(parent)
        .map_err(|error| AnyTargetError::StateDir { path: parent.display().to_string(), error })
}

impl AnyTarget {
    /// Uses what stands at `like` as if it were an old version of this.
    pub(crate) fn use_seed(&mut self, like: &TargetPlace) -> Result<(), AnyTargetError> {
        match self {
            Self::Replica(replica) => replica.use_seed(Box::new(like.read()?)),
            Self::Stream(_) => {
                // It is about what differs, and only ZFS knows that of its own streams.
                tracing::warn!(%like, "a data set that receives streams cannot be a seed");
            }
            // What stands there is the old version.
            Self::InPlace(_) => {}
        }
        Ok(())
    }
}

impl Target for AnyTarget {
    type Error = AnyTargetError;

    fn state(&self) -> TargetState {
        match self {
            Self::Replica(replica) => replica.state(),
            Self::Stream(stream) => stream.state(),
            Self::InPlace(place) => place.state(),
        }
    }

    fn answer(&mut self, ask: &Ask) -> Result<Option<TargetState>, AnyTargetError> {
        match self {
            Self::Stream(stream) => Ok(stream.answer(ask)?),
            Self::Replica(_) | Self::InPlace(_) => Ok(None),
        }
    }

    fn begin(&mut self, offer: &Offer) -> Result<Begin, AnyTargetError> {
        match self {
            Self::Replica(replica) => Ok(replica.begin(offer)?),
            Self::Stream(stream) => Ok(stream.begin(offer)?),
            Self::InPlace(place) => Ok(place.begin(offer)?),
        }
    }

    fn missing(&mut self, items: &[Item]) -> Result<Vec<Missing>, AnyTargetError> {
        match self {
            Self::Replica(replica) => Ok(replica.missing(items)?),
            Self::Stream(stream) => Ok(stream.missing(items)?),
            Self::InPlace(place) => Ok(place.missing(items)?),
        }
    }

    fn apply(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), AnyTargetError> {
        match self {
            Self::Replica(replica) => Ok(replica.apply(item, data)?),
            Self::Stream(stream) => Ok(stream.apply(item, data)?),
            Self::InPlace(place) => Ok(place.apply(item, data)?),
        }
    }

    fn patch(
        &mut self,
        item: &Item,
        grains: GrainMask,
        data: &[u8],
    ) -> Result<bool, AnyTargetError> {
        match self {
            Self::Replica(replica) => Ok(replica.patch(item, grains, data)?),
            Self::Stream(stream) => Ok(stream.patch(item, grains, data)?),
            Self::InPlace(place) => Ok(place.patch(item, grains, data)?),
        }
    }

    fn mark(&mut self, watermark: u64) -> Result<(), AnyTargetError> {
        match self {
            Self::Replica(replica) => Ok(replica.mark(watermark)?),
            Self::Stream(stream) => Ok(stream.mark(watermark)?),
            Self::InPlace(place) => Ok(place.mark(watermark)?),
        }
    }

    fn commit(&mut self, finish: &Finish) -> Result<Committed, AnyTargetError> {
        match self {
            Self::Replica(replica) => Ok(replica.commit(finish)?),
            Self::Stream(stream) => Ok(stream.commit(finish)?),
            Self::InPlace(place) => Ok(place.commit(finish)?),
        }
    }
}
