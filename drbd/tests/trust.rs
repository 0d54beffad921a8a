//! Every way in which a map is proven or not.

use driftline_drbd::{
    Base, Doubt, Flags, Layout, Metadata, Record, judge,
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

/// What was kept of a rotated snapshot of the same device.
fn record_of(spec: &Spec) -> Record {
    Record { current_uuid: BASE, logged: true, ..Record::of(&metadata(spec), true) }
}

fn judged_from(spec: &Spec, record: Option<&Record>) -> Result<u32, Doubt> {
    let base = Base { uuid: BASE, size: Some((63 << 20) / 512 * 512), record };
    judge(&base, &metadata(spec)).map(|proof| proof.slot)
}

fn judged(spec: &Spec) -> Result<u32, Doubt> {
    judged_from(spec, Some(&record_of(spec)))
}

fn reason(spec: &Spec) -> Option<Reason> {
    judged(spec).err().map(|doubt| doubt.reason())
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
        assert_eq!(judged(&spec), Ok(0));
    }
}

/// The name of the base says neither which instant it was nor on which node.
#[test]
fn without_a_record_of_the_base_nothing_is_proven() {
    for spec in both(|_| {}) {
        assert_eq!(judged_from(&spec, None), Err(Doubt::NoRecord));
        let right = record_of(&spec);
        // A plain snapshot of the same name, before the bitmap was cleared under it.
        let plain = Record { rotated: false, ..right.clone() };
        assert_eq!(judged_from(&spec, Some(&plain)), Err(Doubt::NotRotated));
        let other = Record { node_id: Some(7), ..right.clone() };
        let now = right.node_id;
        assert_eq!(judged_from(&spec, Some(&other)), Err(Doubt::OtherNode { then: Some(7), now }));
        let other = Record { device_uuid: 9, ..right.clone() };
        assert_eq!(judged_from(&spec, Some(&other)), Err(Doubt::GeometryChanged));
        let other = Record { current_uuid: OLDER, ..right.clone() };
        assert_eq!(judged_from(&spec, Some(&other)), Err(Doubt::NoRecord));
        // The peer came later, and so has the bits of whatever slot was free.
        let before = Record { slots: Vec::new(), ..right };
        assert_eq!(judged_from(&spec, Some(&before)), Err(Doubt::Unallocated));
    }
}

/// DRBD keeps all bits in memory, and its log unused, until fresh metadata are cleared once.
#[test]
fn what_was_in_use_without_a_log_proves_nothing() {
    for (flags, refused) in
        [(0x453, true), (0x413, true), (0x441, true), (0x4d3, false), (0x411, false)]
    {
        for mut spec in both(|spec| spec.flags = flags) {
            let record = Record { logged: false, flags: Flags(flags), ..record_of(&spec) };
            spec.flags = 0x411;
            let of_base = judged_from(&spec, Some(&record)).err();
            assert_eq!(of_base, refused.then_some(Doubt::Unlogged { base: true }), "{flags:#x}");
        }
        for spec in both(|spec| {
            spec.flags = flags;
            spec.log = Log::new((1, 8), 1237);
        }) {
            let of_tip = judged(&spec) == Err(Doubt::Unlogged { base: false });
            assert_eq!(of_tip, refused, "{flags:#x}");
        }
    }
}

#[test]
fn the_role_is_no_part_of_a_uuid() {
    for spec in both(|spec| {
        spec.current |= 1;
        spec.peers[0].uuid |= 1;
    }) {
        assert_eq!(judged(&spec), Ok(0));
    }
}

