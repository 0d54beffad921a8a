//! Bad days of a DRBD source: the machine, the push or the target dies at a bad moment, somebody
//! else meddles with the bitmap, LVM is in the way or runs out of space.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    drbd::{Map, Store, differing},
    drbd_live::{
        arrives, churn, covers, increment, is_current, is_equal, is_tidy, keep_copies, push,
        push_command, shim, size, snapshots, started, unshim, write,
    },
};
use crate::{
    lab::{Lab, Role},
    machine::Machine,
    replication::{Report, end_of, exit, refused, start},
};

/// The machine's kernel starts anew under eight writers, between two rotations. What the disk
/// then holds names every block that changed since the last rotation: as it was left, and after
/// DRBD has found its way back. The next push is an increment, and the replica is its snapshot.
pub(super) fn crash(lab: &mut Lab, name: &'static str, minor: u32, store: Store) -> Result<()> {
    let (image, before) = (format!("/var/tmp/{name}.img"), format!("/var/tmp/{name}.before"));
    let pair = lab.pair()?;
    let tracker = started(&pair, name, minor, store)?;
    keep_copies(pair.source, name)?;
    churn(pair.source, &tracker)?;
    increment(pair.source, &tracker)?;
    // The copy is to outlive the crash, and some MiB are to be written before it.
    pair.source.sh(&format!("mv {image} {before}; sync -f /var/tmp"))?;
    pair.source.until(&format!(
        "[ $(grep -A1 '^ *{minor}:' /proc/drbd | grep -o 'oos:[0-9]*' | cut -d: -f2) -ge 8192 ]"
    ))?;
    lab.crash(Role::Source)?;

    let pair = lab.pair()?;
    let source = pair.source;
    let (left, dead) = (tracker.store.take_snapshot(name, 1), tracker.store.snapshot(name, 1));
    source.sh(&format!("! grep -q '^ *{minor}: cs:[^U]' /proc/drbd || drbdadm down {name}"))?;
    source.sh(&format!("{left}; udevadm settle"))?;
    let changed = covers(source, &before, &dead)?;
    println!("# {name}: {changed} blocks had changed when it stopped");
    source.sh(&format!("/lab/provision/drbd {name} {minor} {}", tracker.store.backing(name)))?;
    keep_copies(source, name)?;
    increment(source, &tracker)?;
    covers(source, &before, &image)?;
    is_equal(&pair, name, &image, size(source, &tracker)?)?;
    is_current(&pair, name, &tracker.device())?;
    is_tidy(source, &tracker)?;
    // And so on.
    write(source, &tracker, "9 100..200")?;
    unshim(source)?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    source.sh(&format!("rm {image} {before}"))?;
    tracker.remove(lab)
}

/// Starts a push as the unit `push`, which stops in this command for a while: what the shim's
/// condition matches.
fn push_hangs(
    source: &Machine,
    name: &str,
    options: &str,
    command: &str,
    when: &str,
) -> Result<()> {
    shim(
        source,
        command,
        &format!(
            "if {when}; then touch /run/hangs; while [ -e /run/hangs ]; do sleep 0.1; done; fi
real \"$@\""
        ),
    )?;
    start(source, "push", &push_command(name, options))?;
    source.until("[ -e /run/hangs ]")
}

fn is_suspended(source: &Machine, name: &str) -> Result<bool> {
    Ok(source.sh(&format!("drbdsetup events2 --now {name}"))?.contains("suspended:user"))
}

