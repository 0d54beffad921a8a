//! A writer of metadata for tests: it shares nothing with the reader but the words.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use driftline_extent::{Extent, Volume};

use crate::Layout;

const PAGE: usize = 4096;

/// A disk of any length that holds only the pages that were written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SparseDisk {
    len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl SparseDisk {
    /// A disk of `len` bytes, all zeros.
    pub const fn new(len: u64) -> Self {
        Self { len, pages: BTreeMap::new() }
    }

    /// A disk with this content.
    pub fn of(bytes: &[u8]) -> Self {
        let mut disk = Self::new(bytes.len() as u64);
        for (page, content) in (0..).zip(bytes.chunks(PAGE)) {
            if content.iter().any(|byte| *byte != 0) {
                disk.put(page * PAGE as u64, content);
            }
        }
        disk
    }

    /// Writes `bytes` at `offset`; what lies beyond the end is dropped.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let kept = self.len.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (mut at, mut rest) = (offset, &bytes[..kept]);
        while !rest.is_empty() {
            let within = (at % PAGE as u64) as usize;
            let (now, later) = rest.split_at(rest.len().min(PAGE - within));
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| vec![0; PAGE]);
            page[within..within + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len() as u64, later);
        }
    }

    /// The pages that were written, with their offsets.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(page, content)| (page * PAGE as u64, content.as_slice()))
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) {
        let page_len = PAGE as u64;
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for (page, content) in self.pages.range(offset / page_len..end.div_ceil(page_len)) {
            let start = page * page_len;
            let (from, to) = (start.max(offset), (start + page_len).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&content[(from - start) as usize..(to - start) as usize]);
        }
    }
}

impl Volume for SparseDisk {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.fill(offset, buf);
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let page = self.pages.range(from / PAGE as u64..).next().map(|(page, _)| *page);
        let start = page.map(|page| (page * PAGE as u64).max(from));
        let end = page.map(|page| ((page + 1) * PAGE as u64).min(self.len));
        Ok(start.zip(end).and_then(|(start, end)| Extent::from_bounds(start, end)))
    }
}

/// CRC-32C bit by bit, starting from zero and inverting nothing.
pub fn crc(bytes: &[u8]) -> u32 {
    let mut crc = 0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    crc
}

/// One block of an activity log.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its number.
    pub number: u32,
    /// 0 for an update, 0xffff for a block that was never used.
    pub kind: u16,
    /// Slots and the regions they now hold.
    pub updates: Vec<(u16, u32)>,
    /// How many slots the table has.
    pub table_len: u16,
    /// The part of the table that starts at this slot.
    pub context: (u16, Vec<u32>),
}

impl Transaction {
    /// A block that was never used.
    pub const UNUSED: Self =
        Self { number: 0, kind: 0xffff, updates: Vec::new(), table_len: 0, context: (0, vec![]) };

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(0x69cb_65a2_u32.to_be_bytes());
        out.extend(self.number.to_be_bytes());
        out.extend([0; 4]);
        for half in [self.kind, self.updates.len() as u16, self.table_len, self.context.0] {
            out.extend(half.to_be_bytes());
        }
        out.extend([0; 16]);
        let update = |i: usize| self.updates.get(i).copied();
        (0..64).for_each(|i| out.extend(update(i).map_or(0xffff, |row| row.0).to_be_bytes()));
        (0..64).for_each(|i| out.extend(update(i).map_or(u32::MAX, |row| row.1).to_be_bytes()));
        let entry = |i: usize| self.context.1.get(i).copied().unwrap_or(u32::MAX);
        (0..919).for_each(|i| out.extend(entry(i).to_be_bytes()));
        let crc = crc(&out);
        out[8..12].copy_from_slice(&crc.to_be_bytes());
        out
    }
}

