//! What the source side knows by itself: its manifest of what the target holds, and an audit of
//! what a map calls unchanged.
//!
//! An auditor stands beside the worker that delivers. Of an increment it names the chunks that are
//! touched, as the storage shows them, so that it has the root over the whole volume at the tip
//! before the target is told to finish. It reads a share of the space again that the map calls
//! unchanged ([`driftline_trust`] says how much), and if anything there is not what it was, the
//! increment is given up: what comes instead compares all.

mod session;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use driftline_chunking::{ChunkKey, SPAN_CHUNKS};
use driftline_extent::{
    Accepts, Begin, Change, ChunkId, Committed, Generation, Item, Plan, PlanKind, Reason, Root,
    Standing, TargetState, Volume, chunk_count,
};
use driftline_trust::{
    Base, Entry, Held, Incident, Incidents, ManifestError, Pass, SAMPLE_MAX, Touched, draw,
    find_probability, is_due, sample_size, stale_bound,
};

use self::session::{Checked, Finding, Mode, Opened, Session, in_manifest, open};
use crate::Failure;

/// The volume as its storage shows it at the tip.
pub type Reader = Arc<dyn Volume + Send + Sync>;

/// When all is compared although there is a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compare {
    /// Only where the map is not to be relied on.
    Never,
    /// Now.
    Now,
    /// If that was last done so long ago, in milliseconds, or never.
    After(u64),
}

/// What an auditor is told beforehand.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The folder of the manifest, of this source and this target and no other.
    pub dir: PathBuf,
    /// Where incidents are kept.
    pub incidents: Incidents,
    /// What the source is called in them.
    pub source: String,
    /// What the target is called in them.
    pub target: String,
    /// How long ago anything may have been read again at most, in milliseconds.
    pub age_ms: u64,
    /// How many chunks are drawn; `None`: as many as it takes, up to [`SAMPLE_MAX`].
    pub sample: Option<u64>,
    /// When all is compared.
    pub compare: Compare,
    /// When the run began, in milliseconds since 1970.
    pub now_ms: u64,
    /// What is drawn follows from it: fresh random bytes.
    pub seed: [u8; 32],
}

/// What an auditor has to say of a session.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AuditReport {
    /// Whether there was a manifest that roots were compared by.
    pub by_manifest: bool,
    /// Why the source was read in full although its manifest should have made that needless.
    pub rebuilt: Option<Reason>,
    /// The last audit.
    pub audit: Option<Audit>,
    /// How many chunks had changed although the map did not say so, where all was compared and the
    /// map held against that.
    pub missed: Option<u64>,
}

/// What was read again of the space that a map calls unchanged.
#[derive(Clone, PartialEq, Debug)]
pub struct Audit {
    /// Chunks of the volume.
    pub chunks: u64,
    /// Chunks that the increment touches.
    pub changed: u64,
    /// Chunks that were drawn.
    pub sampled: u64,
    /// Chunks of the rolling pass.
    pub rolled: u64,
    /// Bytes that were read for it: holes cost nothing.
    pub bytes_read: u64,
    /// What the draw follows from.
    pub seed: [u8; 32],
    /// Chunks that were not what they were.
    pub stale: u64,
    /// How many stale chunks there could be without one of them being likely to be drawn.
    pub stale_bound: u64,
    /// The chance that a map is found that misses a hundredth of these changes.
    pub find_chance: f64,
    /// How long ago that was read again which was not for the longest time, in milliseconds.
    pub oldest_ms: u64,
    /// How long ago that may be, in milliseconds.
    pub age_ms: u64,
}

/// Chunks of a sample that are read together.
const SAMPLE_BATCH: usize = 512;

/// Watches one session.
#[derive(Debug)]
pub struct Auditor {
    terms: Terms,
    told: Arc<Mutex<AuditReport>>,
    /// The manifest, once it was asked for its record of the base.
    opened: Option<Opened>,
    session: Option<Session>,
}

impl Auditor {
    /// One that knows nothing of its session yet.
    pub fn new(terms: Terms) -> Self {
        Self { terms, told: Arc::default(), opened: None, session: None }
    }

    /// Where it says what it has seen, also once it is gone.
    pub fn audit_report(&self) -> Arc<Mutex<AuditReport>> {
        self.told.clone()
    }

