//! What lies in a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Adds the files in `dir`, and in what is below it.
pub(crate) fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}
