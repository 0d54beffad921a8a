//! Trees of data sets: `push -r`, with a `zfs` that replays recorded streams.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use common::{
    Pair, command,
    fake_zfs::{Fake, text},
    recorded_sha256, sha256,
};

const TREE: [(&str, &str); 5] = [
    ("tank", "filesystem"),
    ("tank/b", "filesystem"),
    ("tank/b/c", "volume"),
    ("tank/b/swap", "volume"),
    ("tank/d", "volume"),
];

/// Runs it, expects this exit code, and gives what each member came to, by its source.
fn push(fake: &Fake, dir: &Path, code: i32, arguments: &[&str]) -> Vec<(String, Value)> {
    let all = [&["push", "--json", "-r", "zfs:tank"][..], arguments].concat();
    let output = command(dir, &all).env("DRIFTLINE_ZFS", fake.path("zfs")).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Some(volumes) = done["volumes"].as_array() else { return vec![(String::new(), done)] };
    let source = |volume: &Value| volume["source"].as_str().unwrap().to_owned();
    volumes.iter().map(|volume| (source(volume), volume.clone())).collect()
}

fn results(outcomes: &[(String, Value)]) -> Vec<(&str, &str)> {
    let result = |outcome: &'_ (String, Value)| outcome.1["result"].as_str().unwrap().to_owned();
    assert!(outcomes.iter().all(|outcome| !result(outcome).is_empty()));
    outcomes
        .iter()
        .map(|(source, volume)| (&source[..], volume["result"].as_str().unwrap()))
        .collect()
}

fn is_snapshot(image: PathBuf, number: usize) {
    assert_eq!(sha256(&image), recorded_sha256(&format!("lz4-16k@s{number}")), "{image:?}");
}

#[test]
fn every_volume_goes_to_its_own_place_from_one_instant() {
    let fake = Fake::tree(&TREE);
    let dir = fake.0.path();
    let arguments = ["file:back", "--exclude", "**/swap", "--at-once", "3"];
    for number in 1..=3 {
        let outcomes = push(&fake, dir, 0, &arguments);
        let expected = ["zfs:tank/b/c", "zfs:tank/d", "zfs:tank/vm 1"].map(|s| (s, "committed"));
        assert_eq!(results(&outcomes), expected);
        for name in ["b/c", "d", "vm 1"] {
            is_snapshot(dir.join("back").join(name), number);
        }
    }
    let calls = fake.calls();
    let taken: Vec<&str> = calls.lines().filter(|call| call.starts_with("snapshot ")).collect();
    assert_eq!(taken.len(), 3, "{taken:?}");
    let first: Vec<&str> =
        taken[0].match_indices('@').map(|(at, _)| &taken[0][at..at + 44]).collect();
    assert_eq!(first.len(), 3, "{taken:?}");
    assert!(first.iter().all(|name| *name == first[0]), "{first:?}");
    assert!(!dir.join("back/b/swap").exists());
    assert!(!calls.contains("swap"), "{calls}");
}

#[test]
fn one_that_is_refused_costs_no_other_its_copy() {
    let fake = Fake::tree(&TREE);
    let dir = fake.0.path();
    fs::create_dir_all(dir.join("back")).unwrap();
    fs::write(dir.join("back/d"), "someone's only copy").unwrap();
    let outcomes = push(&fake, dir, 3, &["file:back", "--include", "d", "--include", "b/c"]);
    assert_eq!(results(&outcomes), [("zfs:tank/b/c", "committed"), ("zfs:tank/d", "failed")]);
    assert_eq!(outcomes[1].1["error"]["reason"], "target-foreign");
    is_snapshot(dir.join("back/b/c"), 1);
    assert_eq!(fs::read(dir.join("back/d")).unwrap(), b"someone's only copy");
    // A timer would leave one behind each time.
    let left = fake.points().into_iter().filter(|point| point.starts_with("tank/d"));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
}

