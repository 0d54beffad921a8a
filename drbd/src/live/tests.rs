//! The steps of a snapshot, and the guard, driven through every failure and every death.

use std::{collections::VecDeque, time::Duration};

use driftline_extent::Generation;

use super::{
    GuardCommand, LiveError, Mode,
    freezer::Freezer,
    guard::{Answer, Device, Order, Panel, guard},
    may_rotate,
    rotate::{Steps, rotate},
    sort_out,
};
use crate::{
    NoRotation,
    host::{Found, HostError, Link, MetaDisk, Taken},
};

/// A volume that is written to whenever it can be.
#[derive(Debug, Default)]
struct World {
    frozen: bool,
    /// How often it was written to.
    writes: u64,
    uuid: u64,
    /// Each UUID at which the bitmap was cleared, and the writes before that.
    clears: Vec<(u64, u64)>,
    snapshot: Option<Snapshot>,
}

#[derive(Clone, Copy, Debug)]
struct Snapshot {
    writes: u64,
    uuid: u64,
    mark: Option<u64>,
}

impl World {
    fn goes_on(&mut self) {
        if !self.frozen {
            self.writes += 1;
        }
    }

    /// What the next run does first.
    fn recover(&mut self) {
        self.snapshot = self.snapshot.filter(|snapshot| snapshot.mark.is_some());
    }

