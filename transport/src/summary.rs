//! What a session did, for whoever reports it.

use driftline_extent::{Committed, Plan, TargetState};

/// What a session did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Each increment that was committed: how it was planned, and what it led to.
    pub increments: Vec<(Plan, Committed)>,
    /// What the target held when the session began.
    pub before: Option<Box<TargetState>>,
}
