//! From one data set to another of a real ZFS that needs no kernel module but `fuse`.
//!
//! `DRIFTLINE_ZFS_FUSE` names a folder with `zfs-fuse`, `zpool` and `zfs`, which
//! `tests/real/fetch-zfs-fuse` fetches. Needs root and `/dev/fuse`.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use common::{command, noise};

/// Where the daemon listens, in its own view of the file system.
const SOCKET: &str = "run/zfs/zfs_socket";

/// Starts the daemon of folder $1 in the place of this shell, for a test whose folder is $2.
/// What it writes in fixed places is its own, and it finds no pools of this machine. The
/// commands `zfs` and `zpool` of the test's folder talk with it, and with no other; `cut` is a
/// `zfs` whose streams break off, and `torn` one that stops to receive in the middle.
const START: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/zfs /run/lock/zfs
if [ -d /var/lib/zfs ]; then
    mount -t tmpfs tmpfs /var/lib/zfs
else
    mount --bind /var/lib /var/lib
    mount -o remount,bind,ro /var/lib
fi
for name in zfs zpool; do
    printf '#!/bin/sh\nexec nsenter --mount=/proc/%s/ns/mnt -- "%s" "$@"\n' $$ "$1/$name" > "$2/$name"
done
cat > "$2/cut" <<END
#!/bin/sh
case \$1 in send) "$2/zfs" "\$@" | head -c 1000000; exit 1 ;; esac
exec "$2/zfs" "\$@"
END
cat > "$2/torn" <<END
#!/bin/sh
case \$1 in receive) head -c 1500000 | "$2/zfs" "\$@"; exit 1 ;; esac
exec "$2/zfs" "\$@"
END
chmod +x "$2/zfs" "$2/zpool" "$2/cut" "$2/torn"
exec "$1/zfs-fuse" --no-daemon --no-kstat-mount
"#;

/// A ZFS with the pools `ta` and `tb`, on files. It ends when this is dropped, or with the test.
struct Fuse {
    daemon: Child,
    folder: TempDir,
}

