//! Every way in which a map is proven or not.

use driftline_drbd::{
    Base, Doubt, Layout, Metadata, Superblock, judge,
    testing::{Log, PeerSpec, Spec, Transaction},
};
use driftline_extent::{Explained, Reason};

const OLDER: u64 = 0x0aaa_0000_0000_0000;
const BASE: u64 = 0x0bbb_0000_0000_0000;
const TIP: u64 = 0x0ccc_0000_0000_0000;

/// A live StandAlone Primary of DRBD 8.4, rotated at the base, with a log in use.
fn live_v08() -> Spec {
    let mut spec = Spec::primary(false, BASE, TIP);
    spec.log.write(&[(0, 3)]);
    spec.history = vec![OLDER, 4];
    spec
}

/// A live Primary of DRBD 9 with a peer that never connects, rotated at the base.
fn live_v09() -> Spec {
    Spec { v09: true, node_id: 0, ..live_v08() }
}

fn metadata(spec: &Spec) -> Metadata {
    Metadata::read(&spec.to_disk(), spec.layout, spec.device_len).unwrap()
}

fn judged(spec: &Spec, record: Option<&Superblock>) -> Result<u32, Doubt> {
    let base = Base { uuid: BASE, size: Some((63 << 20) / 512 * 512), record };
    judge(&base, &metadata(spec)).map(|proof| proof.slot)
}

fn reason(spec: &Spec) -> Option<Reason> {
    judged(spec, None).err().map(|doubt| doubt.reason())
}

/// The two formats, each edited in the same way.
fn both(edit: impl Fn(&mut Spec)) -> [Spec; 2] {
    [live_v08(), live_v09()].map(|mut spec| {
        edit(&mut spec);
        spec
    })
}

#[test]
fn a_rotated_primary_is_proven() {
    for spec in both(|_| {}) {
        assert_eq!(judged(&spec, None), Ok(0));
        assert_eq!(judged(&spec, Some(&metadata(&spec).superblock)), Ok(0));
    }
}

#[test]
fn the_role_is_no_part_of_a_uuid() {
    for spec in both(|spec| {
        spec.current |= 1;
        spec.peers[0].uuid |= 1;
    }) {
        assert_eq!(judged(&spec, None), Ok(0));
    }
}

/// After a demotion the bitmap is exact, and the log is read all the same.
#[test]
fn a_demoted_primary_is_proven() {
    for spec in both(|spec| spec.flags = 0x11) {
        assert_eq!(judged(&spec, None), Ok(0));
        let map = metadata(&spec).map(&spec.to_disk(), 0).unwrap();
        assert_eq!(map.activity_log_bytes, 4 << 20);
    }
}

#[test]
fn another_history_is_no_base() {
    for spec in both(|spec| {
        spec.peers[0].uuid = OLDER;
        spec.current = TIP;
    }) {
        assert_eq!(reason(&spec), Some(Reason::BaseMismatch));
    }
    // The device below was rolled back: its metadata went with it.
    for spec in both(|spec| {
        spec.current = OLDER;
        spec.peers[0].uuid = 0;
    }) {
        assert_eq!(reason(&spec), Some(Reason::BaseMismatch));
    }
}

#[test]
fn a_bitmap_since_another_time_is_none() {
    // Rotated once more, by whomever; or a resync has ended.
    for uuid in [OLDER, 0, TIP] {
        for spec in both(|spec| {
            spec.peers[0].uuid = uuid;
            spec.history = vec![BASE, OLDER];
        }) {
            assert_eq!(reason(&spec), Some(Reason::SlotCleared), "{uuid:#x}");
        }
    }
}

/// 8.4 clears the bits of a peer while it resyncs, and so does 9, which keeps the UUID.
#[test]
fn the_bitmap_of_a_peer_that_was_there_is_none() {
    let mut spec = live_v08();
    spec.flags |= 4;
    assert_eq!(judged(&spec, None), Err(Doubt::PeerSeen));
    for flag in [1, 0x10, 0x11] {
        let mut spec = live_v09();
        spec.peers[0].flags = flag;
        assert_eq!(judged(&spec, None), Err(Doubt::PeerSeen), "{flag:#x}");
        assert_eq!(reason(&spec), Some(Reason::SlotCleared));
    }
}

