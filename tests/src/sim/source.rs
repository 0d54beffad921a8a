//! The source side: the real adapters over what the storage wrote, and the bugs that can be
//! planted between them and the session.

use std::{io::Cursor, sync::Arc};

use driftline_drbd::{DrbdError, DrbdVolume, Layout, SharedVolume};
use driftline_extent::{
    BLOCK_LEN, CHUNK_LEN, Change, Explained, Extent, Finish, Generation, Plan, PlanKind, Reason,
    Scheme, Source, Standing, TargetState, Volume, VolumeId,
};
use driftline_zfs::{StreamError, ZvolStream};

use super::{
    Bug,
    storage::{Kind, Snapshot, Storage},
};
use crate::disk::Image;

/// Why a source said no.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Drbd(#[from] DrbdError),
    #[error("{1}")]
    Said(Reason, &'static str),
}

impl Explained for SourceError {
    fn reason(&self) -> Reason {
        match self {
            Self::Stream(error) => error.reason(),
            Self::Drbd(error) => error.reason(),
            Self::Said(reason, _) => *reason,
        }
    }
}

/// How a source behaves in one run.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    /// The user agreed to a full copy.
    pub(super) consent: bool,
    /// Whether each snapshot on the way is sent, or only the newest.
    pub(super) stepwise: bool,
    /// How blocks of a stream are compressed.
    pub(super) codec: u8,
    /// Blocks that a stream tells of if they are holes.
    pub(super) noise: Vec<u64>,
    /// This bit of the stream, modulo its length, is the other one.
    pub(super) flip: Option<u64>,
    /// The stream ends after so many bytes, modulo its length.
    pub(super) cut: Option<u64>,
    /// After so many changes the storage cannot be read any more.
    pub(super) fails_after: Option<u64>,
    pub(super) bug: Option<Bug>,
}

/// An increment that was offered.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) kind: PlanKind,
    /// Its name, where it has one beforehand.
    pub(super) tip: Option<Generation>,
    /// What the volume holds there.
    pub(super) image: Image,
    /// What the record of change says, for an increment.
    pub(super) claim: Option<Vec<Extent>>,
}

/// The adapter at work.
enum Inner {
    Stream(Box<ZvolStream<Cursor<Vec<u8>>>>),
    /// As a live one: what reads the snapshot at random is let go of with it.
    Drbd(Box<DrbdVolume>, Arc<SharedVolume>),
    Plain(Plain),
    Nothing,
}

/// One run of the source.
pub(super) struct SimSource<'a> {
    storage: &'a Storage,
    manner: &'a Manner,
    inner: Inner,
    told: TargetState,
    /// Whether the tip was shown for reading, and nothing else was asked of it.
    shown: bool,
    /// What was planned so far, in order.
    pub(super) planned: Vec<Planned>,
    /// Whether the last of them is of the last plan.
    noted: bool,
    changes: u64,
}

impl<'a> SimSource<'a> {
    pub(super) fn new(storage: &'a Storage, manner: &'a Manner) -> Result<Self, SourceError> {
        let inner = match (storage.kind, storage.newest()) {
            (Kind::Zfs, _) | (_, None) => Inner::Nothing,
            (Kind::Drbd, Some(newest)) => {
                let log = manner.bug != Some(Bug::NoActivityLog);
                let node = manner.bug != Some(Bug::ForgetsTheNode);
                let meta = Storage::metadata(newest, log, node);
                let data = Arc::new(newest.image.clone());
                let volume = DrbdVolume::open(data, Some((meta, Layout::External)))?;
                let shared = Arc::<SharedVolume>::default();
                shared.set(Some(volume.volume()));
                let volume =
                    volume.allow_full(manner.consent).rotated(newest.rotated || storage.believes);
                Inner::Drbd(Box::new(volume), shared)
            }
            (Kind::Plain, Some(newest)) => Inner::Plain(Plain {
                image: newest.image.clone(),
                overwrite: manner.consent,
                delivered: false,
                next: 0,
            }),
        };
        let told = TargetState::nothing();
        let planned = Vec::new();
        let (shown, noted, changes) = (false, false, 0);
        Ok(Self { storage, manner, inner, told, shown, planned, noted, changes })
    }

    /// The volume for reading at random.
    pub(super) fn volume(&self) -> Option<Arc<dyn Volume + Send + Sync>> {
        match &self.inner {
            Inner::Drbd(_, shared) => Some(shared.clone()),
            Inner::Plain(plain) => Some(Arc::new(plain.image.clone())),
            Inner::Stream(_) | Inner::Nothing => None,
        }
    }

