//! An image with its metadata as a source of increments.

use std::{fmt, io, sync::Arc};

use driftline_extent::{
    BLOCK_LEN, CHUNK_LEN, Change, Extent, ExtentSet, Finish, Generation, Plan, PlanKind, Reason,
    Scheme, Source, Standing, TargetState, Volume,
};

use crate::{
    Base, CrossCheck, Doubt, DrbdError, Layout, Map, Metadata, PoolDelta, Record, cross_check,
    judge, map, superblock::named, trust::check_image,
};

/// Bytes that are read at once: a chunk, as that is what they are cut into.
const READ_LEN: u64 = CHUNK_LEN;

/// A snapshot of a DRBD device's backing storage, or a device that is down, with the metadata
/// that belongs to it.
///
/// Plans an increment where [`judge`] proves one, and otherwise a scan of a volume that the
/// target's generation is in the history of. Whatever is of another history is refused. Its
/// generation is named by its current UUID where it was [`rotated`](Self::rotated), and otherwise by
/// its content.
pub struct DrbdVolume {
    data: Arc<Data>,
    meta: Arc<dyn Volume + Send + Sync>,
    layout: Layout,
    metadata: Metadata,
    overwrite: bool,
    /// Whether the bitmap was started anew at the instant of this image, under a new UUID.
    rotated: bool,
    /// What was kept of what the target holds.
    record: Option<Record>,
    /// Size of what the target holds.
    base_size: Option<u64>,
    /// Whether this run's increment was planned: there is no second one.
    planned: bool,
    /// What is left to deliver.
    todo: Option<ExtentSet>,
    /// What of that reads as zeros, as whoever stores it says.
    holes: ExtentSet,
    /// The run of data that the next change lies in, or the one that follows.
    run: Option<Extent>,
    next: u64,
    bytes_read: u64,
}

impl DrbdVolume {
    /// The volume whose data is at the start of `data`, with its metadata there as well, or on
    /// `meta` if that is given. Both must be of the same instant.
    ///
    /// # Errors
    /// If there is no metadata, or it makes no sense.
    pub fn open(
        data: Arc<dyn Volume + Send + Sync>,
        meta: Option<(Arc<dyn Volume + Send + Sync>, Layout)>,
    ) -> Result<Self, DrbdError> {
        let (meta, layout) = meta.unwrap_or_else(|| (data.clone(), Layout::Internal));
        let metadata = Metadata::read(meta.as_ref(), layout, data.size())?;
        let size = metadata.superblock.effective_size;
        Ok(Self {
            data: Arc::new(Data { device: data, size }),
            meta,
            layout,
            metadata,
            overwrite: false,
            rotated: false,
            record: None,
            base_size: None,
            planned: false,
            todo: None,
            holes: ExtentSet::new(),
            run: None,
            next: 0,
            bytes_read: 0,
        })
    }

    /// Whether the user has agreed to a copy over whatever the target holds. Then everything is
    /// compared, also where a map could be proven: what the target holds may not be what was
    /// committed to it.
    pub const fn allow_full(mut self, allow: bool) -> Self {
        self.overwrite = allow;
        self
    }

    /// Whether whoever took the snapshot vouches for it that the bitmap was cleared under a new
    /// current UUID right afterwards, before anything else was written. Only then the current UUID
    /// names this image, and not others as well; otherwise its content does.
    pub const fn rotated(mut self, rotated: bool) -> Self {
        self.rotated = rotated;
        self
    }

    /// That it is an image of one instant, with a name.
    ///
    /// # Errors
    /// [`DrbdError::Unusable`] of a device that was being overwritten, or never had data.
    pub fn check(&self) -> Result<(), DrbdError> {
        let unusable = |doubt| DrbdError::Unusable { doubt, holds: None };
        check_image(&self.metadata.superblock).map_err(unusable)
    }

    /// Holds the map of the increment that is planned against what the pool says, and goes by
    /// what comes of that from now on.
    pub(crate) fn cross_check(&mut self, delta: &PoolDelta) -> Option<CrossCheck> {
        let check = cross_check(delta, self.todo.as_ref()?, self.data.size);
        (self.todo, self.holes) = (Some(check.map.clone()), check.holes.clone());
        Some(check)
    }

    /// The metadata.
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The data alone, for reading at random.
    pub fn volume(&self) -> Arc<dyn Volume + Send + Sync> {
        self.data.clone()
    }

