//! Targets that vanished: what arrived there once is remembered, and no first copy is begun anew
//! without a word. Those that are ZFS are in `receive.rs`.

mod common;

use std::{fs, path::Path, thread, time::Duration};

use common::{Pair, json, noise, sha256};

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
