//! The source side of a session, as a machine without I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

use bytes::Bytes;
use driftline_extent::{
    Ask, Begin, Committed, Finish, GrainHash, GrainMask, Item, Missing, Offer, PlanKind, Reason,
    TargetState,
};

use crate::{
    codec::Codec,
    limits::{BATCH_DATA_MAX, BATCH_ITEMS_MAX, WINDOW_BATCHES_MAX, WINDOW_DATA_MAX},
    message::{Batch, DataPart, Message},
    session::SessionError,
};

/// Where the data of an announced item is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Here: a stream cannot be asked twice. Empty for items without data. The only place for
    /// that of an [`Item::Part`].
    Held(Bytes),
    /// In the volume: it is read again if the target wants it.
    InVolume,
}

/// An item on its way to the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// What is announced.
    pub item: Item,
    /// Its data.
    pub payload: Payload,
}

/// Data that the target wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// What it is the data of.
    pub announced: Announced,
    /// The hashes of the target's grains, if only what differs is wanted.
    pub theirs: Option<Vec<GrainHash>>,
}

/// What became of the pieces of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Packed {
    /// For each piece of which only some grains were wanted: those that differ.
    pub narrowed: Vec<GrainMask>,
    /// The data of all pieces, in order.
    pub parts: Vec<DataPart>,
}

/// A span that the target has compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compared {
    /// The span.
    pub span: Item,
    /// Whether the target holds something else.
    pub differs: bool,
}

/// What the sender wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SenderOutput {
    /// Send this.
    Send(Message),
    /// Send this data.
    SendData(DataPart),
    /// The target holds this: plan, and answer with [`Sender::handle_plan`], or with
    /// [`Sender::handle_ask`] if more must be known.
    Plan(Box<TargetState>),
    /// Deliver the planned increment from this chunk on, with [`Sender::handle_batch`] and
    /// at last [`Sender::handle_end`].
    Deliver(Begin),
    /// Pack these, and answer with [`Sender::handle_packed`].
    Pack {
        /// The batch they belong to.
        seq: u32,
        /// In order.
        pieces: Vec<Piece>,
    },
    /// The target has compared these spans of one batch.
    Compared(Vec<Compared>),
    /// The target has committed the increment; a new [`SenderOutput::Plan`] follows.
    Committed(Committed),
    /// The session ended as it should.
    Ended,
}

/// The source side of a session: announces, answers wants, keeps the window.
#[derive(Debug)]
pub struct Sender {
    state: State,
    kind: PlanKind,
    target: Option<Box<TargetState>>,
    next_seq: u32,
    /// Batches whose share of the window is in use.
    outstanding: BTreeMap<u32, Outstanding>,
    window_used: u64,
    transcript: blake3::Hasher,
    finish: Option<Finish>,
    output: VecDeque<SenderOutput>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Opening,
    Planning,
    AwaitBegin,
    Delivering,
    AwaitCommit,
    AwaitDone,
    Ended,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Opening => "the target's state was due",
            Self::Planning => "the source was planning",
            Self::AwaitBegin => "begin was due",
            Self::Delivering => "the increment was being delivered",
            Self::AwaitCommit => "the commit was due",
            Self::AwaitDone => "done was due",
            Self::Ended => "the session was over",
        }
    }
}

#[derive(Debug)]
struct Outstanding {
    data_len: u64,
    stage: Stage,
}

/// How far a batch is.
#[derive(Debug)]
enum Stage {
    /// The target is to say what it lacks.
    Announced(Vec<Announced>),
    /// What it wants is being packed. These may be wanted again.
    Packing(Narrowed),
    /// What it wants was sent.
    Sent(Narrowed),
}

