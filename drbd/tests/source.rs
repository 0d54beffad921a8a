//! An image as a source: which plan for which target, and what it delivers.

use std::sync::Arc;

use driftline_drbd::{
    DrbdError, DrbdVolume, Layout, Metadata, Record,
    testing::{SparseDisk, Spec},
};
use driftline_extent::{
    Accepts, Change, Explained, Extent, Generation, Plan, PlanKind, Reason, ReplicaId, Source,
    Standing, TargetState, Volume,
};

const BASE: u64 = 0x0bbb_0000_0000_0000;
const TIP: u64 = 0x0ccc_0000_0000_0000;
const SIZE: u64 = 63 << 20;

fn spec() -> Spec {
    let mut spec = Spec::primary(true, BASE, TIP);
    spec.bits[0] = [0, 1, 2, 300, 301].into();
    spec.log.write(&[(5, 2)]);
    spec
}

/// A device with some data: blocks 1, 300 and 2310, which is hot; and block 700, which is not.
fn image(spec: &Spec) -> SparseDisk {
    let mut disk = spec.to_disk();
    for block in [1, 300, 2310, 700] {
        disk.put(block * 4096, &[block as u8; 4096]);
    }
    disk
}

fn open(spec: &Spec) -> DrbdVolume {
    DrbdVolume::open(Arc::new(image(spec)), None).unwrap().rotated(true)
}

/// What was kept of a rotated snapshot of this device at the base.
fn record_of(spec: &Spec) -> Vec<u8> {
    let metadata = Metadata::read(&spec.to_disk(), spec.layout, spec.device_len).unwrap();
    Record { current_uuid: BASE, logged: true, ..Record::of(&metadata, true) }.encode()
}

/// A target at this generation.
fn holding(generation: Option<Generation>, size: u64) -> TargetState {
    TargetState {
        replica: ReplicaId([1; 16]),
        chunk_key: [2; 32],
        volume: None,
        generation,
        root: None,
        size,
        incomplete: false,
        damaged: false,
        resume: None,
        accepts: Accepts::Volume,
    }
}

fn plan(source: &mut DrbdVolume, base: Option<Generation>, size: u64) -> Result<Plan, DrbdError> {
    source.learn(&holding(base, size));
    // Of every spec here.
    source.recall(Some(&record_of(&spec())));
    source.plan(base.as_ref())
}

/// Every change, as ranges: data or holes.
fn delivered(source: &mut DrbdVolume) -> Vec<(u64, u64, bool)> {
    let mut ranges: Vec<(u64, u64, bool)> = Vec::new();
    while let Some(change) = source.next_change(0).unwrap() {
        let extent = change.extent().unwrap();
        let is_data = matches!(change, Change::Data { .. });
        if let Change::Data { offset, bytes } = change {
            assert!(bytes.iter().all(|byte| *byte == (offset / 4096) as u8), "at {offset}");
        }
        ranges.push((extent.offset() / 4096, extent.end() / 4096, is_data));
    }
    ranges
}

const HELD: Option<Generation> = Some(Generation::drbd(BASE));

#[test]
fn a_proven_map_is_an_increment_of_what_changed() {
    let mut source = open(&spec());
    let plan = plan(&mut source, HELD, SIZE).unwrap();
    assert_eq!((plan.kind, plan.standing), (PlanKind::Incremental, Standing::Proven));
    assert_eq!((plan.base, plan.size), (HELD, Some(SIZE)));
    assert_eq!(plan.bytes_expected, 5 * 4096 + (4 << 20));
    // Holes are told as such, data in pieces of a chunk at most.
    let changes = delivered(&mut source);
    let data: Vec<u64> = changes.iter().filter(|c| c.2).map(|c| c.0).collect();
    assert_eq!(data, [1, 300, 2310]);
    let holes: Vec<_> = changes.iter().filter(|c| !c.2).map(|c| (c.0, c.1)).collect();
    assert_eq!(holes, [(0, 1), (2, 3), (301, 302), (2048, 2310), (2311, 3072)]);
    let finish = source.finish().unwrap();
    assert_eq!((finish.tip, finish.size), (Generation::drbd(TIP), Some(SIZE)));
    // There is no second one in the same snapshot.
    let tip = Some(finish.tip);
    assert_eq!(source.plan(tip.as_ref()).unwrap().kind, PlanKind::UpToDate);
}

