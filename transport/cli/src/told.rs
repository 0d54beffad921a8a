//! A change map, as `driftline map` tells it.

use std::io;

use driftline_drbd::Map;
use driftline_extent::{ChangeMap, Extent, ExtentSet, Reason, Standing, Volume};

/// A change map, as `driftline map` tells it.
pub(crate) struct Told {
    pub(crate) map: ChangeMap,
    /// Bytes that DRBD's bitmap names, and bytes that only its activity log names.
    pub(crate) drbd: Option<(u64, u64)>,
}

impl From<ChangeMap> for Told {
    fn from(map: ChangeMap) -> Self {
        Self { map, drbd: None }
    }
}

impl From<Map> for Told {
    fn from(Map { map, bitmap_bytes, activity_log_bytes }: Map) -> Self {
        Self { map, drbd: Some((bitmap_bytes, activity_log_bytes)) }
    }
}

/// All that a plain file can say: where its holes are.
pub(crate) fn plain_map(volume: &dyn Volume) -> io::Result<ChangeMap> {
    let size = volume.size();
    let mut changed = ExtentSet::new();
    let mut next = 0;
    while let Some(data) = volume.next_data(next)?.and_then(|data| data.clamp(size)) {
        changed.insert(data);
        next = data.end();
    }
    let whole: ExtentSet = Extent::new(0, size).into_iter().collect();
    Ok(ChangeMap {
        base: None,
        tip: None,
        size: Some(size),
        granularity: 1,
        zero: whole.subtract(&changed),
        changed,
        standing: Standing::Suspect(Reason::MapMissing),
    })
}
