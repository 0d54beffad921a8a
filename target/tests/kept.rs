//! A replica on a real file that stands for a device with a manager.

mod common;

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use driftline_extent::{
    Change, Committed, Explained, Extent, Generation, Offer, Plan, PlanKind, Reason, Target,
};
use driftline_target::{
    DeviceManager, FileDisk, Kept, Options, Problem, Replica, TargetError, open_kept,
};

use common::{CHUNK, deliver, offer, pattern, plan, whole};

const UNIT: u64 = 8192;

/// What the storage has besides the device itself.
#[derive(Debug, Default)]
struct Storage {
    locked: bool,
    /// Bytes that can still be written, if that is known.
    available: Option<u64>,
    snapshots: Vec<(Generation, Vec<u8>)>,
}

/// A device is a file here; it counts as written if it is not what was kept.
#[derive(Clone, Debug)]
struct FileManager {
    path: PathBuf,
    storage: Arc<Mutex<Storage>>,
}

/// Whether this process has the file open for writing.
fn is_open_for_writing(path: &Path) -> bool {
    let path = fs::canonicalize(path).unwrap();
    fs::read_dir("/proc/self/fd").unwrap().any(|entry| {
        let entry = entry.unwrap();
        if fs::read_link(entry.path()).ok().as_ref() != Some(&path) {
            return false;
        }
        let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
        let info = fs::read_to_string(info).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap() & 3 != 0
    })
}

impl FileManager {
    fn resized(&self, size: u64, new: bool) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(new).open(&self.path)?;
        file.set_len(size.max(1).next_multiple_of(UNIT))
    }

    fn is_writable(&self) -> bool {
        !self.storage.lock().unwrap().locked
    }
}

impl DeviceManager for FileManager {
    fn available(&self) -> io::Result<Option<u64>> {
        Ok(self.storage.lock().unwrap().available)
    }

    fn create(&mut self, size: u64) -> io::Result<()> {
        self.storage.lock().unwrap().locked = true;
        self.resized(size, true)
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        assert!(self.is_writable() && !is_open_for_writing(&self.path));
        self.resized(size, false)
    }

    fn unlock(&mut self) -> io::Result<()> {
        self.storage.lock().unwrap().locked = false;
        Ok(())
    }

    fn lock(&mut self) -> io::Result<()> {
        assert!(!is_open_for_writing(&self.path));
        self.storage.lock().unwrap().locked = true;
        Ok(())
    }

    fn is_locked(&self) -> io::Result<bool> {
        Ok(!self.is_writable())
    }

    fn keep(&mut self, committed: &Committed) -> io::Result<()> {
        let content = fs::read(&self.path)?;
        let mut storage = self.storage.lock().unwrap();
        assert!(storage.locked);
        let kept = (committed.generation, content);
        if storage.snapshots.last() != Some(&kept) {
            storage.snapshots.push(kept);
        }
        Ok(())
    }

    fn kept(&self) -> io::Result<Kept> {
        let content = fs::read(&self.path)?;
        let storage = self.storage.lock().unwrap();
        let newest = storage.snapshots.last();
        Ok(Kept {
            generation: newest.map(|(generation, _)| *generation),
            written: newest.is_some_and(|(_, kept)| *kept != content),
        })
    }
}

struct Place {
    dir: tempfile::TempDir,
    manager: FileManager,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = FileManager { path: dir.path().join("device"), storage: Arc::default() };
        Self { dir, manager }
    }

    fn options(&self) -> Options {
        let state_dir = Some(self.dir.path().join("books"));
        Options { create: true, state_dir, ..Options::default() }
    }

    fn open_with(&self, options: &Options) -> Result<Replica<FileDisk>, TargetError> {
        open_kept(&self.manager.path, options, Box::new(self.manager.clone()))
    }

    fn open(&self) -> Replica<FileDisk> {
        self.open_with(&self.options()).unwrap()
    }

    /// That the device holds `content`, locked, and that `count` generations were kept.
    fn holds(&self, content: &[u8], count: usize) {
        let device = fs::read(&self.manager.path).unwrap();
        assert!(device.starts_with(content));
        assert_eq!(device.len() as u64, (content.len() as u64).next_multiple_of(UNIT));
        let storage = self.manager.storage.lock().unwrap();
        assert!(storage.locked);
        assert_eq!(storage.snapshots.len(), count);
        assert!(storage.snapshots.last().unwrap().1 == device);
    }
}

