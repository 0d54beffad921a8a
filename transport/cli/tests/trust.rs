//! A source whose map is wrong, through the real program: what is found, and what is said of it.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use common::{Pair, command, driftline, json};
use serde_json::Value;
use tempfile::TempDir;

/// The data of both snapshots, without the metadata behind it.
const SIZE: usize = 134_176_768;

/// In space that no map of these snapshots names: a hole in both.
const UNFLAGGED: u64 = 30_000 * 4096;

/// Both snapshots of a live Primary of DRBD 8.4, each rotated: to a replica of the first, the second is
/// an increment.
fn snapshots(dir: &Path) {
    for name in ["s0", "s1"] {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/drbd");
        let packed = File::open(data.join(format!("v84-live-{name}.raw.zst"))).unwrap();
        let image = zstd::decode_all(packed).unwrap();
        let file = File::create(dir.join(format!("{name}.img"))).unwrap();
        file.set_len(image.len() as u64).unwrap();
        for (block, bytes) in (0..).zip(image.chunks(4096)) {
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(bytes, block * 4096).unwrap();
            }
        }
    }
}

/// A write that went by the map.
fn write_unseen(dir: &Path) {
    let image = File::options().write(true).open(dir.join("s1.img")).unwrap();
    image.write_all_at(&[0xa5; 4096], UNFLAGGED).unwrap();
}

fn is_equal(dir: &Path, replica: &str) -> bool {
    let [replica, image] = [replica, "s1.img"].map(|name| fs::read(dir.join(name)).unwrap());
    replica == image[..SIZE]
}

fn push<'a>(source: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut line = vec!["push", source, "file:out.img"];
    line.extend(source.starts_with("drbdmeta:").then_some("--rotated"));
    line.extend(more);
    line
}

fn incidents(dir: &Path) -> Vec<Value> {
    json(dir, 0, &["incidents"])["incidents"].as_array().unwrap().clone()
}

#[test]
fn an_increment_is_proven_by_the_root_over_the_whole_volume() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    let first = json(dir, 0, &push("drbdmeta:s0.img", &[]));
    assert_eq!((&first["degraded"], &first["audit"]), (&Value::Null, &Value::Null));
    let second = json(dir, 0, &push("drbdmeta:s1.img", &[]));
    assert_eq!(second["increments"][0]["kind"], "incremental");
    let audit = &second["audit"];
    assert_eq!((&audit["stale"], &audit["chunks"]), (&0.into(), &2048.into()), "{second}");
    assert_eq!(audit["sampled"], 459);
    assert!(is_equal(dir, "out.img"));
    // The ids of 128 MiB, most of them holes, and little besides.
    let manifests = fs::read_dir(dir.join("trust/manifests")).unwrap();
    let manifest = manifests.map(|entry| entry.unwrap().path()).next().unwrap();
    let ids = fs::metadata(manifest.join("ids")).unwrap().len();
    assert!(ids <= 2048 * 32, "{ids}");
    assert_eq!(incidents(dir), [] as [Value; 0]);
}

