//! What crosses the wire when little of much has changed: chunks are narrowed to grains by
//! hashes, in every kind of plan, and a hash that lies costs a round trip and no byte.

use std::collections::BTreeSet;

use driftline_extent::{
    CHUNK_LEN, Change, Finish, GRAIN_LEN, Generation, Plan, ReplicaId, Source, Volume, VolumeId,
};
use driftline_target::{Disks, Replica};
use driftline_tests::{
    disk::{FakeDisk, World},
    link::Random,
    memory::{MemoryError, MemorySource, MemoryTarget, MemoryVolume},
    session::{Outcome, Script, run},
};
use driftline_wire::{Link, Peer, SecretKey};

const CHUNK: usize = CHUNK_LEN as usize;
const VOLUME: VolumeId = VolumeId([0xaa; 16]);
const ONE: Generation = Generation::zfs(0x1111);
const TWO: Generation = Generation::zfs(0x2222);
const GRAIN: usize = GRAIN_LEN as usize;

/// Links for a push: the source dials.
fn push_links(seed: u64) -> (Link, Link) {
    let key = |who: u8| SecretKey::from_random([who; 32]);
    let link = |who: u8, peer| {
        let mut random = Random(seed ^ (u64::from(who) << 56));
        Link::new(key(who), peer, Box::new(move |bytes| random.fill(bytes)), 0)
    };
    (link(1, Peer::Dial(key(2).public())), link(2, Peer::Listen(vec![key(1).public()])))
}

/// Batches as large as the protocol allows, and nothing that compression could hide.
fn script() -> Script {
    Script { batch_items: 512, compression: None, ..Script::default() }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (bytes, seed) in bytes.chunks_mut(8).zip(seed << 32..) {
        let number = Random(seed).next().to_le_bytes();
        bytes.copy_from_slice(&number[..bytes.len()]);
    }
    bytes
}

/// The image with one grain of a hundred written anew, somewhere; and how many bytes that is.
fn churned(image: &[u8], seed: u64) -> (Vec<u8>, u64) {
    let mut image = image.to_vec();
    let mut random = Random(seed);
    let grains = image.len() / GRAIN;
    let mut hit = BTreeSet::new();
    while hit.len() < grains / 100 {
        hit.insert(random.below(grains));
    }
    for grain in &hit {
        random.fill(&mut image[grain * GRAIN..(grain + 1) * GRAIN]);
    }
    (image, (hit.len() * GRAIN) as u64)
}

fn replica(world: &World) -> Replica<FakeDisk> {
    let [volume, state, journal, ids, overlay, repair] =
        ["volume", "state", "journal", "ids", "overlay", "repair"].map(|name| world.file(name));
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&world.operations().to_le_bytes());
    let disks = Disks { volume, state, journal, ids, overlay, repair };
    Replica::open("replica", disks, seed).unwrap()
}

fn bytes_of<T>(went: &Outcome<T>) -> u64 {
    went.to_target.iter().chain(&went.to_source).map(|frame| frame.len() as u64).sum()
}

fn complete<T>(went: Outcome<T>) -> Outcome<T> {
    assert!(went.source.is_ok() && went.target.is_ok(), "{:?} {:?}", went.source, went.target);
    went
}

/// A world whose replica holds this image as generation one.
fn holding(image: &[u8]) -> World {
    let world = World::new();
    let mut source = MemorySource::without_map(VOLUME).with(None, ONE, image);
    complete(run(push_links(1), &mut source, None, replica(&world), &script()));
    world
}

/// Runs a scan of `image` onto the replica of a world.
fn scan(world: &World, image: &[u8], overwrite: bool) -> Outcome<Replica<FakeDisk>> {
    let volume = MemoryVolume(image.to_vec());
    let script = Script { overwrite, ..script() };
    let mut source = MemorySource::without_map(VOLUME);
    let went = run(push_links(2), &mut source, Some(&volume), replica(world), &script);
    let went = complete(went);
    assert!(world.content("volume") == image);
    went
}

#[test]
fn a_scan_moves_little_more_than_what_changed() {
    let image = noise(1, 64 << 20);
    let world = holding(&image);
    // The first scan gives a generation that a scan needs no consent for.
    scan(&world, &image, true);
    let (tip, changed) = churned(&image, 3);
    let went = scan(&world, &tip, false);
    let (moved, data) = (bytes_of(&went), went.data_applied);
    assert_eq!(data, changed, "only grains that differ move");
    assert!(moved * 10 <= changed * 13, "{moved} bytes moved for {changed} that changed");
}

