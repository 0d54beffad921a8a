//! House rules that a program can check.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Lines of a source file, without its tests.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file of ours, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let found = files("rs", &["transport", "zfs", "drbd", "target", "tests"]);
    assert!(found.len() > 40, "the sources were not found");
    found
}

/// Every file below these folders whose name ends so, with its text.
fn files(ends: &str, folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ends) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in sources() {
        // A fuzz target must start with an attribute.
        let first = text.lines().find(|line| !line.starts_with("#![no_main]")).unwrap_or_default();
        assert!(first.starts_with("//! "), "{} does not say what it is for", path.display());
    }
}

#[test]
fn files_stay_small() {
    for (path, text) in sources() {
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: split it at a noun", path.display());
    }
}

#[test]
fn nothing_is_left_open_or_switched_off() {
    // Spelt so that this file does not find itself.
    let words =
        [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["#[ig", "nore"], ["unimple", "mented!"]];
    for (path, text) in sources() {
        for word in words.map(|parts| parts.concat()) {
            assert!(!text.contains(&word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn no_mark_of_a_merge_is_left() {
    let documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "REASONS.md"].map(|name| {
        let path = root().join(name);
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    });
    let pages = files("md", &["transport", "zfs", "drbd", "target", "tests", "vagrant"]);
    assert!(pages.len() > 7, "the pages were not found");
    let documents = documents.into_iter().chain(pages);
    for (path, text) in sources().into_iter().chain(documents) {
        let mark = text.lines().find(|line| line.starts_with("<<<<<<< "));
        assert!(mark.is_none(), "{} has {mark:?}", path.display());
    }
}

#[test]
fn unsafe_code_has_its_places() {
    // Vector instructions, and calls into libraries of C.
    let allowed =
        ["transport/heap", "zfs/src/checksum", "zfs/sys"].map(|folder| root().join(folder));
    for (path, text) in sources() {
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        let test = path.starts_with(root().join("tests"));
        let allowed = test || allowed.iter().any(|folder| path.starts_with(folder));
        assert!(!uses || allowed, "{} has unsafe code", path.display());
    }
}

#[test]
fn every_message_of_the_protocol_is_documented() {
    let document = fs::read_to_string(root().join("transport/wire/src/lib.rs")).unwrap();
    let messages = fs::read_to_string(root().join("transport/wire/src/message.rs")).unwrap();
    let tags = messages.lines().filter_map(|line| line.trim().strip_prefix("pub(super) const "));
    let mut count = 0;
    for tag in tags {
        let (name, rest) = tag.split_once(": u8 = ").unwrap();
        let number = rest.trim_end_matches(';');
        let name = name.to_lowercase().replace('_', "-");
        let row = format!("//! | {number} | {name} |");
        assert!(document.contains(&row), "the protocol document lacks {row:?}");
        count += 1;
    }
    assert_eq!(count, 16);
}

/// README's first command names no program.
#[test]
fn cargo_run_is_driftline() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let run: Vec<&str> = packages.filter_map(|one| one["default_run"].as_str()).collect();
    assert_eq!(run, ["driftline"]);
}

/// What stands between backquotes in the last column of the table of faults.
#[test]
fn every_test_in_the_table_of_faults_exists() {
    let table = fs::read_to_string(root().join("tests/FAULTS.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let sources = sources();
    let mut count = 0;
    for row in rows {
        let names = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named in {row:?}");
        for name in names {
            let function = format!("fn {name}(");
            let found = sources.iter().any(|(_, text)| text.contains(&function));
            assert!(found, "there is no test {name}");
            count += 1;
        }
    }
    assert!(count > 80, "the table was not found");
}
