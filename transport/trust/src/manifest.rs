//! The manifest of a replica on the side of its source: the ids of the generation that the
//! replica holds, and what the increment that is on its way makes of them.
//!
//! # Files
//!
//! * `ids`: 32 bytes for each chunk, as the target keeps them. `spans`: the node of the tree over
//!   each [`SPAN_CHUNKS`] of them. Together 0.05 % of the volume; holes stay holes.
//! * `log`: the ids of the chunks that an increment touches.
//! * `state`: which generation the lists are of, its size and root; and once the log is complete,
//!   where that leads.
//!
//! # What is done in which order
//!
//! While an increment is sent, its ids go to the log, and the lists stay as they are. When all is
//! known, the root over the tip is made from the spans that the log touches and the nodes of all
//! others; the log is synced and then *sealed* by a state that names the tip. Only then the target
//! is told to finish. Once it says that it has committed, or says at the next session that this is
//! what it holds, a state says that the log is being applied; the lists are changed in place and
//! synced, and a last state makes the tip the base. A stop anywhere between leaves either the base
//! with its lists, or a log that is applied again.
//!
//! Nothing is believed that is not proven: the state and the log have checksums, a span of ids has
//! to lead to its node, and the nodes to the root in the state. What is not so is
//! [`ManifestError::Damaged`], and the manifest is made again from data.

use std::{collections::BTreeMap, io, ops::Range};

use driftline_chunking::{ChunkKey, SPAN_CHUNKS, TreeHasher};
use driftline_extent::{
    ChunkId, Generation, RECORD_LEN_MAX, Reason, Root, TargetState, chunk_count,
};

use crate::{
    Entry, Held, Pass, Storage,
    ids::IdFile,
    log::Log,
    record::Record,
    state::{Found, Identity, Sealed, Slots, State},
};

/// The files of a manifest.
#[derive(Debug)]
pub struct Files<S> {
    /// Its state.
    pub state: S,
    /// The ids of chunks.
    pub ids: S,
    /// The nodes over spans of them.
    pub spans: S,
    /// What an increment makes of them.
    pub log: S,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The storage failed.
    #[error("the manifest cannot be read or written")]
    Io(#[from] io::Error),
    /// A file is not what was written.
    #[error("{0}: the manifest is made again from data")]
    Damaged(&'static str),
}

/// Ids that are written together: a page of the file.
const PAGE_IDS: usize = 128;

const _: () = assert!(SPAN_CHUNKS as usize / PAGE_IDS == u32::BITS as usize);

/// A span that is being changed.
struct OpenSpan {
    span: u64,
    ids: Vec<ChunkId>,
    /// A bit for each page that was changed.
    pages: u32,
}

/// A span as it is at the tip.
struct TouchedSpan<'a> {
    span: u64,
    /// None if all of it is zero.
    ids: &'a [ChunkId],
    pages: u32,
}

impl OpenSpan {
    /// Changes the ids of `chunks`, which lie in the span and in the entry.
    fn change(&mut self, entry: &Entry, chunks: Range<u64>) {
        let at = (chunks.start % SPAN_CHUNKS) as usize;
        let len = (chunks.end - chunks.start) as usize;
        let place = &mut self.ids[at..at + len];
        match entry {
            Entry::Ids(first, ids) => {
                let from = (chunks.start - first) as usize;
                place.copy_from_slice(&ids[from..from + len]);
            }
            Entry::Zeros(_) => place.fill(ChunkId::ZERO),
        }
        (at / PAGE_IDS..=(at + len - 1) / PAGE_IDS).for_each(|page| self.pages |= 1 << page);
    }

    fn touched(&self) -> TouchedSpan<'_> {
        TouchedSpan { span: self.span, ids: &self.ids, pages: self.pages }
    }
}

