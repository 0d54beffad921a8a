//! What a session did, for whoever reports it.

use driftline_extent::{Committed, Plan, TargetState};

use crate::auditor::AuditReport;

/// What a session did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Summary {
    /// Each increment that was committed: how it was planned, and what it led to.
    pub increments: Vec<(Plan, Committed)>,
    /// What the target held when the session began.
    pub before: Option<Box<TargetState>>,
    /// What the source's auditor has seen, where this side has one.
    pub audit_report: Option<AuditReport>,
}

impl Summary {
    /// How many bytes of data became zero at the target or were cut off there, in whole chunks;
    /// `None` where no target counted them.
    pub fn zeroed(&self) -> Option<u64> {
        self.increments.iter().filter_map(|(_, committed)| committed.zeroed).reduce(|a, b| a + b)
    }
}
