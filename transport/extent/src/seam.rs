//! The two seams: where an increment comes from, and where it goes.
//!
//! Both are synchronous and blocking; who drives them gives them a thread. A source can be
//! started again from an offset, a target can be given the same item twice, and `commit` is
//! called only after an increment was received whole.

use std::{error::Error, fmt, io, sync::Arc};

use crate::{
    Change, Extent, Generation, GrainHash, GrainMask, Item, Reason, Root, Standing, VolumeId,
};

/// An error that can say which [`Reason`] it is a case of.
pub trait Explained: Error {
    /// The reason that stands for this error in logs, exit codes and on the wire.
    fn reason(&self) -> Reason;
}

/// How a source brings a target to its newest generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlanKind {
    /// The target is there already.
    UpToDate,
    /// A change map leads from the target's generation to the tip.
    Incremental,
    /// The whole volume is sent; every chunk of it is named.
    Full,
    /// There is no map: both sides hash everything and only what differs moves.
    Scan,
    /// The storage's own stream is carried as it is, to a target that takes only such
    /// ([`Accepts::Stream`]): nobody between the two storages knows which bytes it changes.
    Stream,
}

/// What a source will deliver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How.
    pub kind: PlanKind,
    /// The source volume, where its storage has an identity for it.
    pub volume: Option<VolumeId>,
    /// The generation that must be the target's. Set for `Incremental`, for a `Stream` unless
    /// that has everything, and for a `Scan` where the source's storage says that its tip
    /// descends from it: such a scan goes over it without the user's consent, as an increment
    /// would. So does a `Full` copy with it, of a source that shows its tip only as a stream: all of
    /// it is compared.
    pub base: Option<Generation>,
    /// The generation that the target will hold, where it is known beforehand. An increment
    /// that was cut off is gone on with only under the same tip, so a source leaves it out
    /// where the name alone does not say that it is the same increment again.
    pub tip: Option<Generation>,
    /// Size of the volume at the tip, where it is known beforehand.
    pub size: Option<u64>,
    /// How far the map is believed.
    pub standing: Standing,
    /// How many bytes the source expects to read, for a progress bar; zero if unknown.
    pub bytes_expected: u64,
}

/// What the source side proposes to the target side: its plan, and the user's consent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The source's plan.
    pub plan: Plan,
    /// Whether the user has agreed to a full copy over whatever stands at the target.
    pub overwrite: bool,
}

/// How an increment ended on the source side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finish {
    /// The generation that the target now holds.
    pub tip: Generation,
    /// Size of the volume at the tip; `None` where it is the base's. For a stream, its length.
    pub size: Option<u64>,
    /// The root over the whole volume, where the source has seen all of it. For a stream, the
    /// keyed hash of its bytes.
    pub root: Option<Root>,
}

/// Bytes of a [`Source::record`].
pub const RECORD_LEN_MAX: usize = 256;

/// Produces increments: a storage adapter.
pub trait Source {
    /// What can go wrong.
    type Error: Explained + Send + 'static;

    /// Hears all of what the target holds, before each [`plan`](Self::plan). Only a source whose
    /// maps depend on more than the base's name listens.
    fn learn(&mut self, _target: &TargetState) {}

    /// What is to be asked of the target before the next [`plan`](Self::plan). The answer is
    /// learned, and this is called again; `None`: nothing. Only a source of several data sets, and
    /// one that cannot go on with what was cut off, ask a target of streams.
    fn ask(&mut self) -> Result<Option<Ask>, Self::Error> {
        Ok(None)
    }

    /// Hears, before each [`plan`](Self::plan), the [`record`](Self::record) that was kept with
    /// the very content that the target holds; `None` if none was kept with that.
    fn recall(&mut self, _record: Option<&[u8]>) {}

    /// What a later run has to know of the instant that was planned last, before it may rely on a
    /// map that starts there: at most [`RECORD_LEN_MAX`] bytes. It is kept with the generation
    /// that the target comes to.
    fn record(&self) -> Option<Vec<u8>> {
        None
    }

    /// Decides how to bring a target that holds `base` (nothing, if `None`) to the next
    /// generation this source can deliver. Called again after each commit, until it says
    /// [`PlanKind::UpToDate`]: a source may hold several increments in a row.
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, Self::Error>;

    /// Plans a whole copy of the tip in the place of what was planned last, where all has to be
    /// compared and not only what has changed. `None`: it cannot, and that plan stands. Only
    /// a source needs this that shows its tip as a stream and can make another one.
    fn plan_whole(&mut self) -> Result<Option<Plan>, Self::Error> {
        Ok(None)
    }

    /// Whether an increment can be begun in the middle without reading what lies below. The
    /// root over a whole volume is then unknown to the source.
    fn seeks(&self) -> bool {
        false
    }

