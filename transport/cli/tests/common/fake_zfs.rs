//! A `zfs` that replays recorded streams and remembers what was asked of it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use tempfile::TempDir;

use super::{command, recorded_sha256, sha256, stream};

/// Guids of the recorded snapshots `lz4-16k@s1`, `@s2` and `@s3`, and what they were sized.
pub(crate) const GUIDS: [u64; 3] = [14672962806766498543, 17056389756854695150, 985389201224908894];
const SIZES: [u64; 3] = [16 << 20, 16 << 20, 24 << 20];

/// What it answers from is in its folder: `points`, a line for each snapshot and bookmark,
/// and `next`, the number of the snapshot that is taken next. It writes down what it is asked.
/// `clones` has lines of a snapshot and its clone, `holds` of a snapshot and its tag, `refused` of a
/// snapshot's data set and why none can be taken of it. A stream is received into whatever data set
/// there is or not, and makes a snapshot of it with the guid in `arrives`; with a file `deaf` none
/// is received. With a file `old` it is one from before bookmarks, `receive -s` and `send -Lc`.
const FAKE: &str = r##"#!/bin/bash
cd "$(dirname "$0")" || exit 99
printf '%s\n' "$*" >> calls
tab=$'\t'
guid_of() { awk -F '\t' -v name="$1" '$1 == name { print $2 }' points; }
for last; do [ "$before" != -i ] || base=$last; before=$last; done
# Several may ask at once; a stream may take as long as it likes.
case $1 in send|receive) ;; *) exec 9> lock; flock 9 ;; esac
value_of() { awk -F '\t' -v name="$1" '$1 == name { print $2 }' "$2" 2> /dev/null; }
if [ -e old ]; then
    case "$*" in
    "send -"[!i]*|"receive -s"*) echo "invalid option '${2#-}'" >&2; exit 2 ;;
    bookmark*|version) echo "unrecognized command '$1'" >&2; exit 2 ;;
    esac
fi
case "$*" in
"list -H -o name -t filesystem,volume"*) grep -q "^$last$tab" dataset || { echo "cannot open '$last': dataset does not exist" >&2; exit 1; }; echo "$last" ;;
"list -Hp -d 0 -t filesystem,volume"*) grep "^$last$tab" dataset ;;
"list -Hp -r -t filesystem,volume"*) cat dataset ;;
"list -Hp"*"-t snapshot,bookmark"*) grep "^$last[@#]" points || true ;;
"snapshot -r "*)
    read -r number guid < next
    cut -f1 dataset | while read -r name; do
        printf '%s@%s\t%s\t%s\t%s\t0\n' "$name" "${3#*@}" "$guid" "$((number * 10))" "$number" >> points
    done
    tail -n +2 next > rest; mv rest next ;;
"snapshot "*)
    for name in "${@:2}"; do
        why=$(value_of "${name%@*}" refused)
        [ -z "$why" ] || echo "cannot create snapshot '$name': $why" >&2
        [ -z "$why" ] || no=1
    done
    [ -z "$no" ] || { echo 'no snapshots were created' >&2; exit 1; }
    read -r number guid < next
    for name in "${@:2}"; do
        printf '%s\t%s\t%s\t%s\t0\n' "$name" "$guid" "$((number * 10))" "$number" >> points
    done
    tail -n +2 next > rest; mv rest next ;;
"bookmark "*) awk -F '\t' -v OFS='\t' -v name="$2" -v mark="$3" '$1 == name { print mark, $2, $3, $4, "-" }' points > new; cat new >> points ;;
"destroy "*)
    [ -z "$(value_of "$last" clones)" ] || { echo "cannot destroy '$last': snapshot has dependent clones" >&2; exit 1; }
    [ -z "$(value_of "$last" holds)" ] || { echo "cannot destroy snapshot $last: dataset is busy" >&2; exit 1; }
    grep -v "^$last$tab" points > rest; mv rest points ;;
"get -Hp -o value clones "*) clone=$(value_of "$last" clones); echo "${clone:--}" ;;
"holds -H "*) tag=$(value_of "$last" holds); [ -z "$tag" ] || printf '%s\t%s\tMon Nov 30 12:00 2026\n' "$last" "$tag" ;;
"hold "*|release*) ;;
"receive -A "*) grep -v "^$last$tab" dataset > rest; mv rest dataset ;;
"receive -u"*)
    [ ! -e deaf ] || { echo 'cannot receive: it is deaf' >&2; exit 1; }
    cat > received
    printf '%s\tvolume\t78\t25165824\t16384\t-\t0\toff\t-\t-\t-\n' "$last" >> dataset
    printf '%s@arrived\t%s\t900\t900\t0\n' "$last" "$(cat arrives)" >> points ;;
