//! zvols, as `zfs send` streams: every way in which their content and shape can change.

use anyhow::{Result, ensure};

use crate::{
    lab::{Lab, Pair},
    replication::{Replication, exit, refused},
};

/// Each block size, and each codec that a stream of it can carry.
pub(super) fn shape(lab: &mut Lab, name: &'static str, create: &str) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, name, create)?;
    write_mixed(&pair, &replication, 1, 0)?;
    let first = replication.generation(&pair)?;
    ensure!(first.kind() == "full", "{}", first.kind());
    write_mixed(&pair, &replication, 2, 512)?;
    let device = replication.device();
    pair.source.sh(&format!("blkdiscard -o 1M -l 2M {device}"))?;
    let second = replication.generation(&pair)?;
    ensure!(second.kind() == "incremental", "{}", second.kind());
    // A few bytes in a block of zeros are small enough to travel in the block pointer.
    pair.source
        .sh(&format!("echo few | dd of={device} bs=1M seek=30 conv=notrunc,fsync status=none"))?;
    replication.generation(&pair)?;
    replication.remove(lab)
}

/// Noise, text and zeros from block `first` on, and space in between that is left as it was.
fn write_mixed(pair: &Pair<'_>, replication: &Replication, seed: u32, first: u32) -> Result<()> {
    replication.blocks(pair.source, "write", &format!("{seed} {first}..{}", first + 900))?;
    let device = replication.device();
    pair.source.sh(&format!(
        "seq -f 'line %g of {seed}' 1 200000 | dd of={device} bs=64k seek={} count=64 \
             iflag=fullblock conv=notrunc,fsync status=none
         dd if=/dev/zero of={device} bs=64k seek={} count=16 conv=notrunc,fsync status=none",
        first / 16 + 100,
        first / 16 + 120,
    ))?;
    Ok(())
}

pub(super) fn increments(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "zvol-increments", "-V 64M")?;
    replication.blocks(pair.source, "write", "1 0..4096")?;
    pair.source.sh(&format!(
        "systemd-run -q --unit=writer /lab/blocks churn {} 7 --pause-ms 100",
        replication.device()
    ))?;
    let mut sent = Vec::new();
    for _ in 0..6 {
        sent.push(replication.generation(&pair)?.sent());
    }
    // A writer that had stopped would leave nothing to replicate.
    pair.source.sh("systemctl is-active --quiet writer; systemctl stop writer")?;
    ensure!(sent.iter().all(|&bytes| bytes > 100_000), "nothing was written: {sent:?}");
    replication.remove(lab)
}

pub(super) fn grow(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "zvol-grow", "-V 16M")?;
    replication.blocks(pair.source, "write", "1 0..512")?;
    replication.generation(&pair)?;
    pair.source.sh("zfs set volsize=40M tank/zvol-grow; udevadm settle")?;
    replication.blocks(pair.source, "write", "2 9000..10240")?;
    replication.generation(&pair)?;
    has_size(&pair, &replication, 40)?;
    // Growth alone: no block changes.
    pair.source.sh("zfs set volsize=48M tank/zvol-grow; udevadm settle")?;
    replication.generation(&pair)?;
    has_size(&pair, &replication, 48)?;
    replication.remove(lab)
}

pub(super) fn shrink(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "zvol-shrink", "-V 48M")?;
    replication.blocks(pair.source, "write", "1 0..12288")?;
    replication.generation(&pair)?;
    pair.source.sh("zfs set volsize=16M tank/zvol-shrink; udevadm settle")?;
    replication.blocks(pair.source, "write", "2 4000..4096")?;
    replication.generation(&pair)?;
    has_size(&pair, &replication, 16)?;
    // What grows again is zeros, not what was cut off.
    pair.source.sh("zfs set volsize=48M tank/zvol-shrink; udevadm settle")?;
    replication.generation(&pair)?;
    has_size(&pair, &replication, 48)?;
    replication.remove(lab)
}

