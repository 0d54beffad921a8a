//! The reader against an independent writer and a naive model, and against damage.

use std::collections::BTreeSet;

use driftline_drbd::{
    Damage, DrbdError, INDEXED_LEN, Layout, Metadata,
    testing::{Log, PeerSpec, SparseDisk, Spec, Transaction},
};
use driftline_extent::{ExtentSet, Volume};
use proptest::prelude::*;

fn read(spec: &Spec) -> Result<(Metadata, SparseDisk), DrbdError> {
    let disk = spec.to_disk();
    let data_len = spec.device_len.max(spec.sectors * 512);
    Metadata::read(&disk, spec.layout, data_len).map(|metadata| (metadata, disk))
}

fn damage(spec: &Spec) -> Option<Damage> {
    read(spec).unwrap().0.activity_log.damage
}

/// The blocks of a set, each of `block_len` bytes.
fn blocks(set: &ExtentSet, block_len: u64) -> BTreeSet<u64> {
    set.pieces(block_len).map(|piece| piece.offset() / block_len).collect()
}

/// What is changed, by the definition: a block whose bit is set, or in a hot region.
fn model(spec: &Spec, slot: usize) -> BTreeSet<u64> {
    let block_len = u64::from(spec.block_len);
    let hot = spec.log.hot();
    let is_hot = |block: &u64| hot.contains(&((block * block_len / (4 << 20)) as u32));
    let count = (spec.sectors * 512).div_ceil(block_len);
    (0..count).filter(|block| spec.bits[slot].contains(block) || is_hot(block)).collect()
}

/// A few of all specs that make sense.
fn specs() -> impl Strategy<Value = Spec> {
    let shapes = prop::sample::select(vec![(1, 8), (2, 4), (3, 5), (4, 16), (1, 9)]);
    let layouts = prop::sample::select(vec![
        Layout::Internal,
        Layout::External,
        Layout::Indexed(0),
        Layout::Indexed(3),
    ]);
    let writes = prop::collection::vec(
        prop::collection::vec(
            (0_u16..100, prop::sample::select(vec![0, 1, 2, 3, 8, 14, 15])),
            1..6,
        ),
        0..40,
    );
    let bits = prop::collection::vec(prop::collection::btree_set(0_u64..17_000, 0..60), 1..8);
    (any::<bool>(), layouts, 12_u32..=20, shapes, writes, bits, any::<u32>(), 1_u64..130_000)
        .prop_map(|(v09, layout, block_log, shape, writes, bits, number, sectors)| {
            let mut spec = Spec::primary(v09, 10, 20);
            spec.layout = layout;
            spec.device_len = match layout {
                Layout::Internal => 72 << 20,
                Layout::External => 1 << 20,
                Layout::Indexed(n) => (u64::from(n) + 1) * INDEXED_LEN,
            };
            spec.sectors = sectors;
            spec.block_len = if v09 { 1 << block_log } else { 4096 };
            spec.bits = if v09 { bits } else { bits[..1].to_vec() };
            // A device has no room for bits beyond its own end.
            let bits_max = spec.device_len.max(spec.sectors * 512) / u64::from(spec.block_len);
            if layout == Layout::Internal {
                spec.bits.iter_mut().for_each(|bits| bits.retain(|bit| *bit < bits_max));
            }
            spec.log = Log::new(shape, 1237);
            // Numbers that wrap around make a gap where the ring's length divides them badly.
            spec.log.number = number % (u32::MAX - 100);
            writes.iter().for_each(|updates| spec.log.write(updates));
            spec
        })
}

proptest! {
    #[test]
    fn every_bit_and_every_region_is_found(spec in specs()) {
        let (metadata, disk) = read(&spec).unwrap();
        prop_assert_eq!(metadata.activity_log.damage, None);
        let size = spec.sectors * 512;
        for slot in 0..spec.bits.len() {
            let map = metadata.map(&disk, slot as u32).unwrap();
            prop_assert_eq!(map.map.granularity, u64::from(spec.block_len));
            prop_assert!(map.map.changed.end() <= size);
            let block_len = u64::from(spec.block_len);
            prop_assert_eq!(blocks(&map.map.changed, block_len), model(&spec, slot));
            let marked = spec.bits[slot].iter().filter(|bit| **bit * block_len < size);
            let bytes: u64 = marked.map(|bit| block_len.min(size - bit * block_len)).sum();
            prop_assert_eq!(map.bitmap_bytes, bytes);
        }
    }

    /// The newest transaction is torn: what counts is the table before it.
    #[test]
    fn a_torn_newest_transaction_never_was(spec in specs(), at in 0_usize..4096) {
        let mut torn = spec.clone();
        torn.log.write(&[(7, 9)]);
        let block = spec.log.next_block();
        torn.log.ring[block][at] ^= 1;
        let (metadata, disk) = read(&torn).unwrap();
        prop_assert_eq!(metadata.activity_log.damage, None);
        let map = metadata.map(&disk, 0).unwrap();
        prop_assert_eq!(blocks(&map.map.changed, spec.block_len.into()), model(&spec, 0));
    }
}

