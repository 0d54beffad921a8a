//! Bad days of a replication: whatever ends in the middle, the next run goes on from there.

use anyhow::{Result, ensure};

use crate::{
    lab::{Lab, Role},
    replication::{Replication, Report, configure, exit, lost_connection, refused, start},
};

/// Size of the increment that is cut, and how much of it has arrived by then.
pub(super) const INCREMENT_MIB: u32 = 24;
pub(super) const ARRIVED_MIB: u32 = 8;

/// What may move in the next run, in bytes: not all that had arrived again.
pub(super) const MOST_AGAIN: u64 = ((INCREMENT_MIB - ARRIVED_MIB / 2) as u64) << 20;

/// Slow enough to be cut where we want, and done soon enough where it is not.
pub(super) const RATE: &str = "2M";

/// A replica at its first generation, and an increment that has arrived in part.
fn in_the_middle(lab: &mut Lab, name: &'static str) -> Result<Replication> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, name, "-V 64M")?;
    replication.blocks(pair.source, "write", "1 0..1024")?;
    replication.generation(&pair)?;
    let blocks = INCREMENT_MIB * 256;
    replication.blocks(pair.source, "write", &format!("2 512..{}", 512 + blocks))?;
    replication.take_snapshot(pair.source)?;
    replication.push_slowly(pair.source, RATE)?;
    replication.has_arrived(pair.target, ARRIVED_MIB)?;
    Ok(replication)
}

/// The next run must succeed.
fn ends_well(lab: &mut Lab, replication: &mut Replication) -> Result<u64> {
    let pair = lab.pair()?;
    Ok(replication.arrives(&pair)?.sent())
}

/// The next run must succeed, and move only what had not arrived.
fn goes_on(lab: &mut Lab, mut replication: Replication) -> Result<()> {
    let sent = ends_well(lab, &mut replication)?;
    ensure!(sent < MOST_AGAIN, "{sent} bytes were sent, with {ARRIVED_MIB} MiB already there");
    replication.remove(lab)
}

pub(super) fn kill_pusher(lab: &mut Lab) -> Result<()> {
    let replication = in_the_middle(lab, "kill-pusher")?;
    lab.source()?.sh("systemctl kill -s KILL push; ! systemctl is-active --quiet push")?;
    goes_on(lab, replication)
}

pub(super) fn kill_target(lab: &mut Lab) -> Result<()> {
    let replication = in_the_middle(lab, "kill-target")?;
    let pair = lab.pair()?;
    pair.target.sh("systemctl kill -s KILL driftline-serve")?;
    lost_connection(pair.source, "push")?;
    // Its unit starts it again.
    pair.target.until("systemctl is-active --quiet driftline-serve")?;
    goes_on(lab, replication)
}

/// The other direction: the target pulls, and the source's service is killed.
pub(super) fn kill_server(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "kill-server", "-V 64M")?;
    replication.blocks(pair.source, "write", "1 0..1024")?;
    let stream = "source = \"zstream:/var/tmp/kill-server.zs\"";
    let may = ("target", "pull");
    configure(pair.source, "/run/serve.toml", 7421, may, "kill-server", stream)?;
    let serve = || {
        start(pair.source, "serve", "exec driftline serve --config /run/serve.toml")?;
        pair.source.until("ss -Hltn sport = 7421 | grep -q .")
    };
    let pull = |options: &str| {
        format!(
            "export DRIFTLINE_PEER=$(cat /lab/keys/source.pub)
             driftline pull --json {options} kill-server@10.7.0.1:7421 file:{}",
            replication.replica
        )
    };
    let (at_once, slowly) = (pull("--quiet"), pull(&format!("--limit-rate {RATE}")));

    replication.take_snapshot(pair.source)?;
    pair.source.sh("zfs send -Lce tank/kill-server@s1 > /var/tmp/kill-server.zs")?;
    serve()?;
    Report::of(&pair.target.run(&at_once)?)?;
    replication.is_equal(&pair, 1)?;

    let blocks = INCREMENT_MIB * 256;
    replication.blocks(pair.source, "write", &format!("2 512..{}", 512 + blocks))?;
    replication.take_snapshot(pair.source)?;
    pair.source.sh("zfs send -Lce -i @s1 tank/kill-server@s2 > /var/tmp/kill-server.zs")?;
    start(pair.target, "pull", &slowly)?;
    replication.has_arrived(pair.target, ARRIVED_MIB)?;
    pair.source.sh("systemctl kill -s KILL serve")?;
    lost_connection(pair.target, "pull")?;
    serve()?;
    let received = Report::of(&pair.target.run(&at_once)?)?.received();
    ensure!(received < MOST_AGAIN, "{received} bytes came again");
    replication.is_equal(&pair, 2)?;
    pair.source.sh("systemctl stop serve; rm /var/tmp/kill-server.zs")?;
    replication.remove(lab)
}

