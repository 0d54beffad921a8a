//! Frames: the header in front of everything that follows the hello, and the bulk cipher.

use bytes::{Bytes, BytesMut};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInOut};

use crate::{
    codec::{DecodeError, Reader, Write},
    limits::BULK_LEN_MAX,
    message::{DataPart, PART_HEADER_LEN},
};

/// Length of a frame header on the wire.
pub(crate) const HEADER_LEN: usize = 24;
/// Length of an authentication tag, in Noise messages and bulk frames alike.
pub(crate) const TAG_LEN: usize = 16;
/// What a bulk frame has before the bytes of its part.
const BULK_FRONT_LEN: usize = HEADER_LEN + PART_HEADER_LEN;
/// What a bulk frame has around the bytes of its part.
pub(crate) const BULK_ROOM: usize = BULK_FRONT_LEN + TAG_LEN;
/// A body shorter than this is copied: to open the frame took longer.
const KEPT_LEN_MIN: usize = 32 << 10;
/// Longest body of a Noise message.
const NOISE_LEN_MAX: usize = 65_535;

/// Why a bulk frame cannot be sealed or opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BulkError {
    /// It does not authenticate.
    Crypto,
    /// It does, but what is in it makes no sense.
    Decode(DecodeError),
}

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameKind {
    /// A message of the Noise handshake.
    Handshake,
    /// A Noise transport message: a control message.
    Control,
    /// Data under the bulk key.
    Bulk,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Handshake => 1,
            Self::Control => 2,
            Self::Bulk => 3,
        }
    }

    const fn len_max(self) -> usize {
        match self {
            Self::Handshake | Self::Control => NOISE_LEN_MAX,
            Self::Bulk => PART_HEADER_LEN + BULK_LEN_MAX + TAG_LEN,
        }
    }
}

/// What stands before every frame, in clear, and is authenticated with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: FrameKind,
    /// Length of the body, with its tag.
    pub(crate) len: u32,
    /// Counts the frames of a direction, of all kinds together: none can be left out,
    /// doubled or moved, also not between control and bulk.
    pub(crate) seq: u64,
    /// The pair of volumes that the frame is about, zero before there is one.
    pub(crate) pair: u64,
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.u8(self.kind.code());
        out.put(&[0; 3]);
        out.u32(self.len);
        out.u64(self.seq);
        out.u64(self.pair);
        out.try_into().expect("the fields above are twenty-four bytes")
    }

    pub(crate) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let kind = match from.u8("frame kind")? {
            1 => FrameKind::Handshake,
            2 => FrameKind::Control,
            3 => FrameKind::Bulk,
            value => return Err(DecodeError::Unknown { what: "frame kind", value: value.into() }),
        };
        if from.array::<3>("reserved")? != [0; 3] {
            return Err(DecodeError::Invalid { what: "reserved bytes" });
        }
        let len = from.u32("frame length")?;
        let limit = kind.len_max() as u64;
        if u64::from(len) > limit {
            return Err(DecodeError::Limit { what: "frame length", value: len.into(), limit });
        }
        if (len as usize) < TAG_LEN {
            return Err(DecodeError::Invalid { what: "frame length" });
        }
        Ok(Self { kind, len, seq: from.u64("sequence")?, pair: from.u64("pair")? })
    }

    /// The part of the header that a control frame repeats inside its encryption, as Noise
    /// transport messages have no associated data.
    pub(crate) fn inner(self) -> [u8; 16] {
        let mut inner = [0; 16];
        inner[..8].copy_from_slice(&self.seq.to_le_bytes());
        inner[8..].copy_from_slice(&self.pair.to_le_bytes());
        inner
    }
}

/// Seals or opens the bulk frames of one direction under one key.
pub(crate) struct BulkKey {
    cipher: ChaCha20Poly1305,
}

