//! The simulation: whole histories of a source, a link and a target, drawn from one seed.
//!
//! A history is a list of steps: the volume is written, discarded, resized, snapshotted, rolled
//! back; increments are pushed and pulled by the real cores, while the link is cut, disks fail,
//! lie, forget, are swapped and put back, and storages leave changes out of their maps; the replica
//! is scrubbed and repaired. A model knows what each generation holds. After every step the replica
//! is opened and read, and:
//!
//! * it is at the generation where it was, or at one that was offered since (N or N + 1);
//! * its bytes are those of that generation, or verifying it says that they are not, and then
//!   something befell this history that only verifying can find ([`Rung::Scrub`]);
//! * its generation is what the source held under that name, or something befell this history
//!   that only the audit can find ([`Rung::Audit`], and [`Options::audit`] says that it is
//!   there);
//! * nothing that was not in its books was written over without consent, be that to a whole copy or
//!   to the repair of what a scrub has found and nobody has touched since;
//! * a scrub says what is true, and writes nothing but what the books name;
//! * a comparison of all names exactly the chunks that the map has missed;
//! * a session that said it went well did;
//! * a target that is gone is not copied anew, once something had arrived there and was told, unless
//!   by consent;
//! * a disk that is full keeps nobody from the replica;
//! * a session that nothing disturbed went well, or was refused for lack of a base; so did one that
//!   found nothing but what a scrub had listed.
//!
//! At its end all faults stop, and the replica must become equal to the source.
//!
//! Each step draws from the seed and its own number alone, so that a history which fails can be
//! told again without the steps that do not matter: [`shrink`].

mod check;
mod disks;
mod expect;
mod history;
mod replicate;
mod scrub;
mod source;
mod storage;

use std::{fmt, panic};

use driftline_target::Part;
use driftline_wire::{Link, Verb};

pub use expect::{Fault, Rung};

/// A bug that is planted where the cores meet the world, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The source leaves changes out.
    SkipExtent,
    /// This file of the replica is never synced.
    SkipSync(Part),
    /// The source sends an increment from another snapshot than the target has.
    WrongBase,
    /// The activity log is not read.
    NoActivityLog,
    /// What was written is read back from the cache, which proves nothing.
    CommitUnverified,
    /// A plain snapshot of a DRBD device goes by its UUID, as if it had been rotated.
    BelievesAName,
    /// It is not told which node of a pair DRBD's metadata are of.
    ForgetsTheNode,
    /// The source does not remember that there was a target.
    CopiesAVanishedTarget,
    /// While one side gets ready it does not hear that the other one lives.
    SilentAfterMinute,
    /// Room that is set aside for an increment is not there when it is put in place.
    FullDiskWhileApplying,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::SkipExtent,
        Self::SkipSync(Part::Volume),
        Self::SkipSync(Part::Journal),
        Self::SkipSync(Part::Ids),
        Self::SkipSync(Part::State),
        Self::WrongBase,
        Self::NoActivityLog,
        Self::CommitUnverified,
        Self::BelievesAName,
        Self::ForgetsTheNode,
        Self::CopiesAVanishedTarget,
        Self::SilentAfterMinute,
        Self::FullDiskWhileApplying,
    ];
}

/// How histories are told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A bug to plant.
    pub bug: Option<Bug>,
    /// Whether runs audit what maps call unchanged, so that no lie of a map may survive one.
    pub audit: bool,
    /// Whether histories may draw what was assumed away at first: two snapshots of one name, two
    /// nodes of one device, a target that vanishes, a side that is busy for minutes, and a disk
    /// that is full while a sealed increment is put in place. All else of a history is drawn alike.
    pub wide: bool,
    /// Makes the two ends of a connection, with all their keys drawn from a seed.
    pub links: fn(u64, Verb) -> (Link, Link),
}

/// What histories were made of.
#[derive(Clone, Default, Debug)]
pub struct Stats {
    /// How many there were.
    pub histories: u64,
    /// Steps in them.
    pub steps: u64,
    /// Sessions in them.
    pub sessions: u64,
    /// Increments that were committed.
    pub commits: u64,
    /// Of these, how many a lying map made differ from the source, unseen without an audit.
    pub unseen: u64,
    /// Sessions that an audit ended because a map had lied.
    pub found: u64,
    /// Comparisons of all that a map was held against.
    pub compared: u64,
    /// Scrubs of the replica.
    pub scrubs: u64,
    /// Chunks that they put right.
    pub repaired: u64,
    /// How often each fault befell them.
    pub faults: std::collections::BTreeMap<Fault, u64>,
}

impl Stats {
    /// Adds those of other histories.
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.steps += other.steps;
        self.sessions += other.sessions;
        self.commits += other.commits;
        self.unseen += other.unseen;
        self.found += other.found;
        self.compared += other.compared;
        self.scrubs += other.scrubs;
        self.repaired += other.repaired;
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
    }
}

/// A history that breaks an invariant.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it was drawn from.
    pub seed: u64,
    /// The steps that were taken, by their numbers.
    pub steps: Vec<u64>,
    /// What happened, step by step.
    pub trace: Vec<String>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} breaks an invariant:", self.seed)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "  => {}", self.what)
    }
}

/// Tells the history of this seed.
///
/// # Errors
/// If it breaks an invariant.
pub fn run(seed: u64, options: &Options) -> Result<Stats, Box<Finding>> {
    tell(seed, None, options)
}

/// A core that panics is a finding as well.
fn tell(seed: u64, steps: Option<&[u64]>, options: &Options) -> Result<Stats, Box<Finding>> {
    let told = panic::catch_unwind(|| history::tell(seed, steps, options));
    told.unwrap_or_else(|_| {
        let steps = steps.map_or_else(|| history::steps_of(seed), <[u64]>::to_vec);
        let what = "panicked, see above".to_owned();
        Err(Box::new(Finding { seed, steps, trace: Vec::new(), what }))
    })
}

/// Leaves out of a failing history, one by one, the steps without which it fails as well.
pub fn shrink(finding: Finding, options: &Options) -> Finding {
    let mut least = finding;
    let mut at = 0;
    while at < least.steps.len() {
        let mut steps = least.steps.clone();
        steps.remove(at);
        match tell(least.seed, Some(&steps), options) {
            Ok(_) => at += 1,
            Err(finding) => least = *finding,
        }
    }
    least
}