    /// The next change of the planned increment, in ascending order of offset; `None` once
    /// it is complete, and only if the storage vouches for that (END record, exit status).
    /// Of a [`PlanKind::Stream`] all changes are [`Change::Part`], of others none is.
    ///
    /// Changes that end at or below `from` need not be delivered.
    fn next_change(&mut self, from: u64) -> Result<Option<Change>, Self::Error>;

    /// What the increment led to. Valid after [`next_change`](Self::next_change) said `None`.
    fn finish(&mut self) -> Result<Finish, Self::Error>;

    /// Whether the tip has no name but its content. Then [`finish`](Self::finish) is not called,
    /// and this checks what that would.
    fn is_unnamed(&mut self) -> Result<bool, Self::Error> {
        Ok(false)
    }

    /// The volume at the tip as its storage shows it, where the user wants the root over all of
    /// it compared with the target's. Valid as [`finish`](Self::finish) is.
    fn read_back(&mut self) -> Result<Option<Box<dyn Volume>>, Self::Error> {
        Ok(None)
    }

    /// The volume at the tip, for reading at any offset while the increment is delivered: what
    /// the source's own manifest is made of, what audits read, and what is scanned where a map
    /// turned out not to be trusted. Valid once an increment is planned; `None` where the storage
    /// shows the tip only as a stream.
    ///
    /// If all of the volume is read through it and no change is asked for,
    /// [`finish`](Self::finish) is valid as well.
    fn reader(&mut self) -> Result<Option<Arc<dyn Volume + Send + Sync>>, Self::Error> {
        Ok(None)
    }

    /// How many bytes were read from the storage so far, for progress.
    fn bytes_read(&self) -> u64;
}

/// A volume that can be read at any offset, without a map of its changes, by many at a time.
pub trait Volume: Sync {
    /// Size in bytes, always the same: a volume that shrinks meanwhile fails to be read.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`. Both must lie within the volume.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The first range at or after `from` that may hold anything but zeros; `None` if all
    /// that follows is known to be a hole.
    fn next_data(&self, from: u64) -> io::Result<Option<Extent>>;
}

/// Why a [`Volume`] cannot be read, where that says something of the data. It travels inside an
/// [`io::Error`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// In one word.
    pub reason: Reason,
    /// For a person.
    pub detail: String,
}

impl Unreadable {
    /// The reason inside an error of a volume, if it has one.
    pub fn reason_of(error: &io::Error) -> Option<Reason> {
        error.get_ref()?.downcast_ref::<Self>().map(|error| error.reason)
    }

    /// What it means for a source that it cannot be read: what its volume says of that, or else the
    /// operating system.
    pub fn explain(error: &io::Error) -> Reason {
        Self::reason_of(error).unwrap_or_else(|| match error.kind() {
            // Its end was further away when it was opened.
            io::ErrorKind::UnexpectedEof => Reason::SourceChanged,
            _ => Reason::SourceUnreadable,
        })
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Unreadable {}

impl From<Unreadable> for io::Error {
    fn from(error: Unreadable) -> Self {
        Self::other(error)
    }
}

bytes_newtype! {
    /// The identity of a replica, drawn at random when it is made.
    ReplicaId, 16
}

/// An increment that was cut off and can go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resume {
    /// Where it started from.
    pub base: Option<Generation>,
    /// Where it leads, if that was known.
    pub tip: Option<Generation>,
    /// Every chunk below this index has been received.
    pub from: u64,
}

/// Bytes of a resume token: ZFS shows no property that is longer.
pub const TOKEN_LEN_MAX: u16 = 8192;

/// Points in time that a target tells of.
pub const POINTS_MAX: u16 = 200;

/// Bytes of the name of such a point.
pub const POINT_NAME_LEN_MAX: u16 = 255;

/// What a source asks of a target of streams before it plans: what one data set of the target
/// holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ask {
    /// The data set, as its path below the target's own; empty for that itself. What follows, up
    /// to the next question, is about this one.
    pub member: String,
    /// Whether what it keeps of a stream that was cut off is thrown away first, as no source can
    /// go on with it. Only what the target has told of in this session is.
    pub discard: bool,
}

/// A snapshot at the target, for a source that looks for one that both have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its identity: the only thing that decides.
    pub guid: u64,
    /// Its name behind the `@`, for people: at most [`POINT_NAME_LEN_MAX`] bytes and without
    /// control characters.
    pub name: String,
}

/// What a target can take in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Accepts {
    /// The changes of a volume.
    Volume,
    /// Whole streams of its own kind of storage: [`PlanKind::Stream`] and no other.
    Stream {
        /// What the target's storage gave out for a stream that was cut off: the source must
        /// go on from there. At most [`TOKEN_LEN_MAX`] letters, digits and dashes.
        token: Option<String>,
        /// What the target had when the session began, newest first; at most [`POINTS_MAX`].
        points: Vec<Point>,
    },
}

