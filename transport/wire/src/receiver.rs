//! The target side of a session, as a machine without I/O.

use std::collections::VecDeque;

use driftline_extent::{
    Ask, Begin, Committed, Extent, ExtentSet, Finish, GrainMask, Item, Missing, Offer, PlanKind,
    Reason, TargetState,
};

use crate::{
    limits::{BATCH_PARTS_MAX, WINDOW_BATCHES_MAX, WINDOW_DATA_MAX},
    message::{Batch, DataPart, Message},
    sender::record,
    session::SessionError,
};

/// What comes of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// Nothing: the target has it.
    Nothing,
    /// All of its data; of a span, that its chunks are told.
    All,
    /// The data of these grains.
    Grains(GrainMask),
}

impl Inbound {
    /// How many bytes of data come of `item`.
    pub const fn data_len(self, item: &Item) -> u64 {
        match (self, item) {
            (Self::Grains(grains), Item::Chunk { data, .. }) => data.within(grains).byte_count(),
            (Self::All, _) => item.data_len(),
            (Self::Nothing | Self::Grains(_), _) => 0,
        }
    }
}

/// A batch that has arrived whole: the items, what came of them, their data. If the target could
/// not make an item from what came of it, that item arrives once more, in a batch of such alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// The batch.
    pub batch: Batch,
    /// One for each item.
    pub inbound: Vec<Inbound>,
    /// The data that came, in order.
    pub parts: Vec<DataPart>,
    /// Once this batch is applied, every chunk below this index has been received.
    pub watermark: u64,
}

/// What the receiver wants done. The target does these in the order in which they come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReceiverOutput {
    /// Send this.
    Send(Message),
    /// Say what a data set of the target holds, and answer with [`Receiver::handle_answered`].
    Answer(Ask),
    /// Begin the increment, and answer with [`Receiver::handle_begun`].
    Begin(Offer),
    /// Look up what is lacking of each item, and answer with [`Receiver::handle_looked_up`].
    LookUp(Batch),
    /// Apply the batch, and answer with [`Receiver::handle_applied`], or with
    /// [`Receiver::handle_misfits`].
    Apply(Arrived),
    /// Commit the increment, and answer with [`Receiver::handle_committed`].
    Commit(Finish),
    /// The session ended as it should.
    Ended,
}

/// The target side of a session: asks for what is lacking, keeps the order, grants the window.
#[derive(Debug)]
pub struct Receiver {
    state: State,
    kind: PlanKind,
    next_seq: u32,
    /// In a stream, the part that is announced next.
    next_part: u64,
    /// Batches that are not complete, in order; only the first may be applied.
    waiting: VecDeque<Waiting>,
    /// Batches that are being applied. One with narrowed items is the last of them.
    applying: VecDeque<Applying>,
    window_used: u64,
    transcript: blake3::Hasher,
    /// Chunks that have been received. In a scan the answers to spans come out of order.
    received: ExtentSet,
    watermark: u64,
    output: VecDeque<ReceiverOutput>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    AwaitOffer,
    Answering,
    Beginning,
    Receiving,
    Committing,
    Ended,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::AwaitOffer => "an offer was due",
            Self::Answering => "the target was being looked at",
            Self::Beginning => "the increment was beginning",
            Self::Receiving => "the increment was being received",
            Self::Committing => "the increment was being committed",
            Self::Ended => "the session was over",
        }
    }
}

#[derive(Debug)]
struct Waiting {
    batch: Batch,
    /// What the batch uses of the window.
    data_len: u64,
    inbound: Option<Vec<Inbound>>,
    /// Items of which the source has still to say which grains come.
    narrowing: usize,
    parts: Vec<DataPart>,
    /// Data bytes that were wanted and have not arrived.
    awaited: u64,
}

#[derive(Debug)]
struct Applying {
    seq: u32,
    data_len: u64,
    /// The items, if some of them were narrowed: those may have to come whole.
    narrowed: Option<Vec<Item>>,
}

