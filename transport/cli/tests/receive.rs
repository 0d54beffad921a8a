//! What decides how a stream is received: from one data set to another of a `zfs` that makes
//! streams, and behaves at their end as OpenZFS 2.3.9 was seen to. Real ones are in the lab.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use driftline_zfs::{
    ByteOrder, Nvlist, Value,
    testing::{Opening, StreamWriter},
};
use tempfile::TempDir;

use common::{command, fake_zfs::text};

/// It has a line for each data set in `datasets` and for each snapshot and bookmark in `points`.
/// A stream is a file `stream.BASE.TIP`, by guids. What is received is kept, as are all calls.
/// Where encryption is neither left out nor set, a stream with properties switches it off.
const FAKE: &str = r##"#!/bin/bash
cd "$(dirname "$0")" || exit 99
printf '%s\n' "$*" >> calls
tab=$'\t'
guid_of() { awk -F '\t' -v name="$1" '$1 == name { print $2 }' points; }
for last; do [ "$before" != -i ] || base=$last; before=$last; done
case "$*" in
"list -H -o name -t filesystem,volume"*) grep -q "^$last$tab" datasets || { echo "cannot open '$last': dataset does not exist" >&2; exit 1; }; echo "$last" ;;
"list -H -o name -t snapshot"*|"list -H -o name -t bookmark"*) grep -q "^$last$tab" points || { echo "cannot open '$last': dataset does not exist" >&2; exit 1; }; echo "$last" ;;
"list -Hp -d 0 -t filesystem,volume"*) grep "^$last$tab" datasets ;;
"list -Hp -r -t filesystem,volume"*) grep "^$last[/$tab]" datasets ;;
"list -Hp"*"-t snapshot,bookmark"*) grep "^$last[@#]" points || true ;;
"get -Hp -o value written "*) cat written ;;
"get -Hp -o value pbkdf2salt "*) echo 0 ;;
"snapshot "*)
    read -r number < next; echo $((number + 1)) > next
    for name in "${@:2}"; do printf '%s\t%s\t%s\t1\t0\n' "$name" "$number" "$number" >> points; done ;;
"bookmark "*) awk -F '\t' -v OFS='\t' -v name="$2" -v mark="$3" '$1 == name { print mark, $2, $3, $4, "-" }' points > new; cat new >> points ;;
"destroy "*) grep -v "^$last$tab" points > rest; mv rest points ;;
"send -nvP"*) printf 'size\t1000\n' ;;
"send -L -c "?*) [ -z "$base" ] || base=$(guid_of "$base"); cat "stream.${base:-0}.$(guid_of "$last")" ;;
"receive -u "*)
    cat > received
    case "$*" in *"-x encryption"*) cipher=aes-256-gcm ;; *) cipher=$(cat cipher) ;; esac
    grep -q "^$last$tab" datasets || printf '%s\tfilesystem\t9\t-\t-\t-\t0\t%s\t%s\t-\t-\n' "$last" "$cipher" "$(cat root)" >> datasets
    tip=$(cat tip); printf '%s@%s\t%s\t%s\t1\t0\n' "$last" "$tip" "$tip" "$((1000 * tip))" >> points ;;
hold*|release*) ;;
version) printf 'zfs-2.3.9-1\nzfs-kmod-2.3.9-1\n' ;;
"receive -s"|"receive -x canmount"|"send -L -c"|bookmark) echo "missing snapshot argument" >&2; exit 2 ;;
*) echo "the fake zfs does not know: $*" >&2; exit 98 ;;
esac
"##;

struct Fake(TempDir);

/// A file system that is not encrypted, and one that is.
const PLAIN: &str = "filesystem\t7\t-\t-\t-\t0\toff\t-\t-\t-";
const ENCRYPTED: &str = "filesystem\t7\t-\t-\t-\t0\taes-256-gcm\tROOT\tavailable\t-";

