//! The snapshot that arrived last, kept so that the pool can tell what differs from it.
//!
//! It is believed to be what the target holds only if it is the very snapshot that was taken
//! under its name, and DRBD's metadata in it are of the target's generation. Where it is not,
//! nothing is lost but the check: DRBD's map is proven by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_extent::{ExtentSet, Generation};

use super::{LiveError, snapshot::open_snapshot};
use crate::{
    CrossCheck, PoolDelta, Superblock,
    host::{Found, HostError, Identity, Store, Stores},
    superblock::same,
};

/// Extents of what DRBD missed that are told one by one.
const TOLD_MAX: usize = 8;

/// What differs between two snapshots of ZFS, by their whole names, or why that is not known. To
/// read its streams is not DRBD's business.
pub type ZvolDelta = fn(&str, &str) -> Result<PoolDelta, String>;

/// What came of a cross-check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrossChecked {
    /// What the increment starts from.
    pub base: Generation,
    /// What the increment led to.
    pub tip: Generation,
    /// Bytes that differ by the pool's own account.
    pub pool_bytes: u64,
    /// Bytes that DRBD's map names.
    pub map_bytes: u64,
    /// What differs in units that DRBD's map does not touch. Any is a finding.
    pub missed: ExtentSet,
}

impl CrossChecked {
    pub(super) fn of(base: Generation, tip: Generation, check: &CrossCheck) -> Self {
        let CrossCheck { missed, pool_bytes, map_bytes, .. } = check;
        let missed = missed.clone();
        Self { base, tip, pool_bytes: *pool_bytes, map_bytes: *map_bytes, missed }
    }
}

/// What came of the cross-checks of one source.
#[derive(Clone, Debug, Default)]
pub struct CrossChecks(Arc<Mutex<Vec<CrossChecked>>>);

impl CrossChecks {
    /// Those so far, one for each increment that was checked.
    pub fn list(&self) -> Vec<CrossChecked> {
        self.lock().clone()
    }

    pub(super) fn add(&self, check: CrossChecked) {
        self.lock().push(check);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<CrossChecked>> {
        // Nothing in here panics half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is nothing to hold DRBD's map against.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotChecked {
    #[error("no snapshot of what the target holds was kept")]
    NotKept,
    #[error("{name} is not the snapshot that was taken under that name")]
    OtherSnapshot { name: String },
    #[error("DRBD's metadata in {name} are of {is}, and the target holds {holds}")]
    OtherGeneration { name: String, is: Generation, holds: Generation },
    #[error("the volume in {name} is of another size")]
    OtherSize { name: String },
    #[error("{name} cannot be read: {error}")]
    Unread { name: String, error: LiveError },
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("ZFS does not tell what differs: {0}")]
    Zfs(String),
}

impl NotChecked {
    pub(super) fn tell(&self, volume: &str) {
        match self {
            // As it is of a first run, and of one that did not arrive at once.
            Self::NotKept => tracing::info!(volume, "not cross-checked: {self}"),
            _ => tracing::warn!(volume, "not cross-checked, using DRBD's map alone: {self}"),
        }
    }
}

/// What is asked about the snapshots of a backing device.
pub(super) trait Pool {
    fn identity(&self, name: &str) -> Result<Identity, HostError>;
    /// What DRBD's metadata in it say.
    fn superblock(&self, name: &str) -> Result<Superblock, LiveError>;
    /// What differs between these two.
    fn delta(&self, base: &str, tip: &str) -> Result<PoolDelta, NotChecked>;
}

/// What the pool says differs between the kept snapshot and the tip. The kept one has to be that
/// of the generation `holds`.
pub(super) fn delta_from(
    pool: &impl Pool,
    kept: Option<&str>,
    holds: u64,
    (tip, at_tip): (&str, &Superblock),
) -> Result<PoolDelta, NotChecked> {
    let base = kept.ok_or(NotChecked::NotKept)?;
    let name = || base.to_owned();
    if !pool.identity(base)?.is_same() {
        return Err(NotChecked::OtherSnapshot { name: name() });
    }
    let at_base = pool.superblock(base);
    let at_base = at_base.map_err(|error| NotChecked::Unread { name: name(), error })?;
    if !same(at_base.current_uuid, holds) {
        let [is, holds] = [at_base.current_uuid, holds].map(Generation::drbd);
        return Err(NotChecked::OtherGeneration { name: name(), is, holds });
    }
    if at_base.effective_size != at_tip.effective_size {
        return Err(NotChecked::OtherSize { name: name() });
    }
    pool.delta(base, tip)
}

/// The real one.
pub(super) struct RealPool<'a> {
    pub(super) stores: &'a Stores,
    pub(super) zvol_delta: ZvolDelta,
}

