//! A send stream of any kind as a source of opaque increments: what only ZFS can apply.

use std::{collections::VecDeque, fmt, io::Read, mem};

use driftline_extent::{
    Accepts, Change, Finish, Generation, PART_LEN_MAX, PART_OWN_MIN, Plan, PlanKind, Source,
    TargetState,
};

use crate::{
    error::{Fault, StreamError},
    reader::{RecordReader, Summary},
    record::{Begin, Features, HEADER_LEN, Record},
    source::plan_of,
};

/// The longest part, and the shortest payload that is a part of its own, as lengths in memory.
const PART_MAX: usize = PART_LEN_MAX as usize;
const OWN_MIN: usize = PART_OWN_MIN as usize;

/// Where a stream starts and where it leads, by the guids of snapshots. For a package of several
/// data sets (`-R`) these are those of the data set that it is named after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// The snapshot or bookmark that it starts from; `None` if it has everything.
    pub from: Option<u64>,
    /// The snapshot that it leads to. In a package, as far as that was read.
    pub to: u64,
}

/// A stream made by `zfs send`, of a file system, a volume or a package of them (`-p`, `-R`,
/// `-I`), encrypted or not, cut into parts that are the stream again when they are joined.
///
/// The stream is read once from front to back, and checked as [`RecordReader`] checks it: a part
/// comes only after the header behind the last record in it was verified, and the end only with
/// its END record. Several streams one after the other are as many increments; a package is one.
/// Deduplicated and redacted streams are refused: neither leads to what the snapshot holds. In
/// memory is at most one payload, the parts that it is cut into, and one part before it.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut stream = driftline_zfs::OpaqueStream::new(std::io::stdin().lock());
/// while let Some(ends) = stream.open()? {
///     println!("from {:?} to {}", ends.from, ends.to);
///     while let Some(part) = stream.next_part()? {
///         println!("{} bytes", part.len());
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct OpaqueStream<R> {
    reader: RecordReader<R>,
    cutter: Cutter,
    current: Option<Current>,
    /// Whether the target holds a part of an increment, once it has told.
    partial: Option<bool>,
    /// The snapshot that the last delivered stream led to.
    last_tip: Option<u64>,
    /// From where to where the streams seen so far lead, for the error message.
    seen: Option<(u64, u64)>,
}

/// The stream that is being delivered.
#[derive(Default)]
struct Current {
    /// The data set that a package is named after.
    root: Option<Box<str>>,
    ends: Option<Ends>,
    /// Whether it goes on where another was cut off.
    resumed: bool,
    /// Whether its last record was read.
    over: bool,
    /// Whether its last part was handed out.
    delivered: bool,
}

impl<R: Read> OpaqueStream<R> {
    /// The stream that `input` yields, from its first byte.
    pub fn new(input: R) -> Self {
        Self {
            reader: RecordReader::new(input),
            cutter: Cutter::default(),
            current: None,
            partial: None,
            last_tip: None,
            seen: None,
        }
    }

    /// The input, read as far as it was.
    pub fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    /// Reads up to where the next stream says from where to where it leads, whatever that is,
    /// and before it what is left of the one that is open; `None` at the end of the input.
    ///
    /// # Errors
    /// If the stream is damaged, or of a kind that cannot be carried.
    pub fn open(&mut self) -> Result<Option<Ends>, StreamError> {
        self.skip()?;
        self.current = None;
        self.cutter = Cutter::default();
        loop {
            let Some(record) = self.reader.next_record()? else { return Ok(None) };
            self.take(&record)?;
            match self.ends() {
                Some(ends) => return Ok(Some(ends)),
                None if self.is_over() => {
                    return Err(self.reader.fail(Fault::Malformed("a package of nothing")));
                }
                None => {}
            }
        }
    }

    /// From where to where the open stream leads.
    pub fn ends(&self) -> Option<Ends> {
        self.current.as_ref()?.ends
    }

