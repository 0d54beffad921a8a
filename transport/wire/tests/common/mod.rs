//! Arbitrary messages: every value that has an encoding, limits included.

use driftline_extent::{
    Accepts, Ask, Begin, BlockMask, CHUNK_LEN, ChunkId, Committed, Finish, Generation, GrainHash,
    GrainMask, Item, Missing, Offer, PART_LEN_MAX, Plan, PlanKind, Point, Reason, ReplicaId,
    Resume, Root, Scheme, Standing, TargetState, VOLUME_LEN_MAX, VolumeId,
};
use driftline_wire::{Batch, Message, Verb, limits::BATCH_DATA_MAX};
use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
};

/// Chunk indices are below this.
pub(crate) const CHUNKS_MAX: u64 = VOLUME_LEN_MAX / CHUNK_LEN;

fn chunk_id() -> impl Strategy<Value = ChunkId> {
    any::<[u8; 32]>().prop_map(ChunkId)
}

fn root() -> impl Strategy<Value = Root> {
    any::<[u8; 32]>().prop_map(Root)
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(VOLUME_LEN_MAX), 0..=VOLUME_LEN_MAX]
}

fn generation() -> impl Strategy<Value = Generation> {
    prop_oneof![
        any::<u64>().prop_map(Generation::zfs),
        root().prop_map(Generation::content),
        any::<u64>().prop_map(Generation::drbd),
        ("[a-z0-9]{1,6}", vec(any::<u8>(), 1..=32)).prop_map(|(letters, name)| {
            // No scheme that has a number has a digit.
            let scheme = Scheme::new(&format!("{letters}0")).unwrap();
            Generation::new(scheme, &name).unwrap()
        }),
    ]
}

fn reason() -> impl Strategy<Value = Reason> {
    prop::sample::select(Reason::all().collect::<Vec<_>>())
}

fn volume_id() -> impl Strategy<Value = VolumeId> {
    any::<[u8; 16]>().prop_map(VolumeId)
}

fn resume() -> impl Strategy<Value = Resume> {
    (option::of(generation()), option::of(generation()), 0..=CHUNKS_MAX)
        .prop_map(|(base, tip, from)| Resume { base, tip, from })
}

/// Few points and short tokens: a test reads every prefix of a message. Another is about limits.
fn accepts() -> impl Strategy<Value = Accepts> {
    let point =
        (any::<u64>(), "[ -~]{1,9}|\\PC{1,9}").prop_map(|(guid, name)| Point { guid, name });
    let token = option::of("[0-9a-zA-Z][0-9a-zA-Z-]{0,40}");
    let stream =
        (token, vec(point, 0..4)).prop_map(|(token, points)| Accepts::Stream { token, points });
    prop_oneof![Just(Accepts::Volume), stream]
}

