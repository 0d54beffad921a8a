//! Runs one scenario against a fault at every operation, and says whether the replica is
//! where it must be.

pub(crate) mod scenarios;

use std::io;

use driftline_chunking::{ChunkKey, Chunked, Chunker, SPAN_CHUNKS, Scope, TreeHasher};
use driftline_extent::{
    CHUNK_LEN, Change, ChunkId, Finish, Generation, Item, Missing, Offer, Plan, PlanKind, Root,
    Standing, Target, VolumeId, chunk_count,
};
use driftline_target::{Disk, Disks, OtherReplicas, Replica, Update};
use driftline_tests::disk::{FakeDisk, Rng, World};

pub(crate) const CHUNK: usize = CHUNK_LEN as usize;
const VOLUME: VolumeId = VolumeId([9; 16]);

/// Block size of a device that a manager keeps.
pub(crate) const UNIT: u64 = 16 * 1024;

/// What a replica is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    File,
    /// A device of this length.
    Device(u64),
    /// A device with a manager.
    Kept,
}

/// A world whose replica holds generation N, and what leads to N + 1.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) world: World,
    pub(crate) ground: Ground,
    /// What stands at the volume.
    pub(crate) base: Vec<u8>,
    /// The generation it is, if it is one.
    pub(crate) holds: Option<Generation>,
    pub(crate) kind: PlanKind,
    pub(crate) overwrite: bool,
    /// What changes; for a whole volume everything that is not zero.
    pub(crate) changes: Vec<Change>,
    pub(crate) tip: Vec<u8>,
    /// What a manager kept of the generation before, if that is not what stands there.
    pub(crate) kept_base: Vec<u8>,
    pub(crate) tip_generation: Generation,
    /// What another replica has, as long as nobody asked for it.
    pub(crate) other: Vec<u8>,
    /// Whether the plan already says the size and the end says the root.
    pub(crate) informed: bool,
}

/// Another replica, each chunk of which changes as soon as it was read. So what was found there
/// must have been kept, or the next session asks the source.
struct Fickle {
    disk: FakeDisk,
    chunks: Vec<ChunkId>,
}

impl OtherReplicas for Fickle {
    fn find(&mut self, id: &ChunkId) -> Option<Vec<u8>> {
        let index = self.chunks.iter().position(|chunk| chunk == id)? as u64;
        let mut bytes = vec![0; CHUNK];
        self.disk.read_at(index * CHUNK_LEN, &mut bytes).ok()?;
        let _ = self.disk.write_at(index * CHUNK_LEN, b"something else");
        let _ = self.disk.sync();
        Some(bytes)
    }

    fn forget(&mut self, _: &ChunkId) {}

    fn committed(&mut self, update: Update<'_>) {
        // It reads the books while the increment is concluded, as the index does.
        let changed = update.changes.map(|entry| entry.map(drop)).collect::<Result<Vec<_>, _>>();
        let all = update.all.map(|entry| entry.map(drop)).collect::<Result<Vec<_>, _>>();
        drop((changed, all));
    }
}

pub(crate) type Outcome<T = ()> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn naive_root(key: &ChunkKey, volume: &[u8]) -> Root {
    let mut tree = TreeHasher::new(key);
    let mut padded = volume.to_vec();
    padded.resize(chunk_count(volume.len() as u64) as usize * CHUNK, 0);
    padded.chunks(CHUNK).for_each(|chunk| tree.push(key.id(chunk)));
    tree.into_root(volume.len() as u64)
}

/// Everything in a volume that is not zero, by chunks.
pub(crate) fn whole(volume: &[u8]) -> Vec<Change> {
    let chunks = volume.chunks(CHUNK).enumerate();
    chunks
        .filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
        .map(|(i, bytes)| Change::Data { offset: (i * CHUNK) as u64, bytes: bytes.to_vec() })
        .collect()
}

pub(crate) fn changed(base: &[u8], changes: &[Change], size: usize) -> Vec<u8> {
    let mut tip = base.to_vec();
    tip.resize(base.len().max(size), 0);
    for change in changes {
        let extent = change.extent().unwrap();
        let end = extent.end().min(tip.len() as u64) as usize;
        let start = (extent.offset() as usize).min(end);
        match change {
            Change::Data { bytes, .. } => tip[start..end].copy_from_slice(bytes),
            Change::Zero(_) => tip[start..end].fill(0),
            Change::Part(_) => panic!("a volume has no parts"),
        }
    }
    tip.truncate(size);
    tip
}

