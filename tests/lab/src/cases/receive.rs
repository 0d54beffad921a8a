//! Targets that are ZFS: replicas on volumes that ZFS keeps, and data sets that receive streams.

use anyhow::{Result, ensure};

use crate::{
    lab::{Lab, Pair, Role},
    machine::{Machine, Output},
    replication::{
        Report, allow_push_to, configure, exit, live_push, lost_connection, make_pool, refused,
        remove_pool, start,
    },
};

/// A data set of the source that goes to the pool `back`, which is made on the target for it.
pub(super) struct Copy {
    /// Its name below `tank`, and the name of the volume.
    pub(super) name: &'static str,
    /// The target: `zvol:back/NAME` or `zfs:back/NAME`.
    pub(super) place: String,
}

impl Copy {
    /// Makes the data set with `create`'s options of `zfs create`.
    pub(super) fn new(
        pair: &Pair<'_>,
        name: &'static str,
        kind: &str,
        create: &str,
    ) -> Result<Self> {
        pair.source.sh(&format!("zfs create {create} tank/{name}; udevadm settle"))?;
        make_pool(pair.target, "3G")?;
        let copy = Self { name, place: format!("{kind}:back/{name}") };
        copy.serve(pair, "")?;
        Ok(copy)
    }

    /// Lets the source push it, with more lines about the volume in the configuration.
    pub(super) fn serve(&self, pair: &Pair<'_>, more: &str) -> Result<()> {
        allow_push_to(pair, self.name, &format!("target = \"{}\"\n{more}", self.place))
    }

    pub(super) fn command(&self, options: &str) -> String {
        live_push(&format!("tank/{}", self.name), self.name, options, "")
    }

    pub(super) fn push(&self, source: &Machine, options: &str) -> Result<Output> {
        source.run(&self.command(&format!("--quiet {options}")))
    }

    /// Pushes, which must succeed.
    pub(super) fn arrives(&self, source: &Machine, options: &str) -> Result<Report> {
        Report::of(&self.push(source, options)?)
    }

    /// The newest snapshot of the source's data set.
    pub(super) fn newest(&self, source: &Machine) -> Result<String> {
        source.sh(&format!(
            "zfs list -Hp -d 1 -t snapshot -o name -S createtxg tank/{} | head -n 1",
            self.name
        ))
    }

    /// Compares the replica, and its newest snapshot, with the source's newest snapshot.
    pub(super) fn volumes_are_equal(&self, pair: &Pair<'_>) -> Result<()> {
        let name = self.name;
        let newest = self.newest(pair.source)?;
        let expected = pair.source.sh(&format!("sha256sum < '/dev/zvol/{newest}'"))?;
        let replica = pair.target.sh(&format!("sha256sum < /dev/zvol/back/{name}"))?;
        ensure!(replica == expected, "the replica of {newest} differs");
        let kept = pair.target.sh(&format!(
            "kept=$(zfs list -Hp -d 1 -t snapshot -o name -S createtxg back/{name} | head -n 1)
             udevadm settle
             sha256sum < \"/dev/zvol/$kept\""
        ))?;
        ensure!(kept == expected, "what is kept of {newest} differs");
        let property = pair.target.sh(&format!("zfs get -Hp -o value readonly back/{name}"))?;
        ensure!(property == "on", "the replica can be written: readonly={property}");
        Ok(())
    }

    /// Compares all files below the data sets, and the guids of the newest snapshots.
    pub(super) fn files_are_equal(&self, pair: &Pair<'_>) -> Result<()> {
        let newest = self.newest(pair.source)?;
        let snapshot = newest.split_once('@').map_or("", |(_, snapshot)| snapshot);
        let digest = |machine: &Machine, name: &str| {
            machine.sh(&format!(
                "mkdir -p /run/look; mount -t zfs '{name}' /run/look
                 (cd /run/look; find . -type f -print0 | sort -z | xargs -0r sha256sum; find . | sort) |
                     sha256sum
                 umount /run/look
                 zfs get -Hp -o value guid '{name}'"
            ))
        };
        let expected = digest(pair.source, &newest)?;
        let received = digest(pair.target, &format!("back/{}@{snapshot}", self.name))?;
        ensure!(received == expected, "{newest}: {received} is not {expected}");
        Ok(())
    }

