//! The cases, by name, and what they share.

mod drbd;
mod drbd_live;
mod drbd_live_faults;
mod drbd_pool;
mod drbd_restore;
mod drbd_unit;
mod faults;
mod forest;
mod live;
mod live_faults;
mod receive;
mod receive_safe;
mod receive_user;
mod recursive;
mod walk;
mod zvol;

use anyhow::Result;

use self::drbd::Store;
use crate::{lab::Lab, machine::Machine};

/// One named test in real machines.
pub(crate) struct Case {
    /// Its name; `tests/lab/run WORD` runs those that begin with the word.
    pub(crate) name: &'static str,
    /// What it shows, in a few words.
    pub(crate) shows: &'static str,
    /// Whether it is of the short tier.
    pub(crate) short: bool,
    /// The case itself. It makes what it needs, and leaves nothing that another would trip on.
    pub(crate) run: fn(&mut Lab) -> Result<()>,
}

/// Every case, in the order they run.
pub(crate) const CASES: &[Case] = &[
    case(
        "zvol-increments",
        "full and five increments under a running writer, equal at each generation",
        SHORT,
        zvol::increments,
    ),
    case("zvol-4k", "volblocksize 4k", LONG, |lab| zvol::shape(lab, "zvol-4k", "-V 64M -b 4k")),
    case("zvol-16k", "volblocksize 16k", LONG, |lab| zvol::shape(lab, "zvol-16k", "-V 64M -b 16k")),
    case("zvol-128k", "volblocksize 128k", LONG, |lab| {
        zvol::shape(lab, "zvol-128k", "-V 64M -b 128k")
    }),
    case("zvol-1m", "volblocksize 1m", LONG, |lab| zvol::shape(lab, "zvol-1m", "-V 64M -b 1m")),
    case("zvol-off", "compression=off", LONG, |lab| {
        zvol::shape(lab, "zvol-off", "-V 64M -o compression=off")
    }),
    case("zvol-lz4", "compression=lz4", LONG, |lab| {
        zvol::shape(lab, "zvol-lz4", "-V 64M -o compression=lz4")
    }),
    case("zvol-zstd", "compression=zstd", LONG, |lab| {
        zvol::shape(lab, "zvol-zstd", "-V 64M -o compression=zstd")
    }),
    case("zvol-gzip", "compression=gzip", LONG, |lab| {
        zvol::shape(lab, "zvol-gzip", "-V 64M -o compression=gzip")
    }),
    case("zvol-lzjb", "compression=lzjb", LONG, |lab| {
        zvol::shape(lab, "zvol-lzjb", "-V 64M -o compression=lzjb")
    }),
    case("zvol-zle", "compression=zle", LONG, |lab| {
        zvol::shape(lab, "zvol-zle", "-V 64M -o compression=zle")
    }),
    case("zvol-grow", "a zvol that grows, with and without a write", LONG, zvol::grow),
    case(
        "zvol-shrink",
        "a zvol that shrinks, and grows again over what was cut off",
        LONG,
        zvol::shrink,
    ),
    case("zvol-discard", "discards become holes of the replica", SHORT, zvol::discard),
    case(
        "zvol-bookmark",
        "an increment from a bookmark, its snapshot destroyed",
        SHORT,
        zvol::bookmark,
    ),
    case(
        "zvol-clone",
        "a first copy of a clone moves what makes it one, its origin found by itself",
        LONG,
        live::clone,
    ),
    case(
        "zvol-rollback",
        "a source that was rolled back is refused as base-mismatch",
        SHORT,
        zvol::rollback,
    ),
    case(
        "live-increments",
        "zfs:tank/NAME: full and five increments under a running writer; others' points stay",
        SHORT,
        live::increments,
    ),
    case(
        "live-resume",
        "an increment cut by kill -9, its base destroyed: goes on from the bookmark",
        LONG,
        live::resume,
    ),
    case("live-resume-full", "a first copy cut beyond its checkpoint", LONG, live::resume_full),
    case(
        "live-read-back",
        "--read-back changed and all; snapdev=hidden is told",
        LONG,
        live::read_back,
    ),
    case(
        "live-compare",
        "all is compared on request, with and without devices",
        LONG,
        live::compare,
    ),
    case("live-user", "an ordinary user with six permissions of zfs allow", LONG, live::user),
    case("live-key", "an encrypted volume, its key loaded and not", LONG, live::key),
    case("live-names", "every character that a name can have", LONG, live::names),
    case("live-renamed", "zfs rename between runs: guids decide", LONG, live::renamed),
    case("live-two", "two replicas of one volume, pushed at the same time", LONG, live::two),
    case(
        "live-no-bookmark",
        "nothing is left of what the target holds: base-mismatch, and --full",
        LONG,
        live::no_bookmark,
    ),
    case("limit", "--limit-rate takes its time", LONG, live::limit),
    case("live-clock", "a clock set back and forth between runs", LONG, live::clock),
    case(
        "live-destroyed",
        "zfs destroy of the snapshot that is sent, and of its base",
        LONG,
        live_faults::destroyed,
    ),
    case("live-killed", "the zfs send -t of a resumed push killed", LONG, live_faults::killed),
    case("live-resized", "a volume that grows and shrinks while sent", LONG, live_faults::resized),
    case("live-exported", "zpool export -f in the middle", LONG, live_faults::exported),
    case(
        "live-suspended",
        "a pool whose device fails in the middle, failmode=continue",
        LONG,
        live_faults::suspended,
    ),
    case("live-suspended-wait", "the same, failmode=wait", LONG, live_faults::suspended_wait),
    case(
        "live-suspended-before",
        "a pool that is suspended already, the source's and the target's: told, and nothing waits",
        LONG,
        live_faults::suspended_before,
    ),
    case("live-pool-full", "no space for a snapshot", LONG, live_faults::pool_full),
    case("kill-pusher", "kill -9 of the pusher in the middle", SHORT, faults::kill_pusher),
    case("kill-target", "kill -9 of the target's service in the middle", LONG, faults::kill_target),
    case(
        "kill-server",
        "kill -9 of the source's service while the target pulls",
        LONG,
        faults::kill_server,
    ),
    case("power-source", "power failure of the source in the middle", LONG, faults::power_source),
    case("power-target", "power failure of the target in the middle", SHORT, faults::power_target),
    case(
        "power-first-copy",
        "power failure of the target in the middle of the first copy",
        LONG,
        faults::power_first_copy,
    ),
    case("cable-short", "a network that is gone for seconds", LONG, faults::cable_short),
    case(
        "cable-long",
        "a network that is gone for longer than either side waits",
        LONG,
        faults::cable_long,
    ),
    case("target-full", "the target's disk is full, and then is not", LONG, faults::target_full),
    case(
        "zvol-replica",
        "a replica on a zvol: grown, cut, kept at each generation, read-only",
        SHORT,
        receive::zvol,
    ),
    case(
        "zvol-modified",
        "a replica on a zvol that was written is refused, and mended by consent",
        LONG,
        receive::zvol_modified,
    ),
    case(
        "zvol-power",
        "power failure of a target whose replica is a zvol",
        LONG,
        receive::zvol_power,
    ),
    case(
        "files",
        "a file system from ZFS to ZFS: resumed by its token, refused where it diverged",
        SHORT,
        receive::files,
    ),
    case(
        "raw",
        "an encrypted volume from ZFS to ZFS, its key never loaded there",
        LONG,
        receive::raw,
    ),
    case("files-pull", "the target pulls a file system from ZFS to ZFS", LONG, receive::pull),
    case(
        "receive-full",
        "a target's pool is full, and its quota used up, in the middle: goes on by token",
        LONG,
        receive::full,
    ),
    case(
        "receive-user",
        "a service that is an ordinary user's receives streams, with the least of permissions",
        LONG,
        receive_user::streams,
    ),
    case(
        "receive-user-zvol",
        "the same with a replica on a zvol: permissions, and a rule of udev",
        LONG,
        receive_user::zvol,
    ),
    case(
        "receive-encrypted",
        "below an encrypted data set: plain, raw, properties, a tree: all of it arrives encrypted",
        LONG,
        receive_safe::encrypted,
    ),
    case(
        "zvol-volmode",
        "a replica on a zvol whose device is hidden, and shown; a first copy cut; one renamed",
        LONG,
        receive_safe::volmode,
    ),
    case(
        "receive-raw-key",
        "zfs change-key of a raw replica: refused before an increment locks it, and the way out",
        LONG,
        receive_safe::raw_key,
    ),
    case(
        "recursive",
        "a tree, one by one: excluded by pattern, one instant, one that diverged is refused",
        LONG,
        recursive::recursive,
    ),
    case(
        "tree-one-stream",
        "--with tree killed in a child is completed; a pruned token; a clone of our snapshot",
        LONG,
        forest::by_one_stream,
    ),
    case(
        "tree-bad-members",
        "-r with a thick volume without room and a name too long: the others arrive",
        LONG,
        forest::bad_members,
    ),
    case("tree", "a tree in one stream, with its properties by policy", LONG, receive::tree),
    case(
        "drbd-thin",
        "a tracker on LVM thin: the map covers every change, the replica is equal",
        SHORT,
        |lab| drbd::tracker(lab, "drbd-thin", 1, Store::Thin),
    ),
    case("drbd-thick", "the same on thick LVM", LONG, |lab| {
        drbd::tracker(lab, "drbd-thick", 2, Store::Thick)
    }),
    case("drbd-zvol", "the same on a zvol", LONG, |lab| {
        drbd::tracker(lab, "drbd-zvol", 3, Store::Zvol)
    }),
    case(
        "drbd-missed",
        "an interval that never arrived is refused as base-mismatch",
        LONG,
        drbd::missed_interval,
    ),
    case("drbd-pair", "a connected pair, apart and together again", LONG, drbd::pair),
    case(
        "drbd-live-thin",
        "drbd:NAME/0 on LVM thin: ten rotations under eight writers, each proven and equal",
        LONG,
        |lab| drbd_live::rotations(lab, "drbd-live-thin", 11, Store::Thin),
    ),
    case("drbd-live-thick", "the same on thick LVM", LONG, |lab| {
        drbd_live::rotations(lab, "drbd-live-thick", 12, Store::Thick)
    }),
    case("drbd-live-zvol", "the same on a zvol", LONG, |lab| {
        drbd_live::rotations(lab, "drbd-live-zvol", 13, Store::Zvol)
    }),
    case(
        "drbd-live-crash",
        "the kernel starts anew under eight writers: what the disk holds names every change",
        LONG,
        |lab| drbd_live_faults::crash(lab, "drbd-live-crash", 21, Store::Thin),
    ),
    case(
        "drbd-live-killed",
        "kill -9 while suspended, a snapshot that hangs, a kill before the mark",
        SHORT,
        drbd_live_faults::killed,
    ),
    case(
        "drbd-live-kept",
        "a snapshot that did not arrive goes first the next time",
        LONG,
        drbd_live_faults::kept,
    ),
    case(
        "drbd-live-cow",
        "a thick snapshot that runs out of space is told, and nothing is committed",
        LONG,
        drbd_live_faults::cow,
    ),
    case(
        "drbd-live-late",
        "a suspend that takes effect after it was given up is undone before the push ends",
        LONG,
        drbd_live_faults::late,
    ),
    case(
        "drbd-unit",
        "a drbd: job from the shipped unit and its drop-in, thin and thick, with metrics; killed",
        LONG,
        drbd_unit::units,
    ),
    case(
        "drbd-live-filter",
        "an LVM that would read the device is refused before any suspend",
        LONG,
        drbd_live_faults::filter,
    ),
    case(
        "drbd-live-noclear",
        "a bitmap that somebody cleared without suspending: compared, not believed",
        LONG,
        drbd_live_faults::cleared_by_others,
    ),
    case(
        "drbd-live-mixed",
        "a snapshot that was replicated by hand, and then others that were rotated",
        LONG,
        drbd_live_faults::mixed,
    ),
    case(
        "drbd-live-tracker",
        "init-tracker on a volume with data, its metadata beside it, and --undo",
        LONG,
        drbd_live::tracker,
    ),
    case(
        "drbd-live-pair",
        "a connected pair is never rotated, and compared instead",
        LONG,
        drbd_live::pair,
    ),
    case(
        "drbd-pool-thin",
        "--cross-check on LVM thin: rotations under eight writers agree; a write below DRBD is found",
        LONG,
        drbd_pool::thin,
    ),
    case("drbd-pool-zvol", "the same on a zvol", LONG, |lab| {
        drbd_pool::pool(lab, "drbd-pool-zvol", 24, Store::Zvol)
    }),
    case(
        "drbd-restore",
        "a pair is restored through its Primary, on both halves; Secondary and mounted: refused",
        LONG,
        drbd_restore::pair,
    ),
    case(
        "walk",
        "every command of vagrant/README.md, on machines provisioned as there",
        SHORT,
        walk::walk,
    ),
    case("timer", "the testbed's timer fires, catches up and replicates", LONG, walk::timer),
    case("timer-pull", "a timer on the target fires and pulls", LONG, walk::timer_pull),
];

const SHORT: bool = true;
const LONG: bool = false;

const fn case(
    name: &'static str,
    shows: &'static str,
    short: bool,
    run: fn(&mut Lab) -> Result<()>,
) -> Case {
    Case { name, shows, short, run }
}

/// Which kernel and modules a machine runs.
pub(crate) fn versions(machine: &Machine) -> Result<String> {
    machine.sh("modprobe drbd\n\
         printf 'kernel %s, OpenZFS %s, DRBD %s' \"$(uname -r)\" \
         \"$(cat /sys/module/zfs/version)\" \"$(cat /sys/module/drbd/version)\"")
}
