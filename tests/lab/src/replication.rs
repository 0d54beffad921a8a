//! A zvol on the source and its replica on the target: what most cases are about.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    lab::{Lab, Pair, TARGET_ADDRESS},
    machine::{Machine, Output},
};

/// Exit codes of `driftline`, as its README documents them.
pub(crate) mod exit {
    pub(crate) const FAILED: i64 = 1;
    pub(crate) const REFUSED: i64 = 3;
    pub(crate) const CONNECTION: i64 = 5;
    pub(crate) const TARGET_MODIFIED: i64 = 6;
    pub(crate) const TARGET_FULL: i64 = 7;
    pub(crate) const DEGRADED: i64 = 8;
}

/// A zvol and the replica of it. It holds no machine, as those come and go.
pub(crate) struct Replication {
    /// Name of the volume at the target; the case's.
    pub(crate) name: &'static str,
    /// The zvol, mostly `tank/NAME`.
    pub(crate) zvol: String,
    /// Where the replica is on the target.
    pub(crate) replica: String,
    /// Number of the newest snapshot, `@s1` and on; 0 is none.
    snapshot: u32,
    /// What the next stream starts from: nothing, `@s1` or `#b1`.
    pub(crate) base: Option<String>,
}

/// What one push or pull told on standard output.
pub(crate) struct Report(Value);

impl Report {
    /// Reads what a successful run printed.
    pub(crate) fn of(output: &Output) -> Result<Self> {
        let is_done = [0, exit::DEGRADED].contains(&output.code);
        ensure!(is_done, "exit {}\n{}", output.code, output.stderr);
        let line = output.stdout.lines().last().unwrap_or_default();
        let told: Value =
            serde_json::from_str(line).with_context(|| format!("it printed {line:?}"))?;
        let says_so = told["degraded"].is_string();
        ensure!(says_so == (output.code != 0), "exit {}, and it printed {line}", output.code);
        Ok(Self(told))
    }

    /// Bytes that it read from the source's storage.
    pub(crate) fn read(&self) -> u64 {
        self.0["bytes"]["read"].as_u64().unwrap_or(u64::MAX)
    }

    /// Bytes that it put on the network.
    pub(crate) fn sent(&self) -> u64 {
        self.0["bytes"]["sent"].as_u64().unwrap_or(u64::MAX)
    }

    /// Bytes that it got from the network.
    pub(crate) fn received(&self) -> u64 {
        self.0["bytes"]["received"].as_u64().unwrap_or(u64::MAX)
    }

    /// Kinds of all its plans, one after the other.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        let plans = self.0["increments"].as_array().map(Vec::as_slice).unwrap_or_default();
        plans.iter().filter_map(|plan| plan["kind"].as_str()).collect()
    }

    /// Kind of its last plan: `full`, `incremental`, `scan`.
    pub(crate) fn kind(&self) -> &str {
        self.last_plan("kind")
    }

    /// Why its last plan was not an increment.
    pub(crate) fn reason(&self) -> &str {
        self.last_plan("reason")
    }

    /// What came of holding the map of its last plan against another; null if it was not.
    pub(crate) fn cross_check(&self) -> &Value {
        let plans = self.0["increments"].as_array().and_then(|plans| plans.last());
        plans.map_or(&Value::Null, |plan| &plan["cross_check"])
    }

    fn last_plan(&self, field: &str) -> &str {
        let plans = self.0["increments"].as_array().and_then(|plans| plans.last());
        plans.and_then(|plan| plan[field].as_str()).unwrap_or_default()
    }
}

impl Replication {
    /// Makes the zvol `tank/NAME` with `create`'s options of `zfs create`, and lets the source
    /// push it to a file on the target.
    pub(crate) fn new(pair: &Pair<'_>, name: &'static str, create: &str) -> Result<Self> {
        Self::new_at(pair, name, &format!("tank/{name}"), create, &format!("/srv/{name}.img"))
    }

    /// The same with another zvol, and another place for the replica.
    pub(crate) fn new_at(
        pair: &Pair<'_>,
        name: &'static str,
        zvol: &str,
        create: &str,
        replica: &str,
    ) -> Result<Self> {
        pair.source
            .sh(&format!("zfs create -s -o snapdev=visible {create} '{zvol}'; udevadm settle"))?;
        allow_push(pair, name, replica)?;
        let (zvol, replica) = (zvol.to_owned(), replica.to_owned());
        Ok(Self { name, zvol, replica, snapshot: 0, base: None })
    }

