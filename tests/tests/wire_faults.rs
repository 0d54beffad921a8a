//! Every frame of a session is spoilt in every way. Whatever happens, the target stays at
//! generation N or reaches N + 1, and the next session completes with what was missing.

mod wire_support;

use bytes::Bytes;
use driftline_extent::{Generation, Reason, Target, Volume, VolumeId};
use driftline_tests::{
    link::{Damage, Delivery, Fault, Random},
    memory::{MemorySource, MemoryTarget, MemoryVolume},
    session::{Outcome, Script, run},
};
use driftline_transport::TransportError;
use driftline_wire::{Link, Peer, SessionError, Verb};
use wire_support::{
    CHUNK, ONE, SOURCE, TARGET, VOLUME, full_copy, image_one, link, public, push_links, target,
};

const TWO: Generation = Generation::zfs(0x2222);

/// Links for a pull: the target dials.
fn pull_links(seed: u64) -> (Link, Link) {
    let source = link(SOURCE, Peer::Listen(vec![public(TARGET)]), seed);
    (source, link(TARGET, Peer::Dial(public(SOURCE)), seed))
}

/// What an increment makes of it: scattered blocks, new chunks, a hole where data was,
/// chunks that stand elsewhere already, and more size.
fn image_two() -> Vec<u8> {
    let mut image = image_one();
    image.resize(12 * CHUNK + 512, 0);
    Random(4).fill(&mut image[1024..2048]);
    Random(5).fill(&mut image[CHUNK - 512..CHUNK + 512]);
    image.copy_within(CHUNK..2 * CHUNK, 2 * CHUNK);
    image[3 * CHUNK..4 * CHUNK].fill(0);
    image[4 * CHUNK..4 * CHUNK + 4096].fill(b'b');
    image[5 * CHUNK + 2048..5 * CHUNK + 4096].fill(0);
    Random(6).fill(&mut image[6 * CHUNK..8 * CHUNK]);
    image.copy_within(8 * CHUNK..9 * CHUNK, 10 * CHUNK);
    Random(7).fill(&mut image[11 * CHUNK + 512..12 * CHUNK + 100]);
    image
}

/// A source that has the second image as an increment on the first.
fn increment() -> MemorySource {
    let source = MemorySource::without_map(VOLUME);
    source.with(Some((ONE, &image_one())), TWO, &image_two())
}

/// A way from one generation to the next.
struct Way {
    before: MemoryTarget,
    source: MemorySource,
    volume: Option<MemoryVolume>,
    image: Vec<u8>,
    verb: Verb,
}

type Went = Outcome<MemoryTarget>;

impl Way {
    fn full(replica: u8) -> Self {
        let (source, image) = (full_copy(), image_one());
        Self { before: target(replica), source, volume: None, image, verb: Verb::Push }
    }

    fn increment(replica: u8) -> Self {
        let before = Self::full(replica).completed(1);
        let (source, image) = (increment(), image_two());
        Self { before, source, volume: None, image, verb: Verb::Push }
    }

    /// The target dials here, so that every side is on every end of a handshake.
    fn scan(replica: u8) -> Self {
        let before = Self::full(replica).completed(1);
        let source = MemorySource::without_map(VOLUME);
        let (volume, image) = (Some(MemoryVolume(image_two())), image_two());
        Self { before, source, volume, image, verb: Verb::Pull }
    }

    /// A scan at a target whose hashes are all those of the source, so that what was narrowed is
    /// wanted again.
    fn colliding(replica: u8) -> Self {
        let way = Self::scan(replica);
        Self { before: way.before.with_collisions(image_two()), ..way }
    }

    fn links(&self, seed: u64) -> (Link, Link) {
        if self.verb == Verb::Push { push_links(seed) } else { pull_links(seed) }
    }

    fn run(&self, from: MemoryTarget, seed: u64, script: &Script) -> Went {
        let script = Script { verb: self.verb, ..script.clone() };
        let volume = self.volume.as_ref().map(|volume| volume as &dyn Volume);
        run(self.links(seed), &mut self.source.clone(), volume, from, &script)
    }

    /// A session without a fault, from the target as it was.
    fn clean(&self, seed: u64) -> Went {
        let went = self.run(self.before.clone(), seed, &Script::default());
        self.assert_complete(&went);
        went
    }

    fn completed(&self, seed: u64) -> MemoryTarget {
        self.clean(seed).replica
    }

    fn assert_complete(&self, went: &Went) {
        assert!(went.source.is_ok() && went.target.is_ok(), "{:?} {:?}", went.source, went.target);
        assert!(went.replica.image() == self.image);
    }

