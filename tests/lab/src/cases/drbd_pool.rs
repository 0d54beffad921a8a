//! `driftline push --cross-check drbd:RESOURCE/VOLUME`: DRBD's map against what a thin pool and
//! ZFS say of the same change.

use anyhow::{Context as _, Result, ensure};

use super::{
    drbd::{Store, Tracker},
    drbd_live::{churn, is_equal, is_tidy, push, size, snapshots, started, write},
};
use crate::{
    lab::{Lab, Pair},
    machine::{Machine, Output},
    replication::{Report, exit, refused},
};

/// What one cross-check told.
#[derive(Debug)]
struct Told {
    pool_bytes: u64,
    map_bytes: u64,
    missed_bytes: u64,
    code: i64,
    stderr: String,
}

/// The one snapshot of ours, and its device.
fn kept(source: &Machine, store: Store) -> Result<(String, String)> {
    let left = snapshots(source)?;
    ensure!(left.len() == 1, "one snapshot is to be kept: {left:?}");
    let name = left[0].split_whitespace().next().context("a name")?.to_owned();
    let device = match store {
        Store::Thin | Store::Thick => format!("/dev/lab/{name}"),
        Store::Zvol => format!("/dev/zvol/{name}"),
    };
    Ok((name, device))
}

/// Pushes an increment. The replica is the snapshot that is kept.
fn increment(pair: &Pair<'_>, tracker: &Tracker) -> Result<(Report, Output)> {
    let Pair { source, .. } = pair;
    let output = push(source, tracker.name, "--cross-check")?;
    let report = Report::of(&output)?;
    let (kinds, reason) = (report.kinds(), report.reason());
    ensure!(kinds == ["incremental"], "{kinds:?} ({reason}): {}", output.stderr);
    let (_, device) = kept(source, tracker.store)?;
    is_equal(pair, tracker.name, &device, size(source, tracker)?)?;
    if matches!(tracker.store, Store::Thin) {
        let held = source.sh("dmsetup status lab-thin-tpool | cut -d ' ' -f 7")?;
        ensure!(held == "-", "a snapshot of the pool's metadata is still reserved: {held}");
    }
    Ok((report, output))
}

/// Pushes an increment, which has to be cross-checked.
fn checked(pair: &Pair<'_>, tracker: &Tracker) -> Result<Told> {
    let (report, output) = increment(pair, tracker)?;
    let check = report.cross_check();
    let bytes = |key: &str| check[key].as_u64().with_context(|| output.stderr.clone());
    let (pool_bytes, map_bytes) = (bytes("pool_bytes")?, bytes("map_bytes")?);
    let missed_bytes = bytes("missed_bytes")?;
    println!("# {}: pool {pool_bytes}, map {map_bytes}, missed {missed_bytes}", tracker.name);
    Ok(Told { pool_bytes, map_bytes, missed_bytes, code: output.code, stderr: output.stderr })
}

fn agrees(pair: &Pair<'_>, tracker: &Tracker) -> Result<Told> {
    let told = checked(pair, tracker)?;
    ensure!(told.missed_bytes == 0 && told.pool_bytes > 0, "{told:?}");
    Ok(told)
}

/// Pushes an increment for which there is nothing to hold DRBD's map against.
fn stands_alone(pair: &Pair<'_>, tracker: &Tracker, why: &str) -> Result<()> {
    let (report, output) = increment(pair, tracker)?;
    ensure!(report.cross_check().is_null(), "{}", report.cross_check());
    let said = output.stderr.contains("not cross-checked") && output.stderr.contains(why);
    ensure!(said, "{}", output.stderr);
    Ok(())
}

