//! The machines of a run: booted when a case first asks, shared by the cases that follow.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    image::Image,
    machine::{Link, Machine, Spec},
};

/// The machine whose storage is replicated: a pool on its first disk, LVM on its second.
const SOURCE: Spec = Spec {
    name: "source",
    disks: &[12, 8],
    links: &[
        Link { name: "replication", listens: true, address: "10.7.0.1/24" },
        Link { name: "drbd", listens: true, address: "10.7.1.1/24" },
    ],
};

/// The machine that holds the replicas, on its first disk.
const TARGET: Spec = Spec {
    name: "target",
    disks: &[12],
    links: &[Link { name: "replication", listens: false, address: "10.7.0.2/24" }],
};

/// The source's peer in a DRBD pair: LVM on its disk.
const PEER: Spec = Spec {
    name: "peer",
    disks: &[8],
    links: &[Link { name: "drbd", listens: false, address: "10.7.1.2/24" }],
};

/// Where the target listens.
pub(crate) const TARGET_ADDRESS: &str = "10.7.0.2:7420";

/// Which machine is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It pushes, or serves pulls.
    Source,
    /// It holds the replicas.
    Target,
    /// The other half of a DRBD pair.
    Peer,
}

impl Role {
    const ALL: [Self; 3] = [Self::Source, Self::Target, Self::Peer];

    const fn spec(self) -> &'static Spec {
        match self {
            Self::Source => &SOURCE,
            Self::Target => &TARGET,
            Self::Peer => &PEER,
        }
    }
}

/// One run of the lab.
pub(crate) struct Lab {
    image: Image,
    tools: PathBuf,
    work: PathBuf,
    machines: [Option<Machine>; 3],
    verbose: bool,
}

/// Both ends of a replication.
pub(crate) struct Pair<'a> {
    /// It pushes.
    pub(crate) source: &'a Machine,
    /// It holds the replica.
    pub(crate) target: &'a Machine,
}

impl Lab {
    /// A lab whose files are in `work`, an empty folder with a short path, as Unix sockets
    /// are in it. `tools` is the disk that brings Driftline into the machines.
    pub(crate) fn new(image: Image, tools: &Path, work: &Path, verbose: bool) -> Self {
        Self {
            image,
            tools: tools.to_owned(),
            work: work.to_owned(),
            machines: [const { None }; 3],
            verbose,
        }
    }

    /// Both ends of a replication, ready.
    pub(crate) fn pair(&mut self) -> Result<Pair<'_>> {
        self.boot(&[Role::Source, Role::Target])?;
        Ok(Pair { source: self.get(Role::Source)?, target: self.get(Role::Target)? })
    }

    /// The machine with the storage, ready.
    pub(crate) fn source(&mut self) -> Result<&Machine> {
        self.boot(&[Role::Source])?;
        self.get(Role::Source)
    }

    /// Both halves of a DRBD pair, ready.
    pub(crate) fn drbd_pair(&mut self) -> Result<(&Machine, &Machine)> {
        self.boot(&[Role::Source, Role::Peer])?;
        Ok((self.get(Role::Source)?, self.get(Role::Peer)?))
    }

    /// All machines, ready: source, target, peer.
    pub(crate) fn all(&mut self) -> Result<[&Machine; 3]> {
        self.boot(&Role::ALL)?;
        Ok([self.get(Role::Source)?, self.get(Role::Target)?, self.get(Role::Peer)?])
    }

    /// Pulls a machine's plug. Its disks stay; it boots again when it is next asked for.
    pub(crate) fn power_off(&mut self, role: Role) -> Result<()> {
        self.machines[role as usize].take().context("it is not running")?.power_off()
    }

    /// Makes a machine's kernel start anew under whatever runs there. It is ready again then.
    pub(crate) fn crash(&self, role: Role) -> Result<()> {
        let machine = self.get(role)?;
        machine.crash()?;
        machine.wait()?;
        prepare(role, machine).with_context(|| format!("prepare {}", machine.name()))
    }

    /// Throws all machines and their disks away, so that nothing a failed case left behind
    /// can fail another; with `keep`, moves them there.
    pub(crate) fn clear(&mut self, keep: Option<&Path>) -> Result<()> {
        for role in Role::ALL {
            self.machines[role as usize] = None;
            let folder = self.work.join(role.spec().name);
            if !folder.exists() {
                continue;
            }
            match keep {
                None => fs::remove_dir_all(folder)?,
                Some(keep) => keep_folder(&folder, &keep.join(role.spec().name))?,
            }
        }
        Ok(())
    }

    /// Boots those that are not running, at the same time, and prepares those that are new.
    fn boot(&mut self, roles: &[Role]) -> Result<()> {
        let mut booting = Vec::new();
        for &role in roles {
            if self.machines[role as usize].is_none() {
                let spec = role.spec();
                let folder = self.work.join(spec.name);
                let machine =
                    Machine::start(spec, &self.image, &self.tools, &folder, self.verbose)?;
                booting.push((role, machine));
            }
        }
        for (role, machine) in booting {
            machine.wait()?;
            prepare(role, &machine).with_context(|| format!("prepare {}", machine.name()))?;
            self.machines[role as usize] = Some(machine);
        }
        Ok(())
    }

    fn get(&self, role: Role) -> Result<&Machine> {
        self.machines[role as usize].as_ref().context("it is not running")
    }
}

/// Puts a machine to work with the scripts that a Vagrant machine runs as well. They leave
/// alone what an earlier boot has made.
fn prepare(role: Role, machine: &Machine) -> Result<()> {
    let disks = match role {
        Role::Source => "/dev/vdc /dev/vdd",
        Role::Target | Role::Peer => "/dev/vdc",
    };
    machine.sh(&format!("/lab/provision/machine {} {disks}", role.spec().name))?;
    Ok(())
}

/// Copies sparse files as such, across file systems.
fn keep_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let status = std::process::Command::new("cp")
                .args(["--sparse=always", "--force"])
                .args([entry.path(), to.join(entry.file_name())])
                .status()?;
            anyhow::ensure!(status.success(), "cp failed");
        }
    }
    fs::remove_dir_all(from)?;
    Ok(())
}