    /// Cuts an increment of a file system in the middle: ZFS keeps what it has, and its token
    /// says where to go on.
    pub(super) fn is_cut_and_goes_on(&self, pair: &Pair<'_>) -> Result<()> {
        let name = self.name;
        pair.source.sh(&format!("head -c 24M /dev/urandom > /tank/{name}/next; sync"))?;
        // Slow enough that it is not whole before it is killed, also on a machine that is busy.
        start(pair.source, "push", &self.command("--limit-rate 512K"))?;
        pair.target.until(&format!(
            "written=$(zfs get -Hp -o value written back/{name}/%recv 2> /dev/null || echo 0)
             [ $written -gt 6000000 ]"
        ))?;
        pair.source.sh("systemctl kill -s KILL push")?;
        pair.target.until(&self.has_token())?;
        let status = pair.target.sh(&format!("driftline status zfs:back/{name}"))?;
        ensure!(status.contains('@') && status.contains("was cut off"), "{status}");
        let sent = self.arrives(pair.source, "--latest")?.sent();
        ensure!(sent < 20 << 20, "{sent} bytes were sent again");
        self.files_are_equal(pair)
    }

    /// A script that succeeds if ZFS has kept a part of a stream, with a token for the rest.
    fn has_token(&self) -> String {
        format!("[ $(zfs get -Hp -o value receive_resume_token back/{}) != - ]", self.name)
    }

    /// Frees what the case took.
    pub(super) fn remove(self, lab: &mut Lab) -> Result<()> {
        let pair = lab.pair()?;
        remove_pool(pair.target)?;
        pair.source.until(&format!("zfs destroy -r tank/{}", self.name))
    }
}

