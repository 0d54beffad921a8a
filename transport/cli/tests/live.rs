//! Volumes of a ZFS on this machine, with a `zfs` that replays recorded streams and remembers
//! what was asked of it. Real ones are in the lab.

mod common;

use std::{fs, path::Path};

use driftline_zfs::ResumeToken;
use tempfile::TempDir;

use common::{
    command,
    fake_zfs::{COLUMNS, Fake, GUIDS, text},
    recorded_sha256, sha256,
};

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}

#[test]
fn each_run_takes_a_snapshot_and_leaves_one_and_its_bookmark() {
    let fake = Fake::new(&[("@other:1 x", 5, 1), ("#other", 6, 1), ("@driftline-1", 7, 2)]);
    for number in 1..=3 {
        fake.arrives(&[], number);
        let points = fake.points();
        assert_eq!(points.len(), 4 + number, "{points:?}");
        let mark = format!("-{:016x}", GUIDS[number - 1]);
        assert!(points.iter().any(|p| p.contains('#') && p.ends_with(&mark)), "{points:?}");
        for others in ["tank/vm 1@other:1 x", "tank/vm 1#other", "tank/vm 1@driftline-1"] {
            assert!(points.iter().any(|point| point == others), "{others} is gone: {points:?}");
        }
    }
    let calls = fake.calls();
    let sends = calls.lines().filter(|call| call.starts_with("send -L -c ")).count();
    assert_eq!(sends, 3, "{calls}");
    // A bookmark would do as well, but a snapshot can be looked at.
    assert!(calls.contains("send -L -c -i tank/vm 1@driftline-"), "{calls}");
}

#[test]
fn the_bookmark_is_enough_to_go_on_from() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    let points = fs::read_to_string(fake.path("points")).unwrap();
    let marks = points.lines().filter(|line| line.contains('#'));
    fake.write("points", &marks.map(|line| format!("{line}\n")).collect::<String>());
    fake.arrives(&[], 2);
    assert!(fake.calls().contains("send -L -c -i tank/vm 1#driftline-"));
}

