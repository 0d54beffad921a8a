//! What can go wrong with a real ZFS, in words.

use std::{fmt, io, path::PathBuf, time::Duration};

use driftline_extent::{Explained, Reason};
use rustix::io::Errno as Unix;

use crate::{DatasetName, PointName};

/// Why ZFS did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ZfsError {
    /// What is needed is not there.
    #[error(
        "ZFS is not available here: {command}{}. Install zfsutils-linux and load the module \
         zfs, or name the command in DRIFTLINE_ZFS",
        library.as_ref().map(|why| format!("; {why}")).unwrap_or_default()
    )]
    Unavailable {
        /// Why there is no command.
        command: String,
        /// Why there is no library, where it could have helped.
        library: Option<String>,
    },
    /// What the command printed makes no sense.
    #[error(transparent)]
    Listing(#[from] crate::ListingError),
    /// The command does not tell its version as it should.
    #[error(transparent)]
    Version(#[from] crate::VersionError),
    /// The command could not be started.
    #[error("{command}: {} cannot be started: {error}", program.display())]
    Start {
        /// How it would be typed.
        command: String,
        /// The file.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The command failed.
    #[error("{command} failed, {status}: {}", said(stderr))]
    Failed {
        /// How it would be typed.
        command: String,
        /// Its exit status, or the signal that killed it.
        status: String,
        /// All that it wrote to standard error, at most 64 KiB of it.
        stderr: String,
    },
    /// The command took longer than any should.
    #[error("{command} was given up, as it took longer than {within:?}: look at `zpool status`")]
    Late {
        /// How it would be typed.
        command: String,
        /// How long it was given.
        within: Duration,
    },
    /// The command waits for a pool that is suspended, or hangs.
    #[error("{command} was given up: {why}")]
    Stuck {
        /// How it would be typed.
        command: String,
        /// What is wrong with the pool, and what to do.
        why: String,
    },
    /// The command was started, but cannot be talked with.
    #[error("{command}: its pipes or its end cannot be read: {error}")]
    Pipe {
        /// How it would be typed.
        command: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The command wrote more than is read.
    #[error("{command} printed more than {limit} bytes: ask it for fewer data sets at once")]
    TooMuch {
        /// How it would be typed.
        command: String,
        /// The most bytes that are read.
        limit: u64,
    },
    /// libzfs_core refused.
    #[error("ZFS could not {task}: {}", listed(causes))]
    Refused {
        /// What it was to do, and with what.
        task: String,
        /// Why, for each name that ZFS tells apart.
        causes: Vec<Cause>,
    },
    /// libzfs_core could not be asked.
    #[error("libzfs_core could not be asked to {task}: {why}")]
    Library {
        /// What it was to do, and with what.
        task: String,
        /// Why.
        why: String,
    },
    /// What was asked for makes no sense, or is never done.
    #[error("{0}")]
    Misuse(String),
}

/// One reason of a refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// The snapshot or bookmark that it is about; `None` for all.
    pub name: Option<String>,
    /// What ZFS said.
    pub errno: Errno,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}: {}", self.errno),
            None => self.errno.fmt(f),
        }
    }
}

/// What the command said, in one line and without the list of all that it knows, which an old one
/// prints where it does not know an option.
fn said(stderr: &str) -> String {
    let lines = stderr.lines().take_while(|line| !line.starts_with("usage:")).map(str::trim);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") }
}

