//! A whole session on one thread: two links, two machines, and the real workers between.
//!
//! The source's worker runs as it does in the shell; whenever it would wait for the session,
//! the session makes a step. Time passes only while nothing else can happen.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};
use driftline_chunking::ChunkKey;
use driftline_extent::{
    Begin, Committed, Generation, Offer, Plan, Source, Target, TargetState, Volume,
};
use driftline_transport::{
    Failure, Progress, TransportError,
    auditor::Auditor,
    deliver::{self, LastSeen, Outlet},
    receive::Worker,
};
use driftline_wire::{
    Announced, Compared, Link, LinkEvent, Message, Packer, Piece, Receiver, ReceiverOutput, Sender,
    SenderOutput, SessionError, Verb,
};

use crate::link::{Delivery, Fault, Pipe};

/// How a session is to go.
#[derive(Clone, Debug)]
pub struct Script {
    /// [`Verb::Push`]: the source dials; otherwise the target does.
    pub verb: Verb,
    /// Batches are cut to this many items, so that small volumes make many frames.
    pub batch_items: usize,
    /// The zstd level; `None` sends data as it is.
    pub compression: Option<i32>,
    /// The user agreed to overwrite.
    pub overwrite: bool,
    /// What the source remembers of the target.
    pub held: Option<Generation>,
    /// How bytes arrive, in both directions.
    pub delivery: Delivery,
    /// What happens to a frame towards the target.
    pub to_target: Option<Fault>,
    /// What happens to a frame towards the source.
    pub to_source: Option<Fault>,
    /// After so many steps the clock jumps forward by so many milliseconds.
    pub jump: Option<(u64, u64)>,
    /// For so many milliseconds the listening side gets ready before it accepts a request, as while
    /// it waits for a lock or compares a large replica.
    pub busy_ms: u64,
    /// Whether it hears nothing meanwhile: a bug.
    pub deaf: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            verb: Verb::Push,
            batch_items: 3,
            compression: Some(1),
            overwrite: false,
            held: None,
            delivery: Delivery::Whole,
            to_target: None,
            to_source: None,
            jump: None,
            busy_ms: 0,
            deaf: false,
        }
    }
}

/// How a session went.
#[derive(Debug)]
pub struct Outcome<T> {
    /// How it ended for the source.
    pub source: Result<(), TransportError>,
    /// How it ended for the target.
    pub target: Result<(), TransportError>,
    /// The target itself, as the session left it.
    pub replica: T,
    /// The increments that were offered, as the target was told of them.
    pub offered: Vec<Plan>,
    /// The commits that the source heard of.
    pub committed: Vec<Committed>,
    /// Data bytes that the source packed, before compression.
    pub data_packed: u64,
    /// Data bytes that the target applied.
    pub data_applied: u64,
    /// Links that opened: two, if the handshake was completed on both sides.
    pub opened: usize,
    /// Every frame towards the target, as sent.
    pub to_target: Vec<Bytes>,
    /// Every frame towards the source, as sent.
    pub to_source: Vec<Bytes>,
    /// How long it took on the clock of the session.
    pub elapsed_ms: u64,
}

/// Runs a session between `source` and `target` over these links, of which the right one
/// dials. Both must have been made at time zero.
///
/// # Panics
/// If the session neither ends nor fails.
pub fn run<S: Source, T: Target>(
    links: (Link, Link),
    source: &mut S,
    volume: Option<&dyn Volume>,
    target: T,
    script: &Script,
) -> Outcome<T> {
    run_audited(links, source, volume, target, script, None)
}

/// As [`run`], with what checks the source's maps.
///
/// # Panics
/// If the session neither ends nor fails.
pub fn run_audited<S: Source, T: Target>(
    links: (Link, Link),
    source: &mut S,
    volume: Option<&dyn Volume>,
    target: T,
    script: &Script,
    auditor: Option<&mut Auditor>,
) -> Outcome<T> {
    let mut session = Session::new(links, volume, target, script);
    session.auditor = auditor;
    while !session.is_over() {
        match session.work.take() {
            None => session.step(),
            Some(Work::Plan(state)) => match session.plan(source, &state, script) {
                Ok(offer) => {
                    session.offered.push(offer.plan.clone());
                    session.plan = Some(offer.plan.clone());
                    session.sender.handle_plan(offer);
                }
                Err(failure) => session.fail_source(failure),
            },
            Some(Work::Deliver(plan, begin)) => session.deliver(source, volume, &plan, begin),
        }
    }
    session.into_outcome()
}

