//! A device with a manager: what is refused leaves it alone, what something else did to it is
//! noticed and mended, and a manager that does not do what it should is found out.

#[expect(dead_code, reason = "the other crash tests use the rest of it")]
mod crash_support;

use crash_support::{CHUNK, Ground, Scenario, UNIT, or_panic, random, scenarios::*};
use driftline_extent::{
    CHUNK_LEN, Explained, Generation, Offer, Plan, PlanKind, Reason, Target, VolumeId,
};
use driftline_target::DeviceManager;
use driftline_tests::disk::{Flaw, World};

const INTO: u64 = 6 * CHUNK_LEN + 5;

/// Offers a plan, which must be refused, and sees to it that nothing was done.
fn refuse(scenario: &Scenario, world: &World, plan: Plan, reason: Reason) -> String {
    let (device, content) = (world.kept("volume"), world.content("volume"));
    let mut replica = or_panic(scenario.open(world));
    let before = world.operations();
    let error = replica.begin(&Offer { plan, overwrite: false }).unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    drop(replica);
    assert_eq!(world.operations(), before, "{error}");
    // Opening it makes what a device is known by, but no device.
    assert!(device.is_none_or(|device| world.kept("volume") == Some(device)), "{error}");
    assert!(world.content("volume") == content, "{error}");
    error.to_string()
}

/// A whole copy by consent, to `generation`.
fn overwriting(mut scenario: Scenario, world: &World, generation: Generation) -> Scenario {
    scenario.kind = PlanKind::Full;
    scenario.overwrite = true;
    scenario.changes = crash_support::whole(&scenario.tip);
    scenario.tip_generation = generation;
    scenario.informed = true;
    scenario.base = world.content("volume");
    scenario
}

#[test]
fn refused_offers_leave_device_and_manager_alone() {
    // Nothing was made yet, and nothing is.
    let scenario = first_copy(Ground::Kept, true);
    let increment = Plan { kind: PlanKind::Incremental, ..scenario.plan() };
    refuse(&scenario, &scenario.world, increment, Reason::BaseMismatch);
    assert!(!scenario.world.kept("volume").unwrap().exists);

    let scenario = growing(Ground::Kept);
    let plan = scenario.plan();
    let other = Some(VolumeId([3; 16]));
    for (plan, reason) in [
        (Plan { base: Some(generation(7)), ..plan.clone() }, Reason::BaseMismatch),
        (Plan { kind: PlanKind::Full, base: None, ..plan.clone() }, Reason::BaseMismatch),
        (Plan { volume: other, ..plan }, Reason::SourceMismatch),
    ] {
        refuse(&scenario, &scenario.world, plan, reason);
    }
    assert!(!or_panic(scenario.check(&scenario.world)));
}

#[test]
fn a_device_of_something_else_is_neither_locked_nor_written() {
    let scenario = first_copy(Ground::Kept, true);
    let (_, mut manager) = scenario.world.kept_device("volume", UNIT);
    manager.create(CHUNK_LEN).unwrap();
    scenario.world.intrude("volume", 9, b"somebody's");
    refuse(&scenario, &scenario.world, scenario.plan(), Reason::TargetForeign);
    assert!(!scenario.world.kept("volume").unwrap().locked);
    // By consent it becomes the replica, and as long as that is.
    let mending = overwriting(first_copy(Ground::Kept, true), &scenario.world, generation(1));
    or_panic(mending.run(&scenario.world));
    assert!(or_panic(mending.check(&scenario.world)));
}

#[test]
fn what_something_else_wrote_is_noticed_and_mended_by_consent() {
    let scenario = growing(Ground::Kept);
    let world = scenario.world.fork();
    // A failover: it is in use elsewhere now, and stays so.
    world.intrude("volume", INTO, b"intruder");
    let error = refuse(&scenario, &world, scenario.plan(), Reason::TargetModified);
    assert!(error.contains("something else wrote to this volume after zfs:1"), "{error}");
    assert!(!world.kept("volume").unwrap().locked);
    // The same generation as before can be brought back, and is kept anew.
    for generation in [generation(1), generation(2)] {
        let world = world.fork();
        let mut mending = overwriting(growing(Ground::Kept), &world, generation);
        if generation == self::generation(1) {
            mending.tip = mending.kept_base.clone();
            mending.changes = crash_support::whole(&mending.tip);
        }
        or_panic(mending.run(&world));
        world.crash(0);
        assert!(or_panic(mending.check(&world)), "{generation}");
        assert_eq!(world.kept("volume").unwrap().snapshots.len(), 2);
    }
    // A storage that was not shut down writes to its own books: what reads the same is the same.
    let world = scenario.world.fork();
    world.intrude("volume", INTO, &scenario.base[INTO as usize..][..8]);
    or_panic(scenario.run(&world));
    assert!(or_panic(scenario.check(&world)));
}