#[test]
fn a_device_is_made_grown_cut_locked_and_kept() {
    for size_is_known in [true, false] {
        let place = Place::new();
        let mut volume = pattern(3, 5 * CHUNK + 900);
        volume[CHUNK..2 * CHUNK].fill(0);
        let size = volume.len() as u64;
        let full = Plan { size: size_is_known.then_some(size), ..plan(PlanKind::Full, None, 1) };
        let mut replica = place.open();
        assert!(!place.manager.path.exists());
        assert_eq!(replica.state().generation, None);
        deliver(&mut replica, full, &whole(&volume), size).unwrap();
        place.holds(&volume, 1);

        // The same session goes on: longer, then shorter.
        let longer = pattern(5, 2 * CHUNK);
        let at = (5 * CHUNK) as u64;
        let changes = [Change::Data { offset: at, bytes: longer.clone() }];
        let size = at + 2 * CHUNK as u64;
        deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, size).unwrap();
        volume.truncate(5 * CHUNK);
        volume.extend(&longer);
        place.holds(&volume, 2);
        drop(replica);
        let mut replica = place.open();
        let changes = [Change::Zero(Extent::new(0, 4096).unwrap())];
        let size = 3 * CHUNK as u64 + 7;
        deliver(&mut replica, plan(PlanKind::Incremental, Some(2), 3), &changes, size).unwrap();
        volume[..4096].fill(0);
        volume.truncate(size as usize);
        place.holds(&volume, 3);
        assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    }
}

#[test]
fn a_first_copy_that_is_cut_leaves_a_locked_device() {
    let place = Place::new();
    let mut replica = place.open();
    replica.begin(&offer(plan(PlanKind::Full, None, 1))).unwrap();
    assert!(place.manager.is_writable());
    drop(replica);
    assert!(!place.manager.is_writable() && !is_open_for_writing(&place.manager.path));
    // A process that was killed leaves it writable: the next one locks it.
    place.manager.storage.lock().unwrap().locked = false;
    drop(place.open());
    assert!(!place.manager.is_writable());
    // The device was not made yet when another one was killed.
    fs::remove_file(&place.manager.path).unwrap();
    let volume = pattern(3, 2 * CHUNK);
    let full = plan(PlanKind::Full, None, 1);
    deliver(&mut place.open(), full, &whole(&volume), volume.len() as u64).unwrap();
    place.holds(&volume, 1);
}

#[test]
fn a_device_that_is_missing_is_named() {
    let place = Place::new();
    let without_books = Options { state_dir: None, ..place.options() };
    let problem = place.open_with(&without_books).unwrap_err().problem;
    assert!(matches!(problem, Problem::NoStateDir), "{problem}");
    let existing = Options { create: false, ..place.options() };
    assert!(matches!(place.open_with(&existing).unwrap_err().problem, Problem::NotFound));

    let mut replica = place.open();
    let increment = plan(PlanKind::Incremental, Some(1), 2);
    assert_eq!(replica.begin(&offer(increment)).unwrap_err().reason(), Reason::BaseMismatch);
    drop(replica);
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 0, "something was left behind");

    let volume = pattern(3, CHUNK);
    let full = plan(PlanKind::Full, None, 1);
    deliver(&mut place.open(), full, &whole(&volume), volume.len() as u64).unwrap();
    fs::remove_file(&place.manager.path).unwrap();
    let error = place.open_with(&place.options()).unwrap_err();
    assert!(matches!(error.problem, Problem::Gone { .. }), "{error}");
    assert_eq!(error.reason(), Reason::TargetModified);
}

