//! A bandwidth limit: a token bucket without a clock of its own.

/// Lets bytes through at a steady rate, with bursts of up to a tenth of a second.
#[derive(Clone, Debug)]
pub struct RateLimit {
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
    pub fn new(bytes_per_second: u64, now_ms: u64) -> Self {
        assert!(bytes_per_second > 0, "a limit of zero moves nothing");
        Self { bytes_per_second, allowance: 0, updated_ms: now_ms }
    }

    /// How long to wait before anything may move, in milliseconds; zero if not at all.
    pub fn wait_ms(&mut self, now_ms: u64) -> u64 {
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
    pub fn moved(&mut self, bytes: u64) {
        self.allowance -= i128::from(bytes);
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
}