/// After a demotion the bitmap is exact, and the log is read all the same.
#[test]
fn a_demoted_primary_is_proven() {
    for spec in both(|spec| spec.flags = 0x11) {
        assert_eq!(judged(&spec), Ok(0));
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
    assert_eq!(judged(&spec), Err(Doubt::PeerSeen));
    for flag in [1, 0x10, 0x11] {
        let mut spec = live_v09();
        spec.peers[0].flags = flag;
        assert_eq!(judged(&spec), Err(Doubt::PeerSeen), "{flag:#x}");
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
    // With a peer that was there DRBD clears the bitmaps of others by itself.
    assert_eq!(judged(&spec), Err(Doubt::PeerSeen));
    spec.peers[0].flags = 0;
    spec.peers[0].uuid = OLDER;
    assert_eq!(judged(&spec), Ok(2));
    // One that has no bitmap of its own is there as well.
    spec.peers.push(PeerSpec { node: 4, uuid: 0, flags: 0x10, slot: -1 });
    assert_eq!(judged(&spec), Err(Doubt::PeerSeen));
    spec.peers.pop();
    // Our own entry is no peer's.
    spec.node_id = 2;
    assert_eq!(reason(&spec), Some(Reason::BaseMismatch));
}

/// `new-current-uuid --clear-bitmap` clears the bitmaps of no peer too, but leaves the UUIDs
/// that were noted for them.
#[test]
fn a_bitmap_of_no_peer_does_not_say_when_it_was_cleared() {
    let mut spec = live_v09();
    spec.peers[0].slot = -1;
    assert_eq!(judged(&spec), Err(Doubt::Unallocated));
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
    // A device that was only rotated since, and is not in use.
    for spec in both(|spec| {
        spec.log = Log::new((1, 8), 1237);
        spec.flags = 0x91;
    }) {
        assert_eq!(reason(&spec), None);
    }
}

/// After a crash some tool has applied its log. DRBD 8.4 has the flag only then; on DRBD 9 every
/// Primary has it, and the log that the tool has emptied tells.
#[test]
fn after_a_crash_the_last_region_counts_as_changed() {
    let last = vec![(60 << 20, 63 << 20)];
    let first = vec![(12 << 20, 16 << 20)];
    let with_last = [&first[..], &last].concat();
    for (flags, used, v08, v09) in [
        (0x453, false, &last, &last),
        (0x453, true, &with_last, &first),
        (0x4d3, false, &last, &last),
        (0x4d3, true, &with_last, &with_last),
        (0x413, true, &first, &first),
    ] {
        for (spec, expected) in both(|spec| {
            spec.flags = flags;
            if !used {
                spec.log = Log::new((1, 8), 1237);
            }
        })
        .into_iter()
        .zip([v08, v09])
        {
            let map = metadata(&spec).map(&spec.to_disk(), 0).unwrap();
            let extents: Vec<_> = map.map.changed.iter().map(|e| (e.offset(), e.end())).collect();
            assert_eq!(extents, *expected, "{flags:#x}, log used: {used}, v09: {}", spec.v09);
        }
    }
    // It runs again, and was written.
    for spec in both(|spec| spec.flags = 0x53) {
        assert_eq!(judged(&spec), Ok(0));
    }
}

#[test]
fn another_size_is_another_map() {
    for sectors in [(63 << 20) / 512 - 1, (63 << 20) / 512 + 1] {
        for spec in both(|spec| spec.sectors = sectors) {
            assert_eq!(reason(&spec), Some(Reason::SizeChanged));
        }
    }
    let record = record_of(&live_v09());
    let base = Base { uuid: BASE, size: None, record: Some(&record) };
    let doubt = judge(&base, &metadata(&live_v09())).unwrap_err();
    assert_eq!(doubt.reason(), Reason::SizeChanged);
}

#[test]
fn metadata_that_was_made_anew_is_noticed_where_the_old_is_known() {
    let then = record_of(&live_v09());
    type Edit = fn(&mut Spec);
    let edits: [Edit; 4] = [
        |spec| spec.block_len = 8192,
        |spec| spec.bits.push([].into()),
        |spec| {
            spec.log = Log::new((2, 4), 1237);
            spec.log.write(&[(0, 3)]);
        },
        |spec| {
            spec.layout = Layout::External;
            spec.device_len = 65 << 20;
        },
    ];
    for edit in edits {
        let mut spec = live_v09();
        edit(&mut spec);
        assert_eq!(judged_from(&spec, Some(&then)), Err(Doubt::GeometryChanged));
        assert_eq!(judged(&spec), Ok(0));
    }
    let doubt = judged_from(&live_v08(), Some(&then)).unwrap_err();
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

/// At its first attach everything is marked, and the log is off until that is cleared. Once it is
/// down all of that is on disk.
#[test]
fn a_fresh_device_has_changed_everywhere() {
    for spec in both(|spec| {
        spec.flags = 0x411;
        spec.log = Log::new((1, 8), 1237);
        spec.bits[0] = (0..(63 << 20) / 4096).collect();
    }) {
        assert_eq!(judged(&spec), Ok(0));
        let map = metadata(&spec).map(&spec.to_disk(), 0).unwrap();
        assert_eq!((map.map.changed.byte_count(), map.activity_log_bytes), (63 << 20, 0));
    }
}
