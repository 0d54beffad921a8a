//! A replica that is read is read by its books, whichever way it was named.

mod common;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    thread::sleep,
    time::Duration,
};

use common::{Pair, Server, command, json, noise, recorded_sha256, sha256, stream, zstream};
use serde_json::Value;

/// A first copy of the recorded volume, as `vm.img`.
fn replica(dir: &Path, more: &[&str]) {
    let push = ["push", &zstream("lz4-16k.full.zs"), "file:vm.img"];
    json(dir, 0, &[&push[..], more].concat());
}

/// Serves `vm.img` and other names of it to be pulled.
fn serve(pair: &Pair, names: &[&str]) -> Server {
    let dir = pair.path().display();
    let list = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    let volume =
        |name: &&str| format!("[[volume]]\nname = {name:?}\nsource = \"file:{dir}/{name}\"\n");
    let volumes: String = names.iter().map(volume).collect();
    pair.serve(&format!("pull = [{list}]\n{volumes}"))
}

fn get(pair: &Pair, code: i32, verb: &str, from: &str, to: &str) -> Value {
    let _ = fs::remove_file(pair.path().join(to));
    let _ = fs::remove_dir_all(pair.path().join(format!("{to}.driftline")));
    let to = format!("file:{to}");
    // What arrived there before is forgotten as well: it is a new target each time.
    let fresh = tempfile::tempdir().unwrap();
    let trust_dir = fresh.path().to_str().unwrap();
    let peer = ["--key", "client.key", "--peer", &pair.server, "--trust-dir", trust_dir];
    json(pair.path(), code, &[&[verb, from, &to][..], &peer].concat())
}

/// Where the image has its last byte that is not zero.
fn last_byte(image: &Path) -> u64 {
    fs::read(image).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64
}

