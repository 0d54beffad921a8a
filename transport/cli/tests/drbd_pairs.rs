//! Snapshots of real DRBD 9 devices through the real program, without audits: what is committed is
//! the snapshot, whatever the name of the base seems to say.

mod common;

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::Path,
};

use common::json;
use serde_json::Value;
use tempfile::TempDir;

/// Nothing but the map says what changed.
const NO_AUDIT: [&str; 4] = ["--audit-sample", "0", "--audit-age", "3660d"];

/// Unpacks a snapshot, and says how long its data is.
fn unpack(name: &str, to: &Path) -> u64 {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/drbd9");
    let packed = File::open(data.join(format!("{name}.img.zst"))).unwrap();
    let mut image = zstd::Decoder::new(packed).unwrap();
    let file = File::create(to).unwrap();
    let (mut at, mut page) = (0, vec![0; 4096]);
    while image.read_exact(&mut page).is_ok() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(&page, at).unwrap();
        }
        at += 4096;
    }
    file.set_len(at).unwrap();
    // The superblock is the last page, and begins with the size in sectors.
    let mut sectors = [0; 8];
    File::open(to).unwrap().read_exact_at(&mut sectors, at - 4096).unwrap();
    u64::from_be_bytes(sectors) * 512
}

/// How many pages of the data differ from those of the replica.
fn stale(image: &Path, replica: &Path, size: u64) -> usize {
    let [image, replica] = [image, replica].map(|path| fs::read(path).unwrap());
    assert_eq!(replica.len() as u64, size);
    let pages = image[..replica.len()].chunks(4096).zip(replica.chunks(4096));
    pages.filter(|(image, replica)| image != replica).count()
}

/// Pushes one after the other to one target. Of each the exit code that is expected, and whether it
/// was rotated.
fn push_all(pushes: &[(&str, bool, i32)]) -> Vec<Value> {
    let dir = TempDir::new().unwrap();
    let (image, replica) = (dir.path().join("snapshot"), dir.path().join("out.img"));
    let mut done = Vec::new();
    for (name, rotated, code) in pushes {
        let size = unpack(name, &image);
        let source = format!("drbdmeta:{}", image.display());
        let mut arguments = vec!["push", &source, "file:out.img"];
        arguments.extend(NO_AUDIT);
        arguments.extend(rotated.then_some("--rotated"));
        done.push(json(dir.path(), *code, &arguments));
        assert_eq!(stale(&image, &replica, size), 0, "{pushes:?} at {name}");
        let held = json(dir.path(), 0, &["status", "file:out.img"])["generation"].clone();
        let by_name = held.as_str().unwrap().starts_with("drbd:");
        assert_eq!(by_name, *rotated, "{name} is called {held}");
    }
    done
}

fn increment(done: &Value) -> [&str; 2] {
    ["kind", "reason"].map(|key| done["increments"][0][key].as_str().unwrap_or("none"))
}

/// Snapshots that were rotated lead from one to the next, and to a plain one at the end.
#[test]
fn rotated_snapshots_are_increments() {
    let [first, second, third] = ["S1", "S2", "S5"].map(|name| format!("tracker-phantom-{name}"));
    let done = push_all(&[(&first, true, 0), (&second, true, 0)]);
    assert_eq!(increment(&done[1]), ["incremental", "none"]);
    // S5 was taken after another rotation than S2.
    let done = push_all(&[(&second, true, 0), (&third, false, 8)]);
    assert_eq!(increment(&done[1]), ["scan", "slot-cleared"]);
    // A plain snapshot ends a proven increment, and the next one starts from its content.
    let done = push_all(&[(&first, true, 0), (&second, false, 0), (&third, false, 0)]);
    assert_eq!(increment(&done[1]), ["incremental", "none"]);
    assert_eq!(increment(&done[2]), ["scan", "map-missing"]);
}

/// The bitmap was cleared under the name that the plain snapshot had: 21 blocks are missing in it.
#[test]
fn a_plain_snapshot_is_no_base_of_a_later_rotation() {
    let done = push_all(&[("phantom-node-a-S1", false, 0), ("phantom-node-a-S3", false, 0)]);
    assert_eq!(increment(&done[1]), ["scan", "map-missing"]);
    // Also where its user says of it what is not so: a peer is there, and DRBD clears by itself.
    let done = push_all(&[("phantom-node-a-S1", true, 0), ("phantom-node-a-S3", false, 8)]);
    assert_eq!(increment(&done[1]), ["scan", "slot-cleared"]);
}

/// Node b cleared its own bitmap under the name that node a had too: 13 blocks are missing in it.
#[test]
fn a_snapshot_of_one_node_is_no_base_of_the_other() {
    let done = push_all(&[("phantom-node-a-S8", false, 0), ("phantom-node-b-SA", false, 0)]);
    assert_eq!(increment(&done[1]), ["scan", "map-missing"]);
    let done = push_all(&[("phantom-node-a-S8", true, 0), ("phantom-node-b-SA", false, 8)]);
    assert_eq!(increment(&done[1]), ["scan", "geometry-changed"]);
}

/// DRBD itself cleared the bitmap of a peer that never connected: 8 blocks are missing in it.
#[test]
fn a_bitmap_that_drbd_cleared_by_itself_is_none() {
    for rotated in [false, true] {
        let tips = ["S2", "S3"].map(|name| format!("phantom-cleared-by-drbd-{name}"));
        for tip in &tips {
            let code = if rotated { 8 } else { 0 };
            let done = push_all(&[("phantom-cleared-by-drbd-S0", rotated, 0), (tip, false, code)]);
            assert_eq!(increment(&done[1])[0], "scan");
        }
    }
}

/// All bits were set in memory only, and nothing was logged: no map of it is called proven.
#[test]
fn a_device_that_was_never_cleared_has_no_map() {
    let done =
        push_all(&[("tracker-never-cleared-S0", false, 0), ("tracker-never-cleared-S1", false, 0)]);
    assert_eq!(increment(&done[1]), ["scan", "map-missing"]);
    let dir = TempDir::new().unwrap();
    unpack("tracker-never-cleared-S0", &dir.path().join("s0.img"));
    let map = json(dir.path(), 0, &["map", "drbdmeta:s0.img"]);
    assert_eq!(map["standing"], "suspect", "{map}");
}

/// What is remembered of the target is gone, or of an earlier version: it is compared, loudly.
#[test]
fn without_a_record_all_is_compared() {
    let dir = TempDir::new().unwrap();
    let push = |code| {
        let mut arguments = vec!["push", "--rotated", "drbdmeta:s.img", "file:out.img"];
        arguments.extend(NO_AUDIT);
        json(dir.path(), code, &arguments)
    };
    unpack("tracker-phantom-S1", &dir.path().join("s.img"));
    push(0);
    fs::remove_dir_all(dir.path().join("trust")).unwrap();
    let size = unpack("tracker-phantom-S2", &dir.path().join("s.img"));
    let done = push(8);
    assert_eq!(increment(&done), ["scan", "manifest-missing"]);
    assert_eq!(stale(&dir.path().join("s.img"), &dir.path().join("out.img"), size), 0);
}
