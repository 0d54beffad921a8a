//! The source's worker: plans, chunks or scans, and hands over batches. Blocking, on a
//! thread of its own.

use std::{
    fmt, mem,
    sync::{Arc, mpsc::sync_channel},
    thread,
};

use bytes::Bytes;
use driftline_chunking::{ChunkKey, Chunked, Chunker, Scope};
use driftline_extent::{
    Accepts, Ask, Begin, CHUNK_LEN, Change, Finish, Generation, Item, Offer, PART_LEN_MAX, Plan,
    PlanKind, Reason, Root, Source, Standing, TargetState, Volume,
};
use driftline_wire::{
    Announced, Compared, Packed, Packer, Payload, Piece,
    limits::{BATCH_DATA_MAX, BATCH_ITEMS_MAX},
};

use crate::{
    Failure, Progress,
    auditor::Auditor,
    scan::{Scanner, Spans, root_of},
    watched::Watched,
};

/// Spans that are announced before the first is compared: both sides hash at the same time.
const OPEN_SPANS_MAX: usize = 2;

/// Spans that are hashed before they are asked for.
const SPANS_AHEAD: usize = 1;

/// Takes batches away from the worker and brings it the answers to spans.
pub trait Outlet {
    /// Takes a batch; blocks while the window is full. `false`: the session is over.
    fn batch(&mut self, items: Vec<Announced>) -> bool;

    /// The next spans that the target has compared. `None`: the session is over.
    fn compared(&mut self) -> Option<Vec<Compared>>;
}

/// What a delivery is of, and what it needs.
pub struct Delivery<'a> {
    /// The plan that the target has agreed to.
    pub plan: &'a Plan,
    /// From where on.
    pub begin: Begin,
    /// The key under which the target names chunks.
    pub key: &'a ChunkKey,
    /// Where batches go.
    pub outlet: &'a mut dyn Outlet,
    /// What counts them.
    pub progress: &'a Arc<Progress>,
    /// What knows the root over the whole volume also of an increment, if anything does.
    pub auditor: Option<&'a mut Auditor>,
}

impl fmt::Debug for Delivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Delivery");
        debug.field("plan", self.plan).field("begin", &self.begin).finish_non_exhaustive()
    }
}

/// The session ended while the worker was busy; whoever ended it knows why.
fn session_over() -> Failure {
    Failure::new(Reason::Failed, "the session is over")
}

/// What the source has to ask before it can plan, now that it learned this.
pub fn ask<S: Source>(source: &mut S, state: &TargetState) -> Result<Option<Ask>, Failure> {
    source.learn(state);
    source.ask().map_err(|e| Failure::from_error(&e))
}

/// Whether the target holds nothing, and nothing is on its way to it.
fn holds_nothing(state: &TargetState) -> bool {
    let is_cut = matches!(&state.accepts, Accepts::Stream { token: Some(_), .. });
    state.generation.is_none() && state.resume.is_none() && !is_cut
}

/// What a target held when it was last seen, as far as that is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum LastSeen {
    /// Nothing is known to have arrived there.
    #[default]
    Nothing,
    /// This generation.
    Held(Generation),
    /// Nobody can tell: why.
    Unknown(String),
}

/// Refuses a target that holds nothing, though it held something when it was last seen, or nobody
/// can tell whether it did.
///
/// # Errors
/// [`Reason::TargetGone`].
pub fn recognise(state: &TargetState, last: LastSeen) -> Result<(), Failure> {
    let detail = match last {
        LastSeen::Held(held) if holds_nothing(state) => format!(
            "it holds nothing, though {held} had arrived there: it was destroyed, renamed or \
             moved, or what it is on is not mounted or imported. Nothing was done. If it has \
             another name now, push to that; to have it copied anew, run again with --full"
        ),
        LastSeen::Unknown(why) if holds_nothing(state) => format!(
            "it holds nothing, and Driftline cannot tell whether something had arrived there, as \
             {why}. Nothing was done. If a copy was there, it was destroyed, renamed or moved, or \
             what it is on is not mounted or imported; to have it copied anew, or for the first \
             time, run again with --full"
        ),
        _ => return Ok(()),
    };
    Err(Failure::new(Reason::TargetGone, detail))
}