    /// The next bytes of the open stream: at least one, and at most [`PART_LEN_MAX`]. `None` once
    /// it is complete and its END was verified.
    ///
    /// # Errors
    /// As of [`open`](Self::open), and if no stream is open.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        loop {
            if let Some(part) = self.cutter.ready.pop_front() {
                return Ok(Some(part));
            }
            let Some(current) = &mut self.current else {
                return Err(self.reader.error(Fault::Unplanned));
            };
            if current.over {
                current.delivered = true;
                self.last_tip = current.ends.map(|ends| ends.to);
                return Ok(None);
            }
            self.step()?;
        }
    }

    /// What the stream was made of so far.
    pub const fn summary(&self) -> &Summary {
        self.reader.summary()
    }

    fn is_over(&self) -> bool {
        self.current.as_ref().is_none_or(|current| current.over)
    }

    /// Reads the open stream to its end, and keeps nothing of it.
    fn skip(&mut self) -> Result<(), StreamError> {
        while !self.is_over() {
            self.step()?;
            self.cutter = Cutter::default();
        }
        Ok(())
    }

    /// Reads the next record of the open stream.
    fn step(&mut self) -> Result<(), StreamError> {
        // The reader does not end within a stream: it fails if the stream does.
        match self.reader.next_record()? {
            Some(record) => self.take(&record),
            None => Err(self.reader.fail(Fault::Truncated)),
        }
    }

    /// Takes the record that the reader has just returned.
    fn take(&mut self, record: &Record) -> Result<(), StreamError> {
        let between = self.reader.is_between();
        let current = self.current.get_or_insert_default();
        match record {
            Record::Begin(begin) => {
                current.begin(begin).map_err(|fault| self.reader.fail(fault))?;
            }
            Record::WriteByref(_) => return Err(self.reader.fail(Fault::Deduplicated)),
            Record::Redact(_) => return Err(self.reader.fail(Fault::Redacted)),
            Record::End(_) => current.over = between,
            _ => {}
        }
        let payload = self.reader.take_payload();
        self.cutter.push(self.reader.header(), payload);
        if self.is_over() {
            self.cutter.flush();
        }
        Ok(())
    }

    /// Refuses what the target's storage would refuse after the fact: a stream that does not go
    /// on where it was cut off, and one that goes on where nothing was.
    fn check_resumption(&self) -> Result<(), StreamError> {
        let resumed = self.current.as_ref().is_some_and(|current| current.resumed);
        match self.partial {
            Some(false) if resumed => Err(self.reader.error(Fault::NothingToResume)),
            Some(true) if !resumed => Err(self.reader.error(Fault::NotResumed)),
            _ => Ok(()),
        }
    }

    fn mismatch(&self, base: Option<&Generation>, (from, to): (u64, u64)) -> StreamError {
        self.reader.error(Fault::BaseMismatch { base: base.copied(), from, to })
    }
}

impl Current {
    fn begin(&mut self, begin: &Begin) -> Result<(), Fault> {
        let features = begin.features;
        if features.has_any(Features(Features::DEDUP.0 | Features::DEDUPPROPS.0)) {
            return Err(Fault::Deduplicated);
        }
        if features.has_any(Features::REDACTED) {
            return Err(Fault::Redacted);
        }
        let data_set = begin.toname.split('@').next().unwrap_or_default();
        if begin.compound {
            self.root = Some(data_set.into());
            return Ok(());
        }
        self.resumed |= features.has_any(Features::RESUMING);
        let of_root = self.root.as_deref().is_none_or(|root| root == data_set);
        let from = (begin.fromguid != 0).then_some(begin.fromguid);
        self.ends = match self.ends {
            // Whoever receives a package needs to have the first one's base.
            None if !of_root => {
                return Err(Fault::Malformed("a package that starts with another data set"));
            }
            None => Some(Ends { from, to: begin.toguid }),
            Some(ends) if !of_root => Some(ends),
            Some(ends) if from == Some(ends.to) => Some(Ends { to: begin.toguid, ..ends }),
            Some(_) => return Err(Fault::Malformed("increments that do not follow each other")),
        };
        Ok(())
    }
}

