//! Counters of a session, for whoever draws a bar.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Stands for no time at all.
const NEVER: u64 = u64::MAX;

/// What a session has done so far. All numbers are bytes; readers may be a little late.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    /// When something last happened that brings the session on, in milliseconds since the start.
    touched_ms: AtomicU64,
    /// Since when the peer has read too little of what there is to read, likewise; [`NEVER`] if it
    /// has not.
    lagging_ms: AtomicU64,
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

impl Default for Progress {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            started: Instant::now(),
            touched_ms: zero(),
            lagging_ms: AtomicU64::new(NEVER),
            expected: zero(),
            read: zero(),
            announced: zero(),
            data: zero(),
            sent: zero(),
            received: zero(),
        }
    }
}

impl Progress {
    /// For how long nothing has brought the session on: keep-alives do not.
    pub fn quiet(&self) -> Duration {
        let touched = Duration::from_millis(self.touched_ms.load(Relaxed));
        self.started.elapsed().saturating_sub(touched)
    }

    /// For how long the peer has read less than 1 MiB though there was always something to read.
    pub fn unread(&self) -> Duration {
        match self.lagging_ms.load(Relaxed) {
            NEVER => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }

    /// Something has brought the session on.
    pub(crate) fn touch(&self) {
        self.touched_ms.store(self.now_ms(), Relaxed);
    }

    /// Whether the peer has something to read, and has not read enough of it since this was first
    /// said.
    pub fn lags(&self, lags: bool) {
        if !lags {
            self.lagging_ms.store(NEVER, Relaxed);
        } else if self.lagging_ms.load(Relaxed) == NEVER {
            self.lagging_ms.store(self.now_ms(), Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

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
        self.touch();
    }

    pub(crate) fn add_announced(&self, bytes: u64) {
        self.announced.fetch_add(bytes, Relaxed);
        self.touch();
    }

    pub(crate) fn add_data(&self, bytes: u64) {
        self.data.fetch_add(bytes, Relaxed);
        self.touch();
    }

    pub(crate) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes that came in.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }
}