"get -Hp -o value snapdev "*) echo hidden ;;
"get -Hp -o value volsize "*) cat "size.$(guid_of "$last")" ;;
version) cat version ;;
"send -nvP"*) printf 'full\t%s\t1000000\nsize\t1000000\n' "$last" ;;
"send "*)
    [ -z "$base" ] || base=$(guid_of "$base")
    cat "stream.${base:-0}.$(guid_of "$last")"
    [ ! -e fails ] || { cat fails >&2; exit 1; } ;;
*) echo "the fake zfs does not know: $*" >&2; exit 98 ;;
esac
"##;

pub(crate) const COLUMNS: &str = "volume\t77\tSIZE\t16384\t-\t0\toff\t-\t-\t-";

pub(crate) struct Fake(pub(crate) TempDir);

impl Fake {
    /// A volume `tank/vm 1` with the snapshots of other people's `points`.
    pub(crate) fn new(points: &[(&str, u64, u64)]) -> Self {
        let fake = Self(TempDir::new().unwrap());
        fake.write("zfs", FAKE);
        fake.write("version", "zfs-2.3.9-1\nzfs-kmod-2.3.9-1\n");
        fs::set_permissions(fake.path("zfs"), PermissionsExt::from_mode(0o755)).unwrap();
        fake.write("dataset", &format!("tank/vm 1\t{}\n", COLUMNS.replace("SIZE", "25165824")));
        let lines = points.iter().map(|(name, guid, txg)| {
            let holds = if name.contains('@') { "0" } else { "-" };
            format!("tank/vm 1{name}\t{guid}\t{txg}\t{txg}\t{holds}\n")
        });
        fake.write("points", &lines.collect::<String>());
        let taken = GUIDS.iter().zip(1..);
        fake.write("next", &taken.map(|(guid, i)| format!("{i} {guid}\n")).collect::<String>());
        for (guid, size) in GUIDS.iter().zip(SIZES) {
            fake.write(&format!("size.{guid}"), &format!("{size}\n"));
        }
        let [a, b, c] = GUIDS;
        for (base, tip, file) in [(0, a, "full"), (a, b, "1-2"), (b, c, "2-3")] {
            let to = fake.path(&format!("stream.{base}.{tip}"));
            fs::copy(stream(&format!("lz4-16k.{file}.zs")), to).unwrap();
        }
        fake
    }

    /// A tree `tank` of these data sets besides that volume, whose snapshots are as its own.
    pub(crate) fn tree(datasets: &[(&str, &str)]) -> Self {
        let fake = Self::new(&[]);
        let line = |(name, kind): &(&str, &str)| {
            let columns = COLUMNS.replace("SIZE", "25165824");
            format!("{name}\t{}\n", columns.replacen("volume\t", &format!("{kind}\t"), 1))
        };
        let all = fs::read_to_string(fake.path("dataset")).unwrap();
        let more: String = datasets.iter().map(line).collect();
        let more = more.replace("filesystem\t77\t25165824\t16384", "filesystem\t77\t-\t-");
        fake.write("dataset", &(all + &more));
        fake
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn push(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["push", "--json", "zfs:tank/vm 1", "file:vm.img"];
        all.extend(arguments);
        command(self.0.path(), &all).env("DRIFTLINE_ZFS", self.path("zfs")).output().unwrap()
    }

    /// Pushes, and the replica must be the recorded snapshot of this number.
    pub(crate) fn arrives(&self, arguments: &[&str], number: usize) {
        let output = self.push(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let expected = recorded_sha256(&format!("lz4-16k@s{number}"));
        assert_eq!(sha256(&self.path("vm.img")), expected);
    }

    /// Pushes, which must fail with this exit code, and these words in what it says.
    pub(crate) fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.push(arguments);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
    }

    /// The names of what there is, sorted.
    pub(crate) fn points(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("points")).unwrap();
        let names = text.lines().map(|line| line.split('\t').next().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
