//! Counters of a session, for whoever draws a bar.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a session has done so far. All numbers are bytes; readers may be a little late.
#[derive(Debug, Default)]
pub struct Progress {
    expected: AtomicU64,
    read: AtomicU64,
    announced: AtomicU64,
    data: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// [`Progress`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// What the source expects to read; zero if it does not know.
    pub expected: u64,
    /// What the source has read.
    pub read: u64,
    /// Changed bytes that were announced: holes are not among them.
    pub announced: u64,
    /// Changed bytes that the target lacked, before compression.
    pub data: u64,
    /// What went out over the connection.
    pub sent: u64,
    /// What came in over the connection.
    pub received: u64,
}

impl Progress {
    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            expected: self.expected.load(Relaxed),
            read: self.read.load(Relaxed),
            announced: self.announced.load(Relaxed),
            data: self.data.load(Relaxed),
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
        }
    }

    pub(crate) fn set_expected(&self, bytes: u64) {
        self.expected.store(bytes, Relaxed);
    }

    pub(crate) fn set_read(&self, bytes: u64) {
        self.read.store(bytes, Relaxed);
    }

    pub(crate) fn add_announced(&self, bytes: u64) {
        self.announced.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_data(&self, bytes: u64) {
        self.data.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }
}
