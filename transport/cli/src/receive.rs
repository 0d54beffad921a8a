//! A data set of this machine's ZFS as a target: `zfs receive` applies what arrives.

mod policy;

use std::{cmp::Reverse, io::Write, mem};

use driftline_extent::{Explained, Generation, Offer, POINTS_MAX, Point as Told, Reason};
use driftline_target::{Sink, SinkState};
use driftline_zfs::{
    Dataset, DatasetName, Head, NameError, Point,
    host::{ReceiveRequest, Receiving, Zfs, ZfsError, warn_of},
    select::Divergence,
};

use self::policy::{Decision, PolicyError, Standing, decide};
use crate::args;

/// Why a stream cannot be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// Something stands there that was not received.
    #[error(
        "{0} exists and has no snapshot: it was not received, and nothing is overwritten; name \
         another data set below it, or make room: zfs rename {0} {0}-old"
    )]
    Foreign(DatasetName),
    /// It was written since its newest snapshot.
    #[error(transparent)]
    Diverged(#[from] Divergence),
    /// It would be received, and be worth less than it seems.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It was to be encrypted.
    #[error(
        "what was received is in plain text in {0}, below a data set that is encrypted: look at \
         `zfs get encryption`, destroy it, and report this with the version of ZFS"
    )]
    PlainText(DatasetName),
    /// The child ended before the stream did, and was content.
    #[error("zfs receive took only a part of the stream into {0}: {1}")]
    Cut(DatasetName, std::io::Error),
    /// A data set that the source has below its own cannot be here.
    #[error("{0}: rename it at the source, or receive into a data set with a shorter name")]
    Member(NameError),
    #[error("nothing is being received")]
    Idle,
}

impl Explained for ReceiveError {
    fn reason(&self) -> Reason {
        match self {
            Self::Zfs(error) => error.reason(),
            Self::Foreign(_) => Reason::TargetForeign,
            Self::Member(_) => Reason::Unsupported,
            Self::Diverged(error) => error.reason(),
            Self::Policy(error) => error.reason(),
            Self::PlainText(_) => Reason::VerifyFailed,
            Self::Cut(..) | Self::Idle => Reason::Failed,
        }
    }
}

/// Receives into the data set of this name, which need not exist. Nothing is ever rolled back.
#[derive(Debug)]
pub(crate) struct ReceiveSink {
    zfs: Zfs,
    /// What it was opened for.
    own: DatasetName,
    /// What is received into: that, or a data set below it.
    name: DatasetName,
    policy: args::Receive,
    /// From where on data sets above it may be made.
    root: Option<DatasetName>,
    work: Work,
}

/// How far a stream is.
#[derive(Debug)]
enum Work {
    Idle,
    /// It is not known yet how it is received: these are its first bytes.
    Begun {
        found: Found,
        base: Option<u64>,
        bytes: Vec<u8>,
    },
    Receiving {
        receiving: Receiving,
        decision: Decision,
        members: Vec<DatasetName>,
    },
}

/// The data set, and its snapshots, newest first.
type Found = Option<(Dataset, Vec<Point>)>;

impl ReceiveSink {
    pub(crate) fn new(
        zfs: Zfs,
        name: DatasetName,
        policy: args::Receive,
        root: Option<DatasetName>,
    ) -> Self {
        Self { zfs, own: name.clone(), name, policy, root, work: Work::Idle }
    }

    fn look(&self, name: &DatasetName) -> Result<Found, ReceiveError> {
        let Some(dataset) = self.zfs.dataset(name)? else { return Ok(None) };
        let mut points = self.zfs.points(name)?;
        points.retain(Point::is_snapshot);
        points.sort_by_key(|point| Reverse(point.createtxg));
        Ok(Some((dataset, points)))
    }

    /// Refuses what `zfs receive` would refuse, with what a person may do about it.
    fn check(&self, base: Option<u64>) -> Result<Found, ReceiveError> {
        let found = self.look(&self.name)?;
        let Some((dataset, points)) = &found else { return Ok(None) };
        if dataset.receive_resume_token.is_some() {
            return Ok(found);
        }
        if points.is_empty() {
            return Err(ReceiveError::Foreign(self.name.clone()));
        }
        let is_written = dataset.written.is_some_and(|bytes| bytes > 0);
        // Snapshots of this machine's own that hold nothing new are no reason to ZFS either.
        let later = later(points, base);
        let mut are_empty = true;
        for point in later {
            let written = self.zfs.property(point.name.clone(), "written");
            // An old ZFS cannot say.
            are_empty &= written.is_ok_and(|bytes| bytes == "0");
        }
        if is_written || !are_empty {
            return Err(diverged(&self.name, points, later.len(), is_written));
        }
        Ok(found)
    }

