//! Names for a point in time of a volume, and for the volume itself.

use std::{fmt, str::FromStr};

use crate::Root;

/// The kind of storage that named a [`Generation`]: one to seven of `a` to `z` and `0` to `9`.
///
/// Each kind of source has one of its own, so that nobody takes a name of one for a name of another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme([u8; Self::LEN_MAX]);

impl Scheme {
    /// Bytes of the longest.
    pub const LEN_MAX: usize = 7;

    /// The guid of a ZFS snapshot, which the bookmark made from it shares.
    pub const ZFS: Self = Self::known("zfs");
    /// The current UUID of a DRBD device.
    pub const DRBD: Self = Self::known("drbd");
    /// The manifest root of a plain file or device: its content is its identity.
    pub const CONTENT: Self = Self::known("content");

    /// The scheme with these letters; `None` if they cannot be one.
    pub const fn new(letters: &str) -> Option<Self> {
        let letters = letters.as_bytes();
        if letters.is_empty() || letters.len() > Self::LEN_MAX {
            return None;
        }
        let mut padded = [0; Self::LEN_MAX];
        let mut at = 0;
        while at < letters.len() {
            if !matches!(letters[at], b'a'..=b'z' | b'0'..=b'9') {
                return None;
            }
            padded[at] = letters[at];
            at += 1;
        }
        Some(Self(padded))
    }

    /// The scheme of a source, by a literal.
    ///
    /// # Panics
    ///
    /// If the letters cannot be one: at compile time, in a constant.
    pub const fn known(letters: &str) -> Self {
        Self::new(letters).expect("a scheme is one to seven of a to z and 0 to 9")
    }

    /// The number that formats write in place of its letters, if it has one.
    pub fn code(&self) -> Option<u8> {
        CODED.iter().find(|row| row.1 == *self).map(|row| row.0)
    }

    /// The scheme with this number, and how many bytes each of its names has.
    pub fn of_code(code: u8) -> Option<(Self, usize)> {
        CODED.iter().find(|row| row.0 == code).map(|row| (row.1, row.2))
    }

    /// Its letters.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|letter| *letter == 0).unwrap_or(Self::LEN_MAX);
        str::from_utf8(&self.0[..len]).expect("a scheme is of ASCII letters and digits")
    }
}

/// Schemes that have a number in the formats of wire and books, and how long their names are.
const CODED: [(u8, Scheme, usize); 3] =
    [(1, Scheme::ZFS, 8), (2, Scheme::CONTENT, 32), (3, Scheme::DRBD, 8)];

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One immutable point in time of a volume, named by the storage's own identity.
///
/// Names of snapshots never decide anything: somebody can use them again. Nobody can these.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation {
    scheme: Scheme,
    len: u8,
    /// Zero behind `len`.
    name: [u8; Self::LEN_MAX],
}

impl Generation {
    /// Bytes of the longest name.
    pub const LEN_MAX: usize = 32;

    /// A generation that a storage of this kind calls by these bytes; `None` if there are none, or
    /// more than 32, or if no storage of this kind has such a name.
    pub fn new(scheme: Scheme, name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > Self::LEN_MAX {
            return None;
        }
        let len = CODED.iter().find(|row| row.1 == scheme).map_or(name.len(), |row| row.2);
        // Bit 0 of a UUID says only whether the device was Primary.
        if name.len() != len || scheme == Scheme::DRBD && name[0] & 1 != 0 {
            return None;
        }
        let mut padded = [0; Self::LEN_MAX];
        padded[..len].copy_from_slice(name);
        Some(Self { scheme, len: len as u8, name: padded })
    }

    /// The ZFS snapshot with this guid, or the bookmark made from it.
    pub const fn zfs(guid: u64) -> Self {
        Self::of_number(Scheme::ZFS, guid)
    }

    /// What a DRBD device held whose current UUID is this, whatever its role was.
    pub const fn drbd(uuid: u64) -> Self {
        Self::of_number(Scheme::DRBD, uuid & !1)
    }

    /// A plain file or device with this manifest root.
    pub const fn content(root: Root) -> Self {
        Self { scheme: Scheme::CONTENT, len: Self::LEN_MAX as u8, name: root.0 }
    }