    fn tell(&self, tell: impl FnOnce(&mut AuditReport)) {
        tell(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What the source wanted to know again of what the target holds; `None` if that is not known
    /// of this very content. A manifest that cannot be opened is warned of when it is needed.
    pub fn recall(&mut self, state: &TargetState) -> Option<Vec<u8>> {
        (self.session, self.opened) = (None, None);
        if state.accepts != Accepts::Volume || state.generation.is_none() {
            return None;
        }
        let opened = self.opened.insert(open(&self.terms.dir, state).ok()?);
        opened.0.record(state).map(<[u8]>::to_vec)
    }

    /// Hears what the source will want to know again of the tip.
    pub fn set_record(&mut self, record: Option<Vec<u8>>) {
        if let Some(session) = &mut self.session {
            session.manifest.set_record(record);
        }
    }

    /// Hears what the target holds and how the source would bring it further, and turns an
    /// increment into a scan if its map is not to be relied on.
    ///
    /// # Errors
    /// That incidents cannot be kept. A manifest that cannot be opened is warned of.
    pub fn plan(
        &mut self,
        state: &TargetState,
        plan: &mut Plan,
        reader: Option<Reader>,
    ) -> Result<(), Failure> {
        self.session = None;
        let opened = self.opened.take();
        let kinds = [PlanKind::Incremental, PlanKind::Full, PlanKind::Scan];
        if state.accepts != Accepts::Volume || !kinds.contains(&plan.kind) {
            return Ok(());
        }
        let Some(reader) = reader else {
            if let (Compare::After(_), PlanKind::Incremental) = (self.terms.compare, plan.kind) {
                tracing::warn!(
                    source = self.terms.source,
                    "cannot read the source's snapshots, so the time of the last comparison is \
                     unknown: sending only what changed"
                );
            }
            return Ok(());
        };
        let opened = opened.map_or_else(|| open(&self.terms.dir, state), Ok);
        let (mut manifest, damage) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let dir = self.terms.dir.display().to_string();
                tracing::warn!(
                    dir,
                    error = crate::chain(&error),
                    "cannot use the manifest: this run does not check what the map calls unchanged"
                );
                return Ok(());
            }
        };
        let mut rebuilt = Reason::ManifestMissing;
        if let Some(what) = damage {
            rebuilt = Reason::ManifestDamaged;
            // What the source wanted to know of the base is gone with it.
            if plan.standing == Standing::Suspect(Reason::ManifestMissing) {
                plan.standing = Standing::Suspect(rebuilt);
            }
            self.found(rebuilt, format!("{what}: it is made again from data"), state, plan)?;
        }
        let base = manifest.base(state);
        if let Base::Differs(ours) = base {
            let detail = format!(
                "the target says that {} has another content than this source recorded when it \
                 was committed (root {}): comparing everything",
                ours.generation, ours.root
            );
            self.found(Reason::RootMismatch, detail, state, plan)?;
            manifest.set_suspect(Reason::RootMismatch).map_err(|e| in_manifest(&e))?;
        }
        let damaged = state.damaged.then_some(Reason::TargetDamaged);
        if plan.kind == PlanKind::Incremental
            && let (Some(reason), Some(size)) = (manifest.suspect().or(damaged), plan.size)
        {
            plan.kind = PlanKind::Scan;
            plan.standing = Standing::Suspect(reason);
            plan.bytes_expected = size;
            tracing::warn!(
                source = self.terms.source,
                reason = reason.as_str(),
                "this increment is not enough: comparing everything"
            );
        }
        let is_held = matches!(base, Base::Held(_));
        let mut found = None;
        if let (PlanKind::Incremental, Some(size)) = (plan.kind, plan.size)
            && self.is_due(manifest.compared_ms())
        {
            plan.kind = PlanKind::Scan;
            plan.bytes_expected = size;
            found = is_held.then(Touched::default);
        }
        let mode = match plan.kind {
            PlanKind::Incremental if !is_held => {
                self.read_all(rebuilt);
                Mode::Reading
            }
            PlanKind::Incremental => Mode::Following,
            PlanKind::Scan if is_held => Mode::Following,
            // Everything goes by, and what was listed does not matter any more.
            _ => {
                manifest.clear().map_err(|e| in_manifest(&e))?;
                Mode::Following
            }
        };
        let key = ChunkKey::new(&state.chunk_key);
        let (base, touched) = (Held::of(state), Touched::default());
        let plan = plan.clone();
        self.session = Some(Session { manifest, reader, key, plan, base, mode, touched, found });
        self.tell(|told| told.by_manifest = true);
        Ok(())
    }

