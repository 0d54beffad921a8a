//! A real block device as target and as source. Needs root, for a loop device of its own.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use common::{driftline, json, noise, recorded_sha256, sha256, zstream};
use tempfile::TempDir;

/// A loop device over a file; detached when dropped.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn over(file: &Path) -> Self {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "losetup needs root and loop devices: {err}");
        Self { device: out.trim().into() }
    }

    fn place(&self) -> String {
        format!("file:{}", self.device.display())
    }

    /// The hash of its first `len` bytes.
    fn sha256(&self, dir: &Path, len: u64) -> String {
        let mut bytes = Vec::new();
        File::open(&self.device).unwrap().take(len).read_to_end(&mut bytes).unwrap();
        fs::write(dir.join("head"), bytes).unwrap();
        sha256(&dir.join("head"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

#[test]
fn a_block_device_takes_increments_and_gives_them() {
    let dir = TempDir::new().unwrap();
    noise(&dir.path().join("disk"), 32 << 20, 1);
    let device = Loop::over(&dir.path().join("disk"));
    let push = |code, stream: &str, more: &[&str]| {
        let (source, target) = (zstream(stream), device.place());
        let push = ["push", &source, &target, "--state-dir", "books"];
        json(dir.path(), code, &[&push[..], more].concat())
    };
    // It holds something that Driftline did not put there.
    let before = device.sha256(dir.path(), 32 << 20);
    assert_eq!(push(3, "lz4-16k.full.zs", &[])["error"]["reason"], "target-foreign");
    assert_eq!(device.sha256(dir.path(), 32 << 20), before);

    push(0, "lz4-16k.full.zs", &["--full"]);
    assert_eq!(device.sha256(dir.path(), 16 << 20), recorded_sha256("lz4-16k@s1"));
    for (stream, snapshot, size) in
        [("1-2", "s2", 16 << 20), ("2-3", "s3", 24 << 20), ("3-4", "s4", 8 << 20)]
    {
        push(0, &format!("lz4-16k.{stream}.zs"), &[]);
        let expected = recorded_sha256(&format!("lz4-16k@{snapshot}"));
        assert_eq!(device.sha256(dir.path(), size), expected);
    }
    let target = device.place();
    let clean = json(dir.path(), 0, &["verify", &target, "--state-dir", "books"]);
    assert_eq!(clean["result"], "clean");

    // It is read as the replica that it is: its volume alone, by its books, whatever it is called.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&device.device, &link).unwrap();
    let link = format!("file:{}", link.display());
    json(dir.path(), 0, &["push", &link, "file:copy.img"]);
    assert_eq!(sha256(&dir.path().join("copy.img")), recorded_sha256("lz4-16k@s4"));
    let content = fs::read(dir.path().join("copy.img")).unwrap();
    let at = content.iter().rposition(|byte| *byte != 0).unwrap();
    let damage = OpenOptions::new().write(true).open(&device.device).unwrap();
    damage.write_all_at(&[!content[at]], at as u64).unwrap();
    for source in [device.place(), link] {
        let refused = json(dir.path(), 6, &["push", &source, "file:other.img"]);
        assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
    }
}

#[test]
fn a_device_is_restored_and_what_is_behind_the_volume_stays() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    json(dir, 0, &["push", &zstream("lz4-16k.full.zs"), "file:vm.img"]);
    noise(&dir.join("disk"), 20 << 20, 2);
    let device = Loop::over(&dir.join("disk"));
    let restore = |code, more: &[&str]| {
        let to = device.place();
        json(dir, code, &[&["restore", "file:vm.img", &to][..], more].concat())
    };
    let before = fs::read(&device.device).unwrap();
    assert_eq!(restore(3, &[])["error"]["reason"], "target-foreign");
    assert!(fs::read(&device.device).unwrap() == before, "a refused restore wrote");
    assert_eq!(restore(0, &["--overwrite"])["bytes"]["written"], 16 << 20);
    assert_eq!(device.sha256(dir, 16 << 20), recorded_sha256("lz4-16k@s1"));
    let after = fs::read(&device.device).unwrap();
    assert!(after[16 << 20..] == before[16 << 20..], "what is behind the volume was written");
    assert_eq!(restore(0, &["--overwrite"])["bytes"]["written"], 0);
    // Whoever has it for himself keeps it; this is what a mount does as well.
    let held = OpenOptions::new().read(true).custom_flags(0o200).open(&device.device).unwrap();
    let refused = restore(3, &["--overwrite"]);
    assert_eq!(refused["error"]["reason"], "target-busy", "{refused}");
    drop(held);
    // One that is too small is left as it was.
    json(dir, 0, &["push", &zstream("lz4-16k.1-2.zs"), "file:vm.img"]);
    json(dir, 0, &["push", &zstream("lz4-16k.2-3.zs"), "file:vm.img"]);
    let before = device.sha256(dir, 20 << 20);
    assert_eq!(restore(7, &["--overwrite"])["error"]["reason"], "target-full");
    assert_eq!(device.sha256(dir, 20 << 20), before);
}

#[test]
fn a_device_that_is_too_small_is_left_as_it_was() {
    let dir = TempDir::new().unwrap();
    File::create(dir.path().join("disk")).unwrap().set_len(20 << 20).unwrap();
    let device = Loop::over(&dir.path().join("disk"));
    let push = |code, stream: &str| {
        let (source, target) = (zstream(stream), device.place());
        json(dir.path(), code, &["push", &source, &target, "--state-dir", "books"])
    };
    // It is empty, so nobody has to agree.
    push(0, "lz4-16k.full.zs");
    push(0, "lz4-16k.1-2.zs");
    assert_eq!(push(7, "lz4-16k.2-3.zs")["error"]["reason"], "target-full");
    assert_eq!(device.sha256(dir.path(), 16 << 20), recorded_sha256("lz4-16k@s2"));
    let target = device.place();
    assert_eq!(
        json(dir.path(), 0, &["verify", &target, "--state-dir", "books"])["result"],
        "clean"
    );
    // Its books are remembered, and those of a device cannot lie beside it.
    let nowhere = || driftline(dir.path(), &["push", &zstream("lz4-16k.2-3.zs"), &target]);
    let told = nowhere();
    assert_eq!(told.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&told.stderr).contains("/books"), "{told:?}");
    std::fs::remove_dir_all(dir.path().join("books")).unwrap();
    let told = nowhere();
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stderr).contains("--state-dir"), "{told:?}");
}

