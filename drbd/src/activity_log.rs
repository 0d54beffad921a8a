//! The activity log: regions whose bits may be set in memory only.
//!
//! It is a ring of 4 KiB blocks. Each is one transaction: up to 64 slots that now hold another
//! region, and a part of the whole table of slots, which goes round. Whatever instant it was
//! cut off at, the transactions are numbered without a gap, and at most the one after the
//! newest is torn.

use driftline_extent::{Extent, ExtentSet, Volume};

use crate::{
    DrbdError, Geometry, Placement, SUPERBLOCK_LEN,
    crc32c::raw_crc32c,
    superblock::{BLOCK_4K, Fields},
};

/// Length of the region that one entry of the log stands for, whatever a bit stands for.
pub const AL_EXTENT_LEN: u64 = 4 << 20;

const MAGIC: u32 = 0x69cb_65a2;
/// The log of a device that is memory: a table that is changed in place.
const MAGIC_PMEM: u32 = 0x6aa6_67a6;
const CRC_AT: usize = 8;
const UPDATES_MAX: usize = 64;
const CONTEXT_MAX: usize = 919;
const NO_EXTENT: u32 = u32::MAX;

/// Why an activity log is not what a log that was cut off looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    /// More blocks than the one that may be torn.
    #[error("{blocks} of its blocks cannot be read")]
    Unreadable {
        /// How many.
        blocks: u64,
    },
    /// The numbers of its transactions leave one out.
    #[error("transaction {missing} is missing")]
    Gap {
        /// The number.
        missing: u32,
    },
    /// A transaction stands where one of another number belongs.
    #[error("transaction {number} stands at the wrong place")]
    Misplaced {
        /// The number.
        number: u32,
    },
    /// The transactions that are left do not have the whole table between them.
    #[error("it does not have its slot {slot}")]
    Incomplete {
        /// The first slot that is missing.
        slot: u32,
    },
    /// It is the table of a device that is memory.
    #[error("it is of the kind for persistent memory, which is not read here")]
    Pmem,
}

/// What an activity log says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActivityLog {
    /// How many transactions were read; zero if it was not used since it was made.
    pub transactions: u64,
    /// Why it is not believed, if it is not.
    pub damage: Option<Damage>,
    /// The number of the newest transaction.
    pub newest: Option<u32>,
    /// Regions that were written to lately, ascending, by their number.
    hot: Vec<u32>,
}

impl ActivityLog {
    /// Reads the log. What makes no sense in it is [`damage`](Self::damage), and no error.
    pub(crate) fn read(
        disk: &dyn Volume,
        placement: &Placement,
        geometry: &Geometry,
    ) -> Result<Self, DrbdError> {
        let ring = Ring { disk, start: placement.activity_log.offset(), geometry };
        let survey = ring.survey()?;
        let mut table = vec![NO_EXTENT; usize::from(u16::MAX) + 1];
        let mut covered = vec![false; table.len()];
        let mut context_len = 0;
        // Later transactions overwrite what earlier ones said.
        for (_, block) in &survey.transactions {
            if let Block::Transaction(transaction) = ring.block(*block)? {
                transaction.replay(&mut table, &mut covered);
                context_len = transaction.context_len;
            }
        }
        // While there is a block that was never written, no transaction was overwritten.
        let missing = covered[..context_len].iter().position(|covered| !covered);
        let incomplete = missing.filter(|_| survey.unused == 0 && !survey.transactions.is_empty());
        let incomplete = incomplete.map(|slot| Damage::Incomplete { slot: slot as u32 });
        table.sort_unstable();
        table.dedup();
        table.retain(|extent| *extent != NO_EXTENT);
        Ok(Self {
            transactions: survey.transactions.len() as u64,
            damage: survey.damage.or(incomplete),
            newest: survey.transactions.last().map(|row| row.0),
            hot: table,
        })
    }

    /// The regions that were written to lately, within a volume of `size` bytes.
    pub fn hot(&self, size: u64) -> ExtentSet {
        let extents = self.hot.iter().map(|number| u64::from(*number) * AL_EXTENT_LEN);
        extents
            .filter_map(|offset| Extent::new(offset, AL_EXTENT_LEN))
            .filter_map(|extent| extent.clamp(size))
            .collect()
    }
}

/// The blocks of a log, wherever they are.
struct Ring<'a> {
    disk: &'a dyn Volume,
    start: u64,
    geometry: &'a Geometry,
}

/// What a first look at all blocks finds.
struct Survey {
    /// Numbers and blocks, from the oldest to the newest.
    transactions: Vec<(u32, u64)>,
    /// Blocks that were never written since the log was made.
    unused: u64,
    damage: Option<Damage>,
}

