//! The handle on a real ZFS: everything that is asked of one goes through [`Zfs`].
//!
//! Where the library libzfs_core is there, and the kernel module behind it, libzetta calls it:
//! for existence, snapshots, bookmarks, their destruction, and plain sends. All else, and all
//! of it where there is no library, is done by the `zfs` command. Nothing here forces, rolls
//! back, or destroys a data set.

mod abilities;
mod command;
mod destroy;
mod error;
mod hold;
mod library;
mod list;
mod patience;
mod receive;
mod send;

use std::{
    env,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use driftline_command::Patience;

use crate::{DatasetName, PointKind, PointName, Version, parse_versions};
pub use abilities::Abilities;
use command::Call;
pub use destroy::Stays;
pub use error::{Cause, Errno, ZfsError};
pub use hold::Hold;
use library::Engine;
use patience::{Limits, STATES, Watch, given_up, pool_of, zpool_beside};
pub use receive::{ReceiveRequest, Receiving};
pub use send::{Package, SendRequest, Sending};

/// Names the `zfs` command where it is not in a usual place. Only the command is used then,
/// as the library may be of another ZFS.
const COMMAND_VARIABLE: &str = "DRIFTLINE_ZFS";
/// Where the command is looked for after `PATH`, which often lacks them for ordinary users.
const COMMAND_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A data set, or a point in its past.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Name {
    /// A file system or volume.
    Dataset(DatasetName),
    /// A snapshot or bookmark.
    Point(PointName),
}

impl From<DatasetName> for Name {
    fn from(name: DatasetName) -> Self {
        Self::Dataset(name)
    }
}

impl From<PointName> for Name {
    fn from(name: PointName) -> Self {
        Self::Point(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dataset(name) => name.fmt(f),
            Self::Point(name) => name.fmt(f),
        }
    }
}

/// A ZFS that is there. Cheap to clone, and its clones may be used by several threads.
#[derive(Clone, Debug)]
pub struct Zfs {
    /// The `zfs` command, or why there is none.
    command: Result<PathBuf, String>,
    /// The library, or why it is not used.
    library: Result<Engine, String>,
    /// What it can do, once it was asked.
    abilities: Arc<OnceLock<Abilities>>,
    /// How long it is waited for.
    limits: Limits,
    /// Where the kernel has the state of each pool.
    states: PathBuf,
}

impl Zfs {
    /// Looks for the library and for the `zfs` command: in the variable `DRIFTLINE_ZFS`, which
    /// also turns the library off, then in `PATH`, `/usr/sbin` and `/sbin`.
    ///
    /// # Errors
    ///
    /// [`ZfsError::Unavailable`] if neither is there.
    pub fn find() -> Result<Self, ZfsError> {
        if let Some(path) = env::var_os(COMMAND_VARIABLE).filter(|path| !path.is_empty()) {
            return Ok(Self::with_command(path));
        }
        let command = search(env::var_os("PATH").as_deref());
        let library = Engine::open();
        let found = Self::of(command, library);
        match (&found.command, &found.library) {
            (Err(command), Err(library)) => Err(ZfsError::Unavailable {
                command: command.clone(),
                library: Some(library.clone()),
            }),
            _ => Ok(found),
        }
    }

    /// The ZFS behind this command alone, such as zfs-fuse's, without the library. Whether it
    /// can be run shows when it is.
    pub fn with_command(path: impl Into<PathBuf>) -> Self {
        let library = Err("the library is not used beside a command that was named".to_owned());
        Self::of(Ok(path.into()), library)
    }

    fn of(command: Result<PathBuf, String>, library: Result<Engine, String>) -> Self {
        let (limits, states) = (Limits::USUAL, STATES.into());
        Self { command, library, abilities: Arc::default(), limits, states }
    }

    /// Whether the library is used.
    ///
    /// # Errors
    ///
    /// Why it is not, in words.
    pub fn library(&self) -> Result<(), &str> {
        self.library.as_ref().map(|_| ()).map_err(String::as_str)
    }

    /// What one call of `zfs` with these arguments writes to its standard output. Bytes that
    /// are not UTF-8 are replaced.
    ///
    /// # Errors
    ///
    /// [`ZfsError::Failed`] with all that it wrote to standard error, unless it succeeded.
    pub fn run<S: AsRef<str>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String, ZfsError> {
        self.call(args)?.output()
    }

    /// Whether this exists.
    ///
    /// # Errors
    ///
    /// The command's, where it is not "does not exist". The library tells no reasons: what
    /// cannot be seen does not exist to it.
    pub fn exists(&self, name: impl Into<Name>) -> Result<bool, ZfsError> {
        let name = name.into();
        let kinds = match &name {
            Name::Dataset(_) => "filesystem,volume",
            Name::Point(point) if point.kind() == PointKind::Snapshot => "snapshot",
            Name::Point(_) => "bookmark",
        };
        // The library cannot see bookmarks by name.
        if let (Ok(engine), "filesystem,volume" | "snapshot") = (&self.library, kinds) {
            let (engine, of) = (engine.clone(), name.clone());
            let dataset = match &name {
                Name::Dataset(dataset) => dataset,
                Name::Point(point) => point.dataset(),
            };
            return self.apart(dataset, "look for", move || engine.exists(&of));
        }
        match self.run(["list", "-H", "-o", "name", "-t", kinds, &name.to_string()]) {
            Ok(_) => Ok(true),
            Err(ZfsError::Failed { stderr, .. }) if stderr.contains("does not exist") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes all of these snapshots at one instant, or none. They must be of one pool.
    ///
    /// # Errors
    ///
    /// A name that is a bookmark's, and what ZFS refuses.
    pub fn snapshot(&self, snapshots: &[PointName]) -> Result<(), ZfsError> {
        all_snapshots("take", snapshots)?;
        match &self.library {
            _ if snapshots.is_empty() => Ok(()),
            Ok(engine) => {
                let (engine, all) = (engine.clone(), snapshots.to_vec());
                self.apart(snapshots[0].dataset(), "snapshot", move || engine.snapshot(&all))
            }
            Err(_) => match self.run(words(&["snapshot"], snapshots)) {
                Err(error) if error.is_one_at_most() => self.snapshot_among(snapshots, error),
                taken => taken.map(drop),
            },
        }
    }

    /// What [`snapshot`](Self::snapshot) does, by a ZFS that takes one at once, or a whole tree: takes
    /// the tree that all of them are in, and destroys at once what nobody asked for.
    fn snapshot_among(&self, snapshots: &[PointName], why: ZfsError) -> Result<(), ZfsError> {
        let short = snapshots[0].short();
        let first = snapshots[0].dataset().clone();
        let is_above_all = |name: &DatasetName| {
            snapshots.iter().all(|one| one.short() == short && one.dataset().below(name).is_some())
        };
        let root = std::iter::successors(Some(first), DatasetName::parent).find(is_above_all);
        let Some(root) = root.and_then(|root| root.snapshot(short).ok()) else { return Err(why) };
        self.snapshot_tree(&root)?;
        let members = self.tree(root.dataset())?.into_iter();
        let mut unasked: Vec<PointName> =
            members.filter_map(|member| member.name.snapshot(short).ok()).collect();
        unasked.retain(|point| !snapshots.contains(point));
        for Stays { point, why } in self.destroy(&unasked)? {
            tracing::warn!(snapshot = %point, why, "not needed, but cannot be destroyed");
        }
        Ok(())
    }

    /// Takes this snapshot, and at the same instant one of the same name of every data set below
    /// its own.
    ///
    /// # Errors
    ///
    /// A name that is a bookmark's, and what ZFS refuses: it takes all of them or none.
    pub fn snapshot_tree(&self, root: &PointName) -> Result<(), ZfsError> {
        all_snapshots("take", std::slice::from_ref(root))?;
        self.run(["snapshot", "-r", &root.to_string()]).map(drop)
    }

    /// Makes the data sets above `name` that are missing, from `root` on, as empty file systems
    /// that are never mounted.
    ///
    /// # Errors
    ///
    /// What ZFS refuses: above all that what `root` itself is in is not there.
    pub fn make_parents(&self, name: &DatasetName, root: &DatasetName) -> Result<(), ZfsError> {
        let above = std::iter::successors(name.parent(), DatasetName::parent);
        let mut missing = Vec::new();
        for parent in above.take_while(|parent| parent.below(root).is_some()) {
            if self.exists(parent.clone())? {
                break;
            }
            missing.push(parent);
        }
        for parent in missing.iter().rev() {
            match self.run(["create", "-o", "canmount=off", parent.as_str()]) {
                // Another session needed it as well.
                Err(_) if self.exists(parent.clone())? => {}
                made => made.map(drop)?,
            }
        }
        Ok(())
    }

    /// Makes a bookmark of a snapshot; since OpenZFS 2.0 also of another bookmark.
    ///
    /// # Errors
    ///
    /// A second name that is a snapshot's, and what ZFS refuses.
    pub fn bookmark(&self, of: &PointName, bookmark: &PointName) -> Result<(), ZfsError> {
        if bookmark.kind() != PointKind::Bookmark {
            return Err(ZfsError::Misuse(format!("{bookmark} is no name of a bookmark: use #")));
        }
        match &self.library {
            Ok(engine) => {
                let (engine, from, to) = (engine.clone(), of.clone(), bookmark.clone());
                self.apart(of.dataset(), "bookmark", move || engine.bookmark(&from, &to))
            }
            Err(_) => self.run(words(&["bookmark"], [of, bookmark])).map(drop),
        }
    }

    /// The versions of the command, and of the kernel module where that is loaded.
    ///
    /// # Errors
    ///
    /// That of the command, which before OpenZFS 0.8 does not know its version.
    pub fn versions(&self) -> Result<(Version, Option<Version>), ZfsError> {
        // Without the module it fails, but tells its own version before.
        let (stdout, end) = self.call(["version"])?.output_and_end()?;
        match parse_versions(&stdout) {
            Ok(versions) => Ok(versions),
            Err(error) => Err(end.err().unwrap_or_else(|| error.into())),
        }
    }

    /// Lets the library do something about a data set, on a thread of its own.
    fn apart<T: Send + 'static>(
        &self,
        dataset: &DatasetName,
        task: &str,
        act: impl FnOnce() -> Result<T, ZfsError> + Send + 'static,
    ) -> Result<T, ZfsError> {
        let watch = self.watch(dataset.pool());
        let look = || watch.look();
        let Limits { command, quiet, .. } = self.limits;
        let patience = Patience { within: Some(command), every: quiet, look: &look };
        let done =
            watch.begin().and_then(|()| driftline_command::apart("libzfs_core", patience, act));
        done.map_err(|error| given_up(format!("libzfs_core, to {task} of {dataset},"), error))?
    }

    /// What asks how a pool is.
    fn watch(&self, pool: &str) -> Watch {
        let zpool = self.command.as_ref().ok().and_then(|zfs| zpool_beside(zfs));
        let (pool, states) = (Some(pool.to_owned()), self.states.clone());
        Watch { zpool, pool, states, limits: self.limits }
    }

    /// A call of the command, not started.
    fn call<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<Call, ZfsError> {
        match &self.command {
            Ok(program) => {
                let args: Vec<String> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
                let watch = Watch { pool: pool_of(&args), ..self.watch("") };
                Ok(Call::new(program, args, watch))
            }
            Err(why) => Err(ZfsError::Unavailable { command: why.clone(), library: None }),
        }
    }
}

/// Warns of what the command said of this data set though it succeeded, mostly nothing.
pub fn warn_of(dataset: &DatasetName, said: &str) {
    if !said.is_empty() {
        tracing::warn!(%dataset, said, "zfs succeeded with a message");
    }
}

/// The command, in these folders and the usual ones.
fn search(path: Option<&OsStr>) -> Result<PathBuf, String> {
    let listed = path.into_iter().flat_map(env::split_paths);
    listed
        .filter(|folder| folder.is_absolute())
        .chain(COMMAND_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join("zfs"))
        .find(|file| is_program(file))
        .ok_or_else(|| format!("no command zfs in PATH, {}", COMMAND_FOLDERS.join(" or ")))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// These words, then these names.
fn words<'a>(
    start: &[&str],
    names: impl IntoIterator<Item = &'a PointName>,
) -> impl Iterator<Item = String> {
    let start: Vec<_> = start.iter().map(|word| (*word).to_owned()).collect();
    let names: Vec<_> = names.into_iter().map(ToString::to_string).collect();
    start.into_iter().chain(names)
}

fn all_snapshots(verb: &str, points: &[PointName]) -> Result<(), ZfsError> {
    match points.iter().find(|point| point.kind() != PointKind::Snapshot) {
        Some(point) => Err(ZfsError::Misuse(format!("{point} is no snapshot to {verb}: use @"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
