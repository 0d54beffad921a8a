//! Bad days of the source's own ZFS: what happens to a volume, its snapshot, its pool and the
//! `zfs` command while a push is at work, and what the next run makes of it.

use anyhow::{Result, ensure};

use super::{
    faults::{INCREMENT_MIB, RATE},
    live::{Live, end_of_push, kill_push, push_ends_well},
};
use crate::{
    lab::{Lab, Pair},
    machine::Machine,
    replication::{
        Report, allow_push_to, exit, live_push, serve_with_zfs, serve_without_zfs, start,
    },
};

/// An increment of which the source has not read all when its middle has arrived: it reads
/// ahead by a window of 32 MiB and what lies in between. It is sent faster, as it is larger.
const LARGE_MIB: u32 = 80;
const LARGE_RATE: &str = "8M";

/// `zfs destroy` of the snapshot that is being sent is refused, though it takes the device away;
/// that of its base is not.
pub(super) fn destroyed(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-destroyed", "-V 64M")?;
    live.reaches_the_middle(&pair, INCREMENT_MIB, RATE)?;
    let zvol = &live.replication.zvol;
    let newest = format!("$(zfs list -H -d 1 -t snapshot -o name -s createtxg {zvol} | tail -n 1)");
    let output = pair.source.run(&format!("zfs destroy {newest}"))?;
    ensure!(
        output.code != 0 && output.stderr.contains("it's being held"),
        "a snapshot that is sent was destroyed: exit {}, {}",
        output.code,
        output.stderr
    );
    let oldest = newest.replace("tail", "head");
    pair.source.sh(&format!("zfs destroy {oldest}"))?;
    pair.source.sh(&format!("zfs set snapdev=hidden {zvol}; zfs set snapdev=visible {zvol}"))?;
    push_ends_well(&pair, &live)?;
    live.is_tidy(pair.source)?;
    live.write(pair.source, "3 0..100")?;
    live.increment_arrives(&pair, "")?;
    live.remove(lab)
}

