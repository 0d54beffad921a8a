//! The worlds that the crash tests start from.

use driftline_extent::{BLOCK_LEN, CHUNK_LEN, Change, Extent, Generation, PlanKind, Root};
use driftline_tests::disk::World;

use super::{CHUNK, Ground, Scenario, changed, random, whole};

pub(crate) const fn generation(guid: u64) -> Generation {
    Generation::zfs(guid)
}

pub(crate) fn data(chunk: usize, block: usize, seed: u64, len: usize) -> Change {
    let offset = (chunk * CHUNK) as u64 + block as u64 * BLOCK_LEN;
    Change::Data { offset, bytes: random(seed, len) }
}

pub(crate) fn zero(start: u64, end: u64) -> Change {
    Change::Zero(Extent::from_bounds(start, end).unwrap())
}

/// A replica of `base` at `holds`, made by a whole copy.
pub(crate) fn replica_of(base: &[u8], holds: Generation, ground: Ground) -> World {
    let scenario = Scenario {
        name: "setup",
        world: World::new(),
        ground,
        base: Vec::new(),
        kept_base: Vec::new(),
        holds: None,
        kind: PlanKind::Full,
        overwrite: false,
        changes: whole(base),
        tip: base.to_vec(),
        tip_generation: holds,
        informed: true,
        other: Vec::new(),
    };
    scenario.run(&scenario.world).unwrap();
    scenario.world.crash(0);
    assert!(scenario.check(&scenario.world).unwrap());
    scenario.world.fork()
}

/// Eight chunks, of which the fourth is zero and the last is partial.
pub(crate) fn base() -> Vec<u8> {
    let mut base = random(1, 7 * CHUNK + 1300);
    base[3 * CHUNK..4 * CHUNK].fill(0);
    base[5 * CHUNK + 4096..5 * CHUNK + 20480].fill(0);
    base
}

pub(crate) fn increment(
    name: &'static str,
    ground: Ground,
    changes: Vec<Change>,
    size: usize,
) -> Scenario {
    let base = base();
    let tip = changed(&base, &changes, size);
    Scenario {
        name,
        world: replica_of(&base, generation(1), ground),
        ground,
        kept_base: base.clone(),
        base,
        holds: Some(generation(1)),
        kind: PlanKind::Incremental,
        overwrite: false,
        changes,
        tip,
        tip_generation: generation(2),
        informed: false,
        other: Vec::new(),
    }
}

/// Whole chunks, parts of chunks, zeros, data that repeats, and room at the end.
pub(crate) fn growing(ground: Ground) -> Scenario {
    let c = CHUNK as u64;
    let changes = vec![
        data(0, 0, 10, CHUNK),
        data(1, 3, 11, 1024),
        zero(c + 20 * BLOCK_LEN, c + 40 * BLOCK_LEN),
        zero(2 * c, 5 * c + 1024),
        data(5, 7, 12, 4096),
        data(6, 0, 10, CHUNK),
        data(8, 0, 13, CHUNK + 700),
    ];
    let name = match ground {
        Ground::File => "growing",
        Ground::Device(_) => "growing on a device",
        Ground::Kept => "growing on a device with a manager",
    };
    increment(name, ground, changes, 9 * CHUNK + 700)
}

/// Most of what changes is found in another replica, which forgets it at once.
pub(crate) fn found_in_others(ground: Ground) -> Scenario {
    let c = CHUNK as u64;
    let found = random(15, 4 * CHUNK);
    let changes = vec![
        Change::Data { offset: 0, bytes: found[..CHUNK].to_vec() },
        data(1, 3, 11, 1024),
        Change::Data { offset: 3 * c, bytes: found[CHUNK..3 * CHUNK].to_vec() },
        data(6, 0, 10, CHUNK),
        Change::Data { offset: 8 * c, bytes: found[3 * CHUNK..].to_vec() },
    ];
    let scenario = increment("found elsewhere", ground, changes, 9 * CHUNK);
    Scenario { other: found, ..scenario }
}

/// A first copy, most of which is found in another replica, which forgets it at once.
pub(crate) fn first_copy_found(ground: Ground) -> Scenario {
    let scenario = first_copy(ground, true);
    let other = scenario.tip[CHUNK..7 * CHUNK].to_vec();
    Scenario { name: "first copy, found elsewhere", other, ..scenario }
}

pub(crate) fn shrinking(ground: Ground) -> Scenario {
    let c = CHUNK as u64;
    let changes = vec![data(1, 100, 20, 3 * 512), zero(2 * c, 3 * c), zero(4 * c, 1 << 50)];
    increment("shrinking", ground, changes, 4 * CHUNK)
}

