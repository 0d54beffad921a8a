//! What the first records of a send stream say of all of it, for whoever decides how to receive it.
//!
//! Nothing here is proven: no checksum has been looked at. ZFS checks all of them when it
//! receives the stream; what is decided by this is which options it is given.

use std::collections::BTreeSet;

use crate::{
    BEGIN_PAYLOAD_MAX, Begin, DatasetKind, Features, HEADER_LEN, Nvlist, Record, Value,
    record::order_of_begin,
};

/// The beginning of a stream.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Head {
    /// What its first data set is; `None` where it does not say.
    pub kind: Option<DatasetKind>,
    /// Whether its blocks are encrypted as on disk (`-w` of an encrypted data set).
    pub encrypted: bool,
    /// Whether it may have embedded blocks, which no encrypted data set takes (`-e`).
    pub embedded: bool,
    /// Whether it goes on where another was cut off.
    pub resumed: bool,
    /// Whether properties come with it (`-p`, `-R`), which also say that it is not encrypted.
    pub packaged: bool,
    /// The salt of the passphrase that a raw stream is encrypted under, if it is under one.
    pub salt: Option<u64>,
    /// What of the tree it has, by the path below its root; the root is an empty one. Only of a
    /// stream with properties.
    pub members: Vec<Member>,
}

/// A data set that comes with its properties.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Member {
    /// Its path below the root of what was sent.
    pub path: String,
    /// The names of the properties that come with it.
    pub properties: BTreeSet<String>,
}

impl Head {
    /// What `bytes`, which are the first of a stream, say. `None`: more of them are needed.
    /// What is no stream at all has an empty head: ZFS will say what is wrong with it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let Some((begin, list, rest)) = opening(bytes)? else { return Some(Self::default()) };
        if !begin.compound {
            return Some(Self::default().of(&begin, &list));
        }
        let members = members(&list, begin.toname.split('@').next().unwrap_or_default());
        let packaged = list.get("fss").is_some();
        let head = Self { packaged, members, ..Self::default() };
        // Its END; then the first data set's own BEGIN, unless it has none.
        let first = rest.get(HEADER_LEN..)?;
        Some(match opening(first)? {
            Some((begin, list, _)) => head.of(&begin, &list),
            None => head,
        })
    }

    /// What the BEGIN of a data set adds.
    fn of(self, begin: &Begin, list: &Nvlist) -> Self {
        let keys = match list.get("crypt_keydata") {
            Some(Value::Nvlist(keys)) => Some(keys),
            _ => None,
        };
        Self {
            kind: match begin.objset_type {
                2 => Some(DatasetKind::FileSystem),
                3 => Some(DatasetKind::Volume),
                _ => None,
            },
            encrypted: begin.features.has_any(Features::RAW) && keys.is_some(),
            embedded: begin.features.has_any(Features::EMBED_DATA),
            resumed: begin.features.has_any(Features::RESUMING),
            salt: keys.and_then(|keys| keys.get_u64("pbkdf2salt")).filter(|salt| *salt != 0),
            ..self
        }
    }

    /// Whether it has more than one data set. Their kinds are not told before their turn.
    pub const fn is_tree(&self) -> bool {
        self.members.len() > 1
    }

    /// Whether this property comes with any of its members.
    pub fn brings(&self, property: &str) -> bool {
        self.members.iter().any(|member| member.properties.contains(property))
    }
}

/// A BEGIN, its list, and what follows. Outside `None`: it is not whole yet; inside: it is none.
#[expect(clippy::option_option, reason = "the two mean different things, and it is private")]
fn opening(bytes: &[u8]) -> Option<Option<(Begin, Nvlist, &[u8])>> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let Some(order) = order_of_begin(header) else { return Some(None) };
    let Some(Record::Begin(begin)) = Record::parse(header, order) else { return Some(None) };
    if u64::from(begin.payload_len) > BEGIN_PAYLOAD_MAX {
        return Some(None);
    }
    let (payload, rest) = rest.split_at_checked(begin.payload_len as usize)?;
    // One that cannot be read is for ZFS to refuse.
    let list = if payload.is_empty() { Ok(Nvlist::default()) } else { Nvlist::decode(payload) };
    Some(Some((begin, list.unwrap_or_default(), rest)))
}

