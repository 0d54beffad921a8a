//! A replica on a volume of this machine's ZFS: `zfs` makes it, resizes it, locks it, and keeps
//! its generations.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use driftline_extent::{Committed, Generation};
use driftline_target::{DeviceManager, Kept};
use driftline_zfs::{
    DatasetName, Point, PointName, device_of,
    host::{Zfs, ZfsError},
    wait_for_device,
};

/// The property of a snapshot that says which generation of the source it is.
const PROPERTY: &str = "driftline:generation";

/// The property of a volume that says which of its snapshots was kept last: what comes after the
/// `@`. It is a note, and what it leads to is looked at.
const NEWEST: &str = "driftline:newest";

/// What is asked of a snapshot.
const COLUMNS: &str = "driftline:generation,createtxg";
/// The property of a volume that says that it was made for a replica, and its value.
const MADE: &str = "driftline:made";
const MADE_HERE: &str = "replica";

/// What the snapshots of a replica begin with.
const PREFIX: &str = "driftline";

/// Block size of a volume that is made: what OpenZFS has made since 2.2, for every version.
const BLOCK_LEN: u64 = 16 << 10;

/// How long udev may take to make a device's link.
const LINK_WAIT_MAX: Duration = Duration::from_secs(30);

/// Where the books of replicas on volumes are, if nothing else is said.
const STATE_DIR: &str = "/var/lib/driftline/zvol";

/// Where the books of the replica on this volume are. Nothing can be below a volume, so no two of
/// them share a folder.
pub(crate) fn state_dir_of(name: &DatasetName) -> PathBuf {
    Path::new(STATE_DIR).join(name.as_str())
}

/// The volumes that have books at their usual place, by name, and where those are.
pub(crate) fn all_books(depth: usize) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    walk(Path::new(STATE_DIR), depth, &mut |dir| {
        if let Some(name) = dir.strip_prefix(STATE_DIR).ok().and_then(Path::to_str) {
            found.push((name.to_owned(), dir.to_owned()));
        }
    });
    found
}

/// Tells of each folder at or below `dir` that has a state in it.
fn walk(dir: &Path, depth: usize, each: &mut dyn FnMut(&Path)) {
    if dir.join("state").is_file() {
        each(dir);
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok).filter(|_| depth > 0) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, each);
        }
    }
}

/// Keeps the volume of this name.
#[derive(Debug)]
pub(crate) struct ZvolManager {
    zfs: Zfs,
    name: DatasetName,
    /// From where on data sets above it may be made.
    root: Option<DatasetName>,
}

impl ZvolManager {
    pub(crate) const fn new(zfs: Zfs, name: DatasetName, root: Option<DatasetName>) -> Self {
        Self { zfs, name, root }
    }

    fn set(&self, property: &str) -> io::Result<()> {
        self.zfs.run(["set", property, self.name.as_str()]).map(drop).map_err(in_zfs)
    }

    /// The newest snapshot that was kept here, and its generation. Other people's may lie
    /// between. It is noted at the volume, as a replica may have thousands of them.
    pub(crate) fn newest(&self) -> io::Result<Option<KeptAs>> {
        let noted = ["get", "-Hp", "-s", "local", "-o", "value", NEWEST, self.name.as_str()];
        let noted = self.zfs.run(noted).map_err(in_zfs)?;
        let noted = self.name.snapshot(noted.trim_end_matches('\n'));
        if let Ok(snapshot) = noted
            && self.zfs.exists(snapshot.clone()).map_err(in_zfs)?
            && let Some(kept) = self.kept_at(&snapshot)?
        {
            return Ok(Some(kept));
        }
        self.newest_of_all()
    }

    /// What is kept as this snapshot, if it is one of ours.
    fn kept_at(&self, snapshot: &PointName) -> io::Result<Option<KeptAs>> {
        let name = snapshot.to_string();
        let args = ["get", "-Hp", "-o", "name,property,value,source", COLUMNS, &name];
        Ok(parse_kept(&self.zfs.run(args).map_err(in_zfs)?)?.pop())
    }

    /// The same among all snapshots there are, in one listing: of a replica that an earlier version
    /// has made, or whose newest snapshot was destroyed.
    fn newest_of_all(&self) -> io::Result<Option<KeptAs>> {
        let args = ["get", "-Hp", "-d", "1", "-t", "snapshot", "-o", "name,property,value,source"];
        let of = [COLUMNS, self.name.as_str()];
        let kept = parse_kept(&self.zfs.run(args.iter().chain(&of)).map_err(in_zfs)?)?;
        Ok(kept.into_iter().max_by_key(|kept| kept.createtxg))
    }

