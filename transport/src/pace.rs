//! A bandwidth limit: a token bucket without a clock of its own, and one that connections share.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

/// Lets bytes through at a steady rate, with bursts of up to a tenth of a second.
#[derive(Clone, Debug)]
pub(crate) struct RateLimit {
    bytes_per_second: u64,
    /// Bytes that may move now. Negative after a large one: a debt to be waited off.
    allowance: i128,
    updated_ms: u64,
}

impl RateLimit {
    /// A limit that is at work from `now_ms` on.
    ///
    /// # Panics
    /// If `bytes_per_second` is zero: nothing would ever move.
    pub(crate) fn new(bytes_per_second: u64, now_ms: u64) -> Self {
        assert!(bytes_per_second > 0, "a limit of zero moves nothing");
        Self { bytes_per_second, allowance: 0, updated_ms: now_ms }
    }

    /// How long to wait before anything may move, in milliseconds; zero if not at all.
    pub(crate) fn wait_ms(&mut self, now_ms: u64) -> u64 {
        let rate = i128::from(self.bytes_per_second);
        let passed = i128::from(now_ms.saturating_sub(self.updated_ms));
        let gained = rate * passed / 1000;
        if gained > 0 {
            self.allowance = (self.allowance + gained).min((rate / 10).max(1));
            self.updated_ms = now_ms;
        }
        if self.allowance > 0 {
            return 0;
        }
        u64::try_from((1 - self.allowance) * 1000 / rate + 1).unwrap_or(u64::MAX)
    }

    /// Notes that so many bytes were moved.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.allowance -= i128::from(bytes);
    }
}

/// A bandwidth limit by the clock, which its clones have in common: it is kept by all of them
/// together.
#[derive(Clone)]
pub struct SharedLimit {
    limit: Arc<Mutex<RateLimit>>,
    started: Instant,
}

impl SharedLimit {
    /// A limit that is at work from now on.
    ///
    /// # Panics
    /// If `bytes_per_second` is zero: nothing would ever move.
    pub fn new(bytes_per_second: u64) -> Self {
        let limit = Arc::new(Mutex::new(RateLimit::new(bytes_per_second, 0)));
        Self { limit, started: Instant::now() }
    }

    /// How long to wait before anything may move, in milliseconds; zero if not at all.
    pub(crate) fn wait_ms(&self) -> u64 {
        // A process does not run for 584 million years.
        let now_ms = self.started.elapsed().as_millis() as u64;
        self.limit().wait_ms(now_ms)
    }

    /// Notes that so many bytes were moved.
    pub(crate) fn moved(&self, bytes: u64) {
        self.limit().moved(bytes);
    }

    /// How many bytes may move at once: what a tenth of a second allows, but not more than `max`.
    /// A peer that saw larger bursts would take the pauses between them for silence.
    pub(crate) fn burst(&self, max: usize) -> usize {
        let tenth = self.limit().bytes_per_second / 10;
        usize::try_from(tenth).unwrap_or(max).clamp(1, max)
    }

    fn limit(&self) -> MutexGuard<'_, RateLimit> {
        // Nothing in here panics half way.
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.limit().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_whatever_the_size_of_writes() {
        for write in [1, 700, 64 << 10, 5 << 20] {
            let mut limit = RateLimit::new(1_000_000, 0);
            let (mut now, mut total) = (0, 0_u64);
            while now < 60_000 {
                let wait = limit.wait_ms(now);
                if wait == 0 {
                    limit.moved(write);
                    total += write;
                } else {
                    now += wait;
                }
            }
            let seconds = 60;
            assert!(total <= 1_000_000 * seconds + 100_000 + write, "{write}: {total}");
            assert!(total >= 1_000_000 * (seconds - 1), "{write}: {total}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_by_all_who_share_it() {
        let limit = SharedLimit::new(1_000_000);
        let mover = |limit: SharedLimit| async move {
            let (started, mut total) = (Instant::now(), 0);
            while started.elapsed().as_secs() < 10 {
                match limit.wait_ms() {
                    0 => {
                        limit.moved(16 << 10);
                        total += 16 << 10;
                        tokio::task::yield_now().await;
                    }
                    wait => tokio::time::sleep(std::time::Duration::from_millis(wait)).await,
                }
            }
            total
        };
        let movers = [(); 4].map(|()| tokio::spawn(mover(limit.clone())));
        let mut total: u64 = 0;
        for mover in movers {
            total += mover.await.expect("it does not panic");
        }
        assert!(total <= 10_100_000 + 4 * (16 << 10), "{total}");
        assert!(total >= 9_000_000, "{total}");
    }
}
