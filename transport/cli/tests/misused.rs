//! Words and exit codes for what was typed, and for what is not there.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use common::{command, driftline, json, noise, stream};
use tempfile::TempDir;

/// Each is refused with exit code 2, and named.
#[test]
fn options_that_make_no_sense_or_do_nothing_are_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    noise(&dir.join("a.img"), 1 << 16, 1);
    for option in [
        &["--limit-rate", "7"][..],
        &["--compress", "fast"],
        &["--loss-max", "50"],
        &["--audit-age", "x"],
        &["--audit-sample", "x"],
        &["--compare-every", "0"],
        &["--at-once", "3"],
        &["--raw"],
        &["--snapshot", "x"],
        &["--latest"],
        &["--keep", "1"],
        &["--prefix", "x"],
        &["--read-back", "all"],
        &["--with", "tree"],
        &["--mode", "rotate"],
        &["--cow-size", "1G"],
        &["--freeze-max", "3"],
        &["--cross-check"],
        &["--rotated"],
        &["--linstor-node", "x"],
        &["--linstor-token-file", "x"],
        &["--audit-age", "30d"],
        &["--exclude-property", "x"],
        &["--set-property", "x=y"],
        &["--take-property", "x"],
    ] {
        let push = [&["push", "file:a.img", "file:out.img"][..], option].concat();
        let refused = json(dir, 2, &push);
        assert_eq!(refused["error"]["reason"], "usage", "{refused}");
        let detail = refused["error"]["detail"].as_str().unwrap();
        assert!(detail.contains(option[0]), "{option:?}: {detail}");
    }
    for line in [
        &["push", "file:a.img", "vm@host:1", "--state-dir", "x"][..],
        &["push", "file:a.img", "vm@host:1", "--index", "x"],
        &["push", "file:a.img", "vm@host:1", "--loss-max", "1%"],
        &["push", "drbd:r0/0", "file:out.img", "--freeze-max", "99"],
        &["status", "vm@host:1", "--state-dir", "x"],
        &["restore", "vm@host:1", "file:out.img", "--state-dir", "x"],
        &["map", "file:a.img", "--linstor-ca", "x"],
        &["scrub", "file:out.img", "--limit-rate", "1"],
        &["push", "disk.img", "file:out.img"],
        &["push", "file:a.img", "zfs:tank//vm"],
        &["push", "file:a.img", "zstream:out.zs"],
        &["push", "file:a.img", "file:out.img", "--like", "drbd:r0/0"],
        &["push", "zvol:tank/vm", "file:out.img"],
        &["push", "vm@host:1", "file:out.img"],
        &["push", "vm@host:1", "vm@other:1"],
        &["push", "file:a.img", "vm@host:1"],
        &["push", "file:a.img", "vm@host:1", "--peer", "x"],
        &["push", "-r", "file:a.img", "file:out.img"],
        &["pull", "file:a.img", "vm@host:1"],
        &["restore", "zfs:tank/vm", "file:out.img"],
        &["restore", "file:a.img", "zvol:tank/vm"],
        &["verify", "drbd:r0"],
        &["status", "vm@host"],
        &["scrub", "linstor:web/0"],
    ] {
        let refused = json(dir, 2, line);
        assert_eq!(refused["error"]["reason"], "usage", "{line:?}: {refused}");
    }
    assert!(Command::new("mkfifo").arg(dir.join("pipe")).status().unwrap().success());
    let pipe = json(dir, 2, &["push", "file:pipe", "file:out.img"]);
    assert!(pipe["error"]["detail"].as_str().unwrap().contains("is a pipe"), "{pipe}");
    assert!(!dir.join("out.img").exists());
}

