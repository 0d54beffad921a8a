//! The redo journal: an increment as it was received, until it is whole.
//!
//! All numbers are little-endian. The header stands at byte 0, the seal at 4096 and again at
//! 6144, records from 8192 on, one after the other.
//!
//! | header | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `DRIFTJN\n` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | kind of plan: 1 incremental, 2 full, 3 scan |
//! | 16 | 16 | replica id |
//! | 32 | 8 | epoch: that of the state record that the increment starts from |
//! | 40 | 32 | nonce, random |
//! | 72 | 40 | base generation, optional |
//! | 112 | 40 | tip generation, if known beforehand |
//! | 152 | 24 | source volume id, optional |
//! | 176 | 8 | size of the volume at the base |
//! | 184 | 296 | zero |
//! | 480 | 32 | BLAKE3 of bytes 0 to 480 |
//!
//! | seal | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `DRIFTSL\n` |
//! | 8 | 512 | the header again |
//! | 520 | 40 | tip generation |
//! | 560 | 8 | size of the volume at the tip |
//! | 568 | 32 | root at the tip |
//! | 600 | 8 | number of records |
//! | 608 | 8 | where they end, in bytes |
//! | 616 | 32 | checksum of the last record |
//! | 648 | 32 | BLAKE3 of bytes 0 to 648 |
//!
//! | record | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | kind: 1 chunk, 2 zero, 3 mark |
//! | 4 | 4 | payload length in bytes |
//! | 8 | 8 | chunk, zero: index; mark: watermark |
//! | 16 | 8 | zero: count |
//! | 24 | 16 | chunk: mask of data blocks |
//! | 40 | 16 | chunk: mask of zero blocks |
//! | 56 | 32 | chunk: id of the payload |
//! | 88 | 32 | chunk: id of the whole chunk afterwards |
//! | 120 | 32 | checksum |
//! | 152 | | payload: the bytes of the data blocks, ascending |
//!
//! Fields that a kind does not use are zero. A record's checksum is BLAKE3 keyed with the
//! nonce, over the checksum of the record before (of the first: 32 zero bytes) and bytes 0 to
//! 120. So what an older journal left behind is never believed, and neither is a record that
//! is not followed from the first one on. The payload is proven by its id.
//!
//! The seal is written only after all records were synced and read back, and the volume is
//! touched only after the seal was synced. So behind a valid seal a damaged record is damage,
//! and without one the volume is still at the base. That is why there are two: either will do.

use driftline_chunking::ChunkKey;
use driftline_extent::{
    BlockMask, ChunkId, Generation, PlanKind, ReplicaId, Root, VOLUME_LEN_MAX, VolumeId,
    chunk_count,
};

use crate::{
    Disk, Part, Problem,
    chunks::Patch,
    codec::{CHECKSUM_LEN, Reader, Writer, checked},
    disk::Store,
    state::{State, Status},
};

const MAGIC: &[u8; 8] = b"DRIFTJN\n";
const SEAL_MAGIC: &[u8; 8] = b"DRIFTSL\n";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 512;
/// Where the two copies of the seal stand.
const SEALS_AT: [u64; 2] = [4096, 6144];
const SEAL_LEN: usize = 680;
const RECORDS_AT: u64 = 8192;
const RECORD_LEN: usize = 152;

/// Which increment a journal is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: PlanKind,
    pub(crate) replica: ReplicaId,
    pub(crate) epoch: u64,
    pub(crate) nonce: [u8; 32],
    pub(crate) base: Option<Generation>,
    pub(crate) tip: Option<Generation>,
    pub(crate) volume: Option<VolumeId>,
    pub(crate) base_size: u64,
}

impl Header {
    /// Whether the increment is one of a replica in this state.
    pub(crate) fn starts_from(&self, state: &State) -> bool {
        self.replica == state.replica
            && self.epoch == state.epoch
            && self.base == state.generation()
            && self.base_size == state.size
    }