    /// What decides how a stream is received, besides its beginning.
    fn standing(&self, found: &Found, head: &Head) -> Result<Standing, ReceiveError> {
        let mut above = std::iter::successors(self.name.parent(), DatasetName::parent);
        let encrypted_above = loop {
            let Some(name) = above.next() else { break None };
            let Some(dataset) = self.zfs.dataset(&name)? else { continue };
            break dataset.encryption.map(|_| name);
        };
        let dataset = found.as_ref().map(|(dataset, _)| dataset.clone());
        let key = dataset.as_ref().and_then(|dataset| dataset.encryption_root.clone());
        let salt = match key.filter(|_| head.encrypted) {
            Some(root) => self.zfs.property(root, "pbkdf2salt")?.parse().ok(),
            None => None,
        };
        let mut has_new = false;
        if encrypted_above.is_some() && dataset.is_some() {
            for member in self.members(head) {
                has_new |= !self.zfs.exists(member)?;
            }
        }
        Ok(Standing {
            dataset,
            has_snapshot: found.as_ref().is_some_and(|(_, points)| !points.is_empty()),
            has_new,
            encrypted_above,
            salt: salt.filter(|salt| *salt != 0),
            // One that is below what this was opened for came by the stream of its tree.
            tree: self
                .root
                .clone()
                .or_else(|| Some(self.own.clone()).filter(|own| *own != self.name)),
        })
    }

    /// Where the data sets of a stream arrive.
    fn members(&self, head: &Head) -> Vec<DatasetName> {
        let below = head.members.iter().filter_map(|member| self.name.join(&member.path).ok());
        let below = below.filter(|member| *member != self.name);
        std::iter::once(self.name.clone()).chain(below).collect()
    }

    /// Starts to receive what begins so.
    fn start(
        &mut self,
        head: &Head,
        found: &Found,
        base: Option<u64>,
    ) -> Result<Work, ReceiveError> {
        let points = found.as_ref().map_or(&[][..], |(_, points)| points);
        // Of a raw increment ZFS wants the base to be the newest, even if the others are empty.
        if head.encrypted && !later(points, base).is_empty() {
            return Err(diverged(&self.name, points, later(points, base).len(), false));
        }
        let abilities = self.zfs.abilities()?;
        let decision = if abilities.properties {
            decide(&self.name, head, &self.standing(found, head)?, &self.policy)?
        } else {
            if !self.policy.exclude.is_empty() || !self.policy.overrides().is_empty() {
                return Err(PolicyError::NoProperties(self.name.clone()).into());
            }
            Decision::default()
        };
        self.tell(&decision);
        if let Some(root) = &self.root {
            self.zfs.make_parents(&self.name, root)?;
        }
        let request = ReceiveRequest {
            resumable: abilities.resume,
            exclude: decision.exclude.clone(),
            overrides: decision.overrides.clone(),
            ..ReceiveRequest::new(self.name.clone())
        };
        let receiving = self.zfs.receive(&request)?;
        Ok(Work::Receiving { receiving, decision, members: self.members(head) })
    }

    fn tell(&self, decision: &Decision) {
        let dataset = &self.name;
        if !decision.left_out.is_empty() {
            let properties = decision.left_out.join(", ");
            tracing::info!(
                %dataset, properties,
                "these properties of the stream are left out: --take-property NAME (in a \
                 configuration take_properties) takes one over; encryption=off must be set"
            );
        }
        if decision.key_changes {
            tracing::warn!(
                %dataset,
                "from this increment on the source's passphrase opens it; a passphrase that was \
                 set here (`zfs change-key`) or that the source had before does not"
            );
        }
    }

    /// Takes more of the stream, to which nothing is added after its beginning is known.
    fn put(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        let Work::Receiving { receiving, .. } = &mut self.work else {
            return Err(ReceiveError::Idle);
        };
        let Err(error) = receiving.write_all(bytes) else { return Ok(()) };
        // What it says of its end is nearer to the cause than that it does not read.
        self.end()?;
        Err(ReceiveError::Cut(self.name.clone(), error))
    }

    /// Decides how it is received once enough is there, or nothing more comes.
    fn open(&mut self, is_all: bool) -> Result<(), ReceiveError> {
        let Work::Begun { bytes, .. } = &self.work else { return Ok(()) };
        let head = Head::read(bytes).or_else(|| is_all.then(Head::default));
        let Some(head) = head else { return Ok(()) };
        let Work::Begun { found, base, bytes } = mem::replace(&mut self.work, Work::Idle) else {
            return Ok(());
        };
        self.work = self.start(&head, &found, base)?;
        self.put(&bytes)
    }

