//! A target of streams: what reaches its sink, what moves, and what is refused.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use driftline_chunking::ChunkKey;
use driftline_extent::{
    Accepts, Begin, BlockMask, ChunkId, Explained, Finish, Generation, Item, Missing, Offer, Plan,
    PlanKind, Point, Reason, Root, Standing, Target,
};
use driftline_target::{Sink, SinkState, StreamTarget};
use proptest::prelude::*;

const SECRET: [u8; 32] = [9; 32];
const ONE: Generation = Generation::zfs(1);
const TWO: Generation = Generation::zfs(2);

#[derive(Debug, thiserror::Error)]
#[error("the pool is full")]
struct Full;

impl Explained for Full {
    fn reason(&self) -> Reason {
        Reason::TargetFull
    }
}

/// What a sink was told, for whoever looks on.
#[derive(Default)]
struct Told {
    begun: usize,
    bytes: Vec<u8>,
    finished: usize,
}

/// A sink that keeps bytes, up to a limit, and then claims to hold a generation.
struct DeviceManager {
    holds: SinkState,
    reaches: Option<Generation>,
    limit: usize,
    told: Rc<RefCell<Told>>,
}

impl Sink for DeviceManager {
    type Error = Full;

    fn state(&mut self) -> Result<SinkState, Full> {
        Ok(self.holds.clone())
    }

    fn begin(&mut self, _: &Offer) -> Result<(), Full> {
        self.told.borrow_mut().begun += 1;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let kept = &mut self.told.borrow_mut().bytes;
        kept.extend(bytes);
        if kept.len() > self.limit { Err(Full) } else { Ok(()) }
    }

    fn finish(&mut self, tip: &Generation) -> Result<SinkState, Full> {
        self.told.borrow_mut().finished += 1;
        let generation = self.reaches.or(Some(*tip));
        self.holds = SinkState { generation, token: None, points: Vec::new() };
        Ok(self.holds.clone())
    }
}

fn manager(generation: Option<Generation>) -> (DeviceManager, Rc<RefCell<Told>>) {
    let told = Rc::new(RefCell::new(Told::default()));
    let holds = SinkState { generation, ..SinkState::default() };
    (DeviceManager { holds, reaches: None, limit: usize::MAX, told: told.clone() }, told)
}

fn target(sink: DeviceManager) -> StreamTarget<DeviceManager> {
    StreamTarget::new(sink, "pool/fs", SECRET).unwrap()
}

fn offer(kind: PlanKind, base: Option<Generation>, tip: Option<Generation>) -> Offer {
    let standing = Standing::Proven;
    let plan = Plan { kind, volume: None, base, tip, size: None, standing, bytes_expected: 0 };
    Offer { plan, overwrite: true }
}

fn stream() -> Offer {
    offer(PlanKind::Stream, Some(ONE), Some(TWO))
}

fn item(index: u64, bytes: &[u8]) -> Item {
    let id = ChunkKey::new(&SECRET).id(bytes);
    Item::Part { index, len: bytes.len() as u32, id }
}

/// The end of a stream of these bytes.
fn finish(bytes: &[u8], tip: Generation) -> Finish {
    let mut hasher = ChunkKey::new(&SECRET).stream();
    hasher.update(bytes);
    Finish { tip, size: Some(hasher.byte_count()), root: Some(hasher.root()) }
}