fn state() -> impl Strategy<Value = TargetState> {
    let names = (any::<[u8; 16]>(), any::<[u8; 32]>(), option::of(volume_id()));
    let content = (option::of(generation()), option::of(root()), size());
    (names, content, any::<(bool, bool)>(), option::of(resume()), accepts()).prop_map(
        |((replica, chunk_key, volume), content, (incomplete, damaged), resume, accepts)| {
            let (replica, (generation, root, size)) = (ReplicaId(replica), content);
            let named = TargetState { replica, chunk_key, volume, ..TargetState::nothing() };
            TargetState { generation, root, size, incomplete, damaged, resume, accepts, ..named }
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let kinds = [PlanKind::Incremental, PlanKind::Full, PlanKind::Scan, PlanKind::Stream];
    let kind = prop::sample::select(kinds.to_vec());
    let generations = (option::of(generation()), option::of(generation()));
    let standing =
        option::of(reason()).prop_map(|reason| reason.map_or(Standing::Proven, Standing::Suspect));
    (kind, option::of(volume_id()), generations, option::of(size()), standing, any::<u64>())
        .prop_map(|(kind, volume, (base, tip), size, standing, bytes_expected)| Plan {
            kind,
            volume,
            base,
            tip,
            size,
            standing,
            bytes_expected,
        })
}

/// How far an item is from the one before, and what it is.
fn step() -> impl Strategy<Value = (u64, Item)> {
    let gap = prop_oneof![4 => 0..3_u64, 1 => 0..1_u64 << 34];
    let count = prop_oneof![4 => 1..4_u64, 1 => 1..1_u64 << 34];
    let id = || chunk_id().prop_filter("data has a name", |id| !id.is_zero());
    let item = prop_oneof![
        id().prop_map(|id| {
            Item::Chunk { index: 0, data: BlockMask::ALL, zero: BlockMask::NONE, id }
        }),
        (1..u128::MAX, any::<u128>(), id()).prop_map(|(data, zero, id)| {
            Item::Chunk { index: 0, data: BlockMask(data), zero: BlockMask(zero & !data), id }
        }),
        (1..u128::MAX).prop_map(|zero| {
            let (data, zero) = (BlockMask::NONE, BlockMask(zero));
            Item::Chunk { index: 0, data, zero, id: ChunkId::ZERO }
        }),
        count.clone().prop_map(|count| Item::Zero { index: 0, count }),
        (count, chunk_id()).prop_map(|(count, digest)| Item::Span { index: 0, count, digest }),
        (1..=PART_LEN_MAX as u32, chunk_id()).prop_map(|(len, id)| Item::Part {
            index: 0,
            len,
            id
        }),
    ];
    (gap, item)
}

fn batch() -> impl Strategy<Value = Batch> {
    (any::<u32>(), vec(step(), 1..70)).prop_map(|(seq, steps)| {
        let (mut next, mut data_len) = (0, 0);
        let mut items = Vec::new();
        for (gap, mut item) in steps {
            data_len += item.data_len();
            if data_len > BATCH_DATA_MAX {
                break;
            }
            match &mut item {
                Item::Chunk { index, .. }
                | Item::Zero { index, .. }
                | Item::Span { index, .. }
                | Item::Part { index, .. } => *index = next + gap,
            }
            next = item.first() + item.count();
            items.push(item);
        }
        Batch { seq, items }
    })
}

fn lack() -> impl Strategy<Value = Missing> {
    let hash = any::<[u8; 8]>().prop_map(GrainHash);
    prop_oneof![
        Just(Missing::Nothing),
        Just(Missing::All),
        vec(hash, 2..=16).prop_map(Missing::Unlike)
    ]
}

/// Any message that a peer may send.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    let verb = prop::sample::select(vec![Verb::Push, Verb::Pull, Verb::Status]);
    // Every character is at most four bytes long.
    let name = "\\PC{0,63}";
    let detail = "\\PC{0,256}";
    let finish = (generation(), option::of(size()), option::of(root()))
        .prop_map(|(tip, size, root)| Finish { tip, size, root });
    let committed = (generation(), root(), size(), option::of(size()))
        .prop_map(|(generation, root, size, zeroed)| Committed { generation, root, size, zeroed });
    prop_oneof![
        Just(Message::KeepAlive),
        (verb, name, option::of(name)).prop_map(|(verb, volume, like)| Message::Request {
            verb,
            volume,
            like
        }),
        Just(Message::Accept),
        (reason(), detail).prop_map(|(reason, detail)| Message::Refuse { reason, detail }),
        state().prop_map(|state| Message::State(Box::new(state))),
        (name, any::<bool>()).prop_map(|(member, discard)| Message::Ask(Ask { member, discard })),
        (plan(), any::<bool>())
            .prop_map(|(plan, overwrite)| Message::Offer(Offer { plan, overwrite })),
        (0..=CHUNKS_MAX).prop_map(|from| Message::Begin(Begin { from })),
        batch().prop_map(Message::Batch),
        (any::<u32>(), vec(lack(), 1..=100))
            .prop_map(|(seq, missing)| Message::Want { seq, missing }),
        (any::<u32>(), vec(any::<u16>().prop_map(GrainMask), 1..=512))
            .prop_map(|(seq, grains)| Message::Narrowed { seq, grains }),
        (any::<u32>(), btree_set(0..512_u16, 1..40))
            .prop_map(|(seq, items)| Message::Again { seq, items: items.into_iter().collect() }),
        any::<u32>().prop_map(|seq| Message::Applied { seq }),
        (finish, any::<[u8; 32]>())
            .prop_map(|(finish, transcript)| Message::Finish { finish, transcript }),
        committed.prop_map(Message::Committed),
        Just(Message::Done),
    ]
}
