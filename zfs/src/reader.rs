//! Reads a send stream record by record and believes nothing before its checksum.
//!
//! A record's header is covered by the checksum in that same header, but its payload only
//! by the next one. So the reader is always one header ahead of what it hands out. The few
//! bytes that no checksum covers, in the END records that tools write around substreams, must
//! be what they always are: in a stream with checksums no bit can change unnoticed.

use std::io::{self, BufReader, Read};

use crate::{
    checksum::{ByteOrder, Fletcher4},
    error::{Fault, StreamError},
    record::{
        self, BLOCK_MAX, CHECKSUM_AT, End, Features, HEADER_LEN, Record, RecordKind, Spill, Write,
        WriteEmbedded,
    },
};

/// The largest payload of a BEGIN record: where ZFS's own tools draw the line.
pub const BEGIN_PAYLOAD_MAX: u64 = 64 << 20;

/// The largest bonus: no object is larger than 16 KiB.
const BONUS_MAX: u64 = 16 << 10;

/// The largest payload of an embedded block: what fits in a block pointer.
const EMBEDDED_MAX: u64 = 112;

/// What is read at once: fewer system calls for small blocks; large payloads pass it by.
const READ_LEN: usize = 64 << 10;

/// What is allocated on the word of a length alone; more only as the bytes arrive.
const TRUSTED_LEN: u64 = 1 << 20;

/// How many records of one kind there were.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// How many.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
}

/// What a stream was made of so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary([Tally; RecordKind::ALL.len()]);

impl Summary {
    /// The records of one kind.
    pub const fn of(&self, kind: RecordKind) -> Tally {
        self.0[kind as usize]
    }

    /// All records together.
    pub fn total(&self) -> Tally {
        self.0.iter().fold(Tally::default(), |sum, tally| Tally {
            records: sum.records + tally.records,
            payload_bytes: sum.payload_bytes + tally.payload_bytes,
        })
    }

    fn count(&mut self, kind: RecordKind, payload_bytes: u64) {
        let tally = &mut self.0[kind as usize];
        tally.records += 1;
        tally.payload_bytes += payload_bytes;
    }
}

/// Where in the grammar of a stream the next header stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Before the first byte.
    Start,
    /// After a BEGIN, before its END.
    Inside,
    /// After an END: another stream may follow, or nothing.
    Between,
    /// After the END of a compound stream's head, or of one of its substreams: another
    /// substream follows, or the END of the whole.
    Among,
    /// After the END of a whole compound stream.
    Done,
}

/// A header that was verified and whose payload has not been read.
struct Ahead {
    record: Record,
    header: [u8; HEADER_LEN],
    offset: u64,
}

/// The records of a send stream, in order, each after its checksums have been verified.
///
/// Plain, compound (`-p`, `-R`, `-I`) and resumed streams, in either byte order, of any kind
/// of data set, and several of them one after the other. At most one payload is in memory.
pub struct RecordReader<R> {
    input: BufReader<R>,
    /// How many bytes have been taken from `input`.
    taken: u64,
    order: ByteOrder,
    state: Fletcher4,
    stage: Stage,
    /// Whether the stream that is being read is compound, and its head is over.
    compound: bool,
    /// The snapshot that the last BEGIN named.
    toguid: u64,
    snapshot: Option<Box<str>>,
    /// Whether records of this substream carry checksums; its first one decides.
    checksums: Option<bool>,
    ahead: Option<Ahead>,
    header: [u8; HEADER_LEN],
    payload: Vec<u8>,
    offset: u64,
    summary: Summary,
    poisoned: bool,
}