impl Scenario {
    pub(crate) fn open(&self, world: &World) -> Outcome<Replica<FakeDisk>> {
        let (volume, manager) = match self.ground {
            Ground::File => (world.file("volume"), None),
            Ground::Device(len) => (world.device("volume", len), None),
            Ground::Kept => {
                let (volume, manager) = world.kept_device("volume", UNIT);
                (volume, Some(manager))
            }
        };
        let disks = Disks {
            volume,
            state: world.file("state"),
            journal: world.file("journal"),
            ids: world.file("ids"),
            overlay: world.file("overlay"),
            repair: world.file("repair"),
        };
        // No two opens may draw the same nonce.
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&world.operations().to_le_bytes());
        let mut replica = match manager {
            None => Replica::open("the volume", disks, seed),
            Some(manager) => Replica::open_kept("the volume", disks, Box::new(manager), seed),
        }
        .map_err(text)?;
        replica.checkpoint_every(2 * CHUNK_LEN);
        if !self.other.is_empty() {
            let key = ChunkKey::new(&replica.state().chunk_key);
            let chunks = self.other.chunks(CHUNK).map(|chunk| key.id(chunk));
            let disk = world.file("other");
            if disk.len().map_err(text)? == 0 {
                disk.write_at(0, &self.other).map_err(text)?;
            }
            replica.look_in(Box::new(Fickle { disk, chunks: chunks.collect() }));
        }
        Ok(replica)
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan {
            kind: self.kind,
            volume: Some(VOLUME),
            base: self.holds.filter(|_| self.kind == PlanKind::Incremental),
            tip: Some(self.tip_generation),
            size: self.informed.then_some(self.tip.len() as u64),
            standing: Standing::Proven,
            bytes_expected: 0,
        }
    }

    /// The items from chunk `from` on, and the root where all of the volume was seen.
    fn items(&self, key: &ChunkKey, from: u64) -> (Vec<Chunked>, Option<Root>) {
        let scope = match self.kind {
            PlanKind::Incremental => Scope::Increment,
            _ => Scope::Whole,
        };
        let mut chunker = Chunker::new(key, scope, from);
        self.changes.iter().for_each(|change| chunker.push(change).unwrap());
        let root = chunker.finish(Some(self.tip.len() as u64)).unwrap();
        (std::iter::from_fn(|| chunker.poll()).collect(), root)
    }

    /// Delivers the increment as far as the world lets it; returns where it went on, and how many
    /// bytes were sent.
    fn deliver(&self, replica: &mut Replica<FakeDisk>) -> Outcome<(u64, usize)> {
        let mut sent = 0;
        let key = ChunkKey::new(&replica.state().chunk_key);
        let offer = Offer { plan: self.plan(), overwrite: self.overwrite };
        let from = replica.begin(&offer).map_err(text)?.from;
        let (items, root) = self.items(&key, from);
        let spans = self.lacking_spans(replica, &key)?;
        let wanted: Vec<Chunked> = items
            .into_iter()
            .filter(|c| spans.as_ref().is_none_or(|s| s.contains(&(c.item.first() / SPAN_CHUNKS))))
            .collect();
        // The questions run ahead of the answers, as over a link.
        for batch in wanted.chunks(3) {
            let asked: Vec<Item> = batch.iter().map(|chunked| chunked.item).collect();
            let missing = replica.missing(&asked).map_err(text)?;
            for (chunked, missing) in batch.iter().zip(missing) {
                sent += self.bring(replica, &key, chunked, &missing)?;
                replica.mark(chunked.item.first() + chunked.item.count()).map_err(text)?;
            }
        }
        let size = Some(self.tip.len() as u64);
        let finish = Finish { tip: self.tip_generation, size, root };
        let committed = replica.commit(&finish).map_err(text)?;
        let expected = naive_root(&key, &self.tip);
        if committed.root != expected || committed.generation != self.tip_generation {
            return Err(format!("committed {committed:?} instead of root {expected}"));
        }
        Ok((from, sent))
    }

    /// Brings what is lacking of one item; returns how many bytes that are.
    fn bring(
        &self,
        replica: &mut Replica<FakeDisk>,
        key: &ChunkKey,
        chunked: &Chunked,
        missing: &Missing,
    ) -> Outcome<usize> {
        let Chunked { item, data } = chunked;
        let mut count = 0;
        let sent = match (missing, item) {
            (Missing::Unlike(theirs), Item::Chunk { data: mask, .. }) => {
                let grains = key.unlike(*mask, data, theirs);
                let ranges = mask.by_grain().filter(|(grain, _)| grain.is_within(grains));
                let differs: Vec<u8> = ranges.flat_map(|(_, range)| data[range].to_vec()).collect();
                count = differs.len();
                match replica.patch(item, grains, &differs).map_err(text)? {
                    true => None,
                    false => return Err("two hashes are the same".into()),
                }
            }
            (Missing::All, _) if item.data_len() > 0 => Some(&data[..]),
            _ => None,
        };
        replica.apply(item, sent).map_err(text)?;
        Ok(count + sent.map_or(0, <[u8]>::len))
    }

    /// In a scan, the spans that differ.
    fn lacking_spans(
        &self,
        replica: &mut Replica<FakeDisk>,
        key: &ChunkKey,
    ) -> Outcome<Option<Vec<u64>>> {
        if self.kind != PlanKind::Scan {
            return Ok(None);
        }
        let mut lacking = Vec::new();
        for (i, span) in self.tip.chunks(SPAN_CHUNKS as usize * CHUNK).enumerate() {
            let mut tree = TreeHasher::new(key);
            span.chunks(CHUNK).for_each(|chunk| {
                let mut chunk = chunk.to_vec();
                chunk.resize(CHUNK, 0);
                tree.push(key.id(&chunk));
            });
            let (index, count) = (i as u64 * SPAN_CHUNKS, tree.chunks());
            let item = Item::Span { index, count, digest: tree.into_node() };
            if replica.missing(&[item]).map_err(text)? == [Missing::All] {
                lacking.push(i as u64);
            }
        }
        Ok(Some(lacking))
    }

    pub(crate) fn run(&self, world: &World) -> Outcome<u64> {
        Ok(self.run_counting(world)?.0)
    }

    /// As `run`; returns how many bytes were sent as well.
    pub(crate) fn run_counting(&self, world: &World) -> Outcome<(u64, usize)> {
        self.deliver(&mut self.open(world)?)
    }

    /// Opens what a fault left and checks that it is N or N + 1, exactly. Returns whether
    /// it is N + 1.
    pub(crate) fn check(&self, world: &World) -> Outcome<bool> {
        let mut replica = self.open(world).map_err(|e| format!("does not open: {e}"))?;
        let state = replica.state();
        let content = world.content("volume");
        let is = |expected: &[u8]| match self.ground {
            Ground::File => content == expected,
            Ground::Device(_) | Ground::Kept => content.starts_with(expected),
        };
        if self.ground == Ground::Kept {
            self.check_kept(world, state.generation)?;
        }
        if state.generation.is_some() {
            let report = replica.verify(&mut |_| {}).map_err(text)?;
            if !report.is_clean() {
                return Err(format!("verifies as {report:?}"));
            }
        }
        if state.generation == Some(self.tip_generation) {
            let key = ChunkKey::new(&state.chunk_key);
            let root_is_right = state.root == Some(naive_root(&key, &self.tip));
            let right = is(&self.tip) && root_is_right && !state.incomplete;
            return if right { Ok(true) } else { Err("is at N + 1 with other bytes".into()) };
        }
        let direct = self.holds.is_none() && !self.overwrite;
        let given_up = self.overwrite && state.generation.is_none() && state.incomplete;
        if state.generation != self.holds && !given_up {
            return Err(format!("is at {:?}", state.generation));
        }
        if state.generation.is_none() != state.incomplete {
            return Err("is incomplete at a generation".into());
        }
        if !direct && !is(&self.base) { Err("is at N with other bytes".into()) } else { Ok(false) }
    }

    /// That the manager kept every generation as it was committed, and that nothing can write to
    /// the newest one.
    fn check_kept(&self, world: &World, holds: Option<Generation>) -> Outcome {
        let device = world.kept("volume").ok_or("there is no device")?;
        if !device.violations.is_empty() {
            return Err(format!("rules were broken: {:?}", device.violations));
        }
        if device.exists && !device.locked {
            return Err("is not locked".into());
        }
        for (generation, content) in &device.snapshots {
            let is_tip = *generation == self.tip_generation;
            let expected = if is_tip { &self.tip } else { &self.kept_base };
            let len = (expected.len() as u64).max(1).next_multiple_of(UNIT);
            if !content.starts_with(expected) || content.len() as u64 != len {
                return Err(format!("the snapshot of {generation} has other bytes"));
            }
        }
        if holds.is_some() && (device.snapshots.last().map(|(g, _)| *g) != holds || device.written)
        {
            return Err(format!("{holds:?} is not kept, or was written since"));
        }
        Ok(())
    }

    /// As `check`, then delivers the increment again if it is needed. Returns where that
    /// went on, if it did.
    pub(crate) fn check_and_finish(&self, world: &World) -> Outcome<Option<u64>> {
        if self.check(world)? {
            return Ok(None);
        }
        let from = self.run(world).map_err(|e| format!("cannot be delivered again: {e}"))?;
        // Whatever was left unsynced must not matter any more.
        world.crash(0);
        match self.check(world)? {
            true => Ok(Some(from)),
            false => Err("is at N after it was delivered again".into()),
        }
    }

    /// How many operations one undisturbed delivery takes.
    pub(crate) fn operations(&self) -> Outcome<u64> {
        let world = self.world.fork();
        let before = world.operations();
        self.run(&world)?;
        Ok(world.operations() - before)
    }

    pub(crate) fn context<T>(
        &self,
        outcome: Outcome<T>,
        what: std::fmt::Arguments<'_>,
    ) -> Outcome<T> {
        outcome.map_err(|error| format!("{}, {what}: {error}", self.name))
    }

    /// Power loss at every operation. Returns how often a delivery went on above zero.
    pub(crate) fn sweep_crashes(&self, seeds: u64) -> Outcome<u64> {
        let mut resumed = 0;
        for stop in 0..=self.operations()? {
            for seed in 0..seeds {
                let world = self.world.fork();
                world.stop_after(stop);
                let _ = self.run(&world);
                world.crash(seed + stop * 8);
                let outcome = self.check_and_finish(&world);
                let from = self.context(outcome, format_args!("stop {stop}, seed {seed}"))?;
                resumed += u64::from(from.is_some_and(|from| from > 0));
            }
        }
        Ok(resumed)
    }

    /// Power loss at a sample of operations, then again at every operation of the recovery
    /// and of what follows. The first stop may also be a kill, which loses nothing yet.
    pub(crate) fn sweep_nested(&self, stride: usize, killed: bool) -> Outcome {
        let operations = self.operations()?;
        for stop in (0..=operations).step_by(stride) {
            let first = self.world.fork();
            first.stop_after(stop);
            let _ = self.run(&first);
            if killed {
                first.restart();
            } else {
                first.crash(stop * 8 + 2 + stop % 6);
            }
            let again = first.fork();
            let before = again.operations();
            let _ = self.open(&again);
            let recovery = again.operations() - before;
            // All of the recovery, and some of the session after it.
            let later = (recovery..recovery + operations).step_by(7);
            for second in (0..recovery).chain(later) {
                let seed = second * 8 + 3 + stop % 5;
                let world = first.fork();
                world.stop_after(second);
                let _ = self.run(&world);
                world.crash(seed);
                let outcome = self.check_and_finish(&world);
                let what =
                    format_args!("stop {stop}, killed {killed}, second {second}, seed {seed}");
                self.context(outcome, what)?;
            }
        }
        Ok(())
    }

    /// Every operation fails once; then the replica is opened again, at once, after a power
    /// loss, and with a power loss in what follows.
    pub(crate) fn sweep_errors(&self) -> Outcome {
        let operations = self.operations()?;
        for fail in 0..operations {
            for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
                let first = self.world.fork();
                first.fail_at(fail, kind);
                let _ = self.run(&first);
                first.restart();
                let world = first.fork();
                let what = format_args!("fail {fail} with {kind:?}");
                self.context(self.check_and_finish(&world), what)?;
                let world = first.fork();
                world.crash(fail * 8 + 2);
                let what = format_args!("fail {fail} with {kind:?}, then crash");
                self.context(self.check_and_finish(&world), what)?;
                for stop in (fail % 9..2 * operations).step_by(9) {
                    let world = first.fork();
                    world.stop_after(stop);
                    let _ = self.run(&world);
                    world.crash(stop * 8 + fail % 8);
                    let what = format_args!("fail {fail} with {kind:?}, then stop {stop}");
                    self.context(self.check_and_finish(&world), what)?;
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn or_panic<T>(outcome: Outcome<T>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}