    /// The target is where it was, or where the increment leads: nowhere between. Says
    /// whether it got there.
    fn assert_whole(&self, after: &MemoryTarget, what: &str) -> bool {
        if after.state().generation == self.before.state().generation {
            assert!(after.image() == self.before.image(), "{what}: a generation changed");
            return false;
        }
        assert!(after.image() == self.image, "{what}: wrong bytes were committed");
        true
    }
}

fn damages(frame: &Bytes, others: [&[Bytes]; 2], index: usize, random: &mut Random) -> Vec<Damage> {
    let mut damages = vec![
        Damage::Cut,
        Damage::Truncate,
        Damage::Flip(0),
        Damage::Flip(random.below(8 * frame.len())),
        Damage::Flip(8 * frame.len() - 1),
        Damage::Duplicate,
        Damage::Swap,
        Damage::Drop,
        Damage::Insert(frame.slice(..frame.len() / 3)),
    ];
    // An earlier session of the pair, and one of another pair. Their hellos are the same.
    for other in others.iter().filter_map(|session| session.get(index)) {
        if other != frame {
            damages.push(Damage::Replace(other.clone()));
            damages.push(Damage::Insert(other.clone()));
        }
    }
    damages
}

/// Spoils every frame of one direction in every way.
fn spoil_all(way: &Way, other: &Way, to_target: bool) {
    let frames = |went: &Went| {
        if to_target { went.to_target.clone() } else { went.to_source.clone() }
    };
    let clean = way.clean(100);
    let (earlier, other_replicas) = (frames(&way.clean(101)), frames(&other.clean(102)));
    let mut random = Random(u64::from(to_target));
    let (mut reached, mut resumed) = (0, 0);
    let sent = frames(&clean);
    for (index, frame) in sent.iter().enumerate() {
        for damage in damages(frame, [&earlier, &other_replicas], index, &mut random) {
            let what =
                format!("frame {index} of {}, to target: {to_target}: {damage:.80?}", sent.len());
            // What comes after the last word is not listened to.
            let harmless = damage == Damage::Duplicate && index + 1 == sent.len();
            let fault = Some(Fault { frame: index, damage });
            let script = match to_target {
                true => Script { to_target: fault, ..Script::default() },
                false => Script { to_source: fault, ..Script::default() },
            };
            let went = way.run(way.before.clone(), 100, &script);
            assert_eq!(went.source.is_err() || went.target.is_err(), !harmless, "{what}");
            let there = way.assert_whole(&went.replica, &what);
            assert!(there || went.committed.is_empty(), "{what}: a commit was made up");
            reached += u32::from(there);
            resumed += u32::from(!there && went.data_applied > 0);

            let mark = went.replica.state().resume.map_or(0, |resume| resume.from);
            let again = way.run(went.replica, 103, &Script::default());
            way.assert_complete(&again);
            // It starts at the mark, and neither tells nor sends what lies below.
            assert!(mark == 0 || again.to_target.len() < clean.to_target.len(), "{what}");
            let missing = if there { 0 } else { clean.data_applied - went.data_applied };
            assert!(again.data_applied <= missing, "{what}: {} of {missing}", again.data_applied);
        }
    }
    // Otherwise this test would not have seen what it is about.
    assert!(resumed > 0 && (to_target || reached > 0), "{reached} reached, {resumed} resumed");
}

#[test]
fn an_increment_with_any_frame_to_the_target_spoilt() {
    spoil_all(&Way::increment(1), &Way::increment(2), true);
}

#[test]
fn an_increment_with_any_frame_to_the_source_spoilt() {
    spoil_all(&Way::increment(1), &Way::increment(2), false);
}

#[test]
fn a_full_copy_with_any_frame_to_the_target_spoilt() {
    spoil_all(&Way::full(1), &Way::full(2), true);
}

#[test]
fn a_full_copy_with_any_frame_to_the_source_spoilt() {
    spoil_all(&Way::full(1), &Way::full(2), false);
}

#[test]
fn a_scan_with_any_frame_to_the_target_spoilt() {
    spoil_all(&Way::scan(1), &Way::scan(2), true);
}

#[test]
fn a_scan_with_any_frame_to_the_source_spoilt() {
    spoil_all(&Way::scan(1), &Way::scan(2), false);
}

#[test]
fn a_scan_that_asks_again_with_any_frame_to_the_target_spoilt() {
    spoil_all(&Way::colliding(1), &Way::colliding(2), true);
}

#[test]
fn a_scan_that_asks_again_with_any_frame_to_the_source_spoilt() {
    spoil_all(&Way::colliding(1), &Way::colliding(2), false);
}

#[test]
fn bytes_may_arrive_in_any_portions() {
    for way in [Way::full(1), Way::increment(1), Way::scan(1), Way::colliding(1)] {
        let whole = way.clean(100);
        let pieces = (0..20).map(|seed| Delivery::Pieces(Random(seed)));
        for delivery in pieces.chain([Delivery::Bytewise]) {
            let script = Script { delivery: delivery.clone(), ..Script::default() };
            let went = way.run(way.before.clone(), 100, &script);
            way.assert_complete(&went);
            assert_eq!(went.data_applied, whole.data_applied, "{delivery:?}");
        }
    }
}

