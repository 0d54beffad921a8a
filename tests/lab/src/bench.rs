//! What an increment costs, against what people use today: 1 % of a volume in single blocks, over
//! the lab's network. It is printed; nothing is asserted but that each way has worked.

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Lab, Pair, TARGET_ADDRESS},
    machine::Machine,
    replication::{allow_push_to, end_of, make_pool, remove_pool, start},
};

/// Bytes of the volume, which is full of what does not compress.
const SIZE: u64 = 1 << 30;

/// 1 % of it, in blocks of 4 KiB.
const BLOCKS: u64 = SIZE / 4096 / 100;

/// Increments that each way is measured with.
const ROUNDS: usize = 3;

/// The volume.
const ZVOL: &str = "tank/bench";

/// Receives one stream, and closes the connection when it has.
const LISTENER: &str = "socat -t 600 TCP-LISTEN:9000,reuseaddr EXEC:'zfs receive -u back/tcp'";

/// One way of bringing an increment to the target.
struct Way {
    name: &'static str,
    /// Where it goes on the target.
    replica: &'static str,
    /// What listens on the target while it runs, where nothing does for ever.
    listener: &'static str,
    /// What runs on the source. It takes the snapshot that it needs.
    script: String,
}

/// What one increment has cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    wire: f64,
    source: Usage,
    target: Usage,
}

/// What a machine has done up to now, or in a while, in seconds.
#[derive(Clone, Copy, Default)]
struct Usage {
    /// Its processes, all but the lab's own agent.
    processes: f64,
    /// The machine, which includes the threads of its kernel.
    machine: f64,
}

fn ways() -> Vec<Way> {
    let driftline = |volume: &str| {
        format!(
            "export DRIFTLINE_PEER=$(cat /lab/keys/target.pub)
             driftline push --quiet zfs:{ZVOL} {volume}@{TARGET_ADDRESS}"
        )
    };
    // Snapshots of its own, as a script would name them.
    let send = |to: &str, into: &str| {
        format!(
            "base=$(zfs list -H -d 1 -t snapshot -o name -s createtxg {ZVOL} | grep @{to} | tail -n 1)
             next={ZVOL}@{to}-$(date +%s%N)
             zfs snapshot $next
             zfs send -Lce -i $base $next | {into}"
        )
    };
    vec![
        Way {
            name: "driftline push, zvol: target",
            replica: "back/volume",
            listener: "",
            script: driftline("volume"),
        },
        Way {
            name: "driftline push, zfs: target",
            replica: "back/stream",
            listener: "",
            script: driftline("stream"),
        },
        Way {
            name: "zfs send | TCP | zfs receive",
            replica: "back/tcp",
            listener: LISTENER,
            script: send("tcp", "socat -t 600 - TCP:10.7.0.2:9000"),
        },
        Way {
            name: "zfs send | ssh zfs receive",
            replica: "back/ssh",
            listener: "",
            script: send("ssh", "ssh 10.7.0.2 zfs receive -u back/ssh"),
        },
        Way {
            name: "syncoid",
            replica: "back/syncoid",
            listener: "",
            // Without it, it would send the snapshots of all others as well.
            script: format!("syncoid --quiet --no-stream {ZVOL} root@10.7.0.2:back/syncoid"),
        },
    ]
}

