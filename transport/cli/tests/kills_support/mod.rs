//! Kills of the real program at random moments, and what has to be true after each.
//!
//! A world is a folder with a source, a replica and, where there is a network, a server. The
//! source changes, a run is killed (or its server is), and then:
//!
//! * a run that ended with 0 or 8 before it was killed has made the replica the source;
//! * the replica is the source or the generation before it, bit for bit;
//! * the next run succeeds, and makes it the source;
//! * nothing is left behind: no file that was not there before, no journal, no process, no lock.

#[path = "../harness/files.rs"]
mod files;
#[path = "../harness/random.rs"]
mod random;
mod world;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use random::Random;
pub(crate) use world::World;

/// How many runs one world sees.
const RUNS_PER_WORLD: u64 = 12;

/// How a replica gets what its source holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Way {
    /// A push to a file of this machine.
    Local,
    /// A push over loopback.
    Push,
    /// A pull over loopback.
    Pull,
    /// A push of one recorded stream after the other.
    Streams,
}

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Victim {
    /// Whoever replicates.
    Run(Way),
    /// The server that it talks to.
    Server(Way),
    /// A scrub that repairs.
    Scrub,
    /// A restore from the replica.
    Restore,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(Way::Local) => f.write_str("push to a file"),
            Self::Run(Way::Push) => f.write_str("push over loopback"),
            Self::Run(Way::Pull) => f.write_str("pull over loopback"),
            Self::Run(Way::Streams) => f.write_str("push of recorded streams"),
            Self::Server(Way::Pull) => f.write_str("serve, pulled from"),
            Self::Server(_) => f.write_str("serve, pushed to"),
            Self::Scrub => f.write_str("scrub --repair"),
            Self::Restore => f.write_str("restore"),
        }
    }
}

/// What was found right after a kill.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Row {
    /// Kills of something that was still at work.
    pub(crate) killed: u64,
    /// Runs that were done sooner.
    pub(crate) ended: u64,
    /// How often nothing was committed yet.
    pub(crate) nothing: u64,
    /// How often the generation before stood there.
    pub(crate) earlier: u64,
    /// How often the new one did.
    pub(crate) later: u64,
}

/// What all kills came to.
#[derive(Default, Debug)]
pub(crate) struct Tally(pub(crate) BTreeMap<Victim, Row>);

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["killed", "ended", "nothing", "earlier", "later"];
        write!(f, "{:<26}", "")?;
        names.iter().try_for_each(|name| write!(f, "{name:>9}"))?;
        for (victim, row) in &self.0 {
            write!(f, "\n{:<26}", victim.to_string())?;
            let numbers = [row.killed, row.ended, row.nothing, row.earlier, row.later];
            numbers.iter().try_for_each(|number| write!(f, "{number:>9}"))?;
        }
        Ok(())
    }
}

/// Kills `program` so often while it is at work. Stops at the first thing that is wrong, and says what and where.
pub(crate) fn run(program: &Path, streams: &Path, kills: u64, seed: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut durations: BTreeMap<Victim, Duration> = BTreeMap::new();
    let (mut done, mut number) = (0, 0);
    while done < kills {
        let mut random = Random(seed.wrapping_add(number));
        let way = [Way::Local, Way::Push, Way::Pull, Way::Streams][(number % 4) as usize];
        number += 1;
        let mut world = World::new(program, streams, way, &mut random)?;
        for _ in 0..RUNS_PER_WORLD {
            let victim = world.victim(&mut random);
            let usual = durations.entry(victim).or_insert(Duration::from_millis(200));
            let told = world.kill(victim, usual, &mut random);
            let row = tally.0.entry(victim).or_default();
            let outcome = told.map_err(|what| {
                let kept: PathBuf = world.keep();
                format!("kill {done} (world {number}, {victim}): {what}; see {}", kept.display())
            })?;
            outcome.count(row);
            done += u64::from(!outcome.ended);
            if done == kills {
                break;
            }
        }
    }
    Ok(tally)
}

/// What one kill came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) ended: bool,
    pub(crate) found: Found,
}

/// What the replica was at after a kill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Nothing,
    Earlier,
    Later,
}

impl Outcome {
    const fn count(self, row: &mut Row) {
        if self.ended {
            row.ended += 1
        } else {
            row.killed += 1
        }
        match self.found {
            Found::Nothing => row.nothing += 1,
            Found::Earlier => row.earlier += 1,
            Found::Later => row.later += 1,
        }
    }
}