#[test]
fn words_of_several_bitmaps_take_turns() {
    let mut spec = Spec::primary(true, 10, 20);
    spec.device_len = 64 << 20;
    spec.bits = vec![[0, 5, 31, 32, 63, 64].into(), (36..44).collect()];
    let (metadata, disk) = read(&spec).unwrap();
    let mut head = [0; 20];
    disk.read_at(metadata.placement.bitmap.offset(), &mut head).unwrap();
    let words = [0x21, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0x80, 0xf0, 0x0f, 0, 0, 1, 0, 0, 0];
    assert_eq!(head, words);
    for slot in 0..2 {
        let map = metadata.map(&disk, slot).unwrap().map;
        assert_eq!(blocks(&map.changed, 4096), spec.bits[slot as usize]);
    }
    assert!(matches!(metadata.map(&disk, 2), Err(DrbdError::NoSuchSlot { slot: 2 })));
}

/// The places that drbdmeta 9.22 chooses for a device of 64 MiB.
#[test]
fn places_are_those_of_drbdmeta() {
    let mut spec = Spec::primary(true, 10, 20);
    spec.bits = vec![BTreeSet::new(); 2];
    let placement = read(&spec).unwrap().0.placement;
    assert_eq!(placement.superblock.offset(), 0x3ff_f000);
    assert_eq!(placement.activity_log.offset(), 0x3ff_7000);
    assert_eq!(placement.bitmap.offset(), 0x3ff_6000);
    spec.layout = Layout::Indexed(2);
    spec.device_len = 600 << 20;
    assert_eq!(read(&spec).unwrap().0.placement.superblock.offset(), 0x1000_0000);
}

#[test]
fn what_lies_beyond_the_end_is_clipped() {
    let mut spec = Spec::primary(false, 10, 20);
    spec.sectors = (5 << 20) / 512 + 1;
    spec.bits[0] = [1280, 1281, 1290].into();
    spec.log.write(&[(0, 1), (1, 2), (2, 1_000_000), (3, u32::MAX - 1)]);
    let (metadata, disk) = read(&spec).unwrap();
    let map = metadata.map(&disk, 0).unwrap();
    let extents: Vec<_> = map.map.changed.iter().map(|e| (e.offset(), e.end())).collect();
    assert_eq!(extents, [(4 << 20, (5 << 20) + 512)]);
    assert_eq!((map.bitmap_bytes, map.activity_log_bytes), (512, 1 << 20));
}

#[test]
fn damage_of_the_log_is_told_apart() {
    let busy = |writes| {
        let mut spec = Spec::primary(true, 10, 20);
        (0..writes).for_each(|i| spec.log.write(&[(i, u32::from(i))]));
        spec
    };
    let edited = |mut spec: Spec, edit: &dyn Fn(&mut Log)| {
        edit(&mut spec.log);
        damage(&spec)
    };
    assert_eq!(damage(&busy(0)), None);
    assert_eq!(damage(&busy(3)), None);
    assert_eq!(damage(&busy(30)), None);
    // One block is torn where the next transaction goes; anywhere else it was not torn.
    let tear = |block: usize| move |log: &mut Log| log.ring[block][4000] ^= 1;
    assert_eq!(edited(busy(30), &tear(30 % 8)), None);
    assert_eq!(edited(busy(3), &tear(3)), None);
    assert_eq!(edited(busy(0), &tear(0)), None);
    assert_eq!(edited(busy(30), &tear(2)), Some(Damage::Gap { missing: 26 }));
    assert_eq!(edited(busy(3), &tear(5)), Some(Damage::Unreadable { blocks: 1 }));
    let both = |log: &mut Log| {
        tear(6)(log);
        tear(7)(log);
    };
    assert_eq!(edited(busy(30), &both), Some(Damage::Unreadable { blocks: 2 }));
    let gone = |log: &mut Log| log.ring[1] = Transaction::UNUSED.to_bytes();
    assert_eq!(edited(busy(3), &gone), Some(Damage::Gap { missing: 1 }));
    let swapped = |log: &mut Log| log.ring.swap(1, 4);
    assert_eq!(edited(busy(3), &swapped), Some(Damage::Misplaced { number: 1 }));
    let pmem = |log: &mut Log| log.ring[0][..4].copy_from_slice(&0x6aa6_67a6_u32.to_be_bytes());
    assert_eq!(edited(busy(3), &pmem), Some(Damage::Pmem));
    // A table of which eight transactions cannot hold all.
    let mut large = busy(0);
    large.log = Log::new((1, 8), 8000);
    (0..9).for_each(|i| large.log.write(&[(i, 3)]));
    let found = damage(&large);
    assert!(matches!(found, Some(Damage::Incomplete { .. })), "{found:?}");
    // Numbers that wrap around.
    let mut wrapping = busy(0);
    wrapping.log.number = u32::MAX - 4;
    (0..20).for_each(|i| wrapping.log.write(&[(i, u32::from(i))]));
    assert_eq!(damage(&wrapping), None);
    let hot = read(&wrapping).unwrap().0.activity_log.hot(1 << 40);
    assert_eq!(blocks(&hot, 4 << 20), (0..20).collect());
}

