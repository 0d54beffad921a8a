//! A send stream of a volume as a source of increments.

use std::{fmt, io::Read};

use driftline_extent::{
    Change, ChangeMap, Extent, ExtentSet, Finish, Generation, Plan, PlanKind, Source, Standing,
};

use crate::{
    codec::Decoder,
    error::{Fault, StreamError},
    nvlist::Nvlist,
    reader::{RecordReader, Summary},
    record::{Begin, Features, Record},
    zvol::{Block, Meaning, VOLUME_MAX, View, is_plain},
};

/// Of how many extents a change map is made at most; beyond that it is coarsened.
pub const MAP_EXTENTS_MAX: usize = 1_000_000;

/// The object whose data is the volume's, in the words of a resume token.
const RESUME_DATA: u64 = 1;

/// A stream of one volume, made by `zfs send`: plain, compound (`-p`, `-R`, `-I`), resumed,
/// or several streams one after the other.
///
/// It is read once from front to back, so a generation that lies behind cannot be had again.
/// In a stream of several data sets, guids tell which substreams continue which.
///
/// ```no_run
/// use driftline_extent::Source;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut stream = driftline_zfs::ZvolStream::new(std::io::stdin().lock());
/// let plan = stream.plan(None)?;
/// while let Some(change) = stream.next_change(0)? {
///     println!("{:?}", change.extent());
/// }
/// println!("{:?} leads to {:?}", plan.kind, stream.finish()?.tip);
/// # Ok(())
/// # }
/// ```
pub struct ZvolStream<R> {
    reader: RecordReader<R>,
    decoder: Decoder,
    allow_full: bool,
    current: Option<Substream>,
    /// The snapshot that the last finished substream led to.
    last_tip: Option<u64>,
    /// From where to where the substreams seen so far lead, for the error message.
    seen: Option<(u64, u64)>,
}

/// The substream that is being delivered.
struct Substream {
    view: View,
    /// Where a resumed stream goes on.
    resumed_at: Option<u64>,
    /// Whether the last change was delivered.
    delivered: bool,
}

impl<R: Read> ZvolStream<R> {
    /// The volume in the stream that `input` yields, from its first byte.
    pub fn new(input: R) -> Self {
        Self {
            reader: RecordReader::new(input),
            decoder: Decoder::new(),
            allow_full: false,
            current: None,
            last_tip: None,
            seen: None,
        }
    }

    /// Whether a stream of the whole volume may be planned over another generation, even if
    /// an increment from that generation would follow: what comes later is not known. Without
    /// it such a stream is passed over, which ends in [`Fault::BaseMismatch`] if none follows
    /// that starts from the generation the target holds.
    pub const fn allow_full(mut self, allow: bool) -> Self {
        self.allow_full = allow;
        self
    }

    /// The input, read as far as it was.
    pub fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    /// Where the planned increment goes on, if it is a resumed one: changes below were in
    /// the stream that was cut off. `u64::MAX` if that one had all of the volume's blocks
    /// already, and perhaps its last hole.
    pub fn resumed_at(&self) -> Option<u64> {
        self.current.as_ref()?.resumed_at
    }

    /// What the stream was made of so far.
    pub const fn summary(&self) -> &Summary {
        self.reader.summary()
    }

    /// Reads the planned increment to its end and says which bytes it changes, without
    /// decompressing any. Nothing is left for [`next_change`](Source::next_change) then.
    ///
    /// Zeros up to the end of a volume of unknown size end at 2^63. If there would be more
    /// than [`MAP_EXTENTS_MAX`] extents, the map is coarser than the volume's blocks.
    ///
    /// # Errors
    /// As of [`next_change`](Source::next_change); a resumed stream has only a part of the
    /// map and is refused with [`Fault::Resumed`].
    pub fn change_map(&mut self) -> Result<ChangeMap, StreamError> {
        self.change_map_of(MAP_EXTENTS_MAX)
    }

    fn change_map_of(&mut self, extents_max: usize) -> Result<ChangeMap, StreamError> {
        self.check_resumption(0)?;
        let mut map = ChangeMap {
            base: None,
            tip: None,
            size: None,
            granularity: 1,
            changed: ExtentSet::new(),
            zero: ExtentSet::new(),
            standing: Standing::Proven,
        };
        while let Some(step) = self.step()? {
            map.granularity = map.granularity.max(self.block_len());
            match step {
                Step::Data(block) => add_changed(&mut map, block.extent),
                Step::Zero(extent) => add_zero(&mut map, extent),
            }
            // Only at twice the limit, so that the work is done once for many insertions.
            if map.changed.extent_count() + map.zero.extent_count() > 2 * extents_max {
                map.coarsen(extents_max);
            }
        }
        let Finish { tip, size, .. } = self.finish()?;
        let fromguid = self.current.as_ref().map_or(0, |substream| substream.view.fromguid);
        map.base = (fromguid != 0).then_some(Generation::zfs(fromguid));
        map.tip = Some(tip);
        map.size = size;
        map.granularity = map.granularity.max(self.block_len());
        map.coarsen(extents_max);
        Ok(map)
    }