/// A target that has begun and taken one part, and what its sink was told.
fn begun() -> (StreamTarget<DeviceManager>, Rc<RefCell<Told>>) {
    let (sink, told) = manager(Some(ONE));
    let mut target = target(sink);
    assert_eq!(target.begin(&stream()).unwrap(), Begin { from: 0 });
    let first = item(0, &[1; 4096]);
    assert_eq!(target.missing(&[first]).unwrap(), [Missing::All]);
    target.apply(&first, Some(&[1; 4096])).unwrap();
    (target, told)
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![Just(4096_usize), Just(16384), Just(262_144), 1..5000_usize];
    (0..4_u8, len).prop_map(|(byte, len)| vec![byte; len])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_the_sink_gets_is_what_was_sent_and_repeats_move_once(
        streams in prop::collection::vec(prop::collection::vec(part(), 1..60), 1..3),
        ahead in 0..20_usize,
    ) {
        let (sink, told) = manager(None);
        let mut target = target(sink);
        let (mut base, mut seen) = (None, std::collections::HashSet::new());
        let mut sent = Vec::new();
        for (parts, number) in streams.iter().zip(1..) {
            let tip = Generation::zfs(number);
            target.begin(&offer(PlanKind::Stream, base, Some(tip))).unwrap();
            // `missing` runs ahead of `apply`, as it does in a session.
            let mut waiting: VecDeque<(Item, &Vec<u8>, bool)> = VecDeque::new();
            let mut apply = |target: &mut StreamTarget<DeviceManager>, (item, part, missing)| {
                let part: &Vec<u8> = part;
                sent.extend(part);
                target.apply(&item, if missing { Some(part) } else { None }).unwrap();
            };
            for (part, index) in parts.iter().zip(0..) {
                let item = item(index, part);
                let missing = target.missing(&[item]).unwrap() == [Missing::All];
                let is_new = part[0] != 0 && (part.len() < 4096 || seen.insert(part.clone()));
                prop_assert_eq!(missing, is_new, "{} of {}", part[0], part.len());
                waiting.push_back((item, part, missing));
                if waiting.len() > ahead {
                    apply(&mut target, waiting.pop_front().unwrap());
                }
            }
            waiting.into_iter().for_each(|next| apply(&mut target, next));
            let end = finish(&parts.concat(), tip);
            let committed = target.commit(&end).unwrap();
            prop_assert_eq!(committed.generation, tip);
            prop_assert_eq!((Some(committed.root), Some(committed.size)), (end.root, end.size));
            base = Some(tip);
            prop_assert_eq!(target.state().generation, base);
        }
        prop_assert!(told.borrow().bytes == sent);
        prop_assert_eq!(told.borrow().finished, streams.len());
    }
}

#[test]
fn its_state_is_what_the_sink_says() {
    let (mut sink, _) = manager(Some(ONE));
    let point = |guid, name: &str| Point { guid, name: name.to_owned() };
    let untellable = [point(7, ""), point(8, "a\nb"), point(9, &"n".repeat(256))];
    let tellable = |guid| point(guid, "daily");
    sink.holds.points = untellable.into_iter().chain((0..300).map(tellable)).collect();
    sink.holds.token = Some("1-ab-c".to_owned());
    let state = target(sink).state();
    assert_eq!((state.generation, state.incomplete, state.size), (Some(ONE), false, 0));
    let points = (0..200).map(tellable).collect();
    assert_eq!(state.accepts, Accepts::Stream { token: Some("1-ab-c".to_owned()), points });

    for token in [String::new(), "-t".to_owned(), "1 2".to_owned(), "1".repeat(8193)] {
        let (mut sink, _) = manager(None);
        sink.holds.token = Some(token);
        let error = StreamTarget::new(sink, "pool/fs", SECRET).unwrap_err();
        assert!(error.to_string().starts_with("pool/fs: the resume token"), "{error}");
    }
}

#[test]
fn what_is_no_stream_from_here_is_refused_and_touches_nothing() {
    let (sink, told) = manager(Some(ONE));
    let mut target = target(sink);
    for (kind, base, reason) in [
        (PlanKind::Full, None, Reason::Unsupported),
        (PlanKind::Incremental, Some(ONE), Reason::Unsupported),
        (PlanKind::Scan, Some(ONE), Reason::Unsupported),
        (PlanKind::UpToDate, Some(ONE), Reason::Unsupported),
        (PlanKind::Stream, None, Reason::BaseMismatch),
        (PlanKind::Stream, Some(TWO), Reason::BaseMismatch),
    ] {
        let error = target.begin(&offer(kind, base, Some(TWO))).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().starts_with("pool/fs: "), "{error}");
    }
    assert_eq!(told.borrow().begun, 0);
    // A refusal is no failure.
    assert!(target.begin(&stream()).is_ok());
    assert_eq!(target.begin(&stream()).unwrap_err().reason(), Reason::StreamDamaged);
}

