//! A target that is a storage of its own: streams go into it as they are.
//!
//! Nothing here knows what is in a stream. It arrives in parts, in order, each with its name;
//! what this module adds is that a part which was seen a moment ago does not move again, that
//! what goes into the storage is byte for byte what left the other one, and that nothing is told
//! as committed before the storage says, by its own identity, that it holds it.

use std::{collections::VecDeque, error::Error, fmt};

use driftline_chunking::{ChunkKey, StreamHasher};
use driftline_extent::{
    Accepts, Ask, Begin, ChunkId, Committed, Explained, Finish, Generation, GrainMask, Item,
    Missing, Offer, PART_LEN_MAX, POINT_NAME_LEN_MAX, POINTS_MAX, PlanKind, Point, Reason,
    ReplicaId, Root, TOKEN_LEN_MAX, Target, TargetState,
};

use crate::window::{Lookup, Window};

/// What a sink holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SinkState {
    /// Its newest snapshot; `None` if it has none, or does not exist yet.
    pub generation: Option<Generation>,
    /// What it gave out for a stream that was cut off (`receive_resume_token`).
    pub token: Option<String>,
    /// Its snapshots, newest first. More than [`POINTS_MAX`] are not told.
    pub points: Vec<Point>,
}

/// The storage that applies streams: `zfs receive -s -u` on a data set.
///
/// The order of calls is `begin`, `write` as often as there are bytes, `finish`. Whatever is
/// dropped before `finish` has returned must leave behind what a later stream can go on from:
/// the sink closes the pipe, and the storage keeps what it received and gives out a token for it,
/// or keeps nothing of it.
pub trait Sink {
    /// What can go wrong.
    type Error: Explained + Send + 'static;

    /// What it holds.
    fn state(&mut self) -> Result<SinkState, Self::Error>;

    /// Turns to the data set at this path below its own, or to its own again if the path is empty,
    /// and says what that holds; `None` if there is no other. If a token is given and that data set
    /// gives out the same, what it keeps of that stream is thrown away first. The path is a
    /// peer's: it must not lead anywhere else.
    fn turn_to(
        &mut self,
        _path: &str,
        _discard: Option<&str>,
    ) -> Result<Option<SinkState>, Self::Error> {
        Ok(None)
    }

    /// Prepares for the stream of this offer, whose base was found to be the newest snapshot, or
    /// another one of those in its state: then the sink decides whether the later ones are in the
    /// way. The offer's consent is no consent to roll anything back.
    fn begin(&mut self, offer: &Offer) -> Result<(), Self::Error>;

    /// Takes the next bytes of the stream.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Ends the stream, which was whole and leads to `tip`. Says what the sink holds once that
    /// is durable.
    fn finish(&mut self, tip: &Generation) -> Result<SinkState, Self::Error>;
}

/// What can go wrong between a stream and its sink.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamProblem {
    /// Something else than a stream was offered.
    #[error(
        "this is received by ZFS, which takes whole streams and no changes of a volume: push a \
         `zfs:` or `zstream:` source to it, or this source to a file or a block device"
    )]
    NotAStream,
    /// The stream does not start from what the sink holds.
    #[error(
        "the stream starts from {}, but the newest snapshot here is {}; send what follows that, or \
         receive into another data set: nothing is ever rolled back or destroyed for it",
        held(offered),
        held(holds)
    )]
    NotTheBase {
        /// What the stream starts from.
        offered: Option<Generation>,
        /// What the sink holds.
        holds: Option<Generation>,
    },
    /// A part is not what its id names.
    #[error("part {index} of the stream is not what was announced; send it again")]
    WrongData {
        /// Which part.
        index: u64,
    },
    /// A part that was kept in memory is not what it was.
    #[error(
        "a part that was kept in memory has changed there: the memory of this machine is not \
         reliable; check it, then send the stream again"
    )]
    WindowDamaged,
    /// What was handed to the sink is not the stream that was sent.
    #[error(
        "the stream that arrived is {found} of {len} bytes, but {expected} was sent; nothing was \
         committed; run again"
    )]
    WrongRoot {
        /// What was sent.
        expected: Root,
        /// What arrived.
        found: Root,
        /// How many bytes arrived.
        len: u64,
    },
    /// The stream leads elsewhere than it was said to.
    #[error("the stream was said to lead to {planned} and led to {tip}; nothing was committed")]
    WrongTip {
        /// What was said first.
        planned: Generation,
        /// What was said at the end.
        tip: Generation,
    },
    /// The sink took the whole stream, and holds something else.
    #[error(
        "the whole stream was received, but the newest snapshot here is {} and not {tip}: \
         something else changes this data set",
        held(holds)
    )]
    NotReached {
        /// Where the stream leads.
        tip: Generation,
        /// What the sink holds.
        holds: Option<Generation>,
    },
    /// The sink gave out a token that no source could be told.
    #[error("the resume token of this data set is not one: it is too long, or no token at all")]
    BadToken,
    /// Items, calls or an end that no correct source sends.
    #[error("the stream is malformed: {0}")]
    Malformed(&'static str),
    /// An earlier call failed.
    #[error("an earlier operation on this target failed; open it again to go on")]
    Poisoned,
}

