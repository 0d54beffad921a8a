//! What a target that is ZFS must not become: plain text below what is encrypted, locked for good,
//! mounted over this machine's own files, stopped by the source's quota.

use anyhow::{Result, ensure};

use super::receive::{Copy, write_files};
use crate::{
    lab::{Lab, Pair},
    machine::Machine,
    replication::{exit, refused, start},
};

/// A data set of the source that goes below `back/enc`, which is encrypted with a key of its own.
fn below_encrypted(pair: &Pair<'_>, name: &'static str, create: &str) -> Result<Copy> {
    let copy = Copy::new(pair, name, "zfs", create)?;
    pair.target.sh(
        "head -c 32 /dev/urandom > /root/enc.key
         zfs create -o encryption=on -o keyformat=raw -o keylocation=file:///root/enc.key back/enc",
    )?;
    let copy = Copy { place: format!("zfs:back/enc/{name}"), ..copy };
    copy.serve(pair, "")?;
    Ok(copy)
}

/// The cipher of each data set below `back/enc`.
fn is_encrypted(target: &Machine, count: usize) -> Result<()> {
    let told = target.sh("zfs get -Hpr -t filesystem,volume -o value encryption back/enc")?;
    let ciphers: Vec<&str> = told.lines().collect();
    let encrypted = ciphers.iter().all(|cipher| *cipher == "aes-256-gcm");
    ensure!(encrypted && ciphers.len() == count, "{ciphers:?} of {count}");
    Ok(())
}