/// That the call fails for this reason, the sink is not told to finish, and nothing works after.
fn fails(
    what: &str,
    reason: Reason,
    act: impl FnOnce(
        &mut StreamTarget<DeviceManager>,
    ) -> Result<(), <StreamTarget<DeviceManager> as Target>::Error>,
) {
    let (mut target, told) = begun();
    let error = act(&mut target).expect_err(what);
    assert_eq!(error.reason(), reason, "{what}: {error}");
    assert_eq!(told.borrow().finished, 0, "{what}");
    let bytes = told.borrow().bytes.len();
    let next = item(1, &[2; 512]);
    assert!(target.missing(&[next]).is_err() && target.apply(&next, Some(&[2; 512])).is_err());
    assert!(target.commit(&finish(&[1; 4096], TWO)).is_err() && target.begin(&stream()).is_err());
    assert_eq!((told.borrow().finished, told.borrow().bytes.len()), (0, bytes), "{what}");
}

#[test]
fn what_is_not_the_announced_stream_never_ends_it() {
    use Reason::{StreamDamaged, VerifyFailed};
    let second = item(1, &[2; 512]);
    let announced = move |target: &mut StreamTarget<DeviceManager>, data: Option<&[u8]>| {
        target.missing(&[second])?;
        target.apply(&second, data)
    };
    fails("other bytes", VerifyFailed, |t| announced(t, Some(&[3; 512])));
    fails("another length", VerifyFailed, |t| announced(t, Some(&[2; 511])));
    fails("nothing", StreamDamaged, |t| announced(t, None));
    fails("unannounced", StreamDamaged, |t| t.apply(&second, Some(&[2; 512])));
    let other = item(1, &[3; 512]);
    fails("another part", StreamDamaged, move |t| {
        t.missing(&[second])?;
        t.apply(&other, Some(&[3; 512]))
    });
    for index in [0, 2, u64::MAX] {
        let item = item(index, &[2; 512]);
        fails("out of order", StreamDamaged, move |t| t.missing(&[item]).map(drop));
    }
    for len in [0, 256 * 1024 + 1, u32::MAX] {
        let item = Item::Part { index: 1, len, id: ChunkId([4; 32]) };
        fails("length", StreamDamaged, move |t| t.missing(&[item]).map(drop));
    }
    let (data, zero, id) = (BlockMask::ALL, BlockMask::NONE, ChunkId([5; 32]));
    let chunk = Item::Chunk { index: 1, data, zero, id };
    fails("a chunk", StreamDamaged, move |t| t.missing(&[chunk]).map(drop));

    let right = finish(&[1; 4096], TWO);
    let ends = |what, reason, end: Finish| fails(what, reason, |t| t.commit(&end).map(drop));
    ends("another root", VerifyFailed, Finish { root: Some(Root([0; 32])), ..right.clone() });
    ends("another length", VerifyFailed, Finish { size: Some(4097), ..right.clone() });
    ends("no root", StreamDamaged, Finish { root: None, ..right.clone() });
    ends("no length", StreamDamaged, Finish { size: None, ..right.clone() });
    ends("another tip", StreamDamaged, finish(&[1; 4096], Generation::zfs(3)));
    fails("too early", StreamDamaged, move |t| {
        t.missing(&[second])?;
        t.commit(&right).map(drop)
    });
}

#[test]
fn what_the_sink_says_is_what_counts() {
    // It took everything, and holds something else.
    for reaches in [ONE, Generation::zfs(3)] {
        let (mut sink, _) = manager(Some(ONE));
        sink.reaches = Some(reaches);
        let mut target = target(sink);
        target.begin(&stream()).unwrap();
        let error = target.commit(&finish(&[], TWO)).unwrap_err();
        assert_eq!(error.reason(), Reason::TargetModified, "{error}");
    }
    // It is full, and says so in its own words.
    let (mut sink, told) = manager(Some(ONE));
    sink.limit = 100;
    let mut target = target(sink);
    target.begin(&stream()).unwrap();
    let part = item(0, &[1; 512]);
    target.missing(&[part]).unwrap();
    let error = target.apply(&part, Some(&[1; 512])).unwrap_err();
    assert_eq!(
        (error.reason(), error.to_string().as_str()),
        (Reason::TargetFull, "the pool is full")
    );
    assert!(target.commit(&finish(&[1; 512], TWO)).is_err());
    assert_eq!(told.borrow().finished, 0);
}
