//! The source side of a session: the sender, its worker and its packer.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver as Commands, Sender as CommandSender, channel},
    },
    thread,
    time::Duration,
};

use driftline_chunking::ChunkKey;
use driftline_extent::{
    Ask, Begin, Committed, Finish, Offer, Plan, Reason, Source, TargetState, Volume,
};
use driftline_wire::{
    Announced, Compared, DataPart, Message, Packed, Packer, Piece, Sender, SenderOutput,
    SessionError,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    Failure, Progress, Summary, TransportError,
    auditor::{AuditReport, Auditor},
    budget::{self, Permit, Share},
    deliver::{self, Delivery, LastSeen, Outlet},
    pump::{Outgoing, Side, Turn},
    watched::Watched,
};

/// Batches that wait for the window, besides the one the source is filling.
const BATCHES_WAITING: usize = 2;

/// How long a source may yield nothing before its session fails, if nothing else is said.
pub const SOURCE_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The source side's part of a session.
pub struct SourceJob<S> {
    /// Where increments come from.
    pub source: S,
    /// The same volume for reading at random, if that is possible.
    pub volume: Option<Arc<dyn Volume + Send + Sync>>,
    /// Whether the user has agreed to a full copy over whatever the target holds.
    pub overwrite: bool,
    /// Whether the user wants all compared, whatever a map says.
    pub compare: bool,
    /// What the target held when it was last seen. If it holds nothing now, it is gone.
    pub arrived: LastSeen,
    /// The zstd level for data on the way; `None` sends it as it is.
    pub compression: Option<i32>,
    /// What keeps the source's own manifest, if anything does.
    pub auditor: Option<Auditor>,
    /// How long the source may yield nothing before the session fails.
    pub patience: Duration,
    /// Dropped once the source was.
    pub held: Option<TaskTrackerToken>,
}

impl<S> std::fmt::Debug for SourceJob<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceJob").field("overwrite", &self.overwrite).finish_non_exhaustive()
    }
}

enum SourceCommand {
    Plan(Box<TargetState>),
    Deliver(Box<Plan>, ChunkKey, Begin),
    Compared(Vec<Compared>),
    Committed(Committed),
    Refused(Reason, String),
}

pub(crate) enum Delivered {
    /// With the memory that its data may take.
    Batch(Vec<Announced>, Permit),
    End(Finish),
}

pub(crate) enum SourceEvent {
    Asked(Ask),
    Planned(Offer),
    Delivered(Delivered),
    Packed(u32, Packed),
    Failed(Failure),
}

pub(crate) struct SourceSide {
    sender: Sender,
    commands: CommandSender<SourceCommand>,
    packs: CommandSender<(ChunkKey, u32, Vec<Piece>)>,
    delivered: mpsc::Receiver<Delivered>,
    /// The memory of what was announced and is not applied.
    window: Permit,
    events: mpsc::UnboundedReceiver<SourceEvent>,
    plan: Option<Plan>,
    key: Option<ChunkKey>,
    summary: Summary,
    audit_report: Option<Arc<Mutex<AuditReport>>>,
    patience: Duration,
    /// What the worker was asked for and has not done: a plan, or a delivery.
    working: bool,
    /// Whether the worker waits for the target: for an answer, or for memory.
    asking: Arc<AtomicBool>,
    /// Batches that the packer was asked for and has not packed.
    packing: usize,
    failure: Option<Failure>,
}

