//! The target side of a session: the receiver and its worker.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        mpsc::{Receiver as Commands, Sender as CommandSender, channel},
    },
};

use driftline_extent::{Ask, Begin, Committed, Finish, Missing, Offer, Plan, Target, TargetState};
use driftline_wire::{Arrived, Batch, DataPart, Message, Receiver, ReceiverOutput};
use tokio::{sync::mpsc, task};

use crate::{
    Failure, Progress, Summary, TransportError,
    budget::{self, Permit, Share},
    pump::{Outgoing, Side, Turn},
    receive::Worker,
};

enum TargetCommand {
    Answer(Ask),
    Begin(Box<Offer>),
    LookUp(Batch),
    Apply(Box<Arrived>),
    Commit(Finish),
}

pub(crate) enum TargetEvent {
    Answered(Box<TargetState>),
    Begun(Begin),
    /// What is lacking of a batch, and how many bytes of it have an old version that is kept.
    LookedUp(u32, Vec<Missing>, u64),
    Applied(u32),
    Misfits(u32, Vec<u16>),
    Committed(Committed),
    Failed(Failure),
    /// There is memory for the next batch.
    Room,
}

pub(crate) struct TargetSide {
    receiver: Receiver,
    commands: CommandSender<TargetCommand>,
    events: mpsc::UnboundedReceiver<TargetEvent>,
    /// What the worker was asked for and has not done.
    asked: usize,
    /// Batches that wait for memory before they are looked up.
    waiting: VecDeque<Batch>,
    /// The memory of those that were, in order.
    looked_up: VecDeque<(u32, Permit)>,
    share: Arc<Share>,
    plan: Option<Plan>,
    progress: Arc<Progress>,
    summary: Summary,
    failure: Option<Failure>,
    ended: bool,
}

impl TargetSide {
    pub(crate) fn start<T>(
        target: T,
        progress: Arc<Progress>,
    ) -> Result<(Self, task::JoinHandle<T>), Failure>
    where
        T: Target + Send + 'static,
    {
        let state = target.state();
        let worker = Worker::new(target)?;
        let (commands, worker_commands) = channel();
        let (events, side_events) = mpsc::unbounded_channel();
        let worker = task::spawn_blocking(move || run_target(worker, &worker_commands, &events));
        let side = Self {
            receiver: Receiver::new(state.clone()),
            commands,
            events: side_events,
            asked: 0,
            waiting: VecDeque::new(),
            looked_up: VecDeque::new(),
            share: budget::ALL.share(),
            plan: None,
            progress,
            summary: Summary { before: Some(Box::new(state)), ..Summary::default() },
            failure: None,
            ended: false,
        };
        Ok((side, worker))
    }

    /// Lets the worker go, and says what was done.
    pub(crate) fn into_summary(self) -> Summary {
        self.summary
    }

    fn command(&mut self, command: TargetCommand) {
        self.asked += 1;
        // A worker that is gone has said why, or its events end: that is the next to be heard.
        let _ = self.commands.send(command);
    }

    /// Has batches looked up as far as there is memory for them: the source sends what they lack.
    fn look_up(&mut self) {
        while let Some(batch) = self.waiting.front()
            && let Some(permit) = self.share.try_take(room_for(batch))
            && let Some(batch) = self.waiting.pop_front()
        {
            self.looked_up.push_back((batch.seq, permit));
            self.command(TargetCommand::LookUp(batch));
        }
    }
}

/// The memory that a batch may take: for its data, and for old versions of that.
fn room_for(batch: &Batch) -> u64 {
    2 * batch.data_len()
}

/// Works until nobody can ask for more, or the target has failed.
fn run_target<T: Target>(
    mut worker: Worker<T>,
    commands: &Commands<TargetCommand>,
    events: &mpsc::UnboundedSender<TargetEvent>,
) -> T {
    while let Ok(command) = commands.recv() {
        let done = match command {
            TargetCommand::Answer(ask) => {
                worker.answer(&ask).map(|state| TargetEvent::Answered(Box::new(state)))
            }
            TargetCommand::Begin(offer) => worker.begin(&offer).map(TargetEvent::Begun),
            TargetCommand::LookUp(batch) => worker.look_up(&batch.items).map(|missing| {
                let kept = batch.items.iter().zip(&missing);
                let kept = kept.filter(|(_, lack)| matches!(lack, Missing::Unlike(_)));
                let kept = kept.map(|(item, _)| item.data_len()).sum();
                TargetEvent::LookedUp(batch.seq, missing, kept)
            }),
            TargetCommand::Apply(arrived) => {
                let seq = arrived.batch.seq;
                worker.apply(*arrived).map(|misfits| match misfits.is_empty() {
                    true => TargetEvent::Applied(seq),
                    false => TargetEvent::Misfits(seq, misfits),
                })
            }
            TargetCommand::Commit(finish) => worker.commit(&finish).map(TargetEvent::Committed),
        };
        let failed = done.is_err();
        // Nobody listens any more if the session ended first.
        let _ = events.send(done.unwrap_or_else(TargetEvent::Failed));
        if failed {
            break;
        }
    }
    worker.into_target()
}

impl Side for TargetSide {
    type Event = TargetEvent;

