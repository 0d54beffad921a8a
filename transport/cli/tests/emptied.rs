//! A source that was emptied does not empty its replica.

mod common;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use common::{Pair, command, driftline, json, noise, sha256};
use serde_json::Value;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// What may have become of a source.
type Emptying = fn(&File);

fn cut(source: &File) {
    source.set_len(0).unwrap();
}

fn zeros(source: &File) {
    source.set_len(0).unwrap();
    source.set_len(50 * MIB as u64).unwrap();
}

/// All but the beginning is zeros: a new file system.
fn mkfs(source: &File) {
    zeros(source);
    source.write_all_at(&[1; MIB], 0).unwrap();
}

/// More than half is cut off.
fn shrunk(source: &File) {
    source.set_len(20 * MIB as u64).unwrap();
}

fn source(dir: &Path) -> File {
    noise(&dir.join("source.img"), 50 * MIB, 3);
    File::options().write(true).open(dir.join("source.img")).unwrap()
}

fn push(dir: &Path, code: i32, more: &[&str]) -> Value {
    json(dir, code, &[&["push", "file:source.img", "file:vm.img"][..], more].concat())
}

#[test]
fn an_emptied_source_is_refused_until_a_person_agrees() {
    for (emptying, gone, left) in
        [(cut as Emptying, 50, 0), (zeros, 50, 0), (mkfs, 49, 1), (shrunk, 30, 20)]
    {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let file = source(dir);
        push(dir, 0, &[]);
        let before = sha256(&dir.join("vm.img"));
        emptying(&file);
        let says = format!(
            "{} of {} bytes of data would become zero or be cut off, and {} would be left",
            gone * MIB,
            50 * MIB,
            left * MIB
        );
        // Also over all that stands there, and a second time.
        for more in [&[][..], &["--full"], &[]] {
            let refused = push(dir, 3, more);
            assert_eq!(refused["error"]["reason"], "source-emptied", "{refused}");
            let detail = refused["error"]["detail"].as_str().unwrap();
            assert!(detail.contains(&says) && detail.contains("driftline allow-loss"), "{detail}");
            assert_eq!(sha256(&dir.join("vm.img")), before);
            assert_eq!(json(dir, 0, &["verify", "file:vm.img"])["result"], "clean");
        }
        assert_eq!(json(dir, 0, &["allow-loss", "file:vm.img"])["result"], "agreed");
        let done = push(dir, 0, &[]);
        assert_eq!(done["bytes"]["zeroed"], gone * MIB, "{done}");
        assert_eq!(sha256(&dir.join("vm.img")), sha256(&dir.join("source.img")));
        // That was for one increment.
        drop(source(dir));
        push(dir, 0, &[]);
        emptying(&file);
        push(dir, 3, &[]);
    }
}

#[test]
fn the_share_is_configurable_and_what_is_ordinary_passes() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let file = source(dir);
    let metrics = ["--metrics", "m.prom"];
    push(dir, 0, &metrics);
    // A third is discarded.
    for at in 0..16 {
        file.write_all_at(&[0; MIB], (at * 3 * MIB) as u64).unwrap();
    }
    let refused = push(dir, 3, &["--loss-max", "30%"]);
    assert_eq!(refused["error"]["reason"], "source-emptied", "{refused}");
    let done = push(dir, 0, &metrics);
    let zeroed = (16 * MIB) as u64;
    assert_eq!(
        (&done["bytes"]["zeroed"], &done["bytes"]["changed"]),
        (&zeroed.into(), &zeroed.into())
    );
    let written = fs::read_to_string(dir.join("m.prom")).unwrap();
    assert!(written.contains(&format!("kind=\"zeroed\"}} {zeroed}\n")), "{written}");
    // What is left becomes half as much, and a word in the summary says so.
    shrunk(&file);
    let text = driftline(dir, &["push", "file:source.img", "file:vm.img", "--loss-max", "100%"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(" of the data became zero or were cut off\n"), "{text}");
    // However small it is.
    noise(&dir.join("small.img"), 8 * MIB, 4);
    let small = |code| json(dir, code, &["push", "file:small.img", "file:other.img"]);
    small(0);
    let file = File::options().write(true).open(dir.join("small.img")).unwrap();
    file.set_len(3 * MIB as u64).unwrap();
    assert_eq!(small(3)["error"]["reason"], "source-emptied");
    file.set_len(8 * MIB as u64).unwrap();
    assert_eq!(small(3)["error"]["reason"], "source-emptied");
    file.set_len(0).unwrap();
    assert_eq!(small(3)["error"]["reason"], "source-emptied");
}