/// What the source's worker has to do.
enum Work {
    Plan(Box<TargetState>),
    Deliver(Plan, Begin),
}

/// One end's link, and how it ended.
struct End {
    link: Link,
    received: BytesMut,
    result: Option<Result<(), TransportError>>,
}

impl End {
    fn new(link: Link) -> Self {
        Self { link, received: BytesMut::new(), result: None }
    }

    /// Notes how the end went, unless it was over before.
    fn note(&mut self, result: Result<(), TransportError>) {
        self.result.get_or_insert(result);
    }

    const fn is_over(&self) -> bool {
        self.result.is_some()
    }
}

struct Session<'a, T> {
    source: End,
    sender: Sender,
    volume: Option<&'a dyn Volume>,
    packer: Packer,
    key: Option<ChunkKey>,
    plan: Option<Plan>,
    work: Option<Work>,
    compared: VecDeque<Vec<Compared>>,
    progress: Arc<Progress>,
    auditor: Option<&'a mut Auditor>,
    offered: Vec<Plan>,
    committed: Vec<Committed>,

    target: End,
    receiver: Option<Receiver>,
    worker: Worker<T>,
    state: TargetState,
    data_came: u64,
    data_applied: u64,

    to_target: Pipe,
    to_source: Pipe,
    verb: Verb,
    batch_items: usize,
    opened: usize,
    now_ms: u64,
    waited_ms: u64,
    jump: Option<(u64, u64)>,
    busy_ms: u64,
    deaf: bool,
    /// When the listening side, which was asked, is ready.
    ready_ms: Option<u64>,
}

impl<'a, T: Target> Session<'a, T> {
    fn new(
        links: (Link, Link),
        volume: Option<&'a dyn Volume>,
        target: T,
        script: &Script,
    ) -> Self {
        let state = target.state();
        let (Ok(packer), Ok(worker)) = (Packer::new(script.compression), Worker::new(target))
        else {
            panic!("a zstd context needs only memory");
        };
        Self {
            source: End::new(links.0),
            sender: Sender::new(),
            volume,
            packer,
            key: None,
            plan: None,
            work: None,
            compared: VecDeque::new(),
            progress: Arc::default(),
            auditor: None,
            offered: Vec::new(),
            committed: Vec::new(),
            target: End::new(links.1),
            receiver: None,
            worker,
            state,
            data_came: 0,
            data_applied: 0,
            to_target: Pipe::new(script.delivery.clone(), script.to_target.clone()),
            to_source: Pipe::new(script.delivery.clone(), script.to_source.clone()),
            verb: script.verb,
            batch_items: script.batch_items,
            opened: 0,
            now_ms: 0,
            waited_ms: 0,
            jump: script.jump,
            busy_ms: script.busy_ms,
            deaf: script.deaf,
            ready_ms: None,
        }
    }

    const fn is_over(&self) -> bool {
        self.source.is_over() && self.target.is_over()
    }

    fn into_outcome(mut self) -> Outcome<T> {
        // It hears of it once nothing is delivered any more.
        if let (
            Some(Err(TransportError::Session(SessionError::Refused { reason, detail }))),
            Some(auditor),
        ) = (&self.source.result, &mut self.auditor)
            && let Err(failure) = auditor.refused(*reason, detail)
        {
            self.source.result = Some(Err(failure.into()));
        }
        Outcome {
            source: self.source.result.unwrap_or(Ok(())),
            target: self.target.result.unwrap_or(Ok(())),
            replica: self.worker.into_target(),
            offered: self.offered,
            committed: self.committed,
            data_packed: self.progress.snapshot().data,
            data_applied: self.data_applied,
            opened: self.opened,
            to_target: self.to_target.into_sent(),
            to_source: self.to_source.into_sent(),
            elapsed_ms: self.now_ms,
        }
    }

