//! How a session ends when it does not end well.

use std::{error::Error, io};

use driftline_extent::{Explained, Reason, Unreadable};
use driftline_wire::{LinkError, PublicKey, SessionError};

/// A failure of our own source or target, as the user and the peer are told of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// In one word.
    pub reason: Reason,
    /// For a person, with all causes.
    pub detail: String,
}

impl Failure {
    /// A failure with a reason and an explanation.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// A worker that is gone has panicked; its message is on standard error.
    pub(crate) fn worker_gone() -> Self {
        Self::new(Reason::Failed, "a worker thread has died; this is a defect in Driftline")
    }

    /// The failure that an adapter's error amounts to, with the causes below it.
    pub fn from_error(error: &dyn Explained) -> Self {
        Self { reason: error.reason(), detail: chain(error) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let reason = Unreadable::reason_of(&error).unwrap_or(Reason::Failed);
        Self::new(reason, error.to_string())
    }
}

/// Why a session did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The connection could not be made, or broke.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer is not who it should be, or someone meddled with the connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer refused, or does not keep to the protocol.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Our own side failed; the peer was told.
    #[error(transparent)]
    Local(#[from] Failure),
    /// The peer hung up when it had heard who we are, each time.
    #[error(
        "the peer hung up during the handshake: its list of peers lacks our public key {0}, or its \
         own key is another than the one given with --peer"
    )]
    NotLetIn(PublicKey),
    /// The peer went away.
    #[error("the peer closed the connection; run again to go on where this stopped")]
    Closed,
}

impl TransportError {
    /// What the failure says about the data, if it says anything: `None` means that only the
    /// connection failed and that trying again may help.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Local(failure) => Some(failure.reason),
            Self::Session(error) => Some(error.reason()),
            // A person has to change a list or a key: the next run would fail as well.
            Self::NotLetIn(_) => Some(Reason::Denied),
            Self::Io(_) | Self::Link(_) | Self::Closed => None,
        }
    }
}

/// An error with the chain of its causes, on one line.
pub fn chain<E: Error + ?Sized>(error: &E) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What fakes refuse with.
#[cfg(test)]
#[derive(Debug, thiserror::Error)]
#[error("not today")]
pub(crate) struct No;

#[cfg(test)]
impl Explained for No {
    fn reason(&self) -> Reason {
        Reason::Denied
    }
}
