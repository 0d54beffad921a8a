//! A replica is killed at every operation it does, on disks that forget, and must be at
//! generation N or N + 1 every time. The fault model is in `driftline_tests::disk`.

mod crash_support;

use crash_support::{CHUNK, Ground, Scenario, changed, or_panic, random, whole};
use driftline_extent::{
    BLOCK_LEN, CHUNK_LEN, Change, Explained, Extent, Generation, Offer, PlanKind, Reason, Root,
    Target,
};
use driftline_tests::disk::{Rng, World};

const fn generation(guid: u64) -> Generation {
    Generation::Zfs(guid)
}

fn data(chunk: usize, block: usize, seed: u64, len: usize) -> Change {
    let offset = (chunk * CHUNK) as u64 + block as u64 * BLOCK_LEN;
    Change::Data { offset, bytes: random(seed, len) }
}

fn zero(start: u64, end: u64) -> Change {
    Change::Zero(Extent::from_bounds(start, end).unwrap())
}

/// A replica of `base` at `holds`, made by a whole copy.
fn replica_of(base: &[u8], holds: Generation, ground: Ground) -> World {
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
    };
    scenario.run(&scenario.world).unwrap();
    scenario.world.crash(0);
    assert!(scenario.check(&scenario.world).unwrap());
    scenario.world.fork()
}

/// Eight chunks, of which the fourth is zero and the last is partial.
fn base() -> Vec<u8> {
    let mut base = random(1, 7 * CHUNK + 1300);
    base[3 * CHUNK..4 * CHUNK].fill(0);
    base[5 * CHUNK + 4096..5 * CHUNK + 20480].fill(0);
    base
}

fn increment(name: &'static str, ground: Ground, changes: Vec<Change>, size: usize) -> Scenario {
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
    }
}

/// Whole chunks, parts of chunks, zeros, data that repeats, and room at the end.
fn growing(ground: Ground) -> Scenario {
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
        Ground::Kept => "growing on a device with a keeper",
    };
    increment(name, ground, changes, 9 * CHUNK + 700)
}

fn shrinking(ground: Ground) -> Scenario {
    let c = CHUNK as u64;
    let changes = vec![data(1, 100, 20, 3 * 512), zero(2 * c, 3 * c), zero(4 * c, 1 << 50)];
    increment("shrinking", ground, changes, 4 * CHUNK)
}

/// The end cuts a chunk that changes as well.
fn cutting_changed(ground: Ground) -> Scenario {
    let changes = vec![data(0, 1, 30, 512), data(5, 0, 31, 512)];
    increment("cutting a changed chunk", ground, changes, 5 * CHUNK + 777)
}

/// The end cuts a chunk that does not change otherwise.
fn cutting_unchanged() -> Scenario {
    increment(
        "cutting an unchanged chunk",
        Ground::File,
        vec![data(0, 1, 32, 512)],
        6 * CHUNK + 100,
    )
}

/// `informed` says whether the plan already knows the size.
fn first_copy(ground: Ground, informed: bool) -> Scenario {
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
    }
}

/// A plain source without a map, whose generation is its content.
fn scan(ground: Ground) -> Scenario {
    let base = base();
    let changes = [data(2, 0, 40, CHUNK), data(3, 9, 41, 512), data(6, 0, 42, CHUNK)];
    let mut tip = changed(&base, &changes, 7 * CHUNK + 200);
    tip[4 * CHUNK..5 * CHUNK].fill(0);
    let holds = Generation::Content(Root([1; 32]));
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
        tip_generation: Generation::Content(Root([2; 32])),
        informed: true,
    }
}

/// A whole copy, by consent, over a file that was not made by Driftline.
fn over_foreign() -> Scenario {
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
    }
}

/// A whole copy, by consent, over a replica that something else wrote to.
fn over_modified(ground: Ground) -> Scenario {
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

fn all() -> Vec<Scenario> {
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
    ]
}

/// On a device that a keeper makes, resizes, locks and keeps.
fn all_kept() -> Vec<Scenario> {
    vec![
        growing(Ground::Kept),
        shrinking(Ground::Kept),
        cutting_changed(Ground::Kept),
        first_copy(Ground::Kept, true),
        first_copy(Ground::Kept, false),
        scan(Ground::Kept),
    ]
}

#[test]
fn undisturbed_deliveries_end_where_they_should() {
    let modified = [over_modified(Ground::File), over_modified(Ground::Kept)];
    for scenario in all().into_iter().chain(all_kept()).chain(modified) {
        let world = scenario.world.fork();
        let from = or_panic(scenario.context(scenario.run(&world), format_args!("undisturbed")));
        assert_eq!(from, 0);
        world.crash(0);
        assert!(or_panic(scenario.check(&world)), "{}", scenario.name);
    }
}

#[test]
fn power_loss_at_every_operation() {
    for scenario in all().into_iter().chain(all_kept()) {
        let resumed = or_panic(scenario.sweep_crashes(5));
        assert!(resumed > 0, "{}: no delivery ever went on", scenario.name);
    }
}

#[test]
fn power_loss_within_recovery() {
    for scenario in all().into_iter().chain(all_kept()) {
        or_panic(scenario.sweep_nested(5, false));
    }
}

