//! `driftline push drbd:RESOURCE/VOLUME`: snapshots that it takes itself, of a DRBD 8.4 device
//! that is written to.

use anyhow::{Context as _, Result, ensure};

use super::drbd::{BLOCK_LEN, Map, Mirror, Store, Tracker, differing};
use crate::{
    lab::{Lab, Pair, TARGET_ADDRESS},
    machine::{Machine, Output},
    replication::{Report, allow_push, exit, refused},
};

/// Where commands are put that stand in the way of real ones. Nothing may be run from /run.
pub(super) const SHIMS: &str = "/var/tmp/shims";

/// The command that pushes volume 0 of a resource to the target's volume of this name. I/O may be
/// suspended for long, as an emulated machine is slow where its host has other things to do.
pub(super) fn push_command(name: &str, options: &str) -> String {
    let patience = if options.contains("--freeze-max") { "" } else { "--freeze-max 60" };
    format!(
        "export DRIFTLINE_PEER=$(cat /lab/keys/target.pub) PATH={SHIMS}:$PATH
         exec driftline push --json {patience} {options} drbd:{name}/0 {name}@{TARGET_ADDRESS}"
    )
}

pub(super) fn push(source: &Machine, name: &str, options: &str) -> Result<Output> {
    source.run(&push_command(name, options))
}