/// A copy over a modified replica is stopped anywhere, and another one ends it.
#[test]
fn a_mending_copy_can_be_stopped() {
    let scenario = over_modified(Ground::Kept);
    for stop in 0..=or_panic(scenario.operations()) {
        let world = scenario.world.fork();
        world.stop_after(stop);
        let _ = scenario.run(&world);
        world.crash(stop);
        let outcome = scenario.run(&world);
        or_panic(scenario.context(outcome, format_args!("stop {stop}")));
        world.crash(0);
        let outcome = scenario.check(&world);
        assert!(or_panic(scenario.context(outcome, format_args!("stop {stop}"))));
    }
}

/// A snapshot is never taken of what was rolled back under the replica.
#[test]
fn a_volume_that_was_rolled_back_is_not_kept_as_the_newest() {
    let scenario = growing(Ground::Kept);
    or_panic(scenario.run(&scenario.world));
    // As long as the newer one, so that only the snapshots tell.
    scenario.world.roll_back("volume");
    let (_, mut manager) = scenario.world.kept_device("volume", UNIT);
    manager.unlock().unwrap();
    manager.resize(scenario.tip.len() as u64).unwrap();
    manager.lock().unwrap();
    let next = Plan { base: Some(generation(2)), tip: Some(generation(3)), ..scenario.plan() };
    let error = refuse(&scenario, &scenario.world, next, Reason::TargetModified);
    assert!(error.contains("is of zfs:1, but zfs:2"), "{error}");
    assert!(scenario.world.content("volume").starts_with(&scenario.base));
    assert_eq!(scenario.world.kept("volume").unwrap().snapshots.len(), 1);
    let mending = overwriting(growing(Ground::Kept), &scenario.world, generation(3));
    or_panic(mending.run(&scenario.world));
    assert!(or_panic(mending.check(&scenario.world)));
}

#[test]
fn a_device_that_grows_by_anything_but_zeros_is_found_out() {
    for scenario in [growing(Ground::Kept), first_copy(Ground::Kept, true)] {
        // Made before, so that it has to grow.
        let world = scenario.world.fork();
        let (_, mut manager) = world.kept_device("volume", UNIT);
        if !world.kept("volume").unwrap().exists {
            manager.create(CHUNK_LEN).unwrap();
        }
        world.spoil_manager("volume", Flaw::GrowsByJunk);
        match scenario.run(&world) {
            // A first copy writes all of it.
            Ok(_) => assert_eq!(scenario.kind, PlanKind::Full),
            Err(error) => assert!(error.contains("does not read back"), "{error}"),
        }
        // Now that it is as long as it has to be, it is made zero.
        or_panic(scenario.check_and_finish(&world));
    }
}

/// The checks can fail.
#[test]
fn lying_managers_are_noticed() {
    for (flaw, word) in [(Flaw::KeepsNothing, "is not kept"), (Flaw::LocksNothing, "rules")] {
        let scenario = growing(Ground::Kept);
        scenario.world.spoil_manager("volume", flaw);
        let _ = scenario.run(&scenario.world);
        let error = scenario.check(&scenario.world).unwrap_err();
        assert!(error.contains(word), "{flaw:?}: {error}");
    }
}

/// Without a size in the plan a device grows with what comes, and is cut at the end.
#[test]
fn a_device_grows_seldom() {
    let mut scenario = first_copy(Ground::Kept, false);
    scenario.tip = random(70, 40 * CHUNK + 3);
    scenario.changes = crash_support::whole(&scenario.tip);
    or_panic(scenario.run(&scenario.world));
    assert!(or_panic(scenario.check(&scenario.world)));
    let device = scenario.world.content("volume").len() as u64;
    assert_eq!(device, (40 * CHUNK_LEN + 3).next_multiple_of(UNIT));
    // From one chunk to 64, each time to twice its length, and back to 41.
    assert_eq!(scenario.world.kept("volume").unwrap().resizes, 7);
}