impl TouchedSpan<'_> {
    const fn zero(span: u64) -> Self {
        Self { span, ids: &[], pages: u32::MAX }
    }

    /// Writes what was changed.
    fn store<S: Storage>(&self, list: &IdFile<S>) -> io::Result<()> {
        let zeros = [ChunkId::ZERO; PAGE_IDS];
        for page in (0..u32::BITS as usize).filter(|page| self.pages & (1 << page) != 0) {
            let ids = self.ids.get(page * PAGE_IDS..(page + 1) * PAGE_IDS).unwrap_or(&zeros);
            list.store(self.span * SPAN_CHUNKS + (page * PAGE_IDS) as u64, ids)?;
        }
        Ok(())
    }
}

/// What a log is of: a hash over the lines of a record that never changes, so that what one version
/// has noted another goes on with. Logs of the versions that hashed something else (`v1`) are noted
/// anew, from the first chunk on.
fn context(identity: &Identity, held: Option<&Held>, tip: Option<&Generation>) -> [u8; 32] {
    let held = held.map(|Held { generation, size, root }| format!("{size} {root} {generation}"));
    let record = Record::new("driftline manifest log 2")
        .line("replica", identity.replica)
        .line("key", Root(identity.key_check))
        .option("held", held)
        .option("tip", tip);
    let mut hasher = blake3::Hasher::new_derive_key("driftline manifest v2 log");
    *hasher.update(record.finish().as_bytes()).finalize().as_bytes()
}

/// How a manifest stands to what a target holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// It lists what the target holds.
    Held(Held),
    /// It is of something else, or there is none. It says of what, if of anything of this
    /// replica.
    Other(Option<Generation>),
    /// It lists the generation that the target holds, with another root or size.
    Differs(Held),
}

/// A manifest that is open.
#[derive(Debug)]
pub struct Manifest<S> {
    key: ChunkKey,
    slots: Slots<S>,
    state: State,
    ids: IdFile<S>,
    spans: IdFile<S>,
    log: Log<S>,
    context: [u8; 32],
    /// What the source wants to know again of the tip.
    record: Option<Vec<u8>>,
}

impl<S: Storage> Manifest<S> {
    /// Opens the manifest of the replica that `target` is the state of, and brings it to what that
    /// says of its generation. One of another replica, or one that cannot be believed, is given
    /// up: then it is empty, and the second value says what was wrong, if anything was.
    ///
    /// # Errors
    /// What the storage says.
    pub fn open(
        files: Files<S>,
        target: &TargetState,
    ) -> Result<(Self, Option<&'static str>), ManifestError> {
        let Files { state, ids, spans, log } = files;
        let (slots, found) = Slots::open(state)?;
        let nothing = State::of_nothing(Identity::of(target));
        let (state, mut damage) = match found {
            Found::State(state) if state.identity == nothing.identity => (*state, None),
            Found::State(_) => (nothing, None),
            // Without a state nothing was ever relied on, or somebody has removed it.
            Found::Nothing if ids.is_empty()? => (nothing, None),
            Found::Nothing => (nothing, Some("the state file is gone")),
            Found::Damaged => (nothing, Some("the state file is damaged")),
        };
        let key = ChunkKey::new(&target.chunk_key);
        let (ids, spans, log) = (IdFile(ids), IdFile(spans), Log::new(log));
        let mut this = Self { key, slots, state, ids, spans, log, context: [0; 32], record: None };
        match this.catch_up(target) {
            Ok(()) => {}
            Err(ManifestError::Damaged(what)) => damage = Some(what),
            Err(error) => return Err(error),
        }
        if damage.is_some() || this.state.held.is_none() {
            let suspect = this.state.suspect;
            this.give_up()?;
            this.state.suspect = suspect;
        }
        Ok((this, damage))
    }

    /// Finishes what the last session could not.
    fn catch_up(&mut self, target: &TargetState) -> Result<(), ManifestError> {
        if let Some(sealed) = self.state.sealed.clone()
            && (sealed.applying || Held::of(target) == Some(sealed.tip))
        {
            self.apply(sealed)?;
        }
        match &self.state.held {
            Some((held, _)) if self.root_of_lists(held.size)? != held.root => {
                Err(ManifestError::Damaged("the lists do not lead to the root of their generation"))
            }
            _ => Ok(()),
        }
    }