    /// The change map of the next substream, whatever it starts from; `None` at the end of
    /// the stream.
    ///
    /// # Errors
    /// As of [`change_map`](Self::change_map).
    pub fn next_map(&mut self) -> Result<Option<ChangeMap>, StreamError> {
        self.current = None;
        match self.next_begin()? {
            Some(begin) => {
                self.enter(&begin)?;
                self.change_map().map(Some)
            }
            None => Ok(None),
        }
    }

    fn block_len(&self) -> u64 {
        self.current.as_ref().and_then(|current| current.view.block_len).unwrap_or(1)
    }

    /// The BEGIN of the next substream, after reading the current one to its end; `None` at
    /// the end of the stream.
    fn next_begin(&mut self) -> Result<Option<Begin>, StreamError> {
        loop {
            match self.reader.next_record()? {
                Some(Record::Begin(begin)) if !begin.compound => return Ok(Some(begin)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Prepares to deliver the substream that begins so.
    fn enter(&mut self, begin: &Begin) -> Result<(), StreamError> {
        let view = View::new(begin).map_err(|fault| self.reader.fail(fault))?;
        let resumed_at = if begin.features.has_any(Features::RESUMING) {
            Some(resume_offset(self.reader.payload()).map_err(|fault| self.reader.fail(fault))?)
        } else {
            None
        };
        self.current = Some(Substream { view, resumed_at, delivered: false });
        Ok(())
    }

    /// The next change of the planned increment, its payload still in the reader.
    fn step(&mut self) -> Result<Option<Step>, StreamError> {
        loop {
            let Some(current) = &mut self.current else {
                return Err(self.reader.error(Fault::Unplanned));
            };
            if current.view.ended {
                return self.last_step();
            }
            // The reader does not end within a substream: it fails if the stream does.
            let Some(record) = self.reader.next_record()? else {
                return Err(self.reader.fail(Fault::Truncated));
            };
            match current.view.interpret(&record) {
                Ok(Meaning::Data(block)) => return Ok(Some(Step::Data(block))),
                Ok(Meaning::Zero(extent)) => return Ok(Some(Step::Zero(extent))),
                Ok(Meaning::Properties(block)) => self.read_size(&block)?,
                Ok(Meaning::End | Meaning::Nothing) => {}
                Err(fault) => return Err(self.reader.fail(fault)),
            }
        }
    }

    /// What is left to deliver after END: the hole up to the end of the volume.
    fn last_step(&mut self) -> Result<Option<Step>, StreamError> {
        let Some(current) = &mut self.current else { return Ok(None) };
        let view = &current.view;
        if view.fromguid == 0 && view.size.is_none() {
            return Err(self.reader.fail(Fault::NoSize));
        }
        self.last_tip = Some(view.toguid);
        if std::mem::replace(&mut current.delivered, true) {
            return Ok(None);
        }
        let end = view.size.unwrap_or(u64::MAX);
        Ok(view.tail.and_then(|tail| Extent::from_bounds(tail, end)).map(Step::Zero))
    }

    fn read_size(&mut self, block: &Block) -> Result<(), StreamError> {
        let bytes = self.decode(block)?;
        match &mut self.current {
            Some(current) => {
                current.view.take_size(&bytes).map_err(|fault| self.reader.fail(fault))
            }
            None => Ok(()),
        }
    }

    /// The block in the reader's payload, as it stood in the volume.
    fn decode(&mut self, block: &Block) -> Result<Vec<u8>, StreamError> {
        if is_plain(block) {
            return Ok(self.reader.take_payload());
        }
        let payload = self.reader.payload_mut();
        let payload_len = block.payload_len.min(payload.len());
        let payload = &mut payload[..payload_len];
        let decoded = self.decoder.decode(block.compression, payload, block.decoded_len);
        let mut bytes = decoded.map_err(|source| {
            self.reader.fail(Fault::Codec { offset: block.extent.offset(), source })
        })?;
        bytes.resize(block.extent.len() as usize, 0);
        Ok(bytes)
    }

    /// Refuses to deliver a resumed stream to a target that lacks what came before.
    fn check_resumption(&self, from: u64) -> Result<(), StreamError> {
        match self.resumed_at() {
            Some(at) if from < at => Err(self.reader.error(Fault::Resumed { at, from })),
            _ => Ok(()),
        }
    }

    fn mismatch(&self, base: Option<&Generation>, (from, to): (u64, u64)) -> StreamError {
        self.reader.error(Fault::BaseMismatch { base: base.copied(), from, to })
    }
}

/// One change, whose bytes are still in the reader.
enum Step {
    Data(Block),
    Zero(Extent),
}

impl<R: Read> Source for ZvolStream<R> {
    type Error = StreamError;

    /// Reads up to the next substream that `base` can take: one that starts from it, or,
    /// where `base` is `None`, the first one, which must have everything. Those before are
    /// read and checked, but not delivered.
    ///
    /// Says [`PlanKind::UpToDate`] only at the end of the stream, if some substream led to
    /// `base` and none went on from there.
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, StreamError> {
        let held = base.and_then(Generation::zfs_guid);
        let mut at_base = held.is_some() && held == self.last_tip;
        self.current = None;
        while let Some(begin) = self.next_begin()? {
            let ends = (begin.fromguid, begin.toguid);
            self.seen = Some((self.seen.map_or(ends.0, |seen| seen.0), ends.1));
            let kind = match base {
                None if begin.fromguid == 0 => Some(PlanKind::Full),
                None => return Err(self.mismatch(base, ends)),
                Some(_) if held == Some(begin.toguid) => {
                    at_base = true;
                    None
                }
                Some(_) if held == Some(begin.fromguid) => Some(PlanKind::Incremental),
                // Once something was delivered, a whole volume is another volume.
                Some(_) if begin.fromguid == 0 && self.allow_full && self.last_tip.is_none() => {
                    Some(PlanKind::Full)
                }
                Some(_) => None,
            };
            if let Some(kind) = kind {
                self.enter(&begin)?;
                let base = base.filter(|_| kind == PlanKind::Incremental).copied();
                return Ok(plan_of(kind, base, Some(begin.toguid)));
            }
        }
        match held {
            Some(held) if at_base => {
                self.last_tip = Some(held);
                Ok(plan_of(PlanKind::UpToDate, None, Some(held)))
            }
            _ => Err(match self.seen {
                Some(ends) => self.mismatch(base, ends),
                None => self.reader.fail(Fault::Malformed("it has no increment at all")),
            }),
        }
    }

    /// Changes that end at or below `from` are checked but neither decompressed nor
    /// delivered. The last change may be a zero extent up to `u64::MAX`, where the stream
    /// does not say how large the volume is because that did not change.
    fn next_change(&mut self, from: u64) -> Result<Option<Change>, StreamError> {
        self.check_resumption(from)?;
        loop {
            match self.step()? {
                None => return Ok(None),
                Some(Step::Data(block)) if block.extent.end() > from => {
                    let offset = block.extent.offset();
                    return Ok(Some(Change::Data { offset, bytes: self.decode(&block)? }));
                }
                Some(Step::Zero(extent)) if extent.end() > from => {
                    return Ok(Some(Change::Zero(extent)));
                }
                Some(_) => {}
            }
        }
    }

    fn finish(&mut self) -> Result<Finish, StreamError> {
        let current = self.current.as_ref().filter(|current| current.delivered);
        let Some(Substream { view, .. }) = current else {
            return Err(self.reader.error(Fault::Unfinished));
        };
        Ok(Finish { tip: Generation::zfs(view.toguid), size: view.size, root: None })
    }

    fn bytes_read(&self) -> u64 {
        self.reader.bytes_read()
    }
}

impl<R> fmt::Debug for ZvolStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.current.as_ref().map(|current| &current.view);
        f.debug_struct("ZvolStream").field("current", &view).finish_non_exhaustive()
    }
}

/// A plan of ZFS, which proves its maps; no size and no length are known yet.
pub(crate) fn plan_of(kind: PlanKind, base: Option<Generation>, tip: Option<u64>) -> Plan {
    Plan {
        kind,
        volume: None,
        base,
        tip: tip.map(Generation::zfs),
        size: None,
        standing: Standing::Proven,
        bytes_expected: 0,
    }
}

/// Where a resumed stream goes on in the volume, by the nvlist of its BEGIN.
fn resume_offset(payload: &[u8]) -> Result<u64, Fault> {
    let list = Nvlist::decode(payload).map_err(Fault::Nvlist)?;
    let missing = Fault::Malformed("a resumed stream that does not say where it goes on");
    match (list.get_u64("resume_object"), list.get_u64("resume_offset")) {
        (Some(RESUME_DATA), Some(offset)) => Ok(offset),
        (Some(object), Some(_)) if object < RESUME_DATA => Ok(0),
        (Some(_), Some(_)) => Ok(u64::MAX),
        _ => Err(missing),
    }
}

/// Adds data to a map, in units of its granularity.
fn add_changed(map: &mut ChangeMap, extent: Extent) {
    map.changed.insert(extent.align_out(map.granularity));
}

/// Adds a hole to a map. Where it is zero only in part of a unit, that unit is changed.
fn add_zero(map: &mut ChangeMap, extent: Extent) {
    // A power of two stays a multiple of whatever the granularity becomes.
    let Some(extent) = extent.clamp(VOLUME_MAX) else { return };
    let outer = extent.align_out(map.granularity);
    match extent.align_in(map.granularity) {
        None => map.changed.insert(outer),
        Some(inner) => {
            map.zero.insert(inner);
            map.changed.extend(Extent::from_bounds(outer.offset(), inner.offset()));
            map.changed.extend(Extent::from_bounds(inner.end(), outer.end()));
        }
    }
}

#[cfg(test)]
mod tests;
