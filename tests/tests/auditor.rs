//! What the source's side finds by itself: how surely, and after how long.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use driftline_chunking::{ChunkKey, TreeHasher};
use driftline_extent::{
    Begin, BlockMask, CHUNK_LEN, Change, ChunkId, Committed, Extent, Generation, Item, Plan,
    PlanKind, Reason, ReplicaId, Root, Standing, TargetState, Volume, chunk_count,
};
use driftline_tests::disk::Rng;
use driftline_transport::{
    Failure,
    auditor::{AuditReport, Auditor, Compare, Reader, Terms},
};
use driftline_trust::{CONFIDENCE, Incidents, SAMPLE_MAX, draw, find_probability, sample_size};
use tempfile::TempDir;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const AGE: u64 = 30 * DAY;

/// A volume that is a hole but for some chunks, each of one byte over and over.
struct Sparse {
    size: u64,
    chunks: Mutex<BTreeMap<u64, u8>>,
}

impl Sparse {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, chunks: Mutex::default() })
    }

    fn write(&self, chunk: u64, byte: u8) {
        self.chunks.lock().unwrap().insert(chunk, byte);
    }

    fn id(&self, chunk: u64) -> ChunkId {
        let mut bytes = vec![0; CHUNK_LEN as usize];
        self.read_at(chunk * CHUNK_LEN, &mut bytes).unwrap();
        key().id(&bytes)
    }

    /// The root over it, while it is a hole.
    fn empty_root(&self) -> Root {
        let mut tree = TreeHasher::new(&key());
        tree.push_zeros(chunk_count(self.size));
        tree.into_root(self.size)
    }
}

impl Volume for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let chunks = self.chunks.lock().unwrap();
        for (at, byte) in (offset..).zip(buf) {
            *byte = chunks.get(&(at / CHUNK_LEN)).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let chunks = self.chunks.lock().unwrap();
        let next = chunks.range(from / CHUNK_LEN..).next();
        Ok(next.and_then(|(chunk, _)| {
            Extent::from_bounds(from.max(chunk * CHUNK_LEN), (chunk + 1) * CHUNK_LEN)
        }))
    }
}

fn key() -> ChunkKey {
    ChunkKey::new(&[2; 32])
}

/// A source's side that runs again and again, beside a target that does what it is told.
struct Side {
    dir: TempDir,
    volume: Arc<Sparse>,
    state: TargetState,
    now_ms: u64,
    sample: Option<u64>,
    compare: Compare,
    seed: u64,
}

impl Side {
    /// A first copy was made of an empty volume.
    fn new(size: u64) -> Self {
        let state = TargetState {
            replica: ReplicaId([1; 16]),
            chunk_key: [2; 32],
            ..TargetState::nothing()
        };
        let (dir, volume) = (TempDir::new().unwrap(), Sparse::new(size));
        let (sample, compare) = (None, Compare::Never);
        let mut side = Self { dir, volume, state, now_ms: 1 << 40, sample, compare, seed: 0 };
        let expected = side.volume.empty_root();
        let root = side.run(PlanKind::Full, &[]).unwrap().0;
        assert_eq!(root, expected);
        side
    }

    fn terms(&self) -> Terms {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        Terms {
            dir: self.dir.path().join("manifest"),
            incidents: Incidents::new(self.dir.path().join("incidents")),
            source: "source".into(),
            target: "target".into(),
            age_ms: AGE,
            sample: self.sample,
            compare: self.compare,
            now_ms: self.now_ms,
            seed,
        }
    }

    /// A plan from what the target holds.
    fn plan(&self, kind: PlanKind, tip: Generation) -> Plan {
        Plan {
            kind,
            volume: None,
            base: self.state.generation,
            tip: Some(tip),
            size: Some(self.volume.size),
            standing: Standing::Proven,
            bytes_expected: 0,
        }
    }

    /// One run, with what the map says.
    fn run(&mut self, kind: PlanKind, items: &[Item]) -> Result<(Root, AuditReport), Failure> {
        self.seed += 1;
        let tip = Generation::zfs(self.seed);
        let size = self.volume.size;
        let mut plan = self.plan(kind, tip);
        let mut auditor = Auditor::new(self.terms());
        let told = auditor.audit_report();
        let reader: Reader = self.volume.clone();
        auditor.plan(&self.state, &mut plan, Some(reader))?;
        assert_eq!(plan.kind, kind, "the plan was changed to {plan:?}");
        auditor.begin(Begin { from: 0 })?;
        auditor.note(items.iter())?;
        let root = auditor.conclude(Some(tip), size)?.expect("there is a manifest");
        let committed = Committed { generation: tip, root, size, zeroed: None };
        auditor.committed(&committed);
        self.state.advance(&committed);
        let told = told.lock().unwrap().clone();
        Ok((root, told))
    }

