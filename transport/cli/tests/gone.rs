//! Targets that vanished: what arrived there once is remembered, and no first copy is begun anew
//! without a word. Those that are ZFS are in `receive.rs`.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use common::{Pair, driftline, json, noise, sha256};

/// Takes a replica and its books away.
fn lose(image: &Path) {
    fs::remove_file(image).unwrap();
    fs::remove_dir_all(image.with_extension("img.driftline")).unwrap();
}

fn is_refused(dir: &Path, image: &Path, arguments: &[&str]) {
    let refused = json(dir, 3, arguments);
    assert_eq!(refused["error"]["reason"], "target-gone", "{refused}");
    let detail = refused["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("run again with --full"), "{detail}");
    let target = arguments[2];
    assert!(detail.starts_with(target), "{detail} does not begin with {target}");
    // A server removes what it made for a session once it has said no.
    let is_gone = || {
        thread::sleep(Duration::from_millis(20));
        !image.exists()
    };
    assert!((0..500).any(|_| is_gone()), "a refused run has made it");
}

#[test]
fn a_target_that_vanished_is_not_copied_anew_without_consent() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    noise(&dir.join("b.img"), 1 << 20, 2);
    let server = pair.serve_vm();
    let (image, address) = (pair.image(), format!("vm@{}", server.address));
    let local = dir.join("local.img");
    let push = |source: &'static str, target: &str| {
        let all = pair.push(source, target);
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (image, arguments) in
        [(&image, push("file:a.img", &address)), (&local, push("file:a.img", "file:local.img"))]
    {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        json(dir, 0, &arguments);
        json(dir, 0, &arguments);
        lose(image);
        is_refused(dir, image, &arguments);
        is_refused(dir, image, &arguments);
        json(dir, 0, &[&arguments[..], &["--full"]].concat());
        assert_eq!(sha256(image), sha256(&dir.join("a.img")));
        // From then on it is as ever.
        assert_eq!(json(dir, 0, &arguments)["increments"][0]["kind"], "scan");
        // What another source has lost is no affair of this one.
        lose(image);
        let other: Vec<&str> =
            arguments.iter().map(|a| if *a == "file:a.img" { "file:b.img" } else { *a }).collect();
        json(dir, 0, &other);
    }
}

#[test]
fn a_target_that_is_pulled_to_is_remembered_where_it_is() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    let server = pair.serve(&format!(
        "pull = [\"a\"]\n[[volume]]\nname = \"a\"\nsource = \"file:{}/a.img\"\n",
        dir.display()
    ));
    let source = format!("a@{}", server.address);
    let pull = ["pull", &source, "file:copy.img", "--key", "client.key", "--peer", &pair.server];
    let full = [&pull[..], &["--full"]].concat();
    // There is nothing to agree to yet.
    assert!(json(dir, 2, &full)["error"]["detail"].as_str().unwrap().contains("push to it"));
    json(dir, 0, &pull);
    let copy = dir.join("copy.img");
    lose(&copy);
    is_refused(dir, &copy, &pull);
    json(dir, 0, &full);
    assert_eq!(sha256(&copy), sha256(&dir.join("a.img")));
    // Another place for the same volume is a first copy as ever.
    json(
        dir,
        0,
        &["pull", &source, "file:more.img", "--key", "client.key", "--peer", &pair.server],
    );
}

