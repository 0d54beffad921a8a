//! The invariants.

use driftline_extent::{CHUNK_LEN, Extent, Generation, PlanKind, Reason, Scheme, Target};

use super::{
    disks,
    history::{Held, History},
    source::Planned,
    storage::Kind,
};
use crate::disk::Image;

/// How a run ended, for whoever started it.
#[derive(Debug)]
pub(super) enum Ended {
    Well,
    Refused(Reason, String),
}

/// A run that is over, for better or worse.
pub(super) struct Run {
    /// What stood at the target.
    pub(super) before: Image,
    /// How much of that, in bytes, a loss of power left at least.
    pub(super) lasting: u64,
    pub(super) planned: Vec<Planned>,
    /// Commits that the source heard of.
    pub(super) committed: usize,
    pub(super) ended: Ended,
    pub(super) consent: bool,
    /// Whether nothing was to go wrong.
    pub(super) undisturbed: bool,
    /// Whether a write did not arrive as it was, and nothing had befallen the target before.
    pub(super) spoilt: bool,
    /// How many chunks a comparison of all says that the map has missed, if there was one.
    pub(super) missed: Option<u64>,
}

/// Where the replica may stand after a run.
struct Stand {
    /// `None` where only the content names it.
    name: Option<Generation>,
    held: Held,
    /// What the volume holds then, damage included.
    content: Image,
}

/// What an increment makes of a volume.
fn changed(base: &Image, planned: &Planned) -> Image {
    let Some(claim) = planned.claim.as_ref().filter(|_| planned.kind == PlanKind::Incremental)
    else {
        return planned.image.clone();
    };
    let mut tip = base.clone();
    tip.set_len(planned.image.len);
    claim.iter().for_each(|extent| tip.take(&planned.image, *extent));
    tip
}

