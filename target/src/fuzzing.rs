//! Entry points for fuzzing: recovery from arbitrary books. No part of the interface.
//!
//! What is found there is as trusted as the disk, so it must never panic, and never allocate
//! or work beyond what the volume's size allows.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use driftline_chunking::{ChunkKey, TreeHasher};
use driftline_extent::{
    BlockMask, CHUNK_LEN, ChunkId, Extent, Finish, Generation, Item, Offer, Plan, PlanKind,
    ReplicaId, Root, Standing, Target, chunk_count,
};

use crate::{
    Disk, Disks, Replica,
    codec::Writer,
    journal::{Header, Journal, Position, Record, Seal},
    repair::{ENTRY_LEN, MAGIC, VERSION},
    state::{Slots, State, Status},
};

const PAGE_LEN: u64 = 4096;
const VOLUME_LEN: u64 = 5 * CHUNK_LEN + 300;
const SECRET: [u8; 32] = [5; 32];

/// Opens a replica whose state file holds `data`, as it is and with its checksums mended.
#[doc(hidden)]
pub fn state(data: &[u8]) {
    let mut mended = Vec::new();
    for slot in data.chunks(4064).take(2) {
        mended.extend(Writer::default().bytes(slot).pad(4064).checksummed());
    }
    for bytes in [data, &mended] {
        let size = match Slots::peek(Memory::of(bytes)) {
            Ok(Some(state)) => state.size,
            Ok(None) | Err(_) => VOLUME_LEN,
        };
        let disks = Disks { state: Memory::of(bytes), ..empty(size) };
        exercise(disks, None);
    }
}

/// Opens a replica whose journal holds `data`: as it is, and read as records whose checksums
/// and ids are mended, not sealed and sealed.
#[doc(hidden)]
pub fn journal(data: &[u8]) {
    let mended = [false, true].map(|sealed| mend(data, sealed).into_disk());
    for journal in std::iter::once(Memory::of(data)).chain(mended) {
        exercise(Disks { journal, ..books() }, Some(Generation::zfs(2)));
    }
}

/// Opens a replica whose list of damage is made of `data`: as it is, and read as its entries.
#[doc(hidden)]
pub fn repair(data: &[u8]) {
    for bytes in [data, &damage(data)] {
        exercise(Disks { repair: Memory::of(bytes), ..books() }, None);
    }
}

/// A list of damage of [`books`] with the entries that `data` can be read as.
fn damage(data: &[u8]) -> Vec<u8> {
    let count = data.len() as u64 / ENTRY_LEN;
    Writer::default()
        .bytes(MAGIC)
        .u32(VERSION)
        .u32(0)
        .bytes(&header().replica.0)
        .u64(header().epoch)
        .u64(count)
        .bytes(&data[..(count * ENTRY_LEN) as usize])
        .checksummed()
}

/// The header of a journal that belongs to [`books`].
const fn header() -> Header {
    Header {
        kind: PlanKind::Incremental,
        replica: ReplicaId([1; 16]),
        epoch: 3,
        nonce: [2; 32],
        base: Some(Generation::zfs(1)),
        tip: Some(Generation::zfs(2)),
        volume: None,
        base_size: VOLUME_LEN,
    }
}

/// A journal of what `data` can be read as: a size at the tip, then records and payloads.
fn mend(data: &[u8], sealed: bool) -> Journal<Memory> {
    let key = ChunkKey::new(&SECRET);
    let (size, mut rest) = match data.split_first_chunk() {
        Some((size, rest)) => (u64::from_le_bytes(*size), rest),
        None => (VOLUME_LEN, data),
    };
    let journal = Journal::new(Memory::default());
    let _ = journal.create(&header());
    let mut end = Position::START;
    while let Some((body, after)) = rest.split_first_chunk::<120>() {
        rest = after;
        let Some((mut record, len)) = Record::decode(body) else { continue };
        let (payload, after) = rest.split_at(rest.len().min(len as usize));
        rest = after;
        if let Record::Chunk { patch, .. } = &mut record {
            patch.id = key.id(payload);
        }
        let _ = journal.append(&header(), &mut end, &record, payload);
    }
    if sealed {
        let (root, tip) = (Root([3; 32]), Generation::zfs(2));
        let _ = journal.commit(&Seal { header: header(), tip, size, root, end });
    }
    journal
}

