//! A service on the target that is an ordinary user's, with what the comment of its unit says.

use anyhow::{Context as _, Result, ensure};

use super::{
    receive::{Copy, write_files},
    walk::{SERVE, drop_in, said},
};
use crate::{
    lab::{Lab, Pair},
    machine::Machine,
    replication::exit,
};

/// Makes the service that of a user without any permission. It must be set up as root's.
fn serve_as_user(target: &Machine) -> Result<()> {
    let said = said(SERVE, "# An ordinary user").replace("USER", "receiver");
    let (_, settings) = said.split_once('\n').context("what is allowed, and a drop-in")?;
    target.sh("id receiver 2> /dev/null || useradd --system receiver
         chown receiver /etc/driftline/secret.key
         rm /etc/systemd/system/driftline-serve.service.d/zfs.conf")?;
    drop_in(target, "driftline-serve.service", settings)?;
    let user = target.sh("systemctl restart driftline-serve
         ps -o user= -p $(systemctl show -p MainPID --value driftline-serve)")?;
    ensure!(user == "receiver", "it runs as {user:?}");
    Ok(())
}

/// The permissions in the first line that a paragraph of the unit's comment says to write.
fn permissions(start: &str) -> Result<Vec<String>> {
    let said = said(SERVE, start);
    let words = said.lines().next().and_then(|line| line.strip_prefix("zfs allow -u USER "));
    let words = words.and_then(|words| words.strip_suffix(" POOL/PARENT"));
    Ok(words.context("zfs allow -u USER … POOL/PARENT")?.split(',').map(str::to_owned).collect())
}

/// Gives the user these permissions, and no other.
fn allow(target: &Machine, permissions: &[String]) -> Result<()> {
    target.sh(&format!(
        "zfs unallow -u receiver back; zfs allow -u receiver {} back",
        permissions.join(",")
    ))?;
    Ok(())
}

/// A push fails without any one of these permissions, though it has the others. In the end it has
/// all.
fn each_is_needed(
    pair: &Pair<'_>,
    copy: &Copy,
    needed: &[String],
    permissions: &[String],
) -> Result<()> {
    for lacking in needed {
        let others = permissions.iter().filter(|other| *other != lacking);
        allow(pair.target, &others.cloned().collect::<Vec<_>>())?;
        let output = copy.push(pair.source, "")?;
        ensure!(
            output.code == exit::FAILED && output.stderr.contains("permission denied"),
            "without {lacking}: exit {}\n{}{}",
            output.code,
            output.stdout,
            output.stderr
        );
    }
    allow(pair.target, permissions)
}

/// Whether what was received can be written, and what the service warned of since it started.
fn properties(target: &Machine) -> Result<(String, String)> {
    let readonly = target.sh("zfs get -Hp -o value readonly back/receive-user")?;
    let warnings = target.sh("journalctl --no-pager -o cat \
             _SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value driftline-serve) |
             grep 'zfs succeeded' || true")?;
    Ok((readonly, warnings))
}

/// Gives the service back to root.
fn remove(copy: Copy, lab: &mut Lab) -> Result<()> {
    copy.remove(lab)?;
    lab.pair()?.target.sh("chown root /etc/driftline/secret.key")?;
    Ok(())
}

pub(super) fn streams(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let copy = Copy::new(&pair, "receive-user", "zfs", "-o mountpoint=/tank/receive-user")?;
    serve_as_user(pair.target)?;
    let mut all = permissions("# An ordinary user")?;
    write_files(&pair, copy.name)?;
    each_is_needed(&pair, &copy, &all, &all)?;
    ensure!(copy.arrives(pair.source, "")?.kind() == "stream", "it is no stream");
    copy.files_are_equal(&pair)?;
    pair.source.sh("cd /tank/receive-user; rm a/numbers; echo more >> a/b/small")?;
    each_is_needed(&pair, &copy, &all, &all)?;
    copy.arrives(pair.source, "")?;
    copy.files_are_equal(&pair)?;
    copy.is_cut_and_goes_on(&pair)?;

    // Each property that is set or left out is one more. Without it ZFS leaves the property as it
    // is, and receives nevertheless; the service warns.
    copy.serve(
        &pair,
        "[volume.receive]\nexclude_properties = [\"atime\"]\nset_properties = [\"readonly=on\"]\n",
    )?;
    copy.arrives(pair.source, "")?;
    let (readonly, warnings) = properties(pair.target)?;
    ensure!(
        readonly == "off" && warnings.contains("readonly property") && warnings.contains("atime"),
        "without a permission readonly={readonly}, and it warned: {warnings}"
    );
    all.extend(["atime".to_owned(), "readonly".to_owned()]);
    allow(pair.target, &all)?;
    pair.target.sh("systemctl restart driftline-serve")?;
    copy.arrives(pair.source, "")?;
    let (readonly, warnings) = properties(pair.target)?;
    ensure!(
        readonly == "on" && warnings.is_empty(),
        "with every permission readonly={readonly}, and it warned: {warnings}"
    );
    remove(copy, lab)
}

pub(super) fn zvol(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    let name = "receive-user-zvol";
    let copy = Copy::new(&pair, name, "zvol", "-s -o snapdev=visible -V 32M -b 16k")?;
    serve_as_user(pair.target)?;
    let start = "# Replicas on zvols";
    let all = permissions(start)?;
    let rule = said(SERVE, start).replace("USER", "receiver").replace("POOL/PARENT", "back");
    let (_, rule) = rule.split_once('\n').context("what is allowed, and a rule")?;
    pair.target.sh(&format!("{rule}\nudevadm control --reload"))?;

    let device = format!("/dev/zvol/tank/{name}");
    pair.source.sh(&format!("/lab/blocks write {device} 1 0..2048"))?;
    let (grows, makes): (Vec<_>, Vec<_>) =
        all.iter().cloned().partition(|permission| permission == "volsize");
    each_is_needed(&pair, &copy, &makes, &all)?;
    copy.arrives(pair.source, "")?;
    copy.volumes_are_equal(&pair)?;
    pair.source.sh(&format!(
        "zfs set volsize=48M tank/{name}; udevadm settle
         /lab/blocks write {device} 2 8000..12288"
    ))?;
    each_is_needed(&pair, &copy, &grows, &all)?;
    copy.arrives(pair.source, "")?;
    copy.volumes_are_equal(&pair)?;
    pair.target.sh("rm /etc/udev/rules.d/90-driftline.rules; udevadm control --reload")?;
    remove(copy, lab)
}