    /// Whether anything was written since this snapshot.
    fn is_written(&self, since: &PointName) -> io::Result<bool> {
        let property = format!("written@{}", since.short());
        let bytes = self.zfs.property(self.name.clone(), &property).map_err(in_zfs)?;
        let bytes: u64 = bytes.parse().map_err(|_| {
            io::Error::other(format!("{property} of {} is {bytes:?} and no number", self.name))
        })?;
        Ok(bytes > 0)
    }

    /// Makes the volume, unless an earlier run has and did not see its device.
    fn make(&self, size: u64) -> io::Result<()> {
        if self.zfs.exists(self.name.clone()).map_err(in_zfs)? {
            let made = self.zfs.property(self.name.clone(), MADE).map_err(in_zfs)?;
            let points = self.zfs.points(&self.name).map_err(in_zfs)?;
            if made != MADE_HERE || points.iter().any(Point::is_snapshot) {
                return Err(io::Error::other(format!(
                    "{} exists, and was not made for this replica, or holds one already; its \
                     device does not appear: see `zfs get volmode {0}`",
                    self.name
                )));
            }
            let volmode = self.zfs.property(self.name.clone(), "volmode").map_err(in_zfs)?;
            return if volmode == "none" { self.set("volmode=dev") } else { Ok(()) };
        }
        let above = self.name.parent().map(|above| self.zfs.property(above, "volmode"));
        // An old ZFS does not know it.
        let is_hidden = above.is_some_and(|volmode| volmode.is_ok_and(|mode| mode == "none"));
        let args = create_args(size, is_hidden);
        self.zfs
            .run(args.iter().map(String::as_str).chain([self.name.as_str()]))
            .map_err(in_zfs)?;
        if is_hidden {
            tracing::info!(
                volume = %self.name,
                "the data set above has volmode=none, so the new volume gets volmode=dev: \
                 Driftline writes through its device"
            );
        }
        Ok(())
    }

    /// A name for the next snapshot, which a stop may have left without a note of it. A generation
    /// may be kept again, after a full copy.
    fn next(&self, generation: &Generation, after: Option<u64>) -> io::Result<Next> {
        let name = format!("{PREFIX}-{generation}");
        let names = std::iter::once(name.clone()).chain((2..).map(|n: u64| format!("{name}.{n}")));
        for name in names {
            let name = self.name.snapshot(&name).map_err(io::Error::other)?;
            if !self.zfs.exists(name.clone()).map_err(in_zfs)? {
                return Ok(Next::Take(name));
            }
            let is_it = |kept: KeptAs| {
                kept.generation == *generation && after.is_none_or(|txg| kept.createtxg > txg)
            };
            if self.kept_at(&name)?.is_some_and(is_it) && !self.is_written(&name)? {
                return Ok(Next::IsThere(name));
            }
        }
        unreachable!("there are more numbers than snapshots")
    }
}

/// A snapshot that was kept here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeptAs {
    pub(crate) name: PointName,
    pub(crate) generation: Generation,
    createtxg: u64,
}

/// What is to be done for the next snapshot.
enum Next {
    Take(PointName),
    IsThere(PointName),
}

/// Reads lines of name, property, value and source: those snapshots that have the property of ours
/// by themselves.
fn parse_kept(text: &str) -> io::Result<Vec<KeptAs>> {
    let mut found: BTreeMap<&str, (Option<&str>, Option<&str>)> = BTreeMap::new();
    for line in text.lines() {
        let [name, property, value, source] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(io::Error::other(format!("zfs get printed what makes no sense: {line:?}")));
        };
        let row = found.entry(name).or_default();
        match property {
            "createtxg" => row.1 = Some(value),
            PROPERTY if source == "local" => row.0 = Some(value),
            _ => {}
        }
    }
    let ours = found.into_iter().filter_map(|(name, (kept, txg))| Some((name, kept?, txg)));
    ours.map(|(name, kept, txg)| {
        let read = || {
            let createtxg = txg?.parse().ok()?;
            Some(KeptAs { name: name.parse().ok()?, generation: kept.parse().ok()?, createtxg })
        };
        read().ok_or_else(|| {
            io::Error::other(format!("{PROPERTY} of {name} makes no sense here: {kept:?}"))
        })
    })
    .collect()
}