/// Plans how to bring the target from where it is to the source's next generation.
pub fn plan<S: Source>(
    source: &mut S,
    state: &TargetState,
    overwrite: bool,
) -> Result<Offer, Failure> {
    let base: Option<&Generation> = state.generation.as_ref();
    source.learn(state);
    let plan = source.plan(base).map_err(|e| Failure::from_error(&e))?;
    Ok(Offer { plan, overwrite })
}

/// Lets all of the volume go by where the target has damage to be replaced, or the user wants all
/// compared, also where the source has nothing new. What cannot is sent as it was planned, and the
/// damage stays.
///
/// # Errors
/// [`Reason::Unsupported`] if the user wants what cannot be done.
pub fn cover<S: Source>(
    source: &mut S,
    state: &TargetState,
    offer: &mut Offer,
    compare: bool,
) -> Result<(), Failure> {
    let plan = &mut offer.plan;
    let standing = match (state.damaged, compare) {
        (true, _) => Standing::Suspect(Reason::TargetDamaged),
        (false, true) => plan.standing,
        (false, false) => return Ok(()),
    };
    match plan.kind {
        PlanKind::Scan => {
            // What was found at the source is worth more.
            if state.damaged && matches!(plan.standing.reason(), None | Some(Reason::MapMissing)) {
                plan.standing = standing;
            }
        }
        PlanKind::UpToDate | PlanKind::Incremental => {
            match source.plan_whole().map_err(|e| Failure::from_error(&e))? {
                Some(whole) => *plan = Plan { base: state.generation, standing, ..whole },
                None if compare => {
                    let detail = "this source shows only what changed: it cannot be compared";
                    return Err(Failure::new(Reason::Unsupported, detail));
                }
                None => tracing::warn!(
                    "the target has damage to replace, and this source shows only what changed"
                ),
            }
        }
        PlanKind::Stream if compare => {
            let detail = "only ZFS can compare what a zfs: target holds: use `zpool scrub`";
            return Err(Failure::new(Reason::Unsupported, detail));
        }
        PlanKind::Full | PlanKind::Stream => {}
    }
    Ok(())
}

/// Lets an auditor hear of the plan, which it may change.
pub fn prepare<S: Source>(
    source: &mut S,
    volume: Option<&Arc<dyn Volume + Send + Sync>>,
    state: &TargetState,
    offer: &mut Offer,
    auditor: &mut Auditor,
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    if matches!(offer.plan.kind, PlanKind::UpToDate | PlanKind::Stream) {
        return Ok(());
    }
    let reader = source.reader().map_err(|e| Failure::from_error(&e))?;
    let watch = |reader| Arc::new(Watched::new(reader, progress.clone())) as Arc<_>;
    let reader = reader.map(watch).or_else(|| volume.cloned());
    auditor.plan(state, &mut offer.plan, reader)?;
    auditor.set_record(source.record());
    Ok(())
}

/// Delivers the planned increment and says what it led to.
pub fn deliver<S: Source>(
    source: &mut S,
    volume: Option<&dyn Volume>,
    mut delivery: Delivery<'_>,
) -> Result<Finish, Failure> {
    let Delivery { plan, begin, progress, .. } = delivery;
    progress.set_expected(plan.bytes_expected);
    let auditor = delivery.auditor.as_deref_mut();
    let reader =
        auditor.and_then(|auditor| auditor.begin(begin).map(|()| auditor.reader()).transpose());
    let reader = reader.transpose()?;
    match (plan.kind, volume, reader) {
        (PlanKind::Scan, Some(volume), _) => scan(source, volume, delivery, Payload::InVolume),
        // Nobody else can read what only this increment shows.
        (PlanKind::Scan, None, Some(reader)) => {
            scan(source, reader.as_ref(), delivery, Payload::Held(Bytes::new()))
        }
        (PlanKind::Scan, None, None) => {
            Err(Failure::new(Reason::Unsupported, "this source cannot be read at random"))
        }
        (PlanKind::Stream, ..) => parts(source, delivery),
        (PlanKind::UpToDate | PlanKind::Incremental | PlanKind::Full, ..) => {
            changes(source, volume, delivery)
        }
    }
}