/// Its clone keeps it, and nothing else: not what came after it. The bookmarks of a day stay anyway.
#[test]
fn what_a_clone_or_a_hold_keeps_is_named_and_the_rest_goes() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    let first = fake.points().into_iter().find(|point| point.contains('@')).unwrap();
    fake.write("clones", &format!("{first}\ttank/work\n"));
    fake.arrives(&[], 2);
    let mut second = fake.points().into_iter().filter(|p| p.contains('@') && *p != first);
    let second = second.next().unwrap();
    fake.write("holds", &format!("{second}\tweekly\n"));
    let output = fake.push(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for word in [&first, "clone tank/work", &second, "held by weekly", "zfs release"] {
        assert!(text(&output).contains(word), "{word} is not in {}", text(&output));
    }
    let points = fake.points();
    let (marks, snapshots): (Vec<_>, Vec<_>) =
        points.into_iter().partition(|point| point.contains('#'));
    assert_eq!(snapshots.len(), 3, "{snapshots:?}");
    assert!(snapshots.contains(&first) && snapshots.contains(&second), "{snapshots:?}");
    let guids =
        GUIDS.map(|guid| marks.iter().filter(|m| m.ends_with(&format!("-{guid:016x}"))).count());
    assert_eq!((guids, marks.len()), ([1; 3], 3), "{marks:?}");
    // Once nothing keeps them, they go by themselves.
    fs::remove_file(fake.path("clones")).unwrap();
    fs::remove_file(fake.path("holds")).unwrap();
    let output = fake.push(&["--latest"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let snapshots = fake.points().into_iter().filter(|point| point.contains('@')).count();
    assert_eq!((snapshots, fake.points().len()), (1, 4), "{:?}", fake.points());
}

/// Pushes the volume to a data set of the same ZFS.
fn push_stream(fake: &Fake) -> std::process::Output {
    let mut push = command(fake.0.path(), &["push", "zfs:tank/vm 1", "zfs:back/vm"]);
    push.env("DRIFTLINE_ZFS", fake.path("zfs")).output().unwrap()
}

#[test]
fn a_part_that_nobody_can_go_on_with_is_thrown_away_and_the_copy_starts_anew() {
    let of = |toguid, toname: &str, from| {
        let offset = std::num::NonZeroU64::new(16384).unwrap();
        ResumeToken::for_volume(toguid, toname.parse().unwrap(), from, 1 << 20, offset).to_string()
    };
    for (token, is_ours) in [
        (of(4242, "tank/vm 1@pruned", None), true),
        // Its snapshot is there, and what it starts from is not.
        (of(GUIDS[1], "tank/vm 1@there", Some(4242)), true),
        (of(4242, "tank/other@pruned", None), false),
    ] {
        let fake = Fake::new(&[("@there", GUIDS[1], 1)]);
        fake.write("arrives", &GUIDS[0].to_string());
        let columns =
            COLUMNS.replace("SIZE", "25165824").replace("-\t-\t-", &format!("-\t-\t{token}"));
        let source = fs::read_to_string(fake.path("dataset")).unwrap();
        fake.write("dataset", &format!("{source}back/vm\t{columns}\n"));
        let output = push_stream(&fake);
        let calls = fake.calls();
        if !is_ours {
            assert_eq!(output.status.code(), Some(3), "{}", text(&output));
            assert!(!calls.contains("receive -A"), "{calls}");
            continue;
        }
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(text(&output).contains("nobody can resume"), "{}", text(&output));
        assert!(calls.contains("receive -A back/vm\n"), "{calls}");
        let sent = fs::read(fake.path(&format!("stream.0.{}", GUIDS[0]))).unwrap();
        assert!(fs::read(fake.path("received")).unwrap() == sent, "it was not sent from the start");
    }
}

#[test]
fn runs_that_fail_again_and_again_do_not_pile_up_snapshots() {
    let fake = Fake::new(&[("@other", 5, 1)]);
    let next: String = (1..=6).map(|i| format!("{i} {}\n", GUIDS[0] - i)).collect();
    fake.write("next", &next);
    fake.write("deaf", "");
    for i in 1..=6 {
        let from = fake.path(&format!("stream.0.{}", GUIDS[0]));
        fs::copy(&from, fake.path(&format!("stream.0.{}", GUIDS[0] - i))).unwrap();
    }
    for _ in 1..=6 {
        let output = push_stream(&fake);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("it is deaf"), "{}", text(&output));
    }
    // That of the last run, and that of the one before.
    let points = fake.points();
    assert_eq!(points.len(), 3, "{points:?}");
    assert!(points.contains(&"tank/vm 1@other".to_owned()), "{points:?}");
}

#[test]
fn without_bookmarks_the_snapshot_that_arrived_stays() {
    let fake = Fake::new(&[("@other:1 x", 5, 1)]);
    fake.write("old", "");
    for number in 1..=3 {
        let output = fake.push(&[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(!text(&output).contains("WARN"), "{}", text(&output));
        let expected = recorded_sha256(&format!("lz4-16k@s{number}"));
        assert_eq!(sha256(&fake.path("vm.img")), expected);
        let points = fs::read_to_string(fake.path("points")).unwrap();
        assert_eq!(points.lines().count(), 2, "{points}");
        assert!(points.contains(&GUIDS[number - 1].to_string()), "{points}");
    }
    let calls = fake.calls();
    assert_eq!(calls.matches("send -i tank/vm 1@driftline-").count(), 2, "{calls}");
    assert!(!calls.contains("send -t") && !calls.contains("bookmark tank"), "{calls}");
}

/// Its snapshots have no devices here, so all of it is sent, and named.
#[test]
fn all_is_compared_on_request() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    let output = fake.push(&["--latest", "--compare"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for part in ["\"kind\":\"full\"", "\"changed\":1179648,\"lacking\":0", "\"degraded\":null"] {
        assert!(text(&output).contains(part), "{part} is not in {}", text(&output));
    }
    assert_eq!(sha256(&fake.path("vm.img")), recorded_sha256("lz4-16k@s1"));
    fake.arrives(&[], 2);
}

#[test]
fn two_targets_keep_apart_what_they_need() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    let of_first = fake.points();
    let mut again =
        command(fake.0.path(), &["push", "zfs:tank/vm 1", "file:other.img", "--latest"]);
    let output = again.env("DRIFTLINE_ZFS", fake.path("zfs")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    // The second one's bookmark came, and nothing of the first one's went.
    let points = fake.points();
    assert_eq!(points.len(), of_first.len() + 1, "{points:?}");
    assert!(of_first.iter().all(|point| points.contains(point)), "{points:?}");
}

#[test]
fn a_snapshot_of_other_people_is_replicated_and_left_alone() {
    let fake = Fake::new(&[("@a", GUIDS[0], 1), ("@b:c", GUIDS[1], 2), ("#z", 9, 3)]);
    fake.arrives(&["--snapshot", "a"], 1);
    fake.arrives(&["--latest"], 2);
    assert!(!fake.calls().lines().any(|call| call.starts_with("snapshot")));
    let points = fake.points();
    assert!(points.contains(&"tank/vm 1@a".to_owned()), "{points:?}");
    // There is nothing newer.
    fake.arrives(&["--latest"], 2);
    fake.fails(&["--snapshot", "a"], 3, &["base-mismatch", "newer than tank/vm 1@a"]);
    fake.fails(&["--snapshot", "nothing"], 1, &["no snapshot tank/vm 1@nothing"]);
}

#[test]
fn what_is_left_of_nothing_is_a_base_mismatch_until_a_full_copy_is_agreed_to() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    // Rolled back: what the target holds has never been.
    fake.write("points", "");
    fake.write("next", &format!("1 {}\n", GUIDS[0] - 1));
    fake.write(&format!("size.{}", GUIDS[0] - 1), "16777216\n");
    let before = sha256(&fake.path("vm.img"));
    fake.fails(&[], 3, &["base-mismatch", "run again with `--full`"]);
    // A timer would leave one behind each time.
    assert_eq!(fake.points(), [""; 0], "a snapshot was taken that cannot be sent");
    assert_eq!(sha256(&fake.path("vm.img")), before);
    fake.write("points", &format!("tank/vm 1@again\t{}\t5\t5\t0\n", GUIDS[0]));
    fake.arrives(&["--full", "--latest"], 1);
}

#[test]
fn a_sender_that_fails_is_quoted_and_nothing_is_committed() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    let (a, b) = (GUIDS[0], GUIDS[1]);
    let whole = fs::read(fake.path(&format!("stream.{a}.{b}"))).unwrap();
    // Cut short, and then whole but with an exit status that does not vouch for it.
    for len in [whole.len() / 2, whole.len()] {
        fs::write(fake.path(&format!("stream.{a}.{b}")), &whole[..len]).unwrap();
        fake.write("fails", "warning: cannot send: I/O error\nsecond line\n");
        fake.fails(&["--latest"], 0, &[]);
        fake.write("next", &format!("2 {b}\n"));
        fake.fails(&[], 1, &["I/O error", "second line"]);
        assert_eq!(sha256(&fake.path("vm.img")), recorded_sha256("lz4-16k@s1"));
        let points = fs::read_to_string(fake.path("points")).unwrap();
        let kept = points.lines().filter(|line| !line.contains(&b.to_string()));
        fake.write("points", &kept.map(|line| format!("{line}\n")).collect::<String>());
    }
    fs::remove_file(fake.path("fails")).unwrap();
    fake.write("next", &format!("2 {b}\n"));
    fake.arrives(&[], 2);
}

#[test]
fn what_cannot_be_read_is_refused_before_a_snapshot_is_taken() {
    let fake = Fake::new(&[]);
    let with = |from: &str, to: &str| {
        let line = COLUMNS.replace("SIZE", "25165824").replacen(from, to, 1);
        fake.write("dataset", &format!("tank/vm 1\t{line}\n"));
    };
    with("off\t-\t-", "aes-256-gcm\ttank\tunavailable");
    fake.fails(&[], 1, &["key of tank/vm 1 is not loaded", "zfs load-key"]);
    with("volume\t77\t25165824\t16384", "filesystem\t77\t-\t-");
    fake.fails(&[], 3, &["is a file system"]);
    let mut none = command(fake.0.path(), &["push", "zfs:tank/none", "file:x.img"]);
    let output = none.env("DRIFTLINE_ZFS", fake.path("zfs")).output().unwrap();
    assert!(text(&output).contains("there is no tank/none"), "{}", text(&output));
    assert!(!fake.calls().contains("snapshot tank"), "{}", fake.calls());
    assert!(!exists(&fake.path("vm.img")), "a refused push left a file");
}

#[test]
fn a_zfs_that_is_known_to_lose_data_is_named() {
    let fake = Fake::new(&[]);
    let output = fake.push(&[]);
    assert!(!text(&output).contains("zeroed-chunks"), "{}", text(&output));
    fake.write("version", "zfs-2.2.1-1\nzfs-kmod-2.2.1-1\n");
    let output = fake.push(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("zeroed-chunks"), "{}", text(&output));
}

#[test]
fn a_machine_without_zfs_is_told_so() {
    let dir = TempDir::new().unwrap();
    let mut push = command(dir.path(), &["push", "zfs:tank/vm", "file:vm.img"]);
    push.env("DRIFTLINE_ZFS", dir.path().join("none"));
    let output = push.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("cannot be started"), "{}", text(&output));
}
