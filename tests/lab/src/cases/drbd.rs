//! DRBD 8.4 on every kind of backing store: what its metadata tell of real changes.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    lab::{Lab, Pair, TARGET_ADDRESS},
    machine::{Machine, Output},
    replication::{Report, allow_push},
};

/// A block of the bitmap, and of `blocks`.
pub(super) const BLOCK_LEN: u64 = 4096;

/// What a tracker's backing device is cut from.
#[derive(Clone, Copy)]
pub(super) enum Store {
    /// A thin logical volume.
    Thin,
    /// A thick one, whose snapshots copy on write.
    Thick,
    /// A zvol.
    Zvol,
}

impl Store {
    fn create(self, name: &str) -> String {
        match self {
            Self::Thin => format!("lvcreate -q --yes -V 96M --thinpool lab/thin -n {name}"),
            Self::Thick => format!("lvcreate -q --yes --wipesignatures y -L 96M -n {name} lab"),
            Self::Zvol => {
                format!("zfs create -s -V 96M -o snapdev=visible tank/{name}; udevadm settle")
            }
        }
    }

    pub(super) fn backing(self, name: &str) -> String {
        match self {
            Self::Thin | Self::Thick => format!("/dev/lab/{name}"),
            Self::Zvol => format!("/dev/zvol/tank/{name}"),
        }
    }

    pub(super) fn take_snapshot(self, name: &str, number: u32) -> String {
        match self {
            Self::Thin => format!("lvcreate -q -s -kn -ay -n {name}-s{number} lab/{name}"),
            Self::Thick => format!("lvcreate -q -s -L 96M -n {name}-s{number} lab/{name}"),
            Self::Zvol => format!("zfs snapshot tank/{name}@s{number}"),
        }
    }

    pub(super) fn snapshot(self, name: &str, number: u32) -> String {
        match self {
            Self::Thin | Self::Thick => format!("/dev/lab/{name}-s{number}"),
            Self::Zvol => format!("/dev/zvol/tank/{name}@s{number}"),
        }
    }

    fn remove(self, name: &str) -> String {
        match self {
            Self::Thin | Self::Thick => format!(
                "lvremove -q --yes $(lvs --noheadings -o lv_full_name lab | grep -w {name})"
            ),
            // The last to look at the device may not have closed it yet.
            Self::Zvol => format!("until zfs destroy -r tank/{name}; do sleep 0.2; done"),
        }
    }
}

/// A DRBD resource without a peer, whose bitmap and activity log collect what changes.
pub(super) struct Tracker {
    pub(super) name: &'static str,
    pub(super) minor: u32,
    pub(super) store: Store,
    /// Number of the newest snapshot; 0 is none.
    snapshot: u32,
}

impl Tracker {
    pub(super) fn new(
        source: &Machine,
        name: &'static str,
        minor: u32,
        store: Store,
    ) -> Result<Self> {
        source.sh(&store.create(name))?;
        let backing = store.backing(name);
        source.sh(&format!("/lab/provision/drbd {name} {minor} {backing}"))?;
        Ok(Self { name, minor, store, snapshot: 0 })
    }

    pub(super) fn device(&self) -> String {
        format!("/dev/drbd{}", self.minor)
    }

    /// Takes an atomic snapshot of data and metadata and starts the next interval: while no
    /// write is on its way, and with a timer that resumes whatever happens here.
    fn rotate(&mut self, source: &Machine) -> Result<()> {
        self.snapshot += 1;
        let minor = self.minor;
        let take_snapshot = self.store.take_snapshot(self.name, self.snapshot);
        source.sh(&format!(
            "if pvs -a --noheadings -o pv_name | grep /dev/drbd; then exit 1; fi
             systemd-run -q --collect --unit=resume-io --on-active=60 drbdsetup resume-io {minor}
             drbdsetup suspend-io {minor}
             until grep -A1 '^ *{minor}:' /proc/drbd | grep -q ' lo:0 '; do sleep 0.05; done
             {take_snapshot}
             drbdsetup new-current-uuid {minor} --clear-bitmap
             drbdsetup resume-io {minor}
             systemctl stop resume-io.timer
             udevadm settle"
        ))?;
        Ok(())
    }