impl StreamProblem {
    const fn reason(&self) -> Reason {
        match self {
            Self::NotAStream => Reason::Unsupported,
            Self::NotTheBase { .. } => Reason::BaseMismatch,
            Self::WrongData { .. } | Self::WindowDamaged | Self::WrongRoot { .. } => {
                Reason::VerifyFailed
            }
            Self::WrongTip { .. } | Self::Malformed(_) => Reason::StreamDamaged,
            Self::NotReached { .. } => Reason::TargetModified,
            Self::BadToken | Self::Poisoned => Reason::Failed,
        }
    }
}

fn held(generation: &Option<Generation>) -> String {
    generation.map_or_else(|| "nothing".to_owned(), |generation| generation.to_string())
}

/// Why a stream was not received.
#[derive(Debug)]
pub enum StreamTargetError<E> {
    /// The sink failed.
    Sink(E),
    /// The stream was refused before it, or at its end.
    Stream {
        /// The target, as it was opened.
        name: String,
        /// What happened.
        problem: StreamProblem,
    },
}

impl<E: fmt::Display> fmt::Display for StreamTargetError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sink(error) => error.fmt(f),
            Self::Stream { name, problem } => write!(f, "{name}: {problem}"),
        }
    }
}

impl<E: Error> Error for StreamTargetError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Sink(error) => error.source(),
            Self::Stream { .. } => None,
        }
    }
}

impl<E: Explained> Explained for StreamTargetError<E> {
    fn reason(&self) -> Reason {
        match self {
            Self::Sink(error) => error.reason(),
            Self::Stream { problem, .. } => problem.reason(),
        }
    }
}

/// A stream that is being received.
struct Session {
    /// Where it was said to lead.
    tip: Option<Generation>,
    /// Parts that were announced and not applied, in order.
    announced: VecDeque<Announced>,
    /// How many parts were announced.
    next: u64,
    hasher: StreamHasher,
}

/// A part between `missing` and `apply`.
#[derive(Clone, Copy)]
struct Announced {
    index: u64,
    len: u32,
    id: ChunkId,
    lookup: Lookup,
}

/// Receives opaque streams into a [`Sink`].
///
/// Besides the sink it has a window over the last 64 MiB of parts, so that what repeats within
/// that distance moves once, and as many announced items as the caller keeps in flight. It keeps
/// no books: what it holds is what the storage says that it holds, and it goes on after a cut by
/// the storage's own token. After an error it is of no use but to be dropped.
pub struct StreamTarget<S> {
    name: String,
    /// The data set below it that was asked about last; empty for its own.
    member: String,
    sink: S,
    state: SinkState,
    replica: ReplicaId,
    secret: [u8; 32],
    key: ChunkKey,
    window: Window,
    session: Option<Session>,
    poisoned: bool,
}