/// A volume without room for a snapshot, one that is gone by the time it is taken, and one whose
/// name gets too long: each fails by itself, and the others are of one instant.
#[test]
fn one_that_cannot_be_snapshotted_costs_no_other_its_copy() {
    let long = format!("tank/b/{}", "l".repeat(210));
    let fake = Fake::tree(&[&TREE[..], &[(&long, "volume")]].concat());
    let dir = fake.0.path();
    fake.write("refused", "tank/b/swap\tout of space\ntank/d\tdataset does not exist\n");
    let outcomes = push(&fake, dir, 1, &["file:back"]);
    let result = |name: &str| outcomes.iter().find(|(source, _)| source[4..] == *name).unwrap();
    for (name, words) in [
        ("tank/b/swap", ["tank/b/swap@driftline-", "no room", "refreservation", "--exclude"]),
        (
            "tank/d",
            ["tank/d@driftline-", "does not exist", "cannot take the snapshot", "--exclude"],
        ),
        (&long, [&long, "255", "rename", "--exclude"]),
    ] {
        let (_, done) = result(name);
        assert_eq!(done["result"], "failed", "{done}");
        let detail = done["error"]["detail"].as_str().unwrap();
        words.iter().for_each(|word| assert!(detail.contains(word), "{word} is not in {detail}"));
    }
    for name in ["tank/b/c", "tank/vm 1"] {
        assert_eq!(result(name).1["result"], "committed", "{outcomes:?}");
        is_snapshot(dir.join("back").join(&name[5..]), 1);
    }
    let taken = fake.points().into_iter().filter_map(|p| Some(p.split_once('@')?.1.to_owned()));
    let taken: Vec<String> = taken.collect();
    assert_eq!((taken.len(), &taken[0]), (2, &taken[1]), "{taken:?}");
}

#[test]
fn a_tree_of_the_server_takes_what_is_below_it_and_nothing_else() {
    let fake = Fake::tree(&TREE);
    let pair = Pair::new();
    let dir = pair.path().display();
    let server = pair.serve(&format!(
        "push = [\"all\", \"one\"]\n\
         [[volume]]\nname = \"all\"\ntarget = \"file:{dir}/all\"\ntree = true\n\
         [[volume]]\nname = \"one\"\ntarget = \"file:{dir}/one\"\n\
         [[volume]]\nname = \"all/d\"\ntarget = \"file:{dir}/not-allowed\"\n"
    ));
    let peer = ["--key", "client.key", "--peer", &pair.server];
    let at = |name: &str| format!("{name}@{}", server.address);
    let run = |code, target: &str, more: &[&str]| {
        push(&fake, pair.path(), code, &[&[target][..], &peer, more].concat())
    };
    // The tree of one volume that is no tree: denied for each, and nothing is left behind.
    let denied = run(3, &at("one"), &["--include", "d"]);
    assert_eq!(denied[0].1["error"]["reason"], "denied");
    assert_eq!(fake.points(), [""; 0]);
    // What is not there at all is found before anything is done.
    let denied = run(3, &at("none"), &[]);
    assert_eq!(denied[0].1["error"]["reason"], "denied");
    assert!(!fake.calls().contains("snapshot tank"), "{}", fake.calls());

    let outcomes = run(0, &at("all"), &["--exclude", "b/swap", "--exclude", "d"]);
    assert_eq!(results(&outcomes).len(), 2);
    is_snapshot(pair.path().join("all/vm 1"), 1);
    is_snapshot(pair.path().join("all/b/c"), 1);
    // Names that lead elsewhere.
    let source = common::zstream("lz4-16k.full.zs");
    for name in ["all/../one", "all//x", "all/./x", "all/b/c.driftline/state", "all/b/c.driftline"]
    {
        let refused = common::json(pair.path(), 3, &pair.push(&source, &at(name)));
        assert_eq!(refused["error"]["reason"], "denied", "{name}");
    }
    assert!(!pair.path().join("one").exists() && !pair.path().join("not-allowed").exists());
}

#[test]
fn a_tree_without_a_volume_is_an_error_where_only_volumes_go() {
    let fake = Fake::tree(&[("tank", "filesystem"), ("tank/b", "filesystem")]);
    let nothing = push(&fake, fake.0.path(), 1, &["file:back", "--include", "b"]);
    let detail = nothing[0].1["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("no volume"), "{detail}");
}
