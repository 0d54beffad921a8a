//! Bodies of fuzz targets: any bytes at all must neither panic nor allocate without bound.

use driftline_extent::{Change, Generation, PlanKind, Source};

use crate::{BLOCK_MAX, Decoder, Nvlist, RecordReader, ZvolStream};

/// Reads `data` as a stream, in each of the ways that a stream is read.
pub fn stream(data: &[u8]) {
    let mut reader = RecordReader::new(data);
    while let Ok(Some(_)) = reader.next_record() {
        assert!(reader.payload().len() <= data.len(), "no payload is longer than the stream");
    }
    changes(ZvolStream::new(data).allow_full(true), None);
    changes(ZvolStream::new(data), Some(Generation::Zfs(1)));
    let mut stream = ZvolStream::new(data);
    while stream.plan(None).is_ok() {
        if let Ok(map) = stream.change_map() {
            assert!(map.changed.intersect(&map.zero).is_empty(), "changed and zero overlap");
        }
    }
}

/// Reads one increment after the other, as long as there is no error.
fn changes<R: std::io::Read>(mut stream: ZvolStream<R>, mut base: Option<Generation>) {
    while let Ok(plan) = stream.plan(base.as_ref()) {
        if plan.kind == PlanKind::UpToDate {
            return;
        }
        let from = stream.resumed_at().unwrap_or(0);
        let mut end = 0;
        loop {
            match stream.next_change(from) {
                Ok(Some(change)) => {
                    let extent = change.extent().expect("no change is empty");
                    assert!(extent.offset() >= end, "changes ascend");
                    end = extent.end();
                    if let Change::Data { bytes, .. } = change {
                        assert!(bytes.len() as u64 <= BLOCK_MAX, "blocks are bounded");
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        base = stream.finish().ok().map(|finish| finish.tip);
    }
}

/// Reads `data` as a packed nvlist.
pub fn nvlist(data: &[u8]) {
    if let Ok(list) = Nvlist::decode(data) {
        assert!(list.0.len() <= data.len(), "no pair takes less than a byte");
    }
}

/// Decompresses `data`: a codec's number, the length of the block in units of 512 bytes
/// (two bytes), and the compressed bytes.
pub fn codec(data: &[u8]) {
    let Some(([compression, high, low], payload)) = data.split_first_chunk() else { return };
    let len = usize::from(u16::from_be_bytes([*high, *low])) * 512;
    if let Ok(block) = Decoder::new().decode(*compression, &mut payload.to_vec(), len) {
        assert_eq!(block.len(), len, "a block has its length");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ByteOrder, Record,
        testing::{Opening, StreamWriter},
    };

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>, codec in 0u8..20, units in 0u8..9) {
            stream(&bytes);
            super::codec(&[&[codec, 0, units], &bytes[..]].concat());
        }

        /// Any numbers at all in headers whose checksums are sound.
        #[test]
        fn any_records_never_panic(
            records in prop::collection::vec(
                (1usize..11, prop::collection::vec((1usize..35, number()), 0..8)), 0..8,
            ),
            features in 0u64..1 << 30,
            big: bool,
        ) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let opening = Opening { features: features & 0x252_0000, ..Opening::volume(1, 2) };
            let mut writer = StreamWriter::new(order).begin(&opening).volume(512, 1 << 30);
            for (kind, fields) in records {
                let header = writer.header(crate::RecordKind::ALL[kind]);
                let header = fields.iter().fold(header, |h, (at, value)| h.u64(at * 8, *value));
                // Framed soundly where that is possible, so that what follows is read too.
                let record = Record::parse(header.bytes(), order).expect("the kind is known");
                let payload = vec![0xa5; record.payload_len().min(4096) as usize & !3];
                writer = writer.record(header, &payload);
            }
            stream(&writer.size(1 << 20).end().into_bytes());
        }
    }

    /// Numbers at the edges of what is allowed.
    fn number() -> impl Strategy<Value = u64> {
        let edges = vec![0, 1, 2, 7, 512, 1024, 1 << 20, 1 << 62, 1 << 63, u64::MAX - 511];
        prop_oneof![prop::sample::select(edges), Just(u64::MAX), any::<u64>()]
    }
}
