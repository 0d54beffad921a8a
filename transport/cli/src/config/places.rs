//! Where the volumes of a configuration are: that no two are the same place, and that what has to
//! be there is.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::bail;

use super::{Config, Volume};
use crate::{
    args::TRUST_DIR,
    own::{self, FileAt, books_beside, check_no_volume, resolved},
    place::Place,
    target::TargetPlace,
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
    File(FileAt),
    Dataset(String),
}

impl<'a> Spot<'a> {
    fn of(volume: &'a str, said: &'a Volume) -> Option<Self> {
        let Volume::Target { place, terms } = said else { return None };
        let tree = terms.root.is_some();
        let (at, beside) = match place {
            TargetPlace::File(path) => {
                let file = FileAt::of(path);
                let beside = (!tree).then(|| books_beside(&file.path));
                (At::File(file), beside)
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
            (At::File(a), At::File(b)) => a.is(b),
            (At::Dataset(a), At::Dataset(b)) => a == b,
            _ => false,
        }
    }

    /// Whether the other, or its books, are in what this one takes up.
    fn contains(&self, other: &Self) -> bool {
        let is_below = |path: &Path| match &self.at {
            At::File(tree) if self.tree && path.starts_with(&tree.path) => true,
            _ => self.books.as_ref().is_some_and(|books| path.starts_with(books)),
        };
        if other.books.as_deref().is_some_and(is_below) {
            return true;
        }
        match (&self.at, &other.at) {
            (At::File(_), At::File(inner)) => is_below(&inner.path),
            (At::Dataset(a), At::Dataset(b)) => {
                self.tree && b.strip_prefix(a.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
            _ => false,
        }
    }

    /// Whether a file of ours is the target, or in what it takes up.
    fn takes(&self, file: &Path) -> bool {
        let At::File(target) = &self.at else { return false };
        let file = FileAt::of(file);
        target.is(&file)
            || self.tree && file.path.starts_with(&target.path)
            || self.books.as_ref().is_some_and(|books| file.path.starts_with(books))
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
    let own = [
        ("the secret key", Some(config.key.as_path())),
        ("the index", config.index.as_deref()),
        ("the trust folder", trusted),
        ("this file", own),
    ];
    own::check_apart(&own)?;
    for (_, volume) in config.volumes() {
        if let Volume::Source { place, .. } = volume {
            check_no_volume(&own, place)?;
        }
    }
    for (what, file) in own {
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
