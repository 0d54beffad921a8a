//! Connections for the simulation, with every key drawn from a seed so that bytes repeat.

use std::sync::LazyLock;

use driftline_tests::link::Random;
use driftline_wire::{Link, Peer, PublicKey, SecretKey, Verb};

/// The keys of source and target: they take time to make.
static PUBLIC: LazyLock<[PublicKey; 2]> =
    LazyLock::new(|| [secret(1).public(), secret(2).public()]);

fn secret(who: u8) -> SecretKey {
    SecretKey::from_random([who; 32])
}

/// The two ends of a connection: the source's and the target's, of which the right one dials.
pub(crate) fn links(seed: u64, verb: Verb) -> (Link, Link) {
    let [source, target] = *PUBLIC;
    let (source, target) = if verb == Verb::Push {
        (Peer::Dial(target), Peer::Listen(vec![source]))
    } else {
        (Peer::Listen(vec![target]), Peer::Dial(source))
    };
    (link(1, source, seed), link(2, target, !seed))
}

fn link(who: u8, peer: Peer, seed: u64) -> Link {
    let mut random = Random(seed);
    let mut ephemeral = [0; 32];
    random.fill(&mut ephemeral);
    let mut link = Link::new(secret(who), peer, Box::new(move |bytes| random.fill(bytes)), 0);
    link.fix_ephemeral(ephemeral);
    link
}