/// Who pushes cannot agree; the target's configuration has the share.
#[test]
fn over_the_network_the_target_decides() {
    let pair = Pair::new();
    let dir = pair.path();
    let file = source(dir);
    let server = pair.serve_vm_with("overwrite = true\n");
    let target = format!("vm@{}", server.address);
    let push = |code, more: &[&str]| {
        json(dir, code, &[&pair.push("file:source.img", &target)[..], more].concat())
    };
    push(0, &[]);
    mkfs(&file);
    for more in [&[][..], &["--full"]] {
        let refused = push(3, more);
        assert_eq!(refused["error"]["reason"], "source-emptied", "{refused}");
    }
    let misused = push(2, &["--loss-max", "100%"]);
    assert_eq!(misused["error"]["reason"], "usage", "{misused}");
    json(dir, 0, &["allow-loss", "file:vm.img"]);
    // Both sides say what went.
    let done = push(0, &[]);
    assert_eq!(done["bytes"]["zeroed"], 49 * MIB, "{done}");
    assert!(done["bytes"]["changed"].as_u64().unwrap() >= 49 * MIB as u64, "{done}");
    assert_eq!(sha256(&pair.image()), sha256(&dir.join("source.img")));
    let said = "zeroed=\"49.0 MiB\"";
    let started = Instant::now();
    while !server.log().contains(said) {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
    drop(source(dir));
    let server = pair.serve_vm_with("loss_max = \"100%\"\n");
    let target = format!("vm@{}", server.address);
    for emptying in [|_: &File| {}, cut as Emptying] {
        emptying(&file);
        json(dir, 0, &pair.push("file:source.img", &target));
    }
    assert_eq!(fs::metadata(pair.image()).unwrap().len(), 0);
    assert_eq!(driftline(dir, &["allow-loss", "file:none.img"]).status.code(), Some(3));
}

/// What was cut off goes on, and is counted whole.
#[test]
fn going_on_after_a_cut_counts_what_came_before() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let file = source(dir);
    push(dir, 0, &[]);
    let before = sha256(&dir.join("vm.img"));
    // All but the last sixteenth goes, and there is something to send.
    zeros(&file);
    file.write_all_at(&[5; 3 * MIB], 47 * MIB as u64).unwrap();
    noise(&dir.join("new"), 3 * MIB, 9);
    file.write_all_at(&fs::read(dir.join("new")).unwrap(), 0).unwrap();
    let slow = ["push", "file:source.img", "file:vm.img", "--limit-rate", "200K"];
    let mut slow = command(dir, &slow).stderr(Stdio::null()).spawn().unwrap();
    let journal = dir.join("vm.img.driftline/journal");
    while fs::metadata(&journal).map_or(0, |journal| journal.len()) < MIB as u64 {
        assert!(slow.try_wait().unwrap().is_none(), "it ended before it was cut off");
        thread::sleep(Duration::from_millis(20));
    }
    slow.kill().unwrap();
    slow.wait().unwrap();
    for _ in 0..2 {
        let refused = push(dir, 3, &[]);
        assert_eq!(refused["error"]["reason"], "source-emptied", "{refused}");
        let gone = format!("{} of {} bytes", 44 * MIB, 50 * MIB);
        assert!(refused["error"]["detail"].as_str().unwrap().contains(&gone), "{refused}");
    }
    assert_eq!(sha256(&dir.join("vm.img")), before);
    std::io::stdout().flush().unwrap();
}