impl BulkKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self { cipher: ChaCha20Poly1305::new(key.into()) }
    }

    /// The frame's sequence number, which never repeats under a key.
    fn nonce(seq: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&seq.to_le_bytes());
        nonce
    }

    /// The whole frame for some data. It is made in the memory of the data, if nobody else has that
    /// and there are [`BULK_ROOM`] bytes of room behind it.
    pub(crate) fn seal(&self, part: DataPart, seq: u64, pair: u64) -> Result<Bytes, BulkError> {
        let data_len = part.body.len();
        let len = PART_HEADER_LEN + data_len + TAG_LEN;
        let header = Header { kind: FrameKind::Bulk, len: len as u32, seq, pair }.to_bytes();
        let part_header = part.header();
        let body = part.body.try_into_mut();
        let mut frame = body.unwrap_or_else(|shared| BytesMut::from(shared.as_ref()));
        frame.reserve(BULK_ROOM);
        frame.resize(BULK_FRONT_LEN + data_len, 0);
        frame.copy_within(..data_len, BULK_FRONT_LEN);
        frame[..HEADER_LEN].copy_from_slice(&header);
        frame[HEADER_LEN..BULK_FRONT_LEN].copy_from_slice(&part_header);
        let (_, body) = frame.split_at_mut(HEADER_LEN);
        let tag = self
            .cipher
            .encrypt_inout_detached(&Self::nonce(seq).into(), &header, body.into())
            .map_err(|_| BulkError::Crypto)?;
        frame.extend_from_slice(&tag);
        Ok(frame.freeze())
    }

    /// Opens the body of a frame in place.
    pub(crate) fn open(&self, header: Header, mut body: BytesMut) -> Result<DataPart, BulkError> {
        let at = body.len().checked_sub(TAG_LEN).ok_or(BulkError::Crypto)?;
        let tag = body.split_off(at);
        let tag: [u8; TAG_LEN] = tag.as_ref().try_into().map_err(|_| BulkError::Crypto)?;
        self.cipher
            .decrypt_inout_detached(
                &Self::nonce(header.seq).into(),
                &header.to_bytes(),
                body.as_mut().into(),
                &tag.into(),
            )
            .map_err(|_| BulkError::Crypto)?;
        // A short part must not keep all that was received with it.
        let body = match body.len() < KEPT_LEN_MIN {
            true => Bytes::copy_from_slice(&body),
            false => body.freeze(),
        };
        DataPart::from_bytes(body).map_err(BulkError::Decode)
    }
}

