//! The index over all replicas of a target, on real files: what one replica has is found for
//! another, and nothing that can happen to the index makes a replica wrong.

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{CHUNK, deliver, pattern, plan, whole};
use driftline_extent::{CHUNK_LEN, Change, PlanKind, Target};
use driftline_target::{FileDisk, Index, IndexError, Listed, Options, Replica, open, state_dir_of};
use redb::ReadableDatabase;
use tempfile::TempDir;

/// Some replicas, and an index over them.
struct Shop {
    dir: TempDir,
}

impl Shop {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn index(&self, replicas: &[&str]) -> Arc<Index> {
        let listed = replicas.iter().map(|name| {
            let volume = self.path(name);
            Listed { state_dir: state_dir_of(&volume), volume }
        });
        Arc::new(Index::open(&self.path("index"), &listed.collect::<Vec<_>>()).unwrap())
    }

    fn open(&self, name: &str, index: &Arc<Index>) -> Replica<FileDisk> {
        let index = Some(index.clone());
        open(&self.path(name), &Options { create: true, index, ..Options::default() }).unwrap()
    }

    /// Copies `content` to a new replica; returns how many bytes of it moved.
    fn copy(&self, name: &str, index: &Arc<Index>, content: &[u8]) -> u64 {
        let mut replica = self.open(name, index);
        let full = plan(PlanKind::Full, None, 1);
        let moved = deliver(&mut replica, full, &whole(content), content.len() as u64).unwrap();
        self.check(name, &mut replica, content);
        moved
    }

    /// Changes a replica from generation to generation; returns how many bytes moved.
    fn change(&self, name: &str, index: &Arc<Index>, to: u64, changes: &[Change]) -> u64 {
        let mut content = fs::read(self.path(name)).unwrap();
        for change in changes {
            let Change::Data { offset, bytes } = change else { continue };
            content[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        let mut replica = self.open(name, index);
        let next = plan(PlanKind::Incremental, Some(to - 1), to);
        let moved = deliver(&mut replica, next, changes, content.len() as u64).unwrap();
        self.check(name, &mut replica, &content);
        moved
    }

    fn check(&self, name: &str, replica: &mut Replica<FileDisk>, content: &[u8]) {
        assert!(replica.verify(&mut |_| {}).unwrap().is_clean(), "{name}");
        assert!(fs::read(self.path(name)).unwrap() == content, "{name} has other bytes");
    }
}

fn content(seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..12).flat_map(|chunk| pattern(seed.wrapping_add(2 * chunk), CHUNK)).collect();
    // No two chunks of all contents are the same.
    for (number, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
        chunk[..2].copy_from_slice(&[seed, number as u8]);
    }
    bytes
}

fn chunk_at(offset: u64, bytes: &[u8]) -> Change {
    Change::Data { offset, bytes: bytes.to_vec() }
}

#[test]
fn what_another_replica_has_does_not_move_again() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    let one = content(1);
    assert_eq!(shop.copy("one", &index, &one), one.len() as u64);
    assert_eq!(index.counts(), Some((1, 12)));
    // A copy of it, shifted by chunks, with one chunk of its own.
    let mut two = one.clone();
    two.rotate_left(3 * CHUNK);
    two[5 * CHUNK..6 * CHUNK].copy_from_slice(&pattern(77, CHUNK));
    assert_eq!(shop.copy("two", &index, &two), CHUNK_LEN);
    assert_eq!(index.counts(), Some((2, 13)));
    // All have the same key: it is the index's.
    let key = |name| shop.open(name, &index).state().chunk_key;
    assert!(key("one") == key("two") && key("one") == *index.chunk_key());
}

#[test]
fn what_moves_within_a_volume_does_not_move_again() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    let one = content(1);
    shop.copy("one", &index, &one);
    let mut moved = one.clone();
    moved.rotate_right(4 * CHUNK);
    assert_eq!(shop.change("one", &index, 2, &[chunk_at(0, &moved)]), 0);
    // The index follows: the same once more.
    moved.rotate_right(CHUNK);
    assert_eq!(shop.change("one", &index, 3, &[chunk_at(0, &moved)]), 0);
    assert_eq!(index.counts(), Some((1, 12)));
}

#[test]
fn what_is_gone_is_forgotten() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    shop.copy("one", &index, &content(1));
    for generation in 2..20 {
        let new = content(generation as u8 * 7);
        shop.change("one", &index, generation, &[chunk_at(0, &new[..3 * CHUNK])]);
        assert_eq!(index.counts(), Some((1, 12)), "no name of what is gone stays");
    }
    // What became zero has no name, and what was cut off neither.
    let mut replica = shop.open("one", &index);
    let zero = Change::Zero(driftline_extent::Extent::new(0, 2 * CHUNK_LEN).unwrap());
    let next = plan(PlanKind::Incremental, Some(19), 20);
    deliver(&mut replica, next, &[zero], 8 * CHUNK_LEN).unwrap();
    drop(replica);
    assert_eq!(index.counts(), Some((1, 6)));
}