#[test]
fn power_loss_after_a_kill() {
    for scenario in all().into_iter().chain(all_kept()) {
        or_panic(scenario.sweep_nested(5, true));
    }
}

#[test]
fn every_operation_fails_once() {
    for scenario in [
        growing(Ground::File),
        shrinking(Ground::File),
        first_copy(Ground::File, true),
        scan(Ground::File),
        over_foreign(),
        growing(Ground::Kept),
        shrinking(Ground::Kept),
        first_copy(Ground::Kept, false),
    ] {
        or_panic(scenario.sweep_errors());
    }
}

/// Ascending runs of blocks with random content or zeros; only zeros reach beyond the end.
fn random_changes(rng: &mut Rng, size: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut at = 0;
    for _ in 0..rng.below(8) {
        let offset = at + rng.below(200) * BLOCK_LEN;
        let wanted = Extent::new(offset, (rng.below(300) + 1) * BLOCK_LEN).unwrap();
        at = wanted.end();
        if rng.below(3) == 0 {
            changes.push(Change::Zero(wanted));
        } else if let Some(extent) = wanted.clamp(size) {
            let bytes = random(rng.next_u64(), extent.len() as usize);
            changes.push(Change::Data { offset, bytes });
        }
    }
    changes
}

#[test]
fn power_loss_in_random_increments() {
    for seed in 0..60 {
        let ground = if seed % 3 == 0 { Ground::Kept } else { Ground::File };
        let mut rng = Rng(seed);
        let size = rng.below(9 * CHUNK_LEN);
        let changes = random_changes(&mut rng, size);
        let scenario = increment("random", ground, changes, size as usize);
        let operations = or_panic(scenario.operations());
        for _ in 0..6 {
            let (stop, luck) = (rng.below(operations + 1), rng.next_u64());
            let world = scenario.world.fork();
            world.stop_after(stop);
            let _ = scenario.run(&world);
            world.crash(luck);
            let outcome = scenario.check_and_finish(&world);
            let what = format_args!("seed {seed}, stop {stop}, luck {luck}");
            or_panic(scenario.context(outcome, what));
        }
    }
}

#[test]
fn what_stood_on_a_device_behind_the_volume_is_not_part_of_it() {
    let scenario = growing(Ground::Device(12 * CHUNK_LEN));
    let device = scenario.world.device("volume", 0);
    let behind = scenario.base.len() as u64;
    let junk = random(60, 12 * CHUNK - scenario.base.len());
    driftline_target::Disk::write_at(&device, behind, &junk).unwrap();
    driftline_target::Disk::sync(&device).unwrap();
    or_panic(scenario.sweep_crashes(2));
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let scenario = first_copy(Ground::Device(7 * CHUNK_LEN), true);
    let mut replica = or_panic(scenario.open(&scenario.world));
    let before = scenario.world.operations();
    let offer = Offer { plan: scenario.plan(), overwrite: false };
    assert_eq!(replica.begin(&offer).unwrap_err().reason(), Reason::TargetFull);
    assert_eq!(scenario.world.operations(), before);
    // Without a size in the plan it is found out at the end.
    let scenario = growing(Ground::Device(8 * CHUNK_LEN));
    let error = scenario.run(&scenario.world).unwrap_err();
    assert!(error.contains("the device has 524288"), "{error}");
    assert!(!or_panic(scenario.check(&scenario.world)));
}

/// Nothing that was not synced survives, and yet not all of a cut increment comes again.
#[test]
fn power_loss_costs_no_more_than_since_the_last_checkpoint() {
    let scenario = growing(Ground::File);
    let went_on_at = (0..scenario.operations().unwrap()).filter_map(|stop| {
        let world = scenario.world.fork();
        world.stop_after(stop);
        let _ = scenario.run(&world);
        world.crash(0);
        let at_the_base = !or_panic(scenario.check(&world));
        at_the_base.then(|| or_panic(scenario.run(&world)))
    });
    assert!(went_on_at.max().unwrap() > 0);
}

/// The first stop whose journal, kept whole, is sealed while the volume is still at N, and
/// the first at which the volume is neither at N nor at N + 1.
fn sealed_stops(scenario: &Scenario) -> (World, World) {
    let (mut sealed, mut between) = (None, None);
    for stop in 0..=scenario.operations().unwrap() {
        let world = scenario.world.fork();
        world.stop_after(stop);
        let _ = scenario.run(&world);
        world.crash(1);
        let volume = world.content("volume");
        let has_seal = world.content("journal").get(4096..4104) == Some(b"DRIFTSL\n");
        if volume == scenario.base && has_seal {
            sealed.get_or_insert(world);
        } else if volume != scenario.base && volume != scenario.tip {
            between.get_or_insert(world);
        }
    }
    (sealed.unwrap(), between.unwrap())
}

/// Every offset in the fields of a journal, and some in its payloads.
fn journal_offsets(journal: &[u8]) -> impl Iterator<Item = u64> + use<> {
    let records = 8192..journal.len() as u64;
    let fields = (0..184).chain(480..512).chain(4096..4776).chain(6144..6824).chain(8192..8344);
    fields.step_by(3).chain(records.step_by(1013)).chain([journal.len() as u64 - 1])
}