/// Measures, and prints a table of medians.
pub(crate) fn run(lab: &mut Lab) -> Result<()> {
    let pair = lab.pair()?;
    prepare(&pair)?;
    let ways = ways();
    // Everybody is there, and has a snapshot of its own to go on from.
    for way in &ways {
        prepare_run(&pair, way)?;
        at_length(pair.source, "bash -euo pipefail /run/bench")?;
        arrived(&pair, way).with_context(|| way.name)?;
    }
    let mut costs = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        pair.source.sh(&format!("/lab/blocks scatter /dev/zvol/{ZVOL} {} {BLOCKS}", round + 1))?;
        for number in 0..ways.len() {
            // Nobody is always the first.
            let number = (number + round) % ways.len();
            let way = &ways[number];
            let cost = measure(&pair, way).with_context(|| way.name)?;
            println!("# round {}: {}", round + 1, line(way.name, &cost));
            costs[number].push(cost);
        }
    }
    println!(
        "# {}",
        pair.source.sh("syncoid --version | head -n 1; ssh -V 2>&1")?.replace('\n', ", ")
    );
    println!(
        "# {} MiB in random 4 KiB blocks, {:.1} MiB of a volume of {} MiB, volblocksize 16k; \
         medians of {ROUNDS}",
        SIZE >> 20,
        (BLOCKS * 4096) as f64 / f64::from(1 << 20),
        SIZE >> 20
    );
    println!(
        "{:<30} {:>7} {:>15} {:>15} {:>9}",
        "", "wall", "CPU, processes", "CPU, machine", "network"
    );
    println!(
        "{:<30} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9}",
        "", "s", "source", "target", "source", "target", "MiB"
    );
    for (way, costs) in ways.iter().zip(&costs) {
        println!("{}", line(way.name, &median(costs)));
    }
    let pair = lab.pair()?;
    remove_pool(pair.target)?;
    pair.source.until(&format!("zfs destroy -r {ZVOL}"))
}

fn line(name: &str, cost: &Cost) -> String {
    let Cost { seconds, wire, source, target } = cost;
    format!(
        "{name:<30} {seconds:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {wire:>9.2}",
        source.processes, target.processes, source.machine, target.machine
    )
}