fn changes<S: Source>(
    source: &mut S,
    volume: Option<&dyn Volume>,
    delivery: Delivery<'_>,
) -> Result<Finish, Failure> {
    let Delivery { plan, begin, key, outlet, progress, auditor } = delivery;
    // The root over a whole volume needs all of it, also what an earlier session delivered. Of a
    // first copy, a source that need not read that again leaves the root to the target.
    let (scope, from) = match plan.kind {
        PlanKind::Full if begin.from > 0 && plan.base.is_none() && source.seeks() => {
            (Scope::Rest, begin.from * CHUNK_LEN)
        }
        PlanKind::Full => (Scope::Whole, 0),
        _ => (Scope::Increment, begin.from * CHUNK_LEN),
    };
    let damaged = |error| Failure::new(Reason::StreamDamaged, format!("{error}"));
    let mut chunker = Chunker::new(key, scope, begin.from);
    let mut batcher = Batcher { auditor, ..Batcher::new(outlet, progress) };
    while let Some(change) = source.next_change(from).map_err(|e| Failure::from_error(&e))? {
        progress.set_read(source.bytes_read());
        chunker.push(&change).map_err(damaged)?;
        batcher.drain(&mut chunker)?;
    }
    let named = named_by(source, plan)?;
    let size = named.as_ref().and_then(|finish| finish.size).or(plan.size);
    if scope != Scope::Increment && size.is_none() {
        return Err(Failure::new(Reason::StreamDamaged, "the source does not say how large it is"));
    }
    let mut root = chunker.finish(size).map_err(damaged)?;
    batcher.drain(&mut chunker)?;
    batcher.flush()?;
    let auditor = batcher.auditor.take();
    progress.set_read(source.bytes_read());
    if let Some(volume) = source.read_back().map_err(|e| Failure::from_error(&e))? {
        let volume = Watched::new(volume, progress.clone());
        let shown = root_of(&volume, key)?;
        if root.is_some_and(|root| root != shown) {
            return Err(Failure::new(
                Reason::VerifyFailed,
                "what the stream says is not what the snapshot's device holds: nothing was \
                 committed",
            ));
        }
        root = Some(shown);
    }
    let tip = named.map(|finish| finish.tip);
    if let (Some(auditor), Some(size)) = (auditor, size)
        && let Some(own) = auditor.conclude(tip, size)?
    {
        if root.is_some_and(|root| root != own) {
            return Err(Failure::new(
                Reason::RootMismatch,
                "what was delivered is not what the source's storage shows: nothing was committed",
            ));
        }
        root = Some(own);
    }
    // An increment that only its content names, and whose manifest was lost meanwhile.
    if let (None, None, Some(volume)) = (tip, root, volume) {
        root = Some(root_of(volume, key)?);
    }
    match tip.or_else(|| root.map(Generation::content)) {
        Some(tip) => Ok(Finish { tip, size, root }),
        None => Err(Failure::new(Reason::Failed, "the source does not name its generation")),
    }
}

/// What the source says the increment led to. A volume whose content is its identity says
/// nothing, and gets its name from the root.
fn named_by<S: Source>(source: &mut S, plan: &Plan) -> Result<Option<Finish>, Failure> {
    if source.is_unnamed().map_err(|e| Failure::from_error(&e))? {
        return Ok(None);
    }
    // A source that can say from what its tip descends can name that as well.
    let names = plan.tip.is_some() || plan.base.is_some() || plan.kind == PlanKind::Incremental;
    names.then(|| source.finish().map_err(|e| Failure::from_error(&e))).transpose()
}

