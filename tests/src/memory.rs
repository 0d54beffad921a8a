//! A source, a volume and a target in memory: small, plain, and right by inspection.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use driftline_chunking::{ChunkKey, TreeHasher, is_zero};
use driftline_extent::{
    Accepts, BLOCK_LEN, Begin, BlockMask, CHUNK_LEN, Change, ChunkId, Committed, Explained, Extent,
    Finish, Generation, GrainHash, GrainMask, Item, Missing, Offer, Plan, PlanKind, Reason,
    ReplicaId, Resume, Root, Source, Standing, Target, TargetState, Volume, VolumeId, chunk_count,
};

/// Volumes in memory are at most this large: 64 MiB.
const CHUNKS_MAX: u64 = 1 << 10;

/// Why a source or target in memory said no.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct MemoryError {
    reason: Reason,
    detail: &'static str,
}

impl Explained for MemoryError {
    fn reason(&self) -> Reason {
        self.reason
    }
}

const fn refused<T>(reason: Reason, detail: &'static str) -> Result<T, MemoryError> {
    Err(MemoryError { reason, detail })
}

/// A volume that can be read at any offset.
#[derive(Clone, Debug)]
pub struct MemoryVolume(pub Vec<u8>);

impl Volume for MemoryVolume {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let rest = self.0.get(from as usize..).unwrap_or_default();
        let Some(skip) = rest.iter().position(|byte| *byte != 0) else { return Ok(None) };
        let start = from + skip as u64;
        // Like a file system's extents: holes within are known only if they are large.
        let end = (start + 5 * CHUNK_LEN / 2).min(self.size());
        Ok(Extent::from_bounds(start, end))
    }
}

/// One increment that a [`MemorySource`] holds.
#[derive(Clone, Debug)]
pub struct Increment {
    /// What the source says of it beforehand.
    pub plan: Plan,
    /// What it says afterwards.
    pub finish: Finish,
    /// Its changes, ascending.
    pub changes: Vec<Change>,
}

/// A source with a list of increments. Without any it can only be scanned.
#[derive(Clone, Debug)]
pub struct MemorySource {
    volume: VolumeId,
    increments: Vec<Increment>,
    /// The increment that is being read, and the next change of it.
    at: (usize, usize),
    scanned: bool,
    bytes_read: u64,
}

impl MemorySource {
    /// A source of the volume `volume` that has no map of changes.
    pub const fn without_map(volume: VolumeId) -> Self {
        Self { volume, increments: Vec::new(), at: (0, 0), scanned: false, bytes_read: 0 }
    }

    /// Adds the increment that leads from one image to another; from nothing at all, if
    /// `base` is `None`.
    pub fn with(
        mut self,
        base: Option<(Generation, &[u8])>,
        tip: Generation,
        image: &[u8],
    ) -> Self {
        let (kind, old) = match base {
            Some((_, old)) => (PlanKind::Incremental, old),
            None => (PlanKind::Full, [].as_slice()),
        };
        let size = Some(image.len() as u64);
        let changes = changes(old, image);
        let plan = Plan {
            kind,
            volume: Some(self.volume),
            base: base.map(|(generation, _)| generation),
            tip: Some(tip),
            size,
            standing: Standing::Proven,
            bytes_expected: changes.iter().filter_map(Change::extent).map(|e| e.len()).sum(),
        };
        let finish = Finish { tip, size, root: None };
        self.increments.push(Increment { plan, finish, changes });
        self
    }

    fn plan_of(&self, kind: PlanKind) -> Plan {
        let standing = match kind {
            PlanKind::Scan => Standing::Suspect(Reason::MapMissing),
            _ => Standing::Proven,
        };
        let volume = Some(self.volume);
        Plan { kind, volume, base: None, tip: None, size: None, standing, bytes_expected: 0 }
    }
}

impl Source for MemorySource {
    type Error = MemoryError;

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, MemoryError> {
        if self.increments.is_empty() {
            let again = std::mem::replace(&mut self.scanned, true);
            return Ok(self.plan_of(if again { PlanKind::UpToDate } else { PlanKind::Scan }));
        }
        let found = self.increments.iter().position(|i| i.plan.base.as_ref() == base);
        if let Some(at) = found {
            self.at = (at, 0);
            return Ok(self.increments[at].plan.clone());
        }
        if self.increments.last().map(|i| &i.finish.tip) == base {
            return Ok(self.plan_of(PlanKind::UpToDate));
        }
        refused(Reason::BaseMismatch, "no increment starts at the target's generation")
    }