    /// How it stands to what a target holds, with which it was opened.
    pub fn base(&self, target: &TargetState) -> Base {
        match (&self.state.held, Held::of(target)) {
            (Some((ours, _)), Some(theirs)) if *ours == theirs => Base::Held(theirs),
            (Some((ours, _)), Some(theirs)) if ours.generation == theirs.generation => {
                Base::Differs(*ours)
            }
            (ours, _) => Base::Other(ours.as_ref().map(|(held, _)| held.generation)),
        }
    }

    /// How far the rolling pass over the base has come.
    pub fn pass(&self) -> Option<&Pass> {
        self.state.held.as_ref().map(|(_, pass)| pass)
    }

    /// What the source wanted to know again of the instant that this lists, if that is what the
    /// target holds.
    pub fn record(&self, target: &TargetState) -> Option<&[u8]> {
        let held = matches!(self.base(target), Base::Held(_));
        self.state.record.as_deref().filter(|_| held)
    }

    /// Keeps this with the tip, once the target holds that: at most [`RECORD_LEN_MAX`] bytes.
    pub fn set_record(&mut self, record: Option<Vec<u8>>) {
        self.record = record.filter(|record| record.len() <= RECORD_LEN_MAX);
    }

    /// Why the next increment must not rely on a map, if so.
    pub const fn suspect(&self) -> Option<Reason> {
        self.state.suspect
    }

    /// When all of the source was last compared with what it lists, in milliseconds since 1970.
    pub const fn compared_ms(&self) -> Option<u64> {
        self.state.compared_ms
    }

    /// Notes, durably, that the next increment must not rely on a map.
    ///
    /// # Errors
    /// What the storage says.
    pub fn set_suspect(&mut self, reason: Reason) -> Result<(), ManifestError> {
        self.state.suspect = Some(reason);
        self.slots.commit(&self.state)
    }

    /// Forgets all that it lists: it is empty then.
    ///
    /// # Errors
    /// What the storage says.
    pub fn clear(&mut self) -> Result<(), ManifestError> {
        let suspect = self.state.suspect;
        self.give_up()?;
        self.state.suspect = suspect;
        Ok(())
    }

    fn give_up(&mut self) -> Result<(), ManifestError> {
        let empty = State { suspect: self.state.suspect, ..State::of_nothing(self.state.identity) };
        // What is written down is given up before the lists are.
        if self.state.held.is_some() || self.state.sealed.is_some() || self.spans.0.len()? > 0 {
            self.slots.commit(&empty)?;
            self.ids.truncate(0)?;
            self.spans.truncate(0)?;
        }
        self.state = empty;
        Ok(())
    }

    /// Begins to note an increment to `tip` whose chunks below `from` were noted in an earlier
    /// session, which `told` hears again. `false`: they were not, or are not there any more. All
    /// of the tip must be noted then, from its first chunk on.
    ///
    /// # Errors
    /// What the storage says.
    pub fn begin(
        &mut self,
        tip: Option<&Generation>,
        from: u64,
        told: &mut dyn FnMut(&Entry),
    ) -> Result<bool, ManifestError> {
        if self.state.sealed.take().is_some() {
            self.slots.commit(&self.state)?;
        }
        let held = self.state.held.as_ref().map(|(held, _)| held);
        self.context = context(&self.state.identity, held, tip);
        if from > 0 && tip.is_some() {
            return Ok(self.log.resume(self.context, from, told)?);
        }
        self.log.start(self.context)?;
        Ok(from == 0)
    }

    /// Begins to note all of a tip, from its first chunk on, whatever was noted before.
    ///
    /// # Errors
    /// What the storage says.
    pub fn begin_whole(&mut self) -> Result<(), ManifestError> {
        self.clear()?;
        self.begin(None, 0, &mut |_| {}).map(drop)
    }

