//! The simulation: fresh histories at every run, those that failed once, and bugs that it must
//! find.

mod sim_support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use driftline_tests::sim::{Bug, Fault, Options, Stats, run, shrink};

/// How long fresh histories are told.
const FRESH: Duration = Duration::from_secs(15);

/// How many there are at least, however slow the machine is.
const FRESH_MIN: u64 = 60;

const OPTIONS: Options = Options { bug: None, audit: true, wide: true, links: sim_support::links };

const UNAUDITED: Options = Options { audit: false, ..OPTIONS };

/// Histories that broke an invariant once, by a bug of ours or by a mistake of the simulation's.
const PAST: &[u64] = &[
    4,
    31,
    79,
    942,
    1280,
    2071,
    2193,
    3283,
    3321,
    5019,
    10_150,
    15_588,
    18_669,
    21_001,
    30_037,
    33_435,
    38_168,
    48_016,
    54_919,
    59_711,
    68_912,
    68_993,
    69_897,
    108_994,
    205_198,
    1_883_178_288_546_161,
    706_954,
];

/// Those of what was assumed away at first, without an audit: a snapshot whose name another had, a
/// disk that was full while a sealed increment was put in place.
const PAST_WIDE: &[u64] = &[73, 94, 268];

fn tell(seed: u64, options: &Options) -> Stats {
    match run(seed, options) {
        Ok(stats) => stats,
        Err(finding) => panic!("{}", shrink(*finding, options)),
    }
}

#[test]
fn fresh_histories_keep_every_invariant() {
    let first = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() << 20);
    println!("seeds from {first} on");
    let started = Instant::now();
    let mut stats = Stats::default();
    for seed in first.. {
        if started.elapsed() > FRESH && stats.histories >= FRESH_MIN {
            break;
        }
        // What no audit is to find must be right without one.
        stats.add(&tell(seed, if seed % 2 == 0 { &OPTIONS } else { &UNAUDITED }));
    }
    println!("{stats:?}");
}

#[test]
fn histories_that_failed_once_are_told_again() {
    for seed in PAST {
        tell(*seed, &Options { wide: false, ..OPTIONS });
    }
    for seed in PAST_WIDE {
        tell(*seed, &UNAUDITED);
    }
}

#[test]
fn the_same_seed_tells_the_same_history() {
    for seed in 0..20 {
        assert_eq!(format!("{:?}", tell(seed, &OPTIONS)), format!("{:?}", tell(seed, &OPTIONS)));
    }
}

#[test]
fn every_fault_befalls_some_history() {
    let mut stats = Stats::default();
    (0..150).for_each(|seed| stats.add(&tell(seed, &OPTIONS)));
    for fault in Fault::all() {
        assert!(stats.faults.contains_key(&fault), "{fault} never came");
    }
}

/// Tells histories until one fails, and says after how many.
fn found_after(options: &Options, histories: u64) -> Option<u64> {
    (0..histories).find(|seed| run(*seed, options).is_err()).map(|seed| seed + 1)
}

#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        // An audit would find what these two get wrong, and name another cause.
        let audit = !matches!(bug, Bug::BelievesAName | Bug::ForgetsTheNode);
        let options = Options { bug: Some(bug), audit, ..OPTIONS };
        let found = found_after(&options, 3000);
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: found by history {found}");
        // It is the bug that is found, and nothing else.
        tell(found - 1, &Options { audit, ..OPTIONS });
    }
}

/// In the same histories a lie of a map stays unseen where nobody looks, and is found and mended
/// where somebody does.
#[test]
fn a_stale_map_is_a_finding_once_there_is_an_audit() {
    let (mut unseen, mut found) = (0, 0);
    for seed in 0..150 {
        let blind = tell(seed, &UNAUDITED);
        assert_eq!(blind.found, 0);
        unseen += blind.unseen;
        // A commit that differs from its source breaks an invariant here.
        let audited = tell(seed, &OPTIONS);
        assert_eq!(audited.unseen, 0);
        found += audited.found;
    }
    assert!(unseen > 0 && found > 0, "{unseen} unseen without an audit, {found} found by it");
}