impl Fake {
    /// `tank/fs`, which is not encrypted, and the data set `back`.
    fn new(back: &str) -> Self {
        let fake = Self(TempDir::new().unwrap());
        fake.write("zfs", FAKE);
        fs::set_permissions(fake.path("zfs"), PermissionsExt::from_mode(0o755)).unwrap();
        let back = back.replace("ROOT", "back");
        fake.write("datasets", &format!("tank/fs\t{PLAIN}\nback\t{back}\n"));
        for (name, text) in [("points", ""), ("next", "1"), ("cipher", "off"), ("root", "-")] {
            fake.write(name, text);
        }
        fake.write("written", "0\n");
        for (base, tip) in [(0, 1), (1, 2), (1, 3), (2, 3)] {
            fs::write(fake.path(&format!("stream.{base}.{tip}")), stream(base, tip, &[], 0))
                .unwrap();
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn add(&self, name: &str, text: &str) {
        let before = fs::read_to_string(self.path(name)).unwrap();
        self.write(name, &(before + text));
    }

    /// Pushes a source to `back/fs`, where the next snapshot that arrives has this guid.
    fn push(&self, source: &str, tip: u64, more: &[&str]) -> Output {
        self.write("tip", &tip.to_string());
        let all = [&["push", "--json", source, "zfs:back/fs"][..], more].concat();
        command(self.0.path(), &all).env("DRIFTLINE_ZFS", self.path("zfs")).output().unwrap()
    }

    fn arrives(&self, source: &str, tip: u64, more: &[&str]) -> String {
        let output = self.push(source, tip, more);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(text(&output).contains("committed"), "{}", text(&output));
        text(&output)
    }

    fn fails(&self, source: &str, code: i32, words: &[&str]) {
        let output = self.push(source, 9, &[]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
    }

    /// The calls that received something.
    fn received(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap();
        let calls = calls.lines().filter(|call| call.starts_with("receive -u"));
        calls.map(str::to_owned).collect()
    }

    /// A recorded stream of `tank/fs`, as a source.
    fn record(&self, bytes: &[u8]) -> String {
        fs::write(self.path("recorded.zs"), bytes).unwrap();
        format!("zstream:{}", self.path("recorded.zs").display())
    }
}

fn list(pairs: Vec<(&str, Value)>) -> Nvlist {
    Nvlist(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A stream of a file system, in a package if there are properties.
fn stream(base: u64, tip: u64, properties: &[&str], features: u64) -> Vec<u8> {
    let opening = Opening { objset_type: 2, features, ..Opening::volume(base, tip) };
    let writer = StreamWriter::new(ByteOrder::Little);
    if properties.is_empty() {
        let writer = writer.begin_named(&opening, "tank/fs@s").object(1, 21, 512, &[]);
        return writer.end().into_bytes();
    }
    let properties = properties.iter().map(|name| (*name, Value::Uint64(1))).collect();
    let member = list(vec![
        ("name", Value::String("tank/fs".to_owned())),
        ("props", Value::Nvlist(list(properties))),
    ]);
    let all = list(vec![("7", Value::Nvlist(member))]);
    let head = list(vec![("fss", Value::Nvlist(all))]).encode(ByteOrder::Little).unwrap();
    let writer = writer.named_head("tank/fs@s", &head).begin_named(&opening, "tank/fs@s");
    writer.object(1, 21, 512, &[]).end().compound_end().into_bytes()
}

const EMBEDDED: u64 = 1 << 16;

#[test]
fn what_arrives_below_an_encrypted_data_set_is_encrypted_or_refused() {
    let fake = Fake::new(ENCRYPTED);
    // Embedded blocks ZFS would refuse; nothing is tried.
    let embedded = fake.record(&stream(0, 1, &["quota"], EMBEDDED));
    fake.fails(&embedded, 3, &["unsupported", "zfs send -L -c"]);
    assert_eq!(fake.received(), [""; 0]);
    let bytes = stream(0, 1, &["quota", "compression", "mountpoint"], 0);
    let said = fake.arrives(&fake.record(&bytes), 1, &[]);
    assert!(said.contains("encryption") && said.contains("--take-property"), "{said}");
    assert_eq!(
        fake.received(),
        ["receive -u -s -x mountpoint -x quota -x encryption -o canmount=noauto back/fs"]
    );
    assert!(fs::read(fake.path("received")).unwrap() == bytes, "it is not what was sent");
    // What is there keeps what it was made with.
    fake.arrives(&fake.record(&stream(1, 2, &["quota"], 0)), 2, &[]);
    assert_eq!(fake.received()[1], "receive -u -s -x quota back/fs");
}

#[test]
fn plain_text_is_found_after_the_fact_and_before_the_next_increment() {
    let fake = Fake::new(ENCRYPTED);
    // A ZFS that does otherwise than those that were seen.
    let source = fake.record(&stream(0, 1, &[], 0));
    fake.fails(&source, 6, &["verify-failed", "plain text in back/fs"]);
    fake.write("points", "back/fs@1\t1\t1001\t1\t0\n");
    fake.fails(&fake.record(&stream(1, 2, &[], 0)), 3, &["not-encrypted", "zfs rename back/fs"]);
    assert_eq!(fake.received().len(), 1);
    // Who wants it so says so.
    fake.arrives(&fake.record(&stream(1, 2, &[], 0)), 2, &["--set-property", "encryption=off"]);
    assert_eq!(fake.received()[1], "receive -u -s back/fs");
}

#[test]
fn elsewhere_encryption_is_nobodys_affair() {
    let fake = Fake::new(PLAIN);
    fake.arrives(
        &fake.record(&stream(0, 1, &["quota"], EMBEDDED)),
        1,
        &["--take-property", "quota"],
    );
    assert_eq!(fake.received(), ["receive -u -s -o canmount=noauto back/fs"]);
}

#[test]
fn a_live_source_sends_no_embedded_blocks_and_nothing_raw_that_is_not_encrypted() {
    let fake = Fake::new(ENCRYPTED);
    fake.write("cipher", "aes-256-gcm");
    fake.write("root", "back");
    let said = fake.arrives("zfs:tank/fs", 1, &["--raw"]);
    assert!(said.contains("WARN") && said.contains("--raw has no effect"), "{said}");
    fake.arrives("zfs:tank/fs", 2, &[]);
    let calls = fs::read_to_string(fake.path("calls")).unwrap();
    let sends: Vec<&str> = calls
        .lines()
        .filter(|call| call.starts_with("send -L -c t") || call.starts_with("send -L -c -i"))
        .collect();
    assert_eq!(sends.len(), 2, "{calls}");
    assert!(!calls.contains("-e ") && !calls.contains("-w "), "{calls}");
}

#[test]
fn empty_snapshots_of_the_targets_own_are_received_over_as_zfs_does() {
    let fake = Fake::new(PLAIN);
    fake.arrives("zfs:tank/fs", 1, &[]);
    fake.add("points", "back/fs@mine\t77\t1500\t1\t0\nback/fs@again\t78\t1501\t1\t0\n");
    fake.write("written", "4096\n");
    fake.fails(
        "zfs:tank/fs",
        3,
        &["base-mismatch", "2 snapshots that the source lacks", "rollback"],
    );
    // Refused, it leaves no snapshot.
    let points = fs::read_to_string(fake.path("points")).unwrap();
    assert_eq!(points.lines().filter(|line| line.starts_with("tank/fs@")).count(), 1, "{points}");
    fake.write("written", "0\n");
    fake.write("next", "3");
    // The source of a raw stream does not even ask.
    let raw = fake.push("zfs:tank/fs", 3, &["--raw"]);
    assert_eq!(raw.status.code(), Some(3), "{}", text(&raw));
    fake.arrives("zfs:tank/fs", 3, &[]);
    let points = fs::read_to_string(fake.path("points")).unwrap();
    assert!(points.contains("back/fs@mine") && points.contains("back/fs@3"), "{points}");
    assert_eq!(fake.received().len(), 2);
}

#[test]
fn a_target_that_is_gone_is_refused_and_comes_back_under_another_name() {
    let fake = Fake::new(PLAIN);
    fake.arrives("zfs:tank/fs", 1, &[]);
    fake.arrives("zfs:tank/fs", 2, &[]);
    for name in ["datasets", "points"] {
        let renamed = fs::read_to_string(fake.path(name)).unwrap().replace("back/fs", "back/old");
        fake.write(name, &renamed);
    }
    let before = fs::read_to_string(fake.path("points")).unwrap();
    fake.fails("zfs:tank/fs", 3, &["target-gone", "zfs:2 had arrived", "--full"]);
    // Also where nothing is remembered but by ZFS itself.
    fs::remove_dir_all(fake.path("trust")).unwrap();
    fake.fails("zfs:tank/fs", 3, &["target-gone", "0002 shows that a generation had arrived"]);
    assert_eq!(fs::read_to_string(fake.path("points")).unwrap(), before);
    assert_eq!(fake.received().len(), 2);
    // Copied anew by consent, it leaves what the old one can go on from.
    fs::write(fake.path("stream.0.3"), stream(0, 3, &[], 0)).unwrap();
    fake.arrives("zfs:tank/fs", 3, &["--full"]);
    let points = fs::read_to_string(fake.path("points")).unwrap();
    assert!(
        points.lines().any(|line| line.starts_with("tank/fs#") && line.contains("\t2\t2\t")),
        "{points}"
    );
    fs::write(fake.path("stream.2.4"), stream(2, 4, &[], 0)).unwrap();
    fake.write("tip", "4");
    let mut push = command(fake.0.path(), &["push", "--json", "zfs:tank/fs", "zfs:back/old"]);
    let output = push.env("DRIFTLINE_ZFS", fake.path("zfs")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(fake.received()[3], "receive -u -s back/old");
}

/// As after `zpool import --rewind-to-checkpoint`.
#[test]
fn a_target_that_went_back_is_gone_on_with_from_a_bookmark() {
    let fake = Fake::new(PLAIN);
    fake.arrives("zfs:tank/fs", 1, &[]);
    fake.arrives("zfs:tank/fs", 2, &[]);
    let points = fs::read_to_string(fake.path("points")).unwrap();
    let kept = points.lines().filter(|line| !line.starts_with("back/fs@2\t"));
    fake.write("points", &kept.map(|line| format!("{line}\n")).collect::<String>());
    fake.arrives("zfs:tank/fs", 3, &[]);
    let calls = fs::read_to_string(fake.path("calls")).unwrap();
    assert!(calls.contains("-0000000000000001 tank/fs@driftline-"), "{calls}");
}

/// What stands below the root of a tree that goes by one stream, and was destroyed or renamed at
/// the target.
#[test]
fn a_data_set_of_a_tree_that_is_gone_is_not_copied_anew_without_consent() {
    let fake = Fake::new(PLAIN);
    fake.arrives("zfs:tank/fs", 1, &[]);
    let points = fs::read_to_string(fake.path("points")).unwrap();
    let name = |kind: char| {
        let start = format!("tank/fs{kind}");
        let line = points.lines().find(|line| line.starts_with(&start)).unwrap();
        line.split_once('\t').unwrap().0[start.len()..].to_owned()
    };
    let (short, mark) = (name('@'), name('#').replace("0001", "000b"));
    let add = |name: &str, guid: u64| {
        fake.add("datasets", &format!("{name}\t{PLAIN}\n"));
        fake.add("points", &format!("{name}@{short}\t{guid}\t1\t1\t0\n"));
        fs::write(fake.path(&format!("stream.0.{guid}")), stream(0, guid, &[], 0)).unwrap();
    };
    let tree = |tip: u64, code: i32, more: &[&str]| {
        let options = [&["--with", "tree", "--latest"], more].concat();
        let output = fake.push("zfs:tank/fs", tip, &options);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        text(&output)
    };
    // It arrived once, as its bookmark says.
    add("tank/fs/gone", 11);
    fake.add("points", &format!("tank/fs/gone#{mark}\t11\t1\t1\t-\n"));
    let said = tree(11, 3, &[]);
    for word in ["target-gone", "at \\\"gone\\\"", &mark, "--full"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    assert_eq!(fake.received().len(), 1);
    tree(11, 0, &["--full"]);
    assert!(fake.received()[1].ends_with(" back/fs/gone"), "{:?}", fake.received());
    // What never arrived needs nobody to agree.
    add("tank/fs/new", 12);
    tree(12, 0, &[]);
    assert!(fake.received()[2].ends_with(" back/fs/new"), "{:?}", fake.received());
}