    /// The same zvol, to be pushed to another volume, of which the target must know.
    pub(crate) fn fork(&self, name: &'static str) -> Self {
        let (zvol, replica) = (self.zvol.clone(), format!("/srv/{name}.img"));
        Self { name, zvol, replica, snapshot: 0, base: None }
    }

    /// The zvol's device: udev writes + for a space.
    pub(crate) fn device(&self) -> String {
        format!("/dev/zvol/{}", self.zvol.replace(' ', "+"))
    }

    /// Runs `blocks` on the zvol.
    pub(crate) fn blocks(&self, source: &Machine, action: &str, rest: &str) -> Result<()> {
        source.sh(&format!("/lab/blocks {action} {} {rest}", self.device()))?;
        Ok(())
    }

    /// Takes the next snapshot.
    pub(crate) fn take_snapshot(&mut self, source: &Machine) -> Result<()> {
        self.snapshot += 1;
        source.sh(&format!("zfs snapshot '{}@s{}'", self.zvol, self.snapshot))?;
        Ok(())
    }

    /// The command that pushes the newest snapshot.
    pub(crate) fn push_command(&self, options: &str) -> String {
        let Self { name, zvol, snapshot, .. } = self;
        let base = self.base.as_ref().map_or_else(String::new, |base| format!("-i '{base}'"));
        format!(
            "export DRIFTLINE_PEER=$(cat /lab/keys/target.pub)
             zfs send -Lce {base} '{zvol}@s{snapshot}' |
                 driftline push --json {options} zstream:- {name}@{TARGET_ADDRESS}"
        )
    }

    /// Pushes the newest snapshot, whatever comes of it.
    pub(crate) fn push(&self, source: &Machine) -> Result<Output> {
        source.run(&self.push_command("--quiet"))
    }

    /// Starts to push slowly, in the background, as the unit `push`.
    pub(crate) fn push_slowly(&self, source: &Machine, rate: &str) -> Result<()> {
        let script = self.push_command(&format!("--limit-rate {rate}"));
        start(source, "push", &script)
    }

    /// Pushes the newest snapshot and compares the replica with it. The next increment starts
    /// there.
    pub(crate) fn generation(&mut self, pair: &Pair<'_>) -> Result<Report> {
        self.take_snapshot(pair.source)?;
        self.arrives(pair)
    }

    /// Pushes the newest snapshot, which must arrive, and compares the replica with it.
    pub(crate) fn arrives(&mut self, pair: &Pair<'_>) -> Result<Report> {
        let report = Report::of(&self.push(pair.source)?)?;
        self.is_equal(pair, self.snapshot)?;
        self.base = Some(format!("@s{}", self.snapshot));
        Ok(report)
    }

    /// Compares the replica with a snapshot's own device, byte for byte by their hashes.
    pub(crate) fn is_equal(&self, pair: &Pair<'_>, snapshot: u32) -> Result<()> {
        let expected = pair.source.sh(&format!("sha256sum < {}@s{snapshot}", self.device()))?;
        let actual = pair.target.sh(&format!("sha256sum < {}", self.replica))?;
        ensure!(expected == actual, "{}@s{snapshot}: the replica differs", self.name);
        Ok(())
    }

    /// Waits until the target has taken in this much of an increment.
    pub(crate) fn has_arrived(&self, target: &Machine, mib: u32) -> Result<()> {
        target.until(&format!(
            "[ $(du -m {}.driftline/journal 2> /dev/null | cut -f1) -ge {mib} ]",
            self.replica
        ))
    }

    /// Frees what the case took.
    pub(crate) fn remove(self, lab: &mut Lab) -> Result<()> {
        let pair = lab.pair()?;
        // udev may still be looking at a device that was just closed.
        pair.source.until(&format!("zfs destroy -r '{}'", self.zvol))?;
        pair.target.sh(&format!("rm -rf {0} {0}.driftline", self.replica))?;
        Ok(())
    }
}

/// Lets the source push the volume `name`, and nothing else, to the file `replica`.
pub(crate) fn allow_push(pair: &Pair<'_>, name: &str, replica: &str) -> Result<()> {
    allow_push_to(pair, name, &format!("target = \"file:{replica}\""))
}

