//! Tests of nvlists: what is packed, natively or in XDR as here, is read as it was.

use proptest::prelude::*;

use super::{
    encode::{Output, integers},
    *,
};

/// Packs a list as the kernel of that byte order does.
fn native(list: &Nvlist, order: ByteOrder) -> Vec<u8> {
    list.encode(order).expect("the list can be packed")
}

/// Packs a list as ZFS's tools do.
fn xdr(list: &Nvlist) -> Vec<u8> {
    let mut out = Output { bytes: vec![1, 1, 0, 0], order: ByteOrder::Big };
    xdr_pairs(list, &mut out);
    out.bytes
}

fn xdr_string(string: &str, out: &mut Output) {
    out.int(4, string.len() as u64);
    xdr_padded(string.as_bytes(), out);
}

fn xdr_padded(bytes: &[u8], out: &mut Output) {
    out.bytes.extend(bytes);
    out.bytes.resize(out.bytes.len().next_multiple_of(4), 0);
}

fn xdr_pairs(list: &Nvlist, out: &mut Output) {
    out.ints(4, [0, 1]);
    for (name, value) in &list.0 {
        let (number, count, width, elements) = integers(value);
        let mut pair = Output { bytes: Vec::new(), order: ByteOrder::Big };
        xdr_string(name, &mut pair);
        pair.ints(4, [number as u64, count as u64]);
        match value {
            Value::ByteArray(bytes) => xdr_padded(bytes, &mut pair),
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
        let mut alone = Output { bytes: Vec::new(), order: ByteOrder::Big };
        alone.pair(name, value).expect("the pair can be packed");
        out.bytes.extend(&alone.bytes[..4]);
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
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let (one, deepest) = (native(&nested(1), order), native(&nested(31), order));
        assert_eq!(Nvlist::decode(&deepest), Ok(nested(31)));
        assert_eq!(nested(32).encode(order), Err(NvlistError::TooDeep));
        // Once more around it: the pair before, the zero behind.
        let around = [&one[..one.len() - 8], &deepest[12..], &[0; 4]].concat();
        assert_eq!(Nvlist::decode(&around), Err(NvlistError::TooDeep));
    }
    for (depth, expected) in [(31, Ok(nested(31))), (32, Err(NvlistError::TooDeep))] {
        assert_eq!(Nvlist::decode(&xdr(&nested(depth))), expected);
    }
    let many = vec![String::new(); VALUES_MAX as usize + 1];
    let list = Nvlist(vec![("x".to_owned(), Value::StringArray(many))]);
    assert_eq!(Nvlist::decode(&native(&list, ByteOrder::Big)), Err(NvlistError::TooMany));
    assert_eq!(Nvlist::decode(&xdr(&list)), Err(NvlistError::TooMany));
}

#[test]
fn what_could_not_be_read_again_is_not_packed() {
    let pack = |name: &str, value| {
        Nvlist(vec![(name.to_owned(), value)]).encode(ByteOrder::Little).map(|bytes| bytes.len())
    };
    assert_eq!(pack(&"n".repeat(0x7fff), Value::Boolean), Err(NvlistError::TooLong));
    assert!(pack(&"n".repeat(0x7ffe), Value::Boolean).is_ok());
    assert_eq!(pack("a\0b", Value::Boolean), Err(NvlistError::Malformed));
    let strings = vec!["a".to_owned(), "\0".to_owned()];
    assert_eq!(pack("a", Value::StringArray(strings)), Err(NvlistError::Malformed));
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
