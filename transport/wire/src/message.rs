//! What the two sides say to each other, and its bytes.

use bytes::Bytes;
use driftline_extent::{
    Begin, CHUNK_LEN, Committed, Finish, Generation, Item, Offer, Plan, Reason, ReplicaId, Resume,
    Root, Takes, TargetState, VOLUME_LEN_MAX, VolumeId,
};

use crate::{
    codec::{CHUNKS_MAX, Codec, DecodeError, Reader, Write},
    limits::{
        BATCH_DATA_MAX, BATCH_ITEMS_MAX, BULK_LEN_MAX, CONTROL_LEN_MAX, DETAIL_LEN_MAX,
        NAME_LEN_MAX,
    },
};

/// What the dialling side wants to do with a volume of the listening side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Send increments to it.
    Push,
    /// Receive increments of it.
    Pull,
    /// Only hear its state.
    Status,
}

const VERBS: [(Verb, u8); 3] = [(Verb::Push, 1), (Verb::Pull, 2), (Verb::Status, 3)];

/// Some announced changes. Items ascend within a batch and, but for answers to
/// [`Item::Span`], from batch to batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Counts batches from zero in each increment.
    pub seq: u32,
    /// At most [`BATCH_ITEMS_MAX`], asking for at most [`BATCH_DATA_MAX`] bytes.
    pub items: Vec<Item>,
}

impl Batch {
    /// Data bytes that follow if all is wanted.
    pub fn data_len(&self) -> u64 {
        self.items.iter().map(Item::data_len).sum()
    }
}

/// A control message. The tables of the protocol are in the crate's documentation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Nothing to say, still here.
    KeepAlive,
    /// Dialler: what it wants.
    Request {
        /// What to do.
        verb: Verb,
        /// With which volume, by the listener's name for it.
        volume: String,
    },
    /// Listener: it may.
    Accept,
    /// Either: no. Ends the session.
    Refuse {
        /// Why, in one word.
        reason: Reason,
        /// Why, for a person.
        detail: String,
    },
    /// Target side: what it holds.
    State(Box<TargetState>),
    /// Source side: what it would deliver.
    Offer(Offer),
    /// Target side: go ahead.
    Begin(Begin),
    /// Source side: some changes.
    Batch(Batch),
    /// Target side: which items of a batch it wants the data of (for a span: which differ).
    Want {
        /// The batch.
        seq: u32,
        /// One for each item.
        wants: Vec<bool>,
    },
    /// Target side: a batch was taken in; its share of the window is free again.
    Applied {
        /// The batch.
        seq: u32,
    },
    /// Source side: that was all.
    Finish {
        /// Where it led to.
        finish: Finish,
        /// BLAKE3 over the encoded items of every batch of this session's increment.
        transcript: [u8; 32],
    },
    /// Target side: it is durable and was read back.
    Committed(Committed),
    /// Source side: there is nothing more; target side: agreed. Ends the session.
    Done,
}

/// Data that the target asked for, or a part of it: the wanted items' bytes of one batch, in
/// order, cut without regard to items.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataPart {
    /// The batch.
    pub seq: u32,
    /// How `body` is written.
    pub coding: Coding,
    /// Length of the bytes that `body` stands for.
    pub raw_len: u32,
    /// The bytes, coded.
    pub body: Bytes,
}

/// How the body of a [`DataPart`] is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Bytes of a [`DataPart`] before its body.
pub(crate) const PART_HEADER_LEN: usize = 12;

impl DataPart {
    pub(crate) fn header(&self) -> [u8; PART_HEADER_LEN] {
        let mut out = Vec::with_capacity(PART_HEADER_LEN);
        out.u32(self.seq);
        out.u8(match self.coding {
            Coding::Raw => 0,
            Coding::Zstd => 1,
        });
        out.put(&[0; 3]);
        out.u32(self.raw_len);
        out.try_into().expect("the fields above are twelve bytes")
    }

    pub(crate) fn from_bytes(mut bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.len() < PART_HEADER_LEN {
            return Err(DecodeError::Truncated { what: "data header" });
        }
        let header = bytes.split_to(PART_HEADER_LEN);
        let mut from = Reader::new(&header);
        let seq = from.u32("batch number")?;
        let coding = match from.u8("coding")? {
            0 => Coding::Raw,
            1 => Coding::Zstd,
            value => return Err(DecodeError::Unknown { what: "coding", value: value.into() }),
        };
        if from.array::<3>("reserved")? != [0; 3] {
            return Err(DecodeError::Invalid { what: "reserved bytes" });
        }
        let raw_len = from.u32("data length")?;
        let limit = BULK_LEN_MAX as u64;
        if u64::from(raw_len) > limit {
            let value = raw_len.into();
            return Err(DecodeError::Limit { what: "data length", value, limit });
        }
        let lies = match coding {
            Coding::Raw => bytes.len() != raw_len as usize,
            Coding::Zstd => bytes.len() >= raw_len as usize,
        };
        if raw_len == 0 || lies {
            return Err(DecodeError::Invalid { what: "data length" });
        }
        Ok(Self { seq, coding, raw_len, body: bytes })
    }
}

