//! A replica is killed at every operation it does, on disks that forget, and must be at
//! generation N or N + 1 every time. The fault model is in `driftline_tests::disk`.

mod crash_support;

use crash_support::{CHUNK, Ground, Scenario, or_panic, random, scenarios::*};
use driftline_extent::{BLOCK_LEN, CHUNK_LEN, Change, Explained, Extent, Offer, Reason, Target};
use driftline_tests::disk::{Rng, Spoil, World};

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

/// Or the scenarios that find chunks elsewhere would be about nothing.
#[test]
fn what_other_replicas_have_is_not_asked_for() {
    for (scenario, lacking) in
        [(found_in_others(Ground::File), CHUNK + 1024), (first_copy_found(Ground::File), 2 * CHUNK)]
    {
        let world = scenario.world.fork();
        let (_, sent) = or_panic(scenario.run_counting(&world));
        assert!(sent <= lacking, "{}: {sent} bytes were sent", scenario.name);
        // The other replica has forgotten it: now all comes from the source.
        let other = world.content("other");
        let again = scenario.world.fork();
        let disk = again.file("other");
        driftline_target::Disk::write_at(&disk, 0, &other).unwrap();
        let (_, sent) = or_panic(scenario.run_counting(&again));
        assert!(sent > lacking, "{}: {sent} bytes were sent", scenario.name);
        assert!(or_panic(scenario.check(&again)));
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
                assert!(!fits && error.contains("something else resized it"), "{len}: {error}");
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

/// A write to any file of the replica is lost or changes on its way: that is noticed before
/// anything is told as committed, and the next session makes it good.
#[test]
fn what_does_not_arrive_is_not_committed() {
    let mut refused = std::collections::BTreeMap::<&str, u32>::new();
    for scenario in [
        growing(Ground::File),
        growing(Ground::Kept),
        shrinking(Ground::File),
        cutting_changed(Ground::File),
        first_copy(Ground::File, true),
        scan(Ground::File),
        over_foreign(),
    ] {
        for at in 0..or_panic(scenario.operations()) {
            for spoil in [Spoil::Lose, Spoil::Flip(at * 997)] {
                let world = scenario.world.fork();
                world.spoil_at(at, spoil);
                let committed = scenario.run(&world).is_ok();
                let Some(disk) = world.spoilt() else { continue };
                world.restart();
                world.drop_cache();
                let what = format_args!("{disk} spoilt at {at} by {spoil:?}");
                if committed {
                    assert!(or_panic(scenario.context(scenario.check(&world), what)), "{what}");
                    assert_ne!(disk, "ids", "{}: {what}: committed", scenario.name);
                } else {
                    *refused.entry(disk).or_default() += 1;
                    or_panic(scenario.context(scenario.check_and_finish(&world), what));
                }
            }
        }
    }
    let parts: Vec<&str> = refused.into_keys().collect();
    assert_eq!(parts, ["ids", "journal", "overlay", "state", "volume"]);
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
    let found = lies(growing(Ground::Kept), "volume");
    assert!(found.is_err(), "nobody noticed that a device with a manager lies");
    // The overlay is scratch: it may lie as it likes.
    or_panic(lies(growing(Ground::File), "overlay"));
}
