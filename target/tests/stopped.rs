//! Increments that stop once their journal is sealed: on a disk that fills, on storage that cannot
//! be written any more, with a list of ids or a journal that is damaged.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
};

use common::{power::Power, *};
use driftline_extent::{
    BlockMask, CHUNK_LEN, Change, ChunkId, Explained, Extent, Finish, Generation, Item, Offer,
    PlanKind, Reason, Target,
};
use driftline_target::{Disk, Disks, Problem, Replica};

const PAGE: u64 = 4096;
const NAMES: [&str; 6] = ["volume", "state", "journal", "ids", "overlay", "repair"];

/// Some disks on one file system.
#[derive(Default)]
struct FileSystem {
    files: BTreeMap<&'static str, File>,
    /// Pages that can still be stored.
    free: u64,
    /// Whether storage can be reserved.
    reserves: bool,
    read_only: bool,
    /// Calls of `zero` on the volume.
    zeroed: u64,
}

#[derive(Default)]
struct File {
    len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    reserved: BTreeSet<u64>,
}

impl FileSystem {
    fn of(free: u64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { free, reserves: true, ..Self::default() }))
    }

    fn file(&mut self, name: &'static str) -> &mut File {
        self.files.entry(name).or_default()
    }

    /// Storage for a page of a file.
    fn take(&mut self, name: &'static str, page: u64, reserve: bool) -> io::Result<()> {
        let file = self.file(name);
        let had = file.pages.contains_key(&page) || file.reserved.contains(&page);
        if !had {
            self.free = self.free.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        let file = self.file(name);
        if reserve && !file.pages.contains_key(&page) {
            file.reserved.insert(page);
        } else {
            file.reserved.remove(&page);
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Place {
    system: Arc<Mutex<FileSystem>>,
    name: &'static str,
}

impl Place {
    fn change<T>(&self, change: impl FnOnce(&mut FileSystem) -> io::Result<T>) -> io::Result<T> {
        let mut system = self.system.lock().unwrap();
        if system.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        change(&mut system)
    }
}

impl Disk for Place {
    fn len(&self) -> io::Result<u64> {
        Ok(self.system.lock().unwrap().file(self.name).len)
    }

    fn is_fixed(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut system = self.system.lock().unwrap();
        let file = system.file(self.name);
        if offset + buf.len() as u64 > file.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (at, byte) in (offset..).zip(buf) {
            *byte = file.pages.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(|system| {
            for (at, byte) in (offset..).zip(bytes) {
                if !system.file(self.name).pages.contains_key(&(at / PAGE)) {
                    system.take(self.name, at / PAGE, false)?;
                }
                let file = system.file(self.name);
                file.len = file.len.max(at + 1);
                let page = file.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
                page[(at % PAGE) as usize] = *byte;
            }
            Ok(())
        })
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        self.change(|system| {
            system.zeroed += u64::from(self.name == "volume");
            let file = system.file(self.name);
            for at in extent.offset()..extent.end() {
                if let Some(page) = file.pages.get_mut(&(at / PAGE)) {
                    page[(at % PAGE) as usize] = 0;
                }
            }
            let before = file.pages.len();
            file.pages.retain(|_, page| page.iter().any(|byte| *byte != 0));
            system.free += (before - system.file(self.name).pages.len()) as u64;
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|system| {
            let file = system.file(self.name);
            let before = file.pages.len() + file.reserved.len();
            file.pages.retain(|page, _| page * PAGE < len);
            file.reserved.retain(|page| page * PAGE < len);
            if let Some(last) = file.pages.get_mut(&(len / PAGE)) {
                last[(len % PAGE) as usize..].fill(0);
            }
            file.len = len;
            system.free += before as u64;
            let file = system.file(self.name);
            let after = file.pages.len() + file.reserved.len();
            system.free -= after as u64;
            Ok(())
        })
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let mut system = self.system.lock().unwrap();
        let file = system.file(self.name);
        let page = file.pages.range(from / PAGE..).next().map(|(page, _)| page * PAGE);
        Ok(page.and_then(|page| Extent::from_bounds(page.max(from), (page + PAGE).min(file.len))))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|_| Ok(()))
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, ranges: &[Extent]) -> io::Result<()> {
        self.change(|system| {
            let pages = ranges.iter().flat_map(|r| r.offset() / PAGE..r.end().div_ceil(PAGE));
            let reserves = system.reserves;
            pages.filter(|_| reserves).try_for_each(|page| system.take(self.name, page, true))
        })
    }

    fn reopen(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

fn disks(system: &Arc<Mutex<FileSystem>>) -> Disks<Place> {
    let [volume, state, journal, ids, overlay, repair] =
        NAMES.map(|name| Place { system: system.clone(), name });
    Disks { volume, state, journal, ids, overlay, repair }
}

fn data(index: u64, seed: u8, len: usize) -> Change {
    Change::Data { offset: index * CHUNK_LEN, bytes: pattern(seed, len) }
}

/// What a replica holds, each chunk compared with its books.
fn content<D: Disk>(replica: Replica<D>) -> Vec<u8> {
    let size = replica.state().size;
    let mut bytes: Vec<u8> = (0..size.div_ceil(CHUNK_LEN))
        .flat_map(|index| replica.read_chunk(index).unwrap())
        .collect();
    bytes.truncate(size as usize);
    bytes
}

/// A replica of eight chunks at generation 1, of which two have data.
fn sparse(free: u64) -> (Arc<Mutex<FileSystem>>, Vec<u8>) {
    let system = FileSystem::of(free);
    let mut base = vec![0; 8 * CHUNK];
    base[..CHUNK].copy_from_slice(&pattern(3, CHUNK));
    let mut replica = Replica::open("r", disks(&system), [1; 32]).unwrap();
    deliver(&mut replica, plan(PlanKind::Full, None, 1), &[data(0, 3, CHUNK)], 8 * CHUNK_LEN)
        .unwrap();
    (system, base)
}

/// 48 pages for the journal of three chunks, and 48 for the chunks themselves.
fn filling(system: &Arc<Mutex<FileSystem>>) -> Result<u64, driftline_target::TargetError> {
    let mut replica = Replica::open("r", disks(system), [2; 32])?;
    let changes = [2, 4, 6].map(|index| data(index, index as u8 + 5, CHUNK));
    deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, 8 * CHUNK_LEN)
}

fn filled(base: &[u8]) -> Vec<u8> {
    let mut tip = base.to_vec();
    for index in [2, 4, 6] {
        tip[index * CHUNK..(index + 1) * CHUNK].copy_from_slice(&pattern(index as u8 + 5, CHUNK));
    }
    tip
}

#[test]
fn a_disk_without_room_for_an_increment_keeps_the_base() {
    let (system, base) = sparse(400);
    system.lock().unwrap().free = 70;
    let error = filling(&system).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetFull, "{error}");
    let mut replica = Replica::open("r", disks(&system), [3; 32]).unwrap();
    assert_eq!(replica.state().generation, Some(Generation::zfs(1)));
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    assert!(content(replica) == base);
    system.lock().unwrap().free = 100;
    filling(&system).unwrap();
    assert!(content(Replica::open("r", disks(&system), [4; 32]).unwrap()) == filled(&base));
}

/// Where nothing can be reserved the disk fills in the middle; what was sealed is readable all the
/// same, and is completed once there is room.
#[test]
fn a_full_disk_is_read_through_the_journal() {
    let (system, base) = sparse(400);
    {
        let mut system = system.lock().unwrap();
        (system.free, system.reserves) = (70, false);
    }
    let error = filling(&system).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetFull, "{error}");
    system.lock().unwrap().free = 0;
    let error = Replica::open("r", disks(&system), [3; 32]).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetFull, "{error}");
    system.lock().unwrap().read_only = true;
    let mut replica = Replica::open_to_read("r", disks(&system), [3; 32]).unwrap();
    assert_eq!(replica.state().generation, Some(Generation::zfs(2)));
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    let refused = replica.begin(&offer(plan(PlanKind::Incremental, Some(2), 3))).unwrap_err();
    assert!(matches!(refused.problem, Problem::ReadOnly), "{refused}");
    let refused = replica.scrub(true, 1, &mut |_| {}).unwrap_err();
    assert!(matches!(refused.problem, Problem::ReadOnly), "{refused}");
    let replica = Replica::open_to_read("r", disks(&system), [3; 32]).unwrap();
    assert!(content(replica) == filled(&base));
    {
        let mut system = system.lock().unwrap();
        (system.free, system.read_only) = (100, false);
    }
    let mut replica = Replica::open("r", disks(&system), [4; 32]).unwrap();
    assert_eq!(replica.state().generation, Some(Generation::zfs(2)));
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
}

/// A source that frees chunk after chunk: each run of them is one call, whatever it is told as.
#[test]
fn freed_space_is_punched_by_runs() {
    let system = FileSystem::of(100_000);
    let chunks = 64;
    let mut replica = Replica::open("r", disks(&system), [1; 32]).unwrap();
    let changes: Vec<Change> =
        (0..chunks).map(|index| data(index, index as u8 + 1, CHUNK)).collect();
    let size = chunks * CHUNK_LEN;
    deliver(&mut replica, plan(PlanKind::Full, None, 1), &changes, size).unwrap();
    assert_eq!(system.lock().unwrap().zeroed, 0, "a first copy has nothing to punch");
    replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap();
    let (data, zero) = (BlockMask::NONE, BlockMask::ALL);
    for index in (1..chunks - 1).filter(|index| *index != 40) {
        let item = Item::Chunk { index, data, zero, id: ChunkId::ZERO };
        replica.apply(&item, None).unwrap();
    }
    let finish = Finish { tip: Generation::zfs(2), size: Some(size), root: None };
    replica.commit(&finish).unwrap();
    assert_eq!(system.lock().unwrap().zeroed, 2, "two runs, before and behind chunk 40");
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
}

/// Bases, what becomes of them, and the size: growing, cut within a chunk, with zeros.
fn increments() -> Vec<(Vec<u8>, Vec<Change>, u64)> {
    let base = pattern(3, 5 * CHUNK + 900);
    let zero = |start: u64, end: u64| Change::Zero(Extent::from_bounds(start, end).unwrap());
    let part = |offset, seed, len| Change::Data { offset, bytes: pattern(seed, len) };
    let chunk = CHUNK_LEN;
    let cut = 3 * chunk + 512;
    vec![
        (
            base.clone(),
            vec![part(512, 7, 1024), zero(chunk, 3 * chunk), data(6, 9, CHUNK)],
            8 * chunk,
        ),
        (base.clone(), vec![part(chunk + 1024, 7, 5120)], cut),
        (base.clone(), vec![zero(0, chunk), part(3 * chunk, 7, 512)], cut),
        (
            base,
            vec![data(2, 8, CHUNK), zero(3 * chunk, 4 * chunk), part(5 * chunk, 9, 512)],
            5 * chunk + 700,
        ),
    ]
}

fn tip_of(base: &[u8], changes: &[Change], size: u64) -> Vec<u8> {
    let mut tip = base.to_vec();
    tip.resize(base.len().max(size as usize), 0);
    for change in changes {
        let extent = change.extent().unwrap();
        let (start, end) = (extent.offset() as usize, (extent.end() as usize).min(tip.len()));
        match change {
            Change::Data { bytes, .. } => tip[start..end].copy_from_slice(&bytes[..end - start]),
            Change::Zero(_) => tip[start..end].fill(0),
            Change::Part(_) => panic!("a volume has no parts"),
        }
    }
    tip.truncate(size as usize);
    tip
}

/// Wherever an increment stops, what is read without writing anything is the base before its
/// journal is sealed, and the tip from then on.
#[test]
fn a_stopped_increment_is_read_without_writing() {
    for (base, changes, size) in increments() {
        let tip = tip_of(&base, &changes, size);
        let power = Power::default();
        let mut replica = Replica::open("r", power.disks(), [1; 32]).unwrap();
        let first = plan(PlanKind::Full, None, 1);
        deliver(&mut replica, first, &whole(&base), base.len() as u64).unwrap();
        drop(replica);
        let run = |power: &Power| {
            let mut replica = Replica::open("r", power.disks(), [2; 32])?;
            deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, size)
        };
        let whole = power.fork();
        let before = whole.operations();
        run(&whole).unwrap();
        let mut seen = [0, 0];
        for stop in 0..=whole.operations() - before {
            for seed in 0..4 {
                let power = power.fork();
                power.stop_after(stop);
                let _ = run(&power);
                power.crash(seed * 77 + stop);
                let left = NAMES.map(|name| power.content(name));
                let mut replica = Replica::open_to_read("r", power.disks(), [3; 32]).unwrap();
                assert!(replica.verify(&mut |_| {}).unwrap().is_clean(), "stop {stop}");
                let of = replica.state().generation;
                let read = content(replica);
                let is_tip = of == Some(Generation::zfs(2));
                assert!(is_tip || of == Some(Generation::zfs(1)), "{of:?}");
                assert!(read == *if is_tip { &tip } else { &base }, "stop {stop}");
                seen[usize::from(is_tip)] += 1;
                assert!(NAMES.map(|name| power.content(name)) == left, "something was written");
                // The next open comes to the same.
                let replica = Replica::open("r", power.disks(), [4; 32]).unwrap();
                assert_eq!(replica.state().generation, of, "stop {stop}");
                assert!(content(replica) == read);
                if of == Some(Generation::zfs(2)) {
                    let left = ["journal", "overlay"].map(|name| power.content(name).len());
                    assert_eq!(left, [0, 0], "stop {stop}: something is left");
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 8), "{seen:?}");
    }
}

/// An increment whose journal is sealed and not in place.
fn sealed() -> (Power, Vec<u8>) {
    let (base, changes, size) = increments().swap_remove(0);
    let power = Power::default();
    let mut replica = Replica::open("r", power.disks(), [1; 32]).unwrap();
    deliver(&mut replica, plan(PlanKind::Full, None, 1), &whole(&base), base.len() as u64).unwrap();
    drop(replica);
    let of = |stop| {
        let power = power.fork();
        power.stop_after(stop);
        let mut replica = Replica::open("r", power.disks(), [2; 32]).unwrap();
        let done = deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, size);
        drop(replica);
        power.crash(2);
        (power, done.is_ok())
    };
    let tip = tip_of(&base, &changes, size);
    for stop in 20.. {
        let (power, done) = of(stop);
        assert!(!done, "no stop left a sealed journal");
        let sealed = power.content("journal").get(4096..4104) == Some(b"DRIFTSL\n");
        let volume = power.content("volume");
        if sealed && volume != base && volume != tip {
            return (power, tip);
        }
    }
    unreachable!()
}

/// Each flipped bit of the list is put right by the volume itself, as the sealed root proves it.
#[test]
fn a_flipped_bit_in_the_list_behind_a_sealed_journal_is_no_dead_end() {
    let (sealed, tip) = sealed();
    for at in (0..sealed.content("ids").len()).step_by(7) {
        let power = sealed.fork();
        power.change("ids", |bytes| bytes[at] ^= 4);
        let mut replica = Replica::open("r", power.disks(), [3; 32]).unwrap();
        assert_eq!(replica.state().generation, Some(Generation::zfs(2)), "byte {at}");
        assert!(replica.verify(&mut |_| {}).unwrap().is_clean(), "byte {at}");
        assert!(content(replica) == tip, "byte {at}");
    }
}

/// A journal that cannot be completed any more is refused by every verb, and what each of them
/// advises works: a whole copy with consent. Cut anywhere, it never passes for the base.
#[test]
fn a_damaged_sealed_journal_is_left_by_a_copy_over_it() {
    let (sealed, _) = sealed();
    sealed.change("journal", |bytes| bytes[8192 + 200] ^= 1);
    let full = |power: &Power| {
        let mut replica = Replica::open("r", power.disks(), [5; 32])?;
        let new = pattern(11, 3 * CHUNK);
        let plan = plan(PlanKind::Full, None, 3);
        let tip = plan.tip.unwrap();
        let from = replica.begin(&Offer { plan, overwrite: true })?.from;
        let size = new.len() as u64;
        let (items, root) = items(&key(&replica), PlanKind::Full, &whole(&new), size, from);
        for item in items {
            put(&mut replica, &item)?;
        }
        replica.commit(&Finish { tip, size: Some(size), root })?;
        Ok::<_, driftline_target::TargetError>(new)
    };
    let mut replica = Replica::open("r", sealed.fork().disks(), [3; 32]).unwrap();
    assert!(replica.state().damaged, "the source has to plan a whole copy");
    let damaged = |problem: &Problem| matches!(problem, Problem::JournalDamaged { .. });
    assert!(damaged(&replica.check_not_stuck().unwrap_err().problem));
    assert!(damaged(&replica.verify(&mut |_| {}).unwrap_err().problem));
    let refused = replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap_err();
    assert!(damaged(&refused.problem) && refused.to_string().contains("--full"), "{refused}");
    let refused = replica.begin(&offer(plan(PlanKind::Scan, Some(1), 2))).unwrap_err();
    assert!(damaged(&refused.problem), "{refused}");
    assert!(damaged(&replica.scrub(true, 1, &mut |_| {}).unwrap_err().problem));
    let done = sealed.fork();
    let before = done.operations();
    let new = full(&done).unwrap();
    let operations = done.operations() - before;
    assert!(content(Replica::open("r", done.disks(), [6; 32]).unwrap()) == new);
    for stop in 0..operations {
        let power = sealed.fork();
        power.stop_after(stop);
        let _ = full(&power);
        power.crash(stop * 5 + 1);
        let mut replica = Replica::open("r", power.disks(), [6; 32]).unwrap();
        if let Ok(report) = replica.verify(&mut |_| {}) {
            assert!(report.is_clean(), "stop {stop}");
            assert_eq!(replica.state().generation, Some(Generation::zfs(3)), "stop {stop}");
        }
        drop(replica);
        assert!(full(&power).is_ok(), "stop {stop}");
    }
}
