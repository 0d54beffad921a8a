//! What can go wrong with the DRBD of this machine and the storage beneath it.

use std::{io, time::Duration};

use driftline_extent::{Explained, Reason};

/// Why what was asked for was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no DRBD.
    #[error("there is no /proc/drbd: load DRBD's module with `modprobe drbd`")]
    NoDrbd,
    /// A command is not there.
    #[error("there is no command {program}: install drbd-utils, lvm2 or zfsutils-linux")]
    Missing {
        /// Its name.
        program: String,
    },
    /// A command cannot be started.
    #[error("{command} cannot be run: {error}")]
    Start {
        /// How it would be typed.
        command: String,
        /// Why; the message says it.
        error: io::Error,
    },
    /// A command failed.
    #[error("{command} failed, {status}: {said}")]
    Failed {
        /// How it would be typed.
        command: String,
        /// Its exit status, or the signal that killed it.
        status: String,
        /// What it wrote.
        said: String,
    },
    /// A command took too long, and was killed.
    #[error("{command} was killed, as it took longer than {within:?}")]
    Late {
        /// How it would be typed.
        command: String,
        /// How long it was given.
        within: Duration,
    },
    /// A command ended well, but not all that it wrote was heard.
    #[error("{command} ended, but what it printed is not known: {why}")]
    Unheard {
        /// How it would be typed.
        command: String,
        /// Why.
        why: String,
    },
    /// A command wrote something else than it should.
    #[error("{command} printed what is not understood: {output:?}")]
    NotUnderstood {
        /// How it would be typed.
        command: String,
        /// The beginning of what it wrote.
        output: String,
    },
    /// There is no such volume.
    #[error("DRBD has no {name} here: see `drbdsetup status`; it is written RESOURCE/VOLUME")]
    NoVolume {
        /// Resource and volume.
        name: String,
    },
    /// The volume is somewhere else.
    #[error("{name} has no disk on this machine: push from one that has")]
    NoDisk {
        /// Resource and volume.
        name: String,
    },
    /// No snapshot of a device can be taken, or read.
    #[error("no snapshot can be had of {device}: {why}")]
    Store {
        /// The device.
        device: String,
        /// Why.
        why: String,
    },
    /// There is a snapshot of a thin pool's metadata already, and only one at a time.
    #[error(
        "a snapshot of the metadata of the thin pool {pool} is reserved already, by somebody else \
         or by a run that was killed: `dmsetup message {pool} 0 release_metadata_snap`, if nobody \
         needs it"
    )]
    Reserved {
        /// The pool, as the device mapper calls it.
        pool: String,
    },
    /// LVM would wait for a device that waits for LVM.
    #[error(
        "LVM reads {device} when it looks for its volumes, and would wait for it while its I/O is \
         suspended: in the section devices of /etc/lvm/lvm.conf set global_filter = [ \
         \"r|^/dev/drbd|\" ], with no pattern after it that accepts everything"
    )]
    Filter {
        /// The DRBD device.
        device: String,
    },
}

impl HostError {
    pub(super) fn not_understood(command: &str, output: &str) -> Self {
        Self::NotUnderstood {
            command: command.to_owned(),
            output: output.chars().take(200).collect(),
        }
    }
}

impl Explained for HostError {
    fn reason(&self) -> Reason {
        match self {
            Self::NoDisk { .. } | Self::Store { .. } | Self::Filter { .. } => Reason::Unsupported,
            _ => Reason::Failed,
        }
    }
}
