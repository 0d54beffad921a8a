//! What can go wrong with a controller, in words.

use std::path::PathBuf;

use driftline_extent::{Explained, Reason};

use crate::{
    Controller, Message, ResourceName, SnapshotName,
    answer::{Level, listed},
};

/// Why a controller did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinstorError {
    /// A file of certificates or keys, or the token, cannot be used.
    #[error("{what} {} cannot be used: {why}", path.display())]
    File {
        /// What it holds.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// What was asked for makes no sense, or is never done.
    #[error("{0}")]
    Misuse(String),
    /// No controller could be spoken to.
    #[error(
        "no LINSTOR controller can be reached: {}; is linstor-controller running, and is the \
         address right?", tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unreachable {
        /// Each one that was tried, in this order.
        tried: Vec<Attempt>,
    },
    /// The connection failed when it may have been too late.
    #[error(
        "{request}: the LINSTOR controller {controller} was lost before it answered ({why}): \
         it may have been done or not, see linstor snapshot list"
    )]
    Lost {
        /// Method and path.
        request: String,
        /// Where it was sent.
        controller: Controller,
        /// What happened to the connection.
        why: String,
    },
    /// The controller does not let us.
    #[error(
        "{request}: the LINSTOR controller {controller} denies it (HTTP status {status}{}): {}",
        said(messages),
        if *token { "is the token right, not expired, and of this machine?" }
        else { "it wants a token, and none was given" }
    )]
    Denied {
        /// Method and path.
        request: String,
        /// Who denied it.
        controller: Controller,
        /// Status of HTTP.
        status: u16,
        /// Whether a token was sent.
        token: bool,
        /// What it said.
        messages: Vec<Message>,
    },
    /// The controller could not, or would not.
    #[error("{request}: LINSTOR refused it (HTTP status {status}): {}", listed(messages))]
    Refused {
        /// Method and path.
        request: String,
        /// Status of HTTP.
        status: u16,
        /// All that it said, errors or not.
        messages: Vec<Message>,
    },
    /// The answer is an error that is not LINSTOR's.
    #[error(
        "{request}: {controller} answered with HTTP status {status} and {beginning:?}: is it a \
         LINSTOR controller?"
    )]
    Status {
        /// Method and path.
        request: String,
        /// Who answered.
        controller: Controller,
        /// Status of HTTP.
        status: u16,
        /// The beginning of what it wrote.
        beginning: String,
    },
    /// The answer is that it is elsewhere.
    #[error("{request}: {controller} sends us to {to:?}: name that controller instead")]
    OtherReplicas {
        /// Method and path.
        request: String,
        /// Who answered.
        controller: Controller,
        /// The beginning of what it names.
        to: String,
    },
    /// The answer is longer than is read.
    #[error("{request}: {controller} answered with more than {limit} bytes: is it LINSTOR?")]
    TooLong {
        /// Method and path.
        request: String,
        /// Who answered.
        controller: Controller,
        /// The most bytes that are read.
        limit: u64,
    },
    /// The answer makes no sense.
    #[error(
        "{request}: the answer {beginning:?} is not understood ({why}): is it a LINSTOR \
         controller with version 1 of the REST interface?"
    )]
    NotUnderstood {
        /// Method and path.
        request: String,
        /// Why, and where in the answer.
        why: String,
        /// The beginning of the answer.
        beginning: String,
    },
    /// LINSTOR took a snapshot, and it came to nothing.
    #[error(
        "the snapshot {snapshot} of the resource {resource} failed ({flag}): see linstor \
         snapshot list, linstor node list and linstor error-reports list"
    )]
    SnapshotFailed {
        /// The resource.
        resource: ResourceName,
        /// The snapshot.
        snapshot: SnapshotName,
        /// The flag that says so.
        flag: String,
    },
    /// A snapshot was not successful in time.
    #[error(
        "the snapshot {snapshot} of the resource {resource} is not done yet and is not waited \
         for any longer: see linstor snapshot list and linstor node list"
    )]
    SnapshotPending {
        /// The resource.
        resource: ResourceName,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// A snapshot is not there, or no more.
    #[error("the resource {resource} has no snapshot {snapshot}: somebody may have deleted it")]
    SnapshotGone {
        /// The resource.
        resource: ResourceName,
        /// The snapshot.
        snapshot: SnapshotName,
    },
}

/// A controller that could not be spoken to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Its address.
    pub controller: Controller,
    /// Why not.
    pub why: String,
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.controller, self.why)
    }
}

fn said(messages: &[Message]) -> String {
    match messages {
        [] => String::new(),
        messages => format!(", {}", listed(messages)),
    }
}

impl LinstorError {
    /// The errors among what the controller said.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        let messages: &[Message] = match self {
            Self::Refused { messages, .. } | Self::Denied { messages, .. } => messages,
            _ => &[],
        };
        messages.iter().filter(|message| message.level() == Level::Error)
    }
}

impl Explained for LinstorError {
    fn reason(&self) -> Reason {
        match self {
            Self::Denied { .. } => Reason::Denied,
            _ => Reason::Failed,
        }
    }
}