    /// Notes ids of chunks, ascending. Chunks of an increment that are never noted stay as they
    /// are.
    ///
    /// # Errors
    /// What the storage says.
    pub fn note(&mut self, first: u64, ids: &[ChunkId]) -> Result<(), ManifestError> {
        Ok(self.log.note(first, ids)?)
    }

    /// Notes that chunks are zero, ascending with the others.
    ///
    /// # Errors
    /// What the storage says.
    pub fn note_zeros(&mut self, chunks: Range<u64>) -> Result<(), ManifestError> {
        Ok(self.log.note_zeros(chunks)?)
    }

    /// Sees to it that what was noted outlasts this process.
    ///
    /// # Errors
    /// What the storage says.
    pub fn flush(&mut self) -> Result<(), ManifestError> {
        Ok(self.log.flush()?)
    }

    /// The ids that the base lists for these chunks; zero where it has none.
    ///
    /// # Errors
    /// What the storage says.
    pub fn listed(&self, chunks: Range<u64>) -> Result<Vec<ChunkId>, ManifestError> {
        Ok(self.ids.load(chunks)?)
    }

    /// The first chunk at or after this one that may be listed as anything but zeros.
    ///
    /// # Errors
    /// What the storage says.
    pub fn next_listed(&self, index: u64) -> Result<Option<u64>, ManifestError> {
        Ok(self.ids.next(index)?)
    }

    /// That what is listed for the span of this chunk is what was noted of it.
    ///
    /// # Errors
    /// [`ManifestError::Damaged`] if it is not, or what the storage says.
    pub fn prove(&self, index: u64) -> Result<(), ManifestError> {
        self.proven_span(index / SPAN_CHUNKS).map(drop)
    }

    /// The root over the tip, once all of it was noted.
    ///
    /// # Errors
    /// [`ManifestError::Damaged`] if what is listed cannot be believed, or what the storage says.
    pub fn tip_root(&mut self, size: u64) -> Result<Root, ManifestError> {
        self.log.flush()?;
        let mut nodes = BTreeMap::new();
        let mut first = None;
        self.each_touched(size, true, &mut |touched| {
            nodes.insert(touched.span, self.node(touched.ids));
            if touched.span == 0 {
                first = Some(touched.ids.to_vec());
            }
            Ok(())
        })?;
        if chunk_count(size) > SPAN_CHUNKS {
            return self.root_of_spans(size, &nodes);
        }
        let ids = first.map_or_else(|| self.proven_span(0), Ok)?;
        Ok(self.root_of_ids(size, &ids))
    }

    /// Writes down, durably, that the log leads to this.
    ///
    /// # Errors
    /// What the storage says.
    pub fn seal(&mut self, tip: Held, pass: Pass) -> Result<(), ManifestError> {
        let (end, context) = (self.log.settle()?, self.context);
        let record = self.record.clone();
        let sealed = Sealed { tip, context, end, pass, record, applying: false };
        self.check_log(&sealed)?;
        self.state.sealed = Some(sealed);
        self.slots.commit(&self.state)
    }

    /// The target holds the tip now: it becomes the base. Where no map led to it, but all was
    /// compared, `compared_ms` says when, in milliseconds since 1970: whatever a map was suspected
    /// of is mended.
    ///
    /// # Errors
    /// [`ManifestError::Damaged`] if that cannot be done, or what the storage says.
    pub fn commit(&mut self, compared_ms: Option<u64>) -> Result<(), ManifestError> {
        if compared_ms.is_some() {
            (self.state.suspect, self.state.compared_ms) = (None, compared_ms);
        }
        match self.state.sealed.clone() {
            Some(sealed) => self.apply(sealed),
            None => self.slots.commit(&self.state),
        }
    }