/// First byte of an encoded message. Numbers below 16 belong to the link itself.
mod tag {
    pub(super) const KEEP_ALIVE: u8 = 3;
    pub(super) const REQUEST: u8 = 16;
    pub(super) const ACCEPT: u8 = 17;
    pub(super) const REFUSE: u8 = 18;
    pub(super) const STATE: u8 = 19;
    pub(super) const OFFER: u8 = 20;
    pub(super) const BEGIN: u8 = 21;
    pub(super) const BATCH: u8 = 22;
    pub(super) const WANT: u8 = 23;
    pub(super) const APPLIED: u8 = 24;
    pub(super) const FINISH: u8 = 25;
    pub(super) const COMMITTED: u8 = 26;
    pub(super) const DONE: u8 = 27;
}

impl Message {
    /// The bytes of the message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::KeepAlive => out.u8(tag::KEEP_ALIVE),
            Self::Request { verb, volume } => {
                out.u8(tag::REQUEST);
                out.u8(VERBS.iter().find(|row| row.0 == *verb).map_or(0, |row| row.1));
                out.text(volume, NAME_LEN_MAX);
            }
            Self::Accept => out.u8(tag::ACCEPT),
            Self::Refuse { reason, detail } => {
                out.u8(tag::REFUSE);
                out.u16(reason.code());
                out.text(detail, DETAIL_LEN_MAX);
            }
            Self::State(state) => {
                out.u8(tag::STATE);
                state.encode(&mut out);
            }
            Self::Offer(offer) => {
                out.u8(tag::OFFER);
                offer.plan.encode(&mut out);
                out.bool(offer.overwrite);
            }
            Self::Begin(begin) => {
                out.u8(tag::BEGIN);
                out.u64(begin.from);
            }
            Self::Batch(batch) => {
                out.u8(tag::BATCH);
                out.u32(batch.seq);
                out.u16(batch.items.len() as u16);
                batch.items.iter().for_each(|item| item.encode(&mut out));
            }
            Self::Want { seq, wants } => {
                out.u8(tag::WANT);
                out.u32(*seq);
                encode_bits(wants, &mut out);
            }
            Self::Applied { seq } => {
                out.u8(tag::APPLIED);
                out.u32(*seq);
            }
            Self::Finish { finish, transcript } => {
                out.u8(tag::FINISH);
                finish.encode(&mut out);
                out.put(transcript);
            }
            Self::Committed(committed) => {
                out.u8(tag::COMMITTED);
                committed.encode(&mut out);
            }
            Self::Done => out.u8(tag::DONE),
        }
        debug_assert!(out.len() <= CONTROL_LEN_MAX);
        out
    }

    /// Reads a message; every byte must belong to it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let message = Self::decode(&mut from)?;
        from.end()?;
        Ok(message)
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8("message kind")? {
            tag::KEEP_ALIVE => Self::KeepAlive,
            tag::REQUEST => Self::Request {
                verb: decode_verb(from)?,
                volume: from.text(NAME_LEN_MAX.into(), "volume name")?,
            },
            tag::ACCEPT => Self::Accept,
            tag::REFUSE => Self::Refuse {
                // A newer peer's reason is still a refusal.
                reason: Reason::from_code(from.u16("reason")?).unwrap_or(Reason::Failed),
                detail: from.text(DETAIL_LEN_MAX.into(), "detail")?,
            },
            tag::STATE => Self::State(Box::new(TargetState::decode(from)?)),
            tag::OFFER => {
                Self::Offer(Offer { plan: Plan::decode(from)?, overwrite: from.bool("overwrite")? })
            }
            tag::BEGIN => Self::Begin(Begin { from: from.bounded(CHUNKS_MAX, "watermark")? }),
            tag::BATCH => Self::Batch(decode_batch(from)?),
            tag::WANT => Self::Want { seq: from.u32("batch number")?, wants: decode_bits(from)? },
            tag::APPLIED => Self::Applied { seq: from.u32("batch number")? },
            tag::FINISH => Self::Finish {
                finish: Finish::decode(from)?,
                transcript: from.array("transcript")?,
            },
            tag::COMMITTED => Self::Committed(Committed::decode(from)?),
            tag::DONE => Self::Done,
            value => {
                return Err(DecodeError::Unknown { what: "message kind", value: value.into() });
            }
        })
    }

    /// The name of the message in the protocol document.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::Request { .. } => "request",
            Self::Accept => "accept",
            Self::Refuse { .. } => "refuse",
            Self::State(_) => "state",
            Self::Offer(_) => "offer",
            Self::Begin(_) => "begin",
            Self::Batch(_) => "batch",
            Self::Want { .. } => "want",
            Self::Applied { .. } => "applied",
            Self::Finish { .. } => "finish",
            Self::Committed(_) => "committed",
            Self::Done => "done",
        }
    }
}

