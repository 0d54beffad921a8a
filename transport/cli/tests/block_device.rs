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
    // The books of a device cannot lie beside it.
    let nowhere = driftline(dir.path(), &["push", &zstream("lz4-16k.2-3.zs"), &target]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("state"));
}
