//! Sessions as the callers see them: run one side to its end, and hear what it did.

use std::time::Duration;

use driftline_extent::{Source, Target};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    Connection, Summary, TransportError, pump,
    source_side::{SourceJob, SourceSide},
    target_side::TargetSide,
};

/// How long to wait for the end of a source, which may be stuck in a read.
const SOURCE_END_MAX: Duration = Duration::from_secs(10);

/// Runs the source side of an accepted session to its end.
pub async fn serve_source<C, S>(
    connection: Connection<C>,
    job: SourceJob<S>,
) -> Result<Summary, TransportError>
where
    C: AsyncRead + AsyncWrite,
    S: Source + Send + 'static,
{
    let (mut side, ended) = SourceSide::start(job, connection.progress())?;
    let result = pump::run(connection, &mut side).await;
    let summary = side.into_summary();
    // The worker ends when nobody can ask it for more, and with it what the source keeps in its
    // storage meanwhile, such as a hold on a snapshot: the process must not end before.
    let _ = timeout(SOURCE_END_MAX, ended).await;
    result.map(|()| summary)
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
