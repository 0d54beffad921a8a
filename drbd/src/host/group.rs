//! What still runs of a process group: a command that was given up may have left others behind.

use std::fs;

/// Whether any process of this group has not ended, besides this one.
pub(crate) fn is_at_work(group: u32, besides: u32) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| *process != besides)
        .filter_map(|process| fs::read_to_string(format!("/proc/{process}/stat")).ok())
        .any(|stat| parse_group(&stat) == Some(group))
}

/// The group that this process leads, if it leads one.
pub(crate) fn own() -> Option<u32> {
    let group = parse_group(&fs::read_to_string("/proc/self/stat").ok()?)?;
    Some(group).filter(|group| *group == std::process::id())
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

    /// What a command has left behind is at work until it ends, whatever became of the command.
    #[test]
    fn what_was_left_behind_is_seen_until_it_ends() {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "sleep 2 & exit 0"])
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = shell.id();
        assert!(shell.wait().unwrap().success());
        assert!(is_at_work(group, 0));
        let started = Instant::now();
        while is_at_work(group, 0) {
            assert!(started.elapsed() < Duration::from_secs(60), "it never ends");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