/// The same with what the configuration says of the volume.
pub(crate) fn allow_push_to(pair: &Pair<'_>, name: &str, place: &str) -> Result<()> {
    let file = "/etc/driftline/driftline.toml";
    configure(pair.target, file, 7420, ("source", "push"), name, place)?;
    pair.target.sh("driftline serve --check --config /etc/driftline/driftline.toml >&2
         systemctl restart driftline-serve")?;
    Ok(())
}

/// Makes the pool `back` on the target, of a file of this size, and lets its service work with
/// ZFS.
pub(crate) fn make_pool(target: &Machine, size: &str) -> Result<()> {
    target.sh(&format!(
        "truncate -s {size} /srv/back.pool
         zpool create -f -O snapdev=visible -m none back /srv/back.pool"
    ))?;
    serve_with_zfs(target)
}

/// Takes that pool away, and what its replicas have left.
pub(crate) fn remove_pool(target: &Machine) -> Result<()> {
    serve_without_zfs(target)?;
    target.until("zpool destroy -f back")?;
    target.sh("rm -r /srv/back.pool; rm -rf /var/lib/driftline/zvol/back").map(drop)
}

/// Lets the target's service work with ZFS, as its unit says.
pub(crate) fn serve_with_zfs(target: &Machine) -> Result<()> {
    target
        .sh("mkdir -p /etc/systemd/system/driftline-serve.service.d
         cat > /etc/systemd/system/driftline-serve.service.d/zfs.conf << END
[Service]
DeviceAllow=/dev/zfs rw
CapabilityBoundingSet=CAP_SYS_ADMIN
END
         systemctl daemon-reload; sync")
        .map(drop)
}

/// Stops the target's service, which then works without ZFS again.
pub(crate) fn serve_without_zfs(target: &Machine) -> Result<()> {
    target
        .sh("systemctl stop driftline-serve
         rm -r /etc/systemd/system/driftline-serve.service.d; systemctl daemon-reload")
        .map(drop)
}

/// The command that pushes a data set of the source's own ZFS to the volume `name`. `run_as` is
/// nothing, or a command that makes it another user's.
pub(crate) fn live_push(dataset: &str, name: &str, options: &str, run_as: &str) -> String {
    format!(
        "export DRIFTLINE_PEER=$(cat /lab/keys/target.pub)
         {run_as} driftline push --json {options} 'zfs:{dataset}' {name}@{TARGET_ADDRESS}"
    )
}

/// Writes a configuration in which one peer may do one thing with one volume.
pub(crate) fn configure(
    machine: &Machine,
    path: &str,
    port: u16,
    (peer, verb): (&str, &str),
    volume: &str,
    place: &str,
) -> Result<()> {
    machine.sh(&format!(
        "cat > {path} << END
version = 1
listen = \"0.0.0.0:{port}\"
key = \"/etc/driftline/secret.key\"
[[peer]]
name = \"{peer}\"
key = \"$(cat /lab/keys/{peer}.pub)\"
{verb} = [\"{volume}\"]
[[volume]]
name = \"{volume}\"
{place}
END"
    ))?;
    Ok(())
}

/// Starts a script in the background, as the unit `unit`.
pub(crate) fn start(machine: &Machine, unit: &str, script: &str) -> Result<()> {
    machine.sh(&format!(
        "cat > /run/{unit} << 'END'\n{script}\nEND
         systemctl reset-failed {unit} 2> /dev/null || true
         systemd-run -q --unit={unit} bash -euo pipefail /run/{unit}"
    ))?;
    Ok(())
}

/// Waits until `unit`, a push or a pull, has ended, and it must say that the connection failed:
/// that is how a timer job learns of it.
pub(crate) fn lost_connection(machine: &Machine, unit: &str) -> Result<()> {
    let code = end_of(machine, unit)?;
    ensure!(code == exit::CONNECTION.to_string(), "the {unit} ended with {code}");
    Ok(())
}

/// Waits until `unit` has ended, and gives its exit code.
pub(crate) fn end_of(machine: &Machine, unit: &str) -> Result<String> {
    machine.until(&format!("! systemctl is-active --quiet {unit}"))?;
    machine.sh(&format!("systemctl show -p ExecMainStatus --value {unit}"))
}

/// That a run ended with this exit code, and gave this reason.
pub(crate) fn refused(output: &Output, code: i64, reason: &str) -> Result<()> {
    ensure!(
        output.code == code && output.stdout.contains(&format!("\"{reason}\"")),
        "not refused as {reason}: exit {}\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    Ok(())
}