    /// Whether all is to be compared, which was last done then; and says so.
    fn is_due(&self, compared_ms: Option<u64>) -> bool {
        let Terms { source, target, compare, now_ms, .. } = &self.terms;
        match (compare, compared_ms) {
            (Compare::Never, _) => false,
            (Compare::Now, _) => {
                tracing::info!(source, target, "comparing everything, as requested");
                true
            }
            (Compare::After(_), None) => {
                tracing::info!(source, target, "comparing everything for the first time");
                true
            }
            (Compare::After(age_ms), Some(last_ms)) => {
                let due = is_due(last_ms, *now_ms, *age_ms);
                if due {
                    tracing::info!(source, target, "comparing everything, because it is due");
                }
                due
            }
        }
    }

    /// Says that all of the source is read, and why.
    fn read_all(&self, reason: Reason) {
        tracing::warn!(
            source = self.terms.source,
            target = self.terms.target,
            reason = reason.as_str(),
            "no manifest fits this increment: reading all of the source once"
        );
        self.tell(|told| told.rebuilt = Some(reason));
    }

    /// The volume at the tip.
    pub fn reader(&self) -> Option<Reader> {
        self.session.as_ref().map(|session| session.reader.clone())
    }

    /// The increment begins, at some chunk. `kind` is what the plan came to be.
    ///
    /// # Errors
    /// What the storage of the manifest says.
    pub fn begin(&mut self, begin: Begin) -> Result<(), Failure> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if session.mode == Mode::Reading {
            return Ok(());
        }
        // A scan goes over all of it, also over what was delivered before.
        let from = if session.plan.kind == PlanKind::Scan { 0 } else { begin.from };
        let Session { manifest, plan, touched, .. } = session;
        let mut told = |entry: &Entry| touched.note(entry);
        match manifest.begin(plan.tip.as_ref(), from, &mut told) {
            Ok(true) => Ok(()),
            Ok(false) => {
                session.mode = Mode::Reading;
                if session.plan.kind == PlanKind::Incremental {
                    self.read_all(Reason::ManifestMissing);
                }
                Ok(())
            }
            Err(error) => self.lost(error),
        }
    }

    /// Hears of items that are about to be announced.
    ///
    /// # Errors
    /// That the source cannot be read, or the manifest not be written.
    pub fn note<'a>(&mut self, items: impl Iterator<Item = &'a Item>) -> Result<(), Failure> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if session.mode == Mode::Reading {
            return Ok(());
        }
        let entries = session.entries(items)?;
        match session.note(&entries) {
            Ok(()) => Ok(()),
            Err(error) => self.lost(error),
        }
    }

    /// Hears of the ids of chunks that were scanned, ascending.
    ///
    /// # Errors
    /// That the manifest cannot be written.
    pub fn note_scanned(&mut self, first: u64, ids: &[ChunkId]) -> Result<(), Failure> {
        let Some(session) = &mut self.session else { return Ok(()) };
        match session.note_scanned(first, ids) {
            Ok(()) => Ok(()),
            Err(error) => self.lost(error),
        }
    }

    /// Whether it wants to hear what the map says, after all was scanned: that is held against what
    /// differs.
    pub fn wants_map(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.found.is_some())
    }

    /// Hears of a change that the map of a volume of `size` bytes tells of.
    pub fn note_mapped(&mut self, change: &Change, size: u64) {
        if let Some(session) = &mut self.session {
            session.touched.note_change(change, size);
        }
    }

    /// All of the increment has gone by: checks what its map calls unchanged, and says which root
    /// the target must come to, if that is known. A `tip` without a name is named by that root.
    ///
    /// # Errors
    /// [`Reason::AuditMismatch`], or that the source cannot be read.
    pub fn conclude(
        &mut self,
        tip: Option<Generation>,
        size: u64,
    ) -> Result<Option<Root>, Failure> {
        let Some(session) = &mut self.session else { return Ok(None) };
        session.check_cut(size);
        if session.found.is_some() {
            let missed = session.missed(size);
            self.tell(|told| told.missed = Some(missed.stale));
            if missed.stale > 0 {
                self.map_missed(tip, missed)?;
            }
        }
        let Some(session) = &mut self.session else { return Ok(None) };
        let mut pass = Pass::covering(chunk_count(size), self.terms.now_ms);
        if session.plan.kind == PlanKind::Incremental && session.mode == Mode::Following {
            match self.audit(tip, size) {
                Ok(advanced) => pass = advanced,
                Err(Finding::Failure(failure)) => return Err(failure),
                Err(Finding::Manifest(error)) => self.lost(error)?,
            }
        }
        // Once more if what is listed turns out not to be what was written.
        for _ in 0..2 {
            let Some(session) = &mut self.session else { return Ok(None) };
            if session.mode == Mode::Reading {
                pass = Pass::covering(chunk_count(size), self.terms.now_ms);
            }
            match session.conclude(tip, size, &pass) {
                Ok(root) => return Ok(Some(root)),
                Err(Finding::Failure(failure)) => return Err(failure),
                Err(Finding::Manifest(error)) => self.lost(error)?,
            }
        }
        Ok(None)
    }

    /// The target holds the tip. Nothing that goes wrong here changes that: it is warned of, and
    /// the manifest is made again from data. A manifest that does not read back is an incident.
    pub fn committed(&mut self, committed: &Committed) {
        let Some(mut session) = self.session.take() else { return };
        let trusted = session.plan.kind != PlanKind::Incremental;
        if trusted {
            // Once a run is enough.
            self.terms.compare = Compare::Never;
        }
        if let Err(error) = session.manifest.commit(trusted.then_some(self.terms.now_ms)) {
            tracing::warn!(
                source = self.terms.source,
                error = crate::chain(&error),
                "cannot update the manifest: the next run makes it again from the data"
            );
            if let ManifestError::Damaged(what) = error {
                self.tell(|told| told.rebuilt = Some(Reason::ManifestDamaged));
                let (tip, base) = (Some(committed.generation), session.base.map(|b| b.generation));
                let detail = format!("{what}: the next run makes it again from data");
                let found = self.incident(Reason::ManifestDamaged, detail);
                // That it cannot be kept is logged; the target has committed all the same.
                let _ = self.keep(Incident { base, tip, ..found });
            }
        }
        let Terms { incidents, source, target, now_ms, .. } = &self.terms;
        if trusted && let Err(error) = incidents.mend(source, target, *now_ms, committed.generation)
        {
            tracing::warn!(error = crate::chain(&error), "cannot mark the incident as mended");
        }
    }

    /// The target has refused to commit what it came to.
    ///
    /// # Errors
    /// That the finding cannot be kept.
    pub fn refused(&mut self, reason: Reason, detail: &str) -> Result<(), Failure> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if reason != Reason::RootMismatch {
            return Ok(());
        }
        session.manifest.set_suspect(reason).map_err(|e| in_manifest(&e))?;
        let (tip, base) = (session.plan.tip, session.base.map(|held| held.generation));
        self.keep(Incident { base, tip, ..self.incident(reason, detail.to_owned()) })
    }

    /// The manifest cannot be used any more: what is damaged is made again from data, and what
    /// cannot be written is left.
    fn lost(&mut self, error: ManifestError) -> Result<(), Failure> {
        let Some(session) = &mut self.session else { return Ok(()) };
        match error {
            ManifestError::Damaged(what) if session.mode == Mode::Following => {
                session.mode = Mode::Reading;
                let (tip, base) = (session.plan.tip, session.base.map(|held| held.generation));
                let detail = format!("{what}: it is made again from data");
                let found = self.incident(Reason::ManifestDamaged, detail);
                self.keep(Incident { base, tip, ..found })?;
                self.read_all(Reason::ManifestDamaged);
            }
            error => {
                self.session = None;
                tracing::warn!(
                    source = self.terms.source,
                    error = crate::chain(&error),
                    "cannot use the manifest: this run does not check what the map calls unchanged"
                );
                self.tell(|told| told.by_manifest = false);
            }
        }
        Ok(())
    }

    /// Reads a share of what the map calls unchanged.
    fn audit(&mut self, tip: Option<Generation>, size: u64) -> Result<Pass, Finding> {
        let Some(session) = &mut self.session else {
            return Ok(Pass::covering(chunk_count(size), self.terms.now_ms));
        };
        let Terms { age_ms, now_ms, seed, sample, .. } = self.terms;
        let chunks = chunk_count(size);
        let changed = session.touched.count();
        let before = match session.manifest.pass() {
            Some(pass) => pass.resized(chunks),
            None => Pass::covering(chunks, 0),
        };
        let rolled = before.share(now_ms, age_ms);
        let sampled = match sample {
            Some(count) => count.min(chunks),
            None => sample_size(chunks, changed, SAMPLE_MAX),
        };
        let mut checked = Checked::default();
        for range in before.ranges(rolled) {
            let mut next = session.next_to_check(range.start)?;
            while next < range.end {
                let end = range.end.min(next + SPAN_CHUNKS);
                session.check(&(next..end).collect::<Vec<_>>(), size, &mut checked)?;
                next = session.next_to_check(end)?;
            }
        }
        for indices in draw(&seed, chunks, sampled).chunks(SAMPLE_BATCH) {
            session.check(indices, size, &mut checked)?;
        }
        let pass = before.advanced(rolled, now_ms);
        let audit = Audit {
            chunks,
            changed,
            sampled,
            rolled,
            bytes_read: checked.bytes_read,
            seed,
            stale: checked.stale,
            stale_bound: stale_bound(chunks, sampled),
            find_chance: find_probability(chunks, changed / 100, sampled),
            oldest_ms: now_ms.saturating_sub(pass.oldest_ms()),
            age_ms,
        };
        self.tell(|told| told.audit = Some(audit));
        if checked.stale == 0 {
            return Ok(pass);
        }
        Err(Finding::Failure(self.mismatch(tip, &checked)?))
    }

    /// What was found is kept, and the next increment compares all.
    fn mismatch(&mut self, tip: Option<Generation>, checked: &Checked) -> Result<Failure, Finding> {
        let Some(session) = &mut self.session else {
            return Err(Finding::Failure(Failure::worker_gone()));
        };
        session.manifest.set_suspect(Reason::AuditMismatch).map_err(Finding::Manifest)?;
        let base = session.base.map(|held| held.generation);
        let first = checked.extents.first().map_or(0, |extent| extent.offset());
        let detail = format!(
            "{} of the chunks that were read again differ from the last generation, although the map \
             calls them unchanged, the first at offset {first}. Nothing of this increment was \
             committed, and the run compares everything",
            checked.stale
        );
        self.keep(Incident {
            base,
            tip,
            extents: checked.extents.clone(),
            chunks: checked.stale,
            ..self.incident(Reason::AuditMismatch, detail.clone())
        })
        .map_err(Finding::Failure)?;
        Ok(Failure::new(Reason::AuditMismatch, detail))
    }

    /// What was found is kept. It is on its way already, as all is compared.
    fn map_missed(&mut self, tip: Option<Generation>, missed: Checked) -> Result<(), Failure> {
        let Checked { stale, extents, .. } = missed;
        let first = extents.first().map_or(0, |extent| extent.offset());
        let detail = format!(
            "{stale} chunks differ from the last generation, although the map calls \
             them unchanged, the first at offset {first}: all was compared, and they are sent"
        );
        let base = self.session.as_ref().and_then(|session| session.base);
        let base = base.map(|held| held.generation);
        let found = self.incident(Reason::AuditMismatch, detail);
        self.keep(Incident { base, tip, extents, chunks: stale, ..found })
    }

    fn found(
        &self,
        reason: Reason,
        detail: String,
        state: &TargetState,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let (base, tip) = (state.generation, plan.tip);
        self.keep(Incident { base, tip, ..self.incident(reason, detail) })
    }

    fn incident(&self, reason: Reason, detail: String) -> Incident {
        let Terms { source, target, now_ms, .. } = &self.terms;
        Incident::found(reason, detail, [source, target], *now_ms)
    }

    fn keep(&self, incident: Incident) -> Result<(), Failure> {
        let Incident { source, target, reason, detail, .. } = &incident;
        tracing::error!(source, target, reason = reason.as_str(), "{detail}");
        let kept = self.terms.incidents.keep(&incident);
        kept.map(drop).map_err(|error| Failure::new(Reason::Failed, crate::chain(&error)))
    }
}