#[test]
fn an_increment_with_a_coarse_map_moves_little_more_than_what_changed() {
    let image = noise(1, 16 << 20);
    let (tip, changed) = churned(&image, 3);
    // As of DRBD's or ZFS's maps: whole chunks, and runs of them, around what changed.
    let mut coarse = image.clone();
    for (old, new) in coarse.chunks_mut(2 * CHUNK).zip(tip.chunks(2 * CHUNK)) {
        if *old != *new {
            // Differs everywhere, so that the map names all of it.
            old.iter_mut().zip(new).for_each(|(old, new)| *old = new.wrapping_add(1));
        }
    }
    let world = holding(&image);
    let mut source = MemorySource::without_map(VOLUME).with(Some((ONE, &coarse)), TWO, &tip);
    let went = complete(run(push_links(2), &mut source, None, replica(&world), &script()));
    assert!(world.content("volume") == tip);
    assert_eq!(went.data_applied, changed);
    let moved = bytes_of(&went);
    assert!(moved * 10 <= changed * 13, "{moved} bytes moved for {changed} that changed");
}

/// A source that has a whole copy and nothing else, wherever the target is.
struct Whole(MemorySource);

impl Source for Whole {
    type Error = MemoryError;

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, MemoryError> {
        self.0.plan(base.filter(|base| **base == TWO))
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, MemoryError> {
        self.0.next_change(from)
    }

    fn finish(&mut self) -> Result<Finish, MemoryError> {
        self.0.finish()
    }

    fn bytes_read(&self) -> u64 {
        self.0.bytes_read()
    }
}

#[test]
fn a_copy_over_another_generation_is_narrowed_as_well() {
    let image = noise(1, 4 << 20);
    let (tip, changed) = churned(&image, 3);
    let world = holding(&image);
    let mut source = Whole(MemorySource::without_map(VOLUME).with(None, TWO, &tip));
    let script = Script { overwrite: true, ..script() };
    let went = complete(run(push_links(2), &mut source, None, replica(&world), &script));
    assert!(world.content("volume") == tip);
    assert_eq!(went.data_applied, changed);
}

#[test]
fn a_first_copy_of_what_is_like_another_volume_is_narrowed() {
    let origin = noise(1, 64 << 20);
    let (clone, changed) = churned(&origin, 3);
    let size = clone.len() as u64;
    let copy = |like: Option<Vec<u8>>| {
        let world = World::new();
        let mut target = replica(&world);
        if let Some(like) = like {
            target.use_seed(Box::new(MemoryVolume(like)));
        }
        let mut source = MemorySource::without_map(VOLUME).with(None, ONE, &clone);
        let went = complete(run(push_links(1), &mut source, None, target, &script()));
        assert!(world.content("volume") == clone);
        went
    };
    let went = copy(Some(origin.clone()));
    assert_eq!(went.data_applied, changed);
    let moved = bytes_of(&went);
    assert!(moved * 100 <= size * 2, "{moved} bytes moved for a volume of {size}");
    // A volume that is shorter, or not like it at all, costs little.
    let cut = copy(Some(origin[..origin.len() / 2 + 1000].to_vec()));
    assert!(cut.data_applied >= size / 2 - CHUNK_LEN && cut.data_applied <= size / 2 + changed);
    let unlike = bytes_of(&copy(Some(noise(9, origin.len()))));
    let alone = bytes_of(&copy(None));
    assert!(unlike * 100 <= alone * 101, "{unlike} instead of {alone}");
}

/// Wherever a hash of the target is by accident that of the source, all of the item comes.
#[test]
fn a_hash_that_lies_costs_a_request_and_no_byte() {
    let image = noise(1, 16 << 20);
    let (tip, changed) = churned(&image, 3);
    let target = || {
        let mut source = MemorySource::without_map(VOLUME).with(None, ONE, &image);
        let target = MemoryTarget::new(ReplicaId([1; 16]), [7; 32]);
        complete(run(push_links(1), &mut source, None, target, &script())).replica
    };
    let volume = MemoryVolume(tip.clone());
    let scan = |target: MemoryTarget| {
        let mut source = MemorySource::without_map(VOLUME);
        let volume = Some(&volume as &dyn Volume);
        let went = complete(run(push_links(2), &mut source, volume, target, &script()));
        assert!(went.replica.image() == tip);
        went
    };
    let honest = scan(target());
    let (told, wrong) = honest.replica.narrowed();
    assert!(told > 3 && wrong == 0 && honest.data_applied == changed);
    // All hashes are those of the source: nothing seems to differ, and everything comes whole.
    let went = scan(target().with_collisions(tip.clone()));
    assert_eq!(went.replica.narrowed(), (told, told));
    assert_eq!(went.data_applied, u64::from(told) * CHUNK_LEN);
    // Some are.
    let mut half = image.clone();
    half[..image.len() / 2].copy_from_slice(&tip[..image.len() / 2]);
    let went = scan(target().with_collisions(half));
    let (again, wrong) = went.replica.narrowed();
    assert!(again == told && wrong > 0 && wrong < told, "{wrong} of {told}");
    assert!(went.data_applied > changed && went.data_applied < u64::from(told) * CHUNK_LEN);
}