    fn next_change(&mut self, _: u64) -> Result<Option<Change>, MemoryError> {
        let (increment, next) = self.at;
        let change = self.increments.get(increment).and_then(|i| i.changes.get(next)).cloned();
        if let Some(Change::Data { bytes, .. }) = &change {
            self.bytes_read += bytes.len() as u64;
        }
        self.at.1 += 1;
        Ok(change)
    }

    fn finish(&mut self) -> Result<Finish, MemoryError> {
        match self.increments.get(self.at.0) {
            Some(increment) => Ok(increment.finish.clone()),
            None => refused(Reason::Failed, "nothing was planned"),
        }
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}

/// What differs, block by block, joined to runs of data and of zeros.
fn changes(old: &[u8], new: &[u8]) -> Vec<Change> {
    let block = BLOCK_LEN as usize;
    let mut changes: Vec<Change> = Vec::new();
    for (i, now) in new.chunks(block).enumerate() {
        let offset = i * block;
        if old.get(offset..offset + now.len()) == Some(now) || (old.len() <= offset && is_zero(now))
        {
            continue;
        }
        let extent = Extent::new(offset as u64, now.len() as u64);
        match (changes.last_mut(), is_zero(now)) {
            (Some(Change::Data { offset: at, bytes }), false)
                if *at as usize + bytes.len() == offset =>
            {
                bytes.extend_from_slice(now);
            }
            (_, false) => changes.push(Change::Data { offset: offset as u64, bytes: now.to_vec() }),
            (_, true) => changes.extend(extent.map(Change::Zero)),
        }
    }
    changes
}

/// Which increment a journal belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Underway {
    kind: PlanKind,
    base: Option<Generation>,
    tip: Option<Generation>,
}

/// A target that keeps an increment aside until it is committed.
#[derive(Clone, Debug)]
pub struct MemoryTarget {
    replica: ReplicaId,
    chunk_key: [u8; 32],
    volume: Option<VolumeId>,
    image: Vec<u8>,
    generation: Option<Generation>,
    root: Option<Root>,
    underway: Option<Underway>,
    /// Whole chunks as they will be.
    journal: BTreeMap<u64, Vec<u8>>,
    watermark: u64,
    /// Where content with this name stands, in the image or the journal.
    known: HashMap<ChunkId, u64>,
    /// Old versions whose hashes were told, and what was made of them, by chunk.
    told: HashMap<u64, Vec<u8>>,
    /// How often hashes were told, and how often what they led to was wrong.
    narrowed: (u32, u32),
    liar: Option<Vec<u8>>,
}

impl MemoryTarget {
    /// An empty target with this identity.
    pub fn new(replica: ReplicaId, chunk_key: [u8; 32]) -> Self {
        Self {
            replica,
            chunk_key,
            volume: None,
            image: Vec::new(),
            generation: None,
            root: None,
            underway: None,
            journal: BTreeMap::new(),
            watermark: 0,
            known: HashMap::new(),
            told: HashMap::new(),
            narrowed: (0, 0),
            liar: None,
        }
    }

    /// A target whose short hashes are those of another image: as if what it has and what the
    /// source has had the same, wherever that is the source's.
    pub fn with_collisions(self, image: Vec<u8>) -> Self {
        Self { liar: Some(image), ..self }
    }

    /// How many items it told hashes of, and how many of them had to come whole after all.
    pub const fn narrowed(&self) -> (u32, u32) {
        self.narrowed
    }

