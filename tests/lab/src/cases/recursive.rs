//! A tree of data sets, each replicated by itself: `driftline push -r`.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::receive::write_files;
use crate::{
    lab::{Lab, Pair},
    machine::{Machine, Output},
    replication::{allow_push_to, exit, live_push, make_pool, remove_pool},
};

/// What takes part, as a path below the root; the volume is the last.
const MEMBERS: [&str; 4] = ["", "/home", "/home/ann", "/disk"];

/// What the pattern leaves out.
const EXCLUDED: &str = "/home/tmp";

fn push(source: &Machine) -> Result<Output> {
    let options = "--quiet -r --exclude '**/tmp'";
    source.run(&live_push("tank/recursive", "recursive", options, ""))
}

/// Our snapshots of a member, from the @ on.
fn snapshots(source: &Machine, member: &str) -> Result<Vec<String>> {
    let dataset = format!("tank/recursive{member}");
    let names =
        source.sh(&format!("zfs list -Hp -d 1 -t snapshot -o name -s createtxg {dataset}"))?;
    let names = names.lines().filter_map(|name| name.strip_prefix(&dataset));
    Ok(names.filter(|name| name.starts_with("@driftline-")).map(str::to_owned).collect())
}

/// That exactly the members are told, and what of each.
fn told(output: &Output) -> Result<Vec<(String, Value)>> {
    let line = output.stdout.lines().last().unwrap_or_default();
    let told: Value = serde_json::from_str(line).with_context(|| {
        format!("exit {}, it printed {:?}\n{}", output.code, output.stdout, output.stderr)
    })?;
    let volumes = told["volumes"].as_array().context("no volumes are told")?;
    let mut found: Vec<(String, Value)> = volumes
        .iter()
        .map(|volume| {
            let source = volume["source"].as_str().unwrap_or_default();
            (source.trim_start_matches("zfs:tank/recursive").to_owned(), volume.clone())
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let mut expected = MEMBERS;
    expected.sort_unstable();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(names == expected, "{names:?} took part, and not {expected:?}");
    Ok(found)
}

/// That all members were sent as of one instant.
fn of_one_instant(source: &Machine) -> Result<()> {
    let mut instants = Vec::new();
    for member in MEMBERS {
        let newest = snapshots(source, member)?;
        let newest = newest.last().with_context(|| format!("no snapshot of {member:?}"))?;
        instants.push(
            source
                .sh(&format!("zfs get -Hp -o value createtxg 'tank/recursive{member}{newest}'"))?,
        );
    }
    ensure!(instants.iter().all(|txg| *txg == instants[0]), "they are of {instants:?}");
    Ok(())
}

/// Compares a member with its newest snapshot: the identity, and the content.
fn is_equal(pair: &Pair<'_>, member: &str) -> Result<()> {
    let newest = snapshots(pair.source, member)?;
    let newest = newest.last().with_context(|| format!("no snapshot of {member:?}"))?;
    let digest = |machine: &Machine, root: &str| {
        let name = format!("{root}{member}{newest}");
        let content = if member == "/disk" {
            format!("udevadm settle; sha256sum < '/dev/zvol/{name}'")
        } else {
            format!(
                "mkdir -p /run/look; mount -t zfs '{name}' /run/look
                 (cd /run/look; find . -type f -print0 | sort -z | xargs -0r sha256sum) | sha256sum
                 umount /run/look"
            )
        };
        machine.sh(&format!("zfs get -Hp -o value guid '{name}'\n{content}"))
    };
    let expected = digest(pair.source, "tank/recursive")?;
    let received = digest(pair.target, "back/recursive")?;
    ensure!(received == expected, "{member:?} at {newest}: {received} is not {expected}");
    Ok(())
}

pub(super) fn recursive(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let (source, target) = (pair.source, pair.target);
    source.sh(
        "zfs create -o mountpoint=/tank/recursive -o snapdev=visible tank/recursive
         zfs create tank/recursive/home; zfs create tank/recursive/home/ann
         zfs create tank/recursive/home/tmp; zfs create -s -V 16M tank/recursive/disk
         udevadm settle; echo root > /tank/recursive/root; echo tmp > /tank/recursive/home/tmp/x",
    )?;
    write_files(&pair, "recursive/home/ann")?;
    make_pool(target, "3G")?;
    // The volume has no such property, and arrives all the same.
    let place = "target = \"zfs:back/recursive\"\ntree = true\n\
                 [volume.receive]\nset_properties = [\"canmount=noauto\"]";
    allow_push_to(&pair, "recursive", place)?;
    for round in 1..=2 {
        source.sh(&format!(
            "seq {round}0000 > /tank/recursive/home/numbers; echo {round} > /tank/recursive/home/ann/x
             /lab/blocks write /dev/zvol/tank/recursive/disk {round} {round}00..1000"
        ))?;
        let output = push(source)?;
        ensure!(output.code == 0, "exit {}\n{}{}", output.code, output.stdout, output.stderr);
        for (member, volume) in told(&output)? {
            ensure!(volume["result"] == "committed", "{member:?}: {volume}");
            is_equal(&pair, &member)?;
        }
        of_one_instant(source)?;
    }
    let excluded = target.run(&format!("zfs list back/recursive{EXCLUDED}"))?;
    ensure!(excluded.code != 0, "what is excluded arrived: {}", excluded.stdout);
    ensure!(snapshots(source, EXCLUDED)?.is_empty(), "what is excluded has a snapshot");

    // One member has a past of its own there: it is refused, and the others arrive.
    let diverged = "/home/ann";
    target.sh(&format!(
        "mkdir -p /run/mine; mount -t zfs -o zfsutil back/recursive{diverged} /run/mine; touch /run/mine/mine
         umount /run/mine; zfs snapshot back/recursive{diverged}@mine"
    ))?;
    let before = snapshots(source, diverged)?;
    source.sh("echo 3 > /tank/recursive/root; echo 3 > /tank/recursive/home/ann/x
         /lab/blocks write /dev/zvol/tank/recursive/disk 3 0..10")?;
    let output = push(source)?;
    ensure!(output.code == exit::REFUSED, "exit {}\n{}", output.code, output.stderr);
    for (member, volume) in told(&output)? {
        if member == diverged {
            ensure!(volume["error"]["reason"] == "base-mismatch", "{volume}");
        } else {
            ensure!(volume.get("error").is_none(), "{volume}");
            is_equal(&pair, &member)?;
        }
    }
    let after = snapshots(source, diverged)?;
    ensure!(before == after, "a snapshot that was not sent is left: {after:?}");
    target.sh(&format!(
        "base=$(zfs list -Hp -d 1 -t snapshot -o name -S createtxg back/recursive{diverged} |
             grep -v @mine | head -n 1)
         zfs rollback -r $base"
    ))?;
    let output = push(source)?;
    ensure!(output.code == 0, "exit {}\n{}", output.code, output.stderr);
    MEMBERS.iter().try_for_each(|member| is_equal(&pair, member))?;
    of_one_instant(source)?;

    remove_pool(target)?;
    source.until("zfs destroy -r tank/recursive")
}