    fn plan<S: Source>(
        &mut self,
        source: &mut S,
        state: &TargetState,
        script: &Script,
    ) -> Result<Offer, Failure> {
        // What was offered last may have arrived without a word.
        let held = script.held.filter(|_| !script.overwrite && self.offered.is_empty());
        let last = held.map_or(LastSeen::Nothing, LastSeen::Held);
        deliver::recognise(state, last)?;
        let record = self.auditor.as_mut().and_then(|auditor| auditor.recall(state));
        source.recall(record.as_deref());
        let mut offer = deliver::plan(source, state, script.overwrite)?;
        if let Some(auditor) = &mut self.auditor {
            deliver::prepare(source, None, state, &mut offer, auditor, &self.progress)?;
        }
        deliver::cover(source, state, &mut offer, false)?;
        Ok(offer)
    }

    fn deliver<S: Source>(
        &mut self,
        source: &mut S,
        volume: Option<&dyn Volume>,
        plan: &Plan,
        begin: Begin,
    ) {
        let Some(key) = self.key.clone() else { return };
        // The session's own progress counts what is packed meanwhile.
        let progress = Arc::new(Progress::default());
        let mut auditor = self.auditor.take();
        let delivery = deliver::Delivery {
            plan,
            begin,
            key: &key,
            outlet: self,
            progress: &progress,
            auditor: auditor.as_deref_mut(),
        };
        let delivered = deliver::deliver(source, volume, delivery);
        self.auditor = auditor;
        match delivered {
            Ok(finish) if !self.source.is_over() => self.sender.handle_end(finish),
            Ok(_) => {}
            Err(failure) => self.fail_source(failure),
        }
    }

    /// Tells the target why, if the session is not over anyway.
    fn fail_source(&mut self, failure: Failure) {
        if !self.source.is_over() {
            self.sender.refuse(failure.reason, failure.detail.clone());
            self.poll_sender();
            self.source.note(Err(failure.into()));
        }
    }

    fn fail_target(&mut self, failure: Failure) {
        if let Some(receiver) = &mut self.receiver {
            receiver.refuse(failure.reason, failure.detail.clone());
        }
        self.poll_receiver();
        self.target.note(Err(failure.into()));
    }

    /// Lets each side do what it can and the next bytes arrive; if there is nothing to do
    /// and nothing on its way, lets a second pass.
    fn step(&mut self) {
        self.jump = match self.jump {
            Some((0, ms)) => {
                self.now_ms += ms;
                None
            }
            jump => jump.map(|(steps, ms)| (steps - 1, ms)),
        };
        self.poll_sender();
        self.poll_receiver();
        let sent = self.transmit();
        let arrived = self.to_target.deliver(&mut self.target.received)
            + self.to_source.deliver(&mut self.source.received);
        self.accept_in_time();
        let is_deaf =
            |session: &Self, listens| session.deaf && session.ready_ms.is_some() && listens;
        while !is_deaf(self, self.verb != Verb::Push)
            && let Some(event) = next_event(&mut self.source, self.now_ms)
        {
            if let Err(error) = self.source_event(event) {
                self.source.note(Err(error));
            }
        }
        while !is_deaf(self, self.verb == Verb::Push)
            && let Some(event) = next_event(&mut self.target, self.now_ms)
        {
            if let Err(error) = self.target_event(event) {
                self.target.note(Err(error));
            }
        }
        if !sent && arrived == 0 && self.work.is_none() {
            self.wait();
        }
    }

    /// Lets the listening side accept what it was asked, once it is ready.
    fn accept_in_time(&mut self) {
        if self.ready_ms.take_if(|ready_ms| *ready_ms <= self.now_ms).is_none() {
            return;
        }
        let end = if self.verb == Verb::Push { &mut self.target } else { &mut self.source };
        if end.is_over() {
            return;
        }
        if let Err(error) = end.link.send(&Message::Accept, self.now_ms) {
            end.note(Err(error.into()));
        } else if self.verb == Verb::Push {
            self.receiver = Some(Receiver::new(self.state.clone()));
        }
    }