/// Below an encrypted data set everything arrives, and arrives encrypted: plain, raw of what is not
/// encrypted, with properties, as a tree and its increment with a new member.
pub(super) fn encrypted(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = below_encrypted(&pair, "sealed", "-o mountpoint=/tank/sealed -o quota=1G")?;
    write_files(&pair, "sealed")?;
    // Small enough to be embedded in block pointers.
    pair.source.sh("for i in $(seq 200); do echo $i > /tank/sealed/a/$i; done")?;
    copy.arrives(pair.source, "")?;
    is_encrypted(pair.target, 2)?;
    for options in ["", "--raw", "--with properties"] {
        pair.source
            .sh("date +%N > /tank/sealed/a/b/now; seq 1 $RANDOM > /tank/sealed/a/numbers")?;
        let report = copy.arrives(pair.source, options)?;
        ensure!(
            report.kind() == "stream" && report.sent() < 4 << 20,
            "{options}: {}",
            report.sent()
        );
        is_encrypted(pair.target, 2)?;
    }
    let seen = "zfs get -Hp -o value guid back/enc/sealed@$(basename NEWEST | cut -d@ -f2)";
    let newest = copy.newest(pair.source)?;
    let guid = pair.source.sh(&format!("zfs get -Hp -o value guid '{newest}'"))?;
    ensure!(pair.target.sh(&seen.replace("NEWEST", &newest))? == guid, "it did not arrive");

    // The same anew, with all that would say that it is not encrypted.
    for options in ["--with properties --full", "--snapshot tree1 --with tree --full"] {
        pair.target.sh("zfs destroy -r back/enc/sealed")?;
        pair.source.sh("zfs snapshot -r tank/sealed@tree1 2> /dev/null || true")?;
        copy.arrives(pair.source, options)?;
        is_encrypted(pair.target, 2)?;
        let told =
            pair.target.sh("zfs get -Hp -o value canmount,quota,mountpoint back/enc/sealed")?;
        ensure!(told == "noauto\n0\nnone", "{told:?}");
    }
    // A member that comes later in the same tree.
    pair.source.sh("zfs create tank/sealed/later; echo 1 > /tank/sealed/later/x
         zfs snapshot -r tank/sealed@tree2")?;
    copy.arrives(pair.source, "--snapshot tree2 --with tree")?;
    is_encrypted(pair.target, 3)?;
    // By a stream that was recorded with embedded blocks ZFS itself is not bothered.
    let output = pair.source.run(
        "zfs send -Lce tank/sealed@tree1 > /var/tmp/sealed.zs
         export DRIFTLINE_PEER=$(cat /lab/keys/target.pub)
         driftline push --json zstream:/var/tmp/sealed.zs sealed@10.7.0.2:7420",
    )?;
    ensure!(output.code == exit::REFUSED, "exit {}\n{}", output.code, output.stderr);
    copy.remove(lab)
}

/// A replica on a zvol below what shows no devices, and one that was renamed.
pub(super) fn volmode(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "volmode", "zvol", "-s -o snapdev=visible -V 32M -b 16k")?;
    pair.target.sh("zfs set volmode=none back")?;
    for seed in 1..=2 {
        pair.source.sh(&format!("/lab/blocks write /dev/zvol/tank/volmode {seed} 0..512"))?;
        copy.arrives(pair.source, "")?;
        copy.volumes_are_equal(&pair)?;
    }
    // Hidden in the middle of its life, and shown again.
    pair.target.sh("zfs set volmode=none back/volmode; udevadm settle")?;
    let hidden = copy.push(pair.source, "")?;
    refused(&hidden, exit::TARGET_MODIFIED, "target-modified")?;
    ensure!(hidden.stdout.contains("zfs get volmode"), "{}", hidden.stdout);
    pair.target.sh("zfs set volmode=default back; zfs inherit volmode back/volmode")?;
    pair.source.sh("/lab/blocks write /dev/zvol/tank/volmode 3 100..700")?;
    copy.arrives(pair.source, "")?;
    copy.volumes_are_equal(&pair)?;

    // A first copy whose volume is made, and its device does not appear until somebody shows it.
    pair.target.sh("zfs destroy -r back/volmode; rm -r /var/lib/driftline/zvol/back/volmode
         echo 3 > /sys/module/zfs/parameters/zvol_volmode")?;
    for _ in 1..=2 {
        let hidden = copy.push(pair.source, "--full")?;
        let is_told = hidden.stderr.contains("see `zfs get volmode back/volmode`");
        ensure!(hidden.code == exit::FAILED && is_told, "{}\n{}", hidden.code, hidden.stderr);
    }
    pair.target.sh("echo 1 > /sys/module/zfs/parameters/zvol_volmode
         zfs set volmode=dev back/volmode; udevadm settle")?;
    // It is read-only while nobody writes it, also where a first copy stopped in the middle.
    start(pair.source, "push", &copy.command("--full --limit-rate 64K"))?;
    pair.target.until("[ $(zfs get -Hp -o value readonly back/volmode) = off ]")?;
    pair.source.sh("systemctl kill -s KILL push")?;
    pair.target.until("[ $(zfs get -Hp -o value readonly back/volmode) = on ]")?;
    copy.arrives(pair.source, "--full")?;
    copy.volumes_are_equal(&pair)?;
    let before = pair.target.sh("driftline status zvol:back/volmode")?;
    pair.target.until("zfs rename back/volmode back/moved")?;
    let lost = pair.target.run("driftline --json status zvol:back/moved")?;
    refused(&lost, exit::REFUSED, "target-foreign")?;
    ensure!(lost.stdout.contains("/var/lib/driftline/zvol/back/moved"), "{}", lost.stdout);
    let after = pair.target.sh("mv /var/lib/driftline/zvol/back/volmode \
             /var/lib/driftline/zvol/back/moved
         driftline status zvol:back/moved")?;
    ensure!(before == after, "{before} became {after}");
    pair.target.until("zfs rename back/moved back/volmode")?;
    copy.remove(lab)
}

/// The key of a raw replica is changed at the target, in each way that ZFS has.
pub(super) fn raw_key(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    pair.source.sh("head -c 32 /dev/urandom > /root/raw.key")?;
    let create = "-s -o snapdev=visible -V 32M -o encryption=on -o keyformat=raw \
                  -o keylocation=file:///root/raw.key";
    let copy = below_encrypted(&pair, "rawkey", create)?;
    let device = "/dev/zvol/tank/rawkey";
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..1024"))?;
    copy.arrives(pair.source, "--raw")?;
    let key = pair.source.sh("base64 -w 0 < /root/raw.key")?;
    let target = pair.target;
    target.sh(&format!(
        "echo {key} | base64 -d > /root/raw.key
         zfs load-key -L file:///root/raw.key back/enc/rawkey; zfs change-key -i back/enc/rawkey"
    ))?;
    pair.source.sh(&format!("/lab/blocks write {device} 2 100..300"))?;
    let before = target.sh("zfs list -Hp -t snapshot -o name,guid -r back/enc")?;
    let output = copy.push(pair.source, "--raw")?;
    refused(&output, exit::REFUSED, "key-mismatch")?;
    ensure!(output.stdout.contains("zfs change-key -o keyformat"), "{}", output.stdout);
    let after = target.sh("zfs list -Hp -t snapshot -o name,guid -r back/enc")?;
    ensure!(before == after, "it was received nevertheless: {after}");

    // The way out that it names, and then the source's key opens it, also after an import.
    target.sh("head -c 32 /dev/urandom > /root/own.key
         zfs change-key -o keyformat=raw -o keylocation=file:///root/own.key back/enc/rawkey")?;
    copy.arrives(pair.source, "--raw")?;
    target.sh("systemctl stop driftline-serve; udevadm settle")?;
    target.until("zpool export back")?;
    target.sh("zpool import -d /srv/back.pool back; zfs load-key back/enc
         zfs load-key -L file:///root/raw.key back/enc/rawkey; udevadm settle")?;
    target.until("[ -e /dev/zvol/back/enc/rawkey ]")?;
    let newest = copy.newest(pair.source)?;
    let expected = pair.source.sh(&format!("sha256sum < '/dev/zvol/{newest}'"))?;
    let found = target.sh("sha256sum < /dev/zvol/back/enc/rawkey")?;
    ensure!(found == expected, "the replica differs");
    target.sh("systemctl start driftline-serve")?;
    copy.remove(lab)
}
