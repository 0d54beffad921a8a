//! Reading a replica by its books after a stop at any operation of an increment.

mod common;

use std::fs;

use common::{
    CHUNK, deliver, pattern, place, plan,
    power::{Power, opened},
    whole,
};
use driftline_extent::{CHUNK_LEN, Change, Explained, Generation, PlanKind, Reason, Volume};
use driftline_target::{Reading, Verified, books_of, open_read, state_dir_of};

const BOOKS: [&str; 5] = ["state", "journal", "ids", "overlay", "repair"];

fn content<D: driftline_target::Disk>(verified: &Verified<D>) -> Vec<u8> {
    let mut bytes = vec![0; verified.size() as usize];
    verified.read_at(0, &mut bytes).unwrap();
    verified.check_all().unwrap();
    bytes
}

/// What was sealed is completed before anything is read; what was not is not in it.
#[test]
fn a_replica_that_was_stopped_is_read_as_one_generation_or_completed_first() {
    let base = pattern(3, 3 * CHUNK);
    let mut tip = base.clone();
    tip[CHUNK..2 * CHUNK].copy_from_slice(&pattern(5, CHUNK));
    let size = base.len() as u64;
    let start = Power::default();
    deliver(&mut opened(&start).unwrap(), plan(PlanKind::Full, None, 1), &whole(&base), size)
        .unwrap();
    start.crash(0);
    let changes = [Change::Data { offset: CHUNK_LEN, bytes: tip[CHUNK..2 * CHUNK].to_vec() }];
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let whole_run = start.fork();
    let before = whole_run.operations();
    deliver(&mut opened(&whole_run).unwrap(), next.clone(), &changes, size).unwrap();
    let (mut old, mut new, mut completed) = (0, 0, 0);
    for stop in 0..=whole_run.operations() - before {
        let power = start.fork();
        let mut replica = opened(&power).unwrap();
        power.stop_after(stop);
        let _ = deliver(&mut replica, next.clone(), &changes, size);
        drop(replica);
        power.crash(0);
        let place = place();
        fs::write(&place.path, power.content("volume")).unwrap();
        let books = state_dir_of(&place.path);
        fs::create_dir(&books).unwrap();
        for name in BOOKS {
            fs::write(books.join(name), power.content(name)).unwrap();
        }
        assert_eq!(books_of(&place.path).unwrap().as_ref(), Some(&books));
        let mut reading = open_read(&place.path, &books).unwrap();
        if matches!(reading, Reading::Unfinished) {
            drop(place.open());
            completed += 1;
            reading = open_read(&place.path, &books).unwrap();
        }
        let Reading::Ready(verified) = reading else { panic!("stop {stop}: not completed") };
        if verified.state().generation == Some(Generation::zfs(1)) {
            assert!(content(&verified) == base, "stop {stop}");
            old += 1;
        } else {
            assert_eq!(verified.state().generation, Some(Generation::zfs(2)));
            assert!(content(&verified) == tip, "stop {stop}");
            new += 1;
        }
        // Another reader is let in, a writer is not.
        let Reading::Ready(_) = open_read(&place.path, &books).unwrap() else { panic!() };
        assert_eq!(place.try_open().unwrap_err().reason(), Reason::TargetBusy);
    }
    assert!(old > 0 && completed > 0 && new >= completed, "{old} {completed} {new}");
}