/// An activity log in use: the table in memory, and what of it is on disk.
#[derive(Clone, Debug)]
pub struct Log {
    /// Stripes, and blocks in each.
    pub shape: (u32, u32),
    /// Which region each slot holds; `u32::MAX` for none.
    pub table: Vec<u32>,
    /// The number of the next transaction.
    pub number: u32,
    cycle: u16,
    /// The blocks as they are on disk, in their place.
    pub ring: Vec<Vec<u8>>,
}

impl Log {
    /// A log that was never used, for a table of `table_len` slots.
    pub fn new(shape: (u32, u32), table_len: u16) -> Self {
        let ring = vec![Transaction::UNUSED.to_bytes(); (shape.0 * shape.1) as usize];
        Self { shape, table: vec![u32::MAX; table_len.into()], number: 0, cycle: 0, ring }
    }

    /// Where the next transaction will stand.
    pub fn next_block(&self) -> usize {
        let at = self.number % (self.shape.0 * self.shape.1);
        ((at % self.shape.0) * self.shape.1 + at / self.shape.0) as usize
    }

    /// Puts regions into slots, and writes that.
    pub fn write(&mut self, updates: &[(u16, u32)]) {
        for (slot, extent) in updates {
            self.table[usize::from(*slot)] = *extent;
        }
        let start = usize::from(self.cycle);
        let context = self.table[start..].iter().take(919).copied().collect();
        let transaction = Transaction {
            number: self.number,
            kind: 0,
            updates: updates.to_vec(),
            table_len: self.table.len() as u16,
            context: (self.cycle, context),
        };
        let block = self.next_block();
        self.ring[block] = transaction.to_bytes();
        self.number = self.number.wrapping_add(1);
        let next = start + 919;
        self.cycle = if next < self.table.len() { next as u16 } else { 0 };
    }

    /// What the table holds.
    pub fn hot(&self) -> BTreeSet<u32> {
        self.table.iter().copied().filter(|extent| *extent != u32::MAX).collect()
    }
}

/// A peer of a v09 superblock.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerSpec {
    /// The node.
    pub node: usize,
    /// Its bitmap UUID.
    pub uuid: u64,
    /// Its flags.
    pub flags: u32,
    /// Its bitmap, or -1.
    pub slot: i32,
}

/// Metadata to be written. A v08 device uses the first peer only.
#[derive(Clone, Debug)]
pub struct Spec {
    /// v09, or else v08.
    pub v09: bool,
    /// Where it goes.
    pub layout: Layout,
    /// Length of the device it goes to.
    pub device_len: u64,
    /// Size of the volume.
    pub sectors: u64,
    /// The current UUID.
    pub current: u64,
    /// The device's flags.
    pub flags: u32,
    /// This node, or -1.
    pub node_id: i32,
    /// Other nodes.
    pub peers: Vec<PeerSpec>,
    /// Past UUIDs: two in v08, 32 in v09.
    pub history: Vec<u64>,
    /// Bytes for each bit.
    pub block_len: u32,
    /// The activity log.
    pub log: Log,
    /// Bits that are set, for each bitmap.
    pub bits: Vec<BTreeSet<u64>>,
}

impl Spec {
    /// A consistent, live Primary of 64 MiB with one bitmap that records since `base`.
    pub fn primary(v09: bool, base: u64, current: u64) -> Self {
        Self {
            v09,
            layout: Layout::Internal,
            device_len: 64 << 20,
            sectors: (63 << 20) / 512,
            current,
            flags: 0x13,
            node_id: if v09 { 0 } else { -1 },
            peers: vec![PeerSpec { node: 1, uuid: base, flags: 0, slot: 0 }],
            history: vec![4],
            block_len: 4096,
            log: Log::new((1, 8), 1237),
            bits: vec![BTreeSet::new()],
        }
    }