/// What a target holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetState {
    /// Which replica this is.
    pub replica: ReplicaId,
    /// The key under which this replica names chunks.
    pub chunk_key: [u8; 32],
    /// The source volume it is a replica of, where that has an identity.
    pub volume: Option<VolumeId>,
    /// The last committed generation; `None` before the first commit.
    pub generation: Option<Generation>,
    /// The root over the whole volume at that generation; `None` at a target of streams.
    pub root: Option<Root>,
    /// Size at that generation; zero at a target of streams.
    pub size: u64,
    /// Whether what stands there is no replica yet: a first full copy that is not complete,
    /// or a file that was not made by Driftline.
    pub incomplete: bool,
    /// Whether a scrub found damage that the source is to replace: whatever of the volume is sent,
    /// all of it has to be compared.
    pub damaged: bool,
    /// An increment that was cut off, if one was.
    pub resume: Option<Resume>,
    /// What it can take in.
    pub accepts: Accepts,
}

impl TargetState {
    /// What is told of a place where nothing was ever begun.
    pub const fn nothing() -> Self {
        Self {
            replica: ReplicaId([0; 16]),
            chunk_key: [0; 32],
            volume: None,
            generation: None,
            root: None,
            size: 0,
            incomplete: false,
            damaged: false,
            resume: None,
            accepts: Accepts::Volume,
        }
    }

    /// What it holds once it has committed this, as far as a source can know.
    pub fn advance(&mut self, committed: &Committed) {
        self.generation = Some(committed.generation);
        self.incomplete = false;
        self.damaged = false;
        self.resume = None;
        match &mut self.accepts {
            Accepts::Volume => (self.root, self.size) = (Some(committed.root), committed.size),
            Accepts::Stream { token, .. } => *token = None,
        }
    }
}

/// The target's agreement to an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    /// Chunks below this index were received in an earlier session and need not come again.
    /// Zero for a stream: what goes on there is said by its token.
    pub from: u64,
}

/// What a commit made durable and proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The generation the replica holds now.
    pub generation: Generation,
    /// The root over all of it, from what was read back; of a stream, the keyed hash of the
    /// bytes that were handed to the storage.
    pub root: Root,
    /// Its size; of a stream, its length.
    pub size: u64,
    /// How many bytes of data became zero or were cut off, in whole chunks. `None` where the target
    /// does not count them, or was stopped after it had.
    pub zeroed: Option<u64>,
}

/// What a target lacks of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Nothing: it has the content, or needs none. It holds the same as a span.
    Nothing,
    /// All of its data. It holds something else than a span, whose chunks are to be told.
    All,
    /// What differs from something that it has: a hash for each grain of the item's data,
    /// ascending. Only of an item that is [narrowable](Item::narrowable).
    Unlike(Vec<GrainHash>),
}

/// Receives increments: a replica, or later a vault.
///
/// The order of calls is `begin`, then `missing` and `apply` or `patch` for each item, then
/// `commit`. `missing` may run ahead of the others. After an error the target is not used again until it
/// was opened anew.
pub trait Target {
    /// What can go wrong.
    type Error: Explained + Send + 'static;

    /// What the target holds.
    fn state(&self) -> TargetState;

    /// What the data set of this question holds, which all that follows is about. `None`: this
    /// target is no tree of data sets. The replica and its chunk key are the same for all of them.
    fn answer(&mut self, _ask: &Ask) -> Result<Option<TargetState>, Self::Error> {
        Ok(None)
    }

    /// Agrees to an increment, or refuses it and changes nothing.
    fn begin(&mut self, offer: &Offer) -> Result<Begin, Self::Error>;

    /// For each item, what must be sent of it. Checks, before anything is overwritten, that
    /// what stands there is what was committed.
    fn missing(&mut self, items: &[Item]) -> Result<Vec<Missing>, Self::Error>;

    /// Takes one item, with its data if [`missing`](Self::missing) asked for all of it, or if
    /// [`patch`](Self::patch) does. A [`Item::Span`] that the target lacks is not applied: its
    /// chunks come as items.
    fn apply(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), Self::Error>;

    /// Takes one item of which [`missing`](Self::missing) told hashes, with the data of the grains
    /// that differ. `false`: what that makes is not what the item names, as two grains have one
    /// hash, and nothing was changed; the item is to be applied with all of its data.
    fn patch(&mut self, item: &Item, grains: GrainMask, data: &[u8]) -> Result<bool, Self::Error>;

    /// Notes that every chunk below this index has been received, so that a later session
    /// can start there. It need not be durable yet.
    fn mark(&mut self, watermark: u64) -> Result<(), Self::Error>;

    /// Makes the received increment the replica's generation: whole, durable and read back.
    fn commit(&mut self, finish: &Finish) -> Result<Committed, Self::Error>;
}
