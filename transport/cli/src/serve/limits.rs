//! What keeps peers from taking all of a listener: the section `[limits]` of its configuration.

use std::time::Duration;

use anyhow::bail;
use driftline_transport::SOURCE_PATIENCE;
use serde::Deserialize;

use crate::args::units::{DAY, parse_time};

/// More sessions than any machine serves.
const SESSIONS_MAX: usize = 4096;
/// More handshakes than a process has descriptors for.
const HANDSHAKES_MAX: usize = 65_536;

/// The section as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    handshakes: Option<usize>,
    handshakes_per_address: Option<usize>,
    sessions_per_key: Option<usize>,
    waiting_per_key: Option<usize>,
    request_timeout: Option<String>,
    session_wait: Option<String>,
    stalled_after: Option<String>,
    stalled_max: Option<String>,
    source_timeout: Option<String>,
}

/// What each peer may take, and for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Sessions at the same time.
    pub(crate) sessions: usize,
    /// Of these, sessions of one key.
    pub(crate) sessions_per_key: usize,
    /// Connections of one key that wait for a session.
    pub(crate) waiting_per_key: usize,
    /// Connections that have not proven a key yet.
    pub(crate) handshakes: usize,
    /// Of these, connections from one address.
    pub(crate) handshakes_per_address: usize,
    /// How long a peer that is let in may ask for nothing.
    pub(crate) request_timeout: Duration,
    /// How long a peer waits for a session.
    pub(crate) session_wait: Duration,
    /// After how long without progress a session gives way to a peer that waits.
    pub(crate) stalled_after: Duration,
    /// After how long without progress a session ends.
    pub(crate) stalled_max: Duration,
    /// After how long a source that yields nothing fails its session.
    pub(crate) source_timeout: Duration,
}

impl Written {
    /// The limits, with defaults for what is not said.
    pub(crate) fn check(self, sessions: usize) -> anyhow::Result<Limits> {
        let count = |name: &str, said: Option<usize>, default: usize, max: usize| match said
            .unwrap_or(default)
        {
            count if (1..=max).contains(&count) => Ok(count),
            count => bail!("{name} is {count}: it takes 1 to {max}"),
        };
        let time = |name: &str, said: Option<String>, default: Duration| {
            said.map_or(Ok(default), |said| parse_time(name, &said))
        };
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let sessions = count("sessions_max", Some(sessions), 0, SESSIONS_MAX)?;
        let half = sessions.div_ceil(2);
        let handshakes = count("handshakes", self.handshakes, 256, HANDSHAKES_MAX)?;
        let per_address = handshakes.min(64);
        let request = Duration::from_secs(20);
        Ok(Limits {
            sessions,
            sessions_per_key: count("sessions_per_key", self.sessions_per_key, half, sessions)?,
            waiting_per_key: count("waiting_per_key", self.waiting_per_key, 64, SESSIONS_MAX)?,
            handshakes,
            handshakes_per_address: count(
                "handshakes_per_address",
                self.handshakes_per_address,
                per_address,
                handshakes,
            )?,
            request_timeout: time("request_timeout", self.request_timeout, request)?,
            session_wait: time("session_wait", self.session_wait, minutes(10))?,
            stalled_after: time("stalled_after", self.stalled_after, minutes(10))?,
            stalled_max: time("stalled_max", self.stalled_max, DAY)?,
            source_timeout: time("source_timeout", self.source_timeout, SOURCE_PATIENCE)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, sessions: usize) -> anyhow::Result<Limits> {
        toml::from_str::<Written>(text)?.check(sessions)
    }

    #[test]
    fn one_key_does_not_get_all_sessions_unless_somebody_says_so() {
        for (sessions, per_key) in [(1, 1), (2, 1), (3, 2), (16, 8)] {
            assert_eq!(of("", sessions).unwrap().sessions_per_key, per_key);
        }
        assert_eq!(of("sessions_per_key = 16", 16).unwrap().sessions_per_key, 16);
        let limits = of("handshakes = 10\nstalled_after = \"90s\"", 16).unwrap();
        assert_eq!((limits.handshakes, limits.handshakes_per_address), (10, 10));
        assert_eq!(limits.stalled_after.as_secs(), 90);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, sessions, says) in [
            ("", 0, "sessions_max"),
            // More than a semaphore has: this was a panic.
            ("", usize::MAX, "sessions_max"),
            ("sessions_per_key = 17", 16, "sessions_per_key"),
            ("sessions_per_key = 0", 16, "sessions_per_key"),
            ("waiting_per_key = 0", 16, "waiting_per_key"),
            ("handshakes = 0", 16, "handshakes"),
            ("handshakes_per_address = 1000", 16, "handshakes_per_address"),
            ("request_timeout = \"0s\"", 16, "request_timeout"),
            ("session_wait = \"1\"", 16, "session_wait"),
            ("stalled = \"1m\"", 16, "stalled"),
        ] {
            let error = format!("{:#}", of(text, sessions).expect_err(text));
            assert!(error.contains(says), "{error}");
        }
    }
}
