//! Names for the content of volumes.
//!
//! * [`ChunkKey`] names a chunk, or some blocks of one, by keyed BLAKE3.
//! * [`TreeHasher`] folds the ids of a volume's chunks into nodes and a root.
//! * [`name_range`] and [`name_listed`] name what a volume holds, on all cores.
//! * [`Chunker`] turns ascending changes into the items that go to a target.
//!
//! Pure computation: no I/O of its own, no clock. Both ends of a link and the replica on disk use it,
//! so the bytes that are hashed are an interface; the tests pin them.
//!
//! # The tree
//!
//! Level 0 are the ids of the chunks ([`driftline_extent::CHUNK_LEN`] bytes each, padded
//! with zeros at the end of the volume). A node of level `n + 1` names [`FANOUT`] nodes of
//! level `n`; missing children at the end count as zero. A node whose children are all zero
//! is [`ChunkId::ZERO`](driftline_extent::ChunkId::ZERO) itself, at every level: a hole of any
//! size has one name and costs nothing to hash. The root names the size as well, so that
//! volumes which differ only in trailing zeros differ in root.
#![forbid(unsafe_code)]

mod chunker;
mod key;
mod parallel;
mod tree;

pub use chunker::{Chunked, Chunker, OutOfOrder, Scope};
pub use key::{ChunkKey, StreamHasher, is_zero};
pub use parallel::{DataRuns, name_listed, name_range};
pub use tree::{FANOUT, SPAN_CHUNKS, SPAN_LEVEL, TreeHasher};