    fn apply(&mut self, sealed: Sealed) -> Result<(), ManifestError> {
        self.context = sealed.context;
        if !sealed.applying {
            let sealed = Sealed { applying: true, ..sealed.clone() };
            self.state.sealed = Some(sealed);
            self.slots.commit(&self.state)?;
        }
        self.check_log(&sealed)?;
        let Held { size, root, .. } = sealed.tip;
        let mut nodes = BTreeMap::new();
        self.each_touched(size, false, &mut |touched| {
            nodes.insert(touched.span, self.node(touched.ids));
            touched.store(&self.ids)
        })?;
        self.ids.truncate(chunk_count(size))?;
        // Whoever does this again passes over spans that have no node: they must have no ids.
        self.ids.0.settle()?;
        nodes.iter().try_for_each(|(span, node)| self.spans.set(*span, *node))?;
        self.spans.truncate(chunk_count(size).div_ceil(SPAN_CHUNKS))?;
        self.spans.0.settle()?;
        nodes.keys().try_for_each(|span| self.proven_span(*span).map(drop))?;
        if self.root_of_lists(size)? != root {
            return Err(ManifestError::Damaged(
                "the log does not lead to the root it was sealed with",
            ));
        }
        self.state.held = Some((sealed.tip, sealed.pass));
        self.state.record = sealed.record;
        self.state.sealed = None;
        self.slots.commit(&self.state)?;
        Ok(self.log.clear()?)
    }

    /// That the log is the one that was sealed, to its end.
    fn check_log(&self, sealed: &Sealed) -> Result<(), ManifestError> {
        let mut frames = self.log.frames(sealed.context);
        while frames.position.at < sealed.end.at && frames.next()?.is_some() {}
        if frames.position != sealed.end {
            return Err(ManifestError::Damaged("the log is not what was sealed"));
        }
        Ok(())
    }

    /// Calls `each` with every span that the log touches, or that the size cuts. With `prove`,
    /// what the base lists is proven.
    fn each_touched(
        &self,
        size: u64,
        prove: bool,
        each: &mut dyn FnMut(&TouchedSpan<'_>) -> io::Result<()>,
    ) -> Result<(), ManifestError> {
        let count = chunk_count(size);
        let mut open: Option<OpenSpan> = None;
        let mut frames = self.log.frames(self.context);
        let beyond = count..self.ids.0.len()?.div_ceil(32).max(count);
        let mut beyond = Some(beyond).filter(|chunks| !chunks.is_empty()).map(Entry::Zeros);
        loop {
            let (entry, limit) = match frames.next()? {
                Some(entry) => (entry, count),
                // What lies beyond the end of the tip is zero.
                None => match beyond.take() {
                    Some(entry) => (entry, u64::MAX),
                    None => break,
                },
            };
            let chunks = entry.chunks();
            let chunks = chunks.start..chunks.end.min(limit);
            let mut next = chunks.start;
            while next < chunks.end {
                let span = next / SPAN_CHUNKS;
                if let Some(done) = open.take_if(|open| open.span != span) {
                    each(&done.touched())?;
                }
                let whole_spans = span..chunks.end / SPAN_CHUNKS;
                if matches!(entry, Entry::Zeros(_))
                    && next.is_multiple_of(SPAN_CHUNKS)
                    && !whole_spans.is_empty()
                {
                    // Those that the base has nothing in are passed over: there may be millions.
                    next = whole_spans.end * SPAN_CHUNKS;
                    self.spans.each(whole_spans, &mut |span, _| each(&TouchedSpan::zero(span)))?;
                    continue;
                }
                let end = chunks.end.min((span + 1) * SPAN_CHUNKS);
                if open.is_none() {
                    let ids = if prove { self.proven_span(span) } else { self.span(span) };
                    open = Some(OpenSpan { span, ids: ids?, pages: 0 });
                }
                if let Some(open) = &mut open {
                    open.change(&entry, next..end);
                }
                next = end;
            }
        }
        open.map_or(Ok(()), |open| Ok(each(&open.touched())?))
    }

    fn span(&self, span: u64) -> Result<Vec<ChunkId>, ManifestError> {
        Ok(self.ids.load(span * SPAN_CHUNKS..(span + 1) * SPAN_CHUNKS)?)
    }

    /// The ids of a span that lead to its node.
    fn proven_span(&self, span: u64) -> Result<Vec<ChunkId>, ManifestError> {
        let ids = self.span(span)?;
        if self.node(&ids) != self.spans.get(span)? {
            return Err(ManifestError::Damaged(
                "a part of the list of ids is not what was written",
            ));
        }
        Ok(ids)
    }

    fn node(&self, ids: &[ChunkId]) -> ChunkId {
        let mut tree = TreeHasher::new(&self.key);
        ids.iter().for_each(|id| tree.push(*id));
        tree.into_span()
    }

    /// The root over the lists as they are. Of a volume of several spans the ids are not read.
    fn root_of_lists(&self, size: u64) -> Result<Root, ManifestError> {
        if chunk_count(size) <= SPAN_CHUNKS {
            return Ok(self.root_of_ids(size, &self.proven_span(0)?));
        }
        self.root_of_spans(size, &BTreeMap::new())
    }

    fn root_of_ids(&self, size: u64, ids: &[ChunkId]) -> Root {
        let mut tree = TreeHasher::new(&self.key);
        ids.iter().take(chunk_count(size) as usize).for_each(|id| tree.push(*id));
        tree.push_zeros(chunk_count(size) - tree.chunks());
        tree.into_root(size)
    }

    /// The root from the nodes of all spans, of which some are replaced.
    fn root_of_spans(
        &self,
        size: u64,
        replaced: &BTreeMap<u64, ChunkId>,
    ) -> Result<Root, ManifestError> {
        let count = chunk_count(size);
        let mut tree = TreeHasher::new(&self.key);
        let mut push = |span: u64, node: ChunkId| {
            if !node.is_zero() && span * SPAN_CHUNKS < count {
                tree.push_zeros(span * SPAN_CHUNKS - tree.chunks());
                tree.push_span(node, SPAN_CHUNKS.min(count - span * SPAN_CHUNKS));
            }
        };
        let mut replaced = replaced.iter().peekable();
        self.spans.each(0..count.div_ceil(SPAN_CHUNKS), &mut |span, node| {
            while let Some((at, new)) = replaced.next_if(|(at, _)| **at < span) {
                push(*at, *new);
            }
            match replaced.next_if(|(at, _)| **at == span) {
                Some((_, new)) => push(span, *new),
                None => push(span, node),
            }
            Ok(())
        })?;
        replaced.for_each(|(at, new)| push(*at, *new));
        tree.push_zeros(count - tree.chunks());
        Ok(tree.into_root(size))
    }
}

#[cfg(test)]
mod tests {
    use driftline_extent::ReplicaId;

