//! Names for a point in time of a volume, and for the volume itself.

use std::{fmt, str::FromStr};

use crate::Root;

/// One immutable point in time of a volume, named by the storage's own identity.
///
/// Names of snapshots never decide anything: they can be reused. These cannot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Generation {
    /// The guid of a ZFS snapshot (or of the bookmark made from it).
    Zfs(u64),
    /// The manifest root of a plain file or device: its content is its identity.
    Content(Root),
    /// The current UUID of a DRBD device. Its bit 0 says only whether the device was Primary
    /// and is always clear here: make it with [`Generation::drbd`].
    Drbd(u64),
}

impl Generation {
    /// The generation of a DRBD device whose current UUID is this, whatever its role was.
    pub const fn drbd(uuid: u64) -> Self {
        Self::Drbd(uuid & !1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zfs(guid) => write!(f, "zfs:{guid}"),
            Self::Content(root) => write!(f, "content:{root}"),
            Self::Drbd(uuid) => write!(f, "drbd:{uuid:016x}"),
        }
    }
}

/// A text that names no generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoGeneration;

impl fmt::Display for NoGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this names no generation, such as zfs:1234567 does")
    }
}

impl std::error::Error for NoGeneration {}

impl FromStr for Generation {
    type Err = NoGeneration;

    /// Reads what [`Display`](fmt::Display) writes, and nothing else.
    fn from_str(text: &str) -> Result<Self, NoGeneration> {
        let (kind, name) = text.split_once(':').ok_or(NoGeneration)?;
        let generation = match kind {
            "zfs" => name.parse().ok().map(Self::Zfs),
            "drbd" => u64::from_str_radix(name, 16).ok().map(Self::drbd),
            "content" => root(name).map(Self::Content),
            _ => None,
        };
        generation.filter(|generation| generation.to_string() == text).ok_or(NoGeneration)
    }
}

fn root(digits: &str) -> Option<Root> {
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(Root(bytes))
}

bytes_newtype! {
    /// The identity of a source volume as far as its storage has one.
    ///
    /// For a plain file or device it is made of machine and path; a replica remembers it, so
    /// that another volume is not written over it by a slip of the command line.
    VolumeId, 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_of_a_drbd_device_is_no_part_of_its_name() {
        let primary = Generation::drbd(0x057610b9_e6523719);
        assert_eq!(primary, Generation::drbd(0x057610b9_e6523718));
        assert_eq!(primary.to_string(), "drbd:057610b9e6523718");
    }

    #[test]
    fn what_is_written_can_be_read() {
        let root = Root([0xab; 32]);
        for generation in [
            Generation::Zfs(0),
            Generation::Zfs(u64::MAX),
            Generation::drbd(9),
            Generation::Content(root),
        ] {
            assert_eq!(generation.to_string().parse(), Ok(generation));
        }
        let text = format!("content:{root}");
        for bad in [
            "",
            "zfs",
            "zfs:",
            "zfs:+1",
            "zfs:01",
            "drbd:9",
            "drbd:0000000000000001",
            "Zfs:1",
            &text[1..],
            &text[..70],
            &text.to_uppercase(),
        ] {
            assert_eq!(bad.parse::<Generation>(), Err(NoGeneration), "{bad}");
        }
    }
}