    fn encode(&self) -> Result<Vec<u8>, Problem> {
        let kind = match self.kind {
            PlanKind::Incremental => 1,
            PlanKind::Full => 2,
            PlanKind::Scan => 3,
            PlanKind::UpToDate => return Err(Problem::Malformed("nothing is to be done")),
            PlanKind::Stream => return Err(Problem::Opaque),
        };
        let header = Writer::default()
            .bytes(MAGIC)
            .u32(VERSION)
            .u32(kind)
            .bytes(&self.replica.0)
            .u64(self.epoch)
            .bytes(&self.nonce)
            .generation(self.base)
            .generation(self.tip)
            .volume(self.volume)
            .u64(self.base_size)
            .pad(HEADER_LEN - CHECKSUM_LEN)
            .checksummed();
        Ok(header)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Reader(checked(bytes)?);
        if &fields.array()? != MAGIC || fields.u32()? != VERSION {
            return None;
        }
        let kind = match fields.u32()? {
            1 => PlanKind::Incremental,
            2 => PlanKind::Full,
            3 => PlanKind::Scan,
            _ => return None,
        };
        Some(Self {
            kind,
            replica: fields.replica()?,
            epoch: fields.u64()?,
            nonce: fields.array()?,
            base: fields.generation()?,
            tip: fields.generation()?,
            volume: fields.volume()?,
            base_size: fields.u64().filter(|size| *size <= VOLUME_LEN_MAX)?,
        })
    }
}

/// What a sealed journal leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    pub(crate) header: Header,
    pub(crate) tip: Generation,
    pub(crate) size: u64,
    pub(crate) root: Root,
    pub(crate) end: Position,
}

impl Seal {
    /// The state of a replica at `base` once the increment is in place.
    pub(crate) fn state_after(&self, base: &State) -> State {
        State {
            epoch: self.header.epoch + 1,
            volume: self.header.volume.or(base.volume),
            size: self.size,
            status: Status::Complete { generation: self.tip, root: self.root },
            kept: false,
            ..base.clone()
        }
    }

    fn encode(&self) -> Result<Vec<u8>, Problem> {
        let seal = Writer::default()
            .bytes(SEAL_MAGIC)
            .bytes(&self.header.encode()?)
            .generation(Some(self.tip))
            .u64(self.size)
            .bytes(&self.root.0)
            .u64(self.end.records)
            .u64(self.end.at)
            .bytes(&self.end.chain)
            .checksummed();
        debug_assert_eq!(seal.len(), SEAL_LEN);
        Ok(seal)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Reader(checked(bytes)?);
        if &fields.array()? != SEAL_MAGIC {
            return None;
        }
        let header: [u8; HEADER_LEN] = fields.array()?;
        Some(Self {
            header: Header::decode(&header)?,
            tip: fields.generation()??,
            size: fields.u64().filter(|size| *size <= VOLUME_LEN_MAX)?,
            root: Root(fields.array()?),
            end: Position {
                records: fields.u64()?,
                at: fields.u64().filter(|at| *at >= RECORDS_AT)?,
                chain: fields.array()?,
            },
        })
    }
}

/// One thing the journal says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// Blocks of a chunk change, and what the whole chunk is named `after`. With no block
    /// at all, the end of the volume cuts the chunk.
    Chunk { patch: Patch, after: ChunkId },
    /// Chunks become zero; at least one.
    Zero { index: u64, count: u64 },
    /// Every chunk below was received.
    Mark { watermark: u64 },
}

impl Record {
    /// Where the chunk starts, if it gets data.
    pub(crate) const fn data_at(&self) -> Option<u64> {
        match self {
            Self::Chunk { patch, .. } if !patch.data.is_empty() => Some(patch.offset()),
            Self::Chunk { .. } | Self::Zero { .. } | Self::Mark { .. } => None,
        }
    }