pub(super) fn power_source(lab: &mut Lab) -> Result<()> {
    let replication = in_the_middle(lab, "power-source")?;
    lab.power_off(Role::Source)?;
    goes_on(lab, replication)
}

pub(super) fn power_target(lab: &mut Lab) -> Result<()> {
    let mut replication = in_the_middle(lab, "power-target")?;
    lab.power_off(Role::Target)?;
    // What had arrived lay in the target's memory: the checkpoint is further on.
    ends_well(lab, &mut replication)?;
    replication.remove(lab)
}

pub(super) fn power_first_copy(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut replication = Replication::new(&pair, "power-first-copy", "-V 64M")?;
    replication.blocks(pair.source, "write", "1 0..8192")?;
    replication.take_snapshot(pair.source)?;
    replication.push_slowly(pair.source, RATE)?;
    pair.target.until("[ $(du -m /srv/power-first-copy.img | cut -f1) -ge 8 ]")?;
    lab.power_off(Role::Target)?;
    let pair = lab.pair()?;
    // Half a copy is not a generation, and says so.
    let status = "driftline status --json file:/srv/power-first-copy.img || [ $? = 10 ]";
    let status = pair.target.sh(status)?;
    ensure!(status.contains("\"incomplete\":true"), "{status}");
    replication.arrives(&pair)?;
    replication.remove(lab)
}

pub(super) fn cable_short(lab: &mut Lab) -> Result<()> {
    let mut replication = in_the_middle(lab, "cable-short")?;
    let pair = lab.pair()?;
    pair.target.cable(0, false)?;
    pair.source.sh("sleep 5")?;
    pair.target.cable(0, true)?;
    // TCP bridges it: the session that was cut is the one that ends well.
    pair.source.until("! systemctl is-active --quiet push")?;
    let result = pair.source.sh("systemctl show -p Result --value push")?;
    ensure!(result == "success", "the push ended as {result}");
    let report = Report::of(&replication.push(pair.source)?)?;
    ensure!(report.sent() < 10_000, "{} bytes for nothing new", report.sent());
    replication.arrives(&pair)?;
    replication.remove(lab)
}

pub(super) fn cable_long(lab: &mut Lab) -> Result<()> {
    let replication = in_the_middle(lab, "cable-long")?;
    let pair = lab.pair()?;
    pair.target.cable(0, false)?;
    // Both sides give up by themselves, after a minute of silence.
    lost_connection(pair.source, "push")?;
    pair.target.cable(0, true)?;
    goes_on(lab, replication)
}

pub(super) fn target_full(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    pair.target.sh("truncate -s 64M /srv/small.ext4; mkfs.ext4 -q /srv/small.ext4
         mkdir -p /srv/small; mount -o loop /srv/small.ext4 /srv/small")?;
    let image = "/srv/small/target-full.img";
    let (name, zvol) = ("target-full", "tank/target-full");
    let mut replication = Replication::new_at(&pair, name, zvol, "-V 48M", image)?;
    replication.blocks(pair.source, "write", "1 0..4096")?;
    replication.generation(&pair)?;
    let before = pair.target.sh(&format!("driftline status file:{image}"))?;

    pair.target.sh("fallocate -l 28M /srv/small/somebody-elses")?;
    replication.blocks(pair.source, "write", "2 2048..6144")?;
    replication.take_snapshot(pair.source)?;
    let output = replication.push(pair.source)?;
    refused(&output, exit::TARGET_FULL, "target-full")?;
    // The old generation stands, whole.
    let after = pair.target.sh(&format!("driftline status file:{image} | grep -v resume"))?;
    ensure!(before == after, "the replica's books changed:\n{before}\n{after}");
    replication.is_equal(&pair, 1)?;

    pair.target.sh("rm /srv/small/somebody-elses")?;
    replication.arrives(&pair)?;
    replication.remove(lab)?;
    lab.pair()?
        .target
        .sh("systemctl stop driftline-serve; umount /srv/small; rm /srv/small.ext4")?;
    Ok(())
}