impl Fuse {
    fn start() -> Self {
        let tools = std::env::var_os("DRIFTLINE_ZFS_FUSE").expect(
            "DRIFTLINE_ZFS_FUSE must name a folder with zfs-fuse, zpool and zfs: \
             run tests/real/fetch-zfs-fuse CACHE-FOLDER and set it to the path that it prints",
        );
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if let Err(error) = device {
            panic!(
                "zfs-fuse needs /dev/fuse, which cannot be opened: {error}; `modprobe fuse`, be \
                 root, and in a container give it the device"
            );
        }
        let folder = TempDir::new().unwrap();
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", START, "sh"])
            .arg(tools)
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(folder.path().join("log")).unwrap())
            .stderr(fs::File::create(folder.path().join("errors")).unwrap())
            .spawn()
            .unwrap();
        let mut fuse = Self { daemon, folder };
        fuse.wait();
        for pool in ["ta", "tb"] {
            let file = fuse.path(&format!("{pool}.pool"));
            fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
            let mounted = fuse.path(pool);
            let (file, mounted) = (file.to_str().unwrap(), mounted.to_str().unwrap());
            // It is not to be remembered, and reading is to write nothing.
            let options = ["-o", "cachefile=none", "-O", "atime=off", "-m", mounted];
            fuse.run("zpool", &[&["create"], &options[..], &[pool, file]].concat());
        }
        fuse
    }

    /// Waits until it can be talked with.
    fn wait(&mut self) {
        let started = Instant::now();
        // Once there is a command, the place of the socket is its own.
        while !self.path("torn").exists() || !self.root().join(SOCKET).exists() {
            let ended = self.daemon.try_wait().unwrap();
            let errors = fs::read_to_string(self.path("errors")).unwrap();
            assert!(ended.is_none(), "zfs-fuse ended, {ended:?}: {errors}");
            assert!(started.elapsed() < Duration::from_secs(60), "zfs-fuse hangs: {errors}");
            thread::yield_now();
        }
    }

    /// The root of the file system as it sees it, with what is mounted there.
    fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.daemon.id()).into()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A data set where it is mounted.
    fn mounted(&self, dataset: &str) -> PathBuf {
        self.root().join(self.path(dataset).strip_prefix("/").unwrap())
    }

    /// What a command that must succeed prints.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(self.path(program)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn zfs(&self, arguments: &str) -> String {
        self.run("zfs", &arguments.split(' ').collect::<Vec<_>>())
    }

    /// Pushes by this command of the test's folder. However it ends, nothing stays held.
    fn push(&self, zfs: &str, source: &str, to: &str, options: &[&str]) -> Output {
        let target = format!("zfs:{to}");
        let push = [&["push", "--json", source, &target], options].concat();
        let mut push = command(self.folder.path(), &push);
        let output = push.env("DRIFTLINE_ZFS", self.path(zfs)).output().unwrap();
        let holds = self.zfs("get -Hp -d 1 -o name,value userrefs ta/fs");
        let free = |line: &str| line.ends_with("\t0") || !line.contains('@');
        assert!(holds.lines().all(free), "{holds}{}", text(&output));
        output
    }

    /// Pushes `ta/fs`, which must arrive without a warning, and be the same.
    fn arrives(&self, to: &str) {
        let output = self.push("zfs", "zfs:ta/fs", to, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("WARN"), "{errors}");
        self.is_same(to);
    }

    /// The newest snapshot of a target must be the only one of ours that the source keeps, with
    /// the files that stand there now.
    fn is_same(&self, to: &str) {
        let source: Vec<Snapshot> = self.snapshots("ta/fs");
        let own: Vec<_> = source.iter().filter(|one| one.name.contains("@driftline-")).collect();
        let [kept] = own[..] else { panic!("one is kept: {source:?}") };
        let target = self.snapshots(to);
        let arrived = target.last().expect("it has arrived");
        assert_eq!(kept.guid, arrived.guid, "{source:?} {target:?}");
        assert_eq!(files(&self.mounted("ta/fs")), self.files_of(&arrived.name));
    }

    /// The files of a snapshot, by a clone: to mount a target itself would be to write it.
    fn files_of(&self, snapshot: &str) -> Files {
        let look = format!("tb/look at {}", snapshot.replace(['/', '@'], " of "));
        self.run("zfs", &["clone", snapshot, &look]);
        files(&self.mounted(&look))
    }

    /// Pushes what must be refused for this reason, with these words, and leave alone what is
    /// there.
    fn refused(&self, to: &str, reason: &str, words: &[&str]) {
        let before = self.present(to);
        self.refused_with(to, &[], reason, words);
        assert_eq!(self.present(to), before);
    }

    fn refused_with(&self, to: &str, options: &[&str], reason: &str, words: &[&str]) {
        let output = self.push("zfs", "zfs:ta/fs", to, options);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains(&format!("\"reason\":\"{reason}\"")), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
    }

    /// What there is at and below a data set, with its guids.
    fn present(&self, dataset: &str) -> String {
        self.zfs(&format!("get -rHp -o name,value guid {dataset}"))
    }

    /// The snapshots of a data set, oldest first.
    fn snapshots(&self, dataset: &str) -> Vec<Snapshot> {
        let text = self.zfs(&format!("get -Hp -d 1 -o name,value createtxg,guid {dataset}"));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        let pairs = lines.chunks(2).map(|pair| (pair[0][0], pair[0][1], pair[1][1]));
        let mut found: Vec<Snapshot> = pairs
            .filter(|(name, ..)| name.contains('@'))
            .map(|(name, txg, guid)| Snapshot {
                txg: txg.parse().unwrap(),
                name: name.to_owned(),
                guid: guid.to_owned(),
            })
            .collect();
        found.sort_by_key(|snapshot| snapshot.txg);
        found
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // What is mounted is so for the daemon alone, and goes with it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[derive(Debug)]
struct Snapshot {
    txg: u64,
    name: String,
    guid: String,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Files by name, each with its permissions and the hash of its content.
type Files = BTreeMap<PathBuf, (u32, String)>;

/// Every file below this folder, but not what is mounted there.
fn files(root: &Path) -> Files {
    let device = fs::metadata(root).unwrap().dev();
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                folders.extend((metadata.dev() == device).then(|| path.clone()));
                "a folder".to_owned()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                blake3::hash(&fs::read(&path).unwrap()).to_string()
            };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (metadata.permissions().mode(), content));
        }
    }
    assert!(!found.is_empty(), "{} has no files", root.display());
    found
}