    const fn of_number(scheme: Scheme, number: u64) -> Self {
        let mut name = [0; Self::LEN_MAX];
        (name.split_at_mut(8).0).copy_from_slice(&number.to_le_bytes());
        Self { scheme, len: 8, name }
    }

    /// The kind of storage.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What the storage calls it: 1 to 32 bytes.
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.len)]
    }

    /// The guid, if it is of ZFS.
    pub fn zfs_guid(&self) -> Option<u64> {
        self.number(Scheme::ZFS)
    }

    /// The UUID with its bit 0 clear, if it is of DRBD.
    pub fn drbd_uuid(&self) -> Option<u64> {
        self.number(Scheme::DRBD)
    }

    /// The root, if it is named by its content.
    pub fn content_root(&self) -> Option<Root> {
        (self.scheme == Scheme::CONTENT).then_some(Root(self.name))
    }

    fn number(&self, scheme: Scheme) -> Option<u64> {
        let bytes = self.name().try_into().ok().filter(|_| self.scheme == scheme)?;
        Some(u64::from_le_bytes(bytes))
    }
}

impl fmt::Display for Generation {
    /// Writes the scheme and, behind a colon, the name: a guid in decimal, a UUID as DRBD prints it,
    /// and the bytes of any other in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if let Some(guid) = self.zfs_guid() {
            write!(f, "{guid}")
        } else if let Some(uuid) = self.drbd_uuid() {
            write!(f, "{uuid:016x}")
        } else {
            self.name().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
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
        let (scheme, name) = text.split_once(':').ok_or(NoGeneration)?;
        let scheme = Scheme::new(scheme).ok_or(NoGeneration)?;
        let generation = match scheme {
            Scheme::ZFS => name.parse().ok().map(Self::zfs),
            Scheme::DRBD => u64::from_str_radix(name, 16).ok().map(Self::drbd),
            _ => bytes(name).and_then(|name| Self::new(scheme, &name)),
        };
        generation.filter(|generation| generation.to_string() == text).ok_or(NoGeneration)
    }
}

/// The bytes that these digits stand for, if they may be a name.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    if digits.len() > 2 * Generation::LEN_MAX {
        return None;
    }
    let pair = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
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
        let qemu = Scheme::known("qemu");
        for (generation, text) in [
            (Generation::zfs(0), "zfs:0".to_owned()),
            (Generation::zfs(u64::MAX), format!("zfs:{}", u64::MAX)),
            (Generation::drbd(9), "drbd:0000000000000008".to_owned()),
            (Generation::content(root), format!("content:{root}")),
            (Generation::new(qemu, &[1, 0xfe]).unwrap(), "qemu:01fe".to_owned()),
            (Generation::new(qemu, &[7; 32]).unwrap(), format!("qemu:{}", "07".repeat(32))),
        ] {
            assert_eq!(generation.to_string(), text);
            assert_eq!(text.parse(), Ok(generation));
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
            &text[8..],
            &text[..70],
            &text.to_uppercase(),
            "qemu:",
            "qemu:1",
            "qemu:+1",
            "qemu:AB",
            "qemu:é1",
            "eightlet:01",
            "a b:01",
            &format!("qemu:{}", "07".repeat(33)),
        ] {
            assert_eq!(bad.parse::<Generation>(), Err(NoGeneration), "{bad}");
        }
    }

    #[test]
    fn each_storage_has_names_of_its_own() {
        let guid = Generation::zfs(7);
        assert_eq!((guid.zfs_guid(), guid.drbd_uuid(), guid.content_root()), (Some(7), None, None));
        let uuid = Generation::drbd(6);
        assert_eq!((uuid.zfs_guid(), uuid.drbd_uuid(), uuid.content_root()), (None, Some(6), None));
        let root = Generation::content(Root([6; 32]));
        assert_eq!(root.content_root(), Some(Root([6; 32])));
        assert_eq!((root.zfs_guid(), root.drbd_uuid()), (None, None));
        for (scheme, name) in [
            (Scheme::ZFS, &[1; 7][..]),
            (Scheme::DRBD, &[2; 9]),
            (Scheme::DRBD, &[1; 8]),
            (Scheme::CONTENT, &[1; 31]),
            (Scheme::known("lvm"), &[]),
            (Scheme::known("lvm"), &[1; 33]),
        ] {
            assert_eq!(Generation::new(scheme, name), None, "{scheme} {name:?}");
        }
    }
}