    /// The snapshot that is next after `base`.
    fn tip_after(&self, base: Option<&Generation>) -> Option<&'a Snapshot> {
        let whole = || self.storage.snapshots.iter().filter(|snapshot| !snapshot.bookmark);
        let at = base.and_then(|base| {
            self.storage.snapshots.iter().position(|s| s.generation.as_ref() == Some(base))
        });
        match at.filter(|_| self.manner.stepwise) {
            Some(at) => self.storage.snapshots[at + 1..].iter().find(|s| !s.bookmark),
            None => whole().next_back(),
        }
        .or_else(|| whole().next_back())
    }

    /// Does what the live adapter does: looks for the base, lets a stream be made, and reads it.
    fn plan_stream(&mut self, base: Option<&Generation>) -> Result<Plan, SourceError> {
        let storage = self.storage;
        let Some(tip) = self.tip_after(base) else {
            return Err(SourceError::Said(Reason::Failed, "there is no snapshot"));
        };
        if let (Some(held), true) = (base, tip.generation.as_ref() == base)
            && let Inner::Nothing = self.inner
        {
            return Ok(up_to_date(Some(*held)));
        }
        let mut from = base.filter(|base| storage.find(base).is_some());
        let fresh = self.planned.is_empty();
        let wrong = self.manner.bug == Some(Bug::WrongBase);
        if base.is_some() && from.is_none() && wrong {
            // The bug: some snapshot is as good as another.
            from = storage.snapshots.first().and_then(|first| first.generation.as_ref());
        } else if base.is_some() && (from.is_none() || (self.manner.consent && fresh)) {
            if !self.manner.consent {
                let detail = "no snapshot or bookmark has the target's guid";
                return Err(SourceError::Said(Reason::BaseMismatch, detail));
            }
            from = None;
        }
        let (codec, noise) = (self.manner.codec, &self.manner.noise[..]);
        let mut bytes = storage.stream(from, tip, (codec, noise));
        if let Some(bit) = self.manner.flip {
            let bit = bit % (8 * bytes.len() as u64);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        if let Some(cut) = self.manner.cut {
            bytes.truncate((cut % bytes.len() as u64) as usize);
        }
        let mut stream = ZvolStream::new(Cursor::new(bytes)).allow_full(self.manner.consent);
        let plan = match base {
            Some(base) if wrong && from != Some(base) => {
                Plan { base: Some(*base), ..stream.plan(from)? }
            }
            _ => stream.plan(base)?,
        };
        self.inner = Inner::Stream(Box::new(stream));
        // The live adapter has asked for it.
        Ok(Plan { size: Some(tip.image.len), ..plan })
    }

    fn note(&mut self, plan: &Plan) {
        self.noted = false;
        let tip = match self.storage.kind {
            Kind::Zfs => plan.tip.and_then(|tip| self.storage.find(&tip)),
            Kind::Drbd | Kind::Plain => self.storage.newest(),
        };
        let Some(tip) = tip.filter(|_| plan.kind != PlanKind::UpToDate) else { return };
        let base = plan.base.filter(|_| plan.kind == PlanKind::Incremental);
        let claim = base.and_then(|base| self.storage.claim(&base, tip, &self.manner.noise));
        let (kind, image) = (plan.kind, tip.image.clone());
        self.noted = true;
        self.planned.push(Planned { kind, tip: tip.generation, image, claim });
    }
}

fn up_to_date(tip: Option<Generation>) -> Plan {
    Plan {
        kind: PlanKind::UpToDate,
        volume: None,
        base: None,
        tip,
        size: None,
        standing: Standing::Proven,
        bytes_expected: 0,
    }
}

