//! One history: its state, and the steps that are no replication.

use std::path::Path;

use driftline_extent::{BLOCK_LEN, CHUNK_LEN, Extent, Generation, Reason};
use tempfile::TempDir;

use super::{
    Bug, Fault, Finding, Options, Rung, Stats,
    disks::BOOKS,
    replicate::Mishap,
    scrub::Listed,
    storage::{Kind, Storage},
};
use crate::disk::{Image, Rng, Saved, World};

/// What the replica holds, as far as it says.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) generation: Generation,
    /// What its books say that it holds.
    pub(super) claim: Image,
    /// Whether that is what the source held under this name.
    pub(super) faithful: bool,
}

/// A backup of the target.
struct Backup {
    disks: Saved,
    held: Option<Held>,
    foreign: bool,
    pending: Vec<Fault>,
    was_cut: bool,
    listed: Option<Listed>,
    unlocked: bool,
}

/// A history being told.
pub(super) struct History<'a> {
    pub(super) options: &'a Options,
    pub(super) storage: Storage,
    /// A clone of it that goes its own way.
    twin: Option<Storage>,
    pub(super) world: World,
    /// Whether the replica is on a device with a manager.
    pub(super) kept: bool,
    /// Whether somebody else has unlocked that device.
    pub(super) unlocked: bool,
    pub(super) held: Option<Held>,
    /// Every generation that was ever committed, or may have been, with what the books said of it.
    pub(super) past: Vec<Held>,
    /// Whether what stands there is nothing that was committed, and not empty either.
    pub(super) foreign: bool,
    /// What befell the target and was not mended yet.
    pub(super) pending: Vec<Fault>,
    /// What a scrub has found that may be replaced.
    pub(super) listed: Option<Listed>,
    /// Whether a scrub has told of all that befell the target, so that no run need fail for it.
    pub(super) told: bool,
    /// Whether the record of change has left something out, or two instants have one name.
    pub(super) lied: bool,
    /// Why the last run was refused, where consent would help.
    pub(super) refused: Option<Reason>,
    /// Whether a run that was begun was cut off.
    pub(super) was_cut: bool,
    /// Whether the replica does not open any more.
    pub(super) broken: bool,
    backup: Option<Backup>,
    /// The target under another name.
    renamed: Option<Backup>,
    /// Whether the source knows that something had arrived at a target that is gone.
    pub(super) vanished: bool,
    /// Whether somebody has agreed to a copy anew since then.
    pub(super) agreed: bool,
    /// What goes wrong in the next run in which nothing else does.
    pub(super) next: Option<Mishap>,
    /// Where the source's manifest and incidents are.
    pub(super) trust: TempDir,
    pub(super) stats: Stats,
    trace: Vec<String>,
}

/// A folder that is gone with the history; in memory where the system has such, as nothing of it
/// has to outlast anything.
fn memory_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.unwrap_or_else(|error| panic!("no folder can be made: {error}"))
}

/// The random numbers of one step.
fn rng_of(seed: u64, step: u64) -> Rng {
    Rng(Rng(seed).next_u64() ^ (step + 1).wrapping_mul(0xa076_1d64_78bd_642f))
}

/// The steps of the history of a seed.
pub(super) fn steps_of(seed: u64) -> Vec<u64> {
    (0..6 + rng_of(seed, u64::MAX - 3).below(14)).collect()
}

/// Tells the history of a seed: all of it, or only some of its steps.
pub(super) fn tell(
    seed: u64,
    steps: Option<&[u64]>,
    options: &Options,
) -> Result<Stats, Box<Finding>> {
    let mut history = History::new(options, &mut rng_of(seed, u64::MAX - 1));
    let all = steps_of(seed);
    let steps = steps.unwrap_or(&all);
    let mut taken = Vec::new();
    let mut told = Ok(());
    for step in steps {
        taken.push(*step);
        history.stats.steps += 1;
        told = history.step(&mut rng_of(seed, *step));
        if options.wide && told.is_ok() {
            told = history.befall(&mut rng_of(seed, step | 1 << 32));
        }
        told = told.map_err(|e| format!("step {step}: {e}"));
        if told.is_err() {
            break;
        }
    }
    let told = told.and_then(|()| {
        history.finish(&mut rng_of(seed, u64::MAX - 2)).map_err(|e| format!("at the end: {e}"))
    });
    match told {
        Ok(()) => {
            history.stats.histories = 1;
            Ok(history.stats)
        }
        Err(what) => Err(Box::new(Finding { seed, steps: taken, trace: history.trace, what })),
    }
}

