//! What to send, what to start from, and what may go: decisions over listed points.
//!
//! Nothing here runs anything. Guids say what is the same, `createtxg` says what is older;
//! names and clocks are for people and decide nothing.
//!
//! The tip ([`choose_tip`]), among the points of one data set:
//!
//! | asked for | there is | sent |
//! |---|---|---|
//! | a name | that snapshot | it |
//! | a name | no such snapshot, or a bookmark | error |
//! | the latest | snapshots | the one with the highest `createtxg` |
//! | the latest | only bookmarks, or nothing | error |
//!
//! The base ([`choose_base`]), for a target that holds one generation:
//!
//! | the target holds | sent |
//! |---|---|
//! | nothing | everything |
//! | the tip | nothing |
//! | a snapshot older than the tip | from it, also if there is a bookmark of it |
//! | what only a bookmark is left of, older than the tip | from the bookmark |
//! | something newer than the tip | error: the target is ahead |
//! | something of which nothing is left | error: diverged, rolled back or pruned |
//!
//! A target that is a data set itself has its own snapshots: see [`newest_common`].

mod base;
mod common;
mod own;
mod pattern;
mod prune;
#[cfg(test)]
mod testing;
mod time;
mod tip;

pub use base::{Base, BaseError, choose_base};
pub use common::{Common, Divergence, newest_common, ways_out};
pub use own::{OwnNames, OwnPoint, PrefixError};
pub use pattern::{PatternError, Patterns};
pub use prune::{held_back, left_behind, prune};
pub use tip::{Request, TipError, choose_tip};
