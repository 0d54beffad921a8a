//! The source's storage: what the volume holds, its snapshots, and what it says has changed.
//!
//! It keeps its record of change as the real one does, not by comparing images: births of
//! blocks as ZFS, bitmap and activity log as DRBD, or none at all. The streams and metadata that
//! come of it are read by the real adapters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use driftline_drbd::{
    AL_EXTENT_LEN, Layout,
    testing::{Log, PeerSpec, SparseDisk, Spec},
};
use driftline_extent::{CHUNK_LEN, Extent, Generation};
use driftline_zfs::{
    ByteOrder,
    testing::{Opening, StreamWriter, compress},
};

use crate::disk::{Image, Rng};

/// What DRBD's bits stand for.
const BIT_LEN: u64 = 4096;

/// The ids of both nodes of a pair add up to this. Between them is the peer that never connects.
const OTHER_NODE: i32 = 2;

/// How a storage records what changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Send streams.
    Zfs,
    /// Bitmap and activity log.
    Drbd,
    /// Not at all.
    Plain,
}

/// A snapshot, or what is left of it.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// Its name; none where only the content names it.
    pub(super) generation: Option<Generation>,
    pub(super) image: Image,
    /// Whether only its place in time is left: a bookmark.
    pub(super) bookmark: bool,
    /// Whether DRBD's UUID changed right after it, so that it names this snapshot and no other.
    pub(super) rotated: bool,
    record: Record,
}

/// What a snapshot keeps of the record of change.
#[derive(Clone, Debug)]
enum Record {
    Births(BTreeMap<u64, u64>, u64),
    Metadata(Box<Spec>),
    None,
}

/// A volume and everything that its storage knows of it.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) kind: Kind,
    pub(super) live: Image,
    /// Oldest first.
    pub(super) snapshots: Vec<Snapshot>,
    /// Sizes are multiples of this.
    pub(super) block_len: u64,
    /// Names that were given so far: clones share the counter, as no two names are equal.
    pub(super) named: u64,
    /// How often the record was led to miss a change.
    pub(super) lies: u64,
    /// Whether whoever takes snapshots calls all of them rotated: a bug.
    pub(super) believes: bool,
    births: BTreeMap<u64, u64>,
    now: u64,
    device: Device,
    /// The metadata of the other node of a pair, whose data are the same.
    other: Option<Device>,
    /// Whether there ever was one.
    paired: bool,
}

/// DRBD's metadata, on disk and in memory.
#[derive(Clone, Debug)]
struct Device {
    spec: Spec,
    /// Bits that are set in memory, and only on disk once their region is no longer hot.
    bits: BTreeSet<u64>,
}

impl Storage {
    pub(super) fn new(kind: Kind, size: u64, block_len: u64, rng: &mut Rng) -> Self {
        let mut spec = Spec::primary(rng.below(2) == 0, 0, 0x10);
        spec.layout = Layout::External;
        spec.device_len = 128 << 10;
        spec.log = Log::new((1, 8), 1 + rng.below(3) as u16);
        spec.history.clear();
        let mut live = Image::default();
        live.set_len(size);
        let device = Device { spec, bits: BTreeSet::new() };
        let (births, snapshots) = (BTreeMap::new(), Vec::new());
        let (named, lies, now, other) = (8, 0, 1, None);
        let (believes, paired) = (false, false);
        Self {
            kind,
            live,
            snapshots,
            block_len,
            named,
            lies,
            believes,
            births,
            now,
            device,
            other,
            paired,
        }
    }