/// Everything that looks at the books.
fn exercise(disks: Disks<Memory>, tip: Option<Generation>) {
    let Ok(mut replica) = Replica::open("fuzzed", disks, [4; 32]) else { return };
    let base = replica.state().generation;
    let _ = replica.verify(&mut |_| {});
    let plan = Plan {
        kind: PlanKind::Incremental,
        volume: None,
        base,
        tip,
        size: None,
        standing: Standing::Proven,
        bytes_expected: 0,
    };
    if replica.begin(&Offer { plan: plan.clone(), overwrite: false }).is_ok() {
        let tip = Generation::zfs(2);
        let _ = replica.commit(&Finish { tip, size: None, root: None });
    }
    // A source compares all, and some of it is another thing.
    let plan = Plan { kind: PlanKind::Scan, ..plan };
    if replica.begin(&Offer { plan, overwrite: false }).is_ok() {
        let (data, zero) = (BlockMask::ALL, BlockMask::NONE);
        let item = Item::Chunk { index: 1, data, zero, id: ChunkId([6; 32]) };
        let _ = replica.missing(&[Item::Zero { index: 0, count: 1 }, item]);
        let _ = replica.apply(&Item::Zero { index: 0, count: 1 }, None);
        let root = Some(Root([3; 32]));
        let _ = replica.commit(&Finish { tip: Generation::zfs(3), size: None, root });
    }
    let _ = replica.scrub(true, 1, &mut |_| {});
}

fn empty(size: u64) -> Disks<Memory> {
    let volume = Memory::default();
    let _ = volume.set_len(size);
    let book = Memory::default;
    let (state, journal, ids, overlay, repair) = (book(), book(), book(), book(), book());
    Disks { volume, state, journal, ids, overlay, repair }
}

/// A complete replica of zeros at generation 1 and epoch 3.
fn books() -> Disks<Memory> {
    let disks = empty(VOLUME_LEN);
    let mut tree = TreeHasher::new(&ChunkKey::new(&SECRET));
    tree.push_zeros(chunk_count(VOLUME_LEN));
    let (generation, root) = (Generation::zfs(1), tree.into_root(VOLUME_LEN));
    let state = State {
        epoch: 3,
        status: Status::Complete { generation, root },
        kept: false,
        ..State::of_nothing(ReplicaId([1; 16]), SECRET, VOLUME_LEN)
    };
    let Ok((mut slots, None)) = Slots::open(disks.state) else { return empty(VOLUME_LEN) };
    let _ = slots.commit(&state);
    Disks { state: slots.into_disk(), ..empty(VOLUME_LEN) }
}

/// A disk in memory, sparse, so that only what is written takes room.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, [u8; PAGE_LEN as usize]>,
}

impl Memory {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(bytes: &[u8]) -> Self {
        let memory = Self::default();
        let _ = memory.write_at(0, bytes);
        memory
    }
}

/// The pages that a range touches, each with the range within it.
fn pages(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let pieces = Extent::new(offset, len as u64).map(|extent| extent.pieces(PAGE_LEN));
    pieces.into_iter().flatten().map(|piece| {
        let start = (piece.offset() % PAGE_LEN) as usize;
        (piece.offset() / PAGE_LEN, start..start + piece.len() as usize)
    })
}