/// Files of many kinds, some of which the tests change later.
fn fill(root: &Path) {
    noise(&root.join("large"), 5_000_000, 1);
    noise(&root.join("removed later"), 300_000, 2);
    fs::create_dir_all(root.join("folder/below")).unwrap();
    noise(&root.join("folder/below/renamed later"), 200_000, 3);
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("small"), "some text\n").unwrap();
    fs::set_permissions(root.join("small"), PermissionsExt::from_mode(0o4711)).unwrap();
    symlink("folder/below", root.join("link")).unwrap();
    fs::hard_link(root.join("small"), root.join("small too")).unwrap();
}

#[test]
fn a_file_system_arrives_and_every_change_of_it() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    let root = fuse.mounted("ta/fs");
    fill(&root);
    fuse.arrives("tb/fs");

    noise(&root.join("added"), 1_000_000, 4);
    fs::remove_file(root.join("removed later")).unwrap();
    fs::rename(root.join("folder/below/renamed later"), root.join("renamed")).unwrap();
    let mut large = fs::read(root.join("large")).unwrap();
    large[2_000_000..2_100_000].fill(7);
    fs::write(root.join("large"), large).unwrap();
    fuse.arrives("tb/fs");

    fs::OpenOptions::new().write(true).open(root.join("large")).unwrap().set_len(70_001).unwrap();
    fs::rename(root.join("folder"), root.join("moved")).unwrap();
    fs::remove_dir(root.join("moved/below")).unwrap();
    fs::remove_file(root.join("small too")).unwrap();
    fuse.zfs("create ta/fs/below");
    fuse.zfs("snapshot ta/fs/below@newer");
    fuse.arrives("tb/fs");

    // Nothing has changed: a generation of its own still.
    fuse.arrives("tb/fs");
    assert_eq!(fuse.snapshots("tb/fs").len(), 4);
    // Another target begins anew, and what is kept for the first one stays.
    let output = fuse.push("zfs", "zfs:ta/fs", "tb/other", &["--latest"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(fuse.snapshots("tb/other").len(), 1);
    fuse.is_same("tb/other");
}

#[test]
fn a_target_that_diverged_is_refused_with_ways_out_that_work() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    let root = fuse.mounted("ta/fs");
    fill(&root);
    fuse.arrives("tb/fs");
    let first = fuse.snapshots("tb/fs").pop().unwrap().name;

    // This ZFS does not tell that it was written, but when a stream comes.
    fuse.zfs("mount tb/fs");
    fs::write(fuse.mounted("tb/fs").join("of the target"), "kept").unwrap();
    fs::write(root.join("small"), "other text\n").unwrap();
    let rollback = format!("zfs rollback {first}  # destroys what was written");
    let rename = "zfs rename tb/fs tb/fs-diverged";
    fuse.refused("tb/fs", "base-mismatch", &["was written since", &rollback, rename]);
    let kept = fs::read_to_string(fuse.mounted("tb/fs").join("of the target")).unwrap();
    assert_eq!(kept, "kept");

    fuse.zfs("snapshot tb/fs@own");
    let rollback = format!("zfs rollback -r {first}  # destroys the snapshot after it");
    fuse.refused("tb/fs", "base-mismatch", &["up to tb/fs@own", &rollback, rename]);
    // Mounted as it is: this ZFS trips over an unmount that is not over when `zfs` says so.
    fuse.zfs(&format!("rollback -r {first}"));
    fuse.arrives("tb/fs");
}

#[test]
fn a_target_with_another_past_is_refused() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    fill(&fuse.mounted("ta/fs"));
    fuse.zfs("create tb/foreign");
    fs::write(fuse.mounted("tb/foreign").join("file"), "theirs").unwrap();
    fuse.refused("tb/foreign", "target-foreign", &["tb/foreign exists and has no snapshot"]);
    fuse.zfs("snapshot tb/foreign@theirs");
    fuse.refused("tb/foreign", "base-mismatch", &["no snapshot in common", "tb/foreign-new"]);
    assert_eq!(fs::read_to_string(fuse.mounted("tb/foreign").join("file")).unwrap(), "theirs");
}