fn listed(causes: &[Cause]) -> String {
    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A number by which ZFS says why: an errno of the system, or from 1024 on one of its own
/// (`zfs_errno_t` in its `sys/fs/zfs.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Errno(pub i32);

/// The first of ZFS's own numbers; [`OWN`] goes on from there.
const OWN_FIRST: i32 = 1024;

/// ZFS's own errors: their names after `ZFS_ERR_`, and what they mean.
const OWN: [(&str, &str); 28] = [
    ("CHECKPOINT_EXISTS", "the pool has a checkpoint"),
    ("DISCARDING_CHECKPOINT", "the pool's checkpoint is being discarded"),
    ("NO_CHECKPOINT", "the pool has no checkpoint"),
    ("DEVRM_IN_PROGRESS", "a device is being removed from the pool"),
    ("VDEV_TOO_BIG", "the device is too big"),
    ("IOC_CMD_UNAVAIL", "the kernel module does not know this call: it is older than the library"),
    (
        "IOC_ARG_UNAVAIL",
        "the kernel module does not know an argument: it is older than the library",
    ),
    (
        "IOC_ARG_REQUIRED",
        "the kernel module wants another argument: it is not of the library's version",
    ),
    ("IOC_ARG_BADTYPE", "the kernel module wants another type: it is not of the library's version"),
    ("WRONG_PARENT", "the encryption key comes from another parent"),
    ("FROM_IVSET_GUID_MISSING", "the base has no IV set guid: it was received by an older ZFS"),
    ("FROM_IVSET_GUID_MISMATCH", "the IV set guids differ: the base is not the stream's"),
    ("SPILL_BLOCK_FLAG_MISSING", "the stream lacks spill block flags: an older ZFS made it"),
    ("UNKNOWN_SEND_STREAM_FEATURE", "the stream has a feature that this ZFS does not know"),
    ("EXPORT_IN_PROGRESS", "the pool is being exported"),
    ("BOOKMARK_SOURCE_NOT_ANCESTOR", "the bookmark's source is of another data set"),
    ("STREAM_TRUNCATED", "the stream ends too early"),
    ("STREAM_LARGE_BLOCK_MISMATCH", "streams with and without large blocks cannot be mixed"),
    ("RESILVER_IN_PROGRESS", "the pool is being resilvered"),
    ("REBUILD_IN_PROGRESS", "the pool is being rebuilt"),
    ("BADPROP", "a property is not valid"),
    ("VDEV_NOTSUP", "this kind of device cannot do that"),
    ("NOT_USER_NAMESPACE", "this is no user namespace"),
    ("RESUME_EXISTS", "the target holds a partly received stream: resume it, or discard it"),
    ("CRYPTO_NOTSUP", "this kind of encryption is not supported"),
    ("RAIDZ_EXPAND_IN_PROGRESS", "a RAID-Z device is being expanded"),
    ("ASHIFT_MISMATCH", "the devices' sector sizes differ"),
    ("STREAM_LARGE_MICROZAP", "the stream has large directories, which this pool does not take"),
];

/// What a number of the system mostly means where ZFS says it.
const SYSTEM: [(Unix, &str); 14] = [
    (Unix::NOENT, "it does not exist"),
    (Unix::EXIST, "it exists already"),
    (Unix::BUSY, "it is in use: held, mounted, cloned or being received"),
    (Unix::PERM, "not permitted: be root, or see zfs allow"),
    (Unix::ACCESS, "not permitted: be root, or see zfs allow"),
    (Unix::XDEV, "the names are of several pools, or the base is no ancestor"),
    (Unix::NODEV, "the base is not what the target holds"),
    (Unix::NOSPC, "the pool is full"),
    (Unix::DQUOT, "the quota is used up"),
    (Unix::IO, "the pool could not be read or written: see zpool status"),
    (Unix::NXIO, "the pool is suspended: see zpool status"),
    (Unix::PIPE, "the reader stopped reading"),
    (Unix::NOTSUP, "not supported by this pool, stream or ZFS"),
    (Unix::NAMETOOLONG, "the name is too long"),
];

/// Why no snapshot can be taken of a data set whose pool or quota is full: mostly it is a volume
/// with a reservation, of which ZFS wants as much again for a snapshot.
const NO_ROOM: &str = "the source's own pool has no room for it: a volume with a refreservation \
     needs as much again; make room there, or `zfs set refreservation=none` on it";

/// What the command says where a pool is full, or a quota used up.
const FULL_WORDS: [&str; 2] = ["out of space", "space quota exceeded"];

impl Errno {
    /// Whether it says that a pool is full, or a quota used up.
    fn is_full(self) -> bool {
        [Unix::NOSPC, Unix::DQUOT].iter().any(|full| full.raw_os_error() == self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.0.checked_sub(OWN_FIRST).and_then(|i| usize::try_from(i).ok());
        if let Some(own) = own {
            return match OWN.get(own) {
                Some((name, meaning)) => write!(f, "{meaning} (ZFS_ERR_{name})"),
                None => write!(f, "error {} of ZFS, which this program has no name for", self.0),
            };
        }
        match SYSTEM.iter().find(|(errno, _)| errno.raw_os_error() == self.0) {
            Some((_, meaning)) => write!(f, "{meaning} (errno {})", self.0),
            None => io::Error::from_raw_os_error(self.0).fmt(f),
        }
    }
}

impl ZfsError {
    /// Whether the command did not know the verb, options or properties that it was asked with.
    pub(super) fn is_old(&self) -> bool {
        self.says(&["unrecognized command", "invalid option", "bad property list", "invalid type"])
    }

    /// Whether the command takes only one name where it was given several.
    pub(super) fn is_one_at_most(&self) -> bool {
        self.says(&["too many arguments"])
    }

    /// Whether a stream was refused because its target was written since its newest snapshot.
    pub fn is_modified_target(&self) -> bool {
        self.says(&["has been modified"])
    }

    /// The data set that was written, where the stream was refused for that.
    pub fn modified_target(&self) -> Option<DatasetName> {
        let Self::Failed { stderr, .. } = self else { return None };
        let (before, _) = stderr.split_once(" has been modified")?;
        before.rsplit_once("destination ")?.1.parse().ok()
    }

    /// Those of these snapshots that could not be taken, each with why, as far as ZFS says it of
    /// each by itself.
    pub(crate) fn blamed(&self, snapshots: &[PointName]) -> Vec<(PointName, String)> {
        let of = |name: &str| snapshots.iter().find(|point| point.to_string() == name);
        match self {
            Self::Refused { causes, .. } => causes
                .iter()
                .filter_map(|cause| Some((of(cause.name.as_deref()?)?, cause.errno)))
                .map(|(point, errno)| {
                    let why = if errno.is_full() { NO_ROOM.to_owned() } else { errno.to_string() };
                    (point.clone(), why)
                })
                .collect(),
            Self::Failed { stderr, .. } => snapshots
                .iter()
                .filter_map(|point| {
                    let quoted = format!("'{point}'");
                    let line = stderr.lines().find(|line| line.contains(&quoted))?;
                    let is_full = FULL_WORDS.iter().any(|full| line.contains(full));
                    Some((point.clone(), if is_full { NO_ROOM } else { line }.to_owned()))
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Whether a stream was refused because encrypted data sets take no embedded blocks.
    pub fn is_embedded(&self) -> bool {
        self.says(&["embedded data stream feature"])
    }

    fn says(&self, any: &[&str]) -> bool {
        matches!(self, Self::Failed { stderr, .. } if any.iter().any(|said| stderr.contains(said)))
    }
}

impl Explained for ZfsError {
    /// By what ZFS says: its command has one exit status for all.
    fn reason(&self) -> Reason {
        match self {
            Self::Failed { stderr, .. } if FULL_WORDS.iter().any(|full| stderr.contains(full)) => {
                Reason::TargetFull
            }
            Self::Refused { causes, .. } if causes.iter().any(|cause| cause.errno.is_full()) => {
                Reason::TargetFull
            }
            _ => Reason::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_words() {
        for (number, says) in [
            (1024, "the pool has a checkpoint (ZFS_ERR_CHECKPOINT_EXISTS)"),
            (
                1034,
                "the base has no IV set guid: it was received by an older ZFS \
                    (ZFS_ERR_FROM_IVSET_GUID_MISSING)",
            ),
            (
                1047,
                "the target holds a partly received stream: resume it, or discard it \
                    (ZFS_ERR_RESUME_EXISTS)",
            ),
            (
                1051,
                "the stream has large directories, which this pool does not take \
                    (ZFS_ERR_STREAM_LARGE_MICROZAP)",
            ),
            (1052, "error 1052 of ZFS, which this program has no name for"),
            (i32::MAX, "error 2147483647 of ZFS, which this program has no name for"),
            (2, "it does not exist (errno 2)"),
            (16, "it is in use: held, mounted, cloned or being received (errno 16)"),
            (95, "not supported by this pool, stream or ZFS (errno 95)"),
            (22, "Invalid argument (os error 22)"),
        ] {
            assert_eq!(Errno(number).to_string(), says);
        }
        // Numbers that no system has are no reason to stop.
        for number in [0, -1, 1023, i32::MIN] {
            assert!(!Errno(number).to_string().is_empty());
        }
    }

    #[test]
    fn a_refusal_lists_each_name() {
        let cause = |name: Option<&str>, errno| Cause { name: name.map(str::to_owned), errno };
        let error = ZfsError::Refused {
            task: "take snapshots".to_owned(),
            causes: vec![cause(Some("tank/a@b"), Errno(17)), cause(None, Errno(28))],
        };
        assert_eq!(
            error.to_string(),
            "ZFS could not take snapshots: tank/a@b: it exists already (errno 17); \
             the pool is full (errno 28)"
        );
    }

    #[test]
    fn what_is_said_in_several_lines_is_told_in_one() {
        let failed = |stderr: &str| ZfsError::Failed {
            command: "zfs snapshot t/a@x t/b@x".to_owned(),
            status: "exit status: 2".to_owned(),
            stderr: stderr.to_owned(),
        };
        for (stderr, expected) in [
            ("", "it said nothing"),
            ("a\n\n b\n", "a; b"),
            (
                "too many arguments\nusage:\n\tsnapshot [-r] ...\n\nFor the property list",
                "too many arguments",
            ),
        ] {
            let expected = format!("zfs snapshot t/a@x t/b@x failed, exit status: 2: {expected}");
            assert_eq!(failed(stderr).to_string(), expected);
        }
    }

    #[test]
    fn the_data_set_that_was_written_is_named() {
        let failed = |stderr: &str| ZfsError::Failed {
            command: "zfs receive -u tb/c".to_owned(),
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let error = failed(
            "cannot receive incremental stream: destination tb/c/b 1 has been modified\nsince most \
             recent snapshot",
        );
        assert_eq!(error.modified_target(), Some("tb/c/b 1".parse().unwrap()));
        assert!(error.is_modified_target());
        assert_eq!(failed("it has been modified").modified_target(), None);
    }

    /// What OpenZFS 2.3.9 said.
    #[test]
    fn no_space_is_told_apart() {
        let failed = |stderr: &str| ZfsError::Failed {
            command: "zfs receive -u -s back/a".to_owned(),
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        for (stderr, reason) in [
            ("cannot receive new filesystem stream: out of space", Reason::TargetFull),
            (
                "cannot receive incremental stream: destination back/a space quota exceeded.",
                Reason::TargetFull,
            ),
            ("cannot receive new filesystem stream: permission denied", Reason::Failed),
        ] {
            assert_eq!(failed(stderr).reason(), reason, "{stderr}");
        }
        for (errno, reason) in [
            (Unix::NOSPC, Reason::TargetFull),
            (Unix::DQUOT, Reason::TargetFull),
            (Unix::PERM, Reason::Failed),
        ] {
            let causes = vec![Cause { name: None, errno: Errno(errno.raw_os_error()) }];
            let refused = ZfsError::Refused { task: "take snapshots".to_owned(), causes };
            assert_eq!(refused.reason(), reason);
        }
    }

    #[test]
    fn who_is_to_blame_for_a_snapshot_that_was_not_taken_is_found() {
        let points = ["t/a@x", "t/b 1@x", "t/c@x"].map(|name| name.parse::<PointName>().unwrap());
        let cause = |name: &str, errno| Cause { name: Some(name.to_owned()), errno: Errno(errno) };
        let causes = vec![cause("t/b 1@x", 2), cause("t/c@x", 28), cause("t/z@x", 2)];
        let refused = ZfsError::Refused { task: "snapshot".to_owned(), causes };
        let gone = (points[1].clone(), "it does not exist (errno 2)".to_owned());
        let full = (points[2].clone(), NO_ROOM.to_owned());
        assert_eq!(refused.blamed(&points), [gone, full.clone()]);
        let failed = |stderr: &str| ZfsError::Failed {
            command: "zfs snapshot".to_owned(),
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let gone = "cannot create snapshot 't/b 1@x': dataset does not exist";
        let text = format!(
            "{gone}\ncannot create snapshot 't/c@x': out of space\nno snapshots were created"
        );
        assert_eq!(failed(&text).blamed(&points), [(points[1].clone(), gone.to_owned()), full]);
        assert_eq!(failed("Unable to open /dev/zfs").blamed(&points), []);
    }

    #[test]
    fn what_is_missing_comes_with_what_to_do() {
        let command = "no command zfs".to_owned();
        let library = Some("libzfs_core.so.3 cannot be used".to_owned());
        let error = ZfsError::Unavailable { command, library }.to_string();
        assert!(error.starts_with(
            "ZFS is not available here: no command zfs; libzfs_core.so.3 cannot be used. Install"
        ));
    }
}