impl std::fmt::Debug for BulkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BulkKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Coding;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let kinds = [FrameKind::Handshake, FrameKind::Control, FrameKind::Bulk];
        (prop::sample::select(kinds.to_vec()), any::<u32>(), any::<u64>(), any::<u64>()).prop_map(
            |(kind, len, seq, pair)| {
                let lens = TAG_LEN as u32..=kind.len_max() as u32;
                let len = lens.start() + len % (lens.end() - lens.start() + 1);
                Header { kind, len, seq, pair }
            },
        )
    }

    /// Parts as they are on the wire; compressed bodies need not be zstd there.
    fn part() -> impl Strategy<Value = DataPart> {
        let body = prop::collection::vec(any::<u8>(), 1..300);
        (any::<u32>(), any::<bool>(), 1..5000_u32, body).prop_map(|(seq, raw, more, body)| {
            let (coding, raw_len) = match raw {
                true => (Coding::Raw, body.len() as u32),
                false => (Coding::Zstd, body.len() as u32 + more),
            };
            DataPart { seq, coding, raw_len, body: body.into() }
        })
    }

    fn part_bytes(part: &DataPart) -> Vec<u8> {
        [part.header().as_slice(), &part.body].concat()
    }

    fn read_part(bytes: &[u8]) -> Result<DataPart, DecodeError> {
        DataPart::from_bytes(Bytes::copy_from_slice(bytes))
    }

    proptest! {
        #[test]
        fn a_header_survives_its_encoding(header in header()) {
            prop_assert_eq!(Header::from_bytes(&header.to_bytes()), Ok(header));
        }

        #[test]
        fn a_header_that_is_read_is_written_the_same(
            header in header(), at in 0..HEADER_LEN, byte: u8,
        ) {
            let mut bytes = header.to_bytes();
            bytes[at] = byte;
            if let Ok(header) = Header::from_bytes(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }

        #[test]
        fn a_part_survives_its_encoding(part in part(), at: prop::sample::Index, byte: u8) {
            let mut bytes = part_bytes(&part);
            prop_assert_eq!(read_part(&bytes), Ok(part));
            for len in 0..PART_HEADER_LEN {
                prop_assert!(read_part(&bytes[..len]).is_err());
            }
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(part) = read_part(&bytes) {
                prop_assert_eq!(part_bytes(&part), bytes);
            }
        }

        #[test]
        fn a_raw_part_is_as_long_as_it_says(part in part()) {
            prop_assume!(part.coding == Coding::Raw);
            let mut bytes = part_bytes(&part);
            let invalid = Err(DecodeError::Invalid { what: "data length" });
            for len in PART_HEADER_LEN..bytes.len() {
                prop_assert_eq!(read_part(&bytes[..len]), invalid.clone());
            }
            bytes.push(0);
            prop_assert_eq!(read_part(&bytes), invalid);
        }

        #[test]
        fn arbitrary_bytes_do_not_open(
            bytes in prop::collection::vec(any::<u8>(), 0..100), seq: u64, pair: u64,
        ) {
            let header = Header { kind: FrameKind::Bulk, len: bytes.len() as u32, seq, pair };
            let opened = BulkKey::new(&[5; 32]).open(header, bytes.as_slice().into());
            prop_assert!(matches!(opened, Err(BulkError::Crypto)));
        }
    }

    #[test]
    fn a_frame_is_at_least_its_tag_and_at_most_the_limit_of_its_kind() {
        let limits = [(FrameKind::Handshake, 65_535), (FrameKind::Control, 65_535)];
        for (kind, limit) in limits.into_iter().chain([(FrameKind::Bulk, 1_048_604)]) {
            let read = |len| Header::from_bytes(&Header { kind, len, seq: 0, pair: 0 }.to_bytes());
            assert!(read(16).is_ok() && read(limit).is_ok());
            assert_eq!(read(15), Err(DecodeError::Invalid { what: "frame length" }));
            let (what, value, limit) = ("frame length", u64::from(limit) + 1, u64::from(limit));
            assert_eq!(read(limit as u32 + 1), Err(DecodeError::Limit { what, value, limit }));
        }
    }

    #[test]
    fn a_part_stands_for_at_least_a_byte_and_at_most_a_mebibyte() {
        let part = |coding, raw_len, body: usize| {
            let body = vec![7; body].into();
            read_part(&part_bytes(&DataPart { seq: 1, coding, raw_len, body }))
        };
        let limit = 1_u32 << 20;
        let invalid = Err(DecodeError::Invalid { what: "data length" });
        let over =
            |value| Err(DecodeError::Limit { what: "data length", value, limit: u64::from(limit) });
        assert!(part(Coding::Raw, limit, limit as usize).is_ok());
        assert_eq!(part(Coding::Raw, limit + 1, limit as usize + 1), over(u64::from(limit) + 1));
        assert_eq!(part(Coding::Raw, 0, 0), invalid);
        assert!(part(Coding::Zstd, limit, 9).is_ok());
        assert_eq!(part(Coding::Zstd, u32::MAX, 9), over(u64::from(u32::MAX)));
        // What does not shrink is sent as it is.
        assert_eq!(part(Coding::Zstd, 9, 9), invalid);
        assert!(part(Coding::Zstd, 9, 8).is_ok());
    }

    #[test]
    fn a_sealed_part_opens_under_its_own_key_and_header_only() {
        let part = DataPart { seq: 1, coding: Coding::Raw, raw_len: 3, body: vec![1, 2, 3].into() };
        let frame = BulkKey::new(&[5; 32]).seal(part.clone(), 9, 8).unwrap();
        let (head, body) = frame.split_first_chunk().unwrap();
        let header = Header::from_bytes(head).unwrap();
        let open = |key: u8, header| BulkKey::new(&[key; 32]).open(header, body.into());
        assert_eq!(open(5, header).unwrap(), part);
        assert!(open(6, header).is_err());
        assert!(open(5, Header { seq: 10, ..header }).is_err());
        assert!(open(5, Header { pair: 9, ..header }).is_err());
        assert!(open(5, Header { len: header.len + 1, ..header }).is_err());
        assert!(open(5, Header { kind: FrameKind::Control, ..header }).is_err());
    }

    #[test]
    fn a_frame_is_made_in_the_memory_of_its_part() {
        let mut body = Vec::with_capacity(1000 + BULK_ROOM);
        body.extend((0..1000_u32).map(|i| i as u8));
        let at = body.as_ptr();
        let part = DataPart { seq: 1, coding: Coding::Raw, raw_len: 1000, body: body.into() };
        let shared = part.clone();
        let seal = |part| BulkKey::new(&[5; 32]).seal(part, 9, 8).unwrap();
        // The data of somebody else stays what it is.
        let copied = seal(part);
        assert_eq!(shared.body, (0..1000_u32).map(|i| i as u8).collect::<Vec<u8>>());
        let moved = seal(shared);
        assert_eq!((moved.as_ptr(), &moved), (at, &copied));
    }
}