impl DeviceManager for ZvolManager {
    fn create(&mut self, size: u64) -> io::Result<()> {
        if let Some(root) = &self.root {
            self.zfs.make_parents(&self.name, root).map_err(in_zfs)?;
        }
        self.make(size)?;
        // Without compression, zeros that are written take space.
        let compression = self.zfs.property(self.name.clone(), "compression").map_err(in_zfs)?;
        if compression == "off" {
            self.set("compression=on")?;
        }
        let device = device_of(&self.name);
        wait_for_device(&device, LINK_WAIT_MAX).map_err(|error| {
            io::Error::other(format!(
                "the device {} does not appear: {error}; see `zfs get volmode {}` and `udevadm \
                 monitor`, and run again, which goes on with the volume that was made",
                device.display(),
                self.name
            ))
        })
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        let property = |name| {
            let value = self.zfs.property(self.name.clone(), name).map_err(in_zfs)?;
            value.parse::<u64>().map_err(|_| {
                io::Error::other(format!("{name} of {} is {value:?} and no number", self.name))
            })
        };
        let size = size.max(1).next_multiple_of(property("volblocksize")?.max(1));
        if property("volsize")? == size {
            return Ok(());
        }
        self.set(&format!("volsize={size}"))
    }

    fn unlock(&mut self) -> io::Result<()> {
        self.set("readonly=off")
    }

    fn lock(&mut self) -> io::Result<()> {
        self.set("readonly=on")
    }

    fn is_locked(&self) -> io::Result<bool> {
        let property = self.zfs.property(self.name.clone(), "readonly").map_err(in_zfs)?;
        Ok(property == "on")
    }

    fn keep(&mut self, committed: &Committed) -> io::Result<()> {
        let newest = self.newest()?;
        if let Some(kept) = &newest
            && kept.generation == committed.generation
            && !self.is_written(&kept.name)?
        {
            return Ok(());
        }
        let name = match self.next(&committed.generation, newest.map(|kept| kept.createtxg))? {
            Next::IsThere(name) => name,
            Next::Take(name) => {
                let property = format!("{PROPERTY}={}", committed.generation);
                let args = ["snapshot", "-o", &property, &name.to_string()].map(str::to_owned);
                self.zfs.run(args).map_err(in_zfs)?;
                name
            }
        };
        self.set(&format!("{NEWEST}={}", name.short()))
    }

    fn available(&self) -> io::Result<Option<u64>> {
        let bytes = self.zfs.property(self.name.clone(), "available").map_err(in_zfs)?;
        Ok(bytes.parse().ok())
    }

    fn kept(&self) -> io::Result<Kept> {
        let Some(kept) = self.newest()? else {
            return Ok(Kept { generation: None, written: false });
        };
        let written = self.is_written(&kept.name)?;
        if written {
            tracing::warn!(
                volume = %self.name, since = %kept.name,
                "ZFS says that something wrote to this replica: comparing all of it"
            );
        }
        Ok(Kept { generation: Some(kept.generation), written })
    }
}

/// The arguments of `zfs` for a volume of this size, but for its name.
fn create_args(size: u64, shown: bool) -> Vec<String> {
    let size = size.max(1).next_multiple_of(BLOCK_LEN).to_string();
    let (block_len, made) = (format!("volblocksize={BLOCK_LEN}"), format!("{MADE}={MADE_HERE}"));
    let mut args = vec!["create", "-s", "-V", &size, "-o", "readonly=on", "-o", &block_len];
    args.extend(["-o", &made]);
    if shown {
        args.extend(["-o", "volmode=dev"]);
    }
    args.into_iter().map(str::to_owned).collect()
}

