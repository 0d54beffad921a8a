//! A tree that goes by one stream (`--with tree`), and members of one that cannot be snapshotted.

use anyhow::{Result, ensure};

use super::drbd_live::{SHIMS, shim, unshim};
use crate::{
    lab::{Lab, Pair},
    machine::{Machine, Output},
    replication::{Report, allow_push_to, exit, live_push, make_pool, remove_pool, start},
};

/// The data sets of the tree, as paths below its root; the stream has them in this order.
const MEMBERS: [&str; 4] = ["", "/a", "/b", "/b/disk"];

/// The one in which the stream is cut off.
const CUT: &str = "/b";

fn command(options: &str) -> String {
    live_push("tank/forest", "forest", &format!("--with tree {options}"), "")
}

fn push(source: &Machine) -> Result<Output> {
    source.run(&command("--quiet"))
}

/// Our newest snapshot of a member, from the @ on.
fn newest(source: &Machine, member: &str) -> Result<String> {
    source.sh(&format!(
        "zfs list -Hp -d 1 -t snapshot -o name -S createtxg 'tank/forest{member}' |
             sed -n 's/^[^@]*//; /^@driftline-/p' | head -n 1"
    ))
}

/// That every member is there at the root's newest snapshot, by its guid and its content.
fn are_equal(pair: &Pair<'_>) -> Result<()> {
    let tip = newest(pair.source, "")?;
    for member in MEMBERS {
        let digest = |machine: &Machine, root: &str| {
            let name = format!("{root}{member}{tip}");
            let content = if member == "/b/disk" {
                format!("udevadm settle; sha256sum < '/dev/zvol/{name}'")
            } else {
                format!(
                    "mkdir -p /run/look; mount -t zfs '{name}' /run/look
                     (cd /run/look; find . -type f -print0 | sort -z | xargs -0r sha256sum) |
                         sha256sum
                     umount /run/look"
                )
            };
            machine.sh(&format!("zfs get -Hp -o value guid '{name}'\n{content}"))
        };
        let expected = digest(pair.source, "tank/forest")?;
        let received = digest(pair.target, "back/forest")?;
        ensure!(received == expected, "{member:?} at {tip}: {received} is not {expected}");
    }
    Ok(())
}

/// Pushes, which must make all members equal; gives what it told.
fn completes(pair: &Pair<'_>) -> Result<(Report, String)> {
    let output = push(pair.source)?;
    let report = Report::of(&output)?;
    are_equal(pair)?;
    Ok((report, output.stderr))
}

/// Writes 24 MiB to the member in which the stream is to be cut off, pushes slowly, and kills the
/// push when some of it has arrived; ZFS then keeps that under a token.
fn cut(pair: &Pair<'_>) -> Result<()> {
    pair.source.sh(&format!("head -c 24M /dev/urandom > /tank/forest{CUT}/big; sync"))?;
    start(pair.source, "push", &command("--limit-rate 512K"))?;
    pair.target.until(&format!(
        "written=$(zfs get -Hp -o value written back/forest{CUT}/%recv 2> /dev/null ||
             zfs get -Hp -o value written back/forest{CUT} 2> /dev/null || echo 0)
         [ $written -gt 4000000 ]"
    ))?;
    pair.source.sh("systemctl kill -s KILL push")?;
    pair.target
        .until(&format!("[ $(zfs get -Hp -o value receive_resume_token back/forest{CUT}) != - ]"))
}

/// How many snapshots of ours a member has.
fn count(source: &Machine, member: &str) -> Result<String> {
    source.sh(&format!(
        "zfs list -Hp -d 1 -t snapshot -o name 'tank/forest{member}' | grep -c @driftline- || true"
    ))
}

