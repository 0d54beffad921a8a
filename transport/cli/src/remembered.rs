//! What this machine remembers of targets: which generation of which source arrived there last.
//!
//! By that a target that is gone is told from one that never was. A likeness is found by it as well
//! (see [`crate::likeness`]). What cannot be read or written costs the check, and no run.

use std::path::Path;

use driftline_extent::{Generation, Takes};
use driftline_transport::Summary;
use driftline_trust::{Pushed, Pushes};

use crate::{clock::now_ms, place::Place};

/// What was pushed from here, or pulled to here.
pub(crate) fn pushes(dir: &Path) -> Pushes {
    Pushes::new(dir.join("pushed"))
}

/// Where a target is, in words that mean the same from any folder.
pub(crate) fn words(place: &Place) -> String {
    let absolute = match place {
        Place::File(path) => std::path::absolute(path).ok().map(Place::File),
        _ => None,
    };
    absolute.as_ref().unwrap_or(place).to_string()
}

/// Whether runs from this source are remembered. Whoever feeds a recorded stream knows what it is.
const fn is_remembered(source: &Place) -> bool {
    !matches!(source, Place::Stream(_) | Place::StandardInput)
}

/// Remembers what has arrived.
pub(crate) fn remember(dir: &Path, source: &Place, target: &Place, summary: &Summary) {
    let Some(before) = summary.before.as_ref().filter(|_| is_remembered(source)) else { return };
    let arrived = summary.increments.last().map(|(_, committed)| committed.generation);
    let pushed = Pushed {
        source: words(source),
        target: words(target),
        last_ms: now_ms(),
        generation: arrived.or(before.generation),
        as_stream: before.takes != Takes::Volume,
    };
    if let Err(error) = pushes(dir).keep(&pushed) {
        let target = pushed.target;
        tracing::info!(
            target, %error,
            "cannot remember this push: a target that is gone will look like a new one, and the \
             first copy of a clone needs --like"
        );
    }
}

/// The generation of this source that the target held when it was last seen.
pub(crate) fn held(dir: &Path, source: &Place, target: &Place) -> Option<Generation> {
    let pushed = pushes(dir).of(&words(target)).unwrap_or_else(|error| {
        tracing::info!(%target, %error, "cannot read what was pushed there");
        None
    });
    let same = pushed.filter(|pushed| is_remembered(source) && pushed.source == words(source));
    same.and_then(|pushed| pushed.generation)
}