impl Pool for RealPool<'_> {
    fn identity(&self, name: &str) -> Result<Identity, HostError> {
        self.stores.data.identity(name)
    }

    fn superblock(&self, name: &str) -> Result<Superblock, LiveError> {
        let volume = open_snapshot(self.stores, name)?;
        volume.check()?;
        Ok(volume.metadata().superblock.clone())
    }

    fn delta(&self, base: &str, tip: &str) -> Result<PoolDelta, NotChecked> {
        match &self.stores.data {
            Store::Lvm(volume) => Ok(volume.delta(base, tip)?),
            Store::Zvol(volume) => {
                (self.zvol_delta)(&volume.of(base), &volume.of(tip)).map_err(NotChecked::Zfs)
            }
        }
    }
}

/// Tells what was found between two snapshots.
pub(super) fn tell(found: &Found, [base, tip]: [&str; 2], check: &CrossCheck) {
    let volume = found.name();
    let CrossCheck { missed, pool_bytes, map_bytes, .. } = check;
    if missed.is_empty() {
        tracing::info!(
            volume,
            pool_bytes,
            map_bytes,
            "DRBD's map includes everything that differs in the pool"
        );
        return;
    }
    let (missed_bytes, at) = (missed.byte_count(), offsets(missed));
    let device = found.backing.display();
    tracing::warn!(
        volume,
        base,
        tip,
        missed_bytes,
        at,
        "the pool says that these bytes differ, and DRBD's map does not name them; they are sent \
         nevertheless: see what writes to {device} but through {}, and whether DRBD's metadata \
         were restored or its activity log is off (al-updates no)",
        found.device()
    );
}