pub(super) fn by_one_stream(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, target) = (pair.source, pair.target);
    source.sh("zfs create -o mountpoint=/tank/forest -o snapdev=visible tank/forest
         zfs create tank/forest/a; zfs create tank/forest/b
         zfs create -s -V 16M tank/forest/b/disk
         udevadm settle; echo root > /tank/forest/root; seq 10000 > /tank/forest/a/numbers
         /lab/blocks write /dev/zvol/tank/forest/b/disk 1 0..1000")?;
    make_pool(target, "3G")?;
    allow_push_to(&pair, "forest", "target = \"zfs:back/forest\"")?;

    // A first copy, and an increment, killed below the root: the next run, with a snapshot of its
    // own, completes what is behind, and moves no more than the rest.
    for round in ["first copy", "increment"] {
        cut(&pair)?;
        let root = target.sh("zfs list -Hp -d 1 -t snapshot -o name back/forest | tail -n 1")?;
        let behind = target.run(&format!("zfs list 'back/forest{CUT}@{}'", after_at(&root)))?;
        ensure!(behind.code != 0, "{round}: it was not cut off below the root");
        let (report, _) = completes(&pair)?;
        ensure!(report.sent() < 23 << 20, "{round}: {} bytes were sent", report.sent());
        for member in MEMBERS {
            let left = count(source, member)?;
            ensure!(left == "1", "{round}: {left} snapshots of {member:?} are left");
        }
    }

    // The snapshot of what was cut off is destroyed: the part is thrown away by itself.
    cut(&pair)?;
    source.until(&format!("zfs destroy -r tank/forest{}", newest(source, "")?))?;
    let (_, said) = completes(&pair)?;
    ensure!(said.contains("nobody can resume"), "it was not told: {said}");

    // A clone keeps one of our snapshots, and nothing else stays for it.
    let kept = newest(source, "/a")?;
    source.sh(&format!("zfs clone tank/forest/a{kept} tank/work"))?;
    for round in 1..=2 {
        source.sh(&format!("echo {round} > /tank/forest/a/round"))?;
        let (_, said) = completes(&pair)?;
        ensure!(said.contains("clone tank/work"), "round {round}: {said}");
    }
    let (cloned, other) = (count(source, "/a")?, count(source, "")?);
    ensure!((&*cloned, &*other) == ("2", "1"), "{cloned} and {other} snapshots are left");
    source.until("zfs destroy tank/work")?;
    completes(&pair)?;
    ensure!(count(source, "/a")? == "1", "what the clone kept is left");

    remove_pool(target)?;
    source.until("zfs destroy -r tank/forest")
}

fn after_at(name: &str) -> &str {
    name.trim().split_once('@').map_or("", |(_, short)| short)
}

/// A thick volume without room for a snapshot, one whose name gets too long, and one that is
/// destroyed while the run is under way: the others arrive, from one instant.
pub(super) fn bad_members(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, target) = (pair.source, pair.target);
    let long = "l".repeat(215);
    source.sh(&format!(
        "truncate -s 512M /srv/narrow.pool; zpool create -f -m none narrow /srv/narrow.pool
         zfs create narrow/t; zfs create -o mountpoint=/narrow-a narrow/t/a
         zfs create -o mountpoint=/narrow-b narrow/t/b; zfs create narrow/t/{long}
         zfs create narrow/t/gone
         zfs create -V 40M -o compression=off narrow/t/thick; udevadm settle
         head -c 30M /dev/urandom > /dev/zvol/narrow/t/thick
         seq 10000 > /narrow-a/numbers; seq 20000 > /narrow-b/numbers; zpool sync narrow
         # A snapshot of it would need 30 MiB.
         free=$(zfs get -Hp -o value available narrow)
         zfs create -u -o refreservation=$((free - (16 << 20))) narrow/somebody-elses"
    ))?;
    make_pool(target, "3G")?;
    allow_push_to(&pair, "narrow", "target = \"zfs:back/narrow\"\ntree = true")?;
    // It goes as soon as the tree was listed.
    shim(
        source,
        "zfs",
        "real \"$@\"
if [[ $* == list*' -r '*' narrow/t' ]]; then real destroy narrow/t/gone 2> /dev/null || true; fi",
    )?;
    let run_as = &format!("env PATH={SHIMS}:$PATH");
    for round in 1..=2 {
        let output = source.run(&live_push("narrow/t", "narrow", "--quiet -r", run_as))?;
        let vanished = output.stderr.contains("narrow/t/gone@driftline-");
        ensure!(vanished == (round == 1), "round {round}: {}", output.stderr);
        ensure!(output.code == exit::FAILED, "round {round}: exit {}", output.code);
        for words in [
            "zfs:narrow/t/thick: ",
            "the source's own pool has no room",
            "--exclude",
            &format!("narrow/t/{long}@driftline-"),
            "255",
        ] {
            ensure!(output.stderr.contains(words), "{words} is not in {}", output.stderr);
        }
        for member in ["", "/a", "/b"] {
            let guid = |machine: &Machine, root: &str| {
                machine.sh(&format!(
                    "zfs list -Hp -d 1 -t snapshot -o guid -S createtxg {root}{member} | head -n 1"
                ))
            };
            let (sent, arrived) = (guid(source, "narrow/t")?, guid(target, "back/narrow")?);
            ensure!(sent == arrived && !sent.is_empty(), "{member:?}: {sent} and {arrived}");
        }
        let txgs = source.sh("for name in narrow/t narrow/t/a narrow/t/b; do
                 zfs list -Hp -d 1 -t snapshot -o createtxg -S createtxg $name | head -n 1
             done | sort -u | wc -l")?;
        ensure!(txgs == "1", "they are of {txgs} instants");
        let left =
            source.sh("zfs list -Hp -t snapshot -o name | grep -c narrow/t/thick@ || true")?;
        ensure!(left == "0", "{left} snapshots of the volume without room");
    }
    unshim(source)?;
    remove_pool(target)?;
    source.until("zpool destroy -f narrow")?;
    source.sh("rm /srv/narrow.pool").map(drop)
}