    async fn next_event(&mut self) -> TargetEvent {
        loop {
            let mut freed = pin!(self.share.freed());
            freed.as_mut().enable();
            if self.waiting.front().is_some_and(|batch| self.share.may_take(room_for(batch))) {
                return TargetEvent::Room;
            }
            tokio::select! {
                event = self.events.recv() => {
                    return event.unwrap_or_else(|| TargetEvent::Failed(Failure::worker_gone()));
                }
                () = freed, if !self.waiting.is_empty() => {}
            }
        }
    }

    fn turn(&self) -> Turn {
        if self.asked > 0 { Turn::Target } else { Turn::Peer }
    }

    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.receiver.refuse(failure.reason, failure.detail.clone());
            self.failure = Some(failure);
        }
    }

    fn handle_event(&mut self, event: TargetEvent) {
        if !matches!(event, TargetEvent::Room) {
            self.asked = self.asked.saturating_sub(1);
        }
        match event {
            TargetEvent::Room => self.look_up(),
            TargetEvent::Answered(state) => self.receiver.handle_answered(*state),
            TargetEvent::Begun(begin) => self.receiver.handle_begun(begin),
            TargetEvent::LookedUp(seq, missing, kept) => {
                let of_it = self.looked_up.iter_mut().find(|(other, _)| *other == seq);
                of_it.into_iter().for_each(|(_, permit)| permit.keep(permit.len() / 2 + kept));
                self.receiver.handle_looked_up(seq, missing);
            }
            TargetEvent::Applied(seq) => {
                self.looked_up.pop_front();
                self.receiver.handle_applied(seq);
            }
            TargetEvent::Misfits(seq, misfits) => self.receiver.handle_misfits(seq, misfits),
            TargetEvent::Committed(committed) => {
                self.summary.increments.extend(self.plan.take().map(|plan| (plan, committed)));
                self.receiver.handle_committed(committed);
            }
            TargetEvent::Failed(failure) => self.fail(failure),
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), TransportError> {
        Ok(self.receiver.handle_message(message)?)
    }

    fn handle_data(&mut self, part: DataPart) -> Result<(), TransportError> {
        Ok(self.receiver.handle_data(part)?)
    }

    fn poll(&mut self) -> Option<Outgoing> {
        while let Some(output) = self.receiver.poll() {
            match output {
                ReceiverOutput::Send(message) => return Some(Outgoing::Message(message)),
                ReceiverOutput::Answer(ask) => self.command(TargetCommand::Answer(ask)),
                ReceiverOutput::Begin(offer) => {
                    self.progress.set_expected(offer.plan.bytes_expected);
                    self.plan = Some(offer.plan.clone());
                    self.command(TargetCommand::Begin(Box::new(offer)));
                }
                ReceiverOutput::LookUp(batch) => {
                    self.progress.add_announced(batch.data_len());
                    self.waiting.push_back(batch);
                    self.look_up();
                }
                ReceiverOutput::Apply(arrived) => {
                    let data = arrived.parts.iter().map(|part| u64::from(part.raw_len)).sum();
                    self.progress.add_data(data);
                    self.command(TargetCommand::Apply(Box::new(arrived)));
                }
                ReceiverOutput::Commit(finish) => self.command(TargetCommand::Commit(finish)),
                ReceiverOutput::Ended => self.ended = true,
            }
        }
        (self.ended || self.failure.is_some()).then_some(Outgoing::Ended)
    }

    fn failure(&self) -> Option<Failure> {
        self.failure.clone()
    }
}

#[cfg(test)]
mod tests {
    use driftline_extent::{Generation, GrainMask, Item, PlanKind, Standing, TargetState};

    use super::*;
    use crate::error::No;

    /// A target that refuses everything.
    struct Unwilling;

    impl Target for Unwilling {
        type Error = No;

        fn state(&self) -> TargetState {
            TargetState::nothing()
        }

        fn begin(&mut self, _: &Offer) -> Result<Begin, No> {
            Err(No)
        }

        fn missing(&mut self, _: &[Item]) -> Result<Vec<Missing>, No> {
            Err(No)
        }

        fn apply(&mut self, _: &Item, _: Option<&[u8]>) -> Result<(), No> {
            Err(No)
        }

        fn patch(&mut self, _: &Item, _: GrainMask, _: &[u8]) -> Result<bool, No> {
            Err(No)
        }

        fn mark(&mut self, _: u64) -> Result<(), No> {
            Err(No)
        }

        fn commit(&mut self, _: &Finish) -> Result<Committed, No> {
            Err(No)
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_as_it_was_whatever_is_asked_for_after_it() {
        let (mut side, worker) = TargetSide::start(Unwilling, Arc::default()).unwrap();
        let plan = Plan {
            kind: PlanKind::Full,
            volume: None,
            base: None,
            tip: None,
            size: None,
            standing: Standing::Proven,
            bytes_expected: 0,
        };
        side.command(TargetCommand::Begin(Box::new(Offer { plan, overwrite: false })));
        worker.await.unwrap();
        // The next command was on its way when the worker failed.
        side.command(TargetCommand::Commit(Finish {
            tip: Generation::zfs(1),
            size: None,
            root: None,
        }));
        let event = side.next_event().await;
        side.handle_event(event);
        assert_eq!(side.failure(), Some(Failure::from_error(&No)));
    }
}
