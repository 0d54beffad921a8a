//! libzfs_core by way of libzetta: its calls, and its errors as ours.
//!
//! Nothing here lists: libzetta's own listing cuts names at `:` and drops what follows.

use std::{io::PipeWriter, path::PathBuf, sync::Arc};

use libzetta::{
    libnv::{NvError, nvpair::Value},
    zfs::{BookmarkRequest, DestroyTiming, Error, SendFlags, ZfsEngine as _, ZfsLzc},
};
use libzetta_zfs_core_sys::{HoldError, Holds, available};

use super::{Cause, Errno, Name, ZfsError};
use crate::{PointKind, PointName};

/// libzfs_core with a kernel module behind it.
#[derive(Clone, Debug)]
pub(super) struct Engine(Arc<ZfsLzc>);

impl Engine {
    /// Looks for both; in words, what is missing.
    pub(super) fn open() -> Result<Self, String> {
        available().map_err(|error| error.to_string())?;
        match ZfsLzc::new() {
            Ok(lzc) => Ok(Self(Arc::new(lzc))),
            Err(Error::LZCInitializationFailed(error)) => {
                Err(format!("libzfs_core cannot use the kernel module by /dev/zfs: {error}"))
            }
            Err(error) => Err(format!("libzfs_core cannot be used: {error}")),
        }
    }

    /// Whether a data set or snapshot exists.
    pub(super) fn exists(&self, name: &Name) -> Result<bool, ZfsError> {
        self.0.exists(name.to_string()).map_err(|error| failure(format!("look for {name}"), error))
    }

    pub(super) fn snapshot(&self, snapshots: &[PointName]) -> Result<(), ZfsError> {
        let task = || format!("snapshot {}", list(snapshots));
        self.0.snapshot(&paths(snapshots), None).map_err(|error| failure(task(), error))
    }

    pub(super) fn bookmark(&self, of: &PointName, bookmark: &PointName) -> Result<(), ZfsError> {
        let request = BookmarkRequest::new(path(of), path(bookmark));
        let task = || format!("bookmark {of} as {bookmark}");
        self.0.bookmark(&[request]).map_err(|error| failure(task(), error))
    }

    /// Destroys points that are all snapshots or all bookmarks, of one pool.
    pub(super) fn destroy(&self, points: &[PointName]) -> Result<(), ZfsError> {
        let done = match points.first().map(PointName::kind) {
            None => Ok(()),
            Some(PointKind::Bookmark) => self.0.destroy_bookmarks(&paths(points)),
            Some(PointKind::Snapshot) => {
                self.0.destroy_snapshots(&paths(points), DestroyTiming::RightNow)
            }
        };
        done.map_err(|error| failure(format!("destroy {}", list(points)), error))
    }

    /// Writes a stream to its end; blocks as long as that takes.
    pub(super) fn send(
        &self,
        tip: &PointName,
        base: Option<&PointName>,
        raw: bool,
        output: PipeWriter,
    ) -> Result<(), ZfsError> {
        let mut flags = SendFlags::LZC_SEND_FLAG_LARGE_BLOCK | SendFlags::LZC_SEND_FLAG_COMPRESS;
        flags.set(SendFlags::LZC_SEND_FLAG_RAW, raw);
        match base {
            Some(base) => self.0.send_incremental(path(tip), path(base), output, flags),
            None => self.0.send_full(path(tip), output, flags),
        }
        .map_err(|error| {
            let base = base.map(|base| format!(" from {base}")).unwrap_or_default();
            failure(format!("send {tip}{base}"), error)
        })
    }
}

/// Holds snapshots until the result is dropped or the process ends.
pub(super) fn hold(tag: &str, snapshots: &[PointName]) -> Result<Holds, ZfsError> {
    let names: Vec<String> = snapshots.iter().map(ToString::to_string).collect();
    libzetta_zfs_core_sys::hold(tag, names.iter().map(String::as_str)).map_err(|error| {
        let task = format!("hold {}", list(snapshots));
        match error {
            HoldError::Refused(named, errno) => refusal(task, named, errno),
            HoldError::Library(errno) => refusal(task, Vec::new(), errno),
            error => ZfsError::Library { task, why: error.to_string() },
        }
    })
}

fn path(point: &PointName) -> PathBuf {
    point.to_string().into()
}

fn paths(points: &[PointName]) -> Vec<PathBuf> {
    points.iter().map(path).collect()
}

/// The first few names.
fn list(points: &[PointName]) -> String {
    const SHOWN: usize = 8;
    let mut text =
        points.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(more) = points.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// libzetta's error as ours.
fn failure(task: String, error: Error) -> ZfsError {
    match error {
        Error::Io(error) | Error::NvOpError(NvError::Io(error)) => match error.raw_os_error() {
            Some(errno) => refusal(task, Vec::new(), errno),
            None => ZfsError::Library { task, why: error.to_string() },
        },
        Error::MultiOpError(named) => {
            let mut numbers: Vec<(String, i32)> =
                named.into_iter().map(|(name, value)| (name, number(&value))).collect();
            numbers.sort_unstable();
            refusal(task, numbers, 0)
        }
        // Its Display is the bare name of a variant.
        error => ZfsError::Library { task, why: format!("{error:?}") },
    }
}

/// The errno in a list of errors.
const fn number(value: &Value) -> i32 {
    match value {
        Value::Int32(errno) => *errno,
        _ => 0,
    }
}

/// A refusal for each name, or else one for all.
fn refusal(task: String, named: Vec<(String, i32)>, errno: i32) -> ZfsError {
    let cause = |(name, errno)| Cause { name: Some(name), errno: Errno(errno) };
    let mut causes: Vec<Cause> = named.into_iter().map(cause).collect();
    if causes.is_empty() {
        causes.push(Cause { name: None, errno: Errno(errno) });
    }
    ZfsError::Refused { task, causes }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, io};

    use super::*;

    #[test]
    fn errors_of_libzetta_keep_their_numbers() {
        let own = Error::Io(io::Error::from_raw_os_error(1039));
        assert_eq!(
            failure("bookmark tank/a@b as tank/c#b".to_owned(), own).to_string(),
            "ZFS could not bookmark tank/a@b as tank/c#b: \
             the bookmark's source is of another data set (ZFS_ERR_BOOKMARK_SOURCE_NOT_ANCESTOR)"
        );
        let many = HashMap::from([
            ("tank/b@x".to_owned(), Value::Int32(28)),
            ("tank/a@x".to_owned(), Value::Int32(17)),
        ]);
        assert_eq!(
            failure("snapshot tank/a@x, tank/b@x".to_owned(), Error::MultiOpError(many))
                .to_string(),
            "ZFS could not snapshot tank/a@x, tank/b@x: tank/a@x: it exists already (errno 17); \
             tank/b@x: the pool is full (errno 28)"
        );
        let other = failure("send tank/a@x".to_owned(), Error::Unimplemented).to_string();
        assert!(other.ends_with("could not be asked to send tank/a@x: Unimplemented"), "{other}");
    }

    #[test]
    fn long_lists_are_cut_in_messages_only() {
        let points: Vec<PointName> =
            (0..10).map(|i| format!("tank/a@{i}").parse().unwrap()).collect();
        assert!(list(&points).ends_with("tank/a@7 and 2 more"), "{}", list(&points));
        assert_eq!(list(&points[..2]), "tank/a@0, tank/a@1");
        assert_eq!(paths(&points).len(), 10);
    }
}