impl Disk for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().len)
    }

    fn is_fixed(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > content.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = buf;
        for (page, part) in pages(offset, rest.len()) {
            let (now, later) = rest.split_at_mut(part.len());
            rest = later;
            match content.pages.get(&page) {
                Some(bytes) => now.copy_from_slice(&bytes[part]),
                None => now.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.content();
        let end = offset.checked_add(bytes.len() as u64);
        content.len = content.len.max(end.ok_or(io::ErrorKind::FileTooLarge)?);
        let mut rest = bytes;
        for (page, part) in pages(offset, rest.len()) {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            let page = content.pages.entry(page).or_insert([0; PAGE_LEN as usize]);
            page[part].copy_from_slice(now);
        }
        Ok(())
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        let mut content = self.content();
        let touched = extent.align_out(PAGE_LEN);
        let range = touched.offset() / PAGE_LEN..touched.end() / PAGE_LEN;
        for (page, bytes) in content.pages.range_mut(range) {
            let start = extent.offset().saturating_sub(page * PAGE_LEN).min(PAGE_LEN);
            let end = extent.end().saturating_sub(page * PAGE_LEN).min(PAGE_LEN);
            bytes[start as usize..end as usize].fill(0);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if let Some(cut) = Extent::from_bounds(len, Disk::len(self)?) {
            self.zero(cut)?;
        }
        let mut content = self.content();
        content.len = len;
        content.pages.retain(|page, _| *page < len.div_ceil(PAGE_LEN));
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let content = self.content();
        let page = content.pages.range(from / PAGE_LEN..).next().map(|(page, _)| page * PAGE_LEN);
        let data =
            page.and_then(|page| Extent::new(page.max(from), page + PAGE_LEN - page.max(from)));
        Ok(data.and_then(|data| data.clamp(content.len)))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn reopen(&mut self, _writable: bool) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chunks::Patch, repair::Repairs};
    use proptest::prelude::*;

    /// A mix of plausible and arbitrary records, in the form that `journal` reads.
    fn records() -> impl Strategy<Value = Vec<u8>> {
        let record = (0..5_u32, any::<u64>(), any::<u64>(), any::<u8>(), any::<bool>());
        let records = prop::collection::vec(record, 0..12);
        (any::<u64>(), records).prop_map(|(size, records)| {
            let mut bytes = (size >> (size % 60)).to_le_bytes().to_vec();
            for (kind, index, count, mask, wild) in records {
                let data = BlockMask(u128::from(mask));
                let (index, count) = if wild { (index, count) } else { (index % 8, count % 8) };
                let body = Writer::default()
                    .u32(kind)
                    .u32(if kind == 1 { data.byte_count() as u32 } else { 0 })
                    .u64(index)
                    .u64(if kind == 1 { 0 } else { count })
                    .u128(if kind == 1 { data.0 } else { 0 })
                    .u128(u128::from(!mask) << 64)
                    .pad(120)
                    .into_bytes();
                bytes.extend(body);
                bytes.extend(vec![mask; data.byte_count() as usize]);
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_journal_is_survived(data in records(), raw in prop::collection::vec(any::<u8>(), 0..9000)) {
            journal(&data);
            journal(&raw);
        }

        #[test]
        fn any_list_of_damage_is_survived(
            mut data in prop::collection::vec(any::<u8>(), 0..300),
            index in 0..8_u8,
        ) {
            repair(&data);
            if data.len() > 40 {
                // A zero chunk that rots, as it is listed.
                data[..40].fill(0);
                data[0] = index;
            }
            repair(&data);
        }

        #[test]
        fn any_state_is_survived(
            mut data in prop::collection::vec(any::<u8>(), 232..400),
            status in 1..4_u8,
            size in 0..1_u64 << 61,
        ) {
            state(&data);
            data[..8].copy_from_slice(b"DRIFTST\n");
            data[8..16].copy_from_slice(&[1, 0, 0, 0, status, 0, 0, 0]);
            data[80..88].fill(0);
            data[104..112].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
            data[176..184].copy_from_slice(&(size >> (size % 61)).to_le_bytes());
            data[184..192].fill(0);
            state(&data);
        }
    }

    /// The fuzzer gets past the checksum.
    #[test]
    fn a_mended_list_of_damage_is_believed() {
        let mut data = vec![0; ENTRY_LEN as usize + 5];
        (data[0], data[50]) = (4, 9);
        let disks = books();
        let state = Slots::peek(disks.state).unwrap().unwrap();
        let list = |bytes: &[u8]| Repairs::open(Memory::of(bytes), Some(&state)).unwrap();
        assert!(list(&damage(&data)).contains(4) && list(&data).is_empty());
    }

    /// The fuzzer gets past the checksums.
    #[test]
    fn mended_records_are_believed() {
        let patch =
            Patch { index: 0, data: BlockMask(1), zero: BlockMask::NONE, id: ChunkId::ZERO };
        let record = Record::Chunk { patch, after: ChunkId([8; 32]) };
        let mut data = VOLUME_LEN.to_le_bytes().to_vec();
        data.extend(&record.encode(&[0; 32], &[0; 32])[..120]);
        data.extend([6; 512]);
        let (journal, header) = (mend(&data, true), header());
        assert_eq!(journal.seal().unwrap().map(|seal| seal.end.records), Some(1));
        let mut payload = Vec::new();
        let key = ChunkKey::new(&SECRET);
        assert!(journal.read(&header).next_proven(&key, &mut payload).unwrap().is_some());
        assert_eq!(payload, [6; 512]);
        // With the right ids it is completed when the replica is opened.
        let mut chunk = vec![0; CHUNK_LEN as usize];
        chunk[..512].fill(6);
        let record = Record::Chunk { patch, after: key.id(&chunk) };
        data[8..128].copy_from_slice(&record.encode(&[0; 32], &[0; 32])[..120]);
        let disks = Disks { journal: mend(&data, true).into_disk(), ..books() };
        // Only the root that is made up is not what it leads to.
        let mut replica = Replica::open("fuzzed", disks, [4; 32]).unwrap();
        let error = replica.verify(&mut |_| {}).unwrap_err();
        assert!(matches!(error.problem, crate::Problem::ListDamaged));
    }
}
