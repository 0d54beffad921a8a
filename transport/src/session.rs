//! Sessions as the callers see them: run one side to its end, and hear what it did.

use driftline_extent::{Source, Target};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    Connection, Summary, TransportError, pump,
    source_side::{SourceJob, SourceSide},
    target_side::TargetSide,
};

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
