//! A replica on a volume of this machine's ZFS: `zfs` makes it, resizes it, locks it, and keeps
//! its generations.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use driftline_extent::{Committed, Generation};
use driftline_target::{Keeper, Kept};
use driftline_zfs::{
    DatasetName, Point, PointName, device_of,
    host::{Zfs, ZfsError},
    wait_for_device,
};

/// The property of a snapshot that says which generation of the source it is.
const PROPERTY: &str = "driftline:generation";

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
pub(crate) struct ZvolKeeper {
    zfs: Zfs,
    name: DatasetName,
    /// From where on data sets above it may be made.
    root: Option<DatasetName>,
}

impl ZvolKeeper {
    pub(crate) const fn new(zfs: Zfs, name: DatasetName, root: Option<DatasetName>) -> Self {
        Self { zfs, name, root }
    }

    fn set(&self, property: &str) -> io::Result<()> {
        self.zfs.run(["set", property, self.name.as_str()]).map(drop).map_err(in_zfs)
    }

    /// The newest snapshot that was kept here, and its generation. Other people's may lie
    /// between.
    fn newest(&self) -> io::Result<Option<(Point, Generation)>> {
        let args = ["get", "-Hp", "-d", "1", "-t", "snapshot", "-s", "local", "-o", "name,value"];
        let text = self.zfs.run(args.iter().chain(&[PROPERTY, self.name.as_str()]));
        let text = text.map_err(in_zfs)?;
        let points = self.zfs.points(&self.name).map_err(in_zfs)?;
        let mut newest: Option<(Point, Generation)> = None;
        for line in text.lines() {
            let kept = line.split_once('\t').and_then(|(name, value)| {
                Some((name.parse::<PointName>().ok()?, value.parse::<Generation>().ok()?))
            });
            let Some((name, generation)) = kept else {
                return Err(io::Error::other(format!("{PROPERTY} makes no sense here: {line:?}")));
            };
            let Some(point) = points.iter().find(|point| point.name == name) else { continue };
            if newest.as_ref().is_none_or(|(other, _)| other.createtxg < point.createtxg) {
                newest = Some((point.clone(), generation));
            }
        }
        Ok(newest)
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

    /// A name for the next snapshot. A generation may be kept again, after a full copy.
    fn next_name(&self, generation: &Generation) -> io::Result<PointName> {
        let points = self.zfs.points(&self.name).map_err(in_zfs)?;
        let name = format!("{PREFIX}-{generation}");
        let names = std::iter::once(name.clone()).chain((2..).map(|n: u64| format!("{name}.{n}")));
        for name in names {
            let name = self.name.snapshot(&name).map_err(io::Error::other)?;
            if points.iter().all(|point| point.name != name) {
                return Ok(name);
            }
        }
        unreachable!("there are more numbers than snapshots")
    }
}

impl Keeper for ZvolKeeper {
    fn create(&mut self, size: u64) -> io::Result<()> {
        if let Some(root) = &self.root {
            self.zfs.make_parents(&self.name, root).map_err(in_zfs)?;
        }
        let size = size.max(1).next_multiple_of(BLOCK_LEN).to_string();
        let block_len = format!("volblocksize={BLOCK_LEN}");
        let args = ["create", "-s", "-V", &size, "-o", "readonly=on", "-o", &block_len];
        self.zfs.run(args.iter().chain(&[self.name.as_str()])).map_err(in_zfs)?;
        // Without compression, zeros that are written take space.
        let compression = self.zfs.property(self.name.clone(), "compression").map_err(in_zfs)?;
        if compression == "off" {
            self.set("compression=on")?;
        }
        let device = device_of(&self.name);
        wait_for_device(&device, LINK_WAIT_MAX).map_err(|error| {
            io::Error::other(format!("the device {} does not appear: {error}", device.display()))
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

    fn keep(&mut self, committed: &Committed) -> io::Result<()> {
        if let Some((point, generation)) = self.newest()?
            && generation == committed.generation
            && !self.is_written(&point.name)?
        {
            return Ok(());
        }
        let name = self.next_name(&committed.generation)?.to_string();
        let property = format!("{PROPERTY}={}", committed.generation);
        self.zfs.run(["snapshot", "-o", &property, &name]).map(drop).map_err(in_zfs)
    }

    fn kept(&self) -> io::Result<Kept> {
        let Some((point, generation)) = self.newest()? else {
            return Ok(Kept { generation: None, written: false });
        };
        let written = self.is_written(&point.name)?;
        if written {
            tracing::warn!(
                volume = %self.name, since = %point.name,
                "ZFS says that this replica was written since: all of it is compared"
            );
        }
        Ok(Kept { generation: Some(generation), written })
    }
}

fn in_zfs(error: ZfsError) -> io::Error {
    io::Error::other(error)
}