/// Items of which only what differs was wanted, with their places in the batch.
type Narrowed = Vec<(u16, Announced)>;

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    /// A sender that waits for the target's state.
    pub fn new() -> Self {
        Self {
            state: State::Opening,
            kind: PlanKind::UpToDate,
            target: None,
            next_seq: 0,
            outstanding: BTreeMap::new(),
            window_used: 0,
            transcript: blake3::Hasher::new(),
            finish: None,
            output: VecDeque::new(),
        }
    }

    /// Whether another batch may be announced now.
    pub fn wants_batch(&self) -> bool {
        self.state == State::Delivering
            && self.finish.is_none()
            && self.outstanding.len() < WINDOW_BATCHES_MAX
            && self.window_used <= WINDOW_DATA_MAX - BATCH_DATA_MAX
    }

    /// Data bytes that were announced and not applied.
    pub const fn window_used(&self) -> u64 {
        self.window_used
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<SenderOutput> {
        self.output.pop_front()
    }

    /// Takes a message from the target.
    pub fn handle_message(&mut self, message: Message) -> Result<(), SessionError> {
        match (self.state, message) {
            (State::Opening, Message::State(state)) => {
                let told = self.target.as_ref().map(|told| (told.replica, told.chunk_key));
                if told.is_some_and(|told| told != (state.replica, state.chunk_key)) {
                    return Err(SessionError::Violation("it became another replica"));
                }
                self.plan(state);
                Ok(())
            }
            (State::AwaitBegin, Message::Begin(begin)) => {
                if self.kind == PlanKind::Stream && begin.from != 0 {
                    return Err(SessionError::Violation("it wants a stream from its middle on"));
                }
                self.state = State::Delivering;
                self.output.push_back(SenderOutput::Deliver(begin));
                Ok(())
            }
            (State::Delivering, Message::Want { seq, missing }) => self.handle_want(seq, missing),
            (State::Delivering, Message::Again { seq, items }) => self.handle_again(seq, &items),
            (State::Delivering, Message::Applied { seq }) => self.handle_applied(seq),
            (State::AwaitCommit, Message::Committed(committed)) => self.handle_commit(committed),
            (State::AwaitDone, Message::Done) => {
                self.state = State::Ended;
                self.output.push_back(SenderOutput::Ended);
                Ok(())
            }
            (state, message) => {
                if matches!(message, Message::Refuse { .. }) {
                    self.state = State::Ended;
                }
                Err(SessionError::out_of_place(message, state.name()))
            }
        }
    }

    fn plan(&mut self, state: Box<TargetState>) {
        self.state = State::Planning;
        self.target = Some(state.clone());
        self.output.push_back(SenderOutput::Plan(state));
    }

    /// Asks the target for the state of one of its data sets, which another
    /// [`SenderOutput::Plan`] brings.
    pub fn handle_ask(&mut self, ask: Ask) {
        debug_assert_eq!(self.state, State::Planning);
        self.state = State::Opening;
        self.output.push_back(SenderOutput::Send(Message::Ask(ask)));
    }

    /// Takes the source's plan. [`PlanKind::UpToDate`] ends the session.
    pub fn handle_plan(&mut self, offer: Offer) {
        debug_assert_eq!(self.state, State::Planning);
        self.kind = offer.plan.kind;
        if offer.plan.kind == PlanKind::UpToDate {
            self.state = State::AwaitDone;
            self.output.push_back(SenderOutput::Send(Message::Done));
        } else {
            self.state = State::AwaitBegin;
            self.output.push_back(SenderOutput::Send(Message::Offer(offer)));
        }
    }

    /// Announces a batch. Call only while [`wants_batch`](Self::wants_batch) says so.
    pub fn handle_batch(&mut self, items: Vec<Announced>) {
        debug_assert!(self.wants_batch() && (1..=BATCH_ITEMS_MAX).contains(&items.len()));
        let batch =
            Batch { seq: self.next_seq, items: items.iter().map(|entry| entry.item).collect() };
        self.next_seq = self.next_seq.wrapping_add(1);
        record(&mut self.transcript, &batch.items);
        let data_len = batch.data_len();
        debug_assert!(data_len <= BATCH_DATA_MAX);
        self.window_used += data_len;
        let outstanding = Outstanding { data_len, stage: Stage::Announced(items) };
        self.outstanding.insert(batch.seq, outstanding);
        self.output.push_back(SenderOutput::Send(Message::Batch(batch)));
    }

    /// The increment is complete: every span was compared, every batch handed over.
    pub fn handle_end(&mut self, finish: Finish) {
        debug_assert_eq!(self.state, State::Delivering);
        self.finish = Some(finish);
        self.finish_if_idle();
    }

    /// Takes the packed data of a batch.
    pub fn handle_packed(&mut self, seq: u32, packed: Packed) {
        let Some(batch) = self.outstanding.get_mut(&seq) else { return };
        let Stage::Packing(narrowed) = &mut batch.stage else { return };
        batch.stage = Stage::Sent(mem::take(narrowed));
        let Packed { narrowed, parts } = packed;
        if !narrowed.is_empty() {
            let message = Message::Narrowed { seq, grains: narrowed };
            self.output.push_back(SenderOutput::Send(message));
        }
        self.output.extend(parts.into_iter().map(SenderOutput::SendData));
    }

    /// Gives up and tells the target why.
    pub fn refuse(&mut self, reason: Reason, detail: String) {
        self.state = State::Ended;
        self.output.push_back(SenderOutput::Send(Message::Refuse { reason, detail }));
    }

    fn handle_want(&mut self, seq: u32, missing: Vec<Missing>) -> Result<(), SessionError> {
        let batch = self.outstanding.get_mut(&seq);
        let Some((batch, items)) = batch.and_then(|batch| match &mut batch.stage {
            Stage::Announced(items) => Some(mem::take(items)).map(|items| (batch, items)),
            Stage::Packing(_) | Stage::Sent(_) => None,
        }) else {
            return Err(SessionError::Violation("it wants data of a batch that is not open"));
        };
        if items.len() != missing.len() {
            return Err(SessionError::Violation("it wants other items than were announced"));
        }
        let (mut pieces, mut narrowed, mut compared) = (Vec::new(), Vec::new(), Vec::new());
        for ((place, announced), lack) in (0..).zip(items).zip(missing) {
            let item = announced.item;
            match lack {
                _ if matches!(item, Item::Span { .. }) => {
                    let differs = lack != Missing::Nothing;
                    compared.push(Compared { span: item, differs });
                }
                Missing::All if item.data_len() > 0 => {
                    pieces.push(Piece { announced, theirs: None })
                }
                Missing::Nothing | Missing::All => {}
                Missing::Unlike(hashes) => {
                    if item.narrowable().is_none_or(|grains| grains.count() != hashes.len()) {
                        let violation = "it told hashes of something else than was announced";
                        return Err(SessionError::Violation(violation));
                    }
                    narrowed.push((place, announced.clone()));
                    pieces.push(Piece { announced, theirs: Some(hashes) });
                }
            }
        }
        if !compared.is_empty() {
            self.output.push_back(SenderOutput::Compared(compared));
        }
        let idle = pieces.is_empty();
        batch.stage = if idle { Stage::Sent(narrowed) } else { Stage::Packing(narrowed) };
        if !idle {
            self.output.push_back(SenderOutput::Pack { seq, pieces });
        }
        Ok(())
    }

    /// Some hashes were the same, and what they are of is not. That is asked once of a batch.
    fn handle_again(&mut self, seq: u32, items: &[u16]) -> Result<(), SessionError> {
        let violation = Err(SessionError::Violation("it wants again what was not narrowed"));
        let Some(Outstanding { stage, .. }) = self.outstanding.get_mut(&seq) else {
            return violation;
        };
        let Stage::Sent(narrowed) = stage else { return violation };
        let mut narrowed = mem::take(narrowed);
        narrowed.retain(|(place, _)| items.contains(place));
        if narrowed.len() != items.len() {
            return violation;
        }
        let whole = |(_, announced)| Piece { announced, theirs: None };
        let pieces = narrowed.into_iter().map(whole).collect();
        *stage = Stage::Packing(Vec::new());
        self.output.push_back(SenderOutput::Pack { seq, pieces });
        Ok(())
    }

    fn handle_applied(&mut self, seq: u32) -> Result<(), SessionError> {
        match self.outstanding.remove(&seq) {
            Some(Outstanding { data_len, stage: Stage::Sent(_) }) => {
                self.window_used -= data_len;
                self.finish_if_idle();
                Ok(())
            }
            _ => Err(SessionError::Violation("it applied a batch that it cannot have")),
        }
    }

    fn finish_if_idle(&mut self) {
        if self.outstanding.is_empty()
            && let Some(finish) = self.finish.clone()
        {
            self.state = State::AwaitCommit;
            let transcript = *self.transcript.finalize().as_bytes();
            let message = Message::Finish { finish, transcript };
            self.output.push_back(SenderOutput::Send(message));
        }
    }

    fn handle_commit(&mut self, committed: Committed) -> Result<(), SessionError> {
        let finished = self.finish.take().is_some_and(|finish| {
            finish.tip == committed.generation
                && finish.root.is_none_or(|root| root == committed.root)
                && finish.size.is_none_or(|size| size == committed.size)
        });
        if !finished {
            return Err(SessionError::Violation("it committed something else than was sent"));
        }
        self.next_seq = 0;
        self.transcript = blake3::Hasher::new();
        self.output.push_back(SenderOutput::Committed(committed));
        let target = self.target.take();
        let Some(mut state) = target else {
            return Err(SessionError::Violation("it committed before it told its state"));
        };
        state.advance(&committed);
        self.plan(state);
        Ok(())
    }
}

/// Adds the encoded items of a batch to the transcript that both sides keep.
pub(crate) fn record(transcript: &mut blake3::Hasher, items: &[Item]) {
    let mut bytes = Vec::new();
    items.iter().for_each(|item| item.encode(&mut bytes));
    transcript.update(&bytes);
}