impl<R: Read> Source for OpaqueStream<R> {
    type Error = StreamError;

    fn learn(&mut self, target: &TargetState) {
        self.partial = match &target.accepts {
            Accepts::Volume => None,
            Accepts::Stream { token, .. } => Some(token.is_some()),
        };
    }

    /// Reads up to the next stream that `base` can take: one that starts from it, or, where
    /// `base` is `None`, the first one, which must have everything. Those before are read and
    /// checked, but not delivered.
    ///
    /// Says [`PlanKind::UpToDate`] only at the end of the input, if some stream led to `base`
    /// and none went on from there.
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, StreamError> {
        let held = base.and_then(Generation::zfs_guid);
        let mut at_base = held.is_some() && held == self.last_tip;
        while let Some(ends) = self.open()? {
            let fits = ends.from == held && held.is_some() == base.is_some();
            if fits {
                self.check_resumption()?;
                let package = self.current.as_ref().is_some_and(|current| current.root.is_some());
                // Where a package leads is known only at its end.
                return Ok(plan_of(PlanKind::Stream, base.copied(), (!package).then_some(ends.to)));
            }
            self.skip()?;
            let to = self.ends().map_or(ends.to, |ends| ends.to);
            let from = ends.from.unwrap_or(0);
            self.seen = Some((self.seen.map_or(from, |seen| seen.0), to));
            at_base |= held == Some(to);
            if base.is_none() {
                break;
            }
        }
        match (held, self.seen) {
            (Some(held), _) if at_base => {
                self.last_tip = Some(held);
                Ok(plan_of(PlanKind::UpToDate, None, Some(held)))
            }
            (_, Some(seen)) => Err(self.mismatch(base, seen)),
            (_, None) => Err(self.reader.fail(Fault::Malformed("it has no increment at all"))),
        }
    }

    /// All changes are parts. They come from the start of the stream, whatever `from` is: where a
    /// stream goes on is said when it is made, by a resume token.
    fn next_change(&mut self, _from: u64) -> Result<Option<Change>, StreamError> {
        Ok(self.next_part()?.map(Change::Part))
    }

    fn finish(&mut self) -> Result<Finish, StreamError> {
        match &self.current {
            Some(Current { delivered: true, ends: Some(ends), .. }) => {
                Ok(Finish { tip: Generation::zfs(ends.to), size: None, root: None })
            }
            _ => Err(self.reader.error(Fault::Unfinished)),
        }
    }

    fn bytes_read(&self) -> u64 {
        self.reader.bytes_read()
    }
}

impl<R> fmt::Debug for OpaqueStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = self.current.as_ref().map(|current| current.ends);
        f.debug_struct("OpaqueStream").field("ends", &ends).finish_non_exhaustive()
    }
}

/// Cuts records into parts: what is small is gathered, what is large stands alone.
#[derive(Default)]
struct Cutter {
    /// Parts that are complete.
    ready: VecDeque<Vec<u8>>,
    /// What comes behind them.
    gathered: Vec<u8>,
}

impl Cutter {
    /// Takes the next record.
    fn push(&mut self, header: &[u8; HEADER_LEN], payload: Vec<u8>) {
        if self.gathered.len() + HEADER_LEN + OWN_MIN > PART_MAX {
            self.flush();
        }
        self.gathered.extend_from_slice(header);
        if payload.len() < OWN_MIN {
            self.gathered.extend_from_slice(&payload);
            return;
        }
        self.flush();
        if payload.len() <= PART_MAX {
            self.ready.push_back(payload);
        } else {
            self.ready.extend(payload.chunks(PART_MAX).map(<[u8]>::to_vec));
        }
    }

    /// Completes what is gathered.
    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            self.ready.push_back(mem::take(&mut self.gathered));
        }
    }
}

#[cfg(test)]
mod tests;
