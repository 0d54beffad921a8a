//! Images of a real DRBD device through the real program.

mod common;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use common::{Pair, command, driftline, json, unpack_drbd};
use serde_json::Value;
use tempfile::TempDir;

const SOURCES: [&str; 2] = ["drbdmeta:s0.img", "drbdmeta:s1.img"];
const TIPS: [&str; 2] = ["drbd:057610b9e6523718", "drbd:f9f05435c9b16542"];
/// The data of both, without the metadata behind it.
const SIZE: u64 = 134_176_768;

/// Where the superblock is.
const SUPERBLOCK_AT: u64 = (128 << 20) - 4096;

/// Both snapshots of a live Primary of DRBD 8.4, in `dir`.
fn snapshots(dir: &Path) {
    for name in ["s0", "s1"] {
        unpack_drbd(&format!("v84-live-{name}.raw"), &dir.join(format!("{name}.img")));
    }
}

/// Overwrites a word of the superblock of `image`.
fn patch(dir: &Path, image: &str, at: u64, value: u32) {
    let file = File::options().write(true).open(dir.join(image)).unwrap();
    file.write_all_at(&value.to_be_bytes(), SUPERBLOCK_AT + at).unwrap();
}

fn assert_holds(dir: &Path, replica: &str, image: &str) {
    let [replica, image] = [replica, image].map(|name| fs::read(dir.join(name)).unwrap());
    assert!(replica == image[..SIZE as usize], "the replica is not the volume");
}

fn increment(done: &Value) -> [&str; 3] {
    let increment = &done["increments"][0];
    ["kind", "tip", "reason"].map(|key| increment[key].as_str().unwrap_or("none"))
}

#[test]
fn a_rotated_snapshot_is_an_increment() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    let push = |source| json(dir, 0, &["push", "--rotated", source, "file:out.img"]);
    assert_eq!(increment(&push(SOURCES[0])), ["full", TIPS[0], "none"]);
    assert_holds(dir, "out.img", "s0.img");
    let done = push(SOURCES[1]);
    assert_eq!(increment(&done), ["incremental", TIPS[1], "none"]);
    assert_holds(dir, "out.img", "s1.img");
    // The activity log names 16 MiB, and all but 3 MiB and three blocks of it are holes.
    let lacking = done["bytes"]["lacking"].as_u64().unwrap();
    assert!((771 * 4096..4 << 20).contains(&lacking), "{lacking} bytes moved");
    assert_eq!(json(dir, 0, &["status", "file:out.img"])["generation"], TIPS[1]);
    assert_eq!(json(dir, 0, &["verify", "file:out.img"])["result"], "clean");
    // The same name is not the same snapshot, so that is compared, and found equal.
    let again = json(dir, 8, &["push", "--rotated", SOURCES[1], "file:out.img"]);
    assert_eq!(again["degraded"], "uuid-unchanged");
    assert_eq!(increment(&again), ["scan", TIPS[1], "uuid-unchanged"]);
    assert_eq!(again["bytes"]["lacking"], 0);
    // An older snapshot is of no history that has what the target holds.
    let refused = json(dir, 3, &["push", "--rotated", SOURCES[0], "file:out.img"]);
    assert_eq!(refused["error"]["reason"], "base-mismatch", "{refused}");
    assert_holds(dir, "out.img", "s1.img");
    // By consent everything goes: that older one is empty, so a person has to agree to that as well.
    let refused = json(dir, 3, &["push", "--full", "--rotated", SOURCES[0], "file:out.img"]);
    assert_eq!(refused["error"]["reason"], "source-emptied", "{refused}");
    json(dir, 0, &["allow-loss", "file:out.img"]);
    let agreed = json(dir, 0, &["push", "--full", "--rotated", SOURCES[0], "file:out.img"]);
    assert_eq!(increment(&agreed), ["scan", TIPS[0], "base-mismatch"]);
    assert_holds(dir, "out.img", "s0.img");
}

#[test]
fn a_map_tells_bitmap_and_activity_log_apart() {
    let dir = TempDir::new().unwrap();
    snapshots(dir.path());
    let map = json(dir.path(), 0, &["map", SOURCES[1]]);
    assert_eq!([&map["base"], &map["tip"]], TIPS);
    assert_eq!([&map["size"], &map["granularity"]], [SIZE, 4096]);
    assert_eq!(map["standing"], "proven");
    assert_eq!([&map["bitmap_bytes"], &map["activity_log_bytes"]], [0, 16 << 20]);
    let changed: Vec<(u64, u64)> = map["changed"].as_array().unwrap().iter().map(range).collect();
    for block in [256, 1280, 19712].into_iter().chain(10240..11008) {
        let at = block * 4096;
        assert!(changed.iter().any(|(start, end)| *start <= at && at + 4096 <= *end), "{block}");
    }
}

fn range(extent: &Value) -> (u64, u64) {
    let [offset, length] = ["offset", "length"].map(|key| extent[key].as_u64().unwrap());
    (offset, offset + length)
}

