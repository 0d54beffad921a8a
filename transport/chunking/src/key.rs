//! The keyed hashes that name content.

use std::fmt;

use driftline_extent::{BlockMask, ChunkId, GrainHash, GrainMask, Root};
use twox_hash::XxHash3_64;

use crate::tree::FANOUT;

/// Names chunks, nodes and roots under one secret.
///
/// Names are keyed, so that whoever sees them learns nothing about content that he could
/// guess. Each use has a key of its own: a node can never be taken for a chunk.
#[derive(Clone)]
pub struct ChunkKey {
    chunk: [u8; 32],
    node: [u8; 32],
    root: [u8; 32],
    stream: [u8; 32],
    grain: u64,
}

impl ChunkKey {
    /// The names under `secret`, as a replica hands it out in its state.
    pub fn new(secret: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] =
            blake3::derive_key("driftline manifest v1 grain", secret);
        Self {
            chunk: blake3::derive_key("driftline manifest v1 chunk", secret),
            node: blake3::derive_key("driftline manifest v1 node", secret),
            root: blake3::derive_key("driftline manifest v1 root", secret),
            stream: blake3::derive_key("driftline manifest v1 stream", secret),
            grain: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        }
    }

    /// The name of some bytes: [`ChunkId::ZERO`] if all of them are zero.
    pub fn id(&self, bytes: &[u8]) -> ChunkId {
        if is_zero(bytes) {
            return ChunkId::ZERO;
        }
        ChunkId(*blake3::keyed_hash(&self.chunk, bytes).as_bytes())
    }

    /// The hashes of the grains of some blocks, ascending. `bytes` are those of the blocks.
    pub fn grains(&self, blocks: BlockMask, bytes: &[u8]) -> Vec<GrainHash> {
        blocks.by_grain().map(|(_, range)| self.grain(&bytes[range])).collect()
    }

    /// The grains of some blocks whose hash is none of a peer's, which tells as many as there
    /// are. `bytes` are those of the blocks.
    pub fn unlike(&self, blocks: BlockMask, bytes: &[u8], theirs: &[GrainHash]) -> GrainMask {
        debug_assert_eq!(blocks.grains().count(), theirs.len());
        let ours = blocks.by_grain().zip(theirs);
        let unlike = ours.filter(|((_, range), hash)| self.grain(&bytes[range.clone()]) != **hash);
        unlike.fold(GrainMask::default(), |sum, ((grain, _), _)| sum.union(grain))
    }

    /// XXH3 with a secret seed, seven times as fast as BLAKE3 is on so few bytes. It need not be
    /// more than fast: what it misses is noticed by the id over all of the blocks.
    fn grain(&self, bytes: &[u8]) -> GrainHash {
        GrainHash(XxHash3_64::oneshot_with_seed(self.grain, bytes).to_le_bytes())
    }

    /// The hash of an opaque stream, before its first byte.
    pub fn stream(&self) -> StreamHasher {
        StreamHasher { hasher: blake3::Hasher::new_keyed(&self.stream), len: 0 }
    }

    /// The name of a node over up to [`FANOUT`] children; the missing ones count as zero.
    pub(crate) fn node(&self, children: &[ChunkId]) -> ChunkId {
        debug_assert!(children.len() <= FANOUT);
        if children.iter().all(ChunkId::is_zero) {
            return ChunkId::ZERO;
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.node);
        for child in children {
            hasher.update(&child.0);
        }
        for _ in children.len()..FANOUT {
            hasher.update(&ChunkId::ZERO.0);
        }
        ChunkId(*hasher.finalize().as_bytes())
    }

    /// The root of a volume of `size` bytes with this topmost node.
    pub(crate) fn root(&self, size: u64, top: ChunkId) -> Root {
        let mut hasher = blake3::Hasher::new_keyed(&self.root);
        hasher.update(&size.to_le_bytes());
        hasher.update(&top.0);
        Root(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkKey(..)")
    }
}

/// Names a whole opaque stream while it passes by. Both ends of a session run one.
pub struct StreamHasher {
    hasher: blake3::Hasher,
    len: u64,
}

impl StreamHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// How many bytes there were.
    pub const fn byte_count(&self) -> u64 {
        self.len
    }

    /// The name of all bytes so far.
    pub fn root(&self) -> Root {
        Root(*self.hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for StreamHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHasher").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Whether every byte is zero, at memory speed.
pub fn is_zero(bytes: &[u8]) -> bool {
    // The fold over a whole block vectorises; leaving at the first block that is not zero
    // makes the common case, data, cost nothing.
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks.iter().all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use driftline_extent::BLOCK_LEN;

    use super::*;

    /// What another implementation of BLAKE3 and XXH3 makes of it: a peer has to find the same.
    #[test]
    fn hashes_of_grains_are_pinned() {
        let bytes: Vec<u8> = (0..4096).map(|i| (i * 7 + i / 256) as u8).collect();
        let blocks = BlockMask::covering(8192, 8192 + 4096);
        let first = BlockMask::covering(0, BLOCK_LEN);
        let key = ChunkKey::new(&[3; 32]);
        let whole = GrainHash([0x86, 0x5b, 0xdb, 0xa9, 0xed, 0xb7, 0x31, 0x6c]);
        assert_eq!(key.grains(blocks, &bytes), [whole]);
        let block = GrainHash([0xf4, 0x44, 0xb3, 0x8f, 0x76, 0x22, 0x94, 0x22]);
        assert_eq!(key.grains(first, &bytes[..BLOCK_LEN as usize]), [block]);
        assert_eq!(key.unlike(blocks, &bytes, &[whole]), GrainMask::default());
        assert_eq!(key.unlike(blocks, &bytes, &[block]), GrainMask(1 << 2));
    }
}
