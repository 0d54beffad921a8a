//! `driftline restore`: from replicas, images and peers, in place.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use common::{Pair, driftline, json, noise, recorded_sha256, sha256, stream, unpack_drbd, zstream};
use serde_json::Value;
use tempfile::TempDir;

/// A replica of the recorded snapshot of this number, as `vm.img`.
fn replica(dir: &Path, number: usize) {
    for part in ["full", "1-2", "2-3", "3-4"].into_iter().take(number) {
        json(dir, 0, &["push", &zstream(&format!("lz4-16k.{part}.zs")), "file:vm.img"]);
    }
}

fn restore(dir: &Path, code: i32, to: &str, more: &[&str]) -> Value {
    json(dir, code, &[&["restore", "file:vm.img", to][..], more].concat())
}

/// Overwrites a part of a file.
fn scribble(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_replica_is_restored_to_a_new_file() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    replica(dir, 3);
    let done = restore(dir, 0, "file:new.img", &[]);
    assert_eq!((&done["result"], &done["verified"]), (&"restored".into(), &true.into()));
    let generation = &json(dir, 0, &["status", "file:vm.img"])["generation"];
    assert_eq!((&done["generation"], &done["size"]), (generation, &(24 << 20).into()));
    assert_eq!(sha256(&dir.join("new.img")), recorded_sha256("lz4-16k@s3"));
    // Holes stay holes, and it is a plain file.
    let written = done["bytes"]["written"].as_u64().unwrap();
    assert!((1 << 20..2 << 20).contains(&written), "{written}");
    assert!(!dir.join("new.img.driftline").exists());
    let text = driftline(dir, &["restore", "file:vm.img", "file:text.img"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("restored zfs:985389201224908894 to file:text.img: "), "{text}");
}

#[test]
fn only_what_differs_is_written_and_only_by_consent() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    replica(dir, 2);
    let (to, file) = (dir.join("disk.img"), "file:disk.img");
    fs::copy(dir.join("vm.img"), &to).unwrap();
    // In one chunk, in two of them, in a hole, and behind the end.
    for (at, len) in [(8192, 1), (65_535, 2), (15 << 20, 5000), (16 << 20, 4096)] {
        scribble(&to, at, &vec![0xA5; len]);
    }
    let before = fs::read(&to).unwrap();
    let refused = restore(dir, 3, file, &[]);
    assert_eq!(refused["error"]["reason"], "target-foreign");
    let detail = refused["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("disk.img") && detail.contains("--overwrite"), "{detail}");
    assert!(fs::read(&to).unwrap() == before, "a refused restore wrote");

    let done = restore(dir, 0, file, &["--overwrite"]);
    assert_eq!(done["bytes"]["written"], (1 + 2 + 2) * 4096, "{done}");
    assert_eq!(sha256(&to), recorded_sha256("lz4-16k@s2"));
    assert_eq!(restore(dir, 0, file, &["--overwrite"])["bytes"]["written"], 0);
    // One that is too short grows, and one of nothing but zeros is as good as none.
    File::options().write(true).open(&to).unwrap().set_len(5 << 20).unwrap();
    restore(dir, 0, file, &["--overwrite"]);
    assert_eq!(sha256(&to), recorded_sha256("lz4-16k@s2"));
    File::create(&to).unwrap().set_len(40 << 20).unwrap();
    restore(dir, 0, file, &[]);
    assert_eq!(sha256(&to), recorded_sha256("lz4-16k@s2"));
}

#[test]
fn a_replica_is_never_restored_to() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    replica(dir, 1);
    json(dir, 0, &["push", &zstream("lz4-16k.full.zs"), "file:other.img"]);
    std::os::unix::fs::symlink("other.img", dir.join("link.img")).unwrap();
    for to in ["file:other.img", "file:link.img"] {
        let refused = restore(dir, 3, to, &["--overwrite"]);
        assert_eq!(refused["error"]["reason"], "target-foreign");
        let detail = refused["error"]["detail"].as_str().unwrap();
        assert!(detail.contains("other.img.driftline"), "{detail}");
    }
    let refused = restore(dir, 3, "file:./vm.img", &["--overwrite"]);
    assert!(refused["error"]["detail"].as_str().unwrap().contains("are the same"), "{refused}");
    for replica in ["file:vm.img", "file:other.img"] {
        assert_eq!(json(dir, 0, &["verify", replica])["result"], "clean");
    }
}