/// The data sets of a package whose root has this name, and the properties that come with each.
fn members(list: &Nvlist, root: &str) -> Vec<Member> {
    let Some(Value::Nvlist(all)) = list.get("fss") else { return Vec::new() };
    let member = |value: &Value| {
        let Value::Nvlist(one) = value else { return None };
        let Some(Value::String(name)) = one.get("name") else { return None };
        let path = name.strip_prefix(root)?.trim_start_matches('/').to_owned();
        let properties: BTreeSet<String> = match one.get("props") {
            Some(Value::Nvlist(all)) => all.0.iter().map(|pair| pair.0.clone()).collect(),
            _ => BTreeSet::new(),
        };
        Some(Member { path, properties })
    };
    all.0.iter().filter_map(|(_, value)| member(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ByteOrder,
        testing::{Opening, StreamWriter},
    };

    fn recorded(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/zfs");
        std::fs::read(format!("{folder}/{name}")).unwrap()
    }

    /// The head, which must not be made of fewer bytes than it needs.
    fn head(bytes: &[u8]) -> Head {
        let needed = (0..=bytes.len()).find(|len| Head::read(&bytes[..*len]).is_some()).unwrap();
        let head = Head::read(bytes).unwrap();
        assert_eq!(Head::read(&bytes[..needed]), Some(head.clone()));
        head
    }

    #[test]
    fn recorded_streams_say_what_they_are() {
        let volume = head(&recorded("lz4-16k.full.zs"));
        assert_eq!(volume.kind, Some(DatasetKind::Volume));
        assert!(volume.embedded && !volume.encrypted && !volume.packaged && !volume.resumed);
        assert_eq!(head(&recorded("fs.full.zs")).kind, Some(DatasetKind::FileSystem));
        let raw = head(&recorded("encraw.full.zs"));
        assert!(raw.encrypted && !raw.embedded, "{raw:?}");
        // Several increments in one stream bring properties, and so do not inherit encryption.
        let several = head(&recorded("lz4-16k.I1-4.zs"));
        assert!(several.packaged && several.kind == Some(DatasetKind::Volume), "{several:?}");
        assert!(several.brings("refreservation") && !several.is_tree(), "{several:?}");
    }

    fn list(pairs: Vec<(&str, Value)>) -> Nvlist {
        Nvlist(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn a_package_tells_of_each_member() {
        let member = |name: &str, properties: &[&str]| {
            let properties = properties.iter().map(|name| (*name, Value::Uint64(1))).collect();
            let name = Value::String(name.to_owned());
            Value::Nvlist(list(vec![("name", name), ("props", Value::Nvlist(list(properties)))]))
        };
        let members = list(vec![
            ("a1", member("tank/t", &["quota", "mountpoint"])),
            ("b2", member("tank/t/vol", &["snapdev"])),
        ]);
        let packed = list(vec![("fss", Value::Nvlist(members))]).encode(ByteOrder::Little).unwrap();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let writer = StreamWriter::new(order).named_head("tank/t@s", &packed);
            let opening = Opening { objset_type: 2, features: 0, ..Opening::volume(0, 7) };
            let head = head(&writer.begin_named(&opening, "tank/t@s").into_bytes());
            assert!(head.packaged && head.kind == Some(DatasetKind::FileSystem));
            assert!(!head.embedded && head.is_tree());
            let paths: Vec<&str> = head.members.iter().map(|member| &member.path[..]).collect();
            assert_eq!(paths, ["", "vol"]);
            assert!(head.brings("quota") && head.brings("snapdev") && !head.brings("canmount"));
        }
    }

    #[test]
    fn what_is_no_stream_is_not_waited_for() {
        assert_eq!(Head::read(&[7; 311]), None);
        assert_eq!(Head::read(&[7; 312]), Some(Head::default()));
        let opening = Opening { payload: &[9; 40], ..Opening::volume(0, 7) };
        let bytes = StreamWriter::new(ByteOrder::Little).begin(&opening).into_bytes();
        assert_eq!(Head::read(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Head::read(&bytes).unwrap().kind, Some(DatasetKind::Volume));
        let mut long = bytes;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Head::read(&long), Some(Head::default()));
    }
}
