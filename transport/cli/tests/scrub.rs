//! `driftline scrub` through the real program: what is found, remembered, put right, and left to
//! the source.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use common::{
    Pair, driftline,
    fake_zfs::{Fake, text},
    json, noise, recorded_sha256, sha256, unpack_drbd, zstream,
};
use serde_json::Value;
use tempfile::TempDir;

const CHUNK: u64 = 65536;
const SIZE: usize = 12 * CHUNK as usize + 700;

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 8], offset).unwrap();
}

/// A replica `out.img` of `a.img`.
fn replica() -> (TempDir, Vec<u8>) {
    let dir = TempDir::new().unwrap();
    let content = noise(&dir.path().join("a.img"), SIZE, 1);
    json(dir.path(), 0, &["push", "file:a.img", "file:out.img"]);
    (dir, content)
}

fn incidents(dir: &Path) -> Vec<Value> {
    json(dir, 0, &["incidents"])["incidents"].as_array().unwrap().clone()
}

const SCRUB: [&str; 2] = ["scrub", "file:out.img"];
const REPAIR: [&str; 3] = ["scrub", "file:out.img", "--repair"];
const PUSH: [&str; 3] = ["push", "file:a.img", "file:out.img"];

#[test]
fn a_clean_replica_is_told_dated_and_measured() {
    let (dir, _) = replica();
    let dir = dir.path();
    assert_eq!(json(dir, 0, &["status", "file:out.img"])["scrubbed"], Value::Null);
    let done = json(dir, 0, &["scrub", "file:out.img", "--metrics", "m", "--limit-rate", "1G"]);
    assert_eq!((&done["result"], &done["incident"]), (&"clean".into(), &Value::Null), "{done}");
    let at = json(dir, 0, &["status", "file:out.img"])["scrubbed"].as_u64().unwrap();
    let metrics = fs::read_to_string(dir.join("m")).unwrap();
    let has = |line: String| assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    let labels = "{source=\"scrub\",target=\"file:out.img\"}";
    has(format!("driftline_scrub_clean_timestamp_seconds{labels} {at}"));
    has(format!("driftline_scrub_exit_code{labels} 0"));
    has(format!("driftline_scrub_damaged_chunks{labels} 0"));
    let status = driftline(dir, &["status", "file:out.img"]);
    assert!(text(&status).contains("\nscrubbed   "), "{}", text(&status));
    assert_eq!(incidents(dir), [] as [Value; 0]);
    // What makes no sense.
    json(dir, 2, &["scrub", "file:out.img", "--limit-rate", "7"]);
    json(dir, 1, &["scrub", "file:none.img"]);
    json(dir, 2, &["scrub", "vm@host:1"]);
    assert_eq!(driftline(dir, &["scrub", "file:out.img", "--index", "i"]).status.code(), Some(2));
    assert_eq!(incidents(dir), [] as [Value; 0]);
}

#[test]
fn what_is_found_is_named_remembered_and_changes_nothing() {
    let (dir, _) = replica();
    let dir = dir.path();
    flip(&dir.join("out.img"), 3 * CHUNK + 7);
    flip(&dir.join("out.img"), 12 * CHUNK + 699);
    let before = fs::read(dir.join("out.img")).unwrap();
    // A verification remembers nothing.
    assert_eq!(driftline(dir, &["verify", "file:out.img"]).status.code(), Some(6));
    assert_eq!(incidents(dir), [] as [Value; 0]);
    for count in 1..=2 {
        let found = json(dir, 6, &SCRUB);
        assert_eq!(found["result"], "damaged");
        assert_eq!(found["damaged"][0]["offset"], 3 * CHUNK, "{found}");
        assert_eq!(found["damaged"][1]["length"], 700, "{found}");
        assert_eq!((&found["left_chunks"], &found["awaited_chunks"]), (&2.into(), &0.into()));
        let kept = incidents(dir);
        assert_eq!((kept.len(), &kept[0]["count"]), (1, &count.into()));
        assert_eq!(
            (&kept[0]["reason"], &kept[0]["id"]),
            (&"target-damaged".into(), &found["incident"])
        );
        assert_eq!((&kept[0]["chunks"], &kept[0]["mended"]), (&2.into(), &Value::Null));
        assert_eq!(kept[0]["extents"][1]["offset"], 12 * CHUNK);
    }
    let status = json(dir, 6, &["status", "file:out.img"]);
    assert_eq!(status["condition"], "damaged");
    assert_eq!(
        (status["incidents"].as_array().unwrap().len(), &status["damaged"]),
        (1, &false.into())
    );
    // Nobody has agreed to anything: it is refused as ever.
    assert_eq!(json(dir, 6, &PUSH)["error"]["reason"], "target-modified");
    assert_eq!(fs::read(dir.join("out.img")).unwrap(), before);
    let id = incidents(dir)[0]["id"].as_str().unwrap().to_owned();
    json(dir, 0, &["incidents", "ack", &id]);
    assert!(incidents(dir).iter().all(|one| one["id"] != id));
}