enum Block {
    Transaction(Box<Transaction>),
    Unused,
    Pmem,
    Bad,
}

impl Ring<'_> {
    fn block(&self, index: u64) -> Result<Block, DrbdError> {
        let offset = self.start + index * BLOCK_4K;
        let mut bytes = [0; SUPERBLOCK_LEN as usize];
        let what = "activity log";
        let read = self.disk.read_at(offset, &mut bytes);
        read.map_err(|source| DrbdError::Read { what, offset, source })?;
        Ok(Block::parse(&bytes))
    }

    fn survey(&self) -> Result<Survey, DrbdError> {
        let (mut found, mut unused, mut bad, mut damage) = (Vec::new(), 0, Vec::new(), None);
        for index in 0..self.geometry.al_blocks() {
            match self.block(index)? {
                Block::Transaction(transaction) => found.push((transaction.number, index)),
                Block::Unused => unused += 1,
                Block::Pmem => damage = Some(Damage::Pmem),
                Block::Bad => bad.push(index),
            }
        }
        sort_by_age(&mut found);
        let damage = damage.or_else(|| self.find_damage(&found, &bad));
        Ok(Survey { transactions: found, unused, damage })
    }

    /// What a log that was cut off does not look like. `found` is sorted by age.
    fn find_damage(&self, found: &[(u32, u64)], bad: &[u64]) -> Option<Damage> {
        let expected = |number| self.geometry.al_block_of(number);
        if bad.len() > 1 {
            return Some(Damage::Unreadable { blocks: bad.len() as u64 });
        }
        for (number, block) in found {
            if *block != expected(*number) {
                return Some(Damage::Misplaced { number: *number });
            }
        }
        for pair in found.windows(2) {
            let next = pair[0].0.wrapping_add(1);
            if pair[1].0 != next {
                return Some(Damage::Gap { missing: next });
            }
        }
        // The block that may be torn is the one that the newest but one would be followed by.
        match (bad, found.last()) {
            ([torn], Some((newest, _))) if *torn != expected(newest.wrapping_add(1)) => {
                Some(Damage::Unreadable { blocks: 1 })
            }
            _ => None,
        }
    }
}

/// Sorts transactions from the oldest to the newest. Numbers wrap around, so there is an order
/// only among those that are less than half the range apart: it is the one that starts after
/// the widest gap.
fn sort_by_age(found: &mut [(u32, u64)]) {
    found.sort_unstable();
    let gap_before = |i: usize| {
        let before = found[(i + found.len() - 1) % found.len()].0;
        found[i].0.wrapping_sub(before)
    };
    let oldest = (0..found.len()).max_by_key(|i| gap_before(*i)).unwrap_or(0);
    found.rotate_left(oldest);
}

/// One transaction, checked.
struct Transaction {
    number: u32,
    /// How many slots the table has.
    context_len: usize,
    bytes: [u8; SUPERBLOCK_LEN as usize],
}

impl Block {
    fn parse(bytes: &[u8; SUPERBLOCK_LEN as usize]) -> Self {
        let fields = Fields(bytes);
        match fields.u32(0) {
            MAGIC => {}
            MAGIC_PMEM => return Self::Pmem,
            _ => return Self::Bad,
        }
        let (before, after) = bytes.split_at(CRC_AT);
        let zeroed = before.iter().chain(&[0; 4]).chain(&after[4..]);
        if raw_crc32c(zeroed) != fields.u32(CRC_AT) || usize::from(fields.u16(14)) > UPDATES_MAX {
            return Self::Bad;
        }
        match fields.u16(12) {
            0 => Self::Transaction(Box::new(Transaction {
                number: fields.u32(4),
                context_len: fields.u16(16).into(),
                bytes: *bytes,
            })),
            0xffff => Self::Unused,
            _ => Self::Bad,
        }
    }
}

impl Transaction {
    /// Changes the table as the transaction says. Both have a place for every slot there can be.
    fn replay(&self, table: &mut [u32], covered: &mut [bool]) {
        let fields = Fields(&self.bytes);
        let start = usize::from(fields.u16(18));
        let context = (0..CONTEXT_MAX).map(|i| (start + i, fields.u32(420 + 4 * i)));
        let updates = (0..UPDATES_MAX).map(|i| (fields.u16(36 + 2 * i), fields.u32(164 + 4 * i)));
        let updates = updates.filter(|(slot, _)| *slot != u16::MAX);
        for (slot, extent) in context {
            // Beyond the table's length there is only filling.
            if slot < self.context_len {
                table[slot] = extent;
                covered[slot] = true;
            }
        }
        for (slot, extent) in updates {
            table[usize::from(slot)] = extent;
        }
    }
}