pub(super) fn zvol(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "zvol-replica", "zvol", "-s -o snapdev=visible -V 32M -b 16k")?;
    let device = "/dev/zvol/tank/zvol-replica";
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..4096"))?;
    ensure!(copy.arrives(pair.source, "")?.kind() == "full", "the first copy is none");
    copy.volumes_are_equal(&pair)?;
    for (resize, change) in [
        ("zfs set volsize=48M", format!("/lab/blocks write {device} 2 8000..12288")),
        ("true", format!("blkdiscard -o 8M -l 16M {device}")),
        ("zfs set volsize=16M", format!("/lab/blocks write {device} 3 100..200")),
    ] {
        pair.source.sh(&format!("{resize} tank/zvol-replica; udevadm settle; {change}"))?;
        if resize.ends_with("=16M") {
            // Most of the data is cut off, and a person agrees.
            pair.target.sh("driftline allow-loss zvol:back/zvol-replica")?;
        }
        let report = copy.arrives(pair.source, "")?;
        ensure!(report.kind() == "incremental", "{}", report.kind());
        copy.volumes_are_equal(&pair)?;
    }
    let kept = pair.target.sh(
        "zfs get -Hp -d 1 -t snapshot -s local -o value driftline:generation back/zvol-replica",
    )?;
    ensure!(kept.lines().filter(|line| line.starts_with("zfs:")).count() == 4, "{kept}");
    let used = pair.target.sh("zfs get -Hp -o value referenced back/zvol-replica")?;
    ensure!(used.parse::<u64>()? < 16 << 20, "{used} bytes: holes were filled");
    // What ZFS is asked does not grow with what is kept.
    pair.target.sh("cat > /usr/local/sbin/zfs << 'END'
#!/bin/bash
set -o pipefail
/usr/sbin/zfs \"$@\" | tee -a /var/lib/driftline/told
END
         chmod +x /usr/local/sbin/zfs; systemctl restart driftline-serve")?;
    let told = |seed: u32| -> Result<u64> {
        pair.source.sh(&format!("/lab/blocks write {device} {seed} 200..201"))?;
        copy.arrives(pair.source, "")?;
        let lines =
            pair.target.sh("wc -l < /var/lib/driftline/told; rm /var/lib/driftline/told")?;
        Ok(lines.parse()?)
    };
    let few = told(4)?;
    pair.target.sh("for number in {1..50}; do
             zfs snapshot -o driftline:generation=zfs:1 back/zvol-replica@older-$number
         done")?;
    let many = told(5)?;
    ensure!(few > 0 && many < few + 20, "{many} lines with 50 more snapshots, {few} before");
    pair.target.sh("rm /usr/local/sbin/zfs; systemctl restart driftline-serve")?;
    copy.volumes_are_equal(&pair)?;

    let verified = pair.target.sh("systemctl stop driftline-serve
         driftline verify zvol:back/zvol-replica; driftline status zvol:back/zvol-replica")?;
    ensure!(verified.contains("clean: zfs:"), "{verified}");
    copy.remove(lab)
}

pub(super) fn zvol_modified(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "zvol-modified", "zvol", "-s -o snapdev=visible -V 32M -b 16k")?;
    let device = "/dev/zvol/tank/zvol-modified";
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..2048"))?;
    copy.arrives(pair.source, "")?;
    // Where no increment will look: only that it was written tells.
    pair.target.sh("zfs set readonly=off back/zvol-modified; udevadm settle
         echo 'written here' | dd of=/dev/zvol/back/zvol-modified bs=1M seek=20 conv=fsync,notrunc \
             status=none
         zpool sync back")?;
    let before = pair.target.sh("sha256sum < /dev/zvol/back/zvol-modified")?;
    pair.source.sh(&format!("/lab/blocks write {device} 2 0..16"))?;
    let output = copy.push(pair.source, "")?;
    refused(&output, exit::TARGET_MODIFIED, "target-modified")?;
    let after = pair.target.sh("sha256sum < /dev/zvol/back/zvol-modified")?;
    ensure!(before == after, "a refused push wrote");
    // Both consents mend it.
    copy.serve(&pair, "overwrite = true")?;
    copy.arrives(pair.source, "--full")?;
    copy.volumes_are_equal(&pair)?;
    pair.source.sh(&format!("/lab/blocks write {device} 3 16..32"))?;
    ensure!(copy.arrives(pair.source, "")?.kind() == "incremental", "it does not go on");
    copy.volumes_are_equal(&pair)?;
    copy.remove(lab)
}

pub(super) fn zvol_power(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "zvol-power", "zvol", "-s -o snapdev=visible -V 64M -b 16k")?;
    let device = "/dev/zvol/tank/zvol-power";
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..1024"))?;
    copy.arrives(pair.source, "")?;
    pair.source.sh(&format!("/lab/blocks write {device} 2 0..6144"))?;
    start(pair.source, "push", &copy.command("--limit-rate 2M"))?;
    pair.target
        .until("[ $(du -m /var/lib/driftline/zvol/back/zvol-power/journal | cut -f1) -ge 8 ]")?;
    lab.power_off(Role::Target)?;
    let pair = lab.pair()?;
    pair.target.sh("zpool list back > /dev/null 2>&1 || zpool import -d /srv/back.pool back
         systemctl restart driftline-serve; udevadm settle")?;
    lost_connection(pair.source, "push")?;
    copy.arrives(pair.source, "")?;
    copy.volumes_are_equal(&pair)?;
    copy.remove(lab)
}

/// Files of all sizes, a hole, and links.
const FILES: &str = "cd /tank/NAME
    mkdir -p a/b; seq 1 200000 > a/numbers; cp a/numbers a/b/again; echo small > a/b/small
    head -c 3M /dev/urandom > noise; truncate -s 40M sparse; ln -s numbers a/link; ln noise hard";

pub(super) fn write_files(pair: &Pair<'_>, name: &str) -> Result<()> {
    pair.source.sh(&FILES.replace("NAME", name))?;
    Ok(())
}

pub(super) fn files(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "files", "zfs", "-o mountpoint=/tank/files")?;
    write_files(&pair, "files")?;
    ensure!(copy.arrives(pair.source, "")?.kind() == "stream", "it is no stream");
    copy.files_are_equal(&pair)?;
    pair.source.sh("cd /tank/files; rm a/numbers; mv noise a/moved; echo more >> a/b/small
         head -c 24M /dev/urandom > large; cp large twice")?;
    // The same blocks again do not move again.
    let sent = copy.arrives(pair.source, "")?.sent();
    ensure!(sent < 40 << 20, "{sent} bytes were sent for 24 MiB that are there twice");
    copy.files_are_equal(&pair)?;

    copy.is_cut_and_goes_on(&pair)?;
    copy.arrives(pair.source, "")?;
    copy.files_are_equal(&pair)?;

    // An empty snapshot of its own is not in the way.
    pair.target.sh("zfs snapshot back/files@empty")?;
    pair.source.sh("echo again >> /tank/files/a/b/small")?;
    copy.arrives(pair.source, "")?;
    copy.files_are_equal(&pair)?;
    // A past of its own: refused, with what a person may do, and nothing done.
    pair.target
        .sh("mkdir -p /run/mine; mount -t zfs -o zfsutil back/files /run/mine; touch /run/mine/x
         umount /run/mine; zfs snapshot back/files@mine")?;
    let output = copy.push(pair.source, "")?;
    refused(&output, exit::REFUSED, "base-mismatch")?;
    ensure!(output.stderr.contains("zfs rollback -r back/files@"), "{}", output.stderr);
    pair.target.sh("base=$(zfs list -Hp -d 1 -t snapshot -o name -S createtxg back/files |
             grep -v @mine | head -n 1)
         zfs list back/files@mine && zfs rollback -r $base")?;
    copy.arrives(pair.source, "")?;

    // Renamed, it is not copied anew without a word, and goes on under its new name.
    pair.target.until("zfs rename back/files back/moved")?;
    pair.source.sh("echo moved >> /tank/files/a/b/small")?;
    refused(&copy.push(pair.source, "")?, exit::REFUSED, "target-gone")?;
    ensure!(pair.target.run("zfs list back/files")?.code != 0, "it was copied nevertheless");
    let moved = Copy { name: copy.name, place: "zfs:back/moved".to_owned() };
    moved.serve(&pair, "")?;
    let sent = moved.arrives(pair.source, "")?.sent();
    ensure!(sent < 4 << 20, "{sent} bytes were sent for a line");
    pair.target.until("zfs rename back/moved back/files")?;
    copy.files_are_equal(&pair)?;
    copy.remove(lab)
}

pub(super) fn raw(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    pair.source.sh("head -c 32 /dev/urandom > /root/raw.key")?;
    let create = "-s -o snapdev=visible -V 32M -o encryption=on -o keyformat=raw -o keylocation=file:///root/raw.key";
    let copy = Copy::new(&pair, "raw", "zfs", create)?;
    let device = "/dev/zvol/tank/raw";
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..2048"))?;
    pair.source.until("zfs unload-key tank/raw")?;
    let output = copy.push(pair.source, "")?;
    ensure!(output.stderr.contains("zfs load-key tank/raw"), "{}", output.stderr);
    copy.arrives(pair.source, "--raw")?;
    pair.source.sh(&format!(
        "zfs load-key tank/raw; udevadm settle
         /lab/blocks write {device} 2 100..300"
    ))?;
    copy.arrives(pair.source, "--raw")?;
    // Whoever has the key reads the same there.
    let expected =
        pair.source.sh(&format!("sha256sum < '/dev/zvol/{}'", copy.newest(pair.source)?))?;
    let status = pair.target.sh("zfs get -Hp -o value keystatus back/raw")?;
    ensure!(status == "unavailable", "the key went along: {status}");
    let key = pair.source.sh("base64 -w 0 < /root/raw.key")?;
    let found = pair.target.sh(&format!(
        "echo {key} | base64 -d > /root/raw.key
         zfs load-key -L file:///root/raw.key back/raw
         udevadm settle; sha256sum < /dev/zvol/back/raw"
    ))?;
    ensure!(found == expected, "the replica differs");
    copy.remove(lab)
}

pub(super) fn tree(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "tree", "zfs", "-o mountpoint=/tank/tree -o snapdev=visible")?;
    pair.source.sh("zfs create -o compression=zstd tank/tree/one
         zfs create -o recordsize=1M tank/tree/two; zfs create -s -V 16M tank/tree/volume
         zfs set driftline:colour=green tank/tree/one")?;
    write_files(&pair, "tree/one")?;
    pair.source.sh("udevadm settle; /lab/blocks write /dev/zvol/tank/tree/volume 1 0..512
         zfs snapshot -r tank/tree@first")?;
    copy.serve(
        &pair,
        "[volume.receive]\nexclude_properties = [\"compression\"]\n\
         set_properties = [\"readonly=on\"]\n",
    )?;
    copy.arrives(pair.source, "--snapshot first --with tree")?;
    pair.source.sh("cp -r /tank/tree/one /tank/tree/two/; zfs snapshot -r tank/tree@second")?;
    copy.arrives(pair.source, "--snapshot second --with tree")?;
    for below in ["", "/one", "/two", "/volume"] {
        let guid = |machine: &Machine, pool: &str| {
            machine.sh(&format!("zfs get -Hp -o value guid {pool}/tree{below}@second"))
        };
        ensure!(guid(pair.source, "tank")? == guid(pair.target, "back")?, "{below} differs");
    }
    let properties =
        pair.target.sh("zfs get -Hp -o value driftline:colour,readonly back/tree/one
         zfs get -Hp -o value recordsize back/tree/two
         zfs get -Hp -o value compression back/tree/one")?;
    ensure!(
        properties == "green\non\n1048576\non" || properties == "green\non\n1048576\nlz4",
        "{properties:?}"
    );
    copy.remove(lab)
}

/// The other direction: the target pulls.
pub(super) fn pull(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "files-pull", "zfs", "-o mountpoint=/tank/files-pull")?;
    let (toml, place) = ("/run/serve.toml", "source = \"zfs:tank/files-pull\"");
    configure(pair.source, toml, 7421, ("target", "pull"), copy.name, place)?;
    start(pair.source, "serve", &format!("exec driftline serve --config {toml}"))?;
    pair.source.until("ss -Hltn sport = 7421 | grep -q .")?;
    let pull = || {
        let output = pair.target.run(&format!(
            "export DRIFTLINE_PEER=$(cat /lab/keys/source.pub)
             driftline pull --json --quiet files-pull@10.7.0.1:7421 {}",
            copy.place
        ))?;
        Report::of(&output)
    };
    write_files(&pair, copy.name)?;
    ensure!(pull()?.kind() == "stream", "it is no stream");
    copy.files_are_equal(&pair)?;
    pair.source.sh("cd /tank/files-pull; rm a/numbers; head -c 8M /dev/urandom > more")?;
    let received = pull()?.received();
    ensure!(received < 12 << 20, "{received} bytes came for 8 MiB");
    copy.files_are_equal(&pair)?;
    pair.source.sh("systemctl stop serve")?;
    copy.remove(lab)
}

/// A pool that is full, and a quota that is used up, in the middle of a stream: nothing is lost,
/// and once there is room the same job goes on where it stopped.
pub(super) fn full(lab: &mut Lab) -> Result<()> {
    const ROOM_MIB: u64 = 16;
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "receive-full", "zfs", "-o mountpoint=/tank/receive-full")?;
    let goes_on = |write: &str, fill: &str, make_room: &str| -> Result<()> {
        let snapshots = "zfs list -Hpr -t snapshot -o name,guid back";
        let before = pair.target.sh(snapshots)?;
        let room = format!("room=$(({ROOM_MIB} << 20))");
        pair.target.sh(&format!("{room}; zpool sync back; {fill}"))?;
        pair.source.sh(&format!("head -c 40M /dev/urandom > /tank/receive-full/{write}; sync"))?;
        refused(&copy.push(pair.source, "")?, exit::TARGET_FULL, "target-full")?;
        pair.target.sh(&copy.has_token())?;
        let after = pair.target.sh(snapshots)?;
        ensure!(before == after, "a push that failed left {after:?} of {before:?}");
        // It is full still.
        refused(&copy.push(pair.source, "--latest")?, exit::TARGET_FULL, "target-full")?;
        pair.target.sh(make_room)?;
        let sent = copy.arrives(pair.source, "--latest")?.sent();
        let most = (40 - ROOM_MIB / 2) << 20;
        ensure!(sent < most, "{sent} bytes were sent, with about {ROOM_MIB} MiB already there");
        copy.files_are_equal(&pair)
    };
    goes_on(
        "first",
        "free=$(zfs get -Hp -o value available back)
         zfs create -u -o refreservation=$((free - room)) back/somebody-elses",
        "zfs destroy back/somebody-elses; zpool sync back",
    )?;
    goes_on(
        "second",
        "used=$(zfs get -Hp -o value used back/receive-full)
         zfs set quota=$((used + room)) back/receive-full",
        "zfs set quota=none back/receive-full",
    )?;
    copy.remove(lab)
}