#[test]
fn a_count_of_updates_that_cannot_be_is_damage() {
    let mut spec = Spec::primary(true, 10, 20);
    spec.log.write(&[(0, 1)]);
    let updates = vec![(0, 1); 65];
    let context = (0, vec![]);
    let impossible = Transaction { number: 1, kind: 0, updates, table_len: 67, context };
    // It takes the place of the next transaction, so it is as good as torn.
    spec.log.ring[1] = impossible.to_bytes();
    let (metadata, _) = read(&spec).unwrap();
    assert_eq!((metadata.activity_log.damage, metadata.activity_log.transactions), (None, 1));
}

/// Every number of the geometry is checked against what is there.
#[test]
fn metadata_that_makes_no_sense_is_refused() {
    let word = |at: usize, value: u32| {
        let mut disk = Spec::primary(true, 10, 20).to_disk();
        disk.put((64 << 20) - 4096 + at as u64, &value.to_be_bytes());
        Metadata::read(&disk, Layout::Internal, 64 << 20)
    };
    assert!(word(0x34, 0).is_ok());
    let negative = |sectors: i32| sectors.cast_unsigned();
    for (at, value, what) in [
        (0x00, 1, "the size in bytes"),
        (0x00, 0x1000_0000, "the size in sectors"),
        (0x04, 0x1_ffff, "overlap"),
        (0x3c, 0x8374_026e, "no DRBD metadata"),
        (0x40, 8, "overlap"),
        (0x44, 0, "the distance to the activity log"),
        (0x44, negative(-63), "the distance to the activity log"),
        (0x44, negative(i32::MIN), "the distance to the activity log"),
        (0x44, 64, "the distance to the activity log"),
        (0x4c, negative(-64), "overlap"),
        (0x44, negative(-8), "the distance to the activity log"),
        (0x4c, 0x7fff_ffff, "the distance to the bitmap"),
        (0x50, 0, "the length of a bitmap block"),
        (0x50, 2048, "the length of a bitmap block"),
        (0x50, 4097, "the length of a bitmap block"),
        (0x50, 2 << 20, "the length of a bitmap block"),
        (0x58, 0, "the number of bitmaps"),
        (0x58, 32, "the number of bitmaps"),
        (0x58, 31, "the distance to the bitmap"),
        (0x5c, 32, "the node id"),
        (0x60, 0, "the length of the activity log"),
        (0x60, u32::MAX, "the length of the activity log"),
        (0x64, 1 << 31, "the length of the activity log"),
        (0x70 + 5 * 32 + 20, 1, "the bitmap of a peer"),
        (0x70 + 5 * 32 + 20, 0, "two peers share"),
        (0x70 + 5 * 32 + 20, negative(-2), "the bitmap of a peer"),
    ] {
        let error = word(at, value).expect_err(what).to_string();
        assert!(error.contains(what), "{at:#x} = {value:#x}: {error}");
    }
}

#[test]
fn a_device_without_room_is_refused() {
    for layout in [Layout::Internal, Layout::External, Layout::Indexed(0)] {
        for len in [0, 1, 4095] {
            let disk = SparseDisk::new(len);
            let error = Metadata::read(&disk, layout, len).unwrap_err();
            assert!(matches!(error, DrbdError::TooShort { .. }), "{error}");
        }
        let error = Metadata::read(&SparseDisk::new(8192), layout, 8192).unwrap_err();
        assert!(matches!(error, DrbdError::NoMetadata { .. }), "{error}");
    }
    let disk = SparseDisk::new(INDEXED_LEN);
    let error = Metadata::read(&disk, Layout::Indexed(u32::MAX), 0).unwrap_err();
    assert!(matches!(error, DrbdError::TooShort { .. }), "{error}");
}

#[test]
fn what_a_superblock_says_is_read() {
    let mut spec = Spec::primary(true, 0x1111, 0x2222);
    spec.node_id = 3;
    spec.bits = vec![BTreeSet::new(); 4];
    spec.history = vec![0x3333, 0, 0x4444];
    spec.peers.push(PeerSpec { node: 7, uuid: 0x5555, flags: 9, slot: 2 });
    let superblock = read(&spec).unwrap().0.superblock;
    assert_eq!(superblock.effective_size, spec.sectors * 512);
    assert_eq!((superblock.node_id, superblock.geometry.slots), (Some(3), 4));
    assert_eq!(superblock.peers.len(), 31);
    let slots: Vec<_> =
        superblock.peers.iter().filter_map(|p| Some((p.node_id, p.slot?))).collect();
    assert_eq!(slots, [(1, 0), (7, 2)]);
    for uuid in [0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x2223] {
        assert!(superblock.descends_from(uuid), "{uuid:#x}");
    }
    for uuid in [0, 1, 4, 5, 0x6666] {
        assert!(!superblock.descends_from(uuid), "{uuid:#x}");
    }
}
