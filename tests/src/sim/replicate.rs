//! One run of a history: a session between the real cores, and what goes wrong in it.

use std::io;

use driftline_extent::{Committed, Explained, Generation, PlanKind, Reason};
use driftline_transport::{
    TransportError,
    auditor::{self, Auditor, Compare},
};
use driftline_trust::{Incidents, Pushed, Pushes};
use driftline_wire::{SessionError, Verb};

use super::{
    Bug, Fault,
    check::{Ended, Run},
    disks,
    history::History,
    source::{Manner, Planned, SimSource},
};
use crate::{
    disk::{Rng, Spoil},
    link::{self, Damage, Delivery, Random},
    session::{self, Script},
};

const DAY_MS: u64 = 86_400_000;

/// What the target is called in the source's books.
const TARGET: &str = "the replica";

/// What goes wrong in a run. At most one thing does.
#[derive(Clone, Debug)]
pub(super) enum Mishap {
    None,
    /// A frame to the target, or to the source.
    Frame(bool, link::Fault),
    /// After so many operations of the target's disks nothing works any more. Power is lost if
    /// there is a luck for what was not synced; the second stop is in the recovery.
    Stop(u64, Option<u64>, Option<u64>),
    /// An operation of the target's disks fails.
    Fail(u64, io::ErrorKind),
    /// A write of the target does not arrive as it was.
    Spoil(u64, Spoil),
    StreamFlip(u64),
    StreamCut(u64),
    SourceFails(u64),
    Clock(u64, u64),
    /// The listening side is busy for so many milliseconds before it accepts.
    Busy(u64),
    /// After so many operations of the target's disks there is room for so many pages more.
    Fill(u64, u64),
}

impl Mishap {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        // Small numbers are as likely as large ones.
        let few = |rng: &mut Rng| {
            let scale = 1 + rng.below(6);
            rng.below(1 << scale)
        };
        match rng.below(20) {
            0..7 => Self::None,
            7..11 => {
                let damage = match rng.below(8) {
                    0..3 => Damage::Break(rng.next_u64() as usize >> 1),
                    3 => Damage::Cut,
                    4 => Damage::Flip(rng.next_u64() as usize >> 1),
                    5 => Damage::Duplicate,
                    6 => Damage::Swap,
                    _ => Damage::Drop,
                };
                let frame = few(rng) as usize;
                Self::Frame(rng.below(3) > 0, link::Fault { frame, damage })
            }
            11..14 => {
                let scale = 1 + rng.below(8);
                let luck = (rng.below(4) > 0).then(|| rng.next_u64());
                let again = (rng.below(3) == 0).then(|| few(rng));
                Self::Stop(rng.below(1 << scale), luck, again)
            }
            14 => Self::Fail(few(rng), io::ErrorKind::Other),
            15 => Self::Fail(few(rng), io::ErrorKind::StorageFull),
            16 => {
                let bit = rng.next_u64() >> 1;
                let spoil = if rng.below(2) == 0 { Spoil::Lose } else { Spoil::Flip(bit) };
                Self::Spoil(few(rng), spoil)
            }
            17 => match rng.below(3) {
                0 => Self::StreamFlip(rng.next_u64()),
                1 => Self::StreamCut(rng.next_u64()),
                _ => Self::SourceFails(few(rng)),
            },
            18 => Self::Clock(few(rng), [70_000, 3_700_000][rng.below(2) as usize]),
            _ => Self::SourceFails(few(rng)),
        }
    }

    /// A side that is busy, or a disk that fills up.
    pub(super) fn draw_wide(rng: &mut Rng) -> Self {
        let (scale, room) = (1 + rng.below(8), rng.below(7));
        match rng.below(3) {
            0 => Self::Busy([59_000, 61_000, 75_000, 600_000][rng.below(4) as usize]),
            _ => Self::Fill(rng.below(1 << scale), rng.below(1 << room)),
        }
    }

    const fn fault(&self) -> Option<Fault> {
        Some(match self {
            Self::None => return None,
            Self::Frame(..) => Fault::FrameDamaged,
            Self::Stop(..) => Fault::TargetDied,
            Self::Fail(_, io::ErrorKind::StorageFull) => Fault::DiskFull,
            Self::Fail(..) => Fault::DiskFailed,
            Self::Spoil(..) => Fault::DataSpoilt,
            Self::StreamFlip(_) => Fault::StreamFlipped,
            Self::StreamCut(_) | Self::SourceFails(_) => Fault::StreamCut,
            Self::Clock(..) => Fault::ClockJumped,
            Self::Busy(_) => Fault::PeerBusy,
            Self::Fill(..) => Fault::DiskFilled,
        })
    }
}

