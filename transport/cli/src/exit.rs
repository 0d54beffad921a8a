//! From what went wrong to the exit code that scripts see.

use std::error::Error;

use driftline_drbd::tracker::TrackerError;
use driftline_extent::{Explained, PlanKind, Reason};
use driftline_target::TargetError;
use driftline_transport::{Failure, Summary, TransportError};

use crate::{
    content::ContentError, linstor::LinstorSourceError, plain::PlainError, source::SourceError,
    target::AnyTargetError,
};

/// The exit codes, an interface: see the help text and INTERFACES.md.
pub(crate) mod code {
    pub(crate) const DONE: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const REFUSED: u8 = 3;
    pub(crate) const SOURCE: u8 = 4;
    pub(crate) const CONNECTION: u8 = 5;
    pub(crate) const REPLICA: u8 = 6;
    pub(crate) const FULL: u8 = 7;
    pub(crate) const DEGRADED: u8 = 8;
    pub(crate) const ABSENT: u8 = 9;
    pub(crate) const INCOMPLETE: u8 = 10;
    pub(crate) const GONE: u8 = 11;
}

/// What a run that was stopped by a signal says in place of a reason.
pub(crate) const STOPPED: &str = "stopped";

/// The command line or the configuration makes no sense, as far as the parser of it cannot tell.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Returns with a [`Usage`] error.
macro_rules! misused {
    ($($arguments:tt)*) => {
        return Err($crate::exit::Usage(format!($($arguments)*)).into())
    };
}
pub(crate) use misused;

/// What an error is called in `--json` output, and its exit code.
pub(crate) fn classify(error: &anyhow::Error) -> (&'static str, u8) {
    match reason(error) {
        _ if error.is::<Usage>() => ("usage", code::USAGE),
        Some(reason) => (reason.as_str(), of_reason(reason)),
        None if error.chain().any(is_connection) => ("connection", code::CONNECTION),
        None => (Reason::Failed.as_str(), code::FAILED),
    }
}

/// Whether all that failed is a connection, and trying again may help.
fn is_connection(cause: &(dyn Error + 'static)) -> bool {
    cause.is::<TransportError>()
        || cause.downcast_ref::<SourceError>().is_some_and(SourceError::is_connection)
        || cause.downcast_ref::<LinstorSourceError>().is_some_and(LinstorSourceError::is_connection)
}

/// What an error says about the data.
pub(crate) fn reason(error: &anyhow::Error) -> Option<Reason> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<TransportError>() {
            return error.reason();
        }
        if is_connection(cause) {
            return None;
        }
        None.or_else(|| cause.downcast_ref::<Failure>().map(|error| error.reason))
            .or_else(|| cause.downcast_ref::<AnyTargetError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<ContentError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<TargetError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<SourceError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<LinstorSourceError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<TrackerError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<PlainError>().map(Explained::reason))
            .or_else(|| cause.downcast_ref::<driftline_zfs::StreamError>().map(Explained::reason))
    })
}

/// Why a run that was done did more than it should have had to: all was read although a base was
/// there, or something was found. What has no map of its own, and what the user has asked for, is
/// nothing to point at.
pub(crate) fn degraded(summary: &Summary) -> Option<Reason> {
    let scanned = summary.increments.iter().find_map(|(plan, _)| match plan.kind {
        PlanKind::Scan | PlanKind::Full => {
            plan.standing.reason().filter(|reason| *reason != Reason::MapMissing)
        }
        _ => None,
    });
    let audit_report = summary.audit_report.as_ref();
    let missed =
        audit_report.and_then(|audit_report| audit_report.missed).is_some_and(|count| count > 0);
    missed
        .then_some(Reason::AuditMismatch)
        .or(scanned)
        .or_else(|| audit_report.and_then(|audit_report| audit_report.rebuilt))
}

fn of_reason(reason: Reason) -> u8 {
    match reason {
        Reason::BaseMismatch
        | Reason::SourceMismatch
        | Reason::TargetForeign
        | Reason::TargetBusy
        | Reason::Unsupported
        | Reason::JustCreated
        | Reason::NotConsistent
        | Reason::SourceEmptied
        | Reason::NotEncrypted
        | Reason::KeyMismatch
        | Reason::TargetGone
        | Reason::Denied => code::REFUSED,
        Reason::StreamDamaged
        | Reason::MetadataDamaged
        | Reason::SourceChanged
        | Reason::SourceUnreadable
        | Reason::ResumeMismatch => code::SOURCE,
        Reason::TargetModified
        | Reason::VerifyFailed
        | Reason::TargetDamaged
        | Reason::AuditMismatch
        | Reason::RootMismatch => code::REPLICA,
        Reason::TargetFull => code::FULL,
        // Reasons that a later version may add are failures to this one.
        _ => code::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn misuse() -> anyhow::Result<()> {
        misused!("{} makes no sense", "it")
    }

    #[test]
    fn what_makes_no_sense_is_no_failure() {
        let error = misuse().context("--option").unwrap_err();
        assert_eq!(classify(&error), ("usage", 2));
        assert_eq!(format!("{error:#}"), "--option: it makes no sense");
    }

    #[test]
    fn a_reason_is_found_below_any_context() {
        let failure = Failure::new(Reason::BaseMismatch, "no");
        let error = Err::<(), _>(TransportError::Local(failure)).context("push").unwrap_err();
        assert_eq!(classify(&error), ("base-mismatch", code::REFUSED));
        let error = Err::<(), _>(TransportError::Closed).context("push").unwrap_err();
        assert_eq!(classify(&error), ("connection", code::CONNECTION));
        assert_eq!(classify(&anyhow::anyhow!("x")), ("failed", code::FAILED));
    }

    #[test]
    fn every_reason_has_the_code_that_is_documented() {
        let codes: Vec<(&str, u8)> = Reason::all().map(|r| (r.as_str(), of_reason(r))).collect();
        let documented = [
            ("base-mismatch", 3),
            ("map-missing", 1),
            ("target-modified", 6),
            ("target-foreign", 3),
            ("target-busy", 3),
            ("target-full", 7),
            ("source-mismatch", 3),
            ("source-changed", 4),
            ("stream-damaged", 4),
            ("unsupported", 3),
            ("verify-failed", 6),
            ("denied", 3),
            ("failed", 1),
            ("size-changed", 1),
            ("geometry-changed", 1),
            ("slot-cleared", 1),
            ("full-sync-flag", 1),
            ("al-disabled", 1),
            ("al-damaged", 1),
            ("al-already-applied", 1),
            ("not-tracked", 1),
            ("uuid-unchanged", 1),
            ("just-created", 3),
            ("not-consistent", 3),
            ("metadata-damaged", 4),
            ("audit-mismatch", 6),
            ("root-mismatch", 6),
            ("manifest-missing", 1),
            ("manifest-damaged", 1),
            ("target-damaged", 6),
            ("resume-mismatch", 4),
            ("source-emptied", 3),
            ("source-unreadable", 4),
            ("not-encrypted", 3),
            ("key-mismatch", 3),
            ("target-gone", 3),
        ];
        assert_eq!(codes, documented);
        // And by the document as well.
        let text = include_str!("../../../REASONS.md");
        for (word, code) in codes {
            let section = format!("\n## {word}\n\nExit {code}. ");
            assert!(text.contains(&section), "REASONS.md has no {section:?}");
        }
    }
}
