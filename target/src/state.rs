//! The state file: which generation stands here. Writing one slot of it is the commit.
//!
//! Two slots of 4096 bytes, written alternately (slot = sequence number mod 2), each synced
//! before anything relies on it. The valid slot with the higher sequence number counts. All
//! numbers are little-endian.
//!
//! | offset | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `DRIFTST\n` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | status: 1 complete, 2 first copy in progress, 3 adopted |
//! | 16 | 8 | sequence number of this record |
//! | 24 | 8 | epoch: a journal with another epoch is a leftover |
//! | 32 | 16 | replica id |
//! | 48 | 32 | chunk key |
//! | 80 | 24 | source volume id, optional |
//! | 104 | 40 | generation, if complete |
//! | 144 | 32 | root, if complete |
//! | 176 | 8 | size in bytes |
//! | 184 | 40 | tip of the first copy, if known |
//! | 224 | 8 | watermark of the first copy, in chunks |
//! | 232 | 4 | 1 if a manager was seen to keep the generation, else 0 |
//! | 236 | 8 | when a scrub last found no damage, in milliseconds since 1970; 0: never |
//! | 244 | 3820 | zero |
//! | 4064 | 32 | BLAKE3 of bytes 0 to 4064 |

use driftline_extent::{
    Accepts, Generation, ReplicaId, Resume, Root, TargetState, VOLUME_LEN_MAX, VolumeId,
    chunk_count,
};

use crate::{
    Disk, Part, Problem,
    codec::{CHECKSUM_LEN, Reader, Writer, checked},
    disk::Store,
};

const MAGIC: &[u8; 8] = b"DRIFTST\n";
const VERSION: u32 = 1;
const SLOT_LEN: usize = 4096;

/// What stands at the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// A generation, whole and proven.
    Complete { generation: Generation, root: Root },
    /// A first copy that goes straight to the volume: chunks below the watermark are
    /// durable and were read back.
    Direct { tip: Option<Generation>, watermark: u64 },
    /// Content that is no generation, about to be overwritten by agreement. Its ids are
    /// listed once a journal of this epoch exists.
    Adopted,
}

/// What the state file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) replica: ReplicaId,
    pub(crate) chunk_key: [u8; 32],
    pub(crate) epoch: u64,
    pub(crate) volume: Option<VolumeId>,
    pub(crate) size: u64,
    pub(crate) status: Status,
    /// Whether a manager has kept this generation, and locked the device before.
    pub(crate) kept: bool,
    /// When a scrub last found no damage, in milliseconds since 1970.
    pub(crate) scrubbed_ms: Option<u64>,
}

impl State {
    /// The state of a volume of `size` bytes that no state was ever written for.
    pub(crate) const fn of_nothing(replica: ReplicaId, chunk_key: [u8; 32], size: u64) -> Self {
        let status = match size {
            0 => Status::Direct { tip: None, watermark: 0 },
            _ => Status::Adopted,
        };
        Self {
            replica,
            chunk_key,
            epoch: 0,
            volume: None,
            size,
            status,
            kept: false,
            scrubbed_ms: None,
        }
    }

    /// The state as a source is told of it, with an increment that the journal holds.
    pub(crate) fn describe(&self, journaled: Option<Resume>) -> TargetState {
        let resume = match self.status {
            Status::Direct { tip, watermark } if watermark > 0 => {
                Some(Resume { base: None, tip, from: watermark })
            }
            Status::Direct { .. } => None,
            Status::Complete { .. } | Status::Adopted => journaled,
        };
        TargetState {
            replica: self.replica,
            chunk_key: self.chunk_key,
            volume: self.volume,
            generation: self.generation(),
            root: self.root(),
            size: self.size,
            incomplete: !matches!(self.status, Status::Complete { .. }),
            damaged: false,
            resume,
            accepts: Accepts::Volume,
        }
    }

    pub(crate) const fn generation(&self) -> Option<Generation> {
        match self.status {
            Status::Complete { generation, .. } => Some(generation),
            Status::Direct { .. } | Status::Adopted => None,
        }
    }

    pub(crate) const fn root(&self) -> Option<Root> {
        match self.status {
            Status::Complete { root, .. } => Some(root),
            Status::Direct { .. } | Status::Adopted => None,
        }
    }

    fn encode(&self, sequence: u64) -> Vec<u8> {
        let (tag, tip, watermark) = match self.status {
            Status::Complete { .. } => (1, None, 0),
            Status::Direct { tip, watermark } => (2, tip, watermark),
            Status::Adopted => (3, None, 0),
        };
        Writer::default()
            .bytes(MAGIC)
            .u32(VERSION)
            .u32(tag)
            .u64(sequence)
            .u64(self.epoch)
            .bytes(&self.replica.0)
            .bytes(&self.chunk_key)
            .volume(self.volume)
            .generation(self.generation())
            .bytes(&self.root().map_or([0; 32], |root| root.0))
            .u64(self.size)
            .generation(tip)
            .u64(watermark)
            .u32(u32::from(self.kept))
            .u64(self.scrubbed_ms.unwrap_or(0))
            .pad(SLOT_LEN - CHECKSUM_LEN)
            .checksummed()
    }

