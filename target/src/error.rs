//! What can go wrong with a replica, in words that say what to do.

use std::{io, path::PathBuf};

use driftline_extent::{Explained, Generation, OVERWRITE, Reason, Root, VolumeId};

use crate::Part;

/// Something went wrong with the replica of one volume.
#[derive(Debug, thiserror::Error)]
#[error("{volume}: {problem}")]
pub struct TargetError {
    /// The replica's path, as it was opened.
    pub volume: String,
    /// What happened. Not the `source` of this error: its text is a part of this one's.
    pub problem: Problem,
}

impl TargetError {
    /// Whether storage cannot be written, and may be read all the same.
    pub fn is_of_writing(&self) -> bool {
        self.problem.is_of_writing()
    }
}

impl Explained for TargetError {
    fn reason(&self) -> Reason {
        self.problem.reason()
    }
}

/// What happened, without saying to which replica.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The storage failed.
    #[error("the {part} cannot be read or written: {source}{}", io_hint(source))]
    Io {
        /// Which of the replica's files.
        part: Part,
        /// What the operating system said.
        source: io::Error,
    },
    /// The manager of the device failed.
    #[error("the volume cannot be {doing}: {source}; put that right, then open the replica again")]
    DeviceManager {
        /// What it was to do.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A file around the replica could not be opened, made or locked.
    #[error("{} cannot be opened: {source}", path.display())]
    Open {
        /// Which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nothing stands at the path.
    #[error("there is no such file: correct the path")]
    NotFound,
    /// The books are there, the volume is not.
    #[error(
        "the replica's file or device is gone, but its books in {} are not: put it back \
         (`zfs get volmode` says whether a zvol is hidden), or remove that folder and push a first \
         copy",
        state_dir.display()
    )]
    Gone {
        /// Where the books are.
        state_dir: PathBuf,
    },
    /// A link leads to where nothing is.
    #[error(
        "{} is a symbolic link to {}, which does not exist: mount the disk that the link leads \
         to, or remove the link. Driftline creates nothing through a link",
        link.display(), to.display()
    )]
    Dangling {
        /// The link.
        link: PathBuf,
        /// What it says.
        to: PathBuf,
    },
    /// A link stands where one of the program's own files belongs.
    #[error(
        "{} is a symbolic link, and Driftline does not follow links to its own files: remove it",
        path.display()
    )]
    Linked {
        /// Where.
        path: PathBuf,
    },
    /// One of the program's own files was put there by somebody else.
    #[error(
        "{} belongs to user {owner} or has a second name, so somebody else may have put it \
         there: remove it, or run as the owner of that folder",
        path.display()
    )]
    NotOurs {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A file or its books were removed or replaced while they were open.
    #[error(
        "somebody removed or replaced the {part} while the replica was open, so what arrived is \
         in a file without a name: put the file back if it was moved, then run again"
    )]
    Replaced {
        /// Which of the replica's files.
        part: Part,
    },
    /// The replica was opened where nothing can be written.
    #[error(
        "the replica is open read-only, because its storage cannot be written: make it \
         writable, or free space, then run again"
    )]
    ReadOnly,
    /// A file with several names stands where a volume is to be restored to.
    #[error(
        "this file has {names} names (hard links), and may be a replica under another one: choose \
         another place, or remove the other names"
    )]
    HardLinked {
        /// How many.
        names: u64,
    },
    /// A loop device is on the file that a volume is to be restored to.
    #[error(
        "{} uses this file: release the loop device first (losetup -d)",
        device.display()
    )]
    UnderLoop {
        /// The loop device.
        device: PathBuf,
    },
    /// The path is neither a regular file nor a block device.
    #[error("this is neither a regular file nor a block device")]
    NotAVolume,
    /// A block device has no place beside it for the books.
    #[error(
        "a block device needs a folder for the replica's books: name one with --state-dir (in a \
         configuration or job file, state_dir)"
    )]
    NoStateDir,
    /// A replica that is to be read holds no generation.
    #[error(
        "the replica is not complete, because a first copy or an overwrite has not ended: push \
         to it again, or read another replica"
    )]
    Incomplete,
    /// Another process has the replica open.
    #[error("{} is using this replica; wait for it to end", holder(*pid))]
    Busy {
        /// The process, if it wrote its id.
        pid: Option<u32>,
    },
    /// The kernel refuses a device that is in use.
    #[error("the device is mounted or otherwise in use: release it first")]
    InUse,
    /// The state file cannot be believed.
    #[error(
        "both records in the replica's state file are damaged, so Driftline does not know what \
         the volume holds: restore the folder of its books from a backup, or remove that folder \
         and run push --full"
    )]
    StateDamaged,
    /// The state or the journal has a version that this program does not know.
    #[error("a newer Driftline wrote the {part} (format version {version}): use that version")]
    Newer {
        /// Which file.
        part: Part,
        /// The version it says it has.
        version: u32,
    },
    /// A sealed journal lost records, so an increment that may be half applied cannot be
    /// completed.
    #[error(
        "the journal of an increment that was being applied is damaged at byte {at}, so the \
         volume may be between two generations: {OVERWRITE}"
    )]
    JournalDamaged {
        /// Where in the journal.
        at: u64,
    },
    /// The list of chunk ids does not lead to the committed root.
    #[error(
        "the list of chunk ids does not lead to the committed root: something changed or \
         damaged the list or the state file. To copy everything, {OVERWRITE}"
    )]
    ListDamaged,
    /// A chunk holds something other than what was committed.
    #[error(
        "the chunk at byte {offset} is not what was committed: something else wrote to this \
         volume, or it is damaged. Nothing was changed. To replace it, {OVERWRITE}"
    )]
    Modified {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// The volume's size is not what was committed.
    #[error(
        "the volume has {found} bytes, but {expected} were committed: something else resized \
         it. Restore its size, or remove the folder of its books and run push --full"
    )]
    SizeModified {
        /// What it has.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// The device was written after its generation was kept.
    #[error(
        "something else wrote to this volume after {generation} was committed and snapshotted. \
         Nothing was changed. Save what was written if you want it; then {OVERWRITE}"
    )]
    Written {
        /// The generation that was committed.
        generation: Generation,
    },
    /// The newest snapshot is not of the generation that was committed.
    #[error(
        "the newest snapshot of this volume is of {}, but {expected} was committed and \
         snapshotted: something else destroyed that snapshot or rolled the volume back. Nothing \
         was changed. To replace it, {OVERWRITE}",
        generation(found)
    )]
    NotKept {
        /// The generation that was committed.
        expected: Generation,
        /// The generation of the newest snapshot.
        found: Option<Generation>,
    },
    /// What stands here is no replica.
    #[error(
        "this is no complete replica, and it is not empty: choose another place, or {OVERWRITE}"
    )]
    Foreign,
    /// Something stands where a volume is to be restored to.
    #[error("it is not empty: restore to another place, or overwrite it with --overwrite")]
    HoldsData,
    /// A replica stands where a volume is to be restored to.
    #[error(
        "this is a replica, or one of its books, which are in {}: choose another place, or push to \
         the replica by these books",
        state_dir.display()
    )]
    IsReplica {
        /// Where its books are.
        state_dir: PathBuf,
    },
    /// A chunk of a replica that is restored from is not what was committed.
    #[error(
        "the chunk at byte {offset} is not what was committed: something else wrote to this \
         volume, or it is damaged. `driftline verify` names every such chunk"
    )]
    Damaged {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// What was restored reads back as something else.
    #[error(
        "the restored volume has root {found} instead of {expected}: the storage is not \
         reliable, or something else writes to it. Run the restore again"
    )]
    Restored {
        /// What the source has.
        expected: Root,
        /// What was read back.
        found: Root,
    },
    /// A copy over what stands here was agreed to by the source's side, but not by this one.
    #[error(
        "{because}. This target does not allow an overwrite: set `overwrite = true` in its \
         configuration for that one run"
    )]
    OverwriteForbidden {
        /// What the copy would be over.
        because: Box<Self>,
    },
    /// An increment from another generation than the replica's.
    #[error(
        "the increment starts at {}, but the replica holds {}: send an increment from that, or \
         {OVERWRITE}",
        generation(offered),
        generation(holds)
    )]
    NotTheBase {
        /// What the increment starts from.
        offered: Option<Generation>,
        /// What the replica holds.
        holds: Option<Generation>,
    },
    /// A whole copy onto a replica that holds a generation.
    #[error(
        "the source offers a full copy, but the replica holds {}, and no increment leads from \
         it to what the source has. To replace it, {OVERWRITE}",
        generation(holds)
    )]
    WouldOverwrite {
        /// What the replica holds.
        holds: Option<Generation>,
    },
    /// The replica is of another source.
    #[error(
        "this is a replica of volume {recorded}, and the source is volume {offered}: choose \
         another place, or {OVERWRITE}"
    )]
    OtherSource {
        /// Which volume it is a replica of.
        recorded: VolumeId,
        /// Which volume was offered.
        offered: VolumeId,
    },
    /// An opaque stream was offered.
    #[error(
        "only ZFS can receive a file system or a raw encrypted stream: push it to \
         zfs:POOL/DATASET"
    )]
    Opaque,
    /// The device cannot hold the volume.
    #[error("the volume needs {needed} bytes, and the device has {available}: use a larger device")]
    TooSmall {
        /// Bytes of the volume.
        needed: u64,
        /// Bytes of the device.
        available: u64,
    },
    /// Data is not what its id names.
    #[error("the data for the chunk at byte {offset} is not what the source announced: run again")]
    WrongData {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// The result would not be what the source has.
    #[error(
        "the increment leads to root {found}, but the source has {expected}. Nothing was \
         committed. Run again; if it happens again, run with `--full`"
    )]
    WrongRoot {
        /// What the source has.
        expected: Root,
        /// What the replica would have.
        found: Root,
    },
    /// What was written reads back as something else.
    #[error(
        "the chunk at byte {offset} does not read back as it was written: the storage is not \
         reliable. Check it, then run again"
    )]
    ReadBack {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// The journal is not what was written to it; the volume was not touched.
    #[error(
        "the journal does not read back as it was written, from byte {at} on: the storage is \
         not reliable. Nothing was committed. Check it, then run again"
    )]
    JournalReadBack {
        /// Where in the journal.
        at: u64,
    },
    /// The state is not what was written to it.
    #[error(
        "the state file does not read back as it was written: the storage is not reliable, and \
         the replica is at its last generation or at the new one. Check it, then run again"
    )]
    StateReadBack,
    /// The list of chunk ids is not what was written to it.
    #[error(
        "the list of chunk ids does not read back as it was written: the storage is not \
         reliable. Nothing was committed. Check it, then run again"
    )]
    ListReadBack,
    /// The list of damage is not what was written to it.
    #[error(
        "the list of damage does not read back as it was written: the storage is not reliable. \
         The next push may replace nothing of it. Check the storage, then scrub again"
    )]
    RepairReadBack,
    /// A whole copy ended without the root over it.
    #[error("a full copy or a scan must end with the root over the volume, and this one did not")]
    MissingRoot,
    /// A whole copy left something out.
    #[error("the full copy says nothing about the chunk at byte {offset}. Nothing was committed")]
    Uncovered {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// Data lies beyond the end of the volume.
    #[error("the source sent data beyond the end of the volume, which has {size} bytes")]
    BeyondEnd {
        /// The size of the volume.
        size: u64,
    },
    /// Most of the data, or all of it, would be gone.
    #[error(
        "{gone} of {before} bytes of data would become zero or be cut off, and {left} would be \
         left. The volume was not changed. If the source is right, agree once, where the replica \
         is: `driftline allow-loss TARGET`"
    )]
    Emptied {
        /// Bytes that would be gone.
        gone: u64,
        /// Bytes of data that are there.
        before: u64,
        /// Bytes of data that there would be.
        left: u64,
    },
    /// Nothing was ever begun here.
    #[error("this is no replica, or its books are elsewhere (--state-dir)")]
    NoReplica,
    /// Two items of an increment lead the same chunk to different content.
    #[error("two items change the chunk at byte {offset}. Nothing was committed")]
    Conflict {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// An increment or first copy of a volume without snapshots that went on where an earlier
    /// session was cut off, and came to something that cannot be.
    #[error(
        "the source changed after an earlier session was cut off, so what that session sent \
         does not fit ({because}). The target discarded it: run again"
    )]
    Outdated {
        /// What it came to.
        because: Box<Self>,
    },
    /// An item, plan or end that no correct source sends.
    #[error("the increment is malformed: {0}")]
    Malformed(&'static str),
    /// A call that needs a session came outside of one.
    #[error("there is no session: no increment was begun")]
    NoSession,
    /// An earlier call failed, so what is in memory may not be what is on disk.
    #[error("an earlier operation on this replica failed: open it again to recover")]
    Poisoned,
    /// The operating system has no random numbers.
    #[error("the operating system yields no random numbers: {0}")]
    Entropy(String),
}

