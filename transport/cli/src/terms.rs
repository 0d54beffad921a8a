//! What is agreed about a source, and what follows from it for ZFS and DRBD.

use std::time::Duration;

use driftline_drbd::{GuardCommand, LiveOptions as DrbdOptions, Mode, host::CowSize};
use driftline_zfs::{
    DatasetName, LiveOptions, Pick, ReadBack, SnapshotGroup,
    host::{Package, Zfs},
    select::OwnNames,
};

use crate::{
    args, clock::now_ms, exit::misused, place::Place, plain::volume_id, trust::Trust,
    zvol_delta::zvol_delta,
};

/// What snapshots and bookmarks of ours begin with if nothing else is said.
const PREFIX: &str = "driftline";

/// For how many seconds the I/O of a DRBD volume is suspended at most, if nothing is said, and
/// what may be said.
const FREEZE_MAX: u64 = 10;
const FREEZE_RANGE: std::ops::RangeInclusive<u64> = 1..=60;

/// What is agreed about a source, besides where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// Whether the user has agreed to a full copy over whatever the target holds.
    pub(crate) overwrite: bool,
    /// How a volume of ZFS is replicated.
    pub(crate) zfs: &'a args::Zfs,
    /// How a volume of DRBD is replicated.
    pub(crate) drbd: &'a args::Drbd,
    /// How LINSTOR is spoken to.
    pub(crate) linstor: &'a args::Linstor,
    /// Where it goes, in words that are the same for each run: what is kept in ZFS for this
    /// target is told from what is kept for another by them.
    pub(crate) to: &'a str,
    /// Whether that is always the same target: a peer that pulls may have several places for it.
    pub(crate) to_one: bool,
    /// The instant of the snapshot that is taken, if it is not this volume's alone.
    pub(crate) group: Option<&'a SnapshotGroup>,
    /// How its maps are checked.
    pub(crate) trust: Trust<'a>,
}

/// The names of what is made in ZFS for replication to this target.
fn own_names(wanted: &args::Zfs, to: &str) -> anyhow::Result<OwnNames> {
    let prefix = wanted.prefix.as_deref().unwrap_or(PREFIX);
    Ok(OwnNames::new(prefix, id_of(&[to]))?)
}

/// What tells things that are made for one replication from those for another, which these words
/// name.
pub(crate) fn id_of(words: &[&str]) -> [u8; 4] {
    let [a, b, c, d, ..] = *blake3::hash(words.join("\0").as_bytes()).as_bytes();
    [a, b, c, d]
}

/// The instant of a run that replicates these data sets, which has not come yet.
pub(crate) fn group<'a>(
    zfs: Zfs,
    wanted: &args::Zfs,
    to: &str,
    datasets: impl IntoIterator<Item = &'a DatasetName>,
) -> anyhow::Result<SnapshotGroup> {
    let name = own_names(wanted, to)?.snapshot(now_ms());
    Ok(SnapshotGroup::new(zfs, name, datasets))
}

/// The instant of a run that replicates this data set and all below it by one stream.
pub(crate) fn group_of_tree(
    zfs: Zfs,
    wanted: &args::Zfs,
    to: &str,
    root: &DatasetName,
) -> anyhow::Result<SnapshotGroup> {
    let name = own_names(wanted, to)?.snapshot(now_ms());
    Ok(SnapshotGroup::of_tree(zfs, name, root))
}

/// How this snapshot of a volume of ZFS is replicated.
pub(crate) fn live_options(pick: Pick, terms: Terms<'_>) -> anyhow::Result<LiveOptions> {
    let Terms { overwrite, zfs: wanted, to, .. } = terms;
    Ok(LiveOptions {
        pick,
        names: own_names(wanted, to)?,
        keep: wanted.keep.unwrap_or(0),
        to_one: terms.to_one,
        allow_full: overwrite,
        read_back: match wanted.read_back {
            None => ReadBack::Nothing,
            Some(args::ReadBack::Changed) => ReadBack::Changed,
            Some(args::ReadBack::All) => ReadBack::All,
        },
        raw: wanted.raw,
        package: match wanted.with {
            None => Package::One,
            Some(args::With::Properties) => Package::Properties,
            Some(args::With::Tree) => Package::Replicate,
        },
    })
}

/// How a volume of DRBD is replicated.
pub(crate) fn drbd_options(place: &Place, terms: Terms<'_>) -> anyhow::Result<DrbdOptions> {
    let Terms { overwrite, drbd: wanted, to, .. } = terms;
    let cow = wanted.cow_size.as_deref().map_or(Ok(CowSize::DEFAULT), str::parse::<CowSize>);
    let seconds = wanted.freeze_max.unwrap_or(FREEZE_MAX);
    if !FREEZE_RANGE.contains(&seconds) {
        let (start, end) = (FREEZE_RANGE.start(), FREEZE_RANGE.end());
        misused!("--freeze-max takes {start} to {end} seconds");
    }
    if wanted.cross_check && wanted.mode == Some(args::DrbdMode::Cumulative) {
        misused!("--cross-check is of what --mode rotate records, and the mode is cumulative");
    }
    let cow = match cow {
        Ok(cow) => cow,
        Err(why) => misused!("--cow-size: {why}"),
    };
    let name = place.to_string();
    Ok(DrbdOptions {
        mode: wanted.mode.map(|mode| match mode {
            args::DrbdMode::Rotate => Mode::Rotate,
            args::DrbdMode::Cumulative => Mode::Cumulative,
        }),
        cow,
        freeze_max: Duration::from_secs(seconds),
        // Volumes of one group share its names, and each may have several targets.
        id: id_of(&[&name, to]),
        volume: volume_id("driftline volume id v1 drbd", name.as_bytes()),
        allow_full: overwrite,
        // This very program, also if another version was installed meanwhile.
        guard: GuardCommand {
            program: "/proc/self/exe".into(),
            args: ["drbd", "guard"].map(str::to_owned).into(),
        },
        cross_check: wanted.cross_check.then_some(zvol_delta),
    })
}