    /// Sends what the links have, and closes the direction of an end that is over.
    fn transmit(&mut self) -> bool {
        let mut sent = false;
        for (end, pipe) in
            [(&mut self.source, &mut self.to_target), (&mut self.target, &mut self.to_source)]
        {
            while let Some(frame) = end.link.poll_transmit() {
                pipe.send(frame);
                sent = true;
            }
            if end.is_over() {
                pipe.close();
            }
        }
        sent
    }

    fn wait(&mut self) {
        self.now_ms += 1000;
        self.waited_ms += 1000;
        assert!(self.waited_ms < 600_000 + self.busy_ms, "the session hangs");
        for (end, pipe) in
            [(&mut self.source, &self.to_source), (&mut self.target, &self.to_target)]
        {
            if pipe.is_over() {
                end.note(Err(TransportError::Closed));
            } else if let Err(error) = end.link.handle_timeout(self.now_ms) {
                end.note(Err(error.into()));
            }
        }
    }

    fn source_event(&mut self, event: LinkEvent) -> Result<(), TransportError> {
        let now = self.now_ms;
        match event {
            LinkEvent::Open { .. } => {
                self.opened += 1;
                if self.verb == Verb::Push {
                    let volume = "volume".to_owned();
                    self.source
                        .link
                        .send(&Message::Request { verb: self.verb, volume, like: None }, now)?;
                }
            }
            LinkEvent::Message(Message::Accept) if self.verb == Verb::Push => {}
            LinkEvent::Message(Message::Request { .. }) if self.verb != Verb::Push => {
                self.ready_ms = Some(now + self.busy_ms);
                self.accept_in_time();
            }
            LinkEvent::Message(message) => {
                if let Message::State(state) = &message {
                    self.source.link.bind(&state.replica);
                }
                self.sender.handle_message(message)?;
                self.poll_sender();
            }
            LinkEvent::Data(_) => return Err(SessionError::Violation("a target sent data").into()),
        }
        Ok(())
    }

    fn poll_sender(&mut self) {
        while !self.source.is_over()
            && let Some(output) = self.sender.poll()
        {
            let done = match output {
                SenderOutput::Send(message) => self.source.link.send(&message, self.now_ms),
                SenderOutput::SendData(part) => self.source.link.send_data(part, self.now_ms),
                SenderOutput::Plan(state) => {
                    self.key = Some(ChunkKey::new(&state.chunk_key));
                    self.work = Some(Work::Plan(state));
                    Ok(())
                }
                SenderOutput::Deliver(begin) => {
                    self.work = self.plan.take().map(|plan| Work::Deliver(plan, begin));
                    Ok(())
                }
                SenderOutput::Pack { seq, pieces } => {
                    self.pack(seq, pieces);
                    Ok(())
                }
                SenderOutput::Compared(compared) => {
                    self.compared.push_back(compared);
                    Ok(())
                }
                SenderOutput::Committed(committed) => {
                    if let Some(auditor) = &mut self.auditor {
                        auditor.committed(&committed);
                    }
                    self.committed.push(committed);
                    Ok(())
                }
                SenderOutput::Ended => {
                    self.source.note(Ok(()));
                    Ok(())
                }
            };
            if let Err(error) = done {
                self.source.note(Err(error.into()));
            }
        }
    }

    fn pack(&mut self, seq: u32, pieces: Vec<Piece>) {
        let Some(key) = &self.key else { return };
        match deliver::pack(&mut self.packer, self.volume, key, seq, pieces, &self.progress) {
            Ok(packed) => self.sender.handle_packed(seq, packed),
            Err(failure) => self.fail_source(failure),
        }
    }

