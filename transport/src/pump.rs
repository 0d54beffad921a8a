//! The loop of a session: wait in one place, act in another.

use std::time::Duration;

use driftline_extent::Reason;
use driftline_wire::{DataPart, LinkEvent, Message};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Connection, Failure, Progress, TransportError};

/// What a side wants of its connection.
pub(crate) enum Outgoing {
    Message(Message),
    Data(DataPart),
    /// The session is over, well or not; what was said before is still sent.
    Ended,
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// The peer's.
    Peer,
    /// Our own source's, which may take so long.
    Source(Duration),
    /// Our own target's. A commit takes as long as it takes.
    Target,
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
    /// Whose turn it is.
    fn turn(&self) -> Turn;
    /// Ends the session by a failure of our own.
    fn fail(&mut self, failure: Failure);
    /// Why the session ended, if it was our own failure.
    fn failure(&self) -> Option<Failure>;
}

/// Runs a session to its end.
pub(crate) async fn run<S: AsyncRead + AsyncWrite, T: Side>(
    mut connection: Connection<S>,
    side: &mut T,
) -> Result<(), TransportError> {
    connection.widen();
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
    let progress = connection.progress();
    progress.touch();
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
                progress.touch();
                side.handle_message(message)?;
            }
            Some(LinkEvent::Data(part)) => {
                progress.touch();
                side.handle_data(part)?;
            }
            // A link opens once, before a session.
            Some(LinkEvent::Open { .. }) => return Err(TransportError::Closed),
            None => tokio::select! {
                step = connection.step() => {
                    step?;
                    look_after(side, &progress);
                }
                event = side.next_event() => {
                    progress.touch();
                    side.handle_event(event);
                }
            },
        }
    }
}

/// Ends a session whose own source has hung: the link alone would live on for ever.
fn look_after<T: Side>(side: &mut T, progress: &Progress) {
    match side.turn() {
        Turn::Peer => {}
        Turn::Target => progress.touch(),
        Turn::Source(patience) if progress.quiet() >= patience => {
            let seconds = patience.as_secs();
            let detail = format!(
                "the source has yielded nothing for {seconds} s: what reads it hangs. See \
                 `dmesg` and `zpool status`, or allow more with --source-timeout"
            );
            side.fail(Failure::new(Reason::SourceUnreadable, detail));
        }
        Turn::Source(_) => {}
    }
}
