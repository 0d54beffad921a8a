//! The testbed of `vagrant/`: every command of its walk, and the timers that replicate.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    lab::{Lab, Pair},
    machine::Machine,
    replication::configure,
};

/// The walk itself, as it stands in the repository.
const WALK: &str = include_str!("../../../../vagrant/README.md");

/// Stands for whatever it is, in the output that the walk shows.
const WHATEVER: char = '…';

/// Every machine, provisioned as Vagrant does it.
fn testbed(lab: &mut Lab) -> Result<[&Machine; 3]> {
    let machines = lab.all()?;
    let [source, target, peer] = machines;
    // Other cases have left their own.
    target.sh("rm /etc/driftline/driftline.toml; /lab/provision/driftline /lab target")?;
    for machine in [target, source, peer] {
        let name = machine.name();
        machine.sh(&format!("/lab/provision/testbed {name} 10.7.0.2 10.7.1.1 10.7.1.2"))?;
    }
    Ok(machines)
}

/// Runs every command of the walk, on the machine it names, and compares what it prints.
pub(super) fn walk(lab: &mut Lab) -> Result<()> {
    lab.clear(None)?;
    let machines = testbed(lab)?;
    // A box is of the same image, and DHCP tells its machines apart by this.
    let ids = machines.iter().map(|machine| machine.sh("cat /etc/machine-id"));
    let ids = ids.collect::<Result<BTreeSet<_>>>()?;
    ensure!(ids.len() == machines.len(), "machines have one id: {ids:?}");
    let mut steps = 0;
    // All that differs, not only what differs first.
    let mut differences = String::new();
    for (command, expected) in steps_of(WALK)? {
        let (name, script) = command.split_once("# ").context("MACHINE# COMMAND")?;
        let machine = machines.iter().find(|machine| machine.name() == name);
        // As in a shell that somebody types in.
        let script = format!("set +euo pipefail; {script}");
        let machine = machine.with_context(|| format!("no machine {name}"))?;
        let output = machine.run(&script)?;
        // What is told every half minute of a long run is not part of the walk.
        let errors = output.stderr.lines().filter(|line| !line.contains(" INFO "));
        let printed: Vec<&str> = output.stdout.lines().chain(errors).collect();
        let matches = printed.len() == expected.len()
            && printed.iter().zip(&expected).all(|(line, pattern)| is_like(line, pattern));
        if output.code != 0 || !matches {
            writeln!(
                differences,
                "{command}\nexit {}, printed:\n{}\nexpected:\n{}\njournal:\n{}",
                output.code,
                printed.join("\n"),
                expected.join("\n"),
                machine.sh("journalctl -o cat -n 12 --no-pager | grep -v guest-exec || true")?
            )?;
        }
        steps += 1;
    }
    ensure!(steps > 20, "the walk has {steps} steps");
    ensure!(differences.is_empty(), "{differences}");
    Ok(())
}

/// The units are sound; the timer starts the job by itself, again and again, and makes up for a
/// start that was missed; a run that is stopped goes on, also as an ordinary user.
pub(super) fn timer(lab: &mut Lab) -> Result<()> {
    let [source, target, _] = testbed(lab)?;
    source.sh("for verb in push pull scrub; do
             set -- \"$@\" driftline-$verb@vm1.service driftline-$verb@vm1.timer
         done
         systemd-analyze verify --man=no --recursive-errors=no driftline-serve.service \"$@\"")?;
    let arrives = |text: &str| arrives((source, "tank/vm1"), (target, "/srv/vm1.img"), text);
    fire(source, "push@vm1", OFTEN)?;
    arrives("by timer")?;
    arrives("by TIMER")?;

    // Off for longer than between two starts. A run that the timer has started is over first.
    let rest = "systemctl stop driftline-push@vm1.timer; systemctl start driftline-push@vm1";
    source.sh(rest)?;
    source.sh("touch -d '2 years ago' /var/lib/systemd/timers/stamp-driftline-push@vm1.timer")?;
    write(source, "tank/vm1", "caught up")?;
    fire(source, "push@vm1", "yearly")?;
    has_arrived(target, "/srv/vm1.img", "caught up")?;
    source.sh(rest)?;

    stopped_goes_on(source, target)
}

