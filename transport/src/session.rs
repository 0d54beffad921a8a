//! The two sides of a session: a protocol machine each, with its workers.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver as Commands, Sender as CommandSender, channel},
    },
    thread,
};

use driftline_extent::{
    Begin, Committed, Finish, Item, Offer, Plan, Reason, Source, Target, TargetState, Volume,
};
use driftline_manifest::ChunkKey;
use driftline_wire::{
    Announced, Arrived, Batch, DataPart, Message, Packer, Piece, Receiver, ReceiverOutput, Sender,
    SenderOutput,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task,
};

use crate::{
    Connection, Failure, Progress, TransportError,
    deliver::{self, Outlet},
    pump::{self, Outgoing, Side},
    receive::Worker,
};

/// Batches that wait for the window, besides the one the source is filling.
const BATCHES_WAITING: usize = 2;

/// What a session did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Each increment that was committed: how it was planned, and what it led to.
    pub increments: Vec<(Plan, Committed)>,
    /// What the target held when the session began.
    pub before: Option<Box<TargetState>>,
}

/// The source side's part of a session.
pub struct SourceJob<S> {
    /// Where increments come from.
    pub source: S,
    /// The same volume for reading at random, if that is possible.
    pub volume: Option<Arc<dyn Volume + Send + Sync>>,
    /// Whether the user has agreed to a full copy over whatever the target holds.
    pub overwrite: bool,
    /// The zstd level for data on the way; `None` sends it as it is.
    pub compression: Option<i32>,
}

impl<S> std::fmt::Debug for SourceJob<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceJob").field("overwrite", &self.overwrite).finish_non_exhaustive()
    }
}

/// Runs the source side of an accepted session to its end.
pub async fn serve_source<C, S>(
    connection: Connection<C>,
    job: SourceJob<S>,
) -> Result<Summary, TransportError>
where
    C: AsyncRead + AsyncWrite,
    S: Source + Send + 'static,
{
    let mut side = SourceSide::start(job, connection.progress())?;
    pump::run(connection, &mut side).await?;
    Ok(side.summary)
}

/// Runs the target side of an accepted session to its end, and gives the target back.
pub async fn serve_target<C, T>(
    connection: Connection<C>,
    target: T,
) -> (Result<Summary, TransportError>, Option<T>)
where
    C: AsyncRead + AsyncWrite,
    T: Target + Send + 'static,
{
    let (mut side, worker) = match TargetSide::start(target, connection.progress()) {
        Ok(started) => started,
        Err(failure) => return (Err(failure.into()), None),
    };
    let result = pump::run(connection, &mut side).await;
    let TargetSide { summary, commands, .. } = side;
    // The worker ends when nobody can ask it for more. Waiting for it means that the
    // replica's lock is free when we say that we are done.
    drop(commands);
    let target = worker.await.ok();
    (result.map(|()| summary), target)
}

// ---- The source side ----

enum SourceCommand {
    Plan(Box<TargetState>),
    Deliver(Box<Plan>, ChunkKey, Begin),
    Compared(Item, bool),
}

enum Delivered {
    Batch(Vec<Announced>),
    End(Finish),
}

enum SourceEvent {
    Planned(Offer),
    Delivered(Delivered),
    Packed(u32, Vec<DataPart>),
    Failed(Failure),
}

struct SourceSide {
    sender: Sender,
    commands: CommandSender<SourceCommand>,
    packs: CommandSender<(ChunkKey, u32, Vec<Piece>)>,
    delivered: mpsc::Receiver<Delivered>,
    events: mpsc::UnboundedReceiver<SourceEvent>,
    plan: Option<Plan>,
    key: Option<ChunkKey>,
    summary: Summary,
    failure: Option<Failure>,
}

impl SourceSide {
    fn start<S>(job: SourceJob<S>, progress: Arc<Progress>) -> Result<Self, Failure>
    where
        S: Source + Send + 'static,
    {
        let (commands, worker_commands) = channel();
        let (packs, packer_commands) = channel();
        let (batches, delivered) = mpsc::channel(BATCHES_WAITING);
        let (events, side_events) = mpsc::unbounded_channel();
        let SourceJob { source, volume, overwrite, compression } = job;
        let packer = Packer::new(compression)?;
        let worker = SourceWorker {
            source,
            volume: volume.clone(),
            overwrite,
            commands: worker_commands,
            batches,
            events: events.clone(),
            progress: progress.clone(),
        };
        // Detached: a source may be stuck in a read that nothing can interrupt.
        thread::Builder::new().name("source".into()).spawn(move || worker.run())?;
        thread::Builder::new()
            .name("packer".into())
            .spawn(move || run_packer(packer, volume, &packer_commands, &events, &progress))?;
        Ok(Self {
            sender: Sender::new(),
            commands,
            packs,
            delivered,
            events: side_events,
            plan: None,
            key: None,
            summary: Summary::default(),
            failure: None,
        })
    }

    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.sender.refuse(failure.reason, failure.detail.clone());
            self.failure = Some(failure);
        }
    }

    /// A worker that is gone has panicked; its message is on standard error.
    fn command(&mut self, command: SourceCommand) {
        if self.commands.send(command).is_err() {
            self.fail(worker_gone());
        }
    }
}