    use super::*;

    /// A log that an earlier version has begun is gone on with only if this stays as it is.
    #[test]
    fn what_a_log_is_of_is_pinned() {
        let target = TargetState { replica: ReplicaId([7; 16]), ..TargetState::nothing() };
        let identity = Identity::of(&target);
        let (generation, root) = (Generation::zfs(9), Root([3; 32]));
        let held = Held { generation, size: 1 << 30, root };
        let tip = Generation::content(Root([4; 32]));
        let hex = |bytes: [u8; 32]| Root(bytes).to_string();
        assert_eq!(
            hex(context(&identity, Some(&held), Some(&tip))),
            "bbc4dfcd395a3f2f4143e857207a23f2d973a31e4c2e18636dcdf4f810e841fe"
        );
        assert_eq!(
            hex(context(&identity, None, None)),
            "3a3d80b494941b2f812465e8adb43a050dbae523627d1d2f62e6096a6d741617"
        );
        // Each part of it counts.
        let other = Identity::of(&TargetState { chunk_key: [1; 32], ..target });
        let all = [
            context(&identity, Some(&held), Some(&tip)),
            context(&other, Some(&held), Some(&tip)),
            context(&identity, Some(&Held { size: 1, ..held }), Some(&tip)),
            context(&identity, Some(&Held { generation: Generation::zfs(8), ..held }), Some(&tip)),
            context(&identity, Some(&held), Some(&generation)),
            context(&identity, None, Some(&tip)),
            context(&identity, Some(&held), None),
            context(&identity, None, None),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
    }
}