/// None of the program's own files is a volume, or of its books, or another one of them.
#[test]
fn a_file_that_is_named_twice_is_not_overwritten() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let source = noise(&dir.join("a.img"), 1 << 16, 1);
    json(dir, 0, &["push", "file:a.img", "file:r.img"]);
    symlink("a.img", dir.join("link")).unwrap();
    fs::hard_link(dir.join("r.img.driftline/state"), dir.join("hard")).unwrap();
    fs::write(dir.join("notes"), "theirs").unwrap();
    fs::write(dir.join("none"), "").unwrap();
    let push = |code, more: &[&str]| {
        json(dir, code, &[&["push", "file:a.img", "file:r.img"][..], more].concat())
    };
    for named in [
        &["--index", "a.img"][..],
        &["--index", "./link"],
        &["--index", "r.img"],
        &["--index", "r.img.driftline/state"],
        &["--index", "r.img.driftline/new"],
        &["--index", "notes"],
        &["--metrics", "a.img"],
        &["--metrics", "link"],
        &["--metrics", "r.img"],
        &["--metrics", "r.img.driftline/m"],
        &["--metrics", "m", "--index", "./m"],
        &["--metrics", "hard"],
    ] {
        let refused = push(2, named);
        assert_eq!(refused["error"]["reason"], "usage", "{refused}");
        let scrub = [&["scrub", "file:r.img", "--repair"][..], named].concat();
        if !named.iter().any(|word| ["a.img", "./link", "link", "notes"].contains(word)) {
            assert_eq!(json(dir, 2, &scrub)["error"]["reason"], "usage", "{named:?}");
        }
    }
    fs::remove_file(dir.join("hard")).unwrap();
    assert!(fs::read(dir.join("a.img")).unwrap() == source);
    assert!(fs::read(dir.join("r.img")).unwrap() == source);
    // What holds something else stays as it is; metrics stop no copy.
    for (file, content) in [("notes", "theirs"), ("none", "")] {
        let output = driftline(dir, &["push", "file:a.img", "file:r.img", "--metrics", file]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("notes holds something else"), file == "notes", "{said}");
        let is_kept = fs::read_to_string(dir.join(file)).unwrap() == content;
        assert_eq!(is_kept, file == "notes");
    }
    assert_eq!(json(dir, 0, &["verify", "file:r.img"])["result"], "clean");
    assert!(
        !fs::read_dir(dir)
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().contains("damaged") })
    );
}

#[test]
fn a_job_that_makes_no_sense_is_no_failure_of_a_copy() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let good = "version = 1\nsource = \"file:a.img\"\ntarget = \"file:r.img\"\n";
    for (wrong, says) in [
        ("speed = 3\n", "unknown field"),
        ("loss_max = 3\n", "loss_max"),
        ("zfs = 3", "zfs"),
        ("like = \"file:x\"\nrecursive = true\n", "like"),
        ("[", "TOML"),
    ] {
        fs::write(dir.join("job.toml"), format!("{good}{wrong}")).unwrap();
        let refused = json(dir, 2, &["push", "--job", "./job.toml"]);
        assert_eq!(refused["error"]["reason"], "usage", "{refused}");
        let detail = refused["error"]["detail"].as_str().unwrap();
        assert!(detail.contains("job.toml") && detail.contains(says), "{detail}");
    }
    json(dir, 1, &["push", "--job", "./none.toml"]);
}