    /// What a reader of the replica sees: the committed generation.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    fn key(&self) -> ChunkKey {
        ChunkKey::new(&self.chunk_key)
    }

    /// A chunk as it stands once the journal is committed.
    fn chunk(&self, index: u64) -> Vec<u8> {
        self.journal.get(&index).cloned().unwrap_or_else(|| chunk_of(&self.image, index))
    }

    fn lacks_chunk(&mut self, item: &Item, index: u64, data: BlockMask, id: &ChunkId) -> Missing {
        let old = blocks(&self.chunk(index), data);
        let known = data.is_all() && self.known.contains_key(id);
        if data.is_empty() || self.key().id(&old) == *id || known {
            return Missing::Nothing;
        }
        if item.narrowable().is_none() || is_zero(&old) {
            return Missing::All;
        }
        let lie = self.liar.as_ref().map(|image| blocks(&chunk_of(image, index), data));
        let hashes: Vec<GrainHash> = self.key().grains(data, lie.as_ref().unwrap_or(&old));
        self.narrowed.0 += 1;
        self.told.insert(index, old);
        Missing::Unlike(hashes)
    }

    fn span(&self, index: u64, count: u64) -> ChunkId {
        let mut tree = TreeHasher::new(&self.key());
        let chunks = index..index.saturating_add(count).min(CHUNKS_MAX);
        chunks.for_each(|index| tree.push(self.key().id(&self.chunk(index))));
        tree.into_node()
    }

    fn apply_chunk(&mut self, item: &Item, sent: Option<&[u8]>) -> Result<(), MemoryError> {
        let Item::Chunk { index, data, zero, id } = *item else { return Ok(()) };
        let mut chunk = self.chunk(index);
        let told = self.told.remove(&index);
        let bytes = match sent {
            Some(sent) => sent.to_vec(),
            None if told.is_some() => told.unwrap_or_default(),
            None if self.key().id(&blocks(&chunk, data)) == id => blocks(&chunk, data),
            None => self.known.get(&id).map(|at| self.chunk(*at)).unwrap_or_default(),
        };
        if self.key().id(&bytes) != id || bytes.len() as u64 != data.byte_count() {
            return refused(Reason::VerifyFailed, "the data is not what was announced");
        }
        let mut rest = bytes.as_slice();
        for run in data.runs() {
            let (now, later) = rest.split_at(run.len());
            chunk[run].copy_from_slice(now);
            rest = later;
        }
        zero.runs().for_each(|run| chunk[run].fill(0));
        self.known.insert(self.key().id(&chunk), index);
        self.journal.insert(index, chunk);
        Ok(())
    }

    fn discard(&mut self) {
        self.underway = None;
        self.journal.clear();
        self.watermark = 0;
    }
}

/// The content of a chunk of an image, padded with zeros.
fn chunk_of(image: &[u8], index: u64) -> Vec<u8> {
    let start = image.len().min((index * CHUNK_LEN) as usize);
    let end = image.len().min(((index + 1) * CHUNK_LEN) as usize);
    let mut chunk = image[start..end].to_vec();
    chunk.resize(CHUNK_LEN as usize, 0);
    chunk
}

/// The bytes of some blocks of a chunk, joined.
fn blocks(chunk: &[u8], mask: BlockMask) -> Vec<u8> {
    mask.runs().flat_map(|run| chunk[run].iter().copied()).collect()
}

impl Target for MemoryTarget {
    type Error = MemoryError;

    fn state(&self) -> TargetState {
        let resume = self.underway.clone().map(|Underway { base, tip, .. }| Resume {
            base,
            tip,
            from: self.watermark,
        });
        TargetState {
            replica: self.replica,
            chunk_key: self.chunk_key,
            volume: self.volume,
            generation: self.generation,
            root: self.root,
            size: self.image.len() as u64,
            incomplete: false,
            damaged: false,
            resume,
            accepts: Accepts::Volume,
        }
    }

    fn begin(&mut self, offer: &Offer) -> Result<Begin, MemoryError> {
        let plan = &offer.plan;
        if self.volume.is_some() && plan.volume.is_some() && self.volume != plan.volume {
            return refused(Reason::SourceMismatch, "this is a replica of another volume");
        }
        if plan.kind == PlanKind::Stream {
            return refused(Reason::Unsupported, "this is a volume");
        }
        if plan.kind == PlanKind::Incremental && plan.base != self.generation {
            return refused(Reason::BaseMismatch, "the increment starts elsewhere");
        }
        if plan.kind == PlanKind::Full && self.generation.is_some() && !offer.overwrite {
            return refused(Reason::Denied, "a full copy would overwrite this replica");
        }
        let underway = Underway { kind: plan.kind, base: plan.base, tip: plan.tip };
        if self.underway.as_ref() != Some(&underway) {
            self.discard();
            self.underway = Some(underway);
        }
        self.volume = self.volume.or(plan.volume);
        self.told.clear();
        let chunks = 0..chunk_count(self.image.len() as u64);
        self.known = chunks.map(|i| (self.key().id(&self.chunk(i)), i)).collect();
        Ok(Begin { from: self.watermark })
    }