fn flip(image: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn a_damaged_replica_is_delivered_under_no_name() {
    let pair = Pair::new();
    let dir = pair.path();
    replica(dir, &[]);
    let image = dir.join("vm.img");
    std::os::unix::fs::symlink("vm.img", dir.join("link.img")).unwrap();
    fs::hard_link(&image, dir.join("hard.img")).unwrap();
    let names = ["vm.img", "link.img", "hard.img"];
    let server = serve(&pair, &names);
    for name in names {
        for (verb, result) in [("pull", "committed"), ("restore", "restored")] {
            let from = format!("{name}@{}", server.address);
            assert_eq!(get(&pair, 0, verb, &from, "got.img")["result"], result);
            assert_eq!(sha256(&dir.join("got.img")), recorded_sha256("lz4-16k@s1"));
        }
    }
    let at = last_byte(&image);
    let good = fs::read(&image).unwrap();
    fs::write(dir.join("plain.img"), &good).unwrap();
    flip(&image, at);
    for name in names {
        for (verb, from) in [
            ("pull", format!("{name}@{}", server.address)),
            ("restore", format!("{name}@{}", server.address)),
            ("push", format!("file:{name}")),
            ("restore", format!("file:{name}")),
        ] {
            let refused = get(&pair, 6, verb, &from, "got.img");
            assert_eq!(refused["error"]["reason"], "target-modified", "{verb} {from}: {refused}");
            let detail = refused["error"]["detail"].as_str().unwrap();
            let chunk =
                format!("the chunk at byte {} is not what was committed", at / 65536 * 65536);
            assert!(detail.contains(&chunk), "{detail}");
            // Nothing of the damaged chunk got anywhere.
            let got = fs::read(dir.join("got.img")).unwrap_or_default();
            assert_ne!(got.get(at as usize), Some(&!good[at as usize]), "{verb} {from}");
        }
    }
    // Where the target has a copy already, and both sides compare.
    json(dir, 0, &["push", "file:plain.img", "file:had.img"]);
    let refused = json(dir, 6, &["push", "file:vm.img", "file:had.img", "--full"]);
    assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
    assert_eq!(sha256(&dir.join("had.img")), recorded_sha256("lz4-16k@s1"));
    // As what another replica is compared with as well.
    json(dir, 0, &["push", "file:plain.img", "file:other.img"]);
    assert_eq!(
        json(dir, 0, &["verify", "file:other.img", "--against", "file:plain.img"])["result"],
        "clean"
    );
    let refused = json(dir, 6, &["verify", "file:other.img", "--against", "file:link.img"]);
    assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
}

#[test]
fn a_first_copy_that_did_not_end_is_delivered_under_no_name() {
    let pair = Pair::new();
    let dir = pair.path();
    let whole = fs::read(stream("lz4-16k.full.zs")).unwrap();
    fs::write(dir.join("cut.zs"), &whole[..whole.len() / 5]).unwrap();
    json(dir, 4, &["push", "zstream:cut.zs", "file:vm.img"]);
    std::os::unix::fs::symlink("vm.img", dir.join("link.img")).unwrap();
    let server = serve(&pair, &["vm.img", "link.img"]);
    for name in ["vm.img", "link.img"] {
        let remote = format!("{name}@{}", server.address);
        let local = format!("file:{name}");
        for (verb, from) in
            [("pull", &remote), ("restore", &remote), ("push", &local), ("restore", &local)]
        {
            let refused = get(&pair, 3, verb, from, "got.img");
            assert_eq!(refused["error"]["reason"], "not-consistent", "{verb} {from}: {refused}");
            let got = fs::read(dir.join("got.img")).unwrap_or_default();
            assert!(got.is_empty(), "{verb} {from}");
        }
        let map = json(dir, 3, &["map", &local]);
        assert_eq!(map["error"]["reason"], "not-consistent", "{map}");
        let drbd = json(dir, 3, &["map", &format!("drbdmeta:{name}")]);
        assert_eq!(drbd["error"]["reason"], "not-consistent", "{drbd}");
    }
}

/// A target of the same configuration without its books is no plain image.
#[test]
fn a_replica_whose_books_are_gone_is_not_served() {
    let pair = Pair::new();
    let dir = pair.path();
    replica(dir, &[]);
    let at = dir.display();
    let server = pair.serve(&format!(
        "push = [\"vm\"]\npull = [\"copy\"]\n\
         [[volume]]\nname = \"vm\"\ntarget = \"file:{at}/vm.img\"\n\
         [[volume]]\nname = \"copy\"\nsource = \"file:{at}/vm.img\"\n"
    ));
    let from = format!("copy@{}", server.address);
    get(&pair, 0, "restore", &from, "got.img");
    fs::rename(dir.join("vm.img.driftline"), dir.join("lost")).unwrap();
    for verb in ["restore", "pull"] {
        let refused = get(&pair, 3, verb, &from, "got.img");
        assert_eq!(refused["error"]["reason"], "not-consistent", "{refused}");
        assert!(fs::read(dir.join("got.img")).unwrap_or_default().is_empty());
    }
    assert!(server.log().contains("whose books are gone"), "{}", server.log());
    fs::rename(dir.join("lost"), dir.join("vm.img.driftline")).unwrap();
    get(&pair, 0, "restore", &from, "got.img");
}

/// Whoever looks at a replica finds books that are remembered, and tells damaged ones from none.
#[test]
fn books_are_found_and_judged_by_whoever_looks() {
    let pair = Pair::new();
    let dir = pair.path();
    replica(dir, &["--state-dir", "books"]);
    assert_eq!(json(dir, 0, &["status", "file:vm.img"])["condition"], "whole");
    assert_eq!(json(dir, 0, &["verify", "file:vm.img"])["result"], "clean");
    assert_eq!(json(dir, 0, &["scrub", "file:vm.img"])["result"], "clean");
    let ids = File::options().write(true).open(dir.join("books/ids")).unwrap();
    let len = ids.metadata().unwrap().len();
    let listed = fs::read(dir.join("books/ids")).unwrap();
    ids.set_len(0).unwrap();
    assert_eq!(json(dir, 6, &["status", "file:vm.img"])["condition"], "damaged");
    fs::write(dir.join("books/ids"), listed).unwrap();
    assert_eq!(ids.metadata().unwrap().len(), len);
    assert_eq!(json(dir, 0, &["status", "file:vm.img"])["condition"], "whole");
    for lost in [true, false] {
        match lost {
            true => fs::remove_file(dir.join("books/state")).unwrap(),
            false => fs::write(dir.join("books/state"), "").unwrap(),
        }
        // What is remembered leads only to books with a state.
        let look = ["status", "file:vm.img", "--state-dir", "books"];
        assert_eq!(json(dir, 6, &look)["error"]["reason"], "target-modified");
    }
    // No replica, and half of one.
    noise(&dir.join("plain.img"), 1 << 20, 1);
    let none = json(dir, 3, &["verify", "file:plain.img"]);
    assert!(none["error"]["detail"].as_str().unwrap().contains("this is no replica"), "{none}");
    let whole = fs::read(stream("lz4-16k.full.zs")).unwrap();
    fs::write(dir.join("cut.zs"), &whole[..whole.len() / 5]).unwrap();
    json(dir, 4, &["push", "zstream:cut.zs", "file:half.img"]);
    for verb in ["verify", "scrub"] {
        let half = json(dir, 3, &[verb, "file:half.img"]);
        assert_eq!(half["error"]["reason"], "not-consistent", "{half}");
    }
}

#[test]
fn books_that_are_lost_or_elsewhere_are_not_forgotten() {
    let pair = Pair::new();
    let dir = pair.path();
    replica(dir, &["--state-dir", "books"]);
    fs::hard_link(dir.join("vm.img"), dir.join("hard.img")).unwrap();
    let server = serve(&pair, &["vm.img", "hard.img"]);
    get(&pair, 0, "restore", &format!("vm.img@{}", server.address), "got.img");
    assert_eq!(sha256(&dir.join("got.img")), recorded_sha256("lz4-16k@s1"));
    let at = last_byte(&dir.join("vm.img"));
    flip(&dir.join("vm.img"), at);
    for name in ["vm.img", "hard.img"] {
        let refused = get(&pair, 6, "restore", &format!("{name}@{}", server.address), "got.img");
        assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
    }
    // Beside its file, with the state gone or the list of ids.
    fs::remove_dir_all(dir.join("books")).unwrap();
    fs::remove_file(dir.join("hard.img")).unwrap();
    replica(&pair.path().join("."), &["--full"]);
    for book in ["state", "ids"] {
        let book = dir.join("vm.img.driftline").join(book);
        let kept = fs::read(&book).unwrap();
        fs::remove_file(&book).unwrap();
        let refused = get(&pair, 6, "push", "file:vm.img", "got.img");
        assert_eq!(refused["error"]["reason"], "target-modified", "{refused}");
        fs::write(&book, kept).unwrap();
    }
    get(&pair, 0, "push", "file:vm.img", "got.img");
}

/// Two may read it at once, and nobody writes it meanwhile.
#[test]
fn a_replica_that_is_read_is_held() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("source.img"), 8 << 20, 1);
    json(dir, 0, &["push", "file:source.img", "file:vm.img"]);
    let server = serve(&pair, &["vm.img"]);
    let from = format!("vm.img@{}", server.address);
    let key = ["--key", "client.key", "--peer", &pair.server];
    let slow = [&["pull", &from, "file:slow.img", "--limit-rate", "1M"][..], &key].concat();
    let mut slow = command(dir, &slow).spawn().unwrap();
    let begun = || fs::metadata(dir.join("slow.img")).is_ok_and(|file| file.len() > 0);
    while !begun() {
        assert!(slow.try_wait().unwrap().is_none(), "the slow reader has ended");
        sleep(Duration::from_millis(20));
    }
    noise(&dir.join("source.img"), 8 << 20, 2);
    let busy = json(dir, 3, &["push", "file:source.img", "file:vm.img"]);
    assert_eq!(busy["error"]["reason"], "target-busy", "{busy}");
    get(&pair, 0, "pull", &from, "fast.img");
    assert!(slow.try_wait().unwrap().is_none(), "the slow reader has ended too early");
    assert!(slow.wait().unwrap().success());
    for got in ["slow.img", "fast.img"] {
        assert_eq!(sha256(&dir.join(got)), sha256(&dir.join("vm.img")));
    }
    json(dir, 0, &["push", "file:source.img", "file:vm.img"]);
    assert_eq!(sha256(&dir.join("source.img")), sha256(&dir.join("vm.img")));
    // Readers write there who they are, for whoever is refused.
    let mut pid = String::new();
    let lock = dir.join("vm.img.driftline/lock");
    File::open(lock).unwrap().read_to_string(&mut pid).unwrap();
    assert!(pid.trim().parse::<u32>().is_ok(), "{pid:?}");
}