/// The pusher is killed while I/O is suspended; the snapshot hangs for longer than I/O may be
/// suspended; the pusher is killed after the bitmap was cleared. I/O goes on each time, and no
/// increment is believed that is none.
pub(super) fn killed(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-killed");
    let tracker = started(&pair, name, 14, Store::Thin)?;
    let device = tracker.device();
    let kill = "systemctl kill -s KILL --kill-whom=main push";

    // While it is suspended, and writers wait.
    write(source, &tracker, "2 100..200")?;
    push_hangs(source, name, "", "lvcreate", "true")?;
    ensure!(is_suspended(source, name)?, "it is not suspended while the snapshot is taken");
    let killed = source.sh(&format!(
        "date +%s%N > /run/before
         {kill}
         timeout 120 /lab/blocks write {device} 3 300..301
         echo $((($(date +%s%N) - $(cat /run/before)) / 1000000))"
    ))?;
    println!("# {name}: I/O goes on {killed} ms after the kill");
    let waited = Duration::from_millis(killed.parse()?);
    // Long before the time is up for which it may be suspended.
    ensure!(waited < Duration::from_secs(30), "I/O went on after {waited:?}");
    end_of(source, "push")?;
    source.sh("rm -f /run/hangs")?;
    unshim(source)?;
    // Nothing was cleared: the bitmap still records since what the target holds.
    source.until("! pgrep -x lvcreate")?;
    arrives(&pair, &tracker, "", &["incremental"])?;

    // The snapshot hangs: I/O goes on by itself, and the push fails in words.
    write(source, &tracker, "4 400..500")?;
    push_hangs(source, name, "--freeze-max 3", "lvcreate", "true")?;
    source.sh(&format!("timeout 120 /lab/blocks write {device} 5 600..601"))?;
    ensure!(!is_suspended(source, name)?, "it is still suspended");
    source.sh("rm /run/hangs")?;
    ensure!(end_of(source, "push")? == "1", "a push whose snapshot hung did not fail");
    let said = source.sh("journalctl --no-pager -o cat \
         _SYSTEMD_INVOCATION_ID=\"$(systemctl show -p InvocationID --value push)\"")?;
    ensure!(said.contains("was not taken within 3s"), "{said}");
    unshim(source)?;
    is_tidy(source, &tracker)?;
    arrives(&pair, &tracker, "", &["incremental"])?;

    // After the bitmap was cleared, before the snapshot is marked: the chain is broken, and the
    // next push says so.
    write(source, &tracker, "6 700..800")?;
    push_hangs(source, name, "", "lvchange", "[[ $* == *driftline:rotated* ]]")?;
    source.sh(&format!("{kill}; timeout 120 /lab/blocks write {device} 7 900..901"))?;
    end_of(source, "push")?;
    source.sh("rm -f /run/hangs")?;
    unshim(source)?;
    source.until("! pgrep -x lvchange")?;
    let report = arrives(&pair, &tracker, "", &["scan"])?;
    ensure!(report.reason() == "slot-cleared", "{}", report.reason());
    write(source, &tracker, "8 1000..1001")?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    tracker.remove(lab)
}

/// The command that suspends is slow, and given up: what it has started suspends the device long
/// after it was resumed. The push ends only when the device goes on for good.
pub(super) fn late(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-late");
    let tracker = started(&pair, name, 25, Store::Thin)?;
    let device = tracker.device();
    write(source, &tracker, "2 100..200")?;
    shim(
        source,
        "drbdsetup",
        "if [ \"$1\" = suspend-io ]; then
    # In a session of its own, as whatever wraps commands may start it.
    setsid bash -c 'sleep 40; PATH=/usr/sbin:/usr/bin drbdsetup \"$@\"; touch /run/landed' - \"$@\" &
    wait
else
    real \"$@\"
fi",
    )?;
    let output = push(source, name, "--freeze-max 3")?;
    ensure!(output.code == exit::FAILED, "{}", output.stderr);
    ensure!(output.stderr.contains("suspend-io"), "{}", output.stderr);
    // It came, and was undone before the push said that it had failed.
    source.sh("rm /run/landed")?;
    source.sh(&format!("timeout 60 /lab/blocks write {device} 3 300..301"))?;
    ensure!(!is_suspended(source, name)?, "it is still suspended");
    unshim(source)?;
    is_tidy(source, &tracker)?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    tracker.remove(lab)
}