fn decode_verb(from: &mut Reader<'_>) -> Result<Verb, DecodeError> {
    let value = from.u8("verb")?;
    let unknown = DecodeError::Unknown { what: "verb", value: value.into() };
    VERBS.iter().find(|row| row.1 == value).map(|row| row.0).ok_or(unknown)
}

fn decode_batch(from: &mut Reader<'_>) -> Result<Batch, DecodeError> {
    let seq = from.u32("batch number")?;
    let count = decode_count(from)?;
    let items = (0..count).map(|_| Item::decode(from)).collect::<Result<Vec<_>, _>>()?;
    let batch = Batch { seq, items };
    if batch.data_len() > BATCH_DATA_MAX {
        let (value, limit) = (batch.data_len(), BATCH_DATA_MAX);
        return Err(DecodeError::Limit { what: "data of a batch", value, limit });
    }
    let ascending = batch.items.windows(2).all(|pair| match pair {
        [a, b] => a.first() + a.count() <= b.first(),
        _ => true,
    });
    if ascending { Ok(batch) } else { Err(DecodeError::Invalid { what: "order of items" }) }
}

fn decode_count(from: &mut Reader<'_>) -> Result<usize, DecodeError> {
    let count = usize::from(from.u16("item count")?);
    match count {
        0 => Err(DecodeError::Invalid { what: "item count" }),
        1..=BATCH_ITEMS_MAX => Ok(count),
        _ => {
            let (value, limit) = (count as u64, BATCH_ITEMS_MAX as u64);
            Err(DecodeError::Limit { what: "item count", value, limit })
        }
    }
}

fn encode_bits(bits: &[bool], out: &mut Vec<u8>) {
    out.u16(bits.len() as u16);
    for byte in bits.chunks(8) {
        out.u8(byte.iter().enumerate().fold(0, |sum, (i, bit)| sum | (u8::from(*bit) << i)));
    }
}

fn decode_bits(from: &mut Reader<'_>) -> Result<Vec<bool>, DecodeError> {
    let count = decode_count(from)?;
    let bytes = from.bytes(count.div_ceil(8), "bits")?;
    let mut bits = bytes.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1));
    let wants = bits.by_ref().take(count).collect();
    if bits.any(|bit| bit) { Err(DecodeError::Invalid { what: "unused bits" }) } else { Ok(wants) }
}

impl Codec for TargetState {
    fn encode(&self, out: &mut Vec<u8>) {
        self.replica.encode(out);
        out.put(&self.chunk_key);
        out.option(self.volume.as_ref(), |out, volume| volume.encode(out));
        out.option(self.generation.as_ref(), |out, generation| generation.encode(out));
        out.option(self.root.as_ref(), |out, root| root.encode(out));
        out.u64(self.size);
        out.bool(self.incomplete);
        out.option(self.resume.as_ref(), |out, resume| resume.encode(out));
        self.takes.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            replica: ReplicaId::decode(from)?,
            chunk_key: from.array("chunk key")?,
            volume: from.option("volume", VolumeId::decode)?,
            generation: from.option("generation", Generation::decode)?,
            root: from.option("root", Root::decode)?,
            size: from.bounded(VOLUME_LEN_MAX, "size")?,
            incomplete: from.bool("incomplete")?,
            resume: from.option("resume", Resume::decode)?,
            takes: Takes::decode(from)?,
        })
    }
}

impl Codec for Finish {
    fn encode(&self, out: &mut Vec<u8>) {
        self.tip.encode(out);
        out.option(self.size, Write::u64);
        out.option(self.root.as_ref(), |out, root| root.encode(out));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            tip: Generation::decode(from)?,
            size: from.option("size", |from| from.bounded(VOLUME_LEN_MAX, "size"))?,
            root: from.option("root", Root::decode)?,
        })
    }
}

impl Codec for Committed {
    fn encode(&self, out: &mut Vec<u8>) {
        self.generation.encode(out);
        self.root.encode(out);
        out.u64(self.size);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            generation: Generation::decode(from)?,
            root: Root::decode(from)?,
            size: from.bounded(VOLUME_LEN_MAX, "size")?,
        })
    }
}

const _: () = assert!(BULK_LEN_MAX > PART_HEADER_LEN && CHUNK_LEN as usize <= BULK_LEN_MAX / 2);