#[test]
fn what_the_index_says_is_read_and_hashed_before_it_is_used() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    let one = content(1);
    shop.copy("one", &index, &one);
    // Somebody else writes to the first replica, and then it is gone.
    let file = fs::OpenOptions::new().write(true).open(shop.path("one")).unwrap();
    file.write_all_at(b"intruder", 2 * CHUNK_LEN + 5).unwrap();
    assert_eq!(shop.copy("two", &index, &one), CHUNK_LEN);
    fs::remove_file(shop.path("one")).unwrap();
    let mut three = one.clone();
    three.rotate_left(CHUNK);
    // A stale name was removed, and the chunk is found where it came to stand meanwhile.
    let moved = shop.copy("three", &index, &three);
    assert_eq!(moved, 11 * CHUNK_LEN, "only what the second copy listed is found");
    assert_eq!(shop.copy("four", &index, &three), 0);
}

#[test]
fn a_lost_index_is_made_anew_and_takes_the_key_of_the_replicas() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    shop.copy("one", &index, &content(1));
    shop.copy("two", &index, &content(100));
    let (key, counts) = (*index.chunk_key(), index.counts());
    drop(index);
    fs::remove_file(shop.path("index")).unwrap();
    let index = shop.index(&["one", "two", "nothing"]);
    assert_eq!((*index.chunk_key(), index.counts()), (key, counts));
    assert_eq!(shop.copy("three", &index, &content(100)), 0);
    drop(index);
    // One that knows of no replica has another key, and the replicas are not in it.
    fs::remove_file(shop.path("index")).unwrap();
    let index = shop.index(&[]);
    assert_ne!(*index.chunk_key(), key);
    assert_eq!(shop.change("one", &index, 2, &[chunk_at(0, &content(50))]), 12 * CHUNK_LEN);
    assert_eq!(index.counts(), Some((0, 0)));
}

/// As after a crash between a commit and the index, or an increment received without it.
#[test]
fn a_replica_that_went_on_without_the_index_is_listed_anew() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    shop.copy("one", &index, &content(1));
    let new = content(50);
    let mut replica = open(&shop.path("one"), &Options::default()).unwrap();
    let next = plan(PlanKind::Incremental, Some(1), 2);
    deliver(&mut replica, next, &[chunk_at(0, &new[..3 * CHUNK])], 12 * CHUNK_LEN).unwrap();
    drop(replica);
    drop(shop.open("one", &index));
    assert_eq!(index.counts(), Some((1, 12)));
    let now = fs::read(shop.path("one")).unwrap();
    assert_eq!(shop.copy("two", &index, &now), 0);
}

#[test]
fn only_one_process_has_an_index() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    let again = Index::open(&shop.path("index"), &[]).unwrap_err();
    assert!(again.to_string().contains("another process"), "{again}");
    let again = Index::rebuild(&shop.path("index"), &[]).unwrap_err();
    assert!(again.to_string().contains("another process"), "{again}");
    drop(index);
    drop(Index::rebuild(&shop.path("index"), &[]).unwrap());
}

/// Flips of bits everywhere in the file: opened or made anew, and no replica is wrong.
#[test]
fn a_damaged_index_costs_time_and_no_byte() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    let one = content(1);
    shop.copy("one", &index, &one);
    drop(index);
    let good = fs::read(shop.path("index")).unwrap();
    let mut used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    // The header, and a sample of what is used of the rest.
    let step = used.len() / 60;
    used = used.iter().copied().take(40).chain(used.iter().copied().step_by(step.max(1))).collect();
    let mut aside = 0;
    for (number, at) in used.into_iter().enumerate() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (number % 8);
        fs::write(shop.path("index"), &bad).unwrap();
        let index = shop.index(&["one"]);
        let name = format!("copy{number}");
        shop.copy(&name, &index, &one);
        let change = [chunk_at(0, &one[CHUNK..4 * CHUNK])];
        shop.change(&name, &index, 2, &change);
        drop(index);
        aside += usize::from(fs::remove_file(shop.path("index.damaged")).is_ok());
        let _ = fs::remove_file(shop.path("index"));
        remove(&shop.path(&name));
    }
    assert!(aside > 10, "{aside} were noticed");
}