impl Receiver {
    /// A receiver that tells what the target holds and waits for an offer.
    pub fn new(state: TargetState) -> Self {
        Self {
            state: State::AwaitOffer,
            kind: PlanKind::UpToDate,
            next_seq: 0,
            next_part: 0,
            waiting: VecDeque::new(),
            applying: VecDeque::new(),
            window_used: 0,
            transcript: blake3::Hasher::new(),
            received: ExtentSet::new(),
            watermark: 0,
            output: [ReceiverOutput::Send(Message::State(Box::new(state)))].into(),
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<ReceiverOutput> {
        self.output.pop_front()
    }

    /// Takes a message from the source.
    pub fn handle_message(&mut self, message: Message) -> Result<(), SessionError> {
        match (self.state, message) {
            (State::AwaitOffer, Message::Offer(offer)) => {
                self.state = State::Beginning;
                self.kind = offer.plan.kind;
                self.output.push_back(ReceiverOutput::Begin(offer));
                Ok(())
            }
            (State::AwaitOffer, Message::Ask(ask)) => {
                self.state = State::Answering;
                self.output.push_back(ReceiverOutput::Answer(ask));
                Ok(())
            }
            (State::AwaitOffer, Message::Done) => {
                self.state = State::Ended;
                self.output.push_back(ReceiverOutput::Send(Message::Done));
                self.output.push_back(ReceiverOutput::Ended);
                Ok(())
            }
            (State::Receiving, Message::Batch(batch)) => self.handle_batch(batch),
            (State::Receiving, Message::Narrowed { seq, grains }) => {
                self.handle_narrowed(seq, &grains)
            }
            (State::Receiving, Message::Finish { finish, transcript }) => {
                self.handle_finish(finish, &transcript)
            }
            (state, message) => {
                if matches!(message, Message::Refuse { .. }) {
                    self.state = State::Ended;
                }
                Err(SessionError::out_of_place(message, state.name()))
            }
        }
    }

    /// The target has looked at what was asked about.
    pub fn handle_answered(&mut self, state: TargetState) {
        debug_assert_eq!(self.state, State::Answering);
        self.state = State::AwaitOffer;
        self.output.push_back(ReceiverOutput::Send(Message::State(Box::new(state))));
    }

    /// The target has begun.
    pub fn handle_begun(&mut self, begin: Begin) {
        debug_assert_eq!(self.state, State::Beginning);
        self.state = State::Receiving;
        self.next_seq = 0;
        self.next_part = 0;
        self.transcript = blake3::Hasher::new();
        self.received = Extent::from_bounds(0, begin.from).into_iter().collect();
        self.watermark = begin.from;
        self.output.push_back(ReceiverOutput::Send(Message::Begin(begin)));
    }

    fn handle_batch(&mut self, batch: Batch) -> Result<(), SessionError> {
        if batch.seq != self.next_seq {
            return Err(SessionError::Violation("a batch is missing or came twice"));
        }
        // Numbers tell apart the batches of a window; an increment may have more than 2^32.
        self.next_seq = self.next_seq.wrapping_add(1);
        self.check_kinds(&batch.items)?;
        let data_len = batch.data_len();
        self.window_used += data_len;
        if self.window_used > WINDOW_DATA_MAX
            || self.waiting.len() + self.applying.len() >= WINDOW_BATCHES_MAX
        {
            return Err(SessionError::Violation("it announced more than the window holds"));
        }
        record(&mut self.transcript, &batch.items);
        self.waiting.push_back(Waiting {
            batch: batch.clone(),
            data_len,
            inbound: None,
            narrowing: 0,
            parts: Vec::new(),
            awaited: 0,
        });
        self.output.push_back(ReceiverOutput::LookUp(batch));
        Ok(())
    }

    /// That a stream is made of parts, one after the other, and nothing else is.
    fn check_kinds(&mut self, items: &[Item]) -> Result<(), SessionError> {
        let stream = self.kind == PlanKind::Stream;
        for item in items {
            let error = match item {
                Item::Part { index, .. } if stream && *index == self.next_part => {
                    self.next_part += 1;
                    continue;
                }
                Item::Part { .. } if stream => "a part of the stream is missing or came twice",
                Item::Part { .. } => "it announced a part of a stream among changes of a volume",
                _ if stream => "it announced a change of a volume in a stream",
                _ => continue,
            };
            return Err(SessionError::Violation(error));
        }
        Ok(())
    }

    /// The target has looked up the items of a batch.
    pub fn handle_looked_up(&mut self, seq: u32, missing: Vec<Missing>) {
        let Some(waiting) = self.waiting.iter_mut().find(|w| w.batch.seq == seq) else { return };
        let inbound: Vec<Inbound> = missing
            .iter()
            .map(|lack| match lack {
                Missing::Nothing => Inbound::Nothing,
                Missing::All => Inbound::All,
                // Until the source says which.
                Missing::Unlike(_) => Inbound::Grains(GrainMask::default()),
            })
            .collect();
        let grains = inbound.iter().filter(|inbound| matches!(inbound, Inbound::Grains(_)));
        waiting.narrowing = grains.count();
        waiting.awaited = awaited(&waiting.batch.items, &inbound);
        waiting.inbound = Some(inbound);
        self.output.push_back(ReceiverOutput::Send(Message::Want { seq, missing }));
        self.apply_in_order();
    }

    fn handle_narrowed(&mut self, seq: u32, grains: &[GrainMask]) -> Result<(), SessionError> {
        let waiting = self.waiting.iter_mut().find(|w| w.batch.seq == seq);
        let Some((waiting, mut inbound)) = waiting.and_then(|waiting| {
            let inbound = waiting.inbound.take_if(|_| waiting.narrowing == grains.len())?;
            Some((waiting, inbound))
        }) else {
            return Err(SessionError::Violation("it narrowed other items than it was asked to"));
        };
        let items = inbound.iter_mut().zip(&waiting.batch.items);
        let narrowed = items.filter(|(inbound, _)| matches!(inbound, Inbound::Grains(_)));
        for ((inbound, item), grains) in narrowed.zip(grains) {
            if !item.narrowable().is_some_and(|there| grains.is_within(there)) {
                return Err(SessionError::Violation("it narrowed an item to what is not in it"));
            }
            *inbound = Inbound::Grains(*grains);
        }
        waiting.narrowing = 0;
        waiting.awaited = awaited(&waiting.batch.items, &inbound);
        waiting.inbound = Some(inbound);
        self.apply_in_order();
        Ok(())
    }

    /// Takes data from the source.
    pub fn handle_data(&mut self, part: DataPart) -> Result<(), SessionError> {
        let waiting = self.waiting.iter_mut().find(|w| w.batch.seq == part.seq);
        let waiting = waiting.filter(|waiting| waiting.narrowing == 0);
        let Some((waiting, rest)) =
            waiting.and_then(|w| w.awaited.checked_sub(part.raw_len.into()).map(|rest| (w, rest)))
        else {
            return Err(SessionError::Violation("it sent data that nobody wants"));
        };
        if waiting.parts.len() == BATCH_PARTS_MAX {
            return Err(SessionError::Violation("it sent the data of a batch in too many parts"));
        }
        waiting.awaited = rest;
        waiting.parts.push(part);
        self.apply_in_order();
        Ok(())
    }

    fn apply_in_order(&mut self) {
        // What cannot be made from grains comes whole, and what follows is not applied before it.
        while self.applying.back().is_none_or(|applying| applying.narrowed.is_none())
            && let Some(first) = self.waiting.front_mut()
            && first.awaited == 0
            && first.narrowing == 0
            && let Some(inbound) = first.inbound.take()
            && let Some(Waiting { batch, data_len, parts, .. }) = self.waiting.pop_front()
        {
            let watermark = self.advance(&batch, &inbound);
            let narrowed = inbound.iter().any(|inbound| matches!(inbound, Inbound::Grains(_)));
            let narrowed = narrowed.then(|| batch.items.clone());
            self.applying.push_back(Applying { seq: batch.seq, data_len, narrowed });
            let arrived = Arrived { batch, inbound, parts, watermark };
            self.output.push_back(ReceiverOutput::Apply(arrived));
        }
    }

    /// The watermark once `batch` is applied as well.
    fn advance(&mut self, batch: &Batch, inbound: &[Inbound]) -> u64 {
        if self.kind == PlanKind::Scan {
            // A span that differs is not received before its chunks are.
            let settled = batch.items.iter().zip(inbound);
            let settled =
                settled.filter(|(i, c)| !(**c == Inbound::All && matches!(i, Item::Span { .. })));
            self.received.extend(settled.filter_map(|(i, _)| Extent::new(i.first(), i.count())));
            self.watermark = match self.received.iter().next() {
                Some(first) if first.offset() == 0 => first.end(),
                _ => 0,
            };
        } else if let Some(last) = batch.items.last() {
            self.watermark = self.watermark.max(last.first() + last.count());
        }
        self.watermark
    }

    /// The target has applied a batch.
    pub fn handle_applied(&mut self, seq: u32) {
        let Some(Applying { seq: applied, data_len, .. }) = self.applying.pop_front() else {
            return;
        };
        debug_assert_eq!(applied, seq);
        self.window_used -= data_len;
        self.output.push_back(ReceiverOutput::Send(Message::Applied { seq }));
        self.apply_in_order();
    }

    /// The target has applied nothing of a batch: what came of these items, by their places in
    /// it, is not enough to make them. They arrive once more, whole, and nothing before them.
    pub fn handle_misfits(&mut self, seq: u32, misfits: Vec<u16>) {
        let Some(Applying { data_len, narrowed: Some(items), .. }) = self.applying.pop_front()
        else {
            return;
        };
        let items = misfits.iter().filter_map(|place| items.get(usize::from(*place)).copied());
        let items: Vec<Item> = items.collect();
        let inbound = vec![Inbound::All; items.len()];
        self.waiting.push_front(Waiting {
            awaited: awaited(&items, &inbound),
            batch: Batch { seq, items },
            data_len,
            inbound: Some(inbound),
            narrowing: 0,
            parts: Vec::new(),
        });
        self.output.push_back(ReceiverOutput::Send(Message::Again { seq, items: misfits }));
    }

    fn handle_finish(&mut self, finish: Finish, transcript: &[u8; 32]) -> Result<(), SessionError> {
        if !self.waiting.is_empty() || !self.applying.is_empty() {
            return Err(SessionError::Violation("it finished before everything was applied"));
        }
        if self.transcript.finalize().as_bytes() != transcript {
            return Err(SessionError::Transcript);
        }
        self.state = State::Committing;
        self.output.push_back(ReceiverOutput::Commit(finish));
        Ok(())
    }

    /// The target has committed.
    pub fn handle_committed(&mut self, committed: Committed) {
        debug_assert_eq!(self.state, State::Committing);
        self.state = State::AwaitOffer;
        self.output.push_back(ReceiverOutput::Send(Message::Committed(committed)));
    }

    /// Gives up and tells the source why.
    pub fn refuse(&mut self, reason: Reason, detail: String) {
        self.state = State::Ended;
        self.output.push_back(ReceiverOutput::Send(Message::Refuse { reason, detail }));
    }
}

/// How many bytes of data come of the items of a batch.
fn awaited(items: &[Item], inbound: &[Inbound]) -> u64 {
    items.iter().zip(inbound).map(|(item, inbound)| inbound.data_len(item)).sum()
}
