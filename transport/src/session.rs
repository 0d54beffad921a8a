//! Sessions as the callers see them: run one side to its end, and hear what it did.

use std::sync::Arc;

use driftline_extent::{Committed, Plan, Reason, Source, Target, TargetState, Volume};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    Connection, Failure, TransportError, pump, source_side::SourceSide, target_side::TargetSide,
};

/// What a session did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Each increment that was committed: how it was planned, and what it led to.
    pub increments: Vec<(Plan, Committed)>,
    /// What the target held when the session began.
    pub before: Option<Box<TargetState>>,
}

/// The source side's part of a session.
pub struct SourceJob<S> {
    /// Where increments come from.
    pub source: S,
    /// The same volume for reading at random, if that is possible.
    pub volume: Option<Arc<dyn Volume + Send + Sync>>,
    /// Whether the user has agreed to a full copy over whatever the target holds.
    pub overwrite: bool,
    /// The zstd level for data on the way; `None` sends it as it is.
    pub compression: Option<i32>,
}

impl<S> std::fmt::Debug for SourceJob<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceJob").field("overwrite", &self.overwrite).finish_non_exhaustive()
    }
}

/// Runs the source side of an accepted session to its end.
pub async fn serve_source<C, S>(
    connection: Connection<C>,
    job: SourceJob<S>,
) -> Result<Summary, TransportError>
where
    C: AsyncRead + AsyncWrite,
    S: Source + Send + 'static,
{
    let mut side = SourceSide::start(job, connection.progress())?;
    pump::run(connection, &mut side).await?;
    Ok(side.summary)
}

/// Runs the target side of an accepted session to its end, and gives the target back.
pub async fn serve_target<C, T>(
    connection: Connection<C>,
    target: T,
) -> (Result<Summary, TransportError>, Option<T>)
where
    C: AsyncRead + AsyncWrite,
    T: Target + Send + 'static,
{
    let (mut side, worker) = match TargetSide::start(target, connection.progress()) {
        Ok(started) => started,
        Err(failure) => return (Err(failure.into()), None),
    };
    let result = pump::run(connection, &mut side).await;
    // The worker ends when nobody can ask it for more. Waiting for it means that the
    // replica's lock is free when we say that we are done.
    let summary = side.into_summary();
    let target = worker.await.ok();
    (result.map(|()| summary), target)
}

/// A worker that is gone has panicked; its message is on standard error.
pub(crate) fn worker_gone() -> Failure {
    Failure::new(Reason::Failed, "a worker thread has died; this is a defect in Driftline")
}