#[test]
fn what_the_target_has_does_not_move() {
    let way = Way::increment(1);
    let went = way.clean(100);
    assert_eq!(went.data_packed, went.data_applied);
    // Chunk by chunk what changed; chunk 10 is a copy of one that the target has.
    let changed = [1024 + 512, 512, 65536, 4096, 2 * 65536, 65536 - 512, 512];
    assert_eq!(went.data_applied, changed.iter().sum::<u64>());
    // The second session of a scan finds nothing.
    let way = Way::scan(1);
    let again = way.run(way.completed(100), 101, &Script::default());
    way.assert_complete(&again);
    assert_eq!((again.data_packed, again.data_applied), (0, 0));
}

#[test]
fn increments_follow_each_other_in_one_session() {
    let source = full_copy().with(Some((ONE, &image_one())), TWO, &image_two());
    let moved = [Verb::Push, Verb::Pull].map(|verb| {
        let (source, image) = (source.clone(), image_two());
        let way = Way { before: target(1), source, volume: None, image, verb };
        let went = way.clean(100);
        assert_eq!((went.committed.len(), went.opened), (2, 2));
        went.data_applied
    });
    assert_eq!(moved[0], moved[1]);
}

fn refusal(result: &Result<(), TransportError>) -> Option<Reason> {
    match result {
        Err(TransportError::Session(SessionError::Refused { reason, .. })) => Some(*reason),
        _ => None,
    }
}

#[test]
fn refusals_reach_the_other_side_and_change_nothing() {
    // The source has no increment that starts where the target is.
    let way = Way { before: target(1), ..Way::increment(1) };
    let went = way.run(target(1), 100, &Script::default());
    assert_eq!(refusal(&went.target), Some(Reason::BaseMismatch));
    assert!(matches!(went.source, Err(TransportError::Local(_))));
    assert!(went.replica.image().is_empty());

    // The target is a replica of another volume.
    let way = Way { source: MemorySource::without_map(VolumeId([1; 16])), ..Way::scan(1) };
    let went = way.run(way.before.clone(), 100, &Script::default());
    assert_eq!(refusal(&went.source), Some(Reason::SourceMismatch));
    assert!(matches!(went.target, Err(TransportError::Local(_))));
    assert!(!way.assert_whole(&went.replica, "refused"));
}

/// A volume of which something is wrong from the n-th read on.
struct Unsound {
    image: Vec<u8>,
    sound: std::sync::atomic::AtomicU64,
    fails: bool,
}

impl Volume for Unsound {
    fn size(&self) -> u64 {
        self.image.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        MemoryVolume(self.image.clone()).read_at(offset, buf)?;
        let left = self.sound.load(Relaxed);
        self.sound.store(left.saturating_sub(1), Relaxed);
        match (left, self.fails) {
            (0, true) => Err(std::io::Error::other("bad sectors")),
            (0, false) => {
                buf[0] ^= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn next_data(&self, from: u64) -> std::io::Result<Option<driftline_extent::Extent>> {
        Ok(driftline_extent::Extent::from_bounds(from, self.size()))
    }
}

/// After every number of reads, up to a scan that succeeds.
#[test]
fn a_scan_that_cannot_be_read_on_changes_nothing() {
    let before = Way::full(3).completed(1);
    let mut refused = 0;
    for sound in 0.. {
        let volume = Unsound { image: image_two(), sound: sound.into(), fails: true };
        let mut source = MemorySource::without_map(VOLUME);
        let script = Script::default();
        let outcome = run(push_links(sound), &mut source, Some(&volume), before.clone(), &script);
        match outcome.source {
            Ok(()) => break,
            Err(TransportError::Local(failure)) => assert_eq!(failure.reason, Reason::Failed),
            Err(error) => panic!("after {sound} reads: {error}"),
        }
        assert!(outcome.replica.image() == image_one(), "after {sound} reads");
        refused += 1;
    }
    assert!(refused > 3);
}

#[test]
fn a_volume_that_changes_while_it_is_scanned_is_refused() {
    let volume = Unsound { image: image_two(), sound: 1.into(), fails: false };
    let mut source = MemorySource::without_map(VOLUME);
    let before = Way::full(3).completed(1);
    // What was hashed is read again to be sent, and is another by then.
    let outcome = run(push_links(1), &mut source, Some(&volume), before, &Script::default());
    let Err(TransportError::Local(failure)) = outcome.source else {
        panic!("ended with {:?}", outcome.source);
    };
    assert_eq!(failure.reason, Reason::SourceChanged);
    assert!(outcome.replica.image() == image_one());
}