impl<R: Read> RecordReader<R> {
    /// A reader of the stream that `input` yields, from its first byte.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(READ_LEN, input),
            taken: 0,
            order: ByteOrder::Little,
            state: Fletcher4::new(),
            stage: Stage::Start,
            compound: false,
            toguid: 0,
            snapshot: None,
            checksums: None,
            ahead: None,
            header: [0; HEADER_LEN],
            payload: Vec::new(),
            offset: 0,
            summary: Summary::default(),
            poisoned: false,
        }
    }

    /// The next record; `None` at the proper end of the stream. Its payload stays until the
    /// next call.
    ///
    /// A record comes only after the header behind its payload was read and verified; where
    /// a stream carries no checksums in its records, only END vouches for them. After an
    /// error there is nothing more to read.
    pub fn next_record(&mut self) -> Result<Option<Record>, StreamError> {
        if self.poisoned {
            return Err(self.error(Fault::Poisoned));
        }
        let next = self.advance();
        self.poisoned = next.is_err();
        next
    }

    /// The header of the last record, as it was sent.
    pub const fn header(&self) -> &[u8; HEADER_LEN] {
        &self.header
    }

    /// The payload of the last record, unless it was taken.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The same, to be changed: some decoders work in place.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.payload
    }

    /// Takes the payload of the last record, without a copy.
    pub fn take_payload(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.payload)
    }

    /// At which byte of the stream the last record starts.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The input, read as far as it was.
    pub fn into_inner(self) -> R {
        self.input.into_inner()
    }

    /// How many bytes of the stream have been read.
    pub const fn bytes_read(&self) -> u64 {
        self.taken
    }

    /// The byte order of the sender, as the last BEGIN shows it.
    pub const fn order(&self) -> ByteOrder {
        self.order
    }

    /// What the stream was made of so far.
    pub const fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Whether the last record, an END, was the last of a whole stream. After any other record
    /// it says nothing: the reader is one header ahead then.
    pub(crate) const fn is_between(&self) -> bool {
        matches!(self.stage, Stage::Between | Stage::Done)
    }

    /// An error at the record that was returned last.
    pub(crate) fn error(&self, fault: Fault) -> StreamError {
        StreamError::new(fault, self.offset, self.snapshot.as_deref())
    }

    /// The same, for an error after which the reader is of no use: what comes behind a record
    /// that made no sense makes none either.
    pub(crate) fn fail(&mut self, fault: Fault) -> StreamError {
        self.poisoned = true;
        self.error(fault)
    }

    fn error_at(&self, fault: Fault, offset: u64) -> StreamError {
        StreamError::new(fault, offset, self.snapshot.as_deref())
    }

    fn advance(&mut self) -> Result<Option<Record>, StreamError> {
        let ahead = match self.ahead.take() {
            Some(ahead) => ahead,
            None => match self.read_header()? {
                Some(ahead) => ahead,
                None => return Ok(None),
            },
        };
        self.read_payload(&ahead)?;
        // Nothing that the substream says is behind its END, so nothing is awaited there.
        if ahead.record.kind() != RecordKind::End {
            self.ahead = self.read_header()?;
        }
        (self.header, self.offset) = (ahead.header, ahead.offset);
        self.summary.count(ahead.record.kind(), self.payload.len() as u64);
        Ok(Some(ahead.record))
    }

    /// Reads and verifies a header; `None` where the stream may end and does.
    fn read_header(&mut self) -> Result<Option<Ahead>, StreamError> {
        let offset = self.taken;
        let mut header = [0; HEADER_LEN];
        let mut filled = 0;
        while filled < HEADER_LEN {
            match self.input.read(&mut header[filled..]) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.taken += filled as u64;
                    return Err(self.error_at(Fault::Read(error), self.taken));
                }
            }
        }
        self.taken += filled as u64;
        match (self.stage, filled) {
            (Stage::Start, 0) => return Err(self.error_at(Fault::Empty, 0)),
            (Stage::Between | Stage::Done, 0) => return Ok(None),
            (Stage::Done, _) => return Err(self.error_at(Fault::Trailing, offset)),
            (_, HEADER_LEN) => {}
            (Stage::Between, _) => return Err(self.error_at(Fault::Trailing, offset)),
            (Stage::Start, _) if !header.starts_with(&[0; 4]) => {
                return Err(self.error_at(Fault::NotAStream, 0));
            }
            _ => return Err(self.error_at(Fault::Truncated, self.taken)),
        }
        let record = match self.stage {
            Stage::Inside => self.verify(&header),
            Stage::Among if header_is_final(&header, self.order) => {
                self.stage = Stage::Done;
                Ok(Record::End(End { checksum: [0; 4], toguid: 0 }))
            }
            Stage::Start | Stage::Between | Stage::Among | Stage::Done => self.open(&header),
        };
        match record {
            Ok(record) => Ok(Some(Ahead { record, header, offset })),
            Err(fault) => Err(self.error_at(fault, offset)),
        }
    }

    /// Takes a header that must be a BEGIN.
    fn open(&mut self, header: &[u8; HEADER_LEN]) -> Result<Record, Fault> {
        let Some(order) = record::order_of_begin(header) else {
            return Err(match self.stage {
                Stage::Start => Fault::NotAStream,
                Stage::Among => Fault::Malformed("no substream where one should start"),
                _ => Fault::Trailing,
            });
        };
        let Some(Record::Begin(begin)) = Record::parse(header, order) else {
            return Err(Fault::NotAStream);
        };
        self.snapshot = Some(begin.toname.as_str().into());
        if begin.compound && self.compound {
            return Err(Fault::Malformed("a stream of substreams within another"));
        }
        if begin.features.unknown() != Features::default() {
            return Err(Fault::UnknownFeatures(begin.features.unknown()));
        }
        self.order = order;
        self.compound |= begin.compound;
        self.toguid = begin.toguid;
        self.checksums = None;
        self.stage = Stage::Inside;
        self.state = Fletcher4::new();
        self.state.update(header, order);
        Ok(Record::Begin(begin))
    }

    /// Takes a header between BEGIN and END.
    fn verify(&mut self, header: &[u8; HEADER_LEN]) -> Result<Record, Fault> {
        let before = self.state;
        let (covered, checksum) = header.split_at(CHECKSUM_AT);
        let stored = record::checksum_of(header, self.order);
        let is_end = record::kind_number(header, self.order) == RecordKind::End as u32;
        self.state.update(covered, self.order);
        let present = stored != [0; 4];
        if present && stored != self.state.sums() {
            return Err(Fault::Checksum);
        }
        // END has another one, and the tools that write the head of a compound stream leave
        // this one out. For all others, the substream either has them or it has not.
        if !is_end && *self.checksums.get_or_insert(present) != present {
            return Err(Fault::Checksum);
        }
        self.state.update(checksum, self.order);
        let number = record::kind_number(header, self.order);
        let record = Record::parse(header, self.order).ok_or(Fault::UnknownRecord(number))?;
        match &record {
            Record::Begin(_) => return Err(Fault::Malformed("a BEGIN record before END")),
            Record::End(end) => self.close(end, before, header, present)?,
            _ => {}
        }
        Ok(record)
    }

    fn close(
        &mut self,
        end: &End,
        before: Fletcher4,
        header: &[u8; HEADER_LEN],
        covered: bool,
    ) -> Result<(), Fault> {
        if end.checksum != before.sums() {
            return Err(Fault::Checksum);
        }
        // What no checksum covers must be what it always is.
        let uncovered = [&header[4..8], &header[48..CHECKSUM_AT]];
        if end.toguid != self.toguid
            || !covered && uncovered.iter().any(|part| part.iter().any(|byte| *byte != 0))
        {
            return Err(Fault::Malformed("an END record that does not belong to its BEGIN"));
        }
        self.stage = if self.compound { Stage::Among } else { Stage::Between };
        Ok(())
    }

    /// Reads the payload of `ahead` and adds it to the checksum.
    fn read_payload(&mut self, ahead: &Ahead) -> Result<(), StreamError> {
        let len = match checked_payload_len(&ahead.record) {
            Ok(len) => len,
            Err(fault) => return Err(self.error_at(fault, ahead.offset)),
        };
        self.payload.clear();
        if len == 0 {
            return Ok(());
        }
        if self.payload.capacity() as u64 > BLOCK_MAX {
            self.payload = Vec::new();
        }
        self.payload.reserve(len.min(TRUSTED_LEN) as usize);
        let read = self.input.by_ref().take(len).read_to_end(&mut self.payload);
        self.taken += self.payload.len() as u64;
        if let Err(error) = read {
            return Err(self.error_at(Fault::Read(error), self.taken));
        }
        if (self.payload.len() as u64) < len {
            return Err(self.error_at(Fault::Truncated, self.taken));
        }
        self.state.update(&self.payload, self.order);
        Ok(())
    }
}

/// Whether this is the END of a whole compound stream: all zeros but for its kind.
fn header_is_final(header: &[u8; HEADER_LEN], order: ByteOrder) -> bool {
    record::kind_number(header, order) == RecordKind::End as u32
        && header[4..].iter().all(|byte| *byte == 0)
}

/// The length of a record's payload, if it can be one.
fn checked_payload_len(record: &Record) -> Result<u64, Fault> {
    let len = record.payload_len();
    let max = match record {
        Record::Begin(_) => BEGIN_PAYLOAD_MAX,
        Record::Object(_) => BONUS_MAX,
        Record::WriteEmbedded(WriteEmbedded { .. }) => EMBEDDED_MAX,
        // A block never grows by being compressed.
        Record::Write(Write { logical_len: len, .. }) | Record::Spill(Spill { len, .. }) => {
            (*len).min(BLOCK_MAX)
        }
        _ => 0,
    };
    if len > max {
        return Err(Fault::TooLong { len, max });
    }
    if !len.is_multiple_of(4) {
        return Err(Fault::Malformed("a payload that is not made of whole words"));
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
