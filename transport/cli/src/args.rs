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
        default_value = TRUST_DIR
    )]
    pub(crate) trust_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where Driftline remembers, if nothing else is said.
pub(crate) const TRUST_DIR: &str = "/var/lib/driftline";

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or there was nothing to do
  1  failed
  2  the command line or the configuration makes no sense
  3  refused, and nothing was changed (base-mismatch, source-mismatch, target-foreign,
     target-busy, unsupported, denied, just-created, not-consistent, source-emptied,
     not-encrypted, key-mismatch, target-gone)
  4  the source is damaged or unreadable, or changed while it was read
  5  the connection failed: run again to resume
  6  the replica is not what was committed to it, or could not be verified
  7  the target is full or too small
  8  done, degraded: the replica is at the new generation, but Driftline read everything although
     there was a map, or found or repaired something (see `driftline incidents`)
  9  status: there is no replica
 10  status: a first copy is in progress, or was cut off
 11  status: the replica's books exist, and its file or device does not
129, 130, 143  stopped by SIGHUP, SIGINT (Ctrl-C) or SIGTERM: run again to resume";

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
    /// device). TARGET is file:PATH, zvol:POOL/NAME, zfs:POOL/NAME or NAME@HOST:PORT.
    ///
    /// zfs: Driftline takes a snapshot, unless --snapshot or --latest name one. The increment
    /// starts at the snapshot or bookmark whose guid the target holds. Driftline bookmarks what
    /// has arrived, and removes only snapshots and bookmarks that this job made.
    ///
    /// drbd: Driftline snapshots the backing device (LVM or a zvol). With --mode rotate it
    /// suspends I/O for that and starts the bitmap anew at that instant, so that the next
    /// increment reads only what changes from then on. Another process resumes I/O, whatever
    /// happens to this one. A snapshot that does not arrive stays, and goes first the next time.
    ///
    /// linstor: LINSTOR takes the snapshot, of all volumes of the resource, and deletes it
    /// afterwards. On ZFS Driftline sends it as it sends a zfs: source, and the snapshot that
    /// arrived last stays. On thin LVM Driftline compares everything. LINSTOR takes no snapshots
    /// of other storage.
    ///
    /// drbdmeta: if the DRBD metadata is not at the end of PATH, write
    /// drbdmeta:PATH,meta=METAPATH, and append ,index=N if several volumes share METAPATH. It must
    /// be a snapshot of the same instant. An increment starts only from a snapshot that was pushed
    /// with --rotated: its bitmap was cleared right after it (suspend, snapshot, new-current-uuid
    /// --clear-bitmap, resume). Driftline names any other snapshot by its content. If the metadata
    /// does not prove what changed, Driftline compares everything and says why.
    ///
    /// With -r, everything below zfs:POOL/NAME goes to the same path below TARGET, from snapshots
    /// of one instant.
    Push(Replicate),
    /// Bring TARGET to SOURCE's newest generation; this side dials.
    ///
    /// SOURCE is NAME@HOST:PORT, or as with push. TARGET is file:PATH, zvol:POOL/NAME or
    /// zfs:POOL/NAME.
    Pull(Replicate),
    /// Bring TO to what FROM holds, in place: Driftline writes only blocks that differ.
    ///
    /// FROM is a replica, file:PATH or zvol:POOL/NAME, an image without books, file:PATH or
    /// drbdmeta:PATH, or NAME@HOST:PORT, a volume that a peer lets us pull. Driftline compares
    /// each chunk of a replica with its books before it writes the chunk. It refuses an incomplete
    /// replica.
    ///
    /// TO is file:PATH, a file or block device, or drbd:RESOURCE/VOLUME. Driftline writes a volume
    /// of DRBD through its device, so that its peers get the data too. The device must be Primary
    /// here, UpToDate and used by nothing else.
    ///
    /// If TO holds anything but zeros, --overwrite is needed. Driftline never overwrites another
    /// replica. A file gets the size of the volume; a device may be larger, and what is behind the
    /// volume stays. At the end Driftline syncs and reads everything back. An interrupted restore
    /// leaves neither the old content nor the new: run it again with --overwrite, which writes
    /// what is missing.
    Restore(Restore),
    /// Print which bytes SOURCE says have changed.
    Map(Map),
    /// Re-read a replica and compare every byte with what was committed to it.
    Verify(Verify),
    /// Read a replica again as verify does, remember what is found, and with --repair repair it.
    ///
    /// A scrub gives way to replication: it locks nothing while it reads, and at the end it looks
    /// again at what changed meanwhile.
    ///
    /// Damage is an incident (`driftline incidents`) until somebody acknowledges it. `driftline
    /// status` shows when a scrub last found none. The exit code is 6 while damage is left, and 8
    /// if the scrub repaired all of it.
    ///
    /// With --repair, the scrub restores damaged chunks, by their hash, from another place in this
    /// replica or from another replica of --index. It notes the rest: the next push to this
    /// replica compares everything, replaces exactly what was found, and ends with 8. That push
    /// does not touch what was written there since, and refuses it as target-modified. Without
    /// --repair the scrub changes nothing.
    Scrub(Scrub),
    /// Agree, once, that the next increment of a replica may lose most of its data, or all of it.
    ///
    /// Before the target applies an increment, it counts what would become zero or be cut off.
    /// Beyond a share of what the replica holds (--loss-max, by default 50 %), or if nothing would
    /// be left, it refuses the increment as source-emptied. A person runs this command where the
    /// replica is. It holds for the next increment only.
    AllowLoss(AllowLoss),
    /// Show which generation a replica holds, and what is known to be wrong with it.
    ///
    /// It reads the books and looks at the length of the volume; `driftline verify` reads
    /// everything. The exit code is 0 for a replica that holds a generation, 6 for one that is
    /// known to be damaged, 9 if there is no replica, 10 while a first copy is not complete, and
    /// 11 if the books exist and the file or device does not.
    Status(Status),
    /// Show incidents that nobody has acknowledged yet.
    ///
    /// REASONS.md explains each reason: what it means, what was done, and what to check.
    Incidents(IncidentsCommand),
    /// Use DRBD to record changes.
    #[command(subcommand)]
    Drbd(DrbdCommand),
    /// Maintain the index of chunks over all replicas.
    Index(Index),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DrbdCommand {
    /// Let DRBD record what changes on a device, for drbd:RESOURCE/0 as a source.
    ///
    /// Makes a resource of DRBD 8.4 without a peer: it mirrors nothing, but its bitmap and
    /// activity log record changes. The data stays where it is, and the metadata goes to a device
    /// of its own (32 KiB for each GiB of data, and 64 KiB). From then on, and until --undo, write
    /// only to /dev/drbdN: DRBD does not record what is written to DEVICE itself.
    ///
    /// Prints every command, and runs them only with --yes. It does not make again what exists:
    /// after a reboot it starts the resource.
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
    /// Make the index again from the books of the replicas, while nothing uses it.
    ///
    /// No replica needs the index to be right: Driftline reads and hashes what the index says
    /// before it uses it. The next start of `driftline serve` puts a damaged index aside and makes
    /// it again.
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
    /// Also show incidents that are acknowledged.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(subcommand)]
    pub(crate) action: Option<IncidentsAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IncidentsAction {
    /// Acknowledge an incident. It is shown again only if the same thing is found again.
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
    /// Agree to a full copy over whatever the target holds: another generation, local changes, or
    /// a file that is no replica. Only what differs is sent. Also agree to a new copy if the
    /// target is gone.
    #[arg(long)]
    pub(crate) full: bool,
    /// The seed of a first copy: a volume at the target that SOURCE is a clone of, or resembles.
    /// What is equal there is not sent. If TARGET is NAME@HOST:PORT, this is the name of another
    /// volume there that this key may push or pull; otherwise file:PATH or zvol:POOL/NAME. By
    /// default Driftline uses the origin of a ZFS clone, if that was pushed to the same place.
    #[arg(long, value_name = "VOLUME", conflicts_with = "recursive")]
    pub(crate) like: Option<String>,
    /// Use this index for a local target: look up chunks that other replicas have, and add what
    /// arrives. Driftline creates a missing index. For NAME@HOST:PORT the configuration there
    /// names it.
    #[arg(long, value_name = "FILE")]
    pub(crate) index: Option<PathBuf>,
    /// Refuse an increment to a local target that makes more than this share of the replica's data
    /// zero or cuts it off, or leaves nothing; 100% refuses none. For NAME@HOST:PORT the
    /// configuration there sets it [default: 50%].
    #[arg(long, value_name = "SHARE")]
    pub(crate) loss_max: Option<String>,
    /// Compression in transit: a zstd level, or off [default: 1].
    #[arg(long, value_name = "LEVEL", allow_hyphen_values = true)]
    pub(crate) compress: Option<String>,
    /// Transfer at most this many bytes per second, both directions together (at least 1K; K, M
    /// and G are powers of 1024).
    #[arg(long, value_name = "BYTES")]
    pub(crate) limit_rate: Option<String>,
    /// Fail if the source yields nothing for this long, as in 10m or 2h: what reads it hangs
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
    /// Compare all of source and target now, whatever the source's map says, and send what
    /// differs. This is no agreement to overwrite: a replica that is not as it was committed is
    /// refused.
    #[arg(long)]
    pub(crate) compare: bool,
    /// Compare everything in a run if the last comparison was this many days (30d) or hours (12h)
    /// ago. For a source whose snapshots can be read at any offset [default: never because of time
    /// alone].
    #[arg(long, value_name = "AGE")]
    pub(crate) compare_every: Option<String>,
    /// Read again everything that the source's maps call unchanged within this many days (30d) or
    /// hours (12h), a part in each run, and compare it with the manifest. For a source whose
    /// snapshots can be read at any offset [default: 30d].
    #[arg(long, value_name = "AGE")]
    pub(crate) audit_age: Option<String>,
    /// Also read this many bytes in each run, drawn at random, as in 64M or 0 [default: auto,
    /// enough to find a map that misses 1 % of the changes with a chance of 99 %, at most 1G].
    #[arg(long, value_name = "BYTES")]
    pub(crate) audit_sample: Option<String>,
}

/// Which data sets of a tree are replicated, and how many at once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args)]
pub(crate) struct Tree {
    /// Replicate a zfs: source and all data sets below it, each to the same path below TARGET;
    /// zvol: and file: targets take only volumes.
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// With -r, only data sets that match this pattern, and what is below them: a path below the
    /// source, in which * is anything up to the next slash, ? one character, and ** any number of
    /// parts. Can be repeated.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// With -r, no data set that matches this pattern, and nothing below it. Can be repeated.
    #[arg(id = "exclude_members", long = "exclude", value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// With -r, how many data sets to send at the same time, 1 to 64 [default: 4].
    #[arg(long, value_name = "COUNT")]
    pub(crate) at_once: Option<usize>,
}

/// How to reach and know a remote side.
#[derive(Clone, Debug, Args)]
pub(crate) struct Peer {
    /// Our secret key, for a remote side [default: /etc/driftline/secret.key].
    #[arg(long, value_name = "FILE", env = "DRIFTLINE_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// The remote side's public key, dlp1…: Driftline talks to nobody else.
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
    /// Overwrite what TO holds.
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
    /// Also compare with this file or block device: file:PATH.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) against: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Scrub {
    /// file:PATH or zvol:POOL/NAME.
    pub(crate) target: String,
    /// Repair what can be repaired here, and let the next push replace the rest.
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