    /// One run of a map that says that some chunks have changed, in which all is compared instead.
    fn comparison(&mut self, changed: &[u64]) -> (Root, AuditReport) {
        self.seed += 1;
        let tip = Generation::zfs(self.seed);
        let mut plan = self.plan(PlanKind::Incremental, tip);
        let mut auditor = Auditor::new(self.terms());
        let told = auditor.audit_report();
        let reader: Reader = self.volume.clone();
        auditor.plan(&self.state, &mut plan, Some(reader)).unwrap();
        assert_eq!((plan.kind, plan.standing), (PlanKind::Scan, Standing::Proven));
        auditor.begin(Begin { from: 0 }).unwrap();
        let size = self.volume.size;
        let ids: Vec<_> = (0..chunk_count(size)).map(|index| self.volume.id(index)).collect();
        auditor.note_scanned(0, &ids).unwrap();
        assert!(auditor.wants_map());
        for index in changed {
            let change = Change::Data { offset: index * CHUNK_LEN + 512, bytes: vec![1; 512] };
            auditor.note_mapped(&change, size);
        }
        let root = auditor.conclude(Some(tip), size).unwrap().expect("there is a manifest");
        let committed = Committed { generation: tip, root, size, zeroed: None };
        auditor.committed(&committed);
        // Once is enough: a second increment of the same run is one.
        let mut next = Plan { base: Some(tip), ..self.plan(PlanKind::Incremental, tip) };
        self.state.advance(&committed);
        auditor.plan(&self.state, &mut next, Some(self.volume.clone())).unwrap();
        assert_eq!(next.kind, PlanKind::Incremental);
        let told = told.lock().unwrap().clone();
        (root, told)
    }

    /// One run of a map that says that some chunks have changed, and nothing of others.
    fn increment(&mut self, changed: &[u64]) -> Result<(Root, AuditReport), Failure> {
        let items = changed.iter().map(|index| Item::Chunk {
            index: *index,
            // In part, so that the rest is read.
            data: BlockMask::covering(0, 4096),
            zero: BlockMask::NONE,
            id: self.volume.id(*index),
        });
        let items: Vec<Item> = items.collect();
        self.run(PlanKind::Incremental, &items)
    }

    fn incidents(&self) -> Vec<Reason> {
        let all = Incidents::new(self.dir.path().join("incidents")).all().unwrap();
        all.into_iter().map(|(_, incident)| incident.reason).collect()
    }
}

/// Runs every `every`, until one finds what is stale; says after how long.
fn time_to_find(seed: u64, every: u64) -> u64 {
    let mut rng = Rng(seed);
    let mut side = Side::new(1 << 40);
    side.sample = Some(0);
    let chunks = chunk_count(1 << 40);
    // The pass is anywhere when the map misses a write of 4 KiB.
    for _ in 0..rng.below(AGE / every) {
        side.now_ms += every;
        side.increment(&[]).unwrap();
    }
    let (stale, missed_ms) = (rng.below(chunks), side.now_ms + rng.below(every));
    side.volume.write(stale, 7);
    loop {
        side.now_ms += every;
        match side.increment(&[]) {
            Ok(_) => assert!(side.now_ms - missed_ms <= AGE, "seed {seed}: not found"),
            Err(failure) => {
                assert_eq!(failure.reason, Reason::AuditMismatch, "{failure}");
                assert_eq!(side.incidents(), [Reason::AuditMismatch]);
                return side.now_ms - missed_ms;
            }
        }
    }
}

#[test]
fn one_stale_block_in_a_tebibyte_is_found_within_the_age() {
    for (every, times) in [(6 * HOUR, 32), (14 * DAY, 16)] {
        let found: Vec<u64> = (0..times).map(|seed| time_to_find(seed, every)).collect();
        let mean = found.iter().sum::<u64>() / times;
        println!(
            "1 TiB, one stale block, by the rolling pass alone, a run every {} hours, {times} \
             places: found after {:.1} days on average ({:.1} expected), {:.1} at most, and the \
             limit is {} days",
            every / HOUR,
            mean as f64 / DAY as f64,
            // Half of a pass, which takes half of the age.
            (AGE / 4) as f64 / DAY as f64,
            found.iter().copied().max().unwrap_or(0) as f64 / DAY as f64,
            AGE / DAY,
        );
        assert!(found.iter().all(|ms| *ms <= AGE / 2 + every), "{found:?}");
    }
}

