//! Destroying snapshots and bookmarks, each by itself.

use super::{Zfs, ZfsError};
use crate::{PointKind, PointName};

/// A snapshot or bookmark that could not be destroyed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stays {
    /// Which.
    pub point: PointName,
    /// What keeps it: the clones that start from it, the holds on it, or what ZFS said.
    pub why: String,
}

impl Zfs {
    /// Destroys these snapshots and bookmarks and nothing else: no clone, no data set, and
    /// nothing later. One that is not there is no error. Each is tried, whatever becomes of the
    /// others; those that stay are returned.
    ///
    /// # Errors
    ///
    /// A name that stands for a range of snapshots: nothing is destroyed then. A pool that hangs.
    pub fn destroy(&self, points: &[PointName]) -> Result<Vec<Stays>, ZfsError> {
        // To the command, `a%b` means all from a to b.
        if let Some(range) = points.iter().find(|point| point.short().contains('%')) {
            return Err(ZfsError::Misuse(format!(
                "{range} is one of ZFS's own names, and not destroyed: ZFS does it itself"
            )));
        }
        let alike = |a: &PointName, b: &PointName| {
            (a.kind(), a.dataset().pool()) == (b.kind(), b.dataset().pool())
        };
        let mut stay = Vec::new();
        for batch in points.chunk_by(alike) {
            // The library destroys all of them or none.
            let together = self.library.is_ok().then(|| self.destroy_together(batch));
            match together {
                Some(Ok(())) => continue,
                // Each would be waited for as long.
                Some(Err(error @ (ZfsError::Stuck { .. } | ZfsError::Late { .. }))) => {
                    return Err(error);
                }
                Some(Err(_)) | None => {}
            }
            for point in batch {
                let destroyed = match &self.library {
                    Ok(_) => self.destroy_together(std::slice::from_ref(point)),
                    Err(_) => self.destroy_by_command(point),
                };
                if let Err(error) = destroyed {
                    let why = self.managers(point).unwrap_or_else(|| error.to_string());
                    stay.push(Stays { point: point.clone(), why });
                }
            }
        }
        Ok(stay)
    }

    /// All of them or none, by the library.
    fn destroy_together(&self, points: &[PointName]) -> Result<(), ZfsError> {
        let (Ok(engine), Some(first)) = (&self.library, points.first()) else { return Ok(()) };
        let (engine, all) = (engine.clone(), points.to_vec());
        self.apart(first.dataset(), "destroy snapshots", move || engine.destroy(&all))
    }

    fn destroy_by_command(&self, point: &PointName) -> Result<(), ZfsError> {
        match self.run(["destroy", &point.to_string()]) {
            Err(error @ ZfsError::Failed { .. }) => match self.exists(point.clone())? {
                true => Err(error),
                false => Ok(()),
            },
            other => other.map(drop),
        }
    }

    /// What keeps a snapshot from being destroyed, in words, if that can be found.
    pub fn managers(&self, point: &PointName) -> Option<String> {
        if point.kind() != PointKind::Snapshot {
            return None;
        }
        // Old versions do not know the property, and some say nothing where there is no clone.
        let clones = self.property(point.clone(), "clones").unwrap_or_default();
        let clones: Vec<&str> =
            clones.split(',').filter(|clone| !["", "-"].contains(clone)).collect();
        if !clones.is_empty() {
            let clones = clones.join(", ");
            return Some(format!(
                "it is the origin of the clone {clones}: destroy or promote that, if it is not \
                 needed"
            ));
        }
        let holds = self.run(["holds", "-H", &point.to_string()]).unwrap_or_default();
        let tags: Vec<&str> = holds.lines().filter_map(|line| line.split('\t').nth(1)).collect();
        (!tags.is_empty()).then(|| {
            let tags = tags.join(", ");
            format!("it is held by {tags}: `zfs release TAG {point}`, if nobody needs it")
        })
    }
}
