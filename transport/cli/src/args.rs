//! The command line, as it is typed. Nothing is decided here.

#[cfg(test)]
mod pages;
mod source;
pub(crate) mod units;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

#[cfg(test)]
pub(crate) use self::source::Property;
pub(crate) use self::source::{Drbd, DrbdMode, Linstor, ReadBack, Receive, With, Zfs};

/// Replicate block volumes from what their storage knows of change: encrypted, deduplicated,
/// and verified before it counts.
#[derive(Debug, Parser)]
#[command(name = "driftline", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Print one JSON object on standard output instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say less: only warnings and errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Say more; twice for every message of the protocol.
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Folder for what is remembered of sources and their targets: manifests, incidents, what was
    /// pushed where.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "DRIFTLINE_TRUST_DIR",
        default_value = "/var/lib/driftline"
    )]
    pub(crate) trust_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or there was nothing to do
  1  failed
  2  the command line or the configuration makes no sense
  3  refused, and nothing was changed (base-mismatch, source-mismatch, target-foreign,
     target-busy, unsupported, denied, just-created, not-consistent, source-emptied,
     not-encrypted, key-mismatch, target-gone)
  4  the source is damaged or changed while it was read
  5  the connection failed: run again to go on where it stopped
  6  the replica is not what was committed to it, or could not be verified
  7  the target is full or too small
  8  done, degraded: the replica is at the new generation, but all had to be read although a map
     was there, or something was found, or put right (see `driftline incidents`)
  9  status: no replica is there
 10  status: a first copy is on its way, or was cut off
 11  status: the replica's books are there, and its file or device is not
