//! Tests of the nvlist decoder, on lists packed here in both layouts.

use proptest::prelude::*;

use super::*;

/// Packs integers in one order.
struct Output {
    bytes: Vec<u8>,
    order: ByteOrder,
}

impl Output {
    /// The lowest `len` bytes of `value`.
    fn int(&mut self, len: usize, value: u64) {
        match self.order {
            ByteOrder::Little => self.bytes.extend(&value.to_le_bytes()[..len]),
            ByteOrder::Big => self.bytes.extend(&value.to_be_bytes()[8 - len..]),
        }
    }

    fn ints(&mut self, len: usize, values: impl IntoIterator<Item = u64>) {
        values.into_iter().for_each(|value| self.int(len, value));
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

/// A value's type, its number of elements, the width of one in the native layout, and the
/// elements; strings and lists have none.
fn integers(value: &Value) -> (i32, usize, usize, Vec<u64>) {
    fn all<T: Copy>(
        number: i32,
        width: usize,
        values: &[T],
        f: impl Fn(T) -> u64,
    ) -> (i32, usize, usize, Vec<u64>) {
        (number, values.len(), width, values.iter().map(|value| f(*value)).collect())
    }
    let one = |number, width, value: u64| (number, 1, width, vec![value]);
    match value {
        Value::Boolean => (kind::BOOLEAN, 0, 0, vec![]),
        Value::BooleanValue(v) => one(kind::BOOLEAN_VALUE, 4, u64::from(*v)),
        Value::Byte(v) => one(kind::BYTE, 1, u64::from(*v)),
        Value::Int8(v) => one(kind::INT8, 1, *v as u64),
        Value::Uint8(v) => one(kind::UINT8, 1, u64::from(*v)),
        Value::Int16(v) => one(kind::INT16, 2, *v as u64),
        Value::Uint16(v) => one(kind::UINT16, 2, u64::from(*v)),
        Value::Int32(v) => one(kind::INT32, 4, *v as u64),
        Value::Uint32(v) => one(kind::UINT32, 4, u64::from(*v)),
        Value::Int64(v) => one(kind::INT64, 8, *v as u64),
        Value::Uint64(v) => one(kind::UINT64, 8, *v),
        Value::Hrtime(v) => one(kind::HRTIME, 8, *v as u64),
        Value::Double(v) => one(kind::DOUBLE, 8, v.to_bits()),
        Value::String(_) => (kind::STRING, 1, 0, vec![]),
        Value::Nvlist(_) => (kind::NVLIST, 1, 0, vec![]),
        Value::BooleanArray(v) => all(kind::BOOLEAN_ARRAY, 4, v, u64::from),
        Value::ByteArray(v) => all(kind::BYTE_ARRAY, 1, v, u64::from),
        Value::Int8Array(v) => all(kind::INT8_ARRAY, 1, v, |v| v as u64),
        Value::Uint8Array(v) => all(kind::UINT8_ARRAY, 1, v, u64::from),
        Value::Int16Array(v) => all(kind::INT16_ARRAY, 2, v, |v| v as u64),
        Value::Uint16Array(v) => all(kind::UINT16_ARRAY, 2, v, u64::from),
        Value::Int32Array(v) => all(kind::INT32_ARRAY, 4, v, |v| v as u64),
        Value::Uint32Array(v) => all(kind::UINT32_ARRAY, 4, v, u64::from),
        Value::Int64Array(v) => all(kind::INT64_ARRAY, 8, v, |v| v as u64),
        Value::Uint64Array(v) => all(kind::UINT64_ARRAY, 8, v, |v| v),
        Value::StringArray(v) => (kind::STRING_ARRAY, v.len(), 0, vec![]),
        Value::NvlistArray(v) => (kind::NVLIST_ARRAY, v.len(), 0, vec![]),
    }
}

/// Packs a list as the kernel of that byte order does.
fn native(list: &Nvlist, order: ByteOrder) -> Vec<u8> {
    let endian = u8::from(order == ByteOrder::Little);
    let mut out = Output { bytes: vec![0, endian, 0, 0], order };
    out.ints(4, [0, 1]);
    native_list(list, &mut out);
    out.bytes
}

fn native_list(list: &Nvlist, out: &mut Output) {
    for (name, value) in &list.0 {
        let (number, count, width, elements) = integers(value);
        let mut pair = Output { bytes: Vec::new(), order: out.order };
        pair.int(2, name.len() as u64 + 1);
        pair.int(2, 0);
        pair.ints(4, [count as u64, number as u64]);
        pair.bytes.extend(name.as_bytes());
        // The size in front, which comes below, counts for the alignment.
        pair.bytes.push(0);
        pair.bytes.resize((pair.bytes.len() + 4).next_multiple_of(8) - 4, 0);
        pair.ints(width, elements);
        match value {
            Value::String(string) => {
                pair.bytes.extend(string.as_bytes());
                pair.bytes.push(0);
            }
            Value::StringArray(strings) => {
                pair.ints(8, strings.iter().map(|_| 0));
                for string in strings {
                    pair.bytes.extend(string.as_bytes());
                    pair.bytes.push(0);
                }
            }
            Value::Nvlist(_) => pair.ints(4, [0, 1, 0, 0, 0, 0]),
            Value::NvlistArray(lists) => {
                pair.ints(8, lists.iter().map(|_| 0));
                lists.iter().for_each(|_| pair.ints(4, [0, 1, 0, 0, 0, 0]));
            }
            _ => {}
        }
        pair.bytes.resize((pair.bytes.len() + 4).next_multiple_of(8) - 4, 0);
        out.int(4, pair.bytes.len() as u64 + 4);
        out.bytes.extend(pair.bytes);
        match value {
            Value::Nvlist(list) => native_list(list, out),
            Value::NvlistArray(lists) => lists.iter().for_each(|list| native_list(list, out)),
            _ => {}
        }
    }
    out.int(4, 0);
}

/// Packs a list as ZFS's tools do.
fn xdr(list: &Nvlist) -> Vec<u8> {
    let mut out = Output { bytes: vec![1, 1, 0, 0], order: ByteOrder::Big };
    xdr_pairs(list, &mut out);
    out.bytes
}

fn xdr_string(string: &str, out: &mut Output) {
    out.int(4, string.len() as u64);
    out.bytes.extend(string.as_bytes());
    out.pad(4);
}

fn xdr_pairs(list: &Nvlist, out: &mut Output) {
    out.ints(4, [0, 1]);
    for (name, value) in &list.0 {
        let (number, count, width, elements) = integers(value);
        let mut pair = Output { bytes: Vec::new(), order: ByteOrder::Big };
        xdr_string(name, &mut pair);
        pair.ints(4, [number as u64, count as u64]);
        match value {
            Value::ByteArray(bytes) => {
                pair.bytes.extend(bytes);
                pair.pad(4);
            }
            Value::String(string) => xdr_string(string, &mut pair),
            Value::StringArray(strings) => strings.iter().for_each(|s| xdr_string(s, &mut pair)),
            Value::Nvlist(list) => xdr_pairs(list, &mut pair),
            Value::NvlistArray(lists) => lists.iter().for_each(|l| xdr_pairs(l, &mut pair)),
            _ => {
                let is_array = matches!(number, 10..=17 | 24..=26);
                if is_array {
                    pair.int(4, count as u64);
                }
                pair.ints(width.max(4), elements);
            }
        }
        out.int(4, pair.bytes.len() as u64 + 8);
        // What it takes in memory, which is its size in the native layout.
        let alone = Nvlist(vec![(name.clone(), value.clone())]);
        out.bytes.extend(&native(&alone, ByteOrder::Big)[12..16]);
        out.bytes.extend(pair.bytes);
    }
    out.ints(4, [0, 0]);
}

/// A value of each type.
fn every_type() -> Nvlist {
    let inner =
        || Nvlist(vec![("a".to_owned(), Value::Uint64(7)), ("b".to_owned(), Value::Boolean)]);
    let values = [
        Value::Boolean,
        Value::BooleanValue(true),
        Value::Byte(200),
        Value::Int8(-3),
        Value::Uint8(253),
        Value::Int16(-300),
        Value::Uint16(65_000),
        Value::Int32(-70_000),
        Value::Uint32(4_000_000_000),
        Value::Int64(-5_000_000_000),
        Value::Uint64(u64::MAX - 1),
        Value::Hrtime(-1),
        Value::Double(-0.5),
        Value::String("grüezi".to_owned()),
        Value::Nvlist(inner()),
        Value::BooleanArray(vec![true, false, true]),
        Value::ByteArray(vec![1, 2, 3, 4, 5]),
        Value::Int8Array(vec![-1, 1, -128]),
        Value::Uint8Array(vec![255, 0, 1]),
        Value::Int16Array(vec![-2, 2, i16::MIN]),
        Value::Uint16Array(vec![u16::MAX, 1, 2]),
        Value::Int32Array(vec![i32::MIN, 3]),
        Value::Uint32Array(vec![u32::MAX, 3]),
        Value::Int64Array(vec![i64::MIN, 4]),
        Value::Uint64Array(vec![u64::MAX, 4]),
        Value::StringArray(vec!["one".to_owned(), String::new(), "three".to_owned()]),
        Value::NvlistArray(vec![inner(), Nvlist::default(), inner()]),
    ];
    // Names of many lengths, for the alignment of what follows them.
    let name = |i: usize| format!("{i}").repeat(1 + i % 9);
    Nvlist(values.into_iter().enumerate().map(|(i, value)| (name(i), value)).collect())
}

#[test]
fn every_type_is_read_in_every_layout() {
    let list = every_type();
    for packed in [native(&list, ByteOrder::Little), native(&list, ByteOrder::Big), xdr(&list)] {
        assert_eq!(Nvlist::decode(&packed), Ok(list.clone()));
        // Streams pad them.
        assert_eq!(Nvlist::decode(&[&packed[..], &[0; 8]].concat()), Ok(list.clone()));
        for cut in 0..packed.len() {
            let error = Nvlist::decode(&packed[..cut]).expect_err("it was cut off");
            assert_eq!(error, NvlistError::Truncated, "cut at {cut}");
        }
    }
    assert_eq!(list.get_u64("10".repeat(2).as_str()), Some(u64::MAX - 1));
    assert_eq!(list.get_u64("0"), None);
}

#[test]
fn depth_and_number_of_values_are_bounded() {
    let nested = |depth| {
        (0..depth)
            .fold(Nvlist::default(), |list, _| Nvlist(vec![("x".to_owned(), Value::Nvlist(list))]))
    };
    for (depth, expected) in [(31, Ok(nested(31))), (32, Err(NvlistError::TooDeep))] {
        let list = nested(depth);
        assert_eq!(Nvlist::decode(&native(&list, ByteOrder::Little)), expected);
        assert_eq!(Nvlist::decode(&xdr(&list)), expected);
    }
    let many = vec![String::new(); VALUES_MAX as usize + 1];
    let list = Nvlist(vec![("x".to_owned(), Value::StringArray(many))]);
    assert_eq!(Nvlist::decode(&native(&list, ByteOrder::Big)), Err(NvlistError::TooMany));
    assert_eq!(Nvlist::decode(&xdr(&list)), Err(NvlistError::TooMany));
}

#[test]
fn nonsense_is_refused() {
    assert_eq!(Nvlist::decode(&[2, 1, 0, 0, 0, 0]), Err(NvlistError::UnknownLayout));
    assert_eq!(Nvlist::decode(&[0, 2, 0, 0, 0, 0]), Err(NvlistError::UnknownLayout));
    let mut unknown = native(&every_type(), ByteOrder::Little);
    // The first pair's type stands behind its size, its name's length and its count.
    unknown[12 + 12] = 28;
    assert_eq!(Nvlist::decode(&unknown), Err(NvlistError::UnknownType(28)));
    let mut short = native(&every_type(), ByteOrder::Little);
    short[12] = 3;
    assert_eq!(Nvlist::decode(&short), Err(NvlistError::Malformed));
}

proptest! {
    #[test]
    fn damage_never_panics(at: prop::sample::Index, byte: u8, layout in 0..3usize) {
        let list = every_type();
        let mut packed = match layout {
            0 => native(&list, ByteOrder::Little),
            1 => native(&list, ByteOrder::Big),
            _ => xdr(&list),
        };
        let at = at.index(packed.len());
        packed[at] = byte;
        crate::fuzzing::nvlist(&packed);
    }

    #[test]
    fn any_bytes_never_panic(bytes: Vec<u8>, layout in 0..2u8) {
        crate::fuzzing::nvlist(&bytes);
        crate::fuzzing::nvlist(&[&[layout, 1, 0, 0], &bytes[..]].concat());
    }
}