    fn source_name(&self) -> String {
        format!("drbdmeta:{}", self.store.snapshot(self.name, self.snapshot))
    }

    fn map(&self, source: &Machine) -> Result<Map> {
        Map::of(source, &self.source_name())
    }

    /// The blocks of data that differ between the last two snapshots, found by comparing them.
    fn truth(&self, source: &Machine, size: u64) -> Result<Vec<Range<u64>>> {
        let one = self.store.snapshot(self.name, self.snapshot - 1);
        let other = self.store.snapshot(self.name, self.snapshot);
        differing(source, &one, &other, size)
    }

    fn push(&self, source: &Machine) -> Result<Output> {
        source.run(&format!(
            "export DRIFTLINE_PEER=$(cat /lab/keys/target.pub)
             driftline push --json --quiet --rotated {} {}@{TARGET_ADDRESS}",
            self.source_name(),
            self.name
        ))
    }

    fn is_equal(&self, pair: &Pair<'_>, size: u64) -> Result<()> {
        let snapshot = self.store.snapshot(self.name, self.snapshot);
        let expected = pair.source.sh(&format!("head -c {size} {snapshot} | sha256sum"))?;
        let actual = pair.target.sh(&format!("sha256sum < /srv/{}.img", self.name))?;
        ensure!(expected == actual, "{snapshot}: the replica differs");
        Ok(())
    }

    pub(super) fn remove(self, lab: &mut Lab) -> Result<()> {
        let name = self.name;
        let pair = lab.pair()?;
        pair.source.sh(&format!(
            "drbdadm down {name}; rm /etc/drbd.d/{name}.res; udevadm settle; {}",
            self.store.remove(name)
        ))?;
        pair.target.sh(&format!("rm -rf /srv/{name}.img /srv/{name}.img.driftline"))?;
        Ok(())
    }
}

/// The blocks of data that differ between two images of a volume of `size` bytes.
pub(super) fn differing(
    source: &Machine,
    one: &str,
    other: &str,
    size: u64,
) -> Result<Vec<Range<u64>>> {
    let text = source.sh(&format!("/lab/blocks diff {one} {other}"))?;
    let end = size / BLOCK_LEN;
    let runs = text.lines().skip(1).map(|line| {
        let (first, last) = line.split_once("..").context("a run of blocks")?;
        Ok(first.parse::<u64>()?.min(end)..last.parse::<u64>()?.min(end))
    });
    let runs: Vec<Range<u64>> = runs.collect::<Result<_>>()?;
    Ok(runs.into_iter().filter(|run| !run.is_empty()).collect())
}

/// What `driftline map --json` printed.
pub(super) struct Map(pub(super) Value);

impl Map {
    /// The map of a source.
    pub(super) fn of(source: &Machine, place: &str) -> Result<Self> {
        let text = source.sh(&format!("driftline map --json --quiet {place}"))?;
        Ok(Self(serde_json::from_str(&text).with_context(|| text.clone())?))
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.0["size"].as_u64().context("a map has a size")
    }

    /// The first block of `truth` that the map does not name.
    pub(super) fn misses(&self, truth: &[Range<u64>]) -> Option<u64> {
        let extents = self.0["changed"].as_array().map(Vec::as_slice).unwrap_or_default();
        let extents: Vec<Range<u64>> = extents
            .iter()
            .map(|extent| {
                let offset = extent["offset"].as_u64().unwrap_or_default();
                offset..offset + extent["length"].as_u64().unwrap_or_default()
            })
            .collect();
        let blocks = truth.iter().cloned().flatten();
        blocks.into_iter().find(|block| {
            let (start, end) = (block * BLOCK_LEN, (block + 1) * BLOCK_LEN);
            !extents.iter().any(|extent| extent.start <= start && end <= extent.end)
        })
    }
}

