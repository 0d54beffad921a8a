//! What the model says of opaque streams, beside volumes.

use driftline_extent::{
    Accepts, Change, ChunkId, Committed, Generation, Item, PART_LEN_MAX, Point, Resume, Root,
    TargetState,
};

const TIP: Generation = Generation::zfs(2);

#[test]
fn a_part_covers_no_range_of_a_volume() {
    assert_eq!(Change::Part(vec![1; 512]).extent(), None);
    let item = Item::Part { index: 7, len: PART_LEN_MAX as u32, id: ChunkId([1; 32]) };
    assert_eq!((item.first(), item.count(), item.data_len()), (7, 1, PART_LEN_MAX));
    assert_eq!(item.extent(), None);
}

#[test]
fn a_commit_moves_the_state_on() {
    let committed = Committed { generation: TIP, root: Root([5; 32]), size: 4096, zeroed: None };
    let points = vec![Point { guid: 1, name: "monday".to_owned() }];
    let token = Some("1-ab-cd".to_owned());
    let resume = Some(Resume { base: None, tip: Some(TIP), from: 3 });
    let before = TargetState { incomplete: true, resume, ..TargetState::nothing() };

    let mut volume = before.clone();
    volume.advance(&committed);
    let (root, size) = (Some(committed.root), committed.size);
    let expected = TargetState { generation: Some(TIP), root, size, ..TargetState::nothing() };
    assert_eq!(volume, expected);

    let mut stream =
        TargetState { accepts: Accepts::Stream { token, points: points.clone() }, ..before };
    stream.advance(&committed);
    let accepts = Accepts::Stream { token: None, points };
    assert_eq!(stream, TargetState { generation: Some(TIP), accepts, ..TargetState::nothing() });
}
