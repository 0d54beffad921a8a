//! What still runs of what a guard has started: a command that was given up may have left others
//! behind.
//!
//! All of it is in the process group of the guard, or has its mark in the environment that it was
//! started with, also in a session of its own.

use std::{fs, process};

/// The variable that has the mark.
pub(crate) const MARK: &str = "DRIFTLINE_GUARD";

/// What a guard has started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Brood {
    /// The process group of the guard, if it leads one.
    pub(crate) group: Option<u32>,
    /// The mark that it has in its environment.
    pub(crate) mark: Option<String>,
}

impl Brood {
    /// That of this process.
    pub(crate) fn own() -> Self {
        let group = fs::read_to_string("/proc/self/stat").ok();
        let group = group.and_then(|stat| parse_group(&stat));
        Self {
            group: group.filter(|group| *group == process::id()),
            mark: std::env::var(MARK).ok(),
        }
    }

    /// Whether any of it has not ended, besides this process.
    pub(crate) fn is_at_work(&self) -> bool {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let others = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|other| *other != process::id());
        others.into_iter().any(|other| self.has(other))
    }

    fn has(&self, other: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        // One that has ended has neither.
        let Some(group) = parse_group(&stat) else { return false };
        if self.group == Some(group) {
            return true;
        }
        let Some(mark) = &self.mark else { return false };
        let environment = fs::read(format!("/proc/{other}/environ")).unwrap_or_default();
        let marked = format!("{MARK}={mark}");
        environment.split(|byte| *byte == 0).any(|one| one == marked.as_bytes())
    }
}

/// The group in a `stat` of `/proc`; `None` of a process that has ended and only waits to be heard.
fn parse_group(stat: &str) -> Option<u32> {
    // The name may have anything in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace();
    let state = words.next()?;
    let group = words.nth(1)?.parse().ok()?;
    Some(group).filter(|_| !matches!(state, "Z" | "X"))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt as _,
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn the_group_is_found_behind_any_name() {
        assert_eq!(parse_group("7 (a) b) c) S 1 42 42 0 -1"), Some(42));
        assert_eq!(parse_group("7 (x) Z 1 42 42 0 -1"), None);
        for bad in ["", "7 (x", "7 (x) S", "7 (x) S 1", "7 (x) S 1 y"] {
            assert_eq!(parse_group(bad), None, "{bad}");
        }
    }

    /// What a command has left behind is at work until it ends, whatever became of the command, and
    /// whether it stayed in its group or not.
    #[test]
    fn what_was_left_behind_is_seen_until_it_ends() {
        for (script, by_group) in [("sleep 2 & exit 0", true), ("setsid sleep 2 & exit 0", false)] {
            let mark = format!("test-{}-{by_group}", process::id());
            let mut shell = Command::new("/bin/sh")
                .args(["-c", script])
                .env(MARK, &mark)
                .stdout(Stdio::null())
                .process_group(0)
                .spawn()
                .unwrap();
            let group = Some(shell.id());
            assert!(shell.wait().unwrap().success());
            // What is in a session of its own needs a moment to get there.
            thread::sleep(Duration::from_millis(500));
            let only_group = Brood { group, mark: None };
            let only_mark = Brood { group: None, mark: Some(mark) };
            assert_eq!(only_group.is_at_work(), by_group, "{script}");
            assert!(only_mark.is_at_work(), "{script}");
            assert!(!Brood { group: None, mark: Some("another".to_owned()) }.is_at_work());
            let started = Instant::now();
            while only_mark.is_at_work() {
                assert!(started.elapsed() < Duration::from_secs(60), "{script}: it never ends");
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