/// Its name alone does not tell one snapshot from another of the same current UUID.
#[test]
fn an_increment_that_was_cut_off_is_not_gone_on_with() {
    let mut source = open(&spec());
    assert_eq!(plan(&mut source, HELD, SIZE).unwrap().tip, None);
}

#[test]
fn a_first_copy_is_full() {
    let mut source = open(&spec());
    let plan = plan(&mut source, None, 0).unwrap();
    assert_eq!((plan.kind, plan.standing), (PlanKind::Full, Standing::Proven));
    assert_eq!(plan.tip, Some(Generation::drbd(TIP)));
    let changes = delivered(&mut source);
    let data: Vec<u64> = changes.iter().filter(|c| c.2).map(|c| c.0).collect();
    assert_eq!(data, [1, 300, 700, 2310]);
    assert_eq!(changes.iter().map(|c| c.1 - c.0).sum::<u64>(), SIZE / 4096);
}

/// One of its name exists at every instant until the bitmap is cleared, and on every node.
#[test]
fn what_was_not_rotated_is_named_by_its_content() {
    let plain = || DrbdVolume::open(Arc::new(image(&spec())), None).unwrap();
    let mut first = plain();
    let planned = first.plan(None).unwrap();
    assert_eq!((planned.kind, planned.tip), (PlanKind::Full, None));
    assert!(first.is_unnamed().unwrap());
    // It may end a proven increment, from which no other starts.
    let mut last = plain();
    let planned = plan(&mut last, HELD, SIZE).unwrap();
    assert_eq!((planned.kind, planned.tip), (PlanKind::Incremental, None));
    assert!(last.is_unnamed().unwrap());
    // What was kept with it says that it is of this volume, and everything is compared.
    let content = Generation::content(driftline_extent::Root([7; 32]));
    let record = last.record();
    for (record, standing) in [(record.as_deref(), Some(Reason::MapMissing)), (None, None)] {
        let mut next = open(&spec());
        next.learn(&holding(Some(content), SIZE));
        next.recall(record);
        match (next.plan(Some(&content)), standing) {
            (Ok(plan), Some(reason)) => {
                assert_eq!((plan.kind, plan.base), (PlanKind::Scan, Some(content)));
                assert_eq!(plan.standing, Standing::Suspect(reason));
            }
            (Err(error), None) => assert_eq!(error.reason(), Reason::BaseMismatch),
            (other, _) => panic!("{other:?}"),
        }
    }
}

/// A replica of an earlier version is compared, and not refused.
#[test]
fn without_a_record_everything_is_compared() {
    let mut source = open(&spec());
    source.learn(&holding(HELD, SIZE));
    let plan = source.plan(HELD.as_ref()).unwrap();
    assert_eq!((plan.kind, plan.base), (PlanKind::Scan, HELD));
    assert_eq!(plan.standing, Standing::Suspect(Reason::ManifestMissing));
}

#[test]
fn what_is_not_proven_is_scanned_and_says_why() {
    for (edit, size, reason) in [
        ((|_| {}) as fn(&mut Spec), SIZE - 512, Reason::SizeChanged),
        (|spec| spec.peers[0].flags = 8, SIZE, Reason::FullSyncFlag),
        (|spec| spec.log.ring[7][8] ^= 1, SIZE, Reason::AlDamaged),
        (|spec| spec.current = BASE, SIZE, Reason::UuidUnchanged),
    ] {
        let mut spec = spec();
        edit(&mut spec);
        let mut source = open(&spec);
        let plan = plan(&mut source, HELD, size).unwrap();
        assert_eq!((plan.kind, plan.standing), (PlanKind::Scan, Standing::Suspect(reason)));
        // The base is told, so that the target need not be asked to give it up.
        assert_eq!((plan.base, plan.tip), (HELD, Some(Generation::drbd(spec.current))));
        assert_eq!(source.finish().unwrap().tip, Generation::drbd(spec.current));
    }
}

#[test]
fn a_target_of_another_history_is_refused_without_consent() {
    for held in [Generation::drbd(0x77 << 40), Generation::zfs(BASE), Generation::drbd(4)] {
        let error = plan(&mut open(&spec()), Some(held), SIZE).unwrap_err();
        assert_eq!(error.reason(), Reason::BaseMismatch);
        assert!(error.to_string().contains("--full"), "{error}");
        let mut agreed = open(&spec()).allow_full(true);
        let plan = plan(&mut agreed, Some(held), SIZE).unwrap();
        assert_eq!((plan.kind, plan.base), (PlanKind::Scan, None));
        assert_eq!(plan.standing, Standing::Suspect(Reason::BaseMismatch));
    }
}

