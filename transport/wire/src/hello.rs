//! The first sixteen bytes in each direction. They never change.

use crate::codec::{DecodeError, Reader, Write};

/// Length of a hello on the wire.
pub const HELLO_LEN: usize = 16;

/// What every connection starts with: not a word of any other protocol, not text, and
/// broken by transfers that touch line ends.
const MAGIC: [u8; 8] = *b"\x89DRFTL\r\n";

/// Protocol versions that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest of them.
pub const VERSION_MAX: u16 = 1;

/// Why two peers do not talk to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HelloError {
    /// The other side is not Driftline at all.
    #[error("the peer does not speak the Driftline protocol")]
    NotDriftline,
    /// Its hello makes no sense.
    #[error("the peer's hello is malformed")]
    Malformed(#[from] DecodeError),
    /// Both are Driftline, but too far apart.
    #[error(
        "the peer speaks protocol versions {peer_min} to {peer_max}, this build {VERSION_MIN} to \
         {VERSION_MAX}: upgrade the older one"
    )]
    NoCommonVersion {
        /// The peer's oldest version.
        peer_min: u16,
        /// The peer's newest version.
        peer_max: u16,
    },
}

/// What a side says of itself before anything is encrypted. Both hellos are mixed into the
/// handshake, so nobody in between can change them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest protocol version it speaks.
    pub version_min: u16,
    /// Newest protocol version it speaks.
    pub version_max: u16,
    /// Optional abilities, one bit each; a side uses those that both have. None exist yet. The
    /// topmost bit is no ability: see [`Hello::FULL`].
    pub features: u32,
}

/// All that the hello of a listener says that turns the dialler away.
const FULL: u32 = 1 << 31;

impl Hello {
    /// This build's hello.
    pub const OURS: Self = Self { version_min: VERSION_MIN, version_max: VERSION_MAX, features: 0 };

    /// What a listener says that has no room for another handshake, before it hangs up. Nobody
    /// has proven who says so: it tells a dialler to try again, and nothing else.
    pub const FULL: Self = Self { features: FULL, ..Self::OURS };

    /// Whether the listener turns us away.
    pub const fn is_full(&self) -> bool {
        self.features == FULL
    }

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut out = Vec::with_capacity(HELLO_LEN);
        out.put(&MAGIC);
        out.u16(self.version_min);
        out.u16(self.version_max);
        out.u32(self.features);
        out.try_into().expect("the fields above are sixteen bytes")
    }

    /// Reads a peer's hello.
    pub fn from_bytes(bytes: &[u8; HELLO_LEN]) -> Result<Self, HelloError> {
        let mut from = Reader::new(bytes);
        if from.array("magic")? != MAGIC {
            return Err(HelloError::NotDriftline);
        }
        let hello = Self {
            version_min: from.u16("version")?,
            version_max: from.u16("version")?,
            features: from.u32("features")?,
        };
        if hello.version_min == 0 || hello.version_min > hello.version_max {
            return Err(DecodeError::Invalid { what: "version range" }.into());
        }
        Ok(hello)
    }

    /// The version that this build and `peer` will speak: the newest common one.
    pub fn negotiate(peer: &Self) -> Result<u16, HelloError> {
        let version = peer.version_max.min(VERSION_MAX);
        if version < peer.version_min.max(VERSION_MIN) {
            let (peer_min, peer_max) = (peer.version_min, peer.version_max);
            return Err(HelloError::NoCommonVersion { peer_min, peer_max });
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hello_is_pinned() {
        let pinned = *b"\x89DRFTL\r\n\x01\x00\x01\x00\x00\x00\x00\x00";
        assert_eq!(Hello::OURS.to_bytes(), pinned);
        assert_eq!(Hello::from_bytes(&pinned), Ok(Hello::OURS));
    }

    #[test]
    fn versions_are_negotiated_or_named() {
        let peer = |version_min, version_max| Hello { version_min, version_max, features: 0 };
        assert_eq!(Hello::negotiate(&peer(1, 9)), Ok(1));
        assert_eq!(
            Hello::negotiate(&peer(2, 9)),
            Err(HelloError::NoCommonVersion { peer_min: 2, peer_max: 9 })
        );
        assert!(Hello::from_bytes(&peer(3, 2).to_bytes()).is_err());
        assert_eq!(Hello::from_bytes(b"GET / HTTP/1.1\r\n"), Err(HelloError::NotDriftline));
    }
}
