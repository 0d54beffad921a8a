//! The testbed of `vagrant/`: every command of its walk, and the timer that replicates.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{lab::Lab, machine::Machine};

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

/// The timer starts the job by itself, and what was written is on the target.
pub(super) fn timer(lab: &mut Lab) -> Result<()> {
    let [source, target, _] = testbed(lab)?;
    // As it is, but for how often: a case does not wait five minutes.
    source.sh("mkdir -p /etc/systemd/system/driftline-zvol@.timer.d
         printf '[Timer]\\nOnCalendar=\\nOnCalendar=*:*:0/5\\nRandomizedDelaySec=0\\nAccuracySec=1s\\n' \
             > /etc/systemd/system/driftline-zvol@.timer.d/often.conf
         systemctl daemon-reload; systemctl restart driftline-zvol@vm1.timer
         echo 'by timer' | dd of=/dev/zvol/tank/vm1 bs=1M seek=7 conv=fsync,notrunc status=none")?;
    let arrived = |text: &str| {
        target.until(&format!(
            "[ \"$(dd if=/srv/vm1.img bs=1M skip=7 count=8 iflag=count_bytes status=none)\" = '{text}' ]"
        ))
    };
    arrived("by timer")?;
    // Not the first time only.
    source.sh(
        "echo 'by TIMER' | dd of=/dev/zvol/tank/vm1 bs=1M seek=7 conv=fsync,notrunc status=none",
    )?;
    arrived("by TIMER")?;
    source.sh("systemd-analyze verify driftline-zvol@vm1.service driftline-zvol@vm1.timer")?;
    target.sh("systemd-analyze verify driftline-serve.service")?;
    source.sh("systemctl stop driftline-zvol@vm1.timer")?;
    Ok(())
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
    fn the_walk_has_commands_and_output() {
        let steps = steps_of(WALK).unwrap();
        assert!(steps.len() > 20, "{}", steps.len());
        assert!(steps.iter().any(|(_, output)| output.len() > 3));
    }
}
