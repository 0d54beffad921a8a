//! What the two sides say to each other, and its bytes.

use bytes::Bytes;
use driftline_extent::{
    Accepts, Ask, Begin, CHUNK_LEN, Committed, Finish, GRAINS_PER_CHUNK, Generation, GrainHash,
    GrainMask, Item, Missing, Offer, Plan, Reason, ReplicaId, Resume, Root, TargetState,
    VOLUME_LEN_MAX, VolumeId,
};

use crate::{
    codec::{CHUNKS_MAX, Codec, DecodeError, Reader, Write},
    limits::{
        BATCH_DATA_MAX, BATCH_HASHES_MAX, BATCH_ITEMS_MAX, BULK_LEN_MAX, CONTROL_LEN_MAX,
        DETAIL_LEN_MAX, NAME_LEN_MAX,
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
        /// Of a push, a volume of the listener that the first copy is like, by its name there.
        like: Option<String>,
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
    /// Source side: the state of one data set of a target of streams is wanted.
    Ask(Ask),
    /// Source side: what it would deliver.
    Offer(Offer),
    /// Target side: go ahead.
    Begin(Begin),
    /// Source side: some changes.
    Batch(Batch),
    /// Target side: what it lacks of the items of a batch.
    Want {
        /// The batch.
        seq: u32,
        /// One for each item.
        missing: Vec<Missing>,
    },
    /// Source side: what follows of the items whose grains the target told hashes of.
    Narrowed {
        /// The batch.
        seq: u32,
        /// One for each such item.
        grains: Vec<GrainMask>,
    },
    /// Target side: narrowed items that do not come out as announced. All of their data is
    /// wanted now.
    Again {
        /// The batch.
        seq: u32,
        /// Their places in the batch, ascending.
        items: Vec<u16>,
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
    pub(super) const NARROWED: u8 = 28;
    pub(super) const AGAIN: u8 = 29;
    pub(super) const ASK: u8 = 30;
}

impl Message {
    /// The bytes of the message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::KeepAlive => out.u8(tag::KEEP_ALIVE),
            Self::Request { verb, volume, like } => {
                out.u8(tag::REQUEST);
                out.u8(VERBS.iter().find(|row| row.0 == *verb).map_or(0, |row| row.1));
                out.text(volume, NAME_LEN_MAX);
                out.option(like.as_ref(), |out, like| out.text(like, NAME_LEN_MAX));
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
            Self::Ask(Ask { member, discard }) => {
                out.u8(tag::ASK);
                out.text(member, NAME_LEN_MAX);
                out.bool(*discard);
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
            Self::Want { seq, missing } => {
                out.u8(tag::WANT);
                out.u32(*seq);
                encode_lacks(missing, &mut out);
            }
            Self::Narrowed { seq, grains } => {
                out.u8(tag::NARROWED);
                out.u32(*seq);
                out.u16(grains.len() as u16);
                grains.iter().for_each(|grains| out.u16(grains.0));
            }
            Self::Again { seq, items } => {
                out.u8(tag::AGAIN);
                out.u32(*seq);
                out.u16(items.len() as u16);
                items.iter().for_each(|item| out.u16(*item));
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
                like: from.option("seed", |from| from.text(NAME_LEN_MAX.into(), "volume name"))?,
            },
            tag::ACCEPT => Self::Accept,
            tag::REFUSE => Self::Refuse {
                // A newer peer's reason is still a refusal.
                reason: Reason::from_code(from.u16("reason")?).unwrap_or(Reason::Failed),
                detail: from.text(DETAIL_LEN_MAX.into(), "detail")?,
            },
            tag::STATE => Self::State(Box::new(TargetState::decode(from)?)),
            tag::ASK => Self::Ask(Ask {
                member: from.text(NAME_LEN_MAX.into(), "data set name")?,
                discard: from.bool("discard")?,
            }),
            tag::OFFER => {
                Self::Offer(Offer { plan: Plan::decode(from)?, overwrite: from.bool("overwrite")? })
            }
            tag::BEGIN => Self::Begin(Begin { from: from.bounded(CHUNKS_MAX, "watermark")? }),
            tag::BATCH => Self::Batch(decode_batch(from)?),
            tag::WANT => {
                Self::Want { seq: from.u32("batch number")?, missing: decode_lacks(from)? }
            }
            tag::NARROWED => {
                let (seq, count) = (from.u32("batch number")?, decode_count(from)?);
                let grains = (0..count).map(|_| from.u16("grains").map(GrainMask));
                Self::Narrowed { seq, grains: grains.collect::<Result<_, _>>()? }
            }
            tag::AGAIN => {
                Self::Again { seq: from.u32("batch number")?, items: decode_places(from)? }
            }
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
            Self::Ask(_) => "ask",
            Self::Offer(_) => "offer",
            Self::Begin(_) => "begin",
            Self::Batch(_) => "batch",
            Self::Want { .. } => "want",
            Self::Narrowed { .. } => "narrowed",
            Self::Again { .. } => "again",
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

/// Stands for an item of which nothing is lacking, and for one of which all is. A larger number
/// is that of the hashes which follow: one alone is never told.
const LACK_NOTHING: u8 = 0;
const LACK_ALL: u8 = 1;

fn encode_lacks(missing: &[Missing], out: &mut Vec<u8>) {
    out.u16(missing.len() as u16);
    for lack in missing {
        match lack {
            Missing::Nothing => out.u8(LACK_NOTHING),
            Missing::All => out.u8(LACK_ALL),
            Missing::Unlike(hashes) => {
                debug_assert!((2..=GRAINS_PER_CHUNK as usize).contains(&hashes.len()));
                out.u8(hashes.len() as u8);
                hashes.iter().for_each(|hash| out.put(&hash.0));
            }
        }
    }
}

fn decode_lacks(from: &mut Reader<'_>) -> Result<Vec<Missing>, DecodeError> {
    let count = decode_count(from)?;
    let mut hashes_left = BATCH_HASHES_MAX;
    let mut missing = Vec::new();
    for _ in 0..count {
        missing.push(match from.u8("want")? {
            LACK_NOTHING => Missing::Nothing,
            LACK_ALL => Missing::All,
            count if u32::from(count) > GRAINS_PER_CHUNK => {
                let (value, limit) = (count.into(), GRAINS_PER_CHUNK.into());
                return Err(DecodeError::Limit { what: "hashes of an item", value, limit });
            }
            count => {
                let Some(left) = hashes_left.checked_sub(count.into()) else {
                    let limit = BATCH_HASHES_MAX as u64;
                    let value = limit - hashes_left as u64 + u64::from(count);
                    return Err(DecodeError::Limit { what: "hashes of a batch", value, limit });
                };
                hashes_left = left;
                let hashes = (0..count).map(|_| from.array("hash of a grain").map(GrainHash));
                Missing::Unlike(hashes.collect::<Result<_, _>>()?)
            }
        });
    }
    Ok(missing)
}

fn decode_places(from: &mut Reader<'_>) -> Result<Vec<u16>, DecodeError> {
    let count = decode_count(from)?;
    let places = (0..count).map(|_| from.u16("place in a batch")).collect::<Result<Vec<_>, _>>()?;
    let ascending = places.is_sorted_by(|a, b| a < b);
    let within = places.last().is_none_or(|last| usize::from(*last) < BATCH_ITEMS_MAX);
    if ascending && within {
        Ok(places)
    } else {
        Err(DecodeError::Invalid { what: "places in a batch" })
    }
}

impl Codec for TargetState {
    fn encode(&self, out: &mut Vec<u8>) {
        self.replica.encode(out);
        out.put(&self.chunk_key);
        out.option(self.volume.as_ref(), |out, volume| volume.encode(out));
        out.option(self.generation.as_ref(), |out, generation| generation.encode(out));
        out.option(self.root.as_ref(), |out, root| root.encode(out));
        out.u64(self.size);
        out.u8(u8::from(self.incomplete) | u8::from(self.damaged) << 1);
        out.option(self.resume.as_ref(), |out, resume| resume.encode(out));
        self.accepts.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let replica = ReplicaId::decode(from)?;
        let chunk_key = from.array("chunk key")?;
        let volume = from.option("volume", VolumeId::decode)?;
        let generation = from.option("generation", Generation::decode)?;
        let root = from.option("root", Root::decode)?;
        let size = from.bounded(VOLUME_LEN_MAX, "size")?;
        let (incomplete, damaged) = match from.u8("flags")? {
            flags @ 0..4 => (flags & 1 != 0, flags & 2 != 0),
            flags => return Err(DecodeError::Unknown { what: "flags", value: flags.into() }),
        };
        let resume = from.option("resume", Resume::decode)?;
        let accepts = Accepts::decode(from)?;
        Ok(Self {
            replica,
            chunk_key,
            volume,
            generation,
            root,
            size,
            incomplete,
            damaged,
            resume,
            accepts,
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
        out.option(self.zeroed, |out, zeroed| out.u64(zeroed));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            generation: Generation::decode(from)?,
            root: Root::decode(from)?,
            size: from.bounded(VOLUME_LEN_MAX, "size")?,
            zeroed: from.option("zeroed", |from| from.bounded(VOLUME_LEN_MAX, "zeroed bytes"))?,
        })
    }
}

const _: () = assert!(BULK_LEN_MAX > PART_HEADER_LEN && CHUNK_LEN as usize <= BULK_LEN_MAX / 2);