fn worker_gone() -> Failure {
    Failure::new(Reason::Failed, "a worker thread has died; this is a defect in Driftline")
}

impl Side for SourceSide {
    type Event = SourceEvent;

    async fn next_event(&mut self) -> SourceEvent {
        tokio::select! {
            Some(event) = self.events.recv() => event,
            Some(delivered) = self.delivered.recv(), if self.sender.wants_batch() => {
                SourceEvent::Delivered(delivered)
            }
            else => SourceEvent::Failed(worker_gone()),
        }
    }

    fn handle_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Planned(offer) => {
                self.plan = Some(offer.plan.clone());
                self.sender.handle_plan(offer);
            }
            SourceEvent::Delivered(Delivered::Batch(items)) => self.sender.handle_batch(items),
            SourceEvent::Delivered(Delivered::End(finish)) => self.sender.handle_end(finish),
            SourceEvent::Packed(seq, parts) => self.sender.handle_packed(seq, parts),
            SourceEvent::Failed(failure) => self.fail(failure),
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), TransportError> {
        Ok(self.sender.handle_message(message)?)
    }

    fn handle_data(&mut self, _: DataPart) -> Result<(), TransportError> {
        Err(driftline_wire::SessionError::Violation("a target sent data").into())
    }

    fn poll(&mut self) -> Option<Outgoing> {
        while let Some(output) = self.sender.poll() {
            match output {
                SenderOutput::Send(message) => return Some(Outgoing::Message(message)),
                SenderOutput::SendData(part) => return Some(Outgoing::Data(part)),
                SenderOutput::Plan(state) => {
                    self.key = Some(ChunkKey::new(&state.chunk_key));
                    self.summary.before.get_or_insert_with(|| state.clone());
                    self.command(SourceCommand::Plan(state));
                }
                SenderOutput::Deliver(begin) => {
                    if let (Some(plan), Some(key)) = (self.plan.clone(), self.key.clone()) {
                        self.command(SourceCommand::Deliver(Box::new(plan), key, begin));
                    }
                }
                SenderOutput::Pack { seq, pieces } => {
                    let key = self.key.clone();
                    if key.is_none_or(|key| self.packs.send((key, seq, pieces)).is_err()) {
                        self.fail(worker_gone());
                    }
                }
                SenderOutput::Compared { span, differs } => {
                    self.command(SourceCommand::Compared(span, differs));
                }
                SenderOutput::Committed(committed) => {
                    self.summary.increments.extend(self.plan.take().map(|plan| (plan, committed)));
                }
                SenderOutput::Ended => return Some(Outgoing::Ended),
            }
        }
        self.failure.is_some().then_some(Outgoing::Ended)
    }

    fn failure(&self) -> Option<Failure> {
        self.failure.clone()
    }
}

struct SourceWorker<S> {
    source: S,
    volume: Option<Arc<dyn Volume + Send + Sync>>,
    overwrite: bool,
    commands: Commands<SourceCommand>,
    batches: mpsc::Sender<Delivered>,
    events: mpsc::UnboundedSender<SourceEvent>,
    progress: Arc<Progress>,
}

impl<S: Source> SourceWorker<S> {
    /// Works until the session is over or has failed.
    fn run(mut self) {
        while let Ok(command) = self.commands.recv() {
            let done = match command {
                SourceCommand::Plan(state) => self.plan(&state),
                SourceCommand::Deliver(plan, key, begin) => self.deliver(&plan, &key, begin),
                // An answer that came after its delivery had failed.
                SourceCommand::Compared(..) => Ok(()),
            };
            if let Err(failure) = done {
                // Nobody listens any more if the session ended first.
                let _ = self.events.send(SourceEvent::Failed(failure));
                return;
            }
        }
    }

    fn plan(&mut self, state: &TargetState) -> Result<(), Failure> {
        let offer = deliver::plan(&mut self.source, state, self.overwrite)?;
        let _ = self.events.send(SourceEvent::Planned(offer));
        Ok(())
    }