129, 130, 143  stopped by SIGHUP, SIGINT (Ctrl-C) or SIGTERM: run again to go on";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key pair, or show the public key of a secret key file.
    Keygen(Keygen),
    /// Listen for peers and let them push and pull the volumes of a configuration file.
    Serve(Serve),
    /// Bring TARGET to SOURCE's newest generation; this side dials.
    ///
    /// SOURCE is zfs:POOL/NAME (a volume or file system of ZFS on this machine), zstream:FILE (a
    /// recorded `zfs send` stream, - for standard input), file:PATH (a file or block device),
    /// drbd:RESOURCE/VOLUME (a volume of DRBD on this machine), linstor:RESOURCE/VOLUME (a volume
    /// that LINSTOR keeps on this node) or drbdmeta:PATH (a snapshot of a DRBD volume's backing
    /// device). TARGET is file:PATH, zvol:POOL/NAME, zfs:POOL/NAME or
    /// NAME@HOST:PORT.
    ///
    /// Of a zfs: source a snapshot is taken, unless --snapshot or --latest say which to take; the
    /// increment starts from the snapshot or bookmark whose guid the target holds. What has
    /// arrived is bookmarked. Only snapshots and bookmarks that this job has made are removed.
    ///
    /// Of a drbd: source the backing device (LVM or a zvol) is snapshotted. With --mode rotate
    /// its I/O is suspended for that, and the bitmap starts anew at that instant, so that the
    /// next increment reads only what changes from then on. Another process resumes it whatever
    /// happens to this one. A snapshot that does not arrive is kept, and goes first the next time.
    ///
    /// Of a linstor: source LINSTOR takes the snapshot, of all volumes of the resource, and deletes
    /// it afterwards. On ZFS it is sent as a zfs: source is, and the snapshot that arrived last
    /// stays; on thin LVM everything is compared. Of other storage LINSTOR takes none.
    ///
    /// DRBD metadata that is not at the end of PATH itself: drbdmeta:PATH,meta=METAPATH, and
    /// ,index=N after that where several volumes share METAPATH. It must be a snapshot of the
    /// same instant. An increment starts only from a snapshot that was pushed with --rotated: its
    /// bitmap was cleared right after it (suspend, snapshot, new-current-uuid --clear-bitmap,
    /// resume). Whatever else is pushed is named by its content. Where the metadata does not prove
    /// what changed, everything is compared instead, and the reason is told.
    ///
    /// With -r, all below zfs:POOL/NAME goes to what has the same path below TARGET, from
    /// snapshots that are taken at one instant.
    Push(Replicate),
    /// Bring TARGET to SOURCE's newest generation; this side dials.
    ///
    /// SOURCE is NAME@HOST:PORT, or as with push. TARGET is file:PATH, zvol:POOL/NAME or
    /// zfs:POOL/NAME.
    Pull(Replicate),
    /// Bring TO to what FROM holds, in place: only blocks that differ are written.
    ///
    /// FROM is a replica of Driftline, file:PATH or zvol:POOL/NAME, an image without books,
    /// file:PATH or drbdmeta:PATH, or NAME@HOST:PORT, a volume that a peer lets us pull. Each chunk
    /// of a replica is compared with its books before it is written; one that is not complete is
    /// refused.
    ///
    /// TO is file:PATH, a file or block device, or drbd:RESOURCE/VOLUME, which is written through
    /// its DRBD device, so that its peers get what is written as well. It must be Primary here,
    /// UpToDate and used by nothing else.
    ///
    /// What holds anything but zeros is overwritten only with --overwrite, and another replica
    /// never. A file gets the size of the volume; a device may be larger, and what is behind the
    /// volume stays as it is. At the end everything is synced and read back. Until then TO is of no
    /// time: if it is cut off, run it again with --overwrite, which writes what is missing.
    Restore(Restore),
    /// Print which bytes SOURCE says have changed.
    Map(Map),
    /// Re-read a replica and compare every byte with what was committed to it.
    Verify(Verify),
    /// Re-read a replica as verify does, remember what is found, and with --repair put it right.
    ///
    /// It gives way to replication: nothing is locked while it reads, and what is written meanwhile
    /// is looked at again at the end.
    ///
    /// What is found is an incident (`driftline incidents`) until somebody acknowledges it; when a
    /// scrub last found nothing is shown by `driftline status`. The exit code is 6 while damage is
    /// left, and 8 if all of it was put right at once.
    ///
    /// With --repair, damaged chunks that this replica has at another place as well, or another
    /// replica of --index, are put back by their hash. What is left is noted: the next push to this
    /// replica compares all, replaces exactly what was found, and ends with 8. What was written
    /// there since is not touched, and refused as target-modified. Without --repair nothing is
    /// changed at all.
    Scrub(Scrub),
    /// Agree, once, that the next increment of a replica may lose most of its data, or all of it.
    ///
    /// What would become zero or be cut off is counted before an increment is applied. Beyond a share
    /// of what the replica holds (--loss-max, 50 % if nothing is said), or if nothing would be left,
    /// the increment is refused as source-emptied. This is said where the replica is, by a person,
    /// and holds for the next increment alone.
    AllowLoss(AllowLoss),
    /// Show which generation a replica holds, and what is known to be wrong with it.
    ///
    /// It looks at the books and at the length, and reads nothing else: `driftline verify` does. The
    /// exit code is 0 for a replica that holds a generation, 6 for one that is known to be damaged,
    /// 9 where there is none, 10 while a first copy is not complete, and 11 where the books are
    /// there and the file or device is not.
    Status(Status),
    /// Show what was found and is not acknowledged yet.
    ///
    /// REASONS.md says of each reason what it means, what was done, and what to check.
    Incidents(IncidentsCommand),
    /// DRBD as what records changes.
    #[command(subcommand)]
    Drbd(DrbdCommand),
    /// Look after the index of chunks over all replicas.
    Index(Index),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DrbdCommand {
    /// Let DRBD record what changes on a device, for drbd:RESOURCE/0 as a source.
    ///
    /// Makes a resource of DRBD 8.4 without a peer: nothing is mirrored, but its bitmap and
    /// activity log collect what changes. The data stays where it is, and the metadata goes to a
    /// device of its own (32 KiB for each GiB of data, and 64 KiB). From then on, and until
    /// --undo, only /dev/drbdN may be written: what goes to DEVICE itself is not recorded.
    ///
    /// Prints every command, and runs them only with --yes. What is there already is not made
    /// again: after a reboot, it starts the resource.
    InitTracker(InitTracker),
    /// Holds a device suspended for whoever started it.
    #[command(hide = true)]
    Guard {
        /// The minor of the device.
        minor: u32,
        /// For how long at most, in milliseconds.
        limit_ms: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InitTracker {
    /// What the resource is called.
    pub(crate) resource: String,
    /// The device with the data: a logical volume or a zvol that nothing uses meanwhile.
    pub(crate) device: PathBuf,
    /// The device for the metadata, which must be empty.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) meta: PathBuf,
    /// Take the resource and its metadata away again; the data stays.
    #[arg(long)]
    pub(crate) undo: bool,
    /// Run the commands.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Index {
    #[command(subcommand)]
    pub(crate) command: IndexCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    /// Make it anew from the books of the replicas, while nothing uses it.
    ///
    /// That is never needed for a replica to be right: what the index says is read and hashed
    /// before it is used. One that is damaged is put aside by itself, and made anew by the next
    /// start of `driftline serve`.
    Rebuild(IndexRebuild),
}

#[derive(Debug, Args)]
pub(crate) struct IndexRebuild {
    /// The configuration of `driftline serve` that names the index and the replicas.
    #[arg(long, value_name = "FILE", default_value = "/etc/driftline/driftline.toml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct IncidentsCommand {
    /// Also those that are acknowledged.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(subcommand)]
    pub(crate) action: Option<IncidentsAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IncidentsAction {
    /// Acknowledge an incident: it is not shown any more, until the same is found again.
    Ack {
        /// The name that `driftline incidents` shows.
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Write the secret key to this file, which must not exist, and print the public key.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "public",
        required_unless_present = "public"
    )]
    pub(crate) out: Option<PathBuf>,
    /// Print the public key that belongs to the secret key in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) public: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/driftline/driftline.toml")]
    pub(crate) config: PathBuf,
    /// Check the configuration and the files it names, and exit.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Replicate {
    /// Where increments come from.
    #[arg(required_unless_present = "job")]
    pub(crate) source: Option<String>,
    /// Where they go.
    #[arg(required_unless_present = "job", requires = "source")]
    pub(crate) target: Option<String>,
    /// Take what is not said here from a job file: /etc/driftline/jobs/JOB.toml, or the file
    /// itself if JOB has a slash.
    #[arg(long, value_name = "JOB", conflicts_with = "source")]
    pub(crate) job: Option<String>,
    /// Agree to a full copy over whatever the target holds: another generation, local
    /// changes, or a file that is no replica. Only what differs moves. Also agrees to a new copy
    /// where the target is gone.
    #[arg(long)]
    pub(crate) full: bool,
    /// Of a first copy: what it is a clone of, or otherwise like, at the target. What is equal, or
    /// nearly, at the same place there does not move again. Where TARGET is NAME@HOST:PORT this is
    /// the name of another volume there that this key may push or pull, else file:PATH or
    /// zvol:POOL/NAME. If it is not said, the origin of a clone of ZFS is used, if that was pushed
    /// to the same place.
    #[arg(long, value_name = "VOLUME", conflicts_with = "recursive")]
    pub(crate) like: Option<String>,
    /// Of a local target: look for chunks that other replicas have in this file, and list there
    /// what arrives. It is made if it is missing. For NAME@HOST:PORT the configuration there says
    /// it.
    #[arg(long, value_name = "FILE")]
    pub(crate) index: Option<PathBuf>,
    /// Of a local target: refuse an increment that makes more than this share of the replica's data
    /// zero or cuts it off, or all of it; 100% refuses none. For NAME@HOST:PORT the configuration
    /// there says it [default: 50%].
    #[arg(long, value_name = "SHARE")]
    pub(crate) loss_max: Option<String>,
    /// Compression on the way: a zstd level, or off [default: 1].
    #[arg(long, value_name = "LEVEL", allow_hyphen_values = true)]
    pub(crate) compress: Option<String>,
    /// Move at most this many bytes each second, both directions together (at least 1K; K, M
    /// and G are powers of 1024).
    #[arg(long, value_name = "BYTES")]
    pub(crate) limit_rate: Option<String>,
    /// Fail if the source yields nothing for so long, as in 10m or 2h: what reads it hangs
    /// [default: 30m].
    #[arg(long, value_name = "TIME")]
    pub(crate) source_timeout: Option<String>,
    #[command(flatten)]
    pub(crate) tree: Tree,
    #[command(flatten)]
    pub(crate) zfs: Zfs,
    #[command(flatten)]
    pub(crate) drbd: Drbd,
    #[command(flatten)]
    pub(crate) linstor: Linstor,
    #[command(flatten)]
    pub(crate) receive: Receive,
    #[command(flatten)]
    pub(crate) audit: Audit,
    /// Write what the run did to this file, for node_exporter's textfile collector. It is put in
    /// its place at once.
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) peer: Peer,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

/// How much of what a source's map calls unchanged is read again, and when all is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args)]
pub(crate) struct Audit {
    /// Compare all of source and target now, whatever the source's map says, and move what
    /// differs. No consent to overwrite is in it: what is not as it was committed is refused.
    #[arg(long)]
    pub(crate) compare: bool,
    /// Of a source whose snapshots can be read at any offset: compare all in a run for which that
    /// was last done so many days (30d) or hours (12h) ago, or never [default: never because of
    /// time alone].
    #[arg(long, value_name = "AGE")]
    pub(crate) compare_every: Option<String>,
    /// Of a source whose snapshots can be read at any offset: within so many days (30d) or hours
    /// (12h), all that its maps call unchanged is read again and compared with the manifest, a
    /// part in each run [default: 30d].
    #[arg(long, value_name = "AGE")]
    pub(crate) audit_age: Option<String>,
    /// Besides, so many bytes drawn at random in each run, as in 64M or 0 [default: auto, enough
    /// to find a map that misses 1 % of the changes with a chance of 99 %, 1G at most].
    #[arg(long, value_name = "BYTES")]
    pub(crate) audit_sample: Option<String>,
}

/// Which data sets of a tree are replicated, and how many at once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args)]
pub(crate) struct Tree {
    /// Of a zfs: source, replicate it and all data sets below it, each to the same path below
    /// TARGET; into zvol: and file: only volumes go.
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// With -r, only data sets that match this, and what is below them: a path below the source,
    /// in which * is anything up to the next slash, ? one character, and ** any number of parts.
    /// May be said again.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// With -r, no data set that matches this, and nothing below it. May be said again.
    #[arg(id = "exclude_members", long = "exclude", value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// With -r, how many data sets are on their way at the same time, 1 to 64 [default: 4].
    #[arg(long, value_name = "COUNT")]
    pub(crate) at_once: Option<usize>,
}

/// How to reach and know a remote side.
#[derive(Clone, Debug, Args)]
pub(crate) struct Peer {
    /// Our secret key, for a remote side [default: /etc/driftline/secret.key].
    #[arg(long, value_name = "FILE", env = "DRIFTLINE_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// The remote side's public key, dlp1…: nobody else is talked to.
    #[arg(long, value_name = "KEY", env = "DRIFTLINE_PEER")]
    pub(crate) peer: Option<String>,
}

/// Where the books of a local target are kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateDir {
    /// Directory for the replica's journal and state. A file's default is PATH.driftline
    /// beside it, a zvol's /var/lib/driftline/zvol/POOL/NAME; a block device needs one.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// file:PATH, zvol:POOL/NAME, drbdmeta:PATH[,meta=METAPATH[,index=N]] or NAME@HOST:PORT.
    pub(crate) from: String,
    /// file:PATH or drbd:RESOURCE/VOLUME.
    pub(crate) to: String,
    /// Agree to overwriting what TO holds.
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) peer: Peer,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

#[derive(Debug, Args)]
pub(crate) struct Map {
    /// zstream:FILE, file:PATH, drbd:RESOURCE/VOLUME, linstor:RESOURCE/VOLUME or
    /// drbdmeta:PATH[,meta=METAPATH[,index=N]].
    pub(crate) source: String,
    #[command(flatten)]
    pub(crate) linstor: Linstor,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// file:PATH or zvol:POOL/NAME.
    pub(crate) target: String,
    /// Compare with this file or block device as well: file:PATH.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) against: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Scrub {
    /// file:PATH or zvol:POOL/NAME.
    pub(crate) target: String,
    /// Put right what can be, and let the replica's source replace the rest.
    #[arg(long)]
    pub(crate) repair: bool,
    /// With --repair, look for damaged chunks in the replicas that this index lists, also while
    /// `driftline serve` has it.
    #[arg(long, value_name = "FILE", requires = "repair")]
    pub(crate) index: Option<PathBuf>,
    /// Read at most this many bytes each second (at least 1K; K, M and G are powers of 1024).
    #[arg(long, value_name = "BYTES")]
    pub(crate) limit_rate: Option<String>,
    /// Write what was found to this file, for node_exporter's textfile collector: one of its own
    /// for each target.
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

#[derive(Debug, Args)]
pub(crate) struct AllowLoss {
    /// file:PATH or zvol:POOL/NAME.
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// file:PATH, zvol:POOL/NAME, zfs:POOL/NAME or NAME@HOST:PORT.
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) peer: Peer,
    #[command(flatten)]
    pub(crate) state: StateDir,
}