impl<S: Sink> StreamTarget<S> {
    /// A target that receives into `sink` and is called `name` in messages. `secret` is drawn at
    /// random for each session: it names parts, and the session's pair of peers.
    ///
    /// # Errors
    /// If the sink cannot say what it holds.
    pub fn new(
        mut sink: S,
        name: impl Into<String>,
        secret: [u8; 32],
    ) -> Result<Self, StreamTargetError<S::Error>> {
        let name = name.into();
        let state = sink.state().map_err(StreamTargetError::Sink)?;
        check_token(&state)
            .map_err(|problem| StreamTargetError::Stream { name: name.clone(), problem })?;
        let derived = blake3::derive_key("driftline stream target v1 replica", &secret);
        let (replica, _) = derived.split_first_chunk().expect("32 bytes are more than 16");
        Ok(Self {
            name,
            member: String::new(),
            sink,
            state,
            replica: ReplicaId(*replica),
            secret,
            key: ChunkKey::new(&secret),
            window: Window::default(),
            session: None,
            poisoned: false,
        })
    }

    /// The sink again. If a stream was under way, it is cut off.
    pub fn into_sink(self) -> S {
        self.sink
    }

    /// Does something after which, if it fails, nothing more is done.
    fn run<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, Failed<S::Error>>,
    ) -> Result<T, StreamTargetError<S::Error>> {
        let done = if self.poisoned { Err(StreamProblem::Poisoned.into()) } else { act(self) };
        self.poisoned = done.is_err();
        done.map_err(|failed| self.named(failed))
    }

    fn named(&self, failed: Failed<S::Error>) -> StreamTargetError<S::Error> {
        match failed {
            Failed::Sink(error) => StreamTargetError::Sink(error),
            Failed::Here(problem) => {
                let slash = if self.member.is_empty() { "" } else { "/" };
                let name = format!("{}{slash}{}", self.name, self.member);
                StreamTargetError::Stream { name, problem }
            }
        }
    }

    /// Decides on an offer, and changes nothing.
    fn admit(&self, offer: &Offer) -> Result<(), StreamProblem> {
        let plan = &offer.plan;
        if self.poisoned {
            return Err(StreamProblem::Poisoned);
        }
        if plan.kind != PlanKind::Stream {
            return Err(StreamProblem::NotAStream);
        }
        let is_point =
            |base| self.state.points.iter().any(|point| base == Generation::zfs(point.guid));
        if plan.base != self.state.generation && !plan.base.is_some_and(is_point) {
            let holds = self.state.generation;
            return Err(StreamProblem::NotTheBase { offered: plan.base, holds });
        }
        if self.session.is_some() {
            return Err(StreamProblem::Malformed("a stream begins within another"));
        }
        Ok(())
    }

    /// Turns to another data set. Only what was told is thrown away: it may be another's by now.
    fn turn_to(&mut self, ask: &Ask) -> Result<Option<TargetState>, Failed<S::Error>> {
        if self.session.is_some() {
            return Err(StreamProblem::Malformed("it asks within a stream").into());
        }
        let told = self.state.token.take().filter(|_| self.member == ask.member);
        let discard = told.filter(|_| ask.discard);
        let turned = self.sink.turn_to(&ask.member, discard.as_deref()).map_err(Failed::Sink)?;
        let Some(state) = turned else { return Ok(None) };
        check_token(&state)?;
        self.state = state;
        self.member = ask.member.clone();
        Ok(Some(self.state()))
    }

    /// Whether a part must be sent, which is remembered until it is applied.
    fn lacks_one(&mut self, item: &Item) -> Result<Missing, StreamProblem> {
        let session = self.session.as_mut().ok_or(NO_SESSION)?;
        let Item::Part { index, len, id } = *item else {
            return Err(StreamProblem::Malformed("a change of a volume is no part of a stream"));
        };
        if index != session.next {
            return Err(StreamProblem::Malformed("a part is missing or came twice"));
        }
        if !(1..=PART_LEN_MAX).contains(&u64::from(len)) {
            return Err(StreamProblem::Malformed("a part is empty or too long"));
        }
        session.next += 1;
        let lookup = self.window.look_up(id, len);
        session.announced.push_back(Announced { index, len, id, lookup });
        Ok(if lookup == Lookup::Lacking { Missing::All } else { Missing::Nothing })
    }

    fn apply_one(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), Failed<S::Error>> {
        let session = self.session.as_mut().ok_or(NO_SESSION)?;
        let announced = session.announced.pop_front();
        let Some(Announced { index, len, id, lookup }) = announced.filter(|a| a.is(item)) else {
            return Err(StreamProblem::Malformed("a part was not announced").into());
        };
        let bytes = match (lookup, data) {
            (Lookup::Lacking, Some(bytes)) => {
                if bytes.len() != len as usize || self.key.id(bytes) != id {
                    return Err(StreamProblem::WrongData { index }.into());
                }
                self.window.keep(id, bytes);
                bytes
            }
            (Lookup::Lacking, None) => {
                let malformed = StreamProblem::Malformed("a part that is lacking was not sent");
                return Err(malformed.into());
            }
            (Lookup::Held, _) => {
                let kept = self.window.take(id).filter(|kept| kept.len() == len as usize);
                // Memory is not believed for long: what is written was checked just before.
                match kept.filter(|kept| self.key.id(kept) == id) {
                    Some(kept) => kept,
                    None => return Err(StreamProblem::WindowDamaged.into()),
                }
            }
            (Lookup::Zero, _) => &ZEROS[..len as usize],
        };
        self.sink.write(bytes).map_err(Failed::Sink)?;
        session.hasher.update(bytes);
        Ok(())
    }

    fn commit_session(&mut self, finish: &Finish) -> Result<Committed, Failed<S::Error>> {
        let session = self.session.take().ok_or(NO_SESSION)?;
        if !session.announced.is_empty() {
            return Err(StreamProblem::Malformed("a part that was announced never came").into());
        }
        let (found, len, tip) = (session.hasher.root(), session.hasher.byte_count(), finish.tip);
        let (Some(expected), Some(size)) = (finish.root, finish.size) else {
            return Err(StreamProblem::Malformed("it ends without its hash and length").into());
        };
        if (expected, size) != (found, len) {
            return Err(StreamProblem::WrongRoot { expected, found, len }.into());
        }
        if let Some(planned) = session.tip.filter(|planned| *planned != tip) {
            return Err(StreamProblem::WrongTip { planned, tip }.into());
        }
        self.state = self.sink.finish(&tip).map_err(Failed::Sink)?;
        if self.state.generation != Some(tip) {
            let holds = self.state.generation;
            return Err(StreamProblem::NotReached { tip, holds }.into());
        }
        Ok(Committed { generation: tip, root: found, size: len, zeroed: None })
    }
}

