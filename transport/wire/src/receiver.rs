//! The target side of a session, as a machine without I/O.

use std::collections::VecDeque;

use driftline_extent::{
    Begin, Committed, Extent, ExtentSet, Finish, Item, Offer, PlanKind, Reason, TargetState,
};

use crate::{
    limits::{BATCH_PARTS_MAX, WINDOW_BATCHES_MAX, WINDOW_DATA_MAX},
    message::{Batch, DataPart, Message},
    sender::record,
    session::SessionError,
};

/// A batch that has arrived whole: the items, which of them the target wanted, their data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// The batch.
    pub batch: Batch,
    /// One for each item.
    pub wants: Vec<bool>,
    /// The data of the wanted items.
    pub parts: Vec<DataPart>,
    /// Once this batch is applied, every chunk below this index has been received.
    pub watermark: u64,
}

/// What the receiver wants done. The target does these in the order in which they come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReceiverOutput {
    /// Send this.
    Send(Message),
    /// Begin the increment, and answer with [`Receiver::handle_begun`].
    Begin(Offer),
    /// Look up which items are lacking, and answer with [`Receiver::handle_looked_up`].
    LookUp(Batch),
    /// Apply the batch, and answer with [`Receiver::handle_applied`].
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
    /// Numbers and data lengths of batches that are being applied.
    applying: VecDeque<(u32, u64)>,
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
    Beginning,
    Receiving,
    Committing,
    Ended,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::AwaitOffer => "an offer was due",
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
    wants: Option<Vec<bool>>,
    parts: Vec<DataPart>,
    /// Data bytes that were wanted and have not arrived.
    missing: u64,
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
            (State::AwaitOffer, Message::Done) => {
                self.state = State::Ended;
                self.output.push_back(ReceiverOutput::Send(Message::Done));
                self.output.push_back(ReceiverOutput::Ended);
                Ok(())
            }
            (State::Receiving, Message::Batch(batch)) => self.handle_batch(batch),
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
        self.window_used += batch.data_len();
        if self.window_used > WINDOW_DATA_MAX
            || self.waiting.len() + self.applying.len() >= WINDOW_BATCHES_MAX
        {
            return Err(SessionError::Violation("it announced more than the window holds"));
        }
        record(&mut self.transcript, &batch.items);
        let waiting = Waiting { batch: batch.clone(), wants: None, parts: Vec::new(), missing: 0 };
        self.waiting.push_back(waiting);
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
    pub fn handle_looked_up(&mut self, seq: u32, wants: Vec<bool>) {
        let Some(waiting) = self.waiting.iter_mut().find(|w| w.batch.seq == seq) else { return };
        let wanted = waiting.batch.items.iter().zip(&wants).filter(|(_, wanted)| **wanted);
        waiting.missing = wanted.map(|(item, _)| item.data_len()).sum();
        waiting.wants = Some(wants.clone());
        self.output.push_back(ReceiverOutput::Send(Message::Want { seq, wants }));
        self.apply_in_order();
    }

    /// Takes data from the source.
    pub fn handle_data(&mut self, part: DataPart) -> Result<(), SessionError> {
        let waiting = self.waiting.iter_mut().find(|w| w.batch.seq == part.seq);
        let rest = waiting.as_ref().and_then(|w| w.missing.checked_sub(part.raw_len.into()));
        let (Some(waiting), Some(rest)) = (waiting, rest) else {
            return Err(SessionError::Violation("it sent data that nobody wants"));
        };
        if waiting.parts.len() == BATCH_PARTS_MAX {
            return Err(SessionError::Violation("it sent the data of a batch in too many parts"));
        }
        waiting.missing = rest;
        waiting.parts.push(part);
        self.apply_in_order();
        Ok(())
    }

    fn apply_in_order(&mut self) {
        while let Some(first) = self.waiting.front_mut()
            && first.missing == 0
            && let Some(wants) = first.wants.take()
            && let Some(Waiting { batch, parts, .. }) = self.waiting.pop_front()
        {
            let watermark = self.advance(&batch, &wants);
            self.applying.push_back((batch.seq, batch.data_len()));
            let arrived = Arrived { batch, wants, parts, watermark };
            self.output.push_back(ReceiverOutput::Apply(arrived));
        }
    }

    /// The watermark once `batch` is applied as well.
    fn advance(&mut self, batch: &Batch, wants: &[bool]) -> u64 {
        if self.kind == PlanKind::Scan {
            // A span that differs is not received before its chunks are.
            let settled = batch.items.iter().zip(wants);
            let settled =
                settled.filter(|(i, wanted)| !(**wanted && matches!(i, Item::Span { .. })));
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
        let Some((applied, data_len)) = self.applying.pop_front() else { return };
        debug_assert_eq!(applied, seq);
        self.window_used -= data_len;
        self.output.push_back(ReceiverOutput::Send(Message::Applied { seq }));
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