#[test]
fn another_length_and_damaged_books_are_found_as_well() {
    let (dir, content) = replica();
    let dir = dir.path();
    let out = File::options().write(true).open(dir.join("out.img")).unwrap();
    out.set_len(SIZE as u64 - 1).unwrap();
    let found = json(dir, 6, &SCRUB);
    assert_eq!(found["size_found"], SIZE as u64 - 1);
    assert_eq!(found["damaged"][0]["offset"], 12 * CHUNK);
    // The source puts back what was cut off.
    let found = json(dir, 6, &REPAIR);
    assert_eq!((&found["size_repaired"], &found["awaited_chunks"]), (&true.into(), &1.into()));
    assert_eq!(json(dir, 8, &PUSH)["degraded"], "target-damaged");
    assert_eq!(fs::read(dir.join("out.img")).unwrap(), content);

    let ids = dir.join("out.img.driftline/ids");
    flip(&ids, 5 * 32 + 1);
    let found = json(dir, 6, &SCRUB);
    assert_eq!((&found["root_matches"], &found["only_list"]), (&false.into(), &true.into()));
    assert_eq!(found["damaged"][0]["offset"], 5 * CHUNK);
    let found = json(dir, 8, &REPAIR);
    assert_eq!((&found["result"], &found["list_repaired"]), (&"repaired".into(), &true.into()));
    json(dir, 0, &["verify", "file:out.img"]);
    assert!(incidents(dir).iter().any(|one| one["mended"] != Value::Null));
    // The state itself: there is nothing left to compare with.
    let state = dir.join("out.img.driftline/state");
    fs::write(&state, vec![7; 8192]).unwrap();
    assert_eq!(json(dir, 6, &SCRUB)["error"]["reason"], "target-modified");
    assert!(incidents(dir).iter().any(|one| one["reason"] == "target-modified"));
}

#[test]
fn what_another_replica_has_is_put_back_at_once() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let content = noise(&dir.join("a.img"), SIZE, 1);
    for out in ["file:out.img", "file:other.img"] {
        json(dir, 0, &["push", "file:a.img", out, "--index", "index"]);
    }
    flip(&dir.join("out.img"), 4 * CHUNK);
    flip(&dir.join("out.img"), 12 * CHUNK);
    let repair = ["scrub", "file:out.img", "--repair", "--index", "index", "--metrics", "m"];
    let done = json(dir, 8, &repair);
    assert_eq!(
        (&done["result"], &done["repaired_chunks"]),
        (&"repaired".into(), &2.into()),
        "{done}"
    );
    assert_eq!(fs::read(dir.join("out.img")).unwrap(), content);
    let found = incidents(dir);
    assert_eq!(found.len(), 1);
    assert!(found[0]["mended"]["tip"].as_str().unwrap().starts_with("content:"), "{}", found[0]);
    let metrics = fs::read_to_string(dir.join("m")).unwrap();
    for line in ["damaged_chunks 2", "left_chunks 0", "exit_code 8"] {
        let (name, value) = line.split_once(' ').unwrap();
        let name = format!("driftline_scrub_{name}{{");
        let line = metrics.lines().find(|line| line.starts_with(&name)).unwrap();
        assert!(line.ends_with(&format!(" {value}")), "{line}");
    }
    assert_eq!(json(dir, 0, &REPAIR)["result"], "clean");
    assert!(json(dir, 0, &PUSH)["degraded"].is_null());
}

