//! What differs between two snapshots of a volume of ZFS, by the stream from one to the other.

use driftline_drbd::PoolDelta;
use driftline_extent::{ChangeMap, Generation, Source};
use driftline_zfs::{
    PointName, ZvolStream,
    host::{SendRequest, Zfs},
};

/// Reads the whole stream for its headers alone: nothing shorter tells of blocks.
pub(crate) fn zvol_delta(base: &str, tip: &str) -> Result<PoolDelta, String> {
    map_of(base, tip).map(of_map).map_err(|error| format!("{error:#}"))
}

fn map_of(base: &str, tip: &str) -> anyhow::Result<ChangeMap> {
    let [base, tip]: [PointName; 2] = [base.parse()?, tip.parse()?];
    let zfs = Zfs::find()?;
    let points = zfs.points(tip.dataset())?;
    let guid = points.iter().find(|point| point.name == base).map(|point| point.guid);
    let Some(guid) = guid else { anyhow::bail!("{base} is gone") };
    let from = Generation::zfs(guid);
    let mut stream =
        ZvolStream::new(zfs.send(&SendRequest { base: Some(base), ..SendRequest::full(tip) })?);
    let map = stream.plan(Some(&from)).and_then(|_| stream.change_map());
    // What the sender says of a stream that it did not finish is nearer to the cause.
    let sent = stream.into_inner().finish();
    match map {
        Ok(map) if map.base == Some(from) => sent.map(|_| map).map_err(Into::into),
        Ok(_) => anyhow::bail!("the stream does not start from {from}"),
        Err(error) => Err(sent.err().map_or_else(|| error.into(), Into::into)),
    }
}

fn of_map(map: ChangeMap) -> PoolDelta {
    let ChangeMap { granularity, changed, zero, .. } = map;
    PoolDelta { granularity, changed, holes: zero }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path};

    use super::*;

    /// The increment of a real stream, which rewrites five blocks of 16 KiB.
    #[test]
    fn the_delta_is_the_streams_map() {
        let path = "../../tests/data/zfs/lz4-16k.1-2.zs";
        let file = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let map = ZvolStream::new(file).next_map().unwrap().unwrap();
        let zero = map.zero.clone();
        let delta = of_map(map);
        assert_eq!((delta.granularity, delta.changed.byte_count()), (16 << 10, 80 << 10));
        assert_eq!(delta.holes, zero);
    }
}