/// Fills the volume, and brings it to each place on the target.
fn prepare(pair: &Pair<'_>) -> Result<()> {
    let Pair { source, target } = pair;
    make_pool(target, "9G")?;
    // udev need not look at snapshots.
    target.sh("zfs set snapdev=hidden back")?;
    allow_push_to(pair, "volume", "target = \"zvol:back/volume\"")?;
    target.sh(
        "sed -i 's/^push = .*/push = [\"volume\", \"stream\"]/' /etc/driftline/driftline.toml
         printf '[[volume]]\\nname = \"stream\"\\ntarget = \"zfs:back/stream\"\\n' \
             >> /etc/driftline/driftline.toml
         systemctl restart driftline-serve",
    )?;
    source.sh("mkdir -p -m 700 /root/.ssh
         [ -e /root/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
         printf 'StrictHostKeyChecking accept-new\\nLogLevel ERROR\\n' > /root/.ssh/config")?;
    let key = source.sh("cat /root/.ssh/id_ed25519.pub")?;
    target.sh(&format!(
        "mkdir -p -m 700 /root/.ssh; echo '{key}' > /root/.ssh/authorized_keys; systemctl start ssh"
    ))?;
    at_length(
        source,
        &format!(
            "zfs create -V {SIZE} -b 16k {ZVOL}; udevadm settle
             head -c {SIZE} /dev/urandom |
                 dd of=/dev/zvol/{ZVOL} bs=1M iflag=fullblock oflag=direct status=none
             zfs snapshot {ZVOL}@tcp-0; zfs snapshot {ZVOL}@ssh-0"
        ),
    )?;
    listen(target, LISTENER)?;
    let send = |from: &str| format!("zfs send -Lce {from} | socat -t 600 - TCP:10.7.0.2:9000");
    at_length(source, &send(&format!("{ZVOL}@tcp-0")))?;
    for name in ["stream", "ssh", "syncoid"] {
        let copy = format!("zfs send -Lce back/tcp@tcp-0 | zfs receive -u back/{name}");
        at_length(target, &copy)?;
    }
    listen(target, &LISTENER.replace("back/tcp", "back/ssh"))?;
    at_length(source, &send(&format!("-i @tcp-0 {ZVOL}@ssh-0")))
}

/// Runs a script that takes as long as it takes.
fn at_length(machine: &Machine, script: &str) -> Result<()> {
    start(machine, "length", script)?;
    while machine.run("sleep 0.5; systemctl is-active --quiet length")?.code == 0 {}
    let code = end_of(machine, "length")?;
    ensure!(code == "0", "{}: exit {code}: {script}", machine.name());
    Ok(())
}

/// Starts a listener on the target, for one connection.
fn listen(target: &Machine, listener: &str) -> Result<()> {
    target.until("! systemctl is-active --quiet listen")?;
    start(target, "listen", listener)?;
    target.until("ss -Hltn sport = 9000 | grep -q .")
}

/// Makes `/run/bench` on the source, which brings what has changed to the target by this way.
fn prepare_run(pair: &Pair<'_>, way: &Way) -> Result<()> {
    if !way.listener.is_empty() {
        listen(pair.target, way.listener)?;
    }
    pair.source.sh(&format!(
        "cat > /run/bench << 'END'
export HOME=/root
started=$(date +%s%N)
{}
echo $(($(date +%s%N) - started)) > /run/bench.took
END",
        way.script
    ))?;
    Ok(())
}

/// Measures one increment.
fn measure(pair: &Pair<'_>, way: &Way) -> Result<Cost> {
    let Pair { source, target } = pair;
    prepare_run(pair, way)?;
    let before = [usage(target)?, usage(source)?];
    let wire_before = wire(source)?;
    source.sh("systemd-run -q --wait --pipe bash -euo pipefail /run/bench")?;
    let wire = wire(source)? - wire_before;
    let after = [usage(source)?, usage(target)?];
    let nanoseconds: f64 = source.sh("cat /run/bench.took")?.parse()?;
    arrived(pair, way)?;
    Ok(Cost {
        seconds: nanoseconds / 1e9,
        wire: wire / f64::from(1 << 20),
        source: after[0].since(before[1]),
        target: after[1].since(before[0]),
    })
}

/// That the target now has the newest snapshot of the source: by its guid, or by the generation
/// that is noted with the replica's own.
fn arrived(pair: &Pair<'_>, way: &Way) -> Result<()> {
    let guid = pair
        .source
        .sh(&format!("zfs list -Hp -d 1 -t snapshot -o guid -s createtxg {ZVOL} | tail -n 1"))?;
    let found = pair.target.sh(&format!(
        "zfs list -Hp -d 1 -t snapshot -o guid,driftline:generation -s createtxg {} | tail -n 1",
        way.replica
    ))?;
    ensure!(found.contains(&guid), "{} is at {found:?}, not at {guid}", way.replica);
    Ok(())
}

impl Usage {
    const fn since(self, before: Self) -> Self {
        Self {
            processes: self.processes - before.processes,
            machine: self.machine - before.machine,
        }
    }
}

fn usage(machine: &Machine) -> Result<Usage> {
    let text = machine.sh(
        "zpool sync; cd /sys/fs/cgroup
         of() { cat $1/cpu.stat 2> /dev/null | awk '$1 == \"usage_usec\" { used = $2 } END { printf \"%.0f\", used }'; }
         agent=$(of system.slice/qemu-guest-agent.service)
         # A hundredth of a second each: user, nice, system, irq, softirq, steal.
         busy=$(awk '$1 == \"cpu\" { printf \"%.0f\", ($2 + $3 + $4 + $7 + $8 + $9) * 10000 }' /proc/stat)
         echo $(($(of system.slice) + $(of user.slice) - agent)) $((busy - agent))",
    )?;
    let (processes, machine) = text.split_once(' ').context("two numbers")?;
    let seconds = |text: &str| Ok::<f64, anyhow::Error>(text.parse::<f64>()? / 1e6);
    Ok(Usage { processes: seconds(processes)?, machine: seconds(machine)? })
}

/// Bytes that went over the cable, in both directions, headers included.
fn wire(source: &Machine) -> Result<f64> {
    let text = source
        .sh("cd /sys/class/net/eth0/statistics; echo $(($(cat rx_bytes) + $(cat tx_bytes)))")?;
    Ok(text.parse()?)
}

/// The median of each number, of an odd count of them.
fn median(costs: &[Cost]) -> Cost {
    let of = |number: fn(&Cost) -> f64| {
        let mut numbers: Vec<f64> = costs.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or_default()
    };
    Cost {
        seconds: of(|cost| cost.seconds),
        wire: of(|cost| cost.wire),
        source: Usage {
            processes: of(|cost| cost.source.processes),
            machine: of(|cost| cost.source.machine),
        },
        target: Usage {
            processes: of(|cost| cost.target.processes),
            machine: of(|cost| cost.target.machine),
        },
    }
}