    /// Waits for the end of what is received. That the target was written an old ZFS tells only
    /// then, and any other if it was written just now.
    fn end(&mut self) -> Result<(), ReceiveError> {
        let Work::Receiving { receiving, decision, members } =
            mem::replace(&mut self.work, Work::Idle)
        else {
            return Err(ReceiveError::Idle);
        };
        match receiving.finish() {
            Ok(said) => {
                warn_of(&self.name, &without_expected(&said, &decision));
                if decision.encrypted {
                    self.check_encryption(&members)?;
                }
                Ok(())
            }
            Err(error) if error.is_modified_target() => {
                // Of a tree it may be any of its data sets.
                let written = error.modified_target().filter(|name| members.contains(name));
                let written = written.unwrap_or_else(|| self.name.clone());
                match &self.look(&written)? {
                    Some((_, points)) if !points.is_empty() => {
                        Err(diverged(&written, points, 0, true))
                    }
                    _ => Err(error.into()),
                }
            }
            Err(error) if error.is_embedded() => {
                Err(PolicyError::Embedded(self.name.clone()).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks ZFS itself whether what arrived is encrypted.
    fn check_encryption(&self, members: &[DatasetName]) -> Result<(), ReceiveError> {
        for member in members {
            // One that its stream has left out, or that was destroyed meanwhile, is not there.
            let Some(dataset) = self.zfs.dataset(member)? else { continue };
            if dataset.encryption.is_none() {
                return Err(ReceiveError::PlainText(dataset.name));
            }
        }
        Ok(())
    }
}

/// This data set has so many snapshots, the newest first, that the source lacks.
fn diverged(dataset: &DatasetName, points: &[Point], later: usize, written: bool) -> ReceiveError {
    let name = |point: &Point| point.name.clone();
    let common = points.get(later).map(name);
    let beyond = points[..later.min(points.len())].iter().rev().map(name).collect();
    Divergence { dataset: dataset.clone(), common, beyond, written }.into()
}

/// The points, newest first, that are newer than this base, if that is one of them.
fn later(points: &[Point], base: Option<u64>) -> &[Point] {
    let at = points.iter().position(|point| Some(point.guid) == base);
    &points[..at.unwrap_or(0)]
}

/// What ZFS said, but for what follows from a property that nobody asked to leave out.
fn without_expected(said: &str, decision: &Decision) -> String {
    let is_expected = |line: &&str| {
        line.contains("does not apply to datasets of this type")
            && decision.left_out.iter().any(|property| line.contains(&format!("'{property}'")))
    };
    let lines: Vec<&str> = said.lines().filter(|line| !is_expected(line)).collect();
    lines.join("\n")
}

impl Sink for ReceiveSink {
    type Error = ReceiveError;

    fn state(&mut self) -> Result<SinkState, ReceiveError> {
        let Some((dataset, points)) = self.look(&self.name)? else {
            return Ok(SinkState::default());
        };
        let told = points.iter().take(POINTS_MAX.into());
        Ok(SinkState {
            generation: points.first().map(|point| Generation::zfs(point.guid)),
            token: dataset.receive_resume_token,
            points: told
                .map(|point| Told { guid: point.guid, name: point.name.to_string() })
                .collect(),
        })
    }

    fn turn_to(
        &mut self,
        path: &str,
        discard: Option<&str>,
    ) -> Result<Option<SinkState>, ReceiveError> {
        self.name = self.own.join(path).map_err(ReceiveError::Member)?;
        if let Some(token) = discard
            && self.zfs.discard_partial(&self.name, token)?
        {
            tracing::warn!(
                dataset = %self.name,
                "discarded a partial stream that nobody can resume"
            );
        }
        self.state().map(Some)
    }

    fn begin(&mut self, offer: &Offer) -> Result<(), ReceiveError> {
        let base = offer.plan.base.as_ref().and_then(Generation::zfs_guid);
        self.work = Work::Begun { found: self.check(base)?, base, bytes: Vec::new() };
        Ok(())
    }

    fn write(&mut self, more: &[u8]) -> Result<(), ReceiveError> {
        match &mut self.work {
            Work::Begun { bytes, .. } => {
                bytes.extend_from_slice(more);
                self.open(false)
            }
            Work::Receiving { .. } | Work::Idle => self.put(more),
        }
    }

    fn finish(&mut self, _: &Generation) -> Result<SinkState, ReceiveError> {
        self.open(true)?;
        self.end()?;
        self.state()
    }
}
