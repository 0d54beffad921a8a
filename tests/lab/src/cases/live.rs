//! Volumes of the source's own ZFS, `driftline push zfs:POOL/NAME`: what every day brings.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::faults::{ARRIVED_MIB, INCREMENT_MIB, MOST_AGAIN, RATE};
use crate::{
    lab::{Lab, Pair},
    machine::{Machine, Output},
    replication::{Replication, Report, end_of, exit, live_push, refused, start},
};

/// A zvol that the source pushes from its own ZFS, and the replica of it.
pub(super) struct Live {
    pub(super) replication: Replication,
    /// What starts the program: nothing, or a command that makes it another user's.
    run_as: &'static str,
}

impl Live {
    /// Makes the zvol `tank/NAME` with `create`'s options of `zfs create`.
    pub(super) fn new(pair: &Pair<'_>, name: &'static str, create: &str) -> Result<Self> {
        Self::new_at(pair, name, &format!("tank/{name}"), create)
    }

    /// The same with another zvol.
    pub(super) fn new_at(
        pair: &Pair<'_>,
        name: &'static str,
        zvol: &str,
        create: &str,
    ) -> Result<Self> {
        let replica = format!("/srv/{name}.img");
        let replication = Replication::new_at(pair, name, zvol, create, &replica)?;
        Ok(Self { replication, run_as: "" })
    }

    /// The same zvol, to be pushed to another volume as well.
    fn second(&self, pair: &Pair<'_>, name: &'static str) -> Result<Self> {
        let first = self.replication.name;
        pair.target.sh(&format!(
            "sed -i 's/^push = .*/push = [\"{first}\", \"{name}\"]/' /etc/driftline/driftline.toml
             printf '[[volume]]\\nname = \"{name}\"\\ntarget = \"file:/srv/{name}.img\"\\n' \
                 >> /etc/driftline/driftline.toml
             systemctl restart driftline-serve"
        ))?;
        Ok(Self { replication: self.replication.fork(name), run_as: self.run_as })
    }

    /// The command that pushes it.
    fn command(&self, options: &str) -> String {
        let Self { replication: Replication { name, zvol, .. }, run_as } = self;
        live_push(zvol, name, options, run_as)
    }

    /// Pushes it, whatever comes of it.
    pub(super) fn push(&self, source: &Machine, options: &str) -> Result<Output> {
        source.run(&self.command(&format!("--quiet {options}")))
    }

    /// Starts to push it slowly, in the background, as the unit `push`.
    pub(super) fn push_slowly(&self, source: &Machine, rate: &str) -> Result<()> {
        start(source, "push", &self.command(&format!("--limit-rate {rate}")))
    }

    /// Pushes it, which must succeed, and compares the replica.
    pub(super) fn arrives(&self, pair: &Pair<'_>, options: &str) -> Result<Report> {
        let report = Report::of(&self.push(pair.source, options)?)?;
        self.is_equal(pair)?;
        Ok(report)
    }

    /// Pushes it, which must be incremental, and compares the replica.
    pub(super) fn increment_arrives(&self, pair: &Pair<'_>, options: &str) -> Result<Report> {
        let report = self.arrives(pair, options)?;
        ensure!(report.kind() == "incremental", "the increment is {}", report.kind());
        Ok(report)
    }

    /// Pushes it, which must fail with exit code 1 and these words, and change no replica.
    pub(super) fn fails(&self, pair: &Pair<'_>, options: &str, words: &str) -> Result<()> {
        let before = self.held(pair.target)?;
        let output = self.push(pair.source, options)?;
        ensure!(
            output.code == exit::FAILED && output.stderr.contains(words),
            "not failed as {words:?}: exit {}\n{}{}",
            output.code,
            output.stdout,
            output.stderr
        );
        self.is_still(pair.target, &before)
    }