    fn target_event(&mut self, event: LinkEvent) -> Result<(), TransportError> {
        let now = self.now_ms;
        match (event, &mut self.receiver) {
            (LinkEvent::Open { .. }, _) => {
                self.opened += 1;
                if self.verb != Verb::Push {
                    let volume = "volume".to_owned();
                    self.target
                        .link
                        .send(&Message::Request { verb: self.verb, volume, like: None }, now)?;
                }
            }
            (LinkEvent::Message(Message::Accept), None) if self.verb != Verb::Push => {
                self.receiver = Some(Receiver::new(self.state.clone()));
            }
            (LinkEvent::Message(Message::Request { .. }), None) if self.verb == Verb::Push => {
                self.ready_ms = Some(now + self.busy_ms);
                self.accept_in_time();
            }
            (LinkEvent::Message(message), Some(receiver)) => receiver.handle_message(message)?,
            (LinkEvent::Data(part), Some(receiver)) => receiver.handle_data(part)?,
            (LinkEvent::Message(_) | LinkEvent::Data(_), None) => {
                return Err(SessionError::Violation("a request was due").into());
            }
        }
        self.poll_receiver();
        Ok(())
    }

    fn poll_receiver(&mut self) {
        while !self.target.is_over()
            && let Some(output) = self.receiver.as_mut().and_then(Receiver::poll)
        {
            let done = match output {
                ReceiverOutput::Send(message) => {
                    if let Err(error) = self.target.link.send(&message, self.now_ms) {
                        self.target.note(Err(error.into()));
                    }
                    if let Message::State(state) = &message {
                        self.target.link.bind(&state.replica);
                    }
                    Ok(())
                }
                ReceiverOutput::Ended => {
                    self.target.note(Ok(()));
                    Ok(())
                }
                other => self.work_on(other),
            };
            if let Err(failure) = done {
                self.fail_target(failure);
            }
        }
    }

    /// Does with the target what the receiver wants done.
    fn work_on(&mut self, output: ReceiverOutput) -> Result<(), Failure> {
        let Some(receiver) = &mut self.receiver else { return Ok(()) };
        match output {
            ReceiverOutput::Answer(ask) => receiver.handle_answered(self.worker.answer(&ask)?),
            ReceiverOutput::Begin(offer) => receiver.handle_begun(self.worker.begin(&offer)?),
            ReceiverOutput::LookUp(batch) => {
                receiver.handle_looked_up(batch.seq, self.worker.look_up(&batch.items)?);
            }
            ReceiverOutput::Apply(arrived) => {
                let seq = arrived.batch.seq;
                let lens = arrived.parts.iter().map(|part| u64::from(part.raw_len));
                let came: u64 = lens.sum();
                let misfits = self.worker.apply(arrived)?;
                // What came of a batch counts once all of it is applied.
                self.data_came += came;
                match misfits.is_empty() {
                    true => {
                        self.data_applied += std::mem::take(&mut self.data_came);
                        receiver.handle_applied(seq);
                    }
                    false => receiver.handle_misfits(seq, misfits),
                }
            }
            ReceiverOutput::Commit(finish) => {
                receiver.handle_committed(self.worker.commit(&finish)?);
            }
            ReceiverOutput::Send(_) | ReceiverOutput::Ended => {}
        }
        Ok(())
    }
}

/// The next event of an end that is not over; notes if its link fails.
fn next_event(end: &mut End, now_ms: u64) -> Option<LinkEvent> {
    if end.is_over() {
        return None;
    }
    match end.link.handle(&mut end.received, now_ms) {
        Ok(event) => event,
        Err(error) => {
            end.note(Err(error.into()));
            None
        }
    }
}

impl<T: Target> Outlet for Session<'_, T> {
    fn batch(&mut self, items: Vec<Announced>) -> bool {
        let mut rest = items.into_iter().peekable();
        while rest.peek().is_some() {
            while !self.sender.wants_batch() {
                if self.source.is_over() {
                    return false;
                }
                self.step();
            }
            let batch = rest.by_ref().take(self.batch_items).collect();
            self.sender.handle_batch(batch);
            // One batch after the other on its way, as if the source were slow.
            self.step();
        }
        !self.source.is_over()
    }

    fn compared(&mut self) -> Option<Vec<Compared>> {
        while self.compared.is_empty() && !self.source.is_over() {
            self.step();
        }
        self.compared.pop_front()
    }
}
