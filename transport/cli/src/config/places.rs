//! Where the volumes of a configuration are: that no two are the same place, and that what has to
//! be there is.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::bail;

use super::{Config, Volume};
use crate::{
    args::TRUST_DIR,
    place::Place,
    target::{BOOKS_END, TargetPlace},
};

/// A target, as it is found on this machine.
struct Spot<'a> {
    volume: &'a str,
    place: &'a TargetPlace,
    tree: bool,
    at: At,
    /// Where its books are, if that is known.
    books: Option<PathBuf>,
}

/// What a target takes up.
enum At {
    Path(PathBuf, Option<FileId>),
    Dataset(String),
}

/// A file or a device, whatever its name is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FileId {
    File(u64, u64),
    Device(u64),
}

impl FileId {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let is_device = found.file_type().is_block_device();
        Some(match is_device {
            true => Self::Device(found.rdev()),
            false => Self::File(found.dev(), found.ino()),
        })
    }
}

impl<'a> Spot<'a> {
    fn of(volume: &'a str, said: &'a Volume) -> Option<Self> {
        let Volume::Target { place, terms } = said else { return None };
        let tree = terms.root.is_some();
        let (at, beside) = match place {
            TargetPlace::File(path) => {
                let path = resolved(path);
                let mut beside = path.clone().into_os_string();
                beside.push(BOOKS_END);
                (At::Path(path.clone(), FileId::of(&path)), (!tree).then(|| beside.into()))
            }
            TargetPlace::Zvol(name) | TargetPlace::Zfs(name) => {
                (At::Dataset(name.to_string()), None)
            }
        };
        let books = terms.state_dir.as_deref().map(resolved).or(beside);
        Some(Self { volume, place, tree, at, books })
    }

    /// Whether both are one place.
    fn is_same(&self, other: &Self) -> bool {
        match (&self.at, &other.at) {
            (At::Path(a, a_id), At::Path(b, b_id)) => a == b || (a_id.is_some() && a_id == b_id),
            (At::Dataset(a), At::Dataset(b)) => a == b,
            _ => false,
        }
    }

    /// Whether the other, or its books, are in what this one takes up.
    fn contains(&self, other: &Self) -> bool {
        let is_below = |path: &Path| match &self.at {
            At::Path(tree, _) if self.tree && path.starts_with(tree) => true,
            _ => self.books.as_ref().is_some_and(|books| path.starts_with(books)),
        };
        if other.books.as_deref().is_some_and(is_below) {
            return true;
        }
        match (&self.at, &other.at) {
            (At::Path(..), At::Path(path, _)) => is_below(path),
            (At::Dataset(a), At::Dataset(b)) => {
                self.tree && b.strip_prefix(a.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
            _ => false,
        }
    }

    /// Whether a file of ours is the target, or in what it takes up.
    fn takes(&self, file: &Path) -> bool {
        let At::Path(path, id) = &self.at else { return false };
        let (file, file_id) = (resolved(file), FileId::of(file));
        *path == file
            || (id.is_some() && *id == file_id)
            || self.tree && file.starts_with(path)
            || self.books.as_ref().is_some_and(|books| file.starts_with(books))
    }
}

/// A path without links and `..`, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(path) = fs::canonicalize(path) {
        return path;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => absolute,
    }
}

/// That no two volumes have one target, and none the files of the listener itself: whoever may
/// push the one would overwrite the other.
pub(super) fn check_apart(config: &Config, own: Option<&Path>) -> anyhow::Result<()> {
    let spots: Vec<Spot<'_>> =
        config.volumes().filter_map(|(name, volume)| Spot::of(name, volume)).collect();
    for (number, a) in spots.iter().enumerate() {
        for b in &spots[number + 1..] {
            let (one, other) = (a.volume, b.volume);
            if a.is_same(b) {
                bail!("volumes {one:?} and {other:?} have the same target, {}", a.place);
            }
            if a.books.is_some() && a.books == b.books {
                bail!("volumes {one:?} and {other:?} have the same folder for their books");
            }
            for (outer, inner) in [(a, b), (b, a)] {
                if outer.contains(inner) {
                    bail!(
                        "the target of volume {:?} is within that of volume {:?}, {}: whoever may \
                         push the one could overwrite the other",
                        inner.volume,
                        outer.volume,
                        outer.place
                    );
                }
            }
        }
    }
    let trusted = Some(config.trust_dir.as_deref().unwrap_or_else(|| Path::new(TRUST_DIR)));
    let own = [Some(config.key.as_path()), config.index.as_deref(), trusted, own];
    let what = ["the secret key", "the index", "the trust folder", "this file"];
    for (file, what) in own.into_iter().zip(what) {
        let Some(file) = file else { continue };
        if let Some(spot) = spots.iter().find(|spot| spot.takes(file)) {
            let (volume, place) = (spot.volume, spot.place);
            bail!("{what} {} is within the target of volume {volume:?}, {place}", file.display());
        }
    }
    Ok(())
}

/// What is missing where the volumes are, one line for each.
pub(super) fn missing(config: &Config) -> Vec<String> {
    let mut missing = Vec::new();
    let targets = config.targets().filter_map(|(place, _)| match place {
        TargetPlace::File(path) => Some(resolved(path)),
        TargetPlace::Zvol(_) | TargetPlace::Zfs(_) => None,
    });
    let targets: Vec<PathBuf> = targets.collect();
    for (name, volume) in config.volumes() {
        let problem = match volume {
            // It comes with the first push.
            Volume::Source { place: Place::File(path), .. }
                if targets.contains(&resolved(path)) =>
            {
                None
            }
            Volume::Source { place: Place::File(path) | Place::Stream(path), .. } => {
                let found = fs::metadata(path);
                found.err().map(|error| format!("its source {}: {error}", path.display()))
            }
            Volume::Target { place: TargetPlace::File(path), terms } => {
                missing_of_file(path, terms.root.is_some(), terms.state_dir.is_some())
            }
            Volume::Source { .. } | Volume::Target { .. } => None,
        };
        missing.extend(problem.map(|problem| format!("volume {name:?}: {problem}")));
    }
    missing
}

fn missing_of_file(path: &Path, tree: bool, has_books: bool) -> Option<String> {
    let folder = if tree { Some(path) } else { path.parent() };
    let folder =
        folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if !folder.is_dir() {
        let folder = folder.display();
        return Some(format!("the folder {folder} of its target is not there: is it mounted?"));
    }
    let found = fs::metadata(path).ok()?;
    if found.file_type().is_block_device() && !has_books {
        let path = path.display();
        return Some(format!("its target {path} is a block device: say state_dir for its books"));
    }
    if found.is_dir() && !tree {
        return Some(format!("its target {} is a folder, and it is no tree", path.display()));
    }
    None
}

/// That an address is HOST:PORT, with a port that there is.
pub(super) fn check_address(listen: &str) -> anyhow::Result<()> {
    let Some((host, port)) = listen.rsplit_once(':') else {
        bail!("listen is {listen:?}: write ADDRESS:PORT, as in 0.0.0.0:7420");
    };
    if host.is_empty() {
        bail!("listen is {listen:?}, without an address: 0.0.0.0 is all of this machine's");
    }
    if port.parse::<u16>().is_err() {
        bail!("listen is {listen:?}: {port:?} is no port, which is a number up to 65535");
    }
    Ok(())
}