/// Known writes, then writers that never stop: the map names every block that really changed,
/// and the replica is the snapshot.
pub(super) fn tracker(lab: &mut Lab, name: &'static str, minor: u32, store: Store) -> Result<()> {
    let pair = lab.pair()?;
    let mut tracker = Tracker::new(pair.source, name, minor, store)?;
    allow_push(&pair, name, &format!("/srv/{name}.img"))?;
    let device = tracker.device();
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..2048"))?;
    tracker.rotate(pair.source)?;
    let size = tracker.map(pair.source)?.size()?;
    let report = Report::of(&tracker.push(pair.source)?)?;
    ensure!(report.kind() == "full", "the first copy is {}", report.kind());
    tracker.is_equal(&pair, size)?;

    let known = [256..257, 1280..1281, 10240..11008, 19712..19713];
    let arguments = known.clone().map(|run| format!("{}..{}", run.start, run.end)).join(" ");
    pair.source.sh(&format!("/lab/blocks write {device} 2 {arguments}"))?;
    tracker.rotate(pair.source)?;
    let truth = tracker.truth(pair.source, size)?;
    ensure!(truth == known, "what was written is not what differs: {truth:?}");
    proves(&tracker, &pair, size, &truth)?;

    pair.source.sh(&format!(
        "systemd-run -q --unit=writer /lab/blocks churn {device} 7 --writers 8 --pause-ms 100"
    ))?;
    for _ in 0..3 {
        pair.source.sh("sleep 2")?;
        tracker.rotate(pair.source)?;
        let truth = tracker.truth(pair.source, size)?;
        ensure!(!truth.is_empty(), "nothing was written");
        proves(&tracker, &pair, size, &truth)?;
    }
    pair.source.sh("systemctl is-active --quiet writer; systemctl stop writer")?;
    tracker.remove(lab)
}

/// The map of the newest snapshot covers the truth, and its increment makes the replica equal.
fn proves(tracker: &Tracker, pair: &Pair<'_>, size: u64, truth: &[Range<u64>]) -> Result<()> {
    let map = tracker.map(pair.source)?;
    let changed: u64 = truth.iter().map(|run| run.end - run.start).sum();
    let missed = map.misses(truth);
    ensure!(missed.is_none(), "of {changed} blocks the map misses {missed:?}: {}", map.0);
    let report = Report::of(&tracker.push(pair.source)?)?;
    ensure!(report.kind() == "incremental", "the increment is {}", report.kind());
    tracker.is_equal(pair, size)
}

/// An interval whose snapshot never reached the target: the next map starts elsewhere. It is
/// not taken for one that starts where the target is; everything is read and compared instead,
/// and the push says so.
pub(super) fn missed_interval(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let name = "drbd-missed";
    let mut tracker = Tracker::new(pair.source, name, 8, Store::Thin)?;
    allow_push(&pair, name, &format!("/srv/{name}.img"))?;
    let device = tracker.device();
    for (seed, blocks) in [(1, "0..512"), (2, "100..200"), (3, "5000..5001")] {
        pair.source.sh(&format!("/lab/blocks write {device} {seed} {blocks}"))?;
        tracker.rotate(pair.source)?;
        if seed == 1 {
            Report::of(&tracker.push(pair.source)?)?;
        }
    }
    let output = tracker.push(pair.source)?;
    let report = Report::of(&output)?;
    ensure!(
        report.kind() == "scan" && report.reason() == "slot-cleared",
        "{} ({})",
        report.kind(),
        report.reason()
    );
    ensure!(output.stderr.contains("slot-cleared"), "it was silent: {}", output.stderr);
    tracker.is_equal(&pair, tracker.map(pair.source)?.size()?)?;
    tracker.remove(lab)
}