#[test]
fn what_was_written_since_is_noticed_wherever_it_is() {
    let place = Place::new();
    let volume = pattern(3, 3 * CHUNK);
    let size = volume.len() as u64;
    deliver(&mut place.open(), plan(PlanKind::Full, None, 1), &whole(&volume), size).unwrap();
    let device = fs::OpenOptions::new().write(true).open(&place.manager.path).unwrap();
    device.write_all_at(b"x", 2 * CHUNK as u64 + 77).unwrap();
    let mut replica = place.open();
    assert_eq!(replica.state().generation, Some(Generation::zfs(1)));
    // No chunk of this increment was touched, and yet it is refused before it begins.
    // Consent would not mend what the increment does not touch.
    for overwrite in [false, true] {
        let plan = plan(PlanKind::Incremental, Some(1), 2);
        let error = replica.begin(&Offer { plan, overwrite }).unwrap_err();
        assert!(matches!(error.problem, Problem::Written { .. }), "{error}");
        assert_eq!(error.reason(), Reason::TargetModified);
    }
    let forbidden = Options { forbid_overwrite: true, ..place.options() };
    drop(replica);
    let mut replica = place.open_with(&forbidden).unwrap();
    let full = Offer { plan: plan(PlanKind::Full, None, 1), overwrite: true };
    let error = replica.begin(&full).unwrap_err();
    assert_eq!(error.reason(), Reason::Denied);
    assert!(error.to_string().contains("something else wrote"), "{error}");
    drop(replica);
    // Written with what stood there before: the content decides.
    device.write_all_at(&volume[2 * CHUNK + 77..][..1], 2 * CHUNK as u64 + 77).unwrap();
    let mut replica = place.open();
    replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap();
}

#[test]
fn what_a_scrub_puts_right_is_kept_anew() {
    let place = Place::new();
    let mut volume = pattern(3, 5 * CHUNK + 900);
    volume.copy_within(..CHUNK, 4 * CHUNK);
    let size = volume.len() as u64;
    deliver(&mut place.open(), plan(PlanKind::Full, None, 1), &whole(&volume), size).unwrap();
    let device = || fs::OpenOptions::new().write(true).open(&place.manager.path).unwrap();
    // It is there twice.
    device().write_all_at(b"x", 9).unwrap();
    let report = place.open().scrub(true, 1, &mut |_| {}).unwrap();
    assert!(report.is_whole() && report.repaired == 1);
    place.holds(&volume, 1);
    // Of this nothing else is here.
    device().write_all_at(b"x", 2 * CHUNK as u64 + 77).unwrap();
    let mut replica = place.open();
    let report = replica.scrub(true, 1, &mut |_| {}).unwrap();
    assert_eq!((report.repaired, report.awaited), (0, 1));
    // An increment would have the damage kept as its own.
    let increment = offer(plan(PlanKind::Incremental, Some(1), 2));
    let error = replica.begin(&increment).unwrap_err();
    assert!(matches!(error.problem, Problem::Written { .. }), "{error}");
    drop(replica);
    let mut replica = place.open();
    let mut next = volume;
    next[3 * CHUNK] ^= 1;
    deliver(&mut replica, plan(PlanKind::Scan, Some(1), 2), &whole(&next), size).unwrap();
    drop(replica);
    place.holds(&next, 2);
    // A device that somebody has cut.
    device().set_len(UNIT).unwrap();
    let report = place.open().scrub(true, 1, &mut |_| {}).unwrap();
    assert!(report.size_repaired && report.awaited == 6, "{report:?}");
    let mut replica = place.open();
    deliver(&mut replica, plan(PlanKind::Full, Some(2), 2), &whole(&next), size).unwrap();
    drop(replica);
    place.holds(&next, 2);
}

/// The pool below a device may be full before the device is: that is seen before the seal.
#[test]
fn a_pool_without_room_for_an_increment_keeps_the_base() {
    let place = Place::new();
    let mut volume = pattern(3, 4 * CHUNK);
    let size = volume.len() as u64;
    let full = Plan { size: Some(size), ..plan(PlanKind::Full, None, 1) };
    deliver(&mut place.open(), full, &whole(&volume), size).unwrap();
    let room = |bytes| place.manager.storage.lock().unwrap().available = Some(bytes);
    let changes = [Change::Data { offset: 0, bytes: pattern(5, CHUNK) }];
    let increment = plan(PlanKind::Incremental, Some(1), 2);
    room(CHUNK as u64 - 1);
    let error = deliver(&mut place.open(), increment.clone(), &changes, size).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetFull, "{error}");
    let said = error.to_string();
    assert!(said.contains("takes 65536 bytes, and its pool has 65535"), "{said}");
    place.holds(&volume, 1);
    room(CHUNK as u64);
    deliver(&mut place.open(), increment, &changes, size).unwrap();
    volume[..CHUNK].copy_from_slice(&pattern(5, CHUNK));
    place.holds(&volume, 2);
}