/// What came of a session.
struct Told {
    ended: Ended,
    planned: Vec<Planned>,
    committed: usize,
    missed: Option<u64>,
}

impl Told {
    /// There was none.
    fn refused(error: &impl Explained) -> Self {
        let ended = Ended::Refused(error.reason(), error.to_string());
        Self { ended, planned: Vec::new(), committed: 0, missed: None }
    }
}

/// Why a session ended, in one word.
fn reason_of(error: &TransportError) -> Reason {
    match error {
        TransportError::Local(failure) => failure.reason,
        TransportError::Session(SessionError::Refused { reason, .. }) => *reason,
        _ => Reason::Failed,
    }
}

impl History<'_> {
    /// Replicates once. Whether the run said that it went well.
    pub(super) fn replicate(
        &mut self,
        consent: bool,
        mishap: &Mishap,
        rng: &mut Rng,
    ) -> Result<bool, String> {
        if self.storage.newest().is_none() {
            self.snapshot(rng);
        }
        let wide = self.next.take().filter(|_| matches!(mishap, Mishap::None));
        let mishap = wide.as_ref().unwrap_or(mishap);
        self.stats.sessions += 1;
        self.say(format!("replicate, consent: {consent}, {mishap:?}"));
        if let Some(fault) = mishap.fault() {
            self.befalls(fault);
        }
        let spoilt = matches!(mishap, Mishap::Spoil(..)) && !self.is_latent();
        self.world.drop_cache();
        let (before, lasting) = (self.world.image("volume"), self.world.lasting_len("volume"));
        match mishap {
            Mishap::Stop(after, ..) => self.world.stop_after(*after),
            Mishap::Fail(after, kind) => self.world.fail_at(*after, *kind),
            Mishap::Spoil(after, spoil) => self.world.spoil_at(*after, *spoil),
            Mishap::Fill(after, pages) => self.world.fill_up(*after, *pages),
            _ => {}
        }
        let Told { ended, planned, committed, missed } = self.session(consent, mishap, rng);
        self.say(format!("  {} planned, {committed} committed, {ended:?}", planned.len()));
        match mishap {
            Mishap::Stop(_, Some(luck), again) => {
                self.world.crash(*luck);
                if let Some(after) = again {
                    self.world.stop_after(*after);
                    drop(disks::open(&self.world, self.kept, self.options.bug));
                    self.world.crash(luck.rotate_left(9));
                }
            }
            Mishap::Fill(..) => self.check_full()?,
            _ => self.world.restart(),
        }
        if let (Mishap::Spoil(..), Some("state" | "ids" | "overlay")) =
            (mishap, self.world.spoilt())
        {
            self.befalls(Fault::BooksSpoilt);
        }
        let ok = matches!(ended, Ended::Well);
        let undisturbed = matches!(mishap, Mishap::None | Mishap::Busy(_));
        let run = Run {
            before,
            lasting,
            planned,
            committed,
            ended,
            consent,
            undisturbed,
            spoilt,
            missed,
        };
        self.check(run)?;
        Ok(ok)
    }

    /// What checks the source's maps: in the simulation, all that they call unchanged; or nothing,
    /// and only remembers what it is told.
    fn auditor(&self) -> Auditor {
        let dir = self.trust.path();
        let audit = self.options.audit;
        let asked = audit && self.stats.sessions % 5 == 4;
        let terms = auditor::Terms {
            dir: dir.join("manifest"),
            incidents: Incidents::new(dir.join("incidents")),
            source: "the source".to_owned(),
            target: TARGET.to_owned(),
            age_ms: if audit { 30 * DAY_MS } else { u64::MAX },
            sample: Some(if audit { u64::MAX } else { 0 }),
            // Now and then somebody wants to know.
            compare: if asked { Compare::Now } else { Compare::Never },
            // Nothing becomes old where nothing is audited.
            now_ms: DAY_MS * (20_000 + if audit { self.stats.sessions } else { 0 }),
            seed: [7; 32],
        };
        Auditor::new(terms)
    }

    fn pushes(&self) -> Pushes {
        Pushes::new(self.trust.path().join("pushed"))
    }

    /// What the source knows to have arrived at the target.
    pub(super) fn remembers(&self) -> Option<Generation> {
        self.pushes().of(TARGET).ok()??.generation
    }

    fn remember(&self, committed: &[Committed]) {
        let arrived = committed.last().map(|committed| committed.generation);
        let pushed = Pushed {
            source: "the source".to_owned(),
            target: TARGET.to_owned(),
            leads_to: None,
            last_ms: 1,
            generation: arrived.or_else(|| self.held.as_ref().map(|held| held.generation)),
            as_stream: false,
        };
        self.pushes().keep(&pushed).unwrap_or_else(|error| panic!("{error}"));
    }

    fn session(&mut self, consent: bool, mishap: &Mishap, rng: &mut Rng) -> Told {
        let replica = match disks::open(&self.world, self.kept, self.options.bug) {
            Ok(replica) => replica,
            Err(error) => return Told::refused(&error),
        };
        let blocks = self.storage.live.len / self.storage.block_len.max(512) + 1;
        let manner = Manner {
            consent,
            stepwise: rng.below(3) == 0,
            codec: [0, 0, 0, 15][rng.below(4) as usize],
            noise: (0..rng.below(6)).map(|_| rng.below(blocks)).collect(),
            flip: if let Mishap::StreamFlip(bit) = mishap { Some(*bit) } else { None },
            cut: if let Mishap::StreamCut(at) = mishap { Some(*at) } else { None },
            fails_after: if let Mishap::SourceFails(after) = mishap { Some(*after) } else { None },
            bug: self.options.bug,
        };
        let mut source = match SimSource::new(&self.storage, &manner) {
            Ok(source) => source,
            Err(error) => return Told::refused(&error),
        };
        let forgets = self.options.bug == Some(Bug::CopiesAVanishedTarget);
        let mut script = Script {
            verb: if rng.below(2) == 0 { Verb::Push } else { Verb::Pull },
            batch_items: [1, 3, 64][rng.below(3) as usize],
            compression: (rng.below(4) == 0).then_some(1),
            overwrite: consent,
            held: if forgets { None } else { self.remembers() },
            deaf: self.options.bug == Some(Bug::SilentAfterMinute),
            ..Script::default()
        };
        if rng.below(8) == 0 {
            script.delivery = Delivery::Pieces(Random(rng.next_u64()));
        }
        match mishap {
            Mishap::Frame(true, fault) => script.to_target = Some(fault.clone()),
            Mishap::Frame(false, fault) => script.to_source = Some(fault.clone()),
            Mishap::Clock(after, ms) => script.jump = Some((*after, *ms)),
            Mishap::Busy(ms) => script.busy_ms = *ms,
            _ => {}
        }
        let links = (self.options.links)(rng.next_u64(), script.verb);
        let volume = source.volume();
        let volume = volume.as_deref().map(|volume| volume as &dyn driftline_extent::Volume);
        let mut auditor = self.auditor();
        let audit_report = auditor.audit_report();
        let auditor = Some(&mut auditor);
        let outcome = session::run_audited(links, &mut source, volume, replica, &script, auditor);
        drop(outcome.replica);
        let mut planned = std::mem::take(&mut source.planned);
        // What was planned as an increment may have been offered as a scan.
        let offered = outcome.offered.iter().filter(|plan| plan.kind != PlanKind::UpToDate);
        planned.iter_mut().zip(offered).for_each(|(planned, offered)| planned.kind = offered.kind);
        if outcome.source.is_ok() {
            self.remember(&outcome.committed);
        }
        let ended = match (&outcome.source, &outcome.target) {
            (Ok(()), _) => Ended::Well,
            // The side that failed knows why.
            (Err(_), Err(error @ TransportError::Local(_))) | (Err(error), _) => {
                Ended::Refused(reason_of(error), error.to_string())
            }
        };
        let missed = audit_report.lock().ok().and_then(|told| told.missed);
        Told { ended, planned, committed: outcome.committed.len(), missed }
    }
}
