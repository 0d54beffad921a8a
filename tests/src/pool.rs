//! A data set in memory that receives streams and sends them, cut off and gone on with as ZFS
//! does it. It knows blocks, holes, snapshots and tokens, and nothing of what they mean.

use std::{cell::RefCell, collections::BTreeMap, io::Cursor, rc::Rc};

use driftline_extent::{
    Accepts, Change, Explained, Finish, Generation, Offer, Plan, PlanKind, Point, Reason, Source,
    TargetState,
};
use driftline_target::{Sink, SinkState};
use driftline_zfs::{
    ByteOrder, Features, Nvlist, OpaqueStream, Record, RecordReader, StreamError,
    testing::{Opening, StreamWriter, native_nvlist},
};

/// Blocks by object and offset.
pub type Blocks = BTreeMap<(u64, u64), Vec<u8>>;

/// A data set.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DataSet {
    /// Its snapshots, newest first.
    pub snapshots: Vec<Point>,
    /// What it holds.
    pub blocks: Blocks,
    /// What was received of a stream that was cut off.
    pub partial: Option<Partial>,
    /// Every stream that was received whole.
    pub streams: Vec<Vec<u8>>,
}

/// A part of an increment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partial {
    to: u64,
    blocks: Blocks,
    /// Object and offset behind the last block.
    next: (u64, u64),
}

impl Partial {
    /// What a source needs to go on.
    pub fn token(&self) -> String {
        format!("1-{:x}-{:x}-{:x}", self.to, self.next.0, self.next.1)
    }
}

/// What went wrong, in words.
#[derive(Debug, thiserror::Error)]
#[error("the stream cannot be received: {0}")]
pub struct ReceiveError(String);

impl Explained for ReceiveError {
    fn reason(&self) -> Reason {
        Reason::StreamDamaged
    }
}

impl From<StreamError> for ReceiveError {
    fn from(error: StreamError) -> Self {
        Self(error.to_string())
    }
}

impl DataSet {
    /// A data set with nothing in it but a snapshot of this guid.
    pub fn at(guid: u64) -> Self {
        Self { snapshots: vec![Point { guid, name: "held".to_owned() }], ..Self::default() }
    }

    /// Its newest snapshot.
    pub fn generation(&self) -> Option<Generation> {
        self.snapshots.first().map(|point| Generation::zfs(point.guid))
    }

    /// Takes a stream. If it is cut off, keeps what was verified of it.
    fn receive(&mut self, stream: &[u8]) -> Result<(), ReceiveError> {
        let mut reader = RecordReader::new(stream);
        let mut at = Partial { to: 0, blocks: self.blocks.clone(), next: (0, 0) };
        let mut root: Option<(String, Point)> = None;
        let before = self.partial.clone();
        loop {
            let record = match reader.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) => {
                    // Nothing is kept of what began nothing, or of what went on and got no further.
                    self.partial = if at.to == 0 { before } else { Some(at) };
                    return Err(error.into());
                }
            };
            match record {
                Record::Begin(begin) if !begin.compound => {
                    let resumed = begin.features.has_any(Features::RESUMING);
                    match (&before, resumed) {
                        (Some(partial), true) => {
                            let list = Nvlist::decode(reader.payload()).expect("the list is ours");
                            let number = |name| list.get_u64(name).expect("it says where");
                            let next = (number("resume_object"), number("resume_offset"));
                            if (begin.toguid, next) != (partial.to, partial.next) {
                                return Err(ReceiveError("it goes on elsewhere".to_owned()));
                            }
                            at = partial.clone();
                        }
                        (None, false) => {}
                        _ => return Err(ReceiveError("a part is here, or is missing".to_owned())),
                    }
                    at.to = begin.toguid;
                    let (data_set, name) = begin.toname.split_once('@').unwrap_or_default();
                    let point = Point { guid: begin.toguid, name: name.to_owned() };
                    if root.as_ref().is_none_or(|root| root.0 == data_set) {
                        root = Some((data_set.to_owned(), point));
                    }
                }
                Record::Write(write) => {
                    let place = (write.object, write.offset);
                    at.blocks.insert(place, reader.payload().to_vec());
                    at.next = (write.object, write.offset + write.logical_len);
                }
                Record::Free(free) => {
                    let end = free.offset.saturating_add(free.len);
                    let hole = |object, offset| object == free.object && offset >= free.offset;
                    at.blocks
                        .retain(|(object, offset), _| !(hole(*object, *offset) && *offset < end));
                }
                _ => {}
            }
        }
        let (_, point) = root.ok_or_else(|| ReceiveError("there is nothing in it".to_owned()))?;
        self.snapshots.insert(0, point);
        self.blocks = at.blocks;
        self.partial = None;
        self.streams.push(stream.to_vec());
        Ok(())
    }
}