/// The `zfs send -t` of a resumed push is killed: that is told, and nothing is committed.
pub(super) fn killed(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-killed", "-V 128M")?;
    live.reaches_the_middle(&pair, LARGE_MIB, LARGE_RATE)?;
    kill_push(pair.source)?;
    let before = live.held(pair.target)?;
    live.push_slowly(pair.source, RATE)?;
    // Nothing but the command itself matches this.
    pair.source.until("pkill -KILL -f 'zfs [s]end -t'")?;
    let (code, said) = end_of_push(pair.source)?;
    ensure!(
        code == "1" && said.contains("zfs send -t") && said.contains("signal: 9"),
        "the push ended with {code}: {said}"
    );
    live.is_still(pair.target, &before)?;
    live.nothing_is_held(pair.source)?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

/// The volume grows, and shrinks, while a snapshot of it is sent.
pub(super) fn resized(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let live = Live::new(&pair, "live-resized", "-V 128M")?;
    let size = |mib: u64| -> Result<()> {
        let size = pair.target.sh(&format!("stat -c %s {}", live.replication.replica))?;
        ensure!(size == (mib << 20).to_string(), "the replica has {size} bytes, not {mib} MiB");
        Ok(())
    };
    live.reaches_the_middle(&pair, LARGE_MIB, LARGE_RATE)?;
    pair.source.sh("zfs set volsize=160M tank/live-resized")?;
    push_ends_well(&pair, &live)?;
    size(128)?;
    live.increment_arrives(&pair, "")?;
    size(160)?;
    live.goes_into_the_middle(&pair, 3, LARGE_MIB, LARGE_RATE)?;
    pair.source.sh("zfs set volsize=48M tank/live-resized")?;
    push_ends_well(&pair, &live)?;
    size(160)?;
    // Most of the data is cut off, and a person agrees.
    pair.target.sh(&format!("driftline allow-loss file:{}", live.replication.replica))?;
    live.increment_arrives(&pair, "")?;
    size(48)?;
    live.is_tidy(pair.source)?;
    live.remove(lab)
}

/// A pool of its own on a file, 512 MiB.
struct Pool(&'static str);

impl Pool {
    /// Makes it with `create`'s options of `zpool create`. Its device is a table of the device
    /// mapper, which can be made to fail.
    fn new(source: &Machine, name: &'static str, create: &str) -> Result<Self> {
        source.sh(&format!(
            "truncate -s 512M /var/tmp/{name}
             disk=$(losetup -f --show /var/tmp/{name})
             dmsetup create {name} --table \"0 $(blockdev --getsz $disk) linear $disk 0\"
             zpool create -O mountpoint=none {create} {name} /dev/mapper/{name}"
        ))?;
        Ok(Self(name))
    }

    /// Makes its device fail, or work again. Nobody waits for udev, which may hang on the pool.
    fn device_works(&self, source: &Machine, works: bool) -> Result<()> {
        let name = self.0;
        let table = if works { "linear $disk 0" } else { "error" };
        source.sh(&format!(
            "disk=$(losetup -n -O NAME -j /var/tmp/{name})
             dmsetup suspend --noflush {name}
             dmsetup reload {name} --table \"0 $(blockdev --getsz $disk) {table}\"
             dmsetup --noudevsync resume {name}"
        ))?;
        Ok(())
    }

    /// Makes its device fail, and writes, by which ZFS learns of it and suspends the pool.
    fn is_suspended(&self, machine: &Machine) -> Result<()> {
        let name = self.0;
        machine.sh(&format!("udevadm settle; zpool sync {name}"))?;
        self.device_works(machine, false)?;
        // What writes waits until the pool is back.
        start(machine, "provoke", &format!("zfs set driftline:written=now {name}"))?;
        machine.until(&format!("grep -q SUSPENDED /proc/spl/kstat/zfs/{name}/state"))
    }

    /// Makes its device work again, and brings the pool back with whatever waits for it.
    fn comes_back(&self, machine: &Machine) -> Result<()> {
        self.device_works(machine, true)?;
        machine.sh(&format!("zpool clear {}", self.0))?;
        machine.until("! systemctl is-active --quiet provoke")
    }

    fn remove(self, source: &Machine) -> Result<()> {
        let name = self.0;
        source.until(&format!("zpool destroy {name}"))?;
        source.until(&format!("dmsetup remove {name}"))?;
        source.sh(&format!(
            "losetup -d $(losetup -n -O NAME -j /var/tmp/{name}); rm /var/tmp/{name}"
        ))?;
        Ok(())
    }
}

/// `zpool export -f` in the middle takes the devices away, by which the push ends in words; it is
/// refused if the push has not ended by then, and not after it. What is exported is not there.
pub(super) fn exported(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let pool = Pool::new(pair.source, "exported", "")?;
    let live = Live::new_at(&pair, "live-exported", "exported/volume", "-V 128M")?;
    live.reaches_the_middle(&pair, LARGE_MIB, LARGE_RATE)?;
    let output = pair.source.run("zpool export -f exported")?;
    // What is sent is sent, and what is checked cannot be read any more.
    let (code, said) = end_of_push(pair.source)?;
    ensure!(
        code == "1" && said.contains("exported/volume@") && said.contains("snapdev=hidden"),
        "the push ended with {code}: {said}"
    );
    if output.code != 0 {
        ensure!(output.stderr.contains("busy"), "the export: {}", output.stderr);
        pair.source.until("zpool export -f exported")?;
    }
    live.fails(&pair, "", "there is no exported/volume")?;
    pair.source.sh("zpool import -d /dev/mapper exported; udevadm settle")?;
    live.is_equal(&pair)?;
    live.write(pair.source, "3 0..100")?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)?;
    pool.remove(lab.source()?)
}

/// A pool whose device fails in the middle. `zpool clear` on a device that works again brings
/// the pool back, and whatever waits for it.
struct Suspended {
    pool: Pool,
    live: Live,
}

impl Suspended {
    fn new(pair: &Pair<'_>, name: &'static str, failmode: &str) -> Result<Self> {
        let create = format!("-o failmode={failmode}");
        let pool = Pool::new(pair.source, "suspended", &create)?;
        // What is sent comes from the device, not from memory.
        let create = "-V 128M -o primarycache=metadata";
        let live = Live::new_at(pair, name, "suspended/volume", create)?;
        live.reaches_the_middle(pair, LARGE_MIB, LARGE_RATE)?;
        pool.device_works(pair.source, false)?;
        Ok(Self { pool, live })
    }

    fn comes_back(&self, source: &Machine) -> Result<()> {
        self.pool.comes_back(source)
    }

    fn next_run_arrives(self, lab: &mut Lab) -> Result<()> {
        let pair = lab.pair()?;
        self.live.write(pair.source, "3 0..100")?;
        self.live.increment_arrives(&pair, "")?;
        self.live.is_tidy(pair.source)?;
        self.live.remove(lab)?;
        self.pool.remove(lab.source()?)
    }
}

/// With failmode=continue the push ends in words while the pool is suspended. Its process
/// stays until the pool is back: the kernel releases what it held in a transaction.
pub(super) fn suspended(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let case = Suspended::new(&pair, "live-suspended", "continue")?;
    let before = case.live.held(pair.target)?;
    pair.source.until(
        "journalctl --no-pager -o cat \
             _SYSTEMD_INVOCATION_ID=\"$(systemctl show -p InvocationID --value push)\" |
         grep -q 'see zpool status'",
    )?;
    case.comes_back(pair.source)?;
    let (code, said) = end_of_push(pair.source)?;
    ensure!(code == "1", "the push ended with {code}: {said}");
    case.live.is_still(pair.target, &before)?;
    case.live.nothing_is_held(pair.source)?;
    case.next_run_arrives(lab)
}

/// With failmode=wait it is ZFS that waits: the push goes on when the pool is back. Only a read
/// that failed before the pool was suspended ends it, in words.
pub(super) fn suspended_wait(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let case = Suspended::new(&pair, "live-suspended-wait", "wait")?;
    let before = case.live.held(pair.target)?;
    pair.source.until("grep -q SUSPENDED /proc/spl/kstat/zfs/suspended/state")?;
    case.live.is_still(pair.target, &before)?;
    case.comes_back(pair.source)?;
    let (code, said) = end_of_push(pair.source)?;
    if code == "0" {
        case.live.is_equal(&pair)?;
    } else {
        ensure!(
            code == "1" && said.contains("see zpool status"),
            "the push ended with {code}: {said}"
        );
        case.live.is_still(pair.target, &before)?;
    }
    case.next_run_arrives(lab)
}

/// A pool is suspended before anything asks it, the source's and then the target's: whoever pushes
/// is told which pool it is, no process stays, and what is not of that pool goes on.
pub(super) fn suspended_before(lab: &mut Lab) -> Result<()> {
    const TOLD: &str = "the pool stuck is suspended";
    let name = "live-suspended-before";
    let pair = lab.pair()?;
    let source = pair.source;
    let pool = Pool::new(source, "stuck", "-o failmode=wait")?;
    let live = Live::new_at(&pair, name, "stuck/volume", "-V 16M")?;
    live.write(source, "1 0..100")?;
    live.arrives(&pair, "")?;
    live.write(source, "2 0..100")?;
    pool.is_suspended(source)?;
    live.fails(&pair, "", TOLD)?;
    ensure!(source.run("pgrep -x driftline")?.code == 1, "the push has not ended");
    pool.comes_back(source)?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(source)?;
    live.remove(lab)?;
    pool.remove(lab.source()?)?;

    let pair = lab.pair()?;
    let (source, target) = (pair.source, pair.target);
    let pool = Pool::new(target, "stuck", "-o failmode=wait")?;
    serve_with_zfs(target)?;
    for kind in ["zfs", "zvol"] {
        let write = |seed: u32| {
            source.sh(&format!("/lab/blocks write /dev/zvol/tank/stuck-{kind} {seed} 0..100"))
        };
        let push = || source.run(&live_push(&format!("tank/stuck-{kind}"), kind, "--quiet", ""));
        source.sh(&format!("zfs create -s -V 16M tank/stuck-{kind}; udevadm settle"))?;
        write(1)?;
        allow_push_to(&pair, kind, &format!("target = \"{kind}:stuck/{kind}\""))?;
        Report::of(&push()?)?;
        write(2)?;
        pool.is_suspended(target)?;
        let output = push()?;
        let is_told = output.code == exit::FAILED && output.stderr.contains(TOLD);
        ensure!(is_told, "{kind}: exit {}\n{}", output.code, output.stderr);
        pool.comes_back(target)?;
        Report::of(&push()?)?;
        source.until(&format!("zfs destroy -r tank/stuck-{kind}"))?;
    }
    serve_without_zfs(target)?;
    pool.remove(target)?;
    target.sh("rm -rf /var/lib/driftline/zvol/stuck").map(drop)
}

/// A volume whose space is reserved needs as much again for a snapshot.
pub(super) fn pool_full(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let pool = Pool::new(pair.source, "full", "")?;
    let live = Live::new_at(&pair, "live-pool-full", "full/volume", "-V 128M")?;
    live.write(pair.source, "1 0..8192")?;
    live.arrives(&pair, "")?;
    live.write(pair.source, "2 0..16384")?;
    // 64 MiB are to be kept twice, and not even 40 are free.
    pair.source.sh("zfs set refreservation=auto full/volume
         free=$(zfs get -Hp -o value available full)
         zfs create -V $((free / 1048576 - 40))M full/somebody-elses")?;
    live.fails(&pair, "", "the source's own pool has no room for it")?;
    pair.source.until("zfs destroy full/somebody-elses")?;
    live.increment_arrives(&pair, "")?;
    live.is_tidy(pair.source)?;
    live.remove(lab)?;
    pool.remove(lab.source()?)
}