/// The target is not there once the bitmap was cleared: the snapshot is kept, and arrives before
/// the next one. A second that fails does not clear again.
pub(super) fn kept(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-kept");
    let tracker = started(&pair, name, 15, Store::Thick)?;
    write(source, &tracker, "2 100..200")?;
    // It is gone as soon as the snapshot is marked.
    shim(
        source,
        "lvchange",
        "real \"$@\" && touch /run/marked && while [ -e /run/marked ]; do sleep 0.1; done",
    )?;
    start(source, "push", &push_command(name, "--cow-size 50%"))?;
    source.until("[ -e /run/marked ]")?;
    pair.target.sh("systemctl stop driftline-serve")?;
    source.sh("rm /run/marked")?;
    ensure!(end_of(source, "push")? == exit::CONNECTION.to_string(), "the push did not fail");
    unshim(source)?;
    let left = snapshots(source)?;
    ensure!(left.len() == 1 && left[0].contains("driftline:rotated="), "kept: {left:?}");
    // Nothing can be reached, so nothing is cleared.
    write(source, &tracker, "3 300..400")?;
    ensure!(push(source, name, "")?.code == exit::CONNECTION, "there is no target");
    ensure!(snapshots(source)? == left, "another was taken");
    pair.target.sh("systemctl start driftline-serve")?;
    arrives(&pair, &tracker, "", &["incremental", "incremental"])?;
    tracker.remove(lab)
}

/// More is written than the snapshot has space for, while it is sent.
pub(super) fn cow(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-cow");
    let tracker = started(&pair, name, 16, Store::Thick)?;
    // More than the source reads ahead of what is sent.
    write(source, &tracker, "2 0..20480")?;
    start(source, "push", &push_command(name, "--cow-size 8M --limit-rate 1M"))?;
    pair.target.until(&format!(
        "[ $(du -m /srv/{name}.img.driftline/journal 2> /dev/null | cut -f1) -ge 2 ]"
    ))?;
    write(source, &tracker, "3 8192..16384")?;
    ensure!(end_of(source, "push")? == exit::FAILED.to_string(), "it did not fail");
    let said = source.sh("journalctl --no-pager -o cat \
         _SYSTEMD_INVOCATION_ID=\"$(systemctl show -p InvocationID --value push)\"")?;
    ensure!(said.contains("ran out of space") && said.contains("--cow-size"), "{said}");
    let output = push(source, name, "")?;
    let report = Report::of(&output)?;
    ensure!(report.reason() == "slot-cleared", "{}", report.reason());
    ensure!(output.stderr.contains("ran out of space before it arrived"), "{}", output.stderr);
    is_current(&pair, name, &tracker.device())?;
    is_tidy(source, &tracker)?;
    tracker.remove(lab)
}

/// With a configuration in which LVM reads DRBD's devices nothing is ever suspended.
pub(super) fn filter(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-filter");
    let tracker = started(&pair, name, 17, Store::Thin)?;
    source.sh("cp -r /etc/lvm /run/lvm")?;
    shim(source, "drbdsetup", "echo \"$@\" >> /run/asked; real \"$@\"")?;
    for filter in ["", "global_filter = [ \"r|^/dev/drbd|\", \"a|.*|\" ]"] {
        source.sh(&format!(
            "sed '/^# driftline/,$d' /etc/lvm/lvm.conf > /run/lvm/lvm.conf
             printf 'devices {{\\n%s\\n}}\\n' '{filter}' >> /run/lvm/lvm.conf"
        ))?;
        let command = format!("export LVM_SYSTEM_DIR=/run/lvm; {}", push_command(name, ""));
        let output = source.run(&command)?;
        refused(&output, exit::REFUSED, "unsupported")?;
        ensure!(output.stderr.contains("global_filter = ["), "{}", output.stderr);
    }
    let asked = source.sh("cat /run/asked; rm -r /run/asked /run/lvm")?;
    ensure!(asked.contains("show") && !asked.contains("suspend-io"), "{asked}");
    unshim(source)?;
    is_tidy(source, &tracker)?;
    write(source, &tracker, "2 0..10")?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    tracker.remove(lab)
}

