//! A scrub of the replica in the middle of a history, with and without consent to repair.

use std::collections::BTreeSet;

use driftline_extent::{CHUNK_LEN, Target};
use driftline_target::ScrubReport;

use super::{Fault, disks, history::History};
use crate::disk::{Image, Rng};

const PAGES_IN_CHUNK: u64 = CHUNK_LEN / 4096;

/// Damage that somebody has agreed to have replaced: these chunks, while they hold this.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    chunks: BTreeSet<u64>,
    content: Image,
}

impl Listed {
    /// Where this content is not what it should be.
    fn of(content: &Image, claim: &Image) -> Self {
        let chunks = content.differing(claim).into_iter().map(|page| page / PAGES_IN_CHUNK);
        let mut content = content.clone();
        // What a device has behind the volume is no part of it.
        content.set_len(content.len.min(claim.len));
        Self { chunks: chunks.collect(), content }
    }

    /// Whether this page of a volume may be replaced.
    pub(super) fn allows(&self, volume: &Image, page: u64) -> bool {
        let chunk = page / PAGES_IN_CHUNK;
        let mut pages = chunk * PAGES_IN_CHUNK..(chunk + 1) * PAGES_IN_CHUNK;
        let within = |page: u64| self.content.len.saturating_sub(page * 4096).min(4096) as usize;
        self.chunks.contains(&chunk)
            && pages.all(|page| volume.same_page(&self.content, page, within(page)))
    }
}

impl History<'_> {
    /// Reads all of the replica and may repair it; the target may die meanwhile.
    pub(super) fn scrub(&mut self, rng: &mut Rng) -> Result<(), String> {
        let Some(held) = self.held.clone().filter(|_| !self.broken) else { return Ok(()) };
        let repair = rng.below(4) > 0;
        let stop = (rng.below(4) == 0).then(|| rng.below(40));
        let luck = rng.below(2) == 0;
        self.say(format!("scrub, repair: {repair}, stops: {stop:?}"));
        self.stats.scrubs += 1;
        self.world.drop_cache();
        let Ok(mut replica) = disks::open(&self.world, self.kept, self.options.bug) else {
            return Ok(());
        };
        if replica.state().generation != Some(held.generation) {
            // Its state is another one than it was: the check that follows looks into that.
            return Ok(());
        }
        let before = self.world.image("volume");
        if repair {
            // All of it may be put right, by whatever the hashes in the books lead to.
            self.listed = Some(Listed::of(&before, &held.claim));
        }
        if let Some(after) = stop {
            self.befalls(Fault::TargetDied);
            self.world.stop_after(after);
        }
        let report = replica.scrub(repair, 1 << 40, &mut |_| {});
        drop(replica);
        if stop.is_some() && luck {
            self.world.crash(rng.next_u64())
        } else {
            self.world.restart()
        }
        self.say(format!("  {report:?}"));
        let Ok(mut replica) = disks::open(&self.world, self.kept, self.options.bug) else {
            return Ok(());
        };
        let (awaits, clean) = (replica.state().damaged, replica.verify(&mut |_| {}));
        let clean = clean.is_ok_and(|report| report.is_clean());
        drop(replica);
        self.world.drop_cache();
        let after = self.world.image("volume");
        self.check_repaired(&before, &after, &held.claim, repair)?;
        if repair {
            self.listed = awaits.then(|| Listed::of(&after, &held.claim));
        }
        match report {
            Ok(report) => {
                self.stats.repaired += report.repaired;
                self.check_report(&report, clean)?;
                // Without consent, or without knowing what to believe, an older list stays.
                if repair && report.found.root_matches && awaits != (report.awaited > 0) {
                    let awaited = report.awaited;
                    return Err(format!("{awaited} chunks await their source, told: {awaits}"));
                }
                // What is left can be replaced only where the list is to be believed.
                let listed = report.found.root_matches && report.awaited == report.left();
                let fits = report.found.size_matches || report.size_repaired;
                // A scrub looks at bytes, and not at what a manager has kept of them.
                let kept = self.is_kept(held.generation);
                self.told = repair && kept && fits && (listed || report.list_repaired);
                Ok(())
            }
            Err(error) if stop.is_none() && !self.is_latent() => {
                Err(format!("a scrub failed for no reason: {error}"))
            }
            Err(_) => {
                // The list is written anew by each scrub: it has to be done again.
                self.told &= awaits;
                Ok(())
            }
        }
    }

    /// That every page is what it was, or with consent what it should be.
    fn check_repaired(
        &self,
        before: &Image,
        after: &Image,
        claim: &Image,
        repair: bool,
    ) -> Result<(), String> {
        let should: BTreeSet<u64> = after.differing(claim).into_iter().collect();
        let wrong =
            after.differing(before).into_iter().find(|page| !repair || should.contains(page));
        match wrong {
            Some(page) => Err(format!("a scrub has written something else to page {page}")),
            None if !repair && after.len != before.len => {
                Err("a scrub has changed the size".into())
            }
            None => Ok(()),
        }
    }

    /// That a scrub says what is true.
    fn check_report(&self, report: &ScrubReport, clean: bool) -> Result<(), String> {
        if !report.is_clean() && !self.is_latent() {
            return Err("a scrub found damage where nothing was done".into());
        }
        if report.is_whole() != clean {
            return Err(format!("a scrub says whole: {}, verified: {clean}", report.is_whole()));
        }
        Ok(())
    }
}