const NO_SESSION: StreamProblem = StreamProblem::Malformed("no stream was begun");

/// The longest part of zeros.
static ZEROS: [u8; PART_LEN_MAX as usize] = [0; PART_LEN_MAX as usize];

/// An error whose target is not named yet.
enum Failed<E> {
    Sink(E),
    Here(StreamProblem),
}

impl<E> From<StreamProblem> for Failed<E> {
    fn from(problem: StreamProblem) -> Self {
        Self::Here(problem)
    }
}

impl Announced {
    fn is(&self, item: &Item) -> bool {
        *item == Item::Part { index: self.index, len: self.len, id: self.id }
    }
}

/// That what a sink gives out as a token can be told.
fn check_token(state: &SinkState) -> Result<(), StreamProblem> {
    match state.token.as_deref().is_none_or(is_token) {
        true => Ok(()),
        false => Err(StreamProblem::BadToken),
    }
}

/// Whether a text can be told as a token: see [`Accepts::Stream`].
fn is_token(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= TOKEN_LEN_MAX.into()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a point can be told.
fn is_tellable(point: &Point) -> bool {
    (1..=POINT_NAME_LEN_MAX.into()).contains(&point.name.len())
        && !point.name.chars().any(char::is_control)
}

impl<S: Sink> Target for StreamTarget<S> {
    type Error = StreamTargetError<S::Error>;

    fn state(&self) -> TargetState {
        let SinkState { generation, token, points } = self.state.clone();
        let tellable = points.into_iter().filter(is_tellable);
        let points = tellable.take(POINTS_MAX.into()).collect();
        TargetState {
            replica: self.replica,
            chunk_key: self.secret,
            generation,
            incomplete: generation.is_none(),
            accepts: Accepts::Stream { token, points },
            ..TargetState::nothing()
        }
    }

    fn answer(&mut self, ask: &Ask) -> Result<Option<TargetState>, Self::Error> {
        self.run(|this| this.turn_to(ask))
    }

    fn begin(&mut self, offer: &Offer) -> Result<Begin, Self::Error> {
        // A refusal is no failure: nothing was changed.
        self.admit(offer).map_err(|problem| self.named(problem.into()))?;
        self.run(|this| {
            this.sink.begin(offer).map_err(Failed::Sink)?;
            this.session = Some(Session {
                tip: offer.plan.tip,
                announced: VecDeque::new(),
                next: 0,
                hasher: this.key.stream(),
            });
            Ok(Begin { from: 0 })
        })
    }

    /// A part is not lacking only if its bytes will be there when it is applied: they are in
    /// the window and stay there, or are on their way for a part before it.
    fn missing(&mut self, items: &[Item]) -> Result<Vec<Missing>, Self::Error> {
        self.run(|this| {
            Ok(items.iter().map(|item| this.lacks_one(item)).collect::<Result<_, _>>()?)
        })
    }

    fn apply(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), Self::Error> {
        self.run(|this| this.apply_one(item, data))
    }

    fn patch(&mut self, _: &Item, _: GrainMask, _: &[u8]) -> Result<bool, Self::Error> {
        self.run(|_| Err(StreamProblem::Malformed("a part came as if it had been narrowed").into()))
    }

    /// Where to go on is the storage's own knowledge.
    fn mark(&mut self, _watermark: u64) -> Result<(), Self::Error> {
        Ok(())
    }

    fn commit(&mut self, finish: &Finish) -> Result<Committed, Self::Error> {
        self.run(|this| this.commit_session(finish))
    }
}

impl<S> fmt::Debug for StreamTarget<S> {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamTarget").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use driftline_extent::{Plan, Standing};

    use super::*;

    /// A sink that counts bytes.
    struct Count(usize);

    #[derive(Debug, thiserror::Error)]
    #[error("never")]
    struct Never;

    impl Explained for Never {
        fn reason(&self) -> Reason {
            Reason::Failed
        }
    }

    impl Sink for Count {
        type Error = Never;

        fn state(&mut self) -> Result<SinkState, Never> {
            Ok(SinkState::default())
        }

        fn begin(&mut self, _: &Offer) -> Result<(), Never> {
            Ok(())
        }

        fn write(&mut self, bytes: &[u8]) -> Result<(), Never> {
            self.0 += bytes.len();
            Ok(())
        }

        fn finish(&mut self, tip: &Generation) -> Result<SinkState, Never> {
            Ok(SinkState { generation: Some(*tip), ..SinkState::default() })
        }
    }

    #[test]
    fn what_changed_in_memory_is_not_written() {
        let standing = Standing::Proven;
        let plan = Plan {
            kind: PlanKind::Stream,
            volume: None,
            base: None,
            tip: None,
            size: None,
            standing,
            bytes_expected: 0,
        };
        let bytes = [7; 4096];
        for (spoilt, written) in [(false, 2 * 4096), (true, 4096)] {
            let mut target = StreamTarget::new(Count(0), "pool/fs", [1; 32]).unwrap();
            target.begin(&Offer { plan: plan.clone(), overwrite: false }).unwrap();
            let id = target.key.id(&bytes);
            let parts = [0, 1].map(|index| Item::Part { index, len: 4096, id });
            assert_eq!(target.missing(&parts).unwrap(), [Missing::All, Missing::Nothing]);
            target.apply(&parts[0], Some(&bytes)).unwrap();
            if spoilt {
                target.window.spoil();
            }
            let applied = target.apply(&parts[1], None).map_err(|error| error.reason());
            assert_eq!(applied, if spoilt { Err(Reason::VerifyFailed) } else { Ok(()) });
            assert_eq!(target.into_sink().0, written);
        }
    }
}
