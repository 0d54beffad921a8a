//! Frames: the header in front of everything that follows the hello, and the bulk cipher.

use bytes::{Bytes, BytesMut};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInOut};

use crate::{
    codec::{DecodeError, Reader, Write},
    limits::BULK_LEN_MAX,
    link::LinkError,
    message::{DataPart, PART_HEADER_LEN},
};

/// Length of a frame header on the wire.
pub(crate) const HEADER_LEN: usize = 24;
/// Length of an authentication tag, in Noise messages and bulk frames alike.
pub(crate) const TAG_LEN: usize = 16;
/// Longest body of a Noise message.
const NOISE_LEN_MAX: usize = 65_535;

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

    /// The whole frame for some data.
    pub(crate) fn seal(&self, part: &DataPart, seq: u64, pair: u64) -> Result<Bytes, LinkError> {
        let len = PART_HEADER_LEN + part.body.len() + TAG_LEN;
        let header = Header { kind: FrameKind::Bulk, len: len as u32, seq, pair }.to_bytes();
        let mut frame = BytesMut::with_capacity(HEADER_LEN + len);
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&part.header());
        frame.extend_from_slice(&part.body);
        let (_, body) = frame.split_at_mut(HEADER_LEN);
        let tag = self
            .cipher
            .encrypt_inout_detached(&Self::nonce(seq).into(), &header, body.into())
            .map_err(|_| LinkError::Crypto)?;
        frame.extend_from_slice(&tag);
        Ok(frame.freeze())
    }

    /// Opens the body of a frame in place.
    pub(crate) fn open(&self, header: Header, mut body: BytesMut) -> Result<DataPart, LinkError> {
        let at = body.len().checked_sub(TAG_LEN).ok_or(LinkError::Crypto)?;
        let tag = body.split_off(at);
        let tag: [u8; TAG_LEN] = tag.as_ref().try_into().map_err(|_| LinkError::Crypto)?;
        self.cipher
            .decrypt_inout_detached(
                &Self::nonce(header.seq).into(),
                &header.to_bytes(),
                body.as_mut().into(),
                &tag.into(),
            )
            .map_err(|_| LinkError::Crypto)?;
        Ok(DataPart::from_bytes(body.freeze())?)
    }
}

impl std::fmt::Debug for BulkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BulkKey(..)")
    }
}
