//! Numbers and times as they are typed.

use std::time::Duration;

use crate::exit::misused;

/// A day.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Compression levels of zstd that make sense on a link.
const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// A number of bytes, with K, M or G for powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// A time as in 30d or 12h, for an option of this name.
pub(crate) fn parse_age(option: &str, text: &str) -> anyhow::Result<Duration> {
    let parsed = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => days.parse::<u32>().ok().and_then(|days| DAY.checked_mul(days)),
        (_, Some(hours)) => hours.parse::<u32>().ok().and_then(|h| (DAY / 24).checked_mul(h)),
        _ => None,
    };
    match parsed {
        Some(age) if age >= DAY / 24 && age <= DAY * 3660 => Ok(age),
        _ => misused!("{option} takes days or hours, as in 30d or 12h, from 1h to 3660d"),
    }
}

/// A share for an option of this name, in percent: from 0 to 100.
pub(crate) fn parse_share(option: &str, text: &str) -> anyhow::Result<u8> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
    match percent {
        Some(percent @ 0..=100) => Ok(percent),
        _ => misused!("{option} takes a share from 0% to 100%, as in 50%"),
    }
}

/// A time as in 20s, 10m, 12h or 1d, for a key or an option of this name.
pub(crate) fn parse_time(option: &str, text: &str) -> anyhow::Result<Duration> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(DAY.as_secs()),
        _ => None,
    };
    let seconds = unit.zip(digits.parse::<u64>().ok()).and_then(|(unit, n)| unit.checked_mul(n));
    match seconds.map(Duration::from_secs) {
        Some(time) if time >= Duration::from_secs(1) && time <= DAY * 3660 => Ok(time),
        _ => misused!("{option} takes a time as in 20s, 10m, 12h or 1d, from 1s to 3660d"),
    }
}

/// A zstd level for `--compress`; `None` is off.
pub(crate) fn parse_level(text: &str) -> anyhow::Result<Option<i32>> {
    match text.parse() {
        _ if text == "off" => Ok(None),
        Ok(level) if LEVELS.contains(&level) => Ok(Some(level)),
        _ => {
            misused!("--compress takes off, or a level from {} to {}", LEVELS.start(), LEVELS.end())
        }
    }
}

/// Bytes in a second for `--limit-rate`.
pub(crate) fn parse_rate(text: &str) -> anyhow::Result<u64> {
    match parse_bytes(text) {
        // Slower, a peer would seem to have gone silent.
        Some(rate) if rate >= 1 << 10 => Ok(rate),
        _ => misused!("--limit-rate takes at least 1K, as in 500K, 10M or 1G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_levels() {
        assert_eq!(parse_rate("7000").unwrap(), 7000);
        assert_eq!(parse_rate("10M").unwrap(), 10 << 20);
        for bad in
            ["", "0", "1023", "M", "10Q", "-1", "99999999999999999999", "18446744073709551615G"]
        {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        for (text, seconds) in
            [("1s", 1), ("20s", 20), ("10m", 600), ("12h", 43_200), ("1d", 86_400)]
        {
            assert_eq!(parse_time("x", text).unwrap().as_secs(), seconds);
        }
        for bad in ["", "0s", "10", "m", "-1s", "3661d", "1w", "999999999999999999d"] {
            assert!(parse_time("x", bad).is_err(), "{bad}");
        }
        assert_eq!(parse_level("off").unwrap(), None);
        assert_eq!(parse_level("-5").unwrap(), Some(-5));
        assert_eq!(
            (parse_share("x", "0%").ok(), parse_share("x", "100%").ok()),
            (Some(0), Some(100))
        );
        for bad in ["101%", "50", "-1%", "%", "0.5%"] {
            assert!(parse_share("x", bad).is_err(), "{bad}");
        }
        assert!(parse_level("99").is_err() && parse_level("fast").is_err());
    }
}