    pub(super) fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }

    /// The newest snapshot of this name, or what is left of it.
    pub(super) fn find(&self, generation: &Generation) -> Option<&Snapshot> {
        self.snapshots.iter().rev().find(|s| s.generation.as_ref() == Some(generation))
    }

    /// Writes `bytes`, or zeros where there are none. `told`: whether the record of change hears
    /// of it.
    pub(super) fn change(&mut self, extent: Extent, bytes: Option<&[u8]>, told: bool) {
        let Some(extent) = extent.clamp(self.live.len) else { return };
        match bytes {
            Some(bytes) => self.live.write(extent.offset(), &bytes[..extent.len() as usize]),
            None => self.live.zero(extent.offset()..extent.end()),
        }
        if told {
            self.note(extent);
        } else {
            self.lies += 1;
        }
    }

    fn note(&mut self, extent: Extent) {
        let blocks = |len: u64| extent.offset() / len..extent.end().div_ceil(len);
        match self.kind {
            Kind::Zfs => {
                let now = self.now;
                self.births.extend(blocks(self.block_len).map(|block| (block, now)));
            }
            Kind::Drbd => {
                for device in self.other.iter_mut().chain([&mut self.device]) {
                    device.note(extent);
                }
            }
            Kind::Plain => {}
        }
    }

    pub(super) fn resize(&mut self, size: u64) {
        let size = size.max(1).next_multiple_of(self.block_len);
        // What is cut off is a hole from now on, whatever size the volume gets later.
        if let Some(cut) = Extent::from_bounds(size, self.live.len)
            && self.kind == Kind::Zfs
        {
            self.note(cut);
        }
        self.live.set_len(size);
    }

    /// Takes a snapshot. `rotated`: whether DRBD's UUID changes at once, before anything else is
    /// written; otherwise two snapshots have one name.
    pub(super) fn snapshot(&mut self, rotated: bool, cumulative: bool) {
        let image = self.live.clone();
        let (generation, record) = match self.kind {
            Kind::Zfs => {
                self.named += 1;
                let record = Record::Births(self.births.clone(), self.now);
                (Some(Generation::zfs(self.named)), record)
            }
            Kind::Drbd => {
                let spec = self.device.on_disk(self.live.len);
                let record = Record::Metadata(Box::new(spec));
                let named = rotated || self.believes;
                (named.then(|| Generation::drbd(self.device.spec.current)), record)
            }
            Kind::Plain => (None, Record::None),
        };
        self.snapshots.push(Snapshot { generation, image, bookmark: false, rotated, record });
        self.now += 1;
        if self.kind == Kind::Drbd && rotated {
            self.rotate(cumulative);
        }
    }

    fn rotate(&mut self, cumulative: bool) {
        self.named += 1;
        let fresh = self.named << 8;
        let spec = &mut self.device.spec;
        let past = std::mem::replace(&mut spec.current, fresh);
        let forgotten = if cumulative {
            past
        } else {
            self.device.bits.clear();
            spec.bits[0].clear();
            spec.flags &= !0x40;
            std::mem::replace(&mut spec.peers[0].uuid, past)
        };
        if forgotten > 1 {
            self.device.remember(forgotten);
        }
        // Both nodes of a pair have one current UUID; bitmaps are each node's own.
        if let Some(other) = &mut self.other {
            other.spec.current = fresh;
            other.remember(past);
        }
    }

    /// Whether there is another node, or may be one: only metadata of DRBD 9 name one, and what was
    /// rolled back is no part of a pair any more.
    pub(super) const fn may_be_a_pair(&self) -> bool {
        let fits = matches!(self.kind, Kind::Drbd) && self.device.spec.v09;
        fits && (self.other.is_some() || !self.paired)
    }

    /// The source is the other node of a pair from now on. `cleared`: where that is new, its bitmap
    /// was cleared at another instant of the same name.
    pub(super) fn switch_node(&mut self, cleared: bool) {
        self.paired = true;
        let other = self.other.take().unwrap_or_else(|| {
            let mut other = self.device.clone();
            other.spec.node_id = OTHER_NODE - other.spec.node_id;
            if cleared {
                other.bits.clear();
                other.spec.bits[0].clear();
            }
            other
        });
        self.other = Some(std::mem::replace(&mut self.device, other));
    }

    /// The machine dies and comes back: DRBD sets the bits of all regions that were hot.
    pub(super) fn crash(&mut self) {
        let device = &mut self.device;
        let size = self.live.len;
        for region in device.spec.log.hot() {
            device.bits.extend(bits_of(region, size));
        }
        device.spec.bits[0].clone_from(&device.bits);
        device.spec.flags |= 0x40;
        let (shape, slots) = (device.spec.log.shape, device.spec.log.table.len() as u16);
        device.spec.log = Log::new(shape, slots);
    }

    /// Goes back to a snapshot. ZFS destroys what came later; DRBD's metadata go back as well,
    /// and get a new UUID at once if `rotated`.
    pub(super) fn roll_back(&mut self, to: usize, rotated: bool) {
        let Some(snapshot) = self.snapshots.get(to).filter(|s| !s.bookmark).cloned() else {
            return;
        };
        self.live = snapshot.image;
        match snapshot.record {
            Record::Births(births, _) => {
                self.births = births;
                self.snapshots.truncate(to + 1);
            }
            Record::Metadata(spec) => {
                let bits = spec.bits[0].clone();
                self.device = Device { spec: *spec, bits };
                self.other = None;
                self.snapshots.truncate(to + 1);
                // It comes up as after a crash, from what was on disk.
                self.crash();
                if rotated {
                    self.rotate(false);
                }
            }
            Record::None => {}
        }
    }

    /// A snapshot is destroyed; ZFS may keep a bookmark of it.
    pub(super) fn destroy(&mut self, at: usize, bookmark: bool) {
        if at >= self.snapshots.len() {
        } else if bookmark && self.kind == Kind::Zfs {
            self.snapshots[at].bookmark = true;
        } else {
            self.snapshots.remove(at);
        }
    }

    /// Everything that the record of `tip` says has changed since `base`; `None` without one.
    pub(super) fn claim(
        &self,
        base: &Generation,
        tip: &Snapshot,
        noise: &[u64],
    ) -> Option<Vec<Extent>> {
        match &tip.record {
            Record::Births(..) => {
                let base = self.find(base)?;
                let size = tip.image.len;
                let mut extents: Vec<Extent> = self
                    .blocks(base, tip, noise)
                    .into_iter()
                    .filter_map(|block| Extent::new(block * self.block_len, self.block_len))
                    .collect();
                // The hole up to the end.
                let tail = self.tail(tip, noise);
                extents.extend(Extent::from_bounds(tail, size.max(tail)));
                Some(extents)
            }
            Record::Metadata(spec) => {
                let size = spec.sectors * 512;
                let regions = spec.log.hot();
                let mut pages: BTreeSet<u64> = spec.bits[0].clone();
                pages.extend(regions.into_iter().flat_map(|region| bits_of(region, size)));
                // Of DRBD 9 that flag is set on every Primary, and counts where the log is empty.
                if spec.flags & 0x40 != 0 && (!spec.v09 || spec.log.hot().is_empty()) {
                    pages.extend(bits_of((size.saturating_sub(1) / AL_EXTENT_LEN) as u32, size));
                }
                let extents = pages.into_iter().filter_map(|page| {
                    Extent::new(page * BIT_LEN, BIT_LEN).and_then(|extent| extent.clamp(size))
                });
                Some(extents.collect())
            }
            Record::None => None,
        }
    }

    /// The blocks that a stream from `base` has: those born later, and holes told of besides.
    fn blocks(&self, base: &Snapshot, tip: &Snapshot, noise: &[u64]) -> BTreeSet<u64> {
        let (Record::Births(births, _), Record::Births(_, since)) = (&tip.record, &base.record)
        else {
            return BTreeSet::new();
        };
        let end = self.tail(tip, noise) / self.block_len;
        let born = births.iter().filter(|(_, birth)| *birth > since).map(|(block, _)| *block);
        let hole = |block: &u64| self.is_hole(tip, *block);
        born.chain(noise.iter().copied().filter(hole)).filter(|block| *block < end).collect()
    }

    fn is_hole(&self, tip: &Snapshot, block: u64) -> bool {
        let (start, end) = (block * self.block_len, (block + 1) * self.block_len);
        tip.image.next_data(start).is_none_or(|data| data.offset() >= end)
    }

    /// Where the hole starts that reaches to the end: behind the last block, or at the end.
    fn tail(&self, tip: &Snapshot, noise: &[u64]) -> u64 {
        if noise.len().is_multiple_of(2) {
            return tip.image.len;
        }
        let mut last = 0;
        while let Some(data) = tip.image.next_data(last) {
            last = data.end();
        }
        last.next_multiple_of(self.block_len).min(tip.image.len)
    }

    /// What `zfs send` writes: from `base`, or everything. `codec` is how blocks are compressed.
    pub(super) fn stream(
        &self,
        base: Option<&Generation>,
        tip: &Snapshot,
        (codec, noise): (u8, &[u64]),
    ) -> Vec<u8> {
        let guid = |generation: Option<&Generation>| {
            generation.and_then(Generation::zfs_guid).unwrap_or_default()
        };
        let found = base.and_then(|base| self.find(base));
        let opening = Opening::volume(guid(base), guid(tip.generation.as_ref()));
        let tail = self.tail(tip, noise);
        let mut writer = StreamWriter::new(ByteOrder::Little)
            .begin(&opening)
            .volume(self.block_len as u32, tail);
        let all =
            || (0..tail / self.block_len).filter(|block| !self.is_hole(tip, *block)).collect();
        let blocks = found.map_or_else(all, |base| self.blocks(base, tip, noise));
        let mut holes: Option<(u64, u64)> = None;
        for block in blocks {
            let at = block * self.block_len;
            let hole = self.is_hole(tip, block);
            if let Some((start, end)) = holes.take_if(|(_, end)| !hole || *end != at) {
                writer = writer.free(1, start, end - start);
            }
            if hole {
                holes = Some((holes.map_or(at, |hole| hole.0), at + self.block_len));
            } else {
                let mut bytes = vec![0; self.block_len as usize];
                tip.image.read(at, &mut bytes);
                // What does not shrink by an eighth is stored as it is.
                let fits = compress(codec, &bytes).len() <= bytes.len() / 8 * 7;
                writer = writer.write_as(if fits { codec } else { 0 }, 1, at, &bytes);
            }
        }
        if let Some((start, end)) = holes {
            writer = writer.free(1, start, end - start);
        }
        if found.is_none_or(|base| base.image.len != tip.image.len) {
            writer = writer.size(tip.image.len);
        }
        writer.end().into_bytes()
    }

    /// The device beside a snapshot that has DRBD's metadata. `log`: whether its activity log is
    /// shown as it is, or as one that names nothing. `node`: whether the node's id is shown as it is.
    pub(super) fn metadata(snapshot: &Snapshot, log: bool, node: bool) -> Arc<SparseDisk> {
        let mut spec = match &snapshot.record {
            Record::Metadata(spec) => (**spec).clone(),
            _ => Spec::primary(true, 0, 0),
        };
        if !log {
            let is_used = !spec.log.hot().is_empty();
            spec.log = Log::new(spec.log.shape, spec.log.table.len() as u16);
            if is_used {
                spec.log.write(&[]);
            }
        }
        if !node && spec.v09 {
            spec.node_id = 0;
        }
        Arc::new(spec.to_disk())
    }

    /// Chunks there are, the last one perhaps in part.
    pub(super) const fn chunks(&self) -> u64 {
        self.live.len.div_ceil(CHUNK_LEN)
    }
}

