//! Putting a whole file in the place of another, in a folder that may belong to somebody else.

use std::{
    fs::{self, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Writes `bytes` under a name that nobody can foresee, and renames that to `path`. Nothing is
/// written through a link, whoever put one there.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{:016x}", RandomState::new().hash_one(path)));
    let new = PathBuf::from(new);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(&new)?;
    let replaced = file.write_all(bytes).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("metrics.prom"), dir.path().join("other"));
        fs::write(&other, "theirs").unwrap();
        symlink(&other, &path).unwrap();
        // The name that was used once, for whoever waits for it.
        let foreseen = path.with_extension(format!("new-{}", std::process::id()));
        symlink(&other, &foreseen).unwrap();
        replace(&path, b"ours", 0o640).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.is_file() && found.mode() & 0o777 == 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something was left behind");
    }
}