/// Stops a run of the job in the middle, and lets an ordinary user end it, with what the comment
/// of the unit says.
fn stopped_goes_on(source: &Machine, target: &Machine) -> Result<()> {
    let said = said(PUSH, "# ZFS asks").replace("USER", "driftline");
    let (allow, settings) = said.split_once('\n').context("what is allowed, and a drop-in")?;
    let allow = allow.replace("POOL/VOLUME", "tank/vm1");
    source.sh("cp /etc/driftline/jobs/vm1.toml /run/vm1.toml
         echo 'limit_rate = \"1M\"' >> /etc/driftline/jobs/vm1.toml
         /lab/blocks write /dev/zvol/tank/vm1 1 16384..20480")?;
    write(source, "tank/vm1", "by a user")?;
    source.sh("systemctl start --no-block driftline-push@vm1")?;
    target.until("[ $(du -m /srv/vm1.img.driftline/journal | cut -f 1) -ge 2 ]")?;
    let status = source.sh("systemctl stop driftline-push@vm1
         systemctl show -p ExecMainStatus --value driftline-push@vm1")?;
    ensure!(status == "130", "stopped, it ended with {status}");

    source.sh(&format!(
        "id driftline 2> /dev/null || useradd --system driftline
         {allow}
         install -m 600 -o driftline /etc/driftline/secret.key /etc/driftline/user.key
         cp /run/vm1.toml /etc/driftline/jobs/vm1.toml
         echo 'key = \"/etc/driftline/user.key\"' >> /etc/driftline/jobs/vm1.toml"
    ))?;
    drop_in(source, "driftline-push@vm1.service", settings)?;
    let user = source.sh("systemctl start driftline-push@vm1
         systemctl show -p User --value driftline-push@vm1")?;
    ensure!(user == "driftline", "it ran as {user:?}");
    has_arrived(target, "/srv/vm1.img", "by a user")?;
    source.sh("rm -r /etc/systemd/system/driftline-push@vm1.*.d; systemctl daemon-reload")?;
    Ok(())
}

/// The timer that pulls, from a `driftline serve` beside the pool, each with what the comment of
/// its unit says.
pub(super) fn timer_pull(lab: &mut Lab) -> Result<()> {
    let Pair { source, target } = lab.pair()?;
    source.sh("/lab/provision/zvol tank/pulled 64M")?;
    let place = "source = \"zfs:tank/pulled\"";
    let toml = "/etc/driftline/driftline.toml";
    configure(source, toml, 7420, ("target", "pull"), "pulled", place)?;
    drop_in(source, "driftline-serve.service", &said(SERVE, "# Volumes of ZFS"))?;
    source.sh("systemctl start driftline-serve")?;
    target.sh("/lab/provision/job pull pulled pulled@10.7.0.1:7420 file:/srv/pulled.img source")?;
    drop_in(target, "driftline-pull@pulled.service", &said(PULL, "# ZFS asks"))?;
    fire(target, "pull@pulled", OFTEN)?;
    for text in ["by timer", "by TIMER"] {
        arrives((source, "tank/pulled"), (target, "/srv/pulled.img"), text)?;
    }
    target.sh("systemctl disable -q --now driftline-pull@pulled.timer
         systemctl stop driftline-pull@pulled
         rm -r /srv/pulled.img* /etc/driftline/jobs/pulled.toml
         rm -r /etc/systemd/system/driftline-pull@pulled.*.d
         systemctl daemon-reload")?;
    source.sh(&format!(
        "systemctl stop driftline-serve
         rm -r {toml} /etc/systemd/system/driftline-serve.service.d
         systemctl daemon-reload"
    ))?;
    source.until("zfs destroy -r tank/pulled")
}

const PUSH: &str = include_str!("../../../../transport/cli/dist/systemd/driftline-push@.service");
const PULL: &str = include_str!("../../../../transport/cli/dist/systemd/driftline-pull@.service");
pub(super) const SERVE: &str =
    include_str!("../../../../transport/cli/dist/systemd/driftline-serve.service");

/// What a comment says to write, in the paragraph of it that begins so.
pub(super) fn said(unit: &str, start: &str) -> String {
    let paragraph = unit.lines().skip_while(|line| !line.starts_with(start));
    let paragraph = paragraph.take_while(|line| line.starts_with("# "));
    paragraph
        .filter_map(|line| line.strip_prefix("#   "))
        .map(|line| line.to_owned() + "\n")
        .collect()
}

/// Adds settings to a unit.
pub(super) fn drop_in(machine: &Machine, unit: &str, settings: &str) -> Result<()> {
    machine.sh(&format!(
        "mkdir -p /etc/systemd/system/{unit}.d
         cat > /etc/systemd/system/{unit}.d/lab.conf << 'END'
{settings}
END
         systemctl daemon-reload"
    ))?;
    Ok(())
}

/// A schedule that a case does not wait for.
const OFTEN: &str = "*:*:0/5";

/// Starts the timer of `job`, `VERB@NAME`, as it is but for when.
fn fire(machine: &Machine, job: &str, when: &str) -> Result<()> {
    let timer = format!("driftline-{job}.timer");
    let settings =
        format!("[Timer]\nOnCalendar=\nOnCalendar={when}\nRandomizedDelaySec=0\nAccuracySec=1s");
    drop_in(machine, &timer, &settings)?;
    machine.sh(&format!("systemctl restart {timer}"))?;
    Ok(())
}

/// Writes `text` to the zvol and waits until it is in the replica.
fn arrives(
    (source, zvol): (&Machine, &str),
    (target, replica): (&Machine, &str),
    text: &str,
) -> Result<()> {
    write(source, zvol, text)?;
    has_arrived(target, replica, text)
}

fn write(source: &Machine, zvol: &str, text: &str) -> Result<()> {
    source.sh(&format!(
        "echo '{text}' | dd of=/dev/zvol/{zvol} bs=1M seek=7 conv=fsync,notrunc status=none"
    ))?;
    Ok(())
}

fn has_arrived(target: &Machine, replica: &str, text: &str) -> Result<()> {
    target.until(&format!(
        "[ \"$(dd if={replica} bs=1M skip=7 count=1 status=none | head -n 1)\" = '{text}' ]"
    ))
}

/// The commands of the walk's console blocks, each with the lines that follow it.
fn steps_of(text: &str) -> Result<Vec<(&str, Vec<&str>)>> {
    let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ if ["source# ", "target# ", "peer# "]
                .iter()
                .any(|prompt| line.starts_with(prompt)) =>
            {
                steps.push((line, Vec::new()));
            }
            _ => match steps.last_mut() {
                Some((_, output)) => output.push(line),
                None => bail!("output before the first command: {line}"),
            },
        }
    }
    Ok(steps)
}

/// Whether a line is what the pattern says.
fn is_like(line: &str, pattern: &str) -> bool {
    let Some((start, rest)) = pattern.split_once(WHATEVER) else {
        return line == pattern;
    };
    let Some(line) = line.strip_prefix(start) else {
        return false;
    };
    (0..=line.len()).filter(|&at| line.is_char_boundary(at)).any(|at| is_like(&line[at..], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_lines() {
        assert!(is_like("24.0 MiB changed, 3 s", "24.0 MiB changed, … s"));
        assert!(is_like("ab", "…a…b…"));
        assert!(!is_like("24.0 MiB changed, 3 s more", "24.0 MiB changed, … s"));
        assert!(!is_like("25.0 MiB", "24.0 MiB"));
    }

    #[test]
    fn a_comment_says_what_to_write() {
        let settings = said(SERVE, "# Volumes of ZFS");
        assert_eq!(
            settings,
            "[Service]\nDeviceAllow=/dev/zfs rw\nCapabilityBoundingSet=CAP_SYS_ADMIN\n"
        );
        assert!(said(PUSH, "# ZFS asks").starts_with("zfs allow -u USER "));
        assert!(said(PULL, "# ZFS asks").starts_with("[Service]\nCapabilityBoundingSet=\n"));
    }

    #[test]
    fn the_walk_has_commands_and_output() {
        let steps = steps_of(WALK).unwrap();
        assert!(steps.len() > 20, "{}", steps.len());
        assert!(steps.iter().any(|(_, output)| output.len() > 3));
    }
}
