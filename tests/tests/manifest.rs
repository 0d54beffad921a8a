//! The source's manifest against a naive model, and under power loss at every operation.

use std::{io, ops::Range};

use driftline_chunking::{ChunkKey, SPAN_CHUNKS, TreeHasher};
use driftline_extent::{
    CHUNK_LEN, ChunkId, Extent, Generation, ReplicaId, Root, TargetState, chunk_count,
};
use driftline_target::Disk;
use driftline_tests::disk::{FakeDisk, Rng, Spoil, World};
use driftline_trust::{Base, Files, Held, Manifest, ManifestError, Pass, Storage};

/// A file of a fake world.
struct Fake(FakeDisk);

impl Storage for Fake {
    fn len(&self) -> io::Result<u64> {
        Disk::len(&self.0)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Disk::read_at(&self.0, offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Disk::write_at(&self.0, offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Disk::set_len(&self.0, len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Disk::next_data(&self.0, from)
    }

    fn sync(&self) -> io::Result<()> {
        Disk::sync(&self.0)
    }

    fn drop_cache(&self) -> io::Result<()> {
        Disk::drop_cache(&self.0)
    }
}

fn files(world: &World) -> Files<Fake> {
    let file = |name| Fake(world.file(name));
    Files { state: file("state"), ids: file("ids"), spans: file("spans"), log: file("log") }
}

/// What a target says that holds this.
fn target(held: Option<Held>) -> TargetState {
    TargetState {
        replica: ReplicaId([1; 16]),
        chunk_key: [2; 32],
        generation: held.map(|held| held.generation),
        root: held.map(|held| held.root),
        size: held.map_or(0, |held| held.size),
        ..TargetState::nothing()
    }
}

fn key() -> ChunkKey {
    ChunkKey::new(&[2; 32])
}

/// The definition, literally.
fn root(ids: &[ChunkId], size: u64) -> Root {
    let mut tree = TreeHasher::new(&key());
    ids.iter().for_each(|id| tree.push(*id));
    tree.into_root(size)
}

/// An increment, as it is noted.
#[derive(Clone, Debug)]
enum Note {
    Ids(u64, Vec<ChunkId>),
    Zeros(Range<u64>),
}

/// A volume's ids, and what becomes of them.
#[derive(Clone, Debug)]
struct Model {
    ids: Vec<ChunkId>,
    size: u64,
}

impl Model {
    fn held(&self, number: u64) -> Held {
        let root = root(&self.ids, self.size);
        Held { generation: Generation::zfs(number), size: self.size, root }
    }

    fn after(&self, notes: &[Note], size: u64) -> Self {
        let mut ids = self.ids.clone();
        ids.resize(chunk_count(size) as usize, ChunkId::ZERO);
        let len = ids.len() as u64;
        for note in notes {
            match note {
                Note::Ids(first, new) => {
                    for (index, id) in (*first..len).zip(new) {
                        ids[index as usize] = *id;
                    }
                }
                Note::Zeros(chunks) => {
                    let end = chunks.end.min(len);
                    (chunks.start..end).for_each(|index| ids[index as usize] = ChunkId::ZERO);
                }
            }
        }
        Self { ids, size }
    }
}

fn id(number: u64) -> ChunkId {
    key().id(&number.to_le_bytes())
}

fn note(manifest: &mut Manifest<Fake>, notes: &[Note]) -> Result<(), ManifestError> {
    for note in notes {
        match note {
            Note::Ids(first, ids) => manifest.note(*first, ids)?,
            Note::Zeros(chunks) => manifest.note_zeros(chunks.clone())?,
        }
    }
    Ok(())
}

/// Delivers an increment and hears of its commit.
fn deliver(
    world: &World,
    base: Option<Held>,
    notes: &[Note],
    tip: Held,
) -> Result<Root, ManifestError> {
    let (mut manifest, _) = Manifest::open(files(world), &target(base))?;
    manifest.begin(Some(&tip.generation), 0, &mut |_| {})?;
    note(&mut manifest, notes)?;
    let root = manifest.tip_root(tip.size)?;
    manifest.seal(Held { root, ..tip }, Pass::covering(chunk_count(tip.size), 1))?;
    manifest.commit(None)?;
    Ok(root)
}

fn random_notes(rng: &mut Rng, chunks: u64) -> Vec<Note> {
    let (mut notes, mut next) = (Vec::new(), 0);
    while next < chunks {
        let far = if rng.below(3) == 0 { 3000 } else { 40 };
        next += rng.below(far);
        let many = if rng.below(4) == 0 { 9000 } else { 30 };
        let count = 1 + rng.below(many);
        // A map may speak of more than there is.
        notes.push(if rng.below(3) == 0 {
            Note::Zeros(next..next + count)
        } else {
            Note::Ids(next, (0..count.min(300)).map(|_| id(rng.next_u64())).collect())
        });
        next += count;
    }
    notes
}

#[test]
fn it_is_what_a_model_is() {
    for seed in 0..12 {
        let mut rng = Rng(seed);
        let world = World::new();
        let mut model = Model { ids: Vec::new(), size: 0 };
        let mut held = None;
        for number in 1..8 {
            // Below a span, above it, many, and whatever size before.
            let chunks = [0, 5, 700, SPAN_CHUNKS, SPAN_CHUNKS + 1, 9000, 30_000];
            let size = chunks[rng.below(chunks.len() as u64) as usize] * CHUNK_LEN;
            let notes = random_notes(&mut rng, chunk_count(size));
            let tip = model.after(&notes, size);
            let expected = tip.held(number);
            let found = deliver(&world, held, &notes, expected).unwrap();
            assert_eq!(found, expected.root, "seed {seed}, generation {number}");
            let state = target(Some(expected));
            let (manifest, damage) = Manifest::open(files(&world), &state).unwrap();
            assert_eq!((manifest.base(&state), damage), (Base::Held(expected), None));
            for first in (0..chunk_count(size)).step_by(4096) {
                let chunks = first..chunk_count(size).min(first + 4096);
                let listed = manifest.listed(chunks.clone()).unwrap();
                assert!(listed == tip.ids[chunks.start as usize..chunks.end as usize]);
            }
            (model, held) = (tip, Some(expected));
        }
    }
}

/// A base of two spans and a bit, and an increment that touches, empties and cuts them.
struct Scenario {
    world: World,
    base: Held,
    notes: Vec<Note>,
    tip: Held,
}

impl Scenario {
    fn new() -> Self {
        let world = World::new();
        let chunks = 2 * SPAN_CHUNKS + 9;
        let whole = Model { ids: Vec::new(), size: 0 };
        let ids = [0, SPAN_CHUNKS, 2 * SPAN_CHUNKS];
        let first: Vec<Note> =
            ids.into_iter().map(|at| Note::Ids(at, (0..9).map(|i| id(at + i)).collect())).collect();
        let base_model = whole.after(&first, chunks * CHUNK_LEN);
        let base = base_model.held(1);
        deliver(&world, None, &first, base).unwrap();
        let notes = vec![
            Note::Ids(3, vec![id(77), ChunkId::ZERO]),
            Note::Zeros(SPAN_CHUNKS - 1..2 * SPAN_CHUNKS),
            Note::Ids(2 * SPAN_CHUNKS + 2, vec![id(78)]),
        ];
        let tip = base_model.after(&notes, (chunks - 3) * CHUNK_LEN).held(2);
        Self { world, base, notes, tip }
    }

    fn run(&self, world: &World) -> Result<Root, ManifestError> {
        deliver(world, Some(self.base), &self.notes, self.tip)
    }

    /// What a fault left must be right for whichever generation the target holds, if it says so.
    fn check(&self, world: &World, what: &str) -> [bool; 2] {
        [self.base, self.tip].map(|held| {
            let world = world.fork();
            let state = target(Some(held));
            let (manifest, damage) = Manifest::open(files(&world), &state).unwrap();
            assert_eq!(damage, None, "{what}: a stop is no damage");
            let right = manifest.base(&state) == Base::Held(held);
            if right {
                // And whatever is listed can be proven, and gone on from.
                (0..3).for_each(|span| manifest.prove(span * SPAN_CHUNKS).unwrap());
                drop(manifest);
                let next = Held { generation: Generation::zfs(3), ..held };
                let root = deliver(&world, Some(held), &[], next).unwrap();
                assert_eq!(root, held.root, "{what}");
            }
            right
        })
    }
}

#[test]
fn a_stop_anywhere_leaves_the_base_or_the_tip() {
    let scenario = Scenario::new();
    let world = scenario.world.fork();
    let before = world.operations();
    assert_eq!(scenario.run(&world).unwrap(), scenario.tip.root);
    let operations = world.operations() - before;
    let mut seen = [0; 3];
    for stop in 0..=operations {
        for seed in 0..6 {
            let world = scenario.world.fork();
            world.stop_after(stop);
            let _ = scenario.run(&world);
            if seed == 0 {
                world.restart();
            } else {
                world.crash(seed + stop * 8);
            }
            match scenario.check(&world, &format!("stop {stop} of {operations}, seed {seed}")) {
                [true, false] => seen[0] += 1,
                [true, true] => seen[1] += 1,
                [false, true] => seen[2] += 1,
                [false, false] => panic!("stop {stop}, seed {seed}: nothing is left"),
            }
        }
    }
    println!("{operations} operations: {seen:?} stops with the base, both, the tip");
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// A write to any file of the manifest is lost or changes on its way: the run that it befalls
/// says so, or what it left is right.
#[test]
fn what_does_not_arrive_is_an_error_in_the_same_run() {
    let scenario = Scenario::new();
    let world = scenario.world.fork();
    let before = world.operations();
    scenario.run(&world).unwrap();
    let mut noticed = std::collections::BTreeMap::<&str, u32>::new();
    for at in 0..world.operations() - before {
        for spoil in [Spoil::Lose, Spoil::Flip(at * 997)] {
            let world = scenario.world.fork();
            world.spoil_at(at, spoil);
            let done = scenario.run(&world);
            let Some(disk) = world.spoilt() else { continue };
            world.restart();
            world.drop_cache();
            let what = format!("{disk} spoilt at {at} by {spoil:?}");
            match done {
                Ok(root) => {
                    assert_eq!(root, scenario.tip.root, "{what}");
                    assert!(scenario.check(&world, &what)[1], "{what}: told as done");
                }
                Err(ManifestError::Damaged(_)) => *noticed.entry(disk).or_default() += 1,
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    let files: Vec<&str> = noticed.into_keys().collect();
    assert_eq!(files, ["ids", "log", "spans", "state"]);
}

/// What is not right is noticed, and what is noticed is given up: never believed.
#[test]
fn a_flipped_bit_is_never_believed() {
    let scenario = Scenario::new();
    scenario.run(&scenario.world).unwrap();
    let state = target(Some(scenario.tip));
    let mut noticed = 0;
    for (name, offsets) in [
        ("ids", vec![5, 3 * 32, SPAN_CHUNKS * 32 + 5, 2 * SPAN_CHUNKS * 32 + 65]),
        ("spans", vec![0, 40, 70]),
        ("state", (0..16_000).step_by(97).collect()),
    ] {
        for offset in offsets {
            let world = scenario.world.fork();
            world.flip(name, offset, 3);
            let (mut manifest, damage) = Manifest::open(files(&world), &state).unwrap();
            match manifest.base(&state) {
                Base::Held(_) => {
                    // Not noticed yet: it is when it is used, or it does not matter.
                    manifest.begin(None, 0, &mut |_| {}).unwrap();
                    let touch = offset / 32 / SPAN_CHUNKS * SPAN_CHUNKS + 11;
                    manifest.note(touch, &[ChunkId::ZERO]).unwrap();
                    match manifest.tip_root(scenario.tip.size) {
                        Ok(root) => assert_eq!(root, scenario.tip.root, "{name} {offset}"),
                        Err(ManifestError::Damaged(_)) => noticed += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                Base::Other(_) => noticed += u32::from(damage.is_some()),
                Base::Differs(_) => panic!("{name} {offset}: believed"),
            }
        }
    }
    assert!(noticed > 7, "{noticed}");
}

#[test]
fn a_session_that_was_cut_goes_on_with_its_log() {
    let scenario = Scenario::new();
    let world = &scenario.world;
    let state = target(Some(scenario.base));
    let tip = scenario.tip.generation;
    let begin = |from: u64| {
        let (mut manifest, _) = Manifest::open(files(world), &state).unwrap();
        let mut told = Vec::new();
        let reaches = manifest.begin(Some(&tip), from, &mut |entry| told.push(entry.clone()));
        (reaches.unwrap(), told, manifest)
    };
    let (_, _, mut manifest) = begin(0);
    note(&mut manifest, &scenario.notes[..2]).unwrap();
    manifest.flush().unwrap();
    drop(manifest);
    // Within the zeros.
    let (reaches, told, mut manifest) = begin(SPAN_CHUNKS + 5);
    assert!(reaches && told.len() == 2, "{told:?}");
    manifest.note_zeros(SPAN_CHUNKS + 5..2 * SPAN_CHUNKS).unwrap();
    note(&mut manifest, &scenario.notes[2..]).unwrap();
    assert_eq!(manifest.tip_root(scenario.tip.size).unwrap(), scenario.tip.root);
    drop(manifest);
    // Further than it reaches, and as another increment.
    assert!(!begin(2 * SPAN_CHUNKS + 8).0);
    let (mut manifest, _) = Manifest::open(files(world), &state).unwrap();
    assert!(!manifest.begin(Some(&Generation::zfs(9)), 4, &mut |_| {}).unwrap());
}

#[test]
fn another_replica_has_nothing_here() {
    let scenario = Scenario::new();
    let other = TargetState { replica: ReplicaId([9; 16]), ..target(Some(scenario.base)) };
    let (manifest, damage) = Manifest::open(files(&scenario.world), &other).unwrap();
    assert_eq!((manifest.base(&other), damage), (Base::Other(None), None));
    // And what was of the first is given up.
    let state = target(Some(scenario.base));
    let (manifest, _) = Manifest::open(files(&scenario.world), &state).unwrap();
    assert_eq!(manifest.base(&state), Base::Other(None));
}
