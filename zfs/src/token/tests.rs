//! Tests of resume tokens, on those of real systems.

use proptest::prelude::*;

use super::*;

fn point(name: &str) -> PointName {
    name.parse().expect("it is a name")
}

fn block(len: u64) -> NonZeroU64 {
    len.try_into().expect("it is not zero")
}

/// Tokens that ZFS made, found in public reports, and what is in them: read with Python's
/// `zlib` and `struct` from the data, as an unpacked list, and for the first two as
/// `zfs send -nvP -t` printed it as well.
fn recorded() -> [(&'static str, ResumeToken); 3] {
    let plain = |toguid, toname, fromguid| ResumeToken {
        object: 2,
        offset: 0x4c0000,
        large_blocks: false,
        embedded: false,
        compressed: false,
        ..ResumeToken::for_volume(toguid, point(toname), fromguid, 0, block(1))
    };
    let from = 0x52f9_c212_c71e_60cd;
    [
        (
            "1-9baebea70-b8-789c636064000310a500c4ec50360710e72765a52697303030419460caa7a515a79\
             680647ce0f26c48f2499525a9c5405ac3c90fabfe92fcf4d2cc140686b30972c7850efd0cd24092e704\
             cbe725e6a632305415e5e797e803cd2ad14f743084b805001b201795",
            ResumeToken { bytes: 0x4e4228, ..plain(from, "zroot/test/a@1", None) },
        ),
        (
            "1-ef01e717e-e0-789c636064000310a501c49c50360710a715e5e7a69766a63040c1d904b9e342877\
             e062900d9ec48eaf293b252934b181898a0ea30e4d3d28a534b40323e70793624f9a4ca92d46220fdc1\
             ce0fabfe927c882bc46c8a0a9f71ad3baf8124cf0996cf4bcc4d6560a82acacf2fd1079a55a29fe8600\
             4710b00d8ae1f93",
            ResumeToken {
                bytes: 0x4e3ef0,
                ..plain(0xcfae_0ae6_7172_3c16, "zroot/test/a@2", Some(from))
            },
        ),
        (
            "1-fd3f3ea61-130-789c636064000310a501c49c50360710a715e5e7a69766a6304081e4c3753e7696\
             b1cd0a40363b92bafca4acd4e412081f0430e4d3d28a534b18e00024cf86249f5459925acc802a8facb\
             f241fe28aaa90ef315b8e16ea3920c97382e5f312735319188a528b4b7353816695e8a7e62517e92667\
             64e6a43894679664e826eaa665e6a42299cfcd80f077727e6e01506f717e36444c02ea3e987c5162394\
             c8a010013de2bc9",
            ResumeToken {
                object: 1,
                offset: 0,
                compressed: true,
                raw: true,
                ..plain(
                    0x2e71_c5b4_5cf7_547a,
                    "resumetest/encr-child@with-a-file",
                    Some(0x835d_393e_4cae_e119),
                )
            },
        ),
    ]
}

/// The packed list in a token.
fn packed(token: &str) -> Vec<u8> {
    let parts: Vec<&str> = token.split('-').collect();
    let len = hex(parts[2]).expect("the length is a number") as usize;
    inflate(&bytes(parts[3]).expect("the data is hexadecimal"), len).expect("the data is zlib")
}

#[test]
fn recorded_tokens_are_read_and_packed_as_zfs_does() {
    for (text, expected) in recorded() {
        let token: ResumeToken = text.parse().expect("it is a token");
        assert_eq!(token, expected);
        // Only how well the list is compressed may differ.
        assert_eq!(token.to_list().encode(ByteOrder::Little), Ok(packed(text)));
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}

/// The list of a minted token as a Python script packs it, with `struct` alone.
const MINTED: &str = "0001000000000000010000002800000009000000010000000800000066726f6d677569640000000000000000\
    0700000000000000200000000700000001000000080000006f626a6563740000010000000000000020000000\
    0700000001000000080000006f66667365740000000050000000000020000000060000000100000008000000\
    6279746573000000000000000000000020000000070000000100000008000000746f67756964000022110000\
    0000000028000000070000000100000009000000746f6e616d65000074616e6b2f763a6f6c20314061206200\
    200000000d00000000000000010000006c61726765626c6f636b6f6b00000000180000000800000000000000\
    01000000656d6265646f6b00200000000b0000000000000001000000636f6d70726573736f6b000000000000\
    00000000";

#[test]
fn a_minted_token_is_what_was_asked_for() {
    let toname = point("tank/v:ol 1@a b");
    let token = ResumeToken::for_volume(0x1122, toname, Some(7), 5 << 20 | 4095, block(16384));
    assert_eq!((token.object, token.offset), (1, 5 << 20));
    // As every stream that is made, it has no embedded blocks; the recorded one had.
    assert!(!token.embedded && token.compressed && token.large_blocks && !token.raw);
    let token = ResumeToken { embedded: true, ..token };
    let expected = bytes(MINTED).expect("it is hexadecimal");
    assert_eq!(token.to_list().encode(ByteOrder::Little), Ok(expected));
    assert_eq!(Nvlist::decode(&packed(&token.to_string())), Ok(token.to_list()));
}

#[test]
fn a_volume_goes_on_at_a_whole_block_or_begins() {
    let at = |offset, len| {
        let token = ResumeToken::for_volume(1, point("p/v@s"), None, offset, block(len));
        (token.object, token.offset)
    };
    assert_eq!(at(0, 8192), (0, 0));
    assert_eq!(at(8191, 8192), (0, 0));
    assert_eq!(at(8192, 8192), (1, 8192));
    assert_eq!(at(u64::MAX, 1 << 20), (1, u64::MAX << 20));
}

/// A token around this list.
fn mint(list: &Nvlist) -> String {
    let packed = list.encode(HOST).expect("the list can be packed");
    wrap(&deflate(&packed).expect("it can be compressed"), packed.len())
}

fn wrap(data: &[u8], len: usize) -> String {
    let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("1-{:x}-{len:x}-{digits}", sum(data, HOST))
}

#[test]
fn what_is_no_token_is_refused() {
    let fail = |text: &str| text.parse::<ResumeToken>().expect_err("it is no token");
    let good = recorded()[1].0;
    assert_eq!(fail(&"1".repeat(TOKEN_LEN_MAX + 1)), TokenError::TooLong(TOKEN_LEN_MAX + 1));
    for text in ["", "-", "1-2-3", "1-+1-1-00", "1-1-1-0", "1-1-1-0g", "1--1-00", "1-1-100001-00"] {
        assert!(matches!(fail(text), TokenError::Malformed(_) | TokenError::Version(_)), "{text}");
    }
    assert!(matches!(fail(&format!("{good}-00")), TokenError::Malformed(_)));
    assert_eq!(fail("2-1-1-00"), TokenError::Version("2".to_owned()));
    assert_eq!(fail(&good.replace("789c63", "789c64")), TokenError::Checksum);
    // The checksum does not reach these, but zlib's own does.
    let (data, len) = (deflate(&[7; 100]).expect("it can be compressed"), 100);
    assert_eq!(fail(&wrap(&data, len - 1)), TokenError::Compression);
    assert_eq!(fail(&wrap(&data, len + 1)), TokenError::Compression);
    assert_eq!(fail(&wrap(&[&data[..], &[0; 3]].concat(), len)), TokenError::Compression);
    assert_eq!(fail(&wrap(&data, len)), TokenError::Nvlist(NvlistError::UnknownLayout));

    let list = recorded()[1].1.to_list();
    for name in ["object", "offset", "bytes", "toguid", "toname"] {
        let mut without = list.clone();
        without.0.retain(|pair| pair.0 != name);
        assert_eq!(fail(&mint(&without)), TokenError::Missing(name));
    }
    let mut nameless = list;
    for pair in nameless.0.iter_mut().filter(|pair| pair.0 == "toname") {
        pair.1 = Value::String("tank".to_owned());
    }
    assert!(matches!(fail(&mint(&nameless)), TokenError::Name(_)));
}

#[test]
fn what_is_not_known_is_kept() {
    let mut list = recorded()[0].1.to_list();
    let other = ("redact_snaps".to_owned(), Value::Uint64Array(vec![3, 4]));
    list.0.push(other.clone());
    let token: ResumeToken = mint(&list).parse().expect("it is a token");
    assert_eq!(token.others(), std::slice::from_ref(&other));
    assert_eq!(token.to_string().parse(), Ok(token));
}

proptest! {
    #[test]
    fn every_token_survives(
        numbers: [u64; 4],
        fromguid in prop::option::of(1u64..),
        flags: [bool; 4],
        name in "[a-z][a-zA-Z0-9:. _-]{0,80}@[a-zA-Z0-9:. _-]{0,80}[a-z]",
        others in prop::collection::vec(("x[a-z]{0,8}", any::<u64>()), 0..4),
    ) {
        let [object, offset, bytes, toguid] = numbers;
        let [large_blocks, embedded, compressed, raw] = flags;
        let others = others.into_iter().map(|(name, value)| (name, Value::Uint64(value))).collect();
        let toname = point(&name);
        let token = ResumeToken {
            object, offset, bytes, toguid, toname, fromguid, large_blocks, embedded, compressed,
            raw, others,
        };
        prop_assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn any_text_never_panics(text in "([0-9a-f-]|\\PC){0,300}", which in 0..3usize, byte: u8,
                             at: prop::sample::Index) {
        crate::fuzzing::token(text.as_bytes());
        let list = packed(recorded()[which].0);
        let mut damaged = list.clone();
        damaged[at.index(list.len())] = byte;
        let data = deflate(&damaged).expect("it can be compressed");
        crate::fuzzing::token(wrap(&data, list.len()).as_bytes());
    }
}
