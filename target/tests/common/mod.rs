//! A replica in a folder of its own, and deliveries to it.
#![expect(dead_code, reason = "each test file uses its part of this")]

pub(crate) mod power;

use std::{fs, path::PathBuf};

use driftline_chunking::{ChunkKey, Chunked, Chunker, Scope, TreeHasher};
use driftline_extent::{
    CHUNK_LEN, Change, Committed, Finish, Generation, Item, Missing, Offer, Plan, PlanKind, Root,
    Standing, Target, VolumeId, chunk_count,
};
use driftline_target::{Disk, FileDisk, Options, Replica, TargetError, open};
use tempfile::TempDir;

pub(crate) const CHUNK: usize = CHUNK_LEN as usize;

/// A directory with a path for a replica in it.
pub(crate) struct Place {
    pub(crate) _dir: TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("replica.img");
    Place { _dir: dir, path }
}

impl Place {
    pub(crate) fn open(&self) -> Replica<FileDisk> {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> Result<Replica<FileDisk>, TargetError> {
        open(&self.path, &Options { create: true, ..Options::default() })
    }

    pub(crate) fn book(&self, name: &str) -> PathBuf {
        driftline_target::state_dir_of(&self.path).join(name)
    }

    /// Every byte of the replica and its books.
    pub(crate) fn everything(&self) -> Vec<Option<Vec<u8>>> {
        let books = ["state", "journal", "ids", "overlay", "repair"].map(|name| self.book(name));
        std::iter::once(&self.path).chain(&books).map(|path| fs::read(path).ok()).collect()
    }

    /// A replica of `volume` at generation 1.
    pub(crate) fn holding(volume: &[u8]) -> Self {
        let place = place();
        let mut replica = place.open();
        let (plan, changes) = (plan(PlanKind::Full, None, 1), whole(volume));
        deliver(&mut replica, plan, &changes, volume.len() as u64).unwrap();
        place
    }
}

pub(crate) fn plan(kind: PlanKind, base: Option<u64>, tip: u64) -> Plan {
    Plan {
        kind,
        volume: Some(VolumeId([1; 16])),
        base: base.map(Generation::zfs),
        tip: Some(Generation::zfs(tip)),
        size: None,
        standing: Standing::Proven,
        bytes_expected: 0,
    }
}

pub(crate) fn offer(plan: Plan) -> Offer {
    Offer { plan, overwrite: false }
}

pub(crate) fn key<D: Disk>(replica: &Replica<D>) -> ChunkKey {
    ChunkKey::new(&replica.state().chunk_key)
}

pub(crate) fn whole(volume: &[u8]) -> Vec<Change> {
    let chunks = volume.chunks(CHUNK).enumerate();
    let changes =
        chunks.map(|(i, c)| Change::Data { offset: (i * CHUNK) as u64, bytes: c.to_vec() });
    changes.collect()
}

pub(crate) fn items(
    key: &ChunkKey,
    kind: PlanKind,
    changes: &[Change],
    size: u64,
    from: u64,
) -> (Vec<Chunked>, Option<Root>) {
    let scope = if kind == PlanKind::Incremental { Scope::Increment } else { Scope::Whole };
    let mut chunker = Chunker::new(key, scope, from);
    changes.iter().for_each(|change| chunker.push(change).unwrap());
    let root = chunker.finish(Some(size)).unwrap();
    (std::iter::from_fn(|| chunker.poll()).collect(), root)
}

/// Delivers an increment and returns how many bytes of data moved.
pub(crate) fn deliver<D: Disk>(
    replica: &mut Replica<D>,
    plan: Plan,
    changes: &[Change],
    size: u64,
) -> Result<u64, TargetError> {
    Ok(deliver_all(replica, plan, changes, size)?.0)
}

/// Also returns what the replica says of it.
pub(crate) fn deliver_all<D: Disk>(
    replica: &mut Replica<D>,
    plan: Plan,
    changes: &[Change],
    size: u64,
) -> Result<(u64, Committed), TargetError> {
    let (kind, tip) = (plan.kind, plan.tip.unwrap());
    let from = replica.begin(&offer(plan))?.from;
    let (items, root) = items(&key(replica), kind, changes, size, from);
    let mut moved = 0;
    for chunked in items {
        moved += put(replica, &chunked)?;
    }
    Ok((moved, replica.commit(&Finish { tip, size: Some(size), root })?))
}

pub(crate) fn put<D: Disk>(
    replica: &mut Replica<D>,
    chunked: &Chunked,
) -> Result<u64, TargetError> {
    let Chunked { item, data } = chunked;
    let missing = replica.missing(&[*item])?.remove(0);
    match (missing, *item) {
        (Missing::Unlike(theirs), Item::Chunk { data: mask, .. }) => {
            let grains = key(replica).unlike(mask, data, &theirs);
            let ranges = mask.by_grain().filter(|(grain, _)| grain.is_within(grains));
            let differs: Vec<u8> = ranges.flat_map(|(_, range)| data[range].to_vec()).collect();
            assert!(replica.patch(item, grains, &differs)?);
            replica.apply(item, None)?;
            Ok(differs.len() as u64)
        }
        (Missing::All, _) if !data.is_empty() => {
            replica.apply(item, Some(data))?;
            Ok(data.len() as u64)
        }
        _ => {
            replica.apply(item, None)?;
            Ok(0)
        }
    }
}

pub(crate) fn naive_root(key: &ChunkKey, volume: &[u8]) -> Root {
    let mut padded = volume.to_vec();
    padded.resize(chunk_count(volume.len() as u64) as usize * CHUNK, 0);
    let mut tree = TreeHasher::new(key);
    padded.chunks(CHUNK).for_each(|chunk| tree.push(key.id(chunk)));
    tree.into_root(volume.len() as u64)
}

pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251) as u8 ^ (i as u8).wrapping_mul(seed) ^ seed).collect()
}

/// Closes a replica and opens it again.
pub(crate) fn place_again(place: &Place, replica: Replica<FileDisk>) -> Replica<FileDisk> {
    drop(replica);
    place.open()
}