/// `zfs receive -s -u`, into a data set that others look at.
#[derive(Debug)]
pub struct Receive {
    data_set: Rc<RefCell<DataSet>>,
    /// What came in since `begin`.
    stream: Option<Vec<u8>>,
}

impl Receive {
    /// Receives into this data set.
    pub const fn into(data_set: Rc<RefCell<DataSet>>) -> Self {
        Self { data_set, stream: None }
    }
}

impl Sink for Receive {
    type Error = ReceiveError;

    fn state(&mut self) -> Result<SinkState, ReceiveError> {
        let data_set = self.data_set.borrow();
        Ok(SinkState {
            generation: data_set.generation(),
            token: data_set.partial.as_ref().map(Partial::token),
            points: data_set.snapshots.clone(),
        })
    }

    fn begin(&mut self, _: &Offer) -> Result<(), ReceiveError> {
        self.stream = Some(Vec::new());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        self.stream.as_mut().ok_or_else(|| ReceiveError("none began".to_owned()))?.extend(bytes);
        Ok(())
    }

    fn finish(&mut self, _: &Generation) -> Result<SinkState, ReceiveError> {
        let stream = self.stream.take().ok_or_else(|| ReceiveError("none began".to_owned()))?;
        self.data_set.borrow_mut().receive(&stream)?;
        self.state()
    }
}

impl Drop for Receive {
    /// The pipe is closed: what came is kept as far as it can be.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = self.data_set.borrow_mut().receive(&stream);
        }
    }
}

/// `zfs send` of one increment, from the start or from where a token says.
#[derive(Debug)]
pub struct Send {
    from: u64,
    to: u64,
    blocks: Vec<((u64, u64), Vec<u8>)>,
    told: TargetState,
    stream: Option<OpaqueStream<Cursor<Vec<u8>>>>,
}

impl Send {
    /// Sends these blocks as the increment between two guids; `from` is zero for everything.
    pub fn new(from: u64, to: u64, blocks: &Blocks) -> Self {
        let blocks = blocks.iter().map(|(place, block)| (*place, block.clone())).collect();
        Self { from, to, blocks, told: TargetState::nothing(), stream: None }
    }

    /// The token that the target told of.
    pub const fn token(&self) -> Option<&String> {
        match &self.told.accepts {
            Accepts::Stream { token, .. } => token.as_ref(),
            Accepts::Volume => None,
        }
    }

    /// The stream, from the first block that is not there yet.
    fn bytes(&self) -> Vec<u8> {
        let mut fields = self.token().map(|token| token.split('-').skip(1));
        let mut number = || {
            let field = fields.as_mut()?.next()?;
            Some(u64::from_str_radix(field, 16).expect("the token is ours"))
        };
        let resumed = number().map(|to| {
            assert_eq!(to, self.to, "the token is of another increment");
            (number().unwrap_or_default(), number().unwrap_or_default())
        });
        let next = resumed.unwrap_or_default();
        let pairs = [("resume_object", next.0), ("resume_offset", next.1)];
        let list = native_nvlist(ByteOrder::Little, &pairs);
        let (payload, resuming): (&[u8], _) = match resumed {
            Some(_) => (&list, Features::RESUMING.0),
            None => (&[], 0),
        };
        let (features, from, to) = (0x43_0004 | resuming, self.from, self.to);
        let opening = Opening { features, objset_type: 2, from, to, payload };
        let mut writer = StreamWriter::new(ByteOrder::Little).begin(&opening);
        let mut last = None;
        for ((object, offset), block) in self.blocks.iter().filter(|(place, _)| *place >= next) {
            if last != Some(*object) {
                writer = writer.object(*object, 19, 16384, &[3; 168]);
            }
            writer = writer.write(*object, *offset, block);
            last = Some(*object);
        }
        writer.free_objects(1 << 20, 1).end().into_bytes()
    }
}

impl Source for Send {
    type Error = StreamError;

    fn learn(&mut self, target: &TargetState) {
        self.told = target.clone();
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, StreamError> {
        let mut stream = match self.stream.take() {
            Some(stream) if base == Some(&Generation::zfs(self.to)) => stream,
            _ => OpaqueStream::new(Cursor::new(self.bytes())),
        };
        stream.learn(&self.told);
        let plan = stream.plan(base)?;
        assert!(matches!(plan.kind, PlanKind::Stream | PlanKind::UpToDate));
        self.stream = Some(stream);
        Ok(plan)
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, StreamError> {
        self.stream.as_mut().expect("it was planned").next_change(from)
    }

    fn finish(&mut self) -> Result<Finish, StreamError> {
        self.stream.as_mut().expect("it was planned").finish()
    }

    fn bytes_read(&self) -> u64 {
        self.stream.as_ref().map_or(0, OpaqueStream::bytes_read)
    }
}