#[test]
fn the_next_push_replaces_what_was_found_and_nothing_else() {
    // The same generation, and another.
    for next in [false, true] {
        let (dir, mut content) = replica();
        let dir = dir.path();
        flip(&dir.join("out.img"), 2 * CHUNK);
        flip(&dir.join("out.img"), 12 * CHUNK);
        let found = json(dir, 6, &REPAIR);
        assert_eq!((&found["awaited_chunks"], &found["repaired_chunks"]), (&2.into(), &0.into()));
        assert_eq!(json(dir, 6, &["status", "file:out.img"])["damaged"], true);
        if next {
            content[7] ^= 1;
            fs::write(dir.join("a.img"), &content).unwrap();
        }
        let done = json(dir, 8, &PUSH);
        assert_eq!(done["degraded"], "target-damaged", "{done}");
        assert!(done["bytes"]["lacking"].as_u64().unwrap() <= 3 * CHUNK, "{done}");
        assert_eq!(fs::read(dir.join("out.img")).unwrap(), content);
        assert_eq!(json(dir, 0, &["status", "file:out.img"])["damaged"], false);
        // The next one has nothing to point at, and the next scrub says that it is mended.
        assert!(json(dir, 0, &PUSH)["degraded"].is_null());
        assert_eq!(incidents(dir)[0]["mended"], Value::Null);
        json(dir, 0, &SCRUB);
        assert_ne!(incidents(dir)[0]["mended"], Value::Null);
    }
    // What changes after the scrub is nobody's to replace.
    let (dir, _) = replica();
    let dir = dir.path();
    flip(&dir.join("out.img"), 2 * CHUNK);
    json(dir, 6, &REPAIR);
    flip(&dir.join("out.img"), 2 * CHUNK + 9);
    assert_eq!(json(dir, 6, &PUSH)["error"]["reason"], "target-modified");
    json(dir, 6, &REPAIR);
    assert_eq!(json(dir, 8, &PUSH)["degraded"], "target-damaged");
}

#[test]
fn an_increment_becomes_a_scan() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for name in ["s0", "s1"] {
        let image = dir.join(format!("{name}.img"));
        unpack_drbd(&format!("v84-live-{name}.raw"), &image);
        // They are nearly empty, and a chunk of zeros needs no source.
        let file = File::options().write(true).open(image).unwrap();
        file.write_all_at(&[0x5a; 4096], 1000 * CHUNK).unwrap();
    }
    json(dir, 0, &["push", "drbdmeta:s0.img", "file:out.img"]);
    flip(&dir.join("out.img"), 1000 * CHUNK);
    json(dir, 6, &REPAIR);
    let done = json(dir, 8, &["push", "drbdmeta:s1.img", "file:out.img"]);
    assert_eq!(done["degraded"], "target-damaged", "{done}");
    assert_eq!(done["increments"][0]["kind"], "scan");
    json(dir, 0, &["verify", "file:out.img"]);
    let [out, image] = ["out.img", "s1.img"].map(|name| fs::read(dir.join(name)).unwrap());
    assert!(out == image[..out.len()]);
}

/// Of a source that shows only streams a whole one is asked for, also where it has nothing new.
#[test]
fn a_stream_becomes_a_whole_one() {
    let fake = Fake::new(&[]);
    fake.arrives(&[], 1);
    for (arguments, snapshot) in [(&["--latest"][..], 1), (&[], 2)] {
        flip(&fake.path("vm.img"), 3 * CHUNK);
        json(fake.0.path(), 6, &["scrub", "file:vm.img", "--repair"]);
        if snapshot == 2 {
            // The recorded increments have no whole stream of this one: a bad one is none.
            let tip = common::fake_zfs::GUIDS[1];
            fake.write(&format!("stream.0.{tip}"), "");
            fake.fails(arguments, 4, &[]);
            continue;
        }
        let output = fake.push(arguments);
        assert_eq!(output.status.code(), Some(8), "{}", text(&output));
        assert!(text(&output).contains("\"degraded\":\"target-damaged\""), "{}", text(&output));
        assert_eq!(sha256(&fake.path("vm.img")), recorded_sha256("lz4-16k@s1"));
    }
}

#[test]
fn a_listener_tells_of_damage_and_has_it_replaced() {
    let pair = Pair::new();
    let dir = pair.path();
    let content = noise(&dir.join("a.img"), SIZE, 3);
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    json(dir, 0, &pair.push("file:a.img", &target));
    flip(&pair.image(), 8 * CHUNK);
    json(dir, 6, &["scrub", &format!("file:{}", pair.image().display()), "--repair"]);
    let status = ["status", &target, "--key", "client.key", "--peer", &pair.server];
    assert_eq!(json(dir, 6, &status)["damaged"], true);
    assert_eq!(json(dir, 8, &pair.push("file:a.img", &target))["degraded"], "target-damaged");
    assert_eq!(json(dir, 0, &status)["damaged"], false);
    assert_eq!(fs::read(pair.image()).unwrap(), content);
}