impl SourceSide {
    /// The side, and what fails once its source was dropped.
    pub(crate) fn start<S>(
        job: SourceJob<S>,
        progress: Arc<Progress>,
    ) -> Result<(Self, oneshot::Receiver<()>), Failure>
    where
        S: Source + Send + 'static,
    {
        let (commands, worker_commands) = channel();
        let (packs, packer_commands) = channel();
        let (batches, delivered) = mpsc::channel(BATCHES_WAITING);
        let (events, side_events) = mpsc::unbounded_channel();
        let SourceJob {
            source,
            volume,
            overwrite,
            compare,
            arrived,
            compression,
            auditor,
            patience,
            held,
        } = job;
        let audit_report = auditor.as_ref().map(Auditor::audit_report);
        let watch = |volume| Arc::new(Watched::new(volume, progress.clone())) as Arc<_>;
        let volume: Option<Arc<dyn Volume + Send + Sync>> = volume.map(watch);
        let packer = Packer::new(compression)?;
        let asking = Arc::new(AtomicBool::new(false));
        let share = budget::ALL.share();
        let window = share.none();
        let worker = SourceWorker {
            asking: asking.clone(),
            source,
            volume: volume.clone(),
            overwrite,
            compare,
            arrived: if overwrite { LastSeen::Nothing } else { arrived },
            auditor,
            commands: worker_commands,
            batches,
            share,
            events: events.clone(),
            progress: progress.clone(),
        };
        let (ending, ended) = oneshot::channel();
        let last = Last(events.clone());
        // Detached: a source may be stuck in a read that nothing can interrupt.
        thread::Builder::new().name("source".into()).spawn(move || {
            let _ending: oneshot::Sender<()> = ending;
            let _held = held;
            let _last = last;
            worker.run();
        })?;
        let last = Last(events.clone());
        thread::Builder::new().name("packer".into()).spawn(move || {
            let _last = last;
            run_packer(packer, volume, &packer_commands, &events, &progress);
        })?;
        let side = Self {
            sender: Sender::new(),
            commands,
            packs,
            delivered,
            window,
            events: side_events,
            plan: None,
            key: None,
            summary: Summary::default(),
            audit_report,
            patience,
            working: false,
            asking,
            packing: 0,
            failure: None,
        };
        Ok((side, ended))
    }

    /// Lets the worker go, and says what was done.
    pub(crate) fn into_summary(mut self) -> Summary {
        let said = self.audit_report.take();
        let said = said.map(|said| said.lock().unwrap_or_else(PoisonError::into_inner).clone());
        self.summary.audit_report = said;
        self.summary
    }

    fn command(&mut self, command: SourceCommand) {
        self.working |= matches!(command, SourceCommand::Plan(_) | SourceCommand::Deliver(..));
        // A worker that is gone has said why: that is the next to be heard.
        let _ = self.commands.send(command);
    }
}

impl Side for SourceSide {
    type Event = SourceEvent;

    async fn next_event(&mut self) -> SourceEvent {
        tokio::select! {
            Some(event) = self.events.recv() => event,
            Some(delivered) = self.delivered.recv(), if self.sender.wants_batch() => {
                SourceEvent::Delivered(delivered)
            }
            else => SourceEvent::Failed(Failure::worker_gone()),
        }
    }

    fn turn(&self) -> Turn {
        let reads = self.working && !self.asking.load(Relaxed);
        // While the window is full, the source waits for the target.
        let is_waited_for = reads && (self.plan.is_none() || self.sender.wants_batch());
        match is_waited_for || self.packing > 0 {
            true => Turn::Source(self.patience),
            false => Turn::Peer,
        }
    }

    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.sender.refuse(failure.reason, failure.detail.clone());
            self.failure = Some(failure);
        }
    }

    fn handle_event(&mut self, event: SourceEvent) {
        match &event {
            SourceEvent::Planned(_)
            | SourceEvent::Asked(_)
            | SourceEvent::Delivered(Delivered::End(_)) => {
                self.working = false;
            }
            SourceEvent::Packed(..) => self.packing = self.packing.saturating_sub(1),
            SourceEvent::Delivered(Delivered::Batch(..)) | SourceEvent::Failed(_) => {}
        }
        match event {
            SourceEvent::Asked(ask) => self.sender.handle_ask(ask),
            SourceEvent::Planned(offer) => {
                self.plan = Some(offer.plan.clone());
                self.sender.handle_plan(offer);
            }
            SourceEvent::Delivered(Delivered::Batch(items, permit)) => {
                self.window.join(permit);
                self.sender.handle_batch(items);
            }
            SourceEvent::Delivered(Delivered::End(finish)) => self.sender.handle_end(finish),
            SourceEvent::Packed(seq, packed) => self.sender.handle_packed(seq, packed),
            SourceEvent::Failed(failure) => self.fail(failure),
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), TransportError> {
        let used = self.sender.window_used();
        let handled = self.sender.handle_message(message);
        self.window.give(used - self.sender.window_used());
        if let Err(SessionError::Refused { reason, detail }) = &handled {
            let _ = self.commands.send(SourceCommand::Refused(*reason, detail.clone()));
        }
        Ok(handled?)
    }

    fn handle_data(&mut self, _: DataPart) -> Result<(), TransportError> {
        Err(SessionError::Violation("a target sent data").into())
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
                    if let Some(key) = self.key.clone() {
                        self.packing += 1;
                        let _ = self.packs.send((key, seq, pieces));
                    }
                }
                SenderOutput::Compared(compared) => {
                    self.command(SourceCommand::Compared(compared));
                }
                SenderOutput::Committed(committed) => {
                    self.command(SourceCommand::Committed(committed));
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

/// Says of a worker that it has panicked, if it has: the other one goes on to wait.
struct Last(mpsc::UnboundedSender<SourceEvent>);

impl Drop for Last {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(SourceEvent::Failed(Failure::worker_gone()));
        }
    }
}