impl Source for SimSource<'_> {
    type Error = SourceError;

    fn learn(&mut self, target: &TargetState) {
        self.told = target.clone();
        if let Inner::Drbd(volume, _) = &mut self.inner {
            volume.learn(target);
        }
    }

    fn recall(&mut self, record: Option<&[u8]>) {
        if let Inner::Drbd(volume, _) = &mut self.inner {
            volume.recall(record);
        }
    }

    fn record(&self) -> Option<Vec<u8>> {
        match &self.inner {
            Inner::Drbd(volume, _) => volume.record(),
            Inner::Stream(_) | Inner::Plain(_) | Inner::Nothing => None,
        }
    }

    fn is_unnamed(&mut self) -> Result<bool, SourceError> {
        match &mut self.inner {
            Inner::Drbd(volume, _) => Ok(volume.is_unnamed()?),
            Inner::Stream(_) | Inner::Plain(_) | Inner::Nothing => Ok(false),
        }
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, SourceError> {
        let plan = match &mut self.inner {
            Inner::Drbd(volume, shared) => {
                let plan = volume.plan(base)?;
                if plan.kind == PlanKind::UpToDate {
                    shared.set(None);
                }
                plan
            }
            Inner::Plain(plain) => plain.plan(base)?,
            Inner::Stream(_) | Inner::Nothing if self.storage.kind == Kind::Zfs => {
                if matches!(self.inner, Inner::Stream(_)) {
                    self.inner = Inner::Nothing;
                }
                self.plan_stream(base)?
            }
            _ => return Err(SourceError::Said(Reason::Failed, "there is no snapshot")),
        };
        self.shown = false;
        self.note(&plan);
        Ok(plan)
    }

    /// As a live ZFS: a stream of all of the tip.
    fn plan_whole(&mut self) -> Result<Option<Plan>, SourceError> {
        if self.storage.kind != Kind::Zfs {
            return Ok(None);
        }
        if self.noted {
            self.planned.pop();
        }
        self.inner = Inner::Nothing;
        let plan = self.plan_stream(None)?;
        self.note(&plan);
        Ok(Some(plan))
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, SourceError> {
        self.shown = false;
        loop {
            self.changes += 1;
            if self.manner.fails_after.is_some_and(|after| self.changes > after) {
                return Err(SourceError::Said(Reason::Failed, "the storage cannot be read"));
            }
            let change = match &mut self.inner {
                Inner::Stream(stream) => stream.next_change(from)?,
                Inner::Drbd(volume, _) => volume.next_change(from)?,
                Inner::Plain(plain) => plain.next_change(from),
                Inner::Nothing => None,
            };
            let skipped = self.manner.bug == Some(Bug::SkipExtent)
                && self.planned.last().is_some_and(|plan| plan.kind == PlanKind::Incremental)
                && self.changes.is_multiple_of(3);
            if !(skipped && matches!(change, Some(Change::Data { .. }))) {
                return Ok(change);
            }
        }
    }

    fn finish(&mut self) -> Result<Finish, SourceError> {
        // What was read is the snapshot, which does not change.
        if let (true, Inner::Stream(_), Some(Planned { tip: Some(tip), image, .. })) =
            (self.shown, &self.inner, self.planned.last())
        {
            return Ok(Finish { tip: *tip, size: Some(image.len), root: None });
        }
        Ok(match &mut self.inner {
            Inner::Stream(stream) => stream.finish()?,
            Inner::Drbd(volume, _) => volume.finish()?,
            Inner::Plain(_) | Inner::Nothing => {
                return Err(SourceError::Said(Reason::Failed, "it ends with its root"));
            }
        })
    }

    /// What stands at the tip, as the storage shows it: a plain volume has no map that could be
    /// checked by it.
    fn reader(&mut self) -> Result<Option<Arc<dyn Volume + Send + Sync>>, SourceError> {
        self.shown = true;
        Ok(match &self.inner {
            Inner::Stream(_) => {
                self.planned.last().map(|planned| Arc::new(planned.image.clone()) as _)
            }
            Inner::Drbd(_, shared) => Some(shared.clone()),
            Inner::Plain(_) | Inner::Nothing => None,
        })
    }

    fn bytes_read(&self) -> u64 {
        0
    }
}

/// A plain file: everything at first, then hashes.
struct Plain {
    image: Image,
    overwrite: bool,
    delivered: bool,
    next: u64,
}

impl Plain {
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, SourceError> {
        let kind = match base {
            _ if std::mem::replace(&mut self.delivered, true) => PlanKind::UpToDate,
            None => PlanKind::Full,
            Some(base) if base.scheme() == Scheme::CONTENT => PlanKind::Scan,
            Some(_) if self.overwrite => PlanKind::Scan,
            Some(_) => return Err(SourceError::Said(Reason::BaseMismatch, "no plain volume's")),
        };
        Ok(Plan {
            kind,
            volume: Some(VolumeId([7; 16])),
            size: Some(self.image.len),
            standing: Standing::Suspect(Reason::MapMissing),
            ..up_to_date(None)
        })
    }

    fn next_change(&mut self, from: u64) -> Option<Change> {
        let data = self.image.next_data(self.next.max(from))?;
        let piece = data.pieces(CHUNK_LEN).next()?;
        let piece: Extent = piece.align_out(BLOCK_LEN).clamp(self.image.len)?;
        let mut bytes = vec![0; piece.len() as usize];
        self.image.read(piece.offset(), &mut bytes);
        self.next = piece.end();
        Some(Change::Data { offset: piece.offset(), bytes })
    }
}