#[test]
fn a_write_that_the_map_misses_is_found_mended_and_told() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    json(dir, 0, &push("drbdmeta:s0.img", &["--metrics", "m.prom"]));
    write_unseen(dir);
    // Nobody looks, and nobody sees: the map is believed.
    fs::copy(dir.join("out.img"), dir.join("kept.img")).unwrap();
    let log =
        driftline(dir, &push("drbdmeta:s1.img", &["--audit-sample", "1G", "--metrics", "m.prom"]));
    let (out, log) = (String::from_utf8_lossy(&log.stdout), String::from_utf8_lossy(&log.stderr));
    assert!(out.starts_with("scan (audit-mismatch): drbd:"), "{out}\n{log}");
    assert!(out.contains("degraded: audit-mismatch"), "{out}");
    assert!(log.contains("ERROR") && log.contains("audit-mismatch"), "{log}");
    assert!(is_equal(dir, "out.img"), "the replica is not equal to its source");

    let found = incidents(dir);
    assert_eq!(found.len(), 1);
    let one = &found[0];
    assert_eq!((&one["reason"], &one["chunks"]), (&"audit-mismatch".into(), &1.into()), "{one}");
    let chunk = UNFLAGGED / 65536 * 65536;
    assert_eq!(one["extents"][0]["offset"], chunk);
    assert_eq!(
        (&one["base"], &one["tip"]),
        (&"drbd:057610b9e6523718".into(), &"drbd:f9f05435c9b16542".into())
    );
    assert_eq!(one["mended"]["tip"], "drbd:f9f05435c9b16542");
    let metrics = fs::read_to_string(dir.join("m.prom")).unwrap();
    let has = |line: &str| assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    let labels = "source=\"drbdmeta:s1.img\",target=\"file:out.img\"";
    has(&format!("driftline_exit_code{{{labels}}} 8"));
    has(&format!("driftline_degraded{{{labels},reason=\"audit-mismatch\"}} 1"));
    has(&format!("driftline_incidents_open{{{labels}}} 1"));

    // It stays until somebody has seen it.
    let id = one["id"].as_str().unwrap();
    let status =
        || json(dir, 0, &["status", "file:out.img"])["incidents"].as_array().unwrap().len();
    assert_eq!(status(), 1);
    json(dir, 0, &["incidents", "ack", id]);
    assert_eq!((status(), incidents(dir).len()), (0, 0));
    assert_eq!(json(dir, 0, &["incidents", "--all"])["incidents"].as_array().unwrap().len(), 1);
    assert_eq!(driftline(dir, &["incidents", "ack", "01234567"]).status.code(), Some(1));
}

#[test]
fn all_is_compared_on_request_and_in_time() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    // The first copy compares all, and the next run comes too early for another time.
    for (source, kind) in [("drbdmeta:s0.img", "full"), ("drbdmeta:s1.img", "incremental")] {
        let more = ["--compare-every", "1h", "--metrics", "m.prom"];
        let done = json(dir, 0, &push(source, &more));
        assert_eq!(done["increments"][0]["kind"], kind, "{done}");
        let metrics = fs::read_to_string(dir.join("m.prom")).unwrap();
        let compared = "\ndriftline_compared_timestamp_seconds{";
        assert_eq!(metrics.contains(compared), kind == "full", "{metrics}");
    }

    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    json(dir, 0, &push("drbdmeta:s0.img", &[]));
    let done = json(dir, 0, &push("drbdmeta:s1.img", &["--compare"]));
    let increment = &done["increments"][0];
    assert_eq!((&increment["kind"], &done["degraded"]), (&"scan".into(), &Value::Null), "{done}");
    assert!(is_equal(dir, "out.img"));
    assert_eq!(incidents(dir), [] as [Value; 0]);
}

#[test]
fn a_comparison_tells_of_a_write_that_the_map_misses() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    json(dir, 0, &push("drbdmeta:s0.img", &[]));
    write_unseen(dir);
    let done = json(dir, 8, &push("drbdmeta:s1.img", &["--compare", "--audit-sample", "0"]));
    assert_eq!(done["increments"].as_array().unwrap().len(), 1);
    assert_eq!(done["degraded"], "audit-mismatch", "{done}");
    assert!(is_equal(dir, "out.img"), "the replica is not equal to its source");
    let found = &incidents(dir)[0];
    assert_eq!(found["extents"][0]["offset"], UNFLAGGED / 65536 * 65536);
    assert_eq!(found["mended"]["tip"], "drbd:f9f05435c9b16542");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = TempDir::new().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/zfs");
    let stream = |name: &str| format!("zstream:{}", data.join(name).display());
    json(dir.path(), 0, &push(&stream("lz4-16k.full.zs"), &["--compare"]));
    let increment = stream("lz4-16k.1-2.zs");
    let refused = json(dir.path(), 3, &push(&increment, &["--compare"]));
    assert_eq!(refused["error"]["reason"], "unsupported", "{refused}");
    json(dir.path(), 0, &push(&increment, &[]));
}

