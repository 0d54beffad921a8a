//! How a session opens: what the dialling side wants, and whether it may.

use std::future::Future;

use driftline_extent::TargetState;
use driftline_wire::{Message, SessionError, Verb};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Connection, Failure, TransportError};

/// Dialling side: asks for a volume and waits until it is granted. `like` names one of the
/// listener's that what is pushed is like.
pub async fn request<S: AsyncRead + AsyncWrite>(
    connection: &mut Connection<S>,
    verb: Verb,
    volume: &str,
    like: Option<&str>,
) -> Result<(), TransportError> {
    let (volume, like) = (volume.to_owned(), like.map(str::to_owned));
    connection.send(&Message::Request { verb, volume, like })?;
    match connection.message().await? {
        Message::Accept => Ok(()),
        other => Err(SessionError::out_of_place(other, "accept was due").into()),
    }
}

/// Dialling side: waits for the state of the volume it asked about.
pub async fn receive_state<S: AsyncRead + AsyncWrite>(
    connection: &mut Connection<S>,
) -> Result<TargetState, TransportError> {
    match connection.message().await? {
        Message::State(state) => Ok(*state),
        other => Err(SessionError::out_of_place(other, "a state was due").into()),
    }
}

/// Listening side: waits for what the peer wants, of which volume, and what that is like.
pub async fn receive_request<S: AsyncRead + AsyncWrite>(
    connection: &mut Connection<S>,
) -> Result<(Verb, String, Option<String>), TransportError> {
    match connection.message().await? {
        Message::Request { verb, volume, like } => Ok((verb, volume, like)),
        other => Err(SessionError::out_of_place(other, "a request was due").into()),
    }
}

/// Listening side: gets something ready while the link stays alive, then accepts, or refuses
/// and hangs up.
pub async fn answer<S, T>(
    mut connection: Connection<S>,
    ready: impl Future<Output = Result<T, Failure>>,
) -> Result<(Connection<S>, T), TransportError>
where
    S: AsyncRead + AsyncWrite,
{
    match connection.keep_alive_while(ready).await? {
        Ok(ready) => {
            connection.send(&Message::Accept)?;
            Ok((connection, ready))
        }
        Err(failure) => {
            let Failure { reason, detail } = failure.clone();
            connection.send(&Message::Refuse { reason, detail })?;
            connection.close().await?;
            Err(failure.into())
        }
    }
}

/// Listening side: tells the state of a volume, and hangs up.
pub async fn send_state<S: AsyncRead + AsyncWrite>(
    mut connection: Connection<S>,
    state: TargetState,
) -> Result<(), TransportError> {
    connection.send(&Message::State(Box::new(state)))?;
    connection.close().await
}
