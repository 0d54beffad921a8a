//! Bringing what stands somewhere to the content of a volume, without books and without a journal:
//! a restore.
//!
//! Only blocks that differ are written, where they belong. So what stands there is of no time
//! until the end, and a restore that was cut off is run again: it then writes what is missing.
//! At its end everything is synced and read back, also what was not written.

use std::{
    borrow::Cow,
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use driftline_chunking::{ChunkKey, TreeHasher, is_zero};
use driftline_extent::{
    Accepts, Begin, CHUNK_LEN, Committed, Finish, GrainMask, Item, Missing, Offer, PlanKind,
    ReplicaId, Root, Target, TargetState, VOLUME_LEN_MAX, chunk_count,
};

use crate::{
    Disk, Problem, TargetError,
    chunks::{Patch, Valid, bytes_of, chunk_buf, room_in, validate},
    own::Guard,
    pins::{Pin, Pins},
    sparse::Sparse,
    volume::VolumeStore,
};

/// The unit in which what stands there is compared with what should: the block of common file
/// systems.
const GRAIN_LEN: usize = 4096;

/// A file or device that becomes what a volume is.
///
/// A file gets the size of the volume. A device may be larger, and is left as it is behind the
/// volume.
pub struct InPlace<D: Disk> {
    name: String,
    key: ChunkKey,
    state: TargetState,
    volume: VolumeStore<D>,
    /// Chunks below this have come, if any were to come.
    next: Option<u64>,
    /// The size of the volume, if the plan said it.
    size: Option<u64>,
    written: Arc<AtomicU64>,
    pins: Pins,
    failed: bool,
    guard: Option<Guard>,
}

impl<D: Disk> InPlace<D> {
    /// What stands on `disk`, to be overwritten. `name` is for messages, `seed` must be fresh
    /// random bytes.
    pub fn new(name: &str, disk: D, seed: [u8; 32]) -> Self {
        let mut replica = ReplicaId([0; 16]);
        let chunk_key = blake3::derive_key("driftline in-place v1 chunk key", &seed);
        replica.0.copy_from_slice(&blake3::derive_key("driftline in-place v1 id", &seed)[..16]);
        Self {
            name: name.to_owned(),
            key: ChunkKey::new(&chunk_key),
            state: TargetState {
                replica,
                chunk_key,
                accepts: Accepts::Volume,
                ..TargetState::nothing()
            },
            volume: VolumeStore::new(disk, None),
            next: None,
            size: None,
            written: Arc::default(),
            pins: Pins::default(),
            failed: false,
            guard: None,
        }
    }

    /// That nothing stands there that could be overwritten.
    ///
    /// # Errors
    ///
    /// [`Problem::HoldsData`], and where it cannot be read.
    pub fn check_empty(&self) -> Result<(), TargetError> {
        let empty = self.volume.is_all_zero().and_then(|zero| match zero {
            true => Ok(()),
            false => Err(Problem::HoldsData),
        });
        empty.map_err(|problem| problem.of(&self.name))
    }

    /// How many bytes were written, now and later.
    pub fn written(&self) -> Arc<AtomicU64> {
        self.written.clone()
    }

    /// Keeps `guard` for as long as it is open.
    pub(crate) fn guarded_by(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Runs one call of a session; after an error it is of no use any more.
    fn run<T>(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<T, Problem>,
    ) -> Result<T, TargetError> {
        let result = if self.failed { Err(Problem::Poisoned) } else { call(self) };
        self.failed |= result.is_err();
        result.map_err(|problem| problem.of(&self.name))
    }

    fn admit(&self, offer: &Offer) -> Result<(), Problem> {
        let plan = &offer.plan;
        match plan.kind {
            PlanKind::Full => {}
            PlanKind::Stream => return Err(Problem::Opaque),
            PlanKind::Incremental => {
                return Err(Problem::NotTheBase { offered: plan.base, holds: None });
            }
            PlanKind::UpToDate | PlanKind::Scan => {
                return Err(Problem::Malformed("a restore is a copy of a whole volume"));
            }
        }
        plan.size.map_or(Ok(()), |size| self.check_room(size))
    }

    fn check_room(&self, size: u64) -> Result<(), Problem> {
        if size > VOLUME_LEN_MAX {
            return Err(Problem::Malformed("the volume is larger than any can be"));
        }
        self.volume.check_room(size)
    }

    /// Where the volume ends, as far as it is known: what stands behind that is none of it.
    fn end(&self) -> Result<u64, Problem> {
        self.size.map_or_else(|| self.volume.len(), Ok)
    }

    /// Reads a chunk as it stands there; zeros behind the end.
    fn chunk(&self, index: u64) -> Result<Vec<u8>, Problem> {
        let mut chunk = chunk_buf();
        let end = self.end()?.min(self.volume.len()?);
        self.volume.read_below(end, index * CHUNK_LEN, &mut chunk)?;
        Ok(chunk)
    }

    /// The data of `patch`, if it stands where it belongs.
    fn had(&self, patch: &Patch) -> Result<Option<Vec<u8>>, Problem> {
        let bytes = patch.blocks_of(self.chunk(patch.index)?);
        Ok(patch.is_named(&self.key, &bytes).then_some(bytes))
    }

    fn lacks_one(&mut self, item: &Item) -> Result<Missing, Problem> {
        let patch = match validate(item)? {
            Valid::Patch(patch) => patch,
            Valid::Zero(_) => return Ok(Missing::Nothing),
            Valid::Span(..) => return Err(Problem::Malformed("a whole copy has no spans")),
        };
        if patch.data.is_empty() {
            return Ok(Missing::Nothing);
        }
        let bytes = patch.blocks_of(self.chunk(patch.index)?);
        if patch.is_named(&self.key, &bytes) {
            return Ok(Missing::Nothing);
        }
        // Nothing is saved by telling hashes of zeros.
        if item.narrowable().is_none() || is_zero(&bytes) {
            return Ok(Missing::All);
        }
        let hashes = self.key.grains(patch.data, &bytes);
        let kept = self.pins.keep(&patch, Pin::Old { bytes, own: true });
        Ok(if kept { Missing::Unlike(hashes) } else { Missing::All })
    }

    fn patch_one(&mut self, item: &Item, grains: GrainMask, data: &[u8]) -> Result<bool, Problem> {
        self.pins.patch_item(&self.key, item, grains, data)
    }

    fn apply_one(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), Problem> {
        let chunks = match validate(item)? {
            Valid::Patch(patch) => {
                self.write_patch(&patch, data)?;
                patch.index..patch.index + 1
            }
            Valid::Zero(chunks) => {
                self.write_zeros(&chunks)?;
                chunks
            }
            Valid::Span(..) => return Err(Problem::Malformed("a whole copy has no spans")),
        };
        match self.next {
            Some(next) if chunks.start <= next => {
                self.next = Some(next.max(chunks.end));
                Ok(())
            }
            Some(next) => Err(Problem::Uncovered { offset: next * CHUNK_LEN }),
            None => Err(Problem::NoSession),
        }
    }

    fn write_patch(&mut self, patch: &Patch, data: Option<&[u8]>) -> Result<(), Problem> {
        data.map_or(Ok(()), |data| patch.check_data(&self.key, data))?;
        let bytes = match (data, self.pins.take_new(patch)) {
            (None, Some((bytes, _))) => Cow::from(bytes),
            _ => patch.take_data(data, || self.had(patch))?,
        };
        // A whole copy names everything: what it does not name is zero.
        let mut chunk = chunk_buf();
        patch.change(&mut chunk, &bytes);
        let kept = room_in(&self.volume, self.size, patch.offset(), &chunk)?;
        let mut volume = Sparse::new(&self.volume);
        let old = self.chunk(patch.index)?;
        self.replace(&mut volume, patch.offset(), &old[..kept], &chunk[..kept])?;
        volume.finish()
    }

    fn write_zeros(&self, chunks: &Range<u64>) -> Result<(), Problem> {
        let Some(whole) = bytes_of(chunks, self.end()?.min(self.volume.len()?)) else {
            return Ok(());
        };
        let zeros = chunk_buf();
        let mut buf = chunk_buf();
        let mut at = whole.offset();
        let mut volume = Sparse::new(&self.volume);
        while let Some(data) = self.volume.next_data(at)?.and_then(|data| data.clamp(whole.end())) {
            for piece in data.pieces(CHUNK_LEN) {
                let len = piece.len() as usize;
                self.volume.read_at(piece.offset(), &mut buf[..len])?;
                self.replace(&mut volume, piece.offset(), &buf[..len], &zeros[..len])?;
            }
            at = data.end();
        }
        volume.finish()
    }

    /// Writes `new` over `old`, which stands at `offset`, where they differ.
    fn replace(
        &self,
        volume: &mut Sparse<'_, D>,
        offset: u64,
        old: &[u8],
        new: &[u8],
    ) -> Result<(), Problem> {
        let differ = |at: usize| {
            let end = new.len().min(at + GRAIN_LEN);
            old[at..end] != new[at..end]
        };
        let mut at = 0;
        while at < new.len() {
            let start = at;
            while at < new.len() && differ(at) {
                at += GRAIN_LEN;
            }
            let end = at.min(new.len());
            if start < end {
                volume.write(offset + start as u64, &new[start..end])?;
                self.written.fetch_add((end - start) as u64, Ordering::Relaxed);
            }
            at = at.max(start + GRAIN_LEN);
        }
        Ok(())
    }

    fn finish(&self, finish: &Finish) -> Result<Committed, Problem> {
        let Some(next) = self.next else { return Err(Problem::NoSession) };
        let expected = finish.root.ok_or(Problem::MissingRoot)?;
        let size = finish.size.or(self.size);
        let size = size.ok_or(Problem::Malformed("a whole copy ended without its size"))?;
        self.check_room(size)?;
        if next < chunk_count(size) {
            return Err(Problem::Uncovered { offset: next * CHUNK_LEN });
        }
        if !self.volume.is_fixed() {
            self.volume.set_len(size)?;
        }
        self.volume.settle()?;
        let found = self.root(size)?;
        if found != expected {
            return Err(Problem::Restored { expected, found });
        }
        self.volume.check_in_place()?;
        Ok(Committed { generation: finish.tip, root: found, size, zeroed: None })
    }

    /// The root over all that stands there below `size`.
    fn root(&self, size: u64) -> Result<Root, Problem> {
        let count = chunk_count(size);
        let mut tree = TreeHasher::new(&self.key);
        let mut buf = chunk_buf();
        while tree.chunks() < count {
            let data = self.volume.next_data(tree.chunks() * CHUNK_LEN)?;
            let data = data.map_or(count..count, |data| {
                data.offset() / CHUNK_LEN..data.end().div_ceil(CHUNK_LEN)
            });
            tree.push_zeros(data.start.min(count) - tree.chunks());
            for index in tree.chunks()..data.end.min(count) {
                self.volume.read_below(size, index * CHUNK_LEN, &mut buf)?;
                tree.push(self.key.id(&buf));
            }
        }
        Ok(tree.into_root(size))
    }
}

impl<D: Disk> Target for InPlace<D> {
    type Error = TargetError;

    fn state(&self) -> TargetState {
        self.state.clone()
    }

    fn begin(&mut self, offer: &Offer) -> Result<Begin, TargetError> {
        self.run(|this| {
            this.admit(offer)?;
            this.size = offer.plan.size;
            this.next = Some(0);
            this.pins.clear();
            if let Some(guard) = &mut this.guard {
                guard.keep();
            }
            // A file that is longer is cut only once all has arrived.
            if let Some(size) = this.size
                && !this.volume.is_fixed()
                && this.volume.len()? < size
            {
                this.volume.set_len(size)?;
            }
            Ok(Begin { from: 0 })
        })
    }

    fn missing(&mut self, items: &[Item]) -> Result<Vec<Missing>, TargetError> {
        self.run(|this| items.iter().map(|item| this.lacks_one(item)).collect())
    }

    fn patch(&mut self, item: &Item, grains: GrainMask, data: &[u8]) -> Result<bool, TargetError> {
        self.run(|this| this.patch_one(item, grains, data))
    }

    fn apply(&mut self, item: &Item, data: Option<&[u8]>) -> Result<(), TargetError> {
        self.run(|this| this.apply_one(item, data))
    }

    /// Nothing is kept of a restore that was cut off.
    fn mark(&mut self, _: u64) -> Result<(), TargetError> {
        Ok(())
    }

    fn commit(&mut self, finish: &Finish) -> Result<Committed, TargetError> {
        self.run(|this| this.finish(finish))
    }
}

impl<D: Disk> fmt::Debug for InPlace<D> {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("InPlace");
        debug.field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}