    /// What has changed since each generation that a bitmap records from, and whether that is
    /// to be believed of a base that is a rotated snapshot of this node, with the same slots and the
    /// same size. If no bitmap records, one map of everything.
    pub fn maps(&self) -> Result<Vec<Map>, DrbdError> {
        let mut maps = Vec::new();
        for peer in &self.metadata.superblock.peers {
            let Some(slot) = peer.slot.filter(|_| named(peer.bitmap_uuid)) else { continue };
            let mut map = self.metadata.map(self.meta.as_ref(), slot)?;
            let record = Record {
                current_uuid: peer.bitmap_uuid,
                logged: true,
                ..Record::of(&self.metadata, true)
            };
            let base = Base { uuid: peer.bitmap_uuid, size: map.map.size, record: Some(&record) };
            map.map.standing = match judge(&base, &self.metadata) {
                Ok(_) => Standing::Proven,
                Err(doubt) => doubt.standing(),
            };
            maps.push(map);
        }
        if maps.is_empty() {
            let doubt = check_image(&self.metadata.superblock).err();
            let mut whole = map::whole(&self.metadata);
            whole.map.standing = doubt.unwrap_or(Doubt::SlotCleared).standing();
            maps.push(whole);
        }
        Ok(maps)
    }

    /// How to get to this tip from `base`, and what to believe of it.
    fn choose(&self, base: &Generation) -> Result<Way, DrbdError> {
        let tip = &self.metadata.superblock;
        let judged = match base.drbd_uuid() {
            Some(uuid) => {
                let base = Base { uuid, size: self.base_size, record: self.record.as_ref() };
                judge(&base, &self.metadata).map(|proof| proof.slot)
            }
            // What was kept with that content says whether it is of this volume.
            None if base.scheme() == Scheme::CONTENT => match &self.record {
                Some(record) if tip.descends_from(record.current_uuid) => Err(Doubt::NotRotated),
                _ => Err(Doubt::BaseMismatch { tip: tip.current_uuid }),
            },
            None => Err(Doubt::BaseMismatch { tip: tip.current_uuid }),
        };
        match judged {
            Ok(_) if self.overwrite => Ok(Way::Scan { base: None, standing: Standing::Proven }),
            Ok(slot) => Ok(Way::Increment { slot }),
            Err(doubt) if self.overwrite => {
                Ok(Way::Scan { base: None, standing: doubt.standing() })
            }
            Err(doubt @ Doubt::BaseMismatch { .. }) => {
                Err(DrbdError::Unusable { doubt, holds: Some(*base) })
            }
            Err(doubt) => {
                tracing::info!("{doubt}");
                // Without a rotation there never is a map, and nothing was found wrong.
                let standing = match doubt {
                    Doubt::NotRotated => Standing::Suspect(Reason::MapMissing),
                    doubt => doubt.standing(),
                };
                Ok(Way::Scan { base: Some(*base), standing })
            }
        }
    }

    /// Plans to compare everything, whatever the metadata proves. The target must hold `base`,
    /// if that is given.
    pub(crate) fn plan_scan(
        &mut self,
        base: Option<Generation>,
        standing: Standing,
    ) -> Result<Plan, DrbdError> {
        self.check()?;
        self.planned = true;
        Ok(self.plan_of(PlanKind::Scan, base, standing))
    }

    fn plan_of(&self, kind: PlanKind, base: Option<Generation>, standing: Standing) -> Plan {
        let size = self.metadata.superblock.effective_size;
        Plan {
            kind,
            volume: None,
            base,
            tip: self.rotated.then(|| self.tip()),
            size: Some(size),
            standing,
            bytes_expected: size,
        }
    }

    /// Reads the metadata again: if it has changed, so may have the data, and what was delivered is
    /// of no instant.
    fn check_unchanged(&self) -> Result<(), DrbdError> {
        let again = Metadata::read(self.meta.as_ref(), self.layout, self.data.device.size())?;
        if again == self.metadata { Ok(()) } else { Err(DrbdError::Changed) }
    }

    fn tip(&self) -> Generation {
        Generation::drbd(self.metadata.superblock.current_uuid)
    }

