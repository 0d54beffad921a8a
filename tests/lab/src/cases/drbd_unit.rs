//! A job with a `drbd:` source, run by systemd from the units that are shipped.

use anyhow::{Result, ensure};

use super::{
    drbd::Store,
    drbd_live::{is_current, is_tidy, started, write},
    walk::drop_in,
};
use crate::lab::{Lab, TARGET_ADDRESS};

const DROP_IN: &str = include_str!("../../../../transport/cli/dist/systemd/drbd.conf");

/// Where node_exporter looks for metrics.
const METRICS: &str = "/var/lib/prometheus/node-exporter";

/// What hangs: it is found before the real one, also by a unit.
const HANGING: &str = "/usr/local/sbin/lvcreate";

pub(super) fn units(lab: &mut Lab) -> Result<()> {
    unit(lab, "drbd-unit-thin", 26, Store::Thin)?;
    unit(lab, "drbd-unit-thick", 27, Store::Thick)
}

/// The job replicates and writes its metrics. Killed while the device is suspended, it leaves a guard
/// that resumes it, and the next run goes on.
fn unit(lab: &mut Lab, name: &'static str, minor: u32, store: Store) -> Result<()> {
    let pair = lab.pair()?;
    let source = pair.source;
    let tracker = started(&pair, name, minor, store)?;
    let device = tracker.device();
    let unit = format!("driftline-push@{name}.service");
    source.sh(&format!(
        "mkdir -p {METRICS}
         cat > /etc/driftline/jobs/{name}.toml << END
version = 1
source = \"drbd:{name}/0\"
target = \"{name}@{TARGET_ADDRESS}\"
peer = \"$(cat /lab/keys/target.pub)\"
metrics = \"{METRICS}/driftline-{name}.prom\"
[drbd]
mode = \"rotate\"
freeze_max = 60
cow_size = \"50%\"
END"
    ))?;
    drop_in(source, &unit, DROP_IN)?;
    write(source, &tracker, "2 100..200")?;
    source.sh(&format!(
        "systemctl start {unit} || {{ journalctl -o cat -n 20 --no-pager -u {unit} >&2; exit 1; }}"
    ))?;
    is_current(&pair, name, &device)?;
    is_tidy(source, &tracker)?;
    let metrics = source.sh(&format!("cat {METRICS}/driftline-{name}.prom"))?;
    ensure!(metrics.contains("driftline_") && metrics.contains(name), "{metrics}");

    write(source, &tracker, "3 300..400")?;
    source.sh(&format!(
        "cat > {HANGING} << 'END'
#!/bin/bash
touch /run/hangs
while [ -e /run/hangs ]; do sleep 0.1; done
exec /usr/sbin/lvcreate \"$@\"
END
         chmod +x {HANGING}
         systemctl start --no-block {unit}"
    ))?;
    source.until("[ -e /run/hangs ]")?;
    let killed = source.sh(&format!(
        "drbdsetup events2 --now {name} | grep -q suspended:user
         systemctl kill -s KILL --kill-whom=main {unit}
         timeout 60 /lab/blocks write {device} 4 500..501
         rm -f /run/hangs {HANGING}
         drbdsetup events2 --now {name}"
    ))?;
    ensure!(killed.contains("suspended:no"), "{killed}");
    source.until("! pgrep -x lvcreate")?;
    source.sh(&format!("systemctl reset-failed {unit} || true; systemctl start {unit}"))?;
    is_current(&pair, name, &device)?;
    is_tidy(source, &tracker)?;
    source.sh(&format!(
        "rm -r /etc/systemd/system/{unit}.d /etc/driftline/jobs/{name}.toml {METRICS}/driftline-{name}.prom
         systemctl daemon-reload"
    ))?;
    tracker.remove(lab)
}
