//! What must not be restored to, nor made a replica: another replica by whatever name, its books, and
//! what another part of the system writes.

use std::{
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};

use crate::{
    Problem,
    device::is_same,
    open_path::{BOOKS, has_state, state_dir_of},
    own::parent_of,
};

/// Whether two paths lead to the bytes of one file or device, also by a link, or because one is a
/// loop device on the other.
pub fn is_one_volume(one: &Path, two: &Path) -> bool {
    let all = |path: &Path| -> Vec<Metadata> {
        let Ok(found) = path.metadata() else { return Vec::new() };
        let below = backing_of(&found).and_then(|file| file.metadata().ok());
        below.into_iter().chain([found]).collect()
    };
    let (one, two) = (all(one), all(two));
    one.iter().any(|one| two.iter().any(|two| is_same(one, two)))
}

/// That what stands at `path` is not a replica under another name, and that no loop device is on it.
///
/// # Errors
///
/// [`Problem::IsReplica`], [`Problem::HardLinked`] and [`Problem::UnderLoop`].
pub(crate) fn check_free(path: &Path, found: &Metadata) -> Result<(), Problem> {
    check_no_replica(path)?;
    if found.file_type().is_block_device() {
        // What is written to a loop device is written to its file.
        return match backing_of(found).and_then(|file| Some((file.metadata().ok()?, file))) {
            Some((below, file)) => check_names(&file, &below),
            None => Ok(()),
        };
    }
    check_names(path, found)?;
    match loops().find(|(_, file)| file.metadata().is_ok_and(|file| is_same(&file, found))) {
        Some((device, _)) => Err(Problem::UnderLoop { device }),
        None => Ok(()),
    }
}

fn check_no_replica(path: &Path) -> Result<(), Problem> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let state_dir = state_dir_of(&path);
    if has_state(&state_dir) {
        return Err(Problem::IsReplica { state_dir });
    }
    // Nor one of the books of a replica.
    let is_book = path.file_name().is_some_and(|name| BOOKS.iter().any(|book| name == *book));
    match path.parent() {
        Some(dir) if is_book && has_state(dir) => {
            Err(Problem::IsReplica { state_dir: dir.to_owned() })
        }
        _ => Ok(()),
    }
}

/// That a file is no replica by any of its names. Only those beside it can be found.
fn check_names(path: &Path, found: &Metadata) -> Result<(), Problem> {
    check_no_replica(path)?;
    if found.nlink() <= 1 {
        return Ok(());
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let beside = fs::read_dir(parent_of(&path)).into_iter().flatten().flatten();
    for entry in beside {
        if entry.metadata().is_ok_and(|other| is_same(&other, found)) {
            check_no_replica(&entry.path())?;
        }
    }
    Err(Problem::HardLinked { names: found.nlink() })
}

/// The file that a loop device is on.
fn backing_of(device: &Metadata) -> Option<PathBuf> {
    if !device.file_type().is_block_device() {
        return None;
    }
    let number = device.rdev();
    let numbers = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    let whole = Path::new(&numbers).join("loop/backing_file");
    // A partition of one.
    let part = Path::new(&numbers).join("../loop/backing_file");
    let named = fs::read_to_string(whole).or_else(|_| fs::read_to_string(part)).ok()?;
    Some(named.trim_end_matches('\n').into())
}

/// All loop devices in use, each with its file.
fn loops() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter_map(|device| {
        let named = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let file = PathBuf::from(named.trim_end_matches('\n'));
        Some((Path::new("/dev").join(device.file_name()), file))
    })
}