/// What the target holds may not be what was committed to it: that is what consent is for.
#[test]
fn with_consent_everything_is_compared() {
    let mut source = open(&spec()).allow_full(true);
    let plan = plan(&mut source, HELD, SIZE).unwrap();
    assert_eq!((plan.kind, plan.standing), (PlanKind::Scan, Standing::Proven));
}

#[test]
fn what_is_no_image_is_never_sent() {
    for (current, flags, reason) in
        [(4, 0x13, Reason::JustCreated), (TIP, 0x12, Reason::NotConsistent)]
    {
        for (base, consent) in [(None, false), (HELD, false), (HELD, true)] {
            let spec = Spec { current, flags, ..spec() };
            let mut source = open(&spec).allow_full(consent);
            assert_eq!(plan(&mut source, base, SIZE).unwrap_err().reason(), reason);
        }
    }
}

#[test]
fn the_volume_ends_where_the_metadata_says() {
    let source = open(&spec());
    let volume = source.volume();
    assert_eq!(volume.size(), SIZE);
    // The metadata is no data.
    assert_eq!(volume.next_data(3000 * 4096).unwrap(), None);
}

/// A device whose metadata is that of a later time when it is read again.
struct Live {
    then: SparseDisk,
    now: SparseDisk,
    reads: std::sync::atomic::AtomicU64,
}

impl Volume for Live {
    fn size(&self) -> u64 {
        self.then.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let is_superblock = offset == self.size() - 4096;
        let seen =
            self.reads.fetch_add(u64::from(is_superblock), std::sync::atomic::Ordering::SeqCst);
        if is_superblock && seen > 0 { &self.now } else { &self.then }.read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> std::io::Result<Option<Extent>> {
        self.then.next_data(from)
    }
}

#[test]
fn a_device_that_is_written_to_is_noticed() {
    let (then, now) = (image(&spec()), image(&Spec { current: TIP + 2, ..spec() }));
    let live = Live { then, now, reads: 0.into() };
    let mut source = DrbdVolume::open(Arc::new(live), None).unwrap();
    plan(&mut source, HELD, SIZE).unwrap();
    delivered(&mut source);
    assert_eq!(source.finish().unwrap_err().reason(), Reason::SourceChanged);
}

#[test]
fn metadata_may_be_elsewhere() {
    for layout in [Layout::External, Layout::Indexed(1)] {
        let spec = Spec { layout, device_len: 256 << 20, ..spec() };
        let mut data = SparseDisk::new(SIZE);
        data.put(300 * 4096, &[300_u64 as u8; 4096]);
        let meta: Arc<dyn Volume + Send + Sync> = Arc::new(spec.to_disk());
        let open = |data| DrbdVolume::open(Arc::new(data), Some((meta.clone(), layout)));
        let mut source = open(data).unwrap().rotated(true);
        source.learn(&holding(HELD, SIZE));
        source.recall(Some(&record_of(&spec)));
        assert_eq!(source.plan(HELD.as_ref()).unwrap().kind, PlanKind::Incremental);
        assert!(delivered(&mut source).contains(&(300, 301, true)));
        let error = open(SparseDisk::new(SIZE - 512)).unwrap_err();
        assert_eq!(error.reason(), Reason::MetadataDamaged);
    }
}

#[test]
fn each_bitmap_in_use_has_a_map() {
    let maps = open(&spec()).maps().unwrap();
    assert_eq!(maps.len(), 1);
    assert_eq!((maps[0].map.base, maps[0].map.standing), (HELD, Standing::Proven));
    assert_eq!((maps[0].bitmap_bytes, maps[0].activity_log_bytes), (5 * 4096, 4 << 20));
    let mut spec = spec();
    spec.peers[0].uuid = 0;
    let maps = open(&spec).maps().unwrap();
    assert_eq!(maps[0].map.standing, Standing::Suspect(Reason::SlotCleared));
    assert_eq!((maps[0].map.base, maps[0].map.changed.byte_count()), (None, SIZE));
}