    /// What must be so after a run, however it ended, and the next one's start.
    fn check(&self) -> Result<(), String> {
        if self.frozen {
            return Err("it is frozen for ever".into());
        }
        let Some(snapshot) = self.snapshot else { return Ok(()) };
        match snapshot.mark {
            Some(uuid) if self.clears.contains(&(uuid, snapshot.writes)) => Ok(()),
            Some(_) => Err("the marked snapshot is not what the bitmap starts from".into()),
            None => Err("an unmarked snapshot stays".into()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The step fails and has done nothing.
    FailsBefore,
    /// The step fails and has done what it does.
    FailsAfter,
    /// The process is killed.
    DiesBefore,
    DiesAfter,
    /// The guard's time is up while the step is at work.
    TimeUp,
}

const FAULTS: [Fault; 5] =
    [Fault::FailsBefore, Fault::FailsAfter, Fault::DiesBefore, Fault::DiesAfter, Fault::TimeUp];

struct Fake {
    world: World,
    fault: Option<(usize, Fault)>,
    count: usize,
    dead: bool,
    /// The guard has let go, and clears and resumes nothing any more.
    fired: bool,
}

impl Fake {
    fn new(fault: Option<(usize, Fault)>) -> Self {
        let world = World { uuid: 10, ..World::default() };
        Self { world, fault, count: 0, dead: false, fired: false }
    }

    fn step(&mut self, by_guard: bool, effect: impl FnOnce(&mut World)) -> Result<(), LiveError> {
        if self.dead {
            return Err(LiveError::Unplanned);
        }
        let fault = self.fault.filter(|(at, _)| *at == self.count).map(|(_, fault)| fault);
        self.count += 1;
        self.world.goes_on();
        if fault == Some(Fault::TimeUp) && self.world.frozen {
            (self.fired, self.world.frozen) = (true, false);
            self.world.goes_on();
        }
        if by_guard && self.fired {
            return Err(LiveError::TooSlow { limit: Duration::ZERO });
        }
        let before = matches!(fault, Some(Fault::FailsBefore | Fault::DiesBefore));
        if !before {
            effect(&mut self.world);
            self.world.goes_on();
        }
        match fault {
            Some(Fault::DiesBefore | Fault::DiesAfter) => {
                // The guard sees that nobody is there.
                (self.dead, self.world.frozen) = (true, false);
            }
            // It lets go of a device with which something failed.
            Some(Fault::FailsBefore | Fault::FailsAfter) if by_guard => self.world.frozen = false,
            Some(Fault::FailsBefore | Fault::FailsAfter) => {}
            Some(Fault::TimeUp) | None => return Ok(()),
        }
        self.world.goes_on();
        Err(LiveError::Unplanned)
    }
}

impl Steps for Fake {
    fn suspend(&mut self) -> Result<(), LiveError> {
        self.step(true, |world| world.frozen = true)
    }

    fn take(&mut self) -> Result<(), LiveError> {
        self.step(false, |world| {
            let World { writes, uuid, .. } = *world;
            world.snapshot = Some(Snapshot { writes, uuid, mark: None });
        })
    }

    fn clear(&mut self) -> Result<(), LiveError> {
        self.step(true, |world| {
            assert!(world.snapshot.is_some(), "cleared without a snapshot");
            world.clears.push((world.uuid, world.writes));
            world.uuid += 10;
        })
    }

    fn resume(&mut self) -> Result<Duration, LiveError> {
        self.step(true, |world| world.frozen = false).map(|()| Duration::from_millis(1))
    }

    fn release(&mut self) -> Result<(), LiveError> {
        if !self.dead {
            self.world.frozen = false;
        }
        Ok(())
    }

    fn examine(&mut self) -> Result<u64, LiveError> {
        self.step(false, |_| {})?;
        self.world.snapshot.map(|snapshot| snapshot.uuid).ok_or(LiveError::Unplanned)
    }

    fn mark(&mut self, uuid: u64) -> Result<(), LiveError> {
        self.step(false, |world| {
            world.snapshot = world.snapshot.map(|s| Snapshot { mark: Some(uuid), ..s });
        })
    }

    fn remove(&mut self) {
        if !self.dead {
            self.world.snapshot = None;
        }
    }
}

#[test]
fn whatever_fails_or_dies_it_goes_on_and_no_snapshot_lies() {
    let mut faults = 0;
    for (clear, count) in [(true, 6), (false, 3)] {
        let mut good = Fake::new(None);
        rotate(&mut good, clear).unwrap();
        assert_eq!(good.count, count);
        assert!(good.world.snapshot.is_some() && !good.world.frozen);
        if clear {
            good.world.check().unwrap();
        }
        for (at, fault) in (0..count).flat_map(|at| FAULTS.map(|fault| (at, fault))) {
            let mut fake = Fake::new(Some((at, fault)));
            let done = rotate(&mut fake, clear);
            // What is told as done is marked, or nothing was to be marked.
            if done.is_ok() && !clear {
                assert!(!fake.world.frozen);
                continue;
            }
            faults += 1;
            assert!(done.is_err() || fake.world.snapshot.unwrap().mark.is_some());
            if done.is_err() && !fake.dead {
                assert!(fake.world.snapshot.is_none(), "{at} {fault:?}: the snapshot stays");
            }
            fake.world.recover();
            fake.world.check().unwrap_or_else(|why| panic!("{at} {fault:?}: {why}"));
        }
    }
    assert!(faults > 30);
}

/// The check is worth something: who does not suspend is caught.
#[test]
fn whoever_clears_without_suspending_is_caught() {
    let mut fake = Fake::new(None);
    fake.take().unwrap();
    fake.clear().unwrap();
    let uuid = fake.examine().unwrap();
    fake.mark(uuid).unwrap();
    assert!(fake.world.check().is_err());
}

/// What a guard is told, one after the other; `None` is that its time is up first.
struct Script {
    orders: VecDeque<Option<Order>>,
    now: Duration,
    frozen: bool,
    ready: bool,
    frozen_at: Duration,
    longest: Duration,
    answers: Vec<Answer>,
    in_flight: u64,
    /// How often to resume fails.
    stubborn: u32,
    suspend_fails: bool,
    clear_fails: bool,
    /// When a suspend takes effect that was given up, after it was asked for.
    lands_after: Option<Duration>,
    lands_at: Option<Duration>,
    /// How long a command takes.
    accepts: Duration,
}

const LIMIT: Duration = Duration::from_secs(10);

impl Script {
    fn new(orders: &[Option<Order>]) -> Self {
        Self {
            orders: orders.iter().copied().collect(),
            now: Duration::from_secs(1000),
            frozen: false,
            ready: false,
            frozen_at: Duration::ZERO,
            longest: Duration::ZERO,
            answers: Vec::new(),
            in_flight: 0,
            stubborn: 0,
            suspend_fails: false,
            clear_fails: false,
            lands_after: None,
            lands_at: None,
            accepts: Duration::from_millis(100),
        }
    }

    fn run(mut self) -> Self {
        guard(&mut self, LIMIT);
        assert!(!self.frozen, "it ended and left the device frozen: {:?}", self.answers);
        self
    }

    fn failed() -> HostError {
        HostError::NoDrbd
    }
}

impl Panel for Script {
    fn order(&mut self, within: Option<Duration>) -> Option<Order> {
        match self.orders.pop_front() {
            Some(None) => {
                self.now += within.unwrap_or_default();
                within.is_none().then_some(Order::Gone)
            }
            Some(order) => order,
            None => Some(Order::Gone),
        }
    }

    fn answer(&mut self, answer: Answer) {
        self.ready |= answer == Answer::Suspended;
        self.answers.push(answer);
    }

    fn suspend(&mut self, within: Duration) -> Result<(), HostError> {
        assert!(within <= LIMIT);
        self.lands_at = self.lands_after.take().map(|after| self.now + after);
        if self.lands_at.is_some() {
            self.now += within;
            return Err(Self::failed());
        }
        (self.frozen, self.ready, self.frozen_at) = (true, false, self.now);
        self.now += self.accepts;
        if self.suspend_fails { Err(Self::failed()) } else { Ok(()) }
    }

    fn in_flight(&mut self) -> Result<u64, HostError> {
        let now = self.in_flight;
        self.in_flight = now.saturating_sub(1);
        Ok(now)
    }

    fn clear(&mut self, _: Duration) -> Result<(), HostError> {
        assert!(self.frozen && self.ready, "cleared while it may be written to");
        self.now += self.accepts;
        if self.clear_fails { Err(Self::failed()) } else { Ok(()) }
    }
}

impl Device for Script {
    fn resume(&mut self, _: Duration) -> Result<(), HostError> {
        self.now += self.accepts;
        if self.stubborn > 0 {
            self.stubborn -= 1;
            return Err(Self::failed());
        }
        if self.frozen {
            self.longest = self.longest.max(self.now - self.frozen_at);
        }
        self.frozen = false;
        Ok(())
    }

    fn is_suspended(&mut self) -> Result<bool, HostError> {
        if self.lands_at.is_some_and(|at| at <= self.now) {
            (self.frozen, self.lands_at, self.frozen_at) = (true, None, self.now);
        }
        Ok(self.frozen)
    }

    fn is_at_work(&mut self) -> bool {
        self.lands_at.is_some()
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn pause(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn a_guard_does_what_it_is_told() {
    let told = [Order::Suspend, Order::Clear, Order::Resume].map(Some);
    let done =
        Script { in_flight: 2, ..Script::new(&[told[0], None, None, told[1], told[2]]) }.run();
    let frozen = Duration::from_millis(310);
    let expected = [Answer::Ready, Answer::Suspended, Answer::Cleared, Answer::Resumed(frozen)];
    assert_eq!(done.answers, expected);
}

/// Every sequence of five orders, deaths and waits: the device is never left frozen, never for
/// longer than it may be, and never cleared but while nothing is written.
#[test]
fn a_guard_lets_go_whatever_it_is_told() {
    let all =
        [Some(Order::Suspend), Some(Order::Clear), Some(Order::Resume), Some(Order::Gone), None];
    for number in 0..5_usize.pow(5) {
        let orders: Vec<_> = (0..5).map(|place| all[number / 5_usize.pow(place) % 5]).collect();
        for (suspend_fails, clear_fails) in [(false, false), (true, false), (false, true)] {
            for in_flight in [0, 1, u64::MAX] {
                let script =
                    Script { suspend_fails, clear_fails, in_flight, ..Script::new(&orders) };
                let done = script.run();
                assert!(done.longest <= LIMIT + Duration::from_millis(200), "{orders:?}");
            }
        }
    }
}

#[test]
fn a_guard_whose_time_is_up_says_so_and_clears_nothing_any_more() {
    let done = Script::new(&[Some(Order::Suspend), None, Some(Order::Clear)]).run();
    let last = Answer::Failed("nothing is suspended".to_owned());
    assert_eq!(done.answers, [Answer::Ready, Answer::Suspended, Answer::Fired, last]);
}

/// The command that was to suspend it is given up, and what it left behind suspends it long after
/// the guard has resumed it.
#[test]
fn a_suspend_that_lands_late_is_resumed() {
    for after in [11, 116, 599] {
        let lands_after = Some(Duration::from_secs(after));
        let orders = [Some(Order::Suspend), Some(Order::Gone)];
        let done = Script { lands_after, ..Script::new(&orders) }.run();
        assert_eq!(done.lands_at, None, "it ended before the suspend came, after {after} s");
        assert!(done.longest > Duration::ZERO && done.longest < Duration::from_secs(1));
        // What it says then is true.
        assert!(matches!(done.answers.last(), Some(Answer::Failed(_))), "{:?}", done.answers);
    }
}

/// It never says that the device goes on while a command may suspend it yet.
#[test]
fn a_suspend_that_may_land_yet_is_told() {
    let lands_after = Some(Duration::from_secs(86_400));
    let done = Script { lands_after, ..Script::new(&[Some(Order::Suspend)]) }.run();
    match done.answers.last() {
        Some(Answer::Stuck(why)) => assert!(why.contains("still at work"), "{why}"),
        other => panic!("{other:?}"),
    }
    let limit = Duration::from_secs(5);
    let mut freezer = Freezer::start(&says("ready 'stuck it hangs'"), 1_000_000, limit).unwrap();
    let error = freezer.suspend().unwrap_err();
    assert!(matches!(error, LiveError::MaybeSuspended { minor: 1_000_000, .. }), "{error}");
    assert!(error.to_string().contains("drbdsetup resume-io 1000000"), "{error}");
    // Dropped, it would try for minutes to resume a real device of this number.
    std::mem::forget(freezer);
}

#[test]
fn a_guard_resumes_again_and_again() {
    let script =
        Script { stubborn: 50, ..Script::new(&[Some(Order::Suspend), Some(Order::Resume)]) };
    assert!(matches!(script.run().answers.last(), Some(Answer::Resumed(_))));
}

#[test]
fn orders_and_answers_are_read_as_they_are_written() {
    for order in [Order::Suspend, Order::Clear, Order::Resume, Order::Gone] {
        assert_eq!(order.to_string().parse(), Ok(order));
    }
    for answer in [
        Answer::Ready,
        Answer::Suspended,
        Answer::Cleared,
        Answer::Resumed(Duration::from_micros(1_234_567)),
        Answer::Fired,
        Answer::Failed("it is so".to_owned()),
        Answer::Stuck("it hangs".to_owned()),
    ] {
        assert_eq!(answer.to_string().parse(), Ok(answer));
    }
    assert_eq!("suspen".parse::<Order>(), Err(()));
    assert!(
        ["resumed", "resumed x", "", "gone"].iter().all(|text| text.parse::<Answer>().is_err())
    );
}

/// A guard that is a script of a shell, which says these lines, one for each that it is told.
fn says(lines: &str) -> GuardCommand {
    let script = format!("for word in {lines}; do echo \"$word\"; read order || exit; done");
    GuardCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script] }
}

#[test]
fn one_who_asks_a_guard_hears_what_became_of_it() {
    let limit = Duration::from_secs(5);
    let start = |lines: &str| Freezer::start(&says(lines), 1_000_000, limit);
    let mut freezer = start("ready suspended cleared 'resumed 7000'").unwrap();
    freezer.suspend().unwrap();
    freezer.clear().unwrap();
    assert_eq!(freezer.resume().unwrap(), Duration::from_millis(7));
    drop(start("ready").unwrap());
    assert!(matches!(start("nonsense"), Err(LiveError::Guard { .. })));
    assert!(matches!(start("suspended"), Err(LiveError::Guard { .. })));
    let mut freezer = start("ready fired").unwrap();
    assert!(matches!(freezer.suspend(), Err(LiveError::TooSlow { .. })));
    let nowhere = GuardCommand { program: "/nonexistent".into(), args: vec![] };
    assert!(matches!(Freezer::start(&nowhere, 0, limit), Err(LiveError::Guard { .. })));
}

#[test]
fn of_what_earlier_runs_have_left_the_last_that_did_not_arrive_is_needed() {
    let taken = |name: &str, mark, spoilt| Taken { name: name.to_owned(), mark, spoilt };
    let names = |all: &[Taken]| all.iter().map(|taken| taken.name.clone()).collect::<Vec<_>>();
    let ours =
        vec![taken("1", Some(10), false), taken("2", Some(20), false), taken("3", None, false)];
    let spoilt = vec![taken("1", Some(10), false), taken("2", Some(20), true)];
    let base = |uuid| Some(Generation::drbd(uuid));
    for (ours, base, mode, due_name, rest) in [
        (&ours, None, Mode::Rotate, Some("2"), ["1", "3"].as_slice()),
        (&ours, base(11), Mode::Rotate, Some("2"), &["1", "3"]),
        (&ours, base(21), Mode::Rotate, None, &["1", "2", "3"]),
        (&ours, base(11), Mode::Cumulative, None, &["1", "2", "3"]),
        (&spoilt, base(11), Mode::Rotate, None, &["1", "2"]),
    ] {
        let left = sort_out(ours.clone(), base.as_ref(), mode, false);
        assert!(left.kept.is_none());
        let due = left.due.map(|taken| taken.name);
        assert_eq!((due.as_deref(), names(&left.rest)), (due_name, names_of(rest)));
    }
    // To be compared with, what the target holds is kept, and nothing else.
    let of = |base, mode| {
        let left = sort_out(ours.clone(), Some(&Generation::drbd(base)), mode, true);
        let name = |taken: Option<Taken>| taken.map(|taken| taken.name).unwrap_or_default();
        (name(left.due), name(left.kept), names(&left.rest))
    };
    let row = |due: &str, kept: &str, rest: &[&str]| (due.into(), kept.into(), names_of(rest));
    assert_eq!(of(10, Mode::Rotate), row("2", "1", &["3"]));
    assert_eq!(of(20, Mode::Rotate), row("", "2", &["1", "3"]));
    assert_eq!(of(30, Mode::Rotate), row("2", "", &["1", "3"]));
    assert_eq!(of(20, Mode::Cumulative), row("", "", &["1", "2", "3"]));
    let gone = sort_out(spoilt, Some(&Generation::drbd(20)), Mode::Rotate, true);
    assert!(gone.kept.is_none() && gone.due.is_none());
}

fn names_of(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn only_what_no_peer_needs_is_rotated() {
    let tracker = Found {
        resource: "r0".into(),
        volume: 0,
        minor: 1,
        minors: vec![1],
        is_84: true,
        backing: "/dev/lab/r0".into(),
        meta: MetaDisk::Internal,
        role: "Primary".into(),
        disk: "UpToDate".into(),
        suspended: false,
        links: vec![],
        peers: Some(vec![]),
    };
    assert_eq!(may_rotate(&tracker, false), Ok(()));
    let nine = Found { is_84: false, ..tracker.clone() };
    assert_eq!(may_rotate(&nine, true), Err(NoRotation::Nine));
    let configured = Found { peers: Some(vec!["b".into()]), ..tracker.clone() };
    assert_eq!(may_rotate(&configured, true), Err(NoRotation::Configured { peer: "b".into() }));
    let unknown = Found { peers: None, ..tracker.clone() };
    assert_eq!(may_rotate(&unknown, false), Err(NoRotation::Unknown));
    assert_eq!(may_rotate(&unknown, true), Ok(()));
    let link = Link {
        name: "b".into(),
        state: "Connecting".into(),
        disk: "DUnknown".into(),
        out_of_sync: None,
    };
    let alone = Link { state: "StandAlone".into(), ..link.clone() };
    let alone = Found { links: vec![alone], ..tracker.clone() };
    assert_eq!(may_rotate(&alone, false), Ok(()));
    let linked = Found { links: vec![link], ..tracker.clone() };
    assert!(matches!(may_rotate(&linked, true), Err(NoRotation::Connected { .. })));
    let disk = Found { disk: "Inconsistent".into(), ..tracker };
    assert!(matches!(may_rotate(&disk, true), Err(NoRotation::Disk { .. })));
}