/// The end cuts a chunk that changes as well.
pub(crate) fn cutting_changed(ground: Ground) -> Scenario {
    let changes = vec![data(0, 1, 30, 512), data(5, 0, 31, 512)];
    increment("cutting a changed chunk", ground, changes, 5 * CHUNK + 777)
}

/// The end cuts a chunk that does not change otherwise.
pub(crate) fn cutting_unchanged() -> Scenario {
    increment(
        "cutting an unchanged chunk",
        Ground::File,
        vec![data(0, 1, 32, 512)],
        6 * CHUNK + 100,
    )
}

/// `informed` says whether the plan already knows the size.
pub(crate) fn first_copy(ground: Ground, informed: bool) -> Scenario {
    let tip = base();
    Scenario {
        name: "first copy",
        world: {
            let world = World::new();
            if let Ground::Device(len) = ground {
                world.device("volume", len);
            }
            world
        },
        ground,
        base: Vec::new(),
        kept_base: Vec::new(),
        holds: None,
        kind: PlanKind::Full,
        overwrite: false,
        changes: whole(&tip),
        tip,
        tip_generation: generation(1),
        informed,
        other: Vec::new(),
    }
}

/// A plain source without a map, whose generation is its content.
pub(crate) fn scan(ground: Ground) -> Scenario {
    let base = base();
    let changes = [data(2, 0, 40, CHUNK), data(3, 9, 41, 512), data(6, 0, 42, CHUNK)];
    let mut tip = changed(&base, &changes, 7 * CHUNK + 200);
    tip[4 * CHUNK..5 * CHUNK].fill(0);
    let holds = Generation::content(Root([1; 32]));
    Scenario {
        name: "scan",
        world: replica_of(&base, holds, ground),
        ground,
        kept_base: base.clone(),
        base,
        holds: Some(holds),
        kind: PlanKind::Scan,
        overwrite: false,
        changes: whole(&tip),
        tip,
        tip_generation: Generation::content(Root([2; 32])),
        informed: true,
        other: Vec::new(),
    }
}

/// A whole copy, by consent, over a file that was not made by Driftline.
pub(crate) fn over_foreign() -> Scenario {
    let base = base();
    let world = World::new();
    let volume = world.file("volume");
    driftline_target::Disk::write_at(&volume, 0, &base).unwrap();
    driftline_target::Disk::sync(&volume).unwrap();
    let tip = changed(&base, &[data(0, 0, 50, CHUNK), data(8, 0, 51, 900)], 8 * CHUNK + 900);
    Scenario {
        name: "over a foreign file",
        world,
        ground: Ground::File,
        kept_base: base.clone(),
        base,
        holds: None,
        kind: PlanKind::Full,
        overwrite: true,
        changes: whole(&tip),
        tip,
        tip_generation: generation(2),
        informed: true,
        other: Vec::new(),
    }
}

/// A whole copy, by consent, over a replica that something else wrote to.
pub(crate) fn over_modified(ground: Ground) -> Scenario {
    let mut scenario = over_foreign();
    scenario.name = "over a modified replica";
    scenario.ground = ground;
    scenario.world = replica_of(&base(), generation(1), ground);
    match ground {
        Ground::Kept => scenario.world.intrude("volume", 6 * CHUNK_LEN + 5, b"intruder"),
        _ => scenario.world.flip("volume", 6 * CHUNK_LEN + 5, 3),
    }
    scenario.base = scenario.world.content("volume");
    scenario.holds = Some(generation(1));
    scenario
}

pub(crate) fn all() -> Vec<Scenario> {
    vec![
        growing(Ground::File),
        growing(Ground::Device(12 * CHUNK_LEN)),
        shrinking(Ground::File),
        cutting_changed(Ground::File),
        cutting_unchanged(),
        first_copy(Ground::File, true),
        first_copy(Ground::Device(12 * CHUNK_LEN), true),
        scan(Ground::File),
        over_foreign(),
        found_in_others(Ground::File),
        first_copy_found(Ground::File),
    ]
}

/// On a device that a manager makes, resizes, locks and keeps.
pub(crate) fn all_kept() -> Vec<Scenario> {
    vec![
        growing(Ground::Kept),
        shrinking(Ground::Kept),
        cutting_changed(Ground::Kept),
        first_copy(Ground::Kept, true),
        first_copy(Ground::Kept, false),
        scan(Ground::Kept),
        found_in_others(Ground::Kept),
        first_copy_found(Ground::Kept),
    ]
}
