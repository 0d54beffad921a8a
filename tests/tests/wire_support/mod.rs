//! Links with fixed keys, and the volumes that the sessions of these tests are about.

use driftline_extent::{CHUNK_LEN, Generation, ReplicaId, VolumeId};
use driftline_tests::{
    link::Random,
    memory::{MemorySource, MemoryTarget},
};
use driftline_wire::{Link, Peer, PublicKey, SecretKey};

pub(crate) fn secret(who: u8) -> SecretKey {
    SecretKey::from_random([who; 32])
}

pub(crate) fn public(who: u8) -> PublicKey {
    secret(who).public()
}

/// A link whose keys all depend on `who` has it and on `seed`, so that its bytes repeat.
pub(crate) fn link(who: u8, peer: Peer, seed: u64) -> Link {
    let mut random = Random(seed ^ (u64::from(who) << 56));
    let mut ephemeral = [0; 32];
    random.fill(&mut ephemeral);
    let mut link = Link::new(secret(who), peer, Box::new(move |bytes| random.fill(bytes)), 0);
    link.fix_ephemeral(ephemeral);
    link
}

pub(crate) const SOURCE: u8 = 1;
pub(crate) const TARGET: u8 = 2;

/// Links for a push: the source dials.
pub(crate) fn push_links(seed: u64) -> (Link, Link) {
    let source = link(SOURCE, Peer::Dial(public(TARGET)), seed);
    (source, link(TARGET, Peer::Listen(vec![public(9), public(SOURCE)]), seed))
}

pub(crate) const VOLUME: VolumeId = VolumeId([0xaa; 16]);
pub(crate) const ONE: Generation = Generation::zfs(0x1111);

pub(crate) fn target(replica: u8) -> MemoryTarget {
    MemoryTarget::new(ReplicaId([replica; 16]), [7; 32])
}

pub(crate) const CHUNK: usize = CHUNK_LEN as usize;

/// Data, text that compresses, holes, and an end within a chunk and within a block.
pub(crate) fn image_one() -> Vec<u8> {
    let mut image = vec![0; 9 * CHUNK + 5 * 512 + 100];
    Random(1).fill(&mut image[..2 * CHUNK]);
    image[3 * CHUNK..4 * CHUNK].fill(b'a');
    Random(2).fill(&mut image[5 * CHUNK + 512..6 * CHUNK]);
    Random(3).fill(&mut image[8 * CHUNK..]);
    image
}

/// A source that has the first image as a full copy.
pub(crate) fn full_copy() -> MemorySource {
    MemorySource::without_map(VOLUME).with(None, ONE, &image_one())
}