/// Carries an opaque stream part by part, and names the whole of it.
fn parts<S: Source>(source: &mut S, delivery: Delivery<'_>) -> Result<Finish, Failure> {
    let Delivery { key, outlet, progress, .. } = delivery;
    let mut batcher = Batcher::new(outlet, progress);
    let mut hasher = key.stream();
    let mut index = 0;
    while let Some(change) = source.next_change(0).map_err(|e| Failure::from_error(&e))? {
        progress.set_read(source.bytes_read());
        let bytes = match change {
            Change::Part(bytes) if (1..=PART_LEN_MAX).contains(&(bytes.len() as u64)) => bytes,
            _ => {
                let detail = "the source of a stream yields something else than parts of it; \
                              this is a defect in Driftline";
                return Err(Failure::new(Reason::Failed, detail));
            }
        };
        hasher.update(&bytes);
        let item = Item::Part { index, len: bytes.len() as u32, id: key.id(&bytes) };
        batcher.push(Announced { item, payload: Payload::Held(bytes.into()) })?;
        index += 1;
    }
    batcher.flush()?;
    progress.set_read(source.bytes_read());
    let Finish { tip, .. } = source.finish().map_err(|e| Failure::from_error(&e))?;
    Ok(Finish { tip, size: Some(hasher.byte_count()), root: Some(hasher.root()) })
}

fn scan<S: Source>(
    source: &mut S,
    volume: &dyn Volume,
    delivery: Delivery<'_>,
    payload: Payload,
) -> Result<Finish, Failure> {
    let Delivery { plan, begin, key, outlet, progress, mut auditor } = delivery;
    let size = volume.size();
    let root: Result<Root, Failure> = thread::scope(|scope| {
        let (hashed, spans) = sync_channel(SPANS_AHEAD);
        // While the target is waited for, the volume is read on, until nobody wants more.
        let read = move || Spans::new(volume, key).all(|span| hashed.send(span).is_ok());
        thread::Builder::new().name("scan".into()).spawn_scoped(scope, read)?;
        let mut scanner = Scanner::new(key, begin.from);
        let mut batcher = Batcher::new(outlet, progress);
        let mut done = false;
        loop {
            while !done && scanner.whole_spans() < OPEN_SPANS_MAX {
                let Ok(span) = spans.recv() else {
                    done = true;
                    break;
                };
                let span = span?;
                if let Some(auditor) = &mut auditor {
                    auditor.note_scanned(span.first, &span.ids)?;
                }
                if let Some(item) = scanner.announce(span) {
                    batcher.push(Announced { item, payload: Payload::Held(Bytes::new()) })?;
                    batcher.flush()?;
                }
                progress.set_read(scanner.bytes_done().min(size));
            }
            if scanner.is_settled() {
                return Ok(scanner.into_root(size));
            }
            for compared in batcher.outlet.compared().ok_or_else(session_over)? {
                for announced in scanner.settle(&compared) {
                    batcher.push(match (&payload, announced.item) {
                        (Payload::Held(_), item @ Item::Chunk { .. }) => held(volume, key, item)?,
                        _ => announced,
                    })?;
                }
            }
            batcher.flush()?;
        }
    });
    let root = root?;
    if let Some(auditor) = &mut auditor
        && auditor.wants_map()
    {
        while let Some(change) = source.next_change(0).map_err(|e| Failure::from_error(&e))? {
            auditor.note_mapped(&change, size);
        }
    }
    let tip = named_by(source, plan)?.map(|finish| finish.tip);
    if let Some(auditor) = auditor
        && auditor.conclude(tip, size)?.is_some_and(|own| own != root)
    {
        return Err(changed(0));
    }
    let tip = tip.unwrap_or_else(|| Generation::content(root));
    Ok(Finish { tip, size: Some(size), root: Some(root) })
}

/// An item with its data.
fn held(volume: &dyn Volume, key: &ChunkKey, item: Item) -> Result<Announced, Failure> {
    Ok(Announced { item, payload: Payload::Held(read(volume, key, &item, true)?) })
}

fn changed(offset: u64) -> Failure {
    Failure::new(
        Reason::SourceChanged,
        format!(
            "the source changed at offset {offset} while it was read: take a snapshot and read \
             that, or stop what writes to it"
        ),
    )
}