    /// What to deliver next: a piece of data, or a whole hole.
    fn next_piece(&mut self, from: u64) -> io::Result<Option<Piece>> {
        let Some(todo) = &self.todo else { return Ok(None) };
        let Some(rest) = todo.first_from(self.next.max(from)) else { return Ok(None) };
        let rest = match self.holes.first_from(rest.offset()) {
            Some(hole) if hole.contains(rest.offset()) => {
                let extent = rest.intersect(&hole);
                return Ok(extent.map(|extent| Piece { extent, is_hole: true }));
            }
            Some(hole) => rest.split_at(hole.offset()).0.unwrap_or(rest),
            None => rest,
        };
        // Where data ends is asked once for each run of it: some file systems look at every
        // page to find out.
        if self.run.is_none_or(|run| run.end() <= rest.offset()) {
            let run = self.data.next_data(rest.offset())?;
            // What follows the last data is a hole up to the end.
            let run = run.map(|run| run.align_out(BLOCK_LEN));
            self.run = run.or_else(|| Extent::new(self.data.size, 1));
        }
        let data = self.run.map_or_else(|| rest.offset(), |run| run.offset());
        Ok(match rest.split_at(data) {
            (Some(hole), _) => Some(Piece { extent: hole, is_hole: true }),
            (None, rest) => {
                let within = rest.and_then(|rest| rest.intersect(&self.run?));
                let piece = within.and_then(|within| within.pieces(READ_LEN).next());
                piece.map(|extent| Piece { extent, is_hole: false })
            }
        })
    }
}

/// What a plan will do.
enum Way {
    Increment { slot: u32 },
    Scan { base: Option<Generation>, standing: Standing },
}

struct Piece {
    extent: Extent,
    is_hole: bool,
}

impl Source for DrbdVolume {
    type Error = DrbdError;

    fn recall(&mut self, record: Option<&[u8]>) {
        self.record = record.and_then(Record::decode);
    }

    fn record(&self) -> Option<Vec<u8>> {
        Some(Record::of(&self.metadata, self.rotated).encode())
    }

    fn learn(&mut self, target: &TargetState) {
        self.base_size = target.generation.map(|_| target.size);
    }

    /// An increment is planned without its tip: its name alone does not say that it is of the
    /// same snapshot as one that was cut off, and nothing could tell the two apart afterwards.
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, DrbdError> {
        if self.planned {
            return Ok(self.plan_of(PlanKind::UpToDate, None, Standing::Proven));
        }
        self.check()?;
        let whole = Extent::new(0, self.data.size).into_iter().collect();
        let (todo, plan) = match base.map(|base| self.choose(base)).transpose()? {
            None => (Some(whole), self.plan_of(PlanKind::Full, None, Standing::Proven)),
            Some(Way::Scan { base, standing }) => {
                (None, self.plan_of(PlanKind::Scan, base, standing))
            }
            Some(Way::Increment { slot }) => {
                let changed = self.metadata.map(self.meta.as_ref(), slot)?.map.changed;
                let bytes_expected = changed.byte_count();
                let plan = self.plan_of(PlanKind::Incremental, base.copied(), Standing::Proven);
                (Some(changed), Plan { tip: None, bytes_expected, ..plan })
            }
        };
        self.planned = true;
        self.todo = todo;
        Ok(plan)
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, DrbdError> {
        if self.todo.is_none() {
            return Err(DrbdError::Unplanned);
        }
        let read = |offset| move |source| DrbdError::Read { what: "volume", offset, source };
        let piece = self.next_piece(from).map_err(read(self.next.max(from)))?;
        let Some(Piece { extent, is_hole }) = piece else { return Ok(None) };
        self.next = extent.end();
        if is_hole {
            return Ok(Some(Change::Zero(extent)));
        }
        let mut bytes = vec![0; extent.len() as usize];
        self.data.read_at(extent.offset(), &mut bytes).map_err(read(extent.offset()))?;
        self.bytes_read += extent.len();
        Ok(Some(Change::Data { offset: extent.offset(), bytes }))
    }

    fn is_unnamed(&mut self) -> Result<bool, DrbdError> {
        self.check_unchanged()?;
        Ok(!self.rotated)
    }

    fn finish(&mut self) -> Result<Finish, DrbdError> {
        self.check_unchanged()?;
        Ok(Finish { tip: self.tip(), size: Some(self.data.size), root: None })
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}

impl fmt::Debug for DrbdVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrbdVolume").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

/// The volume without what follows it on its device.
struct Data {
    device: Arc<dyn Volume + Send + Sync>,
    size: u64,
}

impl Volume for Data {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Ok(self.device.next_data(from)?.and_then(|data| data.clamp(self.size)))
    }
}