/// The units that are installed are ones that systemd takes.
#[test]
fn the_units_are_sound() {
    let dir = TempDir::new().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/systemd");
    for end in ["service", "timer"] {
        let unit = fs::read_to_string(units.join(format!("driftline-scrub@.{end}"))).unwrap();
        // The program that is here, not the one that is installed.
        let unit = unit.replace("/usr/bin/driftline", env!("CARGO_BIN_EXE_driftline"));
        fs::write(dir.path().join(format!("driftline-scrub@.{end}")), unit).unwrap();
    }
    // Behind a colon this would look for an alias.
    let name = "driftline-scrub@x";
    let Ok(output) = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(["service", "timer"].map(|end| dir.path().join(format!("{name}.{end}"))))
        .output()
    else {
        return eprintln!("skipped: there is no systemd-analyze");
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
}

/// A scrub of hours does not hold off replication, and looks again at what was written meanwhile.
#[test]
fn a_push_goes_through_while_a_scrub_reads() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let held = |number: usize| {
        let part = ["full", "1-2"][number - 1];
        let image = format!("s{number}.img");
        json(dir, 0, &["push", &zstream(&format!("lz4-16k.{part}.zs")), "file:ref.img"]);
        fs::copy(dir.join("ref.img"), dir.join(&image)).unwrap();
        fs::read(dir.join(image)).unwrap()
    };
    let (before, after) = (held(1), held(2));
    let chunk =
        |bytes: &[u8], index: usize| bytes[index * CHUNK as usize..][..CHUNK as usize].to_vec();
    let untouched = (0..before.len() / CHUNK as usize)
        .find(|index| {
            let old = chunk(&before, *index);
            old == chunk(&after, *index) && old.iter().any(|byte| *byte != 0)
        })
        .unwrap() as u64;
    // What is damaged before, and not written meanwhile, is found all the same.
    for damaged in [None, Some(untouched * CHUNK)] {
        json(dir, 0, &["push", &zstream("lz4-16k.full.zs"), "file:vm.img"]);
        damaged.iter().for_each(|at| flip(&dir.join("vm.img"), *at));
        let line = ["--json", "scrub", "file:vm.img", "--limit-rate", "256K"];
        let mut scrub =
            common::command(dir, &line).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(800));
        let pushed = json(dir, 0, &["push", &zstream("lz4-16k.1-2.zs"), "file:vm.img"]);
        assert_eq!(pushed["result"], "committed");
        assert!(scrub.try_wait().unwrap().is_none(), "the scrub has ended too early");
        let scrubbed = scrub.wait_with_output().unwrap();
        let found: Value = serde_json::from_slice(&scrubbed.stdout).unwrap();
        let code = if damaged.is_some() { 6 } else { 0 };
        assert_eq!(scrubbed.status.code(), Some(code), "{found}");
        assert_eq!(found["generation"], pushed["increments"][0]["tip"]);
        assert_eq!(found["damaged_chunks"], u64::from(damaged.is_some()), "{found}");
        if let Some(at) = damaged {
            assert_eq!(found["damaged"][0]["offset"], at);
        } else {
            assert_eq!(sha256(&dir.join("vm.img")), recorded_sha256("lz4-16k@s2"));
        }
        fs::remove_file(dir.join("vm.img")).unwrap();
        fs::remove_dir_all(dir.join("vm.img.driftline")).unwrap();
    }
}

/// `driftline serve` has the index open, and a scrub beside it repairs from there.
#[test]
fn a_scrub_of_a_live_target_repairs_from_the_index() {
    let pair = Pair::new();
    let dir = pair.path();
    let root = dir.display();
    let content = noise(&dir.join("a.img"), SIZE, 1);
    let volume =
        |name: &str| format!("[[volume]]\nname = {name:?}\ntarget = \"file:{root}/{name}.img\"\n");
    let config = format!("push = [\"vm\", \"twin\"]\n{}{}", volume("vm"), volume("twin"));
    let server = pair.serve_indexed("index", &config);
    for name in ["vm", "twin"] {
        json(dir, 0, &pair.push("file:a.img", &format!("{name}@{}", server.address)));
    }
    flip(&pair.image(), 4 * CHUNK + 3);
    let repair = ["scrub", "file:vm.img", "--repair", "--index", "index"];
    let done = json(dir, 8, &repair);
    assert_eq!(
        (&done["result"], &done["repaired_chunks"]),
        (&"repaired".into(), &1.into()),
        "{done}"
    );
    assert!(fs::read(pair.image()).unwrap() == content);
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("copy")), "{left:?}");
    // The server goes on with its index.
    json(dir, 0, &pair.push("file:a.img", &format!("vm@{}", server.address)));
}