#[test]
fn a_manifest_that_is_gone_or_damaged_is_made_again_and_told() {
    for (damage, reason, open) in [("gone", "manifest-missing", 0), ("torn", "manifest-damaged", 1)]
    {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        snapshots(dir);
        json(dir, 0, &push("drbdmeta:s0.img", &[]));
        let mut manifests = fs::read_dir(dir.join("trust/manifests")).unwrap();
        let manifest = manifests.next().unwrap().unwrap().path();
        if damage == "gone" {
            fs::remove_dir_all(&manifest).unwrap();
        } else {
            let ids = File::options().write(true).open(manifest.join("ids")).unwrap();
            ids.write_all_at(&[1], 7).unwrap();
        }
        let done = json(dir, 8, &push("drbdmeta:s1.img", &[]));
        assert_eq!(done["degraded"], reason, "{done}");
        // What was kept of the base is gone with it, and without that no map of DRBD is believed.
        assert_eq!(done["increments"][0]["kind"], "scan");
        assert!(is_equal(dir, "out.img"));
        assert_eq!(incidents(dir).len(), open, "{damage}");
        assert!(incidents(dir).iter().all(|one| one["reason"] == reason));
    }
}

#[test]
fn a_pull_hears_of_it_as_well() {
    let pair = Pair::new();
    let dir = pair.path();
    snapshots(dir);
    fs::rename(dir.join("s1.img"), dir.join("next.img")).unwrap();
    fs::rename(dir.join("s0.img"), dir.join("s1.img")).unwrap();
    let path = dir.display();
    let server = pair.serve(&format!(
        "pull = [\"vm\"]\n[[volume]]\nname = \"vm\"\nsource = \"drbdmeta:{path}/s1.img\"\n\
         rotated = true\naudit_sample = \"1G\"\n"
    ));
    let source = format!("vm@{}", server.address);
    let pull = ["pull", &source, "file:out.img", "--key", "client.key", "--peer", &pair.server];
    json(dir, 0, &pull);
    // What checks it is at its side, and is not told what to do from here.
    let output = driftline(dir, &[&pull[..], &["--compare"]].concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && log.contains("configured at the peer"), "{log}");
    fs::rename(dir.join("next.img"), dir.join("s1.img")).unwrap();
    write_unseen(dir);
    let done = json(dir, 8, &pull);
    assert_eq!(done["degraded"], "audit-mismatch", "{done}");
    assert!(is_equal(dir, "out.img"));
    // The source's side has kept what it found.
    assert_eq!(incidents(dir)[0]["reason"], "audit-mismatch");
}

#[test]
fn what_was_written_to_a_replica_is_an_incident() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.img"), vec![7; 200_000]).unwrap();
    let push = ["push", "file:a.img", "file:out.img"];
    json(dir, 0, &push);
    let replica = File::options().write(true).open(dir.join("out.img")).unwrap();
    replica.write_all_at(&[1], 5).unwrap();
    for count in 1..=2 {
        json(dir, 6, &push);
        let found = incidents(dir);
        assert_eq!((found.len(), &found[0]["count"]), (1, &count.into()));
        assert_eq!(found[0]["reason"], "target-modified");
    }
}

#[test]
fn a_folder_that_cannot_be_written_stops_nothing() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    snapshots(dir);
    fs::write(dir.join("file"), "").unwrap();
    let mut push = command(dir, &["push", "drbdmeta:s1.img", "file:out.img"]);
    let output = push.env("DRIFTLINE_TRUST_DIR", "file").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("cannot use the manifest"), "{log}");
    assert!(is_equal(dir, "out.img"));
}

/// As with `| head -n 1`.
#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let dir = TempDir::new().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(dir.path(), &["incidents"]).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
