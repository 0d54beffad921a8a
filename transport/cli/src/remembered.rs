//! What this machine remembers of targets: which generation of which source arrived there last.
//!
//! By that a target that is gone is told from one that never was. A seed is found by it as well
//! (see [`crate::seed`]). A place has several spellings, and each target a record under each of
//! its own: whichever is written, one of them is found.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf, absolute},
};

use driftline_extent::Accepts;
use driftline_transport::{Summary, chain, deliver::LastSeen};
use driftline_trust::{Pushed, Pushes};
use driftline_wire::PublicKey;

use crate::{args::Peer, clock::now_ms, place::Place};

/// How many links a path is followed through, as the kernel has it.
const LINKS_MAX: usize = 40;

/// What was pushed from here, or pulled to here.
pub(crate) fn pushes(dir: &Path) -> Pushes {
    Pushes::new(dir.join("pushed"))
}

/// A place in words that mean the same from any folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spellings {
    /// As it was written, with a whole path.
    pub(crate) written: String,
    /// Where that leads to, if it is not the same: a path without links, or a volume of the peer
    /// with this key, at whichever address.
    pub(crate) leads_to: Option<String>,
}

impl Spellings {
    /// Those of this place. Where it is remote, it is this peer's.
    pub(crate) fn of(place: &Place, peer: &Peer) -> Self {
        let written = words(&with_paths(place, |path| absolute(path)));
        let leads_to = match place {
            Place::Remote { volume, .. } => {
                let key = peer.peer.as_ref().and_then(|key| key.parse::<PublicKey>().ok());
                key.map(|key| words(&format_args!("{volume}@{key}")))
            }
            local => Some(words(&with_paths(local, resolved))),
        };
        Self { leads_to: leads_to.filter(|other| *other != written), written }
    }

    /// All of them, what says most first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        [self.leads_to.as_deref(), Some(self.written.as_str())].into_iter().flatten()
    }

    /// Whether this is what was pushed then.
    fn is_source_of(&self, pushed: &Pushed) -> bool {
        let then = [Some(&pushed.source), pushed.leads_to.as_ref()];
        self.all().any(|now| then.into_iter().flatten().any(|then| then == now))
    }
}

/// A place in words that a record takes: what would end its line is replaced.
fn words(place: &dyn std::fmt::Display) -> String {
    place.to_string().replace(char::is_control, "\u{fffd}")
}

/// The same place by other names of the files that it names.
fn with_paths(place: &Place, rename: impl Fn(&Path) -> io::Result<PathBuf>) -> Place {
    let rename = |path: &PathBuf| rename(path).unwrap_or_else(|_| path.clone());
    match place {
        Place::File(path) => Place::File(rename(path)),
        Place::Drbd { path, meta, index } => {
            Place::Drbd { path: rename(path), meta: meta.as_ref().map(rename), index: *index }
        }
        other => other.clone(),
    }
}

/// The path without links, also if nothing is there any more. Below `/dev` the links are the names
/// that stay, and what they lead to may be another device after the next start.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut waiting = parts(&absolute(path)?);
    let (mut done, mut links) = (PathBuf::new(), 0);
    while let Some(part) = waiting.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(part);
        if links < LINKS_MAX
            && !done.starts_with("/dev")
            && let Ok(to) = fs::read_link(&done)
        {
            links += 1;
            done.pop();
            waiting.extend(parts(&to));
        }
    }
    Ok(done)
}

/// Whether runs from this source are remembered. Whoever feeds a recorded stream knows what it is.
const fn is_remembered(source: &Place) -> bool {
    !matches!(source, Place::Stream(_) | Place::StandardInput)
}