    pub(crate) fn encode(&self, chain: &[u8; 32], nonce: &[u8; 32]) -> Vec<u8> {
        let none = BlockMask::NONE;
        let (kind, index, count, data, zero, id, after) = match *self {
            Self::Chunk { patch: Patch { index, data, zero, id }, after } => {
                (1, index, 0, data, zero, id, after)
            }
            Self::Zero { index, count } => {
                (2, index, count, none, none, ChunkId::ZERO, ChunkId::ZERO)
            }
            Self::Mark { watermark } => (3, watermark, 0, none, none, ChunkId::ZERO, ChunkId::ZERO),
        };
        let body = Writer::default()
            .u32(kind)
            .u32(data.byte_count() as u32)
            .u64(index)
            .u64(count)
            .u128(data.0)
            .u128(zero.0)
            .bytes(&id.0)
            .bytes(&after.0)
            .into_bytes();
        let checksum = link(nonce, chain, &body);
        Writer::default().bytes(&body).bytes(&checksum).into_bytes()
    }

    /// The record, and how long its payload is. A count or an index is never beyond the
    /// largest volume, a payload never longer than a chunk.
    pub(crate) fn decode(body: &[u8]) -> Option<(Self, u64)> {
        let mut fields = Reader(body);
        let (kind, payload_len) = (fields.u32()?, u64::from(fields.u32()?));
        let index = fields.u64().filter(|index| *index <= chunk_count(VOLUME_LEN_MAX))?;
        let count = fields.u64()?;
        let (data, zero) = (BlockMask(fields.u128()?), BlockMask(fields.u128()?));
        let (id, after) = (ChunkId(fields.array()?), ChunkId(fields.array()?));
        if payload_len != data.byte_count() || !data.intersect(zero).is_empty() {
            return None;
        }
        let end = index.checked_add(count).filter(|end| *end <= chunk_count(VOLUME_LEN_MAX))?;
        let record = match kind {
            1 if index < chunk_count(VOLUME_LEN_MAX) => {
                Self::Chunk { patch: Patch { index, data, zero, id }, after }
            }
            2 if end > index && payload_len == 0 => Self::Zero { index, count },
            3 if payload_len == 0 => Self::Mark { watermark: index },
            _ => return None,
        };
        Some((record, payload_len))
    }
}

/// The checksum of a record.
fn link(nonce: &[u8; 32], chain: &[u8; 32], body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(nonce);
    hasher.update(chain).update(body);
    *hasher.finalize().as_bytes()
}

/// A place between two records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    /// In bytes.
    pub(crate) at: u64,
    /// How many records stand before it.
    pub(crate) records: u64,
    /// Checksum of the last of them.
    pub(crate) chain: [u8; 32],
}

impl Position {
    pub(crate) const START: Self = Self { at: RECORDS_AT, records: 0, chain: [0; 32] };
}

/// The journal file.
#[derive(Debug)]
pub(crate) struct Journal<D> {
    store: Store<D>,
}

impl<D: Disk> Journal<D> {
    pub(crate) const fn new(disk: D) -> Self {
        Self { store: Store::new(Part::Journal, disk) }
    }

    pub(crate) fn into_disk(self) -> D {
        self.store.into_disk()
    }

    /// See [`Store::settle`].
    pub(crate) fn settle(&self) -> Result<(), Problem> {
        self.store.settle()
    }

    /// The increment that was being received, if any was.
    pub(crate) fn header(&self) -> Result<Option<Header>, Problem> {
        let mut bytes = [0; HEADER_LEN];
        self.store.read_below(self.store.len()?, 0, &mut bytes)?;
        Ok(Header::decode(&bytes))
    }

    /// The increment that is to be completed, if any is.
    pub(crate) fn seal(&self) -> Result<Option<Seal>, Problem> {
        for at in SEALS_AT {
            let mut bytes = [0; SEAL_LEN];
            self.store.read_below(self.store.len()?, at, &mut bytes)?;
            if let Some(seal) = Seal::decode(&bytes) {
                return Ok(Some(seal));
            }
        }
        Ok(None)
    }

