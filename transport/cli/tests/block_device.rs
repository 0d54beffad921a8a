//! A real block device as target and as source. Needs root, for a loop device of its own.

mod common;

use std::{
    fs::{self, File},
    io::Read,
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

    json(dir.path(), 0, &["push", &device.place(), "file:copy.img"]);
    assert_eq!(fs::read(dir.path().join("copy.img")).unwrap(), fs::read(&device.device).unwrap());
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