#[test]
fn a_replica_that_is_not_what_its_books_say_is_not_restored_from() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    replica(dir, 1);
    let image = dir.join("vm.img");
    let good = fs::read(&image).unwrap();
    let at = good.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    // In data, in a hole, and cut off.
    for (at, byte) in [(at, !good[at as usize]), ((16 << 20) - 1, 7)] {
        scribble(&image, at, &[byte]);
        let refused = restore(dir, 6, "file:new.img", &["--overwrite"]);
        assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
        let detail = refused["error"]["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("byte {}", at / 65_536 * 65_536)), "{detail}");
        // The chunk itself was not written.
        let new = fs::read(dir.join("new.img")).unwrap();
        assert_ne!(new.get(at as usize), Some(&byte));
        scribble(&image, at, &good[at as usize..=at as usize]);
    }
    File::options().write(true).open(&image).unwrap().set_len(15 << 20).unwrap();
    let refused = restore(dir, 6, "file:new.img", &["--overwrite"]);
    assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
}

#[test]
fn a_first_copy_that_did_not_end_is_not_restored_from() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let whole = fs::read(stream("lz4-16k.full.zs")).unwrap();
    fs::write(dir.join("cut.zs"), &whole[..whole.len() / 2]).unwrap();
    json(dir, 4, &["push", "zstream:cut.zs", "file:vm.img"]);
    let refused = restore(dir, 3, "file:new.img", &[]);
    assert_eq!(refused["error"]["reason"], "not-consistent", "{refused}");
    assert!(!dir.join("new.img").exists());
    // An increment that was cut off has touched nothing: what was there is restored.
    replica(dir, 1);
    let whole = fs::read(stream("lz4-16k.1-2.zs")).unwrap();
    fs::write(dir.join("cut.zs"), &whole[..whole.len() / 2]).unwrap();
    json(dir, 4, &["push", "zstream:cut.zs", "file:vm.img"]);
    restore(dir, 0, "file:new.img", &[]);
    assert_eq!(sha256(&dir.join("new.img")), recorded_sha256("lz4-16k@s1"));
}

#[test]
fn an_image_without_books_is_restored_and_said_to_have_none() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let bytes = noise(&dir.join("vm.img"), (3 << 20) + 512, 5);
    let output = driftline(dir, &["--json", "restore", "file:vm.img", "file:new.img"]);
    assert!(output.status.success());
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&done["verified"], &done["generation"]), (&false.into(), &Value::Null));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no books"));
    assert!(fs::read(dir.join("new.img")).unwrap() == bytes);
    // Books that are said to be there are not looked for in vain.
    let refused = restore(dir, 3, "file:x.img", &["--state-dir", "nowhere"]);
    assert_eq!(refused["error"]["reason"], "target-foreign", "{refused}");
    // Of a DRBD image the volume, without the metadata behind it.
    unpack_drbd("v84-live-s1.raw", &dir.join("s1.img"));
    let done = json(dir, 0, &["restore", "drbdmeta:s1.img", "file:volume.img"]);
    assert_eq!(done["generation"], "drbd:f9f05435c9b16542");
    let image = fs::read(dir.join("s1.img")).unwrap();
    assert!(fs::read(dir.join("volume.img")).unwrap() == image[..134_176_768]);
}

#[test]
fn what_a_peer_serves_is_restored_over_the_network() {
    let pair = Pair::new();
    replica(pair.path(), 2);
    let dir = pair.path().display();
    let server = pair.serve(&format!(
        "pull = [\"vm\", \"s1\"]\n[[volume]]\nname = \"vm\"\nsource = \"file:{dir}/vm.img\"\n\
         [[volume]]\nname = \"s1\"\nsource = \"{}\"\n",
        zstream("lz4-16k.full.zs")
    ));
    let from = format!("vm@{}", server.address);
    let restore_from = |from: &str, code, more: &[&str]| {
        let line = ["restore", from, "file:disk.img", "--key", "client.key"];
        json(pair.path(), code, &[&line[..], &["--peer", &pair.server], more].concat())
    };
    let restore = |code, more: &[&str]| restore_from(&from, code, more);
    let done = restore(0, &[]);
    assert_eq!((&done["verified"], &done["size"]), (&false.into(), &(16 << 20).into()));
    let to = pair.path().join("disk.img");
    assert_eq!(sha256(&to), recorded_sha256("lz4-16k@s2"));
    // What is there does not come again.
    let first = done["bytes"]["received"].as_u64().unwrap();
    scribble(&to, 12345, b"x");
    assert_eq!(restore(3, &[])["error"]["reason"], "target-foreign");
    let again = restore(0, &["--overwrite"]);
    assert_eq!(again["bytes"]["written"], 4096);
    assert!(again["bytes"]["received"].as_u64().unwrap() < first / 4, "{again}");
    assert_eq!(sha256(&to), recorded_sha256("lz4-16k@s2"));
    // One that does not say beforehand how large it is, over one that is larger.
    File::options().write(true).open(&to).unwrap().set_len((16 << 20) + 100).unwrap();
    scribble(&to, 15 << 20, &[7; 100]);
    let s1 = format!("s1@{}", server.address);
    let done = restore_from(&s1, 0, &["--overwrite"]);
    assert_eq!(done["generation"], "zfs:14672962806766498543");
    assert_eq!(sha256(&to), recorded_sha256("lz4-16k@s1"));
    // Nobody is there.
    drop(server);
    restore(5, &["--overwrite"]);
}