#[test]
fn a_status_tells_what_is_wrong_by_words_and_code() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let status = |code: u8, condition: &str, says: &str| {
        let told = json(dir, code.into(), &["status", "file:vm.img"]);
        assert_eq!(told["condition"], condition, "{told}");
        let text = driftline(dir, &["status", "file:vm.img"]);
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains(says), "{text}");
        told
    };
    status(9, "absent", "absent     file:vm.img is not there");
    let zeros = File::create(dir.join("vm.img")).unwrap();
    status(9, "absent", "absent     file:vm.img is there, and is no replica");
    drop(zeros);
    // A first copy that was cut off, and one on its way.
    let whole = fs::read(stream("lz4-16k.full.zs")).unwrap();
    fs::write(dir.join("cut.zs"), &whole[..whole.len() / 2]).unwrap();
    json(dir, 4, &["push", "zstream:cut.zs", "file:vm.img"]);
    status(10, "incomplete", "incomplete a first copy was cut off");
    noise(&dir.join("a.img"), 4 << 20, 1);
    let slow = ["push", "file:a.img", "file:vm.img", "--full", "--limit-rate", "1M"];
    let mut slow = command(dir, &slow).stdout(Stdio::null()).spawn().unwrap();
    while json_any(dir)["writer"].is_null() {
        assert!(slow.try_wait().unwrap().is_none(), "it ended before anyone looked");
        sleep(Duration::from_millis(20));
    }
    let words = format!("incomplete a first copy is on its way: process {} writes it", slow.id());
    assert_eq!(status(10, "incomplete", &words)["writer"], slow.id());
    assert!(slow.wait().unwrap().success());
    assert_eq!(status(0, "whole", "generation content:")["writer"], serde_json::Value::Null);
    // Cut, gone, and back.
    let file = File::options().write(true).open(dir.join("vm.img")).unwrap();
    file.set_len(1 << 20).unwrap();
    status(6, "damaged", "damaged    it has 1.0 MiB, and 4.0 MiB were committed");
    fs::rename(dir.join("vm.img"), dir.join("kept.img")).unwrap();
    status(11, "gone", "gone       the books are there, and the file or device is not");
    fs::copy(dir.join("a.img"), dir.join("vm.img")).unwrap();
    status(0, "whole", "generation content:");
    // One that a scrub has found damage in.
    fs::write(dir.join("vm.img"), vec![9; 4 << 20]).unwrap();
    json(dir, 6, &["scrub", "file:vm.img"]);
    status(6, "damaged", "damaged    see incident ");
    // A copy over all of it ends what was found, by the scrub and by a push.
    json(dir, 6, &["push", "file:a.img", "file:vm.img"]);
    json(dir, 0, &["push", "file:a.img", "file:vm.img", "--full"]);
    status(0, "whole", "generation content:");
}

/// What `status` says, whatever its exit code is.
fn json_any(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&driftline(dir, &["--json", "status", "file:vm.img"]).stdout).unwrap()
}

#[test]
fn a_verification_prints_one_object() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    noise(&dir.join("b.img"), 1 << 20, 2);
    json(dir, 0, &["push", "file:a.img", "file:vm.img"]);
    let verify =
        |code, more: &[&str]| json(dir, code, &[&["verify", "file:vm.img"][..], more].concat());
    assert_eq!(verify(0, &["--against", "file:a.img"])["result"], "clean");
    let differ = verify(6, &["--against", "file:b.img"]);
    assert_eq!((&differ["result"], &differ["damaged_chunks"]), (&"different".into(), &0.into()));
    assert_eq!(differ["error"]["reason"], "verify-failed");
    fs::write(dir.join("vm.img"), vec![9; 1 << 20]).unwrap();
    let damaged = verify(6, &[]);
    assert_eq!((&damaged["result"], &damaged["damaged_chunks"]), (&"damaged".into(), &16.into()));
    assert_eq!(damaged["error"]["reason"], "target-modified");
    json(dir, 3, &["verify", "file:a.img"]);
}

/// A first copy, and one that compares.
#[test]
fn a_file_that_shrinks_while_it_is_read_is_no_moment_of_it() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for _ in 0..2 {
        noise(&dir.join("a.img"), 96 << 20, 1);
        let slow = ["--json", "push", "file:a.img", "file:vm.img", "--limit-rate", "8M"];
        let mut slow = command(dir, &slow).stdout(Stdio::piped()).spawn().unwrap();
        sleep(Duration::from_millis(1500));
        assert!(slow.try_wait().unwrap().is_none(), "it ended before the file shrank");
        File::options().write(true).open(dir.join("a.img")).unwrap().set_len(1 << 20).unwrap();
        let output = slow.wait_with_output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(4), "{told}");
        assert_eq!(told["error"]["reason"], "source-changed");
        let detail = told["error"]["detail"].as_str().unwrap();
        assert!(detail.contains("it became shorter while it was read"), "{detail}");
        noise(&dir.join("a.img"), 96 << 20, 3);
        json(dir, 0, &["push", "file:a.img", "file:vm.img"]);
    }
}