pub(super) fn discard(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "zvol-discard", "-V 32M")?;
    let device = replication.device();
    replication.blocks(pair.source, "write", "1 0..8192")?;
    replication.generation(&pair)?;
    // Aligned, unaligned, and one that a write fills again; each leaves other records.
    pair.source.sh(&format!(
        "blkdiscard -o 4M -l 8M {device}
         blkdiscard -o 20000768 -l 333824 {device}
         blkdiscard -o 26M -l 1M {device}"
    ))?;
    replication.blocks(pair.source, "write", "2 6700..6710")?;
    replication.generation(&pair)?;
    let allocated: u64 =
        pair.target.sh(&format!("du -m {} | cut -f1", replication.replica))?.parse()?;
    ensure!(allocated <= 24, "{allocated} MiB are allocated: holes were filled with zeros");
    // A volume that was emptied is not copied before a person agrees.
    pair.source.sh(&format!("blkdiscard {device}"))?;
    replication.take_snapshot(pair.source)?;
    refused(&replication.push(pair.source)?, 3, "source-emptied")?;
    pair.target.sh(&format!("driftline allow-loss file:{}", replication.replica))?;
    replication.arrives(&pair)?;
    replication.remove(lab)
}

pub(super) fn bookmark(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "zvol-bookmark", "-V 32M")?;
    replication.blocks(pair.source, "write", "1 0..4096")?;
    replication.generation(&pair)?;
    pair.source.sh("zfs bookmark tank/zvol-bookmark@s1 tank/zvol-bookmark#b1
         zfs destroy tank/zvol-bookmark@s1")?;
    replication.base = Some("#b1".to_owned());
    replication.blocks(pair.source, "write", "2 1000..1200 5000..5100")?;
    pair.source.sh(&format!("blkdiscard -o 2M -l 1M {}", replication.device()))?;
    let report = replication.generation(&pair)?;
    ensure!(report.kind() == "incremental", "{}", report.kind());
    replication.remove(lab)
}

pub(super) fn rollback(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "zvol-rollback", "-V 32M")?;
    replication.blocks(pair.source, "write", "1 0..1024")?;
    replication.generation(&pair)?;
    replication.blocks(pair.source, "write", "2 512..2048")?;
    replication.generation(&pair)?;
    let before = pair
        .target
        .sh("sha256sum < /srv/zvol-rollback.img; driftline status file:/srv/zvol-rollback.img")?;

    // Back to @s1, and on in another direction. The stream from @s1 fits the source, and not
    // the target, which is at the @s2 that is no more.
    pair.source.sh("zfs rollback -r tank/zvol-rollback@s1")?;
    replication.blocks(pair.source, "write", "3 600..700")?;
    replication.take_snapshot(pair.source)?;
    replication.base = Some("@s1".to_owned());
    let output = replication.push(pair.source)?;
    refused(&output, exit::REFUSED, "base-mismatch")?;

    // The same with a new snapshot of the old name: names decide nothing.
    pair.source.sh("zfs rename tank/zvol-rollback@s3 tank/zvol-rollback@s2")?;
    replication.blocks(pair.source, "write", "4 800..900")?;
    replication.take_snapshot(pair.source)?;
    replication.base = Some("@s2".to_owned());
    let output = replication.push(pair.source)?;
    refused(&output, exit::REFUSED, "base-mismatch")?;

    let after = pair
        .target
        .sh("sha256sum < /srv/zvol-rollback.img; driftline status file:/srv/zvol-rollback.img")?;
    ensure!(before == after, "a refused push changed the replica:\n{before}\n{after}");
    replication.remove(lab)
}

fn has_size(pair: &Pair<'_>, replication: &Replication, mib: u64) -> Result<()> {
    let size = pair.target.sh(&format!("stat -c %s {}", replication.replica))?;
    ensure!(size == (mib << 20).to_string(), "the replica has {size} bytes, not {mib} MiB");
    Ok(())
}
