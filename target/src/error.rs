//! What can go wrong with a replica, in words that say what to do.

use std::{io, path::PathBuf};

use driftline_extent::{Explained, Generation, Reason, Root, VolumeId};

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
    /// The keeper of the device failed.
    #[error("the volume cannot be {doing}: {source}; put that right, then open the replica again")]
    Keeper {
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
    #[error("there is no such file; allow it to be created, or correct the path")]
    NotFound,
    /// The books are there, the volume is not.
    #[error(
        "the replica's file is gone, but its state in {} is not; put the file back, or remove \
         that directory and copy anew", state_dir.display()
    )]
    Gone {
        /// Where the books are.
        state_dir: PathBuf,
    },
    /// A link leads to where nothing is.
    #[error(
        "{} is a symbolic link to {}, which is not there: mount the disk that it is on, or remove \
         the link; nothing is made through a link", link.display(), to.display()
    )]
    Dangling {
        /// The link.
        link: PathBuf,
        /// What it says.
        to: PathBuf,
    },
    /// A link stands where one of the program's own files belongs.
    #[error(
        "{} is a symbolic link, which Driftline does not follow to its own files: remove it",
        path.display()
    )]
    Linked {
        /// Where.
        path: PathBuf,
    },
    /// One of the program's own files was put there by somebody else.
    #[error(
        "{} belongs to user {owner} or has a second name, so that somebody else may have put it \
         there: remove it, or run as the owner of that folder", path.display()
    )]
    NotOurs {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A file or its books were removed or replaced while they were open.
    #[error(
        "the {part} was removed or replaced while the replica was open: what was received is in a \
         file that has no name any more; put it back if it was moved, then run again"
    )]
    Replaced {
        /// Which of the replica's files.
        part: Part,
    },
    /// The replica was opened where nothing can be written.
    #[error(
        "the replica is open for reading only, as its storage cannot be written; make it writable, \
         or free some space, then open the replica again"
    )]
    ReadOnly,
    /// A file with several names stands where a volume is to be restored to.
    #[error(
        "this file has {names} names (hard links), and under another one it may be a replica: \
         restore to another place, or remove the other names"
    )]
    HardLinked {
        /// How many.
        names: u64,
    },
    /// A loop device is on the file that a volume is to be restored to.
    #[error("{} is on this file: release it first (losetup -d)", device.display())]
    UnderLoop {
        /// The loop device.
        device: PathBuf,
    },
    /// The path is neither a regular file nor a block device.
    #[error("this is neither a regular file nor a block device; a replica can be nothing else")]
    NotAVolume,
    /// A block device has no place beside it for the books.
    #[error("a block device needs a state directory of its own; name one")]
    NoStateDir,
    /// A replica that is to be read holds no generation.
    #[error(
        "it is not complete: a first copy, or one over something else, has not ended; push to it \
         again, or read another replica"
    )]
    Incomplete,
    /// Another process has the replica open.
    #[error("{} is using this replica; wait for it to end", holder(*pid))]
    Busy {
        /// The process, if it wrote its id.
        pid: Option<u32>,
    },
    /// The kernel refuses a device that is in use.
    #[error("the device is mounted or otherwise in use; release it first")]
    InUse,
    /// The state file cannot be believed.
    #[error(
        "both records in the replica's state file are damaged, so nothing says what stands here; \
         restore the state directory from a backup, or remove it and copy anew over the volume"
    )]
    StateDamaged,
    /// The state or the journal has a version that this program does not know.
    #[error("the {part} has format version {version}, which a newer Driftline wrote; use that one")]
    Newer {
        /// Which file.
        part: Part,
        /// The version it says it has.
        version: u32,
    },
    /// A sealed journal lost records, so an increment that may be half applied cannot be
    /// completed.
    #[error(
        "the journal of an increment that was being applied is damaged at byte {at}, so the volume \
         may be between two generations; copy anew with overwriting allowed (--full)"
    )]
    JournalDamaged {
        /// Where in the journal.
        at: u64,
    },
    /// The list of chunk ids does not lead to the committed root.
    #[error(
        "the list of chunk ids does not lead to the root that was committed: it or the state \
         file was changed or damaged; copy anew with overwriting allowed (--full)"
    )]
    ListDamaged,
    /// A chunk holds something other than what was committed.
    #[error(
        "the chunk at byte {offset} is not what was committed: something else wrote to this volume, \
         or it is damaged; nothing was changed; copy anew with overwriting allowed"
    )]
    Modified {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// The volume's size is not what was committed.
    #[error(
        "the volume has {found} bytes, but {expected} were committed: something else changed it; \
         restore its size, or remove the state directory and copy anew over the volume"
    )]
    SizeModified {
        /// What it has.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// The device was written after its generation was kept.
    #[error(
        "something else wrote to this volume after {generation} was committed and kept as a \
         snapshot; nothing was changed; save what was written if it is wanted, then copy anew \
         with overwriting allowed"
    )]
    Written {
        /// The generation that was committed.
        generation: Generation,
    },
    /// The newest snapshot is not of the generation that was committed.
    #[error(
        "the newest snapshot kept of this volume is of {}, but {expected} was committed and kept: \
         something else destroyed that snapshot or rolled the volume back; nothing was changed; \
         copy anew with overwriting allowed",
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
        "what stands here is no complete replica of Driftline's, and it is not empty; choose another \
         place, or allow overwriting it"
    )]
    Foreign,
    /// Something stands where a volume is to be restored to.
    #[error("it is not empty: restore to another place, or agree to overwriting it (--overwrite)")]
    HoldsData,
    /// A replica stands where a volume is to be restored to.
    #[error(
        "this is a replica with its books in {}, which would not be what they say any more: restore \
         to another place, or push to it", state_dir.display()
    )]
    IsReplica {
        /// Where its books are.
        state_dir: PathBuf,
    },
    /// A chunk of a replica that is restored from is not what was committed.
    #[error(
        "the chunk at byte {offset} is not what was committed: something else wrote to this volume, \
         or it is damaged; `driftline verify` tells what else is"
    )]
    Damaged {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// What was restored reads back as something else.
    #[error(
        "what stands there now has root {found}, and not {expected} as the volume: the storage is \
         not reliable, or something else writes to it; run it again"
    )]
    Restored {
        /// What the source has.
        expected: Root,
        /// What was read back.
        found: Root,
    },
    /// A copy over what stands here was agreed to by the source's side, but not by this one.
    #[error("{because}; and this target does not allow copies over what it holds")]
    OverwriteForbidden {
        /// What the copy would be over.
        because: Box<Self>,
    },
    /// An increment from another generation than the replica's.
    #[error(
        "the increment starts at {}, but the replica holds {}; offer what follows that, or a whole \
         copy with overwriting allowed",
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
        "a whole copy is offered, but the replica holds {}, from which no increment leads to what \
         the source has; allow overwriting to copy anew",
        generation(holds)
    )]
    WouldOverwrite {
        /// What the replica holds.
        holds: Option<Generation>,
    },
    /// The replica is of another source.
    #[error(
        "this is the replica of volume {recorded}, not of {offered}; choose another place, or allow \
         overwriting it"
    )]
    OtherSource {
        /// Which volume it is a replica of.
        recorded: VolumeId,
        /// Which volume was offered.
        offered: VolumeId,
    },
    /// An opaque stream was offered.
    #[error(
        "a file system or a raw encrypted stream can only be received by ZFS: push it to \
         zfs:POOL/DATASET"
    )]
    Opaque,
    /// The device cannot hold the volume.
    #[error("the volume needs {needed} bytes, the device has {available}; use a larger one")]
    TooSmall {
        /// Bytes of the volume.
        needed: u64,
        /// Bytes of the device.
        available: u64,
    },
    /// Data is not what its id names.
    #[error("the data for the chunk at byte {offset} is not what was announced; send it again")]
    WrongData {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// The result would not be what the source has.
    #[error(
        "the increment leads to root {found}, but the source has {expected}; nothing was committed; \
         run again, and if it happens again copy anew with overwriting allowed"
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
         reliable; check it, then open the replica again"
    )]
    ReadBack {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// The journal is not what was written to it; the volume was not touched.
    #[error(
        "the journal does not read back as it was written, from byte {at} on: the storage is not \
         reliable; nothing was committed; check it, then open the replica again"
    )]
    JournalReadBack {
        /// Where in the journal.
        at: u64,
    },
    /// The state is not what was written to it.
    #[error(
        "the state file does not read back as it was written: the storage is not reliable, and the \
         replica is where it was or one generation further; check it, then open the replica again"
    )]
    StateReadBack,
    /// The list of chunk ids is not what was written to it.
    #[error(
        "the list of chunk ids does not read back as it was written: the storage is not reliable; \
         nothing was committed; check it, then open the replica again"
    )]
    ListReadBack,
    /// The list of damage is not what was written to it.
    #[error(
        "the list of damage does not read back as it was written: the storage is not reliable; \
         nothing of it may be replaced; check it, then scrub again"
    )]
    RepairReadBack,
    /// A whole copy ended without the root over it.
    #[error("a whole copy or scan must end with the root over the volume, and this one did not")]
    MissingRoot,
    /// A whole copy left something out.
    #[error("the whole copy says nothing about the chunk at byte {offset}; nothing was committed")]
    Uncovered {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// Data lies beyond the end of the volume.
    #[error("data was sent beyond the end of the volume, which has {size} bytes")]
    BeyondEnd {
        /// The size of the volume.
        size: u64,
    },
    /// Most of the data, or all of it, would be gone.
    #[error(
        "{gone} of {before} bytes of data would become zero or be cut off, and {left} be left; nothing \
         was changed. If the source was not emptied by mistake, agree to it once where the replica \
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
    #[error("two items change the chunk at byte {offset}; nothing was committed")]
    Conflict {
        /// The first byte of the chunk.
        offset: u64,
    },
    /// An increment or first copy of a volume without snapshots that went on where an earlier
    /// session was cut off, and came to something that cannot be.
    #[error(
        "the source has changed since an earlier session was cut off, whose part does not go with \
         what came now ({because}); that part is forgotten: run again"
    )]
    Outdated {
        /// What it came to.
        because: Box<Self>,
    },
    /// An item, plan or end that no correct source sends.
    #[error("the increment is malformed: {0}")]
    Malformed(&'static str),
    /// A generation of a kind that this version cannot record.
    #[error("a generation of this kind ({0}) cannot be recorded; use a newer Driftline here")]
    UnknownGeneration(Generation),
    /// A call that needs a session came outside of one.
    #[error("no increment was begun")]
    NoSession,
    /// There is nothing to verify against.
    #[error("the replica holds no complete generation yet; complete the first copy")]
    NoGeneration,
    /// An earlier call failed, so what is in memory may not be what is on disk.
    #[error("an earlier operation on this replica failed; open it again to recover")]
    Poisoned,
    /// The operating system has no random numbers.
    #[error("no random numbers can be had from the operating system: {0}")]
    Entropy(String),
}

impl Problem {
    /// Whether storage cannot be written, and may be read all the same.
    pub(crate) fn is_of_writing(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self {
            Self::Io { source, .. } | Self::Open { source, .. } | Self::Keeper { source, .. } => {
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
            Self::Io { source, .. } | Self::Open { source, .. } | Self::Keeper { source, .. }
                if is_full(source) =>
            {
                Reason::TargetFull
            }
            Self::Io { .. }
            | Self::Keeper { .. }
            | Self::Open { .. }
            | Self::NotFound
            | Self::NotAVolume
            | Self::Dangling { .. }
            | Self::Linked { .. }
            | Self::NotOurs { .. }
            | Self::ReadOnly
            | Self::NoStateDir
            | Self::NoSession
            | Self::NoGeneration
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
            Self::UnknownGeneration(_) | Self::Newer { .. } | Self::Opaque => Reason::Unsupported,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn io_hint(error: &io::Error) -> &'static str {
    if is_full(error) { "; free some space, then open the replica again" } else { "" }
}

fn generation(generation: &Option<Generation>) -> String {
    generation.map_or_else(|| "no generation".to_owned(), |generation| generation.to_string())
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