    /// The fields after magic and version.
    fn decode(mut fields: Reader<'_>) -> Option<(u64, Self)> {
        let tag = fields.u32()?;
        let (sequence, epoch) = (fields.u64()?, fields.u64()?);
        let (replica, chunk_key, volume) = (fields.replica()?, fields.array()?, fields.volume()?);
        let (generation, root) = (fields.generation()?, Root(fields.array()?));
        let size = fields.u64().filter(|size| *size <= VOLUME_LEN_MAX)?;
        let tip = fields.generation()?;
        let watermark = fields.u64().filter(|chunks| *chunks <= chunk_count(VOLUME_LEN_MAX))?;
        let kept = match fields.u32()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let scrubbed_ms = Some(fields.u64()?).filter(|ms| *ms > 0);
        let status = match tag {
            1 => Status::Complete { generation: generation?, root },
            2 => Status::Direct { tip, watermark },
            3 => Status::Adopted,
            _ => return None,
        };
        let state = Self { replica, chunk_key, epoch, volume, size, status, kept, scrubbed_ms };
        Some((sequence, state))
    }
}

/// One slot, as it was found.
enum Slot {
    /// Never written.
    Empty,
    /// Torn or damaged.
    Damaged,
    Valid(u64, State),
}

/// The two slots.
#[derive(Debug)]
pub(crate) struct Slots<D> {
    store: Store<D>,
    sequence: u64,
}

impl<D: Disk> Slots<D> {
    /// Reads what was last committed; `None` if nothing ever was.
    pub(crate) fn open(disk: D) -> Result<(Self, Option<State>), Problem> {
        let store = Store::new(Part::State, disk);
        store.settle()?;
        Self::read(store)
    }

    /// As [`open`](Self::open), but only looks: another process may be writing.
    pub(crate) fn peek(disk: D) -> Result<Option<State>, Problem> {
        Ok(Self::look(disk)?.1)
    }

    /// As [`open`](Self::open), for storage that cannot be written.
    pub(crate) fn look(disk: D) -> Result<(Self, Option<State>), Problem> {
        Self::read(Store::new(Part::State, disk))
    }

    /// See [`Store::check_in_place`].
    pub(crate) fn check_in_place(&self) -> Result<(), Problem> {
        self.store.check_in_place()
    }

    fn read(store: Store<D>) -> Result<(Self, Option<State>), Problem> {
        let (mut damaged, mut newest) = (0, None);
        for slot in 0..2 {
            match read_slot(&store, slot)? {
                Slot::Empty => {}
                Slot::Damaged => damaged += 1,
                Slot::Valid(sequence, state) => {
                    if newest.as_ref().is_none_or(|(newest, _)| *newest < sequence) {
                        newest = Some((sequence, state));
                    }
                }
            }
        }
        // One damaged slot is a crash in mid-commit. With the other one empty it was the very
        // first commit, before which a replica holds nothing.
        if damaged == 2 {
            return Err(Problem::StateDamaged);
        }
        let (sequence, state) = newest.unzip();
        Ok((Self { store, sequence: sequence.unwrap_or(0) }, state))
    }

    pub(crate) fn into_disk(self) -> D {
        self.store.into_disk()
    }

    /// Whether nothing was ever committed.
    pub(crate) const fn is_empty(&self) -> bool {
        self.sequence == 0
    }

    /// Makes `state` what the next open finds: entirely or not at all.
    pub(crate) fn commit(&mut self, state: &State) -> Result<(), Problem> {
        let sequence = self.sequence + 1;
        let (at, slot) = (sequence % 2 * SLOT_LEN as u64, state.encode(sequence));
        self.store.write_at(at, &slot)?;
        self.store.settle()?;
        // What is told as committed must be what the next open finds.
        let mut found = [0; SLOT_LEN];
        self.store.read_below(self.store.len()?, at, &mut found)?;
        if found[..] != slot {
            return Err(Problem::StateReadBack);
        }
        self.sequence = sequence;
        Ok(())
    }
}

