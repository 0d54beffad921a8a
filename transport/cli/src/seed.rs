//! What the first copy of a clone is like, where nobody said so: what was pushed to the same place
//! of the volume that ZFS says it is a clone of.
//!
//! That is remembered for each push, on this side: no target tells what else it has. A seed
//! decides what moves and never what arrives, so whatever goes wrong here is told in the log, and
//! all of the clone moves.

use std::path::{Path, PathBuf};

use driftline_trust::Pushed;
use driftline_zfs::{DatasetName, host::Zfs};

use crate::{
    args::Peer,
    place::Place,
    remembered::{Spellings, pushes},
};

/// How many clones of clones are followed.
const ORIGINS_MAX: usize = 16;

/// What stands at the place of the target and is like this volume, as `--like` would say it, if
/// this is a first copy of a clone of what was pushed there.
pub(crate) async fn find(
    dir: PathBuf,
    source: DatasetName,
    target: Place,
    peer: Peer,
) -> Option<String> {
    let name = source.to_string();
    let work = move || look(&dir, &source, &target, &peer).map_err(|error| format!("{error:#}"));
    let found = tokio::task::spawn_blocking(work).await;
    found.unwrap_or_else(|error| Err(error.to_string())).unwrap_or_else(|error| {
        tracing::info!(source = name, error, "cannot find out what it is a clone of");
        None
    })
}

fn look(
    dir: &Path,
    source: &DatasetName,
    target: &Place,
    peer: &Peer,
) -> anyhow::Result<Option<String>> {
    let pushes = pushes(dir);
    // What arrived once is no first copy any more, and an old version of itself is better.
    for spelling in Spellings::of(target, peer).all() {
        if pushes.of(spelling)?.is_some() {
            return Ok(None);
        }
    }
    let there: Vec<There> =
        pushes.all()?.iter().filter_map(|pushed| There::of(pushed, target)).collect();
    if there.is_empty() {
        return Ok(None);
    }
    let origins = Zfs::find()?.origins(source, ORIGINS_MAX)?;
    let Some((origin, like)) = choose(&there, &origins) else { return Ok(None) };
    tracing::info!(
        %source, like,
        "the first copy uses this volume of the target as its seed: the source is a clone of \
         zfs:{origin}, which was pushed there"
    );
    Ok(Some(like.to_owned()))
}

/// A volume of ZFS that was pushed to where another is to go.
#[derive(Clone, PartialEq, Eq, Debug)]
struct There {
    volume: DatasetName,
    /// Its replica, as `--like` would say it.
    like: String,
    last_ms: u64,
}

impl There {
    /// What was pushed, if that is at the same place as the target.
    fn of(pushed: &Pushed, target: &Place) -> Option<Self> {
        if pushed.as_stream {
            return None;
        }
        let Place::Zfs(volume) = pushed.source.parse().ok()? else { return None };
        let like = match (pushed.target.parse().ok()?, target) {
            (Place::Remote { volume, address }, Place::Remote { address: wanted, .. }) => {
                (address == *wanted).then_some(volume)?
            }
            (local @ (Place::File(_) | Place::Zvol(_)), Place::File(_) | Place::Zvol(_)) => {
                local.to_string()
            }
            _ => return None,
        };
        Some(Self { volume, like, last_ms: pushed.last_ms })
    }
}

/// The nearest of the origins that was pushed there, and the newest of its replicas.
fn choose<'a>(
    there: &'a [There],
    origins: &'a [DatasetName],
) -> Option<(&'a DatasetName, &'a str)> {
    origins.iter().find_map(|origin| {
        let of_it = there.iter().filter(|one| one.volume == *origin);
        of_it.max_by_key(|one| one.last_ms).map(|one| (origin, one.like.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pushed: &[(&str, &str, u64)], target: &str, origins: &[&str]) -> Option<String> {
        let target = target.parse().unwrap();
        let there = pushed.iter().filter_map(|(source, target_then, last_ms)| {
            let (source, target_then) = ((*source).to_owned(), (*target_then).to_owned());
            let as_stream = target_then.starts_with("zfs:");
            let (generation, last_ms) = (None, *last_ms);
            let pushed = Pushed {
                source,
                leads_to: None,
                target: target_then,
                last_ms,
                generation,
                as_stream,
            };
            There::of(&pushed, &target)
        });
        let there: Vec<There> = there.collect();
        let origins: Vec<DatasetName> = origins.iter().map(|name| name.parse().unwrap()).collect();
        choose(&there, &origins).map(|(_, like)| like.to_owned())
    }

    #[test]
    fn only_what_is_at_the_same_place_is_like_it() {
        let pushed = [
            ("zfs:tank/golden", "golden@a:1", 5),
            ("zfs:tank/golden", "golden@b:1", 6),
            ("zfs:tank/golden", "golden@a:2", 7),
            ("zfs:tank/golden", "file:/srv/golden.img", 8),
            ("zfs:tank/golden", "zfs:back/golden", 9),
            ("zfs:tank/other", "other@a:1", 10),
            ("file:/golden", "plain@a:1", 11),
            ("zfs:tank/golden", "golden@dlp1no-address", 12),
            ("zfs:tank/golden", "nonsense", 13),
            ("nonsense", "x@a:1", 14),
        ];
        let of = |target| chosen(&pushed, target, &["tank/golden"]);
        assert_eq!(of("clone@a:1").as_deref(), Some("golden"));
        assert_eq!(of("clone@a:2").as_deref(), Some("golden"));
        assert_eq!(of("clone@c:1"), None);
        for local in ["file:/srv/clone.img", "zvol:back/clone"] {
            assert_eq!(of(local).as_deref(), Some("file:/srv/golden.img"));
        }
        // ZFS itself knows what its streams are like.
        assert_eq!(of("zfs:back/clone"), None);
        assert_eq!(chosen(&pushed, "clone@a:1", &["tank/none"]), None);
        assert_eq!(chosen(&pushed, "clone@a:1", &[]), None);
    }

    #[test]
    fn the_nearest_origin_counts_and_of_it_the_newest_replica() {
        let pushed = [
            ("zfs:tank/first", "first@h:1", 90),
            ("zfs:tank/second", "old@h:1", 10),
            ("zfs:tank/second", "new@h:1", 30),
            ("zfs:tank/second", "older@h:1", 20),
            ("zfs:tank/second", "elsewhere@h:2", 40),
        ];
        let of = |origins: &[&str]| chosen(&pushed, "clone@h:1", origins);
        assert_eq!(of(&["tank/third", "tank/second", "tank/first"]).as_deref(), Some("new"));
        assert_eq!(of(&["tank/third", "tank/first"]).as_deref(), Some("first"));
    }
}
