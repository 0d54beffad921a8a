//! Faults of single system calls of the real program, injected by strace, and what has to be true
//! after each.
//!
//! A run is traced once, undisturbed, to know its calls on the files of one place. Then it is run
//! again from the same state, and one of those calls, drawn at random, fails or is never made:
//!
//! * a run that ends with 0 or 8 has made the replica its source;
//! * once the fault is gone the next run succeeds, or the one after a refusal that names a way out
//!   does, and makes it the source;
//! * then it verifies as clean, and nothing is left behind.

#[path = "../harness/files.rs"]
mod files;
#[path = "../harness/random.rs"]
mod random;
mod world;

use std::{collections::BTreeMap, fmt, path::Path};

use random::Random;
use world::World;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    /// A sync fails.
    Sync,
    /// A write says that it wrote one byte, and wrote none.
    Short,
    /// A write says that it wrote everything, and wrote nothing.
    Lost,
    /// A read fails.
    Read,
    /// A write fails.
    Write,
    /// From some write on there is no space.
    Full,
}

/// Where it goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    Data,
    Books,
    Journal,
    Trust,
}

impl Fault {
    const ALL: [Self; 6] =
        [Self::Sync, Self::Short, Self::Lost, Self::Read, Self::Write, Self::Full];

    /// The calls that it befalls.
    const fn calls(self) -> &'static str {
        match self {
            Self::Sync => "fsync,fdatasync",
            Self::Short | Self::Lost => "pwrite64,write",
            Self::Read => "pread64,read",
            Self::Write => "pwrite64,write,ftruncate,fallocate",
            Self::Full => "pwrite64,write,fallocate",
        }
    }

    /// How strace makes it of the `at`-th call of a thread, which wrote `len` bytes.
    fn injection(self, at: u64, len: u64) -> String {
        let what = match self {
            Self::Sync | Self::Read | Self::Write => "error=EIO".to_owned(),
            Self::Full => "error=ENOSPC".to_owned(),
            Self::Short => "retval=1".to_owned(),
            Self::Lost => format!("retval={len}"),
        };
        let on = if self == Self::Full { "+" } else { "" };
        format!("inject={}:{what}:when={at}{on}", self.calls())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync => "sync fails",
            Self::Short => "short write",
            Self::Lost => "lost write",
            Self::Read => "EIO on read",
            Self::Write => "EIO on write",
            Self::Full => "ENOSPC",
        })
    }
}

impl Place {
    const ALL: [Self; 4] = [Self::Data, Self::Books, Self::Journal, Self::Trust];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Books => "books",
            Self::Journal => "journal",
            Self::Trust => "trust folder",
        })
    }
}

/// What runs came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Row {
    /// Runs that a fault befell.
    pub(crate) runs: u64,
    /// Runs that went well all the same, or after they had put something right.
    pub(crate) well: u64,
    /// Runs that failed, after which the next one went well.
    pub(crate) mended: u64,
    /// Runs after which it took a scrub that repairs, as the message said.
    pub(crate) repaired: u64,
    /// Runs after which it took a person's consent, as the message said.
    pub(crate) agreed: u64,
}

/// What all of them came to.
#[derive(Default, Debug)]
pub(crate) struct Table(pub(crate) BTreeMap<(Fault, Place), Row>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<28}", "")?;
        let names = ["runs", "well", "next well", "repaired", "agreed"];
        names.iter().try_for_each(|name| write!(f, "{name:>10}"))?;
        for ((fault, place), row) in &self.0 {
            write!(f, "\n{:<28}", format!("{fault}, {place}"))?;
            let numbers = [row.runs, row.well, row.mended, row.repaired, row.agreed];
            numbers.iter().try_for_each(|number| write!(f, "{number:>10}"))?;
        }
        Ok(())
    }
}

/// Runs `program` until each fault befell each place so often. Stops at the first thing that is
/// wrong, and says what and where.
pub(crate) fn run(program: &Path, data: &Path, each: u64, seed: u64) -> Result<Table, String> {
    let mut table = Table::default();
    let mut random = Random(seed);
    for place in Place::ALL {
        let mut world = World::new(program, data, place, &mut random)?;
        for fault in Fault::ALL {
            let mut left = each;
            while left > 0 {
                let told = world.befall(fault, &mut random);
                let row = table.0.entry((fault, place)).or_default();
                match told {
                    Ok(true) => left -= 1,
                    // The call did not come again in that thread.
                    Ok(false) => continue,
                    Err(what) => {
                        let kept = world.keep();
                        let run = row.runs + 1;
                        return Err(format!(
                            "{fault}, {place}, run {run}: {what}; see {}\n{table}",
                            kept.display()
                        ));
                    }
                }
                row.runs += 1;
                match world.came_to {
                    world::CameTo::Well => row.well += 1,
                    world::CameTo::NextWell => row.mended += 1,
                    world::CameTo::Repaired => row.repaired += 1,
                    world::CameTo::Agreed => row.agreed += 1,
                }
            }
        }
    }
    Ok(table)
}
