//! A data set of this machine's ZFS as a target: `zfs receive` applies what arrives.

use std::{cmp::Reverse, io::Write};

use driftline_extent::{Explained, Generation, Offer, POINTS_MAX, Point as Told, Reason};
use driftline_target::{Sink, SinkState};
use driftline_zfs::{
    Dataset, DatasetName, NameError, Point,
    host::{ReceiveRequest, Receiving, Zfs, ZfsError, warn_of},
    select::Divergence,
};

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
    receiving: Option<Receiving>,
}

impl ReceiveSink {
    pub(crate) fn new(
        zfs: Zfs,
        name: DatasetName,
        policy: args::Receive,
        root: Option<DatasetName>,
    ) -> Self {
        Self { zfs, own: name.clone(), name, policy, root, receiving: None }
    }

    /// The data set, and its snapshots, newest first.
    fn look(&self) -> Result<Option<(Dataset, Vec<Point>)>, ReceiveError> {
        let Some(dataset) = self.zfs.dataset(&self.name)? else { return Ok(None) };
        let mut points = self.zfs.points(&self.name)?;
        points.retain(Point::is_snapshot);
        points.sort_by_key(|point| Reverse(point.createtxg));
        Ok(Some((dataset, points)))
    }

    /// What `zfs receive` would refuse, with what a person may do about it.
    fn check(&self) -> Result<(), ReceiveError> {
        let Some((dataset, points)) = self.look()? else { return Ok(()) };
        if dataset.receive_resume_token.is_some() {
            return Ok(());
        }
        let Some(newest) = points.first() else {
            return Err(ReceiveError::Foreign(self.name.clone()));
        };
        if dataset.written.is_some_and(|bytes| bytes > 0) {
            return Err(self.written_since(newest));
        }
        Ok(())
    }

    fn written_since(&self, newest: &Point) -> ReceiveError {
        let common = Some(newest.name.clone());
        let (dataset, beyond) = (self.name.clone(), Vec::new());
        Divergence { dataset, common, beyond, written: true }.into()
    }

    /// Waits for the end of what is received. That the target was written an old ZFS tells only
    /// then, and any other if it was written just now.
    fn end(&mut self) -> Result<(), ReceiveError> {
        match self.receiving.take().ok_or(ReceiveError::Idle)?.finish() {
            Ok(said) => {
                warn_of(&self.name, &said);
                Ok(())
            }
            Err(error) if error.is_modified_target() => {
                let found = self.look()?;
                let newest = found.as_ref().and_then(|(_, points)| points.first());
                Err(newest.map_or_else(|| error.into(), |newest| self.written_since(newest)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Sink for ReceiveSink {
    type Error = ReceiveError;

    fn state(&mut self) -> Result<SinkState, ReceiveError> {
        let Some((dataset, points)) = self.look()? else { return Ok(SinkState::default()) };
        let told = points.iter().take(POINTS_MAX.into());
        Ok(SinkState {
            generation: points.first().map(|point| Generation::Zfs(point.guid)),
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
                "what was kept of a stream that nobody can go on with is thrown away"
            );
        }
        self.state().map(Some)
    }

    fn begin(&mut self, _: &Offer) -> Result<(), ReceiveError> {
        self.check()?;
        if let Some(root) = &self.root {
            self.zfs.make_parents(&self.name, root)?;
        }
        let request = ReceiveRequest {
            resumable: self.zfs.abilities()?.resume,
            exclude: self.policy.exclude.clone(),
            overrides: self.policy.overrides(),
            ..ReceiveRequest::new(self.name.clone())
        };
        self.receiving = Some(self.zfs.receive(&request)?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        let receiving = self.receiving.as_mut().ok_or(ReceiveError::Idle)?;
        let Err(error) = receiving.write_all(bytes) else { return Ok(()) };
        // What it says of its end is nearer to the cause than that it does not read.
        self.end()?;
        Err(ReceiveError::Cut(self.name.clone(), error))
    }

    fn finish(&mut self, _: &Generation) -> Result<SinkState, ReceiveError> {
        self.end()?;
        self.state()
    }
}