#[test]
fn of_several_bitmaps_the_one_since_the_base_is_followed() {
    let mut spec = live_v09();
    spec.bits = vec![[0].into(), [1].into(), [2].into()];
    spec.peers = vec![
        PeerSpec { node: 1, uuid: BASE, flags: 0x11, slot: 1 },
        PeerSpec { node: 2, uuid: BASE, flags: 0, slot: 2 },
        PeerSpec { node: 3, uuid: OLDER, flags: 0, slot: 0 },
    ];
    assert_eq!(judged(&spec, None), Ok(2));
    // Our own entry is no peer's.
    spec.node_id = 2;
    assert_eq!(judged(&spec, None), Err(Doubt::PeerSeen));
}

/// `new-current-uuid --clear-bitmap` clears the bitmaps of no peer too, but leaves the UUIDs
/// that were noted for them.
#[test]
fn a_bitmap_of_no_peer_does_not_say_when_it_was_cleared() {
    let mut spec = live_v09();
    spec.peers[0].slot = -1;
    assert_eq!(judged(&spec, None), Err(Doubt::Unallocated));
    assert_eq!(reason(&spec), Some(Reason::SlotCleared));
}

#[test]
fn a_full_sync_flag_is_believed() {
    let mut spec = live_v08();
    spec.flags |= 8;
    assert_eq!(reason(&spec), Some(Reason::FullSyncFlag));
    let mut spec = live_v09();
    spec.peers[0].flags = 8;
    assert_eq!(reason(&spec), Some(Reason::FullSyncFlag));
    // As 9.3 writes it for all where no bitmap is allocated.
    spec.peers = (1..32).map(|node| PeerSpec { node, uuid: BASE, flags: 8, slot: -1 }).collect();
    assert_eq!(reason(&spec), Some(Reason::FullSyncFlag));
}

#[test]
fn without_a_log_only_a_clean_secondary_is_proven() {
    for (flags, expected) in [
        (0x113, Some(Reason::AlDisabled)),
        (0x151, Some(Reason::AlDisabled)),
        (0x1d1, Some(Reason::AlDisabled)),
        (0x111, None),
    ] {
        for spec in both(|spec| spec.flags = flags) {
            assert_eq!(reason(&spec), expected, "{flags:#x}");
        }
    }
}

#[test]
fn a_damaged_log_proves_nothing() {
    for spec in both(|spec| {
        spec.log.ring[3][100] ^= 1;
        spec.log.ring[4][100] ^= 1;
    }) {
        assert_eq!(reason(&spec), Some(Reason::AlDamaged));
    }
    for spec in both(|spec| {
        spec.log.write(&[(1, 4)]);
        spec.log.write(&[(2, 5)]);
        spec.log.ring[1] = Transaction::UNUSED.to_bytes();
    }) {
        assert_eq!(reason(&spec), Some(Reason::AlDamaged));
    }
}

#[test]
fn a_log_that_was_applied_by_a_tool_may_lack_a_part() {
    // After a crash, and in the snapshot of a live Primary.
    for flags in [0xd1, 0x93] {
        for spec in both(|spec| {
            spec.log = Log::new((1, 8), 1237);
            spec.flags = flags;
        }) {
            assert_eq!(reason(&spec), Some(Reason::AlAlreadyApplied), "{flags:#x}");
        }
    }
    // Never used: a device that was only rotated.
    for flags in [0x91, 0x13] {
        for spec in both(|spec| {
            spec.log = Log::new((1, 8), 1237);
            spec.flags = flags;
        }) {
            assert_eq!(reason(&spec), None, "{flags:#x}");
        }
    }
}

/// It runs again after a crash, so some tool has applied its log.
#[test]
fn after_a_crash_the_last_region_counts_as_changed() {
    for spec in both(|spec| {
        spec.flags = 0x53;
        spec.log = Log::new((1, 8), 1237);
    }) {
        assert_eq!(judged(&spec, None), Ok(0));
        let map = metadata(&spec).map(&spec.to_disk(), 0).unwrap();
        let extents: Vec<_> = map.map.changed.iter().map(|e| (e.offset(), e.end())).collect();
        assert_eq!(extents, [(60 << 20, 63 << 20)]);
    }
}

