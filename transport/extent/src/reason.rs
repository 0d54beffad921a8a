//! Why a map was not believed or an increment was refused.

use std::fmt;

/// Why Driftline would not do the ordinary thing. The words are an interface: they appear
/// in logs, in `--json` output and, as [`Reason::code`], on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The increment does not start at the generation the target holds.
    BaseMismatch,
    /// The source has no change map at all (a plain file or device).
    MapMissing,
    /// The replica's size or content is not what was committed to it.
    TargetModified,
    /// Something other than a replica stands where the replica should be.
    TargetForeign,
    /// Another process is writing this replica.
    TargetBusy,
    /// The target device is too small, or the disk is full.
    TargetFull,
    /// The replica is of another source volume.
    SourceMismatch,
    /// The source changed while it was read; take a snapshot and read that.
    SourceChanged,
    /// The source's stream is damaged, truncated or out of order.
    StreamDamaged,
    /// What the source sends cannot be carried (deduplicated, redacted, raw encrypted, …).
    Unsupported,
    /// What was read back, or the root over it, is not what was sent.
    VerifyFailed,
    /// The peer may not do this with this volume, or the volume does not exist.
    Denied,
    /// Something failed that is no finding about the data: I/O, memory, configuration.
    Failed,
}

/// Every reason with its wire code and its word. Codes are never reused.
const TABLE: &[(Reason, u16, &str)] = &[
    (Reason::BaseMismatch, 1, "base-mismatch"),
    (Reason::MapMissing, 2, "map-missing"),
    (Reason::TargetModified, 3, "target-modified"),
    (Reason::TargetForeign, 4, "target-foreign"),
    (Reason::TargetBusy, 5, "target-busy"),
    (Reason::TargetFull, 6, "target-full"),
    (Reason::SourceMismatch, 7, "source-mismatch"),
    (Reason::SourceChanged, 8, "source-changed"),
    (Reason::StreamDamaged, 9, "stream-damaged"),
    (Reason::Unsupported, 10, "unsupported"),
    (Reason::VerifyFailed, 11, "verify-failed"),
    (Reason::Denied, 12, "denied"),
    (Reason::Failed, 13, "failed"),
];

impl Reason {
    /// The number that stands for this reason on the wire.
    pub fn code(self) -> u16 {
        self.row().1
    }

    /// The reason with this wire code, if this version knows it.
    pub fn from_code(code: u16) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// The word for this reason, as printed.
    pub fn as_str(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> &'static (Self, u16, &'static str) {
        TABLE.iter().find(|row| row.0 == self).expect("every reason has a row; a test says so")
    }

    /// Every reason there is, in the order of their codes.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words_are_pinned_and_unique() {
        // A new variant without a row fails to compile here, a changed code fails below.
        for reason in Reason::all() {
            match reason {
                Reason::BaseMismatch | Reason::MapMissing | Reason::TargetModified => {}
                Reason::TargetForeign | Reason::TargetBusy | Reason::TargetFull => {}
                Reason::SourceMismatch | Reason::SourceChanged | Reason::StreamDamaged => {}
                Reason::Unsupported | Reason::VerifyFailed | Reason::Denied | Reason::Failed => {}
            }
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(TABLE.len(), 13);
        let codes: Vec<u16> = Reason::all().map(Reason::code).collect();
        assert_eq!(codes, (1..=13).collect::<Vec<_>>());
        assert_eq!(Reason::from_code(0), None);
        assert_eq!(Reason::BaseMismatch.to_string(), "base-mismatch");
    }
}
