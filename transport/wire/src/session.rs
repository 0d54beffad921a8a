//! What both machines share: the ways in which a session can break.

use driftline_extent::Reason;

use crate::{codec::DecodeError, message::Message};

/// Why a session is over before its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer refused, and said why.
    #[error("{reason}: {detail}")]
    Refused {
        /// In one word.
        reason: Reason,
        /// For a person.
        detail: String,
    },
    /// A message came at a time when it means nothing.
    #[error("the peer sent {message} while {state}: it does not keep to the protocol")]
    Unexpected {
        /// Its name.
        message: &'static str,
        /// What we were doing.
        state: &'static str,
    },
    /// A message contradicts what was said before.
    #[error("the peer does not keep to the protocol: {0}")]
    Violation(&'static str),
    /// What arrived is not what was sent, although every frame was authentic: a defect in
    /// one of the two programs.
    #[error("the increment that arrived is not the one that was sent; nothing was committed")]
    Transcript,
    /// Data makes no sense.
    #[error("the peer sent malformed data")]
    Decode(#[from] DecodeError),
}

impl SessionError {
    /// `message` has no place in `state`: a refusal may come at any time and ends the session,
    /// anything else breaks the protocol.
    pub fn out_of_place(message: Message, state: &'static str) -> Self {
        match message {
            Message::Refuse { reason, detail } => Self::Refused { reason, detail },
            other => Self::Unexpected { message: other.name(), state },
        }
    }

    /// The reason that stands for this error in exit codes.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::Transcript => Reason::VerifyFailed,
            Self::Unexpected { .. } | Self::Violation(_) | Self::Decode(_) => Reason::Failed,
        }
    }
}