/// Somebody takes a snapshot, and clears the bitmap, while the device is written: the map of the
/// next snapshot lacks what was written between. Ours compares everything instead.
pub(super) fn cleared_by_others(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-noclear");
    let tracker = started(&pair, name, 18, Store::Thin)?;
    // The activity log would name the whole volume; what is cold is named by the bitmap alone.
    let minor = tracker.minor;
    let cool = format!("drbdadm secondary {name}; drbdadm primary {name}");
    write(source, &tracker, "2 100..200")?;
    source.sh(&format!("lvcreate -q -s -kn -ay -n {name}-s1 lab/{name}"))?;
    write(source, &tracker, "3 5000..5010")?;
    source.sh(&format!("drbdsetup new-current-uuid {minor} --clear-bitmap"))?;
    write(source, &tracker, "4 9000..9001")?;
    source.sh(&format!("{cool}; lvcreate -q -s -kn -ay -n {name}-s2 lab/{name}"))?;
    let map = Map::of(source, &format!("drbdmeta:/dev/lab/{name}-s2"))?;
    let images = [1, 2].map(|number| format!("/dev/lab/{name}-s{number}"));
    let truth = differing(source, &images[0], &images[1], map.size()?)?;
    ensure!(truth == [5000..5010, 9000..9001], "{truth:?}");
    let bitmap = map.0["bitmap_bytes"].as_u64().unwrap_or(u64::MAX);
    ensure!(bitmap == 4096, "the bitmap names {bitmap} bytes, and was to miss 10 blocks");
    let report = arrives(&pair, &tracker, "", &["scan"])?;
    ensure!(report.reason() == "slot-cleared", "{}", report.reason());
    tracker.remove(lab)
}

/// A snapshot that was not rotated is replicated by hand. It is named by its content, so that no
/// rotation under the name that the volume keeps seems to start from it, also where the snapshot of
/// the next run is lost.
pub(super) fn mixed(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-mixed");
    let tracker = started(&pair, name, 20, Store::Thin)?;
    write(source, &tracker, "2 100..200")?;
    source.sh(&format!("lvcreate -q -s -kn -ay -n {name}-s1 lab/{name}"))?;
    let by_hand = push_command(name, "--quiet")
        .replace("--freeze-max 60", "")
        .replace(&format!("drbd:{name}/0"), &format!("drbdmeta:/dev/lab/{name}-s1"));
    Report::of(&source.run(&by_hand)?)?;
    write(source, &tracker, "3 5000..5010")?;
    // Its snapshot is lost after the bitmap was cleared.
    push_hangs(source, name, "", "lvchange", "[[ $* == *driftline:rotated* ]]")?;
    source.sh("systemctl kill -s KILL --kill-whom=main push")?;
    end_of(source, "push")?;
    source.sh("rm -f /run/hangs")?;
    unshim(source)?;
    source.until("! pgrep -x lvchange")?;
    write(source, &tracker, "4 9000..9001")?;
    let report = arrives(&pair, &tracker, "", &["scan"])?;
    ensure!(report.reason() == "map-missing", "{}", report.reason());
    // And where it is not lost.
    source.sh(&format!("lvcreate -q -s -kn -ay -n {name}-s2 lab/{name}"))?;
    Report::of(&source.run(&by_hand.replace("-s1", "-s2"))?)?;
    write(source, &tracker, "5 300..310")?;
    let report = arrives(&pair, &tracker, "", &["scan"])?;
    ensure!(report.reason() == "map-missing", "{}", report.reason());
    write(source, &tracker, "6 300..310")?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    tracker.remove(lab)
}