impl Problem {
    /// Whether storage cannot be written, and may be read all the same.
    pub(crate) fn is_of_writing(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self {
            Self::Io { source, .. }
            | Self::Open { source, .. }
            | Self::DeviceManager { source, .. } => {
                is_full(source) || matches!(source.kind(), ReadOnlyFilesystem | PermissionDenied)
            }
            _ => false,
        }
    }

    /// The problem, with the replica that has it.
    pub fn of(self, volume: &str) -> TargetError {
        TargetError { volume: volume.to_owned(), problem: self }
    }

    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Io { source, .. }
            | Self::Open { source, .. }
            | Self::DeviceManager { source, .. }
                if is_full(source) =>
            {
                Reason::TargetFull
            }
            // Of the volume, nobody but us may change its length.
            Self::Io { part: Part::Volume, source }
                if source.kind() == io::ErrorKind::UnexpectedEof =>
            {
                Reason::TargetModified
            }
            Self::Io { .. }
            | Self::DeviceManager { .. }
            | Self::Open { .. }
            | Self::NotFound
            | Self::NotAVolume
            | Self::Dangling { .. }
            | Self::Linked { .. }
            | Self::NotOurs { .. }
            | Self::ReadOnly
            | Self::NoStateDir
            | Self::NoSession
            | Self::Poisoned
            | Self::Entropy(_) => Reason::Failed,
            Self::Gone { .. }
            | Self::StateDamaged
            | Self::JournalDamaged { .. }
            | Self::ListDamaged
            | Self::Replaced { .. }
            | Self::Modified { .. }
            | Self::Damaged { .. }
            | Self::SizeModified { .. }
            | Self::Written { .. }
            | Self::NotKept { .. } => Reason::TargetModified,
            Self::Incomplete => Reason::NotConsistent,
            Self::Emptied { .. } => Reason::SourceEmptied,
            Self::Busy { .. } | Self::InUse | Self::UnderLoop { .. } => Reason::TargetBusy,
            Self::NoReplica
            | Self::Foreign
            | Self::HoldsData
            | Self::IsReplica { .. }
            | Self::HardLinked { .. } => Reason::TargetForeign,
            Self::OverwriteForbidden { .. } => Reason::Denied,
            Self::NotTheBase { .. } | Self::WouldOverwrite { .. } => Reason::BaseMismatch,
            Self::OtherSource { .. } => Reason::SourceMismatch,
            Self::TooSmall { .. } => Reason::TargetFull,
            Self::WrongRoot { .. } => Reason::RootMismatch,
            Self::WrongData { .. }
            | Self::ReadBack { .. }
            | Self::Restored { .. }
            | Self::JournalReadBack { .. }
            | Self::StateReadBack
            | Self::ListReadBack
            | Self::RepairReadBack
            | Self::MissingRoot
            | Self::Uncovered { .. } => Reason::VerifyFailed,
            Self::Outdated { .. } => Reason::ResumeMismatch,
            Self::BeyondEnd { .. } | Self::Conflict { .. } | Self::Malformed(_) => {
                Reason::StreamDamaged
            }
            Self::Newer { .. } | Self::Opaque => Reason::Unsupported,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_full(error) => "; free some space, then run again",
        io::ErrorKind::UnexpectedEof => "; something else cut it short",
        _ => "",
    }
}

fn generation(generation: &Option<Generation>) -> String {
    generation.map_or_else(|| "no generation".to_owned(), |generation| generation.to_string())
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
