//! Recorded streams into a data set, with a `zfs` that keeps what it is to receive. Real ones
//! are in the lab.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Output,
};

use driftline_zfs::OpaqueStream;
use tempfile::TempDir;

use common::{command, stream, zstream};

/// Its only data set is there once something was received. That is appended to the file
/// `received`, and leads to the snapshot whose guid is in the file `next`.
const FAKE: &str = r##"#!/bin/bash
cd "$(dirname "$0")" || exit 99
printf '%s\n' "$*" >> calls
case "$*" in
"list -H -o name -t filesystem,volume tank/copy") [ -e points ] || { echo "cannot open '${*: -1}': dataset does not exist" >&2; exit 1; } ;;
"list -Hp"*"-t filesystem,volume"*) printf 'tank/copy\tfilesystem\t77\t-\t-\t-\t0\toff\t-\t-\t-\n' ;;
"list -Hp"*"-t snapshot,bookmark"*) cat points ;;
"receive -u -s tank/copy"|"receive -u -s -o canmount=noauto tank/copy"|"receive -u -s -x refreservation tank/copy")
    cat >> received
    txg=$(wc -l < calls)
    printf 'tank/copy@%s\t%s\t%s\t1\t0\n' "$(cat next)" "$(cat next)" "$txg" >> points
    [ ! -e says ] || cat says >&2 ;;
"list -H -o name -t filesystem,volume tank") echo tank ;;
"receive -s"|"receive -x canmount"|"send -L -c"|bookmark) echo "missing snapshot argument" >&2; exit 2 ;;
*) echo "the fake zfs does not know: $*" >&2; exit 98 ;;
esac
"##;

struct Fake(TempDir);

impl Fake {
    fn new() -> Self {
        let fake = Self(TempDir::new().unwrap());
        fs::write(fake.path("zfs"), FAKE).unwrap();
        fs::set_permissions(fake.path("zfs"), PermissionsExt::from_mode(0o755)).unwrap();
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Pushes a recorded stream, from standard input if it says so.
    fn push(&self, name: &str, piped: bool) -> Output {
        let source = if piped { "zstream:-".to_owned() } else { zstream(name) };
        let mut push = command(self.0.path(), &["push", "--json", &source, "zfs:tank/copy"]);
        if piped {
            push.stdin(File::open(stream(name)).unwrap());
        }
        push.env("DRIFTLINE_ZFS", self.path("zfs")).output().unwrap()
    }

    /// Pushes one that must arrive as it is.
    fn arrives(&self, name: &str, piped: bool) -> String {
        fs::write(self.path("next"), tip(name).to_string()).unwrap();
        let before = self.received();
        let output = self.push(name, piped);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output));
        let expected = [before, fs::read(stream(name)).unwrap()].concat();
        assert!(self.received() == expected, "{name} is not what was received");
        text(&output)
    }

    fn received(&self) -> Vec<u8> {
        fs::read(self.path("received")).unwrap_or_default()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The guid of the snapshot that a recorded stream leads to.
fn tip(name: &str) -> u64 {
    let mut stream = OpaqueStream::new(File::open(stream(name)).unwrap());
    stream.open().unwrap();
    while stream.next_part().unwrap().is_some() {}
    stream.ends().unwrap().to
}

#[test]
fn streams_of_every_kind_arrive_as_they_are() {
    // A file system; a volume and a package of three increments; what is encrypted on disk.
    for names in [
        &["fs.full.zs", "fs.1-2.zs"][..],
        &["lz4-16k.full.zs", "lz4-16k.I1-4.zs"],
        &["encraw.full.zs"],
    ] {
        for piped in [false, true] {
            let fake = Fake::new();
            for name in names {
                fake.arrives(name, piped);
                // Again, it is there.
                let before = fake.received();
                let output = fake.push(name, piped);
                assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output));
                assert!(text(&output).contains("up-to-date"), "{name}: {}", text(&output));
                assert!(fake.received() == before, "{name} was received twice");
            }
        }
    }
}

#[test]
fn a_wrong_base_is_refused_by_name() {
    let fake = Fake::new();
    let refused = |name: &str, holds: &str| {
        let before = fake.received();
        let output = fake.push(name, false);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        let whole = format!("{holds} (at byte");
        for word in ["base-mismatch", &whole, name] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(fake.received() == before, "{name} was received");
    };
    refused("fs.1-2.zs", "the target holds nothing");
    fake.arrives("fs.full.zs", false);
    let held = format!("the target holds zfs:{}", tip("fs.full.zs"));
    refused("lz4-16k.1-2.zs", &held);
    refused("lz4-16k.full.zs", &held);
    let calls = fs::read_to_string(fake.path("calls")).unwrap();
    assert_eq!(calls.matches("receive -u").count(), 1, "{calls}");
}

#[test]
fn what_zfs_says_of_a_success_is_told() {
    let fake = Fake::new();
    fs::write(fake.path("says"), "cannot mount '/copy': directory is not empty\n").unwrap();
    let said = fake.arrives("fs.full.zs", false);
    assert!(said.contains("WARN") && said.contains("tank/copy"), "{said}");
    assert!(said.contains("directory is not empty"), "{said}");
}