fn read_slot<D: Disk>(store: &Store<D>, slot: u64) -> Result<Slot, Problem> {
    let mut bytes = [0; SLOT_LEN];
    store.read_below(store.len()?, slot * SLOT_LEN as u64, &mut bytes)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Slot::Empty);
    }
    let Some(mut fields) = checked(&bytes).map(Reader) else { return Ok(Slot::Damaged) };
    match (fields.array(), fields.u32()) {
        (Some(magic), Some(VERSION)) if &magic == MAGIC => {}
        (Some(magic), Some(version)) if &magic == MAGIC && version > VERSION => {
            return Err(Problem::Newer { part: Part::State, version });
        }
        _ => return Ok(Slot::Damaged),
    }
    Ok(State::decode(fields)
        .map_or(Slot::Damaged, |(sequence, state)| Slot::Valid(sequence, state)))
}

#[cfg(test)]
mod tests {
    use driftline_extent::Scheme;

    use super::*;

    fn state(status: Status) -> State {
        State {
            replica: ReplicaId([1; 16]),
            chunk_key: [2; 32],
            epoch: 3,
            volume: Some(VolumeId([4; 16])),
            size: 5,
            status,
            kept: false,
            scrubbed_ms: None,
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let complete = Status::Complete { generation: Generation::zfs(6), root: Root([7; 32]) };
        let bytes = state(complete).encode(8);
        let mut expected =
            b"DRIFTST\n\x01\0\0\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
        expected.extend([1; 16]);
        expected.extend([2; 32]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([4; 16]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0; 24]);
        expected.extend([7; 32]);
        expected.extend([5, 0, 0, 0, 0, 0, 0, 0]);
        expected.resize(4064, 0);
        let checksum = *blake3::hash(&expected).as_bytes();
        expected.extend(checksum);
        assert!(bytes == expected);
        let kept = State { kept: true, ..state(complete) }.encode(8);
        assert_eq!((&kept[..232], &kept[232..240]), (&bytes[..232], &[1, 0, 0, 0, 0, 0, 0, 0][..]));
        let scrubbed = State { scrubbed_ms: Some(0x0102), ..state(complete) }.encode(8);
        assert_eq!(
            (&scrubbed[..236], &scrubbed[236..244]),
            (&bytes[..236], &[2, 1, 0, 0, 0, 0, 0, 0][..])
        );
    }

    /// Where the kind and the name of a complete state's generation stand.
    const GENERATION_AT: usize = 8 + 8 + 8 + 8 + 16 + 32 + 24;

    #[test]
    fn the_generation_of_a_drbd_device_is_pinned() {
        let uuid = 0x1122_3344_5566_7789;
        let complete = Status::Complete { generation: Generation::drbd(uuid), root: Root([7; 32]) };
        let mut bytes = state(complete).encode(8);
        let mut expected = vec![3, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        expected.extend([0; 24]);
        assert_eq!(bytes[GENERATION_AT..][..40], expected);
        // Bit 0 is no part of its name.
        bytes[GENERATION_AT + 8] |= 1;
        assert_eq!(State::decode(Reader(&bytes[12..])), None);
    }

    #[test]
    fn a_generation_of_any_storage_is_pinned() {
        let generation = Generation::new(Scheme::known("qemu"), &[0xab, 0xcd]).unwrap();
        let bytes = state(Status::Complete { generation, root: Root([7; 32]) }).encode(8);
        let mut expected = [&[66][..], b"qemu\0\0\0", &[0xab, 0xcd]].concat();
        expected.resize(40, 0);
        assert_eq!(bytes[GENERATION_AT..][..40], expected);
        for (at, wrong) in [
            // No name, one that is too long, one that ends where it should not.
            (0, &[64][..]),
            (0, &[97]),
            (0, &[65]),
            // Letters that no scheme has, and those of one that has a number.
            (1, b"Qemu"),
            (1, b"q\0mu"),
            (1, b"drbd"),
        ] {
            let mut bytes = bytes.clone();
            bytes[GENERATION_AT + at..][..wrong.len()].copy_from_slice(wrong);
            assert_eq!(State::decode(Reader(&bytes[12..])), None, "{at} {wrong:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let qemu = Scheme::known("qemu");
        let tip = Some(Generation::content(Root([9; 32])));
        let root = Root([7; 32]);
        for status in [
            Status::Complete { generation: Generation::zfs(u64::MAX), root },
            Status::Complete { generation: Generation::drbd(u64::MAX), root },
            Status::Complete { generation: Generation::new(qemu, &[0]).unwrap(), root },
            Status::Complete { generation: Generation::new(qemu, &[9; 32]).unwrap(), root },
            Status::Direct { tip, watermark: 10 },
            Status::Direct { tip: None, watermark: 0 },
            Status::Adopted,
        ] {
            for kept in [false, true] {
                let scrubbed_ms = kept.then_some(u64::MAX);
                let state = State { kept, scrubbed_ms, ..state(status) };
                let bytes = state.encode(8);
                let fields = Reader(&checked(&bytes).unwrap()[12..]);
                assert_eq!(State::decode(fields), Some((8, state)));
            }
        }
    }
}
