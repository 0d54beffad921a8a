//! The program's own files, which a command or a configuration names: none of them is a volume, or
//! within the books of one, or another of them. Whatever is written to the one would destroy the
//! other.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{args, exit::misused, place::Place, target::BOOKS_END};

/// A file or device, whatever its name is and whether it is there.
pub(crate) struct FileAt {
    /// Without links and `..`, as far as it is there.
    pub(crate) path: PathBuf,
    id: Option<FileId>,
}

/// What is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FileId {
    File(u64, u64),
    Device(u64),
}

impl FileAt {
    pub(crate) fn of(path: &Path) -> Self {
        let id = fs::metadata(path).ok().map(|found| match found.file_type().is_block_device() {
            true => FileId::Device(found.rdev()),
            false => FileId::File(found.dev(), found.ino()),
        });
        Self { path: resolved(path), id }
    }

    /// Whether both are one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.path == other.path || (self.id.is_some() && self.id == other.id)
    }
}

/// A path without links and `..`, as far as it is there.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    if let Ok(path) = fs::canonicalize(path) {
        return path;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => absolute,
    }
}

/// The folder with the books of the file that this path leads to, unless they were put elsewhere.
pub(crate) fn books_beside(path: &Path) -> PathBuf {
    let mut beside = path.to_owned().into_os_string();
    beside.push(BOOKS_END);
    beside.into()
}

/// What one of the program's own files is called, and where it is said to be.
pub(crate) type Own<'a> = (&'a str, Option<&'a Path>);

/// Those that were named.
fn named<'a>(own: &'a [Own<'a>]) -> impl Iterator<Item = (&'a str, &'a Path)> {
    own.iter().filter_map(|(what, path)| Some((*what, (*path)?)))
}

/// That no two of the program's own files are one.
pub(crate) fn check_apart(own: &[Own<'_>]) -> anyhow::Result<()> {
    for (number, (one, path)) in named(own).enumerate() {
        let file = FileAt::of(path);
        let mut others = named(own).skip(number + 1);
        if let Some((other, _)) = others.find(|(_, path)| FileAt::of(path).is(&file)) {
            let path = path.display();
            misused!("{one} and {other} are one file, {path}: give each a file of its own");
        }
    }
    Ok(())
}

/// That none of the program's own files is what is read or written by a volume at `place`.
pub(crate) fn check_no_volume(own: &[Own<'_>], place: &Place) -> anyhow::Result<()> {
    for volume in place.files() {
        let volume = FileAt::of(&volume);
        for (what, path) in named(own) {
            if FileAt::of(path).is(&volume) {
                let path = path.display();
                misused!("{what} is {path}, the same as {place}: give it a file of its own");
            }
        }
    }
    Ok(())
}

/// The same of a replica here, and of its books.
pub(crate) fn check_no_replica(
    own: &[Own<'_>],
    place: &Place,
    state: &args::StateDir,
) -> anyhow::Result<()> {
    check_no_volume(own, place)?;
    let beside = place.bytes().map(|path| books_beside(&resolved(&path)));
    let Some(books) = state.state_dir.as_deref().map(resolved).or(beside) else { return Ok(()) };
    let entries = fs::read_dir(&books).into_iter().flatten().flatten();
    let kept: Vec<FileAt> = entries.map(|entry| FileAt::of(&entry.path())).collect();
    for (what, path) in named(own) {
        let file = FileAt::of(path);
        if file.path.starts_with(&books) || kept.iter().any(|book| book.is(&file)) {
            let path = path.display();
            misused!("{what} is {path}, within the books of {place}: name a file elsewhere");
        }
    }
    Ok(())
}