impl History<'_> {
    /// As [`check`](Self::check), where no run was.
    pub(super) fn check_idle(&mut self) -> Result<(), String> {
        if self.broken {
            return Ok(());
        }
        self.world.drop_cache();
        self.check(Run {
            before: self.world.image("volume"),
            lasting: self.world.lasting_len("volume"),
            planned: Vec::new(),
            committed: 0,
            ended: Ended::Refused(Reason::Failed, String::new()),
            consent: false,
            undisturbed: false,
            spoilt: false,
            missed: None,
        })
    }

    /// Opens the replica and compares everything with the model.
    pub(super) fn check(&mut self, run: Run) -> Result<(), String> {
        let opened = disks::open(&self.world, self.kept, self.options.bug);
        let mut replica = match opened {
            Ok(replica) => replica,
            Err(_) if self.is_latent() => {
                self.broken = true;
                self.say("  it does not open any more".to_owned());
                return Ok(());
            }
            Err(error) => return Err(format!("does not open: {error}")),
        };
        self.broken = false;
        let latent = self.is_latent();
        let state = replica.state();
        let clean = replica.verify(&mut |_| {}).map_or(true, |report| report.is_clean());
        drop(replica);
        self.world.drop_cache();
        let content = self.world.image("volume");
        self.check_manager(state.generation.is_some())?;
        self.check_untouched(&run, &content)?;
        let stand = self.stand(&run, state.generation, &content)?;
        let Some((advanced, stand)) = stand else {
            return self.check_nothing(&run, &content);
        };
        self.check_truth(&run, advanced, &stand)?;
        if advanced > 0 {
            if self.vanished && !self.agreed && !run.consent && self.held.is_none() {
                return Err("was copied anew, though something had arrived at this target".into());
            }
            (self.vanished, self.agreed) = (false, false);
        }
        self.check_missed(&run)?;
        let arrived = self.holds(&content, &stand.content);
        let claimed = self.holds(&content, &stand.held.claim);
        let sound = arrived && claimed && clean;
        if !self.is_latent() && !sound {
            return Err(format!(
                "{} is held with other bytes, and verifies as clean: {clean}",
                stand.held.generation
            ));
        }
        if run.spoilt && advanced > 0 && !arrived {
            return Err("was committed though it did not arrive".into());
        }
        if !claimed && clean {
            return Err("holds other bytes than its books say, and verifies as clean".into());
        }
        self.stats.commits += advanced as u64;
        self.foreign = false;
        if claimed && clean && self.is_kept(stand.held.generation) {
            self.pending.clear();
        }
        let compared_all = run.planned.iter().take(advanced);
        if compared_all.into_iter().any(|planned| planned.kind != PlanKind::Incremental) {
            self.listed = None;
        }
        self.held = Some(stand.held);
        self.check_end(&run, advanced, latent)
    }

    /// Where the replica stands, and how many increments further than before; `None` without a
    /// generation.
    fn stand(
        &mut self,
        run: &Run,
        found: Option<Generation>,
        content: &Image,
    ) -> Result<Option<(usize, Stand)>, String> {
        let Some(found) = found else { return Ok(None) };
        let mut stands: Vec<(usize, Stand)> = Vec::new();
        if let Some(held) = &self.held {
            let mut content = run.before.clone();
            if self.kept {
                // What a device has behind the volume is no part of it.
                content.set_len(content.len.min(held.claim.len));
            }
            let stand = Stand { name: Some(held.generation), held: held.clone(), content };
            stands.push((0, stand));
        }
        for (at, planned) in (1..).zip(&run.planned).take(run.committed + 1) {
            let (claim, content) = match stands.last() {
                Some((_, last)) => {
                    (changed(&last.held.claim, planned), changed(&last.content, planned))
                }
                None => (planned.image.clone(), planned.image.clone()),
            };
            let faithful = claim.same(&planned.image);
            let held = Held { generation: planned.tip.unwrap_or(found), claim, faithful };
            stands.push((at, Stand { name: planned.tip, held, content }));
        }
        // A generation that another followed in the same session was held as well.
        self.past.extend(stands.iter().map(|(_, stand)| stand.held.clone()));
        stands.retain(|(at, stand)| {
            *at >= run.committed
                && match stand.name {
                    Some(name) => name == found,
                    None => found.scheme() == Scheme::CONTENT,
                }
        });
        let fits = stands.iter().rposition(|(_, stand)| self.holds(content, &stand.content));
        let at = fits.or_else(|| stands.len().checked_sub(1));
        if let Some(at) = at {
            return Ok(Some(stands.swap_remove(at)));
        }
        if !self.is_latent() {
            return Err(format!("is at {found}, which it cannot be"));
        }
        // The books were damaged or put back: an older record counts again.
        let held = self.past.iter().rev().find(|held| held.generation == found);
        let held = held.ok_or_else(|| format!("is at {found}, where it never was"))?.clone();
        let content = content.clone();
        Ok(Some((0, Stand { name: Some(found), held, content })))
    }

    /// Nothing is held.
    fn check_nothing(&mut self, run: &Run, content: &Image) -> Result<(), String> {
        let stood = self.held.is_some() || self.foreign;
        if self.held.is_some() && !run.consent && !self.is_latent() {
            return Err("holds no generation any more".into());
        }
        if stood && !self.is_latent() && !self.holds(content, &run.before) {
            return Err("holds no generation, and other bytes than before".into());
        }
        self.foreign = stood;
        self.held = None;
        self.check_end(run, 0, self.is_latent())
    }

    /// That what was committed is what the source held, unless its record of change lied.
    fn check_truth(&mut self, run: &Run, advanced: usize, stand: &Stand) -> Result<(), String> {
        if advanced == 0 || stand.held.faithful {
            return Ok(());
        }
        let excused = self.lied || self.held.as_ref().is_some_and(|held| !held.faithful);
        if !excused || self.options.audit {
            let planned = &run.planned[advanced - 1];
            let pages = stand.held.claim.differing(&planned.image);
            return Err(format!(
                "{} is committed, but differs from the source at pages {pages:?}",
                stand.held.generation
            ));
        }
        self.stats.unseen += 1;
        self.say("  only an audit would find that this differs from the source".to_owned());
        Ok(())
    }

    /// That a comparison of all tells exactly which chunks the map has missed.
    fn check_missed(&mut self, run: &Run) -> Result<(), String> {
        let (Some(told), Some(held), Some(planned)) = (run.missed, &self.held, run.planned.first())
        else {
            return Ok(());
        };
        self.stats.compared += 1;
        let (image, claim) = (&planned.image, planned.claim.as_deref().unwrap_or_default());
        let mut base = held.claim.clone();
        // A chunk that the new end cuts is another one, and no map need tell.
        let cut = image.len < base.len && !image.len.is_multiple_of(CHUNK_LEN);
        let cut = cut.then_some(image.len / CHUNK_LEN);
        base.set_len(image.len);
        let mut chunks: Vec<u64> =
            base.differing(image).into_iter().map(|page| page * 4096 / CHUNK_LEN).collect();
        chunks.dedup();
        let known = |chunk: u64| {
            let whole = Extent::new(chunk * CHUNK_LEN, CHUNK_LEN);
            Some(chunk) == cut
                || whole.is_some_and(|whole| claim.iter().any(|e| e.intersect(&whole).is_some()))
        };
        chunks.retain(|chunk| !known(*chunk));
        if told == chunks.len() as u64 {
            return Ok(());
        }
        Err(format!("{told} chunks are told that the map has missed, and it has {chunks:?}"))
    }

    /// That nothing was written over which is not in the books, unless by consent.
    fn check_untouched(&self, run: &Run, content: &Image) -> Result<(), String> {
        let Some(held) = self.held.as_ref().filter(|_| !run.consent) else { return Ok(()) };
        let listed = |page| self.listed.as_ref().is_some_and(|l| l.allows(&run.before, page));
        for page in run.before.differing(&held.claim).into_iter().filter(|page| !listed(*page)) {
            let len = content.len.saturating_sub(page * 4096).min(4096) as usize;
            // Power takes back what was grown and not synced.
            if len == 0 && page * 4096 >= run.lasting {
                continue;
            }
            if len == 0 || !content.same_page(&run.before, page, len) {
                return Err(format!("page {page} was not in the books, and was written over"));
            }
        }
        Ok(())
    }

    fn check_manager(&mut self, holds: bool) -> Result<(), String> {
        let Some(device) = self.world.kept("volume").filter(|_| self.kept) else { return Ok(()) };
        if !device.violations.is_empty() {
            return Err(format!("rules were broken: {:?}", device.violations));
        }
        if device.exists && device.locked {
            self.unlocked = false;
        }
        if device.exists && !device.locked && !self.unlocked && holds {
            return Err("the device is not locked".into());
        }
        Ok(())
    }

    /// That a disk which is full keeps nobody from the replica, at N or N + 1; then it has room.
    pub(super) fn check_full(&mut self) -> Result<(), String> {
        let lacked = self.world.lacked_room();
        let opened = disks::open(&self.world, self.kept, self.options.bug).map(drop);
        let full = self.world.lacked_room();
        self.world.make_room();
        self.world.restart();
        match opened {
            Err(error) if full && !self.is_latent() => {
                Err(format!("does not open while the disk is full: {error}"))
            }
            _ => {
                self.say(format!("  room was lacking: {lacked}"));
                Ok(())
            }
        }
    }

    /// Whether the newest snapshot of the manager, where there is one, is of this generation.
    pub(super) fn is_kept(&self, generation: Generation) -> bool {
        let device = self.world.kept("volume").filter(|_| self.kept);
        device.is_none_or(|d| d.snapshots.last().is_some_and(|(newest, _)| *newest == generation))
    }

    /// That the run ended as it should, and said so.
    fn check_end(&mut self, run: &Run, advanced: usize, latent: bool) -> Result<(), String> {
        self.agreed |= run.consent && self.vanished && !run.planned.is_empty();
        let newest = self.storage.newest();
        match &run.ended {
            Ended::Well => {
                (self.refused, self.was_cut) = (None, false);
                let at_tip = self.held.as_ref().zip(newest).is_some_and(|(held, newest)| {
                    newest.generation.is_none_or(|name| name == held.generation)
                        && (held.claim.same(&newest.image) || !held.faithful || self.lied)
                });
                let done = at_tip && advanced == run.planned.len();
                if !latent && !done {
                    return Err("said that it went well, and the replica is elsewhere".into());
                }
                if self.told && self.is_latent() {
                    return Err("damage that a scrub has listed was not replaced".into());
                }
            }
            Ended::Refused(reason, detail) => {
                let helps = matches!(
                    reason,
                    Reason::BaseMismatch
                        | Reason::TargetForeign
                        | Reason::TargetModified
                        | Reason::TargetGone
                        | Reason::SourceMismatch
                        | Reason::Denied
                );
                self.refused = helps.then_some(*reason);
                let legitimate = (latent && !self.told) || self.may_refuse(*reason, run.consent);
                if run.undisturbed && !legitimate {
                    return Err(format!("was refused for no reason: {reason}: {detail}"));
                }
                self.stats.found += u64::from(*reason == Reason::AuditMismatch);
                self.was_cut = !run.undisturbed && (self.was_cut || !run.planned.is_empty());
            }
        }
        Ok(())
    }

    /// Whether runs compare all of volumes that nothing but their content names. A snapshot of DRBD
    /// that was not rotated, or is the other node's, is such a volume.
    fn may_lack_a_name(&self) -> bool {
        let is_nameless = match self.storage.kind {
            Kind::Plain => true,
            Kind::Drbd => self.options.wide,
            Kind::Zfs => false,
        };
        is_nameless || self.lied || self.listed.is_some()
    }

    /// Whether there is a good reason for this refusal of an undisturbed run.
    fn may_refuse(&self, reason: Reason, consent: bool) -> bool {
        match reason {
            Reason::TargetForeign => !consent && self.foreign,
            Reason::TargetGone => !consent && (self.vanished || self.foreign),
            Reason::BaseMismatch if self.foreign => !consent,
            Reason::BaseMismatch => {
                !consent
                    && self.held.as_ref().is_some_and(|held| match self.storage.kind {
                        Kind::Zfs => self.storage.find(&held.generation).is_none(),
                        Kind::Drbd => true,
                        Kind::Plain => false,
                    })
            }
            // What was cut off is gone on with, and was of another time: the next run starts over.
            Reason::ResumeMismatch => self.was_cut && self.may_lack_a_name(),
            // So it is under a name that two instants have.
            Reason::StreamDamaged | Reason::RootMismatch if self.was_cut && self.lied => true,
            // The next run compares all.
            Reason::AuditMismatch => self.options.audit && self.lied,
            Reason::RootMismatch => self.lied,
            _ => false,
        }
    }
}