/// A volume on LVM thin that two machines mirror.
pub(super) struct Mirror<'a> {
    name: &'static str,
    minor: u32,
    source: &'a Machine,
    peer: &'a Machine,
}

impl<'a> Mirror<'a> {
    /// A pair at work.
    pub(super) const TOGETHER: &'static str =
        "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate";

    /// Both halves, empty and connected. Neither is Primary.
    pub(super) fn new(
        [source, peer]: [&'a Machine; 2],
        name: &'static str,
        minor: u32,
    ) -> Result<Self> {
        let (here, there) = ("10.7.1.1", "10.7.1.2");
        let ends = [(source, here, "peer", there), (peer, there, "source", here)];
        for (machine, address, other, other_address) in ends {
            machine.sh(&format!(
                "lvcreate -q --yes -V 96M --thinpool lab/thin -n {name}
                 /lab/provision/drbd {name} {minor} /dev/lab/{name} {address} {other} \
                     {other_address}"
            ))?;
        }
        let mirror = Self { name, minor, source, peer };
        mirror.becomes("cs:Connected ro:Secondary/Secondary")?;
        source.sh(&format!("drbdadm -- --clear-bitmap new-current-uuid {name}"))?;
        mirror.becomes("ds:UpToDate/UpToDate")?;
        Ok(mirror)
    }

    pub(super) fn device(&self) -> String {
        format!("/dev/drbd{}", self.minor)
    }

    /// Waits until the source's kernel says this of it.
    pub(super) fn becomes(&self, state: &str) -> Result<()> {
        self.source.until(&format!("grep -A1 '^ *{}:' /proc/drbd | grep -q '{state}'", self.minor))
    }

    /// The hash of the data on the disk of one half: past the cache, which knows nothing of what
    /// DRBD writes below it.
    pub(super) fn sum_below(&self, half: &Machine) -> Result<String> {
        let size = self.source.sh(&format!("blockdev --getsize64 {}", self.device()))?;
        half.sh(&format!(
            "dd if=/dev/lab/{} bs=64k count={size} iflag=direct,count_bytes status=none |
                 sha256sum",
            self.name
        ))
    }

    pub(super) fn remove(self) -> Result<()> {
        let name = self.name;
        for machine in [self.source, self.peer] {
            machine.sh(&format!(
                "drbdadm down {name}; rm /etc/drbd.d/{name}.res; udevadm settle
                 lvremove -q --yes lab/{name}"
            ))?;
        }
        Ok(())
    }
}

/// Two machines that mirror a volume, apart for a while, and together again.
pub(super) fn pair(lab: &mut Lab) -> Result<()> {
    let name = "drbd-pair";
    let (source, peer) = lab.drbd_pair()?;
    let mirror = Mirror::new([source, peer], name, 9)?;
    let write = |what: &str| source.sh(&format!("/lab/blocks write {} {what}", mirror.device()));
    // Protocol C: what was written here is on the peer's disk.
    let same = || -> Result<bool> { Ok(mirror.sum_below(source)? == mirror.sum_below(peer)?) };
    source.sh(&format!("drbdadm primary {name}"))?;
    write("1 0..1024")?;
    ensure!(same()?, "the halves of the pair differ");

    source.sh(&format!("drbdadm disconnect {name}"))?;
    write("2 512..2048")?;
    ensure!(!same()?, "apart, and still equal");
    let out_of_sync = source.sh("grep -A1 '^ *9:' /proc/drbd | grep -o 'oos:[0-9]*'")?;
    ensure!(out_of_sync == "oos:6144", "1536 blocks are out of sync, not {out_of_sync}");
    source.sh(&format!("drbdadm connect {name}"))?;
    mirror.becomes(Mirror::TOGETHER)?;
    ensure!(same()?, "together again, and the halves differ");
    mirror.remove()
}