#[test]
fn a_damaged_journal_is_dropped_or_named() {
    let scenario = growing(Ground::File);
    let (sealed, between) = sealed_stops(&scenario);
    let journal = sealed.content("journal");
    let unsealed = sealed.fork();
    [4096, 6144].iter().for_each(|offset| unsealed.flip("journal", *offset, 0));
    let (mut finished, mut named) = (0, 0);
    for offset in journal_offsets(&journal) {
        let bit = (offset % 8) as u8;
        // Not sealed: what is damaged comes again.
        let world = unsealed.fork();
        world.flip("journal", offset, bit);
        let outcome = scenario.check_and_finish(&world);
        or_panic(scenario.context(outcome, format_args!("unsealed, byte {offset}")));
        // Sealed: it is completed, or refused before anything is written.
        for (world, name) in [(sealed.fork(), "sealed"), (between.fork(), "between")] {
            world.flip("journal", offset, bit);
            let before = world.content("volume");
            match scenario.check_and_finish(&world) {
                Ok(_) => finished += 1,
                Err(error) => {
                    assert!(error.contains("journal"), "{name}, byte {offset}: {error}");
                    assert!(world.content("volume") == before, "{name}, byte {offset}");
                    named += 1;
                }
            }
        }
    }
    assert!(finished > 100 && named > 100, "{finished} finished, {named} named");
}

#[test]
fn a_truncated_journal_is_dropped_or_named() {
    let scenario = growing(Ground::File);
    let (sealed, _) = sealed_stops(&scenario);
    let len = sealed.content("journal").len() as u64;
    for cut in (0..len).step_by(997).chain([512, 4096, 4776, 8192, 8344, len - 1]) {
        let world = sealed.fork();
        let journal = world.file("journal");
        driftline_target::Disk::set_len(&journal, cut).unwrap();
        driftline_target::Disk::sync(&journal).unwrap();
        match scenario.check_and_finish(&world) {
            Ok(_) => assert!(cut < 4776, "a journal cut at {cut} was believed"),
            Err(error) => {
                assert!(cut >= 4776 && error.contains("journal"), "cut at {cut}: {error}");
                assert!(world.content("volume") == scenario.base);
            }
        }
    }
}

/// Not even to complete an increment is a volume written that something else has cut or grown.
#[test]
fn another_size_behind_a_sealed_journal_is_refused() {
    let scenario = growing(Ground::File);
    let (sealed, _) = sealed_stops(&scenario);
    for (len, fits) in [
        (scenario.base.len() - 1, false),
        (scenario.base.len() + 1, true),
        (scenario.tip.len(), true),
        (scenario.tip.len() + 1, false),
    ] {
        let world = sealed.fork();
        driftline_target::Disk::set_len(&world.file("volume"), len as u64).unwrap();
        let before = world.content("volume");
        match scenario.open(&world) {
            Ok(_) => assert!(fits && world.content("volume") == scenario.tip, "length {len}"),
            Err(error) => {
                assert!(!fits && error.contains("something else changed it"), "{len}: {error}");
                assert!(world.content("volume") == before);
            }
        }
    }
}

/// Damage at rest is never taken for what was committed.
#[test]
fn damage_at_rest_is_found() {
    let scenario = growing(Ground::File);
    for offset in (0..scenario.base.len() as u64).step_by(4099) {
        let world = scenario.world.fork();
        world.flip("volume", offset, 5);
        let mut replica = or_panic(scenario.open(&world));
        let report = replica.verify(&mut |_| {}).unwrap();
        assert!(report.damaged_chunks == 1 && report.damaged.contains(offset), "byte {offset}");
    }
    for offset in 0..8 * 32 {
        let world = scenario.world.fork();
        world.flip("ids", offset, 2);
        let mut replica = or_panic(scenario.open(&world));
        assert!(!replica.verify(&mut |_| {}).unwrap().is_clean(), "id byte {offset}");
        drop(replica);
        let error = scenario.run(&world).unwrap_err();
        assert!(error.contains("not what was committed") || error.contains("list of chunk ids"));
    }
}

/// The test can fail: on a disk that does not keep what it said it kept, it does.
#[test]
fn lying_disks_are_noticed() {
    let lies = |scenario: Scenario, disk: &'static str| {
        scenario.world.lie_on_sync(disk);
        scenario.sweep_crashes(8)
    };
    for disk in ["volume", "journal", "state", "ids"] {
        for scenario in [growing(Ground::File), shrinking(Ground::File)] {
            let name = scenario.name;
            let found = lies(scenario, disk);
            assert!(found.is_err(), "{name}: nobody noticed that {disk} lies");
        }
    }
    for disk in ["volume", "state", "ids"] {
        let found = lies(first_copy(Ground::File, true), disk);
        assert!(found.is_err(), "first copy: nobody noticed that {disk} lies");
    }
    // The overlay is scratch: it may lie as it likes.
    or_panic(lies(growing(Ground::File), "overlay"));
}