/// What the metadata does not prove is found by comparing, loudly, and moves no more.
#[test]
fn a_map_that_is_not_proven_becomes_a_scan() {
    for (at, value, reason) in [
        (0x38, 0x1b, "full-sync-flag"),
        (0x38, 0x113, "al-disabled"),
        (0x10, 0x1234_5678, "base-mismatch"),
        (0x04, 0x3_ffa8, "size-changed"),
    ] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        snapshots(dir);
        json(dir, 0, &["push", "--rotated", SOURCES[0], "file:out.img"]);
        patch(dir, "s1.img", at, value);
        if reason == "base-mismatch" {
            let refused = json(dir, 3, &["push", "--rotated", SOURCES[1], "file:out.img"]);
            assert_eq!(refused["error"]["reason"], reason, "{refused}");
            continue;
        }
        let output = driftline(dir, &["push", "--rotated", SOURCES[1], "file:out.img"]);
        let out = String::from_utf8_lossy(&output.stdout);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{log}");
        assert!(out.contains(&format!("degraded: {reason}")), "{out}");
        assert!(out.starts_with(&format!("scan ({reason}): {}", TIPS[1])), "{out}");
        assert!(log.contains("WARN") && log.contains(reason), "{log}");
        let replica = fs::read(dir.join("out.img")).unwrap();
        let image = fs::read(dir.join("s1.img")).unwrap();
        assert!(replica == image[..replica.len()], "{reason}");
    }
}

/// What needs a DRBD says so where there is none, or none of that name.
#[test]
fn a_volume_that_is_not_there_is_told() {
    let dir = TempDir::new().unwrap();
    for arguments in [
        ["push", "drbd:driftline-test-none/0", "file:out.img"].as_slice(),
        &["map", "drbd:driftline-test-none/0"],
    ] {
        let output = driftline(dir.path(), arguments);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("/proc/drbd") || log.contains("driftline-test-none"), "{log}");
    }
    let refused = driftline(dir.path(), &["push", "drbd:r0", "file:out.img"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("drbd:r0/0"));
    let same = ["drbd", "init-tracker", "r0", "/dev/a", "--meta", "/dev/a", "--yes"];
    let refused = driftline(dir.path(), &same);
    let log = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && log.contains("two devices"), "{log}");
}

/// The process that holds a device suspended is ended by nobody but the one it works for.
#[test]
fn the_guard_ends_with_whoever_started_it() {
    let dir = TempDir::new().unwrap();
    // A minor that no machine has, and it is not told to do anything with it.
    let mut guard = command(dir.path(), &["drbd", "guard", "1048575", "1000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(guard.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    let mut orders = guard.stdin.take().unwrap();
    for signal in ["-TERM", "-INT", "-HUP"] {
        let id = guard.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
    // It hears and answers still.
    writeln!(orders, "resume").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "failed nothing is suspended");
    drop(orders);
    assert!(guard.wait().unwrap().success());
    assert!(said.next().is_none());
}

#[test]
fn what_is_no_image_is_refused() {
    for (at, value, code, reason) in [
        (0x38, 0x12, 3, "not-consistent"),
        (0x3c, 0, 4, "metadata-damaged"),
        (0x50, 0, 4, "metadata-damaged"),
    ] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        snapshots(dir);
        patch(dir, "s0.img", at, value);
        for consent in [false, true] {
            let arguments = ["push", SOURCES[0], "file:out.img", "--full"];
            let refused = json(dir, code, &arguments[..if consent { 4 } else { 3 }]);
            assert_eq!(refused["error"]["reason"], reason, "{refused}");
        }
    }
}

#[test]
fn the_network_makes_no_difference() {
    let pair = Pair::new();
    snapshots(pair.path());
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    let push = |source| [&pair.push(source, &target)[..], &["--rotated"]].concat();
    for (source, kind) in SOURCES.into_iter().zip(["full", "incremental"]) {
        let done = json(pair.path(), 0, &push(source));
        assert_eq!(increment(&done)[0], kind);
    }
    assert_holds(pair.path(), "vm.img", "s1.img");
    let done = json(pair.path(), 8, &push(SOURCES[1]));
    assert_eq!(increment(&done)[2], "uuid-unchanged");
}

/// The metadata of the same snapshots, moved to a device of its own.
#[test]
fn metadata_may_be_on_another_device() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    let (sb, al, bm) = (SUPERBLOCK_AT, SUPERBLOCK_AT - 8 * 4096, SUPERBLOCK_AT - 9 * 4096);
    for name in ["s0", "s1"] {
        let image = fs::read(dir.join(format!("{name}.img"))).unwrap();
        let part = |at: u64, len: usize| image[at as usize..][..len].to_vec();
        let mut superblock = part(sb, 4096);
        // Length, and distances of the log and the bitmap, in sectors.
        for (at, sectors) in [(0x40, 262_144_u32), (0x44, 8), (0x4c, 72)] {
            superblock[at..at + 4].copy_from_slice(&sectors.to_be_bytes());
        }
        let mut meta = superblock;
        meta.extend(part(al, 8 * 4096));
        meta.extend(part(bm, 4096));
        let file = File::create(dir.join(format!("{name}.meta"))).unwrap();
        file.set_len(256 << 20).unwrap();
        file.write_all_at(&meta, 128 << 20).unwrap();
        fs::write(dir.join(format!("{name}.data")), &image[..SIZE as usize]).unwrap();
    }
    for (name, kind) in [("s0", "full"), ("s1", "incremental")] {
        let source = format!("drbdmeta:{name}.data,meta={name}.meta,index=1");
        let done = json(dir, 0, &["push", "--rotated", &source, "file:out.img"]);
        assert_eq!(increment(&done)[0], kind);
    }
    assert_holds(dir, "out.img", "s1.img");
    // Without the index there is nothing at the start of that device.
    let refused = json(dir, 4, &["push", "drbdmeta:s0.data,meta=s0.meta", "file:out.img"]);
    assert_eq!(refused["error"]["reason"], "metadata-damaged", "{refused}");
}