/// What was written below DRBD is found, and arrives. Rotations under eight writers agree. A
/// snapshot that is gone, or is another of that name, is not compared with.
pub(super) fn pool(lab: &mut Lab, name: &'static str, minor: u32, store: Store) -> Result<()> {
    let pair = lab.pair()?;
    let source = pair.source;
    let tracker = started(&pair, name, minor, store)?;
    write(source, &tracker, "2 256..257")?;
    stands_alone(&pair, &tracker, "no snapshot of what the target holds was kept")?;
    write(source, &tracker, "3 256..257 1280..1281 10240..11008 19712..19713")?;
    agrees(&pair, &tracker)?;

    // Where nothing was ever written through DRBD: not even its activity log names it.
    let (base, _) = kept(source, store)?;
    write(source, &tracker, "4 256..257")?;
    source.sh(&format!("/lab/blocks write {} 5 22000..22016", store.backing(name)))?;
    let told = checked(&pair, &tracker)?;
    ensure!(told.missed_bytes == 16 * 4096 && told.code == exit::DEGRADED, "{told:?}");
    // Others may have left some of their own.
    let of_this = format!("audit-mismatch: drbd:{name}/");
    let incidents = source.sh("driftline incidents")?;
    let (before, incident) = incidents.split_once(&of_this).context("no incident")?;
    for says in [", mended ", "at 90112000 length 65536"] {
        ensure!(incident.contains(says), "{says}: {incidents}");
    }
    let id = before.split_whitespace().last().context("the name of an incident")?;
    source.sh(&format!("driftline incidents ack {id}"))?;
    ensure!(!source.sh("driftline incidents")?.contains(&of_this), "it is still open");
    let (tip, _) = kept(source, store)?;
    let bare = |name: &str| name.rsplit('@').next().unwrap_or(name).to_owned();
    for says in ["does not name them", "missed_bytes=65536", &bare(&base), &bare(&tip)] {
        ensure!(told.stderr.contains(says), "{says}: {}", told.stderr);
    }
    ensure!(told.stderr.contains(&format!("{}+65536", 22000 * 4096)), "{}", told.stderr);

    churn(source, &tracker)?;
    for _ in 0..3 {
        source.sh("sleep 2")?;
        let told = agrees(&pair, &tracker)?;
        ensure!(told.map_bytes >= told.pool_bytes, "the log is to name more: {told:?}");
    }
    source.sh("systemctl is-active --quiet writer; systemctl stop writer")?;

    // Somebody has removed it, and then put another in its place.
    let (name_of, _) = kept(source, store)?;
    let gone = match store {
        Store::Thin | Store::Thick => format!("lvremove -q --yes lab/{name_of}"),
        Store::Zvol => format!("until zfs destroy {name_of}; do sleep 0.2; done"),
    };
    source.sh(&gone)?;
    write(source, &tracker, "6 100..101")?;
    stands_alone(&pair, &tracker, "was kept")?;
    let (name_of, _) = kept(source, store)?;
    let other = match store {
        Store::Thin | Store::Thick => format!(
            "tags=$(lvs --noheadings -o lv_tags lab/{name_of} | tr -d ' ')
             lvremove -q --yes lab/{name_of}
             lvcreate -q -s -kn -ay -n {name_of} lab/{name}
             for tag in ${{tags//,/ }}; do lvchange -q --addtag $tag lab/{name_of}; done"
        ),
        Store::Zvol => format!(
            "get() {{ zfs get -H -o value $1 {name_of}; }}
             rotated=$(get driftline:rotated) identity=$(get driftline:identity)
             until zfs destroy {name_of}; do sleep 0.2; done
             zfs snapshot {name_of}
             zfs set driftline:rotated=$rotated driftline:identity=$identity {name_of}
             udevadm settle"
        ),
    };
    source.sh(&other)?;
    write(source, &tracker, "7 100..101")?;
    stands_alone(&pair, &tracker, "is not the snapshot that was taken under that name")?;
    write(source, &tracker, "8 100..101")?;
    agrees(&pair, &tracker)?;

    // Without the option nothing is kept any more.
    write(source, &tracker, "9 100..101")?;
    Report::of(&push(source, name, "")?)?;
    is_tidy(source, &tracker)?;
    tracker.remove(lab)
}

/// On a thin pool; and a thick volume is refused.
pub(super) fn thin(lab: &mut Lab) -> Result<()> {
    pool(lab, "drbd-pool-thin", 22, Store::Thin)?;
    let source = lab.pair()?.source;
    let tracker = Tracker::new(source, "drbd-pool-thick", 23, Store::Thick)?;
    let output = push(source, tracker.name, "--cross-check")?;
    refused(&output, exit::REFUSED, "unsupported")?;
    ensure!(output.stderr.contains("lab/drbd-pool-thick is a thick"), "{}", output.stderr);
    is_tidy(source, &tracker)?;
    tracker.remove(lab)
}
