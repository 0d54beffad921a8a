//! Dependencies point one way. This is the table of ARCHITECTURE.md, held against cargo.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// What only the program and the tests may know all of.
const LIBRARIES: [&str; 11] = [
    "driftline-command",
    "driftline-drbd",
    "driftline-extent",
    "driftline-heap",
    "driftline-linstor",
    "driftline-chunking",
    "driftline-target",
    "driftline-transport",
    "driftline-trust",
    "driftline-wire",
    "driftline-zfs",
];

/// Each package, and the packages of this workspace that it may depend on.
const ARROWS: [(&str, &[&str]); 16] = [
    ("driftline-command", &[]),
    ("driftline-extent", &[]),
    ("driftline-heap", &[]),
    ("driftline-chunking", &["driftline-extent"]),
    ("driftline-drbd", &["driftline-command", "driftline-extent"]),
    ("driftline-linstor", &["driftline-extent"]),
    ("nvpair-sys", &[]),
    ("libzetta-zfs-core-sys", &["nvpair-sys"]),
    ("driftline-zfs", &["driftline-command", "driftline-extent", "libzetta-zfs-core-sys"]),
    ("driftline-target", &["driftline-extent", "driftline-chunking"]),
    ("driftline-wire", &["driftline-extent", "driftline-chunking"]),
    ("driftline-trust", &["driftline-extent", "driftline-chunking"]),
    (
        "driftline-transport",
        &["driftline-extent", "driftline-chunking", "driftline-trust", "driftline-wire"],
    ),
    ("driftline", &LIBRARIES),
    ("driftline-tests", &LIBRARIES),
    ("driftline-lab", &[]),
];

/// The only packages with a runtime; everything below them is synchronous.
const ASYNC: [&str; 3] = ["driftline-transport", "driftline", "driftline-tests"];

/// Each package of the workspace with all it depends on, but for development.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let dependencies = dependencies.filter(|d| d["kind"] != "dev");
            let names = dependencies.map(|d| d["name"].as_str().unwrap().to_owned()).collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

#[test]
fn arrows_point_where_they_should() {
    let packages = dependencies();
    let names: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(names, ARROWS.iter().map(|row| row.0).collect(), "a package without a row");
    for (name, allowed) in ARROWS {
        let ours = packages[name].iter().filter(|d| packages.contains_key(*d));
        for dependency in ours {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not know {dependency}");
        }
    }
}

#[test]
fn the_model_needs_nothing_but_std() {
    assert_eq!(dependencies()["driftline-extent"], BTreeSet::new());
}

#[test]
fn the_cores_have_no_runtime() {
    for (name, dependencies) in dependencies() {
        if !ASYNC.contains(&name.as_str()) {
            let runtime = dependencies.iter().find(|d| d.starts_with("tokio"));
            assert_eq!(runtime, None, "{name} is a synchronous core");
        }
    }
}