/// Puts a script in the way of a command. It is found before the real one, which it may call as
/// `real`.
pub(super) fn shim(source: &Machine, command: &str, script: &str) -> Result<()> {
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

pub(super) fn unshim(source: &Machine) -> Result<()> {
    source.sh(&format!("rm -rf {SHIMS}"))?;
    Ok(())
}

/// Keeps a copy of each snapshot that is removed, data and metadata, just before that.
pub(super) fn keep_copies(source: &Machine, name: &str) -> Result<()> {
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

/// Milliseconds that the push told of: `frozen_ms`, for how long the device was frozen, or
/// `resumed_after_ms`, how long after the push began it went on.
fn told_ms(output: &Output, name: &str) -> Result<u64> {
    let told = format!("{name}=");
    let (_, rest) = output.stderr.split_once(&told).with_context(|| output.stderr.clone())?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// That the replica is the data of an image on the source.
pub(super) fn is_equal(pair: &Pair<'_>, name: &str, image: &str, size: u64) -> Result<()> {
    let expected = pair.source.sh(&format!("head -c {size} {image} | sha256sum"))?;
    let actual = pair.target.sh(&format!("sha256sum < /srv/{name}.img"))?;
    ensure!(expected == actual, "{name}: the replica differs from {image}");
    Ok(())
}

/// That the replica is what the device holds, which nobody writes meanwhile.
pub(super) fn is_current(pair: &Pair<'_>, name: &str, device: &str) -> Result<()> {
    let size = pair.source.sh(&format!("sync; blockdev --getsize64 {device}"))?.parse()?;
    is_equal(pair, name, device, size)
}

/// That the device is not suspended, and no snapshot of ours is left.
pub(super) fn is_tidy(source: &Machine, tracker: &Tracker) -> Result<()> {
    let name = tracker.name;
    let state = source.sh(&format!("drbdsetup events2 --now {name}"))?;
    ensure!(state.contains("suspended:no"), "{state}");
    let left = snapshots(source)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The snapshots of ours on the source, with their marks.
pub(super) fn snapshots(source: &Machine) -> Result<Vec<String>> {
    let text = source.sh("lvs --noheadings -o lv_name,lv_tags lab | grep driftline- || true
         zfs list -H -t snapshot -o name,driftline:rotated | grep driftline- || true")?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// A tracker of its own, with a first copy at the target.
pub(super) fn started(
    pair: &Pair<'_>,
    name: &'static str,
    minor: u32,
    store: Store,
) -> Result<Tracker> {
    let tracker = Tracker::new(pair.source, name, minor, store)?;
    allow_push(pair, name, &format!("/srv/{name}.img"))?;
    write(pair.source, &tracker, "1 0..2048")?;
    let report = Report::of(&push(pair.source, name, "")?)?;
    ensure!(report.kinds() == ["full"], "the first copy is {:?}", report.kinds());
    is_current(pair, name, &tracker.device())?;
    is_tidy(pair.source, &tracker)?;
    Ok(tracker)
}

pub(super) fn write(source: &Machine, tracker: &Tracker, what: &str) -> Result<()> {
    source.sh(&format!("/lab/blocks write {} {what}", tracker.device()))?;
    Ok(())
}

/// Pushes, which must be these plans, and compares the replica.
pub(super) fn arrives(
    pair: &Pair<'_>,
    tracker: &Tracker,
    options: &str,
    kinds: &[&str],
) -> Result<Report> {
    let report = Report::of(&push(pair.source, tracker.name, options)?)?;
    ensure!(report.kinds() == kinds, "{:?} ({}), not {kinds:?}", report.kinds(), report.reason());
    is_current(pair, tracker.name, &tracker.device())?;
    is_tidy(pair.source, tracker)?;
    Ok(report)
}

/// Eight writers that never stop, as the unit `writer`.
pub(super) fn churn(source: &Machine, tracker: &Tracker) -> Result<()> {
    source.sh(&format!(
        "systemd-run -q --unit=writer /lab/blocks churn {} 7 --writers 8 --pause-ms 100",
        tracker.device()
    ))?;
    Ok(())
}

/// One after the other, sorted, with what stands in the middle and at the end.
fn spread(mut values: Vec<u64>) -> String {
    values.sort_unstable();
    let median = values.get(values.len() / 2).copied().unwrap_or_default();
    let max = values.last().copied().unwrap_or_default();
    format!("median {median}, maximum {max} of {values:?}")
}

/// How many blocks differ between two images. The map of the later one has to name each.
pub(super) fn covers(source: &Machine, before: &str, image: &str) -> Result<u64> {
    let map = Map::of(source, &format!("drbdmeta:{image}"))?;
    let truth = differing(source, before, image, map.size()?)?;
    let count: u64 = truth.iter().map(|run| run.end - run.start).sum();
    ensure!(count > 0, "nothing was written");
    let missed = map.misses(&truth);
    ensure!(missed.is_none(), "of {count} blocks the map misses {missed:?}: {}", map.0);
    Ok(count)
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
    churn(source, &tracker)?;
    let (image, before) = (format!("/var/tmp/{name}.img"), format!("/var/tmp/{name}.before"));
    let (mut frozen, mut resumed, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..10 {
        source.sh(&format!("mv {image} {before}"))?;
        let output = increment(source, &tracker)?;
        let [frozen_ms, resumed_ms] =
            ["frozen_ms", "resumed_after_ms"].map(|what| told_ms(&output, what));
        frozen.push(frozen_ms?);
        resumed.push(resumed_ms?);
        changed.push(covers(source, &before, &image)?);
        is_equal(&pair, name, &image, size(source, &tracker)?)?;
        is_tidy(source, &tracker)?;
    }
    source.sh("systemctl is-active --quiet writer; systemctl stop writer")?;
    println!("# {name}: frozen for, in ms: {}", spread(frozen));
    println!("# {name}: from the start of a push to I/O that goes on, in ms: {}", spread(resumed));
    println!("# {name}: blocks that changed: {changed:?}");
    // Of a volume as small as this the activity log names all that was ever written. As it is
    // Secondary its bitmap is written, which has to name all that changed by itself.
    source.sh(&format!("mv {image} {before}; drbdadm secondary {name}; drbdadm primary {name}"))?;
    increment(source, &tracker)?;
    let count = covers(source, &before, &image)?;
    let map = Map::of(source, &format!("drbdmeta:{image}"))?;
    let named = map.0["bitmap_bytes"].as_u64().unwrap_or_default() / BLOCK_LEN;
    ensure!(named >= count, "the bitmap names {named} of {count} blocks");
    is_equal(&pair, name, &image, size(source, &tracker)?)?;
    unshim(source)?;
    source.sh(&format!("rm {image} {before}"))?;
    tracker.remove(lab)
}

/// Pushes, which has to be an increment. A snapshot of a thick volume has room for whatever is
/// written meanwhile: it is copied only after it arrived.
pub(super) fn increment(source: &Machine, tracker: &Tracker) -> Result<Output> {
    let output = push(source, tracker.name, "--cow-size 100%")?;
    let report = Report::of(&output)?;
    let (kinds, reason) = (report.kinds(), report.reason());
    ensure!(kinds == ["incremental"], "{kinds:?} ({reason}): {}", output.stderr);
    Ok(output)
}

pub(super) fn size(source: &Machine, tracker: &Tracker) -> Result<u64> {
    Ok(source.sh(&format!("blockdev --getsize64 {}", tracker.device()))?.parse()?)
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
        println!("# {name}: two snapshots, frozen for {} ms", told_ms(&output, "frozen_ms")?);
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
    let mirror = Mirror::new([source, peer], name, 19)?;
    let device = mirror.device();
    source.sh(&format!("drbdadm primary {name}; /lab/blocks write {device} 1 0..1024"))?;
    allow_push(&pair, name, &format!("/srv/{name}.img"))?;

    refused(&push(source, name, "--mode rotate")?, exit::REFUSED, "unsupported")?;
    for kind in ["full", "scan"] {
        let report = Report::of(&push(source, name, "")?)?;
        ensure!(report.kinds() == [kind], "{:?}", report.kinds());
        is_current(&pair, name, &device)?;
        source.sh(&format!("/lab/blocks write {device} 2 512..2048"))?;
    }
    // Apart, the kernel has forgotten the peer, and its configuration has not.
    source.sh(&format!("drbdadm disconnect {name}; /lab/blocks write {device} 3 100..200"))?;
    let output = push(source, name, "--mode rotate")?;
    refused(&output, exit::REFUSED, "unsupported")?;
    ensure!(output.stderr.contains("the peer peer"), "{}", output.stderr);
    Report::of(&push(source, name, "")?)?;
    is_current(&pair, name, &device)?;
    source.sh(&format!("drbdadm connect {name}"))?;
    mirror.becomes(Mirror::TOGETHER)?;
    ensure!(snapshots(source)?.is_empty(), "snapshots are left");
    mirror.remove()?;
    target.sh(&format!("rm -rf /srv/{name}.img /srv/{name}.img.driftline"))?;
    Ok(())
}
