//! How long ZFS is waited for. On a pool that is suspended its commands wait for ever, in the
//! kernel, without a word; and one of a large pool may well take minutes. So whoever waits asks
//! from time to time how the pool is.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use driftline_command::{GivenUp, Patience, call, whole};

use super::ZfsError;
use crate::ResumeToken;

/// How long is waited for ZFS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// How long a command may take that only lists or changes something.
    pub(super) command: Duration,
    /// After how long without a sign of life it is asked how the pool is.
    pub(super) quiet: Duration,
    /// How long the answer may take.
    pub(super) answer: Duration,
}

impl Limits {
    pub(super) const USUAL: Self = Self {
        command: Duration::from_secs(900),
        quiet: Duration::from_secs(30),
        answer: Duration::from_secs(30),
    };
}

/// Asks how a pool is while something waits for it.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// The command `zpool`, beside `zfs` or where that is looked for; `None` if there is none.
    pub(super) zpool: Option<PathBuf>,
    /// The pool; `None` if what waits is of none.
    pub(super) pool: Option<String>,
    /// Where the kernel has a folder for each pool, with its state.
    pub(super) states: PathBuf,
    pub(super) limits: Limits,
}

impl Watch {
    /// Whether to begin at all. Who waits in the kernel for a pool that is suspended cannot be ended,
    /// not even by a kill, and if that is a thread of ours this process cannot end either.
    pub(super) fn begin(&self) -> Result<(), GivenUp> {
        match &self.pool {
            Some(pool) if self.is_suspended(pool) => Err(GivenUp::Senseless(suspended(pool))),
            _ => Ok(()),
        }
    }

    /// Whether the kernel says so, which waits for nothing. A ZFS that is none of the kernel's says
    /// nothing there.
    fn is_suspended(&self, pool: &str) -> bool {
        let state = std::fs::read(self.states.join(pool).join("state"));
        state.is_ok_and(|state| state.trim_ascii() == SUSPENDED.as_bytes())
    }

    /// Whether to wait on, or why not.
    pub(super) fn look(&self) -> Result<(), String> {
        let Some(pool) = &self.pool else { return Ok(()) };
        if self.is_suspended(pool) {
            return Err(suspended(pool));
        }
        let Some(zpool) = &self.zpool else { return Ok(()) };
        let args = ["list", "-H", "-o", "health", pool];
        let patience = Patience::of(self.limits.answer);
        let asked =
            call(zpool, &args, &[("LC_ALL", "C")], patience, |pipe| whole(pipe, ANSWER_MAX));
        match asked {
            Ok(ended) => {
                let health = ended.stdout.map(|(bytes, _)| bytes).unwrap_or_default();
                let health = String::from_utf8_lossy(&health);
                match health.trim() {
                    SUSPENDED => Err(suspended(pool)),
                    _ => Ok(()),
                }
            }
            Err(GivenUp::Late(_)) => Err(format!(
                "nothing moved, and `zpool list {pool}` does not answer: the pool hangs; see \
                 `zpool status {pool}` and the kernel's log"
            )),
            // Who cannot be asked says nothing.
            Err(_) => Ok(()),
        }
    }
}

/// The state of a pool that does nothing before its devices are back.
const SUSPENDED: &str = "SUSPENDED";

/// Where the kernel has the state of each pool.
pub(super) const STATES: &str = "/proc/spl/kstat/zfs";

fn suspended(pool: &str) -> String {
    format!(
        "the pool {pool} is suspended, as a device of it is gone: see `zpool status {pool}`, and \
         run `zpool clear {pool}` when the device is back"
    )
}

/// More than any health is long.
const ANSWER_MAX: u64 = 256;

/// The pool that a call of `zfs` with these arguments is about, if it is about one.
pub(super) fn pool_of(args: &[String]) -> Option<String> {
    let last = args.last()?;
    let name = match args {
        [send, resume, token] if send == "send" && resume == "-t" => {
            token.parse::<ResumeToken>().ok()?.toname.to_string()
        }
        _ => last.clone(),
    };
    let pool = name.split(['/', '@', '#']).next().unwrap_or_default();
    let is_name = pool.starts_with(|c: char| c.is_ascii_alphabetic());
    (args.len() > 1 && is_name).then(|| pool.to_owned())
}

/// The command `zpool` that belongs to this `zfs`.
pub(super) fn zpool_beside(zfs: &Path) -> Option<PathBuf> {
    let beside = zfs.with_file_name("zpool");
    if super::is_program(&beside) {
        return Some(beside);
    }
    let usual = super::COMMAND_FOLDERS.iter().map(|folder| Path::new(folder).join("zpool"));
    usual.into_iter().find(|file| super::is_program(file))
}

/// Why a command was given up.
pub(super) fn given_up(command: String, error: GivenUp) -> ZfsError {
    match error {
        GivenUp::Late(within) => ZfsError::Late { command, within },
        GivenUp::Senseless(why) => ZfsError::Stuck { command, why },
        GivenUp::System(error) => ZfsError::Pipe { command, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_of_a_call_is_found() {
        let pool = |line: &str| pool_of(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for (line, expected) in [
            ("list -H -o name tank/a", Some("tank")),
            ("snapshot tank@x", Some("tank")),
            ("get -Hp -o value guid back/a/b#c", Some("back")),
            ("receive -u -s back", Some("back")),
            ("version", None),
            ("send -L -c -e", None),
            ("send -t 1-2-3", None),
        ] {
            assert_eq!(pool(line).as_deref(), expected, "{line}");
        }
        let offset = std::num::NonZeroU64::MIN;
        let token = ResumeToken::for_volume(1, "tank/v@s".parse().unwrap(), None, 0, offset);
        assert_eq!(pool(&format!("send -t {token}")).as_deref(), Some("tank"));
    }
}