    /// Where the superblock, the log and the bitmaps are, in bytes.
    pub fn places(&self) -> (u64, u64, u64) {
        let al_len = u64::from(self.log.shape.0 * self.log.shape.1) * 4096;
        match self.layout {
            Layout::Internal => {
                let sb = (self.device_len / 4096 - 1) * 4096;
                (sb, sb - al_len, sb - al_len - self.bitmap_len(self.device_len))
            }
            Layout::External => (0, 4096, 4096 + al_len),
            Layout::Indexed(n) => {
                let sb = u64::from(n) * (128 << 20);
                (sb, sb + 4096, sb + 4096 + al_len)
            }
        }
    }

    fn bitmap_len(&self, len: u64) -> u64 {
        let bits = len.div_ceil(self.block_len.into()).div_ceil(64) * 64;
        (bits / 8 * self.bits.len() as u64).div_ceil(4096) * 4096
    }

    /// The superblock's bytes.
    pub fn superblock(&self) -> Vec<u8> {
        let (sb, al, bm) = self.places();
        let sectors = |at: u64| ((at.wrapping_sub(sb)).cast_signed() / 512) as u32;
        let md_sectors = match self.layout {
            Layout::Internal => ((sb + 4096 - bm) / 512) as u32,
            Layout::External => (self.device_len / 512) as u32,
            Layout::Indexed(_) => (128 << 20) / 512,
        };
        let mut out = vec![0_u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_be_bytes());
        put(8, &self.current.to_be_bytes());
        let magic = if self.v09 { 0x8374_026d_u32 } else { 0x8374_026c };
        let words = [self.flags, magic, md_sectors, sectors(al), 1237, sectors(bm), self.block_len];
        words.iter().enumerate().for_each(|(i, word)| put(0x38 + 4 * i, &word.to_be_bytes()));
        let (stripes, blocks) = self.log.shape;
        if self.v09 {
            put(0x58, &(self.bits.len() as u32).to_be_bytes());
            put(0x5c, &self.node_id.to_be_bytes());
            put(0x60, &stripes.to_be_bytes());
            put(0x64, &blocks.to_be_bytes());
            (0..32).for_each(|node| put(0x70 + node * 32 + 20, &(-1_i32).to_be_bytes()));
            for peer in &self.peers {
                let at = 0x70 + peer.node * 32;
                put(at, &peer.uuid.to_be_bytes());
                put(at + 16, &peer.flags.to_be_bytes());
                put(at + 20, &peer.slot.to_be_bytes());
            }
        } else {
            let uuid = self.peers.first().map_or(0, |peer| peer.uuid);
            put(0x10, &uuid.to_be_bytes());
            put(0x58, &stripes.to_be_bytes());
            put(0x5c, &blocks.to_be_bytes());
        }
        let history_at = if self.v09 { 0x470 } else { 0x18 };
        let past = self.history.iter().enumerate();
        past.for_each(|(i, uuid)| put(history_at + 8 * i, &uuid.to_be_bytes()));
        out
    }

    /// The bitmaps' bytes: words of 32 bits, one bitmap after the other.
    pub fn bitmaps(&self) -> BTreeMap<u64, u8> {
        let mut bytes = BTreeMap::new();
        for (slot, bits) in (0..).zip(&self.bits) {
            for bit in bits {
                let word = (bit >> 5) * self.bits.len() as u64 + slot;
                *bytes.entry(word * 4 + bit % 32 / 8).or_insert(0) |= 1 << (bit % 8);
            }
        }
        bytes
    }

    /// Writes everything onto `disk`.
    pub fn write(&self, disk: &mut SparseDisk) {
        let (sb, al, bm) = self.places();
        disk.put(sb, &self.superblock());
        for (block, bytes) in (0..).zip(&self.log.ring) {
            disk.put(al + block * 4096, bytes);
        }
        for (at, byte) in self.bitmaps() {
            disk.put(bm + at, &[byte]);
        }
    }

    /// A device with nothing but this on it.
    pub fn to_disk(&self) -> SparseDisk {
        let mut disk = SparseDisk::new(self.device_len);
        self.write(&mut disk);
        disk
    }
}
