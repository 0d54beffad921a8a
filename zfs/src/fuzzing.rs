//! Bodies of fuzz targets: any bytes at all must neither panic nor allocate without bound.

use driftline_extent::{Change, Generation, PART_LEN_MAX, PlanKind, Source};

use crate::{
    BLOCK_MAX, ByteOrder, Decoder, Fletcher4, HEADER_LEN, Nvlist, OpaqueStream, Record, RecordKind,
    RecordReader, ResumeToken, ZvolStream,
    record::{CHECKSUM_AT, order_of_begin},
    testing::Header,
};

/// Reads `data` as a stream, in each of the ways that a stream is read.
pub fn stream(data: &[u8]) {
    let mut reader = RecordReader::new(data);
    let mut base = None;
    while let Ok(Some(record)) = reader.next_record() {
        assert!(reader.payload().len() <= data.len(), "no payload is longer than the stream");
        if let Record::Begin(begin) = record
            && !begin.compound
        {
            // What has everything is read over another generation as well.
            base.get_or_insert_with(|| Generation::zfs(begin.fromguid.max(1)));
        }
    }
    parts(data);
    changes(ZvolStream::new(data), None);
    changes(ZvolStream::new(data).allow_full(true), base);
    let mut stream = ZvolStream::new(data);
    while let Ok(Some(map)) = stream.next_map() {
        assert!(map.changed.intersect(&map.zero).is_empty(), "changed and zero overlap");
    }
}

