//! Options that are said of another kind of source or target: they would do nothing, which nobody
//! means who says them.

use crate::{args, exit::misused, place::Place};

/// An option, and whether it was said.
type Said = (&'static str, bool);

/// Refuses what was said of a replication between these two and would do nothing.
pub(crate) fn check(
    arguments: &args::Replicate,
    source: &Place,
    target: &Place,
) -> anyhow::Result<()> {
    let args::Replicate { zfs, drbd, linstor, receive, audit, state, index, loss_max, .. } =
        arguments;
    if !matches!(source, Place::Zfs(_) | Place::Linstor { .. }) {
        refuse(&of_zfs(zfs), source, "a zfs: source")?;
    }
    if !matches!(source, Place::DrbdVolume { .. }) {
        refuse(&of_drbd(drbd), source, "a drbd: source")?;
    }
    if !matches!(source, Place::Drbd { .. }) {
        refuse(&[("--rotated", drbd.rotated)], source, "a drbdmeta: source")?;
    }
    linstor_only(linstor, source)?;
    if matches!(source, Place::File(_) | Place::Stream(_) | Place::StandardInput) {
        let said = [
            ("--compare-every", audit.compare_every.is_some()),
            ("--audit-age", audit.audit_age.is_some()),
            ("--audit-sample", audit.audit_sample.is_some()),
        ];
        refuse(&said, source, "a source that has maps and can be read at any offset")?;
    }
    if !matches!(target, Place::Zfs(_)) {
        let args::Receive { exclude, set, take } = receive;
        let said = [
            ("--exclude-property", !exclude.is_empty()),
            ("--set-property", !set.is_empty()),
            ("--take-property", !take.is_empty()),
        ];
        refuse(&said, target, "a zfs: target here")?;
    }
    if !matches!(target, Place::File(_) | Place::Zvol(_)) {
        let said = [
            ("--state-dir", state.state_dir.is_some()),
            ("--index", index.is_some()),
            ("--loss-max", loss_max.is_some()),
        ];
        refuse(&said, target, "a file: or zvol: target here")?;
    }
    Ok(())
}

/// Refuses `--state-dir` where no books of ours are.
pub(crate) fn check_state_dir(state: &args::StateDir, place: &Place) -> anyhow::Result<()> {
    if matches!(place, Place::File(_) | Place::Zvol(_)) {
        return Ok(());
    }
    refuse(&[("--state-dir", state.state_dir.is_some())], place, "file: and zvol: replicas here")
}

/// Refuses what is said of LINSTOR, where it is not asked. Its controllers may be in the
/// environment, for other programs.
pub(crate) fn linstor_only(said: &args::Linstor, source: &Place) -> anyhow::Result<()> {
    let args::Linstor { controllers: _, token_file, ca, certificate, key, node } = said;
    let said = [
        ("--linstor-token-file", token_file.is_some()),
        ("--linstor-ca", ca.is_some()),
        ("--linstor-certificate", certificate.is_some()),
        ("--linstor-key", key.is_some()),
        ("--linstor-node", node.is_some()),
    ];
    match source {
        Place::Linstor { .. } => Ok(()),
        _ => refuse(&said, source, "a linstor: source"),
    }
}

fn of_zfs(said: &args::Zfs) -> [Said; 7] {
    let args::Zfs { snapshot, latest, prefix, keep, read_back, raw, with } = said;
    [
        ("--snapshot", snapshot.is_some()),
        ("--latest", *latest),
        ("--prefix", prefix.is_some()),
        ("--keep", keep.is_some()),
        ("--read-back", read_back.is_some()),
        ("--raw", *raw),
        ("--with", with.is_some()),
    ]
}

fn of_drbd(said: &args::Drbd) -> [Said; 4] {
    let args::Drbd { mode, cow_size, freeze_max, cross_check, rotated: _ } = said;
    [
        ("--mode", mode.is_some()),
        ("--cow-size", cow_size.is_some()),
        ("--freeze-max", freeze_max.is_some()),
        ("--cross-check", *cross_check),
    ]
}

fn refuse(said: &[Said], place: &Place, of: &str) -> anyhow::Result<()> {
    match said.iter().find(|(_, is_said)| *is_said) {
        Some((option, _)) => misused!("{option} is said of {of}, and does nothing for {place}"),
        None => Ok(()),
    }
}