/// The root arrives whole, and a data set below it does not: what the root holds says nothing of
/// that one.
#[test]
fn a_tree_that_is_cut_off_below_its_root_is_completed() {
    let fuse = Fuse::start();
    for name in ["ta/fs", "ta/fs/a", "ta/fs/b", "ta/fs/b/c"] {
        fuse.zfs(&format!("create {name}"));
        fs::write(fuse.mounted(name).join("name"), name).unwrap();
    }
    let big = fuse.mounted("ta/fs/b").join("big");
    let push = |zfs: &str, code: i32| {
        let output = fuse.push(zfs, "zfs:ta/fs", "tb/copy", &["--with", "tree"]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    };
    let complete = || {
        let short = |name: &str| fuse.snapshots(name).pop().unwrap();
        let root = short("ta/fs").name;
        for below in ["", "/a", "/b", "/b/c"] {
            let (from, to) = (format!("ta/fs{below}"), format!("tb/copy{below}"));
            let (from, to) = (short(&from), short(&to));
            assert_eq!(from.guid, to.guid, "{from:?} {to:?}");
            // All are of one instant, and nothing piles up.
            assert_eq!(from.name.split_once('@').unwrap().1, root.split_once('@').unwrap().1);
            assert_eq!(fuse.snapshots(&format!("ta/fs{below}")).len(), 1);
            let files_there = files(&fuse.mounted(&format!("ta/fs{below}")));
            assert_eq!(files_there, fuse.files_of(&to.name));
        }
    };
    for seed in [1, 2] {
        // A first copy, then an increment.
        noise(&big, 3_000_000, seed);
        push("torn", 1);
        let of_b = fuse.present("tb/copy");
        let newest = fuse.snapshots("tb/copy").pop().unwrap();
        assert!(!of_b.contains(&format!("tb/copy/b@{}", newest.name.split_once('@').unwrap().1)));
        push("zfs", 0);
        complete();
    }
    // And what was cut off twice in a row.
    noise(&big, 3_000_000, 3);
    push("torn", 1);
    push("torn", 1);
    push("zfs", 0);
    complete();
}

#[test]
fn recorded_streams_arrive() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    fuse.zfs("create ta/fs/below");
    for folder in ["ta/fs", "ta/fs/below"] {
        fill(&fuse.mounted(folder));
    }
    fuse.zfs("snapshot -r ta/fs@one");
    noise(&fuse.mounted("ta/fs/below").join("large"), 3_000_000, 7);
    fuse.zfs("snapshot -r ta/fs@two");
    for (number, send) in ["-R ta/fs@one", "-R -I @one ta/fs@two"].into_iter().enumerate() {
        let record = format!("'{}' send {send} > stream", fuse.path("zfs").display());
        let mut shell = Command::new("sh");
        let recorded = shell.args(["-c", &record]).current_dir(fuse.folder.path()).output();
        assert!(recorded.as_ref().unwrap().status.success(), "{}", text(&recorded.unwrap()));
        for _again in 0..2 {
            let output = fuse.push("zfs", "zstream:stream", "tb/copy", &[]);
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        }
        let name = ["one", "two"][number];
        for child in ["", "/below"] {
            let (from, to) = (format!("ta/fs{child}@{name}"), format!("tb/copy{child}@{name}"));
            let guid = |point: &str| fuse.zfs(&format!("get -Hp -o value guid {point}"));
            assert_eq!(guid(&from), guid(&to));
            if name == "two" {
                assert_eq!(files(&fuse.mounted(&format!("ta/fs{child}"))), fuse.files_of(&to));
            }
        }
    }
}

