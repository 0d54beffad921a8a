//! No allocation beyond the limits: what a peer claims costs nothing before it has sent it.
//!
//! A binary of its own with a single test, as it counts what the whole process allocates.
#![expect(unsafe_code, reason = "only a global allocator sees every allocation")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::BytesMut;
use driftline_wire::{
    Coding, DataPart, Link, LinkError, Message, Packer, Peer, SecretKey, Unpacker, limits,
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`, which are the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller got `at` from `alloc` above, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

/// How many more bytes than before were in use at some moment of `act`.
fn peak<T>(act: impl FnOnce() -> T) -> (usize, T) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = act();
    (PEAK.load(Relaxed) - before, result)
}

#[test]
fn claims_are_not_allocated_for() {
    // The counter counts: otherwise all that follows would hold for nothing.
    assert!(peak(|| std::hint::black_box(vec![1_u8; 1 << 20])).0 >= 1 << 20);

    // Counts and lengths at their largest, with nothing behind them.
    // A state up to what it takes: streams, no token, and as many points as there can be.
    let points = [&[19][..], &[0; 61], &[2, 0, 200, 0]].concat();
    let hungry: [&[u8]; 6] = [
        &points,
        &[16, 1, 0xff, 0xff],
        &[18, 1, 0, 0xff, 0xff],
        &[22, 0, 0, 0, 0, 0, 2],
        &[22, 0, 0, 0, 0, 0xff, 0xff],
        &[23, 0, 0, 0, 0, 0, 2],
    ];
    for bytes in hungry {
        let (bytes_more, result) = peak(|| Message::from_bytes(bytes));
        assert!(result.is_err() && bytes_more == 0, "{bytes:?} cost {bytes_more} bytes");
    }

    // The largest message: its items cost about six times their bytes, and twice while they grow.
    let items = (0..512_u64)
        .flat_map(|i| [&[3][..], &(2 * i).to_le_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat());
    let batch = [&[22, 0, 0, 0, 0, 0, 2][..], &items.collect::<Vec<u8>>()].concat();
    let (bytes_more, result) = peak(|| Message::from_bytes(&batch));
    assert!(result.is_ok() && bytes_more < 200 << 10, "{bytes_more} bytes");

    // Frame headers at and above the limit of each kind, with nothing behind them.
    let bulk = (12 + limits::BULK_LEN_MAX + 16) as u32;
    for (kind, limit) in [(1, 65_535), (2, 65_535), (3, bulk)] {
        for (len, refused) in
            [(15, true), (16, false), (limit, false), (limit + 1, true), (u32::MAX, true)]
        {
            let entropy = Box::new(|bytes: &mut [u8]| bytes.fill(3));
            let mut link =
                Link::new(SecretKey::from_random([4; 32]), Peer::Listen(vec![]), entropy, 0);
            let mut received =
                BytesMut::from(b"\x89DRFTL\r\n\x01\x00\x01\x00\x00\x00\x00\x00".as_slice());
            assert!(matches!(link.handle(&mut received, 0), Ok(None)));
            received.extend_from_slice(&[kind, 0, 0, 0]);
            received.extend_from_slice(&len.to_le_bytes());
            received.extend_from_slice(&[0; 16]);
            let (bytes_more, result) = peak(|| link.handle(&mut received, 0));
            let right = match result {
                Ok(None) => !refused,
                Err(LinkError::Decode(_)) => refused,
                _ => false,
            };
            assert!(right, "kind {kind}, length {len}: {result:?}");
            assert!(bytes_more < 256, "kind {kind}, length {len} cost {bytes_more} bytes");
        }
    }

    // A part that unpacks to more than it says costs what it says.
    let mut packer = Packer::new(Some(3)).expect("a context");
    let parts = packer.pack(0, [vec![0; 64 << 10].as_slice()]);
    assert!(parts.len() == 1 && parts[0].coding == Coding::Zstd);
    let bomb = DataPart { raw_len: 4096, ..parts[0].clone() };
    let mut unpacker = Unpacker::new().expect("a context");
    let (bytes_more, result) = peak(|| unpacker.unpack(&[bomb]));
    assert!(result.is_err() && bytes_more < 8192, "{bytes_more} bytes");
}