fn in_zfs(error: ZfsError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use driftline_extent::Root;
    use tempfile::TempDir;

    use super::*;

    /// A `zfs` that knows the snapshots in its file `points` (name, generation, source of that,
    /// createtxg) and counts in `asked` what it prints lines of.
    const FAKE: &str = r##"#!/bin/bash
cd "$(dirname "$0")" || exit 99
exec 9> lock; flock 9
for last; do :; done
printf '%s\n' "$*" >> calls
lines() { awk -F '\t' '{ print $1 "\tdriftline:generation\t" $2 "\t" $3; print $1 "\tcreatetxg\t" $4 "\t-" }' | tee -a asked; }
case "$*" in
*driftline:newest\ *) cat newest 2> /dev/null || true ;;
"list -H -o name -t snapshot"*) grep -q "^$last	" points || { echo "cannot open: dataset does not exist" >&2; exit 1; }; echo "$last" >> asked ;;
"get -Hp -d 1"*) lines < points ;;
"get -Hp -o name,property"*) grep "^$last	" points | lines ;;
"get -Hp -o value written@"*) cat written ;;
"get -Hp -o value available "*) echo 12345 ;;
"snapshot -o "*) printf '%s\t%s\tlocal\t%s\n' "$last" "${3#*=}" "$(($(wc -l < points) + 100))" >> points ;;
"set driftline:newest="*) echo "${2#*=}" > newest ;;
*) echo "unknown: $*" >&2; exit 98 ;;
esac
"##;

    fn fake() -> (TempDir, ZvolManager) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("zfs");
        fs::write(&path, FAKE).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        // Of other people's, and one that has the property from above it.
        let points = "back/v@theirs\t-\t-\t3\nback/v@daily\tzfs:9\tinherited from back\t999999\n";
        fs::write(folder.path().join("points"), points).unwrap();
        fs::write(folder.path().join("written"), "0\n").unwrap();
        let manager = ZvolManager::new(Zfs::with_command(path), "back/v".parse().unwrap(), None);
        (folder, manager)
    }

    fn committed(guid: u64) -> Committed {
        let (generation, root) = (Generation::zfs(guid), Root([0; 32]));
        Committed { generation, root, size: 1 << 20, zeroed: None }
    }

    /// How many properties were printed since this was asked.
    fn asked(folder: &TempDir) -> usize {
        let path = folder.path().join("asked");
        let count = fs::read_to_string(&path).unwrap_or_default().lines().count();
        fs::write(path, "").unwrap();
        count
    }

    #[test]
    fn what_is_asked_does_not_grow_with_what_is_kept() {
        let (folder, mut manager) = fake();
        let mut counts = Vec::new();
        for guid in 1..=40 {
            manager.keep(&committed(guid)).unwrap();
            let kept = manager.kept().unwrap();
            assert_eq!(kept, Kept { generation: Some(Generation::zfs(guid)), written: false });
            counts.push(asked(&folder));
        }
        assert_eq!(counts[1..].iter().min(), counts[1..].iter().max(), "{counts:?}");
        let points = fs::read_to_string(folder.path().join("points")).unwrap();
        assert_eq!(points.lines().count(), 42);
        assert_eq!(manager.available().unwrap(), Some(12345));
        // Again, it is there.
        manager.keep(&committed(40)).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("points")).unwrap(), points);
    }

    #[test]
    fn what_a_stop_or_another_version_left_without_a_note_is_found() {
        let (folder, mut manager) = fake();
        let file = |name: &str| folder.path().join(name);
        let points = || fs::read_to_string(file("points")).unwrap();
        for guid in [1, 2] {
            manager.keep(&committed(guid)).unwrap();
        }
        // No note at all, and one that leads to what was destroyed.
        for note in [None, Some("driftline-zfs:77\n")] {
            match note {
                Some(note) => fs::write(file("newest"), note).unwrap(),
                None => fs::remove_file(file("newest")).unwrap(),
            }
            assert_eq!(manager.kept().unwrap().generation, Some(Generation::zfs(2)));
        }
        // The snapshot was taken, and the note of it was not.
        manager.keep(&committed(3)).unwrap();
        let note = fs::read_to_string(file("newest")).unwrap();
        manager.keep(&committed(4)).unwrap();
        fs::write(file("newest"), note).unwrap();
        let before = points();
        manager.keep(&committed(4)).unwrap();
        assert_eq!(points(), before, "it was taken twice");
        assert_eq!(manager.kept().unwrap().generation, Some(Generation::zfs(4)));
        // The same generation again, after something was written: another snapshot of it.
        fs::write(file("written"), "512\n").unwrap();
        manager.keep(&committed(4)).unwrap();
        assert_eq!(points().lines().count(), before.lines().count() + 1);
        assert!(manager.kept().unwrap().written);
    }

    #[test]
    fn a_volume_below_one_without_devices_gets_one() {
        let usual = create_args(1, false).join(" ");
        let made =
            "create -s -V 16384 -o readonly=on -o volblocksize=16384 -o driftline:made=replica";
        assert_eq!(usual, made);
        assert_eq!(
            create_args(16385, true).join(" "),
            made.replace("-V 16384", "-V 32768") + " -o volmode=dev"
        );
    }
}
