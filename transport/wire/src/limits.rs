//! Every bound of the protocol, and why it is what it is.

use driftline_extent::{
    CHUNK_LEN, GRAIN_LEN, PART_LEN_MAX, POINT_NAME_LEN_MAX, POINTS_MAX, TOKEN_LEN_MAX,
};

/// Plaintext of a bulk frame. Large enough that sealing runs at full speed, small enough
/// that control frames never wait long behind one.
pub const BULK_LEN_MAX: usize = 1 << 20;

/// Plaintext of a control frame: a Noise message is at most 65,535 bytes, its tag is 16 and
/// the copy of the header that it carries is 16.
pub const CONTROL_LEN_MAX: usize = 65_535 - 16 - 16;

/// Items in a batch. The largest item encoding times this stays below [`CONTROL_LEN_MAX`].
pub const BATCH_ITEMS_MAX: usize = 512;

/// Data bytes that the items of one batch may ask for. It is the least that a session needs memory
/// for, and a session of several holds little more.
pub const BATCH_DATA_MAX: u64 = 1 << 20;

/// Hashes of grains that a target may tell of one batch. At least half of what the grains of an
/// item have room for is data, so no batch leads to more.
pub const BATCH_HASHES_MAX: usize = (2 * BATCH_DATA_MAX / GRAIN_LEN) as usize;

/// Parts in which the data of one batch may come. A part of one byte costs its receiver a
/// hundred, so the bytes alone do not bound memory.
pub const BATCH_PARTS_MAX: usize = 512;

/// Data bytes that a sender may have announced and not yet seen applied. This bounds the
/// memory of both sides, and with the round trip the speed of a link: 32 MiB at 30 ms is
/// 1 GiB/s.
pub const WINDOW_DATA_MAX: u64 = 32 << 20;

/// Batches that a sender may have announced and not yet seen applied: items without data
/// (holes, spans) use no data window, but they do use memory.
pub const WINDOW_BATCHES_MAX: usize = 64;

/// Bytes of a volume's name in a request.
pub const NAME_LEN_MAX: u16 = 255;

/// Bytes of the explanation in a refusal.
pub const DETAIL_LEN_MAX: u16 = 1024;

/// Nothing was heard from the peer for this long: it is gone. In milliseconds.
pub const SILENCE_MS_MAX: u64 = 60_000;

/// Nothing was sent for this long: show that we are alive. In milliseconds. A peer that
/// commits a large increment has nothing else to say for minutes.
pub const KEEPALIVE_MS: u64 = 10_000;

/// So many bytes of an unfinished frame are a sign of life. On the slowest link that may be asked
/// for, 1 KiB/s, they arrive well within [`SILENCE_MS_MAX`].
pub const LIFE_LEN_MIN: usize = 16 << 10;

/// Frames that say nothing to the session (keep-alives and rekeys) that a peer may send at any
/// time: as many as wait on the way after a long stop of the network, and more.
pub const SIGNS_AT_ONCE_MAX: u64 = 64;

/// Besides these, one for each so many milliseconds of the link's life. A peer sends a keep-alive
/// every [`KEEPALIVE_MS`].
pub const SIGN_MS_MIN: u64 = 1_000;

/// The handshake must be over by then, or the connection is dropped. In milliseconds.
pub const HANDSHAKE_MS_MAX: u64 = 20_000;

/// A direction gets a fresh key after this many bulk bytes …
pub const REKEY_BYTES: u64 = 64 << 30;

/// … or after this long, in milliseconds.
pub const REKEY_MS: u64 = 3_600_000;

const ITEM_LEN_MAX: usize = 1 + 8 + 16 + 16 + 32;
/// What a state takes without its token and its points: less than this.
const STATE_LEN_MAX: usize = 512;
const POINTS_LEN_MAX: usize = POINTS_MAX as usize * (8 + 2 + POINT_NAME_LEN_MAX as usize);
const _: () = assert!(BATCH_ITEMS_MAX * ITEM_LEN_MAX + 16 < CONTROL_LEN_MAX);
const _: () = assert!(STATE_LEN_MAX + TOKEN_LEN_MAX as usize + POINTS_LEN_MAX < CONTROL_LEN_MAX);
const _: () = assert!(BATCH_HASHES_MAX * 8 + BATCH_ITEMS_MAX + 16 < CONTROL_LEN_MAX);
const _: () = assert!(PART_LEN_MAX <= BATCH_DATA_MAX);
const _: () = assert!(BATCH_DATA_MAX <= WINDOW_DATA_MAX && BATCH_DATA_MAX >= CHUNK_LEN);
const _: () = assert!(BATCH_DATA_MAX.div_ceil(BULK_LEN_MAX as u64) <= BATCH_PARTS_MAX as u64);
const _: () = assert!(KEEPALIVE_MS * 3 <= SILENCE_MS_MAX);
const _: () = assert!(SIGN_MS_MIN * 2 <= KEEPALIVE_MS);
