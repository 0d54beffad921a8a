//! The loop of a session: wait in one place, act in another.

use driftline_wire::{DataPart, LinkEvent, Message};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Connection, Failure, TransportError};

/// What a side wants of its connection.
pub(crate) enum Outgoing {
    Message(Message),
    Data(DataPart),
    /// The session is over, well or not; what was said before is still sent.
    Ended,
}

/// One side of a session: a protocol machine and the workers that carry out what it wants.
pub(crate) trait Side {
    type Event;

    /// The next thing that a worker has done. Dropping the future loses nothing.
    async fn next_event(&mut self) -> Self::Event;
    fn handle_event(&mut self, event: Self::Event);
    fn handle_message(&mut self, message: Message) -> Result<(), TransportError>;
    fn handle_data(&mut self, part: DataPart) -> Result<(), TransportError>;
    /// Hands work to the workers, and words to the connection.
    fn poll(&mut self) -> Option<Outgoing>;
    /// Why the session ended, if it was our own failure.
    fn failure(&self) -> Option<Failure>;
}

/// Runs a session to its end.
pub(crate) async fn run<S: AsyncRead + AsyncWrite, T: Side>(
    mut connection: Connection<S>,
    side: &mut T,
) -> Result<(), TransportError> {
    let result = exchange(&mut connection, side).await;
    // The peer has been told of our failure, or is gone; either way ours is the cause.
    let closed = match (&result, side.failure()) {
        (Ok(()), _) | (Err(_), Some(_)) => connection.close().await,
        (Err(_), None) => Ok(()),
    };
    match side.failure() {
        Some(failure) => Err(failure.into()),
        None => result.and(closed),
    }
}

async fn exchange<S: AsyncRead + AsyncWrite, T: Side>(
    connection: &mut Connection<S>,
    side: &mut T,
) -> Result<(), TransportError> {
    loop {
        while let Some(outgoing) = side.poll() {
            match outgoing {
                Outgoing::Message(message) => {
                    tracing::trace!(message = message.name(), "send");
                    connection.send(&message)?;
                    if let Message::State(state) = &message {
                        connection.bind(&state.replica);
                    }
                }
                Outgoing::Data(part) => connection.send_data(part)?,
                Outgoing::Ended => return Ok(()),
            }
        }
        match connection.poll_event()? {
            Some(LinkEvent::Message(message)) => {
                tracing::trace!(message = message.name(), "received");
                if let Message::State(state) = &message {
                    connection.bind(&state.replica);
                }
                side.handle_message(message)?;
            }
            Some(LinkEvent::Data(part)) => side.handle_data(part)?,
            // A link opens once, before a session.
            Some(LinkEvent::Open { .. }) => return Err(TransportError::Closed),
            None => tokio::select! {
                step = connection.step() => step?,
                event = side.next_event() => side.handle_event(event),
            },
        }
    }
}