/// How many of `histories` are found in their first run by the sample alone: a volume of which 1 %
/// of all blocks change, scattered, and a map that misses 1 % of these.
fn found_by_the_sample(chunks: u64, histories: u64, seed: u64) -> (u64, u64, f64) {
    let mut rng = Rng(seed);
    let blocks = chunks * 16;
    let changed = blocks / 100;
    let (mut found, mut sampled, mut least) = (0, 0, 1.0_f64);
    for _ in 0..histories {
        let mut missed = Vec::new();
        let mut touched = HashSet::new();
        for _ in 0..changed {
            let chunk = rng.below(blocks) / 16;
            if rng.below(100) == 0 {
                missed.push(chunk);
            } else {
                touched.insert(chunk);
            }
        }
        // What is missed in a chunk that is touched is not even counted: roots would differ.
        let stale: HashSet<u64> = missed.into_iter().filter(|c| !touched.contains(c)).collect();
        let count = sample_size(chunks, touched.len() as u64, SAMPLE_MAX);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        let drawn = draw(&key, chunks, count);
        found += u64::from(drawn.iter().any(|chunk| stale.contains(chunk)));
        sampled = sampled.max(count);
        least = least.min(find_probability(chunks, stale.len() as u64, count));
    }
    (found, sampled, least)
}

#[test]
fn a_map_that_misses_a_hundredth_of_the_changes_is_found_in_the_first_run() {
    for (gib, histories) in [(1, 2000), (10, 300)] {
        let chunks = chunk_count(gib << 30);
        let seed = 0x5eed + gib;
        let (found, sampled, least) = found_by_the_sample(chunks, histories, seed);
        println!(
            "{gib} GiB, 1 % of 4 KiB blocks changed, 1 % of these missed, seed {seed}: found in \
             the first run by the sample alone in {found} of {histories} histories; at most \
             {sampled} of {chunks} chunks were read, and the least chance was {least:.4}"
        );
        assert!(found as f64 > CONFIDENCE * histories as f64, "{found} of {histories}");
    }
}

#[test]
fn a_stale_chunk_fails_the_run_and_turns_the_next_into_a_scan() {
    let mut side = Side::new(64 << 20);
    side.volume.write(3, 1);
    side.volume.write(900, 1);
    let before = side.state.clone();
    // The map tells of one of both, and there are fewer chunks than are drawn at least.
    side.sample = Some(1024);
    let failure = side.increment(&[3]).unwrap_err();
    assert_eq!(failure.reason, Reason::AuditMismatch);
    assert!(failure.detail.contains(&(900 * CHUNK_LEN).to_string()), "{failure}");
    let mut plan = side.plan(PlanKind::Incremental, Generation::zfs(50));
    let mut auditor = Auditor::new(side.terms());
    let reader: Reader = side.volume.clone();
    auditor.plan(&before, &mut plan, Some(reader)).unwrap();
    assert_eq!(plan.kind, PlanKind::Scan);
    assert_eq!(plan.standing, Standing::Suspect(Reason::AuditMismatch));
    auditor.begin(Begin { from: 0 }).unwrap();
    let ids: Vec<ChunkId> = (0..1024).map(|index| side.volume.id(index)).collect();
    auditor.note_scanned(0, &ids).unwrap();
    let root = auditor.conclude(Some(Generation::zfs(50)), 64 << 20).unwrap().unwrap();
    let committed =
        Committed { generation: Generation::zfs(50), root, size: 64 << 20, zeroed: None };
    auditor.committed(&committed);
    side.state.advance(&committed);
    // It is mended, and maps are believed again.
    side.seed = 60;
    let (again, told) = side.increment(&[]).unwrap();
    assert_eq!((again, told.rebuilt), (root, None));
    assert_eq!(told.audit.map(|audit| audit.stale), Some(0));
}