struct SourceWorker<S> {
    /// Before the source: a snapshot that is open cannot be destroyed.
    auditor: Option<Auditor>,
    source: S,
    volume: Option<Arc<dyn Volume + Send + Sync>>,
    overwrite: bool,
    /// Until it is planned.
    compare: bool,
    /// As in [`SourceJob`], until it is planned, and unless the user has agreed to a copy anew.
    arrived: LastSeen,
    commands: Commands<SourceCommand>,
    batches: mpsc::Sender<Delivered>,
    share: Arc<Share>,
    events: mpsc::UnboundedSender<SourceEvent>,
    asking: Arc<AtomicBool>,
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
                SourceCommand::Committed(committed) => {
                    if let Some(auditor) = &mut self.auditor {
                        auditor.committed(&committed);
                    }
                    Ok(())
                }
                SourceCommand::Refused(reason, detail) => {
                    let auditor = self.auditor.as_mut();
                    let noted = auditor.map_or(Ok(()), |w| w.refused(reason, &detail));
                    // The session is over: nobody else hears of it.
                    if let Err(failure) = noted {
                        tracing::error!(%failure, "cannot keep the incident");
                    }
                    return;
                }
            };
            if let Err(failure) = done {
                // Nobody listens any more if the session ended first.
                let _ = self.events.send(SourceEvent::Failed(failure));
                return;
            }
        }
    }

    fn plan(&mut self, state: &TargetState) -> Result<(), Failure> {
        deliver::recognise(state, mem::take(&mut self.arrived))?;
        if let Some(ask) = deliver::ask(&mut self.source, state)? {
            let _ = self.events.send(SourceEvent::Asked(ask));
            return Ok(());
        }
        let record = self.auditor.as_mut().and_then(|auditor| auditor.recall(state));
        self.source.recall(record.as_deref());
        let mut offer = deliver::plan(&mut self.source, state, self.overwrite)?;
        if let Some(auditor) = &mut self.auditor {
            let (source, volume) = (&mut self.source, self.volume.as_ref());
            deliver::prepare(source, volume, state, &mut offer, auditor, &self.progress)?;
        }
        let compare = mem::take(&mut self.compare);
        deliver::cover(&mut self.source, state, &mut offer, compare)?;
        let _ = self.events.send(SourceEvent::Planned(offer));
        Ok(())
    }

    fn deliver(&mut self, plan: &Plan, key: &ChunkKey, begin: Begin) -> Result<(), Failure> {
        let mut outlet = ChannelOutlet {
            batches: &self.batches,
            share: &self.share,
            commands: &self.commands,
            asking: &self.asking,
        };
        let volume = self.volume.as_deref().map(|volume| volume as &dyn Volume);
        let progress = &self.progress;
        let auditor = self.auditor.as_mut();
        let delivery = Delivery { plan, begin, key, outlet: &mut outlet, progress, auditor };
        let finish = deliver::deliver(&mut self.source, volume, delivery)?;
        let _ = self.batches.blocking_send(Delivered::End(finish));
        Ok(())
    }
}

