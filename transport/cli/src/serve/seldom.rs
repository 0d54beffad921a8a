//! What happens no more often than it may: log lines that a peer causes, and what it asks for.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lets something happen so many times at once, and then once in a while.
#[derive(Debug)]
pub(super) struct Seldom {
    at_once: u32,
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Seldom {
    pub(super) fn new(at_once: u32, every: Duration) -> Self {
        let state = State { left: at_once, since: Instant::now(), left_out: 0 };
        Self { at_once, every, state: Mutex::new(state) }
    }

    /// Whether it may happen now; if so, how many times it did not since it last did, if any.
    pub(super) fn may(&self) -> Option<Option<u64>> {
        self.may_at(Instant::now())
    }

    fn may_at(&self, now: Instant) -> Option<Option<u64>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.since);
        let gained = passed.as_millis() / self.every.as_millis().max(1);
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        if state.left.saturating_add(gained) >= self.at_once {
            (state.left, state.since) = (self.at_once, now);
        } else {
            state.left += gained;
            state.since += self.every * gained;
        }
        if state.left == 0 {
            state.left_out += 1;
            return None;
        }
        state.left -= 1;
        let left_out = std::mem::take(&mut state.left_out);
        Some((left_out > 0).then_some(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_often_is_left_out_and_counted() {
        let seldom = Seldom::new(3, Duration::from_secs(10));
        let start = Instant::now();
        let at = |ms| seldom.may_at(start + Duration::from_millis(ms));
        assert_eq!(
            [at(0), at(0), at(1), at(2), at(3)],
            [Some(None), Some(None), Some(None), None, None]
        );
        assert_eq!([at(9_000), at(10_100), at(10_200)], [None, Some(Some(3)), None]);
        assert_eq!([at(20_100), at(20_200)], [Some(Some(1)), None]);
        // A long pause allows no more than at the start.
        let after = [at(999_000), at(999_000), at(999_000), at(999_000)];
        assert_eq!(after, [Some(Some(1)), Some(None), Some(None), None]);
    }
}
