//! Streams made from the ZFS samples.

use driftline_zfs::{Record, RecordKind, RecordReader};

/// Offsets and widths of the integers in a header of each kind.
fn integers(kind: RecordKind) -> Vec<(usize, usize)> {
    let (wide, words): (&[usize], &[usize]) = match kind {
        RecordKind::Begin => (&[8, 16, 24, 40, 48], &[32, 36]),
        RecordKind::Object => (&[8, 40, 56], &[16, 20, 24, 28, 36]),
        RecordKind::FreeObjects | RecordKind::ObjectRange => (&[8, 16, 24], &[]),
        RecordKind::Write => (&[8, 24, 32, 40, 56, 64, 72, 80, 88, 96], &[16]),
        RecordKind::Free | RecordKind::Redact => (&[8, 16, 24, 32], &[]),
        RecordKind::End => (&[8, 16, 24, 32, 40], &[]),
        RecordKind::WriteByref => (&[8, 16, 24, 32, 40, 48, 56], &[]),
        RecordKind::Spill => (&[8, 16, 24, 40], &[84]),
        RecordKind::WriteEmbedded => (&[8, 16, 24, 32], &[48, 52]),
    };
    let words = words.iter().chain(&[0, 4]).map(|at| (*at, 4));
    wide.iter().map(|at| (*at, 8)).chain(words).collect()
}

/// How a stream is written anew.
#[derive(Clone, Copy)]
pub(crate) struct Rewrite {
    /// Whether its integers are put in big-endian order.
    pub(crate) swap: bool,
    /// Whether records keep the checksums that they have.
    pub(crate) checksums: bool,
}

impl Rewrite {
    /// As a sender of the other byte order would have written it.
    pub(crate) const TWIN: Self = Self { swap: true, checksums: true };
}

/// A little-endian stream, each record of it edited, with checksums anew. Written without the
/// reader's own idea of a checksum.
pub(crate) fn rewritten(
    little: &[u8],
    Rewrite { swap, checksums }: Rewrite,
    mut edit: impl FnMut(&Record, &mut [u8], &mut [u8]),
) -> Vec<u8> {
    let mut sums = [0u64; 4];
    let add = |sums: &mut [u64; 4], bytes: &[u8]| {
        for word in bytes.as_chunks::<4>().0 {
            let word = if swap { u32::from_be_bytes(*word) } else { u32::from_le_bytes(*word) };
            sums[0] = sums[0].wrapping_add(u64::from(word));
            for i in 1..4 {
                sums[i] = sums[i].wrapping_add(sums[i - 1]);
            }
        }
    };
    let put = |header: &mut [u8], at: usize, sums: &[u64; 4]| {
        for (i, sum) in sums.iter().enumerate() {
            let bytes = if swap { sum.to_be_bytes() } else { sum.to_le_bytes() };
            header[at + 8 * i..at + 8 * i + 8].copy_from_slice(&bytes);
        }
    };
    let mut out = Vec::new();
    let mut reader = RecordReader::new(little);
    while let Some(record) = reader.next_record().expect("the sample is sound") {
        let start = reader.offset() as usize;
        let mut payload = reader.take_payload();
        let mut header = little[start..start + 312].to_vec();
        let is_begin = matches!(record, Record::Begin(_));
        let is_end = matches!(record, Record::End(_));
        // The tools that write compound streams leave some checksums out.
        let checked = !is_begin && header[280..].iter().any(|byte| *byte != 0);
        let is_last = is_end && header[4..].iter().all(|byte| *byte == 0);
        edit(&record, &mut header, &mut payload);
        if swap {
            for (at, width) in integers(record.kind()) {
                header[at..at + width].reverse();
            }
        }
        if is_begin {
            sums = [0; 4];
        }
        if is_end && !is_last {
            put(&mut header, 8, &sums);
        }
        add(&mut sums, &header[..280]);
        if checked && checksums {
            put(&mut header, 280, &sums);
        } else if !is_begin {
            header[280..].fill(0);
        }
        add(&mut sums, &header[280..]);
        add(&mut sums, &payload);
        out.extend(header);
        out.extend(payload);
    }
    out
}