    fn missing(&mut self, items: &[Item]) -> Result<Vec<Missing>, MemoryError> {
        let missing = items.iter().map(|item| match item {
            Item::Chunk { index, data, id, .. } => self.lacks_chunk(item, *index, *data, id),
            Item::Span { index, count, digest } if self.span(*index, *count) != *digest => {
                Missing::All
            }
            Item::Zero { .. } | Item::Part { .. } | Item::Span { .. } => Missing::Nothing,
        });
        Ok(missing.collect())
    }

    fn patch(&mut self, item: &Item, grains: GrainMask, data: &[u8]) -> Result<bool, MemoryError> {
        let Item::Chunk { index, data: mask, id, .. } = *item else {
            return refused(Reason::StreamDamaged, "this cannot be narrowed");
        };
        let Some(mut bytes) = self.told.remove(&index) else {
            return refused(Reason::StreamDamaged, "nothing was told of this chunk");
        };
        let mut rest = data;
        for (_, range) in mask.by_grain().filter(|(grain, _)| grain.is_within(grains)) {
            let (now, later) = rest.split_at(range.len());
            bytes[range].copy_from_slice(now);
            rest = later;
        }
        let made = self.key().id(&bytes) == id;
        self.narrowed.1 += u32::from(!made);
        if made {
            self.told.insert(index, bytes);
        }
        Ok(made)
    }

    fn apply(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), MemoryError> {
        match *item {
            Item::Chunk { index, .. } if index >= CHUNKS_MAX => {
                refused(Reason::TargetFull, "the volume is too large for memory")
            }
            Item::Chunk { .. } => self.apply_chunk(item, data),
            Item::Zero { index, count } => {
                let zeroed = index..index + count;
                self.journal.retain(|index, _| !zeroed.contains(index));
                // Beyond the image all is zero already.
                let stands = zeroed.start..zeroed.end.min(chunk_count(self.image.len() as u64));
                self.journal.extend(stands.map(|index| (index, vec![0; CHUNK_LEN as usize])));
                Ok(())
            }
            Item::Span { .. } => Ok(()),
            Item::Part { .. } => refused(Reason::Unsupported, "this is a volume"),
        }
    }

    fn mark(&mut self, watermark: u64) -> Result<(), MemoryError> {
        self.watermark = watermark;
        Ok(())
    }

    fn commit(&mut self, finish: &Finish) -> Result<Committed, MemoryError> {
        let size = finish.size.unwrap_or(self.image.len() as u64);
        if size > CHUNKS_MAX * CHUNK_LEN {
            return refused(Reason::TargetFull, "the volume is too large for memory");
        }
        let chunks = self.journal.keys().last().map_or(0, |last| last + 1).max(chunk_count(size));
        let mut image = self.image.clone();
        image.resize((chunks * CHUNK_LEN) as usize, 0);
        for (index, chunk) in &self.journal {
            image[(index * CHUNK_LEN) as usize..][..chunk.len()].copy_from_slice(chunk);
        }
        if !is_zero(&image[size as usize..]) && size > self.image.len() as u64 {
            return refused(Reason::StreamDamaged, "there is data beyond the end of the volume");
        }
        image.truncate(size as usize);
        let mut tree = TreeHasher::new(&self.key());
        (0..chunk_count(size)).for_each(|i| tree.push(self.key().id(&chunk_of(&image, i))));
        let root = tree.into_root(size);
        self.discard();
        if finish.root.is_some_and(|expected| expected != root) {
            return refused(Reason::VerifyFailed, "the root is not the source's");
        }
        (self.image, self.generation, self.root) = (image, Some(finish.tip), Some(root));
        Ok(Committed { generation: finish.tip, root, size, zeroed: None })
    }
}