    /// Compares the replica with the device of the snapshot that it says it is of.
    pub(super) fn is_equal(&self, pair: &Pair<'_>) -> Result<()> {
        let Replication { zvol, replica, .. } = &self.replication;
        let status = pair.target.sh(&format!("driftline status --json file:{replica}"))?;
        let status: Value = serde_json::from_str(&status).with_context(|| status.clone())?;
        let generation = status["generation"].as_str().unwrap_or_default();
        let guid = generation.strip_prefix("zfs:").context("a generation of ZFS")?;
        let expected = pair.source.sh(&format!(
            "name=$(zfs list -Hp -d 1 -t snapshot -o guid,name '{zvol}' |
                 awk -F '\\t' '$1 == \"{guid}\" {{ print $2 }}')
             device=/dev/zvol/${{name// /+}}
             [ -n \"$name\" ]
             for _ in {{1..400}}; do [ ! -b \"$device\" ] || break; sleep 0.05; done
             sha256sum < \"$device\""
        ))?;
        let actual = pair.target.sh(&format!("sha256sum < {replica}"))?;
        ensure!(expected == actual, "{zvol}, guid {guid}: the replica differs");
        Ok(())
    }

    /// What the target holds: content and generation.
    pub(super) fn held(&self, target: &Machine) -> Result<String> {
        let replica = &self.replication.replica;
        target.sh(&format!(
            "sha256sum < {replica}
             driftline status file:{replica} | grep -v -e ^resume -e '^written .* has it open'"
        ))
    }

    /// That the target still holds what it held.
    pub(super) fn is_still(&self, target: &Machine, before: &str) -> Result<()> {
        let after = self.held(target)?;
        ensure!(before == after, "a push that failed changed the replica:\n{before}\n{after}");
        Ok(())
    }

    /// Runs `blocks write` on it.
    pub(super) fn write(&self, source: &Machine, blocks: &str) -> Result<()> {
        self.replication.blocks(source, "write", blocks)
    }

    /// The names of its snapshots and bookmarks, from the `@` or `#` on: ours, and the others.
    pub(super) fn points(&self, source: &Machine) -> Result<(Vec<String>, Vec<String>)> {
        let zvol = &self.replication.zvol;
        let names =
            source.sh(&format!("zfs list -Hp -d 1 -t snapshot,bookmark -o name '{zvol}'"))?;
        let names = names.lines().filter_map(|name| name.strip_prefix(zvol.as_str()));
        Ok(names
            .map(str::to_owned)
            .partition(|name| name[1..].starts_with("driftline-") && name.len() > 20))
    }

    /// That one snapshot of ours remains, a bookmark at least, and no hold.
    pub(super) fn is_tidy(&self, source: &Machine) -> Result<()> {
        let (ours, _) = self.points(source)?;
        let snapshots = ours.iter().filter(|name| name.starts_with('@')).count();
        ensure!(snapshots == 1 && ours.len() > 1, "not one snapshot remains: {ours:?}");
        self.nothing_is_held(source)
    }

    /// That none of its snapshots is held.
    pub(super) fn nothing_is_held(&self, source: &Machine) -> Result<()> {
        let zvol = &self.replication.zvol;
        let holds = source.sh(&format!(
            "zfs list -H -d 1 -t snapshot -o name '{zvol}' | xargs -d '\\n' zfs holds -H"
        ))?;
        ensure!(holds.is_empty(), "a hold was left behind: {holds}");
        Ok(())
    }

    /// Brings the replica to its first generation, and an increment of so many MiB to its
    /// middle: [`ARRIVED_MIB`] have arrived, and the unit `push` is at work.
    pub(super) fn reaches_the_middle(&self, pair: &Pair<'_>, mib: u32, rate: &str) -> Result<()> {
        self.write(pair.source, "1 0..1024")?;
        self.arrives(pair, "")?;
        self.goes_into_the_middle(pair, 2, mib, rate)
    }

    /// The same of another increment.
    pub(super) fn goes_into_the_middle(
        &self,
        pair: &Pair<'_>,
        seed: u32,
        mib: u32,
        rate: &str,
    ) -> Result<()> {
        self.write(pair.source, &format!("{seed} 512..{}", 512 + mib * 256))?;
        self.push_slowly(pair.source, rate)?;
        self.replication.has_arrived(pair.target, ARRIVED_MIB)
    }

    /// Frees what the case took.
    pub(super) fn remove(self, lab: &mut Lab) -> Result<()> {
        self.replication.remove(lab)
    }
}

/// Kills the unit `push` and all its processes.
pub(super) fn kill_push(source: &Machine) -> Result<()> {
    source.sh("systemctl kill -s KILL push")?;
    source.until("! systemctl is-active --quiet push")
}

/// Waits until the unit `push` has ended: its exit code, and what it said if it failed.
pub(super) fn end_of_push(source: &Machine) -> Result<(String, String)> {
    let code = end_of(source, "push")?;
    let said = source.sh("journalctl --no-pager -o cat \
         _SYSTEMD_INVOCATION_ID=\"$(systemctl show -p InvocationID --value push)\"")?;
    Ok((code, said))
}

/// That the unit `push` ends well, and the replica is what it says.
pub(super) fn push_ends_well(pair: &Pair<'_>, live: &Live) -> Result<()> {
    let (code, said) = end_of_push(pair.source)?;
    ensure!(code == "0", "the push ended with {code}: {said}");
    live.is_equal(pair)
}

pub(super) fn increments(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-increments", "-V 64M")?;
    let zvol = &live.replication.zvol;
    live.write(pair.source, "1 0..4096")?;
    // One that is named nearly like ours.
    pair.source.sh(&format!(
        "zfs snapshot {zvol}@others; zfs snapshot {zvol}@driftline-1
         zfs bookmark {zvol}@others {zvol}#others
         systemd-run -q --unit=writer /lab/blocks churn {} 7 --pause-ms 100",
        live.replication.device()
    ))?;
    let first = live.arrives(&pair, "")?;
    ensure!(first.kind() == "full", "the first copy is {}", first.kind());
    for _ in 0..5 {
        let sent = live.increment_arrives(&pair, "")?.sent();
        ensure!(sent > 100_000, "nothing was written: {sent} bytes were sent");
    }
    pair.source.sh("systemctl is-active --quiet writer; systemctl stop writer")?;
    live.is_tidy(pair.source)?;
    let (_, mut others) = live.points(pair.source)?;
    others.sort();
    ensure!(others == ["#others", "@driftline-1", "@others"], "{others:?} is left of others'");
    live.remove(lab)
}

/// An increment that was cut goes on from our bookmark, its base destroyed: what had arrived
/// is neither read nor sent again, and what killed the first run left nothing behind.
fn resumes(pair: &Pair<'_>, live: &Live) -> Result<()> {
    live.reaches_the_middle(pair, INCREMENT_MIB, RATE)?;
    let (ours, _) = live.points(pair.source)?;
    kill_push(pair.source)?;
    live.nothing_is_held(pair.source)?;
    let zvol = &live.replication.zvol;
    let base = ours.iter().find(|name| name.starts_with('@')).context("the base")?;
    pair.source.sh(&format!("zfs destroy '{zvol}{base}'"))?;
    let report = live.increment_arrives(pair, "")?;
    let (read, sent) = (report.read(), report.sent());
    // What does not compress is read before it is sent.
    ensure!(
        sent / 2 < read && read < MOST_AGAIN && sent < MOST_AGAIN,
        "{read} bytes were read and {sent} sent, with {ARRIVED_MIB} MiB already there"
    );
    live.is_tidy(pair.source)
}

pub(super) fn resume(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-resume", "-V 64M")?;
    resumes(&pair, &live)?;
    live.remove(lab)
}

/// A first copy is resumed from checkpoints, 256 MiB apart. Text is soon there; the noise
/// before and after it is what counts, and what is slow enough to be cut.
pub(super) fn resume_full(lab: &mut Lab) -> Result<()> {
    const NOISE_MIB: u64 = 12;
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-resume-full", "-V 280M -b 128k")?;
    let (device, end) = (live.replication.device(), NOISE_MIB * 256);
    live.write(pair.source, &format!("1 0..{end} {}..{}", 67072, 67072 + end))?;
    pair.source.sh(&format!(
        "dd of={device} bs=1M seek={NOISE_MIB} count={} iflag=fullblock conv=notrunc,fsync \
             status=none < <(yes 'a line of text')",
        262 - NOISE_MIB
    ))?;
    live.push_slowly(pair.source, "4M")?;
    pair.target.until(&format!("[ $(du -m {} | cut -f1) -ge 264 ]", live.replication.replica))?;
    kill_push(pair.source)?;
    let status = format!("driftline status --json file:{}", live.replication.replica);
    // The target still takes in what was on its way.
    pair.target.until(&format!("({status} || true) | grep -q '\"incomplete\":true'"))?;
    let report = live.arrives(&pair, "")?;
    let (read, sent) = (report.read(), report.sent());
    ensure!(
        sent / 2 < read && read < (NOISE_MIB + 3) << 20 && sent < (NOISE_MIB + 3) << 20,
        "{read} bytes were read and {sent} sent, with 256 MiB already there"
    );
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

pub(super) fn read_back(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-read-back", "-V 32M")?;
    live.write(pair.source, "1 0..2048")?;
    live.arrives(&pair, "--read-back all")?;
    let device = live.replication.device();
    for (seed, what) in [(2, "changed"), (3, "all")] {
        live.write(pair.source, &format!("{seed} 1000..1500 7000..7001"))?;
        pair.source.sh(&format!("blkdiscard -o 1M -l 1M {device}"))?;
        live.increment_arrives(&pair, &format!("--read-back {what}"))?;
    }
    let snapdev = |value: &str| {
        pair.source.sh(&format!("zfs set snapdev={value} tank/live-read-back; udevadm settle"))
    };
    live.write(pair.source, "4 100..200")?;
    snapdev("hidden")?;
    for what in ["changed", "all"] {
        live.fails(&pair, &format!("--read-back {what}"), "`zfs set snapdev=visible`")?;
    }
    snapdev("visible")?;
    live.increment_arrives(&pair, "--read-back all")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

/// All is compared on request: by the devices of snapshots, or where there are none by a stream of
/// all of it, also if there is nothing new. The next increment is one again.
pub(super) fn compare(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-compare", "-V 64M")?;
    let compared = |options: &str, kind: &str| -> Result<()> {
        let report = Report::of(&live.push(pair.source, options)?)?;
        ensure!(report.kind() == kind, "{options} is {}, and not {kind}", report.kind());
        Ok(())
    };
    let snapdev = |value: &str| {
        pair.source.sh(&format!("zfs set snapdev={value} tank/live-compare; udevadm settle"))
    };
    live.write(pair.source, "1 0..2048")?;
    live.arrives(&pair, "--compare")?;
    live.write(pair.source, "2 1000..1100 9000..9001")?;
    compared("--compare", "scan")?;
    live.is_equal(&pair)?;
    live.write(pair.source, "3 5000..5100")?;
    live.increment_arrives(&pair, "--compare-every 1h")?;
    snapdev("hidden")?;
    live.write(pair.source, "4 5000..5050")?;
    compared("--compare", "full")?;
    compared("--compare --latest", "full")?;
    snapdev("visible")?;
    live.is_equal(&pair)?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

/// A user who may do to this volume what the README lists, and is nobody else.
pub(super) fn user(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut live = Live::new(&pair, "live-user", "-V 64M")?;
    pair.source.sh("id replicator 2> /dev/null || useradd -m replicator
         install -m 600 -o replicator /etc/driftline/secret.key /home/replicator/secret.key")?;
    live.run_as = "runuser -u replicator -- env DRIFTLINE_KEY=/home/replicator/secret.key";
    live.write(pair.source, "1 0..1024")?;
    let denied = live.push(pair.source, "")?;
    ensure!(
        denied.code == exit::FAILED && denied.stderr.contains("zfs allow"),
        "without a permission: exit {}, {}",
        denied.code,
        denied.stderr
    );
    pair.source
        .sh("zfs allow -u replicator send,snapshot,hold,bookmark,destroy,mount tank/live-user")?;
    resumes(&pair, &live)?;
    live.write(pair.source, "3 0..100")?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

pub(super) fn key(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    pair.source.sh("head -c 32 /dev/urandom > /var/tmp/live-key")?;
    let create = "-V 32M -o encryption=aes-256-gcm -o keyformat=raw \
                  -o keylocation=file:///var/tmp/live-key";
    let live = Live::new(&pair, "live-key", create)?;
    live.write(pair.source, "1 0..1024")?;
    live.arrives(&pair, "")?;
    live.write(pair.source, "2 512..2048")?;
    // udev may still be looking at the device.
    pair.source.until("zfs unload-key tank/live-key")?;
    live.fails(&pair, "", "the key of tank/live-key is not loaded")?;
    pair.source.sh("zfs load-key tank/live-key; udevadm settle")?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

/// Every character that a name can have.
pub(super) fn names(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new_at(&pair, "live-names", "tank/-o b/-r: 1.y_z", "-p -V 32M")?;
    let zvol = &live.replication.zvol;
    // This one is ZFS's own.
    pair.source.sh("! zfs create -s -V 1M tank/live%names 2> /dev/null")?;
    live.write(pair.source, "1 0..512")?;
    pair.source.sh(&format!("zfs snapshot '{zvol}@-r 1:2.3_4 x'"))?;
    live.arrives(&pair, "--snapshot='-r 1:2.3_4 x'")?;
    live.write(pair.source, "2 100..200")?;
    pair.source.sh(&format!("zfs snapshot '{zvol}@autosnap_2026-11-22_17:00:01_hourly'"))?;
    live.increment_arrives(&pair, "--latest --read-back changed")?;
    live.write(pair.source, "3 200..300")?;
    live.increment_arrives(&pair, "--read-back all")?;
    live.is_tidy(pair.source)?;
    let (_, others) = live.points(pair.source)?;
    ensure!(others.len() == 2, "{others:?} is left of others'");
    live.remove(lab)?;
    lab.source()?.sh("zfs destroy 'tank/-o b'")?;
    Ok(())
}

pub(super) fn renamed(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let mut live = Live::new(&pair, "live-renamed", "-V 32M")?;
    live.write(pair.source, "1 0..1024")?;
    live.arrives(&pair, "")?;
    pair.source.until("zfs rename tank/live-renamed tank/live-moved")?;
    pair.source.sh("udevadm settle")?;
    live.replication.zvol = "tank/live-moved".to_owned();
    live.write(pair.source, "2 512..600")?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

/// Two replicas of one volume, pushed at the same time.
pub(super) fn two(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let one = Live::new(&pair, "live-two", "-V 64M")?;
    let other = one.second(&pair, "live-second")?;
    for seed in 1..=3 {
        one.write(pair.source, &format!("{seed} 0..2048"))?;
        one.push_slowly(pair.source, "8M")?;
        // It has taken its snapshot and not yet arrived.
        pair.source.until("pgrep -x driftline")?;
        let report = other.arrives(&pair, "")?;
        let kind = if seed == 1 { "full" } else { "incremental" };
        ensure!(report.kind() == kind, "the second's is {}", report.kind());
        push_ends_well(&pair, &one)?;
    }
    let (ours, _) = one.points(pair.source)?;
    let snapshots = ours.iter().filter(|name| name.starts_with('@')).count();
    ensure!(snapshots == 2 && ours.len() > 3, "not a snapshot for each: {ours:?}");
    one.nothing_is_held(pair.source)?;
    pair.target.sh("rm -rf /srv/live-second.img /srv/live-second.img.driftline")?;
    one.remove(lab)
}

/// A clone of a volume that was pushed to the same target, 1 % of it written anew in scattered
/// blocks: nobody says what it is like.
pub(super) fn clone(lab: &mut Lab) -> Result<()> {
    const MIB: u64 = 128;
    let pair = lab.pair()?;
    let origin = Live::new(&pair, "zvol-clone", &format!("-V {MIB}M"))?;
    let blocks = MIB * 256;
    origin.write(pair.source, &format!("1 0..{blocks}"))?;
    let first = origin.arrives(&pair, "")?;
    ensure!(first.sent() > MIB << 20, "{} bytes of noise were sent", first.sent());
    let mut clone = origin.second(&pair, "zvol-clone-second")?;
    clone.replication.zvol = "tank/zvol-clone-second".to_owned();
    pair.source.sh("zfs snapshot tank/zvol-clone@golden
         zfs clone -o snapdev=visible tank/zvol-clone@golden tank/zvol-clone-second
         udevadm settle")?;
    clone.replication.blocks(pair.source, "scatter", &format!("2 {}", blocks / 100))?;
    let report = clone.arrives(&pair, "")?;
    ensure!(report.kind() == "full", "the first copy is {}", report.kind());
    let (sent, received) = (report.sent(), report.received());
    ensure!(
        sent * 50 <= MIB << 20,
        "{sent} bytes were sent and {received} received of a clone of {MIB} MiB"
    );
    clone.remove(lab)?;
    origin.remove(lab)
}

pub(super) fn no_bookmark(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-no-bookmark", "-V 32M")?;
    live.write(pair.source, "1 0..2048")?;
    live.arrives(&pair, "")?;
    let zvol = &live.replication.zvol;
    pair.source.sh(&format!(
        "zfs list -H -d 1 -t snapshot,bookmark -o name {zvol} | xargs -n 1 zfs destroy"
    ))?;
    live.write(pair.source, "2 1024..1200")?;
    let before = live.held(pair.target)?;
    let output = live.push(pair.source, "")?;
    refused(&output, exit::REFUSED, "base-mismatch")?;
    ensure!(output.stderr.contains("run again with `--full`"), "{}", output.stderr);
    live.is_still(pair.target, &before)?;
    pair.target.sh("echo 'overwrite = true' >> /etc/driftline/driftline.toml
         systemctl restart driftline-serve")?;
    let report = live.arrives(&pair, "--full")?;
    ensure!(report.kind() == "full", "the copy is {}", report.kind());
    // Only what differs moves, of 8 MiB.
    ensure!(report.sent() < 2 << 20, "{} bytes were sent", report.sent());
    live.write(pair.source, "3 0..10")?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

pub(super) fn clock(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-clock", "-V 32M")?;
    live.write(pair.source, "1 0..1024")?;
    live.arrives(&pair, "")?;
    for (seed, days) in [(2, -1), (3, 0), (4, 1)] {
        pair.source.sh(&format!("date -s @$(($(date +%s) + {days} * 86400))"))?;
        live.write(pair.source, &format!("{seed} 512..600"))?;
        live.increment_arrives(&pair, "")?;
        live.is_tidy(pair.source)?;
    }
    live.remove(lab)
}

/// A bandwidth limit: what moved took as long as that takes, at least.
pub(super) fn limit(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "limit", "-V 32M")?;
    // Without a limit it is there in a part of the time.
    live.write(pair.source, "1 0..2560")?;
    let clock =
        || Ok::<f64, anyhow::Error>(pair.source.sh("cut -d ' ' -f 1 /proc/uptime")?.parse()?);
    let started = clock()?;
    let report = Report::of(&live.push(pair.source, "--limit-rate 1M")?)?;
    let took = clock()? - started;
    let mib = (report.sent() + report.received()) as f64 / f64::from(1 << 20);
    // It may be ahead by a burst, of a tenth of a second.
    ensure!(mib > 10.0 && took > mib - 0.2, "{mib} MiB took {took} s at 1 MiB/s");
    live.is_equal(&pair)?;
    live.remove(lab)
}