/// A replica is no place to restore to, whatever it is named by.
#[test]
fn a_replica_on_a_device_or_below_one_is_not_restored_over() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    json(dir, 0, &["push", &zstream("lz4-16k.full.zs"), "file:vm.img"]);
    File::create(dir.join("disk")).unwrap().set_len(20 << 20).unwrap();
    let device = Loop::over(&dir.join("disk"));
    let push = |stream: &str| {
        let push = ["push", &zstream(stream), &device.place(), "--state-dir", "books"];
        json(dir, 0, &push);
    };
    push("lz4-16k.full.zs");
    let refused = |to: &str, reason: &str, says: &str| {
        let refused = json(dir, 3, &["restore", "file:vm.img", to, "--overwrite"]);
        let error = &refused["error"];
        assert_eq!(error["reason"], reason, "{refused}");
        assert!(error["detail"].as_str().unwrap().contains(says), "{refused}");
    };
    // Its books are elsewhere, and say so.
    refused(&device.place(), "target-foreign", "/books");
    // The file below it.
    refused("file:disk", "target-busy", device.device.to_str().unwrap());
    push("lz4-16k.1-2.zs");
    let verify = ["verify", &device.place(), "--state-dir", "books"];
    assert_eq!(json(dir, 0, &verify)["result"], "clean");
    // A device on the file of a replica is that replica.
    let over = Loop::over(&dir.join("vm.img"));
    let from = ["restore", "file:disk", &over.place(), "--overwrite"];
    let error = &json(dir, 3, &from)["error"];
    assert_eq!(error["reason"], "target-foreign", "{error}");
    let same = json(dir, 3, &["push", "--full", "file:vm.img", &over.place(), "--state-dir", "x"]);
    assert_eq!(same["error"]["reason"], "unsupported", "{same}");
    drop(over);
    assert_eq!(json(dir, 0, &["verify", "file:vm.img"])["result"], "clean");
}

/// A file system of its own, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn mount(arguments: &[&str], at: &Path) {
        let done = Command::new("mount").args(arguments).arg(at).status().unwrap();
        assert!(done.success(), "mount needs root");
    }

    fn at(at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        Self::mount(&["-t", "tmpfs", "none"], at);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// What stands on a file system that is mounted read-only is verified, scrubbed and restored from.
#[test]
fn a_read_only_file_system_is_read_from() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let mounted = Mounted::at(&dir.join("rescue"));
    let replica = "file:rescue/vm.img";
    json(dir, 0, &["push", &zstream("lz4-16k.full.zs"), replica]);
    Mounted::mount(&["-o", "remount,ro"], &mounted.0);
    assert_eq!(json(dir, 0, &["verify", replica])["result"], "clean");
    assert_eq!(json(dir, 0, &["scrub", replica])["result"], "clean");
    let told = driftline(dir, &["verify", replica]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("opening it read-only"), "{told:?}");
    let generation = &json(dir, 0, &["status", replica])["generation"];
    let restored = json(dir, 0, &["restore", replica, "file:new.img"]);
    assert_eq!((&restored["generation"], &restored["verified"]), (generation, &true.into()));
    assert_eq!(sha256(&dir.join("new.img")), recorded_sha256("lz4-16k@s1"));
    // A push says what it is that cannot be done.
    let refused = json(dir, 1, &["push", &zstream("lz4-16k.1-2.zs"), replica]);
    assert!(refused.to_string().contains("Read-only file system"), "{refused}");
    Mounted::mount(&["-o", "remount,rw"], &mounted.0);
    json(dir, 0, &["push", &zstream("lz4-16k.1-2.zs"), replica]);
}

/// A push takes neither the file below a loop device nor, through one, another replica.
#[test]
fn what_a_loop_device_shows_is_overwritten_by_nothing() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    noise(&dir.join("other.img"), 1 << 20, 1);
    noise(&dir.join("disk"), 1 << 20, 2);
    let before = sha256(&dir.join("disk"));
    let device = Loop::over(&dir.join("disk"));
    let refused = json(dir, 3, &["push", "--full", "file:other.img", "file:disk"]);
    assert_eq!(refused["error"]["reason"], "target-busy", "{refused}");
    drop(device);
    assert_eq!(sha256(&dir.join("disk")), before);
    json(dir, 0, &["push", "file:disk", "file:vm.img"]);
    let device = Loop::over(&dir.join("vm.img"));
    let place = device.place();
    let push = ["push", "--full", "file:other.img", &place, "--state-dir", "books"];
    assert_eq!(json(dir, 3, &push)["error"]["reason"], "target-foreign");
    drop(device);
    assert_eq!(json(dir, 0, &["verify", "file:vm.img"])["result"], "clean");
}
