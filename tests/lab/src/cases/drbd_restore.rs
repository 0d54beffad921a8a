//! `driftline restore … drbd:RESOURCE/VOLUME`: through the device of a Primary, and to its peer.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::drbd::Mirror;
use crate::{
    lab::Lab,
    machine::{Machine, Output},
    replication::{exit, refused},
};

const NAME: &str = "drbd-restore";
const MINOR: u32 = 8;
const DEVICE: &str = "/dev/drbd8";
const REPLICA: &str = "/var/tmp/drbd-restore.img";

fn restore(source: &Machine, from: &str, options: &str) -> Result<Output> {
    source.run(&format!("driftline restore --json --quiet {options} {from} drbd:{NAME}/0"))
}

/// Restores the replica, and says how many bytes that wrote.
fn restored(source: &Machine) -> Result<u64> {
    let output = restore(source, &format!("file:{REPLICA}"), "--overwrite")?;
    ensure!(output.code == 0, "exit {}\n{}", output.code, output.stderr);
    let report: Value = serde_json::from_str(&output.stdout)?;
    ensure!(report["verified"] == true, "{report}");
    report["bytes"]["written"].as_u64().context("bytes written")
}

/// A connected pair, written to, brought back to what was replicated of it: on both halves.
pub(super) fn pair(lab: &mut Lab) -> Result<()> {
    let (source, peer) = lab.drbd_pair()?;
    let mirror = Mirror::new([source, peer], NAME, MINOR)?;

    // Nothing is written by force.
    source.sh(&format!("truncate -s 1M {REPLICA}"))?;
    let output = restore(source, &format!("file:{REPLICA}"), "--overwrite")?;
    refused(&output, exit::REFUSED, "unsupported")?;
    let says = format!("drbdadm primary {NAME}");
    ensure!(output.stdout.contains(&says), "{says} is not in {}", output.stdout);
    source.sh(&format!("rm {REPLICA}; drbdadm primary {NAME}"))?;

    source.sh(&format!(
        "/lab/blocks write {DEVICE} 1 0..1024
         driftline push --quiet drbd:{NAME}/0 file:{REPLICA}
         /lab/blocks write {DEVICE} 2 512..2048"
    ))?;
    let before = source.sh(&format!("sha256sum < {DEVICE}"))?;
    let output = restore(source, &format!("file:{REPLICA}"), "")?;
    refused(&output, exit::REFUSED, "target-foreign")?;
    ensure!(source.sh(&format!("sha256sum < {DEVICE}"))? == before, "a refused restore wrote");

    let written = restored(source)?;
    ensure!(written == 1536 * 4096, "1536 blocks differ, and {written} bytes were written");
    same(&mirror, source, peer)?;
    let written = restored(source)?;
    ensure!(written == 0, "nothing differs, and {written} bytes were written");

    // What is mounted is in use.
    source.sh(&format!("mkfs.ext4 -q {DEVICE}; mount {DEVICE} /mnt; echo later > /mnt/file"))?;
    let output = restore(source, &format!("file:{REPLICA}"), "--overwrite")?;
    refused(&output, exit::REFUSED, "target-busy")?;
    source.sh("umount /mnt")?;
    restored(source)?;
    same(&mirror, source, peer)?;

    source.sh("truncate -s 96M /var/tmp/large.img")?;
    refused(
        &restore(source, "file:/var/tmp/large.img", "--overwrite")?,
        exit::TARGET_FULL,
        "target-full",
    )?;
    mirror.remove()?;
    source.sh(&format!("rm -r {REPLICA} {REPLICA}.driftline /var/tmp/large.img"))?;
    Ok(())
}

/// That the device is what the replica holds, and so is the disk of the peer.
fn same(mirror: &Mirror<'_>, source: &Machine, peer: &Machine) -> Result<()> {
    let expected = source.sh(&format!("sha256sum < {REPLICA}"))?;
    let found = source.sh(&format!("sha256sum < {DEVICE}"))?;
    ensure!(found == expected, "the device is not what was restored");
    ensure!(mirror.sum_below(peer)? == expected, "the peer is not what was restored");
    Ok(())
}