#[test]
fn another_size_is_another_map() {
    for sectors in [(63 << 20) / 512 - 1, (63 << 20) / 512 + 1] {
        for spec in both(|spec| spec.sectors = sectors) {
            assert_eq!(reason(&spec), Some(Reason::SizeChanged));
        }
    }
    let base = Base { uuid: BASE, size: None, record: None };
    let doubt = judge(&base, &metadata(&live_v09())).unwrap_err();
    assert_eq!(doubt.reason(), Reason::SizeChanged);
}

#[test]
fn metadata_that_was_made_anew_is_noticed_where_the_old_is_known() {
    let then = metadata(&live_v09()).superblock;
    type Edit = fn(&mut Spec);
    let edits: [Edit; 5] = [
        |spec| spec.block_len = 8192,
        |spec| spec.bits.push([].into()),
        |spec| spec.log = Log::new((2, 4), 1237),
        |spec| spec.node_id = 9,
        |spec| {
            spec.layout = Layout::External;
            spec.device_len = 65 << 20;
        },
    ];
    for edit in edits {
        let mut spec = live_v09();
        edit(&mut spec);
        assert_eq!(judged(&spec, Some(&then)), Err(Doubt::GeometryChanged));
        assert_eq!(judged(&spec, None), Ok(0));
    }
    let doubt = judged(&live_v08(), Some(&then)).unwrap_err();
    assert_eq!(doubt.reason(), Reason::GeometryChanged);
}

#[test]
fn the_same_name_is_not_the_same_instant() {
    for spec in both(|spec| spec.current = BASE) {
        assert_eq!(reason(&spec), Some(Reason::UuidUnchanged));
    }
}

#[test]
fn a_secondary_of_8_4_records_nothing() {
    let mut spec = live_v08();
    spec.flags = 0x15;
    assert_eq!(reason(&spec), Some(Reason::NotTracked));
    // In sync with its Primary it has the same current UUID, which is the base or not.
    spec.peers[0].uuid = 0;
    spec.history = vec![BASE, OLDER];
    assert_eq!(reason(&spec), Some(Reason::NotTracked));
    // One of DRBD 9 keeps bitmaps and log of its own.
    let mut spec = live_v09();
    spec.flags = 0x413;
    assert_eq!(reason(&spec), None);
}

#[test]
fn what_is_being_overwritten_is_no_image() {
    for spec in both(|spec| spec.flags = 0x12) {
        assert_eq!(reason(&spec), Some(Reason::NotConsistent));
    }
}

#[test]
fn what_is_just_created_has_no_name() {
    for current in [4, 5, 0, 1] {
        for spec in both(|spec| spec.current = current) {
            assert_eq!(reason(&spec), Some(Reason::JustCreated), "{current}");
        }
    }
    for spec in both(|spec| spec.sectors = 0) {
        assert_eq!(reason(&spec), Some(Reason::JustCreated));
    }
    // Nor does a target's generation of that name lead anywhere.
    let base = Base { uuid: 4, size: Some(63 << 20), record: None };
    for spec in both(|spec| spec.peers[0].uuid = 4) {
        assert_eq!(judge(&base, &metadata(&spec)).unwrap_err().reason(), Reason::BaseMismatch);
    }
}

/// At its first attach everything is marked, and the log is off until that is cleared.
#[test]
fn a_fresh_device_has_changed_everywhere() {
    for spec in both(|spec| {
        spec.log = Log::new((1, 8), 1237);
        spec.bits[0] = (0..(63 << 20) / 4096).collect();
    }) {
        assert_eq!(judged(&spec, None), Ok(0));
        let map = metadata(&spec).map(&spec.to_disk(), 0).unwrap();
        assert_eq!((map.map.changed.byte_count(), map.activity_log_bytes), (63 << 20, 0));
    }
}