impl<'a> History<'a> {
    fn new(options: &'a Options, rng: &mut Rng) -> Self {
        let kind =
            [Kind::Zfs, Kind::Zfs, Kind::Drbd, Kind::Drbd, Kind::Plain][rng.below(5) as usize];
        let large = rng.below(if kind == Kind::Drbd { 2 } else { 12 }) == 0;
        let block_len: u64 = match kind {
            Kind::Zfs => {
                [4096, 8192, 16384, 131_072][rng.below(if large { 4 } else { 3 }) as usize]
            }
            Kind::Drbd => 4096,
            Kind::Plain => 1,
        };
        let size = if large {
            (1 + rng.below(3)) * (4 << 20) + rng.below(4) * block_len.next_multiple_of(4096)
        } else {
            size_near_a_chunk(rng)
        };
        let size = size.max(1).next_multiple_of(block_len);
        let mut history = Self {
            options,
            storage: Storage::new(kind, size, block_len, rng),
            twin: None,
            world: World::new(),
            kept: !large && rng.below(3) == 0,
            unlocked: false,
            held: None,
            past: Vec::new(),
            foreign: false,
            pending: Vec::new(),
            listed: None,
            told: false,
            lied: false,
            refused: None,
            was_cut: false,
            broken: false,
            backup: None,
            renamed: None,
            vanished: false,
            agreed: false,
            next: None,
            trust: memory_dir(),
            stats: Stats::default(),
            trace: Vec::new(),
        };
        history.storage.believes = options.bug == Some(Bug::BelievesAName);
        let kept = history.kept;
        history.say(format!("{kind:?}, {size} bytes in blocks of {block_len}, kept: {kept}"));
        if !kept && rng.below(12) == 0 {
            let mut junk = Image::default();
            // A file of zeros is as good as none.
            junk.write(0, &[b'f'; 5000]);
            history.world.replace("volume", &junk);
            history.foreign = true;
            history.say("something else stands at the target".to_owned());
        }
        (0..rng.below(4)).for_each(|_| history.write(rng, true));
        history
    }

    pub(super) fn say(&mut self, what: String) {
        self.trace.push(what);
    }

    pub(super) fn befalls(&mut self, fault: Fault) {
        *self.stats.faults.entry(fault).or_default() += 1;
        self.say(format!("! {fault}"));
        match fault.rung() {
            Rung::Scrub => {
                self.pending.push(fault);
                self.told = false;
            }
            Rung::Audit => self.lied = true,
            _ => {}
        }
    }

    /// Whether only verifying the replica can find what befell it.
    pub(super) const fn is_latent(&self) -> bool {
        !self.pending.is_empty()
    }

    fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        match rng.below(100) {
            0..18 => self.write(rng, true),
            18..22 => self.discard(rng),
            22..26 => self.resize(rng),
            26..31 => self.snapshot(rng),
            31..75 => {
                if rng.below(5) > 0 {
                    self.write(rng, true);
                    self.snapshot(rng);
                }
                let mishap = Mishap::draw(rng);
                let wanted = if self.refused.is_some() { 2 } else { 30 };
                let consent = rng.below(wanted) == 0;
                self.replicate(consent, &mishap, rng)?;
            }
            75..78 => self.roll_source_back(rng),
            78..80 => self.switch_to_a_twin(),
            80..82 => self.destroy_a_snapshot(rng),
            82..84 => self.back_up(),
            84..87 => self.restore(rng),
            87..90 => {
                self.write_locally(rng);
                self.scrub_perhaps(rng)?;
            }
            90..92 => {
                self.swap(rng);
                self.scrub_perhaps(rng)?;
            }
            92..95 => {
                self.flip_at_rest(rng);
                self.scrub_perhaps(rng)?;
            }
            95..96 => {
                self.befalls(Fault::SourceCrashed);
                self.storage.crash();
            }
            96..98 => self.write(rng, false),
            98..99 => self.scrub(rng)?,
            _ => {
                self.befalls(Fault::TargetDied);
                self.world.crash(rng.next_u64());
            }
        }
        self.check_idle()
    }

    /// What was assumed away at first.
    fn befall(&mut self, rng: &mut Rng) -> Result<(), String> {
        match rng.below(24) {
            0 if self.storage.kind == Kind::Drbd => self.replicate_plainly(rng)?,
            1 | 6..9 if self.storage.may_be_a_pair() => {
                self.write(rng, true);
                let cleared = rng.below(3) > 0;
                self.befalls(Fault::OtherNode);
                self.say(format!("its bitmap was cleared: {cleared}"));
                self.storage.switch_node(cleared);
            }
            2..5 => self.next = Some(Mishap::draw_wide(rng)),
            5 if !self.kept && !self.broken => self.rename_target(rng),
            _ => return Ok(()),
        }
        self.check_idle()
    }

    /// A plain snapshot is replicated, and later another has the same name.
    fn replicate_plainly(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.befalls(Fault::PlainSnapshot);
        self.storage.snapshot(false, false);
        self.replicate(false, &Mishap::None, rng)?;
        self.write(rng, true);
        self.snapshot(rng);
        Ok(())
    }

    fn scrub_perhaps(&mut self, rng: &mut Rng) -> Result<(), String> {
        if rng.below(2) == 0 { self.scrub(rng) } else { Ok(()) }
    }

    fn extent(&self, rng: &mut Rng) -> Extent {
        let size = self.storage.live.len;
        // Around the bounds of chunks and regions, as that is where mistakes are made.
        let bound = match rng.below(4) {
            0 => rng.below(self.storage.chunks() + 1) * CHUNK_LEN,
            1 => rng.below((size >> 22) + 1) << 22,
            2 => size,
            _ => rng.below(size + 1),
        };
        let back = [0, BLOCK_LEN, 4096, CHUNK_LEN / 2][rng.below(4) as usize];
        let offset = bound.saturating_sub(back).min(size.saturating_sub(1)) / BLOCK_LEN * BLOCK_LEN;
        let len = match rng.below(8) {
            0 => CHUNK_LEN + 4096,
            1 => CHUNK_LEN,
            2 => 1 + rng.below(3 * CHUNK_LEN),
            _ => (1 + rng.below(16)) * BLOCK_LEN,
        };
        let whole = Extent::new(offset, len.min(size - offset).max(1));
        whole.unwrap_or_else(|| unreachable!("no extent here is empty"))
    }

    fn write(&mut self, rng: &mut Rng, told: bool) {
        let extent = self.extent(rng);
        if !told && self.storage.kind == Kind::Plain {
            // There is no record that could miss it.
            return;
        }
        let bytes = bytes(rng, extent.len() as usize);
        self.say(format!("write {} bytes at {}", extent.len(), extent.offset()));
        if !told {
            self.befalls(Fault::StaleMap);
        }
        self.storage.change(extent, Some(&bytes), told);
    }

    fn discard(&mut self, rng: &mut Rng) {
        let extent = self.extent(rng);
        self.say(format!("discard {} bytes at {}", extent.len(), extent.offset()));
        self.storage.change(extent, None, true);
    }

    fn resize(&mut self, rng: &mut Rng) {
        let now = self.storage.live.len;
        let size = match rng.below(3) {
            0 => now + rng.below(CHUNK_LEN),
            1 => now.saturating_sub(rng.below(CHUNK_LEN)),
            _ if now > 1 << 22 => now - 4096,
            _ => size_near_a_chunk(rng),
        };
        self.storage.resize(size);
        self.say(format!("resize to {}", self.storage.live.len));
    }

    pub(super) fn snapshot(&mut self, rng: &mut Rng) {
        // What is written behind a snapshot under its name is written under two.
        let rotated = self.storage.kind != Kind::Drbd || rng.below(40) > 0;
        let cumulative = rng.below(6) == 0;
        if !rotated {
            self.befalls(Fault::PlainSnapshot);
        }
        self.storage.snapshot(rotated, cumulative);
        let name = self.storage.newest().and_then(|newest| newest.generation);
        self.say(format!("snapshot {}", name.map_or_else(|| "-".into(), |g| g.to_string())));
    }

    fn roll_source_back(&mut self, rng: &mut Rng) {
        let count = self.storage.snapshots.len() as u64;
        if count == 0 {
            return;
        }
        let to = rng.below(count) as usize;
        let rotated = self.storage.kind != Kind::Drbd || rng.below(4) > 0;
        self.befalls(Fault::SourceRolledBack);
        if !rotated {
            self.befalls(Fault::SameName);
        }
        self.say(format!("source back to snapshot {to}"));
        self.storage.roll_back(to, rotated);
    }

    fn switch_to_a_twin(&mut self) {
        let named = self.storage.named;
        self.befalls(Fault::SourceCloned);
        if self.storage.kind == Kind::Drbd {
            // Two devices with one UUID, until either gets a new one.
            self.befalls(Fault::SameName);
        }
        let now = self.storage.clone();
        let mut twin = self.twin.replace(now.clone()).unwrap_or(now);
        twin.named = named.max(twin.named);
        self.storage = twin;
    }

    fn destroy_a_snapshot(&mut self, rng: &mut Rng) {
        let count = self.storage.snapshots.len() as u64;
        if count > 1 {
            let (at, bookmark) = (rng.below(count - 1) as usize, rng.below(2) == 0);
            self.befalls(Fault::SnapshotDestroyed);
            self.say(format!("snapshot {at} is destroyed, bookmark: {bookmark}"));
            self.storage.destroy(at, bookmark);
        }
    }

    fn back_up(&mut self) {
        if self.held.is_none() || self.broken {
            return;
        }
        self.say("the target is backed up".to_owned());
        self.backup = Some(self.target());
    }

    /// The target as it stands.
    fn target(&self) -> Backup {
        let names: Vec<_> = std::iter::once("volume").chain(BOOKS).collect();
        Backup {
            disks: self.world.save(&names),
            held: self.held.clone(),
            foreign: self.foreign,
            pending: self.pending.clone(),
            was_cut: self.was_cut,
            listed: self.listed.clone(),
            unlocked: self.unlocked,
        }
    }

    /// All of the target is what it was.
    fn put_back(&mut self, backup: Backup) {
        self.unlocked = backup.unlocked;
        self.world.put_back(&backup.disks, |_| true);
        self.held = backup.held;
        self.foreign = backup.foreign;
        self.pending = backup.pending;
        // So is what was cut off then.
        self.was_cut = backup.was_cut;
        (self.listed, self.told) = (backup.listed, false);
    }

    /// The target is renamed, or destroyed, and later perhaps has its name back.
    fn rename_target(&mut self, rng: &mut Rng) {
        if let Some(renamed) = self.renamed.take() {
            self.befalls(Fault::TargetVanished);
            self.say("it has its name back".to_owned());
            self.put_back(renamed);
            (self.vanished, self.agreed) = (false, false);
        } else if self.held.is_some() {
            self.befalls(Fault::TargetVanished);
            if rng.below(2) == 0 {
                self.renamed = Some(self.target());
            }
            std::iter::once("volume").chain(BOOKS).for_each(|name| self.world.remove(name));
            (self.held, self.foreign, self.listed) = (None, false, None);
            (self.was_cut, self.told) = (false, false);
            self.pending.clear();
            (self.vanished, self.agreed) = (self.remembers().is_some(), false);
        }
    }

    /// All of the target is put back to when it was backed up, or only a part of it.
    fn restore(&mut self, rng: &mut Rng) {
        let Some(backup) = self.backup.take().filter(|_| !self.broken) else { return };
        match rng.below(3) {
            0 => {
                self.befalls(Fault::TargetRolledBack);
                self.put_back(backup);
                (self.vanished, self.agreed) = (false, false);
            }
            // Without a generation there is nothing that it could be torn from.
            part if self.held.is_some() && backup.held.is_some() => {
                self.befalls(Fault::TornApart);
                self.say(format!("only the {}", if part == 1 { "volume" } else { "books" }));
                self.world.put_back(&backup.disks, |name| (name == "volume") == (part == 1));
                if part == 1 {
                    self.unlocked = backup.unlocked;
                } else {
                    // Two generations of one name are told apart by nothing else.
                    self.held = backup.held;
                    self.listed = backup.listed;
                }
            }
            _ => {}
        }
    }

    fn write_locally(&mut self, rng: &mut Rng) {
        let len = self.world.image("volume").len;
        if len == 0 || (self.held.is_none() && !self.foreign) {
            return;
        }
        self.befalls(Fault::WrittenLocally);
        let offset = rng.below(len);
        let count = (1 + rng.below(5000)).min(len - offset);
        self.say(format!("{count} bytes at {offset}"));
        self.unlocked = true;
        self.world.intrude("volume", offset, &bytes(rng, count as usize));
    }

    /// Another volume in the replica's place.
    fn swap(&mut self, rng: &mut Rng) {
        if self.kept || self.held.is_none() {
            return;
        }
        self.befalls(Fault::Swapped);
        let mut other = Image::default();
        let len =
            if rng.below(2) == 0 { self.world.image("volume").len } else { size_near_a_chunk(rng) };
        other.set_len(len);
        if len > 0 {
            other.write(0, &bytes(rng, len.min(70_000) as usize));
        }
        self.world.replace("volume", &other);
    }

    fn flip_at_rest(&mut self, rng: &mut Rng) {
        let part = ["volume", "volume", "ids", "state", "journal", "repair"][rng.below(6) as usize];
        let len = self.world.image(part).len;
        if len == 0 || (self.held.is_none() && !self.foreign) {
            return;
        }
        let (offset, bit) = (rng.below(len), rng.below(8) as u8);
        self.befalls(Fault::FlippedAtRest);
        self.say(format!("bit {bit} of byte {offset} of the {part}"));
        self.world.flip(part, offset, bit);
    }

    /// The faults are over: the replica must become equal to the source.
    fn finish(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.say("faults stop".to_owned());
        let mut consent = false;
        for _ in 0..5 {
            if self.broken {
                // As the messages say.
                self.say("the books are removed".to_owned());
                BOOKS.iter().for_each(|book| self.world.remove(book));
                self.listed = None;
                (self.held, self.foreign, self.broken) = (None, true, false);
            }
            self.storage.snapshot(true, false);
            let ok = self.replicate(consent, &Mishap::None, rng)?;
            let newest = self.storage.newest().map(|newest| newest.image.clone());
            let equal = self.held.as_ref().zip(newest).is_some_and(|(held, newest)| {
                held.claim.same(&newest) && self.holds(&self.world.image("volume"), &newest)
            });
            if ok && equal && !self.broken && !self.is_latent() {
                return Ok(());
            }
            // A lie of the map is mended by whoever does not believe it.
            consent = self.refused.is_some() || self.broken || self.is_latent() || ok;
        }
        Err(format!("the replica does not become the source again: {:?}", self.refused))
    }

    /// Whether the volume holds these bytes; a device may be longer.
    pub(super) fn holds(&self, volume: &Image, expected: &Image) -> bool {
        let fits = if self.kept { volume.len >= expected.len } else { volume.len == expected.len };
        fits && volume.differing(expected).is_empty()
    }
}

fn size_near_a_chunk(rng: &mut Rng) -> u64 {
    let bound = rng.below(6) * CHUNK_LEN;
    let off = [0, 1, 512, 4096, 9000, 40_000][rng.below(6) as usize];
    if rng.below(2) == 0 { bound + off } else { bound.saturating_sub(off) }.max(1)
}

/// Bytes to write: random, all alike, or such that were written before.
fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    match rng.below(6) {
        0 => vec![0; len],
        1 => vec![rng.next_u64() as u8; len],
        kind => {
            let mut content = Rng(if kind == 2 { rng.below(3) } else { rng.next_u64() });
            let mut bytes = Vec::with_capacity(len + 8);
            while bytes.len() < len {
                bytes.extend_from_slice(&content.next_u64().to_le_bytes());
            }
            bytes.truncate(len);
            bytes
        }
    }
}