#[test]
fn a_stream_that_is_cut_off_starts_anew() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    let root = fuse.mounted("ta/fs");
    fill(&root);
    for (seed, copy) in [(5, "the first copy"), (6, "an increment")] {
        noise(&root.join("large"), 4_000_000, seed);
        let before = fuse.present("tb");
        let output = fuse.push("cut", "zfs:ta/fs", "tb/fs", &[]);
        assert_eq!(output.status.code(), Some(1), "{copy}: {}", text(&output));
        assert_eq!(fuse.present("tb"), before, "{copy} left something behind");
        fuse.arrives("tb/fs");
    }
}

/// What a run that failed left goes, as where ZFS has bookmarks.
#[test]
fn snapshots_of_runs_that_fail_again_and_again_do_not_pile_up() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    let root = fuse.mounted("ta/fs");
    fill(&root);
    let own = || {
        let all = fuse.snapshots("ta/fs").into_iter();
        all.filter(|one| one.name.contains("@driftline-")).collect::<Vec<_>>()
    };
    for copy in ["the first copy", "an increment"] {
        let base = own();
        for seed in 10..15 {
            noise(&root.join("large"), 4_000_000, seed);
            let output = fuse.push("cut", "zfs:ta/fs", "tb/fs", &[]);
            assert_eq!(output.status.code(), Some(1), "{copy}: {}", text(&output));
            let left = own();
            assert!(left.len() <= 3, "{copy}: {left:?}");
            // What the target holds is what the next increment starts from.
            assert!(base.iter().all(|one| left[0].guid == one.guid), "{copy}: {left:?}");
        }
        fuse.arrives("tb/fs");
    }
}

/// This ZFS takes one snapshot at once, or those of a whole tree.
#[test]
fn a_tree_is_pushed_one_by_one_from_one_instant() {
    let fuse = Fuse::start();
    for name in ["ta/fs", "ta/fs/a", "ta/fs/a/b", "ta/fs/left-out"] {
        fuse.run("zfs", &["create", name]);
        fs::write(fuse.mounted(name).join("name"), name).unwrap();
    }
    for count in 1..=2 {
        let options = ["-r", "--exclude", "left*"];
        let output = fuse.push("zfs", "zfs:ta/fs", "tb/copy", &options);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        for below in ["", "/a", "/a/b"] {
            let (from, to) = (format!("ta/fs{below}"), format!("tb/copy{below}"));
            let (source, target) = (fuse.snapshots(&from), fuse.snapshots(&to));
            assert_eq!((source.len(), target.len()), (1, count), "{source:?} {target:?}");
            let arrived = target.last().unwrap();
            assert_eq!(source[0].guid, arrived.guid);
            assert_eq!(source[0].txg, fuse.snapshots("ta/fs")[0].txg, "of one instant");
            assert_eq!(files(&fuse.mounted(&from)), fuse.files_of(&arrived.name));
        }
        assert!(fuse.snapshots("ta/fs/left-out").is_empty(), "what takes no part keeps nothing");
    }
}

#[test]
fn what_this_zfs_cannot_do_is_said_in_one_sentence() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    fill(&fuse.mounted("ta/fs"));
    for option in [["--set-property", "compression=on"], ["--exclude-property", "atime"]] {
        fuse.refused_with(
            "tb/fs",
            &option,
            "unsupported",
            &["run `zfs set` on tb/fs", "nothing was written"],
        );
    }
    fuse.arrives("tb/fs");
}

#[test]
fn a_data_set_of_a_tree_that_was_written_is_named() {
    let fuse = Fuse::start();
    fuse.zfs("create ta/fs");
    fuse.zfs("create ta/fs/a");
    let push = || fuse.push("zfs", "zfs:ta/fs", "tb/copy", &["--with", "tree"]);
    let first = push();
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
    fuse.zfs("mount tb/copy");
    fuse.zfs("mount tb/copy/a");
    fs::write(fuse.mounted("tb/copy/a").join("of the target"), "kept").unwrap();
    fs::write(fuse.mounted("ta/fs/a").join("new"), "new").unwrap();
    let refused = push();
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    let newest = fuse.snapshots("tb/copy/a").pop().unwrap().name;
    let rollback = format!("zfs rollback {newest}");
    for word in ["tb/copy/a was written since", &rollback, "zfs rename tb/copy/a "] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}