/// How a run ends, and what it says in its log.
fn said(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = driftline(dir, arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The records of what was pushed.
fn records(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("trust/pushed")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some()).collect()
}

/// What cannot be read or believed is no first copy, and the way out writes it anew.
#[test]
fn a_record_that_cannot_be_believed_lets_nothing_pass_for_a_first_copy() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    let push = &["push", "file:a.img", "file:b.img"][..];
    let image = dir.join("b.img");
    json(dir, 0, push);
    let damages: [&dyn Fn(&Path); 3] = [
        &|record| fs::write(record, "").unwrap(),
        &|record| {
            let mut bytes = fs::read(record).unwrap();
            bytes[25] ^= 1;
            fs::write(record, bytes).unwrap();
        },
        &|record| {
            fs::remove_file(record).unwrap();
            fs::create_dir(record).unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let [record] = &records(dir)[..] else { panic!("one record") };
        damage(record);
        lose(&image);
        let (code, errors) = said(dir, push);
        let name = record.display().to_string();
        assert!(code == Some(3) && errors.contains("WARN") && errors.contains(&name), "{errors}");
        let refused = json(dir, 3, push);
        assert_eq!(refused["error"]["reason"], "target-gone", "{refused}");
        let detail = refused["error"]["detail"].as_str().unwrap();
        for words in ["cannot tell whether something had arrived there", &name, "--full"] {
            assert!(detail.contains(words), "{words:?} is not in {detail}");
        }
        assert!(!image.exists());
        if number == 2 {
            fs::remove_dir(record).unwrap();
        }
        json(dir, 0, &[push, &["--full"]].concat());
        assert_eq!(sha256(&image), sha256(&dir.join("a.img")));
        let (code, errors) = said(dir, push);
        assert!(code == Some(0) && !errors.contains("WARN"), "{errors}");
    }
}

/// The copy goes on, and says that nobody will notice if it vanishes.
#[test]
fn a_trust_folder_that_cannot_be_written_is_said() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    let push = ["push", "file:a.img", "file:b.img"];
    fs::create_dir(dir.join("trust")).unwrap();
    // In the place of the folder, it keeps also root from making one.
    symlink("nowhere/at/all", dir.join("trust/pushed")).unwrap();
    let (code, errors) = said(dir, &push);
    assert_eq!(code, Some(0), "{errors}");
    for words in ["WARN", "cannot remember this push", "trust", "looks like a new one"] {
        assert!(errors.contains(words), "{words:?} is not in {errors}");
    }
}

#[test]
fn another_spelling_of_the_same_place_is_the_same_target() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    fs::create_dir(dir.join("disk")).unwrap();
    symlink("a.img", dir.join("link.img")).unwrap();
    symlink("disk", dir.join("srv")).unwrap();
    let copy = dir.join("disk/copy.img");
    let whole = format!("file:{}", copy.display());
    json(dir, 0, &["push", "file:a.img", "file:srv/copy.img"]);
    lose(&copy);
    for (source, target) in [
        ("file:a.img", whole.as_str()),
        ("file:./a.img", "file:disk/copy.img"),
        ("file:link.img", "file:srv/copy.img"),
        ("file:disk/../link.img", "file:srv/../disk//copy.img"),
    ] {
        is_refused(dir, &copy, &["push", source, target]);
    }
    // The first spelling is known also by what it was, wherever it leads by now.
    fs::remove_file(dir.join("srv")).unwrap();
    fs::create_dir(dir.join("srv")).unwrap();
    is_refused(dir, &copy, &["push", "file:a.img", "file:srv/copy.img"]);

    let server = pair.serve_vm();
    let port = server.address.port();
    let push = |host: &str| {
        let target = format!("vm@{host}:{port}");
        let all = pair.push("file:a.img", &target);
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let first = push("127.0.0.1");
    json(dir, 0, &first.iter().map(String::as_str).collect::<Vec<_>>());
    lose(&pair.image());
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.1"] {
        let again = push(host);
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        is_refused(dir, &pair.image(), &again);
    }
}

/// A record of before a target had more than one spelling.
#[test]
fn a_record_of_an_earlier_version_is_found() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    let push = pair.push("file:a.img", &target);
    json(dir, 0, &push);
    for record in records(dir) {
        let text = fs::read_to_string(&record).unwrap();
        if !text.contains(&format!("target {target}\n")) {
            fs::remove_file(record).unwrap();
        }
    }
    assert_eq!(records(dir).len(), 1);
    lose(&pair.image());
    is_refused(dir, &pair.image(), &push);
}