/// The bits of a region of a volume of `size` bytes.
fn bits_of(region: u32, size: u64) -> std::ops::Range<u64> {
    let start = u64::from(region) * AL_EXTENT_LEN;
    let end = (start + AL_EXTENT_LEN).min(size);
    start.min(end) / BIT_LEN..end.div_ceil(BIT_LEN)
}

impl Device {
    /// Notes a write in its log and its bitmap.
    fn note(&mut self, extent: Extent) {
        for piece in extent.pieces(AL_EXTENT_LEN) {
            self.heat((piece.offset() / AL_EXTENT_LEN) as u32);
            self.bits.extend(piece.offset() / BIT_LEN..piece.end().div_ceil(BIT_LEN));
        }
    }

    /// Keeps an UUID that nothing else names any more.
    fn remember(&mut self, past: u64) {
        let history = &mut self.spec.history;
        history.insert(0, past);
        history.truncate(if self.spec.v09 { 32 } else { 2 });
    }

    /// A region is about to be written: it gets a slot of the log, and the region that leaves
    /// it has its bits written out first.
    fn heat(&mut self, region: u32) {
        let log = &self.spec.log;
        if log.table.contains(&region) {
            return;
        }
        let slots = log.table.len() as u32;
        let free = log.table.iter().position(|held| *held == u32::MAX);
        let slot = free.unwrap_or((log.number % slots) as usize);
        let leaves = log.table[slot];
        if leaves != u32::MAX {
            let bits = bits_of(leaves, u64::MAX >> 1);
            self.spec.bits[0].extend(self.bits.range(bits).copied());
        }
        self.spec.log.write(&[(slot as u16, region)]);
    }

    /// The metadata as a snapshot of the disk has them: without what is only in memory.
    fn on_disk(&self, size: u64) -> Spec {
        let mut spec = self.spec.clone();
        spec.sectors = size / 512;
        let bits = size.div_ceil(BIT_LEN);
        spec.bits[0].retain(|bit| *bit < bits);
        spec.peers = vec![PeerSpec { node: 1, uuid: self.spec.peers[0].uuid, flags: 0, slot: 0 }];
        spec
    }
}