/// Whoever names the wrong file loses nothing by it.
#[test]
fn what_is_no_index_is_left_alone() {
    let shop = Shop::new();
    let path = shop.path("index");
    let foreign = |path: &Path| {
        let refused = [Index::open(path, &[]), Index::rebuild(path, &[])];
        refused.into_iter().all(|made| matches!(made, Err(IndexError::Foreign { .. })))
    };
    // A database of another program; a volume, a short file, and a key.
    let other = shop.path("other");
    let database = redb::Database::create(&other).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<u64, u64>::new("theirs")).unwrap();
    write.commit().unwrap();
    drop(database);
    for bytes in [content(1), vec![7], b"driftline secret".to_vec()] {
        fs::write(&path, &bytes).unwrap();
        assert!(foreign(&path));
        assert!(fs::read(&path).unwrap() == bytes);
    }
    assert!(foreign(&other));
    let theirs = redb::Database::open(&other).unwrap();
    assert_eq!(theirs.begin_read().unwrap().list_tables().unwrap().count(), 1);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    assert!(foreign(Path::new("/dev/null")) && foreign(path.parent().unwrap()));
    // An empty file is as good as none.
    fs::write(&path, []).unwrap();
    drop(Index::open(&path, &[]).unwrap());
    assert!(fs::metadata(&path).unwrap().len() > 0);
}

/// Each damaged index is kept under a name of its own, up to a limit.
#[test]
fn what_was_put_aside_is_never_overwritten() {
    let shop = Shop::new();
    drop(shop.index(&[]));
    let mut bytes = fs::read(shop.path("index")).unwrap();
    // The page behind the header.
    bytes[4096..].fill(0xff);
    bytes.truncate(3 * 4096);
    let aside = |number: u8| match number {
        1 => shop.path("index.damaged"),
        _ => shop.path(&format!("index.damaged-{number}")),
    };
    for number in 1..=16 {
        *bytes.last_mut().unwrap() = number;
        fs::write(shop.path("index"), &bytes).unwrap();
        drop(shop.index(&[]));
    }
    for number in 1..=16 {
        assert_eq!(fs::read(aside(number)).unwrap().last(), Some(&number));
    }
    fs::write(shop.path("index"), &bytes).unwrap();
    let refused = Index::open(&shop.path("index"), &[]).err().unwrap().to_string();
    assert!(refused.contains("16 damaged ones stand beside it"), "{refused}");
    assert!(fs::read(shop.path("index")).unwrap() == bytes);
}

/// Some blocks of a file as they were, and the others as they were to become: what power loss makes
/// of it. `luck` draws which.
fn torn(older: &[u8], newer: &[u8], luck: &mut u64) -> Vec<u8> {
    let mut draw = || {
        *luck = luck.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (*luck >> 33).is_multiple_of(2)
    };
    let mut bytes =
        if draw() { newer.to_vec() } else { newer[..older.len().min(newer.len())].to_vec() };
    for (new, old) in bytes.chunks_mut(4096).zip(older.chunks(4096)) {
        if draw() {
            let len = new.len().min(old.len());
            new[..len].copy_from_slice(&old[..len]);
        }
    }
    bytes
}

/// The file as a crash leaves it within any transaction, or as a backup puts it back: it is opened
/// or made anew, and what it leads to is read and hashed.
#[test]
fn an_index_that_is_torn_or_old_costs_time_and_no_byte() {
    let shop = Shop::new();
    let index = shop.index(&[]);
    let mut images = Vec::new();
    let look = |images: &mut Vec<Vec<u8>>| images.push(fs::read(shop.path("index")).unwrap());
    look(&mut images);
    shop.copy("one", &index, &content(1));
    look(&mut images);
    shop.copy("two", &index, &content(100));
    look(&mut images);
    for generation in 2..5 {
        let new = content(generation as u8 * 7);
        shop.change("one", &index, generation, &[chunk_at(0, &new[..8 * CHUNK])]);
        look(&mut images);
    }
    drop(index);
    look(&mut images);
    let [one, two] = ["one", "two"].map(|name| fs::read(shop.path(name)).unwrap());
    let three = [&one[..6 * CHUNK], &two[6 * CHUNK..]].concat();
    let mut luck = 1;
    let mut cases = images.clone();
    for pair in images.windows(2) {
        cases.extend((0..8).map(|_| torn(&pair[0], &pair[1], &mut luck)));
    }
    let (mut found_all, mut was_stale) = (0, 0);
    for (number, bytes) in cases.iter().enumerate() {
        fs::write(shop.path("index"), bytes).unwrap();
        let index = shop.index(&["one", "two"]);
        let name = format!("three{number}");
        let moved = shop.copy(&name, &index, &three);
        found_all += u32::from(moved == 0);
        was_stale += u32::from(moved > 0);
        shop.change(&name, &index, 2, &[chunk_at(0, &two[..3 * CHUNK])]);
        drop(index);
        let _ = fs::remove_file(shop.path("index.damaged"));
        fs::remove_file(shop.path("index")).unwrap();
        remove(&shop.path(&name));
    }
    assert!(found_all > 0 && was_stale > 0, "{found_all} found all, {was_stale} were stale");
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::remove_dir_all(state_dir_of(path)).unwrap();
}