/// The first extents, as offset and length.
fn offsets(extents: &ExtentSet) -> String {
    let told = extents.iter().take(TOLD_MAX);
    let told: Vec<String> =
        told.map(|extent| format!("{}+{}", extent.offset(), extent.len())).collect();
    match extents.extent_count().saturating_sub(TOLD_MAX) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use driftline_extent::{
        Accepts, Change, Extent, PlanKind, ReplicaId, Source as _, TargetState, Volume as _,
    };

    use super::*;
    use crate::{
        DrbdError, DrbdVolume, Layout, Metadata, Record,
        testing::{SparseDisk, Spec},
    };

    const BASE: u64 = 0x0bbb_0000_0000_0000;
    const TIP: u64 = 0x0ccc_0000_0000_0000;
    const UNIT: u64 = 64 << 10;

    struct Fake {
        identity: Identity,
        superblock: Option<Superblock>,
        delta: PoolDelta,
        asked: Cell<bool>,
    }

    impl Pool for Fake {
        fn identity(&self, _: &str) -> Result<Identity, HostError> {
            Ok(self.identity.clone())
        }

        fn superblock(&self, _: &str) -> Result<Superblock, LiveError> {
            self.superblock.clone().ok_or(LiveError::Unplanned)
        }

        fn delta(&self, base: &str, tip: &str) -> Result<PoolDelta, NotChecked> {
            assert_eq!((base, tip), ("kept", "tip"));
            self.asked.set(true);
            Ok(self.delta.clone())
        }
    }

    fn extents(units: &[u64]) -> ExtentSet {
        units.iter().filter_map(|unit| Extent::new(unit * UNIT, UNIT)).collect()
    }

    fn superblock_of(current: u64) -> Superblock {
        let disk = Spec::primary(true, 1 << 60, current).to_disk();
        Metadata::read(&disk, Layout::Internal, disk.size()).unwrap().superblock
    }

    fn fake(changed: &[u64]) -> Fake {
        let (changed, holes) = (extents(changed), ExtentSet::new());
        Fake {
            identity: Identity { now: "7".into(), then: Some("7".into()) },
            superblock: Some(superblock_of(BASE)),
            delta: PoolDelta { granularity: UNIT, changed, holes },
            asked: Cell::new(false),
        }
    }

    /// A volume of which DRBD names the block 16 and the blocks 320 and 321: units 1 and 20.
    fn tip() -> DrbdVolume {
        let mut spec = Spec::primary(true, BASE, TIP);
        spec.bits[0] = [16, 320, 321].into();
        spec.log.write(&[]);
        rotated(&spec.to_disk())
    }

    /// A rotated snapshot, after another one of the same device at the base.
    fn rotated(disk: &SparseDisk) -> DrbdVolume {
        let mut volume = DrbdVolume::open(Arc::new(disk.clone()), None).unwrap().rotated(true);
        let of_tip = Record::of(volume.metadata(), true);
        volume.recall(Some(&Record { current_uuid: BASE, logged: true, ..of_tip }.encode()));
        volume
    }

    fn holding(generation: Generation, size: u64) -> TargetState {
        TargetState {
            replica: ReplicaId([1; 16]),
            chunk_key: [2; 32],
            volume: None,
            generation: Some(generation),
            root: None,
            size,
            incomplete: false,
            damaged: false,
            resume: None,
            accepts: Accepts::Volume,
        }
    }

    /// What a run would send, and what it would tell.
    fn run(pool: &Fake) -> Result<(ExtentSet, CrossChecked), NotChecked> {
        let mut tip = tip();
        let holds = Generation::drbd(BASE);
        let size = tip.metadata().superblock.effective_size;
        tip.learn(&holding(holds, size));
        assert_eq!(tip.plan(Some(&holds)).unwrap().kind, PlanKind::Incremental);
        let at_tip = tip.metadata().superblock.clone();
        let delta = delta_from(pool, Some("kept"), BASE, ("tip", &at_tip))?;
        let check = tip.cross_check(&delta).unwrap();
        let mut sent = ExtentSet::new();
        while let Some(change) = tip.next_change(0).unwrap() {
            let (Change::Data { .. } | Change::Zero(_)) = change else { panic!("{change:?}") };
            sent.insert(change.extent().unwrap());
        }
        Ok((sent, CrossChecked::of(Generation::drbd(BASE), Generation::drbd(TIP), &check)))
    }

    #[test]
    fn where_both_agree_the_units_of_the_pool_are_sent() {
        let (sent, told) = run(&fake(&[1])).unwrap();
        assert_eq!(sent, extents(&[1]));
        assert_eq!(
            (told.pool_bytes, told.map_bytes, told.missed.byte_count()),
            (UNIT, 3 * 4096, 0)
        );
    }

    #[test]
    fn what_drbd_missed_is_counted_and_sent_with_all_the_rest() {
        let (sent, told) = run(&fake(&[1, 3])).unwrap();
        let blocks = Extent::new(320 * 4096, 2 * 4096);
        assert_eq!(sent, extents(&[1, 3]).union(&blocks.into_iter().collect()));
        assert_eq!((told.pool_bytes, told.missed.byte_count()), (2 * UNIT, UNIT));
    }

    /// ZFS names large holes that were there before, and nothing is read of them.
    #[test]
    fn holes_are_sent_as_such() {
        let mut spec = Spec::primary(true, BASE, TIP);
        spec.log.write(&[]);
        let mut disk = spec.to_disk();
        for unit in [4, 5, 6] {
            disk.put(unit * UNIT, &[7; UNIT as usize]);
        }
        let mut tip = rotated(&disk);
        let holds = Generation::drbd(BASE);
        tip.learn(&holding(holds, tip.metadata().superblock.effective_size));
        tip.plan(Some(&holds)).unwrap();
        let delta = PoolDelta { holes: extents(&[2, 5, 9]), ..fake(&[4, 6]).delta };
        let check = tip.cross_check(&delta).unwrap();
        assert_eq!((check.pool_bytes, check.holes.byte_count()), (2 * UNIT, 3 * UNIT));
        let mut found = Vec::new();
        while let Some(change) = tip.next_change(0).unwrap() {
            let extent = change.extent().unwrap();
            found.push((extent.offset() / UNIT, matches!(change, Change::Zero(_))));
        }
        found.dedup();
        assert_eq!(found, [(2, true), (4, false), (5, true), (6, false), (9, true)]);
        assert_eq!(tip.bytes_read(), 2 * UNIT);
    }

    #[test]
    fn only_the_snapshot_of_what_the_target_holds_is_compared_with() {
        let now = |then: Option<&str>| Identity { now: "7".into(), then: then.map(str::to_owned) };
        let mut grown = superblock_of(BASE);
        grown.effective_size += 4096;
        for (fake, says) in [
            (Fake { identity: now(None), ..fake(&[]) }, "under that name"),
            (Fake { identity: now(Some("8")), ..fake(&[]) }, "under that name"),
            (Fake { superblock: None, ..fake(&[]) }, "cannot be read"),
            (Fake { superblock: Some(superblock_of(TIP)), ..fake(&[]) }, "the target holds"),
            (Fake { superblock: Some(grown), ..fake(&[]) }, "another size"),
        ] {
            let error = run(&fake).unwrap_err().to_string();
            assert!(error.contains(says) && !fake.asked.get(), "{error}");
        }
        let at_tip = superblock_of(TIP);
        let none = delta_from(&fake(&[]), None, BASE, ("tip", &at_tip));
        assert!(matches!(none, Err(NotChecked::NotKept)));
        // The lowest bit of a UUID says that the device is Primary.
        let primary = Fake { superblock: Some(superblock_of(BASE | 1)), ..fake(&[]) };
        assert!(run(&primary).is_ok());
    }

    #[test]
    fn nothing_is_checked_where_nothing_is_planned() {
        assert_eq!(tip().cross_check(&fake(&[1]).delta), None);
        assert!(matches!(tip().next_change(0), Err(DrbdError::Unplanned)));
    }

    #[test]
    fn few_of_many_extents_are_told() {
        assert_eq!(offsets(&extents(&[1, 2, 4])), "65536+131072, 262144+65536");
        let many: Vec<u64> = (0..20).map(|unit| unit * 2).collect();
        assert!(offsets(&extents(&many)).ends_with(" and 12 more"));
    }
}