/// Gathers items into batches within the protocol's limits.
struct Batcher<'a> {
    outlet: &'a mut dyn Outlet,
    progress: &'a Progress,
    /// Hears of items before anybody else does.
    auditor: Option<&'a mut Auditor>,
    items: Vec<Announced>,
    data_len: u64,
}

impl<'a> Batcher<'a> {
    const fn new(outlet: &'a mut dyn Outlet, progress: &'a Progress) -> Self {
        Self { outlet, progress, auditor: None, items: Vec::new(), data_len: 0 }
    }

    fn drain(&mut self, chunker: &mut Chunker) -> Result<(), Failure> {
        while let Some(Chunked { item, data }) = chunker.poll() {
            self.push(Announced { item, payload: Payload::Held(data.into()) })?;
        }
        Ok(())
    }

    fn push(&mut self, announced: Announced) -> Result<(), Failure> {
        let data_len = announced.item.data_len();
        if self.items.len() == BATCH_ITEMS_MAX || self.data_len + data_len > BATCH_DATA_MAX {
            self.flush()?;
        }
        self.data_len += data_len;
        self.items.push(announced);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.items.is_empty() {
            return Ok(());
        }
        if let Some(auditor) = &mut self.auditor {
            auditor.note(self.items.iter().map(|announced| &announced.item))?;
        }
        self.progress.add_announced(mem::take(&mut self.data_len));
        if self.outlet.batch(mem::take(&mut self.items)) { Ok(()) } else { Err(session_over()) }
    }
}

impl fmt::Debug for Batcher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("items", &self.items.len()).finish_non_exhaustive()
    }
}

/// Fetches what was left in the volume, narrows what the target has an old version of, and packs
/// what it wants.
pub fn pack(
    packer: &mut Packer,
    volume: Option<&dyn Volume>,
    key: &ChunkKey,
    seq: u32,
    pieces: Vec<Piece>,
    progress: &Progress,
) -> Result<Packed, Failure> {
    let (mut narrowed, mut wanted) = (Vec::new(), Vec::with_capacity(pieces.len()));
    for Piece { announced: Announced { item, payload }, theirs } in pieces {
        // What is made of grains is compared with the name of the whole where it arrives.
        let whole = theirs.is_none();
        let bytes = match (payload, volume) {
            (Payload::Held(bytes), _) => bytes,
            (Payload::InVolume, Some(volume)) => read(volume, key, &item, whole)?,
            (Payload::InVolume, None) => {
                return Err(Failure::new(Reason::Unsupported, "this source cannot be read again"));
            }
        };
        match (item, theirs) {
            (Item::Chunk { data, .. }, Some(theirs)) => {
                let grains = key.unlike(data, &bytes, &theirs);
                let ranges = data.by_grain().filter(|(grain, _)| grain.is_within(grains));
                // Copied, so that the rest of the chunk is not kept for them.
                wanted.extend(ranges.map(|(_, range)| Bytes::copy_from_slice(&bytes[range])));
                narrowed.push(grains);
            }
            _ => wanted.push(bytes),
        }
    }
    progress.add_data(wanted.iter().map(|bytes| bytes.len() as u64).sum());
    Ok(Packed { narrowed, parts: packer.pack(seq, wanted.iter().map(Bytes::as_ref)) })
}

/// Reads a chunk of the volume again. `named`: it must still be what was announced.
fn read(volume: &dyn Volume, key: &ChunkKey, item: &Item, named: bool) -> Result<Bytes, Failure> {
    let Item::Chunk { index, id, .. } = item else { return Ok(Bytes::new()) };
    let offset = index * CHUNK_LEN;
    let len = CHUNK_LEN.min(volume.size().saturating_sub(offset)) as usize;
    let mut bytes = vec![0; CHUNK_LEN as usize];
    volume.read_at(offset, &mut bytes[..len])?;
    if named && key.id(&bytes) != *id { Err(changed(offset)) } else { Ok(bytes.into()) }
}