#[test]
fn what_cannot_be_restored_from_or_to_is_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    replica(dir, 1);
    for (from, to, says) in [
        ("zfs:tank/vm", "file:x.img", "nothing to restore from"),
        ("file:vm.img", "zfs:tank/vm", "nothing to restore to"),
        ("file:vm.img", "zvol:tank/vm", "nothing to restore to"),
        ("file:none.img", "file:x.img", "none.img"),
        ("file:vm.img", "file:none/x.img", "none/x.img"),
        ("file:vm.img", "file:/dev/null", "neither a regular file nor a block device"),
        // There is no DRBD here, or none of this name.
        ("file:vm.img", "drbd:driftline-test-none/0", "drbd"),
    ] {
        let output = driftline(dir, &["restore", from, to, "--overwrite"]);
        let log = String::from_utf8_lossy(&output.stderr);
        let code = if says.starts_with("nothing to") { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{from} {to}: {log}");
        assert!(log.contains(says), "{says} is not in {log}");
    }
    assert!(!dir.join("x.img").exists(), "a refused restore left a file");
}

/// Books are no place for a volume, and one replica has one set of them.
#[test]
fn the_books_of_a_replica_are_overwritten_by_nothing() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    replica(dir, 1);
    noise(&dir.join("other.img"), 300_000, 4);
    let before = sha256(&dir.join("vm.img"));
    for book in ["state", "ids", "journal"] {
        let book = format!("file:vm.img.driftline/{book}");
        for line in [
            ["restore", "file:other.img", &book, "--overwrite"],
            ["push", "file:other.img", &book, "--full"],
        ] {
            let refused = json(dir, 3, &line);
            assert_eq!(refused["error"]["reason"], "target-foreign", "{line:?}: {refused}");
        }
    }
    let twice = ["push", "--full", "file:other.img", "file:vm.img", "--state-dir", "books"];
    assert_eq!(json(dir, 3, &twice)["error"]["reason"], "target-foreign");
    json(dir, 0, &["push", "file:other.img", "file:second.img", "--state-dir", "books"]);
    let twice = json(dir, 3, &["push", "--full", "file:vm.img", "file:second.img"]);
    assert_eq!(twice["error"]["reason"], "target-foreign", "{twice}");
    json(dir, 0, &["verify", "file:vm.img"]);
    json(dir, 0, &["verify", "file:second.img"]);
    assert_eq!(sha256(&dir.join("vm.img")), before);
}

/// A volume is not made its own replica: that would leave it with books that say it is a copy.
#[test]
fn a_source_is_not_its_own_target() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let before = noise(&dir.join("s.img"), 300_000, 4);
    std::os::unix::fs::symlink("s.img", dir.join("link.img")).unwrap();
    fs::hard_link(dir.join("s.img"), dir.join("hard.img")).unwrap();
    for target in ["file:s.img", "file:./s.img", "file:link.img", "file:hard.img"] {
        let refused = json(dir, 3, &["push", "--full", "file:s.img", target]);
        assert_eq!(refused["error"]["reason"], "unsupported", "{refused}");
    }
    assert!(fs::read(dir.join("s.img")).unwrap() == before);
    let made = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
    let books = made.filter(|name| name.to_string_lossy().ends_with(".driftline"));
    assert_eq!(books.count(), 0, "books were made");
}