    fn deliver(&mut self, plan: &Plan, key: &ChunkKey, begin: Begin) -> Result<(), Failure> {
        let mut outlet = ChannelOutlet { batches: &self.batches, commands: &self.commands };
        let volume = self.volume.as_deref().map(|volume| volume as &dyn Volume);
        let progress = &self.progress;
        let finish =
            deliver::deliver(&mut self.source, volume, plan, key, begin, &mut outlet, progress)?;
        let _ = self.batches.blocking_send(Delivered::End(finish));
        Ok(())
    }
}

struct ChannelOutlet<'a> {
    batches: &'a mpsc::Sender<Delivered>,
    commands: &'a Commands<SourceCommand>,
}

impl Outlet for ChannelOutlet<'_> {
    fn batch(&mut self, items: Vec<Announced>) -> bool {
        self.batches.blocking_send(Delivered::Batch(items)).is_ok()
    }

    fn compared(&mut self) -> Option<(Item, bool)> {
        match self.commands.recv() {
            Ok(SourceCommand::Compared(span, differs)) => Some((span, differs)),
            _ => None,
        }
    }
}

fn run_packer(
    mut packer: Packer,
    volume: Option<Arc<dyn Volume + Send + Sync>>,
    commands: &Commands<(ChunkKey, u32, Vec<Piece>)>,
    events: &mpsc::UnboundedSender<SourceEvent>,
    progress: &Progress,
) {
    let volume = volume.as_deref().map(|volume| volume as &dyn Volume);
    while let Ok((key, seq, pieces)) = commands.recv() {
        let event = match deliver::pack(&mut packer, volume, &key, seq, pieces, progress) {
            Ok(parts) => SourceEvent::Packed(seq, parts),
            Err(failure) => SourceEvent::Failed(failure),
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

// ---- The target side ----

enum TargetCommand {
    Begin(Box<Offer>),
    LookUp(Batch),
    Apply(Box<Arrived>),
    Commit(Finish),
}

enum TargetEvent {
    Begun(Begin),
    LookedUp(u32, Vec<bool>),
    Applied(u32),
    Committed(Committed),
    Failed(Failure),
}

struct TargetSide {
    receiver: Receiver,
    commands: CommandSender<TargetCommand>,
    events: mpsc::UnboundedReceiver<TargetEvent>,
    plan: Option<Plan>,
    progress: Arc<Progress>,
    summary: Summary,
    failure: Option<Failure>,
    ended: bool,
}

impl TargetSide {
    fn start<T>(target: T, progress: Arc<Progress>) -> Result<(Self, task::JoinHandle<T>), Failure>
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
            plan: None,
            progress,
            summary: Summary { increments: Vec::new(), before: Some(Box::new(state)) },
            failure: None,
            ended: false,
        };
        Ok((side, worker))
    }

    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.receiver.refuse(failure.reason, failure.detail.clone());
            self.failure = Some(failure);
        }
    }

    fn command(&mut self, command: TargetCommand) {
        if self.commands.send(command).is_err() {
            self.fail(worker_gone());
        }
    }
}

/// Works until nobody can ask for more, or the target has failed.
fn run_target<T: Target>(
    mut worker: Worker<T>,
    commands: &Commands<TargetCommand>,
    events: &mpsc::UnboundedSender<TargetEvent>,
) -> T {
    while let Ok(command) = commands.recv() {
        let done = match command {
            TargetCommand::Begin(offer) => worker.begin(&offer).map(TargetEvent::Begun),
            TargetCommand::LookUp(batch) => {
                worker.look_up(&batch.items).map(|wants| TargetEvent::LookedUp(batch.seq, wants))
            }
            TargetCommand::Apply(arrived) => {
                worker.apply(&arrived).map(|()| TargetEvent::Applied(arrived.batch.seq))
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
        self.events.recv().await.unwrap_or_else(|| TargetEvent::Failed(worker_gone()))
    }

    fn handle_event(&mut self, event: TargetEvent) {
        match event {
            TargetEvent::Begun(begin) => self.receiver.handle_begun(begin),
            TargetEvent::LookedUp(seq, wants) => self.receiver.handle_looked_up(seq, wants),
            TargetEvent::Applied(seq) => self.receiver.handle_applied(seq),
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
                ReceiverOutput::Begin(offer) => {
                    self.progress.set_expected(offer.plan.bytes_expected);
                    self.plan = Some(offer.plan.clone());
                    self.command(TargetCommand::Begin(Box::new(offer)));
                }
                ReceiverOutput::LookUp(batch) => {
                    self.progress.add_announced(batch.data_len());
                    self.command(TargetCommand::LookUp(batch));
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