struct ChannelOutlet<'a> {
    batches: &'a mpsc::Sender<Delivered>,
    share: &'a Arc<Share>,
    commands: &'a Commands<SourceCommand>,
    asking: &'a AtomicBool,
}

impl Outlet for ChannelOutlet<'_> {
    fn batch(&mut self, items: Vec<Announced>) -> bool {
        let data_len = items.iter().map(|announced| announced.item.data_len()).sum();
        // It may take memory again once the target has taken in what this session holds.
        self.asking.store(true, Relaxed);
        let permit = self.share.take(data_len, || self.batches.is_closed());
        self.asking.store(false, Relaxed);
        let Some(permit) = permit else { return false };
        self.batches.blocking_send(Delivered::Batch(items, permit)).is_ok()
    }

    fn compared(&mut self) -> Option<Vec<Compared>> {
        self.asking.store(true, Relaxed);
        let answer = self.commands.recv();
        self.asking.store(false, Relaxed);
        match answer {
            Ok(SourceCommand::Compared(compared)) => Some(compared),
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
            Ok(packed) => SourceEvent::Packed(seq, packed),
            Err(failure) => SourceEvent::Failed(failure),
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use driftline_extent::{BlockMask, Change, ChunkId, Extent, Generation, Item};
    use driftline_wire::Payload;
    use tokio::time::timeout;

    use super::*;
    use crate::error::No;

    /// A source that refuses to plan, or has a defect.
    struct Unwilling {
        panics: bool,
    }

    impl Source for Unwilling {
        type Error = No;

        fn plan(&mut self, _: Option<&Generation>) -> Result<Plan, No> {
            assert!(!self.panics, "a defect");
            Err(No)
        }

        fn next_change(&mut self, _: u64) -> Result<Option<Change>, No> {
            Err(No)
        }

        fn finish(&mut self) -> Result<Finish, No> {
            Err(No)
        }

        fn bytes_read(&self) -> u64 {
            0
        }
    }

    /// A volume with a defect.
    struct Defect;

    impl Volume for Defect {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            panic!("a defect");
        }

        fn next_data(&self, _: u64) -> io::Result<Option<Extent>> {
            Ok(None)
        }
    }

    fn side(panics: bool) -> (SourceSide, oneshot::Receiver<()>) {
        let job = SourceJob {
            source: Unwilling { panics },
            volume: Some(Arc::new(Defect)),
            overwrite: false,
            compare: false,
            arrived: LastSeen::Nothing,
            compression: None,
            auditor: None,
            patience: SOURCE_PATIENCE,
            held: None,
        };
        SourceSide::start(job, Arc::default()).unwrap()
    }

    async fn failure(side: &mut SourceSide) -> Option<Failure> {
        let event = timeout(Duration::from_secs(60), side.next_event()).await;
        side.handle_event(event.expect("nobody waits for a worker that is gone"));
        side.failure()
    }

    #[tokio::test]
    async fn a_failure_is_told_as_it_was_whatever_is_asked_for_after_it() {
        let (mut side, ended) = side(false);
        side.command(SourceCommand::Plan(Box::new(TargetState::nothing())));
        ended.await.unwrap_err();
        side.command(SourceCommand::Compared(Vec::new()));
        assert_eq!(failure(&mut side).await, Some(Failure::from_error(&No)));
    }

    #[tokio::test]
    async fn a_panic_of_either_worker_ends_the_session() {
        let (mut planning, _ended) = side(true);
        planning.command(SourceCommand::Plan(Box::new(TargetState::nothing())));
        assert_eq!(failure(&mut planning).await, Some(Failure::worker_gone()));

        let (mut packing, _ended) = side(false);
        let (data, zero, id) = (BlockMask::ALL, BlockMask::NONE, ChunkId([1; 32]));
        let item = Item::Chunk { index: 0, data, zero, id };
        let announced = Announced { item, payload: Payload::InVolume };
        let pieces = vec![Piece { announced, theirs: None }];
        packing.packs.send((ChunkKey::new(&[1; 32]), 0, pieces)).unwrap();
        assert_eq!(failure(&mut packing).await, Some(Failure::worker_gone()));
    }
}