/// Remembers what has arrived. That it cannot be written fails no run: the next one has the target.
pub(crate) fn remember(dir: &Path, [source, target]: [&Place; 2], peer: &Peer, summary: &Summary) {
    let Some(before) = summary.before.as_ref().filter(|_| is_remembered(source)) else { return };
    let arrived = summary.increments.last().map(|(_, committed)| committed.generation);
    let Spellings { written, leads_to } = Spellings::of(source, peer);
    for target in Spellings::of(target, peer).all() {
        let pushed = Pushed {
            source: written.clone(),
            leads_to: leads_to.clone(),
            target: target.to_owned(),
            last_ms: now_ms(),
            generation: arrived.or(before.generation),
            as_stream: before.accepts != Accepts::Volume,
        };
        if let Err(error) = pushes(dir).keep(&pushed) {
            tracing::warn!(
                target, folder = %dir.display(), %error,
                "cannot remember this push in the trust folder: make the folder writable, or name \
                 another with --trust-dir. Until then a target that is gone looks like a new one, \
                 and the first copy of a clone needs --like"
            );
            return;
        }
    }
}

/// The generation of this source that the target held when it was last seen.
pub(crate) fn last_seen(dir: &Path, [source, target]: [&Place; 2], peer: &Peer) -> LastSeen {
    if !is_remembered(source) {
        return LastSeen::Nothing;
    }
    let source = Spellings::of(source, peer);
    let (mut last, mut unknown): (Option<Pushed>, _) = (None, None);
    for spelling in Spellings::of(target, peer).all() {
        match pushes(dir).of(spelling) {
            // Another source may have arrived there since, under the other spelling.
            Ok(Some(found)) => match &last {
                Some(last) if source.is_source_of(last) || last.last_ms > found.last_ms => {}
                _ => last = Some(found),
            },
            Ok(None) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    %target, error,
                    "cannot tell what this target held when it was last seen: the next run that goes \
                     well writes the record anew, and a target that holds nothing is refused"
                );
                unknown = Some(error);
            }
        }
    }
    let same = last.filter(|pushed| source.is_source_of(pushed));
    match (same.and_then(|pushed| pushed.generation), unknown) {
        (Some(generation), _) => LastSeen::Held(generation),
        (None, Some(why)) => LastSeen::Unknown(why),
        (None, None) => LastSeen::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn spelled(text: &str, peer: Option<&str>) -> Spellings {
        let peer = Peer { key: None, peer: peer.map(str::to_owned) };
        Spellings::of(&text.parse().unwrap(), &peer)
    }

    #[test]
    fn a_path_leads_to_one_place_also_if_nothing_is_there() {
        let dir = TempDir::new().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir(dir.join("real")).unwrap();
        symlink("real", dir.join("link")).unwrap();
        symlink("gone/../real/r.img", dir.join("r")).unwrap();
        symlink(dir.join("loop"), dir.join("loop")).unwrap();
        let real = dir.join("real/r.img");
        for path in ["real/r.img", "link/r.img", "link/../real/./r.img/", "real//r.img", "r"] {
            assert_eq!(resolved(&dir.join(path)).unwrap(), real, "{path}");
        }
        assert_eq!(resolved(&dir.join("loop")).unwrap(), dir.join("loop"));
        // A mount that is missing changes no name.
        fs::remove_dir(dir.join("real")).unwrap();
        assert_eq!(resolved(&dir.join("link/r.img")).unwrap(), real);
        let here = format!("drbdmeta:{0}/link/a,meta={0}/real/b,index=7", dir.display());
        let led = format!("drbdmeta:{0}/real/a,meta={0}/real/b,index=7", dir.display());
        assert_eq!(spelled(&here, None), Spellings { written: here, leads_to: Some(led) });
        // What udev's links lead to is no name that stays.
        let device = Path::new("/dev/disk/by-id/x");
        assert_eq!(resolved(device).unwrap(), device);
    }

    #[test]
    fn a_peer_is_told_by_its_key_and_by_its_address() {
        let key = driftline_wire::SecretKey::from_random([7; 32]).public().to_string();
        let led = Some(format!("vm@{key}"));
        for address in ["localhost:7420", "LOCALHOST:7420", "127.0.0.1:7420", "[::1]:7420"] {
            let spelled = spelled(&format!("vm@{address}"), Some(&key));
            assert_eq!((spelled.written, &spelled.leads_to), (format!("vm@{address}"), &led));
        }
        assert_eq!(spelled("vm@a:1", None).leads_to, None);
        assert_eq!(spelled("zfs:tank/a", Some(&key)).leads_to, None);
        assert_eq!(spelled("file:/a\nb", None).written, "file:/a\u{fffd}b");
    }
}