/// Cuts `data` into parts as far as it is sound: joined, they are the start of it.
fn parts(data: &[u8]) {
    let mut stream = OpaqueStream::new(data);
    let mut rest = data;
    while let Ok(Some(_)) = stream.open() {
        loop {
            match stream.next_part() {
                Ok(Some(part)) => {
                    assert!((1..=PART_LEN_MAX).contains(&(part.len() as u64)));
                    rest = rest.strip_prefix(&*part).expect("parts are the stream itself");
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Reads `data` as a stream whose checksums are mended: as far as it is made of records, with
/// what is left behind them, and with an END there instead.
pub fn stream_mended(data: &[u8]) {
    for ended in [false, true] {
        stream(&mend(data, ended));
    }
}

/// What `data` can be read as, with the checksums that belong there.
fn mend(data: &[u8], ended: bool) -> Vec<u8> {
    let mut mender = Mender::default();
    let mut rest = data;
    while let Some(after) = mender.record(rest) {
        rest = after;
    }
    match mender.open {
        Some((order, toguid)) if ended => {
            let end = Header::new(RecordKind::End, order).u64(40, toguid);
            mender.seal(*end.bytes(), order, true);
        }
        _ => mender.out.extend_from_slice(rest),
    }
    mender.out
}

/// Copies records and replaces their checksums. A record that has none is left without.
#[derive(Default)]
struct Mender {
    out: Vec<u8>,
    state: Fletcher4,
    /// Between a BEGIN and its END: the byte order, and where the substream leads.
    open: Option<(ByteOrder, u64)>,
}

impl Mender {
    /// Takes the first record of `data` and returns what follows it; `None` if there is none.
    fn record<'a>(&mut self, data: &'a [u8]) -> Option<&'a [u8]> {
        let (header, rest) = data.split_first_chunk::<HEADER_LEN>()?;
        let order = self.open.map(|open| open.0).or_else(|| order_of_begin(header));
        let Some(order) = order else {
            // The END of a whole compound stream, which has no checksum, or nothing at all.
            self.out.extend_from_slice(header);
            return Some(rest);
        };
        let record = Record::parse(header, order)?;
        let len = usize::try_from(record.payload_len()).ok()?;
        let (payload, rest) = rest.split_at_checked(len).filter(|_| len.is_multiple_of(4))?;
        match (&record, self.open) {
            (Record::Begin(begin), None) => {
                self.open = Some((order, begin.toguid));
                self.state = Fletcher4::new();
                self.state.update(header, order);
                self.out.extend_from_slice(header);
            }
            _ => self.seal(*header, order, record.kind() == RecordKind::End),
        }
        self.state.update(payload, order);
        self.out.extend_from_slice(payload);
        Some(rest)
    }

    /// Appends a header of a record between BEGIN and END.
    fn seal(&mut self, mut header: [u8; HEADER_LEN], order: ByteOrder, is_end: bool) {
        if is_end {
            header[8..40].copy_from_slice(&self.sums(order));
            self.open = None;
        }
        self.state.update(&header[..CHECKSUM_AT], order);
        if header[CHECKSUM_AT..] != [0; 32] {
            header[CHECKSUM_AT..].copy_from_slice(&self.sums(order));
        }
        self.state.update(&header[CHECKSUM_AT..], order);
        self.out.extend_from_slice(&header);
    }

    /// The checksum so far, as a stream stores it.
    fn sums(&self, order: ByteOrder) -> Vec<u8> {
        let to_bytes = match order {
            ByteOrder::Little => u64::to_le_bytes,
            ByteOrder::Big => u64::to_be_bytes,
        };
        self.state.sums().map(to_bytes).concat()
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

/// Reads `data` as a resume token, and what it holds as one whose checksum is mended.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let token = text.parse::<ResumeToken>().or_else(|_| crate::token::mended(text).parse());
    if let Ok(token) = token {
        assert_eq!(token.to_string().parse(), Ok(token), "a token says what it says");
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

    use Record::{Begin, End, Free, Object};

    use super::*;
    use crate::{
        Fault, Features,
        testing::{Opening, StreamWriter, native_nvlist},
    };

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>, codec in 0u8..20, units in 0u8..9) {
            stream(&bytes);
            stream_mended(&bytes);
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

    /// A stream of three substreams with records of many kinds.
    fn sound(order: ByteOrder) -> Vec<u8> {
        let resumed = native_nvlist(order, &[("resume_object", 1), ("resume_offset", 512)]);
        let resumed = Opening {
            features: Opening::volume(0, 0).features | Features::RESUMING.0,
            payload: &resumed,
            ..Opening::volume(2, 3)
        };
        StreamWriter::new(order)
            .compound_head(&native_nvlist(order, &[("tosnap", 3)]))
            .begin(&Opening::volume(0, 1))
            .volume(512, 1 << 20)
            .write(1, 0, &[1; 512])
            .write_as(15, 1, 1024, &[2; 1024])
            .embedded(16, 1, 4096, 512, &[3; 100])
            .free_objects(3, 29)
            .size(1 << 21)
            .end()
            .without_record_checksums()
            .begin(&Opening::volume(1, 2))
            .volume(512, 1 << 20)
            .free(1, 512, 4096)
            .end()
            .begin(&resumed)
            .volume(512, 1 << 20)
            .write_as(14, 1, 512, &[0; 512])
            .end()
            .compound_end()
            .into_bytes()
    }

    /// What must be so already stays so; what need not be does not stop the reader.
    #[test]
    fn mended_records_are_believed() {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let sound = sound(order);
            for ended in [false, true] {
                assert_eq!(mend(&sound, ended), sound, "{order:?}");
            }
            let read = |bytes: &[u8]| {
                let mut reader = RecordReader::new(bytes);
                let records = std::iter::from_fn(|| reader.next_record().transpose());
                records.collect::<Result<Vec<_>, _>>()
            };
            let records = read(&sound).expect("the stream is sound");
            // The time of the snapshot, in the BEGIN of the first volume.
            let mut damaged = sound.clone();
            let begin = sound.windows(10).position(|bytes| bytes == b"pool/vol@1");
            let begin = begin.expect("the snapshot has a name") - 56;
            damaged[begin + 24] ^= 1;
            let error = read(&damaged).expect_err("a checksum covers every bit");
            assert!(matches!(error.fault(), Fault::Checksum), "{error}");
            let mended = read(&mend(&damaged, false)).expect("the checksums are mended");
            assert_eq!(mended.len(), records.len());
            // The same, cut off within the payload of the first WRITE.
            damaged.truncate(begin + 4 * HEADER_LEN + 100);
            assert_eq!(mend(&damaged, false).len(), damaged.len());
            let ended = read(&mend(&damaged, true)[begin..]).expect("an END stands there");
            assert!(matches!(ended[..], [Begin(_), Object(_), Free(_), End(_)]), "{ended:?}");
        }
    }

    /// Numbers at the edges of what is allowed.
    fn number() -> impl Strategy<Value = u64> {
        let edges = vec![0, 1, 2, 7, 512, 1024, 1 << 20, 1 << 62, 1 << 63, u64::MAX - 511];
        prop_oneof![prop::sample::select(edges), Just(u64::MAX), any::<u64>()]
    }
}