#[test]
fn all_is_compared_when_that_is_due_or_asked_for() {
    let mut side = Side::new(64 << 20);
    side.compare = Compare::After(7 * DAY);
    // The first copy was a comparison of all.
    side.now_ms += 7 * DAY - 1;
    side.volume.write(3, 1);
    side.increment(&[3]).unwrap();
    side.now_ms += 1;
    side.volume.write(5, 1);
    let (root, told) = side.comparison(&[5]);
    assert_eq!((told.missed, told.audit, told.rebuilt), (Some(0), None, None));
    // It is dated, and what is listed is what was compared.
    side.now_ms += 7 * DAY - 1;
    let (again, _) = side.increment(&[]).unwrap();
    assert_eq!(again, root);
    side.compare = Compare::Now;
    assert_eq!(side.comparison(&[]).0, root);
    // A clock that was set back says nothing of how long ago that was.
    side.compare = Compare::After(7 * DAY);
    side.now_ms -= 2 * HOUR;
    side.comparison(&[]);
    assert_eq!(side.incidents(), []);
}

#[test]
fn a_comparison_tells_what_the_map_has_missed() {
    let mut side = Side::new(64 << 20);
    (side.sample, side.compare) = (Some(0), Compare::Now);
    [3, 5, 900].iter().for_each(|chunk| side.volume.write(*chunk, 1));
    let (root, told) = side.comparison(&[3, 4]);
    assert_eq!(told.missed, Some(2));
    let dir = side.dir.path().join("incidents");
    let (_, incident) = Incidents::new(dir).all().unwrap().remove(0);
    let chunk = |index| Extent::new(index * CHUNK_LEN, CHUNK_LEN).unwrap();
    assert_eq!(incident.extents, [chunk(5), chunk(900)]);
    assert_eq!((incident.reason, incident.chunks), (Reason::AuditMismatch, 2));
    // All was compared, so it is equal again.
    assert!(incident.mended.is_some() && incident.is_open());
    side.compare = Compare::Never;
    assert_eq!(side.increment(&[]).unwrap().0, root);
}

#[test]
fn a_target_with_another_root_is_compared() {
    let mut side = Side::new(64 << 20);
    side.state.root = Some(Root([9; 32]));
    let mut plan = side.plan(PlanKind::Incremental, Generation::zfs(50));
    let mut auditor = Auditor::new(side.terms());
    let reader: Reader = side.volume.clone();
    auditor.plan(&side.state, &mut plan, Some(reader)).unwrap();
    assert_eq!(plan.standing, Standing::Suspect(Reason::RootMismatch));
    assert_eq!((plan.kind, side.incidents()), (PlanKind::Scan, vec![Reason::RootMismatch]));
}

/// What a map says is zero is looked at like what it does not speak of.
#[test]
fn a_hole_that_is_none_is_found() {
    let mut side = Side::new(64 << 20);
    side.sample = Some(1024);
    side.volume.write(5, 1);
    let failure = side.run(PlanKind::Incremental, &[Item::Zero { index: 0, count: 1024 }]);
    assert_eq!(failure.unwrap_err().reason, Reason::AuditMismatch);
}

/// What was begun in another session is known from the log, and read again where it is gone.
#[test]
fn an_increment_that_was_cut_off_has_the_same_root() {
    for lost in [false, true] {
        let side = Side::new(64 << 20);
        let changed = [3, 70, 900];
        changed.iter().for_each(|chunk| side.volume.write(*chunk, 1));
        let state = side.state.clone();
        let plan = side.plan(PlanKind::Incremental, Generation::zfs(50));
        let item = |index: u64| Item::Chunk {
            index,
            data: BlockMask::covering(512, 1024),
            zero: BlockMask::NONE,
            id: ChunkId([1; 32]),
        };
        let session = |from: u64, chunks: &[u64]| {
            let mut auditor = Auditor::new(side.terms());
            let told = auditor.audit_report();
            let reader: Reader = side.volume.clone();
            auditor.plan(&state, &mut plan.clone(), Some(reader)).unwrap();
            auditor.begin(Begin { from }).unwrap();
            let items: Vec<Item> = chunks.iter().map(|index| item(*index)).collect();
            auditor.note(items.iter()).unwrap();
            (auditor, told)
        };
        drop(session(0, &changed[..2]));
        if lost {
            remove(&side.dir.path().join("manifest/log"));
        }
        let (mut auditor, told) = session(71, &changed[2..]);
        let root = auditor.conclude(Some(Generation::zfs(50)), 64 << 20).unwrap();
        let rebuilt = told.lock().unwrap().rebuilt;
        assert_eq!(rebuilt, lost.then_some(Reason::ManifestMissing));
        let ids: Vec<ChunkId> = (0..1024).map(|index| side.volume.id(index)).collect();
        let mut tree = TreeHasher::new(&key());
        ids.iter().for_each(|id| tree.push(*id));
        assert_eq!(root, Some(tree.into_root(64 << 20)));
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}
