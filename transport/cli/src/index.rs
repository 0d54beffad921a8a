//! The index of all replicas of this machine: which of them there are, and `driftline index`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use driftline_target::{Index, IndexError, Listed};

use crate::{
    args,
    config::{Config, Volume},
    exit::misused,
    print::say,
    target::{BOOKS_END, TargetPlace, TargetTerms},
};

/// Folders below a tree that are gone into.
const DEPTH_MAX: usize = 32;

/// Makes the index of a configuration anew.
pub(crate) fn rebuild(arguments: &args::IndexRebuild) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    let Some(path) = &config.index else {
        bail!("{} names no index: write index = \"PATH\"", arguments.config.display());
    };
    let index = match Index::rebuild(path, &replicas(&config)) {
        Err(error @ IndexError::Foreign { .. }) => misused!("{error}"),
        made => made?,
    };
    let (replicas, chunks) = index.counts().context("the index was made, and cannot be read")?;
    say(format_args!("{} has {chunks} chunks of {replicas} replicas", path.display()));
    Ok(())
}

/// Opens the index of a command.
///
/// # Errors
///
/// The file is something else: whoever named it has named the wrong one.
pub(crate) fn open_named(path: &Path, replicas: &[Listed]) -> anyhow::Result<Option<Arc<Index>>> {
    match Index::open(path, replicas) {
        Err(error @ IndexError::Foreign { .. }) => misused!("{error}"),
        opened => Ok(said(opened)),
    }
}

/// Opens an index for sessions. Without it they move more, and that is all: so whatever is wrong
/// is said, and no error.
pub(crate) fn open(path: &Path, replicas: &[Listed]) -> Option<Arc<Index>> {
    said(Index::open(path, replicas))
}

fn said(opened: Result<Index, IndexError>) -> Option<Arc<Index>> {
    match opened {
        Ok(index) => Some(Arc::new(index)),
        Err(error) => {
            tracing::error!(
                "{error}; until then the source sends chunks again that other replicas have"
            );
            None
        }
    }
}

/// As [`open`], only to look for chunks: also while `driftline serve` has it.
pub(crate) fn open_to_look(path: &Path, replicas: &[Listed]) -> Option<Arc<Index>> {
    match Index::open(path, replicas) {
        Err(IndexError::Busy { .. }) => match Index::open_copy(path) {
            Ok(index) => Some(Arc::new(index)),
            Err(error) => {
                tracing::error!("{error}; chunks of other replicas are not looked up");
                None
            }
        },
        Err(error) => {
            tracing::error!("{error}; chunks of other replicas are not looked up");
            None
        }
        Ok(index) => Some(Arc::new(index)),
    }
}

/// The replicas that a configuration names, as far as they are found.
pub(crate) fn replicas(config: &Config) -> Vec<Listed> {
    let mut found = Vec::new();
    for (_, volume) in config.volumes() {
        if let Volume::Target { place, terms } = volume {
            collect(place, terms, &mut found);
        }
    }
    found
}

/// The replica at one place.
pub(crate) fn replica(place: &TargetPlace, terms: &TargetTerms) -> Vec<Listed> {
    let mut found = Vec::new();
    collect(place, terms, &mut found);
    found
}

fn collect(place: &TargetPlace, terms: &TargetTerms, found: &mut Vec<Listed>) {
    match (place, &terms.root) {
        (TargetPlace::File(folder), Some(_)) => walk(folder, DEPTH_MAX, found),
        // A volume below a tree of ZFS lists itself when it is opened next.
        _ => found.extend(place.listed(terms)),
    }
}

/// The replicas in the files below a folder.
fn walk(folder: &Path, depth: usize, found: &mut Vec<Listed>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if !path.is_dir() || path.is_symlink() {
            continue;
        }
        let volume = path.to_str().and_then(|path| path.strip_suffix(BOOKS_END));
        match volume.map(PathBuf::from) {
            Some(volume) if volume.is_file() => found.push(Listed { volume, state_dir: path }),
            _ if depth > 0 => walk(&path, depth - 1, found),
            _ => {}
        }
    }
}