    /// Begins an empty journal.
    pub(crate) fn create(&self, header: &Header) -> Result<(), Problem> {
        let header = header.encode()?;
        self.clear()?;
        self.store.write_at(0, &header)
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> Result<bool, Problem> {
        Ok(self.store.len()? == 0)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) -> Result<(), Problem> {
        self.store.set_len(0)
    }

    /// Forgets what stands behind `end`.
    pub(crate) fn truncate(&self, end: &Position) -> Result<(), Problem> {
        self.store.set_len(end.at)
    }

    /// Appends a record and returns where its payload stands.
    pub(crate) fn append(
        &self,
        header: &Header,
        end: &mut Position,
        record: &Record,
        payload: &[u8],
    ) -> Result<u64, Problem> {
        let mut bytes = record.encode(&end.chain, &header.nonce);
        let chain = bytes.last_chunk().copied().unwrap_or(end.chain);
        bytes.extend_from_slice(payload);
        self.store.write_at(end.at, &bytes)?;
        let payload_at = end.at + RECORD_LEN as u64;
        *end = Position { at: end.at + bytes.len() as u64, records: end.records + 1, chain };
        Ok(payload_at)
    }

    /// Reads a payload again, if it is still what `patch` names.
    pub(crate) fn payload(
        &self,
        key: &ChunkKey,
        patch: &Patch,
        at: u64,
    ) -> Result<Option<Vec<u8>>, Problem> {
        let mut bytes = vec![0; patch.data.byte_count() as usize];
        self.store.read_below(self.store.len()?, at, &mut bytes)?;
        Ok(patch.is_named(key, &bytes).then_some(bytes))
    }

    /// The record that begins at `at`, which was proven before; `None` if nothing can be one.
    pub(crate) fn record_at(&self, at: u64) -> Result<Option<Record>, Problem> {
        let mut bytes = [0; RECORD_LEN];
        self.store.read_at(at, &mut bytes)?;
        Ok(Record::decode(&bytes[..RECORD_LEN - CHECKSUM_LEN]).map(|(record, _)| record))
    }

    /// The payload of the record that begins at `at`, if it is still what `patch` names.
    pub(crate) fn payload_behind(
        &self,
        key: &ChunkKey,
        patch: &Patch,
        at: u64,
    ) -> Result<Option<Vec<u8>>, Problem> {
        self.payload(key, patch, at + RECORD_LEN as u64)
    }

    /// See [`Store::check_in_place`].
    pub(crate) fn check_in_place(&self) -> Result<(), Problem> {
        self.store.check_in_place()
    }

    /// Seals the journal: from here on the increment will be completed. Both seals are read back
    /// before anything relies on them.
    pub(crate) fn commit(&self, seal: &Seal) -> Result<(), Problem> {
        let seal = seal.encode()?;
        SEALS_AT.iter().try_for_each(|at| self.store.write_at(*at, &seal))?;
        self.settle()?;
        let mut found = [0; SEAL_LEN];
        for at in SEALS_AT {
            self.store.read_below(self.store.len()?, at, &mut found)?;
            if found[..] != seal {
                return Err(Problem::JournalReadBack { at });
            }
        }
        Ok(())
    }

    /// Makes what was appended durable.
    pub(crate) fn sync(&self) -> Result<(), Problem> {
        self.store.sync()
    }

    /// Reads records from the first one on.
    pub(crate) fn read<'a>(&'a self, header: &'a Header) -> Records<'a, D> {
        let (position, window) = (Position::START, Window { at: 0, bytes: Vec::new() });
        Records { journal: self, header, position, payload_at: 0, window }
    }
}

/// What is read of a journal at a time where payloads are looked at: many records, as one that is
/// sealed is read behind the cache.
const WINDOW_LEN: usize = 512 << 10;

/// A piece of the journal.
#[derive(Debug)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The bytes of a range, if the window has them.
    fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }
}

