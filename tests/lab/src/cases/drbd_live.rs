//! `driftline push drbd:RESOURCE/VOLUME`: snapshots that it takes itself, of a DRBD 8.4 device
//! that is written to.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::drbd::{Map, Store, Tracker, differing};
use crate::{
    lab::{Lab, Pair, TARGET_ADDRESS},
    machine::{Machine, Output},
    replication::{Report, allow_push, end_of, exit, refused, start},
};

/// Where commands are put that stand in the way of real ones.
const SHIMS: &str = "/run/shims";

/// The command that pushes volume 0 of a resource to the target's volume of this name.
fn push_command(name: &str, options: &str) -> String {
    format!(
        "export DRIFTLINE_PEER=$(cat /lab/keys/target.pub) PATH={SHIMS}:$PATH
         exec driftline push --json {options} drbd:{name}/0 {name}@{TARGET_ADDRESS}"
    )
}

fn push(source: &Machine, name: &str, options: &str) -> Result<Output> {
    source.run(&push_command(name, options))
}

/// Puts a script in the way of a command. It is found before the real one, which it may call as
/// `real`.
fn shim(source: &Machine, command: &str, script: &str) -> Result<()> {
    source.sh(&format!(
        "mkdir -p {SHIMS}
         cat > {SHIMS}/{command} << 'END'
#!/bin/bash
real() {{ PATH=${{PATH#{SHIMS}:}} command {command} \"$@\"; }}
{script}
END
         chmod +x {SHIMS}/{command}"
    ))?;
    Ok(())
}

fn unshim(source: &Machine) -> Result<()> {
    source.sh(&format!("rm -rf {SHIMS}"))?;
    Ok(())
}

/// Keeps a copy of each snapshot that is removed, data and metadata, just before that.
fn keep_copies(source: &Machine, name: &str) -> Result<()> {
    let copy = |device: &str| {
        format!("dd if={device} of=/var/tmp/{name}.img bs=1M conv=sparse status=none || exit 90")
    };
    let lvm = format!("last=${{!#}}\n{}\nreal \"$@\"", copy("/dev/$last"));
    shim(source, "lvremove", &lvm)?;
    let zfs = format!(
        "last=${{!#}}\n[ \"$1\" != destroy ] || {{ {}; }}\nreal \"$@\"",
        copy("/dev/zvol/$last")
    );
    shim(source, "zfs", &zfs)
}

/// For how many milliseconds the device was frozen, by what the push said.
fn frozen_ms(output: &Output) -> Result<u64> {
    let (_, rest) =
        output.stderr.split_once("frozen_ms=").with_context(|| output.stderr.clone())?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// That the replica is the data of an image on the source.
fn is_equal(pair: &Pair<'_>, name: &str, image: &str, size: u64) -> Result<()> {
    let expected = pair.source.sh(&format!("head -c {size} {image} | sha256sum"))?;
    let actual = pair.target.sh(&format!("sha256sum < /srv/{name}.img"))?;
    ensure!(expected == actual, "{name}: the replica differs from {image}");
    Ok(())
}

/// That the replica is what the device holds, which nobody writes meanwhile.
fn is_current(pair: &Pair<'_>, name: &str, device: &str) -> Result<()> {
    let size = pair.source.sh(&format!("sync; blockdev --getsize64 {device}"))?.parse()?;
    is_equal(pair, name, device, size)
}

/// That the device is not suspended, and no snapshot of ours is left.
fn is_tidy(source: &Machine, tracker: &Tracker) -> Result<()> {
    let name = tracker.name;
    let state = source.sh(&format!("drbdsetup events2 --now {name}"))?;
    ensure!(state.contains("suspended:no"), "{state}");
    let left = snapshots(source)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The snapshots of ours on the source, with their marks.
fn snapshots(source: &Machine) -> Result<Vec<String>> {
    let text = source.sh("lvs --noheadings -o lv_name,lv_tags lab | grep driftline- || true
         zfs list -H -t snapshot -o name,driftline:rotated | grep driftline- || true")?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// A tracker of its own, with a first copy at the target.
fn started(pair: &Pair<'_>, name: &'static str, minor: u32, store: Store) -> Result<Tracker> {
    let tracker = Tracker::new(pair.source, name, minor, store)?;
    allow_push(pair, name, &format!("/srv/{name}.img"))?;
    write(pair.source, &tracker, "1 0..2048")?;
    let report = Report::of(&push(pair.source, name, "")?)?;
    ensure!(report.kinds() == ["full"], "the first copy is {:?}", report.kinds());
    is_current(pair, name, &tracker.device())?;
    is_tidy(pair.source, &tracker)?;
    Ok(tracker)
}

fn write(source: &Machine, tracker: &Tracker, what: &str) -> Result<()> {
    source.sh(&format!("/lab/blocks write {} {what}", tracker.device()))?;
    Ok(())
}

/// Pushes, which must be these plans, and compares the replica.
fn arrives(pair: &Pair<'_>, tracker: &Tracker, options: &str, kinds: &[&str]) -> Result<Report> {
    let report = Report::of(&push(pair.source, tracker.name, options)?)?;
    ensure!(report.kinds() == kinds, "{:?} ({}), not {kinds:?}", report.kinds(), report.reason());
    is_current(pair, tracker.name, &tracker.device())?;
    is_tidy(pair.source, tracker)?;
    Ok(report)
}

/// Ten rotations under writers that never stop: each map names every block that really changed,
/// and each replica is the snapshot.
pub(super) fn rotations(lab: &mut Lab, name: &'static str, minor: u32, store: Store) -> Result<()> {
    let pair = lab.pair()?;
    let source = pair.source;
    let tracker = started(&pair, name, minor, store)?;
    keep_copies(source, name)?;
    write(source, &tracker, "2 256..257 1280..1281 10240..11008 19712..19713")?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    source.sh(&format!(
        "systemd-run -q --unit=writer /lab/blocks churn {} 7 --writers 8 --pause-ms 100",
        tracker.device()
    ))?;
    let (image, before) = (format!("/var/tmp/{name}.img"), format!("/var/tmp/{name}.before"));
    let mut frozen = Vec::new();
    let mut changed = Vec::new();
    for _ in 0..10 {
        source.sh(&format!("mv {image} {before}"))?;
        let output = push(source, name, "")?;
        let report = Report::of(&output)?;
        ensure!(
            report.kinds() == ["incremental"],
            "{:?} ({}): {}",
            report.kinds(),
            report.reason(),
            output.stderr
        );
        frozen.push(frozen_ms(&output)?);
        let map = Map::of(source, &format!("drbdmeta:{image}"))?;
        let size = map.size()?;
        let truth = differing(source, &before, &image, size)?;
        let count: u64 = truth.iter().map(|run| run.end - run.start).sum();
        ensure!(count > 0, "nothing was written");
        changed.push(count);
        let missed = map.misses(&truth);
        ensure!(missed.is_none(), "of {count} blocks the map misses {missed:?}: {}", map.0);
        is_equal(&pair, name, &image, size)?;
        is_tidy(source, &tracker)?;
    }
    source.sh("systemctl is-active --quiet writer; systemctl stop writer")?;
    frozen.sort_unstable();
    println!("# {name}: frozen for {frozen:?} ms; blocks that changed: {changed:?}");
    unshim(source)?;
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
         timeout 20 /lab/blocks write {device} 3 300..301
         echo $((($(date +%s%N) - $(cat /run/before)) / 1000000))"
    ))?;
    println!("# {name}: I/O goes on {killed} ms after the kill");
    let waited = Duration::from_millis(killed.parse()?);
    ensure!(waited < Duration::from_secs(10), "I/O went on after {waited:?}");
    end_of(source, "push")?;
    source.sh("rm -f /run/hangs")?;
    unshim(source)?;
    // Nothing was cleared: the bitmap still records since what the target holds.
    source.until("! pgrep -x lvcreate")?;
    arrives(&pair, &tracker, "", &["incremental"])?;

    // The snapshot hangs: I/O goes on by itself, and the push fails in words.
    write(source, &tracker, "4 400..500")?;
    push_hangs(source, name, "--freeze-max 3", "lvcreate", "true")?;
    source.sh(&format!("timeout 20 /lab/blocks write {device} 5 600..601"))?;
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
    source.sh(&format!("{kill}; timeout 20 /lab/blocks write {device} 7 900..901"))?;
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

/// A snapshot that was not rotated is replicated by hand, under the name that the volume keeps.
/// The bitmap is not cleared under that name, also where the snapshot of the next run is lost.
pub(super) fn mixed(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-mixed");
    let tracker = started(&pair, name, 20, Store::Thin)?;
    write(source, &tracker, "2 100..200")?;
    source.sh(&format!("lvcreate -q -s -kn -ay -n {name}-s1 lab/{name}"))?;
    let by_hand = push_command(name, "--quiet")
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
    ensure!(report.reason() == "slot-cleared", "{}", report.reason());
    // And where it is not lost.
    source.sh(&format!("lvcreate -q -s -kn -ay -n {name}-s2 lab/{name}"))?;
    Report::of(&source.run(&by_hand.replace("-s1", "-s2"))?)?;
    write(source, &tracker, "5 300..310")?;
    arrives(&pair, &tracker, "", &["incremental"])?;
    tracker.remove(lab)
}

/// A volume with data becomes a tracker, with its metadata on another, and a plain volume again.
pub(super) fn tracker(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, name) = (pair.source, "drbd-live-tracker");
    source.sh(&format!(
        "lvcreate -q --yes -V 96M --thinpool lab/thin -n {name}
         lvcreate -q --yes --wipesignatures y -L 4M -n {name}-meta lab
         dd if=/dev/zero of=/dev/lab/{name}-meta bs=1M count=4 oflag=direct status=none
         /lab/blocks write /dev/lab/{name} 1 0..2048"
    ))?;
    let command =
        format!("driftline drbd init-tracker {name} /dev/lab/{name} --meta /dev/lab/{name}-meta");
    let sum = "sha256sum < /dev/lab/drbd-live-tracker";
    let before = source.sh(sum)?;
    let printed = source.sh(&command)?;
    ensure!(
        printed.contains("drbdadm create-md") && printed.contains("nothing was done"),
        "{printed}"
    );
    ensure!(source.run(&format!("ls /etc/drbd.d/{name}.res"))?.code != 0, "it was done");
    source.sh(&format!("{command} --yes"))?;
    let again = source.sh(&format!("{command} --yes"))?;
    ensure!(again.contains("nothing is to be done"), "{again}");
    let minor = source.sh(&format!("drbdadm sh-minor {name}"))?;
    let device = format!("/dev/drbd{minor}");

    allow_push(&pair, name, &format!("/srv/{name}.img"))?;
    let pushed = |what: &str, kinds: &[&str]| -> Result<()> {
        source.sh(&format!("/lab/blocks write {device} {what}"))?;
        let output = push(source, name, "")?;
        let report = Report::of(&output)?;
        ensure!(report.kinds() == kinds, "{:?} ({})", report.kinds(), report.reason());
        println!("# {name}: two snapshots, frozen for {} ms", frozen_ms(&output)?);
        is_current(&pair, name, &device)?;
        ensure!(snapshots(source)?.is_empty(), "snapshots are left");
        Ok(())
    };
    pushed("2 5000..5001", &["full"])?;
    pushed("3 100..200", &["incremental"])?;
    // As after a reboot: the bitmap stays.
    source.sh(&format!("/lab/blocks write {device} 4 300..301; drbdadm down {name}"))?;
    let printed = source.sh(&format!("{command} --yes"))?;
    ensure!(!printed.contains("clear-bitmap") && printed.contains("attach"), "{printed}");
    pushed("5 400..401", &["incremental"])?;

    let after = source.sh(&format!("sha256sum < {device}"))?;
    let printed = source.sh(&format!("{command} --undo --yes"))?;
    ensure!(printed.contains("wipe-md"), "{printed}");
    let printed = source.sh(&format!("{command} --undo --yes"))?;
    ensure!(printed.contains("nothing is to be done"), "{printed}");
    ensure!(after != before && source.sh(sum)? == after, "the data is another");
    source.sh(&format!("lvremove -q --yes lab/{name} lab/{name}-meta"))?;
    pair.target.sh(&format!("rm -rf /srv/{name}.img /srv/{name}.img.driftline"))?;
    Ok(())
}

/// One half of a pair that is connected, or apart for a while: its bitmap is its peer's.
pub(super) fn pair(lab: &mut Lab) -> Result<()> {
    let name = "drbd-live-pair";
    let [source, target, peer] = lab.all()?;
    let pair = Pair { source, target };
    let ends = [(source, "10.7.1.1", "peer", "10.7.1.2"), (peer, "10.7.1.2", "source", "10.7.1.1")];
    for (machine, address, other, other_address) in ends {
        machine.sh(&format!(
            "lvcreate -q --yes -V 96M --thinpool lab/thin -n {name}
             /lab/provision/drbd {name} 19 /dev/lab/{name} {address} {other} {other_address}"
        ))?;
    }
    let state =
        |wanted: &str| source.until(&format!("grep -A1 '^ *19:' /proc/drbd | grep -q '{wanted}'"));
    state("cs:Connected ro:Secondary/Secondary")?;
    source.sh(&format!("drbdadm -- --clear-bitmap new-current-uuid {name}"))?;
    state("ds:UpToDate/UpToDate")?;
    source.sh(&format!("drbdadm primary {name}; /lab/blocks write /dev/drbd19 1 0..1024"))?;
    allow_push(&pair, name, &format!("/srv/{name}.img"))?;

    refused(&push(source, name, "--mode rotate")?, exit::REFUSED, "unsupported")?;
    for kind in ["full", "scan"] {
        let report = Report::of(&push(source, name, "")?)?;
        ensure!(report.kinds() == [kind], "{:?}", report.kinds());
        is_current(&pair, name, "/dev/drbd19")?;
        source.sh("/lab/blocks write /dev/drbd19 2 512..2048")?;
    }
    // Apart, the kernel has forgotten the peer, and its configuration has not.
    source.sh(&format!("drbdadm disconnect {name}; /lab/blocks write /dev/drbd19 3 100..200"))?;
    let output = push(source, name, "--mode rotate")?;
    refused(&output, exit::REFUSED, "unsupported")?;
    ensure!(output.stderr.contains("the peer peer"), "{}", output.stderr);
    Report::of(&push(source, name, "")?)?;
    is_current(&pair, name, "/dev/drbd19")?;
    source.sh(&format!("drbdadm connect {name}"))?;
    state("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")?;
    ensure!(snapshots(source)?.is_empty(), "snapshots are left");
    for machine in [source, peer] {
        machine.sh(&format!(
            "drbdadm down {name}; rm /etc/drbd.d/{name}.res; lvremove -q --yes lab/{name}"
        ))?;
    }
    target.sh(&format!("rm -rf /srv/{name}.img /srv/{name}.img.driftline"))?;
    Ok(())
}