/// Reads one record after the other, as long as they are valid.
#[derive(Debug)]
pub(crate) struct Records<'a, D> {
    journal: &'a Journal<D>,
    header: &'a Header,
    position: Position,
    payload_at: u64,
    window: Window,
}

impl<D: Disk> Records<'_, D> {
    /// The place behind the last record.
    pub(crate) const fn position(&self) -> Position {
        self.position
    }

    /// Where the payload of the last record stands.
    pub(crate) const fn payload_at(&self) -> u64 {
        self.payload_at
    }

    /// The bytes of a range, and with them what follows up to `ahead`; `None` beyond the end.
    fn bytes(&mut self, at: u64, len: usize, ahead: usize) -> Result<Option<&[u8]>, Problem> {
        if self.window.get(at, len).is_none() {
            let store = &self.journal.store;
            let there = store.len()?.saturating_sub(at);
            if there < len as u64 {
                return Ok(None);
            }
            self.window.at = at;
            self.window.bytes.resize(there.min(len.max(ahead) as u64) as usize, 0);
            store.read_at(at, &mut self.window.bytes)?;
        }
        Ok(self.window.get(at, len))
    }

    /// The next record, without looking at its payload; `None` where the valid ones end.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Problem> {
        self.next_of(RECORD_LEN)
    }

    /// As [`next`](Self::next), and reads up to `ahead` bytes.
    fn next_of(&mut self, ahead: usize) -> Result<Option<Record>, Problem> {
        let Position { at, records, chain } = self.position;
        let bytes = self.bytes(at, RECORD_LEN, ahead)?.and_then(<[u8]>::first_chunk);
        let Some(bytes): Option<[u8; RECORD_LEN]> = bytes.copied() else { return Ok(None) };
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_LEN>() else {
            return Ok(None);
        };
        if link(&self.header.nonce, &chain, body) != *checksum {
            return Ok(None);
        }
        let Some((record, payload_len)) = Record::decode(body) else { return Ok(None) };
        // Only what the base has can become zero: so the work is bounded by the volume.
        let of_base = match record {
            Record::Zero { index, count } => index + count <= chunk_count(self.header.base_size),
            Record::Chunk { .. } | Record::Mark { .. } => true,
        };
        let payload_at = at + RECORD_LEN as u64;
        if !of_base || payload_len > self.journal.store.len()?.saturating_sub(payload_at) {
            return Ok(None);
        }
        self.payload_at = payload_at;
        self.position =
            Position { at: payload_at + payload_len, records: records + 1, chain: *checksum };
        Ok(Some(record))
    }

    /// The next record with its payload, both proven; `None` where the valid ones end.
    pub(crate) fn next_proven(
        &mut self,
        key: &ChunkKey,
        payload: &mut Vec<u8>,
    ) -> Result<Option<Record>, Problem> {
        let before = self.position;
        payload.clear();
        let Some(record) = self.next_of(WINDOW_LEN)? else { return Ok(None) };
        let Record::Chunk { patch, .. } = record else { return Ok(Some(record)) };
        let (at, len) = (self.payload_at, patch.data.byte_count() as usize);
        if let Some(bytes) = self.bytes(at, len, WINDOW_LEN)? {
            payload.extend_from_slice(bytes);
        }
        if patch.is_named(key, payload) {
            return Ok(Some(record));
        }
        self.position = before;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: PlanKind::Scan,
            replica: ReplicaId([1; 16]),
            epoch: 0x0203,
            nonce: [4; 32],
            base: Some(Generation::zfs(5)),
            tip: Some(Generation::content(Root([6; 32]))),
            volume: Some(VolumeId([7; 16])),
            base_size: 0x0809,
        }
    }

    /// Not the checksums: the layout.
    #[test]
    fn layouts_are_pinned() {
        let mut expected = b"DRIFTJN\n\x01\0\0\0\x03\0\0\0".to_vec();
        expected.extend([1; 16]);
        expected.extend([3, 2, 0, 0, 0, 0, 0, 0]);
        expected.extend([4; 32]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0; 24]);
        expected.extend([2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([6; 32]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([7; 16]);
        expected.extend([9, 8, 0, 0, 0, 0, 0, 0]);
        expected.resize(480, 0);
        let bytes = header().encode().unwrap();
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(bytes[..480], expected);
        assert_eq!(Header::decode(&bytes), Some(header()));

        let end = Position { at: 8192 + 152, records: 1, chain: [10; 32] };
        let (header, tip) = (header(), Generation::zfs(11));
        let seal = Seal { header, tip, size: 12, root: Root([13; 32]), end };
        let encoded = seal.encode().unwrap();
        assert_eq!(encoded.len(), SEAL_LEN);
        assert_eq!(&encoded[..8], b"DRIFTSL\n");
        assert_eq!(encoded[8..520], bytes);
        assert_eq!(encoded[520..536], [1, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded[560..569], [12, 0, 0, 0, 0, 0, 0, 0, 13]);
        assert_eq!(encoded[600..618], [1, 0, 0, 0, 0, 0, 0, 0, 152, 32, 0, 0, 0, 0, 0, 0, 10, 10]);
        assert_eq!(Seal::decode(&encoded), Some(seal));
    }

    #[test]
    fn records_are_pinned() {
        let (data, zero) = (BlockMask(3), BlockMask(1 << 127));
        let patch = Patch { index: 5, data, zero, id: ChunkId([6; 32]) };
        let record = Record::Chunk { patch, after: ChunkId([7; 32]) };
        let bytes = record.encode(&[8; 32], &[9; 32]);
        let mut expected = vec![1, 0, 0, 0, 0, 4, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([0; 8]);
        expected.push(3);
        expected.extend([0; 30]);
        expected.push(0x80);
        expected.extend([6; 32]);
        expected.extend([7; 32]);
        assert_eq!(bytes[..120], expected);
        let checksum = [&[8; 32][..], &expected].concat();
        assert_eq!(bytes[120..], *blake3::keyed_hash(&[9; 32], &checksum).as_bytes());
        assert_eq!(Record::decode(&bytes[..120]), Some((record, 1024)));

        for record in [Record::Zero { index: 1, count: 2 }, Record::Mark { watermark: 3 }] {
            let bytes = record.encode(&[0; 32], &[0; 32]);
            assert_eq!(Record::decode(&bytes[..120]), Some((record, 0)));
        }
        assert_eq!(
            Record::decode(&Record::Zero { index: 1, count: 0 }.encode(&[0; 32], &[0; 32])),
            None
        );
        let huge = Record::Zero { index: 1, count: u64::MAX };
        assert_eq!(Record::decode(&huge.encode(&[0; 32], &[0; 32])), None);
    }

    /// Records of the same journal that do not follow from one another, as when some of what
    /// was overwritten came through a crash.
    #[test]
    fn a_record_counts_only_behind_the_one_it_was_written_behind() {
        let header = Header { base_size: 1 << 20, ..header() };
        let write = |indices: [u64; 2]| {
            let journal = Journal::new(crate::fuzzing::Memory::default());
            journal.create(&header).unwrap();
            let mut end = Position::START;
            for index in indices {
                journal.append(&header, &mut end, &Record::Zero { index, count: 1 }, &[]).unwrap();
            }
            journal
        };
        let count = |journal: &Journal<_>| {
            let mut records = journal.read(&header);
            while records.next().unwrap().is_some() {}
            records.position().records
        };
        let (old, new) = (write([1, 2]), write([3, 2]));
        assert_eq!((count(&old), count(&new)), (2, 2));
        let mut first = [0; RECORD_LEN];
        new.store.read_at(RECORDS_AT, &mut first).unwrap();
        old.store.write_at(RECORDS_AT, &first).unwrap();
        assert_eq!(count(&old), 1);
    }
}
